# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""Settings of all tests: property tests try the same examples every time, are not judged by the machine's load, and
one test's logging does not reach the next."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, settings

settings.register_profile("npukit", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("npukit")


@pytest.fixture(autouse=True)
def _own_logging() -> Iterator[None]:
    """Give the package's logger back as it was: the command sets its level and handlers."""
    logger = logging.getLogger("npukit")
    before = logger.level, logger.propagate, list(logger.handlers)
    yield
    logger.setLevel(before[0])
    logger.propagate, logger.handlers[:] = before[1:]

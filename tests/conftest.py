# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""Settings of all tests: property tests try the same examples every time, are not judged by the machine's load, and
one test's logging does not reach the next; what several files' tests need."""

from __future__ import annotations

import importlib
import logging
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

settings.register_profile("npukit", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("npukit")


_LOGGER = logging.getLogger("npukit")
_LOGGING = _LOGGER.level, _LOGGER.propagate, list(_LOGGER.handlers)


@pytest.fixture(autouse=True)
def _own_logging() -> Iterator[None]:
    """Give the package's logger back as it was at first: the command sets its level and handlers.

    Before a test too: a fixture of the module may have run the command.
    """
    _reset_logging()
    yield
    _reset_logging()


def _reset_logging() -> None:
    _LOGGER.setLevel(_LOGGING[0])
    _LOGGER.propagate, _LOGGER.handlers[:] = _LOGGING[1], list(_LOGGING[2])


@pytest.fixture
def acl(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The double of pyACL as the module `acl`, fresh; at the end nothing may be left of it."""
    monkeypatch.syspath_prepend(str(Path(__file__).parent / "doubles/acl"))
    monkeypatch.delitem(sys.modules, "acl", raising=False)
    module = importlib.import_module("acl")
    yield module
    sys.modules.pop("acl", None)
    assert module.live() == {}
    assert module.violations == []

# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""Settings of all tests: property tests try the same examples every time, and are not judged by the machine's load."""

from __future__ import annotations

from hypothesis import HealthCheck, settings

settings.register_profile("npukit", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("npukit")

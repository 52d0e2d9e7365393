# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""The table of single-op graphs that raising is checked with: op, inputs, params, outputs."""

from tests.raising_cases import elementwise, movement, numbers, sampling, spatial
from tests.raising_cases.case import Case

__all__ = ["CASES", "Case"]

_FAMILIES = (elementwise, movement, numbers, sampling, spatial)
CASES = [case for family in _FAMILIES for case in family.CASES]

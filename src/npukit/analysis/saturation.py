# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""What an emulated chip has saturated, for a console."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from npukit.analysis import text

if TYPE_CHECKING:
    from npukit.ascend.emulate import Saturation

_MOST = 30
_HEAD = ("saturated tensor", "made by", "", "elements", "NaN", "largest before")


def lines(emulated: str, found: Sequence[Saturation]) -> list[str]:
    """A table of the tensors that were saturated, or the sentence that none was; nothing without emulation."""
    if not emulated:
        return []
    if not found:
        return [f"{emulated}: no tensor was saturated"]
    rows = [
        (s.tensor, f"{s.op_type} {s.node}".strip(), s.dtype, s.count, s.nans or None, f"{s.largest:.4g}")
        for s in found[:_MOST]
    ]
    more = [f"and {len(found) - _MOST} more"] if len(found) > _MOST else []
    where = "tensor" if len(found) == 1 else "tensors"
    return [f"{emulated}: {len(found)} {where} saturated", text.table(_HEAD, rows), *more]

# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""Huawei Ascend: what its compiler and its chip take, and what is needed to get there."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from npukit.ascend.limits import DEFAULT_CANN, PRECISIONS, cann_version

if TYPE_CHECKING:
    from npukit.ascend.checker import Problem, check
    from npukit.ascend.preparation import Applied, Prepared, prepare

__all__ = [
    "DEFAULT_CANN",
    "PRECISIONS",
    "Applied",
    "Prepared",
    "Problem",
    "cann_version",
    "check",
    "prepare",
]

# Loaded when asked for: they import onnx.
_LAZY = {
    **dict.fromkeys(("Problem", "check"), "checker"),
    **dict.fromkeys(("Applied", "Prepared", "prepare"), "preparation"),
}


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(importlib.import_module(f"npukit.ascend.{_LAZY[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

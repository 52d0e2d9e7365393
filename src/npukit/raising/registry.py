# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""Which function raises which QNN op type. Two owners of one type are an error at import."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import onnx_ir as ir

if TYPE_CHECKING:
    from npukit.raising.emit import Emit

Raised = ir.Value | Sequence[ir.Value | None]
RaiseFunction = Callable[["Emit"], Raised]


class Unraisable(Exception):
    """This op has no ONNX expression with these params: it becomes a node of domain `qti.aisw`."""


RAISERS: dict[str, RaiseFunction] = {}
OPSETS: dict[str, int] = {}


def raises(*types: str, opset: int | None = None) -> Callable[[RaiseFunction], RaiseFunction]:
    """Register the decorated function as the one that raises ops of `types`.

    The function gets an `Emit` of the op and returns the real value of each output, in order (a single value
    for a single output, None for an output it does not make). `opset` is the newest ai.onnx opset at which ONNX
    Runtime has kernels for what it emits, if that is not all of them.
    """

    def register(function: RaiseFunction) -> RaiseFunction:
        for type in types:
            if type in RAISERS:
                raise RuntimeError(f"two functions raise {type}: {RAISERS[type]} and {function}")
            RAISERS[type] = function
            if opset is not None:
                OPSETS[type] = opset
        return function

    return register

# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""Reductions, arg-max, cumulative sums and top-k. `keep_dims` is false by default, unlike in ONNX."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from npukit.raising.emit import Emit
from npukit.raising.registry import raises

_REDUCTIONS = ("ReduceMax", "ReduceMean", "ReduceMin", "ReduceProd", "ReduceSum", "ReduceSumSquare")


def _shaped(e: Emit, value: ir.Value, index: int = 0) -> ir.Value:
    """A full reduction without keep_dims has rank 1 in QNN, 0 in ONNX."""
    return e.reshape(value, e.out_shape(index))


@raises(*_REDUCTIONS)
def _reduce(e: Emit) -> ir.Value:
    axes, keep = e.ints("axes"), e.flag("keep_dims", False)
    y = e.call(e.op.type, e.real(), np.asarray(axes, np.int64), keepdims=int(keep))
    return _shaped(e, y) if not keep and len(axes) == len(e.shape()) else y


@raises("Argmax", "Argmin")
def _arg(e: Emit) -> ir.Value:
    keep = e.flag("keep_dims", False)
    y = e.call(
        {"Argmax": "ArgMax", "Argmin": "ArgMin"}[e.op.type], e.real(), axis=e.integer("axis"), keepdims=int(keep)
    )
    return _shaped(e, y) if not keep and len(e.shape()) == 1 else y


@raises("CumulativeSum")
def _cumsum(e: Emit) -> ir.Value:
    axis = np.asarray(e.integer("axis"), np.int64)
    return e.call("CumSum", e.real(), axis, exclusive=e.integer("exclusive", 0), reverse=e.integer("reverse", 0))


@raises("Moments")
def _moments(e: Emit) -> list[ir.Value]:
    """Mean and biased variance over `axes`."""
    x, axes = e.real(), np.asarray(e.ints("axes"), np.int64)
    mean = e.call("ReduceMean", x, axes, keepdims=1)
    centred = e.call("Sub", x, mean)
    variance = e.call("ReduceMean", e.call("Mul", centred, centred), axes, keepdims=1)
    return [_shaped(e, mean, 0), _shaped(e, variance, 1)]


@raises("TopK")
def _top_k(e: Emit) -> list[ir.Value]:
    """The k largest (or smallest) of the last axis, sorted; on ties the larger index first (ONNX: the smaller).

    The reversed axis gives ONNX's order of ties the QNN meaning; indices are turned back.
    """
    rank, size = len(e.shape()), e.shape()[-1]
    last = [rank - 1]
    turned = e.call("Slice", e.real(), [-1], [-size - 1], last, [-1])
    values, indices = e.calls(
        "TopK", turned, [e.integer("k")], outputs=2, axis=-1, largest=e.integer("largest", 1), sorted=1
    )
    return [values, e.call("Sub", np.asarray(size - 1, np.int64), indices)]

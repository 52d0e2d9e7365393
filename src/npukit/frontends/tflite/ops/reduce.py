# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""Reductions, positions of extremes, sums along an axis."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from npukit.frontends.tflite.builder import Builder
from npukit.frontends.tflite.registry import Refused, reads

_REDUCTIONS = {
    "MEAN": "ReduceMean", "SUM": "ReduceSum", "REDUCE_MAX": "ReduceMax", "REDUCE_MIN": "ReduceMin",
    "REDUCE_PROD": "ReduceProd", "REDUCE_ANY": "ReduceMax", "REDUCE_ALL": "ReduceMin",
}  # fmt: skip


@reads(*_REDUCTIONS)
def reduction(b: Builder) -> None:
    """Over constant axes; of booleans through int32."""
    rank = b.rank()
    axes = sorted({b.axis(axis) for axis in b.ints(1, "axes")}) if rank else []
    if not axes:
        b.set(b.node("Identity", b.x()))
        return
    x = b.x()
    logic = b.op.code in ("REDUCE_ANY", "REDUCE_ALL")
    if logic:
        x = b.cast(x, ir.DataType.INT32)
    y = b.node(_REDUCTIONS[b.op.code], x, b.vector(axes), keepdims=int(bool(b.op.get("KeepDims", False))))
    b.set(b.cast(y, ir.DataType.BOOL) if logic else y)


@reads("ARG_MAX", "ARG_MIN")
def arg_extreme(b: Builder) -> None:
    """The first position of the extreme along a constant axis."""
    (axis,) = b.ints(1, "axis")
    y = b.node("ArgMax" if b.op.code == "ARG_MAX" else "ArgMin", b.x(), axis=b.axis(axis), keepdims=0)
    dtype = b.result().dtype
    b.set(y if dtype is ir.DataType.INT64 or dtype is None else b.cast(y, dtype))


@reads("TOPK_V2")
def top_k(b: Builder) -> None:
    """Values and positions along the last axis."""
    k = b.ints(1, "k")
    values, positions = b.nodes("TopK", b.x(), b.vector(k), outputs=2, axis=-1)
    b.set(values, 0)
    dtype = b.result(1).dtype
    b.set(positions if dtype is ir.DataType.INT64 or dtype is None else b.cast(positions, dtype), 1)


@reads("CUMSUM")
def cumsum(b: Builder) -> None:
    """Along a constant axis, from either end, with or without the element itself."""
    (axis,) = b.ints(1, "axis")
    flags = {"exclusive": int(b.op.get("Exclusive", False)), "reverse": int(b.op.get("Reverse", False))}
    b.set(b.node("CumSum", b.x(), b.constant(np.int64(b.axis(axis))), **flags))


@reads("ONE_HOT")
def one_hot(b: Builder) -> None:
    """Two constants or computed values at and off the positions."""
    depth = b.ints(1, "depth")
    if b.data(2) is not None and b.data(3) is not None:
        on, off = np.asarray(b.data(2)).reshape(1), np.asarray(b.data(3)).reshape(1)
        values = b.constant(np.concatenate([off, on]))
    else:
        raise Refused("its values are only known when it runs")
    axis = int(b.op.get("Axis", -1))
    b.set(b.node("OneHot", b.x(0), b.constant(np.array(depth, np.int64)), values, axis=axis))

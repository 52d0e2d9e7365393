# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""Dtypes that the chip's ops are documented for, where another op or a cast gives the same result."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir

from npukit.ascend.passes.setting import Rewriter, Setting, beyond
from npukit.ascend.rules import integer_inputs
from npukit.frontends.onnx.ranges import Ranges
from npukit.frontends.onnx.rewrite import Names, attribute, constant, float_dtype, input_at, ints, is_ai_onnx, shape_of

_EXACT = 2048  # integers up to this are exact in float16


def equal_shapes(model: ir.Model, setting: Setting) -> int:
    """Equal gets inputs of one shape."""
    names, count = Names(model.graph), 0
    for node in model.graph:
        if not is_ai_onnx(node, "Equal") or not beyond(model, node, setting, "equal_shapes"):
            continue
        wanted = shape_of(node.outputs[0])
        if wanted is None:
            continue
        builder = Rewriter(model, names, node)
        for i, value in enumerate(tuple(node.inputs)):
            if shape_of(value) == wanted:
                continue
            array = constant(value)
            if array is not None:
                full = np.ascontiguousarray(np.broadcast_to(array, wanted))
                node.replace_input_with(i, builder.const(full, "expanded"))
            else:
                node.replace_input_with(i, builder.op("Expand", value, builder.ints(wanted, "shape")))
        builder.ahead()
        count += 1
    return count


def legalize_dtypes(model: ir.Model, setting: Setting) -> int:
    """Where and Concat of booleans, Gather, Expand and sums of integers, Pow of two dtypes: by what is documented."""
    names, count = Names(model.graph), 0
    ranges = Ranges(integer_inputs(model))
    for node in model.graph:
        rewrite = _REWRITES.get(node.op_type)
        if rewrite is None or not beyond(model, node, setting, "legalize_dtypes"):
            continue
        builder = Rewriter(model, names, node)
        value = rewrite(builder, node, ranges)
        if value is not None:
            builder.put([value])
            count += 1
    return count


def _where(builder: Rewriter, node: ir.Node, ranges: Ranges) -> ir.Value | None:
    """Where(c, a, b) of booleans is (c and a) or (not c and b)."""
    condition, a, b = node.inputs
    if node.outputs[0].dtype != ir.DataType.BOOL:
        return None
    chosen = builder.op("And", condition, a), builder.op("And", builder.op("Not", condition), b)
    value: ir.Value = builder.op("Or", *chosen)
    return value


def _concat(builder: Rewriter, node: ir.Node, ranges: Ranges) -> ir.Value | None:
    """Concat of booleans goes by int8."""
    if node.outputs[0].dtype != ir.DataType.BOOL:
        return None
    parts = [builder.op("Cast", value, to=int(ir.DataType.INT8)) for value in node.inputs]
    joined = builder.op("Concat", *parts, axis=attribute(node, "axis", 0))
    value: ir.Value = builder.op("Cast", joined, to=int(ir.DataType.BOOL))
    return value


def _gather(builder: Rewriter, node: ir.Node, ranges: Ranges) -> ir.Value | None:
    """Gather of booleans and small integers goes by float32, in which, and in float16, they are exact."""
    data, dtype = node.inputs[0], node.outputs[0].dtype
    if data is None or dtype is None or float_dtype(data):
        return None
    low, high = ranges.of(data)
    castable = dtype in (ir.DataType.BOOL, ir.DataType.INT32, ir.DataType.INT8, ir.DataType.INT16)
    if not castable or max(-low, high) > _EXACT:
        return None
    table = builder.op("Cast", data, to=int(ir.DataType.FLOAT))
    found = builder.op("Gather", table, node.inputs[1], axis=attribute(node, "axis", 0))
    value: ir.Value = builder.op("Cast", found, to=int(dtype))
    return value


def _reduce_sum(builder: Rewriter, node: ir.Node, ranges: Ranges) -> ir.Value | None:
    """A sum of integers along an axis is the last element of its running sum, which is documented for them."""
    value, shape, made = node.inputs[0], shape_of(node.inputs[0]), shape_of(node.outputs[0])
    axes = ints(input_at(node, 1))
    if value is None or value.dtype != ir.DataType.INT32 or not shape or made is None or not axes:
        return None
    for axis in {axis % len(shape) for axis in axes}:
        running = builder.op("CumSum", value, builder.const(np.asarray(axis, np.int64), "axis"))
        ends = [builder.ints([number], "bound") for number in (shape[axis] - 1, shape[axis], axis)]
        value = builder.op("Slice", running, *ends)
    if attribute(node, "keepdims", 1):
        return value
    result: ir.Value = builder.op("Reshape", value, builder.ints(made, "shape"))
    return result


def _expand(builder: Rewriter, node: ir.Node, ranges: Ranges) -> ir.Value | None:
    """Expand is Tile, which takes every dtype."""
    shape, made = shape_of(node.inputs[0]), shape_of(node.outputs[0])
    if shape is None or made is None:
        return None
    full = (*[1] * (len(made) - len(shape)), *shape)
    value = node.inputs[0]
    if full != shape:
        value = builder.op("Reshape", value, builder.ints(full, "shape"))
    repeats = [new // old if old else 1 for old, new in zip(full, made, strict=True)]
    tiled: ir.Value = builder.op("Tile", value, builder.ints(repeats, "repeats"))
    return tiled


def _pow(builder: Rewriter, node: ir.Node, ranges: Ranges) -> ir.Value | None:
    """A constant exponent takes the dtype of the base, where that holds it."""
    base, exponent = node.inputs[0], constant(node.inputs[1])
    if base is None or base.dtype is None or exponent is None:
        return None
    held = exponent.astype(base.dtype.numpy())
    if not np.array_equal(held.astype(np.float64), exponent.astype(np.float64)):
        return None
    value: ir.Value = builder.op("Pow", base, builder.const(held, "exponent"))
    return value


_REWRITES: dict[str, Callable[[Rewriter, ir.Node, Ranges], ir.Value | None]] = {
    "Where": _where,
    "Concat": _concat,
    "Gather": _gather,
    "Expand": _expand,
    "Pow": _pow,
    "ReduceSum": _reduce_sum,
}

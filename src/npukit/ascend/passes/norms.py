# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""Normalizations in a form that float16 survives, and reductions whose axes are named."""

from __future__ import annotations

import math

import numpy as np
import onnx_ir as ir

from npukit.ascend.passes.setting import Rewriter, Setting, beyond
from npukit.ascend.rules import FLOAT16_MODES
from npukit.frontends.onnx.recognize_norms import recognize_norms
from npukit.frontends.onnx.rewrite import (
    Names,
    attribute,
    constant,
    input_at,
    ints,
    is_ai_onnx,
    need_shape,
    output_used,
    shape_of,
)

_MOST_SUMMED = 65504  # ones that float16 can add up


def expand_norms(model: ir.Model, setting: Setting) -> int:
    """RMS, layer and group normalization, the first two in whatever spelling, become plain ops.

    A root mean square overflows float16 from |x| = 256 on. With s = max(max |x|, 1) and y = x / s,

        x / sqrt(mean(x^2) + e) = y / sqrt(mean(y^2) + e / s^2),

    where y is at most 1. Where the chip keeps float32 (mode origin), s is left out; the mean is a sum divided by the
    number of elements either way, because the sources have no ReduceMean kernel for the chip.
    """
    _means_of_sums(model)
    recognize_norms(model)
    names, count = Names(model.graph), 0
    for node in model.graph:
        if is_ai_onnx(node, "RMSNormalization", "LayerNormalization", "GroupNormalization"):
            builder = Rewriter(model, names, node)
            value = _expanded(builder, node, setting)
            if value is not None:
                builder.put([value])
                count += 1
    return count


def _means_of_sums(model: ir.Model) -> None:
    """ReduceSum / number of elements is ReduceMean, which the search for norms knows."""
    names = Names(model.graph)
    for node in model.graph:
        total = node.inputs[0].producer() if is_ai_onnx(node, "Div") and node.inputs[0] is not None else None
        divisor = constant(input_at(node, 1))
        if total is None or not is_ai_onnx(total, "ReduceSum") or divisor is None or divisor.size != 1:
            continue
        shape, reduced = shape_of(total.inputs[0]), shape_of(total.outputs[0])
        if shape is None or reduced is None or not math.prod(reduced) or len(total.outputs[0].uses()) != 1:
            continue
        adds = [user for user, _ in node.outputs[0].uses() if is_ai_onnx(user, "Add")]
        if not any(constant(value) is not None for user in adds for value in user.inputs):
            continue  # no epsilon: not the mean of a norm
        if input_at(total, 1) is not None and float(divisor.reshape(())) == math.prod(shape) // math.prod(reduced):
            builder = Rewriter(model, names, node)
            keep = attribute(total, "keepdims", 1)
            builder.put([builder.op("ReduceMean", total.inputs[0], total.inputs[1], keepdims=keep)])
            builder.graph.remove(total, safe=True)  # else the squares have two readers


def _expanded(builder: Rewriter, node: ir.Node, setting: Setting) -> ir.Value | None:
    source, scale, bias = node.inputs[0], node.inputs[1], input_at(node, 2)
    shape = shape_of(source)
    if source is None or shape is None or output_used(node, 1) or output_used(node, 2):
        return None
    epsilon = attribute(node, "epsilon", 1e-5)
    # the op computes in float32 unless it is told otherwise
    wide = source.dtype == ir.DataType.FLOAT16 and attribute(node, "stash_type", 1) == 1
    x = builder.op("Cast", source, to=int(ir.DataType.FLOAT)) if wide else source
    held = ir.DataType.FLOAT if wide else source.dtype or ir.DataType.FLOAT
    scaled = held == ir.DataType.FLOAT16 or setting.precision in FLOAT16_MODES
    if node.op_type == "GroupNormalization":
        groups = [shape[0], attribute(node, "num_groups"), -1]
        x = builder.op("Reshape", x, builder.ints(groups, "groups"))
        number = math.prod(shape[1:]) // groups[1]
        x = builder.op("Reshape", _normalized(builder, x, [2], number, epsilon, held, True, scaled),
                       builder.ints(shape, "shape"))  # fmt: skip
        wanted = builder.ints([-1, *[1] * (len(shape) - 2)], "channels")
        scale, bias = (v and builder.op("Reshape", v, wanted) for v in (scale, bias))
    else:
        axis = attribute(node, "axis", -1) % len(shape)
        axes, number = list(range(axis, len(shape))), math.prod(shape[axis:])
        centred = node.op_type == "LayerNormalization"
        x = _normalized(builder, x, axes, number, epsilon, held, centred, scaled)
    if wide:
        x = builder.op("Cast", x, to=int(ir.DataType.FLOAT16))
    if scale is not None and not _all(scale, 1):
        x = builder.op("Mul", x, scale)
    if bias is not None and not _all(bias, 0):
        x = builder.op("Add", x, bias)
    return x


def _normalized(
    builder: Rewriter,
    x: ir.Value,
    axes: list[int],
    number: int,
    epsilon: float,
    held: ir.DataType,
    centred: bool,
    scaled: bool,
) -> ir.Value:
    """X over its root mean square along `axes`, which have `number` elements; `centred`: x less its mean."""
    along = builder.ints(axes, "axes")

    def constant_of(value: float, hint: str) -> ir.Value:
        return builder.const(np.asarray(value).astype(held.numpy()), hint)

    if centred:
        x = builder.op("Sub", x, builder.op("ReduceMean", x, along))
    small = constant_of(epsilon, "epsilon")
    if scaled:
        largest = builder.op("ReduceMax", builder.op("Abs", x), along)
        divisor = builder.op("Max", largest, constant_of(1.0, "one"))
        x = builder.op("Div", x, divisor)
        small = builder.op("Div", builder.op("Div", small, divisor), divisor)
    square = builder.op("Mul", x, x)
    if number <= _MOST_SUMMED:
        mean = builder.op("Div", builder.op("ReduceSum", square, along), constant_of(number, "number"))
    else:
        mean = builder.op("ReduceMean", square, along)
    value: ir.Value = builder.op("Div", x, builder.op("Sqrt", builder.op("Add", mean, small)))
    return value


def _all(value: ir.Value, number: float) -> bool:
    array = constant(value)
    return array is not None and bool(np.all(array == number))


def name_axes(model: ir.Model, setting: Setting) -> int:
    """A reduction without axes names all of them: left out, the chip's reduces nothing."""
    names, count = Names(model.graph), 0
    for node in model.graph:
        if not beyond(model, node, setting, "name_axes"):
            continue
        builder = Rewriter(model, names, node)
        axes = builder.ints(range(len(need_shape(node.inputs[0]))), "axes")
        if axes.shape == ir.Shape([0]) or ints(axes) == []:
            continue  # of a scalar there is nothing to name
        builder.put([builder.op(node.op_type, node.inputs[0], axes, keepdims=attribute(node, "keepdims", 1))])
        count += 1
    return count

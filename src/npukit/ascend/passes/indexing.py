# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""Triangles, indices and slices in the forms that the chip takes; each moves the same elements."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from npukit.ascend.passes.setting import Rewriter, Setting, beyond
from npukit.ascend.rules import integer_inputs
from npukit.frontends.onnx.fold_constants import slice_spec
from npukit.frontends.onnx.ranges import Ranges
from npukit.frontends.onnx.rewrite import Names, attribute, constant, input_at, ints, is_ai_onnx, shape_of


def mask_triangles(model: ir.Model, setting: Setting) -> int:
    """Trilu off the main diagonal, or of a dtype it is not documented for, selects with a constant mask."""
    names, count = Names(model.graph), 0
    for node in model.graph:
        if not is_ai_onnx(node, "Trilu") or not beyond(model, node, setting, "mask_triangles"):
            continue
        source, shape = node.inputs[0], shape_of(node.inputs[0])
        diagonal = ints(input_at(node, 1)) if input_at(node, 1) is not None else [0]
        if source is None or shape is None or diagonal is None:
            continue
        triangle = np.triu if attribute(node, "upper", 1) else np.tril
        builder = Rewriter(model, names, node)
        mask = builder.const(triangle(np.ones(shape[-2:], np.bool_), diagonal[0]), "triangle")
        if source.dtype == ir.DataType.BOOL:
            builder.put([builder.op("And", source, mask)])
        else:
            builder.put([builder.op("Where", mask, source, builder.scalar(0, source, "zero"))])
        count += 1
    return count


def count_indices_from_front(model: ir.Model, setting: Setting) -> int:
    """Negative indices of Gather and ScatterND get the dimension added."""
    names, count = Names(model.graph), 0
    ranges = Ranges(integer_inputs(model))
    for node in model.graph:
        if not beyond(model, node, setting, "count_indices_from_front", ranges):
            continue
        shape, indices = shape_of(node.inputs[0]), node.inputs[1]
        if shape is None or indices is None or indices.dtype is None:
            continue
        if node.op_type == "Gather":
            dims = np.asarray(shape[attribute(node, "axis", 0)])
        else:
            dims = np.asarray(shape[: (shape_of(indices) or (0,))[-1]])
        dims = dims.astype(indices.dtype.numpy())
        builder = Rewriter(model, names, node)
        array = constant(indices)
        if array is not None:
            node.replace_input_with(1, builder.const(np.where(array < 0, array + dims, array), "indices"))
        else:
            negative = builder.op("Less", indices, builder.scalar(0, indices, "zero"))
            shifted = builder.op("Add", indices, builder.const(dims, "dims"))
            value = builder.op("Where", negative, shifted, indices)
            builder.ahead()
            node.replace_input_with(1, value)
        count += 1
    return count


def slice_columns(model: ir.Model, setting: Setting) -> int:
    """A Slice of one dimension, or with steps along the last, slices a tensor with one more axis of size 1."""
    names, count = Names(model.graph), 0
    for node in model.graph:
        if not is_ai_onnx(node, "Slice") or not beyond(model, node, setting, "slice_columns"):
            continue
        shape, made = shape_of(node.inputs[0]), shape_of(node.outputs[0])
        starts, ends, axes, steps = (ints(input_at(node, i)) for i in range(1, 5))
        if shape is None or made is None or starts is None or ends is None:
            continue
        axes = [axis % len(shape) for axis in (axes or range(len(starts)))]
        spec = slice_spec(shape, starts, ends, axes, steps)
        parts = [(spec[axis], shape[axis]) for axis in axes]
        builder = Rewriter(model, names, node)
        column = builder.op("Reshape", node.inputs[0], builder.ints([*shape, 1], "column"))
        sliced = builder.op(
            "Slice",
            column,
            builder.ints([part.start for part, _ in parts], "starts"),
            # where a negative step ends at the first element there is no end to name
            builder.ints([-size - 1 if part.stop is None else part.stop for part, size in parts], "ends"),
            builder.ints(axes, "axes"),
            builder.ints([part.step for part, _ in parts], "steps"),
        )
        builder.put([builder.op("Reshape", sliced, builder.ints(made, "shape"))])
        count += 1
    return count


def split_by_slices(model: ir.Model, setting: Setting) -> int:
    """A Split into pieces of one element becomes Slices."""
    names, count = Names(model.graph), 0
    for node in model.graph:
        if not is_ai_onnx(node, "Split") or not beyond(model, node, setting, "split_by_slices"):
            continue
        shapes, axis = [shape_of(value) for value in node.outputs], attribute(node, "axis", 0)
        if any(shape is None for shape in shapes):
            continue
        builder, start, values = Rewriter(model, names, node), 0, []
        for shape in shapes:
            end = start + (shape or ())[axis]
            bounds = [builder.ints([number], "bound") for number in (start, end, axis)]
            values.append(builder.op("Slice", node.inputs[0], *bounds))
            start = end
        builder.put(values)
        count += 1
    return count

# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""Removes nodes that do nothing: Identity, inference Dropout, casts, reshapes, transposes and slices without effect."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir

from npukit.frontends.onnx.fold_constants import slice_spec
from npukit.frontends.onnx.rewrite import (
    Builder,
    Names,
    attribute,
    constant,
    input_at,
    inputs_of,
    ints,
    output_used,
    replace_node,
    shape_of,
)

Simplify = Callable[[ir.Node], bool]


def _same_shape(node: ir.Node) -> bool:
    return shape_of(node.inputs[0]) is not None and shape_of(node.inputs[0]) == shape_of(node.outputs[0])


def _no_cast(node: ir.Node) -> bool:
    return node.inputs[0] is not None and node.inputs[0].dtype == node.outputs[0].dtype


def _no_transpose(node: ir.Node) -> bool:
    shape, perm = shape_of(node.inputs[0]), attribute(node, "perm")
    if shape is None:
        return False
    perm = list(range(len(shape)))[::-1] if perm is None else perm
    moved = [p for p in perm if shape[p] != 1]
    return _same_shape(node) and moved == sorted(moved)


def _no_pad(node: ir.Node) -> bool:
    pads = ints(input_at(node, 1))
    return pads is not None and not any(pads)


def _no_slice(node: ir.Node) -> bool:
    shape, spec = shape_of(node.inputs[0]), [ints(input_at(node, i)) for i in range(1, 5)]
    if shape is None or any(s is None for s, v in zip(spec, node.inputs[1:], strict=False) if v is not None):
        return False
    slices = slice_spec(shape, *spec)
    return all(s.indices(d) == (0, d, 1) for s, d in zip(slices, shape, strict=True))


def _no_tile(node: ir.Node) -> bool:
    repeats = ints(input_at(node, 1))
    return repeats is not None and all(r == 1 for r in repeats)


def _one_input(node: ir.Node) -> bool:
    return len(inputs_of(node)) == 1


def _no_reduction(node: ir.Node) -> bool:
    axes = input_at(node, 1)
    empty = axes is None or ints(axes) == []
    return bool(attribute(node, "noop_with_empty_axes", 0)) and empty and _same_shape(node)


def _no_resize(node: ir.Node) -> bool:
    if not _same_shape(node) or attribute(node, "coordinate_transformation_mode") == "tf_crop_and_resize":
        return False
    scales = constant(input_at(node, 2))
    return scales is None or scales.size == 0 or bool(np.all(scales == 1))


_NOTHING: dict[str, Simplify] = {
    "Identity": lambda node: True,
    "Cast": _no_cast,
    "CastLike": _no_cast,
    "Reshape": _same_shape,
    "Flatten": _same_shape,
    "Squeeze": _same_shape,
    "Unsqueeze": _same_shape,
    "Transpose": _no_transpose,
    "Expand": _same_shape,
    "Pad": _no_pad,
    "Slice": _no_slice,
    "Tile": _no_tile,
    "Concat": _one_input,
    "Sum": _one_input,
    "Mean": _one_input,
    "Max": _one_input,
    "Min": _one_input,
    "Split": lambda node: len(node.outputs) == 1,
    "ReduceSum": _no_reduction,
    "ReduceMean": _no_reduction,
    "ReduceMax": _no_reduction,
    "ReduceMin": _no_reduction,
    "ReduceProd": _no_reduction,
    "Resize": _no_resize,
}


def simplify_ops(model: ir.Model) -> int:
    """Remove every node without effect; returns how many. Graph outputs keep their names (an Identity may stay)."""
    graph = model.graph
    names = Names(graph)
    removed = 0
    for node in graph:
        if node.domain:
            continue
        if node.op_type == "Dropout":
            removed += _dropout(graph, names, node)
            continue
        if node.op_type == "Concat":
            _drop_empty(node)
        check = _NOTHING.get(node.op_type)
        if check is None or node.inputs[0] is None or not check(node):
            continue
        source, output = node.inputs[0], node.outputs[0]
        if output.is_graph_output():
            if node.op_type == "Identity" and not _can_take_name(source):
                continue
            if _can_take_name(source):
                name, output.name = output.name, f"{output.name}__replaced"
                for user, index in tuple(output.uses()):
                    user.replace_input_with(index, source)
                for i, value in enumerate(graph.outputs):
                    if value is output:
                        graph.outputs[i] = source
                source.name = name
                graph.remove(node, safe=True)
                removed += 1
                continue
        replace_node(graph, node, [], [source])
        removed += 1
    return removed


def _can_take_name(value: ir.Value) -> bool:
    return value.producer() is not None and not value.is_graph_output()


def _drop_empty(node: ir.Node) -> None:
    """Take out the inputs of a Concat without elements: loops that were unrolled begin and end with such."""
    full = [value for value in node.inputs if 0 not in (shape_of(value) or ())]
    if 0 < len(full) < len(node.inputs):
        for i, value in enumerate(full):
            node.replace_input_with(i, value)
        node.resize_inputs(len(full))


def _dropout(graph: ir.Graph, names: Names, node: ir.Node) -> int:
    """Inference Dropout is its input; a mask that somebody reads is all True."""
    training = constant(input_at(node, 2))
    if input_at(node, 2) is not None and (training is None or bool(training.reshape(-1)[0])):
        return 0
    builder = Builder(graph, names, node)
    mask = None
    if output_used(node, 1):
        shape, dtype = shape_of(node.outputs[1]), node.outputs[1].dtype or ir.DataType.BOOL
        if shape is None:
            return 0
        mask = builder.const(np.broadcast_to(np.ones((), dtype.numpy()), shape), "mask")
    replace_node(graph, node, [], [node.inputs[0], mask])
    return 1

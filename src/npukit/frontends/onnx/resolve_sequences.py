# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""Sequences and optionals of known length are resolved: what is left are the tensors that they held.

The normal form of a sequence is one internal node whose inputs are its elements; every sequence op reads its
operand's elements from that node. When all readers are resolved, the node is dead.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from npukit.frontends.onnx.resolve_control_flow import INTERNAL
from npukit.frontends.onnx.rewrite import (
    attribute,
    constant,
    input_at,
    ints,
    replace_node,
    shape_of,
)

if TYPE_CHECKING:
    from npukit.frontends.onnx.specialize import Walk


def _elements(value: ir.Value | None) -> list[ir.Value] | None:
    producer = None if value is None else value.producer()
    if producer is None or producer.domain != INTERNAL or producer.op_type != "Sequence":
        return None
    return [v for v in producer.inputs if v is not None]


def _replace(walk: Walk, node: ir.Node, elements: list[ir.Value]) -> bool:
    builder = walk.builder(node)
    value = builder.op("Sequence", *elements, domain=INTERNAL)
    replace_node(walk.graph, node, builder.nodes, [value])
    return True


def _construct(walk: Walk, node: ir.Node) -> bool:
    return _replace(walk, node, [v for v in node.inputs if v is not None])


def _split(walk: Walk, node: ir.Node) -> bool:
    source, sizes = node.inputs[0], input_at(node, 1)
    shape = shape_of(source)
    if shape is None or (sizes is not None and constant(sizes) is None):
        return False
    axis = attribute(node, "axis", 0)
    dim = shape[axis]
    keep = True
    if sizes is None:
        parts = [1] * dim
        keep = bool(attribute(node, "keepdims", 1))
    elif shape_of(sizes) == ():
        size = (ints(sizes) or [dim])[0]
        if size < 1:
            return False
        parts = [min(size, dim - at) for at in range(0, dim, size)]
    else:
        parts = ints(sizes) or []
    builder = walk.builder(node)
    outputs = builder.op("Split", source, builder.ints(parts, "split"), axis=axis, outputs=len(parts))
    values = [outputs] if len(parts) == 1 else list(outputs)
    if not keep:
        values = [builder.op("Squeeze", v, builder.ints([axis], "axes")) for v in values]
    sequence = builder.op("Sequence", *values, domain=INTERNAL)
    replace_node(walk.graph, node, builder.nodes, [sequence])
    return True


def _at(walk: Walk, node: ir.Node) -> bool:
    elements, index = _elements(node.inputs[0]), ints(node.inputs[1])
    if elements is None or index is None or not -len(elements) <= index[0] < len(elements):
        return False
    replace_node(walk.graph, node, [], [elements[index[0]]])
    return True


def _insert(walk: Walk, node: ir.Node) -> bool:
    elements, at = _elements(node.inputs[0]), input_at(node, 2)
    position = ints(at)
    if elements is None or node.inputs[1] is None or (at is not None and position is None):
        return False
    index = len(elements) if position is None else position[0]
    index += len(elements) if index < 0 else 0
    return _replace(walk, node, [*elements[:index], node.inputs[1], *elements[index:]])


def _erase(walk: Walk, node: ir.Node) -> bool:
    elements, at = _elements(node.inputs[0]), input_at(node, 1)
    position = ints(at)
    if elements is None or (at is not None and position is None):
        return False
    index = -1 if position is None else position[0]
    if not -len(elements) <= index < len(elements):
        return False
    del elements[index]
    return _replace(walk, node, elements)


def _length(walk: Walk, node: ir.Node) -> bool:
    elements = _elements(node.inputs[0])
    if elements is None:
        return False
    walk.replace_by_constants(node, [np.asarray(len(elements), np.int64)])
    return True


def _concat(walk: Walk, node: ir.Node) -> bool:
    elements = _elements(node.inputs[0])
    if not elements:
        return False
    axis = attribute(node, "axis")
    builder = walk.builder(node)
    values: list[ir.Value] = elements
    if attribute(node, "new_axis", 0):
        values = [builder.op("Unsqueeze", v, builder.ints([axis], "axes")) for v in elements]
    replace_node(walk.graph, node, builder.nodes, [builder.op("Concat", *values, axis=axis)])
    return True


def _optional(walk: Walk, node: ir.Node) -> bool:
    value = input_at(node, 0)
    if value is None:
        return _replace(walk, node, [])
    replace_node(walk.graph, node, [], [value])
    return True


def _get(walk: Walk, node: ir.Node) -> bool:
    value = input_at(node, 0)
    if value is None or (value.producer() is None and isinstance(value.type, ir.OptionalType)):
        return False
    replace_node(walk.graph, node, [], [value])
    return True


def _has(walk: Walk, node: ir.Node) -> bool:
    value = input_at(node, 0)
    if value is not None and value.producer() is None and isinstance(value.type, ir.OptionalType):
        return False
    empty = value is None or (_elements(value) == [] and isinstance(value.type, ir.OptionalType))
    walk.replace_by_constants(node, [np.asarray(not empty)])
    return True


def _identity(walk: Walk, node: ir.Node) -> bool:
    if _elements(node.inputs[0]) is None:
        return False
    replace_node(walk.graph, node, [], [node.inputs[0]])
    return True


_RULES: dict[str, Callable[[Walk, ir.Node], bool]] = {
    "SequenceConstruct": _construct,
    "SequenceEmpty": _construct,
    "SplitToSequence": _split,
    "SequenceAt": _at,
    "SequenceInsert": _insert,
    "SequenceErase": _erase,
    "SequenceLength": _length,
    "ConcatFromSequence": _concat,
    "Optional": _optional,
    "OptionalGetElement": _get,
    "OptionalHasElement": _has,
    "Identity": _identity,
}


def resolve_sequences(walk: Walk, node: ir.Node) -> bool:
    """Resolve one sequence or optional op; SequenceMap is expanded by its definition first."""
    if node.domain:
        return False
    if node.op_type == "SequenceMap":
        from npukit.frontends.onnx.expand_functions import expand_function

        return expand_function(walk, node)
    rule = _RULES.get(node.op_type)
    return rule is not None and rule(walk, node)

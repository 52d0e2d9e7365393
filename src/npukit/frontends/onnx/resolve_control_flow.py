# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""Control flow whose path is known before the run: If with a constant condition is replaced by its branch."""

from __future__ import annotations

from typing import TYPE_CHECKING

import onnx_ir as ir

from npukit.frontends.onnx.rewrite import (
    ORIGIN,
    add_constant,
    constant,
    is_ai_onnx,
    origin_of,
    replace_node,
    version_of,
)

if TYPE_CHECKING:
    from npukit.frontends.onnx.specialize import Walk


def resolve_control_flow(walk: Walk, node: ir.Node) -> bool:
    """Inline the branch of an If whose condition is constant."""
    if not is_ai_onnx(node, "If"):
        return False
    condition = constant(node.inputs[0])
    if condition is None:
        return False
    branch = "then_branch" if bool(condition.reshape(-1)[0]) else "else_branch"
    body: ir.Graph = node.attributes[branch].value
    new_nodes, outputs = inline_graph(walk, node, body, [], prefix=node.name or "If")
    replace_node(walk.graph, node, new_nodes, outputs)
    return True


def inline_graph(
    walk: Walk, node: ir.Node, body: ir.Graph, inputs: list[ir.Value | None], prefix: str
) -> tuple[list[ir.Node], list[ir.Value]]:
    """Copies of a subgraph's nodes with `inputs` bound, and the values of its outputs.

    Values of outer graphs that the body reads stay as they are; the copies carry the names of their sources.
    """
    version = version_of(node)
    values: dict[ir.Value, ir.Value | None] = dict(zip(body.inputs, inputs, strict=True))
    for name, value in body.initializers.items():
        if value not in values and value.const_value is not None:
            values[value] = add_constant(walk.graph, walk.names, value.const_value, f"{prefix}/{name}")
    copies: list[ir.Node] = []
    for inner in body:
        copies.append(clone_node(walk, inner, values, prefix, version, origin_of(node)))
    return copies, [_mapped(v, values) for v in body.outputs]


def _mapped(value: ir.Value, values: dict[ir.Value, ir.Value | None]) -> ir.Value:
    found = values.get(value, value)
    return found if found is not None else value


def clone_node(
    walk: Walk,
    inner: ir.Node,
    values: dict[ir.Value, ir.Value | None],
    prefix: str,
    version: int,
    origin: tuple[str, ...],
) -> ir.Node:
    """A copy of one node with its inputs mapped; `values` learns its outputs. Subgraphs are copied with their maps."""
    attributes = []
    for attr in inner.attributes.values():
        if attr.type == ir.AttributeType.GRAPH:
            attributes.append(ir.AttrGraph(attr.name, _clone_graph(attr.value, values)))
        elif attr.type == ir.AttributeType.GRAPHS:
            attributes.append(ir.AttrGraphs(attr.name, [_clone_graph(g, values) for g in attr.value]))
        else:
            attributes.append(attr)
    copy = ir.Node(
        inner.domain,
        inner.op_type,
        [None if v is None else values.get(v, v) for v in inner.inputs],
        attributes,
        overload=inner.overload,
        num_outputs=len(inner.outputs),
        version=inner.version if inner.version is not None else version,
        name=walk.names.node(f"{prefix}/{inner.name or inner.op_type}"),
    )
    copy.meta[ORIGIN] = tuple(dict.fromkeys((*origin, *origin_of(inner))))
    for old, new in zip(inner.outputs, copy.outputs, strict=True):
        new.name = walk.names.value(f"{prefix}/{old.name}") if old.name else ""
        new.type = old.type
        values[old] = new
    return copy


def _clone_graph(graph: ir.Graph, values: dict[ir.Value, ir.Value | None]) -> ir.Graph:
    cloned = graph.clone(allow_outer_scope_values=True)
    for node in cloned.all_nodes():
        for i, value in enumerate(node.inputs):
            if value is not None and value in values:
                node.replace_input_with(i, values[value])
    for i, value in enumerate(cloned.outputs):
        replacement = values.get(value)
        if replacement is not None:
            cloned.outputs[i] = replacement
    return cloned

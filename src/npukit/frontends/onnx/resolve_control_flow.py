# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""Control flow becomes straight lines: If takes its branch (or both and a Where), Loop and Scan are unrolled.

A Loop is peeled one iteration a visit, so that its condition may be something that folding finds only on the way:
what is left is an internal node whose inputs are the remaining trip count, the condition, the carried values and
the slices collected so far. None of the internal ops survives the walk.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from npukit.frontends.onnx.rewrite import (
    ORIGIN,
    add_constant,
    attribute,
    constant,
    input_at,
    is_ai_onnx,
    origin_of,
    output_used,
    replace_node,
    shape_of,
    version_of,
)

if TYPE_CHECKING:
    from npukit.frontends.onnx.specialize import Walk

INTERNAL = "npukit.internal"
# Unrolled trips of one loop, and nodes that all unrolling together may make.
MAX_TRIPS = 4096
MAX_NODES = 500_000


def resolve_control_flow(walk: Walk, node: ir.Node) -> bool:
    """Replace an If, Loop or Scan whose course is known; False when it is none of them or not known yet."""
    if node.domain == INTERNAL:
        return {"Loop": _peel, "If": _select}.get(node.op_type, _leave)(walk, node)
    if is_ai_onnx(node, "If"):
        return _resolve_if(walk, node)
    if is_ai_onnx(node, "Loop"):
        return _begin_loop(walk, node)
    if is_ai_onnx(node, "Scan"):
        return _unroll_scan(walk, node)
    return False


def _leave(walk: Walk, node: ir.Node) -> bool:
    return False


def _resolve_if(walk: Walk, node: ir.Node) -> bool:
    condition = constant(node.inputs[0])
    then, other = node.attributes["then_branch"].value, node.attributes["else_branch"].value
    prefix = node.name or "If"
    if condition is not None:
        chosen = then if bool(condition.reshape(-1)[0]) else other
        new_nodes, outputs = inline_graph(walk, node, chosen, [], prefix)
        replace_node(walk.graph, node, new_nodes, outputs)
        return True
    walk.notes.append(f"If {prefix!r}: the condition is only known when it runs; both branches run, then a Where picks")
    nodes_a, values_a = inline_graph(walk, node, then, [], f"{prefix}/then")
    nodes_b, values_b = inline_graph(walk, node, other, [], f"{prefix}/else")
    builder = walk.builder(node)
    builder.nodes = [*nodes_a, *nodes_b]
    picked = [builder.op("If", node.inputs[0], a, b, domain=INTERNAL) for a, b in zip(values_a, values_b, strict=True)]
    replace_node(walk.graph, node, builder.nodes, picked)
    return True


def _select(walk: Walk, node: ir.Node) -> bool:
    """Both branches have run: their results must be alike for a Where."""
    condition, a, b = node.inputs
    if condition is None or a is None or b is None:
        return False
    if shape_of(a) is None or shape_of(a) != shape_of(b) or a.dtype != b.dtype:
        walk.fault(
            node,
            f"the branches give {a.dtype} {a.shape} and {b.dtype} {b.shape}; the condition is only known at run time",
            "make the condition constant, or cut the graph before it (--output)",
        )
        return False
    builder = walk.builder(node)
    if shape_of(condition) != ():
        condition = builder.op("Reshape", condition, builder.ints([], "scalar"))
    replace_node(walk.graph, node, builder.nodes, [builder.op("Where", condition, a, b)])
    return True


def _begin_loop(walk: Walk, node: ir.Node) -> bool:
    trips, condition = constant(input_at(node, 0)), constant(input_at(node, 1))
    if (input_at(node, 0) is not None and trips is None) or (input_at(node, 1) is not None and condition is None):
        what = "trip count" if input_at(node, 0) is not None and trips is None else "condition"
        walk.fault(node, f"its {what} is only known when it runs", "cut the graph before it (--output)")
        return False
    builder = walk.builder(node)
    body: ir.Graph = node.attributes["body"].value
    carried = list(node.inputs[2:])
    total = MAX_TRIPS + 1 if trips is None else max(int(trips.reshape(-1)[0]), 0)
    state = builder.op(
        "Loop",
        builder.const(np.asarray(min(total, MAX_TRIPS + 1), np.int64), "trips"),
        builder.const(np.asarray(condition is None or bool(condition.reshape(-1)[0])), "condition"),
        *carried,
        outputs=len(node.outputs),
        domain=INTERNAL,
        carried=len(carried),
        done=0,
    )
    state = state if isinstance(state, tuple) else (state,)
    state[0].producer().meta["body"] = (body, version_of(node))
    for new, old in zip(state, node.outputs, strict=True):
        if not old.name:
            new.name = ""
    replace_node(walk.graph, node, builder.nodes, state)
    return True


def _peel(walk: Walk, node: ir.Node) -> bool:
    """One more iteration in front of what is left of a Loop, or its end."""
    body, version = node.meta["body"]
    left, condition = constant(node.inputs[0]), constant(node.inputs[1])
    carried, done = attribute(node, "carried"), attribute(node, "done")
    values = list(node.inputs[2 : 2 + carried])
    slices = list(node.inputs[2 + carried :])
    count = len(node.outputs) - carried
    if condition is None or left is None:
        walk.fault(node, f"its condition after {done} iterations is only known when it runs", "cut the graph before it")
        return False
    builder = walk.builder(node)
    if not bool(condition.reshape(-1)[0]) or int(left) == 0:
        stacked: list[ir.Value | None] = []
        for i in range(count):
            if not output_used(node, carried + i):
                stacked.append(None)
            elif not done:
                walk.fault(node, "runs zero times, so its scan output is empty")
                return False
            else:
                stacked.append(builder.op("Concat", *slices[i::count], axis=0))
        replace_node(walk.graph, node, builder.nodes, [*values, *stacked])
        return True
    if done >= MAX_TRIPS or not _within_budget(walk, node, len(body)):
        walk.fault(node, f"runs more than {done} times, too often to unroll", "cut the graph before it (--output)")
        return False
    trip = builder.const(np.asarray(done, np.int64), "trip")
    keep = builder.op("Identity", node.inputs[1])
    nodes, results = inline_graph(walk, node, body, [trip, keep, *values], f"{node.name}/{done}", version)
    builder.nodes += nodes
    for result in results[1 + carried :]:
        slices.append(builder.op("Unsqueeze", result, builder.ints([0], "axes")))
    rest = builder.op(
        "Loop",
        builder.const(np.asarray(int(left) - 1, np.int64), "trips"),
        results[0],
        *results[1 : 1 + carried],
        *slices,
        outputs=len(node.outputs),
        domain=INTERNAL,
        carried=carried,
        done=done + 1,
    )
    rest = rest if isinstance(rest, tuple) else (rest,)
    producer = rest[0].producer()
    producer.meta["body"] = (body, version)
    for new, old in zip(rest, node.outputs, strict=True):
        if not old.name:
            new.name = ""
    replace_node(walk.graph, node, builder.nodes, rest)
    return True


def _within_budget(walk: Walk, node: ir.Node, cost: int) -> bool:
    walk.unrolled += cost + 1
    return walk.unrolled <= MAX_NODES


def _unroll_scan(walk: Walk, node: ir.Node) -> bool:
    """Scan: the trip count is a dimension, so all iterations are laid out at once."""
    body: ir.Graph = node.attributes["body"].value
    scanned = attribute(node, "num_scan_inputs")
    states = len(node.inputs) - scanned
    outputs = len(node.outputs) - states
    sources = node.inputs[states:]
    if any(shape_of(v) is None for v in sources):
        return False
    builder = walk.builder(node)
    axes = _axes(node, "scan_input_axes", [len(shape_of(v) or ()) for v in sources])
    backwards = attribute(node, "scan_input_directions", [0] * scanned)
    lengths = {(shape_of(v) or ())[a] for v, a in zip(sources, axes, strict=True)}
    if len(lengths) != 1 or not 0 < max(lengths) <= MAX_TRIPS:
        walk.fault(node, f"cannot be unrolled over {sorted(lengths)} steps")
        return True
    trips = lengths.pop()
    if not _within_budget(walk, node, trips * len(body)):
        walk.fault(node, f"runs {trips} times, too often to unroll")
        return False
    pieces = []
    for value, axis, reverse in zip(sources, axes, backwards, strict=True):
        parts = builder.op("Split", value, axis=axis, num_outputs=trips, outputs=trips)
        parts = [parts] if trips == 1 else list(parts)
        pieces.append([builder.op("Squeeze", p, builder.ints([axis], "axes")) for p in parts][:: -1 if reverse else 1])
    state: list[ir.Value | None] = list(node.inputs[:states])
    collected: list[list[ir.Value]] = [[] for _ in range(outputs)]
    for trip in range(trips):
        inputs = [*state, *(p[trip] for p in pieces)]
        nodes, results = inline_graph(walk, node, body, inputs, f"{node.name}/{trip}")
        builder.nodes += nodes
        state = list(results[:states])
        for i, result in enumerate(results[states:]):
            collected[i].append(result)
    finals: list[ir.Value | None] = list(state)
    directions = attribute(node, "scan_output_directions", [0] * outputs)
    out_axes = attribute(node, "scan_output_axes", [0] * outputs)
    for i, results in enumerate(collected):
        if not output_used(node, states + i):
            finals.append(None)
            continue
        unsqueezed = [builder.op("Unsqueeze", r, builder.ints([out_axes[i]], "axes")) for r in results]
        finals.append(builder.op("Concat", *unsqueezed[:: -1 if directions[i] else 1], axis=out_axes[i]))
    replace_node(walk.graph, node, builder.nodes, finals)
    return True


def _axes(node: ir.Node, name: str, ranks: list[int]) -> list[int]:
    axes = attribute(node, name, [0] * len(ranks))
    return [a + r if a < 0 else a for a, r in zip(axes, ranks, strict=True)]


def inline_graph(
    walk: Walk,
    node: ir.Node,
    body: ir.Graph,
    inputs: list[ir.Value | None],
    prefix: str,
    version: int | None = None,
) -> tuple[list[ir.Node], list[ir.Value]]:
    """Copies of a subgraph's nodes with `inputs` bound, and the values of its outputs.

    Values of outer graphs that the body reads stay as they are; the copies carry the names of their sources.
    """
    version = version_of(node) if version is None else version
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

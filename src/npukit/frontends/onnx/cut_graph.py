# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""Cuts the graph at any tensor: --input NAME makes a tensor an input, --output NAME ends the graph there."""

from __future__ import annotations

import logging

import onnx_ir as ir

from npukit.errors import Fault, ModelError, nearest
from npukit.frontends.onnx.infer_shapes import InferenceFailed, infer_node
from npukit.frontends.onnx.options import LoadOptions
from npukit.frontends.onnx.rewrite import drop_dead, schema_of, version_of
from npukit.qnn.names import source_name

log = logging.getLogger(__name__)


def cut_graph(model: ir.Model, options: LoadOptions) -> list[str]:
    """Cut, and remove what no output needs. Tensors may be called by their source or artifact names.

    Returns:
        names of the inputs and nodes that the cut left out (dead nodes of an uncut graph are not listed).

    Raises:
        ModelError: a name that no tensor has, or an output that still depends on an input that was cut off.
    """
    graph = model.graph
    if not options.inputs and not options.outputs:
        drop_dead(graph)
        return []
    drop_dead(graph)
    values = {v.name: v for v in graph.inputs if v.name}
    for node in graph:
        values.update({v.name: v for v in node.outputs if v.name})
    wanted_inputs = list(dict.fromkeys(source_name(name, values) for name in options.inputs))
    wanted_outputs = list(dict.fromkeys(source_name(name, values) for name in options.outputs))
    faults = [
        Fault("there is no such tensor", f"{option} {name}", nearest(name, values))
        for option, names in (("--input", wanted_inputs), ("--output", wanted_outputs))
        for name in names
        if name not in values
    ]
    begin = {v.name for v in graph.inputs} | set(wanted_inputs)
    faults += [
        Fault("is an input: nothing is computed there", f"--output {name}") for name in wanted_outputs if name in begin
    ]
    if faults:
        raise ModelError("the graph cannot be cut there", faults=faults)
    before = [v.name or "" for v in graph.inputs]
    if options.outputs:
        graph.outputs[:] = [values[n] for n in wanted_outputs]
    if options.inputs:
        cut = [values[n] for n in wanted_inputs]
        _infer_types(graph, cut)
        _cut_inputs(graph, cut)
    removed = drop_dead(graph)
    if options.inputs:
        open_inputs = [v for v in graph.inputs if v.name not in wanted_inputs and (v.uses() or v.is_graph_output())]
        if open_inputs:
            raise ModelError(
                "the cut does not separate the graph",
                faults=[Fault("is still needed", f"input {v.name!r}", f"add --input {v.name}") for v in open_inputs],
            )
        keep = [v for n in wanted_inputs for v in graph.inputs if v.name == n]
        graph.inputs[:] = keep
    else:
        graph.inputs[:] = [v for v in graph.inputs if v.uses() or v.is_graph_output()]
    kept = {v.name for v in graph.inputs}
    return [f"input {n}" for n in before if n not in kept] + sorted(removed)


def _infer_types(graph: ir.Graph, values: list[ir.Value]) -> None:
    """Find dtypes and shapes (symbolic ones too) of the tensors to cut at, where the source does not note them."""
    missing = {v for v in values if v.type is None or v.shape is None}
    for node in graph:
        if not missing:
            break
        missing -= set(node.outputs)
        if any(v.type is None or v.shape is None for v in node.outputs):
            try:
                infer_node(node)
            except InferenceFailed as error:
                log.debug("%s %r: %s", node.op_type, node.name, error)
    for value in values:
        if value.type is None and (dtype := _dtype_by_use(value)) is not None:
            value.dtype = dtype


def _dtype_by_use(value: ir.Value) -> ir.DataType | None:
    """The dtype that the ops behind a value of unknown making ask for: that of another operand of the same type."""
    todo, seen = [value], {value}
    while todo:
        for node, index in todo.pop().uses():
            schema = schema_of(node.domain, node.op_type, version_of(node))
            if schema is None or index >= len(schema.inputs):
                continue
            kind = schema.inputs[index].type_str
            for other, formal in zip(node.inputs, schema.inputs, strict=False):
                if other is not None and other.dtype is not None and formal.type_str == kind:
                    return other.dtype
            same = [out for out, formal in zip(node.outputs, schema.outputs, strict=False) if formal.type_str == kind]
            todo += [out for out in same if out not in seen]
            seen.update(same)
    return None


def _cut_inputs(graph: ir.Graph, values: list[ir.Value]) -> None:
    for old in values:
        if old.producer() is None:
            continue
        new = ir.Value(name=old.name, shape=old.shape, type=old.type)
        for user, index in tuple(old.uses()):
            user.replace_input_with(index, new)
        for i, output in enumerate(graph.outputs):
            if output is old:
                graph.outputs[i] = new
        old.name = f"{old.name}__cut"
        graph.inputs.append(new)

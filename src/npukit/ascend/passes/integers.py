# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""int64 becomes int32 along the paths of values: ids, positions, masks. What ONNX wants as int64 stays so."""

from __future__ import annotations

from functools import cache

import numpy as np
import onnx_ir as ir

from npukit.ascend.passes.setting import Rewriter, Setting, beyond
from npukit.ascend.rules import integer_inputs
from npukit.frontends.onnx.ranges import Ranges
from npukit.frontends.onnx.rewrite import Names, attribute, constant, drop_dead, is_ai_onnx, schema_of, version_of

Group = tuple[tuple[int, ...], tuple[int, ...]]  # inputs and outputs that must have one dtype


def narrow_integers(model: ir.Model, setting: Setting) -> int:
    """Computes in int32 what provably fits, where a model has int64 in ops that are not documented for it.

    Values of graph inputs are taken to be what the graph implies, else below 2^24 in size (`INPUT_INTEGERS`).
    """
    ranges = Ranges(integer_inputs(model))
    if not any(_needed(model, node, setting, ranges) for node in model.graph):
        return 0
    narrowing = _Narrowing(model, ranges)
    for node in tuple(model.graph):
        narrowing.visit(node)
    drop_dead(model.graph)
    return narrowing.count


def _needed(model: ir.Model, node: ir.Node, setting: Setting, ranges: Ranges) -> bool:
    values = [value for value in (*node.inputs, *node.outputs) if value is not None]
    if not any(value.dtype == ir.DataType.INT64 for value in values):
        return False
    fixes = ("narrow_integers", "legalize_dtypes", "mask_triangles")
    return any(beyond(model, node, setting, fix, ranges) for fix in fixes)


@cache
def _groups(op_type: str, version: int, inputs: int, outputs: int) -> tuple[Group, ...]:
    """Places of a node's operands that share a type which may be int64 and int32, by the op's definition."""
    schema = schema_of("", op_type, version)
    if schema is None:
        return ()
    kinds: dict[str, tuple[list[int], list[int]]] = {}
    for side, formal, count in ((0, list(schema.inputs), inputs), (1, list(schema.outputs), outputs)):
        for i in range(count if formal else 0):
            parameter = formal[min(i, len(formal) - 1)]
            if {"tensor(int64)", "tensor(int32)"} <= set(parameter.types) and "(" not in parameter.type_str:
                kinds.setdefault(parameter.type_str, ([], []))[side].append(i)
    return tuple((tuple(ins), tuple(outs)) for ins, outs in kinds.values())


class _Narrowing:
    def __init__(self, model: ir.Model, ranges: Ranges) -> None:
        self.model = model
        self.names = Names(model.graph)
        self.count = 0
        values = [*model.graph.inputs, *model.graph.initializers.values()]
        values += [value for node in model.graph for value in node.outputs]
        self.fits = {v for v in values if v.dtype == ir.DataType.INT64 and ranges.fits_int32(v)}
        self.narrow: dict[ir.Value, ir.Value] = {}

    def visit(self, node: ir.Node) -> None:
        """Narrow every group of the node's operands that fits."""
        if node.domain:
            return
        if is_ai_onnx(node, "Cast"):
            self._cast(node)
            return
        changed = False
        for ins, outs in _groups(node.op_type, version_of(node), len(node.inputs), len(node.outputs)):
            sources = [(i, v) for i in ins if (v := node.inputs[i]) is not None and v.dtype == ir.DataType.INT64]
            results = [v for i in outs if (v := node.outputs[i]).name and v.dtype == ir.DataType.INT64]
            if not all(v in self.fits for v in (*results, *(v for _, v in sources))):
                continue
            if not results and all(v.const_value is not None for _, v in sources):
                continue  # shapes, axes and steps
            for i, value in sources:
                node.replace_input_with(i, self._as_int32(value))
            for value in results:
                self._hold(node, value)
            changed = changed or bool(sources or results)
        self.count += changed

    def _cast(self, node: ir.Node) -> None:
        source, result = node.inputs[0], node.outputs[0]
        if source is not None and source in self.fits:
            node.replace_input_with(0, self._as_int32(source))
        if attribute(node, "to") == int(ir.DataType.INT64) and result in self.fits:
            node.attributes["to"] = ir.AttrInt64("to", int(ir.DataType.INT32))
            self._hold(node, result)
            self.count += 1

    def _hold(self, node: ir.Node, value: ir.Value) -> None:
        """Make the output int32; whoever wants int64 gets a cast of it."""
        uses, is_output = tuple(value.uses()), value.is_graph_output()
        value.type = ir.TensorType(ir.DataType.INT32)
        cast = self._cast_of(node, value, ir.DataType.INT64)
        graph = node.graph
        assert isinstance(graph, ir.Graph)
        graph.insert_after(node, cast)
        wide = cast.outputs[0]
        for user, index in uses:
            user.replace_input_with(index, wide)
        if is_output:
            value.name, wide.name = self.names.value(f"{value.name}_int32"), value.name
            for i, output in enumerate(graph.outputs):
                if output is value:
                    graph.outputs[i] = wide
        self.fits.add(wide)
        self.narrow[wide] = value

    def _as_int32(self, value: ir.Value) -> ir.Value:
        if value not in self.narrow:
            array, graph = constant(value), self.model.graph
            if array is not None:
                node = next(iter(graph))
                self.narrow[value] = Rewriter(self.model, self.names, node).const(
                    array.astype(np.int32), f"{value.name}_int32"
                )
            else:
                producer = value.producer()
                first = producer or next(iter(graph))
                cast = self._cast_of(first, value, ir.DataType.INT32)
                if producer is None:
                    graph.insert_before(first, cast)
                else:
                    graph.insert_after(producer, cast)
                self.narrow[value] = cast.outputs[0]
        return self.narrow[value]

    def _cast_of(self, node: ir.Node, value: ir.Value, dtype: ir.DataType) -> ir.Node:
        builder = Rewriter(self.model, self.names, node)
        result = builder.op("Cast", value, to=int(dtype))
        result.type, result.shape = ir.TensorType(dtype), value.shape
        return builder.nodes[0]

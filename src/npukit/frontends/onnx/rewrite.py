# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""Small tools that every pass is written with: reading constants and attributes, building and replacing nodes."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir

Array = npt.NDArray[Any]
NEWEST = onnx.defs.onnx_opset_version()
ORIGIN = "npukit.origin"
# what holds a constant (isinstance on onnx_ir's runtime protocol is hundreds of times slower)
TENSORS = (ir.Tensor, ir.PackedTensor, ir.StringTensor, ir.LazyTensor, ir.ExternalTensor, ir.TensorProtoTensor)


class Unsupported(Exception):
    """A node whose old form has no equal in the newest opset; the text says why."""


@functools.cache
def newest_version(domain: str) -> int:
    """The newest opset version of `domain` that the installed onnx has schemas for; 1 when it has none."""
    if domain in ("", "ai.onnx"):
        return NEWEST
    versions = [s.since_version for s in onnx.defs.get_all_schemas_with_history() if s.domain == domain]
    return max(versions, default=1)


@functools.cache
def schema_of(domain: str, op_type: str, version: int) -> onnx.defs.OpSchema | None:
    """The schema of an op at an opset version, or None."""
    try:
        return onnx.defs.get_schema(op_type, version, domain)
    except onnx.defs.SchemaError:
        return None


def version_of(node: ir.Node) -> int:
    """The opset version the node is written in."""
    return node.version if node.version is not None else newest_version(node.domain)


def constant(value: ir.Value | None) -> Array | None:
    """The value's array when it is a constant (a view, never a copy of a mapped weight), else None."""
    if value is None or value.const_value is None:
        return None
    return value.const_value.numpy()


def ints(value: ir.Value | None) -> list[int] | None:
    """A constant integer vector or scalar as a list, or None when it is not constant."""
    array = constant(value)
    return None if array is None else [int(x) for x in array.reshape(-1)]


def shape_of(value: ir.Value | None) -> tuple[int, ...] | None:
    """The static shape, or None when any part of it is unknown."""
    if value is None or value.shape is None:
        return None
    dims = value.shape.dims
    if not all(isinstance(d, int) for d in dims):
        return None
    return tuple(int(d) for d in dims)  # type: ignore[arg-type]


def rank_of(value: ir.Value | None) -> int | None:
    """The rank, or None when unknown."""
    return None if value is None or value.shape is None else len(value.shape)


def need_shape(value: ir.Value | None) -> tuple[int, ...]:
    """The static shape; Unsupported when it is not known yet."""
    shape = shape_of(value)
    if shape is None:
        raise Unsupported(f"the shape of {value.name if value else '?'!r} is not known")
    return shape


def attribute(node: ir.Node, name: str, default: Any = None) -> Any:
    """An attribute's plain value (str for strings), or `default`."""
    attr = node.attributes.get(name)
    if attr is None:
        return default
    value = attr.value
    if attr.type == ir.AttributeType.STRING and isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    if attr.type in (ir.AttributeType.INTS, ir.AttributeType.FLOATS, ir.AttributeType.STRINGS):
        return list(value)
    return value


def inputs_of(node: ir.Node) -> list[ir.Value | None]:
    """Inputs without trailing missing ones."""
    values = list(node.inputs)
    while values and values[-1] is None:
        values.pop()
    return values


def input_at(node: ir.Node, index: int) -> ir.Value | None:
    """Input `index`, None when absent."""
    return node.inputs[index] if index < len(node.inputs) else None


def output_used(node: ir.Node, index: int) -> bool:
    """Whether output `index` exists and anybody reads it."""
    if index >= len(node.outputs):
        return False
    value = node.outputs[index]
    return bool(value.name) and (value.is_graph_output() or bool(value.uses()))


def origin_of(node: ir.Node) -> tuple[str, ...]:
    """Names of the source nodes that this node stands for."""
    origin = node.meta.get(ORIGIN)
    return origin if origin else ((node.name,) if node.name else ())


def is_ai_onnx(node: ir.Node, *op_types: str) -> bool:
    """Whether the node is one of these ai.onnx ops."""
    return node.domain in ("", "ai.onnx") and node.op_type in op_types


def make_tensor(array: Any, name: str | None = None, dtype: ir.DataType | None = None) -> ir.TensorProtocol:
    """An ir tensor over `array` without copying it."""
    array = np.asarray(array)
    if array.dtype.kind in "OSU":
        flat = [x if isinstance(x, bytes) else str(x).encode() for x in array.reshape(-1)]
        strings = np.empty(len(flat), dtype=object)
        strings[:] = flat
        return ir.StringTensor(strings.reshape(array.shape), shape=ir.Shape(array.shape), name=name)
    return ir.Tensor(array, dtype=dtype, name=name)


class Names:
    """Names that no value or node of a graph has yet."""

    def __init__(self, graph: ir.Graph) -> None:
        self.used: set[str] = set(graph.initializers)
        self.used.update(v.name for v in graph.inputs if v.name)
        self.nodes: set[str] = set()
        for node in graph.all_nodes():
            self.nodes.add(node.name or "")
            for value in node.outputs:
                self.used.add(value.name or "")
            for attr in node.attributes.values():
                for sub in _subgraphs(attr):
                    self.used.update(v.name or "" for v in sub.inputs)
                    self.used.update(sub.initializers)
        self._next: dict[str, int] = {}

    def value(self, hint: str) -> str:
        """A fresh value name that begins with `hint`."""
        return self._fresh(hint, self.used)

    def node(self, hint: str) -> str:
        """A fresh node name that begins with `hint`."""
        return self._fresh(hint, self.nodes)

    def _fresh(self, hint: str, used: set[str]) -> str:
        if hint and hint not in used:
            used.add(hint)
            return hint
        number = self._next.get(hint, 0)
        while True:
            number += 1
            name = f"{hint}_{number}"
            if name not in used:
                self._next[hint] = number
                used.add(name)
                return name


def _subgraphs(attr: ir.Attr) -> Iterable[ir.Graph]:
    if attr.type == ir.AttributeType.GRAPH:
        return (attr.value,)
    if attr.type == ir.AttributeType.GRAPHS:
        return tuple(attr.value)
    return ()


def subgraphs_of(node: ir.Node) -> list[ir.Graph]:
    """The graphs that the node's attributes hold."""
    return [g for attr in node.attributes.values() if not attr.is_ref() for g in _subgraphs(attr)]


class Builder:
    """Builds the nodes that replace one node: same origin, newest opset, names derived from its name."""

    def __init__(self, graph: ir.Graph, names: Names, node: ir.Node) -> None:
        self.graph = graph
        self.names = names
        self.source = node
        self.origin = origin_of(node)
        self.nodes: list[ir.Node] = []

    def op(
        self,
        op_type: str,
        *inputs: ir.Value | None,
        outputs: int = 1,
        domain: str = "",
        version: int | None = None,
        **attributes: Any,
    ) -> Any:
        """Append a node; returns its output, or the tuple of its outputs when `outputs` is not 1."""
        attrs = [a if isinstance(a, ir.Attr) else ir.convenience.convert_attribute(k, a) for k, a in attributes.items()]
        while inputs and inputs[-1] is None:
            inputs = inputs[:-1]
        base = self.origin[0] if self.origin else op_type
        node = ir.Node(
            domain,
            op_type,
            inputs,
            attrs,
            num_outputs=outputs,
            version=version or newest_version(domain),
            name=self.names.node(f"{base}/{op_type}"),
        )
        node.meta[ORIGIN] = self.origin
        for value in node.outputs:
            value.name = self.names.value(f"{node.name}_out")
        self.nodes.append(node)
        return node.outputs[0] if outputs == 1 else tuple(node.outputs)

    def const(self, array: Any, hint: str = "const", dtype: ir.DataType | None = None) -> ir.Value:
        """A new initializer."""
        base = self.origin[0] if self.origin else self.source.op_type
        return add_constant(self.graph, self.names, array, f"{base}/{hint}", dtype)

    def ints(self, values: Sequence[int], hint: str = "ints") -> ir.Value:
        """A new int64 vector constant."""
        return self.const(np.asarray(list(values), dtype=np.int64), hint)

    def scalar(self, number: float | int | bool, like: ir.Value, hint: str = "scalar") -> ir.Value:
        """A new rank-0 constant of `like`'s dtype."""
        if like.dtype is None:
            raise Unsupported(f"the dtype of {like.name!r} is not known")
        return self.const(np.asarray(number).astype(like.dtype.numpy()), hint)


def add_constant(graph: ir.Graph, names: Names, array: Any, hint: str, dtype: ir.DataType | None = None) -> ir.Value:
    """Register a new initializer of the main graph over `array` (not copied)."""
    name = names.value(hint)
    tensor = array if isinstance(array, TENSORS) else make_tensor(array, name, dtype)
    shape = ir.Shape(tensor.shape.numpy())
    value = ir.Value(name=name, shape=shape, type=ir.TensorType(tensor.dtype), const_value=tensor)
    graph.register_initializer(value)
    return value


def replace_node(
    graph: ir.Graph, node: ir.Node, new_nodes: Sequence[ir.Node], values: Sequence[ir.Value | None]
) -> None:
    """Put `new_nodes` in place of `node`; `values[i]` takes over the uses of output i (None: nobody used it).

    Fresh values inherit the output's name, so that source names survive. A graph output that is replaced by a value
    which must keep its own name (an input, a constant, another output) is fed by an Identity node.
    """
    fresh = {id(v) for n in new_nodes for v in n.outputs}
    anchor = node
    if new_nodes:
        graph.insert_after(node, list(new_nodes))
        anchor = new_nodes[-1]
    taken: set[int] = set()
    for old, new in zip(node.outputs, values, strict=False):
        if new is None or new is old:
            continue
        if new.shape is None and old.shape is not None:
            new.shape = old.shape
        if new.type is None and old.type is not None:
            new.type = old.type
        if id(new) in fresh and id(new) not in taken:
            taken.add(id(new))
            name, old.name = old.name, f"{old.name}__replaced"
            new.name = name
            _redirect(graph, old, new)
        elif not old.is_graph_output():
            _redirect(graph, old, new)
        else:
            identity = ir.Node("", "Identity", [new], version=NEWEST, name=f"{node.name or old.name}/Identity")
            identity.meta[ORIGIN] = origin_of(node)
            graph.insert_after(anchor, identity)
            out = identity.outputs[0]
            out.shape, out.type = old.shape, old.type
            name, old.name = old.name, f"{old.name}__replaced"
            out.name = name
            _redirect(graph, old, out)
    graph.remove(node, safe=True)


def _redirect(graph: ir.Graph, old: ir.Value, new: ir.Value) -> None:
    for user, index in tuple(old.uses()):
        user.replace_input_with(index, new)
    if old.is_graph_output():
        for i, output in enumerate(graph.outputs):
            if output is old:
                graph.outputs[i] = new


def drop_dead(graph: ir.Graph) -> list[str]:
    """Remove nodes and constants that no graph output depends on; returns the removed nodes' names."""
    removed: list[str] = []
    for node in reversed(graph):
        if all(not v.uses() and not v.is_graph_output() for v in node.outputs):
            removed.append(node.name or node.op_type)
            graph.remove(node, safe=True)
    for name, value in list(graph.initializers.items()):
        if not value.uses() and not value.is_graph_output():
            del graph.initializers[name]
    return removed


def float_dtype(value: ir.Value) -> bool:
    """Whether the value holds real floating point numbers."""
    return value.dtype is not None and value.dtype.is_floating_point()


BFLOAT16 = np.dtype(ml_dtypes.bfloat16)

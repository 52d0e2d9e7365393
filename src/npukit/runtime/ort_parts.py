# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""Models with ops that a plugin computes in Python: ONNX Runtime runs what lies before, between and behind them.

Every value has a level: how many such ops lie on the longest way to it. The nodes of one level are one session, and the
Python ops of that level run behind it.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir

from npukit import plugins
from npukit.errors import ModelError, UsageError
from npukit.frontends.onnx.infer_shapes import InferenceFailed, infer_node, is_static
from npukit.qnn.graph import Array

_OPTION = "--plugin"

Open = Callable[[bytes], Any]


@dataclass(frozen=True)
class Value:
    """A value of a model, in the words of ONNX Runtime's NodeArg: the type is such as "tensor(float)"."""

    name: str
    type: str
    shape: list[int | str | None]


def has_computed(model: onnx.ModelProto) -> bool:
    """Whether a node of the main graph is an op that a plugin in use computes in Python."""
    return any(_computed(node) is not None for node in model.graph.node)


class Parts:
    """What InferenceSession is, for a model with ops that plugins compute in Python.

    Args:
        model: main graph with such ops; external data may be left unread.
        folder: where external data is.
        open_part: opens the session of a part.

    Raises:
        ModelError: the type of a value cannot be known before it is computed.
    """

    def __init__(self, model: onnx.ModelProto, folder: Path, open_part: Open) -> None:
        graph = model.graph
        constants = {tensor.name: tensor for tensor in graph.initializer}
        self._inputs = [_declared(value) for value in graph.input if value.name not in constants]
        self._steps: list[_Session | _Python] = []
        known = {value.name: value for value in self._inputs}
        declared = {v.name: _declared(v) for v in (*graph.value_info, *graph.output) if v.type.tensor_type.elem_type}
        levels = _levels(graph.node)
        wanted = _wanted(levels, {value.name for value in graph.output})
        for plain, python in levels:
            if plain:
                session = open_part(_part(model, plain, constants, known, wanted).SerializeToString())
                self._steps.append(_Session(session))
                known.update({v.name: Value(v.name, v.type, list(v.shape or [])) for v in session.get_outputs()})
            for node in python:
                fixed = {n: _array(constants[n], folder) for n in node.input if n in constants}
                step = _Python.of(node, fixed, known, declared)
                self._steps.append(step)
                known.update({value.name: value for value in step.outputs})
        self._fixed = {v.name: _array(constants[v.name], folder) for v in graph.output if v.name in constants}
        self._outputs = [known.get(value.name) or declared[value.name] for value in graph.output]

    def get_inputs(self) -> list[Value]:
        return self._inputs

    def get_outputs(self) -> list[Value]:
        return self._outputs

    def run(self, names: Sequence[str] | None, feeds: Mapping[str, Array]) -> list[Array]:
        """The values `names` (None: all outputs) for the inputs `feeds`."""
        values = {**self._fixed, **feeds}
        for step in self._steps:
            step.run(values)
        return [values[name] for name in names or [value.name for value in self._outputs]]

    def disable_fallback(self) -> None:
        """There is none."""


class _Session:
    """A part that ONNX Runtime runs."""

    def __init__(self, session: Any) -> None:
        session.disable_fallback()
        self._session = session
        self._takes = [value.name for value in session.get_inputs()]
        self._gives = [value.name for value in session.get_outputs()]

    def run(self, values: dict[str, Array]) -> None:
        results = self._session.run(self._gives, {name: values[name] for name in self._takes})
        values.update(zip(self._gives, results, strict=True))


@dataclass(frozen=True)
class _Python:
    """A node that a plugin computes.

    Attributes:
        custom: its op.
        inputs: names, empty where left out.
        fixed: those of them that are constants.
        outputs: the types that they must have; names are empty where an output is not asked for.
        attributes: of the node.
    """

    custom: plugins.CustomOp
    inputs: tuple[str, ...]
    fixed: dict[str, Array]
    outputs: tuple[Value, ...]
    attributes: dict[str, Any]

    @classmethod
    def of(
        cls,
        node: onnx.NodeProto,
        fixed: dict[str, Array],
        known: Mapping[str, Value],
        declared: Mapping[str, Value],
    ) -> _Python:
        custom = _computed(node)
        assert custom is not None
        inferred = _inferred(custom, node, fixed, known)
        outputs = []
        for name, found in zip(node.output, inferred, strict=True):
            value = found or declared.get(name) or (Value("", "", []) if not name else None)
            if value is None:
                raise ModelError(
                    f"the type of {name!r} is not known: {custom.title}, which the plugin {custom.plugin} computes, "
                    "has inputs without static shapes",
                    where=f"node {node.name!r}", hint="fix the input shapes, as npukit convert does (--input-shape)",
                )  # fmt: skip
            outputs.append(value)
        attributes = {a.name: _plain(onnx.helper.get_attribute_value(a)) for a in node.attribute}
        return cls(custom, tuple(node.input), fixed, tuple(outputs), attributes)

    def run(self, values: dict[str, Array]) -> None:
        given = [None if not name else self.fixed.get(name, values.get(name)) for name in self.inputs]
        assert self.custom.compute is not None
        try:
            results = self.custom.compute(*given, **self.attributes)
        except Exception as error:
            what = f"{self.custom.broken('fails to compute it')}: {type(error).__name__}: {error}"
            raise UsageError(what, where=_OPTION, hint=_signature(self.custom)) from error
        found = list(results) if isinstance(results, tuple | list) else [results]
        if len(found) < len(self.outputs):  # the node may leave the last ones out
            what = f"computes {len(found)} outputs where {len(self.outputs)} are due"
            raise UsageError(self.custom.broken(what), where=_OPTION)
        for value, result in zip(self.outputs, found, strict=False):
            if value.name:
                values[value.name] = self._checked(value, np.asarray(result))

    def _checked(self, value: Value, array: Array) -> Array:
        dtype = np.dtype(onnx.helper.tensor_dtype_to_np_dtype(_code(value.type)))
        fits = len(array.shape) == len(value.shape) and all(
            not isinstance(due, int) or due == size for due, size in zip(value.shape, array.shape, strict=True)
        )
        if not fits or not np.can_cast(array.dtype, dtype, "same_kind"):
            is_, due = f"{array.dtype.name} {list(array.shape)}", f"{dtype.name} {value.shape}"
            raise UsageError(self.custom.broken(f"computes {is_} where {due} is due"), where=_OPTION)
        return np.ascontiguousarray(array, dtype).reshape(array.shape)


def _computed(node: onnx.NodeProto) -> plugins.CustomOp | None:
    custom = plugins.find(node.domain, node.op_type) if node.domain else None
    return custom if custom is not None and custom.compute is not None else None


def _levels(nodes: Sequence[onnx.NodeProto]) -> list[tuple[list[onnx.NodeProto], list[onnx.NodeProto]]]:
    """The nodes of each level, those of ONNX Runtime and those of Python. Nodes are sorted, as ONNX asks."""
    level: dict[str, int] = {}
    found: list[tuple[list[onnx.NodeProto], list[onnx.NodeProto]]] = []
    for node in nodes:
        own = max((level.get(name, 0) for name in _reads(node)), default=0)
        python = _computed(node) is not None
        while len(found) <= own:
            found.append(([], []))
        found[own][python].append(node)
        level.update(dict.fromkeys(node.output, own + python))
    return found


def _wanted(levels: Sequence[tuple[list[onnx.NodeProto], list[onnx.NodeProto]]], outputs: set[str]) -> set[str]:
    """Values that leave the part that makes them."""
    wanted = set(outputs)
    for plain, python in levels:
        inside = {name for node in plain for name in node.output}
        wanted |= {name for node in plain for name in _reads(node)} - inside
        wanted |= {name for node in python for name in node.input}
    return wanted


def _reads(node: onnx.NodeProto) -> Iterator[str]:
    """The values that a node reads, in its subgraphs too; their own are among them, and known to nobody else."""
    yield from (name for name in node.input if name)
    for attribute in node.attribute:
        for graph in (attribute.g, *attribute.graphs):
            for inner in graph.node:
                yield from _reads(inner)
            yield from (value.name for value in graph.output)


def _part(
    model: onnx.ModelProto,
    nodes: Sequence[onnx.NodeProto],
    constants: Mapping[str, onnx.TensorProto],
    known: Mapping[str, Value],
    wanted: set[str],
) -> onnx.ModelProto:
    """A model of some nodes, with what comes from other parts as its inputs."""
    read = dict.fromkeys(name for node in nodes for name in _reads(node))
    made = dict.fromkeys(name for node in nodes for name in node.output if name)
    graph = onnx.GraphProto(name=model.graph.name or "part")
    graph.node.extend(nodes)
    graph.initializer.extend(constants[name] for name in read if name in constants)
    outside = [known[name] for name in read if name in known and name not in made and name not in constants]
    graph.input.extend(onnx.helper.make_tensor_value_info(v.name, _code(v.type), v.shape) for v in outside)
    graph.output.extend(onnx.ValueInfoProto(name=name) for name in made if name in wanted)
    graph.quantization_annotation.extend(model.graph.quantization_annotation)
    part = onnx.ModelProto(ir_version=model.ir_version, graph=graph)
    part.opset_import.extend(model.opset_import)
    part.functions.extend(model.functions)
    return part


def _inferred(
    custom: plugins.CustomOp, node: onnx.NodeProto, fixed: Mapping[str, Array], known: Mapping[str, Value]
) -> list[Value | None]:
    """Types of a Python node's outputs as its plugin infers them; None where it cannot."""
    attributes = [ir.serde.deserialize_attribute(attribute) for attribute in node.attribute]
    inputs = [_typed(name, fixed, known) if name else None for name in node.input]
    typed = ir.Node(node.domain, node.op_type, inputs, attributes, num_outputs=len(node.output), name=node.name)
    for value, name in zip(typed.outputs, node.output, strict=True):
        value.name = name
    try:
        infer_node(typed)
    except InferenceFailed as error:
        raise ModelError(str(error), where=f"node {node.name!r} ({custom.title})") from None
    return [_value(v) if v.name and is_static(v) else None for v in typed.outputs]


def _typed(name: str, fixed: Mapping[str, Array], known: Mapping[str, Value]) -> ir.Value:
    if name not in fixed:
        said = known[name]
        return ir.Value(name=name, shape=ir.Shape(said.shape), type=ir.TensorType(ir.DataType(_code(said.type))))
    constant = ir.Tensor(fixed[name], name=name)
    return ir.Value(name=name, shape=constant.shape, type=ir.TensorType(constant.dtype), const_value=constant)


def _value(value: ir.Value) -> Value:
    assert value.name is not None
    assert value.dtype is not None
    assert value.shape is not None
    return Value(value.name, _type(int(value.dtype)), list(value.shape.numpy()))


def _declared(value: onnx.ValueInfoProto) -> Value:
    tensor = value.type.tensor_type
    shape = [d.dim_value if d.HasField("dim_value") else d.dim_param or None for d in tensor.shape.dim]
    return Value(value.name, _type(tensor.elem_type), shape)


def _array(tensor: onnx.TensorProto, folder: Path) -> Array:
    return onnx.numpy_helper.to_array(tensor, str(folder))


def _type(code: int) -> str:
    name = onnx.helper.tensor_dtype_to_string(code) if code else "undefined"
    return f"tensor({name.removeprefix('TensorProto.').lower()})"


def _code(kind: str) -> int:
    return int(onnx.TensorProto.DataType.Value(kind.removeprefix("tensor(").removesuffix(")").upper()))


def _plain(value: Any) -> Any:
    """An attribute in Python's own types."""
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    if isinstance(value, onnx.TensorProto):
        return onnx.numpy_helper.to_array(value)
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value


def _signature(custom: plugins.CustomOp) -> str:
    """How the function is called."""
    assert custom.compute is not None
    try:
        text = str(inspect.signature(custom.compute))
    except (TypeError, ValueError):
        text = "(...)"
    return f"it is called with the inputs as arrays and the attributes by name; the plugin has compute{text}"

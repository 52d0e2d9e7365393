# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""Finds what is wrong with a parsed model before anything is built from it; all faults are listed, none is raised."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import onnx

from npukit.errors import Fault, nearest
from npukit.frontends.onnx.replace_contrib import IN_AI_ONNX
from npukit.frontends.onnx.rewrite import newest_version, schema_of

# More bits than any machine holds: a shape that asks for it is broken.
MAX_BITS = 1 << 47
MAX_FAULTS = 50
_ATTRIBUTE = onnx.AttributeProto.AttributeType
_BITS: dict[int, int] = {
    onnx.TensorProto.FLOAT: 32,
    onnx.TensorProto.UINT8: 8,
    onnx.TensorProto.INT8: 8,
    onnx.TensorProto.UINT16: 16,
    onnx.TensorProto.INT16: 16,
    onnx.TensorProto.INT32: 32,
    onnx.TensorProto.INT64: 64,
    onnx.TensorProto.STRING: 0,
    onnx.TensorProto.BOOL: 8,
    onnx.TensorProto.FLOAT16: 16,
    onnx.TensorProto.DOUBLE: 64,
    onnx.TensorProto.UINT32: 32,
    onnx.TensorProto.UINT64: 64,
    onnx.TensorProto.COMPLEX64: 64,
    onnx.TensorProto.COMPLEX128: 128,
    onnx.TensorProto.BFLOAT16: 16,
    **{
        onnx.TensorProto.DataType.Value(name): bits
        for name, bits in {
            "FLOAT8E4M3FN": 8,
            "FLOAT8E4M3FNUZ": 8,
            "FLOAT8E5M2": 8,
            "FLOAT8E5M2FNUZ": 8,
            "FLOAT8E8M0": 8,
            "UINT4": 4,
            "INT4": 4,
            "FLOAT4E2M1": 4,
            "UINT2": 2,
            "INT2": 2,
            "FLOAT6E2M3": 6,
            "FLOAT6E3M2": 6,
        }.items()
        if name in onnx.TensorProto.DataType.keys()  # noqa: SIM118 - an enum wrapper, not a dict
    },
}
# field that holds the elements -> dtypes stored there
_FIELDS: dict[str, dict[int, int]] = {
    "float_data": {onnx.TensorProto.FLOAT: 1, onnx.TensorProto.COMPLEX64: 2},
    "double_data": {onnx.TensorProto.DOUBLE: 1, onnx.TensorProto.COMPLEX128: 2},
    "int64_data": {onnx.TensorProto.INT64: 1},
    "uint64_data": {onnx.TensorProto.UINT32: 1, onnx.TensorProto.UINT64: 1},
    "string_data": {onnx.TensorProto.STRING: 1},
}


def tensor_bytes(data_type: int, dims: Iterable[int]) -> int:
    """Bytes of a dense tensor as ONNX stores it (sub-byte types packed)."""
    return (math.prod(dims) * _BITS[data_type] + 7) // 8


@dataclass
class _Check:
    model: onnx.ModelProto
    faults: list[Fault] = field(default_factory=list)
    functions: set[tuple[str, str]] = field(default_factory=set)
    also: frozenset[str] = frozenset()

    def fault(self, what: str, where: str, hint: str = "") -> None:
        if len(self.faults) < MAX_FAULTS:
            self.faults.append(Fault(what, where, hint))


def check_model(model: onnx.ModelProto, also: frozenset[str] = frozenset()) -> list[Fault]:
    """Every fault of a parsed model: scopes, cycles, ops, attributes, dtypes, tensor sizes, opset versions.

    `also`: ops of ai.onnx that are no fault though ONNX does not have them.
    """
    check = _Check(model, also=also)
    if not model.HasField("graph"):
        check.fault("there is no graph", "model", "is this an ONNX model?")
        return check.faults
    _check_texts(check, model)
    if check.faults:
        return check.faults
    versions = _versions(check, model.opset_import)
    check.functions = {(f.domain, f.name) for f in model.functions}
    _check_graph(check, model.graph, set(), versions, "graph")
    for function in model.functions:
        _check_function(check, function, versions)
    return check.faults


def _check_texts(check: _Check, model: onnx.ModelProto) -> None:
    """Names must be text: protobuf hands out bytes for what is not UTF-8."""

    def look(where: str, *texts: object) -> None:
        if any(isinstance(text, bytes) for text in texts):
            check.fault("a name is not UTF-8 text", where)

    def look_nodes(nodes: Iterable[onnx.NodeProto], where: str) -> None:
        for i, node in enumerate(nodes):
            label = f"{where} node #{i}"
            look(label, node.name, node.op_type, node.domain, node.overload, *node.input, *node.output)
            for attr in node.attribute:
                look(label, attr.name, attr.ref_attr_name, attr.t.name if attr.HasField("t") else "")
                for text in (attr.s, *attr.strings):
                    try:
                        text.decode()
                    except UnicodeDecodeError:
                        check.fault(f"attribute {attr.name!r} is not UTF-8 text", label)
                if attr.HasField("g"):
                    look_graph(attr.g, label)
                for graph in attr.graphs:
                    look_graph(graph, label)

    def look_graph(graph: onnx.GraphProto, where: str) -> None:
        look(where, graph.name)
        for value in (*graph.input, *graph.output, *graph.value_info):
            dims = value.type.tensor_type.shape.dim
            look(where, value.name, *(d.dim_param for d in dims if d.HasField("dim_param")))
        for tensor in (*graph.initializer, *(s.values for s in graph.sparse_initializer)):
            look(where, tensor.name, *(x for e in tensor.external_data for x in (e.key, e.value)))
        look_nodes(graph.node, where)

    look("model", model.producer_name, model.domain, *(i.domain for i in model.opset_import))
    look_graph(model.graph, "graph")
    for function in model.functions:
        look("functions", function.name, function.domain, *function.input, *function.output, *function.attribute)
        look("functions", *(i.domain for i in function.opset_import))
        look_nodes(function.node, "functions")


def _versions(check: _Check, imports: Iterable[onnx.OperatorSetIdProto]) -> dict[str, int]:
    versions: dict[str, int] = {}
    for entry in imports:
        domain = "" if entry.domain == "ai.onnx" else entry.domain
        if versions.setdefault(domain, entry.version) != entry.version:
            check.fault(f"two versions of domain {domain!r} are imported", "opset_import")
        known = newest_version(domain)
        if not 1 <= entry.version < 1 << 31:
            check.fault(f"{entry.version} is not an opset version", f"opset_import of {domain or 'ai.onnx'!r}")
            versions[domain] = known
            continue
        if domain in ("", "ai.onnx.ml") and not 1 <= entry.version <= known:
            check.fault(
                f"opset {entry.version} of domain {domain or 'ai.onnx'!r} is not known (1 to {known} are)",
                "opset_import",
                "export with an older opset, or install a newer onnx package" if entry.version > known else "",
            )
    if not versions:
        if check.model.ir_version >= 3 and check.model.graph.node:
            check.fault("no opset_import: the ops have no version", "model")
        versions[""] = 1
    return versions


def _check_function(check: _Check, function: onnx.FunctionProto, outer: dict[str, int]) -> None:
    where = f"function {function.domain}::{function.name}"
    versions = _versions(check, function.opset_import) if function.opset_import else outer
    names = set(function.input)
    if len(names) != len(function.input):
        check.fault("an input name appears twice", where)
    _check_nodes(check, function.node, names, set(), versions, where, in_function=True)
    defined = names | {o for n in function.node for o in n.output}
    for name in function.output:
        if name not in defined:
            check.fault(f"output {name!r} is made by no node", where)


def _check_graph(
    check: _Check, graph: onnx.GraphProto, outer: set[str], versions: dict[str, int], where: str, *, inner: bool = False
) -> None:
    names: set[str] = set()
    for value in graph.input:
        if not value.name:
            check.fault("an input has no name", where)
        elif value.name in names:
            check.fault(f"input {value.name!r} appears twice", where)
        names.add(value.name)
        _check_type(check, value, f"{where} input {value.name!r}", required=not inner)
    seen: set[str] = set()
    tensors = [(t.name, t) for t in graph.initializer]
    for name, tensor in tensors:
        if not name:
            check.fault("an initializer has no name", where)
        elif name in seen:
            check.fault(f"initializer {name!r} appears twice", where)
        seen.add(name)
        if check_tensor(check.fault, tensor, f"initializer {name!r}") and name in names:
            _check_default(check, next(v for v in graph.input if v.name == name), tensor)
    for sparse in graph.sparse_initializer:
        if sparse.values.name in seen:
            check.fault(f"initializer {sparse.values.name!r} appears twice", where)
        seen.add(sparse.values.name)
        check_tensor(check.fault, sparse.values, f"initializer {sparse.values.name!r}")
        check_tensor(check.fault, sparse.indices, f"indices of {sparse.values.name!r}")
    names |= seen
    _check_nodes(check, graph.node, names, outer, versions, where)
    defined = names | outer | {o for n in graph.node for o in n.output}
    outputs: set[str] = set()
    for value in graph.output:
        if value.name not in defined or not value.name:
            check.fault(f"output {value.name!r} is made by no node", where, nearest(value.name, defined - {""}))
        if value.name in outputs and not inner:
            check.fault(f"output {value.name!r} appears twice", where)
        outputs.add(value.name)
    if not inner and not graph.output:
        check.fault("the graph has no outputs", where)


def _check_type(check: _Check, value: onnx.ValueInfoProto, where: str, *, required: bool) -> None:
    kind = value.type.WhichOneof("value")
    if kind is None:
        if required:
            check.fault("its type is missing", where)
        return
    if kind != "tensor_type":
        return
    tensor = value.type.tensor_type
    if tensor.elem_type not in _BITS:
        if required or tensor.elem_type:
            check.fault(f"unknown dtype {tensor.elem_type}", where)
        return
    dims = [d.dim_value for d in tensor.shape.dim if d.WhichOneof("value") == "dim_value"]
    if any(d < 0 for d in dims):
        return  # some exporters write -1 for a dynamic dimension; it is treated as one
    if math.prod(dims) * _BITS[tensor.elem_type] > MAX_BITS:
        check.fault(f"a shape of {dims} is larger than any memory", where)


def _check_default(check: _Check, value: onnx.ValueInfoProto, tensor: onnx.TensorProto) -> None:
    """An initializer of an input's name is its default value: it must be of the input's type."""
    declared = value.type.tensor_type
    if declared.elem_type in _BITS and declared.elem_type != tensor.data_type:
        kinds = [onnx.TensorProto.DataType.Name(kind) for kind in (tensor.data_type, declared.elem_type)]
        check.fault(f"is {kinds[0]}, the input of this name is {kinds[1]}", f"initializer {tensor.name!r}")
    dims = [d.dim_value if d.WhichOneof("value") == "dim_value" else -1 for d in declared.shape.dim]
    fits = len(dims) == len(tensor.dims) and all(a == b or a < 0 for a, b in zip(dims, tensor.dims, strict=True))
    if declared.HasField("shape") and not fits:
        check.fault(f"has shape {list(tensor.dims)}, the input of this name {dims}", f"initializer {tensor.name!r}")


def check_tensor(fault: object, tensor: onnx.TensorProto, where: str) -> bool:
    """Check dtype, dims and the amount of data of one tensor (external data: elsewhere). True when sound."""
    report = fault if callable(fault) else print  # keeps mypy calm about the callback's exact type
    if tensor.data_type not in _BITS:
        report(f"unknown dtype {tensor.data_type}", where)
        return False
    if any(d < 0 for d in tensor.dims):
        report(f"negative dimension in {list(tensor.dims)}", where)
        return False
    count = math.prod(tensor.dims)
    if count * _BITS[tensor.data_type] > MAX_BITS:
        report(f"a shape of {list(tensor.dims)} is larger than any memory", where)
        return False
    if tensor.HasField("segment"):
        report("segmented tensors are not supported", where)
        return False
    if tensor.data_location == onnx.TensorProto.EXTERNAL:
        if tensor.data_type == onnx.TensorProto.STRING:
            report("strings cannot be external data", where)
            return False
        return True
    name, per = next(
        ((f, kinds[tensor.data_type]) for f, kinds in _FIELDS.items() if tensor.data_type in kinds),
        ("int32_data", 1),
    )
    for other in (*_FIELDS, "int32_data"):
        if other != name and len(getattr(tensor, other)):
            report(f"holds values in {other}, where {onnx.TensorProto.DataType.Name(tensor.data_type)} has none", where)
            return False
    if tensor.HasField("raw_data"):
        expected, found, unit = tensor_bytes(tensor.data_type, tensor.dims), len(tensor.raw_data), "bytes"
    else:
        expected, found, unit = count * per, len(getattr(tensor, name)), f"elements in {name}"
        if _BITS[tensor.data_type] < 8 and found != count:
            expected = (count * _BITS[tensor.data_type] + 7) // 8
    if expected != found:
        report(f"holds {found} {unit} where its shape {list(tensor.dims)} needs {expected}", where)
        return False
    return True


def _label(node: onnx.NodeProto, index: int) -> str:
    return f"node {node.name!r} ({node.op_type})" if node.name else f"node #{index} ({node.op_type})"


def _check_nodes(
    check: _Check,
    nodes: Iterable[onnx.NodeProto],
    names: set[str],
    outer: set[str],
    versions: dict[str, int],
    where: str,
    *,
    in_function: bool = False,
) -> None:
    producers: dict[str, int] = {}
    listed = list(nodes)
    for i, node in enumerate(listed):
        for output in node.output:
            if not output:
                continue
            if output in producers or output in names:
                check.fault(f"makes {output!r}, which exists already", _label(node, i))
            producers[output] = i
    visible = names | outer
    for i, node in enumerate(listed):
        label = _label(node, i)
        for name in node.input:
            if name and name not in visible and name not in producers:
                check.fault(f"reads {name!r}, which nothing makes", label, nearest(name, visible | set(producers)))
        _check_node(check, node, label, versions, in_function=in_function)
        for attr in node.attribute:
            for graph in (attr.g, *attr.graphs) if attr.type in (_ATTRIBUTE.GRAPH, _ATTRIBUTE.GRAPHS) else ():
                if attr.type == _ATTRIBUTE.GRAPHS and graph is attr.g:
                    continue
                _check_graph(check, graph, visible | set(producers), versions, f"{label} {attr.name}", inner=True)
    cycle = _find_cycle(listed, producers)
    if cycle:
        check.fault("the nodes wait for one another: " + " -> ".join(cycle), where)


def _reads(node: onnx.NodeProto) -> set[str]:
    """Names a node reads, those of its subgraphs included (a superset: inner names may be among them)."""
    names = set(node.input)
    for attr in node.attribute:
        for graph in (attr.g, *attr.graphs) if attr.type in (_ATTRIBUTE.GRAPH, _ATTRIBUTE.GRAPHS) else ():
            inner = {o for n in graph.node for o in n.output} | {v.name for v in graph.input}
            for sub in graph.node:
                names |= _reads(sub) - inner
            names |= {v.name for v in graph.output} - inner
    return names


def _find_cycle(nodes: list[onnx.NodeProto], producers: dict[str, int]) -> list[str]:
    waits = [{producers[n] for n in _reads(node) if n in producers} for node in nodes]
    if all(not w or max(w) < i for i, w in enumerate(waits)):
        return []
    users: list[list[int]] = [[] for _ in nodes]
    for i, needs in enumerate(waits):
        for j in needs:
            users[j].append(i)
    count = [len(w) for w in waits]
    ready = [i for i, c in enumerate(count) if not c]
    done = 0
    while ready:
        i = ready.pop()
        done += 1
        for user in users[i]:
            count[user] -= 1
            if not count[user]:
                ready.append(user)
    if done == len(nodes):
        return []
    start = next(i for i, c in enumerate(count) if c)
    path, at = [start], start
    for _ in nodes:
        at = next(j for j in sorted(waits[at]) if count[j])
        if at in path:
            path = [*path[path.index(at) :], at]
            break
        path.append(at)
    return [_label(nodes[i], i) for i in reversed(path)][:8]


@functools.cache
def _known_ops(version: int) -> frozenset[str]:
    return frozenset(s.name for s in onnx.defs.get_all_schemas_with_history() if not s.domain)


def _attribute_type(known: Any) -> int:
    return int(known.type)  # an enum of the C extension, whose stub does not say so


def _check_node(
    check: _Check, node: onnx.NodeProto, label: str, versions: dict[str, int], *, in_function: bool
) -> None:
    domain = "" if node.domain == "ai.onnx" else node.domain
    if (node.domain, node.op_type) in check.functions:
        return
    if domain not in versions:
        check.fault(f"domain {domain or 'ai.onnx'!r} is not imported", label, "add it to the model's opset_import")
        return
    schema = schema_of(domain, node.op_type, versions[domain])
    if schema is None:
        if not domain and node.op_type not in IN_AI_ONNX | check.also:
            hint = nearest(node.op_type, _known_ops(0)) if node.op_type not in _known_ops(0) else ""
            check.fault(f"opset {versions[domain]} has no op {node.op_type!r}", label, hint)
        return
    inputs, outputs = len(node.input), len(node.output)
    if not schema.min_input <= inputs <= schema.max_input:
        check.fault(f"has {inputs} inputs, takes {schema.min_input} to {schema.max_input}", label)
    if not schema.min_output <= outputs <= schema.max_output:
        check.fault(f"has {outputs} outputs, makes {schema.min_output} to {schema.max_output}", label)
    optional = onnx.defs.OpSchema.FormalParameterOption.Optional
    for i, name in enumerate(node.input):
        if not name and i < len(schema.inputs) and i < schema.min_input and schema.inputs[i].option != optional:
            check.fault(f"input {i} ({schema.inputs[i].name}) is missing", label)
    given: set[str] = set()
    for attr in node.attribute:
        if attr.name in given:
            check.fault(f"attribute {attr.name!r} appears twice", label)
        given.add(attr.name)
        known = schema.attributes.get(attr.name)
        if attr.ref_attr_name:
            if not in_function:
                check.fault(f"attribute {attr.name!r} refers to a function's attribute outside a function", label)
            continue
        if known is None:
            if domain == "" and not attr.name.startswith("__"):
                check.fault(f"has no attribute {attr.name!r}", label, nearest(attr.name, schema.attributes))
        elif (wanted := _attribute_type(known)) != attr.type:
            have = _ATTRIBUTE.Name(attr.type) if attr.type in _ATTRIBUTE.values() else attr.type
            check.fault(f"attribute {attr.name!r} is {have}, must be {_ATTRIBUTE.Name(wanted)}", label)
        for tensor in [attr.t] if attr.type == _ATTRIBUTE.TENSOR else attr.tensors:
            check_tensor(check.fault, tensor, f"{label} attribute {attr.name!r}")
    for name, known in schema.attributes.items():
        if known.required and name not in given:
            check.fault(f"attribute {name!r} is missing", label)

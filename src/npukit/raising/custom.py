# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""Raises ops of op packages as the plugins in use say: by a function of theirs, by the body, or to a node they compute.

What a plugin defines is about real values: an encoded tensor is dequantized before and quantized after, and 16-bit
floats are computed in 32.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from npukit import plugins
from npukit.errors import Fault, GraphError, NpukitError
from npukit.frontends.onnx import LoadOptions, expand_functions, load
from npukit.frontends.onnx.rewrite import NEWEST, schema_of
from npukit.qnn.graph import Op, TensorKind
from npukit.raising.emit import Attribute, Emit
from npukit.raising.registry import Raised, RaiseFunction, Unraisable

_SMALL = 4096  # elements up to which a constant may decide the body's shapes
_NARROW = (ir.DataType.FLOAT16, ir.DataType.BFLOAT16)


def custom_raiser(op: Op) -> RaiseFunction | None:
    """The function that raises an op of an op package; None where no plugin in use says how."""
    custom = plugins.find_raising(op.package, op.type)
    if custom is None:
        return None
    given = custom.raises.get(f"{op.package}::{op.type}")
    return lambda e: _by_function(e, custom, given) if given is not None else _by_definition(e, custom)


def attributes(op: Op) -> dict[str, Attribute]:
    """The params of an op as attributes of an ONNX node; those of several axes flat."""
    found: dict[str, Attribute] = {}
    for name, param in op.params.items():
        plain = param.value.tolist() if isinstance(param.value, np.ndarray) else param.value
        flat = list(np.ravel(plain)) if isinstance(plain, list) else None
        if flat is None:
            found[name] = int(plain) if isinstance(plain, bool) else plain
        else:
            found[name] = [v.item() if isinstance(v, np.generic) else v for v in flat]
    return found


def _by_function(e: Emit, custom: plugins.CustomOp, given: RaiseFunction) -> Raised:
    try:
        return given(e)
    except (Unraisable, NpukitError):
        raise
    except Exception as error:
        raise _broken(e, f"{custom.broken('fails to raise it')}: {type(error).__name__}: {error}") from error


def _by_definition(e: Emit, custom: plugins.CustomOp) -> Raised:
    """The op as the source had it, on real values; replaced by its body where it has one."""
    inputs = [e.real(i) if e.has(i) else None for i in range(len(e.op.inputs))]
    inputs = [e.cast(v, ir.DataType.FLOAT) if v is not None and v.dtype in _NARROW else v for v in inputs]
    if custom.function is not None:
        return _body(e, custom, inputs)
    node = e.build.node(custom.name, inputs, len(e.op.outputs), attributes(e.op), custom.domain)
    for value, tensor in zip(node.outputs, e.op.outputs, strict=True):
        real = e.real_type(tensor)
        value.dtype, value.shape = ir.DataType.FLOAT if real in _NARROW else real, ir.Shape(tensor.shape)
    return list(node.outputs)


def _body(e: Emit, custom: plugins.CustomOp, inputs: list[ir.Value | None]) -> Raised:
    """The nodes of the body for this very node, in the opset of the raised model."""
    # A body is written in an opset of its own, and ONNX Runtime takes a function's nodes as of the model's opset: so
    # the front end rewrites it, as a model of one node.
    formal = [None if value is None else _formal(index, value) for index, value in enumerate(inputs)]
    node = ir.node(custom.name, formal, attributes(e.op), num_outputs=len(e.op.outputs), domain=custom.domain)
    for index, (value, tensor) in enumerate(zip(node.outputs, e.op.outputs, strict=True)):
        value.name = f"output{index}" if tensor.kind is not TensorKind.NULL else ""
    known = [value for value in formal if value is not None]
    graph = ir.Graph(
        [value for value in known if value.const_value is None],
        [value for value in node.outputs if value.name],
        nodes=[node],
        initializers=[value for value in known if value.const_value is not None],
        opset_imports={"": NEWEST, custom.domain: 1},
        name=custom.name,
    )
    try:
        model = load(ir.Model(graph, ir_version=10), LoadOptions()).model
        expand_functions(model, lambda domain, op, _: _stays(domain, op, e.opset))
    except NpukitError as error:
        raise _broken(e, f"{custom.broken('gives a body that does not fit')}: {_text(error)}") from error
    places = {value.name: given for value, given in zip(formal, inputs, strict=True) if value is not None}
    return _spliced(e, model.graph, places)


def _formal(index: int, value: ir.Value) -> ir.Value:
    constant = value.const_value
    known = constant if constant is not None and constant.size <= _SMALL else None
    kind = None if value.dtype is None else ir.TensorType(value.dtype)
    return ir.Value(name=f"input{index}", shape=value.shape, type=kind, const_value=known)


def _stays(domain: str, op_type: str, opset: int) -> bool:
    """Whether ONNX Runtime, or npukit beside it, computes an op as it is."""
    custom = plugins.find(domain, op_type)
    if custom is not None:
        return custom.function is None
    schema = schema_of(domain, op_type, NEWEST)
    return bool(domain) or schema is None or schema.since_version <= opset


def _spliced(e: Emit, graph: ir.Graph, places: dict[str | None, ir.Value | None]) -> list[ir.Value]:
    """Move the nodes of `graph` behind what was built so far; gives the values that are its outputs."""
    build = e.build
    for value in (*graph.inputs, *graph.initializers.values()):
        real = places.get(value.name)
        if real is None:
            assert value.const_value is not None
            real = build.constant(value.const_value.numpy())
        value.replace_all_uses_with(real, replace_graph_outputs=True)
    made = list(graph.outputs)
    graph.outputs.clear()
    nodes = list(graph)
    graph.remove(nodes)
    for node in nodes:
        node.name, node.version = None, None
        for value in node.outputs:
            value.name = None
    build.nodes.extend(nodes)
    return made


def _broken(e: Emit, what: str) -> GraphError:
    where = f"op {e.op.name!r} ({e.op.package}::{e.op.type})"
    return GraphError("a graph that cannot be raised", faults=[Fault(what, where)])


def _text(error: NpukitError) -> str:
    return "; ".join([fault.what for fault in error.faults] or [error.what])

# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""QNN graph to ONNX: one pass over the ops, each by its registered function."""

from __future__ import annotations

from functools import cache
from typing import Literal

import onnx
import onnx_ir as ir

from npukit import plugins
from npukit.errors import GraphError, UsageError
from npukit.qnn.graph import DType, Graph, Op, Tensor, TensorKind
from npukit.raising.custom import attributes, custom_raiser
from npukit.raising.emit import Build, Emit, ir_type
from npukit.raising.registry import OPSETS, RAISERS, Raised, Unraisable

QTI_DOMAIN = "qti.aisw"
_OLDEST_OPSET = 21  # 16-bit QuantizeLinear and DequantizeLinear
_RUNTIME_DOMAINS = ("ai.onnx.ml", "com.microsoft")  # bodies of plugins may use them
_IR_VERSION = 10  # the first that goes with opset 21; nothing newer is used

Quantized = Literal["qdq", "float"]


@cache
def newest_opset() -> int:
    """The newest ai.onnx opset that the installed ONNX Runtime loads, at least 21.

    Raises GraphError where it loads none of them.
    """
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level = 4
    value = onnx.helper.make_tensor_value_info
    for opset in range(onnx.defs.onnx_opset_version(), _OLDEST_OPSET - 1, -1):
        node = onnx.helper.make_node("Identity", ["x"], ["y"])
        graph = onnx.helper.make_graph([node], "probe", [value("x", 1, [1])], [value("y", 1, [1])])
        model = onnx.helper.make_model(
            graph, opset_imports=[onnx.helper.make_opsetid("", opset)], ir_version=_IR_VERSION
        )
        try:
            ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        except Exception:  # noqa: S112 - the runtime's exceptions have no common public base
            continue
        return opset
    raise GraphError(
        f"the installed ONNX Runtime {ort.__version__} loads no opset from {_OLDEST_OPSET} on",
        hint="update onnxruntime to 1.20 or newer",
    )


def unraised(model: ir.Model) -> list[ir.Node]:
    """Nodes of a raised model that ONNX Runtime by itself does not run, as they have no ONNX expression."""
    return [node for node in model.graph if node.domain and node.domain not in _RUNTIME_DOMAINS]


def refuse_foreign(model: ir.Model, where: str = "") -> None:
    """Raise UsageError, which names them all, where a raised model has ops that nobody here can run."""
    found = sorted({(n.domain, n.op_type) for n in unraised(model) if not _computed(n)})
    if not found:
        return
    packages = sorted({domain for domain, _ in found} - {QTI_DOMAIN})
    hint = "run it with --backend qnn-cpu"
    if packages:
        hint = f"name a plugin (--plugin) that raises ops of {', '.join(packages)}: by body, compute or raises"
    raise UsageError(
        f"the graph has ops without ONNX expression: {', '.join(name for _, name in found)}", where=where, hint=hint
    )


def _computed(node: ir.Node) -> bool:
    """Whether a plugin in use computes it."""
    custom = plugins.find(node.domain, node.op_type)
    return custom is not None and custom.compute is not None


def raise_graph(graph: Graph, *, quantized: Quantized = "qdq", opset: int | None = None) -> ir.Model:
    """The ONNX model of a QNN graph: native tensors in and out, tensor names as value names, op names kept.

    Args:
        graph: a QNN graph; its static data is referred to, not copied.
        quantized: "qdq" simulates every encoding (integer codes at inputs and outputs; tensor `t` holds codes
            as value `t` and real values as `t/real`); "float" ignores encodings of computed tensors and
            computes in float32 with dequantized constants.
        opset: ai.onnx opset, at least 21; None for the newest that the installed ONNX Runtime loads and has
            kernels for.

    Raises GraphError for a graph that cannot be raised, UsageError for a bad option.
    """
    if quantized not in ("qdq", "float"):
        raise UsageError(f"no such handling of encodings: {quantized!r}", hint="use 'qdq' or 'float'")
    limits = [OPSETS[op.type] for op in graph.ops if op.type in OPSETS]
    version = min([newest_opset(), *limits]) if opset is None else opset
    if version < _OLDEST_OPSET:
        raise UsageError(f"opset {version} is too old", hint=f"{_OLDEST_OPSET} is the oldest")
    build = Build({tensor.name for tensor in graph.tensors()}, quantized, version)
    inputs = [_input(build, tensor) for tensor in graph.inputs]
    for op in graph.ops:
        _raise_op(build, op)
    outputs = [_output(build, tensor) for tensor in graph.outputs]
    imports = {node.domain: 1 for node in build.nodes} | {"": version}
    raised = ir.Graph(
        inputs, outputs, nodes=build.nodes, initializers=_used(build), opset_imports=imports, name=graph.name or "graph"
    )
    return ir.Model(raised, ir_version=_IR_VERSION, producer_name="npukit")


def _used(build: Build) -> list[ir.Value]:
    return [value for value in build.initializers if value.uses()]


def _input(build: Build, tensor: Tensor) -> ir.Value:
    floating = tensor.dtype.is_quantized and not build.qdq
    dtype = ir.DataType.FLOAT if floating else ir_type(tensor.dtype)
    value = ir.Value(name=tensor.name, shape=ir.Shape(tensor.shape), type=ir.TensorType(dtype))
    build.codes[id(tensor)] = value
    return value


def _output(build: Build, tensor: Tensor) -> ir.Value:
    value = build.codes.get(id(tensor))
    if value is None:
        raise GraphError("a graph output that no op makes", where=f"tensor {tensor.name!r}")
    return value


def _raise_op(build: Build, op: Op) -> None:
    """Append one op's nodes; where it has no ONNX expression a node of its own."""
    emit = Emit(build, op)
    function = RAISERS.get(op.type) if op.package == QTI_DOMAIN else custom_raiser(op)
    try:
        if function is None:
            raise Unraisable(op.type)
        _settle(emit, function(emit))
    except Unraisable:
        build.cut(emit.first)
        _keep(emit)


def _settle(emit: Emit, raised: Raised) -> None:
    """Give every output tensor its value: type, shape, name, and codes where it is encoded."""
    build, op = emit.build, emit.op
    values = [raised] if isinstance(raised, ir.Value) else list(raised)
    body = len(build.nodes)
    for tensor, value in zip(op.outputs, values, strict=False):
        if value is None or tensor.kind is TensorKind.NULL:
            continue
        _finish(emit, tensor, emit.cast(value, emit.real_type(tensor)), body)
    missing = [t.name for t in op.outputs if t.kind is not TensorKind.NULL and id(t) not in build.codes]
    if missing:
        raise emit.error(f"output {missing[0]!r} has no ONNX expression")
    _name_nodes(build, emit, op.name, body)


def _finish(emit: Emit, tensor: Tensor, value: ir.Value, body: int) -> None:
    build = emit.build
    encoded = tensor.dtype.is_quantized and build.qdq
    if encoded:
        if value.name is None:
            value.name = build.unique(f"{tensor.name}/exact")
        codes = emit.quantize(value, tensor)
    elif tensor.dtype is DType.BFLOAT_16:
        codes = emit.cast(value, ir.DataType.BFLOAT16)
    else:
        codes = value
    if codes.name is not None or codes.producer() is None:
        codes = build.node("Identity", [codes], 1, {}).outputs[0]
    codes.name = tensor.name
    floating = tensor.dtype.is_quantized and not build.qdq
    codes.dtype = ir.DataType.FLOAT if floating else ir_type(tensor.dtype)
    codes.shape = ir.Shape(tensor.shape)
    build.codes[id(tensor)] = codes


def _keep(emit: Emit) -> None:
    """A node of the QNN op itself: native values in and out, params as attributes."""
    build, op = emit.build, emit.op
    inputs = [None if t is None or t.kind is TensorKind.NULL else emit.codes(i) for i, t in enumerate(op.inputs)]
    node = build.node(op.type, inputs, len(op.outputs), attributes(op), op.package)
    for value, tensor in zip(node.outputs, op.outputs, strict=True):
        value.name, value.shape = tensor.name, ir.Shape(tensor.shape)
        floating = tensor.dtype.is_quantized and not build.qdq
        value.dtype = ir.DataType.FLOAT if floating else ir_type(tensor.dtype)
        build.codes[id(tensor)] = value
    _name_nodes(build, emit, op.name)


def _name_nodes(build: Build, emit: Emit, name: str, body: int | None = None) -> None:
    """Name the nodes of one op: its last computing node gets the op's name, the others a suffix.

    `body` is where its computing nodes end and those of output encodings begin.
    """
    made = [node for node in build.nodes[emit.first :] if node.name is None]
    computing = [node for node in build.nodes[emit.first : body] if node.name is None]
    main = next(reversed(computing or made), None)
    for index, node in enumerate(made):
        node.name = name if node is main else build.unique(f"{name}/{index}_{node.op_type}")
        node.metadata_props["qnn_op"], node.metadata_props["qnn_type"] = emit.op.name, emit.op.type
        for position, value in enumerate(node.outputs):
            if value.name is None:
                suffix = f"/{position}" if position else ""
                value.name = build.unique(f"{name}/{index}{suffix}")

# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""ONNX seeds: backend tests of the onnx project, the digits models, and models made here for what those lack."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper, parser

from conformance import cases
from fuzz.mutate import Files

_ROOT = Path(__file__).resolve().parents[1]
_MAX_BYTES = 30_000

_TEXTS = {
    "function": """
        <ir_version: 8, opset_import: ["" : 17, "own" : 1]>
        g (float[2,8] x) => (float[2,8] y) { t = own.Scaled <alpha = 0.5> (x)  y = own.Scaled <alpha = 2.0> (t) }
        <domain: "own", opset_import: ["" : 17]>
        Scaled <alpha> (a) => (b) { c = Constant <value_float: float = @alpha> ()  d = Mul (a, c)  b = Relu (d) }""",
    "if": """
        <ir_version: 8, opset_import: ["" : 17]>
        g (float[2,8] x) => (float[2,8] y) <bool condition = {1}> {
          y = If (condition) <then_branch = a () => (float[2,8] p) { p = Relu (x) },
                              else_branch = b () => (float[2,8] q) { q = Neg (x) }> }""",
    "loop": """
        <ir_version: 8, opset_import: ["" : 17]>
        g (float[2,8] x) => (float[2,8] y) <int64 trips = {3}, bool go = {1}> {
          y = Loop (trips, go, x) <body = b (int64 i, bool on, float[2,8] a) => (bool on_out, float[2,8] c)
            { on_out = Identity (on)  c = Add (a, x) }> }""",
    "symbolic": """
        <ir_version: 8, opset_import: ["" : 17]>
        g (float[n,8] x, float[n,8] z) => (float[n,16] y) { y = Concat <axis = 1> (x, z) }""",
    "shape-chain": """
        <ir_version: 8, opset_import: ["" : 17]>
        g (float[2,3,4] x) => (float[2,12] y) <int64[1] first = {0}, int64[1] rest = {-1}> {
          s = Shape (x)  n = Gather <axis = 0> (s, first)  t = Concat <axis = 0> (n, rest)  y = Reshape (x, t) }""",
    "attention": """
        <ir_version: 10, opset_import: ["" : 21]>
        g (float[1,4,8] q, float[1,4,8] k, float[1,4,8] v) => (float[1,4,8] y) <float scale = {0.35}> {
          t = Transpose <perm = [0, 2, 1]> (k)  s = MatMul (q, t)  m = Mul (s, scale)  p = Softmax <axis = -1> (m)
          y = MatMul (p, v) }""",
    "gather-where": """
        <ir_version: 8, opset_import: ["" : 17]>
        g (int64[4] ids, bool[4,1] keep) => (float[4,3] y)
        <float[5,3] table = {0.0,1.0,2.0,3.0,4.0,5.0,6.0,7.0,8.0,9.0,10.0,11.0,12.0,13.0,14.0}, float zero = {0.0}> {
          e = Gather <axis = 0> (table, ids)  y = Where (keep, e, zero) }""",
}  # fmt: skip


def seeds(count: int) -> dict[str, Files]:
    """At least `count` seeds by name (fewer backend tests for a small count); each is one model and its data files."""
    found: dict[str, Files] = {name: {"model.onnx": _parse(text)} for name, text in _TEXTS.items()}
    found["external"] = _external()
    found["qdq"] = {"model.onnx": _qdq()}
    found["lstm"] = {"model.onnx": _lstm()}
    for name in ("digits", "digits_qdq"):
        found[name] = {"model.onnx": (_ROOT / "examples" / "digits" / f"{name}.onnx").read_bytes()}
    if count > len(found):
        for name, data in _backend_tests(count - len(found)):
            found[name] = {"model.onnx": data}
    return found


def _parse(text: str) -> bytes:
    return parser.parse_model(text).SerializeToString(deterministic=True)


def _backend_tests(count: int) -> list[tuple[str, bytes]]:
    """One backend test per leading op, every second with inputs turned into constants, then more of them."""
    root = cases.write_cache(_ROOT / "results" / "cases")
    by_op: dict[str, list[str]] = {}
    for name in sorted(cases.table().cases):
        path = root / name / "model.onnx"
        if path.exists() and path.stat().st_size < _MAX_BYTES:
            by_op.setdefault(name.removesuffix("_expanded").split("_")[1], []).append(name)
    rounds = max(len(names) for names in by_op.values())
    order = [names[i] for i in range(rounds) for names in by_op.values() if i < len(names)]
    step = max(1, len(by_op) // count) if count else 1  # a small count still spreads over all ops
    found: list[tuple[str, bytes]] = []
    for number, name in enumerate(order[::step] if step > 1 else order):
        if len(found) == count:
            break
        case = cases.load(root, name)
        letters = ("b", "c", "a") if number % 2 else ("a",)
        changed = next(c for letter in letters if (c := cases.variant(case, letter)) is not None)
        data = changed.model.SerializeToString(deterministic=True)
        if len(data) < _MAX_BYTES:
            found.append((name.replace("/", "-"), data))
    return found


def _model(nodes: list[onnx.NodeProto], inputs: dict[str, list[int]], outputs: dict[str, list[int]],
           constants: list[onnx.TensorProto]) -> onnx.ModelProto:  # fmt: skip
    def infos(shapes: dict[str, list[int]]) -> list[onnx.ValueInfoProto]:
        return [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in shapes.items()]

    graph = helper.make_graph(nodes, "g", infos(inputs), infos(outputs), constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def _weights(name: str, *shape: int) -> onnx.TensorProto:
    values = np.random.default_rng(len(name)).standard_normal(shape).astype(np.float32)
    return numpy_helper.from_array(values, name)


def _external() -> Files:
    """A convolution whose weights lie in a file beside the model."""
    nodes = [helper.make_node("Conv", ["x", "w", "b"], ["y"], "conv", pads=[1, 1, 1, 1])]
    tensors, data = [_weights("w", 4, 3, 3, 3), _weights("b", 4)], b""
    for tensor in tensors:
        content = tensor.raw_data
        tensor.ClearField("raw_data")
        tensor.data_location = TensorProto.EXTERNAL
        for key, value in (("location", "weights.bin"), ("offset", len(data)), ("length", len(content))):
            tensor.external_data.add(key=key, value=str(value))
        data += content
    model = _model(nodes, {"x": [1, 3, 8, 8]}, {"y": [1, 4, 8, 8]}, tensors)
    return {"model.onnx": model.SerializeToString(deterministic=True), "weights.bin": data}


def _qdq() -> bytes:
    """A quantized convolution and addition, as a quantizer writes it."""
    scale = numpy_helper.from_array(np.float32(0.05), "s")
    zero = numpy_helper.from_array(np.uint8(128), "z")
    weight = numpy_helper.from_array(np.arange(-54, 54, dtype=np.int8).reshape(4, 3, 3, 3), "wq")
    scales = numpy_helper.from_array(np.float32([0.01, 0.02, 0.03, 0.04]), "ws")
    zeros = numpy_helper.from_array(np.zeros(4, np.int8), "wz")
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["xq"]),
        helper.make_node("DequantizeLinear", ["xq", "s", "z"], ["xd"]),
        helper.make_node("DequantizeLinear", ["wq", "ws", "wz"], ["wd"], axis=0),
        helper.make_node("Conv", ["xd", "wd"], ["c"]),
        helper.make_node("QuantizeLinear", ["c", "s", "z"], ["cq"]),
        helper.make_node("DequantizeLinear", ["cq", "s", "z"], ["y"]),
    ]
    model = _model(nodes, {"x": [1, 3, 8, 8]}, {"y": [1, 4, 6, 6]}, [scale, zero, weight, scales, zeros])
    return bytes(model.SerializeToString(deterministic=True))


def _lstm() -> bytes:
    nodes = [helper.make_node("LSTM", ["x", "w", "r", "b"], ["y", "h"], hidden_size=5)]
    constants = [_weights("w", 1, 20, 3), _weights("r", 1, 20, 5), _weights("b", 1, 40)]
    model = _model(nodes, {"x": [4, 1, 3]}, {"y": [4, 1, 1, 5], "h": [1, 1, 5]}, constants)
    return bytes(model.SerializeToString(deterministic=True))


def identity(shape: tuple[int, ...]) -> bytes:
    """A model that gives its one input back."""
    model = _model([helper.make_node("Relu", ["x"], ["y"])], {"x": list(shape)}, {"y": list(shape)}, [])
    return bytes(model.SerializeToString(deterministic=True))

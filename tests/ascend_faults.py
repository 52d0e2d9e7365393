# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""Models with one fault, or none, of what no row of one op says: opset, names, domains, dtypes, float16, shapes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import onnx
from onnx import helper

from tests.ascend_cases import KIND, NODE, RECIPES, Case, Unmade, build, const, one_node, tensor, typed

# facts 4.1: ONNX ops that no plugin of CANN 9 registers
NO_PARSER = (
    *("Gelu", "RMSNormalization", "RotaryEmbedding", "Attention", "GroupNormalization", "Swish"),
    *("QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear", "QLinearMatMul", "QLinearConv", "MatMulInteger"),
    *("Loop", "Scan", "STFT", "DFT", "Optional"),
)
# of other domains, or never ONNX's
FOREIGN = (
    *(("com.microsoft", op) for op in ("GroupQueryAttention", "SkipLayerNormalization", "MatMulNBits")),
    ("my.domain", "Mine"),
)


def _relu(**changed: Any) -> onnx.ModelProto:
    node = helper.make_node("Relu", ["x"], ["y"], name=NODE)
    kind, shape = changed.pop("kind", "float32"), changed.pop("shape", (2, 3))
    return build([node], [tensor("x", kind, shape)], [tensor("y", kind, shape)], **changed)


def _chain(*nodes: onnx.NodeProto, constants: Any = (), kind: str = "float32", opset: int = 14) -> onnx.ModelProto:
    """Nodes from x to y, both [2, 3]."""
    return build(list(nodes), [tensor("x", kind, (2, 3))], [tensor("y", kind, (2, 3))], list(constants), opset)


def _squares(
    square: str, total: str, kind: str = "float32", scaled: bool = False, centred: bool = False
) -> onnx.ModelProto:
    """x / root(mean of squares), with x divided by its largest magnitude first, or not."""
    node, float_type = helper.make_node, helper.tensor_dtype_to_np_dtype(KIND[kind])
    nodes, x, constants = [], "x", [const(np.array(2, float_type), "two"), const(np.array([-1]), "axes")]
    if scaled:
        nodes += [
            node("Abs", ["x"], ["a"]), node("ReduceMax", ["a"], ["m"], axes=[-1]),
            node("Max", ["m", "two"], ["s"]), node("Div", ["x", "s"], ["scaled"]),
        ]  # fmt: skip
        x = "scaled"
    if centred:
        nodes += [node("ReduceMean", ["x"], ["mean"], axes=[-1]), node("Sub", ["x", "mean"], ["centred"])]
        x = "centred"
    nodes += [node("Mul", [x, x], ["q"]) if square == "Mul" else node("Pow", [x, "two"], ["q"])]
    axes = {"inputs": ["q"], "axes": [-1]} if total == "ReduceMean" else {"inputs": ["q", "axes"]}
    nodes += [
        node(total, axes.pop("inputs"), ["t"], name=NODE, **axes),
        node("Add", ["t", "two"], ["e"]), node("Sqrt", ["e"], ["r"]), node("Div", [x, "r"], ["y"]),
    ]  # fmt: skip
    for i, made in enumerate(nodes):
        made.name = made.name or f"node{i}"
    return _chain(*nodes, constants=constants, kind=kind)


def _mask(value: float, kind: str = "float32") -> onnx.ModelProto:
    array = np.zeros((2, 3), helper.tensor_dtype_to_np_dtype(KIND[kind]))
    array[0, 1] = value
    nodes = [
        helper.make_node("Add", ["x", "m"], ["a"], name=NODE),
        helper.make_node("Softmax", ["a"], ["y"], name="s"),
    ]
    return _chain(*nodes, constants=[const(array, "m")], kind=kind)


def _product(op: str, kind: str) -> onnx.ModelProto:
    inputs, attributes = RECIPES[op]
    inputs = [
        x.astype(helper.tensor_dtype_to_np_dtype(KIND[kind])) if isinstance(x, np.ndarray) else (kind, x[1])
        for x in inputs
    ]
    return one_node(op, 14, (inputs, attributes))


def _loop(op: str) -> onnx.ModelProto:
    value = tensor("b", "float32", (2, 3))
    again = [tensor("i", "int64", ()), tensor("c", "bool", ())] if op == "Loop" else []
    body = helper.make_graph(
        [helper.make_node("Relu", ["b"], ["b2"], name="r"),
         *([helper.make_node("Identity", ["c"], ["c2"], name="i2")] if again else [])],
        "body", [*again, value],
        [*([tensor("c2", "bool", ())] if again else []), tensor("b2", "float32", (2, 3))],
    )  # fmt: skip
    if op == "Scan":
        node = helper.make_node("Scan", ["x"], ["y"], name=NODE, body=_scan_body(), num_scan_inputs=1)
        return _chain(node)
    node = helper.make_node("Loop", ["n", "go", "x"], ["y"], name=NODE, body=body)
    return _chain(node, constants=[const(np.array(3), "n"), const(np.array(True), "go")])


def _scan_body() -> onnx.GraphProto:
    row = tensor("row", "float32", (3,)), tensor("out", "float32", (3,))
    return helper.make_graph([helper.make_node("Relu", ["row"], ["out"], name="r")], "body", [row[0]], [row[1]])


def _unparsed(op: str) -> onnx.ModelProto:
    """The op in an opset that atc reads, where ONNX has it there, else in its first."""
    if op in ("Loop", "Scan"):
        return _loop(op)
    scale, zero = const(np.array(0.1, np.float32), "s"), const(np.array(128, np.uint8), "z")
    made: dict[str, tuple[list[str], dict[str, Any], str, str]] = {
        "QuantizeLinear": (["x", "s", "z"], {}, "float32", "uint8"),
        "DequantizeLinear": (["x", "s", "z"], {}, "uint8", "float32"),
        "DynamicQuantizeLinear": (["x"], {}, "float32", "uint8"),
        "MatMulInteger": (["x", "w"], {}, "uint8", "int32"),
        "QLinearMatMul": (["x", "s", "z", "w", "s", "z", "s", "z"], {}, "uint8", "uint8"),
        "QLinearConv": (["x", "s", "z", "k", "s", "z", "s", "z"], {}, "uint8", "uint8"),
        "DFT": (["x"], {}, "float32", "float32"),
        "STFT": (["x", "step", "", "length"], {}, "float32", "float32"),
        "Optional": (["x"], {}, "float32", "float32"),
        "GroupNormalization": (["x", "two", "two"], {"num_groups": 2}, "float32", "float32"),
    }
    inputs, attributes, kind, result = made.get(op, (["x"], {}, "float32", "float32"))
    outputs = ["y", "y_scale", "y_zero"] if op == "DynamicQuantizeLinear" else ["y"]
    shape = {"QLinearConv": (1, 1, 4, 4), "DFT": (1, 4, 1), "STFT": (1, 8, 1), "GroupNormalization": (1, 2, 3)}.get(
        op, (2, 3)
    )
    arrays = {
        "w": np.ones((3, 2), np.uint8), "k": np.ones((1, 1, 3, 3), np.uint8), "two": np.ones(2, np.float32),
        "step": np.array(2), "length": np.array(4),
    }  # fmt: skip
    constants = [scale, zero, *(const(array, name) for name, array in arrays.items())]
    node = helper.make_node(op, inputs, outputs, name=NODE, **attributes)
    history = onnx.defs.get_all_schemas_with_history()
    opset = max(14, min(s.since_version for s in history if s.name == op and not s.domain))
    known = shape if op == "GroupNormalization" else None  # onnx infers nothing of it
    results = [tensor("y", result, known), *(tensor(name, "float32", None) for name in outputs[1:])]
    read = [c for c in constants if c.name in inputs]
    return typed(build([node], [tensor("x", kind, shape)], results, read, opset))


def general_cases() -> Iterator[Case | Unmade]:
    """Opsets, names, domains, dtypes, precision modes, float16 and shapes (facts 4.1, 4.3 to 4.8)."""
    node = helper.make_node
    for cann, opset, rule in (
        ("8.0", 10, "atc-opset"), ("8.0", 11, ""), ("8.0", 15, ""), ("8.0", 16, "atc-opset"), ("8.0.RC2", 15, ""),
        ("8.2", 15, ""), ("8.2", 16, "atc-opset-unverified"), ("8.2.RC1", 18, "atc-opset-unverified"),
        ("8.5", 19, "atc-opset"), ("9.0", 18, ""), ("9.0", 19, "atc-opset"), ("9.1", 11, ""), ("9.1", 9, "atc-opset"),
    ):  # fmt: skip
        yield Case(f"opset-{cann}-{opset}", _relu(opset=opset), cann, rule=rule, where="opset_import")
    twice = [node("Relu", ["x"], ["a"], name="same"), node("Relu", ["a"], ["y"], name="same")]
    yield Case("names-twice", _chain(*twice), "8.2", rule="atc-name", source="E13009", where="same")
    given = [node("Relu", ["x"], ["a"], name="Relu_1"), node("Relu", ["a"], ["y"])]
    yield Case("names-of-place", _chain(*given), "8.2", rule="atc-name", source="E13009", where="Relu_1")
    yield Case("names-none", _chain(node("Relu", ["x"], ["a"]), node("Relu", ["a"], ["y"])), "8.2")
    for domain, op in FOREIGN:
        model = _chain(node(op, ["x"], ["y"], name=NODE, domain=domain))
        model.opset_import.append(helper.make_opsetid(domain, 1))
        yield Case(f"foreign-{op}", model, "9.0", rule="atc-op")
    model = _chain(node("NPURotaryMul", ["x", "x", "x"], ["y"], name=NODE, domain="npu"))
    model.opset_import.append(helper.make_opsetid("npu", 1))
    yield Case("npu-domain", model, "9.0")
    for op in NO_PARSER:
        model = _unparsed(op)
        if model.opset_import[0].version <= 18:
            yield Case(f"unparsed-{op}", model, "9.0", rule="atc-op")
        else:
            yield Unmade(f"unparsed-{op}", "ONNX has it only in opsets beyond those that any atc reads")
    yield Case("dtype-bfloat16", _relu(kind="bfloat16"), "8.2", rule="atc-dtype")
    yield Case("dtype-float16", _relu(kind="float16"), "8.2")
    for op in ("MatMul", "Gemm", "Conv", "ConvTranspose"):
        yield Case(f"origin-{op}-float32", _product(op, "float32"), "8.2", "origin", rule="atc-dtype")
        yield Case(f"origin-{op}-float16", _product(op, "float16"), "8.2", "origin")
        yield Case(f"fp16-{op}-float32", _product(op, "float32"), "8.2")
    for square in ("Mul", "Pow"):
        for total in ("ReduceMean", "ReduceSum"):
            name = f"squares-{square}-{total}"
            yield Case(name, _squares(square, total), "8.2", rule="atc-float16")
            yield Case(f"{name}-mixed", _squares(square, total), "8.2", "mixed_float16", rule="atc-float16")
            yield Case(f"{name}-float16", _squares(square, total, "float16"), "8.2", "origin", rule="atc-float16")
            yield Case(f"{name}-centred", _squares(square, total, centred=True), "8.2", rule="atc-float16")
            yield Case(f"{name}-origin", _squares(square, total), "8.2", "origin")
            yield Case(f"{name}-cube", _squares(square, total), "8.2", "cube_fp16in_fp32out")
            yield Case(f"{name}-scaled", _squares(square, total, scaled=True), "8.2")
    # what hides a place from a softmax does so as -65504, too
    for value in (-65504.0, 65504.0, -1e9, float(np.finfo(np.float32).min), -np.inf):
        yield Case(f"mask-{value}", _mask(value), "8.2")
    for value in (-65536.0, 65536.0, np.inf):
        yield Case(f"mask-{value}", _mask(value), "8.2", rule="atc-float16")
        yield Case(f"mask-{value}-origin", _mask(value), "8.2", "origin")
    yield Case("mask-float16-inf", _mask(np.inf, "float16"), "8.2", "origin", rule="atc-float16")
    yield Case("shape-open", _relu(shape=("n", 3)), "8.2", rule="atc-dynamic", where="'x'")
    found = node("NonZero", ["x"], ["y"], name=NODE)
    shapes = {"static": (2, 3), "open": ("n", 3)}
    for name, shape in shapes.items():
        model = build([found], [tensor("x", "float32", shape)], [tensor("y", "int64", (2, "count"))])
        rule, where = ("atc-dynamic", "") if name == "open" else ("", NODE)
        yield Case(f"shape-{name}-data-dependent", model, "8.2", rule=rule, where=where)

# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""Activations behind convolutions and products keep float16's precision on HTP: fused ones keep 46 to 49 dB."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import npukit
from npukit import Session

RANDOM = np.random.default_rng(3)


def _half(*shape: int) -> np.ndarray:
    return RANDOM.standard_normal(shape).astype(np.float16).astype(np.float32)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


IMAGE, ROWS = _half(1, 32, 14, 14), _half(24, 64)
KERNEL, MATRIX = _half(48, 32, 1, 1) / 4, _half(64, 96) / 4
PRODUCTS = {
    "Conv": (IMAGE, KERNEL, np.einsum("oc,nchw->nohw", KERNEL[..., 0, 0].astype(float), IMAGE)),
    "MatMul": (ROWS, MATRIX, ROWS.astype(float) @ MATRIX),
}
ACTIVATIONS = {
    "Sigmoid": ([("Sigmoid", "p", "y")], sigmoid),
    "Tanh": ([("Tanh", "p", "y")], np.tanh),
    "Swish": ([("Sigmoid", "p", "s"), ("Mul", "p s", "y")], lambda x: x * sigmoid(x)),
}


@pytest.mark.native
@pytest.mark.parametrize("product", PRODUCTS)
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("chip", ["sm8550", "sm8650", "sm8750"])
def test_an_activation_behind_a_product_keeps_60_db(product: str, activation: str, chip: str, tmp_path: Path) -> None:
    x, weight, between = PRODUCTS[product]
    nodes, function = ACTIVATIONS[activation]
    made = [
        helper.make_node(kind, inputs.split(), [output]) for kind, inputs, output in [(product, "x w", "p"), *nodes]
    ]
    graph = helper.make_graph(
        made,
        "graph",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, x.shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, between.shape)],
        [numpy_helper.from_array(weight, "w")],
    )
    source = tmp_path / "model.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), source)
    npukit.convert(source, tmp_path / "model.dlc", verify=False)
    npukit.compile(tmp_path / "model.dlc", tmp_path / "model.bin", target=chip)
    with Session(tmp_path / "model.bin", in_process=True) as session:
        result = session.run({"x": x})["y"]
    expected = function(between)
    assert 10 * np.log10((expected**2).sum() / ((result - expected) ** 2).sum()) > 60


def _keys() -> onnx.ModelProto:
    """Rows [25, 128] to keys that are turned and projected again: two heads of 32, as a policy's backbone has them."""
    constants = {
        "w": _half(128, 64) / 12, "turn": _half(25, 1, 16), "w2": _half(64, 64) / 8, "rows": np.array([25, 64]),
        "heads": np.array([25, 2, 32]), "one": np.array([1, 25, 2, 32]),
    }  # fmt: skip
    nodes = [
        helper.make_node(kind, inputs.split(), outputs.split(), **attributes)
        for kind, inputs, outputs, attributes in (
            ("MatMul", "x w", "k", {}), ("Reshape", "k heads", "k3", {}),
            ("Split", "k3", "a b", {"axis": 2, "num_outputs": 2}),
            ("Mul", "a turn", "at", {}), ("Mul", "b turn", "bt", {}),
            ("Sub", "at b", "p", {}), ("Add", "bt a", "q", {}),
            ("Concat", "p q", "turned", {"axis": 2}), ("Reshape", "turned rows", "flat", {}),
            ("MatMul", "flat w2", "projected", {}), ("Reshape", "projected one", "y4", {}),
            ("Transpose", "y4", "y", {"perm": [0, 2, 1, 3]}),
        )
    ]  # fmt: skip
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, (25, 128))
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, (1, 2, 25, 32))
    graph = helper.make_graph(nodes, "keys", [x], [y], [numpy_helper.from_array(a, n) for n, a in constants.items()])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)


@pytest.mark.native
@pytest.mark.parametrize("form", ["float", "w8a16"])
def test_a_product_between_reshapes_from_and_to_one_shape(form: str, tmp_path: Path) -> None:
    """Libraries from V73 on take the Reshapes of floats away and then fail; quantized ones without them are wrong."""
    source = tmp_path / "model.onnx"
    onnx.save(_keys(), source)
    samples = [{"x": _half(25, 128)} for _ in range(4)]
    if form == "float":
        npukit.convert(source, tmp_path / "model.dlc", target="sm8650", verify=False)
    else:
        npukit.quantize(
            source, output=tmp_path / "model.dlc", calibration=samples, activations=16, target="sm8650", verify=False
        )
    npukit.compile(tmp_path / "model.dlc", output=tmp_path / "model.bin", target="sm8650")
    with Session(tmp_path / "model.dlc", backend="qnn-htp", target="sm8650") as session:
        made = session.run(samples[0])["y"]
    exact = Session(source).run(samples[0])["y"]
    error = 10 * np.log10(np.sum(exact**2) / np.sum((made - exact) ** 2))
    assert error > (60 if form == "float" else 38)  # 62 and 41 dB here; -13 dB where the quantized form is wrong

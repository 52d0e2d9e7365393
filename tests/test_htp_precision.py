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


@pytest.mark.native
def test_a_product_between_reshapes_from_and_to_one_shape_compiles(tmp_path: Path) -> None:
    """Libraries from V73 on take the two Reshapes away and then fail on the width."""
    x = _half(7, 5, 64)
    weight = _half(320, 320) / 16
    nodes = [
        helper.make_node("Reshape", ["x", "rows"], ["flat"]),
        helper.make_node("MatMul", ["flat", "w"], ["product"]),
        helper.make_node("Reshape", ["product", "heads"], ["y"]),
    ]
    shapes = {"rows": np.array([7, 320]), "heads": np.array([1, 7, 5, 64])}
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, x.shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, (1, 7, 5, 64))],
        [numpy_helper.from_array(value, name) for name, value in {"w": weight, **shapes}.items()],
    )
    source = tmp_path / "model.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), source)
    npukit.convert(source, tmp_path / "model.dlc", target="sm8650", verify=False)
    npukit.compile(tmp_path / "model.dlc", output=tmp_path / "model.bin", target="sm8650")
    with Session(tmp_path / "model.dlc", backend="qnn-htp", target="sm8650") as session:
        made = session.run({"x": x})["y"]
    exact = (x.reshape(7, 320).astype(float) @ weight).reshape(1, 7, 5, 64)
    # Operands are exact in float16; what is left is the rounding of results of some 1 to 4: half of 2^-9.
    np.testing.assert_allclose(made, exact, atol=4e-3)

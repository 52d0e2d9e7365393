# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""Activations keep their meaning on the way through a DLC: libQnnIr rewrites them (see `npukit.qnn.api.dlc`)."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

import npukit
from npukit import Session
from npukit.artifacts import dlc
from npukit.qnn.graph import DType, Graph, Model, Op, Param, Tensor, TensorKind

X = np.linspace(-6, 6, 256, dtype=np.float32).reshape(1, 8, 8, 4)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


# Op type, params, what it is, largest error.
ACTIVATIONS = [
    ("Relu", {}, lambda x: np.maximum(x, 0), 1e-6),
    ("Sigmoid", {}, sigmoid, 1e-6),
    ("Tanh", {}, np.tanh, 1e-6),
    ("Elu", {"alpha": 0.5}, lambda x: np.where(x < 0, 0.5 * np.expm1(x), x), 1e-6),
    ("Gelu", {}, lambda x: x / 2 * (1 + np.vectorize(math.erf)(x / math.sqrt(2))), 1e-6),
    ("HardSwish", {}, lambda x: x * np.clip(x / 6 + 0.5, 0, 1), 1e-6),
    ("ReluMinMax", {"min_value": -1.0, "max_value": 2.0}, lambda x: np.clip(x, -1, 2), 1e-6),
    ("ElementWiseSoftplus", {"beta": 2.0, "threshold": 20.0}, lambda x: np.log1p(np.exp(2 * x)) / 2, 1e-5),
]


@pytest.mark.native
@pytest.mark.parametrize(("kind", "params", "function", "error"), ACTIVATIONS, ids=[row[0] for row in ACTIVATIONS])
def test_an_activation_survives_a_dlc(kind, params, function, error, tmp_path: Path) -> None:
    x = Tensor("x", DType.FLOAT_32, X.shape, TensorKind.APP_WRITE)
    y = Tensor("y", DType.FLOAT_32, X.shape, TensorKind.APP_READ)
    op = Op("op", kind, [x], [y], {name: Param(DType.FLOAT_32, value) for name, value in params.items()})
    path = tmp_path / "model.dlc"
    dlc.write(Model({"graph": Graph("graph", [x], [y], [op])}), path)
    with Session(path, backend="qnn-cpu") as session:
        result = session.run({"x": X})["y"]
    np.testing.assert_allclose(result, function(X.astype(np.float64)), atol=error)


def swish(x):
    return x * sigmoid(x)


@pytest.mark.native
@pytest.mark.parametrize("largest", [9.0, 100.0, 30000.0])
@pytest.mark.parametrize(
    ("nodes", "function", "error"),
    [
        ([("Exp", "x", "y")], lambda x: np.exp(np.minimum(x, 9)), 1e-3),
        ([("Sigmoid", "x", "y")], sigmoid, 1e-3),
        ([("Sigmoid", "x", "s"), ("Mul", "x s", "y")], swish, 4e-3),  # 6e-4 of its Sigmoid times 6.3
    ],
    ids=["Exp", "Sigmoid", "Swish"],
)
def test_the_htp_is_right_far_from_zero(nodes, function, error, largest, tmp_path: Path) -> None:
    """Its Exp gives 131008 below -88, which lowerings keep away from."""
    x = np.linspace(-largest, min(largest, 9.0) if nodes[0][0] == "Exp" else largest, X.size, dtype=np.float32)
    infos = [helper.make_tensor_value_info(name, TensorProto.FLOAT, X.shape) for name in "xy"]
    made = [helper.make_node(kind, inputs.split(), [output]) for kind, inputs, output in nodes]
    graph = helper.make_graph(made, "graph", infos[:1], infos[1:])
    source = tmp_path / "model.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), source)
    npukit.convert(source, tmp_path / "model.dlc", verify=False)
    with Session(tmp_path / "model.dlc", backend="qnn-htp") as session:
        result = session.run({"x": x.reshape(X.shape)})["y"]
    with np.errstate(over="ignore"):
        expected = function(x.astype(np.float64)).reshape(X.shape)
    np.testing.assert_allclose(result, expected, rtol=5e-3, atol=error * max(1.0, np.abs(expected).max() / 1000))

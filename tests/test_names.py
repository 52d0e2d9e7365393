# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""Names: what an artifact calls the source's tensors, and that options take either name."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from npukit.frontends.onnx import load
from npukit.lowering import lower
from npukit.targets import resolve


@pytest.fixture(scope="module")
def model() -> onnx.ModelProto:
    """Two convolutions whose tensors have names that no C identifier can be; the second has a value for each output."""
    random = np.random.default_rng(0)
    info = helper.make_tensor_value_info
    nodes = [
        helper.make_node("Conv", ["in put", "w"], ["a/conv:0"], name="c1"),
        helper.make_node("Relu", ["a/conv:0"], ["b r"], name="r"),
        helper.make_node("Conv", ["b r", "w2"], ["y"], name="c2"),
        helper.make_node("Relu", ["y"], ["z.out"], name="last"),
    ]
    weights = [
        numpy_helper.from_array(random.standard_normal(shape).astype(np.float32), name)
        for name, shape in (("w", (8, 3, 3, 3)), ("w2", (4, 8, 3, 3)))
    ]
    # the source notes no shape inside, and the batch is open
    inputs = [info("in put", TensorProto.FLOAT, ["n", 3, 8, 8])]
    graph = helper.make_graph(nodes, "names", inputs, [info("z.out", TensorProto.FLOAT, None)], weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def _lower(model: onnx.ModelProto) -> list[str]:
    graph = lower(load(model).model, resolve(())).graph
    names = [tensor.name for tensor in graph.tensors()]
    assert len(names) == len(set(names))
    return [tensor.name for tensor in graph.outputs]


def test_outputs_bear_their_names_whatever_their_layout(model):
    fixed = onnx.ModelProto()
    fixed.CopyFrom(model)
    fixed.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 1
    fixed.graph.output.append(helper.make_tensor_value_info("b r", TensorProto.FLOAT, None))
    assert _lower(fixed) == ["z_out", "b_r"]


def test_outputs_that_are_inputs_get_names_of_their_own():
    info = helper.make_tensor_value_info
    nodes = [helper.make_node("Identity", ["x"], ["same"]), helper.make_node("Relu", ["x"], ["r"])]
    outputs = [info(name, TensorProto.FLOAT, [1, 4]) for name in ("x", "same", "r")]
    graph = helper.make_graph(nodes, "g", [info("x", TensorProto.FLOAT, [1, 4])], outputs)
    assert _lower(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])) == ["x_1", "same", "r"]

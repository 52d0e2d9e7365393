# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""Names: what an artifact calls the source's tensors, and that options take either name."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from npukit.analysis.samples import generate, given
from npukit.errors import ModelError
from npukit.frontends.onnx import LoadOptions, load
from npukit.lowering import lower
from npukit.qnn.names import source_name
from npukit.runtime.session import NativeForm
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


@pytest.mark.parametrize("name", ["b r", "b_r"])
def test_either_name_cuts(model, name):
    found = load(model, LoadOptions(inputs=(name,), input_shapes={name: (1, 8, 6, 6)}))
    assert ([v.name for v in found.model.graph.inputs], found.cut) == (["b r"], ["input in put", "c1", "r"])
    found = load(model, LoadOptions(batch=1, outputs=(name,)))
    assert [v.name for v in found.model.graph.outputs] == ["b r"]


@pytest.mark.parametrize("name", ["in put", "in_put"])
def test_either_name_gives_a_shape(model, name):
    found = load(model, LoadOptions(input_shapes={name: (2, 3, 8, 8)}))
    assert tuple(found.model.graph.inputs[0].shape) == (2, 3, 8, 8)


def test_a_name_that_could_be_two_is_neither():
    assert source_name("a_b", ["a.b", "c"]) == "a.b"
    assert source_name("a_b", ["a.b", "a_b"]) == "a_b"
    assert source_name("a_b", ["a.b", "a:b"]) == "a_b"
    with pytest.raises(ModelError, match="there is no such tensor"):
        load(_two_of_a_form(), LoadOptions(outputs=("a_b",)))


def _two_of_a_form() -> onnx.ModelProto:
    info = helper.make_tensor_value_info
    nodes = [helper.make_node("Relu", ["x"], ["a.b"]), helper.make_node("Relu", ["a.b"], ["a:b"])]
    graph = helper.make_graph(nodes, "g", [info("x", TensorProto.FLOAT, [1])], [info("a:b", TensorProto.FLOAT, [1])])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])


def test_a_cut_behind_an_unknown_op_takes_its_dtype_from_the_ops_that_read_it(model):
    custom = onnx.ModelProto()
    custom.CopyFrom(model)
    custom.opset_import.append(helper.make_opsetid("my", 1))
    custom.graph.node[1].domain, custom.graph.node[1].op_type = "my", "Secret"
    found = load(custom, LoadOptions(inputs=("b r",), input_shapes={"b r": (1, 8, 6, 6)}))
    value = found.model.graph.inputs[0]
    assert (value.dtype.name, tuple(value.shape)) == ("FLOAT", (1, 8, 6, 6))
    with pytest.raises(ModelError, match="has no shape"):
        load(custom, LoadOptions(inputs=("b r",)))


@dataclass
class Info:
    """An input as a session describes it."""

    name: str
    native: NativeForm
    shape: tuple[int, ...] = (2,)
    dtype: str = "float32"


def test_either_name_gives_inputs_and_ranges(tmp_path):
    infos = [Info("in put", NativeForm("in_put", "float32", "FLOAT_32", (2,), None))]
    np.save(tmp_path / "x.npy", np.ones(2, np.float32))
    for name in ("in put", "in_put"):
        assert list(given([(name, tmp_path / "x.npy")], infos).runs[0]) == ["in put"]
        run = generate(infos, 1, ranges={name: (5, 6)}).runs[0]
        assert 5 <= run["in put"].min() <= 6


def test_a_bias_that_two_products_share_has_a_name_for_each() -> None:
    values = np.random.default_rng(0).normal(size=(2, 8, 8)).astype(np.float32)
    weights = [numpy_helper.from_array(w, f"w{i}") for i, w in enumerate(values)]
    row = numpy_helper.from_array(np.arange(8, dtype=np.float32), "row")
    nodes = [
        helper.make_node("MatMul", ["x", "w0"], ["a"]),
        helper.make_node("Add", ["a", "row"], ["b"]),
        helper.make_node("Relu", ["b"], ["c"]),
        helper.make_node("MatMul", ["c", "w1"], ["d"]),
        helper.make_node("Add", ["d", "row"], ["y"]),
    ]
    ports = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [2, 8]) for name in ("x", "y")]
    graph = helper.make_graph(nodes, "g", ports[:1], ports[1:], [*weights, row])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    lowered = lower(load(model).model, resolve(("qnn-cpu",)))
    assert [op.type for op in lowered.graph.ops].count("FullyConnected") == 2
    names = [tensor.name for tensor in lowered.graph.tensors()]
    assert len(names) == len(set(names))

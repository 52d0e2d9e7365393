# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import npukit
from npukit.analysis import cost, diff, inspect, text
from npukit.analysis.subject import GraphView, Subject, graph_view
from npukit.qnn.graph import DType, Encoding, Graph, Op, Param, Tensor, TensorKind

DIGITS = Path(__file__).parents[1] / "examples" / "digits"


def model(path, weight=None, op="Relu", dims=("n", 4), output="y"):
    """y = op(x @ w) with w [4, 3]."""
    weight = np.arange(12, dtype=np.float32).reshape(4, 3) if weight is None else weight
    nodes = [helper.make_node("MatMul", ["x", "w"], ["h"], "mm"), helper.make_node(op, ["h"], [output], "act")]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, dims)],
        [helper.make_tensor_value_info(output, TensorProto.FLOAT, None)],
        [numpy_helper.from_array(weight, "w")],
    )
    opset = [helper.make_opsetid("", 17)]
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=8, producer_name="tests"), path)
    return path


def qnn_graph(scale=0.5, stride=1, weight=None, name="conv"):
    """A convolution with an encoded output."""
    data = np.ones((1, 1, 2, 4), np.float32) if weight is None else weight
    x = Tensor("x", DType.FLOAT_32, (1, 4, 4, 2), TensorKind.APP_WRITE)
    w = Tensor("w", DType.FLOAT_32, data.shape, TensorKind.STATIC, data=data)
    h = Tensor("h", DType.UFIXED_POINT_8, (1, 4, 4, 4), encoding=Encoding.per_tensor(scale, -3))
    y = Tensor("y", DType.FLOAT_32, (1, 4, 4, 4), TensorKind.APP_READ)
    params = {"stride": Param(DType.UINT_32, np.array([stride, stride], np.uint32))}
    ops = [Op(name, "Conv2d", [x, w, None], [h], params), Op("deq", "Dequantize", [h], [y])]
    return Graph("g", [x], [y], ops)


def subject(graph, kind="dlc", size=1):
    view = graph if isinstance(graph, GraphView) else graph_view(graph)
    return Subject(Path("a"), kind, size, "", [view])


def changes(a, b):
    found, _ = diff.compare_subjects(subject(a), subject(b))
    return {(c.section, c.kind, c.name) for c in found}


# --- inspect ---


def test_an_onnx_model_is_described(tmp_path):
    found = npukit.inspect(model(tmp_path / "m.onnx"), in_process=True)
    data = json.loads(json.dumps(found.to_json(), allow_nan=False))
    graph = data["graphs"][0]
    assert (data["kind"], data["needs"], data["stamp"]) == ("onnx", "", None)
    assert data["facts"]["opsets"] == "ai.onnx 17"
    assert graph["inputs"] == [{"name": "x", "dtype": "float32", "shape": ["n", 4], "encoding": None}]
    assert graph["ops"] == {"MatMul": 1, "Relu": 1}
    assert graph["constants"] == {"count": 1, "bytes": 48, "by_dtype": {"float32": 48}}
    shown = found.to_text()
    for words in ("ONNX model", "[n, 4]", "MatMul 1, Relu 1", "1 constants, 48 B"):
        assert words in shown


def test_external_weights_are_listed(tmp_path):
    path = model(tmp_path / "m.onnx", weight=np.ones((4, 300), np.float32))
    onnx.save(onnx.load(path), path, save_as_external_data=True, location="m.data", size_threshold=0)
    data = npukit.inspect(path, in_process=True).to_json()
    assert data["parts"] == [{"name": "m.data", "bytes": 4800}]


def test_ops_and_tensors_on_request(tmp_path):
    found = npukit.inspect(model(tmp_path / "m.onnx"), ops=True, tensors=True, in_process=True)
    graph = found.to_json()["graphs"][0]
    assert [op["name"] for op in graph["op_list"]] == ["mm", "act"]
    assert {t["name"]: t["constant"] for t in graph["tensor_list"]}["w"] is True
    assert "mm" in found.to_text()


def test_an_encoded_graph_is_described():
    data = inspect._graph(graph_view(qnn_graph()), ops=True, tensors=True)
    assert data["encodings"] == {"SCALE_OFFSET": 1}
    assert data["op_list"][0]["params"] == {"stride": [1, 1]}
    assert data["op_list"][0]["inputs"] == ["x", "w", ""]
    lines = "\n".join(inspect._graph_lines(data))
    assert "scale 0.5, offset -3" in lines
    assert "1 of 4 tensors encoded" in lines


# --- diff ---


def test_equal_files_are_identical(tmp_path):
    a, b = model(tmp_path / "a.onnx"), model(tmp_path / "b.onnx")
    found = npukit.diff(a, b, in_process=True)
    assert (found.identical, found.same, found.exit_code) == (True, True, 0)
    assert "the same bytes" in found.to_text()


def test_everything_that_differs_in_onnx_is_named(tmp_path):
    weight = np.arange(12, dtype=np.float32).reshape(4, 3)
    weight[1, 2] += 0.25
    a = model(tmp_path / "a.onnx")
    b = model(tmp_path / "b.onnx", weight=weight, op="Sigmoid", dims=(1, 4), output="z")
    found = npukit.diff(a, b, check=True, in_process=True)
    assert found.exit_code == 1
    by_name = {(c.section, c.name): c for c in found.changes}
    assert by_name["weights", "w"].figure == 0.25
    assert by_name["inputs", "x"].right == "float32 [1, 4]"
    assert {("outputs", "y"), ("outputs", "z"), ("ops", "Relu act")} <= set(by_name)
    assert json.loads(json.dumps(found.to_json(), allow_nan=False))["counts"]["weights"] == 1
    assert "(largest difference 0.25)" in found.to_text()


def test_differences_of_qnn_graphs():
    same = qnn_graph()
    assert changes(same, qnn_graph()) == set()
    assert changes(same, qnn_graph(scale=0.25)) == {("encodings", "changed", "h")}
    assert changes(same, qnn_graph(stride=2)) == {("ops", "changed", "Conv2d conv")}
    assert changes(same, qnn_graph(name="other")) == set()  # the same op by what it makes
    more = qnn_graph()
    more.ops.append(Op("extra", "Relu", [more.outputs[0]], [Tensor("e", DType.FLOAT_32, (1,))]))
    assert changes(same, more) == {("ops", "added", "Relu extra")}
    assert changes(more, same) == {("ops", "removed", "Relu extra")}


def test_weights_in_another_order_are_recognized():
    weight = np.random.default_rng(0).standard_normal((1, 1, 2, 4)).astype(np.float32)
    found, _ = diff.compare_subjects(
        subject(qnn_graph(weight=weight)), subject(qnn_graph(weight=weight.transpose(3, 2, 0, 1)))
    )
    assert "the same values in another order" in str(found[0])


def test_many_differences_are_cut_short():
    found = tuple(diff.Change("ops", "added", f"Relu r{i}") for i in range(30))
    shown = diff.Difference("a", "b", False, found).to_text()
    assert "and 10 more" in shown
    assert "more" not in diff.Difference("a", "b", False, found, limit=0).to_text()


@pytest.mark.native
def test_a_source_and_its_dlc_hold_the_same_weights(tmp_path):
    npukit.convert(DIGITS / "digits.onnx", tmp_path / "d.dlc", verify=False)
    found = npukit.diff(DIGITS / "digits.onnx", tmp_path / "d.dlc")
    assert {c.section for c in found.changes} == {"file", "stamp"}
    described = npukit.inspect(tmp_path / "d.dlc")
    data = described.to_json()
    assert data["needs"].startswith("needs QAIRT >= 2.")
    assert data["stamp"]["source_name"] == "digits.onnx"
    assert data["graphs"][0]["constants"]["bytes"] == 24360
    assert "verified: no" in described.to_text()


# --- cost and text ---


def test_cost_and_precision():
    graph = qnn_graph()
    assert cost.flops(graph) == 2 * (4 * 4 * 4) * 2
    assert cost.precision(graph) == "int8"
    assert cost.precision(Graph("g", graph.inputs, graph.outputs, [])) == "float32"
    assert cost.coarser("float32", "qnn-htp") == "float16"
    assert cost.coarser("int8", "qnn-htp") == "int8"


def test_tables_align():
    shown = text.table(("name", "n"), [("a", 1), ("longer", 22)]).splitlines()
    assert shown == ["name     n", "a        1", "longer  22"]
    assert text.size(999) == "999 B"
    assert text.size(24360) == "24.4 kB"
    assert text.shape((1, None, "h")) == "[1, ?, h]"
    assert text.fields([("a", 1), ("empty", ""), ("long", "x")]) == "a:    1\nlong: x"

# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""Raising: every op against QNN CPU's own result or its definition, and what the ONNX model looks like."""

import collections
from contextlib import ExitStack
from unittest import mock

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest

from npukit.errors import GraphError, UsageError
from npukit.qnn.graph import DType, Encoding, Graph, Op, Param, Tensor, TensorKind
from npukit.qnn.opdefs import OPS, validate
from npukit.raising import RAISERS, newest_opset, raise_graph, raises, unraised
from npukit.raising.encodings import dequantized
from tests.raising_cases import CASES
from tests.raising_cases.definitions import NUMPY

F32 = DType.FLOAT_32


def run(graph, feeds, **options):
    model = ir.to_proto(raise_graph(graph, **options))
    onnx.checker.check_model(model)
    settings = ort.SessionOptions()
    settings.intra_op_num_threads = 1
    settings.log_severity_level = 3
    session = ort.InferenceSession(model.SerializeToString(), settings, providers=["CPUExecutionProvider"])
    assert [o.name for o in session.get_outputs()] == [t.name for t in graph.outputs]
    return session.run(None, {t.name: d for t, d in zip(graph.inputs, feeds, strict=True)})


def compare(case, got, want):
    for index, (a, b) in enumerate(zip(got, want, strict=True)):
        if case.compared and index not in case.compared:
            continue
        if case.op == "NonMaxSuppression" and index == 0:  # rows behind the count are not defined
            a, b = a[: got[1][0]], b[: got[1][0]]
        a, b = a.astype(np.float64), np.asarray(b, np.float64)
        steps = case.tolerance >= 1
        scale = 1.0 if steps else max(1.0, float(np.abs(b).max(initial=0)) if np.isfinite(b).all() else 1.0)
        relative = 0 if steps else case.tolerance
        np.testing.assert_allclose(a, b, atol=case.tolerance * scale, rtol=relative, err_msg=f"output {index}")


@pytest.fixture(scope="session")
def cpu():
    from npukit.qnn.api.backend import Backend

    with Backend("cpu") as backend:
        yield backend


def on_cpu(backend, graph, feeds):
    with backend.context() as context, ExitStack() as stack:
        if graph.ops[0].type == "Dequantize":  # wrong from the second run on, hence refused; here it runs once
            stack.enter_context(mock.patch("npukit.qnn.api.execution.hazard", return_value=None))
        handle = context.add_graph(graph)
        handle.finalize()
        made = [np.zeros(t.shape, t.dtype.numpy) for t in handle.outputs]
        handle.execute([np.ascontiguousarray(d) for d in feeds], made)
        return [np.array(a) for a in made]


def raised(case):
    graph, feeds = case.graph()
    assert validate(graph) == []
    got = run(graph, feeds)
    assert [(a.shape, a.dtype) for a in got] == [(t.shape, t.dtype.numpy) for t in graph.outputs]
    return graph, feeds, got


def rows(oracle):
    return [pytest.param(case, id=case.id) for case in CASES if case.oracle == oracle]


@pytest.mark.native
@pytest.mark.parametrize("case", rows("cpu"))
def test_as_qnn_cpu(cpu, case):
    graph, feeds, got = raised(case)
    compare(case, got, on_cpu(cpu, graph, feeds))


@pytest.mark.parametrize("case", rows("numpy"))
def test_as_defined(case):
    assert case.note, "a row without a backend says why"
    graph, feeds, got = raised(case)
    left = iter(feeds)
    inputs = [None if t is None else t.data if t.data is not None else next(left) for t in graph.ops[0].inputs]
    compare(case, got, NUMPY[case.op](inputs, case.params, [t.shape for t in graph.outputs]))


NOT_RAISED = {
    "BboxTransform", "BoxWithNmsLimit", "Buffer", "CollectRpnProposals", "CombinedNms", "CreateSparse",
    "DetectionOutput", "DistributeFpnProposals", "GenerateProposals", "GetSparseIndices", "GetSparseValues",
    "HeatMapMaxKeyPoint", "If", "MultiClassNms", "Nv12ToRgb", "Nv21ToRgb", "RoiPooling", "SparseToDense",
}  # fmt: skip


def test_the_table_covers_every_op():
    assert set(OPS) - set(RAISERS) == NOT_RAISED
    count = collections.Counter(case.op for case in CASES)
    assert {op: count[op] for op in RAISERS if count[op] < 3} == {"RandomUniformLike": 0}


# ---------------------------------------------------------------------------------------------- the model


def tensor(name, shape, kind=TensorKind.NATIVE, dtype=F32, encoding=None, data=None):
    return Tensor(name, dtype, tuple(shape), kind, encoding, data)


def single(op, tensors, result, **params):
    """A graph of one op; inputs without data are graph inputs."""
    inputs = [t for t in tensors if t.data is None]
    for t in inputs:
        t.kind = TensorKind.APP_WRITE
    result.kind = TensorKind.APP_READ
    return Graph("g", inputs, [result], [Op("the_op", op, tensors, [result], params)])


def u32(values):
    return Param(DType.UINT_32, np.asarray(values, np.uint32))


def static(name, data, dtype, encoding=None):
    return tensor(name, data.shape, TensorKind.STATIC, dtype, encoding, data)


def q8(name, shape, scale=0.05, offset=-128):
    return tensor(name, shape, dtype=DType.UFIXED_POINT_8, encoding=Encoding.per_tensor(scale, offset))


def test_names_and_codes():
    x, mid, y = q8("x", (4,)), q8("mid", (4,)), q8("y", (4,), 0.1, -10)
    x.kind, y.kind = TensorKind.APP_WRITE, TensorKind.APP_READ
    ops = [Op("first", "ElementWiseNeg", [x], [mid]), Op("second", "Sigmoid", [mid], [y])]
    model = raise_graph(Graph("net", [x], [y], ops))
    assert model.graph.name == "net"
    assert model.graph.opset_imports[""] == newest_opset() >= 21
    values = {v.name: v for node in model.graph for v in node.outputs}
    assert {"x/real", "mid/exact", "mid", "mid/real", "y/exact", "y"} <= set(values)
    assert values["mid"].dtype is ir.DataType.UINT8
    assert values["mid/exact"].producer().name == "first"
    assert values["mid/exact"].producer().metadata_props["qnn_type"] == "ElementWiseNeg"
    codes = np.array([0, 100, 128, 255], np.uint8)
    (got,) = run(Graph("net", [x], [y], ops), [codes])
    half = np.clip(np.round(-(codes.astype(np.float64) - 128)) + 128, 0, 255)
    want = np.clip(np.round(1 / (1 + np.exp(-(half - 128) * 0.05)) / 0.1) + 10, 0, 255)
    np.testing.assert_array_equal(got, want.astype(np.uint8))


def test_float_mode_ignores_encodings():
    x, y = q8("x", (4,)), q8("y", (4,))
    graph = single("ElementWiseNeg", [x], y)
    values = np.array([-100.25, 0, 3.3, 1000], np.float32)
    (got,) = run(graph, [values], quantized="float")
    np.testing.assert_array_equal(got, -values)


def test_weights_are_not_copied():
    w = static("w", np.ones((3, 3, 2, 4), np.float32), F32)
    params = {"stride": u32([1, 1]), "pad_amount": u32([[1, 1], [1, 1]])}
    model = raise_graph(single("Conv2d", [tensor("x", (1, 5, 5, 2)), w], tensor("y", (1, 5, 5, 4)), **params))
    arrays = [v.const_value.numpy() for v in model.graph.initializers.values() if v.const_value.size == w.data.size]
    assert [np.shares_memory(a, w.data) for a in arrays] == [True]


def test_bias_without_encoding_counts_in_accumulator_steps():
    w = static("w", np.array([[1, 2], [3, 4]], np.int8), DType.SFIXED_POINT_8, Encoding((0.1, 0.2), (0, 0), axis=0))
    bias = static("b", np.array([1000, -1000], np.int32), DType.SFIXED_POINT_32)
    (got,) = run(
        single("FullyConnected", [q8("x", (1, 2)), w, bias], tensor("y", (1, 2))), [np.full((1, 2), 128, np.uint8)]
    )
    np.testing.assert_allclose(got, [[1000 * 0.05 * 0.1, -1000 * 0.05 * 0.2]], rtol=1e-6)


ENCODINGS = {
    "per tensor": (DType.UFIXED_POINT_8, Encoding.per_tensor(0.1, -5), [0, 5, 255], [-0.5, 0, 25]),
    "16 bit": (DType.UFIXED_POINT_16, Encoding.per_tensor(0.5, -30000), [0, 30000, 65535], [-15000, 0, 17767.5]),
    "32 bit": (DType.SFIXED_POINT_32, Encoding.per_tensor(0.5, 0), [-8, 0, 7], [-4, 0, 3.5]),
    "32 bit with offset": (DType.SFIXED_POINT_32, Encoding.per_tensor(0.5, -4), [-8, 0, 7], [-6, -2, 1.5]),
    "unsigned 32 bit": (DType.UFIXED_POINT_32, Encoding.per_tensor(0.5, -4), [0, 4, 9], [-2, 0, 2.5]),
    "zero point outside": (DType.SFIXED_POINT_8, Encoding.per_tensor(0.1, -200), [-128, 0, 127], [-32.8, -20, -7.3]),
    "4 bit": (DType.SFIXED_POINT_8, Encoding.per_tensor(0.5, 0, bitwidth=4), [-8, 0, 7], [-4, 0, 3.5]),
    "4 bit, low bits only": (DType.SFIXED_POINT_8, Encoding.per_tensor(0.5, 0, bitwidth=4), [8, 0, 15], [-4, 0, -0.5]),
    "4 bit dtype": (DType.UFIXED_POINT_4, Encoding.per_tensor(0.5, -8), [0, 8, 15], [-4, 0, 3.5]),
    "axis": (DType.SFIXED_POINT_8, Encoding((1.0, 2.0, 0.5), (0, 0, 0), axis=0), [1, 2, 3], [1, 4, 1.5]),
    "axis, 4 bit": (
        DType.SFIXED_POINT_8,
        Encoding((1.0, 2.0, 0.5), (0, 1, 0), axis=0, bitwidth=4),
        [1, 2, -8],
        [1, 6, -4],
    ),
}


@pytest.mark.parametrize("name", ENCODINGS)
def test_encodings_of_constants_and_tensors(name):
    dtype, encoding, codes, reals = ENCODINGS[name]
    codes = np.array(codes).astype(dtype.numpy)
    w = static("w", codes, dtype, encoding)
    np.testing.assert_allclose(dequantized(w), reals, rtol=1e-6)
    (got,) = run(single("ElementWiseAdd", [tensor("x", (3,)), w], tensor("y", (3,))), [np.zeros(3, np.float32)])
    np.testing.assert_allclose(got, reals, rtol=1e-6)
    (got,) = run(single("Dequantize", [tensor("q", (3,), dtype=dtype, encoding=encoding)], tensor("y", (3,))), [codes])
    if "low bits" not in name:
        np.testing.assert_allclose(got, reals, rtol=1e-6)
        made = tensor("q", (3,), dtype=dtype, encoding=encoding)
        (got,) = run(single("Quantize", [tensor("x", (3,))], made), [np.array(reals, np.float32)])
        np.testing.assert_array_equal(got, codes)


def test_narrow_encodings_saturate():
    y = tensor("y", (3,), dtype=DType.SFIXED_POINT_8, encoding=Encoding.per_tensor(0.5, 0, bitwidth=4))
    (got,) = run(single("Quantize", [tensor("x", (3,))], y), [np.array([-100, 1, 100], np.float32)])
    np.testing.assert_array_equal(got, np.array([-8, 2, 7], np.int8))


def test_block_encodings_are_constants_in_float():
    codes = np.arange(8, dtype=np.int8).reshape(2, 4)  # FullyConnected [out, in]: blocks of 2 along in
    lpbq = Encoding((0.5, 2.0), (0, 0), axis=0, block_scales=(1, 2, 3, 4), blocks_per_axis=2, block_scale_bits=4)
    spread = np.array([[0.5, 0.5, 1, 1], [6, 6, 8, 8]])
    w = static("w", codes, DType.SFIXED_POINT_8, lpbq)
    np.testing.assert_allclose(dequantized(w), codes * spread)
    (got,) = run(single("FullyConnected", [tensor("x", (1, 4)), w], tensor("y", (1, 2))), [np.ones((1, 4), np.float32)])
    np.testing.assert_allclose(got, [(codes * spread).sum(1)])
    turned = Encoding((0.5, 2.0), (0, 0), axis=1, block_scales=(1, 2, 3, 4), blocks_per_axis=2)  # MatMul [in, out]
    np.testing.assert_allclose(dequantized(static("w", codes.T, DType.SFIXED_POINT_8, turned)), codes.T * spread.T)
    block = Encoding((1.0, 10.0, 100.0), (0, -1, 0), block_shape=(2, 3))
    data = np.ones((2, 7), np.int8)
    want = np.repeat([1.0, 0.0, 100.0], (3, 3, 1))[None].repeat(2, 0)
    np.testing.assert_allclose(dequantized(static("w", data, DType.SFIXED_POINT_8, block)), want)


def test_bfloat16_and_float16():
    for dtype, kind in ((DType.BFLOAT_16, ml_dtypes.bfloat16), (DType.FLOAT_16, np.float16)):
        x, y = tensor("x", (3,), dtype=dtype), tensor("y", (3,), dtype=dtype)
        model = raise_graph(single("Relu", [x], y))
        assert model.graph.inputs[0].dtype == model.graph.outputs[0].dtype
        assert model.graph.outputs[0].dtype.numpy() == kind
    half = static("w", np.array([0.5, 1, 2], np.float16), DType.FLOAT_16)
    x, y = tensor("x", (3,), dtype=DType.FLOAT_16), tensor("y", (3,), dtype=DType.FLOAT_16)
    (got,) = run(single("ElementWiseMultiply", [x, half], y), [np.array([1, 2, 3], np.float16)])
    np.testing.assert_array_equal(got, np.array([0.5, 2, 6], np.float16))


INTEGERS = [DType.INT_8, DType.UINT_8, DType.INT_16, DType.UINT_16, DType.INT_32, DType.UINT_32, DType.INT_64]


@pytest.mark.parametrize("dtype", INTEGERS, ids=lambda d: d.name)
@pytest.mark.parametrize(
    "op", ["ElementWiseMaximum", "ElementWiseAdd", "ElementWiseSelect", "ReduceSum", "Pad", "Relu", "Tile"]
)
def test_integer_types_without_kernels_run(op, dtype):
    values = np.array([5, 0, 3, 2], dtype.numpy)
    x, y = tensor("x", (4,), dtype=dtype), tensor("y", (4,), dtype=dtype)
    if op == "ReduceSum":
        y.shape = (1,)
        graph, want = single(op, [x], y, axes=u32([0])), [10]
    elif op == "Pad":
        y.shape = (5,)
        graph = single(op, [x], y, scheme=Param(DType.UINT_32, 0), pad_amount=u32([[1, 0]]))
        want = [0, 5, 0, 3, 2]
    elif op == "Tile":
        graph, want = single(op, [x], y, multiples=u32([1])), values
    elif op == "Relu":
        graph, want = single(op, [x], y), values
    elif op == "ElementWiseSelect":
        condition = static("c", np.array([True, False, True, False]), DType.BOOL_8)
        graph = single(op, [condition, x, static("w", np.ones(4, dtype.numpy), dtype)], y)
        want = [5, 1, 3, 1]
    else:
        other = static("w", np.array([1, 1, 4, 4], dtype.numpy), dtype)
        graph, want = single(op, [x, other], y), [5, 1, 4, 4] if "Max" in op else [6, 1, 7, 6]
    (got,) = run(graph, [values])
    np.testing.assert_array_equal(got, np.array(want, dtype.numpy))


def test_bool_data_moves():
    x, y = tensor("x", (2,), dtype=DType.BOOL_8), tensor("y", (3,), dtype=DType.BOOL_8)
    graph = single("Pad", [x], y, scheme=Param(DType.UINT_32, 0), pad_amount=u32([[1, 0]]))
    np.testing.assert_array_equal(run(graph, [np.array([True, False])])[0], [False, True, False])


def test_what_has_no_expression_is_kept():
    x, mid, y = tensor("x", (1, 6, 2)), tensor("m", (1, 2, 2, 3)), tensor("y", (1, 2, 2, 3))
    x.kind, y.kind, x.shape = TensorKind.APP_WRITE, TensorKind.APP_READ, (1, 6)
    ops = [
        Op("colour", "Nv12ToRgb", [x], [mid], {"output_order": Param(DType.INT_32, 1)}),
        Op("relu", "Relu", [mid], [y]),
        Op("own", "Sharpen", [y], [tensor("z", (1, 2, 2, 3))], {"k": u32([1, 2])}, package="my.ops"),
    ]
    graph = Graph("g", [x], [y], ops)
    assert [node.name for node in unraised(raise_graph(graph))] == ["colour", "own"]
    model = raise_graph(graph)
    node = next(n for n in model.graph if n.name == "colour")
    assert (node.domain, node.op_type, node.attributes["output_order"].as_int()) == ("qti.aisw", "Nv12ToRgb", 1)
    assert model.graph.opset_imports["qti.aisw"] == model.graph.opset_imports["my.ops"] == 1
    onnx.checker.check_model(ir.to_proto(model), full_check=False)


def test_a_mode_without_expression_leaves_nothing_behind():
    x, at, y = tensor("x", (1, 6, 6, 1)), tensor("at", (1, 2)), tensor("y", (1, 3, 3, 1))
    size = Param(DType.INT_32, np.array([3, 3], np.int32))
    graph = single("ExtractGlimpse", [x, at], y, size=size, noise=Param(DType.INT_32, 1))
    assert [node.op_type for node in raise_graph(graph).graph] == ["ExtractGlimpse"]


def test_random_numbers_have_the_range():
    shape = static("shape", np.array([100], np.uint32), DType.UINT_32)
    graph = single("RandomUniformLike", [shape], tensor("y", (100,)), low=Param(F32, 2.0), high=Param(F32, 3.0))
    (got,) = run(graph, [])
    assert got.min() >= 2
    assert got.max() < 3
    assert np.ptp(got) > 0.5


def test_errors():
    x, y = tensor("x", (2,)), tensor("y", (2,))
    with pytest.raises(UsageError, match="'qdq' or 'float'"):
        raise_graph(single("Relu", [x], y), quantized="int8")
    with pytest.raises(UsageError, match="too old"):
        raise_graph(single("Relu", [x], y), opset=13)
    lost = Graph("g", [x], [y], [Op("relu", "Relu", [tensor("nowhere", (2,))], [y])])
    with pytest.raises(GraphError, match="'relu'.*'nowhere', which nothing makes"):
        raise_graph(lost)
    bare = tensor("q", (2,), dtype=DType.UFIXED_POINT_8)
    with pytest.raises(GraphError, match="'q' is UFIXED_POINT_8 but has no encoding"):
        raise_graph(single("Dequantize", [bare], y))
    with pytest.raises(GraphError, match="a graph output that no op makes"):
        raise_graph(Graph("g", [x], [y], []))


def test_two_owners_of_an_op_are_an_error():
    with pytest.raises(RuntimeError, match="two functions raise Relu"):
        raises("Relu")(lambda e: e.real())


def test_float_bounds_of_integers():
    bounds = {"min_value": Param(F32, -np.inf), "max_value": Param(F32, 2.5)}
    x, y = tensor("x", (3,), dtype=DType.INT_32), tensor("y", (3,), dtype=DType.INT_32)
    (got,) = run(single("ReluMinMax", [x], y, **bounds), [np.array([-(2**31), 2, 7], np.int32)])
    np.testing.assert_array_equal(got, [-(2**31), 2, 2])

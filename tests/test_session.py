# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""Session and its contract: conversion to native tensors and back, faults, backends, threads, deaths, leaks."""

from __future__ import annotations

import copy
import logging
import os
import pickle
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from onnx import TensorProto, helper, numpy_helper

import npukit
from npukit import targets, worker
from npukit.artifacts.stamp import IoTensor, Stamp
from npukit.errors import ArtifactError, GraphError, InputError, ModelError, NpukitError, UsageError, WorkerDied
from npukit.qnn.graph import DType, Encoding, Graph, Model, Op, Param, Tensor, TensorKind
from npukit.runtime import contract, host
from npukit.runtime.contract import Port, from_native, gather, to_native
from npukit.runtime.engine import Request
from npukit.runtime.file_kind import KIND_WORDS, file_kind
from npukit.runtime.session import Session


def port(dtype="float32", shape=(2, 3), held=DType.FLOAT_32, native=None, **more):
    return Port("x", dtype, shape, "x_t", held, shape if native is None else native, **more)


def native(one, value):
    return to_native([one], gather([one], {"x": value}), [None])[0]


# ---------------------------------------------------------------- contract: values


def test_layout_is_permuted_and_back():
    one = port(shape=(1, 3, 4, 5), native=(1, 4, 5, 3), perm=(0, 2, 3, 1))
    value = np.arange(60, dtype=np.float32).reshape(1, 3, 4, 5)
    held = native(one, value)
    assert np.array_equal(held, value.transpose(0, 2, 3, 1))
    assert held.flags.c_contiguous
    back = from_native(one, held)
    assert np.array_equal(back, value)
    assert back.flags.c_contiguous


@pytest.mark.parametrize(
    ("dtype", "held", "value"),
    [
        ("int64", DType.INT_32, [-(2**31), 2**31 - 1]),
        ("uint64", DType.UINT_32, [0, 2**32 - 1]),
        ("uint64", DType.INT_32, [0, 2**31 - 1]),
        ("float64", DType.FLOAT_32, [1.5, -2.25]),
        ("float32", DType.FLOAT_16, [1.5, 65504.0]),
        ("bfloat16", DType.FLOAT_32, [1.5, -3.0]),
        ("float16", DType.FLOAT_16, [1.5, np.inf]),
        ("bool", DType.BOOL_8, [True, False]),
        ("bool", DType.UINT_8, [True, False]),
        ("bool", DType.INT_32, [True, False]),
        ("int8", DType.SFIXED_POINT_8, [-128, 127]),
        ("int4", DType.INT_8, [-8, 7]),
    ],
)
def test_dtypes_are_narrowed_and_back_exactly(dtype, held, value):
    one = port(dtype, (2,), held)
    array = np.array(value).astype(one.numpy)
    there = native(one, array)
    assert there.dtype == held.numpy
    back = from_native(one, there)
    assert back.dtype == array.dtype
    assert np.array_equal(back, array)


def test_rank_zero_is_held_as_one_element():
    one = port(shape=(), native=(1,))
    assert native(one, 3.5).tolist() == [3.5]
    back = from_native(one, np.array([2], np.float32))
    assert back.shape == ()
    assert isinstance(back, np.ndarray)


def formula(values, scale, offset, low, high):
    """The definition, element by element, in Python's own arithmetic."""
    out = []
    for value in values.reshape(-1).tolist():
        ratio = float(np.float32(value) / np.float32(scale))
        out.append(min(max(round(ratio) - offset, low), high))
    return np.array(out).reshape(values.shape)


@given(
    hnp.arrays(np.float32, (2, 3), elements=st.floats(-300, 300, width=32)),
    st.floats(0.0009765625, 4, width=32),
    st.sampled_from(
        [
            (DType.UFIXED_POINT_8, 0, 0, 255),
            (DType.SFIXED_POINT_8, 0, -128, 127),
            (DType.UFIXED_POINT_16, 0, 0, 65535),
            (DType.SFIXED_POINT_16, 0, -32768, 32767),
            (DType.UFIXED_POINT_4, 0, 0, 15),
            (DType.SFIXED_POINT_8, 4, -8, 7),
        ]
    ),
    st.integers(-128, 0),
)
@settings(max_examples=150, deadline=None)
def test_quantization_follows_the_definition(values, scale, kind, offset):
    held, bitwidth, low, high = kind
    one = port(held=held, encoding=Encoding.per_tensor(scale, offset, bitwidth))
    codes = native(one, values)
    assert codes.dtype == held.numpy
    assert np.array_equal(codes, formula(values, scale, offset, low, high))
    real = (codes.astype(np.float64) + offset) * np.float32(scale)
    assert np.allclose(from_native(one, codes), real, rtol=1e-6, atol=0)


def test_quantization_per_axis_in_the_tensors_order():
    encoding = Encoding((0.5, 1.0, 2.0), (0, -10, 0), axis=3)
    one = port(shape=(1, 3, 1, 2), native=(1, 1, 2, 3), perm=(0, 2, 3, 1), held=DType.UFIXED_POINT_8, encoding=encoding)
    codes = native(one, np.full((1, 3, 1, 2), 4, np.float32))
    assert codes.reshape(2, 3).tolist() == [[8, 14, 2]] * 2
    assert np.array_equal(from_native(one, codes), np.full((1, 3, 1, 2), 4, np.float32))


def test_integer_source_passes_codes_as_they_are():
    one = port("uint8", (3,), DType.UFIXED_POINT_8, encoding=Encoding.per_tensor(0.1, -3))
    assert native(one, np.array([1, 2, 255], np.uint8)).tolist() == [1, 2, 255]


def test_lowest_float32_becomes_float16s_own_and_is_said(caplog):
    one = port(shape=(3,), held=DType.FLOAT_16)
    with caplog.at_level(logging.WARNING):
        there = native(one, np.array([np.finfo(np.float32).min, 1, -np.inf], np.float32))
    assert there.tolist() == [-65504.0, 1.0, -np.inf]
    assert "float16" in caplog.text


# ---------------------------------------------------------------- contract: faults


@pytest.mark.parametrize(
    ("one", "value", "words"),
    [
        (port("int64", (2, 2), DType.INT_32), np.array([[1, 2], [3, 2**31]]), "value 2147483648 at [1, 1] is outside"),
        (port("int64", (2,), DType.INT_32), np.array([2**40, -(2**40)]), "at [0] is outside .*, and 1 more"),
        (port("uint64", (1,), DType.INT_32), np.array([2**63], np.uint64), "value 9223372036854775808 at [0]"),
        (port("uint8", (2,), DType.UINT_8), np.array([1, 256]), "value 256 at [1] is outside 0 to 255"),
        (port("float64", (2,), DType.FLOAT_32), np.array([1, 1e300]), "value 1e+300 at [1] is beyond the range"),
        (port("float32", (1,), DType.UFIXED_POINT_8, encoding=Encoding.per_tensor(1)), [np.nan], "not a number"),
        (port("float32", (2,)), np.ones(3, np.float32), "wrong shape: expected float32 [2], got float32 [3]"),
        (port("int64", (2,), DType.INT_32), np.ones(2), "wrong dtype: expected int64 [2], got float64 [2]"),
        (port("bool", (2,), DType.BOOL_8), np.ones(2, np.int64), "wrong dtype: expected bool"),
        (port("int32", (1,), DType.INT_32), ["a"], "wrong dtype"),
        (port("float32", (2, 2)), [[1], [1, 2]], "not an array"),
        (port(shape=(1, 3, 2, 2), native=(1, 2, 2, 3), perm=(0, 2, 3, 1)), np.ones((1, 2, 2, 3)), "own layout"),
    ],
)  # fmt: skip
def test_a_value_that_does_not_fit_is_named(one, value, words):
    with pytest.raises(InputError) as caught:
        native(one, value)
    pattern = words.split(".*")
    assert all(part in str(caught.value) for part in pattern)
    assert "'x'" in str(caught.value)


def test_all_faults_are_listed_at_once():
    ports = [Port(name, "float32", (2,), f"{name}_t", DType.FLOAT_32, (2,)) for name in ("pixels", "state", "noise")]
    with pytest.raises(InputError) as caught:
        gather(ports, {"pixel": np.ones(2), "state": np.ones((2, 2)), "noise": ["a", "b"], "noise_t": np.ones(2)})
    text = str(caught.value)
    assert len(caught.value.faults) == 5
    assert "did you mean 'pixels'?" in text
    assert "pixels: missing, expected float32 [2]" in text
    assert "expected float32 [2], got float64 [2, 2]" in text
    assert "given twice" in text


@pytest.mark.parametrize(
    "value", [np.ones(2), np.ones(2, np.float16), np.ones(2, np.int64), np.array([True, False]), [1, 2],
              np.ones(2, ml_dtypes.bfloat16)],
)  # fmt: skip
def test_dtypes_of_the_same_kind_are_accepted(value):
    one = port(shape=(2,))
    assert np.array_equal(native(one, value), np.asarray(value, np.float32))


def test_artifact_names_are_accepted():
    one = port(shape=(1,))
    assert gather([one], {"x_t": [2.0]})[0].tolist() == [2.0]


def test_ignored_inputs_may_be_given():
    one, unused = port(shape=(1,)), Port("u", "float32", (1,), "", None, (1,))
    assert len(gather([one], {"x": [2.0], "u": [1.0]}, [unused])) == 1


def test_a_stamp_of_another_graph_is_refused():
    tensors = [Tensor(name, DType.INT_32 if name == "b" else DType.FLOAT_32, (2,)) for name in "abcd"]
    stamp = Stamp(
        "0",
        outputs=(
            IoTensor("A", "float32", (3,), "a", "FLOAT_32"),
            IoTensor("B", "int64", (2,), "b", "INT_64"),
            IoTensor("C", "float32", (2,), "cc", "FLOAT_32"),
            IoTensor("D", "float32", (2,), "d", "FLOAT_32"),
        ),
    )
    with pytest.raises(ArtifactError) as caught:
        contract.ports_of(stamp, Graph("g", [], tensors), "outputs")
    assert [f.where for f in caught.value.faults] == ["A", "B", "C", "c"]


def test_inputs_that_no_op_reads_are_ignored():
    graph = Graph("g", [Tensor("a", DType.FLOAT_32, (2,))])
    entries = (IoTensor("A", "float32", (2,), "a", "FLOAT_32"), IoTensor("U", "int64", (1,), "u", "INT_32"))
    stamp = Stamp("0", inputs=entries)
    assert [p.name for p in contract.ports_of(stamp, graph, "inputs")] == ["A"]
    assert [p.name for p in contract.ignored_ports(stamp, graph)] == ["U"]


# ---------------------------------------------------------------- models


def onnx_model(path, shape=(1, 3, 6, 6), elem=TensorProto.FLOAT):
    nodes = [helper.make_node("Neg", ["x"], ["inner"]), helper.make_node("Abs", ["inner"], ["y"])]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", elem, list(shape))],
        [helper.make_tensor_value_info("y", elem, list(shape))],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10), path)
    return path


@pytest.fixture(scope="module")
def simple(tmp_path_factory):
    return onnx_model(tmp_path_factory.mktemp("m") / "simple.onnx")


@pytest.fixture(scope="module", params=[False, True], ids=["worker", "in-process"])
def in_process(request):
    return request.param


X = np.random.default_rng(0).standard_normal((1, 3, 6, 6)).astype(np.float32)

# ---------------------------------------------------------------- session on ONNX Runtime


def test_run_and_what_it_says_of_itself(simple, in_process):
    with Session(simple, in_process=in_process) as session:
        outputs = session.run({"x": X})
        assert list(outputs) == ["y"]
        assert np.array_equal(outputs["y"], np.abs(X))
        first = outputs["y"]
        session.run({"x": X + 1})
        assert np.array_equal(first, np.abs(X))  # fresh arrays
        (info,) = session.inputs
        assert (info.name, info.shape, info.dtype, info.layout) == ("x", (1, 3, 6, 6), "float32", "source")
        assert session.backend == "ort"
        assert session.placement[0].backend == "ort"
        assert session.stamp is None
        assert session.library.startswith("ONNX Runtime")
        assert session.in_process is in_process
        assert session.warmup(2) >= 0
        assert {event.name for event in session.profile(runs=2)} >= {"run"}


def test_bind_gives_native_buffers(simple, in_process):
    with Session(simple, in_process=in_process) as session:
        binding = session.bind()
        binding.inputs["x"][:] = X
        session.run({"x": X * 0})  # does not touch the binding
        binding.run()
        assert np.array_equal(binding.outputs["y"], np.abs(X))


def test_bind_takes_the_callers_buffers_in_process_only(simple):
    out = np.zeros_like(X)
    with Session(simple, in_process=True) as session:
        binding = session.bind({"x": X}, {"y": out})
        binding.run()
        assert np.array_equal(out, np.abs(X))
        assert binding.outputs["y"] is out
        with pytest.raises(InputError) as caught:
            session.bind({"x": X.astype(np.float64), "z": X}, {"y": out.transpose(0, 2, 3, 1)})
        assert len(caught.value.faults) == 3
    with Session(simple) as session, pytest.raises(UsageError, match="cannot reach your buffers"):
        session.bind({"x": X})


def test_free_dimensions(tmp_path, in_process):
    path = onnx_model(tmp_path / "free.onnx", ("n", 3))
    with Session(path, in_process=in_process) as session:
        assert session.inputs[0].shape == ("n", 3)
        for n in (1, 4):
            assert session.run({"x": np.full((n, 3), -2, np.float32)})["y"].tolist() == [[2, 2, 2]] * n
        with pytest.raises(UsageError, match="every shape is fixed"):
            session.bind()
        with pytest.raises(InputError, match=r"expected float32 \[n, 3\]"):
            session.run({"x": np.ones((2, 4), np.float32)})


def test_inner_values_can_be_fetched(simple):
    with Session(simple, fetch=["inner"], threads=1) as session:
        outputs = session.run({"x": X})
        assert np.array_equal(outputs["inner"], -X)
    with pytest.raises(UsageError, match="no value 'iner'") as caught:
        Session(simple, fetch=["iner"])
    assert "inner" in caught.value.hint


@pytest.mark.native
def test_inner_values_of_a_dlc_bear_the_name_they_were_asked_by(tmp_path):
    source = Path(__file__).parents[1] / "examples" / "digits" / "digits.onnx"
    npukit.convert(source, output=tmp_path / "d.dlc", verify=False)
    image = {"image": np.linspace(0, 1, 64, dtype=np.float32).reshape(1, 1, 8, 8)}
    with Session(source, fetch=["conv1.pool"]) as session:
        expected = session.run(image)
    with Session(tmp_path / "d.dlc", backend="ort", fetch=["conv1.pool", "conv1_relu", "scores"]) as session:
        outputs = session.run(image)
    assert set(outputs) == {"scores", "conv1.pool", "conv1_relu"}
    assert np.allclose(outputs["conv1.pool"].transpose(0, 3, 1, 2), expected["conv1.pool"], atol=1e-5)
    assert np.allclose(outputs["scores"], expected["scores"], atol=1e-4)


@pytest.mark.parametrize("name", ["bfloat16", "float16", "float64", "int64"])
def test_element_types_on_onnx_runtime(tmp_path, name, in_process):
    elem = helper.np_dtype_to_tensor_dtype(np.dtype(name))
    nodes = [helper.make_node("Identity", ["x"], ["y"])]
    values = [helper.make_tensor_value_info(n, elem, [3]) for n in "xy"]
    graph = helper.make_graph(nodes, "g", values[:1], values[1:])
    data = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10).SerializeToString()
    with Session(data, in_process=in_process) as session:
        value = np.array([1, 2, 3]).astype(np.dtype(name))
        back = session.run({"x": value})["y"]
        assert back.dtype == value.dtype
        assert np.array_equal(back, value)


def test_external_data_is_found(tmp_path, in_process):
    weight = np.arange(3, dtype=np.float32)
    graph = helper.make_graph(
        [helper.make_node("Add", ["x", "w"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", 1, [3])],
        [helper.make_tensor_value_info("y", 1, [3])],
        [numpy_helper.from_array(weight, "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    onnx.save(model, tmp_path / "m.onnx", save_as_external_data=True, location="m.data", size_threshold=0)
    with Session(tmp_path / "m.onnx", in_process=in_process, fetch=["w"]) as session:
        assert session.run({"x": weight})["y"].tolist() == [0, 2, 4]


# ---------------------------------------------------------------- session: use and misuse


def test_threads_may_share_a_session(simple, in_process):
    with Session(simple, in_process=in_process) as session, ThreadPoolExecutor(4) as threads:
        results = list(threads.map(lambda i: session.run({"x": X * i})["y"], range(24)))
        assert all(np.array_equal(result, np.abs(X * i)) for i, result in enumerate(results))


def test_run_async_keeps_order_and_raises_input_faults_at_once(simple):
    with Session(simple) as session:
        futures = [session.run_async({"x": X * i}) for i in range(5)]
        assert all(np.array_equal(f.result(10)["y"], np.abs(X * i)) for i, f in enumerate(futures))
        with pytest.raises(InputError):
            session.run_async({})


def test_closing(simple, in_process):
    session = Session(simple, in_process=in_process)
    session.run({"x": X})
    session.close()
    session.close()
    assert session.closed
    for use in (lambda: session.run({"x": X}), lambda: session.run_async({"x": X}), session.bind, session.profile):
        with pytest.raises(UsageError, match="is closed"):
            use()


def test_pickling_is_refused_with_a_sentence(simple):
    with Session(simple, in_process=True) as session:
        for refuse in (pickle.dumps, copy.copy, copy.deepcopy):
            with pytest.raises(TypeError, match="cannot be pickled: it holds native memory"):
                refuse(session)


@pytest.mark.skipif(sys.platform != "linux", reason="kills by signal")
def test_a_dead_worker_is_an_error_that_stays(simple):
    session = Session(simple)
    os.kill(session._worker.pid, 9)
    for _ in range(2):
        with pytest.raises(WorkerDied):
            session.run({"x": X})
    session.close()


def test_anything_with_a_path_is_a_model(simple):
    class Saved:
        path = simple

    with Session(Saved(), in_process=True) as session:
        assert session.run({"x": X})["y"].shape == X.shape


@pytest.mark.parametrize(
    ("options", "words"),
    [({"backend": "qnncpu"}, "did you mean 'qnn-cpu'?"), ({"threads": 0}, "0 threads"),
     ({"backend": "qnn-cpu", "fetch": ["inner"]}, "from backend ort")],
)  # fmt: skip
def test_wrong_options(simple, options, words):
    with pytest.raises(UsageError) as caught:
        Session(simple, **options)
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("m.onnx", None, "there is no such file"),
        ("m.onnx", b"", "the file is empty"),
        ("m.so", b"\x7fELF" + bytes(60), "model library"),
        ("m.tflite", b"\x1c\0\0\0TFL3" + bytes(60), "TensorFlow Lite"),
        ("m.npy", b"\x93NUMPY" + bytes(60), "numpy array"),
        ("m.onnx", b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
        ("m.txt", b"hello world, this is text", "neither an ONNX model"),
        ("m.pt", b"PK\x03\x04" + bytes(22) + b"\x0a\0\0\0archive/da", "not a DLC"),
    ],
)
def test_files_that_are_no_models_are_named(tmp_path, name, content, words):
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ModelError) as caught:
        Session(path)
    assert words in str(caught.value)


def test_a_folder_is_no_model(tmp_path):
    with pytest.raises(ModelError, match="cannot be read"):
        Session(tmp_path)


@given(st.binary(min_size=1, max_size=300), st.sampled_from(["m.onnx", "m.bin", "m", "m.dlc"]))
@settings(max_examples=60, deadline=None)
def test_any_bytes_are_a_kind_or_an_error(tmp_path_factory, content, name):
    path = tmp_path_factory.getbasetemp() / name
    path.write_bytes(content)
    try:
        kind = file_kind(path)
    except ModelError as error:
        kind = error.where
    assert kind in (*KIND_WORDS, str(path))


def test_a_broken_model_is_a_model_error(simple, tmp_path):
    path = tmp_path / "broken.onnx"
    path.write_bytes(simple.read_bytes()[:50])
    with pytest.raises(ModelError, match="ONNX Runtime cannot load"):
        Session(path)


def test_importing_session_stays_light():
    code = (
        "import sys\nfrom npukit.runtime.session import Session\n"
        "print(sorted({m.split('.')[0] for m in sys.modules}"
        " & {'onnx', 'onnxruntime', 'onnx_ir', 'onnxscript', 'torch', 'rich', 'typer', 'yaml', 'google'}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == "[]", done.stderr


# ---------------------------------------------------------------- session on Qualcomm's libraries

native_only = pytest.mark.native


def conv_graph(op_type="Relu"):
    rng = np.random.default_rng(1)
    u32 = DType.UINT_32
    x = Tensor("x_t", DType.FLOAT_32, (1, 6, 6, 3), TensorKind.APP_WRITE)
    w = Tensor("w", DType.FLOAT_32, (3, 3, 3, 4), TensorKind.STATIC)
    w.data = rng.standard_normal(w.shape).astype(np.float32)
    b = Tensor("b", DType.FLOAT_32, (4,), TensorKind.STATIC, data=rng.standard_normal(4).astype(np.float32))
    m = Tensor("m", DType.FLOAT_32, (1, 6, 6, 4))
    y = Tensor("y_t", DType.FLOAT_32, (1, 6, 6, 4), TensorKind.APP_READ)
    pairs = {"stride": [1, 1], "dilation": [1, 1], "pad_amount": [[1, 1], [1, 1]]}
    params = {name: Param(u32, np.array(value, np.uint32)) for name, value in pairs.items()}
    ops = [Op("conv", "Conv2d", [x, w, b], [m], {**params, "group": Param(u32, 1)}), Op("act", op_type, [m], [y])]
    return Graph("net", [x], [y], ops)


@pytest.fixture(scope="module")
def conv_dlc(tmp_path_factory):
    path = tmp_path_factory.mktemp("dlc") / "conv.dlc"
    nhwc = (0, 2, 3, 1)
    stamp = Stamp(
        "0.1.0",
        targets=("qnn-cpu", "sm8650"),
        inputs=(IoTensor("x", "float32", (1, 3, 6, 6), "x_t", "FLOAT_32", nhwc),),
        outputs=(IoTensor("y", "float32", (1, 4, 6, 6), "y_t", "FLOAT_32", nhwc),),
    )
    worker.call("npukit.artifacts.dlc:write", Model({"net": conv_graph()}), path, stamp)
    return path


@pytest.fixture(scope="module")
def conv_reference():
    """The convolution by its definition, in float64."""
    graph = conv_graph()
    w, b = (t.data.astype(np.float64) for t in graph.ops[0].inputs[1:])
    padded = np.pad(X.astype(np.float64), ((0, 0), (0, 0), (1, 1), (1, 1)))
    y = np.zeros((1, 4, 6, 6)) + b.reshape(1, 4, 1, 1)
    for i in range(3):
        for j in range(3):
            y += np.einsum("nchw,co->nohw", padded[:, :, i : i + 6, j : j + 6], w[i, j])
    return np.maximum(y, 0)


@native_only
@pytest.mark.parametrize(("backend", "error"), [("qnn-cpu", 1e-5), ("qnn-htp", 2e-2), ("ort", 1e-5)])
def test_a_dlc_on_every_backend(conv_dlc, conv_reference, in_process, backend, error, capfd):
    with Session(conv_dlc, backend=backend, in_process=in_process) as session:
        y = session.run({"x": X})["y"]
        assert y.dtype == np.float32
        assert np.abs(y - conv_reference).max() < error
        assert np.array_equal(session.run({"x_t": X})["y"], y)
        assert session.backend == backend
        assert session.stamp is not None
        (info,) = session.inputs
        assert (info.shape, info.native.shape, info.native.name) == ((1, 3, 6, 6), (1, 6, 6, 3), "x_t")
        binding = session.bind()
        binding.inputs["x"][:] = X.transpose(0, 2, 3, 1)
        binding.run()
        assert np.array_equal(binding.outputs["y"].transpose(0, 3, 1, 2), y)
        assert session.profile({"x": X})
        if backend != "ort":
            assert [(p.op, p.type, p.backend) for p in session.placement] == [
                ("conv", "Conv2d", backend),
                ("act", "ElementWiseNeuron", backend),  # libQnnIr writes Relu as this
            ]
        if backend == "qnn-htp":
            assert "sm8650" in session.library  # the stamp's target, not the default
    assert capfd.readouterr().out == ""


@native_only
def test_a_dlc_runs_on_qnn_cpu_by_default(conv_dlc):
    with Session(conv_dlc) as session:
        assert session.backend == "qnn-cpu"
        with pytest.raises(InputError, match="own layout"):
            session.run({"x": X.transpose(0, 2, 3, 1)})
    with pytest.raises(UsageError, match="no graph 'nett'") as caught:
        Session(conv_dlc, graph="nett")
    assert "did you mean 'net'?" in caught.value.hint


@native_only
def test_a_dlc_without_stamp_speaks_native_tensors(tmp_path, conv_reference):
    path = tmp_path / "bare.dlc"
    worker.call("npukit.qnn.api.dlc:write_dlc", Model({"net": conv_graph()}), path)
    with Session(path) as session:
        assert session.stamp is None
        y = session.run({"x_t": np.ascontiguousarray(X.transpose(0, 2, 3, 1))})["y_t"]
        assert np.abs(y.transpose(0, 3, 1, 2) - conv_reference).max() < 1e-5


@native_only
def test_an_onnx_model_on_a_qnn_backend(simple):
    with Session(simple, backend="qnn-cpu") as session:
        assert np.array_equal(session.run({"x": X})["y"], np.abs(X))
        assert {p.backend for p in session.placement} == {"qnn-cpu"}


@pytest.fixture(scope="module")
def conv_binary(conv_dlc):
    path = conv_dlc.with_suffix(".bin")
    stamp = worker.call("npukit.artifacts.dlc:read_info", conv_dlc).stamp
    target = targets.target("sm8650")
    worker.call("npukit.artifacts.context:compile", Model({"net": conv_graph()}), target, path, stamp)
    return path


@native_only
def test_a_context_binary(conv_binary, conv_reference, in_process):
    with Session(conv_binary, in_process=in_process) as session:
        assert session.backend == "qnn-htp"
        assert "sm8650" in session.library
        assert np.abs(session.run({"x": X})["y"] - conv_reference).max() < 2e-2
        assert [(p.op, p.type, p.backend) for p in session.placement] == [("net", "", "qnn-htp")]


@native_only
def test_a_context_binary_for_what_it_was_not_made_for(conv_binary):
    with pytest.raises(UsageError, match="compiled for Hexagon V75, sm8550 has V73"):
        Session(conv_binary, target="sm8550")
    with pytest.raises(UsageError, match="a context binary cannot run on qnn-cpu"):
        Session(conv_binary, backend="qnn-cpu")


@native_only
def test_a_damaged_context_binary(conv_binary, tmp_path):
    data = bytearray(conv_binary.read_bytes())
    data[len(data) // 2] ^= 1
    path = tmp_path / "flipped.bin"
    path.write_bytes(data)
    sidecar = Path(f"{conv_binary}.npukit.json").read_bytes()
    Path(f"{path}.npukit.json").write_bytes(sidecar)
    with pytest.raises(ArtifactError, match="SHA-256 differs"):
        Session(path)
    for content in (bytes(data[:200]), bytes(4096), b"not a context binary"):
        path = tmp_path / "other.bin"
        path.write_bytes(content)
        with pytest.raises(NpukitError) as caught:
            Session(path)
        assert caught.value.exit_code in (2, 3)


@native_only
@pytest.mark.parametrize("cut", [100, 3000])
def test_a_truncated_dlc_is_an_error(conv_dlc, tmp_path, cut):
    path = tmp_path / "cut.dlc"
    path.write_bytes(conv_dlc.read_bytes()[:-cut])
    with pytest.raises(ArtifactError):
        Session(path)


@native_only
def test_ops_that_the_backend_refuses_are_all_listed():
    graph = conv_graph("NoSuchOp")
    graph.ops[0].params.pop("stride")
    with pytest.raises(GraphError, match="2 of 2 ops cannot run on qnn-cpu") as caught:
        worker.call(
            "npukit.runtime.qnn:QnnEngine.compose", Request(None, "dlc", "qnn-cpu"), graph, None, None, "a test"
        )
    assert [fault.where for fault in caught.value.faults] == ["conv", "act"]


# In an interpreter of its own: threads and allocators of other tests would count here. A leak is in every round,
# pages that an allocator takes once are not.
GROWTH = """
import os, sys
from pathlib import Path
import numpy as np
from npukit.runtime.session import Session

def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

feeds = {"x": np.load(sys.argv[2])}
with Session(sys.argv[1], in_process=True) as session:
    sizes = []
    for _ in range(4):
        for _ in range(500):
            session.run(feeds)
        sizes.append(resident())
print(min(np.diff(sizes)))
"""


@native_only
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_stays_flat_over_many_runs(conv_dlc, tmp_path):
    np.save(tmp_path / "x.npy", X)
    done = subprocess.run(
        [sys.executable, "-c", GROWTH, conv_dlc, tmp_path / "x.npy"], capture_output=True, text=True, check=True
    )
    assert int(done.stdout) < 1 << 18  # 500 bytes a run


def test_buffers_larger_than_the_disk_take_nothing_of_it(tmp_path, monkeypatch):
    def filled(*_):
        raise AssertionError("the disk was filled before the size was compared")

    monkeypatch.setattr("npukit.runtime.host.os.posix_fallocate", filled)
    with open(tmp_path / "buffers", "x+b") as file, pytest.raises(OSError, match="No space left"):
        host._reserve(file.fileno(), 1 << 60)

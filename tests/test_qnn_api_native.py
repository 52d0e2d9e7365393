# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""The QNN binding against Qualcomm's own libraries: libQnnCpu and the HTP emulator, checked with numpy."""

from __future__ import annotations

import gc
import subprocess
import sys
import threading

import numpy as np
import pytest

from npukit.errors import ArtifactError, GraphError, InputError, MissingDependency, NativeError, NpukitError, UsageError
from npukit.qnn.api import libraries
from npukit.qnn.api.backend import Backend, Context, GraphOptions, Profile
from npukit.qnn.api.quiet import quiet_fds
from npukit.qnn.graph import DType, Encoding, Graph, Op, Param, Tensor, TensorKind

pytestmark = pytest.mark.native

F32, Q8, S8, S32 = DType.FLOAT_32, DType.UFIXED_POINT_8, DType.SFIXED_POINT_8, DType.SFIXED_POINT_32
SM8650 = 57
TOLERANCE = {"cpu": 1e-5, "htp": 2e-2}  # HTP of this SoC computes float32 graphs in float16


@pytest.fixture(scope="module", params=["cpu", "htp"])
def backend(request):
    with _backend(request.param) as made:
        yield made


def _backend(role: str) -> Backend:
    try:
        return Backend(role, soc_id=SM8650 if role == "htp" else None)
    except MissingDependency as error:
        pytest.skip(str(error))


def _static(name: str, dtype: DType, data: np.ndarray, encoding: Encoding | None = None) -> Tensor:
    return Tensor(name, dtype, data.shape, TensorKind.STATIC, encoding, data)


def _graph(
    op_type: str, shape, out_shape, statics=(), params=None, dtype=F32, encodings=(None, None), name="g"
) -> Graph:
    x = Tensor("x", dtype, shape, TensorKind.APP_WRITE, encodings[0])
    y = Tensor("y", dtype, out_shape, TensorKind.APP_READ, encodings[1])
    return Graph(name, [x], [y], [Op("op", op_type, [x, *statics], [y], params or {})])


def _relu(name: str = "relu", shape=(1, 64)) -> Graph:
    return _graph("Relu", shape, shape, name=name)


def _u32(value) -> Param:
    return Param(DType.UINT_32, np.array(value, np.uint32))


def _same_padding() -> dict[str, Param]:
    return {"stride": _u32([1, 1]), "pad_amount": _u32([[1, 1], [1, 1]])}


def _convolution(x: np.ndarray, w: np.ndarray) -> np.ndarray:
    padded = np.pad(x.astype(np.float64), ((0, 0), (1, 1), (1, 1), (0, 0)))
    height, width = x.shape[1:3]
    taps = ((padded[:, i : i + height, j : j + width] @ w[i, j]) for i in range(3) for j in range(3))
    return np.sum(list(taps), axis=0)


def _run(backend: Backend, graph: Graph, x: np.ndarray, **options) -> np.ndarray:
    with quiet_fds(), backend.context() as context:
        handle = context.add_graph(graph, **options)
        handle.finalize()
        return _execute(handle, x)


def _execute(handle, x: np.ndarray) -> np.ndarray:
    output = handle.outputs[0]
    y = np.full(output.shape, 99, output.dtype.numpy)
    handle.execute([x], [y])
    return y


# ---- numbers


def test_relu(backend):
    rng = np.random.default_rng(1)
    x = rng.standard_normal((1, 64), np.float32)
    np.testing.assert_allclose(_run(backend, _relu(), x), np.maximum(x, 0), atol=TOLERANCE[backend.role])


def test_convolution_with_strided_weights(backend):
    rng = np.random.default_rng(2)
    x = rng.standard_normal((1, 8, 8, 4), np.float32)
    w = rng.standard_normal((8, 4, 3, 3), np.float32).transpose(2, 3, 1, 0)  # a view: not dense
    b = np.arange(8, dtype=np.float32)
    statics = (_static("w", F32, w), _static("b", F32, b))
    graph = _graph("Conv2d", x.shape, (1, 8, 8, 8), statics, _same_padding())
    y = _run(backend, graph, x)
    np.testing.assert_allclose(y, _convolution(x, w) + b, atol=TOLERANCE[backend.role], rtol=2e-3)


def test_many_large_strided_weights(backend):
    """Weights that are made dense ahead, in buffers that take turns; one stands twice, one comes last but one dense."""
    rng = np.random.default_rng(4)
    made = [rng.standard_normal((300, 300)).astype(np.float32) / 17 for _ in range(5)]
    weights = [_static(f"w{i}", F32, w if i == 3 else w.T.copy().T) for i, w in enumerate(made)]
    order = [0, 1, 0, 2, 3, 4]
    first = Tensor("x", F32, (2, 300), TensorKind.APP_WRITE)
    ops, last = [], first
    for i, number in enumerate(order):
        kind = TensorKind.APP_READ if i == len(order) - 1 else TensorKind.NATIVE
        result = Tensor(f"y{i}", F32, (2, 300), kind)
        ops.append(Op(f"op{i}", "FullyConnected", [last, weights[number]], [result]))
        last = result
    x = rng.standard_normal((2, 300)).astype(np.float32)
    found = _run(backend, Graph("many", [first], [last], ops), x)
    expected = x.astype(np.float64)
    for number in order:
        expected = expected @ made[number].T
    np.testing.assert_allclose(found, expected, atol=TOLERANCE[backend.role] * np.abs(expected).max())


def test_fully_connected(backend):
    rng = np.random.default_rng(3)
    x, w = rng.standard_normal((2, 16), np.float32), rng.standard_normal((8, 16), np.float32)
    graph = _graph("FullyConnected", x.shape, (2, 8), (_static("w", F32, w),))
    np.testing.assert_allclose(_run(backend, graph, x), x @ w.T, atol=TOLERANCE[backend.role])


def _quantized_convolution(rng, *, bias: bool = True) -> tuple[Graph, np.ndarray, np.ndarray]:
    scales = 0.01 * np.arange(1, 9)
    x, w = rng.integers(0, 256, (1, 8, 8, 4), np.uint8), rng.integers(-127, 128, (3, 3, 4, 8), np.int8)
    weight = _static("w", S8, w, Encoding(tuple(scales), (0,) * 8, axis=3))
    zero = _static("b", S32, np.zeros(8, np.int32), Encoding(tuple(0.02 * scales), (0,) * 8, axis=0))
    encodings = Encoding.per_tensor(0.02, -128), Encoding.per_tensor(0.5, -128)
    statics = (weight, zero) if bias else (weight,)
    graph = _graph("Conv2d", x.shape, (1, 8, 8, 8), statics, _same_padding(), Q8, encodings)
    real = _convolution((x.astype(float) - 128) * 0.02, w * scales)
    return graph, x, np.clip(np.rint(real / 0.5) + 128, 0, 255)


def test_quantized_convolution_is_within_one_step(backend):
    graph, x, expected = _quantized_convolution(np.random.default_rng(4))
    assert backend.validate(graph.ops[0]) is None
    assert np.abs(_run(backend, graph, x).astype(int) - expected).max() <= 1


def test_absent_middle_and_last_inputs():
    # On HTP a LayerNorm without gamma validates and fails at finalize, so the middle one is tried on the CPU.
    with _backend("cpu") as backend:
        x = np.random.default_rng(5).standard_normal((2, 16), np.float32)
        params = {"axes": _u32([1]), "epsilon": Param(F32, 1e-5)}
        beta = _static("beta", F32, np.full(16, 2, np.float32))
        y = _run(backend, _graph("LayerNorm", x.shape, x.shape, (None, beta), params), x)
        np.testing.assert_allclose(y, (x - x.mean(1, keepdims=True)) / x.std(1, keepdims=True) + 2, atol=1e-3)
    for role in ("cpu", "htp"):
        with _backend(role) as backend:
            w = np.eye(16, dtype=np.float32)
            y = _run(backend, _graph("FullyConnected", x.shape, x.shape, (_static("w", F32, w), None)), x)
            np.testing.assert_allclose(y, x, atol=TOLERANCE[role])


# ---- validation


def test_validation_needs_no_data_and_names_the_reason(backend):
    graph, _, _ = _quantized_convolution(np.random.default_rng(6))
    for tensor in graph.ops[0].inputs[1:]:
        tensor.data = None
    assert backend.validate(graph.ops[0]) is None
    x, y = Tensor("first", DType.INT_64, (1, 4)), Tensor("second", DType.BOOL_8, (1, 4))
    reason = backend.validate(Op("r", "Relu", [x], [y]))
    assert reason.startswith("3110 QNN_OP_PACKAGE_ERROR_VALIDATION_FAILURE")
    assert "first" in reason
    assert "second" in reason
    assert backend.validate(Op("r", "Nonsense", [x], [y])).startswith("4005 ")
    assert backend.validate(_relu().ops[0]) is None  # usable after refusals


def test_supported_operations(backend):
    names = backend.supported_operations()
    assert {"Conv2d", "Relu", "MatMul"} <= set(names)
    assert not [name for name in names if name.isupper()]


def test_trap_an_op_is_validated_before_it_is_added(backend):
    # Unvalidated, this one crashes libQnnCpu in graphAddNode.
    with quiet_fds(), backend.context() as context:
        with pytest.raises(NativeError, match=r"op op \(Conv2d\).*3110"):
            context.add_graph(_graph("Conv2d", (1, 4, 4, 1), (1, 4, 4, 1)))
        assert context.add_graph(_relu()).name == "relu"  # the context is usable after the error


def test_trap_matmul_with_per_axis_weights_and_no_params():
    with _backend("htp") as backend:
        w = _static("w", S8, np.ones((16, 8), np.int8), Encoding((0.1,) * 8, (0,) * 8, axis=1))
        encodings = Encoding.per_tensor(0.02, -128), Encoding.per_tensor(0.5, -128)
        graph = _graph("MatMul", (2, 16), (2, 8), (w,), None, Q8, encodings)
        assert backend.validate(graph.ops[0]) is None
        x = np.full((2, 16), 228, np.uint8)  # real 2.0 each, so 16 * 2.0 * 0.1 = 3.2, in steps of 0.5
        np.testing.assert_allclose(_run(backend, graph, x), 128 + 3.2 / 0.5, atol=1)


def test_trap_quantized_convolution_without_bias():
    graph, x, expected = _quantized_convolution(np.random.default_rng(7), bias=False)
    with _backend("cpu") as backend:
        assert "zero bias" in backend.validate(graph.ops[0])
        with backend.context() as context, pytest.raises(GraphError, match="zero bias"):
            context.add_graph(graph)
    with _backend("htp") as backend:
        assert np.abs(_run(backend, graph, x).astype(int) - expected).max() <= 1


# ---- composing


def test_a_graph_that_cannot_be_meant(backend):
    twice = _relu("twice")
    twice.outputs[0].name = "x"
    empty = _graph("FullyConnected", (2, 4), (2, 4), (Tensor("w", F32, (4, 4), TensorKind.STATIC),), name="empty")
    with quiet_fds(), backend.context() as context:
        with pytest.raises(GraphError, match="tensor x"):
            context.add_graph(twice)
        with pytest.raises(GraphError, match="tensor w: a static tensor has no data"):
            context.add_graph(empty)
        context.add_graph(_relu())
        with pytest.raises(NativeError, match="6003"):
            context.add_graph(_relu())


def test_options_of_another_backend_are_refused(backend, tmp_path):
    with quiet_fds(), backend.context() as context:
        with pytest.raises(UsageError, match="dlc_path"):
            context.add_graph(_relu(), options=GraphOptions(dlc_path=tmp_path / "x.dlc"))
        options = GraphOptions(optimization=2, vtcm_mb=4, hvx_threads=2)
        if backend.role == "cpu":
            with pytest.raises(UsageError, match="optimization"):
                context.add_graph(_relu(), options=options)
        else:
            context.add_graph(_relu("tuned"), options=options).finalize()


def test_dlc_writer_writes_the_weights(tmp_path):
    w = np.random.default_rng(8).standard_normal((8, 16), np.float32)
    path = tmp_path / "model.dlc"
    with quiet_fds(), _backend("ir") as backend, backend.context() as context:
        graph = _graph("FullyConnected", (2, 16), (2, 8), (_static("w", F32, w),))
        context.add_graph(graph, options=GraphOptions(dlc_path=path)).finalize()
        with pytest.raises(UsageError, match="folder"):
            context.add_graph(_relu(), options=GraphOptions(dlc_path=tmp_path / "no" / "x.dlc"))
    assert w.tobytes() in path.read_bytes()


# ---- devices and context binaries


def test_trap_htp_has_a_device_with_the_targets_soc():
    if not libraries.installed():
        pytest.skip("no libraries")
    with pytest.raises(UsageError, match="SoC id"):
        Backend("htp")
    with pytest.raises(UsageError, match="SoC 999"):
        Backend("htp", soc_id=999)


def test_trap_each_backend_validates_for_its_own_chip():
    """With two open, libQnnHtp would validate for the one opened last: QCS6490 refuses float32."""
    relu = Op("r", "Relu", [Tensor("x", F32, (1, 4))], [Tensor("y", F32, (1, 4))])
    with Backend("htp", soc_id=35) as old, Backend("htp", soc_id=43) as new:
        assert old.validate(relu) is not None
        assert new.validate(relu) is None
        assert old.validate(relu) is not None


def test_context_binary_round_trip(backend):
    x = np.linspace(-2, 2, 64, dtype=np.float32).reshape(1, 64)
    with quiet_fds(), backend.context() as context:
        for name in ("one", "two"):
            context.add_graph(_relu(name)).finalize()
        data = context.binary()
    with Context.from_binary(backend, data) as loaded:
        assert sorted(loaded.graphs) == ["one", "two"]  # libQnnCpu keeps no order
        handle = loaded.graph("two")
        assert [(t.name, t.dtype, t.shape) for t in handle.inputs] == [("x", F32, (1, 64))]
        np.testing.assert_allclose(_execute(handle, x), np.maximum(x, 0), atol=2e-3)
        with pytest.raises(UsageError, match="no graph 'onee'"):
            loaded.graph("onee")


def test_a_context_binary_of_another_backend_is_refused():
    with quiet_fds(), _backend("cpu") as cpu, _backend("htp") as htp, htp.context() as context:
        context.add_graph(_relu()).finalize()
        data = context.binary()
        with pytest.raises(ArtifactError, match="backend 6, not 3"):
            Context.from_binary(cpu, data)
        with pytest.raises(NpukitError):
            Context.from_binary(htp, data[: len(data) // 2])


@pytest.mark.parametrize("data", [b"", b"not a context binary" * 50])
def test_what_is_no_context_binary_is_refused(backend, data):
    with pytest.raises(ArtifactError, match="no context binary"):
        Context.from_binary(backend, data)


# ---- execution


@pytest.fixture(scope="module")
def relu(backend):
    with quiet_fds():
        context = backend.context()
        handle = context.add_graph(_relu())
        handle.finalize()
    yield handle
    context.close()


@pytest.mark.parametrize(
    ("inputs", "outputs", "says"),
    [
        ([np.ones((1, 64))], [np.ones((1, 64), np.float32)], "input x: expected float32 .* got float64"),
        ([np.ones((64, 1), np.float32)], [np.ones((1, 64), np.float32)], r"got float32 \[64, 1\]"),
        ([np.ones((1, 128), np.float32)[:, ::2]], [np.ones((1, 64), np.float32)], "not contiguous"),
        ([], [np.ones((1, 64), np.float32)], "1 inputs, 0 arrays"),
        ([np.ones((1, 64), np.float32)], [np.frombuffer(bytes(256), np.float32).reshape(1, 64)], "read-only"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(relu, inputs, outputs, says):
    with pytest.raises(InputError, match=says):
        relu.execute(inputs, outputs)


def test_changed_contents_and_changed_buffers(relu):
    x, y = np.full((1, 64), 1, np.float32), np.zeros((1, 64), np.float32)
    for value in (2, 3):
        x[:] = value
        relu.execute([x], [y])
        np.testing.assert_allclose(y, value, atol=1e-2)
    other = np.full((1, 64), 7, np.float32)
    relu.execute([other], [y])
    np.testing.assert_allclose(y, 7, atol=2e-2)


def test_trap_threads_do_not_swap_outputs(backend, relu):
    with quiet_fds(), backend.context() as context:
        negative = context.add_graph(_graph("ElementWiseNeg", (1, 64), (1, 64), name="negative"))
        negative.finalize()
        wrong: list[float] = []

        def work(handle, value: float, expected: float) -> None:
            x, y = np.full((1, 64), value, np.float32), np.zeros((1, 64), np.float32)
            for _ in range(100):
                y[:] = 0
                handle.execute([x], [y])
                if np.abs(y - expected).max() > 0.02:
                    wrong.append(float(y.flat[0]))

        jobs = [(relu, 2, 2), (relu, 3, 3), (negative, 2, -2)]
        threads = [threading.Thread(target=work, args=job) for job in jobs]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert wrong == []


def test_profile(backend, relu):
    profile = Profile(backend, "detailed")
    x, y = np.ones((1, 64), np.float32), np.zeros((1, 64), np.float32)
    relu.execute([x], [y], profile)
    events = profile.events()
    total = [event for event in events if event.kind == 400]
    assert [event.unit for event in total] == ["us"]
    assert any("op" in child.identifier for event in events for child in event.children)
    profile.close()
    with pytest.raises(UsageError, match="basic or detailed"):
        Profile(backend, "full")


# ---- lifetimes


def test_order_of_release(backend):
    other = _backend(backend.role)
    x, y = np.ones((1, 64), np.float32), np.zeros((1, 64), np.float32)
    with quiet_fds():
        handle = other.context().add_graph(_relu())  # the context is referenced by the graph only
        gc.collect()
        with pytest.raises(UsageError, match="not finalized"):
            handle.execute([x], [y])
        handle.finalize()
    handle.execute([x], [y])
    np.testing.assert_allclose(y, 1, atol=1e-2)
    other.close()
    other.close()
    for use in (lambda: handle.execute([x], [y]), handle.finalize, other.context):
        with pytest.raises(UsageError, match="closed"):
            use()


@pytest.mark.parametrize("role", ["cpu", "htp"])
def test_exit_with_everything_open_is_clean(role):
    _backend(role).close()
    code = (
        "from npukit.qnn.api.backend import Backend, Profile\n"
        "from npukit.qnn.graph import *\n"
        f"b = Backend({role!r}, soc_id={SM8650 if role == 'htp' else None}); c = b.context(); p = Profile(b)\n"
        "x = Tensor('x', DType.FLOAT_32, (1, 4), TensorKind.APP_WRITE)\n"
        "y = Tensor('y', DType.FLOAT_32, (1, 4), TensorKind.APP_READ)\n"
        "g = c.add_graph(Graph('g', [x], [y], [Op('o', 'Relu', [x], [y])])); g.finalize(p)\n"
        "cycle = [g, c, b]; cycle.append(cycle)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr


def test_errors_are_npukits(backend):
    assert issubclass(NativeError, NpukitError)
    with pytest.raises(UsageError, match="unknown library role"):
        Backend("dsp")
    with pytest.raises(UsageError, match="weight sharing"):
        _backend("cpu").context(weight_sharing=True)

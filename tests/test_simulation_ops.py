# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""Single quantized ops: the simulation against the HTP emulator, held to the bounds of the capability table."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest

import npukit
from benchmarks import simulation_run
from benchmarks.simulation_cases import Row
from npukit.artifacts.dlc import read
from npukit.qnn.graph import DType, Encoding, Graph, Op, Param, Tensor, TensorKind
from npukit.quantization.capabilities import capability
from npukit.quantization.roles import weight_axis
from npukit.quantization.simulation import Simulation, native_feeds, real_outputs
from npukit.raising import as_computed
from npukit.targets import htp_arch


@pytest.fixture(autouse=True, scope="module")
def _emulator() -> Iterator[None]:
    """The emulator is opened here: what another module opened would answer for another chip."""
    simulation_run.close()
    yield
    simulation_run.close()


def _norm(kind: str) -> Graph:
    x = Tensor("x", DType.UFIXED_POINT_8, (2, 4), TensorKind.APP_WRITE, Encoding.per_tensor(0.05, -128))
    y = Tensor("y", DType.UFIXED_POINT_8, (2, 4), TensorKind.APP_READ, Encoding.per_tensor(0.1, -128))
    static = TensorKind.STATIC
    gamma = Tensor("g", DType.UFIXED_POINT_8, (4,), static, Encoding.per_tensor(0.01), np.full(4, 100, np.uint8))
    values = np.array([14, 16, -26, 0], np.int32)
    beta = Tensor("b", DType.SFIXED_POINT_32, (4,), static, Encoding.per_tensor(0.01), values)
    params = {"axes": Param(DType.UINT_32, np.array([1], np.uint32)), "epsilon": Param(DType.FLOAT_32, 1e-5)}
    return Graph("g", [x], [y], [Op("norm", kind, [x, gamma, beta], [y], params)])


@pytest.mark.parametrize(
    ("kind", "added"), [("LayerNorm", [0.1, 0.2, -0.3, 0]), ("RmsNorm", [0.095, 0.115, -0.305, -0.045])]
)
def test_norms_add_what_htp_adds(kind: str, added: list[float]) -> None:
    graph = _norm(kind)
    beta = as_computed(graph).ops[0].inputs[2]
    assert beta is not None
    np.testing.assert_allclose(beta.data, added, atol=1e-6)
    assert graph.ops[0].inputs[2].name == "b", "the graph itself stays as it is"


def _pair(kind: str, output: TensorKind = TensorKind.NATIVE, dtype: DType = DType.UFIXED_POINT_8) -> Graph:
    """Batchnorm and a HardSwish behind it."""
    encoding = Encoding.per_tensor(0.05, -128)
    x = Tensor("x", dtype, (1, 2, 2, 4), TensorKind.APP_WRITE, encoding)
    between, y = (
        Tensor("m", dtype, x.shape, output, encoding),
        Tensor("y", dtype, x.shape, TensorKind.APP_READ, encoding),
    )
    ones = np.full(4, 100, np.uint8)
    gamma = Tensor("g", DType.UFIXED_POINT_8, (4,), TensorKind.STATIC, Encoding.per_tensor(0.01), ones)
    beta = Tensor("b", DType.UFIXED_POINT_8, (4,), TensorKind.STATIC, Encoding.per_tensor(0.01), ones)
    params = {"operation": Param(DType.UINT_32, 3)} if kind == "ElementWiseNeuron" else {}
    ops = [Op("norm", "Batchnorm", [x, gamma, beta], [between]), Op("then", kind, [between], [y], params)]
    return Graph("g", [x], [between, y] if output is TensorKind.APP_READ else [y], ops)


def test_what_htp_computes_at_once_is_not_rounded_between() -> None:
    for kind in ("HardSwish", "ElementWiseNeuron"):
        ops = as_computed(_pair(kind)).ops
        assert [op.type for op in ops] == ["Batchnorm", "Quantize", kind]
        assert ops[2].inputs == ops[0].outputs
        assert ops[0].outputs[0].dtype is DType.FLOAT_32
    graph = _pair("HardSwish", TensorKind.APP_READ)
    assert as_computed(graph).ops[1].outputs == [graph.outputs[0]], "an output is still made"
    for other in (_pair("Sigmoid"), _pair("HardSwish", dtype=DType.UFIXED_POINT_16)):
        assert [op.type for op in as_computed(other).ops] == [op.type for op in other.ops]
    twice = _pair("HardSwish")
    twice.ops.append(
        Op("again", "Sigmoid", [twice.ops[0].outputs[0]], [Tensor("z", DType.UFIXED_POINT_8, (1, 2, 2, 4))])
    )
    assert len(as_computed(twice).ops) == 3, "what two ops read is rounded"
    joined = _pair("HardSwish")
    result = joined.ops[1].outputs[0]
    for kind, count in (("Concat", 4), ("Sigmoid", 4)):
        joined.ops.append(Op(kind, kind, [result], [Tensor(kind, DType.UFIXED_POINT_8, (1, 2, 2, 4))]))
        assert len(as_computed(joined).ops) == count, "a Concat and another reader keep them apart"


def test_old_architectures_round_between_and_qnn_cpu_computes_what_is_defined() -> None:
    assert [op.type for op in as_computed(_pair("HardSwish"), 68).ops] == ["Batchnorm", "HardSwish"]
    assert as_computed(_norm("LayerNorm"), 68).ops[0].inputs[2].name == "b/added"
    graph = _norm("LayerNorm")
    assert as_computed(graph, 0) is graph
    cases = {("sm8550",): 73, ("sm8750", "sm8350"): 68, ("qnn-cpu", "htp-v73"): 73, (): 73, ("?",): 73, ("qnn-cpu",): 0}
    assert {names: htp_arch(names) for names in cases} == cases


@pytest.mark.native
def test_a_session_on_ort_computes_as_the_emulator_and_the_simulation_do(tmp_path: Path) -> None:
    text = """<ir_version: 9, opset_import: ["": 18]> g (float[1, 32, 64] x) => (float[1, 32, 64] y)
    { n = LayerNormalization (x, gamma, beta) y = Identity (n) }"""
    model, numbers = onnx.parser.parse_model(text), np.random.default_rng(0)
    for name in ("gamma", "beta"):
        values = numbers.normal(1, 0.5, 64).astype(np.float32)
        model.graph.initializer.append(onnx.numpy_helper.from_array(values, name))
    onnx.save(model, tmp_path / "norm.onnx")
    data = numbers.normal(size=(8, 1, 32, 64)).astype(np.float32)
    npukit.quantize(
        tmp_path / "norm.onnx", calibration=list(data), output=tmp_path / "q.dlc", target="sm8550", verify=False
    )
    graph = next(iter(read(tmp_path / "q.dlc")[0].graphs.values()))
    step = graph.outputs[0].encoding.scale
    found = {}
    for backend in ("ort", "qnn-htp"):
        with npukit.Session(tmp_path / "q.dlc", backend=backend) as session:
            found[backend] = session.run({"x": data[0]})["y"]
    feeds = native_feeds(graph, {"x": data[0]}, "qdq")
    for arch, least, most in ((73, 0.9, 1.0), (0, 0.0, 0.85)):  # as HTP computes, and as the definitions say
        ours = real_outputs(graph, Simulation(graph, "qdq", arch=arch).run(feeds))["y"]
        assert np.array_equal(ours, found["ort"]) is (arch == 73)
        assert least <= (np.abs(ours - found["qnn-htp"]) < step / 2).mean() <= most


@pytest.mark.native
@pytest.mark.parametrize("first", ["Conv2d", "DepthWiseConv2d", "FullyConnected", "TransposeConv2d", "ElementWiseAdd"])
@pytest.mark.parametrize("then", ["HardSwish", "Prelu"])
def test_pairs_are_computed_as_the_emulator_does(first: str, then: str) -> None:
    result = simulation_run.compare(f"{first} + {then}", 8, 8, 73)
    assert result["same"] > 0.95
    assert abs(result["sqnr"] - result["emulator_sqnr"]) < 0.2


@pytest.mark.native
@pytest.mark.parametrize("label", ["LayerNorm", "RmsNorm", "RmsNorm of four axes"])
def test_norms_keep_as_much_as_on_the_emulator(label: str) -> None:
    result = simulation_run.compare(label, 8, 8, 73)
    assert result["same"] > 0.9
    assert abs(result["sqnr"] - result["emulator_sqnr"]) < 0.4


def _has_weight(row: Row) -> bool:
    return weight_axis(row.graph()[0].ops[0]) is not None


SLACK = 0.01  # of the elements: ONNX Runtime's float sums depend on the processor


@pytest.mark.native
@pytest.mark.parametrize("label", [label for label, row in simulation_run.table().items() if row.then is None])
def test_within_the_bounds_of_the_table(label: str) -> None:
    row = capability(simulation_run.table()[label].group)
    for bits in (8, 16):
        result = simulation_run.compare(label, bits, 8, 73)
        if "share" not in result or "unreliable" in result:
            assert "error" not in result or label in ("RmsNorm without beta", "MatMul weight and bias")
            continue
        bound = row.bound(bits, 73)
        assert bound is not None
        assert result["share"] >= bound.share - SLACK
        assert result["most"] <= bound.steps + 1
        if bits == 8 and label != "Resize LINEAR to half":
            assert result["share"] >= 0.99


WEIGHTED = [name for name, row in simulation_run.table().items() if row.then is None and _has_weight(row)]


@pytest.mark.native
@pytest.mark.parametrize("label", WEIGHTED)
def test_within_the_bounds_of_the_table_at_other_widths(label: str) -> None:
    row = capability(simulation_run.table()[label].group)
    for bits, weights in ((8, 4), (16, 4), (16, 16)):
        result = simulation_run.compare(label, bits, weights, 73)
        if "share" not in result or "unreliable" in result:
            continue
        bound = row.bound(bits, 73, weights)
        assert bound is not None
        assert result["share"] >= bound.share - SLACK
        assert result["most"] <= bound.steps + 1

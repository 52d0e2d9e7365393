# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""Forms that tensors of a quantized graph can have: 4-bit weights in blocks, 8-bit biases, floats of 16 bits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import npukit
from npukit.analysis import cost
from npukit.artifacts import dlc
from npukit.errors import UsageError
from npukit.qnn.api import libraries
from npukit.qnn.graph import DType, Encoding, Graph, Op, Param, Tensor, TensorKind
from npukit.quantization import ranges
from npukit.quantization.assign import Legal, Plan, assign, block_axis
from npukit.quantization.calibrated import Calibrated, Scheme
from npukit.quantization.calibration import Calibration
from npukit.quantization.entry import Entry
from npukit.quantization.float_width import with_float_width
from npukit.raising.encodings import dequantized

DIGITS = Path(__file__).parents[1] / "examples" / "digits"
RNG = np.random.default_rng(7)


def static(name: str, *shape: int) -> Tensor:
    return Tensor(name, DType.FLOAT_32, shape, TensorKind.STATIC, data=RNG.standard_normal(shape).astype(np.float32))


def fully_connected(inner: int = 32, outer: int = 6) -> Graph:
    x = Tensor("x", DType.FLOAT_32, (4, inner), TensorKind.APP_WRITE)
    y = Tensor("y", DType.FLOAT_32, (4, outer), TensorKind.APP_READ)
    op = Op("fc", "FullyConnected", [x, static("w", outer, inner), static("b", outer)], [y])
    return Graph("g", [x], [y], [op])


def conv(kernel: int, group: int = 1) -> Op:
    x, y = Tensor("x", DType.FLOAT_32, (1, 8, 8, 16)), Tensor("y", DType.FLOAT_32, (1, 8, 8, 4))
    params = {"group": Param(DType.UINT_32, group)}
    return Op("conv", "Conv2d", [x, static("w", kernel, kernel, 16 // group, 4)], [y], params)


def encodings(graph: Graph, **scheme: Any) -> Calibrated:
    calibration = Calibration(graph, channels=[graph.inputs[0]], threads=1)
    calibration.update({"x": RNG.standard_normal(graph.inputs[0].shape).astype(np.float32)})
    return Calibrated(calibration, Scheme(**scheme))


def test_blocks_run_along_input_channels_where_htp_computes_them_right() -> None:
    assert block_axis(fully_connected().ops[0], 8) == 1
    assert block_axis(fully_connected(inner=30).ops[0], 8) is None
    assert block_axis(conv(1), 8) == 2
    assert block_axis(conv(3), 8) is None
    assert block_axis(conv(1, group=2), 8) is None
    x, y = Tensor("x", DType.FLOAT_32, (4, 16)), Tensor("y", DType.FLOAT_32, (4, 8))
    assert block_axis(Op("m", "MatMul", [x, static("w", 16, 8)], [y]), 16) == 0
    turned = {"transpose_in1": Param(DType.BOOL_8, True)}
    assert block_axis(Op("m", "MatMul", [x, static("w", 8, 16)], [y], turned), 16) == 1


@pytest.mark.parametrize("method", ["mse", "min-max"])
def test_weights_in_blocks_are_nearer_than_by_row(method: str) -> None:
    graph = fully_connected()
    weight = graph.ops[0].inputs[1]
    assert weight is not None
    assert weight.data is not None
    weight.data[:, :8] *= 20  # one block is much larger than the others
    found = {}
    for block in (0, 8):
        made = assign(graph, Plan(weights=4, block=block), encodings(graph, weight_method=method), Legal({})).graph
        held = made.ops[0].inputs[1]
        assert held is not None
        assert held.encoding is not None
        assert held.encoding.bitwidth == 4
        assert held.encoding.blocks_per_axis == (4 if block else 0)
        found[block] = float(np.square(dequantized(held) - weight.data).mean())
    assert found[8] < 0.5 * found[0]
    assert cost.precision(made) == "int4"


def test_only_four_bits_come_in_blocks() -> None:
    graph = fully_connected()
    made = assign(graph, Plan(weights=8, block=8), encodings(graph), Legal({})).graph
    weight = made.ops[0].inputs[1]
    assert weight is not None
    assert weight.encoding is not None
    assert weight.encoding.block_scales is None
    with pytest.raises(UsageError, match="4 bits"):
        npukit.quantize(DIGITS / "digits.onnx", calibration=np.zeros((1, 1, 1, 8, 8)), block_size=8)


def test_a_bias_of_eight_bits_has_its_own_range() -> None:
    graph = fully_connected()
    source = graph.ops[0].inputs[2]
    assert source is not None
    made = assign(graph, Plan(bias=8), encodings(graph, bias_correction=False), Legal({})).graph
    bias = made.ops[0].inputs[2]
    assert bias is not None
    assert bias.encoding is not None
    assert bias.dtype is DType.UFIXED_POINT_8
    error = ranges.reals(np.asarray(bias.data), bias.encoding) - np.asarray(source.data)
    assert np.abs(error).max() <= 0.51 * bias.encoding.scale


def test_where_eight_bits_are_refused_a_bias_has_32() -> None:
    def refuse(op: Op) -> str | None:
        bias = op.inputs[2] if len(op.inputs) > 2 else None
        return "no" if bias is not None and bias.dtype.bits == 8 else None

    graph = fully_connected()
    made = assign(graph, Plan(bias=8), encodings(graph), Legal({"": refuse}))
    bias = made.graph.ops[0].inputs[2]
    assert bias is not None
    assert bias.dtype is DType.SFIXED_POINT_32
    assert made.precisions == {"fc": 8}


def test_a_constant_that_is_asked_for_with_signed_codes_has_the_same_values_without_sign() -> None:
    graph = fully_connected()
    x, table, y = graph.inputs[0], static("c", 32), Tensor("z", DType.FLOAT_32, (4, 32), TensorKind.APP_READ)
    graph = Graph("g", [x], [y], [Op("mul", "ElementWiseMultiply", [x, table], [y])])
    wish = Entry("c", "param", 8, scales=(0.02,), offsets=(0,), signed=True, symmetric=True)
    calibration = Calibration(graph, threads=1)
    calibration.update({"x": RNG.standard_normal(x.shape).astype(np.float32)})
    chosen = Calibrated(calibration, Scheme(), {table: wish})
    held = assign(graph, Plan(), chosen, Legal({})).graph.ops[0].inputs[1]
    assert held is not None
    assert (held.dtype, held.encoding) == (DType.UFIXED_POINT_8, Encoding.per_tensor(float(np.float32(0.02)), -128))


def test_floats_of_sixteen_bits() -> None:
    graph = fully_connected()
    bias = graph.ops[0].inputs[2]
    assert bias is not None
    bias.data = np.array([1.5, -np.inf, 1e6, 0, 1, 2], np.float32)
    made = with_float_width(graph, Legal({}), 16)
    assert {tensor.dtype for tensor in made.tensors()} == {DType.FLOAT_16}
    assert (made.inputs[0].name, made.inputs[0].kind) == ("x", TensorKind.APP_WRITE)
    held = made.ops[0].inputs[2]
    assert held is not None
    np.testing.assert_array_equal(held.data, np.array([1.5, -65504, 65504, 0, 1, 2], np.float16))
    assert {tensor.dtype for tensor in graph.tensors()} == {DType.FLOAT_32}
    with pytest.raises(UsageError, match="cannot be held") as caught:
        with_float_width(graph, Legal({"": lambda op: "it takes FLOAT_32 only"}), 16)
    assert [fault.where for fault in caught.value.faults] == ["FullyConnected 'fc'"]


def test_biases_of_another_width() -> None:
    made = with_float_width(fully_connected(), Legal({}), 16, 32)
    assert [t.dtype for t in made.ops[0].inputs if t is not None] == [DType.FLOAT_16, DType.FLOAT_16, DType.FLOAT_32]


def test_codes_stay_what_they_are_beside_floats_of_sixteen_bits() -> None:
    graph = fully_connected()
    quantized = assign(graph, Plan(float_io=True), encodings(graph), Legal({})).graph
    made = with_float_width(quantized, Legal({}), 16)
    assert [op.type for op in made.ops] == ["Quantize", "FullyConnected", "Dequantize"]
    assert made.ops[1].inputs == quantized.ops[1].inputs
    assert made.ops[0].inputs[0] is made.inputs[0]
    assert made.outputs[0].dtype is DType.FLOAT_16


# ---------------------------------------------------------------- on the emulator


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    with np.load(DIGITS / "digits.npz") as data:
        return np.asarray(data["calibration"][:64, None, None] / 16, np.float32)


@pytest.fixture
def newer() -> None:
    """4 bits a channel and blocks are written right by libQnnIr of wheel 2.7.0 only."""
    if libraries.find("ir").core_version < (2, 40, 0):
        pytest.skip("needs `npukit libs add 2.7.0`")


def accuracy(path: Path, backend: str) -> float:
    with np.load(DIGITS / "digits.npz") as data, npukit.Session(path, backend=backend) as session:
        pictures, labels = (data["images"][:, None, None] / 16).astype(np.float32), data["labels"]
        right = [session.run({"image": x})["scores"].argmax() == y for x, y in zip(pictures, labels, strict=True)]
        return float(np.mean(right))


def graph_of(path: Path) -> Graph:
    return next(iter(dlc.read(path)[0].graphs.values()))


def operands(path: Path, index: int) -> list[Tensor]:
    ops = [op for op in graph_of(path).ops if op.type in ("Conv2d", "FullyConnected")]
    return [tensor for op in ops if (tensor := op.inputs[index]) is not None]


@pytest.mark.native
@pytest.mark.usefixtures("newer")
@pytest.mark.parametrize("block", [None, 16])
def test_digits_with_four_bit_weights_lose_at_most_two_points(
    block: int | None, tmp_path: Path, images: np.ndarray
) -> None:
    made = npukit.quantize(
        DIGITS / "digits.onnx", calibration=images, weights=4, block_size=block, target="sm8650",
        output=tmp_path / "w4.dlc",
    )  # fmt: skip
    assert made.exit_code == 0
    assert made.quantized.precision == "int4"
    weights = [weight.encoding for weight in operands(made.path, 1) if weight.encoding is not None]
    assert [weight.blocks_per_axis for weight in weights] == [0, 0, 128 // 16 if block else 0]
    assert all(weight.bitwidth == 4 for weight in weights if weight.block_scales is None)
    assert accuracy(made.path, "qnn-htp") >= accuracy(DIGITS / "digits.onnx", "ort") - 0.02


@pytest.mark.native
def test_eight_bit_biases_on_the_emulator(tmp_path: Path, images: np.ndarray) -> None:
    made = npukit.quantize(
        DIGITS / "digits.onnx", calibration=images, bias=8, per_channel=False, target="sm8650",
        output=tmp_path / "b8.dlc",
    )  # fmt: skip
    assert made.exit_code == 0
    assert [bias.dtype for bias in operands(made.path, 2)] == [DType.UFIXED_POINT_8] * 3
    assert accuracy(made.path, "qnn-htp") >= accuracy(DIGITS / "digits.onnx", "ort") - 0.005


@pytest.mark.native
def test_htp_takes_no_bias_of_another_width(tmp_path: Path, images: np.ndarray) -> None:
    with pytest.raises(UsageError, match="Conv2d") as caught:
        npukit.quantize(
            DIGITS / "digits.onnx", calibration=images, float_bias_bitwidth=16, float_ops=("conv1",), target="sm8650",
            output=tmp_path / "f16.dlc",
        )  # fmt: skip
    assert len(caught.value.faults) == 1


@pytest.mark.native
@pytest.mark.parametrize("bits", [16, 32])
def test_encodings_say_the_width_of_floats(bits: int, tmp_path: Path, images: np.ndarray) -> None:
    file = tmp_path / "wish.json"
    wish = f'{{"bitwidth": {bits}, "dtype": "float"}}'
    file.write_text(f'{{"activation_encodings": {{"conv1.relu": [{wish}]}}, "param_encodings": {{}}}}')
    made = npukit.quantize(
        DIGITS / "digits.onnx", calibration=images, encodings=file, target="sm8650", output=tmp_path / "q.dlc",
        verify=False,
    )  # fmt: skip
    assert made.quantized.encodings is not None
    assert made.quantized.encodings.counts["honoured"] + made.quantized.encodings.counts["carried"] == 1
    assert {t.dtype.bits for t in graph_of(made.path).tensors() if t.dtype.is_float} == {bits}


@pytest.mark.native
@pytest.mark.parametrize("backend", ["qnn-htp", "ort"])
def test_sixteen_bit_floats_between_codes(backend: str, tmp_path: Path, images: np.ndarray) -> None:
    made = npukit.quantize(
        DIGITS / "digits.onnx", calibration=images, float_bitwidth=16, float_ops=("conv1",), float_io=True,
        target="sm8650", output=tmp_path / "f16.dlc", verify_backend=backend,
    )  # fmt: skip
    assert made.exit_code == 0
    found = {tensor.dtype for tensor in graph_of(made.path).tensors()}
    assert DType.FLOAT_16 in found
    assert DType.FLOAT_32 not in found
    with npukit.Session(made.path, backend="ort") as session:
        assert session.inputs[0].dtype == "float32"

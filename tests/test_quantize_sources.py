# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""Models that come quantized: what is left without their quantization, and their encodings as a starting point."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.parser
import onnx_ir as ir
import onnxruntime
import pytest
from onnx import numpy_helper
from onnxruntime.quantization import QuantType, quantize_dynamic

import npukit
from npukit.analysis.reference import without_quantization
from npukit.artifacts import dlc
from npukit.errors import UsageError
from npukit.frontends.onnx import LoadOptions, Normalized, load
from npukit.qnn.graph import Encoding, Tensor
from npukit.qnn.names import legal_form

DIGITS = Path(__file__).parents[1] / "examples" / "digits"
LINEAR = {"QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear", "MatMulInteger", "QLinearConv"}


def parsed(text: str, **constants: Any) -> onnx.ModelProto:
    model = onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["": 21]>\n{text}')
    model.graph.initializer.extend(numpy_helper.from_array(array, name) for name, array in constants.items())
    return model


def stripped(model: onnx.ModelProto | Path) -> Normalized:
    return load(model, LoadOptions(strip_quantization=True))


def ops(found: Normalized) -> list[str]:
    return [node.op_type for node in found.model.graph]


def run(model: onnx.ModelProto | Path | ir.Model, **feeds: np.ndarray) -> np.ndarray:
    if isinstance(model, ir.Model):
        model = ir.to_proto(model)
        model.opset_import[0].version = 22
    source = model.SerializeToString() if isinstance(model, onnx.ModelProto) else str(model)
    result = onnxruntime.InferenceSession(source, providers=["CPUExecutionProvider"]).run(None, feeds)[0]
    return np.asarray(result)


def test_without_its_quantization_the_digits_network_computes_as_before_it_was_quantized(tmp_path: Path) -> None:
    found = stripped(DIGITS / "digits_qdq.onnx")
    assert ops(found) == ["Conv", "Relu", "MaxPool", "Conv", "Relu", "MaxPool", "Flatten", "Gemm"]
    image = np.load(DIGITS / "digits.npz")["calibration"][:1, None] / np.float32(16)
    plain = without_quantization(DIGITS / "digits_qdq.onnx", LoadOptions(), tmp_path)
    expected = run(DIGITS / "digits.onnx", image=image)
    # What is left of the error is that of the weights' codes.
    np.testing.assert_allclose(run(plain, image=image), expected, atol=0.02 * np.abs(expected).max())
    encodings = {one.name: one for one in found.encodings}
    assert {"image", "conv1.relu", "features", "scores"} <= set(encodings)
    assert encodings["conv1.weight_DequantizeLinear_Output"].axis == 0


def test_codes_that_are_moved_about_between_q_and_dq_and_a_pair_that_changes_the_scale() -> None:
    found = stripped(
        parsed(
            """moved (float[2,3] x) => (float[6] y) {
                q = QuantizeLinear(x, s, z)
                r = Reshape(q, shape)
                y = DequantizeLinear(r, s, z)
            }""",
            s=np.float32(0.1),
            z=np.uint8(128),
            shape=np.array([6]),
        )
    )
    assert ops(found) == ["Reshape"]
    assert [(one.name, one.dtype, one.zero_points) for one in found.encodings] == [("x", "uint8", (128,))]
    rescaled = stripped(
        parsed(
            "rescaled (float[4] x) => (float[4] y) { q = QuantizeLinear(x, s, z)\n y = DequantizeLinear(q, t, z) }",
            s=np.float32(0.1),
            t=np.float32(0.2),
            z=np.uint8(128),
        )
    )
    assert ops(rescaled) == ["QuantizeLinear", "DequantizeLinear"]
    assert any("2 Q/DQ nodes stay" in note for note in rescaled.notes)
    assert rescaled.encodings == []


@pytest.mark.parametrize(("high", "op"), [(6.0, "Clip"), (4.2, "Relu")])
def test_codes_that_begin_at_zero_were_a_relu(high: float, op: str) -> None:
    model = parsed(
        """clamped (float[1,4] x) => (float[1,3] y) {
            m = MatMul(x, w)
            q = QuantizeLinear(m, s, z)
            y = DequantizeLinear(q, s, z)
        }""",
        w=np.linspace(-2, 2, 12, dtype=np.float32).reshape(4, 3),
        s=np.float32(high / 255),
        z=np.uint8(0),
    )
    found = stripped(model)
    assert ops(found) == ["MatMul", op]
    assert [one.name for one in found.encodings] == ["y"]
    x = np.array([[3, -1, 0.5, 1]], np.float32)
    assert np.abs(run(found.model, x=x) - run(model, x=x)).max() <= high / 255
    # After an op that gives nothing below zero there was none.
    plain = "m = Sigmoid(x) q = QuantizeLinear(m, s, z) y = DequantizeLinear(q, s, z)"
    model = parsed(f"plain (float[4] x) => (float[4] y) {{ {plain} }}", s=np.float32(1 / 255), z=np.uint8(0))
    assert ops(stripped(model)) == ["Sigmoid"]


def test_inputs_and_outputs_that_are_codes_become_real_numbers() -> None:
    found = stripped(
        parsed(
            """codes (uint8[1,4] x) => (int8[1,4] y) {
                f = DequantizeLinear(x, s, z)
                n = Neg(f)
                y = QuantizeLinear(n, s, p)
            }""",
            s=np.float32(0.5),
            z=np.uint8(7),
            p=np.int8(3),
        )
    )
    graph = found.model.graph
    assert ops(found) == ["Neg"]
    assert (graph.inputs[0].name, graph.inputs[0].dtype) == ("x", ir.DataType.FLOAT)
    assert (graph.outputs[0].name, graph.outputs[0].dtype) == ("y", ir.DataType.FLOAT)
    assert {(one.name, one.dtype) for one in found.encodings} == {("x", "uint8"), ("y", "int8")}
    assert len(found.notes) == 2


def test_weights_in_blocks_and_of_four_bits() -> None:
    codes = np.arange(-8, 8).reshape(4, 4)
    scales = np.array([[0.5, 1, 2, 4], [1, 1, 3, 0.1]], np.float32)
    model = parsed(
        """blocks (float[1,4] x) => (float[1,4] y) {
            w = DequantizeLinear <axis: int = 0, block_size: int = 2> (c, s)
            y = MatMul(x, w)
        }""",
        s=scales,
    )
    model.graph.initializer.append(onnx.helper.make_tensor("c", onnx.TensorProto.INT4, (4, 4), codes.reshape(-1)))
    found = stripped(model)
    assert ops(found) == ["MatMul"]
    held = found.model.graph.initializers["w"].const_value
    assert held is not None
    np.testing.assert_array_equal(held.numpy(), codes.astype(np.float32) * np.repeat(scales, 2, 0))
    assert found.encodings == []
    assert any("one a block" in note for note in found.notes)


def test_qlinear_conv_with_its_bias() -> None:
    rng = np.random.default_rng(5)
    model = parsed(
        """linear (float[1,2,5,5] x) => (float[1,3,3,3] y) {
            q = QuantizeLinear(x, xs, xz)
            c = QLinearConv(q, xs, xz, w, ws, wz, ys, yz, b)
            y = DequantizeLinear(c, ys, yz)
        }""",
        xs=np.float32(0.02),
        xz=np.uint8(120),
        w=rng.integers(-100, 100, (3, 2, 3, 3)).astype(np.int8),
        ws=np.array([0.01, 0.02, 0.005], np.float32),
        wz=np.zeros(3, np.int8),
        ys=np.float32(0.2),
        yz=np.uint8(128),
        b=np.array([1000, -2000, 3000], np.int32),
    )
    found = stripped(model)
    assert ops(found) == ["Conv"]
    x = rng.uniform(-2, 2, (1, 2, 5, 5)).astype(np.float32)
    assert np.abs(run(found.model, x=x) - run(model, x=x)).max() < 0.3  # 1.5 steps of y: its rounding and that of x


@pytest.mark.parametrize("turned", [0, 1])
def test_qgemm_with_its_bias(turned: int) -> None:
    rng = np.random.default_rng(6)
    weight = rng.integers(-100, 100, (3, 8)).astype(np.int8)
    model = parsed(
        """gemm (float[2,8] x) => (float[2,3] y) {
            q = QuantizeLinear(x, xs, xz)
            c = com.microsoft.QGemm <transB: int = TURNED> (q, xs, xz, w, ws, wz, b, ys, yz)
            y = DequantizeLinear(c, ys, yz)
        }""".replace("TURNED", str(turned)),
        xs=np.float32(0.02),
        xz=np.uint8(120),
        w=weight if turned else weight.T.copy(),
        ws=np.array([0.01, 0.02, 0.005], np.float32),
        wz=np.zeros(3, np.int8),
        ys=np.float32(0.2),
        yz=np.uint8(128),
        b=np.array([1000, -2000, 3000], np.int32),
    )
    model.opset_import.append(onnx.helper.make_opsetid("com.microsoft", 1))
    found = stripped(model)
    assert ops(found) == ["Gemm"]
    x = rng.uniform(-2, 2, (2, 8)).astype(np.float32)
    assert np.abs(run(found.model, x=x) - run(model, x=x)).max() < 0.3


def test_a_dynamically_quantized_network(tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    weight = rng.standard_normal((16, 8)).astype(np.float32)
    onnx.save(parsed("net (float[2,16] x) => (float[2,8] y) { y = MatMul(x, w) }", w=weight), tmp_path / "f.onnx")
    quantize_dynamic(tmp_path / "f.onnx", tmp_path / "q.onnx", weight_type=QuantType.QInt8)
    assert LINEAR & {node.op_type for node in onnx.load(tmp_path / "q.onnx").graph.node}
    found = stripped(tmp_path / "q.onnx")
    assert "MatMul" in ops(found)
    assert not LINEAR & set(ops(found))
    x = rng.standard_normal((2, 16)).astype(np.float32)
    np.testing.assert_allclose(run(found.model, x=x), x @ weight, atol=0.1)


# ---------------------------------------------------------------- verbs


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    with np.load(DIGITS / "digits.npz") as data:
        return np.asarray(data["calibration"][:16, None, None] / 16, np.float32)


def tensors(path: Path | None) -> dict[str, Tensor]:
    assert path is not None
    graph = next(iter(dlc.read(path)[0].graphs.values()))
    return {tensor.held.source if tensor.held else tensor.name: tensor for tensor in graph.tensors()}


@pytest.mark.native
def test_convert_makes_a_float_artifact_that_is_verified(tmp_path: Path) -> None:
    made = npukit.convert(
        DIGITS / "digits_qdq.onnx", output=tmp_path / "f.dlc", strip_quantization=True, target="qnn-cpu", random=1
    )
    assert (made.exit_code, made.converted.precision) == (0, "float32")
    assert not any(tensor.dtype.is_quantized for tensor in tensors(made.path).values())
    assert any("20 nodes" in note for note in made.converted.notes)


@pytest.mark.native
@pytest.mark.parametrize("how", ["calibrated", "float fallback"])
def test_quantizing_a_qdq_model_keeps_its_encodings_and_its_codes(how: str, tmp_path: Path, images: np.ndarray) -> None:
    options = {"calibration": images} if how == "calibrated" else {"float_fallback": True}
    made = npukit.quantize(
        DIGITS / "digits_qdq.onnx", output=tmp_path / "q.dlc", target="sm8650", verify_backend="ort", **options
    )
    assert made.exit_code == 0
    assert made.quantized.precisions == {"8 bits": 9}
    report = made.quantized.encodings
    assert report is not None
    assert (report.counts["honoured"], report.faults) == (10, ())
    model = onnx.load(DIGITS / "digits_qdq.onnx")
    source = {one.name: numpy_helper.to_array(one) for one in model.graph.initializer}
    held = tensors(made.path)
    for name in ("image", "conv1.relu"):
        encoding = held[legal_form(name)].encoding
        assert encoding is not None
        assert encoding.scale == float(source[f"{name}_scale"])
        assert -encoding.offset == int(source[f"{name}_zero_point"])
    codes = held["conv1_weight_DequantizeLinear_Output"].data
    np.testing.assert_array_equal(codes, source["conv1.weight_quantized"].transpose(2, 3, 1, 0))


@pytest.mark.native
def test_a_file_wins_over_the_sources_encodings_and_both_can_be_dropped(tmp_path: Path, images: np.ndarray) -> None:
    file = tmp_path / "wish.json"
    file.write_text(
        '{"activation_encodings": {"features": [{"bitwidth": 8, "scale": 0.5, "offset": 0}]}, "param_encodings": {}}'
    )
    common: dict[str, Any] = {"calibration": images, "target": "sm8650", "verify": False}
    made = npukit.quantize(DIGITS / "digits_qdq.onnx", output=tmp_path / "q.dlc", encodings=file, **common)
    assert tensors(made.path)["features"].encoding == Encoding.per_tensor(0.5)
    assert tensors(made.path)["conv1_relu"].encoding != Encoding.per_tensor(0.5)
    assert made.quantized.encodings is not None
    assert made.quantized.encodings.counts["honoured"] == 8  # conv2.pool shares that of features, so both give way
    bare = npukit.quantize(DIGITS / "digits_qdq.onnx", output=tmp_path / "b.dlc", ignore_encodings=True, **common)
    assert bare.quantized.encodings is None
    assert tensors(bare.path)["image"].encoding is not None
    with pytest.raises(UsageError, match="float-fallback"):
        npukit.quantize(
            DIGITS / "digits_qdq.onnx", output=tmp_path / "n.dlc", ignore_encodings=True, float_fallback=True
        )

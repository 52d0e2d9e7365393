# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""DLCs that npukit did not make: written by ONNX Runtime's QNN provider (data/ort_qnn_provider/make.py)."""

from pathlib import Path

import numpy as np
import onnxruntime
import pytest

import npukit

pytestmark = pytest.mark.native

FOLDER = Path(__file__).parent / "data" / "ort_qnn_provider"
DIGITS = Path(__file__).parents[1] / "examples" / "digits"


@pytest.fixture(scope="module")
def images():
    with np.load(DIGITS / "digits.npz") as data:
        return (data["images"][:20] / np.float32(16)).reshape(-1, 1, 1, 8, 8)


def run(path, name, feeds):
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return [session.run(None, {name: feed})[0] for feed in feeds]


def test_a_float_dlc_exports_to_onnx_that_matches_the_source(images, tmp_path):
    out = tmp_path / "digits.onnx"
    npukit.export(FOLDER / "digits.dlc", output=out)
    for got, want in zip(run(out, "image", images), run(DIGITS / "digits.onnx", "image", images), strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)  # float32, other order of sums


def test_a_float_dlc_runs_on_qnn_cpu(images):
    wanted = run(DIGITS / "digits.onnx", "image", images)
    with npukit.Session(FOLDER / "digits.dlc", backend="qnn-cpu") as session:
        for image, want in zip(images, wanted, strict=True):
            np.testing.assert_allclose(session.run({"image": image})["scores"], want, rtol=1e-4, atol=1e-4)


def test_a_quantized_dlc_exports_with_its_encodings(images, tmp_path):
    out = tmp_path / "digits_qdq.onnx"
    npukit.export(FOLDER / "digits_qdq.dlc", output=out)
    scale, offset = 0.08501300960779190, -128  # the encoding of the output, as `npukit inspect` shows it
    codes = [np.clip(np.rint(image * 255), 0, 255).astype(np.uint8) for image in images]
    feeds = [(code / 255).astype(np.float32) for code in codes]
    wanted = run(DIGITS / "digits_qdq.onnx", "image", feeds)
    for got, want in zip(run(out, "image", codes), wanted, strict=True):
        real = (got.astype(np.float32) + offset) * scale
        assert np.abs(real - want).max() <= 1.01 * scale  # both round at each encoding: one step apart at most


def test_a_quantized_dlc_speaks_floats_where_asked_or_where_its_reference_does(images):
    wanted = run(DIGITS / "digits_qdq.onnx", "image", images[:3])
    with npukit.Session(FOLDER / "digits_qdq.dlc", backend="ort", dequantize=True) as session:
        assert [info.dtype for info in (*session.inputs, *session.outputs)] == ["float32", "float32"]
        assert session.outputs[0].native.dtype == "uint8"
        for image, want in zip(images[:3], wanted, strict=True):
            assert np.abs(session.run({"image": image})["scores"] - want).max() < 0.1  # one step of the encoding
    outcome = npukit.verify(FOLDER / "digits_qdq.dlc", DIGITS / "digits_qdq.onnx", backend="ort")
    assert outcome.passed
    assert any("by their encodings" in note for note in outcome.notes)


def test_the_integer_codes_are_judged_where_the_reference_has_them(tmp_path):
    npukit.export(FOLDER / "digits_qdq.dlc", output=tmp_path / "codes.onnx")
    outcome = npukit.verify(FOLDER / "digits_qdq.dlc", tmp_path / "codes.onnx", backend="ort")
    assert (outcome.passed, outcome.outputs[0].dtype) == (True, "uint8")

# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""`npukit quantize` from model and data to a verified artifact."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import npukit
from npukit.artifacts import dlc
from npukit.qnn.api import libraries
from npukit.qnn.graph import TensorKind
from npukit.quantization.encodings_file import read
from npukit.verbs import quantize_job

DIGITS = Path(__file__).parents[1] / "examples" / "digits"
ENCODINGS = Path(__file__).parent / "data" / "encodings"
pytestmark = pytest.mark.native


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    with np.load(DIGITS / "digits.npz") as data:
        return (data["calibration"][:64, None, None] / 16).astype(np.float32)


def quantized(tmp_path: Path, images: np.ndarray | None, **options: Any) -> Any:
    options = {"target": "sm8650", "output": tmp_path / "q.dlc", "calibration": images, **options}
    return npukit.quantize(DIGITS / "digits.onnx", **options)


def accuracy(path: Path, backend: str) -> float:
    with np.load(DIGITS / "digits.npz") as data, npukit.Session(path, backend=backend) as session:
        pictures, labels = (data["images"][:, None, None] / 16).astype(np.float32), data["labels"]
        return float(
            np.mean([session.run({"image": x})["scores"].argmax() == y for x, y in zip(pictures, labels, strict=True)])
        )


def test_digits_in_eight_bits_lose_at_most_half_a_point_on_the_emulator(tmp_path: Path, images: np.ndarray) -> None:
    result = quantized(tmp_path, images)
    assert result.exit_code == 0
    assert result.quantized.precisions == {"8 bits": 9}
    assert result.quantized.refused == ()
    assert result.verification.backend == "qnn-htp"
    assert result.quantized.stamp.options["precision"] == "int8"
    assert accuracy(result.path, "qnn-htp") >= accuracy(DIGITS / "digits.onnx", "ort") - 0.005


def test_the_simulation_gives_what_the_emulator_gives(tmp_path: Path, images: np.ndarray) -> None:
    path = quantized(tmp_path, images, verify=False).path
    with npukit.Session(path, backend="ort") as ort, npukit.Session(path, backend="qnn-htp") as htp:
        step = ort.outputs[0].native.encoding.scale
        worst = max(
            float(np.abs(ort.run({"image": x})["scores"] - htp.run({"image": x})["scores"]).max()) for x in images[:16]
        )
    assert worst <= 1.01 * step


def test_sixteen_bits_are_finer(tmp_path: Path, images: np.ndarray) -> None:
    coarse = quantized(tmp_path, images).verification.outputs[0].metrics
    fine = quantized(tmp_path, images, activations=16, weights=16, verify_backend="ort").verification.outputs[0].metrics
    assert fine.sqnr_db > coarse.sqnr_db + 20


def test_a_float_dlc_gives_the_same_as_its_source(tmp_path: Path, images: np.ndarray) -> None:
    npukit.convert(DIGITS / "digits.onnx", output=tmp_path / "float.dlc", target="sm8650", verify=False)
    made = npukit.quantize(
        tmp_path / "float.dlc", calibration=images, output=tmp_path / "q.dlc", target="sm8650", verify_backend="ort"
    )
    assert made.exit_code == 0
    assert made.quantized.precisions == {"8 bits": 9}
    with npukit.Session(made.path, backend="ort") as session:
        assert [(i.name, i.dtype, i.shape) for i in session.inputs] == [("image", "float32", (1, 1, 8, 8))]


def test_the_same_input_gives_the_same_bytes(tmp_path: Path, images: np.ndarray) -> None:
    first = quantized(tmp_path, images, output=tmp_path / "1.dlc", verify=False).path.read_bytes()
    assert quantized(tmp_path, images, output=tmp_path / "2.dlc", verify=False).path.read_bytes() == first


def test_float_io_and_float_ops(tmp_path: Path, images: np.ndarray) -> None:
    result = quantized(tmp_path, images, float_io=True, float_ops=("conv1",))
    assert result.exit_code == 0
    graph = next(iter(dlc.read(result.path)[0].graphs.values()))
    assert [t.dtype.name for t in (*graph.inputs, *graph.outputs)] == ["FLOAT_32", "FLOAT_32"]
    assert result.quantized.precisions["float"] >= 1


def test_bad_use_is_one_sentence(tmp_path: Path, images: np.ndarray) -> None:
    cases: list[tuple[dict[str, Any], str]] = [
        ({"calibration": None}, "calibration data is needed"),
        ({"calibration": tmp_path}, "no "),
        ({"calibration": np.full_like(images[:2], np.nan)}, "NaN"),
        ({"calibration": images[:, :, :, :4]}, "shape"),
        ({"float_ops": ("conv9",)}, "there is no op 'conv9'"),
        ({"float_fallback": True}, "--encodings"),
    ]
    for options, sentence in cases:
        with pytest.raises(npukit.NpukitError, match=sentence):
            quantized(tmp_path, images, **options)
        assert not list(tmp_path.glob("*.dlc*"))


def test_one_sample_and_constant_images_are_warned_of(tmp_path: Path, images: np.ndarray) -> None:
    one = quantized(tmp_path, images[:1], verify=False)
    assert any("one sample" in note.lower() or "1 sample" in note for note in one.quantized.notes)
    flat = quantized(tmp_path, np.zeros_like(images[:4]), verify=False)
    assert any("constant" in note for note in flat.quantized.notes)


def test_an_interrupted_calibration_goes_on(
    tmp_path: Path, images: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("npukit.verbs.quantize._SAVE_SECONDS", 0.0)
    seen = 0

    def stop(what: str, share: float) -> None:
        nonlocal seen
        seen += what.startswith("calibrating")
        if seen > 10:
            raise KeyboardInterrupt

    monkeypatch.setattr("npukit.log.report", stop)
    with pytest.raises(KeyboardInterrupt):
        quantized(tmp_path, images, verify=False)
    assert [path.name for path in tmp_path.iterdir()] == ["q.dlc.calibration"]
    monkeypatch.undo()
    resumed = quantized(tmp_path, images, verify=False).path.read_bytes()
    assert not (tmp_path / "q.dlc.calibration").exists()
    assert resumed == quantized(tmp_path, images, output=tmp_path / "whole.dlc", verify=False).path.read_bytes()


def test_saved_encodings_reproduce_the_artifact(tmp_path: Path, images: np.ndarray) -> None:
    saved = tmp_path / "digits.json"
    first = quantized(tmp_path, images, save_encodings=saved, verify=False)
    again = quantized(tmp_path, images, float_fallback=True, encodings=saved, output=tmp_path / "again.dlc")
    assert again.exit_code == 0
    assert again.quantized.encodings.counts["honoured"] == len(read(saved))

    def held(path: Path) -> dict[str, Any]:
        graph = next(iter(dlc.read(path)[0].graphs.values()))
        return {t.name: (t.dtype, t.encoding) for t in graph.tensors()}

    assert held(first.path) == held(again.path)


@pytest.mark.parametrize("weights", [8, 4])
def test_a_search_is_reproduced_from_its_encodings(tmp_path: Path, images: np.ndarray, weights: int) -> None:
    """Codes and all: weights are rounded on the grid that is given as they were on their own."""
    if weights == 4 and libraries.find("ir").core_version < (2, 40, 0):
        pytest.skip("needs `npukit libs add 2.7.0`")
    saved = tmp_path / "digits.json"
    first = quantized(
        tmp_path, images, weights=weights, accuracy_target="sqnr>=34", save_encodings=saved, rounding="gptq"
    )
    assert first.search is not None
    again = quantized(
        tmp_path, images, weights=weights, encodings=saved, output=tmp_path / "again.dlc", rounding="gptq"
    )
    assert again.exit_code == 0

    def held(path: Path) -> dict[str, Any]:
        graph = next(iter(dlc.read(path)[0].graphs.values()))
        return {t.name: None if t.data is None else np.asarray(t.data).tobytes() for t in graph.tensors()}

    assert held(first.path) == held(again.path)
    blind = quantized(tmp_path, images, encodings=saved, float_fallback=True, calibration=None, rounding="gptq")
    assert any("rounded to nearest" in note for note in blind.quantized.notes)


def test_what_each_tensor_got_and_why(tmp_path: Path, images: np.ndarray) -> None:
    report = tmp_path / "report.json"
    result = quantized(tmp_path, images, encodings_report=report, verify=False, float_ops=("fc",))
    rows = {row["name"]: row for row in json.loads(report.read_text())}
    graph = next(iter(dlc.read(result.path)[0].graphs.values()))
    assert {row["tensor"] for row in rows.values()} >= {t.name for t in graph.tensors() if t.dtype.is_quantized}
    assert rows["image"]["why"].startswith("mse; shared with ")
    assert rows["image"]["seen"] == [0.0, 1.0]
    assert rows["conv1.out"]["seen"] is None  # the Relu behind it decides
    assert "conv1_relu" in rows["conv1.out"]["why"]
    assert rows["conv1_weight"]["why"] == "mse"
    assert rows["conv1_bias"]["why"] == "input's scale times weight's"
    assert rows["scores"]["why"] == "min-max, 10% of room"  # an output's largest values are what is asked for
    assert any(row["why"] == "left in float" for row in rows.values())
    saved = tmp_path / "digits.json"
    quantized(tmp_path, images, save_encodings=saved, verify=False)
    quantized(tmp_path, images, encodings=saved, encodings_report=report, verify=False)
    given = {row["name"]: row["why"] for row in json.loads(report.read_text())}
    assert given["conv1_weight"] == "given"
    assert given["image"].startswith("given")
    noted = quantized(tmp_path, images, activations=16, activation_method="entropy", verify=False).quantized.notes
    assert any("entropy is for those of 8 bits" in note for note in noted)


def outlying(tmp_path: Path) -> list[np.ndarray]:
    """Writes m.onnx with a channel that smoothing is for; gives calibration data."""
    rng = np.random.default_rng(0)
    text = """<ir_version: 9, opset_import: ["": 18]> g (float[1, 16, 32] x) => (float[1, 16, 32] y)
    { n = LayerNormalization (x, gamma, beta) y = MatMul (n, weight) }"""
    model, gamma = onnx.parser.parse_model(text), np.ones(32)
    gamma[5] = 100  # the outlier that smoothing is for
    for name, values in (("gamma", gamma), ("beta", np.zeros(32)), ("weight", rng.normal(0, 0.2, (32, 32)))):
        model.graph.initializer.append(numpy_helper.from_array(values.astype(np.float32), name))
    onnx.save(model, tmp_path / "m.onnx")
    return list(rng.normal(size=(8, 1, 16, 32)).astype(np.float32))


def test_an_interrupted_calibration_of_another_graph_is_not_resumed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With --save-encodings nothing is smoothed: its statistics are of another graph than those without."""
    data, keys = outlying(tmp_path), []
    monkeypatch.setattr(quantize_job, "restore", lambda path, key: keys.append(quantize_job._key(key)) or 0)
    options: dict[str, Any]
    for options in ({}, {"save_encodings": tmp_path / "e.json"}, {"activation_method": "min-max"}):
        (tmp_path / "q.dlc.calibration").touch()
        npukit.quantize(
            tmp_path / "m.onnx", calibration=data, output=tmp_path / "q.dlc", verify=False, in_process=True, **options
        )
    assert keys[0] != keys[1]
    assert keys[0] == keys[2]  # how ranges are chosen from the statistics is no part of them
    model = onnx.load(tmp_path / "m.onnx")
    model.graph.node[0].attribute.append(helper.make_attribute("epsilon", 0.1))
    onnx.save(model, tmp_path / "m.onnx")
    (tmp_path / "q.dlc.calibration").touch()
    npukit.quantize(tmp_path / "m.onnx", calibration=data, output=tmp_path / "q.dlc", verify=False, in_process=True)
    assert keys[3] != keys[0]  # the same names, shapes and weights, another function


def test_what_saving_encodings_leaves_out_is_said(tmp_path: Path) -> None:
    data = outlying(tmp_path)

    def made(**options: Any) -> Any:
        return npukit.quantize(
            tmp_path / "m.onnx", calibration=data, output=tmp_path / "q.dlc", target="sm8650", verify_backend="ort",
            min_sqnr=1, max_error=1, **options,
        )  # fmt: skip

    def left_out(result: Any) -> list[str]:
        return [note for note in result.quantized.notes if "left out" in note]

    def sqnr(result: Any) -> float:
        return float(result.verification.outputs[0].metrics.sqnr_db)

    smoothed, saved = made(), made(save_encodings=tmp_path / "e.json")
    assert left_out(smoothed) == []
    (note,) = left_out(saved)
    found = re.fullmatch(
        r"smoothing of one place was left out, where by an estimate, without the rounding of results, noise is up to "
        r"([\d.]+) dB higher: saved encodings are for the values as the source has them; a file quantized without "
        r"--save-encodings may be more accurate",
        note,
    )
    assert found is not None
    assert 3 < sqnr(smoothed) - sqnr(saved) < float(found[1]) < 20
    plain = made(smooth=False, save_encodings=tmp_path / "plain.json")
    assert left_out(plain) == []
    assert (tmp_path / "plain.json").read_bytes() == (tmp_path / "e.json").read_bytes()
    (note,) = left_out(made(equalize=True, save_encodings=tmp_path / "e.json"))
    assert note.startswith("equalization was left out and smoothing of one place was left out, where")
    (note,) = left_out(made(equalize=True, encodings=tmp_path / "e.json"))
    assert note.startswith("equalization and smoothing were left out: encodings that were given")


@pytest.mark.parametrize("version", ["0.6.1", "1.0.0", "2.0.0"])
@pytest.mark.parametrize("network", ["cnn", "transformer", "lstm"])
def test_aimets_own_encodings_are_honoured(network: str, version: str, tmp_path: Path) -> None:
    model = onnx.load(ENCODINGS / f"{network}.onnx")
    rng = np.random.default_rng(0)
    shapes = {i.name: [d.dim_value for d in i.type.tensor_type.shape.dim] for i in model.graph.input}
    samples = [{name: rng.standard_normal(shape, np.float32) for name, shape in shapes.items()} for _ in range(4)]
    result = npukit.quantize(
        ENCODINGS / f"{network}.onnx",
        calibration=samples,
        encodings=ENCODINGS / f"{network}.{version}.encodings",
        output=tmp_path / "q.dlc",
        target="sm8650",
        verify=False,
    )
    counts = result.quantized.encodings.counts
    assert counts["unknown"] == counts["illegal"] == counts["lost"] == 0
    assert counts["honoured"] + counts["carried"] > 0
    assert result.quantized.stamp.options["encodings"] == counts


def test_without_data_nothing_is_compared(tmp_path: Path, images: np.ndarray) -> None:
    saved = tmp_path / "digits.json"
    quantized(tmp_path, images, save_encodings=saved, verify=False)
    result = quantized(tmp_path, None, float_fallback=True, encodings=saved)
    assert (result.exit_code, result.quantized.stamp.verified) == (0, "no")
    assert "--calibration" in result.skipped


def test_an_encoding_for_what_does_not_exist_is_refused_with_its_line(tmp_path: Path, images: np.ndarray) -> None:
    entry = [{"bitwidth": 8, "min": 0.0, "max": 1.0, "scale": 1 / 255, "offset": 0}]
    path = tmp_path / "wrong.json"
    path.write_text(json.dumps({"activation_encodings": {"conv1_relux": entry}, "param_encodings": {}}, indent=1))
    with pytest.raises(npukit.NpukitError, match="conv1_relu") as caught:
        quantized(tmp_path, images, encodings=path)
    assert "wrong.json:3" in str(caught.value)
    assert not list(tmp_path.glob("*.dlc*"))
    allowed = quantized(tmp_path, images, encodings=path, allow_unhonoured=True, verify=False)
    assert allowed.quantized.encodings.counts["unknown"] == 1


def sensitive(path: Path) -> list[np.ndarray]:
    """Ten convolutions; behind two of them a channel is lifted by 400 and put back, which 8 bits cannot follow."""
    rng = np.random.default_rng(0)
    channels, value = 16, "x"
    nodes, constants = [], []
    for i in range(10):
        weight = rng.standard_normal((channels, channels, 3, 3)) * np.sqrt(2 / (channels * 9))
        bias = rng.standard_normal(channels) * 0.1
        constants += [numpy_helper.from_array(a.astype(np.float32), n) for a, n in ((weight, f"w{i}"), (bias, f"b{i}"))]
        nodes.append(helper.make_node("Conv", [value, f"w{i}", f"b{i}"], [f"c{i}"], name=f"conv{i}", pads=[1] * 4))
        value = f"c{i}"
        if i in (3, 7):
            lift = np.zeros((1, channels, 1, 1), np.float32)
            lift[0, 0] = 400
            constants.append(numpy_helper.from_array(lift, f"s{i}"))
            nodes.append(helper.make_node("Add", [value, f"s{i}"], [f"big{i}"], name=f"big{i}"))
            nodes.append(helper.make_node("Sub", [f"big{i}", f"s{i}"], [f"back{i}"], name=f"back{i}"))
            value = f"back{i}"
        nodes.append(helper.make_node("Relu", [value], [f"r{i}"], name=f"relu{i}"))
        value = f"r{i}"
    nodes.append(helper.make_node("GlobalAveragePool", [value], ["y"], name="pool"))
    graph = helper.make_graph(
        nodes,
        "sensitive",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, channels, 12, 12])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, channels, 1, 1])],
        constants,
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), path)
    return [rng.standard_normal((1, channels, 12, 12), np.float32) for _ in range(8)]


def test_a_search_promotes_the_two_layers_that_need_it(tmp_path: Path) -> None:
    samples = sensitive(tmp_path / "m.onnx")
    result = npukit.quantize(
        tmp_path / "m.onnx", calibration=samples, output=tmp_path / "q.dlc", target="sm8650",
        accuracy_target="sqnr>=30", verify=False,
    )  # fmt: skip
    found = result.search
    assert found.reached
    assert len(found.tried) <= 40
    assert {"activation big3", "activation big7"} <= set(found.best.levels)
    assert len(found.best.levels) <= 4
    assert result.quantized.precisions["16 bits"] < result.quantized.precisions["8 bits"]


def test_a_target_out_of_reach_is_rejected(tmp_path: Path, images: np.ndarray) -> None:
    result = quantized(tmp_path, images, accuracy_target="sqnr>=250", search_budget=6)
    assert (result.exit_code, result.path.name) == (1, "q.dlc.rejected")
    assert not (tmp_path / "q.dlc").exists()


def metric_of_two(results: Any, references: Any) -> float:
    """A user's metric: minus the largest error."""
    pairs = zip(results, references, strict=True)
    return -max(float(np.abs(a["scores"] - b["scores"]).max()) for a, b in pairs)


def test_a_metric_of_the_users_own(tmp_path: Path, images: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(Path(__file__).parent)
    result = quantized(tmp_path, images, accuracy_target="test_quantize:metric_of_two>=-1", verify=False)
    assert result.search.reached
    assert -1 <= result.search.best.metric <= 0


def test_static_kinds(tmp_path: Path, images: np.ndarray) -> None:
    graph = next(iter(dlc.read(quantized(tmp_path, images, verify=False).path)[0].graphs.values()))
    kinds = {t.dtype.name for t in graph.tensors() if t.kind is TensorKind.STATIC}
    assert kinds == {"SFIXED_POINT_8", "SFIXED_POINT_32"}

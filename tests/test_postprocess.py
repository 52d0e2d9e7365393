# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""Outputs to classes, maps and boxes: against numpy and Pillow, and through `npukit run` on models of the same kind."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import yaml
from PIL import Image

import npukit
from npukit.analysis.postprocess import OUTSIDE, Postprocessing, Window, as_lines, window
from npukit.analysis.preprocess import Preprocessing
from npukit.errors import InputError

RECIPES = Path(__file__).parents[1] / "examples" / "recipes"
RNG = np.random.default_rng(11)


def spec(**keys: Any) -> Postprocessing:
    return Postprocessing.load(keys)


def test_classes_are_the_best_scores_in_order() -> None:
    logits = RNG.normal(size=(1, 50)).astype(np.float32)
    labels = [f"thing {i}" for i in range(50)]
    found = spec(task="classification", top=3, softmax=True, labels=labels).apply({"y": logits})["classes"]
    shares = np.exp(logits[0].astype(float)) / np.exp(logits[0].astype(float)).sum()
    best = sorted(range(50), key=lambda i: -shares[i])[:3]
    assert [one["label"] for one in found] == [f"thing {i}" for i in best]
    np.testing.assert_allclose([one["score"] for one in found], shares[best], rtol=1e-12)


def test_a_background_class_shifts_the_labels() -> None:
    steps = spec(task="classification", top=3, class_offset=1, labels=["cat", "dog"])
    found = steps.apply({"y": np.array([[0.7, 0.1, 0.2]])})["classes"]
    assert [(one["class"], one["label"]) for one in found] == [(0, "0"), (2, "dog"), (1, "cat")]


def deeplab_place(width: int, height: int) -> tuple[tuple[int, int], Window]:
    """The size that the SDK page's formula gives, and npukit's window."""
    ratio = 513.0 / max(width, height)
    target = (int(ratio * width), int(ratio * height))
    image = Preprocessing.load(RECIPES / "deeplabv3.yaml").inputs[""]
    return target, window(image, (height, width))


@pytest.mark.parametrize(("width", "height"), [(640, 480), (300, 500), (513, 513), (1000, 333), (64, 48)])
def test_the_deeplab_map_is_cropped_and_resized_as_the_page_says(width: int, height: int) -> None:
    (columns, rows), place = deeplab_place(width, height)
    assert (place.top, place.left, place.bottom, place.right) == (0, 0, rows, columns)
    labels = RNG.integers(0, 21, (1, 513, 513, 1))
    expected = Image.fromarray(labels[0, :rows, :columns, 0].astype(np.uint8)).resize(
        (width, height), Image.Resampling.NEAREST
    )
    after = Preprocessing.load(RECIPES / "deeplabv3.yaml").after
    assert after is not None
    found = after.apply({"ArgMax": labels}, place, (513, 513))
    # where a centre falls on the border of two pixels either is the nearest: Pillow's sums of floats choose otherwise
    clear = [(np.arange(n) * 2 + 1) * m % (2 * n) != 0 for m, n in ((rows, height), (columns, width))]
    kept = np.ix_(*clear)
    np.testing.assert_array_equal(found["map"][kept], np.asarray(expected)[kept])
    assert found["map"].shape == (height, width)
    assert sum(found["shares"].values()) == pytest.approx(1)
    assert set(found["shares"]) <= set(after.spec.labels)


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
def test_scores_of_every_class_become_a_map(layout: str) -> None:
    scores = RNG.normal(size=(1, 4, 6, 8)).astype(np.float32)
    given = scores if layout == "NCHW" else scores.transpose(0, 2, 3, 1)
    found = spec(task="segmentation", layout=layout).apply({"y": given})
    np.testing.assert_array_equal(found["map"], scores[0].argmax(0))


def test_what_a_crop_left_out_is_outside() -> None:
    image = Preprocessing.load({"crop": {"center": [4, 4]}}).inputs[""]
    found = spec(task="segmentation").apply({"y": np.ones((1, 4, 4), np.int32)}, window(image, (8, 10)), (4, 4))
    expected = np.full((8, 10), OUTSIDE)
    expected[2:6, 3:7] = 1
    np.testing.assert_array_equal(found["map"], expected)


DETECTOR: dict[str, Any] = {"task": "detection", "boxes": "b", "scores": "s", "classes": "c"}


def outputs(offset: int = 0) -> dict[str, Any]:
    boxes = np.array([[[0.1, 0.2, 0.5, 0.6], [0.0, 0.0, 1.0, 1.0], [0.3, 0.3, 0.4, 0.4]]], np.float32)
    return {"b": boxes, "s": np.array([[0.6, 0.9, 0.1]], np.float32), "c": np.array([[0, 2, 1]], np.float32) + offset}


def test_both_class_outputs_of_mobilenet_ssd_name_the_same_things() -> None:
    labels = ["person", "bicycle", "car"]
    zero = spec(**DETECTOR, labels=labels).apply(outputs(), None, (300, 300))["boxes"]
    one = spec(**DETECTOR, labels=labels, class_offset=1).apply(outputs(1), None, (300, 300))["boxes"]
    assert [box["label"] for box in zero] == [box["label"] for box in one] == ["car", "person"]
    assert [box["class"] for box in one] == [3, 1]


@pytest.mark.parametrize("form", ["yxyx", "xyxy", "cxcywh"])
def test_boxes_are_in_pixels_of_the_picture(form: str) -> None:
    steps = Preprocessing.load({"resize": {"longer": 100}, "pad": {"size": [100, 100], "where": "both"}})
    place = window(steps.inputs[""], (200, 400))
    given = outputs()
    y1, x1, y2, x2 = np.moveaxis(given["b"].astype(float), -1, 0)
    given["b"] = {
        "yxyx": given["b"],
        "xyxy": np.stack([x1, y1, x2, y2], -1),
        "cxcywh": np.stack([(x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1], -1),
    }[form]
    found = spec(**DETECTOR, box=form).apply(given, place, (100, 100))["boxes"]
    # 400 by 200 becomes 100 by 50, 25 rows of padding above it; 4 pixels of the picture for one of the input
    by_hand = [[0.0, 0.0, 400.0, 200.0], [80.0, 0.0, 240.0, 100.0]]
    np.testing.assert_allclose([box["box"] for box in found], by_hand, atol=1e-4)
    assert as_lines({"task": "detection", "boxes": found})[1].startswith("0  0.6  at 80.0, 0.0, 240.0, 100.0")


def test_count_threshold_and_top() -> None:
    given = {**outputs(), "n": np.array([1.0])}
    assert len(spec(**DETECTOR, count="n").apply(given, None, (1, 1))["boxes"]) == 1
    assert [box["score"] for box in spec(**DETECTOR, threshold=0.05, top=2).apply(given, None, (1, 1))["boxes"]] == [
        pytest.approx(0.9),
        pytest.approx(0.6),
    ]
    assert spec(**DETECTOR, threshold=0.95).apply(given, None, (1, 1))["boxes"] == []
    pixels = {**given, "b": given["b"] * 10}
    (box, *_) = spec(**DETECTOR, normalized=False).apply(pixels)["boxes"]
    assert box["box"] == [0.0, 0.0, 10.0, 10.0]


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        ({}, "needs task"),
        ({"task": "guess"}, "one of classification, segmentation, detection"),
        ({"task": "classification", "tops": 3}, "there is no such key"),
        ({"task": "classification", "boxes": "b"}, "is nothing for classification"),
        ({"task": "detection", "boxes": "b"}, "detection needs the name of this output"),
        ({"task": "segmentation", "labels": "gone.txt"}, "gone.txt"),
        ({"task": "segmentation", "layout": "CHWN"}, "one of NCHW, NHWC"),
        ({"task": "detection", "normalized": "perhaps"}, "true or false"),
    ],
)
def test_specs_that_cannot_be_meant(data: Mapping[str, Any], sentence: str) -> None:
    with pytest.raises(npukit.NpukitError) as caught:
        Postprocessing.load(data)
    assert sentence in str(caught.value)


@pytest.mark.parametrize(
    ("steps", "given", "sentence"),
    [
        (spec(task="classification"), {"a": np.ones(3), "b": np.ones(3)}, "several outputs"),
        (spec(task="classification", output="c"), {"a": np.ones(3)}, "no output 'c'"),
        (spec(task="classification"), {"a": np.ones((2, 3))}, "one row"),
        (spec(task="segmentation"), {"a": np.ones((1, 4, 5, 6))}, "layout: NCHW or NHWC"),
        (spec(**DETECTOR), outputs(), "normalized boxes need the size"),
        (spec(**DETECTOR), {**outputs(), "s": np.ones(2)}, "3 boxes, 2 scores and 3 classes"),
    ],
)
def test_outputs_that_do_not_fit(steps: Postprocessing, given: Any, sentence: str) -> None:
    with pytest.raises(InputError) as caught:
        steps.apply(given)
    assert sentence in str(caught.value)


def test_a_spec_survives_the_stamp(tmp_path: Path) -> None:
    (tmp_path / "names.txt").write_text("cat\ndog\n")
    path = tmp_path / "spec.yaml"
    path.write_text("scale: 1/255\npostprocessing: {task: classification, labels: names.txt, top: 2}\n")
    loaded = Preprocessing.load(path)
    assert loaded.after is not None
    assert loaded.after.spec.labels == ("cat", "dog")
    assert Preprocessing.load(json.loads(json.dumps(loaded.to_dict()))).after == loaded.after
    assert Postprocessing.load(path) == loaded.after


# ---------------------------------------------------------------- through the command, on models of the same kind


@pytest.mark.native
def test_the_imagenet_recipe_from_picture_to_classes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    model = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["": 17]> g (float[1, 3, 224, 224] image) => (float[1, 10] logits)'
        " { a = AveragePool <kernel_shape = [56, 56], strides = [56, 56]> (image) b = Flatten (a)"
        " logits = MatMul (b, w) }"
    )
    weights = RNG.normal(size=(48, 10)).astype(np.float32)
    model.graph.initializer.append(onnx.numpy_helper.from_array(weights, "w"))
    onnx.save(model, "net.onnx")
    picture = Image.fromarray(RNG.integers(0, 255, (40, 60, 3), dtype=np.uint8)).resize((600, 400))
    picture.save("photo.png")
    npukit.convert("net.onnx", target="qnn-cpu", preprocessing=RECIPES / "imagenet.yaml", random=1, in_process=True)
    found = npukit.run("net.dlc", inputs=["photo.png"], in_process=True).results[0]["classes"]
    pixels = np.asarray(picture.resize((384, 256), Image.Resampling.BILINEAR).crop((80, 16, 304, 240)), np.float64)
    real = (pixels / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    means = real.transpose(2, 0, 1).reshape(3, 4, 56, 4, 56).mean((2, 4)).reshape(-1)
    logits = means @ weights.astype(np.float64)
    shares = np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum()
    best = np.argsort(-shares)[:5]
    assert [one["class"] for one in found] == list(best)
    np.testing.assert_allclose([one["score"] for one in found], shares[best], rtol=1e-4)


def _deeplab() -> None:
    """deeplab.onnx: 513 by 513 pixels, channels last, to 0 (dark), 1 (reddish) or 2 (bluish), by ArgMax."""
    model = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["": 17]> g (float[1, 513, 513, 3] sub_7) => (int64[1, 513, 513] ArgMax)'
        " { s = MatMul (sub_7, w) t = Add (s, b) ArgMax = ArgMax <axis = 3, keepdims = 0> (t) }"
    )
    weights = np.array([[0, 1, -1], [0, 0, 0], [0, -1, 1]], np.float32)
    for name, value in {"w": weights, "b": np.array([0.2, 0, 0], np.float32)}.items():
        model.graph.initializer.append(onnx.numpy_helper.from_array(value, name))
    onnx.save(model, "deeplab.onnx")


@pytest.mark.native
def test_deeplab_from_picture_to_map(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    _deeplab()
    picture = np.zeros((60, 100, 3), np.uint8)
    picture[:30, :50] = (250, 10, 10)
    picture[30:, 50:] = (10, 10, 250)
    Image.fromarray(picture).save("street.png")
    npukit.convert(
        "deeplab.onnx", target="qnn-cpu", preprocessing=RECIPES / "deeplabv3.yaml", random=1, in_process=True
    )
    result = npukit.run("deeplab.dlc", inputs=["street.png"], output="out", in_process=True)
    found = result.results[0]
    expected = np.where(picture[..., 0] > 128, 1, np.where(picture[..., 2] > 128, 2, 0))
    # lanczos rings over the borders of the quarters: a few pixels beside them
    assert (found["map"] != expected).mean() < 0.01
    assert found["map"].shape == (60, 100)
    np.testing.assert_array_equal(np.asarray(Image.open("out/map.png")), found["map"])
    assert json.loads(Path("out/results.json").read_text())["map"] == {"shape": [60, 100]}
    assert "map of 100 x 60: background" in result.to_text()


WHAT = ("boxes", "scores", "classes")
NMS = "Postprocessor/BatchMultiClassNonMaxSuppression_"


def detector(path: Path) -> None:
    """A detector of two boxes, the better one around the upper left, with both sets of names of the SDK's page.

    White pictures give scores of sigmoid(1) and a fifth of it.
    """
    text = """<ir_version: 8, opset_import: ["": 17]> g (float[1, 300, 300, 3] image_tensor) =>
      (float[1, 2, 4] detection_boxes, float[1, 2] detection_scores, float[1, 2] detection_classes,
       float[1, 2, 4] boxes, float[1, 2] scores, float[1, 2] zero) {
        scaled = Mul (image_tensor, rate) sub = Sub (scaled, one)
        mean = ReduceMean <axes = [1, 2, 3], keepdims = 0> (sub) none = Mul (mean, nil) boxes = Add (none, places)
        share = Sigmoid (mean) scores = Mul (share, rates) zero = Add (none, kinds)
        detection_boxes = Identity (boxes) detection_scores = Identity (scores) detection_classes = Add (zero, one) }"""
    parsed = onnx.parser.parse_model(text)
    names = {"boxes": f"{NMS}boxes", "scores": f"{NMS}scores", "zero": f"{NMS}classes", "sub": "Preprocessor/sub"}
    for node in parsed.graph.node:
        node.input[:] = [names.get(name, name) for name in node.input]
        node.output[:] = [names.get(name, name) for name in node.output]
    for value in parsed.graph.output:
        value.name = names.get(value.name, value.name)
    constants = {
        "rate": np.array([0.00784313771874], np.float32),
        "one": np.ones(1, np.float32),
        "nil": np.zeros(1, np.float32),
        "places": np.array([[[0, 0, 0.5, 0.25], [0, 0, 1, 1]]], np.float32),
        "rates": np.array([[1.0, 0.2]], np.float32),
        "kinds": np.array([[1, 0]], np.float32),
    }
    for name, array in constants.items():
        parsed.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    onnx.save(parsed, path)


@pytest.mark.native
@pytest.mark.parametrize(("prefix", "offset"), [("detection_", 1), (NMS, 0)])
def test_mobilenet_ssd_from_picture_to_boxes(
    prefix: str, offset: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    detector(Path("ssd.onnx"))
    Image.fromarray(np.full((120, 200, 3), 255, np.uint8)).save("white.png")
    if offset:
        recipe = (RECIPES / "mobilenet_ssd.yaml").read_text()
    else:  # the line of docs/guides/pre-and-post-processing.md
        guide = (RECIPES.parents[1] / "docs" / "guides" / "pre-and-post-processing.md").read_text()
        (line,) = re.findall(r"^sed .*?\.yaml$", guide.replace("\\\n", ""), re.MULTILINE)
        command = line.partition(" > ")[0].replace("recipes/", f"{RECIPES}/")
        recipe = subprocess.run(shlex.split(command), check=True, capture_output=True, text=True).stdout
    steps = yaml.safe_load(recipe)
    steps["postprocessing"]["labels"] = ["person", "bicycle"]
    npukit.convert(
        "ssd.onnx", target="qnn-cpu", random=1, in_process=True, preprocessing=steps,
        inputs=["Preprocessor/sub=1,300,300,3"], outputs=[f"{prefix}{name}" for name in WHAT],
    )  # fmt: skip
    result = npukit.run("ssd.dlc", inputs=["white.png"], in_process=True)
    assert set(result.outputs[0]) == {f"{prefix}{name}" for name in WHAT}
    (box,) = result.results[0]["boxes"]
    assert (box["label"], box["class"]) == ("bicycle", 1 + offset)
    assert box["score"] == pytest.approx(1 / (1 + np.exp(-(255 * 0.00784313771874 - 1))), rel=1e-5)
    np.testing.assert_allclose(box["box"], [0, 0, 50, 60], atol=1e-3)


@pytest.mark.native
def test_run_takes_postprocessing_without_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    digits = Path(__file__).parents[1] / "examples" / "digits"
    monkeypatch.chdir(tmp_path)
    images = np.load(digits / "digits.npz")["images"][:1, None].astype(np.float32) / 16
    np.save("image.npy", images)
    result = npukit.run(
        digits / "digits.onnx", inputs=["image.npy"], postprocessing={"task": "classification", "top": 2}
    )
    found = result.results[0]["classes"]
    assert [one["class"] for one in found] == list(np.argsort(-result.outputs[0]["scores"][0])[:2])
    assert result.to_json()["runs"][0]["results"]["classes"] == found

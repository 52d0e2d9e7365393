# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""Images to model inputs: against Pillow, numpy and numbers worked out by hand."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from PIL import Image

import npukit
from npukit.analysis.preprocess import Preprocessing, rgb_to_yuv, yuv_to_rgb
from npukit.errors import InputError


@dataclass(frozen=True)
class Info:
    name: str
    shape: tuple[Any, ...]
    dtype: Any = "float32"


def photo(height: int, width: int, channels: int = 3) -> np.ndarray:
    """Smooth gradients with some noise: resampling and order faults show."""
    random = np.random.default_rng(height * width)
    grid = np.linspace(0, 200, height)[:, None, None] * np.linspace(0.3, 1, width)[None, :, None]
    tint = np.linspace(1, 0.4, channels)[None, None]
    return (grid * tint + random.integers(0, 50, (height, width, channels))).astype(np.uint8)


def save(path: Path, pixels: np.ndarray) -> Path:
    Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels).save(path)
    return path


IMAGENET = {
    "resize": {"shorter": 256, "method": "bilinear"},
    "crop": {"center": [224, 224]},
    "color": "RGB",
    "scale": "1/255",
    "mean": [0.485, 0.456, 0.406],
    "std": [0.229, 0.224, 0.225],
    "layout": "NCHW",
}
DEEPLAB = {
    "resize": {"longer": 513, "method": "lanczos"},
    "pad": {"size": [513, 513], "value": 128, "where": "end"},
    "scale": 0.00784313771874,
    "offset": -1,
    "layout": "NHWC",
}
MOBILENET_SSD = {"resize": {"size": [300, 300], "method": "bilinear"}, "scale": 0.00784313771874, "offset": -1}


def test_imagenet_classification(tmp_path: Path) -> None:
    path = save(tmp_path / "a.png", photo(300, 401))
    result = Preprocessing.load(IMAGENET).apply(path, Info("x", (1, 3, 224, 224)))
    # torchvision: the longer side is int(256 * 401 / 300), the crop's corner round((342 - 224) / 2), 16
    resized = Image.open(path).resize((342, 256), Image.Resampling.BILINEAR)
    cropped = np.asarray(resized)[16:240, 59:283].astype(np.float32) / np.float32(255)
    mean, std = np.float32([0.485, 0.456, 0.406]), np.float32([0.229, 0.224, 0.225])
    expected = ((cropped - mean) / std).transpose(2, 0, 1)[None]
    assert result.dtype == np.float32
    assert result.shape == (1, 3, 224, 224)
    np.testing.assert_allclose(result, expected, rtol=0, atol=5e-7)


@pytest.mark.parametrize(("height", "width"), [(333, 500), (500, 333), (600, 513), (513, 513), (90, 100)])
def test_deeplab_v3(height: int, width: int) -> None:
    pixels = photo(height, width)
    result = Preprocessing.load(DEEPLAB).apply(pixels, Info("sub_7", (1, 513, 513, 3)))
    rows, columns = (513 * extent // max(height, width) for extent in (height, width))
    resized = Image.fromarray(pixels).resize((columns, rows), Image.Resampling.LANCZOS)
    canvas = np.full((513, 513, 3), 128, np.uint8)
    canvas[:rows, :columns] = resized
    expected = canvas.astype(np.float32) * np.float32(0.00784313771874) - np.float32(1)
    np.testing.assert_allclose(result[0], expected, rtol=0, atol=2e-7)
    assert result.shape == (1, 513, 513, 3)
    if rows < 513:
        assert result[0, 512, 0, 0] == pytest.approx(128 * 0.00784313771874 - 1)


def test_mobilenet_ssd() -> None:
    pixels = photo(480, 640)
    result = Preprocessing.load(MOBILENET_SSD).apply(pixels, Info("Preprocessor/sub", (1, 300, 300, 3)))
    resized = np.asarray(Image.fromarray(pixels).resize((300, 300), Image.Resampling.BILINEAR))
    np.testing.assert_allclose(result[0], resized * (2 / 255) - 1, rtol=0, atol=1e-6)
    assert -1 <= result.min() < result.max() <= 1.000001


def test_the_recipes_of_the_guide(tmp_path: Path) -> None:
    guide = Path(__file__).parents[1] / "docs" / "guides" / "calibration-data.md"
    fences = guide.read_text().split("### Recipes")[1].split("```")[1::2]
    found = []
    for text in fences:
        (tmp_path / "spec.yaml").write_text(text)
        found.append(Preprocessing.load(tmp_path / "spec.yaml"))
    expected = [Preprocessing.load({**spec, "layout": "NHWC"}) for spec in (IMAGENET, DEEPLAB, MOBILENET_SSD)]
    assert [r.to_dict() | {"layout": "NHWC", "color": 0} for r in found] == [
        r.to_dict() | {"color": 0} for r in expected
    ]


@pytest.mark.parametrize("method", ["nearest", "box", "area", "bilinear", "hamming", "bicubic", "lanczos"])
def test_methods_are_pillows(method: str) -> None:
    pixels = photo(31, 47)
    result = Preprocessing.load({"resize": {"size": [20, 60], "method": method}}).apply(pixels, Info("x", (20, 60, 3)))
    kind = Image.Resampling[{"area": "BOX"}.get(method, method.upper())]
    assert np.array_equal(result, np.asarray(Image.fromarray(pixels).resize((60, 20), kind), np.float32))


def test_area_is_the_mean_of_blocks() -> None:
    pixels = photo(8, 12)
    result = Preprocessing.load({"resize": {"size": [4, 4], "method": "area"}}).apply(pixels, Info("x", (4, 4, 3)))
    means = pixels.reshape(4, 2, 4, 3, 3).mean((1, 3))
    assert np.abs(result - means).max() < 1  # Pillow rounds after each of its two passes


@pytest.mark.parametrize(
    ("resize", "expected"),
    [
        ({"shorter": 10}, (10, 16)),
        ({"shorter": 10, "rounding": "nearest"}, (10, 17)),
        ({"longer": 10}, (6, 10)),
        ({"size": [7, 9]}, (7, 9)),
    ],
)
def test_sizes(resize: Mapping[str, Any], expected: tuple[int, int]) -> None:
    spec = Preprocessing.load({"resize": resize}).inputs[""].resize
    assert spec is not None
    assert spec.target(30, 50) == expected


@pytest.mark.parametrize(
    ("color", "expected"),
    [
        ("RGB", [10, 20, 30]),
        ("BGR", [30, 20, 10]),
        ("RGBA", [10, 20, 30, 255]),
        ("ARGB32", [30, 20, 10, 255]),
        ("gray", [18]),  # (299 * 10 + 587 * 20 + 114 * 30) / 1000 = 18.15
    ],
)
def test_colours(color: str, expected: list[int]) -> None:
    pixels = np.full((2, 5, 3), [10, 20, 30], np.uint8)
    for shape, axes in (((1, len(expected), 2, 5), (0, 2, 3, 1)), ((1, 2, 5, len(expected)), (0, 1, 2, 3))):
        info = Info("x", shape)
        result = Preprocessing.load({"color": color}).apply(pixels, info).transpose(axes)
        assert result[0, 1, 4].tolist() == expected


@pytest.mark.parametrize("source", ["RGB", "BGR", "RGBA", "ARGB32"])
@pytest.mark.parametrize(("color", "order"), [("RGBA", "rgba"), ("ARGB32", "bgra")])
def test_models_that_take_alpha(source: str, color: str, order: str) -> None:
    value = {"r": 10, "g": 20, "b": 30, "a": 9 if "A" in source else 255}
    held = {"RGB": "rgb", "BGR": "bgr", "RGBA": "rgba", "ARGB32": "bgra"}[source]
    pixels = np.full((2, 5, len(held)), [value[channel] for channel in held], np.uint8)
    spec = {"source": source, "color": color, "scale": 0.5, "offset": [1, 2, 3, 4]}
    for shape, axes in (((1, 4, 2, 5), (0, 2, 3, 1)), ((1, 2, 5, 4), (0, 1, 2, 3))):
        result = Preprocessing.load(spec).apply(pixels, Info("x", shape)).transpose(axes)
        assert result[0, 1, 4].tolist() == [0.5 * value[c] + at for at, c in enumerate(order, 1)]


@pytest.mark.parametrize(
    ("source", "pixel"), [("BGR", [30, 20, 10]), ("ARGB32", [30, 20, 10, 9]), ("RGBA", [10, 20, 30, 9])]
)
def test_sources(source: str, pixel: list[int]) -> None:
    pixels = np.full((2, 5, len(pixel)), pixel, np.uint8)
    result = Preprocessing.load({"source": source, "color": "RGB"}).apply(pixels, Info("x", (2, 5, 3)))
    assert result[1, 4].tolist() == [10, 20, 30]


def test_grey_and_transparent_images_become_what_the_model_takes(tmp_path: Path) -> None:
    grey = save(tmp_path / "grey.png", photo(4, 5, 1))
    clear = save(tmp_path / "clear.png", photo(4, 5, 4))
    recipe = Preprocessing()
    assert recipe.apply(grey, Info("x", (1, 3, 4, 5))).tolist() == [[photo(4, 5, 1)[..., 0].tolist()] * 3]
    assert np.array_equal(recipe.apply(clear, Info("x", (1, 4, 5, 3)))[0], photo(4, 5, 4)[..., :3])
    assert recipe.apply(photo(4, 5, 1)[..., 0], Info("x", (1, 1, 4, 5))).shape == (1, 1, 4, 5)


@pytest.mark.parametrize(("where", "corner"), [("end", (0, 0)), ("both", (1, 2)), ("start", (3, 4))])
def test_pad(where: str, corner: tuple[int, int]) -> None:
    recipe = Preprocessing.load({"color": "BGR", "pad": {"size": [5, 7], "value": [1, 2, 3], "where": where}})
    result = recipe.apply(np.full((2, 3, 3), 9, np.uint8), Info("x", (5, 7, 3)))
    top, left = corner
    expected = np.tile(np.float32([1, 2, 3]), (5, 7, 1))
    expected[top : top + 2, left : left + 3] = 9
    assert np.array_equal(result, expected)


def test_crop_box_is_left_top_right_bottom() -> None:
    pixels = photo(10, 12)
    result = Preprocessing.load({"crop": {"box": [2, 1, 9, 5]}}).apply(pixels, Info("x", (1, 4, 7, 3)))
    assert np.array_equal(result[0], pixels[1:5, 2:9])


@pytest.mark.parametrize(("dtype", "kind"), [("float16", np.float16), ("bfloat16", ml_dtypes.bfloat16)])
def test_narrow_floats(dtype: str, kind: Any) -> None:
    pixels = photo(4, 4)
    result = Preprocessing.load({"scale": "1/255"}).apply(pixels, Info("x", (4, 4, 3), dtype))
    assert result.dtype == kind
    assert np.array_equal(result, (pixels / 255).astype(np.float32).astype(kind))


def test_integer_inputs() -> None:
    pixels = photo(4, 4)
    assert np.array_equal(Preprocessing().apply(pixels, Info("x", (4, 4, 3), "uint8")), pixels)
    shifted = Preprocessing.load({"offset": -128}).apply(pixels, Info("x", (4, 4, 3), "int8"))
    assert np.array_equal(shifted, pixels.astype(int) - 128)
    # [0, 1] at scale 1/127, offset 0 (QNN): 255 is code 127; with offset -128 code 0 stands for 128
    spec = {"scale": "1/255", "quantize": {"scale": "1/127", "offset": -128}}
    codes = Preprocessing.load(spec).apply(np.uint8([[[0, 128, 255]]]), Info("x", (1, 1, 3), "uint8"))
    assert codes.tolist() == [[[128, 192, 255]]]
    with pytest.raises(InputError, match="numbers 0 to 255 do not fit int8"):
        Preprocessing().apply(pixels, Info("x", (4, 4, 3), "int8"))


def test_full_range_is_the_one_of_jpeg() -> None:
    """Pillow's YCbCr is BT.601 in full range; chroma of 2 by 2 equal pixels loses nothing."""
    random = np.random.default_rng(1)
    planes = random.integers(0, 256, (3, 6, 8)).astype(np.uint8)
    chroma = planes[1:, ::2, ::2]
    ycc = np.stack([planes[0], *(c.repeat(2, 0).repeat(2, 1) for c in chroma)], -1)
    expected = np.asarray(Image.fromarray(ycc, "YCbCr").convert("RGB")).astype(int)
    for order, pair in (("NV12", chroma), ("NV21", chroma[::-1])):
        frame = np.concatenate([planes[0], np.stack(list(pair), -1).reshape(3, 8)])
        assert np.abs(yuv_to_rgb(frame, order, True).astype(int) - expected).max() <= 1


# Colour bars of BT.601 in 8 bits: Y, Cb, Cr as the standard's tables print them.
BARS = [
    ((255, 255, 255), (235, 128, 128)),
    ((0, 0, 0), (16, 128, 128)),
    ((255, 0, 0), (81, 90, 240)),
    ((0, 255, 0), (145, 54, 34)),
    ((0, 0, 255), (41, 240, 110)),
]


@pytest.mark.parametrize(("rgb", "ycc"), BARS)
def test_limited_range_has_the_colour_bars(rgb: tuple[int, ...], ycc: tuple[int, int, int]) -> None:
    pixels = np.full((2, 4, 3), rgb, np.uint8)
    y, cb, cr = ycc
    for order, pair in (("NV12", [cb, cr]), ("NV21", [cr, cb])):
        frame = rgb_to_yuv(pixels, order, False)
        assert frame.tolist() == [[y] * 4, [y] * 4, pair * 2]
        assert np.abs(yuv_to_rgb(frame, order, False).astype(int) - pixels).max() <= 2


def test_frames_from_files_and_to_models(tmp_path: Path) -> None:
    pixels = np.full((4, 6, 3), [200, 30, 60], np.uint8)
    frame = rgb_to_yuv(pixels, "NV21", True)
    frame.tofile(tmp_path / "a.nv21")
    spec = {"source": "NV21", "frame": [4, 6], "range": "full", "color": "BGR"}
    result = Preprocessing.load(spec).apply(tmp_path / "a.nv21", Info("x", (1, 4, 6, 3)))
    assert np.abs(result[0, 2, 3] - [60, 30, 200]).max() <= 2
    to_model = Preprocessing.load({"color": "NV21", "range": "full"})
    assert np.array_equal(to_model.apply(pixels, Info("x", (1, 6, 6, 1), "uint8"))[0, ..., 0], frame)
    (tmp_path / "b.nv21").write_bytes(bytes(20))
    with pytest.raises(InputError, match="has 36 bytes, the file 20"):
        Preprocessing.load(spec).apply(tmp_path / "b.nv21", Info("x", (1, 4, 6, 3)))


def test_all_faults_of_a_spec_at_once(tmp_path: Path) -> None:
    path = tmp_path / "spec.yaml"
    path.write_text(
        "reszie: {size: [2, 2]}\n"
        "resize: {size: [224], method: cubic, shorter: 3}\n"
        "crop: {}\n"
        "pad: {size: [8, 8], value: 300, were: end}\n"
        "mean: [a, 1]\nstd: 0\ncolor: NV12\nchannels: true\nlayout: NCWH\n"
    )
    with pytest.raises(InputError) as caught:
        Preprocessing.load(path)
    text = {fault.where: f"{fault.what} {fault.hint}" for fault in caught.value.faults}
    assert caught.value.where == str(path)
    assert "'resize'" in text["reszie"]
    assert "[height, width]" in text["resize.size"]
    assert "bicubic" in text["resize.method"]
    assert "exactly one of center, box" in text["crop"]
    assert "'where'" in text["pad.were"]
    assert set(text) == {
        *("reszie", "resize.size", "resize.method", "crop", "pad.value", "pad.were"),
        *("mean", "std", "channels", "layout"),
    }


@pytest.mark.parametrize(
    ("spec", "text"),
    [
        ({"resize": {"size": [2, 2], "shorter": 2}}, "exactly one of size, shorter, longer"),
        ({"offset": 1, "mean": 1}, "give one of them"),
        ({"color": "NV12"}, "full or limited"),
        ({"range": "full"}, "only NV12 and NV21"),
        ({"source": "NV12", "range": "full"}, "frame"),
        ({"color": "RGB", "channels": 4}, "has 3"),
        ({"inputs": {"x": {}}, "scale": 2}, "stands beside"),
        ({"scale": "1/0"}, "like 1/255"),
        ({"scale": float("nan")}, "finite"),
        ({"resize": 5}, "needs keys and values"),
        ({"quantize": {"offset": 1}}, "needs scale"),
    ],
)
def test_specs_that_cannot_be_meant(spec: Mapping[str, Any], text: str) -> None:
    with pytest.raises(InputError, match=text):
        Preprocessing.load(spec)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("- a\n", "list of KEY: VALUE"),
        ("a: [\n", "not a sound YAML file"),
        ("color: RGB\ncolor: BGR\n", "given twice"),
        ("color: !!python/object/apply:os.system [ls]\n", "not a sound YAML file"),
        ("a: " + "[" * 4000, "not a sound YAML file"),
    ],
)
def test_yaml_that_is_none(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "spec.yaml").write_text(text)
    with pytest.raises(InputError, match=message):
        Preprocessing.load(tmp_path / "spec.yaml")


@pytest.mark.parametrize("spec", [IMAGENET, DEEPLAB, {"inputs": {"a": MOBILENET_SSD, "b": {"quantize": {"scale": 2}}}}])
def test_a_spec_survives_its_own_form(spec: Mapping[str, Any], tmp_path: Path) -> None:
    import yaml

    recipe = Preprocessing.load(spec)
    assert Preprocessing.load(recipe.to_dict()) == recipe
    (tmp_path / "spec.yaml").write_text(yaml.safe_dump(recipe.to_dict()))
    assert Preprocessing.load(tmp_path / "spec.yaml").inputs == recipe.inputs


def test_what_does_not_fit_the_model() -> None:
    recipe = Preprocessing.load(
        {"inputs": {"imgae": {}, "image": {"crop": {"center": [4, 4]}}, "other": {"mean": [1, 2]}}}
    )
    inputs = [Info("image", (1, 3, 8, 8)), Info("other", (1, 3, 8, 8)), Info("free", (1, "N"))]
    found = {fault.where or fault.what: fault for fault in recipe.faults(inputs)}
    assert "'image'" in found["preprocessing"].hint
    assert "end in 4 x 4" in found["image"].what
    assert "mean has 2 values" in found["other"].what
    assert len(found) == 3


def test_inputs_of_the_wrong_shape() -> None:
    image = photo(8, 8)
    cases = [
        (Info("x", (1, 3, 9, 8)), {}, "takes 8 x 9"),
        (Info("x", (1, 5, 8, 8)), {}, "no 1, 3 or 4 channels"),
        (Info("x", (1, 3, 8, 3)), {}, "does not say where"),
        (Info("x", (1, 3, "H", 8)), {}, "is open"),
        (Info("x", (10,)), {}, "takes no image"),
        (Info("x", (1, 3, 8, 8)), {"dtype": "uint8"}, "says uint8"),
        (Info("x", (1, 3, 8, 8)), {"crop": {"box": [0, 0, 8, 9]}}, "end in 8 x 9"),
        (Info("x", (1, 3, 9, 8)), {"crop": {"box": [0, 0, 8, 9]}}, "leaves the image"),
        (Info("x", (1, 3, 4, 4)), {"pad": {"size": [4, 4]}}, "larger than the pad"),
    ]
    for info, spec, text in cases:
        with pytest.raises(InputError, match=text):
            Preprocessing.load(spec).apply(image, info)
    with pytest.raises(InputError, match="uint8"):
        Preprocessing().apply(image.astype(np.float32), Info("x", (1, 3, 8, 8)))


DIGITS = Path(__file__).parents[1] / "examples" / "digits"


@pytest.mark.native
def test_the_artifact_keeps_the_steps_for_run_and_verify(tmp_path: Path) -> None:
    """Twice as large, quarter bright: only the steps make the image what the model takes."""
    digit = np.load(DIGITS / "digits.npz")["images"][3].astype(np.uint8)
    Image.fromarray((digit * 4).repeat(2, 0).repeat(2, 1)).save(tmp_path / "digit.png")
    np.save(tmp_path / "pixels.npy", (digit * 4).repeat(2, 0).repeat(2, 1))
    np.save(tmp_path / "ready.npy", digit[None, None].astype(np.float32) / 16)
    (tmp_path / "steps.yaml").write_text("resize: {size: [8, 8], method: nearest}\nscale: 1/64\n")
    image, steps, ready = tmp_path / "digit.png", tmp_path / "steps.yaml", tmp_path / "ready.npy"
    source = DIGITS / "digits.onnx"
    expected = npukit.run(source, inputs=[ready]).outputs[0]["scores"]
    with pytest.raises(InputError, match="16 x 16"):
        npukit.run(source, inputs=[image])
    for model in (image, tmp_path / "pixels.npy"):
        found = npukit.run(source, inputs=[model], preprocessing=steps).outputs[0]["scores"]
        np.testing.assert_allclose(found, expected, rtol=1e-6)

    made = npukit.convert(source, inputs=[image], preprocessing=steps, output=tmp_path / "digits.dlc")
    assert made.verification.passed
    found = npukit.run(tmp_path / "digits.dlc", inputs=[image]).outputs[0]["scores"]
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)  # another library's float32 sums
    npukit.compile(tmp_path / "digits.dlc", output=tmp_path / "digits.bin", target="sm8650")
    assert npukit.verify(tmp_path / "digits.bin", against=source, inputs=[image]).passed
    other = {"resize": {"size": [8, 8]}, "scale": "1/128"}
    halved = npukit.run(tmp_path / "digits.dlc", inputs=[image], preprocessing=other).outputs[0]["scores"]
    assert np.abs(halved - found).max() > 0.1

    with pytest.raises(InputError, match="end in 9 x 9"):
        npukit.convert(source, preprocessing={"resize": {"size": [9, 9]}}, output=tmp_path / "bad.dlc")
    assert not (tmp_path / "bad.dlc").exists()

# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""AIPP configurations against the formula that Ascend's documents give for them, computed here in numpy."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from npukit.analysis.preprocess import Preprocessing, rgb_to_yuv, yuv_to_rgb
from npukit.analysis.preprocess_aipp import _WORST, Translation, translate
from npukit.ascend.aipp import Aipp, config
from npukit.errors import InputError, NpukitError

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Input:
    """An input as `Preprocessing.apply` takes it."""

    shape: tuple[int, ...]
    name: str = "x"
    dtype: str = "float32"


def parsed(text: str) -> list[dict[str, Any]]:
    """The blocks of a configuration file, read by the protobuf text format's rules."""
    blocks = []
    for block in re.findall(r"aipp_op \{\n(.*?)\n\}", text, re.DOTALL):
        pairs = [line.strip().split(": ") for line in block.splitlines()]
        assert len({key for key, _ in pairs}) == len(pairs)
        blocks.append({k: v if v[0].isalpha() else float(v) for k, v in pairs})
    return blocks


def aipp(text: str, raw: Array, channels: int) -> Array:
    """What AIPP makes of uint8 pixels [H, W, C] (or of an NV12 frame [1.5 H, W, 1]): float16 [channels, H, W].

    The formula and the order of the steps are those of the documents (GE AIPP/config_file_template.md): channel swap,
    crop, colour conversion with a shift by 8, (pixel - mean - min) * reciprocal, padding. Chroma of a pair serves 2 by
    2 pixels. Where the documents are silent: the shift is arithmetic, results are cut to 0..255, and the last step
    rounds once to float16.
    """
    (block,) = parsed(text)
    on = {key for key, value in block.items() if value == "true"}
    form = block["input_format"]
    if form == "YUV420SP_U8":
        width, height = int(block["src_image_size_w"]), int(block["src_image_size_h"])
        plane = raw.reshape(height * 3 // 2, width)
        pairs = plane[height:].reshape(height // 2, width // 2, 2).repeat(2, 0).repeat(2, 1)
        u, v = (1, 0) if "rbuv_swap_switch" in on else (0, 1)
        picture = np.stack([plane[:height], pairs[..., u], pairs[..., v]], -1).astype(np.int64)
    else:
        picture = raw[..., :3].astype(np.int64)
        picture = picture[..., ::-1] if "rbuv_swap_switch" in on else picture
    if "crop" in on:
        left, top = int(block["load_start_pos_w"]), int(block["load_start_pos_h"])
        picture = picture[top : top + int(block["crop_size_h"]), left : left + int(block["crop_size_w"])]
    if "csc_switch" in on:
        matrix = np.array([[int(block[f"matrix_r{i}c{j}"]) for j in range(3)] for i in range(3)])
        before = np.array([int(block.get(f"input_bias_{i}", 0)) for i in range(3)])
        after = np.array([int(block.get(f"output_bias_{i}", 0)) for i in range(3)])
        picture = np.clip((((picture - before) @ matrix.T) >> 8) + after, 0, 255)
    planes = []
    for i in range(channels):
        shift = block.get(f"mean_chn_{i}", 0.0) + np.float64(np.float16(block.get(f"min_chn_{i}", 0.0)))
        factor = np.float64(np.float16(block.get(f"var_reci_chn_{i}", 1.0)))
        plane = ((picture[..., i] - shift) * factor).astype(np.float16)
        if "padding" in on:
            sides = [int(block[f"{side}_padding_size"]) for side in ("top", "bottom", "left", "right")]
            value = np.float16(block["padding_value"])
            plane = np.pad(plane, (sides[:2], sides[2:]), constant_values=value)
        planes.append(plane)
    return np.stack(planes)


def made(spec: dict[str, Any], shape: tuple[int, ...], image: tuple[int, int] | None = None) -> Translation:
    return translate(Preprocessing.load(spec).inputs[""], "x", shape, "float32", 0, image)


def picture(height: int, width: int, channels: int = 3) -> Array:
    """A picture with smooth parts, edges and noise."""
    rng = np.random.default_rng(height * 1000 + width)
    y, x = np.mgrid[:height, :width]
    smooth = np.stack([127 + 120 * np.sin(x / 7 + c) * np.cos(y / 9 - c) for c in range(channels)], -1)
    smooth[height // 2 :, width // 3 : width // 2] = [255, 0, 30, 200][:channels]
    return np.clip(smooth + rng.normal(0, 12, smooth.shape), 0, 255).astype(np.uint8)


IMAGENET = {"scale": "1/255", "mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}
EXACT: dict[str, tuple[dict[str, Any], tuple[int, ...], tuple[int, int] | None]] = {
    "as it is": ({}, (1, 3, 20, 30), None),
    "imagenet": (IMAGENET, (1, 3, 20, 30), None),
    "bgr": ({"color": "BGR", "mean": [103.94, 116.78, 123.68], "std": 58.4}, (1, 3, 20, 30), None),
    "from bgr": ({"source": "BGR", **IMAGENET}, (1, 3, 20, 30), None),
    "bgr to bgr": ({"source": "BGR", "color": "BGR", "scale": "1/255"}, (1, 3, 20, 30), None),
    "from rgba": ({"source": "RGBA", "color": "RGB", "scale": "1/128", "mean": 1}, (1, 3, 20, 30), None),
    "from argb32": ({"source": "ARGB32", "color": "RGB", **IMAGENET}, (1, 3, 20, 30), None),
    "gray": ({"source": "gray", "scale": "1/255", "mean": 0.5, "std": 0.5}, (1, 1, 20, 30), None),
    "crop": ({"crop": {"center": [20, 30]}, **IMAGENET}, (1, 3, 20, 30), (45, 61)),
    "box": ({"crop": {"box": [3, 5, 33, 25]}, **IMAGENET}, (1, 3, 20, 30), (45, 61)),
    "pad": ({"pad": {"size": [20, 30], "value": 114}, "scale": "1/255"}, (1, 3, 20, 30), (16, 25)),
    "pad both": ({"pad": {"size": [20, 30], "where": "both"}, "mean": 127.5, "std": 127.5}, (1, 3, 20, 30), (13, 25)),
    "crop and pad": (
        {"crop": {"center": [16, 24]}, "pad": {"size": [20, 30], "where": "start"}}, (1, 3, 20, 30), (40, 40),
    ),
    "mean above 255": ({"mean": 300, "std": 10}, (1, 3, 20, 30), None),
}  # fmt: skip


@pytest.mark.parametrize("case", EXACT)
def test_numbers_are_those_of_npukits_own_preprocessing(case: str) -> None:
    spec, shape, image = EXACT[case]
    translation = made(spec, shape, image)
    height, width = image or shape[2:]
    source = {"gray": 1, "RGBA": 4, "ARGB32": 4}.get(spec.get("source", ""), 3)
    raw = picture(height, width, source)
    ours = Preprocessing.load(spec).apply(raw, Input(shape))[0]
    theirs = aipp(config([translation.aipp]), raw, shape[1])
    assert theirs.shape == ours.shape
    assert translation.shape == (1, height, width, source)
    assert translation.notes == ()
    # The factor, the fraction of the shift and the result are each rounded once to float16 (2**-11 relative); the
    # fraction is below 1 (or 256, beyond a mean of 255), and counts with the factor.
    factor = max(map(abs, translation.aipp.reciprocal or (1.0,)))
    fraction = max([0.0, *translation.aipp.minimum])
    tolerance = 2**-11 * (2 * np.abs(ours) + fraction * factor) + 2**-24
    assert (np.abs(theirs - ours) <= tolerance).all()


@pytest.mark.parametrize("source", ["NV12", "NV21"])
@pytest.mark.parametrize("span", ["full", "limited"])
@pytest.mark.parametrize("color", ["RGB", "BGR"])
def test_frames_differ_by_what_the_note_says(source: str, span: str, color: str) -> None:
    spec = {"source": source, "frame": [40, 64], "range": span, "color": color, "crop": {"center": [32, 48]}}
    translation = made(spec, (1, 3, 32, 48))
    raw = rgb_to_yuv(picture(40, 64), source, span == "full")
    ours = Preprocessing.load(spec).apply(raw, Input((1, 3, 32, 48)))[0]
    theirs = aipp(config([translation.aipp]), raw, 3)
    assert np.abs(theirs - ours).max() <= _WORST["yuv"]
    assert translation.shape == (1, 60, 64, 1)
    assert f"up to {_WORST['yuv']} of 255" in translation.notes[0]


@pytest.mark.parametrize("span", ["full", "limited"])
def test_the_worst_colour_of_all_frames(span: str) -> None:
    """The figure in the note (measured over all 2**24 colours), over every 5th value of Y, U and V, and the ends."""
    steps = np.unique(np.r_[0:256:5, 1, 16, 127, 128, 129, 235, 240, 254, 255]).astype(np.uint8)
    y, u, v = (a.ravel() for a in np.meshgrid(steps, steps, steps, indexing="ij"))
    count = y.size
    frame = np.empty((3, 2 * count), np.uint8)  # each colour is a block of 2 by 2 pixels
    frame[:2] = y.repeat(2)
    frame[2, 0::2], frame[2, 1::2] = u, v
    ours = yuv_to_rgb(frame, "NV12", span == "full")[0, ::2].astype(np.int64)
    rows, bias = (_matrix(span), np.array([0 if span == "full" else 16, 128, 128]))
    theirs = np.clip(((np.stack([y, u, v], -1).astype(np.int64) - bias) @ rows.T) >> 8, 0, 255)
    assert np.abs(ours - theirs).max() == _WORST["yuv"]


def _matrix(span: str) -> Array:
    (block,) = parsed(config([made({"source": "NV12", "frame": [2, 2], "range": span}, (1, 3, 2, 2)).aipp]))
    return np.array([[int(block[f"matrix_r{i}c{j}"]) for j in range(3)] for i in range(3)])


@pytest.mark.parametrize("source", ["RGB", "BGR", "RGBA"])
def test_grey_differs_by_what_the_note_says(source: str) -> None:
    steps = np.unique(np.r_[0:256:5, 1, 127, 128, 254, 255]).astype(np.uint8)
    raw = np.stack(np.meshgrid(steps, steps, steps, indexing="ij"), -1).reshape(steps.size, -1, 3)
    raw = np.concatenate([raw, raw[..., :1]], -1) if source == "RGBA" else raw
    size = raw.shape[:2]
    spec = {"source": source, "color": "gray"}
    ours = Preprocessing.load(spec).apply(raw, Input((1, 1, *size)))[0]
    translation = made(spec, (1, 1, *size))
    theirs = aipp(config([translation.aipp]), raw, 1)
    assert np.abs(theirs - ours).max() == _WORST["gray"]


REFUSED: dict[str, tuple[dict[str, Any], tuple[int, ...], str, str]] = {
    "resize": ({"resize": {"size": [20, 30]}}, (1, 3, 20, 30), "resize", "does not resize"),
    "quantize": ({"quantize": {"scale": 0.1}}, (1, 3, 20, 30), "quantize", "no codes"),
    "layout": ({"layout": "NHWC"}, (1, 20, 30, 3), "layout", r"\[N, C, H, W\]"),
    "six channels": ({}, (1, 6, 224, 224), "channels", "1 or 3 channels, the input has 6"),
    "open": ({}, (1, 3, -1, 30), "shape", "fixed size"),
    "rgba": ({"color": "RGBA"}, (1, 3, 20, 30), "color", "does not make RGBA"),
    "colours of grey": ({"source": "gray"}, (1, 3, 20, 30), "source", "colours of grey"),
    "luma": ({"source": "NV12", "frame": [20, 30], "range": "full"}, (1, 1, 20, 30), "source", "luma"),
    "negative": ({"offset": 3}, (1, 3, 20, 30), "offset", "subtracts 0 to 510"),
    "negative mean": ({"mean": -3}, (1, 3, 20, 30), "mean", "subtracts 0 to 510"),
    "tiny": ({"scale": 1e-7}, (1, 3, 20, 30), "scale", "no float16"),
    "huge": ({"scale": 1e7}, (1, 3, 20, 30), "scale", "no float16"),
    "padding by channel": (
        {"pad": {"size": [20, 30], "value": 114}, **IMAGENET}, (1, 3, 20, 30), "pad.value", "one number",
    ),
    "size": ({"crop": {"box": [0, 0, 10, 10]}}, (1, 3, 20, 30), "crop", "the steps end in 10 x 10"),
    "beyond": ({"crop": {"box": [20, 0, 50, 20]}}, (1, 3, 20, 30), "crop", "leaves the picture"),
    "odd": (
        {"source": "NV12", "frame": [40, 64], "range": "full", "crop": {"box": [3, 4, 33, 24]}}, (1, 3, 20, 30),
        "crop", "odd pixel",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_aipp_cannot_do_is_refused_by_its_key(case: str) -> None:
    spec, shape, where, what = REFUSED[case]
    with pytest.raises(NpukitError) as caught:
        made(spec, shape)
    faults = [fault for fault in caught.value.faults if fault.where == where]
    assert len(faults) == 1, caught.value
    assert re.search(what, faults[0].what)


def test_all_faults_come_at_once() -> None:
    spec = {"resize": {"size": [20, 30]}, "quantize": {"scale": 0.1}, "color": "RGBA"}
    with pytest.raises(InputError) as caught:
        made(spec, (1, 3, 20, 30))
    assert [fault.where for fault in caught.value.faults] == ["resize", "quantize", "color"]


@pytest.mark.parametrize(
    ("given", "where"),
    [
        (Aipp("RGB"), "input_format"),
        (Aipp("RGB888_U8", source=(0, 10)), "source"),
        (Aipp("RGB888_U8", source=(10, 1)), "source"),
        (Aipp("RGB888_U8", source=(10, 4097)), "source"),
        (Aipp("YUV420SP_U8", source=(11, 10)), "source"),
        (Aipp("RGB888_U8", crop=(0, 0, 5, 5)), "source"),
        (Aipp("RGB888_U8", source=(10, 10), crop=(6, 0, 5, 5)), "crop"),
        (Aipp("RGB888_U8", source=(10, 10), padding=(33, 0, 0, 0)), "pad"),
        (Aipp("RGB888_U8", source=(10, 1070), padding=(11, 0, 0, 0)), "pad"),
        (Aipp("RGB888_U8", mean=(256,)), "mean"),
        (Aipp("RGB888_U8", reciprocal=(65505.0,)), "std"),
    ],
)
def test_the_limits_of_the_310p(given: Aipp, where: str) -> None:
    assert [fault.where for fault in given.faults()] == [where]


def test_within_the_limits() -> None:
    assert Aipp("RGB888_U8", source=(10, 1070), padding=(10, 0, 0, 0), mean=(255,)).faults() == []

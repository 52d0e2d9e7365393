# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""OpenVLA's image path against TensorFlow 2.21 on 50 pictures; tools/openvla_image_reference.py made the reference."""

from __future__ import annotations

import hashlib
import io
import json
import sys
from typing import Any

import numpy as np
import pytest
from PIL import Image

from npukit.errors import ArtifactError, InputError, MissingDependency
from npukit.policies.openvla import image, steps
from npukit.policies.processing import Preprocessor
from tests import openvla_images

REFERENCE = json.loads(openvla_images.DATA.with_suffix(".json").read_text())
IMAGES = openvla_images.images()


def sha256(array: Any) -> str:
    return hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()


def test_every_stage_is_tensorflows_to_one_count(record_property: Any) -> None:
    """npukit's arrays become TensorFlow's, by their hash, with the few recorded values put in; each is off by one."""
    assert len(IMAGES) == 50
    assert list(IMAGES) == list(REFERENCE["images"])
    differing = {"jpeg": 0, "resized": 0, "cropped": 0}
    with np.load(openvla_images.DATA) as data:
        for name, picture in IMAGES.items():
            row = REFERENCE["images"][name]
            assert sha256(picture) == row["input"], f"{name}: not the picture that TensorFlow was given"
            for stage, ours in openvla_images.ours(picture).items():
                tensorflows = ours.copy()
                if f"at/{stage}/{name}" in data:
                    places, values = data[f"at/{stage}/{name}"], data[f"is/{stage}/{name}"]
                    tensorflows.ravel()[places] = values
                    differing[stage] += int(np.count_nonzero(tensorflows != ours))
                assert sha256(tensorflows) == row[stage], f"{name}, {stage}"
                assert np.abs(tensorflows.astype(int) - ours).max() <= 1, f"{name}, {stage}"
    record_property("differing", differing)
    # Of 7.5 million values a stage. JPEG has no tolerance; in the others the sums of float32 are TensorFlow's but for
    # the last bit of some sines.
    assert differing["jpeg"] == 0
    assert differing["resized"] <= 60
    assert differing["cropped"] <= 60


def test_the_steps_are_that_path() -> None:
    config = {"image_size": 224, "image_channels": CHANNELS, "prompt_length": 32, "pad_id": 32000, "bos_id": 1}
    listed = [step for step in steps.steps(config) if step["step"] != "prompt"]
    preprocess = Preprocessor(steps.inputs(config), listed, {})
    for name in ("photograph, coffee", "noise 480x640", "light scene 3"):
        got = preprocess({steps.CAMERA: IMAGES[name]})[steps.CAMERA]
        wanted = stacked(openvla_images.ours(IMAGES[name])["cropped"])
        assert got.shape == (1, 6, 224, 224)
        assert got.dtype == np.float32
        assert np.array_equal(got, wanted)
    whole = preprocess({steps.CAMERA: IMAGES["photograph, coffee"]})[steps.CAMERA]
    floats = (IMAGES["photograph, coffee"].transpose(2, 0, 1) / 255).astype(np.float32)
    assert np.array_equal(preprocess({steps.CAMERA: floats})[steps.CAMERA], whole)


CHANNELS = [
    {"mean": [0.484375, 0.455078125, 0.40625], "std": [0.228515625, 0.2236328125, 0.224609375]},
    {"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]},
]


def stacked(picture: Any) -> Any:
    """torchvision's to_tensor and normalize in PyTorch, once for each tower."""
    torch = pytest.importorskip("torch")
    tensor = torch.from_numpy(picture.transpose(2, 0, 1).copy()).to(torch.float32).div(255)
    parts = [
        (tensor - torch.tensor(row["mean"])[:, None, None]) / torch.tensor(row["std"])[:, None, None]
        for row in CHANNELS
    ]
    return torch.cat(parts)[None].numpy()


def test_without_the_crop() -> None:
    config = {"image_size": 224, "image_channels": CHANNELS, "prompt_length": 32, "pad_id": 32000, "bos_id": 1}
    names = [step["step"] for step in steps.steps({**config, "center_crop": False})]
    assert names == ["jpeg_round_trip", "lanczos3_resize", "batch", "prompt", "stack_normalized"]


def test_growing_and_odd_sizes_against_an_integral() -> None:
    """A constant picture stays constant: the weights sum up to 1, also at the edges and where it grows."""
    for height, width in ((5, 7), (64, 300), (500, 224), (1, 1)):
        flat = np.full((height, width, 3), 201, np.uint8)
        assert (image.lanczos3_resize(flat, 224, 224) == 201).all()
        assert image.center_crop(flat, 0.9).shape == flat.shape


# ---------------------------------------------------------------- what is refused


def test_pillows_decoder_is_not_good_enough() -> None:
    """Why simplejpeg is needed: Pillow decodes with the accurate DCT."""
    stream = io.BytesIO()
    Image.fromarray(IMAGES["noise 256"]).save(stream, "JPEG", quality=95, subsampling="4:2:0")
    pillows = np.asarray(Image.open(stream))
    assert np.abs(pillows.astype(int) - image.jpeg_round_trip(IMAGES["noise 256"])).max() > 5


@pytest.mark.parametrize("change", [{"decode_dct": "accurate"}, {"quality": 90}, {"upsampling": "nearest"}])
def test_another_jpeg_is_refused(change: dict[str, Any]) -> None:
    step = {"step": "jpeg_round_trip", **image.JPEG, **change}
    with pytest.raises(ArtifactError, match="would not give the pictures that the policy was trained on"):
        Preprocessor(steps.inputs({}), [step], {})


def test_missing_simplejpeg_shows_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "simplejpeg", None)
    image._check_codecs.cache_clear()
    with pytest.raises(MissingDependency, match="simplejpeg, which is not installed .Pillow cannot do it") as caught:
        Preprocessor(steps.inputs({}), [{"step": "jpeg_round_trip", **image.JPEG}], {})
    assert "npukit[openvla]" in caught.value.hint


def test_another_library_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    import simplejpeg

    true = simplejpeg.decode_jpeg
    monkeypatch.setattr(simplejpeg, "decode_jpeg", lambda data, space, **_: true(data, space))  # accurate DCT
    image._check_codecs.cache_clear()
    with pytest.raises(MissingDependency, match="do not compute what TensorFlow's does"):
        Preprocessor(steps.inputs({}), [{"step": "jpeg_round_trip", **image.JPEG}], {})
    image._check_codecs.cache_clear()


def test_too_long_an_edge() -> None:
    with pytest.raises(InputError, match="70000 x 1 pixels cannot be a JPEG"):
        image.jpeg_round_trip(np.zeros((1, 70000, 3), np.uint8))


@pytest.mark.parametrize(
    "step",
    [
        {"step": "lanczos3_resize", "height": 0, "width": 224},
        {"step": "center_crop", "area": 1.5},
        {"step": "center_crop"},
        {"step": "stack_normalized", "parts": [{"mean": [0.5, 0.5], "std": [1, 1, 1]}]},
        {"step": "stack_normalized", "parts": [{"mean": [0.5, 0.5, 0.5], "std": [1, 0, 1]}]},
        {"step": "stack_normalized", "parts": []},
    ],
    ids=lambda step: json.dumps(step)[:60],
)
def test_unsound_options(step: dict[str, Any]) -> None:
    with pytest.raises(ArtifactError, match="is not sound"):
        Preprocessor(steps.inputs({}), [step], {})

# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""Makes what tests/test_openvla_image.py compares OpenVLA's image path with: TensorFlow's results for 50 pictures.

Needed only to make the committed files anew. Three steps, of which only the second needs TensorFlow (2.21 was used):

    python -m tools.openvla_image_reference inputs FOLDER_OF_SKIMAGE_DATA WORK   # writes tests/data/openvla_images.npz
    PYTHON_WITH_TENSORFLOW tools/openvla_image_reference.py reference WORK
    python -m tools.openvla_image_reference pack WORK                            # completes it, and writes the .json

tests/data/openvla_images.json holds, for each picture and stage, the SHA-256 of TensorFlow's array; the .npz holds the
pictures that no seed makes, and for each stage the few places where npukit's array differs from TensorFlow's, with
TensorFlow's values: npukit's array with these put in must have TensorFlow's hash.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np

EDGE, AREA = 224, 0.9
STAGES = ("jpeg", "resized", "cropped")
PHOTOGRAPHS = {
    "astronaut": 256, "coffee": 256, "chelsea": 256, "rocket": 256, "hubble_deep_field": 256, "retina": 192,
    "brick": 128, "gravel": 128, "camera": 192,
}  # fmt: skip


def inputs(folder: Path, work: Path) -> None:
    """Collect the pictures that are stored, and write all 50 for TensorFlow."""
    from PIL import Image, ImageDraw

    from tests import openvla_images

    found: dict[str, Any] = {}
    for name, edge in PHOTOGRAPHS.items():
        (path,) = folder.glob(f"{name}.*g")
        picture = Image.open(path).convert("RGB")
        side = min(picture.size)
        left, top = (picture.width - side) // 2, (picture.height - side) // 2
        square = picture.crop((left, top, left + side, top + side))
        found[f"photograph, {name}"] = square.resize((edge, edge), Image.Resampling.LANCZOS)
    for i, picture in enumerate(_light_scene(8)):
        found[f"light scene {i}"] = Image.fromarray(picture)
    for name, (ink, paper) in {"black on white": ("black", "white"), "red on blue": ("red", "blue")}.items():
        page = Image.new("RGB", (256, 256), paper)
        for line in range(16):
            ImageDraw.Draw(page).text((4 + line, 16 * line), f"pick up the {line} black bowls, {name}", fill=ink)
        found[f"text, {name}"] = page
    stored = {f"png/{name}": np.frombuffer(_png(picture), np.uint8) for name, picture in found.items()}
    np.savez(openvla_images.DATA, **stored)
    images = openvla_images.images()
    assert len(images) == 50, len(images)
    np.savez(work / "inputs.npz", **images)


def _png(picture: Any) -> bytes:
    stream = io.BytesIO()
    picture.save(stream, "PNG", optimize=True)
    return stream.getvalue()


def _light_scene(count: int) -> list[Any]:
    from npukit.sim import envs

    names = [task.name for task in envs.tasks("light")]
    camera = ("observation.images.image", "observation.images.image2")
    return [envs.first("light", names[i % len(names)], 256, seed=i)[camera[i % 2]] for i in range(count)]


def reference(work: Path) -> None:
    """What TensorFlow makes of them, in the calls of OpenVLA's evaluation."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    import tensorflow as tf

    edge = tf.clip_by_value(tf.sqrt(tf.constant([AREA])), 0.0, 1.0)
    low = (1.0 - edge) / 2.0
    box = tf.stack([low, low, low + edge, low + edge], axis=1)
    results: dict[str, Any] = {"version": np.array(tf.__version__)}
    with np.load(work / "inputs.npz") as data:
        for name in data.files:
            coded = tf.image.encode_jpeg(data[name])
            jpeg = tf.io.decode_image(coded, expand_animations=False, dtype=tf.uint8)
            resized = tf.image.resize(jpeg, (EDGE, EDGE), method="lanczos3", antialias=True)
            resized = tf.cast(tf.clip_by_value(tf.round(resized), 0, 255), tf.uint8)
            values = tf.image.convert_image_dtype(resized, tf.float32)[None]
            cropped = tf.clip_by_value(tf.image.crop_and_resize(values, box, [0], (EDGE, EDGE)), 0, 1)
            cropped = tf.image.convert_image_dtype(cropped, tf.uint8, saturate=True)[0]
            for stage, value in zip(STAGES, (jpeg, resized, cropped), strict=True):
                results[f"{stage}/{name}"] = value.numpy()
    np.savez(work / "reference.npz", **results)


def pack(work: Path) -> None:
    """Hashes of TensorFlow's arrays, and where npukit's differ."""
    from npukit import files
    from tests import openvla_images
    from tests.openvla_images import ours

    with np.load(openvla_images.DATA) as data:
        kept = {name: data[name] for name in data.files if name.startswith("png/")}
    with np.load(work / "reference.npz") as data:
        rows = {}
        for name, image in openvla_images.images().items():
            rows[name] = {"input": _sha256(image)}
            for stage, got in ours(image).items():
                want = data[f"{stage}/{name}"]
                rows[name][stage] = _sha256(want)
                (places,) = np.nonzero(got.ravel() != want.ravel())
                if len(places):
                    kept[f"at/{stage}/{name}"] = places.astype(np.uint32)
                    kept[f"is/{stage}/{name}"] = want.ravel()[places]
                    worst = int(np.abs(got.astype(int) - want).max())
                    sys.stdout.write(f"{name}, {stage}: {len(places)} of {want.size} values differ, by {worst}\n")
        text = {"tensorflow": str(data["version"]), "edge": EDGE, "area": AREA, "images": rows}
    np.savez(openvla_images.DATA, **kept)
    files.atomic_write_bytes(openvla_images.DATA.with_suffix(".json"), json.dumps(text, indent=1).encode() + b"\n")


def _sha256(array: Any) -> str:
    return hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()


if __name__ == "__main__":
    step, *folders = sys.argv[1:]
    {"inputs": inputs, "reference": reference, "pack": pack}[step](*map(Path, folders))

# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""The 50 pictures on which OpenVLA's image path is compared with TensorFlow's: stored ones, and ones made from a seed.

Stored in tests/data/openvla_images.npz (PNG bytes by name): photographs that are in the public domain or under CC0, as
scikit-image 0.26 distributes them, eight pictures of npukit's own light scene, and two of text.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

DATA = Path(__file__).parent / "data" / "openvla_images.npz"
Pixels = Any


def stored() -> dict[str, Pixels]:
    """The pictures of the file, uint8 [H, W, 3]."""
    with np.load(DATA) as data:
        return {
            name.removeprefix("png/"): np.asarray(Image.open(io.BytesIO(data[name].tobytes())).convert("RGB"))
            for name in data.files
            if name.startswith("png/")
        }


def made() -> dict[str, Pixels]:
    """The pictures that numpy makes from a seed, the same everywhere."""
    rng = np.random.default_rng(20261121)
    found: dict[str, Any] = {}
    for name, size in {"256": (256, 256), "224": (224, 224), "480x640": (480, 640), "odd": (255, 319)}.items():
        found[f"noise {name}"] = rng.integers(0, 256, (*size, 3))
    for name, step in {"blocks of 16": 16, "blocks of 8": 8, "blocks of 5": 5, "blocks of 3": 3}.items():
        coarse = rng.integers(0, 256, (256 // step + 1, 256 // step + 1, 3))
        found[name] = coarse.repeat(step, 0).repeat(step, 1)[:256, :256]
    y, x = np.mgrid[:256, :256]
    found["gradient across"] = np.stack([x, x, x], -1)
    found["gradient down"] = np.stack([y, 255 - y, y // 2], -1)
    found["gradient of colours"] = np.stack([x, y, (x + y) // 2], -1)
    found["gradient, slow"] = np.stack([100 + x // 16, 120 + y // 16, 90 + (x + y) // 32], -1)
    radius = np.hypot(x - 128, y - 128)
    found["rings"] = (127.5 + 127.5 * np.cos(radius * radius / 200))[..., None].repeat(3, 2)
    found["rings of colours"] = 127.5 + 127.5 * np.cos(radius[..., None] / np.array([3.0, 4.1, 5.3]))
    for name, colour in {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255), "cyan": (0, 255, 255)}.items():
        disc = np.where((radius < 80)[..., None], np.array(colour), 255 - np.array(colour))
        found[f"saturated, {name}"] = disc
    found["stripes, one pixel"] = ((x % 2) * 255)[..., None] * np.array([1, 1, 1])
    found["stripes, three pixels"] = ((x // 3 + y // 5) % 2 * 255)[..., None] * np.array([1, 0, 1])
    found["checkerboard, two pixels"] = ((x // 2 + y // 2) % 2 * 255)[..., None] * np.array([0, 1, 1])
    found["checkerboard, seven pixels"] = ((x // 7 + y // 7) % 2)[..., None] * np.array([250, 128, 10])
    found["black"], found["white"] = np.zeros((256, 256, 3)), np.full((256, 256, 3), 255)
    found["grey 127"] = np.full((256, 256, 3), 127)
    found["one white pixel"] = np.zeros((256, 256, 3))
    found["one white pixel"][100, 101] = 255
    found["noise on grey"] = 128 + rng.integers(-4, 5, (256, 256, 3))
    found["noise of saturated colours"] = rng.integers(0, 2, (256, 256, 3)) * 255
    found["small, 96x128"] = rng.integers(0, 256, (12, 16, 3)).repeat(8, 0).repeat(8, 1)
    found["smaller than a block"] = rng.integers(0, 256, (5, 7, 3))
    smooth = rng.standard_normal((360, 360, 3)).cumsum(0).cumsum(1)
    low, high = smooth.min((0, 1)), smooth.max((0, 1))
    found["walk 360"] = (smooth - low) / (high - low) * 255
    return {
        name: np.ascontiguousarray(np.clip(np.floor(value), 0, 255).astype(np.uint8)) for name, value in found.items()
    }


def images() -> dict[str, Pixels]:
    """All of them, uint8 [H, W, 3] by name."""
    return {**stored(), **made()}


def ours(image: Pixels) -> dict[str, Pixels]:
    """npukit's arrays after each stage."""
    from npukit.policies.openvla import image as path

    jpeg = path.jpeg_round_trip(image)
    resized = path.lanczos3_resize(jpeg, 224, 224)
    return {"jpeg": jpeg, "resized": resized, "cropped": path.center_crop(resized, 0.9)}

# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""What SmolVLA's own code does to its inputs before the network, as steps."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from npukit.errors import ModelError
from npukit.policies.smolvla.config import EMPTY, STATE


def steps(config: Mapping[str, Any]) -> tuple[dict[str, Any], ...]:
    """The steps for a checkpoint's config.json: images to one size and to -1..1, absent cameras, the state's padding.

    Raises:
        ModelError: the size of images is not one.
    """
    found: list[dict[str, Any]] = []
    size = config.get("resize_imgs_with_padding", [512, 512])
    features = config.get("input_features") or {}
    images = {n: v["shape"] for n, v in features.items() if isinstance(v, dict) and v.get("type") == "VISUAL"}
    if size is not None:
        if not isinstance(size, list | tuple) or len(size) != 2 or not all(isinstance(n, int) and n > 0 for n in size):
            raise ModelError(f"{size!r}: width and height expected", where="config.json: resize_imgs_with_padding")
        found.append({"step": "resize_with_pad", "height": size[1], "width": size[0], "value": 0.0})
        shape = [3, size[1], size[0]]
    else:
        shape = list(next(iter(images.values()), [3, 512, 512]))
    found.append({"step": "scale_images", "mul": 2.0, "add": -1.0})
    empty = config.get("empty_cameras", 0)
    if isinstance(empty, int) and empty > 0:
        names = [name for name in images if name.startswith(EMPTY)]
        names += [name for name in (f"{EMPTY}{i}" for i in range(empty)) if name not in names]
        found.append({"step": "fill_cameras", "names": names, "most": empty, "value": -1.0, "shape": shape})
    found.append({"step": "pad", "feature": STATE, "length": config.get("max_state_dim", 32)})
    return tuple(found)

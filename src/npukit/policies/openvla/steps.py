# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""What is done with an observation before OpenVLA's network, and with its actions after it, as steps.

`config` is that of the package's manifest.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from npukit.policies.openvla import actions, image, prompt
from npukit.policies.package import Feature

CAMERA = "observation.images.image"
EDGE = 256  # pixels of LIBERO's pictures; others are taken too
CROP = 0.9  # share of the picture's area; training cut so much out at random places

# A closed gripper is 0 in the data and an open one 1; LIBERO and robosuite close at +1 and open at -1.
LIBERO_GRIPPER = {"low": 0.0, "high": 1.0, "binarize": True, "invert": True}


def inputs(config: Mapping[str, Any]) -> dict[str, Feature]:
    """What an observation holds: one picture (and the instruction)."""
    return {CAMERA: Feature("VISUAL", (3, EDGE, EDGE))}


def steps(config: Mapping[str, Any]) -> tuple[dict[str, Any], ...]:
    """Pre-processing: the instruction to a padded prompt, the picture to the network's 6 channels.

    Pictures are upright: npukit's environments turn LIBERO's by 180 degrees, as the published evaluation does.
    """
    edge = int(config["image_size"])
    found: list[dict[str, Any]] = [
        {"step": "jpeg_round_trip", **image.JPEG},
        {"step": "lanczos3_resize", "height": edge, "width": edge},
    ]  # fmt: skip
    if config.get("center_crop", True):
        found.append({"step": "center_crop", "area": CROP})
    found += [
        {"step": "batch"},
        {
            "step": "prompt", "template": config.get("prompt") or prompt.TEMPLATE, "lower": True,
            "max_length": config["prompt_length"], "pad_id": config["pad_id"], "bos_id": config["bos_id"],
            "end_id": prompt.END,
        },
        {"step": "stack_normalized", "parts": list(config["image_channels"])},
    ]  # fmt: skip
    return tuple(found)


def action_steps(config: Mapping[str, Any]) -> tuple[dict[str, Any], ...]:
    """Post-processing: actions to the robot's units by the statistics of one of the training's data sets.

    Where all of them are LIBERO's, the gripper's number becomes LIBERO's too; `config["gripper"]` ("libero" or "none")
    says otherwise.

    Raises:
        ModelError: statistics are not whole; all faults are listed.
        UsageError: there are none for `config["unnorm_key"]`.
    """
    size = int(config["action_dim"])
    statistics = actions.checked_statistics(config["statistics"], size)
    key = config.get("unnorm_key")
    key = actions.find_key(statistics, None) if key is None else actions.chosen_key(statistics, key)
    found: list[dict[str, Any]] = [{"step": "unnormalize_by_key", "key": key, "statistics": statistics}]
    rule = config.get("gripper") or ("libero" if all(name.startswith("libero") for name in statistics) else "none")
    if rule == "libero":
        found.append({"step": "gripper", "index": size - 1, **LIBERO_GRIPPER})
    return tuple(found)

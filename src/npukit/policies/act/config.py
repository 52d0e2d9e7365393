# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""What LeRobot's `config.json` of an ACT policy says, as far as inference needs it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from npukit.errors import Fault, ModelError, nearest

STATE = "observation.state"
ACTION = "action"
BACKBONES = {"resnet18": (2, 2, 2, 2), "resnet34": (3, 4, 6, 3)}
"""Blocks of each of the four stages, by name (He et al. 2015, table 1)."""
ACTIVATIONS = ("relu", "gelu")
_STRIDE = 32  # of a ResNet's last feature map


@dataclass(frozen=True)
class ActConfig:
    """An ACT policy's numbers; the defaults are LeRobot's.

    Attributes:
        images: shape [channels, height, width] of each camera's image, in the order of `input_features`.
        state: length of `observation.state`; None where the policy has none.
        env_state: name and length of the environment's state; None where the policy has none.
        action: length of an action.
        temporal_ensemble_coeff: how fast the weight of newer predictions falls; None: no ensemble.
    """

    images: dict[str, tuple[int, int, int]]
    state: int | None
    env_state: tuple[str, int] | None
    action: int
    chunk_size: int = 100
    n_action_steps: int = 100
    vision_backbone: str = "resnet18"
    pre_norm: bool = False
    dim_model: int = 512
    n_heads: int = 8
    dim_feedforward: int = 3200
    feedforward_activation: str = "relu"
    n_encoder_layers: int = 4
    n_decoder_layers: int = 1
    latent_dim: int = 32
    temporal_ensemble_coeff: float | None = None

    @property
    def feature_maps(self) -> dict[str, tuple[int, int]]:
        """Height and width of the backbone's last feature map, by camera."""
        return {name: (-(-h // _STRIDE), -(-w // _STRIDE)) for name, (_, h, w) in self.images.items()}

    @property
    def tokens(self) -> int:
        """Length of the encoder's sequence: the latent, the states that there are, every pixel of the feature maps."""
        extra = (self.state is not None) + (self.env_state is not None)
        return 1 + extra + sum(h * w for h, w in self.feature_maps.values())


_POSITIVE = (
    "chunk_size",
    "n_action_steps",
    "dim_model",
    "n_heads",
    "dim_feedforward",
    "n_encoder_layers",
    "n_decoder_layers",
    "latent_dim",
)


def read_config(values: Mapping[str, Any], where: str = "config.json") -> ActConfig:
    """The config of an ACT policy.

    Args:
        values: the JSON object; fields that inference does not need are not looked at.
        where: name of the file, for messages.

    Raises:
        ModelError: lists every field that is missing, wrong, or asks for what npukit does not do.
    """
    faults: list[Fault] = []

    def bad(field: str, what: str, hint: str = "") -> None:
        faults.append(Fault(what, field, hint))

    images, state, env_state = _inputs(values.get("input_features"), bad)
    action = _length(values.get("output_features"), ACTION, "output_features", bad)
    numbers: dict[str, Any] = {}
    for field in _POSITIVE:
        value = values.get(field, getattr(ActConfig, field))
        if not _is_int(value) or value < 1:
            bad(field, f"expected a whole number above 0, got {value!r}")
            value = getattr(ActConfig, field)
        numbers[field] = value
    backbone = values.get("vision_backbone", ActConfig.vision_backbone)
    if images and backbone not in BACKBONES:
        bad("vision_backbone", f"backbone {backbone!r} is not supported", f"supported: {', '.join(BACKBONES)}")
    if values.get("replace_final_stride_with_dilation"):
        what = "a dilated last stage is not supported (no ResNet of basic blocks has one in torchvision either)"
        bad("replace_final_stride_with_dilation", what)
    activation = values.get("feedforward_activation", ActConfig.feedforward_activation)
    if activation not in ACTIVATIONS:
        bad("feedforward_activation", f"{activation!r} is not supported", f"supported: {', '.join(ACTIVATIONS)}")
    if values.get("n_obs_steps", 1) != 1:
        bad("n_obs_steps", f"ACT looks at one observation, got {values['n_obs_steps']!r}")
    pre_norm = values.get("pre_norm", False)
    if not isinstance(pre_norm, bool):
        bad("pre_norm", f"expected true or false, got {pre_norm!r}")
    coefficient = values.get("temporal_ensemble_coeff")
    if coefficient is not None and not (isinstance(coefficient, (int, float)) and abs(coefficient) < 1e3):
        bad("temporal_ensemble_coeff", f"expected a number or null, got {coefficient!r}")
        coefficient = None
    if coefficient is not None and numbers["n_action_steps"] != 1:
        bad("n_action_steps", "must be 1 with temporal_ensemble_coeff: an ensemble needs a prediction at every step")
    if numbers["n_action_steps"] > numbers["chunk_size"]:
        bad("n_action_steps", f"{numbers['n_action_steps']} is more than chunk_size {numbers['chunk_size']}")
    if numbers["dim_model"] % numbers["n_heads"]:
        bad("n_heads", f"{numbers['n_heads']} heads do not divide dim_model {numbers['dim_model']}")
    if images and numbers["dim_model"] % 4:
        bad("dim_model", f"{numbers['dim_model']} is no multiple of 4, as the positions of images need")
    if not images and env_state is None and not faults:
        bad("input_features", "neither an image nor an environment state: there is nothing to act upon")
    if faults:
        raise ModelError("this ACT policy cannot be exported", where=where, faults=faults)
    return ActConfig(
        images=images,
        state=state,
        env_state=env_state,
        action=action,
        vision_backbone=backbone,
        pre_norm=pre_norm,
        feedforward_activation=activation,
        temporal_ensemble_coeff=coefficient,
        **numbers,
    )


def _inputs(features: Any, bad: Any) -> tuple[dict[str, tuple[int, int, int]], int | None, tuple[str, int] | None]:
    images: dict[str, tuple[int, int, int]] = {}
    state: int | None = None
    env_state: tuple[str, int] | None = None
    if not isinstance(features, dict):
        bad("input_features", f"expected an object of features, got {type(features).__name__}")
        return images, state, env_state
    for name, feature in features.items():
        kind = feature.get("type") if isinstance(feature, dict) else None
        where = f"input_features.{name}"
        if kind == "VISUAL":
            shape = _shape(feature, where, bad)
            if shape is None:
                continue
            if len(shape) != 3 or shape[0] != 3:
                bad(where, f"an image has shape [3, height, width], got {list(shape)}")
                continue
            images[name] = (shape[0], shape[1], shape[2])
        elif kind == "STATE" and name == STATE:
            state = _length(features, name, "input_features", bad)
        elif kind == "STATE":  # LeRobot's ACT ignores it; so does its network
            continue
        elif kind == "ENV":
            if env_state is not None:
                bad(where, f"a second environment state beside {env_state[0]}")
                continue
            env_state = (name, _length(features, name, "input_features", bad))
        else:
            bad(where, f"feature of type {kind!r}", nearest(str(kind), ("VISUAL", "STATE", "ENV")))
    return images, state, env_state


def _length(features: Any, name: str, group: str, bad: Any) -> int:
    """Length of a vector feature; 1 where it is at fault."""
    feature = features.get(name) if isinstance(features, dict) else None
    where = f"{group}.{name}"
    if not isinstance(feature, dict):
        bad(where, "is missing")
        return 1
    shape = _shape(feature, where, bad)
    if shape is None:
        return 1
    if len(shape) != 1:
        bad(where, f"expected a vector, got shape {list(shape)}")
        return 1
    return shape[0]


def _shape(feature: Mapping[str, Any], where: str, bad: Any) -> tuple[int, ...] | None:
    shape = feature.get("shape")
    if not isinstance(shape, list) or not shape or not all(_is_int(d) and d > 0 for d in shape):
        bad(where, f"expected a shape of whole numbers above 0, got {shape!r}")
        return None
    return tuple(shape)


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)

# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""SmolVLA's numbers: from LeRobot's config.json, the vision-language model's own config, and the weights' shapes.

The checkpoint does not hold the config of its vision-language model. Most of it can be read off the shapes of the
weights; what cannot (sizes of heads, epsilons) comes from `vlm_config.json` beside the weights, in the form of that
model's own config.json, or is known for the model that `vlm_model_name` names.
"""

from __future__ import annotations

import json
import logging
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from npukit.errors import Fault, ModelError
from npukit.files import os_errors

log = logging.getLogger(__name__)

VLM_CONFIG = "vlm_config.json"
STATE = "observation.state"
IMAGES = "observation.images."
EMPTY = f"{IMAGES}empty_camera_"

ROPE_BASE = 10_000.0
"""Of the rotary embedding, whatever the language model's own config says (LeRobot's `apply_rope`)."""

Shapes = Mapping[str, tuple[int, ...]]

# Key prefixes of the weights (LeRobot 0.4, "model." left out)
VISION = "vlm_with_expert.vlm.model.vision_model."
CONNECTOR = "vlm_with_expert.vlm.model.connector."
TEXT = "vlm_with_expert.vlm.model.text_model."
EXPERT = "vlm_with_expert.lm_expert."


@dataclass(frozen=True)
class Vision:
    """The image encoder (SigLIP): `grid` is the side of its table of positions, in patches."""

    width: int
    layers: int
    heads: int
    hidden: int
    patch: int
    grid: int
    epsilon: float = 1e-6


@dataclass(frozen=True)
class Text:
    """The language model (Llama): `layers` are those that are kept."""

    width: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    hidden: int
    vocab: int
    epsilon: float = 1e-5

    @property
    def group(self) -> int:
        """Query heads to one head of keys and values."""
        return self.heads // self.kv_heads


@dataclass(frozen=True)
class Layer:
    """One layer: the index of the expert's layer that goes with it (None: there is none), and what that attends to.

    `cross`: the expert's queries see the prefix only, through keys and values projected once more; else they see the
    prefix's own keys and values, and the suffix.
    """

    expert: int | None
    cross: bool


@dataclass(frozen=True)
class SmolVLAConfig:
    """All that shapes the network; see the module.

    Attributes:
        cameras: image features in the model's order, those of empty cameras last.
        empty: how many of the cameras may be missing (their tokens are masked).
        state: length of the state vector.
        action: length of an action.
        max_state: length that states are padded to with zeros.
        max_action: length of actions in the network.
        chunk_size: actions of one prediction.
        n_action_steps: how many of them are used.
        num_steps: Euler steps.
        tokens: length of the tokenized instruction, padded.
        prefix_length: least length of the prefix.
        image: side of the images that the vision encoder takes, pixels.
        vision: the image encoder.
        shuffle: factor of the pixel shuffle: `shuffle ** 2` patches make a token.
        text: the language model.
        expert_width: width of the action expert.
        expert_hidden: width of its MLPs.
        layers: what each layer of the language model goes with.
        min_period: shortest period of the time embedding.
        max_period: longest.
        image_start: tokens put before each image.
        image_end: tokens put after each image.
        notes: what one may want to know.
    """

    cameras: tuple[str, ...]
    empty: int
    state: int
    action: int
    max_state: int
    max_action: int
    chunk_size: int
    n_action_steps: int
    num_steps: int
    tokens: int
    prefix_length: int
    image: int
    vision: Vision
    shuffle: int
    text: Text
    expert_width: int
    expert_hidden: int
    layers: tuple[Layer, ...]
    min_period: float
    max_period: float
    image_start: tuple[int, ...] = ()
    image_end: tuple[int, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def patches(self) -> int:
        """Patches along a side of an image."""
        return self.image // self.vision.patch

    @property
    def image_tokens(self) -> int:
        """Tokens that the vision encoder gives for an image."""
        return (self.patches // self.shuffle) ** 2

    @property
    def camera_tokens(self) -> int:
        """Tokens of a camera in the prefix, special ones included."""
        return len(self.image_start) + self.image_tokens + len(self.image_end)

    @property
    def prefix(self) -> int:
        """Length of the prefix: cameras, instruction, state, padding."""
        return max(len(self.cameras) * self.camera_tokens + self.tokens + 1, self.prefix_length)

    @property
    def cached(self) -> tuple[int, ...]:
        """Layers whose keys and values the action head reads, in order."""
        return tuple(i for i, layer in enumerate(self.layers) if layer.expert is not None)

    @property
    def expert_layers(self) -> int:
        return len(self.cached)


def position_ids(patches: int, grid: int) -> npt.NDArray[np.int64]:
    """Rows of the position table [patches * patches] for an image of `patches` by `patches`; in order, if all are used.

    The reference finds them by bucketing floating-point coordinates, which some versions get wrong in float32 (rows and
    columns 0, 0, 1, 2, ...); in whole numbers nothing can go wrong.
    """
    side = np.arange(patches, dtype=np.int64) * grid // patches
    return (side[:, None] * grid + side[None, :]).reshape(-1)


def time_embedding(config: SmolVLAConfig, time: float) -> npt.NDArray[np.float32]:
    """The embedding float32 [1, expert_width] of a time in [0, 1]: sines, then cosines, computed in float64.

    At time 1 the angles reach 2 pi / min_period: half precision has no digits left there.
    """
    return time_embeddings([time], config.expert_width, config.min_period, config.max_period)


def time_embeddings(times: list[float], width: int, min_period: float, max_period: float) -> npt.NDArray[np.float32]:
    """`time_embedding` of several times: float32 [len(times), width]."""
    fraction = np.linspace(0.0, 1.0, width // 2)
    factors = 1.0 / (min_period * (max_period / min_period) ** fraction) * 2 * math.pi
    angles = factors[None, :] * np.asarray(times, np.float32).astype(np.float64)[:, None]
    return np.concatenate([np.sin(angles), np.cos(angles)], axis=1).astype(np.float32)


def step_times(num_steps: int) -> list[float]:
    """The times of the Euler steps, from 1 down: x += -1 / num_steps * velocity(x, time)."""
    return [1.0 + step * (-1.0 / num_steps) for step in range(num_steps)]


# ---------------------------------------------------------------- reading

# Of training, or read elsewhere (normalization); they do not shape the network.
_OTHER = (
    "type",
    "device",
    "use_amp",
    "push_to_hub",
    "repo_id",
    "private",
    "tags",
    "license",
    "use_peft",
    "pretrained_path",
    "normalization_mapping",
    "freeze_vision_encoder",
    "train_expert_only",
    "train_state_proj",
    "load_vlm_weights",
    "compile_model",
    "compile_mode",
    "optimizer_lr",
    "optimizer_betas",
    "optimizer_eps",
    "optimizer_weight_decay",
    "optimizer_grad_clip_norm",
    "scheduler_warmup_steps",
    "scheduler_decay_steps",
    "scheduler_decay_lr",
    "gradient_checkpointing",
)
_KNOWN_VLMS = {
    r"SmolVLM2?-500M(-Video)?-(Instruct|Base)": {
        "text_config": {
            "hidden_size": 960, "intermediate_size": 2560, "num_hidden_layers": 32, "num_attention_heads": 15,
            "num_key_value_heads": 5, "head_dim": 64, "rms_norm_eps": 1e-5, "vocab_size": 49280,
        },
        "vision_config": {
            "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12,
            "image_size": 512, "patch_size": 16, "layer_norm_eps": 1e-6,
        },
        "scale_factor": 4, "fake_image_token_id": 49189, "global_image_token_id": 49152,
    },
}  # fmt: skip
# Of the language model and the image encoder: the one value that this network has.
_ONLY = {
    "text_config": {"hidden_act": ("silu",), "attention_bias": (False,), "mlp_bias": (False,)},
    "vision_config": {"hidden_act": ("gelu_pytorch_tanh",), "num_channels": (3,)},
}


class _Fields:
    """Values taken from config.json by name, what is wrong collected with field and value."""

    def __init__(self, values: Mapping[str, Any]) -> None:
        self.values, self.faults = values, list[Fault]()
        self.seen: set[str] = set()

    def fault(self, name: str, why: str, hint: str = "") -> None:
        shown = json.dumps(self.values.get(name), default=str)
        self.faults.append(Fault(f"{shown}: {why}", name, hint))

    def get(self, name: str, default: Any, check: Callable[[Any], bool], why: str) -> Any:
        self.seen.add(name)
        value = self.values.get(name, default)
        if not check(value):
            self.fault(name, why)
            return default
        return value

    def count(self, name: str, default: int, least: int = 1, most: int = 1 << 12) -> int:
        def check(value: Any) -> bool:
            return isinstance(value, int) and not isinstance(value, bool) and least <= value <= most

        found: int = self.get(name, default, check, f"a whole number from {least} to {most} is expected")
        return found

    def number(self, name: str, default: float) -> float:
        def check(value: Any) -> bool:
            return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < 1e9

        return float(self.get(name, default, check, "a positive number is expected"))

    def off(self, name: str, why: str, *, wanted: bool = False) -> None:
        self.get(name, wanted, lambda value: value is wanted or (value is None and not wanted), why)


def read_config(values: Mapping[str, Any], shapes: Shapes, vlm: Mapping[str, Any] | None = None) -> SmolVLAConfig:
    """The network that a checkpoint describes.

    Args:
        values: its config.json.
        shapes: shape of each weight by its key, "model." left out.
        vlm: what its vlm_config.json holds; None where there is none.

    Raises:
        ModelError: fields that cannot be honoured, each with its value.
    """
    f = _Fields(values)
    get = f.count
    numbers: dict[str, Any] = {
        "chunk_size": get("chunk_size", 50), "n_action_steps": get("n_action_steps", 50),
        "num_steps": get("num_steps", 10), "max_state": get("max_state_dim", 32),
        "max_action": get("max_action_dim", 32), "tokens": get("tokenizer_max_length", 48),
        "prefix_length": max(get("prefix_length", -1, -1, 1 << 14), 0),
        "min_period": f.number("min_period", 4e-3), "max_period": f.number("max_period", 4.0),
    }  # fmt: skip
    if numbers["n_action_steps"] > numbers["chunk_size"]:
        f.fault("n_action_steps", f"a chunk has {numbers['chunk_size']} actions")
    if get("n_obs_steps", 1) != 1:
        f.fault("n_obs_steps", "the network sees one observation")
    f.get("pad_language_to", "longest", lambda v: v in ("longest", "max_length"), "'longest' or 'max_length'")
    f.off("adapt_to_pi_aloha", "the conversion of Aloha's joints is not supported")
    f.off("use_delta_joint_actions_aloha", "LeRobot does not support it either")
    f.off("use_cache", "without its cache the network cannot be run", wanted=True)
    f.get("rtc_config", None, lambda v: not isinstance(v, dict) or v.get("enabled") is not True,
          "real-time chunking needs gradients through the network, which an exported one does not have")  # fmt: skip
    cameras, empty, state, action = _features(f, numbers["max_state"], numbers["max_action"])
    facts = _Vlm(f, shapes, vlm)
    vision, shuffle = facts.vision(), facts.shuffle()
    text = facts.text(get("num_vlm_layers", 16, -1))
    image = _image(f, vision, shuffle, _of(values.get("input_features"), "VISUAL"))
    width, hidden = facts.expert(text, f.number("expert_width_multiplier", 0.75))
    special = f.get("add_image_special_tokens", False, lambda v: isinstance(v, bool), "true or false is expected")
    start, end = facts.special() if special else ((), ())
    layers = _layers(f, text.layers)
    unknown = sorted(set(values) - f.seen - set(_OTHER))
    notes = tuple(f"config.json: the field {name!r} is not known and not looked at" for name in unknown)
    for note in notes:
        log.warning("%s", note)
    if f.faults:
        raise ModelError("the policy asks for what cannot be honoured", where="config.json", faults=f.faults)
    return SmolVLAConfig(
        cameras=cameras, empty=empty, state=state, action=action, image=image, vision=vision, shuffle=shuffle,
        text=text, expert_width=width, expert_hidden=hidden, layers=layers, image_start=start, image_end=end,
        notes=notes, **numbers,
    )  # fmt: skip


def read_vlm_config(checkpoint: Path) -> dict[str, Any] | None:
    """The vlm_config.json of a checkpoint's folder; None where there is none."""
    path = checkpoint / VLM_CONFIG
    if not path.is_file():
        return None
    try:
        with os_errors(path, "read"):
            found = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ModelError(f"it is not JSON: {error}", where=str(path)) from None
    if not isinstance(found, dict):
        raise ModelError("it holds no object", where=str(path))
    return found


def _features(f: _Fields, max_state: int, max_action: int) -> tuple[tuple[str, ...], int, int, int]:
    empty = f.count("empty_cameras", 0, 0, 64)
    given = {name: f.get(name, {}, lambda v: isinstance(v, dict), "an object is expected")
             for name in ("input_features", "output_features")}  # fmt: skip

    cameras = list(_of(given["input_features"], "VISUAL"))
    cameras += [name for name in (f"{EMPTY}{i}" for i in range(empty)) if name not in cameras]
    state = _of(given["input_features"], "STATE").get(STATE)
    action = _of(given["output_features"], "ACTION").get("action")
    if not cameras or not state or not action:
        f.faults.append(Fault("an image, observation.state and action are needed", "input_features, output_features"))
        return ("",), 0, 1, 1
    for name, length, most in (("max_state_dim", state[-1], max_state), ("max_action_dim", action[-1], max_action)):
        if length > most:
            f.fault(name, f"the feature has {length} numbers")
    return tuple(cameras), min(empty, len(cameras)), int(state[-1]), int(action[-1])


def _of(features: Any, kind: str) -> dict[str, list[int]]:
    """Shapes of the features of one type; what is none is left out."""
    rows = features if isinstance(features, dict) else {}
    found = {name: row for name, row in rows.items() if isinstance(row, dict) and row.get("type") == kind}
    return {name: row["shape"] for name, row in found.items() if _is_shape(row.get("shape"))}


def _is_shape(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(type(n) is int and 0 < n <= 1 << 16 for n in value)


def _image(f: _Fields, vision: Vision, shuffle: int, images: Mapping[str, list[int]]) -> int:
    """Side of the images in pixels."""
    name = "resize_imgs_with_padding"
    f.seen.add(name)
    sizes: Any = f.values.get(name, [512, 512])
    if sizes is None:
        found = {tuple(shape[1:]) for shape in images.values()}
        sizes = list(found.pop()) if len(found) == 1 else None
    if not _is_shape(sizes) or len(sizes) != 2 or sizes[0] != sizes[1] or sizes[0] > 1 << 12:
        f.fault(name, "images of one square size are needed, of at most 4096 pixels")
        return vision.patch * shuffle
    unit = vision.patch * shuffle
    if sizes[0] % unit:
        f.fault(name, f"a side is a multiple of {unit} pixels (patches of {vision.patch}, {shuffle} of them a token)")
    return int(sizes[0])


def _layers(f: _Fields, count: int) -> tuple[Layer, ...]:
    mode = f.get("attention_mode", "cross_attn", lambda v: v in ("cross_attn", "self_attn"),
                 "'cross_attn' or 'self_attn'")  # fmt: skip
    every = f.count("self_attn_every_n_layers", 2, -1)
    experts = f.count("num_expert_layers", -1, -1)
    experts = experts if experts > 0 else count
    if count % experts:
        f.fault("num_expert_layers", f"the language model's {count} layers are not a multiple of it")
        return ()
    step = count // experts

    def crosses(i: int) -> bool:
        return bool(mode == "cross_attn" and not (every > 0 and i % every == 0))

    layers = tuple(Layer(i // step if i % step == 0 else None, crosses(i)) for i in range(count))
    # LeRobot builds the expert's layers counting among them, and runs them counting all layers: both must agree.
    wrong = [i for i, layer in enumerate(layers)
             if (layer.expert is None and not layer.cross)
             or (layer.expert is not None and crosses(layer.expert) != layer.cross)]  # fmt: skip
    if wrong:
        f.fault("num_expert_layers", f"layer {wrong[0]} would need an expert's layer of another kind (attention_mode "
                f"{mode!r}, self_attn_every_n_layers {every})")  # fmt: skip
    return layers


class _Vlm:
    """The vision-language model's numbers: from the weights' shapes, checked against what its config says."""

    def __init__(self, f: _Fields, shapes: Shapes, given: Mapping[str, Any] | None) -> None:
        name = str(f.get("vlm_model_name", "HuggingFaceTB/SmolVLM2-500M-Video-Instruct",
                         lambda v: isinstance(v, str), "a name is expected"))  # fmt: skip
        self.f, self.shapes = f, shapes
        self.source = VLM_CONFIG if given is not None else f"config.json: vlm_model_name {name!r}"
        known = (row for pattern, row in _KNOWN_VLMS.items() if re.fullmatch(pattern, re.split(r"[/\\]", name)[-1]))
        self.values: Mapping[str, Any] = given if given is not None else next(known, {})
        if not self.values:
            f.fault("vlm_model_name", "this vision-language model is not known",
                    f"put its config.json beside the weights as {VLM_CONFIG}")  # fmt: skip
        for part, fields in _ONLY.items():
            for field, allowed in fields.items():
                value = self.part(part).get(field, allowed[0])
                if value not in allowed:
                    f.faults.append(
                        Fault(f"{value!r}: only {allowed[0]!r} is supported", f"{VLM_CONFIG}: {part}.{field}")
                    )

    def part(self, name: str) -> Mapping[str, Any]:
        found = self.values.get(name, {})
        return found if isinstance(found, dict) else {}

    def shape(self, key: str, axis: int) -> int | None:
        found = self.shapes.get(key)
        return found[axis] if found is not None and -len(found) <= axis < len(found) else None

    def number(self, part: str, field: str, seen: int | None = None, default: int | None = None) -> int:
        """A size: as the weights have it where they say it, which must be what the config says if that says it."""
        values = self.part(part) if part else self.values
        said = values.get(field)
        where = f"{self.source}: {part}.{field}" if part else f"{self.source}: {field}"
        if said is not None and (not isinstance(said, int) or isinstance(said, bool) or said < 1):
            self.f.faults.append(Fault(f"{said!r}: a positive whole number is expected", where))
            said = None
        if seen is not None and seen < 1:
            self.f.faults.append(Fault(f"the weights have {seen}: a positive number is expected", where))
            seen = None
        if said is not None and seen is not None and said != seen:
            hint = (
                ""
                if self.source == VLM_CONFIG
                else f"put the model's own config.json beside the weights as {VLM_CONFIG}"
            )
            self.f.faults.append(Fault(f"{said}: the weights have {seen}", where, hint))
        found = seen if seen is not None else said if said is not None else default
        if found is None:
            if self.values:
                self.f.faults.append(Fault("missing, and the weights do not say it", where))
            return 1
        return int(found)

    def epsilon(self, part: str, field: str, default: float) -> float:
        value = self.part(part).get(field, default)
        if not isinstance(value, float) or not 0 < value < 1:
            self.f.faults.append(Fault(f"{value!r}: a small number is expected", f"{self.source}: {part}.{field}"))
            return default
        return value

    def count(self, prefix: str) -> int | None:
        """How many layers the weights have; whether they are numbered without gaps shows when weights are checked."""
        found = (re.match(re.escape(prefix) + r"(\d+)\.", key) for key in self.shapes)
        return len({match[1] for match in found if match}) or None

    def vision(self) -> Vision:
        part, layer = "vision_config", f"{VISION}encoder.layers.0."
        width = self.number(part, "hidden_size", self.shape(f"{VISION}embeddings.patch_embedding.weight", 0))
        patch = self.number(part, "patch_size", self.shape(f"{VISION}embeddings.patch_embedding.weight", -1))
        positions = self.shape(f"{VISION}embeddings.position_embedding.weight", 0)
        side = None if positions is None else math.isqrt(positions)
        size = self.number(part, "image_size", None if side is None else side * patch)
        heads = self.number(part, "num_attention_heads", default=max(width // 64, 1))
        if width % heads or (positions is not None and side is not None and side * side != positions):
            what = f"{heads} heads, {positions} positions of {width} numbers: not a square grid, or not whole heads"
            self.f.faults.append(Fault(what, f"{self.source}: {part}"))
        return Vision(
            width, self.number(part, "num_hidden_layers", self.count(f"{VISION}encoder.layers.")), heads,
            self.number(part, "intermediate_size", self.shape(f"{layer}mlp.fc1.weight", 0)), patch, size // patch,
            self.epsilon(part, "layer_norm_eps", 1e-6),
        )  # fmt: skip

    def shuffle(self) -> int:
        fed = self.shape(f"{CONNECTOR}modality_projection.proj.weight", 1)
        width = self.shape(f"{VISION}embeddings.patch_embedding.weight", 0)
        return self.number("", "scale_factor", math.isqrt(fed // width) if fed and width else None)

    def text(self, kept: int) -> Text:
        part, attention = "text_config", f"{TEXT}layers.0.self_attn."
        width = self.number(part, "hidden_size", self.shape(f"{TEXT}embed_tokens.weight", 1))
        said = self.part(part).get("num_attention_heads")
        head = self.number(part, "head_dim", default=width // said if isinstance(said, int) and said > 0 else 64)
        queries, keys = self.shape(f"{attention}q_proj.weight", 0), self.shape(f"{attention}k_proj.weight", 0)
        heads = self.number(part, "num_attention_heads", None if queries is None else max(queries // head, 1))
        kv_heads = self.number(part, "num_key_value_heads", None if keys is None else max(keys // head, 1))
        if head % 2 or heads % kv_heads or any(rows is not None and rows % head for rows in (queries, keys)):
            what = f"{heads} query heads, {kv_heads} key heads of {head} numbers do not go together"
            self.f.faults.append(Fault(what, f"{self.source}: {part}"))
        held = self.count(f"{TEXT}layers.")
        layers = kept if kept > 0 else held or self.number(part, "num_hidden_layers")
        if held is not None and kept > held:
            self.f.fault("num_vlm_layers", f"the weights have {held} layers")
            layers = held
        return Text(
            width, layers, heads, kv_heads, head,
            self.number(part, "intermediate_size", self.shape(f"{TEXT}layers.0.mlp.gate_proj.weight", 0)),
            self.number(part, "vocab_size", self.shape(f"{TEXT}embed_tokens.weight", 0)),
            self.epsilon(part, "rms_norm_eps", 1e-5),
        )  # fmt: skip

    def expert(self, text: Text, multiplier: float) -> tuple[int, int]:
        width = int(text.width * multiplier)
        seen = self.shape("action_in_proj.weight", 0)
        if seen is not None and seen != width:
            self.f.fault("expert_width_multiplier", f"the expert's width would be {width}, the weights have {seen}")
        if width < 2 or width % 2:
            self.f.fault("expert_width_multiplier", f"the expert's width would be {width}, an even number is needed")
        # The Llama family's rule for the width of an MLP
        rule = 256 * -(-int(4 * int(2 * width / 3)) // 256)
        return width, self.shape(f"{EXPERT}layers.0.mlp.gate_proj.weight", 0) or rule

    def special(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        fake = self.number("", "fake_image_token_id")
        return (fake, self.number("", "global_image_token_id")), (fake,)

# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""The numbers of an OpenVLA network, from config.json and the shapes of its weights; no torch.

The config names the vision towers and the language model; where it gives no sizes, those of the towers are the
weights' own, and those of the language model are the defaults of Llama's config class.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from npukit.errors import Fault, ModelError, nearest

Shapes = Mapping[str, tuple[int, ...]]
Array = npt.NDArray[Any]

TOWERS = {"vision_backbone.featurizer": 0, "vision_backbone.fused_featurizer": 1}
LANGUAGE = "language_model.model"
HEAD = "language_model.lm_head.weight"
EMBEDDING = f"{LANGUAGE}.embed_tokens.weight"

VISION_EPSILON = 1e-6  # of every layer norm of the towers
# timm's id of a tower -> attention heads, which no tensor tells; "[.tag]" of pretrained weights is left out.
_HEADS = {
    "vit_large_patch14_reg4_dinov2": 16,
    "vit_large_patch14_dinov2": 16,
    "vit_so400m_patch14_siglip_224": 16,
    "vit_tiny_patch16_224": 3,
}
_BACKBONES = {
    "dinosiglip-vit-so-224px": ("vit_large_patch14_reg4_dinov2", "vit_so400m_patch14_siglip_224"),
    "siglip-vit-so400m": ("vit_so400m_patch14_siglip_224",),
    "dinov2-vit-l": ("vit_large_patch14_reg4_dinov2",),
}
_LLAMA: dict[str, Any] = {
    "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32, "num_attention_heads": 32,
    "vocab_size": 32000, "rms_norm_eps": 1e-6, "rope_theta": 10000.0, "max_position_embeddings": 2048,
}  # fmt: skip
# What a text_config may say besides, and the only value that the network here computes.
_FIXED: dict[str, tuple[Any, ...]] = {
    "hidden_act": ("silu",), "rope_scaling": (None,), "attention_bias": (False,), "mlp_bias": (False,),
    "tie_word_embeddings": (False,), "pretraining_tp": (1,), "model_type": ("llama",),
}  # fmt: skip
# Weights that a checkpoint has and that predicting actions does not need.
_SPARE = re.compile(
    r"vision_backbone\.(fused_)?featurizer\.(norm|fc_norm|attn_pool|head)\..*|.*\.rotary_emb\.inv_freq"
    r"|vision_backbone\.(fused_)?featurizer\.mask_token"
)


@dataclass(frozen=True)
class Tower:
    """A vision transformer, of which the second-to-last block's output is taken.

    Attributes:
        prefix: its weights' names begin so.
        width: channels of a token.
        hidden: channels inside the MLP.
        heads: attention heads.
        blocks: that are computed; the checkpoint has one more.
        patch: side of a patch in pixels.
        grid: patches along a side.
        extra: tokens before the patches (class and registers), dropped at the end.
        scaled: whether each branch is multiplied by a learned vector ("LayerScale").
    """

    prefix: str
    width: int
    hidden: int
    heads: int
    blocks: int
    patch: int
    grid: int
    extra: int
    scaled: bool


@dataclass(frozen=True)
class Text:
    """The language model.

    Attributes:
        width: channels of a token.
        hidden: channels inside the MLP.
        layers: how many.
        heads: attention heads; as many hold keys.
        vocab: rows of the table and of the head.
        epsilon: of the norms.
        theta: base of the rotary embedding.
        positions: the longest sequence it was made for.
    """

    width: int = 4096
    hidden: int = 11008
    layers: int = 32
    heads: int = 32
    vocab: int = 32064
    epsilon: float = 1e-6
    theta: float = 10000.0
    positions: int = 2048

    @property
    def head_dim(self) -> int:
        """Channels of a head."""
        return self.width // self.heads


@dataclass(frozen=True)
class OpenVLAConfig:
    """Everything that a checkpoint says about its network and about the tokens of its actions.

    Attributes:
        towers: one or two, in the order of the pixels' channels.
        text: the language model.
        image: side of the images in pixels.
        action: numbers of an action, a token each.
        bins: `n_action_bins`.
        vocabulary: tokens of the tokenizer; actions are its last ones (`text.vocab` is rounded up from it).
        pad_id: of the prompt's padding.
        prompt: tokens that a prompt may have, its first and the one before the action included.
        notes: what one may want to know.
    """

    towers: tuple[Tower, ...]
    text: Text
    image: int
    action: int
    bins: int = 256
    vocabulary: int = 32000
    pad_id: int = 32000
    prompt: int = 32
    notes: tuple[str, ...] = field(default=())

    @property
    def image_tokens(self) -> int:
        """Tokens of the image."""
        return self.towers[0].grid ** 2

    @property
    def features(self) -> int:
        """Channels of a patch as the projector takes it."""
        return sum(tower.width for tower in self.towers)

    @property
    def prefill(self) -> int:
        """Tokens that are computed at once: the image's and the prompt's."""
        return self.image_tokens + self.prompt

    @property
    def cache(self) -> int:
        """Rows of the cache: room for every action token but the last, in whole blocks of 16."""
        return self.prefill + 16 * -(-(self.action - 1) // 16)

    @property
    def row(self) -> int:
        """Numbers that the cache holds of a token: keys and values of all layers."""
        return 2 * self.text.layers * self.text.width


def read_config(config: Mapping[str, Any], shapes: Shapes, action: int, prompt: int = 32) -> OpenVLAConfig:
    """The network's numbers.

    Args:
        config: config.json.
        shapes: of the weights, by name.
        action: numbers of an action.
        prompt: tokens that a prompt may have.

    Raises:
        ModelError: the config asks for what is not computed here, or the weights do not say what it leaves open; all
            is listed.
    """
    faults: list[Fault] = []
    text, pad = _text(config.get("text_config"), faults)
    towers = _towers(config, shapes, faults)
    sides = {tower.patch * tower.grid for tower in towers}
    sizes = config.get("image_sizes", [224, 224])
    asked = {sizes} if isinstance(sizes, int) else set(sizes if isinstance(sizes, list) else ())
    if towers and (len(sides) != 1 or (asked and asked != sides)):
        found = " and ".join(map(str, sorted(sides)))
        faults.append(Fault(f"images of {sizes!r}, the towers' weights are for {found} pixels", "image_sizes"))
    if len({tower.grid for tower in towers}) > 1:
        faults.append(Fault("the towers cut an image into different numbers of patches", "timm_model_ids"))
    multiple, bins = config.get("pad_to_multiple_of", 64), config.get("n_action_bins", 256)
    for name, value in (("pad_to_multiple_of", multiple), ("n_action_bins", bins)):
        if not isinstance(value, int) or isinstance(value, bool) or not 0 < value < text.vocab:
            faults.append(Fault(f"{value!r}, a number below {text.vocab} expected", name))
    arch = str(config.get("arch_specifier", "no-align+fused-gelu-mlp"))
    if not arch.endswith("gelu-mlp"):
        faults.append(Fault(f"{arch!r}, a projector of linear layers and GELU is supported", "arch_specifier"))
    if config.get("image_resize_strategy", "resize-naive") != "resize-naive":
        faults.append(Fault(f"{config['image_resize_strategy']!r}, resize-naive is supported", "image_resize_strategy"))
    if not 4 <= prompt <= 512:
        faults.append(Fault(f"a prompt of {prompt} tokens, 4 to 512 expected", "prompt_length"))
    if not 1 <= action <= 64:
        faults.append(Fault(f"an action of {action} numbers, 1 to 64 expected", "norm_stats"))
    if faults:
        raise ModelError("the config cannot be honoured", where="config.json", faults=faults)
    made = OpenVLAConfig(
        towers, text, sides.pop(), action, bins, text.vocab - multiple, pad if pad is not None else 32000, prompt
    )
    if made.cache > text.positions:
        raise ModelError(f"{made.cache} tokens, the language model was made for {text.positions}",
                         where="config.json: text_config.max_position_embeddings")  # fmt: skip
    return made


def _text(given: Any, faults: list[Fault]) -> tuple[Text, int | None]:
    if not isinstance(given, dict):
        faults.append(Fault("missing, or not an object", "text_config"))
        return Text(), None
    values = {**_LLAMA, **{name: given[name] for name in _LLAMA if given.get(name) is not None}}
    for name, value in values.items():
        whole = isinstance(_LLAMA[name], int)
        if isinstance(value, bool) or not isinstance(value, int if whole else int | float) or not 0 < value < 1 << 24:
            faults.append(Fault(f"{value!r}, a positive number expected", f"text_config.{name}"))
            values[name] = _LLAMA[name]
    for name, allowed in _FIXED.items():
        if name in given and given[name] not in allowed:
            faults.append(Fault(f"{given[name]!r}, {allowed[0]!r} is supported", f"text_config.{name}"))
    text = Text(
        values["hidden_size"], values["intermediate_size"], values["num_hidden_layers"], values["num_attention_heads"],
        values["vocab_size"], float(values["rms_norm_eps"]), float(values["rope_theta"]),
        values["max_position_embeddings"],
    )  # fmt: skip
    for name, value in (("num_key_value_heads", text.heads), ("head_dim", text.head_dim)):
        if given.get(name) not in (None, value):
            faults.append(Fault(f"{given[name]!r}, {value} is supported", f"text_config.{name}"))
    if text.width % text.heads or text.head_dim % 2:
        faults.append(Fault(f"{text.width} channels do not make {text.heads} heads of even width",
                            "text_config.num_attention_heads"))  # fmt: skip
    pad = given.get("pad_token_id")
    if pad is not None and (not isinstance(pad, int) or isinstance(pad, bool) or not 0 <= pad < text.vocab):
        faults.append(Fault(f"{pad!r}, the table has {text.vocab} rows", "text_config.pad_token_id"))
        pad = None
    return text, pad


def _towers(config: Mapping[str, Any], shapes: Shapes, faults: list[Fault]) -> tuple[Tower, ...]:
    ids = config.get("timm_model_ids")
    if ids is None:
        backbone = str(config.get("vision_backbone_id"))
        ids = list(_BACKBONES.get(backbone, ()))
        if not ids:
            faults.append(Fault(f"{backbone!r} is not known", "vision_backbone_id", nearest(backbone, _BACKBONES)))
            return ()
    if not isinstance(ids, list) or not 1 <= len(ids) <= 2:
        faults.append(Fault(f"{ids!r}, one or two ids expected", "timm_model_ids"))
        return ()
    acts = config.get("timm_override_act_layers")
    if acts is not None and any(acts if isinstance(acts, list) else [acts]):
        faults.append(Fault(f"{acts!r}, GELU (null) is supported", "timm_override_act_layers"))
    if config.get("use_fused_vision_backbone", len(ids) == 2) != (len(ids) == 2):
        faults.append(Fault(f"does not go with {len(ids)} towers", "use_fused_vision_backbone"))
    made = []
    for prefix, number in list(TOWERS.items())[: len(ids)]:
        name = str(ids[number]).partition(".")[0]
        if name not in _HEADS:
            faults.append(Fault(f"{ids[number]!r} is not known", f"timm_model_ids[{number}]", nearest(name, _HEADS)))
            continue
        tower = _tower(prefix, _HEADS[name], shapes, faults)
        if tower is not None:
            made.append(tower)
    return tuple(made)


def _tower(prefix: str, heads: int, shapes: Shapes, faults: list[Fault]) -> Tower | None:
    patch = shapes.get(f"{prefix}.patch_embed.proj.weight", ())
    place = shapes.get(f"{prefix}.pos_embed", ())
    hidden = shapes.get(f"{prefix}.blocks.0.mlp.fc1.weight", ())
    if len(patch) != 4 or patch[1] != 3 or patch[2] != patch[3] or len(place) != 3 or len(hidden) != 2:
        faults.append(Fault("no sound patch_embed.proj.weight, pos_embed and blocks.0.mlp.fc1.weight", prefix))
        return None
    numbers = {int(m[1]) for name in shapes if (m := re.match(re.escape(prefix) + r"\.blocks\.(\d+)\.", name))}
    width, grid = patch[0], math.isqrt(place[1])
    if grid * grid != place[1]:
        faults.append(Fault(f"{place[1]} positions are no square: a class token with a position is not supported",
                            f"{prefix}.pos_embed"))  # fmt: skip
    if width % heads:
        faults.append(Fault(f"{width} channels do not make {heads} heads", prefix))
    if numbers != set(range(len(numbers))) or len(numbers) < 2:
        faults.append(Fault(f"blocks {sorted(numbers)}, all from 0 and at least two expected", prefix))
    extra = sum(
        shapes[name][1] for part in ("cls_token", "reg_token") if len(shapes.get(name := f"{prefix}.{part}", ())) == 3
    )
    scaled = f"{prefix}.blocks.0.ls1.scale_factor" in shapes
    return Tower(prefix, width, hidden[0], heads, max(len(numbers) - 1, 1), patch[2], grid, extra, scaled)


# ---------------------------------------------------------------- names of the weights


def expected_shapes(c: OpenVLAConfig, shapes: Shapes) -> dict[str, tuple[int, ...]]:
    """Name and shape of every weight that the network takes; of class and register tokens, what `shapes` has."""
    made: dict[str, tuple[int, ...]] = {}

    def dense(name: str, rows: int, columns: int) -> None:
        made[f"{name}.weight"], made[f"{name}.bias"] = (rows, columns), (rows,)

    for tower in c.towers:
        width = tower.width
        made[f"{tower.prefix}.patch_embed.proj.weight"] = (width, 3, tower.patch, tower.patch)
        made[f"{tower.prefix}.patch_embed.proj.bias"] = (width,)
        made[f"{tower.prefix}.pos_embed"] = (1, tower.grid**2, width)
        for token in ("cls_token", "reg_token"):
            name = f"{tower.prefix}.{token}"
            if name in shapes:
                made[name] = (1, shapes[name][1] if len(shapes[name]) == 3 else 1, width)
        for i in range(tower.blocks):
            at = f"{tower.prefix}.blocks.{i}"
            for norm in ("norm1", "norm2"):
                made[f"{at}.{norm}.weight"] = made[f"{at}.{norm}.bias"] = (width,)
            dense(f"{at}.attn.qkv", 3 * width, width)
            dense(f"{at}.attn.proj", width, width)
            dense(f"{at}.mlp.fc1", tower.hidden, width)
            dense(f"{at}.mlp.fc2", width, tower.hidden)
            if tower.scaled:
                made[f"{at}.ls1.scale_factor"] = made[f"{at}.ls2.scale_factor"] = (width,)
    text = c.text
    for name, rows, columns in projector(c):
        dense(f"projector.{name}", rows, columns)
    made[EMBEDDING] = made[HEAD] = (text.vocab, text.width)
    made[f"{LANGUAGE}.norm.weight"] = (text.width,)
    for i in range(text.layers):
        at = f"{LANGUAGE}.layers.{i}"
        made[f"{at}.input_layernorm.weight"] = made[f"{at}.post_attention_layernorm.weight"] = (text.width,)
        for part in "qkvo":
            made[f"{at}.self_attn.{part}_proj.weight"] = (text.width, text.width)
        made[f"{at}.mlp.gate_proj.weight"] = made[f"{at}.mlp.up_proj.weight"] = (text.hidden, text.width)
        made[f"{at}.mlp.down_proj.weight"] = (text.width, text.hidden)
    return made


def projector(c: OpenVLAConfig) -> tuple[tuple[str, int, int], ...]:
    """Name, rows and columns of the projector's linear layers; GELU is between them."""
    width = c.text.width
    if len(c.towers) == 1:
        return (("fc1", width, c.features), ("fc2", width, width))
    inner = 4 * c.features
    return (("fc1", inner, c.features), ("fc2", width, inner), ("fc3", width, width))


def spare(name: str, c: OpenVLAConfig) -> bool:
    """Whether a weight belongs to a part that is there and not computed: a tower's last block, norm and pooling."""
    if _SPARE.fullmatch(name):
        return True
    return any(name.startswith(f"{tower.prefix}.blocks.{tower.blocks}.") for tower in c.towers)


# ---------------------------------------------------------------- fixed tables


def rotary(positions: Array, head_dim: int, theta: float) -> tuple[Array, Array]:
    """Cosines and sines float32 [N, head_dim / 2] of rotary embeddings; channel i turns with channel i + head_dim / 2.

    Angles are position * theta**(-2 i / head_dim), computed in float32 as the language model itself does.
    """
    inverse = 1.0 / np.power(np.float32(theta), np.arange(0, head_dim, 2, dtype=np.float32) / np.float32(head_dim))
    angles = np.asarray(positions, np.float32)[:, None] * inverse.astype(np.float32)[None]
    return np.cos(angles), np.sin(angles)

# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""SmolVLA checkpoints with random weights in LeRobot's form, of any size; no torch needed."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from safetensors.numpy import save_file

Shapes = dict[str, tuple[int, ...]]

TINY_VLM: dict[str, Any] = {
    "text_config": {
        "hidden_size": 96, "intermediate_size": 128, "num_hidden_layers": 4, "num_attention_heads": 3,
        "num_key_value_heads": 1, "head_dim": 32, "vocab_size": 512, "rms_norm_eps": 1e-5,
    },
    "vision_config": {
        "hidden_size": 48, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
        "image_size": 64, "patch_size": 8, "layer_norm_eps": 1e-6,
    },
    "scale_factor": 4, "fake_image_token_id": 500, "global_image_token_id": 501,
}  # fmt: skip
FULL_VLM: dict[str, Any] = {
    "text_config": {
        "hidden_size": 960, "intermediate_size": 2560, "num_hidden_layers": 32, "num_attention_heads": 15,
        "num_key_value_heads": 5, "head_dim": 64, "vocab_size": 49280, "rms_norm_eps": 1e-5,
    },
    "vision_config": {
        "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12,
        "image_size": 512, "patch_size": 16, "layer_norm_eps": 1e-6,
    },
    "scale_factor": 4, "fake_image_token_id": 49189, "global_image_token_id": 49152,
}  # fmt: skip


def config(cameras: int = 2, image: int = 64, **fields: Any) -> dict[str, Any]:
    """config.json as LeRobot writes it, of the tiny network unless `fields` say otherwise."""
    features = {f"observation.images.image{i or ''}": {"type": "VISUAL", "shape": [3, 48, 48]} for i in range(cameras)}
    found = {
        "type": "smolvla", "n_obs_steps": 1, "chunk_size": 50, "n_action_steps": 1, "num_steps": 10,
        "input_features": {**features, "observation.state": {"type": "STATE", "shape": [8]}},
        "output_features": {"action": {"type": "ACTION", "shape": [7]}},
        "normalization_mapping": {"VISUAL": "IDENTITY", "STATE": "MEAN_STD", "ACTION": "MEAN_STD"},
        "max_state_dim": 32, "max_action_dim": 32, "resize_imgs_with_padding": [image, image], "empty_cameras": 0,
        "adapt_to_pi_aloha": False, "use_delta_joint_actions_aloha": False, "tokenizer_max_length": 48,
        "use_cache": True, "vlm_model_name": "tests/tiny", "load_vlm_weights": False, "attention_mode": "cross_attn",
        "add_image_special_tokens": False, "prefix_length": 0, "pad_language_to": "longest", "num_expert_layers": -1,
        "num_vlm_layers": 0, "self_attn_every_n_layers": 2, "expert_width_multiplier": 0.5, "min_period": 0.004,
        "max_period": 4.0, "device": "cpu", "use_amp": False,
    }  # fmt: skip
    return {**found, **fields}


def full_config(**fields: Any) -> dict[str, Any]:
    """config.json with the numbers of HuggingFaceVLA/smolvla_libero."""
    return config(image=512, vlm_model_name="HuggingFaceTB/SmolVLM2-500M-Instruct", **fields)


def shapes(values: Mapping[str, Any], vlm: Mapping[str, Any]) -> Shapes:
    """Name and shape of every tensor of such a checkpoint, written out from LeRobot's names and not from npukit's."""
    text, vision, f = vlm["text_config"], vlm["vision_config"], vlm["scale_factor"]
    width, head = text["hidden_size"], text["head_dim"]
    queries, keys = text["num_attention_heads"] * head, text["num_key_value_heads"] * head
    count = values["num_vlm_layers"] if values["num_vlm_layers"] > 0 else text["num_hidden_layers"]
    experts = values["num_expert_layers"] if values["num_expert_layers"] > 0 else count
    every, cross = values["self_attn_every_n_layers"], "cross" in values["attention_mode"]
    expert = int(width * values["expert_width_multiplier"])
    hidden = 256 * -(-int(4 * int(2 * expert / 3)) // 256)
    made: Shapes = {}

    def dense(name: str, rows: int, columns: int, bias: bool = True) -> None:
        made[f"{name}.weight"] = (rows, columns)
        if bias:
            made[f"{name}.bias"] = (rows,)

    def layer(name: str, width: int, hidden: int, fed: int) -> None:
        made[f"{name}.input_layernorm.weight"] = made[f"{name}.post_attention_layernorm.weight"] = (width,)
        for part, rows, columns in (
            ("self_attn.q_proj", queries, width), ("self_attn.k_proj", keys, fed), ("self_attn.v_proj", keys, fed),
            ("self_attn.o_proj", width, queries), ("mlp.gate_proj", hidden, width), ("mlp.up_proj", hidden, width),
            ("mlp.down_proj", width, hidden),
        ):  # fmt: skip
            dense(f"{name}.{part}", rows, columns, bias=False)

    v, inner, patch = vision["hidden_size"], vision["intermediate_size"], vision["patch_size"]
    base = "model.vlm_with_expert.vlm.model.vision_model"
    made[f"{base}.embeddings.patch_embedding.weight"] = (v, 3, patch, patch)
    made[f"{base}.embeddings.patch_embedding.bias"] = (v,)
    made[f"{base}.embeddings.position_embedding.weight"] = ((vision["image_size"] // patch) ** 2, v)
    for i in range(vision["num_hidden_layers"]):
        at = f"{base}.encoder.layers.{i}"
        for part in ("layer_norm1", "layer_norm2"):
            made[f"{at}.{part}.weight"] = made[f"{at}.{part}.bias"] = (v,)
        for part in ("q_proj", "k_proj", "v_proj", "out_proj"):
            dense(f"{at}.self_attn.{part}", v, v)
        dense(f"{at}.mlp.fc1", inner, v)
        dense(f"{at}.mlp.fc2", v, inner)
    made[f"{base}.post_layernorm.weight"] = made[f"{base}.post_layernorm.bias"] = (v,)
    dense("model.vlm_with_expert.vlm.model.connector.modality_projection.proj", width, v * f * f, bias=False)
    base = "model.vlm_with_expert.vlm.model.text_model"
    made[f"{base}.embed_tokens.weight"] = (text["vocab_size"], width)
    for i in range(count):
        layer(f"{base}.layers.{i}", width, text["intermediate_size"], width)
    made[f"{base}.norm.weight"] = (width,)
    made["model.vlm_with_expert.vlm.lm_head.weight"] = (text["vocab_size"], width)
    for i in range(experts):
        own = not cross or (every > 0 and i % every == 0)
        layer(f"model.vlm_with_expert.lm_expert.layers.{i}", expert, hidden, expert if own else keys)
    made["model.vlm_with_expert.lm_expert.norm.weight"] = (expert,)
    dense("model.state_proj", width, values["max_state_dim"])
    dense("model.action_in_proj", expert, values["max_action_dim"])
    dense("model.action_out_proj", values["max_action_dim"], expert)
    dense("model.action_time_mlp_in", expert, 2 * expert)
    dense("model.action_time_mlp_out", expert, expert)
    return made


def tensors(found: Shapes, *, seed: int = 0, mixed: bool = False) -> dict[str, Any]:
    """Random weights, scaled so that activations stay near 1; `mixed` gives LeRobot's bfloat16 and float32."""
    rng = np.random.default_rng(seed)
    made = {}
    cached = next((s[0] for n, s in found.items() if n.endswith("text_model.layers.0.self_attn.k_proj.weight")), 0)
    for name, shape in found.items():
        if "norm" in name:
            array = (1.0 if name.endswith("weight") else 0.0) + 0.1 * rng.standard_normal(shape, np.float32)
        elif "embed" in name and len(shape) == 2:
            array = rng.standard_normal(shape, np.float32) * (0.3 if "position" in name else 0.05)
        else:
            array = rng.standard_normal(shape, np.float32) * float(np.prod(shape[1:]) or 400) ** -0.5
        wide = "vlm_with_expert" not in name or (
            "lm_expert" in name and name.endswith(("k_proj.weight", "v_proj.weight")) and shape[1] == cached
        )
        made[name] = array.astype(np.float32 if wide or not mixed else ml_dtypes.bfloat16)
    return made


def checkpoint(
    folder: Path, *, seed: int = 0, mixed: bool = False, vlm: Mapping[str, Any] = TINY_VLM, **fields: Any
) -> Path:
    """A checkpoint folder: config.json, vlm_config.json, model.safetensors. `fields` change config.json."""
    folder.mkdir(parents=True, exist_ok=True)
    values = config(**fields)
    (folder / "config.json").write_text(json.dumps(values))
    (folder / "vlm_config.json").write_text(json.dumps(vlm))
    save_file(tensors(shapes(values, vlm), seed=seed, mixed=mixed), folder / "model.safetensors")
    return folder

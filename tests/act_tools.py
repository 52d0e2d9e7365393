# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""A LeRobot ACT checkpoint with random weights: what `ACTPolicy.save_pretrained` of LeRobot 0.4 leaves, in small."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

Arrays = dict[str, np.ndarray]
_STAGES = {"resnet18": (2, 2, 2, 2), "resnet34": (3, 4, 6, 3)}


def config(
    *,
    cameras: tuple[str, ...] = ("observation.images.top", "observation.images.wrist"),
    size: tuple[int, int] = (64, 96),
    state: int | None = 6,
    env_state: int | None = None,
    action: int = 6,
    **changes: Any,
) -> dict[str, Any]:
    """config.json of a small policy; `changes` are fields."""
    inputs: dict[str, Any] = {}
    if state is not None:
        inputs["observation.state"] = {"type": "STATE", "shape": [state]}
    inputs |= {name: {"type": "VISUAL", "shape": [3, *size]} for name in cameras}
    if env_state is not None:
        inputs["observation.environment_state"] = {"type": "ENV", "shape": [env_state]}
    values = {
        "type": "act", "n_obs_steps": 1, "input_features": inputs,
        "output_features": {"action": {"type": "ACTION", "shape": [action]}},
        "device": "cpu", "use_amp": False, "chunk_size": 10, "n_action_steps": 10,
        "normalization_mapping": {"VISUAL": "MEAN_STD", "STATE": "MEAN_STD", "ACTION": "MEAN_STD"},
        "vision_backbone": "resnet18", "pretrained_backbone_weights": "ResNet18_Weights.IMAGENET1K_V1",
        "replace_final_stride_with_dilation": 0, "pre_norm": False, "dim_model": 32, "n_heads": 4,
        "dim_feedforward": 48, "feedforward_activation": "relu", "n_encoder_layers": 2, "n_decoder_layers": 1,
        "use_vae": True, "latent_dim": 8, "n_vae_encoder_layers": 2, "temporal_ensemble_coeff": None,
        "dropout": 0.1, "kl_weight": 10.0, "optimizer_lr": 1e-05,
    }  # fmt: skip
    return values | changes


def weights(values: dict[str, Any], seed: int = 0) -> Arrays:
    """Random weights float32 under LeRobot's names, scaled so that values stay of the order of 1."""
    rng = np.random.default_rng(seed)
    found: Arrays = {}

    def put(name: str, *shape: int, scale: float | None = None) -> None:
        fan = int(np.prod(shape[1:])) or 1
        noise = rng.standard_normal(shape) * (fan**-0.5 if scale is None else scale)
        found[f"model.{name}"] = noise.astype(np.float32)

    def linear(name: str, outputs: int, inputs: int) -> None:
        put(f"{name}.weight", outputs, inputs)
        put(f"{name}.bias", outputs, scale=0.1)

    def norm(name: str, width: int) -> None:
        found[f"model.{name}.weight"] = rng.uniform(0.5, 1.5, width).astype(np.float32)
        put(f"{name}.bias", width, scale=0.1)

    def batch_norm(name: str, width: int) -> None:
        norm(name, width)
        put(f"{name}.running_mean", width, scale=0.1)
        found[f"model.{name}.running_var"] = rng.uniform(0.5, 2.0, width).astype(np.float32)

    def attention(name: str) -> None:
        put(f"{name}.in_proj_weight", 3 * dim, dim)
        put(f"{name}.in_proj_bias", 3 * dim, scale=0.1)
        linear(f"{name}.out_proj", dim, dim)

    def layer(name: str, *attentions: str) -> None:
        for part in attentions:
            attention(f"{name}.{part}")
        linear(f"{name}.linear1", values["dim_feedforward"], dim)
        linear(f"{name}.linear2", dim, values["dim_feedforward"])
        for i in range(len(attentions) + 1):
            norm(f"{name}.norm{i + 1}", dim)

    dim, inputs = values["dim_model"], values["input_features"]
    state = inputs.get("observation.state", {}).get("shape", [None])[0]
    environment = inputs.get("observation.environment_state", {}).get("shape", [None])[0]
    action = values["output_features"]["action"]["shape"][0]
    images = [name for name, feature in inputs.items() if feature["type"] == "VISUAL"]
    if values["use_vae"]:
        for i in range(values["n_vae_encoder_layers"]):
            layer(f"vae_encoder.layers.{i}", "self_attn")
        put("vae_encoder_cls_embed.weight", 1, dim)
        linear("vae_encoder_action_input_proj", dim, action)
        put("vae_encoder_pos_enc", 1, values["chunk_size"] + 2, dim)
    if images:
        put("backbone.conv1.weight", 64, 3, 7, 7)
        batch_norm("backbone.bn1", 64)
        channels = 64
        for stage, (blocks, width) in enumerate(
            zip(_STAGES[values["vision_backbone"]], (64, 128, 256, 512), strict=True)
        ):
            for block in range(blocks):
                name = f"backbone.layer{stage + 1}.{block}"
                put(f"{name}.conv1.weight", width, channels, 3, 3)
                batch_norm(f"{name}.bn1", width)
                put(f"{name}.conv2.weight", width, width, 3, 3)
                batch_norm(f"{name}.bn2", width)
                if block == 0 and stage:
                    put(f"{name}.downsample.0.weight", width, channels, 1, 1)
                    batch_norm(f"{name}.downsample.1", width)
                channels = width
        put("encoder_img_feat_input_proj.weight", dim, 512, 1, 1)
        put("encoder_img_feat_input_proj.bias", dim, scale=0.1)
    for i in range(values["n_encoder_layers"]):
        layer(f"encoder.layers.{i}", "self_attn")
    if values["pre_norm"]:
        norm("encoder.norm", dim)
    for i in range(values["n_decoder_layers"]):
        layer(f"decoder.layers.{i}", "self_attn", "multihead_attn")
    norm("decoder.norm", dim)
    if state is not None:
        linear("encoder_robot_state_input_proj", dim, state)
    if environment is not None:
        linear("encoder_env_state_input_proj", dim, environment)
    linear("encoder_latent_input_proj", dim, values["latent_dim"])
    put("encoder_1d_feature_pos_embed.weight", 1 + (state is not None) + (environment is not None), dim, scale=1.0)
    put("decoder_pos_embed.weight", values["chunk_size"], dim, scale=1.0)
    linear("action_head", action, dim)
    return found


def statistics(values: dict[str, Any], seed: int = 1) -> Arrays:
    """ "<feature>.<stat>" float32: of images [3, 1, 1] (ImageNet's mean and std), of vectors [D]."""
    rng = np.random.default_rng(seed)
    found: Arrays = {}
    for name, feature in (values["input_features"] | values["output_features"]).items():
        if feature["type"] == "VISUAL":
            mean, std = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
            found[f"{name}.mean"] = np.float32(mean).reshape(3, 1, 1)
            found[f"{name}.std"] = np.float32(std).reshape(3, 1, 1)
        else:
            found[f"{name}.mean"] = rng.standard_normal(feature["shape"]).astype(np.float32)
            found[f"{name}.std"] = rng.uniform(0.5, 2, feature["shape"]).astype(np.float32)
    return found


def processors(values: dict[str, Any]) -> dict[str, Any]:
    """policy_preprocessor.json and policy_postprocessor.json by file name."""
    mapping, outputs = values["normalization_mapping"], values["output_features"]
    normalizer = {"eps": 1e-08, "features": values["input_features"] | outputs, "norm_map": mapping}
    unnormalizer = {"eps": 1e-08, "features": outputs, "norm_map": mapping}
    device = {"registry_name": "device_processor", "config": {"device": "cpu", "float_dtype": None}}
    before = [
        {"registry_name": "rename_observations_processor", "config": {"rename_map": {}}},
        {"registry_name": "to_batch_processor", "config": {}},
        device,
        {"registry_name": "normalizer_processor", "config": normalizer,
         "state_file": "policy_preprocessor_step_3_normalizer_processor.safetensors"},
    ]  # fmt: skip
    after = [
        {"registry_name": "unnormalizer_processor", "config": unnormalizer,
         "state_file": "policy_postprocessor_step_0_unnormalizer_processor.safetensors"},
        device,
    ]  # fmt: skip
    return {
        "policy_preprocessor.json": {"name": "policy_preprocessor", "steps": before},
        "policy_postprocessor.json": {"name": "policy_postprocessor", "steps": after},
    }


def write_checkpoint(folder: Path, values: dict[str, Any] | None = None, seed: int = 0) -> Path:
    """Write a whole checkpoint into `folder`, which is made."""
    from safetensors.numpy import save_file

    values = config() if values is None else values
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(values, indent=2))
    save_file(weights(values, seed), folder / "model.safetensors")
    for name, content in processors(values).items():
        (folder / name).write_text(json.dumps(content, indent=2))
        for step in content["steps"]:
            if "state_file" in step:
                save_file(statistics(values), folder / step["state_file"])
    return folder

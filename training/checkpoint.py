# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""What was learned, as LeRobot 0.4 leaves a SmolVLA: config.json, weights, processors, statistics, tokenizer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load_file, save_file

from npukit.sim.scene import ACTION_SIZE, STATE_SIZE
from training.network import Sizes
from training.words import PAD, WORDS, tokenizer_json

if TYPE_CHECKING:
    from training.train import Run

CAMERAS = ("observation.images.image", "observation.images.image2")
NAME = "npukit/light-scene"
MODES = {"VISUAL": "IDENTITY", "STATE": "MEAN_STD", "ACTION": "MEAN_STD"}


def config(sizes: Sizes, n_action_steps: int) -> dict[str, Any]:
    """config.json."""
    picture = {"type": "VISUAL", "shape": [3, sizes.image, sizes.image]}
    return {
        "type": "smolvla", "n_obs_steps": 1, "normalization_mapping": MODES,
        "input_features": {"observation.state": {"type": "STATE", "shape": [STATE_SIZE]}}
        | dict.fromkeys(CAMERAS, picture),
        "output_features": _action(), "device": "cpu", "use_amp": False,
        "chunk_size": sizes.chunk, "n_action_steps": n_action_steps, "num_steps": 10,
        "max_state_dim": sizes.state, "max_action_dim": sizes.action,
        "resize_imgs_with_padding": [sizes.image, sizes.image], "empty_cameras": 0,
        "tokenizer_max_length": sizes.text, "pad_language_to": "max_length", "prefix_length": -1,
        "vlm_model_name": NAME, "load_vlm_weights": False, "add_image_special_tokens": False,
        "attention_mode": "cross_attn", "num_vlm_layers": sizes.layers, "num_expert_layers": -1,
        "self_attn_every_n_layers": sizes.every, "expert_width_multiplier": sizes.expert_multiplier,
        "min_period": 0.004, "max_period": 4.0, "use_cache": True,
    }  # fmt: skip


def _action() -> dict[str, Any]:
    return {"action": {"type": "ACTION", "shape": [ACTION_SIZE]}}


def vlm_config(sizes: Sizes) -> dict[str, Any]:
    """vlm_config.json: the vision-language model's own numbers, which LeRobot takes from the model's name."""
    return {
        "text_config": {
            "hidden_size": sizes.hidden, "intermediate_size": sizes.mlp, "num_hidden_layers": sizes.layers,
            "num_attention_heads": sizes.heads, "num_key_value_heads": sizes.kv_heads, "head_dim": sizes.head_dim,
            "rms_norm_eps": 1e-5, "vocab_size": sizes.vocabulary, "pad_token_id": PAD,
        },
        "vision_config": {
            "hidden_size": sizes.vision_hidden, "intermediate_size": sizes.vision_mlp,
            "num_hidden_layers": sizes.vision_layers, "num_attention_heads": sizes.vision_heads,
            "image_size": sizes.image, "patch_size": sizes.patch, "layer_norm_eps": 1e-6,
        },
        "scale_factor": sizes.shuffle,
    }  # fmt: skip


def processors(sizes: Sizes) -> dict[str, list[dict[str, Any]]]:
    """Steps of both processor files, by name."""
    features = config(sizes, 1)
    words = {
        "max_length": sizes.text, "task_key": "task", "padding_side": "right", "padding": "max_length",
        "truncation": True, "tokenizer_name": NAME,
    }  # fmt: skip
    normalizer = {"eps": 1e-8, "features": features["input_features"] | _action(), "norm_map": MODES}
    device = {"device": "cpu", "float_dtype": None}

    def step(name: str, options: dict[str, Any]) -> dict[str, Any]:
        return {"registry_name": name, "config": options}

    before = [
        step("rename_observations_processor", {"rename_map": {}}),
        step("to_batch_processor", {}),
        step("smolvla_new_line_processor", {}),
        step("tokenizer_processor", words),
        step("device_processor", device),
        step("normalizer_processor", normalizer),
    ]
    after = [
        step("unnormalizer_processor", normalizer | {"features": _action()}),
        step("device_processor", device),
    ]
    return {"policy_preprocessor": before, "policy_postprocessor": after}


def write(run: Run, folder: Path, n_action_steps: int) -> None:
    """Write the checkpoint of a run's averaged network into `folder`.

    Args:
        run: the training run.
        folder: made where it is not there.
        n_action_steps: how many actions of a chunk are used.
    """
    folder.mkdir(parents=True, exist_ok=True)
    weights = {f"model.{name}": tensor.contiguous() for name, tensor in run.average.state_dict().items()}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    _json(folder / "config.json", config(run.sizes, n_action_steps))
    _json(folder / "vlm_config.json", vlm_config(run.sizes))
    (folder / "model.safetensors").chmod(0o644)
    for name, steps in processors(run.sizes).items():
        for number, step in enumerate(steps):
            if "normalizer" in step["registry_name"]:
                step["state_file"] = f"{name}_step_{number}_{step['registry_name']}.safetensors"
                save_file({k: v.contiguous() for k, v in run.statistics.items()}, folder / step["state_file"])
                (folder / step["state_file"]).chmod(0o644)
        _json(folder / f"{name}.json", {"name": name, "steps": steps})
    (folder / "tokenizer.json").write_text(tokenizer_json(), encoding="utf-8")
    _json(folder / "tokenizer_config.json", {"pad_token": WORDS[PAD], "truncation_side": "right"})


def _json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def read(folder: Path) -> Run:
    """A run whose averaged network is that of a checkpoint of `write`: to evaluate it, or to train it further."""
    from training.train import Run

    values, vlm = (json.loads((folder / name).read_text("utf-8")) for name in ("config.json", "vlm_config.json"))
    text, vision = vlm["text_config"], vlm["vision_config"]
    sizes = Sizes(
        image=vision["image_size"], patch=vision["patch_size"], vision_hidden=vision["hidden_size"],
        vision_layers=vision["num_hidden_layers"], vision_heads=vision["num_attention_heads"],
        vision_mlp=vision["intermediate_size"], shuffle=vlm["scale_factor"], hidden=text["hidden_size"],
        layers=text["num_hidden_layers"], heads=text["num_attention_heads"], kv_heads=text["num_key_value_heads"],
        head_dim=text["head_dim"], mlp=text["intermediate_size"], vocabulary=text["vocab_size"],
        expert_multiplier=values["expert_width_multiplier"], every=values["self_attn_every_n_layers"],
        cameras=len(CAMERAS), text=values["tokenizer_max_length"], chunk=values["chunk_size"],
        state=values["max_state_dim"], action=values["max_action_dim"],
    )  # fmt: skip
    (state,) = folder.glob("policy_preprocessor_step_*.safetensors")
    run = Run(sizes, load_file(state))
    weights = {name.removeprefix("model."): tensor for name, tensor in load_file(folder / "model.safetensors").items()}
    run.average.load_state_dict(weights)
    run.network.load_state_dict(weights)
    return run


def random_run(sizes: Sizes, seed: int = 0) -> Run:
    """A run with random weights, for tests."""
    from training.train import Run

    torch.manual_seed(seed)
    ones = {"observation.state": STATE_SIZE, "action": ACTION_SIZE}
    statistics = {f"{k}.{s}": torch.full((n,), v) for k, n in ones.items() for s, v in (("mean", 0.0), ("std", 1.0))}
    return Run(sizes, statistics)

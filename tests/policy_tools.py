# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""What a checkpoint has beside its weights: processor files, their statistics, a tokenizer; no torch needed."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

EPS = 1e-08


def tokenizer(path: Path, size: int = 512) -> Path:
    """A byte-level tokenizer.json of 256 letters and `<|im_end|>` (id 256); every byte is a token, `size` in all."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    made = Tokenizer(models.BPE(vocab={letter: i for i, letter in enumerate(letters)}, merges=[]))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens([AddedToken("<|im_end|>", special=True)])
    made.add_tokens([AddedToken(f"<unused{i}>") for i in range(size - 257)])
    made.save(str(path))
    return path


def statistics(config: Mapping[str, Any], seed: int = 0) -> dict[str, Any]:
    """Every statistic of the states and the action of a config.json."""
    rng = np.random.default_rng(seed)
    found = {}
    for name, feature in {**config["input_features"], **config["output_features"]}.items():
        shape = (feature["shape"][0], 1, 1) if feature["type"] == "VISUAL" else tuple(feature["shape"])
        rows = np.sort(rng.standard_normal((6, *shape)), axis=0).astype(np.float32)
        for i, stat in enumerate(("min", "q01", "q10", "q90", "q99", "max")):
            found[f"{name}.{stat}"] = rows[i]
        found[f"{name}.mean"] = rng.standard_normal(shape).astype(np.float32)
        found[f"{name}.std"] = rng.uniform(0.5, 2, shape).astype(np.float32)
        found[f"{name}.count"] = np.array([100], np.int64)
    return found


def processors(
    folder: Path, *, seed: int = 0, norm_map: Mapping[str, str] | None = None, rename: Mapping[str, str] | None = None,
    text: bool = True, drop: tuple[str, ...] = (), max_length: int = 48,
) -> None:  # fmt: skip
    """The two processor files and their state files beside a config.json, as LeRobot 0.4 writes them.

    `drop`: statistics that are left out.
    """
    config = json.loads((folder / "config.json").read_text())
    norm_map = norm_map or config.get("normalization_mapping")
    every = {**config["input_features"], **config["output_features"]}
    steps: list[dict[str, Any]] = [
        {"registry_name": "rename_observations_processor", "config": {"rename_map": dict(rename or {})}},
        {"registry_name": "to_batch_processor", "config": {}},
    ]
    if text:
        steps += [
            {"registry_name": "smolvla_new_line_processor", "config": {}},
            {"registry_name": "tokenizer_processor",
             "config": {"max_length": max_length, "task_key": "task", "padding_side": "right", "padding": "longest",
                        "truncation": True, "tokenizer_name": "HuggingFaceTB/SmolVLM2-500M-Instruct"}},
        ]  # fmt: skip
    steps += [
        {"registry_name": "device_processor", "config": {"device": "cpu", "float_dtype": None}},
        {"registry_name": "normalizer_processor", "config": {"eps": EPS, "features": every, "norm_map": norm_map},
         "state_file": "policy_preprocessor_step_5_normalizer_processor.safetensors"},
    ]  # fmt: skip
    after = [
        {"registry_name": "device_processor", "config": {"device": "cpu", "float_dtype": None}},
        {"registry_name": "unnormalizer_processor",
         "config": {"eps": EPS, "features": config["output_features"], "norm_map": norm_map},
         "state_file": "policy_postprocessor_step_1_unnormalizer_processor.safetensors"},
    ]  # fmt: skip
    stats = {name: array for name, array in statistics(config, seed).items() if name not in drop}
    for name, listed in (("policy_preprocessor", steps), ("policy_postprocessor", after)):
        (folder / f"{name}.json").write_text(json.dumps({"name": name, "steps": listed}))
        save_file(stats, folder / listed[-1]["state_file"])

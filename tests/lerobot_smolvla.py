# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""Runs LeRobot's own SmolVLA network on a sample; for a Python that has lerobot 0.4.4, transformers 4.57 and torch.

    PYTHON tests/lerobot_smolvla.py CHECKPOINT SAMPLE.npz CHUNK.npy native|float32

Only the network's three modules of lerobot are imported; what they import for training, data sets and the Hub is
replaced by empty modules, so that `pip install --no-deps lerobot` is enough. In float32 the vision encoder's position
ids are put in order, which transformers 4.55 to 4.57 compute wrongly there; in bfloat16 nothing is changed.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np


class Nothing:
    """Stands for a class that is only named."""

    def __class_getitem__(cls, _: Any) -> type:
        return cls


def lerobot_modules() -> tuple[Any, Any]:
    """LeRobot's `smolvlm_with_expert` and `modeling_smolvla`, without the rest of it."""
    import torch

    spec = importlib.util.find_spec("lerobot")
    assert spec is not None
    assert spec.submodule_search_locations
    base = Path(spec.submodule_search_locations[0])
    for name in ("policies", "policies.smolvla", "policies.rtc", "utils"):
        module = types.ModuleType(f"lerobot.{name}")
        module.__path__ = [str(base / name.replace(".", "/"))]
        sys.modules[module.__name__] = module
    names = ("ACTION", "OBS_LANGUAGE_ATTENTION_MASK", "OBS_LANGUAGE_TOKENS", "OBS_STATE", "OBS_IMAGES")
    contents: dict[str, dict[str, Any]] = {
        "policies.pretrained": {"PreTrainedPolicy": torch.nn.Module, "T": None},
        "policies.rtc.modeling_rtc": {"RTCProcessor": Nothing},
        "policies.smolvla.configuration_smolvla": {"SmolVLAConfig": Nothing},
        "policies.utils": {"populate_queues": None},
        "utils.constants": dict.fromkeys(names, ""),
        "utils.utils": {"get_safe_dtype": lambda dtype, device: dtype},
    }
    for name, values in contents.items():
        module = types.ModuleType(f"lerobot.{name}")
        module.__dict__.update(values)
        sys.modules[module.__name__] = module
    found = ("smolvlm_with_expert", "modeling_smolvla")
    return tuple(importlib.import_module(f"lerobot.policies.smolvla.{name}") for name in found)  # type: ignore[return-value]


def network(checkpoint: Path, *, native: bool) -> Any:
    """LeRobot's network with the checkpoint's weights, all of which must fit."""
    from safetensors.torch import load_file
    from transformers import LlamaConfig, SmolVLMConfig

    parts, modeling = lerobot_modules()
    vlm = json.loads((checkpoint / "vlm_config.json").read_text())
    values = json.loads((checkpoint / "config.json").read_text())
    text = LlamaConfig(**vlm["text_config"], rope_theta=100000, max_position_embeddings=8192, pad_token_id=2)
    config = SmolVLMConfig(
        text_config=text.to_dict() | {"model_type": "llama"}, vision_config=dict(vlm["vision_config"]),
        scale_factor=vlm["scale_factor"], image_token_id=vlm["text_config"]["vocab_size"] - 1,
        tie_word_embeddings=False,
    )  # fmt: skip
    marks = {name: vlm[name] for name in ("fake_image_token_id", "global_image_token_id")}
    tokenizer = types.SimpleNamespace(tokenizer=types.SimpleNamespace(**marks))
    parts.AutoConfig = types.SimpleNamespace(from_pretrained=lambda *_, **__: config)
    parts.AutoProcessor = types.SimpleNamespace(from_pretrained=lambda *_, **__: tokenizer)
    training = {
        "freeze_vision_encoder": True, "train_expert_only": True, "train_state_proj": True, "compile_model": False,
        "rtc_config": None, "image_features": {},
    }  # fmt: skip
    model = modeling.VLAFlowMatching(types.SimpleNamespace(**training, **values)).eval()
    state = {name.removeprefix("model."): x for name, x in load_file(checkpoint / "model.safetensors").items()}
    model.load_state_dict(state if native else {name: x.float() for name, x in state.items()}, assign=True)
    if not native:
        put_positions_in_order(model.vlm_with_expert.get_vlm_model().vision_model.embeddings)
    return model


def put_positions_in_order(embeddings: Any) -> None:
    """Replace the bucketing of coordinates by the table that it means."""
    import torch

    def forward(pixel_values: Any, patch_attention_mask: Any) -> Any:
        patches = embeddings.patch_embedding(pixel_values).flatten(2).transpose(1, 2)
        count, grid = pixel_values.shape[-1] // embeddings.patch_size, embeddings.num_patches_per_side
        side = torch.arange(count) * grid // count
        return patches + embeddings.position_embedding((side[:, None] * grid + side).reshape(-1))

    embeddings.forward = forward


def main(checkpoint: str, sample: str, output: str, mode: str) -> None:
    """Write the chunk [1, chunk_size, max_action]."""
    import torch

    torch.set_num_threads(1)
    model = network(Path(checkpoint), native=mode == "native")
    given = {name: torch.from_numpy(array) for name, array in np.load(sample).items()}
    masks = given["image_masks"].bool()
    images = [given[f"image_{i + 1}"] for i in range(masks.shape[1])]
    words = given["lang_tokens"], given["lang_masks"].bool()
    with torch.inference_mode():
        chunk = model.sample_actions(images, list(masks.T), *words, given["state"], noise=given["noise"])
    np.save(output, chunk.float().numpy())


if __name__ == "__main__":
    main(*sys.argv[1:])

# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""OpenVLA's network put together from timm's towers and transformers' Llama, to hold npukit's own against.

`python -m tests.openvla_reference FILE.npz` writes what it computes for the tiny checkpoint, which tests compare with
where the two packages are not installed. Made with timm 1.0.31, transformers 5.23.0 and torch 2.13.0.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file

from tests import openvla_tools as tools

WORDS = 12  # tokens of the prompt
LOGITS = slice(31488, 32000)  # that are kept: half of them are of action tokens


def load(folder: Path) -> dict[str, Any]:
    """All tensors of a checkpoint, float32."""
    index = json.loads((folder / "model.safetensors.index.json").read_text())["weight_map"]
    found = {}
    for name in sorted(set(index.values())):
        found.update({key: array.astype(np.float32) for key, array in load_file(folder / name).items()})
    return found


def inputs(sizes: tools.Sizes = tools.TINY) -> tuple[Any, Any]:
    """Pixels and the prompt's ids [1, WORDS]."""
    return tools.images(1, sizes, seed=1), tools.prompt(WORDS, seed=1)[:, :WORDS]


def towers(weights: dict[str, Any], pixels: Any, sizes: tools.Sizes) -> Any:
    """Patch features [1, N, dino + siglip] by timm: the output of the last block but one, without its first tokens."""
    import torch
    from timm.models.vision_transformer import VisionTransformer

    common = {"img_size": sizes.image, "patch_size": 14, "num_classes": 0, "num_heads": 16}
    dino = VisionTransformer(
        embed_dim=sizes.dino, depth=sizes.dino_blocks, mlp_ratio=sizes.dino_hidden / sizes.dino, init_values=1e-5,
        reg_tokens=4, no_embed_class=True, **common,
    )  # fmt: skip
    siglip = VisionTransformer(
        embed_dim=sizes.siglip, depth=sizes.siglip_blocks, mlp_ratio=sizes.siglip_hidden / sizes.siglip,
        class_token=False, global_pool="map", **common,
    )  # fmt: skip
    found = []
    for base, model, part in zip(
        ("featurizer", "fused_featurizer"), (dino, siglip), np.split(pixels, 2, 1), strict=True
    ):
        prefix = f"vision_backbone.{base}."
        state = {
            name.removeprefix(prefix).replace("scale_factor", "gamma"): torch.from_numpy(array)
            for name, array in weights.items()
            if name.startswith(prefix)
        }
        model.eval().load_state_dict(state)
        with torch.inference_mode():
            at = len(model.blocks) - 2
            found.append(model.get_intermediate_layers(torch.from_numpy(part), n={at})[0].numpy())
    return np.concatenate(found, axis=2)


def language(weights: dict[str, Any], sizes: tools.Sizes) -> Any:
    """transformers' Llama in float32."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        hidden_size=sizes.width, intermediate_size=sizes.hidden, num_hidden_layers=sizes.layers,
        num_attention_heads=sizes.heads, vocab_size=sizes.vocab, pad_token_id=32000,
    )  # fmt: skip
    model = LlamaForCausalLM(config).float().eval()
    prefix = "language_model."
    state = {k.removeprefix(prefix): torch.from_numpy(v) for k, v in weights.items() if k.startswith(prefix)}
    model.load_state_dict(state)
    return model


def compute(folder: Path, sizes: tools.Sizes = tools.TINY, action: int = 7) -> dict[str, Any]:
    """patch_features, image_embeddings, `logits` after the prompt (of `LOGITS`), and the action's `tokens`."""
    import torch
    from torch.nn import functional

    weights = load(folder)
    pixels, ids = inputs(sizes)
    patches = towers(weights, pixels, sizes)
    x = torch.from_numpy(patches)
    for name in ("fc1", "fc2", "fc3"):
        layer = (torch.from_numpy(weights[f"projector.{name}.{part}"]) for part in ("weight", "bias"))
        x = functional.linear(x, *layer)
        x = functional.gelu(x) if name != "fc3" else x
    model = language(weights, sizes)
    with torch.inference_mode():
        words = model.get_input_embeddings()(torch.from_numpy(ids))
        embedded = torch.cat([words[:, :1], x, words[:, 1:]], dim=1)
        made = model(inputs_embeds=embedded, use_cache=True)
        logits, tokens = made.logits[0, -1].numpy(), [int(made.logits[0, -1].argmax())]
        while len(tokens) < action:
            made = model(input_ids=torch.tensor([tokens[-1:]]), past_key_values=made.past_key_values, use_cache=True)
            tokens.append(int(made.logits[0, -1].argmax()))
    return {
        "patch_features": patches, "image_embeddings": x.numpy(), "logits": logits[LOGITS],
        "tokens": np.array(tokens),
    }  # fmt: skip


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as scratch:
        np.savez_compressed(sys.argv[1], **compute(tools.checkpoint(Path(scratch))))

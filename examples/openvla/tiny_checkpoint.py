# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""OpenVLA checkpoints with random weights, in the files and under the names that the published ones have; no torch.

    python tiny_checkpoint.py FOLDER

Names and shapes are written out from timm's and transformers' own, and not from npukit's. What such a network does is
meaningless; what npukit does with it is what it does with OpenVLA-7B.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from safetensors.numpy import save_file

Shapes = dict[str, tuple[int, ...]]

DINO, SIGLIP = "vit_large_patch14_reg4_dinov2.lvd142m", "vit_so400m_patch14_siglip_224"


@dataclass(frozen=True)
class Sizes:
    """Of a network. `blocks` of the towers include the last, which is not computed."""

    dino: int = 64
    dino_hidden: int = 96
    dino_blocks: int = 3
    siglip: int = 48
    siglip_hidden: int = 80
    siglip_blocks: int = 3
    image: int = 56
    width: int = 64
    hidden: int = 96
    layers: int = 2
    heads: int = 4
    vocab: int = 32064


TINY = Sizes()
FULL = Sizes(1024, 4096, 24, 1152, 4304, 27, 224, 4096, 11008, 32, 32)
WIDE = Sizes(1024, 4096, 2, 1152, 4304, 2, 224, 4096, 11008, 1, 32)
"""Every width as in OpenVLA-7B, one block and one layer of each kind."""


def config(sizes: Sizes = TINY, **fields: Any) -> dict[str, Any]:
    """config.json; sizes of the language model are left out where they are Llama's defaults, as published."""
    text: dict[str, Any] = {
        "model_type": "llama", "pad_token_id": 32000, "torch_dtype": "bfloat16", "vocab_size": sizes.vocab,
    }  # fmt: skip
    for name, value, default in (
        ("hidden_size", sizes.width, 4096), ("intermediate_size", sizes.hidden, 11008),
        ("num_hidden_layers", sizes.layers, 32), ("num_attention_heads", sizes.heads, 32),
    ):  # fmt: skip
        if value != default:
            text[name] = value
    found = {
        "arch_specifier": "no-align+fused-gelu-mlp", "architectures": ["OpenVLAForActionPrediction"],
        "auto_map": {"AutoConfig": "configuration_prismatic.OpenVLAConfig"}, "hf_llm_id": "meta-llama/Llama-2-7b-hf",
        "image_resize_strategy": "resize-naive", "image_sizes": [sizes.image, sizes.image],
        "llm_backbone_id": "llama2-7b-pure", "llm_max_length": 2048, "model_type": "openvla", "n_action_bins": 256,
        "output_projector_states": False, "pad_to_multiple_of": 64, "pad_token_id": 32000, "text_config": text,
        "timm_model_ids": [DINO, SIGLIP], "timm_override_act_layers": [None, None], "torch_dtype": "bfloat16",
        "transformers_version": "4.40.1", "use_fused_vision_backbone": True,
        "vision_backbone_id": "dinosiglip-vit-so-224px",
    }  # fmt: skip
    return {**found, **fields}


def preprocessor(sizes: Sizes = TINY) -> dict[str, Any]:
    """preprocessor_config.json."""
    means = [[0.484375, 0.455078125, 0.40625], [0.5, 0.5, 0.5]]
    stds = [[0.228515625, 0.2236328125, 0.224609375], [0.5, 0.5, 0.5]]
    return {
        "auto_map": {"AutoImageProcessor": "processing_prismatic.PrismaticImageProcessor"},
        "image_processor_type": "PrismaticImageProcessor", "image_resize_strategy": "resize-naive",
        "input_sizes": [[3, sizes.image, sizes.image]] * 2, "interpolations": ["bicubic", "bicubic"], "means": means,
        "processor_class": "PrismaticProcessor", "stds": stds, "use_fused_vision_backbone": True,
        "tvf_normalize_params": [
            {"inplace": False, "mean": mean, "std": std} for mean, std in zip(means, stds, strict=True)
        ],
    }  # fmt: skip


def statistics(*keys: str, seed: int = 0, action: int = 7) -> dict[str, Any]:
    """dataset_statistics.json of these datasets."""
    rng, found = np.random.default_rng(seed), {}
    for key in keys:
        low, high = np.sort(rng.uniform(-1, 1, (2, action)), axis=0).round(6)
        low[-1], high[-1] = 0.0, 1.0
        row = {
            "mean": (low + high) / 2,
            "std": (high - low) / 4,
            "max": high + 0.1,
            "min": low - 0.1,
            "q01": low,
            "q99": high,
        }
        found[key] = {
            "action": {**{name: list(map(float, value)) for name, value in row.items()},
                       "mask": [True] * (action - 1) + [False]},
            "proprio": {name: [0.0] * 7 for name in row}, "num_transitions": 66984, "num_trajectories": 454,
        }  # fmt: skip
    return found


def shapes(sizes: Sizes) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Name and shape of every tensor, in the order of the published shards."""
    patch, grid = 14, sizes.image // 14

    def dense(name: str, rows: int, columns: int) -> Iterator[tuple[str, tuple[int, ...]]]:
        yield f"{name}.weight", (rows, columns)
        yield f"{name}.bias", (rows,)

    def pair(name: str, width: int) -> Iterator[tuple[str, tuple[int, ...]]]:
        yield f"{name}.weight", (width,)
        yield f"{name}.bias", (width,)

    def tower(base: str, width: int, hidden: int, blocks: int, scaled: bool) -> Iterator[tuple[str, tuple[int, ...]]]:
        yield f"{base}.patch_embed.proj.weight", (width, 3, patch, patch)
        yield f"{base}.patch_embed.proj.bias", (width,)
        yield f"{base}.pos_embed", (1, grid * grid, width)
        for i in range(blocks):
            at = f"{base}.blocks.{i}"
            yield from pair(f"{at}.norm1", width)
            yield from dense(f"{at}.attn.qkv", 3 * width, width)
            yield from dense(f"{at}.attn.proj", width, width)
            yield from pair(f"{at}.norm2", width)
            yield from dense(f"{at}.mlp.fc1", hidden, width)
            yield from dense(f"{at}.mlp.fc2", width, hidden)
            if scaled:
                yield f"{at}.ls1.scale_factor", (width,)
                yield f"{at}.ls2.scale_factor", (width,)
        yield from pair(f"{base}.norm", width)

    base = "vision_backbone.featurizer"
    yield f"{base}.cls_token", (1, 1, sizes.dino)
    yield f"{base}.reg_token", (1, 4, sizes.dino)
    yield from tower(base, sizes.dino, sizes.dino_hidden, sizes.dino_blocks, True)
    base = "vision_backbone.fused_featurizer"
    yield from tower(base, sizes.siglip, sizes.siglip_hidden, sizes.siglip_blocks, False)
    yield f"{base}.attn_pool.latent", (1, 1, sizes.siglip)
    yield from dense(f"{base}.attn_pool.q", sizes.siglip, sizes.siglip)
    yield from dense(f"{base}.attn_pool.kv", 2 * sizes.siglip, sizes.siglip)
    yield from dense(f"{base}.attn_pool.proj", sizes.siglip, sizes.siglip)
    yield from pair(f"{base}.attn_pool.norm", sizes.siglip)
    yield from dense(f"{base}.attn_pool.mlp.fc1", sizes.siglip_hidden, sizes.siglip)
    yield from dense(f"{base}.attn_pool.mlp.fc2", sizes.siglip, sizes.siglip_hidden)
    seen = sizes.dino + sizes.siglip
    yield from dense("projector.fc1", 4 * seen, seen)
    yield from dense("projector.fc2", sizes.width, 4 * seen)
    yield from dense("projector.fc3", sizes.width, sizes.width)
    base = "language_model.model"
    yield f"{base}.embed_tokens.weight", (sizes.vocab, sizes.width)
    for i in range(sizes.layers):
        at = f"{base}.layers.{i}"
        yield f"{at}.input_layernorm.weight", (sizes.width,)
        for part in "qkvo":
            yield f"{at}.self_attn.{part}_proj.weight", (sizes.width, sizes.width)
        yield f"{at}.post_attention_layernorm.weight", (sizes.width,)
        yield f"{at}.mlp.gate_proj.weight", (sizes.hidden, sizes.width)
        yield f"{at}.mlp.up_proj.weight", (sizes.hidden, sizes.width)
        yield f"{at}.mlp.down_proj.weight", (sizes.width, sizes.hidden)
    yield f"{base}.norm.weight", (sizes.width,)
    yield "language_model.lm_head.weight", (sizes.vocab, sizes.width)


def tensor(name: str, shape: tuple[int, ...], rng: np.random.Generator) -> Any:
    """float32 random numbers, scaled so that activations stay near 1."""
    array = rng.standard_normal(shape, np.float32)
    if name.endswith("scale_factor"):
        array = 0.5 + 0.2 * array
    elif "norm" in name and name.endswith("weight"):
        array = 1.0 + 0.1 * array
    elif name.endswith(("bias", "token", "latent")) or "embed" in name.rpartition(".")[2]:
        array *= 0.1
    elif len(shape) > 1 and "embed_tokens" not in name:
        array *= float(np.prod(shape[1:])) ** -0.5
    if name.endswith("lm_head.weight"):
        array[31744:32000] *= 4  # so that action tokens are the likely ones, as after training
    return array


def checkpoint(
    folder: Path, sizes: Sizes = TINY, *, seed: int = 0, shards: int = 3, dtype: Any = ml_dtypes.bfloat16,
    keys: tuple[str, ...] = ("libero_object",), in_config: bool = False, **fields: Any,
) -> Path:  # fmt: skip
    """A checkpoint's folder; `fields` change config.json. One shard is in memory at a time.

    Statistics of the datasets `keys` are in dataset_statistics.json, or `in_config` under `norm_stats` alone.
    """
    folder.mkdir(parents=True, exist_ok=True)
    values, stats = config(sizes, **fields), statistics(*keys)
    if in_config:
        values["norm_stats"] = stats
    else:
        (folder / "dataset_statistics.json").write_text(json.dumps(stats))
    (folder / "config.json").write_text(json.dumps(values))
    (folder / "preprocessor_config.json").write_text(json.dumps(preprocessor(sizes)))
    write_tokenizer(folder)
    weights(folder, list(shapes(sizes)), seed=seed, shards=shards, dtype=dtype)
    return folder


def weights(
    folder: Path, named: list[tuple[str, tuple[int, ...]]], *, seed: int = 0, shards: int = 3,
    dtype: Any = ml_dtypes.bfloat16,
) -> None:  # fmt: skip
    """The shards and their index."""
    rng, total = np.random.default_rng(seed), sum(int(np.prod(shape)) for _, shape in named)
    files: list[list[tuple[str, tuple[int, ...]]]] = [[]]
    held = 0
    for name, shape in named:
        if held >= total / shards and len(files) < shards:
            files.append([])
            held = 0
        files[-1].append((name, shape))
        held += int(np.prod(shape))
    index = {}
    for i, part in enumerate(files, 1):
        file = f"model-{i:05d}-of-{len(files):05d}.safetensors"
        made = {name: tensor(name, shape, rng).astype(dtype) for name, shape in part}
        save_file(made, folder / file, {"format": "pt"})
        index.update(dict.fromkeys(made, file))
    size = total * np.dtype(dtype).itemsize
    text = json.dumps({"metadata": {"total_size": size}, "weight_map": index})
    (folder / "model.safetensors.index.json").write_text(text)


_WORDS = (
    "In What action should the robot take to Out pick up put place the bowl plate black on in and open drawer close "
    "top middle of cream cheese basket butter milk soup alphabet orange juice wine bottle stove turn it mug left right"
)


def write_tokenizer(folder: Path) -> None:
    """A tokenizer.json built as Llama's is: byte-pair, spaces as "▁" (29871), <s> (1) before every text; 32,001 tokens.

    It knows the words of the prompt and of some instructions, and spells all others in letters and bytes.
    """
    vocab = {"<unk>": 0, "<s>": 1, "</s>": 2, **{f"<0x{i:02X}>": 3 + i for i in range(256)}, "▁": 29871}
    merges: list[tuple[str, str]] = []
    for i, letter in enumerate("etainoslrdhcumpgfbvywkxqzjETAINOSLRDHCUMPGFBVYWKXQZJ:?!.,'-0123456789"):
        vocab[letter] = 29872 + i
    for word in dict.fromkeys(_WORDS.split()):
        for at in range(1, len(word) + 1):
            first, second = f"▁{word[: at - 1]}", word[at - 1]
            if (first, second) not in merges:
                merges.append((first, second))
                vocab[first + second] = 259 + len(merges)
    for at in (1, 2):  # "Out" stands after a line break, without a space
        merges.append(("Out"[:at], "Out"[at]))
        vocab["Out"[: at + 1]] = 259 + len(merges)
    taken = set(vocab.values())
    vocab.update({f"<filler {i}>": i for i in range(32000) if i not in taken})
    special = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    added = [
        {"id": i, "content": token, **special} for i, token in ((0, "<unk>"), (1, "<s>"), (2, "</s>"), (32000, "<PAD>"))
    ]
    text = {
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": added,
        "normalizer": {"type": "Sequence", "normalizers": [
            {"type": "Prepend", "prepend": "▁"}, {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
        ]},
        "pre_tokenizer": None,
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}},
        },
        "decoder": None,
        "model": {
            "type": "BPE", "dropout": None, "unk_token": "<unk>", "continuing_subword_prefix": None,
            "end_of_word_suffix": None, "fuse_unk": True, "byte_fallback": True, "ignore_merges": False,
            "vocab": dict(sorted(vocab.items(), key=lambda item: item[1])),
            "merges": [list(merge) for merge in merges],
        },
    }  # fmt: skip
    (folder / "tokenizer.json").write_text(json.dumps(text, ensure_ascii=False), encoding="utf-8")
    facts = {
        "add_bos_token": True, "add_eos_token": False, "bos_token": "<s>", "eos_token": "</s>", "pad_token": "<PAD>",
        "padding_side": "right", "tokenizer_class": "LlamaTokenizer", "unk_token": "<unk>",
    }  # fmt: skip
    (folder / "tokenizer_config.json").write_text(json.dumps(facts))


if __name__ == "__main__":
    checkpoint(Path(sys.argv[1]))

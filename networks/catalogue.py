# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""The networks by name: how each is built, in both sizes, and what goes into it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from networks import language, statistics, vision
from networks.statistics import Array


@dataclass(frozen=True)
class Variant:
    """One size of a network.

    Attributes:
        build: makes the model, with placeholders for statistics.
        feeds: makes inputs for `count` samples in one batch.
        symbols: values of the symbolic dimensions, without the batch.
        emulate: whether the HTP emulator runs it in reasonable time (below 3 GFLOP).
    """

    build: Callable[[], onnx.ModelProto]
    feeds: Callable[[np.random.Generator, int], dict[str, Array]]
    symbols: Mapping[str, int] = field(default_factory=dict)
    emulate: bool = True


@dataclass(frozen=True)
class Network:
    """A network in two sizes.

    Attributes:
        name: file name without suffix.
        title: for people.
        small: a variant with the topology, for quick tests.
        full: the real size.
        convolutional: whether every op has channels, so that at most the ends need a Transpose.
        classifier: output of the last Gemm, where there is one.
    """

    name: str
    title: str
    small: Variant
    full: Variant
    convolutional: bool = False
    classifier: str = ""

    def variant(self, size: str) -> Variant:
        """The variant "small" or "full"."""
        return self.full if size == "full" else self.small


def build(network: Network, size: str, path: Path) -> onnx.ModelProto:
    """Write a network as ONNX at `path`, with its statistics taken from data; the model."""
    variant = network.variant(size)
    model = variant.build()
    if network.convolutional or network.classifier:
        batch = variant.feeds(np.random.default_rng(1), 12 if size == "full" else 48)
        statistics.settle(model, batch, network.classifier)
    onnx.checker.check_model(model, full_check=len(model.graph.node) < 10_000)
    onnx.save(model, path)
    return model


def samples(network: Network, size: str, count: int, seed: int = 7) -> list[dict[str, Array]]:
    """`count` inputs of batch 1 that are not those of the statistics."""
    batch = network.variant(size).feeds(np.random.default_rng(seed), count)
    return [{name: array[i : i + 1] for name, array in batch.items()} for i in range(count)]


def _images(name: str, extent: int) -> Callable[[np.random.Generator, int], dict[str, Array]]:
    """Images with patches of several sizes and a colour cast, each of mean 0 and deviation 1."""

    def make(random: np.random.Generator, count: int) -> dict[str, Any]:
        total = random.standard_normal((count, 3, 1, 1)) + np.zeros((1, 1, extent, extent))
        for cells, weight in ((2, 0.5), (8, 0.5), (extent, 0.1)):
            coarse = random.standard_normal((count, 3, cells, cells))
            place = np.arange(extent) * cells // extent
            total += weight * coarse[:, :, place][:, :, :, place]
        total -= total.mean((1, 2, 3), keepdims=True)
        return {name: (total / total.std((1, 2, 3), keepdims=True)).astype(np.float32)}

    return make


def _tokens(vocabulary: int, length: int) -> Callable[[np.random.Generator, int], dict[str, Array]]:
    """Token ids with padding at the end and two segments."""

    def make(random: np.random.Generator, count: int) -> dict[str, Any]:
        place = np.arange(length)[None]
        ends = random.integers(length // 2, length, (count, 1))
        mask = (place < ends).astype(np.int64)
        ids = random.integers(0, vocabulary, (count, length)) * mask
        kinds = (place >= ends // 2).astype(np.int64) * mask
        return {"input_ids": ids, "attention_mask": mask, "token_type_ids": kinds}

    return make


def _hidden(width: int, length: int) -> Callable[[np.random.Generator, int], dict[str, Array]]:
    def make(random: np.random.Generator, count: int) -> dict[str, Any]:
        ends = random.integers(length // 2, length, (count, 1))
        mask = (np.arange(length)[None] < ends).astype(np.int64)
        return {"hidden_states": random.standard_normal((count, length, width), np.float32), "attention_mask": mask}

    return make


def _sequence(width: int, length: int) -> Callable[[np.random.Generator, int], dict[str, Array]]:
    return lambda random, count: {"input": random.standard_normal((count, length, width), np.float32)}


NETWORKS: dict[str, Network] = {
    network.name: network
    for network in (
        Network(
            "resnet50", "ResNet-50",
            Variant(lambda: vision.resnet((2, 1, 1), 16, 64, 10), _images("input", 64)),
            Variant(lambda: vision.resnet((3, 4, 6, 3), 64, 224, 1000), _images("input", 224), emulate=False),
            convolutional=True, classifier="output",
        ),
        Network(
            "mobilenet_v2", "MobileNetV2",
            Variant(lambda: vision.mobilenet(64, 10, small=True), _images("input", 64)),
            Variant(lambda: vision.mobilenet(224, 1000, small=False), _images("input", 224)),
            convolutional=True, classifier="output",
        ),
        Network(
            "efficientnet_b0", "EfficientNet-B0",
            Variant(lambda: vision.efficientnet(64, 10, small=True), _images("input", 64)),
            Variant(lambda: vision.efficientnet(224, 1000, small=False), _images("input", 224)),
            convolutional=True, classifier="output",
        ),
        Network(
            "unet", "U-Net",
            Variant(lambda: vision.unet(2, 8, 32, 2), _images("input", 32)),
            Variant(lambda: vision.unet(4, 32, 256, 3), _images("input", 256), emulate=False),
            convolutional=True,
        ),
        Network(
            "vit_b16", "ViT-B/16",
            Variant(lambda: language.vit(2, 64, 4, 32, 8, 10), _images("pixel_values", 32)),
            Variant(lambda: language.vit(12, 768, 12, 224, 16, 1000), _images("pixel_values", 224), emulate=False),
            classifier="logits",
        ),
        Network(
            "bert_base", "BERT-base encoder",
            Variant(lambda: language.bert(2, 64, 4, 100, 32), _tokens(100, 12), {"sequence": 12}),
            Variant(
                lambda: language.bert(12, 768, 12, 30522, 512), _tokens(30522, 64), {"sequence": 64}, emulate=False
            ),
        ),
        Network(
            "llama_block", "Llama block",
            Variant(lambda: language.llama(64, 4, 2, 160), _hidden(64, 12), {"sequence": 12}),
            Variant(lambda: language.llama(1024, 16, 4, 2816), _hidden(1024, 16), {"sequence": 16}),
        ),
        Network(
            "bilstm", "bidirectional LSTM",
            Variant(lambda: language.lstm(16, 12, 2, 5), _sequence(16, 4), {"sequence": 4}),
            Variant(lambda: language.lstm(128, 256, 2, 32), _sequence(128, 50), {"sequence": 50}),
        ),
    )
}  # fmt: skip

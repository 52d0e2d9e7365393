# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""What OpenVLA's network in PyTorch makes of an observation, part by part: what a package is verified against."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from npukit.errors import MissingDependency, ModelError
from npukit.policies.kinds import Array, Probe
from npukit.policies.lerobot import CONFIG, read_json
from npukit.policies.openvla import components
from npukit.policies.openvla.actions import detokenize
from npukit.policies.openvla.checkpoint import facts
from npukit.policies.package import Manifest
from npukit.policies.recording import Run, Sample

WHOLE = 1_000_000_000  # numbers of a network that is held in memory as a whole; a larger one runs layer by layer


def runs(checkpoint: Path, manifest: Manifest, probes: Sequence[Probe], threads: int | None) -> Iterator[Run]:
    """PyTorch's float32 results for each probe.

    What is kept of `kv_prompt` are the rows of real tokens.

    Raises:
        MissingDependency: torch is not installed.
        ModelError: the checkpoint is not whole, or not the package's.
    """
    try:
        import torch
    except ImportError:
        raise MissingDependency("a checkpoint is run by PyTorch, which is not installed",
                                hint="pip install 'npukit[torch]'") from None  # fmt: skip
    from npukit.policies.openvla.model import OpenVLA

    found = facts(
        checkpoint, read_json(checkpoint / CONFIG), {"prompt_length": str(manifest.config.get("prompt_length"))}
    )
    c = found.network
    ours = {"prefill_length": c.prefill, "cache_length": c.cache, "action_dim": c.action, "vocab_size": c.vocabulary}
    if any(manifest.config.get(name) != value for name, value in ours.items()):
        raise ModelError("the package was not made from this checkpoint: its sizes are others", where=str(checkpoint))
    if threads:
        torch.set_num_threads(threads)
    with torch.inference_mode():
        network = OpenVLA(c, found.weights, whole=found.weights.count(c) <= WHOLE)
        for probe in probes:
            yield _Reference(network).run(probe)


class _Reference:
    """One observation through the network."""

    def __init__(self, network: Any) -> None:
        self._network, self._c = network, network.config
        self._samples: dict[str, list[Sample]] = {}

    def _keep(self, name: str, inputs: dict[str, Array], outputs: dict[str, Array]) -> None:
        self._samples.setdefault(name, []).append(Sample(inputs, outputs))

    def run(self, probe: Probe) -> Run:
        import torch

        from npukit.policies.openvla.compare import rows_of, sample

        network, c = self._network, self._c
        pixels, ids = sample(probe)
        patches = network.patches(torch.from_numpy(pixels))
        image = network.project(patches)
        padded = np.full((1, c.prompt), c.pad_id, np.int32)
        padded[0, : len(ids)] = ids
        words = network.embed(torch.from_numpy(padded[0].astype(np.int64)))[None]
        self._keep(components.VISION, {"pixel_values": pixels}, {"patch_features": patches.numpy()})
        self._keep(components.PROJECTOR, {"patch_features": patches.numpy()}, {"image_embeddings": image.numpy()})
        self._keep(components.EMBED, {"input_ids": padded}, {"text_embeddings": words.numpy()})
        length = c.image_tokens + len(ids)
        logits, cache = network(network.sequence(image, torch.from_numpy(ids)))
        held = np.zeros((c.cache, c.row), np.float32)
        held[:length] = rows_of(cache)
        self._keep(
            components.PREFILL,
            {"text_embeddings": words.numpy(), "image_embeddings": image.numpy(),
             "last_position": np.array([length - 1], np.int32)},
            {"logits": logits.numpy()[None], "kv_prompt": held[:length].copy()},
        )  # fmt: skip
        tokens = [int(logits.argmax())]
        for position in range(length, length + c.action - 1):
            before = held.copy()
            logits, cache = network(network.embed(torch.tensor(tokens[-1:])), cache)
            held[position] = rows_of(cache)[-1]
            self._keep(
                components.DECODER,
                {"input_ids": np.array([tokens[-1:]], np.int32), "position": np.array([position], np.int32),
                 "attention_mask": (np.arange(c.cache) < position)[None].astype(np.float32), "kv_cache": before},
                {"logits": logits.numpy()[None], "kv_row": held[position : position + 1].copy()},
            )  # fmt: skip
            tokens.append(int(logits.argmax()))
        return Run(detokenize(tokens, c.vocabulary, c.bins)[None], self._samples, np.array(tokens, np.int64))

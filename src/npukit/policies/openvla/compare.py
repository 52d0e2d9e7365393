# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""OpenVLA's components on ONNX Runtime against the network in PyTorch, in float32, a layer in memory at a time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from npukit.errors import CheckFailed, Fault, MissingDependency
from npukit.policies.kinds import Array, ExportRequest, Probe
from npukit.policies.openvla import components
from npukit.policies.openvla.actions import detokenize
from npukit.policies.openvla.checkpoint import BOS, Facts
from npukit.policies.openvla.config import OpenVLAConfig
from npukit.policies.openvla.prompt import END
from npukit.policies.openvla.steps import CAMERA
from npukit.policies.parity import difference
from npukit.policies.pieces import Pieces
from npukit.policies.processing import ATTENTION, TOKENS

AGAINST = "the network in PyTorch float32"
# Largest error of an output as a share of its range, and least cosine. In float32 what is left is another order of
# sums. In float16 each op rounds to 2.8e-4 (root of the mean square), which over ten ops in each of 32 layers comes to
# 5e-3 of a result, a cosine of 0.99999; the rest is room for networks with a few large channels. What such rounding
# would hide (an epsilon, a form of GELU) shows in an export in float32, whose graphs are the same.
LIMITS: dict[str, tuple[float, float]] = {"float32": (1e-4, 0.999999), "float16": (0.1, 0.999)}


@dataclass
class Comparison:
    """Both sides of an export.

    Args:
        found: the checkpoint's network and weights.
        folder: of the components.
        request: of the export.
        whole: hold PyTorch's network as a whole, and run every step of the decoder; else one layer, and one step.

    Attributes:
        records: of each component's outputs, as `Exported.parity`.
        chunks: PyTorch's actions float32 [1, A] of each sample; none where not all steps are run.
    """

    found: Facts
    folder: Path
    request: ExportRequest
    whole: bool
    records: list[dict[str, Any]] = field(default_factory=list)
    chunks: list[Array] = field(default_factory=list)

    def run(self, probes: Sequence[Probe]) -> Comparison:
        """Compare on these inputs, or on a random one where there are none.

        Raises:
            CheckFailed: an output is not what the network computes; all that are not are listed.
            MissingDependency: torch is not installed.
        """
        need_torch()
        import torch

        from npukit.policies.openvla.model import OpenVLA

        if self.request.threads:
            torch.set_num_threads(self.request.threads)
        with torch.inference_mode():
            with self.request.stage("reference: weights"):
                self._network = OpenVLA(self.found.network, self.found.weights, whole=self.whole)
            for pixels, ids in [sample(probe) for probe in probes] or [random_sample(self.found.network)]:
                self._compare(pixels, ids)
        precision = self.request.precision
        share, cosine = LIMITS[precision]
        faults = [
            Fault(f"cosine {row['cosine']:.7f}, largest error {row['share']:.2g} of the range",
                  f"{row['component']}: {row['output']}")
            for row in self.records
            if row["cosine"] < cosine or row["share"] > share
        ]  # fmt: skip
        if faults:
            raise CheckFailed(f"components are not what PyTorch computes (cosine {cosine} and {share:g} are wanted in "
                              f"{precision})", faults=faults)  # fmt: skip
        return self

    def _compare(self, pixels: Array, ids: Array) -> None:
        c, network, stage = self.found.network, self._network, self.request.stage
        with stage(f"{components.VISION}: reference"):
            patches = network.patches(_tensor(pixels))
        features = self._check(components.VISION, {"pixel_values": pixels}, {"patch_features": patches.numpy()})
        with stage(f"{components.PROJECTOR}: reference"):
            image = network.project(patches)
        made = self._check(components.PROJECTOR, features, {"image_embeddings": image.numpy()})
        padded = np.full((1, c.prompt), c.pad_id, np.int32)
        padded[0, : len(ids)] = ids
        words = network.embed(_tensor(padded[0].astype(np.int64)))
        made |= self._check(components.EMBED, {"input_ids": padded}, {"text_embeddings": words.numpy()[None]})
        length = c.image_tokens + len(ids)
        with stage(f"{components.PREFILL}: reference"):
            logits, cache = network(network.sequence(image, _tensor(ids)))
        feeds = {**made, "last_position": np.array([length - 1], np.int32)}
        wanted = {"logits": logits.numpy()[None], "kv_prompt": rows_of(cache)}
        first = self._check(components.PREFILL, feeds, wanted)
        self._decode(length, logits, cache, first)

    def _decode(self, length: int, logits: Any, cache: Any, first: dict[str, Array]) -> None:
        """Steps of the decoder, fed with PyTorch's tokens and the cache that the components made."""
        c, steps = self.found.network, self.found.network.action - 1 if self.whole else 1
        held = np.zeros((c.cache, c.row), self.request.precision)
        held[: c.prefill] = first["kv_prompt"]
        held[length : c.prefill] = 0
        wanted, got = [int(logits.argmax())], [int(first["logits"].argmax())]
        for position in range(length, length + min(steps, c.action - 1)):
            with self.request.stage(f"{components.DECODER}: reference"):
                logits, cache = self._network(self._network.embed(_tensor(np.array(wanted[-1:]))), cache)
            feeds = {
                "input_ids": np.array([wanted[-1:]], np.int32), "position": np.array([position], np.int32),
                "attention_mask": (np.arange(c.cache) < position)[None].astype(held.dtype), "kv_cache": held,
            }  # fmt: skip
            made = self._check(components.DECODER, feeds,
                               {"logits": logits.numpy()[None], "kv_row": rows_of(cache)[-1:]})  # fmt: skip
            held[position] = made["kv_row"][0]
            wanted.append(int(logits.argmax()))
            got.append(int(made["logits"].argmax()))
        self.records.append({"component": "action", "output": "tokens", "against": AGAINST, "tokens": wanted,
                             "equal": sum(a == b for a, b in zip(wanted, got, strict=True)),
                             **difference(np.array(wanted), np.array(got))})  # fmt: skip
        if self.whole:
            self.chunks.append(detokenize(wanted, c.vocabulary, c.bins).astype(np.float32)[None])

    def _check(self, name: str, feeds: dict[str, Array], wanted: dict[str, Array]) -> dict[str, Array]:
        """Run a component; record how far its outputs are (of `wanted`, the rows that there are)."""
        dtype = np.dtype(self.request.precision)
        feeds = {key: array.astype(dtype) if array.dtype.kind == "f" else array for key, array in feeds.items()}
        with self.request.stage(f"{name}: ONNX Runtime"):
            made = Pieces(self.folder / f"{name}.onnx", self.request.threads).run(feeds)
        for key, array in wanted.items():
            self.records.append({"component": name, "output": key, "against": AGAINST,
                                 **difference(array, made[key][: len(array)])})  # fmt: skip
        return made


def need_torch() -> None:
    """Raise a MissingDependency where torch is not installed."""
    try:
        import torch  # noqa: F401
    except ImportError:
        raise MissingDependency(
            "comparing a policy with its source needs PyTorch",
            hint="pip install 'npukit[torch]', or leave it out with --no-verify",
        ) from None


def sample(probe: Probe) -> tuple[Array, Array]:
    """Pixels float32 [1, C, S, S] and the real ids int64 [T] of a probe."""
    ids = np.asarray(probe.inputs[TOKENS])[0][np.asarray(probe.inputs[ATTENTION])[0].astype(bool)]
    return np.asarray(probe.inputs[CAMERA], np.float32), ids.astype(np.int64)


def random_sample(c: OpenVLAConfig, seed: int = 0) -> tuple[Array, Array]:
    """As `sample`: pixels as of a normalized picture, a prompt of two thirds of its room."""
    rng = np.random.default_rng(seed)
    pixels = rng.uniform(-2, 2, (1, 3 * len(c.towers), c.image, c.image)).astype(np.float32)
    ids = rng.integers(3, c.vocabulary, 2 * c.prompt // 3)
    ids[0], ids[-1] = BOS, min(END, c.vocabulary - 1)
    return pixels, ids


def rows_of(cache: Sequence[tuple[Any, Any]]) -> Array:
    """Keys and values [heads, tokens, size] of each layer as the components hold them: [tokens, row]."""
    parts = [part.transpose(0, 1).reshape(part.shape[1], -1).numpy() for pair in cache for part in pair]
    return np.concatenate(parts, axis=1)


def _tensor(array: Array) -> Any:
    import torch

    return torch.from_numpy(np.ascontiguousarray(array))

# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""Convert the networks and compare what the backends compute with ONNX Runtime on the source."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx

import npukit
from networks.catalogue import Network, build, samples
from networks.statistics import Array, nearest_pair, run
from npukit.analysis.verify import Verification
from npukit.verbs.convert import ConvertResult

CHIP = "sm8650"


@dataclass(frozen=True)
class Made:
    """A network and an artifact of it.

    Attributes:
        network: which.
        size: "small" or "full".
        source: the ONNX file.
        artifact: the DLC or context binary.
        converted: what the conversion came to.
        seconds: that making the artifact took.
    """

    network: Network
    size: str
    source: Path
    artifact: Path
    converted: ConvertResult
    seconds: float


def liveliness(model: onnx.ModelProto | Path, runs: Sequence[Mapping[str, Array]]) -> dict[str, float]:
    """For each output, the largest cosine between what it is for two different inputs."""
    loaded = onnx.load(model) if isinstance(model, Path) else model
    found = [run(loaded, sample) for sample in runs]
    return {name: nearest_pair(np.stack([one[name].ravel().astype(np.float64) for one in found])) for name in found[0]}


def convert(network: Network, size: str, folder: Path, io_layout: str = "source") -> Made:
    """Build and convert one network, without verification; a source that is there already is used."""
    source, artifact = folder / f"{network.name}.{size}.onnx", folder / f"{network.name}.{size}.dlc"
    if not source.exists():
        build(network, size, source)
    start = time.perf_counter()
    symbols = dict(network.variant(size).symbols)
    result = npukit.convert(source, artifact, batch=1, symbols=symbols, io_layout=io_layout, verify=False)
    return Made(network, size, source, artifact, result, time.perf_counter() - start)


def compile_for_htp(made: Made, folder: Path) -> Made:
    """The context binary of a converted network, for CHIP."""
    path = folder / f"{made.network.name}.{made.size}.bin"
    start = time.perf_counter()
    npukit.compile(made.artifact, path, target=CHIP)
    return Made(made.network, made.size, made.source, path, made.converted, time.perf_counter() - start)


def write_samples(network: Network, size: str, count: int, folder: Path) -> tuple[tuple[str, Path], ...]:
    """Input files as `npukit.verify` takes them, one a sample."""
    paths = []
    for i, sample in enumerate(samples(network, size, count)):
        path = folder / f"{network.name}.{size}.{i}.npz"
        np.savez(path, **sample)  # type: ignore[arg-type]
        paths.append(("", path))
    return tuple(paths)


def verified(made: Made, count: int, backend: str) -> Verification:
    """The artifact against its source on `count` inputs."""
    inputs = write_samples(made.network, made.size, count, made.artifact.parent)
    outcome: Verification = npukit.verify(made.artifact, against=made.source, backend=backend, inputs=inputs)
    return outcome

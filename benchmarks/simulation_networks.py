# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""Quantized networks in the simulation and on the HTP emulator: both against the float source, on the same samples."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

import npukit
from benchmarks.simulation_run import close, emulate
from networks.catalogue import NETWORKS, build, samples
from npukit.artifacts.dlc import read
from npukit.errors import NpukitError
from npukit.qnn.graph import Array, Graph
from npukit.quantization.simulation import Simulation
from npukit.runtime.contract import from_native, gather, ports_of, to_native

Sample = dict[str, Array]
ROOT = Path(__file__).resolve().parents[1]
TARGET, ARCH = "sm8550", 73
PRECISIONS = {"W8A8": (8, 8), "W8A16": (8, 16)}  # the DLC writer of the wheel cannot write 4 bits per channel
_CALIBRATION, _TESTED, _DIGITS = 16, 32, 360


def sources(folder: Path) -> Iterator[tuple[str, Path, list[Sample], list[Sample], dict[str, int], Array | None]]:
    """Name, model, calibration and test samples, symbols, labels: digits, and the networks in their small size."""
    digits = ROOT / "examples/digits"
    with np.load(digits / "digits.npz") as data:
        seen = [{"image": (image[None, None] / 16).astype(np.float32)} for image in data["calibration"]]
        tested = [{"image": (image[None, None] / 16).astype(np.float32)} for image in data["images"][:_DIGITS]]
        labels = data["labels"][:_DIGITS]
    yield "digits", digits / "digits.onnx", seen, tested, {}, labels
    for name, network in NETWORKS.items():
        path = folder / f"{name}.onnx"
        build(network, "small", path)
        both = samples(network, "small", _CALIBRATION + _TESTED)
        symbols = dict(network.variant("small").symbols)
        yield f"{name} (small)", path, both[:_CALIBRATION], both[_CALIBRATION:], symbols, None


def measured() -> list[dict[str, Any]]:
    """A row a network and precision; a network that cannot be quantized so has its reason."""
    rows = []
    with tempfile.TemporaryDirectory(prefix="npukit-simulation-") as name:
        for network, path, seen, tested, symbols, labels in sources(Path(name)):
            for precision, (weights, activations) in PRECISIONS.items():
                artifact = Path(name, f"{path.stem}.{precision}.dlc")
                row: dict[str, Any] = {"network": network, "precision": precision}
                try:
                    made = npukit.quantize(
                        path, calibration=seen, output=artifact, target=(TARGET,), weights=weights,
                        activations=activations, batch=1, symbols=symbols, verify=False,
                    )  # fmt: skip
                    row |= {"ops": made.quantized.precisions, **_compared(path, artifact, tested, labels)}
                except NpukitError as error:
                    row["error"] = str(error)[:300]
                rows.append(row)
                sys.stderr.write(f"{row}\n")
    close()
    return rows


def _compared(source: Path, artifact: Path, tested: list[Sample], labels: Array | None) -> dict[str, Any]:
    model, stamp = read(artifact)
    assert stamp is not None
    graph = next(iter(model.graphs.values()))
    inputs, outputs = ports_of(stamp, graph, "inputs"), ports_of(stamp, graph, "outputs")
    simulation = Simulation(graph, "qdq", threads=1)
    true, ours, theirs, near, most = [], [], [], [], 0
    with npukit.Session(source, backend="ort", in_process=True) as session:
        wanted = [info.name for info in session.outputs]
        for sample in tested:
            true.append(session.run(sample)[wanted[0]])
    for sample in tested:
        native = to_native(inputs, gather(inputs, sample), [None] * len(inputs))
        feeds = {port.tensor: array for port, array in zip(inputs, native, strict=True)}
        mine, its = simulation.run(feeds), emulate(graph, feeds, ARCH)
        port = next(port for port in outputs if port.name == wanted[0])
        steps = _steps(graph, port.tensor, mine, its)
        near.append(float((steps <= 1).mean()))
        most = max(most, int(steps.max()))
        ours.append(from_native(port, mine[port.tensor]))
        theirs.append(from_native(port, its[port.tensor]))
    found = {"sqnr": _sqnr(true, ours), "emulator_sqnr": _sqnr(true, theirs)}
    found |= {"share": float(np.mean(near)), "most": most}
    if labels is not None:
        found["top1"] = _top1(ours, labels)
        found["emulator_top1"] = _top1(theirs, labels)
        found["float_top1"] = _top1(true, labels)
    return found


def _steps(graph: Graph, name: str, mine: dict[str, Array], its: dict[str, Array]) -> Array:
    tensor = next(t for t in graph.outputs if t.name == name)
    if not tensor.dtype.is_quantized:
        return np.zeros(1, np.int64)
    return np.asarray(np.abs(mine[name].astype(np.int64) - its[name].astype(np.int64)))


def _sqnr(true: list[Array], results: list[Array]) -> float:
    wanted, got = (np.concatenate([a.ravel().astype(np.float64) for a in arrays]) for arrays in (true, results))
    noise = float(((got - wanted) ** 2).sum())
    return round(10 * float(np.log10(float((wanted**2).sum()) / noise)), 2) if noise else 200.0


def _top1(results: list[Array], labels: Array) -> float:
    return float(np.mean([int(r.argmax()) == label for r, label in zip(results, labels, strict=True)]))

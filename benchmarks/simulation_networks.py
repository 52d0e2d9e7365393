# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""Quantized networks in the simulation and on the HTP emulator: both against the float source, on the same samples.

A code that differs where a network's input does not come in, as in a class token's row, moves the error of every
sample alike: no number of samples averages that out. So each network is quantized again and again, with other samples
to calibrate with, which moves all ranges a little, and the figures are means over those, with 95 % intervals.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import npukit
from benchmarks.simulation_run import close, emulated
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
_CALIBRATION, _TESTED, _DIGITS = 16, 64, 360
FEWEST, MOST = 4, 16  # calibrations: more until the interval is as narrow as WANTED
WANTED = 0.25  # dB to either side
# Student's t for two-sided 95 %, by degrees of freedom.
_T = {3: 3.182, 4: 2.776, 5: 2.571, 6: 2.447, 7: 2.365, 8: 2.306, 9: 2.262, 10: 2.228, 11: 2.201, 12: 2.179, 13: 2.160,
      14: 2.145, 15: 2.131}  # fmt: skip


@dataclass
class Source:
    """A network.

    Attributes:
        name: for the table.
        path: the float model.
        draw: samples to calibrate with and to judge by, of a number.
        symbols: of its shapes.
        labels: of the samples to judge by, where the network was trained.
        classifier: its first output is of classes.
    """

    name: str
    path: Path
    draw: Callable[[int], tuple[list[Sample], list[Sample]]]
    symbols: dict[str, int]
    labels: Array | None = None
    classifier: bool = False


def sources(folder: Path) -> Iterator[Source]:
    """Digits, and the networks in their small size."""
    digits = ROOT / "examples/digits"
    with np.load(digits / "digits.npz") as data:
        seen, tested = (
            [{"image": (image[None, None] / 16).astype(np.float32)} for image in data[key]]
            for key in ("calibration", "images")
        )
        labels = data["labels"][:_DIGITS]

    def drawn(number: int) -> tuple[list[Sample], list[Sample]]:
        chosen = np.random.default_rng(number).choice(len(seen), len(seen) // 2, replace=False)
        return [seen[i] for i in chosen], tested[:_DIGITS]

    yield Source("digits", digits / "digits.onnx", drawn, {}, labels, classifier=True)
    for name, network in NETWORKS.items():
        path = folder / f"{name}.onnx"
        build(network, "small", path)

        def made(number: int, network: Any = network) -> tuple[list[Sample], list[Sample]]:
            both = samples(network, "small", _CALIBRATION + _TESTED, seed=100 + number)
            return both[:_CALIBRATION], both[_CALIBRATION:]

        symbols = dict(network.variant("small").symbols)
        yield Source(f"{name} (small)", path, made, symbols, classifier=bool(network.classifier))


def measured() -> list[dict[str, Any]]:
    """A row a network and precision; a network that cannot be quantized so has its reason."""
    rows = []
    with tempfile.TemporaryDirectory(prefix="npukit-simulation-") as name:
        for source in sources(Path(name)):
            for precision in PRECISIONS:
                row: dict[str, Any] = {"network": source.name, "precision": precision}
                try:
                    row |= _row(source, precision, Path(name, f"{source.path.stem}.{precision}.dlc"))
                except NpukitError as error:
                    row["error"] = str(error)[:300]
                rows.append(row)
                sys.stderr.write(f"{row}\n")
    close()
    return rows


def _row(source: Source, precision: str, artifact: Path) -> dict[str, Any]:
    """Means over calibrations; `apart` and `points` are of simulation less emulator, with their 95 % intervals."""
    weights, activations = PRECISIONS[precision]
    found: list[dict[str, float]] = []
    while len(found) < FEWEST or (len(found) < MOST and interval([f["apart"] for f in found]) > WANTED):
        seen, tested = source.draw(len(found))
        close()  # `quantize` opens an emulator of its own, and two at once answer for one chip
        npukit.quantize(
            source.path, calibration=seen, output=artifact, target=(TARGET,), weights=weights, activations=activations,
            batch=1, symbols=source.symbols, verify=False, in_process=True,
        )  # fmt: skip
        found.append(_compared(source, artifact, tested))
    row: dict[str, Any] = {"calibrations": len(found), "samples": len(tested), "labels": source.labels is not None}
    for key in found[0]:
        values = [f[key] for f in found]
        row[key] = max(values) if key == "most" else float(np.mean(values))
    for key in ("apart", "points"):
        if key in row:
            row[f"{key}_interval"] = interval([f[key] for f in found])
    row["apart_deviation"] = float(np.std([f["apart"] for f in found], ddof=1))
    return row


def interval(values: Sequence[float]) -> float:
    """Half the width of the 95 % interval of a mean (Student's t)."""
    return float(_T[len(values) - 1] * np.std(values, ddof=1) / np.sqrt(len(values)))


def _compared(source: Source, artifact: Path, tested: list[Sample]) -> dict[str, float]:
    model, stamp = read(artifact)
    assert stamp is not None
    graph = next(iter(model.graphs.values()))
    inputs, outputs = ports_of(stamp, graph, "inputs"), ports_of(stamp, graph, "outputs")
    simulation = Simulation(graph, "qdq", threads=1)
    ours: list[Array] = []
    theirs: list[Array] = []
    near, most = [], 0
    with npukit.Session(source.path, backend="ort", in_process=True) as session:
        wanted = session.outputs[0].name
        true = [session.run(sample)[wanted] for sample in tested]
    port = next(port for port in outputs if port.name == wanted)
    with emulated(graph, ARCH) as emulator:
        for sample in tested:
            native = to_native(inputs, gather(inputs, sample), [None] * len(inputs))
            feeds = {port.tensor: array for port, array in zip(inputs, native, strict=True)}
            mine, its = simulation.run(feeds), emulator(feeds)
            steps = _steps(graph, port.tensor, mine, its)
            near.append(float((steps <= 1).mean()))
            most = max(most, int(steps.max()))
            ours.append(from_native(port, mine[port.tensor]))
            theirs.append(from_native(port, its[port.tensor]))
    found = {"sqnr": _sqnr(true, ours), "emulator_sqnr": _sqnr(true, theirs)}
    found["apart"] = found["sqnr"] - found["emulator_sqnr"]
    found |= {"share": float(np.mean(near)), "most": most}
    if source.classifier:
        labels = [int(r.argmax()) for r in true] if source.labels is None else source.labels
        found["top1"], found["emulator_top1"], found["float_top1"] = (_top1(r, labels) for r in (ours, theirs, true))
        found["points"] = found["top1"] - found["emulator_top1"]
    return found


def _steps(graph: Graph, name: str, mine: dict[str, Array], its: dict[str, Array]) -> Array:
    tensor = next(t for t in graph.outputs if t.name == name)
    if not tensor.dtype.is_quantized:
        return np.zeros(1, np.int64)
    return np.asarray(np.abs(mine[name].astype(np.int64) - its[name].astype(np.int64)))


def _sqnr(true: list[Array], results: list[Array]) -> float:
    wanted, got = (np.concatenate([a.ravel().astype(np.float64) for a in arrays]) for arrays in (true, results))
    noise = float(((got - wanted) ** 2).sum())
    return 10 * float(np.log10(float((wanted**2).sum()) / noise)) if noise else 200.0


def _top1(results: list[Array], labels: Sequence[int] | Array) -> float:
    """Percent of the samples whose largest output is that of the label."""
    return 100 * float(np.mean([int(r.argmax()) == label for r, label in zip(results, labels, strict=True)]))

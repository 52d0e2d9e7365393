# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""Weights by the error of their layer's output, against other ways to it: `python -m benchmarks.quantization_rounding`.

`adaround` against AdaRound's own relaxation (arXiv 2004.10568) on the same objective, layer by layer; scales and codes
by what the quantized layers before give (sequential) against inputs of the float network; and against AIMET's SeqMSE
and AdaRound on the digits CNN, with `.venv-aimet` as `python -m benchmarks.quantization_peers` makes it.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import pages
from benchmarks.quantization_peers import PEERS, ROOT, _of_qdq
from benchmarks.quantization_techniques import CASES, DIGITS, Case, _calibration, _moments, _outputs, _sqnr
from npukit.qnn.graph import Array, DType, Graph, Op
from npukit.quantization.assign import Plan, assign
from npukit.quantization.calibrated import OUTPUT_MSE, Calibrated, Scheme
from npukit.quantization.ranges import reals
from npukit.quantization.roles import weight_axis
from npukit.quantization.rounding import Geometry, Moments, SecondMoments, grids, loss, round_weights
from npukit.quantization.simulation import Simulation, native_feeds
from npukit.quantization.weights import quantize_weights
from npukit.raising.encodings import code_range

NETWORKS = ("digits", "vit_b16")
_INT8 = DType.SFIXED_POINT_8
_REGULARIZERS = (3.0, 30.0)  # times the error per weight of nearest rounding; of 0.03 to 300 the best two


# ---------------------------------------------------------------- AdaRound's relaxation


def relaxed(
    floats: Array, steps: Array, moment: Array, limits: tuple[int, int], iterations: int, weight: float
) -> Array:
    """Codes by AdaRound's soft rounding, with the paper's settings; all arrays [groups, out, in].

    Rectified sigmoid (1.1, -0.1), Adam with a rate of 0.01, beta from 20 to 2 after a fifth of the iterations without
    regularizer. The loss is (w - q) H (w - q)^T instead of one over batches of samples: its expectation.

    Args:
        floats: weights.
        steps: what a code is worth.
        moment: H, [groups, in, in].
        limits: lowest and highest code.
        iterations: of gradient descent.
        weight: of the regularizer.
    """
    top, bottom = 1.1, -0.1
    down = np.floor(floats / steps)
    rest = np.clip(floats / steps - down, 1e-4, 1 - 1e-4)
    v = -np.log((top - bottom) / (rest - bottom) - 1)
    first, second = np.zeros_like(v), np.zeros_like(v)
    for i in range(iterations):
        sigmoid = 1 / (1 + np.exp(-v))
        raw = sigmoid * (top - bottom) + bottom
        up = np.clip(raw, 0, 1)
        codes = np.clip(down + up, *limits)
        inside = (down + up >= limits[0]) & (down + up <= limits[1])
        slope = -2 * ((floats - codes * steps) @ moment) * steps * inside
        if (done := (i / iterations - 0.2) / 0.8) >= 0:
            beta = 2 + 9 * (1 + np.cos(done * np.pi))
            far = 2 * up - 1
            slope -= weight * 2 * beta * np.abs(far) ** (beta - 1) * np.sign(far)
        slope *= ((raw > 0) & (raw < 1)) * (top - bottom) * sigmoid * (1 - sigmoid)
        first, second = 0.9 * first + 0.1 * slope, 0.999 * second + 0.001 * slope**2
        v -= 0.01 * (first / (1 - 0.9 ** (i + 1))) / (np.sqrt(second / (1 - 0.999 ** (i + 1))) + 1e-8)
    up = np.clip((top - bottom) / (1 + np.exp(-v)) + bottom, 0, 1)
    found: Array = np.clip(down + (up >= 0.5), *limits)
    return found


def layer_objectives(
    op: Op, seen: SecondMoments, unseen: SecondMoments, iterations: Sequence[int]
) -> dict[str, tuple[float, float, float]]:
    """How much less the error of a 4-bit layer is than with nearest rounding, by way.

    dB on the calibration samples (what is minimized), dB on others, seconds.
    """
    assert op.inputs[1] is not None
    weight = np.asarray(op.inputs[1].data)
    near, encoding = quantize_weights(weight, 4, axis=weight_axis(op), method="mse")
    floats, steps = grids(seen.geometry, weight, encoding, _INT8)
    limits = code_range(_INT8, encoding)
    inner, outer = (moments.matrices(centred=True)[0] for moments in (seen, unseen))

    def errors(codes: Array) -> Array:
        missed = floats - codes * steps
        return np.array([loss(missed, moment).sum() for moment in (inner, outer)])

    def rounded(method: str) -> Array:
        return seen.geometry.matrix(round_weights(op, weight, encoding, seen, centred=True, method=method))

    before = errors(seen.geometry.matrix(near))
    unit = float(before[0]) / weight.size
    ways: dict[str, Callable[[], Array]] = {
        "gptq": partial(rounded, "gptq"),
        "adaround, descent": partial(rounded, "adaround"),
    }
    for count in iterations:
        for share in _REGULARIZERS:
            ways[f"relaxation, {count:,} steps, regularizer {share:g}"] = partial(
                relaxed, floats, steps, inner, limits, count, share * unit
            )
    found = {}
    for name, way in ways.items():
        begin = time.perf_counter()
        codes = way()
        seconds = time.perf_counter() - begin
        gain = 10 * np.log10(before / errors(codes))
        found[name] = float(gain[0]), float(gain[1]), seconds
    return found


def objectives(case: Case, iterations: Sequence[int], most: int) -> list[tuple[Any, ...]]:
    """Rows of the table, of at most `most` layers of a network, evenly picked."""
    seen, unseen = (_moments(case.graph, data).by_op for data in (case.calibration, case.held_out))
    ops = [op for op in case.graph.ops if op.name in seen]
    ops = ops[:: -(-len(ops) // most)]
    layers = [layer_objectives(op, seen[op.name], unseen[op.name], iterations) for op in ops]
    rows = []
    for name in layers[0]:
        inner, outer, seconds = np.array([layer[name] for layer in layers]).T
        rows.append((case.title, len(ops), name, f"{inner.mean():.2f}", f"{outer.mean():.2f}", f"{seconds.sum():.2f}"))
    return rows


# ---------------------------------------------------------------- sequential


class Quantizer:
    """A network that is calibrated once, and quantized with one scheme after the other."""

    def __init__(self, case: Case) -> None:
        self.case = case
        names = [op.inputs[0].name for op in case.graph.ops if weight_axis(op) is not None and op.inputs[0] is not None]
        self.moments = Moments(case.graph)
        self.seen = _calibration(case.graph, case.calibration, names, self.moments)
        self.floats = dict(self.moments.by_op)
        self.reference = _outputs(case.graph, case.held_out, "float")

    def sqnr(self, scheme: Scheme, weights: int, activations: int, *, sequential: bool = False) -> float:
        """Of the worst output in dB; `sequential`: each layer's moments are of what the quantized layers give it."""
        plan = Plan(weights=weights, activations=activations)
        self.moments.by_op = dict(self.floats)
        for name in self.floats if sequential else ():
            # The layers before have their own moments already; those behind have no say.
            self.moments.by_op[name] = self._of_quantized(name, scheme, plan)
        graph = self._assigned(scheme, plan)
        self.moments.by_op = dict(self.floats)
        return _sqnr(self.reference, _outputs(graph, self.case.held_out, "qdq"))

    def _assigned(self, scheme: Scheme, plan: Plan) -> Graph:
        encodings = Calibrated(self.seen, scheme)
        return assign(self.case.graph, plan, encodings, self.case.legal, self.seen.groups).graph

    def _of_quantized(self, name: str, scheme: Scheme, plan: Plan) -> SecondMoments:
        op = next(op for op in self.case.graph.ops if op.name == name)
        geometry, source = Geometry.of(op), op.inputs[0]
        assert geometry is not None
        assert source is not None
        graph = self._assigned(scheme, plan)
        tensor = next(t for t in graph.tensors() if t.name == source.name)
        moments, simulation = SecondMoments(geometry), Simulation(graph, "qdq", fetch=[tensor])
        for sample in self.case.calibration:
            feeds = native_feeds(graph, sample, "qdq")
            array = {**feeds, **simulation.run(feeds)}[tensor.name]
            codes = tensor.encoding is not None and array.dtype.kind in "iu"
            moments.update(reals(array, tensor.encoding) if codes else array)  # type: ignore[arg-type]
        return moments


def sequential(quantizer: Quantizer) -> list[tuple[Any, ...]]:
    """Float inputs against those of the quantized layers before: rows of the table."""
    rows = []
    for method, rounding in ((OUTPUT_MSE, "nearest"), ("mse", "gptq"), ("mse", "adaround")):
        scheme = Scheme(weight_method=method, rounding=rounding)
        found = [quantizer.sqnr(scheme, 4, 8, sequential=way) for way in (False, True)]
        rows.append((quantizer.case.title, f"{method}, {rounding}", *(f"{value:.1f}" for value in found)))
    return rows


# ---------------------------------------------------------------- AIMET


def aimet(quantizer: Quantizer, folder: Path) -> list[tuple[Any, ...]]:
    """The digits CNN by AIMET and by npukit: rows of the table. Activations min-max, no bias correction in either."""
    python = PEERS["aimet"].python
    if not (python.parent / ".ready").exists():
        raise SystemExit(f"{python} is not there: python -m benchmarks.quantization_peers digits --tools aimet")
    case = quantizer.case
    (port,) = case.calibration[0]
    arrays: dict[str, Any] = {port: np.stack([sample[port] for sample in case.calibration])}
    np.savez(folder / "calibration.npz", **arrays)
    ours = {
        "min-max, nearest": ("min-max", "nearest"),
        "output-mse, nearest": (OUTPUT_MSE, "nearest"),
        "min-max, adaround": ("min-max", "adaround"),
        "output-mse, adaround": (OUTPUT_MSE, "adaround"),
    }
    theirs: dict[str, dict[str, Any]] = {
        "min-max": {"recipe": "default"},
        "SeqMSE": {"recipe": "seqmse"},
        "AdaRound, 500 steps": {"recipe": "adaround", "iterations": 500},
        "AdaRound, 10,000 steps": {"recipe": "adaround", "iterations": 10_000},
    }
    widths = ((4, 16), (8, 8))
    rows = []
    for name, (method, rounding) in ours.items():
        begin = time.perf_counter()
        scheme = Scheme("min-max", method, rounding=rounding, bias_correction=False)
        found = [quantizer.sqnr(scheme, *bits) for bits in widths]
        seconds = (time.perf_counter() - begin) / len(widths)
        rows.append(("npukit", name, *(f"{value:.1f}" for value in found), f"{seconds:.1f}"))
    for name, how in theirs.items():
        found, spent = [], 0.0
        for weights, activations in widths:
            value, seconds = _aimet(quantizer, folder, {**how, "weights": weights, "activations": activations})
            found.append(value)
            spent += seconds / len(widths)
        rows.append(("AIMET", name, *(f"{value:.1f}" for value in found), f"{spent:.1f}"))
    return rows


def _aimet(quantizer: Quantizer, folder: Path, how: dict[str, Any]) -> tuple[float, float]:
    paths = {"calibration": folder / "calibration.npz", "output": folder / "q.onnx", "result": folder / "result.json"}
    job = {"model": DIGITS / "digits.onnx", **paths}
    (folder / "job.json").write_text(json.dumps({**{key: str(path) for key, path in job.items()}, **how}))
    command = [str(PEERS["aimet"].python), str(ROOT / "benchmarks" / PEERS["aimet"].script), str(folder / "job.json")]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"AIMET failed at {how}: {done.stderr[-500:]}")
    outputs, _ = _of_qdq(paths["output"], [dict(sample) for sample in quantizer.case.held_out])
    reference = quantizer.reference
    found = [{name: array[i] for name, array in outputs.items()} for i in range(len(reference))]
    shaped = [{n: np.reshape(a, reference[i][n].shape) for n, a in one.items()} for i, one in enumerate(found)]
    return _sqnr(reference, shaped), float(json.loads(paths["result"].read_text())["seconds"])


PAGE = """# Weights by the error of their layer's output

The error of a layer's output is (w - q) H (w - q)^T for each channel, H = E[x x^T] of its inputs. `--rounding gptq` and
`adaround` choose codes by it, `--weight-method output-mse` scales. How near that comes to AdaRound (arXiv 2004.10568)
and SeqMSE as their authors have them. Networks are those of
[quantization-techniques.md](quantization-techniques.md).

## AdaRound's objective: descent against relaxation

4-bit weights, scales of least squared error, bias corrected: how much less the error is than with nearest rounding, dB,
mean over the layers; on the calibration samples, which is what all of them minimize, and on others; seconds for all
these layers. *Descent* is what npukit does: each code in turn, from the better of nearest and GPTQ, until none moves.
*Relaxation* is the paper's soft rounding on the same H, with its settings but for the weight of the regularizer, which
is in units of the error per weight of nearest rounding: the best two of 0.03 to 300.

{objectives}

## Sequential

SeqMSE takes a layer's inputs as the quantized layers before it give them. W4A8, SQNR in dB on held-out samples: H of
the float network, as npukit does it, and H gathered anew for each layer with all before it quantized.

{sequential}

## Against AIMET

The digits CNN, trained; 128 calibration samples, SQNR in dB on 256 others. Activations min-max in both tools, no bias
correction, no smoothing, no equalization. AIMET ({version}): onnxsim, htp_v73_per_channel_linear, min_max,
SeqMSE of 20 candidates (its default; of AdaRound 10,000 steps are); judged by the models that it exports. npukit's
`adaround` tries four scales a channel at 4 bits, AIMET's keeps the one it has. Seconds of one width; npukit's hold the
simulation of the held-out samples and leave out the calibration pass, {pass_s:.1f} s.

{aimet}

{machine}.
Written by `python -m benchmarks.quantization_rounding --markdown FILE` in {seconds:.0f} s.
"""


def main(arguments: list[str] | None = None) -> int:
    """Measure, print, write the page."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.quantization_rounding", description=__doc__)
    parser.add_argument("--networks", nargs="*", choices=CASES, default=NETWORKS, metavar="NAME", help="of objectives")
    parser.add_argument("--iterations", type=int, nargs="*", default=[10_000], help="of the relaxation")
    parser.add_argument("--layers", type=int, default=3, help="of a network, for the objectives [3]")
    parser.add_argument("--folder", type=Path, help="keep the models here")
    parser.add_argument("--markdown", type=Path, help="write the page to this file")
    options = parser.parse_args(arguments)
    start = time.monotonic()
    tables: dict[str, list[tuple[Any, ...]]] = {"objectives": [], "sequential": [], "aimet": []}
    pass_s = 0.0
    with tempfile.TemporaryDirectory() as temporary, contextlib.ExitStack() as stack:
        for name in options.networks:
            case = CASES[name](options.folder or Path(temporary), stack)
            tables["objectives"] += objectives(case, options.iterations, options.layers)
            begin = time.monotonic()
            quantizer = Quantizer(case)
            if name == "digits":
                pass_s = time.monotonic() - begin
                tables["aimet"] = aimet(quantizer, Path(temporary))
            tables["sequential"] += sequential(quantizer)
    heads = {
        "objectives": ("network", "layers", "way", "calibration, dB", "held out, dB", "seconds"),
        "sequential": ("network", "weights", "inputs of the float network", "sequential"),
        "aimet": ("tool", "weights", "W4A16", "W8A8", "seconds"),
    }
    texts = {key: "\n".join(pages.table(heads[key], rows)) for key, rows in tables.items()}
    sys.stdout.write("\n\n".join(texts.values()) + "\n")
    if options.markdown is not None:
        facts = pages.machine("onnxruntime")
        machine = f"{facts['date']}; {facts['cpu']}, {facts['cores']} cores; load {facts['load_before']:.0f}"
        seconds = time.monotonic() - start
        version = PEERS["aimet"].packages[0]
        page = PAGE.format(**texts, version=version, machine=machine, seconds=seconds, pass_s=pass_s)
        options.markdown.write_text(page)
    return 0


if __name__ == "__main__":
    sys.exit(main())

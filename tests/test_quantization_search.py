# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""The accuracy search on problems whose answer is known, and beside an exhaustive greedy one."""

from __future__ import annotations

import contextlib
import subprocess
from pathlib import Path

import numpy as np
import pytest

from benchmarks import quantization_search
from benchmarks.quantization_techniques import CASES
from npukit.errors import NpukitError
from npukit.quantization.metrics import METRICS, metric
from npukit.quantization.search import Found, Levels, Point, Unit, search
from npukit.quantization.simulation import Simulation, native_feeds, real_outputs
from npukit.verbs.options import accuracy_target


def problem(
    count: int, needed: dict[str, int], *, noise: dict[str, float] | None = None, target: float = 1.0, budget: int = 40
) -> Found:
    """`count` units of three levels; the metric is 1 where each of `needed` has its level, else below."""
    names = [f"u{i}" for i in range(count)]
    units = [Unit(n, "activation", (8, 16, 0), (noise or {}).get(n, float(n in needed)), 100.0) for n in names]

    def evaluate(levels: Levels) -> Point:
        met = sum(levels.get(name, 0) >= level for name, level in needed.items())
        return Point(dict(levels), met / len(needed), 1000 + 100 * sum(levels.values()), 10)

    return search(units, evaluate, target, budget)


def test_what_is_good_already_costs_one_evaluation() -> None:
    found = problem(10, {"u0": 0})
    assert (found.reached, len(found.tried), found.best.levels) == (True, 1, {})


@pytest.mark.parametrize("count", [2, 10, 100, 500])
def test_the_units_that_matter_are_found(count: int) -> None:
    found = problem(count, {"u0": 1, f"u{count - 1}": 1})
    assert found.reached
    assert found.best.levels == {"u0": 1, f"u{count - 1}": 1}
    assert len(found.tried) <= 40


def test_an_order_that_misleads_is_pruned() -> None:
    noise = {f"u{i}": float(i) for i in range(32)}
    found = problem(32, {"u28": 1, "u30": 1}, noise=noise)
    assert found.best.levels == {"u28": 1, "u30": 1}


def test_where_one_level_is_not_enough_the_next_is_tried() -> None:
    found = problem(8, {"u1": 2, "u2": 1})
    assert found.reached
    assert found.best.levels["u1"] == 2
    assert set(found.best.levels) == {"u1", "u2"}


def test_the_budget_is_kept_and_the_best_so_far_given() -> None:
    found = problem(200, {f"u{i}": 1 for i in range(0, 200, 3)}, budget=9)
    assert len(found.tried) <= 9
    assert found.reached
    assert found.best.metric == 1.0


def test_a_target_out_of_reach_gives_the_most_accurate_plan() -> None:
    found = problem(6, {"u0": 1}, target=2.0)
    assert not found.reached
    assert found.best.metric == 1.0
    assert "not reached" in found.to_text()


def test_pareto_plans_are_not_beaten() -> None:
    found = problem(20, {"u3": 1, "u4": 1})
    rows = found.pareto()
    assert [p.traffic for p in rows] == sorted(p.traffic for p in rows)
    assert [p.metric for p in rows] == sorted(p.metric for p in rows)
    assert found.to_json()["best"]["promoted"] == {"u3": 1, "u4": 1}


def test_metrics_on_small_arrays() -> None:
    exact = [{"y": np.array([[3.0, 1.0, 2.0]])}, {"y": np.array([[0.0, 5.0, 4.0]])}]
    near = [{"y": np.array([[3.0, 1.0, 2.0]])}, {"y": np.array([[0.0, 4.0, 5.0]])}]
    assert METRICS["cosine"](exact, exact) == pytest.approx(1.0)
    assert METRICS["cosine"](near, exact) == pytest.approx((1 + 40 / 41) / 2)
    assert METRICS["sqnr"](exact, exact) == 200.0
    assert METRICS["sqnr"](near, exact) == pytest.approx(10 * np.log10(55 / 2))
    assert METRICS["top1"](near, exact) == 0.5
    assert METRICS["top5"](near, exact) == 1.0


def test_targets_are_read() -> None:
    assert accuracy_target("cosine>=0.995") == ("cosine", 0.995)
    assert accuracy_target("my.module:score >= 3") == ("my.module:score", 3.0)
    for text, sentence in (("cosin>=1", "cosine"), ("cosine=1", "METRIC>=VALUE"), ("top1>=x", "METRIC>=VALUE")):
        with pytest.raises(NpukitError, match=sentence):
            accuracy_target(text)
    with pytest.raises(NpukitError, match="cannot be imported"):
        metric("no_such_module:score")


def test_exhaustive_greedy_takes_what_gains_most_per_byte() -> None:
    gains, costs = {"a": 0.3, "b": 0.2, "c": 0.0}, {"a": 300, "b": 100, "c": 10}
    units = [Unit(name, "weight", (8, 16), 0.0, 1.0) for name in gains]
    kept: list[Levels] = []

    def trial(levels: Levels) -> Point:
        return Point(dict(levels), sum(gains[n] for n in levels), 1000 + sum(costs[n] for n in levels), 0)

    found = quantization_search.greedy(units, trial, 0.45, 60, lambda levels: kept.append(dict(levels)))
    assert found.reached
    assert [set(point.levels) for point in found.tried] == [set(), {"b"}, {"a", "b"}]
    assert kept == [{}, {"b": 1}]
    unreached = quantization_search.greedy(units, trial, 0.9, 60)
    assert not unreached.reached
    assert set(unreached.best.levels) == {"a", "b", "c"}
    assert len(quantization_search.greedy(units, trial, 0.9, -1).tried) == 1, "its time is up"


@pytest.mark.native
def test_plans_one_after_another_give_what_each_gives_alone() -> None:
    with contextlib.ExitStack() as stack:
        case = CASES["digits"](Path(), stack)
        case.held_out = case.held_out[:3]
        trials = quantization_search.Trials(quantization_search.Task(case, METRICS["sqnr"], 200.0, ""))
        names = [unit.name for unit in trials.units]
        for levels in ({}, {names[0]: 1}, {names[2]: 2}, {names[-1]: 1, names[1]: 1}, dict.fromkeys(names, 1)):
            graph = trials.assigned(levels)
            simulation = Simulation(graph, "qdq")
            feeds = [native_feeds(graph, sample, "qdq") for sample in case.held_out]
            wanted = METRICS["sqnr"]([real_outputs(graph, simulation.run(feed)) for feed in feeds], trials.references)
            assert trials(levels).metric == pytest.approx(wanted, abs=1e-3)
            trials.keep(levels)
            assert trials(levels).metric == pytest.approx(wanted, abs=1e-3)


@pytest.mark.slow
@pytest.mark.native
@pytest.mark.parametrize("name", list(quantization_search.TASKS))
def test_the_search_is_near_exhaustive_greedy(name: str, tmp_path: Path) -> None:
    """Processor time: the encoder 300 s (3,800 plans), MobileNetV2 80 s (1,800 plans)."""
    try:
        found = quantization_search.compared(name, tmp_path)
    except subprocess.CalledProcessError:
        pytest.skip("the packages cannot be had here")
    assert found["greedy"]["reached"]
    assert found["search"]["reached"]
    assert found["search"]["metric"] >= found["target"]
    assert found["search"]["plans"] <= quantization_search.BUDGET
    more = quantization_search.over(found)
    assert more is not None
    assert more <= quantization_search.GOAL

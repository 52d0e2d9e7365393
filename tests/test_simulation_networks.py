# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""The table of networks in simulation and emulator: its intervals, and what it says of a goal."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks import simulation_run
from benchmarks.simulation_networks import MOST, _row, interval, sources
from benchmarks.simulation_page import _networks


def test_intervals_are_students() -> None:
    # R: t.test(1:4)$conf.int is 0.4457397 to 4.5542603.
    assert interval([1.0, 2.0, 3.0, 4.0]) == pytest.approx(4.5542603 - 2.5, abs=1e-3)
    assert interval([0.5] * MOST) == 0


def test_intervals_hold_the_mean_as_often_as_they_say() -> None:
    random = np.random.default_rng(0)
    inside = [abs(np.mean(v)) <= interval(v) for v in random.standard_normal((4000, 5))]
    assert np.mean(inside) == pytest.approx(0.95, abs=0.015)


def test_a_missed_goal_is_named() -> None:
    row: dict[str, Any] = {
        "network": "n", "precision": "W8A8", "calibrations": 4, "samples": 64, "labels": False, "sqnr": 20.0,
        "emulator_sqnr": 20.6, "apart": -0.6, "apart_interval": 0.1, "apart_deviation": 0.2, "share": 0.5, "most": 3,
    }  # fmt: skip
    other = {**row, "apart": 0.5, "top1": 90.0, "emulator_top1": 91.0, "points": -1.0, "points_interval": 2.0}
    first, second, third = [line for line in _networks([row, other, {**row, "error": "no\nway"}]) if "| n |" in line]
    assert "-0.60 ± 0.10 (missed)" in first
    assert "+0.50 ± 0.10 |" in second
    assert "90.0, 91.0 | -1.0 ± 2.0" in second
    assert "not run: no" in third


@pytest.mark.native
@pytest.mark.slow
def test_digits_are_alike(tmp_path: Path) -> None:
    """20 s."""
    try:
        row = _row(next(sources(tmp_path)), "W8A8", tmp_path / "digits.dlc")
    finally:
        simulation_run.close()
    assert abs(row["apart"]) <= 0.2
    assert abs(row["points"]) <= 0.5
    assert row["top1"] > 97

# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""The page of the closed loop: what it says of episodes and errors that are made up; nothing is played."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("mujoco")

from benchmarks import closed_loop  # noqa: E402
from npukit.sim import evaluate  # noqa: E402
from npukit.sim.episode import Episode  # noqa: E402


def _played(folder: Path, name: str, *successes: bool) -> None:
    path = folder / f"episodes-{name}" / evaluate.EPISODES
    path.parent.mkdir()
    made = [
        Episode("light", "reach_red", "reach", "reach", i, i, success, 9, "success", 1.0, 0.5, "0" * 16)
        for i, success in enumerate(successes)
    ]
    path.write_text("".join(f"{json.dumps(dataclasses.asdict(one))}\n" for one in made))


def _judged(name: str, error: float) -> closed_loop.Judged:
    rng = np.random.default_rng(0)
    want = rng.uniform(-1, 1, (40, 6, 7)).astype(np.float32)
    want[..., 3] = 0  # a number that never changes
    return closed_loop.judge(name, want, want + np.float32(error))


def test_the_page(tmp_path: Path) -> None:
    _played(tmp_path, "torch", True, True, True)
    _played(tmp_path, "ort-int8", True, False, True)
    judged = [_judged("ort-int8", 0.002), _judged("w8a16", 0.01), _judged("w8a8", 0.04), _judged("float16-head", 0.005)]
    page = closed_loop.markdown(tmp_path, ["torch", "ort-int8"], judged)
    assert "| 8-bit weights, ONNX Runtime | 2 of 3 |" in page
    assert ", 1 of 3 |" in page  # discordant
    assert "On 40 recorded observations" in page
    assert "| ort-int8 | int8 |" in page
    assert "| side | along x | along y | along z | about x | about y | about z | gripper |" in page
    assert "| w8a16 | 0.50" in page  # 0.01 of a range of 2
    assert "`--precision w8a16` is the one to begin with" in page
    assert "`--precision action_head=float16` beside it" in page
    assert "50 % of the error." in page
    assert "too easy" not in page
    assert page.endswith(".\n")


def test_where_nothing_differs_the_page_says_so(tmp_path: Path) -> None:
    for name in ("torch", "w8a8"):
        _played(tmp_path, name, True, True)
    page = closed_loop.markdown(tmp_path, ["torch", "w8a8"], [_judged("w8a16", 0.01), _judged("ort", 0.0)])
    assert "too easy to tell precisions apart" in page
    assert "| ort | float32 | 0.0e+00 | inf |" in page
    assert "begin with (" in page
    assert "beside it" not in page
    assert "Not measured." in closed_loop.markdown(tmp_path, ["torch"], [])


def test_the_gripper_counts_where_it_is_told_the_opposite() -> None:
    want = np.zeros((1, 4, 7), np.float32)
    want[0, :, -1] = [-1, -1, 1, 1]
    got = want.copy()
    got[0, 0, -1] = 0.5
    found = closed_loop.judge("ort", want, got)
    assert found.flips == 0.25
    assert found.joints[-1] == pytest.approx(1.5 / 4 / 2)
    assert found.spans.tolist() == [0, 0, 0, 0, 0, 0, 2]


def test_every_side_has_a_package_and_every_package_is_judged() -> None:
    assert {side.package for side in closed_loop.SIDES.values()} <= {"", *closed_loop.PACKAGES}
    assert {package for package, _ in closed_loop._JUDGED.values()} == set(closed_loop.PACKAGES)
    assert closed_loop._JUDGED["ort-int8"] == ("ort-int8", "ort")

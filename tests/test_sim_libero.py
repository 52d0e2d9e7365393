# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""The adapter on LIBERO itself, where package and assets are installed: what it calls, in which order, with what."""

from __future__ import annotations

import importlib.util
import os
from typing import Any

import numpy as np
import pytest

from npukit.sim import libero, panda

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("libero") is None, reason="LIBERO is not installed"),
    pytest.mark.skipif("LIBERO_ASSETS" not in os.environ, reason="LIBERO_ASSETS is not set"),
]


class Recorded:
    """LIBERO's environment, which keeps the calls, what they gave, and the state after each."""

    def __init__(self, env: Any) -> None:
        self.env, self.trace = env, list[tuple[str, Any, Any, np.ndarray]]()

    def __getattr__(self, name: str) -> Any:
        function = getattr(self.env, name)
        if name not in ("seed", "reset", "set_init_state", "step"):
            return function

        def call(*given: Any) -> Any:
            gave = function(*given)
            self.trace.append((name, given, gave, self.env.env.sim.get_state().flatten()))
            return gave

        return call


@pytest.mark.parametrize("suite", libero.STEP_LIMITS)
def test_initial_state_waiting_and_pictures(suite: str) -> None:
    task = libero.tasks(suite)[0]
    env = libero.make(suite, task.name, 64)
    env._env = recorded = Recorded(env._env)
    try:
        seen, told = env.reset(seed=7, options={"episode": 3})
        env.step(np.full(7, 0.25))
    finally:
        env.close()
    names = [name for name, *_ in recorded.trace]
    assert names == ["seed", "reset", "set_init_state", *["step"] * 11]
    assert (told["initial_state"], env.step_limit) == (3, libero.STEP_LIMITS[suite])
    path = libero._root() / "init_files" / suite / f"{task.name}.pruned_init"
    _, (state,), _, after = recorded.trace[2]
    torch = pytest.importorskip("torch", reason="the oracle of the listed states is torch.load")
    listed = torch.load(path, weights_only=False)
    np.testing.assert_array_equal(state, listed[3])
    np.testing.assert_allclose(after[1:], listed[3][1:], atol=1e-12)  # the time is the simulation's own
    waiting = [given[0] for name, given, *_ in recorded.trace if name == "step"]
    assert waiting[:10] == [[0, 0, 0, 0, 0, 0, -1]] * 10
    assert waiting[10] == [0.25] * 7
    raw = recorded.trace[12][2][0]  # of the last idle step
    for ours, theirs in panda.CAMERAS.items():
        np.testing.assert_array_equal(seen[f"observation.images.{ours}"], np.rot90(raw[f"{theirs}_image"], 2))

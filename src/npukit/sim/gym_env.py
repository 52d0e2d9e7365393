# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""Any environment of the table as a `gymnasium.Env`; importing this module needs gymnasium."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces

from npukit.sim.envs import Env

_LETTERS = " abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-.,'"


class GymEnv(gymnasium.Env):  # type: ignore[misc,type-arg,unused-ignore]
    """`env` with gymnasium's spaces, and `truncated` when the step limit is reached.

    Args:
        env: an environment of the table; closed with this one.
    """

    def __init__(self, env: Env) -> None:
        self.env = env
        self.metadata = {"render_modes": ["rgb_array"], "render_fps": env.control_hz}
        self.render_mode = "rgb_array"
        self.action_space = spaces.Box(-1.0, 1.0, (env.action_size,), np.float32)
        observation, _ = env.reset(seed=0)
        self.observation_space = spaces.Dict({name: _space(value) for name, value in observation.items()})
        self._steps = 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Begin an episode; without a seed, one drawn from the generator that the last seed began."""
        super().reset(seed=seed)
        self._steps = 0
        drawn = int(self.np_random.integers(2**31)) if seed is None else seed
        return self.env.reset(seed=drawn, options=options)

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """Act once."""
        observation, reward, terminated, truncated, info = self.env.step(action)
        self._steps += 1
        truncated = truncated or (not terminated and self._steps >= self.env.step_limit)
        return observation, reward, terminated, truncated, info

    def render(self) -> Any:
        """A picture for people, uint8 [height, width, 3]."""
        return self.env.render()

    def close(self) -> None:
        """Free what the environment holds."""
        self.env.close()


def _space(value: Any) -> spaces.Space[Any]:
    if isinstance(value, str):
        return spaces.Text(512, charset=_LETTERS)
    if value.dtype == np.uint8:
        return spaces.Box(0, 255, value.shape, np.uint8)
    return spaces.Box(-np.inf, np.inf, value.shape, value.dtype)

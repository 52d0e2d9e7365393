# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""robosuite's tasks with one Panda: cameras, state and actions as LIBERO's, which is built on it.

The package is the user's to install; versions 1.4 and 1.5 are read. Pictures stand upright; unlike LIBERO's, which
policies know turned by 180 degrees, they are not mirrored.
"""

from __future__ import annotations

import importlib
import os
from typing import Any

import numpy as np

from npukit.errors import MissingDependency, UsageError, nearest
from npukit.sim import gl
from npukit.sim.envs import Array, Observation, TaskInfo
from npukit.sim.panda import CAMERAS, IMAGE_SIZE, PandaEnv

INSTALL = (
    "pip install --no-deps robosuite==1.5.2; "
    "pip install mujoco==3.3.2 numba scipy opencv-python-headless termcolor tqdm"
)

# Task -> instruction, step limit at 20 Hz. The instructions are ours: robosuite has none.
TASKS: dict[str, tuple[str, int]] = {
    "Lift": ("lift the cube", 400),
    "Stack": ("stack the red cube on the green cube", 400),
    "Door": ("open the door", 400),
    "PickPlaceCan": ("put the can into its bin", 400),
    "PickPlaceMilk": ("put the milk into its bin", 400),
    "PickPlaceBread": ("put the bread into its bin", 400),
    "PickPlaceCereal": ("put the cereal into its bin", 400),
    "NutAssemblySquare": ("put the square nut on the square peg", 400),
    "NutAssemblyRound": ("put the round nut on the round peg", 400),
    "ToolHang": ("assemble the frame and hang the tool on it", 700),
}


def tasks(env: str) -> tuple[TaskInfo, ...]:
    """The tasks with a Panda that one arm can do."""
    return tuple(TaskInfo(name, text, limit) for name, (text, limit) in TASKS.items())


def make(env: str, task: str, image_size: int | None) -> RobosuiteEnv:
    """Open a task."""
    return RobosuiteEnv(task, image_size or IMAGE_SIZE)


class RobosuiteEnv(PandaEnv):
    """One task of robosuite, with pictures upright.

    Args:
        task: a key of `TASKS`.
        image_size: edge of the pictures in pixels.

    Raises:
        UsageError: no such task.
        MissingDependency: robosuite, something it imports, or OpenGL is not there.
    """

    def __init__(self, task: str, image_size: int) -> None:
        if task not in TASKS:
            raise UsageError(f"robosuite has no task {task!r}", hint=nearest(task, TASKS))
        self.instruction, self.step_limit = TASKS[task]
        os.environ.update(gl.environment())
        try:
            suite = importlib.import_module("robosuite")
        except ImportError as error:
            what = (
                "robosuite is not installed" if error.name == "robosuite" else f"robosuite cannot be imported: {error}"
            )
            raise MissingDependency(what, where="robosuite", hint=INSTALL) from error
        self._flip = getattr(suite.macros, "IMAGE_CONVENTION", "opengl") == "opengl"
        made = suite.make(
            task,
            robots="Panda",
            controller_configs=_controller(suite),
            has_renderer=False,
            has_offscreen_renderer=True,
            use_camera_obs=True,
            use_object_obs=False,
            camera_names=list(CAMERAS.values()),
            camera_heights=image_size,
            camera_widths=image_size,
            control_freq=self.control_hz,
            horizon=1_000_000,  # the caller keeps the limit
            ignore_done=True,
            # A hard reset makes a second OpenGL context and then frees the first one's objects by number, within the
            # second (seen with 1.5.2 and EGL: pictures are noise from then on).
            hard_reset=False,
        )
        super().__init__(made)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Place robot and objects where `seed` says; seeds numpy's global generator, which robosuite 1.4 draws from."""
        np.random.seed(None if seed is None else seed % 2**32)
        if hasattr(self._env, "rng"):  # 1.5: the samplers hold this very generator
            self._env.rng.bit_generator.state = np.random.default_rng(seed).bit_generator.state
        self._raw = self._env.reset()
        return self._observe(), {"seed": seed, "success": False}

    def _turned(self, picture: Array) -> Array:
        return picture[::-1] if self._flip else picture

    def _succeeded(self, done: bool) -> bool:
        return bool(self._env._check_success())


def _controller(suite: Any) -> Any:
    """The configuration of the operational-space controller, as the installed version wants it."""
    if hasattr(suite, "load_composite_controller_config"):  # 1.5
        return suite.load_composite_controller_config(controller="BASIC")
    return suite.load_controller_config(default_controller="OSC_POSE")

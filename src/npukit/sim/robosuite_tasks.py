# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""robosuite's tasks with one Panda: cameras, state and actions as LIBERO's, which is built on it.

The package is the user's to install; versions 1.4 and 1.5 are read. Pictures stand upright; unlike LIBERO's, which
policies know turned by 180 degrees, they are not mirrored.
"""

from __future__ import annotations

import contextlib
import importlib
import os
from typing import Any

import numpy as np
import numpy.typing as npt

from npukit.errors import InputError, MissingDependency, UsageError, nearest
from npukit.sim import gl
from npukit.sim.envs import Array, Observation, TaskInfo, panda_state

IMAGE_SIZE = 256
CAMERAS = {"image": "agentview", "image2": "robot0_eye_in_hand"}
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


class RobosuiteEnv:
    """One task of robosuite; see `npukit.sim.envs.Env`.

    Observations: `observation.images.image` and `.image2` (wrist), uint8 [size, size, 3], upright;
    `observation.state` float32 [8]. Actions: 7 numbers in [-1, 1] (operational-space pose, gripper below 0 to open).

    Args:
        task: a key of `TASKS`.
        image_size: edge of the pictures in pixels.

    Raises:
        UsageError: no such task.
        MissingDependency: robosuite, something it imports, or OpenGL is not there.
    """

    control_hz = 20
    action_size = 7

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
        self._env = suite.make(
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
        self._raw: dict[str, Any] = {}

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Place robot and objects where `seed` says; seeds numpy's global generator, which robosuite 1.4 draws from."""
        np.random.seed(None if seed is None else seed % 2**32)
        if hasattr(self._env, "rng"):  # 1.5: the samplers hold this very generator
            self._env.rng.bit_generator.state = np.random.default_rng(seed).bit_generator.state
        self._raw = self._env.reset()
        return self._observe(), {"seed": seed, "success": False}

    def step(self, action: npt.ArrayLike) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """Act for a twentieth of a second.

        Raises:
            InputError: the action is not 7 finite numbers.
        """
        wanted = np.asarray(action, np.float64)
        if wanted.shape != (self.action_size,) or not np.isfinite(wanted).all():
            raise InputError(f"an action of robosuite's Panda is 7 finite numbers, not {list(wanted.shape)}")
        self._raw, reward, _, _ = self._env.step(np.clip(wanted, -1.0, 1.0))
        success = bool(self._env._check_success())
        return self._observe(), float(reward), success, False, {"success": success}

    def render(self) -> Array:
        """Both cameras side by side, uint8 [size, 2 * size, 3]."""
        return np.concatenate([self._picture(camera) for camera in CAMERAS.values()], axis=1)

    def close(self) -> None:
        """Free the simulation."""
        with contextlib.suppress(Exception):  # robosuite's own teardown fails where OpenGL has gone already
            self._env.close()

    def _picture(self, camera: str) -> Array:
        picture = np.asarray(self._raw[f"{camera}_image"], np.uint8)
        return np.ascontiguousarray(picture[::-1] if self._flip else picture)

    def _observe(self) -> Observation:
        pictures = {f"observation.images.{name}": self._picture(camera) for name, camera in CAMERAS.items()}
        return {**pictures, "observation.state": panda_state(self._raw), "task": self.instruction}


def _controller(suite: Any) -> Any:
    """The configuration of the operational-space controller, as the installed version wants it."""
    if hasattr(suite, "load_composite_controller_config"):  # 1.5
        return suite.load_composite_controller_config(controller="BASIC")
    return suite.load_controller_config(default_controller="OSC_POSE")

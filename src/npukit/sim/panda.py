# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""What environments with robosuite's Panda share: cameras, state, actions."""

from __future__ import annotations

import contextlib
from typing import Any

import numpy as np
import numpy.typing as npt

from npukit.errors import InputError, NpukitError
from npukit.sim.envs import Array, Observation

IMAGE_SIZE = 256
CAMERAS = {"image": "agentview", "image2": "robot0_eye_in_hand"}  # name in an observation -> robosuite's


class PandaEnv:
    """One task of a Panda under operational-space control; see `npukit.sim.envs.Env`.

    Observations: `observation.images.image` and `.image2` (wrist), uint8 [size, size, 3]; `observation.state` float32
    [8]. Actions: 7 numbers in [-1, 1], the last below 0 to open the gripper.

    A subclass makes `_env`, sets `instruction` and `step_limit`, and says how pictures are turned and what success is.
    """

    control_hz = 20
    action_size = 7
    instruction: str
    step_limit: int

    def __init__(self, env: Any) -> None:
        self._env = env
        self._raw: dict[str, Any] = {}

    def step(self, action: npt.ArrayLike) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """Act for a twentieth of a second.

        Raises:
            InputError: the action is not 7 finite numbers.
        """
        wanted = np.asarray(action, np.float64)
        if wanted.shape != (self.action_size,) or not np.isfinite(wanted).all():
            raise InputError(f"an action of the Panda is 7 finite numbers, not {list(wanted.shape)}")
        self._raw, reward, done, _ = self._env.step(np.clip(wanted, -1.0, 1.0).tolist())
        success = self._succeeded(bool(done))
        return self._observe(), float(reward), success, False, {"success": success}

    def render(self) -> Array:
        """Both cameras side by side, uint8 [size, 2 * size, 3]."""
        return np.concatenate([self._picture(camera) for camera in CAMERAS.values()], axis=1)

    def close(self) -> None:
        """Free the simulation."""
        with contextlib.suppress(Exception):  # robosuite's own teardown fails where OpenGL has gone already
            self._env.close()

    def _turned(self, picture: Array) -> Array:
        """A picture as policies know it from one as robosuite renders it."""
        raise NotImplementedError

    def _succeeded(self, done: bool) -> bool:
        """Whether the task is solved, `done` being what the environment's last step said."""
        raise NotImplementedError

    def _picture(self, camera: str) -> Array:
        picture = self._raw.get(f"{camera}_image")
        if picture is None:
            raise NpukitError(f"the simulation gave no picture of {camera}", hint="check the version of robosuite")
        return np.ascontiguousarray(self._turned(np.asarray(picture, np.uint8)))

    def _observe(self) -> Observation:
        pictures = {f"observation.images.{name}": self._picture(camera) for name, camera in CAMERAS.items()}
        return {**pictures, "observation.state": state(self._raw), "task": self.instruction}


def axis_angle(quaternion: npt.ArrayLike) -> Array:
    """Rotation vector float64 [3] (radians) of a quaternion x, y, z, w; zeros for no rotation."""
    q = np.asarray(quaternion, np.float64)
    w = float(np.clip(q[3], -1.0, 1.0))
    sine = np.sqrt(1.0 - w * w)
    if sine <= 1e-10:
        return np.zeros(3)
    vector: Array = q[:3] / sine * (2.0 * np.arccos(w))
    return vector


def state(raw: dict[str, Any]) -> Array:
    """Proprioception of robosuite as LIBERO's 8 numbers, float32: hand position, rotation vector, two fingers."""
    parts = [raw["robot0_eef_pos"], axis_angle(raw["robot0_eef_quat"]), raw["robot0_gripper_qpos"]]
    return np.concatenate([np.asarray(part, np.float64).ravel() for part in parts]).astype(np.float32)

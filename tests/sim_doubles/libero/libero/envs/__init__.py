# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""Double of LIBERO's environment: the same calls and observation keys, and a trace of what was asked of it."""

import json
import os

import numpy as np

from libero.libero import get_assets_path


class OffScreenRenderEnv:
    def __init__(self, bddl_file_name: str, camera_heights: int, camera_widths: int) -> None:
        self.size = camera_heights, camera_widths
        self.steps = 0
        self.trace("make", bddl_file_name, get_assets_path())

    def trace(self, *what: object) -> None:
        with open(os.environ["SIM_DOUBLE_TRACE"], "a") as file:
            file.write(json.dumps(what) + "\n")

    def seed(self, seed: int) -> None:
        self.trace("seed", seed)

    def reset(self) -> dict:
        self.trace("reset")
        self.steps = 0
        return self.observation()

    def set_init_state(self, state: np.ndarray) -> dict:
        self.trace("set_init_state", state.tolist())
        return self.observation()

    def step(self, action: list) -> tuple:
        self.trace("step", action)
        self.steps += 1
        if os.environ.get("SIM_DOUBLE_FAILS") == str(self.steps):
            raise RuntimeError("the simulation diverged")
        done = os.environ.get("SIM_DOUBLE_SOLVED") == str(self.steps)
        return self.observation(), float(done), done, {}

    def observation(self) -> dict:
        picture = np.zeros((*self.size, 3), np.uint8)
        picture[0, 0] = 255  # one corner, to see how it is turned
        return {
            "agentview_image": picture,
            "robot0_eye_in_hand_image": picture // 2,
            "robot0_eef_pos": np.array([0.1, 0.2, 0.3 + self.steps]),
            "robot0_eef_quat": np.array([np.sin(0.25), 0, 0, np.cos(0.25)]),
            "robot0_gripper_qpos": np.array([0.04, -0.04]),
        }

    def close(self) -> None:
        self.trace("close")

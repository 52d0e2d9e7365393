# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""A double of the package `robosuite`, for tests of npukit's adapter: nothing in it is robosuite's."""

import types

import numpy as np

macros = types.SimpleNamespace(IMAGE_CONVENTION="opengl")


def load_composite_controller_config(controller: str) -> dict:
    return {"type": controller}


def make(task: str, **options: object) -> "Double":
    assert options["robots"] == "Panda"
    assert options["controller_configs"] == {"type": "BASIC"}
    assert options["camera_names"] == ["agentview", "robot0_eye_in_hand"]
    assert options["use_object_obs"] is False
    return Double(int(options["camera_heights"]))


class Double:
    def __init__(self, size: int) -> None:
        self.size, self.steps = size, 0
        self.rng = np.random.default_rng()
        self.place = 0.0

    def reset(self) -> dict:
        self.steps, self.place = 0, self.rng.uniform()
        return self.observation()

    def step(self, action: np.ndarray) -> tuple:
        self.steps += 1
        return self.observation(), 0.0, False, {}

    def _check_success(self) -> bool:
        return self.steps == 4

    def observation(self) -> dict:
        picture = np.zeros((self.size, self.size, 3), np.uint8)
        picture[0, 0] = 255
        return {
            "agentview_image": picture,
            "robot0_eye_in_hand_image": picture,
            "robot0_eef_pos": np.array([self.place, 0, 1]),
            "robot0_eef_quat": np.array([0, 0, 0, 1.0]),
            "robot0_gripper_qpos": np.array([0.02, -0.02]),
        }

    def close(self) -> None:
        pass

# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""A scripted expert for the light scene: it sees where the blocks are, and solves every task.

Each action depends on nothing but the scene of that moment, never on a phase that it remembers: what it shows can be
learned from single observations, and it goes on sensibly from wherever a disturbance has put the hand.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from npukit.sim.scene import HALF, LIFT, OPEN, PAD, TRAVEL_Z, TURN, UNIT, Array, LightScene

_GAIN = 0.6  # share of the way to its aim that the hand goes at once
_REACH_Z = 0.070
_WORK_Z = 0.014  # where the hand pushes and grasps
_NEAR = 0.012
_BESIDE = HALF + PAD + 0.018  # from a block's centre to the closed fingers before a push
_GRIPPED = HALF + 0.004  # half the opening of fingers that hold a block
_OPEN, _CLOSE = -1.0, 1.0


def act(scene: LightScene) -> Array:
    """The expert's action in the scene as it is, float32 [7]."""
    aim, gripper = _SKILLS[scene.task.skill](scene)
    action = np.zeros(scene.action_size, np.float32)
    action[:3] = np.clip(_GAIN * (aim - scene.goal) / UNIT, -1, 1)
    action[5] = np.clip(-scene.yaw / TURN, -1, 1)
    action[6] = gripper
    return action


def _reach(scene: LightScene) -> tuple[Array, float]:
    block = scene.block(scene.task.colour)
    return _over(scene, block[0], block[1], _REACH_Z), _OPEN


def _push(scene: LightScene) -> tuple[Array, float]:
    side, block, tip = scene.task.side, scene.block(scene.task.colour), scene.tip
    behind = side * (block[1] - tip[1])  # how far the hand is on the side from which it must push
    low = tip[2] < 2 * HALF - 0.005
    if low and behind > HALF and abs(tip[0] - block[0]) < _NEAR and scene.opening < 0.01:
        if tip[2] < _WORK_Z + 0.012:  # down beside the block: go through where it stands
            return np.array([block[0], tip[1] + side * 0.03, _WORK_Z]), _CLOSE
        return np.array([block[0], scene.goal[1], _WORK_Z]), _CLOSE
    aside = block[1] - side * _BESIDE
    if low and behind < HALF:  # down at a wrong place: up first
        return np.array([tip[0], tip[1], TRAVEL_Z]), _CLOSE
    return _over(scene, block[0], aside, _WORK_Z), _CLOSE


def _lift(scene: LightScene) -> tuple[Array, float]:
    block, tip = scene.block(scene.task.colour), scene.tip
    over = np.hypot(*(tip - block)[:2])
    inside = over < _NEAR + 0.006 and tip[2] < block[2] + 0.004
    if inside and scene.opening < _GRIPPED:
        return np.array([tip[0], tip[1], 2 * HALF + LIFT + 0.03]), _CLOSE
    if inside:
        return np.array([block[0], block[1], scene.goal[2]]), _CLOSE
    if scene.opening < OPEN - 0.006:  # the fingers open before they go down
        return np.array([scene.goal[0], scene.goal[1], max(scene.goal[2], TRAVEL_Z)]), _OPEN
    return _over(scene, block[0], block[1], _WORK_Z), _OPEN


def _over(scene: LightScene, x: float, y: float, z: float) -> Array:
    """The aim on the way to (x, y, z): across at a safe height, down only above the place."""
    far = float(np.hypot(scene.tip[0] - x, scene.tip[1] - y))
    # The height falls with the distance: the hand comes down as it arrives, without a sudden switch.
    height = z + (TRAVEL_Z - z) * float(np.clip((far - _NEAR) / 0.03, 0, 1))
    return np.array([x, y, height])


_SKILLS: dict[str, Any] = {"reach": _reach, "push": _push, "lift": _lift}

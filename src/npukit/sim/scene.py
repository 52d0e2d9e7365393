# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""The light scene: a four-joint arm with a gripper, three blocks on a table, two cameras. MuJoCo, no asset files.

The arm is a SCARA: two links that turn about vertical axes, a slide that moves the hand up and down, and a wrist that
keeps the hand's direction; its inverse kinematics are a formula, so that control costs nothing. Its action and state
are those of LIBERO's Panda (7 and 8 numbers), so that one policy folder runs in either.

Axes: x away from the arm's base, y to the right in the scene camera's picture, z up; metres and radians. The scene
camera stands opposite the arm and looks down at the table.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from npukit.errors import InputError, UsageError, nearest
from npukit.sim import gl

Array = npt.NDArray[Any]

COLOURS: dict[str, tuple[float, float, float]] = {
    "red": (0.85, 0.10, 0.10),
    "green": (0.10, 0.65, 0.15),
    "blue": (0.10, 0.25, 0.90),
}
CAMERAS = {"image": "scene", "image2": "wrist"}  # name in an observation -> camera of the model
ACTION_SIZE, STATE_SIZE = 7, 8
CONTROL_HZ = 20
IMAGE_SIZE = 64
STEP_LIMIT = 120

LINK = 0.30  # length of each of the two links
HALF = 0.025  # half the edge of a block
PAD = 0.010  # thickness of a finger
OPEN = 0.045  # travel of a finger: half the opening
UNIT = 0.015  # metres that the hand's goal moves for an action of 1
TURN = 0.15  # radians that it turns
LEASH = 0.05  # how far the goal may run ahead of the hand, metres
LOW, HIGH = np.array([0.20, -0.26, 0.012]), np.array([0.52, 0.26, 0.24])  # where the hand's tip may go
TRAVEL_Z = 0.115  # height at which the hand passes over blocks with what it holds

LANE = 0.075  # least distance of two blocks along x: none stands in the way of another that is pushed along y
BLOCK_X, BLOCK_Y = (0.27, 0.47), (-0.12, 0.12)

REACH_XY, REACH_Z, REACH_STEPS = 0.02, (0.045, 0.095), 5
PUSH, PUSH_DRIFT = 0.07, 0.05
LIFT, LIFT_STEPS = 0.05, 3


@dataclass(frozen=True)
class SceneTask:
    """One task of the scene.

    Attributes:
        name: identifier, as in "push_red_left".
        description: the instruction.
        skill: "reach", "push" or "lift".
        colour: the block that it is about, a key of `COLOURS`.
        side: for "push", -1 to the left and 1 to the right; else 0.
    """

    name: str
    description: str
    skill: str
    colour: str
    side: int = 0


def _tasks() -> dict[str, SceneTask]:
    tasks = []
    for colour in COLOURS:
        tasks.append(SceneTask(f"reach_{colour}", f"reach the {colour} block", "reach", colour))
        for word, side in (("left", -1), ("right", 1)):
            text = f"push the {colour} block to the {word}"
            tasks.append(SceneTask(f"push_{colour}_{word}", text, "push", colour, side))
        tasks.append(SceneTask(f"lift_{colour}", f"lift the {colour} block", "lift", colour))
    order = {"reach": 0, "push": 1, "lift": 2}
    return {task.name: task for task in sorted(tasks, key=lambda t: order[t.skill])}


TASKS = _tasks()
"""Name -> task; reach, then push, then lift."""


def mjcf() -> str:
    """The MuJoCo model of the scene as XML text."""
    blocks = "\n".join(
        f"""
    <body name="{name}" pos="0.3 0 {HALF}">
      <freejoint name="{name}"/>
      <geom name="{name}" type="box" size="{HALF} {HALF} {HALF}" mass="0.06" rgba="{r} {g} {b} 1" friction="0.6"/>
    </body>"""
        for name, (r, g, b) in COLOURS.items()
    )
    finger = f'type="box" size="0.015 {PAD / 2} 0.03" rgba="0.15 0.15 0.15 1" friction="1.5" mass="0.02"'
    return f"""
<mujoco model="npukit-light">
  <compiler angle="radian" autolimits="true"/>
  <option timestep="0.005" integrator="implicitfast" cone="elliptic" impratio="5" iterations="20"/>
  <visual>
    <global offwidth="640" offheight="640"/>
    <quality shadowsize="0" offsamples="4"/>
    <headlight ambient="0.45 0.45 0.45" diffuse="0.45 0.45 0.45" specular="0 0 0"/>
    <map znear="0.02" zfar="6"/>
  </visual>
  <default>
    <geom solref="0.008 1" condim="4"/>
    <default class="arm"><geom contype="0" conaffinity="0" rgba="0.80 0.80 0.82 1"/></default>
  </default>
  <worldbody>
    <light pos="0.5 -0.5 1.5" dir="-0.1 0.3 -1" castshadow="false" diffuse="0.5 0.5 0.5" specular="0 0 0"/>
    <camera name="scene" pos="0.98 0 0.66" xyaxes="0 1 0 -0.713 0 0.70" fovy="30"/>
    <geom name="table" type="box" pos="0.35 0 -0.02" size="0.40 0.45 0.02" rgba="0.62 0.52 0.42 1" friction="0.6"/>
    <geom name="floor" class="arm" type="plane" pos="0 0 -0.4" size="3 3 0.1" rgba="0.30 0.33 0.36 1"/>
    <body name="shoulder" pos="0 0 0.34" gravcomp="1">
      <joint name="shoulder" axis="0 0 1" damping="1" armature="0.02"/>
      <geom class="arm" type="cylinder" fromto="0 0 -0.34 0 0 0.02" size="0.04" rgba="0.45 0.45 0.48 1" mass="0"/>
      <geom class="arm" type="capsule" fromto="0 0 0 {LINK} 0 0" size="0.022" mass="0.4"/>
      <body name="elbow" pos="{LINK} 0 0" gravcomp="1">
        <joint name="elbow" axis="0 0 1" damping="1" armature="0.02"/>
        <geom class="arm" type="capsule" fromto="0 0 0 {LINK} 0 0" size="0.020" mass="0.3"/>
        <body name="hand" pos="{LINK} 0 -0.34" gravcomp="1">
          <joint name="slide" type="slide" axis="0 0 1" damping="10" armature="0.05"/>
          <joint name="wrist" axis="0 0 1" damping="0.05" armature="0.002"/>
          <geom class="arm" type="cylinder" fromto="0 0 0.08 0 0 0.34" size="0.012" mass="0.1"/>
          <geom class="arm" type="box" pos="0 0 0.070" size="0.02 0.055 0.012" rgba="0.55 0.55 0.58 1" mass="0.1"/>
          <site name="tip" rgba="0 0 0 0"/>
          <camera name="wrist" pos="0.08 0 0.15" xyaxes="0 1 0 -0.90 0 0.43" fovy="75"/>
          <body name="finger1" pos="0 {PAD / 2} 0.03" gravcomp="1">
            <joint name="finger1" type="slide" axis="0 1 0" range="0 {OPEN}" damping="4" armature="0.01"/>
            <geom {finger}/>
          </body>
          <body name="finger2" pos="0 {-PAD / 2} 0.03" gravcomp="1">
            <joint name="finger2" type="slide" axis="0 -1 0" range="0 {OPEN}" damping="4" armature="0.01"/>
            <geom {finger}/>
          </body>
        </body>
      </body>
    </body>
{blocks}
  </worldbody>
  <equality><joint joint1="finger1" joint2="finger2" solref="0.005 1"/></equality>
  <actuator>
    <position name="shoulder" joint="shoulder" kp="400" dampratio="1"/>
    <position name="elbow" joint="elbow" kp="250" dampratio="1"/>
    <position name="slide" joint="slide" kp="1500" dampratio="1"/>
    <position name="wrist" joint="wrist" kp="10" dampratio="1"/>
    <position name="finger1" joint="finger1" kp="300" dampratio="1" forcerange="-8 8"/>
    <position name="finger2" joint="finger2" kp="300" dampratio="1" forcerange="-8 8"/>
  </actuator>
</mujoco>
"""


def joints_for(x: float, y: float, yaw: float) -> tuple[float, float, float]:
    """Shoulder, elbow and wrist angles that put the hand at (x, y) with direction `yaw`; the elbow points to -y."""
    cosine = (x * x + y * y - 2 * LINK * LINK) / (2 * LINK * LINK)
    elbow = math.acos(min(1.0, max(-1.0, cosine)))
    shoulder = math.atan2(y, x) - elbow / 2  # the links are equally long
    return shoulder, elbow, yaw - shoulder - elbow


class LightScene:
    """The scene as an environment with gymnasium's calls: `reset` and `step`.

    Observations are a dict: `observation.images.image` (scene camera) and `observation.images.image2` (wrist camera),
    uint8 [size, size, 3]; `observation.state`, float32 [8]: the hand's tip x, y, z (metres), its rotation vector
    (radians), the positions of its two fingers (metres, the second negative); `task`, the instruction. Where the
    blocks are is only in the pictures.

    Actions are 7 numbers in [-1, 1]: how the hand's goal moves along x, y, z (1 is 15 mm), turns about x, y (the arm
    cannot: without effect), z (1 is 0.15 radian), and the gripper (below 0 opens, from 0 on closes). 20 steps are one
    second. The same seed and task give the same scene.

    Args:
        task: a key of `TASKS`.
        image_size: edge of the pictures in pixels.

    Raises:
        UsageError: no such task, or a size beyond 8 to 640.
        MissingDependency: MuJoCo or OpenGL is not there.
    """

    name = "light"
    step_limit = STEP_LIMIT
    control_hz = CONTROL_HZ
    action_size = ACTION_SIZE
    state_size = STATE_SIZE

    def __init__(self, task: str, *, image_size: int = IMAGE_SIZE) -> None:
        self.change_task(task)
        if not 8 <= image_size <= 640:
            raise UsageError(f"pictures of the light scene are 8 to 640 pixels wide, not {image_size}")
        self.image_size = image_size
        self._mujoco = gl.load()
        self.model = self._mujoco.MjModel.from_xml_string(mjcf())
        self.data = self._mujoco.MjData(self.model)
        self._substeps = round(1 / (CONTROL_HZ * self.model.opt.timestep))
        self._tip = self.model.site("tip").id
        self._joint = {
            name: int(self.model.joint(name).qposadr[0])
            for name in ("shoulder", "elbow", "slide", "wrist", "finger1", "finger2", *COLOURS)
        }
        self._renderers: dict[int, Any] = {}
        self._goal = np.zeros(3)
        self._yaw = 0.0
        self._start: dict[str, Array] = {}
        self._held = 0

    def change_task(self, task: str) -> None:
        """Take another task from the next `reset` on; cheaper than another scene.

        Raises:
            UsageError: no such task.
        """
        if task not in TASKS:
            raise UsageError(f"the light scene has no task {task!r}", hint=nearest(task, TASKS))
        self.task = TASKS[task]
        self.instruction = self.task.description

    # ------------------------------------------------------------ gymnasium's calls

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Put blocks and hand where `seed` says; returns the observation and an info dict.

        Args:
            seed: of the layout; None for a random one.
            options: not used.
        """
        rng = np.random.default_rng(seed)
        mujoco, data = self._mujoco, self.data
        mujoco.mj_resetData(self.model, data)
        for name, (x, y, yaw) in _layout(rng).items():
            at = self._joint[name]
            data.qpos[at : at + 7] = [x, y, HALF, math.cos(yaw / 2), 0, 0, math.sin(yaw / 2)]
        self._goal = rng.uniform([0.27, -0.10, 0.13], [0.37, 0.10, 0.18])
        self._yaw = 0.0
        angles = joints_for(self._goal[0], self._goal[1], self._yaw)
        for name, value in zip(("shoulder", "elbow", "wrist"), angles, strict=True):
            data.qpos[self._joint[name]] = value
        data.qpos[self._joint["slide"]] = self._goal[2]
        data.qpos[[self._joint["finger1"], self._joint["finger2"]]] = OPEN
        self._command(-1.0)
        mujoco.mj_forward(self.model, data)
        self._start = {name: self.block(name) for name in COLOURS}
        self._held = 0
        return self.observe(), {"seed": seed, "success": False}

    def step(self, action: npt.ArrayLike) -> tuple[dict[str, Any], float, bool, bool, dict[str, Any]]:
        """Act for a twentieth of a second: observation, reward (1 at success), terminated, truncated, info.

        `terminated` is success; the step limit is the caller's to keep, `truncated` is always False.

        Raises:
            InputError: the action is not 7 finite numbers.
        """
        wanted = np.asarray(action, np.float64)
        if wanted.shape != (ACTION_SIZE,) or not np.isfinite(wanted).all():
            raise InputError(f"an action of the light scene is {ACTION_SIZE} finite numbers, not {_said(wanted)}")
        wanted = np.clip(wanted, -1.0, 1.0)
        tip = self.tip
        goal = np.clip(self._goal + UNIT * wanted[:3], tip - LEASH, tip + LEASH)
        self._goal = np.clip(goal, LOW, HIGH)
        self._yaw = float(np.clip(self._yaw + TURN * wanted[5], -1.2, 1.2))
        self._command(wanted[6])
        self._mujoco.mj_step(self.model, self.data, self._substeps)
        success = self._judge()
        return self.observe(), float(success), success, False, {"success": success}

    def render(self, size: int = 256) -> Array:
        """Both cameras side by side for people, uint8 [size, 2 * size, 3]."""
        return np.concatenate(self._pictures(size), axis=1)

    def close(self) -> None:
        """Free the renderers; any number of calls is fine."""
        for one in self._renderers.values():
            one.close()
        self._renderers.clear()

    # ------------------------------------------------------------ what the expert and tests may see

    @property
    def tip(self) -> Array:
        """Position of the point between the fingertips, float64 [3]."""
        return np.array(self.data.site_xpos[self._tip])

    @property
    def goal(self) -> Array:
        """Where the hand was told to be, float64 [3]."""
        return self._goal.copy()

    @property
    def opening(self) -> float:
        """Half the distance of the fingers, metres: 0 closed, `OPEN` open."""
        return float(self.data.qpos[self._joint["finger1"]])

    @property
    def yaw(self) -> float:
        """Direction of the hand about z, radians."""
        return float(sum(self.data.qpos[self._joint[name]] for name in ("shoulder", "elbow", "wrist")))

    def block(self, name: str) -> Array:
        """Position of a block's centre, float64 [3]."""
        return np.array(self.data.body(name).xpos)

    def start(self, name: str) -> Array:
        """Where a block's centre was at the start of the episode, float64 [3]."""
        return self._start[name].copy()

    def observe(self) -> dict[str, Any]:
        """The observation of this moment; see the class."""
        pictures = dict(zip(CAMERAS, self._pictures(self.image_size), strict=True))
        half = self.opening
        state = [*self.tip, 0.0, 0.0, self.yaw, half, -half]
        return {
            **{f"observation.images.{name}": picture for name, picture in pictures.items()},
            "observation.state": np.array(state, np.float32),
            "task": self.instruction,
        }

    # ------------------------------------------------------------ inside

    def _command(self, gripper: float) -> None:
        x, y, z = self._goal
        shoulder, elbow, wrist = joints_for(x, y, self._yaw)
        finger = 0.0 if gripper >= 0 else OPEN
        self.data.ctrl[:] = [shoulder, elbow, z, wrist, finger, finger]

    def _judge(self) -> bool:
        """Whether the task is done; some must stay so for a few steps."""
        task, tip = self.task, self.tip
        block, start = self.block(task.colour), self._start[task.colour]
        if task.skill == "push":
            moved = (block - start) * (1, task.side, 1)
            return bool(moved[1] >= PUSH and abs(moved[0]) <= PUSH_DRIFT and block[2] < 2 * HALF)
        if task.skill == "lift":
            holds, steps = block[2] - start[2] >= LIFT, LIFT_STEPS
        else:
            near = math.hypot(*(tip - block)[:2]) <= REACH_XY
            holds, steps = near and REACH_Z[0] <= tip[2] <= REACH_Z[1], REACH_STEPS
        self._held = self._held + 1 if holds else 0
        return self._held >= steps

    def _pictures(self, size: int) -> list[Array]:
        renderer = self._renderers.get(size)
        if renderer is None:
            renderer = self._renderers[size] = gl.renderer(self.model, size, size)
        pictures = []
        for camera in CAMERAS.values():
            renderer.update_scene(self.data, camera=camera)
            pictures.append(np.array(renderer.render()))
        return pictures


def _said(value: Array) -> str:
    return "ones that are not finite" if value.shape == (ACTION_SIZE,) else f"shape {list(value.shape)}"


def _layout(rng: np.random.Generator) -> dict[str, tuple[float, float, float]]:
    """x, y and direction of each block: each in a lane of its own along x, colours in any order."""
    names = list(rng.permutation(list(COLOURS)))
    spare = BLOCK_X[1] - BLOCK_X[0] - LANE * (len(names) - 1)
    xs = BLOCK_X[0] + np.sort(rng.uniform(0, spare, len(names))) + LANE * np.arange(len(names))
    return {
        str(name): (float(x), float(rng.uniform(*BLOCK_Y)), float(rng.uniform(-0.2, 0.2)))
        for name, x in zip(names, xs, strict=True)
    }

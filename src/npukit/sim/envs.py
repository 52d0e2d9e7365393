# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""The table of environments, and what each gives: gymnasium's calls with observations as policies take them.

To add an environment: one row in `ENVS`, and a module with `tasks(name)` and `make(name, task, image_size)`.
"""

from __future__ import annotations

import fnmatch
import importlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy.typing as npt

from npukit.errors import MissingDependency, UsageError, nearest

Array = npt.NDArray[Any]
Observation = dict[str, Any]

LIBERO_SUITES = ("libero_spatial", "libero_object", "libero_goal", "libero_10")


class Env(Protocol):
    """One task of an environment.

    Observations hold `observation.images.NAME` (uint8 [height, width, 3]), `observation.state` (float32 [n]) and
    `task` (the instruction). Actions are `action_size` numbers in [-1, 1].
    """

    instruction: str
    step_limit: int
    control_hz: int
    action_size: int

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Begin an episode; `options["episode"]` is its number, for environments with listed initial states."""

    def step(self, action: npt.ArrayLike) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """Observation, reward, terminated (success), truncated, info with the key "success"."""

    def render(self) -> Array:
        """A picture for people, uint8 [height, width, 3]."""

    def close(self) -> None:
        """Free what it holds."""


@dataclass(frozen=True)
class TaskInfo:
    """A task of an environment.

    Attributes:
        name: identifier.
        description: the instruction.
        step_limit: steps after which an episode has failed.
    """

    name: str
    description: str
    step_limit: int


@dataclass(frozen=True)
class EnvEntry:
    """One row of `ENVS`.

    Attributes:
        module: module of `npukit.sim` with `tasks` and `make`.
        what: one line.
        expert: whether the scripted expert can play it.
    """

    module: str
    what: str
    expert: bool = False


ENVS: dict[str, EnvEntry] = {
    "light": EnvEntry("light", "npukit's own scene: reach, push and lift coloured blocks by instruction", expert=True),
    **{suite: EnvEntry("libero", "LIBERO's suite of ten tasks; package and assets are yours to install")
       for suite in LIBERO_SUITES},
    "robosuite": EnvEntry("robosuite_tasks", "robosuite's tasks of one Panda; the package is yours to install"),
}  # fmt: skip


def entry(env: str) -> EnvEntry:
    """The row of an environment.

    Raises:
        UsageError: there is none of this name.
    """
    if env not in ENVS:
        raise UsageError(f"there is no environment {env!r}", hint=nearest(env, ENVS))
    return ENVS[env]


def _module(env: str) -> Any:
    return importlib.import_module(f"npukit.sim.{entry(env).module}")


def tasks(env: str) -> tuple[TaskInfo, ...]:
    """All tasks of an environment, in its own order.

    Raises:
        UsageError: there is no such environment.
        MissingDependency: the package that lists them is not installed.
    """
    found: tuple[TaskInfo, ...] = _module(env).tasks(env)
    return found


def chosen(env: str, patterns: Sequence[str]) -> tuple[TaskInfo, ...]:
    """The tasks whose names match one of `patterns` (as of file names: `push_*`), or all without patterns.

    A number stands for the task at that place.

    Raises:
        UsageError: a pattern that no task matches.
    """
    every = tasks(env)
    names = [task.name for task in every]
    keep: set[str] = set()
    for pattern in patterns:
        if pattern.isdigit() and int(pattern) < len(names):
            matching = [names[int(pattern)]]
        else:
            matching = fnmatch.filter(names, pattern)
        if not matching:
            raise UsageError(f"{env} has no task {pattern!r}", where="--task", hint=nearest(pattern, names))
        keep.update(matching)
    return tuple(task for task in every if task.name in keep or not patterns)


def make(env: str, task: str, *, image_size: int | None = None) -> Env:
    """Open one task of an environment.

    Args:
        env: a key of `ENVS`.
        task: name of one of its tasks.
        image_size: edge of the pictures in pixels; None for the environment's own.

    Raises:
        UsageError: no such environment or task.
        MissingDependency: MuJoCo, OpenGL, the environment's package or its assets are not there.
    """
    made: Env = _module(env).make(env, task, image_size)
    return made


def first(env: str, task: str, image_size: int | None = None, seed: int = 0) -> Observation:
    """The first observation of an episode; to see what an environment gives."""
    opened = make(env, task, image_size=image_size)
    try:
        return opened.reset(seed=seed)[0]
    finally:
        opened.close()


def gymnasium_env(env: str, task: str, *, image_size: int | None = None) -> Any:
    """One task as a `gymnasium.Env`: with spaces, and `truncated` at the step limit.

    Example:
        >>> env = npukit.sim.envs.gymnasium_env("light", "push_red_left")
        >>> observation, info = env.reset(seed=1)

    Raises:
        MissingDependency: gymnasium is not installed; else as `make`.
    """
    from npukit.sim import gl

    try:
        wrapped = importlib.import_module("npukit.sim.gym_env")
    except ImportError as error:
        if (error.name or "").startswith("npukit"):
            raise
        raise MissingDependency("gymnasium is not installed", hint=gl.EXTRA) from error
    return wrapped.GymEnv(make(env, task, image_size=image_size))

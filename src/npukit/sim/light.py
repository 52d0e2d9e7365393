# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""The light scene as a row of the table of environments."""

from __future__ import annotations

from npukit.sim import scene
from npukit.sim.envs import TaskInfo


def tasks(env: str) -> tuple[TaskInfo, ...]:
    """Tasks of the light scene."""
    return tuple(TaskInfo(task.name, task.description, scene.STEP_LIMIT) for task in scene.TASKS.values())


def make(env: str, task: str, image_size: int | None) -> scene.LightScene:
    """Open a task of the light scene."""
    return scene.LightScene(task, image_size=image_size or scene.IMAGE_SIZE)

# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""Demonstrations of the scripted expert in the light scene, as .npz files to train a policy by imitation.

A file ("shard") holds whole episodes, one after the other:

| name | array |
| --- | --- |
| `observation.images.image`, `observation.images.image2` | uint8 [steps, size, size, 3] |
| `observation.state` | float32 [steps, 8] |
| `action` | float32 [steps, 7]: what the expert would do, without the noise |
| `episode_index` | int64 [steps]: number of the episode, from the first shard on |
| `task_index` | int64 [steps]: place in `tasks` |
| `tasks` | str [tasks]: the instructions |
| `seeds` | int64 [episodes in the shard] |

Noise is added to what the arm does, not to what is recorded: so that the expert also shows the way back from where an
imitator's small errors lead. The same arguments give the same files, byte for byte, on one machine.
"""

from __future__ import annotations

import io
import logging
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from npukit import files, log
from npukit.errors import UsageError
from npukit.sim import envs, expert, light, scene
from npukit.sim.envs import Array

logger = logging.getLogger(__name__)

NOISE = 0.3
KEEP_AFTER = 4
_EPOCH = (1980, 1, 1, 0, 0, 0)
_STREAM = 7919  # so that the noise is not the layout's random numbers again


@dataclass(frozen=True)
class Demonstration:
    """One episode of the expert.

    Attributes:
        task: the instruction.
        seed: of the episode.
        success: whether it was solved.
        arrays: the shard's arrays of this episode that have a row a step.
    """

    task: str
    seed: int
    success: bool
    arrays: dict[str, Array]


def demonstrate(
    env: scene.LightScene, seed: int, *, noise: float = NOISE, keep_after: int = KEEP_AFTER
) -> Demonstration:
    """Let the expert solve the scene's task once.

    Args:
        env: the scene with its task.
        seed: of layout and noise.
        noise: standard deviation of what is added to the arm's motion (1 is a whole action); slowly changing.
        keep_after: steps recorded after success, so that the end is not cut off from a chunk of actions.
    """
    rng = np.random.default_rng([seed, _STREAM])
    observation, _ = env.reset(seed=seed)
    rows: dict[str, list[Array]] = {}
    drift = np.zeros(3)
    success, left = False, env.step_limit + keep_after
    while left > 0:
        left -= 1
        action = expert.act(env)
        for name, value in {**observation, "action": action}.items():
            if name != "task":
                rows.setdefault(name, []).append(np.asarray(value))
        moved = action.astype(np.float64)
        drift = 0.6 * drift + 0.8 * rng.normal(0, noise, 3)  # of the same variance whatever the 0.6 is
        moved[:3] += drift
        observation, _, done, _, _ = env.step(moved)
        if done and not success:
            success, left = True, keep_after
    return Demonstration(env.instruction, seed, success, {name: np.stack(values) for name, values in rows.items()})


def record(
    folder: Path,
    *,
    episodes: int,
    seed: int = 0,
    tasks: Sequence[str] = (),
    image_size: int = scene.IMAGE_SIZE,
    noise: float = NOISE,
    shard_episodes: int = 100,
) -> list[Path]:
    """Write `episodes` demonstrations of each task to shards in `folder`; failed ones are left out.

    Episodes of the tasks alternate. Number N of a task has the seed `seed` + N. Evaluations count from 100,000.

    Args:
        folder: made if it is not there; shards of the same names are replaced.
        episodes: of each task.
        seed: of each task's first episode.
        tasks: names or patterns of the light scene's tasks; none for all.
        image_size: edge of the pictures in pixels.
        noise: see `demonstrate`.
        shard_episodes: episodes in a file.

    Returns:
        The shards.

    Raises:
        UsageError: an unknown task or a count below 1.
        MissingDependency: MuJoCo or OpenGL is not there.

    Example:
        >>> shards = npukit.sim.demonstrations.record(Path("demonstrations"), episodes=1, tasks=("reach_*",))
        >>> npukit.sim.demonstrations.load(shards[0])["action"].shape[1]
        7
    """
    if episodes < 1 or shard_episodes < 1:
        raise UsageError(f"at least 1 episode is needed, not {min(episodes, shard_episodes)}")
    names = [task.name for task in envs.chosen("light", tasks)]
    with files.os_errors(folder, "write"):
        folder.mkdir(parents=True, exist_ok=True)
    written: list[Path] = []
    batch: list[Demonstration] = []
    count = 0
    for one in _solved(names, episodes, seed, image_size, noise):
        batch.append(one)
        if len(batch) == shard_episodes:
            written.append(_write(folder / f"shard-{len(written):04d}.npz", batch, count))
            count += len(batch)
            batch = []
    if batch:
        written.append(_write(folder / f"shard-{len(written):04d}.npz", batch, count))
    return written


def load(path: Path) -> dict[str, Array]:
    """A shard's arrays; see the module.

    Raises:
        InputError: the file is damaged, or holds Python objects.
    """
    return dict(files.read_npz(path))


def _solved(names: Sequence[str], episodes: int, seed: int, image_size: int, noise: float) -> Iterator[Demonstration]:
    env = light.make("light", names[0], image_size)
    try:
        for number in range(episodes):
            for name in names:
                env.change_task(name)
                one = demonstrate(env, seed + number, noise=noise)
                if one.success:
                    yield one
                else:
                    logger.warning("the expert failed at %s with seed %d: left out", name, one.seed)
            log.report(f"{number + 1} of {episodes} demonstrations of each task", (number + 1) / episodes)
    finally:
        env.close()


def _write(path: Path, batch: Sequence[Demonstration], first: int) -> Path:
    tasks = sorted({one.task for one in batch})
    lengths = [len(one.arrays["action"]) for one in batch]
    arrays = {name: np.concatenate([one.arrays[name] for one in batch]) for name in batch[0].arrays}
    arrays["episode_index"] = np.repeat(np.arange(first, first + len(batch), dtype=np.int64), lengths)
    arrays["task_index"] = np.repeat(np.array([tasks.index(one.task) for one in batch], np.int64), lengths)
    arrays["tasks"] = np.array(tasks)
    arrays["seeds"] = np.array([one.seed for one in batch], np.int64)
    with files.atomic_write(path) as temporary, zipfile.ZipFile(temporary, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, array in arrays.items():
            raw = io.BytesIO()
            np.lib.format.write_array(raw, array, allow_pickle=False)
            # numpy.savez would write the time of day into the archive.
            archive.writestr(zipfile.ZipInfo(f"{name}.npy", _EPOCH), raw.getvalue(), zipfile.ZIP_DEFLATED, 1)
    return path

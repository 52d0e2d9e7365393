# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""Demonstrations in the light scene: what the scripted expert would do, in many more places than it goes by itself.

A picture is taken at every step of an episode, and the expert's next actions from exactly there are found by letting it
go on in a copy of the physics without pictures. Where the hand actually goes is disturbed (or, in later rounds, is up
to the policy that is being trained), so the demonstrations also show how to come back from a mistake.

`python -m training.data --out FOLDER --frames 20000 --part 0` writes `part-0-NNN.npz` files until there are so many
frames; it goes on where it stopped. With `--policy STATE` the hand follows the policy half of the time.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from npukit.sim import expert
from npukit.sim.scene import COLOURS, TASKS, LightScene

Array = np.ndarray
CHUNK = 6
FIRST_SEED = 10_000_000  # layouts of demonstrations; evaluation uses seeds below this
MOST_STEPS = 40
SHARD = 2_000  # frames in a file
NAMES = tuple(TASKS)
Act = Callable[[dict[str, Any], int], Array]


class Copy:
    """The scene's state at a moment, to go back to."""

    def __init__(self, scene: LightScene) -> None:
        mujoco = scene._mujoco
        self._scene, self._set = scene, mujoco.mj_setState
        self._kind = mujoco.mjtState.mjSTATE_INTEGRATION
        self._physics = np.empty(mujoco.mj_stateSize(scene.model, self._kind))
        mujoco.mj_getState(scene.model, scene.data, self._physics, self._kind)
        self._rest = (scene._goal.copy(), scene._yaw, scene._held)

    def back(self) -> None:
        scene = self._scene
        self._set(scene.model, scene.data, self._physics, self._kind)
        scene._mujoco.mj_forward(scene.model, scene.data)
        scene._goal, scene._yaw, scene._held = self._rest[0].copy(), *self._rest[1:]


def ahead(scene: LightScene, count: int = CHUNK) -> Array:
    """The expert's next actions f32 [count, 7] from here; the scene is afterwards as it was."""
    copy = Copy(scene)
    scene.observe = dict  # type: ignore[method-assign]  # no pictures
    actions = []
    for _ in range(count):
        actions.append(expert.act(scene))
        scene.step(actions[-1])
    del scene.observe
    copy.back()
    return np.stack(actions)


def places(scene: LightScene) -> Array:
    """Where the three blocks are from the hand's tip, x and y, f32 [6], in units of 0.1 m: a help in training."""
    return np.concatenate([(scene.block(name) - scene.tip)[:2] for name in COLOURS]).astype(np.float32) * 10


def episodes(part: int, start: int, policy: Act | None) -> Iterator[dict[str, list[Any]]]:
    """Episodes without end: lists of `image`, `state`, `task`, `action`, `place` by frame."""
    scene = LightScene(NAMES[0])
    number = start
    while True:
        seed = FIRST_SEED + part * 1_000_000 + number
        rng = np.random.default_rng(seed)
        number += 1
        task = int(rng.integers(len(NAMES)))
        scene.change_task(NAMES[task])
        observation, _ = scene.reset(seed=seed)
        rows: dict[str, list[Any]] = {name: [] for name in ("image", "state", "task", "action", "place")}
        disturb = _Disturbance(rng)
        follows = policy is not None and rng.random() < 0.6
        over = int(rng.integers(1, 5))  # steps that are shown after success
        plan: list[Array] = []
        for _ in range(MOST_STEPS):
            chunk = ahead(scene)
            rows["image"].append(np.stack([observation[f"observation.images.{name}"] for name in ("image", "image2")]))
            rows["state"].append(observation["observation.state"])
            rows["task"].append(task)
            rows["action"].append(chunk)
            rows["place"].append(places(scene))
            if follows and policy is not None:
                if not plan:
                    plan = list(policy(observation, task))
                action = plan.pop(0)
            else:
                action = disturb(chunk[0])
            observation, _, done, _, _ = scene.step(action)
            over -= done
            if not over:
                break
        yield rows


class _Disturbance:
    """What an episode's actions have added to them: nothing, noise, or a shove now and then."""

    def __init__(self, rng: np.random.Generator) -> None:
        self._rng, self._noise = rng, float(rng.choice([0.0, 0.15, 0.4]))
        self._shoves = float(rng.choice([0.0, 0.04, 0.10]))
        self._shove: list[Array] = []

    def __call__(self, action: Array) -> Array:
        rng, given = self._rng, action.copy()
        if not self._shove and rng.random() < self._shoves:
            direction = rng.uniform(-1, 1, 3) * (1, 1, 0.8)
            self._shove = [direction] * int(rng.integers(1, 5))
            self._grip = float(rng.choice([-1.0, 1.0, given[6], given[6]]))
        given[:3] += self._noise * rng.standard_normal(3)
        if self._shove:
            given[:3] = self._shove.pop()
            given[6] = self._grip
        return given


def write(folder: Path, frames: int, part: int, policy: Act | None = None) -> None:
    """Write the files of a part until it has so many frames."""
    folder.mkdir(parents=True, exist_ok=True)
    done = sorted(folder.glob(f"part-{part}-*.npz"))
    start, total = 0, 0
    for file in done:
        with np.load(file) as held:
            start, total = int(held["next"]), total + len(held["task"])
    rows: dict[str, list[Any]] = {}
    number = len(done)
    for i, episode in enumerate(episodes(part, start, policy), start + 1):
        if total >= frames:
            return
        for name, values in episode.items():
            rows.setdefault(name, []).extend(values)
        if len(rows["task"]) >= SHARD:
            arrays = {name: np.stack(values) for name, values in rows.items()}
            temporary = folder / f".part-{part}.npz"
            np.savez(temporary, next=i, **arrays)
            temporary.rename(folder / f"part-{part}-{number:03}.npz")
            total, number, rows = total + len(arrays["task"]), number + 1, {}
            sys.stderr.write(f"part {part}: {total} frames of {i} episodes\n")


def load(folder: Path, seen: dict[Path, dict[str, Array]]) -> dict[Path, dict[str, Array]]:
    """All files of a folder; those of `seen` are not read again."""
    for path in sorted(folder.glob("part-*.npz")):
        if path not in seen:
            with np.load(path) as file:
                seen[path] = {name: file[name] for name in file.files if name != "next"}
    return seen


def main() -> None:
    """The command; see the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--frames", type=int, default=60_000)
    parser.add_argument("--part", type=int, default=0, help="number of the part: another part has other layouts")
    parser.add_argument("--policy", type=Path, help="state of a training run: the hand follows its policy")
    options = parser.parse_args()
    policy = None
    if options.policy is not None:
        from training.train import acting

        policy = acting(options.policy, seed=options.part)
    write(options.out, options.frames, options.part, policy)


if __name__ == "__main__":
    main()

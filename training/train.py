# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""Train a small SmolVLA on demonstrations of the light scene, and say how often it succeeds.

`python -m training.train --data FOLDER --state FILE --steps N` trains up to N steps and writes FILE as it goes; started
again it goes on from there. `--evaluate E` runs E episodes of layouts that training has not seen; `--checkpoint DIR`
writes what was learned as LeRobot writes a checkpoint. README.md says how the committed policy was made.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from npukit.sim.scene import ACTION_SIZE, STATE_SIZE, STEP_LIMIT, TASKS, LightScene
from training import data
from training.network import Network, Sizes
from training.words import PAD, tokenize

N_ACTION_STEPS = 2
BATCH, REPEATS = 64, 2
"""Observations in a step, and noise samples of each."""
RATE, WARMUP, DECAY = 1.2e-3, 300, 0.998
"""Highest learning rate, steps until it is reached, and what remains of the averaged weights in a step."""


class Helper(nn.Module):
    """Where the blocks are, read off the network's inner values: a loss that teaches it to see; dropped afterwards."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.sizes = sizes
        self.seen = nn.Linear(sizes.cameras * sizes.image_tokens * sizes.hidden, 6)
        self.state = nn.Linear(sizes.hidden, 2 + ACTION_SIZE)

    def forward(self, seen: Tensor, hidden: Tensor, place: Tensor, colour: Tensor, action: Tensor) -> Tensor:
        """Loss of three blocks' places from `seen`, and of the task's block and action from the state's token."""
        scale = self.sizes.hidden**0.5
        rows = torch.arange(len(place))
        target = torch.cat((place.unflatten(1, (3, 2))[rows, colour], action), 1)
        error = (self.seen(seen.flatten(1).float() * scale) - place).square().mean()
        return error + 0.5 * (self.state(hidden.float()) - target).square().mean()


class Run:
    """A training run: what a state file holds."""

    def __init__(self, sizes: Sizes, statistics: dict[str, Tensor]) -> None:
        self.sizes, self.statistics, self.step, self.seconds = sizes, statistics, 0, 0.0
        self.network, self.helper = Network(sizes), Helper(sizes)
        self.average = Network(sizes).requires_grad_(False)
        self.average.load_state_dict(self.network.state_dict())
        parts = [*self.network.parameters(), *self.helper.parameters()]
        self.optimizer = torch.optim.AdamW(parts, RATE, betas=(0.9, 0.98), weight_decay=0.01)

    def save(self, path: Path) -> None:
        held = {
            "sizes": dataclasses.asdict(self.sizes), "statistics": self.statistics, "step": self.step,
            "seconds": self.seconds, "network": self.network.state_dict(), "helper": self.helper.state_dict(),
            "average": self.average.state_dict(), "optimizer": self.optimizer.state_dict(),
        }  # fmt: skip
        temporary = path.with_suffix(".tmp")
        torch.save(held, temporary)
        temporary.rename(path)

    @classmethod
    def load(cls, path: Path) -> Run:
        held = torch.load(path, weights_only=True)
        run = cls(Sizes(**held["sizes"]), held["statistics"])
        run.step, run.seconds = held["step"], held["seconds"]
        for name in ("network", "helper", "average", "optimizer"):
            getattr(run, name).load_state_dict(held[name])
        return run


def measure(frames: dict[Path, dict[str, np.ndarray]]) -> dict[str, Tensor]:
    """Mean and standard deviation of states and actions; a number that never changes gets a deviation of 0.01."""
    found = {}
    for name, key, width in (("observation.state", "state", STATE_SIZE), ("action", "action", ACTION_SIZE)):
        values = np.concatenate([part[key].reshape(-1, width) for part in frames.values()]).astype(np.float64)
        found[f"{name}.mean"] = torch.tensor(values.mean(0), dtype=torch.float32)
        found[f"{name}.std"] = torch.tensor(np.maximum(values.std(0), 0.01), dtype=torch.float32)
    return found


def pictures(images: np.ndarray) -> Tensor:
    """uint8 [..., H, W, 3] to f32 [..., 3, H, W] in [-1, 1]."""
    return torch.from_numpy(images).movedim(-1, -3).float().div_(127.5).sub_(1.0)


class Frames:
    """The demonstrations in memory; batches of them in random order, files that appear later included."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.parts = folder, {}
        self.refresh()

    def refresh(self) -> None:
        data.load(self.folder, self.parts)
        self.list = list(self.parts.values())
        self.counts = np.array([len(part["task"]) for part in self.list])

    def __len__(self) -> int:
        return int(self.counts.sum()) if self.list else 0

    def batch(self, rng: np.random.Generator, count: int) -> dict[str, np.ndarray]:
        which = rng.choice(len(self.list), count, p=self.counts / self.counts.sum())
        rows = [(self.list[part], int(rng.integers(self.counts[part]))) for part in which]
        return {name: np.stack([part[name][row] for part, row in rows]) for name in self.list[0]}


def instructions(sizes: Sizes) -> tuple[Tensor, Tensor]:
    """Tokens i64 [tasks, text] and mask of every task, in the order of `TASKS`."""
    tokens = torch.tensor([tokenize(task.description, sizes.text) for task in TASKS.values()])
    return tokens, tokens != PAD


def pad(values: Tensor, width: int) -> Tensor:
    """`values` with zeros after the last number, up to `width`."""
    return nn.functional.pad(values, (0, width - values.shape[-1]))


def losses(
    run: Run, batch: dict[str, np.ndarray], words: tuple[Tensor, Tensor], generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """The flow's loss and the helper's, of a batch."""
    sizes, statistics = run.sizes, run.statistics
    task = torch.from_numpy(batch["task"])
    state = (torch.from_numpy(batch["state"]) - statistics["observation.state.mean"]) / statistics[
        "observation.state.std"
    ]
    action = (torch.from_numpy(batch["action"]) - statistics["action.mean"]) / statistics["action.std"]
    colour = torch.tensor([list(data.COLOURS).index(t.colour) for t in TASKS.values()])[task]
    with torch.autocast("cpu", torch.bfloat16):
        images = pictures(batch["image"])
        seen = run.network.see(images.flatten(0, 1)).reshape(len(task), -1, sizes.hidden)
        cache, mask, hidden = run.network.prefix(seen, words[0][task], words[1][task], pad(state, sizes.state))
        clean = pad(action, sizes.action).repeat_interleave(REPEATS, 0)
        count = len(clean)
        # Beta(1.5, 1) by its inverse distribution function u ** (1 / 1.5)
        t = torch.rand(count, generator=generator) ** (1 / 1.5) * 0.999 + 0.001
        noise = torch.randn(clean.shape, generator=generator)
        noisy = t[:, None, None] * noise + (1 - t[:, None, None]) * clean
        cache = [part.repeat_interleave(REPEATS, 0) for part in cache]
        velocity = run.network.velocity(noisy, t, cache, mask.repeat_interleave(REPEATS, 0))
    flow = (velocity - (noise - clean))[..., :ACTION_SIZE].square().mean()
    return flow, run.helper(seen, hidden, torch.from_numpy(batch["place"]), colour, action[:, 0])


def train(
    run: Run, frames: Frames, path: Path, steps: int, report: Callable[[str], None], *, until: int | None = None
) -> None:
    """Train up to step `steps`, the last of the learning rate's schedule, or only `until` one before it.

    The state file is written every 500 steps and at the end; files of demonstrations that have come are read then.
    """
    words = instructions(run.sizes)
    parameters = [p for group in run.optimizer.param_groups for p in group["params"]]
    begin, told = time.time(), np.zeros(2)
    while run.step < min(steps, until or steps):
        rng = np.random.default_rng([7, run.step])
        generator = torch.Generator().manual_seed(run.step)
        rate = (
            RATE * min(1.0, (run.step + 1) / WARMUP) * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * run.step / steps)))
        )
        for group in run.optimizer.param_groups:
            group["lr"] = rate
        flow, places = losses(run, frames.batch(rng, BATCH), words, generator)
        run.optimizer.zero_grad()
        (flow + places).backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        run.optimizer.step()
        run.step += 1
        keep = min(DECAY, run.step / (run.step + 10))
        with torch.no_grad():
            torch._foreach_lerp_(list(run.average.parameters()), list(run.network.parameters()), 1 - keep)
        told += (float(flow.detach()), float(places.detach()))
        if run.step % 100 == 0:
            run.seconds += time.time() - begin
            begin = time.time()
            flow_mean, place_mean = told / 100
            told[:] = 0
            report(
                f"step {run.step}: flow {flow_mean:.4f}, places {place_mean:.4f}, "
                f"{len(frames)} frames, {run.seconds:.0f} s"
            )
        if run.step % 500 == 0:
            run.save(path)
            frames.refresh()
    run.seconds += time.time() - begin
    run.save(path)


# ---------------------------------------------------------------- acting


class Actor:
    """The averaged network as a policy, for several scenes at once.

    Args:
        run: a training run.
        seed: of the noise.
    """

    def __init__(self, run: Run, seed: int) -> None:
        self.run, self.words = run, instructions(run.sizes)
        self.generator = torch.Generator().manual_seed(seed)

    @torch.inference_mode()
    def __call__(self, observations: list[dict[str, Any]], tasks: list[int]) -> np.ndarray:
        """Actions f32 [scenes, chunk, 7] in the robot's units; `tasks` are numbers of instructions."""
        sizes, statistics, network = self.run.sizes, self.run.statistics, self.run.average
        names = ("observation.images.image", "observation.images.image2")
        images = pictures(np.stack([[o[name] for name in names] for o in observations]))
        state = torch.from_numpy(np.stack([o["observation.state"] for o in observations]))
        state = (state - statistics["observation.state.mean"]) / statistics["observation.state.std"]
        task = torch.tensor(tasks)
        noise = torch.randn(len(tasks), sizes.chunk, sizes.action, generator=self.generator)
        seen = network.see(images.flatten(0, 1)).reshape(len(tasks), -1, sizes.hidden)
        chunk = network.chunk(seen, self.words[0][task], self.words[1][task], pad(state, sizes.state), noise)
        return (chunk[..., :ACTION_SIZE] * statistics["action.std"] + statistics["action.mean"]).numpy()


def acting(path: Path, seed: int) -> data.Act:
    """A policy for one scene from a state file: observation and number of the task to the next actions."""
    torch.set_num_threads(1)
    actor = Actor(Run.load(path), seed)
    return lambda observation, task: actor([observation], [task])[0, :N_ACTION_STEPS]


def evaluate(run: Run, count: int, *, first: int = 0, blank: bool = False, other: bool = False) -> dict[str, list[int]]:
    """Successes in closed loop: {task: [episodes, successes]}.

    Args:
        run: a training run.
        count: episodes of all tasks together; the layout of episode i of a task is seed `first + i`.
        first: the first seed.
        blank: all pictures are grey.
        other: the instruction is another task's, chosen at random.
    """
    names = list(TASKS)
    scenes = [LightScene(name) for name in names]
    actor, rng = Actor(run, first), np.random.default_rng(first)
    found = {name: [0, 0] for name in names}
    for index in range(-(-count // len(names))):
        live = {i: scene.reset(seed=first + index)[0] for i, scene in enumerate(scenes)}
        told = [int((i + rng.integers(1, len(names))) % len(names)) if other else i for i in range(len(names))]
        for _ in range(-(-STEP_LIMIT // N_ACTION_STEPS)):
            keys = list(live)
            if blank:
                live = {
                    i: {k: np.full_like(v, 127) if "image" in k else v for k, v in o.items()} for i, o in live.items()
                }
            chunks = actor([live[i] for i in keys], [told[i] for i in keys])
            for i, chunk in zip(keys, chunks, strict=True):
                for action in chunk[:N_ACTION_STEPS]:
                    live[i], _, done, _, _ = scenes[i].step(action)
                    if done:
                        found[names[i]][1] += 1
                        del live[i]
                        break
            if not live:
                break
        for name in names:
            found[name][0] += 1
    for scene in scenes:
        scene.close()
    return found


def rate(found: dict[str, list[int]]) -> float:
    """Share of successes."""
    return sum(good for _, good in found.values()) / sum(tried for tried, _ in found.values())


def say(text: str) -> None:
    """A line for whoever watches."""
    sys.stderr.write(text + "\n")
    sys.stderr.flush()


def main() -> None:
    """The command; see the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder that training.data has written")
    parser.add_argument("--state", type=Path, required=True, help="file of the training run")
    parser.add_argument("--steps", type=int, default=0, help="train up to this step")
    parser.add_argument("--until", type=int, help="stop at this step already; the schedule stays that of --steps")
    parser.add_argument("--evaluate", type=int, default=0, metavar="EPISODES")
    parser.add_argument("--seed", type=int, default=0, help="layout of the first evaluated episode")
    parser.add_argument("--blank", action="store_true", help="evaluate with grey pictures")
    parser.add_argument("--other", action="store_true", help="evaluate with another task's instruction")
    parser.add_argument("--checkpoint", type=Path, help="write a checkpoint into this folder")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    run = Run.load(options.state) if options.state.exists() else None
    if options.data is not None:
        frames = Frames(options.data)
        run = run or Run(Sizes(), measure(frames.parts))
        train(run, frames, options.state, options.steps, say, until=options.until)
    if run is None:
        parser.error(f"{options.state}: there is no such file, and no --data to train on")
    if options.evaluate:
        found = evaluate(run, options.evaluate, first=options.seed, blank=options.blank, other=options.other)
        say(f"step {run.step}: success {rate(found):.1%} of {sum(tried for tried, _ in found.values())} episodes")
        say(json.dumps(found))
    if options.checkpoint is not None:
        from training.checkpoint import write

        write(run, options.checkpoint, N_ACTION_STEPS)


if __name__ == "__main__":
    main()

# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""The small policy from nothing to a checkpoint: demonstrations, training, closed loop (`make train`).

Every part goes on where it was stopped: demonstrations after the last whole file, training after the last saved state.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

PARTS, FRAMES, STEPS = 2, 60_000, 4_000
"""Parts of the demonstrations, frames of each, and steps of training on all of them."""
EPISODES = 504
FIRST_SEED = 100_000  # npukit.sim.demonstrations: evaluations count from here


def demonstrate(folder: Path, jobs: int) -> None:
    """Write the demonstrations, `jobs` parts at a time, each in a process of its own: MuJoCo renders on one thread."""

    def one(part: int) -> None:
        command = ["-m", "training.data", "--out", str(folder), "--frames", str(FRAMES), "--part", str(part)]
        environment = os.environ | {"OMP_NUM_THREADS": "1", "LP_NUM_THREADS": "1"}
        subprocess.run([sys.executable, *command], check=True, env=environment)  # noqa: S603

    with ThreadPoolExecutor(jobs) as pool:
        list(pool.map(one, range(PARTS)))


def judge(run: Any, episodes: int) -> dict[str, Any]:
    """Closed loop as it should be, and a quarter as often with grey pictures and with another task's instruction."""
    from training import train

    ways: dict[str, dict[str, bool]] = {"usual": {}, "grey pictures": {"blank": True}, "another": {"other": True}}
    found: dict[str, Any] = {
        "steps": run.step,
        "n_action_steps": train.N_ACTION_STEPS,
        "first_seed": FIRST_SEED,
    }
    for name, options in ways.items():
        tasks = train.evaluate(run, episodes // 4 if options else episodes, first=FIRST_SEED, **options)
        tried, good = (sum(pair[i] for pair in tasks.values()) for i in (0, 1))
        found[name] = {"episodes": tried, "successes": good, "tasks": tasks}
        train.say(f"{name}: {good} of {tried} episodes succeed")
    return found


def main() -> None:
    """The command; see the module."""
    parser = argparse.ArgumentParser(prog="python -m training", description=__doc__)
    parser.add_argument("--folder", type=Path, default=Path("results/training"), help="for what lies in between")
    parser.add_argument("--checkpoint", type=Path, default=Path("results/training/checkpoint"))
    parser.add_argument("--jobs", type=int, default=PARTS, help="processes that make demonstrations")
    parser.add_argument("--threads", type=int, default=1, help="threads of PyTorch")
    parser.add_argument("--episodes", type=int, default=EPISODES)
    options = parser.parse_args()

    import torch

    from training import checkpoint, train

    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    state = options.folder / "run.pt"
    run = train.Run.load(state) if state.exists() else None
    if run is None or run.step < STEPS:
        demonstrate(options.folder / "demonstrations", options.jobs)
        frames = train.Frames(options.folder / "demonstrations")
        run = run or train.Run(train.Sizes(), train.measure(frames.parts))
        train.train(run, frames, state, STEPS, train.say)
    checkpoint.write(run, options.checkpoint, train.N_ACTION_STEPS)
    text = json.dumps(judge(run, options.episodes), indent=1)
    (options.checkpoint / "evaluation.json").write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

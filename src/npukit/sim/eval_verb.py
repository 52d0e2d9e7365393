# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""`npukit policy eval`: how often a policy succeeds in a simulated environment."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.metadata
import json
import os
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import npukit
from npukit import files
from npukit.analysis import text
from npukit.errors import InputError, UsageError, shown
from npukit.policies.run_verb import RunOptions
from npukit.sim import envs, video
from npukit.sim import evaluate as evaluation
from npukit.sim.episode import ABLATIONS, BUILT_IN, Episode, Job, PolicySpec
from npukit.sim.evaluate import Row
from npukit.sim.statistics import Paired
from npukit.verbs import options as o
from npukit.verbs.options import arg, like, opt, verb

# Apart from demonstrations' seeds: `demonstrations.record` begins at 0, the committed policy's data at 10,000,000.
DEFAULT_SEED = 100_000
_WIDTH = 48  # letters of a name in the table


def _videos(given: str) -> int:
    if given == "all":
        return -1
    if not given.isdigit():
        raise UsageError(f"a number or 'all' is needed, not {given!r}", where="--video")
    return int(given)


@dataclass(frozen=True)
class EvalOptions:
    """Evaluate a policy in closed loop, and keep each episode's result, so that a rerun does what is missing.

    Episode number N of each task has the seed SEED + N, for the environment and for the policy: two evaluations with
    the same seed can be compared pair by pair (--against).
    """

    policy_dir: Path | None = arg("the policy's folder (none with --policy)", default=None, metavar="DIR")
    policy: str | None = opt(None, "Instead of a folder: the scripted expert, or random actions.", choices=BUILT_IN)
    env: str = opt("light", "Environment.", choices=tuple(envs.ENVS))
    tasks: tuple[str, ...] = opt(
        (), "Task by name, pattern (push_*) or number; repeatable [all].", "--task", many=True, parse=o.strings,
        metavar="NAME",
    )  # fmt: skip
    episodes: int = opt(10, "Episodes of each task.")
    seed: int = opt(DEFAULT_SEED, "Seed of each task's first episode.")
    output: Path | None = opt(None, "Folder for the results.", "-o", "--out", parse=Path, metavar="DIR")
    backend: str | None = opt(None, "Backend of the policy's components [its first].", metavar="NAME")
    emulate: str = like(RunOptions, "emulate")
    unnorm_key: str | None = opt(
        None, "Data set whose statistics un-normalize the actions [LIBERO's suite, or the policy's].", metavar="KEY"
    )
    threads: int | None = opt(None, "Threads of each worker's policy.")
    workers: int = opt(1, "Episodes at once, each in a process with its own policy.")
    video: int = opt(0, "Keep an MP4 of the first N episodes of each task.", parse=_videos, metavar="N|all")
    record: int = opt(
        0, "Keep N observations of each episode, evenly, in OUT/observations: calibration data.", metavar="N"
    )
    step_limit: int | None = opt(None, "Steps after which an episode has failed [the task's].", "--steps-limit")
    image_size: int | None = opt(None, "Edge of the pictures in pixels [the policy's or the environment's].")
    ablation: str | None = opt(None, "Take the pictures or the instruction away.", choices=ABLATIONS)
    against: Path | None = opt(
        None, "Results to compare with, episode by episode.", "--against", parse=Path, metavar="DIR"
    )
    min_success: float | None = opt(None, "Exit 1 when fewer percent of the episodes succeed.", metavar="PERCENT")
    timeout: float | None = opt(None, "Seconds after which an episode has failed.")


@dataclass(frozen=True)
class EvalResult:
    """What came of an evaluation.

    Attributes:
        env: the environment.
        policy: the policy, with its backend.
        rows: one a task.
        total: of all tasks.
        episodes: every episode.
        resumed: how many of them an earlier run had played.
        folder: where the results are.
        comparison: with the results of `--against`; None without.
        against: the name of those.
        min_success: percent of episodes that must succeed; None for any.
    """

    env: str
    policy: str
    rows: tuple[Row, ...]
    total: Row
    episodes: tuple[Episode, ...]
    resumed: int
    folder: Path
    comparison: Paired | None = None
    against: str = ""
    min_success: float | None = None

    @property
    def exit_code(self) -> int:
        """1 where `min_success` was not reached."""
        return int(self.min_success is not None and 100 * self.total.rate < self.min_success)

    @property
    def saturated(self) -> dict[str, int]:
        """Elements that emulated arithmetic saturated in all episodes, by "COMPONENT/TENSOR"."""
        total: Counter[str] = Counter()
        for one in self.episodes:
            total.update(one.saturated)
        return dict(total)

    def to_json(self) -> dict[str, Any]:
        """As one JSON-ready object; rates are shares of 1."""
        rows = [{**dataclasses.asdict(row), "rate": row.rate} for row in (*self.rows, self.total)]
        return {
            "env": self.env,
            "policy": self.policy,
            "tasks": rows[:-1],
            "total": rows[-1],
            "resumed": self.resumed,
            "folder": str(self.folder),
            "against": self.against,
            "comparison": None if self.comparison is None else dataclasses.asdict(self.comparison),
            "saturated": self.saturated,
            "episodes": [dataclasses.asdict(one) for one in self.episodes],
        }

    def to_text(self) -> str:
        head = ("task", "description", "steps", "success", "%", "95 % interval")
        rows = [
            (shown(r.task, _WIDTH), shown(r.description, _WIDTH), None if r.steps is None else round(r.steps, 1),
             f"{r.successes}/{r.episodes}", round(100 * r.rate, 1), f"{100 * r.low:.1f} to {100 * r.high:.1f}")
            for r in (*self.rows, self.total)
        ]  # fmt: skip
        seconds = sum(one.seconds for one in self.episodes)
        steps = sum(one.steps for one in self.episodes)
        lines = [f"{self.policy} in {self.env}", text.table(head, rows)]
        if steps and seconds:
            share = sum(one.policy_seconds for one in self.episodes) / steps
            lines.append(f"{steps} steps, {1e3 * seconds / steps:.3g} ms each, of them {1e3 * share:.3g} ms the policy")
        saturated = self.saturated
        if saturated:
            most = sorted(saturated.items(), key=lambda pair: -pair[1])
            some = ", ".join(f"{name} {count}" for name, count in most[:5]) + (", ..." if len(most) > 5 else "")
            lines.append(f"{len(most)} tensors saturated, by elements: {some}")
        if self.total.errors:
            reasons = sorted({one.reason for one in self.episodes if one.failed})
            lines.append(
                f"{self.total.errors} episodes ended with an error and count as failed: {'; '.join(reasons[:3])}"
            )
        if self.resumed:
            lines.append(f"{self.resumed} of {len(self.episodes)} episodes were there already")
        if self.comparison is not None:
            lines.append(f"against {self.against}: {self.comparison.to_text()}")
        lines.append(f"results in {self.folder}")
        if self.exit_code:
            lines.append(f"{100 * self.total.rate:.1f} % succeeded, at least {self.min_success:g} % were asked for")
        return "\n".join(lines)


@verb(EvalOptions)
def evaluate(options: EvalOptions) -> EvalResult:
    """Evaluate a policy in closed loop.

    Raises:
        UsageError: options that cannot be meant, or an output folder of another evaluation.
        MissingDependency: MuJoCo, OpenGL, PyAV, the environment's package or its assets are not there.
        NpukitError: the policy cannot be opened, or does not fit the environment.

    Example:
        >>> result = npukit.sim.eval_verb.evaluate(policy="expert", tasks=("reach_red",), episodes=2, output="results")
        >>> result.total.successes
        2
    """
    spec, identity = _policy(options)
    folder = options.output
    if folder is None:
        raise UsageError("where should the results go?", where="-o", hint="give a folder: -o results")
    if options.workers < 1:
        raise UsageError(f"at least 1 is needed, not {options.workers}", where="--workers")
    earlier = evaluation.read(options.against) if options.against is not None else []
    size = options.image_size or _image_size(spec)
    jobs = evaluation.plan(
        options.env, episodes=options.episodes, seed=options.seed, tasks=options.tasks,
        step_limit=options.step_limit, ablation=options.ablation, image_size=size,
    )  # fmt: skip
    if options.video:
        video.require()
        jobs = [_filmed(job, folder, options.video) for job in jobs]
    if options.record < 0:
        raise UsageError(f"at least 0, not {options.record}", where="--record")
    if options.record:
        jobs = [_recorded(job, folder, options.record) for job in jobs]
    what = {
        "env": options.env,
        "policy": identity,
        "seed": options.seed,
        "step_limit": options.step_limit,
        "image_size": size,
        "ablation": options.ablation,
        "versions": _versions(),
    }
    episodes, resumed = evaluation.evaluate(
        spec, jobs, folder, what, workers=options.workers, timeout=options.timeout
    )  # fmt: skip
    rows, total = evaluation.summarize(episodes)
    result = EvalResult(
        env=options.env,
        policy=_said(spec, options.ablation),
        rows=tuple(rows),
        total=total,
        episodes=tuple(episodes),
        resumed=resumed,
        folder=folder,
        comparison=evaluation.compare(earlier, episodes) if options.against is not None else None,
        against=str(options.against or ""),
        min_success=options.min_success,
    )
    summary = json.dumps(result.to_json(), indent=2, allow_nan=False).encode() + b"\n"
    files.atomic_write_bytes(folder / evaluation.RESULTS, summary)
    return result


def _policy(options: EvalOptions) -> tuple[PolicySpec, dict[str, Any]]:
    """Which policy, and what tells it from another one in a folder of results."""
    if (options.policy is None) == (options.policy_dir is None):
        raise UsageError(
            "give either a policy's folder or --policy", hint=f"built in: --policy {' or --policy '.join(BUILT_IN)}"
        )
    if options.policy is not None:
        if options.policy not in BUILT_IN:
            raise UsageError(f"there is no built-in policy {options.policy!r}", hint=f"known: {', '.join(BUILT_IN)}")
        if options.policy == "expert" and not envs.entry(options.env).expert:
            raise UsageError(f"the scripted expert cannot play {options.env}", hint="it plays --env light")
        return PolicySpec(options.policy), {"name": options.policy}
    assert options.policy_dir is not None
    manifest = options.policy_dir / "policy.json"
    if not manifest.is_file():
        raise InputError("not a policy's folder: it has no policy.json", where=str(options.policy_dir),
                         hint="make one with `npukit policy export`")  # fmt: skip
    key = _unnorm_key(options.policy_dir, options.env, options.unnorm_key)
    spec = PolicySpec(
        "package", options.policy_dir.resolve(), options.backend, options.threads or _share(options.workers),
        options.emulate, key,
    )  # fmt: skip
    identity = {"name": "package", "manifest_sha256": files.sha256_file(manifest), "backend": options.backend}
    more = {"emulate": options.emulate or None, "unnorm_key": key}
    return spec, {**identity, **{name: value for name, value in more.items() if value is not None}}


def _unnorm_key(folder: Path, env: str, given: str | None) -> str | None:
    """Whose statistics un-normalize the actions: in LIBERO the suite's own, where the policy has keys at all."""
    from npukit.policies.openvla.actions import chosen_key
    from npukit.policies.package import Manifest

    if given is not None or env not in envs.LIBERO_SUITES:
        return given
    steps = [step for step in Manifest.read(folder).postprocessing if step["step"] == "unnormalize_by_key"]
    return chosen_key(steps[0]["statistics"], env) if steps else None


def _versions() -> dict[str, str]:
    """What the scenes' course depends on beside the seeds."""
    found = {"npukit": npukit.__version__}
    for name in ("mujoco", "robosuite"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def _share(workers: int) -> int | None:
    """Threads of one of several workers, so that together they have as many as there are cores."""
    return None if workers == 1 else max(1, (os.cpu_count() or 1) // workers)


def _image_size(spec: PolicySpec) -> int | None:
    """The edge of the pictures that a package declares, where it is one number."""
    if spec.folder is None:
        return None
    from npukit.policies.package import Manifest

    inputs = Manifest.read(spec.folder).inputs.values()
    edges = {edge for feature in inputs if feature.kind == "VISUAL" for edge in feature.shape[-2:]}
    return edges.pop() if len(edges) == 1 else None


def _filmed(job: Job, folder: Path, count: int) -> Job:
    if 0 <= count <= job.episode:
        return job
    return dataclasses.replace(job, video=_file(job, folder / evaluation.VIDEOS, "mp4"))


def _recorded(job: Job, folder: Path, count: int) -> Job:
    path = _file(job, folder / evaluation.OBSERVATIONS, "npz")
    return dataclasses.replace(job, observations=path, kept=count)


def _file(job: Job, folder: Path, suffix: str) -> Path:
    return (folder / f"{job.task}-{job.episode:04d}.{suffix}").resolve()


def _said(spec: PolicySpec, ablation: str | None) -> str:
    name = spec.name if spec.folder is None else spec.folder.name
    parts = [name, *([spec.backend] if spec.backend else []), *([spec.emulate] if spec.emulate else []),
             *([ablation] if ablation else [])]  # fmt: skip
    return ", ".join(parts)

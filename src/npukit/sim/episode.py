# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""One episode: a policy in an environment until success, failure or the step limit. Runs in a worker process."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from npukit.errors import InputError, MissingDependency, NpukitError, UsageError
from npukit.policies import observations
from npukit.sim import envs, video
from npukit.sim.envs import Array, Env, Observation

log = logging.getLogger(__name__)

BUILT_IN = ("expert", "random")
BLANK, OTHER = ABLATIONS = ("blank-images", "other-instruction")


class Policy(Protocol):
    """What can be evaluated: `npukit.Policy` and anything with these two methods."""

    def reset(self, seed: int | None = None) -> Any:
        """Forget the episode before; `seed` is that of the policy's own random numbers."""

    def select_action(self, observation: Observation) -> npt.ArrayLike:
        """The next action, numbers in [-1, 1] as the environment wants them."""


@dataclass(frozen=True)
class PolicySpec:
    """Which policy to open in a worker.

    Attributes:
        name: "expert", "random", or "package".
        folder: of the package.
        backend: of the package's components; None for the package's first.
        threads: of each component; None for the backend's own choice.
        emulate: see `npukit.Policy`; also `unnorm_key`.
        unnorm_key: as above.
    """

    name: str
    folder: Path | None = None
    backend: str | None = None
    threads: int | None = None
    emulate: str = ""
    unnorm_key: str | None = None


@dataclass(frozen=True)
class Job:
    """One episode to play.

    Attributes:
        env: a key of `npukit.sim.envs.ENVS`.
        task: name of the task.
        description: its instruction.
        episode: number of the episode within the task.
        seed: of the environment and of the policy.
        step_limit: steps after which it has failed.
        instruction: what the policy is told; None for the task's own.
        blank: whether the policy's pictures are black.
        image_size: edge of the pictures in pixels; None for the environment's own.
        video: the MP4 to write; None for none.
        observations: the .npz file for observations that the policy got; None for none.
        kept: how many of them at most, evenly over the episode.
    """

    env: str
    task: str
    description: str
    episode: int
    seed: int
    step_limit: int
    instruction: str | None = None
    blank: bool = False
    image_size: int | None = None
    video: Path | None = None
    observations: Path | None = None
    kept: int = 0


@dataclass(frozen=True)
class Episode:
    """What came of a job.

    Attributes:
        env: the environment.
        task: the task.
        description: its instruction.
        instruction: what the policy was told.
        episode: number within the task.
        seed: of environment and policy.
        success: whether the task was solved within the limit.
        steps: actions taken.
        reason: "success", "step limit", or "error: ..." for what went wrong.
        seconds: wall time of the episode.
        policy_seconds: of it, the policy's.
        actions: the first 16 digits of the SHA-256 of all actions (float32): equal where two runs did the same.
        video: name of the MP4 below the results' folder; empty for none.
        saturated: elements that emulated arithmetic saturated, by "COMPONENT/TENSOR"; empty without emulation.
    """

    env: str
    task: str
    description: str
    instruction: str
    episode: int
    seed: int
    success: bool
    steps: int
    reason: str
    seconds: float
    policy_seconds: float
    actions: str
    video: str = ""
    saturated: dict[str, int] = field(default_factory=dict)

    @property
    def failed(self) -> bool:
        """Whether an error ended it."""
        return self.reason.startswith("error")


class _Misfit(Exception):
    """The policy refused the first observation, or the environment the first action: it would in every episode."""

    def __init__(self, error: NpukitError) -> None:
        super().__init__(str(error))
        self.error = error


def play(policy: Policy, env: Env, job: Job) -> Episode:
    """Play one episode. An exception in it is a failure with its reason.

    Raises:
        NpukitError: already the first step was refused: policy and environment do not fit each other.
    """
    clock = _Clock()
    begin = time.perf_counter()
    digest = hashlib.sha256()
    steps, success, reason = 0, False, "step limit"
    limit = job.step_limit
    kept = _Kept(job.kept)
    _saturated(policy)  # what came before is not of this episode
    try:
        with contextlib.ExitStack() as stack:
            film = None
            if job.video is not None:
                job.video.parent.mkdir(parents=True, exist_ok=True)
                film = stack.enter_context(video.record(job.video, env.control_hz))
            observation, _ = env.reset(seed=job.seed, options={"episode": job.episode})
            policy.reset(seed=job.seed)
            told = job.instruction or env.instruction
            while steps < limit and not success:
                if film is not None:
                    film.add(env.render(), f"{told}   {steps}")
                seen = _seen(observation, job)
                kept.add(seen)
                try:
                    action = clock.time(policy.select_action, seen)
                    checked = _checked(action, env)
                    observation, _, terminated, truncated, info = env.step(checked)
                except (InputError, UsageError) as error:
                    if steps == 0:
                        raise _Misfit(error) from error
                    raise
                digest.update(checked.tobytes())
                steps += 1
                success = bool(info.get("success", terminated))
                if truncated or (terminated and not success):
                    break
            reason = "success" if success else reason
            if film is not None:
                film.add(env.render(), f"{told}   {steps}: {reason}")
        if job.observations is not None:
            kept.write(job.observations)
    except _Misfit as misfit:
        raise misfit.error from None
    except MissingDependency:
        raise
    except Exception as error:
        log.warning("%s, episode %d: %s", job.task, job.episode, error, exc_info=log.isEnabledFor(logging.DEBUG))
        success, reason = False, failure(error)
    return Episode(
        job.env, job.task, job.description, job.instruction or job.description, job.episode, job.seed, success, steps,
        reason, time.perf_counter() - begin, clock.total, digest.hexdigest()[:16],
        job.video.name if job.video is not None and job.video.is_file() else "", _saturated(policy),
    )  # fmt: skip


class _Kept:
    """At most `count` observations of an episode, evenly spread over it, however long it becomes."""

    def __init__(self, count: int) -> None:
        self._count = count
        self._met, self._every = 0, 1
        self._held: list[Observation] = []

    def add(self, observation: Observation) -> None:
        if self._count and self._met % self._every == 0:
            self._held.append({k: np.array(v) if isinstance(v, np.ndarray) else v for k, v in observation.items()})
            if len(self._held) == 2 * self._count:
                del self._held[1::2]
                self._every *= 2
        self._met += 1

    def write(self, path: Path) -> None:
        count = min(self._count, len(self._held))
        path.parent.mkdir(parents=True, exist_ok=True)
        observations.write(path, [self._held[i * len(self._held) // count] for i in range(count)])


def _saturated(policy: Policy) -> dict[str, int]:
    """What emulated arithmetic saturated since the last call, NaNs included."""
    found = policy.saturations(clear=True) if hasattr(policy, "saturations") else {}
    return {f"{name}/{one.tensor}": one.count + one.nans for name, tensors in found.items() for one in tensors}


def failure(error: BaseException) -> str:
    """An exception as an episode's reason."""
    return f"error: {type(error).__name__}: {' '.join(str(error).split())[:300]}"


def lost(job: Job, error: BaseException) -> Episode:
    """The result of an episode whose worker process died."""
    return Episode(
        job.env, job.task, job.description, job.instruction or job.description, job.episode, job.seed, False, 0,
        failure(error), 0.0, 0.0, "",
    )  # fmt: skip


class _Clock:
    def __init__(self) -> None:
        self.total = 0.0

    def time(self, function: Any, *args: Any) -> Any:
        begin = time.perf_counter()
        try:
            return function(*args)
        finally:
            self.total += time.perf_counter() - begin


def _seen(observation: Observation, job: Job) -> Observation:
    """What the policy gets of an observation."""
    seen = dict(observation)
    if job.instruction is not None:
        seen["task"] = job.instruction
    if job.blank:
        seen |= {k: np.zeros_like(v) for k, v in seen.items() if k.startswith("observation.images.")}
    return seen


def _checked(action: npt.ArrayLike, env: Env) -> Array:
    checked = np.asarray(action, np.float32)
    if checked.shape != (env.action_size,):
        raise UsageError(
            f"the policy's actions are {list(checked.shape)}, the environment's [{env.action_size}]",
            hint="evaluate it in the kind of environment that it was trained for",
        )
    if not np.isfinite(checked).all():
        raise NpukitError("the policy's action is not finite")
    return checked


# ---------------------------------------------------------------- inside a worker


class RandomPolicy:
    """Uniform random actions, the same for the same seed."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._rng = np.random.default_rng()

    def reset(self, seed: int | None = None) -> None:
        """Begin the sequence of `seed`."""
        self._rng = np.random.default_rng(seed)

    def select_action(self, observation: Observation) -> Array:
        """A random action, float32."""
        return self._rng.uniform(-1, 1, self._size).astype(np.float32)


class ExpertPolicy:
    """The scripted expert of the light scene; it sees where the blocks are."""

    def __init__(self, env: Any) -> None:
        self._env = env

    def reset(self, seed: int | None = None) -> None:
        """Nothing to forget."""

    def select_action(self, observation: Observation) -> Array:
        """The expert's action in the scene of the moment, float32 [7]."""
        from npukit.sim import expert

        return expert.act(self._env)


class Player:
    """Keeps one environment and one policy open between episodes."""

    def __init__(self) -> None:
        self._env: tuple[tuple[Any, ...], Env] | None = None
        self._task = ""
        self._policy: tuple[PolicySpec, Policy] | None = None

    def play(self, spec: PolicySpec, job: Job) -> Episode:
        """Play one episode; opens what is not open yet.

        Raises:
            NpukitError: policy or environment cannot be opened, or do not fit each other.
        """
        env = self.open(job)
        return play(self._load(spec, env), env, job)

    def close(self) -> None:
        """Close both."""
        if self._policy is not None and hasattr(self._policy[1], "close"):
            self._policy[1].close()
        if self._env is not None:
            self._env[1].close()
        self._env = self._policy = None

    def open(self, job: Job) -> Env:
        """The environment of a job, opened if it is not."""
        key, task = (job.env, job.image_size), job.task
        if self._env is None or (self._env[0], self._task) != (key, task):
            if self._env is not None and self._env[0] == key and hasattr(self._env[1], "change_task"):
                self._env[1].change_task(task)
            else:
                if self._env is not None:
                    self._env[1].close()
                    self._env = None
                self._env = key, envs.make(job.env, task, image_size=job.image_size)
            self._task = task
        return self._env[1]

    def _load(self, spec: PolicySpec, env: Env) -> Policy:
        if spec.name == "expert":
            return ExpertPolicy(env)
        if spec.name == "random":
            return RandomPolicy(env.action_size)
        if self._policy is None or self._policy[0] != spec:
            self._policy = spec, _package(spec)
        return self._policy[1]


def _package(spec: PolicySpec) -> Policy:
    from npukit.policies import policy as policies

    assert spec.folder is not None
    options: dict[str, Any] = {"threads": spec.threads, "emulate": spec.emulate, "unnorm_key": spec.unnorm_key}
    if spec.backend is not None:
        options["backend"] = spec.backend
    opened: Policy = policies.Policy(spec.folder, **options)
    return opened


_player = Player()


def run(spec: PolicySpec, job: Job) -> Episode:
    """Play one episode in this process, which keeps policy and environment for the next; called in a worker."""
    return _player.play(spec, job)

# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""Many episodes in worker processes, kept as one JSON line each, so that what was interrupted goes on where it was.

A folder of results holds `run.json` (what is evaluated), `episodes.jsonl` (one line an episode, in the order in which
they ended), `results.json` (the summary), `videos/` and `observations/`.
"""

from __future__ import annotations

import dataclasses
import json
import os
import queue
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from npukit import files, log
from npukit.errors import InputError, UsageError, WorkerDied
from npukit.sim import episode, gl, statistics
from npukit.sim.episode import Episode, Job, Policy, PolicySpec

EPISODES, RUN, RESULTS = "episodes.jsonl", "run.json", "results.json"
VIDEOS, OBSERVATIONS = "videos", "observations"
_MAX_LINE = 1 << 16
_MOST_DEATHS = 5  # of worker processes, one after the other, before an evaluation is given up

Key = tuple[str, str, int, int]


def key(one: Episode | Job) -> Key:
    """What makes two episodes a pair: environment, task, number and seed."""
    return one.env, one.task, one.episode, one.seed


# ---------------------------------------------------------------- files


def read(folder: Path) -> list[Episode]:
    """The episodes in a folder of results; a last line that was cut off is left out, the last of equals counts.

    Raises:
        InputError: a line is not an episode.
        NpukitError: the file cannot be read.
    """
    path = folder / EPISODES
    found: dict[Key, Episode] = {}
    with files.os_errors(path, "read"):
        lines = path.read_bytes().split(b"\n")
    for number, line in enumerate(lines[:-1], 1):  # what follows the last newline was cut off
        if line.strip():
            one = _episode(line, path, number)
            found[key(one)] = one
    return list(found.values())


_TYPES: dict[str, Any] = {"str": str, "int": int, "bool": bool, "float": (int, float), "dict[str, int]": dict}
_ADDED: dict[str, Any] = {"video": "", "saturated": {}}  # fields that older results do not have


def _episode(line: bytes, path: Path, number: int) -> Episode:
    where = f"{path}, line {number}"
    try:
        values = json.loads(line) if len(line) <= _MAX_LINE else None
    except ValueError as error:
        raise InputError(f"not a line of JSON ({error})", where=where) from error
    if not isinstance(values, dict):
        raise InputError("not an episode", where=where)
    kept: dict[str, Any] = {}
    for field in dataclasses.fields(Episode):
        value = values.get(field.name, _ADDED.get(field.name))
        sound = isinstance(value, _TYPES[str(field.type)])
        if not sound or (isinstance(value, dict) and not all(type(count) is int for count in value.values())):
            raise InputError(f"{field.name!r} is missing, or not of type {field.type}", where=where)
        kept[field.name] = value
    return Episode(**kept)


def _lock(file: Any, folder: Path) -> None:
    """Keep a second evaluation out of the folder while this one runs; the system forgets it with the process."""
    try:
        import fcntl
    except ImportError:  # Windows
        return
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        file.close()
        raise UsageError(
            "another evaluation is writing here", where=str(folder), hint="wait for it, or choose another folder"
        ) from error


class _Record:
    """The file of episodes, which grows by whole lines."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / EPISODES
        with files.os_errors(self._path, "write"):
            self._file = open(self._path, "ab")  # noqa: SIM115  closed by `close`
            _lock(self._file, folder)
            if self._file.tell() and self._path.read_bytes()[-1:] != b"\n":
                self._trim()

    def _trim(self) -> None:
        """Cut off a line that an interruption left half-written."""
        data = self._path.read_bytes()
        os.truncate(self._path, data.rfind(b"\n") + 1)

    def add(self, one: Episode) -> None:
        with files.os_errors(self._path, "write"):
            self._file.write(json.dumps(dataclasses.asdict(one)).encode() + b"\n")
            self._file.flush()

    def close(self) -> None:
        self._file.close()


def begin(folder: Path, what: dict[str, Any]) -> None:
    """Make a folder of results, or see that it is one of the same `what`.

    Raises:
        UsageError: the folder holds the results of something else; the message says what differs.
        NpukitError: it cannot be written.
    """
    path = folder / RUN
    with files.os_errors(folder, "write"):
        folder.mkdir(parents=True, exist_ok=True)
    if path.exists():
        with files.os_errors(path, "read"):
            try:
                before = json.loads(path.read_text("utf-8"))
            except ValueError as error:
                raise InputError(f"damaged ({error})", where=str(path), hint="choose another folder") from error
        names = [k for k in {**what, **before} if what.get(k) != before.get(k)] if isinstance(before, dict) else ["all"]
        if names:
            raise UsageError(
                f"the folder holds the results of another evaluation: {', '.join(sorted(names))} differ",
                where=str(folder),
                hint="choose another folder, or repeat the options of the first run",
            )
    else:
        files.atomic_write_bytes(path, json.dumps(what, indent=2).encode() + b"\n")


# ---------------------------------------------------------------- running


def run(
    spec: PolicySpec,
    jobs: Sequence[Job],
    *,
    workers: int = 1,
    timeout: float | None = None,
    done: Callable[[Episode], None] | None = None,
) -> list[Episode]:
    """Play `jobs` in `workers` processes; returns their results in the order of the jobs.

    Args:
        spec: the policy, opened once in each process.
        jobs: the episodes.
        workers: how many processes.
        timeout: seconds that an episode may take, opening policy and environment included; it has failed then.
        done: called with each result as it comes.

    Raises:
        NpukitError: policy or environment cannot be opened, or do not fit each other.
    """
    results: dict[int, Episode] = {}
    todo: queue.SimpleQueue[tuple[int, Job]] = queue.SimpleQueue()
    for item in enumerate(jobs):
        todo.put(item)
    out: queue.SimpleQueue[tuple[int, Episode] | BaseException | None] = queue.SimpleQueue()
    hands = [_Hand(spec, todo, out, timeout) for _ in range(min(workers, len(jobs)))]
    busy = len(hands)
    try:
        for hand in hands:
            hand.start()
        while busy:
            try:
                came = out.get(timeout=0.5)  # a wait without an end would not see Ctrl-C on Windows
            except queue.Empty:
                continue
            if came is None:
                busy -= 1
            elif isinstance(came, BaseException):
                raise came
            else:
                number, one = came
                results[number] = one
                if done is not None:
                    done(one)
                log.report(f"{len(results)} of {len(jobs)} episodes", len(results) / len(jobs))
    finally:
        for hand in hands:
            hand.stop()
        for hand in hands:
            hand.join()
    return [results[number] for number in sorted(results)]


class _Hand(threading.Thread):
    """Takes jobs until there are none, one worker process at a time."""

    def __init__(self, spec: PolicySpec, todo: Any, out: Any, timeout: float | None) -> None:
        super().__init__(daemon=True)
        self._spec, self._todo, self._out, self._timeout = spec, todo, out, timeout
        self._stopped = False
        self._deaths = 0  # in a row
        self._lock = threading.Lock()
        self._worker: Any = None

    def run(self) -> None:
        """The thread's own."""
        try:
            while not self._stopped:
                try:
                    number, job = self._todo.get_nowait()
                except queue.Empty:
                    break
                self._out.put((number, self._play(job)))
        except BaseException as error:
            if not self._stopped:
                self._out.put(error)
        finally:
            self._close()
            self._out.put(None)

    def _play(self, job: Job) -> Episode:
        worker = self._open()
        begin = time.monotonic()
        try:
            one: Episode = worker.call("npukit.sim.episode:run", self._spec, job, timeout=self._timeout)
        except WorkerDied as error:
            late = self._timeout is not None and time.monotonic() - begin >= self._timeout
            self._deaths = 0 if late else self._deaths + 1
            if self._stopped or self._deaths == _MOST_DEATHS:  # no use in going on
                raise
            self._close()
            return episode.lost(job, error)
        self._deaths = 0
        return one

    def _open(self) -> Any:
        from npukit.worker import Worker

        with self._lock:
            if self._worker is None and not self._stopped:
                self._worker = Worker(env=gl.environment())
            if self._worker is None:
                raise WorkerDied("the evaluation was stopped")
            return self._worker

    def _close(self) -> None:
        with self._lock:
            worker, self._worker = self._worker, None
        if worker is not None:
            worker.close()

    def stop(self) -> None:
        """End the process, whatever it is doing."""
        self._stopped = True
        threading.Thread(target=self._close, daemon=True).start()  # closing waits for the child: all at once


def play_here(policy: Policy, jobs: Iterable[Job], *, done: Callable[[Episode], None] | None = None) -> list[Episode]:
    """Play `jobs` of one environment with a policy object of this process (PyTorch while training, say).

    Example:
        >>> jobs = npukit.sim.evaluate.plan("light", episodes=2, seed=100_000)
        >>> episodes = npukit.sim.evaluate.play_here(my_policy, jobs)

    Raises:
        NpukitError: as `run`.
    """
    results: list[Episode] = []
    player = episode.Player()
    try:
        for job in jobs:
            results.append(episode.play(policy, player.open(job), job))
            if done is not None:
                done(results[-1])
    finally:
        player.close()
    return results


def plan(
    env: str,
    *,
    episodes: int,
    seed: int,
    tasks: Sequence[str] = (),
    step_limit: int | None = None,
    ablation: str | None = None,
    image_size: int | None = None,
) -> list[Job]:
    """The episodes of an evaluation: for each task the numbers 0 to `episodes` - 1, with the seeds `seed` + number.

    Args:
        env: name of the environment.
        episodes: of each task.
        seed: of the first episode of each task.
        tasks: names or patterns; none for all.
        step_limit: instead of the environment's.
        ablation: "blank-images" or "other-instruction" (that of another task, by seed), to see whether the policy
            looks and listens.
        image_size: edge of the pictures in pixels; None for the environment's own.

    Raises:
        UsageError: no such environment or task, or a count that cannot be.
    """
    from npukit.sim import envs

    if episodes < 1:
        raise UsageError(f"at least 1 episode is needed, not {episodes}", where="--episodes")
    if seed < 0:
        raise UsageError(f"a seed is at least 0, not {seed}", where="--seed")
    if step_limit is not None and step_limit < 1:
        raise UsageError(f"at least 1 step is needed, not {step_limit}", where="--steps-limit")
    every = envs.tasks(env)
    jobs = []
    for task in envs.chosen(env, tasks):
        others = [other.description for other in every if other.description != task.description]
        for number in range(episodes):
            told = others[(seed + number) % len(others)] if ablation == episode.OTHER and others else None
            jobs.append(
                Job(
                    env,
                    task.name,
                    task.description,
                    number,
                    seed + number,
                    step_limit or task.step_limit,
                    instruction=told,
                    blank=ablation == episode.BLANK,
                    image_size=image_size,
                )  # fmt: skip
            )
    return jobs


# ---------------------------------------------------------------- summary


@dataclasses.dataclass(frozen=True)
class Row:
    """A task's results, or those of all.

    Attributes:
        task: name of the task.
        description: its instruction.
        episodes: played.
        successes: solved.
        errors: ended by an error (they count as failures).
        low: lower end of the success rate's 95 % interval (Wilson), as a share of 1.
        high: upper end.
        steps: mean number of steps of the solved episodes; None without any.
    """

    task: str
    description: str
    episodes: int
    successes: int
    errors: int
    low: float
    high: float
    steps: float | None

    @property
    def rate(self) -> float:
        """Success rate as a share of 1."""
        return self.successes / self.episodes if self.episodes else 0.0


def summarize(episodes: Sequence[Episode]) -> tuple[list[Row], Row]:
    """One row a task, in the order of first appearance, and the total."""
    groups: dict[str, list[Episode]] = {}
    for one in episodes:
        groups.setdefault(one.task, []).append(one)
    rows = [_row(name, group[0].description, group) for name, group in groups.items()]
    return rows, _row("total", "", episodes)


def _row(name: str, description: str, episodes: Sequence[Episode]) -> Row:
    solved = [one.steps for one in episodes if one.success]
    low, high = statistics.wilson(len(solved), len(episodes))
    errors = sum(one.failed for one in episodes)
    steps = sum(solved) / len(solved) if solved else None
    return Row(name, description, len(episodes), len(solved), errors, low, high, steps)


def compare(first: Sequence[Episode], second: Sequence[Episode]) -> statistics.Paired:
    """The second result minus the first, on the episodes that both have.

    Example:
        >>> read = npukit.sim.evaluate.read
        >>> npukit.sim.evaluate.compare(read(Path("float")), read(Path("w8a16"))).to_text()

    Raises:
        InputError: they have no episode in common.
    """
    ours, theirs = ({key(one): one.success for one in group} for group in (first, second))
    pairs = [(ours[k], theirs[k]) for k in ours if k in theirs]
    if not pairs:
        raise InputError("the two results have no episode in common", hint="evaluate both with the same seed and tasks")
    count = {pair: pairs.count(pair) for pair in ((False, True), (True, False), (True, True), (False, False))}
    return statistics.paired(count[False, True], count[True, False], count[True, True], count[False, False])


def evaluate(
    spec: PolicySpec,
    jobs: Sequence[Job],
    folder: Path,
    what: dict[str, Any],
    *,
    workers: int = 1,
    timeout: float | None = None,
) -> tuple[list[Episode], int]:
    """Play those of `jobs` that `folder` does not have yet; returns all of them and how many were there already.

    Ctrl-C leaves a folder with which the same call goes on.

    Raises:
        UsageError: the folder holds the results of something else than `what`.
        NpukitError: as `run`.
    """
    begin(folder, what)
    record = _Record(folder)
    try:
        before = {key(one): one for one in read(folder)}
        rest = [job for job in jobs if key(job) not in before]
        played = run(spec, rest, workers=workers, timeout=timeout, done=record.add) if rest else []
    finally:
        record.close()
    every = before | {key(one): one for one in played}
    return [every[key(job)] for job in jobs if key(job) in every], len(jobs) - len(rest)

# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""Evaluation: statistics against published figures, files that go on, errors that count, videos that play."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sim_tools import needs_rendering

from npukit.errors import InputError, NpukitError, UsageError, WorkerDied
from npukit.policies import observations
from npukit.sim import episode, eval_verb, evaluate, statistics
from npukit.sim.episode import Episode, Job
from npukit.sim.eval_verb import EvalOptions, EvalResult
from npukit.sim.eval_verb import evaluate as policy_eval


def _episode(number: int, success: bool, task: str = "reach_red", **fields: Any) -> Episode:
    base = Episode("light", task, "reach the red block", "reach the red block", number, number, success, 9,
                   "success" if success else "step limit", 1.0, 0.5, "0" * 16)  # fmt: skip
    return dataclasses.replace(base, **fields)


# ---------------------------------------------------------------- statistics


@pytest.mark.parametrize(
    ("successes", "trials", "low", "high"),
    # Newcombe, Statistics in Medicine 17 (1998), table I, method 3.
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_wilson(successes: int, trials: int, low: float, high: float) -> None:
    assert statistics.wilson(successes, trials) == pytest.approx((low, high), abs=5e-5)


def test_wilson_of_nothing() -> None:
    assert statistics.wilson(0, 0) == (0.0, 1.0)


def test_paired_interval_covers() -> None:
    """Of many simulated pairs about 95 % of the intervals hold the true difference."""
    rng = np.random.default_rng(0)
    shares = [0.05, 0.02, 0.85, 0.08]  # gained, lost, both, neither: true difference 0.03
    held = 0
    for counts in rng.multinomial(200, shares, 1000):
        found = statistics.paired(*map(int, counts))
        held += found.low <= 0.03 <= found.high
    assert 930 <= held <= 980


def test_paired_widths_that_were_planned_with() -> None:
    """At 6 % discordant pairs: 200 give about 3.4 points, 1000 about 1.5."""
    for pairs, points in ((200, 3.4), (1000, 1.5)):
        found = statistics.paired(pairs * 3 // 100, pairs * 3 // 100, pairs * 94 // 100, 0)
        assert 100 * (found.high - found.low) / 2 == pytest.approx(points, abs=0.3)


def test_mcnemar_exact() -> None:
    assert statistics.paired(0, 0, 10, 0).p_value == 1.0
    assert statistics.paired(5, 0, 10, 0).p_value == pytest.approx(2 / 32)
    assert statistics.paired(8, 2, 10, 0).p_value == pytest.approx(2 * 56 / 1024)
    assert 0 < statistics.paired(900, 700, 10, 0).p_value < 1e-5
    assert statistics.paired(0, 0, 1000, 0).high > 0  # no discordant pair is not certainty


def test_compare_takes_the_episodes_that_both_have() -> None:
    first = [_episode(i, i != 0) for i in range(6)]
    second = [_episode(i, i not in (1, 2)) for i in range(5)]
    found = evaluate.compare(first, second)
    assert (found.pairs, found.gained, found.lost, found.first, found.second) == (5, 1, 2, 4, 3)
    assert found.difference == pytest.approx(-0.2)
    assert "-20.0 points" in found.to_text()
    with pytest.raises(InputError, match="no episode in common"):
        evaluate.compare(first, [_episode(99, True)])


# ---------------------------------------------------------------- files


def test_results_are_read_back(tmp_path: Path) -> None:
    kept = [_episode(0, True, video="a.mp4"), _episode(1, False, reason="error: RuntimeError: boom")]
    record = evaluate._Record(tmp_path)
    for one in kept:
        record.add(one)
    record.close()
    assert evaluate.read(tmp_path) == kept


def test_a_line_cut_off_is_played_again(tmp_path: Path) -> None:
    record = evaluate._Record(tmp_path)
    record.add(_episode(0, True))
    record.add(_episode(1, True))
    record.close()
    path = tmp_path / evaluate.EPISODES
    path.write_bytes(path.read_bytes()[:-30])
    assert evaluate.read(tmp_path) == [_episode(0, True)]
    record = evaluate._Record(tmp_path)
    record.add(_episode(2, True))
    record.close()
    assert evaluate.read(tmp_path) == [_episode(0, True), _episode(2, True)]


@pytest.mark.parametrize("line", ["{", "[]", "{}", '{"env": 3}', '"' + "x" * 100_000 + '"'])
def test_damaged_results_are_named(tmp_path: Path, line: str) -> None:
    (tmp_path / evaluate.EPISODES).write_text(line + "\n")
    with pytest.raises(InputError, match="line 1"):
        evaluate.read(tmp_path)


def test_a_folder_of_something_else_is_refused(tmp_path: Path) -> None:
    evaluate.begin(tmp_path, {"env": "light", "seed": 1})
    evaluate.begin(tmp_path, {"env": "light", "seed": 1})
    with pytest.raises(UsageError, match="another evaluation: seed differ"):
        evaluate.begin(tmp_path, {"env": "light", "seed": 2})


@pytest.mark.skipif(os.name != "posix", reason="files are locked on POSIX only")
def test_two_evaluations_do_not_write_to_one_folder(tmp_path: Path) -> None:
    record = evaluate._Record(tmp_path)
    with pytest.raises(UsageError, match="another evaluation is writing here"):
        evaluate._Record(tmp_path)
    record.close()
    evaluate._Record(tmp_path).close()


# ---------------------------------------------------------------- plan


def test_plan() -> None:
    jobs = evaluate.plan("light", episodes=2, seed=50, tasks=("push_red_*",), step_limit=7)
    assert [(job.task, job.episode, job.seed, job.step_limit) for job in jobs] == [
        ("push_red_left", 0, 50, 7), ("push_red_left", 1, 51, 7),
        ("push_red_right", 0, 50, 7), ("push_red_right", 1, 51, 7),
    ]  # fmt: skip
    assert {job.instruction for job in jobs} == {None}
    others = evaluate.plan("light", episodes=20, seed=0, tasks=("reach_red",), ablation="other-instruction")
    told = {job.instruction for job in others}
    assert len(told) == 11
    assert "reach the red block" not in told
    assert all(job.blank for job in evaluate.plan("light", episodes=1, seed=0, ablation="blank-images"))


@pytest.mark.parametrize("options", [{"episodes": 0}, {"seed": -1}, {"step_limit": 0}, {"tasks": ("fly",)}])
def test_plans_that_cannot_be(options: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        evaluate.plan("light", **{"episodes": 1, "seed": 0, **options})


# ---------------------------------------------------------------- one episode


class _Stub:
    """An environment that is solved by the third action."""

    instruction, step_limit, control_hz, action_size = "do it", 5, 20, 2

    def __init__(self) -> None:
        self.steps = 0
        self.resets: list[Any] = []

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        self.steps = 0
        self.resets.append((seed, options))
        return self._observation(), {}

    def step(self, action: Any) -> Any:
        self.steps += 1
        return self._observation(), 0.0, self.steps == 3, False, {"success": self.steps == 3}

    def _observation(self) -> dict[str, Any]:
        picture = np.full((4, 4, 3), 9, np.uint8)
        return {"observation.images.image": picture, "observation.state": np.ones(2, np.float32), "task": "do it"}

    def render(self) -> Any:
        return np.full((33, 35, 3), 40 * self.steps, np.uint8)

    def close(self) -> None:
        pass


class _Acts:
    def __init__(self, action: Any = (0.0, 0.5), fail_at: int = -1, error: Exception | None = None) -> None:
        self.seen: list[dict[str, Any]] = []
        self.seeds: list[int | None] = []
        self._action, self._fail_at, self._error = action, fail_at, error

    def reset(self, seed: int | None = None) -> None:
        self.seeds.append(seed)

    def select_action(self, observation: dict[str, Any]) -> Any:
        self.seen.append(observation)
        if len(self.seen) == self._fail_at + 1:
            assert self._error is not None
            raise self._error
        return self._action


JOB = Job("stub", "it", "do it", 3, 11, 5)


def test_play() -> None:
    env, policy = _Stub(), _Acts()
    done = episode.play(policy, env, JOB)
    assert (done.success, done.steps, done.reason, done.instruction) == (True, 3, "success", "do it")
    assert env.resets == [(11, {"episode": 3})]
    assert policy.seeds == [11]
    assert done.actions == episode.play(_Acts(), env, JOB).actions
    assert done.actions != episode.play(_Acts((0.0, 0.6)), env, JOB).actions
    assert episode.play(_Acts(), env, dataclasses.replace(JOB, step_limit=2)).reason == "step limit"


def test_ablations_change_what_the_policy_sees() -> None:
    policy = _Acts()
    done = episode.play(policy, _Stub(), dataclasses.replace(JOB, instruction="another", blank=True))
    assert {seen["task"] for seen in policy.seen} == {"another"}
    assert all(not seen["observation.images.image"].any() for seen in policy.seen)
    assert all(seen["observation.state"].all() for seen in policy.seen)
    assert (done.description, done.instruction) == ("do it", "another")


def test_a_failure_within_an_episode_is_recorded() -> None:
    for error in (RuntimeError("boom"), NpukitError("boom"), InputError("boom")):
        done = episode.play(_Acts(fail_at=1, error=error), _Stub(), JOB)
        assert (done.success, done.steps) == (False, 1)
        assert done.reason == f"error: {type(error).__name__}: boom"
        assert done.failed
    done = episode.play(_Acts(action=(float("nan"), 0.0)), _Stub(), JOB)
    assert "not finite" in done.reason


def test_a_policy_that_does_not_fit_ends_the_evaluation() -> None:
    with pytest.raises(InputError, match="no camera"):
        episode.play(_Acts(fail_at=0, error=InputError("no camera 'front'")), _Stub(), JOB)
    with pytest.raises(UsageError, match=r"actions are \[3\], the environment's \[2\]"):
        episode.play(_Acts(action=(0, 0, 0)), _Stub(), JOB)


def test_video_decodes(tmp_path: Path) -> None:
    av = pytest.importorskip("av")
    path = tmp_path / "videos" / "it.mp4"
    done = episode.play(_Acts(), _Stub(), dataclasses.replace(JOB, video=path))
    assert done.video == "it.mp4"
    with av.open(str(path)) as container:
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
        assert container.streams.video[0].average_rate == 20
    assert len(frames) == 4  # before each of three actions, and the end
    assert frames[0].shape == (222, 210, 3)  # 33 x 35 six times, and a line of text
    for step, frame in enumerate(frames):
        assert frame[4:190, 4:200].mean() == pytest.approx(40 * step, abs=6)
    assert [file.name for file in path.parent.iterdir()] == ["it.mp4"]


@pytest.mark.parametrize(("steps", "kept"), [(1, 1), (3, 3), (4, 4), (5, 4), (100, 4)])
def test_observations_are_kept_evenly(steps: int, kept: int, tmp_path: Path) -> None:
    held = episode._Kept(4)
    state = np.zeros(1, np.float32)
    for step in range(steps):
        state[0] = step  # environments may use their arrays again
        held.add({"observation.state": state, "task": "do it"})
    held.write(tmp_path / "kept" / "it.npz")
    found = observations.read(tmp_path / "kept")
    times = [float(one["observation.state"][0]) for one in found]
    assert len(times) == kept
    assert times[0] == 0
    assert {one["task"] for one in found} == {"do it"}
    if steps > 8:
        assert set(np.diff(times)) <= {16.0, 32.0}  # of every 16th, 7 of them, four
        assert times[-1] >= steps / 2


def test_what_the_policy_saw_is_recorded(tmp_path: Path) -> None:
    job = dataclasses.replace(JOB, instruction="another", observations=tmp_path / "a.npz", kept=2)
    assert episode.play(_Acts(), _Stub(), job).success
    found = observations.read(tmp_path / "a.npz")
    assert [one["task"] for one in found] == ["another"] * 2
    assert found[0]["observation.images.image"].shape == (4, 4, 3)
    episode.play(
        _Acts(fail_at=1, error=RuntimeError("boom")), _Stub(), dataclasses.replace(job, observations=tmp_path / "b")
    )
    assert not (tmp_path / "b").exists()
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="no .npz file"):
        observations.read(tmp_path / "empty")


# ---------------------------------------------------------------- workers


def test_a_worker_that_keeps_dying_ends_the_evaluation(monkeypatch: pytest.MonkeyPatch) -> None:
    jobs = [dataclasses.replace(JOB, episode=i) for i in range(20)]

    class Dies:
        def __init__(self, **_: Any) -> None:
            pass

        def call(self, *args: Any, **_: Any) -> Any:
            raise WorkerDied("the worker process ended by signal 11")

        def close(self) -> None:
            pass

    monkeypatch.setattr("npukit.worker.Worker", Dies)
    kept: list[Episode] = []
    with pytest.raises(WorkerDied):
        evaluate.run(episode.PolicySpec("random"), jobs, done=kept.append)
    assert [one.reason for one in kept] == ["error: WorkerDied: the worker process ended by signal 11"] * 4


@needs_rendering
def test_episodes_that_take_too_long_have_failed() -> None:
    jobs = evaluate.plan("light", episodes=6, seed=0, tasks=("reach_red",))
    kept = evaluate.run(episode.PolicySpec("random"), jobs, timeout=0.05)
    assert len(kept) == 6
    assert all("no answer within 0.05 s" in one.reason for one in kept)


# ---------------------------------------------------------------- the verb


def _eval(folder: Path, **options: Any) -> EvalResult:
    given: dict[str, Any] = {"policy": "expert", "tasks": ("reach_red", "lift_blue"), "episodes": 1, "image_size": 16}
    result: EvalResult = policy_eval(output=folder, **{**given, **options})
    return result


@needs_rendering
def test_expert_in_two_workers_resumed_filmed_compared(tmp_path: Path) -> None:
    av = pytest.importorskip("av")
    first = _eval(tmp_path / "a", workers=2, video=-1, record=3)
    assert (first.total.successes, first.total.episodes, first.resumed, first.exit_code) == (2, 2, 0, 0)
    for name in ("reach_red-0000.mp4", "lift_blue-0000.mp4"):
        with av.open(str(tmp_path / "a" / "videos" / name)) as container:
            assert sum(1 for _ in container.decode(video=0)) >= 8
    again = _eval(tmp_path / "a", episodes=2, workers=2)
    assert (again.total.episodes, again.resumed) == (4, 2)
    recorded = observations.read(tmp_path / "a" / "observations")
    assert len(recorded) == 6
    assert {one["task"] for one in recorded} == {"reach the red block", "lift the blue block"}
    assert len((tmp_path / "a" / "episodes.jsonl").read_text().splitlines()) == 4
    alone = _eval(tmp_path / "b", episodes=2, against=tmp_path / "a", min_success=100.0)
    assert [one.actions for one in alone.episodes] == [one.actions for one in again.episodes]  # deterministic
    assert alone.comparison is not None
    assert (alone.comparison.pairs, alone.comparison.discordant) == (4, 0)
    text = alone.to_text()
    assert "lift the blue block" in text
    assert "4/4" in text
    assert "against" in text
    written = json.loads((tmp_path / "b" / "results.json").read_text())
    assert written["total"]["successes"] == 4
    assert {one["seed"] for one in written["episodes"]} == {100_000, 100_001}
    with pytest.raises(UsageError, match="another evaluation: policy"):
        _eval(tmp_path / "a", policy="random")


@needs_rendering
def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from npukit.cli.main import main

    options = ["policy", "eval", "--policy", "expert", "--task", "0", "--episodes", "1", "--image-size", "16"]
    assert main([*options, "-o", str(tmp_path / "a"), "--json", "--seed", "7"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["total"]["successes"], found["episodes"][0]["seed"], found["tasks"][0]["task"]) == (1, 7, "reach_red")
    assert main([*options, "-o", str(tmp_path / "b"), "--video", "some"]) == 2
    assert "a number or 'all' is needed" in capsys.readouterr().err
    assert main([*options, "-o", str(tmp_path / "b"), "--env", "lite"]) == 2
    assert "did you mean 'light'" in capsys.readouterr().err


def test_videos_of_the_first_episodes_of_each_task(tmp_path: Path) -> None:
    jobs = evaluate.plan("light", episodes=3, seed=0, tasks=("reach_*",))
    for count, expected in ((-1, 9), (0, 0), (1, 3), (2, 6), (5, 9)):
        filmed = [eval_verb._filmed(job, tmp_path, count) for job in jobs]
        assert sum(job.video is not None for job in filmed) == expected


@needs_rendering
def test_random_fails_and_min_success_says_so(tmp_path: Path) -> None:
    result = _eval(tmp_path, policy="random", tasks=("lift_red",), step_limit=5, min_success=50.0)
    assert result.total.successes == 0
    assert result.exit_code == 1
    assert "at least 50 % were asked for" in result.to_text()


@needs_rendering
@pytest.mark.skipif(os.name != "posix", reason="sends SIGINT")
def test_interrupted_and_resumed(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "npukit", "policy", "eval", "--policy", "random", "--task", "lift_red",
               "--episodes", "100", "--image-size", "16", "-o", str(tmp_path)]  # fmt: skip
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    path = tmp_path / "episodes.jsonl"
    deadline = time.monotonic() + 60
    while not (path.exists() and path.stat().st_size) and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130, said
    kept = len(evaluate.read(tmp_path))
    assert 1 <= kept < 100
    result = _eval(tmp_path, policy="random", tasks=("lift_red",), episodes=kept + 1)
    assert (result.resumed, result.total.episodes) == (kept, kept + 1)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({}, "either a policy's folder or --policy"),
        ({"policy": "expert", "policy_dir": Path("x"), "output": Path("o")}, "either a policy's folder or --policy"),
        ({"policy": "expert"}, "where should the results go"),
        ({"policy": "expert", "env": "robosuite", "output": Path("o")}, "cannot play robosuite"),
        ({"policy": "magic", "output": Path("o")}, "no built-in policy"),
        ({"policy": "expert", "output": Path("o"), "workers": 0}, "at least 1"),
        ({"policy": "expert", "output": Path("o"), "record": -1}, "at least 0"),
        ({"policy_dir": Path("nowhere"), "output": Path("o")}, "no policy.json"),
    ],
)
def test_options_that_cannot_be_meant(options: dict[str, Any], says: str) -> None:
    with pytest.raises(NpukitError, match=says):
        policy_eval(EvalOptions(**options))

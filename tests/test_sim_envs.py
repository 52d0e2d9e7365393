# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""The adapters of LIBERO and robosuite, against doubles: the protocol as it was recorded, and what is refused."""

from __future__ import annotations

import importlib.util
import io
import json
import os
import pickle
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from npukit.errors import InputError, MissingDependency, UsageError
from npukit.sim import envs, init_states, libero, panda
from npukit.sim.episode import Episode, Job, PolicySpec
from npukit.worker import Worker

DOUBLES = Path(__file__).parent / "sim_doubles"
RANDOM = PolicySpec("random")


def _save(path: Path, pickled: bytes, member: str = "archive/data.pkl") -> Path:
    """A file as `torch.save` writes it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(member, pickled)
        archive.writestr("archive/version", "3\n")
    return path


@pytest.fixture
def doubles(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """LIBERO's double with its files, found by this process and by its children; returns the trace's path."""
    data = tmp_path / "double"
    for path in DOUBLES.rglob("*.py"):
        target = data / path.relative_to(DOUBLES)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(path.read_bytes())
    for suite, task in (("libero_goal", "push_the_plate"), ("libero_10", "KITCHEN_SCENE3_turn_on_the_stove")):
        states = np.arange(6.0).reshape(3, 2)
        _save(data / "libero/libero/init_files" / suite / f"{task}.pruned_init", pickle.dumps(states, 2))
        bddl = data / "libero/libero/bddl_files" / suite / f"{task}.bddl"
        bddl.parent.mkdir(parents=True, exist_ok=True)
        bddl.write_text("(define)")
    (tmp_path / "assets" / "scenes").mkdir(parents=True)
    monkeypatch.syspath_prepend(str(data))
    monkeypatch.setenv("PYTHONPATH", str(data))
    monkeypatch.setenv("LIBERO_ASSETS", str(tmp_path / "assets"))
    monkeypatch.setenv("LIBERO_CONFIG_PATH", str(tmp_path / "nothing"))
    monkeypatch.setenv("SIM_DOUBLE_TRACE", str(tmp_path / "trace"))
    importlib.invalidate_caches()
    return tmp_path / "trace"


def _job(task: str, *, env: str = "libero_goal", episode: int = 0, limit: int = 3) -> Job:
    return Job(env, task, libero.instruction(task), episode, 100 + episode, limit, image_size=8)


def _play(job: Job, **variables: str) -> Episode:
    with Worker(env=variables) as worker:
        result: Episode = worker.call("npukit.sim.episode:run", RANDOM, job, timeout=60)
    return result


def test_libero_protocol(doubles: Path, tmp_path: Path) -> None:
    """Initial state by number, modulo their count; ten idle steps; then the policy, up to the limit."""
    result = _play(_job("push_the_plate", episode=4))
    assert (result.success, result.steps, result.reason) == (False, 3, "step limit")
    trace = [json.loads(line) for line in doubles.read_text().splitlines()]
    made, seed, reset, state, *steps = trace
    assert made[0] == "make"
    assert made[1].endswith("libero_goal/push_the_plate.bddl")
    assert made[2] == str(tmp_path / "assets")
    assert seed == ["seed", 104]
    assert reset == ["reset"]
    assert state == ["set_init_state", [2.0, 3.0]]  # number 4 of 3 states: the second
    assert steps[:10] == [["step", [0, 0, 0, 0, 0, 0, -1]]] * 10
    assert len(steps) == 13
    assert all(len(step[1]) == 7 and step[1] != [0, 0, 0, 0, 0, 0, -1] for step in steps[10:])


def test_libero_success_is_the_environments_done(doubles: Path) -> None:
    result = _play(_job("push_the_plate"), SIM_DOUBLE_SOLVED="12")
    assert (result.success, result.steps, result.reason) == (True, 2, "success")


def test_an_exception_in_an_episode_is_a_failure_with_its_reason(doubles: Path) -> None:
    result = _play(_job("push_the_plate"), SIM_DOUBLE_FAILS="11")
    assert (result.success, result.steps) == (False, 0)
    assert result.reason == "error: RuntimeError: the simulation diverged"


def test_libero_observation(doubles: Path) -> None:
    """Both pictures turned by 180 degrees, 8 numbers of state, the instruction from the file's name."""
    with Worker() as worker:
        seen = worker.call("npukit.sim.envs:first", "libero_10", "KITCHEN_SCENE3_turn_on_the_stove", 8, timeout=60)
    assert seen["task"] == "turn on the stove"
    for name, value in (("image", 255), ("image2", 127)):
        picture = seen[f"observation.images.{name}"]
        assert picture.shape == (8, 8, 3)
        assert np.argwhere(picture[..., 0] == value).tolist() == [[7, 7]]
    expected = [0.1, 0.2, 10.3, 0.5, 0, 0, 0.04, -0.04]
    np.testing.assert_allclose(seen["observation.state"], expected, atol=1e-6)
    assert seen["observation.state"].dtype == np.float32


def test_libero_step_limits_and_names(doubles: Path) -> None:
    limits = {suite: envs.tasks(suite)[0].step_limit for suite in envs.LIBERO_SUITES}
    assert limits == {"libero_spatial": 220, "libero_object": 280, "libero_goal": 300, "libero_10": 520}
    assert [task.description for task in envs.tasks("libero_10")] == ["turn on the stove", "put both away"]
    assert [task.name for task in envs.chosen("libero_goal", ("1", "open_*"))] == ["open_the_drawer", "push_the_plate"]
    with pytest.raises(UsageError, match="no task 'push_the_plat'"):
        envs.make("libero_goal", "push_the_plat")


def test_libero_without_assets(doubles: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("LIBERO_ASSETS", str(tmp_path / "nowhere"))
    with pytest.raises(MissingDependency, match="there are no scenes") as caught:
        envs.make("libero_goal", "push_the_plate")
    assert "LIBERO_ASSETS=" in caught.value.hint
    monkeypatch.delenv("LIBERO_ASSETS")
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(MissingDependency, match="assets are not installed"):
        envs.make("libero_goal", "push_the_plate")


@pytest.mark.skipif(importlib.util.find_spec("libero") is not None, reason="LIBERO is installed")
def test_libero_is_not_installed() -> None:
    with pytest.raises(MissingDependency, match="LIBERO is not installed") as caught:
        envs.tasks("libero_spatial")
    assert caught.value.exit_code == 3
    assert "pip install" in caught.value.hint


def test_robosuite(doubles: Path) -> None:
    """Upright pictures, placement by seed, success by robosuite's own check."""
    with Worker() as worker:
        first, again, other = (
            worker.call("npukit.sim.envs:first", "robosuite", "Lift", 8, seed, timeout=60) for seed in (1, 1, 2)
        )
    assert np.argwhere(first["observation.images.image"][..., 0]).tolist() == [[7, 0]]
    np.testing.assert_array_equal(first["observation.state"], again["observation.state"])
    assert first["observation.state"][0] != other["observation.state"][0]
    np.testing.assert_allclose(first["observation.state"][2:], [1, 0, 0, 0, 0.02, -0.02], atol=1e-6)
    result = _play(Job("robosuite", "Lift", "lift the cube", 0, 5, 10, image_size=8))
    assert (result.success, result.steps, result.instruction) == (True, 4, "lift the cube")


@pytest.mark.skipif(importlib.util.find_spec("robosuite") is not None, reason="robosuite is installed")
def test_robosuite_is_not_installed() -> None:
    with pytest.raises(MissingDependency, match="robosuite is not installed"):
        envs.make("robosuite", "Lift")


def test_axis_angle() -> None:
    np.testing.assert_array_equal(panda.axis_angle([0, 0, 0, 1]), [0, 0, 0])
    np.testing.assert_allclose(panda.axis_angle([0, 1, 0, 0]), [0, np.pi, 0])
    half = np.sqrt(0.5)
    np.testing.assert_allclose(panda.axis_angle([0, 0, half, half]), [0, 0, np.pi / 2])


def test_unknown_environment() -> None:
    with pytest.raises(UsageError, match="no environment 'lite'"):
        envs.tasks("lite")


# ---------------------------------------------------------------- initial states


@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize("order", ["C", "F"])
def test_initial_states_are_read_as_they_were(tmp_path: Path, protocol: int, order: Any) -> None:
    states = np.asarray(np.random.default_rng(0).normal(size=(5, 7)), order=order)
    found = init_states.read(_save(tmp_path / "s.pruned_init", pickle.dumps(states, protocol)))
    np.testing.assert_array_equal(found, states)


class _Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("touch executed",)


@pytest.mark.parametrize(
    ("value", "says"),
    [
        (_Evil(), "global posix.system"),
        ([np.zeros((2, 2)), _Evil()], "global posix.system"),
        (np.array([_Evil()], object), "posix.system|dtype"),
        ({"states": np.zeros((2, 2))}, "one array"),
        (np.zeros(4), "one array"),
        (np.full((2, 2), np.nan), "one array"),
        (np.zeros((0, 3)), "one array|bytes"),
        (np.array([["a"]]), "dtype"),
        (np.zeros((2, 2), ">f8"), "byte order"),
    ],
)
def test_initial_states_execute_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, value: Any, says: str) -> None:
    monkeypatch.chdir(tmp_path)
    path = _save(tmp_path / "s.pruned_init", pickle.dumps(value, 2))
    with pytest.raises(InputError, match=says):
        init_states.read(path)
    assert not (tmp_path / "executed").exists()


def test_initial_states_damaged(tmp_path: Path) -> None:
    whole = pickle.dumps(np.zeros((20, 30)), 2)
    for name, data in {"half": whole[: len(whole) // 2], "empty": b"", "text": b"hello"}.items():
        with pytest.raises(InputError):
            init_states.read(_save(tmp_path / name, data))
    with pytest.raises(InputError, match=r"no member data\.pkl"):
        init_states.read(_save(tmp_path / "other", whole, "archive/other"))
    lie = io.BytesIO(whole.replace(b"K\x14K\x1e", b"K\x15K\x1e"))  # a shape that the bytes do not fill
    with pytest.raises(InputError, match="do not fit"):
        init_states.read(_save(tmp_path / "lie", lie.getvalue()))


def test_initial_states_survive_mutation(tmp_path: Path) -> None:
    """Whatever bytes stand in the pickle: an array or a refusal, never another error."""
    rng = np.random.default_rng(0)
    whole = np.frombuffer(pickle.dumps(np.arange(12.0).reshape(3, 4), 2), np.uint8)
    refused = 0
    for _ in range(300):
        data = whole.copy()
        data[rng.integers(0, len(data), rng.integers(1, 4))] = rng.integers(0, 256)
        path = _save(tmp_path / "mutated", data.tobytes())
        try:
            assert init_states.read(path).ndim == 2
        except InputError:
            refused += 1
    assert 100 < refused < 300

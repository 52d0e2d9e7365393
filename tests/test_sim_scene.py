# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""The light scene: what it shows, when a task counts as done, that a seed says all, and that the expert solves it."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from sim_tools import needs_rendering

from npukit.errors import InputError, UsageError
from npukit.sim import demonstrations, envs, expert, scene

pytestmark = needs_rendering


@pytest.fixture(scope="module")
def light() -> Iterator[scene.LightScene]:
    env = scene.LightScene("reach_red")
    yield env
    env.close()


def _solve(env: scene.LightScene, task: str, seed: int, told: str | None = None) -> tuple[bool, int]:
    """Whether `task` counts as done while the expert does `told`."""
    env.change_task(task)
    env.reset(seed=seed)
    for step in range(1, env.step_limit + 1):
        env.change_task(told or task)
        action = expert.act(env)
        env.change_task(task)
        if env.step(action)[2]:
            return True, step
    return False, env.step_limit


@pytest.mark.parametrize("task", scene.TASKS)
def test_expert_solves_every_task(light: scene.LightScene, task: str) -> None:
    assert all(_solve(light, task, seed)[0] for seed in (1, 2))


@pytest.mark.slow
def test_expert_solves_98_percent(light: scene.LightScene, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(light, "_pictures", lambda size: [None, None])  # the expert does not look
    for task in scene.TASKS:
        assert sum(_solve(light, task, seed)[0] for seed in range(200)) >= 196


def test_doing_another_task_is_no_success(light: scene.LightScene, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever does not listen fails: the expert, told something else, does not solve a task by chance."""
    monkeypatch.setattr(light, "_pictures", lambda size: [None, None])
    solved = [
        (task, told)
        for i, task in enumerate(scene.TASKS)
        for j, told in enumerate(scene.TASKS)
        if i != j and (i + j) % 4 == 0 and _solve(light, task, 10 + i, told)[0]
    ]
    assert solved == []


def test_success_of_a_push_asks_for_direction_and_distance(light: scene.LightScene) -> None:
    light.change_task("push_red_left")
    light.reset(seed=1)
    at = light.model.joint("red").qposadr[0] + 1
    start = float(light.data.qpos[at])
    for moved, expected in ((0.0, False), (0.09, False), (-0.05, False), (-0.075, True)):
        light.data.qpos[at] = start + moved
        light._mujoco.mj_forward(light.model, light.data)
        assert light._judge() is expected


def test_left_is_left_in_the_picture(light: scene.LightScene) -> None:
    columns = []
    for task in ("push_red_left", "push_red_right"):
        _solve(light, task, 3)
        picture = light.render(128)[:, :128].astype(int)
        red = (picture[..., 0] > 120) & (picture[..., 1] < 60) & (picture[..., 2] < 60)
        columns.append(np.nonzero(red)[1].mean())
    assert columns[0] + 20 < columns[1]


def test_observation_has_no_poses_of_blocks(light: scene.LightScene) -> None:
    """State and instruction are the same wherever the blocks are; the pictures are not."""
    light.change_task("reach_red")
    before, _ = light.reset(seed=5)
    light.data.qpos[light.model.joint("red").qposadr[0] + 1] += 0.1
    light._mujoco.mj_forward(light.model, light.data)
    after = light.observe()
    np.testing.assert_array_equal(before["observation.state"], after["observation.state"])
    assert before["task"] == after["task"] == "reach the red block"
    assert not np.array_equal(before["observation.images.image"], after["observation.images.image"])


def test_observation_format(light: scene.LightScene) -> None:
    observation, info = light.reset(seed=0)
    assert sorted(observation) == ["observation.images.image", "observation.images.image2", "observation.state", "task"]
    for name in ("image", "image2"):
        picture = observation[f"observation.images.{name}"]
        assert picture.shape == (64, 64, 3)
        assert picture.dtype == np.uint8
        assert picture.std() > 10  # not blank
    assert observation["observation.state"].dtype == np.float32
    assert observation["observation.state"].shape == (8,)
    np.testing.assert_allclose(observation["observation.state"][:3], light.tip, atol=1e-6)
    assert info["success"] is False


def test_same_seed_same_episode(light: scene.LightScene) -> None:
    def digest(env: scene.LightScene, seed: int) -> str:
        env.change_task("push_blue_right")
        found = hashlib.sha256()
        observation, _ = env.reset(seed=seed)
        for _ in range(6):
            observation, *_ = env.step(expert.act(env))
            for name in ("observation.images.image", "observation.images.image2", "observation.state"):
                found.update(observation[name].tobytes())
        return found.hexdigest()

    other = scene.LightScene("lift_red")
    assert digest(light, 7) == digest(light, 7) == digest(other, 7)
    assert digest(light, 7) != digest(light, 8)
    other.close()


def test_blocks_never_overlap_and_lie_within_reach(light: scene.LightScene) -> None:
    for seed in range(200):
        layout = scene._layout(np.random.default_rng(seed))
        places = list(layout.values())
        for i, (x, y, _) in enumerate(places):
            assert scene.LOW[0] < x < scene.HIGH[0]
            assert abs(y) + scene.PUSH + 0.1 < 0.3
            assert all(abs(x - other[0]) >= scene.LANE - 1e-9 for other in places[:i])


def test_inverse_kinematics_put_the_hand_there(light: scene.LightScene) -> None:
    for x, y, yaw in ((0.3, 0.1, 0.2), (0.5, -0.2, -0.5), (0.2, 0.0, 0.0)):
        shoulder, elbow, wrist = scene.joints_for(x, y, yaw)
        reached = scene.LINK * (np.exp(1j * shoulder) + np.exp(1j * (shoulder + elbow)))
        assert reached == pytest.approx(complex(x, y))
        assert shoulder + elbow + wrist == pytest.approx(yaw)


def test_the_hand_goes_where_the_action_says_and_not_out_of_its_space(light: scene.LightScene) -> None:
    light.reset(seed=0)
    start = light.tip
    for _ in range(5):
        light.step([0, 0, 1, 0, 0, 0, -1])
    assert light.tip[2] == pytest.approx(start[2] + 5 * scene.UNIT, abs=0.01)
    for _ in range(40):
        light.step([1, 1, 1, 0, 0, 1, 1])
    assert (light.tip < scene.HIGH + 0.02).all()
    assert light.opening < 0.01
    assert light.yaw == pytest.approx(1.2, abs=0.1)


@pytest.mark.parametrize("action", [[0] * 6, [math.nan] * 7, [[0] * 7], "push"])
def test_bad_actions_are_refused(light: scene.LightScene, action: object) -> None:
    light.reset(seed=0)
    with pytest.raises((InputError, ValueError)):
        light.step(action)  # type: ignore[arg-type]


def test_unknown_task_and_size() -> None:
    with pytest.raises(UsageError, match="no task 'push_rde_left'"):
        scene.LightScene("push_rde_left")
    with pytest.raises(UsageError, match="8 to 640"):
        scene.LightScene("reach_red", image_size=4)


@pytest.mark.filterwarnings("ignore:.*observation space m.*imum value")  # a state has no bounds
def test_as_a_gymnasium_environment() -> None:
    checker = pytest.importorskip("gymnasium.utils.env_checker")
    env = envs.gymnasium_env("light", "push_green_left", image_size=32)
    checker.check_env(env, skip_render_check=True)
    first, _ = env.reset(seed=3)
    again, _ = env.reset(seed=3)
    np.testing.assert_array_equal(first["observation.images.image"], again["observation.images.image"])
    truncated = False
    for step in range(1, scene.STEP_LIMIT + 1):
        *_, truncated, _ = env.step(np.zeros(7, np.float32))
        assert truncated is (step == scene.STEP_LIMIT)
    assert truncated
    env.close()


def test_demonstrations_are_the_same_twice(tmp_path: Path) -> None:
    options = {"episodes": 2, "seed": 4, "tasks": ("reach_red", "push_blue_left"), "image_size": 16}
    first = demonstrations.record(tmp_path / "a", shard_episodes=3, **options)  # type: ignore[arg-type]
    again = demonstrations.record(tmp_path / "b", shard_episodes=3, **options)  # type: ignore[arg-type]
    assert [path.name for path in first] == ["shard-0000.npz", "shard-0001.npz"]
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in again]
    whole, rest = (demonstrations.load(path) for path in first)
    assert whole["seeds"].tolist() == [4, 4, 5]
    assert rest["seeds"].tolist() == [5]
    assert whole["tasks"].tolist() == ["push the blue block to the left", "reach the red block"]
    steps = len(whole["action"])
    for name, tail in {"action": (7,), "observation.state": (8,), "observation.images.image": (16, 16, 3)}.items():
        assert whole[name].shape == (steps, *tail)
    assert set(whole["episode_index"]) == {0, 1, 2}
    assert set(rest["episode_index"]) == {3}
    assert np.abs(whole["action"]).max() <= 1


def test_demonstrations_want_sensible_counts(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="at least 1 episode"):
        demonstrations.record(tmp_path, episodes=0)
    with pytest.raises(UsageError, match="no task"):
        demonstrations.record(tmp_path, episodes=1, tasks=("fly",))

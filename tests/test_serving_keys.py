# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""From clients' keys to the policy's features."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("msgpack")

from npukit.errors import InputError, UsageError  # noqa: E402
from npukit.policies.package import Camera, Feature  # noqa: E402
from npukit.serving.keys import FAMILIES, KeyMap, example  # noqa: E402
from tests.serving_tools import IMAGE, JOINTS, MANIFEST, STATE, TOP, WRIST, libero  # noqa: E402

KEYS = KeyMap(MANIFEST)


def image(value: int) -> Any:
    return np.full(IMAGE, value, np.uint8)


def test_the_policys_own_names() -> None:
    given = {TOP: image(1), WRIST: image(2), JOINTS: np.arange(STATE), "task": "go"}
    found = KEYS.observation(given)
    assert set(found) == set(given)
    assert found[TOP][0, 0, 0] == 1
    assert found[JOINTS].dtype == np.float32
    assert found["task"] == "go"


def test_libero() -> None:
    found = KEYS.observation(libero(0.5))
    assert (found[TOP][0, 0, 0], found[WRIST][0, 0, 0], found[JOINTS][0]) == (10, 20, 0.5)
    assert found["task"] == "pick up the bowl"


def test_slots_count_and_not_the_order_of_the_inputs() -> None:
    turned = replace(MANIFEST, cameras=(Camera(TOP, 1), Camera(WRIST, 0)))
    assert KeyMap(turned).observation(libero())[WRIST][0, 0, 0] == 10


def test_droid_joins_its_states() -> None:
    given = {
        "observation/exterior_image_1_left": image(1),
        "observation/wrist_image_left": image(2),
        "observation/joint_position": np.arange(7.0),
        "observation/gripper_position": np.array([9.0]),
        "prompt": "go",
    }
    found = KEYS.observation(given)
    assert found[JOINTS].tolist() == [0, 1, 2, 3, 4, 5, 6, 9]
    assert found[WRIST][0, 0, 0] == 2


def test_aloha_has_maps_within_the_map_and_channels_first() -> None:
    given = {
        "images": {"cam_high": image(1).transpose(2, 0, 1), "cam_left_wrist": image(2).transpose(2, 0, 1)},
        "state": np.zeros(STATE),
        "prompt": "go",
    }
    found = KEYS.observation(given)
    assert found[TOP].shape == IMAGE
    assert (found[TOP] == 1).all()
    assert (found[WRIST] == 2).all()


def test_names_are_those_before_the_policys_renaming() -> None:
    renamed = replace(
        MANIFEST,
        preprocessing=({"step": "rename", "map": {"observation.images.a": "b"}}, {"step": "rename", "map": {"b": TOP}}),
    )
    keys = KeyMap(renamed)
    assert set(keys.observation(libero())) == {"observation.images.a", WRIST, JOINTS, "task"}
    direct = {"observation/images/a": image(1), WRIST: image(2), JOINTS: np.zeros(STATE), "task": "go"}
    assert keys.observation(direct)["observation.images.a"][0, 0, 0] == 1
    assert keys.observation(example(keys))["observation.images.a"].shape == IMAGE


def test_swapped_names_stay_swapped() -> None:
    swapped = replace(MANIFEST, preprocessing=({"step": "rename", "map": {TOP: WRIST, WRIST: TOP}},))
    given = {TOP: image(1), WRIST: image(2), JOINTS: np.zeros(STATE), "task": "go"}
    found = KeyMap(swapped).observation(given)
    assert (found[TOP][0, 0, 0], found[WRIST][0, 0, 0]) == (1, 2)


def test_float_images_come_channels_first() -> None:
    given = {**libero(), "observation/image": np.full(IMAGE, 0.5)}
    found = KEYS.observation(given)[TOP]
    assert found.shape == (3, *IMAGE[:2])
    assert found.dtype == np.float32


def test_states_may_be_lists_of_numbers() -> None:
    assert KEYS.observation({**libero(), "observation/state": [1] * STATE})[JOINTS].tolist() == [1] * STATE


def test_a_policy_without_instruction_takes_none() -> None:
    keys = KeyMap(replace(MANIFEST, tokenizer=None))
    assert "task" not in keys.observation(libero())
    assert "task" not in example(keys)


def test_a_camera_that_is_not_required_may_be_missing() -> None:
    manifest = replace(MANIFEST, cameras=(Camera(TOP, 0), Camera(WRIST, 1, required=False)))
    given = libero()
    del given["observation/wrist_image"]
    assert WRIST not in KeyMap(manifest).observation(given)


@pytest.mark.parametrize(
    ("change", "where"),
    [
        ({"observation/image": None}, TOP),
        ({"observation/image": np.zeros((4, 4), np.uint8)}, TOP),
        ({"observation/image": np.zeros((4, 4, 4), np.uint8)}, TOP),
        ({"observation/image": np.zeros((0, 4, 3), np.uint8)}, TOP),
        ({"observation/image": np.zeros((1, 9000, 3), np.uint8)}, TOP),
        ({"observation/image": np.zeros(IMAGE, np.int64)}, TOP),
        ({"observation/image": np.full(IMAGE, np.nan)}, TOP),
        ({"observation/image": "a.png"}, TOP),
        ({"observation/state": np.zeros(STATE + 1)}, JOINTS),
        ({"observation/state": np.zeros((1, STATE))}, JOINTS),
        ({"observation/state": np.full(STATE, np.inf)}, JOINTS),
        ({"observation/state": np.full(STATE, 1e300)}, JOINTS),
        ({"observation/state": ["a"] * STATE}, JOINTS),
        ({"prompt": 5}, "prompt"),
        ({"prompt": "x" * 5000}, "prompt"),
    ],
)
def test_each_wrong_value_is_named(change: dict[str, Any], where: str) -> None:
    with pytest.raises(InputError) as caught:
        KEYS.observation({**libero(), **change})
    assert where in caught.value.faults[0].where


def test_everything_wrong_is_listed_at_once() -> None:
    given = libero()
    given["observation/images"] = given.pop("observation/image")  # a renamed camera
    del given["prompt"]
    with pytest.raises(InputError) as caught:
        KEYS.observation(given)
    named = {fault.where for fault in caught.value.faults}
    assert {"observation/images", TOP, "task"} <= named


@pytest.mark.parametrize("message", [None, 1, "a", [], np.zeros(2)])
def test_an_observation_is_a_map(message: Any) -> None:
    with pytest.raises(InputError, match="is a map"):
        KEYS.observation(message)


def test_the_same_key_flat_and_nested_is_refused() -> None:
    with pytest.raises(InputError, match="twice"):
        KEYS.observation({**libero(), "observation": {"image": image(3)}})


def test_a_file_of_keys(tmp_path: Path) -> None:
    path = tmp_path / "keys.yaml"
    path.write_text(f"{TOP}: cam0\n{JOINTS}: [arm, hand]\ntask: say\nignore: [time]\n")
    keys = KeyMap.read(MANIFEST, path)
    given = {"cam0": image(1), WRIST: image(2), "arm": np.zeros(7), "hand": 5.0, "say": "go", "time": 12.5}
    found = keys.observation(given)
    assert found[JOINTS][-1] == 5
    assert found["task"] == "go"
    assert keys.observation(example(keys))[TOP].shape == IMAGE
    with pytest.raises(InputError, match="cam1"):
        keys.observation({**given, "cam1": image(3)})
    del given["hand"]
    with pytest.raises(InputError, match="arm, hand"):
        keys.observation(given)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[]", "one map"),
        ("{", "neither JSON nor YAML"),
        ("observation.images.topp: a", "observation.images.top"),
        (f"{TOP}: [a, b]", "only states"),
        (f"{TOP}: 5", "neither a key nor a list"),
        (f"{TOP}: []", "neither a key nor a list"),
        ("1: a", "no such feature"),
        ("!!python/object/apply:os.system ['true']", "neither JSON nor YAML"),
    ],
)
def test_a_wrong_file_of_keys(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "keys.yaml"
    path.write_text(text)
    with pytest.raises(UsageError, match=said):
        KeyMap.read(MANIFEST, path)


def test_families_do_not_share_sets_of_keys() -> None:
    sets = [(frozenset(family.images), frozenset(family.state)) for family in FAMILIES]
    assert len(set(sets)) == len(sets)


def test_a_feature_of_another_kind_is_taken_by_its_name() -> None:
    manifest = replace(MANIFEST, inputs={**MANIFEST.inputs, "observation.environment_state": Feature("ENV", (2,))})
    found = KeyMap(manifest).observation({**libero(), "observation.environment_state": np.ones(2)})
    assert found["observation.environment_state"].tolist() == [1, 1]

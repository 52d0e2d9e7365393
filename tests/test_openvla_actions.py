# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""OpenVLA's prompt tokens and action tokens, against formulas of the test's own and cases worked out by hand."""

from __future__ import annotations

import json
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from npukit.errors import ArtifactError, InputError, ModelError, UsageError
from npukit.policies.openvla import actions, prompt, steps
from npukit.policies.package import Feature
from npukit.policies.processing import Postprocessor
from npukit.policies.tokenizer import Tokenizer
from tests import openvla_tools

VOCABULARY = 32000
OUTPUTS = {"action": Feature("ACTION", (7,))}


# ---------------------------------------------------------------- tokens to numbers


def middle(token: int) -> Fraction:
    """A token's number, exactly: bins of 2/255 from -1 up, the highest token the lowest; others are the nearest's."""
    bin_ = min(max(VOCABULARY - 1 - token, 0), 254)
    return Fraction(-1) + Fraction(2 * bin_ + 1, 255)


@pytest.mark.parametrize(
    "ids",
    [range(31744, 32000), (0, 1, 2, 29871, 31743), (32000, 32001, 32063, 2**31 - 1), (-1, -(2**31))],
    ids=["all 256 bins", "words", "above", "below"],
)
def test_numbers_of_tokens(ids: Any) -> None:
    got = actions.detokenize(list(ids), VOCABULARY)
    assert got.dtype == np.float64
    for token, value in zip(ids, got, strict=True):
        # two roundings of float64 near 1 (a bin's edges, their sum)
        assert abs(Fraction(float(value)) - middle(token)) <= Fraction(2, 2**53), token


def test_numbers_of_tokens_by_hand() -> None:
    got = actions.detokenize([31999, 31872, 31745, 31744, 0], VOCABULARY)
    assert got == pytest.approx([-254 / 255, 0.0, 254 / 255, 254 / 255, 254 / 255], abs=1e-15)
    assert got[1] == 0.0


def test_encoding_is_undone() -> None:
    """numpy.digitize among the 256 points, as training encodes: a number comes back as its bin's middle."""
    points = np.linspace(-1, 1, 256)
    for value in np.random.default_rng(0).uniform(-1, 1, 500):
        token = VOCABULARY - int(np.digitize(value, points))
        assert abs(actions.detokenize([token], VOCABULARY)[0] - value) <= 1 / 255 + 1e-12


def test_shapes_are_kept() -> None:
    assert actions.detokenize(np.full((2, 7), 31900), VOCABULARY).shape == (2, 7)


# ---------------------------------------------------------------- numbers to the robot's


def test_unnormalize_by_hand() -> None:
    low, high = np.array([-1.0, 0.0, 5.0]), np.array([1.0, 4.0, 5.0])
    got = actions.unnormalize(np.array([[0.5, -0.5, 0.25]]), low, high, np.array([True, True, False]))
    assert got.tolist() == [[0.5, 1.0, 0.25]]


@pytest.mark.parametrize(
    ("value", "wanted"), [(0.0, 1.0), (0.49, 1.0), (0.51, -1.0), (1.0, -1.0), (-0.996, 1.0), (0.996, -1.0)]
)
def test_liberos_gripper(value: float, wanted: float) -> None:
    """0 is closed and 1 open in the data; LIBERO closes at +1."""
    got = actions.gripper(np.array([[0.3, value]]), 1, **steps.LIBERO_GRIPPER)
    assert got.tolist() == [[0.3, wanted]]


def test_gripper_without_rounding() -> None:
    got = actions.gripper(np.array([0.25]), 0, 0.0, 1.0, binarize=False, invert=True)
    assert got.tolist() == [0.5]


def config(*keys: str, **more: Any) -> dict[str, Any]:
    found = {"action_dim": 7, "statistics": openvla_tools.statistics(*keys), "unnorm_key": None}
    return {**found, **more}


def test_whole_postprocessing() -> None:
    """Tokens to LIBERO's action in exact arithmetic."""
    made = config("libero_goal_no_noops")
    stats = made["statistics"]["libero_goal_no_noops"]["action"]
    post = Postprocessor(OUTPUTS, json.loads(json.dumps(steps.action_steps(made))), {})
    assert post.unnorm_key == "libero_goal_no_noops"
    ids = [31999, 31744, 31872, 31800, 31900, 17, 31760]
    got = post(actions.detokenize(ids, VOCABULARY)[None])
    assert (got.shape, got.dtype) == ((1, 7), np.float32)
    for i, token in enumerate(ids[:6]):
        low, high = Fraction(stats["q01"][i]), Fraction(stats["q99"][i])
        exact = (middle(token) + 1) / 2 * (high - low) + low
        assert got[0, i] == np.float32(float(exact))
    assert got[0, 6] == (-1.0 if middle(ids[6]) > Fraction(1, 2) else 1.0)


def test_other_robots_keep_their_gripper() -> None:
    listed = [step["step"] for step in steps.action_steps(config("bridge_orig", "libero_goal"))]
    assert listed == ["unnormalize_by_key"]
    listed = [step["step"] for step in steps.action_steps(config("bridge_orig", gripper="libero"))]
    assert listed == ["unnormalize_by_key", "gripper"]


# ---------------------------------------------------------------- keys


def test_keys() -> None:
    keys = ("libero_goal_no_noops", "bridge_orig")
    assert actions.find_key(keys, "libero_goal") == "libero_goal_no_noops"
    assert actions.find_key(keys, "libero_goal_no_noops") == "libero_goal_no_noops"
    assert actions.find_key(keys, "bridge") is None
    assert actions.find_key(keys, None) is None
    assert actions.find_key(("one",), None) == "one"


@pytest.mark.parametrize(("wanted", "what"), [("libero_10", "no statistics for 'libero_10'"), (None, "is open")])
def test_wrong_key_lists_the_keys(wanted: str | None, what: str) -> None:
    post = steps.action_steps(config("libero_goal", "bridge_orig"))
    with pytest.raises(UsageError, match=what) as caught:
        Postprocessor(OUTPUTS, post, {}, wanted)
    assert caught.value.hint == "its keys: bridge_orig, libero_goal"
    assert Postprocessor(OUTPUTS, post, {}, "libero_goal").unnorm_key == "libero_goal"


def test_key_for_a_policy_without_keys() -> None:
    with pytest.raises(UsageError, match="there is no key"):
        Postprocessor(OUTPUTS, [{"step": "cut", "length": 7}], {}, "libero_goal")


def test_unsound_statistics_are_listed() -> None:
    stats = openvla_tools.statistics("a", "b", "c", "d")
    del stats["a"]["action"]["q99"]
    stats["b"]["action"]["q01"] = [0.0] * 6
    stats["c"]["action"]["q01"][2] = float("nan")
    stats["c"]["action"]["mask"] = [1] * 7
    del stats["d"]["action"]
    with pytest.raises(ModelError) as caught:
        actions.checked_statistics(stats, 7)
    assert [fault.where for fault in caught.value.faults] == [
        "a.action.q99", "b.action.q01", "c.action.q01", "c.action.mask", "d",
    ]  # fmt: skip


def test_no_statistics() -> None:
    with pytest.raises(ModelError, match="not whole"):
        actions.checked_statistics({}, 7)


def test_a_missing_mask_means_all() -> None:
    stats = openvla_tools.statistics("a")
    del stats["a"]["action"]["mask"]
    assert actions.checked_statistics(stats, 7)["a"]["mask"] == [True] * 7


@pytest.mark.parametrize(
    "statistics",
    [None, {}, {"a": {}}, {"a": 1}, {"a": {"q01": [0.0] * 6, "q99": [1.0] * 7, "mask": None}},
     {"a": {"q01": ["x"] * 7, "q99": [1.0] * 7}}],
)  # fmt: skip
def test_a_damaged_step(statistics: Any) -> None:
    with pytest.raises((ArtifactError, ModelError, UsageError)):
        Postprocessor(OUTPUTS, [{"step": "unnormalize_by_key", "key": "a", "statistics": statistics}], {})


@pytest.mark.parametrize("change", [{"index": 7}, {"index": "last"}, {"low": None}, {"low": 1.0}, {"more": 1}])
def test_a_damaged_gripper(change: dict[str, Any]) -> None:
    step = {"step": "gripper", "index": 6, **steps.LIBERO_GRIPPER, **change}
    with pytest.raises(ArtifactError, match="the step gripper is not sound"):
        Postprocessor(OUTPUTS, [step], {})


# ---------------------------------------------------------------- the prompt


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    folder: Path = tmp_path_factory.mktemp("tokenizer")
    openvla_tools.write_tokenizer(folder)
    return Tokenizer(folder / "tokenizer.json")


def made(tokenizer: Tokenizer, **change: Any) -> prompt.Prompt:
    step = {"template": prompt.TEMPLATE, "lower": True, "max_length": 32, "pad_id": 32000, "bos_id": 1, "end_id": 29871}
    return prompt.Prompt(tokenizer, {**step, **change})


def test_prompt_is_the_trainings(tokenizer: Tokenizer) -> None:
    text = made(tokenizer).text("Pick up the Milk")
    assert text == "In: What action should the robot take to pick up the milk?\nOut:"


def test_prompt_tokens(tokenizer: Tokenizer) -> None:
    """<s>, the text's tokens, the blank that training had after the colon; the mask covers it, padding is the rest."""
    ids, mask = made(tokenizer)("Pick up the Milk")
    whole = tokenizer.ids("In: What action should the robot take to pick up the milk?\nOut:")
    assert whole[0] == 1
    assert whole[-1] != 29871
    count = len(whole) + 1
    assert (ids.shape, ids.dtype, mask.shape, mask.dtype) == ((1, 32), np.int64, (1, 32), bool)
    assert ids[0, :count].tolist() == [*whole, 29871]
    assert (ids[0, count:] == 32000).all()
    assert mask[0].tolist() == [True] * count + [False] * (32 - count)


def test_blank_and_beginning_are_not_doubled(tokenizer: Tokenizer) -> None:
    ids, mask = made(tokenizer, template="{instruction} ")("put")
    text = tokenizer.ids("put ")
    assert text[-1] == 29871
    assert ids[0, : len(text)].tolist() == text
    assert mask.sum() == len(text)


def test_beginning_where_the_tokenizer_gives_none(tmp_path: Path) -> None:
    openvla_tools.write_tokenizer(tmp_path)
    values = json.loads((tmp_path / "tokenizer.json").read_text(encoding="utf-8"))
    values["post_processor"] = None
    (tmp_path / "bare.json").write_text(json.dumps(values), encoding="utf-8")
    bare, whole = made(Tokenizer(tmp_path / "bare.json")), made(Tokenizer(tmp_path / "tokenizer.json"))
    assert np.array_equal(bare("pick up the milk")[0], whole("pick up the milk")[0])


def test_longest_prompt(tokenizer: Tokenizer) -> None:
    count = int(made(tokenizer)("pick up the milk")[1].sum())
    assert made(tokenizer, max_length=count)("pick up the milk")[1].all()
    with pytest.raises(
        InputError, match=f"a prompt of {count} tokens, the policy was exported for {count - 1}"
    ) as caught:
        made(tokenizer, max_length=count - 1)("Pick up the Milk")
    assert "'Pick up the Milk'" in caught.value.hint


@pytest.mark.parametrize("text", ["", "  \n"])
def test_empty_instruction(tokenizer: Tokenizer, text: str) -> None:
    with pytest.raises(InputError, match="the instruction is empty"):
        made(tokenizer)(text)


def test_braces_in_an_instruction_are_text(tokenizer: Tokenizer) -> None:
    assert "{0} {instruction}" in made(tokenizer).text("{0} {instruction}")

# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""Processing: each step against numbers of torch or against its formula written out, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from npukit.errors import ArtifactError, InputError
from npukit.policies import processing
from npukit.policies.package import Feature
from npukit.policies.processing import Postprocessor, Preprocessor, bilinear, resize_with_pad
from tests.policy_tools import tokenizer

CAMERA = "observation.images.top"
STATE = "observation.state"
INPUTS = {CAMERA: Feature("VISUAL", (3, 4, 6)), STATE: Feature("STATE", (3,))}
MODES = {
    "MEAN_STD": ("mean", "std"),
    "MIN_MAX": ("min", "max"),
    "QUANTILES": ("q01", "q99"),
    "QUANTILE10": ("q10", "q90"),
}
BATCH = {"step": "batch"}


def observation(**changes: Any) -> dict[str, Any]:
    pixels = np.arange(72, dtype=np.uint8).reshape(4, 6, 3)
    return {CAMERA: pixels, STATE: np.array([1.0, 2.0, 3.0]), **changes}


def one(*steps: dict[str, Any], inputs: dict[str, Feature] | None = None, **stats: Any) -> Preprocessor:
    return Preprocessor(inputs or INPUTS, (BATCH, *steps), {k.replace("__", "."): v for k, v in stats.items()})


# ---------------------------------------------------------------- images


def test_resize_as_torch_does() -> None:
    # torch 2.13: F.pad(F.interpolate(x, size, mode="bilinear", align_corners=False), (left, 0, top, 0))
    image = (np.arange(12).reshape(1, 1, 3, 4) ** 2 % 17).astype(np.float32)
    grown = [
        [0, 0.5, 1.5, 3.5, 6.5, 9],
        [10, 7.6875, 4.9375, 3.1875, 7.75, 12.75],
        [14.875, 12.375, 9.375, 7.375, 8.5, 10.125],
        [13, 13, 13.333334, 14.666666, 8.5, 2],
    ]
    np.testing.assert_allclose(resize_with_pad(image, 6, 6)[0, 0], [[0] * 6, [0] * 6, *grown], atol=2e-6)
    np.testing.assert_allclose(resize_with_pad(image, 2, 2)[0, 0], [[0, 0], [12, 8.5]])


def test_padding_is_left_and_on_top() -> None:
    wide, tall = np.ones((1, 3, 2, 4), np.float32), np.ones((1, 3, 4, 2), np.float32)
    assert (resize_with_pad(wide, 8, 8, 7.0)[0, 0, :4] == 7).all()
    assert (resize_with_pad(wide, 8, 8, 7.0)[0, 0, 4:] == 1).all()
    assert (resize_with_pad(tall, 8, 8, 7.0)[0, 0, :, :4] == 7).all()
    assert (resize_with_pad(tall, 8, 8, 7.0)[0, 0, :, 4:] == 1).all()


@pytest.mark.parametrize(
    ("size", "to"), [((256, 256), (512, 512)), ((48, 64), (64, 64)), ((72, 128), (22, 22)), ((1, 9), (16, 16))]
)
def test_resize_against_torch(size: tuple[int, int], to: tuple[int, int]) -> None:
    torch = pytest.importorskip("torch")
    image = np.random.default_rng(0).random((1, 3, *size), np.float32)
    rows, columns = processing.resized(*size, *to)
    new = torch.nn.functional.interpolate(
        torch.from_numpy(image), (rows, columns), mode="bilinear", align_corners=False
    )
    padded = torch.nn.functional.pad(new, (to[1] - columns, 0, to[0] - rows, 0))
    np.testing.assert_allclose(resize_with_pad(image, *to), padded.numpy(), atol=3e-7)


def test_same_size_is_not_touched() -> None:
    image = np.random.default_rng(0).random((1, 3, 5, 7), np.float32)
    assert bilinear(image, 5, 7) is image


def test_pixels_become_minus_one_to_one() -> None:
    made = one({"step": "resize_with_pad", "height": 6, "width": 6}, {"step": "scale_images", "mul": 2.0, "add": -1.0})
    image = made(observation())[CAMERA]
    assert image.shape == (1, 3, 6, 6)
    assert (image[0, :, :2] == -1).all()  # zeros before the scaling
    expected = np.arange(72, dtype=np.float32).reshape(4, 6, 3).transpose(2, 0, 1) / np.float32(255)
    np.testing.assert_array_equal(image[0, :, 2:], expected * 2 - 1)


def test_floats_are_taken_as_they_are() -> None:
    pixels = np.random.default_rng(0).random((3, 4, 6), np.float32)
    np.testing.assert_array_equal(one()(observation(**{CAMERA: pixels}))[CAMERA][0], pixels)


# ---------------------------------------------------------------- normalization


@pytest.mark.parametrize("mode", MODES)
def test_forward_and_back(mode: str) -> None:
    first, second = MODES[mode]
    a, b = np.array([0.5, -1, 3], np.float32), np.array([1.5, 2, 3], np.float32)
    eps = 1e-3  # large, to see where it goes
    names = {f"{STATE}.{first}": a, f"{STATE}.{second}": b}
    step = {"step": "normalize", "eps": eps, "features": {STATE: mode}}
    x = np.array([1.0, 2.0, 3.0], np.float32)
    made = Preprocessor(INPUTS, (BATCH, step), names)(observation())[STATE]
    span = np.where(b == a, np.float32(eps), b - a)  # the third has none
    expected = (x - a) / (b + np.float32(eps)) if mode == "MEAN_STD" else 2 * (x - a) / span - 1
    np.testing.assert_allclose(made, expected[None], rtol=1e-6)
    action = {f"action.{first}": a, f"action.{second}": b}
    after = Postprocessor(
        {"action": Feature("ACTION", (3,))}, ({**step, "step": "unnormalize", "features": {"action": mode}},), action
    )
    # the inverse of a mean and deviation has no eps
    back = x * b + a if mode == "MEAN_STD" else (x + 1) / 2 * span + a
    np.testing.assert_allclose(after(x[None]), back[None], rtol=1e-6)


def test_identity_needs_no_statistics() -> None:
    made = one({"step": "normalize", "features": {STATE: "IDENTITY"}})(observation())
    np.testing.assert_array_equal(made[STATE], [[1, 2, 3]])


def test_images_by_channel() -> None:
    stats = {
        f"{CAMERA}.mean": np.array([[[0.1]], [[0.2]], [[0.3]]], np.float32),
        f"{CAMERA}.std": np.full((3, 1, 1), 0.5),
    }
    step = {"step": "normalize", "eps": 0.0, "features": {CAMERA: "MEAN_STD"}}
    pixels = np.full((3, 4, 6), 0.6, np.float32)
    made = Preprocessor(INPUTS, (BATCH, step), stats)(observation(**{CAMERA: pixels}))[CAMERA]
    np.testing.assert_allclose(made[0, :, 0, 0], [1.0, 0.8, 0.6], rtol=1e-5)


def test_missing_statistics_are_all_listed() -> None:
    step = {"step": "normalize", "features": {STATE: "MEAN_STD", CAMERA: "QUANTILES", "action": "MIN_MAX"}}
    stats = {f"{STATE}.mean": np.zeros(3), f"{CAMERA}.q99": np.full((3, 1, 1), np.inf)}
    with pytest.raises(ArtifactError) as caught:
        Preprocessor(INPUTS, (BATCH, step), stats)
    text = str(caught.value)
    assert f"{STATE}.std: missing; the mode MEAN_STD needs it" in text
    assert f"{CAMERA}.q01: missing" in text
    assert f"{CAMERA}.q99: holds values that are not finite" in text
    assert len(caught.value.faults) == 3  # of an action there is none in an observation


def test_statistics_of_another_shape() -> None:
    step = {"step": "normalize", "features": {STATE: "MEAN_STD"}}
    with pytest.raises(ArtifactError, match=r"observation.state.mean: has shape \[4\], the feature \[3\]"):
        Preprocessor(INPUTS, (BATCH, step), {f"{STATE}.mean": np.zeros(4), f"{STATE}.std": np.ones(3)})


# ---------------------------------------------------------------- states, cameras, names


def test_state_is_padded_with_zeros() -> None:
    np.testing.assert_array_equal(one({"step": "pad", "feature": STATE, "length": 5})(observation())[STATE],
                                  [[1, 2, 3, 0, 0]])  # fmt: skip
    with pytest.raises(ArtifactError, match="does not fit into 2 numbers"):
        one({"step": "pad", "feature": STATE, "length": 2})


def test_renaming_comes_first() -> None:
    renames = {"step": "rename", "map": {"observation.images.front": CAMERA}}
    made = Preprocessor(INPUTS, (renames, BATCH), {})
    given = observation()
    given["observation.images.front"] = given.pop(CAMERA)
    assert made(given)[CAMERA].shape == (1, 3, 4, 6)
    with pytest.raises(ArtifactError, match="there is no step 'rename' here"):
        Preprocessor(INPUTS, (BATCH, renames), {})


EMPTY = "observation.images.empty_camera_0"


def test_cameras_that_may_be_missing() -> None:
    inputs = {**INPUTS, EMPTY: Feature("VISUAL", (3, 4, 6))}
    fill = {"step": "fill_cameras", "names": [EMPTY], "most": 1, "value": -1.0, "shape": [3, 4, 6]}
    made = one(fill, inputs=inputs)
    without, given = made(observation()), made(observation(**{EMPTY: np.zeros((4, 6, 3), np.uint8)}))
    assert (without[EMPTY] == -1).all()
    assert not without[f"{EMPTY}_padding_mask"][0]
    assert given[f"{EMPTY}_padding_mask"][0]
    # only those that are declared to
    with pytest.raises(InputError, match=f"{CAMERA}: the camera's image is missing"):
        made({STATE: np.zeros(3), EMPTY: np.zeros((4, 6, 3), np.uint8)})


def test_more_cameras_missing_than_may_be() -> None:
    names = [f"observation.images.empty_camera_{i}" for i in range(2)]
    inputs = {**INPUTS, **{name: Feature("VISUAL", (3, 4, 6)) for name in names}}
    fill = {"step": "fill_cameras", "names": names, "most": 1, "shape": [3, 4, 6]}
    with pytest.raises(InputError, match="2 cameras have no image, at most 1 may be missing"):
        one(fill, inputs=inputs)(observation())


# ---------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({STATE: None}, f"{STATE}: missing, expected numbers [3]"),
        ({STATE: np.array([1, np.nan, np.inf])}, f"{STATE}: the value at [1] is nan, and 1 more"),
        ({STATE: np.zeros(4)}, f"{STATE}: shape [4], expected [3]"),
        ({STATE: np.zeros((1, 3))}, f"{STATE}: shape [1, 3], expected [3]"),
        ({STATE: ["a", "b", "c"]}, f"{STATE}: dtype <U1 holds no numbers"),
        ({STATE: np.array([1e300, 0, 0])}, f"{STATE}: the value at [0] is inf"),
        ({CAMERA: None}, f"{CAMERA}: the camera's image is missing, expected uint8 [4, 6, 3]"),
        ({CAMERA: np.zeros((6, 4, 3), np.uint8)}, "got uint8 [6, 4, 3]"),
        ({CAMERA: np.zeros((3, 4, 6), np.uint8)}, "got uint8 [3, 4, 6]"),
        ({CAMERA: np.zeros((4, 6), np.uint8)}, "got uint8 [4, 6]"),
        ({CAMERA: np.zeros((4, 6, 3), np.int64)}, "got int64 [4, 6, 3]"),
        ({CAMERA: np.full((3, 4, 6), 200.0, np.float32)}, "floats from 200 to 200, expected 0 to 1"),
        ({CAMERA: np.full((3, 4, 6), np.nan, np.float32)}, f"{CAMERA}: the value at [0, 0, 0] is nan, and 71 more"),
    ],
)  # fmt: skip
def test_bad_observations(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(InputError) as caught:
        one()(observation(**changes))
    assert says in str(caught.value)


def test_all_faults_at_once_and_what_else_was_given() -> None:
    with pytest.raises(InputError) as caught:
        one()({"observation.images.front": np.zeros((4, 6, 3), np.uint8), STATE: np.zeros(2)})
    assert len(caught.value.faults) == 2
    assert "also given: observation.images.front" in str(caught.value)


def test_no_dict() -> None:
    with pytest.raises(InputError, match="a dict of arrays by name, not a list"):
        one()([1, 2])  # type: ignore[arg-type]


def test_unknown_steps() -> None:
    with pytest.raises(ArtifactError, match=r"preprocessing\[1\]: there is no step 'normalise' here"):
        one({"step": "normalise"})
    with pytest.raises(ArtifactError, match=r"postprocessing\[0\]: there is no step 'clip' here"):
        Postprocessor({"action": Feature("ACTION", (2,))}, ({"step": "clip"},), {})
    for step in (
        {"step": "pad"}, {"step": "normalize", "features": ["x"]}, {"step": "scale_images", "mul": "much", "add": 1},
        {"step": "fill_cameras", "names": 3, "most": 1, "shape": [1]}, {"step": "resize_with_pad", "height": []},
    ):  # fmt: skip
        with pytest.raises(ArtifactError, match=f"the step {step['step']} is not sound"):
            one(step)
    with pytest.raises(ArtifactError, match="the step rename is not sound"):
        Preprocessor(INPUTS, ({"step": "rename", "map": [1]},), {})
    with pytest.raises(ArtifactError, match=r"postprocessing\[0\]: the step cut is not sound"):
        Postprocessor({"action": Feature("ACTION", (2,))}, ({"step": "cut"},), {})


def test_actions_are_cut() -> None:
    after = Postprocessor({"action": Feature("ACTION", (2,))}, ({"step": "cut", "length": 2},), {})
    np.testing.assert_array_equal(after(np.ones((4, 9), np.float32)), np.ones((4, 2)))
    with pytest.raises(ArtifactError, match=r"actions of \[1\] numbers, \[2\] are declared"):
        after(np.ones((4, 1), np.float32))


# ---------------------------------------------------------------- text


@pytest.fixture
def words(tmp_path: Path) -> Path:
    pytest.importorskip("tokenizers")
    return tokenizer(tmp_path / "tokenizer.json")


def spoken(path: Path, **options: Any) -> Preprocessor:
    step = {"step": "tokenize", "max_length": 12, "pad_id": 256, **options}
    return Preprocessor(INPUTS, (BATCH, {"step": "newline"}, step), {}, path)


def test_text_to_tokens(words: Path) -> None:
    made = spoken(words)
    first = made(observation(task="pick up"))
    assert first[processing.TOKENS].shape == (1, 12)
    assert first[processing.TOKENS].dtype == np.int64
    np.testing.assert_array_equal(first[processing.ATTENTION], [[True] * 8 + [False] * 4])
    assert (first[processing.TOKENS][0, 8:] == 256).all()
    # a line feed is added where there is none
    np.testing.assert_array_equal(made(observation(task="pick up\n"))[processing.TOKENS], first[processing.TOKENS])
    assert "task" not in first


def test_a_long_instruction_is_refused(words: Path) -> None:
    made = spoken(words)
    for _ in range(2):
        with pytest.raises(InputError, match="task: the instruction has 34 tokens, the policy takes 12"):
            made(observation(task="put the red block into the drawer"))
    made(observation(task="pick up"))


def test_no_instruction(words: Path) -> None:
    with pytest.raises(InputError, match="task: the instruction is missing"):
        spoken(words)(observation())
    with pytest.raises(InputError, match="task: expected a text, got a list"):
        spoken(words)(observation(task=["pick"]))


def test_no_tokenizer(words: Path) -> None:
    with pytest.raises(ArtifactError, match="takes instructions, and there is no tokenizer"):
        Preprocessor(INPUTS, (BATCH, {"step": "tokenize", "max_length": 4, "pad_id": 0}), {})
    words.write_text("{}")
    with pytest.raises(ArtifactError, match=r"not a tokenizer\.json"):
        spoken(words)

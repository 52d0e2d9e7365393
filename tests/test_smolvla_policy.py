# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""A small SmolVLA from checkpoint to actions: the package against the whole network in PyTorch, fed by hand."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import npukit
from npukit.errors import InputError, ModelError, NpukitError
from npukit.policies.export_verb import export
from npukit.policies.package import Manifest
from tests import smolvla_tools as tools
from tests.policy_tools import processors, statistics, tokenizer

torch = pytest.importorskip("torch")
pytest.importorskip("tokenizers")

SHAPE = {"chunk_size": 6, "n_action_steps": 3, "num_steps": 3, "empty_cameras": 1}
CAMERAS = ["observation.images.image", "observation.images.image1"]
EMPTY = "observation.images.empty_camera_0"


def checkpoint(folder: Path, **fields: Any) -> Path:
    tools.checkpoint(folder, mixed=True, **{**SHAPE, **fields})
    processors(folder)
    tokenizer(folder / "tokenizer.json")
    return folder


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return checkpoint(tmp_path_factory.mktemp("smolvla") / "checkpoint")


@pytest.fixture(scope="module")
def package(source: Path) -> Path:
    export(source, output=source.parent / "policy", threads=1)
    return source.parent / "policy"


@pytest.fixture(scope="module")
def policy(package: Path) -> Iterator[npukit.Policy]:
    with npukit.Policy(package, threads=1) as made:
        yield made


def observation(seed: int = 0, **changes: Any) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    made: dict[str, Any] = {name: rng.integers(0, 256, (36, 48, 3)).astype(np.uint8) for name in CAMERAS}
    return {**made, "observation.state": rng.standard_normal(8), "task": "pick up the cube", **changes}


def whole_network(folder: Path, given: dict[str, Any], noise: Any) -> Any:
    """LeRobot's arithmetic, written out: images, tokens, states, the network, the actions' scale."""
    from npukit.policies.smolvla import weights

    values = json.loads((folder / "config.json").read_text())
    config, stored = weights.read(folder, values)
    model = weights.skeleton(config)
    stored.load(model, "", torch.float32)
    stats = statistics(values)
    images = []
    for name in CAMERAS:
        pixels = torch.from_numpy(given[name]).permute(2, 0, 1)[None].float() / 255
        small = torch.nn.functional.interpolate(pixels, size=(48, 64), mode="bilinear", align_corners=False)
        images.append(torch.nn.functional.pad(small, (0, 0, 16, 0)) * 2 - 1)
    seen = [torch.ones(1, dtype=torch.bool) for _ in images]
    if EMPTY in config.cameras:
        images.append(torch.full_like(images[0], -1))
        seen.append(torch.zeros(1, dtype=torch.bool))
    text = given["task"] + "\n"
    ids = torch.tensor([[_byte(c) for c in text]])  # not padded: LeRobot pads to the longest of a batch
    mean, std = (torch.from_numpy(stats[f"observation.state.{name}"]) for name in ("mean", "std"))
    state = (torch.from_numpy(given["observation.state"]).float() - mean) / (std + 1e-8)
    state = torch.nn.functional.pad(state[None], (0, config.max_state - 8))
    with torch.inference_mode():
        embedded = [model.embed_image(image) for image in images]
        x, pad, place = model.embed_prefix(embedded, seen, ids, torch.ones_like(ids, dtype=torch.bool), state)
        chunk = model.sample(pad, model.prefix(x, pad, place), torch.from_numpy(noise)[None])[0, :, :7].numpy()
    return chunk * stats["action.std"] + stats["action.mean"]


def _byte(letter: str) -> int:
    from tokenizers import pre_tokenizers

    spelled = pre_tokenizers.ByteLevel(add_prefix_space=False).pre_tokenize_str(letter)[0][0]
    return sorted(pre_tokenizers.ByteLevel.alphabet()).index(spelled)


def noise(seed: int = 0) -> Any:
    return np.random.default_rng(seed).standard_normal((6, 32), np.float32)


def test_actions_are_those_of_the_whole_network(source: Path, policy: npukit.Policy) -> None:
    for seed in range(2):
        given = observation(seed)
        wanted = whole_network(source, given, noise(seed))
        got = policy.predict_chunk(given, noise=noise(seed))
        assert got.shape == (6, 7)
        np.testing.assert_allclose(got, wanted, atol=1e-4 * float(np.ptp(wanted)))


def test_everything_counts(policy: npukit.Policy) -> None:
    base = policy.predict_chunk(observation(), noise=noise())
    for change in (
        {"task": "push the cube"}, {"observation.state": np.zeros(8)},
        {CAMERAS[0]: np.zeros((36, 48, 3), np.uint8)}, {CAMERAS[1]: np.zeros((36, 48, 3), np.uint8)},
        {EMPTY: np.zeros((36, 48, 3), np.uint8)},
    ):  # fmt: skip
        assert np.abs(policy.predict_chunk(observation(**change), noise=noise()) - base).max() > 1e-4
    assert np.abs(policy.predict_chunk(observation(), noise=noise(1)) - base).max() > 1e-2
    np.testing.assert_array_equal(policy.predict_chunk(observation(), noise=noise()), base)


def test_the_manifest(package: Path) -> None:
    manifest = Manifest.read(package)
    assert [(camera.feature, camera.slot, camera.required) for camera in manifest.cameras] == [
        (CAMERAS[0], 0, True), (CAMERAS[1], 1, True), (EMPTY, 2, False),
    ]  # fmt: skip
    head = manifest.component("action_head")
    assert head.runs == 3
    assert {port.name: port.shape for port in head.outputs} == {"velocity": (1, 6, 32)}
    assert all(port.layout for component in manifest.components for port in component.inputs)


def test_a_camera_too_few(policy: npukit.Policy) -> None:
    given = observation()
    del given[CAMERAS[1]]
    with pytest.raises(InputError, match="image1: the camera's image is missing"):
        policy.predict_chunk(given)


def test_the_cache_is_the_backbones_own_memory(policy: npukit.Policy) -> None:
    runtime: Any = policy.runtime
    assert set(runtime.shared) == {"kv_keys", "kv_values", "prefix_pad_masks"}


def test_a_truncated_checkpoint(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path / "c")
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(NpukitError, match=r"model\.safetensors"):
        export(folder, output=tmp_path / "p", in_process=True)
    assert not (tmp_path / "p").exists()


def test_a_tokenizer_of_another_model(source: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"the tokenizer has 600 tokens, the model 512"):
        export(source, output=tmp_path / "p", tokenizer=tokenizer(tmp_path / "t.json", 600), threads=1)

# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""The small policy's training: its network is npukit's SmolVLA, its words the tokenizer's, and a run can go on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from npukit.policies.smolvla import weights as loading  # noqa: E402
from npukit.sim.scene import TASKS, LightScene  # noqa: E402
from tests.sim_tools import needs_rendering  # noqa: E402
from training import checkpoint, data, train  # noqa: E402
from training.network import Sizes, embed_time  # noqa: E402
from training.words import PAD, WORDS, tokenize, tokenizer_json  # noqa: E402

COMMITTED = Path(checkpoint.__file__).with_name("checkpoint")
TINY = Sizes(
    vision_hidden=16, vision_layers=1, vision_heads=2, vision_mlp=32, hidden=32, head_dim=8, mlp=48, text=12
)  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.mark.parametrize("sizes", [TINY, Sizes()], ids=["tiny", "committed"])
def test_the_network_is_npukits_smolvla(tmp_path: Path, sizes: Sizes) -> None:
    run = checkpoint.random_run(sizes)
    checkpoint.write(run, tmp_path, n_action_steps=2)
    config, weights = loading.read(tmp_path, json.loads((tmp_path / "config.json").read_text()))
    other = loading.load_model(weights, config)
    draw = torch.Generator().manual_seed(1)
    images = [torch.rand(2, 3, sizes.image, sizes.image, generator=draw) * 2 - 1 for _ in range(2)]
    tokens = torch.tensor(
        [tokenize("lift the red block", sizes.text), tokenize("push the blue block to the left", sizes.text)]
    )
    state = torch.randn(2, sizes.state, generator=draw)
    noise = torch.randn(2, sizes.chunk, sizes.action, generator=draw)
    with torch.no_grad():
        ones = torch.ones(2, dtype=torch.bool)
        want = other(images, [ones, ones], tokens, tokens != PAD, state, noise)
        seen = run.average.see(torch.stack(images, 1).flatten(0, 1)).reshape(2, -1, sizes.hidden)
        got = run.average.chunk(seen, tokens, tokens != PAD, state, noise)
    assert want.abs().max() > 0.1
    torch.testing.assert_close(got, want, atol=2e-5, rtol=1e-4)


def test_times_are_embedded_as_the_runtime_does_it() -> None:
    from npukit.policies.smolvla.config import time_embeddings

    want = time_embeddings([1.0, 0.3], 96, 4e-3, 4.0)
    np.testing.assert_allclose(embed_time(torch.tensor([1.0, 0.3]), 96), want, atol=1e-6)


def test_words_are_the_tokenizers(tmp_path: Path) -> None:
    pytest.importorskip("tokenizers")
    from npukit.policies.tokenizer import Tokenizer

    file = tmp_path / "tokenizer.json"
    file.write_text(tokenizer_json())
    tokenizer = Tokenizer(file)
    assert len(WORDS) <= Sizes().vocabulary
    for text in [*(task.description for task in TASKS.values()), "juggle the red block"]:
        ids, mask, dropped = tokenizer.encode(text + "\n", 16, PAD)
        assert ids.tolist() == tokenize(text, 16)
        assert mask.sum() == len(text.split())
        assert dropped == 0


def frames(count: int) -> dict[str, Any]:
    """Made-up demonstrations."""
    rng = np.random.default_rng(0)
    return {
        "image": rng.integers(0, 256, (count, 2, 64, 64, 3), dtype=np.uint8),
        "state": rng.standard_normal((count, 8)).astype(np.float32),
        "task": rng.integers(0, len(TASKS), count),
        "action": rng.uniform(-1, 1, (count, data.CHUNK, 7)).astype(np.float32),
        "place": rng.standard_normal((count, 6)).astype(np.float32),
    }


def test_a_run_goes_on_where_it_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train, "BATCH", 4)
    np.savez(tmp_path / "part-0-000.npz", next=1, **frames(12))
    demonstrations = train.Frames(tmp_path)
    state = tmp_path / "run.pt"

    def new() -> train.Run:
        torch.manual_seed(0)
        return train.Run(TINY, train.measure(demonstrations.parts))

    whole, first = new(), new()
    train.train(whole, demonstrations, tmp_path / "other.pt", 4, lambda text: None)
    train.train(first, demonstrations, state, 4, lambda text: None, until=2)
    second = train.Run.load(state)
    assert second.step == 2
    train.train(second, demonstrations, state, 4, lambda text: None)
    assert second.step == 4
    start, end = new().network.state_dict(), whole.network.state_dict()
    for name, tensor in second.network.state_dict().items():
        torch.testing.assert_close(tensor, end[name])
    changed = {name for name in end if not torch.equal(end[name], start[name])}
    still = {
        name
        for name in end
        if name.startswith(("vlm_with_expert.vlm.lm_head", "vlm_with_expert.vlm.model.text_model.norm"))
    }
    # The language model's last layer only gives keys and values, and its head is not used.
    assert all(name in changed or name in still or ".text_model.layers.3." in name for name in end)


@needs_rendering
def test_looking_ahead_leaves_the_scene_as_it_was() -> None:
    scene = LightScene("lift_red")
    scene.reset(seed=3)
    for _ in range(4):
        scene.step(data.ahead(scene)[0])
    data.ahead(scene)  # after a step MuJoCo's positions are a substep behind; from here on they are of this moment
    seen, planned = scene.observe(), data.ahead(scene)
    np.testing.assert_array_equal(scene.observe()["observation.images.image"], seen["observation.images.image"])
    for action in planned:
        np.testing.assert_allclose(data.ahead(scene, 1)[0], action, atol=1e-6)  # it does what it foresaw
        scene.step(action)
    scene.close()


@needs_rendering
def test_demonstrations_go_on_where_they_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data, "SHARD", 30)
    data.write(tmp_path / "whole", 60, 5)
    data.write(tmp_path / "halves", 30, 5)
    data.write(tmp_path / "halves", 60, 5)
    whole, halves = (list(data.load(tmp_path / name, {}).values()) for name in ("whole", "halves"))
    assert len(whole) == len(halves) >= 2
    for one, other in zip(whole, halves, strict=True):
        assert one["image"].shape[1:] == (2, 64, 64, 3)
        assert one["action"].shape[1:] == (data.CHUNK, 7)
        np.testing.assert_array_equal(one["image"], other["image"])
        np.testing.assert_array_equal(one["action"], other["action"])


@needs_rendering
@pytest.mark.skipif(not COMMITTED.is_dir(), reason="there is no trained policy")
def test_the_committed_policy_succeeds() -> None:
    figures = json.loads((COMMITTED / "evaluation.json").read_text())
    share = {
        name: figures[name]["successes"] / figures[name]["episodes"] for name in ("usual", "grey pictures", "another")
    }
    assert figures["usual"]["episodes"] >= 500
    assert share["usual"] >= 0.85
    assert share["grey pictures"] <= 0.3
    assert share["another"] <= 0.4
    run = checkpoint.read(COMMITTED)
    found = train.evaluate(run, 12, first=200_000)
    assert train.rate(found) >= 0.85

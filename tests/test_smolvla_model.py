# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""SmolVLA: what config and weights may be, the network against LeRobot's results, components against the network."""

from __future__ import annotations

import json
import logging
import math
import os
import subprocess
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from npukit.errors import ModelError
from npukit.policies import kinds
from npukit.policies.smolvla import config as numbers
from npukit.policies.smolvla import export
from npukit.policies.smolvla.config import position_ids, read_config, time_embeddings
from npukit.policies.smolvla.weights import Weights, load_model, read
from tests import smolvla_tools as tools

# Actions 0 and last, numbers 0 to 3, of the chunk that LeRobot 0.4.4's own network gave (torch 2.13, transformers
# 4.57.6, float32, position ids in order) for `tools.checkpoint(folder, **fields)` and
# `export.random_sample(config, 0, 11)`.
LEROBOT: dict[str, tuple[dict[str, Any], list[float], list[float]]] = {
    "plain": ({}, [0.26037, 1.5898, 2.04456, 0.19395], [1.27506, 1.67926, 0.54216, -0.21952]),
    "three cameras": ({"cameras": 3}, [1.48769, 1.14966, 1.89948, 0.40545], [-0.39812, 1.27145, 2.3058, 1.26394]),
    "empty camera": ({"empty_cameras": 1}, [1.49196, 1.09669, 1.83791, 0.3965], [-0.3775, 1.3801, 2.44036, 1.12495]),
    "every third": (
        {"self_attn_every_n_layers": 3},
        [-0.07558, 0.53047, 2.37315, -1.16614],
        [1.6884, 0.44886, 1.02851, -1.25323],
    ),
    "longer prefix": (
        {"prefix_length": 80},
        [0.26037, 1.5898, 2.04456, 0.19395],
        [1.27506, 1.67926, 0.54216, -0.21952],
    ),
    "special tokens": (
        {"add_image_special_tokens": True},
        [0.27166, 1.8474, 1.98591, 0.13927],
        [1.07586, 1.58687, 0.59432, -0.17524],
    ),
    "first layers": (
        {"num_vlm_layers": 2},
        [-1.62622, -1.06575, 2.69521, -3.21965],
        [0.21078, -1.10614, 1.40934, -4.27358],
    ),
    "self attention": (
        {"attention_mode": "self_attn"},
        [0.77653, -0.2207, 1.96037, 0.98954],
        [1.13167, -0.71857, -0.63619, -1.71878],
    ),
    "fewer experts": (
        {"self_attn_every_n_layers": 0, "num_expert_layers": 2},
        [-1.80442, 0.26388, -1.82688, -2.1771],
        [0.60157, 0.19406, -2.83222, -3.34226],
    ),
    "short chunk": (
        {"chunk_size": 8, "num_steps": 5},
        [0.29059, 1.4587, 1.98598, 0.14792],
        [1.82242, 1.42416, -0.33921, 0.11444],
    ),
    "small image": ({"image": 32}, [0.10499, 1.91205, -0.76961, -0.60063], [2.26632, -0.85168, -0.35115, 0.34374]),
    "wider expert": (
        {"expert_width_multiplier": 0.75},
        [-3.08906, 2.24826, -0.38182, -1.53903],
        [-0.98265, 1.73219, -1.78226, -2.23513],
    ),
}


def shapes(values: dict[str, Any], vlm: dict[str, Any] = tools.TINY_VLM) -> dict[str, tuple[int, ...]]:
    return {name.removeprefix("model."): shape for name, shape in tools.shapes(values, vlm).items()}


def tiny(**fields: Any) -> numbers.SmolVLAConfig:
    values = tools.config(**fields)
    return read_config(values, shapes(values), tools.TINY_VLM)


# ---------------------------------------------------------------- the config


def test_the_kind_is_found_by_the_configs_type() -> None:
    assert kinds.of_config({"type": "smolvla"}).export == "npukit.policies.smolvla.export:export_components"


def test_numbers_of_the_published_checkpoint_are_read_off_the_weights() -> None:
    values = tools.full_config()
    found = read_config(values, shapes(values, tools.FULL_VLM))
    assert (found.prefix, found.image_tokens, found.expert_width, found.expert_hidden) == (177, 64, 480, 1280)
    assert (found.text.heads, found.text.kv_heads, found.text.head_dim, found.text.layers) == (15, 5, 64, 32)
    assert [layer.cross for layer in found.layers] == [False, True] * 16
    assert sum(math.prod(shape) for shape in shapes(values, tools.FULL_VLM).values()) == 604_934_176
    backbone = export.ports(found)[1]
    assert [port.shape for port in backbone.outputs] == [(32, 5, 177, 64), (32, 5, 177, 64), (1, 177)]
    assert [port.name for port in backbone.inputs] == [
        "image_embs_1", "image_embs_2", "lang_tokens", "lang_masks", "state",
    ]  # fmt: skip


def test_every_field_shapes_the_network() -> None:
    found = tiny(
        cameras=2, empty_cameras=1, prefix_length=80, num_vlm_layers=3, self_attn_every_n_layers=3, chunk_size=8
    )
    assert found.cameras[-1] == "observation.images.empty_camera_0"
    assert len(found.cameras) == 3
    assert found.prefix == 80
    assert [layer.cross for layer in found.layers] == [False, True, True]
    assert "image_masks" in [port.name for port in export.ports(found)[1].inputs]
    special = tiny(add_image_special_tokens=True)
    assert (special.image_start, special.image_end, special.prefix) == ((500, 501), (500,), 63)
    assert [layer.expert for layer in tiny(self_attn_every_n_layers=0, num_expert_layers=2).layers] == [
        0,
        None,
        1,
        None,
    ]
    assert not any(layer.cross for layer in tiny(attention_mode="self_attn").layers)
    assert tiny(image=32).image_tokens == 1


def test_all_that_cannot_be_honoured_is_listed_with_its_value() -> None:
    wrong = {
        "n_obs_steps": 2, "adapt_to_pi_aloha": True, "attention_mode": "both", "use_cache": False,
        "resize_imgs_with_padding": [64, 48], "max_state_dim": 4, "n_action_steps": 99, "chunk_size": 50,
        "rtc_config": {"enabled": True}, "min_period": "x", "expert_width_multiplier": 0.25,
    }  # fmt: skip
    with pytest.raises(ModelError) as caught:
        read_config(tools.config(**wrong), shapes(tools.config()), tools.TINY_VLM)
    found = {fault.where: fault.what for fault in caught.value.faults}
    assert set(found) == set(wrong) - {"chunk_size"}
    assert found["resize_imgs_with_padding"].startswith("[64, 48]:")
    assert found["n_obs_steps"].startswith("2:")


@pytest.mark.parametrize("fields", [{"num_expert_layers": 2}, {"num_expert_layers": 3}])
def test_an_expert_that_lerobot_could_not_run_is_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(ModelError, match="num_expert_layers"):
        tiny(**fields)


def test_unknown_fields_are_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, logger="npukit"):
        found = tiny(knob=3)
    assert "'knob'" in caplog.text
    assert "'knob'" in found.notes[0]


def test_a_language_model_that_nobody_knows_needs_its_config() -> None:
    with pytest.raises(ModelError, match=r"tests/tiny.*\n.*vlm_config.json"):
        read_config(tools.config(), shapes(tools.config()))
    values = tools.config(vlm_model_name="/models/SmolVLM2-500M-Video-Instruct")
    with pytest.raises(ModelError, match=r"text_config.hidden_size: 960: the weights have 96"):
        read_config(values, shapes(values))
    other = {**tools.TINY_VLM, "text_config": {**tools.TINY_VLM["text_config"], "hidden_act": "gelu"}}
    with pytest.raises(ModelError, match=r"text_config.hidden_act: 'gelu'"):
        read_config(tools.config(), shapes(tools.config()), other)


@pytest.mark.parametrize(
    "fields",
    [
        {"num_vlm_layers": 9}, {"chunk_size": 1 << 20}, {"prefix_length": 1 << 30},
        {"resize_imgs_with_padding": [0, 0]}, {"resize_imgs_with_padding": None},
        {"input_features": {}}, {"input_features": []},
        {"output_features": {"action": {"type": "ACTION", "shape": [None]}}}, {"max_period": float("nan")},
    ],
)  # fmt: skip
def test_what_would_build_a_network_without_end_is_refused(fields: dict[str, Any]) -> None:
    weights = shapes(tools.config())
    with pytest.raises(ModelError, match=next(iter(fields)).removeprefix("in").removeprefix("out")):
        read_config(tools.config(**fields), weights, tools.TINY_VLM)


def test_images_that_are_not_resized_have_the_features_size() -> None:
    features = {**tools.config()["input_features"]}
    for name in [name for name in features if "images" in name]:
        features[name] = {"type": "VISUAL", "shape": [3, 32, 32]}
    assert tiny_of(resize_imgs_with_padding=None, input_features=features).image == 32


def tiny_of(**fields: Any) -> numbers.SmolVLAConfig:
    return read_config(tools.config(**fields), shapes(tools.config()), tools.TINY_VLM)


def test_positions_are_in_order_where_float_buckets_are_not() -> None:
    np.testing.assert_array_equal(position_ids(32, 32), np.arange(1024))
    # what transformers 4.56 and 4.57 compute in float32: rows and columns 0, 0, 1, 2, ...
    coordinates = (np.arange(32, dtype=np.int64) / np.float32(32) * np.float32(1 - 1e-6)).astype(np.float32)
    side = np.searchsorted(np.arange(1 / 32, 1, 1 / 32, dtype=np.float32), coordinates, side="right")
    assert side[:4].tolist() == [0, 0, 1, 2]
    assert (side[:, None] * 32 + side).max() == 990
    np.testing.assert_array_equal(position_ids(4, 8), np.add.outer(16 * np.arange(4), 2 * np.arange(4)).ravel())


def test_the_time_embedding_is_computed_in_float64() -> None:
    (row,) = time_embeddings([0.3], 480, 4e-3, 4.0)
    time = float(np.float32(0.3))
    periods = [4e-3 * 1000 ** (i / 239) for i in range(240)]
    wanted = [f(2 * math.pi / p * time) for f in (math.sin, math.cos) for p in periods]
    np.testing.assert_array_equal(row, np.asarray(wanted, np.float32))


# ---------------------------------------------------------------- the weights


def test_missing_unused_and_wrong_weights_are_all_listed(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    tools.checkpoint(tmp_path)
    path = tmp_path / "model.safetensors"
    tensors = load_file(path)
    missing = "model.vlm_with_expert.lm_expert.layers.1.self_attn.k_proj.weight"
    del tensors[missing]
    del tensors["model.vlm_with_expert.vlm.lm_head.weight"]  # not needed
    tensors["model.action_in_proj.bias"] = np.zeros(3, np.float32)
    tensors["model.state_proj.bias"] = np.zeros(96, np.int32)
    tensors["model.extra.weight"] = np.zeros(3, np.float32)
    save_file(tensors, path)
    with pytest.raises(ModelError) as caught:
        read(tmp_path, tools.config())
    found = {fault.where: fault.what for fault in caught.value.faults}
    assert set(found) == {missing, "model.action_in_proj.bias", "model.state_proj.bias", "model.extra.weight"}
    assert found["model.action_in_proj.bias"] == "shape [3], [48] expected"
    assert found["model.state_proj.bias"].startswith("dtype I32")
    assert found["model.extra.weight"].startswith("unused")


def test_layouts_of_older_checkpoints_are_read(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    tools.checkpoint(tmp_path)
    path = tmp_path / "model.safetensors"
    tensors = {name.replace("model.", "model._orig_mod.", 1): array for name, array in load_file(path).items()}
    tensors["normalize_inputs.buffer_observation_state.mean"] = np.zeros(8, np.float32)
    tensors["unnormalize_outputs.buffer_action.std"] = np.ones(7, np.float32)
    save_file(tensors, path)
    config, weights = read(tmp_path, tools.config())
    assert load_model(weights, config).state_proj.weight.shape == (96, 32)
    tensors["model.state_proj.bias"] = np.zeros(96, np.float32)
    save_file(tensors, path)
    with pytest.raises(ModelError, match="a weight is there twice"):
        Weights(tmp_path)


def test_a_damaged_file_is_a_clear_error(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no such file"):
        Weights(tmp_path)
    tools.checkpoint(tmp_path)
    path = tmp_path / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(ModelError, match="damaged or incomplete"):
        Weights(tmp_path)


def test_weights_that_are_not_numbers_are_refused(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    tools.checkpoint(tmp_path)
    path = tmp_path / "model.safetensors"
    tensors = load_file(path)
    tensors["model.state_proj.bias"][3] = np.nan
    save_file(tensors, path)
    config, weights = read(tmp_path, tools.config())
    with pytest.raises(ModelError, match=r"model.state_proj.bias: holds NaN"):
        load_model(weights, config)


def test_each_weight_keeps_its_dtype(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    tools.checkpoint(tmp_path, mixed=True)
    config, weights = read(tmp_path, tools.config())
    model = load_model(weights, config)
    counts = [weights.dtypes[key] for key in weights.dtypes]
    assert counts.count("F32") == 10 + 2 * 2  # the projections, and keys and values of the cross layers
    held = model.vlm_with_expert.vlm.model.text_model.embed_tokens.weight
    name = "model.vlm_with_expert.vlm.model.text_model.embed_tokens.weight"
    stored = load_file(tmp_path / "model.safetensors")[name]
    assert held.dtype == torch.bfloat16
    assert stored.dtype == ml_dtypes.bfloat16
    np.testing.assert_array_equal(held.float().numpy(), stored.astype(np.float32))
    wide = load_model(weights, config, dtype=torch.float32)
    chunk, exact = (whole(network, export.random_sample(config)) for network in (model, wide))
    assert np.abs(chunk - exact).max() < 0.02 * np.ptp(exact)
    half = load_model(weights, config, dtype=torch.bfloat16, attention="sdpa")
    assert np.abs(whole(half, export.random_sample(config)) - exact).max() < 0.05 * np.ptp(exact)


# ---------------------------------------------------------------- the network


def whole(model: Any, sample: dict[str, Any], words: int | None = None) -> np.ndarray:
    """The network's chunk; with `words`, the instruction is given without padding."""
    torch = pytest.importorskip("torch")
    given = {name: torch.from_numpy(array) for name, array in sample.items()}
    count = len(model.config.cameras)
    masks = [given["image_masks"][:, i].bool() for i in range(count)]
    tokens, real = given["lang_tokens"][:, :words], given["lang_masks"][:, :words].bool()
    with torch.inference_mode():
        images = [given[f"image_{i + 1}"] for i in range(count)]
        return model(images, masks, tokens, real, given["state"], given["noise"]).float().numpy()


def components(model: Any, sample: dict[str, Any]) -> np.ndarray:
    """The chunk of the three components in PyTorch."""
    torch = pytest.importorskip("torch")
    from npukit.policies.smolvla.components import Backbone, Head, VisionEncoder

    c = model.config
    given = {name: torch.from_numpy(array) for name, array in sample.items()}
    with torch.inference_mode():
        vision, backbone, head = VisionEncoder(c, model), Backbone(c, model), Head(c, model)
        for i in range(1, len(c.cameras) + 1):
            given[f"image_embs_{i}"] = vision(given[f"image_{i}"])
        keys, values, pad = backbone(*(given[port.name] for port in export.ports(c)[1].inputs))
        for port, tensor in zip(export.ports(c)[1].outputs, (keys, values, pad), strict=True):
            assert port.shape == tuple(tensor.shape)
        x = given["noise"]
        times = time_embeddings(numbers.step_times(c.num_steps), c.expert_width, c.min_period, c.max_period)
        for row in torch.from_numpy(times):
            x = x - 1 / c.num_steps * head(x, row[None], pad, keys, values)
    return x.numpy()


def near(reference: np.ndarray, got: np.ndarray, share: float = 2e-6) -> None:
    assert np.abs(reference - got).max() <= share * np.ptp(reference)


@pytest.mark.parametrize("name", LEROBOT)
def test_network_and_components_compute_what_lerobot_computes(tmp_path: Path, name: str) -> None:
    torch = pytest.importorskip("torch")
    fields, first, last = LEROBOT[name]
    config, weights = read(tools.checkpoint(tmp_path, **fields), tools.config(**fields))
    sample = export.random_sample(config, 0, 11)
    reference = whole(load_model(weights, config, dtype=torch.float32), sample)
    np.testing.assert_allclose(reference[0, 0, :4], first, atol=2e-5)
    np.testing.assert_allclose(reference[0, -1, :4], last, atol=2e-5)
    near(reference, whole(load_model(weights, config, dtype=torch.float32, attention="sdpa"), sample))
    near(reference, components(load_model(weights, config, dtype=torch.float32), sample))


@pytest.mark.slow
@pytest.mark.parametrize("name", [*LEROBOT, "native dtypes"])
def test_lerobot_itself_computes_the_same(tmp_path: Path, name: str) -> None:
    torch = pytest.importorskip("torch")
    python = os.environ.get("NPUKIT_LEROBOT_PYTHON")
    if not python:
        pytest.skip("NPUKIT_LEROBOT_PYTHON names no Python with lerobot 0.4.4 and transformers 4.57")
    native = name not in LEROBOT
    fields: dict[str, Any] = {} if native else LEROBOT[name][0]
    config, weights = read(tools.checkpoint(tmp_path, mixed=native, **fields), tools.config(**fields))
    sample = export.random_sample(config, 0, 11)
    np.savez(tmp_path / "sample.npz", **sample)
    script, mode = Path(__file__).with_name("lerobot_smolvla.py"), "native" if native else "float32"
    paths = [str(path) for path in (script, tmp_path, tmp_path / "sample.npz", tmp_path / "chunk.npy")]
    subprocess.run([python, *paths, mode], check=True, capture_output=True, timeout=300)
    got = whole(load_model(weights, config, dtype=None if native else torch.float32), sample)
    near(np.load(tmp_path / "chunk.npy"), got, 5e-3 if native else 1e-6)  # bfloat16 rounds at other places


def test_padding_of_the_instruction_changes_nothing(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    config, weights = read(tools.checkpoint(tmp_path), tools.config())
    model, sample = load_model(weights, config), export.random_sample(config, 0, 11)
    near(whole(model, sample), whole(model, sample, words=11))


def test_a_wrong_position_table_would_show(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    from npukit.policies.smolvla.components import VisionEncoder

    config, weights = read(tools.checkpoint(tmp_path), tools.config())
    encoder = VisionEncoder(config, load_model(weights, config))
    table = load_file(tmp_path / "model.safetensors")[f"model.{numbers.VISION}embeddings.position_embedding.weight"]
    np.testing.assert_array_equal(encoder.positions.numpy(), table)
    pixels = torch.from_numpy(export.random_sample(config)["image_1"])
    with torch.inference_mode():
        right = encoder(pixels).numpy()
        side = np.maximum(np.arange(8) - 1, 0)  # as transformers 4.56 and 4.57 have it in float32
        encoder.positions = torch.from_numpy(table[np.add.outer(8 * side, side).ravel()])
        wrong = encoder(pixels).numpy()
    assert np.abs(right - wrong).max() > 0.01 * np.ptp(right)


def test_absent_cameras_change_nothing_but_what_they_show(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    config, weights = read(tools.checkpoint(tmp_path, empty_cameras=1), tools.config(empty_cameras=1))
    sample = export.random_sample(config)
    blank = {**sample, "image_3": np.full_like(sample["image_3"], -1)}
    one, other = (components(load_model(weights, config, dtype=torch.float32), item) for item in (sample, blank))
    np.testing.assert_array_equal(one, other)
    seen = {**sample, "image_masks": np.ones_like(sample["image_masks"])}
    assert np.abs(one - components(load_model(weights, config), seen)).max() > 1e-4


def test_a_sample_is_made_of_what_preprocessing_gives() -> None:
    config = tiny(empty_cameras=1)
    image = np.zeros((1, 3, 64, 64), np.float32)
    inputs = {
        **dict.fromkeys(config.cameras[:2], image),
        f"{config.cameras[2]}_padding_mask": np.array([False]),
        "observation.state": np.ones((1, 8), np.float32),
        "observation.language.tokens": np.arange(1, 6)[None],
        "observation.language.attention_mask": np.ones((1, 5), bool),
    }
    found = export.sample(config, kinds.Probe(inputs, None))
    assert found["image_masks"].tolist() == [[1, 1, 0]]
    assert found["lang_masks"].sum() == 5
    assert found["lang_tokens"].shape == (1, 48)
    assert found["state"].shape == (1, 32)
    assert json.dumps(export.runtime_config(config))

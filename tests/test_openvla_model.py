# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""OpenVLA's numbers, weights and network: against timm and transformers, and what is said of checkpoints not whole."""

from __future__ import annotations

import importlib.util
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from npukit.errors import ModelError
from npukit.policies.openvla.config import OpenVLAConfig, read_config, rotary
from npukit.policies.openvla.weights import INDEX, Weights
from tests import openvla_reference as reference
from tests import openvla_tools as tools

_PACKAGES = ("timm", "transformers")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tools.checkpoint(tmp_path_factory.mktemp("openvla") / "checkpoint")


@pytest.fixture
def copy(tiny: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny, tmp_path / "copy"))


def config_of(folder: Path, **fields: Any) -> tuple[OpenVLAConfig, Weights]:
    weights = Weights(folder)
    values = {**json.loads((folder / "config.json").read_text()), **fields}
    found = read_config(values, weights.shapes, 7)
    weights.check(found)
    return found, weights


def faults(error: pytest.ExceptionInfo[ModelError]) -> str:
    return "\n".join(f"{fault.where}: {fault.what}" for fault in error.value.faults)


# ---------------------------------------------------------------- against the packages it comes from


def ours(folder: Path) -> dict[str, Any]:
    torch = pytest.importorskip("torch")
    from npukit.policies.openvla.model import OpenVLA

    pixels, ids = (torch.from_numpy(array) for array in reference.inputs())
    network = OpenVLA(*config_of(folder), whole=True)
    with torch.inference_mode():
        patches = network.patches(pixels)
        image = network.project(patches)
        logits, _ = network(network.sequence(image, ids[0]))
        tokens = network.generate(pixels, ids[0])
    return {
        "patch_features": patches.numpy(), "image_embeddings": image.numpy(),
        "logits": logits.numpy()[reference.LOGITS], "tokens": np.array(tokens),
    }  # fmt: skip


def same(wanted: Any, found: Any) -> None:
    """Equal to what another order of float32 sums may differ by; tokens equal."""
    assert list(wanted["tokens"]) == list(found["tokens"])
    for name in ("patch_features", "image_embeddings", "logits"):
        scale = np.abs(wanted[name]).max()
        assert np.abs(wanted[name] - found[name]).max() < 1e-5 * scale, name


def test_the_network_computes_what_timm_and_transformers_do(tiny: Path) -> None:
    """Against numbers that `openvla_reference` wrote where both are installed."""
    same(np.load(Path(__file__).parent / "data" / "openvla_reference.npz"), ours(tiny))


@pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in _PACKAGES),
    reason="timm and transformers are not installed; the committed numbers were made with them",
)
def test_the_network_computes_what_the_installed_packages_do(tiny: Path) -> None:
    same(reference.compute(tiny), ours(tiny))


def test_the_cache_and_the_layers_by_themselves_change_nothing(tiny: Path) -> None:
    torch = pytest.importorskip("torch")
    from npukit.policies.openvla.model import OpenVLA

    pixels, ids = (torch.from_numpy(array) for array in reference.inputs())
    found = config_of(tiny)
    whole = OpenVLA(*found, whole=True)
    with torch.inference_mode():
        tokens = whole.generate(pixels, ids[0])
        assert whole.generate(pixels, ids[0], cached=False) == tokens
        layered = OpenVLA(*found)
        assert layered.generate(pixels, ids[0]) == tokens
        assert all(parameter.is_meta for parameter in layered.parameters())


def test_rotary_tables_against_float64() -> None:
    cos, sin = rotary(np.arange(304), 128, 10000.0)
    angles = np.arange(304)[:, None] * 10000.0 ** (-np.arange(0, 128, 2) / 128)
    # an angle of up to 303 rad is rounded to 2**-16 rad of float32, as the language model itself rounds it
    assert np.abs(cos - np.cos(angles)).max() < 5e-5
    assert np.abs(sin - np.sin(angles)).max() < 5e-5


# ---------------------------------------------------------------- numbers


def test_sizes_that_the_config_leaves_out_are_llamas_and_those_of_the_weights(tiny: Path) -> None:
    found, _ = config_of(tiny)
    assert (found.text.width, found.text.layers, found.text.epsilon, found.vocabulary) == (64, 2, 1e-6, 32000)
    assert [(t.width, t.blocks, t.extra, t.scaled) for t in found.towers] == [(64, 2, 5, True), (48, 2, 0, False)]
    assert (found.image_tokens, found.prefill, found.cache, found.row) == (16, 48, 64, 256)
    full = read_config(tools.config(tools.FULL), dict(tools.shapes(tools.FULL)), 7)
    assert (full.text.width, full.text.hidden, full.text.layers, full.text.heads) == (4096, 11008, 32, 32)
    assert (full.prefill, full.cache, full.row) == (288, 304, 2 * 32 * 4096)
    assert sum(np.prod(shape) for _, shape in tools.shapes(tools.FULL)) == pytest.approx(7.54e9, rel=0.01)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"timm_model_ids": ["vit_huge_patch14", tools.SIGLIP]}, "timm_model_ids[0]: 'vit_huge_patch14' is not known"),
        ({"timm_model_ids": None, "vision_backbone_id": "dinosiglip-vit-so-999px"}, "vision_backbone_id"),
        ({"timm_override_act_layers": ["quick_gelu", None]}, "timm_override_act_layers"),
        ({"use_fused_vision_backbone": False}, "use_fused_vision_backbone: does not go with 2 towers"),
        ({"image_sizes": [224, 224]}, "image_sizes: images of [224, 224], the towers' weights are for 56 pixels"),
        ({"arch_specifier": "linear"}, "arch_specifier"),
        ({"image_resize_strategy": "letterbox"}, "image_resize_strategy"),
        ({"pad_to_multiple_of": "64"}, "pad_to_multiple_of"),
        ({"n_action_bins": 0}, "n_action_bins"),
        ({"text_config": None}, "text_config: missing"),
    ],
)
def test_a_config_that_cannot_be_honoured(tiny: Path, fields: dict[str, Any], said: str) -> None:
    with pytest.raises(ModelError) as error:
        config_of(tiny, **fields)
    assert said in faults(error)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ({"hidden_size": -1}, "text_config.hidden_size"), ({"rms_norm_eps": "small"}, "text_config.rms_norm_eps"),
        ({"hidden_act": "gelu"}, "text_config.hidden_act"),
        ({"rope_scaling": {"factor": 2}}, "text_config.rope_scaling"),
        ({"num_key_value_heads": 2}, "text_config.num_key_value_heads: 2, 4 is supported"),
        ({"num_attention_heads": 3}, "do not make 3 heads"), ({"pad_token_id": 99999}, "text_config.pad_token_id"),
        ({"model_type": "mistral"}, "text_config.model_type"), ({"attention_bias": True}, "text_config.attention_bias"),
    ],
)  # fmt: skip
def test_a_language_model_that_is_not_computed(tiny: Path, text: dict[str, Any], said: str) -> None:
    given = tools.config()["text_config"]
    with pytest.raises(ModelError) as error:
        config_of(tiny, text_config={**given, **text})
    assert said in faults(error)


def test_a_prompt_beyond_the_language_models_positions(tiny: Path) -> None:
    weights = Weights(tiny)
    with pytest.raises(ModelError, match="64 tokens, the language model was made for 63"):
        read_config(tools.config(text_config={**tools.config()["text_config"], "max_position_embeddings": 63}),
                    weights.shapes, 7)  # fmt: skip


# ---------------------------------------------------------------- weights


def change(folder: Path, number: int, **tensors: Any) -> None:
    """Replace tensors of a shard (None removes one), the index left as it is."""
    path = sorted(folder.glob("model-*.safetensors"))[number]
    held = load_file(path)
    for name, array in tensors.items():
        held.pop(name, None)
        if array is not None:
            held[name] = array
    save_file(held, path)


def shard_of(folder: Path, name: str) -> int:
    index = json.loads((folder / INDEX).read_text())["weight_map"]
    return sorted(set(index.values())).index(index[name])


def test_every_weight_that_is_wrong_is_named(copy: Path) -> None:
    fc1, norm, extra = "projector.fc1.weight", "language_model.model.norm.weight", "projector.fc4.weight"
    index = json.loads((copy / INDEX).read_text())
    change(copy, shard_of(copy, fc1), **{fc1: np.zeros((3, 5), np.float32)})
    change(copy, shard_of(copy, norm), **{norm: None, extra: np.zeros(4, np.float32)})
    index["weight_map"][extra] = index["weight_map"].pop(norm)
    (copy / INDEX).write_text(json.dumps(index))
    with pytest.raises(ModelError) as error:
        config_of(copy)
    found = faults(error)
    assert f"{fc1}: shape [3, 5], [448, 112] expected" in found
    assert f"{norm}: missing" in found
    assert f"{extra}: unused" in found
    assert len(error.value.faults) == 3


@pytest.mark.parametrize(
    ("harm", "said"),
    [
        (lambda folder: sorted(folder.glob("model-*"))[1].unlink(), "model-00002-of-00002.safetensors"),
        (lambda folder: _cut(sorted(folder.glob("model-*"))[1]), "model-00002-of-00002.safetensors: "),
        (lambda folder: _index(folder, "projector.fc1.weight", "../secret.safetensors"), "leads out of the folder"),
        (lambda folder: _index(folder, "projector.fc9.weight", "model-00002-of-00002.safetensors"),
         "lacks 'projector.fc9.weight'"),
        (lambda folder: _index(folder, "projector.fc1.weight", "model-00002-of-00002.safetensors"),
         "which the index puts into model-00002-of-00002.safetensors"),
    ],
)  # fmt: skip
def test_shards_that_are_not_whole(copy: Path, harm: Any, said: str) -> None:
    harm(copy)
    with pytest.raises(ModelError) as error:
        Weights(copy)
    assert said in faults(error)


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def _index(folder: Path, name: str, file: str) -> None:
    index = json.loads((folder / INDEX).read_text())
    index["weight_map"][name] = file
    (folder / INDEX).write_text(json.dumps(index))


def test_an_index_that_is_none(copy: Path) -> None:
    (copy / INDEX).write_text("{}")
    with pytest.raises(ModelError, match="weight_map"):
        Weights(copy)
    (copy / INDEX).unlink()
    with pytest.raises(ModelError, match="neither"):
        Weights(copy)


def test_a_weight_that_is_not_a_number(copy: Path) -> None:
    name = "projector.fc1.bias"
    change(copy, shard_of(copy, name), **{name: np.full(448, np.nan, np.float32)})
    _, weights = config_of(copy)
    with pytest.raises(ModelError, match="NaN"):
        weights.read(name)


def test_one_file_without_an_index(copy: Path) -> None:
    held: dict[str, Any] = {}
    for path in sorted(copy.glob("model-*")):
        held.update(load_file(path))
        path.unlink()
    (copy / INDEX).unlink()
    save_file(held, copy / "model.safetensors")
    config_of(copy)

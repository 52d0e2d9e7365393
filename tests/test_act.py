# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""ACT: the network against LeRobot's recorded results, the exported component against the network, its runtime."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import npukit
from npukit.errors import ArtifactError, InputError, ModelError
from npukit.policies import kinds
from npukit.policies.act.config import read_config
from npukit.policies.act.runtime import Ensemble, Runtime
from npukit.policies.kinds import Exported, ExportRequest
from npukit.policies.package import Manifest
from tests import act_tools as tools

OTHER = {
    "pre_norm": True,
    "n_decoder_layers": 2,
    "env_state": 4,
    "feedforward_activation": "gelu",
    "vision_backbone": "resnet34",
    "size": (70, 65),
}
# Rows 0 and 9 of the chunk that LeRobot 0.4.4's own `ACT` gave (torch 2.13, torchvision's ResNet) for the checkpoint
# `tools.write_checkpoint(folder, tools.config(...))` and the inputs of `feed`.
LEROBOT = (
    (
        {},
        [-0.76954, 1.65973, -0.08628, -0.10997, 2.12443, 1.30595],
        [-0.72119, 1.78658, 0.03463, -0.05907, 2.23923, 1.36956],
    ),
    (
        OTHER,
        [0.22717, 1.18664, 1.18458, -1.94504, 1.77663, 0.53258],
        [0.1196, 1.12104, 1.10051, -1.94682, 2.08338, 0.05425],
    ),
)


def feed(shapes: list[tuple[int, ...]]) -> list[np.ndarray]:
    rng = np.random.default_rng(3)
    return [rng.standard_normal((1, *shape)).astype(np.float32) for shape in shapes]


@pytest.mark.parametrize(("changes", "first", "last"), LEROBOT, ids=["default", "other"])
def test_the_network_is_lerobots(
    tmp_path: Path, changes: dict[str, Any], first: list[float], last: list[float]
) -> None:
    torch = pytest.importorskip("torch")
    from npukit.policies.act import export

    values = tools.config(**changes)
    config = read_config(values)
    model = export.load(tools.write_checkpoint(tmp_path, values), config)
    inputs = [torch.from_numpy(array) for array in feed([port.shape[1:] for port in export.input_ports(config)])]
    with torch.no_grad():
        whole = model(*inputs)[0]
        frozen = model.freeze()(*inputs)[0]
    np.testing.assert_allclose(whole[0], first, atol=2e-5)
    np.testing.assert_allclose(whole[9], last, atol=2e-5)
    np.testing.assert_allclose(frozen, whole, atol=1e-5)  # folded batch norm, constants, split projections


def test_attention_is_torchs() -> None:
    torch = pytest.importorskip("torch")
    from npukit.policies.act.model import Attention, FoldedAttention

    theirs = torch.nn.MultiheadAttention(32, 4, batch_first=True)
    ours = Attention(32, 4)
    ours.load_state_dict(theirs.state_dict())
    q, k, v = torch.randn(2, 5, 32), torch.randn(2, 7, 32), torch.randn(2, 7, 32)
    want = theirs(q, k, v)[0]
    torch.testing.assert_close(ours(q, k, v), want)
    torch.testing.assert_close(FoldedAttention(ours)(q, k, v), want)


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Exported, dict[str, Any]]:
    """A policy without the costly second camera, exported: folder, what the exporter said, config.json."""
    pytest.importorskip("torch")
    folder = tmp_path_factory.mktemp("act")
    values = tools.config(cameras=("observation.images.top",), env_state=3, size=(64, 64))
    checkpoint = tools.write_checkpoint(folder / "checkpoint", values)
    made = kinds.resolve(kinds.kind("act").export)(checkpoint, folder, ExportRequest(config=values))
    return folder, made, values


def manifest(made: Exported, **config: Any) -> Manifest:
    return Manifest("act", made.config | config, {}, {}, made.cameras, (), (), made.components, made.chunk_size, 1)


def test_export_is_one_clean_component(exported: tuple[Path, Exported, dict[str, Any]]) -> None:
    import onnx

    folder, made, _ = exported
    assert [(port.name, port.shape) for port in made.components[0].inputs] == [
        ("image_1", (1, 3, 64, 64)), ("state", (1, 6)), ("env_state", (1, 3)),
    ]  # fmt: skip
    assert [(camera.feature, camera.slot) for camera in made.cameras] == [("observation.images.top", 0)]
    assert all(record["share"] < 1e-5 for record in made.parity)
    graph = onnx.load(folder / "policy.onnx").graph
    assert [value.name for value in graph.input] == ["image_1", "state", "env_state"]
    litter = {"Slice", "Split", "Gather", "ScatterND", "Shape", "Expand", "BatchNormalization", "Constant", "Cast"}
    assert not litter & {node.op_type for node in graph.node}


@pytest.mark.native
def test_runs_on_qnn_cpu_as_on_onnx_runtime(exported: tuple[Path, Exported, dict[str, Any]]) -> None:
    folder, made, _ = exported
    npukit.convert(folder / "policy.onnx", output=folder / "policy.dlc", target=("qnn-cpu",))  # verifies, or raises
    shapes = [port.shape[1:] for port in made.components[0].inputs]
    inputs = dict(zip(made.config["inputs"].values(), feed(shapes), strict=True))
    chunks = []
    for name in ("policy.onnx", "policy.dlc"):
        with npukit.Session(folder / name) as session:
            runtime = Runtime(manifest(made), {"policy": session})
            runtime.prefix(inputs)
            chunks.append(runtime.chunk())
            assert runtime.noise_shape() is None
            assert runtime.seconds["policy"] > 0
    assert chunks[0].shape == (10, 6)
    np.testing.assert_allclose(chunks[1], chunks[0], atol=1e-4)


@pytest.mark.native
def test_a_checkpoint_becomes_a_package_that_acts(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    from npukit.policies.export_verb import ExportOptions, export

    values = tools.config(
        cameras=("observation.images.top",), size=(64, 64), temporal_ensemble_coeff=0.1, n_action_steps=1
    )
    checkpoint = tools.write_checkpoint(tmp_path / "checkpoint", values)
    export(ExportOptions(checkpoint=checkpoint, output=tmp_path / "package", backend=("ort", "qnn-cpu")))
    rng = np.random.default_rng(0)
    seen = [
        {
            "observation.images.top": rng.integers(0, 256, (64, 64, 3), dtype=np.uint8),
            "observation.state": rng.standard_normal(6).astype(np.float32),
        }
        for _ in range(3)
    ]
    statistics = tools.statistics(values)
    mean, std = statistics["action.mean"], statistics["action.std"]
    acted = {}
    for backend in ("ort", "qnn-cpu"):
        with npukit.Policy(tmp_path / "package", backend=backend) as policy:
            chunks = [policy.predict_chunk(observation) for observation in seen]
            policy.reset()
            actions = [policy.select_action(observation) for observation in seen]
            policy.reset()  # and nothing of the first episode is left
            np.testing.assert_array_equal(policy.select_action(seen[0]), actions[0])
        ensemble = Ensemble(0.1, 10)
        wanted = [ensemble.update((chunk - mean) / std)[0] * std + mean for chunk in chunks]
        np.testing.assert_allclose(actions, wanted, atol=1e-5)
        acted[backend] = actions
    np.testing.assert_allclose(acted["qnn-cpu"], acted["ort"], atol=1e-4)


def test_runtime_names_what_is_missing(exported: tuple[Path, Exported, dict[str, Any]]) -> None:
    _, made, _ = exported
    runtime = Runtime(manifest(made), {"policy": object()})  # type: ignore[dict-item]
    with pytest.raises(InputError, match="no observation yet"):
        runtime.chunk()
    with pytest.raises(InputError, match=r"lacks observation\.images\.top, observation\.environment_state"):
        runtime.prefix({"observation.state": np.zeros((1, 6), np.float32)})
    with pytest.raises(ArtifactError, match="feature for each input"):
        Runtime(manifest(made, inputs={"image_1": "observation.images.top"}), {"policy": object()})  # type: ignore[dict-item]


@pytest.mark.parametrize("coefficient", [0.01, 0.0, -0.5])
def test_ensemble_is_the_weighted_mean_of_all_predictions(coefficient: float) -> None:
    chunks = np.random.default_rng(0).standard_normal((12, 5, 2)).astype(np.float32)
    ensemble = Ensemble(coefficient, 5)
    for _ in range(2):  # the second round: nothing is left of the first
        for step in range(len(chunks)):
            got = ensemble.update(chunks[step])
            known = [chunks[made][step - made] for made in range(max(0, step - 4), step + 1)]  # oldest first
            weights = np.exp(-coefficient * np.arange(len(known)))
            np.testing.assert_allclose(got[0], weights @ np.array(known) / weights.sum(), rtol=1e-5, atol=1e-6)
        ensemble.reset()


def test_config_lists_all_that_is_wrong() -> None:
    wrong = tools.config(
        vision_backbone="resnet50", replace_final_stride_with_dilation=1, feedforward_activation="glu", n_heads=5,
        chunk_size="ten", n_action_steps=8, temporal_ensemble_coeff=0.01, n_obs_steps=2,
    )  # fmt: skip
    wrong["output_features"] = {}
    with pytest.raises(ModelError) as caught:
        read_config(wrong)
    assert {fault.where for fault in caught.value.faults} == {
        "vision_backbone", "replace_final_stride_with_dilation", "feedforward_activation", "n_heads", "chunk_size",
        "n_action_steps", "n_obs_steps", "output_features.action",
    }  # fmt: skip
    with pytest.raises(ModelError, match="nothing to act upon"):
        read_config(tools.config(cameras=()))


def test_weights_that_are_not_the_configs(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    from safetensors.numpy import save_file

    from npukit.policies.act import export

    values = tools.config(cameras=(), env_state=3)
    config = read_config(values)
    file = tools.write_checkpoint(tmp_path, values) / "model.safetensors"
    arrays = tools.weights(values)
    arrays["model.action_head.bias"] = np.zeros(7, np.float32)
    arrays["model.extra"] = arrays.pop("model.decoder.norm.weight")
    save_file(arrays | {"normalize_inputs.buffer_observation_state.mean": np.zeros(6, np.float32)}, file)
    with pytest.raises(ModelError) as caught:
        export.load(tmp_path, config)
    assert {fault.where for fault in caught.value.faults} == {
        "model.action_head.bias", "model.extra", "model.decoder.norm.weight",
    }  # fmt: skip
    save_file(tools.weights(values) | {"model.action_head.bias": np.full(6, np.nan, np.float32)}, file)
    with pytest.raises(ModelError, match="not all numbers"):
        export.load(tmp_path, config)
    file.write_bytes(file.read_bytes()[:5000])
    with pytest.raises(ModelError, match="cannot be read"):
        export.load(tmp_path, config)

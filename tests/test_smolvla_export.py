# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""SmolVLA's exported components: as near to PyTorch as they must be, clean graphs, and a DLC of each."""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from safetensors.numpy import load_file

import npukit
from npukit.errors import ModelError
from npukit.policies import kinds
from npukit.policies.kinds import Exported, ExportRequest
from npukit.policies.smolvla import export
from tests import smolvla_tools as tools

# Everything that is not the default at once: widths, cameras, which layers attend to what, padding, special tokens
OTHER_VLM = {
    **tools.TINY_VLM,
    "text_config": {
        **tools.TINY_VLM["text_config"], "num_attention_heads": 6, "num_key_value_heads": 2, "head_dim": 16,
    },
}  # fmt: skip
OTHER: dict[str, Any] = {
    "cameras": 2, "empty_cameras": 1, "chunk_size": 8, "num_steps": 5, "num_vlm_layers": 3, "prefix_length": 90,
    "self_attn_every_n_layers": 3, "expert_width_multiplier": 0.75, "add_image_special_tokens": True,
    "max_state_dim": 16,
}  # fmt: skip

# All that the graphs are made of: no Slice, Where, Expand, ScatterND
PLAIN = {
    "Add", "Concat", "Conv", "Div", "Gather", "Gelu", "Gemm", "LayerNormalization", "MatMul",
    "Mul", "Pow", "ReduceMean", "Reshape", "Sigmoid", "Softmax", "Split", "Sqrt", "Sub",
    "Transpose", "Unsqueeze", "Cast", "CumSum", "ReduceSum",
}  # fmt: skip


@dataclass
class Made:
    """An export: its folder, what the exporter says of it, and the names of its stages."""

    folder: Path
    exported: Exported
    stages: list[str]

    def model(self, name: str) -> onnx.ModelProto:
        return onnx.load(str(self.folder / f"{name}.onnx"), load_external_data=False)


def run(folder: Path, checkpoint: Path, **options: Any) -> Made:
    stages: list[str] = []

    @contextlib.contextmanager
    def stage(name: str) -> Iterator[None]:
        stages.append(name)
        yield

    config = json.loads((checkpoint / "config.json").read_text())
    request = ExportRequest(config, stage=stage, threads=1, **options)
    folder.mkdir()
    return Made(folder, export.export_components(checkpoint, folder, request), stages)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Made:
    pytest.importorskip("torch", reason="needs torch (npukit[torch])")
    folder = tmp_path_factory.mktemp("tiny")
    return run(folder / "out", tools.checkpoint(folder / "checkpoint"))


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """From bfloat16, on probes as pre-processing gives them: the second with an image for the camera that may lack."""
    pytest.importorskip("torch", reason="needs torch (npukit[torch])")
    folder = tmp_path_factory.mktemp("other")
    checkpoint = tools.checkpoint(folder / "checkpoint", mixed=True, vlm=OTHER_VLM, **OTHER)

    def probes(count: int, noise: tuple[int, int] | None) -> list[kinds.Probe]:
        rng = np.random.default_rng(1)
        found = []
        for cameras in (2, 3):
            names = [*tools.config(**OTHER)["input_features"]][:2] + ["observation.images.empty_camera_0"]
            inputs = {name: rng.uniform(-1, 1, (1, 3, 64, 64)).astype(np.float32) for name in names[:cameras]}
            inputs |= {f"{names[2]}_padding_mask": np.array([cameras == 3])}
            inputs["observation.state"] = rng.standard_normal((1, 16)).astype(np.float32)
            inputs["observation.language.tokens"] = rng.integers(0, 512, (1, 48))
            inputs["observation.language.attention_mask"] = np.arange(48)[None] < 9
            found.append(kinds.Probe(inputs, rng.standard_normal(noise or (1, 1)).astype(np.float32)))
        return found

    return run(folder / "out", checkpoint, probes=probes)


@pytest.mark.parametrize("name", ["tiny", "other"])
def test_components_and_chunk_are_those_of_the_network(name: str, request: pytest.FixtureRequest) -> None:
    made: Made = request.getfixturevalue(name)
    records = made.exported.parity
    assert {record["component"] for record in records} == {"vision_encoder", "llm_backbone", "action_head", "chunk"}
    for record in records:
        assert record["share"] <= 1e-4, record
        assert record["cosine"] >= 0.999999, record
    assert [stage.partition(":")[0] for stage in made.stages][:2] == ["read", "vision_encoder"]


def test_the_manifests_part_says_what_the_graphs_have(tiny: Made, other: Made) -> None:
    for made in (tiny, other):
        for component in made.exported.components:
            graph = made.model(component.name).graph
            for ports, values in ((component.inputs, graph.input), (component.outputs, graph.output)):
                found = [(v.name, tuple(d.dim_value for d in v.type.tensor_type.shape.dim)) for v in values]
                assert found == [(port.name, port.shape) for port in ports]
                kinds_found = [onnx.helper.tensor_dtype_to_np_dtype(v.type.tensor_type.elem_type).name for v in values]
                assert kinds_found == [port.dtype for port in ports]
    assert [component.runs for component in other.exported.components] == [3, 1, 5]
    assert [camera.required for camera in other.exported.cameras] == [True, True, False]
    assert (other.exported.chunk_size, other.exported.n_action_steps) == (8, 1)
    assert [chunk.shape for chunk in other.exported.chunks] == [(8, 7)] * 2
    assert not tiny.exported.chunks
    json.dumps([dataclasses.asdict(component) for component in tiny.exported.components])


def test_graphs_hold_nothing_that_a_compiler_stumbles_over(tiny: Made, other: Made) -> None:
    for made in (tiny, other):
        for component in made.exported.components:
            model = made.model(component.name)
            assert {node.op_type for node in model.graph.node} <= PLAIN
            assert not any(node.domain for node in model.graph.node)
            assert [item.version for item in model.opset_import] == [20]
            raw = (made.folder / f"{component.name}.onnx").read_bytes()
            assert b'File "' not in raw  # torch's stack traces
        head = made.model("action_head").graph
        integers = [item.name for item in head.input if item.type.tensor_type.elem_type != onnx.TensorProto.FLOAT]
        assert not integers


def test_the_head_takes_the_cache_as_it_lies(other: Made) -> None:
    graph = other.model("action_head").graph
    users: dict[str, list[onnx.NodeProto]] = {}
    for node in graph.node:
        for name in node.input:
            users.setdefault(name, []).append(node)
    for cache in ("kv_keys", "kv_values"):
        (split,) = users[cache]
        assert split.op_type == "Split"
        for name in split.output:
            (user,) = users[name]
            assert user.op_type in ("Concat", "MatMul", "Transpose")
            if user.op_type == "Transpose":  # the second operand of a product, not another layout
                assert list(user.attribute[0].ints) == [0, 1, 3, 2]
    made = {output: node.op_type for node in other.model("llm_backbone").graph.node for output in node.output}
    assert (made["kv_keys"], made["kv_values"]) == ("Concat", "Concat")


def test_positions_are_a_table_in_order(tiny: Made) -> None:
    model = onnx.load(str(tiny.folder / "vision_encoder.onnx"))
    (positions,) = (item for item in model.graph.initializer if item.name == "positions")
    held = load_file(tiny.folder.parent / "checkpoint" / "model.safetensors")
    (table,) = (array for name, array in held.items() if name.endswith("position_embedding.weight"))
    np.testing.assert_array_equal(onnx.numpy_helper.to_array(positions), table)


@pytest.mark.native
@pytest.mark.parametrize("name", ["vision_encoder", "llm_backbone", "action_head"])
@pytest.mark.parametrize("which", ["tiny", "other"])
def test_each_component_converts_and_holds_on_qnn_cpu(
    which: str, name: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    made: Made = request.getfixturevalue(which)
    ranges = {
        port.name: (0, 1)
        for component in made.exported.components
        for port in component.inputs
        if component.name == name and port.name.endswith("_masks")
    }
    result = npukit.convert(
        made.folder / f"{name}.onnx", output=tmp_path / f"{name}.dlc", target=("qnn-cpu", "sm8650"), min_cosine=0.99999,
        input_ranges=ranges, random=1, in_process=True,
    )  # fmt: skip
    assert result.exit_code == 0
    assert result.verification is not None


@pytest.mark.native
def test_norms_are_recognized_for_the_npu(tiny: Made, tmp_path: Path) -> None:
    result = npukit.convert(
        tiny.folder / "action_head.onnx", output=tmp_path / "h.dlc", target=("sm8650",), verify=False, in_process=True
    )
    assert result.converted.ops["RmsNorm"] == 9
    assert "StridedSlice" not in result.converted.ops


def test_a_wrong_config_is_refused_before_any_work(tmp_path: Path) -> None:
    pytest.importorskip("torch", reason="needs torch (npukit[torch])")
    checkpoint = tools.checkpoint(tmp_path / "checkpoint")
    with pytest.raises(ModelError, match="n_obs_steps"):
        export.export_components(checkpoint, tmp_path, ExportRequest(tools.config(n_obs_steps=2)))
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint"]

# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""A kind of policy with SmolVLA's components and none of its network: no torch, and chunks that a formula gives."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from npukit.policies import kinds
from npukit.policies.kinds import Exported, ExportRequest, Kind
from npukit.policies.package import Camera, Component, Port
from npukit.policies.smolvla.config import step_times, time_embeddings
from tests.policy_tools import processors, tokenizer

KIND = Kind(
    "double", ("double",), export="tests.policy_double:export_components",
    runtime="npukit.policies.smolvla.runtime:Runtime", steps="npukit.policies.smolvla.steps:steps",
)  # fmt: skip
SIDE, TOKENS, STATE, WIDTH, STEPS, CHUNK = 8, 12, 4, 6, 4, 5
CAMERAS = ("observation.images.top", "observation.images.wrist")
NUMBERS = {"num_steps": STEPS, "min_period": 0.004, "max_period": 4.0}
BROKEN = "broken"
"""In config.json: the components do not compute what the formula says."""


def install(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the kind known for the length of a test."""
    monkeypatch.setitem(kinds.KINDS, "double", "tests.policy_double")


def config(**fields: Any) -> dict[str, Any]:
    return {
        "type": "double", "chunk_size": CHUNK, "n_action_steps": 2, "max_state_dim": WIDTH, "max_action_dim": WIDTH,
        "input_features": {**{name: {"type": "VISUAL", "shape": [3, 6, 8]} for name in CAMERAS},
                           "observation.state": {"type": "STATE", "shape": [STATE]}},
        "output_features": {"action": {"type": "ACTION", "shape": [3]}},
        "normalization_mapping": {"VISUAL": "IDENTITY", "STATE": "MEAN_STD", "ACTION": "MEAN_STD"},
        "resize_imgs_with_padding": [SIDE, SIDE], **fields,
    }  # fmt: skip


def checkpoint(folder: Path, **fields: Any) -> Path:
    """A checkpoint folder of the kind."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config(**fields)))
    processors(folder, max_length=TOKENS)
    tokenizer(folder / "tokenizer.json", 300)
    return folder


def observation(seed: int = 0, **changes: Any) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    images = {name: rng.integers(0, 256, (6, 8, 3)).astype(np.uint8) for name in CAMERAS}
    return {**images, "observation.state": rng.standard_normal(STATE), "task": "push", **changes}


def noise(seed: int = 0) -> Any:
    return np.random.default_rng(seed).standard_normal((CHUNK, WIDTH), np.float32)


def formula(inputs: kinds.ModelInputs, x: Any) -> Any:
    """The normalized chunk float32 [CHUNK, WIDTH]."""
    means = [np.tile(inputs[name].mean(axis=(2, 3))[0], 2) for name in CAMERAS]
    words = inputs["observation.language.attention_mask"].astype(np.float32)
    fixed = np.mean(means, axis=0) - inputs["observation.state"][0]
    times = time_embeddings(step_times(STEPS), WIDTH, NUMBERS["min_period"], NUMBERS["max_period"])
    x = np.array(x, np.float32)
    for row in times:
        x = x - np.float32(1 / STEPS) * (0.5 * x + fixed + 0.1 * row + words.mean()).astype(np.float32)
    return x


def _port(name: str, *shape: int, dtype: str = "float32") -> Port:
    return Port(name, dtype, shape)


COMPONENTS = (
    Component(
        "vision_encoder", (_port("pixel_values", 1, 3, SIDE, SIDE),), (_port("image_embeddings", 1, 1, WIDTH),), 2
    ),
    Component(
        "llm_backbone",
        (_port("image_embs_1", 1, 1, WIDTH), _port("image_embs_2", 1, 1, WIDTH),
         _port("lang_tokens", 1, TOKENS, dtype="int64"), _port("lang_masks", 1, TOKENS, dtype="int64"),
         _port("state", 1, WIDTH)),
        (_port("kv_keys", 1, 1, 2, WIDTH), _port("kv_values", 1, 1, 1, WIDTH), _port("prefix_pad_masks", 1, TOKENS)),
    ),
    Component(
        "action_head",
        (_port("noisy_actions", 1, CHUNK, WIDTH), _port("time_embedding", 1, WIDTH),
         _port("prefix_pad_masks", 1, TOKENS), _port("kv_keys", 1, 1, 2, WIDTH), _port("kv_values", 1, 1, 1, WIDTH)),
        (_port("velocity", 1, CHUNK, WIDTH),), STEPS,
    ),
)  # fmt: skip


def _shape(name: str, *values: int) -> Any:
    return numpy_helper.from_array(np.array(values, np.int64), name)


def _nodes(name: str, half: float) -> tuple[list[Any], list[Any]]:
    make = helper.make_node
    if name == "vision_encoder":
        return [
            make("GlobalAveragePool", ["pixel_values"], ["pooled"]), make("Reshape", ["pooled", "row"], ["flat"]),
            make("Concat", ["flat", "flat"], ["image_embeddings"], axis=2),
        ], [_shape("row", 1, 1, 3)]  # fmt: skip
    if name == "llm_backbone":
        return [
            make("Concat", ["image_embs_1", "image_embs_2"], ["images"], axis=1),
            make("Reshape", ["images", "keys"], ["kv_keys"]), make("Reshape", ["state", "values"], ["kv_values"]),
            make("Cast", ["lang_masks"], ["prefix_pad_masks"], to=TensorProto.FLOAT),
        ], [_shape("keys", 1, 1, 2, WIDTH), _shape("values", 1, 1, 1, WIDTH)]  # fmt: skip
    numbers = {"half": half, "tenth": 0.1}
    return [
        make("Mul", ["noisy_actions", "half"], ["a"]), make("ReduceMean", ["kv_keys", "axes"], ["m"], keepdims=0),
        make("Reshape", ["m", "one"], ["m1"]), make("Reshape", ["kv_values", "one"], ["s1"]),
        make("Mul", ["time_embedding", "tenth"], ["t"]), make("Reshape", ["t", "one"], ["t1"]),
        make("ReduceMean", ["prefix_pad_masks", "last"], ["w"], keepdims=1), make("Reshape", ["w", "single"], ["w1"]),
        make("Add", ["a", "m1"], ["b"]), make("Sub", ["b", "s1"], ["c"]), make("Add", ["c", "t1"], ["d"]),
        make("Add", ["d", "w1"], ["velocity"]),
    ], [
        *(numpy_helper.from_array(np.array([v], np.float32), k) for k, v in numbers.items()),
        _shape("axes", 1, 2), _shape("last", 1), _shape("one", 1, 1, WIDTH), _shape("single", 1, 1, 1),
    ]  # fmt: skip


def _value(port: Port) -> Any:
    kind = TensorProto.INT64 if port.dtype == "int64" else TensorProto.FLOAT
    return helper.make_tensor_value_info(port.name, kind, list(port.shape))


def export_components(checkpoint: Path, folder: Path, options: ExportRequest) -> Exported:
    """An exporter as `kinds.Exporter`."""
    half = 0.6 if options.config.get(BROKEN) else 0.5
    with options.stage("onnx"):
        for component in COMPONENTS:
            nodes, initializers = _nodes(component.name, half)
            graph = helper.make_graph(
                nodes, component.name, [_value(p) for p in component.inputs], [_value(p) for p in component.outputs],
                initializers,
            )  # fmt: skip
            model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
            onnx.checker.check_model(model)
            onnx.save(model, folder / f"{component.name}.onnx")
    probes = options.probes(2, (CHUNK, WIDTH))
    made = tuple(Component(c.name, c.inputs, c.outputs, c.runs, {"onnx": f"{c.name}.onnx"}) for c in COMPONENTS)
    return Exported(
        made, dict(NUMBERS), CHUNK, int(options.config["n_action_steps"]),
        tuple(Camera(name, i) for i, name in enumerate(CAMERAS)),
        chunks=tuple(formula(probe.inputs, probe.noise) for probe in probes), probes=tuple(probes),
    )  # fmt: skip

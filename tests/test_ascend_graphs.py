# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""The Ascend lint and passes on what torch exports of whole networks, nothing patched.

What public recipes for this chip patched by hand (the mean of RMSNorm, the triu of the causal mask) must be found, and
`prepare` must leave nothing to find, in a model that computes the same.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from npukit.ascend import check, prepare
from npukit.frontends.onnx.write_model import write_model
from tests.frontend_tools import Arrays

torch = pytest.importorskip("torch", reason="needs torch (npukit[torch])")

OPSETS = (14, 17)


@dataclass(frozen=True)
class Graph:
    """An exported file and inputs for it."""

    path: Path
    feeds: Arrays


def exported(module: torch.nn.Module, feeds: Arrays, path: Path, opset: int, outputs: list[str] | None = None) -> Graph:
    arrays = tuple(torch.from_numpy(np.ascontiguousarray(array)) for array in feeds.values())
    with torch.inference_mode(False), torch.no_grad():
        torch.onnx.export(
            module.eval(), arrays, str(path), opset_version=opset, dynamo=False,
            input_names=list(feeds), output_names=outputs,
        )  # fmt: skip
    return Graph(path, feeds)


def _llama(folder: Path) -> Iterator[tuple[str, Graph]]:
    from tests.ascend_networks import Llama

    ids = np.arange(6)[None] * 7 % 50
    mask = np.ones((1, 6), np.int64)
    mask[0, -1] = 0
    feeds = {"ids": ids, "attention_mask": mask, "positions": np.arange(6)[None]}
    for opset in OPSETS:
        yield f"llama-{opset}", exported(Llama(), feeds, folder / f"llama{opset}.onnx", opset)


def _vit(folder: Path) -> Iterator[tuple[str, Graph]]:
    from tests.ascend_networks import Vit

    image = np.random.default_rng(0).standard_normal((1, 3, 16, 16)).astype(np.float32)
    for opset in OPSETS:
        yield f"vit-{opset}", exported(Vit(), {"image": image}, folder / f"vit{opset}.onnx", opset)


def _scores(folder: Path) -> Iterator[tuple[str, Graph]]:
    from tests.ascend_networks import CausalScores

    x = np.random.default_rng(0).standard_normal((2, 5, 4)).astype(np.float32)
    for opset in OPSETS:
        yield f"scores-{opset}", exported(CausalScores(), {"x": x}, folder / f"scores{opset}.onnx", opset)


def _act(folder: Path) -> Iterator[tuple[str, Graph]]:
    from npukit.policies.act import export
    from npukit.policies.act.config import read_config
    from tests import act_tools

    values = act_tools.config(size=(32, 48))
    model = export.load(act_tools.write_checkpoint(folder / "act", values), read_config(values, "config.json"))
    rng = np.random.default_rng(0)
    ports = export.input_ports(read_config(values, "config.json"))
    feeds = {port.name: rng.standard_normal(port.shape).astype(np.float32) for port in ports}
    for opset in OPSETS:
        yield f"act-{opset}", exported(model, feeds, folder / f"act{opset}.onnx", opset)


def _smolvla(folder: Path) -> Iterator[tuple[str, Graph]]:
    from npukit.policies.kinds import ExportRequest
    from npukit.policies.package import Component
    from npukit.policies.smolvla import export
    from tests import smolvla_tools

    found: list[tuple[str, Graph]] = []

    def by_script(module: torch.nn.Module, component: Component, feed: Arrays, path: Path) -> None:
        feeds = {port.name: feed[port.name] for port in component.inputs}
        outputs = [port.name for port in component.outputs]
        exported(module, feeds, path, OPSETS[-1], outputs)  # what the next component's inputs are made with
        for opset in OPSETS:
            file = path.with_name(f"{component.name}{opset}.onnx")
            found.append((f"smolvla-{component.name}-{opset}", exported(module, feeds, file, opset, outputs)))

    @contextlib.contextmanager
    def stage(name: str) -> Iterator[None]:
        yield

    checkpoint = smolvla_tools.checkpoint(folder / "smolvla")
    (folder / "out").mkdir()
    request = ExportRequest(json.loads((checkpoint / "config.json").read_text()), stage=stage, threads=1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(export, "export_onnx", by_script)
        export.export_components(checkpoint, folder / "out", request)
    yield from found


_MAKERS = {"llama": _llama, "vit": _vit, "scores": _scores, "act": _act, "smolvla": _smolvla}


@pytest.fixture(scope="module")
def graphs(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Graph]:
    """A graph by its name; its family is exported when it is first asked for."""
    made: dict[str, Graph] = {}

    def graph(name: str) -> Graph:
        if name not in made:
            torch.manual_seed(0)
            made.update(_MAKERS[name.partition("-")[0]](tmp_path_factory.mktemp("graphs")))
        return made[name]

    return graph


SMALL = [f"{name}-{opset}" for name in ("llama", "vit", "scores") for opset in OPSETS]
PARTS = [f"smolvla-{part}" for part in ("vision_encoder", "llm_backbone", "action_head")]
LARGE = [f"{name}-{opset}" for name in ("act", *PARTS) for opset in OPSETS]
NAMES = [*SMALL, *(pytest.param(name, marks=pytest.mark.slow) for name in LARGE)]


def run(path: Path, feeds: Arrays) -> list[np.ndarray]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level, options.intra_op_num_threads = 3, 1
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    takes = {value.name for value in session.get_inputs()}
    return list(session.run(None, {name: array for name, array in feeds.items() if name in takes}))


@pytest.mark.parametrize("precision", ["fp16", "origin"])
@pytest.mark.parametrize("name", NAMES)
def test_prepare_leaves_nothing_to_find(
    name: str, precision: str, graphs: Callable[[str], Graph], tmp_path: Path
) -> None:
    graph = graphs(name)
    assert [p for p in check(graph.path, precision=precision) if p.level != "note"]
    model, applied = prepare(graph.path, precision=precision)
    assert applied
    path = tmp_path / "prepared.onnx"
    write_model(model, path)
    assert [f"{p.where}: {p.what}" for p in check(path, precision=precision) if p.level != "note"] == []
    assert model.opset_imports[""] == 14
    for want, have in zip(run(graph.path, graph.feeds), run(path, graph.feeds), strict=True):
        assert want.dtype == have.dtype
        if precision == "fp16":
            # norms are scaled first, sums of products in another order: last places of float32 through 9 layers
            np.testing.assert_allclose(have, want, rtol=1e-5, atol=5e-6)
        else:  # every product has float16 operands: 2^-11 a step, of values up to 4
            np.testing.assert_allclose(have, want, rtol=1e-2, atol=5e-3)


@pytest.mark.parametrize("opset", OPSETS)
def test_what_recipes_patch_by_hand_is_found(opset: int, graphs: Callable[[str], Graph]) -> None:
    found = {(p.where.partition(" ")[0], p.rule, p.fix) for p in check(graphs(f"llama-{opset}").path)}
    assert ("Trilu", "atc-limit", "mask_triangles") in found
    assert ("ReduceMean", "atc-float16", "expand_norms") in found
    assert ("Expand", "atc-limit", "fold_constants") in found


@pytest.mark.parametrize(
    "name", ["llama-14", "vit-17", pytest.param("smolvla-llm_backbone-14", marks=pytest.mark.slow)]
)
def test_a_prepared_model_is_left_alone(name: str, graphs: Callable[[str], Graph]) -> None:
    model, _ = prepare(graphs(name).path)
    again, applied = prepare(model)
    assert [entry.name for entry in applied if entry.name not in ("fold_constants", "expand_norms")] == []
    assert sorted(n.op_type for n in again.graph) == sorted(n.op_type for n in model.graph)
    assert ir.to_proto(again).graph.output == ir.to_proto(model).graph.output

# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""OpenVLA's export: the components compute what the network does, at any size, and what is said where they cannot."""

from __future__ import annotations

import dataclasses
import json
import shutil
import sys
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest

from npukit.errors import CheckFailed, MissingDependency, ModelError, NpukitError, UsageError
from npukit.frontends.onnx import load
from npukit.policies import kinds
from npukit.policies.export_verb import ExportResult
from npukit.policies.export_verb import export as verb
from npukit.policies.kinds import Exported, ExportRequest
from npukit.policies.onnx_writer import WeightFile
from npukit.policies.openvla import components, export
from npukit.policies.openvla.checkpoint import OPTIONS
from npukit.policies.openvla.weights import INDEX
from npukit.policies.package import Manifest
from npukit.policies.pieces import Pieces
from tests import openvla_reference as reference
from tests import openvla_tools as tools

pytest.importorskip("torch", reason="needs torch (npukit[torch])")
ort = pytest.importorskip("onnxruntime")

NAMES = ("vision_backbone", "projector", "embedding", "prefill", "decoder")
# All that the graphs are made of: plain ops, which every target's compiler takes at opset 14.
OPS = {
    "Add", "Cast", "Concat", "Conv", "Div", "Erf", "Gather", "MatMul", "Mul", "ReduceSum", "Reshape", "Sigmoid",
    "Slice", "Softmax", "Split", "Sqrt", "Sub", "Transpose",
}  # fmt: skip


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tools.checkpoint(tmp_path_factory.mktemp("openvla") / "checkpoint")


@pytest.fixture
def copy(checkpoint: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(checkpoint, tmp_path / "copy"))


def exported(checkpoint: Path, folder: Path, **options: Any) -> Exported:
    config = json.loads((checkpoint / "config.json").read_text())
    folder.mkdir()
    return export.export_components(checkpoint, folder, ExportRequest(config, threads=1, **options))


@pytest.fixture(scope="module")
def wide(checkpoint: Path) -> SimpleNamespace:
    """Exported in float32."""
    folder = checkpoint.parent / "float32"
    return SimpleNamespace(folder=folder, made=exported(checkpoint, folder, precision="float32"))


def session(folder: Path, name: str) -> Any:
    settings = ort.SessionOptions()
    settings.intra_op_num_threads = 1
    return ort.InferenceSession(str(folder / f"{name}.onnx"), settings, providers=["CPUExecutionProvider"])


def chain(folder: Path, c: Any, pixels: Any, ids: Any, dtype: str = "float32") -> dict[str, Any]:
    """What the five files compute together, the loop written out here."""

    def run(name: str, **feeds: Any) -> list[Any]:
        given = {k: v.astype(dtype) if v.dtype.kind == "f" else v for k, v in feeds.items()}
        return list(session(folder, name).run(None, given))

    count = ids.shape[1]
    padded = np.full((1, c["prompt_length"]), c["pad_id"], np.int32)
    padded[:, :count] = ids
    (patches,) = run("vision_backbone", pixel_values=pixels)
    (image,) = run("projector", patch_features=patches)
    (words,) = run("embedding", input_ids=padded)
    place = c["image_tokens"] + count
    last = np.array([place - 1], np.int32)
    logits, rows = run("prefill", text_embeddings=words, image_embeddings=image, last_position=last)
    first, tokens = logits[0], [int(logits.argmax())]
    cache = np.zeros((c["cache_length"], rows.shape[1]), dtype)
    cache[: len(rows)] = rows
    while len(tokens) < c["action_dim"]:
        mask = (np.arange(len(cache)) < place).astype(np.float32)[None]
        feeds = {"input_ids": np.array([tokens[-1:]], np.int32), "position": np.array([place], np.int32)}
        logits, row = run("decoder", **feeds, attention_mask=mask, kv_cache=cache)
        cache[place] = row[0]
        place += 1
        tokens.append(int(logits.argmax()))
    return {"patch_features": patches, "image_embeddings": image, "logits": first, "tokens": tokens}


# ---------------------------------------------------------------- what they compute


def test_the_chain_computes_what_timm_and_transformers_do(wide: SimpleNamespace) -> None:
    wanted = np.load(Path(__file__).parent / "data" / "openvla_reference.npz")
    found = chain(wide.folder, wide.made.config, *reference.inputs())
    assert found["tokens"] == list(wanted["tokens"])
    found["logits"] = found["logits"][reference.LOGITS]
    for name in ("patch_features", "image_embeddings", "logits"):
        assert np.abs(found[name] - wanted[name]).max() < 1e-4 * np.abs(wanted[name]).max(), name


@pytest.mark.parametrize("words", [2, 31, 32])
def test_prompts_of_any_length_that_fits(checkpoint: Path, wide: SimpleNamespace, words: int) -> None:
    """The last one leaves no padding: the cache's rows after the prompt are those of the action's tokens."""
    import torch

    from npukit.policies.openvla.checkpoint import facts
    from npukit.policies.openvla.model import OpenVLA

    found = facts(checkpoint, tools.config(), {})
    pixels, ids = tools.images(1, seed=words), tools.prompt(words, seed=words)[:, :words]
    network = OpenVLA(found.network, found.weights, whole=True)
    with torch.inference_mode():
        wanted = network.generate(torch.from_numpy(pixels), torch.from_numpy(ids[0]), cached=False)
    assert chain(wide.folder, wide.made.config, pixels, ids)["tokens"] == wanted


def test_records_of_every_output_in_float32(wide: SimpleNamespace) -> None:
    rows = wide.made.parity
    outputs = Counter((row["component"], row["output"]) for row in rows)
    assert outputs == {
        ("vision_backbone", "patch_features"): 1, ("projector", "image_embeddings"): 1,
        ("embedding", "text_embeddings"): 1, ("prefill", "logits"): 1, ("prefill", "kv_prompt"): 1,
        ("decoder", "logits"): 6, ("decoder", "kv_row"): 6, ("action", "tokens"): 1,
    }  # fmt: skip
    assert all(row["share"] < 1e-4 for row in rows)
    (action,) = (row for row in rows if row["component"] == "action")
    assert action["equal"] == 7
    assert {stage.name for stage in wide.made.components} == set(NAMES)


def test_half_precision(checkpoint: Path, tmp_path: Path) -> None:
    made = exported(checkpoint, tmp_path / "half", precision="float16")
    assert all(row["cosine"] > 0.9999 for row in made.parity)
    assert {port.dtype for item in made.components for port in (*item.inputs, *item.outputs)} == {"float16", "int32"}
    wanted = np.load(Path(__file__).parent / "data" / "openvla_reference.npz")
    found = chain(tmp_path / "half", made.config, *reference.inputs(), dtype="float16")
    # float16 rounds each result to 5e-4 of itself
    assert np.abs(found["logits"][reference.LOGITS] - wanted["logits"]).max() < 5e-3 * np.abs(wanted["logits"]).max()


def test_layer_by_layer_where_it_is_too_large(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(export, "WHOLE", 1000)
    made = exported(checkpoint, tmp_path / "out", precision="float32")
    assert not made.chunks
    assert not made.probes
    assert "every layer was compared by itself" in made.notes[-1]
    assert all(row["share"] < 1e-4 for row in made.parity)
    assert sum(row["component"] == "decoder" for row in made.parity) == 2


def _sigmoid_gelu(g: Any, x: str) -> str:
    made: str = g.op("Mul", x, g.op("Sigmoid", g.op("Mul", x, g.constant(1.702))))
    return made


@pytest.mark.parametrize(
    ("name", "wrong", "precision"),
    [
        ("MASKED", lambda _: 0.0, "float32"),  # the future is seen
        ("MASKED", lambda _: 0.0, "float16"),
        ("VISION_EPSILON", lambda _: 1e-2, "float32"),
        ("_gelu", lambda _: _sigmoid_gelu, "float32"),
        ("_tables", lambda old: lambda c, n: [np.roll(table, 1, axis=0) for table in old(c, n)], "float32"),
        ("_tables", lambda old: lambda c, n: old(c, n)[:2] * 2, "float32"),  # scores without their scale
        ("_tables", lambda old: lambda c, n: old(c, n)[:2] * 2, "float16"),
    ],
)
def test_components_that_compute_something_else_are_refused(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, wrong: Any, precision: str
) -> None:
    monkeypatch.setattr(components, name, wrong(getattr(components, name)))
    with pytest.raises(CheckFailed, match="not what PyTorch computes"):
        exported(checkpoint, tmp_path / "out", precision=precision)


# ---------------------------------------------------------------- the files


def test_the_language_models_weights_are_there_once(wide: SimpleNamespace) -> None:
    assert sorted(path.name for path in wide.folder.glob("*.data")) == [
        "llama.onnx.data", "projector.onnx.data", "vision_backbone.onnx.data",
    ]  # fmt: skip
    places = {}
    for name in ("embedding", "prefill", "decoder"):
        model = onnx.load(wide.folder / f"{name}.onnx", load_external_data=False)
        for tensor in model.graph.initializer:
            if tensor.external_data:
                entry = {e.key: e.value for e in tensor.external_data}
                assert places.setdefault(tensor.name, entry) == entry
                assert int(entry["offset"]) % 4096 == 0
    numbers = sum(int(np.prod(s)) for n, s in tools.shapes(tools.TINY) if n.startswith("language_model."))
    size = (wide.folder / "llama.onnx.data").stat().st_size
    assert 4 * numbers <= size < 4 * numbers + 4096 * len(places)


@pytest.mark.parametrize("name", NAMES)
def test_graphs_are_plain(wide: SimpleNamespace, name: str) -> None:
    path = wide.folder / f"{name}.onnx"
    model = onnx.load(path, load_external_data=False)
    onnx.checker.check_model(str(path), full_check=True)
    assert (model.ir_version, [(i.domain, i.version) for i in model.opset_import]) == (8, [("", 14)])
    assert {node.op_type for node in model.graph.node} <= OPS
    names = [node.name for node in model.graph.node]
    assert len(set(names)) == len(names)
    assert all(names)
    (component,) = (item for item in wide.made.components if item.name == name)
    for values, ports in ((model.graph.input, component.inputs), (model.graph.output, component.outputs)):
        found = [(v.name, tuple(d.dim_value for d in v.type.tensor_type.shape.dim)) for v in values]
        assert found == [(port.name, port.shape) for port in ports]


def test_norms_are_recognized(wide: SimpleNamespace) -> None:
    def count(name: str) -> Counter[str]:
        return Counter(node.op_type for node in load(wide.folder / f"{name}.onnx").model.graph)

    for name in ("prefill", "decoder"):
        assert count(name)["RMSNormalization"] == 2 * tools.TINY.layers + 1
        assert not count(name)["Sqrt"]
    found = count("vision_backbone")
    assert (found["LayerNormalization"], found["Gelu"], found["Sqrt"]) == (8, 4, 0)


@pytest.mark.parametrize("name", NAMES)
def test_ascend_takes_them(checkpoint: Path, tmp_path: Path, name: str) -> None:
    from npukit.verbs.lint import lint

    exported(checkpoint, tmp_path / "out", precision="float16", verify=False)
    found = lint(tmp_path / "out" / f"{name}.onnx", target=("ascend310p3",), precision_mode="origin")
    assert not found.findings


def test_pieces_compute_what_the_whole_does(wide: SimpleNamespace) -> None:
    rng = np.random.default_rng(0)
    for component in wide.made.components:
        feeds = {
            port.name: np.ones(port.shape, port.dtype) if port.dtype == "int32"
            else rng.standard_normal(port.shape).astype(port.dtype)
            for port in component.inputs
        }  # fmt: skip
        pieces = Pieces(wide.folder / f"{component.name}.onnx", 1)
        found = pieces.run(feeds)
        for port, wanted in zip(component.outputs, session(wide.folder, component.name).run(None, feeds), strict=True):
            assert np.abs(found[port.name] - wanted).max() < 1e-5 * np.abs(wanted).max()
    assert [name for name in pieces.names if name.startswith("layers")] == ["layers.0", "layers.1"]


# ---------------------------------------------------------------- the verb


def package(checkpoint: Path, output: Path, **options: Any) -> ExportResult:
    result: ExportResult = verb(checkpoint, output=output, in_process=True, threads=1, **options)
    return result


def test_a_package(checkpoint: Path, tmp_path: Path) -> None:
    pytest.importorskip("simplejpeg", reason="needs simplejpeg (npukit[openvla])")
    result = package(checkpoint, tmp_path / "policy", policy="openvla")
    manifest = Manifest.read(result.path, check_hashes=True)
    assert (manifest.kind, manifest.chunk_size, manifest.n_action_steps) == ("openvla", 1, 1)
    assert manifest.config["image_channels"][1] == {"mean": [0.5] * 3, "std": [0.5] * 3}
    assert {component.precision["ort"] for component in manifest.components} == {"float16"}
    assert set(manifest.files) == {
        *(f"{name}.onnx" for name in NAMES), "llama.onnx.data", "projector.onnx.data", "vision_backbone.onnx.data",
        "tokenizer.json", "parity.json",
    }  # fmt: skip
    assert [row["precision"] for row in result.parity["chunks"]] == ["float16", "float16"]
    stages = [row["stage"] for row in result.parity["stages"]]
    assert len(set(stages)) == len(stages)
    assert {"export: write llama.onnx.data", "export: prefill: reference", "run on ONNX Runtime"} <= set(stages)


def test_options_of_the_kind(checkpoint: Path, tmp_path: Path) -> None:
    pytest.importorskip("simplejpeg", reason="needs simplejpeg (npukit[openvla])")
    options = {"prompt_length": "40", "gripper": "none", "center_crop": "false"}
    result = package(checkpoint, tmp_path / "p", option=options, precision={"": "float32"}, verify=False)
    manifest = Manifest.read(result.path)
    assert (manifest.config["prefill_length"], manifest.config["cache_length"]) == (56, 72)
    assert [step["step"] for step in manifest.postprocessing] == ["cut", "unnormalize_by_key"]
    assert "center_crop" not in [step["step"] for step in manifest.preprocessing]
    assert {port.dtype for item in manifest.components for port in item.outputs} == {"float32"}


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"policy": "smolvla"}, "no smolvla checkpoint: its type is 'openvla'"),
        ({"policy": "openvlb"}, "there is no kind of policy 'openvlb'"),
        ({"option": {"prompt_lenght": "40"}}, "openvla policies have no option 'prompt_lenght'"),
        ({"option": {"prompt_length": "many"}}, "'many' is not sound"),
        ({"option": {"prompt_length": "2"}}, "a prompt of 2 tokens, 4 to 512 expected"),
        ({"option": {"center_crop": "maybe"}}, "'maybe' is not sound"),
        ({"option": {"unnorm_key": "bridge_orig"}}, "bridge_orig"),
        ({"precision": {"": "int8", "vision": "float16"}}, "no component 'vision'"),
    ],
)
def test_what_is_asked_for_and_cannot_be(checkpoint: Path, tmp_path: Path, options: Any, said: str) -> None:
    with pytest.raises(NpukitError) as error:
        package(checkpoint, tmp_path / "policy", verify=False, **options)
    assert said in str(error.value)
    assert not (tmp_path / "policy").exists()


def test_the_kind_lists_its_options() -> None:
    assert set(kinds.kind("openvla").options) == set(OPTIONS)


def test_without_torch(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(MissingDependency, match="needs PyTorch"):
        exported(checkpoint, tmp_path / "out")
    assert not list((tmp_path / "out").iterdir())
    assert exported(checkpoint, tmp_path / "unverified", verify=False).components


def _without(name: str) -> Any:
    return lambda folder: (folder / name).unlink()


def _config(**fields: Any) -> Any:
    def apply(folder: Path) -> None:
        values = {**json.loads((folder / "config.json").read_text()), **fields}
        (folder / "config.json").write_text(json.dumps(values))

    return apply


def _statistics(text: str) -> Any:
    return lambda folder: (folder / "dataset_statistics.json").write_text(text)


def _preprocessor(**fields: Any) -> Any:
    def apply(folder: Path) -> None:
        (folder / "preprocessor_config.json").write_text(json.dumps({**tools.preprocessor(), **fields}))

    return apply


@pytest.mark.parametrize(
    ("harm", "said"),
    [
        (_without("config.json"), "no config.json"),
        (_without("dataset_statistics.json"), "there is no dataset_statistics.json, and config.json has no norm_stats"),
        (_without("tokenizer.json"), "no tokenizer.json"),
        (_without(INDEX), "neither model.safetensors.index.json nor model.safetensors"),
        (_config(model_type="prismatic"), "policies of type 'prismatic' are not supported"),
        (_preprocessor(stds=[[1, 1, 0], [1, 1, 1]]), "stds"),
        (_preprocessor(means=[[0.5] * 3]), "means"),
        (_preprocessor(input_sizes=[[3, 224, 224]] * 2), "input_sizes"),
        (_preprocessor(image_resize_strategy="letterbox"), "image_resize_strategy"),
        (_statistics('{"a": {"action": {"q01": [0]}}}'), "a.action.q99"),
        (_statistics("{"), "not JSON"),
    ],
)  # fmt: skip
def test_checkpoints_that_are_not_whole(copy: Path, tmp_path: Path, harm: Any, said: str) -> None:
    harm(copy)
    with pytest.raises(ModelError) as error:
        package(copy, tmp_path / "policy", verify=False)
    assert said in str(error.value)
    assert [path.name for path in tmp_path.iterdir()] == ["copy"]


def test_statistics_of_the_config(tmp_path: Path) -> None:
    folder = tools.checkpoint(tmp_path / "c", in_config=True, keys=("bridge_orig", "fractal"))
    result = package(folder, tmp_path / "p", verify=False, option={"unnorm_key": "fractal"})
    step = Manifest.read(result.path).postprocessing[1]
    assert (step["key"], sorted(step["statistics"])) == ("fractal", ["bridge_orig", "fractal"])


def test_a_disk_without_room(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(tmp_path)._replace(free=1 << 20)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(UsageError, match=r"the models take \d+\.\d MB, 1\.05 MB are free"):
        package(checkpoint, tmp_path / "policy", verify=False)
    assert not list(tmp_path.iterdir())


def test_a_weight_beyond_half_precision(tmp_path: Path) -> None:
    with WeightFile(tmp_path / "w.data", np.float16) as out, pytest.raises(ModelError, match="holds 70000") as error:
        out.add("layers.0.big", np.array([70000.0], np.float32))
    assert error.value.where == "layers.0.big"
    with WeightFile(tmp_path / "w.data", np.float32) as out:
        out.add("layers.0.big", np.array([70000.0], np.float32))
    assert dataclasses.astuple(out.stored["layers.0.big"]) == (np.dtype(np.float32), (1,), 0)


@pytest.mark.slow
@pytest.mark.skipif(shutil.disk_usage("/tmp").free < 8 << 30, reason="needs 8 GB of disk")
def test_full_width(tmp_path: Path) -> None:
    """Every width of OpenVLA-7B, with one layer: 0.6 billion weights."""
    folder = tools.checkpoint(tmp_path / "c", tools.WIDE, dtype=np.float16)
    made = exported(folder, tmp_path / "out", precision="float32")
    assert all(row["share"] < 1e-4 for row in made.parity)
    (action,) = (row for row in made.parity if row["component"] == "action")
    assert action["equal"] == 7

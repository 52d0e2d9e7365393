# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""`npukit policy export` and `run` on a kind that needs no torch: whole or not at all, and what it says."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from npukit.errors import CheckFailed, InputError, ModelError, NpukitError, UsageError
from npukit.policies import artifacts, lerobot, observations
from npukit.policies.export_verb import ExportResult, export
from npukit.policies.package import Component, Manifest
from npukit.policies.parity import action_error, difference
from npukit.policies.run_verb import run

pytest.importorskip("tokenizers")
from tests import policy_double as double
from tests.policy_tools import statistics


@pytest.fixture(autouse=True)
def _kind(monkeypatch: pytest.MonkeyPatch) -> None:
    double.install(monkeypatch)


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    return double.checkpoint(tmp_path / "checkpoint")


def made(checkpoint: Path, **options: Any) -> ExportResult:
    result: ExportResult = export(checkpoint, output=checkpoint.parent / "out", in_process=True, **options)
    return result


def recorded(path: Path, count: int = 6) -> Path:
    """Observations of the kind that the export compares on."""
    config = double.config()
    inputs, _ = lerobot.features(config)
    steps = ({"step": "tokenize", "max_length": 12},)
    observations.write(path, observations.made_up(inputs, steps, statistics(config), count, seed=9))
    return path


# ---------------------------------------------------------------- what is made


def test_a_package(checkpoint: Path) -> None:
    result = made(checkpoint)
    manifest = Manifest.read(result.path, check_hashes=True)
    assert manifest.kind == "double"
    assert [step["step"] for step in manifest.preprocessing] == [
        "batch", "newline", "tokenize", "normalize", "resize_with_pad", "scale_images", "pad",
    ]  # fmt: skip
    assert [step["step"] for step in manifest.postprocessing] == ["cut", "unnormalize"]
    assert manifest.tokenizer is not None
    assert manifest.tokenizer["pad_id"] == 256
    assert set(manifest.source["files"]) >= {"config.json", "policy_preprocessor.json"}
    assert set(manifest.files) == {
        "vision_encoder.onnx", "llm_backbone.onnx", "action_head.onnx", "statistics.safetensors", "tokenizer.json",
        "parity.json",
    }  # fmt: skip
    parity = json.loads((result.path / "parity.json").read_text())
    assert [row["backend"] for row in parity["chunks"]] == ["ort", "ort"]
    assert all(row["share"] < 1e-6 and row["against"] == "PyTorch float32" for row in parity["chunks"])
    assert "export: onnx" in [row["stage"] for row in parity["stages"]]
    text = result.to_text()
    assert "double, chunks of 5 actions, 2 used" in text
    assert "run on ONNX Runtime" in text
    json.dumps(result.to_json(), allow_nan=False)
    assert [path.name for path in checkpoint.parent.iterdir()] == ["checkpoint", "out"] or len(
        list(checkpoint.parent.iterdir())
    ) == 2  # nothing is left beside it


def test_the_same_checkpoint_gives_the_same_files(checkpoint: Path, tmp_path: Path) -> None:
    first = Manifest.read(made(checkpoint).path)
    second = Manifest.read(export(checkpoint, output=tmp_path / "again", in_process=True).path)
    strip = [{n: f for n, f in m.files.items() if n != "parity.json"} for m in (first, second)]  # it has times
    assert strip[0] == strip[1]


@pytest.mark.native
def test_quantized(checkpoint: Path, tmp_path: Path) -> None:
    result = made(
        checkpoint, backend=["qnn-htp", "ort"], precision=["w8a16", "vision_encoder=float16"],
        calibration=recorded(tmp_path / "o.npz", 24), samples=48,
    )  # fmt: skip
    manifest = Manifest.read(result.path)
    assert manifest.component("vision_encoder").artifacts == {
        "qnn-htp": "vision_encoder.float16.dlc", "ort": "vision_encoder.onnx",
    }  # fmt: skip
    assert manifest.component("action_head").precision == {"qnn-htp": "w8a16", "ort": "float32"}
    rows = [row for row in result.parity["chunks"] if row["backend"] == "qnn-htp"]
    assert {row["run_on"] for row in rows} == {"qnn-htp"}  # small enough for the emulator
    assert all(row["share"] < 0.02 for row in rows)
    assert {row["component"] for row in result.parity["components"]} >= {"llm_backbone", "action_head"}
    simulated = run(result.path, backend="sim", random=1)
    emulated = run(result.path, backend="qnn-htp", random=1)
    assert np.abs(simulated.actions - emulated.actions).max() < 0.05


@pytest.mark.native
def test_context_binaries(checkpoint: Path, tmp_path: Path) -> None:
    result = made(checkpoint, precision="w8a8", target="sm8650", calibration=recorded(tmp_path / "o.npz"))
    manifest = Manifest.read(result.path)
    assert manifest.component("action_head").artifacts == {"qnn-htp:sm8650": "action_head.sm8650.bin"}
    assert not list(result.path.glob("*.dlc"))
    assert (result.path / "action_head.sm8650.bin.npukit.json").is_file()
    assert run(result.path, random=1).backend == "qnn-htp"
    with pytest.raises(UsageError, match="no artifacts for sim"):
        run(result.path, random=1, backend="sim")


def test_int8_on_onnx_runtime(checkpoint: Path) -> None:
    result = made(checkpoint, precision="int8")
    manifest = Manifest.read(result.path)
    assert manifest.component("action_head").artifacts == {"ort": "action_head.int8.onnx"}
    assert not (result.path / "action_head.onnx").exists()
    assert {row["precision"] for row in result.parity["chunks"]} == {"float32", "int8"}
    assert run(result.path, random=1).backend == "ort"


# ---------------------------------------------------------------- whole or not at all


def test_what_does_not_compute_the_same_is_not_written(tmp_path: Path) -> None:
    checkpoint = double.checkpoint(tmp_path / "checkpoint", **{double.BROKEN: True})
    with pytest.raises(CheckFailed, match="chunks on ort are not those of PyTorch float32") as caught:
        made(checkpoint)
    assert caught.value.faults
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint"]
    assert made(checkpoint, verify=False).parity["chunks"] == []


def test_what_is_there_is_not_overwritten(checkpoint: Path) -> None:
    out = checkpoint.parent / "out"
    out.mkdir()
    made(checkpoint)  # an empty folder may be replaced
    with pytest.raises(UsageError, match="a policy package exists there(.|\n)*--force"):
        made(checkpoint)
    (out / "parity.json").write_text("old")
    made(checkpoint, force=True)
    assert Manifest.read(out, check_hashes=True).kind == "double"
    (out / "policy.json").unlink()
    for force in (False, True):
        with pytest.raises(UsageError, match="not empty, and no policy package"):
            made(checkpoint, force=force)
    shutil.rmtree(out)
    out.write_text("mine")
    with pytest.raises(UsageError, match="a file of this name exists"):
        made(checkpoint, force=True)
    assert out.read_text() == "mine"
    with pytest.raises(UsageError, match="the folder to write into does not exist"):
        export(checkpoint, output=checkpoint / "a" / "b")


def test_a_failed_export_leaves_the_old_one(checkpoint: Path) -> None:
    result = made(checkpoint)
    double.checkpoint(checkpoint, **{double.BROKEN: True})
    with pytest.raises(CheckFailed):
        made(checkpoint, force=True)
    assert Manifest.read(result.path, check_hashes=True).kind == "double"
    assert len(list(checkpoint.parent.iterdir())) == 2


# ---------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"backend": "cuda"}, "there is no backend 'cuda'"),
        ({"precision": "int3"}, "'int3' is not a precision"),
        ({"precision": ["w8a16", "w8a8"]}, "given twice for all components"),
        ({"precision": "w8a16"}, "quantized precisions need calibration data"),
        ({"backend": "ort", "precision": "float16"}, "ort cannot hold float16"),
        ({"precision": "head=float16", "backend": "qnn-htp"}, "no component 'head'"),
        ({"target": "sm8650", "backend": "ort"}, "a target is for context binaries"),
        ({"target": "sm1"}, "sm1"),
        ({"samples": 0}, "at least one sample"),
    ],
)  # fmt: skip
def test_bad_options(checkpoint: Path, options: dict[str, Any], says: str) -> None:
    with pytest.raises(UsageError) as caught:
        made(checkpoint, **options)
    assert says in str(caught.value)
    assert len(list(checkpoint.parent.iterdir())) == 1


def test_bad_checkpoints(checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="there is no such folder"):
        made(tmp_path / "nothing")
    (checkpoint / "tokenizer.json").unlink()
    with pytest.raises(ModelError, match="--tokenizer FILE"):
        made(checkpoint)
    double.checkpoint(checkpoint, type="pi0")
    with pytest.raises(ModelError, match="policies of type 'pi0' are not supported"):
        made(checkpoint)


def test_statistics_that_were_never_computed(checkpoint: Path) -> None:
    from safetensors.numpy import load_file, save_file

    for path in checkpoint.glob("*.safetensors"):
        stats = load_file(path)
        stats["observation.state.std"] = np.full(double.STATE, np.inf, np.float32)
        save_file(stats, path)
    with pytest.raises(NpukitError, match=r"observation\.state\.std: holds values that are not finite"):
        made(checkpoint)


def test_the_tokenizer_from_elsewhere(checkpoint: Path, tmp_path: Path) -> None:
    other = tmp_path / "words"
    other.mkdir()
    (checkpoint / "tokenizer.json").rename(other / "tokenizer.json")
    (other / "tokenizer_config.json").write_text('{"pad_token": {"content": "<unused3>"}, "truncation_side": "right"}')
    manifest = Manifest.read(made(checkpoint, tokenizer=other).path)
    assert manifest.preprocessing[2]["pad_id"] == 260
    assert manifest.preprocessing[2]["truncation_side"] == "right"


# ---------------------------------------------------------------- running


def test_run(checkpoint: Path, tmp_path: Path) -> None:
    package = made(checkpoint).path
    result = run(package, observations=recorded(tmp_path / "o.npz", 3), stats=True, seed=4, output=tmp_path / "a.npz")
    assert result.actions.shape == (3, 5, 3)
    np.testing.assert_array_equal(np.load(tmp_path / "a.npz")["actions"], result.actions)
    np.testing.assert_array_equal(run(package, observations=tmp_path / "o.npz", seed=4).actions, result.actions)
    text = result.to_text()
    assert "3 chunks of 5 actions of 3 numbers" in text
    assert "action_head" in text
    assert "peak memory:" in text
    assert "peak memory" not in run(package, random=1).to_text()
    assert json.dumps(result.to_json(), allow_nan=False)


def test_run_says_what_is_wrong(checkpoint: Path, tmp_path: Path) -> None:
    package = made(checkpoint).path
    with pytest.raises(UsageError, match="from a file or are made up"):
        run(package, observations=tmp_path / "o.npz", random=1)
    with pytest.raises(UsageError, match="at least one observation"):
        run(package, random=0)
    np.savez(tmp_path / "o.npz", **{"observation.state": np.zeros((2, 4)), "task": np.array(["a", "b", "c"])})
    with pytest.raises(NpukitError, match="not of the same length"):
        run(package, observations=tmp_path / "o.npz")
    np.savez(tmp_path / "o.npz", **{"observation.state": np.zeros((1, 4)), "task": np.array(["push"])})
    with pytest.raises(NpukitError, match="2 faults in the observation"):
        run(package, observations=tmp_path / "o.npz")


def test_an_instruction_that_is_too_long(checkpoint: Path, tmp_path: Path) -> None:
    package = made(checkpoint).path
    observations.write(tmp_path / "o.npz", [double.observation(task="push the red block into the drawer")])
    with pytest.raises(InputError, match="the instruction has 35 tokens, the policy takes 12"):
        run(package, observations=tmp_path / "o.npz")


# ---------------------------------------------------------------- parts


def test_the_plan() -> None:
    parts = [Component(name, (), ()) for name in ("a", "b")]
    tasks = artifacts.plan(parts, ("ort", "qnn-htp"), {"": "w4a16", "b": "float16"}, ("sm8650", "sm8750"))
    assert [(t.component, t.key, t.precision) for t in tasks] == [
        ("a", "ort", "float32"), ("b", "ort", "float32"), ("a", "qnn-htp:sm8650", "w4a16"),
        ("a", "qnn-htp:sm8750", "w4a16"), ("b", "qnn-htp:sm8650", "float16"), ("b", "qnn-htp:sm8750", "float16"),
    ]  # fmt: skip


def test_a_precision_for_a_backend() -> None:
    tasks = artifacts.plan([Component("a", (), ())], ("ort", "qnn-htp"), {"": "w8a16", "ort": "int8"}, ())
    assert [(t.key, t.precision) for t in tasks] == [("ort", "int8"), ("qnn-htp", "w8a16")]
    with pytest.raises(UsageError, match="ort cannot hold w8a16"):
        artifacts.plan([Component("a", (), ())], ("ort", "qnn-htp"), {"ort": "w8a16"}, ())


def test_differences() -> None:
    a = np.array([[0.0, 1.0], [2.0, 4.0]])
    same = difference(a, a)
    assert (same["cosine"], same["max_abs"], same["sqnr_db"]) == (1.0, 0.0, None)
    other = difference(a, a + np.array([[0, 0], [0, 0.4]]))
    assert other["share"] == pytest.approx(0.1)
    assert other["sqnr_db"] == pytest.approx(10 * np.log10(21 / 0.16), abs=0.01)
    assert difference(np.zeros(3), np.ones(3))["share"] == 1.0
    error = action_error(np.array([[0.0, -1.0], [1.0, 1.0]]), np.array([[0.0, 1.0], [0.5, 1.0]]))
    assert error == {"joints": [0.25, 0.5], "last": 0.25, "flips": 0.5}

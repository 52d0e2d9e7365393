# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""`npukit.Policy` on a policy whose chunks are known by formula."""

from __future__ import annotations

import pickle
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import npukit
from npukit.errors import ArtifactError, InputError, NativeError, UsageError
from npukit.policies import kinds

pytest.importorskip("tokenizers")
from tests import policy_double as double
from tests.policy_tools import statistics


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    base = tmp_path_factory.mktemp("policy")
    with pytest.MonkeyPatch.context() as patch:
        double.install(patch)
        from npukit.policies.export_verb import export

        export(double.checkpoint(base / "checkpoint"), output=base / "made", backend="ort", in_process=True)
        yield base / "made"


@pytest.fixture
def policy(folder: Path) -> Iterator[npukit.Policy]:
    with npukit.Policy(folder, threads=1) as made:
        yield made


def expected(policy: npukit.Policy, observation: dict[str, Any], noise: Any) -> Any:
    stats = statistics(double.config())
    normalized = double.formula(policy.preprocessor(observation), noise)[:, :3]
    return normalized * stats["action.std"] + stats["action.mean"]


def test_a_chunk(policy: npukit.Policy) -> None:
    chunk = policy.predict_chunk(double.observation(), noise=double.noise())
    assert chunk.shape == (double.CHUNK, 3)
    assert chunk.dtype == np.float32
    np.testing.assert_allclose(chunk, expected(policy, double.observation(), double.noise()), rtol=1e-5, atol=1e-5)
    other = policy.predict_chunk(double.observation(1), noise=double.noise()[None])
    np.testing.assert_allclose(other, expected(policy, double.observation(1), double.noise()), rtol=1e-5, atol=1e-5)
    assert set(policy.seconds) == {
        "preprocess", "vision_encoder", "llm_backbone", "action_head", "postprocess", "total",
    }  # fmt: skip
    assert policy.action_size == 3
    assert policy.noise_shape == (double.CHUNK, double.WIDTH)


def test_keys_and_values_are_not_copied(policy: npukit.Policy) -> None:
    runtime: Any = policy.runtime
    assert runtime.shared == ("kv_keys", "kv_values", "prefix_pad_masks")
    assert runtime._head.inputs["kv_keys"] is runtime._backbone.outputs["kv_keys"]
    buffers = [array.ctypes.data for array in (*runtime._head.inputs.values(), *runtime._head.outputs.values())]
    policy.predict_chunk(double.observation())
    assert [a.ctypes.data for a in (*runtime._head.inputs.values(), *runtime._head.outputs.values())] == buffers


def test_the_queue(policy: npukit.Policy) -> None:
    policy.reset(seed=5)
    noise = np.random.default_rng(5).standard_normal((double.CHUNK, double.WIDTH), np.float32)
    chunk = expected(policy, double.observation(), noise)
    assert policy.pending == 0
    np.testing.assert_allclose(policy.select_action(double.observation()), chunk[0], rtol=1e-4, atol=1e-4)
    assert policy.pending == 1
    np.testing.assert_allclose(policy.select_action(None), chunk[1], rtol=1e-4, atol=1e-4)
    with pytest.raises(InputError, match="an observation is needed"):
        policy.select_action(None)
    policy.select_action(double.observation())
    with pytest.raises(InputError, match="nan"):  # also where it would not be used
        policy.select_action(double.observation(**{"observation.state": np.full(4, np.nan)}))
    policy.reset()
    assert policy.pending == 0


def test_the_same_seed_gives_the_same_actions(policy: npukit.Policy) -> None:
    runs = []
    for seed in (1, 1, 2):
        policy.reset(seed)
        runs.append(np.stack([policy.select_action(double.observation()) for _ in range(5)]))
    np.testing.assert_array_equal(runs[0], runs[1])
    assert not np.array_equal(runs[0], runs[2])


def test_warm_up_changes_nothing(policy: npukit.Policy) -> None:
    policy.reset(3)
    first = policy.predict_chunk(double.observation())
    policy.reset(3)
    assert policy.warmup() > 0
    np.testing.assert_array_equal(policy.predict_chunk(double.observation()), first)


@pytest.mark.parametrize(
    "noise", [np.zeros((4, 6), np.float32), np.zeros((5, 6), np.int64), np.full((5, 6), np.nan, np.float32), "x"]
)
def test_bad_noise(policy: npukit.Policy, noise: Any) -> None:
    with pytest.raises(InputError, match=r"noise: expected finite float32 \[5, 6\]"):
        policy.predict_chunk(double.observation(), noise=noise)


def test_bad_observations(policy: npukit.Policy) -> None:
    renamed = double.observation()
    renamed["observation.images.left"] = renamed.pop(double.CAMERAS[0])
    with pytest.raises(
        InputError, match=r"top: the camera's image is missing(.|\n)*also given: observation.images.left"
    ):
        policy.predict_chunk(renamed)
    with pytest.raises(InputError, match="the value at"):
        policy.predict_chunk(double.observation(**{"observation.state": np.full(4, np.inf)}))


def test_actions_that_are_not_finite(policy: npukit.Policy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(policy.runtime, "chunk", lambda noise, rng: np.full((5, 6), np.nan, np.float32))
    with pytest.raises(NativeError, match="the policy's actions are not finite"):
        policy.predict_chunk(double.observation())


def test_the_end(folder: Path) -> None:
    policy = npukit.Policy(folder)
    with pytest.raises(TypeError, match="cannot be pickled"):
        pickle.dumps(policy)
    assert "kind='double', backend='ort')" in repr(policy)
    policy.close()
    policy.close()
    for call in (policy.reset, lambda: policy.select_action(double.observation())):
        with pytest.raises(UsageError, match="the policy is closed"):
            call()


def test_which_backend(folder: Path) -> None:
    with pytest.raises(UsageError, match="no artifacts for qnn-cpu(.|\n)*it has them for ort"):
        npukit.Policy(folder, backend="qnn-cpu")
    with pytest.raises(UsageError, match="there is no backend 'cuda' for policies"):
        npukit.Policy(folder, backend="cuda")


def test_another_model_in_its_place(folder: Path, tmp_path: Path) -> None:
    import dataclasses
    import shutil

    from npukit.policies.package import Manifest, hashes

    shutil.copytree(folder, tmp_path / "p")
    shutil.copy(tmp_path / "p" / "vision_encoder.onnx", tmp_path / "p" / "action_head.onnx")
    with pytest.raises(ArtifactError, match=r"action_head\.onnx: \d+ bytes, \d+ expected"):
        npukit.Policy(tmp_path / "p")
    manifest = Manifest.read(folder)
    dataclasses.replace(manifest, files=hashes(tmp_path / "p")).write(tmp_path / "p")
    with pytest.raises(ArtifactError, match="action_head: the input 'pixel_values' is not in the manifest"):
        npukit.Policy(tmp_path / "p")


def test_missing_statistics(folder: Path, tmp_path: Path) -> None:
    import dataclasses
    import shutil

    from npukit.policies.package import Manifest

    shutil.copytree(folder, tmp_path / "p")
    (tmp_path / "p" / "statistics.safetensors").unlink()
    manifest = Manifest.read(folder)
    kept = {name: facts for name, facts in manifest.files.items() if "statistics" not in name}
    dataclasses.replace(manifest, files=kept).write(tmp_path / "p")
    with pytest.raises(ArtifactError, match=r"observation\.state\.mean: missing; the mode MEAN_STD needs it"):
        npukit.Policy(tmp_path / "p")


_HEAVY = ["torch", "transformers", "onnx", "onnx_ir", "onnxscript", "sympy", "huggingface_hub", "typer"]


def imported(folder: Path, backend: str) -> set[str]:
    """Top-level modules that a program has which runs the policy."""
    program = f"""
import sys
sys.path[:0] = {[str(Path(__file__).parent)]!r}
from npukit.policies import kinds
kinds.KINDS["double"] = "light_double"
import npukit, numpy as np
from npukit.policies.observations import generate
with npukit.Policy({str(folder)!r}, backend={backend!r}) as policy:
    policy.predict_chunk(generate(policy.manifest, policy.statistics, 1)[0])
print(*sorted({{name.split(".")[0] for name in sys.modules}}))
"""
    light = folder.parent / "light_double.py"
    light.write_text(
        "from npukit.policies.kinds import Kind\n"
        'KIND = Kind("double", ("double",), "", "npukit.policies.smolvla.runtime:Runtime")\n'
    )
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(folder.parent)!r})\n{program}"],
        capture_output=True, text=True, check=True, timeout=120,
    )  # fmt: skip
    return set(done.stdout.split())


def test_nothing_heavy_is_imported(folder: Path) -> None:
    found = imported(folder, "ort")
    assert "onnxruntime" in found
    assert not found & set(_HEAVY)


@pytest.mark.native
def test_qnn_cpu(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from npukit.policies.export_verb import export

    double.install(monkeypatch)
    export(double.checkpoint(tmp_path / "c"), output=tmp_path / "p", backend="qnn-cpu", in_process=True)
    assert not list((tmp_path / "p").glob("*.onnx"))
    with npukit.Policy(tmp_path / "p") as policy:
        assert policy.backend == "qnn-cpu"
        chunk = policy.predict_chunk(double.observation(), noise=double.noise())
        np.testing.assert_allclose(chunk, expected(policy, double.observation(), double.noise()), rtol=1e-4, atol=1e-4)
    with npukit.Policy(tmp_path / "p", in_process=False) as policy:  # each component in a process of its own
        np.testing.assert_array_equal(policy.predict_chunk(double.observation(), noise=double.noise()), chunk)
    found = imported(tmp_path / "p", "qnn-cpu")
    assert not found & {*_HEAVY, "onnxruntime"}


def test_kinds() -> None:
    assert kinds.kind("smolvla").runtime == "npukit.policies.smolvla.runtime:Runtime"
    assert kinds.of_config({"type": "act"}).name == "act"
    with pytest.raises(npukit.NpukitError, match="policies of type 'pi0' are not supported"):
        kinds.of_config({"type": "pi0"})
    with pytest.raises(npukit.NpukitError, match="there is no kind of policy 'smolvls'(.|\n)*did you mean 'smolvla'"):
        kinds.kind("smolvls")


@pytest.mark.parametrize(
    ("name", "value"), [("num_steps", 0), ("num_steps", None), ("min_period", "x"), ("max_period", float("1e9"))]
)
def test_unsound_numbers_of_the_kind(folder: Path, tmp_path: Path, name: str, value: Any) -> None:
    import json
    import shutil

    shutil.copytree(folder, tmp_path / "p")
    values = json.loads((folder / "policy.json").read_text())
    values["config"][name] = value
    (tmp_path / "p" / "policy.json").write_text(json.dumps(values))
    with pytest.raises(ArtifactError, match=f"config has no sound {name}"):
        npukit.Policy(tmp_path / "p")


def test_a_chunk_needs_an_observation(policy: npukit.Policy) -> None:
    policy.reset()
    with pytest.raises(InputError, match="there is no observation yet"):
        policy.runtime.chunk(None, np.random.default_rng())
    with pytest.raises(InputError, match=r"the observation lacks observation\.images\.top"):
        policy.runtime.prefix({})

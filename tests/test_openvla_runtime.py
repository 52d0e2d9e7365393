# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""OpenVLA from its folder, with a tiny network: the same tokens as PyTorch without a cache, and what is refused."""

from __future__ import annotations

import dataclasses
import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")

import npukit
from npukit.errors import ArtifactError, InputError, NativeError, UsageError
from npukit.policies import observations
from npukit.policies.export import Request, export_package
from npukit.policies.openvla.runtime import COMPONENTS, DECODER, PREFILL
from npukit.policies.package import Manifest, hashes
from npukit.policies.run_verb import run
from npukit.policies.verify_verb import verify
from tests import openvla_tools as tools
from tests.sim_tools import needs_rendering

CAMERA = "observation.images.image"
TEXTS = ("put the black bowl on the plate", "Open the top drawer of the cream cheese", "turn it left", "stove")


def observation(seed: int = 0, text: str = TEXTS[0], size: int = 256) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (8, 8, 3), np.uint8)
    return {CAMERA: coarse.repeat(size // 8, 0).repeat(size // 8, 1), "task": text, "observation.state": np.zeros(8)}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tools.checkpoint(tmp_path_factory.mktemp("openvla") / "checkpoint")


def export(checkpoint: Path, folder: Path, *backends: str, precision: str = "float32", **options: str) -> Path:
    export_package(
        Request(checkpoint, folder, backends or ("ort",), {"": precision}, verify=False, in_process=True, threads=1,
                options=options)
    )  # fmt: skip
    return folder


@pytest.fixture(scope="module")
def package(checkpoint: Path) -> Path:
    return export(checkpoint, checkpoint.parent / "policy", "ort", "qnn-cpu")


@pytest.fixture(scope="module")
def policy(package: Path) -> Iterator[npukit.Policy]:
    with npukit.Policy(package, threads=1) as opened:
        yield opened


@pytest.fixture(scope="module")
def wanted(checkpoint: Path, policy: npukit.Policy) -> list[list[int]]:
    """PyTorch's tokens for four observations: the whole sequence again for each token, without a cache."""
    import torch

    from npukit.policies.openvla.checkpoint import facts
    from npukit.policies.openvla.compare import sample
    from npukit.policies.openvla.model import OpenVLA

    found = facts(checkpoint, json.loads((checkpoint / "config.json").read_text()), {})
    network = OpenVLA(found.network, found.weights, whole=True)
    tokens = []
    for i, text in enumerate(TEXTS):
        inputs = policy.preprocessor(observation(i, text))
        pixels, ids = sample(npukit.policies.kinds.Probe(inputs, None))
        with torch.inference_mode():
            tokens.append(network.generate(torch.from_numpy(pixels), torch.from_numpy(ids), cached=False))
    assert len({tuple(row) for row in tokens}) == len(TEXTS)
    assert sum(31744 <= token < 32000 for row in tokens for token in row) > 14
    return tokens


# ---------------------------------------------------------------- decoding


@pytest.mark.parametrize(
    "options",
    [{"backend": "ort"}, {"backend": "ort", "in_process": False},
     pytest.param({"backend": "qnn-cpu"}, marks=pytest.mark.native)],
    ids=["ort", "workers", "qnn-cpu"],
)  # fmt: skip
def test_tokens_are_pytorchs(package: Path, wanted: list[list[int]], options: dict[str, Any]) -> None:
    """Twice over, so that what one observation leaves in the cache meets the next, longer and shorter prompts mixed."""
    with npukit.Policy(package, threads=1, **options) as opened:
        for i in (0, 1, 2, 3, 1, 0) if options == {"backend": "ort"} else (1, 0):
            chunk = opened.predict_chunk(observation(i, TEXTS[i]))
            assert opened.runtime.tokens.tolist() == wanted[i]
            assert (chunk.shape, chunk.dtype) == ((1, 7), np.float32)
        parts = {"preprocess", *COMPONENTS, "postprocess", "total"}
        assert set(opened.seconds) == parts
        assert all(seconds > 0 for seconds in opened.seconds.values())


def test_half_precision_gives_the_same_tokens(checkpoint: Path, wanted: list[list[int]], tmp_path: Path) -> None:
    """The tiny network's likeliest tokens are far enough apart for float16, and for the 310P's arithmetic."""
    half = export(checkpoint, tmp_path / "half", precision="float16")
    for emulate in ("", "ascend310p"):
        with npukit.Policy(half, threads=1, emulate=emulate) as opened:
            for i, text in enumerate(TEXTS[:2]):
                opened.predict_chunk(observation(i, text))
                assert opened.runtime.tokens.tolist() == wanted[i]


def test_the_cache_stays_where_it_is(policy: npukit.Policy) -> None:
    runtime: Any = policy.runtime
    policy.predict_chunk(observation())
    cache, rows = runtime._decoder.inputs["kv_cache"], runtime._prefill.outputs["kv_prompt"]
    assert rows.base is cache or rows.base is cache.base
    assert rows.ctypes.data == cache.ctypes.data
    before = cache.ctypes.data
    policy.predict_chunk(observation(1))
    assert runtime._decoder.inputs["kv_cache"].ctypes.data == before
    assert set(runtime.shared) == {"patch_features", "image_embeddings", "text_embeddings", "kv_cache"}


@pytest.mark.parametrize("in_process", [True, False])
def test_rows_that_are_held_differently(
    package: Path, wanted: list[list[int]], in_process: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As with integer codes of another scale each: rows go over as the source's floats."""
    monkeypatch.setattr("npukit.policies.openvla.runtime.row_alike", lambda *_: False)
    with npukit.Policy(package, "ort", threads=1, in_process=in_process) as opened:
        assert "kv_cache" not in opened.runtime.shared
        for i in (1, 0):
            opened.predict_chunk(observation(i, TEXTS[i]))
            assert opened.runtime.tokens.tolist() == wanted[i]
        cache = opened.runtime._decoder
        with pytest.raises(UsageError, match="rows 64 to 64 cannot be written"):
            cache.write("kv_cache", np.zeros((1, cache.inputs["kv_cache"].shape[1]), np.float32), 64)


def test_longest_prompt(checkpoint: Path, policy: npukit.Policy, tmp_path: Path) -> None:
    """Where the prompt fills its room to the last token; one token less room is too little."""
    text = TEXTS[1]
    count = int(policy.preprocessor(observation(0, text))["observation.language.attention_mask"].sum())
    policy.predict_chunk(observation(0, text))
    expected = policy.runtime.tokens.tolist()
    full = export(checkpoint, tmp_path / "full", prompt_length=str(count))
    with npukit.Policy(full, threads=1) as opened:
        opened.predict_chunk(observation(0, text))
        assert opened.runtime.tokens.tolist() == expected
        with pytest.raises(InputError, match=f"tokens, the policy was exported for {count}"):
            opened.predict_chunk(observation(0, text + " x"))


def test_after_a_run_that_failed(package: Path, wanted: list[list[int]]) -> None:
    """Values that are not finite are named, and nothing of them stays in the cache."""
    with npukit.Policy(package, "ort", threads=1) as opened:
        runtime: Any = opened.runtime
        inputs = opened.preprocessor(observation(0))
        with pytest.raises(NativeError, match=f"{PREFILL} gave logits that are not finite"):
            runtime.prefix({**inputs, CAMERA: np.full_like(inputs[CAMERA], np.nan)})
        runtime.prefix(inputs)
        runtime._decoder.inputs["kv_cache"][:] = np.nan
        with pytest.raises(NativeError, match=f"{DECODER} gave logits that are not finite"):
            runtime.chunk()
        opened.predict_chunk(observation(1, TEXTS[1]))
        assert runtime.tokens.tolist() == wanted[1]


def test_one_action_an_observation(policy: npukit.Policy) -> None:
    policy.reset(seed=1)
    first = policy.select_action(observation(0))
    assert first.shape == (7,)
    assert policy.pending == 0
    assert policy.noise_shape is None
    assert np.array_equal(first, policy.predict_chunk(observation(0))[0])
    assert first[6] in (-1.0, 1.0)
    with pytest.raises(InputError, match="an observation is needed"):
        policy.select_action(None)


def test_nothing_heavy_is_imported(package: Path) -> None:
    code = (
        "import sys, numpy as np, npukit\n"
        f"with npukit.Policy({str(package)!r}, 'ort', threads=1) as policy:\n"
        f"    policy.predict_chunk({{{CAMERA!r}: np.zeros((64, 64, 3), np.uint8), 'task': 'open'}})\n"
        "print([name for name in ('torch', 'tensorflow', 'transformers', 'scipy', 'cv2') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


# ---------------------------------------------------------------- observations that are refused


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"task": None}, "the instruction is missing"),
        ({"task": 3}, "expected a text, got a int"),
        ({"task": " "}, "the instruction is empty"),
        ({"task": "x" * 99}, "makes a prompt of 1.. tokens, the policy was exported for 32"),
        ({CAMERA: None}, "the camera's image is missing"),
        ({CAMERA: np.zeros((256, 256), np.uint8)}, "expected uint8 .256, 256, 3.*got uint8 .256, 256."),
        ({CAMERA: np.zeros((256, 256, 4), np.uint8)}, "got uint8 .256, 256, 4."),
        ({CAMERA: np.zeros((256, 256, 3), np.int64)}, "got int64"),
        ({CAMERA: np.full((3, 8, 8), np.nan, np.float32)}, "is nan"),
        ({CAMERA: np.full((3, 8, 8), 255, np.float32)}, "floats from 255 to 255, expected 0 to 1"),
        ({CAMERA: np.zeros((0, 8, 3), np.uint8)}, "got uint8 .0, 8, 3."),
    ],
)
def test_refused_observations(policy: npukit.Policy, change: dict[str, Any], what: str) -> None:
    with pytest.raises(InputError, match=what):
        policy.predict_chunk({**observation(), **change})


def test_several_faults_at_once(policy: npukit.Policy) -> None:
    with pytest.raises(InputError) as caught:
        policy.predict_chunk({CAMERA: np.zeros((4, 4), np.uint8)})
    assert [fault.where for fault in caught.value.faults] == [CAMERA, "task"]


def test_any_size_of_picture(policy: npukit.Policy) -> None:
    for shape in ((480, 640, 3), (224, 224, 3), (1, 1, 3)):
        assert np.isfinite(policy.predict_chunk({**observation(), CAMERA: np.zeros(shape, np.uint8)})).all()


# ---------------------------------------------------------------- folders that are refused


def changed(package: Path, folder: Path, **fields: Any) -> Path:
    shutil.copytree(package, folder)
    manifest = Manifest.read(folder)
    dataclasses.replace(manifest, **fields, files=hashes(folder)).write(folder)
    return folder


def test_missing_components_and_numbers_are_listed(package: Path, tmp_path: Path) -> None:
    manifest = Manifest.read(package)
    kept = tuple(component for component in manifest.components if component.name != DECODER)
    config = {**manifest.config, "vocab_size": "many"}
    broken = changed(package, tmp_path / "broken", components=kept, config=config)
    with pytest.raises(ArtifactError, match="not one of an OpenVLA policy") as caught:
        npukit.Policy(broken, "ort")
    assert [fault.where for fault in caught.value.faults] == ["decoder", "config.vocab_size"]


def test_numbers_that_do_not_fit_the_components(package: Path, tmp_path: Path) -> None:
    config = {**Manifest.read(package).config, "prompt_length": 20, "cache_length": 49}
    broken = changed(package, tmp_path / "broken", config=config)
    with pytest.raises(ArtifactError, match="not one of an OpenVLA policy") as caught:
        npukit.Policy(broken, "ort")
    assert {fault.where for fault in caught.value.faults} == {
        "config.cache_length", "embedding.input_ids", "prefill.text_embeddings", "decoder.attention_mask",
        "decoder.kv_cache",
    }  # fmt: skip


# ---------------------------------------------------------------- keys of statistics


@pytest.fixture(scope="module")
def two(checkpoint: Path) -> Path:
    """A package with two data sets' statistics, and no choice between them."""
    keys = ("libero_goal_no_noops", "libero_object")
    return export(tools.checkpoint(checkpoint.parent / "two", keys=keys), checkpoint.parent / "policy-two")


def test_the_key_must_be_chosen(two: Path) -> None:
    with pytest.raises(UsageError, match="is open") as caught:
        npukit.Policy(two)
    assert caught.value.hint == "its keys: libero_goal_no_noops, libero_object"
    results = [run(two, unnorm_key=key, threads=1).actions for key in ("libero_goal", "libero_object")]
    assert not np.array_equal(*results)


@needs_rendering
def test_libero_takes_its_own_key(two: Path) -> None:
    from npukit.sim.eval_verb import EvalOptions, _policy

    spec, identity = _policy(EvalOptions(policy_dir=two, env="libero_goal"))
    assert spec.unnorm_key == identity["unnorm_key"] == "libero_goal_no_noops"
    with pytest.raises(UsageError, match="no statistics for 'libero_10'"):
        _policy(EvalOptions(policy_dir=two, env="libero_10"))
    assert (
        _policy(EvalOptions(policy_dir=two, env="libero_10", unnorm_key="libero_goal"))[0].unnorm_key == "libero_goal"
    )


# ---------------------------------------------------------------- the verbs


def test_run(package: Path, policy: npukit.Policy) -> None:
    result = run(package, random=2, seed=3, threads=1, stats=True)
    assert result.actions.shape == (2, 1, 7)
    given = observations.generate(policy.manifest, policy.statistics, 2, 3)
    assert np.array_equal(result.actions, np.stack([policy.predict_chunk(one) for one in given]))
    assert all(name in result.to_text() for name in COMPONENTS)


def test_verify_with_the_checkpoint(package: Path, checkpoint: Path) -> None:
    result = verify(package, against=checkpoint, threads=1)
    assert result.exit_code == 0, result.to_text()
    assert [row["tokens"]["equal"] for row in result.actions] == [7, 7]
    rows = {(row["component"], row["output"]): row for row in result.components}
    assert len(rows) == 7
    assert rows["decoder", "kv_row"]["samples"] == 12
    assert max(row["share"] for row in rows.values()) < 1e-5  # float32 sums in another order
    assert all(row["mean_abs"] <= row["max_abs"] for row in rows.values())


def test_verify_finds_another_checkpoint(package: Path, checkpoint: Path) -> None:
    other = tools.checkpoint(checkpoint.parent / "other", seed=1)
    result = verify(package, against=other, random=0, threads=1)
    assert result.exit_code == 1
    assert any(fault.startswith("prefill: logits") for fault in result.faults)
    assert any("tokens are equal" in fault for fault in result.faults)
    assert "does not hold" in result.to_text()


def test_verify_finds_the_component(package: Path, checkpoint: Path, tmp_path: Path) -> None:
    """One weight of the projector changed: that component alone is off, and with it the action."""
    folder = tmp_path / "changed"
    shutil.copytree(package, folder)
    data = np.fromfile(folder / "projector.onnx.data", np.float32)
    data[: len(data) // 2] *= -1
    data.tofile(folder / "projector.onnx.data")
    dataclasses.replace(Manifest.read(package), files=hashes(folder)).write(folder)
    result = verify(folder, against=package, threads=1)
    assert {row["component"] for row in result.components if row["cosine"] < 0.999} == {"projector"}
    assert result.exit_code == 1


def test_verify_reports_what_is_not_finite(checkpoint: Path, tmp_path: Path) -> None:
    """Weights of the projector beyond float16: the component is named, the policy's error is part of the report."""
    half, folder = export(checkpoint, tmp_path / "half", precision="float16"), tmp_path / "changed"
    shutil.copytree(half, folder)
    data = np.fromfile(folder / "projector.onnx.data", np.float16)
    data[:64] = np.inf
    data.tofile(folder / "projector.onnx.data")
    dataclasses.replace(Manifest.read(half), files=hashes(folder)).write(folder)
    result = verify(folder, against=half, random=0, threads=1)
    assert result.faults == [
        "projector: image_embeddings: cosine 0.0000000",
        "observation 0: prefill gave logits that are not finite",
    ]
    values = json.loads(json.dumps(result.to_json(), allow_nan=False))
    assert values["components"][1]["max_abs"] is None
    assert "inf" in result.to_text()


def test_verify_needs_something_to_compare_with(package: Path) -> None:
    with pytest.raises(UsageError, match="would be compared with itself"):
        verify(package)


def test_verify_reports_what_saturates(checkpoint: Path, tmp_path: Path) -> None:
    """Deviations of the pictures' normalization so small that the network's first sums leave float16's range."""
    half = export(checkpoint, tmp_path / "half", precision="float16")
    manifest = Manifest.read(half)
    steps = [dict(step) for step in manifest.preprocessing]
    (last,) = (step for step in steps if step["step"] == "stack_normalized")
    last["parts"] = [{**part, "std": [2e-5] * 3} for part in last["parts"]]
    dataclasses.replace(manifest, preprocessing=tuple(steps)).write(half)
    result = verify(half, emulate="ascend310p", threads=1, random=0)
    found = result.saturations["vision_backbone"]
    assert found
    assert all(row["count"] > 0 for row in found)
    assert "saturated in vision_backbone" in result.to_text()


@needs_rendering
def test_closed_loop(package: Path, tmp_path: Path) -> None:
    from npukit.sim.eval_verb import evaluate

    result = evaluate(
        policy_dir=package, env="light", tasks=("reach_red",), episodes=1, step_limit=2, output=tmp_path, threads=1
    )
    (episode,) = result.episodes
    assert (episode.steps, episode.reason) == (2, "step limit")


def test_serving(package: Path) -> None:
    pytest.importorskip("websockets")
    from npukit.serving.serve_verb import serve

    result = serve(package, check=True, threads=1)
    assert result.check["actions"] == [1, 7]


def test_export_compares_tokens(checkpoint: Path, tmp_path: Path) -> None:
    """The export's own comparison runs the package's runtime, and keeps what it found."""
    made = export_package(
        Request(checkpoint, tmp_path / "policy", ("ort",), {"": "float32"}, in_process=True, threads=1)
    )
    assert made.parity["chunks"]
    assert all(row["max_abs"] == pytest.approx(0, abs=1e-6) for row in made.parity["chunks"])


def test_missing_checkpoint(package: Path, tmp_path: Path) -> None:
    with pytest.raises(npukit.NpukitError, match=r"config.json"):
        verify(package, against=tmp_path)

# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""Checkpoints of LeRobot: both layouts are read, and nothing that a file says is executed or guessed."""

from __future__ import annotations

import json
import struct
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

from npukit.errors import ArtifactError, ModelError
from npukit.policies import lerobot
from npukit.policies.safetensors_file import SafetensorsFile, write
from tests.policy_tools import processors, statistics
from tests.smolvla_tools import config

WORDS = {"pad_id": 2, "truncation_side": None, "vocabulary": 512}
PRE = "policy_preprocessor.json"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "config.json").write_text(json.dumps(config()))
    processors(tmp_path)
    return tmp_path


def edit(path: Path, change: Callable[[Any], None]) -> None:
    value = json.loads(path.read_text())
    change(value)
    path.write_text(json.dumps(value))


# ---------------------------------------------------------------- what is read


def test_processor_files(folder: Path) -> None:
    found = lerobot.read(folder, WORDS)
    assert list(found.inputs) == ["observation.images.image", "observation.images.image1", "observation.state"]
    assert found.outputs["action"].shape == (7,)
    assert [step["step"] for step in found.preprocessing] == ["batch", "newline", "tokenize", "normalize"]
    assert found.preprocessing[2] == {
        "step": "tokenize", "max_length": 48, "pad_id": 2, "truncation_side": "left",
        "tokenizer_name": "HuggingFaceTB/SmolVLM2-500M-Instruct",
    }  # fmt: skip
    assert found.preprocessing[3]["features"] == {"observation.state": "MEAN_STD"}
    assert found.postprocessing == ({"step": "unnormalize", "eps": 1e-8, "features": {"action": "MEAN_STD"}},)
    stats = statistics(config())
    for name in ("observation.state.mean", "action.std"):
        np.testing.assert_array_equal(found.statistics[name], stats[name])
    assert not any("images" in name or name.endswith("count") for name in found.statistics)


def test_state_files_go_by_the_name_in_the_json(folder: Path) -> None:
    (folder / "policy_postprocessor_step_1_unnormalizer_processor.safetensors").rename(folder / "other.safetensors")
    with pytest.raises(ModelError, match=r"the state file .*step_1.* is missing"):
        lerobot.read(folder, WORDS)
    edit(folder / "policy_postprocessor.json", lambda v: v["steps"][1].update(state_file="other.safetensors"))
    assert lerobot.read(folder, WORDS).postprocessing


def test_renames_and_quantiles(folder: Path) -> None:
    processors(folder, rename={"observation.images.a": "observation.images.image"}, norm_map={"STATE": "QUANTILES",
               "ACTION": "MIN_MAX", "VISUAL": "MEAN_STD"})  # fmt: skip
    found = lerobot.read(folder, WORDS)
    assert found.preprocessing[0] == {"step": "rename", "map": {"observation.images.a": "observation.images.image"}}
    assert found.statistics["observation.images.image.mean"].shape == (3, 1, 1)
    assert {name for name in found.statistics if name.startswith("action")} >= {"action.min", "action.max"}


def test_a_policy_without_text_needs_no_tokenizer(folder: Path) -> None:
    processors(folder, text=False)
    assert "tokenize" not in {step["step"] for step in lerobot.read(folder).preprocessing}


def old(folder: Path, prefix: str = "", drop: tuple[str, ...] = ()) -> None:
    """The layout before LeRobot 0.4: statistics among the weights."""
    for path in folder.glob("policy_*"):
        path.unlink()
    stats = statistics(config())
    buffers = {"weight": np.zeros(3, np.float32)}
    for name, module in (("observation.state", "normalize_inputs"), ("action", "unnormalize_outputs")):
        for stat in ("mean", "std"):
            if f"{name}.{stat}" not in drop:
                key = f"{prefix}{module}.buffer_{name.replace('.', '_')}.{stat}"
                buffers[key] = stats[f"{name}.{stat}"].astype(ml_dtypes.bfloat16)
    save_file(buffers, folder / "model.safetensors")


@pytest.mark.parametrize("prefix", ["", "_orig_mod."])
def test_statistics_among_the_weights(folder: Path, prefix: str) -> None:
    old(folder, prefix)
    found = lerobot.read(folder, WORDS)
    assert [step["step"] for step in found.preprocessing] == ["batch", "newline", "tokenize", "normalize"]
    np.testing.assert_allclose(found.statistics["action.std"], statistics(config())["action.std"], rtol=1e-2)
    assert "no processor files" in found.notes[0]


# ---------------------------------------------------------------- what is refused


def test_a_class_is_never_imported(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "evil_step.py").write_text("raise SystemExit('imported')")
    monkeypatch.syspath_prepend(str(tmp_path))
    edit(folder / PRE, lambda v: v["steps"].append({"class": "evil_step.Step", "config": {}}))
    with pytest.raises(ModelError) as caught:
        lerobot.read(folder, WORDS)
    assert f"{PRE}: steps[6]: names a Python class (evil_step.Step), which is never imported" in str(caught.value)
    assert "evil_step" not in sys.modules


def test_all_unknown_steps_are_listed(folder: Path) -> None:
    edit(folder / PRE, lambda v: v["steps"].insert(0, {"registry_name": "groot_pack_inputs"}))
    edit(folder / PRE, lambda v: v["steps"].append({"registry_name": "xvla_image", "config": {}}))
    edit(folder / "policy_postprocessor.json", lambda v: v["steps"].append({"config": {}}))
    with pytest.raises(ModelError) as caught:
        lerobot.read(folder, WORDS)
    text = str(caught.value)
    assert "steps[0]: the step 'groot_pack_inputs' is not known" in text
    assert "steps[7]: the step 'xvla_image' is not known" in text
    assert "policy_postprocessor.json: steps[2]: the step None is not known" in text
    assert len(caught.value.faults) == 3


def test_missing_statistics(folder: Path) -> None:
    processors(folder, drop=("observation.state.std", "action.mean", "action.std"))
    with pytest.raises(ModelError) as caught:
        lerobot.read(folder, WORDS)
    text = str(caught.value)
    assert "observation.state is normalized by MEAN_STD" in text
    assert "has no std of it" in text
    assert "has no mean and no std of it" in text


def test_missing_statistics_among_the_weights(folder: Path) -> None:
    old(folder, drop=("action.std",))
    with pytest.raises(ModelError, match="action: normalized by MEAN_STD; neither .* nor buffer_action .* has its std"):
        lerobot.read(folder, WORDS)
    (folder / "model.safetensors").unlink()
    with pytest.raises(ModelError, match=r"model\.safetensors are missing"):
        lerobot.read(folder, WORDS)


def first_norm(value: Any) -> Any:
    return next(step for step in value["steps"] if step.get("registry_name") == "normalizer_processor")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda v: v.update(steps={}), 'no list "steps"'),
        (lambda v: v["steps"].append(3), "not an object with an object as config"),
        (lambda v: first_norm(v)["config"]["norm_map"].update(STATE="LOG"), "normalization mode 'LOG' is not known"),
        (lambda v: first_norm(v)["config"].update(eps="small"), "eps 'small'"),
        (lambda v: first_norm(v).update(state_file="../../etc/passwd"), "leads out of the folder"),
        (lambda v: first_norm(v).pop("state_file"), "names no state_file"),
        (lambda v: first_norm(v)["config"]["features"]["observation.state"].update(shape=[9]), "in config.json [8]"),
        (lambda v: v["steps"][3]["config"].update(max_length=0), "max_length 0"),
        (lambda v: v["steps"][3]["config"].update(padding_side="left"), "padding on the left is not supported"),
        (lambda v: v["steps"][0]["config"].update(rename_map=[1]), "rename_map is not a map"),
    ],
)  # fmt: skip
def test_bad_processor_files(folder: Path, change: Callable[[Any], None], says: str) -> None:
    edit(folder / PRE, change)
    with pytest.raises(ModelError) as caught:
        lerobot.read(folder, WORDS)
    assert says in str(caught.value)


def test_no_tokenizer(folder: Path) -> None:
    with pytest.raises(ModelError, match=r"the checkpoint has no tokenizer\.json \(HuggingFaceTB/SmolVLM2-500M-Instr"):
        lerobot.read(folder)


def test_one_processor_file_of_two(folder: Path) -> None:
    (folder / PRE).unlink()
    with pytest.raises(ModelError, match=f"{PRE}: missing, the other of the two files is there"):
        lerobot.read(folder, WORDS)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda v: v.pop("input_features"), "input_features: missing or empty"),
        (lambda v: v["input_features"].update(x={"type": "SOUND", "shape": [1]}), "x: \"type\" of VISUAL"),
        (lambda v: v["input_features"].update(x={"type": "STATE", "shape": [1, 2]}), "x: shape [1, 2] of a STATE"),
        (lambda v: v["input_features"].update(x={"type": "VISUAL", "shape": ["a"]}), "x: \"type\" of VISUAL"),
        (lambda v: v.update(output_features={"x": {"type": "STATE", "shape": [1]}}), "one action expected, got 0"),
    ],
)  # fmt: skip
def test_bad_features(folder: Path, change: Callable[[Any], None], says: str) -> None:
    edit(folder / "config.json", change)
    with pytest.raises(ModelError) as caught:
        lerobot.read(folder, WORDS)
    assert says in str(caught.value)


def test_no_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="there is no such folder"):
        lerobot.read(tmp_path / "nothing")
    nested = tmp_path / "pretrained_model"
    nested.mkdir()
    with pytest.raises(ModelError, match=r"has no config\.json"):
        lerobot.read(tmp_path)
    (nested / "config.json").write_text("{}")
    with pytest.raises(ModelError, match="pretrained_model"):
        lerobot.read(tmp_path)
    (nested / "config.json").write_text("[" * 100_000)
    with pytest.raises(ModelError, match="not JSON"):
        lerobot.read(nested)
    (nested / "config.json").write_text('{"input_shapes": {}}')
    with pytest.raises(ModelError, match="LeRobot before 2025"):
        lerobot.read(nested)


# ---------------------------------------------------------------- safetensors


def test_safetensors_round_trip(tmp_path: Path) -> None:
    arrays = {
        "b": np.arange(6, dtype=np.float32).reshape(2, 3),
        "a": np.array(7, np.int64),
        "c": np.zeros((0, 4), np.uint8),
    }
    write(tmp_path / "x.safetensors", arrays)
    file = SafetensorsFile(tmp_path / "x.safetensors")
    assert list(file) == ["a", "b", "c"]
    for name, array in arrays.items():
        np.testing.assert_array_equal(file.array(name), array)
    save_file(arrays, tmp_path / "y.safetensors")  # the library's own writing
    other = SafetensorsFile(tmp_path / "y.safetensors")
    np.testing.assert_array_equal(other.array("b"), arrays["b"])


def damaged(header: Any, data: bytes = b"\0" * 16) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "it has 0 bytes"),
        (struct.pack("<Q", 1 << 62) + b"{}", "its header would have"),
        (damaged(b"{"), "its header is not JSON"),
        (damaged(b"[" * 50_000), "its header is not"),
        (damaged([1]), "its header is not an object"),
        (damaged({"a": {}}), "the tensor 'a' has no sound entry"),
        (damaged({"a": {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]}}), "not whole numbers"),
        (damaged({"a": {"dtype": "F9", "shape": [1], "data_offsets": [0, 4]}}), "dtype 'F9', which is not read"),
        (damaged({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}}), "is F32 [2], and has 4 bytes"),
        (damaged({"a": {"dtype": "F32", "shape": [8], "data_offsets": [0, 32]}}), "ends at byte"),
    ],
)  # fmt: skip
def test_damaged_safetensors(tmp_path: Path, data: bytes, says: str) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(data)
    with pytest.raises(ArtifactError) as caught:
        SafetensorsFile(path)
    assert says in str(caught.value)


def test_a_truncated_state_file(folder: Path) -> None:
    path = folder / "policy_preprocessor_step_5_normalizer_processor.safetensors"
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(ModelError, match=r"ends at byte \d+, the file has \d+"):
        lerobot.read(folder, WORDS)


def test_a_truncated_model_with_statistics(folder: Path) -> None:
    old(folder)
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-2])
    with pytest.raises(ModelError, match=r"model\.safetensors: the tensor .* ends at byte"):
        lerobot.read(folder, WORDS)

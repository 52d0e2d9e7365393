# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""OpenVLA on the backend acl, against the double of pyACL: a program, no device. Its numbers are not a chip's.

What it shows is that the folder takes compiled models, and that the cache stays on the device from token to token.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

pytest.importorskip("torch")

import npukit
from npukit.errors import InputError, UsageError
from npukit.policies.attach_verb import attach
from npukit.policies.export import Request, export_package
from npukit.policies.openvla.runtime import COMPONENTS
from tests import openvla_tools as tools


@pytest.fixture
def package(tmp_path: Path) -> Path:
    checkpoint = tools.checkpoint(tmp_path / "checkpoint")
    folder = tmp_path / "policy"
    export_package(Request(checkpoint, folder, ("ort",), {"": "float16"}, verify=False, in_process=True, threads=1))
    return folder


@pytest.fixture
def oms(package: Path, acl: Any) -> Path:
    """A stand-in OM of each component."""
    stand_in = importlib.import_module("stand_in")
    folder = package.parent / "oms"
    folder.mkdir()
    for name in COMPONENTS:
        stand_in.write(folder / f"{name}.om", onnx.load(package / f"{name}.onnx").SerializeToString(), name)
    return folder


def observation(text: str) -> dict[str, Any]:
    picture = np.random.default_rng(0).integers(0, 256, (8, 8, 3), np.uint8).repeat(32, 0).repeat(32, 1)
    return {"observation.images.image": picture, "task": text}


def test_actions_are_onnx_runtimes(package: Path, oms: Path, acl: Any) -> None:
    result = attach(package, oms)
    assert list(result.models) == list(COMPONENTS)
    assert "--backend acl" in result.to_text()
    with npukit.Policy(package, "ort", threads=1) as reference, npukit.Policy(package, "acl") as policy:
        assert policy.backend == "acl"
        for text in ("put the black bowl on the plate", "turn it left"):
            assert np.array_equal(policy.predict_chunk(observation(text)), reference.predict_chunk(observation(text)))
            assert policy.runtime.tokens.tolist() == reference.runtime.tokens.tolist()


def test_the_cache_stays_on_the_device(package: Path, oms: Path, acl: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The prompt's rows are copied once on the device, and a row each step; nothing of them, nor the cache, is sent."""
    attach(package, oms)
    with npukit.Policy(package, "acl") as policy:
        policy.predict_chunk(observation("stove"))
        cache = policy.runtime._decoder.inputs["kv_cache"].nbytes
        moved: list[tuple[int, int]] = []
        memcpy = acl.rt.memcpy

        def counted(target: Any, room: int, source: Any, count: int, kind: int) -> int:
            moved.append((kind, count))
            status: int = memcpy(target, room, source, count, kind)
            return status

        monkeypatch.setattr(acl.rt, "memcpy", counted)
        policy.predict_chunk(observation("turn it left"))
    row = cache // policy.manifest.config["cache_length"]
    prompt = row * policy.manifest.config["prefill_length"]
    assert [count for kind, count in moved if kind == 3] == [prompt, *[row] * 6]
    assert not {row, prompt, cache} & {count for kind, count in moved if kind != 3}


def test_what_is_missing_or_no_om_is_listed(package: Path, oms: Path) -> None:
    (oms / "decoder.om").unlink()
    (oms / "prefill.om").write_bytes(b"no OM at all")
    with pytest.raises(InputError, match="not the policy's models") as caught:
        attach(package, oms)
    assert [fault.where for fault in caught.value.faults] == ["prefill.om", "decoder.om"]
    assert not list(package.glob("*.om"))


def test_a_second_time(package: Path, oms: Path) -> None:
    attach(package, oms)
    with pytest.raises(UsageError, match="has models for acl already"):
        attach(package, oms)
    attach(package, oms, force=True)

# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""The package's manifest: what is written is read, and everything that is wrong is named."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from npukit.errors import ArtifactError
from npukit.policies.package import MANIFEST, Camera, Component, Feature, Manifest, Port, hashes


def manifest(**changes: Any) -> Manifest:
    port = Port("image", "float32", (1, 3, 4, 4), "batch channel height width", "-1 to 1")
    made = Manifest(
        kind="double", config={"steps": 3}, inputs={"observation.state": Feature("STATE", (2,))},
        outputs={"action": Feature("ACTION", (3,))}, cameras=(Camera("observation.images.top", 0, required=False),),
        preprocessing=({"step": "batch"},), postprocessing=({"step": "cut", "length": 3},),
        components=(Component("net", (port,), (port,), 2, {"ort": "net.onnx"}, {"ort": "float32"}),),
        chunk_size=4, n_action_steps=2, source={"name": "x"},
    )  # fmt: skip
    return dataclasses.replace(made, **changes)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "net.onnx").write_bytes(b"model")
    dataclasses.replace(manifest(), files=hashes(tmp_path)).write(tmp_path)
    return tmp_path


def test_what_is_written_is_read(folder: Path) -> None:
    found = Manifest.read(folder, check_hashes=True)
    assert found.folder == folder
    assert dataclasses.replace(found, folder=None) == dataclasses.replace(manifest(), files=hashes(folder))
    assert found.action.shape == (3,)
    assert found.backends == ("ort",)
    assert found.component("net").runs == 2
    with pytest.raises(ArtifactError, match="no component 'head'"):
        found.component("head")


def change(folder: Path, **fields: Any) -> None:
    values = json.loads((folder / MANIFEST).read_text())
    for name, value in fields.items():
        where: Any = values
        *path, last = name.split("__")
        for key in path:
            where = where[int(key) if key.isdigit() else key]
        if value is ...:
            del where[last]
        else:
            where[last] = value
    (folder / MANIFEST).write_text(json.dumps(values))


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"format": 2}, "the manifest has format 2, this npukit reads 1"),
        ({"kind": ...}, "kind: missing"),
        ({"chunk_size": 0}, "chunk_size: a positive integer expected"),
        ({"chunk_size": True}, "chunk_size: a positive integer expected"),
        ({"n_action_steps": 9}, "n_action_steps: at most chunk_size (4) expected"),
        ({"inputs__observation.state__kind": "SOUND"}, "inputs.observation.state.kind: one of VISUAL"),
        ({"inputs__observation.state__shape": [-1]}, "inputs.observation.state.shape: a list of positive"),
        ({"outputs": {}}, "outputs: an output of kind ACTION expected"),
        ({"cameras__0__slot": "first"}, "cameras[0].slot: an integer from 0 expected"),
        ({"preprocessing": [{"name": "x"}]}, 'preprocessing[0]: an object with a text "step" expected'),
        ({"components__0__inputs__0__dtype": 3}, "components[0].inputs[0].dtype: a text expected"),
        ({"components__0__artifacts": {"ort": 1}}, "components[0].artifacts: an object of texts expected"),
        ({"components__0__artifacts": {"ort": "else.onnx"}}, "else.onnx: named, but not in `files`"),
        ({"files": {"net.onnx": {"bytes": 5}}}, 'files: objects with "sha256" and "bytes" expected'),
        ({"files__../secret": {"sha256": "", "bytes": 1}}, "leads out of the folder"),
        ({"tokenizer": {"file": "/etc/passwd"}}, "/etc/passwd: named, but not in `files`"),
    ],
)  # fmt: skip
def test_wrong_fields(folder: Path, fields: dict[str, Any], says: str) -> None:
    change(folder, **fields)
    with pytest.raises(ArtifactError) as caught:
        Manifest.read(folder)
    assert says in str(caught.value)


def test_all_faults_at_once(folder: Path) -> None:
    change(folder, kind=3, chunk_size="x", source=...)
    with pytest.raises(ArtifactError) as caught:
        Manifest.read(folder)
    assert [fault.where for fault in caught.value.faults] == ["kind", "chunk_size", "source"]


@pytest.mark.parametrize(
    ("data", "says"),
    [(b"", "5 expected"), (b"MODEL", "another content"), (None, "net.onnx: missing")],
)
def test_files_must_be_those_that_were_written(folder: Path, data: bytes | None, says: str) -> None:
    if data is None:
        (folder / "net.onnx").unlink()
    else:
        (folder / "net.onnx").write_bytes(data)
    with pytest.raises(ArtifactError) as caught:
        Manifest.read(folder)
    assert says in str(caught.value)


def test_large_files_are_hashed_when_asked(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("npukit.policies.package._SMALL", 2)
    (folder / "net.onnx").write_bytes(b"MODEL")
    Manifest.read(folder)
    with pytest.raises(ArtifactError, match="another content"):
        Manifest.read(folder, check_hashes=True)


@pytest.mark.parametrize("text", ["", "[]", "{", '{"a": ' * 100_000, "\xff\xfe"])
def test_no_manifest(tmp_path: Path, text: str) -> None:
    (tmp_path / MANIFEST).write_text(text, encoding="latin-1")
    with pytest.raises(ArtifactError):
        Manifest.read(tmp_path)


def test_no_package(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="this is no policy package: it has no policy.json"):
        Manifest.read(tmp_path)

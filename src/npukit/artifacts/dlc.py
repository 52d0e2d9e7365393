# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""DLC files: written atomically and reproducibly with the stamp inside, read back with their structure checked first.

A DLC is a zip of stored members: `model`, `model.params`, `model.params.bin` (the weights; absent where a graph has
none), `dlc.metadata<version>` (JSON). Its CRC fields are zero, so members are read by offset. The stamp is a further
member, which Qualcomm's libraries ignore and keep. Facts: shared/reference/qnn_more.md section 5.
"""

from __future__ import annotations

import datetime
import logging
import os
import re
import shutil
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from npukit.artifacts import stamp as stamps
from npukit.artifacts.stamp import Stamp
from npukit.errors import ArtifactError, NativeError
from npukit.files import ZipEntry, atomic_write, map_file, temporary_folder_beside, zip_entries, zip_read
from npukit.qnn.api.capture import capture_dlc
from npukit.qnn.api.dlc import write_dlc
from npukit.qnn.graph import Graph, Model, Tensor

log = logging.getLogger(__name__)

STAMP_MEMBER: Final = "npukit.json"
WEIGHTS_MEMBER: Final = "model.params.bin"
REQUIRED: Final = ("model", "model.params")
_METADATA_PREFIX: Final = "dlc.metadata"
_HISTORY_PREFIX: Final = "dlc.metadata.history"
_MAX_METADATA: Final = 16 << 20
_TIMESTAMP: Final = re.compile(rb'("timestamp"\s*:\s*")(\d{4}-\d\d-\d\d \d\d:\d\d:\d\d)( UTC")')
_EPOCH: Final = 315532800  # 1980-01-01, the first day that a zip can hold


@dataclass(frozen=True)
class DlcInfo:
    """What a DLC says about itself without a native library.

    Attributes:
        members: its members in directory order.
        stamp: npukit's stamp, None where another tool wrote the file.
        qairt_build: QAIRT version of the library that wrote it ("2.47.0.260601114230"), empty if it does not say.
        converter: the tool that it names as its writer.
        metadata: its metadata as parsed JSON; empty where it has none, or in another form.
        context_binaries: names of the members that are HTP context binaries.
    """

    members: tuple[ZipEntry, ...]
    stamp: Stamp | None
    qairt_build: str = ""
    converter: str = ""
    metadata: dict[str, Any] = field(default_factory=dict)
    context_binaries: tuple[str, ...] = ()


def write(model: Model, path: Path | str, stamp: Stamp | Callable[[], Stamp] | None = None) -> None:
    """Write the one graph of `model` as a DLC at `path`, with `stamp` inside; a function is asked for it at the end.

    The file appears complete or not at all. Written in a fresh process, equal models, stamps and libraries give equal
    bytes: the timestamps are SOURCE_DATE_EPOCH, or 1980-01-01. libQnnIr runs in this process; a caller that wants
    crashes contained runs this in a worker.

    Raises:
        GraphError, NativeError: see `write_dlc`.
        NpukitError: the file cannot be written.
    """
    with atomic_write(path) as temp:
        # libQnnIr writes another file first, under a name of its own: in a folder that is known to be ours.
        folder = temporary_folder_beside(temp)
        try:
            write_dlc(model, folder / "model.dlc")
            os.replace(folder / "model.dlc", temp)
        except NativeError:
            _need_room(temp, sum(graph.static_bytes() for graph in model.graphs.values()) + _ROOM)
            raise
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        _fix_times(temp)
        if stamp is not None:
            made = stamp if isinstance(stamp, Stamp) else stamp()
            _append(temp, STAMP_MEMBER, made.to_json().encode())


_ROOM: Final = 1 << 16  # what a DLC takes besides its constants, for graphs where that could be the trouble


def _need_room(path: Path, size: int) -> None:
    """Raise the OSError of writing `size` bytes where that is not possible: libQnnIr does not say why it failed."""
    with open(path, "wb") as stream:
        for _ in range(0, size, _ROOM):
            stream.write(bytes(_ROOM))


def source_date() -> datetime.datetime:
    """The date that artifacts carry: SOURCE_DATE_EPOCH (seconds since 1970), or 1980-01-01."""
    text = os.environ.get("SOURCE_DATE_EPOCH", "")
    seconds = int(text) if text.isdigit() and len(text) <= 11 else _EPOCH
    return datetime.datetime.fromtimestamp(max(seconds, _EPOCH), datetime.UTC)


def _fix_times(path: Path) -> None:
    """Overwrite the timestamps of a DLC's metadata in place; they have a fixed length, and the zip CRC is zero."""
    date = source_date().strftime("%Y-%m-%d %H:%M:%S").encode()
    data = map_file(path)
    changes = [
        (entry.offset, _TIMESTAMP.sub(rb"\g<1>" + date + rb"\g<3>", zip_read(data, entry, limit=_MAX_METADATA)))
        for entry in zip_entries(data)
        if entry.name.startswith(_METADATA_PREFIX)
    ]
    del data
    with open(path, "r+b") as stream:
        for offset, changed in changes:
            stream.seek(offset)
            stream.write(changed)


def _append(path: Path, name: str, data: bytes) -> None:
    date = source_date()
    member = zipfile.ZipInfo(name, (date.year, date.month, date.day, date.hour, date.minute, date.second))
    member.create_system = 0
    with zipfile.ZipFile(path, "a", zipfile.ZIP_STORED) as archive:
        archive.writestr(member, data)


def members(path: Path | str) -> list[ZipEntry]:
    """The members of a DLC, by offset; ArtifactError when the file is not a sound zip."""
    return zip_entries(map_file(path), where=str(path))


def read_info(path: Path | str) -> DlcInfo:
    """Stamp, metadata and members of a DLC, without any native library.

    Raises:
        ArtifactError: the file is no DLC, is truncated or damaged, or its stamp is.
    """
    data = map_file(path)
    entries = zip_entries(data, where=str(path))
    names = {entry.name: entry for entry in entries}
    if "model" not in names and not any(name.startswith("backend.metadata") for name in names):
        raise ArtifactError("this zip is not a DLC: it has no member 'model'", where=str(path))
    stamp = None
    if STAMP_MEMBER in names:
        raw = zip_read(data, names[STAMP_MEMBER], limit=stamps.MAX_BYTES, where=str(path))
        stamp = Stamp.from_json(raw, where=str(path))
    metadata = _metadata(data, entries, str(path))
    command = _writer(metadata)
    return DlcInfo(
        tuple(entries),
        stamp,
        str(command.get("converterVersion", ""))[:100],
        str(command.get("tool", ""))[:100],
        metadata,
        tuple(name for name in names if name.startswith("backend.metadata")),
    )


def _metadata(data: memoryview, entries: list[ZipEntry], where: str) -> dict[str, Any]:
    """The file's metadata with, from QAIRT 2.51 on, its history (who wrote it) from the member beside."""
    merged: dict[str, Any] = {}
    for entry in entries:
        if entry.name.startswith(_METADATA_PREFIX):
            try:
                value = stamps.parse_json(zip_read(data, entry, limit=_MAX_METADATA, where=where))
            except (ValueError, RecursionError) as error:
                log.info("%s: %s is not JSON (%s)", where, entry.name, error)
                continue
            if isinstance(value, dict):
                history = entry.name.startswith(_HISTORY_PREFIX)
                merged = {**value, **merged} if history else {**merged, **value}
    return merged


def _writer(metadata: dict[str, Any]) -> dict[str, Any]:
    """The entry that names the last tool that wrote the file."""
    steps = metadata.get("dlcGenerationInfo")
    last = steps[-1] if isinstance(steps, list) and steps else {}
    command = last.get("converterCommand") if isinstance(last, dict) else None
    return command if isinstance(command, dict) else {}


def check(path: Path | str) -> DlcInfo:
    """Check a DLC's structure before native code sees it, and return what it says about itself.

    Raises:
        ArtifactError: it is no sound zip, lacks a graph, or holds it or its weights compressed. Missing weights are
            found where a constant needs them (`capture_dlc`).
    """
    info = read_info(path)
    names = {entry.name: entry for entry in info.members}
    missing = [name for name in REQUIRED if name not in names]
    if missing:
        holds = "it holds only a context binary" if info.context_binaries else "it was damaged or stripped"
        raise ArtifactError(f"the DLC lacks {', '.join(missing)}", where=str(path), hint=holds)
    for name in (*REQUIRED, WEIGHTS_MEMBER):
        if name in names and names[name].method != 0:
            raise ArtifactError(
                f"the member {name} is compressed; Qualcomm's libraries read only stored members",
                where=str(path),
                hint="it was packed again by another tool; use the original file, or zip -0",
            )
    return info


def read(path: Path | str, *, copy: bool = False) -> tuple[Model, Stamp | None]:
    """The graphs of a DLC, whoever made it, and npukit's stamp where it has one.

    Graph inputs and outputs come in the order of the stamp, which is the source's; without a stamp in the file's.
    `Model.metadata` gets "qairt_build", "converter" and "dlc" (the file's own metadata). Constants are views of the
    mapped file unless `copy`. libQnnSystem runs in this process; see `write` about workers.

    Raises:
        ArtifactError: see `check` and `capture_dlc`.
        NativeError: libQnnSystem refuses the file.
    """
    info = check(path)
    model = capture_dlc(path, copy=copy)
    model.metadata.update(qairt_build=info.qairt_build, converter=info.converter, dlc=info.metadata)
    if info.stamp is not None:
        for graph in model.graphs.values():
            _apply_order(graph, info.stamp, str(path))
    return model, info.stamp


def _apply_order(graph: Graph, stamp: Stamp, where: str) -> None:
    inputs = [io.tensor for io in stamp.inputs if io.graph in ("", graph.name)]
    outputs = [io.tensor for io in stamp.outputs if io.graph in ("", graph.name)]
    # An input that no op reads is in the contract, but not in the file.
    present = {tensor.name for tensor in graph.inputs}
    graph.inputs = _ordered(graph.inputs, [name for name in inputs if name in present], where)
    graph.outputs = _ordered(graph.outputs, outputs, where)


def _ordered(tensors: list[Tensor], names: list[str], where: str) -> list[Tensor]:
    found = {tensor.name: tensor for tensor in tensors}
    if set(found) != set(names):
        odd = ", ".join(sorted(set(found) ^ set(names))[:8])
        raise ArtifactError(
            f"the stamp and the graph disagree about the inputs or outputs ({odd})",
            where=where,
            hint="the file was changed after npukit wrote it; convert the model again",
        )
    return [found[name] for name in dict.fromkeys(names)]

# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""HTP context binaries: compiled for one chip, with the stamp in a sidecar NAME.npukit.json.

A context binary cannot hold foreign data, and the library does not notice a flipped byte in it: the sidecar carries
the binary's SHA-256, and a sidecar that does not match is refused. Facts: shared/reference/qnn_more.md sections 7, 8.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from npukit.artifacts.stamp import MAX_BYTES, Stamp, parse_json
from npukit.errors import ArtifactError, Fault, GraphError, UsageError
from npukit.files import atomic_write, atomic_write_bytes, map_file, os_errors, sha256_file
from npukit.qnn.api.backend import Backend, GraphOptions
from npukit.qnn.api.system import BinaryInfo, binary_info
from npukit.qnn.graph import Graph, Model
from npukit.targets import Target

log = logging.getLogger(__name__)

SIDECAR_SUFFIX: Final = ".npukit.json"
_VTCM_MB: Final = 4  # what the library compiles for, whatever the chip has, unless it is told
_HASH: Final = re.compile(r"[0-9a-f]{64}")


def sidecar(path: Path | str) -> Path:
    """Where the stamp of an artifact lies that cannot hold it: the artifact's name with ".npukit.json" added."""
    return Path(f"{path}{SIDECAR_SUFFIX}")


def compile_binary(
    model: Model,
    target: Target,
    *,
    options: GraphOptions | None = None,
    weight_sharing: bool = False,
    progress: Callable[[str, float], None] | None = None,
) -> bytes:
    """Compile the graphs of `model` for the chip of `target` and return the context binary.

    Every op is validated against the chip first. libQnnHtp runs in this process and may take minutes, memory, and the
    process down: callers run this in a worker.

    Raises:
        UsageError: the target has no HTP.
        GraphError: ops that the chip refuses, all of them with the vendor's reasons.
        NativeError: compiling fails.
    """
    if target.backend != "qnn-htp" or target.soc_id is None:
        raise UsageError(
            f"context binaries are for chips with HTP; {target.name} is none", hint="npukit targets lists the chips"
        )
    if not model.graphs:
        raise ArtifactError("there is no graph to compile")
    options = options or GraphOptions()
    if options.vtcm_mb is None and target.vtcm_mb is not None and target.vtcm_mb < _VTCM_MB:
        options = replace(options, vtcm_mb=target.vtcm_mb)
    with Backend("htp", soc_id=target.soc_id) as backend:
        _validate(model, backend, target)
        with backend.context(weight_sharing=weight_sharing) as context:
            for number, graph in enumerate(model.graphs.values()):
                if progress is not None:
                    progress(f"compiling {graph.name} for {target.name}", number / len(model.graphs))
                context.add_graph(_used(graph), options=options, validate=False).finalize()
            return context.binary()


def _validate(model: Model, backend: Backend, target: Target) -> None:
    faults = [
        Fault(reason, f"graph {graph.name}, op {op.name} ({op.type})")
        for graph in model.graphs.values()
        for op in graph.ops
        if (reason := backend.validate(op))
    ]
    if faults:
        raise GraphError(
            f"{target.name} cannot hold {len(faults)} of the ops",
            hint=f"convert the source model for it: npukit convert MODEL --target {target.name}",
            faults=faults,
        )


def _used(graph: Graph) -> Graph:
    """The graph without inputs that no op reads: they would be inputs of the binary that do nothing."""
    used = {id(tensor) for op in graph.ops for tensor in op.inputs}
    return Graph(graph.name, [t for t in graph.inputs if id(t) in used], graph.outputs, graph.ops)


def compile(  # noqa: A001 - the verb that it is
    model: Model,
    target: Target,
    path: Path | str,
    stamp: Stamp | None = None,
    *,
    options: GraphOptions | None = None,
    weight_sharing: bool = False,
    progress: Callable[[str, float], None] | None = None,
) -> None:
    """Compile `model` for `target` into `path`, with `stamp` in the sidecar beside it.

    What the binary says of itself, read by libQnnSystem, must be what the chip is: SoC, architecture, and no more VTCM
    than it has.

    In a fresh process equal models give equal bytes. Both files appear complete or not at all; after a kill between
    the two renames the old sidecar does not match the new binary, and is refused.

    Raises:
        UsageError, GraphError, NativeError: see `compile_binary`.
        ArtifactError: the binary does not fit the chip.
        NpukitError: a file cannot be written.
    """
    data = compile_binary(model, target, options=options, weight_sharing=weight_sharing, progress=progress)
    check(binary_info(data, where=str(path)), target)
    write(data, path, stamp)


def check(info: BinaryInfo, target: Target) -> None:
    """ArtifactError where a context binary is for another chip than `target`, or wants more VTCM than that has."""
    faults = []
    for what, found, wanted in (("SoC", info.soc_model, target.soc_id), ("Hexagon V", info.arch, target.arch)):
        if found and wanted and found != wanted:
            faults.append(Fault(f"it is for {what} {found}, {target.name} is {wanted}"))
    for graph, size in info.vtcm_mb.items():
        if target.vtcm_mb is not None and size > target.vtcm_mb:
            faults.append(Fault(f"it wants {size} MB of VTCM, {target.name} has {target.vtcm_mb}", f"graph {graph}"))
    if faults:
        raise ArtifactError(f"the context binary does not fit {target.name}", faults=faults,
                            hint="leave --vtcm-mb out, or give what the chip has")  # fmt: skip


def write(data: bytes, path: Path | str, stamp: Stamp | None = None) -> None:
    """Write a context binary and its sidecar; without `stamp`, a sidecar of that name is removed."""
    beside = sidecar(path)
    if stamp is None:
        atomic_write_bytes(path, data)
        with os_errors(beside, "remove"), contextlib.suppress(FileNotFoundError):
            os.unlink(beside)
        return
    # Both are on disk before the first is renamed; the binary is renamed first.
    with atomic_write(beside) as stamp_temp, atomic_write(path) as temp:
        stamp_temp.write_bytes(sidecar_text(stamp, hashlib.sha256(data).hexdigest()).encode())
        temp.write_bytes(data)


def sidecar_text(stamp: Stamp, sha256: str) -> str:
    """The sidecar's text: the artifact's SHA-256 and the stamp, as deterministic JSON."""
    value = {"artifact_sha256": sha256, "stamp": stamp.to_dict()}
    return json.dumps(value, sort_keys=True, allow_nan=False, separators=(",", ":")) + "\n"


def read_sidecar(path: Path | str) -> Stamp | None:
    """The stamp beside the artifact at `path`, None where there is no sidecar.

    Raises:
        ArtifactError: the sidecar is damaged, or belongs to another file than this one.
    """
    beside = sidecar(path)
    if not beside.exists():
        return None
    with os_errors(beside, "read"), open(beside, "rb") as stream:
        raw = stream.read(MAX_BYTES + 1)
    try:
        value: Any = parse_json(raw)
        if not isinstance(value, dict) or set(value) != {"artifact_sha256", "stamp"}:
            raise ValueError("it does not hold artifact_sha256 and stamp")
        expected = value["artifact_sha256"]
        if not isinstance(expected, str) or not _HASH.fullmatch(expected):
            raise ValueError("artifact_sha256 is no SHA-256")
    except (ValueError, RecursionError) as error:
        raise ArtifactError(f"the sidecar cannot be read: {error}", where=str(beside), hint=_REMOVE) from error
    stamp = Stamp.from_json(json.dumps(value["stamp"]), where=str(beside))
    if sha256_file(path) != expected:
        raise ArtifactError("the sidecar belongs to another file: the SHA-256 differs", where=str(path), hint=_REMOVE)
    return stamp


_REMOVE: Final = "compile the model again; or remove the sidecar, and the file is read with its native tensors"


def read(path: Path | str) -> tuple[BinaryInfo, Stamp | None]:
    """Description and stamp of a context binary; its SHA-256 is compared with the sidecar's first.

    `BinaryInfo.model` holds the graphs with inputs and outputs in the order of the binary.

    Raises:
        ArtifactError: it is no context binary, is damaged, or the sidecar does not match.
    """
    stamp = read_sidecar(path)
    return binary_info(map_file(path), where=str(path)), stamp

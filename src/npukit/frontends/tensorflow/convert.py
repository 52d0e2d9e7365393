# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""The side of the TensorFlow front end that needs no TensorFlow: checks, the other process, its limits and reply."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import json
import logging
import os
import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from npukit.errors import Fault, MissingDependency, ModelError, NpukitError, WorkerDied
from npukit.frontends import exported
from npukit.frontends.exported import Exported, new_folder, plain
from npukit.frontends.tensorflow import graph
from npukit.frontends.tensorflow.kinds import CHECKPOINT, KERAS, SAVED_MODEL, folder_of, kind_of
from npukit.log import report
from npukit.worker import memory_of

log = logging.getLogger(__name__)

PYTHON = "NPUKIT_TENSORFLOW_PYTHON"
"""Environment variable: the interpreter that has TensorFlow and tf2onnx."""

EXTRA = "pip install 'npukit[tensorflow]', or name an interpreter that has both: --tensorflow-python, " + PYTHON
_SCRIPT = Path(__file__).with_name("read_with_tensorflow.py")
_POLL = 0.1


@dataclass(frozen=True)
class TensorFlowOptions:
    """How a TensorFlow file is read.

    Attributes:
        shapes: full shape of an input by name.
        batch: value of a first dimension that is open.
        inputs: tensors or nodes at which a graph begins; empty for its placeholders.
        outputs: tensors or nodes at which it ends; empty for what nothing reads.
        tag: tags of the meta graph in a SavedModel, with commas; empty for its only one.
        signature: key of a SavedModel's signature; empty for serving_default, or the first.
        python: the interpreter that has TensorFlow; None for the variable's, else this one.
        compare: run TensorFlow and the exported ONNX on the same inputs.
        timeout: seconds that reading may take; None: five minutes, and a second for each MB.
    """

    shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    batch: int | None = None
    inputs: tuple[str, ...] = ()
    outputs: tuple[str, ...] = ()
    tag: str = ""
    signature: str = ""
    python: Path | None = None
    compare: bool = True
    timeout: float | None = None


_made: dict[str, Exported] = {}
_lock = threading.Lock()


def as_onnx(path: Path, options: TensorFlowOptions | None = None) -> Exported | None:
    """The ONNX of a TensorFlow model, made by tf2onnx in a process of its own; None for any other file.

    Asked again for the same file and options, it gives the same result.

    Raises:
        ModelError: the file is damaged, does more than compute, or cannot be expressed in ONNX (each reason).
        MissingDependency: no interpreter has TensorFlow and tf2onnx.
        WorkerDied: TensorFlow crashed, or took too long or too much memory.
    """
    kind = kind_of(path)
    if kind is None:
        return None
    options = options or TensorFlowOptions()
    files = files_of(path, kind)
    states = [(str(file), file.stat().st_mtime_ns, file.stat().st_size) for file in files]
    key = json.dumps([str(path.resolve()), states, _jsonable(options)])
    with _lock:
        if key not in _made:
            _made[key] = _export(path, kind, files, options)
        return _made[key]


def files_of(path: Path, kind: str) -> list[Path]:
    """All files that a model is read from, sorted.

    Raises:
        ModelError: a part of a SavedModel or checkpoint lies outside its folder.
    """
    if kind == SAVED_MODEL:
        folder = folder_of(path)
        found = [file for part in ("", "variables", "assets") for file in sorted((folder / part).glob("*"))]
        real = folder.resolve()
        for file in found:
            if file.is_file() and not file.resolve().is_relative_to(real):
                raise ModelError("a file of the SavedModel is a link out of its folder", where=str(file))
        return [file for file in found if file.is_file()]
    if kind == CHECKPOINT:
        stem = path.name.removesuffix(".meta")
        beside = [
            file for file in path.parent.iterdir() if re.fullmatch(rf"{re.escape(stem)}\.(index|data-.*)", file.name)
        ]
        return [path, *sorted(beside)]
    return [path]


def _export(path: Path, kind: str, files: list[Path], options: TensorFlowOptions) -> Exported:
    if kind == KERAS:
        raise ModelError(
            "this is a file of Keras: it names Python classes, which only Keras can build",
            where=str(path),
            hint="in Python: keras.models.load_model(FILE).export(FOLDER) makes a SavedModel; convert that folder",
        )
    graphs = graph.read_graphs(path, kind)
    notes = _choose(path, kind, graphs, options)
    python = _python(path, options.python)
    folder = new_folder()
    name = path.resolve().name if path.is_dir() else path.stem
    output, arrays = folder / f"{name}.onnx", folder / "compared.npz"
    given = _jsonable(options)
    request = {
        **{key: given[key] for key in ("shapes", "batch", "tag", "signature", "compare")},
        "path": str(folder_of(path).resolve() if kind == SAVED_MODEL else path.resolve()),
        "kind": kind,
        "inputs": [] if kind == SAVED_MODEL else given["inputs"],
        "outputs": [] if kind == SAVED_MODEL else given["outputs"],
        "output": str(output),
        "arrays": str(arrays),
        "tag": options.tag or (",".join(graphs[0].tags) if kind == SAVED_MODEL else ""),
    }
    size = sum(file.stat().st_size for file in files)
    report("reading with TensorFlow", 0.0)
    reply = ask(python, request, folder, size, options.timeout)
    if "missing" in reply:
        raise MissingDependency(
            f"a TensorFlow model is read by TensorFlow and tf2onnx, which {python} cannot import ({reply['missing']})",
            where=str(path),
            hint=EXTRA,
        )
    if "error" in reply:
        faults = [Fault(*(plain(str(part)) for part in fault)) for fault in reply["faults"]]
        raise ModelError(plain(str(reply["error"])), where=str(path), faults=faults, hint=str(reply.get("hint", "")))
    notes += [str(note) for note in reply["notes"] if note != "TensorFlow ran on inputs that were drawn"]
    if reply["compared"]:
        notes.append(_compared(str(reply["framework"]), arrays, output))
    return Exported(output, tuple(notes), lambda: _digest(files))


def _choose(path: Path, kind: str, graphs: list[graph.Graph], options: TensorFlowOptions) -> list[str]:
    """Check the tag and signature of a SavedModel before TensorFlow is started; gives notes."""
    if kind != SAVED_MODEL:
        if options.tag or options.signature:
            raise ModelError(f"a {kind} has no tags and signatures", where=str(path))
        return []
    if not graphs:
        raise ModelError("the SavedModel has no graph", where=str(path))
    tags = [",".join(one.tags) for one in graphs]
    wanted = sorted(options.tag.split(","))
    chosen = [one for one in graphs if sorted(one.tags) == wanted] if options.tag else graphs
    if not chosen:
        raise ModelError(
            f"there is no graph with the tags {options.tag!r}", where=str(path), hint=f"it has: {'; '.join(tags)}"
        )
    if len(chosen) > 1:
        raise ModelError(
            f"it has {len(chosen)} graphs, with the tags {'; '.join(tags)}", where=str(path), hint="--saved-model-tag"
        )
    known = [key for key in chosen[0].signatures if not key.startswith("__")]
    if options.signature and options.signature not in known:
        raise ModelError(
            f"there is no signature {options.signature!r}", where=str(path), hint=f"it has: {', '.join(known)}"
        )
    graphs[:] = chosen
    return []


def _python(path: Path, given: Path | None) -> str:
    """The interpreter that is asked.

    Raises:
        MissingDependency: there is none.
    """
    named = str(given) if given is not None else os.environ.get(PYTHON, "")
    if named:
        found = shutil.which(named)
        if found is None:
            raise MissingDependency("there is no such Python interpreter", where=named, hint=EXTRA)
        return os.path.abspath(found)  # not resolved: a virtual environment is a link
    if importlib.util.find_spec("tensorflow") is None or importlib.util.find_spec("tf2onnx") is None:
        raise MissingDependency(
            "a TensorFlow model is read by TensorFlow and tf2onnx, which are not installed", where=str(path), hint=EXTRA
        )
    return sys.executable


def ask(python: str, request: dict[str, Any], folder: Path, size: int, timeout: float | None) -> dict[str, Any]:
    """Have `python` answer a request in a process with limits of time and memory; gives its reply.

    Raises:
        WorkerDied: it died, gave no reply, or went over a limit.
    """
    reply, asked, printed = folder / "reply.json", folder / "request.json", folder / "printed.txt"
    asked.write_text(json.dumps({**request, "reply": str(reply)}))
    limit = timeout or 300.0 + size / 1e6
    memory = (6 << 30) + 16 * size
    environment = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "PYTHONHOME")}
    with open(printed, "wb") as sink:
        process = subprocess.Popen(
            [python, "-B", str(_SCRIPT), str(asked)],
            stdin=subprocess.DEVNULL,
            stdout=sink,
            stderr=sink,
            env=environment,
            cwd=folder,
            creationflags=getattr(subprocess, "CREATE_NO_WINDOW", 0),
        )
    why = ""
    deadline = time.monotonic() + limit
    try:
        while True:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(_POLL)
                break
            if time.monotonic() > deadline:
                why = f"gave no answer within {limit:.0f} s and was ended"
                break
            if (used := memory_of(process.pid)) > memory:
                why = f"used {used >> 20} MiB, more than the {memory >> 20} MiB it may, and was ended"
                break
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
    lines = [line.strip() for line in printed.read_text("utf-8", "replace").splitlines() if line.strip()]
    for line in lines:
        log.debug("TensorFlow: %s", line)
    if not why:
        try:
            found = json.loads(reply.read_text("utf-8"))
        except (OSError, ValueError):
            why = f"ended with status {process.returncode} and no answer"
        else:
            return dict(found)
    last = f"; the last line it printed: {lines[-1][:300]!r}" if lines else ""
    hint = "raise the limit with --timeout if it may take longer" if "within" in why else "is the file damaged?"
    raise WorkerDied(f"the process that runs TensorFlow {why}{last}", where=request["path"], hint=hint)


def _compared(framework: str, arrays: Path, output: Path) -> str:
    """How far TensorFlow and the exported ONNX differ."""
    with np.load(arrays, allow_pickle=False) as held:
        parts = {key: held[key] for key in held.files}
    inputs = [parts[f"input_{i}"] for i in range(sum(key.startswith("input_") for key in parts))]
    outputs = [parts[f"output_{i}"] for i in range(sum(key.startswith("output_") for key in parts))]
    return exported.against_onnx(framework, inputs, outputs, output)


def _jsonable(options: TensorFlowOptions) -> dict[str, Any]:
    found = {key: getattr(options, key) for key in TensorFlowOptions.__dataclass_fields__}
    return {**found, "shapes": {k: list(v) for k, v in options.shapes.items()}, "python": str(options.python or "")}


def _digest(files: list[Path]) -> str:
    digest = hashlib.sha256()
    for path in files:
        try:
            with open(path, "rb") as file:
                hashlib.file_digest(file, lambda: digest)
        except OSError as error:
            raise NpukitError(f"cannot read the file: {error.strerror}", where=str(path)) from None
    return digest.hexdigest()

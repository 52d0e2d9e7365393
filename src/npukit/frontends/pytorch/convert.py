# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""The side of the PyTorch front end that needs no torch: from a PyTorch file to an ONNX file in a temporary folder."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from npukit.errors import MissingDependency
from npukit.files import sha256_file, temporary_folder
from npukit.frontends.exported import Exported, new_folder
from npukit.frontends.pytorch import archive, script
from npukit.frontends.pytorch.kinds import EXPORT, PICKLE, SCRIPT, kind_of, refuse_pickle
from npukit.log import progress_sink, report
from npukit.worker import Worker

EXTRA = "pip install 'npukit[torch]'"
_MEMORY = 6 << 30  # of torch's process, besides 16 times the file: what a sound model comes nowhere near
_SECONDS = 900.0  # that torch may take, besides a second for each MB

_made: dict[tuple[object, ...], Exported] = {}
_lock = threading.Lock()


def as_onnx(
    path: Path,
    *,
    shapes: Mapping[str, tuple[int, ...]] | None = None,
    allow_pickle: bool = False,
    compare: bool = True,
    timeout: float | None = None,
) -> Exported | None:
    """The ONNX of a PyTorch file, made by torch.onnx's exporter in a process of its own; None for any other file.

    Asked again for the same file, it gives the same result.

    Args:
        path: the file.
        shapes: shapes of inputs, for a file that does not say them (TorchScript) and for comparing.
        allow_pickle: read the file also where that runs Python code that is in it.
        compare: run PyTorch and the exported ONNX on the same inputs.
        timeout: seconds that all of it may take; None: a quarter of an hour, and a second for each MB.

    Raises:
        ModelError: the file holds no program, is damaged, or would run code.
        MissingDependency: torch is not installed.
        WorkerDied: torch crashed, or took too long or too much memory.
    """
    kind = kind_of(path)
    if kind is None:
        return None
    state = path.stat()
    key = (path.resolve(), state.st_mtime_ns, state.st_size, allow_pickle, tuple(sorted((shapes or {}).items())))
    with _lock:
        if key not in _made:
            _made[key] = _export(
                path, kind, dict(shapes or {}), allow_pickle=allow_pickle, compare=compare, limit=timeout
            )
        return _made[key]


def _export(
    path: Path,
    kind: str,
    shapes: dict[str, tuple[int, ...]],
    *,
    allow_pickle: bool,
    compare: bool,
    limit: float | None,
) -> Exported:
    refuse_code(path, kind, allow_pickle=allow_pickle)
    need_torch(path)
    folder = new_folder()
    environment = {} if allow_pickle else {"TORCH_FORCE_WEIGHTS_ONLY_LOAD": "1"}
    environment["TORCHINDUCTOR_CACHE_DIR"] = str(folder / "torch")  # else torch leaves a folder in /tmp
    report("exporting from PyTorch", 0.0)
    size = path.stat().st_size
    with Worker(timeout=limit or _SECONDS + size / 1e6, memory_limit=_MEMORY + 16 * size, env=environment) as worker:
        function = "npukit.frontends.pytorch.export:export_file"
        names = (path, kind, folder / f"{path.stem}.onnx", shapes, allow_pickle, compare)
        notes = worker.call(function, *names, progress=progress_sink())
    if allow_pickle:
        notes = ["pickles in the file were allowed to run (--allow-pickle)", *notes]
    return Exported(folder / f"{path.stem}.onnx", tuple(notes), partial(sha256_file, path))


def refuse_code(path: Path, kind: str, *, allow_pickle: bool = False) -> None:
    """Refuse a file of a `kind` that is damaged, or that torch could not read without running what it says.

    Raises:
        ModelError: why it is refused.
    """
    if kind == EXPORT:
        archive.check_archive(path, allow_pickle=allow_pickle)
    elif kind == SCRIPT:
        script.check_script(path, allow_pickle=allow_pickle)
    elif kind == PICKLE and not allow_pickle:
        raise refuse_pickle(path)


def need_torch(path: Path | None = None) -> None:
    """Raise a sentence where torch is not installed; torch is not imported."""
    import importlib.util

    if importlib.util.find_spec("torch") is None:
        raise MissingDependency(
            "a PyTorch model is read by torch, which is not installed",
            where="" if path is None else str(path),
            hint=f"{EXTRA}; or export it to ONNX where torch is",
        )


def export_object(
    model: Any, example_inputs: Any, dynamic_shapes: Any, shapes: Mapping[str, tuple[int, ...]], *, run: bool
) -> Exported:
    """The ONNX of a `torch.nn.Module` or `ExportedProgram` in memory, made in this process; see `as_onnx`.

    The caller removes the folder of the file.

    Raises:
        NpukitError: it is neither, inputs are missing, or it cannot be exported.
    """
    need_torch()
    from npukit.frontends.pytorch import export

    folder = Path(temporary_folder())
    try:
        name = "model" if hasattr(model, "graph_signature") else type(model).__name__
        path = folder / f"{name}.onnx"
        notes = export.export_object(model, example_inputs, dynamic_shapes, path, shapes, run=run)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    return Exported(path, tuple(notes), partial(sha256_file, path))

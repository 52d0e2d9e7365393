# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""`npukit doctor`: the libraries found, where, their versions, what each backend can do here, and what is missing."""

from __future__ import annotations

import platform
import sys
import time
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import npukit
from npukit import log
from npukit.analysis import text
from npukit.errors import MissingDependency, NpukitError
from npukit.verbs.isolate import isolated
from npukit.verbs.libs import library_rows, library_table
from npukit.verbs.options import opt, verb

_PACKAGES = ("numpy", "ml_dtypes", "onnx", "onnx-ir", "onnxscript", "onnxruntime", "onnxruntime-qnn", "typer", "jinja2")
_BACKENDS = {
    "ort": "runs .onnx, and .dlc raised to ONNX",
    "qnn-cpu": "runs .dlc and .onnx",
    "qnn-htp": "",
    "qnn-gpu": "runs .dlc and .onnx",
    "ort-qnn": "runs .onnx by ONNX Runtime's QNN provider",
    "litert": "runs .tflite by TensorFlow Lite's interpreter",
    "acl": "runs .om on an Ascend chip, through pyACL",
}


@dataclass(frozen=True)
class DoctorOptions:
    """Show the libraries found, their versions, what each backend can do here, and what to do about what is missing.

    Each backend computes a small graph in a worker. Exits 3 when none works.
    """

    run: bool = opt(True, "Try each backend.", "--run/--no-run")
    timeout: float = opt(60.0, "Seconds that a backend may take.")


@dataclass(frozen=True)
class DoctorResult:
    """What was found.

    Attributes:
        machine: operating system, machine and Python.
        libraries: rows of `npukit libs`.
        packages: versions of the packages npukit stands on; empty where one is not installed.
        backends: one object a backend: name, state ("works", "fails", "missing", "not tried"), detail, hint, seconds.
        licences: paths of Qualcomm's agreement.
        cann: version and folder of CANN, with which .om files are compiled; empty where it is not installed.
        cann_note: what is wrong with it; empty if nothing.
        folders: where libraries are looked for, in order.
    """

    machine: str
    libraries: tuple[dict[str, Any], ...]
    packages: dict[str, str]
    backends: tuple[dict[str, Any], ...]
    licences: tuple[str, ...]
    cann: str
    cann_note: str
    folders: tuple[tuple[str, str], ...]

    @property
    def exit_code(self) -> int:
        return 3 if all(row["state"] in ("fails", "missing") for row in self.backends) else 0

    def to_json(self) -> dict[str, Any]:
        return {
            "npukit": npukit.__version__,
            "machine": self.machine,
            "packages": self.packages,
            "libraries": list(self.libraries),
            "backends": list(self.backends),
            "licences": list(self.licences),
            "cann": self.cann,
            "cann_note": self.cann_note,
            "folders": [{"source": source, "folder": folder} for source, folder in self.folders],
        }

    def to_text(self) -> str:
        packages = ", ".join(f"{name} {version or 'MISSING'}" for name, version in self.packages.items())
        rows = [(row["backend"], row["state"], row["detail"]) for row in self.backends]
        lines = [
            f"npukit {npukit.__version__} on {self.machine}",
            packages,
            "",
            library_table(self.libraries),
            *(f"Qualcomm's agreement: {path}" for path in self.licences),
            f"CANN: {self.cann or self.cann_note or 'not installed (needed to compile and run .om files)'}",
            *([f"CANN: {self.cann_note}"] if self.cann and self.cann_note else []),
            "",
            text.table(("backend", "", ""), rows),
        ]
        lines += [f"{row['backend']}: {row['hint']}" for row in self.backends if row["hint"]]
        return "\n".join(lines)


@verb(DoctorOptions)
def doctor(options: DoctorOptions) -> DoctorResult:
    """Look for Qualcomm's libraries and try each backend on a small graph.

    Example:
        >>> [row["backend"] for row in npukit.doctor(run=False).backends]
        ['ort', 'qnn-cpu', 'qnn-htp', 'qnn-gpu', 'ort-qnn', 'litert', 'acl']
    """
    from npukit.qnn.api import libraries

    backends = []
    for i, name in enumerate(_BACKENDS):
        log.report(f"trying {name}", i / len(_BACKENDS))
        backends.append(_try(name, options))
    rows = library_rows()
    places = sorted({Path(row["path"]).parent for row in rows})
    return DoctorResult(
        machine(),
        rows,
        packages(),
        tuple(backends),
        tuple(str(p) for place in places for p in _licences(place)),
        *_cann(),
        tuple((source, str(folder)) for source, folder in libraries.folders()),
    )


def _cann() -> tuple[str, str]:
    """Version and folder of CANN, and what is wrong with it."""
    from npukit.ascend import cann

    try:
        found = cann.find()
    except MissingDependency as error:
        wrong = [str(fault) for fault in error.faults if "=" in fault.where]  # a variable that leads nowhere
        return "", "; ".join(wrong)
    note = "" if found.kernels("ascend310p") else "it has no kernels for the 310P: install its kernels package"
    return f"{found.version or 'unknown version'} in {found.root} (by {found.source})", note


def _licences(folder: Path) -> list[Path]:
    found = sorted(p for p in folder.iterdir() if "LICENSE" in p.name.upper() and p.is_file())
    # The wheel also holds the licence of ONNX Runtime, which is another matter.
    return [p for p in found if "qualcomm" in p.name.lower()] or found


def _try(name: str, options: DoctorOptions) -> dict[str, Any]:
    row: dict[str, Any] = {"backend": name, "state": "not tried", "detail": "", "hint": "", "seconds": None}
    if not options.run:
        return row
    start = time.perf_counter()
    try:
        with isolated(timeout=options.timeout) as call:
            detail = call("npukit.verbs.doctor:_probe", name)
    except NpukitError as error:
        state = "missing" if isinstance(error, MissingDependency) else "fails"
        return {**row, "state": state, "detail": error.what, "hint": error.hint}
    return {**row, "state": "works", "detail": detail, "seconds": round(time.perf_counter() - start, 2)}


def _probe(name: str) -> str:
    """Compute relu(x) on a backend; what it can do here, or a NpukitError."""
    import numpy as np
    import onnx

    from npukit.errors import NativeError
    from npukit.runtime.session import Session

    if name == "litert":  # it runs no ONNX: what can be asked is whether it loads
        from npukit.runtime import litert

        return f"{_can(name)} ({litert.version()})"
    if name == "acl":  # nor does it; whether the device answers
        from npukit.runtime import acl

        return f"{_can(name)} ({acl.version()})"
    node = onnx.helper.make_node("Relu", ["x"], ["y"])
    info = onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph([node], "probe", [info("x", 1, [1, 8])], [info("y", 1, [1, 8])])
    opset = [onnx.helper.make_opsetid("", 17)]
    model = onnx.helper.make_model(graph, opset_imports=opset, ir_version=8).SerializeToString()
    x = np.linspace(-4, 4, 8, dtype=np.float32)[None]
    with Session(model, backend=name, in_process=True) as session:
        y = session.run({"x": x})["y"]
        if not np.allclose(y, np.maximum(x, 0), atol=1e-2):
            raise NativeError(f"computes wrong numbers: relu({x[0].tolist()}) = {y[0].tolist()}")
        return f"{_can(name)} ({session.library})"


def _can(name: str) -> str:
    if name != "qnn-htp":
        return _BACKENDS[name]
    from npukit.qnn.api.backend import on_device

    if on_device():
        return "runs .dlc, .onnx and context binaries on the NPU, compiles"
    return "emulates the NPU: runs .dlc, .onnx and context binaries (slowly, with its numbers), compiles for any chip"


def version_line() -> str:
    """`npukit 0.1.0, QAIRT 2.47.0.2606 from FOLDER`, as `--version` prints it."""
    head = f"npukit {npukit.__version__}"
    try:
        from npukit.qnn.api.libraries import find

        library = find("ir")
    except NpukitError:
        return f"{head}, no QAIRT library found (see `npukit doctor`)"
    return f"{head}, QAIRT {library.build_id} from {library.path.parent}"


def packages() -> dict[str, str]:
    """Versions of the packages that npukit stands on; empty where one is not installed."""
    found = {}
    for name in _PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = ""
    return found


def machine() -> str:
    """Operating system, machine and Python in one line."""
    return f"{platform.system()} {platform.machine()}, Python {platform.python_version()} ({sys.executable})"

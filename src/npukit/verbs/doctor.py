# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""`npukit doctor`: the libraries found, where, their versions, what each backend can do here, and what is missing."""

from __future__ import annotations

import platform
import sys
from dataclasses import dataclass
from importlib import metadata

import npukit
from npukit.errors import NpukitError
from npukit.verbs.options import opt

_PACKAGES = ("numpy", "onnx", "onnx-ir", "onnxscript", "onnxruntime", "onnxruntime-qnn", "ml_dtypes", "jinja2", "typer")


@dataclass(frozen=True)
class DoctorOptions:
    """Show the libraries found, their versions, what each backend can do here, and what to do about what is missing.

    Exits 3 when no backend works.
    """

    run: bool = opt(True, "Try each backend on a small graph (in a worker).", "--run/--no-run")


def version_line() -> str:
    """`npukit 0.1.0, QAIRT 2.47 (core API 2.36) from FOLDER`, as `--version` prints it."""
    head = f"npukit {npukit.__version__}"
    try:
        from npukit.qnn.api.libraries import find

        library = find("system")
    except (ImportError, NpukitError):
        return f"{head}, no QAIRT library found (see `npukit doctor`)"
    core = ".".join(map(str, library.core_version))
    return f"{head}, QAIRT {library.build_id} (QNN API {core}) from {library.path.parent}"


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

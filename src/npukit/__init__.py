# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""npukit takes a trained network to an NPU and proves that it still works.

Every verb of the `npukit` command is a function of the same name here, with the same options. Names are loaded
when they are first used: `import npukit` alone imports nothing heavy.
"""

from __future__ import annotations

import importlib
import os
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

# ONNX Runtime's wheels from 1.31 on report usage to Microsoft unless this is set before they are imported.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

if TYPE_CHECKING:
    from npukit import errors
    from npukit.errors import NpukitError
    from npukit.policies.policy import Policy
    from npukit.runtime.session import Session
    from npukit.verbs.bench import bench
    from npukit.verbs.compile import compile
    from npukit.verbs.convert import convert
    from npukit.verbs.diff import diff
    from npukit.verbs.doctor import doctor
    from npukit.verbs.encodings import encodings
    from npukit.verbs.export import export
    from npukit.verbs.inspect import inspect
    from npukit.verbs.libs import libs
    from npukit.verbs.lint import lint
    from npukit.verbs.quantize import quantize
    from npukit.verbs.run import run
    from npukit.verbs.verify import verify

# Public name -> module that defines it. The verb `targets` is not here: `npukit.targets` is the table of chips.
_HOMES = {
    "NpukitError": "npukit.errors",
    "Policy": "npukit.policies.policy",
    "Session": "npukit.runtime.session",
    "bench": "npukit.verbs.bench",
    "compile": "npukit.verbs.compile",
    "convert": "npukit.verbs.convert",
    "diff": "npukit.verbs.diff",
    "doctor": "npukit.verbs.doctor",
    "encodings": "npukit.verbs.encodings",
    "export": "npukit.verbs.export",
    "inspect": "npukit.verbs.inspect",
    "libs": "npukit.verbs.libs",
    "lint": "npukit.verbs.lint",
    "quantize": "npukit.verbs.quantize",
    "run": "npukit.verbs.run",
    "verify": "npukit.verbs.verify",
}

__all__ = [
    "NpukitError",
    "Policy",
    "Session",
    "__version__",
    "bench",
    "compile",
    "convert",
    "diff",
    "doctor",
    "encodings",
    "errors",
    "export",
    "inspect",
    "libs",
    "lint",
    "quantize",
    "run",
    "verify",
]


def __getattr__(name: str) -> Any:
    if name == "errors":
        return importlib.import_module("npukit.errors")
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'npukit' has no attribute {name!r}")
    value = getattr(importlib.import_module(home), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})

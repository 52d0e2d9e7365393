# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""Functions that misbehave on purpose, run in a worker process by the tests and by `npukit doctor`."""

from __future__ import annotations

import contextlib
import ctypes
import logging
import os
import signal
import sys
import time
from typing import Any

from npukit import log
from npukit.errors import Fault, ModelError
from npukit.worker import at_most, note


def echo(*args: Any, **kwargs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments as they arrived."""
    return args, kwargs


def pid() -> int:
    """Process id of the worker."""
    return os.getpid()


def modules() -> list[str]:
    """Names of the modules that the worker has imported."""
    return sorted(sys.modules)


def symbolic() -> tuple[bool, str]:
    """Whether onnx_ir came without sympy, and a sum that needs it."""
    import onnx_ir

    without = "sympy.core" not in sys.modules
    return without, str(onnx_ir.SymbolicDim("n") + 1)


def die(name: str = "SIGSEGV") -> None:
    """End this process by a signal, as a crash in native code would."""
    note("graphFinalize 'probe'")
    os.write(1, b"native line before the end\n")
    os.kill(os.getpid(), getattr(signal, name))
    time.sleep(5)


def leave(status: int) -> None:
    """End this process by exit()."""
    os._exit(status)


def hang(seconds: float, limit: float | None = None) -> None:
    """Not answer for some time; with `limit` only as long as that allows."""
    note("graphExecute 'probe'")
    with contextlib.nullcontext() if limit is None else at_most(limit):
        time.sleep(seconds)


def seize(seconds: int, limit: float) -> None:
    """As `hang`, with nothing of Python running meanwhile: as in native code that has damaged the process."""
    note("graphExecute 'probe'")
    with at_most(limit):
        ctypes.PyDLL(None).sleep(seconds)  # keeps the interpreter's lock


def allocate(size: int) -> int:
    """Touch `size` bytes of memory."""
    blocks = []
    for _ in range(size >> 24):
        blocks.append(b"\1" * (1 << 24))
        time.sleep(0.005)
    return len(blocks)


def speak(text: str) -> None:
    """Print to descriptors 1 and 2, and log."""
    os.write(1, f"{text} on 1\n".encode())
    os.write(2, f"{text} on 2\n".encode())
    logging.getLogger("npukit.probe").warning("%s logged", text)


def work(steps: int) -> int:
    """Report progress `steps` times."""
    for step in range(steps):
        log.report("working", (step + 1) / steps)
    return steps


def refuse() -> None:
    """Raise an error of npukit, with faults."""
    raise ModelError(
        "two nodes cannot be", where="m.onnx", hint="change them", faults=[Fault("a", "n1", "h"), Fault("b")]
    )


def fault() -> None:
    """Raise an exception that npukit does not expect."""
    raise ZeroDivisionError("by intent")


def no_file() -> None:
    """Raise an OSError."""
    raise FileNotFoundError(2, "No such file or directory", "absent.onnx")

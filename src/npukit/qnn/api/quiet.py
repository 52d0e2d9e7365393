# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""Keeps what Qualcomm's libraries print to descriptors 1 and 2 off this process's own output."""

from __future__ import annotations

import contextlib
import ctypes
import logging
import os
import sys
import tempfile
import threading
from collections.abc import Iterator
from typing import Any

from npukit import worker

native_log = logging.getLogger("npukit.native")

_quiet = threading.RLock()
_depth = 0


@contextlib.contextmanager
def quiet_fds() -> Iterator[None]:
    """Keeps what native code prints to fds 1 and 2 off the process's own output; its lines become DEBUG records.

    In a worker nothing is done: its fds are pipes already. The diversion is process-wide, so other threads' prints in
    the meantime are caught too. Nested uses are no-ops; a process without valid fds is left alone.
    """
    global _depth
    if worker.in_worker():
        yield
        return
    with _quiet:
        _depth += 1
        try:
            saved = _divert() if _depth == 1 else None
            if saved is None:
                yield
                return
            sink, copies = saved
            try:
                yield
            finally:
                _restore(sink, copies)
        finally:
            _depth -= 1


def _divert() -> tuple[Any, list[int]] | None:
    _flush()
    try:
        copies = [os.dup(1), os.dup(2)]
    except OSError:
        return None
    sink = tempfile.TemporaryFile()  # noqa: SIM115 (closed in _restore)
    for fd in (1, 2):
        os.dup2(sink.fileno(), fd)
    return sink, copies


def _restore(sink: Any, copies: list[int]) -> None:
    _flush()
    for fd, copy in zip((1, 2), copies, strict=True):
        os.dup2(copy, fd)
        os.close(copy)
    with sink:
        if native_log.isEnabledFor(logging.DEBUG):
            sink.seek(0)
            for line in sink.read(1 << 20).decode("utf-8", "replace").splitlines():
                if line.strip():
                    native_log.debug("%s", line.rstrip())


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):
            stream.flush()
    with contextlib.suppress(Exception):
        (ctypes.cdll.msvcrt if sys.platform == "win32" else ctypes.CDLL(None)).fflush(None)

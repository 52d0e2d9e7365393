# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""The worker process: `python -m npukit._worker`, started by `npukit.worker.Worker` and by nothing else.

Descriptor 0 and 1 carry the protocol; before anything else runs they are moved out of the way, so that native
code that prints or reads cannot touch them. One thread reads frames and ends the process when the parent is gone;
the main thread runs the calls.
"""

from __future__ import annotations

import faulthandler
import importlib.abc
import importlib.machinery
import importlib.util
import logging
import mmap
import os
import queue
import shutil
import signal
import sys
import tempfile
import threading
import traceback
from collections.abc import Sequence
from types import ModuleType
from typing import Any, BinaryIO

from npukit import _wire, log, worker
from npukit.errors import NpukitError

_ADDRESS_SPACE_MARGIN = 16 << 30  # what libraries reserve without using it; see `_limit_memory`


class _Lazy(importlib.abc.MetaPathFinder):
    """Runs some modules only when one of their names is used.

    onnx_ir imports sympy (0.6 s and 35 MB, measured) for the arithmetic of symbolic dimensions, which a conversion
    seldom needs. Only done in this process, which is our own and has one thread that imports.
    """

    names = frozenset(("sympy", "onnx_ir._symbolic_shapes"))

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname not in self.names:
            return None
        spec = importlib.machinery.PathFinder.find_spec(fullname, path, target)
        if spec is not None and spec.loader is not None:
            spec.loader = importlib.util.LazyLoader(spec.loader)
        return spec


class _Channel:
    """The sending half; frames of several threads must not mix."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self._lock = threading.Lock()
        self.folder = ""

    def send(self, message: dict[str, Any]) -> None:
        try:
            with self._lock:
                _wire.send(self._stream, message, self.folder)
        except BrokenPipeError:
            os._exit(0)  # the parent is gone


class _Forward(logging.Handler):
    """Sends log records to the parent, where the user's handlers are."""

    def __init__(self, channel: _Channel) -> None:
        super().__init__()
        self._channel = channel

    def emit(self, record: logging.LogRecord) -> None:
        self._channel.send({"log": [record.name, record.levelno, record.getMessage()]})


def main() -> None:
    """Serve calls until the parent says end, or is gone."""
    source = os.fdopen(os.dup(0), "rb", buffering=1 << 16)
    channel = _Channel(os.fdopen(os.dup(1), "wb"))
    channel.folder = "".join(sys.argv[1:2])  # known before the first frame: the parent may be gone by then
    tempfile.tempdir = channel.folder or None  # what a killed process leaves goes with its folder
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    os.dup2(2, 1)
    faulthandler.enable()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent decides
    if hasattr(signal, "SIGALRM"):
        signal.signal(signal.SIGALRM, signal.SIG_DFL)  # whatever was inherited: see `worker.at_most`
    _line_buffer()
    sys.meta_path.insert(0, _Lazy())
    calls: queue.SimpleQueue[tuple[Any, Any] | None] = queue.SimpleQueue()
    threading.Thread(target=_listen, args=(source, calls, channel), daemon=True).start()
    while (frame := calls.get()) is not None:
        message = _wire.decode(*frame) if "call" not in _keys(frame[0]) else None
        if message is not None:
            _hello(channel, message)
        else:
            _serve(channel, frame)
    # Python's own teardown of what was imported takes up to 0.1 s, and frees what the system frees at once.
    os._exit(0)


def _keys(encoded: Any) -> set[str]:
    return {pair[0] for pair in encoded["d"]}


def _listen(source: BinaryIO, calls: queue.SimpleQueue[tuple[Any, Any] | None], channel: _Channel) -> None:
    while True:
        try:
            frame = _wire.receive(source)
        except (_wire.WireError, OSError):
            os._exit(1)
        if frame is None:
            # The parent is gone, whatever the main thread is doing; if it was killed, its folder is still there.
            if channel.folder:
                shutil.rmtree(channel.folder, ignore_errors=True)
            os._exit(0)
        if "end" in _keys(frame[0]):
            calls.put(None)
            return
        calls.put(frame)


def _hello(channel: _Channel, message: dict[str, Any]) -> None:
    channel.folder = message["folder"]
    with open(message["note"], "r+b") as file:
        worker.note_into(mmap.mmap(file.fileno(), 0))
    logger = logging.getLogger("npukit")
    logger.addHandler(_Forward(channel))
    logger.setLevel(message["level"])
    logger.propagate = False
    if message["memory_limit"]:
        _limit_memory(message["memory_limit"])


def _serve(channel: _Channel, frame: tuple[Any, Any]) -> None:
    frame_ids = frame[0]["d"]
    number = next(value for key, value in frame_ids if key == "id")
    try:
        message = _wire.decode(*frame)
        function = _wire.resolve(message["call"])
        with log.progress_to(lambda what, share: channel.send({"progress": [what, share]})):
            result = function(*message["args"], **message["kwargs"])
        del message
        channel.send({"id": number, "result": result})
    except MemoryError:
        channel.send({"id": number, "memory": True})
    except NpukitError as error:
        channel.send({"id": number, "error": error})
    except OSError as error:
        channel.send({"id": number, "os": [error.errno, error.strerror, error.filename], **_fault(error)})
    except BaseException as error:  # a fault in npukit: its traceback goes into the parent's report
        channel.send({"id": number, **_fault(error)})
    _flush()


def _fault(error: BaseException) -> dict[str, Any]:
    text = "".join(traceback.format_exception(error))
    return {"fault": [type(error).__name__, str(error), text]}


def _limit_memory(limit: int) -> None:
    """A backstop to the parent's watch on resident memory, for an allocation too sudden for it.

    The limit is on address space, of which libraries reserve more than they use (libQnnHtp: 1.5 GB for 0.1 GB of its
    own, measured) and in which mapped model files count too, hence the margin.
    """
    try:
        import resource
    except ImportError:  # Windows
        return
    bound = limit + _ADDRESS_SPACE_MARGIN
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    if hard != resource.RLIM_INFINITY:
        bound = min(bound, hard)
    resource.setrlimit(resource.RLIMIT_AS, (bound, hard))


def _line_buffer() -> None:
    """Make libc's stdout line-buffered: on a pipe it would keep lines back, and lose them in a crash."""
    if sys.platform != "linux":
        return
    import ctypes

    libc = ctypes.CDLL(None)
    stdout = ctypes.c_void_p.in_dll(libc, "stdout")
    libc.setvbuf(stdout, None, 1, 0)


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        stream.flush()


if __name__ == "__main__":
    main()

# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""Run a function of npukit in a child process, because the native code below it may crash, hang or eat memory.

`Worker.call("npukit.module:function", ...)` behaves as the call itself would, with the same errors; the death of
the child becomes a `WorkerDied` that names the signal or limit, the call, and the last `note` of the native layer.
The child is `sys.executable -m npukit._worker` with pipes: neither fork nor multiprocessing, so a script without
a `__main__` guard, a notebook and Windows work alike.
"""

from __future__ import annotations

import collections
import contextlib
import logging
import math
import mmap
import os
import queue
import re
import shutil
import signal
import struct
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

from npukit import _wire, files, log
from npukit.errors import MissingDependency, NpukitError, UsageError, WorkerDied

_native = logging.getLogger(log.NATIVE)

_NOTE_SIZE = 4096
_NOTE_HEAD = struct.Struct("<I")
_DEADLINE = struct.Struct("<d")  # at the end of the note
_CLOSE_SECONDS = 5.0
_ALARM_SECONDS = 5.0  # that a worker gives its parent to end it, see `at_most`
_MEMORY_POLL_SECONDS = 0.05
# Without a limit the wait is still cut into pieces: for `at_most`, and on Windows a bare wait does not see Ctrl-C.
_WAIT_SECONDS = 0.5 if os.name == "nt" else 2.0
_WINDOWS_DEATHS = {0xC0000005: "access violation", 0xC00000FD: "stack overflow", 0xC0000409: "stack damage",
                   0xC000001D: "illegal instruction", 0xC0000017: "out of memory"}  # fmt: skip


class RemoteFault(Exception):
    """A fault in npukit itself that happened in a worker process.

    Attributes:
        traceback: the traceback there, as text, for the report.
    """

    def __init__(self, kind: str, text: str, traceback: str) -> None:
        super().__init__(f"{kind}: {text}")
        self.traceback = traceback
        self.add_note(f"In the worker process:\n{traceback}")


# ---------------------------------------------------------------- inside the child

_note: mmap.mmap | None = None


def note(text: str) -> None:
    """Leave word of the native call that comes next, for the error if it kills the process. No-op outside a worker."""
    if _note is not None:
        data = text.encode("utf-8", "replace")[: _NOTE_SIZE - _NOTE_HEAD.size - _DEADLINE.size]
        _note[: _NOTE_HEAD.size + len(data)] = _NOTE_HEAD.pack(len(data)) + data


def note_into(buffer: mmap.mmap) -> None:
    """Make `note` write to `buffer`; called by the worker process at its start."""
    global _note
    _note = buffer


@contextlib.contextmanager
def at_most(seconds: float) -> Iterator[None]:
    """Have this worker process ended if the body takes longer: native code loops on some damaged files.

    The parent looks after it, because such a file may leave nothing in this process that works (seen: libc without its
    relocations). It gets a `WorkerDied` with the last `note`. Should the parent have been killed, the system ends this
    process a little later. No-op outside a worker.
    """
    if _note is None:
        yield
        return
    _note[-_DEADLINE.size :] = _DEADLINE.pack(time.monotonic() + seconds)  # one clock for all processes of a machine
    if hasattr(signal, "alarm"):  # not on Windows; nobody handles SIGALRM here, so that it ends the process
        signal.alarm(math.ceil(seconds + _ALARM_SECONDS))
    try:
        yield
    finally:
        if hasattr(signal, "alarm"):
            signal.alarm(0)
        _note[-_DEADLINE.size :] = _DEADLINE.pack(0.0)


def reading_limit(size: int) -> float:
    """Seconds that reading a file of `size` bytes may take before it counts as a loop."""
    return 60.0 + size / 10e6


def in_worker() -> bool:
    """Whether this process is a worker."""
    return _note is not None


# ---------------------------------------------------------------- the parent's side


class Worker:
    """One child process that runs functions of npukit by name, one at a time; calls from several threads queue.

    Args:
        memory_limit: bytes of private resident memory (mapped files do not count) after which the child is
            ended. Watched on Linux; elsewhere only the address space is limited, where the platform can.
        timeout: seconds that a call may take unless it says otherwise; None for no limit.
        env: environment variables to add to this process's.

    Raises:
        MissingDependency: this Python cannot be started again (an embedded one).
    """

    def __init__(
        self, *, memory_limit: int | None = None, timeout: float | None = None, env: dict[str, str] | None = None
    ) -> None:
        self._memory_limit = memory_limit
        self._timeout = timeout
        self._lock = threading.Lock()
        self._number = 0
        self._death: str | None = None
        self._ear = _Ear()
        self._tail = self._ear.tail
        self._frames: queue.SimpleQueue[tuple[Any, Any] | str | None] = queue.SimpleQueue()
        self.folder = files.temporary_folder()
        try:
            note_path = Path(self.folder, "note")
            note_path.write_bytes(bytes(_NOTE_SIZE))
            with open(note_path, "r+b") as file:
                self._note = mmap.mmap(file.fileno(), 0)
            self._process = _start(env, self.folder)
        except BaseException:
            shutil.rmtree(self.folder, ignore_errors=True)
            raise
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        assert self._process.stderr is not None
        self._stdin: BinaryIO = self._process.stdin  # type: ignore[assignment]
        self._finalizer = weakref.finalize(self, _end, self._process, self.folder)
        self._readers = [
            threading.Thread(target=_read_frames, args=(self._process.stdout, self._frames), daemon=True),
            threading.Thread(target=_read_lines, args=(self._process.stderr, self._ear), daemon=True),
        ]
        for reader in self._readers:
            reader.start()
        hello = {
            "folder": self.folder,
            "note": str(note_path),
            "level": logging.getLogger("npukit").getEffectiveLevel(),
            "memory_limit": memory_limit,
        }
        with contextlib.suppress(OSError):  # a child that is already dead is reported by the first call
            _wire.send(self._stdin, hello, self.folder)

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def alive(self) -> bool:
        """Whether the child can take a call."""
        return self._death is None and self._process.poll() is None

    @property
    def pid(self) -> int:
        """Process id of the child."""
        return self._process.pid

    @property
    def stderr_tail(self) -> str:
        """The last lines that the child and its libraries printed."""
        return "\n".join(self._tail)

    def call(
        self,
        function: str,
        /,
        *args: Any,
        timeout: float | None = None,
        progress: Callable[[str, float], None] | None = None,
        **kwargs: Any,
    ) -> Any:
        """Run `function` ("npukit.module:name") in the child with these arguments and return what it returns.

        Values may be None, bool, int, float, str, bytes, list, tuple, dict, set, Path, numpy arrays and scalars
        (ml_dtypes included), and dataclasses and enums of npukit. Arrays that come back are fresh and writable.

        Args:
            function: qualified name; only names below `npukit.` are accepted.
            args: positional arguments of the function.
            timeout: seconds for this call; None for the worker's.
            progress: gets `(what, fraction)` for what the function reports; None for the current listener.
            kwargs: keyword arguments of the function.

        Raises:
            WorkerDied: the child crashed, hung past the timeout or ran out of memory.
            NpukitError: what the function raised, as it raised it.
            OSError: what the function raised.
            RemoteFault: the function raised something else: a fault in npukit.
        """
        if not function.startswith("npukit.") or ":" not in function:
            raise UsageError(f"{function!r} cannot be run in a worker: only 'npukit.module:name' can")
        limit = self._timeout if timeout is None else timeout
        sink = progress or log.progress_sink()
        with self._lock:
            self._number += 1
            message = {"id": self._number, "call": function, "args": list(args), "kwargs": kwargs}
            if self._death is not None:
                raise WorkerDied(f"the worker process has ended: {self._death}", where=function)
            self._clear_note()
            self._ear.sink = sink
            try:
                with contextlib.suppress(BrokenPipeError):  # the wait below says how the child ended
                    _wire.send(self._stdin, message, self.folder)
                return self._await(function, limit, sink)
            except (KeyboardInterrupt, SystemExit, GeneratorExit):
                self._kill("interrupted")
                raise
            finally:
                self._ear.sink = None

    def _await(self, function: str, limit: float | None, sink: Callable[[str, float], None] | None) -> Any:
        deadline = None if limit is None else time.monotonic() + limit
        while True:
            try:
                frame = self._frames.get(timeout=self._wait(deadline))
            except queue.Empty:
                self._check_limits(function, deadline, limit)
                continue
            if frame is None or isinstance(frame, str):
                self._died(function, f"answered with {frame}" if frame else None)
            try:
                reply = _wire.decode(*frame)
            except (_wire.WireError, KeyError, IndexError, ValueError, TypeError) as error:
                self._kill("answered with something unreadable")
                self._died(function, f"answered with something unreadable ({error})")
            if "log" in reply:
                name, level, text = reply["log"]
                logger = logging.getLogger(name)
                if logger.isEnabledFor(level):
                    logger.handle(logger.makeRecord(name, level, "", 0, text, (), None))
            elif "progress" in reply:
                if sink is not None:
                    sink(*reply["progress"])
            elif reply.get("id") == self._number:
                return self._answer(function, reply)

    def _answer(self, function: str, reply: dict[str, Any]) -> Any:
        if "result" in reply:
            return reply["result"]
        if "error" in reply:
            error: NpukitError = reply["error"]
            raise error
        if "memory" in reply:
            self._kill("it ran out of memory")
            limit = f" (limit {self._memory_limit / 2**20:.0f} MiB)" if self._memory_limit else ""
            raise self._error(f"the worker process ran out of memory{limit}", function)
        fault = RemoteFault(*reply["fault"])
        if "os" in reply and reply["os"][0] is not None:
            number, text, path = reply["os"]
            raise OSError(number, text, path) from fault
        raise fault

    # ------------------------------------------------------------ limits and death

    def _wait(self, deadline: float | None) -> float:
        wait = _MEMORY_POLL_SECONDS if self._memory_limit else _WAIT_SECONDS
        return wait if deadline is None else max(0.0, min(wait, deadline - time.monotonic()))

    def _check_limits(self, function: str, deadline: float | None, limit: float | None) -> None:
        if self._memory_limit and (used := memory_of(self.pid)) > self._memory_limit:
            what = f"used {used / 2**20:.0f} MiB, more than the {self._memory_limit / 2**20:.0f} MiB it may"
            self._kill(f"it {what}")
            raise self._error(f"the worker process {what}", function, "raise the memory limit, or use a smaller model")
        (own,) = _DEADLINE.unpack(self._note[-_DEADLINE.size :])
        if own and time.monotonic() >= own:
            self._kill("it took too long")
            raise self._error("the worker process took too long and was ended", function, "the file may be damaged")
        if deadline is not None and time.monotonic() >= deadline:
            what = f"gave no answer within {limit:g} s"
            self._kill(f"it {what}")
            raise self._error(
                f"the worker process {what} and was ended", function, "raise the timeout if it may take longer"
            )

    def _died(self, function: str, reason: str | None) -> NoReturn:
        if reason is not None:
            self._process.kill()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(_CLOSE_SECONDS)
        self._readers[1].join(1.0)  # its last words
        how = reason or _how(self._process.returncode)
        self._kill(how)
        raise self._error(f"the worker process {how}", function)

    def _error(self, what: str, function: str, hint: str = "") -> WorkerDied:
        doing = self._read_note()
        if doing:
            what += f" during {doing}"
        words = next((line for line in reversed(_own_words(self._tail)) if line.strip()), "")
        if words:
            what += f"; the last line it printed: {words.strip()[:300]!r}"
        return WorkerDied(what, where=function.removeprefix("npukit."), hint=hint)

    def _clear_note(self) -> None:
        self._note[: _NOTE_HEAD.size] = bytes(_NOTE_HEAD.size)
        self._note[-_DEADLINE.size :] = bytes(_DEADLINE.size)

    def _read_note(self) -> str:
        (size,) = _NOTE_HEAD.unpack(self._note[: _NOTE_HEAD.size])
        return bytes(self._note[_NOTE_HEAD.size : _NOTE_HEAD.size + size]).decode("utf-8", "replace")

    def _kill(self, why: str) -> None:
        if self._death is None:
            self._death = why
        self._finalizer()

    def close(self) -> None:
        """End the child: it may clean up for a few seconds, then it is killed. Any number of calls is fine."""
        if self._death is None and self._process.poll() is None:
            with contextlib.suppress(OSError, ValueError):
                _wire.send(self._stdin, {"end": True}, self.folder)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(_CLOSE_SECONDS)
        self._kill("it was closed")
        for reader in self._readers:
            if reader is not threading.current_thread():
                reader.join(1.0)


def call(
    function: str,
    /,
    *args: Any,
    timeout: float | None = None,
    memory_limit: int | None = None,
    progress: Callable[[str, float], None] | None = None,
    **kwargs: Any,
) -> Any:
    """Run `function` ("npukit.module:name") in a worker process of its own; see `Worker.call`."""
    with Worker(memory_limit=memory_limit) as worker:
        return worker.call(function, *args, timeout=timeout, progress=progress, **kwargs)


class Pool:
    """Up to `size` workers that are used again and again, and replaced only when they die.

    Args:
        size: how many calls may run at once.
        memory_limit: as for `Worker`.
        timeout: as for `Worker`.
        env: as for `Worker`.
    """

    def __init__(
        self,
        size: int = 2,
        *,
        memory_limit: int | None = None,
        timeout: float | None = None,
        env: dict[str, str] | None = None,
    ) -> None:
        self._options: dict[str, Any] = {"memory_limit": memory_limit, "timeout": timeout, "env": env}
        self._slots = threading.BoundedSemaphore(size)
        self._idle: list[Worker] = []
        self._lock = threading.Lock()
        self._closed = False
        self._threads = ThreadPoolExecutor(size, thread_name_prefix="npukit-pool")
        self.started = 0

    def __enter__(self) -> Pool:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @contextlib.contextmanager
    def worker(self) -> Iterator[Worker]:
        """A worker for several calls in a row; it goes back to the pool, or away if it died."""
        with self._slots:
            with self._lock:
                if self._closed:
                    raise UsageError("the worker pool is closed")
                worker = self._idle.pop() if self._idle else None
            if worker is None or not worker.alive:
                if worker is not None:
                    worker.close()
                worker = Worker(**self._options)
                self.started += 1
            try:
                yield worker
            finally:
                with self._lock:
                    keep = worker.alive and not self._closed
                    if keep:
                        self._idle.append(worker)
                if not keep:
                    worker.close()

    def call(self, function: str, /, *args: Any, **kwargs: Any) -> Any:
        """`Worker.call` on the next free worker."""
        with self.worker() as worker:
            return worker.call(function, *args, **kwargs)

    def submit(self, function: str, /, *args: Any, **kwargs: Any) -> Future[Any]:
        """`call` in the background."""
        return self._threads.submit(self.call, function, *args, **kwargs)

    def map(self, function: str, arguments: Iterable[tuple[Any, ...]], **kwargs: Any) -> list[Future[Any]]:
        """`submit` for each tuple of arguments, in order."""
        return [self.submit(function, *args, **kwargs) for args in arguments]

    def close(self) -> None:
        """Wait for running calls and end all workers."""
        with self._lock:
            self._closed = True
            idle, self._idle = self._idle, []
        for worker in idle:
            worker.close()
        self._threads.shutdown(wait=True, cancel_futures=True)


# ---------------------------------------------------------------- the process


def _start(env: dict[str, str] | None, folder: str) -> subprocess.Popen[bytes]:
    if not sys.executable:
        raise MissingDependency(
            "this Python has no executable, so no worker process can be started",
            hint="use the in-process option",
        )
    variables = {**os.environ, **(env or {})}
    root = Path(__file__).resolve().parents[1]
    if root.name not in ("site-packages", "dist-packages"):  # a source tree; site folders are found anyway
        variables["PYTHONPATH"] = os.pathsep.join(filter(None, [str(root), variables.get("PYTHONPATH", "")]))
    # -P: a file of the working folder must not stand in for a module of the standard library
    return subprocess.Popen(
        [sys.executable, "-P", "-m", "npukit._worker", folder],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=variables,
        creationflags=getattr(subprocess, "CREATE_NO_WINDOW", 0),
    )


def _end(process: subprocess.Popen[bytes], folder: str) -> None:
    """Kill, reap, remove the folder. Must not refer to the Worker: it also runs when that is collected."""
    if process.poll() is None:
        process.kill()
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(_CLOSE_SECONDS)
    if process.stdin is not None:
        with contextlib.suppress(OSError):
            process.stdin.close()
    shutil.rmtree(folder, ignore_errors=True)


def _read_frames(stream: BinaryIO, frames: queue.SimpleQueue[tuple[Any, Any] | str | None]) -> None:
    with stream:
        while True:
            try:
                frame = _wire.receive(stream)
            except (_wire.WireError, OSError, ValueError) as error:
                # the middle of a message: usually because it was killed there
                frames.put(None if "ended" in str(error) else str(error))
                return
            frames.put(frame)
            if frame is None:
                return


class _Ear:
    """What becomes of the lines that the child and its libraries print; apart from the Worker, which may go first."""

    def __init__(self) -> None:
        self.tail: collections.deque[str] = collections.deque(maxlen=60)
        self.sink: Callable[[str, float], None] | None = None
        self._stages = log.Stages()

    def hear(self, line: str) -> None:
        sink, step = self.sink, self._stages.read(line)
        if sink is not None and step is not None:
            with contextlib.suppress(Exception):  # whatever a bar stumbles over, the pipe must be read on
                sink(*step)
        if not self._stages.is_bar(line):
            self.tail.append(line)
            _native.debug("%s", line)


_LINE_END = re.compile(rb"\r\n|\r|\n")  # the library's bars end in a bare \r


def _read_lines(stream: BinaryIO, ear: _Ear) -> None:
    rest = b""
    with stream:
        while data := os.read(stream.fileno(), 1 << 16):
            *lines, rest = _LINE_END.split(rest + data)
            for line in lines:
                ear.hear(line.decode("utf-8", "replace").rstrip())
            if len(rest) > 1 << 16:
                ear.hear(rest.decode("utf-8", "replace").rstrip())
                rest = b""
    if rest:
        ear.hear(rest.decode("utf-8", "replace").rstrip())


def _own_words(tail: Iterable[str]) -> list[str]:
    """What the libraries printed, without Python's own dump of a crash."""
    lines: list[str] = []
    for line in tail:
        if line.startswith("Fatal Python error"):
            break
        lines.append(line)
    return lines


def _how(code: int | None) -> str:
    if code is None:
        return "closed its pipe"
    if code < 0:
        try:
            name = signal.Signals(-code).name
        except ValueError:
            name = f"signal {-code}"
        memory = " (often the system's answer to a lack of memory)" if name == "SIGKILL" else ""
        return f"was ended by {name}{memory}"
    if code & 0xFFFFFFFF in _WINDOWS_DEATHS:
        return f"was ended by an {_WINDOWS_DEATHS[code & 0xFFFFFFFF]}"
    return f"ended by itself with status {code}"


def memory_of(pid: int) -> int:
    """Resident memory of a process without its mapped files; 0 where that cannot be read."""
    try:
        fields = Path(f"/proc/{pid}/statm").read_text(encoding="ascii").split()
        return (int(fields[1]) - int(fields[2])) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, IndexError, ValueError, AttributeError):
        return 0

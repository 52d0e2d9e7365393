# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""Runs atc, Huawei's compiler from ONNX to OM: one process group with limits, ended as a whole, judged by its result.

atc starts helpers of its own (a pool of Python processes that compile operators), so that what is limited and ended is
its session, not one process. Facts: ascend_facts.md 1.1.
"""

from __future__ import annotations

import collections
import contextlib
import logging
import os
import shlex
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from npukit.ascend import atc_errors, atc_options
from npukit.ascend.cann import Cann, environment
from npukit.errors import MissingDependency, NativeError, NpukitError
from npukit.files import os_error

log = logging.getLogger("npukit.native")

_KEPT_LINES = 2_000
_POLL_SECONDS = 0.2
_GRACE_SECONDS = 2.0

# The shell becomes atc. Beside it waits what ends the whole group when our end of its standard input closes, which the
# system does however this process ends: atc runs for hours, and nobody would want it any more.
_WATCHED = 'exec 3<&0; (cat <&3 >/dev/null; kill -KILL 0) >/dev/null 2>&1 & exec "$0" "$@" 3<&- </dev/null'


@dataclass(frozen=True)
class Job:
    """One run of atc, with everything it reads below one folder.

    Attributes:
        model: the .onnx, relative to that folder.
        output: the OM without its ending, relative to it.
        soc_version: the chip, "Ascend310P3".
        options: further options by name, in the order of the command line; files relative to the folder.
        files: those of them that are names of files.
        types: names of the model's nodes by operator type, for errors.
    """

    model: str
    output: str
    soc_version: str
    options: Mapping[str, str] = field(default_factory=dict)
    files: tuple[str, ...] = ()
    types: Mapping[str, Sequence[str]] = field(default_factory=dict)

    @property
    def arguments(self) -> list[str]:
        """The arguments of atc."""
        return atc_options.arguments(self.model, self.output, self.soc_version, self.options)

    def command(self) -> str:
        """The command line for a shell, to be run in the folder."""
        return shlex.join(["atc", *self.arguments])


@dataclass(frozen=True)
class Outcome:
    """What a run of atc gave.

    Attributes:
        om: the OM.
        weights: files with weights that belong to it, in the folder "weight" beside it.
        seconds: how long it took.
        peak: most resident memory of all its processes at once in bytes, looked at every 0.2 s; 0 where unknown.
        warnings: what it warned of.
    """

    om: Path
    weights: tuple[Path, ...]
    seconds: float
    peak: int
    warnings: tuple[str, ...]


def run(
    job: Job,
    folder: Path,
    cann: Cann,
    *,
    where: str = "",
    timeout: float | None = None,
    memory_limit: int | None = None,
    progress: Callable[[str, float], None] | None = None,
) -> Outcome:
    """Run atc in `folder`. It succeeded only if it says so, ends with 0, and the OM is there.

    On Ctrl-C, SIGTERM, an error or a limit all processes that it started are ended before this returns; what it left
    in `folder` is the caller's to remove.

    Args:
        job: what to compile.
        folder: where the job's files lie and the OM will.
        cann: the toolkit.
        where: what an error names as the place; the job's model without.
        timeout: seconds that it may take.
        memory_limit: bytes of memory that its processes may hold together.
        progress: is told the time that has passed and the last line of atc.

    Raises:
        UsageError, GraphError, NativeError, MissingDependency: atc refused the command line, the model, or failed;
            every message of it is a fault. Also: it took too long, too much memory, died, or lied.
    """
    where = where or job.model
    start = time.monotonic()
    with _Session(job, folder, cann) as session, _ended_by_sigterm():
        while session.running(_POLL_SECONDS):
            seconds = time.monotonic() - start
            if progress is not None:
                progress(f"atc, {seconds:.0f} s: {session.last}"[:100], 0.0)
            if timeout is not None and seconds > timeout:
                hint = "give it more with --timeout"
                raise NativeError(f"atc did not end within {timeout:g} s and was ended", where=where, hint=hint)
            if memory_limit is not None and session.peak > memory_limit:
                held, most = session.peak / 2**20, memory_limit / 2**20
                hint = "give it more with --memory-limit; TE_PARALLEL_COMPILER=1 makes it need less"
                raise NativeError(f"atc took {held:.0f} MiB of {most:.0f} MiB and was ended", where=where, hint=hint)
        status, lines = session.status(), session.lines()
    praised = atc_errors.SUCCESS in "\n".join(lines[-200:])
    if status < 0 or status > 128 and status != 255:
        number = -status if status < 0 else status - 128
        name = signal.Signals(number).name if number in {known.value for known in signal.Signals} else str(number)
        killed = "usually the system does that, out of memory: see dmesg"
        hint = killed if name == "SIGKILL" else "--atc-option log=error says more"
        raise NativeError(f"atc was ended by {name}", where=where, hint=hint)
    if status in (126, 127):
        hint = "CANN is for another processor than this machine's, or bash is missing"
        raise MissingDependency(f"atc cannot be started: {' '.join(lines[-1:])}", where=str(cann.atc), hint=hint)
    if status != 0 or not praised:
        raise atc_errors.error(lines, status, where, job.types)
    om = _result(folder, job.output, where)
    weights = tuple(sorted(path for path in (om.parent / "weight").glob("*") if path.is_file()))
    warnings = tuple(atc_errors.warnings(lines))
    return Outcome(om, weights, time.monotonic() - start, session.peak, warnings)


def _result(folder: Path, output: str, where: str) -> Path:
    """The OM: NAME.om, or NAME_linux_x86_64.om where it holds code for the host."""
    base = folder / output
    found = [base.with_name(f"{base.name}.om"), *sorted(base.parent.glob(f"{base.name}_linux_*.om"))]
    for path in found:
        if path.is_file():
            return path
    raise NativeError("atc said that it succeeded, but wrote no OM", where=where, hint="is the disk full?")


class _Session:
    """atc as a process in a session of its own; leaving the block ends whatever is left of it."""

    def __init__(self, job: Job, folder: Path, cann: Cann) -> None:
        self.peak = 0
        self.last = "starting"
        self._lines: collections.deque[str] = collections.deque(maxlen=_KEPT_LINES)
        try:
            self._process = subprocess.Popen(
                ["sh", "-c", _WATCHED, str(cann.atc), *job.arguments],
                cwd=folder,
                env=environment(cann),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        except OSError as error:
            hint = "is there a shell?"
            raise MissingDependency(
                f"atc cannot be started: {error.strerror}", where=str(cann.atc), hint=hint
            ) from error
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def __enter__(self) -> _Session:
        return self

    def __exit__(self, *unused: object) -> None:
        _end(self._process.pid, lambda: self._process.poll() is not None)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(_GRACE_SECONDS)
        if self._process.stdin is not None:
            self._process.stdin.close()

    def _read(self) -> None:
        assert self._process.stdout is not None
        with self._process.stdout as stream:
            for raw in stream:
                line = raw.decode("utf-8", "replace").rstrip()
                log.debug("atc: %s", line)
                self._lines.append(line)
                if line.strip(" ."):
                    self.last = line.strip()

    def running(self, seconds: float) -> bool:
        """Wait a little; whether it still runs."""
        self.peak = max(self.peak, sum(_resident(pid) for pid in _members(self._process.pid)))
        try:
            self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            return True
        return False

    def status(self) -> int:
        """Its exit status, negative for a signal."""
        return self._process.returncode

    def lines(self) -> list[str]:
        """What it printed, the last 2,000 lines; its helpers may still hold the pipe, they are not waited for."""
        self._reader.join(1.0)
        return list(self._lines)


def _end(leader: int, ended: Callable[[], bool]) -> None:
    """End all processes of a session: first asked, then killed."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        members = _members(leader)
        if not members and ended():
            return
        for pid in members or [leader]:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, number)
        deadline = time.monotonic() + (_GRACE_SECONDS if number == signal.SIGTERM else 1.0)
        while time.monotonic() < deadline and (not ended() or _members(leader)):
            time.sleep(0.02)


def _members(leader: int) -> list[int]:
    """The processes of the session that `leader` began, without dead ones; only the leader where there is no /proc."""
    found = []
    try:
        names = os.listdir("/proc")
    except OSError:
        return [leader]
    for name in filter(str.isdigit, names):
        with contextlib.suppress(OSError, IndexError, ValueError):
            text = Path("/proc", name, "stat").read_text("utf-8", "replace")
            state, _, _, session = text.rpartition(")")[2].split()[:4]
            if int(session) == leader and state not in "ZX":
                found.append(int(name))
    return found


def _resident(pid: int) -> int:
    """Resident memory of a process without its mapped files, in bytes; 0 where that cannot be read."""
    with contextlib.suppress(OSError, IndexError, ValueError):
        fields = Path(f"/proc/{pid}/statm").read_text("ascii").split()
        return (int(fields[1]) - int(fields[2])) * os.sysconf("SC_PAGE_SIZE")
    return 0


@contextlib.contextmanager
def _ended_by_sigterm() -> Iterator[None]:
    """Let SIGTERM leave the block as an exit with status 143, so that atc does not outlive this process."""
    if threading.current_thread() is not threading.main_thread() or signal.getsignal(signal.SIGTERM) != signal.SIG_DFL:
        yield
        return

    def leave(number: int, frame: object) -> None:
        raise SystemExit(128 + number)

    signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def check_folder(folder: Path) -> None:
    """Refuse a folder that atc cannot work in because of its path.

    Raises:
        NpukitError: with the characters that it does not take.
    """
    try:
        real = folder.resolve(strict=True)
    except OSError as error:
        raise os_error(error, folder, "use") from error
    if fault := atc_options.path_fault(real):
        hint = "set TMPDIR to a folder with a plain path"
        raise NpukitError(fault, where=str(real), hint=hint)

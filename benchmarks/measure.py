# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""Time and peak memory of a command and of every process that it starts.

The command is started by this file as a program of its own, which imports little: on Linux a new process counts the
memory of the one that started it into its peak (ru_maxrss), so that a large starter would hide small commands.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Cost:
    """What a command took.

    Attributes:
        wall: seconds.
        cpu: seconds of user and system time, child processes included.
        peak: bytes: the sum over its processes of each one's own peak of resident memory, mapped files included.
            An upper bound where there are several, as their peaks need not coincide.
        largest: bytes: the peak of the largest process.
        load: the machine's load average when it began.
        output: what it printed.
    """

    wall: float
    cpu: float
    peak: int
    largest: int
    load: float
    output: str = ""


def measure(command: list[str], *, env: dict[str, str] | None = None) -> Cost:
    """Run a command to its end; RuntimeError with its last words unless it exits 0."""
    done = subprocess.run(
        [sys.executable, "-I", "-S", __file__, *command], env=env, stdin=subprocess.DEVNULL, capture_output=True
    )
    if done.returncode:
        words = done.stderr[-2000:].decode("utf-8", "replace")
        raise RuntimeError(f"{' '.join(command)} exited with {done.returncode}: {words}")
    return Cost(**json.loads(done.stdout), output=done.stderr.decode("utf-8", "replace"))


def python(*arguments: str) -> list[str]:
    """A command of this Python."""
    return [sys.executable, *arguments]


# ---------------------------------------------------------------- as a program


def _main(command: list[str]) -> int:
    load = os.getloadavg()[0]
    peaks: dict[int, int] = {}
    done = threading.Event()
    start = time.perf_counter()
    process = subprocess.Popen(command, stdout=2)
    watcher = threading.Thread(target=_watch, args=(process.pid, peaks, done))
    watcher.start()
    _, status, usage = os.wait4(process.pid, 0)
    wall = time.perf_counter() - start
    process.returncode = os.waitstatus_to_exitcode(status)
    done.set()
    watcher.join()
    largest = usage.ru_maxrss * 1024
    cost = Cost(wall, usage.ru_utime + usage.ru_stime, max(sum(peaks.values()), largest), largest, load)
    sys.stdout.write(json.dumps({name: value for name, value in vars(cost).items() if name != "output"}))
    return process.returncode


def _watch(root: int, peaks: dict[int, int], done: threading.Event) -> None:
    """Note each process's high-water mark every 20 ms: it only grows, so that little is missed at the end."""
    while not done.wait(0.02):
        for pid in [root, *_descendants(root)]:
            try:
                status = Path(f"/proc/{pid}/status").read_text()
            except OSError:
                continue
            if "VmHWM:" in status:
                peaks[pid] = int(status.partition("VmHWM:")[2].split()[0]) * 1024


def _descendants(root: int) -> list[int]:
    found, todo = [], [root]
    while todo:
        pid = todo.pop()
        try:
            tasks = list(Path(f"/proc/{pid}/task").iterdir())
            children = [int(c) for task in tasks for c in (task / "children").read_text().split()]
        except OSError:
            continue
        found += children
        todo += children
    return found


if __name__ == "__main__":
    sys.exit(_main(sys.argv[1:]))

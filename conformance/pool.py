# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""A pool of reused child processes, each replaced only when it dies or hangs.

The child is `python -m conformance.pool`: one JSON object a line in on descriptor 0, one a line out on a private
copy of descriptor 1; what the native libraries print goes to the child's stderr, whose tail is the evidence of a crash.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import selectors
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

ROOT = Path(__file__).resolve().parents[1]

Task = dict[str, Any]
Result = dict[str, Any]


class Worker:
    """One child process; `run` starts it when it is not there."""

    def __init__(self, timeout: float) -> None:
        self.timeout = timeout
        self._process: subprocess.Popen[bytes] | None = None
        self._files = contextlib.ExitStack()
        self._stderr: Any = None
        self._count = 0

    @property
    def fresh(self) -> bool:
        """Whether the child has done at most one task."""
        return self._count <= 1

    def run(self, task: Task) -> Result:
        """The child's answer to `task`; status "crash" with evidence where it died or took too long."""
        if self._process is None:
            self._start()
        process = self._process
        assert process is not None
        assert process.stdin is not None
        assert process.stdout is not None
        self._count += 1
        try:
            process.stdin.write(json.dumps(task).encode() + b"\n")
            process.stdin.flush()
            with selectors.DefaultSelector() as selector:
                selector.register(process.stdout, selectors.EVENT_READ)
                ready = selector.select(self.timeout)
            line = process.stdout.readline() if ready else None
        except BrokenPipeError:
            line = b""
        if line:
            return dict(json.loads(line))
        return self._died("no answer within the time limit" if line is None else None)

    def _start(self) -> None:
        self._stderr = self._files.enter_context(tempfile.TemporaryFile())  # noqa: SIM115 - closed by close()
        self._count = 0
        self._process = subprocess.Popen(
            [sys.executable, "-m", "conformance.pool"],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._stderr,
        )

    def _died(self, what: str | None) -> Result:
        assert self._process is not None
        if what is not None:
            self._process.kill()
        code = self._process.wait()
        what = what or (f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit status {code}")
        self._stderr.seek(max(0, self._stderr.seek(0, os.SEEK_END) - 2000))
        tail = self._stderr.read().decode(errors="replace").strip().splitlines()[-3:]
        self.close()
        return {"status": "fail", "reason": "crash", "evidence": " | ".join([what, *tail])[:500]}

    def close(self) -> None:
        """End the child."""
        if self._process is None:
            return
        if self._process.stdin is not None:
            self._process.stdin.close()
        try:
            self._process.wait(5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        if self._process.stdout is not None:
            self._process.stdout.close()
        self._files.close()
        self._process = None


def run_all(
    units: Iterable[list[Task]], *, jobs: int, timeout: float, done: Callable[[list[Task], Result], None]
) -> None:
    """Run every unit: its tasks in order until one passes. `done(unit, result)` is called under a lock.

    A failure that an earlier task in the same child may have caused (a crash, a refusal by the library) is tried once
    more in a new child, and only that second result counts.
    """
    pending: queue.SimpleQueue[list[Task]] = queue.SimpleQueue()
    for unit in units:
        pending.put(unit)
    lock = threading.Lock()
    threads = [threading.Thread(target=_drain, args=(pending, timeout, done, lock)) for _ in range(jobs)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def _drain(
    pending: queue.SimpleQueue[list[Task]],
    timeout: float,
    done: Callable[[list[Task], Result], None],
    lock: threading.Lock,
) -> None:
    worker = Worker(timeout)
    try:
        while True:
            try:
                unit = pending.get_nowait()
            except queue.Empty:
                return
            result = run_unit(worker, unit)
            with lock:
                done(unit, result)
    finally:
        worker.close()


def run_unit(worker: Worker, unit: list[Task]) -> Result:
    """The first passing result of the unit's tasks, else the first result."""
    first: Result | None = None
    for task in unit:
        result = _run_task(worker, task)
        if result["status"] == "same":
            continue
        if result["status"] == "pass":
            return result
        if first is None or (first["status"] == "folded" and result["status"] == "fail"):
            first = result
    return first or {"status": "folded", "variant": unit[0]["variant"]}


def _run_task(worker: Worker, task: Task) -> Result:
    result = worker.run(task)
    if _may_be_left_over(result) and not (worker.fresh and worker._process is not None):
        worker.close()
        again = worker.run(task)
        result = {**again, "retried": True}
    return {**result, "variant": task["variant"]}


def _may_be_left_over(result: Mapping[str, Any]) -> bool:
    died = result.get("reason") == "crash" and not result.get("internal")
    return bool(result.get("native")) or (died and "time limit" not in result.get("evidence", ""))


def _child(requests: BinaryIO, answers: BinaryIO) -> None:
    from conformance import execute

    for line in requests:
        result = execute.run(**json.loads(line))
        answers.write(json.dumps(result).encode() + b"\n")
        answers.flush()


def _main() -> None:
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    _child(sys.stdin.buffer, answers)
    answers.flush()
    os._exit(0)  # the libraries' own teardown at exit proves nothing here


if __name__ == "__main__":
    _main()

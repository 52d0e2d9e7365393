# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""`python -m benchmarks.soak`: many runs, many sessions, many threads; memory and descriptors must not grow.

Memory is looked at after a first tenth, when caches and pools have filled, and at the end. What may be left:

- runs: 1 MB in all. One lost input of the network (256 bytes) a run would be 2.5 MB over 10,000 runs, a lost array
  object 1.1 MB; allocators were seen to move by up to 0.1 MB.
- sessions: 2 MB, and from 500 cycles on 4 kB for each, in this process: what a library keeps for a backend (QNN CPU
  1 to 2 kB, shared/reference/qnn_more.md section 11) plus the spread of the allocators. Function types made anew for
  each DLC that was read, 7 kB a time, were found so. In a worker the library's memory goes with it. QNN HTP, with
  its 13 threads, now and then takes or gives back 5 or 11 MB at once and is flat between (seen over 150 sessions):
  it may end 24 MB higher, which 200 lost graphs with their backends would exceed.
- descriptors and threads: none.
"""

from __future__ import annotations

import argparse
import gc
import os
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import npukit
from benchmarks import models
from npukit.analysis.samples import generate

RUN_BYTES = 1_000_000
CYCLE_BYTES = 4_000
LEAST_BYTES = {"qnn-cpu": 2_000_000, "ort": 2_000_000, "qnn-htp": 24_000_000}
DIGITS = Path(__file__).parents[1] / "examples" / "digits" / "digits.onnx"


@dataclass(frozen=True)
class Growth:
    """What a soak left behind.

    Attributes:
        name: what was done.
        count: how often.
        memory: bytes of resident memory at the end beyond those after a tenth, worker processes included.
        descriptors: open descriptors more, in this process and its workers.
        threads: threads more in this process.
        allowed: bytes that may be left.
        seconds: how long it took.
    """

    name: str
    count: int
    memory: int
    descriptors: int
    threads: int
    allowed: int
    seconds: float

    @property
    def fault(self) -> str:
        """What grew too much; empty if nothing did."""
        grown = [
            f"{self.memory} bytes of memory (allowed {self.allowed})" if self.memory > self.allowed else "",
            f"{self.descriptors} descriptors" if self.descriptors > 0 else "",
            f"{self.threads} threads" if self.threads > 0 else "",
        ]
        return ", ".join(filter(None, grown))

    def __str__(self) -> str:
        return (
            f"{self.name}: {self.count} times in {self.seconds:.1f} s, memory {self.memory / 1e3:+.0f} kB "
            f"(allowed {self.allowed / 1e3:.0f}), descriptors {self.descriptors:+d}, threads {self.threads:+d}"
        )


def soak(
    name: str,
    step: Callable[[], Any],
    count: int,
    allowed: int,
    *,
    pids: Callable[[], list[int]],
    warmup: int | None = None,
) -> Growth:
    """Call `step` `count` times after a warm-up.

    Args:
        name: for the report.
        step: what to repeat.
        count: how often.
        allowed: bytes that may be left at the end.
        pids: the processes whose memory and descriptors count.
        warmup: calls before; a tenth of `count`, at least 10, where None.
    """
    start = time.perf_counter()
    for _ in range(max(10, count // 10) if warmup is None else warmup):
        step()
    before = _state(pids())
    for _ in range(count):
        step()
    after = _state(pids())
    memory, descriptors, threads = (b - a for a, b in zip(before, after, strict=True))
    return Growth(name, count, memory, descriptors, threads, allowed, time.perf_counter() - start)


def _state(pids: list[int]) -> tuple[int, int, int]:
    gc.collect()
    memory = sum(_resident(pid) for pid in pids)
    descriptors = sum(len(os.listdir(f"/proc/{pid}/fd")) for pid in pids)
    return memory, descriptors, threading.active_count()


def _resident(pid: int) -> int:
    """Bytes of anonymous resident memory: mapped files come and go with the page cache.

    Counted page by page; what /proc/PID/status says may lag by some hundred kB on newer kernels.
    """
    rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
    return int(rollup.partition("Anonymous:")[2].split()[0]) * 1024


def soak_runs(model: Path, backend: str, count: int, *, in_process: bool = False) -> Growth:
    """`count` runs of one session."""
    with npukit.Session(model, backend=backend, in_process=in_process) as session:
        (feeds,) = generate(session.inputs, 1).runs
        reference = session.run(feeds)

        def step() -> None:
            found = session.run(feeds)
            if any(not np.array_equal(found[name], reference[name]) for name in reference):
                raise AssertionError(f"{backend}: the same inputs gave other outputs")

        worker = session._worker
        pids = [os.getpid(), *([worker.pid] if worker is not None else [])]
        place = "in process" if in_process else "worker"
        return soak(f"Session.run, {backend}, {place}", step, count, RUN_BYTES, pids=lambda: pids)


def soak_sessions(model: Path, backend: str, count: int, *, in_process: bool, warmup: int | None = None) -> Growth:
    """`count` times: open a session, run it, close it."""
    with npukit.Session(model, backend=backend) as session:
        (feeds,) = generate(session.inputs, 1).runs

    def step() -> None:
        with npukit.Session(model, backend=backend, in_process=in_process) as session:
            session.run(feeds)

    place = "in process" if in_process else "worker"
    name = f"open, run, close, {backend}, {place}"
    return soak(
        name, step, count, max(LEAST_BYTES[backend], CYCLE_BYTES * count), pids=lambda: [os.getpid()], warmup=warmup
    )


def soak_threads(model: Path, backend: str, sessions: int, threads: int, count: int, *, in_process: bool) -> int:
    """`threads` threads run `sessions` sessions in turn, `count` times each; how many outputs were wrong."""
    opened = [npukit.Session(model, backend=backend, in_process=in_process) for _ in range(sessions)]
    try:
        feeds = generate(opened[0].inputs, threads).runs
        expected = [opened[0].run(one) for one in feeds]
        wrong: list[int] = []
        errors: list[BaseException] = []

        def work(number: int) -> None:
            try:
                for i in range(count):
                    found = opened[(number + i) % sessions].run(feeds[number])
                    same = all(np.array_equal(found[name], expected[number][name]) for name in found)
                    wrong.extend([] if same else [number])
            except BaseException as error:
                errors.append(error)

        workers = [threading.Thread(target=work, args=(number,)) for number in range(threads)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        if errors:
            raise errors[0]
        return len(wrong)
    finally:
        for session in opened:
            session.close()


def main(arguments: list[str] | None = None) -> int:
    """Run everything; 1 if something grew or was wrong."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.soak", description=main.__doc__)
    parser.add_argument("--share", type=float, default=1.0, help="share of the full counts")
    share = parser.parse_args(arguments).share
    failed = False
    with tempfile.TemporaryDirectory(prefix="npukit-soak-") as folder:
        dlc, small = Path(folder, "digits.dlc"), Path(folder, "small.dlc")
        npukit.convert(DIGITS, dlc, verify=False)
        npukit.convert(models.make(Path(folder), 20_000, "linear").onnx, small, verify=False)
        runs = [
            (small, "qnn-cpu", 10_000, False), (small, "qnn-cpu", 10_000, True), (DIGITS, "ort", 10_000, False),
            (DIGITS, "ort", 10_000, True), (dlc, "qnn-htp", 2_000, False), (dlc, "qnn-cpu", 1_000, True),
        ]  # fmt: skip
        cycles = [
            (small, "qnn-cpu", 1_000, True), (DIGITS, "ort", 1_000, True), (dlc, "qnn-htp", 200, True),
            (small, "qnn-cpu", 20, False),
        ]  # fmt: skip
        steps: list[Callable[[], Growth]] = []
        for model, backend, count, here in runs:
            steps.append(lambda m=model, b=backend, c=count, h=here: soak_runs(m, b, int(c * share), in_process=h))
        for model, backend, count, here in cycles:
            steps.append(lambda m=model, b=backend, c=count, h=here: soak_sessions(m, b, int(c * share), in_process=h))
        for step in steps:
            growth = step()
            failed |= bool(growth.fault)
            sys.stdout.write(f"{growth}{f': GREW by {growth.fault}' if growth.fault else ''}\n")
            sys.stdout.flush()
        for backend in ("qnn-cpu", "ort"):
            for sessions in (1, 2):
                for here in (False, True):
                    count = int(2_000 * share)
                    wrong = soak_threads(small, backend, sessions, 4, count, in_process=here)
                    failed |= bool(wrong)
                    place = "in process" if here else "worker"
                    what = f"4 threads, {sessions} session(s), {backend}, {place}"
                    sys.stdout.write(f"{what}: {4 * count} runs, {wrong} wrong\n")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())

# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""`npukit bench`: how long a model takes to load, to run first, and to run."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from npukit import log
from npukit.analysis import DEFAULT_SEED, text
from npukit.analysis.samples import generate
from npukit.errors import UsageError
from npukit.runtime import BACKEND_NAMES
from npukit.verbs import options as o
from npukit.verbs.options import arg, opt, verb

if TYPE_CHECKING:
    from npukit.runtime.session import Session

EMULATED = "qnn-htp is Qualcomm's emulator on this machine's CPU: its times say nothing about the speed of a chip"


@dataclass(frozen=True)
class BenchOptions:
    """Measure how long models take to load and to run, on one generated input.

    Runs end after --runs or --seconds, whichever comes first. Times are those that a program sees: they include the
    copy of inputs and outputs and, unless --in-process is given, the message to the worker process.
    """

    models: tuple[Path, ...] = arg("the models (.onnx, .dlc, context binary)", many=True, metavar="MODEL")
    backends: tuple[str, ...] = opt(
        (), "Backend; repeatable [by file].", "--backend", many=True, parse=o.strings, metavar="|".join(BACKEND_NAMES)
    )
    runs: int = opt(200, "Most runs to measure.")
    seconds: float = opt(10.0, "Stop measuring after this time.")
    warmup: int = opt(3, "Runs after the first that are not measured.")
    seed: int = opt(DEFAULT_SEED, "Seed of the generated input.")
    input_ranges: dict[str, tuple[float, float]] = opt(
        {}, "Range of a generated input.", "--input-range", many=True, parse=o.ranges, metavar="NAME=LO:HI"
    )
    graph: str | None = opt(None, "Graph to run, where the model holds several.", metavar="NAME")
    target: str | None = opt(None, "Chip to emulate [the stamp's].", metavar="NAME")
    threads: int | None = opt(None, "Threads of ONNX Runtime.")
    timeout: float | None = opt(None, "Seconds that loading and each run may take.")
    in_process: bool = opt(False, "Run native code in this process.", "--in-process")


@dataclass(frozen=True)
class Row:
    """The times of one model on one backend, in seconds.

    Attributes:
        model: the file's name.
        backend: the backend.
        emulated: whether an emulator stood in for the chip.
        library: the backend's library and version.
        load: until the session is open: start of the worker process, reading, composing, preparing.
        first: the first run.
        runs: how many runs were measured after the warm-up.
        mean: their mean.
        best: the shortest.
        p50: their median.
        p90: 90th percentile; None for fewer than 10 runs.
        p99: 99th percentile; None for fewer than 100 runs.
        per_second: runs a second, one after the other.
    """

    model: str
    backend: str
    emulated: bool
    library: str
    load: float
    first: float
    runs: int
    mean: float
    best: float
    p50: float
    p90: float | None
    p99: float | None
    per_second: float


@dataclass(frozen=True)
class BenchResult:
    """What was measured.

    Attributes:
        rows: one for each model and backend.
        in_process: whether the native code ran in this process.
        notes: what to know about the figures.
    """

    rows: tuple[Row, ...]
    in_process: bool
    notes: tuple[str, ...] = ()
    exit_code: int = 0

    def to_json(self) -> dict[str, Any]:
        """As one JSON-ready object; times in seconds."""
        rows = [asdict(row) for row in self.rows]
        return {"rows": rows, "in_process": self.in_process, "notes": list(self.notes)}

    def to_text(self) -> str:
        head = ("model", "backend", "load ms", "first ms", "p50 ms", "p90 ms", "p99 ms", "runs/s", "runs")
        rows = [
            (r.model, f"{r.backend} (emulator)" if r.emulated else r.backend, *map(_ms, (r.load, r.first, r.p50)),
             _ms(r.p90), _ms(r.p99), r.per_second, r.runs)
            for r in self.rows
        ]  # fmt: skip
        return "\n".join([text.table(head, rows), *(f"note: {note}" for note in self.notes)])


def _ms(seconds: float | None) -> float | None:
    return None if seconds is None else seconds * 1e3


@verb(BenchOptions)
def bench(options: BenchOptions) -> BenchResult:
    """Measure each of `models` on each of `backends` (by default the one that the file is for).

    Raises:
        NpukitError: a model cannot be opened or run; a range of an integer input is needed.

    Example:
        >>> result = npukit.bench("digits.onnx", runs=20)
        >>> result.rows[0].backend, result.rows[0].runs
        ('ort', 20)
    """
    if not options.models:
        raise UsageError("at least one model is needed")
    for name, value, least in (("--runs", options.runs, 1), ("--warmup", options.warmup, 0)):
        if value < least:
            raise UsageError(f"at least {least} is needed, not {value}", where=name)
    pairs = [(model, backend) for model in options.models for backend in options.backends or (None,)]
    rows = []
    for i, (model, backend) in enumerate(pairs):
        log.report(f"{model.name} on {backend or 'its backend'}", i / len(pairs))
        rows.append(_measure(options, model, backend))
    notes = [EMULATED] if any(row.emulated for row in rows) else []
    return BenchResult(tuple(rows), options.in_process, tuple(notes))


def _measure(options: BenchOptions, model: Path, backend: str | None) -> Row:
    from npukit.qnn.api.backend import on_device
    from npukit.runtime.session import Session

    start = time.perf_counter()
    with Session(
        model, backend=backend, graph=options.graph, target=options.target, threads=options.threads,
        timeout=options.timeout, in_process=options.in_process,
    ) as session:  # fmt: skip
        load = time.perf_counter() - start
        (feeds,) = generate(session.inputs, 1, seed=options.seed, ranges=options.input_ranges).runs
        first = _one(session, feeds)
        seconds = _steady(options, session, feeds)
        return Row(
            model=model.name,
            backend=session.backend,
            emulated=session.backend in ("qnn-htp", "ort-qnn") and not on_device(),
            library=session.library,
            load=load,
            first=first,
            runs=len(seconds),
            mean=float(np.mean(seconds)),
            best=min(seconds),
            p50=float(np.median(seconds)),
            p90=_percentile(seconds, 90),
            p99=_percentile(seconds, 99),
            per_second=len(seconds) / sum(seconds),
        )


def _steady(options: BenchOptions, session: Session, feeds: dict[str, Any]) -> list[float]:
    """The times of up to `runs` runs; warm-up counts towards `seconds`, but one run is always measured."""
    end = time.perf_counter() + options.seconds
    for _ in range(options.warmup):
        if time.perf_counter() >= end:
            break
        _one(session, feeds)
    seconds = [_one(session, feeds)]
    while len(seconds) < options.runs and time.perf_counter() < end:
        seconds.append(_one(session, feeds))
    return seconds


def _one(session: Session, feeds: dict[str, Any]) -> float:
    start = time.perf_counter()
    session.run(feeds)
    return time.perf_counter() - start


def _percentile(seconds: Sequence[float], share: int) -> float | None:
    """The percentile, where there are enough runs for one to lie above it."""
    return float(np.percentile(seconds, share)) if len(seconds) * (100 - share) >= 100 else None

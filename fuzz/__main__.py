# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""`python -m fuzz`: mutated files against every loader, a table of how far each got; exits 1 if one was bad."""

from __future__ import annotations

import argparse
import collections
import contextlib
import json
import os
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from fuzz import corpus, execute, frameworks, hostile, report
from npukit.worker import Pool

_OUT = Path(__file__).resolve().parents[1] / "results" / "fuzz"
# Of 100 cases; the files that take longest to get wrong are tried most.
WEIGHTS = {"onnx": 40, "dlc": 20, "bin": 8, "stamp": 6, "sidecar": 4, "npz": 6, "tflite": 16,
           "pt2": 8, "pt": 4, "pb": 4, "savedmodel": 4}  # fmt: skip


def main() -> int:
    """Parse the command line and run; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m fuzz", description=__doc__)
    parser.add_argument(
        "--kinds",
        default=",".join(corpus.KINDS),
        help=f"comma list [%(default)s]; through their frameworks, a second each: {','.join(corpus.FRAMEWORK_KINDS)}",
    )
    parser.add_argument("--count", type=int, default=20_000, help="mutated files in all [%(default)s]")
    parser.add_argument("--seed", type=int, default=1, help="seed number of the run [%(default)s]")
    parser.add_argument("--seeds", type=int, default=60, help="seeds of each kind [%(default)s]")
    parser.add_argument("--jobs", type=int, default=2, help="workers [%(default)s]")
    parser.add_argument("--time-limit", type=float, default=None, help="seconds after which no case is begun")
    parser.add_argument("--case", help="make and judge only this case (kind:index), and keep its files")
    parser.add_argument("--out", type=Path, default=_OUT, help="results folder [%(default)s]")
    parser.add_argument("--markdown", type=Path, help="write the report here too")
    parser.add_argument("--keep-classes", action="store_true", help="write each failure class to tests/hostile")
    options = parser.parse_args()
    every = (*corpus.KINDS, *corpus.FRAMEWORK_KINDS)
    kinds = [kind for kind in every if kind in options.kinds.split(",")]
    for kind in kinds:
        if frameworks.missing(kind):
            parser.error(f"{kind} needs {frameworks.missing(kind)}")
    options.out.mkdir(parents=True, exist_ok=True)
    if options.case:
        return _one(options)
    run = Run(kinds, options.count, options.seed, options.seeds, options.jobs, options.time_limit, options.out)
    run.go(lambda text: (sys.stdout.write(text + "\n"), sys.stdout.flush()))
    if options.keep_classes:
        kept, left_out = hostile.collect(run)
        sys.stdout.write(f"{kept} failure classes kept in {hostile.FOLDER}, {left_out} left out\n")
    text = report.page(run)
    sys.stdout.write(text)
    if options.markdown:
        options.markdown.write_text(text)
    return 1 if run.bad or run.leftovers else 0


def _one(options: argparse.Namespace) -> int:
    kind, _, index = options.case.partition(":")
    folder = options.out / "case"
    with Pool(1, memory_limit=execute.MEMORY, timeout=execute.TIMEOUT, env=execute.ENVIRONMENT) as pool:
        seeds = corpus.load(kind, options.out / "corpus", pool, options.seeds)
        case = execute.make(kind, seeds, options.seed, int(index))
        verdict = execute.judge(case, pool, folder)
    sys.stdout.write(
        f"{json.dumps(vars(verdict), indent=2)}\n{verdict.detail}\nseed {case.origin}, files in {folder}\n"
    )
    return 1 if verdict.outcome == "bad" else 0


class Run:
    """A fuzzing run.

    Attributes:
        verdicts: number of cases by (kind, outcome).
        passed: number of cases by (kind, stage) that got through it.
        groups: failure class -> (how many, the smallest case and its bytes, its verdict).
        bad: verdicts that are bad.
        died: verdicts of contained deaths.
        slow: the slowest cases, as (seconds, case).
        leftovers: what workers left in the temporary folder.
    """

    def __init__(
        self, kinds: list[str], count: int, number: int, seeds: int, jobs: int, limit: float | None, out: Path
    ) -> None:
        self.kinds, self.count, self.number, self.seed_count, self.jobs = kinds, count, number, seeds, jobs
        self.limit, self.out = limit, out
        self.verdicts: collections.Counter[tuple[str, str]] = collections.Counter()
        self.passed: collections.Counter[tuple[str, str]] = collections.Counter()
        self.groups: dict[str, tuple[int, execute.Case, execute.Verdict]] = {}
        self.bad: list[execute.Verdict] = []
        self.died: list[execute.Verdict] = []
        self.slow: list[tuple[float, str]] = []
        self.leftovers: list[str] = []
        self.started = self.seconds = 0.0
        self.workers = 0
        self.seeds: dict[str, list[corpus.Seed]] = {}
        self.tensorflow: Path | None = None
        self._lock = threading.Lock()

    @property
    def done(self) -> int:
        """Cases judged so far."""
        return sum(self.verdicts.values())

    def go(self, say: report.Say) -> None:
        """Judge all cases, a line a minute to `say`."""
        old = tempfile.tempdir, os.environ.get("TMPDIR")
        temp = Path(tempfile.mkdtemp(prefix="npukit-fuzz-"))
        tempfile.tempdir = os.environ["TMPDIR"] = str(temp)  # so that what workers leave behind is seen
        try:
            with contextlib.ExitStack() as stack:
                variables = {**execute.ENVIRONMENT, "TORCHINDUCTOR_CACHE_DIR": str(temp / "case-torch")}
                pool = Pool(self.jobs, memory_limit=execute.MEMORY, timeout=execute.TIMEOUT, env=variables)
                stack.enter_context(pool)
                if {"pb", "savedmodel"} & set(self.kinds):
                    self.tensorflow = stack.enter_context(frameworks.quick_tensorflow())
                for kind in self.kinds:
                    self.seeds[kind] = corpus.load(kind, self.out / "corpus", pool, self.seed_count)
                self.started = time.monotonic()
                self._all(pool, say)
                self.seconds = time.monotonic() - self.started
            self.workers = pool.started
            self.leftovers = sorted(path.name for path in temp.iterdir() if not path.name.startswith("case-"))
        finally:
            tempfile.tempdir = old[0]
            os.environ.pop("TMPDIR")
            if old[1] is not None:
                os.environ["TMPDIR"] = old[1]
            shutil.rmtree(temp, ignore_errors=True)

    def _cases(self) -> Iterator[tuple[str, int]]:
        """Kind and index of each case, the kinds mixed by weight."""
        total = sum(WEIGHTS[kind] for kind in self.kinds)
        owed, index = dict.fromkeys(self.kinds, 0.0), dict.fromkeys(self.kinds, 0)
        for _ in range(self.count):
            for kind in self.kinds:
                owed[kind] += WEIGHTS[kind] / total
            kind = max(owed, key=lambda k: owed[k])
            owed[kind] -= 1
            yield kind, index[kind]
            index[kind] += 1

    def _all(self, pool: Pool, say: report.Say) -> None:
        cases = self._cases()

        def drain(slot: int) -> None:
            folder = Path(tempfile.gettempdir(), f"case-{slot}")
            while True:
                with self._lock:
                    if self.limit is not None and time.monotonic() - self.started > self.limit:
                        return
                    item = next(cases, None)
                if item is None:
                    return
                case = execute.make(item[0], self.seeds[item[0]], self.number, item[1])
                start = time.monotonic()
                verdict = execute.judge(case, pool, folder, self.tensorflow)
                seconds = time.monotonic() - start
                with self._lock:
                    self.slow = sorted([*self.slow, (seconds, case.name)], reverse=True)[:10]
                    self._count(case, verdict, say)

        threads = [threading.Thread(target=drain, args=(slot,)) for slot in range(self.jobs)]
        for thread in threads:
            thread.start()
        last = time.monotonic()
        while any(thread.is_alive() for thread in threads):
            time.sleep(0.05)
            if time.monotonic() - last > 60:
                last = time.monotonic()
                say(f"{self.done} of {self.count}, {len(self.groups)} failure classes, {len(self.bad)} bad")

    def _count(self, case: execute.Case, verdict: execute.Verdict, say: report.Say) -> None:
        self.verdicts[case.kind, verdict.outcome] += 1
        for stage in verdict.stages:
            self.passed[case.kind, stage] += 1
        if verdict.outcome == "bad":
            self.bad.append(verdict)
            report.keep(self.out / "bad", case, verdict)
            last = verdict.detail.strip().splitlines()[-3:] if verdict.detail else []
            say(f"BAD {verdict.case} ({case.origin}): {verdict.why}: {verdict.error} {verdict.text[:200]} {last}")
        elif verdict.outcome == "died":
            self.died.append(verdict)
            report.keep(self.out / "died", case, verdict)
        if verdict.outcome != "done":
            count, smallest, old = self.groups.get(verdict.group, (0, case, verdict))
            if _size(case) < _size(smallest):
                smallest, old = case, verdict
            self.groups[verdict.group] = (count + 1, smallest, old)


def _size(case: execute.Case) -> int:
    return sum(map(len, case.files.values()))


if __name__ == "__main__":
    sys.exit(main())

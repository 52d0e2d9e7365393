# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""`python -m conformance run|compare|accept|report|show`."""

from __future__ import annotations

import argparse
import re
import sys
import time
from pathlib import Path
from typing import Any

from conformance import cases, pool
from conformance.execute import PATHS
from conformance.report import Results, accept, lost, outcome, page, summary

_CACHE = pool.ROOT / "results" / "cases"
_OUT = pool.ROOT / "results" / "conformance"


def main() -> int:
    """Parse the command line and run one subcommand; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m conformance", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run", help="run cases and keep the results")
    run.add_argument("--path", default=",".join(PATHS), help="comma list of cpu, htp, raise, dlc")
    run.add_argument("--variant", default="a", help="comma list of a, b, c, tried in order until one passes")
    run.add_argument("--filter", default="", help="regular expression on the case's name")
    run.add_argument("--failed", action="store_true", help="only what did not pass in the results at --out")
    run.add_argument("--jobs", type=int, default=2)
    run.add_argument("--timeout", type=float, default=60.0, help="seconds a case")
    run.add_argument("--aux", action="store_true", help="also the cases with a zero-size auxiliary input")
    run.add_argument("--light", action="store_true", help="only the nine light models (slow; give --timeout)")
    run.add_argument("--out", type=Path, default=_OUT, help="results folder; records of other cases in it stay")
    for name, text in (
        ("compare", "fail where a case of the committed list does not pass"),
        ("accept", "add the passes to the committed list"),
        ("report", "write docs/op-coverage.md"),
        ("show", "print the results, one line a case"),
    ):
        command = commands.add_parser(name, help=text)
        command.add_argument("out", type=Path, nargs="?", default=_OUT)
        if name == "compare":
            command.add_argument("--variant", default="a")
        if name == "report":
            command.add_argument("--markdown", type=Path, default=pool.ROOT / "docs" / "op-coverage.md")
        if name == "show":
            command.add_argument("--filter", default="")
            command.add_argument("--path", default=",".join(PATHS))
            command.add_argument("--all", action="store_true", help="also the cases that pass")
    options = parser.parse_args()
    return int(_COMMANDS[options.command](options))


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def _run(options: argparse.Namespace) -> int:
    root = cases.write_cache(_CACHE)
    table = cases.table()
    names = table.light if options.light else [*table.cases, *(table.aux if options.aux else ())]
    names = [name for name in names if re.search(options.filter, name)]
    results = Results(options.out)
    units: list[list[pool.Task]] = []
    for path in options.path.split(","):
        for name in names:
            record = results.records.get((name, path))
            if not (options.failed and record is not None and record["status"] == "pass"):
                units.append([_task(root, name, path, letter) for letter in options.variant.split(",")])
    start, count = time.monotonic(), 0

    def done(unit: list[pool.Task], result: pool.Result) -> None:
        nonlocal count
        count += 1
        record = {"case": unit[0]["name"], "path": unit[0]["path"], **result}
        results.add(record)
        if record["status"] == "fail" and len(units) <= 60:
            _say(f"{record['case']} {record['path']}: {outcome(record)}: {record.get('evidence', '')[:300]}")
        if count % 200 == 0 or count == len(units):
            _say(f"{count} of {len(units)}, {time.monotonic() - start:.0f} s")

    pool.run_all(units, jobs=options.jobs, timeout=options.timeout, done=done)
    results.compact()
    _say(summary(results))
    return 0


def _task(root: Path, name: str, path: str, letter: str) -> dict[str, Any]:
    return {"root": str(root), "name": name, "path": path, "variant": letter}


def _compare(options: argparse.Namespace) -> int:
    faults = lost(Results(options.out), options.variant.split(","))
    for fault in faults:
        _say(fault)
    _say(
        f"{len(faults)} cases of the committed list do not pass"
        if faults
        else "every case of the committed list passes"
    )
    return 1 if faults else 0


def _accept(options: argparse.Namespace) -> int:
    _say(f"{accept(Results(options.out))} entries are new or better")
    return 0


def _report(options: argparse.Namespace) -> int:
    results = Results(options.out)
    options.markdown.write_text(page(results))
    _say(summary(results))
    return 0


def _show(options: argparse.Namespace) -> int:
    results = Results(options.out)
    for (name, path), record in sorted(results.records.items()):
        wanted = options.all or record["status"] != "pass"
        if wanted and path in options.path.split(",") and re.search(options.filter, name):
            _say(f"{name} {path}: {outcome(record)}: {record.get('evidence', '')[:300]}")
    return 0


_COMMANDS = {"run": _run, "compare": _compare, "accept": _accept, "report": _report, "show": _show}

if __name__ == "__main__":
    sys.exit(main())

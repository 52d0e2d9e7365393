# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""Results: kept as JSON lines, counted, compared with the committed list, and shown as docs/op-coverage.md."""

from __future__ import annotations

import importlib.metadata
import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from conformance import cases
from conformance.execute import PATHS, REASONS

PASSED = Path(__file__).with_name("passed.json")
GOALS = {"cpu": 1200, "htp": 1150, "raise": 1400}
_TITLES = {"cpu": "QNN CPU", "htp": "HTP emulator (SM8650, float16)", "raise": "raised, ONNX Runtime"}

Record = dict[str, Any]


class Results:
    """Records by (case, path), stored in FOLDER/results.jsonl."""

    def __init__(self, folder: Path) -> None:
        self.file = folder / "results.jsonl"
        self.records: dict[tuple[str, str], Record] = {}
        if self.file.exists():
            for line in self.file.read_text().splitlines():
                record = json.loads(line)
                self.records[record["case"], record["path"]] = record

    def add(self, record: Record) -> None:
        """Keep `record`, and append it to the file at once, so that an interrupted run loses nothing."""
        self.records[record["case"], record["path"]] = record
        self.file.parent.mkdir(parents=True, exist_ok=True)
        with self.file.open("a") as stream:
            stream.write(json.dumps(record) + "\n")

    def compact(self) -> None:
        """Rewrite the file with one line a record, in order."""
        lines = [json.dumps(self.records[key]) + "\n" for key in sorted(self.records)]
        self.file.write_text("".join(lines))

    def of(self, path: str, names: Iterable[str]) -> Iterator[Record]:
        """The records of `path` among the cases `names`."""
        for name in names:
            if (name, path) in self.records:
                yield self.records[name, path]


def outcome(record: Mapping[str, Any]) -> str:
    """pass, folded, or the reason."""
    return str(record["reason"]) if record["status"] == "fail" else str(record["status"])


def summary(results: Results) -> str:
    """The counts by path as a table in Markdown."""
    table = cases.table()
    rows: list[list[Any]] = [["path", "pass", "of", "goal", "peer", "folded", *REASONS, "aux pass"]]
    for path in PATHS:
        counts = Counter(outcome(record) for record in results.of(path, table.cases))
        if not counts:
            continue
        aux = sum(record["status"] == "pass" for record in results.of(path, table.aux))
        peer = sum(case.get(path) == "pass" for case in table.cases.values()) if path != "raise" else "-"
        total = sum(counts.values())
        rows.append(
            [
                _TITLES[path],
                counts["pass"],
                total,
                GOALS[path],
                peer,
                counts["folded"],
                *(counts[reason] for reason in REASONS),
                f"{aux} of {len(table.aux)}",
            ]
        )
    return _markdown(rows)


def _markdown(rows: list[list[Any]]) -> str:
    lines = ["| " + " | ".join(str(cell) for cell in row) + " |" for row in rows]
    lines.insert(1, "|" + " --- |" * len(rows[0]))
    return "\n".join(lines) + "\n"


def passed_list() -> dict[str, str]:
    """The committed list: case -> one letter a path of PATHS, the variant that passed or "-"."""
    return dict(json.loads(PASSED.read_text())) if PASSED.exists() else {}


def letters(results: Results) -> dict[str, str]:
    """What `results` would be as a committed list."""
    found: dict[str, str] = {}
    for name in sorted({case for case, _ in results.records}):
        code = ""
        for path in PATHS:
            record = results.records.get((name, path))
            code += record["variant"] if record is not None and record["status"] == "pass" else "-"
        if code.strip("-"):
            found[name] = code
    return found


def lost(results: Results, variants: Iterable[str]) -> list[str]:
    """Cases of the committed list that no longer pass; those that passed in another variant are not looked at."""
    tried = set(variants)
    faults = []
    for name, code in passed_list().items():
        for path, letter in zip(PATHS, code, strict=True):
            if letter not in tried:
                continue
            record = results.records.get((name, path))
            if record is None:
                faults.append(f"{name} {path}: was not run")
            elif record["status"] != "pass":
                faults.append(f"{name} {path}: {outcome(record)}: {record.get('evidence', '')[:200]}")
    return faults


def accept(results: Results) -> int:
    """Write the committed list from `results`: passes are added, nothing is taken away. Returns how many are new."""
    old = passed_list()
    new = letters(results)
    merged = {}
    for name in sorted({*old, *new}):
        before, after = old.get(name, "---"), new.get(name, "---")
        # the earlier variant letter is the stronger claim
        merged[name] = "".join(min(x, y, key=lambda c: "abc-".index(c)) for x, y in zip(before, after, strict=True))
    text = ",\n".join(f"{json.dumps(name)}:{json.dumps(code)}" for name, code in merged.items())
    PASSED.write_text("{\n" + text + "\n}\n")
    return sum(merged[name] != old.get(name, "---") for name in merged)


def page(results: Results) -> str:
    """docs/op-coverage.md."""
    table = cases.table()
    versions = ", ".join(f"{p} {importlib.metadata.version(p)}" for p in ("onnx", "onnxruntime", "onnxruntime-qnn"))
    parts = [
        "# Op coverage\n",
        "Generated by `make conformance`; do not edit.\n",
        f"The ONNX project's own backend tests ({versions}), each in a worker process, over three paths. A case"
        " passes when an input is left at run time on which an output depends, every op ran on that backend, and"
        " every output has the source's dtype and shape and is within tolerance (QNN CPU and raised: rtol 1e-3, atol"
        " 1e-5; HTP: rtol 1e-2, atol 1e-2*max(1, max|ref|)). `folded` means that nothing was left to run. The peer is"
        " ONNX Runtime's QNN provider at its best.\n",
        summary(results),
        "Variants: " + "; ".join(f"{letter}: {text}" for letter, text in cases.VARIANTS.items()) + ".\n",
        _variants(results, table),
        "## By op\n",
        "Cases of one or two ops, under each of them.\n",
        _by_op(results, table),
        "## Cases that the peer passes and npukit does not\n",
        _behind(results, table),
        "## Cases that do not pass\n",
        _failing(results, table),
        "## Light models\n",
        "The nine networks of the onnx package. Their weights make every output constant, so they show structure only"
        " and are not counted above.\n",
        _light(results, table),
        "## Left out\n",
        "\n".join(f"- {reason}: {len(names)}" for reason, names in table.left_out.items()) + "\n",
    ]
    return "\n".join(parts)


def _variants(results: Results, table: cases.Table) -> str:
    rows: list[list[Any]] = [["path", *(f"passes as {letter}" for letter in cases.VARIANTS)]]
    for path in PATHS:
        counts = Counter(r["variant"] for r in results.of(path, table.cases) if r["status"] == "pass")
        rows.append([_TITLES[path], *(counts[letter] for letter in cases.VARIANTS)])
    return _markdown(rows)


def _by_op(results: Results, table: cases.Table) -> str:
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    for name, peer in table.cases.items():
        ops = next((r["source_ops"] for r in _records(results, name) if r.get("source_ops")), None)
        for op in ops if ops and len(ops) <= 2 else ():
            counts[op]["cases"] += 1
            for path in PATHS:
                record = results.records.get((name, path))
                counts[op][path] += record is not None and record["status"] == "pass"
                counts[op]["peer " + path] += peer.get(path) == "pass"
    rows: list[list[Any]] = [["op", "cases", *PATHS, "peer cpu", "peer htp"]]
    for op in sorted(counts):
        c = counts[op]
        rows.append([op, c["cases"], *(c[path] for path in PATHS), c["peer cpu"], c["peer htp"]])
    return _markdown(rows)


def _records(results: Results, name: str) -> Iterator[Record]:
    return (results.records[name, path] for path in PATHS if (name, path) in results.records)


def _behind(results: Results, table: cases.Table) -> str:
    lines = [
        f"- {name} ({path}): {outcome(record)}"
        for path in ("cpu", "htp")
        for name, peer in table.cases.items()
        if peer[path] == "pass"
        and (record := results.records.get((name, path))) is not None
        and record["status"] != "pass"
    ]
    return "\n".join(lines) + "\n" if lines else "None.\n"


def _light(results: Results, table: cases.Table) -> str:
    rows: list[list[Any]] = [["model", *PATHS]]
    for name in table.light:
        found = [results.records.get((name, path)) for path in PATHS]
        rows.append([name.removeprefix("light/light_"), *("not run" if r is None else outcome(r) for r in found)])
    return _markdown(rows)


def _failing(results: Results, table: cases.Table) -> str:
    rows: list[list[Any]] = [["case", "path", "reason", "evidence"]]
    for name in sorted(table.cases):
        for record in _records(results, name):
            if record["status"] == "fail":
                evidence = record.get("evidence", "").replace("|", "/").replace("\n", " ")[:160]
                rows.append([name, record["path"], record["reason"], evidence])
    return _markdown(rows)

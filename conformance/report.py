# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""Results: kept as JSON lines, counted, compared with the committed list, and shown as docs/op-coverage.md."""

from __future__ import annotations

import importlib.metadata
import json
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from conformance import cases, op_tables
from conformance.execute import DLC, PATHS, REASONS

PASSED = Path(__file__).with_name("passed.json")
GOALS = {"cpu": 1200, "htp": 1150, "raise": 1400}
_TITLES = {"cpu": "QNN CPU", "htp": "HTP emulator (SM8650, float16)", "raise": "raised, ONNX Runtime"}
_TITLES[DLC] = "QNN CPU, read back from a DLC"

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
    for path in (*PATHS, DLC):
        counts = Counter(outcome(record) for record in results.of(path, table.cases))
        if not counts:
            continue
        aux = sum(record["status"] == "pass" for record in results.of(path, table.aux))
        peer = sum(case.get(path) == "pass" for case in table.cases.values()) if path in ("cpu", "htp") else "-"
        total = sum(counts.values())
        rows.append(
            [
                _TITLES[path],
                counts["pass"],
                total,
                GOALS.get(path, "-"),
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
    """What `results` would be as a committed list; the light models are not in it."""
    found: dict[str, str] = {}
    for name in sorted({case for case, _ in results.records if not case.startswith("light/")}):
        code = ""
        for path in PATHS:
            record = results.records.get((name, path))
            code += record["variant"] if record is not None and record["status"] == "pass" else "-"
        if code.strip("-"):
            found[name] = code
    return found


def lost(results: Results, variants: Iterable[str]) -> list[str]:
    """Cases of the committed list that no longer pass; those that passed in another variant are not looked at.

    Where the path through a DLC was run, it must pass what QNN CPU passes.
    """
    tried = set(variants)
    through = any(path == DLC for _, path in results.records)
    faults = []
    for name, code in passed_list().items():
        for path, letter in (*zip(PATHS, code, strict=True), *([(DLC, code[0])] if through else [])):
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
        f"The ONNX project's own backend tests ({versions}), each in a worker process, over three paths, the"
        " first of them also with the graph written to a DLC and read back. A case"
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
        "## Lowerings\n",
        "One row a registered lowering: the shape line of its docstring (`?` may be absent, `...` may repeat, `*D` any"
        " number of axes), then dtypes and limits. A test compares these lines with the test rows.\n",
        _markdown(op_tables.lowerings()),
        "Without a lowering of their own, replaced by the function body of their ONNX definition where that has static"
        f" shapes: {', '.join(op_tables.by_definition())}.\n",
        "## Raising\n",
        _raising(),
        "## Cases that do not pass\n",
        "Grouped by reason and op; `node/test_` is left out of the names. Where no path stands before the names, they"
        " fail on all three.\n",
        _failing(results, table),
        "## Light models\n",
        "The nine networks of the onnx package. Their weights make every output constant, so they show structure only"
        " and are not counted above.\n",
        _light(results, table),
        "## Left out\n",
        "\n".join(f"- {reason}: {len(names)}" for reason, names in table.left_out.items()) + "\n",
    ]
    return "\n".join(parts)


def _raising() -> str:
    raised, kept = op_tables.raised()
    return (
        f"{len(raised)} of the {len(raised) + len(kept)} ops of the op table become standard ONNX; the tests compare"
        f" them with QNN CPU's own results.\n\nRaised: {', '.join(raised)}.\n\nKept as nodes of domain `qti.aisw`,"
        f" with all parameters: {', '.join(kept)}. `export` lists them; `ort` does not run them.\n"
    )


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


_FAULT = re.compile(r"\[1\] (?:(\w+) )?'[^']*': (.*)")
_NOISE = (
    (r" \[(no QNN op or composition|backend refused|dtype cannot be held)\]", ""),
    (r"QNN_OP_PACKAGE_ERROR_VALIDATION_FAILURE: Op configuration failed validation: ", ""),
    (r"\[4294967295\] ", ""),
    (r"the size of .* is only known when it runs", "the size of its output is only known when it runs"),
    (r"'[^']*' is not computed by anything", "an input cannot be held"),
)


def evidence(record: Mapping[str, Any]) -> tuple[str, str]:
    """The op at fault where the evidence names one, and the first fault, without names of nodes and tensors."""
    whole = str(record.get("evidence", ""))
    found = _FAULT.search(whole)
    op, text = (found[1] or "", found[2]) if found else ("", whole.split("\n")[0])
    for pattern, short in _NOISE:
        text = re.sub(pattern, short, text)
    text = text.replace("|", "/")
    return op, text if len(text) <= 160 else text[:157] + "..."


def _failing(results: Results, table: cases.Table) -> str:
    """By reason one table: op, evidence of its first case, and the names of all cases with the paths."""
    groups: dict[str, dict[tuple[str, str], dict[str, list[str]]]] = {reason: {} for reason in REASONS}
    shown: dict[tuple[str, str, str], str] = {}
    for name in sorted(table.cases):
        for record in _records(results, name):
            if record["status"] != "fail":
                continue
            op, text = evidence(record)
            op = _op_of(results, name) if op in ("", "input", "output") else op
            # numbers differ from case to case: one example stands for the op
            key = (op, "" if record["reason"] == "wrong" else text)
            shown.setdefault((record["reason"], *key), text)
            groups[record["reason"]].setdefault(key, {}).setdefault(name, []).append(record["path"])
    parts = []
    for reason, rows in groups.items():
        if rows:
            table_rows: list[list[Any]] = [["op", "evidence (of the first case)", "cases"]]
            for key in sorted(rows):
                table_rows.append([key[0], shown[reason, *key], _case_names(rows[key])])
            parts.append(f"### {reason}\n\n{_markdown(table_rows)}")
    return "\n".join(parts) if parts else "None.\n"


def _op_of(results: Results, name: str) -> str:
    """The op that a case is about: its only one, or that of the case it is the expansion of."""
    for case in (name, re.sub(r"_expanded(_ver\d+)?$", "", name)):
        ops = next((r["source_ops"] for r in _records(results, case) if r.get("source_ops")), None)
        if ops and len(ops) <= 2:
            return str(ops[-1])
    return "several"


def _case_names(paths: Mapping[str, list[str]]) -> str:
    """The names, those with the same paths together; paths are left out where it is all of them."""
    by_paths: dict[str, list[str]] = defaultdict(list)
    for name, found in paths.items():
        by_paths["" if len(found) == len(PATHS) else f"{', '.join(found)}: "].append(name.removeprefix("node/test_"))
    return "; ".join(head + ", ".join(names) for head, names in by_paths.items())

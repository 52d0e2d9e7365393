# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""What a run is reported as: a page of Markdown, and the files of the cases worth keeping."""

from __future__ import annotations

import datetime
import json
import os
import platform
import shutil
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fuzz import execute, frameworks
from npukit.errors import shown

if TYPE_CHECKING:
    from fuzz.__main__ import Run

Say = Callable[[str], Any]


def keep(folder: Path, case: execute.Case, verdict: execute.Verdict) -> None:
    """Keep the files of a case with its verdict."""
    place = folder / case.name.replace(":", "-")
    shutil.rmtree(place, ignore_errors=True)
    execute.write(case, place / "files")
    about = {**vars(verdict), "origin": case.origin, "main": case.main, "options": case.options}
    (place / "verdict.json").write_text(json.dumps(about, indent=2))


def page(run: Run) -> str:
    """The result of a run as Markdown."""
    packages = ["npukit", "onnx", "onnx-ir", "onnxruntime", "onnxruntime-qnn", "numpy"]
    packages += ["torch"] if {"pt2", "pt"} & set(run.kinds) else []
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in packages)
    versions += f", {frameworks.tensorflow_version()}" if run.tensorflow is not None else ""
    limit = f" --time-limit {run.limit:g}" if run.limit is not None else ""
    seeds = ", ".join(f"{kind} {len(found)}" for kind, found in run.seeds.items())
    lines = [
        "# Fuzzing",
        "",
        f"`python -m fuzz --kinds {','.join(run.kinds)} --count {run.count} --seed {run.number}{limit}`: {run.done} "
        f"mutated files in {run.seconds:.0f} s with {run.jobs} job(s), {run.workers} workers started.",
        f"{datetime.date.today()}, {platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}; "
        f"{versions}. Seeds: {seeds}.",
        "",
        "How far they got (a stage counts when the file passed it), and what came of them:",
        "",
        "| kind | files | " + " | ".join(execute.STAGES) + " | done | refused | died, contained | bad |",
        "| --- " * (len(execute.STAGES) + 6) + "|",
    ]
    for kind in (*run.kinds, "all"):
        lines.append(_row(run, kind))
    lines += ["", f"Distinct failure classes: {len(run.groups)}. Left in the temporary folder: "
              f"{', '.join(run.leftovers) or 'nothing'}."]  # fmt: skip
    slowest = ", ".join(f"{case} {seconds:.1f} s" for seconds, case in run.slow)
    lines += ["", f"Slowest: {slowest}."]
    for title, verdicts in (("Bad", run.bad), ("Deaths inside a native library, contained", run.died)):
        if verdicts:
            lines += ["", f"## {title}", ""]
            lines += [f"- {v.case} {v.why}: {v.error}: {shown(v.what or v.text, 200)}" for v in verdicts[:100]]
    lines += ["", "## Failure classes", "", "| files | class |", "| --- | --- |"]
    for group, (count, _, _) in sorted(run.groups.items(), key=lambda item: (-item[1][0], item[0])):
        lines.append(f"| {count} | {group.replace('|', '/')} |")
    return "\n".join(lines) + "\n"


def _row(run: Run, kind: str) -> str:
    kinds = run.kinds if kind == "all" else [kind]

    def outcome(name: str) -> int:
        return sum(run.verdicts[k, name] for k in kinds)

    total = sum(count for (k, _), count in run.verdicts.items() if k in kinds)
    shares = [sum(run.passed[k, stage] for k in kinds) / max(1, total) for stage in execute.STAGES]
    cells = [kind, str(total), *(f"{share:.0%}" for share in shares)]
    cells += [str(outcome(name)) for name in ("done", "refused", "died", "bad")]
    return f"| {' | '.join(cells)} |"

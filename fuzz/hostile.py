# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""The failure classes of a run as small files: tests/hostile, with an index of what each must be answered with.

A class is kept by its smallest case, packed with xz where that helps. What is larger than MAX_BYTES even so is left
out, and so is what would exceed MAX_TOTAL, the rarest classes first. Kinds that need their framework are not kept: the
tests of the front ends have what was found there.
"""

from __future__ import annotations

import json
import lzma
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fuzz import execute
from fuzz.corpus import FRAMEWORK_KINDS
from fuzz.mutate import Files
from npukit.errors import shown

if TYPE_CHECKING:
    from fuzz.__main__ import Run

FOLDER = Path(__file__).resolve().parents[1] / "tests" / "hostile"
MAX_BYTES = 6_000
MAX_TOTAL = 340_000
_SENTENCE = 70  # letters of the expected sentence; the tail of a message holds numbers and vendors' words


def collect(run: Run, folder: Path = FOLDER) -> tuple[int, int]:
    """Write the classes of `run` to `folder`, replacing those of its kinds; how many were kept and left out."""
    folder.mkdir(parents=True, exist_ok=True)
    kept = index(folder) if (folder / "index.json").exists() else []
    found = [entry for entry in kept if entry["kind"] not in run.kinds]
    for entry in kept:
        if entry not in found:
            shutil.rmtree(folder / entry["name"])
    left_out = 0
    total = sum(path.stat().st_size for entry in found for path in (folder / entry["name"]).iterdir())
    order = sorted(run.groups.values(), key=lambda group: (-group[0], group[1].name))
    for _, case, verdict in (group for group in order if group[2].outcome == "refused"):
        if case.kind in FRAMEWORK_KINDS:
            continue
        files = _packed(case.files)
        size = sum(map(len, files.values()))
        if max(map(len, files.values())) > MAX_BYTES or total + size > MAX_TOTAL:
            left_out += 1
            continue
        total += size
        name = f"{case.kind}-{sum(entry['kind'] == case.kind for entry in found):03}"
        (folder / name).mkdir()
        for file, data in files.items():
            (folder / name / file).write_bytes(data)
        options = {key: value for key, value in case.options.items() if key in ("target", "input_ranges")}
        found.append({"name": name, "kind": case.kind, "main": case.main, "options": options, "exit": verdict.exit_code,
                      "error": verdict.error, "sentence": sentence(verdict)})  # fmt: skip
    found.sort(key=lambda entry: str(entry["name"]))
    (folder / "index.json").write_text(json.dumps(found, indent=1, ensure_ascii=True) + "\n")
    return len(found), left_out


def _packed(files: Files) -> Files:
    """The files, those that become much smaller by it packed with xz."""
    packed: Files = {}
    for name, data in files.items():
        small = lzma.compress(data, check=lzma.CHECK_NONE, preset=9)
        packed.update({f"{name}.xz": small} if len(small) < 0.8 * len(data) else {name: data})
    return packed


def load(entry: dict[str, Any], folder: Path = FOLDER) -> execute.Case:
    """The case of an entry of the index."""
    files: Files = {}
    for path in sorted((folder / entry["name"]).iterdir()):
        packed = path.suffix == ".xz"
        files[path.stem if packed else path.name] = lzma.decompress(path.read_bytes()) if packed else path.read_bytes()
    options = dict(entry["options"])
    if "target" in options:
        options["target"] = tuple(options["target"])
    return execute.Case(entry["name"], entry["kind"], "", files, entry["main"], options)


def index(folder: Path = FOLDER) -> list[dict[str, Any]]:
    """The entries of the index."""
    return list(json.loads((folder / "index.json").read_text()))


def sentence(verdict: execute.Verdict) -> str:
    """The part of the error's text that must appear again: its sentence as far as no path stands in it."""
    return shown(verdict.what)[:_SENTENCE].split("/")[0].rstrip()

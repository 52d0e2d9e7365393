# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""The failure classes of a run as small files: tests/hostile, with an index of what each must be answered with.

A class is kept by its smallest case. Files above MAX_BYTES are packed with gzip; what is larger even so is left out,
and so is everything once MAX_TOTAL is reached, the most frequent classes first.
"""

from __future__ import annotations

import gzip
import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fuzz import execute
from fuzz.mutate import Files

if TYPE_CHECKING:
    from fuzz.__main__ import Run

FOLDER = Path(__file__).resolve().parents[1] / "tests" / "hostile"
MAX_BYTES = 5_000
MAX_TOTAL = 280_000
_SENTENCE = 70  # letters of the expected sentence; the tail of a message holds numbers and vendors' words


def collect(run: Run, folder: Path = FOLDER) -> tuple[int, int]:
    """Write the classes of `run` to `folder`, replacing what is there; how many were kept and left out."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    index: list[dict[str, Any]] = []
    total = left_out = 0
    for number, (_, case, verdict) in enumerate(
        sorted(run.groups.values(), key=lambda g: (g[1].kind, -g[0], g[1].name))
    ):
        files = {name: _packed(data) for name, data in case.files.items()}
        size = sum(map(len, files.values()))
        if verdict.outcome != "refused" or max(map(len, files.values())) > MAX_BYTES or total + size > MAX_TOTAL:
            left_out += 1
            continue
        total += size
        name = f"{case.kind}-{number:03}"
        _write(folder / name, files, case.files)
        options = {key: value for key, value in case.options.items() if key in ("target", "input_ranges")}
        index.append({"name": name, "kind": case.kind, "main": case.main, "options": options, "exit": verdict.exit_code,
                      "error": verdict.error, "sentence": sentence(verdict.text)})  # fmt: skip
    (folder / "index.json").write_text(json.dumps(index, indent=1, ensure_ascii=True) + "\n")
    return len(index), left_out


def _packed(data: bytes) -> bytes:
    return data if len(data) <= MAX_BYTES else gzip.compress(data, 9, mtime=0)


def _write(place: Path, files: Files, originals: Files) -> None:
    place.mkdir()
    for name, data in files.items():
        (place / (name if data == originals[name] else f"{name}.gz")).write_bytes(data)


def load(entry: dict[str, Any], folder: Path = FOLDER) -> execute.Case:
    """The case of an entry of the index."""
    files: Files = {}
    for path in sorted((folder / entry["name"]).iterdir()):
        packed = path.suffix == ".gz"
        files[path.stem if packed else path.name] = gzip.decompress(path.read_bytes()) if packed else path.read_bytes()
    options = dict(entry["options"])
    if "target" in options:
        options["target"] = tuple(options["target"])
    return execute.Case(entry["name"], entry["kind"], "", files, entry["main"], options)


def index(folder: Path = FOLDER) -> list[dict[str, Any]]:
    """The entries of the index."""
    return list(json.loads((folder / "index.json").read_text()))


def sentence(text: str) -> str:
    """The part of an error's text that must appear again: of the first fault where there are several, without paths."""
    lines = text.splitlines()
    line = lines[1].split("]", 1)[1] if len(lines) > 1 and lines[1].startswith("  [1]") else lines[0]
    parts = [part for part in line.split(": ") if "/" not in part]
    return max(parts, key=len, default=line.split(": ")[-1])[:_SENTENCE].strip()

# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""`npukit encodings`: show, check, convert and compare encodings files."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from npukit.analysis import text
from npukit.errors import Fault, UsageError, nearest
from npukit.quantization.encodings_file import VERSIONS, EncodingsFile, write
from npukit.quantization.encodings_writer import lost
from npukit.verbs.isolate import isolated
from npukit.verbs.options import arg, opt, verb

if TYPE_CHECKING:
    from npukit.quantization.encodings_tools import Checked, Delta

_TOOLS = "npukit.quantization.encodings_tools"


@dataclass(frozen=True)
class EncodingsOptions:
    """Show, check, convert or compare encodings files: AIMET 0.6.1, 1.0.0, 2.0.0 and quantization overrides.

    show FILE|DLC; lint FILE [--model MODEL]; convert FILE --to VERSION -o OUT; diff FILE|DLC FILE|DLC.
    lint exits 1 where it finds a fault, diff with --exit-code where the two differ.
    """

    action: str = arg("show, lint, convert or diff", parse=None, metavar="show|lint|convert|diff")
    files: tuple[Path, ...] = arg("encodings files or DLCs", many=True, metavar="FILE...")
    to: str | None = opt(None, "convert: the version to write.", choices=VERSIONS)
    output: Path | None = opt(None, "convert: the file to write.", "--output", "-o", metavar="FILE", parse=Path)
    model: Path | None = opt(
        None, "The source model: lint checks against it, convert takes axes from it.", metavar="MODEL", parse=Path
    )
    lossy: bool = opt(False, "convert: leave out what the version cannot hold.", "--lossy")
    check: bool = opt(False, "diff: exit 1 if the two differ.", "--exit-code")
    limit: int = opt(0, "Most rows shown; 0 for all.")
    timeout: float | None = opt(None, "Seconds that it may take.")
    in_process: bool = opt(False, "Run native code in this process.", "--in-process")


@dataclass(frozen=True)
class EncodingsResult:
    """What an action found.

    Attributes:
        action: "show", "lint", "convert" or "diff".
        head: one line for people: the file, its version, its entries.
        columns: names of the rows' cells.
        rows: entries, or differences.
        faults: what lint found, each with its line.
        notes: what was left out, or could not be checked.
        output: the file that was written.
        exit_code: 1 where a check did not hold.
    """

    action: str
    head: str
    columns: tuple[str, ...] = ()
    rows: tuple[tuple[Any, ...], ...] = ()
    faults: tuple[Fault, ...] = ()
    notes: tuple[str, ...] = ()
    output: Path | None = None
    limit: int = 0
    exit_code: int = 0

    def to_json(self) -> dict[str, Any]:
        return {
            "action": self.action,
            "summary": self.head,
            "rows": [dict(zip(self.columns, row, strict=True)) for row in self.rows],
            "faults": [{"what": f.what, "where": f.where, "hint": f.hint} for f in self.faults],
            "notes": list(self.notes),
            "output": None if self.output is None else str(self.output),
        }

    def to_text(self) -> str:
        shown = self.rows[: self.limit] if self.limit else self.rows
        lines = [self.head]
        if shown:
            lines.append(text.table(self.columns, shown, indent=2))
        if len(shown) < len(self.rows):
            lines.append(f"  ... and {len(self.rows) - len(shown)} more (--limit 0)")
        lines += [f"  [{i}] {fault}" for i, fault in enumerate(self.faults, 1)]
        lines += [f"note: {note}" for note in self.notes]
        return "\n".join(lines)


@verb(EncodingsOptions)
def encodings(options: EncodingsOptions) -> EncodingsResult:
    """Show, check, convert or compare encodings files and the encodings of DLCs.

    Raises:
        EncodingsError: a file is at fault, or a version cannot hold an entry; every fault at once.
        NpukitError: a file is missing or of no known kind.

    Example:
        >>> npukit.encodings("show", "digits.dlc").rows[0][:3]
        ('image', 'activation', 32)
        >>> made = npukit.encodings("convert", "digits.dlc", to="qnn", output="digits.json")
        >>> npukit.encodings("lint", "digits.json", model="digits.onnx").exit_code
        0
    """
    if options.action not in _ACTIONS:
        raise UsageError(f"there is no action {options.action!r}", hint=nearest(options.action, _ACTIONS))
    count, action = _ACTIONS[options.action]
    if len(options.files) != count:
        files = "one file" if count == 1 else "two files"
        raise UsageError(f"{options.action} takes {files}, got {len(options.files)}", hint="npukit encodings --help")
    with isolated(in_process=options.in_process, timeout=options.timeout) as call:
        return action(options, call)


def _show(options: EncodingsOptions, call: Callable[..., Any]) -> EncodingsResult:
    file: EncodingsFile = call(f"{_TOOLS}:entries_of", options.files[0])
    rows = tuple((e.name, e.kind, e.bitwidth, e.describe()) for e in file)
    return EncodingsResult("show", _head(file), ("name", "kind", "bits", "encoding"), rows, limit=options.limit)


def _lint(options: EncodingsOptions, call: Callable[..., Any]) -> EncodingsResult:
    found: Checked = call(f"{_TOOLS}:lint", options.files[0], options.model)
    classes = ", ".join(f"{count} {name}" for name, count in sorted(found.classes.items()))
    verdict = f"{len(found.faults)} fault{'s' if len(found.faults) != 1 else ''}" if found.faults else "no fault"
    head = f"{_head(found.file)}; {classes + '; ' if classes else ''}{verdict}"
    return EncodingsResult("lint", head, faults=found.faults, notes=found.notes, exit_code=1 if found.faults else 0)


def _convert(options: EncodingsOptions, call: Callable[..., Any]) -> EncodingsResult:
    if options.to is None or options.output is None:
        raise UsageError("convert needs --to VERSION and -o FILE", hint=f"versions: {', '.join(VERSIONS)}")
    file: EncodingsFile = call(f"{_TOOLS}:entries_of", options.files[0])
    entries = call(f"{_TOOLS}:as_source", file, options.model)
    left_out = lost(entries, options.to) if options.lossy else []
    gone = {id(entry) for entry, _ in left_out}
    write(options.output, [entry for entry in entries if id(entry) not in gone], options.to)
    notes = tuple(f"left out {entry.name!r}: {why}" for entry, why in left_out)
    head = f"{options.output}: {len(entries) - len(left_out)} entries, version {options.to}"
    return EncodingsResult("convert", head, notes=notes, output=options.output)


def _diff(options: EncodingsOptions, call: Callable[..., Any]) -> EncodingsResult:
    left, right = (call(f"{_TOOLS}:entries_of", path) for path in options.files)
    deltas: list[Delta] = call(f"{_TOOLS}:compare", left, right)
    rows = tuple((d.what, d.name, d.left or "-", d.right or "-") for d in deltas)
    head = f"{options.files[0]} -> {options.files[1]}: " + (f"{len(rows)} differ" if rows else "the same encodings")
    code = 1 if options.check and rows else 0
    columns = ("difference", "name", "left", "right")
    return EncodingsResult("diff", head, columns, rows, limit=options.limit, exit_code=code)


_ACTIONS: dict[str, tuple[int, Callable[[EncodingsOptions, Callable[..., Any]], EncodingsResult]]] = {
    "show": (1, _show),
    "lint": (1, _lint),
    "convert": (1, _convert),
    "diff": (2, _diff),
}


def _head(file: EncodingsFile) -> str:
    kinds = {kind: sum(e.kind == kind for e in file) for kind in ("activation", "param")}
    by = f" by {file.producer}" if file.producer else ""
    what = {"dlc": "DLC", "qnn": "quantization overrides"}.get(file.version, f"version {file.version}")
    return f"{file.where}: {what}{by}, {kinds['activation']} activations, {kinds['param']} params"

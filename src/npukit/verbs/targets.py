# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""`npukit targets`: the chips that npukit knows and what can be made for each."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from npukit.analysis import text
from npukit.errors import UsageError
from npukit.verbs.options import arg, verb


@dataclass(frozen=True)
class TargetsOptions:
    """List the chips that npukit knows, or show one."""

    name: str | None = arg("show only this target", default=None, parse=None, metavar="NAME")


@dataclass(frozen=True)
class TargetsResult:
    """Rows of the targets table.

    Attributes:
        rows: one object a target, with the fields of `npukit.targets.Target`.
    """

    rows: tuple[dict[str, Any], ...]
    exit_code: int = 0

    def to_json(self) -> dict[str, Any]:
        return {"targets": list(self.rows)}

    def to_text(self) -> str:
        head = ("target", "backend", "SoC id", "Hexagon", "VTCM MB", "float16", "int4", "source")
        keys = ("name", "backend", "soc_id", "arch", "vtcm_mb", "float16", "int4", "source")
        rows = [[row[key] if row[key] != "" else None for key in keys] for row in self.rows]
        lines = [text.table(head, [[f"V{r[3]}" if i == 3 and c else c for i, c in enumerate(r)] for r in rows])]
        notes: dict[str, list[str]] = {row["notes"]: [] for row in self.rows if row["notes"]}
        for row in self.rows:
            if row["notes"]:
                notes[row["notes"]].append(row["name"])
        lines += [f"{', '.join(names)}: {note}" for note, names in notes.items()]
        return "\n".join(lines)


@verb(TargetsOptions)
def targets(options: TargetsOptions) -> TargetsResult:
    """The table of targets, or the row `name`; an unknown name is an error with the nearest one."""
    from npukit.targets import TARGETS, target

    try:
        chosen = [target(options.name)] if options.name else list(TARGETS.values())
    except UsageError as error:
        error.where = ""  # here the name is an argument, not --target
        raise
    return TargetsResult(tuple(asdict(row) for row in chosen))

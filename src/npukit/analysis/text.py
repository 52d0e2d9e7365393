# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""Plain text for results: aligned tables that need no library and no terminal."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence


def table(head: Sequence[str], rows: Sequence[Sequence[object]], *, indent: int = 0) -> str:
    """Aligned columns; a column whose cells are all numbers is set to the right."""
    cells = [[_cell(value) for value in row] for row in rows]
    lines = [list(head), *cells]
    widths = [max(len(line[i]) for line in lines) for i in range(len(head))]
    right = [bool(rows) and all(_numeric(row[i]) for row in rows) for i in range(len(head))]
    text = [
        "  ".join(c.rjust(w) if r else c.ljust(w) for c, w, r in zip(line, widths, right, strict=True)).rstrip()
        for line in lines
    ]
    return textwrap.indent("\n".join(text), " " * indent)


def _numeric(value: object) -> bool:
    return value is None or (isinstance(value, int | float) and not isinstance(value, bool))


def _cell(value: object) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.4g}"
    return str(value)


def size(count: int) -> str:
    """A number of bytes as a person reads it: 1.5 MB (powers of 1000)."""
    if count < 1000:
        return f"{count} B"
    amount = float(count)
    for unit in ("kB", "MB", "GB", "TB"):
        amount /= 1000
        if amount < 999.5 or unit == "TB":
            return f"{amount:.3g} {unit}"
    raise AssertionError


def shape(extents: Sequence[object] | None) -> str:
    """A shape as [1, 3, 224, 224]; open dimensions as ?."""
    if extents is None:
        return "[...]"
    return "[" + ", ".join("?" if e is None else str(e) for e in extents) + "]"


def fields(pairs: Sequence[tuple[str, object]]) -> str:
    """`name: value` lines with the values aligned; empty values are left out."""
    shown = [(name, value) for name, value in pairs if value not in (None, "", (), [])]
    width = max((len(name) for name, _ in shown), default=0) + 2
    return "\n".join(f"{name + ':':<{width}}{_cell(value)}" for name, value in shown)

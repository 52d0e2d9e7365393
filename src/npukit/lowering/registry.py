# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""The table of lowerings: (domain, ONNX op, opset range) -> function."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import onnx_ir as ir

if TYPE_CHECKING:
    from npukit.lowering.emitter import Emitter

LowerFunction = Callable[["Emitter", ir.Node], None]


class Unsupported(Exception):
    """Raised inside a lowering: the node has no form here. The driver collects all of them.

    Attributes:
        reason: what cannot be expressed; kind: one of the fixed reasons of the conformance report.
        hint: the nearest thing that works.
    """

    def __init__(self, reason: str, hint: str = "", kind: str = "no QNN op or composition") -> None:
        super().__init__(reason)
        self.reason = reason
        self.hint = hint
        self.kind = kind


class Refused(Unsupported):
    """A backend's own validation refused an op that a lowering emitted."""

    def __init__(self, op_type: str, target: str, text: str) -> None:
        super().__init__(f"{target} refuses {op_type}: {text}", kind="backend refused")


@dataclass(frozen=True)
class Lowering:
    """One registered function and the opset versions it reads."""

    domain: str
    op: str
    since: int
    until: int | None
    function: LowerFunction


class Registry:
    """Lowerings by (domain, op); ranges of one key may not overlap."""

    def __init__(self) -> None:
        self._table: dict[tuple[str, str], list[Lowering]] = {}

    def __call__(
        self, *ops: str, domain: str = "", since: int = 1, until: int | None = None
    ) -> Callable[[LowerFunction], LowerFunction]:
        """Register the decorated function for `ops` of `domain` in opsets [since, until)."""

        def register(function: LowerFunction) -> LowerFunction:
            for op in ops:
                self.add(Lowering(domain, op, since, until, function))
            return function

        return register

    def add(self, new: Lowering) -> None:
        """Add one row. Raises ValueError naming both owners when a range overlaps."""
        rows = self._table.setdefault((new.domain, new.op), [])
        for old in rows:
            if (old.until is None or new.since < old.until) and (new.until is None or old.since < new.until):
                owners = " and ".join(f"{row.function.__module__}.{row.op}" for row in (old, new))
                raise ValueError(f"two lowerings own ({new.domain!r}, {new.op!r}): {owners}")
        rows.append(new)

    def find(self, domain: str, op: str, version: int | None) -> LowerFunction | None:
        """The function for an op at an opset version (None: newest), or None."""
        for row in self._table.get((domain, op), ()):
            if version is None and row.until is None:
                return row.function
            if version is not None and row.since <= version and (row.until is None or version < row.until):
                return row.function
        return None

    def __iter__(self) -> Iterator[Lowering]:
        for key in sorted(self._table):
            yield from self._table[key]


lowers = Registry()

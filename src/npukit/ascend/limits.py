# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""What atc and the Ascend 310P take of each ONNX op, as one table: `data/limits.json`, read once.

Three kinds of rows, each from public material:

- `cann`: which opsets a CANN version documents, and which its parser is taken to read.
- `ops`: opsets that the ONNX plugins of CANN 9 register an op for, and whether CANN 8.0 lists the op.
- `limits`: one documented limit of one op, with its source: the page number of Ascend's operator reference ("OXOL
  0092"), a page name, or a path in the published sources ("ON ...").
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any

from npukit.errors import UsageError

ERROR, WARNING, NOTE = LEVELS = ("error", "warning", "note")

PRECISIONS = ("fp16", "origin", "mixed_float16", "cube_fp16in_fp32out")
"""What atc's --precision_mode_v2 takes for this chip; the first is the default."""

DEFAULT_CANN = "8.2"

# Rule -> level and what it says once above its findings.
RULES: dict[str, tuple[str, str]] = {
    "atc-opset": (ERROR, "atc of this CANN does not read the opset"),
    "atc-op": (ERROR, "atc has no parser for the op"),
    "atc-file": (ERROR, "atc cannot read the file as it lies there"),
    "atc-name": (ERROR, "names that atc refuses"),
    "atc-dynamic": (ERROR, "shapes that are open"),
    "atc-limit": (ERROR, "beyond what the op takes"),
    "atc-dtype": (ERROR, "dtypes that the chip has no kernel for"),
    "atc-opset-unverified": (WARNING, "opsets that no document of this CANN names"),
    "atc-op-unlisted": (WARNING, "ops that this CANN does not list: atc may have no parser for them"),
    "atc-undocumented": (WARNING, "beyond what the op's page documents: runs on the AI CPU, or is refused"),
    "atc-float16": (WARNING, "values that float16 cannot hold or square, in which it is computed"),
    "atc-mask": (NOTE, "mask values that become -65504: a row that is masked as a whole becomes uniform"),
    "atc-precision": (NOTE, "what the precision mode does"),
}


@dataclass(frozen=True)
class Cann:
    """A CANN version.

    Attributes:
        name: major and minor number.
        order: sorts releases and their candidates.
        documented: first and last opset of ai.onnx that its guide names.
        reads: first and last that its parser is taken to read.
    """

    name: str
    order: tuple[int, int, int]
    documented: tuple[int, int]
    reads: tuple[int, int]


@dataclass(frozen=True)
class OpRow:
    """Whether atc has a parser for an op.

    Attributes:
        opsets: versions of ai.onnx that CANN 9's sources register it for; empty where they do not.
        listed: whether CANN 8.0 lists it.
    """

    opsets: frozenset[int]
    listed: bool


@dataclass(frozen=True)
class Limit:
    """One limit of one op.

    Attributes:
        op: ONNX op type.
        kind: what is limited; a key of `npukit.ascend.rules.KINDS`.
        at: inputs by index ("*" all), an attribute's name, or (input, axis).
        allow: what is taken: dtypes, values, first and last number (None: open), equations.
        opsets: first and last opset that it holds for.
        cann: first and last CANN version that it holds for, as `Cann.order`.
        level: "error" or "warning".
        source: where it is documented.
        say: what is said of a node beyond it, where the kind does not say it.
        do: what to do about it.
        fix: the pass that does it; empty without one.
    """

    op: str
    kind: str
    level: str
    source: str
    at: Any = None
    allow: Any = None
    opsets: tuple[int, int] = (1, 1 << 30)
    cann: tuple[tuple[int, int, int], tuple[int, int, int]] = ((0, 0, 0), (99, 0, 0))
    say: str = ""
    do: str = ""
    fix: str = ""

    def holds(self, cann: Cann, opset: int) -> bool:
        """Whether it is a limit of this version and opset."""
        return self.cann[0] <= cann.order <= self.cann[1] and self.opsets[0] <= opset <= self.opsets[1]


_RELEASE = 99  # sorts behind every release candidate
_VERSION = re.compile(r"(\d+)\.(\d+)(?:\.\d+)?(?:\.?RC(\d+)(?:\.\w+)*)?", re.IGNORECASE)


def _order(text: str, release: int = _RELEASE) -> tuple[int, int, int] | None:
    match = _VERSION.fullmatch(text.strip())
    return (int(match[1]), int(match[2]), int(match[3] or release)) if match else None


def cann_version(text: str) -> Cann:
    """The row of a CANN version such as "8.2", "8.0.0" or "8.2.RC1".

    Raises:
        UsageError: not a version that the table has.
    """
    order = _order(text)
    row = next((row for row in _data()["cann"] if order and row["name"] == f"{order[0]}.{order[1]}"), None)
    if order is None or row is None:
        known = ", ".join(row["name"] for row in _data()["cann"])
        raise UsageError(f"no CANN version {text!r}", where="--cann", hint=f"known are {known}")
    return Cann(row["name"], order, tuple(row["opsets"]), tuple(row["reads"]))


def check_precision(mode: str) -> None:
    """Raise UsageError for a precision mode that the chip does not have."""
    if mode not in PRECISIONS:
        raise UsageError(f"no precision mode {mode!r}", hint=f"this chip has {', '.join(PRECISIONS)}")


@cache
def op_rows() -> dict[str, OpRow]:
    """Every op of the table, by name."""
    rows = {}
    for name, row in _data()["ops"].items():
        first, last = row["opsets"] or (1, 0)
        opsets = frozenset(range(first, last + 1)) - set(row.get("without", ()))
        rows[name] = OpRow(opsets, row["listed"])
    return rows


@cache
def limits() -> dict[str, tuple[Limit, ...]]:
    """The limits of each op, by its name."""
    found: dict[str, list[Limit]] = {}
    for row in _data()["limits"]:
        fields = dict(row)
        if "opsets" in fields:
            fields["opsets"] = tuple(fields["opsets"])
        if "cann" in fields:
            first, last = fields["cann"]
            fields["cann"] = (_order(first or "0.0", 0), _order(last or "99.0"))
        found.setdefault(row["op"], []).append(Limit(**fields))
    return {op: tuple(rows) for op, rows in found.items()}


@cache
def _data() -> dict[str, Any]:
    text = resources.files("npukit.ascend").joinpath("data/limits.json").read_text(encoding="utf-8")
    data: dict[str, Any] = json.loads(text)
    return data

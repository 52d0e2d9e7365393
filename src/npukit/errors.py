# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""The error hierarchy, and how a list of faults is shown.

Every error that a user can cause is a `NpukitError`: it says what is wrong, where, and what to do, and
carries the exit code of the command (DESIGN, "Exit codes"). Nothing else may reach the command line.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass

_MOST_LETTERS = 1_000  # of one part of a message
_MOST_FAULTS = 100  # that a message lists; `NpukitError.faults` holds all


def shown(text: str, limit: int = _MOST_LETTERS) -> str:
    """`text` fit for one line of a console: names come from files, and may hold anything at any length.

    White space becomes single blanks, control characters (a terminal would obey them) become escapes, what is longer
    than `limit` loses its middle.
    """
    line = " ".join(text.split()) if "\n" in text or "\t" in text or "\r" in text else text
    if not line.isprintable():
        line = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in line)
    if len(line) > limit:
        line = f"{line[: limit * 2 // 3]} ... {line[-(limit // 3) :]}"
    return line


@dataclass(frozen=True)
class Fault:
    """One thing that is wrong: `where` names the node, tensor, file or option; `hint` says what to do."""

    what: str
    where: str = ""
    hint: str = ""

    def __str__(self) -> str:
        text = _head(self.where, self.what)
        return f"{text}\n      hint: {shown(self.hint)}" if self.hint else text


def _head(where: str, what: str) -> str:
    return f"{shown(where)}: {shown(what)}" if where else shown(what)


class NpukitError(Exception):
    """Base of all errors that npukit raises on purpose.

    Attributes:
        code: a short stable identifier for programs ("model", "native", ...).
        exit_code: the command's exit status for this error.
        where: node, tensor, file or option at fault; empty if the message says it.
        hint: what to do about it; empty if there is nothing to add.
        faults: every fault found, where one run found several.

    Example:
        >>> try:
        ...     npukit.convert("nothing.onnx")
        ... except npukit.NpukitError as error:
        ...     print(error.code, error.exit_code, error.what)
        model 2 there is no such file
    """

    code = "error"
    exit_code = 2

    def __init__(self, what: str, *, where: str = "", hint: str = "", faults: Sequence[Fault] = ()) -> None:
        self.what = what
        self.where = where
        self.hint = hint
        self.faults = tuple(faults)
        super().__init__(what, where, hint, self.faults)

    def __reduce__(self) -> tuple[object, ...]:
        return (_rebuild, (type(self), self.what, self.where, self.hint, self.faults))

    def __str__(self) -> str:
        lines = [_head(self.where, self.what)]
        lines += [f"  [{i}] {fault}" for i, fault in enumerate(self.faults[:_MOST_FAULTS], 1)]
        if len(self.faults) > _MOST_FAULTS:
            lines.append(f"  and {len(self.faults) - _MOST_FAULTS} more")
        if self.hint:
            lines.append(f"  hint: {shown(self.hint)}")
        return "\n".join(lines)

    def to_json(self) -> dict[str, object]:
        """The error as one JSON-ready object: code, exit_code, what, where, hint, faults."""
        return {
            "code": self.code,
            "exit_code": self.exit_code,
            "what": self.what,
            "where": self.where,
            "hint": self.hint,
            "faults": [asdict(fault) for fault in self.faults],
        }


def _rebuild(kind: type[NpukitError], what: str, where: str, hint: str, faults: tuple[Fault, ...]) -> NpukitError:
    error = kind.__new__(kind)
    NpukitError.__init__(error, what, where=where, hint=hint, faults=faults)
    return error


class UsageError(NpukitError):
    """An option, argument or call that cannot be meant."""

    code = "usage"


class ModelError(NpukitError):
    """A source model that is broken, or that needs something from the user (a shape, a range)."""

    code = "model"


class LoweringError(NpukitError):
    """A model that no form of lowering can express for the target; `faults` lists every node."""

    code = "lowering"


class GraphError(NpukitError):
    """A QNN graph that breaks the op definitions; `faults` lists every violation."""

    code = "graph"


class ArtifactError(NpukitError):
    """A DLC, context binary or other artifact that cannot be read, or does not match its stamp."""

    code = "artifact"


class InputError(NpukitError):
    """Inputs of a run that are missing, unknown, wrongly shaped, typed or out of range; all are listed."""

    code = "input"


class CheckFailed(NpukitError):
    """A check that did not hold (verify, lint): the command exits 1."""

    code = "check"
    exit_code = 1


class MissingDependency(NpukitError):
    """A native library, device or extra that this machine lacks; the hint says how to get it."""

    code = "missing"
    exit_code = 3


class NativeError(NpukitError):
    """A native library call that failed, with the vendor's code, symbol and text."""

    code = "native"
    exit_code = 3


class WorkerDied(NativeError):
    """The worker process crashed, hung or ran out of memory."""

    code = "worker-died"


def nearest(name: str, known: Iterable[str]) -> str:
    """A "did you mean ...?" sentence for `name`, or the list of what is known when nothing is near."""
    names = sorted(known)
    match = difflib.get_close_matches(name, names, n=1, cutoff=0.6)
    if match:
        return f"did you mean {match[0]!r}?"
    shown = ", ".join(names[:12]) + (", ..." if len(names) > 12 else "")
    return f"known: {shown}" if names else ""

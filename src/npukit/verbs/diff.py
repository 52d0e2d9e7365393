# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""`npukit diff`: what differs between two model files of any kind."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from npukit.analysis.diff import Difference
from npukit.verbs.isolate import isolated
from npukit.verbs.options import arg, opt, verb


@dataclass(frozen=True)
class DiffOptions:
    """Show what differs between two models or artifacts: inputs and outputs, ops, weights, encodings, stamp.

    Exits 0 whether they differ or not; with --exit-code 1 if they do.
    """

    left: Path = arg("the first file")
    right: Path = arg("the second file")
    graph: str | None = opt(None, "Compare only this graph.", metavar="NAME")
    check: bool = opt(False, "Exit 1 if the two differ.", "--exit-code")
    limit: int = opt(20, "Most differences listed of each kind; 0 for all.")
    timeout: float | None = opt(None, "Seconds that it may take.")
    in_process: bool = opt(False, "Run native code in this process.", "--in-process")


@verb(DiffOptions)
def diff(options: DiffOptions) -> Difference:
    """What differs between `left` and `right`.

    Raises:
        NpukitError: a file is missing, broken or of no known kind.

    Example:
        >>> npukit.diff("digits.dlc", "digits.dlc").same
        True
    """
    with isolated(in_process=options.in_process, timeout=options.timeout) as call:
        found: Difference = call(
            "npukit.analysis.diff:diff",
            options.left,
            options.right,
            options.graph,
            limit=options.limit,
            check=options.check,
        )
    return found

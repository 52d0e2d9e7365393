# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""`npukit inspect`: what a model, DLC or context binary holds."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from npukit.analysis.inspect import Description
from npukit.verbs.isolate import isolated
from npukit.verbs.options import arg, opt, verb


@dataclass(frozen=True)
class InspectOptions:
    """Show what a model, DLC or context binary holds: inputs, outputs, ops, sizes, encodings, SoC, versions, stamp."""

    file: Path = arg("the file (.onnx, .dlc, context binary)")
    graph: str | None = opt(None, "Show only this graph.", metavar="NAME")
    ops: bool = opt(False, "List every op.", "--ops")
    tensors: bool = opt(False, "List every tensor with its encoding.", "--tensors")
    timeout: float | None = opt(None, "Seconds that it may take.")
    in_process: bool = opt(False, "Run native code in this process.", "--in-process")


@verb(InspectOptions)
def inspect(options: InspectOptions) -> Description:
    """Describe a model file of any kind; of an artifact without Qualcomm's libraries only stamp, versions and members.

    Raises:
        NpukitError: the file is missing, broken or of no known kind.

    Example:
        >>> graph = npukit.inspect("digits.dlc").to_json()["graphs"][0]
        >>> graph["name"], graph["op_count"]
        ('digits', 9)
    """
    with isolated(in_process=options.in_process, timeout=options.timeout) as call:
        found: Description = call(
            "npukit.analysis.inspect:describe", options.file, options.graph, ops=options.ops, tensors=options.tensors
        )
    return found

# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""What encoding each tensor of a quantized graph got, and why."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from npukit import files
from npukit.qnn.graph import Graph, Tensor, TensorKind
from npukit.quantization.calibrated import Calibrated
from npukit.quantization.encodings_tools import entry_of
from npukit.quantization.entry import Entry
from npukit.quantization.ranges import covered
from npukit.quantization.roles import Role, role


def provenance(graph: Graph, source: Graph, encodings: Calibrated, names: Mapping[str, str]) -> list[dict[str, Any]]:
    """One row for each tensor of `graph` that has an encoding, in the graph's order.

    Args:
        graph: quantized.
        source: the float graph that it was made of.
        encodings: what it was quantized with.
        names: name in the artifact -> name in the source, where that is known.

    Returns:
        "name" in the source, "tensor" in the artifact, "kind" ("activation" or "param"), "bits", "encoding" in words,
        "range" that its codes reach, "seen" in calibration (None where it decides no encoding), "why".
    """
    floats = {tensor.name: tensor for tensor in source.tensors()}
    roles = {t.name: role(op, i) for op in source.ops for i, t in enumerate(op.inputs) if t is not None}
    rows = []
    for tensor in graph.tensors():
        entry = entry_of(tensor)
        if entry is None:
            continue
        original = floats.get(tensor.name)
        observer = encodings.seen(original) if original is not None else None
        rows.append(
            {
                "name": names.get(tensor.name, tensor.name),
                "tensor": tensor.name,
                "kind": entry.kind,
                "bits": entry.bitwidth,
                "encoding": entry.describe(),
                "range": _range(tensor),
                "seen": None if observer is None or not observer.count else [observer.low, observer.high],
                "why": _why(original, roles.get(tensor.name), entry, encodings),
            }
        )
    return rows


def write(path: Path, rows: list[dict[str, Any]]) -> None:
    """Write `provenance` as a JSON array, one row a line."""
    lines = ",\n".join(json.dumps(row) for row in rows)
    files.atomic_write_bytes(path, f"[\n{lines}\n]\n".encode())


def _range(tensor: Tensor) -> list[float] | None:
    encoding = tensor.encoding
    if encoding is None or len(encoding.scales) != 1 or tensor.kind is TensorKind.STATIC:
        return None
    found = covered(encoding, tensor.dtype)
    return [found.low, found.high]


def _why(original: Tensor | None, part: Role | None, entry: Entry, encodings: Calibrated) -> str:
    if entry.dtype == "float":
        return "left in float"
    if original is None:
        return "stands where neighbours differ"
    if original.kind is not TensorKind.STATIC:
        return encodings.why(original, entry.bitwidth)
    if encodings.asked(original) is not None:
        return "given"
    if part is Role.WEIGHT:
        return encodings.why_weights()
    return "input's scale times weight's" if part is Role.BIAS and entry.bitwidth == 32 else "its own values"

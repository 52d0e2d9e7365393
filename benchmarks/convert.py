# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""Time and peak memory of writing a DLC: npukit, bare C API calls, ONNX Runtime's QNN provider."""

from __future__ import annotations

import shutil
import statistics
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks import models
from benchmarks.measure import Cost, measure, python

BARE = "bare C API calls"
OURS = "npukit --no-verify"
VERIFIED = "npukit, verified"
PEER = "ONNX Runtime QNN provider"


def compare(
    folder: Path,
    kind: str,
    size: int,
    *,
    repeats: int,
    writer: Path,
    peer: Path | None,
    env: dict[str, str],
    say: Callable[[str], None],
) -> dict[str, Any]:
    """Write one model by every tool, `repeats` times in turn; the medians, and their ratios to the bare program.

    Args:
        folder: where to work; emptied again.
        kind: see `models`.
        size: bytes of weights.
        repeats: rounds.
        writer: libQnnIr.
        peer: the Python with a matching onnxruntime and onnxruntime-qnn, None to leave the peer out.
        env: environment of the commands.
        say: hears of progress.
    """
    work = folder / f"{kind}-{size}"
    made = models.make(work, size, kind)
    output = work / "out"
    tools = {
        BARE: python("-I", str(Path(__file__).with_name("bare.py")), "write", str(writer), str(made.spec)),
        OURS: python("-m", "npukit", "convert", str(made.onnx), "--no-verify", "-o"),
        VERIFIED: python("-m", "npukit", "convert", str(made.onnx), "-o"),
    }
    if peer is not None:
        tools[PEER] = [str(peer), str(Path(__file__).with_name("peer.py")), str(made.onnx)]
    costs: dict[str, list[Cost]] = {name: [] for name in tools}
    sizes: dict[str, int] = {}
    for i in range(repeats):
        for name, command in tools.items():
            shutil.rmtree(output, ignore_errors=True)
            output.mkdir()
            target = output if name == PEER else output / "out.dlc"
            costs[name].append(measure([*command, str(target)], env=env))
            (dlc,) = output.glob("*.dlc")
            sizes[name] = dlc.stat().st_size
            say(f"{kind} {size // models.MB} MB, round {i + 1}: {name} {costs[name][-1].wall:.2f} s")
    for name, found in sizes.items():  # whoever left weights out was not measured writing them
        if found < 0.99 * made.weight_bytes:
            raise RuntimeError(f"{name} wrote only {found} of {made.weight_bytes} bytes of weights")
    shutil.rmtree(work)
    rows = {name: _median(found) for name, found in costs.items()}
    for row in rows.values():
        for key in ("wall", "cpu", "peak"):
            row[f"{key}_ratio"] = row[key] / rows[BARE][key]
    return {"kind": kind, "weight_bytes": made.weight_bytes, "layers": made.layers, "repeats": repeats, "tools": rows}


def _median(costs: list[Cost]) -> dict[str, float]:
    found = [asdict(cost) for cost in costs]
    return {key: statistics.median(cost[key] for cost in found) for key in found[0]}


def fixed_and_slope(results: list[dict[str, Any]], goal: float) -> list[dict[str, Any]]:
    """For each kind, what a further byte of weights costs npukit against the bare program, and what is fixed.

    Between the smallest and the largest model: the difference of ours over the difference of the bare program's;
    fixed is what ours takes more for the smallest. `from` is the size from which ours is within `goal` times the
    bare program's, if both grow as a line does between the two; None where that never happens.
    """
    rows = []
    for kind in dict.fromkeys(r["kind"] for r in results):
        of_kind = sorted((r for r in results if r["kind"] == kind), key=lambda r: r["weight_bytes"])
        if len(of_kind) < 2:
            continue
        small, large = of_kind[0]["tools"], of_kind[-1]["tools"]
        least, most = of_kind[0]["weight_bytes"], of_kind[-1]["weight_bytes"]
        row: dict[str, Any] = {"kind": kind}
        for key in ("wall", "cpu", "peak"):
            ours, bare = (large[name][key] - small[name][key] for name in (OURS, BARE))
            row[f"{key}_slope"] = ours / bare
            row[f"{key}_fixed"] = small[OURS][key] - small[BARE][key]
            above = small[OURS][key] - goal * small[BARE][key]
            room = (goal * bare - ours) / (most - least)  # what each further byte leaves for it
            row[f"{key}_from"] = max(0, least + above / room) if room > 0 else None
        rows.append(row)
    return rows

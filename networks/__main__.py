# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""`python -m networks`: convert each network, run it on both backends, print the table and write it down."""

from __future__ import annotations

import argparse
import datetime
import importlib.metadata
import os
import platform
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

from networks.catalogue import NETWORKS, Network, samples
from networks.measure import CHIP, Made, compile_for_htp, convert, liveliness, verified
from npukit.analysis.verify import Verification
from npukit.errors import NpukitError

HEAD = (
    "network", "nodes", "QNN ops", "weights MB", "GFLOP", "nearest pair", "convert s", "QNN CPU SQNR dB",
    "QNN CPU max error", "compile s", "binary MB", "HTP SQNR dB", "HTP max error",
)  # fmt: skip
PAGE = """# Real networks

Networks of real size with live random weights (`networks/`), spelled as PyTorch's exporter spells them, against ONNX
Runtime on the source: {count} inputs each, the worst of them counts. *Nearest pair* is the largest cosine between the
outputs of two of the inputs (alive: below 0.9), *max error* the largest error as a share of the output's range. Limits:
QNN CPU 60 dB and 1e-3, HTP (float16, emulator, {chip}) 40 dB. The emulator runs the networks below 3 GFLOP; a dash
means that it was not run.

{table}
{failed}
{machine}, {date}; {versions}. Written by `python -m networks --size {size}`.
"""


@dataclass
class Row:
    """What one network came to; an empty cell was not measured."""

    cells: dict[str, str] = field(default_factory=dict)
    failed: list[str] = field(default_factory=list)


def main(arguments: list[str] | None = None) -> int:
    """Measure; 1 if a network does not meet the limits."""
    parser = argparse.ArgumentParser(prog="python -m networks", description=__doc__)
    parser.add_argument("names", nargs="*", help=f"of {', '.join(NETWORKS)} [all]")
    parser.add_argument("--size", choices=("small", "full"), default="full")
    parser.add_argument("--inputs", type=int, default=4, help="how many inputs each [4]")
    parser.add_argument("--backend", choices=("qnn-cpu", "qnn-htp"), action="append", help="only this one [both]")
    parser.add_argument("--folder", type=Path, help="keep sources and artifacts here")
    parser.add_argument("--markdown", type=Path, help="write the table to this file")
    options = parser.parse_args(arguments)
    rows = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        for name in options.names or NETWORKS:
            row = measure(
                NETWORKS[name], options.size, options.inputs, options.backend or ["qnn-cpu", "qnn-htp"], folder
            )
            rows.append(row)
            _say("  ".join(f"{k} {v}" for k, v in row.cells.items()) + "".join(f"\n  FAILED {f}" for f in row.failed))
    table = _table(rows)
    _say(table)
    if options.markdown is not None:
        options.markdown.parent.mkdir(parents=True, exist_ok=True)
        options.markdown.write_text(_page(table, rows, options.size, options.inputs))
    return 1 if any(row.failed for row in rows) else 0


def measure(network: Network, size: str, count: int, backends: list[str], folder: Path) -> Row:
    """Build, convert, run and compile one network."""
    row = Row({"network": network.title})
    try:
        made = convert(network, size, folder)
        _conversion(row, made, size, count)
        if "qnn-cpu" in backends:
            _verified(row, "QNN CPU", verified(made, count, "qnn-cpu"))
        if "qnn-htp" in backends:
            binary = compile_for_htp(made, folder)
            row.cells |= {
                "compile s": f"{binary.seconds:.0f}",
                "binary MB": f"{binary.artifact.stat().st_size / 1e6:.1f}",
            }
            if network.variant(size).emulate:
                _verified(row, "HTP", verified(binary, count, "qnn-htp"))
    except NpukitError as error:
        row.failed.append(str(error))
    return row


def _conversion(row: Row, made: Made, size: str, count: int) -> None:
    converted = made.converted.converted
    nearest = max(liveliness(made.source, samples(made.network, size, count)).values())
    row.cells |= {
        "nodes": str(converted.source_ops),
        "QNN ops": str(sum(converted.ops.values())),
        "weights MB": f"{converted.weight_bytes / 1e6:.1f}",
        "GFLOP": f"{converted.gflop:.2f}",
        "nearest pair": f"{nearest:.2f}",
        "convert s": f"{made.seconds:.1f}",
    }
    if nearest >= 0.9:
        row.failed.append(f"it is not alive: the outputs of two inputs have a cosine of {nearest:.3f}")


def _verified(row: Row, label: str, outcome: Verification) -> None:
    figures = [output.metrics for output in outcome.outputs if output.metrics is not None]
    row.cells[f"{label} SQNR dB"] = f"{min(m.sqnr_db for m in figures if m.sqnr_db is not None):.1f}"
    row.cells[f"{label} max error"] = f"{max(m.max_share for m in figures):.1e}"
    row.failed += [fault for output in outcome.outputs for fault in output.faults]


def _table(rows: list[Row]) -> str:
    lines = [HEAD, ("---",) * len(HEAD), *([row.cells.get(name, "-") for name in HEAD] for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _page(table: str, rows: list[Row], size: str, count: int) -> str:
    names = ("npukit", "onnx", "onnxruntime", "onnxruntime-qnn", "numpy")
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in names)
    load = f"load average {os.getloadavg()[1]:.1f}" if hasattr(os, "getloadavg") else "load unknown"
    machine = f"{platform.machine()}, {os.cpu_count()} cores, {load}, Python {platform.python_version()}"
    failed = "".join(f"\nNot met by {row.cells['network']}: {'; '.join(row.failed)}.\n" for row in rows if row.failed)
    date = datetime.datetime.fromtimestamp(time.time(), datetime.UTC).date().isoformat()
    return PAGE.format(
        table=table, failed=failed, size=size, count=count, chip=CHIP, machine=machine, date=date, versions=versions
    )


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())

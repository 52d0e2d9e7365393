# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""What converting a large PyTorch model costs: `python -m benchmarks.pytorch_memory`.

A model of eight 4096 by 4096 linear layers (537 MB) is saved with torch.export and converted by the command, while the
memory of all its processes is watched; torch's own part (load, export to ONNX, save) runs alone beside it.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.pages import machine

GOAL = 2.5  # times the weights
_POLL = 0.02

_MAKE = """
import sys, torch
torch.manual_seed(0)
layers = [part for _ in range(8) for part in (torch.nn.Linear(4096, 4096), torch.nn.ReLU())]
net = torch.nn.Sequential(*layers).eval()
torch.export.save(torch.export.export(net, (torch.randn(1, 4096),)), sys.argv[1])
"""
_TORCH = """
import sys, time, warnings
warnings.simplefilter("ignore")
start = time.perf_counter()
import torch
imported = time.perf_counter()
program = torch.export.load(sys.argv[1])
made = torch.onnx.export(program, dynamo=True, opset_version=23, optimize=True, verbose=False)
made.save(sys.argv[2], external_data=True)
print(imported - start, time.perf_counter() - imported)
"""


def processes(root: int) -> Iterator[int]:
    """A process and all below it."""
    yield root
    try:
        children = [
            int(text)
            for task in Path(f"/proc/{root}/task").iterdir()
            for text in (task / "children").read_text().split()
        ]
    except OSError:
        return
    for child in children:
        yield from processes(child)


def private(pid: int) -> int:
    """Anonymous resident bytes: what cannot be given back; mapped files can."""
    try:
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Anonymous:"):
                return int(line.split()[1]) << 10
    except OSError:
        pass
    return 0


def watch(command: list[str]) -> tuple[float, int, str]:
    """Seconds, the peak of the memory of all processes together, and what was printed."""
    start = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    peak = 0
    while process.poll() is None:
        peak = max(peak, sum(private(pid) for pid in processes(process.pid)))
        time.sleep(_POLL)
    printed = process.stdout.read() if process.stdout else ""
    if process.returncode:
        raise SystemExit(f"{command[:4]} ended with {process.returncode}: {printed[-800:]}")
    return time.perf_counter() - start, peak, printed


def main() -> int:
    """Measure; 1 where the goal is missed."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.pytorch_memory", description=__doc__)
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    options = parser.parse_args()
    figures: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        source = folder / "net.pt2"
        subprocess.run([sys.executable, "-c", textwrap.dedent(_MAKE), str(source)], check=True)
        weights = 8 * (4096 * 4096 + 4096) * 4
        seconds, peak, printed = watch([sys.executable, "-c", _TORCH, str(source), str(folder / "torch.onnx")])
        imported, export = (float(text) for text in printed.split()[-2:])
        figures["torch"] = {"seconds": seconds, "import": imported, "export": export, "peak": peak / weights}
        for name, more in (("verified", []), ("not verified", ["--no-verify"])):
            command = [
                sys.executable,
                "-m",
                "npukit",
                "convert",
                str(source),
                "-o",
                str(folder / "net.dlc"),
                "--target",
                "qnn-cpu",
                *more,
            ]
            seconds, peak, _ = watch(command)
            figures[name] = {"seconds": seconds, "peak": peak / weights}
    for name, row in figures.items():
        shown = ", ".join(f"{key} {value:.2f}" for key, value in row.items())
        sys.stdout.write(f"{name}: {shown}\n")
    if options.json is not None:
        options.json.write_text(json.dumps({"machine": machine(), "weights": weights, "figures": figures}, indent=1))
    return 0 if max(figures[name]["peak"] for name in ("verified", "not verified")) <= GOAL else 1


if __name__ == "__main__":
    sys.exit(main())

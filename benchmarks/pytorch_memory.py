# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""What converting a large PyTorch model costs: `python -m benchmarks.pytorch_memory`.

A model of eight 4096 by 4096 linear layers (537 MB) is saved with torch.export and converted by the command, while the
memory of all its processes is watched; torch's own part (load, export to ONNX, save) runs alone beside it.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.pages import machine, table

GOAL = 2.5  # times the weights
PAGE = """# What a large PyTorch model costs

Eight 4096 x 4096 linear layers with ReLUs, {weights:.0f} MB of weights, saved with `torch.export.save`, then converted
with `npukit convert net.pt2 -o net.dlc --target qnn-cpu`, with its verification and without. Beside it torch alone: the
same file loaded, exported to ONNX with `torch.onnx.export(dynamo=True)` and saved, which is a part of the conversion.
Each is a process of its own, {runs}.

{table}

- *peak*: the most anonymous memory of all processes of the command together, sampled every {poll:.0f} ms, over the
  bytes of the weights; mapped files are not in it. The goal is at most {goal:g}: {reached}.
- *times torch*: seconds over those of torch alone, import of torch included in both.

{machine}.
Written by `python -m benchmarks.pytorch_memory --markdown docs/results/pytorch-memory.md`.
"""
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
sys.stdout.write(f"{imported - start} {time.perf_counter() - imported}\\n")
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


def measure(count: int) -> tuple[int, dict[str, list[dict[str, float]]]]:
    """Bytes of the weights, and what each command came to, `count` times, taking turns."""
    weights = 8 * (4096 * 4096 + 4096) * 4
    rows: dict[str, list[dict[str, float]]] = {"torch": [], "verified": [], "not verified": []}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        source, artifact = folder / "net.pt2", folder / "net.dlc"
        subprocess.run([sys.executable, "-c", _MAKE, str(source)], check=True)
        convert = [sys.executable, "-m", "npukit", "convert", str(source), "-o", str(artifact), "--target", "qnn-cpu"]
        for _ in range(count):
            seconds, peak, printed = watch([sys.executable, "-c", _TORCH, str(source), str(folder / "torch.onnx")])
            imported, export = (float(text) for text in printed.split()[-2:])
            rows["torch"].append({"seconds": seconds, "import": imported, "export": export, "peak": peak / weights})
            for name, more in (("verified", []), ("not verified", ["--no-verify"])):
                seconds, peak, _ = watch([*convert, *more])
                rows[name].append({"seconds": seconds, "peak": peak / weights})
    return weights, rows


def page(weights: int, rows: dict[str, list[dict[str, float]]], here: dict[str, Any]) -> str:
    """The page."""

    def middle(name: str, key: str) -> float:
        return statistics.median(row[key] for row in rows[name])

    peaks = {name: max(row["peak"] for row in found) for name, found in rows.items()}
    alone = middle("torch", "seconds")
    lines: list[tuple[Any, ...]] = [
        (f"`npukit convert`{more}", f"{middle(name, 'seconds'):.1f}", f"{middle(name, 'seconds') / alone:.1f}",
         f"{peaks[name]:.2f}")
        for name, more in (("verified", ", verified"), ("not verified", " `--no-verify`"))
    ]  # fmt: skip
    lines += [
        ("torch alone", f"{alone:.1f}", "1.0", f"{peaks['torch']:.2f}"),
        ("torch alone: import", f"{middle('torch', 'import'):.1f}", "", ""),
        ("torch alone: load, export, save", f"{middle('torch', 'export'):.1f}", "", ""),
    ]
    count = len(rows["torch"])
    runs = "run once" if count == 1 else f"run {count} times: the medians of seconds, and the largest peaks"
    load = f"load average {here['load_before']:.1f} when it began, {os.getloadavg()[0]:.1f} when it ended"
    versions = f"torch {here['versions']['torch']}, {here['cpu']}, {here['cores']} cores, {here['date']}"
    return PAGE.format(
        weights=weights / 1e6, runs=runs, poll=_POLL * 1e3, goal=GOAL, machine=f"{versions}; {load}",
        table="\n".join(table(("what", "seconds", "times torch", "peak / weights"), lines)),
        reached="held" if max(peaks["verified"], peaks["not verified"]) <= GOAL else "missed",
    )  # fmt: skip


def main() -> int:
    """Measure; 1 where the goal is missed."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.pytorch_memory", description=__doc__)
    parser.add_argument("--count", type=int, default=3, help="runs of each command [%(default)s]")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    parser.add_argument("--markdown", type=Path, help="write the page to this file")
    options = parser.parse_args()
    here = machine("torch")
    weights, rows = measure(options.count)
    sys.stdout.write(page(weights, rows, here))
    if options.json is not None:
        options.json.write_text(json.dumps({"machine": here, "weights": weights, "figures": rows}, indent=1))
    if options.markdown is not None:
        options.markdown.write_text(page(weights, rows, here))
    return 0 if max(row["peak"] for name in ("verified", "not verified") for row in rows[name]) <= GOAL else 1


if __name__ == "__main__":
    sys.exit(main())

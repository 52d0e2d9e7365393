# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""`python -m benchmarks`: everything in one run, as tables and as JSON; `make bench`."""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks import convert, overhead, pages
from benchmarks.models import KINDS, MB
from npukit.qnn.api import libraries

GOAL_RATIO = 1.3
GOAL_US = 30
METHOD = """\
The bare program (benchmarks/bare.py) knows the graph already and hands libQnnIr the mapped weights; it checks nothing
and computes no hash. `linear` is Gemm and Relu with weights that QNN takes as they lie in the file; `conv` is 3x3 Conv
and Relu, whose weights npukit permutes and the bare program finds permuted. Memory is the sum of each process's own
peak, mapped files included (npukit: the command and its worker). The load average shows what else the machine did; CPU
time depends on it less than wall time."""
FIXED = f"""\
What is fixed (npukit less bare, smallest model), the ratio of each further byte, and the size from which npukit is
within {GOAL_RATIO} times the bare program. The fixed part is two Python processes with numpy, onnx and onnx_ir, and the
libraries of QNN CPU and HTP, which check every op: it could only be left out with the checks. What grows with the size
is the source's SHA-256 for the stamp, which runs beside the writing where a core is free, and for `conv` the permuting
of each weight, which runs beside the library's copying of the last."""
PEER_PACKAGES = ("onnxruntime==1.24.4", "onnxruntime-qnn==2.3.0")


def main(arguments: list[str] | None = None) -> int:
    """Run what was asked for, print the tables, write the files."""
    options = _options(arguments)
    with tempfile.TemporaryDirectory(prefix="npukit-bench-", dir=options.folder) as name:
        folder = Path(name)
        # As installed: byte code is there, whatever this shell says about writing it.
        env = {**os.environ, "PYTHONPYCACHEPREFIX": str(folder / "pyc")}
        env.pop("PYTHONDONTWRITEBYTECODE", None)
        found: dict[str, Any] = {"machine": machine(options.peer_python)}
        found["startup"] = overhead.startup(env, rounds=options.repeats)
        runs = 300 if options.quick else 5000
        cpu = libraries.find("cpu").path
        found["session"] = overhead.session_overhead(folder, cpu, runs=runs, rounds=options.repeats)
        convert_options: dict[str, Any] = {"writer": libraries.find("ir").path, "peer": options.peer_python, "env": env}
        convert.compare(folder, "linear", MB, repeats=1, say=lambda text: None, **convert_options)  # warms up
        found["convert"] = [
            convert.compare(folder, kind, size * MB, repeats=options.repeats, say=_say, **convert_options)
            for size in options.sizes
            for kind in options.kinds
        ]
        found["convert_slope"] = convert.fixed_and_slope(found["convert"], GOAL_RATIO)
    found["machine"]["load_after"] = os.getloadavg()[0]
    report = markdown(found)
    sys.stdout.write(report)
    if options.json:
        options.json.write_text(json.dumps(found, indent=1) + "\n")
    if options.markdown:
        options.markdown.parent.mkdir(parents=True, exist_ok=True)
        options.markdown.write_text(report)
    return 0


def _options(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--sizes", type=lambda t: [int(x) for x in t.split(",")], help="MB of weights [10,100,1000]")
    parser.add_argument("--kinds", type=lambda t: t.split(","), default=list(KINDS), help="linear,conv")
    parser.add_argument("--repeats", type=int, help="rounds, of which the median counts [5]")
    parser.add_argument("--quick", action="store_true", help="one small round, to see that it works")
    parser.add_argument(
        "--peer-python", type=Path, help=f"Python with {' and '.join(PEER_PACKAGES)}; without it the peer is left out"
    )
    parser.add_argument("--folder", type=Path, help="where to work (needs three times the largest size)")
    parser.add_argument("--json", type=Path, help="write all figures here")
    parser.add_argument("--markdown", type=Path, help="write the tables here")
    options = parser.parse_args(arguments)
    options.sizes = options.sizes or ([2] if options.quick else [10, 100, 1000])
    options.repeats = options.repeats or (1 if options.quick else 5)
    return options


def _say(text: str) -> None:
    sys.stderr.write(f"{text}\n")


def machine(peer: Path | None) -> dict[str, Any]:
    """What the figures depend on."""
    names = ("numpy", "onnx", "onnx-ir", "onnxruntime", "onnxruntime-qnn")
    versions = {name: importlib.metadata.version(name) for name in names}
    peers = ""
    if peer is not None:
        code = "import importlib.metadata as m; print(*[n + ' ' + m.version(n) for n in"
        code += " ('onnxruntime', 'onnxruntime-qnn')], sep=', ')"
        peers = subprocess.run([str(peer), "-c", code], capture_output=True, text=True, check=True).stdout.strip()
    return {
        **pages.machine(),
        "versions": versions,
        "libraries": {role: str(libraries.find(role).build_id) for role in ("ir", "cpu", "htp")},
        "peer": peers,
        "load_before": os.getloadavg()[0],
    }


def markdown(found: dict[str, Any]) -> str:
    """The tables."""
    m = found["machine"]
    versions = ", ".join(f"{name} {version}" for name, version in m["versions"].items())
    lines = [
        "# What npukit costs",
        "",
        "Written by `make bench`; `npukit bench MODEL...` measures your own models. Every command runs in a fresh",
        "process, the tools in turn, so that a busy machine meets them all; each figure is the median.",
        "",
        f"{m['date']}; {m['cpu']}, {m['cores']} cores; {m['system']}; Python {m['python']}; npukit {m['npukit']}; "
        f"{versions}; libQnnIr {m['libraries']['ir']}; peer: {m['peer'] or 'left out'}; load average "
        f"{m['load_before']:.1f} before, {m['load_after']:.1f} after.",
        "",
        "## Writing a DLC",
        "",
        METHOD,
        "",
    ]
    head = ("model", "tool", "wall s", "ratio", "CPU s", "ratio", "peak MB", "ratio", "load")
    rows = []
    for result in found["convert"]:
        model = f"{result['kind']}, {result['weight_bytes'] / MB:.0f} MB, {result['layers']} layers"
        for tool, c in result["tools"].items():
            row = (
                model,
                tool,
                f"{c['wall']:.2f}",
                f"{c['wall_ratio']:.2f}",
                f"{c['cpu']:.2f}",
                f"{c['cpu_ratio']:.2f}",
            )
            rows.append((*row, f"{c['peak'] / MB:.0f}", f"{c['peak_ratio']:.2f}", f"{c['load']:.1f}"))
    lines += pages.table(head, rows)
    if found["convert_slope"]:
        lines += [
            "",
            FIXED,
            "",
        ]
        head = ("model", "figure", "fixed", "further bytes", f"{GOAL_RATIO} from MB")
        lines += pages.table(head, [row for r in found["convert_slope"] for row in _slope_rows(r)])
    lines += ["", f"## One run of a Relu on QNN CPU (goal: at most {GOAL_US} us over bare, in process)", ""]
    head = ("floats", "way", "p50 us", "p90 us", "p99 us", "p50 over bare us")
    keys = ("p50_us", "p90_us", "p99_us", "over_bare_us")
    lines += pages.table(
        head, [(r["elements"], r["way"], *(f"{r[key]:.1f}" for key in keys)) for r in found["session"]]
    )
    lines += ["", "## Starting", ""]
    rows = [(f"`{r['command']}`", f"{r['cpu']:.3f}", f"{r['peak'] / MB:.0f}") for r in found["startup"]]
    lines += pages.table(("command", "CPU s", "peak MB"), rows)
    return "\n".join(lines) + "\n"


def _slope_rows(row: dict[str, Any]) -> list[tuple[str, ...]]:
    rows = []
    for key, label, unit in (("wall", "wall s", 1), ("cpu", "CPU s", 1), ("peak", "peak MB", MB)):
        enough = row[f"{key}_from"]
        since = "never" if enough is None else f"{enough / MB:.0f}"
        rows.append((row["kind"], label, f"{row[f'{key}_fixed'] / unit:.3g}", f"{row[f'{key}_slope']:.2f}", since))
    return rows


if __name__ == "__main__":
    sys.exit(main())

# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""What a `Session.run` adds to the bare `graphExecute`, and what starting npukit costs."""

from __future__ import annotations

import json
import statistics
import subprocess
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper

import npukit
from benchmarks.measure import measure, python

BARE = "bare C API loop"
ELEMENTS = (16, 3 * 224 * 224)


def session_overhead(folder: Path, library: Path, *, runs: int, rounds: int) -> list[dict[str, Any]]:
    """Microseconds of one run of a Relu on QNN CPU by each way; medians over `rounds` taken in turn.

    Args:
        folder: where to write the model.
        library: libQnnCpu.
        runs: calls in a round; the first tenth is not counted.
        rounds: rounds.
    """
    rows = []
    for elements in ELEMENTS:
        dlc = _relu(folder, elements)
        feeds = {"x": np.linspace(-1, 1, elements, dtype=np.float32)[None]}
        with npukit.Session(dlc, in_process=True) as here, npukit.Session(dlc) as worker:
            bound_here, bound_worker = here.bind(feeds), worker.bind()
            ways: dict[str, Callable[[], Any]] = {
                "Session.run, in process": partial(here.run, feeds),
                "Session.bind, in process": bound_here.run,
                "Session.run, worker": partial(worker.run, feeds),
                "Session.bind, worker": bound_worker.run,
            }
            found: dict[str, list[list[float]]] = {name: [] for name in (BARE, *ways)}
            for _ in range(rounds):
                found[BARE].append(_figures(_bare(library, runs, elements)))
                for name, call in ways.items():
                    found[name].append(_figures(_timed(call, runs)))
        medians = {name: [statistics.median(column) for column in zip(*f, strict=True)] for name, f in found.items()}
        for name, (p50, p90, p99) in medians.items():
            row = {"elements": elements, "way": name, "p50_us": p50, "p90_us": p90, "p99_us": p99}
            rows.append({**row, "over_bare_us": p50 - medians[BARE][0]})
    return rows


def _relu(folder: Path, elements: int) -> Path:
    info = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, elements]) for name in "xy"]
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "relu", info[:1], info[1:])
    path = folder / f"relu{elements}.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), path)
    npukit.convert(path, path.with_suffix(".dlc"), verify=False)
    return path.with_suffix(".dlc")


def _bare(library: Path, runs: int, elements: int) -> list[float]:
    program = str(Path(__file__).with_name("bare.py"))
    command = python("-I", program, "loop", str(library), str(runs), str(elements))
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    seconds: list[float] = json.loads(done.stdout)
    return seconds


def _timed(call: Callable[[], Any], runs: int) -> list[float]:
    seconds = []
    for _ in range(runs):
        start = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - start)
    return seconds


def _figures(seconds: list[float]) -> list[float]:
    """p50, p90 and p99 in microseconds, without the first tenth."""
    return [float(x) * 1e6 for x in np.percentile(seconds[len(seconds) // 10 :], [50, 90, 99])]


def startup(env: dict[str, str], *, rounds: int) -> list[dict[str, Any]]:
    """CPU seconds and peak memory of starting, medians over `rounds`."""
    commands = {
        "python -c pass": python("-c", "pass"),
        "import npukit": python("-c", "import npukit"),
        "npukit --help": python("-m", "npukit", "--help"),
        "npukit --version": python("-m", "npukit", "--version"),
        "from npukit import Session": python("-c", "from npukit import Session"),
    }
    rows = []
    for name, command in commands.items():
        costs = [measure(command, env=env) for _ in range(rounds + 1)][1:]  # the first one compiles
        median = statistics.median
        rows.append({"command": name, "cpu": median(c.cpu for c in costs), "peak": median(c.largest for c in costs)})
    return rows

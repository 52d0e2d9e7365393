# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""No leak over many runs and sessions, and threads get their own results; the long form is `slow`."""

from __future__ import annotations

import mmap
import os
import sys
from pathlib import Path

import pytest

import npukit
from benchmarks import models
from benchmarks.soak import DIGITS, Growth, main, soak, soak_runs, soak_sessions, soak_threads

pytestmark = [pytest.mark.native, pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")]


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A DLC of four Gemm and Relu: its runs take microseconds on a busy machine too."""
    folder = tmp_path_factory.mktemp("soak")
    made = models.make(folder, 20_000, "linear")
    npukit.convert(made.onnx, folder / "small.dlc", verify=False)
    return folder / "small.dlc"


@pytest.mark.parametrize("backend", ["qnn-cpu", "qnn-htp", "ort"])
@pytest.mark.parametrize("in_process", [False, True], ids=["worker", "in-process"])
def test_runs_leave_nothing(small: Path, backend: str, in_process: bool) -> None:
    # An allocator may take 4 MB at once on a busy machine (seen once); what leaks does so again.
    first = soak_runs(small, backend, 300, in_process=in_process)
    assert first.fault == "" or soak_runs(small, backend, 300, in_process=in_process).fault == ""


@pytest.mark.parametrize("backend", ["qnn-cpu", "ort"])
def test_sessions_leave_nothing(small: Path, backend: str) -> None:
    assert soak_sessions(small, backend, 20, in_process=True).fault == ""


def test_workers_leave_nothing(small: Path) -> None:
    first = soak_sessions(small, "ort", 2, in_process=False, warmup=1)  # as above
    assert first.fault == "" or soak_sessions(small, "ort", 2, in_process=False, warmup=1).fault == ""


@pytest.mark.parametrize("sessions", [1, 2])
@pytest.mark.parametrize("in_process", [False, True], ids=["worker", "in-process"])
def test_four_threads_get_their_own_results(small: Path, sessions: int, in_process: bool) -> None:
    assert soak_threads(small, "qnn-cpu", sessions, 4, 75, in_process=in_process) == 0


@pytest.mark.parametrize(
    ("growth", "fault"),
    [
        (Growth("x", 10, 2_000, 0, 0, 1_000, 1.0), "2000 bytes of memory (allowed 1000)"),
        (Growth("x", 10, 0, 2, 1, 1_000, 1.0), "2 descriptors, 1 threads"),
        (Growth("x", 10, 999, 0, -1, 1_000, 1.0), ""),
    ],
    ids=["memory", "descriptors", "none"],
)
def test_what_counts_as_growth(growth: Growth, fault: str) -> None:
    assert growth.fault == fault


def test_a_leak_is_seen() -> None:
    kept: list[mmap.mmap] = []

    def leak() -> None:  # pages of its own: what an allocator gives may have been resident before
        kept.append(mmap.mmap(-1, 10_000, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS))
        kept[-1].write(bytes(10_000))

    growth = soak("leak", leak, 300, 1_000_000, pids=lambda: [os.getpid()])
    assert "bytes of memory" in growth.fault


@pytest.mark.slow
def test_ten_thousand_runs_and_a_thousand_sessions() -> None:
    assert DIGITS.exists()
    assert main([]) == 0

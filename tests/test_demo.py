# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""The demo as a stranger runs it: every stage's accuracy, the artifacts and the report."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

DEMO = Path(__file__).parents[1] / "examples" / "digits"


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, dict[str, float]]]:
    folder = tmp_path_factory.mktemp("demo")
    command = [sys.executable, DEMO / "demo.py", "--output", folder]
    result = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stdout + result.stderr
    rows = json.loads((folder / "demo.json").read_text())
    return folder, {f"{row['stage']} {row['backend']}": row for row in rows}


@pytest.mark.native
@pytest.mark.parametrize(
    ("stage", "top1", "agreement", "sqnr"),
    [
        ("source ort", 0.97, 1.0, 999),
        ("float DLC qnn-cpu", 0.97, 1.0, 60),
        ("float DLC, float16 qnn-htp", 0.97, 0.99, 40),
        ("quantized DLC, W8A8, simulated ort", 0.975, 0.98, 25),
        ("quantized DLC, W8A8 qnn-htp", 0.975, 0.98, 25),
        ("QDQ source ort", 0.96, 0.98, 20),
        ("context binary for sm8650 qnn-htp", 0.96, 0.98, 20),
    ],
)
def test_each_stage_keeps_its_accuracy(
    demo: tuple[Path, dict[str, dict[str, float]]], stage: str, top1: float, agreement: float, sqnr: float
) -> None:
    row = demo[1][stage]
    assert row["top1"] >= top1
    assert row["agreement"] >= agreement
    assert row["sqnr_db"] >= sqnr


@pytest.mark.native
def test_the_demo_leaves_artifacts_and_a_report(demo: tuple[Path, dict[str, dict[str, float]]]) -> None:
    folder = demo[0]
    names = {path.name for path in folder.iterdir()}
    assert {
        "digits.dlc",
        "digits_w8a8.dlc",
        "digits_qdq.dlc",
        "digits_qdq.sm8650.bin",
        "report.html",
        "demo.json",
    } <= names
    report = (folder / "report.html").read_text()
    assert "scores" in report
    assert "http://" not in report.replace("http://www.w3.org", "")


def test_the_shipped_files_are_small_and_hold_what_they_say() -> None:
    assert (DEMO / "digits.onnx").stat().st_size <= 1_000_000
    assert (DEMO / "digits.npz").stat().st_size <= 200_000
    with np.load(DEMO / "digits.npz") as data:
        assert data["images"].shape == (360, 8, 8)
        assert data["calibration"].shape == (128, 8, 8)
        assert set(data["labels"]) == set(range(10))

# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""The load command: short, with a stand-in and with a policy folder."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

pytest.importorskip("websockets")
pytest.importorskip("msgpack")

from benchmarks import serving  # noqa: E402
from tests.serving_tools import write_package  # noqa: E402


def test_a_short_load_of_the_stand_in(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "load.json"
    assert serving.main(["--seconds", "0.3", "--clients", "1,3", "--infer-ms", "5", "--json", str(path)]) == 0
    rows = json.loads(path.read_text())
    assert [row["clients"] for row in rows] == [1, 3]
    for row in rows:
        assert row["infer_ms"][0] >= 5
        assert row["total_ms"][0] >= row["infer_ms"][0]
        assert 0 < row["overhead_ms"][0] < row["total_ms"][0]
    assert capsys.readouterr().out.count("stand-in, 5 ms") == 2


def test_a_short_load_of_a_policy_folder_at_a_robots_rate(tmp_path: Path) -> None:
    path, markdown = tmp_path / "load.json", tmp_path / "load.md"
    options = ["--infer-ms", "", "--seconds", "0.5", "--clients", "2", "--rate", "20"]
    package = write_package(tmp_path / "policy")
    assert serving.main([str(package), *options, "--json", str(path), "--markdown", str(markdown)]) == 0
    (row,) = json.loads(path.read_text())
    assert "| policy (ort) | 2 |" in markdown.read_text()
    assert row["errors"] == 0
    assert row["per_second"] < 60

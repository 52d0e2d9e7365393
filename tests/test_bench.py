# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""`npukit bench`, and the benchmarks: that they measure what they say, never how fast this machine is."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

import npukit
from benchmarks import convert as conversions
from benchmarks import models
from benchmarks.measure import measure, python
from npukit.cli.main import main
from npukit.errors import InputError, UsageError
from npukit.verbs.bench import EMULATED, bench

DIGITS = Path(__file__).parents[1] / "examples" / "digits" / "digits.onnx"


@pytest.fixture(scope="module")
def dlc(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("bench") / "digits.dlc"
    npukit.convert(DIGITS, path, verify=False)
    return path


# ---------------------------------------------------------------- the verb


def test_an_onnx_model_is_measured_on_onnx_runtime(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", str(DIGITS), "--runs", "12", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    (row,) = found["rows"]
    assert (row["model"], row["backend"], row["emulated"], row["runs"]) == ("digits.onnx", "ort", False, 12)
    assert 0 < row["best"] <= row["p50"] <= row["p90"]
    assert row["p99"] is None  # 12 runs say nothing about one in a hundred
    assert row["per_second"] == pytest.approx(1 / row["mean"])
    assert found["notes"] == []


@pytest.mark.native
def test_the_emulator_is_named(dlc: Path) -> None:
    result = bench([dlc], backends=["qnn-cpu", "qnn-htp"], runs=3, warmup=0)
    assert [(row.backend, row.emulated, row.runs) for row in result.rows] == [
        ("qnn-cpu", False, 3),
        ("qnn-htp", True, 3),
    ]
    assert result.notes == (EMULATED,)
    lines = result.to_text().splitlines()
    assert "qnn-htp (emulator)" in lines[2]
    assert lines[-1] == f"note: {EMULATED}"


def test_time_ends_the_runs_and_one_is_always_measured() -> None:
    assert bench(DIGITS, seconds=0.0).rows[0].runs == 1


@pytest.mark.parametrize(
    ("options", "kind"),
    [
        ({"runs": 0}, UsageError),
        ({"warmup": -1}, UsageError),
        ({"backends": ["npu"]}, UsageError),
        ({"input_ranges": {"nothing": (0, 1)}}, InputError),
    ],
    ids=["runs", "warmup", "backend", "range"],
)
def test_bad_use(options: dict[str, object], kind: type[Exception]) -> None:
    with pytest.raises(kind):
        bench([DIGITS], **options)


# ---------------------------------------------------------------- the harness


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_the_memory_of_child_processes_counts() -> None:
    child = "b = bytearray(80_000_000); import time; time.sleep(0.2)"
    # Both live long enough to be seen on a busy machine: they are looked at every 20 ms.
    parent = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}]); c = bytearray(40_000_000); "
    parent += "import time; time.sleep(0.2)"
    cost = measure(python("-c", parent))
    assert 80e6 < cost.largest < 130e6
    assert 120e6 < cost.peak < 200e6
    assert cost.wall >= 0.2


@pytest.mark.native
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("kind", models.KINDS)
def test_npukit_and_the_bare_program_write_the_same_graph(tmp_path: Path, kind: str) -> None:
    from npukit.artifacts import dlc
    from npukit.qnn.api.libraries import find

    made = models.make(tmp_path, 200_000, kind)
    bare, ours = tmp_path / "bare.dlc", tmp_path / "ours.dlc"
    measure(python("-I", str(Path(conversions.__file__).with_name("bare.py")), "write", str(find("ir").path),
                   str(made.spec), str(bare)))  # fmt: skip
    npukit.convert(made.onnx, ours, verify=False, io_layout="nhwc")
    weights = []
    for path in (bare, ours):
        (graph,) = dlc.read(path)[0].graphs.values()
        weights.append([t.data for t in graph.tensors() if t.data is not None and t.data.size > 8])
    assert len(weights[0]) == len(weights[1]) == 2 * made.layers
    assert all((a == b).all() for a, b in zip(*weights, strict=True))


def test_fixed_cost_and_slope() -> None:
    def result(size: int, bare: float, ours: float) -> dict[str, object]:
        costs = {conversions.BARE: bare, conversions.OURS: ours}
        tools = {name: dict.fromkeys(("wall", "cpu", "peak"), cost) for name, cost in costs.items()}
        return {"kind": "linear", "weight_bytes": size, "tools": tools}

    (row,) = conversions.fixed_and_slope([result(1000, 10.0, 12.5), result(10, 1.0, 2.6)], 1.3)
    assert row["wall_fixed"] == pytest.approx(1.6)
    assert row["wall_slope"] == pytest.approx(1.1)
    enough = row["wall_from"]
    assert 2.6 + 9.9 * (enough - 10) / 990 == pytest.approx(1.3 * (1.0 + 9.0 * (enough - 10) / 990))
    (row,) = conversions.fixed_and_slope([result(1000, 10.0, 20.0), result(10, 1.0, 2.0)], 1.3)
    assert row["wall_from"] is None

# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""`npukit encodings` as a command and as a function."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import npukit
from npukit.cli.main import main
from npukit.errors import NpukitError, UsageError

DATA = Path(__file__).parent / "data" / "encodings"
DIGITS = Path(__file__).parents[1] / "examples" / "digits"
CNN = DATA / "cnn.1.0.0.encodings"


def test_show_lists_every_entry(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["encodings", "show", str(CNN)]) == 0
    out = capsys.readouterr().out
    assert "version 1.0.0 by aimet-onnx 2.42.0, 12 activations, 5 params" in out
    assert "stem.relu" in out
    assert main(["encodings", "show", str(CNN), "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)["rows"]) == 17


def test_lint_finds_nothing_in_a_good_file_and_counts_classes() -> None:
    found = npukit.encodings("lint", [CNN], model=DATA / "cnn.onnx", in_process=True)
    assert found.exit_code == 0
    assert "2 fused, 15 honoured; no fault" in found.head


def test_lint_names_line_and_nearest_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "bad.encodings"
    path.write_text(CNN.read_text().replace('"stem.relu"', '"stem.rleu"').replace('"bw": 8', '"bw": 9', 1))
    line = next(i for i, text in enumerate(path.read_text().splitlines(), 1) if "stem.rleu" in text)
    assert main(["encodings", "lint", str(path), "--model", str(DATA / "cnn.onnx"), "--in-process"]) == 1
    out = capsys.readouterr().out
    assert "9 bits are impossible for int" in out
    assert "did you mean 'stem.relu'?" in out
    entry_line = int(out.split("'stem.rleu'")[0].rsplit(":", 1)[1])
    assert 0 < line - entry_line < 10


@pytest.mark.parametrize("version", ["0.6.1", "2.0.0", "qnn"])
def test_convert_and_diff(version: str, tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    made = npukit.encodings("convert", [CNN], to=version, output=out, model=DATA / "cnn.onnx", in_process=True)
    assert made.output == out
    same = npukit.encodings("diff", [CNN, out], check=True, in_process=True)
    assert (same.exit_code, same.rows) == (0, ())
    other = npukit.encodings("diff", [out, DATA / "cnn.2.0.0.encodings"], check=True, in_process=True)
    assert other.exit_code == 1
    assert {row[0] for row in other.rows} == {"added"}  # the int32 biases, and what movements repeat


def test_diff_says_what_differs(tmp_path: Path) -> None:
    tree = json.loads(CNN.read_text())
    one, two, three = tree["activation_encodings"][:3]
    one["bw"], one["offset"] = 16, [-40000]
    two["scale"] = [two["scale"][0] * 1.001]
    three["offset"] = [three["offset"][0] - 1]
    (tmp_path / "b").write_text(json.dumps(tree))
    found = npukit.encodings("diff", [CNN, tmp_path / "b"], in_process=True)
    assert [row[:2] for row in found.rows] == [("bits", one["name"]), ("scale", two["name"]), ("offset", three["name"])]
    assert found.exit_code == 0


def test_what_a_version_cannot_hold_is_an_error_or_left_out_by_name(tmp_path: Path) -> None:
    source = tmp_path / "a.json"
    rows = {"x": [{"bitwidth": 16, "dtype": "float"}], "y": [{"bitwidth": 8, "scale": 0.5, "offset": -3}]}
    source.write_text(json.dumps({"activation_encodings": rows, "param_encodings": {}}))
    with pytest.raises(NpukitError, match="cannot hold 1 of 2"):
        npukit.encodings("convert", [source], to="2.0.0", output=tmp_path / "b.json", in_process=True)
    assert not (tmp_path / "b.json").exists()
    made = npukit.encodings("convert", [source], to="2.0.0", output=tmp_path / "b.json", lossy=True, in_process=True)
    assert "left out 'x'" in made.notes[0]


def test_wrong_use() -> None:
    with pytest.raises(UsageError, match="no action"):
        npukit.encodings("shwo", [CNN])
    with pytest.raises(UsageError, match="two files"):
        npukit.encodings("diff", [CNN])
    with pytest.raises(UsageError, match="--to"):
        npukit.encodings("convert", [CNN])
    with pytest.raises(NpukitError, match="no such file|there is no"):
        npukit.encodings("show", ["nothing.json"], in_process=True)
    with pytest.raises(NpukitError, match="not JSON"):
        npukit.encodings("show", [DATA / "cnn.onnx"], in_process=True)


@pytest.mark.native
def test_a_dlc_and_the_files_about_it(tmp_path: Path) -> None:
    dlc, out = tmp_path / "q.dlc", tmp_path / "q.json"
    npukit.convert(DIGITS / "digits_qdq.onnx", output=dlc, verify=False)
    shown = npukit.encodings("show", [dlc])
    assert any("channels on axis 3" in row[3] for row in shown.rows)
    npukit.encodings("convert", [dlc], to="1.0.0", output=out)
    assert npukit.encodings("diff", [dlc, out], check=True).exit_code == 0

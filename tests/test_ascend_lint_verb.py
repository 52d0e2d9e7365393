# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""`npukit lint --target ascend310p3` and `npukit export --target ascend310p3` as a user calls them."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

import npukit
from npukit.ascend import PRECISIONS, cann_version, check
from npukit.ascend.limits import LEVELS, RULES, limits, op_rows
from npukit.ascend.preparation import PASSES
from npukit.ascend.rules import KINDS
from npukit.cli import main as cli
from npukit.errors import UsageError
from npukit.targets import TARGETS
from tests.frontend_tools import parse

DIGITS = Path(__file__).parents[1] / "examples" / "digits" / "digits.onnx"
CHIP = ("--target", "ascend310p3")
FAULTY = """g (float[2,4] x) => (float[2,4] y, bool[2,4] z) {
    a = Trilu(x, k) q = Mul(x, x) m = ReduceMean<axes=[1]>(q) r = Sqrt(m) y = Div(x, r) z = Cast<to=9>(a)
}"""


@pytest.fixture
def faulty(tmp_path: Path) -> Path:
    model = parse(FAULTY, 17, {"k": np.array(1)})
    for node in model.graph.node:
        node.name = f"the_{node.op_type}"
    path = tmp_path / "faulty.onnx"
    onnx.save(model, path)
    return path


def test_all_at_once_as_text(faulty: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["lint", str(faulty), *CHIP, "--cann", "8.0", "--in-process"]) == 1
    out = capsys.readouterr().out
    for words in (
        "error [atc-opset]", "opset 17; atc of CANN 8.0 reads 11 to 15",
        "Trilu 'the_Trilu': a diagonal other than 0: 1",
        "ReduceMean 'the_ReduceMean': sums squares of 'x' in float16", "(pass mask_triangles)",
        "cannot be converted for ascend310p3: 2 errors, 1 warning, 1 note",
    ):  # fmt: skip
        assert words in out


def test_all_at_once_as_json(faulty: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["lint", str(faulty), *CHIP, "--json", "--in-process"]) == 1
    told = json.loads(capsys.readouterr().out)
    found = {finding["rule"]: finding for finding in told["findings"]}
    assert told["targets"] == ["ascend310p3"]
    assert not told["convertible"]
    assert found["atc-limit"] == {
        "level": "error", "rule": "atc-limit", "what": "a diagonal other than 0: 1", "where": "Trilu 'the_Trilu'",
        "hint": "multiply or select with a constant mask", "fix": "mask_triangles", "source": "OXOL 0168",
    }  # fmt: skip


def test_strict_counts_warnings(tmp_path: Path) -> None:
    path = tmp_path / "gemm.onnx"
    onnx.save(parse("g (float[2,3] x, float[3,4] w, float[4] b) => (float[2,4] y) { y = Gemm(x, w, b) }", 14), path)
    assert npukit.lint(path, target=["ascend310p3"], in_process=True).exit_code == 0
    assert npukit.lint(path, target=["ascend310p3"], in_process=True, strict=True).exit_code == 1


@pytest.mark.native
def test_beside_a_qnn_target(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["lint", str(DIGITS), "--target", "qnn-cpu", *CHIP]) == 0
    out = capsys.readouterr().out
    assert "atc-opset-unverified" in out
    assert "can be converted for qnn-cpu, ascend310p3" in out


def test_export_clears_it(faulty: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "out.onnx"
    assert cli.main(["export", str(faulty), *CHIP, "-o", str(output)]) == 0
    out = capsys.readouterr().out
    assert "mask_triangles: 1" in out
    assert "lower_opset: opset 14" in out
    assert "PASSED" in out
    assert [p for p in check(output) if p.level == "error"] == []
    assert sorted(p.name for p in tmp_path.iterdir()) == ["faulty.onnx", "out.onnx"]
    assert cli.main(["export", str(faulty), *CHIP, "--no-verify", "--json", "--in-process", "-o", str(output)]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["skipped"] == "asked for with --no-verify"
    assert told["opset"] == 14


def test_an_export_that_differs_is_set_aside(
    faulty: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from npukit.ascend.passes import indexing

    monkeypatch.setattr(indexing.np, "triu", lambda x, k=0: np.tril(x, k))  # the other triangle
    output = tmp_path / "out.onnx"
    assert cli.main(["export", str(faulty), *CHIP, "--in-process", "-o", str(output)]) == 1
    assert "FAILED" in capsys.readouterr().out
    assert not output.exists()
    assert (tmp_path / "out.onnx.rejected").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["lint", "{a}/nothing.onnx", *CHIP], "there is no such file"),
        (["lint", "{a}", *CHIP], "this is a folder"),
        (["lint", "{a}/text.onnx", *CHIP], "not a whole ONNX model"),
        (["lint", "{a}/faulty.onnx", "--target", "ascend310p9"], "no target 'ascend310p9'"),
        (["lint", "{a}/faulty.onnx", *CHIP, "--cann", "7"], "no CANN version '7'"),
        (["lint", "{a}/faulty.onnx", *CHIP, "--cann", "6.0.1"], "known are 8.0"),
        (["lint", "{a}/faulty.onnx", *CHIP, "--precision-mode", "bf16"], "'bf16' is not a choice"),
        (["lint", "{a}/faulty.onnx", *CHIP, "--output", "y"], "the file is checked as a whole"),
        (["lint", "{a}/faulty.onnx", *CHIP, "--input-shape", "w=1"], "there is no such input"),
        (["export", "{a}/faulty.onnx", "-o", "{a}/x.onnx"], "it is ONNX already"),
        (["export", "{a}/faulty.onnx", "--target", "sm8650"], "no ONNX is made for sm8650"),
        (["export", "{a}/faulty.onnx", *CHIP, "-o", "{a}/faulty.onnx"], "this is the source itself"),
        (["export", "{a}/faulty.onnx", *CHIP, "-o", "{a}/no/such/folder.onnx"], "no such"),
        (["export", "{a}/text.onnx", *CHIP], "not a whole ONNX model"),
    ],
)
def test_bad_use(
    arguments: list[str], words: str, faulty: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "text.onnx").write_text("not a model")
    before = sorted(path.name for path in tmp_path.iterdir())
    assert cli.main([*(argument.format(a=tmp_path) for argument in arguments), "--in-process"]) == 2
    assert words.lower() in capsys.readouterr().err.lower()
    assert sorted(path.name for path in tmp_path.iterdir()) == before


def test_open_shapes_with_and_without_options(tmp_path: Path) -> None:
    path = tmp_path / "open.onnx"
    onnx.save(
        parse("g (float[n,1,3] x) => (float[n,4,3] y) { y = Expand(x, s) }", 14, {"s": np.array([1, 4, 1])}), path
    )
    (finding,) = (f for f in npukit.lint(path, target=["ascend310p3"], in_process=True).findings if f.level != "note")
    assert (finding.rule, finding.where) == ("atc-dynamic", "input 'x'")
    assert npukit.lint(path, target=["ascend310p3"], in_process=True, symbols={"n": 2}).count["error"] == 0


def _varint(number: int) -> bytes:
    out = b""
    while number > 127:
        out, number = out + bytes([number & 127 | 128]), number >> 7
    return out + bytes([number])


def test_a_file_beyond_two_gigabytes(tmp_path: Path) -> None:
    """The weight is a hole in the file: it takes no disk, and the lint does not read it."""
    count = 2**29 + 1
    indices = helper.make_tensor_value_info("i", TensorProto.INT64, [2])
    result = helper.make_tensor_value_info("y", TensorProto.FLOAT, [2])
    node = helper.make_node("Gather", ["w", "i"], ["y"], name="pick")
    graph = helper.make_graph([node], "g", [indices], [result]).SerializeToString()
    model = onnx.ModelProto(ir_version=8, opset_import=[helper.make_opsetid("", 14)]).SerializeToString()
    head = onnx.TensorProto(dims=[count], data_type=TensorProto.FLOAT, name="w").SerializeToString()
    head += b"\x4a" + _varint(4 * count)  # field 9, raw_data
    tensor = b"\x2a" + _varint(len(head) + 4 * count) + head  # field 5 of the graph, initializer
    start = model + b"\x3a" + _varint(len(graph) + len(tensor) + 4 * count) + graph + tensor  # field 7, graph
    path = tmp_path / "large.onnx"
    with open(path, "wb") as file:
        file.write(start)
        file.truncate(len(start) + 4 * count)
    (problem,) = [p for p in check(path) if p.level != "note"]
    assert (problem.rule, problem.source) == ("atc-file", "E13015")
    assert str(path.stat().st_size) in problem.what


def test_weights_that_a_link_hides(tmp_path: Path) -> None:
    """ONNX looks beside the link, atc beside what it leads to."""
    (tmp_path / "store").mkdir()
    (tmp_path / "use").mkdir()
    model = parse("g (float[2,30] x) => (float[2,40] y) { y = MatMul(x, w) }", 14, {"w": np.ones((30, 40), np.float32)})
    onnx.save_model(
        model, tmp_path / "use" / "m.onnx", save_as_external_data=True, location="m.data", size_threshold=0
    )  # fmt: skip
    assert [p for p in check(tmp_path / "use" / "m.onnx") if p.level != "note"] == []
    os.rename(tmp_path / "use" / "m.onnx", tmp_path / "store" / "m.onnx")
    (tmp_path / "use" / "m.onnx").symlink_to(tmp_path / "store" / "m.onnx")
    (problem,) = [p for p in check(tmp_path / "use" / "m.onnx") if p.level != "note"]
    assert problem.rule == "atc-file"
    assert "m.data" in problem.what


def test_the_table_is_whole() -> None:
    assert len(op_rows()) > 200
    passes = {name for name, *_ in PASSES} | {"lower_opset", "name_nodes", "inline_functions", "write", ""}
    for rows in limits().values():
        for row in rows:
            assert row.kind in KINDS
            assert row.fix in passes
            assert row.level in LEVELS
            assert row.source
    assert {row.kind for rows in limits().values() for row in rows} == set(KINDS)
    assert {level for level, _ in RULES.values()} == set(LEVELS)


@pytest.mark.parametrize("text", ["8.0", "8.0.0", "8.2.RC1", "8.2.RC1.alpha003", "8.5.0", "9.0.0", "8.0.RC2.2"])
def test_cann_versions(text: str) -> None:
    assert text.startswith(cann_version(text).name)


@pytest.mark.parametrize("text", ["", "8", "eight", "8.2.RC", "10.0", "8.2.RC1 ; rm"])
def test_what_is_no_cann_version(text: str) -> None:
    with pytest.raises(UsageError, match="known are 8.0"):
        cann_version(text)


def test_chips_and_modes() -> None:
    chips = {name: row.soc_version for name, row in TARGETS.items() if row.backend == "ascend"}
    assert chips["ascend310p3"] == "Ascend310P3"
    assert len(chips) == 4
    assert PRECISIONS[0] == "fp16"

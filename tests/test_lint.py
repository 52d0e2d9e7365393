# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""`npukit lint`: what it finds, and what it exits with."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import npukit
from npukit.cli import main as cli
from npukit.errors import MissingDependency, ModelError
from npukit.verbs import convert as conversion
from npukit.verbs.lint import LEVELS, RULES, LintResult

DIGITS = Path(__file__).parents[1] / "examples" / "digits"
pytestmark = pytest.mark.native


def save(path: Path, nodes, inputs, outputs, constants=()) -> Path:
    """A model of (name, type, shape) inputs and outputs at opset 20."""
    info = [[helper.make_tensor_value_info(*value) for value in side] for side in (inputs, outputs)]
    initializers = [numpy_helper.from_array(np.asarray(array), name) for name, array in constants]
    graph = helper.make_graph(nodes, "g", *info, initializers)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9), path)
    return path


def node(op, inputs, output, **attributes):
    return helper.make_node(op, inputs.split(), [output], name=f"n_{output}", **attributes)


def lint(path: Path, **options) -> LintResult:
    return npukit.lint(path, target=options.pop("target", ("qnn-cpu",)), in_process=True, **options)


def rules(result: LintResult) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for finding in result.findings:
        found.setdefault(finding.rule, []).append(f"{finding.where} {finding.what}")
    return found


def test_a_clean_model(capsys) -> None:
    assert cli.main(["lint", str(DIGITS / "digits.onnx"), "--strict"]) == 0
    assert capsys.readouterr().out == (
        "digits.onnx can be converted for qnn-cpu, htp-v73: 0 errors, 0 warnings, 0 notes\n"
    )


def test_every_fault_at_once(tmp_path: Path, capsys) -> None:
    path = save(
        tmp_path / "bad.onnx",
        [node("Det", "x", "a"), node("Relu", "a", "b"), node("StringConcat", "s s", "c")],
        [("x", TensorProto.FLOAT, [2, 2]), ("s", TensorProto.STRING, [1])],
        [("b", TensorProto.FLOAT, []), ("c", TensorProto.STRING, [1])],
    )
    assert cli.main(["lint", str(path), "--target", "qnn-cpu", "--json"]) == 1
    told = json.loads(capsys.readouterr().out)
    places = [finding["where"] for finding in told["findings"] if finding["level"] == "error"]
    assert not told["convertible"]
    assert told["errors"] == len(places)
    assert any("n_c" in place for place in places)
    assert any("'s'" in place for place in places)
    assert not (tmp_path / "bad.dlc").exists()


def test_a_broken_model_is_bad_input(tmp_path: Path) -> None:
    (tmp_path / "x.onnx").write_bytes(b"\x08\x09nothing")
    with pytest.raises(ModelError):
        lint(tmp_path / "x.onnx")


def test_integers_without_a_proof(tmp_path: Path) -> None:
    path = save(
        tmp_path / "wide.onnx",
        [
            node("Mul", "n n", "square"), node("Abs", "square", "safe"), node("Cast", "safe", "y", to=1),
            node("ArgMax", "f", "best", axis=1), node("Cast", "best", "z", to=1),
        ],
        [("n", TensorProto.INT64, [4]), ("f", TensorProto.FLOAT, [2, 5])],
        [("y", TensorProto.FLOAT, [4]), ("z", TensorProto.FLOAT, [2, 1])],
    )  # fmt: skip
    result = lint(path)
    found = rules(result)
    assert [text.split(" int64")[0] for text in found["unproven"]] == [
        "Mul 'n_square': tensor 'square'", "Abs 'n_safe': tensor 'safe'",
    ]  # fmt: skip
    assert found["narrowed-io"] == ["input 'n' int64 held as INT_32"]
    assert result.exit_code == 0
    assert lint(path, strict=True).exit_code == 1


def test_unsigned_inputs_are_narrowed_too(tmp_path: Path) -> None:
    path = save(
        tmp_path / "unsigned.onnx",
        [node("Cast", "n", "y", to=1), node("Cast", "m", "z", to=1)],
        [("n", TensorProto.UINT64, [4]), ("m", TensorProto.UINT32, [4])],
        [("y", TensorProto.FLOAT, [4]), ("z", TensorProto.FLOAT, [4])],
    )
    assert len(rules(lint(path))["narrowed-io"]) == 2


def test_float64_inside(tmp_path: Path) -> None:
    path = save(
        tmp_path / "double.onnx",
        [node("Add", "x c", "a"), node("Exp", "a", "y")],
        [("x", TensorProto.DOUBLE, [3])],
        [("y", TensorProto.DOUBLE, [3])],
        [("c", np.array([0.1, 0.2, 0.3]))],
    )
    found = rules(lint(path))
    assert found["float64"] == ["Add 'n_a': tensor 'a' held as FLOAT_32"]
    assert len(found["narrowed-io"]) == 2
    assert any("constants change by at most" in text for text in found["front-end"])


def test_constants_beyond_float16(tmp_path: Path) -> None:
    path = save(
        tmp_path / "mask.onnx",
        [node("Add", "x c", "y")],
        [("x", TensorProto.FLOAT, [3])],
        [("y", TensorProto.FLOAT, [3])],
        [("c", np.array([0, -1e9, -np.inf], np.float32))],
    )
    assert "float16-range" not in rules(lint(path))
    (text,) = rules(lint(path, target=("sm8650",)))["float16-range"]
    assert "-1e+09 becomes -65504" in text
    assert "float16-range" in rules(lint(path, target=("sm8650",), float_bitwidth=16))


def test_float_ops_in_a_quantized_model(tmp_path: Path) -> None:
    path = save(
        tmp_path / "sign.onnx",
        [
            node("QuantizeLinear", "x s z", "c"),
            node("DequantizeLinear", "c s z", "d"),
            node("Sign", "d", "e"),
            node("QuantizeLinear", "e s z", "f"),
            node("DequantizeLinear", "f s z", "y"),
        ],
        [("x", TensorProto.FLOAT, [2, 3])],
        [("y", TensorProto.FLOAT, [2, 3])],
        [("s", np.array(0.01, np.float32)), ("z", np.array(128, np.uint8))],
    )
    found = rules(lint(path))
    assert ["Sign" in text for text in found["float-op"]] == [True]
    assert "float-op" not in rules(lint(DIGITS / "digits.onnx"))


def test_quirks_and_transposes(tmp_path: Path) -> None:
    topk = helper.make_node("TopK", ["t", "k"], ["y", "i"], name="top")
    path = save(
        tmp_path / "quirk.onnx",
        [node("Transpose", "x", "t", perm=[1, 0]), topk],
        [("x", TensorProto.FLOAT, [6, 3])],
        [("y", TensorProto.FLOAT, [3, 2]), ("i", TensorProto.INT64, [3, 2])],
        [("k", np.array([2], np.int64))],
    )
    result = lint(path)
    found = rules(result)
    assert "TopK 'top' TopK puts the larger index first on ties (qnn-cpu)" in found["quirk"]
    assert any("n_t" in text for text in found["transpose"])
    assert "narrowed-io" not in found  # indices of six elements fit
    assert "note [transpose]" in result.to_text()


def test_without_the_libraries(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(target, stack):
        raise MissingDependency("there is no libQnnCpu here", hint="install it")

    monkeypatch.setattr(conversion, "validator", missing)
    result = lint(DIGITS / "digits.onnx")
    assert rules(result)["unvalidated"] == ["qnn-cpu there is no libQnnCpu here"]
    assert result.exit_code == 0


def test_every_rule_has_a_level() -> None:
    assert {level for level, _ in RULES.values()} == set(LEVELS)

# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""The conformance harness itself: variants, the pass rule, tolerances, the pool, the committed list."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from conformance import cases, execute, pool, report
from npukit.qnn.graph import DType, Encoding, Graph, Held, Op, Tensor, TensorKind


def _case(types: list[int]) -> cases.Case:
    names = [f"x{i}" for i in range(len(types))]
    infos = [helper.make_tensor_value_info(n, t, [2]) for n, t in zip(names, types, strict=True)]
    nodes = [helper.make_node("Cast", [n], [f"{n}f"], to=TensorProto.FLOAT) for n in names]
    nodes.append(helper.make_node("Sum", [f"{n}f" for n in names], ["y"]))
    out = helper.make_tensor_value_info("y", TensorProto.FLOAT, [2])
    model = helper.make_model(helper.make_graph(nodes, "g", infos, [out]), ir_version=3)
    values = {n: np.ones(2, helper.tensor_dtype_to_np_dtype(t)) for n, t in zip(names, types, strict=True)}
    return cases.Case("t", model, ((values, (np.full(2, len(types), np.float32),)),))


def test_the_table_holds_the_deployable_cases() -> None:
    table = cases.table()
    assert len(table.cases) == 1733
    assert len(table.aux) == 136
    assert sum(peer["cpu"] == "pass" for peer in table.cases.values()) == 825
    assert sum(peer["htp"] == "pass" for peer in table.cases.values()) == 842
    assert len({*table.cases, *table.aux, *sum(table.left_out.values(), [])}) == 2024


@pytest.mark.parametrize(
    ("types", "b", "c"),
    [
        ([TensorProto.FLOAT], None, None),
        ([TensorProto.FLOAT, TensorProto.FLOAT], {"x0"}, None),
        ([TensorProto.INT64, TensorProto.FLOAT], {"x1"}, {"x0"}),
        ([TensorProto.INT64, TensorProto.INT32], None, {"x0"}),
    ],
)
def test_variants_keep_one_input(types: list[int], b: set[str] | None, c: set[str] | None) -> None:
    case = _case(types)
    for letter, kept in (("b", b), ("c", c)):
        changed = cases.variant(case, letter)
        if kept is None:
            assert changed is None
            continue
        assert changed is not None
        assert {info.name for info in changed.model.graph.input} == kept == set(changed.data[0][0])
        assert {t.name for t in changed.model.graph.initializer} == set(case.data[0][0]) - kept
        assert changed.model.ir_version >= 4
        onnx.checker.check_model(changed.model)


def _graph(*, constant: bool) -> Graph:
    x = Tensor("x", DType.FLOAT_32, (2,), TensorKind.APP_WRITE)
    k = Tensor("k", DType.FLOAT_32, (2,), TensorKind.STATIC, data=np.ones(2, np.float32))
    y = Tensor("y", DType.FLOAT_32, (2,), TensorKind.APP_READ)
    return Graph("g", [x], [y], [Op("relu", "Relu", [k if constant else x], [y])])


def test_an_output_made_of_constants_only_is_folded() -> None:
    assert execute.depends_on_input(_graph(constant=False))
    assert not execute.depends_on_input(_graph(constant=True))


def test_an_input_handed_through_is_no_execution() -> None:
    x = Tensor("x", DType.FLOAT_32, (2,), TensorKind.APP_WRITE)
    assert not execute.depends_on_input(Graph("g", [x], [x]))


@pytest.mark.parametrize(
    ("path", "want", "got", "holds"),
    [
        ("cpu", [1.0, 2.0], [1.0005, 2.0], True),
        ("cpu", [1.0, 2.0], [1.01, 2.0], False),
        ("htp", [1.0, 100.0], [1.9, 100.0], True),
        ("htp", [1.0, 2.0], [1.1, 2.0], False),
        ("cpu", [np.nan, np.inf], [np.nan, np.inf], True),
        ("cpu", [np.inf, 1.0], [-np.inf, 1.0], False),
        ("cpu", [np.nan, 1.0], [0.0, 1.0], False),
    ],
)
def test_tolerance(path: str, want: list[float], got: list[float], holds: bool) -> None:
    def compare() -> float:
        return execute._compare(path, "y", np.array(want, np.float32), np.array(got, np.float32))

    if holds:
        assert compare() >= 0
        return
    with pytest.raises(execute.CannotHold) as failure:
        compare()
    assert failure.value.reason == "wrong"


def test_dtype_and_shape_count() -> None:
    for got in (np.ones(2, np.float64), np.ones((2, 1), np.float32)):
        with pytest.raises(execute.CannotHold, match="wrong"):
            execute._compare("cpu", "y", np.ones(2, np.float32), got)


def test_inputs_and_outputs_cross_the_contract_both_ways() -> None:
    held = Held("x", "float32", (1, 2, 3, 4), perm=(0, 2, 3, 1))
    tensor = Tensor("x", DType.UFIXED_POINT_8, (1, 3, 4, 2), encoding=Encoding.per_tensor(0.5, -10), held=held)
    x = np.arange(24, dtype=np.float32).reshape(1, 2, 3, 4)
    native = execute.to_native(x, tensor)
    assert native.dtype == np.uint8
    assert native[0, 1, 2, 1] == round(x[0, 1, 1, 2] / 0.5) + 10
    np.testing.assert_array_equal(execute.to_source(native, tensor), x)


def test_an_integer_that_does_not_fit_is_named() -> None:
    tensor = Tensor("i", DType.INT_32, (1,), held=Held("i", "int64", (1,)))
    with pytest.raises(execute.CannotHold) as failure:
        execute.to_native(np.array([2**40]), tensor)
    assert failure.value.reason == "dtype cannot be held"


class _Worker:
    """Stands in for a child process: gives prepared answers, and may die."""

    def __init__(self, answers: list[dict[str, Any]]) -> None:
        self.answers = answers
        self.closed = 0
        self._process: object | None = object()
        self.fresh = False

    def run(self, task: dict[str, Any]) -> dict[str, Any]:
        return self.answers.pop(0)

    def close(self) -> None:
        self.closed += 1


def _unit(*letters: str) -> list[dict[str, Any]]:
    return [{"name": "t", "path": "cpu", "variant": letter} for letter in letters]


def test_the_first_variant_that_passes_counts() -> None:
    worker = _Worker([{"status": "fail", "reason": "wrong"}, {"status": "same"}, {"status": "pass"}])
    assert pool.run_unit(worker, _unit("a", "b", "c")) == {"status": "pass", "variant": "c"}  # type: ignore[arg-type]


def test_a_crash_is_tried_again_in_a_new_child() -> None:
    worker = _Worker([{"status": "fail", "reason": "crash", "evidence": "killed by SIGSEGV"}, {"status": "pass"}])
    result = pool.run_unit(worker, _unit("a"))  # type: ignore[arg-type]
    assert result["status"] == "pass"
    assert result["retried"]
    assert worker.closed == 1


def test_a_child_that_dies_is_a_crash_with_its_signal(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "conformance").mkdir()
    (tmp_path / "conformance" / "__init__.py").touch()
    child = "import os, sys\nfor line in sys.stdin:\n    os.write(2, b'last words'); os.kill(os.getpid(), 11)\n"
    (tmp_path / "conformance" / "pool.py").write_text(child)
    monkeypatch.setattr(pool, "ROOT", tmp_path)
    worker = pool.Worker(timeout=20)
    result = worker.run({})
    assert (result["status"], result["reason"]) == ("fail", "crash")
    assert "SIGSEGV" in result["evidence"]
    assert "last words" in result["evidence"]


def test_a_child_that_hangs_is_killed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "conformance").mkdir()
    (tmp_path / "conformance" / "__init__.py").touch()
    (tmp_path / "conformance" / "pool.py").write_text("import time\ntime.sleep(60)\n")
    monkeypatch.setattr(pool, "ROOT", tmp_path)
    assert "time limit" in pool.Worker(timeout=0.3).run({})["evidence"]


def test_a_lost_case_is_found_and_nothing_is_taken_off_the_list(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(report, "PASSED", tmp_path / "passed.json")
    report.PASSED.write_text(json.dumps({"node/test_abs": "aab", "node/test_add": "a--"}))
    results = report.Results(tmp_path)
    for path in execute.PATHS:
        results.add({"case": "node/test_abs", "path": path, "status": "pass", "variant": "a"})
    results.add({"case": "node/test_add", "path": "cpu", "status": "fail", "reason": "wrong", "variant": "a"})
    (fault,) = report.lost(results, ["a"])
    assert "node/test_add cpu: wrong" in fault
    assert report.accept(results) == 1
    assert report.passed_list() == {"node/test_abs": "aaa", "node/test_add": "a--"}


def test_the_path_through_a_dlc_must_pass_what_qnn_cpu_passes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report, "PASSED", tmp_path / "passed.json")
    report.PASSED.write_text(json.dumps({"node/test_abs": "a--", "node/test_add": "--a"}))
    results = report.Results(tmp_path)
    for path in execute.PATHS:
        for name in ("node/test_abs", "node/test_add"):
            results.add({"case": name, "path": path, "status": "pass", "variant": "a"})
    assert report.lost(results, ["a"]) == []
    results.add({"case": "node/test_abs", "path": execute.DLC, "status": "fail", "reason": "wrong", "variant": "a"})
    (fault,) = report.lost(results, ["a"])
    assert "node/test_abs dlc: wrong" in fault


@pytest.mark.native
def test_a_case_through_a_dlc_keeps_its_ends() -> None:
    x, y = _floats("x", "y")
    nodes = [helper.make_node("Gelu", ["y"], ["g"]), helper.make_node("Sub", ["g", "x"], ["d"])]
    outputs = _floats("d", "g")
    opset = [helper.make_opsetid("", 20)]
    model = helper.make_model(helper.make_graph(nodes, "g", [x, y], outputs), ir_version=9, opset_imports=opset)
    inputs = {"x": np.ones(2, np.float32), "y": np.array([1, -1], np.float32)}
    case = cases.Case("t", model, ((inputs, ()),))
    read = execute._through_a_dlc(execute._lower(case, execute.DLC).graph)
    assert [t.held.source for t in read.inputs if t.held] == ["x", "y"]
    assert [t.held.source for t in read.outputs if t.held] == ["d", "g"]
    with execute._executor(execute.DLC, read) as run:
        d, g = run(inputs)
    np.testing.assert_allclose(g, [0.8413447, -0.1586553], atol=1e-6)
    np.testing.assert_allclose(d, g - 1, atol=1e-6)


def _floats(*names: str) -> list[onnx.ValueInfoProto]:
    return [helper.make_tensor_value_info(name, TensorProto.FLOAT, [2]) for name in names]


def test_the_page_names_each_failure(tmp_path: Path) -> None:
    results = report.Results(tmp_path)
    record = {"case": "node/test_add", "path": "cpu", "source_ops": ["Add"], "variant": "a"}
    results.add({**record, "status": "fail", "reason": "wrong", "evidence": "y: off | by one"})
    text = report.page(results)
    assert "### wrong" in text
    assert "| Add | y: off / by one | cpu: add |" in text
    assert "- node/test_add (cpu): wrong" in text
    assert report.Results(tmp_path).records == results.records

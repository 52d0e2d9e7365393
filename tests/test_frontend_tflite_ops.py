# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""Every builtin operator of TensorFlow Lite against LiteRT's interpreter, with the cases of tools/tflite_cases.py."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("tflite")
pytest.importorskip("ai_edge_litert", reason="LiteRT's interpreter has no wheel here")

from npukit.errors import ModelError
from npukit.frontends.tflite import load
from npukit.frontends.tflite.flatfile import builtin_names
from npukit.frontends.tflite.registry import CUSTOM, READERS, REASONS, reason
from tools import tflite_coverage as coverage
from tools.tflite_cases import Case, Fixed, State, f, k
from tools.tflite_cases_moves import CASES
from tools.tflite_models import MODELS
from tools.tflite_writer import Model

PATHS = [pytest.param("raise"), pytest.param("cpu", marks=pytest.mark.native)]
PAGE = Path(__file__).parents[1] / "docs" / "tflite-coverage.md"


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("code", [*READERS, *CUSTOM])
def test_float_operators(code: str, path: str):
    assert coverage.judge(code, path) == (3, [])


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("code", [code for code, cases in CASES.items() if any(case.integer for case in cases)])
def test_integer_operators(code: str, path: str):
    count = sum(case.integer for case in CASES[code])
    assert coverage.judge(code, path, integer=True) == (count, [])


def test_every_operator_of_the_schema_is_read_or_has_a_reason():
    names = builtin_names()
    plain = {name for name in names if not name.startswith("STABLEHLO_")}
    assert plain == (READERS.keys() - {"STABLEHLO_COMPOSITE"}) | REASONS.keys()
    assert not READERS.keys() & REASONS.keys()
    assert len(READERS) >= 90
    assert {len(CASES.get(name, [])) + len(MODELS.get(name, [])) for name in (*READERS, *CUSTOM)} == {3}


def test_the_page_is_that_of_the_code():
    text = PAGE.read_text()
    for name in builtin_names():
        assert (f"\n| {name} | 3 of 3 | 3 of 3 |" in text) == (name in READERS), name
        if name not in READERS:
            assert f"\n| {name} | {reason(name)} |" in text


def one(code: str, *inputs: object, **more: object) -> bytes:
    return coverage._Maker(Case(code, inputs, **more), [], None).content()  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (one("SVDF", f(1, 4), options="SVDFOptions"), "a single step whose state"),
        (one("UNIQUE", f(4), options="UniqueOptions", outputs=("float32", "int32")), "depends on values"),
        (one("RANDOM_UNIFORM", k(3), options="RandomOptions"), "random"),
        (one("Own", f(2), custom=b"1"), "the custom operator 'Own' is not known"),
        (one("CONV_2D", f(1, 4, 4, 3), f(2, 3, 3, 2), options="Conv2DOptions"), "a filter of 2 channels over 3"),
        (one("PAD", f(1, 4), np.array([[0, 0], [1, 1]], np.int32), options="PadOptions"), "only known when it runs"),
        (
            one("NON_MAX_SUPPRESSION_V5", f(9, 4), f(9), k(2), *(Fixed(np.float32([v])) for v in (0.5, 0.1, 0.5)),
                options="NonMaxSuppressionV5Options", outputs=("int32", "float32", "int32")),
            "soft suppression",
        ),
        (
            one("BIDIRECTIONAL_SEQUENCE_RNN", f(5, 2, 3), *[Fixed(f(4, 3)), Fixed(f(4, 4)), Fixed(f(4)),
                State((2, 4))] * 2, f(5, 2, 3), options="BidirectionalSequenceRNNOptions"),
            "an auxiliary input",
        ),
    ],
)  # fmt: skip
def test_what_an_operator_cannot_do_is_said(content: bytes, words: str):
    with pytest.raises(ModelError) as caught:
        load(content)
    assert words in str(caught.value)


def test_the_cut_before_an_unknown_operator_is_named():
    with pytest.raises(ModelError) as caught:
        load(one("Own", f(2), custom=b"1"))
    assert "--output 'x0'" in caught.value.faults[0].hint


@pytest.mark.native
def test_a_model_is_cut_before_what_cannot_be_read(tmp_path: Path):
    """The cut that the message names converts and is verified; `inspect` names the file's tensors."""
    import npukit

    model = Model()
    graph = model.subgraph()
    graph.table.inputs = [graph.tensor("image", (1, 4, 4, 3), "float32")]
    graph.table.outputs = [graph.tensor("out", (1, 4, 4, 3), "float32")]
    inner = graph.tensor("features", (1, 4, 4, 3), "float32")
    graph.operator("RELU", [0], [inner])
    graph.operator("Own", [inner], graph.table.outputs, custom=b"1")
    (path := tmp_path / "m.tflite").write_bytes(model.content())
    with pytest.raises(ModelError, match="--output 'features'"):
        npukit.convert(path, output=tmp_path / "m.dlc", target="qnn-cpu")
    made = npukit.convert(path, output=tmp_path / "m.dlc", target="qnn-cpu", outputs=("features",))
    assert made.verification is not None
    assert made.verification.passed
    assert "npukit's own reading" in made.to_text()


def variables(first: bool, changes: bool) -> bytes:
    model = Model()
    graph = model.subgraph()
    graph.table.inputs = [graph.tensor("x", (2,), "float32")]
    handle, value, y = (graph.tensor(n, (2,), t) for n, t in (("h", "resource"), ("v", "float32"), ("y", "float32")))
    if first:
        graph.operator("CALL_ONCE", [], [], "CallOnceOptions", initSubgraphIndex=1)
        once = model.subgraph("once")
        there = once.tensor("there", (1,), "resource")
        data = once.tensor("data", (2,), "float32", np.ones(2, np.float32))
        once.operator("VAR_HANDLE", [], [there], "VarHandleOptions", sharedName="counts")
        once.operator("ASSIGN_VARIABLE", [there, data], [], "AssignVariableOptions")
    graph.operator("VAR_HANDLE", [], [handle], "VarHandleOptions", sharedName="counts")
    graph.operator("READ_VARIABLE", [handle], [value], "ReadVariableOptions")
    graph.operator("ADD", [0, value], [y], "AddOptions")
    if changes:
        graph.operator("ASSIGN_VARIABLE", [handle, y], [], "AssignVariableOptions")
    graph.table.outputs = [y]
    return model.content()


def test_variables_are_refused_by_name_where_they_change_or_have_no_value():
    assert len(load(variables(first=True, changes=False)).model.graph.inputs) == 1
    with pytest.raises(ModelError, match="changes the variable 'counts'"):
        load(variables(first=True, changes=True))
    with pytest.raises(ModelError, match="the variable 'counts' has no first value"):
        load(variables(first=False, changes=False))


def test_recurrent_layers_say_where_they_start():
    content, _ = coverage.trials("UNIDIRECTIONAL_SEQUENCE_LSTM"), None
    notes = load(next(content).content).notes
    assert any("start from zeros in every run" in note for note in notes)


def loops(condition: int, body: int) -> bytes:
    """A WHILE with these subgraphs; subgraph 1 compares, subgraph 2 is another WHILE of the same two."""
    model = Model()
    graph = model.subgraph()
    for name, inner in (("main", graph), ("condition", model.subgraph("c")), ("body", model.subgraph("b"))):
        inner.table.inputs = [inner.tensor(f"{name}_i", (), "int32")]
        result = inner.tensor(f"{name}_y", (), "bool" if name == "condition" else "int32")
        if name == "condition":
            limit = inner.tensor("limit", (), "int32", np.array(3, np.int32))
            inner.operator("LESS", [0, limit], [result], "LessOptions")
        else:
            inner.operator("WHILE", [0], [result], "WhileOptions", condSubgraphIndex=condition, bodySubgraphIndex=body)
        inner.table.outputs = [result]
    return model.content()


@pytest.mark.parametrize(
    ("condition", "body", "words"),
    [(1, 2, "part of"), (1, 7, "subgraph 7 of 3"), (-3, 2, "subgraph -3"), (0, 2, "part of"), (2, 1, "part of")],
)
def test_subgraphs_that_call_themselves_or_are_not_there(condition: int, body: int, words: str):
    with pytest.raises(ModelError, match=words):
        load(loops(condition, body))


@pytest.mark.parametrize(
    "content",
    [
        one(
            "RANGE",
            *(Fixed(np.array(v, np.int32)) for v in (0, 2**31 - 1, 1)),
            options="RangeOptions",
            outputs=("int32",),
        ),
        one("SCATTER_ND", k([0]), f(1), k(2**31 - 1), options="ScatterNdOptions"),
        one(
            "SPARSE_TO_DENSE", k(1), k(2**30, 64), f(1), Fixed(np.array(0, np.float32)), options="SparseToDenseOptions"
        ),
        one(
            "UNSORTED_SEGMENT_SUM",
            f(2, 3),
            k(0, 1),
            Fixed(np.array(2**31 - 1, np.int32)),
            options="UnsortedSegmentSumOptions",
        ),
    ],
)
def test_a_constant_of_any_size_is_not_made(content: bytes):
    with pytest.raises(ModelError, match="a constant of shape"):
        load(content)


def test_a_recurrent_layer_s_runs_are_independent(tmp_path: Path):
    from npukit.runtime.session import Session

    trial = next(coverage.trials("UNIDIRECTIONAL_SEQUENCE_LSTM"))
    (tmp_path / "m.tflite").write_bytes(trial.content)
    with Session(tmp_path / "m.tflite", in_process=True) as session:
        first, second = session.run(trial.feeds), session.run(trial.feeds)
    np.testing.assert_array_equal(first["y0"], second["y0"])
    np.testing.assert_allclose(first["y0"], trial.want["y0"], rtol=1e-5, atol=1e-6)

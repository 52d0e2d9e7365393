# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""Cuts, models of several files, inputs that are also initializers, and control flow that constants decide."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from frontend_tools import assert_same, ops, parse

from npukit.errors import ModelError
from npukit.frontends.onnx import LoadOptions, load, resolve_control_flow

CHAIN = "g (float[2] x) => (float[2] y) { a = Relu(x) b = Neg(a) c = Exp(b) y = Abs(c) }"


def test_a_cut_at_an_input_is_refused_and_a_name_given_twice_is_one() -> None:
    for options in (LoadOptions(outputs=("x",)), LoadOptions(inputs=("a",), outputs=("a",))):
        with pytest.raises(ModelError, match="is an input: nothing is computed there"):
            load(parse(CHAIN), options)
    twice = load(parse(CHAIN), LoadOptions(inputs=("a", "a"), outputs=("c", "c")))
    assert [[v.name for v in side] for side in (twice.model.graph.inputs, twice.model.graph.outputs)] == [["a"], ["c"]]


def test_every_name_that_a_cut_gets_wrong_is_listed() -> None:
    with pytest.raises(ModelError) as caught:
        load(parse(CHAIN), LoadOptions(inputs=("aa",), outputs=("x", "zz")))
    assert [fault.where for fault in caught.value.faults] == ["--input aa", "--output zz", "--output x"]


def _two_files(folder: Path) -> Path:
    constants = {"w": np.random.default_rng(0).normal(size=(8, 8)).astype("f4"), "b": np.ones(8, np.float32)}
    model = parse("g (float[1,8] x) => (float[1,8] y) { a = MatMul(x, w) y = Add(a, b) }", constants=constants)
    path = folder / "m.onnx"
    onnx.save(model, path, save_as_external_data=True, all_tensors_to_one_file=False, size_threshold=0)
    return path


def test_a_model_of_several_files(tmp_path: Path) -> None:
    path = _two_files(tmp_path)
    result = load(path)
    whole = {name: value.const_value.numpy() for name, value in result.model.graph.initializers.items()}  # type: ignore[union-attr]
    for tensor in onnx.load(path).graph.initializer:
        np.testing.assert_array_equal(whole[tensor.name], onnx.numpy_helper.to_array(tensor))
    before = result.source_sha256
    weights = tmp_path / "b"
    weights.write_bytes(np.zeros(8, np.float32).tobytes())
    assert load(path).source_sha256 != before
    weights.unlink()
    (tmp_path / "w").write_bytes(b"short")
    with pytest.raises(ModelError) as caught:
        load(path)
    assert [fault.where for fault in caught.value.faults] == ["tensor 'w'", "tensor 'b'"]


TRUE = {"go": np.array(True)}


def test_a_trip_count_that_is_an_input_with_a_default_is_taken() -> None:
    model = parse(
        "g (float[2] x, int64 n) => (float[2] y) { y = Loop <body = b (int64 i, bool c, float[2] v) => "
        "(bool co, float[2] vo) { vo = Sin(v) co = Identity(c) }> (n, go, x) }",
        constants={"n": np.array(3, np.int64), **TRUE},
    )
    assert ops(assert_same(model)) == ["Sin"] * 3
    del model.graph.initializer[0]
    with pytest.raises(ModelError, match="trip count is only known when it runs"):
        load(model)


def test_a_condition_that_folds_on_the_way_ends_a_loop() -> None:
    model = parse(
        "g (float[2] x) => (int64 k, float[2] y) { k, y = Loop <body = b (int64 i, bool c, int64 n, float[2] v) => "
        "(bool co, int64 m, float[2] w) { m = Add(n, one) co = Less(m, limit) w = Sin(v) }> (, go, zero, x) }",
        constants={**TRUE, **{name: np.array(i, np.int64) for name, i in {"zero": 0, "one": 1, "limit": 5}.items()}},
    )
    assert ops(assert_same(model)).count("Sin") == 5


def test_an_if_on_the_number_of_the_trip_takes_its_branch() -> None:
    model = parse(
        "g (float[2] x) => (float[2] y) { y = Loop <body = b (int64 i, bool c, float[2] v) => (bool co, float[2] w) "
        "{ r = Mod(i, two) even = Equal(r, zero) co = Identity(c) w = If (even) "
        "<then_branch = t () => (float[2] t0) { t0 = Sin(v) }, else_branch = e () => (float[2] e0) { e0 = Cos(v) }> }> "
        "(four, go, x) }",
        constants={**TRUE, **{name: np.array(i, np.int64) for name, i in {"zero": 0, "two": 2, "four": 4}.items()}},
    )
    assert ops(assert_same(model)) == ["Sin", "Cos", "Sin", "Cos"]


def test_an_if_on_a_shape_takes_its_branch_whatever_the_other_one_gives() -> None:
    model = parse(
        "g (float[2,4] x) => (float[A,B] y) { s = Shape(x) n = Gather(s, zero) c = Equal(n, two) "
        "y = If (c) <then_branch = t () => (float[2,4] t0) { t0 = Relu(x) }, "
        "else_branch = e () => (float[1,4] e0) { e0 = ReduceMean <axes = [0]> (x) }> }",
        constants={name: np.array(i, np.int64) for name, i in {"zero": 0, "two": 2}.items()},
    )
    assert ops(assert_same(model)) == ["Relu"]


BOTH = (
    "g (float[2] x, bool c) => (float[A] y) { y = If (c) <then_branch = t () => (float[2] t0) { t0 = Sin(x) }, "
    "else_branch = e () => (float[B] e0) { e0 = %s }> }"
)


def test_an_if_that_is_decided_when_it_runs_computes_both_branches_where_they_are_alike() -> None:
    result = assert_same(parse(BOTH % "Cos(x)"))
    assert ops(result) == ["Sin", "Cos", "Where"]
    assert "both branches run, then a Where picks" in result.notes[0]
    with pytest.raises(ModelError, match="the condition is only known at run time") as caught:
        load(parse(BOTH % "Concat <axis = 0> (x, x)"))
    assert caught.value.faults[0].where == "If 'If_0'"


ENDLESS = (
    "g (float[2] x) => (float[2] y) { y = Loop <body = b (int64 i, bool c, float[2] v) => (bool co, float[2] w) "
    "{ w = Sin(v) s = ReduceMax <keepdims = 0> (v) co = %s }> (, go, x) }"
)


def test_a_condition_that_the_data_decide_and_one_that_never_ends_a_loop_are_named(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(resolve_control_flow, "MAX_TRIPS", 16)
    zero = {**TRUE, "zero": np.array(0, np.float32)}
    for condition, text in (
        ("Greater(s, zero)", "condition after 1 iterations"),
        ("Identity(c)", "more than 16 times"),
    ):
        with pytest.raises(ModelError, match=text):
            load(parse(ENDLESS % condition, constants=zero))


def test_a_loop_of_no_trips_gives_what_it_was_given_and_has_no_slices() -> None:
    text = (
        "g (float[2] x) => (float[2] y%s) { y, z = Loop <body = b (int64 i, bool c, float[2] v) => "
        "(bool co, float[2] w, float[2] s) { w = Sin(v) s = Cos(v) co = Identity(c) }> (n, go, x) }"
    )
    constants = {"n": np.array(0, np.int64), **TRUE}
    assert ops(assert_same(parse(text % "", constants=constants))) == ["Identity"]
    with pytest.raises(ModelError, match="runs zero times, so its scan output is empty"):
        load(parse(text % ", float[A,2] z", constants=constants))


def test_an_input_with_a_value_is_no_input_of_the_artifact() -> None:
    model = parse("g (float[2] x, float[2] w) => (float[2] y) { y = Add(x, w) }", constants={"w": np.ones(2, "f4")})
    assert [value.name for value in assert_same(model).model.graph.inputs] == ["x"]
    for options in (LoadOptions(inputs=("w",)), LoadOptions(input_shapes={"w": (2,)})):
        with pytest.raises(ModelError, match="there is no such"):
            load(model, options)

# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
import json
import math
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given as forall
from hypothesis import settings
from hypothesis import strategies as st
from onnx import numpy_helper

import npukit
from npukit.analysis import compare, report, samples, verify
from npukit.errors import InputError

DIGITS = Path(__file__).parents[1] / "examples" / "digits" / "digits.onnx"


class Info:
    def __init__(self, name, shape, dtype):
        self.name, self.shape, self.dtype = name, shape, dtype


class Fake:
    """A runner whose outputs are given by a function of its inputs."""

    def __init__(self, function, inputs, outputs, backend="fake"):
        self.function, self.backend = function, backend
        self.inputs = [Info(*i) for i in inputs]
        self.outputs = [Info(*o) for o in outputs]

    def run(self, feeds):
        assert set(feeds) == {i.name for i in self.inputs}
        return self.function(feeds)


def limits(precision="float32"):
    return compare.criteria(precision)


# --- compare ---


def test_equal_arrays_are_exact():
    a = np.linspace(-3, 5, 24, dtype=np.float32).reshape(2, 3, 4)
    m = compare.compare(a, a.copy())
    assert (m.max_abs, m.exact, m.within, m.sqnr_db) == (0, 1, 1, math.inf)
    assert m.cosine == pytest.approx(1)
    assert (m.low, m.high) == (-3, 5)
    assert not compare.judge(m, limits())


def test_figures_by_their_definitions():
    rng = np.random.default_rng(1)
    a = rng.standard_normal((5, 7)).astype(np.float32)
    b = a + rng.standard_normal(a.shape).astype(np.float32) * 0.01
    m = compare.compare(a, b, tolerance=0.005)
    x, y = a.astype(np.float64), b.astype(np.float64)
    error = np.abs(x - y)
    assert m.max_abs == pytest.approx(error.max())
    assert m.mean_abs == pytest.approx(error.mean())
    assert m.max_share == pytest.approx(error.max() / (x.max() - x.min()))
    assert m.sqnr_db == pytest.approx(10 * np.log10((x**2).sum() / (error**2).sum()))
    assert m.cosine == pytest.approx((x * y).sum() / np.linalg.norm(x) / np.linalg.norm(y))
    assert m.within == pytest.approx(np.mean(error <= 0.005 * (x.max() - x.min())))
    assert m.worst == np.unravel_index(error.argmax(), error.shape)


def test_an_output_twice_too_large_fails_although_its_cosine_is_one():
    a = np.random.default_rng(0).standard_normal(100).astype(np.float32)
    m = compare.compare(a, 2 * a)
    assert m.cosine == pytest.approx(1)
    assert compare.judge(m, limits())


def test_chunks_do_not_change_the_figures(monkeypatch):
    rng = np.random.default_rng(2)
    a, b = rng.standard_normal((2, 50, 3))
    whole = compare.compare(a, b)
    monkeypatch.setattr(compare, "_CHUNK", 7)
    parts = compare.compare(a, b)
    assert parts.worst == whole.worst
    for name in ("cosine", "max_abs", "mean_abs", "sqnr_db", "max_share", "within", "exact"):
        assert getattr(parts, name) == pytest.approx(getattr(whole, name))


@pytest.mark.parametrize(
    ("reference", "actual", "share", "sqnr", "cosine", "passes"),
    [
        ([0, 0], [0, 0], 0, math.inf, 1, True),
        ([0, 0], [1e-5, 0], 1e-5, None, 0, True),
        ([0, 0], [1, 0], 1, None, 0, False),
        ([5, 5], [5, 5], 0, math.inf, 1, True),
        ([5, 5], [5, 5.5], 0.1, pytest.approx(23.01, abs=0.1), 0.998868, False),
        ([3], [3.001], pytest.approx(1 / 3000), pytest.approx(69.5, abs=0.1), 1, True),
        ([], [], 0, math.inf, 1, True),
    ],
)
def test_degenerate_references(reference, actual, share, sqnr, cosine, passes):
    m = compare.compare(np.array(reference, np.float64), np.array(actual, np.float64))
    assert (m.max_share, m.sqnr_db, m.cosine) == (pytest.approx(share), sqnr, pytest.approx(cosine))
    assert (not compare.judge(m, limits())) == passes


def test_nan_and_infinity():
    a = np.array([np.nan, np.inf, -np.inf, 1.0, 2.0])
    assert not compare.judge(compare.compare(a, a.copy()), limits())
    m = compare.compare(a, np.array([0, np.inf, np.inf, np.nan, 2.0]))
    assert (m.nan_mismatch, m.inf_mismatch) == (2, 1)
    assert len(compare.judge(m, limits())) >= 2


def test_float16_saturation_stands_for_infinity_only_where_asked():
    a = np.array([-np.inf, 1.0, 3.0], np.float32)
    b = np.array([-65504.0, 1.0, 3.0], np.float32)
    assert compare.compare(a, b).inf_mismatch == 1
    assert compare.compare(a, b, saturation=compare.FLOAT16_MAX).inf_mismatch == 0


def test_integers_are_judged_by_equality():
    a = np.arange(200)
    b = a.copy()
    b[3] += 1
    m = compare.compare(a, b)
    assert (m.kind, m.exact) == ("integer", 0.995)
    assert compare.judge(m, limits("float32"))
    assert not compare.judge(m, limits("float16"))
    assert compare.judge(compare.compare(np.array([True, False]), np.array([True, True])), limits())
    assert not compare.judge(compare.compare(a.astype(np.uint8), a.astype(np.uint8) + 2), limits("int8"))


def test_indices_are_judged_by_what_they_point_at():
    data = np.array([[1.0, 5.0, 5.0, 0.0], [2.0, 2.0, 9.0, 1.0]])
    right = np.array([1, 2])
    tie = compare.compare_indices(right, np.array([2, 2]), data, 1)
    assert (tie.kind, tie.exact) == ("index", 0.5)
    assert not compare.judge(tie, limits())
    assert compare.judge(compare.compare_indices(right, np.array([0, 2]), data, 1), limits())
    assert compare.judge(compare.compare_indices(right, np.array([1, 7]), data, 1), limits())
    kept = compare.compare_indices(np.array([[1, 2]]).T, np.array([[2, 2]]).T, data, -1)
    assert not compare.judge(kept, limits())


def test_argmax_agreement_is_for_classifiers():
    rows = np.array([[0.1, 0.9, 0.0], [0.5, 0.2, 0.3]])
    other = np.array([[0.9, 0.1, 0.0], [0.5, 0.2, 0.3]])
    assert compare.compare(rows, other).argmax == 0.5
    assert compare.compare(rows[..., None, None], other[..., None, None]).argmax == 0.5
    assert compare.compare(np.ones((2, 3, 4)), np.ones((2, 3, 4))).argmax is None


def test_shapes_and_kinds_must_match():
    with pytest.raises(InputError, match="shape"):
        compare.compare(np.zeros((2, 3)), np.zeros((3, 2)))
    with pytest.raises(InputError, match="uint8"):
        compare.compare(np.zeros(3), np.zeros(3, np.uint8))


@settings(max_examples=60, deadline=None)
@forall(
    st.lists(st.floats(allow_nan=True, allow_infinity=True, width=32), max_size=9),
    st.lists(st.floats(allow_nan=True, allow_infinity=True, width=32), max_size=9),
)
def test_figures_are_always_in_range(left, right):
    n = min(len(left), len(right))
    m = compare.compare(np.array(left[:n], np.float32), np.array(right[:n], np.float32))
    assert -1 <= m.cosine <= 1
    assert 0 <= m.within <= 1
    assert 0 <= m.exact <= 1
    assert m.max_abs >= m.mean_abs * 0.999
    json.dumps(m.to_json(), allow_nan=False)


def test_the_worst_of_several_samples_counts():
    a = np.array([0.0, 1.0])
    near, far = compare.compare(a, a + 1e-6), compare.compare(a, a + 0.5)
    m = compare.worst([near, far])
    assert (m.max_abs, m.sqnr_db, m.elements) == (far.max_abs, far.sqnr_db, 4)


# --- samples ---


def test_generated_inputs_are_reproducible_and_independent_of_one_another():
    x, y = Info("x", (2, 3), "float32"), Info("y", (4,), "bool")
    one = samples.generate([x, y], 2, seed=7)
    two = samples.generate([x], 2, seed=7)
    assert one.runs[1]["x"].dtype == np.float32
    assert one.runs[0]["y"].dtype == np.bool_
    np.testing.assert_array_equal(one.runs[1]["x"], two.runs[1]["x"])
    assert not np.array_equal(one.runs[0]["x"], one.runs[1]["x"])
    assert "seed 7" in one.describe()


def test_whole_numbers_need_a_range():
    ids, mask = Info("ids", (1, 50), "int64"), Info("mask", (1, 50), "int64")
    with pytest.raises(InputError) as caught:
        samples.generate([ids, mask], 1, implied=lambda name: (0, 1) if name == "mask" else None)
    assert "--input-range ids=LO:HI" in str(caught.value)
    assert "mask" not in str(caught.value)
    made = samples.generate([ids, mask], 1, ranges={"ids": (5, 6), "mask": (0, 1)}).runs[0]
    assert set(np.unique(made["ids"])) == {5, 6}
    with pytest.raises(InputError, match="did you mean 'ids'"):
        samples.generate([ids], 1, ranges={"idz": (0, 1)})


def test_given_files_become_runs(tmp_path):
    x, y = Info("x", (2,), "float32"), Info("y", (1,), "float32")
    for i in range(2):
        np.save(tmp_path / f"x{i}.npy", np.full(2, i, np.float32))
    np.save(tmp_path / "y.npy", np.zeros(1, np.float32))
    entries = [("x", tmp_path / "x0.npy"), ("x", tmp_path / "x1.npy"), ("y", tmp_path / "y.npy")]
    made = samples.given(entries, [x, y])
    assert [run["x"][0] for run in made.runs] == [0, 1]
    assert made.runs[1]["y"].shape == (1,)
    with pytest.raises(InputError, match="y: 0 files given"):
        samples.given(entries[:2], [x, y])
    with pytest.raises(InputError, match="no input 'z'"):
        samples.given([("z", tmp_path / "y.npy")], [x, y])
    np.savez(tmp_path / "all.npz", x=np.zeros(2, np.float32), y=np.zeros(1, np.float32))
    assert set(samples.given([("", tmp_path / "all.npz")], [x, y]).runs[0]) == {"x", "y"}


def test_test_data_beside_the_model_is_used(tmp_path):
    onnx = pytest.importorskip("onnx")
    folder = tmp_path / "test_data_set_0"
    folder.mkdir()
    tensor = onnx.numpy_helper.from_array(np.arange(6, dtype=np.float32).reshape(2, 3), "x")
    (folder / "input_0.pb").write_bytes(tensor.SerializeToString())
    model = tmp_path / "model.onnx"
    made = samples.test_data_sets(model, [Info("x", (2, 3), "float32")])
    np.testing.assert_array_equal(made.runs[0]["x"], np.arange(6).reshape(2, 3))
    assert samples.test_data_sets(model, [Info("x", (9, 3), "float32")]) is None
    (folder / "input_0.pb").write_bytes(b"\xff\xff\xff")
    assert samples.test_data_sets(model, [Info("x", (2, 3), "float32")]) is None


# --- verify ---

INPUTS = [("x", (4, 10), "float32")]


def outcome(wrong=0.0, indices=None, precision="float32", names=("y", "i")):
    def right(feeds):
        return {"y": feeds["x"] * 3, "i": feeds["x"].argmax(1), "h": feeds["x"]}

    def judged(feeds):
        result = right(feeds)
        return {names[0]: result["y"] * (1 + wrong), names[1]: result["i"]}

    outputs = [(n, (4, 10), "float32") for n in names]
    reference = Fake(right, INPUTS, [(n, (4, 10), "float32") for n in ("y", "i", *(["h"] if indices else []))], "ort")
    model = Fake(judged, INPUTS, outputs, "qnn-cpu")
    plan = verify.Plan(precision, compare.criteria(precision), indices or {}, "a.dlc", "a.onnx")
    return verify.verify(model, reference, samples.generate(reference.inputs, 2), plan)


def test_a_right_model_passes_and_a_wrong_one_fails():
    good, bad = outcome(), outcome(0.01)
    assert (good.passed, good.exit_code) == (True, 0)
    assert (bad.passed, bad.exit_code) == (False, 1)
    assert "PASSED" in good.to_text()
    assert "SQNR is 40.0 dB, at least 60 dB must be" in bad.to_text()
    assert outcome(0.001, precision="float16").passed
    json.dumps(bad.to_json(), allow_nan=False)


def test_index_outputs_use_the_searched_tensor():
    result = outcome(indices={"i": verify.IndexOutput("h", 1)})
    assert [o.metrics.kind for o in result.outputs] == ["float", "index"]
    assert not result.notes


def test_outputs_without_shared_names_are_paired_by_position():
    assert any("by position" in note for note in outcome(names=("a", "b")).notes)
    with pytest.raises(InputError, match="did you mean"):
        outcome(names=("y", "ii"))


def test_a_wrong_shape_is_a_failure_not_an_error():
    reference = Fake(lambda f: {"y": f["x"]}, INPUTS, [("y", (4, 10), "float32")])
    model = Fake(lambda f: {"y": f["x"].T}, INPUTS, [("y", (10, 4), "float32")])
    made = samples.generate(reference.inputs, 1)
    result = verify.verify(model, reference, made, verify.Plan("float32", limits()))
    assert not result.passed
    assert "expected shape [4, 10], got [10, 4]" in result.to_text()
    json.dumps(result.to_json(), allow_nan=False)


def test_the_report_is_self_contained(tmp_path):
    path = tmp_path / "report.html"
    report.write([outcome(), outcome(0.5)], path, title="<digits>")
    text = path.read_text()
    assert "&lt;digits&gt;" in text
    assert text.count("<svg") == 8
    assert not re.search(r"(src|href)=|url\(|https?://|@import|<script", text)


# --- mutants: verification must be able to fail ---


def _swap_weight_axes(graph):
    weight = next(op.inputs[1] for op in graph.ops if op.type == "Conv2d" and op.inputs[1].shape[2] > 1)
    data = weight.data.reshape(-1, *weight.shape[2:])
    side = min(data.shape[1:])
    data = data.copy()
    data[:, :side, :side] = data[:, :side, :side].transpose(0, 2, 1).copy()
    weight.data = data.reshape(weight.shape)


def _transposed_kernel(graph):
    weight = _find(graph, "Conv2d").inputs[1]
    weight.data = np.ascontiguousarray(weight.data.transpose(1, 0, 2, 3))


def _drop_bias(graph):
    bias = _find(graph, "Conv2d").inputs[2]
    bias.data = np.zeros_like(bias.data)


def _move_pads(graph):
    op = _find(graph, "Conv2d")
    pads = op.params["pad_amount"]
    shifted = pads.value.astype(np.uint32).copy()
    shifted[0] = [shifted[0].sum(), 0]
    op.params["pad_amount"] = type(pads)(pads.dtype, shifted)


def _read_nhwc_as_nchw(graph):
    weight = _find(graph, "FullyConnected").inputs[1]
    columns = weight.data.reshape(10, 2, 2, 32).transpose(0, 3, 1, 2)
    weight.data = np.ascontiguousarray(columns.reshape(10, 128))


def _double_a_scale(graph):
    weight = _find(graph, "FullyConnected").inputs[1]
    weight.data = weight.data * 2


def _negate_a_weight(graph):
    weight = _find(graph, "FullyConnected").inputs[1]
    data = weight.data.copy()
    data[0] *= -1
    weight.data = data


def _reverse_classes(graph):
    weight = _find(graph, "FullyConnected").inputs[1]
    weight.data = np.ascontiguousarray(weight.data[::-1])


def _other_activation(graph):
    op = _find(graph, "ElementWiseNeuron")
    operation = op.params["operation"]
    op.params["operation"] = type(operation)(operation.dtype, 6)  # sigmoid


def _round_weights(graph):
    weight = _find(graph, "FullyConnected").inputs[1]
    weight.data = np.round(weight.data, 1)


def _average_pool(graph):
    op = _find(graph, "PoolMax2d")
    op.type = "PoolAvg2d"
    op.params.pop("rounding_mode", None)


def _shift_bias(graph):
    bias = _find(graph, "FullyConnected").inputs[2]
    bias.data = np.roll(bias.data, 1)


def _find(graph, kind):
    return next(op for op in graph.ops if op.type == kind)


MUTANTS = [
    _swap_weight_axes, _transposed_kernel, _drop_bias, _move_pads, _read_nhwc_as_nchw, _double_a_scale,
    _negate_a_weight, _reverse_classes, _other_activation, _round_weights, _average_pool, _shift_bias,
]  # fmt: skip


@pytest.fixture(scope="module")
def converted(tmp_path_factory):
    import npukit

    path = tmp_path_factory.mktemp("mutants") / "digits.dlc"
    npukit.convert(DIGITS, path)
    return path


@pytest.mark.native
@pytest.mark.parametrize("mutate", MUTANTS, ids=lambda f: f.__name__.strip("_"))
def test_verify_exits_1_on_a_mutant(converted, tmp_path, mutate):
    from npukit.artifacts import dlc
    from npukit.cli.main import main

    model, stamp = dlc.read(converted, copy=True)
    graph = next(iter(model.graphs.values()))
    mutate(graph)
    mutant = tmp_path / "mutant.dlc"
    dlc.write(model, mutant, stamp)
    args = ["verify", str(mutant), "--against", str(DIGITS), "--in-process", "--quiet"]
    assert main(args) == 1
    assert main(["verify", str(converted), *args[2:]]) == 0


@pytest.mark.native
def test_a_failed_conversion_names_the_first_tensor_that_diverges(tmp_path, monkeypatch):
    import npukit
    from npukit.frontends.onnx import load
    from npukit.verbs import convert as module

    def changed(path, options):
        normalized = load(path, options)
        initializer = normalized.model.graph.initializers["conv2.bias"]
        import onnx_ir as ir

        initializer.const_value = ir.tensor(initializer.const_value.numpy() + 1, name="conv2.bias")
        return normalized

    monkeypatch.setattr("npukit.frontends.onnx.load", changed)
    result = npukit.convert(DIGITS, tmp_path / "d.dlc", in_process=True)
    assert result.exit_code == 1
    assert "'conv2.out'" in result.verification.diverges
    assert "conv1.pool" in result.verification.diverges
    assert module._lowered is not None


@pytest.mark.native
def test_the_reference_follows_a_shape_that_was_changed(tmp_path):
    source = tmp_path / "digits.onnx"
    shutil.copy(DIGITS, source)
    sample = tmp_path / "test_data_set_0"  # of the source's own shape: of no use here
    sample.mkdir()
    (sample / "input_0.pb").write_bytes(
        numpy_helper.from_array(np.zeros((1, 1, 8, 8), np.float32), "image").SerializeToString()
    )
    options = {"output": tmp_path / "four.dlc", "target": ["qnn-cpu"], "input_shapes": {"image": (4, 1, 8, 8)}}
    made = npukit.convert(source, **options)
    assert made.exit_code == 0
    assert made.verification.outputs[0].shape == (4, 10)
    outcome = npukit.verify(tmp_path / "four.dlc", against=DIGITS)
    assert outcome.passed
    assert "the reference was given the model's input shapes" in outcome.notes
    rejected = npukit.convert(source, **options, min_sqnr=300)
    assert rejected.exit_code == 1
    assert "first tensor that diverges" in rejected.to_text()


def test_a_reference_with_open_or_equal_shapes_stays_as_it_is(tmp_path):
    from npukit.analysis.reference import with_shapes

    assert with_shapes(DIGITS, {"image": (1, 1, 8, 8), "other": (1,)}, tmp_path) == DIGITS

# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""The emulated arithmetic of the 310P against numpy, written down here op by op from the rules (facts 4.3, 4.4).

numpy rounds to float16 itself (to nearest, ties to even). Sums in float32 may come in another order in ONNX Runtime
than in numpy: where there are any, one step of float16 (2^-10 relative) is allowed; without sums, results are equal.
"""

from __future__ import annotations

import functools
import json
import re
import subprocess
import sys
from dataclasses import replace

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from onnx import parser
from onnx.reference import ReferenceEvaluator

import npukit
from npukit.ascend.emulate import emulate
from npukit.ascend.modes import MODES, parse_mode
from npukit.errors import InputError, ModelError, UsageError
from npukit.frontends.onnx.read_model import read_model
from npukit.sim import episode, evaluate

MAX = 65504.0
ONE_STEP = 2**-10


def f16(x):
    """What the chip holds for x: NaN is 0, the range is +-65504, one rounding; as float32."""
    x = np.asarray(x, np.float32)
    return np.clip(np.where(np.isnan(x), 0, x), -MAX, MAX).astype(np.float16).astype(np.float32)


def f32(x):
    """The same for float32."""
    x = np.asarray(x, np.float32)
    most = np.finfo(np.float32).max
    return np.clip(np.where(np.isnan(x), 0, x), -most, most)


def graph(text, opset=14):
    return parser.parse_model(f'<ir_version: 8, opset_import: ["" : {opset}]>\n{text}')


def run(model, feeds, mode="ascend310p", **options):
    with npukit.Session(model.SerializeToString(), emulate=mode, in_process=True, threads=1, **options) as session:
        return session.run(feeds), session.saturations()


RMS = graph("""
g (float[2,4] x) => (float[2,3] y)
<float[4,3] w = {1,2,3,4,5,6,7,8,9,10,11,12}, float two = {2.0}, float eps = {1e-6}>
{ s = Pow(x, two)  m = ReduceMean<axes = [-1], keepdims = 1>(s)  a = Add(m, eps)  r = Sqrt(a)  n = Div(x, r)
  y = MatMul(n, w) }
""")
W = np.arange(1, 13, dtype=np.float32).reshape(4, 3)


def rms(x, half):
    """RMS norm and projection, every op rounded by `half`; matrix ops take and give float16 whatever `half` is."""
    with np.errstate(all="ignore"):
        x = half(x)
        s = half(np.float32(x) ** 2)
        a = half(half(s.mean(-1, keepdims=True, dtype=np.float32)) + half(np.float32(1e-6)))
        n = half(x / half(np.sqrt(a)))
        return f16(f16(n) @ f16(W))


# ---------------------------------------------------------------- overflow: found, named, saturated


@pytest.mark.parametrize("top", [255.0, 255.9, 256.0, 1000.0, 60000.0])
def test_the_square_of_an_rms_norm_overflows_above_255_9(top):
    x = np.array([[top, 1, -3, 0.5], [1, 2, 3, 4]], np.float32)
    outputs, found = run(RMS, {"x": x})
    assert outputs["y"].dtype == np.float32
    np.testing.assert_allclose(outputs["y"], rms(x, f16), rtol=2 * ONE_STEP)
    squares = f16(x) ** 2
    if top < 255.95:
        assert found == []
        return
    (one,) = found
    assert (one.tensor, one.op_type, one.dtype, one.runs) == ("s", "Pow", "float16", 1)
    assert (one.count, one.nans, one.largest) == (1, 0, float(squares.max()))


def test_a_large_matmul_saturates_where_float32_would_not():
    model = graph("g (float[3,8] x, float[8,5] w) => (float[3,5] y) { y = MatMul(x, w) }")
    rng = np.random.default_rng(0)
    x, w = rng.normal(0, 300, (3, 8)).astype(np.float32), rng.normal(0, 300, (8, 5)).astype(np.float32)
    outputs, found = run(model, {"x": x, "w": w})
    exact = f16(x) @ f16(w)
    assert 0 < (np.abs(exact) > MAX).sum() < exact.size  # the case is a mixed one
    np.testing.assert_allclose(outputs["y"], f16(exact), rtol=ONE_STEP)
    (one,) = found
    assert (one.tensor, one.op_type, one.count) == ("y", "MatMul", int((np.abs(exact) >= 65520).sum()))
    assert one.largest == pytest.approx(float(np.abs(exact).max()), rel=1e-6)


def test_runs_add_up():
    with npukit.Session(RMS.SerializeToString(), emulate="ascend310p", in_process=True) as session:
        for top in (300.0, 500.0, 1.0):
            session.run({"x": np.full((2, 4), top, np.float32)})
        (one,) = session.saturations()
    assert (one.count, one.largest, one.runs) == (16, 250000.0, 2)


def test_huawei_s_own_examples():
    """exp(12) is 65504 and sqrt(-1) is 0 in float16 (facts 4.4)."""
    model = graph("g (float[2] x, float[2] z) => (float[2] y, float[2] r) { y = Exp(x)  r = Sqrt(z) }")
    outputs, found = run(model, {"x": np.array([12, 1], np.float32), "z": np.array([-1, 4], np.float32)})
    assert outputs["y"].tolist() == [MAX, float(f16(np.exp(np.float32(1))))]
    assert outputs["r"].tolist() == [0.0, 2.0]
    assert {one.tensor: (one.count, one.nans) for one in found} == {"y": (1, 0), "r": (0, 1)}


def test_infinities_and_nans_that_are_given_are_saturated():
    model = graph("g (float[4] x) => (float[4] y) <float zero = {0.0}> { y = Add(x, zero) }")
    x = np.array([np.inf, -np.inf, np.nan, 1], np.float32)
    outputs, found = run(model, {"x": x})
    assert outputs["y"].tolist() == [MAX, -MAX, 0.0, 1.0]
    (one,) = found
    assert (one.tensor, one.node, one.count, one.nans, one.largest) == ("x", "Add_0", 2, 1, np.inf)
    assert json.loads(json.dumps(one.to_json(), allow_nan=False))["largest"] is None


@pytest.mark.parametrize("low", ["-inf", "-3.4028234663852886e38", "-65504"])
def test_a_fully_masked_row_becomes_uniform(low):
    """mask + mask saturates at -65504: softmax of equal numbers, where infinities would give NaN (facts 4.4)."""
    mask = np.array([[float(low)] * 4, [0, 0, float(low), float(low)]], np.float32)
    model = graph("""g (float[2,4] x) => (float[2,4] y)
      { a = Add(x, mask)  b = Add(a, mask)  y = Softmax<axis = -1>(b) }""")
    model.graph.initializer.append(onnx.numpy_helper.from_array(mask, "mask"))
    x = np.array([[1, 2, 3, 4], [1, 1, 2, 2]], np.float32)
    outputs, _ = run(model, {"x": x})
    assert outputs["y"].tolist() == [[0.25] * 4, [0.5, 0.5, 0.0, 0.0]]


# ---------------------------------------------------------------- rounding


_FLOATS = hnp.arrays(np.float32, 16, elements=st.floats(width=32, allow_nan=True, allow_infinity=True))


@given(_FLOATS)
@settings(max_examples=150)
def test_every_number_is_rounded_as_numpy_rounds(x):
    """Subnormal numbers of float16 included, which are kept."""
    outputs = _elementwise().run({"x": x})
    assert np.array_equal(outputs["y"], f16(f16(x) + np.float32(0)))
    assert np.array_equal(outputs["p"], f16(f16(x) * f16(x)))


@functools.cache
def _elementwise():
    model = graph("""g (float[16] x) => (float[16] y, float[16] p) <float zero = {0.0}>
      { y = Add(x, zero)  p = Mul(x, x) }""")
    return npukit.Session(model.SerializeToString(), emulate="ascend310p", in_process=True, threads=1)


def test_weights_are_clipped_before_they_are_rounded():
    weights = np.array([1e6, -1e6, np.inf, -np.inf, 65519, 65521, 1 + 2**-11 + 2**-13, np.nan], np.float32)
    model = graph("g (float[8] x) => (float[8] y) { y = Mul(x, w) }")
    model.graph.initializer.append(onnx.numpy_helper.from_array(weights, "w"))
    outputs, found = run(model, {"x": np.ones(8, np.float32)})
    assert np.array_equal(outputs["y"], f16(weights))
    assert found == []  # nothing was saturated at run time


def test_elements_that_only_move_are_not_rounded_again_and_not_watched():
    model = graph("""g (float[2,3] x) => (float[3,2] y)
      { a = Neg(x)  b = Transpose<perm = [1,0]>(a)  c = Relu(b)  d = Concat<axis = 0>(c, c)
        e = Slice(d, s, t) y = Identity(e) }""")
    for name, value in (("s", [0]), ("t", [3])):
        model.graph.initializer.append(onnx.numpy_helper.from_array(np.array(value, np.int64), name))
    result = emulate(read_model(model).model, parse_mode("ascend310p"))
    assert [probe.tensor for probe in result.probes] == ["x"]
    halves = [n for n in result.model.graph if n.op_type == "Cast" and n.attributes["to"].value == ir.DataType.FLOAT16]
    assert len(halves) == 1
    x = np.array([[1.0001, -2, 3], [-70000, 5, 6]], np.float32)
    assert np.array_equal(run(model, {"x": x})[0]["y"], np.maximum(-f16(x), 0).T)


@pytest.mark.parametrize("mode", [f"ascend310p:{name}" for name in MODES])
def test_another_runtime_computes_the_same_graph_alike(mode):
    """The rewritten graph means what it says: no optimization of ONNX Runtime takes a rounding out."""
    rewritten = ir.to_proto(emulate(read_model(RMS).model, parse_mode(mode)).model)
    onnx.checker.check_model(rewritten, full_check=True)
    rng = np.random.default_rng(3)
    x = (rng.normal(size=(2, 4)) * 200).astype(np.float32)
    expected = ReferenceEvaluator(rewritten).run(["y"], {"x": x})[0]
    np.testing.assert_allclose(run(RMS, {"x": x}, mode)[0]["y"], expected, rtol=ONE_STEP)


# ---------------------------------------------------------------- precision modes


@pytest.mark.parametrize("mode", ["origin", "mixed_float16", "cube_fp16in_fp32out", "must_keep_origin_dtype"])
def test_a_float32_norm_stays_float32_and_the_matmul_does_not(mode):
    x = np.array([[1000, 1, -3, 0.5], [1, 2, 3, 4]], np.float32)
    outputs, found = run(RMS, {"x": x}, f"ascend310p:{mode}")
    np.testing.assert_allclose(outputs["y"], rms(x, f32), rtol=ONE_STEP)
    assert np.abs(outputs["y"] - rms(x, f16)).max() > 1  # float16 throughout would differ
    assert found == []


def test_origin_says_that_the_310p_has_no_float32_matmul():
    with npukit.Session(RMS.SerializeToString(), emulate="ascend310p", precision_mode="origin") as session:
        assert session.emulated == "ascend310p (origin)"
        assert "MatMul_5" in session.notes[0]


def test_a_float16_graph_is_float16_under_origin_too():
    text = "g (float16[4] x) => (float16[4] y) { a = Mul(x, x)  y = Mul(a, a) }"
    x = np.array([1.5, 16, 20, 300], np.float16)
    expected = f16(f16(np.float32(x) ** 2) ** 2).astype(np.float16)
    for mode in ("fp16", "origin", "mixed_float16"):
        outputs, found = run(graph(text), {"x": x}, f"ascend310p:{mode}")
        assert outputs["y"].dtype == np.float16
        assert np.array_equal(outputs["y"], expected)
        assert {one.tensor: one.count for one in found} == {"a": 1, "y": 3}
    wide, found = run(graph(text), {"x": x}, "ascend310p:cube_fp16in_fp32out")
    assert np.array_equal(wide["y"], f16(np.float32(x) ** 4).astype(np.float16))
    assert [one.tensor for one in found] == ["y"]  # only what leaves the graph is float16


def test_float32_saturates_at_its_own_maximum():
    model = graph("g (float[3] x) => (float[3] y, float[3] d) { a = Mul(x, x)  y = Mul(a, a)  d = Sub(y, y) }")
    x = np.array([1e10, 1e20, -2], np.float32)
    outputs, found = run(model, {"x": x}, "ascend310p:origin")
    assert outputs["y"].tolist() == [np.finfo(np.float32).max, np.finfo(np.float32).max, 16.0]
    assert outputs["d"].tolist() == [0, 0, 0]  # never infinity minus infinity
    assert {one.tensor: (one.dtype, one.count) for one in found} == {"a": ("float32", 1), "y": ("float32", 2)}


def test_mixed_precision_grey_follows_and_black_does_not(tmp_path):
    """After a matrix op everything is float16, unless the list says otherwise."""
    model = graph("""g (float[1,2] x) => (float[1,2] y, float[1,2] z)
      <float[2,2] w = {300, 0, 0, 1}, float two = {2.0}>
      { m = MatMul(x, w)  y = Pow(m, two)  z = Mul(x, x) }""")
    x = np.array([[1, 300]], np.float32)
    grey, _ = run(model, {"x": x}, "ascend310p:mixed_float16")
    assert grey["y"].tolist() == [[MAX, MAX]]
    assert grey["z"].tolist() == [[1, 90000]]  # before the matrix op nothing is float16
    lists = tmp_path / "lists.json"
    lists.write_text(json.dumps({"black-list": {"to-add": ["Square"]}, "white-list": {"to-add": ["Conv2D"]}}))
    with npukit.Session(model.SerializeToString(), emulate=f"ascend310p:mixed_float16:{lists}") as session:
        assert session.run({"x": x})["y"].tolist() == [[90000, 90000]]
        assert session.notes == ["the list names Conv2D, which no op of the model becomes"]
    lists.write_text(json.dumps({"white-list": {"to-add": ["Square"]}}))
    with npukit.Session(model.SerializeToString(), emulate=f"ascend310p:mixed_float16:{lists}") as session:
        assert session.run({"x": x})["z"].tolist() == [[1, MAX]]
        assert session.notes == []


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("{", "not JSON"),
        ("[]", "not an object"),
        ('{"grey-list": {}}', "no list 'grey-list'"),
        ('{"black-list": []}', "takes to-add and to-remove"),
        ('{"black-list": {"to-add": [1]}}', "takes to-add and to-remove"),
        ('{"black-list": {"add": ["x"]}}', "takes to-add and to-remove"),
        ('{"black-list": {"to-add": ["Mul"]}, "white-list": {"to-add": ["Mul"]}}', "in both lists: Mul"),
    ],
)
def test_a_broken_list_is_refused(tmp_path, text, what):
    path = tmp_path / "lists.json"
    path.write_text(text)
    with pytest.raises(UsageError, match=what):
        parse_mode(f"ascend310p:mixed_float16:{path}")


# ---------------------------------------------------------------- graphs of every kind


def test_ops_whose_dtype_stands_in_the_node():
    model = graph(
        """g (float16[2] x, int64[2] i) => (float16[2] a, float[2] b, float16[2] c, int32[2] d, float16[2] e)
      { k = ConstantOfShape<value = float16[1] {15360}>(n)  a = Add(x, k)  b = Cast<to = 1>(x)
        f = Cast<to = 1>(i)  g = CastLike(f, x)  c = Mul(g, x)  d = Cast<to = 6>(x)  e = Cast<to = 10>(i) }""",
        15,
    )
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.array([2], np.int64), "n"))
    x, i = np.array([1.5, -3], np.float16), np.array([100000, 3], np.int64)
    for mode in MODES:
        outputs, found = run(model, {"x": x, "i": i}, f"ascend310p:{mode}")
        assert outputs["a"].tolist() == [2.5, -2]
        assert (outputs["b"].dtype, outputs["b"].tolist()) == (np.float32, [1.5, -3])
        assert outputs["d"].tolist() == [1, -3]
        assert (outputs["e"].dtype, outputs["e"].tolist()) == (np.float16, [MAX, 3])
        assert outputs["c"].tolist() == [MAX, -9]
        assert "e" in {one.tensor for one in found}


def test_a_convolution_and_what_vision_models_have():
    model = graph("""g (float[1,2,6,6] x) => (float[1,3,3,3] y, int64[1,1,3,3] k)
      { c = Conv<kernel_shape = [3,3], pads = [1,1,1,1]>(x, w, b)  p = MaxPool<kernel_shape = [2,2], strides = [2,2]>(c)
        y = Sigmoid(p)  k = ArgMax<axis = 1>(p) }""")
    rng = np.random.default_rng(1)
    w, b = rng.normal(size=(3, 2, 3, 3)).astype(np.float32), rng.normal(size=3).astype(np.float32)
    for name, value in (("w", w), ("b", b)):
        model.graph.initializer.append(onnx.numpy_helper.from_array(value, name))
    x = rng.normal(size=(1, 2, 6, 6)).astype(np.float32)
    outputs, found = run(model, {"x": x})
    padded = np.pad(f16(x), ((0, 0), (0, 0), (1, 1), (1, 1)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), (2, 3))[0]
    conv = f16(np.einsum("chwij,ocij->ohw", windows, f16(w)) + f16(b)[:, None, None])
    pooled = conv.reshape(3, 3, 2, 3, 2).max((2, 4))
    np.testing.assert_allclose(outputs["y"][0], f16(1 / (1 + np.exp(-pooled))), rtol=4 * ONE_STEP)
    assert found == []


def test_names_dtypes_and_inner_values_stay():
    with npukit.Session(RMS.SerializeToString(), emulate="ascend310p", fetch=("s", "n")) as session:
        assert [(i.name, i.dtype, i.shape) for i in session.inputs] == [("x", "float32", (2, 4))]
        assert [o.name for o in session.outputs] == ["y", "s", "n"]
        assert session.backend == "ort"
        assert "ascend310p (fp16)" in session.library
        outputs = session.run({"x": np.full((2, 4), 300, np.float32)})
        assert outputs["s"].tolist() == [[MAX] * 4] * 2
        (one,) = session.saturations()  # through the worker
        assert one.tensor == "s"


def test_external_weights_and_a_weight_file_of_its_own(tmp_path, monkeypatch):
    model = graph("g (float[2,64] x) => (float[2,64] y) { y = MatMul(x, w) }")
    w = np.random.default_rng(0).normal(size=(64, 64)).astype(np.float32)
    model.graph.initializer.append(onnx.numpy_helper.from_array(w, "w"))
    onnx.save(model, tmp_path / "m.onnx", save_as_external_data=True, location="m.data", size_threshold=0)
    x = np.random.default_rng(1).normal(size=(2, 64)).astype(np.float32)
    monkeypatch.setattr("npukit.runtime.ort._EMBED_LIMIT", 1000)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with npukit.Session(tmp_path / "m.onnx", emulate="ascend310p", in_process=True) as session:
        assert list(tmp_path.glob("npukit-emulated-*"))
        np.testing.assert_allclose(session.run({"x": x})["y"], f16(f16(x) @ f16(w)), rtol=4 * ONE_STEP, atol=1e-3)
    assert not list(tmp_path.glob("npukit-emulated-*"))


def test_functions_are_inlined_and_empty_tensors_pass():
    model = graph("g (float[0,4] x) => (float[0,4] y) { y = Exp(x) }")
    assert run(model, {"x": np.zeros((0, 4), np.float32)})[0]["y"].shape == (0, 4)


# ---------------------------------------------------------------- what is refused


def test_what_cannot_be_emulated_is_listed_at_once():
    model = graph("""g (bfloat16[2] x, bool c, float[2] z) => (bfloat16[2] y, float[2] v) {
      y = Add(x, x)
      v = If(c) <then_branch = a () => (float[2] r) { r = Neg(z) }, else_branch = b () => (float[2] r) { r = Abs(z) }>
    }""")
    with pytest.raises(ModelError) as caught:
        run(model, {})
    text = str(caught.value)
    assert re.search(r"'x' is bfloat16", text)
    assert re.search(r"'y' is bfloat16", text)
    assert re.search(r"If is control flow", text)


def test_old_opsets_are_refused():
    with pytest.raises(ModelError, match="opset 10"):
        run(graph("g (float[2] x) => (float[2] y) { y = Exp(x) }", 10), {})


@pytest.mark.parametrize(
    ("mode", "precision", "what"),
    [
        ("ascend910", None, "no emulation of 'ascend910'"),
        ("ascend310p:half", None, "no precision mode 'half'"),
        ("ascend310p:mixed_bfloat16", None, "no precision mode"),
        ("ascend310p:fp16", "origin", "two precision modes"),
        ("ascend310p:fp16:x.json", None, "goes with mixed_float16 only"),
        ("", "origin", "needs a chip"),
    ],
)
def test_wrong_modes(mode, precision, what):
    with pytest.raises(UsageError, match=what):
        npukit.Session(RMS.SerializeToString(), emulate=mode, precision_mode=precision)


def test_only_onnx_models_on_onnx_runtime_are_emulated():
    with pytest.raises(UsageError, match="cannot be emulated"):
        npukit.Session(RMS.SerializeToString(), backend="qnn-cpu", emulate="ascend310p")
    with (
        npukit.Session(RMS.SerializeToString(), in_process=True) as session,
        pytest.raises(UsageError, match="emulates no chip"),
    ):
        session.saturations()


# ---------------------------------------------------------------- the verbs


def test_run_and_verify_report_the_saturations(tmp_path):
    path = tmp_path / "rms.onnx"
    onnx.save(RMS, path)
    wide = {"x": (-1000.0, 1000.0)}
    result = npukit.run(path, random=2, input_ranges=wide, emulate="ascend310p", in_process=True)
    assert [one.tensor for one in result.saturations] == ["s"]
    assert "1 tensor saturated" in result.to_text()
    assert result.to_json()["saturations"][0]["node"] == "Pow_0"
    failed = npukit.verify(path, input_ranges=wide, emulate="ascend310p", in_process=True)
    assert failed.exit_code == 1
    assert failed.precision == "float16"
    assert "Pow Pow_0" in failed.to_text()
    assert failed.to_json()["saturations"][0]["tensor"] == "s"
    held = npukit.verify(path, input_ranges=wide, emulate="ascend310p:origin", in_process=True)
    assert held.exit_code == 0
    assert "no tensor was saturated" in held.to_text()
    assert npukit.verify(path, emulate="ascend310p", in_process=True).exit_code == 0  # inputs around 0 and 1


class _Policy:
    """Acts by the norm above, of inputs that grow: from the second action on the squares overflow."""

    def __init__(self, session):
        self.session, self.steps = session, 0

    def reset(self, seed=None):
        self.steps = 0

    def select_action(self, observation):
        self.steps += 1
        self.session.run({"x": np.full((2, 4), 200.0 * self.steps, np.float32)})
        return np.zeros(2)

    def saturations(self, *, clear):
        return {"net": self.session.saturations(clear=clear)}


class _Env:
    instruction, step_limit, control_hz, action_size = "do it", 3, 20, 2

    def reset(self, **_):
        return {}, {}

    def step(self, action):
        return {}, 0.0, False, False, {}


def test_an_evaluation_counts_them_by_episode(tmp_path):
    job = episode.Job("stub", "it", "do it", 0, 0, 3)
    with npukit.Session(RMS.SerializeToString(), emulate="ascend310p", in_process=True) as session:
        policy = _Policy(session)
        played = [episode.play(policy, _Env(), replace(job, episode=number)) for number in range(2)]
    assert [one.saturated for one in played] == [{"net/s": 16}, {"net/s": 16}]  # 2 steps of 8 elements each
    record = evaluate._Record(tmp_path)
    for one in played:
        record.add(one)
    record.close()
    assert evaluate.read(tmp_path) == played
    path = tmp_path / evaluate.EPISODES
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    del lines[0]["saturated"]  # as results of older versions are
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert evaluate.read(tmp_path)[0].saturated == {}
    lines[0]["saturated"] = {"net/s": "many"}
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    with pytest.raises(InputError, match="'saturated'"):
        evaluate.read(tmp_path)


def test_the_command(tmp_path):
    path = tmp_path / "rms.onnx"
    onnx.save(RMS, path)
    command = [sys.executable, "-m", "npukit", "verify", str(path), "--emulate", "ascend310p", "--json",
               "--input-range", "x=-1000:1000"]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert json.loads(done.stdout)["emulated"] == "ascend310p (fp16)"

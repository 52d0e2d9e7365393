# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""The passes for Ascend: each computes the same as before, under ONNX Runtime, and leaves alone what it should."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import helper

import npukit
from npukit.ascend import check, prepare
from npukit.errors import ModelError, UsageError
from npukit.frontends.onnx import LoadOptions
from npukit.frontends.onnx.write_model import write_model
from tests.frontend_tools import Arrays, feeds_for, parse, run_ort, run_reference

F32, F16 = np.float32, np.float16


def prepared(model: onnx.ModelProto, **given: Any) -> tuple[onnx.ModelProto, dict[str, int]]:
    made, applied = prepare(model, **given)
    proto = ir.to_proto(made)
    onnx.checker.check_model(proto, full_check=True)
    constants = {tensor.name for tensor in model.graph.initializer}
    given = [(value.name, value.type) for value in model.graph.input if value.name not in constants]
    assert [(value.name, value.type) for value in proto.graph.input] == given
    assert [v.name for v in proto.graph.output] == [v.name for v in model.graph.output]
    return proto, {entry.name: entry.count for entry in applied}


def left(proto: onnx.ModelProto, folder: Path, **given: Any) -> list[str]:
    """What the lint still finds, notes apart."""
    path = folder / "prepared.onnx"
    onnx.save(proto, path)
    return [f"{p.where}: {p.what}" for p in check(path, **given) if p.level != "note"]


# name, pass that must fire, text, opset, constants, feeds that are not random, exact
FIRES: list[tuple[str, str, str, int, Arrays, Arrays, bool]] = [
    ("trilu upper", "mask_triangles", "g (float[2,5,4] x, int64 k) => (float[2,5,4] y) { y = Trilu(x, k) }", 14,
     {"k": np.array(1)}, {}, True),
    ("trilu lower", "mask_triangles", "g (float[5,4] x, int64 k) => (float[5,4] y) { y = Trilu<upper=0>(x, k) }", 14,
     {"k": np.array(-2)}, {}, True),
    ("trilu of integers", "mask_triangles", "g (int64[5,4] x, int64 k) => (float[5,4] y) "
     "{ t = Trilu(x, k) y = Cast<to=1>(t) }", 14, {"k": np.array(1)}, {}, True),
    ("trilu of booleans", "mask_triangles", "g (bool[5,4] x, int64 k) => (bool[5,4] y) { y = Trilu(x, k) }", 14,
     {"k": np.array(1)}, {}, True),
    ("gather", "count_indices_from_front", "g (float[5,4] x, int64[2] i) => (float[5,2] y) "
     "{ y = Gather<axis=1>(x, i) }", 14, {"i": np.array([-1, 0])}, {}, True),
    ("gather computed", "count_indices_from_front", "g (float[5,4] x, float[2,3] f) => (float[2,4] y) "
     "{ i = ArgMax<axis=1, keepdims=0>(f) j = Sub(i, c) y = Gather(x, j) }", 14, {"c": np.array([3])}, {}, True),
    ("scatter", "count_indices_from_front", "g (float[5,4] x, float[2] u, int64[2,2] i) => (float[5,4] y) "
     "{ y = ScatterND(x, i, u) }", 14, {"i": np.array([[-1, 0], [2, -4]])}, {}, True),
    ("slice 1-D", "slice_columns", "g (float[9] x) => (float[3] y) { y = Slice(x, a, b, c, d) }", 14,
     {"a": np.array([-2]), "b": np.array([-2**63]), "c": np.array([0]), "d": np.array([-3])}, {}, True),
    ("slice 1-D to the end", "slice_columns", "g (float[9] x) => (float[5] y) { y = Slice(x, a, b) }", 14,
     {"a": np.array([4]), "b": np.array([2**63 - 1])}, {}, True),
    ("slice last step", "slice_columns", "g (float[3,9] x) => (float[2,4] y) { y = Slice(x, a, b, c, d) }", 14,
     {"a": np.array([1, 1]), "b": np.array([3, 9]), "c": np.array([0, -1]), "d": np.array([1, 2])}, {}, True),
    ("equal", "equal_shapes", "g (int64[2,3] x, int64[3] z) => (bool[2,3] y) { y = Equal(x, z) }", 14, {}, {}, True),
    ("equal constant", "equal_shapes", "g (float[2,3] x) => (bool[2,3] y) { y = Equal(x, c) }", 14,
     {"c": np.array(0.5, F32)}, {}, True),
    ("reduce all", "name_axes", "g (float[2,3] x) => (float[1,1] y) { y = ReduceMean(x) }", 14, {}, {}, True),
    ("sum all", "name_axes", "g (float[2,3] x) => (float[1,1] y) { y = ReduceSum(x) }", 14, {}, {}, True),
    ("where of booleans", "legalize_dtypes", "g (bool[2,3] c, bool[2,3] a, bool[3] b) => (bool[2,3] y) "
     "{ y = Where(c, a, b) }", 14, {}, {}, True),
    ("concat of booleans", "legalize_dtypes", "g (bool[2,3] a, bool[2,3] b) => (bool[4,3] y) "
     "{ y = Concat<axis=0>(a, b) }", 14, {}, {}, True),
    ("gather of booleans", "legalize_dtypes", "g (bool[4,3] a, int64[2] i) => (bool[2,3] y) { y = Gather(a, i) }", 14,
     {}, {}, True),
    ("expand of integers", "legalize_dtypes", "g (int32[3] x) => (int32[2,3] y) { y = Expand(x, s) }", 14,
     {"s": np.array([2, 3])}, {}, True),
    ("sum of a mask", "legalize_dtypes", "g (bool[2,6] x) => (float[2,1] y) "
     "{ i = Cast<to=7>(x) s = ReduceSum(i, a) m = Sub(s, i) t = ReduceSum(m, a) y = Cast<to=1>(t) }", 14,
     {"a": np.array([1])}, {}, True),
    ("sum of integers", "legalize_dtypes", "g (int32[2,6,3] x) => (int32[6] y) { y = ReduceSum<keepdims=0>(x, a) }", 14,
     {"a": np.array([0, -1])}, {}, True),
    ("pow of two dtypes", "legalize_dtypes", "g (float[2,3] x) => (float[2,3] y) { y = Pow(x, n) }", 14,
     {"n": np.array(3, np.int32)}, {}, False),
    ("integers", "narrow_integers", "g (int64[2,3] x, int64[3] p) => (float[2,3] y) "
     "{ m = Mul(x, c) l = Less(m, p) w = Where(l, m, z) y = Cast<to=1>(w) }", 14,
     {"c": np.array(7), "z": np.array(-5)}, {}, True),
    ("integers to an output", "narrow_integers", "g (int64[2,3] x) => (int64[2,3] y) { y = Sub(x, c) }", 14,
     {"c": np.array(7)}, {}, True),
    ("mask of a prompt", "narrow_integers", "g (int64[1,6] mask, float[1,1,6,6] s) => (float[1,1,6,6] y) "
     "{ m = Unsqueeze(mask, axes) i = Sub(one, m) b = Cast<to=9>(i) f = Cast<to=1>(b) g = Mul(f, low)"
     " a = Add(s, g) y = Softmax<axis=-1>(a) }", 14,
     {"axes": np.array([1, 2]), "one": np.array(1), "low": np.array(-1e4, F32)}, {}, True),
    ("top-k indices", "narrow_integers", "g (float[2,6] x, int64[2,2] o) => (float[2,2] y) "
     "{ v, i = TopK(x, k) s = Add(i, o) y = Cast<to=1>(s) }", 14, {"k": np.array([2])}, {}, True),
    ("gemm", "gemm_to_matmul", "g (float[2,3] x) => (float[2,4] y) { y = Gemm<alpha=0.5, beta=2.0, transB=1>(x, w, b)"
     " }", 14, {"w": np.arange(12, dtype=F32).reshape(4, 3), "b": np.arange(4, dtype=F32)}, {}, False),
    ("gemm transposed", "gemm_to_matmul", "g (float[3,2] x, float[3,4] w, float[2,1] b) => (float[2,4] y) "
     "{ y = Gemm<transA=1>(x, w, b) }", 14, {}, {}, False),
    ("split", "split_by_slices", "g (float[2,3] x) => (float[2,1] y, float[2,2] z) { y, z = Split<axis=1>(x, s) }", 14,
     {"s": np.array([1, 2])}, {}, True),
    ("gelu", "expand_ops", "g (float[2,3] x) => (float[2,3] y) { y = Gelu(x) }", 20, {}, {}, False),
    ("group norm", "expand_norms", "g (float[2,4,3] x, float[4] s, float[4] b) => (float[2,4,3] y) "
     "{ y = GroupNormalization<num_groups=2>(x, s, b) }", 21, {}, {}, False),
    ("expand of a computed shape", "fold_constants", "g (float[1,3] x, float[2,3] z) => (float[2,3] y) "
     "{ s = Shape(z) y = Expand(x, s) }", 14, {}, {}, True),
]  # fmt: skip


@pytest.mark.parametrize(("name", "fires", "text", "opset", "constants", "feeds", "exact"), FIRES,
                         ids=[row[0] for row in FIRES])  # fmt: skip
def test_a_pass_computes_the_same(
    name: str, fires: str, text: str, opset: int, constants: Arrays, feeds: Arrays, exact: bool, tmp_path: Path
) -> None:
    model = parse(text, opset, constants)
    cann = "8.0" if fires == "split_by_slices" else "8.2"
    result, applied = prepared(model, cann=cann)
    assert applied.get(fires)
    feeds = {**feeds_for(model), **feeds}
    # ONNX Runtime has no Where of booleans
    wanted = run_reference(model, feeds) if name == "where of booleans" else run_ort(model, feeds)
    for want, have in zip(wanted, run_ort(result, feeds), strict=True):
        assert want.dtype == have.dtype
        if exact:  # the same elements, or sums in the same order
            np.testing.assert_array_equal(want, have)
        else:  # the same products in another order: a few units in the last place
            np.testing.assert_allclose(want, have, rtol=1e-5, atol=1e-6)
    allowed = 1 if name in ("integers to an output", "trilu of integers") else 0  # an int64 output is cast to
    assert len(left(result, tmp_path, cann=cann)) <= allowed


# name, passes that must not fire, text, opset, constants, options
SILENT: list[tuple[str, str, str, int, Arrays, dict[str, Any]]] = [
    ("trilu", "mask_triangles", "g (float[5,4] x) => (float[5,4] y) { y = Trilu(x) }", 14, {}, {}),
    ("gather", "count_indices_from_front", "g (float[5,4] x, int64[2] i) => (float[2,4] y) { y = Gather(x, i) }", 14,
     {}, {}),
    ("slice", "slice_columns", "g (float[5,4] x) => (float[2,4] y) { y = Slice(x, a, b, a, c) }", 14,
     {"a": np.array([0]), "b": np.array([4]), "c": np.array([2])}, {}),
    ("equal", "equal_shapes", "g (float[5,4] x, float[5,4] z) => (bool[5,4] y) { y = Equal(x, z) }", 14, {}, {}),
    ("reduction", "name_axes", "g (float[5,4] x) => (float[5,1] y) { y = ReduceMean<axes=[1]>(x) }", 14, {}, {}),
    ("where", "legalize_dtypes", "g (bool[4] c, float[4] x) => (float[4] y) { y = Where(c, x, x) }", 14, {}, {}),
    ("sum of floats", "legalize_dtypes", "g (float[2,6] x) => (float[2,1] y) { y = ReduceSum(x, a) }", 14,
     {"a": np.array([1])}, {}),
    ("documented int64", "narrow_integers", "g (int64[4] x, int64[4] z) => (bool[4] y) "
     "{ a = Add(x, z) y = Equal(a, x) }", 14, {}, {}),
    ("beyond int32", "narrow_integers", "g (int64[4] x) => (int64[4] y) { a = Mul(x, c) y = Mul(a, c) }", 14,
     {"c": np.array(2**40)}, {}),
    ("gemm", "gemm_to_matmul", "g (float[2,3] x, float[3,4] w) => (float[2,4] y) { y = Gemm(x, w) }", 14, {}, {}),
    ("products in fp16", "cast_products", "g (float[2,3] x, float[3,4] w) => (float[2,4] y) { y = MatMul(x, w) }", 14,
     {}, {}),
    ("float16 products", "cast_products", "g (float16[2,3] x, float16[3,4] w) => (float16[2,4] y) "
     "{ y = MatMul(x, w) }", 14, {}, {"precision": "origin"}),
    ("split", "split_by_slices", "g (float[2,3] x) => (float[2,1] y, float[2,2] z) { y, z = Split<axis=1>(x, s) }", 14,
     {"s": np.array([1, 2])}, {}),
    ("einsum", "expand_einsum", 'g (float[2,3] x, float[4,3] z) => (float[2,4] y) '
     '{ y = Einsum<equation="ik,jk->ij">(x, z) }', 14, {}, {}),
    ("op with a parser", "expand_ops", "g (float[4] x) => (float[4] y) { y = HardSwish(x) }", 14, {}, {}),
    ("opset", "lower_opset", "g (float[4] x) => (float[4] y) { y = Relu(x) }", 14, {}, {}),
    ("no norm", "expand_norms", "g (float[2,4] x) => (float[2,1] y) { q = Mul(x, x) y = ReduceMean<axes=[1]>(q) }", 14,
     {}, {}),
    ("other epsilon place", "expand_norms", "g (float[2,4] x) => (float[2,4] y) { q = Mul(x, x) "
     "m = ReduceMean<axes=[1]>(q) r = Sqrt(m) a = Add(r, e) y = Div(x, a) }", 14, {"e": np.array(1e-6, F32)}, {}),
]  # fmt: skip


@pytest.mark.parametrize(("name", "quiet", "text", "opset", "constants", "options"), SILENT,
                         ids=[row[0] for row in SILENT])  # fmt: skip
def test_a_pass_leaves_alone(
    name: str, quiet: str, text: str, opset: int, constants: Arrays, options: dict[str, Any]
) -> None:
    model = parse(text, opset, constants)
    result, applied = prepared(model, **options)
    assert quiet not in applied
    for want, have in zip(run_ort(model, feeds_for(model)), run_ort(result, feeds_for(model)), strict=True):
        np.testing.assert_array_equal(want, have)


EQUATIONS = [
    "ij,jk->ik", "bhqd,bhkd->bhqk", "bqhd,bkhd->bhqk", "bhqk,bkhd->bqhd", "i,j->ij", "ij,ij->", "ij,kl->jkil",
    "abc,abd->ab", "ij->ji", "ij->i", "ij->", "ij,jk", "ij,jk,kl->il", "ij,j,i->j", "abi,bj->aj",
]  # fmt: skip


@pytest.mark.parametrize("equation", EQUATIONS)
def test_einsum(equation: str, tmp_path: Path) -> None:
    terms = equation.split("->")[0].split(",")
    inputs = [helper.make_tensor_value_info(f"x{i}", 1, [ord(c) % 7 + 2 for c in t]) for i, t in enumerate(terms)]
    node = helper.make_node("Einsum", [v.name for v in inputs], ["y"], name="e", equation=equation)
    graph = helper.make_graph([node], "g", inputs, [helper.make_tensor_value_info("y", 1, None)])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 14)], ir_version=8)
    result, applied = prepare(model)
    feeds = feeds_for(model)
    want = np.einsum(equation, *feeds.values())
    (have,) = run_ort(ir.to_proto(result), feeds)
    np.testing.assert_allclose(have, want, rtol=1e-5, atol=1e-5)
    if any(entry.name == "expand_einsum" for entry in applied):
        assert "Einsum" not in [n.op_type for n in result.graph]
        assert left(ir.to_proto(result), tmp_path) == []


def test_a_diagonal_and_an_ellipsis_stay() -> None:
    for equation, shape in (("ii->i", (3, 3)), ("...i,ij->...j", (2, 3))):
        values = [("x", shape), ("z", (3, 3))][: equation.count(",") + 1]
        inputs = [helper.make_tensor_value_info(name, 1, s) for name, s in values]
        node = helper.make_node("Einsum", [name for name, _ in values], ["y"], name="e", equation=equation)
        graph = helper.make_graph([node], "g", inputs, [helper.make_tensor_value_info("y", 1, None)])
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 14)], ir_version=8)
        result, applied = prepare(model)
        assert [n.op_type for n in result.graph] == ["Einsum"]
        assert "expand_einsum" not in [entry.name for entry in applied]


# ---------------------------------------------------------------- normalizations

RMS = "g (float[2,3,8] x) => (float[2,3,8] y) { q = Pow(x, two) m = ReduceMean<axes=[-1]>(q) a = Add(m, e) r = Sqrt(a)"
SPELLINGS = {
    "reciprocal": (f"{RMS} i = Reciprocal(r) n = Mul(x, i) y = Mul(w, n) }}", 14),
    "division": (f"{RMS} n = Div(x, r) y = Mul(n, w) }}", 14),
    "sum": ("g (float[2,3,8] x) => (float[2,3,8] y) { q = Mul(x, x) s = ReduceSum(q, axes) m = Div(s, eight) "
            "a = Add(m, e) r = Sqrt(a) n = Div(x, r) y = Mul(n, w) }", 14),
    "op": ("g (float[2,3,8] x) => (float[2,3,8] y) { y = RMSNormalization<epsilon=0.00001>(x, w) }", 23),
    "layer": ("g (float[2,3,8] x) => (float[2,3,8] y) { y = LayerNormalization<epsilon=0.00001>(x, w, b) }", 17),
    "layer over two axes": ("g (float[2,3,8] x) => (float[2,3,8] y) "
                            "{ y = LayerNormalization<axis=1, epsilon=0.00001>(x, v) }", 17),
}  # fmt: skip
CONSTANTS = {
    "two": np.array(2, F32), "e": np.array(1e-5, F32), "eight": np.array(8, F32), "axes": np.array([-1]),
    "w": np.linspace(0.5, 2, 8, dtype=F32), "b": np.linspace(-1, 1, 8, dtype=F32),
    "v": np.linspace(0.5, 2, 24, dtype=F32).reshape(3, 8),
}  # fmt: skip


@pytest.mark.parametrize("precision", ["fp16", "origin"])
@pytest.mark.parametrize("spelling", SPELLINGS)
def test_norms(spelling: str, precision: str, tmp_path: Path) -> None:
    text, opset = SPELLINGS[spelling]
    constants = {
        k: v for k, v in CONSTANTS.items() if k in text.replace("(", " ").replace(")", " ").replace(",", " ").split()
    }
    model = parse(text, opset, constants)
    result, applied = prepared(model, precision=precision)
    assert applied["expand_norms"] == 1
    assert left(result, tmp_path, precision=precision) == []
    for size in (1e-6, 1e-3, 1.0, 300.0, 1e4):
        feeds = {"x": feeds_for(model)["x"] * F32(size)}
        (want,), (have,) = run_ort(model, feeds), run_ort(result, feeds)
        np.testing.assert_allclose(have, want, rtol=3e-6, atol=1e-6)


def test_a_norm_of_large_values_survives_float16() -> None:
    """In float16 the source's squares end at 65504; the prepared form is right to float16's last places."""
    text, _ = SPELLINGS["division"]
    text = text.replace("float[", "float16[")
    constants = {k: v.astype(F16) for k, v in CONSTANTS.items() if k in ("two", "e", "w")}
    model = parse(text, 14, constants)
    result, applied = prepared(model, precision="origin")
    assert applied["expand_norms"] == 1
    x = (feeds_for(model)["x"].astype(F32) * 3000).astype(F16)
    wide = x.astype(np.float64)
    right = wide / np.sqrt((wide**2).mean(-1, keepdims=True)) * constants["w"]
    # onnx's reference computes each op in float16, where ONNX Runtime's CPU stays in float32 between them
    (source,), (have,) = run_reference(model, {"x": x}), run_reference(result, {"x": x})
    assert np.abs(source - right).max() > 0.1  # x / sqrt(inf)
    np.testing.assert_allclose(have, right, rtol=4e-3)  # four roundings of 2^-11


def test_a_norm_of_large_values_survives_the_chip(tmp_path: Path) -> None:
    """In the emulated arithmetic of the chip: saturated squares before, none after."""
    text, opset = SPELLINGS["division"]
    model = parse(text, opset, {k: v for k, v in CONSTANTS.items() if k in ("two", "e", "w")})
    onnx.save(model, tmp_path / "source.onnx")
    write_model(prepare(model).model, tmp_path / "prepared.onnx")
    feeds = {"x": feeds_for(model)["x"] * F32(3000)}
    (want,) = run_ort(model, feeds)
    errors, saturated = [], []
    for name in ("source.onnx", "prepared.onnx"):
        with npukit.Session(tmp_path / name, emulate="ascend310p", in_process=True) as session:
            (have,) = session.run(feeds).values()
            errors.append(float(np.abs(have - want).max()))
            saturated.append([entry.tensor for entry in session.saturations()])
    assert saturated == [["q"], []]
    assert errors[0] > 1
    assert errors[1] < 2e-2  # a few roundings of 2^-11 of values up to 4


def test_a_norm_that_stays_in_float32_is_not_scaled() -> None:
    text = """g (float16[2,8] x) => (float16[2,8] y) {
        f = Cast<to=1>(x) q = Mul(f, f) m = ReduceMean<axes=[-1]>(q) a = Add(m, e) r = Sqrt(a) n = Div(f, r)
        h = Cast<to=10>(n) y = Mul(h, w)
    }"""
    model = parse(text, 14, {"e": CONSTANTS["e"], "w": CONSTANTS["w"].astype(F16)})
    for precision, scaled in (("origin", False), ("fp16", True)):
        result, _ = prepared(model, precision=precision)
        assert ("ReduceMax" in [node.op_type for node in result.graph.node]) is scaled
        feeds = feeds_for(model)
        # ONNX Runtime computes both in float32; one rounding to float16 may fall to the other side
        np.testing.assert_allclose(run_ort(result, feeds)[0], run_ort(model, feeds)[0], rtol=2e-3, atol=1e-6)


def test_zeros_stay_zeros() -> None:
    model = parse(*SPELLINGS["op"], {"w": CONSTANTS["w"]})
    result, _ = prepared(model)
    (have,) = run_ort(result, {"x": np.zeros((2, 3, 8), F32)})
    np.testing.assert_array_equal(have, np.zeros((2, 3, 8), F32))


# ---------------------------------------------------------------- products, opsets, files


def test_products_in_mode_origin(tmp_path: Path) -> None:
    text = "g (float[1,2,6,6] x) => (float[1,3,4,4] y) { c = Conv(x, w) m = MatMul(c, v) y = Relu(m) }"
    rng = np.random.default_rng(0)
    weights = {"w": rng.standard_normal((3, 2, 3, 3)).astype(F32), "v": rng.standard_normal((4, 4)).astype(F32)}
    model = parse(text, 14, weights)
    result, applied = prepared(model, precision="origin")
    assert applied["cast_products"] == 2
    assert left(result, tmp_path, precision="origin") == []
    feeds = feeds_for(model)
    (want,), (have,) = run_ort(model, feeds), run_ort(result, feeds)
    np.testing.assert_allclose(have, want, atol=2e-2)  # ten bits through 18 and 4 summands of size 1 to 10
    halves = [t for t in result.graph.initializer if t.data_type == onnx.TensorProto.FLOAT16]
    assert len(halves) == 2


OPSETS = [
    ("reductions", "g (float[2,3,4] x) => (float[2,1,4] y) { y = ReduceMax(x, a) }", 18, {"a": np.array([1])}, 14),
    ("split", "g (float[5,4] x) => (float[3,4] y, float[2,4] z) { y, z = Split<num_outputs=2>(x) }", 18, {}, 14),
    ("pad", "g (float[2,3,4] x) => (float[2,5,4] y) { y = Pad(x, p, v, a) }", 18,
     {"p": np.array([1, 1]), "v": np.array(2.0, F32), "a": np.array([1])}, 14),
    ("cast", "g (float[2] x) => (float16[2] y) { y = Cast<to=10, saturate=1>(x) }", 19, {}, 14),
    ("pool", "g (float[1,1,4,4] x) => (float[1,1,3,3] y) { y = AveragePool<kernel_shape=[2,2], dilations=[1,1]>(x) }",
     19, {}, 14),
    ("resize", 'g (float[1,1,4,4] x) => (float[1,1,8,8] y) { y = Resize<mode="linear", antialias=0>(x, , s) }', 19,
     {"s": np.array([1, 1, 2, 2], F32)}, 14),
    ("grid sample", 'g (float[1,1,4,4] x, float[1,2,2,2] z) => (float[1,1,2,2] y) '
     '{ y = GridSample<mode="linear">(x, z) }', 20, {}, 16),
    ("old", "g (float[2,3] x) => (float[2,3] y) { y = Softmax<axis=1>(x) }", 9, {}, 14),
]  # fmt: skip


@pytest.mark.parametrize(("name", "text", "opset", "constants", "reached"), OPSETS, ids=[row[0] for row in OPSETS])
def test_opsets(name: str, text: str, opset: int, constants: Arrays, reached: int) -> None:
    model = parse(text, opset, constants)
    result, _ = prepared(model, cann="9.0")
    assert result.opset_import[0].version == reached
    feeds = {k: np.clip(v, -1, 1) for k, v in feeds_for(model).items()}
    for want, have in zip(run_ort(model, feeds), run_ort(result, feeds), strict=True):
        if name == "pool":  # ONNX Runtime has two kernels, which add up in two orders
            np.testing.assert_allclose(want, have, rtol=3e-7, atol=1e-7)
        else:
            np.testing.assert_array_equal(want, have)


def test_what_has_no_form_is_listed() -> None:
    text = ("g (int32[4] x, float[1,1,4,4] i, float[1,2,2,2] z) => (int32[4] y, float[1,1,2,2] s) "
            "{ y = BitwiseAnd(x, x) s = GridSample(i, z) }")  # fmt: skip
    with pytest.raises(ModelError) as error:
        prepare(parse(text, 18), cann="8.0")
    assert {fault.where.split()[0] for fault in error.value.faults} == {"BitwiseAnd", "GridSample"}


def test_the_given_model_stays_as_it_is() -> None:
    model = parse(*FIRES[0][2:4], FIRES[0][4])
    before = model.SerializeToString()
    prepare(model)
    assert model.SerializeToString() == before


@pytest.mark.parametrize(
    ("text", "constants"),
    [
        ("g (float[2,3] x, float[4,5] w, float[5] b) => (float[2,5] y) { y = Gemm(x, w, b) }", {}),
        ('g (float[2,3] x, float[3] w) => (float[2,4] y) { y = Einsum<equation="ij,jk->ik">(x, w) }', {}),
        ("g (float[5,4] x) => (float[3,4] y, float[2,4] z) { y, z = Split<axis=3>(x, s) }", {"s": np.array([3, 2])}),
        ("g (float[5,4] x) => (float[5,4] y) { y = Tile(x, r) }", {"r": np.array([-1, 1])}),
        ("g (float[2,3] x) => (float[2] y) { y = ReduceMean<axes=[5]>(x) }", {}),
    ],
    ids=["Gemm", "Einsum", "Split", "Tile", "ReduceMean"],
)  # fmt: skip
def test_what_contradicts_itself_is_refused(
    text: str, constants: Arrays, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """`prepare` names the node; the lint goes on with what it knows."""
    model = parse(text, 14, constants)
    onnx.save(model, tmp_path / "broken.onnx")
    check(tmp_path / "broken.onnx")
    with pytest.raises(ModelError) as error:
        prepare(model)
    assert error.value.faults[0].where.split()[0] == request.node.callspec.id


def test_bad_use() -> None:
    model = parse("g (float[4] x) => (float[4] y) { y = Relu(x) }", 14)
    with pytest.raises(UsageError, match="not an Ascend chip"):
        prepare(model, "sm8650")
    with pytest.raises(UsageError, match="CANN version"):
        prepare(model, cann="12.0")
    with pytest.raises(UsageError, match="precision mode"):
        prepare(model, precision="int3")


def test_open_shapes_stay_open_or_are_given() -> None:
    model = parse("g (float[n,4] x) => (float[n,4] y) { a = Trilu(x, k) y = Relu(a) }", 14, {"k": np.array(1)})
    result, applied = prepare(model)
    assert not result.graph.inputs[0].shape.is_static()
    assert "mask_triangles" not in [entry.name for entry in applied]
    result, applied = prepare(model, options=LoadOptions(symbols={"n": 3}))
    assert list(result.graph.inputs[0].shape) == [3, 4]
    assert "mask_triangles" in [entry.name for entry in applied]


def test_large_weights_go_beside_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("npukit.frontends.onnx.write_model._EMBED_LIMIT", 1000)
    weight = np.random.default_rng(0).standard_normal((30, 20)).astype(F32)
    model = parse("g (float[2,30] x) => (float[2,20] y) { y = MatMul(x, w) }", 14, {"w": weight})
    made, _ = prepare(model)
    output = tmp_path / "out.onnx"
    size = write_model(made, output)
    assert size == output.stat().st_size + (tmp_path / "out.onnx.data").stat().st_size
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.onnx", "out.onnx.data"]
    loaded = onnx.load(output)
    np.testing.assert_array_equal(onnx.numpy_helper.to_array(loaded.graph.initializer[0]), weight)
    assert [p for p in check(output) if p.level != "note"] == []

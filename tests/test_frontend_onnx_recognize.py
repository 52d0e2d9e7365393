# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""Recognition: what must fire fires and computes the same, what must not fire is left alone."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest

from npukit.frontends.onnx import load
from tests.frontend_tools import assert_same, ops, parse

F = np.float32
W = np.linspace(0.5, 2, 8, dtype=F)
B = np.linspace(-1, 1, 8, dtype=F)


def model(body: str, dtype: str = "float", outputs: str = "", **constants: Any) -> Any:
    used = {k: v for k, v in constants.items() if f"{k})" in body or f"({k}," in body}
    text = f"g ({dtype}[2,3,8] x) => ({dtype}[2,3,8] y{outputs}) {{ {body} }}"
    return parse(text, constants={"w": W, "b": B} | used if dtype == "float" else used)


# --- RMS normalization ---

SQUARE = ["two = Constant<value_float=2.0>() q = Pow(x, two)", "q = Mul(x, x)"]
EPSILON = ["a = Add(m, e)", "a = Add(e, m)"]
ROOT = [
    "s = Sqrt(a) n = Div(x, s)",
    "s = Sqrt(a) r = Reciprocal(s) n = Mul(x, r)",
    "s = Sqrt(a) r = Div(one, s) n = Mul(r, x)",
    "h = Constant<value_float=-0.5>() r = Pow(a, h) n = Mul(x, r)",
    "h = Constant<value_float=0.5>() s = Pow(a, h) n = Div(x, s)",
]
SCALE = ["y = Mul(n, w)", "y = Mul(w, n)", "y = Identity(n)"]


@pytest.mark.parametrize(("square", "epsilon", "root", "scale"), list(itertools.product(SQUARE, EPSILON, ROOT, SCALE)))
def test_rms_normalization_in_every_spelling(square: str, epsilon: str, root: str, scale: str) -> None:
    constants = "e = Constant<value_float=0.001>() one = Constant<value_float=1.0>()"
    body = f"{constants} {square} m = ReduceMean<axes=[-1]>(q) {epsilon} {root} {scale}"
    result = assert_same(model(body))
    assert ops(result) == ["RMSNormalization"]
    (node,) = result.model.graph
    assert node.attributes["epsilon"].as_float() == pytest.approx(1e-3)
    assert len(node.meta["npukit.origin"]) >= 5


RMS = "e = Constant<value_float=0.001>() q = Mul(x, x) m = ReduceMean<axes=[-1]>(q) a = Add(m, e) s = Sqrt(a) "


@pytest.mark.parametrize(
    ("name", "body", "outputs"),
    [
        ("a middle axis", RMS.replace("[-1]", "[1]") + "n = Div(x, s) y = Mul(n, w)", ""),
        ("no keepdims", RMS.replace("[-1]>", "[0], keepdims=0>").replace("(q)", "(q)") + "y = Div(x, s)", ""),
        ("an interior output", RMS + "n = Div(x, s) y = Mul(n, w)", ", float[2,3,1] s"),
        ("an interior reader", RMS + "n = Div(x, s) t = Neg(s) y = Mul(n, t)", ""),
        ("another numerator", RMS + "z = Neg(x) n = Div(z, s) y = Mul(n, w)", ""),
        ("a cube", RMS.replace("q = Mul(x, x)", "c = Constant<value_float=3.0>() q = Pow(x, c)") + "y = Div(x, s)", ""),
        ("the other way round", RMS + "n = Div(s, x) y = Mul(n, w)", ""),
        ("a maximum", RMS.replace("ReduceMean", "ReduceMax") + "y = Div(x, s)", ""),
    ],
)
def test_rms_normalization_must_not_fire(name: str, body: str, outputs: str) -> None:
    result = assert_same(model(body, outputs=outputs), tolerance=1e-4)
    assert "RMSNormalization" not in ops(result), name
    assert "LayerNormalization" not in ops(result), name


SUM = (
    "e = Constant<value_float=0.001>() i = Constant<value_ints=[-1]>() c = Constant<value_float=COUNT>() "
    "q = Mul(x, x) t = ReduceSum(q, i) m = MEAN a = Add(m, e) s = Sqrt(a) n = Div(x, s) y = Mul(n, w)"
)


@pytest.mark.parametrize(
    ("mean", "count", "expected"),
    [
        ("Div(t, c)", "8.0", ["RMSNormalization"]),
        ("Mul(t, c)", "0.125", ["RMSNormalization"]),
        ("Mul(c, t)", "0.125", ["RMSNormalization"]),
        ("Div(t, c)", "7.0", ["Mul", "ReduceSum", "Div", "Add", "Sqrt", "Div", "Mul"]),
        ("Div(c, t)", "8.0", ["Mul", "ReduceSum", "Div", "Add", "Sqrt", "Div", "Mul"]),
        ("Mul(t, c)", "8.0", ["Mul", "ReduceSum", "Mul", "Add", "Sqrt", "Div", "Mul"]),
    ],
)
def test_rms_normalization_by_a_sum(mean: str, count: str, expected: list[str]) -> None:
    assert ops(assert_same(model(SUM.replace("MEAN", mean).replace("COUNT", count)))) == expected


def test_layer_normalization_by_sums() -> None:
    body = (
        "e = Constant<value_float=0.001>() i = Constant<value_ints=[-1]>() c = Constant<value_float=8.0>() "
        "t0 = ReduceSum(x, i) m0 = Div(t0, c) d = Sub(x, m0) q = Mul(d, d) t = ReduceSum(q, i) m = Div(t, c) "
        "a = Add(m, e) s = Sqrt(a) n = Div(d, s) z = Mul(n, w) y = Add(z, b)"
    )
    assert ops(assert_same(model(body))) == ["LayerNormalization"]


def test_rms_normalization_in_float16_with_casts() -> None:
    body = (
        "xf = Cast<to=1>(x) q = Mul(xf, xf) m = ReduceMean<axes=[2]>(q) e = Constant<value_float=0.001>() "
        "a = Add(m, e) s = Sqrt(a) n = Div(xf, s) h = Cast<to=10>(n) y = Mul(h, wh)"
    )
    result = assert_same(model(body, "float16", wh=W.astype(np.float16)), tolerance=2e-3)
    assert ops(result) == ["RMSNormalization"]


def test_a_scale_of_another_shape_stays_a_product() -> None:
    body = RMS + "n = Div(x, s) y = Mul(n, k)"
    result = assert_same(model(body, k=np.arange(3, dtype=F).reshape(3, 1)))
    assert ops(result) == ["RMSNormalization", "Mul"]


# --- layer normalization ---

LAYER = "e = Constant<value_float=0.00001>() u = ReduceMean<axes=[-1]>(x) d = Sub(x, u) "
REST = "m = ReduceMean<axes=[-1]>(q) a = Add(m, e) s = Sqrt(a) "


@pytest.mark.parametrize(
    ("middle", "expected"),
    [
        (
            "two = Constant<value_float=2.0>() q = Pow(d, two) " + REST + "n = Div(d, s) nw = Mul(n, w) y = Add(nw, b)",
            1,
        ),
        ("q = Mul(d, d) " + REST + "n = Div(d, s) nw = Mul(w, n) y = Add(b, nw)", 1),
        ("d2 = Sub(x, u) q = Mul(d2, d2) " + REST + "n = Div(d, s) nw = Mul(n, w) y = Add(nw, b)", 1),
        ("q = Mul(d, d) " + REST + "r = Reciprocal(s) n = Mul(d, r) y = Mul(n, w)", 1),
        ("q = Mul(d, d) " + REST + "y = Div(d, s)", 1),
        ("q = Mul(d, d) " + REST + "n = Div(d, s) y = Add(n, b)", 2),
    ],
)
def test_layer_normalization_in_its_spellings(middle: str, expected: int) -> None:
    result = assert_same(model(LAYER + middle), tolerance=1e-5)
    assert ops(result) == ["LayerNormalization", "Add"][:expected]


def test_layer_normalization_over_two_axes() -> None:
    body = (LAYER + "q = Mul(d, d) " + REST).replace("[-1]", "[1,2]") + "n = Div(d, s) y = Mul(n, k)"
    result = assert_same(model(body, k=np.random.default_rng(0).random((3, 8)).astype(F)))
    assert ops(result) == ["LayerNormalization"]
    assert next(iter(result.model.graph)).attributes["axis"].as_int() == -2


@pytest.mark.parametrize(
    "body",
    [
        LAYER.replace("[-1]", "[1]") + "q = Mul(d, d) " + REST + "y = Div(d, s)",  # centred over another axis
        LAYER + "q = Mul(d, d) " + REST + "n = Div(d, s) y = Add(n, d)",  # the centred value is read elsewhere
    ],
)
def test_layer_normalization_must_not_fire(body: str) -> None:
    assert "LayerNormalization" not in ops(assert_same(model(body)))


# --- activations ---

K = "half = Constant<value_float=0.5>() one = Constant<value_float=1.0>() "
ERF = [
    "r = Constant<value_float=1.4142135>() d = Div(x, r) ",
    "r = Constant<value_float=0.70710677>() d = Mul(x, r) ",
]
TANH = (
    "c = Constant<value_float=0.044715>() k = Constant<value_float=0.7978845>() three = Constant<value_float=3.0>() "
    "p = Pow(x, three) q = Mul(p, c) s = Add(x, q) t = Mul(s, k) u = Tanh(t) a = Add(one, u) "
)
SIX = "three = Constant<value_float=3.0>() six = Constant<value_float=6.0>() zero = Constant<value_float=0.0>() "


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        *[(K + e + "e = Erf(d) a = Add(e, one) m = Mul(x, a) y = Mul(m, half)", "Gelu") for e in ERF],
        *[(K + e + "e = Erf(d) a = Add(one, e) m = Mul(half, a) y = Mul(m, x)", "Gelu") for e in ERF],
        (K + ERF[0] + "e = Erf(d) a = Add(e, one) h = Mul(x, half) y = Mul(h, a)", "Gelu"),
        (K + TANH + "h = Mul(x, half) y = Mul(h, a)", "Gelu"),
        (
            K + TANH.replace("Pow(x, three)", "Mul(x, xx)").replace("p =", "xx = Mul(x, x) p =") + "h = Mul(half, a) "
            "y = Mul(x, h)",
            "Gelu",
        ),
        ("s = Sigmoid(x) y = Mul(x, s)", "Swish"),
        ("s = Sigmoid(x) y = Mul(s, x)", "Swish"),
        ("k = Constant<value_float=1.702>() t = Mul(x, k) s = Sigmoid(t) y = Mul(x, s)", "Swish"),
        (K + "n = Neg(x) e = Exp(n) a = Add(e, one) y = Div(x, a)", "Swish"),
        (SIX + "a = Add(x, three) c = Clip(a, zero, six) m = Mul(x, c) y = Div(m, six)", "HardSwish"),
        ("h = HardSigmoid<alpha=0.16666667>(x) y = Mul(x, h)", "HardSwish"),
        ("s = Softplus(x) t = Tanh(s) y = Mul(x, t)", "Mish"),
    ],
)
def test_activations_in_any_spelling(body: str, expected: str) -> None:
    assert ops(assert_same(model(body), tolerance=1e-5)) == [expected]


def test_gelu_keeps_its_two_forms_apart() -> None:
    exact = load(model(K + ERF[0] + "e = Erf(d) a = Add(e, one) m = Mul(x, a) y = Mul(m, half)"))
    assert "approximate" not in next(iter(exact.model.graph)).attributes
    tanh = load(model(K + TANH + "h = Mul(x, half) y = Mul(h, a)"))
    assert next(iter(tanh.model.graph)).attributes["approximate"].as_string() == "tanh"


@pytest.mark.parametrize(
    ("body", "outputs"),
    [
        ("s = Sigmoid(x) y = Mul(x, s)", ", float[2,3,8] s"),  # the interior is an output
        ("z = Neg(x) s = Sigmoid(z) y = Mul(x, s)", ""),  # x * sigmoid(-x)
        ("s = Sigmoid(x) t = Tanh(s) y = Mul(s, t)", ""),
        (K + ERF[0] + "e = Erf(d) a = Add(e, one) y = Mul(x, a)", ""),  # the half is missing
        (K + ERF[0].replace("1.4142135", "1.5") + "e = Erf(d) a = Add(e, one) m = Mul(x, a) y = Mul(m, half)", ""),
        ("s = Sigmoid(x) y = Mul(w, s)", ""),
        (SIX + "a = Add(x, three) c = Clip(a, zero, three) m = Mul(x, c) y = Div(m, six)", ""),
    ],
)
def test_activations_must_not_fire(body: str, outputs: str) -> None:
    result = assert_same(model(body, outputs=outputs))
    assert not {"Gelu", "Swish", "HardSwish", "Mish"} & set(ops(result))

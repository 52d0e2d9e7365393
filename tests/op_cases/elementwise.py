# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""Rows for elementwise arithmetic and functions."""

from __future__ import annotations

import numpy as np

from . import CPU, HTP, RAISE, OpCase, Values

ALL = (CPU, HTP, RAISE)
SHAPE = (2, 3, 4)
INTEGERS = np.array([7, -7, 7, -7, 100, -1, 0, 1], np.int32)
DIVISORS = np.array([2, 2, -2, -2, 3, 5, 4, 8], np.int32)


def _unary(op: str, span: tuple[float, float] = (-3.0, 3.0), **more: object) -> OpCase:
    return OpCase(op.lower(), op, [("x", "float32", SHAPE)], span=span, **more)  # type: ignore[arg-type]


def _integer_unary(op: str) -> OpCase:
    return OpCase(f"{op.lower()}_int", op, [("x", "int64", (9,))], span=(-5, 5), backends=ALL)


def _binary(op: str, suffix: str = "", dtype: str = "float32", **more: object) -> OpCase:
    more = {"span": (1, 9), **more}
    inputs = [("a", dtype, (2, 3, 1)), ("b", dtype, (3, 4))]
    return OpCase(f"{op.lower()}{suffix}", op, inputs, **more)  # type: ignore[arg-type]


def _integers(id: str, op: str, expected: object, **attrs: object) -> OpCase:
    """Signs in all combinations, both operands at run time and with a constant that HTP makes a shift."""
    inputs = [("a", "int32", (8,)), ("b", "int32", (8,))]
    return OpCase(id, op, inputs, attrs=attrs, values={"a": INTEGERS, "b": DIVISORS}, backends=ALL, expected=expected)  # type: ignore[arg-type]


def _by_constant(id: str, op: str, divisor: int, expected: object, **attrs: object) -> OpCase:
    return OpCase(
        id, op, [("a", "int32", (8,))], attrs=attrs, constants={"b": np.array([divisor], np.int32)},
        values={"a": INTEGERS}, backends=ALL, expected=expected,
    )  # type: ignore[arg-type]  # fmt: skip


def _truncated(v: Values) -> list[np.ndarray]:
    return [np.trunc(v["a"] / v["b"]).astype(np.int32)]


CASES = [
    *(_unary(op) for op in ("Abs", "Ceil", "Exp", "Floor", "Neg", "Round", "Sign", "Sin", "Cos", "Atan", "Sinh")),
    *(_unary(op) for op in ("Cosh", "Asinh")),
    _unary("Log", (0.1, 9)),
    _unary("Sqrt", (0, 9)),
    _unary("Reciprocal", (0.5, 3)),
    _unary("Acosh", (1, 9)),
    _unary("Acos", (-1, 1)),
    _unary("Tan", (-1, 1)),
    _unary("Atanh", (-0.9, 0.9)),
    OpCase("asin_edges", "Asin", [("x", "float32", (5,))], values={"x": np.array([-1, -0.5, 0, 0.7, 1])}, backends=ALL),
    OpCase("erf", "Erf", [("x", "float32", (40,))], span=(-4, 4), backends=ALL, tol=(1e-3, 2e-3)),
    *map(_integer_unary, ("Abs", "Neg", "Sign")),
    *(_binary(op) for op in ("Add", "Sub", "Mul", "Div")),
    *(_binary(op, "_int", "int64") for op in ("Add", "Sub", "Mul")),
    _binary("Add", "_uint8", "uint8"),
    _integers("div_int", "Div", _truncated),
    _by_constant("div_by_4", "Div", 4, lambda v: [np.trunc(v["a"] / 4).astype(np.int32)]),
    _integers("mod_int", "Mod", lambda v: [np.mod(v["a"], v["b"])]),
    _integers("fmod_int", "Mod", lambda v: [np.fmod(v["a"], v["b"])], fmod=1),
    _by_constant("fmod_by_4", "Mod", 4, lambda v: [np.fmod(v["a"], 4)], fmod=1),
    OpCase(
        "mod_float", "Mod", [("a", "float32", (20,)), ("b", "float32", (20,))], expected=lambda v: [np.mod(*v.values())]
    ),
    OpCase(
        "fmod_float",
        "Mod",
        [("a", "float32", (20,)), ("b", "float32", (20,))],
        attrs={"fmod": 1},
        backends=(CPU,),
        expected=lambda v: [np.fmod(*v.values())],
    ),
    *(_binary(op) for op in ("Max", "Min", "Sum", "Pow")),
    _binary("Mean", expected=lambda v: [(v["a"] + v["b"]) / 2]),
    *(_binary(op, "_int", "int64") for op in ("Max", "Min")),
    OpCase("max_of_three", "Max", [(n, "float32", s) for n, s in (("a", (2, 3)), ("b", (3,)), ("c", (1, 1)))]),
    OpCase("sum_of_one", "Sum", [("a", "float32", (3,))], expect_ops=["Reshape"]),
    OpCase("mean_of_three", "Mean", [(n, "float32", (4,)) for n in "abc"]),
    OpCase(
        "pow_square",
        "Pow",
        [("a", "float32", SHAPE)],
        constants={"b": np.array(2.0, np.float32)},
        expect_ops=["ElementWiseMultiply"],
    ),
    OpCase(
        "pow_half",
        "Pow",
        [("a", "float32", SHAPE)],
        constants={"b": np.array(0.5, np.float32)},
        span=(0, 4),
        expect_ops=["ElementWiseSquareRoot"],
    ),
    OpCase(
        "pow_int",
        "Pow",
        [("a", "int64", (5,)), ("b", "int64", (5,))],
        values={"a": [1, 2, -3, 0, 5], "b": [31, 20, 5, 0, 9]},
        backends=ALL,
    ),
    OpCase(
        "pow_int_by_float",
        "Pow",
        [("a", "int32", (3,)), ("b", "float32", (3,))],
        values={"a": [1, 2, 3], "b": [4, 5, 6]},
    ),
    OpCase(
        "pow_int_constant",
        "Pow",
        [("a", "int32", (3,))],
        constants={"b": np.array([4, 5, 6], np.int32)},
        values={"a": [1, -2, 3]},
        backends=ALL,
    ),
    OpCase(
        "pow_int_negative",
        "Pow",
        [("a", "int32", (3,))],
        constants={"b": np.array([-1], np.int32)},
        rejects="negative power",
    ),
    OpCase(
        "pow_int_large", "Pow", [("a", "int32", (3,))], constants={"b": np.array([40], np.int32)}, rejects="power of 40"
    ),
    OpCase(
        "clip",
        "Clip",
        [("x", "float32", SHAPE)],
        constants={"lo": np.float32(-1), "hi": np.float32(2)},
        expect_ops=["ReluMinMax"],
        backends=ALL,
    ),
    OpCase("clip_low", "Clip", [("x", "float32", SHAPE)], constants={"lo": np.float32(-1)}),
    OpCase("clip_high", "Clip", [("x", "float32", SHAPE)], constants={"hi": np.float32(1)}, order=("x", "", "hi")),
    OpCase(
        "clip_crossed",
        "Clip",
        [("x", "float32", SHAPE)],
        constants={"lo": np.float32(2), "hi": np.float32(1)},
        expected=lambda v: [np.full(SHAPE, 1, np.float32)],
    ),
    OpCase("clip_runtime", "Clip", [("x", "float32", SHAPE), ("lo", "float32", ())], values={"lo": np.float32(0.5)}),
    OpCase("clip_int", "Clip", [("x", "int8", (6,))], constants={"lo": np.int8(-1), "hi": np.int8(2)}, backends=ALL),
    OpCase("rank_five", "Sin", [("x", "float32", (2, 1, 2, 3, 2))], backends=(HTP,)),
    OpCase(
        "rank_five_broadcast", "Max", [("a", "float32", (2, 3, 2, 2, 2)), ("b", "float32", (2, 2, 2))], backends=(HTP,)
    ),
]

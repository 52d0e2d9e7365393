# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""Element-wise ops and activations. Shapes broadcast as in numpy; encodings are handled by the caller."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import onnx_ir as ir

from npukit.raising.emit import Emit
from npukit.raising.registry import raises

Unary = Callable[[Emit, ir.Value], ir.Value]
Binary = Callable[[Emit, ir.Value, ir.Value], ir.Value]


def _one(type: str) -> Unary:
    return lambda e, x: e.call(type, x)


def _two(type: str) -> Binary:
    return lambda e, a, b: e.call(type, a, b)


def _not_equal(e: Emit, a: ir.Value, b: ir.Value) -> ir.Value:
    return e.call("Not", e.call("Equal", a, b))


def _floor_div(e: Emit, a: ir.Value, b: ir.Value) -> ir.Value:
    if _is_float(a):
        return e.call("Floor", e.call("Div", a, b))
    exact = [e.cast(v, ir.DataType.DOUBLE) for v in (a, b)]
    return e.call("Floor", e.call("Div", *exact))


def _squared_difference(e: Emit, a: ir.Value, b: ir.Value) -> ir.Value:
    difference = e.call("Sub", a, b)
    return e.call("Mul", difference, difference)


def _power(e: Emit, a: ir.Value, b: ir.Value) -> ir.Value:
    return e.call("Pow", a, e.cast(b, a.dtype or ir.DataType.FLOAT))


def _fmod(e: Emit, a: ir.Value, b: ir.Value) -> ir.Value:
    """C's fmod for integers; for floats the only library that has it, QNN CPU, keeps the sign of b."""
    return _mod(e, a, b) if _is_float(a) else e.call("Mod", a, b, fmod=1)


def _mod(e: Emit, a: ir.Value, b: ir.Value) -> ir.Value:
    if _is_float(a):  # ONNX Mod refuses floats unless fmod; the sign of b is kept as for integers
        return e.call("Sub", a, e.call("Mul", b, e.call("Floor", e.call("Div", a, b))))
    return e.call("Mod", a, b)


def _is_float(value: ir.Value) -> bool:
    return value.dtype in (ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.DOUBLE)


_UNARY: dict[str, tuple[str, Unary]] = {
    "ABS": ("ElementWiseAbs", _one("Abs")),
    "ASIN": ("ElementWiseAsin", _one("Asin")),
    "ATAN": ("ElementWiseAtan", _one("Atan")),
    "CEIL": ("ElementWiseCeil", _one("Ceil")),
    "COS": ("ElementWiseCos", _one("Cos")),
    "EXP": ("ElementWiseExp", _one("Exp")),
    "FLOOR": ("ElementWiseFloor", _one("Floor")),
    "LOG": ("ElementWiseLog", _one("Log")),
    "NEG": ("ElementWiseNeg", _one("Neg")),
    "NOT": ("ElementWiseNot", _one("Not")),
    "RECIPROCAL": ("", _one("Reciprocal")),
    "ROUND": ("ElementWiseRound", _one("Round")),
    "RSQRT": ("ElementWiseRsqrt", lambda e, x: e.call("Reciprocal", e.call("Sqrt", x))),
    "SIGN": ("ElementWiseSign", _one("Sign")),
    "SIN": ("ElementWiseSin", _one("Sin")),
    "SQRT": ("ElementWiseSquareRoot", _one("Sqrt")),
}
_BINARY: dict[str, tuple[str, Binary]] = {
    "ADD": ("ElementWiseAdd", _two("Add")),
    "AND": ("ElementWiseAnd", _two("And")),
    "DIVIDE": ("ElementWiseDivide", _two("Div")),
    "EQUAL": ("ElementWiseEqual", _two("Equal")),
    "FLOOR_DIV": ("ElementWiseFloorDiv", _floor_div),
    "FMOD": ("ElementWiseFmod", _fmod),
    "GREATER": ("ElementWiseGreater", _two("Greater")),
    "GREATER_EQUAL": ("ElementWiseGreaterEqual", _two("GreaterOrEqual")),
    "LESS": ("ElementWiseLess", _two("Less")),
    "LESS_EQUAL": ("ElementWiseLessEqual", _two("LessOrEqual")),
    "MAXIMUM": ("ElementWiseMaximum", _two("Max")),
    "MINIMUM": ("ElementWiseMinimum", _two("Min")),
    "MOD": ("ElementWiseMod", _mod),
    "MULTIPLY": ("ElementWiseMultiply", _two("Mul")),
    "NOT_EQUAL": ("ElementWiseNotEqual", _not_equal),
    "OR": ("ElementWiseOr", _two("Or")),
    "POWER": ("ElementWisePower", _power),
    "SQUARED_DIFFERENCE": ("ElementWiseSquaredDifference", _squared_difference),
    "SUBTRACT": ("ElementWiseSubtract", _two("Sub")),
    "XOR": ("ElementWiseXor", _two("Xor")),
}
_BY_TYPE_1 = {type: function for type, function in _UNARY.values() if type}
_BY_TYPE_2 = dict(_BINARY.values())


@raises(*_BY_TYPE_1)
def _unary(e: Emit) -> ir.Value:
    return _BY_TYPE_1[e.op.type](e, e.real())


@raises(*_BY_TYPE_2)
def _binary(e: Emit) -> ir.Value:
    return _BY_TYPE_2[e.op.type](e, e.real(0), e.real(1))


@raises("ElementWiseUnary")
def _unary_umbrella(e: Emit) -> ir.Value:
    return _UNARY[e.choice("operation")][1](e, e.real())


@raises("ElementWiseBinary")
def _binary_umbrella(e: Emit) -> ir.Value:
    return _BINARY[e.choice("operation")][1](e, e.real(0), e.real(1))


@raises("ElementWiseSelect")
def _select(e: Emit) -> ir.Value:
    return e.call("Where", e.cast(e.real(0), ir.DataType.BOOL), e.real(1), e.real(2))


@raises("Prelu")
def _prelu(e: Emit) -> ir.Value:
    return e.call("PRelu", e.real(0), e.real(1))


def clamp(e: Emit, x: ir.Value, low: float, high: float) -> ir.Value:
    """Clip with float bounds; for an integer x the whole numbers between them that its type has."""
    dtype = (x.dtype or ir.DataType.FLOAT).numpy()
    if np.issubdtype(dtype, np.integer):
        lowest, highest = (int(v) for v in (np.iinfo(dtype).min, np.iinfo(dtype).max))
        low = lowest if low <= lowest else min(math.ceil(low), highest)
        high = highest if high >= highest else max(math.floor(high), lowest)
    return e.call("Clip", x, low, high)


def _softplus(e: Emit, beta: float, threshold: float) -> ir.Value:
    x = e.real()
    scaled = e.call("Mul", x, beta) if beta != 1 else x
    soft = e.call("Softplus", scaled)
    value = e.call("Div", soft, beta) if beta != 1 else soft
    return e.call("Where", e.call("Greater", scaled, threshold), x, value) if threshold >= 0 else value


_NEURONS: dict[str, Callable[[Emit], ir.Value]] = {
    "ELU": lambda e: e.call("Elu", e.real(), alpha=float(e.scalar("alpha", 1.0))),
    "GELU": lambda e: e.call("Gelu", e.real()),
    "HARD_SIGMOID": lambda e: e.call(
        "HardSigmoid", e.real(), alpha=float(e.scalar("alpha", 0.2)), beta=float(e.scalar("beta", 0.5))
    ),
    "HARD_SWISH": lambda e: e.call("HardSwish", e.real()),
    "RELU": lambda e: e.call("Relu", e.real()),
    "RELU_MIN_MAX": lambda e: clamp(e, e.real(), e.scalar("min_value"), e.scalar("max_value")),
    "SIGMOID": lambda e: e.call("Sigmoid", e.real()),
    "SOFTPLUS": lambda e: _softplus(e, e.scalar("beta", 1.0), e.scalar("threshold", -1.0)),
    "TANH": lambda e: e.call("Tanh", e.real()),
}
_NEURON_OF = {
    "Elu": "ELU",
    "Gelu": "GELU",
    "HardSwish": "HARD_SWISH",
    "Relu": "RELU",
    "ReluMinMax": "RELU_MIN_MAX",
    "Sigmoid": "SIGMOID",
    "ElementWiseSoftplus": "SOFTPLUS",
    "Tanh": "TANH",
}


@raises("ElementWiseNeuron")
def _neuron(e: Emit) -> ir.Value:
    return _NEURONS[e.choice("operation")](e)


@raises(*_NEURON_OF)
def _activation(e: Emit) -> ir.Value:
    return _NEURONS[_NEURON_OF[e.op.type]](e)


@raises("Relu1")
def _relu1(e: Emit) -> ir.Value:
    return clamp(e, e.real(), -1, 1)


@raises("Relu6")
def _relu6(e: Emit) -> ir.Value:
    return clamp(e, e.real(), 0, 6)


@raises("IsNan")
def _is_nan(e: Emit) -> ir.Value:
    return e.call("IsNaN", e.real())


@raises("IsInf")
def _is_inf(e: Emit) -> ir.Value:
    signs = e.integer("detect_negative", 1), e.integer("detect_positive", 1)
    return e.call("IsInf", e.real(), detect_negative=signs[0], detect_positive=signs[1])


@raises("Logit")
def _logit(e: Emit) -> ir.Value:
    x = e.real()
    return e.call("Log", e.call("Div", x, e.call("Sub", e.scalar_like(x, 1), x)))

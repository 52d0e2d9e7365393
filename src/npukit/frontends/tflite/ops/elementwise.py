# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""Operators on single elements: activations, arithmetic, comparisons, logic, casts."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from npukit.frontends.tflite.builder import Builder
from npukit.frontends.tflite.registry import Refused, reads

_UNARY = {
    "ABS": "Abs", "CEIL": "Ceil", "COS": "Cos", "EXP": "Exp", "FLOOR": "Floor", "HARD_SWISH": "HardSwish",
    "LOG": "Log", "LOGICAL_NOT": "Not", "LOGISTIC": "Sigmoid", "NEG": "Neg", "RELU": "Relu", "ROUND": "Round",
    "SIGN": "Sign", "SIN": "Sin", "SQRT": "Sqrt", "TANH": "Tanh", "ELU": "Elu",
}  # fmt: skip
_BINARY = {
    "ADD": "Add", "SUB": "Sub", "MUL": "Mul", "POW": "Pow", "MAXIMUM": "Max", "MINIMUM": "Min",
    "EQUAL": "Equal", "GREATER": "Greater", "GREATER_EQUAL": "GreaterOrEqual", "LESS": "Less",
    "LESS_EQUAL": "LessOrEqual", "LOGICAL_AND": "And", "LOGICAL_OR": "Or", "BITWISE_XOR": "BitwiseXor",
}  # fmt: skip
_FUSED = frozenset(("ADD", "SUB", "MUL", "DIV"))
_CLIPS = {"RELU6": (0.0, 6.0), "RELU_N1_TO_1": (-1.0, 1.0), "RELU_0_TO_1": (0.0, 1.0)}


@reads(*_UNARY)
def unary(b: Builder) -> None:
    """Operators that ONNX has under another name."""
    b.set(b.node(_UNARY[b.op.code], b.x()))


@reads(*_BINARY)
def binary(b: Builder) -> None:
    """Two operands, broadcast as in ONNX."""
    b.set(b.node(_BINARY[b.op.code], b.x(0), b.x(1)), fused=b.op.code in _FUSED)


@reads("DIV")
def div(b: Builder) -> None:
    """Of integers, towards zero, as ONNX's."""
    b.set(b.node("Div", b.x(0), b.x(1)), fused=True)


@reads("NOT_EQUAL")
def not_equal(b: Builder) -> None:
    """The opposite of Equal."""
    b.set(b.node("Not", b.node("Equal", b.x(0), b.x(1))))


@reads("FLOOR_DIV")
def floor_div(b: Builder) -> None:
    """Rounded down; integers through their remainder."""
    x, y = b.x(0), b.x(1)
    if _is_float(b):
        b.set(b.node("Floor", b.node("Div", x, y)))
    else:
        b.set(b.node("Div", b.node("Sub", x, b.node("Mod", x, y)), y))


@reads("FLOOR_MOD")
def floor_mod(b: Builder) -> None:
    """The remainder has the divisor's sign, as ONNX's Mod of integers."""
    x, y = b.x(0), b.x(1)
    if _is_float(b):
        b.set(b.node("Sub", x, b.node("Mul", b.node("Floor", b.node("Div", x, y)), y)))
    else:
        b.set(b.node("Mod", x, y))


def _is_float(b: Builder) -> bool:
    return b.tensor(0).dtype is ir.DataType.FLOAT or b.coded(b.tensor(0))


@reads("SQUARED_DIFFERENCE")
def squared_difference(b: Builder) -> None:
    """(x - y) ** 2."""
    difference = b.node("Sub", b.x(0), b.x(1))
    b.set(b.node("Mul", difference, difference))


@reads("SQUARE")
def square(b: Builder) -> None:
    """As a product: exact for every dtype."""
    b.set(b.node("Mul", b.x(), b.x()))


@reads("RSQRT")
def rsqrt(b: Builder) -> None:
    """1 / sqrt(x)."""
    b.set(b.node("Reciprocal", b.node("Sqrt", b.x())))


@reads("ADD_N")
def add_n(b: Builder) -> None:
    """A sum of any number of tensors."""
    b.set(b.node("Sum", *(b.x(i) for i in range(len(b.op.inputs)))))


@reads(*_CLIPS)
def clip(b: Builder) -> None:
    """Between two constants."""
    b.set(b.clip(b.x(), *_CLIPS[b.op.code]))


@reads("LEAKY_RELU")
def leaky_relu(b: Builder) -> None:
    """Slope `alpha` below zero."""
    b.set(b.node("LeakyRelu", b.x(), alpha=float(b.op.get("Alpha", 0.2))))


@reads("PRELU")
def prelu(b: Builder) -> None:
    """Slopes of any shape that broadcasts to x."""
    b.set(b.node("PRelu", b.x(0), b.x(1)))


@reads("GELU")
def gelu(b: Builder) -> None:
    """Exact, or by tanh."""
    b.set(b.node("Gelu", b.x(), approximate="tanh" if b.op.get("Approximate", False) else "none"))


@reads("SELECT", "SELECT_V2")
def select(b: Builder) -> None:
    """Where; the old form may choose whole rows by a vector."""
    condition = b.x(0)
    if b.op.code == "SELECT" and b.rank(0) == 1 and b.rank(1) > 1:
        condition = b.reshape(condition, (-1, *[1] * (b.rank(1) - 1)))
    b.set(b.node("Where", condition, b.x(1), b.x(2)))


@reads("CAST")
def cast(b: Builder) -> None:
    """To the result's dtype."""
    dtype = b.result().dtype
    if dtype is None:
        raise Refused(f"a cast to {b.result().type_name}")
    if b.coded(b.tensor(0)) or b.coded(b.result()):
        b.bind_codes(b.result(), b.cast(b.codes(), dtype))
    else:
        b.set(b.cast(b.x(), dtype))


@reads("BUCKETIZE")
def bucketize(b: Builder) -> None:
    """How many of the boundaries are not above each element."""
    limits = np.array(b.op.options.BoundariesAsNumpy(), np.float32)
    dtype = b.tensor(0).dtype
    assert dtype is not None
    x = b.x(0) if dtype is ir.DataType.FLOAT else b.cast(b.x(0), ir.DataType.FLOAT)
    above = b.node("GreaterOrEqual", b.node("Unsqueeze", x, b.vector([b.rank()])), b.constant(limits))
    b.set(b.node("ReduceSum", b.cast(above, ir.DataType.INT32), b.vector([b.rank()]), keepdims=0))


@reads("ATAN2")
def atan2(b: Builder) -> None:
    """The angle of (x, y), from the quotient and the signs; of (0, 0) it is 0 or pi, as the sign of x says."""
    y, x = b.x(0), b.x(1)
    zero, one, pi = b.scalar(0.0), b.scalar(1.0), b.scalar(np.pi)
    flat = b.node("Equal", x, zero)
    angle = b.node("Atan", b.node("Div", y, b.node("Where", flat, one, x)))
    turn = b.node("Where", b.node("Less", y, zero), b.node("Neg", pi), pi)
    angle = b.node("Add", angle, b.node("Where", b.node("Less", x, zero), turn, zero))
    upright = b.node("Mul", b.node("Sign", y), b.scalar(np.pi / 2))
    b.set(b.node("Where", flat, upright, angle))


@reads("ZEROS_LIKE")
def zeros_like(b: Builder) -> None:
    """Zeros of the input's shape."""
    dtype = b.tensor(0).dtype
    if dtype is None or b.tensor(0).open_axes:
        raise Refused("zeros of a shape that is open")
    b.set_data(b.result(), b.filled(b.shape(0), 0, dtype.numpy()))


@reads("RIGHT_SHIFT")
def right_shift(b: Builder) -> None:
    """Only of unsigned integers, which is what ONNX shifts."""
    if b.tensor(0).dtype not in (ir.DataType.UINT8, ir.DataType.UINT16, ir.DataType.UINT32, ir.DataType.UINT64):
        raise Refused("a shift of signed integers")
    b.set(b.node("BitShift", b.x(0), b.x(1), direction="RIGHT"))

# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""Comparisons, logic, bits and selection."""

from __future__ import annotations

import math

import numpy as np
import onnx_ir as ir

from npukit.lowering.emitter import Emitter
from npukit.lowering.registry import Unsupported, lowers
from npukit.qnn.graph import DType, Tensor

from .elementwise import integer_power
from .forms import (
    Compute,
    Form,
    Native,
    bits_of,
    compute,
    elementwise,
    floor_quotient,
    from_bool,
    in_float,
    maximum,
    minimum,
    negative,
    quotient,
    rows_sum,
    to_bool,
    wrapped,
)

COMPARISONS = {
    "Equal": "ElementWiseEqual",
    "Greater": "ElementWiseGreater",
    "GreaterOrEqual": "ElementWiseGreaterEqual",
    "Less": "ElementWiseLess",
    "LessOrEqual": "ElementWiseLessEqual",
}
LOGIC = {"And": "ElementWiseAnd", "Or": "ElementWiseOr", "Xor": "ElementWiseXor"}
_WIDTHS = {  # integer type -> (bits, signed)
    ir.DataType.INT8: (8, True),
    ir.DataType.INT16: (16, True),
    ir.DataType.INT32: (32, True),
    ir.DataType.INT64: (64, True),
    ir.DataType.UINT8: (8, False),
    ir.DataType.UINT16: (16, False),
    ir.DataType.UINT32: (32, False),
    ir.DataType.UINT64: (64, False),
}


def width(dtype: ir.DataType) -> tuple[int, bool]:
    """(bits, signed) of an integer type. Raises Unsupported for the 2- and 4-bit types and for others."""
    if dtype not in _WIDTHS:
        raise Unsupported(f"bit operations on {dtype.name.lower()}", kind="dtype cannot be held")
    return _WIDTHS[dtype]


def _compared(op: str) -> Compute:
    """A comparison of tensors of one dtype as a form with a BOOL_8 result."""
    return lambda e, x: e.compare(op, x[0], x[1])


def _integer_comparison(name: str) -> Form:
    """A comparison of INT_32 by the sign of a difference, clipped to 0 and 1 (|a - b| below 2^31)."""

    def above(e: Emitter, a: Tensor, b: Tensor) -> Tensor:
        return minimum(e, maximum(e, e.sub(a, b), 0), 1)

    def run(e: Emitter, x: list[Tensor]) -> Tensor:
        a, b = x
        if name == "Equal":
            return to_bool(e, e.sub(1, minimum(e, e.unary("ElementWiseAbs", e.sub(a, b)), 1)))
        if name in ("Greater", "Less"):
            return to_bool(e, above(e, *((a, b) if name == "Greater" else (b, a))))
        return to_bool(e, e.sub(1, above(e, *((b, a) if name == "GreaterOrEqual" else (a, b)))))

    return run


@lowers(*COMPARISONS)
def comparison(e: Emitter, node: ir.Node) -> None:
    """The ops of `COMPARISONS`.

    a: T[*A], b: T[*B] -> y: bool[*broadcast(A,B)]
    T: float, integer; Equal also bool; any order
    """
    native = Native(COMPARISONS[node.op_type])
    dtype = e.held_dtype(e.source_dtype(node.inputs[0]))
    if dtype is DType.BOOL_8:
        elementwise(e, node, _not_xor, in_float(_compared(native.op)))
    elif dtype is DType.INT_32:
        elementwise(e, node, native, _integer_comparison(node.op_type), in_float(_compared(native.op)))
    else:
        elementwise(e, node, native)


def _not(e: Emitter, x: Tensor) -> Tensor:
    by_select = lambda: e.select(x, _flag(e, False), _flag(e, True))  # noqa: E731
    by_float = lambda: to_bool(e, e.sub(1.0, from_bool(e, x, e.float_dtype)))  # noqa: E731
    return e.forms(lambda: e.unary("ElementWiseNot", x), by_select, by_float)


def _flag(e: Emitter, value: bool) -> Tensor:
    return e.static(np.array([value]), DType.BOOL_8)


def _not_xor(e: Emitter, x: list[Tensor]) -> Tensor:
    return _not(e, compute(e, Native(LOGIC["Xor"]), x))


_LOGIC_IN_FLOAT: dict[str, Form] = {  # on zeros and ones
    "And": lambda e, x: e.mul(*x),
    "Or": lambda e, x: e.binary("ElementWiseMaximum", x[0], x[1]),
    "Xor": lambda e, x: e.unary("ElementWiseAbs", e.sub(*x)),
}


def _logic_forms(name: str) -> list[Form]:
    def by_number(e: Emitter, x: list[Tensor]) -> Tensor:
        numbers = [from_bool(e, t, e.float_dtype) for t in x]
        return to_bool(e, compute(e, _LOGIC_IN_FLOAT[name], numbers))

    forms: list[Form] = [Native(LOGIC[name]), by_number]
    if name == "Xor":
        forms.insert(1, _compared("ElementWiseNotEqual"))
    return forms


@lowers(*LOGIC)
def logic(e: Emitter, node: ir.Node) -> None:
    """The ops of `LOGIC`.

    a: bool[*A], b: bool[*B] -> y: bool[*broadcast(A,B)]
    any order
    """
    elementwise(e, node, *_logic_forms(node.op_type))


@lowers("Not")
def logical_not(e: Emitter, node: ir.Node) -> None:
    """Logical negation.

    x: bool[*D] -> y: bool[*D]
    any order
    """
    elementwise(e, node, Native("ElementWiseNot"), lambda e, x: _not(e, x[0]))


# -- bits -----------------------------------------------------------------------------------------------------------


@lowers("BitwiseNot")
def bitwise_not(e: Emitter, node: ir.Node) -> None:
    """Every bit inverted: -1 - x, or the type's largest number - x where it is unsigned.

    x: T[*D] -> y: T[*D]
    T: integer held as int32 (uint32 and uint64 results are beyond it); any order
    """
    bits, signed = width(e.source_dtype(node.inputs[0]))
    if not signed and bits > 16:
        raise Unsupported(f"the complement of uint{bits} does not fit int32", kind="dtype cannot be held")
    elementwise(e, node, lambda e, x: e.sub(-1 if signed else (1 << bits) - 1, x[0]))


@lowers("BitwiseAnd", "BitwiseOr", "BitwiseXor")
def bitwise(e: Emitter, node: ir.Node) -> None:
    """And, or, exclusive or of the bits of two integers, bit by bit: exact, but slow.

    a: T[*A], b: T[*B] -> y: T[*broadcast(A,B)]
    T: integer held as int32; any order
    """
    name = node.op_type.removeprefix("Bitwise")
    bits, signed = width(e.source_dtype(node.inputs[0]))

    count = min(bits - signed, 31)  # bits below the sign

    def run(e: Emitter, x: list[Tensor]) -> Tensor:
        shape = np.broadcast_shapes(x[0].shape, x[1].shape)
        low, signs = [], []
        for t in x:
            if t.shape != shape and np.prod(t.shape) > 1:  # the bits take a first axis: no room for broadcasting
                t = e.add(t, e.static(np.zeros(shape, np.int32)))
            if signed:
                sign = negative(e, t)
                for _ in range(2):  # 2^count is added where t is negative, in halves that stay within int32
                    t = e.add(t, e.mul(sign, 1 << (count - 1)))
                signs.append(e.reshape(sign, (1, int(np.prod(sign.shape)))))
            low.append(bits_of(e, t, count))
        powers = e.static(np.array([[1 << k] for k in range(count)], np.int32))
        total = rows_sum(e, e.mul(_combined(e, name, *low), powers))
        if signed:
            sign = _combined(e, name, *signs)
            for _ in range(2):
                total = e.sub(total, e.mul(sign, 1 << (count - 1)))
        return e.reshape(total, shape)

    elementwise(e, node, run)


def _combined(e: Emitter, name: str, a: Tensor, b: Tensor) -> Tensor:
    """Zeros and ones combined by And, Or or Xor in INT_32."""
    if name == "And":
        return e.mul(a, b)
    if name == "Or":
        return maximum(e, a, b)
    difference = e.sub(a, b)
    return e.mul(difference, difference)


@lowers("BitShift")
def bit_shift(e: Emitter, node: ir.Node) -> None:
    """Shift to the left (a product) or to the right (a quotient toward minus infinity).

    x: T[*A], y: T[*B] -> z: T[*broadcast(A,B)]
    T: integer held as int32. A y below 0 or from the type's width on leaves only the fill: -1 for a right shift of
    a negative number, 0 else. On HTP a left shift of int32 beyond its range saturates; any order
    """
    bits, signed = width(e.source_dtype(node.inputs[0]))
    left = node.attributes.get_string("direction", "LEFT") == "LEFT"
    most = min(bits, 32) - 1
    beyond = most if signed else min(bits, 31)  # a right shift by this much leaves the fill

    def amounts(e: Emitter, y: Tensor) -> tuple[Tensor, Tensor]:
        """1 where y is within the width, else 0; and y there, `beyond` elsewhere."""
        if y.data is not None:
            inside = (y.data >= 0) & (y.data < bits)
            known = np.where(inside, y.data, beyond).astype(np.int32)
            return e.static(inside.astype(np.int32)), e.static(known)
        lower = from_bool(e, e.compare("ElementWiseGreaterEqual", y, 0), DType.INT_32)
        within = e.mul(lower, from_bool(e, e.compare("ElementWiseLess", y, bits), DType.INT_32))
        return within, e.add(e.mul(within, e.sub(y, beyond)), beyond)

    def powers(e: Emitter, y: Tensor) -> list[Tensor]:
        """2^y as factors that int32 holds: 2^31 is 2^30 times 2."""
        if y.data is not None:
            steps = [np.minimum(y.data, 30), np.maximum(y.data, 30) - 30]
            return [e.static((1 << step).astype(np.int32)) for step in steps if step.any()] or [e.like(1, y)]
        if beyond < 31:
            return [integer_power(e, 2, y)]
        low = minimum(e, y, 30)
        return [integer_power(e, 2, low), e.add(e.sub(y, low), 1)]

    def run(e: Emitter, t: list[Tensor]) -> Tensor:
        inside, amount = amounts(e, t[1])
        result = t[0]
        for factor in powers(e, amount):
            if left:
                result = e.mul(result, factor)
            else:
                result = floor_quotient(e, result, factor) if signed else quotient(e, result, factor)
        if not left:
            return result
        if inside.data is None or not inside.data.all():
            result = e.mul(result, inside)
        return wrapped(e, result, bits, signed) if bits <= 16 else result

    elementwise(e, node, run)


# -- selection and kinds of floats ----------------------------------------------------------------------------------


@lowers("Where")
def where(e: Emitter, node: ir.Node) -> None:
    """Condition ? x : y.

    c: bool[*C], x: T[*X], y: T[*Y] -> z: T[*broadcast(C,X,Y)]
    T: float, integer, bool; any order
    """
    dtype = e.held_dtype(e.source_dtype(node.inputs[1]))

    def by_numbers(e: Emitter, x: list[Tensor]) -> Tensor:
        chosen = from_bool(e, x[0], dtype)
        return e.add(e.mul(chosen, x[1]), e.mul(e.sub(1, chosen), x[2]))

    def by_logic(e: Emitter, x: list[Tensor]) -> Tensor:
        first = compute(e, Native(LOGIC["And"]), [x[0], x[1]])
        second = compute(e, Native(LOGIC["And"]), [_not(e, x[0]), x[2]])
        return compute(e, Native(LOGIC["Or"]), [first, second])

    def widened(e: Emitter, x: list[Tensor]) -> Tensor:
        """The condition and operands brought to the result's shape first."""
        shape = np.broadcast_shapes(*(t.shape for t in x))
        ones = e.static(np.ones(shape, bool), DType.BOOL_8)
        zeros = e.static(np.zeros(shape, dtype.numpy), dtype)
        wide = [t if t.shape == shape else e.add(t, zeros) for t in x[1:]]
        condition = x[0] if x[0].shape == shape else compute(e, Native(LOGIC["And"]), [x[0], ones])
        return e.select(condition, *wide)

    forms: list[Form] = [Native("ElementWiseSelect")]
    if dtype is DType.BOOL_8:
        forms.append(by_logic)
    elif dtype is DType.INT_32:
        forms = [lambda e, x: e.select(*x), by_numbers]
    else:
        forms += [widened, by_numbers]
    elementwise(e, node, *forms)


@lowers("IsNaN")
def is_nan(e: Emitter, node: ir.Node) -> None:
    """Whether an element is not a number.

    x: T[*D] -> y: bool[*D]
    T: float; on HTP also everything beyond 65504, which it cannot tell from NaN; any order
    """
    elementwise(e, node, Native("IsNan"), lambda e, x: e.compare("ElementWiseNotEqual", x[0], x[0]))


@lowers("IsInf")
def is_inf(e: Emitter, node: ir.Node) -> None:
    """Whether an element is infinite; with detect_negative or detect_positive 0, of one sign only.

    x: T[*D] -> y: bool[*D]
    T: float; on HTP everything beyond 65504 is infinite, and with detect_positive also NaN; any order
    """
    negative = bool(node.attributes.get_int("detect_negative", 1))
    positive = bool(node.attributes.get_int("detect_positive", 1))

    def compared(e: Emitter, x: list[Tensor]) -> Tensor:
        if negative and positive:
            return e.compare("ElementWiseEqual", e.unary("ElementWiseAbs", x[0]), math.inf)
        return e.compare("ElementWiseEqual", x[0], math.inf if positive else -math.inf)

    def by_integer(e: Emitter, x: list[Tensor]) -> Tensor:
        """Whether the number saturates as INT_32; NaN becomes the largest."""
        number = e.cast(x[0], DType.INT_32)
        found = []
        if positive:
            found.append(e.compare("ElementWiseGreater", number, 65504))
        if negative:
            found.append(e.compare("ElementWiseLess", number, -65504))
        return found[0] if len(found) == 1 else compute(e, Native(LOGIC["Or"]), found)

    if not negative and not positive:
        shape = e.shape(node.outputs[0])
        e.bind(node.outputs[0], e.static(np.zeros(shape, bool), DType.BOOL_8))
        return
    native = Native("IsInf", {"detect_negative": negative, "detect_positive": positive})
    elementwise(e, node, *([by_integer] if "is_inf_fails" in e.quirks else [native, compared]))


@lowers("Trilu")
def trilu(e: Emitter, node: ir.Node) -> None:
    """The upper or lower triangle of matrices, zeros elsewhere.

    x: T[*B,M,N], k: int64[]? -> y: T[*B,M,N]
    T: float, integer, bool; k constant
    """
    x = e.get(node.inputs[0])
    k = e.ints(node.inputs[1], "k of Trilu")[0] if len(node.inputs) > 1 and node.inputs[1] is not None else 0
    if node.attributes.get_int("upper", 1):
        keep = np.triu(np.ones(x.shape[-2:], bool), k)
    else:
        keep = np.tril(np.ones(x.shape[-2:], bool), k)

    def masked(x: Tensor) -> Tensor:
        mask = keep.reshape((1,) * (x.rank - 2) + keep.shape)
        if x.dtype is DType.BOOL_8:
            return compute(e, Native(LOGIC["And"]), [x, e.static(np.broadcast_to(mask, x.shape).copy(), DType.BOOL_8)])
        zero = e.like(0, x)
        if not x.dtype.is_float:
            return e.mul(x, e.static(mask.astype(x.dtype.numpy), x.dtype))
        # not a product, which would turn infinities into NaN
        return e.select(e.static(np.broadcast_to(mask, x.shape).copy(), DType.BOOL_8), x, zero)

    def merged() -> None:
        rows = int(np.prod(x.shape[:-2]))
        e.bind(node.outputs[0], masked(e.reshape(x, (rows, *x.shape[-2:]))))

    e.forms(lambda: e.bind(node.outputs[0], masked(x)), merged)


@lowers("Det")
def det(e: Emitter, node: ir.Node) -> None:
    """Determinant of 1x1, 2x2 or 3x3 matrices, written out.

    x: T[*B,M,M] -> y: T[*B]
    T: float; M up to 3
    """
    shape = e.shape(node.inputs[0])
    size = shape[-1]
    if size > 3:
        raise Unsupported(f"the determinant of {size}x{size} matrices", hint="at most 3x3")
    count = int(np.prod(shape[:-2]))
    x = e.reshape(e.get(node.inputs[0]), (count, size * size))
    cell = [[e.slice(x, 1, i * size + j, i * size + j + 1) for j in range(size)] for i in range(size)]

    def minor(a: int, b: int) -> Tensor:
        """Determinant of the last two rows' columns a and b."""
        return e.sub(e.mul(cell[-2][a], cell[-1][b]), e.mul(cell[-2][b], cell[-1][a]))

    if size == 1:
        result = cell[0][0]
    elif size == 2:
        result = minor(0, 1)
    else:
        first, second, third = (e.mul(cell[0][k], minor(*sorted({0, 1, 2} - {k}))) for k in range(3))
        result = e.add(e.sub(first, second), third)
    e.bind(node.outputs[0], result)

# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""Arithmetic of one, two or more operands: tables where an op is only renamed, forms for the rest."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from npukit.lowering.emitter import Emitter
from npukit.lowering.encode import single
from npukit.lowering.registry import Unsupported, lowers
from npukit.qnn.graph import DType, Tensor

from .forms import (
    Form,
    Native,
    chain,
    compute,
    elementwise,
    exponential,
    in_float,
    in_float_with,
    maximum,
    minimum,
    quotient,
    remainder,
    truncated,
)

UNARY = {  # ONNX op -> QNN op: one input, no attributes, any axis order
    "Abs": "ElementWiseAbs",
    "Ceil": "ElementWiseCeil",
    "Exp": "ElementWiseExp",
    "Floor": "ElementWiseFloor",
    "Log": "ElementWiseLog",
    "Neg": "ElementWiseNeg",
    "Round": "ElementWiseRound",
    "Sign": "ElementWiseSign",
    "Sqrt": "ElementWiseSquareRoot",
}
ARITHMETIC = {  # ONNX op -> QNN op: two broadcasting inputs, output of their type
    "Add": "ElementWiseAdd",
    "Mul": "ElementWiseMultiply",
    "Sub": "ElementWiseSubtract",
}
_INTEGER_UNARY: dict[str, list[Form]] = {  # what stands in where a backend has the op for floats only
    "Abs": [lambda e, x: maximum(e, x[0], e.sub(0, x[0]))],
    "Neg": [lambda e, x: e.sub(0, x[0])],
    "Sign": [lambda e, x: minimum(e, maximum(e, x[0], -1), 1)],
}
_SMALL_EXPONENTS = {2: (0, 0), 3: (0, 0, 1), 4: (0, 0, 2)}
EXPONENT_BITS = 5  # integer exponents up to 31: beyond them no int32 power of |x| > 1 fits


@lowers(*UNARY)
def unary(e: Emitter, node: ir.Node) -> None:
    """The ops of `UNARY`.

    x: T[*D] -> y: T[*D]
    T: float; Abs, Neg and Sign also integers; any order
    """
    native = Native(UNARY[node.op_type])
    if node.op_type == "Exp" and e.is_float(node.inputs[0]) and not e.for_integers:
        elementwise(e, node, lambda e, x: exponential(e, x[0]))
    elif e.is_float(node.inputs[0]):
        elementwise(e, node, native)
    else:
        elementwise(e, node, native, *_INTEGER_UNARY.get(node.op_type, ()), in_float(native))


@lowers(*ARITHMETIC)
def arithmetic(e: Emitter, node: ir.Node) -> None:
    """The ops of `ARITHMETIC`.

    a: T[*A], b: T[*B] -> y: T[*broadcast(A,B)]
    T: float, integer (held as int32; no wrap-around of narrower types); any order
    """
    native = Native(ARITHMETIC[node.op_type])
    elementwise(e, node, native, *([] if e.is_float(node.inputs[0]) else [in_float(native)]))


@lowers("Div")
def div(e: Emitter, node: ir.Node) -> None:
    """Division; of integers toward zero.

    a: T[*A], b: T[*B] -> y: T[*broadcast(A,B)]
    T: float, integer; any order
    """
    native = Native("ElementWiseDivide")
    if e.for_integers and e.is_float(node.inputs[0]):
        _divide_codes(e, node, native)
    elif e.is_float(node.inputs[0]):
        elementwise(e, node, native)
    else:
        elementwise(e, node, lambda e, x: quotient(e, *x), in_float(lambda e, x: truncated(e, e.div(*x))))


def _divide_codes(e: Emitter, node: ir.Node, native: Native) -> None:
    """Quantized division: by one constant it is a multiplication, which HTP has for codes."""
    known = e.constant(node.inputs[1])

    def multiplied() -> None:
        if known is None or known.size != 1 or not float(known.reshape(-1)[0]):
            raise Unsupported("the divisor is not one constant")
        x, order = e.held(node.inputs[0])
        factor = single(e, 1.0 / float(known.reshape(-1)[0]), x)
        e.emit("ElementWiseMultiply", [x, factor], [e.output(node.outputs[0], order)])

    e.forms(multiplied, lambda: elementwise(e, node, native))


@lowers("Reciprocal")
def reciprocal(e: Emitter, node: ir.Node) -> None:
    """1 / x.

    x: T[*D] -> y: T[*D]
    T: float; any order
    """
    elementwise(e, node, Native("ElementWiseUnary", {"operation": "RECIPROCAL"}), lambda e, x: e.div(1.0, x[0]))


@lowers("Sum", "Max", "Min")
def variadic(e: Emitter, node: ir.Node) -> None:
    """Sum, maximum or minimum of any number of operands.

    x: T[*X]... -> y: T[*broadcast(X...)]
    T: float, Max and Min also integers; any order; NaN is not carried on
    """
    op = {"Sum": "ElementWiseAdd", "Max": "ElementWiseMaximum", "Min": "ElementWiseMinimum"}[node.op_type]
    native = Native(op)
    if len(node.inputs) == 2 and e.is_float(node.inputs[0]):
        elementwise(e, node, native)
        return
    step = (lambda e, x: minimum(e, *x)) if node.op_type == "Min" else lambda e, x: compute(e, native, x)
    forms = [chain(step)]
    if not e.is_float(node.inputs[0]):
        forms.append(in_float(chain(step)))
    elementwise(e, node, *forms)


@lowers("Mean")
def mean(e: Emitter, node: ir.Node) -> None:
    """Arithmetic mean of any number of operands.

    x: T[*X]... -> y: T[*broadcast(X...)]
    T: float; any order
    """
    count = len(node.inputs)
    total = chain(lambda e, x: e.add(*x))
    elementwise(e, node, total if count == 1 else lambda e, x: e.mul(total(e, x), 1.0 / count))


@lowers("Mod")
def mod(e: Emitter, node: ir.Node) -> None:
    """Remainder: with the divisor's sign (fmod 0) or the dividend's (fmod 1).

    a: T[*A], b: T[*B] -> y: T[*broadcast(A,B)]
    T: float, integer; on HTP floats are divided in float16; any order
    """
    c_like = bool(node.attributes.get_int("fmod", 0))
    if e.is_float(node.inputs[0]):
        if c_like:
            # not ElementWiseFmod: on CPU its result has the divisor's sign, HTP does not have it
            elementwise(e, node, lambda e, x: _left(e, x, truncated(e, e.div(*x))))
        else:
            elementwise(e, node, lambda e, x: _left(e, x, e.unary("ElementWiseFloor", e.div(*x))))
    elif c_like:
        elementwise(e, node, lambda e, x: remainder(e, *x))
    else:
        # a and b may differ in sign: the remainder toward zero is shifted by b, and reduced once more.
        shifted: Form = lambda e, x: remainder(e, e.add(remainder(e, *x), x[1]), x[1])  # noqa: E731
        exact = "integer_mod_through_float" not in e.quirks
        elementwise(e, node, *([Native("ElementWiseMod")] if exact else []), shifted)


def _left(e: Emitter, x: list[Tensor], whole: Tensor) -> Tensor:
    return e.sub(x[0], e.mul(x[1], whole))


@lowers("Pow")
def power(e: Emitter, node: ir.Node) -> None:
    """A to the power of b; a constant exponent of 0.5, 1, 2, 3, 4 or -1 becomes a root, products or a quotient.

    a: T[*A], b: U[*B] -> y: T[*broadcast(A,B)]
    T, U: float, integer; an integer power of integers is exact for exponents from 0 to 31; any order
    """
    base, exponent = node.inputs[0], node.inputs[1]
    constant = e.constant(exponent)
    single = float(constant.reshape(-1)[0]) if constant is not None and constant.size == 1 else None
    same_shape = e.shape(node.outputs[0]) == e.shape(base)
    if e.is_float(base) and single is not None and same_shape and not e.quantized:
        if single == 0.5:
            elementwise(e, node, Native("ElementWiseSquareRoot"), values=[base])
            return
        if single == 1.0:
            elementwise(e, node, lambda e, x: x[0], values=[base])
            return
        if single == -1.0:
            elementwise(e, node, lambda e, x: e.div(1.0, x[0]), values=[base])
            return
        if single in _SMALL_EXPONENTS:
            elementwise(e, node, lambda e, x: _products(e, x[0], int(single)), values=[base])
            return
    if e.is_float(base):
        if e.is_float(exponent):
            elementwise(e, node, Native("ElementWisePower"), _by_logarithm)
        else:
            elementwise(e, node, in_float(Native("ElementWisePower")), in_float(_by_logarithm))
    elif e.is_float(exponent):
        elementwise(e, node, in_float(Native("ElementWisePower")), in_float(_by_logarithm))
    elif constant is not None and int(constant.min(initial=0)) < 0:
        raise Unsupported("an integer to a negative power", hint="cast the base to float")
    else:
        elementwise(e, node, lambda e, x: integer_power(e, x[0], x[1]))


def _products(e: Emitter, x: Tensor, exponent: int) -> Tensor:
    """x^2, x^3 or x^4 by products."""
    square = e.mul(x, x)
    return square if exponent == 2 else e.mul(square, x if exponent == 3 else square)


def _by_logarithm(e: Emitter, x: list[Tensor]) -> Tensor:
    """exp(b * log(a)): a positive."""
    return exponential(e, e.mul(e.unary("ElementWiseLog", x[0]), x[1]))


def integer_power(e: Emitter, base: Tensor | int, exponent: Tensor) -> Tensor:
    """INT_32 to the power of INT_32 from 0 to 31: square and multiply over the exponent's bits."""
    if exponent.data is not None:
        highest = int(np.max(exponent.data, initial=1))
        if highest > 31:
            raise Unsupported(f"an integer to the power of {highest}", hint="the largest exponent is 31")
        count = max(1, highest.bit_length())
    else:
        count = EXPONENT_BITS
    result: Tensor | None = None
    for bit in range(count):
        if exponent.data is not None:
            digit = e.static(((exponent.data >> bit) & 1).astype(np.int32), DType.INT_32)
        else:
            shifted = quotient(e, exponent, 1 << bit) if bit else exponent
            digit = e.sub(shifted, e.mul(quotient(e, shifted, 2), 2))
        # 1 + digit * (base^(2^bit) - 1): the factor, or one
        less = e.sub(base, 1) if isinstance(base, Tensor) else base - 1
        factor = e.add(e.mul(digit, less), 1)
        result = factor if result is None else e.mul(result, factor)
        if bit + 1 < count:
            base = e.mul(base, base) if isinstance(base, Tensor) else base * base
    assert result is not None
    return result


@lowers("Clip")
def clip(e: Emitter, node: ir.Node) -> None:
    """min(max(x, low), high); a missing bound is none.

    x: T[*D], low: T[]?, high: T[]? -> y: T[*D]
    T: float or integer; quantized with constant bounds; any order
    """
    bounds = [node.inputs[i] if len(node.inputs) > i else None for i in (1, 2)]
    x = node.inputs[0]
    known = [e.constant(bound) for bound in bounds]
    constant = all(bound is None or array is not None for bound, array in zip(bounds, known, strict=True))
    low, high = (None if array is None or array.size == 0 else float(array.reshape(-1)[0]) for array in known)
    if constant and low is None and high is None:
        elementwise(e, node, lambda e, t: t[0], values=[x])
        return

    def steps(e: Emitter, t: list[Tensor]) -> Tensor:
        operands = iter(t[1:])
        result = t[0]
        if bounds[0] is not None:
            result = maximum(e, result, next(operands))
        if bounds[1] is not None:
            result = minimum(e, result, next(operands))
        return result

    def constant_steps(e: Emitter, t: list[Tensor]) -> Tensor:
        result = t[0]
        if low is not None:
            result = maximum(e, result, low)
        return result if high is None else minimum(e, result, high)

    if not constant:
        operands = [x, *(bound for bound in bounds if bound is not None)]
        forms: list[Form] = [steps] if e.is_float(x) else [steps, in_float(steps)]
        elementwise(e, node, *forms, values=operands)
        return
    forms = []
    if e.quantized and e.held(x)[0].dtype is DType.UFIXED_POINT_16:
        in_float_with(e, "wide_convolution_with_relu_min_max_wrong")
    if e.is_float(x) and (e.quantized or (low is not None and high is not None)) and _ordered(low, high):
        least, most = (low if low is not None else -3.0e38), (high if high is not None else 3.0e38)
        forms.append(Native("ReluMinMax", {"min_value": least, "max_value": most}))
    forms.append(constant_steps)
    if not e.is_float(x):
        forms.append(in_float(constant_steps))
    elementwise(e, node, *forms, values=[x])


def _ordered(low: float | None, high: float | None) -> bool:
    return low is None or high is None or low <= high

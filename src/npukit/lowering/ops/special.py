# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""Trigonometric and hyperbolic functions and the error function: native where a backend has them, else composed.

The compositions keep intermediates within float16, the type in which HTP computes.
"""

from __future__ import annotations

import math

import onnx_ir as ir

from npukit.lowering.emitter import Emitter
from npukit.lowering.registry import lowers
from npukit.qnn.graph import Tensor

from .forms import Form, Native, elementwise, exponential, maximum

# Abramowitz and Stegun, Handbook of Mathematical Functions, 7.1.26: absolute error below 1.5e-7.
_ERF_P = 0.3275911
_ERF = (0.254829592, -0.284496736, 1.421413741, -1.453152027, 1.061405429)
# Least-squares minimax of atan(z)/z in z^2 on [0, 1], 4.4.49 of the same book: absolute error below 2e-8.
_ATAN = (
    *(-0.3333314528, 0.1999355085, -0.1420889944, 0.1065626393, -0.0752896400, 0.0429096138),
    *(-0.0161657367, 0.0028662257),
)


def _abs(e: Emitter, x: Tensor) -> Tensor:
    return e.unary("ElementWiseAbs", x)


def _exp(e: Emitter, x: Tensor) -> Tensor:
    return exponential(e, x)


def _log(e: Emitter, x: Tensor) -> Tensor:
    return e.unary("ElementWiseLog", x)


def _sqrt(e: Emitter, x: Tensor) -> Tensor:
    return e.unary("ElementWiseSquareRoot", x)


def _sign(e: Emitter, x: Tensor) -> Tensor:
    return e.unary("ElementWiseSign", x)


def polynomial(e: Emitter, x: Tensor, coefficients: tuple[float, ...]) -> Tensor:
    """c0 + c1 x + c2 x^2 + ... by Horner's rule; at least two coefficients."""
    result = e.add(e.mul(x, coefficients[-1]), coefficients[-2])
    for coefficient in reversed(coefficients[:-2]):
        result = e.add(e.mul(result, x), coefficient)
    return result


def atan(e: Emitter, x: Tensor) -> Tensor:
    """Arc tangent: the op, or a polynomial on [0, 1] and pi/2 minus that of 1/|x| beyond."""

    def composed() -> Tensor:
        size = _abs(e, x)
        larger = maximum(e, size, 1.0)
        # z = |x| up to 1 and 1/|x| beyond; `far` is 1 beyond, 0 up to it
        z = e.div(e.binary("ElementWiseMinimum", size, 1.0), larger)
        far = _sign(e, e.sub(larger, 1.0))
        near = e.mul(z, polynomial(e, e.mul(z, z), (1.0, *_ATAN)))
        turned = e.sub(math.pi / 2, e.mul(near, 2.0))
        return e.mul(_sign(e, x), e.add(near, e.mul(far, turned)))

    return e.forms(lambda: e.unary("ElementWiseAtan", x), composed)


def asin(e: Emitter, x: Tensor) -> Tensor:
    """2 atan(x / (1 + sqrt(1 - x^2))), which has no pole at 1. The op fails on CPU at numbers beyond 1."""
    cosine = _sqrt(e, e.mul(e.sub(1.0, x), e.add(x, 1.0)))
    return e.mul(atan(e, e.div(x, e.add(cosine, 1.0))), 2.0)


def _acos(e: Emitter, x: Tensor) -> Tensor:
    return e.sub(math.pi / 2, asin(e, x))


def _tan(e: Emitter, x: Tensor) -> Tensor:
    return e.div(e.unary("ElementWiseSin", x), e.unary("ElementWiseCos", x))


def _sinh(e: Emitter, x: Tensor) -> Tensor:
    return e.mul(e.sub(_exp(e, x), _exp(e, e.mul(x, -1.0))), 0.5)


def _cosh(e: Emitter, x: Tensor) -> Tensor:
    return e.mul(e.add(_exp(e, x), _exp(e, e.mul(x, -1.0))), 0.5)


def _asinh(e: Emitter, x: Tensor) -> Tensor:
    size = _abs(e, x)
    scale = maximum(e, size, 1.0)  # x^2 + 1 is taken in units of its square, which float16 can hold
    part, unit = e.div(size, scale), e.div(1.0, scale)
    root = _sqrt(e, e.add(e.mul(part, part), e.mul(unit, unit)))
    return e.mul(_sign(e, x), _log(e, e.add(size, e.mul(scale, root))))


def _acosh(e: Emitter, x: Tensor) -> Tensor:
    return _log(e, e.add(x, e.mul(_sqrt(e, e.sub(x, 1.0)), _sqrt(e, e.add(x, 1.0)))))


def _atanh(e: Emitter, x: Tensor) -> Tensor:
    return e.mul(_log(e, e.div(e.add(x, 1.0), e.sub(1.0, x))), 0.5)


def erf(e: Emitter, x: Tensor) -> Tensor:
    """The error function by Abramowitz and Stegun 7.1.26."""
    size = _abs(e, x)
    t = e.div(1.0, e.add(e.mul(size, _ERF_P), 1.0))
    series = e.mul(t, polynomial(e, t, _ERF))
    tail = e.mul(series, _exp(e, e.mul(e.mul(size, size), -1.0)))
    return e.mul(_sign(e, x), e.sub(1.0, tail))


FUNCTIONS: dict[str, list[Form]] = {
    "Acos": [lambda e, x: _acos(e, x[0])],
    "Acosh": [lambda e, x: _acosh(e, x[0])],
    "Asin": [lambda e, x: asin(e, x[0])],
    "Asinh": [lambda e, x: _asinh(e, x[0])],
    "Atan": [Native("ElementWiseAtan"), lambda e, x: atan(e, x[0])],
    "Atanh": [lambda e, x: _atanh(e, x[0])],
    "Cos": [Native("ElementWiseCos")],
    "Cosh": [lambda e, x: _cosh(e, x[0])],
    "Erf": [lambda e, x: erf(e, x[0])],
    "Sin": [Native("ElementWiseSin")],
    "Sinh": [lambda e, x: _sinh(e, x[0])],
    "Tan": [lambda e, x: _tan(e, x[0])],
}


@lowers(*FUNCTIONS)
def function(e: Emitter, node: ir.Node) -> None:
    """The functions of `FUNCTIONS`.

    x: T[*D] -> y: T[*D]
    T: float; any order
    """
    elementwise(e, node, *FUNCTIONS[node.op_type])

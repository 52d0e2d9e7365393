# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""Activation functions: one QNN op where there is one, else composed of those."""

from __future__ import annotations

import math

import numpy as np
import onnx_ir as ir

from npukit.lowering.emitter import Emitter
from npukit.lowering.holding import channel_last
from npukit.lowering.registry import Unsupported, lowers
from npukit.qnn.graph import Encoding, Tensor

from .forms import (
    Form,
    Native,
    attribute_float,
    elementwise,
    exponential,
    in_float,
    in_float_with,
    maximum,
    minimum,
    squashed,
)
from .special import erf

SIMPLE = ("Sigmoid", "Tanh")


def _neuron(operation: str, **params: float) -> Native:
    return Native("ElementWiseNeuron", {"operation": operation, **params})


def _clipped(e: Emitter, x: Tensor, low: float, high: float) -> Tensor:
    return e.unary("ReluMinMax", x, min_value=low, max_value=high)


@lowers(*SIMPLE)
def simple(e: Emitter, node: ir.Node) -> None:
    """The activations of `SIMPLE`.

    x: T[*D] -> y: T[*D]
    T: float, or quantized; any order
    """
    if e.for_integers:
        elementwise(e, node, Native(node.op_type))
    else:
        elementwise(e, node, lambda e, x: squashed(e, node.op_type, x[0]))


@lowers("Relu")
def relu(e: Emitter, node: ir.Node) -> None:
    """max(x, 0).

    x: T[*D] -> y: T[*D]
    T: float, integer, or quantized; any order
    """
    if e.is_float(node.inputs[0]):
        mark = e.mark()
        encoding = e.output(node.outputs[0]).encoding
        e.rollback(mark)
        if encoding is not None and encoding.offset != 0:
            in_float_with(e, "quantized_relu_ends_at_code_0")
        elementwise(e, node, Native("Relu"))
    else:
        elementwise(e, node, lambda e, x: maximum(e, x[0], 0), in_float(Native("Relu")))


def _slope(e: Emitter, x: Tensor, alpha: float) -> Tensor:
    """Alpha as a constant [1] of x's kind: codes with an encoding of their own where x is quantized."""
    if not x.dtype.is_quantized:
        return e.static(np.array([alpha], x.dtype.numpy), x.dtype)
    most = (1 << x.dtype.bits) - 1
    encoding = Encoding.per_tensor(abs(alpha) / most or 1.0, -most if alpha < 0 else 0)
    return e.static(np.array([most if alpha > 0 else 0], x.dtype.numpy), x.dtype, encoding, hint="slope")


@lowers("LeakyRelu")
def leaky_relu(e: Emitter, node: ir.Node) -> None:
    """X where positive, alpha * x elsewhere.

    x: T[*D] -> y: T[*D]
    T: float, or quantized; any order
    """
    alpha = attribute_float(node, "alpha", 0.01)

    def native() -> None:
        x, perm = e.held(node.inputs[0])
        y = e.output(node.outputs[0], perm)
        e.emit("Prelu", [x, _slope(e, x, alpha)], [y])

    def composed(e: Emitter, x: list[Tensor]) -> Tensor:
        return _two_sided(e, x[0], e.like(alpha, x[0]))

    e.forms(native, lambda: elementwise(e, node, composed))


def _two_sided(e: Emitter, x: Tensor, slope: Tensor) -> Tensor:
    """max(x, 0) + slope * min(x, 0), any number type."""
    return e.add(maximum(e, x, 0), e.mul(minimum(e, x, 0), slope))


@lowers("PRelu")
def prelu(e: Emitter, node: ir.Node) -> None:
    """X where positive, slope * x elsewhere.

    x: T[*D], slope: T[*E] -> y: T[*D]
    T: float, integer, or quantized; E broadcasts to D; per-channel slopes [C,1,...] turn x channels last
    """
    x, slope = node.inputs[0], node.inputs[1]
    rank = e.rank(x)
    slope_shape = e.shape(slope)
    size = int(np.prod(slope_shape))
    padded = (1,) * (rank - len(slope_shape)) + slope_shape

    def per_channel() -> None:
        channels = e.shape(x)[1] if rank > 1 else 1
        if not e.is_float(x) or (size != 1 and (size != channels or rank < 2 or padded[1] != channels)):
            raise Unsupported("a slope that is not per channel")
        perm = channel_last(rank) if size != 1 else e.order(x)
        axis = 0 if size == channels else None
        e.emit("Prelu", [e.get(x, perm), e.reshape(e.get(slope), (size,), axis)], [e.output(node.outputs[0], perm)])

    def composed(e: Emitter, t: list[Tensor]) -> Tensor:
        return _two_sided(e, t[0], t[1])

    forms: list[Form] = [composed] if e.is_float(x) else [composed, in_float(composed)]
    e.forms(per_channel, lambda: elementwise(e, node, *forms))


@lowers("Elu")
def elu(e: Emitter, node: ir.Node) -> None:
    """X where positive, alpha * (exp(x) - 1) elsewhere.

    x: T[*D] -> y: T[*D]
    T: float, or quantized; any order
    """
    alpha = attribute_float(node, "alpha", 1.0)
    elementwise(e, node, Native("Elu", {"alpha": alpha}), lambda e, x: _elu(e, x[0], alpha))


@lowers("Selu")
def selu(e: Emitter, node: ir.Node) -> None:
    """Gamma * Elu(x, alpha).

    x: T[*D] -> y: T[*D]
    T: float; any order
    """
    alpha = attribute_float(node, "alpha", 1.67326319217681884765625)
    gamma = attribute_float(node, "gamma", 1.05070102214813232421875)
    elementwise(
        e,
        node,
        lambda e, x: e.mul(e.unary("Elu", x[0], alpha=alpha), gamma),
        lambda e, x: e.mul(_elu(e, x[0], alpha), gamma),
    )


def _elu(e: Emitter, x: Tensor, alpha: float) -> Tensor:
    """max(x, 0) + alpha * (exp(min(x, 0)) - 1)."""
    below = exponential(e, minimum(e, x, 0.0))
    return e.add(e.unary("Relu", x), e.mul(e.sub(below, 1.0), alpha))


@lowers("Celu")
def celu(e: Emitter, node: ir.Node) -> None:
    """max(x, 0) + min(0, alpha * (exp(x / alpha) - 1)).

    x: T[*D] -> y: T[*D]
    T: float; any order
    """
    alpha = attribute_float(node, "alpha", 1.0)

    def run(e: Emitter, x: list[Tensor]) -> Tensor:
        below = exponential(e, e.mul(minimum(e, x[0], 0.0), 1.0 / alpha))
        return e.add(e.unary("Relu", x[0]), e.mul(e.sub(below, 1.0), alpha))

    forms: list[Form] = [run]
    if alpha == 1.0:
        forms.insert(0, Native("Elu", {"alpha": 1.0}))
    elementwise(e, node, *forms)


@lowers("Gelu")
def gelu(e: Emitter, node: ir.Node) -> None:
    """Gaussian error linear unit; `approximate` none by the error function or tanh.

    x: T[*D] -> y: T[*D]
    T: float, or quantized with approximate none; any order
    """
    if node.attributes.get_string("approximate", "none") == "tanh":
        inner, cubic = 2 * math.sqrt(2 / math.pi), 0.044715

        def by_sigmoid(e: Emitter, x: list[Tensor]) -> Tensor:
            # 0.5 (1 + tanh(u)) = Sigmoid(2 u) with u = sqrt(2/pi) (x + 0.044715 x^3)
            bent = e.add(e.mul(e.mul(x[0], x[0]), inner * cubic), inner)
            return e.mul(x[0], squashed(e, "Sigmoid", e.mul(x[0], bent)))

        elementwise(e, node, by_sigmoid)
        return

    def by_erf(e: Emitter, x: list[Tensor]) -> Tensor:
        return e.mul(e.mul(x[0], 0.5), e.add(erf(e, e.mul(x[0], math.sqrt(0.5))), 1.0))

    in_float_with(e, "quantized_relu_ends_at_code_0")
    elementwise(e, node, Native("Gelu"), by_erf)


@lowers("HardSigmoid")
def hard_sigmoid(e: Emitter, node: ir.Node) -> None:
    """Alpha * x + beta clipped to [0, 1].

    x: T[*D] -> y: T[*D]
    T: float, or quantized; any order
    """
    in_float_with(e, "quantized_neuron_fails")
    alpha, beta = attribute_float(node, "alpha", 0.2), attribute_float(node, "beta", 0.5)
    elementwise(
        e,
        node,
        _neuron("HARD_SIGMOID", alpha=alpha, beta=beta),
        lambda e, x: _clipped(e, e.add(e.mul(x[0], alpha), beta), 0.0, 1.0),
    )


@lowers("HardSwish")
def hard_swish(e: Emitter, node: ir.Node) -> None:
    """X * (x / 6 + 1/2 clipped to [0, 1]).

    x: T[*D] -> y: T[*D]
    T: float, or quantized; any order
    """
    elementwise(
        e,
        node,
        Native("HardSwish"),
        lambda e, x: e.mul(x[0], _clipped(e, e.add(e.mul(x[0], 1 / 6), 0.5), 0.0, 1.0)),
    )


def softplus_tensor(e: Emitter, x: Tensor) -> Tensor:
    """log(1 + exp(x)) without overflow: max(x, 0) + log(1 + exp(-|x|))."""
    tail = exponential(e, e.mul(e.unary("ElementWiseAbs", x), -1.0))
    return e.add(e.unary("Relu", x), e.unary("ElementWiseLog", e.add(tail, 1.0)))


@lowers("Softplus")
def softplus(e: Emitter, node: ir.Node) -> None:
    """log(1 + exp(x)).

    x: T[*D] -> y: T[*D]
    T: float, or quantized; any order
    """
    in_float_with(e, "quantized_neuron_fails")
    # a threshold of -1, which should switch it off, returns x above -1 on CPU; from 20 on it is x in float32 anyway
    native: list[Form] = [
        Native("ElementWiseSoftplus", {"beta": 1.0, "threshold": 20.0}),
        _neuron("SOFTPLUS", beta=1.0, threshold=20.0),
    ]
    if "softplus_is_coarse" in e.quirks and not e.for_integers:
        native = []
    elementwise(e, node, *native, lambda e, x: softplus_tensor(e, x[0]))


@lowers("Softsign")
def softsign(e: Emitter, node: ir.Node) -> None:
    """X / (1 + |x|).

    x: T[*D] -> y: T[*D]
    T: float; any order
    """
    elementwise(e, node, lambda e, x: e.div(x[0], e.add(e.unary("ElementWiseAbs", x[0]), 1.0)))


@lowers("Mish")
def mish(e: Emitter, node: ir.Node) -> None:
    """X * tanh(log(1 + exp(x))).

    x: T[*D] -> y: T[*D]
    T: float; any order
    """
    elementwise(e, node, lambda e, x: e.mul(x[0], squashed(e, "Tanh", softplus_tensor(e, x[0]))))


@lowers("Swish")
def swish(e: Emitter, node: ir.Node) -> None:
    """X * Sigmoid(alpha * x).

    x: T[*D] -> y: T[*D]
    T: float; any order
    """
    alpha = attribute_float(node, "alpha", 1.0)

    def compute(e: Emitter, x: list[Tensor]) -> Tensor:
        return e.mul(x[0], squashed(e, "Sigmoid", x[0] if alpha == 1.0 else e.mul(x[0], alpha)))

    elementwise(e, node, compute)


@lowers("ThresholdedRelu")
def thresholded_relu(e: Emitter, node: ir.Node) -> None:
    """X where it is above alpha, else 0.

    x: T[*D] -> y: T[*D]
    T: float; any order
    """
    alpha = attribute_float(node, "alpha", 1.0)
    elementwise(
        e,
        node,
        lambda e, x: e.select(e.compare("ElementWiseGreater", x[0], alpha), x[0], 0.0),
        lambda e, x: e.mul(x[0], e.unary("ElementWiseSign", e.unary("Relu", e.sub(x[0], alpha)))),
    )


@lowers("Shrink")
def shrink(e: Emitter, node: ir.Node) -> None:
    """X + bias below -lambd, x - bias above lambd, 0 between.

    x: T[*D] -> y: T[*D]
    T: float; integers through float; any order
    """
    bound, bias = attribute_float(node, "lambd", 0.5), attribute_float(node, "bias", 0.0)

    def run(e: Emitter, t: list[Tensor]) -> Tensor:
        x = t[0]
        above = e.compare("ElementWiseGreater", x, bound)
        below = e.compare("ElementWiseLess", x, -bound)
        inner = e.select(below, e.add(x, bias), 0.0)
        return e.select(above, e.sub(x, bias), inner)

    elementwise(e, node, run if e.is_float(node.inputs[0]) else in_float(run))

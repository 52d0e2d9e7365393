# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""Rows for activation functions."""

from __future__ import annotations

import numpy as np

from . import CPU, HTP, RAISE, OpCase

ALL = (CPU, HTP, RAISE)
X = [("x", "float32", (2, 3, 4))]


def _row(id: str, op: str, *expect: str, **attrs: object) -> OpCase:
    return OpCase(id, op, X, attrs, span=(-4, 4), expect_ops=expect or None)


def _prelu(id: str, shape: tuple[int, ...], *expect: str, backends: tuple[str, ...] = ALL) -> OpCase:
    slope = np.linspace(0.1, 0.9, int(np.prod(shape)), dtype=np.float32).reshape(shape)
    inputs = [("x", "float32", (1, 3, 2, 2))]
    return OpCase(id, "PRelu", inputs, constants={"slope": slope}, expect_ops=expect or None, backends=backends)


CASES = [
    _row("relu", "Relu", "Relu"),
    _row("sigmoid", "Sigmoid", "Sigmoid"),
    _row("tanh", "Tanh", "Tanh"),
    _row("leaky_relu", "LeakyRelu", "Prelu", alpha=0.2),
    _row("elu", "Elu", "Elu", alpha=2.0),
    _row("selu", "Selu", "Elu", "ElementWiseMultiply"),
    _row("celu", "Celu", alpha=2.0),
    _row("celu_one", "Celu", "Elu"),
    _row("gelu", "Gelu", "Gelu"),
    _row("hard_sigmoid", "HardSigmoid", "ElementWiseNeuron", alpha=0.3, beta=0.4),
    _row("hard_swish", "HardSwish", "HardSwish"),
    _row("softsign", "Softsign"),
    _row("swish", "Swish", alpha=1.5),
    _row("thresholded_relu", "ThresholdedRelu", alpha=0.7),
    _row("shrink", "Shrink", lambd=1.0, bias=0.5),
    *(OpCase(op.lower(), op, [("x", "float32", (40,))], span=(-9, 9), backends=ALL) for op in ("Softplus", "Mish")),
    OpCase("gelu_tanh", "Gelu", [("x", "float32", (40,))], {"approximate": "tanh"}, span=(-60, 60), backends=ALL),
    OpCase("relu_int", "Relu", [("x", "int32", (6,))], span=(-9, 9), backends=ALL),
    _prelu("prelu_single", (1,), "Prelu"),
    _prelu("prelu_channel", (3, 1, 1), "Transpose", "Prelu", "Transpose"),
    _prelu("prelu_full", (3, 2, 2)),
    _prelu("prelu_last", (2,), backends=(CPU, RAISE)),
    OpCase("prelu_int", "PRelu", [("x", "int32", (6,)), ("slope", "int32", (6,))], span=(-9, 9), backends=(CPU, RAISE)),
]

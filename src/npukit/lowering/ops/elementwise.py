# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""Elementwise ops of one and two inputs: tables where an op is only renamed, functions for the rest."""

from __future__ import annotations

import onnx_ir as ir

from npukit.lowering.emitter import Emitter
from npukit.lowering.registry import lowers

UNARY = {  # ONNX op -> QNN op: one input, no attributes, any axis order
    "Abs": "ElementWiseAbs",
    "Ceil": "ElementWiseCeil",
    "Cos": "ElementWiseCos",
    "Exp": "ElementWiseExp",
    "Floor": "ElementWiseFloor",
    "Log": "ElementWiseLog",
    "Neg": "ElementWiseNeg",
    "Relu": "Relu",
    "Round": "ElementWiseRound",
    "Sigmoid": "Sigmoid",
    "Sign": "ElementWiseSign",
    "Sin": "ElementWiseSin",
    "Sqrt": "ElementWiseSquareRoot",
    "Tanh": "Tanh",
}
ARITHMETIC = {  # ONNX op -> QNN op: two broadcasting inputs, output of their type
    "Add": "ElementWiseAdd",
    "Div": "ElementWiseDivide",
    "Mul": "ElementWiseMultiply",
    "Sub": "ElementWiseSubtract",
}


@lowers(*UNARY)
def unary(e: Emitter, node: ir.Node) -> None:
    """The ops of `UNARY`.

    x: T[*D] -> y: T[*D]
    T: float; int32 where the op has it; any order
    """
    x, perm = e.held(node.inputs[0])
    e.emit(UNARY[node.op_type], [x], [e.output(node.outputs[0], perm)])


@lowers(*ARITHMETIC)
def arithmetic(e: Emitter, node: ir.Node) -> None:
    """The ops of `ARITHMETIC`.

    a: T[*A], b: T[*B] -> y: T[*broadcast(A,B)]
    T: float, int32; any order
    """
    (a, b), perm = e.aligned(node.inputs)
    e.emit(ARITHMETIC[node.op_type], [a, b], [e.output(node.outputs[0], perm)])

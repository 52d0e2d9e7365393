# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""Matrix products."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from npukit.lowering.emitter import Emitter
from npukit.lowering.registry import lowers

from .conv import zero_bias


@lowers("Gemm")
def gemm(e: Emitter, node: ir.Node) -> None:
    """Y = alpha * A' * B' + beta * C.

    a: T[M,K], b: T[K,N], c: T[*]? -> y: T[M,N]
    T: float, or quantized with constant b
    """
    alpha, beta = node.attributes.get_float("alpha", 1.0), node.attributes.get_float("beta", 1.0)
    a = e.get(node.inputs[0], (1, 0) if node.attributes.get_int("transA", 0) else None)
    b = e.get(node.inputs[1], None if node.attributes.get_int("transB", 0) else (1, 0))
    c = node.inputs[2] if len(node.inputs) > 2 else None
    width = b.shape[0]
    y = e.output(node.outputs[0])
    if alpha == 1.0 and beta == 1.0 and (c is None or e.constant(c) is not None and _is_row(e.shape(c), width)):
        bias = e.reshape(e.get(c), (width,), axis=0) if c is not None else None
        if bias is None:
            bias = zero_bias(e, a, b, width) if e.quantized else e.static(np.zeros(width, np.float32), hint="bias")
        if bias.shape != (width,):
            bias = e.static(np.broadcast_to(bias.data, (width,)).copy())  # type: ignore[arg-type]
        e.emit("FullyConnected", [a, b, bias], [y])
        return
    product = e.emit("MatMul", [a, b], [e.temp(y.shape, y.dtype)], transpose_in0=False, transpose_in1=True)
    if alpha != 1.0:
        product = e.mul(product, alpha)
    if c is not None and beta != 0.0:
        addend = e.get(c)
        product = e.add(product, addend if beta == 1.0 else e.mul(addend, beta))
    e.bind(node.outputs[0], product)


def _is_row(shape: tuple[int, ...], width: int) -> bool:
    return shape in ((width,), (1, width))

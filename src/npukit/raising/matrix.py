# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""Matrix products and rotations of the last axis."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from npukit.raising.emit import Emit
from npukit.raising.registry import raises


@raises("FullyConnected")
def _fully_connected(e: Emit) -> ir.Value:
    """x: [batch..., n] flattened to [batch, n], w: [m, n] -> x @ w.T + b, [batch, m] or [batch..., m] (keep_dims)."""
    units, width = e.shape(1)
    x = e.real(0)
    if len(e.shape(0)) != 2 or e.shape(0)[1] != width:
        x = e.reshape(x, [-1, width])
    y = e.call("Gemm", x, e.real(1), e.bias(2), transB=1)
    return y if len(e.out_shape()) == 2 and not e.flag("keep_dims") else e.reshape(y, e.out_shape())


@raises("MatMul")
def _matmul(e: Emit) -> ir.Value:
    """a: [..., m, k], b: [..., k, n], either with its last two axes swapped if asked for, -> [..., m, n] + bias [n]."""
    sides = []
    for index, name in enumerate(("transpose_in0", "transpose_in1")):
        rank = len(e.shape(index))
        perm = [*range(rank - 2), rank - 1, rank - 2]
        sides.append(e.weight(index, perm) if rank > 1 and e.flag(name, False) else e.real(index))
    y = e.call("MatMul", *sides)
    bias = e.bias(2)
    return y if bias is None else e.call("Add", y, bias)


@raises("HadamardTransform")
def _hadamard(e: Emit) -> ir.Value:
    """The last axis times the Sylvester Hadamard matrix (entries +-1) times `scale`."""
    size = e.shape()[-1]
    if size & (size - 1):
        raise e.error(f"a Hadamard transform of {size}, which is no power of two")
    matrix = np.ones((1, 1), np.float32)
    while len(matrix) < size:
        matrix = np.block([[matrix, matrix], [matrix, -matrix]])
    return e.call("MatMul", e.real(), (matrix * np.float32(e.scalar("scale", 1.0))).astype(np.float32))


@raises("RotaryEmbedding")
def _rotary(e: Emit) -> ir.Value:
    """x: [B, heads, S, D], cos and sin: [max, R/2] with position_ids [B, S], else [B, S, R/2]."""
    batch, heads, seq, size = e.shape()
    rotary = e.integer("rotary_embedding_dim", 0) or size
    half = rotary // 2
    x = e.real()
    tables = []
    for index in (1, 2):
        table = e.real(index)
        if e.has(3):
            table = e.call("Gather", table, e.cast(e.real(3), ir.DataType.INT64), axis=0)
        tables.append(e.reshape(table, [batch, 1, seq, half]))
    cos, sin = tables
    turned = e.call("Slice", x, [0], [rotary], [3]) if rotary < size else x
    if e.flag("interleaved", False):
        pairs = e.reshape(turned, [batch, heads, seq, half, 2])
        first, second = (e.call("Gather", pairs, np.int64(i), axis=4) for i in (0, 1))
    else:
        first, second = e.calls("Split", turned, outputs=2, axis=3, num_outputs=2)
    low = e.call("Sub", e.call("Mul", cos, first), e.call("Mul", sin, second))
    high = e.call("Add", e.call("Mul", sin, first), e.call("Mul", cos, second))
    if e.flag("interleaved", False):
        shape = [batch, heads, seq, half, 1]
        joined = e.reshape(
            e.call("Concat", e.reshape(low, shape), e.reshape(high, shape), axis=4), [batch, heads, seq, rotary]
        )
    else:
        joined = e.call("Concat", low, high, axis=3)
    if rotary == size:
        return joined
    return e.call("Concat", joined, e.call("Slice", x, [rotary], [size], [3]), axis=3)

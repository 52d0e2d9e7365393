# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""Products of matrices, embeddings and normalizations along the channels."""

from __future__ import annotations

from npukit.frontends.tflite.builder import Builder
from npukit.frontends.tflite.registry import Refused, reads


@reads("FULLY_CONNECTED")
def fully_connected(b: Builder) -> None:
    """Input [*, I] flattened to rows, w [O, I], bias [O] -> [*, O]."""
    if b.op.get("WeightsFormat", 0):
        raise Refused("shuffled weights")
    if b.rank(1) != 2:
        raise Refused(f"weights of {b.rank(1)} axes")
    x, width = b.x(0), b.shape(1)[1]
    if b.rank(0) != 2 or b.shape(0)[-1] != width:
        x = b.reshape(x, (-1, width))
    y = b.node("Gemm", x, b.weight(1, (0, 1)), b.bias(2, 0, 1), transB=1)
    shape = b.result().shape
    if len(shape) != 2:
        y = b.reshape(y, (-1, *shape[1:]) if shape else ())
    b.set(y, fused=True)


@reads("BATCH_MATMUL")
def batch_matmul(b: Builder) -> None:
    """Either operand may be transposed first."""
    operands = []
    for i, turned in ((0, b.op.get("AdjX", False)), (1, b.op.get("AdjY", False))):
        rank = b.rank(i)
        perm = [*range(rank - 2), rank - 1, rank - 2] if turned else list(range(rank))
        operands.append(b.weight(i, perm))
    b.set(b.node("MatMul", *operands))


@reads("EMBEDDING_LOOKUP")
def embedding_lookup(b: Builder) -> None:
    """Rows of a table."""
    b.set(b.node("Gather", b.x(1), b.x(0), axis=0))


@reads("SOFTMAX")
def softmax(b: Builder) -> None:
    """Over the last axis, of x * beta."""
    x, beta = b.x(), float(b.op.get("Beta", 1.0))
    if beta != 1:
        x = b.node("Mul", x, b.scalar(beta))
    b.set(b.node("Softmax", x, axis=-1))


@reads("LOG_SOFTMAX")
def log_softmax(b: Builder) -> None:
    """Over the last axis."""
    b.set(b.node("LogSoftmax", b.x(), axis=-1))


@reads("L2_NORMALIZATION")
def l2_normalization(b: Builder) -> None:
    """Rows of the last axis to length 1."""
    b.set(b.node("LpNormalization", b.x(), axis=b.rank() - 1, p=2), fused=True)


@reads("LOCAL_RESPONSE_NORMALIZATION")
def local_response_normalization(b: Builder) -> None:
    """ONNX divides alpha by the window, TensorFlow does not."""
    size = 2 * int(b.op.get("Radius", 5)) + 1
    alpha, beta, bias = (float(b.op.get(name, value)) for name, value in (("Alpha", 1), ("Beta", 0.5), ("Bias", 1)))
    y = b.node("LRN", b.first(b.x()), size=size, alpha=alpha * size, beta=beta, bias=bias)
    b.set(b.last(y))

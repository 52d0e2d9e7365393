# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""Matrix products."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx_ir as ir

from npukit.lowering.emitter import Emitter
from npukit.lowering.registry import Unsupported, lowers
from npukit.qnn.graph import Tensor

from .conv import bias_of
from .movement import broadcast
from .reduce import reduced


def matmul(e: Emitter, a: Tensor, b: Tensor, out: Tensor | None = None, transpose_b: bool = False) -> Tensor:
    """Multiply a and b over the last two axes, leading axes broadcast; ranks equal, or b of rank 2.

    The transpose parameters are always sent: HTP's validation crashes on a per-axis weight without them
    (shared/reference/qnn_more.md section 2).
    """
    columns = b.shape[-2] if transpose_b else b.shape[-1]
    if out is None:
        lead = np.broadcast_shapes(a.shape[:-2], b.shape[:-2])
        out = e.temp((*lead, a.shape[-2], columns), a.dtype)
    return e.emit("MatMul", [a, b], [out], transpose_in0=False, transpose_in1=transpose_b)


def batched_matmul(e: Emitter, a: Tensor, b: Tensor, transpose_b: bool = False) -> Tensor:
    """`matmul` in the form that the targets take: direct, leading axes expanded, or merged into one."""
    columns = b.shape[-2] if transpose_b else b.shape[-1]
    lead = np.broadcast_shapes(a.shape[:-2], b.shape[:-2])
    shape = (*lead, a.shape[-2], columns)

    def direct() -> Tensor:
        if a.shape[:-2] != b.shape[:-2] and "matmul_broadcast_wrong" in e.quirks:
            raise Unsupported("MatMul does not broadcast on a target")
        return matmul(e, a, b, None, transpose_b)

    def rows() -> Tensor:  # one matrix b for all: rows of a are one long matrix
        if int(np.prod(b.shape[:-2])) != 1:
            raise Unsupported("b has leading axes")
        flat = e.reshape(a, (int(np.prod(a.shape[:-1])), a.shape[-1]))
        return e.reshape(matmul(e, flat, e.reshape(b, b.shape[-2:]), None, transpose_b), shape)

    def merged() -> Tensor:
        count = int(np.prod(lead))
        left = e.reshape(broadcast(e, a, (*lead, *a.shape[-2:])), (count, *a.shape[-2:]))
        right = e.reshape(broadcast(e, b, (*lead, *b.shape[-2:])), (count, *b.shape[-2:]))
        return e.reshape(matmul(e, left, right, None, transpose_b), shape)

    return e.forms(direct, rows, merged)


@lowers("MatMul")
def matmul_(e: Emitter, node: ir.Node) -> None:
    """Matrix product with numpy's rules for vectors and leading axes.

    a: T[*A,M,K], b: T[*B,K,N] -> y: T[*broadcast(A,B),M,N]
    T: float; int32 through float; quantized with b of rank 2 or more
    """
    a_shape, b_shape = e.shape(node.inputs[0]), e.shape(node.inputs[1])
    y = node.outputs[0]
    if not e.is_float(node.inputs[0]):
        a, b = (e.cast(e.get(value), e.float_dtype) for value in node.inputs)
        e.bind(y, _product(e, a, b))
        return
    known = e.constant(node.inputs[1]) is not None

    def connected() -> None:
        """A constant matrix b: FullyConnected with b transposed, rows flattened."""
        a = e.get(node.inputs[0])
        w = e.get(node.inputs[1], (1, 0))
        bias = bias_of(e, None, a, w, b_shape[1])
        out = e.output(y)
        if len(a_shape) == 2:
            e.emit("FullyConnected", [a, w, bias], [out])
            return
        rows = (int(np.prod(a_shape[:-1])), a_shape[-1])
        flat = e.emit(
            "FullyConnected", [e.reshape(a, rows), w, bias], [e.temp((rows[0], b_shape[1]), out.dtype, out.encoding)]
        )
        e.emit("Reshape", [flat], [out])

    def direct() -> None:
        a, b = e.get(node.inputs[0]), e.get(node.inputs[1])
        if len(b_shape) < len(a_shape):
            b = e.reshape(b, (1,) * (len(a_shape) - len(b_shape)) + b_shape, axis=_axis_after(b, len(a_shape)))
        if a.shape[:-2] != b.shape[:-2] and "matmul_broadcast_wrong" in e.quirks:
            raise Unsupported("MatMul does not broadcast on a target")
        matmul(e, a, b, e.output(y))

    def composed() -> None:
        e.bind(y, _product(e, e.get(node.inputs[0]), e.get(node.inputs[1]), a_shape, b_shape))

    matrices = len(a_shape) >= 2 and len(b_shape) >= 2
    first = [connected] if known and len(b_shape) == 2 else []
    e.forms(*first, *([direct] if matrices else []), composed)


def _axis_after(b: Tensor, rank: int) -> int | None:
    return None if b.encoding is None or b.encoding.axis is None else b.encoding.axis + rank - b.rank


def _product(
    e: Emitter, a: Tensor, b: Tensor, a_shape: tuple[int, ...] | None = None, b_shape: tuple[int, ...] | None = None
) -> Tensor:
    """Multiply as numpy.matmul does: vectors get a unit axis, ranks are made equal."""
    a_shape, b_shape = a_shape or a.shape, b_shape or b.shape
    left = e.reshape(a, (1, *a_shape)) if len(a_shape) == 1 else a
    right = e.reshape(b, (*b_shape, 1)) if len(b_shape) == 1 else b
    rank = max(left.rank, right.rank)
    left = e.reshape(left, (1,) * (rank - left.rank) + left.shape)
    right = e.reshape(right, (1,) * (rank - right.rank) + right.shape)
    y = batched_matmul(e, left, right)
    shape = list(y.shape)
    if len(b_shape) == 1:
        shape.pop(-1)
    if len(a_shape) == 1:
        shape.pop(-1 if len(b_shape) == 1 else -2)
    return e.reshape(y, shape)


@lowers("Gemm")
def gemm(e: Emitter, node: ir.Node) -> None:
    """General product: alpha * A' * B' + beta * C.

    a: T[M,K], b: T[K,N], c: T[*]? -> y: T[M,N]
    T: float, or quantized with constant b
    """
    alpha, beta = node.attributes.get_float("alpha", 1.0), node.attributes.get_float("beta", 1.0)
    if not e.is_float(node.inputs[0]):
        raise Unsupported("Gemm on integers", kind="dtype cannot be held")
    a = e.get(node.inputs[0], (1, 0) if node.attributes.get_int("transA", 0) else None)
    b = e.get(node.inputs[1], None if node.attributes.get_int("transB", 0) else (1, 0))
    c = node.inputs[2] if len(node.inputs) > 2 else None
    width = b.shape[0]
    row = c is None or (e.constant(c) is not None and e.shape(c) in ((width,), (1, width)))

    def connected() -> None:
        if alpha != 1.0 or beta != 1.0 or not row or b.data is None:
            raise Unsupported("FullyConnected has a constant matrix and a bias")
        bias = e.reshape(bias_of(e, c, a, b, width), (width,), axis=0)
        e.emit("FullyConnected", [a, b, bias], [e.output(node.outputs[0])])

    def convolved() -> None:
        """A scale per output channel: targets that refuse it in FullyConnected take it in a 1 by 1 convolution."""
        if alpha != 1.0 or beta != 1.0 or not row or b.data is None or b.encoding is None or b.encoding.axis is None:
            raise Unsupported("only a matrix with a scale per channel")
        kernel = e.static(
            b.data.T.reshape(1, 1, b.shape[1], width), b.dtype, replace(b.encoding, axis=3), hint="kernel"
        )
        bias = e.reshape(bias_of(e, c, a, b, width), (width,), axis=0)
        y = e.output(node.outputs[0])
        place = e.temp((a.shape[0], 1, 1, width), y.dtype, y.encoding)
        pixels = e.reshape(a, (a.shape[0], 1, 1, a.shape[1]))
        ones = {"stride": [1, 1], "pad_amount": [[0, 0], [0, 0]], "dilation": [1, 1]}
        e.emit("Reshape", [e.emit("Conv2d", [pixels, kernel, bias], [place], group=1, **ones)], [y])

    def composed() -> None:
        product = matmul(e, a, b, transpose_b=True)
        if alpha != 1.0:
            product = e.mul(product, alpha)
        if c is not None and beta != 0.0:
            addend = e.get(c)
            product = e.add(product, addend if beta == 1.0 else e.mul(addend, beta))
        e.bind(node.outputs[0], product)

    e.forms(connected, convolved, composed)


@lowers("Einsum")
def einsum(e: Emitter, node: ir.Node) -> None:
    """Sums of products over named axes, two operands at a time: diagonals, sums, one batched product.

    inputs: T[*]... -> y: T[*]
    T: float
    """
    equation = node.attributes.get_string("equation").replace(" ", "")
    left, arrow, right = equation.partition("->")
    terms = left.split(",")
    ranks = [e.rank(value) for value in node.inputs]
    spare = [chr(ord("A") + i) for i in range(26) if chr(ord("A") + i) not in equation]
    most = max((rank - len(term.replace("...", "")) for term, rank in zip(terms, ranks, strict=True)), default=0)
    names = "".join(spare[:most])
    terms = [
        term.replace(
            "...", names[most - (rank - len(term.replace("...", ""))) :] if rank > len(term.replace("...", "")) else ""
        )
        for term, rank in zip(terms, ranks, strict=True)
    ]
    if arrow:
        result = right.replace("...", names)
    else:
        letters = [c for c in "".join(terms) if c not in names]
        result = names + "".join(sorted(c for c in set(letters) if letters.count(c) == 1))
    x, labels = _simple(e, e.get(node.inputs[0]), terms[0])
    for index, (value, term) in enumerate(zip(node.inputs[1:], terms[1:], strict=True), 1):
        other, other_labels = _simple(e, e.get(value), term)
        keep = set(result).union(*terms[index + 1 :])
        x, labels = _contract(e, x, labels, other, other_labels, keep)
    x, labels = _summed(e, x, labels, set(result))
    x = e.transpose(x, [labels.index(c) for c in result]) if len(result) > 1 else x
    e.bind(node.outputs[0], e.reshape(x, e.shape(node.outputs[0])))


def _simple(e: Emitter, x: Tensor, labels: str) -> tuple[Tensor, str]:
    """Give x with each label once: a repeated label takes the diagonal."""
    while len(set(labels)) < len(labels):
        label = next(c for c in labels if labels.count(c) > 1)
        first = labels.index(label)
        second = labels.index(label, first + 1)
        rest = [i for i in range(x.rank) if i not in (first, second)]
        size = x.shape[first]
        outer = [x.shape[i] for i in rest]
        flat = e.reshape(e.transpose(x, [*rest, first, second]), (int(np.prod(outer)), size * size))
        diagonal = e.slice(flat, 1, 0, size * size, size + 1) if size > 1 else flat
        x = e.reshape(diagonal, (*outer, size))
        labels = "".join(labels[i] for i in rest) + label
    return x, labels


def _summed(e: Emitter, x: Tensor, labels: str, keep: set[str]) -> tuple[Tensor, str]:
    """Sum x over the labels that are not kept."""
    axes = [i for i, c in enumerate(labels) if c not in keep]
    if not axes:
        return x, labels
    y = reduced(e, "ReduceSum", x, axes, keep=False)
    return y, "".join(c for c in labels if c in keep)


def _contract(e: Emitter, a: Tensor, a_labels: str, b: Tensor, b_labels: str, keep: set[str]) -> tuple[Tensor, str]:
    """One product: labels that both have are batch (kept) or contracted (not kept)."""
    a, a_labels = _summed(e, a, a_labels, keep | set(b_labels))
    b, b_labels = _summed(e, b, b_labels, keep | set(a_labels))
    both = [c for c in a_labels if c in b_labels]
    batch = [c for c in both if c in keep]
    inner = [c for c in both if c not in keep]
    rows = [c for c in a_labels if c not in both]
    columns = [c for c in b_labels if c not in both]
    size = {**dict(zip(b_labels, b.shape, strict=False)), **dict(zip(a_labels, a.shape, strict=False))}

    def count(letters: list[str]) -> int:
        return int(np.prod([size[c] for c in letters]))

    left = e.transpose(a, [a_labels.index(c) for c in batch + rows + inner])
    right = e.transpose(b, [b_labels.index(c) for c in batch + inner + columns])
    left = e.reshape(left, (count(batch), count(rows), count(inner)))
    right = e.reshape(right, (count(batch), count(inner), count(columns)))
    y = batched_matmul(e, left, right)
    labels = batch + rows + columns
    return e.reshape(y, [size[c] for c in labels]), "".join(labels)

# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""What a QNN graph costs to run, and the precision that it computes in."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable

from npukit.qnn.graph import DType, Graph, Op, TensorKind


def flops(graph: Graph) -> int:
    """Floating-point operations of the convolutions and matrix products of one run (a multiply-add counts as 2)."""
    return sum(_flops(op) for op in graph.ops)


def _flops(op: Op) -> int:
    if len(op.inputs) < 2 or op.inputs[0] is None or op.inputs[1] is None:
        return 0
    first, second, out = op.inputs[0].shape, op.inputs[1].shape, op.outputs[0].shape
    if op.type.startswith("TransposeConv"):
        return 2 * math.prod(first) * math.prod(second) // max(first[-1], 1)
    if op.type in ("Conv2d", "Conv3d", "DepthWiseConv2d"):  # weights [..., in, out]
        return 2 * math.prod(out) * math.prod(second) // max(second[-1], 1)
    if op.type == "FullyConnected":  # weights [out, in]
        return 2 * math.prod(out) * second[-1]
    if op.type == "MatMul":
        transposed = op.params.get("transpose_in0")
        return 2 * math.prod(out) * (first[-2] if transposed is not None and transposed.value else first[-1])
    if op.type in ("Lstm", "Gru"):
        weights = sum(math.prod(t.shape) for t in op.inputs[1:] if t is not None and t.kind is TensorKind.STATIC)
        return 2 * weights * math.prod(first[:-1])
    return 0


def op_counts(types: Iterable[str]) -> dict[str, int]:
    """How many ops there are of each type, the most frequent first."""
    return dict(sorted(Counter(types).items(), key=lambda item: (-item[1], item[0])))


def traffic(graph: Graph) -> int:
    """Bytes that the ops of one run read and write, each tensor counted where it is used: an estimate, no cache."""
    return sum(t.nbytes for op in graph.ops for t in (*op.inputs, *op.outputs) if t is not None)


def precision(graph: Graph) -> str:
    """The coarsest form that the graph's activations are held in: "float32", "float16", "int16" or "int8".

    "int4" where weights have 4 bits, which is coarser than any of these.
    """
    encodings = [t.encoding for t in graph.tensors() if t.encoding is not None]
    if any(encoding.bitwidth == 4 or encoding.block_scales is not None for encoding in encodings):
        return "int4"
    codes = _given_codes(graph)
    found = {t.dtype for t in graph.tensors() if t.kind is not TensorKind.STATIC and id(t) not in codes}
    widths = {d.bits for d in found if d.is_quantized}
    if widths:
        return "int8" if min(widths) <= 8 else "int16"
    return "float16" if DType.FLOAT_16 in found else "float32"


def _given_codes(graph: Graph) -> set[int]:
    """Ids of the inputs that are codes in the source too, moved or not: they are exact, whatever their width."""
    codes = {id(t) for t in graph.inputs if t.held is not None and "int" in t.held.dtype}
    for op in graph.ops:
        if op.type in ("Reshape", "Transpose", "StridedSlice") and id(op.inputs[0]) in codes:
            codes.update(id(t) for t in op.outputs)
    return codes


def coarser(precision: str, backend: str) -> str:
    """The precision on a backend: the HTP computes float32 graphs in float16."""
    return "float16" if backend in ("qnn-htp", "ort-qnn") and precision == "float32" else precision

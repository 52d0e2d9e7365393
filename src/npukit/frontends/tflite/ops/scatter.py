# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""Operators that write into a tensor: scatters, segments, updates of a slice, diagonals."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir

from npukit.frontends.tflite.builder import Builder
from npukit.frontends.tflite.registry import Refused, reads


def _numpy_type(b: Builder, i: int) -> np.dtype[Any]:
    """The type of input `i`'s real numbers."""
    dtype = ir.DataType.FLOAT if b.coded(b.tensor(i)) else b.tensor(i).dtype
    if dtype is None:
        raise Refused(f"values of {b.tensor(i).type_name}")
    return np.dtype(dtype.numpy())


@reads("SCATTER_ND")
def scatter_nd(b: Builder) -> None:
    """Onto zeros; what meets is added."""
    zeros = b.constant(b.filled(b.ints(2, "shape"), 0, _numpy_type(b, 1)))
    b.set(b.node("ScatterND", zeros, b.cast(b.x(0), ir.DataType.INT64), b.x(1), reduction="add"))


@reads("SPARSE_TO_DENSE")
def sparse_to_dense(b: Builder) -> None:
    """Values at constant positions, the rest a default."""
    indices, shape = np.array(b.ints(0, "positions")), b.ints(1, "shape")
    default = b.data(3)
    if default is None:
        raise Refused("its default is only known when it runs")
    count = indices.size // len(shape)
    values = b.x(2)
    if b.rank(2) == 0:
        values = b.node("Expand", values, b.vector([count]))
    filled = b.constant(b.filled(shape, default.reshape(()), _numpy_type(b, 3)))
    b.set(b.node("ScatterND", filled, b.constant(indices.reshape(count, len(shape))), values))


# what a segment without elements is
_SEGMENTS = {
    "SEGMENT_SUM": ("add", 0),
    "UNSORTED_SEGMENT_SUM": ("add", 0),
    "UNSORTED_SEGMENT_PROD": ("mul", 1),
    "UNSORTED_SEGMENT_MAX": ("max", -1),
    "UNSORTED_SEGMENT_MIN": ("min", 1),
}


@reads(*_SEGMENTS)
def segments(b: Builder) -> None:
    """Reductions over the rows that constant numbers put together."""
    reduction, start = _SEGMENTS[b.op.code]
    ids = np.array(b.ints(1, "segments"), np.int64)
    count = b.ints(2, "number of segments")[0] if b.has(2) else int(ids.max(initial=-1)) + 1
    dtype = _numpy_type(b, 0)
    if b.rank(1) != 1 or ids.min(initial=0) < 0 or ids.max(initial=-1) >= count:
        raise Refused("its segments are not numbers below their count, one a row")
    initial = b.filled((count, *b.shape(0)[1:]), start, dtype)
    if reduction in ("max", "min"):
        info: Any = np.finfo(initial.dtype) if dtype.kind == "f" else np.iinfo(initial.dtype)
        initial = np.full_like(initial, info.min if start < 0 else info.max)
    b.set(b.node("ScatterND", b.constant(initial), b.constant(ids.reshape(-1, 1)), b.x(0), reduction=reduction))


@reads("DYNAMIC_UPDATE_SLICE")
def dynamic_update_slice(b: Builder) -> None:
    """A block of the operand replaced, from a start that is moved inside."""
    shape, block = b.shape(0), b.shape(1)
    b.room(len(shape), *block)
    grid = np.stack(np.meshgrid(*(np.arange(n) for n in block), indexing="ij"), -1).astype(np.int64)
    room = b.vector(n - m for n, m in zip(shape, block, strict=True))
    start = b.node("Max", b.node("Min", b.integers(2), room), b.vector([0] * len(shape)))
    b.set(b.node("ScatterND", b.x(0), b.node("Add", b.constant(grid), start), b.x(1)))


@reads("MATRIX_DIAG")
def matrix_diag(b: Builder) -> None:
    """[..., n] -> [..., n, n]."""
    size = b.shape(0)[-1]
    b.room(size, size)
    column = b.node("Unsqueeze", b.x(0), b.vector([b.rank()]))
    zeros = b.constant(np.zeros((), _numpy_type(b, 0)))
    b.set(b.node("Where", b.constant(np.eye(size, dtype=np.bool_)), column, zeros))


@reads("MATRIX_SET_DIAG")
def matrix_set_diag(b: Builder) -> None:
    """[..., m, n] with another diagonal [..., min(m, n)]."""
    rows, columns = b.shape(0)[-2:]
    b.room(rows, columns)
    diagonal = b.node("Unsqueeze", b.x(1), b.vector([b.rank(1) if rows <= columns else b.rank(1) - 1]))
    b.set(b.node("Where", b.constant(np.eye(rows, columns, dtype=np.bool_)), diagonal, b.x(0)))

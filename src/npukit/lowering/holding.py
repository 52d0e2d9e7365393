# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""How source values are held in tensors: dtypes, axis orders, encodings, constants, parameters."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from npukit.lowering.registry import Unsupported
from npukit.qnn.graph import Array, DType, Encoding, Op, Param, Tensor
from npukit.qnn.opdefs import integer_range, opdef

Perm = tuple[int, ...]

# How a source dtype is held. Small and wide integers become INT_32: no backend computes on the others
# (shared/reference/qnn_more.md, sections 2 and 4); float kinds become the graph's float type.
INTEGERS = {
    *(ir.DataType.INT64, ir.DataType.INT32, ir.DataType.INT16, ir.DataType.INT8, ir.DataType.INT4, ir.DataType.INT2),
    *(ir.DataType.UINT64, ir.DataType.UINT32, ir.DataType.UINT16, ir.DataType.UINT8, ir.DataType.UINT4),
    ir.DataType.UINT2,
}
FLOATS = {ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16, ir.DataType.DOUBLE}


@dataclass(frozen=True)
class QuantizedConstant:
    """A constant that the source holds as integer codes: what DequantizeLinear reads."""

    codes: Array
    dtype: DType
    encoding: Encoding

    def dequantized(self) -> Array:
        """float32 values: (q + offset) * scale."""
        shape = [1] * self.codes.ndim
        if self.encoding.axis is not None:
            shape[self.encoding.axis] = -1
        scales = np.array(self.encoding.scales, np.float32).reshape(shape)
        offsets = np.array(self.encoding.offsets, np.int64).reshape(shape)
        return np.asarray((self.codes.astype(np.int64) + offsets).astype(np.float32) * scales)


def as_param(op_type: str, name: str, value: Any) -> Param:
    """A parameter of an op with the dtype of its definition; enums by name. Raises KeyError for an unknown name."""
    if isinstance(value, Param):
        return value
    definition = opdef(op_type).params[name]
    if isinstance(value, str):
        value = definition.values[value]
    dtype = definition.dtype or DType.FLOAT_32
    if definition.tensor:
        return Param(dtype, np.array(value, dtype.numpy))
    return Param(dtype, float(value) if dtype.is_float else bool(value) if dtype is DType.BOOL_8 else int(value))


def dtype_name(dtype: ir.DataType) -> str:
    """The numpy-style name of an ONNX dtype ("float32", "int64"), as `Held.dtype` has it."""
    return {ir.DataType.FLOAT: "float32", ir.DataType.DOUBLE: "float64"}.get(dtype, dtype.name.lower())


def channel_last(rank: int) -> Perm | None:
    """The order [N, spatial..., C] of a source value [N, C, spatial...]; None below rank 3."""
    return (0, *range(2, rank), 1) if rank > 2 else None


def normal(perm: Perm | None) -> Perm | None:
    """An order as it is compared: None for the source's own."""
    return None if perm is None or perm == tuple(range(len(perm))) else tuple(perm)


def moved(encoding: Encoding | None, perm: Perm | None) -> Encoding | None:
    """The encoding after a permutation of axes: a channel axis moves along."""
    if encoding is None or encoding.axis is None or perm is None:
        return encoding
    return Encoding(**{**encoding.__dict__, "axis": perm.index(encoding.axis)})


def as_held(array: Array, dtype: DType, name: str) -> Array:
    """Constant data in the numpy dtype of `dtype`; integers are checked against its range."""
    wanted = dtype.numpy
    if array.dtype == wanted:
        return array
    if wanted.kind in "iu" and array.dtype.kind in "iu" and array.size:
        least, most = integer_range(dtype)
        low, high = int(array.min()), int(array.max())
        if low < least or high > most:
            raise Unsupported(
                f"constant {name!r} holds {low if low < least else high}, beyond {dtype.name}",
                kind="dtype cannot be held",
            )
    with np.errstate(over="ignore"):
        return array.astype(wanted)


def validation_key(op: Op) -> object:
    """What validation can depend on: dtypes, shapes, encodings, params and the data of small constants."""

    def tensor(t: Tensor | None) -> object:
        if t is None:
            return None
        data = t.data.tobytes() if t.data is not None and t.data.size <= 64 else t.data is not None
        return (t.dtype, t.shape, t.encoding, data)

    params = tuple(
        (
            name,
            p.dtype,
            p.value.tobytes() + repr(p.value.shape).encode() if isinstance(p.value, np.ndarray) else p.value,
        )
        for name, p in sorted(op.params.items())
    )
    return (tuple(map(tensor, op.inputs)), tuple(map(tensor, op.outputs)), params)

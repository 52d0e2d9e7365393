# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""Encodings as numpy and ONNX have them: `real = (code + offset) * scale`, so zero_point = -offset."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from npukit.errors import GraphError
from npukit.qnn.graph import Array, DType, Encoding, Tensor

_FOUR_BITS = (DType.SFIXED_POINT_4, DType.UFIXED_POINT_4)


def storage_dtype(dtype: DType) -> np.dtype[np.generic]:
    """The numpy dtype of stored elements; GraphError for strings and undefined types."""
    if dtype in (DType.STRING, DType.UNDEFINED):
        raise GraphError(f"a {dtype.name} tensor has no numeric value")
    return dtype.numpy


def code_range(dtype: DType, encoding: Encoding | None) -> tuple[int, int]:
    """Lowest and highest code in use: those of the container, or of the encoding's bitwidth."""
    bits = encoding.bitwidth if encoding is not None and encoding.bitwidth else 4 if dtype in _FOUR_BITS else dtype.bits
    if storage_dtype(dtype).kind == "i":
        return -(1 << (bits - 1)), (1 << (bits - 1)) - 1
    return 0, (1 << bits) - 1


@dataclass(frozen=True)
class Linear:
    """An encoding that DequantizeLinear expresses: float32 scales, zero points in the codes' dtype, axis or None."""

    scales: Array
    zero_points: Array
    axis: int | None


def linear(dtype: DType, encoding: Encoding) -> Linear | None:
    """The encoding for DequantizeLinear; None where it has blocks or a zero point that does not fit."""
    if encoding.block_scales is not None or encoding.block_shape is not None or storage_dtype(dtype) == np.uint32:
        return None
    zeros = -np.asarray(encoding.offsets, np.int64)
    low, high = code_range(dtype, None)
    fits = bool(np.all((low <= zeros) & (zeros <= high)))
    if not fits or (dtype.bits == 32 and bool(np.any(zeros))):
        return None
    scales = np.asarray(encoding.scales, np.float32)
    zero_points = zeros.astype(storage_dtype(dtype))
    if encoding.axis is None:
        return Linear(scales.reshape(()), zero_points.reshape(()), None)
    return Linear(scales, zero_points, encoding.axis)


def normal_codes(tensor: Tensor) -> Array | None:
    """A static tensor's codes; those of narrow encodings that came as bare low bits get their sign back."""
    data, encoding = tensor.data, tensor.encoding
    if data is None or not tensor.dtype.is_quantized:
        return data
    low, high = code_range(tensor.dtype, encoding)
    if high - low + 1 >= 1 << tensor.dtype.bits:
        return data
    if data.size and low <= int(data.min()) and int(data.max()) <= high:
        return data
    bits = (high - low + 1).bit_length() - 1
    kept = np.bitwise_and(data.astype(np.int64), (1 << bits) - 1)
    if low < 0:
        kept = np.where(kept > high, kept - (1 << bits), kept)
    return kept.astype(data.dtype)


def dequantized(tensor: Tensor) -> Array:
    """The real values of a static tensor: float32 for quantized and bfloat16 data, else the data itself.

    Raises GraphError without data, or where a quantized tensor has no usable encoding.
    """
    data = normal_codes(tensor)
    if data is None:
        raise GraphError("a static tensor without data", where=f"tensor {tensor.name!r}")
    if tensor.dtype is DType.BFLOAT_16:
        return data.astype(np.float32)
    if not tensor.dtype.is_quantized:
        return data
    encoding = tensor.encoding
    if encoding is None:
        raise GraphError(f"{tensor.dtype.name} data without an encoding", where=f"tensor {tensor.name!r}")
    scale, offset = _grid(tensor, encoding)
    return np.asarray((data.astype(np.float64) + offset) * scale, np.float32)


def _grid(tensor: Tensor, encoding: Encoding) -> tuple[Array, Array]:
    """Scale and offset of every element, broadcastable onto the data."""
    scales = np.asarray(encoding.scales, np.float64)
    offsets = np.asarray(encoding.offsets, np.float64)
    if encoding.block_shape is not None:
        return _blocks(tensor, encoding.block_shape, scales), _blocks(tensor, encoding.block_shape, offsets)
    if encoding.axis is None:
        return scales.reshape(()), offsets.reshape(())
    shape = [1] * tensor.rank
    shape[encoding.axis] = len(scales)
    scale, offset = scales.reshape(shape), offsets.reshape(shape)
    if encoding.block_scales is not None:
        scale = scale * _expansion(tensor, encoding)
    return scale, offset


def _blocks(tensor: Tensor, block_shape: tuple[int, ...], values: Array) -> Array:
    """One value a block, row-major over blocks, spread over the elements (BLOCK)."""
    counts = [-(-dim // block) for dim, block in zip(tensor.shape, block_shape, strict=True)]
    grid = values.reshape(counts)
    for axis, (dim, block) in enumerate(zip(tensor.shape, block_shape, strict=True)):
        grid = np.repeat(grid, block, axis=axis).take(range(dim), axis=axis)
    return grid


def _expansion(tensor: Tensor, encoding: Encoding) -> Array:
    """Integer block scales spread over the elements (LPBQ), channels outer and blocks inner.

    Blocks run along the input-channel axis: the one before the channel axis, or after it when that is the first.
    """
    assert encoding.axis is not None
    assert encoding.block_scales is not None
    along = encoding.axis - 1 if encoding.axis > 0 else 1
    channels, dim = tensor.shape[encoding.axis], tensor.shape[along]
    count = encoding.blocks_per_axis or len(encoding.block_scales) // channels
    grid = np.asarray(encoding.block_scales, np.float64).reshape(channels, count)
    spread = np.repeat(grid, -(-dim // count), axis=1)[:, :dim]
    shape = [1] * tensor.rank
    shape[encoding.axis], shape[along] = channels, dim
    ordered = spread if encoding.axis < along else spread.T
    return ordered.reshape(shape)

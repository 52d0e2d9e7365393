# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""From a range of real values to an encoding, and from values to codes and back.

QNN's conventions: `real = (code + offset) * scale`; a range is widened to hold zero and to be at least MIN_RANGE wide;
zero is exactly a code; 2**bits - 1 steps make up the range (the reference guide prints 2**(bits - 1), its worked
examples use 2**bits - 1). Scales are float32 values. Codes are rounded half to even, as np.rint and QuantizeLinear do.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Any

import numpy as np

from npukit.errors import InputError, UsageError
from npukit.qnn.graph import Array, DType, Encoding, Tensor, TensorKind
from npukit.raising.encodings import code_range, dequantized

MIN_RANGE = 1e-4
"""Least width of an encoding's range (reference guide, Quantization)."""

BITS = (4, 8, 16, 32)

_LEAST_SCALE = float(np.finfo(np.float32).tiny)
_DTYPES = {
    np.dtype(np.int8): DType.SFIXED_POINT_8,
    np.dtype(np.int16): DType.SFIXED_POINT_16,
    np.dtype(np.int32): DType.SFIXED_POINT_32,
    np.dtype(np.uint8): DType.UFIXED_POINT_8,
    np.dtype(np.uint16): DType.UFIXED_POINT_16,
    np.dtype(np.uint32): DType.UFIXED_POINT_32,
}


@dataclass(frozen=True)
class Range:
    """An interval of real values, low <= high, both finite (InputError otherwise)."""

    low: float
    high: float

    def __post_init__(self) -> None:
        if not (math.isfinite(self.low) and math.isfinite(self.high)) or self.low > self.high:
            raise InputError(
                f"[{self.low}, {self.high}] is no range of values",
                hint="give finite numbers, the smaller first",
            )

    def merge(self, other: Range) -> Range:
        """The smallest range that holds both."""
        return Range(min(self.low, other.low), max(self.high, other.high))

    def widened(self, *, symmetric: bool = False) -> Range:
        """The range with zero in it and at least MIN_RANGE wide; `symmetric`: as far below zero as above."""
        if symmetric:
            reach = max(-self.low, self.high, MIN_RANGE / 2)
            return Range(-reach, reach)
        low = min(self.low, 0.0)
        return Range(low, max(self.high, 0.0, low + MIN_RANGE))


def float32_scale(scale: float) -> float:
    """The float32 value next to `scale`, never zero or subnormal (hardware takes those for zero)."""
    return max(float(np.float32(scale)), _LEAST_SCALE)


def check_bits(bits: int) -> None:
    """UsageError for a bit width that no QNN encoding has."""
    if bits not in BITS:
        raise UsageError(f"{bits} bits is no width of an encoding", hint=f"use one of {', '.join(map(str, BITS))}")


def encoding(
    range: Range,
    bits: int,
    *,
    symmetric: bool = False,
    signed: bool = False,
    steps: tuple[int, int] | None = None,
) -> Encoding:
    """The per-tensor encoding of `bits` that covers `range`.

    Args:
        range: the values to cover; widened to hold zero. At most half a step of it is cut at one end, where zero
            falls between two codes.
        bits: 4, 8, 16 or 32; fewer than a container has are the encoding's `bitwidth`.
        symmetric: zero in the middle: the offset is 0 (signed) or -2**(bits - 1), the largest magnitude gets the
            largest code.
        signed: codes from -2**(bits - 1) instead of from 0.
        steps: lowest and highest step in use, as `parse_steps` gives them: symmetric, with
            scale = (max - min) / (highest - lowest).

    Raises:
        UsageError: for a bit width or steps that cannot be.
    """
    check_bits(bits)
    half = 1 << (bits - 1)
    bitwidth = bits if bits < 8 else 0
    middle = 0 if signed else -half
    if steps is not None:
        low, high = checked_steps(steps, bits)
        wide = range.widened(symmetric=True)
        return Encoding.per_tensor(float32_scale((wide.high - wide.low) / (high - low)), middle, bitwidth)
    wide = range.widened(symmetric=symmetric)
    if symmetric:
        return Encoding.per_tensor(float32_scale(wide.high / (half - 1)), middle, bitwidth)
    count = 2 * half - 1
    zero = int(np.rint(-wide.low / (wide.high - wide.low) * count))
    scale = float32_scale((wide.high - wide.low) / count)
    return Encoding.per_tensor(scale, (half if signed else 0) - zero, bitwidth)


def parse_steps(text: str) -> tuple[int, int]:
    """`--restrict-quantization-steps "MIN MAX"`: two hexadecimal integers, the sign written out ("-0x80 0x7F").

    Raises:
        UsageError: for other text, and where MIN is not below zero or MAX not above.
    """
    words = text.replace(",", " ").split()
    if len(words) != 2 or not all(re.fullmatch(r"[+-]?(0[xX])?[0-9a-fA-F]{1,8}", word) for word in words):
        raise UsageError(f"cannot read the steps {text!r}", hint='write two hexadecimal numbers: "-0x80 0x7F"')
    low, high = (int(word, 16) for word in words)
    return checked_steps((low, high), 32)


def checked_steps(steps: tuple[int, int], bits: int) -> tuple[int, int]:
    """The steps as they are; UsageError where zero is not between them or `bits` do not hold them."""
    low, high = steps
    half = 1 << (bits - 1)
    if not -half <= low < 0 < high < half:
        raise UsageError(
            f"quantization steps from {low:#x} to {high:#x} do not fit {bits} bits",
            hint=f"the lowest is between {-half:#x} and -0x1, the highest between 0x1 and {half - 1:#x}",
        )
    return low, high


def dtype_of(dtype: DType | np.dtype[Any] | type) -> DType:
    """The quantized DType of a QNN or numpy dtype (int8 is SFIXED_POINT_8); UsageError for one without codes."""
    found = dtype if isinstance(dtype, DType) else _DTYPES.get(np.dtype(dtype))
    if found is None or not found.is_quantized:
        raise UsageError(f"{dtype} does not hold quantized codes")
    return found


def covered(encoding: Encoding, dtype: DType) -> Range:
    """The values that a per-tensor encoding represents, from its lowest to its highest code."""
    low, high = code_range(dtype, encoding)
    return Range((low + encoding.offset) * encoding.scale, (high + encoding.offset) * encoding.scale)


def codes(
    values: Array, encoding: Encoding, dtype: DType | np.dtype[Any] | type, *, limits: tuple[int, int] | None = None
) -> Array:
    """The nearest code of each value, saturated; shape of `values`, numpy dtype of `dtype`.

    Args:
        values: floats of any shape; infinities saturate.
        encoding: of any kind but BLOCK.
        dtype: DType, or the numpy integer dtype that holds the codes.
        limits: lowest and highest code, when fewer are in use than the encoding has.

    Raises:
        InputError: for NaN, which has no code.
    """
    kind = dtype_of(dtype)
    # float32 is what QuantizeLinear computes in; 32-bit codes need more than its 24 bits.
    exact = np.float64 if kind.bits == 32 else np.float32
    with np.errstate(over="ignore", invalid="ignore"):  # NaN is reported below
        steps: Array = np.asarray(values).astype(exact) / _scales(encoding, np.shape(values)).astype(exact)
    np.rint(steps, out=steps)
    if steps.size and np.isnan(steps.min()):
        raise InputError("NaN has no code", hint="look for the operation or the file that makes NaN")
    steps -= _offsets(encoding, steps.ndim).astype(exact)
    low, high = limits or code_range(kind, encoding)
    return np.clip(steps, low, high, out=steps).astype(kind.numpy)


def reals(codes: Array, encoding: Encoding) -> Array:
    """The real values of integer codes: float32, the shape of `codes`. Any encoding."""
    kind = dtype_of(codes.dtype)
    return dequantized(Tensor("", kind, codes.shape, TensorKind.STATIC, encoding, codes))


def fake(values: Array, encoding: Encoding, dtype: DType | np.dtype[Any] | type) -> Array:
    """`values` as they come back from quantization: float32, the same shape. InputError for NaN."""
    return reals(codes(values, encoding, dtype), encoding)


def _scales(encoding: Encoding, shape: tuple[int, ...]) -> Array:
    """The scale of every element, broadcastable onto `shape`, float32."""
    if encoding.block_shape is not None:
        raise UsageError("values are not quantized by blocks of this kind (BLOCK)", hint="HTP has no kernel for it")
    if encoding.block_scales is not None:
        # Block-wise encodings have no offsets, so code 1 is worth one scale.
        return reals(np.ones(shape, np.int8), encoding)
    return _along(np.asarray(encoding.scales, np.float32), encoding.axis, len(shape))


def _offsets(encoding: Encoding, rank: int) -> Array:
    return _along(np.asarray(encoding.offsets, np.int64), encoding.axis, rank)


def _along(values: Array, axis: int | None, rank: int) -> Array:
    if axis is None:
        return values.reshape(())
    shape = [1] * rank
    shape[axis] = -1
    return values.reshape(shape)

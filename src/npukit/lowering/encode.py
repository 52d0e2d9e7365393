# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""Constants of a quantized op that the source left in float, or in a dtype that the op does not take.

QDQ exporters leave small constants (a bias, a LayerNorm's beta, a divisor) in float; QNN ops take them as codes.
"""

from __future__ import annotations

import numpy as np

from npukit.lowering.emitter import Emitter, NeedsFloat
from npukit.qnn.graph import Array, DType, Encoding, Tensor


def accumulator_bias(e: Emitter, values: Array, x: Tensor, w: Tensor) -> Tensor:
    """A bias [C] in int32 at the accumulator's scale, scale_x * scale_w, per channel where w is."""
    if x.encoding is None or w.encoding is None:
        raise NeedsFloat("an operand has no encoding")
    scales = np.array([x.encoding.scale * scale for scale in w.encoding.scales], np.float64)
    codes = np.clip(np.rint(values / scales), -(2**31), 2**31 - 1).astype(np.int32)
    axis = 0 if len(scales) > 1 else None
    encoding = Encoding(tuple(float(np.float32(s)) for s in scales), (0,) * len(scales), axis=axis)
    return e.static(codes, DType.SFIXED_POINT_32, encoding, hint="bias")


def symmetric_32(e: Emitter, values: Array) -> Tensor:
    """A constant as int32 codes with a symmetric encoding that spends 16 bits on the largest magnitude.

    The bits above leave room for the op's own accumulation.
    """
    largest = float(np.abs(values).max(initial=0.0)) or 1.0
    scale = float(np.float32(largest / 32767))
    return e.static(
        np.rint(values / scale).astype(np.int32), DType.SFIXED_POINT_32, Encoding.per_tensor(scale), hint="codes"
    )


def single(e: Emitter, number: float, like: Tensor) -> Tensor:
    """One number as a constant [1] of like's dtype: the largest code stands for it exactly."""
    if not like.dtype.is_quantized:
        return e.like(number, like)
    top = 2**like.dtype.bits - 1
    if number == 0:
        return e.static(np.zeros(1, np.int64), like.dtype, Encoding.per_tensor(1.0 / top))
    scale = float(np.float32(abs(number) / top))
    code, offset = (top, 0) if number > 0 else (0, -top)
    return e.static(np.array([code]), like.dtype, Encoding.per_tensor(scale, offset))


def unsigned(e: Emitter, x: Tensor) -> Tensor:
    """A per-tensor constant of signed codes as unsigned codes of the same values."""
    kinds = {DType.SFIXED_POINT_8: DType.UFIXED_POINT_8, DType.SFIXED_POINT_16: DType.UFIXED_POINT_16}
    if x.dtype not in kinds or x.data is None or x.encoding is None or x.encoding.axis is not None:
        return x
    dtype = kinds[x.dtype]
    half = 2 ** (dtype.bits - 1)
    codes = x.data.astype(np.int64) + half
    return e.static(codes, dtype, Encoding.per_tensor(x.encoding.scale, x.encoding.offset - half), hint="codes")

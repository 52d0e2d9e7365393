# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""Weights to codes: per tensor, per channel, and 4 bits in blocks (LPBQ).

The squared-error search works on weights divided by their channel's largest magnitude, so that any size of values is
safe in float32. It tries shares of the largest magnitude as the highest code's value, on a coarse grid and then around
the best, and last fits the scale to the codes found (least squares). Min-max is the first candidate, and another wins
only where its error is less.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from npukit.errors import ModelError, UsageError, nearest
from npukit.qnn.graph import Array, DType, Encoding
from npukit.quantization.observers import RANGE_METHODS, Observer, observed_range
from npukit.quantization.ranges import MIN_RANGE, Range, check_bits, checked_steps, codes, encoding, float32_scale

BLOCKS = (8, 16, 32, 64, 128)
"""Block sizes that HTP computes right (measured: 4 gives wrong numbers; reference qnn_more.md section 2)."""

BLOCK_SCALE_BITS = 4  # the only width of block scales that HTP accepts
_MOST_BLOCK_SCALE = 15

_CHUNK = 1 << 15  # weights at once: the copies of a chunk stay in the cache
_SHARES = (1.0, 0.95, 0.9, 0.85, 0.8, 0.75, 0.7, 0.65, 0.6, 0.55, 0.5, 0.45, 0.4, 0.34, 0.28, 0.22, 0.16, 0.1)
_MOVES = ((-0.03, -0.015, 0.015, 0.03), (-0.008, 0.008), (-0.004, 0.004))
_FITS = 2  # rounds of fitting the scale to the codes
_TINY = float(np.finfo(np.float32).tiny)

Steps = tuple[int, int]


def weight_dtype(bits: int, *, symmetric: bool = True) -> DType:
    """The dtype that holds weights of `bits`: signed where symmetric; 4 bits are one value per byte."""
    check_bits(bits)
    name = f"{'S' if symmetric else 'U'}FIXED_POINT_{max(bits, 8)}"
    return DType[name]


def quantize_weights(
    values: Array,
    bits: int,
    *,
    axis: int | None,
    method: str = "min-max",
    symmetric: bool = True,
    importance: Array | None = None,
    percentile: float = 99.99,
    steps: Steps | None = None,
    least_scale: Array | float | None = None,
    name: str = "",
) -> tuple[Array, Encoding]:
    """Codes and encoding of a weight.

    Args:
        values: floats of any shape.
        bits: 4, 8 or 16.
        axis: channel axis, one scale each; None for one scale in all. Negative counts from the end.
        method: a name of RANGE_METHODS. "mse" and "sqnr" minimize the squared error of each channel; "enhanced" as
            well (its tails are cut where that is less error).
        symmetric: zero is code 0. Otherwise unsigned codes with an offset, per tensor only.
        importance: non-negative, broadcastable onto `values`: how much the squared error of each weight counts. With
            E[x^2] of the activation that multiplies a weight, "mse" minimizes the error of the output.
        percentile: for method "percentile": share of each channel's magnitudes to keep inside.
        steps: lowest and highest code in use (--restrict-quantization-steps).
        least_scale: scales are at least this (a number, or one a channel). Default: what makes the range at least
            MIN_RANGE wide. A smaller one keeps channels of tiny weights; a larger one keeps a 32-bit bias in range.
        name: of the tensor, for errors.

    Returns:
        Codes in the numpy dtype of `weight_dtype(bits, symmetric=symmetric)`, the shape of `values`; the encoding.

    Raises:
        ModelError: for NaN or infinite weights.
        UsageError: for an axis, bit width, method or combination that cannot be.
    """
    where = f"weight {name!r}" if name else "weight"
    if bits not in (4, 8, 16):
        raise UsageError(f"weights of {bits} bits cannot be", where=where, hint="use 4, 8 or 16")
    if method not in RANGE_METHODS:
        raise UsageError(f"there is no range method {method!r}", where=where, hint=nearest(method, RANGE_METHODS))
    array = _checked(values, where)
    if not symmetric:
        return _asymmetric(array, bits, axis, method, importance, percentile, steps, where)
    rows, restore = _rows(array, _axis(axis, array.ndim, where))
    limits = checked_steps(steps, bits) if steps else (-(1 << (bits - 1)), (1 << (bits - 1)) - 1)
    # The value of one step where the largest magnitude just fits.
    parts = (limits[1] - limits[0]) / 2 if steps else float(limits[1])
    floor = MIN_RANGE / (2 * parts) if least_scale is None else np.asarray(least_scale, np.float64)
    reach = np.abs(rows).max(axis=1, initial=0).astype(np.float64)
    if method in ("mse", "sqnr", "enhanced"):
        weight = None if importance is None else _importance(importance, array, axis, where)
        scales = _least_error(rows, reach, parts, limits, weight, floor)
    elif method in ("percentile", "entropy"):
        scales = _cut(rows, method, bits, percentile, reach) / parts
    else:
        scales = reach / parts
    scales = _float32(np.maximum(scales, floor), reach)
    return restore(_quantized(rows, scales, limits, weight_dtype(bits))), _encoding(scales, bits, axis, array.ndim)


def blockwise(
    values: Array,
    axis: int,
    along: int,
    block: int,
    bits: int = 4,
    *,
    method: str = "mse",
    importance: Array | None = None,
    name: str = "",
) -> tuple[Array, Encoding]:
    """Codes and LPBQ encoding (BLOCKWISE_EXPANSION): weight = code * channel scale * block scale of 1 to 15.

    Args:
        values: floats; every axis but `axis` and `along` has extent 1 (HTP reads only the first tap of others).
        axis: output-channel axis.
        along: input-channel axis, cut into blocks: the one before `axis`, or axis 1 where `axis` is 0.
        block: elements of a block, one of BLOCKS; divides the input channels.
        bits: 4.
        method: "mse" (least squared error) or "min-max".
        importance: as for `quantize_weights`; "mse" only.
        name: of the tensor, for errors.

    Returns:
        int8 codes from -8 to 7, the shape of `values`; the encoding, with block scales [channels, blocks] flattened.

    Raises:
        ModelError: for NaN or infinite weights.
        UsageError: for what HTP does not compute right.
    """
    where = f"weight {name!r}" if name else "weight"
    array = _checked(values, where)
    channel, inner = _axis(axis, array.ndim, where), _axis(along, array.ndim, where)
    _check_blocks(array.shape, channel, inner, block, bits, where)
    if method not in ("mse", "min-max"):
        raise UsageError(f"no block-wise method {method!r}", where=where, hint="use mse or min-max")
    channels, count = array.shape[channel], array.shape[inner] // block
    flat, restore = _rows(array, channel)
    rows = flat.reshape(channels * count, block)
    limits = -8, 7
    reach = np.abs(rows).max(axis=1, initial=0).astype(np.float64)
    if method == "min-max":
        weight = None
        wanted = reach / limits[1]
    else:
        given = None if importance is None else _importance(importance, array, channel, where)
        weight = None if given is None else np.ascontiguousarray(np.broadcast_to(given, flat.shape)).reshape(rows.shape)
        wanted = _least_error(rows, reach, float(limits[1]), limits, weight, 0.0)
    tops = np.maximum(wanted.reshape(channels, count).max(axis=1, initial=0), MIN_RANGE / 15) / _MOST_BLOCK_SCALE
    if method == "min-max":
        scales = _float32(tops, tops)
        grid = np.ceil(wanted.reshape(channels, count) / scales[:, None] - 1e-6)
    else:
        scales, grid = _block_scales(rows, reach, wanted, tops, count, limits, weight)
    grid = np.clip(grid, 1, _MOST_BLOCK_SCALE).astype(np.int64)
    spread = (scales[:, None] * grid).reshape(-1)
    found = _quantized(rows, spread, limits, DType.SFIXED_POINT_8).reshape(flat.shape)
    return restore(found), Encoding(
        tuple(float(s) for s in scales),
        (0,) * channels,
        axis=channel,
        block_scales=tuple(int(s) for s in grid.reshape(-1)),
        blocks_per_axis=count,
        block_scale_bits=BLOCK_SCALE_BITS,
        block_storage=0,
        bitwidth=bits,
    )


def _check_blocks(shape: tuple[int, ...], axis: int, along: int, block: int, bits: int, where: str) -> None:
    others = [dim for i, dim in enumerate(shape) if i not in (axis, along)]
    expected = axis - 1 if axis > 0 else 1
    problems = (
        (bits != 4, f"block-wise weights have 4 bits, not {bits}", "use per-channel weights for other widths"),
        (
            along != expected,
            f"blocks along axis {along} of channels on axis {axis}",
            f"blocks run along axis {expected}",
        ),
        (any(dim != 1 for dim in others), f"block-wise weights of shape {list(shape)}", "HTP has them for 1x1 only"),
        (block not in BLOCKS, f"blocks of {block}", f"HTP computes blocks of {', '.join(map(str, BLOCKS))} right"),
    )
    for wrong, what, hint in problems:
        if wrong:
            raise UsageError(f"{what} cannot be", where=where, hint=hint)
    if shape[along] % block:
        raise UsageError(f"blocks of {block} do not divide {shape[along]} input channels", where=where)


def _block_scales(
    rows: Array, reach: Array, wanted: Array, tops: Array, count: int, limits: Steps, weight: Array | None
) -> tuple[Array, Array]:
    """Channel scales and integer block scales of least error: a few channel scales, every near block scale of each."""
    channels = len(tops)
    best, kept = np.full(channels, np.inf), np.ones((channels, count))
    scales = _float32(tops, tops)
    unit = np.where(reach > 0, reach, 1.0)
    for share in (1.0, 0.96, 0.92, 0.88, 0.84, 0.8, 0.75, 0.7):
        tried = _float32(tops * share, tops)
        ratio = wanted.reshape(channels, count) / tried[:, None]
        low = np.clip(np.floor(ratio), 1, _MOST_BLOCK_SCALE)
        errors, grid = np.full((channels, count), np.inf), low
        for option in (low, np.minimum(low + 1, _MOST_BLOCK_SCALE)):
            step = (tried[:, None] * option).reshape(-1)
            found = _errors(rows, unit, step / unit, limits, weight) * unit**2
            better = found.reshape(channels, count) < errors
            errors, grid = np.where(better, found.reshape(channels, count), errors), np.where(better, option, grid)
        total = errors.sum(axis=1)
        wins = total < best
        best, scales = np.where(wins, total, best), np.where(wins, tried, scales)
        kept = np.where(wins[:, None], grid, kept)
    return scales, kept


def _checked(values: Array, where: str) -> Array:
    with np.errstate(over="ignore"):
        array = np.asarray(values).astype(np.float32, copy=False)
    if array.size and not np.isfinite([array.min(), array.max()]).all():
        bad = int(array.size - np.count_nonzero(np.isfinite(array)))
        raise ModelError(
            f"{bad} of {array.size} weights are NaN or infinite", where=where, hint="the model's file is damaged"
        )
    return array


def _axis(axis: int | None, rank: int, where: str) -> int:
    """The axis counted from the front; -1 for None."""
    if axis is None:
        return -1
    if not -rank <= axis < rank:
        raise UsageError(f"there is no axis {axis} in {rank} dimensions", where=where)
    return axis % rank


def _rows(array: Array, axis: int) -> tuple[Array, Callable[[Array], Array]]:
    """The weights as [channels, rest] in float32, and what brings codes of that shape back."""
    if axis < 0:
        return array.reshape(1, -1), lambda found: found.reshape(array.shape)
    moved = np.moveaxis(array, axis, 0)
    rows = np.ascontiguousarray(moved).reshape(array.shape[axis], -1 if array.size else 0)
    return rows, lambda found: np.ascontiguousarray(np.moveaxis(found.reshape(moved.shape), 0, axis))


def _importance(importance: Array, array: Array, axis: int | None, where: str) -> Array:
    """The importance as [channels or 1, rest], as float32 whose mean is 1."""
    given = np.asarray(importance, np.float64)
    if given.size and not (np.isfinite(given).all() and given.min() >= 0):
        raise UsageError("importance must be finite and not negative", where=where)
    given = given / (given.mean() or 1.0) if given.size else given
    try:
        full = np.broadcast_to(given.astype(np.float32), array.shape)
    except ValueError as error:
        raise UsageError(
            f"importance of shape {list(given.shape)} does not fit weights of shape {list(array.shape)}", where=where
        ) from error
    if axis is None:
        return full.reshape(1, -1)
    moved = np.moveaxis(full, axis, 0)
    if moved.strides[0] == 0 and moved.size:  # the same for all channels: one row will do
        return np.ascontiguousarray(moved[:1]).reshape(1, -1)
    return np.ascontiguousarray(moved).reshape(len(moved), -1 if array.size else 0)


def _float32(scales: Array, reach: Array) -> Array:
    """Scales as float32 values (float64 array), never zero; those of channels without values as MIN_RANGE gives."""
    filled = np.where((reach > 0) | (scales > 0), scales, MIN_RANGE / 255)
    found: Array = np.maximum(filled.astype(np.float32), np.float32(_TINY)).astype(np.float64)
    return found


def _encoding(scales: Array, bits: int, axis: int | None, rank: int) -> Encoding:
    bitwidth = bits if bits < 8 else 0
    if axis is None:
        return Encoding.per_tensor(float32_scale(float(scales[0])), 0, bitwidth)
    return Encoding(tuple(float(s) for s in scales), (0,) * len(scales), axis=axis % rank, bitwidth=bitwidth)


def _quantized(rows: Array, scales: Array, limits: Steps, dtype: DType) -> Array:
    found = np.empty(rows.shape, dtype.numpy)
    for channels, columns in _tiles(*rows.shape):
        steps = rows[channels, columns] / scales[channels, None].astype(np.float32)
        np.rint(steps, out=steps)
        found[channels, columns] = np.clip(steps, limits[0], limits[1], out=steps)
    return found


def _tiles(height: int, width: int) -> Iterator[tuple[slice, slice]]:
    """Slices that cover a [height, width] array, about _CHUNK elements each."""
    across = min(max(width, 1), _CHUNK)
    down = max(1, _CHUNK // across)
    for top in range(0, height, down):
        for left in range(0, width, across):
            yield slice(top, min(top + down, height)), slice(left, min(left + across, width))


def _errors(rows: Array, reach: Array, scales: Array, limits: Steps, weight: Array | None) -> Array:
    """Squared error of each row divided by `reach` at `scales` (in the same unit): float64 [rows]."""
    total = np.zeros(len(rows))
    for channels, columns in _tiles(*rows.shape):
        units = rows[channels, columns] / reach[channels, None].astype(np.float32)
        total[channels] += _error(units, scales[channels], limits, _part(weight, channels, columns))
    return total


def _part(weight: Array | None, channels: slice, columns: slice) -> Array | None:
    return None if weight is None else weight[channels if len(weight) > 1 else slice(0, 1), columns]


def _error(units: Array, scales: Array, limits: Steps, weight: Array | None) -> Array:
    scale = scales[:, None].astype(np.float32)
    steps = units * (1 / scale)
    rest = np.rint(steps)
    np.clip(rest, limits[0], limits[1], out=rest)
    rest -= steps
    if weight is None:
        found = np.einsum("ij,ij->i", rest, rest).astype(np.float64)
    else:
        found = np.einsum("ij,ij,ij->i", rest, rest, np.broadcast_to(weight, rest.shape)).astype(np.float64)
    error: Array = found * scales**2
    return error


def _least_error(
    rows: Array, reach: Array, parts: float, limits: Steps, weight: Array | None, floor: Array | float
) -> Array:
    """The scale of least (weighted) squared error of each row: float64 [rows], at least `floor`."""
    unit = np.where(reach > 0, np.maximum(reach, _TINY), 1.0)
    least = np.broadcast_to(np.maximum(np.asarray(floor, np.float64) / unit, _TINY), unit.shape)
    if rows.shape[1] > _CHUNK or len(rows) == 1:
        alone: Array = _searched(rows, unit, parts, limits, weight, least) * unit
        return alone
    found = np.empty(len(rows))
    for channels, _ in _tiles(*rows.shape):  # whole rows: all tries on a tile while it is in the cache
        part = weight if weight is None or len(weight) == 1 else weight[channels]
        found[channels] = _searched(rows[channels], unit[channels], parts, limits, part, least[channels])
    scales: Array = found * unit
    return scales


def _searched(rows: Array, unit: Array, parts: float, limits: Steps, weight: Array | None, least: Array) -> Array:
    best = np.maximum(np.full(len(rows), 1 / parts), least)
    error = _errors(rows, unit, best, limits, weight)

    def attempt(tried: Array) -> None:
        nonlocal best, error
        tried = np.maximum(tried, least)
        found = _errors(rows, unit, tried, limits, weight)
        wins = found < error
        best, error = np.where(wins, tried, best), np.where(wins, found, error)

    for share in _SHARES[1:]:
        attempt(np.full(len(rows), share / parts))
    for moves in _MOVES:
        middle = best
        for move in moves:
            attempt(middle + move / parts)
    for _ in range(_FITS):
        attempt(_fitted(rows, unit, best, limits, weight))
    scales: Array = best
    return scales


def _fitted(rows: Array, unit: Array, scales: Array, limits: Steps, weight: Array | None) -> Array:
    """The scales that serve the codes at `scales` best (least squares)."""
    product, square = np.zeros(len(rows)), np.zeros(len(rows))
    for channels, columns in _tiles(*rows.shape):
        units = rows[channels, columns] / unit[channels, None].astype(np.float32)
        steps = np.rint(units / scales[channels, None].astype(np.float32))
        np.clip(steps, limits[0], limits[1], out=steps)
        part = _part(weight, channels, columns)
        heavy = steps if part is None else steps * part
        product[channels] += np.einsum("ij,ij->i", heavy, units)
        square[channels] += np.einsum("ij,ij->i", heavy, steps)
    return np.where((square > 0) & (product > 0), product / np.where(square > 0, square, 1.0), scales)


def _cut(rows: Array, method: str, bits: int, percentile: float, reach: Array) -> Array:
    """The largest magnitude to represent of each row, by percentile or entropy: float64 [rows]."""
    found = reach.copy()
    for i, row in enumerate(rows):
        if reach[i] > 0 and row.size:
            observer = Observer()
            observer.update(row)
            found[i] = observed_range(observer, method, bits, symmetric=True, percentile=percentile).high
    return found


def _asymmetric(
    array: Array,
    bits: int,
    axis: int | None,
    method: str,
    importance: Array | None,
    percentile: float,
    steps: Steps | None,
    where: str,
) -> tuple[Array, Encoding]:
    if axis is not None:
        raise UsageError("per-channel weights are symmetric", where=where, hint="use one scale for the whole tensor")
    if importance is not None or steps is not None:
        what = "importance" if importance is not None else "restricted steps"
        raise UsageError(f"{what} is for symmetric weights", where=where)
    observer = Observer()
    observer.update(array)
    bounds = observed_range(observer, method, bits, percentile=percentile) if array.size else Range(0.0, 0.0)
    found = encoding(bounds, bits)
    return codes(array, found, weight_dtype(bits, symmetric=False)), found

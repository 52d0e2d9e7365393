# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""Scales of weights by the error of the layer's output (what AIMET calls SeqMSE).

From a grid of candidates each channel (or the whole tensor, or each block) gets the scale with which nearest codes have
the least (w - q) H (w - q)^T, H = E[x x^T] of the inputs that calibration observed: the mean squared error of the
output, without running the layer once for each candidate.

SeqMSE is sequential in that a layer's inputs are those which the quantized layers before it give. That is not done
here: H is of the float network, so that one pass over the data serves all layers. What it would bring was measured:
docs/results/quantization-rounding.md.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from npukit.qnn.graph import Array, DType, Encoding, Op
from npukit.quantization.ranges import codes, float32_scale, reals
from npukit.quantization.rounding import SecondMoments, check, output_error
from npukit.raising.encodings import code_range

# Of the scale to begin with, added to it; then around the best of them.
_COARSE = tuple(i / 20 for i in range(-10, 11) if i)
_FINE = (-0.025, -0.0125, 0.0125, 0.025)
_MOST_BLOCK_SCALE = 15
_NEAR = (0, -2, -1, 1, 2)  # added to a block's scale; what it has wins ties


def fit_scales(
    op: Op,
    weight: Array,
    encoding: Encoding,
    moments: SecondMoments,
    *,
    centred: bool = False,
    dtype: DType = DType.SFIXED_POINT_8,
    limits: tuple[int, int] | None = None,
) -> tuple[Array, Encoding]:
    """Nearest codes with the scales of least output error.

    Args:
        op: with that weight.
        weight: floats as the op has them.
        encoding: to begin with: per tensor, per channel or block-wise (LPBQ).
        moments: of the op's input.
        centred: the mean error will be taken up by the bias.
        dtype: of the codes.
        limits: lowest and highest code, when fewer are in use than the encoding has.

    Returns:
        Codes, the shape of `weight`, and their encoding. No output channel (with one scale for all: not the whole
        weight) has a larger error on the moments than with `encoding` and nearest rounding.

    Raises:
        InputError: nothing was observed, or the moments are of another op.
    """
    check(op, weight, moments)
    base = np.asarray(encoding.scales, np.float64)

    def scaled(scales: Array) -> Encoding:
        return replace(encoding, scales=tuple(float32_scale(float(scale)) for scale in scales))

    def errors(scales: Array) -> Array:
        tried = scaled(scales)
        found = reals(codes(weight, tried, dtype, limits=limits), tried)
        error = output_error(weight, found, moments, centred=centred)
        return error if len(error) == len(base) else error.sum(keepdims=True)

    best, least = base, errors(base)
    for shares in (_COARSE, _FINE):
        middle = best
        for share in shares:
            scales = middle + base * share
            error = errors(scales)
            best, least = np.where(error < least, scales, best), np.minimum(error, least)
    chosen = scaled(best)
    if chosen.block_scales is not None:
        chosen = _fit_blocks(weight, chosen, moments, centred, limits or code_range(dtype, chosen))
    return codes(weight, chosen, dtype, limits=limits), chosen


def _fit_blocks(
    weight: Array, encoding: Encoding, moments: SecondMoments, centred: bool, limits: tuple[int, int]
) -> Encoding:
    """The block scale of least output error of each block in turn, those of the others as they are then."""
    scales, count = np.asarray(encoding.scales, np.float64), encoding.blocks_per_axis
    grid = np.array(encoding.block_scales).reshape(len(scales), count)
    floats = moments.geometry.matrix(np.asarray(weight, np.float64))[0]  # [out, in]: HTP has blocks in one group only
    size = floats.shape[1] // count

    def missed(block: int, multiples: Array) -> Array:
        part, steps = floats[:, block * size : (block + 1) * size], (scales * multiples)[:, None]
        return np.asarray(part - np.clip(np.rint(part / steps), *limits) * steps)

    error = np.concatenate([missed(block, grid[:, block]) for block in range(count)], axis=1)
    for part, moment in zip(moments.parts, moments.matrices(centred=centred), strict=True):
        # A block that lies in two parts keeps its scale.
        for block in range(-(-part.start // size), part.stop // size):
            whole = slice(block * size, (block + 1) * size)
            own = slice(whole.start - part.start, whole.stop - part.start)
            inner = moment[0, own, own]
            rest = error[:, part] @ moment[0, :, own] - error[:, whole] @ inner
            least = np.full(len(scales), np.inf)
            before = grid[:, block].copy()
            for step in _NEAR:
                multiples = np.clip(before + step, 1, _MOST_BLOCK_SCALE)
                tried = missed(block, multiples)
                found = ((2 * rest + tried @ inner) * tried).sum(axis=1)
                wins = found < least
                least = np.where(wins, found, least)
                grid[wins, block] = multiples[wins]
                error[wins, whole] = tried[wins]
    return replace(encoding, block_scales=tuple(int(multiple) for multiple in grid.reshape(-1)))

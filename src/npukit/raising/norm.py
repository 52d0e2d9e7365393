# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""Normalisations and softmax; channels are the last axis."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from npukit.raising.emit import Emit
from npukit.raising.registry import raises


@raises("Softmax", "LogSoftmax")
def _softmax(e: Emit) -> ir.Value:
    """softmax(beta * x) along one axis, or its logarithm."""
    x, beta = e.real(), e.scalar("beta", 1.0)
    scaled = e.call("Mul", x, beta) if beta != 1 else x
    return e.call(e.op.type, scaled, axis=e.integer("axis", len(e.shape()) - 1))


@raises("Batchnorm")
def _batchnorm(e: Emit) -> ir.Value:
    """Scale and shift by channel: mean and variance are already folded in."""
    y = e.call("Mul", e.real(0), e.real(1))
    return e.call("Add", y, e.real(2)) if e.has(2) else y


def _spread(e: Emit, index: int, axes: Sequence[int]) -> ir.Value:
    """Input `index`, of the shape of x's `axes`, placed so that it broadcasts onto x."""
    rank = len(e.shape(0))
    if list(axes) == list(range(rank - len(axes), rank)):
        return e.real(index)
    order = sorted(range(len(axes)), key=lambda i: axes[i])
    value = e.transpose(e.real(index), order)
    return e.reshape(value, [e.shape(0)[a] if a in axes else 1 for a in range(rank)])


def _affine(e: Emit, y: ir.Value, axes: Sequence[int]) -> ir.Value:
    """Multiply by in[1] and add in[2], each where it is given."""
    if e.has(1):
        y = e.call("Mul", y, _spread(e, 1, axes))
    return e.call("Add", y, _spread(e, 2, axes)) if e.has(2) else y


def _normalized(e: Emit, x: ir.Value, axes: Sequence[int], epsilon: float, variance: bool = True) -> ir.Value:
    """(x - mean) / sqrt(biased variance + epsilon) over `axes`; only centred without `variance`."""
    over = np.asarray(axes, np.int64)
    centred = e.call("Sub", x, e.call("ReduceMean", x, over, keepdims=1))
    if not variance:
        return centred
    spread = e.call("ReduceMean", e.call("Mul", centred, centred), over, keepdims=1)
    return e.call("Div", centred, e.call("Sqrt", e.call("Add", spread, epsilon)))


@raises("LayerNorm")
def _layer_norm(e: Emit) -> ir.Value:
    axes, rank = e.ints("axes"), len(e.shape())
    epsilon = e.scalar("epsilon", 1e-3)
    if e.has(1) and sorted(axes) == list(range(min(axes), rank)) and axes == sorted(axes):
        inputs = [e.real(0), e.real(1), *([e.real(2)] if e.has(2) else [])]
        return e.call("LayerNormalization", *inputs, axis=min(axes), epsilon=float(epsilon))
    return _affine(e, _normalized(e, e.real(0), axes, epsilon), axes)


@raises("RmsNorm")
def _rms_norm(e: Emit) -> ir.Value:
    axes, rank = e.ints("axes"), len(e.shape())
    epsilon, x = e.scalar("epsilon", 1e-6), e.real(0)
    if e.opset >= 23 and e.has(1) and axes == list(range(rank - len(axes), rank)):
        y = e.call("RMSNormalization", x, e.real(1), axis=min(axes), epsilon=float(epsilon))
        return e.call("Add", y, e.real(2)) if e.has(2) else y
    mean = e.call("ReduceMean", e.call("Mul", x, x), np.asarray(axes, np.int64), keepdims=1)
    y = e.call("Div", x, e.call("Sqrt", e.call("Add", mean, epsilon)))
    return _affine(e, y, axes)


@raises("InstanceNorm")
def _instance_norm(e: Emit) -> ir.Value:
    """MU_SIGMA normalises by mean and variance, RMS by sqrt(sum of squares + epsilon); the region says over what."""
    x, rank, epsilon = e.real(0), len(e.shape()), e.scalar("epsilon", 1e-12)
    spatial, channel = list(range(1, rank - 1)), [rank - 1]
    region = e.choice("region", "ACROSS_SPATIAL")
    axes = {"ACROSS_SPATIAL": spatial, "ACROSS_CHANNEL": channel, "ACROSS_ALL": spatial + channel}[region]
    if e.choice("mode", "MU_SIGMA") == "MU_SIGMA":
        y = _normalized(e, x, axes, epsilon, e.flag("normalize_variance", True))
    else:
        total = e.call("ReduceSumSquare", x, np.asarray(axes, np.int64), keepdims=1)
        y = e.call("Div", x, e.call("Sqrt", e.call("Add", total, epsilon)))
    return _affine(e, y, channel)


@raises("GroupNorm")
def _group_norm(e: Emit) -> ir.Value:
    """Mean and variance over the spatial axes and the channels of one group."""
    shape, groups = e.shape(), e.integer("group")
    split = [shape[0], int(np.prod(shape[1:-1], dtype=np.int64)), groups, shape[-1] // groups]
    y = _normalized(e, e.reshape(e.real(0), split), [1, 3], e.scalar("epsilon"))
    return _affine(e, e.reshape(y, shape), [len(shape) - 1])


@raises("L2Norm")
def _l2_norm(e: Emit) -> ir.Value:
    """Divide by max(sqrt(sum x^2), epsilon) over `axes`, or over `axis` without them."""
    axes = e.ints("axes") if "axes" in e.op.params else [e.integer("axis", 0)]
    x = e.real()
    norm = e.call("ReduceL2", x, np.asarray(axes, np.int64), keepdims=1)
    return e.call("Div", x, e.call("Max", norm, e.scalar("epsilon", 1e-12)))


@raises("Lrn")
def _lrn(e: Emit) -> ir.Value:
    """Divide by (bias + alpha * S)^beta, S the sum of squares in a window of 2 * radius + 1 channels, or positions."""
    x, rank, radius = e.real(), len(e.shape()), e.integer("radius")
    alpha, beta, bias = e.scalar("alpha", 1.0), e.scalar("beta", 0.5), e.scalar("bias", 1.0)
    window = 2 * radius + 1
    squares = e.call("Mul", x, x)
    if e.choice("region", "ACROSS_CHANNEL") == "ACROSS_CHANNEL":
        flat = e.reshape(squares, [-1, 1, 1, e.shape()[-1]])
        kernel, pads = [1, window], [0, radius, 0, radius]
        area = window
    else:
        flat = e.channel_first(squares, rank)
        kernel, pads = [window, window], [radius] * 4
        area = window * window
    mean = e.call("AveragePool", flat, kernel_shape=kernel, pads=pads, count_include_pad=1)
    total = e.call("Mul", mean, float(area))
    total = e.reshape(total, e.shape()) if area == window else e.channel_last(total, rank)
    base = e.call("Add", e.call("Mul", total, alpha), bias)
    return e.call("Div", x, e.call("Pow", base, e.scalar_like(base, beta)))


@raises("MaskedSoftmax")
def _masked_softmax(e: Emit) -> ir.Value:
    """Softmax over the last axis. UNCOMPRESSED: mask [batch, channel] is added to every row.

    COMPRESSED: mask holds the lengths of sequences packed one after the other; each attends to itself only, and
    what lies behind the last one is zero.
    """
    batch, count = e.shape(1)
    if e.choice("mode", "UNCOMPRESSED") == "UNCOMPRESSED":
        mask = e.reshape(e.real(1), [batch, 1, 1, count])
        return e.call("Softmax", e.call("Add", e.real(0), mask), axis=3)
    width = e.shape()[3]
    ends = e.call("CumSum", e.cast(e.real(1), ir.DataType.INT64), np.asarray(1, np.int64))
    past = e.call("LessOrEqual", e.call("Unsqueeze", ends, [2]), np.arange(width, dtype=np.int64).reshape(1, 1, -1))
    segment = e.call("ReduceSum", e.cast(past, ir.DataType.INT64), [1], keepdims=0)
    same = e.call("Equal", e.reshape(segment, [batch, 1, width, 1]), e.reshape(segment, [batch, 1, 1, width]))
    inside = e.call("Less", e.reshape(segment, [batch, 1, width, 1]), np.asarray(count, np.int64))
    x = e.real(0)
    hidden = e.scalar_like(x, -1e4 if x.dtype is ir.DataType.FLOAT16 else -1e30)
    y = e.call("Softmax", e.call("Where", same, x, hidden), axis=3)
    return e.call("Where", e.call("And", same, inside), y, e.scalar_like(x, 0))

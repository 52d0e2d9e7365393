# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""Convolutions, pools and resizes: channel-last in QNN, channel-first in ONNX, so a Transpose on either side."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from npukit.raising.emit import Emit
from npukit.raising.registry import raises


def _window(e: Emit, name: str, default: int, spatial: int) -> list[int]:
    """A per-axis param: a tensor, or one scalar for the 1-D ops."""
    param = e.op.params.get(name)
    if param is not None and not param.is_tensor:
        return [e.integer(name)] * spatial
    return e.ints(name, [default] * spatial)


def _pads(e: Emit, spatial: int) -> list[int]:
    """pad_amount rows [before, after] as ONNX has them: all befores, then all afters."""
    rows = e.array("pad_amount").astype(np.int64).reshape(spatial, 2)
    return [int(v) for v in rows.T.ravel()]


@raises("Conv1d", "Conv2d", "Conv3d", "DepthWiseConv1d", "DepthWiseConv2d")
def _conv(e: Emit) -> ir.Value:
    """x: [N, spatial..., C], w: [k..., C/g, O] -> [N, spatial..., O]."""
    rank = len(e.shape())
    spatial = rank - 2
    depthwise = e.op.type.startswith("DepthWise")
    weight = e.weight(1, [spatial + 1, spatial, *range(spatial)])
    attrs: dict[str, Any] = {
        "strides": _window(e, "stride", 1, spatial),
        "pads": _pads(e, spatial),
        "dilations": _window(e, "dilation", 1, spatial),
        "group": e.shape()[-1] if depthwise else e.integer("group", 1),
        "kernel_shape": list(e.shape(1)[:spatial]),
    }
    y = e.call("Conv", e.channel_first(e.real(0), rank), weight, e.bias(2), **attrs)
    return e.channel_last(y, rank)


@raises("TransposeConv1d", "TransposeConv2d", "TransposeConv3d")
def _transpose_conv(e: Emit) -> ir.Value:
    """x: [N, spatial..., C], w: [k..., C, O/g] -> [N, spatial..., O]."""
    rank = len(e.shape())
    spatial = rank - 2
    weight = e.weight(1, [spatial, spatial + 1, *range(spatial)])
    attrs: dict[str, Any] = {
        "strides": _window(e, "stride", 1, spatial),
        "pads": _pads(e, spatial),
        "dilations": _window(e, "dilation", 1, spatial),
        "output_padding": _window(e, "output_padding", 0, spatial),
        "group": e.integer("group", 1),
        "kernel_shape": list(e.shape(1)[:spatial]),
    }
    y = e.call("ConvTranspose", e.channel_first(e.real(0), rank), weight, e.bias(2), **attrs)
    return e.channel_last(y, rank)


def _pool_pads(e: Emit, kernel: Sequence[int], strides: Sequence[int]) -> list[int]:
    """Pads with which floor rounding gives the output's size, whatever rounding_mode was: more behind if needed."""
    spatial = len(kernel)
    pads = _pads(e, spatial)
    for axis in range(spatial):
        before, size, out = pads[axis], e.shape()[1 + axis], e.out_shape()[1 + axis]
        needed = (out - 1) * strides[axis] + kernel[axis] - size - before
        pads[spatial + axis] = max(pads[spatial + axis], needed)
    return pads


def _padded(e: Emit, x: ir.Value, pads: Sequence[int], number: float) -> ir.Value:
    """Explicit padding of x: [N, C, spatial...]."""
    spatial = len(pads) // 2
    return e.call("Pad", x, [0, 0, *pads[:spatial], 0, 0, *pads[spatial:]], e.scalar_like(x, number))


@raises("PoolMax2d", "PoolMax3d")
def _pool_max(e: Emit) -> ir.Value:
    """Padding never wins, as in QNN CPU; the HTP library lets zeros win (quirk pool_max_pads_with_zero)."""
    kernel, strides = e.ints("filter_size"), e.ints("stride")
    pads, rank = _pool_pads(e, kernel, strides), len(e.shape())
    x = e.channel_first(e.real(), rank)
    if max(pads) >= min(kernel):  # ONNX wants pads below the kernel size
        x, pads = _padded(e, x, pads, float(np.finfo(np.float32).min)), [0] * len(pads)
    y = e.call("MaxPool", x, kernel_shape=kernel, strides=strides, pads=pads)
    return e.channel_last(y, rank)


@raises("PoolAvg2d", "PoolAvg3d")
def _pool_avg(e: Emit) -> ir.Value:
    kernel, strides = e.ints("filter_size"), e.ints("stride")
    pads, rank = _pool_pads(e, kernel, strides), len(e.shape())
    counted = e.flag("count_pad_for_edges", False)
    x = e.channel_first(e.real(), rank)
    attrs: dict[str, Any] = {"kernel_shape": kernel, "strides": strides}
    if max(pads) < min(kernel):
        y = e.call("AveragePool", x, pads=pads, count_include_pad=int(counted), **attrs)
        return e.channel_last(y, rank)
    y = e.call("AveragePool", _padded(e, x, pads, 0), **attrs)
    if not counted:
        ones = np.pad(np.ones((1, 1, *e.shape()[1:-1]), np.float32), [(0, 0), (0, 0), *_pairs(pads)])
        y = e.call("Div", y, e.call("AveragePool", ones, out=ir.DataType.FLOAT, **attrs))
    return e.channel_last(y, rank)


def _pairs(pads: Sequence[int]) -> list[tuple[int, int]]:
    half = len(pads) // 2
    return list(zip(pads[:half], pads[half:], strict=True))


@raises("L2Pool2d")
def _pool_l2(e: Emit) -> ir.Value:
    """Root of the mean of squares, padding not counted, as QNN CPU has it (the definition says sum)."""
    x = e.channel_first(e.real(), 4)
    squares = e.call("Mul", x, x)
    y = e.call("AveragePool", squares, kernel_shape=e.ints("filter_size"), strides=e.ints("stride"), pads=_pads(e, 2))
    return e.channel_last(e.call("Sqrt", y), 4)


def _resized(e: Emit, **attrs: Any) -> ir.Value:
    """Resize of the spatial axes to the output tensor's size."""
    rank, out = len(e.shape()), e.out_shape()
    # One image a channel: ONNX Runtime moves a plain Transpose through Resize, and then refuses cubic ones.
    x = e.reshape(e.channel_first(e.real(), rank), [-1, 1, *e.shape()[1:-1]])
    sizes = np.asarray([out[0] * out[-1], 1, *out[1:-1]], np.int64)
    y = e.call("Resize", x, None, None, sizes, **attrs)
    return e.channel_last(e.reshape(y, [out[0], out[-1], *out[1:-1]]), rank)


def _coordinates(e: Emit) -> str:
    if e.flag("align_corners", False):
        return "align_corners"
    return "half_pixel" if e.flag("half_pixel_centers", False) else "asymmetric"


@raises("ResizeBilinear")
def _resize_bilinear(e: Emit) -> ir.Value:
    attrs: dict[str, Any] = {"antialias": 1} if e.flag("antialias", False) else {}
    return _resized(e, mode="linear", coordinate_transformation_mode=_coordinates(e), **attrs)


@raises("ResizeNearestNeighbor")
def _resize_nearest(e: Emit) -> ir.Value:
    mode = _coordinates(e)
    rounding = "floor" if mode == "asymmetric" else "round_prefer_ceil"
    return _resized(e, mode="nearest", coordinate_transformation_mode=mode, nearest_mode=rounding)


@raises("Resize")
def _resize(e: Emit) -> ir.Value:
    interpolation = e.choice("interpolation_mode", "NEAREST").lower()
    attrs: dict[str, Any] = {
        "mode": interpolation,
        "coordinate_transformation_mode": e.choice("transformation_mode", "HALF_PIXEL").lower(),
    }
    if interpolation == "nearest":
        attrs["nearest_mode"] = e.choice("nearest_mode", "ROUND_PREFER_FLOOR").lower()
    if interpolation == "cubic":
        attrs["cubic_coeff_a"] = float(e.scalar("cubic_coeff", -0.75))
        attrs["exclude_outside"] = e.integer("exclude_outside", 0)
    return _resized(e, **attrs)


@raises("ExtractPatches")
def _extract_patches(e: Emit) -> ir.Value:
    """Patches with the taps (row, column, channel) on the last axis, padded as in TensorFlow."""
    size, stride, rate = e.ints("size"), e.ints("stride"), e.ints("rate")
    out = e.out_shape()
    pads = [0, 0, 0, 0]
    if e.choice("padding") == "SAME":
        for axis in range(2):
            reach = (size[axis] - 1) * rate[axis] + 1
            total = max(0, (out[1 + axis] - 1) * stride[axis] + reach - e.shape()[1 + axis])
            pads[axis], pads[2 + axis] = total // 2, total - total // 2
    return e.call("Concat", *_taps(e, size, stride, rate, pads, out[1:3]), axis=3)


@raises("Im2Col")
def _im2col(e: Emit) -> ir.Value:
    """Columns [batch, C * kh * kw, L]: channel outer, taps inner."""
    kernel, stride = e.ints("kernel_size"), e.ints("stride")
    dilation, pads = e.ints("dilation", [1, 1]), _pads(e, 2)
    n, h, w, c = e.shape()
    padded = (h + pads[0] + pads[2], w + pads[1] + pads[3])
    out = [(padded[i] - (kernel[i] - 1) * dilation[i] - 1) // stride[i] + 1 for i in range(2)]
    taps = [e.call("Unsqueeze", tap, [4]) for tap in _taps(e, kernel, stride, dilation, pads, out)]
    stacked = e.transpose(e.call("Concat", *taps, axis=4), [0, 3, 4, 1, 2])
    return e.reshape(stacked, [n, c * kernel[0] * kernel[1], out[0] * out[1]])


def _taps(
    e: Emit, size: Sequence[int], stride: Sequence[int], rate: Sequence[int], pads: Sequence[int], out: Sequence[int]
) -> list[ir.Value]:
    """x: [N, H, W, C] shifted to every tap of the window, each [N, out, out, C]."""
    x = e.real()
    if any(pads):
        x = e.call("Pad", x, [0, pads[0], pads[1], 0, 0, pads[2], pads[3], 0], e.scalar_like(x, 0))
    taps = []
    for row in range(size[0]):
        for column in range(size[1]):
            starts = [row * rate[0], column * rate[1]]
            ends = [start + (count - 1) * step + 1 for start, count, step in zip(starts, out, stride, strict=True)]
            taps.append(e.call("Slice", x, starts, ends, [1, 2], list(stride)))
    return taps


@raises("Col2Im")
def _col2im(e: Emit) -> ir.Value:
    """Columns [batch, C * kh * kw, L] summed back into an image [batch, H, W, C]."""
    kernel, out = e.ints("kernel_size"), e.out_shape()
    y = e.call(
        "Col2Im",
        e.real(),
        list(out[1:3]),
        kernel,
        strides=e.ints("stride"),
        pads=_pads(e, 2),
        dilations=e.ints("dilation", [1, 1]),
    )
    return e.channel_last(e.reshape(y, [out[0], out[3], out[1], out[2]]), 4)

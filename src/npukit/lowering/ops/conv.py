# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""Convolutions: ONNX [N,C,spatial...] to QNN channels last."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from npukit.lowering.emitter import Emitter, channel_last
from npukit.lowering.registry import Unsupported, lowers
from npukit.qnn.graph import DType, Encoding, Tensor


def resolve_pads(
    node: ir.Node, spatial: Sequence[int], kernel: Sequence[int], strides: Sequence[int], dilations: Sequence[int]
) -> list[list[int]]:
    """[[before, after], ...] per spatial axis from `pads` or `auto_pad` (ONNX Conv and pooling operators)."""
    count = len(spatial)
    auto = node.attributes.get_string("auto_pad", "NOTSET")
    if auto in ("NOTSET", "VALID"):
        pads = list(node.attributes.get_ints("pads", [0] * 2 * count)) if auto == "NOTSET" else [0] * 2 * count
        return [[int(pads[i]), int(pads[i + count])] for i in range(count)]
    found = []
    for size, k, s, d in zip(spatial, kernel, strides, dilations, strict=True):
        total = max(0, (-(-size // s) - 1) * s + (k - 1) * d + 1 - size)
        small, large = total // 2, total - total // 2
        found.append([small, large] if auto == "SAME_UPPER" else [large, small])
    return found


@lowers("Conv")
def conv(e: Emitter, node: ir.Node) -> None:
    """Convolution in one, two or three dimensions.

    x: T[N,C,*S], w: T[O,C/group,*K], b: T[O]? -> y: T[N,O,*S']
    T: float, or quantized with w per tensor or per output channel; pads not negative
    """
    rank = e.rank(node.inputs[0])
    spatial, kernel = e.shape(node.inputs[0])[2:], e.shape(node.inputs[1])[2:]
    count = rank - 2
    strides = list(node.attributes.get_ints("strides", [1] * count))
    dilations = list(node.attributes.get_ints("dilations", [1] * count))
    group = node.attributes.get_int("group", 1)
    pads = resolve_pads(node, spatial, kernel, strides, dilations)
    if any(p < 0 for pair in pads for p in pair):
        raise Unsupported("negative pads", hint="crop with Slice before the convolution")
    if count not in (1, 2, 3):
        raise Unsupported(f"a convolution over {count} axes", hint="reshape to at most three spatial axes")
    x = e.channel_last(node.inputs[0])
    out_channels, in_channels = e.shape(node.inputs[1])[0], e.shape(node.inputs[0])[1]
    perm = (*range(2, rank), 1, 0)
    w = e.get(node.inputs[1], perm)
    if count == 1:  # no backend has a one-dimensional convolution: add a height of 1
        x = e.reshape(x, (x.shape[0], 1, *x.shape[1:]))
        w = e.reshape(w, (1, *w.shape), axis=3)
        strides, dilations, pads = [1, *strides], [1, *dilations], [[0, 0], *pads]
    bias = _bias(e, node, x, w, out_channels)
    y_perm = channel_last(rank)
    y = e.output(node.outputs[0], y_perm)
    target = y if count != 1 else e.temp((y.shape[0], 1, *y.shape[1:]), y.dtype, y.encoding)
    params = {"stride": strides, "pad_amount": pads, "dilation": dilations}
    if count == 3:
        e.emit("Conv3d", [x, w, bias], [target], group=group, **params)
    elif group == in_channels and group > 1:
        e.emit("DepthWiseConv2d", [x, w, bias], [target], **params)
    else:
        e.emit("Conv2d", [x, w, bias], [target], group=group, **params)
    if target is not y:
        e.emit("Reshape", [target], [y])


def _bias(e: Emitter, node: ir.Node, x: Tensor, w: Tensor, channels: int) -> Tensor:
    """The bias, or zeros: quantized convolutions without one fail to finalize on CPU (qnn_more.md section 4)."""
    given = node.inputs[2] if len(node.inputs) > 2 else None
    if given is not None:
        return e.get(given)
    if not e.quantized:
        return e.static(np.zeros(channels, np.float32), hint="bias")
    return zero_bias(e, x, w, channels)


def zero_bias(e: Emitter, x: Tensor, w: Tensor, channels: int) -> Tensor:
    """A zero int32 bias at the accumulator's scale, scale_x * scale_w, per channel where w is."""
    assert x.encoding is not None
    assert w.encoding is not None
    scales = tuple(x.encoding.scale * s for s in w.encoding.scales)
    axis = 0 if len(scales) > 1 else None
    encoding = Encoding(scales, (0,) * len(scales), axis=axis)
    return e.static(np.zeros(channels, np.int32), DType.SFIXED_POINT_32, encoding, hint="bias")

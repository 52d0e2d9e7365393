# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""Convolutions: ONNX [N,C,spatial...] to QNN channels last."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from npukit.lowering.emitter import Emitter
from npukit.lowering.encode import accumulator_bias
from npukit.lowering.holding import channel_last
from npukit.lowering.registry import Unsupported, lowers
from npukit.qnn.graph import Array, Tensor

from .movement import padded_by_concat


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
        _conv3d(e, [x, w, bias], target, group, params)
    elif group == in_channels and group > 1:
        e.emit("DepthWiseConv2d", [x, w, bias], [target], **params)
    else:
        e.emit("Conv2d", [x, w, bias], [target], group=group, **params)
    if target is not y:
        e.emit("Reshape", [target], [y])


def _conv3d(e: Emitter, inputs: list[Tensor], out: Tensor, group: int, params: dict[str, Any]) -> None:
    """Conv3d; where a target takes no dilation the kernel gets the zeros itself, where no groups, one Conv3d each."""
    x, w, bias = inputs

    def spread() -> Tensor:
        if w.data is None or w.encoding is not None:
            raise Unsupported("a dilated Conv3d needs a constant float kernel")
        return e.static(dilated(w.data, params["dilation"]), w.dtype, hint="weight")

    def by_group() -> None:
        size, width = x.shape[-1] // group, out.shape[-1] // group
        parts = []
        for g in range(group):
            part = e.slice(x, 4, g * size, (g + 1) * size)
            kernel = e.slice(w, 4, g * width, (g + 1) * width)
            offset = e.slice(bias, 0, g * width, (g + 1) * width)
            y = e.temp((*out.shape[:-1], width), out.dtype)
            parts.append(e.emit("Conv3d", [part, kernel, offset], [y], group=1, **params))
        e.concat(parts, 4, out)

    plain = {**params, "dilation": [1, 1, 1]}
    e.forms(
        lambda: e.emit("Conv3d", [x, w, bias], [out], group=group, **params),
        lambda: e.emit("Conv3d", [x, spread(), bias], [out], group=group, **plain),
        by_group,
    )


def dilated(kernel: Array, dilations: Sequence[int]) -> Array:
    """A kernel [*K,I,O] with zeros between its taps."""
    shape = [(k - 1) * d + 1 for k, d in zip(kernel.shape, dilations, strict=False)]
    wide = np.zeros((*shape, *kernel.shape[len(shape) :]), kernel.dtype)
    wide[tuple(slice(None, None, d) for d in dilations)] = kernel
    return wide


@lowers("ConvTranspose")
def conv_transpose(e: Emitter, node: ir.Node) -> None:
    """Transposed convolution in one, two or three dimensions.

    x: T[N,C,*S], w: T[C,O/group,*K], b: T[O]? -> y: T[N,O,*S']
    T: float, or quantized; w constant where it is dilated
    """
    rank = e.rank(node.inputs[0])
    count = rank - 2
    if count not in (1, 2, 3):
        raise Unsupported(f"a convolution over {count} axes", hint="reshape to at most three spatial axes")
    spatial, kernel, out = (e.shape(v)[2:] for v in (node.inputs[0], node.inputs[1], node.outputs[0]))
    strides = list(node.attributes.get_ints("strides", [1] * count))
    dilations = list(node.attributes.get_ints("dilations", [1] * count))
    extra = list(node.attributes.get_ints("output_padding", [0] * count))
    group = node.attributes.get_int("group", 1)
    reach = [(k - 1) * d + 1 for k, d in zip(kernel, dilations, strict=True)]
    full = [s * (n - 1) + r for s, n, r in zip(strides, spatial, reach, strict=True)]
    given = node.attributes.get_ints("pads", [])
    upper = node.attributes.get_string("auto_pad", "NOTSET") == "SAME_UPPER"
    crop = []  # elements of the full result that go, before and after; negative: zeros that come
    for i in range(count):
        if given and "output_shape" not in node.attributes:
            crop.append([int(given[i]), full[i] - out[i] - int(given[i])])
        else:
            total = full[i] + extra[i] - out[i]
            small = total // 2
            before = small if upper else total - small
            crop.append([before, full[i] - out[i] - before])
    channels = e.shape(node.outputs[0])[1]
    x = e.channel_last(node.inputs[0])
    w = e.get(node.inputs[1], (*range(2, rank), 0, 1))
    if max(dilations) > 1:
        if w.data is None or w.encoding is not None:
            raise Unsupported("a dilated ConvTranspose needs a constant float kernel")
        w = e.static(dilated(w.data, dilations), w.dtype, hint="weight")
    if count == 1:
        x, w = e.reshape(x, (x.shape[0], 1, *x.shape[1:])), e.reshape(w, (1, *w.shape), axis=3)
        strides, crop, out = [1, *strides], [[0, 0], *crop], (1, *out)
    bias = _bias(e, node, x, w, channels)
    shape = (x.shape[0], *out, channels)
    order, channel_shape = channel_last(rank), (shape if count > 1 else (shape[0], *shape[2:]))
    pads = [[max(0, b), max(0, a)] for b, a in crop]
    more = [max(0, -a) for _, a in crop]
    op_type = "TransposeConv3d" if count == 3 else "TransposeConv2d"

    def native() -> None:
        if any(before < 0 for before, _ in crop):
            raise Unsupported("zeros before a transposed convolution")
        if any(more) and "transpose_conv_output_padding_wrong" in e.quirks:
            raise Unsupported("output_padding is wrong on a target")
        params = {"stride": strides, "pad_amount": pads, "output_padding": more, "group": group}
        if count == 1:
            y = e.emit(op_type, [x, w, bias], [e.temp(shape, x.dtype)], **params)
            e.bind(node.outputs[0], e.reshape(y, channel_shape), order)
        else:
            e.emit(op_type, [x, w, bias], [e.output(node.outputs[0], order)], **params)

    def extended() -> None:
        """What lies behind the result is zero plus bias: padded on, and the bias added after."""
        if not any(more) or any(before < 0 for before, _ in crop):
            raise Unsupported("no output_padding")
        inner = (shape[0], *(n - m for n, m in zip(out, more, strict=True)), channels)
        none = e.static(np.zeros(channels, np.float32), hint="bias")
        params = {"stride": strides, "pad_amount": pads, "output_padding": [0] * len(more), "group": group}
        y = e.emit(op_type, [x, w, none], [e.temp(inner, x.dtype)], **params)
        amounts = [[0, 0], *([0, m] for m in more), [0, 0]]
        y = e.add(padded_by_concat(e, y, amounts, "constant", 0.0), bias)
        e.bind(node.outputs[0], e.reshape(y, channel_shape), order)

    width = channels // group

    def grouped() -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Input, kernel and bias of each group."""
        size = x.shape[-1] // group
        for g in range(group):
            inner, outer = (g * size, (g + 1) * size), (g * width, (g + 1) * width)
            yield e.slice(x, x.rank - 1, *inner), e.slice(w, w.rank - 2, *inner), e.slice(bias, 0, *outer)

    def by_group() -> None:
        if group == 1:
            raise Unsupported(f"{op_type} is refused")
        params = {"stride": strides, "pad_amount": pads, "output_padding": more, "group": 1}
        parts = [e.emit(op_type, [*given], [e.temp((*shape[:-1], width), x.dtype)], **params) for given in grouped()]
        e.bind(node.outputs[0], e.reshape(e.concat(parts, x.rank - 1), channel_shape), order)

    def spread() -> None:
        """Zeros between the input's elements, then a plain convolution with the kernel turned round."""
        if w.data is None or w.encoding is not None or group > 1:
            raise Unsupported(f"{op_type} is refused")
        axes = tuple(range(w.data.ndim - 2))
        turned = np.flip(w.data, axes)
        stretched = x
        for axis, stride in enumerate(strides, 1):
            stretched = _with_zeros(e, stretched, axis, stride)
        wide = [[k - 1 - b, k - 1 - a] for k, (b, a) in zip(turned.shape, crop, strict=False)]
        if any(p < 0 for pair in wide for p in pair):
            raise Unsupported(f"{op_type} is refused")
        y = e.temp(shape, x.dtype)
        ones = [1] * len(strides)
        kind = "Conv3d" if count == 3 else "Conv2d"
        e.emit(
            kind, [stretched, e.static(turned, w.dtype, hint="weight"), bias], [y],
            stride=ones, pad_amount=wide, dilation=ones, group=1,
        )  # fmt: skip
        e.bind(node.outputs[0], e.reshape(y, channel_shape), order)

    def through_3d() -> None:
        """With a depth of 1, group by group and cropped after, for a target that refuses a computed kernel or bias."""
        if count == 3 or any(before < 0 for before, _ in crop):
            raise Unsupported(f"{op_type} is refused")
        whole = [n + b + a for n, (b, a) in zip(out, pads, strict=True)]
        parts = []
        for data, kernel_part, offset in grouped():
            deep = e.reshape(data, (shape[0], 1, *data.shape[1:]))
            kernel_3d = e.reshape(kernel_part, (1, *kernel_part.shape))
            y = e.emit(
                "TransposeConv3d", [deep, kernel_3d, offset], [e.temp((shape[0], 1, *whole, width), x.dtype)],
                stride=[1, *strides], pad_amount=[[0, 0]] * 3, output_padding=[0, *more], group=1,
            )  # fmt: skip
            parts.append(e.reshape(y, (shape[0], *whole, width)))
        y = e.concat(parts, x.rank - 1) if group > 1 else parts[0]
        for i, (before, after) in enumerate(pads):
            if before or after:
                y = e.slice(y, 1 + i, before, whole[i] - after)
        e.bind(node.outputs[0], e.reshape(y, channel_shape), order)

    if "transpose_conv_group_crashes" in e.quirks and group > 1:
        by_group()
    else:
        e.forms(native, extended, by_group, spread, through_3d)


def _with_zeros(e: Emitter, x: Tensor, axis: int, stride: int) -> Tensor:
    """Put stride - 1 zeros behind each element along an axis, but the last."""
    if stride == 1 or x.shape[axis] == 1:
        return x
    outer, inner = int(np.prod(x.shape[:axis])), int(np.prod(x.shape[axis + 1 :]))
    cells = e.reshape(x, (outer * x.shape[axis], 1, inner))
    zeros = e.static(np.zeros((outer * x.shape[axis], stride - 1, inner), np.float32), x.dtype, hint="zeros")
    wide = e.reshape(e.concat([cells, zeros], 1), (*x.shape[:axis], x.shape[axis] * stride, *x.shape[axis + 1 :]))
    return e.slice(wide, axis, 0, (x.shape[axis] - 1) * stride + 1)


def _bias(e: Emitter, node: ir.Node, x: Tensor, w: Tensor, channels: int) -> Tensor:
    """The bias, or zeros: quantized convolutions without one fail to finalize on CPU (qnn_more.md section 4)."""
    return bias_of(e, node.inputs[2] if len(node.inputs) > 2 else None, x, w, channels)


def bias_of(e: Emitter, value: ir.Value | None, x: Tensor, w: Tensor, channels: int) -> Tensor:
    """A bias [channels] as the op on x and w takes it; zeros where `value` is None."""
    if not e.quantized:
        return e.get(value) if value is not None else e.static(np.zeros(channels, np.float32), hint="bias")
    if value is None:
        return accumulator_bias(e, np.zeros(channels), x, w)
    known = None if e.has_encoding(value) else e.constant(value)
    return e.get(value) if known is None else accumulator_bias(e, known, x, w)

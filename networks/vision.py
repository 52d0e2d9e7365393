# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""Convolutional networks: ResNet, MobileNetV2, EfficientNet, U-Net.

Topologies are those of the papers (He 2015, Sandler 2018, Tan 2019, Ronneberger 2015).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx

from networks.builder import Builder

RESIDUAL = 0.3  # gamma of a residual branch's last layer, against 1 of what it is added to


def resnet(blocks: Sequence[int], width: int, size: int, classes: int) -> onnx.ModelProto:
    """A ResNet of bottleneck blocks; (3, 4, 6, 3) with width 64 is ResNet-50."""
    b = Builder("resnet", 50)
    x = b.input("input", ["batch", 3, size, size])
    x = b.op("Relu", b.batch_norm(b.conv(x, 3, width, 7, "conv1", stride=2), width, "bn1"))
    x = b.op("MaxPool", x, ceil_mode=0, kernel_shape=[3, 3], pads=[1] * 4, strides=[2, 2])
    channels = width
    for stage, count in enumerate(blocks):
        inner = width << stage
        for i in range(count):
            with b.scope(f"layer{stage + 1}"), b.scope(str(i)):
                x = _bottleneck(b, x, channels, inner, 2 if stage and not i else 1, first=not i)
            channels = 4 * inner
    x = b.op("Flatten", b.op("GlobalAveragePool", x), axis=1)
    b.output(b.gemm(x, channels, classes, "fc"), "output", ["batch", classes])
    return b.model()


def _bottleneck(b: Builder, x: str, channels: int, inner: int, stride: int, *, first: bool) -> str:
    y = b.op("Relu", b.batch_norm(b.conv(x, channels, inner, 1, "conv1"), inner, "bn1"))
    y = b.op("Relu", b.batch_norm(b.conv(y, inner, inner, 3, "conv2", stride=stride), inner, "bn2"))
    y = b.batch_norm(b.conv(y, inner, 4 * inner, 1, "conv3"), 4 * inner, "bn3", gain=RESIDUAL, shift=0.0)
    if first:
        with b.scope("downsample"):
            x = b.batch_norm(b.conv(x, channels, 4 * inner, 1, "0", stride=stride), 4 * inner, "1")
    return b.op("Relu", b.op("Add", y, x))


# Expansion, channels, repeats, stride of the stages, from the paper's table 2.
_MOBILENET = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))


def mobilenet(size: int, classes: int, *, small: bool) -> onnx.ModelProto:
    """MobileNetV2: inverted residuals with depthwise convolutions and ReLU6."""
    b = Builder("mobilenet_v2", 2)

    def relu6(x: str) -> str:
        return b.op("Clip", x, b.constant(0.0, np.float32), b.constant(6.0, np.float32))

    stages = tuple((t, c // 2, min(n, 2), s) for t, c, n, s in _MOBILENET[:4]) if small else _MOBILENET
    channels, last = (16, 128) if small else (32, 1280)
    x = b.input("input", ["batch", 3, size, size])
    x = relu6(b.batch_norm(b.conv(x, 3, channels, 3, "stem", stride=2), channels, "bn"))
    number = 0
    for expansion, to, repeats, stage_stride in stages:
        for i in range(repeats):
            number += 1
            stride, inner, y = 1 if i else stage_stride, channels * expansion, x
            with b.scope(f"features.{number}"):
                if expansion > 1:
                    y = relu6(b.batch_norm(b.conv(y, channels, inner, 1, "expand"), inner, "bn0"))
                y = b.conv(y, inner, inner, 3, "depthwise", stride=stride, groups=inner)
                y = relu6(b.batch_norm(y, inner, "bn1"))
                residual = stride == 1 and channels == to
                y = b.conv(y, inner, to, 1, "project")
                y = b.batch_norm(y, to, "bn2", gain=RESIDUAL if residual else 1.0, shift=0.0)
                x = b.op("Add", x, y) if residual else y
            channels = to
    x = relu6(b.batch_norm(b.conv(x, channels, last, 1, "head"), last, "bn_head", shift=0.0))
    x = b.op("ReduceMean", x, axes=[2, 3], keepdims=0)
    b.output(b.gemm(x, last, classes, "classifier"), "output", ["batch", classes])
    return b.model()


# Kernel, stride, expansion, channels, repeats, from the paper's table 1.
_EFFICIENTNET = (
    (3, 1, 1, 16, 1), (3, 2, 6, 24, 2), (5, 2, 6, 40, 2), (3, 2, 6, 80, 3), (5, 1, 6, 112, 3), (5, 2, 6, 192, 4),
    (3, 1, 6, 320, 1),
)  # fmt: skip


def efficientnet(size: int, classes: int, *, small: bool) -> onnx.ModelProto:
    """EfficientNet-B0: inverted residuals with squeeze-and-excitation and swish."""
    b = Builder("efficientnet_b0", 0)

    def swish(x: str) -> str:
        return b.op("Mul", x, b.op("Sigmoid", x))

    stages = tuple((k, s, t, c // 2, 1) for k, s, t, c, _ in _EFFICIENTNET[:4]) if small else _EFFICIENTNET
    channels, last = (16, 128) if small else (32, 1280)
    x = b.input("input", ["batch", 3, size, size])
    x = swish(b.batch_norm(b.conv(x, 3, channels, 3, "stem", stride=2), channels, "bn"))
    number = 0
    for kernel, stage_stride, expansion, to, repeats in stages:
        for i in range(repeats):
            number += 1
            stride, inner, y = 1 if i else stage_stride, channels * expansion, x
            with b.scope(f"blocks.{number}"):
                if expansion > 1:
                    y = swish(b.batch_norm(b.conv(y, channels, inner, 1, "expand"), inner, "bn0"))
                # The TensorFlow port pads stride 2 on the far side only.
                near = kernel // 2 - (stride - 1)
                pads = (near, near, kernel // 2, kernel // 2) if kernel == 5 else None
                y = b.conv(y, inner, inner, kernel, "depthwise", stride=stride, groups=inner, pads=pads)
                y = swish(b.batch_norm(y, inner, "bn1"))
                with b.scope("se"):
                    squeezed = b.op("ReduceMean", y, axes=[2, 3], keepdims=1)
                    squeezed = swish(b.conv(squeezed, inner, max(channels // 4, 4), 1, "reduce", bias=True))
                    gate = b.conv(squeezed, max(channels // 4, 4), inner, 1, "expand", bias=True)
                    y = b.op("Mul", b.op("Sigmoid", gate), y)
                residual = stride == 1 and channels == to
                y = b.conv(y, inner, to, 1, "project")
                y = b.batch_norm(y, to, "bn2", gain=RESIDUAL if residual else 1.0, shift=0.0)
                x = b.op("Add", y, x) if residual else y
            channels = to
    x = swish(b.batch_norm(b.conv(x, channels, last, 1, "head"), last, "bn_head", shift=0.0))
    x = b.op("GlobalAveragePool", x)
    x = b.view(x, b.dim(x, 0), -1)
    b.output(b.gemm(x, last, classes, "classifier"), "output", ["batch", classes])
    return b.model()


def unet(depth: int, width: int, size: int, classes: int) -> onnx.ModelProto:
    """A U-Net; stages go up by ConvTranspose and by bilinear Resize in turn.

    What comes up is padded to the size of the skip by differences computed at run time (all zero here), as the usual
    PyTorch implementation does, and leaky activations have slopes that matter.
    """
    b = Builder("unet", 8)

    def double(x: str, channels: int, to: int, name: str) -> str:
        with b.scope(name):
            for i in (0, 1):
                x = b.batch_norm(b.conv(x, channels if not i else to, to, 3, f"conv{i}"), to, f"bn{i}", shift=0.5)
                x = b.op("LeakyRelu", x, alpha=0.1)
            return x

    x = double(b.input("input", ["batch", 3, size, size]), 3, width, "inc")
    skips = [x]
    for i in range(depth):
        x = b.op("MaxPool", x, ceil_mode=0, kernel_shape=[2, 2], pads=[0] * 4, strides=[2, 2])
        x = double(x, width << i, width << (i + 1), f"down{i}")
        skips.append(x)
    skips.pop()
    for i in reversed(range(depth)):
        channels = width << i
        with b.scope(f"up{i}"):
            x = _upsample(b, x, 2 * channels, channels, transposed=i % 2 == 0)
            x = b.op("Concat", skips[i], _pad_to(b, x, skips[i]), axis=1)
        x = double(x, 2 * channels, channels, f"merge{i}")
    b.output(b.conv(x, width, classes, 1, "outc", bias=True), "output", ["batch", classes, size, size])
    return b.model()


def _upsample(b: Builder, x: str, channels: int, to: int, *, transposed: bool) -> str:
    if transposed:
        weight = b.normal("weight", [channels, to, 2, 2], (1 / channels) ** 0.5)
        return b.op(
            "ConvTranspose", x, weight, b.normal("bias", [to], 0.1), dilations=[1, 1], group=1, kernel_shape=[2, 2],
            pads=[0] * 4, strides=[2, 2],
        )  # fmt: skip
    scales = b.constant([1, 1, 2, 2], np.float32)
    x = b.op(
        "Resize", x, "", scales, coordinate_transformation_mode="half_pixel", mode="linear", cubic_coeff_a=-0.75,
        nearest_mode="floor",
    )  # fmt: skip
    return b.conv(x, channels, to, 1, "reduce", bias=True)


def _pad_to(b: Builder, x: str, other: str) -> str:
    """`F.pad(x, [dx // 2, dx - dx // 2, dy // 2, dy - dy // 2])`: the exporter turns the list around at run time."""
    amounts: list[str] = []
    for axis in (3, 2):
        difference = b.op("Sub", b.dim(other, axis), b.dim(x, axis))
        half = b.op("Div", difference, b.constant(2))
        amounts += [half, b.op("Sub", difference, half)]
    pads = b.op("Concat", b.shape(*amounts), b.constant([0] * 4), axis=0)
    pads = b.slice(b.op("Reshape", pads, b.constant([-1, 2])), 0, -1, -INT64, -1)
    pads = b.op("Reshape", b.op("Transpose", pads, perm=[1, 0]), b.constant([-1]))
    return b.op("Pad", x, b.op("Cast", pads, to=7), mode="constant")


INT64 = 2**63 - 1

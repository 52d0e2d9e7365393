# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""Convolutions, pooling, resizing and moves between space and channels: channels last to ONNX's first and back."""

from __future__ import annotations

from typing import Any

from npukit.frontends.tflite.builder import Builder
from npukit.frontends.tflite.registry import Refused, reads

_AUTO_PAD = {0: "SAME_UPPER", 1: "VALID"}


def _auto_pad(b: Builder) -> str:
    kind = int(b.op.get("Padding", 0))
    if kind not in _AUTO_PAD:
        raise Refused(f"the padding number {kind}")
    return _AUTO_PAD[kind]


def _window(b: Builder, axes: str = "HW") -> dict[str, Any]:
    return {
        "strides": [int(b.op.get(f"Stride{axis}", 1)) for axis in axes],
        "dilations": [max(1, int(b.op.get(f"Dilation{axis}Factor", 1))) for axis in axes],
        "auto_pad": _auto_pad(b),
    }


def _ranks(b: Builder, *wanted: tuple[int, int]) -> None:
    for i, rank in wanted:
        if b.rank(i) != rank:
            raise Refused(f"input {i} has {b.rank(i)} axes where {rank} are needed")


@reads("CONV_2D")
def conv_2d(b: Builder) -> None:
    """Input [N,H,W,C], w [O,h,w,C/group], bias [O] -> [N,H',W',O]."""
    _ranks(b, (0, 4), (1, 4))
    inner, channels = b.shape(1)[3], b.shape(0)[3]
    if not inner or channels % inner:
        raise Refused(f"a filter of {inner} channels over {channels}")
    y = b.node(
        "Conv", b.first(b.x(0)), b.weight(1, (0, 3, 1, 2)), b.bias(2, 0, 1), group=channels // inner, **_window(b)
    )
    b.set(b.last(y), fused=True)


@reads("DEPTHWISE_CONV_2D")
def depthwise_conv_2d(b: Builder) -> None:
    """Input [N,H,W,C], w [1,h,w,C*m], bias [C*m] -> [N,H',W',C*m]: one group a channel."""
    _ranks(b, (0, 4), (1, 4))
    group = b.shape(0)[3]
    y = b.node("Conv", b.first(b.x(0)), b.weight(1, (3, 0, 1, 2)), b.bias(2, 0, 1), group=group, **_window(b))
    b.set(b.last(y), fused=True)


@reads("CONV_3D")
def conv_3d(b: Builder) -> None:
    """Input [N,D,H,W,C], w [d,h,w,C,O], bias [O] -> [N,D',H',W',O]."""
    _ranks(b, (0, 5), (1, 5))
    group = b.shape(0)[4] // b.shape(1)[3]
    weight = b.weight(1, (4, 3, 0, 1, 2))
    y = b.node("Conv", b.first(b.x(0), 5), weight, b.bias(2, 0, 1), group=group, **_window(b, "DHW"))
    b.set(b.last(y, 5), fused=True)


@reads("TRANSPOSE_CONV")
def transpose_conv(b: Builder) -> None:
    """Output shape, w [O,h,w,C], x [N,H,W,C], bias [O] -> [N,H',W',O]; TensorFlow pads less before than behind."""
    _ranks(b, (1, 4), (2, 4))
    _transposed(b, "HW", b.shape(1)[1:3], (3, 0, 1, 2))


@reads("CONV_3D_TRANSPOSE")
def conv_3d_transpose(b: Builder) -> None:
    """Output shape, w [d,h,w,O,C], x [N,D,H,W,C], bias [O] -> [N,D',H',W',O]."""
    _ranks(b, (1, 5), (2, 5))
    _transposed(b, "DHW", b.shape(1)[:3], (4, 3, 0, 1, 2))


def _transposed(b: Builder, axes: str, kernels: tuple[int, ...], perm: tuple[int, ...]) -> None:
    rank = len(axes) + 2
    sizes = b.ints(0, "output shape")[1:-1]
    strides = [int(b.op.get(f"Stride{axis}", 1)) for axis in axes]
    same = _auto_pad(b) == "SAME_UPPER"
    begin, end, extra = [], [], []
    for size, stride, kernel, out in zip(b.shape(2)[1:-1], strides, kernels, sizes, strict=True):
        full = (size - 1) * stride + kernel
        surplus = max(0, full - out) if same else 0
        begin.append(surplus // 2)
        end.append(max(0, full - out) - surplus // 2)
        extra.append(max(0, out - full))
    y = b.node(
        "ConvTranspose", b.first(b.x(2), rank), b.weight(1, perm), b.bias(3, 2, 1),
        strides=strides, pads=[*begin, *end], output_padding=extra,
    )  # fmt: skip
    b.set(b.last(y, rank), fused=True)


@reads("MAX_POOL_2D", "AVERAGE_POOL_2D", "L2_POOL_2D")
def pool_2d(b: Builder) -> None:
    """What is padded does not count in an average."""
    _ranks(b, (0, 4))
    window: dict[str, Any] = {
        "kernel_shape": [int(b.op.get("FilterHeight", 1)), int(b.op.get("FilterWidth", 1))],
        "strides": [int(b.op.get("StrideH", 1)), int(b.op.get("StrideW", 1))],
        "auto_pad": _auto_pad(b),
    }
    x = b.first(b.x())
    if b.op.code == "MAX_POOL_2D":
        y = b.node("MaxPool", x, **window)
    elif b.op.code == "AVERAGE_POOL_2D":
        y = b.node("AveragePool", x, count_include_pad=0, **window)
    else:
        y = b.node("Sqrt", b.node("AveragePool", b.node("Mul", x, x), count_include_pad=0, **window))
    b.set(b.last(y), fused=True)


@reads("RESIZE_BILINEAR", "RESIZE_NEAREST_NEIGHBOR")
def resize(b: Builder) -> None:
    """Three ways of placing the grid; ties of nearest go up, but down where the grid is not centred."""
    _ranks(b, (0, 4))
    height, width = b.ints(1, "size")
    corners, half = bool(b.op.get("AlignCorners", False)), bool(b.op.get("HalfPixelCenters", False))
    place = "align_corners" if corners else "half_pixel" if half else "asymmetric"
    attributes: dict[str, Any] = {"mode": "linear"}
    if b.op.code == "RESIZE_NEAREST_NEIGHBOR":
        attributes = {"mode": "nearest", "nearest_mode": "round_prefer_ceil" if corners or half else "floor"}
    shape = b.shape(0)
    if shape[1:3] == (height, width):
        b.set(b.node("Identity", b.x(0)))
        return
    y = b.node(
        "Resize", b.first(b.x(0)), None, None, b.vector((shape[0], shape[3], height, width)),
        coordinate_transformation_mode=place, **attributes,
    )  # fmt: skip
    b.set(b.last(y))


@reads("SPACE_TO_DEPTH")
def space_to_depth(b: Builder) -> None:
    """Blocks of space to channels, block by block."""
    _ranks(b, (0, 4))
    b.set(b.last(b.node("SpaceToDepth", b.first(b.x()), blocksize=int(b.op.get("BlockSize", 1)))))


@reads("DEPTH_TO_SPACE")
def depth_to_space(b: Builder) -> None:
    """The way back."""
    _ranks(b, (0, 4))
    b.set(b.last(b.node("DepthToSpace", b.first(b.x()), blocksize=int(b.op.get("BlockSize", 1)), mode="DCR")))


@reads("SPACE_TO_BATCH_ND")
def space_to_batch_nd(b: Builder) -> None:
    """Every block position becomes a batch of its own."""
    blocks, pads = b.ints(1, "block shape"), b.ints(2, "paddings")
    shape, count = list(b.shape(0)), len(blocks)
    x = b.x(0)
    if any(pads):
        rest = [0] * (len(shape) - 1 - count)
        x = b.node("Pad", x, b.vector([0, *pads[::2], *rest, 0, *pads[1::2], *rest]))
        shape[1 : 1 + count] = [n + p + q for n, p, q in zip(shape[1:], pads[::2], pads[1::2], strict=False)]
    split = [shape[0]]
    for size, block in zip(shape[1 : 1 + count], blocks, strict=True):
        if block < 1 or size % block:
            raise Refused(f"blocks of {block} over {size} elements")
        split += [size // block, block]
    tail = shape[1 + count :]
    spatial, within = [1 + 2 * i for i in range(count)], [2 + 2 * i for i in range(count)]
    behind = [1 + 2 * count + i for i in range(len(tail))]
    y = b.transpose(b.reshape(x, [*split, *tail]), [*within, 0, *spatial, *behind])
    b.set(b.reshape(y, [-1, *(split[i] for i in spatial), *tail]))


@reads("BATCH_TO_SPACE_ND")
def batch_to_space_nd(b: Builder) -> None:
    """The way back, cropped."""
    blocks, crops = b.ints(1, "block shape"), b.ints(2, "crops")
    shape, count = list(b.shape(0)), len(blocks)
    batch = shape[0]
    for block in blocks:
        if block < 1 or batch % block:
            raise Refused(f"blocks of {block} in a batch of {shape[0]}")
        batch //= block
    tail = shape[1 + count :]
    split = b.reshape(b.x(0), [*blocks, batch, *shape[1:]])
    perm = [count]
    for i in range(count):
        perm += [count + 1 + i, i]
    perm += [2 * count + 1 + i for i in range(len(tail))]
    sizes = [n * block for n, block in zip(shape[1 : 1 + count], blocks, strict=True)]
    y = b.reshape(b.transpose(split, perm), [batch, *sizes, *tail])
    if any(crops):
        ends = [size - crop for size, crop in zip(sizes, crops[1::2], strict=True)]
        y = b.node("Slice", y, b.vector(crops[::2]), b.vector(ends), b.vector(range(1, 1 + count)))
    b.set(y)

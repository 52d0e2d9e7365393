# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""Operators that move elements: shapes, joins, cuts, padding, gathering, constants made from shapes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from npukit.frontends.tflite.builder import Builder
from npukit.frontends.tflite.registry import Refused, reads

_END = 2**31 - 1


@reads("RESHAPE")
def reshape(b: Builder) -> None:
    """To a constant shape, one that the options hold, or one computed from shapes."""
    if b.has(1):
        target = b.integers(1)
    else:
        target = b.vector(b.op.options.NewShapeAsNumpy() if b.op.options is not None else b.result().shape)
    if _pairs(b):
        target = b.node("Concat", target, b.vector([2]), axis=0)
    # 0 is a size here, not "as before"
    b.set(b.node("Reshape", b.x(0), target, allowzero=1))


def _pairs(b: Builder) -> bool:
    """Whether the values have an axis behind the file's: real and imaginary part."""
    return b.tensor(0).type_name == "COMPLEX64"


@reads("SQUEEZE")
def squeeze(b: Builder) -> None:
    """The named axes, or all of size 1."""
    dims = b.op.options.SqueezeDimsAsNumpy() if b.op.options is not None and b.op.options.SqueezeDimsLength() else []
    axes = [b.axis(int(axis)) for axis in dims] or [i for i, size in enumerate(b.shape(0)) if size == 1]
    b.set(b.node("Squeeze", b.x(), b.vector(axes)) if axes else b.x())


@reads("EXPAND_DIMS")
def expand_dims(b: Builder) -> None:
    """A new axis of size 1."""
    (axis,) = b.ints(1, "axis")
    b.set(b.node("Unsqueeze", b.x(), b.vector([b.axis(axis, b.rank() + 1)])))


@reads("TRANSPOSE")
def transpose(b: Builder) -> None:
    """By a constant permutation."""
    b.set(b.node("Transpose", b.x(), perm=b.ints(1, "permutation")))


@reads("CONCATENATION")
def concatenation(b: Builder) -> None:
    """Along one axis."""
    parts = [b.x(i) for i in range(len(b.op.inputs))]
    b.set(b.node("Concat", *parts, axis=b.axis(int(b.op.get("Axis", 0)))), fused=True)


@reads("PACK")
def pack(b: Builder) -> None:
    """Along a new axis."""
    axis = b.axis(int(b.op.get("Axis", 0)), b.rank() + 1)
    axes = b.vector([axis])
    b.set(b.node("Concat", *(b.node("Unsqueeze", b.x(i), axes) for i in range(len(b.op.inputs))), axis=axis))


@reads("UNPACK")
def unpack(b: Builder) -> None:
    """Slices of size 1 along an axis, which goes."""
    axis = b.axis(int(b.op.get("Axis", 0)))
    count = len(b.op.outputs)
    parts = [b.x()] if count == 1 else b.nodes("Split", b.x(), b.vector([1] * count), outputs=count, axis=axis)
    for i, part in enumerate(parts):
        b.set(b.node("Squeeze", part, b.vector([axis])), i)


@reads("SPLIT")
def split(b: Builder) -> None:
    """In equal parts."""
    (axis,) = b.ints(0, "axis")
    axis = b.axis(axis, b.rank(1))
    count = len(b.op.outputs)
    if count == 1:
        b.set(b.x(1))
        return
    each = b.shape(1)[axis] // count
    for i, part in enumerate(b.nodes("Split", b.x(1), b.vector([each] * count), outputs=count, axis=axis)):
        b.set(part, i)


@reads("SPLIT_V")
def split_v(b: Builder) -> None:
    """In parts of given sizes, one of which may be open."""
    sizes, (axis,) = b.ints(1, "sizes"), b.ints(2, "axis")
    axis = b.axis(axis)
    if -1 in sizes:
        sizes[sizes.index(-1)] = b.shape(0)[axis] - sum(sizes) - 1
    if len(sizes) == 1:
        b.set(b.x(0))
        return
    for i, part in enumerate(b.nodes("Split", b.x(0), b.vector(sizes), outputs=len(sizes), axis=axis)):
        b.set(part, i)


def _slice(b: Builder, x: ir.Value, begins: Sequence[int], ends: Sequence[int], steps: Sequence[int]) -> ir.Value:
    axes = [i for i, part in enumerate(zip(begins, ends, steps, strict=True)) if part != (0, _END, 1)]
    if not axes:
        return x
    return b.node("Slice", x, *(b.vector([part[i] for i in axes]) for part in (begins, ends)), b.vector(axes),
                  b.vector([steps[i] for i in axes]))  # fmt: skip


@reads("SLICE")
def slice_(b: Builder) -> None:
    """Begin and size; a size of -1 reaches to the end."""
    if b.raw_data(1) is None or b.raw_data(2) is None:
        begin, size = b.integers(1), b.integers(2)
        rest = b.node("Equal", size, b.vector([-1]))
        ends = b.node("Where", rest, b.vector([_END]), b.node("Add", begin, size))
        b.set(b.node("Slice", b.x(0), begin, ends, b.vector(range(b.rank()))))
        return
    begins, sizes = b.ints(1, "begin"), b.ints(2, "size")
    stops = [_END if size == -1 else begin + size for begin, size in zip(begins, sizes, strict=True)]
    b.set(_slice(b, b.x(0), begins, stops, [1] * len(begins)))


@reads("STRIDED_SLICE")
def strided_slice(b: Builder) -> None:
    """Python's indexing: ranges, single positions (their axis goes), new axes, one ellipsis."""
    if b.raw_data(1) is None or b.raw_data(2) is None:
        _computed_strided_slice(b)
        return
    begin, end, step = (b.ints(i, what) for i, what in ((1, "begin"), (2, "end"), (3, "strides")))
    masks = {name: int(b.op.get(f"{name}Mask", 0)) for name in ("Begin", "End", "Ellipsis", "NewAxis", "ShrinkAxis")}
    offset = bool(b.op.get("Offset", False))

    def flag(name: str, i: int) -> bool:
        return bool(masks[name] >> i & 1)

    rank = b.rank(0)
    count = len(begin)
    new = [i for i in range(count) if flag("NewAxis", i) and not flag("Ellipsis", i)]
    missing = rank - (count - len(new) - sum(flag("Ellipsis", i) for i in range(count)))
    parts: list[tuple[int, int, int]] = []
    shrink, fresh = [], []
    at = 0  # axis of the result before any goes
    for i in range(count):
        if flag("Ellipsis", i):
            for _ in range(missing):
                parts.append((0, _END, 1))
            at += missing
        elif i in new:
            fresh.append(at)
            at += 1
        elif flag("ShrinkAxis", i):
            parts.append((begin[i], begin[i] + 1 or _END, 1))
            shrink.append(at)
            at += 1
        else:
            back = step[i] < 0
            first = (_END if back else 0) if flag("Begin", i) else begin[i]
            last = begin[i] + end[i] if offset else end[i]
            parts.append((first, (-_END if back else _END) if flag("End", i) else last, step[i]))
            at += 1
    while len(parts) < rank:
        parts.append((0, _END, 1))
    if len(parts) != rank or any(not part[2] for part in parts):
        raise Refused("its masks do not fit the input")
    y = _slice(b, b.x(0), *([part[i] for part in parts] for i in range(3)))
    if fresh:
        y = b.node("Unsqueeze", y, b.vector(fresh))
    if shrink:
        y = b.node("Squeeze", y, b.vector(shrink))
    b.set(y)


def _computed_strided_slice(b: Builder) -> None:
    """Ranges and single positions whose ends are computed, along the leading axes."""
    steps = b.ints(3, "strides")
    masks = {name: int(b.op.get(f"{name}Mask", 0)) for name in ("Begin", "End", "Ellipsis", "NewAxis", "ShrinkAxis")}
    if masks["Ellipsis"] or masks["NewAxis"] or min(steps) < 1 or b.op.get("Offset", False):
        raise Refused("its ends are only known when it runs", "make them constants, or cut the model before it")
    axes = range(len(steps))
    shrink = [axis for axis in axes if masks["ShrinkAxis"] >> axis & 1]

    def masked(value: ir.Value, mask: int, other: int) -> ir.Value:
        chosen = b.constant(np.array([bool(mask >> axis & 1) for axis in axes]))
        return b.node("Where", chosen, b.vector([other] * len(steps)), value)

    begin = masked(b.integers(1), masks["Begin"] & ~masks["ShrinkAxis"], 0)
    behind = b.node("Add", begin, b.vector([1]))
    # the position behind the last one is 0 in numbers, the end in meaning
    behind = b.node("Where", b.node("Equal", behind, b.vector([0])), b.vector([_END]), behind)
    single = b.constant(np.array([axis in shrink for axis in axes]))
    end = b.node("Where", single, behind, masked(b.integers(2), masks["End"], _END))
    y = b.node("Slice", b.x(0), begin, end, b.vector(axes), b.vector(steps))
    b.set(b.node("Squeeze", y, b.vector(shrink)) if shrink else y)


@reads("PAD", "PADV2")
def pad(b: Builder) -> None:
    """With zeros or a constant, in real numbers."""
    pads = np.array(b.ints(1, "paddings")).reshape(-1, 2)
    value = b.data(2) if b.op.code == "PADV2" else None
    if b.op.code == "PADV2" and value is None:
        raise Refused("its value is only known when it runs")
    number = None if value is None or not value.any() else b.constant(value.reshape(()))
    if not pads.any():
        b.set(b.x(0))
        return
    b.set(b.node("Pad", b.x(0), b.vector([*pads[:, 0], *pads[:, 1]]), number))


@reads("MIRROR_PAD")
def mirror_pad(b: Builder) -> None:
    """Without the edge, or with it (which ONNX has no mode for: the elements are gathered)."""
    pads = np.array(b.ints(1, "paddings")).reshape(-1, 2)
    x, edge = b.x(0), int(b.op.get("Mode", 0)) == 1
    for size, amounts in zip(b.shape(0), pads, strict=True):
        if max(amounts) > size - (not edge) or min(amounts) < 0:
            raise Refused(f"paddings of {amounts[0]} and {amounts[1]} elements on an axis of {size}")
    if not edge:
        b.set(b.node("Pad", x, b.vector([*pads[:, 0], *pads[:, 1]]), mode="reflect") if pads.any() else x)
        return
    for axis, (before, behind) in enumerate(pads):
        if before or behind:
            b.room(b.shape(0)[axis] + int(before) + int(behind))
            index = np.pad(np.arange(b.shape(0)[axis]), (int(before), int(behind)), mode="symmetric")
            x = b.node("Gather", x, b.vector(index), axis=axis)
    b.set(x)


@reads("GATHER")
def gather(b: Builder) -> None:
    """Slices along an axis; within batches, one slice an index."""
    axis, batch = b.axis(int(b.op.get("Axis", 0))), int(b.op.get("BatchDims", 0))
    if not batch:
        b.set(b.node("Gather", b.x(0), b.x(1), axis=axis))
        return
    if axis != batch:
        raise Refused(f"gathering along axis {axis} within {batch} batch axes")
    index = b.node("Unsqueeze", b.cast(b.x(1), ir.DataType.INT64), b.vector([b.rank(1)]))
    b.set(b.node("GatherND", b.x(0), index, batch_dims=batch))


@reads("GATHER_ND")
def gather_nd(b: Builder) -> None:
    """By positions over the leading axes."""
    b.set(b.node("GatherND", b.x(0), b.cast(b.x(1), ir.DataType.INT64)))


@reads("TILE")
def tile(b: Builder) -> None:
    """Whole repeats."""
    b.set(b.node("Tile", b.x(0), b.integers(1)))


@reads("BROADCAST_TO")
def broadcast_to(b: Builder) -> None:
    """To a shape."""
    b.set(b.node("Expand", b.x(0), b.integers(1)))


@reads("BROADCAST_ARGS")
def broadcast_args(b: Builder) -> None:
    """The shape that two constant shapes broadcast to."""
    shape = np.broadcast_shapes(tuple(b.ints(0, "shape")), tuple(b.ints(1, "shape")))
    dtype = b.result().dtype
    assert dtype is not None
    b.set_data(b.result(), np.array(shape, dtype.numpy()))


@reads("REVERSE_V2")
def reverse(b: Builder) -> None:
    """Along constant axes."""
    axes = [b.axis(axis) for axis in b.ints(1, "axis")]
    ends = [b.vector([value] * len(axes)) for value in (-1, -_END)]
    b.set(b.node("Slice", b.x(0), *ends, b.vector(axes), b.vector([-1] * len(axes))))


@reads("REVERSE_SEQUENCE")
def reverse_sequence(b: Builder) -> None:
    """The first elements of every sequence."""
    batch, time = b.axis(int(b.op.get("BatchDim", 0))), b.axis(int(b.op.get("SeqDim", 0)))
    order = [batch, time, *(axis for axis in range(b.rank()) if axis not in (batch, time))]  # ONNX: the first two
    x = b.transpose(b.x(0), order)
    y = b.node("ReverseSequence", x, b.cast(b.x(1), ir.DataType.INT64), batch_axis=0, time_axis=1)
    b.set(b.transpose(y, np.argsort(order).tolist()))


@reads("SHAPE", "RANK")
def shape(b: Builder) -> None:
    """A constant where the input's shape is fixed, else computed by the passes that follow."""
    dtype = b.result().dtype
    if dtype is None:
        raise Refused(f"a shape as {b.result().type_name}")
    if b.op.code == "RANK":
        b.set_data(b.result(), np.array(b.rank(), dtype.numpy()))
        return
    b.set(b.cast(b.node("Shape", b.codes(0)), dtype))


@reads("FILL")
def fill(b: Builder) -> None:
    """One value."""
    b.set(b.node("Expand", b.x(1), b.integers(0)))


@reads("DILATE")
def dilate(b: Builder) -> None:
    """Elements `dilations` apart, with one value between them."""
    dilations, value = b.ints(1, "dilations"), b.data(2)
    if value is None:
        raise Refused("its value is only known when it runs")
    x, shape = b.x(0), list(b.shape(0))
    for axis, (size, step) in enumerate(zip(b.shape(0), dilations, strict=True)):
        if step < 1:
            raise Refused(f"a dilation of {step}")
        if step == 1:
            continue
        rank = len(shape)
        x = b.node("Unsqueeze", x, b.vector([axis + 1]))
        pads = [0] * (2 * (rank + 1))
        pads[rank + 1 + axis + 1] = step - 1
        x = b.node("Pad", x, b.vector(pads), b.constant(value.reshape(())))
        shape[axis] = size * step
        x = b.node("Slice", b.reshape(x, shape), b.vector([0]), b.vector([size * step - step + 1]), b.vector([axis]))
        shape[axis] = size * step - step + 1
    b.set(x)


@reads("RANGE")
def range_(b: Builder) -> None:
    """Of constants."""
    start, stop, step = (b.data(i) for i in range(3))
    if start is None or stop is None or step is None:
        raise Refused("its ends are only known when it runs")
    b.room(abs(int((stop.item() - start.item()) / step.item())))
    b.set_data(b.result(), np.arange(start.item(), stop.item(), step.item(), dtype=start.dtype))

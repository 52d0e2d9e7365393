# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""Shape and data movement, gathers and scatters."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from npukit.raising.emit import Emit
from npukit.raising.registry import raises


@raises("Reshape", "ExpandDims", "Squeeze")
def _reshape(e: Emit) -> ir.Value:
    """A static graph has the target shape in its output tensor."""
    return e.reshape(e.real(), e.out_shape())


@raises("Transpose")
def _transpose(e: Emit) -> ir.Value:
    perm = e.ints("perm")
    return e.call("Transpose", e.real(), perm=perm)


@raises("Concat")
def _concat(e: Emit) -> ir.Value:
    axis = e.integer("axis", len(e.shape()) - 1)
    return e.call("Concat", *(e.real(i) for i in range(len(e.op.inputs)) if e.has(i)), axis=axis)


@raises("Pack")
def _pack(e: Emit) -> ir.Value:
    axis = e.integer("axis")
    parts = [e.call("Unsqueeze", e.real(i), [axis]) for i in range(len(e.op.inputs)) if e.has(i)]
    return e.call("Concat", *parts, axis=axis)


@raises("UnPack")
def _unpack(e: Emit) -> list[ir.Value]:
    axis, count = e.integer("axis"), len(e.op.outputs)
    parts = e.calls("Split", e.real(), np.ones(count, np.int64), outputs=count, axis=axis)
    return [e.reshape(part, e.out_shape(i)) for i, part in enumerate(parts)]


@raises("Split")
def _split(e: Emit) -> list[ir.Value]:
    """split_index holds where each part but the first begins."""
    axis, count = e.integer("axis"), len(e.op.outputs)
    bounds = [0, *e.ints("split_index"), e.shape()[axis]]
    return e.calls("Split", e.real(), np.diff(bounds).astype(np.int64), outputs=count, axis=axis)


@raises("StridedSlice")
def _strided_slice(e: Emit) -> ir.Value:
    """New axes, then a range for each axis with begin and end masks, then axes dropped.

    An end below zero reaches past index 0 with a negative stride, as ONNX's lowest end does.
    """
    new, shrink = e.integer("new_axes_mask", 0), e.integer("shrink_axes", 0) & ~e.integer("new_axes_mask", 0)
    begin_mask, end_mask = e.integer("begin_mask", 0), e.integer("end_mask", 0)
    ranges = np.asarray(e.array("ranges"), np.int64).reshape(-1, 3)
    x, source = e.real(), iter(e.shape())
    shape = [1 if new >> i & 1 else next(source) for i in range(len(ranges))]
    if new:
        x = e.reshape(x, shape)
    starts, ends, axes, steps = [], [], [], []
    for axis, (begin, end, step) in enumerate(ranges.tolist()):
        if new >> axis & 1:
            continue
        if begin_mask >> axis & 1:
            begin = 0 if step > 0 else shape[axis] - 1
        if shrink >> axis & 1:
            end, step = begin + 1, 1
        elif end_mask >> axis & 1:
            end = shape[axis] if step > 0 else -1
        past = step < 0 and end < 0
        starts.append(begin)
        ends.append(-shape[axis] - 1 if past else end)
        axes.append(axis)
        steps.append(step)
    y = e.call("Slice", x, starts, ends, axes, steps)
    return e.reshape(y, e.out_shape()) if new or shrink else y


_PAD_MODES = {"CONSTANT": "constant", "MIRROR_REFLECT": "reflect", "EDGE": "edge"}


@raises("Pad")
def _pad(e: Emit) -> ir.Value:
    """One [before, after] row an axis; MIRROR_SYMMETRIC repeats the edge element, which ONNX Pad cannot."""
    rows, x = e.array("pad_amount").astype(np.int64).reshape(-1, 2), e.real()
    scheme = e.choice("scheme")
    if scheme == "MIRROR_SYMMETRIC":
        for axis, (before, after) in enumerate(rows.tolist()):
            if before or after:
                size = e.shape()[axis]
                index = np.pad(np.arange(size), (before, after), mode="symmetric")
                x = e.call("Gather", x, index.astype(np.int64), axis=axis)
        return x
    amounts = rows.T.ravel()
    if scheme != "CONSTANT":
        return e.call("Pad", x, amounts, mode=_PAD_MODES[scheme])
    return e.call("Pad", x, amounts, e.scalar_like(x, _pad_value(e)), mode="constant")


def _pad_value(e: Emit) -> float:
    """The constant as a real value: an integer given for an encoded tensor is a code of that tensor."""
    param, tensor = e.op.params.get("pad_constant_value"), e.given(0)
    value = e.scalar("pad_constant_value", 0)
    if param is None or param.dtype.is_float or not tensor.dtype.is_quantized or tensor.encoding is None:
        return value
    return (value + tensor.encoding.offset) * tensor.encoding.scale


@raises("Tile")
def _tile(e: Emit) -> ir.Value:
    return e.call("Tile", e.real(), np.asarray(e.ints("multiples"), np.int64))


def indices(e: Emit, index: int) -> ir.Value:
    """An index input as int64."""
    return e.cast(e.real(index), ir.DataType.INT64)


@raises("Gather")
def _gather(e: Emit) -> ir.Value:
    return e.call("Gather", e.real(0), indices(e, 1), axis=e.integer("axis"))


@raises("GatherElements")
def _gather_elements(e: Emit) -> ir.Value:
    return e.call("GatherElements", e.real(0), indices(e, 1), axis=e.integer("axis", 0))


@raises("GatherNd")
def _gather_nd(e: Emit) -> ir.Value:
    return e.call("GatherND", e.real(0), indices(e, 1), batch_dims=e.integer("batch_dims", 0))


@raises("ScatterElements", "ScatterNd")
def _scatter(e: Emit) -> ir.Value:
    reduction = e.choice("reduction", "NONE").lower()
    if e.op.type == "ScatterNd":
        return e.call("ScatterND", e.real(0), indices(e, 1), e.real(2), reduction=reduction)
    axis = e.integer("axis", 0)
    return e.call("ScatterElements", e.real(0), indices(e, 1), e.real(2), axis=axis, reduction=reduction)


@raises("OneHot")
def _one_hot(e: Emit) -> ir.Value:
    """on_value where the index of the new axis equals the input's, else off_value."""
    depth, rank = e.integer("depth"), len(e.shape())
    axis = e.integer("axis", rank)
    shape = [1] * (rank + 1)
    shape[axis] = depth
    hit = e.call("Equal", e.call("Unsqueeze", indices(e, 0), [axis]), np.arange(depth, dtype=np.int64).reshape(shape))
    dtype = e.real_type(e.op.outputs[0])
    values = [
        np.asarray(e.scalar(name, default)).astype(dtype.numpy())
        for name, default in (("on_value", 1), ("off_value", 0))
    ]
    return e.call("Where", hit, *values)


@raises("Shape")
def _shape(e: Emit) -> ir.Value:
    rank = len(e.shape())
    return e.build.constant(np.asarray(e.shape()[e.integer("start", 0) : e.integer("end", rank)], np.int64))


@raises("ConstantOfShape")
def _constant_of_shape(e: Emit) -> ir.Value:
    dtype = e.real_type(e.op.outputs[0])
    return e.call("Expand", np.asarray(e.scalar("value")).astype(dtype.numpy()), np.asarray(e.out_shape(), np.int64))


@raises("NonZero")
def _non_zero(e: Emit) -> ir.Value:
    """Rows of indices [count, rank]; rows up to the static count of the output tensor are zero."""
    found = e.transpose(e.call("NonZero", e.real()), [1, 0])
    limit = e.out_shape()[0]
    padded = e.call("Concat", found, np.zeros((limit, len(e.shape())), np.int64), axis=0)
    return e.call("Slice", padded, [0], [limit], [0])


def regroup(e: Emit, x: ir.Value, split: Sequence[int], perm: Sequence[int], shape: Sequence[int]) -> ir.Value:
    """Reshape to `split`, transpose by `perm`, reshape to `shape`."""
    return e.reshape(e.transpose(e.reshape(x, split), perm), shape)


@raises("ChannelShuffle")
def _channel_shuffle(e: Emit) -> ir.Value:
    shape, groups = list(e.shape()), e.integer("num_groups")
    axis = e.integer("axis", len(shape) - 1)
    split = [*shape[:axis], groups, shape[axis] // groups, *shape[axis + 1 :]]
    perm = list(range(len(split)))
    perm[axis], perm[axis + 1] = perm[axis + 1], perm[axis]
    return regroup(e, e.real(), split, perm, shape)


@raises("BatchPermutation")
def _batch_permutation(e: Emit) -> ir.Value:
    return e.call("Gather", e.real(0), indices(e, 1), axis=0)


@raises("DepthToSpace")
def _depth_to_space(e: Emit) -> ir.Value:
    """Channels (bh, bw, C') (DCR) or (C', bh, bw) (CRD) become space."""
    (n, h, w, c), (bh, bw) = e.shape(), e.ints("block_size")
    rest = c // (bh * bw)
    if e.choice("mode", "DCR") == "DCR":
        return regroup(e, e.real(), [n, h, w, bh, bw, rest], [0, 1, 3, 2, 4, 5], e.out_shape())
    return regroup(e, e.real(), [n, h, w, rest, bh, bw], [0, 1, 4, 2, 5, 3], e.out_shape())


@raises("SpaceToDepth")
def _space_to_depth(e: Emit) -> ir.Value:
    (n, h, w, c), (bh, bw) = e.shape(), e.ints("block_size")
    split = [n, h // bh, bh, w // bw, bw, c]
    perm = [0, 1, 3, 2, 4, 5] if e.choice("mode", "DCR") == "DCR" else [0, 1, 3, 5, 2, 4]
    return regroup(e, e.real(), split, perm, e.out_shape())


@raises("SpaceToBatch")
def _space_to_batch(e: Emit) -> ir.Value:
    """Pad, then blocks become batch: the block position is the slow part of the batch axis."""
    (n, h, w, c), (bh, bw) = e.shape(), e.ints("block_size")
    (top, bottom), (left, right) = e.array("pad_amount", [[0, 0], [0, 0]]).astype(int).tolist()
    x = e.real()
    if top or bottom or left or right:
        x = e.call("Pad", x, [0, top, left, 0, 0, bottom, right, 0], e.scalar_like(x, 0))
    h, w = h + top + bottom, w + left + right
    return regroup(e, x, [n, h // bh, bh, w // bw, bw, c], [2, 4, 0, 1, 3, 5], e.out_shape())


@raises("BatchToSpace")
def _batch_to_space(e: Emit) -> ir.Value:
    (n, h, w, c), (bh, bw) = e.shape(), e.ints("block_size")
    (top, bottom), (left, right) = e.array("crops", [[0, 0], [0, 0]]).astype(int).tolist()
    n //= bh * bw
    whole = [n, h * bh, w * bw, c]
    y = regroup(e, e.real(), [bh, bw, n, h, w, c], [2, 3, 0, 4, 1, 5], whole)
    if not (top or bottom or left or right):
        return y
    return e.call("Slice", y, [top, left], [h * bh - bottom, w * bw - right], [1, 2])

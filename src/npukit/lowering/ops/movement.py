# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""Shape and data movement: the elements stay what they are."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from npukit.lowering.emitter import Emitter
from npukit.lowering.holding import Perm, channel_last
from npukit.lowering.registry import Unsupported, lowers
from npukit.lowering.views import merged_transpose
from npukit.qnn.graph import DType, Param, Tensor


def axis_of(e: Emitter, value: ir.Value | None, axis: int, order: Perm | None) -> int:
    """Where a source axis (negative ones count from the end) lies in a tensor held in `order`."""
    rank = e.rank(value)
    if not -rank <= axis < rank:
        raise Unsupported(f"axis {axis} is outside rank {rank}")
    axis %= rank
    return axis if order is None else order.index(axis)


@lowers("Reshape", "Flatten", "Squeeze", "Unsqueeze")
def reshape(e: Emitter, node: ir.Node) -> None:
    """Another shape over the same elements in the source's order; the target shape is known from inference.

    x: T[*D] -> y: T[*E]
    T: any
    """
    x, y = e.get(node.inputs[0]), e.shape(node.outputs[0])
    e.bind(node.outputs[0], e.reshape(x, y))


@lowers("Identity")
def identity(e: Emitter, node: ir.Node) -> None:
    """Another name for the same tensor.

    x: T[*D] -> y: T[*D]
    T: any
    """
    x, order = e.held(node.inputs[0])
    e.bind(node.outputs[0], x, order)


@lowers("Transpose")
def transpose(e: Emitter, node: ir.Node) -> None:
    """Permutation of axes; merged into one axis group where a backend's rank limit asks for it.

    x: T[*D] -> y: T[*D']
    T: any
    """
    x, held = e.held(node.inputs[0])
    rank = e.rank(node.inputs[0])
    perm = tuple(node.attributes.get_ints("perm", list(range(rank))[::-1]))
    order = held or tuple(range(rank))
    axes = tuple(order.index(axis) for axis in perm)
    if rank == 0:
        e.bind(node.outputs[0], x)
        return
    e.forms(
        lambda: e.bind(node.outputs[0], e.transpose(x, axes)),
        lambda: e.bind(node.outputs[0], e.reshape(merged_transpose(e, x, axes), e.shape(node.outputs[0]))),
    )


@lowers("Concat")
def concat(e: Emitter, node: ir.Node) -> None:
    """Join along one axis; empty inputs are dropped.

    inputs: T[*D,n,*E]... -> y: T[*D,sum(n),*E]
    T: any; any order
    """
    axis = node.attributes.get_int("axis", 0)
    values = [v for v in node.inputs if 0 not in e.shape(v)]
    if len(values) == 1:
        x, order = e.held(values[0])
        e.bind(node.outputs[0], x, order)
        return
    parts, order = e.aligned(values)
    y = e.output(node.outputs[0], order)
    if any(part.encoding != y.encoding for part in parts) and e.quantized:
        parts = [part if part.encoding == y.encoding else _convert(e, part, y) for part in parts]
    e.emit("Concat", parts, [y], axis=axis_of(e, values[0], axis, order))


def _convert(e: Emitter, x: Tensor, like: Tensor) -> Tensor:
    return e.emit("Convert", [x], [e.temp(x.shape, like.dtype, like.encoding)])


@lowers("Split")
def split(e: Emitter, node: ir.Node) -> None:
    """Cut along one axis.

    x: T[*D,n,*E] -> outputs: T[*D,n_i,*E]...
    T: any; any order
    """
    x, order = e.held(node.inputs[0])
    axis = axis_of(e, node.inputs[0], node.attributes.get_int("axis", 0), order)
    lengths = [e.shape(output)[node.attributes.get_int("axis", 0)] for output in node.outputs]
    if len(lengths) == 1:
        e.bind(node.outputs[0], x, order)
        return
    if 0 in lengths:
        raise Unsupported("a part of the split is empty", hint="QNN has no empty tensors")
    ends = np.cumsum(lengths)[:-1].tolist()

    def native() -> None:
        e.emit("Split", [x], [e.output(v, order) for v in node.outputs], axis=axis, split_index=ends)

    def sliced() -> None:
        for value, begin, end in zip(node.outputs, [0, *ends], [*ends, sum(lengths)], strict=True):
            e.bind(value, e.slice(x, axis, begin, end), order)

    e.forms(native, sliced)


@lowers("Slice")
def slice_(e: Emitter, node: ir.Node) -> None:
    """A strided part with constant bounds.

    x: T[*D] -> y: T[*D']
    T: any; any order; starts, ends, axes, steps constant; the result not empty
    """
    shape = e.shape(node.inputs[0])
    starts, ends = e.ints(node.inputs[1], "starts"), e.ints(node.inputs[2], "ends")
    extra = [node.inputs[i] if len(node.inputs) > i else None for i in (3, 4)]
    axes = e.ints(extra[0], "axes") if extra[0] is not None else list(range(len(starts)))
    steps = e.ints(extra[1], "steps") if extra[1] is not None else [1] * len(starts)
    x, order = e.held(node.inputs[0])
    ranges = [[0, dim, 1] for dim in x.shape]
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        place = axis_of(e, node.inputs[0], axis, order)
        begin, stop, step = slice(start, end, step).indices(shape[axis % len(shape)])
        ranges[place] = [begin, stop, step]
    if 0 in e.shape(node.outputs[0]):
        raise Unsupported("the slice is empty", hint="QNN has no empty tensors")
    if all(tuple(r) == (0, dim, 1) for r, dim in zip(ranges, x.shape, strict=True)):
        e.bind(node.outputs[0], x, order)
        return
    e.forms(
        lambda: strided_slice(e, x, ranges, e.output(node.outputs[0], order)),
        lambda: _slice_by_axis(e, node, x, ranges, order),
    )


def strided_slice(e: Emitter, x: Tensor, ranges: list[list[int]], out: Tensor) -> Tensor:
    """StridedSlice with [begin, end, stride] per axis and no masks."""
    return e.emit("StridedSlice", [x], [out], ranges=ranges, begin_mask=0, end_mask=0, shrink_axes=0, new_axes_mask=0)


def _slice_by_axis(e: Emitter, node: ir.Node, x: Tensor, ranges: list[list[int]], order: Perm | None) -> None:
    """One axis at a time over three merged axes: for ranks beyond what StridedSlice takes."""
    for axis, (begin, stop, step) in enumerate(ranges):
        if (begin, stop, step) == (0, x.shape[axis], 1):
            continue
        outer, inner = int(np.prod(x.shape[:axis])), int(np.prod(x.shape[axis + 1 :]))
        part = e.slice(e.reshape(x, (outer, x.shape[axis], inner)), 1, begin, stop, step)
        x = e.reshape(part, (*x.shape[:axis], part.shape[1], *x.shape[axis + 1 :]))
    e.bind(node.outputs[0], x, order)


@lowers("Tile")
def tile(e: Emitter, node: ir.Node) -> None:
    """Repeat along each axis a constant number of times.

    x: T[*D] -> y: T[*D']
    T: any; any order
    """
    repeats = e.ints(node.inputs[1], "repeats")
    x, order = e.held(node.inputs[0])
    places = repeats if order is None else [repeats[axis] for axis in order]
    if 0 in repeats:
        raise Unsupported("a repeat of 0 gives an empty tensor")
    e.forms(
        lambda: e.emit("Tile", [x], [e.output(node.outputs[0], order)], multiples=places),
        lambda: e.bind(node.outputs[0], tiled(e, x, places), order),
    )


def tiled(e: Emitter, x: Tensor, repeats: list[int]) -> Tensor:
    """Tile by Concat, one axis at a time over three merged axes: any rank, any dtype."""
    for axis, count in enumerate(repeats):
        if count > 1:
            outer, inner = int(np.prod(x.shape[:axis])), int(np.prod(x.shape[axis + 1 :]))
            flat = e.reshape(x, (outer, x.shape[axis], inner))
            x = e.reshape(e.concat([flat] * count, 1), (*x.shape[:axis], x.shape[axis] * count, *x.shape[axis + 1 :]))
    return x


@lowers("Expand")
def expand(e: Emitter, node: ir.Node) -> None:
    """Broadcast to a constant shape.

    x: T[*D] -> y: T[*broadcast(D,shape)]
    T: any; the shape constant
    """
    target = e.shape(node.outputs[0])
    if 0 in target:
        raise Unsupported("the expanded tensor is empty", hint="QNN has no empty tensors")
    e.bind(node.outputs[0], broadcast(e, e.get(node.inputs[0]), target))


def broadcast(e: Emitter, x: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Repeat x along its axes of size 1 until it has `shape`; leading axes are added."""
    shape = shape or (1,)
    x = e.reshape(x, (1,) * (len(shape) - x.rank) + x.shape) if x.rank < len(shape) else x
    repeats = [want if have == 1 else 1 for have, want in zip(x.shape, shape, strict=True)]
    if max(repeats) == 1:
        return x
    if x.data is not None and x.encoding is None:
        return e.static(np.tile(x.data, repeats), x.dtype)
    dims = tuple(have * n for have, n in zip(x.shape, repeats, strict=True))
    return e.forms(
        lambda: e.emit("Tile", [x], [e.temp(dims, x.dtype, x.encoding)], multiples=repeats),
        lambda: tiled(e, x, repeats),
    )


@lowers("DepthToSpace", "SpaceToDepth")
def depth_space(e: Emitter, node: ir.Node) -> None:
    """Blocks of channels to blocks of pixels and back.

    x: T[N,C,H,W] -> y: T[N,C',H',W']
    T: any
    """
    block = node.attributes.get_int("blocksize")
    x = e.channel_last(node.inputs[0])
    mode = node.attributes.get_string("mode", "DCR")

    def direct() -> None:
        if node.op_type == "SpaceToDepth" and (mode != "DCR" or "space_to_depth_wrong" in e.quirks):
            raise Unsupported("SpaceToDepth is DCR only, or gives wrong values on a target")
        y = e.output(node.outputs[0], channel_last(4))
        e.emit(node.op_type, [x], [y], block_size=[block, block], mode=mode)

    e.forms(direct, lambda: _depth_space_by_transpose(e, node, x, block, mode))


def _depth_space_by_transpose(e: Emitter, node: ir.Node, x: Tensor, b: int, mode: str) -> None:
    n, h, w, c = x.shape
    if node.op_type == "SpaceToDepth":  # [N,H/b,b,W/b,b,C] -> [N,H/b,W/b,b,b,C]
        split = e.reshape(x, (n * (h // b), b, w // b, b * c))
        y = e.transpose(split, (0, 2, 1, 3))
        if mode == "CRD":  # channels [b*b, C] -> [C, b*b]
            y = e.transpose(e.reshape(y, (n * (h // b) * (w // b), b * b, c)), (0, 2, 1))
        y = e.reshape(y, (n, h // b, w // b, b * b * c))
    elif mode == "DCR":  # channels are [b,b,C']
        rows = e.reshape(x, (n * h, w, b, c // b))
        y = e.reshape(e.transpose(rows, (0, 2, 1, 3)), (n, h * b, w * b, c // (b * b)))
    else:  # CRD: channels are [C',b,b]
        last = e.transpose(e.reshape(x, (n * h * w, c // (b * b), b * b)), (0, 2, 1))
        rows = e.reshape(last, (n * h, w, b, c // b))
        y = e.reshape(e.transpose(rows, (0, 2, 1, 3)), (n, h * b, w * b, c // (b * b)))
    e.bind(node.outputs[0], y, channel_last(4))


_MAX_SLICES = 4096  # of a padding by reflection or edge


@lowers("Pad")
def pad(e: Emitter, node: ir.Node) -> None:
    """Constant, reflect, edge or wrap padding with constant amounts; negative amounts crop.

    x: T[*D] -> y: T[*D']
    T: any; any order; pads and axes constant
    """
    shape = e.shape(node.inputs[0])
    rank = len(shape)
    inputs = [node.inputs[i] if len(node.inputs) > i else None for i in range(4)]
    pads = e.ints(inputs[1], "pads")
    axes = e.ints(inputs[3], "axes") if inputs[3] is not None else list(range(rank))
    mode = node.attributes.get_string("mode", "constant")
    x, order = e.held(node.inputs[0])
    amounts = [[0, 0] for _ in range(rank)]
    for i, axis in enumerate(axes):
        amounts[axis_of(e, node.inputs[0], axis, order)] = [pads[i], pads[i + len(axes)]]
    fill = e.constant(inputs[2]) if inputs[2] is not None else np.zeros(1, np.float32)
    for axis, (before, after) in enumerate(amounts):
        if before < 0 or after < 0:
            x = e.slice(x, axis, max(0, -before), x.shape[axis] - max(0, -after))
            amounts[axis] = [max(0, before), max(0, after)]
    if not any(before or after for before, after in amounts):
        e.bind(node.outputs[0], x, order)
        return
    if fill is None and mode == "constant":  # a computed padding value
        block = e.reshape(e.get(inputs[2]), (1,))
        e.bind(node.outputs[0], _padded_with(e, x, amounts, block), order)
        return
    if mode == "constant":
        number = float(np.asarray(fill).reshape(-1)[0])
        e.forms(
            lambda: _native_pad(e, node, x, "CONSTANT", amounts, number, order),
            lambda: e.bind(node.outputs[0], padded_by_concat(e, x, amounts, "constant", number), order),
        )
        return
    scheme = {"reflect": "MIRROR_REFLECT", "edge": "EDGE"}.get(mode)
    e.forms(
        lambda: _native_pad(e, node, x, scheme, amounts, 0.0, order),
        lambda: e.bind(node.outputs[0], padded_by_concat(e, x, amounts, mode, 0.0), order),
    )


def _native_pad(
    e: Emitter,
    node: ir.Node,
    x: Tensor,
    scheme: str | None,
    amounts: list[list[int]],
    number: float,
    order: Perm | None,
) -> None:

    if scheme is None:
        raise Unsupported("Pad has no such scheme")
    if scheme != "CONSTANT" and "pad_mirror_and_edge_unreliable" in e.quirks:
        raise Unsupported("Pad by reflection or edge gives wrong values on a target")
    if scheme == "CONSTANT" and "pad_constant_only_zero" in e.quirks and number != 0 and x.dtype.is_float:
        raise Unsupported("a target pads floats with zero only")
    # also where twice the offset is a whole turn: a sum below zero becomes any code
    coded = scheme == "CONSTANT" and x.encoding is not None and x.encoding.offset != 0
    if coded and "pad_of_codes_wrong" in e.quirks:
        raise Unsupported("a target fills codes with other codes")
    y = e.output(node.outputs[0], order)
    value: Param | None = None
    if scheme == "CONSTANT":
        if x.encoding is not None:
            value = Param(DType.INT_32, round(number / x.encoding.scale) - x.encoding.offset)
        elif x.dtype.is_float:
            value = Param(DType.FLOAT_32, number)
        else:
            value = Param(DType.INT_32, int(number))
    e.emit("Pad", [x], [y], scheme=scheme, pad_amount=amounts, pad_constant_value=value)


def padded_by_concat(e: Emitter, x: Tensor, amounts: list[list[int]], mode: str, number: float) -> Tensor:
    """Padding as Concat of constants or slices, one axis at a time over three merged axes."""
    for axis, (before, after) in enumerate(amounts):
        if not before and not after:
            continue
        size = x.shape[axis]
        outer, inner = int(np.prod(x.shape[:axis])), int(np.prod(x.shape[axis + 1 :]))
        flat = e.reshape(x, (outer, size, inner))
        parts: list[Tensor] = []
        if mode == "constant":
            blocks = [
                e.static(np.full((outer, count, inner), number, x.dtype.numpy), x.dtype) if count else None
                for count in (before, after)
            ]
            parts = [part for part in (blocks[0], flat, blocks[1]) if part is not None]
        else:
            slices = before + after if mode == "edge" else (before + after) // max(1, size - 1)
            if slices > _MAX_SLICES:
                raise Unsupported(
                    f"padding of {before} and {after} elements takes {slices} slices of an axis of {size}, "
                    f"more than the {_MAX_SLICES} that are written"
                )
            for begin, stop, step in _runs(_source_indices(size, before, after, mode)):
                parts.append(e.slice(flat, 1, begin, stop, step))
        x = e.reshape(e.concat(parts, 1), (*x.shape[:axis], size + before + after, *x.shape[axis + 1 :]))
    return x


def _padded_with(e: Emitter, x: Tensor, amounts: list[list[int]], value: Tensor) -> Tensor:
    """Padding with a computed scalar: the mask of what is padding selects it."""
    zeros = padded_by_concat(e, x, amounts, "constant", 0.0)
    outside = np.ones(zeros.shape, bool)
    outside[tuple(slice(b, b + n) for (b, _), n in zip(amounts, x.shape, strict=True))] = False
    return e.select(e.static(outside, DType.BOOL_8), value, zeros)


def _source_indices(size: int, before: int, after: int, mode: str) -> list[int]:
    """Where each padded element comes from (numpy.pad's own rule for reflect, edge and wrap)."""
    return [int(i) for i in np.pad(np.arange(size), (before, after), mode=mode)]  # type: ignore[call-overload]


def _runs(indices: list[int]) -> list[tuple[int, int, int]]:
    """Maximal arithmetic runs of step 1 or -1 as (begin, end, step) for a slice."""
    runs: list[tuple[int, int, int]] = []
    i = 0
    while i < len(indices):
        j, step = i + 1, 1
        if j < len(indices) and indices[j] - indices[i] in (1, -1):
            step = indices[j] - indices[i]
            while j < len(indices) and indices[j] - indices[j - 1] == step:
                j += 1
        runs.append((indices[i], indices[j - 1] + step, step))
        i = j
    return runs

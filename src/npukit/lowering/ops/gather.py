# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""Indexed reading and writing: Gather, Scatter, OneHot and what is like them.

Indices are held as INT_32. QNN knows no negative run-time indices on HTP, so indices that are not constant and
may be negative get the axis length added where they are below zero.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from npukit.lowering.emitter import Emitter
from npukit.lowering.registry import Unsupported, lowers
from npukit.lowering.views import merged_shape
from npukit.qnn.graph import Array, DType, Tensor

from .movement import axis_of


def indices_of(e: Emitter, value: ir.Value | None, limit: int | Array) -> Tensor:
    """An index tensor without negative entries; `limit` is the length of the axis (or one per last entry)."""
    known = e.constant(value)
    if known is not None:
        return e.static(np.where(known < 0, known + limit, known), DType.INT_32, hint="indices")
    x = e.get(value)
    if "gather_negative_indices" not in e.quirks and np.ndim(limit) == 0:
        return x
    if x.rank > 5:  # CPU fails to finalize some INT_32 ops of more axes, HTP takes none
        flat = _wrapped_any(e, e.reshape(x, merged_shape(x.shape, 4)), limit)
        return e.reshape(flat, x.shape)
    return _wrapped_any(e, x, limit)


def _wrapped_any(e: Emitter, x: Tensor, limit: int | Array) -> Tensor:
    # int32 comparison is not everywhere; the sign is: x + limit * (x < 0)
    bound = e.static(np.asarray(limit, np.int32), DType.INT_32)
    return e.forms(
        lambda: e.select(e.compare("ElementWiseLess", x, 0), e.add(x, bound), x),
        lambda: _wrapped(e, x, bound),
    )


def _wrapped(e: Emitter, x: Tensor, bound: Tensor) -> Tensor:
    below = e.compare("ElementWiseLess", e.cast(x, e.float_dtype), 0.0)
    return e.add(x, e.mul(e.cast(below, DType.INT_32), bound))


def as_float(e: Emitter, x: Tensor) -> Tensor:
    """Bool data as floats: what backends refuse to gather or scatter as bools."""
    return e.cast(x, e.float_dtype) if x.dtype is DType.BOOL_8 else x


@lowers("Gather")
def gather(e: Emitter, node: ir.Node) -> None:
    """Slices of the data along one axis.

    data: T[*D,n,*E], indices: int[*I] -> y: T[*D,*I,*E]
    T: any
    """
    data = e.get(node.inputs[0])
    axis = axis_of(e, node.inputs[0], node.attributes.get_int("axis", 0), None)
    known, where = e.constant(node.inputs[1]), e.shape(node.inputs[1])
    if known is not None and known.size == 1:  # one slice
        index = int(known.reshape(-1)[0]) % data.shape[axis]
        e.bind(node.outputs[0], e.reshape(e.slice(data, axis, index, index + 1), e.shape(node.outputs[0])))
        return
    indices = indices_of(e, node.inputs[1], data.shape[axis])
    shape = (*data.shape[:axis], *(where or (1,)), *data.shape[axis + 1 :])

    def native(x: Tensor) -> None:
        y = e.emit("Gather", [x, indices], [e.temp(shape, x.dtype, x.encoding)], axis=axis)
        e.bind(node.outputs[0], y)

    def merged(x: Tensor) -> None:
        outer, inner = int(np.prod(x.shape[:axis])), int(np.prod(x.shape[axis + 1 :]))
        flat = e.reshape(x, (outer, x.shape[axis], inner))
        index = e.reshape(indices, (int(np.prod(indices.shape)),))
        y = e.emit("Gather", [flat, index], [e.temp((outer, index.shape[0], inner), x.dtype, x.encoding)], axis=1)
        e.bind(node.outputs[0], e.reshape(y, shape))

    e.forms(
        lambda: native(data),
        lambda: merged(data),
        lambda: native(as_float(e, data)),
        lambda: merged(as_float(e, data)),
    )


@lowers("GatherElements")
def gather_elements(e: Emitter, node: ir.Node) -> None:
    """One element of the data per index, along one axis.

    data: T[*D], indices: int[*I] -> y: T[*I]
    T: any; rank of data and indices equal
    """
    data = e.get(node.inputs[0])
    axis = axis_of(e, node.inputs[0], node.attributes.get_int("axis", 0), None)
    for place, (size, count) in enumerate(zip(data.shape, e.shape(node.inputs[1]), strict=True)):
        if place != axis and count < size:  # the indices leave out the end of the data
            data = e.slice(data, place, 0, count)
    indices = indices_of(e, node.inputs[1], data.shape[axis])

    def native(x: Tensor, i: Tensor, at: int) -> None:
        y = e.emit("GatherElements", [x, i], [e.temp(i.shape, x.dtype, x.encoding)], axis=at)
        e.bind(node.outputs[0], y)

    def raised(x: Tensor) -> None:  # to rank 4 by leading ones
        lead = (1,) * (4 - x.rank)
        native(e.reshape(x, lead + x.shape), e.reshape(indices, lead + indices.shape), axis + len(lead))

    def merged(x: Tensor) -> None:  # to three axes, where indices and data agree on all others
        def lengths(shape: tuple[int, ...]) -> tuple[int, int, int]:
            return int(np.prod(shape[:axis])), shape[axis], int(np.prod(shape[axis + 1 :]))

        native(e.reshape(x, (1, *lengths(x.shape))), e.reshape(indices, (1, *lengths(indices.shape))), 2)

    e.forms(
        lambda: native(data, indices, axis),
        lambda: raised(data),
        lambda: merged(data),
        lambda: native(as_float(e, data), indices, axis),
        lambda: raised(as_float(e, data)),
        lambda: merged(as_float(e, data)),
    )


@lowers("GatherND")
def gather_nd(e: Emitter, node: ir.Node) -> None:
    """Slices of the data at index tuples.

    data: T[*B,*D], indices: int[*B,*I,k] -> y: T[*B,*I,*E]
    T: any
    """
    data = e.get(node.inputs[0])
    batch = node.attributes.get_int("batch_dims", 0)
    width = e.shape(node.inputs[1])[-1]
    indices = indices_of(e, node.inputs[1], np.array(data.shape[batch : batch + width], np.int64))
    shape = e.shape(node.outputs[0])

    def native(x: Tensor) -> None:
        if batch and indices.data is not None and "gather_nd_constant_batches_wrong" in e.quirks:
            raise Unsupported("GatherNd of constant batches differs on a target")
        y = e.emit("GatherNd", [x, indices], [e.temp(shape, x.dtype, x.encoding)], batch_dims=batch)
        e.bind(node.outputs[0], y)

    def flat(x: Tensor) -> None:
        """Index tuples as one number into a flattened axis: a Gather per batch entry."""
        dims = x.shape[batch : batch + width]
        strides = [int(np.prod(dims[i + 1 :])) for i in range(width)]
        count = int(np.prod(x.shape[:batch]))
        rows = e.reshape(indices, (count, -1 if count == 0 else int(np.prod(indices.shape[batch:-1])), width))
        number = None
        for i, stride in enumerate(strides):
            part = e.slice(rows, 2, i, i + 1)
            part = e.mul(part, stride) if stride != 1 else part
            number = part if number is None else e.add(number, part)
        assert number is not None
        inner = int(np.prod(x.shape[batch + width :]))
        table = e.reshape(x, (count, int(np.prod(dims)), inner))
        picked = []
        for b in range(count):
            index = e.reshape(e.slice(number, 0, b, b + 1), (rows.shape[1],))
            source = e.reshape(e.slice(table, 0, b, b + 1), (table.shape[1], inner))
            picked.append(e.emit("Gather", [source, index], [e.temp((rows.shape[1], inner), x.dtype)], axis=0))
        e.bind(node.outputs[0], e.reshape(e.concat(picked, 0), shape))

    e.forms(
        lambda: native(data), lambda: native(as_float(e, data)), lambda: flat(data), lambda: flat(as_float(e, data))
    )


_REDUCTIONS = {"none": "NONE", "add": "ADD", "mul": "MUL", "max": "MAX"}


@lowers("ScatterElements", "Scatter")
def scatter_elements(e: Emitter, node: ir.Node) -> None:
    """Write one element per index along one axis.

    data: T[*D], indices: int[*I], updates: T[*I] -> y: T[*D]
    T: any; reduction none, add, mul, max, min
    """
    reduction = node.attributes.get_string("reduction", "none")
    data, updates = e.get(node.inputs[0]), e.get(node.inputs[2])
    axis = axis_of(e, node.inputs[0], node.attributes.get_int("axis", 0), None)
    indices = indices_of(e, node.inputs[1], data.shape[axis])

    def native(x: Tensor, u: Tensor, mode: str) -> Tensor:
        if x.shape[1:] != indices.shape[1:] and "scatter_elements_takes_indices_for_data" in e.quirks:
            return flat(x, u, mode)
        return e.emit(
            "ScatterElements", [x, indices, u], [e.temp(x.shape, x.dtype, x.encoding)], axis=axis, reduction=mode
        )

    def flat(x: Tensor, u: Tensor, mode: str) -> Tensor:
        """Over one axis: an index becomes the element's place in the whole of the data."""
        size, count = int(np.prod(x.shape)), int(np.prod(indices.shape))
        strides = [int(np.prod(x.shape[i + 1 :])) for i in range(x.rank)]
        others = np.indices(indices.shape, dtype=np.int32)
        base = sum(others[i] * stride for i, stride in enumerate(strides) if i != axis)
        line = e.reshape(indices, (count,))
        offsets = e.static(np.broadcast_to(np.asarray(base, np.int32), indices.shape).reshape(count))
        places = e.add(e.mul(line, strides[axis]), offsets)
        out = e.temp((size,), x.dtype, x.encoding)
        inputs = [e.reshape(x, (size,)), places, e.reshape(u, (count,))]
        return e.reshape(e.emit("ScatterElements", inputs, [out], axis=0, reduction=mode), x.shape)

    def direct() -> None:
        if reduction not in _REDUCTIONS:
            raise Unsupported(f"ScatterElements has no reduction {reduction!r}")
        e.bind(node.outputs[0], native(data, updates, _REDUCTIONS[reduction]))

    def negated() -> None:  # min(a, b) = -max(-a, -b)
        if reduction != "min":
            raise Unsupported("only min is a negated max")
        x, u = e.unary("ElementWiseNeg", data), e.unary("ElementWiseNeg", updates)
        e.bind(node.outputs[0], e.unary("ElementWiseNeg", native(x, u, "MAX")))

    e.forms(
        direct,
        negated,
        lambda: _scatter_by_select(e, node, data, updates, axis, reduction),
        lambda: e.bind(node.outputs[0], _scatter_by_compare(e, data, indices, updates, axis, reduction)),
    )


_STEPS = 256  # run-time indices placed one after another at most
_COMBINE = {
    "add": "ElementWiseAdd",
    "mul": "ElementWiseMultiply",
    "max": "ElementWiseMaximum",
    "min": "ElementWiseMinimum",
}


def _scatter_by_compare(
    e: Emitter, data: Tensor, indices: Tensor, updates: Tensor, axis: int, reduction: str
) -> Tensor:
    """Run-time indices: one after another is compared with the places along the axis, so that duplicates count."""
    others = [(a, b) for i, (a, b) in enumerate(zip(data.shape, indices.shape, strict=True)) if i != axis]
    count, size = indices.shape[axis], data.shape[axis]
    if any(a != b for a, b in others) or count > _STEPS:
        raise Unsupported("run-time indices (this reduction) that leave out parts of the data, or more than 256")
    outer, inner = int(np.prod(data.shape[:axis])), int(np.prod(data.shape[axis + 1 :]))
    result = e.reshape(data, (outer, size, inner))
    if size > 2048 and "float32_computed_in_float16" in e.quirks:
        raise Unsupported("run-time indices (this reduction) beyond 2048, which float16 does not hold")
    # compared as floats: slices of INT_32 that broadcast fail to finalize on HTP
    where = e.reshape(e.cast(indices, e.float_dtype), (outer, count, inner))
    new = e.reshape(updates, (outer, count, inner))
    places = e.static(np.broadcast_to(np.arange(size, dtype=np.float32)[None, :, None], result.shape).copy())
    for k in range(count):
        here = e.compare("ElementWiseEqual", places, e.slice(where, 1, k, k + 1))
        part = e.slice(new, 1, k, k + 1)
        if reduction == "none":
            part = e.add(part, e.static(np.zeros(result.shape, np.float32), part.dtype))
        else:
            part = e.binary(_COMBINE[reduction], result, part)
        result = e.select(here, part, result)
    return e.reshape(result, data.shape)


def _scatter_by_select(e: Emitter, node: ir.Node, data: Tensor, updates: Tensor, axis: int, reduction: str) -> None:
    """Constant indices: each update element is placed by a gather of the updates and a mask."""
    known = e.need_constant(node.inputs[1], "indices (this reduction)")
    known = np.where(known < 0, known + data.shape[axis], known)
    places = np.stack(np.meshgrid(*[np.arange(n) for n in known.shape], indexing="ij"), -1).reshape(-1, known.ndim)
    targets = places.copy()
    targets[:, axis] = known.reshape(-1)
    e.bind(node.outputs[0], _place(e, data, e.reshape(updates, (len(places),)), targets, reduction))


def _place(e: Emitter, data: Tensor, updates: Tensor, targets: Array, reduction: str) -> Tensor:
    """Elements `updates[i]` written (or reduced) at constant positions `targets[i]` of data, in order."""
    size = int(np.prod(data.shape))
    flat = np.ravel_multi_index(tuple(targets.T), data.shape)
    result = e.reshape(data, (size,))
    remaining = list(enumerate(flat.tolist()))
    while remaining:  # each round writes a position at most once, so that duplicates keep their order
        now: dict[int, int] = {}
        later = []
        for source, place in remaining:
            if place in now:
                later.append((source, place))
            else:
                now[place] = source
        gather = np.zeros(size, np.int32)
        mask = np.zeros(size, bool)
        for place, source in now.items():
            gather[place], mask[place] = source, True
        picked = e.emit("Gather", [updates, e.static(gather, DType.INT_32)], [e.temp((size,), updates.dtype)], axis=0)
        new = picked if reduction == "none" else e.binary(_COMBINE[reduction], result, picked)
        result = e.select(e.static(mask, DType.BOOL_8), new, result)
        remaining = later
    return e.reshape(result, data.shape)


@lowers("ScatterND")
def scatter_nd(e: Emitter, node: ir.Node) -> None:
    """Write slices at index tuples.

    data: T[*D], indices: int[*I,k], updates: T[*I,*E] -> y: T[*D]
    T: any; reduction none, add, mul; max and min with constant indices, or up to 256 run-time ones
    """
    reduction = node.attributes.get_string("reduction", "none")
    data, updates = e.get(node.inputs[0]), e.get(node.inputs[2])
    width = e.shape(node.inputs[1])[-1]

    def native() -> None:
        if reduction not in ("none", "add", "mul"):
            raise Unsupported(f"ScatterNd has no reduction {reduction!r}")
        indices = indices_of(e, node.inputs[1], np.array(data.shape[:width], np.int64))
        out = e.temp(data.shape, data.dtype, data.encoding)
        e.bind(node.outputs[0], e.emit("ScatterNd", [data, indices, updates], [out], reduction=_REDUCTIONS[reduction]))

    def placed() -> None:
        known = e.need_constant(node.inputs[1], "indices (this reduction)")
        known = np.where(known < 0, known + np.array(data.shape[:width]), known).reshape(-1, width)
        inner = data.shape[width:]
        tails = np.indices(inner).reshape(len(inner), -1).T if inner else np.zeros((1, 0), np.int64)
        targets = np.concatenate([np.repeat(known, len(tails), 0), np.tile(tails, (len(known), 1))], 1)
        e.bind(node.outputs[0], _place(e, data, e.reshape(updates, (len(targets),)), targets, reduction))

    def compared() -> None:
        """Index tuples as one number into the flattened leading axes."""
        lead, inner = data.shape[:width], int(np.prod(data.shape[width:]))
        indices = indices_of(e, node.inputs[1], np.array(lead, np.int64))
        count = int(np.prod(indices.shape[:-1]))
        rows, number = e.reshape(indices, (count, width)), None
        for i in range(width):
            part = e.mul(e.slice(rows, 1, i, i + 1), int(np.prod(lead[i + 1 :])))
            number = part if number is None else e.add(number, part)
        assert number is not None
        wide = e.add(number, e.static(np.zeros((count, inner), np.int32)))
        table = e.reshape(data, (int(np.prod(lead)), inner))
        y = _scatter_by_compare(e, table, wide, e.reshape(updates, (count, inner)), 0, reduction)
        e.bind(node.outputs[0], e.reshape(y, data.shape))

    e.forms(native, placed, compared)


@lowers("OneHot")
def one_hot(e: Emitter, node: ir.Node) -> None:
    """`on` at the index, `off` elsewhere, along a new axis.

    indices: int[*I], depth: int[], values: T[2] -> y: T[*I,depth]
    T: float, int32; depth and values constant
    """
    depth = e.ints(node.inputs[1], "depth")[0]
    off, on = (float(v) for v in e.need_constant(node.inputs[2], "values").reshape(-1))
    shape = e.shape(node.outputs[0])
    axis = node.attributes.get_int("axis", -1) % len(shape)
    before = e.shape(node.inputs[0])
    indices = e.get(node.inputs[0])
    number = indices if indices.dtype.is_float else e.cast(indices, e.float_dtype)
    number = e.select(e.compare("ElementWiseLess", number, 0.0), e.add(number, float(depth)), number)
    column = e.reshape(number, (*before[:axis], 1, *before[axis:]))
    ladder = e.static(np.arange(depth, dtype=np.float32).reshape([-1 if i == axis else 1 for i in range(len(shape))]))
    equal = e.compare("ElementWiseEqual", column, ladder)
    spread = e.cast(equal, e.float_dtype)
    y = e.mul(spread, on - off) if on - off != 1 else spread
    e.bind(node.outputs[0], e.add(y, off) if off else y)


@lowers("Compress")
def compress(e: Emitter, node: ir.Node) -> None:
    """The slices whose condition holds.

    x: T[*D], condition: bool[n] -> y: T[*D']
    T: any; condition constant
    """
    kept = np.flatnonzero(e.need_constant(node.inputs[1], "condition"))
    axis = node.attributes.get("axis")
    x = e.get(node.inputs[0])
    if axis is None:
        x, place = e.reshape(x, (int(np.prod(x.shape)),)), 0
    else:
        place = axis.as_int() % x.rank
    if not len(kept):
        raise Unsupported("the result is empty", hint="QNN has no empty tensors")
    shape = (*x.shape[:place], len(kept), *x.shape[place + 1 :])
    index = e.static(kept, DType.INT_32, hint="indices")
    e.bind(node.outputs[0], e.emit("Gather", [x, index], [e.temp(shape, x.dtype, x.encoding)], axis=place))

# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""Elements put in other places: Col2Im, MaxUnpool, TensorScatter, ReverseSequence, EyeLike; and counting n-grams."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from npukit.lowering.emitter import Emitter
from npukit.lowering.registry import Unsupported, lowers
from npukit.qnn.graph import DType, Tensor

from .forms import from_bool, negative
from .gather import as_float
from .matrix import matmul
from .movement import axis_of, padded_by_concat
from .reduce import reduced

LARGEST_MATRIX = 1 << 24  # elements of a constant placement matrix


@lowers("EyeLike")
def eye_like(e: Emitter, node: ir.Node) -> None:
    """Ones on a diagonal: a constant, as only the input's shape counts.

    x: T[M,N] -> y: T2[M,N]
    T2: float, integer, bool
    """
    rows, columns = e.shape(node.outputs[0])
    dtype = e.held_dtype(e.source_dtype(node.outputs[0]))
    eye = np.eye(rows, columns, node.attributes.get_int("k", 0))
    e.bind(node.outputs[0], e.static(eye.astype(dtype.numpy), dtype))


@lowers("Col2Im")
def col2im(e: Emitter, node: ir.Node) -> None:
    """Columns added up into the image they were cut from: a product with the constant matrix of places.

    x: T[N,C*prod(block),L], image_shape: int64[s], block_shape: int64[s] -> y: T[N,C,*image]
    T: float; image_shape and block_shape constant; prod(block) * L * prod(image) up to 2^24
    """
    image, block = e.ints(node.inputs[1], "image_shape"), e.ints(node.inputs[2], "block_shape")
    count = len(image)
    strides, dilations = (list(node.attributes.get_ints(key, [1] * count)) for key in ("strides", "dilations"))
    pads = list(node.attributes.get_ints("pads", [0] * 2 * count))
    x = e.get(node.inputs[0])
    n, wide, length = x.shape
    taps, area = int(np.prod(block)), int(np.prod(image))
    if taps * length * area > LARGEST_MATRIX:
        raise Unsupported("Col2Im of this size", hint="at most 2^24 elements of block, columns and image together")
    columns = [
        (size + pads[i] + pads[i + count] - dilations[i] * (block[i] - 1) - 1) // strides[i] + 1
        for i, size in enumerate(image)
    ]
    tap, column = (np.indices(dims).reshape(count, -1) for dims in (block, columns))
    place = tap[:, :, None] * np.reshape(dilations, (-1, 1, 1)) + column[:, None] * np.reshape(strides, (-1, 1, 1))
    place = place - np.reshape(pads[:count], (-1, 1, 1))  # [axis, tap, column]
    inside = np.all((place >= 0) & (place < np.reshape(image, (-1, 1, 1))), 0)
    flat = np.ravel_multi_index(tuple(np.clip(place, 0, np.reshape(image, (-1, 1, 1)) - 1)), image)
    matrix = np.zeros((taps * length, area), np.float32)
    matrix[np.arange(taps * length)[inside.reshape(-1)], flat.reshape(-1)[inside.reshape(-1)]] = 1
    rows = e.reshape(x, (n * wide // taps, taps * length))
    e.bind(node.outputs[0], e.reshape(matmul(e, rows, e.static(matrix, hint="places")), e.shape(node.outputs[0])))


@lowers("MaxUnpool")
def max_unpool(e: Emitter, node: ir.Node) -> None:
    """Elements put back to where MaxPool found them, zeros elsewhere.

    x: T[N,C,*S], indices: int64[N,C,*S], output_shape: int64[*]? -> y: T[N,C,*S']
    T: float; no index twice; indices count in the shape that kernel, strides and pads give
    """
    x, shape = e.get(node.inputs[0]), e.shape(node.outputs[0])
    kernel = list(node.attributes.get_ints("kernel_shape"))
    count = len(kernel)
    strides, pads = (
        list(node.attributes.get_ints(key, [default] * size))
        for key, default, size in (("strides", 1, count), ("pads", 0, 2 * count))
    )
    inner = [(size - 1) * strides[i] - pads[i] - pads[i + count] + kernel[i] for i, size in enumerate(x.shape[2:])]
    whole = (*x.shape[:2], *inner)
    total, given = int(np.prod(whole)), int(np.prod(x.shape))
    index, updates = e.reshape(e.get(node.inputs[1]), (given,)), e.reshape(x, (given,))
    zeros = e.static(np.zeros(total, np.float32), x.dtype)
    y = e.emit("ScatterElements", [zeros, index, updates], [e.temp((total,), x.dtype)], axis=0, reduction="NONE")
    y = e.reshape(y, whole)
    for axis, (have, want) in enumerate(zip(whole, shape, strict=True)):
        y = e.slice(y, axis, 0, want) if have > want else y
    amounts = [[0, max(0, want - have)] for have, want in zip(whole, shape, strict=True)]
    e.bind(node.outputs[0], padded_by_concat(e, y, amounts, "constant", 0.0))


def _within(e: Emitter, x: Tensor, limit: int) -> Tensor:
    """1 where 0 <= x < limit, else 0, INT_32."""
    return e.mul(e.sub(1, negative(e, x)), negative(e, e.sub(x, limit)))


@lowers("TensorScatter")
def tensor_scatter(e: Emitter, node: ir.Node) -> None:
    """A cache with an update written at each batch entry's place along one axis.

    cache: T[B,*D,L,*E], update: T[B,*D,S,*E], write_indices: int64[B]? -> y: T[B,*D,L,*E]
    T: any; mode linear or circular
    """
    cache, update = e.get(node.inputs[0]), e.get(node.inputs[1])
    axis = axis_of(e, node.inputs[0], node.attributes.get_int("axis", -2), None)
    circular = node.attributes.get_string("mode", "linear") == "circular"
    batch, length, count = cache.shape[0], cache.shape[axis], update.shape[axis]
    middle, inner = int(np.prod(cache.shape[1:axis])), int(np.prod(cache.shape[axis + 1 :]))
    where = node.inputs[2] if len(node.inputs) > 2 else None
    start = e.reshape(e.get(where), (batch, 1)) if where is not None else e.static(np.zeros((batch, 1), np.int32))
    place = np.arange(length, dtype=np.int32).reshape(1, length)
    ahead = e.sub(e.static(np.repeat(place, batch, 0)), start)  # how far behind the first written place: [B,L]
    if circular:
        ahead = e.add(ahead, e.mul(negative(e, ahead), length))
    written = _within(e, ahead, count)
    # rows of one (batch, middle) entry: the cache's, then the update's
    row = e.add(e.static(place), e.mul(written, e.add(ahead, e.static(length - place))))
    entries = np.arange(batch * middle, dtype=np.int32).reshape(batch, middle, 1) * (length + count)
    index = e.add(e.reshape(row, (batch, 1, length)), e.static(entries))
    index = e.reshape(index, (batch * middle * length,))

    def gathered(a: Tensor, b: Tensor) -> None:
        parts = [e.reshape(t, (batch * middle, t.shape[axis], inner)) for t in (a, b)]
        table = e.reshape(e.concat(parts, 1), (batch * middle * (length + count), inner))
        out = e.temp((index.shape[0], inner), table.dtype, table.encoding)
        e.bind(node.outputs[0], e.reshape(e.emit("Gather", [table, index], [out], axis=0), cache.shape))

    e.forms(lambda: gathered(cache, update), lambda: gathered(as_float(e, cache), as_float(e, update)))


@lowers("ReverseSequence")
def reverse_sequence(e: Emitter, node: ir.Node) -> None:
    """The first sequence_lens[b] elements of each batch entry in reverse.

    x: T[*D], sequence_lens: int64[B] -> y: T[*D]
    T: any; the batch and time axes are the first two
    """
    batch_axis = node.attributes.get_int("batch_axis", 1)
    x = e.get(node.inputs[0])
    first, second, inner = x.shape[0], x.shape[1], int(np.prod(x.shape[2:]))
    rows, columns = np.indices((first, second), dtype=np.int32)
    time, batches = (rows, second) if batch_axis == 1 else (columns, first)
    lengths = e.constant(node.inputs[1])
    if lengths is not None:
        ends = lengths.reshape((1, batches) if batch_axis == 1 else (batches, 1))
        turned = np.where(time < ends, ends - 1 - time, time)
        places = turned * second + columns if batch_axis == 1 else rows * second + turned
        index = e.static(places.reshape(-1), DType.INT_32, hint="indices")
    else:
        held = e.get(node.inputs[1])
        end = e.reshape(held, (1, batches) if batch_axis == 1 else (batches, 1))
        step = e.static(time)
        inside = negative(e, e.sub(step, end))
        # time + inside * (end - 1 - 2 time)
        move = e.mul(inside, e.sub(e.sub(end, 1), e.static(2 * time)))
        place = e.add(e.static(rows * second + columns), e.mul(move, second) if batch_axis == 1 else move)
        index = e.reshape(place, (first * second,))

    def gathered(data: Tensor) -> None:
        table = e.reshape(data, (first * second, inner))
        out = e.temp(table.shape, table.dtype, table.encoding)
        e.bind(node.outputs[0], e.reshape(e.emit("Gather", [table, index], [out], axis=0), x.shape))

    e.forms(lambda: gathered(x), lambda: gathered(as_float(e, x)))


@lowers("TfIdfVectorizer")
def tf_idf(e: Emitter, node: ir.Node) -> None:
    """How often each n-gram of a pool comes in rows of token numbers, plain or weighted.

    x: T[*N,C] -> y: float[*N,G]
    T: integer; *N is at most one axis; tokens are integers within int32; strings are not held
    """
    pool = list(node.attributes.get_ints("pool_int64s", []))
    if not pool:
        raise Unsupported("TfIdfVectorizer over strings", kind="dtype cannot be held")
    places = list(node.attributes.get_ints("ngram_indexes"))
    starts = [*node.attributes.get_ints("ngram_counts"), len(pool)]
    shortest, longest = (node.attributes.get_int(key) for key in ("min_gram_length", "max_gram_length"))
    skips = node.attributes.get_int("max_skip_count")
    shape = e.shape(node.outputs[0])
    x = e.get(node.inputs[0])
    batch, tokens, wide = (shape[0] if len(shape) == 2 else 1), x.shape[-1], shape[-1]
    x = e.reshape(x, (batch, tokens, 1))
    counts: list[Tensor] = []
    used = 0  # n-grams of the pool before those of this length
    for size, (begin, end) in enumerate(zip(starts, starts[1:], strict=False), 1):
        grams = np.array(pool[begin:end], np.int64).reshape(-1, size)
        here = places[used : used + len(grams)]
        used += len(grams)
        if not len(grams) or not shortest <= size <= longest:
            continue
        spread = np.zeros((len(grams), wide), np.float32)
        spread[np.arange(len(grams)), here] = 1
        for step in range(1, (1 if size == 1 else skips + 1) + 1):
            windows = tokens - (size - 1) * step
            if windows < 1:
                break
            match: Tensor | None = None
            for k in range(size):
                token = e.slice(x, 1, k * step, k * step + windows)
                same = e.compare("ElementWiseEqual", token, e.static(grams[:, k].reshape(1, 1, -1), DType.INT_32))
                hit = from_bool(e, same, e.float_dtype)
                match = hit if match is None else e.mul(match, hit)
            assert match is not None
            found = e.reshape(reduced(e, "ReduceSum", match, [1]), (batch, len(grams)))
            counts.append(matmul(e, found, e.static(spread, hint="places")))
    if not counts:
        e.bind(node.outputs[0], e.static(np.zeros(shape, np.float32), e.float_dtype))
        return
    total = counts[0]
    for count in counts[1:]:
        total = e.add(total, count)
    mode = node.attributes.get_string("mode")
    if mode == "IDF":
        total = e.binary("ElementWiseMinimum", total, 1.0)
    weights = node.attributes.get_floats("weights", [])
    if mode != "TF" and len(weights):
        column = np.zeros((1, wide), np.float32)  # by output place, as onnx's reference and ONNX Runtime read them
        column[0, : len(weights)] = np.asarray(weights[:wide], np.float32)
        total = e.mul(total, e.static(column, hint="weights"))
    e.bind(node.outputs[0], e.reshape(total, shape))

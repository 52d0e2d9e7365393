# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""Pooling: windows over [N,C,*S], held channels last.

ONNX's ceil_mode is resolved to explicit padding here: a last window counts only if it starts inside the input or
its left padding, and QNN's own CEIL mode differs in the overhang (shared/reference/onnx_to_qnn.md sections 4, 8).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from npukit.lowering.emitter import Emitter
from npukit.lowering.holding import Perm, channel_last
from npukit.lowering.registry import Unsupported, lowers
from npukit.qnn.graph import Tensor

from .conv import resolve_pads
from .movement import padded_by_concat, strided_slice
from .reduce import reduced

LOWEST = -65504.0  # the least float16: what HTP computes floats in


@dataclass(frozen=True)
class Windows:
    """Windows of a pooling node per spatial axis; `pads` include what ceil_mode adds behind."""

    kernel: list[int]
    strides: list[int]
    dilations: list[int]
    pads: list[list[int]]
    own_pads: list[list[int]]

    @property
    def plain(self) -> bool:
        return max(self.dilations) == 1


def windows(node: ir.Node, spatial: tuple[int, ...], out: tuple[int, ...]) -> Windows:
    """The windows of a pooling node; `out` is the spatial output shape that ONNX gives."""
    count = len(spatial)
    kernel = list(node.attributes.get_ints("kernel_shape"))
    strides = list(node.attributes.get_ints("strides", [1] * count))
    dilations = list(node.attributes.get_ints("dilations", [1] * count))
    own = resolve_pads(node, spatial, kernel, strides, dilations)
    pads = []
    for size, k, s, d, (before, after), n in zip(spatial, kernel, strides, dilations, own, out, strict=True):
        needed = (n - 1) * s + (k - 1) * d + 1 - size - before
        pads.append([before, max(after, needed) if needed > 0 else min(after, max(needed, 0))])
    return Windows(kernel, strides, dilations, pads, own)


def _pooled(e: Emitter, op_type: str, x: Tensor, w: Windows, out: Tensor, **params: object) -> Tensor:
    """A native pool over two or three axes; one axis gets a height of 1."""
    kernel, strides, pads = w.kernel, w.strides, w.pads
    if len(kernel) == 1:
        x = e.reshape(x, (x.shape[0], 1, *x.shape[1:]))
        target = e.temp((out.shape[0], 1, *out.shape[1:]), out.dtype, out.encoding)
        kernel, strides, pads = [1, *kernel], [1, *strides], [[0, 0], *pads]
        e.emit(op_type + "2d", [x], [target], filter_size=kernel, stride=strides, pad_amount=pads, **params)
        return e.emit("Reshape", [target], [out])
    dims = f"{len(kernel)}d"
    return e.emit(op_type + dims, [x], [out], filter_size=kernel, stride=strides, pad_amount=pads, **params)


def _filled(e: Emitter, x: Tensor, pads: list[list[int]], number: float) -> Tensor:
    """Pad x along its spatial axes with a constant."""
    amounts = [[0, 0], *pads, [0, 0]]
    if not any(before or after for before, after in pads):
        return x
    shape = [dim + before + after for dim, (before, after) in zip(x.shape, amounts, strict=True)]

    def native() -> Tensor:
        if "pad_constant_only_zero" in e.quirks and number != 0:
            raise Unsupported("a target pads floats with zero only")
        return e.emit(
            "Pad", [x], [e.temp(shape, x.dtype, x.encoding)], scheme="CONSTANT", pad_amount=amounts,
            pad_constant_value=number,
        )  # fmt: skip

    return e.forms(native, lambda: padded_by_concat(e, x, amounts, "constant", number))


def _tap_slices(e: Emitter, x: Tensor, w: Windows, out: tuple[int, ...]) -> list[Tensor]:
    """The input as each kernel tap sees it: one strided slice a tap, x already padded."""
    taps = []
    for tap in np.ndindex(*w.kernel):
        ranges = [[0, x.shape[0], 1]]
        for t, d, s, n in zip(tap, w.dilations, w.strides, out, strict=True):
            ranges.append([t * d, t * d + (n - 1) * s + 1, s])
        ranges.append([0, x.shape[-1], 1])
        shape = (x.shape[0], *out, x.shape[-1])
        taps.append(strided_slice(e, x, ranges, e.temp(shape, x.dtype, x.encoding)))
    return taps


def _axis_taps(e: Emitter, x: Tensor, axis: int, w: Windows, count: int) -> list[Tensor]:
    """What each tap of the kernel's line along one tensor axis sees: [outer, count, inner] each, x already padded."""
    outer, inner = int(np.prod(x.shape[:axis])), int(np.prod(x.shape[axis + 1 :]))
    flat = e.reshape(x, (outer, x.shape[axis], inner))
    k, d, s = w.kernel[axis - 1], w.dilations[axis - 1], w.strides[axis - 1]
    return [e.slice(flat, 1, t * d, t * d + (count - 1) * s + 1, s) for t in range(k)]


def _max_by_taps(e: Emitter, x: Tensor, w: Windows, out: tuple[int, ...]) -> Tensor:
    """Maxima of windows, one axis after another; x already padded."""
    for axis in range(x.rank - 2, 0, -1):
        taps = _axis_taps(e, x, axis, w, out[axis - 1])
        best = taps[0]
        for tap in taps[1:]:
            best = e.binary("ElementWiseMaximum", best, tap)
        x = e.reshape(best, (*x.shape[:axis], out[axis - 1], *x.shape[axis + 1 :]))
    return x


def _max_with_places(e: Emitter, x: Tensor, places: Tensor, w: Windows, out: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Maxima of windows and the entry of `places` (as x) at the first maximum, the last axis running fastest."""
    for axis in range(x.rank - 2, 0, -1):
        taps, names = (_axis_taps(e, t, axis, w, out[axis - 1]) for t in (x, places))
        best, place = taps[0], names[0]
        for tap, name in zip(taps[1:], names[1:], strict=True):
            place = e.select(e.compare("ElementWiseGreater", tap, best), name, place)
            best = e.binary("ElementWiseMaximum", best, tap)
        shape = (*x.shape[:axis], out[axis - 1], *x.shape[axis + 1 :])
        x, places = e.reshape(best, shape), e.reshape(place, shape)
    return x, places


@lowers("MaxPool")
def max_pool(e: Emitter, node: ir.Node) -> None:
    """Maximum over windows, and where it is.

    x: T[N,C,*S] -> y: T[N,C,*S'], indices: int64[N,C,*S']
    T: float, int32, quantized (without indices); one to three spatial axes
    """
    rank = e.rank(node.inputs[0])
    perm = channel_last(rank)
    x = e.channel_last(node.inputs[0])
    out = e.shape(node.outputs[0])[2:]
    w = windows(node, x.shape[1:-1], out)
    padded = any(before or after for before, after in w.pads)
    if len(node.outputs) > 1 and node.outputs[1].name and (node.outputs[1].uses() or node.outputs[1].is_graph_output()):
        _with_indices(e, node, x if x.dtype.is_float else e.cast(x, e.float_dtype), w, out)
        return

    def native(source: Tensor, pads: list[list[int]]) -> None:
        if not w.plain:
            raise Unsupported("PoolMax has no dilations")
        inner = Windows(w.kernel, w.strides, w.dilations, pads, pads)
        if source.dtype == x.dtype:
            _pooled(e, "PoolMax", source, inner, e.output(node.outputs[0], perm))
        else:
            y = _pooled(e, "PoolMax", source, inner, e.temp((x.shape[0], *out, x.shape[-1]), source.dtype))
            e.bind(node.outputs[0], e.cast(y, x.dtype), perm)

    def direct() -> None:
        if padded and "pool_max_pads_with_zero" in e.quirks and not _not_negative(node, e):
            raise Unsupported("PoolMax pads with zero on a target")
        native(x, w.pads)

    none = [[0, 0]] * (rank - 2)

    def thinned(source: Tensor) -> None:
        """Strides that are multiples of the dilations: only every d-th element is ever read."""
        if w.plain or any(s % d for s, d in zip(w.strides, w.dilations, strict=True)):
            raise Unsupported("PoolMax has no such dilations")
        full = _filled(e, source, w.pads, LOWEST)
        for axis, d in enumerate(w.dilations, 1):
            full = e.slice(full, axis, 0, full.shape[axis], d) if d > 1 else full
        strides = [s // d for s, d in zip(w.strides, w.dilations, strict=True)]
        inner = Windows(w.kernel, strides, [1] * len(strides), none, none)
        y = _pooled(e, "PoolMax", full, inner, e.temp((x.shape[0], *out, x.shape[-1]), source.dtype, source.encoding))
        e.bind(node.outputs[0], e.cast(y, x.dtype), perm)

    def by_taps(source: Tensor) -> None:
        best = _max_by_taps(e, _filled(e, source, w.pads, LOWEST), w, out)
        e.bind(node.outputs[0], e.cast(best, x.dtype), perm)

    def in_two(source: Tensor) -> None:
        """Three axes as two pools: over H and W of [N*D,H,W,C], then over D of [N,D,H'*W',C]."""
        if rank != 5 or not w.plain:
            raise Unsupported("only three plain axes are pooled in two steps")
        full = _filled(e, source, w.pads, LOWEST)
        n, d, h, width, c = full.shape
        flat = e.reshape(full, (n * d, h, width, c))
        plane = Windows(w.kernel[1:], w.strides[1:], [1, 1], none[1:], [])
        y = _pooled(e, "PoolMax", flat, plane, e.temp((n * d, *out[1:], c), source.dtype))
        y = e.reshape(y, (n, d, out[1] * out[2], c))
        depth = Windows([w.kernel[0], 1], [w.strides[0], 1], [1, 1], none[1:], [])
        y = _pooled(e, "PoolMax", y, depth, e.temp((n, out[0], out[1] * out[2], c), source.dtype))
        e.bind(node.outputs[0], e.cast(e.reshape(y, (n, *out, c)), x.dtype), perm)

    def as_float() -> Tensor:
        return x if x.dtype.is_float else e.cast(x, e.float_dtype)

    e.forms(
        direct,
        lambda: native(_filled(e, x, w.pads, LOWEST), none),
        lambda: native(_filled(e, as_float(), w.pads, LOWEST), none),
        lambda: in_two(as_float()),
        lambda: thinned(as_float()),
        lambda: by_taps(x),
        lambda: by_taps(as_float()),
    )


def _with_indices(e: Emitter, node: ir.Node, x: Tensor, w: Windows, out: tuple[int, ...]) -> None:
    """Both outputs; an index counts elements of the whole source tensor, by columns where storage_order is 1."""
    n, c = e.shape(node.inputs[0])[:2]
    spatial = x.shape[1:-1]
    line = np.arange(int(np.prod(spatial)), dtype=np.int32)
    grid = line.reshape(spatial, order="F" if node.attributes.get_int("storage_order", 0) else "C")
    image = np.arange(n * c, dtype=np.int32).reshape(n, *[1] * len(spatial), c) * line.size
    places = np.pad(image + grid[None, ..., None], [(0, 0), *w.pads, (0, 0)])
    full = _filled(e, x, w.pads, LOWEST)
    best, place = _max_with_places(e, full, e.static(places, hint="places"), w, out)
    perm = channel_last(x.rank)
    e.bind(node.outputs[0], best, perm)
    e.bind(node.outputs[1], place, perm)


def _not_negative(node: ir.Node, e: Emitter) -> bool:
    """Whether the pooled value is known to be at least 0, so that padding with zeros changes nothing."""
    producer = node.inputs[0].producer() if node.inputs[0] is not None else None
    return producer is not None and producer.op_type in ("Relu", "Sigmoid", "Softmax", "HardSigmoid", "Softplus")


@lowers("AveragePool")
def average_pool(e: Emitter, node: ir.Node) -> None:
    """Mean over windows.

    x: T[N,C,*S] -> y: T[N,C,*S']
    T: float, quantized; one to three spatial axes
    """
    rank = e.rank(node.inputs[0])
    perm = channel_last(rank)
    x = e.channel_last(node.inputs[0])
    out = e.shape(node.outputs[0])[2:]
    w = windows(node, x.shape[1:-1], out)
    include = bool(node.attributes.get_int("count_include_pad", 0))
    overhang = w.pads != w.own_pads and any(p[1] > o[1] for p, o in zip(w.pads, w.own_pads, strict=True))
    padded = any(before or after for before, after in w.pads)

    def direct() -> None:
        if not w.plain or (include and overhang):
            raise Unsupported("PoolAvg has no such windows")
        if padded and "pool_avg_pads_wrong" in e.quirks:
            raise Unsupported("PoolAvg counts padding wrongly on a target")
        _pooled(e, "PoolAvg", x, w, e.output(node.outputs[0], perm), count_pad_for_edges=include)

    def convolved() -> None:
        """A depthwise convolution with weights 1 / area, which pads with zeros, then a constant factor."""
        if rank > 4:
            raise Unsupported("a depthwise convolution is over two axes")
        area = float(np.prod(w.kernel))
        mean = _depthwise_mean(e, x, w, (x.shape[0], *out, x.shape[-1]))
        factor = area / _counts(w, x.shape[1:-1], out, include)
        scaled = mean if np.all(factor == 1) else e.mul(mean, e.static(factor[None, ..., None].astype(np.float32)))
        e.bind(node.outputs[0], scaled, perm)

    def weighted() -> None:
        """The sum over zero-padded windows times a constant 1 / count per output place."""
        source = _filled(e, x, w.pads, 0.0)
        area = float(np.prod(w.kernel))
        inner = Windows(w.kernel, w.strides, w.dilations, [[0, 0]] * (rank - 2), [])
        shape = (x.shape[0], *out, x.shape[-1])
        if w.plain:
            mean = _pooled(e, "PoolAvg", source, inner, e.temp(shape, x.dtype))
        else:
            total: Tensor | None = None
            for tap in _tap_slices(e, source, w, out):
                total = tap if total is None else e.add(total, tap)
            assert total is not None
            mean = e.mul(total, 1.0 / area)
        factor = area / _counts(w, x.shape[1:-1], out, include)
        scaled = mean if np.all(factor == 1) else e.mul(mean, e.static(factor[None, ..., None].astype(np.float32)))
        e.bind(node.outputs[0], scaled, perm)

    e.forms(direct, convolved, weighted)


def _depthwise_mean(e: Emitter, x: Tensor, w: Windows, shape: tuple[int, ...]) -> Tensor:
    """Sums over zero-padded windows divided by the window's area: [N,*out,C]."""
    flat = len(w.kernel) == 1
    one: list[int] = [1] if flat else []
    kernel, channels = [*one, *w.kernel], x.shape[-1]
    weight = np.full((*kernel, 1, channels), 1.0 / np.prod(kernel), np.float32)
    source = e.reshape(x, (x.shape[0], 1, *x.shape[1:])) if flat else x
    out = e.temp((shape[0], 1, *shape[1:]) if flat else shape, x.dtype)
    e.emit(
        "DepthWiseConv2d",
        [source, e.static(weight, hint="weight"), e.static(np.zeros(channels, np.float32), hint="bias")],
        [out],
        stride=[*one, *w.strides],
        pad_amount=[[0, 0], *w.pads] if flat else w.pads,
        dilation=[*one, *w.dilations],
    )
    return e.reshape(out, shape)


def _counts(w: Windows, spatial: tuple[int, ...], out: tuple[int, ...], include: bool) -> npt.NDArray[np.int64]:
    """How many elements each window averages: [*out]."""
    per_axis = []
    for size, k, s, d, (before, after), n in zip(
        spatial, w.kernel, w.strides, w.dilations, w.own_pads, out, strict=True
    ):
        starts = np.arange(n)[:, None] * s - before + np.arange(k)[None, :] * d
        low, high = (-before, size + after) if include else (0, size)
        per_axis.append(((starts >= low) & (starts < high)).sum(1))
    counts = per_axis[0]
    for axis in per_axis[1:]:
        counts = np.multiply.outer(counts, axis)
    return np.asarray(np.maximum(counts, 1), np.int64)


@lowers("GlobalAveragePool", "GlobalMaxPool")
def global_pool(e: Emitter, node: ir.Node) -> None:
    """Mean or maximum over all spatial axes.

    x: T[N,C,*S] -> y: T[N,C,1*]
    T: float, quantized; any order
    """
    x, order = e.held(node.inputs[0])
    rank = e.rank(node.inputs[0])
    axes = sorted(range(2, rank) if order is None else (order.index(a) for a in range(2, rank)))
    kind = "ReduceMean" if node.op_type == "GlobalAveragePool" else "ReduceMax"
    pool = "PoolAvg2d" if node.op_type == "GlobalAveragePool" else "PoolMax2d"

    def native() -> None:
        e.emit(kind, [x], [e.output(node.outputs[0], order)], axes=axes, keep_dims=True)

    def pooled() -> None:
        source = e.channel_last(node.inputs[0])
        if source.rank != 4:
            raise Unsupported(f"{pool} is for rank 4")
        size = list(source.shape[1:3])
        y = e.output(node.outputs[0], channel_last(4))
        e.emit(pool, [source], [y], filter_size=size, stride=size, pad_amount=[[0, 0], [0, 0]])

    e.forms(native, pooled) if not e.for_integers else e.forms(pooled, native)


@lowers("LpPool", "GlobalLpPool")
def lp_pool(e: Emitter, node: ir.Node) -> None:
    """p-norm over windows: (sum |x|^p)^(1/p).

    x: T[N,C,*S] -> y: T[N,C,*S']
    T: float
    """
    p = float(node.attributes.get_int("p", 2))
    rank = e.rank(node.inputs[0])
    perm: Perm | None = channel_last(rank)
    x = e.channel_last(node.inputs[0])
    power = e.unary("ElementWiseAbs", x) if p == 1 else e.mul(x, x)
    if p > 2:
        power = e.binary("ElementWisePower", e.unary("ElementWiseAbs", x), p)
    if node.op_type == "GlobalLpPool":
        total = reduced(e, "ReduceSum", power, list(range(1, rank - 1)))
    else:
        out = e.shape(node.outputs[0])[2:]
        w = windows(node, x.shape[1:-1], out)
        shape = (x.shape[0], *out, x.shape[-1])
        if rank <= 4:
            mean = _depthwise_mean(e, power, w, shape)
        else:
            inner = Windows(w.kernel, w.strides, w.dilations, [[0, 0]] * (rank - 2), [])
            mean = _pooled(e, "PoolAvg", _filled(e, power, w.pads, 0.0), inner, e.temp(shape, x.dtype))
        total = e.mul(mean, float(np.prod(w.kernel)))
    if p == 2:
        total = e.unary("ElementWiseSquareRoot", total)
    elif p > 2:
        total = e.binary("ElementWisePower", total, 1.0 / p)
    e.bind(node.outputs[0], total, perm)

# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""Sampling of images at computed places: GridSample, AffineGrid, DeformConv, RoiAlign, MaxRoiPool.

Where no native op computes a mode, an image is a table of pixels [N*prod(S),C] and every sample a sum over its
neighbours: one Gather a neighbour, times its weight. Places are kept as rows [1,K] of floats, whole numbers of
which HTP holds exactly to 2048; indices are INT_32.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from npukit.lowering.emitter import Emitter
from npukit.lowering.holding import channel_last
from npukit.lowering.registry import Unsupported, lowers
from npukit.qnn.graph import DType, Tensor

from .matrix import matmul
from .reduce import reduced

Tap = tuple[Tensor, Tensor | None]  # a whole-numbered place and its weight (None: 1), each [1,K]


@dataclass(frozen=True)
class Pixels:
    """An image [N,*sizes,C] as rows.

    Attributes:
        rows: T[N*prod(sizes),C].
        sizes: the spatial lengths.
        base: the row of the first pixel of the image that each sample reads: [1,K], or a tensor of that shape.
    """

    rows: Tensor
    sizes: tuple[int, ...]
    base: Tensor


def pixels(e: Emitter, x: Tensor, image: npt.NDArray[np.int64] | Tensor) -> Pixels:
    """Image x [N,*S,C] as rows; `image` [K] says which of the N images each sample reads."""
    count = int(np.prod(x.shape[1:-1]))
    rows = e.reshape(x, (x.shape[0] * count, x.shape[-1]))
    if isinstance(image, Tensor):
        base = e.mul(e.reshape(image, (1, int(np.prod(image.shape)))), count)
    else:
        base = e.static(image.reshape(1, -1) * count, DType.INT_32, hint="image")
    return Pixels(rows, x.shape[1:-1], base)


def clipped(e: Emitter, x: Tensor, low: float, high: float) -> Tensor:
    """X limited to [low, high]."""
    return e.binary("ElementWiseMinimum", e.binary("ElementWiseMaximum", x, low), high)


def floor(e: Emitter, x: Tensor) -> Tensor:
    """X rounded down."""
    return e.unary("ElementWiseFloor", x)


def _rows_at(e: Emitter, table: Tensor, index: Tensor) -> Tensor:
    index = e.reshape(index, (int(np.prod(index.shape)),))
    return e.emit("Gather", [table, index], [e.temp((index.shape[0], table.shape[1]), table.dtype)], axis=0)


def _product(e: Emitter, a: Tensor | None, b: Tensor | None) -> Tensor | None:
    return e.mul(a, b) if a is not None and b is not None else a if b is None else b


def neighbours(
    e: Emitter, source: Pixels, taps: Sequence[Sequence[Tap]], zeros: bool, scale: Tensor | None = None
) -> list[Tensor]:
    """The weighted pixels [K,C] at every combination of one tap an axis.

    Places outside are brought to the nearest edge; with `zeros` such a neighbour counts nothing. `scale` [1,K] is
    one more factor.
    """
    per_axis: list[list[Tap]] = []
    for axis, (size, choices) in enumerate(zip(source.sizes, taps, strict=True)):
        stride = int(np.prod(source.sizes[axis + 1 :]))
        found: list[Tap] = []
        for place, weight in choices:
            near = clipped(e, place, 0.0, float(size - 1))
            if zeros:
                away = clipped(e, e.unary("ElementWiseAbs", e.sub(place, near)), 0.0, 1.0)
                weight = _product(e, weight, e.sub(1.0, away))
            index = e.cast(near, DType.INT_32)
            found.append((e.mul(index, stride) if stride != 1 else index, weight))
        per_axis.append(found)
    terms = []
    for combination in itertools.product(*per_axis):
        index, weight = source.base, scale
        for part, factor in combination:
            index = e.add(index, part)
            weight = _product(e, weight, factor)
        row = _rows_at(e, source.rows, index)
        terms.append(row if weight is None else e.mul(row, e.reshape(weight, (row.shape[0], 1))))
    return terms


def summed(e: Emitter, terms: Sequence[Tensor]) -> Tensor:
    """The terms added up."""
    total = terms[0]
    for term in terms[1:]:
        total = e.add(total, term)
    return total


def linear_taps(e: Emitter, place: Tensor) -> list[Tap]:
    """The two whole places around `place` with linear weights."""
    low = floor(e, place)
    share = e.sub(place, low)
    return [(low, e.sub(1.0, share)), (e.add(low, 1.0), share)]


def _cubic_taps(e: Emitter, place: Tensor, a: float = -0.75) -> list[Tap]:
    """Four places with cubic convolution weights (Keys 1981): polynomials of the share t behind the floor."""
    low = floor(e, place)
    t = e.sub(place, low)
    rows = (  # coefficients of 1, t, t^2, t^3
        (0.0, a, -2 * a, a),
        (1.0, 0.0, -(a + 3), a + 2),
        (0.0, -a, 2 * a + 3, -(a + 2)),
        (0.0, 0.0, a, -a),
    )
    taps: list[Tap] = []
    for offset, (c0, c1, c2, c3) in zip((-1.0, 0.0, 1.0, 2.0), rows, strict=True):
        weight = e.mul(e.add(e.mul(e.add(e.mul(t, c3), c2), t), c1), t)
        taps.append((e.add(low, offset) if offset else low, e.add(weight, c0) if c0 else weight))
    return taps


def _reflected(e: Emitter, x: Tensor, size: int, align: bool) -> Tensor:
    """X mirrored at the borders of an axis, as often as it takes."""
    low, span = (0.0, size - 1.0) if align else (-0.5, float(size))
    if span == 0:
        return e.mul(x, 0.0)
    moved = e.sub(x, low) if low else x
    turn = floor(e, e.mul(moved, 1 / (2 * span)))
    left = e.sub(moved, e.mul(turn, 2 * span))  # within one turn: up and down again
    wave = e.sub(span, e.unary("ElementWiseAbs", e.sub(left, span)))
    return e.add(wave, low) if low else wave


_GRID_MODES = {"linear": "BILINEAR", "bilinear": "BILINEAR", "nearest": "NEAREST", "cubic": "", "bicubic": ""}


@lowers("GridSample")
def grid_sample(e: Emitter, node: ir.Node) -> None:
    """Sampling at run-time coordinates from -1 to 1.

    x: T[N,C,*S], grid: T[N,*S',r] -> y: T[N,C,*S']
    T: float; on HTP ties of nearest follow the grid as float16 holds it
    """
    mode = node.attributes.get_string("mode", "linear")
    if mode not in _GRID_MODES:
        raise Unsupported(f"GridSample with mode {mode!r}", hint="modes are linear, nearest and cubic")
    align = bool(node.attributes.get_int("align_corners", 0))
    padding = node.attributes.get_string("padding_mode", "zeros")
    rank = e.rank(node.inputs[0])
    perm = channel_last(rank)

    def native() -> None:
        wrong = {"grid_sample_nearest_wrong"} | ({"grid_sample_nearest_3d_wrong"} if rank == 5 else set())
        if not _GRID_MODES[mode] or (mode == "nearest" and wrong & e.quirks):
            raise Unsupported(f"GridSample in {mode} mode differs on a target")
        e.emit(
            "GridSample",
            [e.get(node.inputs[0], perm), e.get(node.inputs[1])],
            [e.output(node.outputs[0], perm)],
            align_corners=align,
            mode=_GRID_MODES[mode],
            padding_mode=padding.upper(),
        )

    def composed() -> None:
        x, grid = e.channel_last(node.inputs[0]), e.get(node.inputs[1])
        count = int(np.prod(grid.shape[:-1]))
        source = pixels(e, x, np.repeat(np.arange(x.shape[0]), count // x.shape[0]))
        flat = e.reshape(grid, (count, grid.shape[-1]))
        taps: list[list[Tap]] = []
        for axis, size in enumerate(source.sizes):
            column = len(source.sizes) - 1 - axis  # the grid names the last axis first
            at = e.reshape(e.slice(flat, 1, column, column + 1), (1, count))
            at = e.add(e.mul(at, (size - 1 if align else size) / 2), (size - 1) / 2)
            if mode == "nearest":
                at = e.unary("ElementWiseRound", at)
            if padding == "border":
                near = clipped(e, at, 0.0, size - 1.0)
                if mode in ("cubic", "bicubic") and not align:  # half a pixel beyond the last centre stays where it is
                    inside = e.compare("ElementWiseEqual", at, clipped(e, at, -0.5, size - 0.5))
                    near = e.select(inside, at, near)
                at = near
            elif padding == "reflection":
                at = _reflected(e, at, size, align)
            found = _GRID_TAPS[mode](e, at)
            if padding == "reflection" and mode != "nearest":
                found = [(_reflected(e, place, size, align), weight) for place, weight in found]
            taps.append(found)
        y = summed(e, neighbours(e, source, taps, padding == "zeros"))
        e.bind(node.outputs[0], e.reshape(y, (*grid.shape[:-1], x.shape[-1])), perm)

    e.forms(native, composed)


_GRID_TAPS: dict[str, Callable[[Emitter, Tensor], list[Tap]]] = {
    "nearest": lambda _, at: [(at, None)],
    "linear": linear_taps,
    "bilinear": linear_taps,
    "cubic": _cubic_taps,
    "bicubic": _cubic_taps,
}


@lowers("AffineGrid")
def affine_grid(e: Emitter, node: ir.Node) -> None:
    """The sampling grid of an affine map: the constant corner-to-corner grid times theta.

    theta: T[N,r,r+1], size: int64[r+2] -> grid: T[N,*S,r]
    T: float; size constant
    """
    shape = e.shape(node.outputs[0])
    align = bool(node.attributes.get_int("align_corners", 0))
    lines = []
    for size in shape[1:-1]:
        step = np.arange(size, dtype=np.float64)
        lines.append(step * 2 / max(size - 1, 1) - 1 if align else (step * 2 + 1) / size - 1)
    places = np.stack(np.meshgrid(*lines, indexing="ij"), -1)[..., ::-1].reshape(-1, len(lines))
    base = np.concatenate([places, np.ones((len(places), 1))], 1).astype(np.float32)
    theta = e.get(node.inputs[0])
    grids = np.broadcast_to(base, (shape[0], *base.shape)).copy()
    y = matmul(e, e.static(grids, hint="grid"), theta, None, transpose_b=True)
    e.bind(node.outputs[0], e.reshape(y, shape))


@lowers("DeformConv")
def deform_conv(e: Emitter, node: ir.Node) -> None:
    """Convolution over two axes whose taps are moved by run-time offsets.

    x: T[N,C,H,W], w: T[O,C/group,kH,kW], offset: T[N,G*kH*kW*2,*S], b: T[O]?, mask: T[N,G*kH*kW,*S]? -> y: T[N,O,*S]
    T: float; rank 4; G is offset_group
    """
    if e.rank(node.inputs[0]) != 4:
        raise Unsupported("a deformable convolution over other than two axes")
    inputs = [node.inputs[i] if len(node.inputs) > i else None for i in range(5)]
    x = e.channel_last(inputs[0])
    n, out_channels, rows, columns = e.shape(node.outputs[0])
    channels, (kh, kw) = x.shape[-1], e.shape(inputs[1])[2:]
    taps, places = kh * kw, rows * columns
    groups, group = node.attributes.get_int("offset_group", 1), node.attributes.get_int("group", 1)
    strides, dilations = (list(node.attributes.get_ints(key, [1, 1])) for key in ("strides", "dilations"))
    pads = node.attributes.get_ints("pads", [0] * 4)
    count = n * taps * places
    offset = e.reshape(e.get(inputs[2]), (n, groups * taps * 2, places))
    mask = e.reshape(e.get(inputs[4]), (n, groups * taps, places)) if inputs[4] is not None else None
    start = []  # where each tap lies without its offset, per axis: [taps, places]
    for axis in range(2):
        tap = np.indices((kh, kw))[axis].reshape(-1, 1) * dilations[axis]
        place = np.indices((rows, columns))[axis].reshape(1, -1) * strides[axis]
        start.append(np.broadcast_to(tap + place - pads[axis], (n, taps, places)).reshape(1, count))
    width = channels // groups
    sampled = []
    for g in range(groups):
        source = pixels(e, e.slice(x, 3, g * width, (g + 1) * width), np.repeat(np.arange(n), taps * places))
        around = []
        for axis in range(2):
            moves = e.slice(offset, 1, g * taps * 2 + axis, (g + 1) * taps * 2, 2)
            at = e.add(e.reshape(moves, (1, count)), e.static(start[axis].astype(np.float32)))
            around.append(linear_taps(e, at))
        scale = e.reshape(e.slice(mask, 1, g * taps, (g + 1) * taps), (1, count)) if mask is not None else None
        found = summed(e, neighbours(e, source, around, True, scale))
        turned = e.transpose(e.reshape(found, (n, taps, places, width)), (0, 2, 1, 3))
        sampled.append(e.reshape(turned, (n * places, taps, width)))
    table = e.concat(sampled, 2)
    kernel = e.reshape(e.get(inputs[1]), (out_channels, channels // group, taps))
    size, wide, parts = channels // group, out_channels // group, []
    for g in range(group):
        part = e.reshape(e.slice(table, 2, g * size, (g + 1) * size), (n * places, taps * size))
        weight = e.transpose(e.slice(kernel, 0, g * wide, (g + 1) * wide), (2, 1, 0))
        parts.append(matmul(e, part, e.reshape(weight, (taps * size, wide))))
    y = e.concat(parts, 1)
    if inputs[3] is not None:
        y = e.add(y, e.get(inputs[3]))
    e.bind(node.outputs[0], e.reshape(y, (n, rows, columns, out_channels)), channel_last(4))


@lowers("RoiAlign")
def roi_align(e: Emitter, node: ir.Node) -> None:
    """The mean or maximum of bilinear samples in the cells of each region.

    x: T[N,C,H,W], rois: T[R,4], batch_indices: int64[R] -> y: T[R,C,h,w]
    T: float; sampling_ratio 0 in the composed form (maximum, or where the native op is refused) needs constant rois
    """
    mode = node.attributes.get_string("mode", "avg")
    half = node.attributes.get_string("coordinate_transformation_mode", "half_pixel") == "half_pixel"
    ratio, scale = node.attributes.get_int("sampling_ratio", 0), node.attributes.get_float("spatial_scale", 1.0)
    count, channels, rows, columns = e.shape(node.outputs[0])
    x = e.channel_last(node.inputs[0])

    def regions_of() -> Tensor:
        """The regions, at least one pixel wide and high where the corners are not moved by half a pixel."""
        if half or "roi_align_small_regions_unreliable" not in e.quirks:
            return e.get(node.inputs[1])
        known = e.constant(node.inputs[1])
        if known is not None:
            ends = np.maximum(known[:, 2:], known[:, :2] + 1 / scale)
            return e.static(np.concatenate([known[:, :2], ends], 1).astype(np.float32), hint="regions")
        begin, end = (e.slice(e.get(node.inputs[1]), 1, at, at + 2) for at in (0, 2))
        return e.concat([begin, e.binary("ElementWiseMaximum", end, e.add(begin, 1 / scale))], 1)

    def native() -> None:
        if mode != "avg" or "roi_align_wrong" in e.quirks:
            raise Unsupported("RoiAlign takes the mean only, or differs on a target")
        samples = ratio if ratio > 0 else -1
        e.emit(
            "RoiAlign",
            [x, regions_of(), e.get(node.inputs[2])],
            [e.output(node.outputs[0], channel_last(4))],
            img_size_ratio=[1 / scale, 1 / scale],
            num_samples_y=samples,
            num_samples_x=samples,
            aligned=half,
        )

    def composed() -> None:
        grid = [ratio, ratio]
        if ratio <= 0:
            grid = _adaptive(e, node, scale, (rows, columns), half)
        total = rows * columns * grid[0] * grid[1]
        which = e.reshape(e.get(node.inputs[2]), (count, 1))
        spread = e.add(which, e.static(np.zeros((count, total), np.int32)))
        source = pixels(e, x, spread)
        regions = e.mul(e.get(node.inputs[1]), scale) if scale != 1 else e.get(node.inputs[1])
        taps, inside = [], None
        for axis, (cells, size) in enumerate(((rows, source.sizes[0]), (columns, source.sizes[1]))):
            begin, end = (e.slice(regions, 1, at, at + 1) for at in (1 - axis, 3 - axis))
            extent = e.sub(end, begin)
            if half:
                begin = e.sub(begin, 0.5)
            else:
                extent = e.binary("ElementWiseMaximum", extent, 1.0)
            cell, sample = (np.indices((rows, columns, *grid))[i].reshape(1, total) for i in (axis, axis + 2))
            share = (cell + (sample + 0.5) / grid[axis]) / cells
            at = e.reshape(e.add(begin, e.mul(extent, e.static(share.astype(np.float32)))), (1, count * total))
            # a place beyond -1 or the size counts nothing; others are brought inside
            beyond = e.sub(at, clipped(e, at, -1.0, float(size)))
            valid = e.cast(e.compare("ElementWiseEqual", beyond, 0.0), x.dtype)
            inside = _product(e, inside, valid)
            taps.append(linear_taps(e, clipped(e, at, 0.0, size - 1.0)))
        terms = neighbours(e, source, taps, False, inside)
        shape = (count * rows * columns, grid[0] * grid[1], channels)
        if mode == "max":
            best = terms[0]
            for term in terms[1:]:
                best = e.binary("ElementWiseMaximum", best, term)
            y = reduced(e, "ReduceMax", e.reshape(best, shape), [1])
        else:
            y = reduced(e, "ReduceMean", e.reshape(summed(e, terms), shape), [1])
        e.bind(node.outputs[0], e.reshape(y, (count, rows, columns, channels)), channel_last(4))

    e.forms(native, composed)


def _adaptive(e: Emitter, node: ir.Node, scale: float, cells: tuple[int, int], half: bool) -> list[int]:
    """Samples a cell where sampling_ratio is 0: the cell's extent rounded up, the same for all regions."""
    rois = e.need_constant(node.inputs[1], "rois (sampling_ratio 0)").astype(np.float64) * scale
    extents = (rois[:, 3] - rois[:, 1], rois[:, 2] - rois[:, 0])
    found = []
    for extent, count in zip(extents, cells, strict=True):
        each = np.ceil((extent if half else np.maximum(extent, 1.0)) / count)
        if len(set(each.tolist())) != 1:
            raise Unsupported("regions with different numbers of samples", hint="set sampling_ratio")
        found.append(max(int(each[0]), 1))
    return found


@lowers("MaxRoiPool")
def max_roi_pool(e: Emitter, node: ir.Node) -> None:
    """The maximum in the cells of each region, bounds rounded to pixels.

    x: T[N,C,H,W], rois: T[R,5] -> y: T[R,C,h,w]
    T: float; rois constant
    """
    rois = e.need_constant(node.inputs[1], "rois").astype(np.float64)
    scale = node.attributes.get_float("spatial_scale", 1.0)
    rows, columns = node.attributes.get_ints("pooled_shape")
    x = e.channel_last(node.inputs[0])
    channels = x.shape[-1]
    parts = []
    for batch, left, top, right, bottom in rois:
        image = e.slice(x, 0, int(batch), int(batch) + 1)
        for r, c in np.ndindex(rows, columns):
            cell: Tensor | None = image
            for axis, begin, end, place, cells in ((1, top, bottom, r, rows), (2, left, right, c, columns)):
                first, last = round(begin * scale), round(end * scale)
                size = max(last - first + 1, 1) / cells
                low = int(np.clip(np.floor(place * size) + first, 0, x.shape[axis]))
                high = int(np.clip(np.ceil((place + 1) * size) + first, 0, x.shape[axis]))
                cell = e.slice(cell, axis, low, high) if cell is not None and high > low else None
            if cell is None:
                parts.append(e.static(np.zeros((1, channels), np.float32), x.dtype))
            else:
                flat = e.reshape(cell, (1, cell.shape[1] * cell.shape[2], channels))
                parts.append(e.reshape(reduced(e, "ReduceMax", flat, [1]), (1, channels)))
    y = e.concat(parts, 0)
    e.bind(node.outputs[0], e.reshape(y, (len(rois), rows, columns, channels)), channel_last(4))

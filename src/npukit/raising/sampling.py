# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""Ops that sample images at computed places, and colour formats; images are [N, H, W, C]."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from npukit.raising.emit import Emit
from npukit.raising.registry import Unraisable, raises


@raises("GridSample")
def _grid_sample(e: Emit) -> ir.Value:
    """Input channel-last, grid [N, out..., 2 or 3] with (x, y[, z]) in [-1, 1] as in ONNX."""
    rank = len(e.shape())
    mode = {"BILINEAR": "linear", "NEAREST": "nearest"}[e.choice("mode", "BILINEAR")]
    padding = e.choice("padding_mode", "ZEROS").lower()
    align = e.integer("align_corners", 0)
    x = e.channel_first(e.real(0), rank)
    y = e.call("GridSample", x, e.real(1), mode=mode, padding_mode=padding, align_corners=align)
    return e.channel_last(y, rank)


def _sample(
    e: Emit, image: ir.Value, y: ir.Value, x: ir.Value, size: tuple[int, int], nearest: str, padding: str
) -> ir.Value:
    """image: [N, C, H, W] at pixel places y, x: [N, h, w] -> [N, h, w, C].

    `nearest` is empty for bilinear samples, "floor", or "round" (halves away from zero).
    """
    if nearest == "floor":
        y, x = (e.call("Floor", v) for v in (y, x))
    elif nearest:
        y, x = (e.call("Mul", e.call("Sign", v), e.call("Floor", e.call("Add", e.call("Abs", v), 0.5))) for v in (y, x))
    grid = []
    for place, extent in ((x, size[1]), (y, size[0])):
        scaled = e.call("Mul", e.call("Add", e.call("Mul", place, 2.0), 1.0), 1.0 / extent)
        grid.append(e.call("Unsqueeze", e.call("Sub", scaled, 1.0), [3]))
    joined = e.call("Concat", *grid, axis=3)
    mode = "nearest" if nearest else "linear"
    found = e.call("GridSample", image, joined, mode=mode, padding_mode=padding, align_corners=0)
    return e.channel_last(found, 4)


@raises("CropAndResize")
def _crop_and_resize(e: Emit) -> ir.Value:
    """Crops of normalised boxes (y1, x1, y2, x2), corner aligned; outside the image the extrapolation value."""
    _, height, width, _ = e.shape()
    boxes, rows, columns, _ = e.out_shape()
    nearest = "floor" if e.choice("interpolation_mode", "BILINEAR") == "NEAREST_NEIGHBOR" else ""
    corners = e.calls("Split", e.real(1), np.ones(4, np.int64), outputs=4, axis=1)
    places, outside = [], None
    for axis, (extent, count) in enumerate(((height, rows), (width, columns))):
        low, high = corners[axis], corners[axis + 2]
        share = np.linspace(0, 1, count) if count > 1 else np.array([0.5])
        steps = (share * (extent - 1)).astype(np.float32).reshape(1, count)
        start = e.call("Mul", low, float(extent - 1))
        place = e.call("Add", start, e.call("Mul", e.call("Sub", high, low), steps))
        place = e.reshape(place, [boxes, count, 1] if axis == 0 else [boxes, 1, count])
        full = e.call("Expand", place, [boxes, rows, columns])
        places.append(full)
        beyond = e.call("Or", e.call("Less", full, 0.0), e.call("Greater", full, float(extent - 1)))
        outside = beyond if outside is None else e.call("Or", outside, beyond)
    image = e.call("Gather", e.real(0), e.cast(e.real(2), ir.DataType.INT64), axis=0)
    image = e.channel_first(image, 4)
    found = _sample(e, image, places[0], places[1], (height, width), nearest, "border")
    fill = e.scalar_like(found, e.scalar("extrapolation_value", 0))
    assert outside is not None
    return e.call("Where", e.call("Unsqueeze", outside, [3]), fill, found)


@raises("ImageProjectionTransform")
def _image_projection(e: Emit) -> ir.Value:
    """Output pixel (x, y) takes the input at ((a0 x + a1 y + a2) / k, (b0 x + b1 y + b2) / k), zero outside."""
    batch, height, width, _ = e.shape()
    rows, columns = e.out_shape()[1:3]
    nearest = "round" if e.choice("interpolation_mode", "BILINEAR") == "NEAREST_NEIGHBOR" else ""
    given = e.call("Expand", e.reshape(e.real(1), [-1, 8, 1, 1]), [batch, 8, 1, 1])
    a0, a1, a2, b0, b1, b2, c0, c1 = (
        e.reshape(part, [batch, 1, 1]) for part in e.calls("Split", given, np.ones(8, np.int64), outputs=8, axis=1)
    )
    ys, xs = np.meshgrid(np.arange(rows), np.arange(columns), indexing="ij")
    x, y = (e.build.constant(v[None].astype(np.float32)) for v in (xs, ys))

    def line(p: ir.Value, q: ir.Value, r: ir.Value | float) -> ir.Value:
        return e.call("Add", e.call("Add", e.call("Mul", x, p), e.call("Mul", y, q)), r)

    k = line(c0, c1, 1.0)
    source = [e.call("Div", line(*row), k) for row in ((b0, b1, b2), (a0, a1, a2))]
    image = e.channel_first(e.real(0), 4)
    return _sample(e, image, source[0], source[1], (height, width), nearest, "zeros")


@raises("ExtractGlimpse")
def _extract_glimpse(e: Emit) -> ir.Value:
    """A window at each image's offset, zero outside; other kinds of noise are not deterministic."""
    if e.choice("noise", "UNIFORM") != "ZEROES":
        raise Unraisable("ExtractGlimpse fills with noise")
    batch, height, width, _ = e.shape()
    rows, columns = e.ints("size")
    offsets = e.calls("Split", e.real(1), np.ones(2, np.int64), outputs=2, axis=1)
    centred, normalized = e.flag("centered", True), e.flag("normalized", True)
    places = []
    for axis, (extent, count) in enumerate(((height, rows), (width, columns))):
        place = e.call("Mul", offsets[axis], float(extent)) if normalized else offsets[axis]
        if centred:
            place = e.call("Add", e.call("Mul", place, 0.5), extent / 2)
        place = e.cast(e.cast(e.call("Sub", place, count / 2), ir.DataType.INT32), ir.DataType.FLOAT)
        full = e.call("Add", place, np.arange(count, dtype=np.float32)[None])
        full = e.reshape(full, [batch, count, 1] if axis == 0 else [batch, 1, count])
        places.append(e.call("Expand", full, [batch, rows, columns]))
    return _sample(e, e.channel_first(e.real(0), 4), places[0], places[1], (height, width), "floor", "zeros")


@raises("RoiAlign", opset=21)
def _roi_align(e: Emit) -> ir.Value:
    """Average of bilinear samples; regions are scaled beforehand, as ONNX has one scale for both axes."""
    samples = {e.integer("num_samples_y", -1), e.integer("num_samples_x", -1)}
    if len(samples) > 1:
        raise Unraisable("ONNX RoiAlign has one number of samples for both axes")
    ratio_y, ratio_x = (float(v) for v in e.array("img_size_ratio"))
    scale = np.array([1 / ratio_x, 1 / ratio_y] * 2, np.float32)
    rois = e.call("Mul", e.real(1), scale)
    _, rows, columns, _ = e.out_shape()
    y = e.call(
        "RoiAlign",
        e.channel_first(e.real(0), 4),
        rois,
        e.cast(e.real(2), ir.DataType.INT64),
        mode="avg",
        output_height=rows,
        output_width=columns,
        sampling_ratio=max(0, samples.pop()),
        spatial_scale=1.0,
        coordinate_transformation_mode="half_pixel" if e.flag("aligned", False) else "output_half_pixel",
    )
    return e.channel_last(y, 4)


@raises("Correlation1D")
def _correlation(e: Emit) -> ir.Value:
    """out[w, d] = mean over channels of a[w] * b[w + d - (displacement - shift)], zero outside."""
    reach, shift = e.integer("displacement"), e.integer("shift")
    n, h, w, c = e.shape()
    first = shift - reach
    before, after = max(0, -first), max(0, first + 2 * reach)
    a, b = e.real(0), e.real(1)
    padded = e.call("Pad", b, [0, 0, before, 0, 0, 0, after, 0], e.scalar_like(b, 0))
    parts = []
    for d in range(2 * reach + 1):
        start = before + first + d
        moved = e.call("Slice", padded, [start], [start + w], [2])
        parts.append(e.call("ReduceMean", e.call("Mul", a, moved), [3], keepdims=1))
    return e.call("Concat", *parts, axis=3)


@raises("ArgbToRgb")
def _argb(e: Emit) -> ir.Value:
    order = {"ARGB": [1, 2, 3], "RGBA": [0, 1, 2]}[e.choice("input_order", "ARGB")]
    order = order[::-1] if e.flag("reverse_output") else order
    return e.call("Gather", e.real(), np.asarray(order, np.int64), axis=3)


@raises("Stft")
def _stft(e: Emit) -> ir.Value:
    step, length = np.asarray(e.integer("frame_step"), np.int64), e.integer("frame_length", 0)
    window = e.real(1) if e.has(1) else None
    frame = np.asarray(length, np.int64) if length else None
    return e.call("STFT", e.real(0), step, window, frame, onesided=e.integer("onesided", 1))


@raises("RandomUniformLike", opset=21)
def _random_uniform(e: Emit) -> ir.Value:
    """Random numbers: the same distribution, not the same numbers."""
    low, high = float(e.scalar("low", 0.0)), float(e.scalar("high", 1.0))
    return e.call("RandomUniform", out=ir.DataType.FLOAT, low=low, high=high, shape=list(e.out_shape()))

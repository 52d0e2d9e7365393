# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""Resize over spatial axes.

Every Resize is linear in its input: where no native op has the mode, each resized axis becomes a product with a
constant interpolation matrix [out, in], computed here by the ONNX definition (operators page, Resize).
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from npukit.lowering.emitter import Emitter
from npukit.lowering.holding import channel_last
from npukit.lowering.ops.forms import in_float_with
from npukit.lowering.registry import Unsupported, lowers
from npukit.qnn.graph import DType, Tensor

Floats = npt.NDArray[np.float64]


@lowers("Resize")
def resize(e: Emitter, node: ir.Node) -> None:
    """Interpolation to another size, in every mode; scales and sizes constant.

    x: T[*D], roi: T[2r]?, scales: float[*]?, sizes: int64[*]? -> y: T[*D']
    T: float, quantized (nearest, linear)
    """
    given, wanted = e.shape(node.inputs[0]), e.shape(node.outputs[0])
    plan = _Plan(e, node, given, wanted)
    changed = plan.changed
    if not changed:
        x, order = e.held(node.inputs[0])
        e.bind(node.outputs[0], x, order)
        return
    rank = len(given)
    if plan.mode == "linear":
        in_float_with(e, "bilinear_resize_of_codes_coarse")

    def native() -> None:
        if rank != 4 or any(axis < 2 for axis in changed):
            raise Unsupported("a native Resize is over H and W of rank 4")
        op_type, params = plan.native(e)
        x = e.channel_last(node.inputs[0])
        e.emit(op_type, [x], [e.output(node.outputs[0], channel_last(4))], **params)

    def repeated() -> None:
        if plan.mode != "nearest":
            raise Unsupported("only nearest repeats elements")
        # channels last, as what stands around it; the same number of elements is repeated either way
        order = channel_last(rank) if rank == 4 and min(changed) > 1 else None
        x = e.get(node.inputs[0], order)
        for axis in changed:
            index = plan.matrix(axis).argmax(1)
            x = _take(e, x, axis if order is None else order.index(axis), index)
        e.bind(node.outputs[0], x, order)

    def by_matrix() -> None:
        x = e.get(node.inputs[0])
        x = x if x.dtype.is_float else e.cast(x, e.float_dtype)
        for axis in changed:
            x = _times(e, x, axis, plan.matrix(axis))
        if plan.outside is not None:
            mask, fill = plan.outside
            x = e.select(e.static(mask), e.static(np.full((1,) * rank, fill, np.float32)), x)
        e.bind(node.outputs[0], x)

    e.forms(native, repeated, by_matrix)


def _take(e: Emitter, x: Tensor, axis: int, index: npt.NDArray[np.int64]) -> Tensor:
    outer, inner = int(np.prod(x.shape[:axis])), int(np.prod(x.shape[axis + 1 :]))
    flat = e.reshape(x, (outer, x.shape[axis], inner))
    out = e.temp((outer, len(index), inner), x.dtype, x.encoding)
    y = e.emit("Gather", [flat, e.static(index, DType.INT_32, hint="indices")], [out], axis=1)
    return e.reshape(y, (*x.shape[:axis], len(index), *x.shape[axis + 1 :]))


def _times(e: Emitter, x: Tensor, axis: int, matrix: Floats) -> Tensor:
    """Give x with `axis` replaced by matrix @ axis: one MatMul over [outer, in, inner]."""
    outer, inner = int(np.prod(x.shape[:axis])), int(np.prod(x.shape[axis + 1 :]))
    count = matrix.shape[0]
    if inner == 1:
        flat = e.reshape(x, (outer, x.shape[axis]))
        weight = e.static(matrix.T.astype(np.float32))
        y = e.emit(
            "MatMul", [flat, weight], [e.temp((outer, count), x.dtype)], transpose_in0=False, transpose_in1=False
        )
    else:
        turned = e.transpose(e.reshape(x, (outer, x.shape[axis], inner)), (0, 2, 1))
        flat = e.reshape(turned, (outer * inner, x.shape[axis]))
        weight = e.static(matrix.T.astype(np.float32))
        rows = e.emit(
            "MatMul",
            [flat, weight],
            [e.temp((outer * inner, count), x.dtype)],
            transpose_in0=False,
            transpose_in1=False,
        )
        y = e.transpose(e.reshape(rows, (outer, inner, count)), (0, 2, 1))
    return e.reshape(y, (*x.shape[:axis], count, *x.shape[axis + 1 :]))


class _Plan:
    """What a Resize node does to each axis, resolved to numbers."""

    def __init__(self, e: Emitter, node: ir.Node, given: tuple[int, ...], wanted: tuple[int, ...]) -> None:
        text, number = node.attributes.get_string, node.attributes.get_float
        rank = len(given)
        self.mode = text("mode", "nearest")
        self.transform = text("coordinate_transformation_mode", "half_pixel")
        self.rounding = text("nearest_mode", "round_prefer_floor")
        self.cubic = number("cubic_coeff_a", -0.75)
        self.exclude = bool(node.attributes.get_int("exclude_outside", 0))
        self.antialias = bool(node.attributes.get_int("antialias", 0))
        self.extrapolation = number("extrapolation_value", 0.0)
        axes = [axis % rank for axis in node.attributes.get_ints("axes", list(range(rank)))]
        inputs = [node.inputs[i] if len(node.inputs) > i else None for i in range(4)]
        scales = e.need_constant(inputs[2], "scales") if inputs[2] is not None and 0 not in e.shape(inputs[2]) else None
        self.given, self.wanted = given, wanted
        self.scales = [wanted[i] / given[i] for i in range(rank)]
        self.exact = [float(wanted[i]) for i in range(rank)]  # the output length before it was cut to an integer
        policy = text("keep_aspect_ratio_policy", "stretch")
        if scales is not None:
            for axis, scale in zip(axes, scales.reshape(-1), strict=True):
                self.scales[axis] = float(scale)
                self.exact[axis] = float(scale) * given[axis]
        elif policy != "stretch" and inputs[3] is not None:
            sizes = e.ints(inputs[3], "sizes")
            ratios = [size / given[axis] for axis, size in zip(axes, sizes, strict=True)]
            scale = min(ratios) if policy == "not_larger" else max(ratios)
            for axis in axes:
                self.scales[axis] = scale
                self.exact[axis] = scale * given[axis]
        roi = e.constant(inputs[1]) if inputs[1] is not None and 0 not in e.shape(inputs[1]) else None
        self.roi: dict[int, tuple[float, float]] = {}
        if self.transform == "tf_crop_and_resize":
            if roi is None:
                raise Unsupported("tf_crop_and_resize needs a constant roi")
            half = len(axes)
            self.roi = {axis: (float(roi[i]), float(roi[i + half])) for i, axis in enumerate(axes)}
        self.changed = [
            axis for axis in range(rank) if wanted[axis] != given[axis] or self.scales[axis] != 1 or axis in self.roi
        ]
        self.outside: tuple[npt.NDArray[np.bool_], float] | None = None
        if self.roi:
            self._mark_outside()

    def _mark_outside(self) -> None:
        rank = len(self.given)
        mask = np.zeros(self.wanted, bool)
        for axis in self.changed:
            x = self.coordinates(axis)
            out = (x < 0) | (x > self.given[axis] - 1)
            mask |= out.reshape([-1 if i == axis else 1 for i in range(rank)])
        self.outside = (mask, self.extrapolation) if mask.any() else None

    def native(self, e: Emitter) -> tuple[str, dict[str, object]]:
        """The QNN op and its parameters, where one computes this mode."""
        for axis in self.changed:
            if abs(self.scales[axis] - self.wanted[axis] / self.given[axis]) > 1e-6:
                raise Unsupported("the scale is not output over input")
        if self.antialias or self.exclude or self.roi:
            raise Unsupported("antialias, exclude_outside and crops have no native form")
        if self.transform == "pytorch_half_pixel" and any(self.wanted[axis] == 1 for axis in self.changed):
            raise Unsupported("pytorch_half_pixel to one element has no native form")
        flags = {"asymmetric": (False, False), "half_pixel": (False, True), "align_corners": (True, False)}
        if self.mode == "linear" and self.transform in flags:
            if f"resize_linear_{self.transform}_wrong" in e.quirks:
                raise Unsupported("ResizeBilinear differs on a target")
            corners, half = flags[self.transform]
            return "ResizeBilinear", {"align_corners": corners, "half_pixel_centers": half}
        if self.mode == "nearest" and self.transform == "asymmetric" and self.rounding == "floor":
            return "ResizeNearestNeighbor", {"align_corners": False, "half_pixel_centers": False}
        if "resize_wrong" in e.quirks or self.mode == "nearest":
            raise Unsupported("the native Resize differs on a target")
        modes = {"half_pixel", "pytorch_half_pixel", "align_corners", "asymmetric"}
        if self.transform not in modes:
            raise Unsupported(f"Resize has no {self.transform}")
        params: dict[str, object] = {
            "transformation_mode": self.transform.upper(),
            "interpolation_mode": self.mode.upper(),
            "exclude_outside": False,
        }
        if self.mode == "cubic":
            params["cubic_coeff"] = self.cubic
        return "Resize", params

    def coordinates(self, axis: int) -> Floats:
        """The input coordinate of each output place along an axis."""
        size, count, scale = self.given[axis], self.wanted[axis], self.scales[axis]
        x = np.arange(count, dtype=np.float64)
        if self.transform == "align_corners":
            length = self.exact[axis]
            return x * (size - 1) / (length - 1) if length > 1 else x * 0
        if self.transform == "asymmetric":
            return x / scale
        if self.transform == "pytorch_half_pixel":
            return (x + 0.5) / scale - 0.5 if self.exact[axis] > 1 else x * 0
        if self.transform == "half_pixel_symmetric":
            adjust = count / self.exact[axis]
            centre = size / 2
            return centre * (1 - adjust) + (x + 0.5) / scale - 0.5
        if self.transform == "tf_crop_and_resize":
            start, end = self.roi.get(axis, (0.0, 1.0))
            if count > 1:
                return start * (size - 1) + x * (end - start) * (size - 1) / (self.exact[axis] - 1)
            return np.full(count, 0.5 * (start + end) * (size - 1))
        if self.transform == "half_pixel":
            return (x + 0.5) / scale - 0.5
        raise Unsupported(f"Resize with coordinate_transformation_mode {self.transform!r}")

    def matrix(self, axis: int) -> Floats:
        """Interpolation weights [out, in] of an axis; each row sums to 1."""
        size, count = self.given[axis], self.wanted[axis]
        places = self.coordinates(axis)
        weights = np.zeros((count, size))
        scale = min(self.scales[axis], 1.0) if self.antialias else 1.0
        for row, place in enumerate(places):
            if self.mode == "nearest":
                weights[row, min(max(self._rounded(place), 0), size - 1)] = 1
                continue
            for index, weight in self._taps(place, scale, size):
                if 0 <= index < size:
                    weights[row, index] += weight
                elif not self.exclude:
                    weights[row, min(max(index, 0), size - 1)] += weight
            total = weights[row].sum()
            if total and self.exclude:
                weights[row] /= total
        return weights

    def _rounded(self, place: float) -> int:
        rules: dict[str, Callable[[float], float]] = {
            "floor": math.floor,
            "ceil": math.ceil,
            "round_prefer_floor": lambda v: math.ceil(v - 0.5),
            "round_prefer_ceil": lambda v: math.floor(v + 0.5),
        }
        return int(rules[self.rounding](place))

    def _taps(self, place: float, scale: float, size: int) -> list[tuple[int, float]]:
        """(input index, weight) of the interpolation kernel around a coordinate."""
        reach = (1 if self.mode == "linear" else 2) / scale
        first, last = math.floor(place - reach) + 1, math.ceil(place + reach) - 1
        kernel = self._linear if self.mode == "linear" else self._keys
        taps = [(i, kernel((i - place) * scale)) for i in range(first, last + 1)]
        if self.mode == "linear" and not self.antialias:  # a coordinate on a pixel has one tap
            base = math.floor(place)
            taps = [(base, 1 - (place - base)), (base + 1, place - base)]
        if self.antialias:
            total = sum(w for _, w in taps)
            taps = [(i, w / total) for i, w in taps]
        return taps

    @staticmethod
    def _linear(t: float) -> float:
        return max(0.0, 1 - abs(t))

    def _keys(self, t: float) -> float:
        """Cubic convolution (Keys 1981) with coefficient `cubic_coeff_a`."""
        a, t = self.cubic, abs(t)
        if t <= 1:
            return (a + 2) * t**3 - (a + 3) * t**2 + 1
        if t < 2:
            return a * t**3 - 5 * a * t**2 + 8 * a * t - 4 * a
        return 0.0

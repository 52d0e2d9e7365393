# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""Rows for GridSample, AffineGrid, DeformConv, RoiAlign and MaxRoiPool."""

from __future__ import annotations

import numpy as np

from . import CPU, HTP, RAISE, OpCase

ALL = (CPU, HTP, RAISE)
_GRID = [("x", "float32", (2, 3, 4, 5)), ("grid", "float32", (2, 2, 3, 2))]
_VOLUME = [("x", "float32", (1, 2, 3, 4, 3)), ("grid", "float32", (1, 2, 2, 2, 3))]
_ROIS = np.array([[0, 0, 5, 4], [1, 1, 9, 8], [2, 0.5, 3, 7]], np.float32)
_ROI_INPUTS = [("x", "float32", (2, 3, 9, 10))]
_ROI_CONSTANTS = {"rois": _ROIS, "batch": np.array([0, 1, 1])}
_DEFORM = [("x", "float32", (2, 4, 5, 6)), ("w", "float32", (6, 2, 3, 2)), ("offset", "float32", (2, 24, 3, 5))]


def _grid(mode: str, padding: str, align: int, backends: tuple[str, ...] = (CPU, RAISE)) -> OpCase:
    attrs = {"mode": mode, "padding_mode": padding, "align_corners": align}
    # the places stay away from ties, which float16 cannot tell apart
    return OpCase(f"grid_{mode}_{padding}_{align}", "GridSample", _GRID, attrs, span=(-1.45, 1.45), backends=backends)


def _max_roi_pool(values: dict[str, np.ndarray]) -> list[np.ndarray]:
    x, cells = values["x"], []
    for batch, left, top, right, bottom in ((0, 0, 0, 3, 3), (1, 2, 1, 5, 5)):
        rows, columns = (bottom - top + 1) / 2, (right - left + 1) / 2
        for r, c in np.ndindex(2, 2):
            rs = slice(top + int(np.floor(r * rows)), top + int(np.ceil((r + 1) * rows)))
            cs = slice(left + int(np.floor(c * columns)), left + int(np.ceil((c + 1) * columns)))
            cells.append(x[batch, :, rs, cs].max((1, 2)))
    return [np.array(cells).reshape(2, 2, 2, -1).transpose(0, 3, 1, 2)]


CASES = [
    *(_grid(mode, "zeros", 0) for mode in ("linear", "nearest", "cubic")),
    *(_grid("cubic", padding, align) for padding in ("border", "reflection") for align in (0, 1)),
    _grid("linear", "reflection", 1),
    _grid("cubic", "zeros", 1, (HTP,)),
    OpCase("grid_volume", "GridSample", _VOLUME, {"align_corners": 1}, span=(-1.2, 1.2), backends=(CPU, HTP, RAISE)),
    OpCase(
        "grid_volume_nearest", "GridSample", _VOLUME, {"mode": "nearest", "padding_mode": "border"}, span=(-1.2, 1.2)
    ),
    OpCase(
        "affine_grid",
        "AffineGrid",
        [("t", "float32", (2, 2, 3))],
        constants={"size": np.array([2, 1, 3, 4])},
        backends=ALL,
    ),
    OpCase(
        "affine_grid_3d",
        "AffineGrid",
        [("t", "float32", (1, 3, 4))],
        {"align_corners": 1},
        {"size": np.array([1, 1, 2, 3, 4])},
    ),
    OpCase(
        "deform_conv",
        "DeformConv",
        [*_DEFORM, ("b", "float32", (6,)), ("mask", "float32", (2, 12, 3, 5))],
        {"group": 2, "offset_group": 2},
        span=(-1.4, 1.4),
        backends=ALL,
        tol=(2e-2, 3e-2),
    ),
    OpCase(
        "deform_conv_1d",
        "DeformConv",
        [("x", "float32", (1, 2, 5)), ("w", "float32", (2, 2, 3)), ("o", "float32", (1, 3, 3))],
        rejects="other than two axes",
    ),
    OpCase(
        "roi_align",
        "RoiAlign",
        _ROI_INPUTS,
        {"output_height": 2, "output_width": 3, "sampling_ratio": 2},
        _ROI_CONSTANTS,
        backends=ALL,
        expect_ops=["Transpose", "RoiAlign", "Transpose"],
    ),
    OpCase(
        "roi_align_corner",
        "RoiAlign",
        _ROI_INPUTS,
        {
            "output_height": 2,
            "output_width": 2,
            "sampling_ratio": 1,
            "coordinate_transformation_mode": "output_half_pixel",
            "spatial_scale": 0.5,
        },
        _ROI_CONSTANTS,
        backends=ALL,
    ),
    OpCase(
        "roi_align_corner_runtime",
        "RoiAlign",
        [*_ROI_INPUTS, ("rois", "float32", (3, 4)), ("batch", "int64", (3,))],
        {
            "output_height": 2,
            "output_width": 2,
            "sampling_ratio": 1,
            "coordinate_transformation_mode": "output_half_pixel",
            "spatial_scale": 0.5,
        },
        values=_ROI_CONSTANTS,
    ),
    OpCase(
        "roi_align_max",
        "RoiAlign",
        _ROI_INPUTS,
        {"output_height": 2, "output_width": 3, "sampling_ratio": 2, "mode": "max"},
        _ROI_CONSTANTS,
        backends=ALL,
    ),
    OpCase(
        "roi_align_max_adaptive",
        "RoiAlign",
        _ROI_INPUTS,
        {"output_height": 2, "output_width": 3, "mode": "max"},
        _ROI_CONSTANTS,
        rejects="different numbers of samples",
    ),
    OpCase(
        "max_roi_pool",
        "MaxRoiPool",
        [("x", "float32", (2, 3, 6, 7))],
        {"pooled_shape": [2, 2]},
        {"rois": np.array([[0, 0, 0, 3, 3], [1, 2, 1, 5, 5]], np.float32)},
        backends=ALL,
        expected=_max_roi_pool,
    ),
    OpCase(
        "max_roi_pool_runtime",
        "MaxRoiPool",
        [("x", "float32", (2, 3, 6, 7)), ("rois", "float32", (2, 5))],
        {"pooled_shape": [2, 2]},
        rejects="rois must be a constant",
    ),
]

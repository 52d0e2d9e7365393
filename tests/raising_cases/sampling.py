# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""Samplers, columns, boxes."""

from __future__ import annotations

import numpy as np

from tests.raising_cases.case import F32, I32, U32, Case, In, f, index, out, s


def _sampling():
    for mode in ("BILINEAR", "NEAREST"):
        for padding in ("ZEROS", "BORDER", "REFLECTION"):
            for align in (False, True):
                params = {"mode": mode, "padding_mode": padding, "align_corners": align}
                yield Case("GridSample", [f(1, 4, 5, 2), f(1, 3, 3, 2, low=-1.3, high=1.3)], params, [(1, 3, 3, 2)])
    yield Case("GridSample", [f(1, 3, 4, 5, 2), f(1, 2, 3, 3, 3, low=-1.2, high=1.2)], {}, [(1, 2, 3, 3, 2)])
    boxes = [[0, 0, 1, 1], [0.1, 0.2, 0.7, 0.9], [0.8, 0.5, 0.3, 0.1]]
    for mode, size, extra in (("BILINEAR", (3, 4), 0.0), ("NEAREST_NEIGHBOR", (3, 4), 0.0), ("BILINEAR", (1, 5), 7.0)):
        params = {"resize_dims": size, "interpolation_mode": mode, "extrapolation_value": extra}
        yield Case(
            "CropAndResize",
            [f(2, 5, 6, 2), f(3, 4, values=boxes), index([0, 1, 1], static=False)],
            params,
            [(3, *size, 2)],
        )
    turn = [0.9, 0.2, -0.5, -0.1, 1.1, 0.3, 0.0, 0.0]
    for mode, values in (("BILINEAR", turn), ("NEAREST_NEIGHBOR", turn), ("BILINEAR", [*turn[:6], 0.01, -0.02])):
        given = In((1, 8), F32, values=values)
        yield Case("ImageProjectionTransform", [f(1, 5, 6, 2), given], {"interpolation_mode": mode})
    for centred, normalized, offsets in (
        (True, True, [[0.1, -0.3]]),
        (False, False, [[1, 2]]),
        (True, False, [[1, -2]]),
        (False, True, [[0.2, 0.4]]),
    ):
        params = {"size": (3, 3), "centered": centred, "normalized": normalized, "noise": "ZEROES"}
        yield Case("ExtractGlimpse", [f(1, 6, 7, 2), f(1, 2, values=offsets)], params, [(1, 3, 3, 2)])
    rois = [[0, 0, 7, 7], [2.2, 1.1, 6.3, 7.7], [1, 3, 5, 6]]
    for ratio, samples, aligned in (
        ((1.0, 1.0), 2, False),
        ((2.0, 2.0), 2, False),
        ((1.0, 2.0), 3, False),
    ):
        params = {"img_size_ratio": ratio, "num_samples_y": samples, "num_samples_x": samples, "aligned": aligned}
        yield Case(
            "RoiAlign", [f(2, 8, 8, 3), f(3, 4, values=rois), index([0, 1, 0], U32, False)], params, [(3, 2, 3, 3)]
        )
    for displacement, shift in ((1, 0), (2, 1), (1, -1)):
        yield Case(
            "Correlation1D",
            [f(1, 3, 6, 2), f(1, 3, 6, 2)],
            {"displacement": displacement, "shift": shift},
            [(1, 3, 6, 2 * displacement + 1)],
        )
    for order, back in (("ARGB", False), ("RGBA", True), ("ARGB", True)):
        yield Case("ArgbToRgb", [f(1, 3, 4, 4)], {"input_order": order, "reverse_output": back}, [(1, 3, 4, 3)])
    for size, stride, rate, padding, y in (
        ((2, 2), (1, 1), (1, 1), "VALID", (4, 5)),
        ((3, 2), (2, 2), (1, 1), "SAME", (3, 3)),
        ((2, 2), (1, 1), (2, 2), "VALID", (3, 4)),
        ((3, 3), (1, 1), (1, 1), "SAME", (5, 6)),
    ):
        params = {"size": size, "stride": stride, "rate": rate, "padding": padding}
        y = (1, *y, size[0] * size[1] * 2)
        note = "HTP follows the definition, QNN CPU has channels before taps"
        yield Case("ExtractPatches", [f(1, 5, 6, 2)], params, [y], oracle="numpy", note=note)
    for step, length in ((4, 8), (2, 6), (8, 8)):
        frames, bins = (24 - length) // step + 1, length // 2 + 1
        yield Case(
            "Stft",
            [f(1, 24, 1), s(length)],
            {"frame_step": step, "frame_length": length, "onesided": True},
            [(1, frames, bins, 2)],
            oracle="numpy",
            note="QNN CPU crashes on it (onnxruntime-qnn)",
            tolerance=1e-4,
        )


def _columns():
    for k, st, pad, d in (
        ((2, 2), (1, 1), [[0, 0], [0, 0]], (1, 1)),
        ((3, 2), (2, 1), [[1, 1], [0, 1]], (1, 1)),
        ((2, 2), (1, 1), [[1, 0], [0, 0]], (2, 1)),
    ):
        size = [(n + sum(pad[a]) - (k[a] - 1) * d[a] - 1) // st[a] + 1 for a, n in enumerate((5, 6))]
        params = {"kernel_size": k, "stride": st, "pad_amount": pad, "dilation": d}
        columns = (2, 3 * k[0] * k[1], size[0] * size[1])
        yield Case("Im2Col", [f(2, 5, 6, 3)], params, [columns], oracle="numpy", note="no backend has it")
        yield Case("Col2Im", [f(*columns)], params, [(2, 5, 6, 3)], oracle="numpy", note="no backend has it")


def _detection():
    boxes = np.array([[0, 0, 1, 1], [0, 0.1, 1, 1.1], [0, 2, 1, 3], [5, 5, 6, 6]], np.float32)[None]
    for limit, iou, score in ((2, 0.5, 0.0), (4, 0.9, 0.2), (1, 0.5, 0.0)):
        scores = np.array([[[0.9, 0.8, 0.7, 0.1], [0.3, 0.6, 0.5, 0.4]]], np.float32)
        yield Case(
            "NonMaxSuppression",
            [f(1, 4, 4, values=boxes), f(1, 2, 4, values=scores)],
            {"iou_threshold": iou, "score_threshold": score, "max_boxes_selected": limit},
            [out(2 * limit, 3, dtype=I32), out(1, dtype=U32)],
        )
    rois = [[0, 0, 10, 10], [5, 5, 15, 25], [2, 3, 8, 9]]
    for classes in (1, 2, 3):
        yield Case(
            "AxisAlignedBboxTransform",
            [
                f(3, 4, values=rois),
                f(3, 4 * classes, low=-0.5, high=0.5),
                index([0, 0, 1]),
                f(2, 2, values=[[20, 30], [12, 9]]),
            ],
            {"weights": [1.0, 2.0, 1.0, 0.5]} if classes == 2 else {},
            [(3, 4 * classes)],
        )


CASES = [case for family in (_sampling, _columns, _detection) for case in family()]

# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""Boxes: suppression and transforms. Results of variable length fill a fixed output; the rest of it is zero."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from npukit.raising.emit import Emit
from npukit.raising.registry import raises


@raises("NonMaxSuppression")
def _non_max_suppression(e: Emit) -> list[ir.Value]:
    """Rows (batch, class, box) of the kept boxes, then zeros; and how many were kept."""
    rows = e.out_shape()[0]
    boxes, scores = (e.cast(e.real(i), ir.DataType.FLOAT) for i in (0, 1))
    limit = np.asarray(e.integer("max_boxes_selected", 0), np.int64)
    thresholds = [np.float32(e.scalar("iou_threshold")), np.float32(e.scalar("score_threshold", 0))]
    found = e.call("NonMaxSuppression", boxes, scores, limit, *thresholds)
    filled = e.call("Concat", found, np.zeros((rows, 3), np.int64), axis=0)
    count = e.call("Shape", found, start=0, end=1)
    return [e.call("Slice", filled, [0], [rows], [0]), e.call("Min", count, np.asarray([rows], np.int64))]


@raises("AxisAlignedBboxTransform")
def _axis_aligned(e: Emit) -> list[ir.Value]:
    """Regions moved by deltas (dx, dy, dw, dh) of each class and cut to their image."""
    rois, classes = e.shape(0)[0], e.shape(1)[1] // 4
    weights = e.array("weights", [1.0, 1.0, 1.0, 1.0]).astype(np.float32)
    corners = e.calls("Split", e.call("Unsqueeze", e.real(0), [1]), np.ones(4, np.int64), outputs=4, axis=2)
    deltas = e.call("Div", e.reshape(e.real(1), [rois, classes, 4]), weights.reshape(1, 1, 4))
    moves = e.calls("Split", deltas, np.ones(4, np.int64), outputs=4, axis=2)
    batch = e.cast(e.real(2), ir.DataType.INT64)
    images = e.reshape(e.call("Gather", e.real(3), batch, axis=0), [rois, 1, 2])
    extents = e.calls("Split", images, np.ones(2, np.int64), outputs=2, axis=2)
    low: list[ir.Value] = []
    high: list[ir.Value] = []
    for axis in range(2):
        size = e.call("Sub", corners[axis + 2], corners[axis])
        centre = e.call("Mul", e.call("Add", corners[axis], corners[axis + 2]), 0.5)
        centre = e.call("Add", centre, e.call("Mul", moves[axis], size))
        half = e.call("Mul", e.call("Mul", e.call("Exp", moves[axis + 2]), size), 0.5)
        for ends, sign in ((low, "Sub"), (high, "Add")):
            edge = e.call(sign, centre, half)
            ends.append(e.call("Max", e.call("Min", edge, extents[1 - axis]), 0.0))
    moved = e.call("Concat", *low, *high, axis=2)
    boxes = e.reshape(moved, [rois, classes * 4])
    if not e.wants(1):
        return [boxes]
    return [boxes, _counts(e, batch, e.out_shape(1)[0])]


def _counts(e: Emit, batch: ir.Value, batches: int) -> ir.Value:
    """How many entries of `batch` name each image."""
    hit = e.call("Equal", e.call("Unsqueeze", batch, [0]), np.arange(batches, dtype=np.int64).reshape(-1, 1))
    return e.call("ReduceSum", e.cast(hit, ir.DataType.INT64), [1], keepdims=0)

# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""Detection: suppression of overlapping boxes, and the decoding that comes before it.

The greedy choice is written out, one box after the other: plain ops that every backend has, with results of a fixed
size. Equal scores: the first box wins.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir

from npukit.frontends.tflite.builder import Builder
from npukit.frontends.tflite.registry import Refused, reads, reads_custom

_LOWEST = -3.0e4  # below every score, and a number in float16 too
MOST = 200
"""Boxes that are chosen at most: each is about fifteen ops."""


def _columns(b: Builder, boxes: ir.Value) -> list[ir.Value]:
    """[N, 4] -> four of [N]."""
    parts = b.nodes("Split", boxes, b.vector([1] * 4), outputs=4, axis=1)
    return [b.reshape(part, [-1]) for part in parts]


def suppress(
    b: Builder, boxes: ir.Value, scores: ir.Value, count: int, most: int, overlap: float, least: float, *,
    inclusive: bool,
) -> tuple[ir.Value, ir.Value, ir.Value]:  # fmt: skip
    """Choose `most` boxes by falling score, leaving out what overlaps a chosen one.

    Args:
        b: the builder.
        boxes: [N, 4] corners (y, x, y, x), in any order.
        scores: [N].
        count: N.
        most: how many to choose.
        overlap: intersection over union from which a box is left out.
        least: scores that count are above it.
        inclusive: whether a score of `least` counts as well.

    Returns:
        Positions int64 [most], scores [most] (both 0 where there was none), and which are there, float [most].
    """
    if not 0 < most <= MOST:
        raise Refused(f"it chooses {most} boxes; at most {MOST} are written out")
    b.room(count)
    y1, x1, y2, x2 = _columns(b, boxes)
    top, bottom = b.node("Min", y1, y2), b.node("Max", y1, y2)
    left, right = b.node("Min", x1, x2), b.node("Max", x1, x2)
    area = b.node("Mul", b.node("Sub", bottom, top), b.node("Sub", right, left))
    sides = b.node("Concat", *(b.node("Unsqueeze", v, b.vector([1])) for v in (top, left, bottom, right, area)), axis=1)
    lowest, nothing = b.scalar(_LOWEST), b.scalar(0.0)
    counts = b.node("GreaterOrEqual" if inclusive else "Greater", scores, b.scalar(least))
    left_over = b.node("Where", counts, scores, lowest)
    chosen, found = [], []
    for _ in range(most):
        best = b.node("ArgMax", left_over, axis=0, keepdims=1)
        score = b.node("Gather", left_over, best, axis=0)
        it = b.node("Gather", sides, best, axis=0)  # [1, 5]
        t, l_, e, r, size = (b.reshape(v, [1]) for v in b.nodes("Split", it, b.vector([1] * 5), outputs=5, axis=1))
        height = b.node("Max", b.node("Sub", b.node("Min", bottom, e), b.node("Max", top, t)), nothing)
        width = b.node("Max", b.node("Sub", b.node("Min", right, r), b.node("Max", left, l_)), nothing)
        shared = b.node("Mul", height, width)
        union = b.node("Sub", b.node("Add", area, size), shared)
        # shared / union > overlap, without the division by a union of nothing
        over = b.node("Greater", shared, b.node("Mul", union, b.scalar(overlap)))
        same = b.node("Equal", b.constant(np.arange(count, dtype=np.int64)), best)
        left_over = b.node("Where", b.node("Or", over, same), lowest, left_over)
        chosen.append(best)
        found.append(score)
    positions, picked = (b.node("Concat", *parts, axis=0) if most > 1 else parts[0] for parts in (chosen, found))
    there = b.cast(b.node("Greater", picked, b.scalar(_LOWEST / 2)), ir.DataType.FLOAT)
    whole = b.node("Mul", positions, b.cast(there, ir.DataType.INT64))
    return whole, b.node("Mul", picked, there), there


@reads("NON_MAX_SUPPRESSION_V4", "NON_MAX_SUPPRESSION_V5")
def non_max_suppression(b: Builder) -> None:
    """Boxes [N, 4], scores [N] -> positions [K], (V5: scores [K],) how many there are."""
    (most,) = b.ints(2, "number of boxes")
    overlap, least = (_number(b, i, what) for i, what in ((3, "overlap"), (4, "least score")))
    if b.op.code.endswith("V5") and _number(b, 5, "sigma"):
        raise Refused("soft suppression (a sigma that is not 0)", "convert the model with soft_nms_sigma=0")
    if b.rank(0) != 2 or b.shape(0)[1] != 4:
        raise Refused(f"boxes of shape {list(b.shape(0))}")
    positions, picked, there = suppress(b, b.x(0), b.x(1), b.shape(1)[0], most, overlap, least, inclusive=False)
    results = [positions, *([picked] if b.op.code.endswith("V5") else [])]
    results.append(b.node("ReduceSum", there, b.vector([0]), keepdims=0))
    for i, value in enumerate(results):
        dtype = b.result(i).dtype
        b.set(value if dtype is None or dtype is ir.DataType.FLOAT else b.cast(value, dtype), i)


def _number(b: Builder, i: int, what: str) -> float:
    data = b.data(i)
    if data is None:
        raise Refused(f"its {what} is only known when it runs")
    return float(data.reshape(-1)[0])


def _options(b: Builder) -> dict[str, Any]:
    from flatbuffers import flexbuffers  # type: ignore[import-untyped]

    found = flexbuffers.Loads(bytearray(b.op.custom_options))
    return dict(found) if isinstance(found, dict) else {}


@reads_custom("TFLite_Detection_PostProcess")
def detection_post_process(b: Builder) -> None:
    """Box encodings [1, N, 4], scores [1, N, C], anchors [N, 4] -> boxes, classes, scores, how many.

    The fast form: a box has the class of its best score, and one suppression over all. Fields of the options are those
    of tensorflow/lite/kernels/detection_postprocess.cc.
    """
    options = _options(b)
    if options.get("use_regular_nms"):
        raise Refused("suppression class by class (use_regular_nms)", "export the model with use_regular_nms=false")
    if int(options.get("max_classes_per_detection", 1)) != 1:
        raise Refused("several classes a detection", "export the model with max_classes_per_detection=1")
    if b.shape(0)[0] != 1:
        raise Refused(f"a batch of {b.shape(0)[0]}")
    count, classes = b.shape(0)[1], int(options["num_classes"])
    scale = {side: float(options[f"{side}_scale"]) for side in "yxhw"}
    y, x, h, w = _columns(b, b.reshape(b.x(0), [count, b.shape(0)[2]]) if b.shape(0)[2] == 4 else _first_four(b, count))
    anchor_y, anchor_x, anchor_h, anchor_w = _columns(b, b.x(2))

    def centre(value: ir.Value, side: str, size: ir.Value, at: ir.Value) -> ir.Value:
        return b.node("Add", b.node("Mul", b.node("Div", value, b.scalar(scale[side])), size), at)

    def half(value: ir.Value, side: str, size: ir.Value) -> ir.Value:
        grown = b.node("Mul", b.node("Exp", b.node("Div", value, b.scalar(scale[side]))), size)
        return b.node("Mul", grown, b.scalar(0.5))

    middle_y, middle_x = centre(y, "y", anchor_h, anchor_y), centre(x, "x", anchor_w, anchor_x)
    half_h, half_w = half(h, "h", anchor_h), half(w, "w", anchor_w)
    corners = [b.node(op, m, s) for op in ("Sub", "Add") for m, s in ((middle_y, half_h), (middle_x, half_w))]
    boxes = b.node("Concat", *(b.node("Unsqueeze", v, b.vector([1])) for v in corners), axis=1)

    scores = b.reshape(b.x(1), [count, b.shape(1)[2]])
    background = b.shape(1)[2] - classes
    if background:
        scores = b.node("Slice", scores, b.vector([background]), b.vector([b.shape(1)[2]]), b.vector([1]))
    best = b.node("ReduceMax", scores, b.vector([1]), keepdims=0)
    kind = b.node("ArgMax", scores, axis=1, keepdims=0)
    positions, picked, there = suppress(
        b, boxes, best, count, int(options["max_detections"]), float(options["nms_iou_threshold"]),
        float(options["nms_score_threshold"]), inclusive=True,
    )  # fmt: skip
    first = b.vector([0])
    column = b.node("Unsqueeze", there, b.vector([1]))
    kept = b.node("Mul", b.node("Gather", boxes, positions, axis=0), column)
    named = b.node("Mul", b.cast(b.node("Gather", kind, positions, axis=0), ir.DataType.FLOAT), there)
    results = [*(b.node("Unsqueeze", v, first) for v in (kept, named, picked)), b.node("ReduceSum", there, first)]
    for i, value in enumerate(results):
        b.set(value, i)


def _first_four(b: Builder, count: int) -> ir.Value:
    """Box encodings with key points behind them."""
    flat = b.reshape(b.x(0), [count, b.shape(0)[2]])
    return b.node("Slice", flat, b.vector([0]), b.vector([4]), b.vector([1]))

# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""Shapes that onnx's own inference leaves open or gets wrong, by op.

Tried on onnx 1.23.2: STFT without `onesided` is inferred as two-sided, though the attribute's default is 1; Compress
with a constant condition gets no length.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir

from npukit.frontends.onnx.rewrite import attribute, constant, input_at, ints, shape_of

Shape = tuple[int, ...]


def _stft(node: ir.Node) -> Shape | None:
    signal, window = (shape_of(input_at(node, i)) for i in (0, 2))
    step, length = ints(input_at(node, 1)), ints(input_at(node, 3)) or (list(window) if window else None)
    if signal is None or not step or not length:
        return None
    bins = length[0] // 2 + 1 if attribute(node, "onesided", 1) else length[0]
    return (signal[0], (signal[1] - length[0]) // step[0] + 1, bins, 2)


def _compress(node: ir.Node) -> Shape | None:
    shape, condition, axis = shape_of(node.inputs[0]), constant(input_at(node, 1)), attribute(node, "axis")
    if shape is None or condition is None:
        return None
    kept = int(np.count_nonzero(condition))
    if axis is None:
        return (kept,)
    place = axis % len(shape)
    return (*shape[:place], kept, *shape[place + 1 :])


RULES: dict[str, Callable[[ir.Node], Shape | None]] = {"STFT": _stft, "Compress": _compress}


def correct_shapes(node: ir.Node) -> None:
    """Set the first output's shape of a node whose op has a rule here."""
    rule = RULES.get(node.op_type) if not node.domain else None
    shape = rule(node) if rule is not None else None
    if shape is not None:
        node.outputs[0].shape = ir.Shape(shape)

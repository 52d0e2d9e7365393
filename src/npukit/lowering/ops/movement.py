# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""Shape and data movement."""

from __future__ import annotations

import onnx_ir as ir

from npukit.lowering.emitter import Emitter
from npukit.lowering.registry import lowers


@lowers("Reshape", "Flatten", "Squeeze", "Unsqueeze")
def reshape(e: Emitter, node: ir.Node) -> None:
    """Another shape over the same elements in the source's order; the target shape is known from inference.

    x: T[*D] -> y: T[*E]
    T: any
    """
    e.emit("Reshape", [e.get(node.inputs[0])], [e.output(node.outputs[0])])


@lowers("Transpose")
def transpose(e: Emitter, node: ir.Node) -> None:
    """Permutation of axes; costs nothing where the reader can take the order as it is held.

    x: T[*D] -> y: T[*D']
    T: any
    """
    x, held = e.held(node.inputs[0])
    rank = e.rank(node.inputs[0])
    perm = tuple(node.attributes.get_ints("perm", list(range(rank))[::-1]))
    order = held or tuple(range(rank))
    e.emit("Transpose", [x], [e.output(node.outputs[0])], perm=[order.index(axis) for axis in perm])

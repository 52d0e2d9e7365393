# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""Whether a node can be as the model has it: ONNX's shape inference leaves much of that unchecked.

Asked only where a lowering stumbled over a node: if the references cannot run it either, or give something else than
the model declares, then the model is at fault.
"""

from __future__ import annotations

import math
import re

import numpy as np
import onnx
import onnx_ir as ir

from npukit.errors import shown
from npukit.frontends.onnx.fold_constants import _run_ort, _run_reference, one_node_model
from npukit.frontends.onnx.rewrite import Array, constant, shape_of

_MAX_ELEMENTS = 1 << 24


def contradiction(node: ir.Node) -> str:
    """Why no runtime can run this node of a normalized model, in one line; empty if one does (on zeros)."""
    values = [v for v in (*node.inputs, *node.outputs) if v is not None and v.name]
    for value in values:
        count = math.prod(shape_of(value) or ())
        if count > _MAX_ELEMENTS:
            return f"{value.name!r} has {count} elements, too many to find out what is wrong"
    try:
        model = one_node_model(node)
        onnx.checker.check_model(model)
        feeds = {v.name: _feed(v) for v in node.inputs if v is not None and v.name}
    except Exception as error:  # noqa: BLE001 - the checker raises many kinds; each means that the node cannot be
        return shown(str(error), 300)
    reason = ""
    for run in (_run_ort, _run_reference):
        try:
            found = run(model, feeds)
        except Exception as error:  # noqa: BLE001 - as above
            reason = _said(error)
            if any(word in reason for word in _LACKING):
                continue
            return reason
        return _differs(node, found)
    return reason


# A runtime that lacks the op says nothing about the node: the next one is asked.
_LACKING = ("NOT_IMPLEMENTED", "not supported", "not a registered function/op", "No Op registered", "No implementation")


def _said(error: Exception) -> str:
    """A runtime's words without the places in its own sources."""
    text = re.sub(r"/onnxruntime_src/\S+( [\w:<>~]+\(.*?\)( \[with [^]]*\])?)?", "", str(error))
    return shown(text.replace("[ONNXRuntimeError] : ", "ONNX Runtime: "), 300)


def _feed(value: ir.Value) -> Array:
    held = constant(value)
    if held is not None:
        return np.asarray(held, order="C")
    assert value.dtype is not None
    return np.zeros(shape_of(value) or (), value.dtype.numpy())


def _differs(node: ir.Node, found: list[Array]) -> str:
    for value, array in zip([v for v in node.outputs if v.name], found, strict=False):
        declared = shape_of(value)
        if declared is not None and declared != array.shape:
            return f"its output {value.name!r} is declared as {list(declared)} and comes out as {list(array.shape)}"
    return ""

# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""Lowers the ops that plugins define: by the plugin's own function, or as an op of an op package."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from npukit import plugins
from npukit.errors import NpukitError
from npukit.frontends.onnx.rewrite import attribute
from npukit.lowering.emitter import Emitter
from npukit.lowering.registry import Unsupported
from npukit.qnn.graph import DType, Param

_DTYPES = {"f": DType.FLOAT_32, "i": DType.INT_32, "u": DType.INT_32}


def lower_custom(e: Emitter, node: ir.Node) -> None:
    """Lower a node whose op a plugin in use defines by `lower` or `package`.

    Raises:
        Unsupported: the plugin refuses the node, fails, or leaves an output out.
    """
    custom = plugins.find(node.domain, node.op_type)
    assert custom is not None
    if custom.package:
        _package_op(e, node, custom)
        return
    assert custom.lower is not None
    try:
        custom.lower(e, node)
    except (Unsupported, NpukitError):
        raise
    except Exception as error:
        raise Unsupported(f"{custom.broken('fails')}: {type(error).__name__}: {error}", kind="plugin") from error
    for value in node.outputs:
        if (value.uses() or value.is_graph_output()) and not e.holds(value):
            raise Unsupported(custom.broken(f"makes no output {value.name!r}"), kind="plugin")


def _package_op(e: Emitter, node: ir.Node, custom: plugins.CustomOp) -> None:
    """The op as the package has it: no backend here knows it, so none is asked."""
    if e.quantized:
        raise Unsupported(f"{custom.title} of the package {custom.package} takes floats here")
    params = {name: _param(name, attribute(node, name), custom) for name in node.attributes}
    inputs = [None if value is None else e.get(value) for value in node.inputs]
    outputs = [e.output(value) for value in node.outputs]
    e.emit_foreign(custom.package, node.op_type, inputs, outputs, params)
    e.notes.append(f"an op of the package {custom.package}: no backend has validated it")


def _param(name: str, value: object, custom: plugins.CustomOp) -> Param:
    array = np.asarray(value)
    dtype = _DTYPES.get(array.dtype.kind)
    if dtype is None:
        raise Unsupported(f"the attribute {name!r} of {custom.title} is no number, an op package takes numbers only")
    if array.ndim == 0:
        return Param(dtype, float(array) if dtype.is_float else int(array))
    return Param(dtype, array.astype(dtype.numpy))

# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""Changes of element type, and ops that change nothing."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from npukit.lowering.emitter import Emitter, NeedsFloat
from npukit.lowering.registry import Unsupported, lowers
from npukit.qnn.graph import DType, Tensor

from .forms import elementwise, from_bool, to_bool, wrapped

_BITS = {  # integer types narrower than int32: (bits, signed)
    ir.DataType.INT16: (16, True),
    ir.DataType.UINT16: (16, False),
    ir.DataType.INT8: (8, True),
    ir.DataType.UINT8: (8, False),
    ir.DataType.INT4: (4, True),
    ir.DataType.UINT4: (4, False),
    ir.DataType.INT2: (2, True),
    ir.DataType.UINT2: (2, False),
}
_WIDE = (32, True)


@lowers("Cast", "CastLike")
def cast(e: Emitter, node: ir.Node) -> None:
    """Another element type; the target of CastLike is the type of its second input.

    x: T[*D] -> y: U[*D]
    T, U: float, integer, bool. Float to integer truncates; integers wrap around in narrower types; float types
    are all held as the graph's float type and are not rounded to one another
    """
    source, result = node.inputs[0], node.outputs[0]
    have, want = e.source_dtype(source), e.source_dtype(result)
    held = e.held_dtype(want)
    if e.quantized and not held.is_float:
        raise NeedsFloat("a cast of quantized values to another kind")

    def run(e: Emitter, tensors: list[Tensor]) -> Tensor:
        x = tensors[0]
        if held is DType.BOOL_8:
            return to_bool(e, x)
        if x.dtype is DType.BOOL_8:
            return from_bool(e, x, held)
        narrow = _BITS.get(want)
        if x.dtype is DType.INT_32 and held is DType.INT_32:
            bits, signed = _BITS.get(have, _WIDE)
            fits = narrow is None or (bits < narrow[0] or (bits, signed) == narrow) and (signed <= narrow[1])
            return x if fits else wrapped(e, x, *narrow)  # type: ignore[misc]
        return x if e.quantized else e.cast(x, held)

    elementwise(e, node, run, values=[source])


@lowers("BitCast")
def bit_cast(e: Emitter, node: ir.Node) -> None:
    """The same bits read as another type of the same width.

    x: T[*D] -> y: U[*D]
    T, U: integers (of 32 and 64 bits: numbers below 2^31), bool to and from 8 bits, or one float type
    """
    source, result = node.inputs[0], node.outputs[0]
    have, want = e.source_dtype(source), e.source_dtype(result)
    floats = e.is_float(source), e.is_float(result)
    if any(floats) and have != want:
        raise Unsupported(f"bits of {have.name.lower()} as {want.name.lower()}", hint="no QNN op reads bits anew")
    e.held_dtype(want)

    def run(e: Emitter, tensors: list[Tensor]) -> Tensor:
        x = tensors[0]
        if have == want or x.dtype.is_float:
            return x
        if want is ir.DataType.BOOL:
            return to_bool(e, x)
        if have is ir.DataType.BOOL:
            return from_bool(e, x, DType.INT_32)
        return wrapped(e, x, *_BITS[want]) if want in _BITS else x

    elementwise(e, node, run, values=[source])


@lowers("Dropout")
def dropout(e: Emitter, node: ir.Node) -> None:
    """Inference: x itself, and a mask of ones.

    x: T[*D], ratio: T[]?, training: bool[]? -> y: T[*D], mask: bool[*D]
    T: any; training_mode must be a constant false
    """
    if len(node.inputs) > 2 and node.inputs[2] is not None:
        training = e.need_constant(node.inputs[2], "training_mode of Dropout")
        if bool(np.any(training)):
            ratio = node.inputs[1]
            if ratio is None or float(e.need_constant(ratio, "ratio of Dropout").reshape(-1)[0]) != 0.0:
                raise Unsupported("Dropout in training mode", hint="export the model for inference")
    x, perm = e.held(node.inputs[0])
    e.bind(node.outputs[0], x, perm)
    if len(node.outputs) > 1 and node.outputs[1].name:
        e.bind(node.outputs[1], e.static(np.ones(e.shape(node.outputs[0]), bool), DType.BOOL_8))

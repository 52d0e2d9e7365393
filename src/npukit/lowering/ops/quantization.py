# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""QuantizeLinear and its kin where no Q/DQ pair collapses.

Integer codes that a source uses as plain integers are held as INT_32, so that these are float arithmetic with
rounding and clipping: exact while scales and codes are what float holds (float16 on HTP).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from npukit.lowering.emitter import Emitter
from npukit.lowering.qdq import activation_encoding
from npukit.lowering.registry import Unsupported, lowers
from npukit.qnn.graph import Array, DType, Tensor

from .conv import resolve_pads
from .matrix import batched_matmul
from .movement import broadcast

_LIMITS = {
    ir.DataType.UINT8: (0, 255),
    ir.DataType.INT8: (-128, 127),
    ir.DataType.UINT16: (0, 65535),
    ir.DataType.INT16: (-32768, 32767),
    ir.DataType.UINT4: (0, 15),
    ir.DataType.INT4: (-8, 7),
    ir.DataType.UINT2: (0, 3),
    ir.DataType.INT2: (-2, 1),
}


def _spread(e: Emitter, x: Tensor, shape: Sequence[int], axis: int, block: int) -> Tensor:
    """A scale or zero point in a shape that broadcasts with `shape`: scalar, per axis, or per block of the axis."""
    if int(np.prod(x.shape)) == 1:
        return e.reshape(x, (1,))
    if block:
        lead, tail = x.shape[: axis + 1], x.shape[axis + 1 :]
        y = e.reshape(x, (int(np.prod(lead)), 1, int(np.prod(tail))))
        y = broadcast(e, y, (y.shape[0], block, y.shape[2]))
        y = e.reshape(y, (*lead[:-1], lead[-1] * block, *tail))
        return y if y.shape[axis] == shape[axis] else e.slice(y, axis, 0, shape[axis])
    return e.reshape(x, [x.shape[0] if i == axis else 1 for i in range(len(shape))])


def _float(e: Emitter, value: ir.Value | None) -> Tensor:
    known = e.constant(value)
    if known is not None:
        return e.static(known.astype(np.float32))
    x = e.get(value)
    return x if x.dtype.is_float else e.cast(x, e.float_dtype)


def _rounded(e: Emitter, x: Tensor, dtype: ir.DataType) -> Tensor:
    """Round x half to even and clip to an integer dtype's range, still float."""
    low, high = _LIMITS[dtype]
    clipped = e.emit("ReluMinMax", [x], [e.temp(x.shape, x.dtype)], min_value=float(low), max_value=float(high))
    return e.unary("ElementWiseRound", clipped)


@lowers("QuantizeLinear")
def quantize_linear(e: Emitter, node: ir.Node) -> None:
    """Float to integer codes.

    x: T[*D], scale: T[*S], zero_point: Q[*S]? -> y: Q[*D]
    T: float; Q: 8, 16, 4 and 2 bit integers; per tensor, per axis or per block
    """
    y = node.outputs[0]
    dtype = e.source_dtype(y)
    if dtype not in _LIMITS:
        raise Unsupported(f"codes of type {dtype.name.lower()}", kind="dtype cannot be held")
    encoding = activation_encoding(node, dtype)

    def native() -> None:
        if encoding is None or not e.has_encoding(y):
            raise Unsupported("no encoding: codes are used as integers, or the scale is computed")
        x, order = e.held(node.inputs[0])
        out = e.temp(x.shape, *encoding)
        e.emit("Quantize", [x], [out])
        e.bind(y, out, order)

    def composed() -> None:
        x = _float(e, node.inputs[0])
        shape = e.shape(node.inputs[0])
        axis, block = node.attributes.get_int("axis", 1), node.attributes.get_int("block_size", 0)
        axis = axis % len(shape) if shape else 0
        codes = e.div(x, _spread(e, _float(e, node.inputs[1]), shape, axis, block))
        if len(node.inputs) > 2 and node.inputs[2] is not None:
            low, high = _LIMITS[dtype]
            codes = e.unary("ElementWiseRound", codes)
            codes = e.add(codes, _spread(e, _float(e, node.inputs[2]), shape, axis, block))
            codes = e.emit(
                "ReluMinMax", [codes], [e.temp(codes.shape, codes.dtype)], min_value=float(low), max_value=float(high)
            )
        else:
            codes = _rounded(e, codes, dtype)
        e.bind(y, e.cast(codes, DType.INT_32))

    e.forms(native, composed)


@lowers("DequantizeLinear")
def dequantize_linear(e: Emitter, node: ir.Node) -> None:
    """Integer codes to float.

    x: Q[*D], scale: T[*S], zero_point: Q[*S]? -> y: T[*D]
    T: float; Q: integers of up to 32 bits; per tensor, per axis or per block
    """
    if e.source_dtype(node.inputs[0]).name.startswith("FLOAT"):
        raise Unsupported("float8 codes", kind="dtype cannot be held")
    shape = e.shape(node.inputs[0])
    axis, block = node.attributes.get_int("axis", 1), node.attributes.get_int("block_size", 0)
    axis = axis % len(shape) if shape else 0
    x = _float(e, node.inputs[0])
    if len(node.inputs) > 2 and node.inputs[2] is not None:
        x = e.sub(x, _spread(e, _float(e, node.inputs[2]), shape, axis, block))
    e.bind(node.outputs[0], e.mul(x, _spread(e, _float(e, node.inputs[1]), shape, axis, block)))


@lowers("DynamicQuantizeLinear")
def dynamic_quantize_linear(e: Emitter, node: ir.Node) -> None:
    """Codes, scale and zero point from the tensor's own range.

    x: T[*D] -> y: uint8[*D], y_scale: T[], y_zero_point: uint8[]
    T: float
    """
    x = e.get(node.inputs[0])
    flat = e.reshape(x, (int(np.prod(x.shape)),))
    low = e.binary("ElementWiseMinimum", _extreme(e, "ReduceMin", flat), 0.0)
    high = e.binary("ElementWiseMaximum", _extreme(e, "ReduceMax", flat), 0.0)
    scale = e.mul(e.sub(high, low), 1.0 / 255)
    zero = _rounded(e, e.unary("ElementWiseNeg", e.div(low, scale)), ir.DataType.UINT8)
    codes = e.add(e.unary("ElementWiseRound", e.div(flat, scale)), zero)
    codes = e.emit("ReluMinMax", [codes], [e.temp(codes.shape, codes.dtype)], min_value=0.0, max_value=255.0)
    e.bind(node.outputs[0], e.reshape(e.cast(codes, DType.INT_32), x.shape))
    e.bind(node.outputs[1], scale)
    e.bind(node.outputs[2], e.cast(zero, DType.INT_32))


def _extreme(e: Emitter, op_type: str, x: Tensor) -> Tensor:
    return e.emit(op_type, [x], [e.temp((1,), x.dtype)], axes=[0], keep_dims=True)


def _centred(e: Emitter, value: ir.Value | None, point: ir.Value | None, column: bool = False) -> Tensor:
    """Codes minus zero point, as floats; a zero point per row (or column) is spread over the matrix."""
    x = _float(e, value)
    if point is None:
        return x
    zero = _float(e, point)
    if zero.shape != (1,) and len(e.shape(point)) == 1:
        zero = e.reshape(zero, (1, zero.shape[0]) if column else (zero.shape[0], 1))
    return e.sub(x, zero)


def _optional(node: ir.Node, index: int) -> ir.Value | None:
    return node.inputs[index] if len(node.inputs) > index else None


@lowers("MatMulInteger")
def matmul_integer(e: Emitter, node: ir.Node) -> None:
    """Product of integer codes, as int32.

    a: Q[*A,M,K], b: Q[*B,K,N], a_zero_point: Q[*]?, b_zero_point: Q[*]? -> y: int32[*,M,N]
    Q: uint8, int8
    """
    a = _centred(e, node.inputs[0], _optional(node, 2))
    b = _centred(e, node.inputs[1], _optional(node, 3), column=True)
    e.bind(node.outputs[0], e.cast(batched_matmul(e, a, b), DType.INT_32))


@lowers("QLinearMatMul")
def qlinear_matmul(e: Emitter, node: ir.Node) -> None:
    """Product of quantized matrices, requantized.

    a: Q[*A,M,K], b: Q[*B,K,N] -> y: Q[*,M,N]
    Q: uint8, int8
    """
    a, a_scale, a_zero, b, b_scale, b_zero, y_scale, y_zero = node.inputs
    left = e.mul(_centred(e, a, a_zero), _row(e, a_scale))
    right = e.mul(_centred(e, b, b_zero, column=True), _row(e, b_scale, column=True))
    product = batched_matmul(e, left, right)
    e.bind(node.outputs[0], _requantized(e, node, product, _row(e, y_scale), _float(e, y_zero)))


def _row(e: Emitter, value: ir.Value | None, column: bool = False) -> Tensor:
    scale = _float(e, value)
    if scale.shape == (1,):
        return scale
    return e.reshape(scale, (1, scale.shape[0]) if column else (scale.shape[0], 1))


def _requantized(e: Emitter, node: ir.Node, x: Tensor, scale: Tensor, zero: Tensor) -> Tensor:
    low, high = _LIMITS[e.source_dtype(node.outputs[0])]
    codes = e.add(e.unary("ElementWiseRound", e.div(x, scale)), zero)
    codes = e.emit(
        "ReluMinMax", [codes], [e.temp(codes.shape, codes.dtype)], min_value=float(low), max_value=float(high)
    )
    return e.cast(codes, DType.INT_32)


@lowers("ConvInteger", "QLinearConv")
def conv_integer(e: Emitter, node: ir.Node) -> None:
    """Convolution of integer codes: a float convolution of codes minus zero points.

    x: Q[N,C,H,W], w: Q[O,C/group,kh,kw] -> y: int32[N,O,H',W']
    Q: uint8, int8; w constant; two spatial axes
    """
    linear = node.op_type == "QLinearConv"
    x_value, w_value = node.inputs[0], node.inputs[3 if linear else 1]
    x_zero, w_zero = (node.inputs[2], node.inputs[5]) if linear else (_optional(node, 2), _optional(node, 3))
    x = e.transpose(_centred(e, x_value, x_zero), (0, 2, 3, 1))
    codes = e.need_constant(w_value, "the weights").astype(np.float32)
    points = (
        e.need_constant(w_zero, "the weights' zero point").astype(np.float32) if w_zero is not None else np.zeros(1)
    )
    weights = codes - _by_channel(points)
    scales = e.need_constant(node.inputs[4], "the weights' scale") if linear else np.ones(1, np.float32)
    if linear:
        weights = weights * _by_channel(scales) * e.need_constant(node.inputs[1], "the input's scale")
    if weights.ndim != 4:
        raise Unsupported("integer convolutions over two axes only")
    kernel = list(weights.shape[2:])
    strides = list(node.attributes.get_ints("strides", [1, 1]))
    dilations = list(node.attributes.get_ints("dilations", [1, 1]))
    pads = resolve_pads(node, x.shape[1:3], kernel, strides, dilations)
    w = e.static(weights.transpose(2, 3, 1, 0).astype(np.float32), hint="weight")
    bias = np.zeros(weights.shape[0], np.float32)
    if linear and _optional(node, 8) is not None:
        scale = e.need_constant(node.inputs[1], "the input's scale") * scales
        bias = np.asarray(e.need_constant(node.inputs[8], "the bias") * scale.reshape(-1), np.float32)
    n, channels, height, width = e.shape(node.outputs[0])
    out = e.temp((n, height, width, channels), x.dtype)
    e.emit(
        "Conv2d", [x, w, e.static(bias, hint="bias")], [out], stride=strides, pad_amount=pads, dilation=dilations,
        group=node.attributes.get_int("group", 1),
    )  # fmt: skip
    y = e.transpose(out, (0, 3, 1, 2))
    if linear:
        e.bind(node.outputs[0], _requantized(e, node, y, _float(e, node.inputs[6]), _float(e, node.inputs[7])))
    else:
        e.bind(node.outputs[0], e.cast(y, DType.INT_32))


def _by_channel(array: Array) -> Array:
    return array.reshape(-1, 1, 1, 1) if array.size > 1 else array.reshape(1)

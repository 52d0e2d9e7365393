# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""com.microsoft ops, and ops that ONNX Runtime put into ai.onnx, become standard ops.

Sources: ONNX Runtime's contrib operator documentation (names, inputs, defaults). Ops without a row stay as
they are; forms that standard ops cannot express are faults.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir

from npukit.frontends.onnx.rewrite import (
    Builder,
    Unsupported,
    attribute,
    constant,
    input_at,
    need_shape,
    output_used,
    replace_node,
    schema_of,
    version_of,
)

if TYPE_CHECKING:
    from npukit.frontends.onnx.specialize import Walk

MICROSOFT = "com.microsoft"
# ops that ORT's optimizer writes into ai.onnx though the opset has no such op
IN_AI_ONNX = frozenset({"SimplifiedLayerNormalization", "LayerNormalization", "Gelu", "FusedMatMul", "FusedConv"})

Values = Sequence[ir.Value | None]
Row = Callable[[Builder, ir.Node], Values]
ROWS: dict[str, Row] = {}


def row(*op_types: str) -> Callable[[Row], Row]:
    """Register the replacement of ops of com.microsoft."""

    def register(function: Row) -> Row:
        ROWS.update(dict.fromkeys(op_types, function))
        return function

    return register


def replace_contrib(walk: Walk, node: ir.Node) -> bool:
    """Replace one contrib op by standard ops; False when there is no row. A form without an equal is a fault."""
    if node.domain == "":
        if node.op_type not in IN_AI_ONNX or schema_of("", node.op_type, version_of(node)) is not None:
            return False
    elif node.domain != MICROSOFT:
        return False
    function = ROWS.get(node.op_type)
    if function is None:
        return False
    builder = walk.builder(node)
    try:
        values = function(builder, node)
    except Unsupported as error:
        walk.fault(node, f"has no form in standard ops: {error}", "cut the graph before it (--output)")
        return True
    replace_node(walk.graph, node, builder.nodes, values)
    return True


def _refuse_outputs(node: ir.Node, *indices: int) -> None:
    for index in indices:
        if output_used(node, index):
            raise Unsupported(f"its output {index} is used")


def _input(node: ir.Node, index: int) -> ir.Value:
    value = input_at(node, index)
    if value is None:
        raise Unsupported(f"input {index} is missing")
    return value


def _same_op(builder: Builder, node: ir.Node) -> Values:
    """The op exists in ai.onnx with the same inputs and attributes."""
    attributes: dict[str, Any] = dict(node.attributes)
    value = builder.op(node.op_type, *node.inputs, outputs=len(node.outputs), **attributes)
    return list(value) if isinstance(value, tuple) else [value]


for _name in ("QuantizeLinear", "DequantizeLinear", "Trilu", "Gelu", "Pad", "Range", "Einsum"):
    ROWS[_name] = _same_op


@row("BiasGelu")
def bias_gelu(builder: Builder, node: ir.Node) -> Values:
    """Gelu(A + B)."""
    return [builder.op("Gelu", builder.op("Add", *node.inputs))]


@row("FastGelu")
def fast_gelu(builder: Builder, node: ir.Node) -> Values:
    """The tanh form, with an optional bias."""
    value = node.inputs[0]
    if input_at(node, 1) is not None:
        value = builder.op("Add", value, node.inputs[1])
    return [builder.op("Gelu", value, approximate="tanh")]


@row("QuickGelu")
def quick_gelu(builder: Builder, node: ir.Node) -> Values:
    """X * Sigmoid(alpha * x)."""
    return [builder.op("Swish", node.inputs[0], alpha=attribute(node, "alpha", 1.702))]


@row("ExpandDims")
def expand_dims(builder: Builder, node: ir.Node) -> Values:
    """Unsqueeze by a scalar axis."""
    axes = builder.op("Reshape", node.inputs[1], builder.ints([1], "vector"))
    return [builder.op("Unsqueeze", node.inputs[0], builder.op("Cast", axes, to=int(ir.DataType.INT64)))]


@row("SimplifiedLayerNormalization")
def simplified_layer_norm(builder: Builder, node: ir.Node) -> Values:
    """RMSNormalization."""
    _refuse_outputs(node, 1)
    return [
        builder.op(
            "RMSNormalization",
            *node.inputs[:2],
            axis=attribute(node, "axis", -1),
            epsilon=attribute(node, "epsilon", 1e-5),
        )
    ]


@row("LayerNormalization")
def early_layer_norm(builder: Builder, node: ir.Node) -> Values:
    """LayerNormalization before opset 17 had it."""
    return _same_op(builder, node)


@row("SkipLayerNormalization", "SkipSimplifiedLayerNormalization")
def skip_norm(builder: Builder, node: ir.Node) -> Values:
    """(Layer or RMS) norm of input + skip + bias; the sum is output 3."""
    _refuse_outputs(node, 1, 2)
    simplified = node.op_type == "SkipSimplifiedLayerNormalization"
    total = builder.op("Add", node.inputs[0], node.inputs[1])
    bias = input_at(node, 3 if simplified else 4)
    if bias is not None:
        total = builder.op("Add", total, bias)
    epsilon = attribute(node, "epsilon", 1e-12)
    if simplified:
        value = builder.op("RMSNormalization", total, node.inputs[2], axis=-1, epsilon=epsilon)
    else:
        beta = input_at(node, 3)
        value = builder.op("LayerNormalization", total, node.inputs[2], beta, axis=-1, epsilon=epsilon)
    return [value, None, None, total][: len(node.outputs)]


@row("EmbedLayerNormalization")
def embed_layer_norm(builder: Builder, node: ir.Node) -> Values:
    """Three embeddings, summed and normalized."""
    _refuse_outputs(node, 1)
    ids, segments, words, positions, segment_table, gamma, beta = (input_at(node, i) for i in range(7))
    batch, length = need_shape(ids)
    total = builder.op("Gather", words, ids)
    at = input_at(node, 8)
    if at is None:
        at = builder.const(np.broadcast_to(np.arange(length, dtype=np.int64), (batch, length)), "positions")
    total = builder.op("Add", total, builder.op("Gather", positions, at))
    if segments is not None and segment_table is not None:
        total = builder.op("Add", total, builder.op("Gather", segment_table, segments))
    value = builder.op("LayerNormalization", total, gamma, beta, axis=-1, epsilon=attribute(node, "epsilon", 1e-12))
    return [value, None, total][: len(node.outputs)]


# --- matrix products ----------------------------------------------------------------------------------------------


@row("FusedMatMul", "TransposeMatMul")
def fused_matmul(builder: Builder, node: ir.Node) -> Values:
    """Alpha * (A or its transpose) x (B or its transpose)."""
    operands = []
    for index, side in ((0, "A"), (1, "B")):
        value = _input(node, index)
        if attribute(node, f"transBatch{side}", 0):
            raise Unsupported("its batch dimensions are transposed")
        rank = len(need_shape(value))
        if attribute(node, f"trans{side}", 0) and rank > 1:
            perm = [*range(rank - 2), rank - 1, rank - 2]
            value = builder.op("Transpose", value, perm=perm)
        operands.append(value)
    result = builder.op("MatMul", *operands)
    alpha = attribute(node, "alpha", 1.0)
    return [result if alpha == 1.0 else builder.op("Mul", result, builder.scalar(alpha, _input(node, 0), "alpha"))]


_ACTIVATIONS = {"Relu": (), "Tanh": (), "Sigmoid": (), "LeakyRelu": ("alpha",), "HardSigmoid": ("alpha", "beta")}


def _activate(builder: Builder, node: ir.Node, value: ir.Value) -> ir.Value:
    name = attribute(node, "activation", "")
    if not name:
        return value
    params = attribute(node, "activation_params", [])
    if name == "Clip" and len(params) == 2:
        like = _input(node, 0)
        return builder.op("Clip", value, *(builder.scalar(p, like, "bound") for p in params))  # type: ignore[no-any-return]
    if name not in _ACTIVATIONS:
        raise Unsupported(f"its activation {name!r} is not known")
    given = dict(zip(_ACTIVATIONS[name], params, strict=False))
    for key in _ACTIVATIONS[name]:
        if f"activation_{key}" in node.attributes:
            given[key] = attribute(node, f"activation_{key}")
    return builder.op(name, value, **given)  # type: ignore[no-any-return]


@row("FusedGemm")
def fused_gemm(builder: Builder, node: ir.Node) -> Values:
    """Gemm, then an activation."""
    keep: dict[str, Any] = {k: v for k, v in node.attributes.items() if not k.startswith("activation")}
    return [_activate(builder, node, builder.op("Gemm", *node.inputs, **keep))]


@row("FusedConv")
def fused_conv(builder: Builder, node: ir.Node) -> Values:
    """Conv, plus an optional sum, then an activation."""
    keep: dict[str, Any] = {k: v for k, v in node.attributes.items() if not k.startswith("activation")}
    value = builder.op("Conv", *node.inputs[:3], **keep)
    if input_at(node, 3) is not None:
        value = builder.op("Add", value, node.inputs[3])
    return [_activate(builder, node, value)]


@row("MatMulNBits")
def matmul_nbits(builder: Builder, node: ir.Node) -> Values:
    """Block-quantized weights: DequantizeLinear with a block size, Transpose, MatMul. The weights are not copied."""
    bits, block = attribute(node, "bits", 4), attribute(node, "block_size")
    rows, inner = attribute(node, "N"), attribute(node, "K")
    if bits not in (4, 8) or inner % block or input_at(node, 4) is not None:
        raise Unsupported("only whole blocks of 4 or 8 bits without g_idx have a standard form")
    packed, scales = constant(node.inputs[1]), _input(node, 2)
    if packed is None:
        raise Unsupported("its weights are not constant")
    blocks = inner // block
    dtype = ir.DataType.UINT4 if bits == 4 else ir.DataType.UINT8
    codes = _packed(packed, dtype, (rows, inner))
    weight = builder.const(codes, "weight")
    scale = builder.op("Reshape", scales, builder.ints([rows, blocks], "blocks"))
    zero = _zero_points(builder, node, bits, rows, blocks, dtype)
    real = builder.op("DequantizeLinear", weight, scale, zero, axis=1, block_size=block)
    value = builder.op("MatMul", node.inputs[0], builder.op("Transpose", real, perm=[1, 0]))
    bias = input_at(node, 5)
    return [value if bias is None else builder.op("Add", value, bias)]


def _packed(array: Any, dtype: ir.DataType, shape: tuple[int, ...]) -> ir.TensorProtocol:
    flat = np.asarray(array).reshape(-1)
    if flat.dtype != np.uint8:
        raise Unsupported("its weights are not stored as uint8")
    if dtype.bitwidth == 8:
        return ir.Tensor(flat.reshape(shape))
    return ir.PackedTensor(flat, dtype, shape=ir.Shape(shape))


def _zero_points(
    builder: Builder, node: ir.Node, bits: int, rows: int, blocks: int, dtype: ir.DataType
) -> ir.Value | None:
    points = input_at(node, 3)
    if points is None:
        middle = np.full((rows, blocks), 1 << (bits - 1), np.uint8)
        if bits == 8:
            return builder.const(middle, "zero")
        return builder.const(middle.astype(dtype.numpy()), "zero", dtype)
    array = constant(points)
    if array is None or array.dtype != np.uint8:
        raise Unsupported("its zero points are not constant uint8")
    if bits == 8:
        return builder.const(array.reshape(rows, blocks), "zero")
    pairs = array.reshape(rows, -1)
    unpacked = np.stack([pairs & 15, pairs >> 4], axis=-1).reshape(rows, -1)[:, :blocks]
    return builder.const(unpacked.astype(dtype.numpy()), "zero", dtype)


@row("DynamicQuantizeMatMul")
def dynamic_quantize_matmul(builder: Builder, node: ir.Node) -> Values:
    """A is quantized while it runs; B is dequantized."""
    codes, scale, zero = builder.op("DynamicQuantizeLinear", node.inputs[0], outputs=3)
    a = builder.op("DequantizeLinear", codes, scale, zero)
    b = _dequantize(builder, _input(node, 1), _input(node, 2), input_at(node, 3))
    value = builder.op("MatMul", a, b)
    bias = input_at(node, 4)
    return [value if bias is None else builder.op("Add", value, bias)]


@row("MatMulIntegerToFloat")
def matmul_integer_to_float(builder: Builder, node: ir.Node) -> Values:
    """Both operands dequantized."""
    a = _dequantize(builder, _input(node, 0), _input(node, 2), input_at(node, 4))
    b = _dequantize(builder, _input(node, 1), _input(node, 3), input_at(node, 5))
    value = builder.op("MatMul", a, b)
    bias = input_at(node, 6)
    return [value if bias is None else builder.op("Add", value, bias)]


def _dequantize(builder: Builder, codes: ir.Value, scale: ir.Value, zero: ir.Value | None) -> ir.Value:
    count, rank = math.prod(need_shape(scale)), len(need_shape(codes))
    if count == 1:
        empty = builder.ints([], "scalar")
        scale = builder.op("Reshape", scale, empty)
        zero = zero if zero is None else builder.op("Reshape", zero, empty)
        return builder.op("DequantizeLinear", codes, scale, zero)  # type: ignore[no-any-return]
    return builder.op("DequantizeLinear", codes, scale, zero, axis=rank - 1)  # type: ignore[no-any-return]


# --- quantized ops: dequantize, compute, quantize -----------------------------------------------------------------


def _triple(builder: Builder, node: ir.Node, first: int) -> ir.Value:
    return builder.op(  # type: ignore[no-any-return]
        "DequantizeLinear", node.inputs[first], node.inputs[first + 1], input_at(node, first + 2)
    )


@row("QLinearAdd", "QLinearMul")
def qlinear_binary(builder: Builder, node: ir.Node) -> Values:
    """(A, a_scale, a_zero, B, b_scale, b_zero, c_scale, c_zero)."""
    value = builder.op(node.op_type.removeprefix("QLinear"), _triple(builder, node, 0), _triple(builder, node, 3))
    return [builder.op("QuantizeLinear", value, node.inputs[6], input_at(node, 7))]


@row("QLinearSigmoid", "QLinearLeakyRelu", "QLinearSoftmax", "QLinearAveragePool", "QLinearGlobalAveragePool")
def qlinear_unary(builder: Builder, node: ir.Node) -> Values:
    """(X, x_scale, x_zero, y_scale, y_zero)."""
    if attribute(node, "channels_last", 0):
        raise Unsupported("its layout is channels-last")
    drop = ("channels_last", "opset")
    keep: dict[str, Any] = {k: v for k, v in node.attributes.items() if k not in drop}
    if node.op_type == "QLinearSoftmax" and attribute(node, "opset", 13) < 13:
        raise Unsupported("it follows the softmax of an opset below 13")
    value = builder.op(node.op_type.removeprefix("QLinear"), _triple(builder, node, 0), **keep)
    return [builder.op("QuantizeLinear", value, node.inputs[3], input_at(node, 4))]


@row("QGemm")
def qgemm(builder: Builder, node: ir.Node) -> Values:
    """(A, a_scale, a_zero, B, b_scale, b_zero, C, y_scale, y_zero); C in int32 at alpha * a_scale * b_scale."""
    turned, alpha = attribute(node, "transB", 0), attribute(node, "alpha", 1.0)
    b = builder.op("DequantizeLinear", *node.inputs[3:6], axis=0 if turned else 1)
    operands = [_triple(builder, node, 0), b]
    bias = input_at(node, 6)
    if bias is not None:
        codes, scales = constant(bias), [constant(node.inputs[1]), constant(node.inputs[4])]
        if codes is None or scales[0] is None or scales[1] is None:
            raise Unsupported("its bias or scales are not constant")
        real = codes.astype(np.float64) * alpha * scales[0].reshape(-1) * scales[1].reshape(-1)
        operands.append(builder.const(real.astype(np.float32), "bias"))
    value = builder.op("Gemm", *operands, alpha=alpha, transA=attribute(node, "transA", 0), transB=turned)
    scale = input_at(node, 7)
    return [value if scale is None else builder.op("QuantizeLinear", value, scale, input_at(node, 8))]


@row("QLinearConcat")
def qlinear_concat(builder: Builder, node: ir.Node) -> Values:
    """(y_scale, y_zero, then X, scale, zero of each)."""
    parts = [_triple(builder, node, i) for i in range(2, len(node.inputs), 3)]
    value = builder.op("Concat", *parts, axis=attribute(node, "axis"))
    return [builder.op("QuantizeLinear", value, node.inputs[0], node.inputs[1])]


# --- attention ----------------------------------------------------------------------------------------------------


@row("RotaryEmbedding")
def rotary_embedding(builder: Builder, node: ir.Node) -> Values:
    """(X, position_ids, cos, sin) -> (X, cos, sin, position_ids); one position is the offset of a run of them."""
    x, positions, cos, sin = (_input(node, i) for i in range(4))
    if attribute(node, "is_packed_batching", 0) or attribute(node, "scale", 1.0) != 1.0:
        raise Unsupported("packed batches and scaling have no standard form")
    shape = need_shape(x)
    batch, length = (shape[0], shape[1]) if len(shape) == 3 else (shape[0], shape[2])
    heads, rotated = attribute(node, "num_heads", 0), attribute(node, "rotary_embedding_dim", 0)
    if len(shape) == 3 and not heads:
        heads = shape[2] // (2 * need_shape(cos)[1])
    if need_shape(positions) == (1,):
        run = builder.const(np.arange(length, dtype=np.int64), "run")
        target = builder.ints([batch, length], "positions")
        positions = builder.op("Expand", builder.op("Add", run, positions), target)
    attributes = {"interleaved": attribute(node, "interleaved", 0), "rotary_embedding_dim": rotated}
    if len(shape) == 3:
        attributes["num_heads"] = heads
    return [builder.op("RotaryEmbedding", x, cos, sin, positions, **attributes)]


def _padding_mask(builder: Builder, mask: ir.Value) -> ir.Value:
    """[batch, keys] of 1 (keep) and 0 -> bool [batch, 1, 1, keys]."""
    shape = need_shape(mask)
    if len(shape) != 2:
        raise Unsupported("its mask is not of shape [batch, keys]")
    wide = builder.op("Reshape", mask, builder.ints([shape[0], 1, 1, shape[1]], "mask"))
    return builder.op("Cast", wide, to=int(ir.DataType.BOOL))  # type: ignore[no-any-return]


@row("MultiHeadAttention")
def multi_head_attention(builder: Builder, node: ir.Node) -> Values:
    """Separate query, key and value of shape [batch, length, hidden]."""
    parts = [_input(node, i) for i in range(3)]
    if any(len(need_shape(p)) != 3 for p in parts) or len(node.inputs) > 8 and any(node.inputs[8:]):
        raise Unsupported("packed or cached inputs have no standard form")
    bias = input_at(node, 3)
    if bias is not None:
        sizes = [need_shape(p)[2] for p in parts]
        split = builder.op("Split", bias, builder.ints(sizes, "split"), axis=0, outputs=3)
        parts = [builder.op("Add", p, b) for p, b in zip(parts, split, strict=True)]
    return _attention(builder, node, parts, input_at(node, 4), input_at(node, 5), input_at(node, 6), input_at(node, 7))


@row("Attention")
def packed_attention(builder: Builder, node: ir.Node) -> Values:
    """One weight makes query, key and value."""
    if input_at(node, 4) is not None or output_used(node, 1) or attribute(node, "do_rotary", 0):
        raise Unsupported("its cache and rotary forms have no standard form")
    wide = builder.op("MatMul", node.inputs[0], node.inputs[1])
    if input_at(node, 2) is not None:
        wide = builder.op("Add", wide, node.inputs[2])
    sizes = attribute(node, "qkv_hidden_sizes") or [need_shape(node.inputs[1])[1] // 3] * 3
    parts = builder.op("Split", wide, builder.ints(sizes, "split"), axis=2, outputs=3)
    return _attention(builder, node, list(parts), input_at(node, 3), input_at(node, 5), None, None)


def _attention(
    builder: Builder,
    node: ir.Node,
    parts: Sequence[ir.Value],
    padding: ir.Value | None,
    bias: ir.Value | None,
    past_key: ir.Value | None,
    past_value: ir.Value | None,
) -> Values:
    if padding is not None and bias is not None:
        raise Unsupported("a padding mask together with an attention bias")
    _refuse_outputs(node, 3)
    mask = bias if padding is None else _padding_mask(builder, padding)
    heads = attribute(node, "num_heads")
    attributes: dict[str, Any] = {
        "q_num_heads": heads,
        "kv_num_heads": heads,
        "is_causal": attribute(node, "unidirectional", 0),
    }
    scale = attribute(node, "scale", 0.0)
    if scale:
        attributes["scale"] = scale
    outputs = builder.op("Attention", *parts, mask, past_key, past_value, outputs=len(node.outputs), **attributes)
    return list(outputs) if isinstance(outputs, tuple) else [outputs]

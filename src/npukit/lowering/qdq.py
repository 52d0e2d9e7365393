# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""Explicit quantization: which values of a QDQ model have which encoding, and which Q/DQ pairs collapse.

A pair QuantizeLinear -> DequantizeLinear says that the value between producer and consumer is held as integer
codes. Here it becomes an encoding on that value, the pair disappears, and the ops around it run quantized. A
DequantizeLinear of a constant becomes a constant with an encoding. What cannot collapse stays a Quantize or
Dequantize op. Activations are held unsigned (codes of int8 and int16 shifted by half the range, same real
values): HTP and CPU take UFIXED_POINT_8 where SFIXED_POINT_8 has gaps (shared/reference/qnn_more.md, 2 and 4).
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from npukit.lowering.holding import QuantizedConstant
from npukit.qnn.graph import DType, Encoding

_ACTIVATION = {
    ir.DataType.UINT8: (DType.UFIXED_POINT_8, 0),
    ir.DataType.INT8: (DType.UFIXED_POINT_8, 128),
    ir.DataType.UINT16: (DType.UFIXED_POINT_16, 0),
    ir.DataType.INT16: (DType.UFIXED_POINT_16, 32768),
}
_CONSTANT = {
    ir.DataType.UINT8: (DType.UFIXED_POINT_8, 0),
    ir.DataType.INT8: (DType.SFIXED_POINT_8, 0),
    ir.DataType.UINT16: (DType.UFIXED_POINT_16, 0),
    ir.DataType.INT16: (DType.SFIXED_POINT_16, 0),
    ir.DataType.INT32: (DType.SFIXED_POINT_32, 0),
    ir.DataType.INT4: (DType.SFIXED_POINT_8, 4),
    ir.DataType.UINT4: (DType.UFIXED_POINT_8, 4),
}
# Ops whose output has the encoding of their first input, so that an encoding on one side serves the other.
_SAME_ENCODING = frozenset(
    ("Reshape", "Flatten", "Squeeze", "Unsqueeze", "Transpose", "Slice", "Split", "MaxPool", "DepthToSpace")
    + ("SpaceToDepth", "Tile", "Expand", "Identity")
)
# Ops that HTP and CPU fuse into what feeds them: the producer's output may saturate at their range.
_CLAMPS = frozenset(("Relu", "Clip"))


@dataclass
class Collapsed:
    """What the Q/DQ nodes of a model come to.

    Attributes:
        encodings: float value -> dtype and encoding of the tensor that holds it.
        constants: output of a collapsed DequantizeLinear of a constant -> its codes.
        aliases: output of a collapsed Q or DQ -> the value that stands for it.
        gone: the Q and DQ nodes that need no op.
    """

    encodings: dict[ir.Value, tuple[DType, Encoding]] = field(default_factory=dict)
    constants: dict[ir.Value, QuantizedConstant] = field(default_factory=dict)
    aliases: dict[ir.Value, ir.Value] = field(default_factory=dict)
    gone: set[ir.Node] = field(default_factory=set)


def linear_parameters(node: ir.Node) -> tuple[np.ndarray, np.ndarray | None] | None:
    """Constant scale and zero point (None: zero) of a Q or DQ node, or None where they are computed."""
    scale = node.inputs[1].const_value if node.inputs[1] is not None else None
    if scale is None:
        return None
    point = node.inputs[2] if len(node.inputs) > 2 else None
    if point is None:
        return scale.numpy(), None
    if point.const_value is None:
        return None
    return scale.numpy(), point.const_value.numpy()


def activation_encoding(node: ir.Node, dtype: ir.DataType | None) -> tuple[DType, Encoding] | None:
    """The per-tensor encoding that a Q or DQ node gives an activation of integer `dtype`, or None.

    Signed codes become unsigned, also those of a graph input or output: the I/O contract shifts them.
    """
    parameters = linear_parameters(node)
    if parameters is None or dtype not in _ACTIVATION or parameters[0].size != 1:
        return None
    held, shift = _ACTIVATION[dtype]
    point = 0 if parameters[1] is None else int(parameters[1].reshape(-1)[0])
    return held, Encoding.per_tensor(float(parameters[0].reshape(-1)[0]), -(point + shift))


def constant_codes(node: ir.Node) -> QuantizedConstant | None:
    """Codes and encoding of a DequantizeLinear whose input is constant: per tensor or per axis; None otherwise."""
    value, parameters = node.inputs[0], linear_parameters(node)
    if value is None or value.const_value is None or parameters is None or value.dtype not in _CONSTANT:
        return None
    scale, point = parameters
    dtype, bits = _CONSTANT[value.dtype]
    codes = value.const_value.numpy().astype(dtype.numpy)
    if node.attributes.get_int("block_size", 0):
        return None
    points = np.zeros(scale.size, np.int64) if point is None else point.reshape(-1).astype(np.int64)
    scales = tuple(float(s) for s in scale.reshape(-1))
    offsets = tuple(int(-p) for p in points)
    if scale.size == 1:
        return QuantizedConstant(codes, dtype, Encoding(scales, offsets, bitwidth=bits))
    axis = node.attributes.get_int("axis", 1)
    if not -codes.ndim <= axis < codes.ndim or codes.shape[axis] != scale.size or points.size != scale.size:
        return None  # the node contradicts itself; its own lowering says how
    axis %= codes.ndim
    return QuantizedConstant(codes, dtype, Encoding(scales, offsets, axis=axis, bitwidth=bits))


def collapse(graph: ir.Graph) -> Collapsed:
    """Find every Q/DQ node of a normalized graph that an encoding replaces."""
    found = Collapsed()
    for node in graph:
        if node.op_type == "DequantizeLinear" and node.domain == "":
            _collapse_dequantize(node, found)
        elif node.op_type == "QuantizeLinear" and node.domain == "":
            _collapse_quantize(node, found)
    _spread(graph, found)
    return found


def _collapse_dequantize(node: ir.Node, found: Collapsed) -> None:
    codes = constant_codes(node)
    if codes is not None:
        found.constants[node.outputs[0]] = codes
        found.gone.add(node)
        return
    source = node.inputs[0]
    assert source is not None
    if not source.is_graph_input():
        return
    encoding = activation_encoding(node, source.dtype)
    if encoding is not None and all(user.op_type == "DequantizeLinear" for user in source.consumers()):
        # An integer graph input that is only dequantized: the input tensor itself holds the codes.
        found.encodings[source] = encoding
        found.encodings[node.outputs[0]] = encoding
        found.aliases[node.outputs[0]] = source
        found.gone.add(node)


def _collapse_quantize(node: ir.Node, found: Collapsed) -> None:
    source, codes = node.inputs[0], node.outputs[0]
    assert source is not None
    visible = codes.is_graph_output()
    encoding = activation_encoding(node, codes.dtype)
    if encoding is None or source.const_value is not None:
        return
    users = list(codes.consumers())
    if any(user.op_type != "DequantizeLinear" or activation_encoding(user, codes.dtype) != encoding for user in users):
        return
    alone = all(
        user.op_type == "QuantizeLinear" and activation_encoding(user, user.outputs[0].dtype) == encoding
        for user in source.consumers()
    )
    if not users and not visible:
        return
    if alone and not source.is_graph_output() and (users or not source.is_graph_input()):
        # The value is nowhere used in float: its own tensor holds the codes.
        found.encodings[source] = encoding
        found.aliases[codes] = source
        found.gone.add(node)
        stand = source
    else:
        found.encodings[codes] = encoding  # a Quantize op makes this tensor
        stand = codes
    for user in users:
        found.encodings[user.outputs[0]] = encoding
        found.aliases[user.outputs[0]] = stand
        found.gone.add(user)


def _spread(graph: ir.Graph, found: Collapsed) -> None:
    """Give an encoding to values next to encoded ones where the op between them only moves or clamps."""

    def stands(value: ir.Value) -> ir.Value:
        while value in found.aliases:
            value = found.aliases[value]
        return value

    nodes = list(graph)
    changed = True
    while changed:
        changed = False
        for node in nodes:
            if not node.inputs or node.inputs[0] is None or node.domain != "":
                continue
            source, result = stands(node.inputs[0]), stands(node.outputs[0])
            if node.op_type in _SAME_ENCODING and source in found.encodings:
                for output in map(stands, node.outputs):
                    if output not in found.encodings and output.dtype == ir.DataType.FLOAT:
                        found.encodings[output] = found.encodings[source]
                        changed = True
            movable = node.op_type in _SAME_ENCODING or node.op_type in _CLAMPS
            single = len(list(source.consumers())) == 1 and not source.is_graph_output()
            free = source.producer() is not None and source not in found.encodings and source not in found.constants
            if movable and single and free and result in found.encodings:
                found.encodings[source] = found.encodings[result]
                changed = True


__all__ = ["Collapsed", "activation_encoding", "collapse", "constant_codes", "linear_parameters"]

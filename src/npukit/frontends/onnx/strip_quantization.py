# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""Takes the quantization out of a model: what is left computes in float, and the encodings are a list beside it.

A pair QuantizeLinear -> DequantizeLinear disappears, together with what moves the codes between the two; a
DequantizeLinear of a constant becomes a float constant; QLinearConv, QLinearMatMul and the dynamically quantized
products become what they stand for. Where a graph input or output is integer codes, it becomes float as well.

Quantizers drop a Relu or a Clip(0, 6) before a QuantizeLinear whose codes begin at zero (and end at 6): these codes
saturate just there. Without the codes it is needed again.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import onnx_ir as ir

from npukit.frontends.onnx.rewrite import (
    Array,
    Builder,
    Names,
    add_constant,
    attribute,
    constant,
    drop_dead,
    input_at,
    is_ai_onnx,
    replace_node,
    shape_of,
)
from npukit.frontends.onnx.specialize import Walk

# Ops that hand codes on as they are: with floats they do the same.
_MOVES = frozenset(
    ("Reshape", "Flatten", "Squeeze", "Unsqueeze", "Transpose", "Identity", "Slice", "Split", "Expand", "Tile")
    + ("DepthToSpace", "SpaceToDepth", "MaxPool", "Gather", "GatherElements", "GatherND", "Concat")
)
# Ops whose result is never negative, and those where it is not if no operand is.
_NOT_NEGATIVE = frozenset(("Relu", "Sigmoid", "Softmax", "Abs", "Exp", "Sqrt", "Softplus", "HardSigmoid", "ReduceL2"))
_KEEP_SIGN = frozenset(
    ("AveragePool", "GlobalAveragePool", "GlobalMaxPool", "LpPool", "ReduceMean", "ReduceSum", "ReduceMax", "Resize")
    + ("Add", "Mul", "Div", "Max", "Pad", "Dropout")
)
_SIX = 6.0
_LIMITS = {
    ir.DataType.UINT8: (0, 255),
    ir.DataType.INT8: (-128, 127),
    ir.DataType.UINT16: (0, 65535),
    ir.DataType.INT16: (-32768, 32767),
}
_LINEAR = ("QuantizeLinear", "DequantizeLinear")


@dataclass(frozen=True)
class SourceEncoding:
    """What a QDQ model says of one value: `real = (code - zero_point) * scale`.

    Attributes:
        name: the value in the stripped model.
        dtype: of the codes, as ONNX calls it: "uint8", "int4".
        scales: one, or one a channel.
        zero_points: as many.
        axis: channel axis; None for one scale.
        constant: whether the value is a constant.
        node: the source node that says it.
    """

    name: str
    dtype: str
    scales: tuple[float, ...]
    zero_points: tuple[int, ...]
    axis: int | None
    constant: bool
    node: str = ""


@dataclass
class Stripped:
    """What `strip_quantization` took out.

    Attributes:
        encodings: of the values that are left, in the model's order.
        notes: a sentence on each thing that a user may want to know.
        nodes: how many nodes it removed or replaced.
        folded: float constant -> names of the source nodes whose result it is.
    """

    encodings: list[SourceEncoding] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    nodes: int = 0
    folded: dict[str, tuple[str, ...]] = field(default_factory=dict)


@dataclass(frozen=True)
class _Linear:
    """Scale and zero point of a Q or DQ node; equal where they mean the same codes."""

    scales: tuple[float, ...]
    points: tuple[int, ...]
    axis: int | None
    block: int


def strip_quantization(model: ir.Model) -> Stripped:
    """Take out the quantization of a specialized model; new nodes have no shapes yet, specialize it again.

    Args:
        model: changed in place.

    Returns:
        the encodings that it had. What cannot be taken out (computed scales, codes that are used as integers) stays,
        and is a note.
    """
    return _Strip(model).run()


class _Strip:
    def __init__(self, model: ir.Model) -> None:
        self.graph = model.graph
        self.walk = Walk(model, Names(model.graph))
        self.found = Stripped(folded=self.walk.folded)
        self.known: dict[str, SourceEncoding] = {}
        self.clamps = 0

    def run(self) -> Stripped:
        for node in list(self.graph):
            if node.op_type in _EXPLICIT and is_ai_onnx(node, node.op_type):
                self.found.nodes += _EXPLICIT[node.op_type](self.walk.builder(node), node)
        for value in list(self.graph.inputs):
            self.graph_input(value)
        for node in list(self.graph):
            if is_ai_onnx(node, "QuantizeLinear"):
                self.quantize(node)
            elif is_ai_onnx(node, "DequantizeLinear"):
                self.dequantize(node)
        drop_dead(self.graph)
        left = [node.name or node.op_type for node in self.graph if is_ai_onnx(node, *_LINEAR)]
        if left:
            shown = ", ".join(map(repr, left[:5])) + (" ..." if len(left) > 5 else "")
            self.found.notes.append(f"{len(left)} Q/DQ nodes stay, as codes or scales are computed with: {shown}")
        if self.clamps:
            what = "codes that begin at zero stood for a Relu or Clip, which is an op again"
            self.found.notes.append(f"{what} ({self.clamps} times)")
        self.found.encodings += self.known.values()
        return self.found

    def graph_input(self, value: ir.Value) -> None:
        """Integer codes that are only dequantized: the input becomes float."""
        users = [node for node in value.consumers() if is_ai_onnx(node, "DequantizeLinear")]
        linear = _linear(users[0]) if users else None
        if linear is None or (moved := self.moved(value, linear)) is None:
            return
        self.record(value, users[0], linear, value.dtype, constant=False)
        kind = users[0].outputs[0].type
        for codes in (value, *moved):
            codes.type = kind
        self.found.notes.append(f"the input {value.name!r} takes real numbers instead of codes")

    def quantize(self, node: ir.Node) -> None:
        source, codes = node.inputs[0], node.outputs[0]
        linear = _linear(node)
        if source is None or linear is None or (moved := self.moved(codes, linear)) is None:
            return
        kind = source.type or ir.TensorType(ir.DataType.FLOAT)
        dtype = codes.dtype
        for value in (codes, *moved):
            value.type = kind
            if value.is_graph_output():
                self.found.notes.append(f"the output {value.name!r} gives real numbers instead of codes")
        real = self.clamped(source, dtype, linear)
        self.record(real, node, linear, dtype, constant=real.const_value is not None)
        self.take_name(node, real)
        self.remove(node, real)

    def clamped(self, source: ir.Value, dtype: ir.DataType | None, linear: _Linear) -> ir.Value:
        """The value as its codes saturate, where that is a Relu or Clip(0, 6) that a quantizer left to them."""
        limits = _LIMITS.get(dtype) if dtype is not None else None
        if limits is None or len(linear.points) != 1 or linear.points[0] != limits[0] or _never_negative(source):
            return source
        six = abs((limits[1] - limits[0]) * linear.scales[0] - _SIX) < 1e-3 * _SIX
        maker = source.producer()
        assert maker is not None
        builder = self.walk.builder(maker)
        low = builder.const(np.zeros((), np.float32), "low")
        high = builder.const(np.array(_SIX, np.float32), "high")
        made: ir.Value = builder.op("Clip", source, low, high) if six else builder.op("Relu", source)
        made.type, made.shape = source.type, source.shape
        self.graph.insert_after(maker, builder.nodes)
        if len(list(source.uses())) == 2 and not source.is_graph_output():  # the Q and the clamp
            name, source.name = source.name, made.name
            made.name = name
        self.clamps += 1
        return made

    def dequantize(self, node: ir.Node) -> None:
        source = node.inputs[0]
        if source is None:
            return
        if source.dtype is not None and source.dtype.is_floating_point() and source.dtype.itemsize > 1:
            self.take_name(node, source)  # its codes are real numbers by now
            self.remove(node, source)
            return
        linear = _linear(node)
        codes = constant(source)
        if codes is None or linear is None:
            return
        name, kind = node.outputs[0].name or "", node.outputs[0].dtype or ir.DataType.FLOAT
        values = _dequantized(codes, linear).astype(kind.numpy())
        self.found.nodes += 1
        if node.outputs[0].is_graph_output():
            made = add_constant(self.graph, self.walk.names, values, f"{name}_value")
            replace_node(self.graph, node, [], [made])
            return
        self.record(node.outputs[0], node, linear, source.dtype, constant=True)
        self.walk.replace_by_constants(node, [values])

    def take_name(self, node: ir.Node, source: ir.Value) -> None:
        """Before `node` goes: what it reads becomes the graph output that it makes, under that name."""
        output = node.outputs[0]
        if not output.is_graph_output() or source.producer() is None or source.is_graph_output():
            return
        old, name = source.name or "", output.name or ""
        output.name, source.name = f"{name}__replaced", name
        self.graph.outputs[list(self.graph.outputs).index(output)] = source
        if old in self.known:
            self.known[name] = replace(self.known.pop(old), name=name)

    def remove(self, node: ir.Node, source: ir.Value) -> None:
        self.found.nodes += 1
        replace_node(self.graph, node, [], [source])

    def moved(self, codes: ir.Value, linear: _Linear) -> list[ir.Value] | None:
        """The values that hold these codes too; None where they are used as integers or with another scale."""
        found: list[ir.Value] = []
        queue = [codes]
        while queue:
            for node, index in queue.pop().uses():
                if is_ai_onnx(node, "DequantizeLinear") and index == 0:
                    if _linear(node) != linear:
                        return None
                elif node.domain == "" and node.op_type in _MOVES and index == 0 and linear.axis is None:
                    if node.op_type == "Concat" and len(set(node.inputs)) > 1:
                        return None
                    found += [value for value in node.outputs if value not in found]
                    queue += node.outputs
                else:
                    return None
        return found

    def record(
        self, value: ir.Value, node: ir.Node, linear: _Linear, dtype: ir.DataType | None, *, constant: bool
    ) -> None:
        name = value.name or ""
        if linear.block or dtype is None or not name:
            self.found.notes.append(f"the encoding of {name!r} is one a block; it is not taken over")
            return
        made = SourceEncoding(
            name, dtype.name.lower(), linear.scales, linear.points, linear.axis, constant, node.name or ""
        )
        before = self.known.setdefault(name, made)
        if (before.dtype, before.scales, before.zero_points) != (made.dtype, made.scales, made.zero_points):
            self.found.notes.append(f"{name!r} is quantized in two ways; that of {before.node!r} is kept")


def _never_negative(value: ir.Value) -> bool:
    """Whether no value can be below zero, or what a quantizer left out cannot have stood behind it."""
    seen, queue = {value}, [value]
    while queue:
        node = queue.pop().producer()
        if node is None or node.op_type in _NOT_NEGATIVE:
            continue
        if node.op_type == "Clip":
            low = constant(input_at(node, 1))
            if low is not None and float(low.reshape(-1)[0]) >= 0:
                continue
            return False
        if node.domain or node.op_type not in _MOVES | _KEEP_SIGN:
            return False
        known = [constant(x) for x in node.inputs if x is not None]
        if node.op_type in _KEEP_SIGN and any(
            k is not None and k.dtype.kind == "f" and k.min(initial=0) < 0 for k in known
        ):
            return False
        new = [x for x in node.inputs if x is not None and x not in seen]
        seen.update(new)
        queue += new
    return True


def _linear(node: ir.Node) -> _Linear | None:
    """Constant scale and zero point of a Q or DQ node; None where they are computed."""
    scale, point = constant(input_at(node, 1)), input_at(node, 2)
    points = constant(point)
    if scale is None or (point is not None and points is None):
        return None
    scales = tuple(float(s) for s in scale.reshape(-1))
    given = (0.0,) * len(scales) if points is None else tuple(float(p) for p in points.reshape(-1))
    if len(given) != len(scales):
        return None
    block = int(attribute(node, "block_size", 0)) if scale.ndim > 1 else 0
    axis: int | None = None
    if scale.size > 1:
        axis = int(attribute(node, "axis", 1))
        rank = len(node.inputs[0].shape) if node.inputs[0] is not None and node.inputs[0].shape is not None else 0
        axis += rank if axis < 0 else 0
        shape = shape_of(node.inputs[0])
        if not block and (shape is None or axis >= len(shape) or shape[axis] != scale.size):
            return None
    return _Linear(scales, tuple(int(p) for p in given), axis, block)


def _dequantized(codes: Array, linear: _Linear) -> Array:
    """The real values of constant codes in float32, as DequantizeLinear has it."""
    scales, points = np.array(linear.scales, np.float32), np.array(linear.points, np.int64)
    if linear.axis is not None and linear.block:
        shape = list(codes.shape)
        shape[linear.axis] = -(-shape[linear.axis] // linear.block)
        ends = slice(0, codes.shape[linear.axis])
        pick = tuple(ends if axis == linear.axis else slice(None) for axis in range(codes.ndim))
        scales = np.repeat(scales.reshape(shape), linear.block, linear.axis)[pick]
        points = np.repeat(points.reshape(shape), linear.block, linear.axis)[pick]
    elif linear.axis is not None:
        shape = [1] * codes.ndim
        shape[linear.axis] = -1
        scales, points = scales.reshape(shape), points.reshape(shape)
    if codes.dtype.kind in "iu" or "int" in codes.dtype.name:
        return np.asarray((codes.astype(np.int64) - points).astype(np.float32) * scales).reshape(codes.shape)
    return np.asarray(codes.astype(np.float32) * scales).reshape(codes.shape)


# ---------------------------------------------------------------- ops that hold their Q and DQ inside


def _typed(value: ir.Value, like: ir.Value | None, dtype: ir.DataType = ir.DataType.FLOAT) -> ir.Value:
    value.type = ir.TensorType(dtype)
    value.shape = None if like is None else like.shape
    return value


def _operand(b: Builder, x: ir.Value | None, scale: ir.Value | None, zero: ir.Value | None, axis: int = 1) -> ir.Value:
    return _typed(b.op("DequantizeLinear", x, scale, zero, axis=axis), x)


def _same_attributes(node: ir.Node) -> dict[str, Any]:
    return dict(node.attributes.items())


def _qlinear_conv(b: Builder, node: ir.Node) -> int:
    x, x_scale, x_zero, w, w_scale, w_zero, y_scale, y_zero = node.inputs[:8]
    bias, scales = constant(input_at(node, 8)), (constant(x_scale), constant(w_scale))
    if scales[0] is None or scales[1] is None or (bias is None and input_at(node, 8) is not None):
        return 0
    inputs = [_operand(b, x, x_scale, x_zero), _operand(b, w, w_scale, w_zero, axis=0)]
    if bias is not None:
        real = bias.astype(np.float64) * scales[0].reshape(-1) * scales[1].reshape(-1)
        inputs.append(b.const(real.astype(np.float32), "bias"))
    y = _typed(b.op("Conv", *inputs, **_same_attributes(node)), node.outputs[0])
    return _requantize(b, node, y, y_scale, y_zero)


def _qlinear_matmul(b: Builder, node: ir.Node) -> int:
    left, left_scale, left_zero, right, right_scale, right_zero, y_scale, y_zero = node.inputs
    scale = constant(left_scale)
    if scale is None or scale.size != 1:
        return 0
    rank = len(right.shape) if right is not None and right.shape is not None else 2
    right = _operand(b, right, right_scale, right_zero, axis=rank - 1)
    y = _typed(b.op("MatMul", _operand(b, left, left_scale, left_zero), right), node.outputs[0])
    return _requantize(b, node, y, y_scale, y_zero)


def _requantize(b: Builder, node: ir.Node, y: ir.Value, scale: ir.Value | None, zero: ir.Value | None) -> int:
    codes = b.op("QuantizeLinear", y, scale, zero)
    codes.type, codes.shape = node.outputs[0].type, node.outputs[0].shape
    replace_node(b.graph, node, b.nodes, [codes])
    return 1


def _dynamic(b: Builder, node: ir.Node) -> int:
    """DynamicQuantizeLinear with the integer products behind it: products of the real numbers, at scale 1."""
    source, (codes, scale, zero) = node.inputs[0], node.outputs
    users = list(codes.consumers())
    if source is None or any(v.is_graph_output() for v in node.outputs) or not all(map(_is_product, users)):
        return 0
    if any(user not in users or index != 2 for user, index in zero.uses()):
        return 0
    for user in users:
        builder = Builder(b.graph, b.names, user)
        weight, points = constant(user.inputs[1]), constant(input_at(user, 3))
        assert weight is not None
        centre = np.zeros(1, np.int64) if points is None else points.astype(np.int64)
        if centre.size > 1 and user.op_type == "ConvInteger":
            centre = centre.reshape(-1, *[1] * (weight.ndim - 1))
        real = builder.const((weight.astype(np.int64) - centre).astype(np.float32), "weight")
        kind = "Conv" if user.op_type == "ConvInteger" else "MatMul"
        made = _typed(builder.op(kind, source, real, **_same_attributes(user)), user.outputs[0])
        replace_node(b.graph, user, builder.nodes, [made])
    one = b.const(np.ones((), np.float32), "scale")
    for user, index in tuple(scale.uses()):
        user.replace_input_with(index, one)
    return 1 + len(users)


def _is_product(user: ir.Node) -> bool:
    """Whether a node multiplies codes by constants and gives the result to nothing but a Cast to float."""
    if not is_ai_onnx(user, "MatMulInteger", "ConvInteger") or constant(user.inputs[1]) is None:
        return False
    point = input_at(user, 3)
    if (point is not None and constant(point) is None) or user.outputs[0].is_graph_output():
        return False
    return all(
        is_ai_onnx(cast, "Cast") and attribute(cast, "to") == int(ir.DataType.FLOAT)
        for cast in user.outputs[0].consumers()
    )


_EXPLICIT = {"QLinearConv": _qlinear_conv, "QLinearMatMul": _qlinear_matmul, "DynamicQuantizeLinear": _dynamic}


__all__ = ["SourceEncoding", "Stripped", "strip_quantization"]

# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""Recognizes RMS and layer normalization spelled out in primitive ops, in any of their spellings.

The search starts at Sqrt (or Pow with exponent 0.5 or -0.5) over mean-of-squares plus epsilon, and grows in both
directions. Whatever does not fit exactly is left alone.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from npukit.frontends.onnx.rewrite import (
    Builder,
    Names,
    attribute,
    constant,
    float_dtype,
    input_at,
    ints,
    is_ai_onnx,
    origin_of,
    rank_of,
    replace_node,
    shape_of,
)


@dataclass
class _Norm:
    """A normalization found so far: y = (x or centred x) / sqrt(mean of squares + epsilon)."""

    x: ir.Value
    axis: int
    epsilon: float
    result: ir.Value
    centred: bool
    nodes: list[ir.Node] = field(default_factory=list)
    scale: ir.Value | None = None
    bias: ir.Value | None = None


def recognize_norms(model: ir.Model) -> int:
    """Replace spelled-out normalizations by RMSNormalization and LayerNormalization; returns how many."""
    graph = model.graph
    names = Names(graph)
    count = 0
    for node in graph:
        if node.graph is graph and is_ai_onnx(node, "Sqrt", "Pow"):
            norm = _find(node)
            if norm is not None:
                _absorb_affine(norm)
                _replace(graph, names, norm)
                count += 1
    return count


def _number(value: ir.Value | None) -> float | None:
    array = constant(value)
    if array is None or array.size != 1 or array.dtype.kind not in "fV":
        return None
    return float(array.astype(np.float64).reshape(()))


def _only_user(value: ir.Value) -> ir.Node | None:
    users = {user for user, _ in value.uses()}
    return users.pop() if len(users) == 1 and not value.is_graph_output() else None


def _made_by(value: ir.Value | None, *op_types: str) -> ir.Node | None:
    producer = None if value is None else value.producer()
    return producer if producer is not None and is_ai_onnx(producer, *op_types) else None


def _other(node: ir.Node, value: ir.Value) -> ir.Value | None:
    """The other operand of a two-input node."""
    if len(node.inputs) != 2:
        return None
    return node.inputs[1] if node.inputs[0] is value else node.inputs[0]


def _find(root: ir.Node) -> _Norm | None:
    power = -0.5 if root.op_type == "Pow" else 0.5
    if root.op_type == "Pow":
        exponent = _number(root.inputs[1])
        if exponent not in (0.5, -0.5):
            return None
        power = exponent
    add = _made_by(root.inputs[0], "Add")
    if add is None or _only_user(add.outputs[0]) is not root:
        return None
    means = next((m for m in (_mean(v) for v in add.inputs) if m), [])
    if not means or _only_user(means[0].outputs[0]) is not add:
        return None
    epsilon = _number(_other(add, means[0].outputs[0]))
    square = _made_by(means[-1].inputs[0], "Pow", "Mul")
    axis = _trailing_axis(means[-1])
    if epsilon is None or epsilon < 0 or square is None or axis is None:
        return None
    if _only_user(square.outputs[0]) is not means[-1]:
        return None
    if square.op_type == "Pow" and _number(square.inputs[1]) != 2.0:
        return None
    if square.op_type == "Mul" and square.inputs[0] is not square.inputs[1]:
        return None
    x = square.inputs[0]
    if x is None:
        return None
    nodes = [square, *means, add, root]
    final = _division(root, x, power, nodes)
    if final is None:
        return None
    norm = _Norm(x, axis, epsilon, final.outputs[0], False, nodes)
    _centre(norm, square, final)
    if not norm.centred and float_dtype(x):
        _absorb_casts(norm)
    return norm


def _mean(value: ir.Value | None) -> list[ir.Node]:
    """The nodes that make `value` a mean, the reduction last; none where it is none.

    ReduceMean, or ReduceSum divided by the number of elements (or times one over it).
    """
    mean = _made_by(value, "ReduceMean")
    if mean is not None:
        return [mean]
    scaled = _made_by(value, "Div", "Mul")
    if scaled is None:
        return []
    for total, factor in zip(scaled.inputs, scaled.inputs[::-1], strict=True):
        number, reduction = _number(factor), _made_by(total, "ReduceSum")
        if number is None or reduction is None or _only_user(reduction.outputs[0]) is not scaled:
            continue
        axis, shape = _trailing_axis(reduction), shape_of(reduction.inputs[0])
        if axis is None or shape is None or (scaled.op_type == "Div" and total is not scaled.inputs[0]):
            continue
        size = math.prod(shape[axis:])
        if math.isclose(number if scaled.op_type == "Div" else 1 / (number or math.inf), size, rel_tol=1e-6):
            return [scaled, reduction]
    return []


def _trailing_axis(mean: ir.Node) -> int | None:
    """First of the reduced axes when they are the last ones and are kept as 1, else None."""
    axes, rank = ints(input_at(mean, 1)), rank_of(mean.inputs[0])
    if axes is None or rank is None or not attribute(mean, "keepdims", 1) or not axes:
        return None
    wanted = sorted(a + rank if a < 0 else a for a in axes)
    return wanted[0] if wanted == list(range(wanted[0], rank)) else None


def _same(a: ir.Value | None, b: ir.Value | None) -> bool:
    """The same value, or the same subtraction of the same mean computed twice."""
    if a is b:
        return True
    first, second = _made_by(a, "Sub"), _made_by(b, "Sub")
    if first is None or second is None or first.inputs[0] is not second.inputs[0]:
        return False
    if first.inputs[1] is second.inputs[1]:
        return True
    means = _mean(first.inputs[1]), _mean(second.inputs[1])
    if not means[0] or not means[1] or means[0][-1].inputs[0] is not means[1][-1].inputs[0]:
        return False
    return _trailing_axis(means[0][-1]) is not None and _trailing_axis(means[0][-1]) == _trailing_axis(means[1][-1])


def _division(root: ir.Node, x: ir.Value, power: float, nodes: list[ir.Node]) -> ir.Node | None:
    """The node that multiplies x by the reciprocal root, in any form; adds what it passes to `nodes`."""
    value = root.outputs[0]
    user = _only_user(value)
    if user is None:
        return None
    inverse = power < 0
    if not inverse:
        if is_ai_onnx(user, "Div") and user.inputs[1] is value:
            if _same(user.inputs[0], x):
                nodes.append(user)
                return user
            if _number(user.inputs[0]) != 1.0:
                return None
            nodes.append(user)
            value, inverse = user.outputs[0], True
        elif is_ai_onnx(user, "Reciprocal"):
            nodes.append(user)
            value, inverse = user.outputs[0], True
        else:
            return None
        user = _only_user(value)
        if user is None:
            return None
    if is_ai_onnx(user, "Mul") and _same(_other(user, value), x):
        nodes.append(user)
        return user
    return None


def _centre(norm: _Norm, square: ir.Node, final: ir.Node) -> None:
    """When x is itself x0 - mean(x0) over the same axes, this is layer normalization of x0."""
    sub = _made_by(norm.x, "Sub")
    means = [] if sub is None else _mean(sub.inputs[1])
    if sub is None or not means or means[-1].inputs[0] is not sub.inputs[0] or _trailing_axis(means[-1]) != norm.axis:
        return
    allowed = {square, final}
    used = next((v for v in final.inputs if _same(v, norm.x)), None)
    for value in (sub.outputs[0], used):
        if value is None or value.is_graph_output() or any(user not in allowed for user, _ in value.uses()):
            return
    if sub.inputs[0] is None or shape_of(sub.outputs[0]) != shape_of(sub.inputs[0]):
        return
    norm.nodes += [sub, *means]
    norm.x, norm.centred = sub.inputs[0], True


def _absorb_casts(norm: _Norm) -> None:
    """float16 -> float32 -> norm -> float16: the op computes in float32 by itself."""
    cast = _made_by(norm.x, "Cast")
    after = _only_user(norm.result)
    if cast is None or after is None or not is_ai_onnx(after, "Cast") or cast.inputs[0] is None:
        return
    source = cast.inputs[0]
    if norm.x.dtype == ir.DataType.FLOAT and float_dtype(source) and after.outputs[0].dtype == source.dtype:
        norm.nodes += [cast, after]
        norm.x, norm.result = source, after.outputs[0]


def _affine(norm: _Norm, op_type: str) -> ir.Value | None:
    """The constant that the only user multiplies (adds) over the normalized dimensions, else None."""
    user = _only_user(norm.result)
    if user is None or not is_ai_onnx(user, op_type):
        return None
    other = _other(user, norm.result)
    shape, x_shape = shape_of(other), shape_of(norm.x)
    if other is None or other is norm.result or shape is None or x_shape is None or other.dtype != norm.x.dtype:
        return None
    if shape_of(user.outputs[0]) != x_shape:
        return None
    live = list(shape)
    while live and live[0] == 1:
        live.pop(0)
    inner = x_shape[norm.axis :]
    if other.const_value is None and (len(shape) > len(inner) or len(live) != len(inner)):
        return None  # a computed scale must already have the right shape
    if len(live) > len(inner) or any(a not in (1, b) for a, b in zip(live[::-1], inner[::-1], strict=False)):
        return None
    norm.nodes.append(user)
    norm.result = user.outputs[0]
    return other


def _absorb_affine(norm: _Norm) -> None:
    norm.scale = _affine(norm, "Mul")
    if norm.centred and norm.scale is not None:
        norm.bias = _affine(norm, "Add")


def _widen(builder: Builder, norm: _Norm, value: ir.Value | None) -> ir.Value:
    """The parameter in exactly the normalized shape (a view of the constant where possible)."""
    inner = (shape_of(norm.x) or ())[norm.axis :]
    if value is None:
        dtype = norm.x.dtype or ir.DataType.FLOAT
        return builder.const(np.ones(inner, dtype.numpy()), "scale")
    array = constant(value)
    if array is None or shape_of(value) == inner:
        return value
    trimmed = array.reshape([d for i, d in enumerate(array.shape) if i >= array.ndim - len(inner)])
    return builder.const(np.broadcast_to(trimmed, inner), "scale", value.dtype)


def _replace(graph: ir.Graph, names: Names, norm: _Norm) -> None:
    last = norm.result.producer()
    assert last is not None
    builder = Builder(graph, names, last)
    builder.origin = tuple(dict.fromkeys(o for node in norm.nodes for o in origin_of(node)))
    inputs = [norm.x, _widen(builder, norm, norm.scale)]
    if norm.bias is not None:
        inputs.append(_widen(builder, norm, norm.bias))
    op_type = "LayerNormalization" if norm.centred else "RMSNormalization"
    value = builder.op(op_type, *inputs, axis=norm.axis - (rank_of(norm.x) or 0), epsilon=norm.epsilon)
    value.type, value.shape = norm.result.type, norm.result.shape
    replace_node(graph, last, builder.nodes, [value])
    pending = [node for node in norm.nodes if node.graph is graph]
    while pending:
        free = [n for n in pending if not any(v.uses() or v.is_graph_output() for v in n.outputs)]
        if not free:
            break
        for node in free:
            graph.remove(node, safe=True)
            pending.remove(node)

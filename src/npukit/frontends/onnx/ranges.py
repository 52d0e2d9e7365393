# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""What values tensors can take: proofs for int64 -> int32 narrowing, and sensible values for integer inputs.

`Ranges` is interval arithmetic over the graph: constants by their contents, index-making ops by the dimension they
index, arithmetic by its corners. `implied_range` looks the other way, from a graph input to the ops that read it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

import numpy as np
import onnx_ir as ir

from npukit.frontends.onnx.rewrite import TENSORS, attribute, constant, input_at, ints, shape_of

Interval = tuple[float, float]  # both ends included; ints where exact, else floats or infinities
ANY: Interval = (-math.inf, math.inf)
INT32: Interval = (-(2**31), 2**31 - 1)

Rule = Callable[["Ranges", ir.Node], Interval]


def _dtype_range(value: ir.Value) -> Interval:
    dtype = value.dtype
    if dtype is None:
        return ANY
    if dtype == ir.DataType.BOOL:
        return (0, 1)
    if dtype.is_integer():
        if dtype.bitwidth < 8:
            return (-(2 ** (dtype.bitwidth - 1)), 2**dtype.bitwidth - 1)
        info = np.iinfo(dtype.numpy())
        return (int(info.min), int(info.max))
    return ANY


def _union(intervals: Iterable[Interval]) -> Interval:
    listed = list(intervals)
    if not listed:
        return ANY
    return min(i[0] for i in listed), max(i[1] for i in listed)


def _corners(a: Interval, b: Interval, function: Callable[[float, float], float]) -> Interval:
    results = []
    for x in a:
        for y in b:
            result = function(x, y)
            if isinstance(result, float) and math.isnan(result):
                result = 0  # 0 * inf: the finite factor decides
            results.append(result)
    return min(results), max(results)


def _dim(node: ir.Node, axis_default: int | None = None, index: int = 0) -> int | None:
    shape = shape_of(node.inputs[index])
    axis = attribute(node, "axis", axis_default)
    if shape is None:
        return None
    if axis is None:
        return math.prod(shape)
    return shape[axis] if -len(shape) <= axis < len(shape) else None


def _first(ranges: Ranges, node: ir.Node) -> Interval:
    return ranges.of(node.inputs[0])


def _all(ranges: Ranges, node: ir.Node) -> Interval:
    return _union(ranges.of(v) for v in node.inputs if v is not None)


def _fixed(low: float, high: float) -> Rule:
    return lambda ranges, node: (low, high)


def _add(ranges: Ranges, node: ir.Node) -> Interval:
    parts = [ranges.of(v) for v in node.inputs]
    return sum(p[0] for p in parts), sum(p[1] for p in parts)


def _sub(ranges: Ranges, node: ir.Node) -> Interval:
    a, b = ranges.of(node.inputs[0]), ranges.of(node.inputs[1])
    return a[0] - b[1], a[1] - b[0]


def _mul(ranges: Ranges, node: ir.Node) -> Interval:
    a, b = ranges.of(node.inputs[0]), ranges.of(node.inputs[1])
    low, high = _corners(a, b, lambda x, y: x * y)
    return (max(low, 0), high) if node.inputs[0] is node.inputs[1] else (low, high)


def _div(ranges: Ranges, node: ir.Node) -> Interval:
    a, b = ranges.of(node.inputs[0]), ranges.of(node.inputs[1])
    whole = node.inputs[0] is not None and node.inputs[0].dtype is not None and node.inputs[0].dtype.is_integer()
    if b[0] <= 0 <= b[1]:
        if not whole:
            return ANY
        bound = max(abs(a[0]), abs(a[1]))  # an integer divisor is at least 1 in size
        return -bound, bound
    return _corners(a, b, lambda x, y: _quotient(x, y, whole))


def _quotient(x: float, y: float, whole: bool) -> float:
    if math.isinf(x) or math.isinf(y):
        return 0 if math.isinf(y) else math.copysign(math.inf, x * y)
    if not whole:
        return x / y
    quotient = abs(int(x)) // abs(int(y))
    return quotient if (x < 0) == (y < 0) else -quotient


def _mod(ranges: Ranges, node: ir.Node) -> Interval:
    a, b = ranges.of(node.inputs[0]), ranges.of(node.inputs[1])
    bound = max(abs(b[0]), abs(b[1]))
    if attribute(node, "fmod", 0):
        bound = min(bound, max(abs(a[0]), abs(a[1])))
        return (-bound if a[0] < 0 else 0), (bound if a[1] > 0 else 0)
    return (-bound if b[0] < 0 else 0), (bound if b[1] > 0 else 0)


def _neg(ranges: Ranges, node: ir.Node) -> Interval:
    low, high = ranges.of(node.inputs[0])
    return -high, -low


def _abs(ranges: Ranges, node: ir.Node) -> Interval:
    low, high = ranges.of(node.inputs[0])
    return (0 if low <= 0 <= high else min(abs(low), abs(high))), max(abs(low), abs(high))


def _max(ranges: Ranges, node: ir.Node) -> Interval:
    parts = [ranges.of(v) for v in node.inputs]
    return max(p[0] for p in parts), max(p[1] for p in parts)


def _min(ranges: Ranges, node: ir.Node) -> Interval:
    parts = [ranges.of(v) for v in node.inputs]
    return min(p[0] for p in parts), min(p[1] for p in parts)


def _clip(ranges: Ranges, node: ir.Node) -> Interval:
    low, high = ranges.of(node.inputs[0])
    if input_at(node, 1) is not None:
        floor = ranges.of(node.inputs[1])
        low, high = max(low, floor[0]), max(high, floor[1])
    if input_at(node, 2) is not None:
        ceiling = ranges.of(node.inputs[2])
        low, high = min(low, ceiling[0]), min(high, ceiling[1])
    return low, high


def _relu(ranges: Ranges, node: ir.Node) -> Interval:
    low, high = ranges.of(node.inputs[0])
    return max(low, 0), max(high, 0)


def _cast(ranges: Ranges, node: ir.Node) -> Interval:
    source, target = node.inputs[0], node.outputs[0]
    low, high = ranges.of(source)
    if target.dtype == ir.DataType.BOOL:
        return 0, 1
    if target.dtype is not None and target.dtype.is_integer() and source is not None and source.dtype is not None:
        return (
            low if math.isinf(low) else math.trunc(low),
            high if math.isinf(high) else math.trunc(high),
        )
    return low, high


def _rounded(ranges: Ranges, node: ir.Node) -> Interval:
    low, high = ranges.of(node.inputs[0])
    return (low if math.isinf(low) else math.floor(low)), (high if math.isinf(high) else math.ceil(high))


def _index(axis_default: int | None, index: int = 0) -> Rule:
    def rule(ranges: Ranges, node: ir.Node) -> Interval:
        dim = _dim(node, axis_default, index)
        return ANY if dim is None else (0, max(dim - 1, 0))

    return rule


def _shape(ranges: Ranges, node: ir.Node) -> Interval:
    shape = shape_of(node.inputs[0])
    if shape is None:
        return (0, math.inf)
    return (min(shape, default=0), max(shape, default=0)) if node.op_type == "Shape" else (0, math.prod(shape))


def _nonzero(ranges: Ranges, node: ir.Node) -> Interval:
    shape = shape_of(node.inputs[0])
    return ANY if shape is None else (0, max(max(shape, default=1) - 1, 0))


def _topk(ranges: Ranges, node: ir.Node) -> Interval:
    return ranges.of(node.inputs[0])


def _where(ranges: Ranges, node: ir.Node) -> Interval:
    return _union((ranges.of(node.inputs[1]), ranges.of(node.inputs[2])))


def _pad(ranges: Ranges, node: ir.Node) -> Interval:
    fill = ranges.of(input_at(node, 2)) if input_at(node, 2) is not None else (0, 0)
    return _union((ranges.of(node.inputs[0]), fill))


def _sum(ranges: Ranges, node: ir.Node) -> Interval:
    shape, result = shape_of(node.inputs[0]), shape_of(node.outputs[0])
    low, high = ranges.of(node.inputs[0])
    if shape is None or result is None:
        return ANY
    count = math.prod(shape)
    if node.op_type == "ReduceSum":
        count //= max(math.prod(result), 1)
    return min(low * count, low, 0), max(high * count, high, 0)


def _one_hot(ranges: Ranges, node: ir.Node) -> Interval:
    return ranges.of(node.inputs[2])


def _range(ranges: Ranges, node: ir.Node) -> Interval:
    return _union((ranges.of(node.inputs[0]), ranges.of(node.inputs[1])))


def _scatter(ranges: Ranges, node: ir.Node) -> Interval:
    if attribute(node, "reduction", "none") not in ("none", "max", "min"):
        return ANY
    return _union((ranges.of(node.inputs[0]), ranges.of(node.inputs[2])))


def _nms(ranges: Ranges, node: ir.Node) -> Interval:
    boxes, scores = shape_of(node.inputs[0]), shape_of(node.inputs[1])
    return ANY if boxes is None or scores is None else (-1, max(*boxes[:2], *scores[:2]))


_RULES: dict[str, Rule] = {
    **dict.fromkeys(
        [
            "Identity",
            "Reshape",
            "Transpose",
            "Squeeze",
            "Unsqueeze",
            "Flatten",
            "Expand",
            "Tile",
            "Slice",
            "Gather",
            "GatherElements",
            "GatherND",
            "Split",
            "ReduceMax",
            "ReduceMin",
            "MaxPool",
            "GlobalMaxPool",
            "Dropout",
            "DepthToSpace",
            "SpaceToDepth",
            "Trilu",
            "ReverseSequence",
            "Compress",
            "ReduceMean",
            "Unique",
        ],
        _first,
    ),
    **dict.fromkeys(("Concat", "Mean"), _all),
    **dict.fromkeys(
        (["Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual", "And", "Or", "Xor", "Not", "IsNaN", "IsInf"]),
        _fixed(0, 1),
    ),
    **dict.fromkeys(("Sigmoid", "Softmax", "Hardmax", "HardSigmoid"), _fixed(0, 1)),
    **dict.fromkeys(("Tanh", "Erf", "Sin", "Cos", "Softsign", "Sign"), _fixed(-1, 1)),
    **dict.fromkeys(("Floor", "Ceil", "Round"), _rounded),
    "EyeLike": _fixed(0, 1),
    "Add": _add,
    "Sum": _add,
    "Sub": _sub,
    "Mul": _mul,
    "Div": _div,
    "Mod": _mod,
    "Neg": _neg,
    "Abs": _abs,
    "Max": _max,
    "Min": _min,
    "Clip": _clip,
    "Relu": _relu,
    "Cast": _cast,
    "ArgMax": _index(0),
    "ArgMin": _index(0),
    "Shape": _shape,
    "Size": _shape,
    "NonZero": _nonzero,
    "TopK": _topk,
    "Where": _where,
    "Pad": _pad,
    "ReduceSum": _sum,
    "CumSum": _sum,
    "OneHot": _one_hot,
    "Range": _range,
    "ScatterElements": _scatter,
    "ScatterND": _scatter,
    "NonMaxSuppression": _nms,
}
# outputs that index something: (op, output) -> rule
_OTHER_OUTPUTS: dict[tuple[str, int], Rule] = {
    ("TopK", 1): _index(-1),
    ("Unique", 1): _index(None),
    ("Unique", 2): _index(None),
    ("MaxPool", 1): _index(None),
    ("Split", -1): _first,
}
# Constants above this are not read to find their range.
_MAX_CONSTANT = 1 << 24


class Ranges:
    """Intervals of a normalized model's values, computed when asked for and remembered.

    Args:
        inputs: known intervals of graph inputs by name; other inputs have their dtype's range.
    """

    def __init__(self, inputs: dict[str, Interval] | None = None) -> None:
        self.inputs = inputs or {}
        self._known: dict[ir.Value, Interval] = {}

    def of(self, value: ir.Value | None) -> Interval:
        """The interval that the value's elements lie in."""
        if value is None:
            return ANY
        if value not in self._known:
            self._compute(value)
        return self._known[value]

    def fits_int32(self, value: ir.Value) -> bool:
        """Whether every element provably fits int32."""
        low, high = self.of(value)
        return low >= INT32[0] and high <= INT32[1]

    def _compute(self, value: ir.Value) -> None:
        """Operands first, without recursion: graphs are deeper than Python's stack."""
        stack = [value]
        while stack:
            top = stack[-1]
            if top in self._known:
                stack.pop()
                continue
            producer = top.producer()
            if producer is None or top.const_value is not None:
                self._known[top] = self._leaf(top)
                stack.pop()
                continue
            waiting = [v for v in producer.inputs if v is not None and v not in self._known]
            if waiting:
                stack += waiting
                continue
            self._known[top] = self._node(producer, top)
            stack.pop()

    def _leaf(self, value: ir.Value) -> Interval:
        if value.const_value is not None:
            size, dtype = value.const_value.size, value.const_value.dtype
            if dtype == ir.DataType.STRING or size > _MAX_CONSTANT:
                return _dtype_range(value)
            array = value.const_value.numpy()
            if not array.size:
                return (0, 0)
            if dtype.is_integer() or dtype == ir.DataType.BOOL:
                return int(array.min()), int(array.max())
            if array.dtype.kind == "f":
                low, high = float(array.min()), float(array.max())
                return ANY if math.isnan(low + high) else (low, high)
            return ANY
        return self.inputs.get(value.name or "", _dtype_range(value))

    def _node(self, node: ir.Node, value: ir.Value) -> Interval:
        bounds = _dtype_range(value)
        if node.domain not in ("", "ai.onnx"):
            return bounds
        index = node.outputs.index(value)
        if index == 0 or node.op_type == "Split":
            rule = _RULES.get(node.op_type)
        else:
            rule = _OTHER_OUTPUTS.get((node.op_type, index))
        if rule is None:
            return bounds
        low, high = rule(self, node)
        if math.isnan(low) or math.isnan(high) or low < bounds[0] or high > bounds[1]:
            return bounds  # it may wrap around, or nothing is known
        return low, high


def fits_int32(value: ir.Value, ranges: Ranges | None = None) -> bool:
    """Whether every element of an integer tensor provably fits int32 (pass `ranges` to share work)."""
    return (ranges or Ranges()).fits_int32(value)


# --- from an input to its readers ---------------------------------------------------------------------------------

# ops that hand their first input's elements on as they are
_PASS = frozenset(
    [
        "Identity",
        "Reshape",
        "Squeeze",
        "Unsqueeze",
        "Transpose",
        "Flatten",
        "Expand",
        "Tile",
        "Slice",
        "Split",
        "Gather",
        "Concat",
        "Dropout",
        "Trilu",
        "Max",
        "Min",
        "Where",
    ]
)
_MAX_STEPS = 2000


def implied_range(model: ir.Model, input_name: str) -> tuple[float, float] | None:
    """The values (low, high), both included, that the graph implies for an integer or bool input, None if it does not.

    Index inputs are bounded by what they index (Gather and relatives, OneHot), masks (compared with 0 or 1, cast to
    bool, or used as 1 - mask) are 0 and 1. Works on a model as read and on a normalized one.
    """
    found = next((v for v in model.graph.inputs if v.name == input_name), None)
    if found is None or found.dtype is None:
        return None
    if found.dtype == ir.DataType.BOOL:
        return (0, 1)
    if not found.dtype.is_integer():
        return None
    bounds: list[Interval] = []
    seen: set[ir.Value] = set()
    queue: list[tuple[ir.Value, float]] = [(found, 0)]
    while queue and len(seen) < _MAX_STEPS:
        value, shift = queue.pop()
        if value in seen:
            continue
        seen.add(value)
        for node, index in value.uses():
            bound = _bound(node, index)
            if bound is not None:
                bounds.append((bound[0] - shift, bound[1] - shift))
            for following, more in _follow(node, index):
                queue.append((following, shift + more))
    if not bounds:
        return None
    low, high = max(b[0] for b in bounds), min(b[1] for b in bounds)
    return (low, high) if low <= high else None


def _follow(node: ir.Node, index: int) -> list[tuple[ir.Value, float]]:
    """Outputs whose elements are the input's, plus a constant."""
    if node.domain not in ("", "ai.onnx"):
        return []
    op_type = node.op_type
    if op_type == "Cast":
        return [(node.outputs[0], 0)]
    if op_type in _PASS and (index == 0 or op_type in ("Concat", "Max", "Min") or (op_type == "Where" and index)):
        return [(v, 0) for v in node.outputs]
    if op_type in ("Add", "Sub") and (index == 0 or op_type == "Add"):
        other = _scalar(node.inputs[1 - index])
        if other is not None:
            return [(node.outputs[0], other if op_type == "Add" else -other)]
    return []


def _scalar(value: ir.Value | None) -> float | None:
    array = constant(value)
    producer = None if value is None else value.producer()
    if array is None and producer is not None and producer.op_type == "Constant":
        held = next((a.value for a in producer.attributes.values() if a.type != ir.AttributeType.STRING), None)
        array = held.numpy() if isinstance(held, TENSORS) else np.asarray(held)
    if array is None or array.size != 1 or array.dtype.kind not in "iufb":
        return None
    return float(array.reshape(-1)[0])


_CODES = {ir.DataType.INT16: (-(2**15), 2**15 - 1), ir.DataType.UINT16: (0, 2**16 - 1)}


def _dtype(node: ir.Node) -> ir.DataType:
    dtype = node.inputs[0].dtype if node.inputs[0] is not None else None
    return ir.DataType.UNDEFINED if dtype is None else dtype


def _bound(node: ir.Node, index: int) -> Interval | None:
    op_type = node.op_type
    if node.domain not in ("", "ai.onnx"):
        return None
    if op_type in ("Gather", "GatherElements", "ScatterElements", "Scatter") and index == 1:
        dim = _dim(node, 0)
        return None if not dim else (0, dim - 1)
    if op_type in ("GatherND", "ScatterND") and index == 1:
        return _nd_bound(node)
    if op_type == "DequantizeLinear" and index == 0:
        return _CODES.get(_dtype(node))  # any code (8 bits need no bound)
    if op_type == "OneHot" and index == 0:
        depth = _scalar(node.inputs[1])
        return None if depth is None else (0, depth - 1)
    if op_type in ("NegativeLogLikelihoodLoss", "SoftmaxCrossEntropyLoss") and index == 1:
        shape = shape_of(node.inputs[0])
        return None if shape is None or len(shape) < 2 else (0, shape[1] - 1)
    if op_type == "RotaryEmbedding" and index == 3:
        shape = shape_of(node.inputs[1])
        return None if not shape else (0, shape[0] - 1)
    if op_type == "ReverseSequence" and index == 1:
        shape = shape_of(node.inputs[0])
        return None if shape is None else (1, shape[attribute(node, "time_axis", 0)])
    if op_type in ("LSTM", "GRU", "RNN") and index == 4:
        shape = shape_of(node.inputs[0])
        return None if shape is None else (1, shape[attribute(node, "layout", 0)])
    if op_type == "Cast" and attribute(node, "to") == int(ir.DataType.BOOL):
        return (0, 1)
    if op_type in ("Equal", "Greater", "Less", "GreaterOrEqual", "LessOrEqual") and _scalar(node.inputs[1 - index]) in (
        0,
        1,
    ):
        return (0, 1)
    if op_type == "Sub" and index == 1 and _scalar(node.inputs[0]) == 1:
        return (0, 1)
    return None


def _nd_bound(node: ir.Node) -> Interval | None:
    data, indices = shape_of(node.inputs[0]), shape_of(node.inputs[1])
    if data is None or indices is None or not indices:
        return None
    batch = attribute(node, "batch_dims", 0)
    smallest = min(data[batch : batch + indices[-1]], default=0)
    return (0, smallest - 1) if smallest else None


__all__ = ["ANY", "INT32", "Interval", "Ranges", "fits_int32", "implied_range", "ints"]

# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""The kinds of limits: for each, what a node is looked at for. A function says what is beyond the limit, or nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from npukit.ascend.limits import Limit
from npukit.frontends.onnx.ranges import Ranges, implied_range
from npukit.frontends.onnx.rewrite import attribute, constant, input_at, ints, rank_of, schema_of, shape_of, version_of

FLOAT16_MAX = 65504.0
# precision modes in which vector ops compute float32 in float16
FLOAT16_MODES = ("fp16", "mixed_float16")
# what the matrix unit computes, which has no float32
PRODUCTS = frozenset({"MatMul", "Gemm", "Conv", "ConvTranspose"})
# Constants with more elements are weights: not read for their largest one, and atc clips them by itself.
MAX_ELEMENTS = 1 << 24
# What inputs of integers are taken to hold where the graph does not say: ids, positions, masks, lengths.
INPUT_INTEGERS = (-(2**24), 2**24)

# The names of the table. A FLOAT may count as float16: see `Context.dtype`.
DTYPE_NAMES = {
    ir.DataType.FLOAT: "float32",
    ir.DataType.DOUBLE: "float64",
    **{kind: kind.name.lower() for kind in ir.DataType if kind.name not in ("FLOAT", "DOUBLE", "UNDEFINED")},
}


@dataclass(frozen=True)
class Context:
    """What a node is judged with.

    Attributes:
        precision: the precision mode.
        ranges: what integers can be.
    """

    precision: str
    ranges: Ranges

    def dtype(self, value: ir.Value) -> str:
        """The name of the value's dtype; empty where it is not known."""
        return DTYPE_NAMES.get(value.dtype, "") if value.dtype is not None else ""

    def takes(self, node: ir.Node, name: str, allowed: list[str]) -> bool:
        """Whether a dtype is among the allowed; outside of mode `origin`, atc narrows float32 where only that fits.

        In mode `origin` products have a rule of their own, so that float32 is no finding twice.
        """
        narrowed = self.precision != "origin" or node.op_type in PRODUCTS
        return name in allowed or (narrowed and name == "float32" and "float16" in allowed)


def integer_inputs(model: ir.Model) -> dict[str, tuple[float, float]]:
    """What each integer input is taken to hold: what the graph implies, else `INPUT_INTEGERS`."""
    found = {}
    for value in model.graph.inputs:
        if value.name and value.dtype in (ir.DataType.INT64, ir.DataType.INT32):
            found[value.name] = implied_range(model, value.name) or INPUT_INTEGERS
    return found


def in_float16(value: ir.Value, precision: str) -> bool:
    """Whether a vector op computes this value in float16."""
    if value.dtype == ir.DataType.FLOAT16:
        return True
    return value.dtype == ir.DataType.FLOAT and precision in FLOAT16_MODES


Kind = Callable[[Context, ir.Node, Limit], str]


def _values(node: ir.Node, limit: Limit) -> Iterator[tuple[str, ir.Value]]:
    """The inputs that the limit is about, each with what to call it."""
    places = range(len(node.inputs)) if limit.at in (None, ["*"]) else limit.at
    for index in places:
        value = input_at(node, index)
        if value is not None:
            yield f"input {index} {value.name!r}", value


def dtype(context: Context, node: ir.Node, limit: Limit) -> str:
    """Dtypes of inputs."""
    beyond = [
        f"{place} is {name}"
        for place, value in _values(node, limit)
        if (name := context.dtype(value)) and not context.takes(node, name, limit.allow)
    ]
    return f"{', '.join(dict.fromkeys(beyond))} (documented: {', '.join(limit.allow)})" if beyond else ""


def dtype_out(context: Context, node: ir.Node, limit: Limit) -> str:
    """Dtype of the output."""
    name = context.dtype(node.outputs[0])
    if not name or context.takes(node, name, limit.allow):
        return ""
    return f"makes {name} (documented: {', '.join(limit.allow)})"


def same_dtype(context: Context, node: ir.Node, limit: Limit) -> str:
    """Inputs of one dtype."""
    names = [name for _, value in _values(node, limit) if (name := context.dtype(value))]
    return f"{limit.say}: {', '.join(names)}" if len(set(names)) > 1 else ""


def same_shape(context: Context, node: ir.Node, limit: Limit) -> str:
    """Inputs of one shape."""
    shapes = [shape for _, value in _values(node, limit) if (shape := shape_of(value)) is not None]
    return f"{limit.say}: {', '.join(str(list(shape)) for shape in shapes)}" if len(set(shapes)) > 1 else ""


def rank(context: Context, node: ir.Node, limit: Limit) -> str:
    """Number of dimensions."""
    first, last = limit.allow
    for place, value in _values(node, limit):
        count = rank_of(value)
        if count is not None and not _within(count, first, last):
            return limit.say or f"{place} has {count} dimensions ({first} to {last} are taken)"
    return ""


def dimension(context: Context, node: ir.Node, limit: Limit) -> str:
    """One dimension of an input."""
    index, axis = limit.at
    shape = shape_of(input_at(node, index))
    if shape is None or not -len(shape) <= axis < len(shape):
        return ""
    return "" if _within(shape[axis], *limit.allow) else f"{limit.say} is {shape[axis]} ({_span(limit)} is taken)"


def is_constant(context: Context, node: ir.Node, limit: Limit) -> str:
    """Inputs that must stand in the file as constants."""
    return "" if all(in_file(value) for _, value in _values(node, limit)) else limit.say


def in_file(value: ir.Value) -> bool:
    """Whether the file holds the value: an initializer, or the output of a Constant node."""
    producer = value.producer()
    if producer is None:
        return value.const_value is not None
    return producer.op_type == "Constant" and producer.domain == ""


def value(context: Context, node: ir.Node, limit: Limit) -> str:
    """An integer input with few values; absent is 0."""
    given = input_at(node, limit.at[0])
    if given is None:
        return ""
    numbers = ints(given)
    if numbers is None:
        return f"{limit.say}, as far as can be known: {given.name!r} is not constant"
    beyond = [number for number in numbers if number not in limit.allow]
    return f"{limit.say}: {beyond[0]}" if beyond else ""


def non_negative(context: Context, node: ir.Node, limit: Limit) -> str:
    """Indices that count from the end: constant ones, and those that provably may be computed."""
    for place, given in _values(node, limit):
        low, _ = context.ranges.of(given)
        # an input, and what is computed of it without a bound, says nothing about its values
        known = given.const_value is not None or (-(2**31) < low < 0 and not _counted_from_front(given))
        if known and low < 0:
            return f"{limit.say}: {place} may be {int(low)}" if given.const_value is None else f"{limit.say} in {place}"
    return ""


def _counted_from_front(value: ir.Value) -> bool:
    """Whether the value is i where i >= 0, else i plus something: an index whose sign was seen to."""
    where = value.producer()
    less = None if where is None or where.op_type != "Where" else where.inputs[0]
    test = None if less is None else less.producer()
    if where is None or test is None or test.op_type != "Less" or test.inputs[0] is not where.inputs[2]:
        return False
    return ints(test.inputs[1]) == [0]


def magnitude(context: Context, node: ir.Node, limit: Limit) -> str:
    """Constants that are too large."""
    for place, given in _values(node, limit):
        array = constant(given)
        if array is not None and array.size and array.dtype.kind == "f":
            largest = float(np.abs(array).max())
            if largest > limit.allow:
                return f"{limit.say}: {largest:.4g} in {place}"
    return ""


def default_of(node: ir.Node, name: str) -> Any:
    """The default of an attribute by the op's definition; None without one."""
    schema = schema_of(node.domain, node.op_type, version_of(node))
    known = None if schema is None else schema.attributes.get(name)
    if known is None or not known.default_value.type:
        return None
    return ir.serde.deserialize_attribute(known.default_value).value


def attribute_in(context: Context, node: ir.Node, limit: Limit) -> str:
    """An attribute with few values."""
    given = attribute(node, limit.at, default_of(node, limit.at))
    if given is None or any(given == allowed or _close(given, allowed) for allowed in limit.allow):
        return ""
    wanted = " or ".join(str(allowed) for allowed in limit.allow)
    return f"{limit.say or limit.at}: {given:g} (documented: {wanted})"


def _close(given: Any, allowed: Any) -> bool:
    return isinstance(given, float) and bool(np.float32(given) == np.float32(allowed))


def attribute_range(context: Context, node: ir.Node, limit: Limit) -> str:
    """Elements of an attribute."""
    given = attribute(node, limit.at, ())
    beyond = [number for number in given if not _within(number, *limit.allow)]
    return f"{limit.at} {list(given)} ({_span(limit)} is taken)" if beyond else ""


def kernel(context: Context, node: ir.Node, limit: Limit) -> str:
    """Kernel of a convolution: an attribute, or the weight's shape."""
    sizes = attribute(node, "kernel_shape") or (shape_of(input_at(node, 1)) or ())[2:]
    beyond = [size for size in sizes if not _within(size, *limit.allow)]
    return f"kernel {list(sizes)} ({_span(limit)} is taken)" if beyond else ""


def pieces(context: Context, node: ir.Node, limit: Limit) -> str:
    """Sizes of a Split's pieces."""
    axis, shapes = attribute(node, "axis", 0), [shape_of(output) for output in node.outputs]
    sizes = [shape[axis] for shape in shapes if shape is not None and -len(shape) <= axis < len(shape)]
    return "" if all(_within(size, *limit.allow) for size in sizes) else f"{limit.say}: {sizes}"


def inputs(context: Context, node: ir.Node, limit: Limit) -> str:
    """Number of inputs."""
    return "" if _within(len(node.inputs), *limit.allow) else f"{len(node.inputs)} operands; it {limit.say}"


def absent(context: Context, node: ir.Node, limit: Limit) -> str:
    """Inputs that are not taken."""
    return limit.say if any(True for _ in _values(node, limit)) else ""


def length_is_rank(context: Context, node: ir.Node, limit: Limit) -> str:
    """A vector with one element for each dimension of another input."""
    length, count = shape_of(input_at(node, limit.at[0])), rank_of(input_at(node, limit.at[1]))
    return limit.say if length and count is not None and length[0] != count else ""


def axes_given(context: Context, node: ir.Node, limit: Limit) -> str:
    """Axes of a reduction, which must be there."""
    if attribute(node, "axes") or attribute(node, "noop_with_empty_axes", 0):
        return ""
    given = input_at(node, 1)
    shape = shape_of(given)
    return "" if given is not None and shape != (0,) else limit.say


def last_step(context: Context, node: ir.Node, limit: Limit) -> str:
    """Step of a Slice along the last axis."""
    steps, count = ints(input_at(node, 4)), rank_of(input_at(node, 0))
    if not steps or count is None:
        return ""
    axes = ints(input_at(node, 3)) or list(range(len(steps)))
    beyond = [step for axis, step in zip(axes, steps, strict=False) if axis in (-1, count - 1) and step != 1]
    return f"{limit.say}: {beyond[0]}" if beyond else ""


def equation(context: Context, node: ir.Node, limit: Limit) -> str:
    """The equation of an Einsum, whatever its letters are."""
    text = attribute(node, "equation", "")
    if len(node.inputs) != 2:
        return ""  # a limit of its own
    allowed = {canonical(row) for row in limit.allow}
    return "" if canonical(text) in allowed else f"the equation {text!r} is not among the {len(allowed)} that are taken"


def canonical(text: str) -> str:
    """An equation with its letters in order of appearance."""
    letters: dict[str, str] = {}
    return "".join(letters.setdefault(c, chr(ord("a") + len(letters))) if c.isalpha() else c for c in text if c != " ")


# What may read the indices of a TopK whatever integer they are.
_ANY_INTEGER = frozenset({"Cast", "Gather", "GatherElements", "Shape", "Identity"})


def indices_meet_int64(context: Context, node: ir.Node, limit: Limit) -> str:
    """Int64 indices that meet another int64 operand."""
    if len(node.outputs) < 2:
        return ""
    users = [
        user
        for user, _ in node.outputs[1].uses()
        if user.op_type not in _ANY_INTEGER
        and sum(v is not None and v.dtype == ir.DataType.INT64 for v in user.inputs) > 1
    ]
    return f"{limit.say} (at {users[0].op_type} {users[0].name!r})" if users else ""


def documented_opsets(context: Context, node: ir.Node, limit: Limit) -> str:
    """Opsets that the op's page names, where the sources register more."""
    first, last = limit.allow
    version = version_of(node)
    return "" if first <= version <= last else f"in opset {version} (documented: {first} to {last})"


def _within(number: float, first: float | None, last: float | None) -> bool:
    return (first is None or number >= first) and (last is None or number <= last)


def _span(limit: Limit) -> str:
    first, last = limit.allow
    return f"{first} to {last}"


KINDS: dict[str, Kind] = {
    "absent": absent,
    "attribute": attribute_in,
    "attribute_range": attribute_range,
    "axes_given": axes_given,
    "constant": is_constant,
    "dimension": dimension,
    "documented_opsets": documented_opsets,
    "dtype": dtype,
    "dtype_out": dtype_out,
    "equation": equation,
    "indices_meet_int64": indices_meet_int64,
    "inputs": inputs,
    "kernel": kernel,
    "last_step": last_step,
    "length_is_rank": length_is_rank,
    "magnitude": magnitude,
    "non_negative": non_negative,
    "pieces": pieces,
    "rank": rank,
    "same_dtype": same_dtype,
    "same_shape": same_shape,
    "value": value,
}

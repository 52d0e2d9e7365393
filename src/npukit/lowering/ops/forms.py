# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""What elementwise lowerings share: forms over aligned operands, merged axes, integer arithmetic.

Both backends compute INT_32 in Add, Subtract, Multiply, Divide (toward zero), Abs, Maximum, Minimum, Select and
comparisons; the integer helpers below stay within that, so that they are exact where a detour through float would
be exact to 2^24 (CPU) or 2048 (HTP, which computes float32 as float16). Overflow wraps around on CPU and
saturates on HTP.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx_ir as ir

from npukit.lowering.emitter import Emitter, NeedsFloat
from npukit.lowering.registry import Unsupported
from npukit.qnn.graph import DType, Tensor

Compute = Callable[[Emitter, list[Tensor]], Tensor]


@dataclass(frozen=True)
class Native:
    """A form that is one QNN op on the operands as they are: it also runs quantized."""

    op: str
    params: Mapping[str, Any] = field(default_factory=dict)


Form = Native | Compute
_LEAST_POWER = -80.0  # exp and Sigmoid of it are 2e-35, Tanh is -1


def elementwise(e: Emitter, node: ir.Node, *forms: Form, values: Sequence[ir.Value | None] | None = None) -> None:
    """Write the first output of `node` by the first of `forms` that stands.

    The operands (`values`, by default all inputs) come in one axis order, which the output keeps. Above rank 4,
    which is as far as HTP goes for many ops, each form is tried again with adjacent axes merged.
    """
    operands = list(node.inputs if values is None else values)

    def attempt(form: Form, merge: bool) -> Callable[[], None]:
        def run() -> None:
            tensors, perm = e.aligned(operands)
            if merge:
                tensors = merge_axes(e, tensors)
            result = node.outputs[0]
            if not isinstance(form, Native):
                e.bind(result, form(e, tensors), perm)
                return
            out = e.output(result, perm)
            if not merge:
                e.emit(form.op, tensors, [out], **form.params)
                return
            shape = np.broadcast_shapes(*(t.shape for t in tensors))
            inner = e.emit(form.op, tensors, [e.temp(shape, out.dtype, out.encoding)], **form.params)
            e.emit("Reshape", [inner], [out])

        return run

    deep = max(e.rank(value) for value in operands) > 4
    e.forms(*(attempt(form, merge) for form in forms for merge in ((False, True) if deep else (False,))))


def merge_axes(e: Emitter, tensors: Sequence[Tensor]) -> list[Tensor]:
    """The tensors with adjacent axes merged that broadcast alike, so that the rank is as low as it can be."""
    shape = np.broadcast_shapes(*(t.shape for t in tensors))
    padded = [(1,) * (len(shape) - t.rank) + t.shape for t in tensors]
    groups: list[tuple[list[bool], list[int]]] = []  # which operands vary along the axes; those axes
    for axis, dim in enumerate(shape):
        varies = [dims[axis] == dim for dims in padded]
        if dim == 1:
            continue
        if groups and groups[-1][0] == varies:
            groups[-1][1].append(axis)
        else:
            groups.append((varies, [axis]))
    if len(groups) >= len(shape):
        raise Unsupported(f"rank {len(shape)} with no axes that could be merged")
    if not groups:
        return [e.reshape(t, (1,)) for t in tensors]
    return [
        e.reshape(t, [int(np.prod([dims[axis] for axis in axes])) for _, axes in groups])
        for t, dims in zip(tensors, padded, strict=True)
    ]


def in_float(form: Form) -> Compute:
    """A form on the operands cast to float; the result is cast back by truncation where it is an integer."""

    def run(e: Emitter, tensors: list[Tensor]) -> Tensor:
        return compute(e, form, [e.cast(t, e.float_dtype) for t in tensors])

    return run


def compute(e: Emitter, form: Form, tensors: list[Tensor]) -> Tensor:
    """The result of a form as a new tensor of the operands' dtype."""
    if not isinstance(form, Native):
        return form(e, tensors)
    shape = np.broadcast_shapes(*(t.shape for t in tensors))
    return e.emit(form.op, tensors, [e.temp(shape, tensors[0].dtype)], **form.params)


def in_float_with(e: Emitter, quirk: str) -> None:
    """Raise NeedsFloat where the node runs quantized and a target has a quirk that makes that wrong."""
    if e.quantized and quirk in e.quirks:
        raise NeedsFloat(f"a target has the quirk {quirk}")


def chain(step: Compute) -> Compute:
    """A variadic op as a chain of its two-input form; one operand stays as it is."""

    def run(e: Emitter, tensors: list[Tensor]) -> Tensor:
        result = tensors[0]
        for tensor in tensors[1:]:
            result = step(e, [result, tensor])
        return result

    return run


def attribute_float(node: ir.Node, name: str, default: float) -> float:
    """A float attribute as a Python number."""
    return float(node.attributes.get_float(name, default))


def exponential(e: Emitter, x: Tensor) -> Tensor:
    """exp(x) of floats; next to nothing for x far below zero, also where the op gives a large number there."""
    if "exp_of_very_little_is_large" in e.quirks and not e.for_integers:
        x = e.binary("ElementWiseMaximum", x, _LEAST_POWER)
    return e.unary("ElementWiseExp", x)


def apart(e: Emitter, x: Tensor) -> Tensor:
    """X, ready for Sigmoid or Tanh: a Maximum that changes neither keeps them from being fused with a product."""
    if "sigmoid_behind_product_is_coarse" in e.quirks and not e.for_integers:
        return e.binary("ElementWiseMaximum", x, _LEAST_POWER)
    return x


def squashed(e: Emitter, op_type: str, x: Tensor) -> Tensor:
    """Sigmoid or Tanh of floats."""
    return e.unary(op_type, apart(e, x))


# -- integers -------------------------------------------------------------------------------------------------------


def maximum(e: Emitter, a: Tensor, b: Tensor | float) -> Tensor:
    """The larger of two, any held number type."""
    return e.binary("ElementWiseMaximum", a, b)


def minimum(e: Emitter, a: Tensor, b: Tensor | float) -> Tensor:
    """The smaller of two; for INT_32 without the op as -max(-a, -b)."""
    if a.dtype.is_float or a.dtype.is_quantized:
        return e.binary("ElementWiseMinimum", a, b)

    def negated() -> Tensor:
        other = e.sub(0, b) if isinstance(b, Tensor) else -b
        return e.sub(0, maximum(e, e.sub(0, a), other))

    return e.forms(lambda: e.binary("ElementWiseMinimum", a, b), negated)


def truncated(e: Emitter, x: Tensor) -> Tensor:
    """A float tensor rounded toward zero."""
    return e.mul(e.unary("ElementWiseSign", x), e.unary("ElementWiseFloor", e.unary("ElementWiseAbs", x)))


def quotient(e: Emitter, a: Tensor | float, b: Tensor | float) -> Tensor:
    """A / b toward zero, INT_32."""
    single = b if not isinstance(b, Tensor) else int(b.data.reshape(-1)[0]) if b.data is not None else 0
    if isinstance(b, Tensor) and (b.data is None or b.data.size != 1):
        single = 0
    if "division_by_power_of_two_floors" in e.quirks and single > 1 and int(single) & (int(single) - 1) == 0:
        return e.sub(0, e.div(a, -single))  # a shift to the right takes the place of the division, unless negative
    return e.div(a, b)


def negative(e: Emitter, x: Tensor) -> Tensor:
    """1 where INT_32 x is below 0, else 0."""
    return from_bool(e, e.compare("ElementWiseLess", x, 0), DType.INT_32)


def floor_quotient(e: Emitter, a: Tensor, b: Tensor) -> Tensor:
    """A / b toward minus infinity for b > 0, INT_32."""
    below = negative(e, a)
    # a + 1 where a is negative, divided toward zero, less 1
    return e.sub(quotient(e, e.add(a, below), b), below)


def wrapped(e: Emitter, x: Tensor, bits: int, signed: bool) -> Tensor:
    """INT_32 numbers reduced to what `bits` bits (at most 16) hold, modulo 2^bits."""
    size = 1 << bits
    if signed:
        x = e.add(x, size // 2)
    left = e.sub(x, e.mul(quotient(e, x, size), size))  # the sign of x: negatives are lifted once more
    left = e.add(left, size)
    left = e.sub(left, e.mul(quotient(e, left, size), size))
    return e.sub(left, size // 2) if signed else left


def remainder(e: Emitter, a: Tensor, b: Tensor | float) -> Tensor:
    """A - b * (a / b) with the quotient toward zero: the sign of a, as C has it. INT_32."""
    return e.sub(a, e.mul(quotient(e, a, b), b))


def to_bool(e: Emitter, x: Tensor) -> Tensor:
    """X != 0 as BOOL_8. A Cast would not do: on HTP it takes the lowest byte."""
    if x.dtype is DType.BOOL_8:
        return x

    def by_float() -> Tensor:
        return e.cast(e.cast(x, e.float_dtype), DType.BOOL_8)

    if x.dtype.is_float:
        return e.cast(x, DType.BOOL_8)
    return e.forms(lambda: e.cast(x, DType.BOOL_8), by_float)


def from_bool(e: Emitter, x: Tensor, dtype: DType) -> Tensor:
    """1 where a BOOL_8 tensor is true, else 0."""
    if x.dtype is not DType.BOOL_8:
        return e.cast(x, dtype)
    one, zero = e.static(np.ones(1, dtype.numpy), dtype), e.static(np.zeros(1, dtype.numpy), dtype)
    return e.forms(lambda: e.cast(x, dtype), lambda: e.select(x, one, zero))


def bits_of(e: Emitter, x: Tensor, count: int) -> Tensor:
    """The lowest `count` bits (at most 31) of non-negative INT_32 values [N] as zeros and ones [count, N]."""
    column = e.reshape(x, (1, int(np.prod(x.shape))))
    powers = e.static(np.array([[1 << k] for k in range(count)], np.int32))
    shifted = e.div(column, powers) if count > 1 else column
    return e.sub(shifted, e.mul(e.div(shifted, 2), 2))


def rows_sum(e: Emitter, x: Tensor) -> Tensor:
    """The sum over the first axis of INT_32 [K, N] as [1, N], exactly: additions of halves."""
    while (rows := x.shape[0]) > 1:
        half = rows // 2
        total = e.add(e.slice(x, 0, 0, half), e.slice(x, 0, half, 2 * half))
        x = total if rows % 2 == 0 else e.concat([total, e.slice(x, 0, rows - 1, rows)], 0)
    return x

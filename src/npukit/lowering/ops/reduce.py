# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""Reductions, argument ops, TopK, cumulative ops and the softmax family."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir

from npukit.lowering.emitter import Emitter
from npukit.lowering.registry import Unsupported, lowers
from npukit.qnn.graph import DType, Tensor

from .forms import exponential
from .movement import axis_of

_NATIVE = {
    "ReduceMax": "ReduceMax",
    "ReduceMean": "ReduceMean",
    "ReduceMin": "ReduceMin",
    "ReduceProd": "ReduceProd",
    "ReduceSum": "ReduceSum",
}


def reduced(e: Emitter, op_type: str, x: Tensor, axes: list[int], keep: bool = True) -> Tensor:
    """A native reduction over `axes`; a full reduction without kept axes gives [1]."""
    shape = [1 if i in axes else dim for i, dim in enumerate(x.shape) if keep or i not in axes]
    return e.emit(op_type, [x], [e.temp(shape, x.dtype)], axes=sorted(axes), keep_dims=keep)


def _product(e: Emitter, x: Tensor, axes: list[int]) -> Tensor:
    """Products as a tree of multiplications: one axis after another, halves times halves."""
    for axis in axes:
        while x.shape[axis] > 1:
            half = x.shape[axis] // 2
            pair = e.mul(e.slice(x, axis, 0, half), e.slice(x, axis, half, 2 * half))
            x = e.concat([pair, e.slice(x, axis, 2 * half, x.shape[axis])], axis) if x.shape[axis] % 2 else pair
    return x


def _extreme(op: str) -> Callable[[Emitter, Tensor, list[int]], Tensor]:
    """Maximum or minimum as a tree of pairwise ops: for dtypes that the native reduction does not take."""

    def tree(e: Emitter, x: Tensor, axes: list[int]) -> Tensor:
        for axis in axes:
            while x.shape[axis] > 1:
                half = (x.shape[axis] + 1) // 2
                x = e.binary(op, e.slice(x, axis, 0, half), e.slice(x, axis, x.shape[axis] - half, x.shape[axis]))
        return x

    return tree


def _log_sum_exp(e: Emitter, x: Tensor, axes: list[int]) -> Tensor:
    top = reduced(e, "ReduceMax", x, axes)
    total = reduced(e, "ReduceSum", exponential(e, e.sub(x, top)), axes)
    return e.add(e.unary("ElementWiseLog", total), top)


def _sum(e: Emitter, x: Tensor, axes: list[int]) -> Tensor:
    return reduced(e, "ReduceSum", x, axes)


_COMPOSED: dict[str, tuple[Callable[[Emitter, Tensor, list[int]], Tensor], ...]] = {
    "ReduceL1": (lambda e, x, axes: _sum(e, e.unary("ElementWiseAbs", x), axes),),
    "ReduceL2": (lambda e, x, axes: e.unary("ElementWiseSquareRoot", _sum(e, e.mul(x, x), axes)),),
    "ReduceLogSum": (lambda e, x, axes: e.unary("ElementWiseLog", _sum(e, x, axes)),),
    "ReduceLogSumExp": (_log_sum_exp,),
    "ReduceSumSquare": (lambda e, x, axes: _sum(e, e.mul(x, x), axes),),
    "ReduceProd": (lambda e, x, axes: reduced(e, "ReduceProd", x, axes), _product),
    "ReduceMax": (lambda e, x, axes: reduced(e, "ReduceMax", x, axes), _extreme("ElementWiseMaximum")),
    "ReduceMin": (lambda e, x, axes: reduced(e, "ReduceMin", x, axes), _extreme("ElementWiseMinimum")),
    "ReduceMean": (lambda e, x, axes: reduced(e, "ReduceMean", x, axes),),
    "ReduceSum": (_sum,),
}


@lowers(*_COMPOSED)
def reduce(e: Emitter, node: ir.Node) -> None:
    """Reductions over constant axes.

    x: T[*D], axes: int64[*]? -> y: T[*D']
    T: float, int32, bool (max and min); any order where the reduced axes are kept
    """
    rank = e.rank(node.inputs[0])
    given = node.inputs[1] if len(node.inputs) > 1 else None
    axes = [axis % rank for axis in e.ints(given, "axes")] if given is not None and rank else []
    if not axes and not node.attributes.get_int("noop_with_empty_axes", 0):
        axes = list(range(rank))
    keep = bool(node.attributes.get_int("keepdims", 1))
    x, order = e.held(node.inputs[0])
    if order is not None and not keep:
        rest = [axis for axis in order if axis not in axes]
        if rest != sorted(rest):
            x, order = e.get(node.inputs[0]), None
    places = [axis if order is None else order.index(axis) for axis in axes]
    y_order = order if keep else None
    forms = _COMPOSED[node.op_type]
    if not axes and node.op_type in _NATIVE:
        e.bind(node.outputs[0], x, order)
        return

    def form(compose: Callable[[Emitter, Tensor, list[int]], Tensor], through: DType | None) -> Callable[[], None]:
        def run() -> None:
            if through is not None and x.dtype in (through, e.float_dtype):
                raise Unsupported(f"{node.op_type} has no form for {x.dtype.name}")
            y = compose(e, x if through is None else e.cast(x, through), places)
            e.bind(node.outputs[0], e.cast(y, x.dtype), y_order)

        return run

    if node.op_type in ("ReduceMax", "ReduceMean", "ReduceMin", "ReduceSum") and axes:

        def direct() -> None:  # straight into the output: the form that runs quantized
            y = e.output(node.outputs[0], y_order)
            e.emit(_NATIVE[node.op_type], [x], [y], axes=sorted(places), keep_dims=keep)

        e.forms(direct, *(form(f, None) for f in forms), *(form(f, e.float_dtype) for f in forms))
    elif axes:
        e.forms(*(form(f, None) for f in forms), *(form(f, e.float_dtype) for f in forms))
    else:  # no axes: the elementwise part only
        pointwise = {"ReduceSumSquare": "square", "ReduceL1": "abs", "ReduceL2": "abs", "ReduceLogSum": "log"}
        kind = pointwise.get(node.op_type, "same")
        if kind == "square":
            x = e.mul(x, x)
        elif kind == "abs":
            x = e.unary("ElementWiseAbs", x)
        elif kind == "log":
            x = e.unary("ElementWiseLog", x)
        e.bind(node.outputs[0], x, order)


@lowers("ArgMax", "ArgMin")
def arg_extreme(e: Emitter, node: ir.Node) -> None:
    """Index of the extreme along one axis.

    x: T[*D] -> y: int64[*D']
    T: float, int32
    """
    x, order = e.held(node.inputs[0])
    keep = bool(node.attributes.get_int("keepdims", 1))
    if order is not None and not keep:
        x, order = e.get(node.inputs[0]), None
    axis = axis_of(e, node.inputs[0], node.attributes.get_int("axis", 0), order)
    kind = "Argmax" if node.op_type == "ArgMax" else "Argmin"
    last = bool(node.attributes.get_int("select_last_index", 0))
    size = x.shape[axis]

    def run(data: Tensor, op_type: str) -> None:
        source = e.slice(data, axis, size - 1, -1, -1) if last and size > 1 else data
        shape = [1 if i == axis else dim for i, dim in enumerate(x.shape)]
        index = e.emit(op_type, [source], [e.temp(shape, DType.INT_32)], axis=axis, keep_dims=True)
        if last and size > 1:
            index = e.sub(e.static(np.array([size - 1]), DType.INT_32), index)
        if not keep:
            index = e.reshape(index, e.shape(node.outputs[0]))
        e.bind(node.outputs[0], index, order if keep else None)

    def negated() -> None:
        if kind != "Argmin" or "argmin_wrong" not in e.quirks and not x.dtype.is_float:
            raise Unsupported("only Argmin is a negated Argmax")
        run(e.unary("ElementWiseNeg", x), "Argmax")

    def native() -> None:
        if kind == "Argmin" and "argmin_wrong" in e.quirks:
            raise Unsupported("Argmin gives wrong values on a target")
        run(x, kind)

    e.forms(native, negated, lambda: run(e.cast(x, e.float_dtype), kind))


@lowers("TopK")
def top_k(e: Emitter, node: ir.Node) -> None:
    """The k largest or smallest along one axis, sorted.

    x: T[*D], k: int64[1] -> values: T[*D'], indices: int64[*D']
    T: float, int32; k constant; equal values: the backend's order decides
    """
    rank = e.rank(node.inputs[0])
    axis = node.attributes.get_int("axis", -1) % rank
    k = e.ints(node.inputs[1], "k")[0]
    largest = bool(node.attributes.get_int("largest", 1))
    if k == 0:
        raise Unsupported("k is 0", hint="QNN has no empty tensors")
    order = (*[a for a in range(rank) if a != axis], axis)
    x = e.get(node.inputs[0], order)
    shape = (*x.shape[:-1], k)

    def run(data: Tensor, turned: bool, through: DType | None = None) -> None:
        """Values and indices of the largest of `data`; `turned`: of the smallest, by negation."""
        data = data if through is None else e.cast(data, through)
        source = e.unary("ElementWiseNeg", data) if turned else data
        # The larger index comes first among equal values (opdefs note); reversed, the smaller does, as in ONNX.
        size = data.shape[-1]
        back = e.slice(source, rank - 1, size - 1, -1, -1) if size > 1 else source
        values, index = e.temp(shape, data.dtype), e.temp(shape, DType.INT_32)
        e.emit("TopK", [back], [values, index], k=k)
        if size > 1:
            index = e.sub(e.static(np.array([size - 1]), DType.INT_32), index)
        if turned:
            values = e.unary("ElementWiseNeg", values)
        e.bind(node.outputs[0], e.cast(values, x.dtype), order)
        e.bind(node.outputs[1], index, order)

    e.forms(lambda: run(x, not largest), lambda: run(x, not largest, e.float_dtype))


@lowers("Softmax", "LogSoftmax")
def softmax(e: Emitter, node: ir.Node) -> None:
    """Softmax along one axis.

    x: T[*D] -> y: T[*D]
    T: float, quantized; any order
    """
    x, order = e.held(node.inputs[0])
    rank = e.rank(node.inputs[0])
    axis = axis_of(e, node.inputs[0], node.attributes.get_int("axis", -1), order) if rank else 0

    def native() -> None:
        e.emit(node.op_type, [x], [e.output(node.outputs[0], order)], axis=axis, beta=1.0)

    def turned() -> None:
        source = order or tuple(range(rank))
        last = (*[a for a in range(rank) if a != axis], axis)
        moved = e.transpose(x, last)
        perm = tuple(source[a] for a in last)
        e.emit(node.op_type, [moved], [e.output(node.outputs[0], perm)], axis=rank - 1, beta=1.0)

    def flat() -> None:
        outer, inner = int(np.prod(x.shape[:axis])), int(np.prod(x.shape[axis + 1 :]))
        middle = e.transpose(e.reshape(x, (outer, x.shape[axis], inner)), (0, 2, 1))
        y = e.emit(node.op_type, [middle], [e.temp(middle.shape, middle.dtype)], axis=2, beta=1.0)
        e.bind(node.outputs[0], e.reshape(e.transpose(y, (0, 2, 1)), x.shape), order)

    def composed() -> None:
        shifted = e.sub(x, reduced(e, "ReduceMax", x, [axis]))
        powers = exponential(e, shifted)
        total = reduced(e, "ReduceSum", powers, [axis])
        log = node.op_type == "LogSoftmax"
        y = e.sub(shifted, e.unary("ElementWiseLog", total)) if log else e.div(powers, total)
        e.bind(node.outputs[0], y, order)

    e.forms(native, turned, flat, composed)


@lowers("Hardmax")
def hardmax(e: Emitter, node: ir.Node) -> None:
    """1 at the first largest along one axis, 0 elsewhere.

    x: T[*D] -> y: T[*D]
    T: float; any order
    """
    x, order = e.held(node.inputs[0])
    axis = axis_of(e, node.inputs[0], node.attributes.get_int("axis", -1), order)
    shape = [1 if i == axis else dim for i, dim in enumerate(x.shape)]
    index = e.emit("Argmax", [x], [e.temp(shape, DType.INT_32)], axis=axis, keep_dims=True)
    ladder = np.arange(x.shape[axis], dtype=np.float32).reshape([-1 if i == axis else 1 for i in range(x.rank)])
    equal = e.compare("ElementWiseEqual", e.cast(index, e.float_dtype), e.static(ladder))
    e.bind(node.outputs[0], e.cast(equal, x.dtype), order)


@lowers("CumSum", "CumProd")
def cumulative(e: Emitter, node: ir.Node) -> None:
    """Running sum or product along a constant axis.

    x: T[*D], axis: int[] -> y: T[*D]
    T: float, int32
    """
    x, order = e.held(node.inputs[0])
    axis = axis_of(e, node.inputs[0], e.ints(node.inputs[1], "axis")[0], order)
    exclusive = bool(node.attributes.get_int("exclusive", 0))
    reverse = bool(node.attributes.get_int("reverse", 0))

    def native(mode: bool) -> None:
        if node.op_type != "CumSum":
            raise Unsupported("QNN has no running product")
        if not mode and (exclusive or reverse):
            raise Unsupported("plain form only")
        y = e.output(node.outputs[0], order)
        e.emit("CumulativeSum", [x], [y], axis=axis, exclusive=exclusive, reverse=reverse)

    def doubling(through: DType | None) -> None:
        """log2(n) steps: each adds (multiplies) what lies 2^s places back."""
        data = x if through is None else e.cast(x, through)
        neutral = 0.0 if node.op_type == "CumSum" else 1.0
        combine = e.add if node.op_type == "CumSum" else e.mul
        size = data.shape[axis]
        if exclusive:
            data = _shifted(e, data, axis, 1, neutral, reverse)
        step = 1
        while step < size:
            data = combine(data, _shifted(e, data, axis, step, neutral, reverse))
            step *= 2
        e.bind(node.outputs[0], e.cast(data, x.dtype), order)

    plain = "cumsum_options_wrong" not in e.quirks
    e.forms(lambda: native(plain), lambda: doubling(None), lambda: doubling(e.float_dtype))


def _shifted(e: Emitter, x: Tensor, axis: int, step: int, fill: float, reverse: bool) -> Tensor:
    """The elements `step` places back (on, for reverse), `fill` where there is none."""
    size = x.shape[axis]
    step = min(step, size)
    block = e.static(np.full((*x.shape[:axis], step, *x.shape[axis + 1 :]), fill, x.dtype.numpy), x.dtype, hint="fill")
    if step == size:
        return block
    kept = e.slice(x, axis, step, size) if reverse else e.slice(x, axis, 0, size - step)
    return e.concat([kept, block] if reverse else [block, kept], axis)

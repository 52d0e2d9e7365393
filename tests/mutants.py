# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""Faults that a converter can make, as changes of a lowered graph.

Each mutator changes one op in place, to something that is still a sound QNN graph with the same inputs and outputs,
or says that it does not apply there. A verification that lets one of them pass is no verification.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator

import numpy as np

from npukit.qnn.graph import DType, Graph, Op, Param, Tensor, TensorKind

Mutator = Callable[[Graph, Op], bool]

ADD, DIVIDE, MULTIPLY, SUBTRACT = 0, 2, 13, 18  # ElementWiseBinary.operation
GELU, RELU, SIGMOID, TANH = 1, 4, 6, 8  # ElementWiseNeuron.operation
_WEIGHTED = ("Conv2d", "DepthWiseConv2d", "TransposeConv2d", "FullyConnected", "MatMul")


def _static(op: Op, index: int) -> Tensor | None:
    tensor = op.inputs[index] if index < len(op.inputs) else None
    return tensor if tensor is not None and tensor.kind is TensorKind.STATIC and tensor.data is not None else None


def _set(op: Op, index: int, data: np.ndarray) -> bool:
    """Give the op its own copy of a constant with other values; False if the values are the same."""
    old = op.inputs[index]
    assert old is not None
    assert old.data is not None
    data = np.ascontiguousarray(data, old.data.dtype).reshape(old.shape)
    if np.array_equal(data, old.data):
        return False
    new = copy.copy(old)
    new.name, new.data = f"{old.name}_mutant", data
    op.inputs[index] = new
    return True


def _binary(op: Op, operation: int) -> bool:
    return op.type == "ElementWiseBinary" and int(op.params["operation"].value) == operation


def _constant_operand(op: Op) -> int | None:
    return next((i for i in (0, 1) if _static(op, i) is not None), None)


def _change(op: Op, index: int, function: Callable[[np.ndarray], np.ndarray]) -> bool:
    tensor = _static(op, index)
    return tensor is not None and _set(op, index, function(np.array(tensor.data)))


def weight_read_in_the_other_order(graph: Graph, op: Op) -> bool:
    """The bytes of the weight with its axes reversed."""
    return op.type in _WEIGHTED and _change(op, 1, lambda w: w.T.copy().reshape(w.shape))


def weight_doubled(graph: Graph, op: Op) -> bool:
    return op.type in _WEIGHTED and _change(op, 1, lambda w: 2 * w)


def kernel_flipped(graph: Graph, op: Op) -> bool:
    return "Conv2d" in op.type and _change(op, 1, lambda w: w[::-1, ::-1])


def output_channels_shifted(graph: Graph, op: Op) -> bool:
    """Gate order of an LSTM, order of groups: the weight of one output channel used for another."""
    axis = 0 if op.type in ("FullyConnected", "MatMul") else -1
    return op.type in _WEIGHTED and _change(op, 1, lambda w: np.roll(w, max(1, w.shape[axis] // 4), axis))


def bias_dropped(graph: Graph, op: Op) -> bool:
    return op.type in _WEIGHTED and _change(op, 2, np.zeros_like)


def added_bias_dropped(graph: Graph, op: Op) -> bool:
    index = _constant_operand(op) if _binary(op, ADD) else None
    made = next((other for other in graph.ops if index is not None and op.inputs[1 - index] in other.outputs), None)
    dense = made is not None and made.type in ("FullyConnected", "Reshape", "MatMul")
    return dense and index is not None and _change(op, index, np.zeros_like)


def pads_moved_by_one(graph: Graph, op: Op) -> bool:
    pads = op.params.get("pad_amount")
    if pads is None or not isinstance(pads.value, np.ndarray) or not pads.value.any():
        return False
    moved = pads.value.astype(np.int64)
    row = int(np.argmax(moved.max(1)))
    near, far = moved[row]
    moved[row] = (near - 1, far + 1) if near else (near + 1, far - 1)
    op.params["pad_amount"] = Param(DType.UINT_32, moved.astype(np.uint32))
    return True


def inputs_exchanged(graph: Graph, op: Op) -> bool:
    if op.type == "Concat" and len({t.shape for t in op.inputs if t is not None}) == 1 and len(op.inputs) > 1:
        op.inputs = op.inputs[::-1]
        return True
    if op.type == "MatMul" and all(t is not None and t.shape == op.outputs[0].shape for t in op.inputs):
        op.inputs = op.inputs[::-1]
        return True
    if _binary(op, SUBTRACT) or _binary(op, DIVIDE):
        op.inputs = op.inputs[::-1]
        return True
    return False


def mask_inverted(graph: Graph, op: Op) -> bool:
    if op.type != "ElementWiseSelect" or op.outputs[0].dtype is not DType.FLOAT_32:
        return False
    op.inputs[1], op.inputs[2] = op.inputs[2], op.inputs[1]
    return True


def scale_doubled(graph: Graph, op: Op) -> bool:
    index = _constant_operand(op) if _binary(op, MULTIPLY) or _binary(op, DIVIDE) else None
    return index is not None and _change(op, index, lambda s: s * (2.0 if np.abs(s).max() < 1e30 else 1e-38))


def order_of_axes_ignored(graph: Graph, op: Op) -> bool:
    """NHWC read as NCHW: a Transpose that only changes the shape."""
    if op.type != "Transpose":
        return False
    (tensor,) = op.inputs
    assert tensor is not None
    perm = np.asarray(op.params["perm"].value)
    long = [axis for axis in perm.tolist() if tensor.shape[axis] > 1]
    if long == sorted(long):
        return False
    op.type, op.params = "Reshape", {}
    return True


def alpha_lost(graph: Graph, op: Op) -> bool:
    return op.type == "Prelu" and _change(op, 1, np.zeros_like)


def activation_exchanged(graph: Graph, op: Op) -> bool:
    if op.type == "ReluMinMax":
        op.params["max_value"] = Param(DType.FLOAT_32, 1.0)
        return True
    if op.type != "ElementWiseNeuron":
        return False
    kind = int(op.params["operation"].value)
    other = {GELU: RELU, RELU: TANH, SIGMOID: TANH, TANH: SIGMOID}.get(kind)
    if other is None:
        limit = op.params.get("max_value")
        if limit is None:
            return False
        op.params["max_value"] = Param(DType.FLOAT_32, 1.0)
        return True
    op.params = {"operation": Param(DType.UINT_32, other)}
    return True


def softmax_along_another_axis(graph: Graph, op: Op) -> bool:
    if op.type != "Softmax":
        return False
    op.params["axis"] = Param(DType.UINT_32, op.outputs[0].rank - 2)
    return True


def softmax_beta_doubled(graph: Graph, op: Op) -> bool:
    if op.type != "Softmax":
        return False
    op.params["beta"] = Param(DType.FLOAT_32, 2.0)
    return True


def scale_and_offset_exchanged(graph: Graph, op: Op) -> bool:
    if op.type not in ("Batchnorm", "LayerNorm"):
        return False
    op.inputs[1], op.inputs[2] = op.inputs[2], op.inputs[1]
    return True


def offset_dropped(graph: Graph, op: Op) -> bool:
    return op.type in ("Batchnorm", "LayerNorm") and _change(op, 2, np.zeros_like)


def epsilon_wrong(graph: Graph, op: Op) -> bool:
    if op.type != "LayerNorm":
        return False
    op.params["epsilon"] = Param(DType.FLOAT_32, 0.1)
    return True


def mean_of_squares_as_maximum(graph: Graph, op: Op) -> bool:
    if op.type != "ReduceMean":
        return False
    op.type = "ReduceMax"
    return True


def residual_lost(graph: Graph, op: Op) -> bool:
    """Of two summands only the second."""
    if not _binary(op, ADD) or _constant_operand(op) is not None:
        return False
    first, second = op.inputs
    if first is None or second is None or first.shape != second.shape or second.shape != op.outputs[0].shape:
        return False
    readers = [other for other in graph.ops if first in other.inputs]
    if len(readers) < 2 and first.kind is not TensorKind.APP_WRITE:
        return False  # what nothing reads any more would have to go too
    op.type, op.params, op.inputs = "Reshape", {}, [second]
    return True


def pool_of_another_kind(graph: Graph, op: Op) -> bool:
    if op.type != "PoolMax2d":
        return False
    op.type = "PoolAvg2d"
    op.params.pop("rounding_mode", None)
    return True


def pixel_centres_moved(graph: Graph, op: Op) -> bool:
    if op.type != "ResizeBilinear":
        return False
    op.params["half_pixel_centers"] = Param(DType.BOOL_8, not op.params["half_pixel_centers"].value)
    return True


def slice_moved(graph: Graph, op: Op) -> bool:
    tensor = op.inputs[0] if op.inputs else None
    if op.type != "StridedSlice" or tensor is None:
        return False
    ranges = np.array(op.params["ranges"].value)
    for axis, (begin, end, step) in enumerate(ranges.tolist()):
        size = end - begin
        if step == 1 and size < tensor.shape[axis]:
            start = begin + 1 if end < tensor.shape[axis] else begin - 1
            ranges[axis] = (start, start + size, 1)
            op.params["ranges"] = Param(op.params["ranges"].dtype, ranges)
            return True
    return False


def rows_of_the_table_off_by_one(graph: Graph, op: Op) -> bool:
    return op.type == "Gather" and _change(op, 0, lambda table: np.roll(table, 1, 0))


MUTATORS: tuple[Mutator, ...] = (
    weight_read_in_the_other_order,
    weight_doubled,
    kernel_flipped,
    output_channels_shifted,
    bias_dropped,
    added_bias_dropped,
    pads_moved_by_one,
    inputs_exchanged,
    mask_inverted,
    scale_doubled,
    order_of_axes_ignored,
    alpha_lost,
    activation_exchanged,
    softmax_along_another_axis,
    softmax_beta_doubled,
    scale_and_offset_exchanged,
    offset_dropped,
    epsilon_wrong,
    mean_of_squares_as_maximum,
    residual_lost,
    pool_of_another_kind,
    pixel_centres_moved,
    slice_moved,
    rows_of_the_table_off_by_one,
)


def mutants(read: Callable[[], Graph], least: int = 10) -> Iterator[tuple[str, Callable[[], Graph]]]:
    """Names of mutants of the graph that `read` gives afresh, and what makes them.

    Every mutator is applied at the first op that it fits; where that gives fewer than `least`, also at the last.
    """
    count = len(read().ops)
    found: list[tuple[Mutator, int]] = []
    for order in (range(count), range(count - 1, -1, -1)):
        for mutator in MUTATORS:
            if order.step < 0 and len(found) >= least:
                break
            place = next((i for i in order if mutator(graph := read(), graph.ops[i])), None)
            if place is not None and (mutator, place) not in found:
                found.append((mutator, place))
    for mutator, place in found:
        op = read().ops[place]

        def make(mutator: Mutator = mutator, place: int = place) -> Graph:
            graph = read()
            assert mutator(graph, graph.ops[place])
            return graph

        yield f"{mutator.__name__} at {op.type} {op.name}", make

# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""Where a float graph can be rescaled channel by channel without changing what it computes.

A span is a set of activations that may all be divided by one positive factor per channel: the weights that make them
are divided, the weights that read them multiplied, and every op between commutes with such a scale. It is found by
following tensors forwards and backwards from one op with weights; a residual Add ties both its operands, a tensor that
is read several times ties all that read it.

The channel of each element of a tensor is an integer array that broadcasts onto the tensor: [1, 1, 64] for channels
last, [1, 4, 1, 16] where attention has split them into heads.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace

import numpy as np

from npukit.qnn.graph import Array, Graph, Op, Tensor, TensorKind
from npukit.quantization.roles import Role, by_input_channel, role, weight_axis

_NORMS = frozenset(("LayerNorm", "RmsNorm", "InstanceNorm", "GroupNorm", "Batchnorm"))
_CLAMPS = frozenset(("Relu6", "ReluMinMax"))
# f(s x) = s f(x) for s > 0, element by element; both operands of the last row are in the span.
_HOMOGENEOUS = frozenset(("Relu", "Prelu", "ElementWiseNeg", "ElementWiseAbs"))
_HOMOGENEOUS_NEURONS = (4,)  # RELU of ElementWiseNeuron's `operation`
_TIES = frozenset(("ElementWiseAdd", "ElementWiseSubtract", "ElementWiseMaximum", "ElementWiseMinimum"))
_SCALES = frozenset(("ElementWiseMultiply", "ElementWiseDivide"))
# Channels last, each for itself.
_SPATIAL = frozenset(
    ("PoolMax2d", "PoolMax3d", "PoolAvg2d", "PoolAvg3d", "ResizeBilinear", "ResizeNearestNeighbor", "StridedSlice")
    + ("Split", "Tile", "Pad")
)
_REDUCES = frozenset(("ReduceMean", "ReduceSum", "ReduceMax", "ReduceMin"))
_RESHAPES = frozenset(("Reshape", "ExpandDims", "Squeeze"))
_MOST_INDICES = 1 << 20  # of one tensor's channel array


@dataclass(eq=False)
class Port:
    """An op whose weights take up a scale, and the span's channel of each of its own."""

    op: Op
    channels: Array


@dataclass(eq=False)
class Span:
    """Activations that may be scaled together.

    Attributes:
        count: channels.
        makers: ops whose outputs they are; channels of the output.
        readers: ops with weights that read them; channels of input 0.
        between: ops that the scale goes through.
    """

    count: int
    makers: list[Port] = field(default_factory=list)
    readers: list[Port] = field(default_factory=list)
    between: list[Op] = field(default_factory=list)

    @property
    def name(self) -> str:
        """Of the first op that makes it."""
        return self.makers[0].op.name

    def divide(self, factors: Array) -> None:
        """Make the activations of channel c 1/factors[c] of what they are; new static tensors replace the old ones."""
        for port in self.makers:
            for index in _output_constants(port.op):
                scale_constant(port.op, index, 1 / factors[port.channels])
        for port in self.readers:
            scale_inputs(port.op, factors[port.channels])


def spans(graph: Graph, *, clamps: bool = False) -> list[Span]:
    """Every span of `graph`, in the order of the ops that make them.

    Args:
        graph: floats.
        clamps: Relu6 and ReluMinMax from zero count as scalable (they are not: whoever scales makes them Relu).
    """
    search = _Search(graph, clamps)
    found: list[Span] = []
    taken: set[int] = set()
    for op in graph.ops:
        if id(op) not in taken and search.makes(op) and (span := search.span(op)) is not None:
            found.append(span)
            taken.update(id(port.op) for port in span.makers)
    return found


def _last_only(channels: Array) -> bool:
    return bool(channels.size == channels.shape[-1])


class _Search:
    def __init__(self, graph: Graph, clamps: bool) -> None:
        self._clamps = clamps
        self._outside = {id(t) for t in (*graph.inputs, *graph.outputs)}
        self._producer = {id(t): op for op in graph.ops for t in op.outputs}
        self._readers: dict[int, list[tuple[Op, int]]] = {}
        for op in graph.ops:
            for index, tensor in enumerate(op.inputs):
                if tensor is not None:
                    self._readers.setdefault(id(tensor), []).append((op, index))

    def makes(self, op: Op) -> bool:
        """Whether the constants of `op` take up a scale of its output's channels."""
        if len(op.outputs) != 1 or not op.outputs[0].dtype.is_float:
            return False
        places = _output_constants(op)
        if not places or not all(self._free(op.inputs[i]) for i in places):
            return False
        if op.type in ("LayerNorm", "RmsNorm"):
            axes = np.asarray(op.params["axes"].value).reshape(-1) if "axes" in op.params else np.array([-1])
            return axes.tolist() in ([-1], [op.outputs[0].rank - 1])
        return (op.type != "MatMul" or _is_matrix(op)) and not _grouped_transpose(op)

    def _free(self, tensor: Tensor | None) -> bool:
        """Whether a static tensor is this op's own, so that it can be changed."""
        return (
            tensor is not None
            and tensor.dtype.is_float
            and tensor.data is not None
            and len(self._readers[id(tensor)]) == 1
        )

    def _reads(self, op: Op) -> bool:
        if weight_axis(op) is None or not self._free(op.inputs[1]):
            return False
        return (op.type != "MatMul" or _is_matrix(op)) and not _grouped_transpose(op)

    def span(self, start: Op) -> Span | None:
        """The span of the output of `start`; None where something does not commute with a scale."""
        output = start.outputs[0]
        count = output.shape[-1]
        span = Span(count)
        known: dict[int, Array] = {}
        passed: set[int] = {id(start)}
        span.makers.append(Port(start, np.arange(count)))
        work = [(output, np.arange(count).reshape((1,) * (output.rank - 1) + (count,)))]
        while work:
            tensor, channels = work.pop()
            channels = _tight(channels)
            if id(tensor) in known:
                if not np.array_equal(known[id(tensor)], channels):
                    return None
                continue
            if id(tensor) in self._outside or not tensor.dtype.is_float or channels.size > _MOST_INDICES:
                return None
            known[id(tensor)] = channels
            maker = self._producer[id(tensor)]
            if id(maker) not in passed:
                if self.makes(maker) and _last_only(channels):
                    passed.add(id(maker))
                    span.makers.append(Port(maker, np.broadcast_to(channels.reshape(-1), (tensor.shape[-1],))))
                elif not self._pass(maker, tensor, channels, span, passed, work):
                    return None
            for reader, index in self._readers.get(id(tensor), ()):
                if not self._read(reader, index, tensor, channels, span, passed, work):
                    return None
        return span if span.readers else None

    def _read(
        self, op: Op, index: int, tensor: Tensor, channels: Array, span: Span, passed: set[int],
        work: list[tuple[Tensor, Array]],
    ) -> bool:  # fmt: skip
        """Take up one that reads a tensor of the span; whether that can be."""
        if index == 0 and self._reads(op):
            own = _input_channels(op, tensor, channels)
            if own is not None:
                span.readers.append(Port(op, own))
            return own is not None
        if id(op) in passed:  # what makes one of the tensors, and is no layer, must not see another scaled
            return all(port.op is not op for port in span.makers)
        return self._pass(op, tensor, channels, span, passed, work)

    def _pass(
        self, op: Op, tensor: Tensor, channels: Array, span: Span, passed: set[int], work: list[tuple[Tensor, Array]]
    ) -> bool:
        tied = _tied(op, tensor, channels, self._clamps)
        if tied is None:
            return False
        passed.add(id(op))
        span.between.append(op)
        work.extend(tied)
        return True


def _grouped_transpose(op: Op) -> bool:
    group = op.params.get("group")
    return op.type.startswith("TransposeConv") and group is not None and group.value != 1


def _is_matrix(op: Op) -> bool:
    """Whether a MatMul's weight is one matrix that every row of input 0 is multiplied by."""
    weight = op.inputs[1]
    flipped = op.params.get("transpose_in0")
    return weight is not None and math.prod(weight.shape[:-2]) == 1 and not (flipped is not None and flipped.value)


def _output_constants(op: Op) -> list[int]:
    """Positions of the constants of `op` that its output's channels are proportional to."""
    if weight_axis(op) is not None:
        return [1, 2] if len(op.inputs) > 2 and op.inputs[2] is not None else [1]
    if op.type in _NORMS:
        places = [i for i in range(1, len(op.inputs)) if op.inputs[i] is not None]
        return places if places and role(op, 1) is Role.GAMMA else []
    if op.type == "ElementWiseMultiply":
        size = op.outputs[0].shape[-1:]
        return [i for i, t in enumerate(op.inputs) if t is not None and t.kind is TensorKind.STATIC and t.shape == size]
    return []


def _input_channels(op: Op, tensor: Tensor, channels: Array) -> Array | None:
    """The span's channel of each channel of input 0 of an op with weights."""
    if op.type == "FullyConnected":
        weight = op.inputs[1]
        assert weight is not None
        width = weight.shape[1]
        flat = _reshaped(channels, tensor.shape, (math.prod(tensor.shape) // width, width))
        if flat is None:
            return None
        channels, size = _tight(flat), width
    else:
        size = tensor.shape[-1]
    if not _last_only(channels):
        return None
    own = np.broadcast_to(channels.reshape(-1), (size,))
    return own if by_input_channel(op, own) is not None or op.type.startswith("TransposeConv") else None


# ---------------------------------------------------------------- what commutes with a scale


def _tied(op: Op, tensor: Tensor, channels: Array, clamps: bool) -> list[tuple[Tensor, Array]] | None:
    """The other tensors of `op` that a scale of `tensor` carries over to, with their channels; None: it does not."""
    rule = _rule(op, clamps)
    return None if rule is None else rule(op, tensor, channels)


_Rule = Callable[[Op, Tensor, Array], "list[tuple[Tensor, Array]] | None"]


def _rule(op: Op, clamps: bool) -> _Rule | None:
    neuron = op.params.get("operation") if op.type == "ElementWiseNeuron" else None
    if op.type in _HOMOGENEOUS or (neuron is not None and neuron.value in _HOMOGENEOUS_NEURONS):
        return _same
    if op.type in _CLAMPS:
        low = op.params.get("min_value")
        return _same if clamps and (low is None or float(low.value) == 0) else None
    table: tuple[tuple[frozenset[str], _Rule], ...] = (
        (_TIES, _all_same), (_SCALES, _scaled), (_SPATIAL, _spatial), (_REDUCES, _reduced), (_RESHAPES, _reshape),
        (frozenset(("Transpose",)), _transpose), (frozenset(("MatMul",)), _matmul),
    )  # fmt: skip
    return next((rule for types, rule in table if op.type in types), None)


def _first(op: Op) -> Tensor:
    tensor = op.inputs[0]
    assert tensor is not None
    return tensor


def _others(op: Op, tensor: Tensor) -> Iterator[Tensor]:
    """Input 0 and the outputs, without `tensor`."""
    return (t for t in (_first(op), *op.outputs) if t is not tensor)


def _same(op: Op, tensor: Tensor, channels: Array) -> list[tuple[Tensor, Array]] | None:
    """Element by element from input 0; other inputs are constants (slopes)."""
    if any(t is not None and t.kind is not TensorKind.STATIC for t in op.inputs[1:]) or tensor in op.inputs[1:]:
        return None
    return [(other, channels) for other in _others(op, tensor)]


def _all_same(op: Op, tensor: Tensor, channels: Array) -> list[tuple[Tensor, Array]] | None:
    """Both operands and the result have one scale; zero as an operand has any."""
    tied: list[tuple[Tensor, Array]] = []
    for other in (*op.inputs, *op.outputs):
        if other is None or other is tensor:
            continue
        if other.kind is TensorKind.STATIC:
            if other.data is None or np.any(np.asarray(other.data)):
                return None
        elif other.shape != tensor.shape:
            return None
        else:
            tied.append((other, channels))
    return tied


def _scaled(op: Op, tensor: Tensor, channels: Array) -> list[tuple[Tensor, Array]] | None:
    """A factor of a product, or a dividend; the other operand keeps its scale."""
    result = op.outputs[0]
    places = [i for i, t in enumerate(op.inputs) if t is tensor]
    if tensor is result:  # backwards only where one operand is computed
        computed = [i for i, t in enumerate(op.inputs) if t is not None and t.kind is not TensorKind.STATIC]
        source = op.inputs[computed[0]] if len(computed) == 1 else None
        places, pair = computed, source
    else:
        source, pair = tensor, result
    if source is None or pair is None or len(places) != 1 or source.shape != result.shape:
        return None
    if op.type == "ElementWiseDivide" and places != [0]:
        return None
    return [(pair, channels)]


def _spatial(op: Op, tensor: Tensor, channels: Array) -> list[tuple[Tensor, Array]] | None:
    """Axes whose extent the op changes, and all but the last of a pool, must not tell channels apart."""
    if op.type == "Pad" and not _pads_zero(op):
        return None
    others = list(_others(op, tensor))
    for other in others:
        if other.rank != tensor.rank:
            return None
        for axis in range(tensor.rank):
            moved = other.shape[axis] != tensor.shape[axis] or (
                axis < tensor.rank - 1 and op.type not in ("StridedSlice", "Split", "Tile", "Pad")
            )
            if channels.shape[axis] > 1 and moved:
                return None
    if op.type == "StridedSlice" and not _keeps_order(op, channels):
        return None
    return [(other, channels) for other in others]


def _keeps_order(op: Op, channels: Array) -> bool:
    """Whether a slice takes the axes that tell channels apart wholly and forwards."""
    ranges = np.asarray(op.params["ranges"].value)
    return all(int(ranges[axis, 2]) == 1 for axis in range(channels.ndim) if channels.shape[axis] > 1)


def _pads_zero(op: Op) -> bool:
    scheme, value = op.params.get("scheme"), op.params.get("pad_constant_value")
    constant = scheme is None or scheme.value == 0
    return not constant or value is None or not np.any(np.asarray(value.value))


def _reduced(op: Op, tensor: Tensor, channels: Array) -> list[tuple[Tensor, Array]] | None:
    source, result = _first(op), op.outputs[0]
    axes = sorted(int(a) % source.rank for a in np.asarray(op.params["axes"].value).reshape(-1))
    if tensor is source:
        if any(channels.shape[axis] > 1 for axis in axes):
            return None
        return [(result, channels if result.rank == source.rank else np.squeeze(channels, tuple(axes)))]
    if result.rank == source.rank:
        return [(source, channels)]
    for axis in axes:
        channels = np.expand_dims(channels, axis)
    return [(source, channels)]


def _reshape(op: Op, tensor: Tensor, channels: Array) -> list[tuple[Tensor, Array]] | None:
    tied = []
    for other in _others(op, tensor):
        found = _reshaped(channels, tensor.shape, other.shape)
        if found is None:
            return None
        tied.append((other, found))
    return tied


def _reshaped(channels: Array, shape: tuple[int, ...], to: tuple[int, ...]) -> Array | None:
    """The channels of a tensor of `shape` once it is reshaped `to`; runs of axes of equal size change by themselves."""
    parts: list[tuple[int, ...]] = []
    i = j = 0
    while i < len(shape) or j < len(to):
        first, last, size, other = i, j, 1, 1
        while size != other or first == i and last == j:
            if (size <= other and i < len(shape)) or j >= len(to):
                if i >= len(shape):
                    return None
                size, i = size * shape[i], i + 1
            else:
                other, j = other * to[j], j + 1
        parts.append((first, i, last, j))
    offset = channels.shape
    wanted: list[int] = []
    grown: list[int] = []
    for first, i, last, j in parts:
        plain = all(extent == 1 for extent in offset[first:i])
        grown += [1] * (i - first) if plain else list(shape[first:i])
        wanted += [1] * (j - last) if plain else list(to[last:j])
    if math.prod(grown) > _MOST_INDICES:
        return None
    return np.broadcast_to(channels, grown).reshape(wanted)


def _transpose(op: Op, tensor: Tensor, channels: Array) -> list[tuple[Tensor, Array]] | None:
    perm = [int(a) for a in np.asarray(op.params["perm"].value)]
    if tensor is op.outputs[0]:
        return [(_first(op), channels.transpose(np.argsort(perm)))]
    return [(op.outputs[0], channels.transpose(perm))]


def _matmul(op: Op, tensor: Tensor, channels: Array) -> list[tuple[Tensor, Array]] | None:
    """A product of two computed matrices: rows of the first and columns of the second keep their scale."""
    places = [i for i, t in enumerate(op.inputs[:2]) if t is tensor]
    if len(places) != 1 or any(
        p is not None and p.value for p in map(op.params.get, ("transpose_in0", "transpose_in1"))
    ):
        return None
    result = op.outputs[0]
    summed = -1 if places[0] == 0 else -2
    if channels.shape[summed] > 1 or tensor.rank != result.rank or tensor.shape[:-2] != result.shape[:-2]:
        return None
    return [(result, channels)]


def _tight(channels: Array) -> Array:
    """Without extents along which nothing changes."""
    for axis in range(channels.ndim):
        if channels.shape[axis] > 1:
            one = np.take(channels, [0], axis=axis)
            if np.array_equal(np.broadcast_to(one, channels.shape), channels):
                channels = one
    return channels


# ---------------------------------------------------------------- weights


def constant(op: Op, index: int) -> Array:
    """The values of a static input, float64."""
    tensor = op.inputs[index]
    assert tensor is not None
    assert tensor.data is not None
    return np.asarray(tensor.data, np.float64)


def put_constant(op: Op, index: int, values: Array) -> None:
    """A new static tensor of the same name and dtype with other values."""
    tensor = op.inputs[index]
    assert tensor is not None
    op.inputs[index] = replace(tensor, data=np.ascontiguousarray(values, tensor.dtype.numpy))


def scale_constant(op: Op, index: int, factors: Array) -> None:
    """Multiply weight, bias, gamma or beta by a factor for each output channel."""
    values = constant(op, index)
    axis = weight_axis(op) if index == 1 and weight_axis(op) is not None else values.ndim - 1
    assert axis is not None
    put_constant(op, index, values * over_outputs(factors, axis, values.ndim))


def over_outputs(factors: Array, axis: int | None, rank: int) -> Array:
    """A vector laid along `axis` of `rank` axes; one value where there is no axis."""
    return factors.reshape([-1 if a == axis else 1 for a in range(rank)])


def over_inputs(op: Op, factors: Array) -> Array:
    """Figures of the channels of input 0, broadcastable onto the weight."""
    if op.type.startswith("TransposeConv"):
        return factors[:, None]
    found = by_input_channel(op, factors)
    assert found is not None
    return found


def scale_inputs(op: Op, factors: Array) -> None:
    """Multiply the weight of `op` by a factor for each channel of its input."""
    put_constant(op, 1, constant(op, 1) * over_inputs(op, factors))


def by_inputs(op: Op, values: Array, channels: int) -> Array:
    """The largest of `values` (as the weight is laid out, kernel axes may be 1) for each of the input's channels."""
    if op.type == "FullyConnected":
        return np.asarray(values.max(axis=0))
    if op.type == "MatMul":
        matrix = values.reshape(values.shape[-2:])
        return np.asarray(matrix.max(axis=0 if weight_axis(op) == values.ndim - 2 else 1))
    flat = values.reshape(-1, *values.shape[-2:]).max(axis=0)  # [in of a group, out]
    if op.type.startswith("DepthWise"):
        return np.asarray(flat.reshape(channels, -1).max(axis=1))
    if op.type.startswith("TransposeConv"):
        return np.asarray(flat.max(axis=1))
    inner, outer = flat.shape
    return np.asarray(flat.reshape(inner, channels // inner, -1).max(axis=2).T.reshape(-1))

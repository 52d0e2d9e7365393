# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""What the tensors of a QNN op are to quantization: tables, and the groups of tensors that share an encoding.

Facts: shared/reference/qnn_opdefs.json (positions, HTP's dtype rows), qnn_more.md section 2 (channel axes).
"""

from __future__ import annotations

import enum
from collections.abc import Container, Iterator

import numpy as np

from npukit.qnn.graph import Array, Graph, Op, Tensor, TensorKind


class Role(enum.Enum):
    """What a floating-point input is to its op."""

    DATA = "data"
    WEIGHT = "weight"
    BIAS = "bias"
    GAMMA = "gamma"
    BETA = "beta"


# Channel axis of the weights (input 1) as QNN lays them out: [*kernel, in, out], or [out, in].
_WEIGHT_AXIS = {
    "Conv1d": 2,
    "Conv2d": 3,
    "Conv3d": 4,
    "DepthWiseConv1d": 2,
    "DepthWiseConv2d": 3,
    "TransposeConv1d": 2,
    "TransposeConv2d": 3,
    "TransposeConv3d": 4,
    "FullyConnected": 0,
}
CONVOLUTIONS = frozenset(_WEIGHT_AXIS) - {"FullyConnected"}
_NORMS = frozenset(("LayerNorm", "RmsNorm", "InstanceNorm", "GroupNorm", "Batchnorm"))
# Ops whose result depends on the dtype itself and not on the real value: they see floats.
FLOAT_ONLY = frozenset(("Cast", "IsNan", "IsInf", "Quantize", "Dequantize", "Convert"))
# Whether two values are the same is another question once they are rounded: what these compare stays in float.
EXACT = frozenset(("ElementWiseEqual", "ElementWiseNotEqual"))
# One data input, moved without computing: input and output share one encoding, so that codes are only copied.
MOVES = frozenset(
    ("Reshape", "Transpose", "StridedSlice", "Split", "Gather", "GatherElements", "GatherNd", "Tile", "UnPack")
    + ("ExpandDims", "Squeeze", "DepthToSpace", "SpaceToDepth", "BatchToSpace", "SpaceToBatch", "PoolMax2d")
    + ("PoolMax3d", "ResizeNearestNeighbor", "ChannelShuffle", "TopK")
)
# Of these the output holds each element of the input once, in another order.
_REORDERS = frozenset(
    ("Reshape", "Transpose", "ExpandDims", "Squeeze", "DepthToSpace", "SpaceToDepth", "ChannelShuffle")
)  # fmt: skip
# Several data inputs that are put together: those that go nowhere else are made in the result's encoding.
_JOINS = frozenset(("Concat", "Pack"))
# Inputs that HTP takes in 16 bits only with offset -32768 (its validation says so, and refuses others).
_CENTRED_16 = frozenset((op, 1) for op in ("MatMul", "FullyConnected", "Conv2d", "DepthWiseConv2d", "LayerNorm"))
_CENTRED_16_RESULTS = frozenset(("Tanh",))  # and results; ElementWiseNeuron TANH takes any
_CLAMPS = frozenset(("Relu", "Relu1", "Relu6", "ReluMinMax"))
_LIMITS = {"Relu": (0.0, np.inf), "Relu1": (-1.0, 1.0), "Relu6": (0.0, 6.0)}
_CONSTANT = 0  # Pad's `scheme`
_NEVER = 1e4  # padding beyond this only says "not this one", to a maximum: the lowest code does too
_CLAMPING_NEURONS = (4, 5)  # RELU and RELU_MIN_MAX of ElementWiseNeuron's `operation`


def weight_axis(op: Op) -> int | None:
    """The channel axis of input 1 where that is a weight, else None."""
    weight = op.inputs[1] if len(op.inputs) > 1 else None
    if weight is None or weight.kind is not TensorKind.STATIC:
        return None
    if op.type == "MatMul":
        transposed = op.params.get("transpose_in1")
        return weight.rank - (2 if transposed is not None and transposed.value else 1)
    return _WEIGHT_AXIS.get(op.type)


def role(op: Op, index: int) -> Role:
    """What input `index` is to `op`."""
    if weight_axis(op) is not None:
        return (Role.DATA, Role.WEIGHT, Role.BIAS)[min(index, 2)]
    tensor = op.inputs[index]
    if op.type in _NORMS and index in (1, 2) and tensor is not None and tensor.kind is TensorKind.STATIC:
        return Role.GAMMA if index == 1 else Role.BETA
    return Role.DATA


def table(op: Op) -> Tensor | None:
    """The constant of real numbers that `op` moves elements of, as an embedding does, else None."""
    source = op.inputs[0] if op.type in MOVES and op.inputs else None
    return source if source is not None and source.kind is TensorKind.STATIC and is_real(source) else None


def same_values(graph: Graph) -> dict[str, str]:
    """Computed tensors that hold another one's values in another order, and the first that holds them."""
    found: dict[str, str] = {}
    for op in graph.ops:
        source = op.inputs[0] if op.type in _REORDERS and op.inputs else None
        if source is not None and source.kind is not TensorKind.STATIC:
            found[op.outputs[0].name] = found.get(source.name, source.name)
    return found


def data_inputs(op: Op) -> Iterator[tuple[int, Tensor]]:
    """Computed floating-point inputs with their positions."""
    for index, tensor in enumerate(op.inputs):
        if tensor is not None and tensor.kind is not TensorKind.STATIC and is_real(tensor):
            yield index, tensor


def is_real(tensor: Tensor) -> bool:
    """Whether the elements stand for real numbers: floats, or codes of an encoding."""
    return tensor.dtype.is_float or tensor.dtype.is_quantized


def activations(graph: Graph) -> list[Tensor]:
    """The computed tensors and graph inputs that stand for real numbers, in the graph's order."""
    return [t for t in graph.tensors() if t.kind is not TensorKind.STATIC and is_real(t)]


def is_clamp(op: Op) -> bool:
    """Whether `op` cuts its input at constants, which a saturating encoding of the input does as well."""
    neuron = op.params.get("operation") if op.type == "ElementWiseNeuron" else None
    return op.type in _CLAMPS or (neuron is not None and neuron.value in _CLAMPING_NEURONS)


def clamp_limits(op: Op) -> tuple[float, float] | None:
    """The least and the greatest value that a clamp gives (infinity for none); None for another op."""
    if not is_clamp(op):
        return None
    given = [op.params.get(name) for name in ("min_value", "max_value")]
    if op.type in _LIMITS:
        return _LIMITS[op.type]
    low, high = (None if param is None else float(np.asarray(param.value)) for param in given)
    return (0.0, np.inf) if low is None or high is None else (low, high)


def pad_value(op: Op) -> float | None:
    """What a Pad of computed floats fills in, None for another op or scheme. Input and output share an encoding."""
    source, scheme = op.inputs[0] if op.inputs else None, op.params.get("scheme")
    if op.type != "Pad" or source is None or not is_real(source) or scheme is None or scheme.value != _CONSTANT:
        return None
    value = op.params.get("pad_constant_value")
    return 0.0 if value is None else float(np.asarray(value.value))


def _first(op: Op) -> Tensor:
    source = op.inputs[0]
    assert source is not None
    return source


def by_input_channel(op: Op, values: Array) -> Array | None:
    """Figures [C] of the channels of `op`'s input, broadcastable onto its weight; None where that has no such axis."""
    weight = op.inputs[1]
    assert weight is not None
    if op.type == "FullyConnected":
        return values[None, :] if weight.shape[1] == len(values) else None
    if op.type == "MatMul":
        flipped = op.params.get("transpose_in1")
        turned = flipped is not None and bool(flipped.value)
        return values[None, :] if turned else values[:, None]
    if op.type.startswith("DepthWise"):  # [*kernel, 1, C * multiplier]
        times, rest = divmod(weight.shape[-1], len(values))
        return np.repeat(values, times) if not rest else None
    if op.type.startswith("TransposeConv"):
        return None
    inner, outer = weight.shape[-2:]
    groups, rest = divmod(len(values), inner)
    if rest or outer % groups:
        return None
    if groups == 1:
        return values[:, None]
    return np.repeat(values.reshape(groups, inner).T, outer // groups, axis=1)  # [in of a group, out]


class Groups:
    """Tensors that share one encoding.

    What only moves shares by necessity. What feeds nothing but a clamp or a Concat is made in the result's encoding:
    the rest of its own range would be cut off or rounded again, so its own range does not count; nor does that of the
    same values in another order.

    Args:
        graph: a float graph.
        fixed: tensors whose encoding the user gave: they follow none.
    """

    def __init__(self, graph: Graph, fixed: Container[Tensor] = ()) -> None:
        self._parent: dict[int, int] = {}
        self._tensors: dict[int, Tensor] = {}
        self._follows: set[int] = set()
        users: dict[int, int] = {}
        for op in graph.ops:
            for tensor in {id(t): t for t in op.inputs if t is not None}.values():
                users[id(tensor)] = users.get(id(tensor), 0) + 1
        tables: list[tuple[Tensor, Tensor]] = []
        centred: list[Tensor] = []
        outside = {id(t) for t in (*graph.inputs, *graph.outputs)}
        for tensor in activations(graph):
            self._parent[id(tensor)] = id(tensor)
            self._tensors[id(tensor)] = tensor
        for op in graph.ops:
            tables += [(op.outputs[0], source)] if (source := table(op)) is not None else []
            centred += [t for i, t in data_inputs(op) if (op.type, i) in _CENTRED_16]
            centred += op.outputs if op.type in _CENTRED_16_RESULTS else ()
            joined = op.type in _JOINS or is_clamp(op)
            padding = pad_value(op)
            if padding is not None:
                self._join(_first(op), op.outputs[0])
                if abs(padding) > _NEVER:
                    self._follows.add(id(op.outputs[0]))
            if op.type not in MOVES and not joined:
                continue
            for index, tensor in data_inputs(op):
                alone = users[id(tensor)] == 1 and id(tensor) not in outside and tensor not in fixed
                if op.type in MOVES and index == 0:
                    for output in op.outputs:
                        self._join(tensor, output)
                    if op.type in _REORDERS:
                        self._follows.add(id(op.outputs[0]))
                elif joined and alone:
                    self._follows.add(id(tensor))
                    self._join(tensor, op.outputs[0])
        self._members: dict[int, list[Tensor]] = {}
        for key, tensor in self._tensors.items():
            self._members.setdefault(self._find(key), []).append(tensor)
        self._tables: dict[int, list[Tensor]] = {}
        for tensor, source in tables:
            self._tables.setdefault(self._find(id(tensor)), []).append(source)
        self._centred = {self._find(id(tensor)) for tensor in centred}

    def _find(self, key: int) -> int:
        while self._parent[key] != key:
            self._parent[key] = self._parent[self._parent[key]]
            key = self._parent[key]
        return key

    def _join(self, tensor: Tensor, other: Tensor) -> None:
        if id(tensor) in self._parent and id(other) in self._parent:
            self._parent[self._find(id(tensor))] = self._find(id(other))

    def of(self, tensor: Tensor) -> list[Tensor]:
        """The tensors that share `tensor`'s encoding, itself among them, in the graph's order."""
        return self._members.get(self._find(id(tensor)), [tensor])

    def key(self, tensor: Tensor) -> int:
        """What all tensors of a group have in common."""
        return self._find(id(tensor))

    def tables(self, tensor: Tensor) -> list[Tensor]:
        """Constants whose elements the group's tensors are."""
        return self._tables.get(self._find(id(tensor)), [])

    def centred(self, tensor: Tensor, bits: int) -> bool:
        """Whether an op takes the group in `bits` only with zero in the middle of the codes."""
        return bits == 16 and self._find(id(tensor)) in self._centred

    def deciding(self, tensor: Tensor) -> list[Tensor]:
        """Those of the group whose ranges count: a clamp's input does not, its output does."""
        members = self.of(tensor)
        return [t for t in members if id(t) not in self._follows] or members

    def all_deciding(self) -> list[Tensor]:
        """The tensors of all groups whose ranges count: those that a calibration has to observe."""
        found = {id(t) for members in self._members.values() for t in self.deciding(members[0])}
        return [tensor for key, tensor in self._tensors.items() if key in found]

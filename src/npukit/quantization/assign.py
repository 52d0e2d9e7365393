# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""A float graph and a plan become a quantized graph that the targets take.

A plan gives each computed tensor a precision: 8 or 16 bits, or float (0). An op computes in the finest precision
among its tensors; where a target's own validation refuses that, in the next finer one. At a border stands one
Convert, Quantize or Dequantize for all that read it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

import numpy as np

from npukit.lowering.holding import validation_key
from npukit.qnn.graph import Array, DType, Encoding, Graph, Op, Param, Tensor, TensorKind
from npukit.qnn.names import Names
from npukit.quantization import ranges
from npukit.quantization.capabilities import unreliable
from npukit.quantization.roles import (
    EXACT,
    FLOAT_ONLY,
    Groups,
    Role,
    activations,
    data_inputs,
    is_real,
    pad_value,
    role,
    table,
    weight_axis,
)
from npukit.targets import TARGETS

FLOAT = 0
_ORDER = {8: 0, 16: 1, FLOAT: 2}
ACTIVATION = {8: DType.UFIXED_POINT_8, 16: DType.UFIXED_POINT_16}
WEIGHT = {4: DType.SFIXED_POINT_8, 8: DType.SFIXED_POINT_8, 16: DType.SFIXED_POINT_16}
# What a norm's gamma and beta may be, best first: (bits, symmetric, signed). Beta with 32 bits spends 16 on the
# largest magnitude, the others are left to the op's accumulation.
_GAMMA = {8: ((8, False, False),), 16: ((16, True, False), (8, False, False))}
_BETA = ((32, True, True), (16, False, False), (8, False, False))

Validator = Callable[[Op], str | None]


def finest(precisions: Sequence[int]) -> int:
    """The finest of several precisions: float before 16 before 8 bits."""
    return max(precisions, key=_ORDER.__getitem__)


def block_axis(op: Op, block: int) -> int | None:
    """The axis of input channels that blocks of a weight run along; None where HTP does not compute them right."""
    axis, weight = weight_axis(op), op.inputs[1]
    if axis is None or weight is None or op.type not in ("FullyConnected", "MatMul", "Conv2d"):
        return None
    along = axis - 1 if axis > 0 else 1
    group = op.params.get("group")
    if any(dim != 1 for at, dim in enumerate(weight.shape) if at not in (axis, along)):
        return None
    if (group is not None and group.value != 1) or weight.shape[along] % block:
        return None
    return along


class Encodings(Protocol):
    """Where encodings come from: calibration and overrides, or dummies for asking a target."""

    def activation(self, tensor: Tensor, bits: int) -> Encoding:
        """The per-tensor encoding of a computed tensor at 8 or 16 bits."""

    def weight(self, op: Op, axis: int | None, bits: int, block: int = 0) -> tuple[Array, Encoding]:
        """Codes and encoding of input 1 of `op`; `axis` None: per tensor; `block`: LPBQ with blocks of that size."""

    def reach(self, constant: Tensor, bits: int) -> ranges.Range:
        """The values of a constant operand that matter in `bits`."""

    def asked(self, constant: Tensor) -> tuple[DType, Encoding] | None:
        """The encoding that the user gave a constant, None without."""

    def bias(self, op: Op, weight: Tensor) -> Array:
        """Real values [C] of input 2 of `op`, whose quantized weight is `weight`."""

    def given(self, op: Op, dtype: DType, encoding: Encoding) -> Array:
        """Codes of input 1 of `op` in an encoding that was asked for."""

    def coded(self, constant: Tensor, dtype: DType, encoding: Encoding) -> Array:
        """The codes of a constant operand, in its shape."""


@dataclass
class Plan:
    """Which precision each tensor and weight has.

    Attributes:
        activations: precision of a tensor that `tensors` does not name: 8, 16 or FLOAT.
        weights: bits of a weight that `ops` does not name: 4, 8 or 16.
        per_channel: weights of convolutions have a scale for each output channel.
        per_row: those of FullyConnected and MatMul too.
        block: weights of 4 bits are block-wise (LPBQ) with blocks of this size where they can be; 0 for none.
        bias: bits of a bias, 8 or 32; 32 where a target refuses 8, as HTP does with weights per channel.
        tensors: precision by tensor name; what is named here is held so, whatever its op computes in.
        ops: weight bits by op name.
        floats: names of ops that compute in float.
        float_io: graph inputs and outputs stay float.
    """

    activations: int = 8
    weights: int = 8
    per_channel: bool = True
    per_row: bool = True
    block: int = 0
    bias: int = 32
    tensors: dict[str, int] = field(default_factory=dict)
    ops: dict[str, int] = field(default_factory=dict)
    floats: frozenset[str] = frozenset()
    float_io: bool = False


@dataclass
class Assigned:
    """A quantized graph.

    Attributes:
        graph: the new graph; the float graph is untouched.
        precisions: op name -> precision that it computes in.
        refused: op name -> why it could not compute in what was planned.
        stored: tensor name -> precision that the new graph holds it in.
    """

    graph: Graph
    precisions: dict[str, int]
    refused: dict[str, str]
    stored: dict[str, int]


class Legal:
    """What the targets take, asked of their own validation and remembered.

    Args:
        validators: by name of the target.
        trusting: take what HTP's validation accepts and HTP is known to compute wrongly.
    """

    def __init__(self, validators: Mapping[str, Validator], *, trusting: bool = False) -> None:
        self._validators = validators
        self._htp = not trusting and any(n not in TARGETS or TARGETS[n].backend == "qnn-htp" for n in validators)
        self._verdicts: dict[object, str] = {}

    def refusal(self, op: Op) -> str:
        """Why a target refuses `op`; empty where all accept it."""
        key = (op.type, validation_key(op))
        if key not in self._verdicts:
            texts = (f"{name}: {text}" for name, check in self._validators.items() if (text := check(op)))
            self._verdicts[key] = next(texts, "") or (unreliable(op) if self._htp else "")
        return self._verdicts[key]

    def validators(self) -> dict[str, Validator]:
        """For lowering a float graph that will be quantized: an op is accepted where one of its forms is."""
        return {name: _accepting(check) for name, check in self._validators.items()}


def _accepting(check: Validator) -> Validator:
    """Accepts a float op where the target takes it on 8-bit codes, on 16-bit codes, or in float."""

    def accept(op: Op) -> str | None:
        text = check(op)
        if text is None:
            return None
        graph = Graph("asked", [t for t in op.inputs if t is not None], list(op.outputs), [op])
        legal = Legal({"": check})
        assigned = assign(graph, Plan(), Dummies(), legal)
        return None if assigned.precisions.get(op.name) else text

    return accept


class Dummies:
    """Encodings of no meaning: what a target's validation accepts does not depend on their values."""

    def activation(self, tensor: Tensor, bits: int) -> Encoding:
        """Some asymmetric encoding."""
        del tensor
        return Encoding.per_tensor(2.0**-bits, -(1 << (bits - 1)))

    def weight(self, op: Op, axis: int | None, bits: int, block: int = 0) -> tuple[Array, Encoding]:
        """Zeros."""
        source = op.inputs[1]
        assert source is not None
        assert not block
        count = 1 if axis is None else source.shape[axis]
        encoding = Encoding((0.01,) * count, (0,) * count, axis=axis, bitwidth=4 if bits == 4 else 0)
        return np.broadcast_to(np.int8(0), source.shape), encoding

    def reach(self, constant: Tensor, bits: int) -> ranges.Range:
        """Some range."""
        del constant, bits
        return ranges.Range(-1.0, 1.0)

    def asked(self, constant: Tensor) -> None:
        """Nothing was asked for."""

    def bias(self, op: Op, weight: Tensor) -> Array:
        """Zeros."""
        del weight
        source = op.inputs[2]
        assert source is not None
        return np.zeros(source.shape)

    def given(self, op: Op, dtype: DType, encoding: Encoding) -> Array:
        """The nearest ones."""
        weight = op.inputs[1]
        assert weight is not None
        return self.coded(weight, dtype, encoding)

    def coded(self, constant: Tensor, dtype: DType, encoding: Encoding) -> Array:
        """The nearest ones."""
        return ranges.codes(np.asarray(constant.data, np.float32), encoding, dtype)


def assign(graph: Graph, plan: Plan, encodings: Encodings, legal: Legal, groups: Groups | None = None) -> Assigned:
    """Quantize `graph` (floats held as FLOAT_32 or FLOAT_16) by `plan`; what the targets refuse runs finer.

    Raises:
        NpukitError: what `encodings` raises for a tensor that has none.
    """
    return _Assignment(graph, plan, encodings, legal, groups or Groups(graph)).run()


def _unsigned(dtype: DType, encoding: Encoding) -> tuple[DType, Encoding]:
    """The same real values in codes without sign, which HTP takes of every operand that is no weight."""
    if dtype not in (DType.SFIXED_POINT_8, DType.SFIXED_POINT_16) or encoding.axis is not None:
        return dtype, encoding
    return ACTIVATION[dtype.bits], Encoding.per_tensor(encoding.scale, encoding.offset - (1 << (dtype.bits - 1)))


class _Assignment:
    def __init__(self, graph: Graph, plan: Plan, encodings: Encodings, legal: Legal, groups: Groups) -> None:
        self._graph, self._plan, self._encodings, self._legal, self._groups = graph, plan, encodings, legal, groups
        self._names = Names()
        for name in (*(t.name for t in graph.tensors()), *(op.name for op in graph.ops)):
            self._names.legal(name)
        self._made: dict[tuple[int, object], Tensor] = {}
        self._io = {id(t) for t in (*graph.inputs, *graph.outputs)}
        self._users: dict[int, list[Op]] = {}
        for op in graph.ops:
            for _, tensor in data_inputs(op):
                self._users.setdefault(id(tensor), []).append(op)
        self._planned = self._plan_groups()
        self._stored: dict[int, int] = {}
        self._refused: dict[str, str] = {}
        self._out = Graph(graph.name)

    def run(self) -> Assigned:
        chosen = {id(op): self._choose(op) for op in self._graph.ops}
        precisions = {id(op): precision for op in self._graph.ops if (precision := chosen[id(op)][0]) is not None}
        for tensor in self._graph.inputs:
            self._stored[id(tensor)] = self._wanted(tensor)
        for op in self._graph.ops:
            for tensor in op.outputs:
                self._stored[id(tensor)] = self._storage(tensor, chosen[id(op)][0], precisions)
        self._out.inputs = [self._own(tensor) for tensor in self._graph.inputs]
        for op in self._graph.ops:
            self._emit(op, *chosen[id(op)])
        self._out.outputs = [self._own(tensor) for tensor in self._graph.outputs]
        stored = {t.name: self._stored[id(t)] for t in activations(self._graph)}
        by_name = {op.name: precisions[id(op)] for op in self._graph.ops if id(op) in precisions}
        return Assigned(self._out, by_name, self._refused, stored)

    def _plan_groups(self) -> dict[int, int]:
        """The precision of each group: the finest that one of its tensors asks for."""
        found: dict[int, int] = {}
        exact = {id(tensor) for op in self._graph.ops if op.type in EXACT for _, tensor in data_inputs(op)}
        for tensor in activations(self._graph):
            key = self._groups.key(tensor)
            planned = FLOAT if id(tensor) in exact else self._plan.activations
            wanted = self._plan.tensors.get(tensor.name, planned)
            found[key] = finest([wanted, found[key]]) if key in found else wanted
        return found

    def _wanted(self, tensor: Tensor) -> int:
        """The precision that a computed tensor is to be held in."""
        if not is_real(tensor) or (self._plan.float_io and id(tensor) in self._io):
            return FLOAT
        return self._planned[self._groups.key(tensor)]

    def _storage(self, tensor: Tensor, made: int | None, precisions: Mapping[int, int]) -> int:
        """`_wanted`, or what its op makes where all readers want it that fine: no way down and up again."""
        wanted = self._wanted(tensor)
        fixed = id(tensor) in self._io or tensor.name in self._plan.tensors
        if made is None or _ORDER[made] <= _ORDER[wanted] or fixed:
            return wanted
        readers = [precisions[id(op)] for op in self._users.get(id(tensor), ())]
        return made if readers and all(_ORDER[reader] >= _ORDER[made] for reader in readers) else wanted

    # -- ops ---------------------------------------------------------------------------------------------------

    def _choose(self, op: Op) -> tuple[int | None, Op]:
        """The precision that `op` computes in and its form there; None for an op without real numbers."""
        inputs = [tensor for _, tensor in data_inputs(op)]
        reals = [*inputs, *(t for t in op.outputs if is_real(t))]
        if not reals:
            return None, op
        if (inputs or table(op) is not None) and op.type not in FLOAT_ONLY and op.name not in self._plan.floats:
            wanted = finest([self._planned[self._groups.key(tensor)] for tensor in reals])
            for precision in (8, 16):
                if _ORDER[precision] < _ORDER[wanted]:
                    continue
                for form in self._forms(op, precision):
                    text = self._legal.refusal(form)
                    if not text:
                        return precision, form
                    self._refused.setdefault(op.name, text)
        return FLOAT, op

    def _forms(self, op: Op, bits: int) -> Iterator[Op]:
        """`op` on codes of `bits`, in order of preference; not yet in the graph."""
        inputs: list[Tensor | None] = []
        for index, tensor in enumerate(op.inputs):
            kind = role(op, index)
            real = tensor is not None and is_real(tensor)
            if tensor is None or not real:
                inputs.append(tensor)
            elif tensor is table(op):
                inputs.append(self._table(tensor, op.outputs[0], bits))
            elif kind is Role.DATA and tensor.kind is TensorKind.STATIC:
                inputs.append(self._constant(tensor, bits))
            elif kind is Role.DATA:
                inputs.append(self._shadow(tensor, bits))
            else:
                inputs.append(None)  # filled in below
        outputs = [self._shadow(t, bits) if is_real(t) else t for t in op.outputs]
        base = replace(op, inputs=inputs, outputs=outputs, params=self._params(op, inputs))
        if weight_axis(op) is not None:
            yield from self._weighted(op, base, bits)
        elif any(role(op, i) is Role.GAMMA for i in range(len(op.inputs))):
            yield from self._normed(op, base, bits)
        else:
            yield base

    def _params(self, op: Op, inputs: Sequence[Tensor | None]) -> dict[str, Param]:
        """The params of `op` on codes: what a Pad fills in is a code as well, the nearest there is."""
        padding, source = pad_value(op), inputs[0] if inputs else None
        if padding is None or source is None or source.encoding is None:
            return op.params
        code = np.rint(padding / source.encoding.scale) - source.encoding.offset
        top = (1 << source.dtype.bits) - 1
        return {**op.params, "pad_constant_value": Param(DType.INT_32, int(np.clip(code, 0, top)))}

    def _weighted(self, op: Op, base: Op, bits: int) -> Iterator[Op]:
        """With a quantized weight and, if the op has one, a bias at the accumulator's scale."""
        wanted = self._plan.ops.get(op.name, self._plan.weights)
        widths = [width for width in (wanted, 8) if width <= bits]
        axis = weight_axis(op)
        by_row = op.type in ("FullyConnected", "MatMul")
        axes = [axis, None] if (self._plan.per_row if by_row else self._plan.per_channel) else [None]
        source = op.inputs[1]
        assert source is not None
        if self._encodings.asked(source) is not None:
            widths, axes = [0], [None]  # as it was asked for, and no other
        biased = len(op.inputs) > 2 and op.inputs[2] is not None
        for width in dict.fromkeys(widths):
            blocks = self._plan.block if width == 4 and axes[0] is not None else 0
            kinds = [(axis, blocks)] if blocks and block_axis(op, blocks) is not None else []
            for place, block in (*kinds, *((place, 0) for place in axes)):
                weight = self._weight(op, place, width, block)
                for bias in dict.fromkeys((self._plan.bias, 32)) if biased else (0,):
                    inputs = [base.inputs[0], weight, *base.inputs[2:]]
                    if biased:
                        assert base.inputs[0] is not None
                        inputs[2] = self._bias(op, base.inputs[0], weight, bias)
                    yield replace(base, inputs=inputs)

    def _normed(self, op: Op, base: Op, bits: int) -> Iterator[Op]:
        for gamma in _GAMMA[bits]:
            for beta in _BETA:
                inputs = list(base.inputs)
                for index, (width, symmetric, signed) in ((1, gamma), (2, beta)):
                    if index < len(op.inputs) and (tensor := op.inputs[index]) is not None:
                        inputs[index] = self._constant(tensor, width, symmetric, signed)
                yield replace(base, inputs=inputs)

    def _emit(self, op: Op, precision: int | None, form: Op) -> None:
        """Append `form` with its real operands, behind the conversions that its inputs need."""
        inputs = list(form.inputs)
        for index, tensor in enumerate(op.inputs):
            if tensor is not None and tensor.kind is not TensorKind.STATIC:
                inputs[index] = self._read(tensor, precision) if is_real(tensor) else self._own(tensor)
            elif tensor is not None and inputs[index] is tensor:
                inputs[index] = self._plain(tensor)
        outputs, after = [], []
        for tensor in op.outputs:
            own = self._own(tensor)
            if not is_real(tensor) or precision is None or self._stored[id(tensor)] == precision:
                outputs.append(own)
            else:
                made = self._other(tensor, precision)  # whoever reads it as fine as this takes it
                if tensor.name in self._plan.tensors:  # but not past the rounding that was asked for
                    del self._made[id(tensor), precision]
                outputs.append(made)
                after.append((made, own))
        self._out.ops.append(replace(form, inputs=inputs, outputs=outputs))
        for source, result in after:
            self._convert(source, result)

    # -- tensors -----------------------------------------------------------------------------------------------

    def _form_of(self, tensor: Tensor, precision: int, name: str) -> Tensor:
        """A new tensor that holds a computed tensor in another precision."""
        if precision == FLOAT or not is_real(tensor):
            return Tensor(name, tensor.dtype, tensor.shape)
        encoding = self._encodings.activation(tensor, precision)
        return Tensor(name, ACTIVATION[precision], tensor.shape, encoding=encoding)

    def _own(self, tensor: Tensor) -> Tensor:
        """The tensor that holds a computed tensor under its own name."""
        key = (id(tensor), self._stored[id(tensor)])
        if key not in self._made:
            made = self._form_of(tensor, key[1], tensor.name)
            made.kind, made.held = tensor.kind, tensor.held
            self._made[key] = made
        return self._made[key]

    def _other(self, tensor: Tensor, precision: int) -> Tensor:
        """The tensor that holds it in a precision that is not the stored one."""
        key = (id(tensor), precision)
        if key not in self._made:
            name = f"{tensor.name}_{'float' if precision == FLOAT else f'u{precision}'}"
            self._made[key] = self._form_of(tensor, precision, self._names.fresh(name))
        return self._made[key]

    def _read(self, tensor: Tensor, precision: int | None) -> Tensor:
        """A computed tensor in the precision that an op reads it in."""
        assert precision is not None
        if precision == self._stored[id(tensor)]:
            return self._own(tensor)
        if (id(tensor), precision) not in self._made:
            self._convert(self._own(tensor), self._other(tensor, precision))
        return self._made[id(tensor), precision]

    def _shadow(self, tensor: Tensor, bits: int) -> Tensor:
        """A tensor only for asking a target."""
        key = (id(tensor), ("shadow", bits))
        if key not in self._made:
            self._made[key] = self._form_of(tensor, bits, tensor.name)
        return self._made[key]

    def _convert(self, source: Tensor, result: Tensor) -> None:
        kinds = {(True, True): "Convert", (True, False): "Dequantize", (False, True): "Quantize"}
        op_type = kinds[source.dtype.is_quantized, result.dtype.is_quantized]
        name = self._names.fresh(f"{result.name}_{op_type.lower()}")
        self._out.ops.append(Op(name, op_type, [source], [result]))

    def _constant(self, tensor: Tensor, bits: int, symmetric: bool = False, signed: bool = False) -> Tensor:
        """A constant operand as codes of its own range."""
        key = (id(tensor), ("constant", bits, symmetric, signed))
        if key not in self._made:
            asked = self._encodings.asked(tensor)
            if asked is None:
                width = min(bits, 16)
                reach = self._encodings.reach(tensor, width)
                encoding = ranges.encoding(reach, width, symmetric=symmetric, signed=signed)
                asked = (DType.SFIXED_POINT_32 if bits == 32 else ACTIVATION[bits]), encoding
            self._made[key] = self._coded(tensor, *_unsigned(*asked))
        return self._made[key]

    def _table(self, source: Tensor, moved: Tensor, bits: int) -> Tensor:
        """A constant that an op moves elements of: in the encoding of what it makes."""
        encoding = self._encodings.activation(moved, bits)
        key = (id(source), ("table", bits, encoding))
        if key not in self._made:
            self._made[key] = self._coded(source, ACTIVATION[bits], encoding)
        return self._made[key]

    def _plain(self, tensor: Tensor) -> Tensor:
        """A constant as it is; under another name where one of its other forms has its own."""
        if not self._taken(tensor):
            return tensor
        key = (id(tensor), "plain")
        if key not in self._made:
            self._made[key] = replace(tensor, name=self._names.fresh(tensor.name))
        return self._made[key]

    def _taken(self, tensor: Tensor) -> bool:
        """Whether another form of this constant has its name already."""
        return any(key[0] == id(tensor) for key in self._made)

    def _weight(self, op: Op, axis: int | None, bits: int, block: int) -> Tensor:
        source = op.inputs[1]
        assert source is not None
        key = (id(source), ("weight", axis, bits, block))
        if key not in self._made:
            asked = self._encodings.asked(source)
            if asked is not None:
                codes = self._encodings.given(op, *asked)
                self._made[key] = self._named(source, *asked, codes)
            else:
                codes, encoding = self._encodings.weight(op, axis, bits, block)
                self._made[key] = self._named(source, WEIGHT[bits], encoding, codes)
        return self._made[key]

    def _coded(self, source: Tensor, dtype: DType, encoding: Encoding) -> Tensor:
        """A constant as codes."""
        return self._named(source, dtype, encoding, self._encodings.coded(source, dtype, encoding))

    def _named(self, source: Tensor, dtype: DType, encoding: Encoding, codes: Array) -> Tensor:
        """A form of a constant, under its own name if no other form has that."""
        name = self._names.fresh(source.name) if self._taken(source) else source.name
        data = codes.astype(dtype.numpy, copy=False)
        return Tensor(name, dtype, source.shape, TensorKind.STATIC, encoding, data, source.held)

    def _bias(self, op: Op, x: Tensor, weight: Tensor, bits: int) -> Tensor:
        """The bias in int32 at the accumulator's scale, scale_x * scale_w, by channel where the weight is; or 8 bits.

        Those are unsigned with one scale, which is the only form that HTP takes.
        """
        source = op.inputs[2]
        assert source is not None
        assert x.encoding is not None
        assert weight.encoding is not None
        key = (id(source), ("bias", op.name, bits, x.encoding, weight.encoding))
        if key not in self._made:
            values = self._encodings.bias(op, weight)
            dtype, encoding = self._encodings.asked(source) or (DType.SFIXED_POINT_32, None)
            if encoding is not None:
                dtype, encoding = _unsigned(dtype, encoding)
            if encoding is None and bits == 8:
                reach = ranges.Range(float(values.min(initial=0.0)), float(values.max(initial=0.0)))
                dtype, encoding = ACTIVATION[8], ranges.encoding(reach, 8)
            if encoding is None:
                scales = np.asarray(weight.encoding.scales, np.float64) * x.encoding.scale
                axis = 0 if len(scales) > 1 else None
                encoding = Encoding(tuple(float(np.float32(s)) for s in scales), (0,) * len(scales), axis=axis)
            self._made[key] = self._named(source, dtype, encoding, ranges.codes(values, encoding, dtype))
        return self._made[key]

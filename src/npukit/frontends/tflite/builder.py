# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""Writes ONNX for TensorFlow Lite operators: values, constants, encodings and the turns around channels-first ops.

A quantized tensor has two values: its codes, and their real numbers behind a DequantizeLinear. Operators compute with
the real numbers and a QuantizeLinear gives the codes back, which is how ONNX says that a tensor has an encoding.
Tensors stay channels last; where an ONNX op wants its channels first, a Transpose stands before and behind it, and the
layout pass of the lowering finds that all of them cancel.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import onnx_ir as ir

from npukit.errors import Fault
from npukit.frontends.tflite.flatfile import BROKEN, Array, OpRecord, Quantization, SubgraphRecord, TensorRecord
from npukit.frontends.tflite.registry import Refused, reader_of

# Operators that are read in all: subgraphs that call one another could make this any number.
MAX_OPERATORS = 200_000
# Elements of a constant that an operator makes from a few numbers of the file: these can be any.
MAX_ELEMENTS = 2**26
_CODES = (ir.DataType.INT8, ir.DataType.UINT8, ir.DataType.INT16)
_RELU_RANGES: dict[int, tuple[float, float]] = {1: (0.0, np.inf), 2: (-1.0, 1.0), 3: (0.0, 6.0)}


@dataclass
class Shared:
    """What the builders of one file have in common.

    Attributes:
        subgraphs: all of the file.
        root: the outermost graph; all constants are there, where the graphs inside see them.
        taken: names of values.
        faults: what cannot be converted.
        notes: what the user should know.
        dynamic_range: whether codes of a constant became floats.
        variables: values of the resource variables that never change, by name.
        read: how many operators were read.
    """

    subgraphs: list[SubgraphRecord]
    root: ir.Graph
    taken: set[str]
    faults: list[Fault] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    dynamic_range: bool = False
    variables: dict[str, Array] = field(default_factory=dict)
    read: int = 0


class Builder:
    """The ONNX graph of one subgraph while it is written, and the operator that is being read.

    Args:
        number: of the subgraph.
        subgraphs: all of the file.
        names: tensors that are inputs or outputs of the model -> their names.
        outer: the builder that reads the operator which calls this subgraph.
        graph: where the nodes go; a new one where None.
    """

    def __init__(
        self,
        number: int,
        subgraphs: list[SubgraphRecord],
        names: dict[int, str],
        outer: Builder | None = None,
        graph: ir.Graph | None = None,
    ) -> None:
        self.source = source = subgraphs[number]
        if graph is None:
            graph = ir.Graph([], [], nodes=[], opset_imports={"": 1}, name=source.name or "main")
        self.graph = graph
        self.op: OpRecord = OpRecord(0, "", 0, False, (), ())
        self.shared: Shared = Shared(subgraphs, graph, set(names.values())) if outer is None else outer.shared
        self.callers: tuple[int, ...] = (number,) if outer is None else (*outer.callers, number)
        self._within = "" if outer is None else f"{outer.prefix}/"
        self._where = "" if outer is None else f"{outer.where}, "
        self.resources: dict[int, str] = {}  # tensors that are variables -> their names
        self.initializes = False  # whether this runs once, before the first run
        self._ports = names
        self._native: dict[int, ir.Value] = {}
        self._real: dict[int, ir.Value] = {}
        self._data: dict[int, Array] = {t.index: t.data for t in source.tensors if t.data is not None}
        self._constants: dict[Any, ir.Value] = {}
        self._serial = 0

    # ------------------------------------------------------------ subgraphs

    def read_operators(self) -> None:
        """Read all operators; what cannot be converted is added to the faults."""
        for op in self.source.ops:
            self.op = op
            self.shared.read += 1
            try:
                if self.shared.read > MAX_OPERATORS:
                    raise Refused(f"with its subgraphs the model has more than {MAX_OPERATORS} operators")
                reader_of(op.code, op.custom)(self)
            except Refused as error:
                self.shared.faults.append(Fault(str(error), self.where, error.hint))
                self.stand_in()
            except BROKEN as error:
                text = " ".join(str(error).split())[:200]
                self.shared.faults.append(Fault(f"it contradicts itself: {text}", self.where))
                self.stand_in()
            if self.shared.read > MAX_OPERATORS:
                return

    @property
    def where(self) -> str:
        """The operator in a message: its number, what it is, and the operators around it."""
        return f"{self._where}operator {self.op.index} ({self.op.code})"

    def called(self, number: int, graph: ir.Graph | None = None) -> Builder:
        """A builder of subgraph `number`, which the operator calls; its nodes go to `graph` (None: a new one).

        Raises:
            Refused: there is no such subgraph, or it is being read already.
        """
        if not 0 <= number < len(self.shared.subgraphs):
            raise Refused(f"it calls subgraph {number} of {len(self.shared.subgraphs)}")
        if number in self.callers:
            raise Refused("it calls a subgraph that it is part of")
        return Builder(number, self.shared.subgraphs, {}, self, graph)

    def hand(self, source: int, to: Builder, index: int) -> None:
        """Make the tensor `source` the tensor `index` of `to`: its constant or resource if it is one, or its value."""
        if source in self.resources:
            to.resources[index] = self.resources[source]
        elif source in self._data:
            to._data[index] = self._data[source]
        else:
            to._native[index] = self.value_of(source)

    def hand_back(self, source: Builder, index: int, i: int) -> None:
        """Make tensor `index` of `source` the operator's output `i`."""
        result = self.result(i)
        if index in source.resources:
            self.resources[result.index] = source.resources[index]
        elif index in source._data and not self._is_port(result):
            self.set_data(result, source._data[index])
        else:
            self.bind_codes(result, source.value_of(index))

    def carried(self, index: int, value: ir.Value) -> None:
        """Make `value` the tensor `index` as the file has it."""
        self._native[index] = value

    def value_of(self, index: int) -> ir.Value:
        """The tensor `index` as the file has it."""
        return self._value(self.source.tensors[index])

    def note(self, text: str) -> None:
        """Tell the user something once."""
        if text not in self.shared.notes:
            self.shared.notes.append(text)

    # ------------------------------------------------------------ tensors of the file

    def tensor(self, i: int) -> TensorRecord:
        """The record of the operator's input `i`."""
        return self.source.tensors[self.op.inputs[i]]

    def result(self, i: int = 0) -> TensorRecord:
        """The record of the operator's output `i`."""
        return self.source.tensors[self.op.outputs[i]]

    def has(self, i: int) -> bool:
        """Whether the operator has input `i`."""
        return i < len(self.op.inputs) and self.op.inputs[i] >= 0

    def shape(self, i: int) -> tuple[int, ...]:
        """Shape of input `i` as the file has it."""
        return self.tensor(i).shape

    def rank(self, i: int = 0) -> int:
        return len(self.shape(i))

    def data(self, i: int) -> Array | None:
        """Input `i` as an array of real numbers where it is constant, else None."""
        if not self.has(i):
            return None
        tensor = self.tensor(i)
        data = self._data.get(tensor.index)
        if data is not None and self.coded(tensor):
            return dequantized(data, self.encoding_of(tensor))
        return data

    def raw_data(self, i: int) -> Array | None:
        """Input `i` as the file holds it where it is constant, else None."""
        return self._data.get(self.tensor(i).index) if self.has(i) else None

    def note_float_weights(self) -> None:
        """Remember that codes of a constant became floats."""
        self.shared.dynamic_range = True

    def ints(self, i: int, what: str) -> list[int]:
        """Constant integers of input `i`. Raises Refused where they are computed."""
        data = self.raw_data(i)
        if data is None:
            raise Refused(f"its {what} is only known when it runs", "make it a constant, or cut the model before it")
        return [int(v) for v in data.reshape(-1)]

    def integers(self, i: int) -> ir.Value:
        """Input `i` as an int64 vector, constant or computed (from shapes, or from a loop's counter)."""
        data = self.raw_data(i)
        if data is not None:
            return self.vector(int(v) for v in data.reshape(-1))
        value = self.cast(self._value(self._need(i)), ir.DataType.INT64)
        return value if self.rank(i) else self.reshape(value, [1])

    def axis(self, value: int, rank: int | None = None) -> int:
        """A non-negative axis of input 0 (or of `rank` axes). Raises Refused where there is none."""
        rank = self.rank() if rank is None else rank
        if not -rank <= value < max(rank, 1):
            raise Refused(f"axis {value} is not one of {rank}")
        return value % max(rank, 1)

    def coded(self, tensor: TensorRecord) -> bool:
        """Whether the tensor holds codes of real numbers."""
        if tensor.quantization is None:
            return False
        constant = tensor.index in self._data
        wide = (ir.DataType.INT32, ir.DataType.INT64, ir.DataType.INT4)
        return tensor.dtype in _CODES or (constant and tensor.dtype in wide)

    def encoding_of(self, tensor: TensorRecord) -> Quantization:
        assert tensor.quantization is not None
        return tensor.quantization

    # ------------------------------------------------------------ values

    def name(self, wanted: str) -> str:
        """`wanted`, or where it is taken, the same with a number."""
        name, count = wanted, 0
        while name in self.shared.taken:
            count += 1
            name = f"{wanted}_{count}"
        self.shared.taken.add(name)
        return name

    def x(self, i: int = 0) -> ir.Value:
        """Input `i`: real numbers of a quantized tensor, else the values as they are. Raises Refused if absent."""
        return self.real(self._need(i))

    def codes(self, i: int = 0) -> ir.Value:
        """Input `i` as the file holds it: codes of a quantized tensor."""
        return self._value(self._need(i))

    def _need(self, i: int) -> TensorRecord:
        if not self.has(i):
            raise Refused(f"its input {i} is missing")
        return self.tensor(i)

    def optional(self, i: int) -> ir.Value | None:
        return self.x(i) if self.has(i) else None

    def bias(self, i: int, x: int, w: int) -> ir.Value | None:
        """Input `i` as the bias of a product of inputs `x` and `w`; None where there is none.

        The kernels add its codes to the accumulator, whatever scale the file notes for it: where that is another than
        scale_x * scale_w (converters share one bias between operators), the accumulator's holds.
        """
        if not self.has(i):
            return None
        bias, data, weight = self.tensor(i), self._need(x), self._need(w)
        if data.quantization is None or weight.quantization is None or bias.index not in self._data:
            return self.x(i)
        if not self.computes_codes() or self._data[bias.index].dtype.kind != "i":
            return self.x(i)
        scales = (data.quantization.scales.astype(np.float64)[0] * weight.quantization.scales).astype(np.float32)
        noted = bias.quantization
        if noted is not None and noted.scales.size == scales.size and np.allclose(noted.scales, scales, 1e-5, 0):
            return self.x(i)
        own = replace(bias, quantization=Quantization(scales, np.zeros(scales.size, np.int64), 0))
        return self.constant_of(own, variant=self.op.index)

    def _tensor(self, i: int) -> TensorRecord:
        return self._need(i)

    def real(self, tensor: TensorRecord) -> ir.Value:
        """The value with a tensor's real numbers."""
        if not self.coded(tensor):
            return self._value(tensor)
        if tensor.index in self._data:
            return self.constant_of(tensor)
        if tensor.index not in self._real:
            value = self._linear("DequantizeLinear", self._value(tensor), tensor)
            value.name = self.name(f"{tensor.name}_real" if self._is_port(tensor) else tensor.name)
            self._real[tensor.index] = value
        return self._real[tensor.index]

    def _is_port(self, tensor: TensorRecord) -> bool:
        return tensor.index in self._ports

    def _value(self, tensor: TensorRecord) -> ir.Value:
        if tensor.problem:
            raise Refused(f"{tensor.name!r} is {tensor.problem}")
        if tensor.index in self._native:
            return self._native[tensor.index]
        if tensor.index in self._data:
            data = self._data[tensor.index]
            value = self.constant(data, tensor.name, key=(tensor.index, "native"))
            return value
        raise Refused(f"{tensor.name!r} is used before it is computed")

    def is_computed(self, index: int) -> bool:
        """Whether tensor `index` is neither a constant nor a resource."""
        return index not in self._data and index not in self.resources

    def set_data(self, tensor: TensorRecord, data: Array) -> None:
        """Make a tensor that the file computes a constant."""
        self._data[tensor.index] = data

    def constant_of(self, tensor: TensorRecord, perm: Sequence[int] | None = None, variant: int = -1) -> ir.Value:
        """A constant tensor's real numbers, its axes in the order `perm`.

        Codes stay codes behind a DequantizeLinear where the operator computes with codes, else they become floats.
        `variant` tells apart one tensor with several encodings.
        """
        data = self._data[tensor.index]
        order = tuple(range(data.ndim)) if perm is None else tuple(perm)
        if not self.coded(tensor):
            turned = np.asarray(data, np.float32) if data.dtype == np.float16 else data
            return self.constant(turned.transpose(order), tensor.name, key=(tensor.index, order))
        encoding = self.encoding_of(tensor)
        if not self.computes_codes():
            if tensor.dtype in (*_CODES, ir.DataType.INT4):
                self.shared.dynamic_range = True
            floats = (tensor.index, order, "float")
            if floats not in self._constants:
                self.constant(dequantized(data, encoding).transpose(order), tensor.name, key=floats)
            return self._constants[floats]
        key = (tensor.index, order, "codes", variant)
        if key not in self._constants:
            if data.dtype == np.int64:
                if np.abs(data).max(initial=0) > 2**31 - 1:
                    raise Refused(f"{tensor.name!r} has values beyond 32 bits")
                data = data.astype(np.int32)
            codes = self.constant(data.transpose(order), f"{tensor.name}_codes")
            axis = order.index(encoding.axis) if encoding.per_axis else None
            self._constants[key] = self._linear("DequantizeLinear", codes, tensor, axis, variant)
            self._constants[key].name = self.name(tensor.name)
        return self._constants[key]

    def computes_codes(self) -> bool:
        """Whether the operator works on codes: one of its computed inputs or its output is quantized."""
        computed = [self.tensor(i) for i in range(len(self.op.inputs)) if self.has(i)]
        computed = [t for t in computed if t.index not in self._data]
        return any(self.coded(t) for t in (*computed, *(self.source.tensors[i] for i in self.op.outputs)))

    def constant(self, data: Any, name: str = "", key: Any = None) -> ir.Value:
        """An initializer."""
        if key is not None and key in self._constants:
            return self._constants[key]
        array = np.asarray(data)
        name = self.name(name or f"{self.prefix}_constant")
        tensor = ir.Tensor(array, name=name)
        value = ir.Value(name=name, const_value=tensor, shape=ir.Shape(array.shape), type=ir.TensorType(tensor.dtype))
        self.shared.root.register_initializer(value)
        if key is not None:
            self._constants[key] = value
        return value

    def filled(self, shape: Sequence[int], value: Any, dtype: Any) -> Array:
        """An array of one value. Raises Refused where it has more than MAX_ELEMENTS elements."""
        self.room(*shape)
        return np.full(tuple(shape), value, dtype)

    def room(self, *shape: int) -> None:
        """Raise Refused where something of this shape has more than MAX_ELEMENTS elements, or an axis below 0."""
        count = 1
        for size in shape:
            count *= int(size)
        if count > MAX_ELEMENTS or any(size < 0 for size in shape):
            raise Refused(f"a constant of shape {[int(size) for size in shape]}")

    def scalar(self, number: float) -> ir.Value:
        """A constant float32 scalar."""
        return self.constant(np.float32(number))

    def vector(self, numbers: Iterable[int]) -> ir.Value:
        """A constant int64 vector."""
        return self.constant(np.array(list(numbers), np.int64))

    # ------------------------------------------------------------ nodes

    @property
    def prefix(self) -> str:
        """Name of the operator: what it is and its number in the file."""
        return f"{self._within}{self.op.code}_{self.op.index}"

    def node(self, op_type: str, *inputs: ir.Value | None, outputs: int = 1, **attributes: Any) -> ir.Value:
        """Add a node; its first output."""
        return self.nodes(op_type, *inputs, outputs=outputs, **attributes)[0]

    def nodes(self, op_type: str, *inputs: ir.Value | None, outputs: int = 1, **attributes: Any) -> list[ir.Value]:
        """Add a node; all its outputs."""
        self._serial += 1
        name = f"{self.prefix}/{op_type}_{self._serial}"
        results = [ir.Value(name=f"{name}:{i}") for i in range(outputs)]
        node = ir.Node(
            "",
            op_type,
            inputs=inputs,
            outputs=results,
            name=name,
            attributes=ir.convenience.convert_attributes(attributes),
        )
        self.graph.append(node)
        return results

    def _linear(
        self, op_type: str, value: ir.Value, tensor: TensorRecord, axis: int | None = None, variant: int = -1
    ) -> ir.Value:
        encoding = self.encoding_of(tensor)
        if encoding.per_axis and axis is None:
            if tensor.index in self._data:
                axis = encoding.axis
            else:
                raise Refused(f"{tensor.name!r} is an activation with an encoding per channel")
        dtype = ir.DataType.INT32 if tensor.dtype is ir.DataType.INT64 else tensor.dtype
        assert dtype is not None
        scales: Array = encoding.scales if axis is not None else encoding.scales[0].reshape(())
        scale = self.constant(scales, f"{tensor.name}_scale", key=("scale", tensor.index, variant))
        inputs = [value, scale]
        if dtype is not ir.DataType.INT32:
            points = encoding.zero_points.astype(dtype.numpy())
            if not np.array_equal(points.astype(np.int64), encoding.zero_points):
                raise Refused(f"the zero point of {tensor.name!r} is not a value of its type")
            points = points if axis is not None else points[0].reshape(())
            inputs.append(self.constant(points, f"{tensor.name}_zero_point", key=("point", tensor.index)))
        elif encoding.zero_points.any():
            raise Refused(f"{tensor.name!r} has 32 bits and a zero point")
        return self.node(op_type, *inputs, **({} if axis is None else {"axis": axis}))

    def transpose(self, value: ir.Value, perm: Sequence[int]) -> ir.Value:
        return value if list(perm) == list(range(len(perm))) else self.node("Transpose", value, perm=list(perm))

    def first(self, value: ir.Value, rank: int = 4) -> ir.Value:
        """Channels last to channels first."""
        return self.transpose(value, (0, rank - 1, *range(1, rank - 1)))

    def last(self, value: ir.Value, rank: int = 4) -> ir.Value:
        """Channels first to channels last."""
        return self.transpose(value, (0, *range(2, rank), 1))

    def weight(self, i: int, perm: Sequence[int]) -> ir.Value:
        """Input `i`, its axes in the order `perm`: turned here where it is constant."""
        tensor = self._need(i)
        if tensor.problem:
            raise Refused(f"{tensor.name!r} is {tensor.problem}")
        if len(perm) != len(tensor.shape):
            raise Refused(f"{tensor.name!r} has {len(tensor.shape)} axes where {len(perm)} are needed")
        if tensor.index in self._data:
            return self.constant_of(tensor, perm)
        return self.transpose(self.real(tensor), perm)

    def reshape(self, value: ir.Value, shape: Sequence[int]) -> ir.Value:
        return self.node("Reshape", value, self.vector(shape))

    def cast(self, value: ir.Value, dtype: ir.DataType) -> ir.Value:
        return self.node("Cast", value, to=int(dtype))

    def rounded(self, value: ir.Value, low: float, high: float, bits: int, *, narrow: bool) -> ir.Value:
        """Q and DQ of the range that TensorFlow's fake quantization of `low` to `high` comes to."""
        if not 2 <= bits <= 16 or not low <= 0 <= high or low == high or (narrow and bits not in (8, 16)):
            raise Refused(f"{bits} bits from {low:g} to {high:g}")
        least, most = int(narrow), 2**bits - 1
        scale = (high - low) / (most - least)
        point = int(np.clip(round(least - low / scale), least, most))
        dtype = np.uint8 if bits <= 8 else np.uint16
        if most != np.iinfo(dtype).max or narrow:
            value = self.clip(value, (least - point) * scale, (most - point) * scale)
        ends = [self.scalar(scale), self.constant(dtype(point))]
        return self.node("DequantizeLinear", self.node("QuantizeLinear", value, *ends), *ends)

    def as_codes(self, value: ir.Value, tensor: TensorRecord) -> ir.Value:
        """`value` rounded to the codes of `tensor` and back."""
        return self._linear("DequantizeLinear", self._linear("QuantizeLinear", value, tensor), tensor)

    # ------------------------------------------------------------ results

    def set(self, value: ir.Value, i: int = 0, *, fused: bool = False) -> None:
        """`value` is the operator's output `i`, behind its fused activation where `fused`."""
        tensor = self.result(i)
        if fused:
            value = self.activation(value, int(self.op.get("FusedActivationFunction", 0)), tensor)
        self.bind(tensor, value)

    def activation(self, value: ir.Value, kind: int, tensor: TensorRecord) -> ir.Value:
        """The fused activation `kind`; none where the range of the output's codes says the same."""
        if kind == 0:
            return value
        if kind == 4:
            return self.node("Tanh", value)
        if kind not in _RELU_RANGES:
            raise Refused(f"the fused activation number {kind}")
        low, high = _RELU_RANGES[kind]
        if self.coded(tensor):
            encoding, info = self.encoding_of(tensor), np.iinfo(tensor.dtype.numpy()) if tensor.dtype else None
            assert info is not None
            scale, point = float(encoding.scales[0]), int(encoding.zero_points[0])
            least, most = scale * (int(info.min) - point), scale * (int(info.max) - point)
            low = low if least < low - scale / 2 else -np.inf
            high = high if most > high + scale / 2 else np.inf
        return self.clip(value, low, high)

    def clip(self, value: ir.Value, low: float, high: float) -> ir.Value:
        """Between two ends, either of which may be infinite."""
        if low == 0 and high == np.inf:
            return self.node("Relu", value)
        if low == -np.inf and high == np.inf:
            return value
        ends = [None if np.isinf(end) else self.constant(np.float32(end)) for end in (low, high)]
        return self.node("Clip", value, *ends)

    def bind(self, tensor: TensorRecord, value: ir.Value) -> None:
        """`value` holds the tensor's real numbers (or its values, where it has no encoding)."""
        if not self.coded(tensor):
            self._native[tensor.index] = self._named(value, self._port_name(tensor))
            return
        value = self._named(value, self.name(f"{tensor.name}_real" if self._is_port(tensor) else tensor.name))
        codes = self._linear("QuantizeLinear", value, tensor)
        codes.name = self._port_name(tensor) if self._is_port(tensor) else self.name(f"{tensor.name}_codes")
        self._native[tensor.index] = codes

    def bind_codes(self, tensor: TensorRecord, value: ir.Value) -> None:
        """`value` holds the tensor exactly as the file has it."""
        self._native[tensor.index] = self._named(value, self._port_name(tensor))

    def _port_name(self, tensor: TensorRecord) -> str:
        return self._ports[tensor.index] if self._is_port(tensor) else self.name(tensor.name)

    def _named(self, value: ir.Value, name: str) -> ir.Value:
        fresh = value.producer() is not None and (value.name or "").startswith(f"{self.prefix}/")
        if not fresh:
            value = self.node("Identity", value)
        value.name = name
        return value

    def add_input(self, tensor: TensorRecord, shape: ir.Shape) -> None:
        """Make a tensor an input of the graph, under its port name."""
        assert tensor.dtype is not None
        value = ir.Value(name=self._ports[tensor.index], shape=shape, type=ir.TensorType(tensor.dtype))
        self.graph.inputs.append(value)
        self._native[tensor.index] = value

    def add_output(self, tensor: TensorRecord, name: str) -> None:
        """Make a tensor an output of the graph called `name`."""
        value = self._value(tensor)
        if value.name != name or value.is_graph_output() or value.producer() is None:
            if value.name == name:  # an input that is an output as well
                name = self.name(f"{name}_output")
            value = self.node("Identity", value)
            value.name = name
        self.graph.outputs.append(value)

    def stand_in(self) -> None:
        """Give the outputs of an operator that was refused values without a maker, so that reading goes on."""
        for i in self.op.outputs:
            tensor = self.source.tensors[i]
            if i not in self._native and i not in self._data:
                self._native[i] = ir.Value(name=self.name(tensor.name), type=ir.TensorType(ir.DataType.FLOAT))


def dequantized(codes: Array, encoding: Quantization) -> Array:
    """Codes as float32."""
    scales, points = encoding.scales, encoding.zero_points
    if encoding.per_axis:
        shape = [-1 if axis == encoding.axis else 1 for axis in range(codes.ndim)]
        scales, points = scales.reshape(shape), points.reshape(shape)
    return np.asarray((codes.astype(np.int64) - points).astype(np.float32) * scales, np.float32)

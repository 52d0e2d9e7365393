# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""The builder under every raise: ONNX nodes from numpy-like calls, with casts where a kernel is missing.

A QNN tensor has up to two ONNX values: its *codes* (what QNN stores: the tensor's own name) and its *real*
value (float32 for encoded and bfloat16 tensors, `name/real`). They are one value where nothing is encoded.
"""

from __future__ import annotations

from collections.abc import Sequence

import ml_dtypes
import numpy as np
import onnx_ir as ir

from npukit.errors import Fault, GraphError
from npukit.qnn.graph import Array, DType, Encoding, Op, Tensor, TensorKind
from npukit.qnn.opdefs import OPS
from npukit.raising.encodings import code_range, dequantized, linear, normal_codes, storage_dtype
from npukit.raising.kernels import carrier

Operand = ir.Value | np.ndarray | np.generic | int | float | bool | Sequence[int]
Attribute = int | float | str | Sequence[int] | Sequence[float]

_BOOL_RESULTS = frozenset({"Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual", "IsNaN", "IsInf", "Not"})
_INT64_RESULTS = frozenset({"ArgMax", "ArgMin", "Shape", "NonZero", "NonMaxSuppression"})
_FLOATS = (ir.DataType.FLOAT16, ir.DataType.FLOAT, ir.DataType.DOUBLE, ir.DataType.BFLOAT16)
# How many leading inputs carry the data type T of an op (the others are shapes, indices, axes); default: all.
_DATA_INPUTS = {
    **dict.fromkeys(["Reshape", "Expand", "Tile", "Slice", "Split", "Squeeze", "Unsqueeze", "Gather", "GatherND"], 1),
    **dict.fromkeys(["GatherElements", "ReduceMax", "ReduceMin", "ReduceMean", "ReduceProd", "ReduceSum"], 1),
    **dict.fromkeys(["ReduceSumSquare", "ReduceL2", "CumSum", "TopK", "Resize", "Cast", "Pow", "Col2Im"], 1),
    **dict.fromkeys(["RoiAlign", "QuantizeLinear", "STFT", "ReverseSequence"], 1),
}
# Ops whose data inputs are not simply the leading ones.
_DATA_POSITIONS = {"Where": (1, 2), "ScatterElements": (0, 2), "ScatterND": (0, 2), "Pad": (0, 2)}
_NO_CARRIER = frozenset({"DequantizeLinear", "QuantizeLinear", "Cast", "RandomUniform", "NonMaxSuppression", "OneHot"})


def ir_type(dtype: DType) -> ir.DataType:
    """The ONNX element type of the codes of a QNN dtype."""
    return ir.DataType.from_numpy(storage_dtype(dtype))


class Build:
    """The ONNX graph under construction: nodes, initializers and the values of each QNN tensor."""

    def __init__(self, names: set[str], quantized: str, opset: int) -> None:
        self.nodes: list[ir.Node] = []
        self.initializers: list[ir.Value] = []
        self.codes: dict[int, ir.Value] = {}
        self.real: dict[int, ir.Value] = {}
        self.qdq = quantized == "qdq"
        self.opset = opset
        self._names = set(names)
        self._constants: dict[tuple[str, tuple[int, ...], bytes], ir.Value] = {}
        self.permuted: dict[tuple[int, tuple[int, ...]], ir.Value] = {}

    def cut(self, count: int) -> None:
        """Take back the nodes behind the first `count`, and the values they gave to tensors."""
        gone = {id(value) for node in self.nodes[count:] for value in node.outputs}
        for node in reversed(self.nodes[count:]):
            for index in range(len(node.inputs)):
                node.replace_input_with(index, None)
        del self.nodes[count:]
        for table in (self.codes, self.real, self.permuted):
            for key in [key for key, value in table.items() if id(value) in gone]:
                del table[key]  # type: ignore[arg-type]

    def unique(self, name: str) -> str:
        """`name`, or `name` with a number where it is taken."""
        found, count = name, 1
        while found in self._names:
            count += 1
            found = f"{name}_{count}"
        self._names.add(found)
        return found

    def initializer(self, name: str, data: Array) -> ir.Value:
        """A new constant; `data` is not copied (views and memory maps stay what they are)."""
        tensor = ir.Tensor(data, name=name)
        value = ir.Value(name=name, shape=ir.Shape(data.shape), type=ir.TensorType(tensor.dtype), const_value=tensor)
        self.initializers.append(value)
        return value

    def constant(self, data: Array) -> ir.Value:
        """A small constant, shared by content."""
        key = (data.dtype.name, data.shape, data.tobytes())
        if key not in self._constants:
            self._constants[key] = self.initializer(self.unique(f"const_{len(self._constants)}"), data)
        return self._constants[key]

    def node(
        self, type: str, inputs: Sequence[ir.Value | None], outputs: int, attrs: dict[str, Attribute], domain: str = ""
    ) -> ir.Node:
        """Append one node without a name."""
        node = ir.node(type, list(inputs), attrs, num_outputs=outputs, domain=domain)
        self.nodes.append(node)
        return node


class Emit:
    """One QNN op being raised: its params and inputs in, ONNX nodes out."""

    def __init__(self, build: Build, op: Op) -> None:
        self.build = build
        self.op = op
        self.opset = build.opset
        self.first = len(build.nodes)

    # --- what the op has -------------------------------------------------------------------------------
    def has(self, index: int) -> bool:
        """Whether input `index` is given."""
        return self.tensor(index) is not None

    def tensor(self, index: int) -> Tensor | None:
        """Input tensor `index`, None where it is absent."""
        inputs = self.op.inputs
        found = inputs[index] if index < len(inputs) else None
        return None if found is None or found.kind is TensorKind.NULL else found

    def given(self, index: int) -> Tensor:
        """Input tensor `index`; raises GraphError where it is absent."""
        found = self.tensor(index)
        if found is None:
            raise self.error(f"input {index} is absent")
        return found

    def shape(self, index: int = 0) -> tuple[int, ...]:
        return self.given(index).shape

    def out_shape(self, index: int = 0) -> tuple[int, ...]:
        return self.op.outputs[index].shape

    def wants(self, index: int) -> bool:
        """Whether output `index` is asked for."""
        return index < len(self.op.outputs) and self.op.outputs[index].kind is not TensorKind.NULL

    def scalar(self, name: str, default: float | None = None) -> float:
        """A scalar param as a Python number; the op definition's default where the op does not give it."""
        param = self.op.params.get(name)
        value: object = param.value if param is not None else default
        if value is None:
            definition = OPS[self.op.type].params.get(name)
            value = definition.default if definition is not None else None
        if isinstance(value, np.ndarray):
            value = value.item()
        if not isinstance(value, int | float | np.generic):
            raise self.error(f"param {name!r} is missing")
        return value.item() if isinstance(value, np.generic) else value

    def integer(self, name: str, default: int | None = None) -> int:
        return int(self.scalar(name, default))

    def flag(self, name: str, default: bool | None = None) -> bool:
        return bool(self.scalar(name, default))

    def choice(self, name: str, default: str = "") -> str:
        """The name of an enum param's value; `default` where the op does not give it."""
        values = OPS[self.op.type].params[name].values
        if name not in self.op.params and default:
            return default
        code = self.integer(name)
        found = next((key for key, value in values.items() if value == code), None)
        if found is None:
            raise self.error(f"param {name!r} has no value {code}")
        return found

    def array(
        self, name: str, default: Sequence[int] | Sequence[Sequence[int]] | Sequence[float] | None = None
    ) -> Array:
        """A tensor param; the op definition's default where the op does not give it."""
        param = self.op.params.get(name)
        if param is not None:
            return np.asarray(param.value)
        if default is None:
            definition = OPS[self.op.type].params.get(name)
            found = definition.default if definition is not None else None
            if not isinstance(found, list):
                raise self.error(f"param {name!r} is missing")
            return np.asarray(found)
        return np.asarray(default)

    def ints(self, name: str, default: Sequence[int] | None = None) -> list[int]:
        """A tensor param as a flat list of ints."""
        return [int(v) for v in self.array(name, default).ravel()]

    def error(self, what: str) -> GraphError:
        """A GraphError that names this op."""
        return GraphError(
            "a graph that cannot be raised", faults=[Fault(what, f"op {self.op.name!r} ({self.op.type})")]
        )

    # --- values of inputs ------------------------------------------------------------------------------
    def real(self, index: int = 0) -> ir.Value:
        """The real value of input `index`; raises GraphError where it is absent."""
        tensor = self.given(index)
        key = id(tensor)
        if key not in self.build.real:
            if key in self.build.codes:
                self.build.real[key] = self._native(self.build.codes[key], tensor)
            else:
                self._load(tensor)
        return self.build.real[key]

    def codes(self, index: int = 0) -> ir.Value:
        """The stored value of input `index`: integer codes of an encoded tensor (its real value without QDQ)."""
        tensor = self.given(index)
        if id(tensor) not in self.build.codes:
            self._load(tensor)
        return self.build.codes[id(tensor)]

    def _load(self, tensor: Tensor) -> None:
        if tensor.data is None:
            raise self.error(f"reads {tensor.name!r}, which nothing makes")
        self.build.real[id(tensor)] = self._constant(tensor, None, tensor.name)

    def _constant(self, tensor: Tensor, perm: tuple[int, ...] | None, name: str) -> ir.Value:
        """The real value of a static tensor, its codes permuted by `perm` without a copy."""
        data, encoding = normal_codes(tensor), tensor.encoding
        assert data is not None
        known = tensor.dtype.is_quantized and encoding is not None and any(encoding.scales)
        form = linear(tensor.dtype, encoding) if known and encoding is not None else None
        if not tensor.dtype.is_quantized:
            stored = data if data.dtype != ml_dtypes.bfloat16 else data.astype(np.float32)
        elif form is None or not self.build.qdq:
            stored = dequantized(tensor)
        else:
            stored = data
        view = stored if perm is None else stored.transpose(perm)
        codes = self.build.initializer(self.build.unique(name) if perm else name, view)
        if perm is None:
            self.build.codes[id(tensor)] = codes
        if stored is not data or form is None:
            return codes
        axis = form.axis if perm is None or form.axis is None else perm.index(form.axis)
        return self._dequantize_linear(codes, form.scales, form.zero_points, axis, f"{codes.name}/real")

    def weight(self, index: int, perm: Sequence[int]) -> ir.Value:
        """Input `index` permuted: a constant is permuted as a view, a computed tensor by a Transpose."""
        tensor = self.given(index)
        order = tuple(perm)
        if tensor.data is None:
            return self.transpose(self.real(index), order)
        key = (id(tensor), order)
        if key not in self.build.permuted:
            self.build.permuted[key] = self._constant(tensor, order, f"{tensor.name}/permuted")
        return self.build.permuted[key]

    def bias(self, index: int, x: int = 0, w: int = 1) -> ir.Value | None:
        """A bias input: without a usable encoding its codes count in units of scale(x) * scale(w), as on HTP."""
        tensor = self.tensor(index)
        if tensor is None:
            return None
        encoding = tensor.encoding
        usable = encoding is not None and any(encoding.scales)
        if tensor.data is None or tensor.dtype is not DType.SFIXED_POINT_32 or usable:
            return self.real(index)
        ex, ew = self.given(x).encoding, self.given(w).encoding
        if ex is None or ew is None:
            raise self.error(f"bias {tensor.name!r} has no encoding, nor have both of input {x} and {w}")
        scale = np.float64(ex.scale) * np.asarray(ew.scales, np.float64)
        return self.build.constant((tensor.data.astype(np.float64) * scale).astype(np.float32))

    # --- nodes -----------------------------------------------------------------------------------------
    def call(
        self, type: str, *inputs: Operand | None, outputs: int = 1, out: ir.DataType | None = None, **attrs: Attribute
    ) -> ir.Value:
        """One ONNX node; the first output. Casts data to a type with a kernel and the result back."""
        return self.calls(type, *inputs, outputs=outputs, out=out, **attrs)[0]

    def calls(
        self, type: str, *inputs: Operand | None, outputs: int = 1, out: ir.DataType | None = None, **attrs: Attribute
    ) -> list[ir.Value]:
        """One ONNX node; all outputs. See `call`."""
        values = self._operands(type, inputs)
        data = {p: v for p in self._positions(type, len(values)) if (v := values[p]) is not None}
        dtypes = [v.dtype for v in data.values() if v.dtype is not None]
        native = wide = dtypes[0] if dtypes else None
        if dtypes and type not in _NO_CARRIER:
            wide = self._common(type, dtypes)
            values = [self.cast(v, wide) if v is not None and p in data else v for p, v in enumerate(values)]
        node = self.build.node(type, values, outputs, attrs)
        result: ir.DataType | None = out or wide
        if type in _BOOL_RESULTS:
            result = ir.DataType.BOOL
        elif type in _INT64_RESULTS:
            result = ir.DataType.INT64
        made = list(node.outputs)
        for value in made:
            if result is not None:
                value.dtype = result
        if type == "TopK":
            made[1].dtype = ir.DataType.INT64
        if out is None and result == wide and native is not None and wide != native and native not in _FLOATS:
            made[0] = self.cast(made[0], native)
        return made

    def _operands(self, type: str, inputs: Sequence[Operand | None]) -> list[ir.Value | None]:
        """Constants of plain numbers: floats and scalars take the type of the first value, int lists are int64."""
        like = next((v.dtype for v in inputs if isinstance(v, ir.Value) and v.dtype is not ir.DataType.BOOL), None)
        values: list[ir.Value | None] = []
        for operand in inputs:
            if operand is None or isinstance(operand, ir.Value):
                values.append(operand)
            elif isinstance(operand, np.ndarray | np.generic):
                values.append(self.build.constant(np.asarray(operand)))
            elif isinstance(operand, bool | int | float):
                dtype = like or ir.DataType.FLOAT
                values.append(self.build.constant(np.asarray(operand).astype(dtype.numpy())))
            else:
                values.append(self.build.constant(np.asarray(operand, np.int64)))
        return values

    @staticmethod
    def _positions(type: str, count: int) -> Sequence[int]:
        if type in _DATA_POSITIONS:
            return [p for p in _DATA_POSITIONS[type] if p < count]
        return range(min(count, _DATA_INPUTS.get(type, count)))

    @staticmethod
    def _common(type: str, dtypes: Sequence[ir.DataType]) -> ir.DataType:
        """The type that all data inputs are cast to."""
        kinds = set(dtypes)
        mixed = ir.DataType.FLOAT if kinds & set(_FLOATS) else ir.DataType.INT64
        return carrier(type, mixed if len(kinds) > 1 else dtypes[0])

    def cast(self, value: ir.Value, dtype: ir.DataType) -> ir.Value:
        """`value` as `dtype`; itself where it is that already."""
        if value.dtype is dtype or value.dtype == dtype:
            return value
        if value.const_value is not None and value.const_value.size <= 64:
            return self.build.constant(value.const_value.numpy().astype(dtype.numpy()))
        made = self.build.node("Cast", [value], 1, {"to": int(dtype)}).outputs[0]
        made.dtype = dtype
        return made

    def reshape(self, value: ir.Value, shape: Sequence[int]) -> ir.Value:
        return self.call("Reshape", value, np.asarray(shape, np.int64))

    def transpose(self, value: ir.Value, perm: Sequence[int]) -> ir.Value:
        if list(perm) == list(range(len(perm))):
            return value
        return self.call("Transpose", value, perm=[int(p) for p in perm])

    def scalar_like(self, value: ir.Value, number: float) -> ir.Value:
        """A rank-0 constant of the type of `value`."""
        dtype = value.dtype or ir.DataType.FLOAT
        return self.build.constant(np.asarray(number).astype(dtype.numpy()))

    def full(self, shape: Sequence[int], number: float, dtype: ir.DataType = ir.DataType.FLOAT) -> ir.Value:
        """A constant filled with one number."""
        return self.build.constant(np.full(tuple(shape), number, dtype.numpy()))

    def channel_first(self, value: ir.Value, rank: int) -> ir.Value:
        """[N, spatial..., C] to [N, C, spatial...]."""
        return self.transpose(value, [0, rank - 1, *range(1, rank - 1)])

    def channel_last(self, value: ir.Value, rank: int) -> ir.Value:
        """[N, C, spatial...] to [N, spatial..., C]."""
        return self.transpose(value, [0, *range(2, rank), 1])

    # --- encodings -------------------------------------------------------------------------------------
    def _dequantize_linear(self, codes: ir.Value, scales: Array, zeros: Array, axis: int | None, name: str) -> ir.Value:
        inputs: list[ir.Value | None] = [codes, self.build.constant(scales)]
        if codes.dtype is not ir.DataType.INT32:  # int32 has no zero point in DequantizeLinear
            inputs.append(self.build.constant(zeros))
        attrs: dict[str, Attribute] = {} if axis is None else {"axis": axis}
        value = self.build.node("DequantizeLinear", inputs, 1, attrs).outputs[0]
        value.dtype, value.shape, value.name = ir.DataType.FLOAT, codes.shape, self.build.unique(name)
        self.build.nodes[-1].name = self.build.unique(f"{codes.name}/DequantizeLinear")
        return value

    def dequantize(self, codes: ir.Value, tensor: Tensor) -> ir.Value:
        """The real value (float32) of the codes of `tensor`."""
        encoding = self._encoding(tensor)
        form = linear(tensor.dtype, encoding)
        if form is not None:
            return self._dequantize_linear(codes, form.scales, form.zero_points, form.axis, f"{tensor.name}/real")
        scale, offset = _shaped(encoding, tensor.rank)
        moved = self.call("Add", self.cast(codes, ir.DataType.DOUBLE), offset)
        value = self.cast(self.call("Mul", moved, scale), ir.DataType.FLOAT)
        value.name = self.build.unique(f"{tensor.name}/real")
        return value

    def quantize(self, value: ir.Value, tensor: Tensor) -> ir.Value:
        """The codes of `tensor` for a real value: round half to even, saturate to the bits in use."""
        encoding = self._encoding(tensor)
        low, high = code_range(tensor.dtype, encoding)
        form = linear(tensor.dtype, encoding)
        scale, offset = _shaped(encoding, tensor.rank)
        real = self.cast(value, ir.DataType.FLOAT)
        if form is not None and storage_dtype(tensor.dtype) != np.int32:
            if high - low + 1 < 1 << tensor.dtype.bits:
                bounds = [((bound + offset) * scale).astype(np.float32) for bound in (low, high)]
                real = self.call("Min", self.call("Max", real, bounds[0]), bounds[1])
            attrs: dict[str, Attribute] = {} if form.axis is None else {"axis": form.axis}
            zeros = self.build.constant(form.zero_points)
            made = self.build.node("QuantizeLinear", [real, self.build.constant(form.scales), zeros], 1, attrs)
            codes = made.outputs[0]
            codes.dtype = ir_type(tensor.dtype)
            made.name = self.build.unique(f"{tensor.name}/QuantizeLinear")
            return codes
        exact = self.call("Round", self.call("Div", self.cast(real, ir.DataType.DOUBLE), scale))
        moved = self.call("Sub", exact, offset)
        kept = self.call("Clip", moved, np.float64(low), np.float64(high))
        return self.cast(kept, ir_type(tensor.dtype))

    def _encoding(self, tensor: Tensor) -> Encoding:
        if tensor.encoding is None:
            raise self.error(f"tensor {tensor.name!r} is {tensor.dtype.name} but has no encoding")
        return tensor.encoding

    def _native(self, codes: ir.Value, tensor: Tensor) -> ir.Value:
        """The real value of the codes of a computed or graph input tensor."""
        if tensor.dtype.is_quantized and self.build.qdq:
            return self.dequantize(codes, tensor)
        if tensor.dtype is DType.BFLOAT_16:
            return self.cast(codes, ir.DataType.FLOAT)
        return codes

    def real_type(self, tensor: Tensor) -> ir.DataType:
        """The element type of a tensor's real value."""
        if tensor.dtype.is_quantized or tensor.dtype is DType.BFLOAT_16:
            return ir.DataType.FLOAT
        return ir_type(tensor.dtype)


def _shaped(encoding: Encoding, rank: int) -> tuple[Array, Array]:
    """Scales and offsets as float64, broadcastable onto a tensor of `rank`."""
    scale = np.asarray(encoding.scales, np.float64)
    offset = np.asarray(encoding.offsets, np.float64)
    if encoding.axis is None:
        return scale.reshape(()), offset.reshape(())
    shape = [1] * rank
    shape[encoding.axis] = len(scale)
    return scale.reshape(shape), offset.reshape(shape)

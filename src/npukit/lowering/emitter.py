# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""What a lowering writes with: it asks for source values in the order it needs, and emits QNN ops.

Layout is tracked, not patched up afterwards: every source value is held in one tensor, in the source's axis
order or another (`Perm`: tensor axis i is source axis perm[i]). An op that needs channels last asks for them;
an op that does not care takes what it gets and hands the order on. Constants are permuted at no cost.

Every op is put to the backends' own validation as it is emitted; a refusal raises `Refused`, so that
`Emitter.forms` can fall to the next form. Whatever a failed form emitted is taken back.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np
import onnx_ir as ir

from npukit.lowering.holding import (
    FLOATS,
    INTEGERS,
    Perm,
    QuantizedConstant,
    as_held,
    as_param,
    channel_last,
    dtype_name,
    moved,
    normal,
    validation_key,
)
from npukit.lowering.registry import Refused, Unsupported
from npukit.lowering.views import SPREAD, emit_beyond, merged_shape, spread
from npukit.qnn.graph import Array, DType, Encoding, Graph, Held, Op, Param, Tensor, TensorKind
from npukit.qnn.names import Names
from npukit.qnn.opdefs import integer_range
from npukit.targets import Target

R = TypeVar("R")
Validator = Callable[[Op], str | None]
Shape = tuple[int, ...]

# Ops that move elements without computing: their output has the encoding of their first input.
MOVEMENT = frozenset(
    ("Reshape", "Transpose", "StridedSlice", "Split", "Concat", "Gather", "GatherElements", "GatherNd", "Tile", "Pack")
    + ("UnPack", "ExpandDims", "Squeeze", "DepthToSpace", "SpaceToDepth", "BatchToSpace", "SpaceToBatch", "Pad")
    + ("PoolMax2d", "PoolMax3d", "ResizeNearestNeighbor", "ChannelShuffle", "ScatterElements", "ScatterNd")
)


@dataclass
class Journal:
    """Undo log of the emitter's maps, so that a form that fails leaves nothing behind."""

    entries: list[Callable[[], object]] = field(default_factory=list)

    def set(self, table: dict[Any, Any], key: Any, value: Any) -> None:
        if key in table:
            old = table[key]
            self.entries.append(lambda: table.__setitem__(key, old))
        else:
            self.entries.append(lambda: table.pop(key, None))
        table[key] = value

    def rollback(self, mark: int) -> None:
        while len(self.entries) > mark:
            self.entries.pop()()


class NeedsFloat(Unsupported):
    """A lowering made an intermediate tensor that has no encoding: the node must run in float."""


class Emitter:
    """Builds one graph; the driver sets `node` and `quantized` before it calls a lowering."""

    def __init__(
        self,
        graph: Graph,
        targets: Sequence[Target],
        validators: Mapping[str, Validator],
        *,
        float_dtype: DType = DType.FLOAT_32,
        encodings: Mapping[ir.Value, tuple[DType, Encoding]] | None = None,
        quantized_constants: Mapping[ir.Value, QuantizedConstant] | None = None,
        aliases: Mapping[ir.Value, ir.Value] | None = None,
        integers: bool = False,
    ) -> None:
        self.graph = graph
        self.targets = tuple(targets)
        self.quirks = frozenset(quirk for target in targets for quirk in target.quirks)
        self.max_rank = 5 if "five_axes_at_most" in self.quirks else 64
        self._float = float_dtype
        self.names = Names()
        self.node: ir.Node | None = None
        self.quantized = False
        self._integers = integers
        self.notes: list[str] = []
        self._validators = validators
        self._verdicts: dict[object, str | None] = {}
        self._encodings = dict(encodings or {})
        self._codes = dict(quantized_constants or {})
        self._aliases = dict(aliases or {})
        self._held: dict[ir.Value, Tensor] = {}
        self._derived: dict[tuple[ir.Value, Perm | None, bool], Tensor] = {}
        self._order: dict[int, Perm | None] = {}
        self._journal = Journal()
        self._views: dict[int, tuple[Tensor, Tensor]] = {}  # tensors of too many axes, and what they stand for

    # -- values ------------------------------------------------------------------------------------------------

    def value(self, value: ir.Value | None) -> ir.Value:
        """The value that stands for `value` (Q/DQ pairs collapse). Raises Unsupported when it is absent."""
        if value is None:
            raise Unsupported("a required input is missing")
        while value in self._aliases:
            value = self._aliases[value]
        return value

    def shape(self, value: ir.Value | None) -> Shape:
        """Static source shape, e.g. (1, 3, 224, 224); () for a scalar."""
        value = self.value(value)
        if value.shape is None or not all(isinstance(dim, int) for dim in value.shape):
            raise Unsupported(f"the shape of {value.name!r} depends on data", kind="dynamic output")
        return tuple(int(dim) for dim in value.shape)  # type: ignore[arg-type]

    def rank(self, value: ir.Value | None) -> int:
        return len(self.shape(value))

    def source_dtype(self, value: ir.Value | None) -> ir.DataType:
        """ONNX element type of a source value: its own, whatever value of codes stands for it."""
        dtype = value.dtype if value is not None and value.dtype is not None else self.value(value).dtype
        if dtype is None:
            raise Unsupported(f"the type of {self.value(value).name!r} is unknown", kind="dtype cannot be held")
        return dtype

    def held_dtype(self, dtype: ir.DataType) -> DType:
        """The QNN dtype that holds an ONNX dtype in this graph. Raises Unsupported for strings, float8, ..."""
        if dtype in INTEGERS:
            return DType.INT_32
        if dtype is ir.DataType.FLOAT16 and "float16_refused" not in self.quirks:
            return DType.FLOAT_16
        if dtype in FLOATS:
            return self._float
        if dtype is ir.DataType.BOOL:
            return DType.BOOL_8
        raise Unsupported(f"no QNN tensor holds {dtype.name.lower()}", kind="dtype cannot be held")

    @property
    def for_integers(self) -> bool:
        """Whether the ops run on integer codes, now or once the graph is quantized."""
        return self.quantized or self._integers

    @property
    def float_dtype(self) -> DType:
        """The dtype of intermediate floats at the current node: that of its float operands."""
        values = [v for v in (*self.node.inputs, *self.node.outputs) if v is not None] if self.node is not None else []
        kinds = [v.dtype for v in values if v.dtype in FLOATS]
        return self.held_dtype(kinds[0]) if kinds and kinds[0] is not None else self._float

    def is_float(self, value: ir.Value | None) -> bool:
        return self.source_dtype(value) in FLOATS

    def constant(self, value: ir.Value | None) -> Array | None:
        """The numpy contents of a constant in the source's own dtype (floats of a QDQ weight), else None."""
        if value is None:
            return None
        value = self.value(value)
        if value in self._codes:
            return self._codes[value].dequantized()
        if value.const_value is None:
            return None
        return value.const_value.numpy()

    def need_constant(self, value: ir.Value | None, what: str) -> Array:
        """`constant`, or Unsupported saying that `what` must be known at conversion."""
        array = self.constant(value)
        if array is None:
            raise Unsupported(f"{what} must be a constant", hint="give it a constant, or fold what computes it")
        return array

    def ints(self, value: ir.Value | None, what: str) -> list[int]:
        """A constant integer list."""
        return [int(x) for x in np.atleast_1d(self.need_constant(value, what)).ravel()]

    def order(self, value: ir.Value | None) -> Perm | None:
        """The axis order in which a value is held: None for the source's."""
        held = self._held.get(self.value(value))
        return self._order.get(id(held)) if held is not None else None

    def has_encoding(self, value: ir.Value | None) -> bool:
        """Whether the source gives this value an encoding (as an activation or as a quantized constant)."""
        value = self.value(value)
        return value in self._encodings or value in self._codes

    def get(self, value: ir.Value | None, perm: Perm | None = None) -> Tensor:
        """The tensor of a source value in the axis order `perm` (None: the source's order)."""
        value = self.value(value)
        perm = normal(perm)
        as_codes = self.quantized and self.has_encoding(value)
        key = (value, perm, as_codes)
        if key not in self._derived:
            self._journal.set(self._derived, key, self._make(value, perm, as_codes))
        return self._derived[key]

    def held(self, value: ir.Value | None) -> tuple[Tensor, Perm | None]:
        """The tensor of a value in whatever order it is held, and that order."""
        order = self.order(value)
        return self.get(value, order), order

    def channel_last(self, value: ir.Value | None) -> Tensor:
        """The tensor as [N, spatial..., C] of a source value [N, C, spatial...]."""
        return self.get(value, channel_last(self.rank(value)))

    def _make(self, value: ir.Value, perm: Perm | None, as_codes: bool) -> Tensor:
        if value not in self._held:
            if value.const_value is None and value not in self._codes:
                raise Unsupported(f"{value.name!r} is not computed by anything")
            return self._static_value(value, perm, as_codes)
        tensor = self._held[value]
        order = self._order.get(id(tensor))

        def turned() -> Tensor:
            have, want = order or tuple(range(self.rank(value))), perm or tuple(range(self.rank(value)))
            return self.transpose(tensor, tuple(have.index(axis) for axis in want))

        if tensor.dtype.is_quantized and not as_codes:
            if order != perm:  # codes are turned, where the layout pass finds that two turns cancel
                tensor, order = turned(), perm
            # Codes with an encoding stand for floats (also an integer graph input); without, they are used as such.
            real = value in self._encodings or self.is_float(value)
            tensor = self._dequantized(tensor) if real else self.cast(tensor, DType.INT_32)
        elif as_codes and not tensor.dtype.is_quantized:
            dtype, encoding = self._encodings[value]
            tensor = self.emit("Quantize", [tensor], [self.temp(tensor.shape, dtype, encoding)])
        return turned() if order != perm else tensor

    def _dequantized(self, tensor: Tensor) -> Tensor:
        """The real values of codes: Dequantize, or where a target cannot run that twice, arithmetic on the codes."""

        def native() -> Tensor:
            return self.emit("Dequantize", [tensor], [self.temp(tensor.shape, self.float_dtype)])

        def composed() -> Tensor:
            encoding = tensor.encoding
            # HTP casts other dtypes by their encoding instead of taking the codes.
            if encoding is None or encoding.axis is not None or tensor.dtype is not DType.UFIXED_POINT_8:
                raise Unsupported("only 8-bit codes with one scale are dequantized by arithmetic")
            if (encoding.scale, encoding.offset) == (1.0, 0):  # HTP would make 0 or 1 of them (QAIRT 2.47, tried)
                return self.cast(self.cast(tensor, DType.INT_32), self.float_dtype)
            codes = self.cast(tensor, self.float_dtype)
            return self.mul(self.add(codes, float(encoding.offset)), encoding.scale)

        return self.forms(native, composed)

    def _static_value(self, value: ir.Value, perm: Perm | None, as_codes: bool) -> Tensor:
        name = self.names.fresh(value.name or "constant")
        held = Held(value.name or "", dtype_name(self.source_dtype(value)), self.shape(value), perm)
        if as_codes and value in self._codes:
            codes = self._codes[value]
            data, dtype, encoding = codes.codes, codes.dtype, moved(codes.encoding, perm)
        elif as_codes:
            dtype, encoding = self._encodings[value]
            real = np.asarray(self.constant(value), np.float32)
            data = np.clip(np.rint(real / encoding.scale) - encoding.offset, *integer_range(dtype)).astype(dtype.numpy)
        else:
            array = self.constant(value)
            assert array is not None
            dtype, encoding = self.held_dtype(self.source_dtype(value)), None
            data = as_held(array, dtype, value.name or "")
        data = data.reshape(1) if data.ndim == 0 else data
        if perm is not None:
            data = data.transpose(perm)
        return Tensor(name, dtype, data.shape, TensorKind.STATIC, encoding, data, held)

    def add_view(self, tensor: Tensor, source: Tensor) -> None:
        """Let a tensor of more axes than the targets take stand for `source`, which has the same elements."""
        self._journal.set(self._views, id(tensor), (tensor, source))

    def base(self, tensor: Tensor) -> Tensor:
        """The tensor of fewer axes that a view stands for; any other tensor itself."""
        return self._views[id(tensor)][1] if id(tensor) in self._views else tensor

    # -- tensors -----------------------------------------------------------------------------------------------

    def temp(self, shape: Sequence[int], dtype: DType, encoding: Encoding | None = None) -> Tensor:
        """A new intermediate tensor without a source name; rank 0 becomes [1]."""
        hint = f"{self.node.name}_t" if self.node is not None and self.node.name else "t"
        return Tensor(self._fresh(hint), dtype, tuple(shape) or (1,), TensorKind.NATIVE, encoding)

    def static(
        self, data: Any, dtype: DType | None = None, encoding: Encoding | None = None, hint: str = "const"
    ) -> Tensor:
        """A new constant tensor; dtype defaults to the graph's float type, INT_32 or BOOL_8 by the data's kind."""
        array = np.asarray(data)
        if dtype is None:
            kinds = {"f": self.float_dtype, "i": DType.INT_32, "u": DType.INT_32, "b": DType.BOOL_8}
            dtype = kinds[array.dtype.kind]
        array = as_held(array, dtype, hint)
        array = array.reshape(1) if array.ndim == 0 else array
        name = self._fresh(f"{self.node.name}_{hint}" if self.node is not None and self.node.name else hint)
        return Tensor(name, dtype, array.shape, TensorKind.STATIC, encoding, array)

    def output(self, value: ir.Value, perm: Perm | None = None) -> Tensor:
        """The tensor that an op writes for a source value, held in the order `perm`.

        Quantized mode: the value's encoding. Otherwise the dtype that holds the source's.
        """
        value = self.value(value)
        perm = normal(perm)
        shape = self.shape(value)
        if self.quantized and value in self._encodings:
            dtype, encoding = self._encodings[value]
        else:
            dtype, encoding = self.held_dtype(self.source_dtype(value)), None
        dims = shape if perm is None else tuple(shape[axis] for axis in perm)
        tensor = Tensor("", dtype, dims or (1,), TensorKind.NATIVE, encoding)
        self._claim(value, tensor, perm)
        return tensor

    def bind(self, value: ir.Value, tensor: Tensor, perm: Perm | None = None) -> None:
        """Say that `tensor` holds a source value in the order `perm`; the shape must be the value's."""
        value = self.value(value)
        perm = normal(perm)
        shape = self.shape(value)
        dims = (shape if perm is None else tuple(shape[axis] for axis in perm)) or (1,)
        if tensor.shape != dims:
            tensor = self.reshape(tensor, dims)
        wanted = self.held_dtype(self.source_dtype(value))
        coded = self.quantized or value in self._encodings  # also what a Quantize makes of a float
        if tensor.dtype != wanted and not (coded and tensor.dtype.is_quantized):
            tensor = self.cast(tensor, wanted)
        if tensor.held is not None or tensor.kind is not TensorKind.NATIVE:
            # The tensor already stands for another value or a constant: this value is one more name for it.
            self._journal.set(self._held, value, tensor)
            self._journal.set(self._order, id(tensor), perm)
            return
        self._claim(value, tensor, perm)

    def input(self, value: ir.Value) -> Tensor:
        """Create the graph input of a source value."""
        tensor = Tensor("", DType.UNDEFINED, (), TensorKind.APP_WRITE)
        shape = self.shape(value) or (1,)
        if value in self._encodings:
            tensor.dtype, tensor.encoding = self._encodings[value]
        else:
            tensor.dtype = self.held_dtype(self.source_dtype(value))
        tensor.shape = merged_shape(shape, self.max_rank)
        self._claim(value, tensor, None)
        self.graph.inputs.append(tensor)
        if tensor.shape != shape:
            view = Tensor("", tensor.dtype, shape, TensorKind.NATIVE, tensor.encoding, None, tensor.held)
            self.add_view(view, tensor)
            self._journal.set(self._held, value, view)
        return tensor

    def _claim(self, value: ir.Value, tensor: Tensor, perm: Perm | None) -> None:
        source = value.name or ""
        if tensor.name:
            self.names.release(tensor.name)
        tensor.name = self.names.legal(source) if value not in self._held else self._fresh(source)
        tensor.held = Held(source, dtype_name(self.source_dtype(value)), self.shape(value), perm)
        self._journal.set(self._held, value, tensor)
        self._journal.set(self._order, id(tensor), perm)

    def _fresh(self, hint: str) -> str:
        name = self.names.fresh(hint)
        self._journal.entries.append(lambda: self.names.release(name))
        return name

    # -- ops ---------------------------------------------------------------------------------------------------

    def emit(self, op_type: str, inputs: Sequence[Tensor | None], outputs: Sequence[Tensor], **params: Any) -> Tensor:
        """Append one op and return its first output.

        A parameter is a number, a bool, an enum's name or a (nested) list; its QNN dtype is looked up in the op
        definitions; a `Param` is taken as is. None leaves an optional parameter out. Raises Refused when a
        target's backend does not accept the op, NeedsFloat when an output in quantized mode has no encoding.
        """
        if op_type in MOVEMENT and inputs[0] is not None and inputs[0].encoding is not None:
            for tensor in outputs:
                if tensor.encoding is None:
                    tensor.dtype, tensor.encoding = inputs[0].dtype, inputs[0].encoding
        if self.quantized and op_type != "Dequantize":
            for tensor in outputs:
                if tensor.dtype.is_float or (tensor.dtype.is_quantized and tensor.encoding is None):
                    raise NeedsFloat(f"{op_type} makes an intermediate that has no encoding")
        if any(tensor is not None and tensor.rank > self.max_rank for tensor in (*inputs, *outputs)):
            return emit_beyond(self, op_type, inputs, outputs, params)
        if op_type in SPREAD and outputs[0].rank > 4 and "integer_broadcast_beyond_four_axes_wrong" in self.quirks:
            inputs = spread(self, inputs, outputs[0])
        made = {name: as_param(op_type, name, value) for name, value in params.items() if value is not None}
        source = self.node.name if self.node is not None and self.node.name else op_type
        op = Op(self._fresh(source), op_type, list(inputs), list(outputs), made, origin=(source,))
        for target, validate in self._validators.items():
            if text := self._verdict(target, validate, op):
                raise Refused(op_type, target, text)
        self._append(op)
        return outputs[0]

    def emit_foreign(
        self, package: str, op_type: str, inputs: Sequence[Tensor | None], outputs: Sequence[Tensor],
        params: Mapping[str, Param],
    ) -> None:  # fmt: skip
        """Append an op of another package, which no backend here knows and hence none is asked about."""
        source = self.node.name if self.node is not None and self.node.name else op_type
        name = self._fresh(source)
        self._append(Op(name, op_type, list(inputs), list(outputs), dict(params), package, (source,)))

    def _append(self, op: Op) -> None:
        self.graph.ops.append(op)
        self._journal.entries.append(self.graph.ops.pop)

    def holds(self, value: ir.Value) -> bool:
        """Whether a tensor of the graph, or a constant, stands for a value."""
        return self.value(value) in self._held

    def _verdict(self, target: str, validate: Validator, op: Op) -> str | None:
        key = (target, op.type, validation_key(op))
        if key not in self._verdicts:
            self._verdicts[key] = validate(op)
        return self._verdicts[key]

    def forms(self, *forms: Callable[[], R]) -> R:
        """Try forms in order of preference; the first that every target accepts stands. Raises the last refusal."""
        failed: list[Unsupported] = []
        for form in forms:
            mark = len(self._journal.entries)
            try:
                result = form()
            except Unsupported as refusal:
                self._journal.rollback(mark)
                if isinstance(refusal, NeedsFloat):
                    raise
                failed.append(refusal)
                continue
            if failed:
                self.notes.append(f"form {len(failed) + 1} taken: {failed[0].reason}")
            return result
        reasons = "; ".join(dict.fromkeys(refusal.reason for refusal in failed))
        raise Unsupported(reasons, failed[0].hint, failed[-1].kind)

    def mark(self) -> int:
        """A point to go back to with `rollback`."""
        return len(self._journal.entries)

    def rollback(self, mark: int) -> None:
        """Take back every op, name and binding made since `mark`."""
        self._journal.rollback(mark)

    # -- common ops on tensors -----------------------------------------------------------------------------------

    def reshape(self, x: Tensor, shape: Sequence[int], axis: int | None = None) -> Tensor:
        """X with another shape; constants are reshaped here. `axis`: where a per-channel axis goes."""
        shape = tuple(int(dim) for dim in shape) or (1,)
        if x.shape == shape:
            return x
        if x.data is not None:
            encoding = x.encoding
            if encoding is not None and encoding.axis is not None:
                if axis is None:
                    raise NeedsFloat("a per-channel constant is reshaped across its channel axis")
                encoding = Encoding(**{**encoding.__dict__, "axis": axis})
            return Tensor(
                self._fresh(x.name), x.dtype, shape, TensorKind.STATIC, encoding, x.data.reshape(shape), x.held
            )
        return self.emit("Reshape", [x], [self.temp(shape, x.dtype, x.encoding)])

    def transpose(self, x: Tensor, perm: Sequence[int]) -> Tensor:
        """X with axes permuted: result axis i is x's axis perm[i]. Moving only 1-sized axes is a Reshape."""
        perm = tuple(int(axis) for axis in perm)
        if perm == tuple(range(x.rank)):
            return x
        shape = tuple(x.shape[axis] for axis in perm)
        if x.data is not None:
            return Tensor(
                self._fresh(x.name), x.dtype, shape, TensorKind.STATIC, moved(x.encoding, perm),
                x.data.transpose(perm), x.held,
            )  # fmt: skip
        moving = [axis for axis in perm if x.shape[axis] != 1]
        if moving == sorted(moving):
            return self.reshape(x, shape)
        return self.emit("Transpose", [x], [self.temp(shape, x.dtype, x.encoding)], perm=list(perm))

    def cast(self, x: Tensor, dtype: DType) -> Tensor:
        """X with elements of another dtype (raw codes for quantized tensors)."""
        if x.dtype == dtype:
            return x
        if x.data is not None and x.encoding is None:
            return self.static(x.data.astype(dtype.numpy), dtype)
        if dtype is DType.BOOL_8:
            return self.binary("ElementWiseNotEqual", x, self.like(0, x), dtype=DType.BOOL_8)
        return self.emit("Cast", [x], [self.temp(x.shape, dtype)])

    def like(self, number: float, x: Tensor) -> Tensor:
        """A constant [1] of x's dtype."""
        return self.static(np.array([number], x.dtype.numpy), x.dtype)

    def unary(self, op_type: str, x: Tensor, out: Tensor | None = None, **params: Any) -> Tensor:
        """One-input op of x's shape and dtype (or into `out`)."""
        return self.emit(op_type, [x], [out or self.temp(x.shape, x.dtype)], **params)

    def binary(
        self, op_type: str, a: Tensor | float, b: Tensor | float, out: Tensor | None = None, dtype: DType | None = None
    ) -> Tensor:
        """Broadcasting two-input op; a number becomes a constant of the other operand's dtype."""
        if not isinstance(a, Tensor):
            assert isinstance(b, Tensor)
            a = self.like(a, b)
        if not isinstance(b, Tensor):
            b = self.like(b, a)
        if out is None:
            shape = np.broadcast_shapes(a.shape, b.shape)
            out = self.temp(shape, dtype or a.dtype)
        return self.emit(op_type, [a, b], [out])

    def add(self, a: Tensor | float, b: Tensor | float, out: Tensor | None = None) -> Tensor:
        return self.binary("ElementWiseAdd", a, b, out)

    def sub(self, a: Tensor | float, b: Tensor | float, out: Tensor | None = None) -> Tensor:
        return self.binary("ElementWiseSubtract", a, b, out)

    def mul(self, a: Tensor | float, b: Tensor | float, out: Tensor | None = None) -> Tensor:
        return self.binary("ElementWiseMultiply", a, b, out)

    def div(self, a: Tensor | float, b: Tensor | float, out: Tensor | None = None) -> Tensor:
        return self.binary("ElementWiseDivide", a, b, out)

    def compare(self, op_type: str, a: Tensor | float, b: Tensor | float, out: Tensor | None = None) -> Tensor:
        """A comparison: BOOL_8 result."""
        return self.binary(op_type, a, b, out, dtype=DType.BOOL_8)

    def select(self, condition: Tensor, a: Tensor | float, b: Tensor | float, out: Tensor | None = None) -> Tensor:
        """Condition ? a : b, broadcasting."""
        if not isinstance(a, Tensor):
            assert isinstance(b, Tensor)
            a = self.like(a, b)
        if not isinstance(b, Tensor):
            b = self.like(b, a)
        shape = np.broadcast_shapes(condition.shape, a.shape, b.shape)
        if a.dtype is DType.INT_32 and "integer_select_of_a_scalar_is_wrong" in self.quirks:
            zeros = self.static(np.zeros(shape, np.int32))
            a, b = (x if x.shape == shape or np.prod(x.shape) > 1 else self.add(zeros, x) for x in (a, b))
        return self.emit("ElementWiseSelect", [condition, a, b], [out or self.temp(shape, a.dtype)])

    def slice(self, x: Tensor, axis: int, begin: int, end: int, step: int = 1) -> Tensor:
        """x[begin:end:step] along one axis; begin and end already clamped (end -1 for "to the start" of a reverse)."""
        length = len(range(begin, end, step))
        shape = (*x.shape[:axis], length, *x.shape[axis + 1 :])
        if x.data is not None and x.encoding is None:
            return self.static(np.take(x.data, range(begin, end, step), axis), x.dtype)
        ranges = [[0, dim, 1] for dim in x.shape]
        ranges[axis] = [begin, end, step]
        out = self.temp(shape, x.dtype, x.encoding)
        return self.emit(
            "StridedSlice", [x], [out], ranges=ranges, begin_mask=0, end_mask=0, shrink_axes=0, new_axes_mask=0
        )

    def concat(self, parts: Sequence[Tensor], axis: int, out: Tensor | None = None) -> Tensor:
        """Parts joined along one axis."""
        if len(parts) == 1 and out is None:
            return parts[0]
        shape = list(parts[0].shape)
        shape[axis] = sum(part.shape[axis] for part in parts)
        return self.emit("Concat", list(parts), [out or self.temp(shape, parts[0].dtype, parts[0].encoding)], axis=axis)

    def aligned(self, values: Sequence[ir.Value | None], rank: int | None = None) -> tuple[list[Tensor], Perm | None]:
        """Operands of a broadcasting op in one common axis order, and that order.

        The order is that of the largest operand of full rank that is held permuted; constants follow at no cost,
        other operands are transposed. Operands of lower rank get leading 1s where the order is not the source's.
        """
        ranks = [self.rank(value) for value in values]
        rank = max(ranks) if rank is None else rank
        orders = [
            (int(np.prod(self.shape(value))), self.order(value))
            for value, r in zip(values, ranks, strict=True)
            if r == rank and self.order(value) is not None
        ]
        if not orders:
            return [self.get(value) for value in values], None
        perm = max(orders, key=lambda pair: pair[0])[1]
        assert perm is not None
        tensors = []
        for value, r in zip(values, ranks, strict=True):
            if r == rank:
                tensors.append(self.get(value, perm))
                continue
            x = self.get(value)
            if x.shape != (1,):
                axis = x.encoding.axis + rank - r if x.encoding is not None and x.encoding.axis is not None else None
                x = self.transpose(self.reshape(x, (1,) * (rank - r) + self.shape(value), axis), perm)
            tensors.append(x)
        return tensors, perm

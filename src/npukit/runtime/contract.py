# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""The I/O contract at run time: from the source model's arrays to native tensors and back.

A `Port` is one input or output: what the source model calls it and how the artifact holds it (permuted, narrowed,
as float16, as integer codes with an encoding). Everything here is a pure function of arrays.

Faults are collected over all inputs and raised as one `InputError`. Accepted dtypes: the same kind (a float64 array
for a float32 input), integers for floats, booleans for both; values that do not fit are faults, never wrapped.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt

from npukit.artifacts.stamp import Stamp
from npukit.errors import ArtifactError, Fault, InputError, nearest
from npukit.qnn.graph import DType, Encoding, Graph, Tensor

Array = npt.NDArray[Any]
Shape = tuple[int | str | None, ...]

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Port:
    """One input or output.

    Attributes:
        name: name in the source model.
        dtype: dtype of the source's values, numpy-style ("float32", "int64", "bfloat16", "bool", "string").
        shape: shape in the source; a dimension that is free is its symbol or None (ONNX Runtime only).
        tensor: name in the artifact.
        held: how the artifact holds an element; None where it is the source's own dtype (ONNX Runtime).
        native_shape: shape in the artifact.
        perm: tensor axis i is source axis perm[i]; None where the order is the source's.
        encoding: the tensor's quantization parameters.
        narrowed: whether values may exist in the source's dtype that the tensor cannot hold.
    """

    name: str
    dtype: str
    shape: Shape
    tensor: str
    held: DType | None
    native_shape: Shape
    perm: tuple[int, ...] | None = None
    encoding: Encoding | None = None
    narrowed: bool = False

    @cached_property
    def numpy(self) -> np.dtype[Any]:
        """The dtype of the arrays that `Session.run` takes and gives."""
        return np.dtype(object) if self.dtype == "string" else np.dtype(self.dtype)

    @cached_property
    def native(self) -> np.dtype[Any]:
        """The dtype of the arrays that the backend takes and gives."""
        return self.numpy if self.held is None else self.held.numpy

    @cached_property
    def fixed_shape(self) -> tuple[int, ...] | None:
        """The native shape, None where a dimension is free."""
        dims = tuple(d for d in self.native_shape if isinstance(d, int))
        return dims if len(dims) == len(self.native_shape) else None

    @cached_property
    def coded(self) -> bool:
        """Whether source floats are integer codes in the tensor."""
        return self.held is not None and self.held.is_quantized and kind(self.numpy) == "float"

    @cached_property
    def shifted(self) -> bool:
        """Whether signed integer codes of the source are unsigned ones in the tensor, half their range higher."""
        held = self.held is not None and self.held.is_quantized and self.native.kind == "u"
        return held and self.numpy.kind == "i" and self.numpy.itemsize == self.native.itemsize

    @cached_property
    def plain(self) -> bool:
        """Whether the source's array is the native one, byte for byte."""
        return not self.coded and self.perm is None and self.numpy == self.native and self.shape == self.native_shape

    @cached_property
    def _permuted(self) -> tuple[int, ...]:
        # the source's shape in the tensor's order of axes; only for fixed shapes
        shape = tuple(int(d) for d in self.shape)  # type: ignore[arg-type]
        return shape if self.perm is None else tuple(shape[axis] for axis in self.perm)

    @cached_property
    def _inverse(self) -> tuple[int, ...] | None:
        if self.perm is None:
            return None
        inverse = [0] * len(self.perm)
        for i, axis in enumerate(self.perm):
            inverse[axis] = i
        return tuple(inverse)


def check_port(port: Port) -> Port:
    """The same port, if source and native form can belong together.

    Raises:
        ArtifactError: element counts differ, or a quantized tensor of a float source lacks its encoding.
    """
    if port.fixed_shape is not None and int(np.prod(port._permuted)) != int(np.prod(port.fixed_shape)):
        raise ArtifactError(
            f"the stamp gives shape {show(port.shape)}, the tensor has {show(port.native_shape)}",
            where=port.name,
            hint="the stamp belongs to another artifact: convert the model again",
        )
    if port.coded and (port.encoding is None or port.encoding.block_shape or port.encoding.block_scales):
        raise ArtifactError("the quantized tensor has no encoding that its values can be read with", where=port.name)
    return port


# ---------------------------------------------------------------- checking


def gather(ports: Sequence[Port], feeds: Mapping[str, Any], ignored: Sequence[Port] = ()) -> list[Array]:
    """The arrays of `feeds` in the order of `ports`, with the source's dtypes and shapes.

    A name may be the source's or the artifact's; `ignored` inputs may be there and are not looked at.

    Raises:
        InputError: lists every input that is missing, unknown, given twice, of the wrong shape or dtype, or that
            holds a value out of range.
    """
    try:
        arrays = [feeds[port.name] for port in ports]
        if len(feeds) == len(ports) and all(_fits(p, a) for p, a in zip(ports, arrays, strict=True)):
            return arrays  # the usual call: nothing to look into
    except (KeyError, TypeError):
        pass
    return _gather(ports, feeds, {port.name for port in ignored})


def _fits(port: Port, array: Any) -> bool:
    return type(array) is np.ndarray and array.dtype == port.numpy and array.shape == port.shape


def _gather(ports: Sequence[Port], feeds: Mapping[str, Any], ignored: set[str]) -> list[Array]:
    if not isinstance(feeds, Mapping):
        raise InputError(f"inputs are a dict of arrays by name, not a {type(feeds).__name__}")
    faults: list[Fault] = []
    given: dict[str, Any] = {}
    by_tensor = {port.tensor: port.name for port in ports}
    names = {port.name for port in ports}
    for name, value in feeds.items():
        if name in ignored and name not in names:
            continue
        known = name if name in names else by_tensor.get(name)
        if known is None:
            faults.append(Fault("no such input", where=str(name), hint=nearest(str(name), names)))
        elif known in given:
            faults.append(Fault(f"given twice, as {known!r} and under its other name", where=str(name)))
        else:
            given[known] = value
    arrays = [_array(port, given, faults) for port in ports]
    if faults:
        raise _input_error(faults)
    return arrays


def _array(port: Port, given: Mapping[str, Any], faults: list[Fault]) -> Array:
    expected = f"{port.dtype} {show(port.shape)}"
    nothing: Array = np.empty(0)
    if port.name not in given:
        faults.append(Fault(f"missing, expected {expected}", where=port.name))
        return nothing
    value = given[port.name]
    try:
        array = np.asarray(value)
    except (ValueError, TypeError) as error:
        faults.append(Fault(f"not an array ({error}), expected {expected}", where=port.name))
        return nothing
    got = f"{array.dtype} {show(array.shape)}"
    wrong_shape = not shape_fits(port.shape, array.shape)
    wrong_dtype = not _accepts(port.numpy, array)
    if wrong_shape or wrong_dtype:
        what = " and ".join(w for w, bad in (("shape", wrong_shape), ("dtype", wrong_dtype)) if bad)
        faults.append(Fault(f"wrong {what}: expected {expected}, got {got}", where=port.name, hint=_hint(port, array)))
        return nothing
    if array.dtype == port.numpy:
        return array
    return _cast(port, array, port.numpy, faults)


def shape_fits(expected: Shape, got: Sequence[int]) -> bool:
    """Whether an array of shape `got` may be given where `expected` is; a free dimension takes any extent."""
    return len(expected) == len(got) and all(
        not isinstance(e, int) or e == g for e, g in zip(expected, got, strict=True)
    )


def _hint(port: Port, array: Array) -> str:
    if port.perm is not None and array.shape == port.native_shape and array.shape != port.shape:
        return "this is the artifact's own layout: run() takes the source's, bind() the artifact's"
    return ""


_KINDS = {
    "b": "bool",
    "i": "int",
    "u": "int",
    "f": "float",
    "c": "complex",
    "O": "string",
    "U": "string",
    "S": "string",
}
_ACCEPTED = {
    ("bool", "bool"), ("bool", "int"), ("bool", "float"), ("int", "int"), ("int", "float"), ("float", "float"),
    ("bool", "complex"), ("int", "complex"), ("float", "complex"), ("complex", "complex"), ("string", "string"),
}  # fmt: skip


def kind(dtype: np.dtype[Any]) -> str:
    """One of bool, int, float, complex, string, other; the kinds of ml_dtypes included."""
    if dtype.isbuiltin == 2:  # an extension type: ml_dtypes
        return "int" if dtype.name.lstrip("u").startswith("int") else "float"
    return _KINDS.get(dtype.kind, "other")


def _accepts(expected: np.dtype[Any], array: Array) -> bool:
    got = kind(array.dtype)
    if got == "string" and array.dtype == object:
        return kind(expected) == "string" and all(isinstance(v, (str, bytes)) for v in array.flat)
    return (got, kind(expected)) in _ACCEPTED


def _input_error(faults: Sequence[Fault]) -> InputError:
    if len(faults) == 1:
        return InputError(faults[0].what, where=f"input {faults[0].where!r}", hint=faults[0].hint)
    return InputError(f"{len(faults)} faults in the inputs", faults=faults)


def show(shape: Sequence[object]) -> str:
    """A shape as text."""
    return "[" + ", ".join("?" if d is None else str(d) for d in shape) + "]"


# ---------------------------------------------------------------- casting


def _cast(port: Port, array: Array, dtype: np.dtype[Any], faults: list[Fault]) -> Array:
    """`array` as `dtype`; a value that does not fit is a fault at its position."""
    if kind(array.dtype) == "int" and kind(dtype) == "int":
        _check_range(port, array, dtype, faults)
        return array.astype(dtype)
    if kind(dtype) == "string":
        return array.astype(object)
    try:
        with np.errstate(over="raise"):
            return array.astype(dtype)
    except FloatingPointError:
        with np.errstate(over="ignore"):
            cast: Array = array.astype(dtype)
        lost = np.isinf(cast) & np.isfinite(array)
        _fault_at(port, array, lost, f"beyond the range of {dtype.name}", faults)
        return cast


def _check_range(port: Port, array: Array, dtype: np.dtype[Any], faults: list[Fault]) -> None:
    limits = _int_limits(dtype)
    if array.size == 0 or np.can_cast(array.dtype, dtype, "safe"):
        return
    low, high = int(array.min()), int(array.max())
    if low < limits[0] or high > limits[1]:
        wide = array.astype(object) if array.dtype == np.uint64 else array
        outside = np.asarray((wide < limits[0]) | (wide > limits[1]), dtype=bool)
        held = "held as" if dtype != port.numpy else "of"
        _fault_at(
            port, array, outside, f"outside {limits[0]} to {limits[1]} (the input is {held} {dtype.name})", faults
        )


def _int_limits(dtype: np.dtype[Any]) -> tuple[int, int]:
    info: Any = ml_dtypes.iinfo(dtype) if dtype.isbuiltin == 2 else np.iinfo(dtype)  # type: ignore[no-untyped-call]
    return int(info.min), int(info.max)


def _fault_at(port: Port, array: Array, bad: Array, why: str, faults: list[Fault]) -> None:
    first = np.unravel_index(int(np.argmax(bad)), array.shape)
    position = show([int(i) for i in first])
    more = int(np.count_nonzero(bad)) - 1
    also = f", and {more} more" if more else ""
    faults.append(Fault(f"value {array[first]} at {position} is {why}{also}", where=port.name))


# ---------------------------------------------------------------- to native tensors and back


def to_native(ports: Sequence[Port], arrays: Sequence[Array], outs: Sequence[Array | None]) -> list[Array]:
    """Checked source arrays as native tensors, written to `outs` where given.

    Where an `out` is None and the source's array is the native one already, it is passed on, not copied.

    Raises:
        InputError: lists every input with a value that the tensor cannot hold.
    """
    faults: list[Fault] = []
    natives = [_to_native(p, a, o, faults) for p, a, o in zip(ports, arrays, outs, strict=True)]
    if faults:
        raise _input_error(faults)
    return natives


def _to_native(port: Port, array: Array, out: Array | None, faults: list[Fault]) -> Array:
    if port.plain:
        if out is not None:
            np.copyto(out, array)
            return out
        return array if array.flags.c_contiguous else np.ascontiguousarray(array)
    shape = port.fixed_shape
    if shape is None:  # only ONNX Runtime has free dimensions, and it takes the source's arrays
        return np.ascontiguousarray(array)
    if out is None:
        out = np.empty(shape, port.native)
    # `out` is contiguous, so this is a view of it in the tensor's order, seen with the source's extents
    view = out.reshape(port._permuted)
    values = array if port.perm is None else array.transpose(port.perm)
    if port.coded:
        _quantize(port, values, view, faults)
    elif port.shifted:
        np.bitwise_xor(values.view(port.native), _top_bit(port.native), out=view)
    elif kind(port.numpy) == "int" and kind(port.native) == "int":
        if port.native != port.numpy:
            _check_range(port, array, port.native, faults)
        np.copyto(view, values, casting="unsafe")
    else:
        _copy_float(port, array, values, view, faults)
    return out


def _copy_float(port: Port, array: Array, values: Array, view: Array, faults: list[Fault]) -> None:
    try:
        with np.errstate(over="raise"):
            np.copyto(view, values, casting="unsafe")
    except FloatingPointError:
        if port.native.itemsize > 2:
            lost = np.isfinite(array) & (np.abs(array) > float(np.finfo(port.native).max))
            _fault_at(port, array, lost, f"beyond the range of {port.native.name}, which holds the input", faults)
            return
        # Attention masks hold the lowest float32: in float16 that is its lowest number, as it would be on the NPU.
        most = float(ml_dtypes.finfo(port.native).max)  # type: ignore[no-untyped-call]
        _log.warning("input %r has values beyond %g, which float16 holds as its extremes", port.name, most)
        finite = np.where(np.isinf(values), values, np.clip(values, -most, most))
        np.copyto(view, finite, casting="unsafe")


def from_native(port: Port, native: Array) -> Array:
    """A native tensor as a fresh array of the source's name, dtype and layout."""
    if port.plain:
        return native.copy()
    if port.fixed_shape is None:
        return np.array(native, dtype=port.numpy)
    view = native.reshape(port._permuted)
    if port.coded:
        view = dequantize(view, _spread(port, view.ndim), port.numpy)
    elif port.shifted:
        view = np.bitwise_xor(view, _top_bit(port.native)).view(port.numpy)
    if port._inverse is not None:
        view = view.transpose(port._inverse)
    if port.numpy == np.bool_ and view.dtype != np.bool_:
        view = view != 0
    return np.array(view, dtype=port.numpy, order="C")


def _top_bit(dtype: np.dtype[Any]) -> Any:
    # adding half of the range modulo the range turns only the top bit
    return dtype.type(1 << (8 * dtype.itemsize - 1))


# ---------------------------------------------------------------- integer codes


@dataclass(frozen=True)
class Codes:
    """An encoding made ready for arrays: scales and offsets that broadcast, and the range of codes."""

    scale: Array
    offset: Array
    low: int
    high: int
    exact: bool


def codes(encoding: Encoding, held: DType, rank: int) -> Codes:
    """The `Codes` of a per-tensor or per-axis encoding of a tensor of this dtype and rank."""
    bits = encoding.bitwidth or {DType.SFIXED_POINT_4: 4, DType.UFIXED_POINT_4: 4}.get(held, held.bits)
    signed = np.issubdtype(held.numpy, np.signedinteger)
    low = -(1 << (bits - 1)) if signed else 0
    exact = bits > 16  # float32 has 24 bits: enough for codes of 16
    shape = [1] * rank
    if encoding.axis is not None:
        shape[encoding.axis] = len(encoding.scales)
    dtype = np.float64 if exact else np.float32
    # The library keeps scales as float32; a float64 one would round differently.
    scale = np.asarray(encoding.scales, np.float32).astype(dtype).reshape(shape if encoding.axis is not None else ())
    offset = np.asarray(encoding.offsets, dtype).reshape(scale.shape)
    return Codes(scale, offset, low, low + (1 << bits) - 1, exact)


def quantize(values: Array, code: Codes, out: Array) -> None:
    """`out = clip(round_half_even(values / scale) - offset)`.

    Raises:
        FloatingPointError: a value is NaN.
    """
    wide = np.divide(values, code.scale, dtype=code.scale.dtype, casting="unsafe")
    np.rint(wide, out=wide)
    np.subtract(wide, code.offset, out=wide)
    np.clip(wide, code.low, code.high, out=wide)
    with np.errstate(invalid="raise"):
        np.copyto(out, wide, casting="unsafe")


def dequantize(native: Array, code: Codes, dtype: np.dtype[Any]) -> Array:
    """`(native + offset) * scale` as `dtype`."""
    wide = native.astype(code.scale.dtype)
    wide += code.offset
    wide *= code.scale
    return wide if wide.dtype == dtype else wide.astype(dtype)


def _spread(port: Port, rank: int) -> Codes:
    cached: Codes | None = port.__dict__.get("_codes")
    if cached is None:
        assert port.encoding is not None
        assert port.held is not None
        cached = codes(port.encoding, port.held, rank)
        port.__dict__["_codes"] = cached  # as functools.cached_property does on a frozen dataclass
    return cached


def _quantize(port: Port, values: Array, view: Array, faults: list[Fault]) -> None:
    try:
        quantize(values, _spread(port, values.ndim), view)
    except FloatingPointError:
        array = values if port._inverse is None else values.transpose(port._inverse)
        _fault_at(port, array, np.isnan(array), "not a number, which integer codes cannot hold", faults)


# ---------------------------------------------------------------- ports of an artifact


def native_ports(tensors: Sequence[Tensor], *, dequantize: bool = False) -> list[Port]:
    """Ports of a file without stamp: every tensor as it is, quantized ones as integer codes.

    With `dequantize`, quantized ones are float32 by their encodings; ArtifactError where one cannot be read so.
    """
    ports = []
    for t in tensors:
        dtype = "float32" if dequantize and t.dtype.is_quantized else t.dtype.numpy.name
        ports.append(check_port(Port(t.name, dtype, t.shape, t.name, t.dtype, t.shape, encoding=t.encoding)))
    return ports


def numpy_name(dtype: str) -> str:
    """The numpy-style name of an element type that may be spelled as ONNX spells it ("float", "float8e4m3fn")."""
    return _ONNX_NAMES.get(dtype, dtype)


_ONNX_NAMES = {
    "float": "float32",
    "double": "float64",
    "float8e4m3fn": "float8_e4m3fn",
    "float8e4m3fnuz": "float8_e4m3fnuz",
    "float8e5m2": "float8_e5m2",
    "float8e5m2fnuz": "float8_e5m2fnuz",
    "float8e8m0": "float8_e8m0fnu",
    "float4e2m1": "float4_e2m1fn",
}


def held_ports(tensors: Sequence[Tensor]) -> list[Port]:
    """Ports of a graph that was lowered in this process: its tensors say themselves what they hold."""
    ports = []
    for t in tensors:
        if t.held is None:
            ports += native_ports([t])
            continue
        name, held = numpy_name(t.held.dtype), t.dtype.numpy
        source = np.dtype(name)
        narrowed = kind(source) == kind(held) and not np.can_cast(source, held, "safe")
        port = Port(t.held.source, name, t.held.shape, t.name, t.dtype, t.shape, t.held.perm, t.encoding, narrowed)
        ports.append(check_port(port))
    return ports


def ignored_ports(stamp: Stamp, graph: Graph) -> tuple[Port, ...]:
    """The stamp's inputs that are in the contract but not in the graph, because no op reads them."""
    present = {tensor.name for tensor in graph.inputs}
    entries = [io for io in stamp.inputs if io.graph in ("", graph.name) and io.tensor not in present]
    return tuple(Port(io.name, numpy_name(io.dtype), io.shape, "", None, io.shape) for io in entries)


def ports_of(stamp: Stamp, graph: Graph, side: str) -> list[Port]:
    """The stamp's `side` ("inputs" or "outputs") as ports of `graph`, in the stamp's order.

    Inputs that the graph lacks are left out, see `ignored_ports`; every tensor of the graph must be described.

    Raises:
        ArtifactError: stamp and graph do not belong together; every difference is listed.
    """
    tensors: dict[str, Tensor] = {t.name: t for t in (graph.inputs if side == "inputs" else graph.outputs)}
    unknown = set(tensors)
    entries = [io for io in getattr(stamp, side) if io.graph in ("", graph.name)]
    faults: list[Fault] = []
    ports: list[Port] = []
    for io in entries:
        tensor = tensors.get(io.tensor)
        if tensor is None:
            if side == "outputs":
                hint = nearest(io.tensor, tensors)
                faults.append(Fault(f"the graph has no tensor {io.tensor!r}", where=io.name, hint=hint))
            continue
        unknown.discard(io.tensor)
        if tensor.dtype.name != io.held_dtype:
            faults.append(Fault(f"the stamp says {io.held_dtype}, the tensor is {tensor.dtype.name}", where=io.name))
            continue
        held, shape = tensor.dtype, tensor.shape
        dtype = numpy_name(io.dtype)
        port = Port(io.name, dtype, io.shape, io.tensor, held, shape, io.perm, tensor.encoding, io.narrowed)
        try:
            ports.append(check_port(port))
        except ArtifactError as error:
            faults.append(Fault(error.what, where=error.where))
    faults += [Fault("the stamp does not know this tensor", where=name) for name in sorted(unknown)]
    if faults:
        raise ArtifactError(
            f"the stamp does not describe the {side} of graph {graph.name!r}",
            faults=faults,
            hint="convert the source model again",
        )
    return ports

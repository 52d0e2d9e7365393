# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""Reads a .tflite flatbuffer into plain records; weights stay in the file and are memory-mapped.

The schema comes from the package `tflite` (generated classes). A flatbuffer is offsets into itself: each that leads out
of the file, and each table that claims to be larger than the file, ends in one `ModelError`.
"""

from __future__ import annotations

import functools
import hashlib
import importlib
import mmap
import os
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx_ir as ir

from npukit.errors import MissingDependency, ModelError

Array = np.ndarray[Any, Any]

# What reading a damaged flatbuffer raises: it is arithmetic on offsets that a file can make up.
BROKEN = (struct.error, IndexError, ValueError, TypeError, AttributeError, OverflowError, AssertionError, KeyError)

_DTYPES = {
    "FLOAT32": ir.DataType.FLOAT,
    "FLOAT16": ir.DataType.FLOAT16,
    "BFLOAT16": ir.DataType.BFLOAT16,
    "FLOAT64": ir.DataType.DOUBLE,
    "INT4": ir.DataType.INT4,
    "INT8": ir.DataType.INT8,
    "UINT8": ir.DataType.UINT8,
    "INT16": ir.DataType.INT16,
    "UINT16": ir.DataType.UINT16,
    "INT32": ir.DataType.INT32,
    "UINT32": ir.DataType.UINT32,
    "INT64": ir.DataType.INT64,
    "UINT64": ir.DataType.UINT64,
    "BOOL": ir.DataType.BOOL,
}


@dataclass(frozen=True)
class Quantization:
    """real = scale * (code - zero_point), per tensor or along `axis`."""

    scales: Array
    zero_points: Array
    axis: int

    @property
    def per_axis(self) -> bool:
        return bool(self.scales.size > 1)


@dataclass
class TensorRecord:
    """One tensor of a subgraph.

    Attributes:
        index: its number in the subgraph.
        name: as in the file.
        shape: as in the file; open dimensions have the size that the file was written with.
        open_axes: the axes whose size is open.
        dtype: None for one that npukit has no tensors of (`type_name` says which).
        quantization: scale and zero point, None where it has none.
        data: the constant's values, None where it is computed.
        problem: why it cannot be used; empty where it can.
    """

    index: int
    name: str
    shape: tuple[int, ...]
    open_axes: tuple[int, ...]
    dtype: ir.DataType | None
    type_name: str
    quantization: Quantization | None = None
    data: Array | None = None
    problem: str = ""


@dataclass
class OpRecord:
    """One operator: `code` is the builtin's name, or the custom op's with `custom` set and its options as bytes."""

    index: int
    code: str
    version: int
    custom: bool
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    options: Any = None
    custom_options: bytes = b""

    def get(self, name: str, default: Any) -> Any:
        """A field of the op's options by its accessor's name; `default` where the file has no options."""
        return default if self.options is None else getattr(self.options, name)()


@dataclass
class Signature:
    """An entry point: names the user knows -> tensors of a subgraph."""

    key: str
    subgraph: int
    inputs: dict[str, int]
    outputs: dict[str, int]


@dataclass
class SubgraphRecord:
    """Tensors and operators of one subgraph, in file order (which is an order of execution)."""

    name: str
    tensors: list[TensorRecord]
    ops: list[OpRecord]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]


@dataclass
class FlatFile:
    """What a .tflite file holds."""

    path: Path | None
    subgraphs: list[SubgraphRecord]
    signatures: list[Signature]
    description: str
    digest: Callable[[], str] = field(repr=False, default=lambda: "")


@functools.cache
def schema() -> Any:
    """The package of generated classes.

    Raises:
        MissingDependency: it is not installed.
    """
    try:
        return importlib.import_module("tflite")
    except ImportError:
        raise MissingDependency(
            "reading a TensorFlow Lite file needs the package tflite", hint='pip install "npukit[tflite]"'
        ) from None


def read_file(path: Path) -> FlatFile:
    """Read the file at `path`.

    Raises:
        ModelError: it is missing, unreadable, or not a whole TensorFlow Lite file.
        MissingDependency: the schema package is not installed.
    """
    schema()
    try:
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            content = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) if size else b""
    except FileNotFoundError:
        raise ModelError("there is no such file", where=str(path)) from None
    except (OSError, ValueError) as error:
        raise ModelError(f"cannot be read: {getattr(error, 'strerror', None) or error}", where=str(path)) from None
    return read_content(content, path)


def read_content(content: bytes | mmap.mmap, path: Path | None = None) -> FlatFile:
    """Read a flatbuffer in memory. Raises as `read_file`."""
    where = str(path) if path is not None else "the model"
    if content[4:8] != b"TFL3":
        raise ModelError("this is not a TensorFlow Lite file", where=where)
    try:
        reader = _Reader(content)
        subgraphs, signatures = reader.subgraphs(), reader.signatures()
        _check_indices(subgraphs, signatures)
    except BROKEN as error:
        text = " ".join(str(error).split())[:200]
        raise ModelError(
            f"this is not a whole TensorFlow Lite file: {text}", where=where, hint="was it cut off? fetch it again"
        ) from None
    return FlatFile(path, subgraphs, signatures, reader.description, lambda: hashlib.sha256(content).hexdigest())


def _check_indices(subgraphs: list[SubgraphRecord], signatures: list[Signature]) -> None:
    for graph in subgraphs:
        count = len(graph.tensors)
        used = [*graph.inputs, *graph.outputs, *(i for op in graph.ops for i in op.outputs)]
        if any(not 0 <= i < count for i in used) or any(not -1 <= i < count for op in graph.ops for i in op.inputs):
            raise ValueError(f"subgraph {graph.name!r} refers to tensors that it does not have")
    for signature in signatures:
        if not 0 <= signature.subgraph < len(subgraphs):
            raise ValueError(f"signature {signature.key!r} refers to no subgraph")
        count = len(subgraphs[signature.subgraph].tensors)
        if any(not 0 <= i < count for i in (*signature.inputs.values(), *signature.outputs.values())):
            raise ValueError(f"signature {signature.key!r} refers to tensors that its subgraph does not have")


class _Reader:
    def __init__(self, content: bytes | mmap.mmap) -> None:
        self.tfl = schema()
        self.content = content
        # A file can let many tables share one long vector: what is read in all stays in proportion to the file.
        self.left = 4 * len(content) + 4096
        self.model = self.tfl.Model.GetRootAsModel(content, 0)
        self.codes = [
            self._code(code) for code in self._each(self.model.OperatorCodesLength(), self.model.OperatorCodes)
        ]
        self.buffer_count = self.model.BuffersLength()
        self._spend(4 * self.buffer_count)
        self.description = self._text(self.model.Description())
        self.builtin = _names(self.tfl.BuiltinOperator)
        self.types = _names(self.tfl.TensorType)
        self.option_types = _names(self.tfl.BuiltinOptions)
        self.option_types2 = _names(self.tfl.BuiltinOptions2)

    def _spend(self, count: int) -> None:
        self.left -= count
        if self.left < 0:
            raise ValueError("its tables are larger than the file")

    def _each(self, length: int, get: Callable[[int], Any]) -> Iterator[Any]:
        self._spend(4 * length)
        return (get(i) for i in range(length))

    def _ints(self, table: Any, name: str) -> tuple[int, ...]:
        length = getattr(table, f"{name}Length")()
        self._spend(4 * length)
        return tuple(int(i) for i in getattr(table, f"{name}AsNumpy")()) if length else ()

    def _text(self, value: bytes | None) -> str:
        self._spend(len(value or b""))
        return (value or b"").decode("utf-8", "replace")

    def _code(self, code: Any) -> tuple[int, str, int]:
        # files before 2020 have the number only in the field of one byte
        number = max(int(code.DeprecatedBuiltinCode()), int(code.BuiltinCode()))
        return number, self._text(code.CustomCode()), int(code.Version())

    def subgraphs(self) -> list[SubgraphRecord]:
        return [self._subgraph(g) for g in self._each(self.model.SubgraphsLength(), self.model.Subgraphs)]

    def _subgraph(self, graph: Any) -> SubgraphRecord:
        tensors = [self._tensor(i, t) for i, t in enumerate(self._each(graph.TensorsLength(), graph.Tensors))]
        ops = [self._op(i, op) for i, op in enumerate(self._each(graph.OperatorsLength(), graph.Operators))]
        return SubgraphRecord(
            self._text(graph.Name()), tensors, ops, self._ints(graph, "Inputs"), self._ints(graph, "Outputs")
        )

    def _tensor(self, index: int, tensor: Any) -> TensorRecord:
        type_name = self.types.get(tensor.Type(), f"type {tensor.Type()}")
        shape, signature = self._ints(tensor, "Shape"), self._ints(tensor, "ShapeSignature")
        if any(d < 0 for d in shape):
            signature = signature or shape
            shape = tuple(max(d, 1) for d in shape)
        open_axes = tuple(i for i, d in enumerate(signature) if d < 0 and i < len(shape))
        record = TensorRecord(
            index, self._text(tensor.Name()) or f"tensor_{index}", shape, open_axes, _DTYPES.get(type_name), type_name
        )
        record.quantization = self._quantization(record, tensor.Quantization())
        if tensor.Sparsity() is not None:
            record.problem = "a sparse tensor"
        elif tensor.IsVariable():
            record.problem = "a variable: it keeps its value from run to run"
        elif tensor.Buffer():
            record.data = self._data(record, int(tensor.Buffer()))
        return record

    def _quantization(self, tensor: TensorRecord, table: Any) -> Quantization | None:
        if table is None or not table.ScaleLength():
            if table is not None and table.DetailsType():
                tensor.problem = "a kind of quantization that npukit does not know"
            return None
        self._spend(4 * table.ScaleLength() + 8 * table.ZeroPointLength())
        scales = np.array(table.ScaleAsNumpy(), np.float32)
        points = np.array(table.ZeroPointAsNumpy(), np.int64) if table.ZeroPointLength() else np.zeros(1, np.int64)
        if points.size == 1:
            points = np.repeat(points, scales.size)
        axis = int(table.QuantizedDimension())
        if scales.size == 1 and scales[0] == 0:  # written by old converters where there is none
            return None
        if points.size != scales.size or (
            scales.size > 1 and not (axis < len(tensor.shape) and tensor.shape[axis] == scales.size)
        ):
            raise ValueError(f"the quantization of tensor {tensor.name!r} does not fit its shape")
        if not (np.isfinite(scales).all() and (scales > 0).all()):
            raise ValueError(f"a scale of tensor {tensor.name!r} is not a positive number")
        return Quantization(scales, points, axis)

    def _data(self, tensor: TensorRecord, number: int) -> Array | None:
        if not 0 <= number < self.buffer_count:
            raise ValueError(f"tensor {tensor.name!r} refers to a buffer that is not there")
        buffer = self.model.Buffers(number)
        if buffer.Offset() > 1:  # the bytes stand behind the flatbuffer, in a file above 2 GB
            raw = np.frombuffer(self.content, np.uint8, int(buffer.Size()), int(buffer.Offset()))
        elif buffer.DataLength():
            raw = buffer.DataAsNumpy()
        else:
            return None
        if tensor.dtype is None:
            tensor.problem = f"a constant of {tensor.type_name}"
            return None
        count = int(np.prod(tensor.shape, dtype=object)) if tensor.shape else 1
        if tensor.dtype is ir.DataType.INT4:
            if raw.size != (count + 1) // 2:
                raise ValueError(f"tensor {tensor.name!r} holds {raw.size} bytes where {(count + 1) // 2} are needed")
            low, high = raw & 15, raw >> 4
            codes = np.stack([low, high], -1).reshape(-1)[:count].astype(np.int8)
            return np.where(codes > 7, codes - 16, codes).reshape(tensor.shape).astype(ml_dtypes.int4)
        dtype = tensor.dtype.numpy()
        if raw.size != count * dtype.itemsize:
            raise ValueError(
                f"tensor {tensor.name!r} holds {raw.size} bytes where its shape {list(tensor.shape)} needs "
                f"{count * dtype.itemsize}"
            )
        return raw.view(dtype).reshape(tensor.shape)

    def _op(self, index: int, op: Any) -> OpRecord:
        number, custom, version = self.codes[op.OpcodeIndex()]
        name = self.builtin.get(number, f"builtin {number}")
        record = OpRecord(
            index,
            custom if name == "CUSTOM" else name,
            version,
            name == "CUSTOM",
            self._ints(op, "Inputs"),
            self._ints(op, "Outputs"),
        )
        if record.custom and op.CustomOptionsLength():
            self._spend(op.CustomOptionsLength())
            record.custom_options = op.CustomOptionsAsNumpy().tobytes()
        for kind, table, names in (
            (op.BuiltinOptionsType(), op.BuiltinOptions(), self.option_types),
            (op.BuiltinOptions2Type(), op.BuiltinOptions2(), self.option_types2),
        ):
            options = getattr(self.tfl, names.get(kind, ""), None) if table is not None and kind else None
            if options is not None:
                record.options = options()
                record.options.Init(table.Bytes, table.Pos)
        return record

    def signatures(self) -> list[Signature]:
        found = []
        for table in self._each(self.model.SignatureDefsLength(), self.model.SignatureDefs):
            ends = []
            for side in ("Inputs", "Outputs"):
                maps = self._each(getattr(table, f"{side}Length")(), getattr(table, side))
                ends.append({self._text(m.Name()): int(m.TensorIndex()) for m in maps})
            found.append(Signature(self._text(table.SignatureKey()), int(table.SubgraphIndex()), *ends))
        return found


def _names(enum: Any) -> dict[int, str]:
    return {value: name for name, value in vars(enum).items() if not name.startswith("_")}


@functools.cache
def builtin_names() -> tuple[str, ...]:
    """Every builtin operator that the schema package knows, in the schema's order."""
    names = _names(schema().BuiltinOperator)
    return tuple(names[number] for number in sorted(names) if names[number] not in ("CUSTOM", "DELEGATE"))

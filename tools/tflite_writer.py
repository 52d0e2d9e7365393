# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""Writes small .tflite files with the classes that TensorFlow Lite's own interpreter brings, for tests and tables."""

from __future__ import annotations

from typing import Any

import flatbuffers
import numpy as np
from ai_edge_litert import schema_py_generated as schema

Array = np.ndarray[Any, Any]

# Operators that the interpreter has from a later version on only.
_VERSIONS = {"BROADCAST_TO": 2}
_TYPES = {
    "float32": schema.TensorType.FLOAT32, "float16": schema.TensorType.FLOAT16, "int8": schema.TensorType.INT8,
    "uint8": schema.TensorType.UINT8, "int16": schema.TensorType.INT16, "int32": schema.TensorType.INT32,
    "int64": schema.TensorType.INT64, "bool": schema.TensorType.BOOL, "complex64": schema.TensorType.COMPLEX64,
    "uint32": schema.TensorType.UINT32, "uint16": schema.TensorType.UINT16, "resource": schema.TensorType.RESOURCE,
}  # fmt: skip


class Subgraph:
    """One subgraph; tensors are numbers."""

    def __init__(self, model: Model, name: str) -> None:
        self.model = model
        self.table = schema.SubGraphT()
        self.table.name, self.table.tensors, self.table.operators = name, [], []
        self.table.inputs, self.table.outputs = [], []

    def tensor(
        self, name: str, shape: tuple[int, ...], dtype: str, data: Array | None = None, *, scale: Any = None,
        point: Any = 0, axis: int = 0, variable: bool = False,
    ) -> int:  # fmt: skip
        """A tensor; a constant with `data`, quantized with `scale` (and `point`), one or one a slice of `axis`."""
        table = schema.TensorT()
        table.name, table.shape, table.type, table.isVariable = name, list(shape), _TYPES[dtype], variable
        table.buffer = self.model.buffer(data)
        if scale is not None:
            table.quantization = schema.QuantizationParametersT()
            table.quantization.scale = [float(s) for s in np.atleast_1d(scale)]
            table.quantization.zeroPoint = [int(p) for p in np.broadcast_to(point, np.atleast_1d(scale).shape)]
            table.quantization.quantizedDimension = axis
        self.table.tensors.append(table)
        return len(self.table.tensors) - 1

    def operator(
        self, code: str, inputs: list[int], outputs: list[int], options: str = "", custom: bytes = b"", **fields: Any
    ) -> None:
        """An operator; `options` is the name of the table of its options, `fields` are its fields."""
        table = schema.OperatorT()
        table.opcodeIndex = self.model.code(code, bool(custom) or not hasattr(schema.BuiltinOperator, code))
        table.inputs, table.outputs = inputs, outputs
        if custom:
            table.customOptions = list(custom)
        if options:
            kind = getattr(schema, f"{options}T")()
            for name, value in fields.items():
                if not hasattr(kind, name):
                    raise AttributeError(f"{options} has no field {name}")
                setattr(kind, name, value)
            second = not hasattr(schema.BuiltinOptions, options)
            if second:
                table.builtinOptions2Type, table.builtinOptions2 = getattr(schema.BuiltinOptions2, options), kind
            else:
                table.builtinOptionsType, table.builtinOptions = getattr(schema.BuiltinOptions, options), kind
        self.table.operators.append(table)


class Model:
    """A model in the making."""

    def __init__(self) -> None:
        self.table = schema.ModelT()
        self.table.version, self.table.description = 3, "npukit"
        self.table.operatorCodes, self.table.subgraphs = [], []
        self.table.buffers = [schema.BufferT()]
        self._codes: dict[str, int] = {}

    def subgraph(self, name: str = "main") -> Subgraph:
        """A new subgraph; the first is the entry."""
        found = Subgraph(self, name)
        self.table.subgraphs.append(found.table)
        return found

    def buffer(self, data: Array | None) -> int:
        """The number of a buffer with `data`; 0, the empty one, for None."""
        if data is None:
            return 0
        buffer = schema.BufferT()
        buffer.data = np.frombuffer(np.ascontiguousarray(data).tobytes(), np.uint8)
        self.table.buffers.append(buffer)
        return len(self.table.buffers) - 1

    def code(self, name: str, custom: bool) -> int:
        """The number of an operator code."""
        if name not in self._codes:
            table = schema.OperatorCodeT()
            number = schema.BuiltinOperator.CUSTOM if custom else getattr(schema.BuiltinOperator, name)
            table.builtinCode, table.deprecatedBuiltinCode = number, min(number, 127)
            table.customCode, table.version = name if custom else None, _VERSIONS.get(name, 1)
            self.table.operatorCodes.append(table)
            self._codes[name] = len(self.table.operatorCodes) - 1
        return self._codes[name]

    def content(self) -> bytes:
        """The file."""
        builder = flatbuffers.Builder(4096)
        builder.Finish(self.table.Pack(builder), b"TFL3")
        return bytes(builder.Output())

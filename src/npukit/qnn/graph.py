# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""npukit's graph IR: tensors, ops and params exactly as the QNN API has them.

Writing a DLC, building a context binary, running on the CPU backend and emitting model source are one walk
over a `Graph` with different sinks; capture and lowering produce one. Facts on enums and layouts:
shared/reference/qnn_abi.md sections 4 and 5.
"""

from __future__ import annotations

import enum
import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]


class DType(enum.IntEnum):
    """Qnn_DataType_t: the codes of the C API."""

    INT_8 = 0x0008
    INT_16 = 0x0016
    INT_32 = 0x0032
    INT_64 = 0x0064
    UINT_8 = 0x0108
    UINT_16 = 0x0116
    UINT_32 = 0x0132
    UINT_64 = 0x0164
    FLOAT_16 = 0x0216
    BFLOAT_16 = 0x0226
    FLOAT_32 = 0x0232
    FLOAT_64 = 0x0264
    SFIXED_POINT_4 = 0x0304
    SFIXED_POINT_8 = 0x0308
    SFIXED_POINT_16 = 0x0316
    SFIXED_POINT_32 = 0x0332
    UFIXED_POINT_4 = 0x0404
    UFIXED_POINT_8 = 0x0408
    UFIXED_POINT_16 = 0x0416
    UFIXED_POINT_32 = 0x0432
    BOOL_8 = 0x0508
    STRING = 0x0608
    UNDEFINED = 0x7FFFFFFF

    @property
    def numpy(self) -> np.dtype[np.generic]:
        """The numpy dtype that holds one element (4-bit kinds: one value per byte). KeyError for STRING."""
        return np.dtype(_NUMPY[self])

    @property
    def is_quantized(self) -> bool:
        """Whether elements are integer codes that an encoding turns into real values."""
        return 0x0300 <= self < 0x0500

    @property
    def is_float(self) -> bool:
        return 0x0200 <= self < 0x0300

    @property
    def bits(self) -> int:
        """Container width in bits."""
        return self.numpy.itemsize * 8


_NUMPY: dict[DType, type[np.generic] | type[ml_dtypes.bfloat16]] = {
    DType.INT_8: np.int8,
    DType.INT_16: np.int16,
    DType.INT_32: np.int32,
    DType.INT_64: np.int64,
    DType.UINT_8: np.uint8,
    DType.UINT_16: np.uint16,
    DType.UINT_32: np.uint32,
    DType.UINT_64: np.uint64,
    DType.FLOAT_16: np.float16,
    DType.BFLOAT_16: ml_dtypes.bfloat16,
    DType.FLOAT_32: np.float32,
    DType.FLOAT_64: np.float64,
    DType.SFIXED_POINT_4: np.int8,
    DType.SFIXED_POINT_8: np.int8,
    DType.SFIXED_POINT_16: np.int16,
    DType.SFIXED_POINT_32: np.int32,
    DType.UFIXED_POINT_4: np.uint8,
    DType.UFIXED_POINT_8: np.uint8,
    DType.UFIXED_POINT_16: np.uint16,
    DType.UFIXED_POINT_32: np.uint32,
    DType.BOOL_8: np.bool_,
}


class TensorKind(enum.IntEnum):
    """Qnn_TensorType_t, the part that graphs use."""

    APP_WRITE = 0
    APP_READ = 1
    APP_READWRITE = 2
    NATIVE = 3
    STATIC = 4
    NULL = 5


@dataclass(frozen=True)
class Encoding:
    """Quantization parameters of a tensor: `real = (q + offset) * scale` (so offset = -zero_point).

    One pair of scale and offset per tensor, or one per channel of `axis`. The QNN kind follows:
    no axis -> SCALE_OFFSET (BW_SCALE_OFFSET when `bitwidth` is set); axis -> AXIS_SCALE_OFFSET (BW_AXIS...);
    `block_scales` -> BLOCKWISE_EXPANSION (LPBQ); `block_shape` -> BLOCK.

    Attributes:
        scales: float32 values, length 1 or the channel count.
        offsets: as many integers.
        axis: channel axis of the tensor as stored, non-negative, or None.
        bitwidth: bits in use when fewer than the container has; 0 for all of them.
        block_shape: elements per block along each axis (BLOCK), or None.
        block_scales: LPBQ integer scales, flattened [channels, blocks], or None.
        blocks_per_axis: LPBQ number of blocks along the axis that is not `axis`.
        block_scale_bits: LPBQ bits of one block scale (4 on HTP).
        block_storage: LPBQ storage type of the block scales: 0 = 8 bit, 1 = 16 bit.
    """

    scales: tuple[float, ...]
    offsets: tuple[int, ...]
    axis: int | None = None
    bitwidth: int = 0
    block_shape: tuple[int, ...] | None = None
    block_scales: tuple[int, ...] | None = None
    blocks_per_axis: int = 0
    block_scale_bits: int = 0
    block_storage: int = 0

    @classmethod
    def per_tensor(cls, scale: float, offset: int = 0, bitwidth: int = 0) -> Encoding:
        return cls((float(scale),), (int(offset),), bitwidth=bitwidth)

    @property
    def scale(self) -> float:
        """The scale of a per-tensor encoding."""
        return self.scales[0]

    @property
    def offset(self) -> int:
        """The offset of a per-tensor encoding."""
        return self.offsets[0]

    @property
    def kind(self) -> str:
        """One of SCALE_OFFSET, AXIS_SCALE_OFFSET, BW_SCALE_OFFSET, BW_AXIS_SCALE_OFFSET, BLOCK, BLOCKWISE_EXPANSION."""
        if self.block_scales is not None:
            return "BLOCKWISE_EXPANSION"
        if self.block_shape is not None:
            return "BLOCK"
        base = "SCALE_OFFSET" if self.axis is None else "AXIS_SCALE_OFFSET"
        return f"BW_{base}" if self.bitwidth else base


@dataclass(frozen=True)
class Held:
    """How a source value is held in its tensor, as the I/O contract, errors and debug read it.

    Attributes:
        source: name of the value in the source model.
        dtype: its ONNX dtype as a numpy-style name ("int64", "float32", "bfloat16", ...).
        shape: its shape in the source.
        perm: tensor axis i is source axis perm[i]; None where the order is the source's.
    """

    source: str
    dtype: str
    shape: tuple[int, ...]
    perm: tuple[int, ...] | None = None


@dataclass(eq=False)
class Tensor:
    """A graph tensor; compared by identity. `data` holds the values of a STATIC tensor (any strides)."""

    name: str
    dtype: DType
    shape: tuple[int, ...]
    kind: TensorKind = TensorKind.NATIVE
    encoding: Encoding | None = None
    data: Array | None = None
    held: Held | None = None

    @property
    def rank(self) -> int:
        return len(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes of the dense tensor."""
        return int(np.prod(self.shape, dtype=np.int64)) * self.dtype.numpy.itemsize

    def __repr__(self) -> str:
        return f"Tensor({self.name!r}, {self.dtype.name}, {list(self.shape)}, {self.kind.name})"


@dataclass(frozen=True, eq=False)
class Param:
    """A named op parameter: a Python scalar, or an array for a tensor parameter."""

    dtype: DType
    value: int | float | bool | Array

    @property
    def is_tensor(self) -> bool:
        return isinstance(self.value, np.ndarray)


@dataclass(eq=False)
class Op:
    """One node. An absent optional input in the middle of the list is None (a NULL tensor in the API)."""

    name: str
    type: str
    inputs: list[Tensor | None]
    outputs: list[Tensor]
    params: dict[str, Param] = field(default_factory=dict)
    package: str = "qti.aisw"
    origin: tuple[str, ...] = ()

    def __repr__(self) -> str:
        return f"Op({self.type} {self.name!r})"


@dataclass(eq=False)
class Graph:
    """A QNN graph: ops in executable order, graph inputs (APP_WRITE) and outputs (APP_READ) in source order."""

    name: str
    inputs: list[Tensor] = field(default_factory=list)
    outputs: list[Tensor] = field(default_factory=list)
    ops: list[Op] = field(default_factory=list)

    def tensors(self) -> Iterator[Tensor]:
        """Every tensor once: graph inputs, then in the order the ops meet them, then outputs no op makes."""
        seen: set[int] = set()
        for tensor in self._walk():
            if id(tensor) not in seen:
                seen.add(id(tensor))
                yield tensor

    def _walk(self) -> Iterator[Tensor]:
        yield from self.inputs
        for op in self.ops:
            yield from (t for t in op.inputs if t is not None)
            yield from op.outputs
        yield from self.outputs

    def readers(self) -> dict[int, list[Op]]:
        """The ops that take a tensor, by its id(); an op that takes it twice is there twice."""
        found: dict[int, list[Op]] = {}
        for op in self.ops:
            for tensor in op.inputs:
                if tensor is not None:
                    found.setdefault(id(tensor), []).append(op)
        return found

    def static_bytes(self) -> int:
        """Total size of the constants in bytes."""
        return sum(t.nbytes for t in self.tensors() if t.kind is TensorKind.STATIC)


@dataclass(eq=False)
class Model:
    """What one artifact holds: graphs by name, and metadata (the stamp, library versions, SoC)."""

    graphs: dict[str, Graph]
    metadata: dict[str, object] = field(default_factory=dict)

    def constants(self) -> dict[str, list[Tensor]]:
        """Static tensors of all graphs by content hash (SHA-256 over dtype, shape and bytes)."""
        pool: dict[str, list[Tensor]] = {}
        for graph in self.graphs.values():
            for tensor in graph.tensors():
                if tensor.data is not None:
                    pool.setdefault(content_hash(tensor.dtype, tensor.data), []).append(tensor)
        return pool


def content_hash(dtype: DType, data: Array) -> str:
    """SHA-256 over dtype code, shape and the dense bytes of `data`, as a hex string."""
    digest = hashlib.sha256(f"{int(dtype)}:{data.shape}:".encode())
    digest.update(np.ascontiguousarray(data).view(np.uint8).data if data.size else b"")
    return digest.hexdigest()

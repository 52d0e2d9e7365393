# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""What a context binary says about itself, read with libQnnSystem.

Facts: shared/reference/qnn_more.md sections 1 and 8. The library checks little: callers run this in a worker where
the file is not known to be sound.
"""

from __future__ import annotations

import ctypes
import mmap
import struct
from ctypes import POINTER, byref, c_uint64, c_void_p
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np

from npukit import worker
from npukit.errors import ArtifactError, GraphError, NativeError
from npukit.qnn.api import declarations as c
from npukit.qnn.api.capture import read_tensor, text
from npukit.qnn.api.libraries import find
from npukit.qnn.api.native import LOCK, describe
from npukit.qnn.graph import Graph, Model, Tensor

Buffer = bytes | bytearray | memoryview | mmap.mmap

BACKENDS: Final = {3: "cpu", 4: "gpu", 6: "htp", 9: "ir", 2: "saver"}
"""Role by the backend id that libraries and binaries give."""

_MAX_GRAPHS: Final = 4096
_MAX_TENSORS: Final = 65_536


@dataclass(frozen=True, eq=False)
class BinaryInfo:
    """The description of a context binary.

    Attributes:
        backend_id: the backend it is for; `backend` is its role ("htp"), empty if unknown.
        build_id: QAIRT build that made it ("v2.47.0.260601114230").
        core_version: QNN core API version of that build.
        backend_version: version of the backend's own API.
        blob_version: version of the context blob.
        blob_size: bytes of the context blob.
        soc_model: SoC id that it was made for; 0 if it does not say.
        arch: Hexagon architecture that it was made for (75); 0 if it does not say.
        vtcm_mb: VTCM that each graph was compiled for, in MB, by graph name, where it says.
        model: the graphs, with inputs and outputs and without ops.
    """

    backend_id: int
    build_id: str
    core_version: tuple[int, int, int]
    backend_version: tuple[int, int, int]
    blob_version: tuple[int, int, int]
    blob_size: int
    soc_model: int
    arch: int
    model: Model
    vtcm_mb: dict[str, int] = field(default_factory=dict)

    @property
    def backend(self) -> str:
        """Role of the backend: "htp", "cpu", ...; empty if the id is unknown."""
        return BACKENDS.get(self.backend_id, "")


def binary_info(data: Buffer, *, where: str = "") -> BinaryInfo:
    """Read the description of a context binary; `where` names the file in errors.

    Raises:
        ArtifactError: it is no context binary, or describes what cannot be.
        MissingDependency: libQnnSystem is not installed.
    """
    view = np.frombuffer(data, np.uint8)
    if not view.size:
        raise ArtifactError("the file is empty", where=where)
    library = find("system")
    functions = library.load().functions
    handle, info, size = c_void_p(), POINTER(c.BinaryInfo)(), c_uint64()
    worker.note(f"systemContextGetBinaryInfo of {view.nbytes} bytes")
    with LOCK, worker.at_most(worker.reading_limit(view.nbytes)):
        code = functions.systemContextCreate(byref(handle)) & c.ERROR_MASK
        if code:
            raise NativeError(f"systemContextCreate failed: {describe(functions, code)}", where=where)
        try:
            arguments = (handle, view.ctypes.data, view.nbytes, byref(info), byref(size))
            code = functions.systemContextGetBinaryInfo(*arguments) & c.ERROR_MASK
            if code or not info:
                raise ArtifactError(
                    f"no context binary that libQnnSystem {library.build_id} reads: {describe(functions, code)}",
                    where=where,
                    hint="it is of another kind, damaged, or made by a newer QAIRT: npukit libs add 2.7.0",
                )
            return _copied(info.contents, where)
        except ValueError as error:  # a NULL pointer where there must be none
            raise ArtifactError(f"the context binary is damaged ({error})", where=where) from error
        except GraphError as error:
            raise ArtifactError(error.what, where=", ".join(filter(None, (where, error.where)))) from error
        finally:
            functions.systemContextFree(handle)


def _copied(info: c.BinaryInfo, where: str) -> BinaryInfo:
    """Our copy of the description; the library frees its own with the system context."""
    if info.version != 3:
        raise ArtifactError(f"the description has version {info.version}, npukit reads 3", where=where)
    if info.numGraphs > _MAX_GRAPHS:
        raise ArtifactError(f"the context binary says it has {info.numGraphs} graphs", where=where)
    graphs: dict[str, Graph] = {}
    vtcm: dict[str, int] = {}
    for i in range(info.numGraphs):
        raw = info.graphs[i]
        name = text(raw.name)
        graphs[name] = Graph(name, _tensors(raw.inputs, raw.numInputs), _tensors(raw.outputs, raw.numOutputs))
        if raw.version == 3 and raw.blobInfo and raw.blobInfoSize >= 20:
            # Bytes of VTCM at 16: read from HTP binaries, described nowhere.
            vtcm[name] = struct.unpack_from("<I", ctypes.string_at(raw.blobInfo, 20), 16)[0] >> 20
    arch = 0
    if info.metadata and info.metadataSize >= 8:
        arch = struct.unpack_from("<II", ctypes.string_at(info.metadata, 8))[1]
    return BinaryInfo(
        info.backendId,
        text(info.buildId),
        _triple(info.core),
        _triple(info.backend),
        _triple(info.contextBlobVersion),
        info.contextBlobSize,
        info.socModel,
        arch,
        Model(graphs, {"qairt_build": text(info.buildId).lstrip("v"), "soc_model": info.socModel}),
        vtcm,
    )


def _triple(values: Any) -> tuple[int, int, int]:
    return values[0], values[1], values[2]


def _tensors(raw: Any, count: int) -> list[Tensor]:
    if count > _MAX_TENSORS:
        raise ArtifactError(f"a graph of the context binary says it has {count} inputs or outputs")
    return [read_tensor(raw[i]) for i in range(count)]

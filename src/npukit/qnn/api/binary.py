# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""The graphs of a context binary with the ids of their tensors, which executing them needs."""

from __future__ import annotations

import ctypes
import mmap
from ctypes import byref, c_uint64, c_void_p
from dataclasses import dataclass

import numpy as np

from npukit import worker
from npukit.errors import ArtifactError, GraphError, NativeError
from npukit.qnn.api import declarations as d
from npukit.qnn.api import libraries, marshal
from npukit.qnn.api.libraries import Library
from npukit.qnn.api.native import LOCK, describe
from npukit.qnn.graph import Tensor

Buffer = bytes | bytearray | memoryview | mmap.mmap

_MOST = 65_536  # graphs, inputs, outputs


@dataclass(frozen=True)
class BinaryGraph:
    """One graph of a context binary: its inputs and outputs, and the backend's id of each."""

    name: str
    inputs: tuple[tuple[Tensor, int], ...]
    outputs: tuple[tuple[Tensor, int], ...]


def binary_graphs(data: Buffer, backend_id: int, *, system: Library | None = None) -> list[BinaryGraph]:
    """Reads the graphs of a context binary of that backend with libQnnSystem. ArtifactError for what is none."""
    library = libraries.find("system") if system is None else system
    functions = library.load().functions
    view = np.frombuffer(data, np.uint8)
    handle, info, size = c_void_p(), ctypes.POINTER(d.BinaryInfo)(), c_uint64()
    worker.note(f"systemContextGetBinaryInfo of {view.nbytes} bytes")
    with LOCK:
        code = functions.systemContextCreate(byref(handle)) & d.ERROR_MASK
        if code:
            raise NativeError(f"systemContextCreate failed: {describe(functions, code)}")
        try:
            arguments = (handle, view.ctypes.data, view.nbytes, byref(info), byref(size))
            code = functions.systemContextGetBinaryInfo(*arguments) & d.ERROR_MASK
            if code or not info:
                reason = f"error {describe(functions, code)}"
                raise ArtifactError(f"this is no context binary that {library.path.name} can read ({reason})")
            return _graphs(info.contents, backend_id)
        except (ValueError, GraphError) as error:  # a NULL pointer, or a tensor that cannot be
            raise ArtifactError(f"the context binary is damaged: {error}") from error
        finally:
            functions.systemContextFree(handle)


def _graphs(info: d.BinaryInfo, backend_id: int) -> list[BinaryGraph]:
    if info.version != 3:
        raise ArtifactError(f"the context binary's description has version {info.version}, npukit knows 3")
    if info.backendId != backend_id:
        raise ArtifactError(f"the context binary is for the QNN backend {info.backendId}, not {backend_id}")
    graphs = [info.graphs[i] for i in range(_bounded(info.numGraphs))]
    return [
        BinaryGraph(
            (graph.name or b"").decode("utf-8", "replace"),
            tuple(_tensor(graph.inputs[i]) for i in range(_bounded(graph.numInputs))),
            tuple(_tensor(graph.outputs[i]) for i in range(_bounded(graph.numOutputs))),
        )
        for graph in graphs
    ]


def _bounded(count: int) -> int:
    if count > _MOST:
        raise ValueError(f"it counts {count} graphs or tensors")
    return count


def _tensor(source: d.Tensor) -> tuple[Tensor, int]:
    return marshal.tensor_from_c(source), int(source.id)

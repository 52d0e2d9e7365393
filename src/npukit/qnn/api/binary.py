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
from npukit.errors import ArtifactError, NativeError
from npukit.qnn.api import declarations as d
from npukit.qnn.api import libraries, marshal
from npukit.qnn.api.libraries import Library
from npukit.qnn.api.native import LOCK, describe
from npukit.qnn.graph import Tensor

Buffer = bytes | bytearray | memoryview | mmap.mmap


@dataclass(frozen=True)
class BinaryGraph:
    """One graph of a context binary: its inputs and outputs, and the backend's id of each."""

    name: str
    inputs: tuple[tuple[Tensor, int], ...]
    outputs: tuple[tuple[Tensor, int], ...]


def binary_graphs(data: Buffer, *, system: Library | None = None) -> list[BinaryGraph]:
    """Reads the graphs of a context binary with libQnnSystem. ArtifactError for what is none."""
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
            return _graphs(info.contents)
        finally:
            functions.systemContextFree(handle)


def _graphs(info: d.BinaryInfo) -> list[BinaryGraph]:
    if info.version != 3:
        raise ArtifactError(f"the context binary's description has version {info.version}, npukit knows 3")
    found = []
    for i in range(info.numGraphs):
        graph = info.graphs[i]
        found.append(
            BinaryGraph(
                graph.name.decode("utf-8", "replace"),
                tuple(_tensor(graph.inputs[j]) for j in range(graph.numInputs)),
                tuple(_tensor(graph.outputs[j]) for j in range(graph.numOutputs)),
            )
        )
    return found


def _tensor(source: d.Tensor) -> tuple[Tensor, int]:
    return marshal.tensor_from_c(source), int(source.id)

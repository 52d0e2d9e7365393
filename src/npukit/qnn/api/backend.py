# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""A QNN backend: its handles, op validation, contexts.

Handles are released in the right order whatever the caller does: a context's finalizer holds the backend's handles,
so these live until the last context is gone, also at interpreter exit.
"""

from __future__ import annotations

import ctypes
import mmap
import platform
import re
import sys
import weakref
from collections.abc import Callable, Sequence
from ctypes import byref, c_uint32, c_uint64, c_void_p
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, ClassVar

import numpy as np

from npukit import worker
from npukit.errors import NativeError, UsageError, nearest
from npukit.qnn.api import declarations as d
from npukit.qnn.api import libraries, marshal
from npukit.qnn.api.binary import BinaryGraph, binary_graphs
from npukit.qnn.api.execution import Event, GraphHandle, Owner, Profile, compose
from npukit.qnn.api.hazards import hazard
from npukit.qnn.api.libraries import Functions, Library
from npukit.qnn.api.native import LOCK, NativeLog, describe, failure
from npukit.qnn.graph import Graph, Op, Tensor

Buffer = bytes | bytearray | memoryview | mmap.mmap

_NO_DEVICE = ("cpu", "ir", "saver")  # deviceCreate answers 1000 there


@dataclass(frozen=True)
class GraphOptions:
    """How a graph is created; what a backend does not know is refused.

    Attributes:
        optimization: HTP finalize effort, 1 to 3.
        vtcm_mb: HTP VTCM size in MB, 0 for the largest.
        hvx_threads: HTP vector threads.
        dlc_path: libQnnIr only: the DLC that finalize writes (its folder must exist).
    """

    optimization: int | None = None
    vtcm_mb: int | None = None
    hvx_threads: int | None = None
    dlc_path: Path | None = None


class _Handles:
    """The backend's native handles; freed once, device before backend before log."""

    def __init__(self, functions: Functions, native_log: NativeLog) -> None:
        self.functions = functions
        self.native_log = native_log  # keeps the callback alive as long as the log handle
        self.log = c_void_p()
        self.backend = c_void_p()
        self.device = c_void_p()

    def free(self) -> None:
        with LOCK:
            for handle, name in ((self.device, "deviceFree"), (self.backend, "backendFree"), (self.log, "logFree")):
                if handle.value:
                    getattr(self.functions, name)(handle)
                    handle.value = None


class Backend:
    """One backend for one target; a context manager.

    Args:
        role: "cpu", "htp", "ir" (the DLC writer), "gpu" or "saver".
        soc_id: Qualcomm's SoC id (57 is SM8650). HTP on a host must have one: without a device the emulator computes
            float32 graphs exactly, which no chip does, so that a result would prove nothing.
        library: the library to use; found by `libraries.find` where None.

    Raises MissingDependency where there is no library, UsageError for a missing or unknown SoC, NativeError otherwise.
    """

    # libQnnHtp validates for the chip whose device was created last in the process, whichever backend is asked
    # (seen with V68 and V73 open at once). A device made and freed again, 30 us, sets it.
    _validates_for: ClassVar[int | None] = None

    def __init__(self, role: str, *, soc_id: int | None = None, library: Library | None = None) -> None:
        if role == "htp" and soc_id is None and not on_device():
            raise UsageError("the HTP backend needs a SoC id on this machine", hint="npukit targets lists them")
        self.role = role
        self.soc_id = soc_id
        self.library = libraries.find(role) if library is None else library
        if role == "system" or self.library.role != role:
            raise UsageError(f"{self.library.path.name} is no {role} backend")
        worker.note(f"load {self.library.path}")
        self.functions = self.library.load().functions
        self._log = NativeLog()
        self._handles = _Handles(self.functions, self._log)
        self._finalizer = weakref.finalize(self, LOCK.release, self._handles.free)
        self._owners: weakref.WeakSet[Owner] = weakref.WeakSet()
        try:
            self._open()
        except BaseException:
            self._finalizer()
            raise

    def _open(self) -> None:
        handles = self._handles
        self.call("logCreate", self._log.callback, self._log.level, byref(handles.log))
        self.call("backendCreate", handles.log, None, byref(handles.backend))
        if self.role in _NO_DEVICE:
            return
        try:
            self._create_device(handles.device)
        except NativeError as error:
            if self.soc_id is None:
                raise
            raise UsageError(
                f"{self.library.path.name} {self.library.build_id} knows no SoC {self.soc_id} ({error.what})",
                hint="npukit targets lists the chips",
            ) from None

    def _create_device(self, device: c_void_p) -> None:
        custom = d.HtpDeviceConfig(d.HTP_DEVICE_SOC, self.soc_id or 0, self.soc_id or 0)
        config = d.Config(d.DEVICE_CONFIG_CUSTOM, ctypes.addressof(custom))
        configs = d.config_array([config] if self.role == "htp" and self.soc_id is not None else [])
        self.call("deviceCreate", self._handles.log, configs, byref(device))
        if self.role == "htp":
            Backend._validates_for = self.soc_id

    # ---- calls

    def call(self, name: str, *arguments: Any, where: str = "", hint: str = "") -> None:
        """Calls a function of the table under the process-wide lock. NativeError unless it returns 0."""
        with LOCK:
            self._log.clear()
            code = getattr(self.functions, name)(*arguments) & d.ERROR_MASK
            if code:
                raise failure(self.functions, code, name, where, self._log.errors(), hint)

    def errors(self) -> str:
        """What the library logged at error level since the last `call`."""
        return self._log.errors()

    @property
    def handle(self) -> c_void_p:
        """The native backend handle. UsageError once the backend is closed."""
        if not self._handles.backend.value:
            raise UsageError("the backend is closed")
        return self._handles.backend

    @property
    def device(self) -> c_void_p:
        """The native device handle, NULL where the backend has no devices."""
        return self._handles.device

    @property
    def log_handle(self) -> c_void_p:
        """The native log handle."""
        return self._handles.log

    def validate(self, op: Op) -> str | None:
        """Asks the backend whether it takes `op`: None, or the vendor's reason for the refusal.

        Works before any graph exists. Static inputs need no data (and theirs is not passed: tried on every backend,
        the answer is the same); array params are passed. A refusal is an answer, not an error.
        """
        reason = hazard(self.role, self.library.sdk, op)
        if reason:
            return reason
        keep: list[object] = []
        number = iter(range(1, 1 << 30))
        names: dict[int, str] = {}

        def fill(tensor: Tensor, out: d.Tensor) -> None:
            marshal.tensor_to_c(tensor, keep, data=False, into=out)
            out.id = next(number)
            names[out.id] = tensor.name

        inputs, outputs = marshal.tensor_array(marshal.present_inputs(op), fill), marshal.tensor_array(op.outputs, fill)
        config = marshal.op_to_c(op, inputs, outputs, marshal.params_to_c(op, keep), keep)
        worker.note(f"backendValidateOpConfig for {op.type} {op.name}")
        with LOCK:
            if self.role == "htp" and Backend._validates_for != self.soc_id:
                device = c_void_p()
                self._create_device(device)
                self.call("deviceFree", device)
            self._log.clear()
            code = self.functions.backendValidateOpConfig(self.handle, config) & d.ERROR_MASK
            if code == d.SUCCESS:
                return None
            text = _with_names(self._log.errors(), names)
        reason = describe(self.functions, code)
        return f"{reason}: {text}" if text else reason

    def supported_operations(self) -> list[str]:
        """The names of the qti.aisw ops that the backend lists, sorted. NativeError where it lists none (libQnnIr)."""
        count, rows = c_uint32(), ctypes.POINTER(d.OperationName)()
        self.call("backendGetSupportedOperations", self.handle, byref(count), byref(rows))
        names = {rows[i].name.decode() for i in range(count.value) if rows[i].packageName == b"qti.aisw"}
        return sorted(name for name in names if not name.endswith(("_TFLITE", "_BUILTIN")))

    def context(self, *, weight_sharing: bool = False) -> Context:
        """A new, empty context. `weight_sharing` (HTP): graphs of the context hold equal constants once.

        A context binary with shared weights cannot be loaded on x86-64, only on a device.
        """
        custom = d.HtpContextConfig(d.HTP_CONTEXT_WEIGHT_SHARING)
        custom.value.flag = weight_sharing
        config = d.Config(d.CONTEXT_CONFIG_CUSTOM, ctypes.addressof(custom))
        if weight_sharing and self.role != "htp":
            raise UsageError("weight sharing is a feature of the HTP backend")
        handle = c_void_p()
        configs = d.config_array([config] if weight_sharing else [])
        self.call("contextCreate", self.handle, self.device, configs, byref(handle))
        return Context(self, handle)

    # ---- end

    def close(self) -> None:
        """Frees every context of this backend, then the backend. May be called twice."""
        with LOCK:  # freed at its end, in this order
            for owner in list(self._owners):
                owner.free()
            self._finalizer()

    def __enter__(self) -> Backend:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()


class Context:
    """A QNN context: graphs that live and are serialized together. Made by `Backend.context` or `from_binary`."""

    def __init__(self, backend: Backend, handle: c_void_p, stored: Sequence[BinaryGraph] = ()) -> None:
        self.backend = backend
        self._owner = Owner(backend, handle)
        backend._owners.add(self._owner)
        self._stored = {graph.name: graph for graph in stored}
        self._graphs: dict[str, GraphHandle] = {}

    @property
    def handle(self) -> c_void_p:
        """The native context handle. UsageError once the context is closed."""
        return self._owner.handle

    @property
    def graphs(self) -> list[str]:
        """Names of the context's graphs, in the order of the binary or of their addition."""
        return list(self._stored or self._graphs)

    def add_graph(self, graph: Graph, *, options: GraphOptions | None = None, validate: bool = True) -> GraphHandle:
        """Composes `graph`: creates its tensors (weights by pointer), adds its ops. Does not finalize.

        Every op is validated before it is added, as an unvalidated one may crash the library or compute wrong numbers;
        `validate=False` is for a graph whose ops were all validated by this backend already. After an error the
        context is still usable, but the graph's name is taken. Raises NativeError naming the op or tensor,
        GraphError for data that does not fit its tensor, UsageError for an option that the backend does not have.
        """
        options = GraphOptions() if options is None else options
        keep: list[object] = []
        configs = _graph_configs(self.backend.role, options, keep)
        handle = c_void_p()
        where = f"graph {graph.name}"
        self.backend.call("graphCreate", self.handle, graph.name.encode(), configs, byref(handle), where=where)
        self._graphs[graph.name] = made = compose(self._owner, graph, handle, validate=validate)
        made._keep += keep  # libQnnIr reads the path of its config at finalize
        return made

    def graph(self, name: str) -> GraphHandle:
        """The graph of that name. UsageError, with the nearest name, where there is none."""
        if name not in self._graphs:
            if name not in self._stored:
                raise UsageError(f"the context has no graph {name!r}", hint=nearest(name, self.graphs))
            stored, handle = self._stored[name], c_void_p()
            self.backend.call("graphRetrieve", self.handle, name.encode(), byref(handle), where=f"graph {name}")
            made = GraphHandle(self._owner, name, handle, stored.inputs, stored.outputs, finalized=True)
            self._graphs[name] = made
        return self._graphs[name]

    def binary(self) -> bytes:
        """The context binary of the finalized graphs. Same input, same bytes: only in a fresh process."""
        size, written = c_uint64(), c_uint64()
        worker.note("contextGetBinary")
        self.backend.call("contextGetBinarySize", self.handle, byref(size))
        data = bytearray(size.value)
        buffer = (ctypes.c_char * size.value).from_buffer(data)
        self.backend.call("contextGetBinary", self.handle, buffer, size.value, byref(written))
        del buffer
        return bytes(data if written.value == size.value else data[: written.value])

    @classmethod
    def from_binary(cls, backend: Backend, data: Buffer, *, system: Library | None = None) -> Context:
        """Loads a context binary (bytes or a mapping, used only during the call).

        The library checks little: a flipped byte goes unnoticed. Callers compare a hash first. Raises ArtifactError for
        what is no context binary of this backend, NativeError where the library refuses it.
        """
        stored = binary_graphs(data, backend.library.load().backend_id, system=system)
        view = np.frombuffer(data, np.uint8)
        handle = c_void_p()
        worker.note(f"contextCreateFromBinary of {view.nbytes} bytes")
        arguments = (backend.handle, backend.device, None, view.ctypes.data, view.nbytes, byref(handle), None)
        with worker.at_most(worker.reading_limit(view.nbytes)):
            backend.call("contextCreateFromBinary", *arguments, where="context binary")
        return cls(backend, handle, stored)

    def close(self) -> None:
        """Frees the context and its graphs. May be called twice."""
        with LOCK:
            self._owner.free()

    def __enter__(self) -> Context:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()


def on_device() -> bool:
    """Whether this machine may have an NPU of its own (an ARM machine): then no SoC id is needed."""
    return platform.machine().lower() in ("aarch64", "arm64") and sys.platform != "darwin"


def _with_names(text: str, names: dict[int, str]) -> str:
    """The vendor's text with "Tensor 2" turned into the tensor's name."""

    def name(match: re.Match[str]) -> str:
        return f"{match[1]}{names.get(int(match[2]), match[2])}"

    return re.sub(r"\b([Tt]ensor (?:id )?|and )(\d+)\b", name, text)


_HtpFill = Callable[[Any, int], None]


def _fill_optimization(value: Any, level: int) -> None:
    value.optimization.type = d.HTP_OPTIMIZATION_FINALIZE_LEVEL
    value.optimization.value = float(level)


def _fill_u32(value: Any, number: int) -> None:
    value.u32 = number


def _fill_u64(value: Any, number: int) -> None:
    value.u64 = number


_HTP_OPTIONS: dict[str, tuple[int, _HtpFill]] = {
    "optimization": (d.HTP_GRAPH_OPTIMIZATION, _fill_optimization),
    "vtcm_mb": (d.HTP_GRAPH_VTCM_MB, _fill_u32),
    "hvx_threads": (d.HTP_GRAPH_HVX_THREADS, _fill_u64),
}


def _graph_configs(role: str, options: GraphOptions, keep: list[object]) -> Any:
    customs: list[Any] = []
    for name, (option, fill) in _HTP_OPTIONS.items():
        value = getattr(options, name)
        if value is None:
            continue
        if role != "htp":
            raise UsageError(f"the graph option {name} is for the HTP backend, not {role}")
        custom = d.HtpGraphConfig(option)
        fill(custom.value, value)
        customs.append(custom)
    if options.dlc_path is not None:
        if role != "ir":
            raise UsageError(f"the graph option dlc_path is for the DLC writer, not {role}")
        if not options.dlc_path.parent.is_dir():
            raise UsageError("the folder does not exist", where=str(options.dlc_path.parent))
        path = str(options.dlc_path.absolute()).encode()
        keep.append(path)
        customs.append(d.IrGraphConfig(d.IR_GRAPH_SERIALIZATION, 0, d.IR_SERIALIZATION_FLAT_BUFFER, path))
    configs = [d.Config(d.GRAPH_CONFIG_CUSTOM, ctypes.addressof(custom)) for custom in customs]
    array = d.config_array(configs)
    keep += (customs, configs, array)
    return array


__all__ = ["Backend", "Context", "Event", "GraphHandle", "GraphOptions", "Profile"]

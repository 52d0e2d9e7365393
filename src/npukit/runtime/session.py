# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""`Session`: one way to run a model, whatever file it is in and whatever executes it.

`run` speaks the source model's names, dtypes and layouts; `bind` gives the artifact's own tensors without a copy.
The native code lives in a worker process unless `in_process` asks otherwise.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np

from npukit.errors import Fault, InputError, NpukitError, UsageError, WorkerDied, nearest
from npukit.runtime import BACKEND_NAMES, host
from npukit.runtime.binding import Binding, caller_buffers
from npukit.runtime.contract import Array, Port, Shape, from_native, gather, to_native
from npukit.runtime.engine import Bound, Description, Engine, Placement, ProfileEvent, Request, open_engine
from npukit.runtime.file_kind import KIND_WORDS, OM_MAGIC, file_kind
from npukit.worker import Worker

if TYPE_CHECKING:
    from npukit.artifacts.stamp import Stamp
    from npukit.ascend.emulate import Saturation
    from npukit.qnn.graph import Encoding

BACKENDS = {
    "onnx": ("ort", "qnn-cpu", "qnn-htp", "qnn-gpu", "ort-qnn"),
    "dlc": ("qnn-cpu", "qnn-htp", "qnn-gpu", "ort"),
    "context": ("qnn-htp",),
    "tflite": ("litert",),
    "om": ("acl",),
}
"""Backends by kind of file; the first is the default."""


@dataclass(frozen=True)
class NativeForm:
    """How the artifact holds an input or output.

    Attributes:
        name: name of the tensor in the artifact.
        dtype: numpy dtype of the arrays that `bind` gives.
        qnn_dtype: name of the QNN data type; empty for ONNX Runtime.
        shape: shape in the artifact.
        encoding: quantization parameters, or None.
    """

    name: str
    dtype: str
    qnn_dtype: str
    shape: Shape
    encoding: Encoding | None


@dataclass(frozen=True)
class TensorInfo:
    """An input or output of a session.

    Attributes:
        name: name in the source model.
        shape: shape in the source; a free dimension is its symbol or None.
        dtype: dtype of the source's values ("float32", "int64", ...).
        layout: "source", or how the artifact permutes the source's axes.
        native: how the artifact holds it.
    """

    name: str
    shape: Shape
    dtype: str
    layout: str
    native: NativeForm


class Session:
    """A model made ready to run.

    Args:
        model: a file (.onnx, DLC, context binary or .om, told apart by content), the bytes of an ONNX model or of a
            .om, or any object with a `path` attribute.
        backend: one of `npukit.runtime.BACKEND_NAMES`; by default .onnx runs on ort, a context binary and a DLC
            that was made for chips with HTP only on qnn-htp, other DLCs on qnn-cpu. There is no fallback from one to
            another.
        graph: name of the graph; needed where the file holds several.
        in_process: run the native code in this process: faster by one message a run, but a crash ends the program,
            and what the library prints while it prepares is diverted from descriptor 1 for everyone.
        threads: threads of ONNX Runtime.
        timeout: seconds that loading and each run may take (in the worker only).
        target: name of the chip to emulate or use; by default the one in the stamp.
        memory_limit: bytes of memory that the worker may use.
        fetch: inner values of the model to give as outputs too, by source or artifact names, in the artifact's own
            layout (backend ort only).
        dequantize: give and take floats, by the encodings, where a file without stamp has integer codes; a stamp
            says itself what the source had.
        emulate: compute as this chip would, "ascend310p[:PRECISION[:LIST.json]]" (backend ort only; see
            `npukit.ascend.emulate`); `saturations` says what it saturated.
        precision_mode: the PRECISION of `emulate`, where it is given apart.

    Raises:
        NpukitError: the file, backend, graph or device cannot be used; subclasses say which.

    Example:
        >>> with npukit.Session("digits.dlc") as session:
        ...     [info.name for info in session.inputs], session.backend
        ...     outputs = session.run({"image": np.zeros((1, 1, 8, 8), np.float32)})
        (['image'], 'qnn-cpu')
        >>> outputs["scores"].shape, outputs["scores"].dtype
        ((1, 10), dtype('float32'))
    """

    def __init__(
        self,
        model: Any,
        *,
        backend: str | None = None,
        graph: str | None = None,
        in_process: bool = False,
        threads: int | None = None,
        timeout: float | None = None,
        target: str | None = None,
        memory_limit: int | None = None,
        fetch: Sequence[str] = (),
        dequantize: bool = False,
        emulate: str = "",
        precision_mode: str | None = None,
    ) -> None:
        self._closed = True  # until it is open: close() may be called on a half-made session
        self._lock = threading.Lock()
        self._worker: Worker | None = None
        self._engine: Engine | None = None
        self._buffers: host.Buffers | None = None
        self._pool: ThreadPoolExecutor | None = None
        self._number = self._shared = self._slot = 0
        request = _request(model, backend, graph, target, threads, tuple(fetch), dequantize=dequantize)
        self._emulated: str | None = None
        if emulate or precision_mode:
            request, self._emulated = _emulated(request, emulate, precision_mode)
        self._name = Path(request.path).name if request.path else "model"
        self._closed = False
        try:
            if in_process:
                self._engine = open_engine(request)
                self._description = self._engine.description
            else:
                self._worker = Worker(timeout=timeout, memory_limit=memory_limit)
                self._number, self._description = self._worker.call("npukit.runtime.host:open_", request)
                if host.Buffers.possible(self._description):
                    self._buffers, self._slot = self._share(self._description)
        except BaseException:
            self.close()
            raise
        self._in, self._out = self._description.inputs, self._description.outputs
        self._out_names = [port.name for port in self._out]
        self._nothing: list[Array | None] = [None] * len(self._in)

    def _share(self, description: Description, resident: frozenset[str] = frozenset()) -> tuple[host.Buffers, int]:
        """Buffers that the worker maps too, and the number it knows them by."""
        assert self._worker is not None
        self._shared += 1
        path = Path(self._worker.folder, f"buffers-{self._shared}")
        buffers = host.Buffers.map(path, description.inputs, description.outputs, create=True)
        slot: int = self._call("share", path, resident)
        return buffers, slot

    # ------------------------------------------------------------ what it is

    @property
    def inputs(self) -> list[TensorInfo]:
        """The inputs, in the source's order."""
        return [_info(port) for port in self._in]

    @property
    def outputs(self) -> list[TensorInfo]:
        """The outputs, in the source's order."""
        return [_info(port) for port in self._out]

    @property
    def backend(self) -> str:
        """Name of the backend that executes it."""
        return self._description.backend

    @property
    def graph(self) -> str:
        """Name of the graph in the artifact; empty for an ONNX model."""
        return self._description.graph

    @property
    def library(self) -> str:
        """The library that executes it, with its version."""
        return self._description.library

    @property
    def placement(self) -> list[Placement]:
        """Where each op runs, and why there."""
        return list(self._description.placement)

    @property
    def stamp(self) -> Stamp | None:
        """The artifact's stamp; None where it has none: then inputs and outputs are its native tensors."""
        return self._description.stamp

    @property
    def in_process(self) -> bool:
        """Whether the native code runs in this process."""
        return self._engine is not None

    @property
    def closed(self) -> bool:
        return self._closed

    def __repr__(self) -> str:
        state = "closed" if self._closed else ("in process" if self._engine else "in a worker")
        return f"Session({self._name!r}, backend={self.backend!r}, {state})"

    # ------------------------------------------------------------ running

    def run(self, inputs: Mapping[str, Any]) -> dict[str, Array]:
        """Run on the source model's inputs.

        Args:
            inputs: arrays by name (the source's names or the artifact's) with the source's shapes and dtypes.

        Returns:
            Fresh arrays by source name, with the source's shapes and dtypes.

        Raises:
            InputError: lists everything that is missing, unknown, wrongly shaped or typed, or out of range.
            WorkerDied: the native code crashed, hung or ran out of memory; the session cannot be used further.
            NativeError: the backend failed.
        """
        arrays = gather(self._in, inputs, self._description.ignored)
        with self._lock:
            self._check_open()
            if self._buffers is not None:
                to_native(self._in, arrays, self._buffers.inputs)
                self._call("run_shared", self._slot)
                return self._result([from_native(p, a) for p, a in zip(self._out, self._buffers.outputs, strict=True)])
            natives = to_native(self._in, arrays, self._nothing)
            fresh = self._execute(natives)
        return self._result([a if p.plain else from_native(p, a) for p, a in zip(self._out, fresh, strict=True)])

    def _result(self, arrays: list[Array]) -> dict[str, Array]:
        outputs = dict(zip(self._out_names, arrays, strict=True))
        for name, value in self._description.constants.items():
            outputs[name] = value.copy()
        return outputs

    def _execute(self, natives: list[Array]) -> list[Array]:
        """Run on native arrays; the results are fresh."""
        if self._engine is not None:
            return self._engine.execute(natives, None)
        results: list[Array] = self._call("run", natives)
        return results

    def _call(self, function: str, *args: Any) -> Any:
        assert self._worker is not None
        return self._worker.call(f"npukit.runtime.host:{function}", self._number, *args)

    def run_async(self, inputs: Mapping[str, Any]) -> Future[dict[str, Array]]:
        """`run` in the background; runs are executed in the order they were asked for.

        The arrays must not change until the future is done. Faults in the inputs are raised here, at once.

        Example:
            >>> with npukit.Session("digits.dlc") as session:
            ...     future = session.run_async({"image": np.load("image.npy")})
            ...     int(future.result()["scores"].argmax())
            6
        """
        arrays = gather(self._in, inputs, self._description.ignored)
        with self._lock:
            self._check_open()
            if self._pool is None:
                self._pool = ThreadPoolExecutor(1, thread_name_prefix="npukit-session")
            pool = self._pool
        return pool.submit(self.run, {port.name: array for port, array in zip(self._in, arrays, strict=True)})

    def bind(
        self,
        inputs: Mapping[str, Array] | None = None,
        outputs: Mapping[str, Array] | None = None,
        *,
        resident: Sequence[str] = (),
    ) -> Binding:
        """Run on the artifact's own tensors, without conversion and without a copy.

        Args:
            inputs: the caller's buffers by name, C-contiguous, of the native dtypes and shapes; those not given are
                made. In a worker the buffers are always made here, in memory that both processes map.
            outputs: the same for outputs.
            resident: names of inputs and outputs that stay on the device between runs: they go there with
                `Binding.write` and come back with `Binding.read`, and `Binding.copy` copies them there (backend
                acl; elsewhere they are arrays like the others).

        Returns:
            A `Binding`: write to `binding.inputs[name]`, call `binding.run()`, read `binding.outputs[name]`.

        Raises:
            UsageError: own buffers with a session in a worker, or free dimensions.
            InputError: lists every buffer that does not fit.

        Example:
            >>> with npukit.Session("digits.dlc") as session:
            ...     binding = session.bind()
            ...     binding.inputs["image"][...] = np.load("image.npy")
            ...     binding.run()
            ...     int(binding.outputs["scores"].argmax())
            6
        """
        self._check_open()
        if not host.Buffers.possible(self._description):
            raise UsageError("buffers can be bound only where every shape is fixed", hint="use run()")
        names = {port.name for port in (*self._in, *self._out)}
        faults = [Fault("no such input or output", n, nearest(n, names)) for n in resident if n not in names]
        if faults:
            raise InputError("names of resident buffers that do not exist", faults=faults)
        stay = frozenset(resident)
        if self._engine is None:
            if inputs or outputs:
                raise UsageError(
                    "a session in a worker process cannot reach your buffers",
                    hint="use bind() without arguments and write into its arrays, or Session(..., in_process=True)",
                )
            with self._lock:
                shared, slot = self._share(self._description, stay)
            return Binding(self, shared.inputs, shared.outputs, stay, _RemoteBound(self, slot))
        bound_in = caller_buffers(self._in, inputs or {}, faults, "input")
        bound_out = caller_buffers(self._out, outputs or {}, faults, "output")
        if faults:
            raise InputError("buffers that do not fit", faults=faults)
        with self._lock:
            bound = host.bound(self._engine, bound_in, bound_out, stay)
        return Binding(self, bound_in, bound_out, stay, bound)

    def warmup(self, runs: int = 1) -> float:
        """Run on zeros, so that the first real run is as fast as the rest; the seconds of the last run."""
        seconds = 0.0
        for _ in range(runs):
            feeds = self._zeros()
            start = time.perf_counter()
            self.run(feeds)
            seconds = time.perf_counter() - start
        return seconds

    def profile(self, inputs: Mapping[str, Any] | None = None, *, runs: int = 1) -> list[ProfileEvent]:
        """Measure single ops, as finely as the backend can.

        Args:
            inputs: as for `run`; zeros if None.
            runs: executions to take the mean of.

        Returns:
            Events in the library's order. Cycles and times of the HTP emulator say nothing about a chip.
        """
        arrays = gather(self._in, self._zeros() if inputs is None else inputs, self._description.ignored)
        with self._lock:
            self._check_open()
            natives = to_native(self._in, arrays, self._nothing)
            if self._engine is not None:
                return self._engine.profile(natives, runs)
            events: list[ProfileEvent] = self._call("profile", natives, runs)
            return events

    def saturations(self, *, clear: bool = False) -> list[Saturation]:
        """What the emulated arithmetic has saturated in all runs so far, in the order of the graph.

        Args:
            clear: forget it, so that the next call tells of later runs alone.

        Raises:
            UsageError: the session does not emulate.
        """
        if self._emulated is None:
            raise UsageError("the session emulates no chip's arithmetic", hint='Session(..., emulate="ascend310p")')
        with self._lock:
            self._check_open()
            if self._engine is not None:
                return host.saturations_of(self._engine, clear=clear)
            found: list[Saturation] = self._call("saturations", clear)
            return found

    @property
    def emulated(self) -> str | None:
        """The chip whose arithmetic is emulated, with the precision mode; None for the backend's own arithmetic."""
        return self._emulated

    @property
    def notes(self) -> list[str]:
        """What the backend has to say about the model, for people."""
        return list(self._description.notes)

    def _zeros(self) -> dict[str, Array]:
        zeros = {}
        for port in self._in:
            shape = [d if isinstance(d, int) else 1 for d in port.shape]
            zeros[port.name] = np.full(shape, "", object) if port.dtype == "string" else np.zeros(shape, port.numpy)
        return zeros

    # ------------------------------------------------------------ the end

    def close(self) -> None:
        """Free everything; any number of calls is fine, and so is a session whose worker died."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            pool, self._pool = self._pool, None
        if pool is not None:
            pool.shutdown(wait=True, cancel_futures=True)
        if self._engine is not None:
            self._engine.close()
        if self._worker is not None:
            try:
                if self._number and self._description.close_in_order:
                    with contextlib.suppress(WorkerDied):
                        self._call("close")
            finally:
                self._worker.close()
        self._buffers = None

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _check_open(self) -> None:
        if self._closed:
            raise UsageError(f"the session of {self._name} is closed")

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            "a Session cannot be pickled: it holds native memory or a process. Send the path of the model and open a "
            "Session where it is needed."
        )


class _RemoteBound:
    """The buffers of a slot in the session's worker."""

    def __init__(self, session: Session, slot: int) -> None:
        self._session, self._slot = session, slot

    def run(self) -> None:
        self._session._call("run_shared", self._slot)

    def upload(self, number: int, first: int = 0, end: int | None = None) -> None:
        self._session._call("upload", self._slot, number, first, end)

    def download(self, number: int) -> None:
        self._session._call("download", self._slot, number)

    def copy(self, source: Bound, output: int, number: int, row: int) -> bool:
        if not isinstance(source, _RemoteBound) or source._session is not self._session:
            return False
        done: bool = self._session._call("copy", self._slot, source._slot, output, number, row)
        return done

    def close(self) -> None:
        """The worker frees it with the engine."""


def _info(port: Port) -> TensorInfo:
    layout = "source" if port.perm is None else f"axes {list(port.perm)} of the source"
    qnn = "" if port.held is None else port.held.name
    native = NativeForm(port.tensor, port.native.name, qnn, port.native_shape, port.encoding)
    return TensorInfo(port.name, port.shape, port.dtype, layout, native)


# ---------------------------------------------------------------- which file, which backend


def _request(
    model: Any,
    backend: str | None,
    graph: str | None,
    target: str | None,
    threads: int | None,
    fetch: tuple[str, ...],
    *,
    dequantize: bool,
) -> Request:
    if backend is not None and backend not in BACKEND_NAMES:
        raise UsageError(f"there is no backend {backend!r}", where="backend", hint=nearest(backend, BACKEND_NAMES))
    if threads is not None and threads < 1:
        raise UsageError(f"{threads} threads cannot be", where="threads")
    path: str | None = None
    content: bytes | None = None
    if isinstance(model, (bytes, bytearray, memoryview)):
        content = bytes(model)
        kind = "om" if content.startswith(OM_MAGIC) else "onnx"
    else:
        file = Path(getattr(model, "path", model))
        path, kind = str(file), file_kind(file)
    chosen = backend or _made_for(kind, path) or BACKENDS[kind][0]
    if chosen not in BACKENDS[kind]:
        raise UsageError(
            f"{KIND_WORDS[kind]} cannot run on {chosen}",
            where=path or "",
            hint="compile it first: npukit compile MODEL --target ascend310p3"
            if (kind, chosen) == ("onnx", "acl")
            else f"it runs on {', '.join(BACKENDS[kind])}",
        )
    if fetch and chosen != "ort":
        raise UsageError(f"inner values can be fetched from backend ort, not from {chosen}", where="fetch")
    return Request(path, kind, chosen, graph, target, threads, fetch, content, dequantize)


def _made_for(kind: str, path: str | None) -> str | None:
    """qnn-htp for a DLC whose stamp names only chips with HTP: QNN CPU may refuse its ops, or give other numbers."""
    if kind != "dlc" or path is None:
        return None
    from npukit.artifacts import dlc
    from npukit.targets import TARGETS

    stamp = None
    with contextlib.suppress(NpukitError):  # a damaged file is reported by whoever reads all of it
        stamp = dlc.read_info(path).stamp
    chips = [TARGETS[name] for name in stamp.targets if name in TARGETS] if stamp is not None else []
    return "qnn-htp" if chips and all(chip.backend == "qnn-htp" for chip in chips) else None


def _emulated(request: Request, emulate: str, precision: str | None) -> tuple[Request, str]:
    """The request with what is to be emulated, and that in words."""
    from npukit.ascend.modes import parse_mode

    if not emulate:
        raise UsageError("a precision mode needs a chip to emulate", where="precision_mode", hint="emulate=ascend310p")
    if request.backend != "ort" or request.kind != "onnx":
        raise UsageError(
            f"{KIND_WORDS[request.kind]} on {request.backend} cannot be emulated", where=request.path or "emulate",
            hint="the chip's arithmetic is emulated for .onnx files on --backend ort",
        )  # fmt: skip
    mode = parse_mode(emulate, precision)
    return replace(request, emulate=emulate if ":" in emulate else f"{emulate}:{mode.precision}"), str(mode)

# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""`Session`: one way to run a model, whatever file it is in and whatever executes it.

`run` speaks the source model's names, dtypes and layouts; `bind` gives the artifact's own tensors without a copy.
The native code lives in a worker process unless `in_process` asks otherwise.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np

from npukit.errors import Fault, InputError, MissingDependency, ModelError, NpukitError, UsageError, nearest
from npukit.frontends.pytorch.kinds import kind_of
from npukit.runtime import BACKEND_NAMES, host
from npukit.runtime.contract import Array, Port, Shape, from_native, gather, show, to_native
from npukit.runtime.engine import Description, Engine, Placement, ProfileEvent, Request, open_engine
from npukit.worker import Worker

if TYPE_CHECKING:
    from npukit.artifacts.stamp import Stamp
    from npukit.qnn.graph import Encoding

BACKENDS = {
    "onnx": ("ort", "qnn-cpu", "qnn-htp", "qnn-gpu", "ort-qnn"),
    "dlc": ("qnn-cpu", "qnn-htp", "qnn-gpu", "ort"),
    "context": ("qnn-htp",),
    "tflite": ("litert",),
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
        model: a file (.onnx, DLC or context binary, told apart by content), the bytes of an ONNX model, or any
            object with a `path` attribute.
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
    ) -> None:
        self._closed = True  # until it is open: close() may be called on a half-made session
        self._lock = threading.Lock()
        self._worker: Worker | None = None
        self._engine: Engine | None = None
        self._buffers: host.Buffers | None = None
        self._pool: ThreadPoolExecutor | None = None
        self._number = self._shared = self._slot = 0
        request = _request(model, backend, graph, target, threads, tuple(fetch), dequantize=dequantize)
        self._name = Path(request.path).name if request.path else "model"
        self._closed = False
        try:
            if in_process:
                self._engine = open_engine(request)
                self._description = self._engine.description
            else:
                self._worker = Worker(timeout=timeout, memory_limit=memory_limit)
                self._description = self._open_in_worker(self._worker, request)
        except BaseException:
            self.close()
            raise
        self._in, self._out = self._description.inputs, self._description.outputs
        self._out_names = [port.name for port in self._out]
        self._nothing: list[Array | None] = [None] * len(self._in)

    def _open_in_worker(self, worker: Worker, request: Request) -> Description:
        description: Description
        self._number, description = worker.call("npukit.runtime.host:open_", request)
        if host.Buffers.possible(description):
            self._buffers, self._slot = self._share(description)
        return description

    def _share(self, description: Description) -> tuple[host.Buffers, int]:
        """Buffers that the worker maps too, and the number it knows them by."""
        assert self._worker is not None
        self._shared += 1
        path = Path(self._worker.folder, f"buffers-{self._shared}")
        buffers = host.Buffers.map(path, description.inputs, description.outputs, create=True)
        slot: int = self._call("share", path)
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

    def bind(self, inputs: Mapping[str, Array] | None = None, outputs: Mapping[str, Array] | None = None) -> Binding:
        """Run on the artifact's own tensors, without conversion and without a copy.

        Args:
            inputs: the caller's buffers by name, C-contiguous, of the native dtypes and shapes; those not given are
                made. In a worker the buffers are always made here, in memory that both processes map.
            outputs: the same for outputs.

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
        if self._engine is None:
            if inputs or outputs:
                raise UsageError(
                    "a session in a worker process cannot reach your buffers",
                    hint="use bind() without arguments and write into its arrays, or Session(..., in_process=True)",
                )
            with self._lock:
                shared, slot = self._share(self._description)
            return Binding(self, shared.inputs, shared.outputs, slot)
        faults: list[Fault] = []
        bound_in = _buffers(self._in, inputs or {}, faults, "input")
        bound_out = _buffers(self._out, outputs or {}, faults, "output")
        if faults:
            raise InputError("buffers that do not fit", faults=faults)
        return Binding(self, bound_in, bound_out)

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


class Binding:
    """Buffers tied to a session; see `Session.bind`.

    Attributes:
        inputs: native arrays by source name, to write to.
        outputs: native arrays by source name, filled by `run`.
    """

    def __init__(self, session: Session, inputs: list[Array], outputs: list[Array], slot: int = 0) -> None:
        self._session, self._inputs, self._outputs, self._slot = session, inputs, outputs, slot
        self.inputs = {port.name: array for port, array in zip(session._in, inputs, strict=True)}
        self.outputs = {port.name: array for port, array in zip(session._out, outputs, strict=True)}

    def run(self) -> None:
        """Execute once, from `inputs` into `outputs`.

        Raises:
            NativeError: the backend failed; as for `Session.run`.
        """
        session = self._session
        with session._lock:
            session._check_open()
            if session._engine is not None:
                session._engine.execute(self._inputs, self._outputs)
            else:
                session._call("run_shared", self._slot)

    def write(self, name: str, array: Array) -> None:
        """Put a source model's array into the buffer of the input `name`, converted as `Session.run` would.

        An input on which nothing depends is accepted, and not passed on.

        Raises:
            InputError: there is no such input, or the array has another shape or dtype, or values out of range.
        """
        if name not in self.inputs:
            ignored = [port for port in self._session._description.ignored if port.name == name]
            if not ignored:
                raise InputError("no such input", where=name, hint=nearest(name, self.inputs))
            return
        port = next(port for port in self._session._in if port.name == name)
        to_native([port], gather([port], {name: array}), [self.inputs[name]])

    def read(self, name: str) -> Array:
        """The output `name` of the last run as the source model has it, a fresh array."""
        constants = self._session._description.constants
        if name in constants:
            return constants[name].copy()
        port = next((port for port in self._session._out if port.name == name), None)
        if port is None:
            raise InputError("no such output", where=name, hint=nearest(name, self.outputs))
        return from_native(port, self.outputs[name])


def _buffers(ports: Sequence[Port], given: Mapping[str, Array], faults: list[Fault], side: str) -> list[Array]:
    names = {port.name for port in ports} | {port.tensor for port in ports}
    faults += [Fault(f"no such {side}", where=n, hint=nearest(n, names)) for n in given if n not in names]
    arrays: list[Array] = []
    for port in ports:
        shape = port.fixed_shape or ()
        array = given.get(port.name, given.get(port.tensor))
        if array is None:
            array = np.zeros(shape, port.native)
        elif array.dtype != port.native or array.shape != shape or not array.flags.c_contiguous:
            got = f"{array.dtype} {show(array.shape)}" + ("" if array.flags.c_contiguous else ", not contiguous")
            faults.append(Fault(f"expected {port.native} {show(shape)}, got {got}", where=port.name))
        elif side == "output" and not array.flags.writeable:
            faults.append(Fault("the buffer is read-only", where=port.name))
        arrays.append(array)
    return arrays


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
    if backend == "acl" or (backend is None and _is_om(model)):
        raise MissingDependency(
            "backend acl runs Ascend's .om files through pyACL, which comes with CANN; npukit does not drive it yet",
            where="backend",
        )
    if threads is not None and threads < 1:
        raise UsageError(f"{threads} threads cannot be", where="threads")
    path: str | None = None
    content: bytes | None = None
    if isinstance(model, (bytes, bytearray, memoryview)):
        content, kind = bytes(model), "onnx"
    else:
        file = Path(getattr(model, "path", model))
        path, kind = str(file), file_kind(file)
    chosen = backend or _made_for(kind, path) or BACKENDS[kind][0]
    if chosen not in BACKENDS[kind]:
        raise UsageError(
            f"{_KIND_WORDS[kind]} cannot run on {chosen}",
            where=path or "",
            hint=f"it runs on {', '.join(BACKENDS[kind])}",
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


def _is_om(model: Any) -> bool:
    if isinstance(model, (bytes, bytearray, memoryview)):
        return False
    with contextlib.suppress(OSError), open(getattr(model, "path", model), "rb") as file:
        return file.read(4) == b"IMOD"
    return False


_KIND_WORDS = {"onnx": "an ONNX model", "dlc": "a DLC", "context": "a context binary", "tflite": "a .tflite file"}
_FOREIGN_MAGIC = {
    b"\x7fELF": "it is a model library or program; npukit export makes ONNX of a model library",
    b"MZ": "it is a Windows library or program",
    b"IMOD": "it is an Ascend .om file",
    b"\x93NUMPY": "it is a numpy array; a model is wanted here",
}


def file_kind(path: Path) -> str:
    """What a file holds, by its content: "onnx", "dlc", "context" or "tflite".

    Raises:
        ModelError: there is no such file, or it is none of these.
    """
    try:
        with open(path, "rb") as file:
            head = file.read(256)
            size = os.fstat(file.fileno()).st_size
    except FileNotFoundError:
        raise ModelError("there is no such file", where=str(path), hint=_beside(path)) from None
    except OSError as error:
        raise ModelError(f"the file cannot be read ({error.strerror})", where=str(path)) from error
    if size == 0:
        raise ModelError("the file is empty", where=str(path))
    if head.startswith(b"PK\x03\x04"):
        return _zip_kind(path, head)
    for magic, what in _FOREIGN_MAGIC.items():
        if head.startswith(magic):
            raise ModelError(what, where=str(path))
    if head[4:8] == b"TFL3":
        return "tflite"
    if head.startswith(b"version https://git-lfs"):
        raise ModelError("it is a Git LFS pointer, not the model itself", where=str(path), hint="run: git lfs pull")
    # Neither protobuf nor a context binary has a magic: an ONNX model begins with a field tag of ModelProto.
    suffix = path.suffix.lower()
    if suffix == ".onnx" or (suffix != ".bin" and _looks_like_onnx(head)):
        return "onnx"
    if suffix == ".bin" or b"\0" in head:
        return "context"
    raise ModelError("it is neither an ONNX model, a DLC nor a context binary", where=str(path))


def _zip_kind(path: Path, head: bytes) -> str:
    if kind_of(path) is not None:
        raise ModelError("it is a PyTorch file", where=str(path), hint="convert it first: npukit convert FILE")
    # The first member's name stands in the local header; every DLC seen begins with one of these.
    length = int.from_bytes(head[26:28], "little")
    first = head[30 : 30 + length].decode("utf-8", "replace")
    if first.startswith(("dlc.metadata", "model")) and not first.startswith("model/"):
        return "dlc"
    if first.endswith(".npy"):
        raise ModelError("it is an archive of numpy arrays (.npz); a model is wanted here", where=str(path))
    if path.suffix.lower() == ".dlc":
        return "dlc"
    raise ModelError(
        f"it is a zip archive, but not a DLC (its first member is {first!r})",
        where=str(path),
    )


_MODEL_PROTO_TAGS = frozenset({0x08, 0x12, 0x1A, 0x22, 0x28, 0x32, 0x3A, 0x42, 0x72, 0xA2, 0xCA})


def _looks_like_onnx(head: bytes) -> bool:
    if head[0] == 0x08:  # ir_version, a small number
        return len(head) > 1 and 0 < head[1] < 0x40
    return head[0] in _MODEL_PROTO_TAGS and b"\0" not in head[:2]


def _beside(path: Path) -> str:
    folder = path.parent
    if not folder.is_dir():
        return f"there is no folder {folder}"
    return nearest(path.name, [entry.name for entry in folder.iterdir()][:1000])

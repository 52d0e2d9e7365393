# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""Composing a graph in a backend, finalizing and executing it, and its profile."""

from __future__ import annotations

import weakref
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from ctypes import POINTER, byref, c_uint32, c_uint64, c_void_p
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from npukit import worker
from npukit.errors import Fault, GraphError, InputError, NativeError, UsageError
from npukit.qnn.api import declarations as d
from npukit.qnn.api import marshal
from npukit.qnn.api.hazards import hazard, meant
from npukit.qnn.api.native import LOCK, failure
from npukit.qnn.api.quiet import quiet_fds
from npukit.qnn.graph import Array, Graph, Op, Tensor, TensorKind

if TYPE_CHECKING:
    from npukit.qnn.api.backend import Backend

# ---------------------------------------------------------------------------------------- compose


class Owner:
    """A native context and the backend it lives in; shared by `Context` and its graphs, freed with the last of them."""

    def __init__(self, backend: Backend, handle: c_void_p) -> None:
        self.backend = backend
        self._handle = handle
        # The finalizer holds the backend, which therefore outlives the context.
        self.free = weakref.finalize(self, LOCK.release, _free_context, backend, handle)

    @property
    def closed(self) -> bool:
        """Whether it has been freed."""
        return not self._handle.value

    @property
    def handle(self) -> c_void_p:
        """The native context handle. UsageError once it is freed."""
        if self.closed:
            raise UsageError("the context is closed")
        return self._handle


def _free_context(backend: Backend, handle: c_void_p) -> None:
    with LOCK:
        backend.functions.contextFree(handle, None)
        handle.value = None


_WORTH_A_THREAD: Final = 1 << 18  # bytes; smaller constants are copied faster than a thread is told to


class _Ahead:
    """Dense copies of a graph's strided constants: the next is made in a thread while the library copies the last.

    Two buffers take turns: fresh memory for each would cost its page faults.
    """

    def __init__(self, graph: Graph) -> None:
        used = {id(t): t for op in graph.ops for t in op.inputs if t is not None and t.kind is TensorKind.STATIC}
        self._waiting = deque((t, t.data) for t in used.values() if t.data is not None and _worth_it(t.data))
        largest = max((data.nbytes for _, data in self._waiting), default=0)
        self._buffers = deque(np.empty(largest, np.uint8) for _ in range(2))
        self._next: Future[Array] | None = None
        self._pool = ThreadPoolExecutor(1) if self._waiting else None
        self._begin()

    def __enter__(self) -> _Ahead:
        return self

    def __exit__(self, *_: object) -> None:
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)

    def _begin(self) -> None:
        if self._pool is not None and self._waiting:
            self._buffers.rotate()
            self._next = self._pool.submit(_copy_into, self._buffers[0], self._waiting[0][1])

    def dense(self, tensor: Tensor) -> Tensor:
        """`tensor`, with dense data where that was worth a thread, good until the next call.

        Tensors come in the order of their first use.
        """
        if self._next is None or not self._waiting or self._waiting[0][0] is not tensor:
            return tensor
        values = self._next.result()
        self._waiting.popleft()
        self._begin()
        return replace(tensor, data=values)


def _copy_into(buffer: Array, data: Array) -> Array:
    dense = buffer[: data.nbytes].view(data.dtype).reshape(data.shape)
    np.copyto(dense, data)
    return dense


def _worth_it(data: Array) -> bool:
    return data.nbytes >= _WORTH_A_THREAD and not data.flags.c_contiguous


class _Composer:
    """One walk over a graph that creates tensors and adds ops."""

    def __init__(self, owner: Owner, graph: Graph, handle: c_void_p, *, validate: bool) -> None:
        self._backend = owner.backend
        self._validate = validate
        self._graph = graph
        self._handle = handle
        self._keep: list[object] = []
        self._made: dict[int, d.Tensor] = {}
        self._names: set[str] = set()

    def run(self) -> None:
        worker.note(f"compose graph {self._graph.name}, {len(self._graph.ops)} ops")
        with _Ahead(self._graph) as self._ahead:
            for tensor in self._graph.inputs:
                self.tensor(tensor)
            for op in self._graph.ops:
                self._op(meant(self._backend.role, op))

    def tensor(self, tensor: Tensor) -> d.Tensor:
        """The C tensor, created in the graph at the first meeting."""
        made = self._made.get(id(tensor))
        if made is None:
            self._made[id(tensor)] = made = d.Tensor()
            self._create(tensor, made)
        return made

    def _create(self, tensor: Tensor, out: d.Tensor) -> None:
        if tensor.name in self._names:
            raise GraphError("two tensors of the graph have this name", where=f"tensor {tensor.name}")
        self._names.add(tensor.name)
        if tensor.kind is TensorKind.STATIC and tensor.data is None:
            raise GraphError("a static tensor has no data", where=f"tensor {tensor.name}")
        # The library copies static data in the call. What we made for it (a dense copy of a strided array) goes at
        # once, so that no more than two weights are held twice by us.
        data: list[object] = []
        marshal.tensor_to_c(tensor, self._keep, data=False, into=out)
        marshal.point_at_data(self._ahead.dense(tensor), out, data)
        self._native_create(out, f"tensor {tensor.name}")
        out.data, out.dataSize = None, 0

    def _native_create(self, out: d.Tensor, where: str) -> None:
        self._backend.call("tensorCreateGraphTensor", self._handle, byref(out), where=where)

    def _op(self, op: Op) -> None:
        reason = hazard(self._backend.role, self._backend.library.sdk, op)
        if reason:
            raise GraphError(reason, where=f"op {op.name} ({op.type})")
        present = marshal.present_inputs(op)
        inputs = marshal.tensor_array(present, self._copy)
        outputs = marshal.tensor_array(op.outputs, self._copy)
        for i, tensor in enumerate(present):
            if tensor is None and self._backend.role == "cpu":  # registered there, refused by the others
                self._null(inputs[i], f"{op.name}_absent{i}")
        params = marshal.params_to_c(op, self._keep)
        for param in params:
            if param.paramType == d.PARAM_TENSOR:
                name = param.value.tensor.name.decode()
                self._names.add(name)
                self._native_create(param.value.tensor, f"op {op.name}, param {param.name.decode()}")
        config = marshal.op_to_c(op, inputs, outputs, params, self._keep)
        where = f"op {op.name} ({op.type})"
        with LOCK:
            refused = self._validate and self._backend.functions.backendValidateOpConfig(self._backend.handle, config)
        if refused:
            reason = self._backend.validate(op) or "refused inside the graph, accepted alone"
            raise NativeError(f"the {self._backend.role} backend refuses the op: {reason}", where=where)
        self._backend.call("graphAddNode", self._handle, config, where=where)

    def _null(self, out: d.Tensor, name: str) -> None:
        encoded = name.encode()
        self._keep.append(encoded)
        self._names.add(name)
        out.name = encoded
        self._native_create(out, f"tensor {name}")

    def _copy(self, tensor: Tensor, out: d.Tensor) -> None:
        marshal.copy_tensor(self.tensor(tensor), out)


def compose(owner: Owner, graph: Graph, handle: c_void_p, *, validate: bool) -> GraphHandle:
    """Creates the tensors and ops of `graph` in the native graph `handle`, each op validated first if `validate`.

    Raises NativeError naming the tensor or op that was refused, GraphError for a graph that cannot be meant.
    """
    composer = _Composer(owner, graph, handle, validate=validate)
    composer.run()
    inputs = [(tensor, int(composer.tensor(tensor).id)) for tensor in graph.inputs]
    outputs = [(tensor, int(composer.tensor(tensor).id)) for tensor in graph.outputs]
    return GraphHandle(owner, graph.name, handle, inputs, outputs)


# ---------------------------------------------------------------------------------------- execute


class _Side:
    """The graph's inputs or outputs as a C array whose buffers are set only when they change."""

    def __init__(self, kind: str, pairs: Sequence[tuple[Tensor, int]], keep: list[object]) -> None:
        self.kind = kind
        self.tensors = [tensor for tensor, _ in pairs]
        self.array = (d.Tensor * len(pairs))()
        self.cells = list(self.array)  # objects that share the array's memory, made once
        self.bound: list[Array | None] = [None] * len(pairs)
        for cell, (tensor, number) in zip(self.cells, pairs, strict=True):
            marshal.tensor_to_c(tensor, keep, data=False, into=cell)
            cell.id = number

    def bind(self, arrays: Sequence[Array]) -> None:
        """Points the cells at `arrays`, which stay referenced until others replace them."""
        bound = self.bound
        if len(arrays) != len(bound):
            raise InputError(f"the graph has {len(bound)} {self.kind}s, {len(arrays)} arrays were given")
        for i, array in enumerate(arrays):
            if array is not bound[i]:
                self._bind(i, array)

    def _bind(self, i: int, array: Array) -> None:
        tensor, cell = self.tensors[i], self.cells[i]
        if array.dtype != tensor.dtype.numpy or array.shape != tensor.shape or not array.flags.c_contiguous:
            self._refuse(arrays={i: array})
        if self.kind == "output" and not array.flags.writeable:
            raise InputError("the array is read-only", where=f"output {tensor.name}")
        cell.data = array.__array_interface__["data"][0]
        cell.dataSize = array.nbytes
        self.bound[i] = array

    def _refuse(self, arrays: dict[int, Array]) -> None:
        faults = []
        for i, array in arrays.items():
            tensor = self.tensors[i]
            dense = "" if array.flags.c_contiguous else ", not contiguous"
            faults.append(
                Fault(
                    f"expected {tensor.dtype.numpy} {list(tensor.shape)}, got {array.dtype} {list(array.shape)}{dense}",
                    where=f"{self.kind} {tensor.name}",
                )
            )
        raise InputError(f"the {self.kind} does not fit the graph", faults=faults)


class GraphHandle:
    """A graph inside a context.

    Attributes:
        name: its name.
        inputs: the input tensors, in the order that `execute` takes.
        outputs: the output tensors, likewise.
        finalized: whether it can be executed.
    """

    def __init__(
        self,
        owner: Owner,
        name: str,
        handle: c_void_p,
        inputs: Sequence[tuple[Tensor, int]],
        outputs: Sequence[tuple[Tensor, int]],
        *,
        finalized: bool = False,
    ) -> None:
        self.name = name
        self.inputs = [tensor for tensor, _ in inputs]
        self.outputs = [tensor for tensor, _ in outputs]
        self.finalized = finalized
        self._owner = owner
        self._handle = handle
        self._keep: list[object] = []
        self._in = _Side("input", inputs, self._keep)
        self._out = _Side("output", outputs, self._keep)
        self._run = owner.backend.functions.graphExecute

    def finalize(self, profile: Profile | None = None) -> None:
        """Compiles the graph for its target; may take minutes. For the DLC writer: writes the file."""
        self._owner.handle  # noqa: B018 (raises when closed)
        worker.note(f"graphFinalize of graph {self.name} on {self._owner.backend.role}")
        handle = None if profile is None else profile.handle
        with quiet_fds():  # libQnnHtp prints its stages to fd 1 by itself
            self._owner.backend.call("graphFinalize", self._handle, handle, None, where=f"graph {self.name}")
        self.finalized = True

    def execute(self, inputs: Sequence[Array], outputs: Sequence[Array], profile: Profile | None = None) -> None:
        """Runs the graph once, from `inputs` into `outputs`, under the process-wide lock.

        Arrays are dense, in the tensors' own dtypes, shapes and order; they are passed by pointer, and stay referenced
        until the next call brings others. Passing the same array objects again costs nothing. Raises InputError for an
        array that does not fit, NativeError where the library fails.
        """
        owner = self._owner
        with LOCK:
            self._in.bind(inputs)
            self._out.bind(outputs)
            if owner.closed or not self.finalized:
                raise UsageError("the context is closed" if owner.closed else f"graph {self.name} is not finalized")
            arguments = (self._handle, self._in.array, len(inputs), self._out.array, len(outputs))
            code = self._run(*arguments, None if profile is None else profile.handle, None)
            if code:
                raise self._failure(code)

    def _failure(self, code: int) -> NativeError:
        backend = self._owner.backend
        return failure(backend.functions, code, "graphExecute", f"graph {self.name}", backend.errors())


# ---------------------------------------------------------------------------------------- profile

PROFILE_LEVELS = {"basic": 1, "detailed": 2}
EVENT_UNITS = {1: "us", 2: "bytes", 3: "cycles", 4: "count"}
EVENT_TYPES = {
    300: "finalize",
    400: "execute",
    404: "op",
    500: "free",
    3003: "accelerator cycles",
    3004: "accelerator execute",
    8001: "HVX threads",
}


@dataclass(frozen=True)
class Event:
    """One measurement. `kind` is the vendor's event type (see EVENT_TYPES), `unit` "us", "cycles", "count" or "bytes".

    On the emulator cycles and times are no device numbers.
    """

    kind: int
    unit: str
    value: int | float
    identifier: str
    children: tuple[Event, ...] = ()


class Profile:
    """A profile handle; pass it to `finalize` or `execute`, then read `events`, which each call replaces."""

    def __init__(self, backend: Backend, level: str = "basic") -> None:
        if level not in PROFILE_LEVELS:
            raise UsageError(f"unknown profile level {level!r}", hint="basic or detailed")
        self.handle = c_void_p()
        self._backend = backend
        backend.call("profileCreate", backend.handle, PROFILE_LEVELS[level], byref(self.handle))
        self._finalizer = weakref.finalize(self, LOCK.release, _free_profile, backend, self.handle)

    def events(self) -> list[Event]:
        """What the last call measured, as a tree."""
        return self._events("profileGetEvents", self.handle)

    def _events(self, call: str, of: Any) -> list[Event]:
        ids, count = POINTER(c_uint64)(), c_uint32()
        self._backend.call(call, of, byref(ids), byref(count))
        return [self._event(ids[i]) for i in range(count.value)]

    def _event(self, number: int) -> Event:
        data = d.ExtendedEvent(version=1)
        # libQnnCpu answers the plain profileGetEventData with 12002, so this form is used everywhere.
        self._backend.call("profileGetExtendedEventData", number, byref(data))
        _, scalar = marshal.scalar_from_c(data.value, "profile event")
        return Event(
            data.type,
            EVENT_UNITS.get(data.unit, str(data.unit)),
            scalar,
            (data.identifier or b"").decode("utf-8", "replace"),
            tuple(self._events("profileGetSubEvents", number)),
        )

    def close(self) -> None:
        """Frees the handle. May be called twice."""
        with LOCK:
            self._finalizer()


def _free_profile(backend: Backend, handle: c_void_p) -> None:
    with LOCK:
        backend.functions.profileFree(handle)
        handle.value = None

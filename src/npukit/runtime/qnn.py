# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""Qualcomm's backends as engines: libQnnCpu, libQnnGpu (on a board), libQnnHtp (the emulator on a host, the NPU there).

A DLC is captured to our graph and composed on the backend, every op validated first; a context binary is loaded as
it is; an ONNX model is lowered in memory. The device is that of the target: the one asked for, else the stamp's,
else V73, on which everything portable must hold.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from npukit import targets
from npukit.errors import Fault, GraphError, ModelError, NativeError, UsageError, nearest
from npukit.qnn.api.backend import Backend, Context, on_device
from npukit.qnn.api.execution import Event, GraphHandle, Profile
from npukit.qnn.api.quiet import quiet_fds
from npukit.qnn.graph import Graph, Model
from npukit.qnn.opdefs import PACKAGE
from npukit.runtime.contract import Array, Port, held_ports, ignored_ports, native_ports, numpy_name, ports_of
from npukit.runtime.engine import Description, Placement, ProfileEvent, Request
from npukit.worker import note

if TYPE_CHECKING:
    from npukit.artifacts.stamp import Stamp
    from npukit.qnn.api.system import BinaryInfo

_MAX_FAULTS = 50  # ops named in one refusal


def open_engine(request: Request) -> QnnEngine:
    """An engine on qnn-cpu, qnn-gpu or qnn-htp.

    Raises:
        ArtifactError: the file cannot be read, or does not match its stamp.
        GraphError: the backend refuses ops; every one is listed.
        NativeError: the library failed.
        UsageError: an unknown graph or target.
    """
    if request.kind == "onnx":
        return _from_onnx(request)
    assert request.path is not None
    path = Path(request.path)
    if request.kind == "dlc":
        from npukit.artifacts import dlc

        model, stamp = dlc.read(path)
        graph = pick_graph(model, request.graph, path.name)
        return QnnEngine.compose(request, graph, stamp, _target(request, stamp), path.name)
    return _from_binary(request, path)


def pick_graph(model: Model, name: str | None, where: str) -> Graph:
    """The graph called `name`, or the only one.

    Raises:
        UsageError: several graphs and no name, or no such graph.
    """
    return model.graphs[_pick(list(model.graphs), name, where)]


def _pick(names: list[str], name: str | None, where: str) -> str:
    if name is not None:
        if name not in names:
            raise UsageError(f"there is no graph {name!r}", where=where, hint=nearest(name, names))
        return name
    if len(names) != 1:
        listed = ", ".join(names[:12]) + (", ..." if len(names) > 12 else "")
        raise UsageError(f"it holds {len(names)} graphs ({listed})", where=where, hint="name one: graph=, --graph")
    return names[0]


def _target(request: Request, stamp: Stamp | None) -> targets.Target | None:
    """The target whose device is used; None for CPU and GPU, which have no choice, and for a board's own NPU."""
    if request.backend != "qnn-htp":
        return None
    if request.target is not None and request.target != targets.PORTABLE:
        return _named(request.target, request.backend)
    if on_device():
        return None
    stamped = [targets.TARGETS.get(name) for name in (stamp.targets if stamp else ())]
    fit = [row for row in [*stamped, *targets.portable()] if row is not None and row.backend == request.backend]
    return fit[0]


def _named(name: str, backend: str) -> targets.Target:
    chosen = targets.target(name)
    if chosen.backend != backend:
        raise UsageError(f"target {chosen.name} has no {backend}", where="target", hint=chosen.notes)
    return chosen


def _from_onnx(request: Request) -> QnnEngine:
    import onnx

    from npukit.frontends.onnx import load
    from npukit.lowering import lower

    device = _target(request, None)
    rows = (*targets.portable(), replace(targets.TARGETS["gpu"], backend="qnn-gpu"))
    target = device or next(row for row in rows if row.backend == request.backend)
    path = None if request.path is None else Path(request.path)
    normalized = load(path if path is not None else onnx.load_from_string(request.content or b""))
    backend = _backend(request.backend, device.soc_id if device else None)
    try:
        lowered = lower(normalized.model, (target,), None, {target.name: backend.validate})
        if any(array is None for array in lowered.folded.values()):
            raise ModelError("an output of the model has no value", where=path.name if path else "")
        inputs, outputs = held_ports(lowered.graph.inputs), held_ports(lowered.graph.outputs)
        engine = QnnEngine(request.backend, backend, _compose(backend, lowered.graph), inputs, outputs)
    except BaseException:
        backend.close()
        raise
    engine.describe(
        lowered.graph,
        None,
        "lowered for this session",
        ignored=tuple(Port(h.source, numpy_name(h.dtype), h.shape, "", None, h.shape) for h in lowered.unused),
        constants={name: np.asarray(array) for name, array in lowered.folded.items()},
    )
    return engine


def _from_binary(request: Request, path: Path) -> QnnEngine:
    from npukit.artifacts import context as contexts
    from npukit.files import map_file

    info, stamp = contexts.read(path)
    if info.backend != request.backend.removeprefix("qnn-"):
        made_for = f"qnn-{info.backend}" if info.backend else f"an unknown backend (id {info.backend_id})"
        raise UsageError(f"the context binary is for {made_for}, not for {request.backend}", where=path.name)
    name = _pick(list(info.model.graphs), request.graph, path.name)
    backend = _backend(request.backend, _binary_soc(request, info, path.name))
    try:
        with quiet_fds():
            context = Context.from_binary(backend, map_file(path))
            handle = context.graph(name)
        graph = Graph(name, handle.inputs, handle.outputs)
        return QnnEngine.ready(request, backend, handle, graph, stamp, "compiled into the context binary")
    except BaseException:
        backend.close()
        raise


def _binary_soc(request: Request, info: BinaryInfo, where: str) -> int | None:
    """The SoC to load a context binary for: the one it was made for, unless another of the same arch is asked for.

    The emulator does not look whether they match; a chip refuses with a bare number.
    """
    if request.target is None or request.target == targets.PORTABLE:
        return None if on_device() else info.soc_model or targets.portable()[-1].soc_id
    chosen = _named(request.target, request.backend)
    if info.arch and chosen.arch != info.arch:
        raise UsageError(
            f"the context binary was compiled for Hexagon V{info.arch}, {chosen.name} has V{chosen.arch}",
            where=where,
            hint=f"compile the DLC for it: npukit compile MODEL.dlc --target {chosen.name}",
        )
    return chosen.soc_id


def _backend(name: str, soc_id: int | None) -> Backend:
    try:
        return Backend(name.removeprefix("qnn-"), soc_id=soc_id)
    except NativeError as error:
        if name != "qnn-gpu":
            raise
        hint = "qnn-gpu needs a board with an Adreno GPU; a host has no emulator of it"
        raise NativeError(error.what, where=error.where, hint=hint) from error


def _compose(backend: Backend, graph: Graph) -> GraphHandle:
    """`graph` validated, composed and finalized."""
    faults = []
    with quiet_fds():
        for op in graph.ops:
            reason = backend.validate(op)
            if reason is not None:
                faults.append(Fault(f"{op.type} is refused: {reason}", where=op.name))
        if faults:
            hint = "convert the source model for this target: npukit convert --target"
            if any(op.package != PACKAGE for op in graph.ops):
                hint = "no library here has the op package; --backend ort computes its ops as a plugin says (--plugin)"
            more = f", the first {_MAX_FAULTS} are shown" if len(faults) > _MAX_FAULTS else ""
            raise GraphError(
                f"{len(faults)} of {len(graph.ops)} ops cannot run on qnn-{backend.role}{_soc(backend)}{more}",
                where=f"graph {graph.name!r}",
                faults=faults[:_MAX_FAULTS],
                hint=hint,
            )
        handle = backend.context().add_graph(graph, validate=False)
        handle.finalize()
    return handle


def _soc(backend: Backend) -> str:
    names = sorted(targets.by_soc_id(backend.soc_id)) if backend.soc_id is not None else []
    return f" for {names[0]}" if names else ""


class QnnEngine:
    """A finalized graph on a QNN backend.

    Args:
        name: name of the backend.
        backend: the backend, which the engine owns from now on.
        handle: the graph.
        inputs: the contract's inputs.
        outputs: the contract's outputs; several may read one tensor.
    """

    def __init__(
        self, name: str, backend: Backend, handle: GraphHandle, inputs: Sequence[Port], outputs: Sequence[Port]
    ) -> None:
        self._name, self._backend, self._handle = name, backend, handle
        self._inputs, self._outputs = tuple(inputs), tuple(outputs)
        position = {port.tensor: i for i, port in enumerate(self._inputs)}
        self._in_order = [position[t.name] for t in handle.inputs]
        position = {port.tensor: i for i, port in reversed(list(enumerate(self._outputs)))}
        self._out_order = [position[t.name] for t in handle.outputs]
        tensors = {t.name: i for i, t in enumerate(handle.outputs)}
        self._give = [tensors[port.tensor] for port in self._outputs]
        self._straight = (
            self._in_order == list(range(len(self._inputs)))
            and self._out_order == self._give == list(range(len(self._outputs)))
        )  # fmt: skip
        self._makers = [(t.shape, t.dtype.numpy) for t in handle.outputs]

    @classmethod
    def compose(
        cls, request: Request, graph: Graph, stamp: Stamp | None, target: targets.Target | None, where: str
    ) -> QnnEngine:
        """Make `graph` ready on a backend of its own; raises as `open_engine`."""
        backend = _backend(request.backend, target.soc_id if target else None)
        try:
            handle = _compose(backend, graph)
            return cls.ready(request, backend, handle, graph, stamp, f"composed from {where}, every op validated")
        except BaseException:
            backend.close()
            raise

    @classmethod
    def ready(
        cls, request: Request, backend: Backend, handle: GraphHandle, graph: Graph, stamp: Stamp | None, reason: str
    ) -> QnnEngine:
        """The engine of a finalized graph with the stamp's contract, or the native one."""
        if stamp is None:
            inputs = native_ports(graph.inputs, dequantize=request.dequantize)
            outputs = native_ports(graph.outputs, dequantize=request.dequantize)
        else:
            inputs, outputs = ports_of(stamp, graph, "inputs"), ports_of(stamp, graph, "outputs")
        engine = cls(request.backend, backend, handle, inputs, outputs)
        ignored = ignored_ports(stamp, graph) if stamp is not None else ()
        engine.describe(graph, stamp, reason, ignored=ignored)
        return engine

    def describe(
        self,
        graph: Graph,
        stamp: Stamp | None,
        reason: str,
        *,
        ignored: tuple[Port, ...] = (),
        constants: dict[str, Array] | None = None,
    ) -> None:
        """Set `description`; a graph without ops (of a context binary) is one row of the placement."""
        placement = tuple(Placement(op.name, op.type, self._name, reason) for op in graph.ops)
        library = self._backend.library
        self.description = Description(
            backend=self._name,
            graph=graph.name,
            inputs=self._inputs,
            outputs=self._outputs,
            placement=placement or (Placement(graph.name, "", self._name, reason),),
            stamp=stamp,
            library=f"{library.path.name} {library.build_id}{_soc(self._backend)}",
            ignored=ignored,
            constants=constants or {},
        )

    def execute(self, inputs: Sequence[Array], outputs: Sequence[Array] | None) -> list[Array]:
        """Run on native arrays in port order."""
        note("graphExecute")
        if self._straight:
            results = [np.empty(shape, dtype) for shape, dtype in self._makers] if outputs is None else list(outputs)
            self._handle.execute(inputs, results)
            return results
        ordered = [inputs[i] for i in self._in_order]
        if outputs is None:
            given = [np.empty(shape, dtype) for shape, dtype in self._makers]
        else:
            given = [outputs[i] for i in self._out_order]
        self._handle.execute(ordered, given)
        results = [given[i] for i in self._give]
        if outputs is None:
            return results
        for out, result in zip(outputs, results, strict=True):
            if out is not result:  # two outputs of the source that are one tensor
                np.copyto(out, result)
        return list(outputs)

    def profile(self, inputs: Sequence[Array], runs: int) -> list[ProfileEvent]:
        """Mean of what the library measures, single ops included."""
        ordered = [inputs[i] for i in self._in_order]
        outputs = [np.empty(shape, dtype) for shape, dtype in self._makers]
        sums: dict[tuple[str, str, str], int] = {}
        profile = Profile(self._backend, "detailed")
        try:
            for _ in range(runs):
                self._handle.execute(ordered, outputs, profile)
                for event in _flat(profile.events(), ""):
                    key = (event.name, event.unit, event.parent)
                    sums[key] = sums.get(key, 0) + event.value
        finally:
            profile.close()
        return [ProfileEvent(name, total // runs, unit, parent) for (name, unit, parent), total in sums.items()]

    def close(self) -> None:
        """Free graph, context, device and backend."""
        with quiet_fds():
            self._backend.close()


def _flat(events: Sequence[Event], parent: str) -> list[ProfileEvent]:
    found: list[ProfileEvent] = []
    for event in events:
        name = event.identifier or _EVENT_NAMES.get(event.kind, f"event {event.kind}")
        found.append(ProfileEvent(name, int(event.value), event.unit, parent))
        found += _flat(event.children, name)
    return found


_EVENT_NAMES: dict[int, str] = {300: "finalize", 400: "execute", 404: "op", 500: "free"}

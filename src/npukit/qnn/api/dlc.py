# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""Writing a DLC: one walk over a graph with libQnnIr as the sink.

libQnnIr writes the file at graphFinalize. Its traps (shared/reference/qnn_abi.md section 5, qnn_more.md section 3):
some encodings come out wrong or crash it, depending on the version, so they are refused first; it names graphs,
tensors and nodes by counters of the process, so equal files need one fresh process each (the callers' business).
"""

from __future__ import annotations

import contextlib
import logging
import os
from ctypes import addressof, byref, c_void_p
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from npukit.errors import ArtifactError, Fault, GraphError, NativeError
from npukit.qnn.api import declarations as c
from npukit.qnn.api import marshal
from npukit.qnn.api.libraries import Functions, Library, find
from npukit.qnn.graph import Graph, Model, Op, Tensor, TensorKind

log = logging.getLogger(__name__)

_BROKEN_BELOW: Final = {
    "BW_AXIS_SCALE_OFFSET": ((2, 51), "it writes the first channel's scale for every channel"),
    "BLOCKWISE_EXPANSION": ((2, 51), "it crashes on it"),
    "BLOCK": ((99,), "it writes what no library reads back"),
}
"""Encoding kinds that libQnnIr gets wrong: the first QAIRT that does not, and what happens before."""


def write_dlc(model: Model, path: Path | str, *, library: Library | None = None) -> None:
    """Write the one graph of `model` to `path` with libQnnIr. No stamp, time as it is: `artifacts.dlc` adds those.

    Constants are passed by pointer; libQnnIr copies each once. Ops are validated by libQnnIr (data types, not the
    rules of a back-end). It may crash on what it does not expect: callers run this in a worker.

    Raises:
        GraphError: an encoding that the library cannot write, a tensor that is inconsistent; lists all.
        NativeError: libQnnIr refuses an op or cannot write the file.
        ArtifactError: `model` does not hold exactly one graph.
    """
    if len(model.graphs) != 1:
        names = ", ".join(sorted(model.graphs)) or "none"
        raise ArtifactError(f"a DLC holds one graph, this model has {len(model.graphs)} ({names})", where=str(path))
    graph = next(iter(model.graphs.values()))
    library = library or find("ir")
    _refuse_loose_ends(graph)
    _refuse_encodings(graph, library)
    with _Writer(library, graph, Path(path)) as writer:
        writer.write()


def _refuse_loose_ends(graph: Graph) -> None:
    """Refuse tensors that are read or handed out but never made: libQnnIr would crash on them."""
    made = {id(tensor) for tensor in graph.inputs}
    faults = []
    for op in graph.ops:
        for tensor in op.inputs:
            if tensor is not None and tensor.kind is not TensorKind.STATIC and id(tensor) not in made:
                faults.append(Fault(f"it reads the tensor {tensor.name}, which nothing made before", f"op {op.name}"))
        made.update(id(tensor) for tensor in op.outputs)
    written = {id(tensor) for op in graph.ops for tensor in op.outputs}
    faults += [Fault("no op makes this output", t.name) for t in graph.outputs if id(t) not in written]
    if faults:
        raise GraphError("the graph has loose ends", where=f"graph {graph.name}", faults=faults)


def _refuse_encodings(graph: Graph, library: Library) -> None:
    faults = []
    for tensor in graph.tensors():
        since, effect = _BROKEN_BELOW.get(tensor.encoding.kind if tensor.encoding else "", ((), ""))
        if tensor.encoding and library.sdk[: len(since)] < since:
            faults.append(
                Fault(f"libQnnIr {library.build_id} cannot write {tensor.encoding.kind}: {effect}", tensor.name)
            )
    if not faults:
        return
    version = ".".join(map(str, library.sdk[:2]))
    hint = f"npukit libs add 2.7.0 brings a newer one than this ({version}), which writes per-channel and block 4 bit"
    raise GraphError("encodings that this libQnnIr cannot write", where=f"graph {graph.name}", hint=hint, faults=faults)


class _Writer:
    """The handles of one DLC being written; freed at exit, whatever happens."""

    def __init__(self, library: Library, graph: Graph, path: Path) -> None:
        self._library = library
        self._graph = graph
        self._path = path
        self._lines: list[str] = []
        self._stack = contextlib.ExitStack()
        self._made: dict[int, c.Tensor] = {}
        self._names: dict[str, int] = {}
        self._keep: list[object] = []

    def __enter__(self) -> _Writer:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def write(self) -> None:
        """The whole walk: handles, tensors and ops in order, finalize."""
        functions = self._library.load().functions
        backend, graph = self._open(functions)
        # Inputs that no op reads are left out: libQnnIr 2.3.0 crashes on them. The stamp still names them.
        used = {id(tensor) for op in self._graph.ops for tensor in op.inputs}
        for tensor in self._graph.inputs:
            if id(tensor) in used:
                self._create(functions, graph, tensor)
        for op in self._graph.ops:
            self._add(functions, backend, graph, op)
        self._check(functions.graphFinalize(graph, None, None), "graphFinalize", f"graph {self._graph.name}")

    def _open(self, functions: Functions) -> tuple[c_void_p, c_void_p]:
        logger, backend, context, graph = c_void_p(), c_void_p(), c_void_p(), c_void_p()
        callback = c.LogCallback(self._log)
        self._keep.append(callback)
        if functions.logCreate(callback, c.LOG_WARN, byref(logger)) == c.SUCCESS:
            self._stack.callback(lambda: functions.logFree(logger))
        self._check(functions.backendCreate(logger, None, byref(backend)), "backendCreate")
        self._stack.callback(lambda: functions.backendFree(backend))
        self._check(functions.contextCreate(backend, None, None, byref(context)), "contextCreate")
        self._stack.callback(lambda: functions.contextFree(context, None))
        custom = c.IrGraphConfig(
            option=c.IR_GRAPH_SERIALIZATION,
            serializationType=c.IR_SERIALIZATION_FLAT_BUFFER,
            outputPath=os.fsencode(self._path),
        )
        config = c.Config(c.GRAPH_CONFIG_CUSTOM, addressof(custom))
        configs = c.config_array([config])
        self._keep += [custom, config, configs]
        name = self._graph.name.encode()
        self._check(
            functions.graphCreate(context, name, configs, byref(graph)), "graphCreate", f"graph {name.decode()}"
        )
        return backend, graph

    def _log(self, template: int, level: int, time: int, arguments: int) -> None:
        line = c.format_log(template, arguments)
        log.debug("libQnnIr: %s", line)
        if level == c.LOG_ERROR:
            self._lines.append(line)

    def _check(self, code: int, call: str, where: str = "") -> None:
        code &= c.ERROR_MASK
        lines, self._lines = self._lines[:4], []
        if code:
            said = f": {' | '.join(lines)}" if lines else ""
            raise NativeError(f"{call} failed in libQnnIr: {code} {c.error_symbol(code)}{said}", where=where)

    def _create(self, functions: Functions, graph: c_void_p, tensor: Tensor) -> None:
        if id(tensor) in self._made:
            return
        where = f"tensor {tensor.name}"
        if self._names.setdefault(tensor.name, id(tensor)) != id(tensor):
            raise GraphError("two tensors have this name", where=where)
        if tensor.kind is TensorKind.STATIC and tensor.data is None:
            raise GraphError("a constant has no values", where=where)
        # Names, extents and encodings are kept for the ops; the values are needed for this one call only, so that
        # a weight that had to be made dense does not stay in memory beside the library's copy.
        raw = marshal.tensor_to_c(replace(tensor, data=None), self._keep)
        values: list[object] = []
        filled = marshal.tensor_to_c(tensor, values)
        self._check(functions.tensorCreateGraphTensor(graph, byref(filled)), "tensorCreateGraphTensor", where)
        raw.id = filled.id
        self._made[id(tensor)] = raw

    def _add(self, functions: Functions, backend: c_void_p, graph: c_void_p, op: Op) -> None:
        where = f"op {op.name} ({op.type})"
        for tensor in (*op.inputs, *op.outputs):
            if tensor is not None:
                self._create(functions, graph, tensor)
        keep: list[object] = []
        params = marshal.params_to_c(op, keep)
        for param in params:
            if param.paramType == c.PARAM_TENSOR:
                code = functions.tensorCreateGraphTensor(graph, byref(param.value.tensor))
                self._check(code, "tensorCreateGraphTensor", f"{where}, parameter {param.name.decode()}")
        config = marshal.op_to_c(op, self._array(op.inputs), self._array(op.outputs), params, keep)
        self._check(functions.backendValidateOpConfig(backend, config), "backendValidateOpConfig", where)
        self._check(functions.graphAddNode(graph, config), "graphAddNode", where)

    def _array(self, tensors: list[Any]) -> Any:
        return marshal.tensor_array(tensors, lambda tensor, out: marshal.copy_tensor(self._made[id(tensor)], out))

# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""Capture: any DLC or model library becomes a `Model`, by handing it a function table that is ours.

`QnnSystemDlc_composeGraphs` and a model library's `QnnModel_composeGraphs` build their graphs through a table of
function pointers that the caller passes. Ours records what they build; no file format is parsed. Facts:
shared/reference/qnn_more.md sections 3 and 9.
"""

from __future__ import annotations

import ctypes
import itertools
import logging
import math
import os
import sys
import weakref
from collections.abc import Callable, Sequence
from ctypes import CFUNCTYPE, POINTER, addressof, byref, c_char_p, c_uint32, c_uint64, c_void_p, cast
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from npukit import worker
from npukit.errors import ArtifactError, GraphError, NativeError
from npukit.qnn.api import declarations as c
from npukit.qnn.api.libraries import Functions, Loaded, find
from npukit.qnn.api.marshal import encoding_from_c, param_from_c
from npukit.qnn.api.native import LOCK
from npukit.qnn.graph import DType, Encoding, Graph, Model, Op, Param, Tensor, TensorKind

log = logging.getLogger(__name__)

Array = npt.NDArray[np.generic]

_MAX_RANK: Final = 32
_MAX_BYTES: Final = 1 << 47
_MAX_VALUES: Final = 1 << 40
_COPY_BELOW: Final = 4096  # bytes; smaller values are copied, a view object costs as much
_FAILED: Final = 1000  # what a callback answers when it refuses; composeGraphs then gives up with 1002


# --- C structures -> our values ---


def text(raw: bytes | None) -> str:
    """A C string as str; bytes that are not UTF-8 become escapes, so that different names stay different."""
    return (raw or b"").decode("utf-8", "backslashreplace")


def read_tensor(raw: c.Tensor, data: Callable[[str, int, int], Array] | None = None) -> Tensor:
    """One Qnn_Tensor_t (version 1 or 2) as a `Tensor`; `data(name, address, bytes)` gives a static tensor's bytes.

    Raises:
        ArtifactError: a version, type, rank, dimension, encoding or size that makes no sense.
    """
    name = text(raw.name)
    if raw.version not in (c.TENSOR_VERSION_1, c.TENSOR_VERSION_2):
        raise ArtifactError(f"tensor version {raw.version} is not known", where=name)
    if raw.rank > _MAX_RANK or (raw.rank and not raw.dimensions):
        raise ArtifactError(f"a tensor of rank {raw.rank}", where=name)
    shape = tuple(raw.dimensions[i] for i in range(raw.rank))
    dtype = _dtype(raw.dataType, name)
    if dtype is DType.UNDEFINED and raw.type != TensorKind.NULL:
        raise ArtifactError("the data type is not defined", where=name)
    if dtype is not DType.UNDEFINED and math.prod(shape) * dtype.numpy.itemsize > _MAX_BYTES:
        raise ArtifactError(f"a tensor of shape {list(shape)}, larger than any memory", where=name)
    tensor = Tensor(name, dtype, shape, _kind(raw.type, name), read_encoding(raw.quantizeParams, shape, name))
    if tensor.kind is TensorKind.STATIC and data is not None:
        tensor.data = _values(tensor, raw, data)
    return tensor


def _dtype(code: int, where: str) -> DType:
    try:
        return DType(code)
    except ValueError:
        raise ArtifactError(f"the data type 0x{code:04x} is not known", where=where) from None


_KINDS: Final = {
    **{int(kind): kind for kind in TensorKind},
    **{6: TensorKind.NATIVE, 7: TensorKind.APP_WRITE, 8: TensorKind.APP_READ, 9: TensorKind.APP_READWRITE},
    **{10: TensorKind.STATIC, 11: TensorKind.APP_WRITE, 12: TensorKind.APP_READ, 13: TensorKind.APP_READWRITE},
}


def _kind(code: int, where: str) -> TensorKind:
    if code not in _KINDS:
        raise ArtifactError(f"the tensor type {code} is not known", where=where)
    if code > TensorKind.NULL:
        log.warning("tensor %s is updateable or optional (type %d); read as %s", where, code, _KINDS[code].name)
    return _KINDS[code]


def _values(tensor: Tensor, raw: c.Tensor, data: Callable[[str, int, int], Array]) -> Array:
    size = int(raw.dataSize)
    expected = math.prod(tensor.shape) * tensor.dtype.numpy.itemsize
    if size != expected:
        raise ArtifactError(
            f"the values have {size} bytes, {tensor.dtype.name} {list(tensor.shape)} needs {expected}",
            where=tensor.name,
            hint="the file lacks its weights or is damaged",
        )
    if not expected:
        return np.empty(tensor.shape, tensor.dtype.numpy)
    if not raw.data:
        raise ArtifactError("a constant has no values", where=tensor.name, hint="the file lacks its weights")
    return data(tensor.name, raw.data, size).view(tensor.dtype.numpy).reshape(tensor.shape)


def read_encoding(raw: c.QuantizeParams, shape: tuple[int, ...], where: str = "") -> Encoding | None:
    """Qnn_QuantizeParams_t as an `Encoding`, None where it is undefined; counts, axis and pointers are checked first.

    Raises:
        ArtifactError: they make no sense.
        GraphError: the kind of encoding is not known.
    """
    check = _ENCODING_CHECKS.get(raw.encoding)
    if check is not None and raw.definition == c.DEFINITION_DEFINED and not check(raw.value, shape):
        name = c.ENCODING_NAMES[raw.encoding]
        raise ArtifactError(f"the encoding ({name}) does not fit the shape {list(shape)}", where=where)
    return encoding_from_c(raw, shape)


def _axis_fits(value: Any, shape: tuple[int, ...]) -> bool:
    raw = value.axis
    return bool(raw.scaleOffset) and _count_fits(raw.axis, raw.num, shape)


def _bw_axis_fits(value: Any, shape: tuple[int, ...]) -> bool:
    raw = value.bwAxis
    return bool(raw.scales) and _count_fits(raw.axis, raw.num, shape)


def _count_fits(axis: int, count: int, shape: tuple[int, ...]) -> bool:
    return -len(shape) <= axis < len(shape) and 0 < count <= max(1, math.prod(shape))


def _block_fits(value: Any, shape: tuple[int, ...]) -> bool:
    raw = value.block
    return bool(raw.blockSize and raw.scaleOffset) and math.prod(shape) <= _MAX_VALUES


def _blockwise_fits(value: Any, shape: tuple[int, ...]) -> bool:
    if not value.blockwise:
        return False
    raw = value.blockwise.contents
    if not (raw.scaleOffsets and raw.blocksScale and -len(shape) <= raw.axis < len(shape)):
        return False
    return bool(0 < raw.numBlocksPerAxis <= math.prod(shape) <= _MAX_VALUES)


_ENCODING_CHECKS: Final[dict[int, Callable[[Any, tuple[int, ...]], bool]]] = {
    c.ENCODING_AXIS: _axis_fits,
    c.ENCODING_BW_AXIS: _bw_axis_fits,
    c.ENCODING_BLOCK: _block_fits,
    c.ENCODING_BLOCKWISE_EXPANSION: _blockwise_fits,
}


# --- the values of constants ---


class _Span:
    """Memory as numpy reads it; arrays made of it keep `owner` alive."""

    def __init__(self, address: int, size: int, owner: object) -> None:
        self.owner = owner
        self.__array_interface__ = {"version": 3, "typestr": "|u1", "shape": (size,), "data": (address, True)}


class _Mapping:
    """Gives bytes at addresses inside the mapping of one file as views, and copies everything else.

    What composeGraphs hands over points into its mapping of the DLC; a damaged file can make it point elsewhere.
    Where the system says what is mapped (Linux), no address is followed that is not readable memory.
    """

    def __init__(self, path: Path, owner: object, *, copy: bool) -> None:
        self._path = str(path.resolve())
        self._owner = owner
        self._copy = copy
        self._ranges: list[tuple[int, int, bool]] | None = _memory_map(self._path)

    def __call__(self, name: str, address: int, size: int) -> Array:
        ours = self._find(address, size, name)
        view = np.asarray(_Span(address, size, self._owner))
        return view if ours and not self._copy and size > _COPY_BELOW else view.copy()

    def _find(self, address: int, size: int, name: str) -> bool:
        for retry in (True, False):
            if self._ranges is None:
                return False
            for start, end, ours in self._ranges:
                if start <= address and address + size <= end:
                    return ours
            if retry:
                self._ranges = _memory_map(self._path)
        raise ArtifactError(
            f"the values ({size} bytes) lie outside the file", where=name, hint="the file is truncated or damaged"
        )


def _memory_map(path: str) -> list[tuple[int, int, bool]] | None:
    """Readable memory of this process as (start, end, whether it maps `path`), neighbours of a kind merged."""
    if not sys.platform.startswith("linux"):
        return None
    merged: list[tuple[int, int, bool]] = []
    with open("/proc/self/maps", encoding="utf-8", errors="replace") as maps:
        for line in maps:
            span, rights, _, _, _, *name = line.rstrip("\n").split(maxsplit=5)
            if not rights.startswith("r"):
                continue
            start, end = (int(part, 16) for part in span.split("-"))
            ours = bool(name) and name[0] == path
            if merged and merged[-1][1] == start and merged[-1][2] == ours:
                merged[-1] = (merged[-1][0], end, ours)
            else:
                merged.append((start, end, ours))
    return merged


# --- the recording function table ---


class _Recorder:
    """A function table whose graphCreate, tensorCreateGraphTensor, graphAddNode ... write down a `Model`.

    An exception must not cross the C code: the first one is kept in `error`, and every later call is refused.
    """

    def __init__(self, data: Callable[[str, int, int], Array], slots: int) -> None:
        self.graphs: list[Graph] = []
        self.error: BaseException | None = None
        self.unexpected: list[str] = []
        self._data = data
        self._tensors: dict[int, Tensor] = {}
        self._names: list[dict[str, Tensor]] = []
        self._ids = itertools.count(1)
        self._keep = [self._callback(name) for name in c.CORE_SLOTS[:slots]]
        # Not by ctypes.cast, which makes each function refer to itself: the mapping would wait for the collector.
        self.addresses = [c_void_p.from_address(addressof(function)).value or 0 for function in self._keep]

    def _callback(self, name: str) -> Any:
        known: dict[str, tuple[Any, Callable[..., None]]] = {
            "graphCreate": (_GRAPH_CREATE, self._graph_create),
            "tensorCreateGraphTensor": (_TENSOR_CREATE, self._tensor_create),
            "graphAddNode": (_ADD_NODE, self._add_node),
            "backendValidateOpConfig": (_ADD_NODE, lambda backend, op: None),
        }
        if name not in known:
            return _ANY(lambda: self._other(name))
        prototype, record = known[name]
        return prototype(lambda *arguments: self._guard(record, arguments))

    def _guard(self, record: Callable[..., None], arguments: Sequence[Any]) -> int:
        if self.error is not None:
            return _FAILED
        try:
            record(*arguments)
        except BaseException as error:  # noqa: BLE001 - kept, and raised again after the C call
            self.error = error
            return _FAILED
        return c.SUCCESS

    def _other(self, name: str) -> int:
        self.unexpected.append(name)
        return _FAILED if name in _REFUSED else c.SUCCESS

    def _graph_create(self, context: int, name: bytes, configs: int, handle: Any) -> None:
        title = text(name)
        if any(graph.name == title for graph in self.graphs):
            raise ArtifactError(f"two graphs are named {title!r}")
        self.graphs.append(Graph(title))
        self._names.append({})
        handle[0] = len(self.graphs)

    def _index(self, handle: int | None) -> int:
        if not handle or handle > len(self.graphs):
            raise ArtifactError(f"the graph handle {handle} was never given")
        return handle - 1

    def _tensor_create(self, handle: int, raw: Any) -> None:
        names = self._names[self._index(handle)]
        tensor = read_tensor(raw.contents, self._data)
        if tensor.name in names:
            raise ArtifactError("two tensors have this name", where=tensor.name)
        names[tensor.name] = tensor
        raw.contents.id = identity = next(self._ids)
        self._tensors[identity] = tensor
        graph = self.graphs[handle - 1]
        if tensor.kind in (TensorKind.APP_WRITE, TensorKind.APP_READWRITE):
            graph.inputs.append(tensor)
        if tensor.kind in (TensorKind.APP_READ, TensorKind.APP_READWRITE):
            graph.outputs.append(tensor)

    def _add_node(self, handle: int, raw: c.OpConfig) -> None:
        index = self._index(handle)
        name = text(raw.name)
        if raw.version != c.OPCONFIG_VERSION_1:
            raise ArtifactError(f"op version {raw.version} is not known", where=name)
        inputs = [self._find(raw.inputTensors[i], index, name) for i in range(raw.numOfInputs)]
        outputs = [self._find(raw.outputTensors[i], index, name) for i in range(raw.numOfOutputs)]
        params = dict(self._param(raw.params[i], index, name) for i in range(raw.numOfParams))
        made = [tensor for tensor in outputs if tensor is not None]
        if len(made) != len(outputs):
            raise ArtifactError("an output of the op is missing", where=name)
        op = Op(name, text(raw.typeName), inputs, made, params, package=text(raw.packageName))
        self.graphs[index].ops.append(op)

    def _find(self, raw: c.Tensor, graph: int, op: str) -> Tensor | None:
        """The tensor that an op means: by id as the C API links them, else by name as libQnnIr does."""
        if raw.type == TensorKind.NULL:
            return None
        name = text(raw.name)
        tensor = self._tensors.get(raw.id)
        if tensor is None or (name and tensor.name != name):
            tensor = self._names[graph].get(name)
        if tensor is None:
            raise ArtifactError(f"the op uses the tensor {name!r} (id {raw.id}), which was never made", where=op)
        return tensor

    def _param(self, raw: c.Param, graph: int, op: str) -> tuple[str, Param]:
        name = text(raw.name)
        if raw.paramType == c.PARAM_SCALAR:
            return param_from_c(raw)
        if raw.paramType != c.PARAM_TENSOR:
            raise ArtifactError(f"the parameter type {raw.paramType} is not known", where=f"{op}.{name}")
        inner = raw.value.tensor
        tensor = self._names[graph].get(text(inner.name)) if inner.id in self._tensors or not inner.data else None
        if tensor is None:
            tensor = read_tensor(inner, self._data)
        if tensor.data is None:
            raise ArtifactError("a tensor parameter has no values", where=f"{op}.{name}")
        return name, Param(tensor.dtype, tensor.data)

    def check(self, path: str) -> None:
        """Raise what went wrong in a callback, naming the file."""
        error = self.error
        if isinstance(error, GraphError | ArtifactError):
            where = f"{path}, {error.where}" if error.where else path
            raise ArtifactError(error.what, where=where, hint=error.hint) from error
        if isinstance(error, ValueError | TypeError | IndexError | OverflowError | MemoryError):
            raise ArtifactError(f"the file describes what no graph can be ({error})", where=path) from error
        if error is not None:
            raise error

    def model(self, order: dict[str, tuple[list[str], list[str]]]) -> Model:
        """What was recorded; `order` gives each graph's input and output names in the file's order.

        Ends the recording: the callbacks refer to the recorder, and with them it would hold the mapping for long.
        """
        self._keep.clear()
        for graph, tensors in zip(self.graphs, self._names, strict=True):
            inputs, outputs = order.get(graph.name, ([], []))
            graph.inputs = _ordered(graph.inputs, inputs, tensors)
            graph.outputs = _ordered(graph.outputs, outputs, tensors)
        return Model({graph.name: graph for graph in self.graphs})


def _ordered(found: list[Tensor], names: list[str], tensors: dict[str, Tensor]) -> list[Tensor]:
    named = [tensors[name] for name in names if name in tensors]
    return named if {id(tensor) for tensor in named} == {id(tensor) for tensor in found} else found


_GRAPH_CREATE: Final = CFUNCTYPE(c_uint64, c_void_p, c_char_p, c_void_p, POINTER(c_void_p))
_TENSOR_CREATE: Final = CFUNCTYPE(c_uint64, c_void_p, POINTER(c.Tensor))
_ADD_NODE: Final = CFUNCTYPE(c_uint64, c_void_p, c.OpConfig)
_ANY: Final = CFUNCTYPE(c_uint64)

# Calls that would have to hand something out: what they want to build is no plain graph. composeGraphs asks
# propertyHasCapability, where 1000 means no; a yes makes it give up with 1002.
_REFUSED: Final = frozenset(
    {"propertyHasCapability", "graphCreateSubgraph", "tensorCreateContextTensor", "graphRetrieve", "contextCreate"}
)


# --- DLCs ---


class _Dlc:
    """An open DLC handle of libQnnSystem; its mapping of the file lives until `close` or the last array is gone."""

    def __init__(self, path: Path, functions: Functions) -> None:
        self.handle = c_void_p()
        worker.note(f"systemDlcCreateFromFile of {path.name}")
        with LOCK, worker.at_most(worker.reading_limit(path.stat().st_size if path.exists() else 0)):
            code = functions.systemDlcCreateFromFile(None, os.fsencode(path), byref(self.handle)) & c.ERROR_MASK
        if code:
            raise ArtifactError(f"libQnnSystem cannot open the DLC (code {code})", where=str(path), hint=_DAMAGED)
        self.close = weakref.finalize(self, LOCK.release, functions.systemDlcFree, self.handle)
        self.close.atexit = False  # arrays may be read to the very end; the system unmaps the rest


_DAMAGED: Final = "the file is damaged, or was made for a newer QAIRT than the installed one"


def capture_dlc(path: Path | str, *, copy: bool = False) -> Model:
    """Every graph of a DLC as our `Model`.

    Constants are read-only views of the library's mapping of the file, which lives as long as any of them; so the
    file must not be changed in place meanwhile. With `copy` they are copies and the file is closed again.
    The library may crash on a damaged file: callers run this in a worker.

    Raises:
        ArtifactError: libQnnSystem refuses the file, or it has no graph, lacks weights, or describes what no graph
            can be.
        NativeError: the installed libQnnSystem cannot read DLCs.
        MissingDependency: there is none.
    """
    path = Path(path)
    system = find("system").load()
    dlc = _Dlc(path, system.functions)
    recorder = _Recorder(_Mapping(path, dlc, copy=copy), _interface_slots(system))
    order = _compose(system.functions, dlc, recorder, path)
    model = recorder.model(order)
    if not model.graphs:
        raise ArtifactError("the DLC holds no graph", where=str(path), hint="it may hold only a context binary")
    if copy:
        dlc.close()
    return model


_SLOTS_BY_SYSTEM: Final = {7: 71, 11: 72, 14: 75, 15: 75}
"""Slots of the QnnInterface_t that composeGraphs takes by value, by minor version of System API 1.x.

The size is compiled into libQnnSystem; another one makes it write through a wild pointer (qnn_more.md section 1).
"""


def _interface_slots(system: Loaded) -> int:
    slots = _SLOTS_BY_SYSTEM.get(system.core_version[1])
    if slots is None:
        version = ".".join(map(str, system.core_version))
        what = f"the size of the function table of System API {version} is not known, so it cannot read DLCs"
        raise NativeError(what, where=str(system.path), hint="npukit libs add 2.7.0 brings one that can")
    return slots


def _compose(
    functions: Functions, dlc: _Dlc, recorder: _Recorder, path: Path
) -> dict[str, tuple[list[str], list[str]]]:
    """Run composeGraphs into `recorder`; input and output names of each graph in the file's order."""
    table_type = c.interface_by_value(len(recorder.addresses))
    table = table_type()
    table.slots[:] = recorder.addresses
    compose = c.compose_prototype(table_type)(functions.address("systemDlcComposeGraphs"))
    graphs, count = POINTER(c.GraphInfo)(), c_uint32()
    worker.note(f"composeGraphs of {path.name}")
    backend, context = c_void_p(1), c_void_p(2)  # opaque to the library; it only hands them back to us
    with LOCK, worker.at_most(worker.reading_limit(path.stat().st_size)):
        code = compose(dlc.handle, None, 0, backend, context, table, 1, byref(graphs), byref(count)) & c.ERROR_MASK
    recorder.check(str(path))
    if code:
        # 1002 whatever went wrong, and its log says no more; what it called beyond a plain graph may.
        called = [name for name in recorder.unexpected if name != "propertyHasCapability"]
        also = f", after calling {', '.join(called)}" if called else ""
        what = f"libQnnSystem finds no sound graph in the DLC (code {code}{also})"
        raise ArtifactError(what, where=str(path), hint=_DAMAGED)
    order = {}
    for i in range(count.value):
        info = graphs[i]
        order[text(info.name)] = (
            [text(info.inputs[k].name) for k in range(info.numInputs)],
            [text(info.outputs[k].name) for k in range(info.numOutputs)],
        )
    _release(graphs)
    return order


def _release(graphs: Any) -> None:
    # composeGraphs allocates the array with malloc and leaves it to its caller.
    if sys.platform.startswith("linux"):
        free = ctypes.CDLL(None).free
        free.argtypes, free.restype = [c_void_p], None
        free(cast(graphs, c_void_p))


# --- model libraries ---

_MODEL_SLOTS: Final = 96
_OWN_SLOTS: Final = 25  # up to and including tensorCreateGraphTensor, the last that a model library calls


class _ModelTable(ctypes.Structure):
    """The bare function table that a model library takes by value.

    Its size is fixed when the library is compiled (62 to 75 slots so far), and what follows it are a debug flag, a
    logger and a log level. With a larger table whose slots from 25 on are zero, those arguments read as zero
    whatever the size (qnn_more.md section 9).
    """

    _fields_ = [("slots", c_void_p * _MODEL_SLOTS)]


_ModelGraphs = POINTER(POINTER(c.ModelGraphInfo))


def capture_library(path: Path | str) -> Model:
    """Every graph of a model library (.so, .dll, as the model-lib generator makes), constants copied.

    Loading such a library runs the code in it in this process: callers do this in a worker, and only for a file that
    the user named.

    Raises:
        ArtifactError: it is no model library, or builds what no graph can be.
        NativeError: it cannot be loaded here, or fails.
    """
    path = Path(path).absolute()
    worker.note(f"load the model library {path.name}")
    try:
        library = ctypes.CDLL(str(path))
    except OSError as error:
        raise NativeError(f"the library cannot be loaded: {error}", where=str(path), hint=_OTHER_MACHINE) from error
    try:
        compose = library.QnnModel_composeGraphs
    except AttributeError:
        what = "this is no model library: it has no QnnModel_composeGraphs"
        raise ArtifactError(what, where=str(path)) from None
    recorder = _Recorder(_Mapping(path, library, copy=True), _OWN_SLOTS)
    graphs, count = _ModelGraphs(), c_uint32()
    table = _ModelTable()
    table.slots[:_OWN_SLOTS] = recorder.addresses
    tail: list[Any] = [POINTER(_ModelGraphs), POINTER(c_uint32), ctypes.c_bool, c_void_p, ctypes.c_int]
    compose.argtypes = [c_void_p, _ModelTable, c_void_p, c_void_p, c_uint32, *tail]
    compose.restype = ctypes.c_int
    worker.note(f"QnnModel_composeGraphs of {path.name}")
    with LOCK:
        code = compose(c_void_p(1), table, c_void_p(2), None, 0, byref(graphs), byref(count), False, None, 0)
    recorder.check(str(path))
    if code:
        raise NativeError(f"QnnModel_composeGraphs failed: {code}", where=str(path))
    order = {}
    for i in range(count.value if graphs else 0):
        info = graphs[i].contents
        order[text(info.name)] = (
            [text(info.inputs[k].name) for k in range(info.numInputs)],
            [text(info.outputs[k].name) for k in range(info.numOutputs)],
        )
    model = recorder.model(order)
    if not model.graphs:
        raise ArtifactError("the model library builds no graph", where=str(path))
    return model


_OTHER_MACHINE: Final = "it may be made for another processor, or need a library that is not installed"

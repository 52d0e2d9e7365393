# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""Run one case over one path, in this process: load, lower, execute, compare.

A case passes when a run-time input is left on which an output depends, every op was executed by that backend, and
all outputs have the source's shape and dtype and meet the tolerance. What is left over as constants only is `folded`.
"""

from __future__ import annotations

import functools
import tempfile
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from conformance import cases
from npukit.errors import LoweringError, ModelError, NativeError, NpukitError
from npukit.qnn.graph import Graph, Model, Tensor

if TYPE_CHECKING:
    from npukit.lowering import Lowered

REASONS = (
    "no QNN op or composition",
    "backend refused",
    "wrong",
    "dtype cannot be held",
    "dynamic output",
    "crash",
)
PATHS = ("cpu", "htp", "raise")
DLC = "dlc"  # as cpu, but what runs is read back from a DLC; it must pass what cpu passes and has no list of its own
_TARGETS = {"cpu": "qnn-cpu", "htp": "sm8650", "raise": "sm8650", DLC: "qnn-cpu"}
_ROLES = {"cpu": "cpu", "htp": "htp", DLC: "cpu"}


@dataclass
class CannotHold(Exception):
    """A failure with its reason from REASONS."""

    reason: str
    evidence: str


def tolerance(path: str, reference: np.ndarray[Any, Any]) -> tuple[float, float]:
    """(rtol, atol) for outputs of `path`."""
    if path != "htp":
        return 1e-3, 1e-5
    finite = np.abs(reference[np.isfinite(reference)])
    return 1e-2, 1e-2 * max(1.0, float(finite.max(initial=0.0)))


def run(root: str, name: str, path: str, variant: str) -> dict[str, Any]:
    """The result of one case as a JSON-ready object.

    Keys: status (pass, fail, folded), reason and evidence where it failed, ops (the executed op types), error (the
    largest difference), seconds, native (whether a native call failed).
    """
    start = time.monotonic()
    trace: dict[str, Any] = {}
    try:
        result = _run(Path(root), name, path, variant, trace)
    except CannotHold as error:
        result = {"status": "fail", "reason": error.reason, "evidence": error.evidence}
    except NpukitError as error:
        result = {
            "status": "fail",
            "reason": _reason(error),
            "evidence": str(error)[:1000],
            "native": isinstance(error, NativeError),
        }
    except Exception as error:
        where = traceback.extract_tb(error.__traceback__)[-1]
        evidence = f"{type(error).__name__}: {error} ({Path(where.filename).name}:{where.lineno})"
        result = {"status": "fail", "reason": "crash", "evidence": evidence[:1000], "internal": True}
    return {**result, **trace, "seconds": round(time.monotonic() - start, 3)}


def _reason(error: NpukitError) -> str:
    if isinstance(error, NativeError):
        return "backend refused"
    text = str(error)
    if isinstance(error, ModelError) and "only known when it runs" in text:
        return "dynamic output"
    if isinstance(error, LoweringError):
        return next(
            (reason for reason in REASONS if f"[{reason}]" in text or reason == error.faults[0].hint), REASONS[0]
        )
    return REASONS[0]


def _run(root: Path, name: str, path: str, variant: str, trace: dict[str, Any]) -> dict[str, Any]:
    case = cases.load(root, name)
    trace["source_ops"] = list(cases.ops(case.model))
    changed = cases.variant(case, variant)
    if changed is None:
        return {"status": "same"}
    lowered = _lower(changed, path)
    graph = lowered.graph
    trace["ops"] = [op.type for op in graph.ops]
    if not depends_on_input(graph):
        return {"status": "folded"}
    if path == DLC:
        graph = _through_a_dlc(graph)
        trace["ops"] = [op.type for op in graph.ops]
    with _executor(path, graph) as execute:
        worst = 0.0
        for inputs, expected in changed.data:
            names = [tensor.held.source if tensor.held else tensor.name for tensor in graph.outputs]
            outputs = dict(zip(names, execute(inputs), strict=True))
            for info, want in zip(changed.model.graph.output, map(np.asarray, expected), strict=True):
                if info.name not in outputs:  # a constant: nothing ran for it, but it must be right
                    constant = lowered.folded[info.name]
                    outputs[info.name] = np.asarray(constant).astype(want.dtype).reshape(want.shape)
                worst = max(worst, _compare(path, info.name, want, outputs[info.name]))
    return {"status": "pass", "error": worst}


def depends_on_input(graph: Graph) -> bool:
    """Whether a graph output is computed, through ops, from a graph input."""
    reached = {id(tensor) for tensor in graph.inputs}
    made: set[int] = set()
    for op in graph.ops:
        if any(id(tensor) in reached for tensor in op.inputs if tensor is not None):
            reached.update(id(tensor) for tensor in op.outputs)
            made.update(id(tensor) for tensor in op.outputs)
    return any(id(tensor) in made for tensor in graph.outputs)


def _compare(path: str, name: str, want: np.ndarray[Any, Any], got: np.ndarray[Any, Any]) -> float:
    """The largest absolute difference; CannotHold("wrong") where the output does not agree."""
    if got.shape != want.shape or got.dtype != want.dtype:
        raise CannotHold("wrong", f"{name}: got {got.dtype}{list(got.shape)}, expected {want.dtype}{list(want.shape)}")
    a, b = got.astype(np.float64), want.astype(np.float64)
    rtol, atol = tolerance(path, b)
    with np.errstate(invalid="ignore"):
        close = np.isclose(a, b, rtol=rtol, atol=atol, equal_nan=True)
        difference = np.where(np.isfinite(a) & np.isfinite(b), np.abs(a - b), 0.0)
    worst = float(difference.max(initial=0.0))
    if not close.all():
        first = tuple(int(i) for i in np.argwhere(~close)[0]) if close.ndim else ()
        share = 1 - float(close.mean())
        raise CannotHold(
            "wrong",
            f"{name}: {share:.1%} of {close.size} elements differ, largest difference {worst:.3g};"
            f" first at {list(first)}: got {a[first]:.6g}, expected {b[first]:.6g}",
        )
    return worst


def _lower(case: cases.Case, path: str) -> Lowered:
    from npukit.frontends.onnx import LoadOptions, load
    from npukit.lowering import LowerOptions, lower
    from npukit.targets import target

    normalized = load(case.model, LoadOptions(input_shapes=cases.input_shapes(case)))
    chip = target(_TARGETS[path])
    validators: Mapping[str, Callable[..., str | None]] = {}
    if path != "raise":
        validators = {chip.name: _backend(path).validate}
    return lower(normalized.model, (chip,), LowerOptions(), validators)


@functools.cache
def _backend(path: str) -> Any:
    """The backend of `path`; one for the life of the process, because making one is costly."""
    from npukit.qnn.api.backend import Backend
    from npukit.targets import target

    return Backend(_ROLES[path], soc_id=target(_TARGETS[path]).soc_id)


def _through_a_dlc(graph: Graph) -> Graph:
    """The graph as it is read back from a DLC, with the ends in their order and what they hold."""
    from npukit.artifacts import dlc

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "case.dlc"
        dlc.write(Model({graph.name: graph}), path)
        model, _ = dlc.read(path, copy=True)
    (read,) = model.graphs.values()
    ends = {tensor.name: tensor for tensor in (*read.inputs, *read.outputs)}
    for tensor in (*graph.inputs, *graph.outputs):
        if tensor.name in ends:  # inputs that no op reads are not written
            ends[tensor.name].held = tensor.held
    read.inputs = [ends[tensor.name] for tensor in graph.inputs if tensor.name in ends]
    read.outputs = [ends[tensor.name] for tensor in graph.outputs]
    return read


class _Qnn:
    """A finalized graph on a QNN backend; a context manager that gives a function inputs -> outputs."""

    def __init__(self, path: str, graph: Graph) -> None:
        self._graph = graph
        self._context = _backend(path).context()
        self._handle = self._context.add_graph(graph)

    def __enter__(self) -> Callable[[dict[str, Any]], list[np.ndarray[Any, Any]]]:
        self._handle.finalize()
        return self._execute

    def __exit__(self, *_: object) -> None:
        self._context.close()

    def _execute(self, inputs: dict[str, Any]) -> list[np.ndarray[Any, Any]]:
        native = [to_native(_source(inputs, tensor), tensor) for tensor in self._graph.inputs]
        outputs = [_poisoned(tensor) for tensor in self._graph.outputs]
        self._handle.execute(native, outputs)
        return [to_source(array, tensor) for array, tensor in zip(outputs, self._graph.outputs, strict=True)]


def _poisoned(tensor: Tensor) -> np.ndarray[Any, Any]:
    """A buffer for an output, filled so that what is not written is seen."""
    return np.frombuffer(bytearray(b"\xa5" * tensor.nbytes), tensor.dtype.numpy).reshape(tensor.shape)


class _Raised:
    """The raised graph on ONNX Runtime's CPU provider, with the same face as `_Qnn`."""

    def __init__(self, graph: Graph) -> None:
        import onnx_ir
        import onnxruntime

        from npukit.raising import raise_graph

        self._graph = graph
        model = raise_graph(graph, quantized="qdq")
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4
        options.intra_op_num_threads = 1
        self._session = onnxruntime.InferenceSession(
            onnx_ir.to_proto(model).SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
        self._session.disable_fallback()

    def __enter__(self) -> Callable[[dict[str, Any]], list[np.ndarray[Any, Any]]]:
        return self._execute

    def __exit__(self, *_: object) -> None:
        del self._session

    def _execute(self, inputs: dict[str, Any]) -> list[np.ndarray[Any, Any]]:
        native = [to_native(_source(inputs, tensor), tensor) for tensor in self._graph.inputs]
        names = [info.name for info in self._session.get_inputs()]
        results = self._session.run(None, dict(zip(names, native, strict=True)))
        return [to_source(np.asarray(a), tensor) for a, tensor in zip(results, self._graph.outputs, strict=True)]


def _executor(path: str, graph: Graph) -> _Qnn | _Raised:
    return _Raised(graph) if path == "raise" else _Qnn(path, graph)


def _source(inputs: dict[str, Any], tensor: Tensor) -> np.ndarray[Any, Any]:
    return np.asarray(inputs[tensor.held.source if tensor.held else tensor.name])


def to_native(array: np.ndarray[Any, Any], tensor: Tensor) -> np.ndarray[Any, Any]:
    """A source array as its graph input holds it (order of axes, dtype, codes of a quantized tensor)."""
    held = tensor.held
    if held is not None and held.perm is not None:
        array = array.transpose(held.perm)
    array = array.reshape(tensor.shape)
    dtype = tensor.dtype.numpy
    if tensor.dtype.is_quantized and array.dtype.kind == "f" and tensor.encoding is not None:
        info = np.iinfo(dtype)
        codes = np.rint(array.astype(np.float64) / tensor.encoding.scale) - tensor.encoding.offset
        return np.ascontiguousarray(np.clip(codes, info.min, info.max).astype(dtype))
    if _shifted(array.dtype, tensor):
        return np.ascontiguousarray(array.view(dtype) ^ dtype.type(1 << (tensor.dtype.bits - 1)))
    if array.dtype.kind in "iu" and dtype.kind in "iu" and array.size:
        info = np.iinfo(dtype)
        if int(array.min()) < info.min or int(array.max()) > info.max:
            raise CannotHold("dtype cannot be held", f"{tensor.name}: {array.dtype} values beyond {dtype}")
    return np.ascontiguousarray(array.astype(dtype))


def to_source(array: np.ndarray[Any, Any], tensor: Tensor) -> np.ndarray[Any, Any]:
    """A native output in the source's dtype, order of axes and shape."""
    held = tensor.held
    if held is None:
        return array
    dtype = _numpy_dtype(held.dtype)
    if tensor.dtype.is_quantized and dtype.kind not in "iu" and tensor.encoding is not None:
        array = (array.astype(np.float64) + tensor.encoding.offset) * tensor.encoding.scale
    if _shifted(dtype, tensor):
        array = (array ^ array.dtype.type(1 << (tensor.dtype.bits - 1))).view(dtype)
    if held.perm is not None:
        array = array.transpose(np.argsort(held.perm))
    with np.errstate(invalid="ignore", over="ignore"):
        return array.reshape(held.shape).astype(dtype)


def _shifted(dtype: np.dtype[Any], tensor: Tensor) -> bool:
    """Whether signed codes of the source are unsigned ones in the tensor, half their range higher."""
    quantized = tensor.dtype.is_quantized and tensor.dtype.numpy.kind == "u" and dtype.kind == "i"
    return quantized and dtype.itemsize == tensor.dtype.numpy.itemsize


def _numpy_dtype(name: str) -> np.dtype[Any]:
    """The dtype of a name in numpy's spelling or ONNX's ("float" is float32 there)."""
    import onnx_ir

    onnx_type = getattr(onnx_ir.DataType, name.upper(), None)
    if onnx_type is None:
        return np.dtype(name)
    return np.dtype(onnx_type.numpy())

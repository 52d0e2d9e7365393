# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""ONNX Runtime's CPU provider as an engine: for source models, and for graphs raised from an artifact.

Only the CPU provider is ever asked for, and ONNX Runtime's own fallback is off: what runs here runs there alone.
"""

from __future__ import annotations

import ctypes
import json
import shutil
import tempfile
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ml_dtypes
import numpy as np

from npukit import files, plugins
from npukit.errors import ModelError, NativeError, NpukitError, UsageError, nearest
from npukit.runtime.contract import Array, Port, Shape, ignored_ports, native_ports, ports_of
from npukit.runtime.engine import Description, Placement, ProfileEvent, Request
from npukit.worker import note

if TYPE_CHECKING:
    import onnx
    import onnx_ir
    import onnxruntime

    from npukit.artifacts.stamp import Stamp

# ONNX Runtime's type names -> ONNX element type and the numpy-style name of the source's dtype
_TYPES: dict[str, tuple[int, str]] = {
    "float": (1, "float32"), "uint8": (2, "uint8"), "int8": (3, "int8"), "uint16": (4, "uint16"),
    "int16": (5, "int16"), "int32": (6, "int32"), "int64": (7, "int64"), "string": (8, "string"), "bool": (9, "bool"),
    "float16": (10, "float16"), "double": (11, "float64"), "uint32": (12, "uint32"), "uint64": (13, "uint64"),
    "complex64": (14, "complex64"), "complex128": (15, "complex128"), "bfloat16": (16, "bfloat16"),
    "float8e4m3fn": (17, "float8_e4m3fn"), "float8e4m3fnuz": (18, "float8_e4m3fnuz"),
    "float8e5m2": (19, "float8_e5m2"), "float8e5m2fnuz": (20, "float8_e5m2fnuz"), "uint4": (21, "uint4"),
    "int4": (22, "int4"),
}  # fmt: skip
_BY_DTYPE = {name: code for code, name in _TYPES.values()}
_NO_NUMPY = frozenset(code for name, code in _BY_DTYPE.items() if hasattr(ml_dtypes, name))
_PACKED = frozenset({"int4", "uint4"})
_FOREIGN = frozenset(name for _, name in _TYPES.values() if hasattr(ml_dtypes, name))
# Bytes of weights above which they go to a file beside the model, which ONNX Runtime maps. As one protobuf they are
# there four times while it loads: quantizing MiniLM peaked at 621 MB that way, and at 434 with a file, no slower.
_EMBED_LIMIT = 1 << 24


def open_engine(request: Request) -> OrtEngine:
    """An engine for a .onnx file, or for the graph of a DLC raised to ONNX.

    Raises:
        ModelError: ONNX Runtime cannot load the model.
        UsageError: the file has no form that ONNX Runtime runs.
    """
    if request.kind == "onnx":
        source = request.content if request.path is None else Path(request.path)
        assert source is not None
        return OrtEngine(source, threads=request.threads, fetch=request.fetch)
    if request.kind == "dlc":
        return _raised(request)
    raise UsageError(
        "a context binary holds compiled code, not a graph: ONNX Runtime cannot run it",
        where=request.path or "",
        hint="use --backend qnn-htp, or the DLC it was compiled from",
    )


def loadable(model: onnx_ir.Model, weights: int, prefix: str) -> tuple[bytes | Path, str | None]:
    """What ONNX Runtime loads a model in memory from: its bytes, or with many weights a file beside them.

    Args:
        model: the model.
        weights: bytes of its weights.
        prefix: of the temporary folder's name.

    Returns:
        The bytes or the file, and the temporary folder that the caller removes at the end; None without a file.

    Raises:
        NpukitError: there is no room for the file.
    """
    import onnx_ir

    if weights < _EMBED_LIMIT:
        return onnx_ir.to_proto(model).SerializeToString(), None
    folder = tempfile.mkdtemp(prefix=prefix)
    path = Path(folder, "model.onnx")
    try:
        with files.os_errors(path, "write"):
            onnx_ir.save(model, path, external_data="model.data")
    except NpukitError:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    return path, folder


def open_session(source: bytes | Path, options: onnxruntime.SessionOptions) -> Any:
    """A session for a raised graph: an InferenceSession, or what stands for it where a plugin computes ops in Python.

    Args:
        source: the model's bytes, or its file.
        options: of ONNX Runtime; the folder of external data is added to them.

    Raises:
        ModelError: what a plugin computes has unknown types.
        Exception: ONNX Runtime's own, where it refuses the model.
    """
    from npukit.runtime.ort_parts import Parts, has_computed

    if any(op.compute is not None for op in plugins.ops()):
        model, folder = _read(source, options)
        if has_computed(model):
            return Parts(model, folder, lambda part: _make(part, options))
    return _make(source, options)


def _make(source: bytes | Path, options: onnxruntime.SessionOptions) -> Any:
    import onnxruntime

    note("onnxruntime.InferenceSession")
    return onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])


def _read(source: bytes | Path, options: onnxruntime.SessionOptions) -> tuple[onnx.ModelProto, Path]:
    """The model and the folder of its external data, which is left there and named in `options`."""
    import onnx

    if not isinstance(source, Path):
        return onnx.load_from_string(source), Path()
    folder = source.resolve().parent
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(folder))
    return onnx.load(source, load_external_data=False), folder


def _raised(request: Request) -> OrtEngine:
    from npukit.artifacts import dlc
    from npukit.raising import as_computed, raise_graph, refuse_foreign
    from npukit.runtime.qnn import pick_graph
    from npukit.targets import htp_arch

    assert request.path is not None
    model, stamp = dlc.read(Path(request.path))
    graph = pick_graph(model, request.graph, request.path)
    arch = htp_arch(stamp.targets if stamp is not None else ())
    raised = raise_graph(as_computed(graph, arch), quantized="qdq")
    refuse_foreign(raised, request.path)
    source, folder = loadable(raised, graph.static_bytes(), "npukit-raised-")
    if stamp is not None:
        contract = ports_of(stamp, graph, "inputs"), ports_of(stamp, graph, "outputs")
    else:
        dequantize = request.dequantize
        contract = (
            native_ports(graph.inputs, dequantize=dequantize),
            native_ports(graph.outputs, dequantize=dequantize),
        )
    engine = OrtEngine(
        source,
        threads=request.threads,
        fetch=request.fetch,
        graph=graph.name,
        stamp=stamp,
        contract=contract,
        names=stamp.names if stamp is not None else None,
    )
    engine.folder = folder
    if stamp is not None:
        engine.description = replace(engine.description, ignored=ignored_ports(stamp, graph))
    return engine


class OrtEngine:
    """A model in ONNX Runtime.

    Args:
        source: a file (its external data is read by ONNX Runtime), or the bytes of a model.
        threads: number of threads inside an op; None for ONNX Runtime's choice.
        fetch: names of inner values that are given as outputs too, after the model's own.
        graph: name of the QNN graph that `source` was raised from, if it was.
        stamp: the stamp of the file that held that graph.
        contract: the inputs and outputs of that graph; its tensors are the native form.
        names: source name -> name in `source`, where they differ; `fetch` takes either.

    Raises:
        ModelError: ONNX Runtime refuses the model, or it has inputs that are not tensors.
    """

    def __init__(
        self,
        source: Path | bytes,
        *,
        threads: int | None = None,
        fetch: Sequence[str] = (),
        graph: str = "",
        stamp: Stamp | None = None,
        contract: tuple[Sequence[Port], Sequence[Port]] = ((), ()),
        names: Mapping[str, str] | None = None,
    ) -> None:
        asked = {(names or {}).get(name, name): name for name in fetch}
        self._source, self._threads, self._fetch = source, threads, tuple(asked)
        self._raised = bool(graph)
        self.folder: str | None = None
        where = source.name if isinstance(source, Path) else ""
        self._session = self._open()
        import onnxruntime

        inputs = [_port(value, where) for value in self._session.get_inputs()]
        outputs = [_port(value, where) for value in self._session.get_outputs()]
        outputs = [replace(port, name=asked.get(port.name, port.name)) for port in outputs]
        inputs, outputs = _contract(inputs, contract[0]), _contract(outputs, contract[1])
        self._inputs, self._outputs = inputs, outputs
        self._output_names = [port.tensor for port in outputs]
        self._foreign = any(port.native.name in _FOREIGN for port in [*inputs, *outputs])
        self.description = Description(
            backend="ort",
            graph=graph,
            inputs=tuple(inputs),
            outputs=tuple(outputs),
            placement=(
                Placement(where or "the model", "", "ort", "ONNX Runtime's CPU provider is the only one asked for"),
            ),
            stamp=stamp,
            library=f"ONNX Runtime {onnxruntime.__version__}",
        )

    def execute(self, inputs: Sequence[Array], outputs: Sequence[Array] | None) -> list[Array]:
        """Run on arrays in port order."""
        note("onnxruntime.run")
        try:
            results = self._run_foreign(inputs) if self._foreign else self._run_plain(inputs)
        except NpukitError:  # a plugin's
            raise
        except Exception as error:  # pybind's exceptions have no common base below Exception
            raise NativeError(f"ONNX Runtime failed: {text_of(error)}") from error
        if outputs is not None:
            for out, result in zip(outputs, results, strict=True):
                np.copyto(out, result.reshape(out.shape), casting="no")
            return list(outputs)
        return results

    def _run_plain(self, inputs: Sequence[Array]) -> list[Array]:
        feeds = {port.tensor: array for port, array in zip(self._inputs, inputs, strict=True)}
        results: list[Array] = self._session.run(self._output_names, feeds)
        return results

    def _run_foreign(self, inputs: Sequence[Array]) -> list[Array]:
        feeds = {port.tensor: _to_value(array) for port, array in zip(self._inputs, inputs, strict=True)}
        values = self._session.run_with_ort_values(self._output_names, feeds)
        return [_from_value(value, port.native) for value, port in zip(values, self._outputs, strict=True)]

    def profile(self, inputs: Sequence[Array], runs: int) -> list[ProfileEvent]:
        """Mean time of every node over `runs` executions, from ONNX Runtime's own profiler."""
        with tempfile.TemporaryDirectory(prefix="npukit-profile-") as folder:
            session = self._open(str(Path(folder, "ort")))
            feeds = {port.tensor: array for port, array in zip(self._inputs, inputs, strict=True)}
            for _ in range(runs):
                session.run(self._output_names, feeds)
            events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
        total: dict[str, int] = defaultdict(int)
        for event in events:
            if event.get("cat") == "Node" and str(event.get("name", "")).endswith("_kernel_time"):
                total[event["name"].removesuffix("_kernel_time")] += int(event["dur"])
            elif event.get("name") == "model_run":
                total["run"] += int(event["dur"])
        whole = total.pop("run", 0)
        parts = [ProfileEvent(name, time // runs, "us", "run") for name, time in total.items()]
        return [ProfileEvent("run", whole // runs, "us"), *parts]

    def close(self) -> None:
        """Free the session."""
        self._session = None
        if self.folder is not None:
            shutil.rmtree(self.folder, ignore_errors=True)
            self.folder = None

    def _open(self, profile_prefix: str | None = None) -> Any:
        try:
            import onnxruntime
        except ImportError as error:
            from npukit.errors import MissingDependency

            raise MissingDependency(
                f"ONNX Runtime cannot be imported ({error})", hint="pip install onnxruntime"
            ) from error
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        if self._raised:
            # A raised graph is a simulation: ONNX Runtime's integer kernels saturate sums in 16 bits on processors
            # without VNNI, which no NPU does.
            options.add_session_config_entry("session.disable_quant_qdq", "1")
        if self._threads is not None:
            options.intra_op_num_threads = self._threads
            options.inter_op_num_threads = 1
        if profile_prefix is not None:
            options.enable_profiling = True
            options.profile_file_prefix = profile_prefix
        where = self._source.name if isinstance(self._source, Path) else ""
        try:
            session = self._session_of(self._source, options)
        except NpukitError:
            raise
        except Exception as error:
            raise ModelError(
                f"ONNX Runtime cannot load the model: {text_of(error)}",
                where=where,
                hint="npukit convert accepts more: its own front end rewrites what this ONNX Runtime does not know"
                + ("; a plugin's body must be in the model's own opset here" if plugins.ops() else "")
                + ("; a plugin may define it (--plugin)" if "not a registered function" in text_of(error) else ""),
            ) from error
        session.disable_fallback()
        return session

    def _session_of(self, source: Path | bytes, options: onnxruntime.SessionOptions) -> Any:
        if not self._fetch and not plugins.ops():
            return self._make(source, options)
        from npukit.runtime.ort_parts import has_computed

        model, folder = _read(source, options)
        self._edit(model)
        if has_computed(model):
            return self._make_parts(model, folder, options)
        return self._make(model.SerializeToString(), options)

    def _make_parts(self, model: onnx.ModelProto, folder: Path, options: onnxruntime.SessionOptions) -> Any:
        from npukit.runtime.ort_parts import Parts

        if options.enable_profiling:
            raise UsageError("a model with an op that a plugin computes in Python cannot be profiled")
        if any(value.type.tensor_type.elem_type in _NO_NUMPY for value in (*model.graph.input, *model.graph.output)):
            raise UsageError("with an op that a plugin computes in Python, inputs and outputs need dtypes of numpy")
        return Parts(model, folder, lambda part: self._make(part, options))

    def _make(self, source: Path | bytes, options: onnxruntime.SessionOptions) -> Any:
        return _make(source, options)

    def _edit(self, model: onnx.ModelProto) -> None:
        """Put the fetched values among the outputs, and into the model what plugins define."""
        import onnx

        known = _values(model)
        missing = [name for name in self._fetch if name not in known]
        if missing:
            raise UsageError(f"the model has no value {missing[0]!r}", hint=nearest(missing[0], known))
        present = {value.name for value in model.graph.output}
        model.graph.output.extend(onnx.ValueInfoProto(name=n) for n in dict.fromkeys(self._fetch) if n not in present)
        if not self._raised:
            _define(model)


def _define(model: onnx.ModelProto) -> None:
    """Put the bodies of ops that plugins define into a model as its functions.

    Raises:
        ModelError: a plugin says of an op of the model neither what its body is nor how it is computed.
    """
    used = {(node.domain, node.op_type) for node in model.graph.node}
    bodiless = [op for op in plugins.ops() if (op.domain, op.name) in used and not op.runs]
    if bodiless:
        raise ModelError(
            bodiless[0].broken("gives neither body nor compute") + ": the model cannot be run",
            hint="add body (an ONNX function) or compute (a Python function), or do not verify (--no-verify)",
        )
    own = {(function.domain, function.name) for function in model.functions}
    bodies = [op.function for op in plugins.ops() if op.function is not None and (op.domain, op.name) not in own]
    model.functions.extend(bodies)
    imported = {entry.domain for entry in model.opset_import}
    for domain in sorted({body.domain for body in bodies} - imported):
        model.opset_import.add(domain=domain, version=1)


def _values(model: onnx.ModelProto) -> set[str]:
    names = {output for node in model.graph.node for output in node.output if output}
    return names | {value.name for value in model.graph.input} | {value.name for value in model.graph.initializer}


def _port(value: Any, where: str) -> Port:
    kind = str(value.type)
    element = kind.removeprefix("tensor(").removesuffix(")")
    if not kind.startswith("tensor(") or element not in _TYPES:
        raise ModelError(f"it is a {kind}; only tensors can be run", where=f"{where}: {value.name}")
    shape: Shape = tuple(d if isinstance(d, (int, str)) or d is None else None for d in (value.shape or ()))
    return Port(value.name, _TYPES[element][1], shape, value.name, None, shape)


def _contract(raised: Sequence[Port], contract: Sequence[Port]) -> list[Port]:
    """The artifact's ports, in their order, then what was fetched beside them."""
    names = {port.tensor for port in contract}
    return [*contract, *(port for port in raised if port.tensor not in names)]


def text_of(error: Exception) -> str:
    """ONNX Runtime's message without its prefix and its own file names."""
    text = str(error).strip()
    if text.startswith("[ONNXRuntimeError] : "):
        text = text.split(" : ", 3)[-1]
    return " ".join(text.split())[:600]


# ---------------------------------------------------------------- element types that numpy lacks


def _to_value(array: Array) -> Any:
    import onnxruntime

    if array.dtype.name not in _FOREIGN:
        return onnxruntime.OrtValue.ortvalue_from_numpy(array)
    value = onnxruntime.OrtValue.ortvalue_from_shape_and_type(list(array.shape), _BY_DTYPE[array.dtype.name])
    data = _pack(array) if array.dtype.name in _PACKED else np.ascontiguousarray(array)
    ctypes.memmove(value.data_ptr(), data.ctypes.data, data.nbytes)
    return value


def _from_value(value: Any, dtype: np.dtype[Any]) -> Array:
    if dtype.name not in _FOREIGN:
        array: Array = value.numpy()
        return array
    shape = tuple(value.shape())
    count = int(np.prod(shape))
    size = (count + 1) // 2 if dtype.name in _PACKED else count * dtype.itemsize
    data = np.frombuffer(ctypes.string_at(value.data_ptr(), size), np.uint8)
    return _unpack(data, count, dtype).reshape(shape) if dtype.name in _PACKED else data.view(dtype).reshape(shape)


def _pack(array: Array) -> Array:
    """Two 4-bit values a byte, the first in the low half."""
    flat = array.reshape(-1).astype(np.int8).view(np.uint8) & 0x0F
    flat = np.append(flat, np.zeros(flat.size % 2, np.uint8))
    packed: Array = flat[0::2] | (flat[1::2] << 4)
    return packed


def _unpack(data: Array, count: int, dtype: np.dtype[Any]) -> Array:
    halves = np.stack([data & 0x0F, data >> 4], axis=1).reshape(-1)[:count].astype(np.int8)
    if dtype.name == "int4":
        halves = np.where(halves > 7, halves - 16, halves).astype(np.int8)
    return halves.astype(dtype)

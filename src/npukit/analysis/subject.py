# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""A model file of any kind seen in one way: graphs of tensors and ops, its stamp, and facts about the file.

`inspect` and `diff` read this alone, so that they need not know the kinds of files.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from npukit.analysis import cost
from npukit.errors import MissingDependency, UsageError, nearest
from npukit.qnn.graph import Encoding, Graph, Param, Tensor, TensorKind

if TYPE_CHECKING:
    import onnx_ir as ir

    from npukit.artifacts.stamp import Stamp

Array = npt.NDArray[np.generic]

KINDS = {"onnx": "ONNX model", "dlc": "DLC", "context": "HTP context binary", "om": "Ascend OM model"}


@dataclass(frozen=True)
class TensorView:
    """A tensor.

    Attributes:
        name: in the file.
        dtype: "float32", or the name of a QNN data type.
        shape: extents; symbols or None where they are open.
        encoding: quantization parameters, or None.
        nbytes: of a constant; 0 for others.
        load: gives a constant's values; None for others.
    """

    name: str
    dtype: str
    shape: tuple[int | str | None, ...]
    encoding: Encoding | None = None
    nbytes: int = 0
    load: Callable[[], Array] | None = None


@dataclass(frozen=True)
class OpView:
    """An op: its inputs and outputs are tensor names, "" for an absent input."""

    name: str
    type: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    params: Mapping[str, Any] = field(default_factory=dict)


@dataclass
class GraphView:
    """A graph.

    Attributes:
        name: in the file.
        inputs: graph inputs in order.
        outputs: graph outputs in order.
        ops: in executable order; None where the file holds compiled code instead.
        tensors: every tensor that the file names, by name, inputs and outputs included.
    """

    name: str
    inputs: list[TensorView]
    outputs: list[TensorView]
    ops: list[OpView] | None
    tensors: dict[str, TensorView]

    @property
    def constants(self) -> list[TensorView]:
        """Tensors with values."""
        return [t for t in self.tensors.values() if t.load is not None]

    def op_types(self) -> dict[str, int]:
        """How many ops of each type, the most frequent first."""
        return cost.op_counts(op.type for op in self.ops or ())


@dataclass
class Subject:
    """A model file.

    Attributes:
        path: the file.
        kind: "onnx", "dlc", "context" or "om".
        size: bytes of the file.
        sha256: of the file.
        graphs: what it holds.
        facts: what else the file says about itself, for people ("opset": 17).
        stamp: npukit's stamp; None without one.
        parts: members of an archive, or external data files: name and bytes.
        unread: why its graphs are not here; empty where they are.
    """

    path: Path
    kind: str
    size: int
    sha256: str
    graphs: list[GraphView]
    facts: dict[str, Any] = field(default_factory=dict)
    stamp: Stamp | None = None
    parts: list[tuple[str, int]] = field(default_factory=list)
    unread: str = ""

    def graph(self, name: str | None) -> GraphView:
        """The graph called `name`, or the only one. UsageError otherwise."""
        if name is None and len(self.graphs) == 1:
            return self.graphs[0]
        found = [g for g in self.graphs if g.name == name]
        if not found:
            names = [g.name for g in self.graphs]
            what = "the file holds several graphs" if name is None else f"the file holds no graph {name!r}"
            raise UsageError(what, where="--graph", hint=nearest(name, names) if name else f"one of {', '.join(names)}")
        return found[0]


def open_subject(path: Path, graph: str | None = None, *, partly: bool = False) -> Subject:
    """Read a model file of any kind; with `graph` only that one.

    Runs Qualcomm's libraries on the file for a DLC or context binary: callers do that in a worker. Where these are
    missing, `partly` gives what the file says without them: no graphs, and `unread` says why.

    Raises:
        NpukitError: the file is missing, broken or of no known kind, or holds no such graph.
    """
    from npukit.files import sha256_file
    from npukit.runtime.file_kind import file_kind

    kind = file_kind(path)
    try:
        subject = _READERS[kind](path)
    except MissingDependency as error:
        if not partly:
            raise
        subject = _without_library(path, kind)
        subject.unread, graph = f"its graphs cannot be read here: {error.what} ({error.hint})", None
    subject.sha256 = sha256_file(path)
    if graph is not None:
        subject.graphs = [subject.graph(graph)]
    return subject


# --- ONNX ---


def _read_onnx(path: Path) -> Subject:
    from npukit.frontends.onnx.read_model import read_model

    source = read_model(path)
    model = source.model
    opsets = {domain or "ai.onnx": version for domain, version in model.opset_imports.items()}
    facts = {
        "IR version": model.ir_version,
        "opsets": ", ".join(f"{domain} {version}" for domain, version in opsets.items()),
        "producer": " ".join(filter(None, [model.producer_name, model.producer_version])),
        "functions": len(model.functions) or None,
        "metadata": dict(model.metadata_props) or None,
    }
    parts = [(p.name, p.stat().st_size) for p in source.files[1:]]
    return Subject(path, "onnx", path.stat().st_size, "", [_onnx_graph(model.graph)], facts, None, parts)


def _onnx_graph(graph: ir.Graph) -> GraphView:
    tensors: dict[str, TensorView] = {}

    def view(value: ir.Value) -> TensorView:
        name = value.name or ""
        if name not in tensors:
            tensors[name] = _onnx_tensor(value)
        return tensors[name]

    for initializer in graph.initializers.values():
        view(initializer)
    inputs = [view(v) for v in graph.inputs if v.const_value is None]
    ops = []
    for node in graph:
        for value in (*node.inputs, *node.outputs):
            if value is not None and value.name:
                view(value)
        domain = "" if node.domain in ("", "ai.onnx") else f"{node.domain}::"
        names = tuple("" if v is None else v.name or "" for v in node.inputs)
        made = tuple(v.name or "" for v in node.outputs)
        params = {key: _onnx_attribute(attribute) for key, attribute in node.attributes.items()}
        ops.append(OpView(node.name or (made[0] if made else ""), domain + node.op_type, names, made, params))
    return GraphView(graph.name or "", inputs, [view(v) for v in graph.outputs], ops, tensors)


def _onnx_tensor(value: ir.Value) -> TensorView:
    dtype = "" if value.dtype is None else value.dtype.name.lower()
    dtype = {"float": "float32", "double": "float64"}.get(dtype, dtype)
    shape: tuple[int | str | None, ...] = ()
    if value.shape is not None:
        shape = tuple(d if isinstance(d, int) else (d.value if d.value else None) for d in value.shape)
    constant = value.const_value
    if constant is None:
        return TensorView(value.name or "", dtype, shape)
    return TensorView(
        value.name or "", dtype, tuple(constant.shape.numpy()), None, int(constant.nbytes), constant.numpy
    )


def _onnx_attribute(attribute: Any) -> Any:
    value = attribute.value
    if hasattr(value, "numpy"):
        return np.asarray(value.numpy())
    if isinstance(value, bytes):
        return value.decode("utf-8", "backslashreplace")
    if isinstance(value, int | float | str):
        return value
    if isinstance(value, list | tuple) and all(isinstance(v, int | float | str) for v in value):
        return list(value)
    return f"<{type(value).__name__}>"  # a subgraph: its own nodes are not compared


# --- QNN ---


def graph_view(graph: Graph) -> GraphView:
    """The view of a QNN graph."""
    tensors = {t.name: _qnn_tensor(t) for t in graph.tensors()}
    ops = [
        OpView(
            op.name,
            op.type if op.package == "qti.aisw" else f"{op.package}::{op.type}",
            tuple("" if t is None else t.name for t in op.inputs),
            tuple(t.name for t in op.outputs),
            {name: _param(param) for name, param in op.params.items()},
        )
        for op in graph.ops
    ]
    inputs = [tensors[t.name] for t in graph.inputs]
    return GraphView(graph.name, inputs, [tensors[t.name] for t in graph.outputs], ops, tensors)


def _qnn_tensor(tensor: Tensor) -> TensorView:
    data = tensor.data
    constant = tensor.kind is TensorKind.STATIC and data is not None
    return TensorView(
        tensor.name,
        tensor.dtype.name,
        tensor.shape,
        tensor.encoding,
        tensor.nbytes if constant else 0,
        (lambda: data) if constant and data is not None else None,
    )


def _param(param: Param) -> Any:
    return np.asarray(param.value) if param.is_tensor else param.value


def _read_dlc(path: Path) -> Subject:
    from npukit.artifacts import dlc

    model, stamp = dlc.read(path)
    # libQnnIr always names "qnn-net-run" as the tool: only without a stamp does the field say something.
    tool = model.metadata.get("converter") if stamp is None else None
    facts = {"QAIRT build": model.metadata.get("qairt_build"), "tool": tool}
    parts = [(member.name, member.size) for member in dlc.members(path)]
    graphs = [graph_view(graph) for graph in model.graphs.values()]
    return Subject(path, "dlc", path.stat().st_size, "", graphs, facts, stamp, parts)


def _read_context(path: Path) -> Subject:
    from npukit.artifacts import context

    info, stamp = context.read(path)
    version = ".".join(map(str, info.core_version))
    facts = {
        "backend": info.backend,
        "QAIRT build": info.build_id,
        "QNN core API": version,
        "SoC": _soc(info.soc_model),
        "Hexagon": f"V{info.arch}" if info.arch else None,
        "VTCM MB": ", ".join(f"{name} {mb}" for name, mb in info.vtcm_mb.items()),
        "blob": f"{info.blob_size} bytes, version {'.'.join(map(str, info.blob_version))}",
    }
    graphs = []
    for graph in info.model.graphs.values():
        view = graph_view(graph)
        view.ops = None
        graphs.append(view)
    return Subject(path, "context", path.stat().st_size, "", graphs, facts, stamp)


def _soc(model: int) -> str:
    """A SoC id with the chips that have it."""
    from npukit.targets import by_soc_id

    names = ", ".join(by_soc_id(model))
    return f"{model} ({names})" if names else str(model or "")


def _without_library(path: Path, kind: str) -> Subject:
    """Stamp and members of an artifact: what can be read without Qualcomm's libraries."""
    from npukit.artifacts import context, dlc

    size = path.stat().st_size
    if kind == "context":
        return Subject(path, kind, size, "", [], stamp=context.read_sidecar(path))
    info = dlc.read_info(path)
    facts = {"QAIRT build": info.qairt_build, "tool": info.converter if info.stamp is None else None}
    return Subject(path, kind, size, "", [], facts, info.stamp, [(entry.name, entry.size) for entry in info.members])


def _read_om(path: Path) -> Subject:
    from npukit.artifacts import context
    from npukit.ascend import om

    file = om.read(path)
    facts = {
        "model": file.name,
        "format": file.version,
        "type": file.kind,
        "shapes": "open at run time" if file.dynamic else None,
        "models": file.models if file.models > 1 else None,
        "platform": file.platform,
        "encrypted": "yes" if file.encrypted else None,
        **file.noted,
    }
    parts = [(part.kind, part.size) for part in file.partitions]
    unread = "its inputs and outputs are known to the device alone: npukit run FILE --random 1 (backend acl)"
    return Subject(path, "om", file.size, "", [], facts, context.read_sidecar(path), parts, unread)


_READERS: dict[str, Callable[[Path], Subject]] = {
    "onnx": _read_onnx,
    "tflite": _read_onnx,
    "dlc": _read_dlc,
    "context": _read_context,
    "om": _read_om,
}


def digest(array: Array, *, sort: bool = False) -> str:
    """SHA-256 over the values as float64 or int64 bytes; with `sort` regardless of their order and shape."""
    values = np.ascontiguousarray(array).reshape(-1)
    if sort:
        values = np.sort(values)
    return hashlib.sha256(values.tobytes()).hexdigest()

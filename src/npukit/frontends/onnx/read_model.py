# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""Reads a model file: content is what counts, weights stay in the file and are memory-mapped."""

from __future__ import annotations

import hashlib
import mmap
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import TYPE_CHECKING

import numpy as np
import onnx
import onnx_ir as ir
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

from npukit.errors import ArtifactError, Fault, ModelError
from npukit.files import zip_entries
from npukit.frontends.onnx.check_model import check_model, tensor_bytes
from npukit.frontends.onnx.rewrite import subgraphs_of
from npukit.frontends.onnx.strip_weights import INLINE, WireError, strip_weights

if TYPE_CHECKING:
    from npukit.frontends.onnx.options import LoadOptions

# What people hand in by mistake: first bytes -> what it is, what to do.
_OTHER_FORMATS: tuple[tuple[int, bytes, str, str], ...] = (
    (0, b"version https://git-lfs", "a git-lfs pointer, not the file itself", "run `git lfs pull` where it came from"),
    (0, b"PK\x03\x04", "a zip archive (a .dlc, a PyTorch file or an .npz?)", "give the ONNX file"),
    (0, b"<", "a web page or XML file", "download the file itself, not the page that shows it"),
    (0, b"{", "a JSON file", "give the ONNX file"),
    (0, b"\x89HDF", "an HDF5 file (Keras)", "export it to ONNX first"),
    (4, b"ORTM", "an ONNX Runtime (.ort) file", "give the .onnx file it was made from"),
    (0, b"\x7fELF", "a program or shared library", "give the ONNX file"),
    (0, b"\x80\x02", "a Python pickle", "export it to ONNX first"),
    (0, b"GGUF", "a GGUF file", "export the model to ONNX first"),
    (0, b"IMOD", "an Ascend .om file, which holds compiled code", "give the ONNX file that it was compiled from"),
)


@dataclass
class Source:
    """A model as read: the ir model (weights mapped), what it was read from, and how to hash it."""

    model: ir.Model
    path: Path | None
    digest: Callable[[], str]
    files: list[Path] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def read_model(
    path_or_model: str | os.PathLike[str] | onnx.ModelProto | ir.Model,
    options: LoadOptions | None = None,
    also: frozenset[str] = frozenset(),
) -> Source:
    """Read or take over a model; the given object is never changed. A TensorFlow Lite file becomes ONNX here.

    `also`: ops of ai.onnx that a file may hold though ONNX does not have them.

    Raises:
        ModelError: missing, unreadable, not ONNX, or broken, with every fault that was found.
    """
    if isinstance(path_or_model, ir.Model):
        model = path_or_model.clone()
        return Source(model, None, lambda: _proto_digest(ir.to_proto(path_or_model)))
    if isinstance(path_or_model, onnx.ModelProto):
        faults = check_model(path_or_model) + _Files(None, None).check(path_or_model)
        if faults:
            raise ModelError("the model is broken", faults=faults)
        model = _from_proto(path_or_model, "model")
        _attach(model, _Files(None, None))
        return Source(model, None, lambda: _proto_digest(path_or_model))
    path = Path(path_or_model)
    if is_tflite(path):
        from npukit.frontends.tflite import to_onnx
        from npukit.frontends.tflite.flatfile import read_file

        return to_onnx(read_file(path), options)
    return _read_file(path, also)


def is_tflite(path: Path) -> bool:
    """Whether a file is a TensorFlow Lite model, by its content."""
    try:
        with open(path, "rb") as file:
            return file.read(8)[4:] == b"TFL3"
    except OSError:
        return False


def _proto_digest(proto: onnx.ModelProto) -> str:
    return hashlib.sha256(proto.SerializeToString(deterministic=True)).hexdigest()


def _check_zip(content: mmap.mmap, path: Path) -> None:
    """ModelError for a damaged archive, so that nobody looks for one of another kind."""
    try:
        zip_entries(memoryview(content), where=str(path))
    except ArtifactError as error:
        raise ModelError(error.what, where=error.where, hint=error.hint) from None


def _read_file(path: Path, also: frozenset[str]) -> Source:
    try:
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            mapping = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) if size else None
    except FileNotFoundError:
        raise ModelError("there is no such file", where=str(path)) from None
    except IsADirectoryError:
        raise ModelError("this is a folder", where=str(path), hint="give the .onnx file in it") from None
    except (OSError, ValueError) as error:
        raise ModelError(f"cannot be read: {getattr(error, 'strerror', None) or error}", where=str(path)) from None
    if mapping is None:
        raise ModelError("the file is empty", where=str(path))
    for at, magic, kind, hint in _OTHER_FORMATS:
        if mapping[at : at + len(magic)] == magic:
            if magic.startswith(b"PK"):
                _check_zip(mapping, path)
            raise ModelError(f"this is {kind}", where=str(path), hint=hint)
    proto = onnx.ModelProto()
    view = memoryview(mapping)
    try:
        proto.ParseFromString(strip_weights(view))
    except (WireError, DecodeError, RecursionError) as error:
        text = f": {error}" if isinstance(error, WireError) else ""
        raise ModelError(
            f"this is not a whole ONNX model{text}", where=str(path), hint="was it cut off on the way? fetch it again"
        ) from None
    finally:
        view.release()
    faults = check_model(proto, also)
    files = _Files(path, mapping)
    faults += files.check(proto)
    if faults:
        raise ModelError("the model is broken", where=str(path), faults=faults)
    model = _from_proto(proto, str(path))
    _attach(model, files)
    paths = [path, *sorted(files.paths.values())]
    return Source(model, path, lambda: _file_digest(paths), paths)


def _file_digest(paths: list[Path]) -> str:
    digest = hashlib.sha256()
    for path in paths:
        with open(path, "rb") as file:
            hashlib.file_digest(file, lambda: digest)
    return digest.hexdigest()


def _from_proto(proto: onnx.ModelProto, where: str) -> ir.Model:
    try:
        return ir.from_proto(proto)
    except Exception as error:
        # onnx_ir raises many kinds; whatever got through the checks and fails here is the file's fault
        cause: BaseException = error
        while cause.__cause__ is not None:
            cause = cause.__cause__
        raise ModelError(f"the model cannot be built: {' '.join(str(cause).split())[:300]}", where=where) from None


class _Files:
    """The data files that tensors point into, each checked and mapped once."""

    def __init__(self, path: Path | None, inline: mmap.mmap | None) -> None:
        self.path = path
        self.inline = inline
        self.paths: dict[str, Path] = {}
        self._maps: dict[str, np.ndarray[tuple[int], np.dtype[np.uint8]]] = {}

    def check(self, proto: onnx.ModelProto) -> list[Fault]:
        """Faults of every external tensor: path, offset, length, size."""
        faults: list[Fault] = []
        for tensor in _tensors(proto):
            if tensor.data_location == onnx.TensorProto.EXTERNAL:
                what = self._fault(tensor)
                if what:
                    faults.append(Fault(what, f"tensor {tensor.name!r}"))
        return faults[:50]

    def _fault(self, tensor: onnx.TensorProto) -> str:
        entries = {e.key: e.value for e in tensor.external_data}
        location = entries.get("location", "")
        try:
            offset = int(entries.get("offset", "0") or 0)
            length = int(entries["length"]) if entries.get("length") else None
        except ValueError:
            return "offset and length of its external data are not numbers"
        try:
            expected = tensor_bytes(tensor.data_type, tensor.dims)
        except KeyError:
            return ""  # reported as unknown dtype
        if location != INLINE:
            what = self._locate(location)
            if what:
                return what
        size = self.bytes(location).size
        if length is None:
            length = expected
        if length != expected:
            return f"holds {length} bytes where its shape {list(tensor.dims)} needs {expected}"
        if offset < 0 or length < 0 or offset + length > size:
            return f"its data (offset {offset}, length {length}) lies outside the {size} bytes of {location!r}"
        return ""

    def _locate(self, location: str) -> str:
        if location in self.paths:
            return ""
        if self.path is None:
            return "external data needs the model's folder: load it from its file"
        if not location or "\0" in location:
            return "its external data has no location"
        parts = (*PurePosixPath(location).parts, *PureWindowsPath(location).parts)
        windows = PureWindowsPath(location)
        if PurePosixPath(location).is_absolute() or windows.drive or windows.root or ".." in parts:
            return f"external data {location!r} lies outside the model's folder"
        folder = self.path.parent.resolve()
        target = folder / location
        real = target.resolve()
        if not real.is_relative_to(folder):
            return (
                f"external data {location!r} is a link out of the model's folder "
                "(copy the folder with links followed, for example cp -rL)"
            )
        if not real.is_file():
            return f"its external data file {location!r} is missing"
        self.paths[location] = real
        return ""

    def bytes(self, location: str) -> np.ndarray[tuple[int], np.dtype[np.uint8]]:
        """All bytes of a file, mapped read-only."""
        if location not in self._maps:
            if location == INLINE and self.inline is not None:
                self._maps[location] = np.frombuffer(self.inline, dtype=np.uint8)
            else:
                with open(self.paths[location], "rb") as file:
                    size = os.fstat(file.fileno()).st_size
                    buffer = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) if size else b""
                self._maps[location] = np.frombuffer(buffer, dtype=np.uint8)
        return self._maps[location]

    def tensor(self, external: ir.ExternalTensor) -> ir.TensorProtocol:
        """The tensor as a view of its mapped file."""
        shape = external.shape.numpy()
        offset, count = external.offset or 0, tensor_bytes(int(external.dtype), shape)
        raw = self.bytes(str(external.location))[offset : offset + count]
        if external.dtype.bitwidth < 8:
            return ir.PackedTensor(raw, external.dtype, shape=external.shape, name=external.name)
        return ir.Tensor(raw.view(external.dtype.numpy()).reshape(shape), dtype=external.dtype, name=external.name)


def _tensors(proto: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    def of_nodes(nodes: object) -> Iterator[onnx.TensorProto]:
        for node in nodes:  # type: ignore[attr-defined]
            for attr in node.attribute:
                if attr.HasField("t"):
                    yield attr.t
                yield from attr.tensors
                if attr.HasField("g"):
                    yield from of_graph(attr.g)
                for graph in attr.graphs:
                    yield from of_graph(graph)

    def of_graph(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
        yield from graph.initializer
        for sparse in graph.sparse_initializer:
            yield sparse.values
            yield sparse.indices
        yield from of_nodes(graph.node)

    yield from of_graph(proto.graph)
    for function in proto.functions:
        yield from of_nodes(function.node)


# A typed field or in-memory raw_data above this is turned into an array only when it is read.
_LAZY_BYTES = 1 << 16


def _attach(model: ir.Model, files: _Files) -> None:
    """Put mapped or plain arrays in place of tensors that refer to files or to the parsed proto."""

    def own(tensor: ir.TensorProtocol) -> ir.TensorProtocol:
        try:
            return _own(tensor)
        except (ValueError, AssertionError, TypeError, OverflowError) as error:  # values that their dtype cannot have
            raise ModelError(f"its values cannot be read: {error}", where=f"tensor {tensor.name!r}") from error

    def _own(tensor: ir.TensorProtocol) -> ir.TensorProtocol:
        if isinstance(tensor, ir.ExternalTensor):
            return files.tensor(tensor)
        if isinstance(tensor, ir.TensorProtoTensor):
            if tensor.dtype == ir.DataType.STRING:
                return ir.StringTensor(tensor.numpy(), shape=tensor.shape, name=tensor.name)
            if files.path is None and tensor.nbytes > _LAZY_BYTES:
                # the proto belongs to the caller: protobuf hands out copies, so none is kept
                return ir.LazyTensor(
                    lambda: ir.Tensor(tensor.numpy(), dtype=tensor.dtype),
                    dtype=tensor.dtype,
                    shape=ir.Shape(tensor.shape),
                    name=tensor.name,
                )
            return ir.Tensor(tensor.numpy(), dtype=tensor.dtype, name=tensor.name)
        return tensor

    def own_graph(graph: ir.Graph | ir.Function) -> None:
        if isinstance(graph, ir.Graph):
            for value in graph.initializers.values():
                if value.const_value is not None:
                    value.const_value = own(value.const_value)
                    value.shape = ir.Shape(value.const_value.shape.numpy())
                    value.type = ir.TensorType(value.const_value.dtype)
        for node in graph:
            for name, attr in list(node.attributes.items()):
                if attr.is_ref():
                    continue
                if attr.type == ir.AttributeType.TENSOR:
                    node.attributes[name] = ir.AttrTensor(name, own(attr.value))
                elif attr.type == ir.AttributeType.TENSORS:
                    node.attributes[name] = ir.AttrTensors(name, [own(t) for t in attr.value])
            for sub in subgraphs_of(node):
                own_graph(sub)

    own_graph(model.graph)
    for function in model.functions.values():
        own_graph(function)

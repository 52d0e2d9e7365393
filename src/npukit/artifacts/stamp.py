# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""The stamp: what npukit writes into (or beside) every artifact about where it comes from and how to feed it.

It is JSON with sorted keys and holds no time, path or user name, so that equal conversions give equal bytes. Reading
is strict: a stamp comes with a file that anybody may have made.
"""

from __future__ import annotations

import enum
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import PurePath, PurePosixPath, PureWindowsPath
from typing import Any

import numpy as np

from npukit.errors import ArtifactError
from npukit.qnn.graph import DType, Encoding, Model, Tensor

FORMAT = 1
"""Version of the JSON layout; raised with every field that a reader must know."""

MAX_BYTES = 64 << 20
_MAX_TEXT = 65_536
_MAX_ITEMS = 1_000_000
_MAX_RANK = 32
_MAX_DEPTH = 16

VERIFIED = ("yes", "no", "failed")
"""Values of `Stamp.verified`."""


@dataclass(frozen=True)
class IoTensor:
    """One input or output of the I/O contract: a value of the source model and how a graph tensor holds it.

    A source value of float `dtype` whose `held_dtype` is quantized is encoded with `encoding`; a source value of
    integer `dtype` is passed as the codes that it is.

    Attributes:
        name: name in the source model.
        dtype: numpy-style name of the source's dtype ("float32", "int64", "bfloat16", "bool", ...).
        shape: shape in the source.
        tensor: name of the tensor in the artifact.
        held_dtype: name of a `DType`.
        perm: tensor axis i is source axis perm[i]; None where the order is the source's.
        encoding: the tensor's encoding, None where it has none.
        narrowed: whether the tensor's dtype cannot hold every value of the source's and no proof exists that all
            values fit (int64 as int32): the runtime checks inputs.
        graph: name of the graph in the artifact; empty where it has only one.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    tensor: str
    held_dtype: str
    perm: tuple[int, ...] | None = None
    encoding: Encoding | None = None
    narrowed: bool = False
    graph: str = ""


@dataclass(frozen=True)
class Stamp:
    """Where an artifact comes from, what made it, and its I/O contract.

    Attributes:
        npukit_version: version of npukit that wrote it.
        qairt_build: build of the Qualcomm library that wrote it ("v2.47.0.260601114230"); empty if none did.
        core_api_version: QNN core API version of that library ("2.36.0").
        needs_qairt: oldest QAIRT that loads it on the device ("2.47"), as far as known.
        source_name: file name of the source model, without its folder.
        source_sha256: SHA-256 of the source model's bytes, hex.
        targets: names of the targets it was made for.
        options: the options that made it, plain JSON values (see `plain`).
        inputs: the contract's inputs, in source order.
        outputs: the contract's outputs, in source order.
        names: names in the source -> names in the artifact, where they differ.
        verified: "yes", "no" or "failed".
        seed: seed of the random inputs that it was verified with, None where none were.
    """

    npukit_version: str
    qairt_build: str = ""
    core_api_version: str = ""
    needs_qairt: str = ""
    source_name: str = ""
    source_sha256: str = ""
    targets: tuple[str, ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict)
    inputs: tuple[IoTensor, ...] = ()
    outputs: tuple[IoTensor, ...] = ()
    names: Mapping[str, str] = field(default_factory=dict)
    verified: str = "no"
    seed: int | None = None

    def to_json(self) -> str:
        """The stamp as deterministic JSON text (ASCII, sorted keys, a newline at the end).

        Paths among the options are reduced to their last part.
        """
        return _dump(self.to_dict())

    def to_dict(self) -> dict[str, Any]:
        """The stamp as plain JSON values."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        values["source_name"] = _base_name(self.source_name)
        values["options"] = plain(self.options)
        values["names"] = dict(self.names)
        values["targets"] = list(self.targets)
        values["inputs"] = [_io_to_dict(io) for io in self.inputs]
        values["outputs"] = [_io_to_dict(io) for io in self.outputs]
        return {"format": FORMAT, **values}

    @classmethod
    def from_json(cls, text: str | bytes, *, where: str = "") -> Stamp:
        """Read a stamp strictly: every field's type and size is checked, unknown fields are refused.

        Raises:
            ArtifactError: the text is no stamp, or one that a newer npukit wrote; `where` names the file.
        """
        try:
            return _stamp(parse_json(text))
        except (ValueError, RecursionError) as error:
            raise ArtifactError(
                f"the stamp cannot be read: {error}", where=where, hint="write the artifact again, or update npukit"
            ) from error


def native_stamp(model: Model) -> Stamp:
    """The contract of a file without stamp: every graph input and output as the tensor that it is.

    dtypes are the tensors' containers (quantized tensors take and give integer codes), layouts their own.
    """
    several = len(model.graphs) > 1
    inputs: list[IoTensor] = []
    outputs: list[IoTensor] = []
    for graph in model.graphs.values():
        name = graph.name if several else ""
        inputs += [_native(tensor, name) for tensor in graph.inputs]
        outputs += [_native(tensor, name) for tensor in graph.outputs]
    return Stamp(
        npukit_version="",
        qairt_build=str(model.metadata.get("qairt_build", "")),
        inputs=tuple(inputs),
        outputs=tuple(outputs),
    )


def _native(tensor: Tensor, graph: str) -> IoTensor:
    return IoTensor(
        name=tensor.name,
        dtype=tensor.dtype.numpy.name,
        shape=tensor.shape,
        tensor=tensor.name,
        held_dtype=tensor.dtype.name,
        encoding=tensor.encoding,
        graph=graph,
    )


# --- writing ---


def plain(value: Any) -> Any:
    """`value` as JSON values: paths become their last part, enums their names, arrays and tuples lists.

    Raises:
        TypeError: a value has no JSON form, or is not finite.
    """
    if isinstance(value, enum.Enum):
        return value.name
    if isinstance(value, np.generic | np.ndarray):
        return plain(value.tolist())
    if value is None or isinstance(value, bool | int):
        return value
    if isinstance(value, str):
        return _base_name(value) if _is_absolute(value) else value
    if isinstance(value, float):
        if not math.isfinite(value):
            raise TypeError(f"{value} has no JSON form")
        return value
    if isinstance(value, PurePath):
        return value.name
    if isinstance(value, Mapping):
        return {str(plain(key)): plain(item) for key, item in value.items()}
    if isinstance(value, set | frozenset):
        return sorted(plain(item) for item in value)
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    raise TypeError(f"{type(value).__name__} has no JSON form")


def _is_absolute(text: str) -> bool:
    # Names of ONNX values may well begin with "/" ("/conv1/Conv_output_0"): only what this machine's folders look
    # like is a path. Callers hand paths over as Path objects; this is the second line.
    roots = ("/home/", "/root/", "/tmp/", "/Users/", "/mnt/", "/media/", "/var/", "~/", "file:")  # noqa: S108
    return text.startswith(roots) or (len(text) > 2 and text[1] == ":" and text[2] in "\\/")


def _base_name(text: str) -> str:
    return PureWindowsPath(text).name if "\\" in text else PurePosixPath(text).name


def _dump(value: Any) -> str:
    return json.dumps(value, sort_keys=True, ensure_ascii=True, allow_nan=False, separators=(",", ":")) + "\n"


def _io_to_dict(io: IoTensor) -> dict[str, Any]:
    values = {f.name: getattr(io, f.name) for f in fields(io)}
    values["shape"] = [int(extent) for extent in io.shape]
    values["perm"] = None if io.perm is None else [int(axis) for axis in io.perm]
    values["encoding"] = None if io.encoding is None else encoding_to_dict(io.encoding)
    return values


def encoding_to_dict(encoding: Encoding) -> dict[str, Any]:
    """An encoding as JSON values; fields at their defaults are left out."""
    values = {f.name: getattr(encoding, f.name) for f in fields(encoding) if getattr(encoding, f.name) != f.default}
    return {name: plain(value) for name, value in values.items()}


# --- reading ---


def parse_json(text: str | bytes) -> Any:
    """JSON from an untrusted file: bounded size and depth, no NaN or infinity, no repeated keys.

    Raises:
        ValueError: it is not such JSON.
    """
    if len(text) > MAX_BYTES:
        raise ValueError(f"it has {len(text)} bytes, at most {MAX_BYTES} are read")
    try:
        value = json.loads(text, object_pairs_hook=_unique, parse_constant=_no_constant)
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"not JSON ({error})") from error
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise ValueError("a key is repeated")
    return result


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not a number")


def _text(value: Any, where: str) -> str:
    if not isinstance(value, str) or len(value) > _MAX_TEXT:
        raise ValueError(f"{where} is not a text of at most {_MAX_TEXT} characters")
    return value


def _flag(value: Any, where: str) -> bool:
    if not isinstance(value, bool):
        raise ValueError(f"{where} is not true or false")
    return value


def _integer(value: Any, where: str, low: int = -(1 << 63), high: int = (1 << 63) - 1) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
        raise ValueError(f"{where} is not an integer from {low} to {high}")
    return value


def _number(value: Any, where: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"{where} is not a number")
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        raise ValueError(f"{where} is not finite")
    return number


def _list(item: Callable[[Any, str], Any], limit: int = _MAX_ITEMS) -> Callable[[Any, str], tuple[Any, ...]]:
    def read(value: Any, where: str) -> tuple[Any, ...]:
        if not isinstance(value, list) or len(value) > limit:
            raise ValueError(f"{where} is not a list of at most {limit} entries")
        return tuple(item(entry, f"{where}[{i}]") for i, entry in enumerate(value))

    return read


def _optional(read: Callable[[Any, str], Any]) -> Callable[[Any, str], Any]:
    return lambda value, where: None if value is None else read(value, where)


def _extent(value: Any, where: str) -> int:
    return _integer(value, where, 0, (1 << 32) - 1)


def _names(value: Any, where: str) -> dict[str, str]:
    return {_text(k, where): _text(v, f"{where}[{k[:80]!r}]") for k, v in _object(value, where).items()}


def _object(value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, dict) or len(value) > _MAX_ITEMS:
        raise ValueError(f"{where} is not an object")
    return value


def _options(value: Any, where: str, depth: int = 0) -> Any:
    if depth > _MAX_DEPTH:
        raise ValueError(f"{where} is nested too deeply")
    if depth == 0 or isinstance(value, dict):
        return {_text(k, where): _options(v, f"{where}.{k[:80]}", depth + 1) for k, v in _object(value, where).items()}
    if isinstance(value, list):
        return [_options(item, where, depth + 1) for item in value[:_MAX_ITEMS]]
    if isinstance(value, str):
        return _text(value, where)
    if isinstance(value, float):
        return _number(value, where)
    return value


def _held_dtype(value: Any, where: str) -> str:
    if not isinstance(value, str) or value not in DType.__members__:
        raise ValueError(f"{where} is not the name of a QNN data type")
    return value


def _verified(value: Any, where: str) -> str:
    if value not in VERIFIED:
        raise ValueError(f"{where} is none of {', '.join(VERIFIED)}")
    return str(value)


def _fields(kind: type[Any], readers: Mapping[str, Callable[[Any, str], Any]], value: Any, where: str) -> Any:
    """Build dataclass `kind` from an object, one reader a field; fields with a default may be absent."""
    items = _object(value, where)
    unknown = sorted(set(items) - set(readers))
    if unknown:
        raise ValueError(f"{where} has an unknown field {unknown[0][:80]!r}")
    try:
        return kind(**{name: readers[name](item, f"{where}.{name}") for name, item in items.items()})
    except TypeError as error:
        raise ValueError(f"{where} lacks a field ({error})") from error


_ENCODING_READERS: dict[str, Callable[[Any, str], Any]] = {
    "scales": _list(_number),
    "offsets": _list(lambda v, w: _integer(v, w, -(1 << 31), (1 << 31) - 1)),
    "axis": _optional(lambda v, w: _integer(v, w, 0, _MAX_RANK)),
    "bitwidth": lambda v, w: _integer(v, w, 0, 64),
    "block_shape": _optional(_list(_extent, _MAX_RANK)),
    "block_scales": _optional(_list(_extent)),
    "blocks_per_axis": _extent,
    "block_scale_bits": lambda v, w: _integer(v, w, 0, 64),
    "block_storage": lambda v, w: _integer(v, w, 0, 255),
}


def _encoding(value: Any, where: str) -> Encoding:
    encoding: Encoding = _fields(Encoding, _ENCODING_READERS, value, where)
    if not encoding.scales or len(encoding.scales) != len(encoding.offsets):
        raise ValueError(f"{where} has {len(encoding.scales)} scales and {len(encoding.offsets)} offsets")
    return encoding


def _dtype_name(value: Any, where: str) -> str:
    name = _text(value, where)
    if name not in _SOURCE_DTYPES:
        raise ValueError(f"{where} is not the name of an element type")
    return name


_SOURCE_DTYPES = frozenset(
    ("bool", "string", "int2", "int4", "int8", "int16", "int32", "int64", "uint2", "uint4", "uint8", "uint16", "uint32")
    + ("uint64", "float16", "bfloat16", "float32", "float64", "complex64", "complex128", "float4e2m1", "float8e4m3fn")
    + ("float8e4m3fnuz", "float8e5m2", "float8e5m2fnuz", "float8e8m0")
)

_IO_READERS: dict[str, Callable[[Any, str], Any]] = {
    "name": _text,
    "dtype": _dtype_name,
    "shape": _list(_extent, _MAX_RANK),
    "tensor": _text,
    "held_dtype": _held_dtype,
    "perm": _optional(_list(_extent, _MAX_RANK)),
    "encoding": _optional(_encoding),
    "narrowed": _flag,
    "graph": _text,
}


def _io(value: Any, where: str) -> IoTensor:
    io: IoTensor = _fields(IoTensor, _IO_READERS, value, where)
    if io.perm is not None and sorted(io.perm) != list(range(len(io.shape))):
        raise ValueError(f"{where}.perm is not a permutation of {len(io.shape)} axes")
    return io


_STAMP_READERS: dict[str, Callable[[Any, str], Any]] = {
    "npukit_version": _text,
    "qairt_build": _text,
    "core_api_version": _text,
    "needs_qairt": _text,
    "source_name": _text,
    "source_sha256": _text,
    "targets": _list(_text),
    "options": _options,
    "inputs": _list(_io),
    "outputs": _list(_io),
    "names": _names,
    "verified": _verified,
    "seed": _optional(_integer),
}


def _stamp(value: Any) -> Stamp:
    items = dict(_object(value, "the stamp"))
    version = _integer(items.pop("format", None), "format")
    if version != FORMAT:
        raise ValueError(f"it has format {version}, this npukit reads {FORMAT}")
    stamp: Stamp = _fields(Stamp, _STAMP_READERS, items, "the stamp")
    return stamp

# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""How values travel between npukit and its worker process: a JSON header and raw array buffers, never pickle.

A frame is `u32 header length | header (JSON) | inline buffers`. The header's `"n"` lists the buffers: an
integer is the length of an inline one, `[file, offset, length]` a slice of a file that the receiver maps.
Values that JSON lacks are objects with one key, listed in `_DECODERS`. Classes travel by qualified name and
only those below `npukit.` that are dataclasses, enums or `NpukitError`s are ever built.
"""

from __future__ import annotations

import contextlib
import dataclasses
import enum
import importlib
import json
import mmap
import os
import struct
import tempfile
from collections.abc import Callable
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any, BinaryIO

from npukit.errors import Fault, NpukitError

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

FILE_THRESHOLD = 1 << 20  # buffers from this size on travel through a mapped file: a pipe would copy them twice
_ALIGN = 64
_HEADER = struct.Struct("<I")
_MAX_HEADER = 1 << 30

Header = dict[str, Any]
Buffers = list[Any]


class WireError(Exception):
    """The other side sent something that is not a frame (its memory may be damaged)."""


# ---------------------------------------------------------------- frames


def send(stream: BinaryIO, message: dict[str, Any], folder: str) -> None:
    """Encode `message` and write it as one frame; big buffers go to a file in `folder`."""
    encoder = _Encoder()
    header: Header = {"m": encoder.encode(message)}
    inline: list[memoryview] = []
    header["n"] = _place(encoder.buffers, inline, folder)
    text = json.dumps(header, separators=(",", ":")).encode("ascii")
    head = _HEADER.pack(len(text)) + text
    if sum(len(b) for b in inline) <= 1 << 16:  # one write for the usual small message
        stream.write(b"".join([head, *inline]))
    else:
        stream.write(head)
        for buffer in inline:
            stream.write(buffer)
    stream.flush()


def _place(buffers: list[memoryview], inline: list[memoryview], folder: str) -> list[Any]:
    big = [b for b in buffers if len(b) >= FILE_THRESHOLD]
    if not big:
        inline.extend(buffers)
        return [len(b) for b in buffers]
    places: list[Any] = []
    descriptor, name = tempfile.mkstemp(prefix="frame-", dir=folder)
    try:
        with os.fdopen(descriptor, "wb") as file:
            offset = 0
            for buffer in buffers:
                if len(buffer) < FILE_THRESHOLD:
                    inline.append(buffer)
                    places.append(len(buffer))
                    continue
                file.write(b"\0" * (-offset % _ALIGN))
                offset += -offset % _ALIGN
                file.write(buffer)
                places.append([name, offset, len(buffer)])
                offset += len(buffer)
    except BaseException:  # a full disk: the half-written file must not stay
        with contextlib.suppress(OSError):
            os.unlink(name)
        raise
    return places


def receive(stream: BinaryIO) -> tuple[Any, Buffers] | None:
    """Read one frame and map its buffers; the message is still encoded (see `decode`). None at end of file.

    Raises:
        WireError: what was read is not a frame.
    """
    head = _read(stream, _HEADER.size, at_start=True)
    if head is None:
        return None
    (length,) = _HEADER.unpack(head)
    if length > _MAX_HEADER:
        raise WireError(f"a header of {length} bytes")
    text = _read(stream, length)
    try:
        header = json.loads(bytes(text or b""))
        message, places = header["m"], header["n"]
    except (ValueError, KeyError, TypeError) as error:
        raise WireError(f"a header that cannot be read ({error})") from error
    maps: dict[str, mmap.mmap] = {}
    buffers: Buffers = []
    for place in places:
        if isinstance(place, int):
            buffers.append(_read(stream, place))
        else:
            name, offset, size = place
            if name not in maps:
                maps[name] = _map(name)
            buffers.append(memoryview(maps[name])[offset : offset + size])
    return message, buffers


def _map(name: str) -> mmap.mmap:
    with open(name, "rb") as file:
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
    with contextlib.suppress(OSError):  # Windows keeps a mapped file; the worker's folder is removed at its end
        os.unlink(name)
    return mapped


def _read(stream: BinaryIO, size: int, at_start: bool = False) -> bytearray | None:
    buffer = bytearray(size)
    view, done = memoryview(buffer), 0
    while done < size:
        got = stream.readinto(view[done:])  # type: ignore[attr-defined]
        if not got:
            if at_start and done == 0:
                return None
            raise WireError(f"the stream ended {size - done} bytes before its message")
        done += got
    return buffer


# ---------------------------------------------------------------- values


class _Encoder:
    def __init__(self) -> None:
        self.buffers: list[memoryview] = []
        self._seen: dict[int, int] = {}
        self._alive: list[object] = []  # ids are only unique while their objects live

    def encode(self, value: Any) -> Any:
        kind = type(value)
        if value is None or kind in (bool, int, float, str):
            return value
        if kind is list:
            return [self.encode(v) for v in value]
        if kind is tuple:
            return {"t": [self.encode(v) for v in value]}
        if isinstance(value, dict):
            return {"d": [[self.encode(k), self.encode(v)] for k, v in value.items()]}
        if isinstance(value, enum.Enum):
            return {"e": [_name(kind), value.name]}
        if isinstance(value, PurePath):
            return {"p": str(value)}
        if isinstance(value, (bytes, bytearray, memoryview)):
            self.buffers.append(memoryview(value).cast("B"))
            return {"b": len(self.buffers) - 1}
        if isinstance(value, (set, frozenset)):
            return {"s" if isinstance(value, set) else "z": [self.encode(v) for v in value]}
        if isinstance(value, NpukitError):
            return {"x": [_name(kind), value.what, value.where, value.hint, [self.encode(f) for f in value.faults]]}
        return self._shared(value)

    def _shared(self, value: Any) -> Any:
        # Dataclasses and arrays keep their identity: ops of a graph refer to tensor objects.
        if id(value) in self._seen:
            return {"r": self._seen[id(value)]}
        number = self._seen[id(value)] = len(self._seen)
        self._alive.append(value)
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            fields = {f.name: self.encode(getattr(value, f.name)) for f in dataclasses.fields(value)}
            return {"c": [number, _name(type(value)), fields]}
        import numpy as np

        if isinstance(value, np.generic):
            return {"g": [number, self._array(np.asarray(value))]}
        if isinstance(value, np.ndarray):
            return {"a": [number, self._array(value)]}
        if isinstance(value, np.dtype):
            return {"y": [number, _dtype_name(value)]}
        raise TypeError(f"a {type(value).__module__}.{type(value).__qualname__} cannot be sent to a worker process")

    def _array(self, array: npt.NDArray[Any]) -> list[Any]:
        import numpy as np

        if array.dtype == object:
            if not all(isinstance(v, (str, bytes)) for v in array.flat):
                raise TypeError("an array of Python objects cannot be sent to a worker process")
            return ["str", list(array.shape), [self.encode(v) for v in array.flat]]
        flat = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
        self.buffers.append(flat.data)
        return [_dtype_name(array.dtype), list(array.shape), len(self.buffers) - 1]


def decode(message: Any, buffers: Buffers) -> Any:
    """The value of an encoded message.

    Raises:
        WireError: a tag or class that is not one of ours.
    """
    return _Decoder(buffers).decode(message)


class _Decoder:
    def __init__(self, buffers: Buffers) -> None:
        self.buffers = buffers
        self.seen: dict[int, Any] = {}

    def decode(self, node: Any) -> Any:
        if isinstance(node, list):
            return [self.decode(v) for v in node]
        if not isinstance(node, dict):
            return node
        ((tag, body),) = node.items()
        decoder = _DECODERS.get(tag)
        if decoder is None:
            raise WireError(f"a value of unknown kind {tag!r}")
        return decoder(self, body)

    def keep(self, number: int, value: Any) -> Any:
        self.seen[number] = value
        return value

    def dataclass(self, body: Any) -> Any:
        number, name, fields = body
        cls = _class(name)
        if not dataclasses.is_dataclass(cls):
            raise WireError(f"{name} is not a dataclass")
        values = {key: self.decode(value) for key, value in fields.items()}
        value = object.__new__(cls)  # as it was, without running __init__ or __post_init__ again
        for key, field in values.items():
            object.__setattr__(value, key, field)
        return self.keep(number, value)

    def enum(self, body: Any) -> Any:
        cls = _class(body[0])
        if not issubclass(cls, enum.Enum):
            raise WireError(f"{body[0]} is not an enum")
        return cls[body[1]]

    def error(self, body: Any) -> NpukitError:
        name, what, where, hint, faults = body
        cls = _class(name)
        if not issubclass(cls, NpukitError):
            raise WireError(f"{name} is not an error of npukit")
        error = cls.__new__(cls)
        listed: list[Fault] = [self.decode(f) for f in faults]
        NpukitError.__init__(error, what, where=where, hint=hint, faults=listed)
        return error

    def array(self, body: Any) -> Any:
        import numpy as np

        name, shape, place = body
        if name == "str":
            strings = np.empty(len(place), dtype=object)
            strings[:] = [self.decode(v) for v in place]
            return strings.reshape(shape)
        dtype = _dtype(name)
        buffer = self.buffers[place]
        if len(buffer) == 0 or dtype.itemsize == 0:
            return np.zeros(shape, dtype)
        return np.frombuffer(buffer, dtype).reshape(shape)


_DECODERS: dict[str, Callable[[_Decoder, Any], Any]] = {
    "t": lambda d, b: tuple(d.decode(v) for v in b),
    "d": lambda d, b: {d.decode(k): d.decode(v) for k, v in b},
    "s": lambda d, b: {d.decode(v) for v in b},
    "z": lambda d, b: frozenset(d.decode(v) for v in b),
    "e": lambda d, b: d.enum(b),
    "p": lambda d, b: Path(b),
    "b": lambda d, b: bytes(d.buffers[b]),
    "x": lambda d, b: d.error(b),
    "r": lambda d, b: d.seen[b],
    "c": lambda d, b: d.dataclass(b),
    "a": lambda d, b: d.keep(b[0], d.array(b[1])),
    "g": lambda d, b: d.keep(b[0], d.array(b[1])[()]),
    "y": lambda d, b: d.keep(b[0], _dtype(b[1])),
}


def _dtype_name(dtype: np.dtype[Any]) -> str:
    if dtype.hasobject or dtype.names is not None:
        raise TypeError(f"an array of {dtype} cannot be sent to a worker process")
    return dtype.name if dtype.isbuiltin == 2 else dtype.str


def _dtype(name: str) -> np.dtype[Any]:
    import numpy as np

    try:
        return np.dtype(name)
    except TypeError:
        importlib.import_module("ml_dtypes")  # registers bfloat16, float8 and the 4-bit kinds with numpy
        return np.dtype(name)


def _name(cls: type) -> str:
    if not cls.__module__.startswith("npukit."):
        raise TypeError(f"a {cls.__module__}.{cls.__qualname__} cannot be sent to a worker process")
    return f"{cls.__module__}:{cls.__qualname__}"


def _class(name: str) -> type:
    value = resolve(name)
    if not isinstance(value, type):
        raise WireError(f"{name} is not a class")
    return value


def resolve(name: str) -> Any:
    """The object that `"npukit.module:name"` names.

    Raises:
        WireError: a name outside npukit, or of nothing there.
    """
    module, _, path = name.partition(":")
    if not module.startswith("npukit.") or not path:
        raise WireError(f"{name!r} is not a name below npukit")
    try:
        value = importlib.import_module(module)
        for part in path.split("."):
            value = getattr(value, part)
    except (ModuleNotFoundError, AttributeError) as error:
        if isinstance(error, ModuleNotFoundError) and not (error.name or "").startswith("npukit"):
            raise
        raise WireError(f"there is no {name!r}") from error
    return value

# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""Messages: msgpack with numpy arrays, as openpi's clients and servers write them; nothing in one is ever executed.

An array is a map with four binary keys: `__ndarray__` (true), `data` (bytes, C order), `dtype` ("<f4"), `shape`. A
numpy scalar is `__npgeneric__` (true), `data` (a plain number), `dtype`. (float64 scalars are Python floats to
msgpack and travel as such.)

What comes in is checked before it is used: dtypes are numbers and booleans of up to 8 bytes, the shape's product is
what the data holds, maps, lists, texts, nesting and the number of values are bounded. Everything refused is a
`MessageError` that says what.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from npukit.errors import InputError

ARRAY, SCALAR = b"__ndarray__", b"__npgeneric__"
DATA, DTYPE, SHAPE = b"data", b"dtype", b"shape"

DTYPES = {"b1", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8"}
"""Kind and bytes of the dtypes that a message may hold."""

MOST_BYTES = 32 << 20  # of a message
MOST_VALUES = 10_000  # of all lists and maps together
MOST_ITEMS = 1_024  # of one list or map
MOST_TEXT = 64 << 10  # bytes of one text
MOST_DEPTH = 8  # maps and lists within one another
MOST_AXES = 8


class MessageError(InputError):
    """A message that is not msgpack, or holds what no message may hold."""

    code = "message"


def pack(value: Any) -> bytes:
    """`value` (None, bool, int, float, str, bytes, list, tuple, dict, numpy array or scalar) as one message.

    Raises:
        MessageError: it holds something else, or an array of another dtype than `DTYPES`.
    """
    import msgpack

    try:
        packed: bytes = msgpack.packb(value, default=_plain)
    except (TypeError, ValueError, OverflowError) as error:
        raise MessageError(f"this cannot be put into a message: {error}") from error
    return packed


def _plain(value: Any) -> Any:
    """What msgpack packs in place of a numpy value."""
    if isinstance(value, np.ndarray | np.generic):
        if value.dtype.str[1:] not in DTYPES:
            raise MessageError(f"an array of dtype {value.dtype} cannot be put into a message", hint=_KINDS)
        if isinstance(value, np.ndarray):
            return {ARRAY: True, DATA: value.tobytes(), DTYPE: value.dtype.str, SHAPE: value.shape}
        return {SCALAR: True, DATA: value.item(), DTYPE: value.dtype.str}
    raise MessageError(f"a {type(value).__name__} cannot be put into a message")


_KINDS = "booleans, integers and floats of up to 8 bytes are sent"


def unpack(data: bytes, *, most_bytes: int = MOST_BYTES) -> Any:
    """The value of one message; arrays are read-only views of its bytes.

    Args:
        data: the whole message.
        most_bytes: the longest message that is read at all.

    Raises:
        MessageError: it is not one message, or it breaks a limit; the text says which.
    """
    import msgpack

    if len(data) > most_bytes:
        raise MessageError(f"a message of {len(data)} bytes is more than the {most_bytes} allowed")
    reader = _Reader()
    try:
        value = msgpack.unpackb(
            data, raw=False, strict_map_key=False, list_hook=reader.items, object_pairs_hook=reader.pairs,
            ext_hook=_extension, max_str_len=MOST_TEXT, max_array_len=MOST_ITEMS, max_map_len=MOST_ITEMS,
        )  # fmt: skip
    except MessageError:
        raise
    except (msgpack.StackError, RecursionError):
        raise MessageError(f"the message is nested more than {MOST_DEPTH} deep") from None
    except msgpack.ExtraData as error:
        raise MessageError(f"{len(error.extra)} bytes follow the end of the message's value") from None
    except (msgpack.UnpackException, ValueError, TypeError, OverflowError) as error:
        said = str(error) or type(error).__name__
        raise MessageError(
            f"the message is not valid msgpack: {said}", hint="send a map, packed with msgpack"
        ) from None
    _check(value, 0)
    return value


class _Reader:
    """Builds lists and maps while msgpack reads them, and counts what they hold."""

    def __init__(self) -> None:
        self.values = 0

    def _count(self, found: Sequence[Any]) -> None:
        self.values += len(found)
        if self.values > MOST_VALUES:
            raise MessageError(
                f"the message holds more than {MOST_VALUES} values", hint="send numbers as numpy arrays, not as lists"
            )

    def items(self, found: list[Any]) -> list[Any]:
        self._count(found)
        return found

    def pairs(self, given: Iterable[tuple[Any, Any]]) -> Any:
        found = list(given)  # in Python only, msgpack gives a generator
        self._count(found)
        made: dict[Any, Any] = {}
        for key, value in found:
            if not isinstance(key, str | bytes):
                raise MessageError(f"a map's key is of type {type(key).__name__}; keys are texts")
            if key in made:
                raise MessageError(f"a map has the key {key!r} twice")
            made[key] = value
        if ARRAY in made:
            return _array(made)
        if SCALAR in made:
            return _scalar(made)
        for key in made:
            if isinstance(key, bytes):
                raise MessageError(f"a map has the binary key {key[:40]!r}; only arrays have binary keys")
        if "__ndarray__" in made:
            raise MessageError("an array's keys are texts; they must be binary", hint="pack keys as bytes, as openpi")
        return made


def _extension(code: int, data: bytes) -> Any:
    raise MessageError(f"the message has an extension of type {code}; none is used")


def _array(fields: dict[Any, Any]) -> np.ndarray[Any, Any]:
    dtype = _dtype(fields, (ARRAY, DATA, DTYPE, SHAPE), "an array")
    data, shape = fields[DATA], fields[SHAPE]
    if not isinstance(data, bytes):
        raise MessageError(f"an array's data is of type {type(data).__name__}; it must be bytes")
    if not isinstance(shape, list) or not all(type(extent) is int and extent >= 0 for extent in shape):
        raise MessageError("an array's shape must be a list of whole numbers from 0")
    if len(shape) > MOST_AXES:
        raise MessageError(f"an array has {len(shape)} axes; at most {MOST_AXES} are read")
    needed = math.prod(shape) * dtype.itemsize
    if needed != len(data):
        text = f"an array of shape {_short(shape)} and dtype {dtype} takes {needed} bytes; its data has {len(data)}"
        raise MessageError(text)
    if math.prod(max(extent, 1) for extent in shape) >= 1 << 31:  # possible with another extent of 0
        raise MessageError(f"an array has the shape {_short(shape)}: an extent is too large")
    if dtype.kind == "b" and data.translate(None, b"\0\1"):
        raise MessageError("an array of booleans holds bytes other than 0 and 1")
    return np.ndarray(shape=tuple(shape), dtype=dtype, buffer=data)


def _scalar(fields: dict[Any, Any]) -> np.generic:
    dtype = _dtype(fields, (SCALAR, DATA, DTYPE), "a number")
    data = fields[DATA]
    wanted: tuple[type, ...] = {"b": (bool,), "f": (float, int)}.get(dtype.kind, (int,))
    if type(data) not in wanted:
        raise MessageError(f"a number of dtype {dtype} has data of type {type(data).__name__}")
    if dtype.kind in "iu" and not np.iinfo(dtype).min <= data <= np.iinfo(dtype).max:
        raise MessageError(f"the number {data} is outside of {dtype}")
    with np.errstate(over="ignore"):
        value: np.generic = dtype.type(data)
    if dtype.kind == "f" and math.isfinite(data) and not np.isfinite(value):
        raise MessageError(f"the number {data} is outside of {dtype}")
    return value


def _dtype(fields: dict[Any, Any], keys: tuple[bytes, ...], what: str) -> np.dtype[Any]:
    """The dtype of an array's or number's map, whose keys must be `keys`."""
    if set(fields) != set(keys):
        raise MessageError(f"{what}'s map must have the keys {', '.join(key.decode() for key in keys)}")
    if fields[keys[0]] is not True:
        raise MessageError(f"{keys[0].decode()} must be true")
    text = fields[DTYPE]
    if not isinstance(text, str) or text[:1] not in ("<", ">", "|") or text[1:] not in DTYPES:
        raise MessageError(f"the dtype {_short(text)} is not read", hint=_KINDS)
    return np.dtype(text)


_PLAIN = (type(None), bool, int, float, str, bytes, np.ndarray, np.generic)


def _check(value: Any, depth: int) -> None:
    """See that nothing is nested too deep, and that there is nothing but what a message may hold (no time stamps)."""
    if isinstance(value, dict | list):
        if depth >= MOST_DEPTH:
            raise MessageError(f"the message is nested more than {MOST_DEPTH} deep")
        for inner in value.values() if isinstance(value, dict) else value:
            _check(inner, depth + 1)
    elif not isinstance(value, _PLAIN):
        raise MessageError(f"the message holds a {type(value).__name__}; none is used")


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 100 else f"{text[:100]}..."

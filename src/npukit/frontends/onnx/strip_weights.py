# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""Reads protobuf wire format just far enough to leave the weights where they are.

A model's bytes are a tree of length-delimited fields. `strip_weights` copies everything but large `raw_data`
fields of tensors; each of those becomes a reference (offset, length) into the file. So a model is parsed without its
weights passing through protobuf: no second copy, no 2 GB limit.
Field numbers: onnx.proto (ModelProto.graph 7 and functions 25, GraphProto.node 1, initializer 5, sparse 15, ...).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

# Where a stripped tensor's location points; no file can have this name.
INLINE = "\0inline"
# raw_data below this stays in the proto.
MIN_RAW = 1024

# message -> {field: message of that field}; only what leads to tensors
_CHILDREN: dict[str, dict[int, str]] = {
    "model": {7: "graph", 25: "function"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "function": {7: "node", 11: "attribute"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
    "tensor": {},
}
_RAW_DATA, _EXTERNAL_DATA, _DATA_LOCATION = 9, 13, 14
_MAX_DEPTH = 64


class WireError(ValueError):
    """The bytes are not protobuf; the text says where."""


@dataclass(frozen=True)
class Field:
    """One field: number, wire type, start of its tag, start and end of its payload."""

    number: int
    wire: int
    tag: int
    start: int
    end: int


def _varint(data: memoryview, at: int, end: int) -> tuple[int, int]:
    result = shift = 0
    while at < end and shift < 70:
        byte = data[at]
        at += 1
        result |= (byte & 0x7F) << shift
        if byte < 0x80:
            return result, at
        shift += 7
    raise WireError(f"broken number at byte {at}")


def fields(data: memoryview, start: int, end: int) -> Iterator[Field]:
    """The fields of a message that lies in data[start:end].

    Raises:
        WireError: a field does not fit.
    """
    at = start
    while at < end:
        tag = at
        key, at = _varint(data, at, end)
        number, wire = key >> 3, key & 7
        begin = at
        if wire == 0:
            _, at = _varint(data, at, end)
        elif wire == 1:
            at += 8
        elif wire == 2:
            length, begin = _varint(data, at, end)
            at = begin + length
        elif wire == 5:
            at += 4
        else:
            raise WireError(f"unknown field kind {wire} at byte {tag}")
        if number == 0 or at > end:
            raise WireError(f"the field at byte {tag} is longer than what holds it ({at - end} bytes are missing)")
        yield Field(number, wire, tag, begin, at)


def _encode_varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _delimited(number: int, payload: bytes) -> bytes:
    return _encode_varint(number << 3 | 2) + _encode_varint(len(payload)) + payload


def _entry(key: bytes, value: bytes) -> bytes:
    return _delimited(_EXTERNAL_DATA, _delimited(1, key) + _delimited(2, value))


def strip_weights(data: memoryview) -> bytes:
    """The model's bytes with every large raw_data replaced by external_data that points to INLINE.

    Raises:
        WireError: the bytes are not a protobuf message.
    """
    return _strip(data, 0, len(data), "model", 0)


def _strip(data: memoryview, start: int, end: int, kind: str, depth: int) -> bytes:
    if depth > _MAX_DEPTH:
        raise WireError(f"messages are nested deeper than {_MAX_DEPTH} at byte {start}")
    children = _CHILDREN[kind]
    out: list[bytes | memoryview] = []
    copied = start
    raw: Field | None = None
    for field in fields(data, start, end):
        if field.wire != 2 or field.end - field.start < MIN_RAW:
            continue
        if kind == "tensor" and field.number == _RAW_DATA:
            out.append(data[copied : field.tag])
            copied = field.end
            raw = field
        elif field.number in children:
            inner = _strip(data, field.start, field.end, children[field.number], depth + 1)
            if len(inner) != field.end - field.start:
                out.append(data[copied : field.tag])
                out.append(_delimited(field.number, inner))
                copied = field.end
    out.append(data[copied:end])
    if raw is not None:
        out.append(_entry(b"location", INLINE.encode()))
        out.append(_entry(b"offset", str(raw.start).encode()))
        out.append(_entry(b"length", str(raw.end - raw.start).encode()))
        out.append(_encode_varint(_DATA_LOCATION << 3) + b"\x01")
    return b"".join(out)

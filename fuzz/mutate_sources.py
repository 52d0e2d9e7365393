# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""Mutations of other frameworks' files: TensorFlow Lite, PyTorch's archives, TensorFlow's graphs and SavedModels."""

from __future__ import annotations

import io
import random
import re
import warnings
import zipfile
from typing import Any

from fuzz.mutate import FLOATS, INTEGERS, TEXTS, Files, integer, json_text, raw
from fuzz.mutate_artifacts import flatbuffer_word, zip_fields
from npukit.frontends.onnx.strip_weights import WireError, fields

# ---------------------------------------------------------------- TensorFlow Lite


def tflite(rng: random.Random, files: Files, main: str) -> Files:
    """Words of the flatbuffer (offsets, vtables, lengths, scalars), or its tables by meaning; a tenth raw."""
    data, choice = files[main], rng.random()
    if choice < 0.1:
        return {**files, main: raw(rng, data)}
    if choice < 0.55:
        for _ in range(rng.choice((1, 1, 1, 2, 4))):
            data = flatbuffer_word(rng, data)
        return {**files, main: data}
    return {**files, main: _tables(rng, data)}


def _tables(rng: random.Random, data: bytes) -> bytes:
    """The flatbuffer unpacked into objects, some fields changed, packed again."""
    import flatbuffers
    from ai_edge_litert import schema_py_generated as schema

    for _ in range(10):  # what cannot be packed is tried with other changes
        model = schema.ModelT.InitFromPackedBuf(data)
        for _ in range(rng.choice((1, 1, 1, 2, 3))):
            spots: list[tuple[Any, Any]] = []
            _spots(model, spots)
            _change(rng, *rng.choice(spots))
        builder = flatbuffers.Builder(4096)
        try:
            builder.Finish(model.Pack(builder), b"TFL3")
        except Exception:  # flatbuffers raises many kinds for values out of range
            continue
        return bytes(builder.Output())
    return raw(rng, data)


def _spots(value: Any, found: list[tuple[Any, Any]]) -> None:
    """Every (holder, key) of a value below an object of the schema."""
    items = enumerate(value) if isinstance(value, list) else vars(value).items() if hasattr(value, "__dict__") else ()
    for key, item in items:
        if item is not None:
            found.append((value, key))
            _spots(item, found)


def _change(rng: random.Random, holder: Any, key: Any) -> None:
    old = holder[key] if isinstance(holder, list) else getattr(holder, key)
    new = _other(rng, old, holder, key)
    if isinstance(holder, list):
        holder[key] = new
    else:
        setattr(holder, key, new)


def _other(rng: random.Random, old: Any, holder: Any, key: Any) -> Any:
    import numpy as np

    if isinstance(old, bool):
        return not old
    if isinstance(old, int):
        return rng.randrange(210) if "ode" in str(key) and rng.random() < 0.7 else integer(rng, old, -(2**31), 2**31)
    if isinstance(old, float):
        return rng.choice(FLOATS)
    if isinstance(old, bytes | str):
        return rng.choice(TEXTS).encode("utf-8", "surrogatepass")
    if isinstance(old, np.ndarray) and old.size:
        values = old.copy()
        at = rng.randrange(old.size)
        limit = np.iinfo(old.dtype) if old.dtype.kind in "iu" else None
        values[at] = integer(rng, int(old[at]), int(limit.min), int(limit.max)) if limit else rng.choice(FLOATS)
        return rng.choice((values, values, values, old[:at], np.concatenate([old, old])))
    if isinstance(old, list) and old:
        copy = list(old)
        rng.choice((copy.pop, copy.reverse, lambda: copy.append(rng.choice(old)), lambda: rng.shuffle(copy)))()
        return copy
    if old is not None and isinstance(holder, list):
        return rng.choice(holder)  # another table of the same vector
    return None


# ---------------------------------------------------------------- PyTorch


def archive(rng: random.Random, files: Files, main: str) -> Files:
    """An archive of torch.export or TorchScript: its zip structure, or its members by what they are."""
    data, choice = files[main], rng.random()
    if choice < 0.1:
        return {**files, main: raw(rng, data)}
    if choice < 0.25:
        return {**files, main: zip_fields(rng, data)}
    with zipfile.ZipFile(io.BytesIO(data)) as source:
        parts = [(name, source.read(name)) for name in source.namelist()]
    if choice < 0.35:
        return {**files, main: _packed(_members(rng, parts))}
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        told = [i for i, (name, _) in enumerate(parts) if name.endswith((".json", ".py", ".pkl"))]
        at = rng.choice(told) if told and rng.random() < 0.75 else rng.randrange(len(parts))
        name, content = parts[at]
        parts[at] = (name, _member(rng, name, content))
    return {**files, main: _packed(parts)}


def _packed(parts: list[tuple[str, bytes]], method: int = zipfile.ZIP_STORED) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", method) as target, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of names that come twice
        for name, content in parts:
            info = zipfile.ZipInfo("x")
            info.filename, info.compress_type = name, method  # after the constructor, which would tidy the name
            target.writestr(info, content)
    return stream.getvalue()


def _members(rng: random.Random, parts: list[tuple[str, bytes]]) -> list[tuple[str, bytes]]:
    """A member left out, repeated, emptied, renamed, put in place of another, or added."""
    parts = list(parts)
    at = rng.randrange(len(parts))
    name, content = parts[at]
    choice = rng.randrange(7)
    if choice == 0:
        del parts[at]
    elif choice == 1:
        parts.append((name, raw(rng, content)))
    elif choice == 2:
        parts[at] = (name, b"")
    elif choice == 3:
        parts[at] = (rng.choice(("x", "../x", "/x", "x/../../y", name.upper(), name * 40, "m\\x")), content)
    elif choice == 4:
        parts[at] = (name, rng.choice(parts)[1])
    elif choice == 5:
        folder = name.partition("/")[0]
        parts.append((f"{folder}/{rng.choice(_EXTRA)}", rng.choice(parts)[1]))
    else:
        rng.shuffle(parts)
    return parts


_EXTRA = ("code/__torch__.py", "data.pkl", "constants.pkl", "data/0", "data/weights/weight_9", "archive_format",
          "models/other.json", "data/constants/opaque_obj_0", "data/aotinductor/model/a.so", "version")  # fmt: skip


def _member(rng: random.Random, name: str, content: bytes) -> bytes:
    if name.endswith(".json") and rng.random() < 0.9:
        return json_text(rng, content)
    if name.endswith(".py") and rng.random() < 0.85:
        return _code(rng, content)
    if name.endswith(".pkl") and rng.random() < 0.6:
        return _pickle(rng, content)
    if name.endswith("version") or name.endswith("byteorder"):
        return rng.choice((b"", b"0", b"-1", b"99999999999999999999", b"big", content * 2))
    return raw(rng, content)


_TOKENS = re.compile(rb"\w+|[^\w\s]")


def _code(rng: random.Random, text: bytes) -> bytes:
    """TorchScript's source with one token or line changed."""
    found = list(_TOKENS.finditer(text))
    lines = text.split(b"\n")
    choice = rng.random()
    if not found or choice < 0.15:
        at = rng.randrange(len(lines))
        lines.insert(rng.randrange(len(lines) + 1), lines.pop(at) if rng.random() < 0.5 else lines[at])
        return b"\n".join(lines)
    token, other = rng.choice(found), rng.choice(found)
    number = str(rng.choice(INTEGERS)).encode()
    words = (other[0], other[0], number, b"None", b"True", b"(" * 3000, b"[" * 3000, b"-1", b'"x"', b"self", b"1e400")
    return text[: token.start()] + rng.choice(words) + text[token.end() :]


# LONG_BINPUT, LONG_BINGET, BININT and LONG1 with large arguments; MARK, TUPLE, REDUCE, BUILD, NONE, POP, DUP, ...
_OPCODES = (b"r\xff\xff\xff\x7f", b"j\xff\xff\xff\x7f", b"J\xff\xff\xff\x7f", b"\x8a\x08" + b"\xff" * 8,
            b"X\xff\xff\xff\x7f", b"(", b"t", b"R", b"b", b"N", b"0", b"2", b"q\xff", b"h\xff")  # fmt: skip


def _pickle(rng: random.Random, data: bytes) -> bytes:
    """An opcode put in place of another, left out or repeated, or its argument changed."""
    import pickletools

    try:
        starts = [position or 0 for _, _, position in pickletools.genops(data)]
    except Exception:  # damaged by an earlier mutation
        return raw(rng, data)
    ends = [*starts[1:], len(data)]
    pieces = [data[a:b] for a, b in zip(starts, ends, strict=True)]
    at, choice = rng.randrange(len(pieces)), rng.random()
    if choice < 0.25:
        pieces[at] = rng.choice(pieces)
    elif choice < 0.4:
        del pieces[at]
    elif choice < 0.5:
        pieces.insert(at, rng.choice(pieces))
    elif choice < 0.65:
        pieces[at] = rng.choice(_OPCODES)
    elif len(pieces[at]) > 1:
        pieces[at] = pieces[at][:1] + raw(rng, pieces[at][1:])
    return b"".join(pieces)


# ---------------------------------------------------------------- TensorFlow


def graph(rng: random.Random, files: Files, main: str) -> Files:
    """A frozen graph with fields of its messages changed; a tenth raw."""
    return {**files, main: _proto(rng, files[main])}


def saved_model(rng: random.Random, files: Files, main: str) -> Files:
    """A SavedModel: its graph, now and then the variables' files, or a file left out or repeated."""
    name = f"{main}/saved_model.pb"
    others = [other for other in files if other != name]
    choice = rng.random()
    if choice < 0.75:
        return {**files, name: _proto(rng, files[name])}
    other = rng.choice(others)
    if choice < 0.95:
        return {**files, other: raw(rng, files[other])}
    return {key: value for key, value in files.items() if key != other}


def _proto(rng: random.Random, data: bytes) -> bytes:
    if rng.random() < 0.1:
        return raw(rng, data)
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        data = _message(rng, data, _strings(data), 0)
    return data


def _strings(data: bytes) -> list[bytes]:
    """What looks like a name in the file: of nodes, ops, functions, attributes."""
    return re.findall(rb"[A-Za-z_][\w./:-]{1,40}", data) or [b"x"]


def _varint(value: int) -> bytes:
    value &= (1 << 64) - 1
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def _message(rng: random.Random, data: bytes, names: list[bytes], depth: int) -> bytes:
    """The message with one field, of it or of a message in it, changed; lengths above it stay right."""
    try:
        found = list(fields(memoryview(data), 0, len(data)))
    except WireError:
        return raw(rng, data)
    if not found:
        return data + _varint(rng.choice((1, 2, 3, 5)) << 3 | 2) + b"\x00"
    field = rng.choice(found)
    head, whole, tail = data[: field.tag], data[field.tag : field.end], data[field.end :]
    payload = data[field.start : field.end]
    key, choice = _varint(field.number << 3 | field.wire), rng.random()
    if choice < 0.06:
        return head + tail
    if choice < 0.1:
        return head + whole * rng.choice((2, 2, 50)) + tail
    if choice < 0.13:
        return head + tail + whole
    if field.wire == 0:
        value = int.from_bytes(payload[:1], "little") & 0x7F
        return head + key + _varint(integer(rng, value, -(1 << 63), (1 << 63) - 1)) + tail
    if field.wire != 2:
        return head + key + rng.randbytes(len(payload)) + tail
    if _is_message(payload) and rng.random() < 0.95 and depth < 40:
        payload = _message(rng, payload, names, depth + 1)
    elif payload and rng.random() < 0.6 and all(32 <= byte < 127 for byte in payload):
        payload = rng.choice((*[rng.choice(names)] * 6, rng.choice(TEXTS).encode("utf-8", "surrogatepass")))
    else:
        payload = raw(rng, payload)
    return head + key + _varint(len(payload)) + payload + tail


def _is_message(payload: bytes) -> bool:
    """Whether bytes may be a message: they parse, and begin with a field number that TensorFlow has."""
    try:
        found = list(fields(memoryview(payload), 0, len(payload)))
    except WireError:
        return False
    return bool(found) and all(0 < field.number < 100 for field in found)

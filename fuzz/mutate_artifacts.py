# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""Mutations of DLCs, stamps, context binaries with their sidecars, and input arrays."""

from __future__ import annotations

import hashlib
import json
import random
import struct

from fuzz.mutate import INTEGERS, TEXTS, Files, json_text, raw, word
from npukit.files import zip_entries

Members = dict[str, bytes]

_LOCAL = struct.Struct("<4s5H3L2H")
_CENTRAL = struct.Struct("<4s6H3L5H2L")
_END = struct.Struct("<4s4H2LH")
# (offset, bytes) of the fields of a local header, a directory entry and the end record
_LOCAL_FIELDS = ((0, 4), (6, 2), (8, 2), (14, 4), (18, 4), (22, 4), (26, 2), (28, 2))
_CENTRAL_FIELDS = ((0, 4), (8, 2), (10, 2), (16, 4), (20, 4), (24, 4), (28, 2), (30, 2), (32, 2), (34, 2), (42, 4))
_END_FIELDS = ((0, 4), (4, 2), (6, 2), (8, 2), (10, 2), (12, 4), (16, 4), (20, 2))


def members(data: bytes) -> Members:
    """The members of a zip of stored members, in order."""
    return {entry.name: data[entry.offset : entry.offset + entry.stored] for entry in zip_entries(data)}


def pack(parts: list[tuple[str, bytes]], *, zip64: bool = False) -> bytes:
    """A zip of stored members with zero CRCs, as libQnnIr writes them; `zip64` puts the sizes into the extra field."""
    body, directory = b"", b""
    for name, data in parts:
        raw_name = name.encode("utf-8", "surrogatepass")
        size, extra = len(data), b""
        if zip64:
            extra, size = struct.pack("<HHQQ", 1, 16, len(data), len(data)), 0xFFFFFFFF
        directory += _CENTRAL.pack(
            b"PK\1\2", 20, 20, 0, 0, 0, 33, 0, size, size, len(raw_name), len(extra), 0, 0, 0, 0, len(body)
        ) + raw_name + extra  # fmt: skip
        body += _LOCAL.pack(b"PK\3\4", 20, 0, 0, 0, 33, 0, len(data), len(data), len(raw_name), 0) + raw_name + data
    end = _END.pack(b"PK\5\6", 0, 0, len(parts), len(parts), len(directory), len(body), 0)
    return body + directory + end


def dlc(rng: random.Random, files: Files, main: str) -> Files:
    """A DLC with its zip structure, graph, weights or metadata changed; a tenth raw."""
    data = files[main]
    choice = rng.random()
    if choice < 0.1:
        return {**files, main: raw(rng, data)}
    if choice < 0.3:
        return {**files, main: zip_fields(rng, data)}
    found = members(data)
    if choice < 0.4:
        return {**files, main: _zip_members(rng, found)}
    if choice < 0.45:
        name = rng.choice([name for name in found if name.startswith("dlc.metadata")] or list(found))
        found[name] = json_text(rng, found[name])
    elif choice < 0.55:
        name = "model.params.bin" if "model.params.bin" in found else "model"
        found[name] = raw(rng, found[name])
    else:
        for _ in range(rng.choice((1, 1, 1, 2, 4))):
            name = rng.choice(("model", "model", "model.params"))
            found[name] = flatbuffer_word(rng, found[name])
    if rng.random() < 0.5:
        found.pop("npukit.json", None)  # else a changed name already fails at the stamp
    return {**files, main: pack(list(found.items()))}


def stamp(rng: random.Random, files: Files, main: str) -> Files:
    """A DLC with its stamp changed."""
    found = members(files[main])
    for _ in range(rng.choice((1, 1, 2))):
        text = found["npukit.json"]
        found["npukit.json"] = raw(rng, text) if rng.random() < 0.1 else json_text(rng, text)
    return {**files, main: pack(list(found.items()))}


def zip_fields(rng: random.Random, data: bytes) -> bytes:
    """One or two fields of a zip's headers, directory or end record changed."""
    spots = []
    for magic, fields in ((b"PK\3\4", _LOCAL_FIELDS), (b"PK\1\2", _CENTRAL_FIELDS), (b"PK\5\6", _END_FIELDS)):
        at = data.find(magic)
        while at >= 0:
            spots += [(at + offset, size) for offset, size in fields]
            at = data.find(magic, at + 4)
    for _ in range(rng.choice((1, 1, 2))):
        at, size = rng.choice(spots)
        data = word(rng, data, at, size)
    return data


def _zip_members(rng: random.Random, found: Members) -> bytes:
    parts = list(found.items())
    at, choice = rng.randrange(len(parts)), rng.random()
    name, data = parts[at]
    if choice < 0.2:
        del parts[at]
    elif choice < 0.35:
        parts.append((name, rng.choice((data, b"", raw(rng, data)))))
    elif choice < 0.55:
        parts[at] = (rng.choice((*TEXTS, "../model", "/model", "model\\x", "MODEL", "model.params", "a" * 60000)), data)
    elif choice < 0.65:
        parts[at] = (name, b"")
    elif choice < 0.75:
        rng.shuffle(parts)
    elif choice < 0.85:
        other = rng.choice(list(found.values()))
        parts[at] = (name, other)
    elif choice < 0.9:
        parts += [(f"extra{i}", b"") for i in range(rng.choice((1, 100, 3000)))]
    else:
        return pack(parts, zip64=True)
    return pack(parts)


def flatbuffer_word(rng: random.Random, data: bytes) -> bytes:
    """A word changed: an offset, a vtable entry, a length, a scalar, or a letter of a string."""
    if len(data) < 16:
        return raw(rng, data)
    choice = rng.random()
    if choice < 0.1:
        return raw(rng, data)
    if choice < 0.3:  # letters: names of tensors, ops, types
        letters = [i for i, byte in enumerate(data) if 0x30 <= byte < 0x7B]
        if letters:
            at = rng.choice(letters)
            return data[:at] + bytes([rng.choice(b"0aZ_/\0\xff%. ")]) + data[at + 1 :]
    if choice < 0.45:
        return word(rng, data, rng.randrange(len(data) // 2) * 2, 2)
    if choice < 0.55:
        return word(rng, data, rng.randrange(len(data)), 1)
    at = rng.randrange(len(data) // 4) * 4
    if choice < 0.65:
        other = rng.randrange(len(data) // 4) * 4
        return data[:at] + data[other : other + 4] + data[at + 4 :]
    # Most words of a flatbuffer are zero or padding: prefer one that says something.
    for _ in range(6):
        if 0 < int.from_bytes(data[at : at + 4], "little") < 1 << 24:
            break
        at = rng.randrange(len(data) // 4) * 4
    return word(rng, data, at, 4)


def context(rng: random.Random, files: Files, main: str) -> Files:
    """A context binary with its header or body changed; the sidecar fits it, is gone, or (one in ten) does not fit."""
    data = files[main]
    choice = rng.random()
    if choice < 0.1:
        data = raw(rng, data)
    elif choice < 0.65:
        for _ in range(rng.choice((1, 1, 2, 4))):
            at = rng.randrange(min(len(data), rng.choice((128, 1024, 4096))) // 4) * 4
            data = word(rng, data, at, rng.choice((4, 4, 2, 8)) if at + 8 <= len(data) else 4)
    elif choice < 0.9:
        at = rng.randrange(len(data) // 4) * 4
        data = word(rng, data, at, 4)
    else:
        size = len(data)
        data = rng.choice((data[: size // 2], data[:-4], data[:64], data + data[:4096], bytes(4096) + data, data * 2))
    changed = {**files, main: data}
    beside = f"{main}.npukit.json"
    fate = rng.random()
    if fate < 0.5:
        text = json.loads(files[beside])
        text["artifact_sha256"] = hashlib.sha256(data).hexdigest()
        changed[beside] = json.dumps(text).encode()
    elif fate < 0.9:
        changed.pop(beside, None)
    return changed


def sidecar(rng: random.Random, files: Files, main: str) -> Files:
    """A context binary as it is with its sidecar changed."""
    beside = f"{main}.npukit.json"
    text = files[beside]
    return {**files, beside: raw(rng, text) if rng.random() < 0.1 else json_text(rng, text)}


def array(rng: random.Random, files: Files, main: str) -> Files:
    """An input file (.npy, .npz, .raw, an image, a list) with its header, members or bytes changed."""
    data = files[main]
    choice = rng.random()
    if main.endswith(".npz") and choice < 0.4:
        return {**files, main: zip_fields(rng, data)}
    if main.endswith(".npz") and choice < 0.8:
        parts = [(name, _npy(rng, part) if rng.random() < 0.7 else part) for name, part in members(data).items()]
        return {**files, main: rng.choice((pack(parts), _zip_members(rng, dict(parts))))}
    if main.endswith(".npy") and choice < 0.8:
        return {**files, main: _npy(rng, data)}
    if main.endswith(".txt") and choice < 0.6:
        lines = data.split(b"\n")
        lines.insert(rng.randrange(len(lines) + 1), rng.choice(TEXTS).encode())
        return {**files, main: b"\n".join(lines)}
    return {**files, main: raw(rng, data)}


def _npy(rng: random.Random, data: bytes) -> bytes:
    """The header's text changed with its length kept right, or one word of the head."""
    if len(data) < 12 or rng.random() < 0.25:
        return word(rng, data, rng.randrange(max(1, min(12, len(data) - 2))), 2)
    size = int.from_bytes(data[8:10], "little")
    text, body = data[10 : 10 + size].decode("latin-1"), data[10 + size :]
    swaps = [("'<f4'", "'|O'"), ("'<f4'", "'<f8'"), ("'<f4'", "'>f4'"), ("'<f4'", "'<U5'"), ("'<f4'", "'V4'"),
             ("<f4", "x"), ("False", "True"), ("(", "(-1, "), ("(", "(0, "), ("(", "(99999999999999999999, "),
             ("'descr'", "'d'"), ("(", "__import__('os').system("), ("{", "{" * 300), ("}", ""),
             ("'<f4'", "[('a', '<f4')]"), ("(", f"({rng.choice(INTEGERS)}, ")]  # fmt: skip
    old, new = rng.choice(swaps)
    head = text.replace(old, new, 1).encode("latin-1")[:0xFFFF]
    return data[:8] + len(head).to_bytes(2, "little") + head + body

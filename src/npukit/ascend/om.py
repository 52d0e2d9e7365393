# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""Ascend's .om files as far as they can be read without CANN: header, partitions, and what atc noted about the model.

Layout: shared/reference/ascend_facts.md 2.1 (from GE's framework_types_internal.h, checked there on real files): a
header of 256 bytes, then a table of partitions, all little endian. The partition MODEL_DEF is a protobuf (GE's
graph_metadef/proto/ge_ir.proto): fields 1 name, 3 custom version, 7 graphs, 11 attributes by name.

Everything is checked against the bounds of the file, which anybody may have made; nothing of it is executed.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from npukit.errors import ArtifactError, shown
from npukit.files import map_file

MAGIC: Final = b"IMOD"
HEADER_BYTES: Final = 256

KINDS: Final = ("IR", "standard", "tiny", "flow", "lite", "bundle")

PARTITIONS: Final = {
    0: "MODEL_DEF", 1: "WEIGHTS_DATA", 2: "TASK_INFO", 3: "TBE_KERNELS", 4: "CUST_AICPU_KERNELS", 5: "SO_BINS",
    6: "FLOW_MODEL", 7: "FLOW_SUBMODEL", 8: "MODEL_INOUT_INFO", 9: "STATIC_TASK_DESC", 10: "DYNAMIC_TASK_DESC",
    11: "TASK_PARAM", 12: "TILING_DATA", 26: "CUSTOM_OPS",
}  # fmt: skip
"""Names of partition types; those of other types are PRE_* (20 to 23) and BUNDLE_* (24, 25)."""

_MODEL_DEF: Final = 0
_WEIGHTS: Final = 1
_HEADER: Final = struct.Struct("<4s I I 64s I B B B B 32s I 32s I I 20s B 3x Q B B 62s")
_COUNT: Final = struct.Struct("<I I")
_ROW: Final = struct.Struct("<I I Q Q")
_MOST_PARTITIONS: Final = 1024  # of one model; the types are below 32
_MOST_ATTRIBUTES: Final = 10_000
_MOST_TEXT: Final = 65_536
# What atc notes in MODEL_DEF: attribute -> what it is called here.
_NOTED: Final = {
    "atc_version": "atc", "opp_version": "op package", "soc_version": "SoC", "framework_type": "framework",
    "atc_cmdline": "command line", "om_compressed_size": "compressed size",
}  # fmt: skip
_AGAIN: Final = "was it cut off on the way? compile it again, or fetch it again"

assert _HEADER.size == HEADER_BYTES  # noqa: S101 - the format string is the layout


@dataclass(frozen=True)
class Partition:
    """A part of the file.

    Attributes:
        kind: its type's name.
        offset: where it begins in the file.
        size: bytes.
    """

    kind: str
    offset: int
    size: int


@dataclass(frozen=True)
class OmFile:
    """What an .om file says about itself.

    Attributes:
        name: name of the model.
        version: of the file format, "2.0".
        kind: one of `KINDS`.
        dynamic: whether shapes are open at run time.
        encrypted: whether its content is encrypted.
        models: how many models it holds (1 for static shapes).
        ir_version: version of the graph's IR, 0 where none is given.
        platform: text of the platform version, often empty.
        size: bytes of the file.
        partitions: of the first model.
        noted: what atc noted about the compilation, by plain names; empty where it cannot be read.
    """

    name: str
    version: str
    kind: str
    dynamic: bool
    encrypted: bool
    models: int
    ir_version: int
    platform: str
    size: int
    partitions: tuple[Partition, ...]
    noted: dict[str, str] = field(default_factory=dict)

    @property
    def weight_bytes(self) -> int:
        """Bytes of the weights in the file; external ones are not counted."""
        return sum(part.size for part in self.partitions if part.kind == PARTITIONS[_WEIGHTS])


def is_om(head: bytes) -> bool:
    """Whether a file that begins with these bytes is an .om file."""
    return head.startswith(MAGIC)


def read(path: Path | str) -> OmFile:
    """Read header and partitions.

    Raises:
        ArtifactError: it is no .om file, is cut off, or contradicts itself.
        NpukitError: it cannot be read.
    """
    view = map_file(Path(path))
    return parse(view, str(path))


def parse(view: memoryview | bytes, where: str = "") -> OmFile:
    """`read` for the bytes of a file.

    Raises:
        ArtifactError: as for `read`.
    """
    data = memoryview(view)
    if len(data) < HEADER_BYTES:
        raise ArtifactError(f"an .om file begins with {HEADER_BYTES} bytes, this has {len(data)}", where=where)
    (
        magic, header_bytes, version, _, length, encrypted, _, kind, _, name, _, _, ir_version, models, platform, _,
        model_length, _, dynamic, _,
    ) = _HEADER.unpack_from(data)  # fmt: skip
    if magic != MAGIC:
        raise ArtifactError("it is no .om file: it does not begin with IMOD", where=where)
    if header_bytes != HEADER_BYTES:
        raise ArtifactError(f"its header has {header_bytes} bytes, {HEADER_BYTES} are known", where=where)
    stated, real = model_length or length, len(data) - HEADER_BYTES
    if stated != real:
        raise ArtifactError(
            f"its header says that {stated} bytes follow, there are {real} (CANN refuses it with error 145006)",
            where=where, hint=_AGAIN,
        )  # fmt: skip
    if kind >= len(KINDS):
        raise ArtifactError(f"its type is {kind}, known are 0 to {len(KINDS) - 1}", where=where)
    partitions = () if encrypted else _partitions(data, where)
    return OmFile(
        name=_text(name),
        version=f"{version >> 28}.{(version >> 20) & 0xFF}",
        kind=KINDS[kind],
        dynamic=bool(dynamic),
        encrypted=bool(encrypted),
        models=models,
        ir_version=ir_version,
        platform=_text(platform),
        size=len(data),
        partitions=partitions,
        noted=_noted(data, partitions),
    )


def _partitions(data: memoryview, where: str) -> tuple[Partition, ...]:
    if len(data) < HEADER_BYTES + _COUNT.size:
        raise ArtifactError("it ends before its table of partitions", where=where, hint=_AGAIN)
    count, _ = _COUNT.unpack_from(data, HEADER_BYTES)
    begin = HEADER_BYTES + _COUNT.size + count * _ROW.size
    if count > _MOST_PARTITIONS or begin > len(data):
        raise ArtifactError(f"its table of {count} partitions does not fit into it", where=where, hint=_AGAIN)
    found = []
    for i in range(count):
        kind, _, offset, size = _ROW.unpack_from(data, HEADER_BYTES + _COUNT.size + i * _ROW.size)
        if offset + size > len(data) - begin:
            raise ArtifactError(
                f"its partition {_kind(kind)} (offset {offset}, {size} bytes) lies outside of it",
                where=where, hint=_AGAIN,
            )  # fmt: skip
        found.append(Partition(_kind(kind), begin + offset, size))
    return tuple(found)


def _kind(number: int) -> str:
    return PARTITIONS.get(number, f"type {number}")


def _text(raw: bytes) -> str:
    return shown(raw.split(b"\0")[0].decode("utf-8", "replace"))


# ---------------------------------------------------------------- MODEL_DEF


class _Broken(Exception):
    """The bytes are no protobuf message."""


def _noted(data: memoryview, partitions: tuple[Partition, ...]) -> dict[str, str]:
    """What atc noted about the compilation; a MODEL_DEF of another form gives nothing."""
    part = next((p for p in partitions if p.kind == PARTITIONS[_MODEL_DEF]), None)
    if part is None:
        return {}
    found: dict[str, str] = {}
    try:
        for number, (tag, value) in enumerate(_fields(data[part.offset : part.offset + part.size])):
            if number >= _MOST_ATTRIBUTES:
                break
            if tag == 11 and isinstance(value, memoryview):
                key, text = _attribute(value)
                if key in _NOTED and text:
                    found[_NOTED[key]] = text
    except _Broken:
        return {}
    return found


def _attribute(entry: memoryview) -> tuple[str, str]:
    """Name and value of an entry of the attributes: a map entry (1 key, 2 AttrDef: 2 text, 3 integer)."""
    key = text = ""
    for tag, value in _fields(entry):
        if tag == 1 and isinstance(value, memoryview):
            key = bytes(value[:_MOST_TEXT]).decode("utf-8", "replace")
        elif tag == 2 and isinstance(value, memoryview):
            for inner, content in _fields(value):
                if inner == 2 and isinstance(content, memoryview):
                    text = shown(bytes(content[:_MOST_TEXT]).decode("utf-8", "replace"))
                elif inner == 3 and isinstance(content, int):
                    text = str(content)
    return key, text


def _fields(data: memoryview) -> Iterator[tuple[int, int | memoryview]]:
    """Field numbers and values (integers, or the bytes of texts and messages) of a protobuf message."""
    at = 0
    while at < len(data):
        key, at = _varint(data, at)
        wire = key & 7
        if wire == 0:
            number, at = _varint(data, at)
            yield key >> 3, number
            continue
        if wire == 2:
            size, at = _varint(data, at)
        elif wire in (1, 5):
            size = 8 if wire == 1 else 4
        else:
            raise _Broken
        if at + size > len(data):
            raise _Broken
        if wire == 2:
            yield key >> 3, data[at : at + size]
        at += size


def _varint(data: memoryview, at: int) -> tuple[int, int]:
    number = shift = 0
    while True:
        if at >= len(data) or shift > 63:
            raise _Broken
        byte = data[at]
        at += 1
        number |= (byte & 0x7F) << shift
        if byte < 0x80:
            return number, at
        shift += 7

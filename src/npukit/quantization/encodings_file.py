# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""Encodings files: AIMET 0.6.1, 1.0.0 and 2.0.0, and the `quantization_overrides` JSON of Qualcomm's converters.

All of them say, for values of a source model, on which grid they are quantized. 0.6.1 and 1.0.0 count codes from
zero whatever the sign of the stored integers, so a symmetric 8-bit weight has the offset -128 there; 2.0.0 is
QuantizeLinear's `(code - zero_point) * scale` with a dtype that has a sign. An `Entry` has one form for all.

The facts on AIMET's versions come from files that AIMET-ONNX 2.42.0 exports (tests/data/encodings); those on
overrides from the QNN reference guide, "Quantization Overrides".
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from npukit.errors import Fault, nearest
from npukit.files import map_file
from npukit.quantization.encodings_writer import VERSIONS, dumps, write
from npukit.quantization.entry import Blocks, EncodingsError, Entry
from npukit.quantization.positions import Node, NotJson, Place, parse

INTEGER_BITS: Final = (4, 8, 16, 32)
FLOAT_BITS: Final = (16, 32)
_MAX_BYTES: Final = 1 << 30
_SECTIONS: Final = ("activation_encodings", "param_encodings")


@dataclass(frozen=True)
class EncodingsFile:
    """An encodings file as read.

    Attributes:
        version: one of VERSIONS; "qnn" for overrides without a version.
        entries: in the file's order.
        producer: "aimet-onnx 2.42.0", or empty.
        where: name of the file.
    """

    version: str
    entries: tuple[Entry, ...]
    producer: str = ""
    where: str = ""

    def __iter__(self) -> Iterator[Entry]:
        return iter(self.entries)

    def __len__(self) -> int:
        return len(self.entries)


def read(path: Path | str) -> EncodingsFile:
    """Read an encodings file of any version.

    Raises:
        EncodingsError: it is no such file; every fault is listed with its line.
    """
    found, faults = check(path)
    if faults:
        count = f"{len(faults)} fault{'s' if len(faults) > 1 else ''}"
        raise EncodingsError(f"the encodings cannot be used: {count}", where=str(path), faults=faults)
    return found


def check(path: Path | str) -> tuple[EncodingsFile, tuple[Fault, ...]]:
    """Read what can be read of an encodings file, and list all that is wrong with it.

    Raises:
        NpukitError: the file cannot be opened.
        EncodingsError: it is not JSON.
    """
    data = map_file(path)
    if len(data) > _MAX_BYTES:
        raise EncodingsError("the file is larger than 1 GiB", where=str(path))
    return loads(bytes(data), where=str(path))


def loads(text: bytes | str, *, where: str = "encodings") -> tuple[EncodingsFile, tuple[Fault, ...]]:
    """`check` for text at hand."""
    try:
        root = parse(text)
    except NotJson as error:
        raise EncodingsError(
            f"line {error.line}: this is not JSON: {error}", where=where, hint="an encodings file is one JSON object"
        ) from None
    reader = _Reader(root, where)
    return reader.file(), tuple(reader.faults)


class _Bad(Exception):
    """One fault: what, line, hint."""

    def __init__(self, what: str, line: int | Place, hint: str = "") -> None:
        super().__init__(what)
        self.line = line if isinstance(line, int) else line.line
        self.hint = hint


class _Reader:
    """Turns positioned JSON into entries; every fault is noted, and the entry at fault left out."""

    def __init__(self, root: Node, where: str) -> None:
        self.root = root
        self.where = where
        self.faults: list[Fault] = []
        self.entries: list[Entry] = []
        self.seen: dict[str, int] = {}

    def fault(self, what: str, line: int, name: str = "", hint: str = "") -> None:
        at = f"{self.where}:{line}" + (f" {name!r}" if name else "")
        self.faults.append(Fault(what, at, hint))

    def file(self) -> EncodingsFile:
        top = self.root.members()
        if top is None:
            self.fault("the file is not a JSON object", self.root.line)
            return EncodingsFile("qnn", (), where=self.where)
        for key in top.repeated:
            self.fault(f"{key.value!r} is there twice", key.line, hint="keep one")
        version = self._version(top.fields)
        if version == "2.0.0":
            self._list(top.fields, "encodings", "", version)
        elif version:
            for section in _SECTIONS:
                kind = section.partition("_")[0]
                if version == "1.0.0":
                    self._list(top.fields, section, kind, version)
                else:
                    self._map(top.fields, section, kind)
        producer = top.fields["producer"].value if "producer" in top.fields else None
        by = producer if isinstance(producer, dict) else {}
        text = f"{by.get('package', '')} {by.get('version', '')}".strip()
        return EncodingsFile(version or "qnn", tuple(self.entries), text[:100], self.where)

    def _version(self, top: dict[str, Node]) -> str:
        if "version" in top:
            found = top["version"].value
            if found in VERSIONS[:3]:
                return str(found)
            hint = f"export with one of {', '.join(VERSIONS[:3])} (AIMET: encoding_version='1.0.0')"
            self.fault(f"version {found!r} is not known", top["version"].line, hint=hint)
            return ""
        if "encodings" in top:
            return "2.0.0"
        lists = [isinstance(top[s].value, list) for s in _SECTIONS if s in top]
        return "1.0.0" if any(lists) else "qnn"

    def _section(self, top: dict[str, Node], name: str) -> Node | None:
        if name not in top:
            hint = "it may be empty, but must be there"
            self.fault(f"the section {name!r} is missing", self.root.line, hint=f"{hint}; {nearest(name, top)}")
            return None
        return top[name]

    def _map(self, top: dict[str, Node], name: str, kind: str) -> None:
        """0.6.1 and overrides: name -> list of encodings, one a channel."""
        section = self._section(top, name)
        if section is None:
            return
        found = section.members()
        if found is None:
            self.fault(f"{name!r} is not an object of names", section.line)
            return
        for key in found.repeated:
            self.fault("the name is there twice", key.line, str(key.value), "keep one of the two")
        for entry, node in found.fields.items():
            self._guard(entry, node, kind, _legacy)

    def _list(self, top: dict[str, Node], name: str, kind: str, version: str) -> None:
        """1.0.0 and 2.0.0: a list of objects with a name."""
        section = self._section(top, name)
        if section is None:
            return
        items = section.items()
        if items is None:
            self.fault(
                f"{name!r} is not a list", section.line, hint=f"a {version} file has lists of objects with a name"
            )
            return
        for node in items:
            value = node.value
            if not isinstance(value, dict) or not isinstance(value.get("name"), str) or not value["name"]:
                self.fault("an entry without a name", node.line)
                continue
            self._guard(value["name"], node, kind, _v1 if version == "1.0.0" else _v2)

    def _guard(self, name: str, node: Node, kind: str, form: Callable[[str, str, Node], Entry]) -> None:
        if name in self.seen:
            first = self.seen[name]
            self.fault(f"the name is there twice (first in line {first})", node.line, name, "keep one of the two")
            return
        self.seen[name] = node.line
        try:
            entry = form(name, kind, node)
        except _Bad as bad:
            self.fault(str(bad), bad.line, name, bad.hint)
            return
        except (OverflowError, ValueError, TypeError) as error:
            self.fault(f"the entry cannot be read: {error}", node.line, name)
            return
        self.entries.append(entry)


# -- numbers -----------------------------------------------------------------------------------------------------------


def _number(value: Any, what: str, line: int | Place) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise _Bad(f"{what} is {_shown(value)}, not a number", line)
    return float(value)


def _whole(value: Any, what: str, line: int | Place, hint: str = "") -> int:
    number = _number(value, what, line)
    if not math.isfinite(number) or number != math.floor(number):
        raise _Bad(f"{what} is {number!r}, not a whole number", line, hint)
    return int(number)


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _scale(value: Any, line: int | Place) -> float:
    scale = _number(value, "the scale", line)
    if math.isnan(scale) or math.isinf(scale):
        raise _Bad(f"the scale is {scale}", line, "calibrate that value again: its range was not a number")
    if scale <= 0:
        raise _Bad(f"the scale is {scale:g}; it must be above zero", line)
    if not 0 < float(np.float32(scale)) < math.inf:
        raise _Bad(f"the scale {scale:g} is beyond float32", line)
    return scale


def _flag(value: Any, what: str, line: int | Place) -> bool:
    if isinstance(value, bool):
        return value
    if isinstance(value, str) and value.lower() in ("true", "false"):
        return value.lower() == "true"
    raise _Bad(f"{what} is {_shown(value)}", line, 'write "True" or "False"')


def _bits(value: Any, dtype: str, line: int | Place) -> int:
    bits = _whole(value, "the bit width", line)
    known = FLOAT_BITS if dtype == "float" else INTEGER_BITS
    if bits not in known:
        raise _Bad(f"{bits} bits are impossible for {dtype}", line, f"possible: {', '.join(map(str, known))}")
    return bits


def _dtype(value: Any, line: int | Place) -> str:
    if isinstance(value, str) and value.lower() in ("int", "float"):
        return value.lower()
    raise _Bad(f"the dtype is {_shown(value)}", line, "write int or float")


def _counted(scales: Sequence[Any], offsets: Sequence[Any], line: int | Place) -> None:
    if len(scales) != len(offsets):
        raise _Bad(f"{len(scales)} scales, but {len(offsets)} offsets", line, "one offset a scale")


def _grid(bits: int, offset: int, symmetric: bool, line: int | Place, *, proven: int | None = None) -> tuple[int, bool]:
    """Offset and sign of the codes, from an offset that counts codes from zero.

    A symmetric grid is one of signed codes around zero; AIMET's strict form leaves its lowest code unused.
    """
    half, top = 2 ** (bits - 1), 2**bits - 1
    if symmetric and offset in (-half, -(half - 1)):
        return 0, True
    if symmetric and offset == 0 and proven in (-half, -(half - 1)):
        return 0, True  # written for signed codes
    if symmetric and offset != 0:
        raise _Bad(f"symmetric with offset {offset}", line, f"a symmetric grid of {bits} bits has the offset {-half}")
    if symmetric and proven is None:
        hint = f"write {-half}, or is_sym false if zero is the lowest value"
        raise _Bad("symmetric with offset 0, which leaves no negative value", line, hint)
    if offset > 0:
        hint = f"write {-offset}: real = (code + offset) * scale, so offsets are 0 or below"
        raise _Bad(f"the offset {offset} has the wrong sign", line, hint)
    if offset < -top:
        raise _Bad(f"the offset {offset} is beyond the {top + 1} codes of {bits} bits", line)
    return offset, False


# -- 0.6.1 and overrides -----------------------------------------------------------------------------------------------


def _legacy(name: str, kind: str, node: Node) -> Entry:
    items = node.items() if isinstance(node.value, list) else [node]
    if not items:
        raise _Bad("an empty list of encodings", node.line)
    rows = []
    for item in items:
        if not isinstance(item.value, dict):
            raise _Bad("an encoding that is not an object", item.line)
        rows.append(_legacy_row(item))
    first = rows[0]
    for row, item in zip(rows, items, strict=True):
        if (row.bits, row.dtype, row.scale is None) != (first.bits, first.dtype, first.scale is None):
            raise _Bad("channels of unequal bit width or dtype", item.line)
        if row.signed != first.signed:
            raise _Bad("channels of which some are symmetric and some not", item.line)
    if len(rows) > 1 and not first.signed and first.scale is not None:
        raise _Bad("per-channel, but not symmetric", node.line, "is_symmetric True with offset -2^(bitwidth-1)")
    scales = tuple(row.scale for row in rows if row.scale is not None)
    offsets = tuple(row.offset for row in rows if row.scale is not None)
    return Entry(name, kind, first.bits, first.dtype, scales, offsets, first.signed, first.symmetric, line=node.line)


@dataclass(frozen=True)
class _Row:
    bits: int
    dtype: str
    scale: float | None
    offset: int
    signed: bool
    symmetric: bool


def _legacy_row(item: Node) -> _Row:
    """One encoding of 0.6.1; scale and offset may be left out, and then follow from min and max."""
    row = item.value
    unknown = set(row) - {"bitwidth", "dtype", "is_symmetric", "min", "max", "scale", "offset"}
    if unknown:
        key = sorted(unknown)[0]
        known = ["bitwidth", "dtype", "is_symmetric", "min", "max", "scale", "offset"]
        raise _Bad(f"the field {key!r} is not known", item.at(key), nearest(key, known))
    if "bitwidth" not in row:
        raise _Bad("the bit width is missing", item.line)
    dtype = _dtype(row.get("dtype", "int"), item.at("dtype"))
    bits = _bits(row["bitwidth"], dtype, item.at("bitwidth"))
    if dtype == "float":
        return _Row(bits, dtype, None, 0, False, False)
    symmetric = _flag(row.get("is_symmetric", "False"), "is_symmetric", item.at("is_symmetric"))
    limits = _limits(item)
    if "scale" not in row and limits is None:
        if "offset" in row:
            raise _Bad("an offset without a scale", item.at("offset"))
        return _Row(bits, dtype, None, 0, symmetric, symmetric)
    if "scale" not in row:
        assert limits is not None
        scale, offset = _from_limits(limits, bits, symmetric, item.line)
        offset, signed = _grid(bits, offset, symmetric, item.line, proven=offset)
        return _Row(bits, dtype, scale, offset, signed, symmetric)
    scale = _scale(row["scale"], item.at("scale"))
    if "offset" not in row and limits is None:
        raise _Bad("a scale without an offset", item.at("scale"), "give offset, or min and max")
    line = item.at("offset") if "offset" in row else item.line
    offset, proven = _agreed(row, limits, scale, bits, symmetric, line)
    offset, signed = _grid(bits, offset, symmetric, line, proven=proven)
    return _Row(bits, dtype, scale, offset, signed, symmetric)


def _limits(item: Node) -> tuple[float, float] | None:
    row = item.value
    if ("min" in row) != ("max" in row):
        raise _Bad("min without max" if "min" in row else "max without min", item.line)
    if "min" not in row:
        return None
    low = _number(row["min"], "min", item.at("min"))
    high = _number(row["max"], "max", item.at("max"))
    if not (math.isfinite(low) and math.isfinite(high)):
        raise _Bad(f"the range is {low} to {high}", item.at("min"), "calibrate that value again")
    if low > high:
        raise _Bad(f"min {low:g} is above max {high:g}", item.at("min"))
    return low, high


def _from_limits(limits: tuple[float, float], bits: int, symmetric: bool, line: int | Place) -> tuple[float, int]:
    """Scale and offset of a range by the guide's rules: zero is a code, at least 0.0001 wide, 2^bits - 1 steps."""
    low, high = min(limits[0], 0.0), max(limits[1], 0.0)
    if symmetric:
        half = 2 ** (bits - 1)
        return _scale(max(-low, high, 0.5e-4) / (half - 1), line), -half
    high = max(high, low + 1e-4)
    scale = _scale((high - low) / (2**bits - 1), line)
    return scale, round(low / scale)


def _agreed(
    row: dict[str, Any], limits: tuple[float, float] | None, scale: float, bits: int, symmetric: bool, line: int | Place
) -> tuple[int, int | None]:
    """The offset that scale, min and max prove; they must not contradict what the file says.

    The guide's own samples write it with either sign, one of them off by one: a positive offset is taken where min
    and max prove the negative one.
    """
    given = _whole(row["offset"], "the offset", line, "QNN has no half steps") if "offset" in row else None
    if limits is None:
        assert given is not None
        return given, None
    steps = limits[0] / scale
    proven = round(steps)
    if given is None:
        return proven, proven
    width = (limits[1] - limits[0]) / scale
    if abs(width - (2**bits - 1)) > 2 + 1e-4 * 2**bits:
        hint = f"min to max are {width:.6g} steps of the scale, {bits} bits have {2**bits - 1}"
        raise _Bad("min, max and scale contradict each other", line, hint)
    slack = 1 + 1e-6 * abs(steps)
    if given <= 0 and abs(given - steps) < slack:
        return given, proven
    if given > 0 and abs(-given - steps) <= slack:
        return proven, proven
    if given == 0 and symmetric and proven in (-(2 ** (bits - 1)), 1 - 2 ** (bits - 1)):
        return given, proven  # written for signed codes
    raise _Bad(
        f"the offset {given} contradicts min {limits[0]:g} and scale {scale:g}",
        line,
        f"min / scale is {steps:.6g}: write {proven}, or correct min and max",
    )


# -- 1.0.0 -------------------------------------------------------------------------------------------------------------

_V1_FIELDS = {"name", "dtype", "bw", "is_sym", "scale", "offset", "enc_type"}
_V1_BLOCK_FIELDS = {"block_size", "compressed_bw", "per_block_int_scale", "zero_point_shift"}
_ENC_TYPES = ("PER_TENSOR", "PER_CHANNEL", "PER_BLOCK", "LPBQ")


def _v1(name: str, kind: str, node: Node) -> Entry:
    row = node.value
    _known_fields(node, _V1_FIELDS | _V1_BLOCK_FIELDS)
    for key in ("bw", "dtype"):
        if key not in row:
            raise _Bad(f"{key!r} is missing", node.line)
    dtype = _dtype(row["dtype"], node.at("dtype"))
    bits = _bits(row["bw"], dtype, node.at("bw"))
    if dtype == "float":
        return Entry(name, kind, bits, dtype, line=node.line)
    form = row.get("enc_type", "PER_TENSOR")
    if form not in _ENC_TYPES:
        raise _Bad(f"enc_type is {_shown(form)}", node.at("enc_type"), f"known: {', '.join(_ENC_TYPES)}")
    symmetric = _flag(row.get("is_sym", False), "is_sym", node.at("is_sym"))
    if "scale" not in row:
        raise _Bad("the scale is missing", node.line)
    if any(_numbers(row.get("zero_point_shift", []))):
        raise _Bad("zero lies between two codes", node.at("zero_point_shift"), "QNN has no half steps")
    scales = [_scale(s, node.at("scale", i)) for i, s in enumerate(_listed(row["scale"]))]
    given = [_whole(o, "the offset", node.at("offset", i)) for i, o in enumerate(_listed(row.get("offset", [])))]
    _counted(scales, given, node.at("offset"))
    if not scales or (form == "PER_TENSOR" and len(scales) != 1):
        raise _Bad(f"{len(scales)} scales in a {form} entry", node.at("scale"))
    grids = [_grid(bits, o, symmetric, node.at("offset", i)) for i, o in enumerate(given)]
    if len({signed for _, signed in grids}) > 1 or (len(grids) > 1 and not grids[0][1]):
        raise _Bad("per-channel, but not symmetric", node.at("is_sym"), "QNN's per-channel encodings are symmetric")
    blocks = None
    if form in ("PER_BLOCK", "LPBQ"):
        blocks = _v1_blocks(node, form, bits, len(scales))
        bits = _bits(row["compressed_bw"], dtype, node.at("compressed_bw")) if form == "LPBQ" else bits
    offsets, signed = tuple(o for o, _ in grids), grids[0][1]
    return Entry(name, kind, bits, dtype, tuple(scales), offsets, signed, symmetric, None, blocks, node.line)


def _v1_blocks(node: Node, form: str, bits: int, channels: int) -> Blocks:
    row = node.value
    if "block_size" not in row:
        raise _Bad(f"a {form} entry without block_size", node.line)
    size = _whole(row["block_size"], "block_size", node.at("block_size"))
    if size < 1:
        raise _Bad(f"block_size is {size}", node.at("block_size"))
    if form == "PER_BLOCK":
        return Blocks(size)
    for key in ("compressed_bw", "per_block_int_scale"):
        if key not in row:
            raise _Bad(f"an LPBQ entry without {key}", node.line)
    scales = _block_scales(node, row["per_block_int_scale"], channels)
    return Blocks(size, None, scales, bits, channels=channels)


def _block_scales(node: Node, values: Any, channels: int) -> tuple[int, ...]:
    line = node.at("per_block_int_scale")
    scales = tuple(_whole(v, "a block scale", line) for v in _numbers(values))
    if not scales or len(scales) % channels:
        raise _Bad(f"{len(scales)} block scales for {channels} channels", line)
    if min(scales) < 1 or max(scales) > 16:
        raise _Bad(f"block scales from {min(scales)} to {max(scales)}", line, "they are 1 to 16 (4 bits)")
    return scales


# -- 2.0.0 -------------------------------------------------------------------------------------------------------------

_V2_FIELDS = {"name", "output_dtype", "y_scale", "y_zero_point", "axis", "block_size"}
_V2_LPBQ = {"per_channel_float_scale", "per_block_int_scale"}
_V2_DTYPES = {f"{sign}int{bits}": (sign == "", bits) for sign in ("", "u") for bits in INTEGER_BITS}
_V2_FLOATS = {"float16": 16, "float32": 32, "float": 32}


def _v2(name: str, kind: str, node: Node) -> Entry:
    row = node.value
    _known_fields(node, _V2_FIELDS | _V2_LPBQ)
    dtype = row.get("output_dtype")
    line = node.at("output_dtype")
    if dtype in _V2_FLOATS:
        return Entry(name, "activation", _V2_FLOATS[dtype], "float", line=node.line)
    if dtype not in _V2_DTYPES:
        raise _Bad(
            f"output_dtype is {_shown(dtype)}", line, f"possible: {', '.join([*_V2_DTYPES, 'float16', 'float32'])}"
        )
    signed, bits = _V2_DTYPES[dtype]
    axis = _whole(row["axis"], "axis", node.at("axis")) if row.get("axis") is not None else None
    lpbq = _V2_LPBQ & set(row)
    if lpbq:
        return _v2_lpbq(name, node, bits, axis)
    if "y_scale" not in row:
        raise _Bad("y_scale is missing", node.line)
    grid, block = _listed(row["y_scale"]), None
    kind = "param" if signed or axis is not None else "activation"
    if row.get("block_size") is not None:
        size = _whole(row["block_size"], "block_size", node.at("block_size"))
        if axis is None or size < 1:
            raise _Bad(f"block_size {size} with axis {axis}", node.at("block_size"))
        grid, channel, rank = _channels_first(node, row["y_scale"], axis)
        channels = int(np.shape(row["y_scale"])[channel])
        block, axis = Blocks(size, axis, rank=rank, channels=channels), channel
    elif axis is None and isinstance(row["y_scale"], list):
        raise _Bad("a list of scales without an axis", node.at("y_scale"), "say which axis they are for")
    scales = tuple(_scale(s, node.at("y_scale", i)) for i, s in enumerate(grid))
    if not scales:
        raise _Bad("y_scale is empty", node.at("y_scale"))
    points = _numbers(row["y_zero_point"]) if row.get("y_zero_point") is not None else [0] * len(scales)
    zero = node.at("y_zero_point")
    _counted(scales, points, zero)
    low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)
    offsets = []
    for point in (_whole(p, "the zero point", zero, "QNN has no half steps") for p in points):
        if not low <= point <= high:
            hint = f"write {-point}: real = (code - zero_point) * scale" if low <= -point <= high else ""
            raise _Bad(f"the zero point {point} is not one of the codes {low} to {high} of {dtype}", zero, hint)
        offsets.append(-point)
    if len(scales) > 1 and any(o != (0 if signed else low - (high + 1) // 2) for o in offsets):
        raise _Bad("per-channel, but not symmetric", zero, "QNN's per-channel encodings are symmetric")
    symmetric = signed and not any(offsets)
    return Entry(name, kind, bits, "int", scales, tuple(offsets), signed, symmetric, axis, block, node.line)


def _v2_lpbq(name: str, node: Node, bits: int, axis: int | None) -> Entry:
    row = node.value
    for key in (*sorted(_V2_LPBQ), "block_size"):
        if key not in row:
            raise _Bad(f"an LPBQ entry without {key}", node.line)
    if axis is None:
        raise _Bad("an LPBQ entry without axis", node.line, "the axis that is cut into blocks")
    size = _whole(row["block_size"], "block_size", node.at("block_size"))
    scales = tuple(_scale(s, node.at("per_channel_float_scale")) for s in _numbers(row["per_channel_float_scale"]))
    values, channel, rank = _channels_first(node, row["per_block_int_scale"], axis)
    if not scales or size < 1:
        raise _Bad("an LPBQ entry without scales or blocks", node.line)
    ints = _block_scales(node, values, len(scales))
    return Entry(
        name, "param", bits, "int", scales, (0,) * len(scales), True, True, channel,
        Blocks(size, axis, ints, 2 * bits, rank, len(scales)), node.line,
    )  # fmt: skip


def _channels_first(node: Node, values: Any, axis: int) -> tuple[list[Any], int, int]:
    """A grid of scales as a list with channels outer and blocks inner, the channel axis (the other one), the rank."""
    try:
        grid = np.asarray(values, np.float64)
    except (ValueError, TypeError):
        raise _Bad("scales that form no grid", node.line) from None
    if grid.ndim < 2 or not -grid.ndim <= axis < grid.ndim:
        raise _Bad(f"block scales of {grid.ndim} axes with axis {axis}", node.at("axis"))
    axis %= grid.ndim
    others = [i for i in range(grid.ndim) if i != axis]
    wide = [i for i in others if grid.shape[i] > 1] or others[:1]
    if len(wide) > 1:
        raise _Bad("block scales for more than one channel axis", node.line)
    ordered = np.moveaxis(grid, wide[0], 0).reshape(grid.shape[wide[0]], -1)
    return ordered.ravel().tolist(), wide[0], grid.ndim


def _known_fields(node: Node, known: set[str]) -> None:
    unknown = sorted(set(node.value) - known)
    if unknown:
        raise _Bad(f"the field {unknown[0]!r} is not known", node.at(unknown[0]), nearest(unknown[0], known))


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _numbers(value: Any) -> list[Any]:
    """A number, or lists of them of any depth, as one list."""
    return [n for v in value for n in _numbers(v)] if isinstance(value, list) else [value]


__all__ = ["VERSIONS", "Blocks", "EncodingsError", "EncodingsFile", "Entry", "check", "dumps", "loads", "read", "write"]

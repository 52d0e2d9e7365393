# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""How inputs and outputs of an artifact shall differ from the source's, read with every fault at once.

The files are those of qairt-converter (`--config`, `--io_config`) and of the QNN converters (`--custom_io`); formats:
shared/reference/qnn_tools.md, section 10. Added here, because the tools guess it: `Color` among the source parameters
(the colour order that the model takes), and `Color Range` among the desired ones (of NV12 and NV21).
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from npukit.errors import Fault, UsageError, nearest

LAYOUTS = ("NCDHW", "NDHWC", "NCHW", "NHWC", "NFC", "NCF", "NTF", "TNF", "NF", "NC", "F", "NONTRIVIAL")
"""N batch, C channels, D depth, H height, W width, F feature, T time."""
TURNS = ({"NCDHW", "NDHWC"}, {"NCHW", "NHWC"}, {"NCF", "NFC"}, {"NTF", "TNF"})
"""Layouts that may be turned into one another."""
DTYPES = ("float32", "float16", "uint8", "int8")
COLORS = ("BGR", "RGB", "RGBA", "ARGB32", "NV12", "NV21")
YUV = ("NV12", "NV21")


@dataclass(frozen=True)
class IoEntry:
    """What shall hold for one input or output; None leaves it as it is in the source.

    Attributes:
        name: in the source.
        output: whether it is an output; None where the file does not say it.
        source_dtype, source_layout, source_color: how the source has it.
        dtype, layout, shape, color: how the artifact shall have it.
        color_range: "full" or "limited" values of BT.601 in NV12 and NV21.
        scale, offset: of a quantized dtype: real = scale * (code + offset).
    """

    name: str
    output: bool | None = None
    source_dtype: str | None = None
    source_layout: str | None = None
    source_color: str | None = None
    dtype: str | None = None
    layout: str | None = None
    shape: tuple[int, ...] | None = None
    color: str | None = None
    color_range: str | None = None
    scale: float | None = None
    offset: int | None = None

    @property
    def turned(self) -> bool:
        """Whether the layout changes."""
        return self.layout is not None and self.layout != self.source_layout

    @property
    def source_shape(self) -> tuple[int, ...] | None:
        """`shape` in the source's layout."""
        if self.shape is None or not self.turned:
            return self.shape
        assert self.layout is not None
        assert self.source_layout is not None
        return tuple(self.shape[self.layout.index(axis)] for axis in self.source_layout)


@dataclass(frozen=True)
class IoConfig:
    """Entries by input and output, and the outputs that the model shall end at (empty: its own)."""

    entries: tuple[IoEntry, ...] = ()
    outputs: tuple[str, ...] = ()

    @classmethod
    def load(cls, data: Any, where: str = "") -> IoConfig:
        """The config of what a YAML file holds, of either kind, or of `to_dict`.

        Raises:
            UsageError: unknown keys, values of the wrong kind, keys that need or exclude one another; all are listed.
        """
        faults: list[Fault] = []
        if isinstance(data, Mapping) and set(data) == {"entries", "outputs"}:
            return cls(tuple(_entry(item) for item in data["entries"]), tuple(data["outputs"]))
        config = cls()
        if isinstance(data, list):
            config = cls(tuple(_read(_CUSTOM, item, None, i, faults) for i, item in enumerate(data, 1)))
        elif isinstance(data, Mapping):
            config = _qairt(data, faults)
        else:
            faults.append(Fault("is neither a list of IOName entries nor has Input Tensor Configuration", "the file"))
        seen: set[tuple[str, bool | None]] = set()
        for entry in config.entries:
            faults += contradictions(entry)
            if (entry.name, entry.output) in seen:
                faults.append(Fault("is there twice", repr(entry.name)))
            seen.add((entry.name, entry.output))
        if faults:
            raise UsageError("the I/O config cannot be meant", where=where or "--io-config", faults=faults)
        return config

    def for_calibration(self) -> IoConfig:
        """The config of the float model that is to be quantized: what makes codes of values is left out."""
        entries = (
            replace(
                entry, dtype=None, source_dtype=None,
                scale=entry.scale if entry.color else None, offset=entry.offset if entry.color else None,
            )
            if entry.dtype in ("uint8", "int8")
            else entry
            for entry in self.entries
        )  # fmt: skip
        return IoConfig(tuple(entries), self.outputs)

    def encodings(self) -> list[tuple[str, str, float, int]]:
        """Name, dtype, scale and offset of every input and output that shall have these codes in a quantized model."""
        coded = [entry for entry in self.entries if entry.dtype in ("uint8", "int8")]
        pixels = [(entry.name, str(entry.dtype), 1.0, 0) for entry in coded if entry.color]
        return pixels + [
            (entry.name, str(entry.dtype), entry.scale, entry.offset)
            for entry in coded
            if not entry.color and entry.scale is not None and entry.offset is not None
        ]

    def to_dict(self) -> dict[str, Any]:
        """The config as plain data, which `load` reads back: for stamps."""
        entries = [{k: v for k, v in asdict(entry).items() if v is not None} for entry in self.entries]
        return {"entries": entries, "outputs": list(self.outputs)}


def template(inputs: Sequence[IoEntry], outputs: Sequence[IoEntry]) -> str:
    """A config to fill in, with what is known of the source; given as it is, it changes nothing.

    Args:
        inputs: names, `source_dtype`, and `shape` where it is fixed.
        outputs: names and `source_dtype`.
    """
    return _HEAD + "".join(
        f"{part}:\n" + "".join(_filled(entry, part == "Input Tensor Configuration") for entry in entries)
        for part, entries in zip(_PARTS, (inputs, outputs), strict=True)
    )


_HEAD = f"""\
# Inputs and outputs of the artifact. What stays empty is as in the source model.
#
# Desired Model Parameters:
#   DataType    {", ".join(DTYPES)}
#   Layout      {", ".join(LAYOUTS)};
#               needs the source's; can be turned: {", ".join("-".join(sorted(pair)) for pair in TURNS)}
#   Shape       in the desired layout
#   Color Conversion  {", ".join(COLORS)}; needs the source's Color.
#               NV12 and NV21 need Color Range: full or limited
#   QuantParams for uint8 and int8: real = Scale * (code + Offset)
#
"""


def _filled(entry: IoEntry, is_input: bool) -> str:
    source = [f"DataType: {entry.source_dtype or ''}", f"Layout: {_likely_layout(entry.shape or ())}"]
    desired = ["DataType:", "Layout:"]
    if is_input:
        source += [f"Shape: {','.join(map(str, entry.shape)) if entry.shape else ''}", "Color:"]
        desired += ["Shape:", "Color Conversion:", "Color Range:"]
    desired += ["QuantParams:", "  Scale:", "  Offset:"]
    lines = [f"  - Name: {json.dumps(entry.name)}", "    Src Model Parameters:", *(f"      {line}" for line in source)]
    lines += ["    Desired Model Parameters:", *(f"      {line}" for line in desired)]
    return "".join(f"{line.rstrip()}\n" for line in lines)


def _likely_layout(shape: tuple[int, ...]) -> str:
    """The layout where the rank, or the number of channels of a picture, says it; else empty."""
    if len(shape) == 4:
        pictures = [name for name, channels in (("NCHW", shape[1]), ("NHWC", shape[3])) if channels in (1, 3)]
        return pictures[0] if len(pictures) == 1 else ""
    return {2: "NF", 1: "F"}.get(len(shape), "")


def _entry(item: Mapping[str, Any]) -> IoEntry:
    shape = item.get("shape")
    return IoEntry(**{**item, "shape": None if shape is None else tuple(shape)})


class _Bad(Exception):
    """A value of the wrong kind; its text says what is expected."""


def _text(value: Any) -> str:
    if not isinstance(value, str) or not value:
        raise _Bad("a name")
    return value


def _one_of(*known: str) -> Callable[[Any], str]:
    def read(value: Any) -> str:
        found = next((k for k in known if k.lower() == str(value).lower()), None)
        if found is None:
            raise _Bad(f"one of {', '.join(known)}")
        return found

    return read


def _number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or value <= 0:
        raise _Bad("a positive number")
    return float(value)


def _whole(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or abs(value) > 1 << 31:
        raise _Bad("a whole number")
    return value


def _shape(value: Any) -> tuple[int, ...]:
    dims = str(value).strip("()[] ").split(",") if isinstance(value, str | int) else value
    try:
        shape = tuple(int(dim) for dim in dims)
    except (TypeError, ValueError):
        raise _Bad("a shape like 1,224,224,3") from None
    if min(shape, default=0) < 1:
        raise _Bad("a shape like 1,224,224,3")
    return shape


def _not_optional(value: Any) -> bool:
    if str(value).lower() != "false":
        # Tried with QAIRT 2.47 (OPTIONAL_APP_WRITE, the bias of a FullyConnected): libQnnIr writes it to a DLC, QNN CPU
        # computes without the tensor and refuses it when it is given (6004), HTP refuses the graph (6007).
        raise _Bad("False: QNN CPU and HTP know no optional tensors; leave the input out, or make it a constant")
    return False


_ANY_DTYPE = _one_of(*("float64", "bfloat16", "int64", "int32", "int16", "uint64", "uint32", "uint16", "bool", *DTYPES))
# What a key of the file is in `IoEntry`, and how it is read; a dict stands for the keys below it.
_QUANT = {"Scale": ("scale", _number), "Offset": ("offset", _whole)}
_SOURCE: dict[str, Any] = {
    "DataType": ("source_dtype", _ANY_DTYPE),
    "Layout": ("source_layout", _one_of(*LAYOUTS)),
    "Shape": ("", _shape),
    "Color": ("source_color", _one_of(*COLORS[:4])),
}
_DESIRED: dict[str, Any] = {
    "DataType": ("dtype", _one_of(*DTYPES)),
    "DType": ("dtype", _one_of(*DTYPES)),
    "Layout": ("layout", _one_of(*LAYOUTS)),
    "QuantParams": _QUANT,
    "Optional": ("", _not_optional),
}
_INPUT: dict[str, Any] = {
    "Name": ("name", _text),
    "Src Model Parameters": _SOURCE,
    "Desired Model Parameters": {
        **_DESIRED,
        "Shape": ("shape", _shape),
        "Color Conversion": ("color", _one_of(*COLORS)),
        "Color Range": ("color_range", _one_of("full", "limited")),
    },
}
_OUTPUT: dict[str, Any] = {**_INPUT, "Desired Model Parameters": _DESIRED}
_CUSTOM: dict[str, Any] = {
    "IOName": ("name", _text),
    "Layout": {"Model": ("source_layout", _one_of(*LAYOUTS)), "Custom": ("layout", _one_of(*LAYOUTS))},
    "Datatype": ("dtype", _one_of(*DTYPES)),
    "QuantParam": {"Type": ("", _one_of("QNN_DEFINITION_DEFINED", "QNN_DEFINITION_UNDEFINED")), **_QUANT},
}
_PARTS = {"Input Tensor Configuration": False, "Output Tensor Configuration": True}


def _qairt(data: Mapping[Any, Any], faults: list[Fault]) -> IoConfig:
    entries: list[IoEntry] = []
    outputs: list[str] = []
    for key, value in data.items():
        if key in _PARTS:
            keys = _OUTPUT if _PARTS[key] else _INPUT
            items = value if isinstance(value, list) else [] if value is None else [value]
            entries += [_read(keys, item, _PARTS[key], i, faults) for i, item in enumerate(items, 1)]
        elif key == "Converted Graph":
            for item in value if isinstance(value, list) else []:
                names = item.get("Output Tensors") if isinstance(item, Mapping) else None
                outputs += [str(name) for name in names] if isinstance(names, list) else []
        else:
            faults.append(Fault("there is no such key", str(key), nearest(str(key), [*_PARTS, "Converted Graph"])))
    return IoConfig(tuple(entries), tuple(outputs))


def _read(keys: Mapping[str, Any], item: Any, output: bool | None, number: int, faults: list[Fault]) -> IoEntry:
    """One entry; what is wrong is added to `faults`, and the rest is read on."""
    named = item.get("Name", item.get("IOName")) if isinstance(item, Mapping) else None
    where = repr(named) if isinstance(named, str) and named else f"entry {number}"
    found: dict[str, Any] = {}
    _collect(keys, item, where, found, faults)
    if "name" not in found and isinstance(item, Mapping) and named is None:
        faults.append(Fault("has no name", where, f"{next(iter(keys))}: NAME"))
    if keys is _CUSTOM and isinstance(item, Mapping):
        quant = item.get("QuantParam")
        undefined = isinstance(quant, Mapping) and quant.get("Type") == "QNN_DEFINITION_UNDEFINED"
        if undefined and ("scale" in found or "offset" in found):
            faults.append(Fault("has Scale or Offset where its Type is QNN_DEFINITION_UNDEFINED", where))
    return IoEntry(**{"name": "", **found}, output=output)


def _collect(keys: Mapping[str, Any], item: Any, where: str, found: dict[str, Any], faults: list[Fault]) -> None:
    if item is None:
        return
    if not isinstance(item, Mapping):
        faults.append(Fault(f"needs keys and values, not {str(item)[:60]!r}", where, f"keys: {', '.join(keys)}"))
        return
    for key, value in item.items():
        kind = keys.get(key)
        if kind is None:
            faults.append(Fault(f"there is no key {key!r} here", where, nearest(str(key), keys)))
        elif isinstance(kind, dict):
            _collect(kind, value, where, found, faults)
        elif value is not None:
            try:
                read = kind[1](value)
            except _Bad as error:
                faults.append(Fault(f"{key} is {str(value)[:60]!r}, it must be {error}", where))
                continue
            if kind[0]:
                found[kind[0]] = read


def contradictions(entry: IoEntry) -> list[Fault]:
    """Keys of one entry that exclude or need one another."""
    quantized = entry.dtype in ("uint8", "int8")
    turn = {entry.source_layout, entry.layout}
    known = [len(layout) for layout in (entry.layout, entry.source_layout) if layout not in (None, "NONTRIVIAL")]
    custom = entry.output is None
    checks = [
        (
            entry.layout is not None and entry.source_layout is None,
            "has a desired layout, but not the source's",
            "Layout: {Model: NCHW, Custom: NHWC}" if custom else "Src Model Parameters: {Layout: NCHW}",
        ),
        (
            entry.turned and entry.source_layout is not None and turn not in TURNS,
            f"{entry.source_layout} cannot become {entry.layout}",
            f"these can: {', '.join('-'.join(sorted(pair)) for pair in TURNS)}",
        ),
        (
            not custom and entry.dtype is not None and entry.source_dtype is None,
            "has a desired data type, but not the source's",
            "Src Model Parameters: {DataType: float32}",
        ),
        (
            entry.dtype is not None and entry.source_dtype is not None and entry.source_dtype not in DTYPES,
            f"{entry.source_dtype} cannot become {entry.dtype}",
            f"only {', '.join(DTYPES)} can be changed",
        ),
        ((entry.scale is None) != (entry.offset is None), "needs both Scale and Offset, or none", ""),
        (entry.scale is not None and not quantized, "has Scale and Offset without DataType uint8 or int8", ""),
        (
            entry.shape is not None and any(len(entry.shape) != rank for rank in known),
            f"has a shape of {len(entry.shape or ())} dimensions in a layout of {known[0] if known else 0}",
            "",
        ),
        (
            entry.color is not None and entry.source_color is None,
            "has a Color Conversion, but the colour order of the model is not said",
            "Src Model Parameters: {Color: RGB}; qairt-converter takes BGR where nothing is said",
        ),
        (
            (entry.color in YUV) != (entry.color_range is not None),
            "Color Range goes with NV12 and NV21, which need it",
            "Color Range: full or limited",
        ),
        (entry.color is not None and entry.output is True, "an output has no Color Conversion", ""),
        (
            entry.color in YUV and entry.layout is not None,
            f"{entry.color} frames are flat, they have no layout",
            "leave Layout out among the desired parameters",
        ),
    ]
    return [Fault(what, repr(entry.name), hint) for wrong, what, hint in checks if wrong]

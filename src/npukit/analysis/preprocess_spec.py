# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""The preprocessing spec: its keys as dataclasses, read from YAML or a dict with every fault at once."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from npukit import files
from npukit.errors import Fault, InputError, nearest

METHODS = ("nearest", "box", "area", "bilinear", "hamming", "bicubic", "lanczos")
"""Resampling methods, by Pillow's names (all but `nearest` widen their filter when they shrink); area is box."""

# Where each channel of the model comes from, in an image of the working kind: grey, RGB or RGBA. ARGB32 is a word of
# 32 bits, whose bytes lie as B, G, R, A in memory on the little-endian processors of phones (SDK page "Image
# Preprocessing").
ORDER = {
    "RGB": (0, 1, 2),
    "BGR": (2, 1, 0),
    "RGBA": (0, 1, 2, 3),
    "ARGB32": (2, 1, 0, 3),
    "gray": (0,),
    "NV12": (0, 1, 2),
    "NV21": (0, 1, 2),
}
COLORS = tuple(ORDER)
YUV = ("NV12", "NV21")
_MAX_SPEC = 1 << 20
_MAX_EXTENT = 65_535


@dataclass(frozen=True)
class Resize:
    """Resize to `size` [height, width], or keep the ratio and bring the shorter or longer side to an extent.

    With `shorter` or `longer` the other side is rounded down, or to the nearest with `rounding="nearest"`.
    """

    size: tuple[int, int] | None = None
    shorter: int | None = None
    longer: int | None = None
    method: str = "bilinear"
    rounding: str = "down"

    def target(self, height: int, width: int) -> tuple[int, int]:
        """Height and width after the step."""
        if self.size is not None:
            return self.size
        side, extent = (min(height, width), self.shorter) if self.shorter else (max(height, width), self.longer)
        assert extent is not None
        scaled = {"down": lambda n: n * extent // side, "nearest": lambda n: (2 * n * extent + side) // (2 * side)}
        return max(1, scaled[self.rounding](height)), max(1, scaled[self.rounding](width))


@dataclass(frozen=True)
class Crop:
    """Cut out `center` [height, width], or `box` [left, top, right, bottom] (right and bottom are exclusive)."""

    center: tuple[int, int] | None = None
    box: tuple[int, int, int, int] | None = None

    def window(self, height: int, width: int) -> tuple[int, int, int, int]:
        """Left, top, right and bottom. An odd rest is halved as torchvision does it: to the even number."""
        if self.center is None:
            assert self.box is not None
            return self.box
        rows, columns = self.center
        top, left = round((height - rows) / 2), round((width - columns) / 2)
        return left, top, left + columns, top + rows


@dataclass(frozen=True)
class Pad:
    """Fill up to `size` [height, width] with `value` (0 to 255, one or a channel, in the model's order of channels).

    `where` is the side that grows: "end" (below and to the right), "start", or "both" (an odd rest goes to the end).
    """

    size: tuple[int, int]
    value: tuple[float, ...] = (0.0,)
    where: str = "end"

    def place(self, height: int, width: int) -> tuple[int, int]:
        """Row and column at which an image of this size lies."""
        share = {"end": 0, "start": 2, "both": 1}[self.where]
        return (self.size[0] - height) * share // 2, (self.size[1] - width) * share // 2


@dataclass(frozen=True)
class Quantize:
    """Codes for an integer input: code = round(real / scale) - offset, with QNN's sign of the offset."""

    scale: float
    offset: int = 0


@dataclass(frozen=True)
class ImageSpec:
    """The steps for one input.

    Attributes:
        source: colour order of arrays and raw frames that are given; image files say it themselves.
        frame: [height, width] of NV12 or NV21 frames in files.
        range: "full" or "limited" values of BT.601 in NV12 and NV21.
        resize, crop, pad: geometry, in this order; None leaves it out.
        color: colour order of the model; None: by the number of channels (1 gray, 3 RGB, 4 RGBA).
        channels: number of channels, where it should be checked.
        scale, offset: real = pixel * scale + offset; one value or one a channel, in the model's order.
        mean, std: real = (pixel * scale - mean) / std.
        quantize: the model takes codes.
        layout: "NCHW" or "NHWC"; None where the shape of the input says it.
        dtype: dtype of the input, where it should be checked.
    """

    source: str | None = None
    frame: tuple[int, int] | None = None
    range: str | None = None
    resize: Resize | None = None
    crop: Crop | None = None
    pad: Pad | None = None
    color: str | None = None
    channels: int | None = None
    scale: tuple[float, ...] = (1.0,)
    offset: tuple[float, ...] | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    quantize: Quantize | None = None
    layout: str | None = None
    dtype: str | None = None

    @property
    def changes_values(self) -> bool:
        """Whether pixels go in as other numbers than 0 to 255."""
        return self.scale != (1.0,) or any((self.offset, self.mean, self.std, self.quantize))

    def geometry(self) -> tuple[int, int] | None:
        """Height and width after the steps, where they do not depend on the image."""
        if self.pad:
            return self.pad.size
        if self.crop:
            left, top, right, bottom = self.crop.window(0, 0)
            return bottom - top, right - left
        return self.resize.size if self.resize else None


@dataclass(frozen=True)
class PostSpec:
    """What is done with outputs.

    Attributes:
        task: "classification", "segmentation" or "detection".
        output: scores or map; None for the only output.
        top: at most so many classes or boxes, the best first.
        softmax: the scores are logits: make shares of them.
        layout: "NCHW" or "NHWC" of an output that has a score of every class at every pixel.
        boxes, scores, classes, count: outputs of a detector; `count` where only the first boxes hold.
        box: how the four numbers of a box are meant.
        normalized: boxes are 0 to 1 over the input.
        threshold: least score of a box.
        labels: one a class (in a file: one a line).
        class_offset: the model's class of the first label: 1 where 0 is the background that has no label.
    """

    task: str
    output: str | None = None
    top: int = 5
    softmax: bool = False
    layout: str | None = None
    boxes: str | None = None
    scores: str | None = None
    classes: str | None = None
    count: str | None = None
    box: str = "yxyx"
    normalized: bool = True
    threshold: float = 0.5
    labels: tuple[str, ...] = ()
    class_offset: int = 0


def read_yaml(path: Path) -> Mapping[str, Any]:
    """The top mapping of a YAML file; InputError as `load_yaml`, and where there is none."""
    data = load_yaml(path)
    if not isinstance(data, Mapping):
        raise InputError(
            "a preprocessing spec is a list of KEY: VALUE", where=str(path), hint="resize: {size: [224, 224]}"
        )
    return data


def load_yaml(path: Path) -> Any:
    """What a YAML file holds; InputError for one that is too large, unsound, or has a key twice."""
    import yaml

    class Loader(yaml.SafeLoader):
        """The safe loader, which also refuses a key that is given twice."""

    def mapping(loader: Loader, node: yaml.MappingNode) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value]
        twice = next((key for key in keys if keys.count(key) > 1), None)
        if twice is not None:
            raise yaml.constructor.ConstructorError(None, None, f"the key {twice!r} is given twice", node.start_mark)
        return loader.construct_mapping(node, deep=True)

    Loader.add_constructor("tag:yaml.org,2002:map", mapping)
    with files.os_errors(path, "read"):
        if path.stat().st_size > _MAX_SPEC:
            raise InputError(f"the file is larger than {_MAX_SPEC} bytes", where=str(path))
        text = path.read_bytes()
    try:
        data = yaml.load(text, Loader)
        if _entries(data, {}) > _MAX_SPEC:  # aliases of aliases: a few lines that stand for billions
            raise ValueError("its aliases stand for too much")
    except (yaml.YAMLError, ValueError, RecursionError, TypeError) as error:
        raise InputError(f"not a sound YAML file: {error}", where=str(path)) from error
    return data


def _entries(value: Any, known: dict[int, int]) -> int:
    """How many values there are, each alias counted as what it stands for. Raises ValueError for one within itself."""
    if not isinstance(value, list | Mapping):
        return 1
    if id(value) not in known:
        known[id(value)] = -1
        inner = value.values() if isinstance(value, Mapping) else value
        known[id(value)] = 1 + sum(_entries(item, known) for item in inner)
    if known[id(value)] < 0:
        raise ValueError("an alias stands within itself")
    return known[id(value)]


class _Bad(Exception):
    """A value of the wrong kind; its text says what is expected."""


def _whole(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 < value <= _MAX_EXTENT:
        raise _Bad(f"a whole number from 1 to {_MAX_EXTENT}")
    return value


def _number(value: Any) -> float:
    """A number, or text like 1/255."""
    try:
        if isinstance(value, str):
            above, _, below = value.partition("/")
            value = float(above) / float(below or 1)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise _Bad("a number")
        result = float(value)
    except (ValueError, OverflowError, ZeroDivisionError):
        raise _Bad("a number, or one like 1/255") from None
    if not math.isfinite(result):
        raise _Bad("a finite number")
    return result


def _numbers(value: Any) -> tuple[float, ...]:
    values = value if isinstance(value, list | tuple) else [value]
    if not 1 <= len(values) <= 4:
        raise _Bad("one number, or a list with one a channel")
    return tuple(_number(v) for v in values)


def _divisors(value: Any) -> tuple[float, ...]:
    result = _numbers(value)
    if min(result) <= 0:
        raise _Bad("positive numbers")
    return result


def _pixel_values(value: Any) -> tuple[float, ...]:
    result = _numbers(value)
    if any(v != int(v) or not 0 <= v <= 255 for v in result):
        raise _Bad("whole numbers from 0 to 255")
    return result


def _extents(value: Any) -> tuple[int, int]:
    if not isinstance(value, list | tuple) or len(value) != 2:
        raise _Bad("[height, width]")
    return _whole(value[0]), _whole(value[1])


def _box(value: Any) -> tuple[int, int, int, int]:
    if (
        not isinstance(value, list | tuple)
        or len(value) != 4
        or not all(isinstance(v, int) and 0 <= v <= _MAX_EXTENT for v in value)
        or not (value[0] < value[2] and value[1] < value[3])
    ):
        raise _Bad("[left, top, right, bottom] in pixels")
    return value[0], value[1], value[2], value[3]


def _offset(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or abs(value) > 1 << 31:
        raise _Bad("a whole number")
    return value


def _scale(value: Any) -> float:
    return _divisors([_number(value)])[0]


def _one_of(*known: str) -> Callable[[Any], str]:
    def parse(value: Any) -> str:
        found = next((k for k in known if k.lower() == str(value).lower()), None)
        if found is None:
            raise _Bad(f"one of {', '.join(known)}")
        return found

    return parse


def _flag(value: Any) -> bool:
    if not isinstance(value, bool):
        raise _Bad("true or false")
    return value


def _text(value: Any) -> str:
    if not isinstance(value, str) or not 0 < len(value) <= 4096:
        raise _Bad("a name")
    return value


def _texts(value: Any) -> tuple[str, ...]:
    if not isinstance(value, list | tuple) or len(value) > 100_000:
        raise _Bad("a list of labels, or the file that has one a line")
    return tuple(str(item) for item in value)


_DTYPES = ("float16", "bfloat16", "float32", "float64", "uint8", "int8", "uint16", "int16", "int32", "int64")
# How the value of each key is read; a dataclass stands for its own keys.
_KEYS: dict[type, dict[str, Any]] = {
    Resize: {
        "size": _extents,
        "shorter": _whole,
        "longer": _whole,
        "method": _one_of(*METHODS),
        "rounding": _one_of("down", "nearest"),
    },
    Crop: {"center": _extents, "box": _box},
    Pad: {"size": _extents, "value": _pixel_values, "where": _one_of("end", "start", "both")},
    Quantize: {"scale": _scale, "offset": _offset},
    ImageSpec: {
        "source": _one_of(*COLORS),
        "frame": _extents,
        "range": _one_of("full", "limited"),
        "resize": Resize,
        "crop": Crop,
        "pad": Pad,
        "color": _one_of(*COLORS),
        "channels": _whole,
        "scale": _numbers,
        "offset": _numbers,
        "mean": _numbers,
        "std": _divisors,
        "quantize": Quantize,
        "layout": _one_of("NCHW", "NHWC"),
        "dtype": _one_of(*_DTYPES),
    },
    PostSpec: {
        "task": _one_of("classification", "segmentation", "detection"),
        **dict.fromkeys(("output", "boxes", "scores", "classes", "count"), _text),
        "top": _whole,
        "softmax": _flag,
        "layout": _one_of("NCHW", "NHWC"),
        "box": _one_of("yxyx", "xyxy", "cxcywh"),
        "normalized": _flag,
        "threshold": _number,
        "labels": _texts,
        "class_offset": _offset,
    },
}
_EXACTLY_ONE = {
    Resize: ("size", "shorter", "longer"),
    Crop: ("center", "box"),
    Pad: ("size",),
    Quantize: ("scale",),
    PostSpec: ("task",),
}


def parse(kind: type[Any], data: Any, where: str, faults: list[Fault]) -> Any:
    """A dataclass of `kind` from a mapping; what is wrong is added to `faults`, and the rest is read on."""
    keys = _KEYS[kind]
    before = len(faults)
    if not isinstance(data, Mapping):
        faults.append(Fault(f"needs keys and values, not {data!r}", where or "spec", f"keys: {', '.join(keys)}"))
        data = {}
    values: dict[str, Any] = {}
    for key, value in data.items():
        place = f"{where}.{key}" if where else str(key)
        if key not in keys:
            faults.append(Fault("there is no such key", place, nearest(str(key), keys)))
        elif isinstance(keys[key], type):
            values[key] = parse(keys[key], value, place, faults)
        else:
            try:
                values[key] = keys[key](value)
            except _Bad as error:
                faults.append(Fault(f"is {value!r}, it must be {error}", place))
    choice = _EXACTLY_ONE.get(kind, ())
    if choice and len(faults) == before and sum(key in values for key in choice) != 1:
        faults.append(Fault(f"needs exactly one of {', '.join(choice)}" if choice[1:] else f"needs {choice[0]}", where))
    if len(faults) > before:
        return None if kind is not ImageSpec else ImageSpec()
    return kind(**values)


def contradictions(spec: ImageSpec, prefix: str) -> list[Fault]:
    """Keys that exclude or need one another; `prefix` stands before their names."""
    yuv = spec.source in YUV or spec.color in YUV
    expected = len(ORDER[spec.color]) if spec.color and spec.color not in YUV else spec.channels
    odd = spec.frame is not None and (spec.frame[0] % 2 or spec.frame[1] % 2)
    checks = [
        (spec.offset is not None and spec.mean is not None, "mean", "offset does the same: give one of them"),
        (yuv and spec.range is None, "range", "NV12 and NV21 need it said: full or limited"),
        (spec.range is not None and not yuv, "range", "only NV12 and NV21 have one"),
        (spec.frame is not None and spec.source not in YUV, "frame", "only a source NV12 or NV21 has one"),
        (bool(odd), "frame", "height and width of an NV12 or NV21 frame are even"),
        (spec.source in YUV and spec.frame is None, "frame", "the files do not say it: frame: [height, width]"),
        (spec.color in YUV and spec.layout is not None, "layout", "an NV12 or NV21 input has none"),
        (spec.channels not in (None, expected), "channels", f"the colour order {spec.color} has {expected}"),
    ]
    return [Fault(text, f"{prefix}{key}") for wrong, key, text in checks if wrong]


def plain(value: Any) -> Any:
    """The spec as lists, dicts and scalars, without what is not given."""
    if isinstance(value, tuple):
        return [plain(v) for v in value]
    if hasattr(value, "__dataclass_fields__"):
        return {f.name: plain(v) for f in fields(value) if (v := getattr(value, f.name)) is not None}
    return value

# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""From an image to a model input, as data: one small spec (YAML or dict) that run, quantize and verify use alike.

The steps and their order are fixed: colour (RGB, RGBA or grey), resize, crop, pad, order of the channels, numbers
(scale and offset, or mean and std), quantization, layout. Pillow reads and resamples; all else is integer copying or
a table of 256 values a channel that is computed in float64 and rounded once, so results are the same everywhere.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from npukit import files
from npukit.analysis.postprocess import Postprocessing
from npukit.analysis.preprocess_spec import ORDER, YUV, ImageSpec, contradictions, parse, plain, read_yaml
from npukit.analysis.samples import Array, InputInfo, artifact_names, dtype_of, read_input
from npukit.errors import Fault, InputError, nearest

Pixels = npt.NDArray[np.uint8]

IMAGES = frozenset([".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".ppm", ".pgm"])
"""Endings of image files."""
FRAMES = frozenset([".nv12", ".nv21", ".yuv", ".raw", ".bin"])
"""Endings of raw frames, where the spec's source is NV12 or NV21."""

_WORKING = {1: "L", 3: "RGB", 4: "RGBA"}


@dataclass(frozen=True)
class Preprocessing:
    """What is done with images, for every input ("") or by input name.

    Example:
        >>> recipe = Preprocessing.load({"resize": {"shorter": 256}, "crop": {"center": [224, 224]}, "scale": "1/255"})
        >>> array = recipe.apply("cat.jpg", session.inputs[0])
    """

    inputs: Mapping[str, ImageSpec] = field(default_factory=lambda: {"": ImageSpec()})
    origin: str = ""
    after: Postprocessing | None = None

    @classmethod
    def load(cls, source: Path | str | Mapping[str, Any] | Preprocessing) -> Preprocessing:
        """The spec of a YAML file or of a dict: the keys of one spec, or `inputs:` with one by input name.

        Raises:
            InputError: unknown keys, values of the wrong kind, keys that exclude one another; all are listed.
        """
        if isinstance(source, Preprocessing):
            return source
        origin = "" if isinstance(source, Mapping) else str(source)
        data = source if isinstance(source, Mapping) else read_yaml(Path(source))
        after = Postprocessing.load(source) if "postprocessing" in data else None
        data = {key: value for key, value in data.items() if key != "postprocessing"}
        faults: list[Fault] = []
        specs: dict[str, ImageSpec] = {}
        if "inputs" in data:
            faults += [
                Fault("stands beside `inputs`", str(key), "put it below an input") for key in data if key != "inputs"
            ]
            named = data["inputs"]
            if not isinstance(named, Mapping) or not named:
                faults.append(Fault("needs the steps by input name", "inputs", "inputs: {NAME: {resize: ...}}"))
                named = {}
            for name, entry in named.items():
                specs[str(name)] = parse(ImageSpec, entry, f"inputs.{name}", faults)
        else:
            specs[""] = parse(ImageSpec, data, "", faults)
        for name, spec in specs.items():
            faults += contradictions(spec, f"inputs.{name}." if name else "")
        if faults:
            raise InputError("the preprocessing spec cannot be meant", where=origin, faults=faults)
        return cls(specs, origin, after)

    def to_dict(self) -> dict[str, Any]:
        """The spec as plain data that `load` reads back: for stamps, and as its identity."""
        entries = {name: plain(spec) for name, spec in sorted(self.inputs.items())}
        steps = entries[""] if set(entries) == {""} else {"inputs": entries}
        return steps if self.after is None else {**steps, "postprocessing": self.after.to_dict()}

    def spec(self, info: InputInfo) -> ImageSpec | None:
        """The steps for an input, by its name or its name in the artifact; None where the spec is for others only."""
        native = getattr(getattr(info, "native", None), "name", "")
        return self.inputs.get(info.name) or self.inputs.get(native) or self.inputs.get("")

    def faults(self, inputs: Sequence[InputInfo]) -> list[Fault]:
        """What does not fit the model and needs no image to be seen: unknown names, sizes, channels, dtype."""
        aliases = artifact_names(inputs)
        names = [info.name for info in inputs]
        found = [
            Fault(f"the model has no input {name!r}", self.origin or "preprocessing", nearest(name, names))
            for name in self.inputs
            if name and aliases.get(name, name) not in names
        ]
        for info in inputs:
            named = info.name in self.inputs or any(a in self.inputs for a, s in aliases.items() if s == info.name)
            spec = self.spec(info)
            # A spec for every input is one for images: other inputs beside them take no part.
            if spec is not None and (named or len(inputs) == 1 or len(info.shape) == 4):
                try:
                    _plan(spec, info)
                except InputError as error:
                    found += error.faults or [Fault(error.what, error.where, error.hint)]
        return found

    def read(self, path: Path, info: InputInfo) -> Array:
        """The data of an input from a file: images, frames and uint8 pixels through the steps, others as they are.

        Raises:
            InputError: see `apply` and `files.load_input`.
        """
        spec, suffix = self.spec(info), path.suffix.lower()
        if spec is not None and (suffix in IMAGES or (spec.source in YUV and suffix in FRAMES)):
            return self.apply(path, info)
        array = read_input(path, info)
        pixels = spec is not None and array.dtype == np.uint8 and array.ndim in (2, 3)
        return self.apply(array, info) if pixels and dtype_of(info) != np.uint8 else array

    def apply(self, image: Path | str | npt.ArrayLike, info: InputInfo) -> Array:
        """An image as one sample of an input: its shape with a leading extent of 1 where it has four, and its dtype.

        Args:
            image: an image file (or a raw NV12 or NV21 frame), or uint8 pixels [height, width, channels] or
                [height, width] in the order of `source` (RGB unless said).
            info: name, shape and dtype of the input.

        Raises:
            InputError: the image cannot be read, or does not fit the steps or the input.
        """
        spec = self.spec(info) or ImageSpec()
        where = str(image) if isinstance(image, Path | str) else info.name
        plan = _plan(spec, info)
        pixels = _geometry(spec, _working(spec, image, plan.color, where), where)
        if plan.color in YUV:
            flat = rgb_to_yuv(_padded(spec, pixels, where), plan.color, spec.range == "full")[..., None]
        else:
            flat = _padded(spec, pixels[..., list(ORDER[plan.color])], where)
        if (flat.size if plan.color in YUV else flat.shape[:2]) != plan.expects:
            expected = f"{plan.expects[1]} x {plan.expects[0]}" if isinstance(plan.expects, tuple) else plan.expects
            raise InputError(
                f"it is {flat.shape[1]} x {flat.shape[0]} after the steps, the input {info.name!r} takes {expected}",
                where=where,
                hint="add resize, crop or pad to the preprocessing spec",
            )
        # One table a channel; fancy indexing keeps [height, width, channel].
        values = plan.table[np.arange(flat.shape[2]), flat]
        return np.ascontiguousarray(values.transpose(plan.axes)).reshape(plan.shape)


def recorded(options: Mapping[str, Any] | None, given: Any) -> Preprocessing | None:
    """The spec given, else the one that a stamp's options record; None where there is neither."""
    found = given if given is not None else (options or {}).get("preprocessing")
    return None if found is None else Preprocessing.load(found)


# --- what a spec means for an input ---


@dataclass(frozen=True)
class _Plan:
    color: str
    shape: tuple[int, ...]
    axes: tuple[int, int, int]
    expects: tuple[int, int] | int
    table: Array


def _plan(spec: ImageSpec, info: InputInfo) -> _Plan:
    shape = tuple(info.shape)
    where = info.name

    def bad(what: str, hint: str = "") -> InputError:
        return InputError(what, where=where, hint=hint)

    if not all(isinstance(extent, int) and extent > 0 for extent in shape):
        raise bad(f"the shape {list(shape)} is open", "fix it at conversion")
    sample = (1, *shape[1:]) if len(shape) == 4 else shape
    if spec.color in YUV:
        size = math.prod(sample)
        return _Plan(str(spec.color), sample, (0, 1, 2), size, _table(spec, 1, info, bad))
    if len(shape) not in (3, 4):
        raise bad(f"an input of shape {list(shape)} takes no image", "images go into [N, C, H, W] or [N, H, W, C]")
    inner = shape[-3:]
    wanted = spec.channels or (len(ORDER[spec.color]) if spec.color else None)
    layouts = {"NCHW": inner[0], "NHWC": inner[2]}
    # Without more knowledge 3 channels are likelier than 1, and those likelier than 4.
    guesses = ([name for name, extent in layouts.items() if extent == n] for n in ((wanted,) if wanted else (3, 1, 4)))
    fits = next(filter(None, guesses), [])
    if spec.layout:
        fits = [spec.layout] if layouts[spec.layout] in ((wanted,) if wanted else (1, 3, 4)) else []
    if len(fits) != 1:
        what = (
            f"the shape {list(shape)} does not say where the channels are"
            if fits
            else (
                f"the shape {list(shape)} has no {wanted or '1, 3 or 4'} channels"
                + (f" in the layout {spec.layout}" if spec.layout else "")
            )
        )
        raise bad(what, "layout: NCHW or NHWC" if fits else "check color, channels and layout")
    channels = layouts[fits[0]]
    color = spec.color or {1: "gray", 3: "RGB", 4: "RGBA"}[channels]
    expects = (inner[1], inner[2]) if fits[0] == "NCHW" else (inner[0], inner[1])
    final = spec.geometry()
    if final is not None and final != expects:
        raise bad(
            f"the steps end in {final[1]} x {final[0]}, the input takes {expects[1]} x {expects[0]} (width x height)"
        )
    if spec.dtype and np.dtype(dtype_of(info)).name != spec.dtype:
        raise bad(f"the spec says {spec.dtype}, the input takes {dtype_of(info).name}")
    axes = (2, 0, 1) if fits[0] == "NCHW" else (0, 1, 2)
    return _Plan(color, sample, axes, expects, _table(spec, channels, info, bad))


def _table(spec: ImageSpec, channels: int, info: InputInfo, bad: Callable[..., InputError]) -> Array:
    """What each pixel value becomes: [channels, 256] of the input's dtype."""
    dtype = dtype_of(info)
    columns = {"scale": spec.scale, "offset": spec.offset, "mean": spec.mean, "std": spec.std}
    wrong = [
        f"{key} has {len(v)} values" for key, v in columns.items() if v is not None and len(v) not in (1, channels)
    ]
    if wrong:
        raise bad(f"{', '.join(wrong)}; the input has {channels} channels", "give one value, or one a channel")
    scale, offset, mean, std = (
        np.asarray(v if v is not None else default, np.float64)[:, None]
        for v, default in zip(columns.values(), ((1.0,), (0.0,), (0.0,), (1.0,)), strict=True)
    )
    real = np.broadcast_to((np.arange(256) * scale + offset - mean) / std, (channels, 256))
    if dtype.kind not in "iub":
        if spec.quantize:
            raise bad(f"quantize needs an integer input, this one is {dtype.name}")
        return real.astype(np.float32).astype(dtype) if dtype.itemsize < 4 else real.astype(dtype)
    if dtype.kind == "b":
        raise bad("a bool input takes no image")
    limits = np.iinfo(dtype)
    if spec.quantize:
        codes = np.rint(real / spec.quantize.scale) - spec.quantize.offset
        saturated: Array = np.clip(codes, limits.min, limits.max).astype(dtype)
        return saturated
    codes = np.rint(real)
    if codes.min() < limits.min or codes.max() > limits.max:
        raise bad(
            f"the numbers {codes.min():g} to {codes.max():g} do not fit {dtype.name}", "quantize: {scale, offset}"
        )
    return codes.astype(dtype)


def input_extents(recipe: Preprocessing, info: InputInfo) -> tuple[int, int] | None:
    """Height and width of the pictures that an input takes by `recipe`; None where it takes none."""
    spec = recipe.spec(info)
    try:
        plan = _plan(spec or ImageSpec(), info)
    except InputError:
        return None
    if isinstance(plan.expects, tuple):
        return plan.expects
    return spec.geometry() if spec is not None else None


# --- pixels ---


def _working(spec: ImageSpec, image: Path | str | npt.ArrayLike, color: str, where: str) -> Pixels:
    """The image as grey, RGB or RGBA pixels, as the model's colours need it."""
    from PIL import Image

    if isinstance(image, Path | str):
        pixels = _frame(spec, Path(image)) if spec.source in YUV else files.read_image(image)
    else:
        pixels = _given(spec, np.asarray(image), where)
    wanted = _WORKING[len(ORDER[color])]
    held = _WORKING[pixels.shape[2]]
    if held == wanted:
        return pixels
    converted = Image.fromarray(pixels[..., 0] if held == "L" else pixels, held).convert(wanted)
    return np.asarray(converted, np.uint8).reshape(*pixels.shape[:2], -1)


def _frame(spec: ImageSpec, path: Path) -> Pixels:
    assert spec.frame is not None
    height, width = spec.frame
    data = np.frombuffer(files.map_file(path), np.uint8)
    if data.size != height * width * 3 // 2:
        raise InputError(
            f"an {spec.source} frame of {width} x {height} has {height * width * 3 // 2} bytes, the file {data.size}",
            where=str(path),
            hint="frame: [height, width]",
        )
    return yuv_to_rgb(data.reshape(height * 3 // 2, width), str(spec.source), spec.range == "full")


def _given(spec: ImageSpec, pixels: Array, where: str) -> Pixels:
    source = spec.source or {2: "gray"}.get(pixels.ndim) or {1: "gray", 4: "RGBA"}.get(pixels.shape[-1], "RGB")
    flat = pixels[..., 0] if source in (*YUV, "gray") and pixels.ndim == 3 and pixels.shape[2] == 1 else pixels
    expected = 2 if source in (*YUV, "gray") else 3
    fits = flat.ndim == expected and (expected == 2 or flat.shape[2] == len(ORDER[source])) and flat.size > 0
    if flat.dtype != np.uint8 or not fits:
        raise InputError(
            f"{source} pixels are uint8 [height, width{'' if expected == 2 else f', {len(ORDER[source])}'}], "
            f"this is {pixels.dtype} {list(pixels.shape)}",
            where=where,
        )
    if source in YUV:
        if flat.shape[0] % 3 or flat.shape[1] % 2:
            raise InputError(f"no {source} frame has {flat.shape[0]} rows of {flat.shape[1]} bytes", where=where)
        return yuv_to_rgb(flat.astype(np.uint8), source, spec.range == "full")
    if source == "gray":
        return np.ascontiguousarray(flat[..., None], np.uint8)
    # Each of these orders is its own inverse.
    return np.ascontiguousarray(flat[..., list(ORDER[source])], np.uint8)


def _geometry(spec: ImageSpec, pixels: Pixels, where: str) -> Pixels:
    from PIL import Image

    if spec.resize:
        height, width = spec.resize.target(*pixels.shape[:2])
        name = {"area": "BOX"}.get(spec.resize.method, spec.resize.method.upper())
        image = Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels)
        resized = image.resize((width, height), Image.Resampling[name])
        pixels = np.asarray(resized, np.uint8).reshape(height, width, -1)
    if spec.crop:
        height, width = pixels.shape[:2]
        left, top, right, bottom = spec.crop.window(height, width)
        if left < 0 or top < 0 or right > width or bottom > height:
            raise InputError(
                f"the crop {right - left} x {bottom - top} at {left}, {top} leaves the image of {width} x {height}",
                where=where,
                hint="resize first, or crop less",
            )
        pixels = pixels[top:bottom, left:right]
    return pixels


def _padded(spec: ImageSpec, pixels: Pixels, where: str) -> Pixels:
    if not spec.pad:
        return pixels
    (rows, columns), (height, width) = spec.pad.size, pixels.shape[:2]
    if height > rows or width > columns:
        raise InputError(f"the image of {width} x {height} is larger than the pad to {columns} x {rows}", where=where)
    if len(spec.pad.value) not in (1, pixels.shape[2]):
        raise InputError(f"pad.value has {len(spec.pad.value)} values for {pixels.shape[2]} channels", where=where)
    result = np.empty((rows, columns, pixels.shape[2]), np.uint8)
    result[:] = np.asarray(spec.pad.value).astype(np.uint8)
    top, left = spec.pad.place(height, width)
    result[top : top + height, left : left + width] = pixels
    return result


# --- NV12 and NV21 ---

_KR, _KB = 0.299, 0.114  # BT.601: the shares of red and blue in luma
# Zero of luma, extent of luma, extent of chroma (full as JFIF has it).
_RANGES = {True: (0.0, 255.0, 255.0), False: (16.0, 219.0, 224.0)}


def yuv_to_rgb(frame: Pixels, order: str, full: bool) -> Pixels:
    """RGB pixels [H, W, 3] of an NV12 or NV21 frame [H * 3 / 2, W] by BT.601; a pair of chroma serves 2 by 2 pixels."""
    height = frame.shape[0] * 2 // 3
    zero, luma, chroma = _RANGES[full]
    y = (frame[:height].astype(np.float64) - zero) / luma
    pairs = (frame[height:].reshape(height // 2, -1, 2).astype(np.float64) - 128.0) / chroma
    pairs = pairs.repeat(2, axis=0).repeat(2, axis=1)
    cb, cr = (pairs[..., i] for i in ((0, 1) if order == "NV12" else (1, 0)))
    red = y + 2 * (1 - _KR) * cr
    blue = y + 2 * (1 - _KB) * cb
    green = (y - _KR * red - _KB * blue) / (1 - _KR - _KB)
    return _rounded(np.stack([red, green, blue], -1) * 255.0)


def rgb_to_yuv(pixels: Pixels, order: str, full: bool) -> Pixels:
    """An NV12 or NV21 frame [H * 3 / 2, W] of RGB pixels by BT.601; chroma is the mean of 2 by 2 pixels.

    Raises:
        InputError: an odd height or width.
    """
    height, width = pixels.shape[:2]
    if height % 2 or width % 2:
        raise InputError(f"{order} needs an even height and width, the image is {width} x {height}")
    zero, luma, chroma = _RANGES[full]
    red, green, blue = (pixels[..., i].astype(np.float64) / 255.0 for i in range(3))
    y = _KR * red + (1 - _KR - _KB) * green + _KB * blue
    cb, cr = (blue - y) / (2 * (1 - _KB)), (red - y) / (2 * (1 - _KR))
    halves = [
        c.reshape(height // 2, 2, width // 2, 2).mean((1, 3)) for c in ((cb, cr) if order == "NV12" else (cr, cb))
    ]
    chromas = (np.stack(halves, -1) * chroma + 128.0).reshape(height // 2, width)
    return _rounded(np.concatenate([y * luma + zero, chromas]))


def _rounded(values: npt.NDArray[np.float64]) -> Pixels:
    return np.clip(np.rint(values), 0, 255).astype(np.uint8, copy=False)

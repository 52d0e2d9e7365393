# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""A preprocessing spec as AIPP, which does it on an Ascend chip; what AIPP cannot express is refused by its key.

Where the numbers are the same up to float16 nothing is said; a colour conversion is done in the chip's 8-bit integers
and differs by a few of 255 counts, which the notes say.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from npukit.analysis.preprocess_spec import ImageSpec
from npukit.ascend.aipp import RGB_TO_GRAY, YUV_TO_RGB, Aipp, Matrix
from npukit.errors import Fault, InputError

# How each source lies in memory -> AIPP's format, swap of R and B (or U and V), colour kind. ARGB32 is B, G, R, A.
_SOURCES = {
    "RGB": ("RGB888_U8", False, "rgb"),
    "BGR": ("RGB888_U8", True, "rgb"),
    "RGBA": ("XRGB8888_U8", False, "rgb"),
    "ARGB32": ("XRGB8888_U8", True, "rgb"),
    "gray": ("YUV400_U8", False, "gray"),
    "NV12": ("YUV420SP_U8", False, "yuv"),
    "NV21": ("YUV420SP_U8", True, "yuv"),
}
_NOTE = "colours are converted in the chip's integers, which differs from npukit's own by up to {} of 255"
_WORST = {"yuv": 1, "gray": 2}
"""Largest difference of AIPP's colour conversions from npukit's own in counts, over all 2**24 colours (measured)."""


@dataclass(frozen=True)
class Translation:
    """A spec as AIPP, and what one should know of it."""

    aipp: Aipp
    shape: tuple[int, ...]
    notes: tuple[str, ...] = ()


def translate(
    spec: ImageSpec, name: str, shape: Sequence[int], dtype: str, rank: int = 0, image: tuple[int, int] | None = None
) -> Translation:
    """The steps of `spec` for an input as AIPP on a 310P.

    Args:
        spec: the steps.
        name: the input's name.
        shape: its shape, [N, C, H, W].
        dtype: its dtype, "float32" or "float16".
        rank: its place among the model's inputs.
        image: height and width of the pictures that will come in; without, those of the spec's frame, or the input's.

    Raises:
        InputError: what AIPP cannot do, every key of it.
    """
    faults = _not_for_aipp(spec, shape, dtype)
    if faults:
        raise InputError(f"AIPP cannot do this for the input {name!r}", faults=faults)
    batch, channels, height, width = (int(extent) for extent in shape)
    source = spec.source or ("gray" if channels == 1 else "RGB")
    color = spec.color or ("gray" if channels == 1 else "RGB")
    form, swapped, kind = _SOURCES[source]
    matrix, subtract, add = _conversion(kind, color, spec.range)
    swap = swapped if kind == "yuv" or color == "gray" else swapped != (color == "BGR")
    size = image or spec.frame or (height, width)
    crop, padding = _geometry(spec, size, faults)
    mean, minimum, reciprocal = _numbers(spec, channels, faults)
    aipp = Aipp(
        form, rank, size, swap, False, crop, matrix, subtract, add, mean, minimum, reciprocal, padding,
        _padding_value(spec, channels, faults),
    )  # fmt: skip
    faults += aipp.faults()
    made = _after(aipp, size)
    if not faults and made != (height, width):
        what = f"the steps end in {made[1]} x {made[0]}, the input takes {width} x {height} (width x height)"
        faults.append(Fault(what, "crop", "AIPP does not resize: crop or pad to the input's size, or say --aipp-image"))
    if faults:
        raise InputError(f"AIPP cannot do this for the input {name!r}", faults=faults)
    worst = _WORST["yuv" if kind == "yuv" else "gray"]
    return Translation(aipp, aipp.shape(batch, *size), (_NOTE.format(worst),) if matrix else ())


def _not_for_aipp(spec: ImageSpec, shape: Sequence[int], dtype: str) -> list[Fault]:
    """The keys that have no counterpart."""
    found = []

    def refuse(wrong: bool, what: str, where: str, hint: str = "") -> None:
        if wrong:
            found.append(Fault(what, where, hint))

    refuse(spec.resize is not None, "AIPP does not resize", "resize", "resize before, and give pictures of that size")
    refuse(spec.quantize is not None, "AIPP gives float16, no codes", "quantize", "leave it out")
    refuse(spec.layout == "NHWC", "with AIPP an ONNX input is [N, C, H, W]", "layout")
    refuse(dtype not in ("float32", "float16"), f"AIPP feeds a float input, this one is {dtype}", "dtype")
    static = len(shape) == 4 and all(isinstance(extent, int) and extent > 0 for extent in shape)
    refuse(not static, f"AIPP feeds an input [N, C, H, W] of fixed size, this one is {list(shape)}", "shape")
    if static:
        refuse(shape[1] not in (1, 3), f"AIPP makes 1 or 3 channels, the input has {shape[1]}", "channels",
               "two pictures in one input have to be made ready before")  # fmt: skip
    color, source = spec.color, spec.source
    refuse(color not in (None, "RGB", "BGR", "gray"), f"AIPP does not make {color}", "color", "RGB, BGR or gray")
    if static and shape[1] in (1, 3):
        gray = shape[1] == 1
        refuse(color is not None and (color == "gray") != gray, f"the input has {shape[1]} channels", "color")
        refuse(source == "gray" and not gray, "AIPP does not make colours of grey", "source")
        refuse(source in ("NV12", "NV21") and gray, "AIPP takes luma as it is for grey, npukit does not", "source",
               "give grey pictures: source: gray")  # fmt: skip
    return found


def _conversion(
    kind: str, color: str, span: str | None
) -> tuple[Matrix | None, tuple[int, int, int] | None, tuple[int, int, int] | None]:
    """Matrix, input bias and output bias from a colour kind to the model's colour."""
    if kind == "yuv":
        rows, bias = YUV_TO_RGB[str(span)]
        return (rows if color == "RGB" else (rows[2], rows[1], rows[0])), bias, None
    if kind == "rgb" and color == "gray":
        return RGB_TO_GRAY, None, (0, 0, 0)
    return None, None, None


Box = tuple[int, int, int, int]


def _geometry(spec: ImageSpec, size: tuple[int, int], faults: list[Fault]) -> tuple[Box | None, Box | None]:
    """Crop (left, top, width, height) and padding (left, right, top, bottom)."""
    height, width = size
    crop = None
    if spec.crop:
        left, top, right, bottom = spec.crop.window(height, width)
        crop = (left, top, right - left, bottom - top)
        height, width = bottom - top, right - left
    if not spec.pad:
        return crop, None
    rows, columns = spec.pad.size[0] - height, spec.pad.size[1] - width
    if rows < 0 or columns < 0:
        faults.append(Fault(f"the picture of {width} x {height} is larger than the pad", "pad"))
        return crop, None
    share = {"end": 0, "start": 2, "both": 1}[spec.pad.where]
    left, top = columns * share // 2, rows * share // 2
    return crop, (left, columns - left, top, rows - top)


def _after(aipp: Aipp, size: tuple[int, int]) -> tuple[int, int]:
    """Height and width behind AIPP."""
    width, height = (aipp.crop[2], aipp.crop[3]) if aipp.crop else (size[1], size[0])
    left, right, top, bottom = aipp.padding or (0, 0, 0, 0)
    return height + top + bottom, width + left + right


def _each(
    values: tuple[float, ...] | None, default: float, channels: int, key: str, faults: list[Fault]
) -> list[float]:
    values = values or (default,)
    if len(values) not in (1, channels):
        faults.append(Fault(f"{len(values)} values, the input has {channels} channels", key))
    return [values[i % len(values)] for i in range(channels)]


def _affine(spec: ImageSpec, channels: int, faults: list[Fault]) -> tuple[list[float], list[float]]:
    """Shift t and factor f of each channel, where real = (pixel - t) * f = (pixel * scale + offset - mean) / std."""
    columns = [
        _each(values, default, channels, key, faults)
        for key, values, default in (
            ("scale", spec.scale, 1.0), ("offset", spec.offset, 0.0), ("mean", spec.mean, 0.0), ("std", spec.std, 1.0),
        )
    ]  # fmt: skip
    shift = [(mean - offset) / scale if scale else math.nan for scale, offset, mean, _ in zip(*columns, strict=True)]
    return shift, [scale / std for scale, _, _, std in zip(*columns, strict=True)]


def _numbers(
    spec: ImageSpec, channels: int, faults: list[Fault]
) -> tuple[tuple[int, ...], tuple[float, ...], tuple[float, ...]]:
    """mean_chn, min_chn and var_reci_chn; min_chn holds what mean_chn, a whole number, leaves."""
    shift, factor = _affine(spec, channels, faults)
    if any(math.isnan(t) for t in shift):
        faults.append(Fault("a scale of 0 makes all pictures the same", "scale"))
        return (), (), ()
    low, high = min(shift), max(shift)
    if low < 0 or high > 510:
        key = "offset" if spec.offset else "mean"
        what = f"AIPP subtracts 0 to 510 from a pixel, here {low if low < 0 else high:.6g} would be needed"
        faults.append(Fault(what, key, "do it in the model"))
        return (), (), ()
    with np.errstate(over="ignore"):
        coarse = [f for f in factor if abs(float(np.float16(f)) - f) > abs(f) * 2**-11]
    if coarse:
        faults.append(Fault(f"the factor {coarse[0]:.6g} has no float16 of its precision", "scale"))
        return (), (), ()
    if not any(shift) and all(f == 1.0 for f in factor):
        return (), (), ()
    mean = tuple(min(int(t), 255) for t in shift)
    minimum = tuple(float(np.float16(t - m)) for t, m in zip(shift, mean, strict=True))
    return mean, minimum, tuple(float(np.float16(f)) for f in factor)


def _padding_value(spec: ImageSpec, channels: int, faults: list[Fault]) -> float:
    """What AIPP pads with: it does so behind the normalization, with one number for all channels."""
    if spec.pad is None:
        return 0.0
    shift, factor = _affine(spec, channels, [])
    pixels = _each(spec.pad.value, 0.0, channels, "pad.value", faults)
    values = [(p - t) * f for p, t, f in zip(pixels, shift, factor, strict=True)]
    if max(values) - min(values) > 2**-11 * max(1e-6, *map(abs, values)):
        shown = ", ".join(f"{value:.4g}" for value in values)
        what = f"AIPP pads all channels with one number behind mean and std, here they would be {shown}"
        faults.append(Fault(what, "pad.value", "pad before, or choose pixel values that come to one number"))
    return float(np.float16(values[0]))

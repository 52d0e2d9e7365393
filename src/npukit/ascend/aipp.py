# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""AIPP, the image preprocessing of Ascend chips: its parameters, their limits on the 310P, and its configuration file.

The steps and their order are the chip's: channel swap, crop, colour conversion, (pixel - mean - min) * reciprocal,
padding. There is no resize. With AIPP the OM takes uint8 pixels [N, H, W, C]. Facts: ascend_facts.md 1.5.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from npukit.errors import Fault

Matrix = tuple[tuple[int, int, int], tuple[int, int, int], tuple[int, int, int]]

CHANNELS = {"YUV420SP_U8": 1, "XRGB8888_U8": 4, "RGB888_U8": 3, "YUV400_U8": 1}
"""Input formats, and the extent of C in the OM's input."""

# Rows give the model's channels, columns are Y, U, V or R, G, B; sums are shifted right by 8. The documents' values.
YUV_TO_RGB: dict[str, tuple[Matrix, tuple[int, int, int]]] = {
    "full": (((256, 0, 359), (256, -88, -183), (256, 454, 0)), (0, 128, 128)),
    "limited": (((298, 0, 409), (298, -100, -208), (298, 516, 0)), (16, 128, 128)),
}
"""BT.601 by range: the matrix and what is subtracted first."""
RGB_TO_GRAY: Matrix = ((76, 150, 30), (0, 0, 0), (0, 0, 0))

_SOURCE_W, _SOURCE_H = (2, 4096), (1, 4096)
_MOST_START = 4095
_MOST_PADDING = 32
_MOST_PADDED_WIDTH = 1080  # 310P; others 4096
_FLOAT16_MAX = 65504.0


@dataclass(frozen=True)
class Aipp:
    """What AIPP does with one input, for all pictures the same (the documents' "static").

    Attributes:
        input_format: a key of `CHANNELS`.
        rank: which of the model's inputs it is for.
        source: height and width of the picture that comes in; None takes the model's (no crop, no padding).
        swap: R and B, or U and V, change places.
        swap_alpha: the fourth channel comes first.
        crop: left, top, width, height.
        matrix: colour conversion, None for none.
        input_bias: subtracted before the matrix (from YUV).
        output_bias: added behind it (to YUV or grey).
        mean: per channel, whole numbers 0 to 255.
        minimum: per channel, subtracted as well.
        reciprocal: per channel, multiplied with.
        padding: left, right, top, bottom.
        padding_value: what is put there, as a value of the model's input.
    """

    input_format: str
    rank: int = 0
    source: tuple[int, int] | None = None
    swap: bool = False
    swap_alpha: bool = False
    crop: tuple[int, int, int, int] | None = None
    matrix: Matrix | None = None
    input_bias: tuple[int, int, int] | None = None
    output_bias: tuple[int, int, int] | None = None
    mean: tuple[int, ...] = ()
    minimum: tuple[float, ...] = ()
    reciprocal: tuple[float, ...] = ()
    padding: tuple[int, int, int, int] | None = None
    padding_value: float = 0.0

    def faults(self) -> list[Fault]:
        """Everything that is beyond the limits of the 310P."""
        return [Fault(what, place) for wrong, place, what in self._checks() if wrong]

    def _checks(self) -> Iterable[tuple[bool, str, str]]:
        yield self.input_format not in CHANNELS, "input_format", f"AIPP reads {', '.join(CHANNELS)}"
        even = self.input_format == "YUV420SP_U8"
        if self.source is not None:
            height, width = self.source
            yield not _in(width, _SOURCE_W), "source", f"a width of {width} is beyond {_span(_SOURCE_W)}"
            yield not _in(height, _SOURCE_H), "source", f"a height of {height} is beyond {_span(_SOURCE_H)}"
            yield even and bool(height % 2 or width % 2), "source", "YUV420SP needs an even height and width"
        elif self.crop or self.padding:
            yield True, "source", "crop and padding need the size of the picture that comes in"
        if self.crop is not None and self.source is not None:
            left, top, width, height = self.crop
            inside = left + width <= self.source[1] and top + height <= self.source[0]
            yield not inside or min(left, top) < 0 or min(width, height) < 1, "crop", "it leaves the picture"
            yield max(left, top) > _MOST_START, "crop", f"it begins beyond {_MOST_START}"
            yield even and bool(left % 2 or top % 2), "crop", "it begins at an odd pixel, YUV420SP needs an even one"
        if self.padding is not None and self.source is not None:
            most = max(self.padding)
            yield most > _MOST_PADDING, "pad", f"{most} pixels on one side, AIPP adds at most {_MOST_PADDING}"
            width = (self.crop[2] if self.crop else self.source[1]) + self.padding[0] + self.padding[1]
            yield width > _MOST_PADDED_WIDTH, "pad", f"{width} pixels wide, a 310P pads up to {_MOST_PADDED_WIDTH}"
        yield any(not 0 <= m <= 255 for m in self.mean), "mean", "AIPP subtracts 0 to 255"
        yield any(not 0 <= m <= 255 for m in self.minimum), "mean", "AIPP subtracts 0 to 255 (min_chn)"
        yield any(abs(r) > _FLOAT16_MAX for r in self.reciprocal), "std", "the factor is beyond float16"

    def to_text(self) -> str:
        """The block of the configuration file, in the protobuf text format."""
        lines: list[tuple[str, object]] = [("aipp_mode", "static"), ("related_input_rank", self.rank)]
        lines += [("input_format", self.input_format)]
        if self.source is not None:
            lines += [("src_image_size_w", self.source[1]), ("src_image_size_h", self.source[0])]
        lines += [("rbuv_swap_switch", True)] if self.swap else []
        lines += [("ax_swap_switch", True)] if self.swap_alpha else []
        if self.crop is not None:
            names = ("load_start_pos_w", "load_start_pos_h", "crop_size_w", "crop_size_h")
            lines += [("crop", True), *zip(names, self.crop, strict=True)]
        if self.matrix is not None:
            lines += [("csc_switch", True)]
            lines += [(f"matrix_r{i}c{j}", v) for i, row in enumerate(self.matrix) for j, v in enumerate(row)]
            lines += _each("input_bias_{}", self.input_bias or ())
            lines += _each("output_bias_{}", self.output_bias or ())
        lines += _each("mean_chn_{}", self.mean)
        lines += _each("min_chn_{}", self.minimum)
        lines += _each("var_reci_chn_{}", self.reciprocal)
        if self.padding is not None:
            names = ("left_padding_size", "right_padding_size", "top_padding_size", "bottom_padding_size")
            lines += [("padding", True), *zip(names, self.padding, strict=True), ("padding_value", self.padding_value)]
        return "aipp_op {\n" + "".join(f"  {key}: {_value(value)}\n" for key, value in lines) + "}\n"

    def shape(self, batch: int, height: int, width: int) -> tuple[int, ...]:
        """Shape of the OM's uint8 input, where the model's has this batch, height and width."""
        rows, columns = self.source or (height, width)
        if self.input_format == "YUV420SP_U8":
            rows = rows * 3 // 2
        return batch, rows, columns, CHANNELS[self.input_format]


def _each(form: str, values: Sequence[object]) -> list[tuple[str, object]]:
    return [(form.format(i), value) for i, value in enumerate(values)]


def _value(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return repr(value) if isinstance(value, float) else str(value)


def _in(value: int, limits: tuple[int, int]) -> bool:
    return limits[0] <= value <= limits[1]


def _span(limits: tuple[int, int]) -> str:
    return f"{limits[0]} to {limits[1]}"


def config(parts: Iterable[Aipp]) -> str:
    """The text of a configuration file (`--insert_op_conf`) with one block an input."""
    return "".join(part.to_text() for part in parts)

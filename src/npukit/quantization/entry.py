# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""What one line of an encodings file asks for, in one form for every version of the format."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import numpy as np

from npukit.errors import NpukitError
from npukit.qnn.graph import DType, Encoding


class EncodingsError(NpukitError):
    """An encodings file that cannot be meant; `faults` lists every entry at fault with its line."""

    code = "encodings"


@dataclass(frozen=True)
class Blocks:
    """Blockwise scales of a weight: `Entry.scales` has one scale a block (BLOCK), or one a channel (LPBQ).

    Attributes:
        size: elements of a block.
        axis: source axis that is cut into blocks; None where the file does not say.
        scales: LPBQ integer scales, channels outer and blocks inner; None for BLOCK.
        bits: LPBQ bits of the grid that the integer scales refine (8 for 4-bit weights); 0 for BLOCK.
        rank: axes of the source value, where the file shows them; 2 otherwise.
        channels: number of channels, 0 where the file does not say it.
    """

    size: int
    axis: int | None = None
    scales: tuple[int, ...] | None = None
    bits: int = 0
    rank: int = 2
    channels: int = 0


@dataclass(frozen=True)
class Entry:
    """What an encodings file says about one value: `real = (code + offset) * scale`.

    Attributes:
        name: the value in the source model.
        kind: "activation" or "param"; 2.0.0 does not say, there signed and per-channel entries are params.
        bitwidth: bits of a code, or of a float.
        dtype: "int" or "float".
        scales: as the file has them (float64); one, one a channel or one a block; empty where only the precision is
            asked for.
        offsets: as many integers, for codes of the sign that `signed` says.
        signed: whether codes are -2^(b-1) .. 2^(b-1)-1 instead of 0 .. 2^b-1.
        symmetric: whether the file calls the entry symmetric.
        axis: channel axis of the source value; None for one scale, or where the file does not say it.
        blocks: blockwise scales, or None.
        line: line of the file, 1 for the first; 0 for none.
    """

    name: str
    kind: str
    bitwidth: int
    dtype: str = "int"
    scales: tuple[float, ...] = ()
    offsets: tuple[int, ...] = ()
    signed: bool = False
    symmetric: bool = False
    axis: int | None = None
    blocks: Blocks | None = None
    line: int = 0

    @property
    def per_channel(self) -> bool:
        """Whether there is one scale a channel (of one channel too, where the file says the axis)."""
        return len(self.scales) > 1 or self.axis is not None

    @property
    def only_precision(self) -> bool:
        """Whether bits and dtype are asked for, but no numbers."""
        return self.dtype == "int" and not self.scales

    def offsets_for(self, *, signed: bool) -> tuple[int, ...]:
        """The offsets for stored codes of this sign: the same real values."""
        shift = (signed - self.signed) * 2 ** (self.bitwidth - 1)
        return tuple(offset + shift for offset in self.offsets)

    def encoding(self, dtype: DType) -> Encoding:
        """The encoding of a tensor of `dtype`; `axis` must be the tensor's. Scales are rounded to float32.

        Raises:
            ValueError: an entry without numbers, or of a dtype that is not quantized.
        """
        if not self.scales or not dtype.is_quantized:
            raise ValueError(f"{self.name!r} has no encoding in {dtype.name}")
        signed = 0x0300 <= dtype < 0x0400
        bits = self.bitwidth if self.bitwidth < dtype.bits else 0
        scales = tuple(float(np.float32(scale)) for scale in self.scales)
        axis = self.axis if self.per_channel else None
        made = Encoding(scales, self.offsets_for(signed=signed), axis=axis, bitwidth=bits)
        if self.blocks is None:
            return made
        if self.blocks.scales is None:
            raise ValueError(f"{self.name!r} has blocks that no QNN op takes")
        count = len(self.blocks.scales) // len(scales)
        extra = self.blocks.bits - self.bitwidth
        return dataclasses.replace(made, block_scales=self.blocks.scales, blocks_per_axis=count, block_scale_bits=extra)

    def describe(self) -> str:
        """The entry in a few words: "int8 scale 0.0123 offset -128"."""
        kind = ("" if self.dtype == "float" or self.signed else "u") + f"{self.dtype}{self.bitwidth}"
        if not self.scales:
            return kind
        if self.blocks is not None:
            what = "LPBQ" if self.blocks.scales is not None else "blocks"
            return f"{kind} {what} of {self.blocks.size}, {len(self.scales)} scales"
        if self.per_channel:
            axis = "" if self.axis is None else f" on axis {self.axis}"
            low, high = min(self.scales), max(self.scales)
            return f"{kind} {len(self.scales)} channels{axis}, scales {low:.6g} to {high:.6g}"
        return f"{kind} scale {self.scales[0]:.9g} offset {self.offsets[0]}"

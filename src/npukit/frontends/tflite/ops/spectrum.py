# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""Complex numbers: pairs along one axis more than the file's tensor has, from the transform to what makes them real."""

from __future__ import annotations

import numpy as np

from npukit.frontends.tflite.builder import Builder
from npukit.frontends.tflite.registry import Refused, reads


@reads("RFFT2D")
def rfft_2d(b: Builder) -> None:
    """Real [..., h, w] -> complex [..., h, w / 2 + 1]; the input is cut or filled with zeros to the length."""
    height, width = b.ints(1, "length")
    x, shape = b.x(0), list(b.shape(0))
    for axis, size in ((-2, height), (-1, width)):
        if shape[axis] > size:
            x = b.node("Slice", x, b.vector([0]), b.vector([size]), b.vector([len(shape) + axis]))
        elif shape[axis] < size:
            pads = [0] * (2 * len(shape))
            pads[2 * len(shape) + axis] = size - shape[axis]
            x = b.node("Pad", x, b.vector(pads))
        shape[axis] = size
    x = b.reshape(x, [-1, height, width, 1])
    y = b.node("DFT", x, None, b.constant(np.int64(2)), onesided=1)
    if height > 1:
        y = b.node("DFT", y, None, b.constant(np.int64(1)))
    b.set(b.reshape(y, [*shape[:-1], width // 2 + 1, 2]))


@reads("REAL", "IMAG", "COMPLEX_ABS")
def part(b: Builder) -> None:
    """The real or imaginary part, or the magnitude."""
    if b.tensor(0).type_name != "COMPLEX64":
        raise Refused(f"numbers of {b.tensor(0).type_name}")
    z, axis = b.x(0), b.vector([b.rank()])
    if b.op.code == "COMPLEX_ABS":
        b.set(b.node("ReduceL2", z, axis, keepdims=0))
    else:
        index = b.constant(np.int64(b.op.code == "IMAG"))
        b.set(b.node("Gather", z, index, axis=b.rank()))

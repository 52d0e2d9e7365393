# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""Between codes and real numbers."""

from __future__ import annotations

import numpy as np

from npukit.frontends.tflite.builder import Builder, dequantized
from npukit.frontends.tflite.registry import reads


@reads("QUANTIZE")
def quantize(b: Builder) -> None:
    """Floats to codes, or codes of one encoding to those of another."""
    b.set(b.x())


@reads("DEQUANTIZE")
def dequantize(b: Builder) -> None:
    """Codes or float16 to float32; of a constant, here and now."""
    tensor = b.tensor(0)
    data = b.raw_data(0)
    if data is not None:
        if b.coded(tensor):
            b.note_float_weights()
            b.set_data(b.result(), dequantized(data, b.encoding_of(tensor)))
        else:
            b.set_data(b.result(), np.asarray(data, np.float32))
    elif b.coded(tensor):
        b.set(b.x())
    else:
        dtype = b.result().dtype
        assert dtype is not None
        b.set(b.cast(b.x(), dtype))


@reads("FAKE_QUANT")
def fake_quant(b: Builder) -> None:
    """Codes for a moment: the pair of Q and DQ becomes an encoding."""
    low, high = float(b.op.get("Min", 0.0)), float(b.op.get("Max", 0.0))
    bits = int(b.op.get("NumBits", 8))
    b.set(b.rounded(b.x(), low, high, bits, narrow=bool(b.op.get("NarrowRange", False))))

# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""Ops between number formats: encodings are applied where a tensor is read and written, so most only pass on."""

from __future__ import annotations

import onnx_ir as ir

from npukit.raising.emit import Emit
from npukit.raising.registry import raises


@raises("Quantize", "Dequantize", "Convert")
def _convert(e: Emit) -> ir.Value:
    """The real value goes on unchanged; the encodings of input and output do the rest."""
    return e.real()


@raises("Cast")
def _cast(e: Emit) -> ir.Value:
    """Cast works on stored codes and ignores encodings; floats truncate towards zero."""
    return e.codes()

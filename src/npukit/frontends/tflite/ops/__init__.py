# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""The builtin operators, by family; importing this registers all of them."""

from npukit.frontends.tflite.ops import elementwise, matrix, movement, quantize, reduce, spatial

__all__ = ["elementwise", "matrix", "movement", "quantize", "reduce", "spatial"]

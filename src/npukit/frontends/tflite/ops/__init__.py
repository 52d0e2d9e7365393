# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""The builtin operators, by family; importing this registers all of them."""

from npukit.frontends.tflite.ops import (
    boxes,
    control,
    elementwise,
    matrix,
    movement,
    quantize,
    recurrent,
    reduce,
    scatter,
    spatial,
    spectrum,
)

__all__ = [
    "boxes",
    "control",
    "elementwise",
    "matrix",
    "movement",
    "quantize",
    "recurrent",
    "reduce",
    "scatter",
    "spatial",
    "spectrum",
]

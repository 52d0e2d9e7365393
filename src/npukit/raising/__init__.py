# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""QNN graphs to ONNX: every graph runs on ONNX Runtime with every tensor observable, and opens in a viewer."""

from npukit.raising import (
    detection,
    elementwise,
    matrix,
    movement,
    norm,
    quantization,
    recurrent,
    reduce,
    sampling,
    spatial,
)
from npukit.raising.graph import newest_opset, raise_graph, refuse_foreign, unraised
from npukit.raising.htp_form import as_computed
from npukit.raising.registry import RAISERS, raises

__all__ = ["RAISERS", "as_computed", "newest_opset", "raise_graph", "raises", "refuse_foreign", "unraised"]

_FAMILIES = (
    detection,
    elementwise,
    matrix,
    movement,
    norm,
    quantization,
    recurrent,
    reduce,
    sampling,
    spatial,
)  # importing one registers its ops

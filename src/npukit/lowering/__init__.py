# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""ONNX -> QNN graph."""

from npukit.lowering.driver import Lowered, LowerOptions, NodeReport, handles, lower
from npukit.lowering.registry import Refused, Unsupported, lowers

__all__ = ["LowerOptions", "Lowered", "NodeReport", "Refused", "Unsupported", "handles", "lower", "lowers"]

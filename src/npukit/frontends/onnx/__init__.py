# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""The ONNX front end: any .onnx file becomes one normalized `onnx_ir.Model`, or one error that lists every fault."""

from npukit.frontends.onnx.expand_functions import expand_functions
from npukit.frontends.onnx.options import LoadOptions, Normalized
from npukit.frontends.onnx.pipeline import PIPELINE, load
from npukit.frontends.onnx.rewrite import origin_of

__all__ = ["PIPELINE", "LoadOptions", "Normalized", "expand_functions", "load", "origin_of"]

# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""The TensorFlow Lite front end: a .tflite file becomes one normalized `onnx_ir.Model`, channels last as it was."""

from npukit.frontends.tflite.load import DYNAMIC_RANGE, load, to_onnx

__all__ = ["DYNAMIC_RANGE", "load", "to_onnx"]

# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""The TensorFlow front end: frozen graphs, SavedModels and checkpoints with their meta graph become ONNX.

TensorFlow and tf2onnx do the reading, in a process of an interpreter that has them: npukit's own (extra `tensorflow`)
or another (`--tensorflow-python`). What a file is, and whether it would touch files, is decided before, without them.
"""

from npukit.frontends.tensorflow.convert import TensorFlowOptions, as_onnx
from npukit.frontends.tensorflow.kinds import kind_of

__all__ = ["TensorFlowOptions", "as_onnx", "kind_of"]

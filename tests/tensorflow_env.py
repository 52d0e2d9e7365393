# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""Where TensorFlow is, for the tests that need it: `make env-tensorflow`, or NPUKIT_TENSORFLOW_PYTHON."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

PYTHON = shutil.which(
    os.environ.get("NPUKIT_TENSORFLOW_PYTHON") or Path(__file__).parents[1] / ".venv-tensorflow/bin/python"
)
"""The interpreter with TensorFlow and tf2onnx; None where there is none."""

needs_tensorflow = pytest.mark.skipif(PYTHON is None, reason="needs TensorFlow: make env-tensorflow")

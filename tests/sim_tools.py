# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""Whether scenes can be rendered here, asked once in a process of its own: a missing OpenGL may end it."""

from __future__ import annotations

import functools
import os
import subprocess
import sys

import pytest

from npukit.sim import gl


@functools.cache
def why_not() -> str:
    """Why MuJoCo cannot render here; empty where it can."""
    code = "from npukit.sim import scene; scene.LightScene('reach_red', image_size=8).reset(seed=0)"
    try:
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    except subprocess.TimeoutExpired:
        return "OpenGL does not answer"
    errors = [line for line in done.stderr.splitlines() if "npukit.errors" in line]
    return "" if done.returncode == 0 else (errors or [f"exit status {done.returncode}"])[-1]


if why_not() == "":
    os.environ.update(gl.environment())
needs_rendering = pytest.mark.skipif(bool(why_not()), reason=f"MuJoCo cannot render here: {why_not()}")

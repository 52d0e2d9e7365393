# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""What is said where MuJoCo, OpenGL or PyAV are missing; that nothing of it is imported before it is used."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from sim_tools import needs_rendering

_RESET = "from npukit.sim import scene; scene.LightScene('reach_red').reset(seed=0)"


def _python(code: str, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, **variables}, capture_output=True, text=True, timeout=120
    )


@needs_rendering
def test_no_gl() -> None:
    done = _python(_RESET, MUJOCO_GL="nothing")
    assert "MissingDependency: MUJOCO_GL: MuJoCo cannot render: no OpenGL by way of nothing" in done.stderr
    assert "libegl1" in done.stderr


@pytest.mark.parametrize(
    ("module", "code", "says"),
    [
        ("mujoco", _RESET, "MuJoCo is not installed"),
        ("av", "from npukit.sim import video; video.require()", "PyAV is not installed"),
        ("gymnasium", "from npukit.sim import envs; envs.gymnasium_env('light', 'reach_red')", "gymnasium is not"),
    ],
)
def test_without_the_extra(module: str, code: str, says: str) -> None:
    done = _python(f"import sys; sys.modules[{module!r}] = None; {code}")
    assert f"MissingDependency: {says}" in done.stderr
    assert "pip install 'npukit[sim]'" in done.stderr


def test_modules_import_without_the_extra() -> None:
    """Everything but the wrapper for gymnasium, which is one, can be imported without the extra."""
    code = (
        "import sys\n"
        "for name in ('mujoco', 'gymnasium', 'av', 'torch', 'libero', 'robosuite'): sys.modules[name] = None\n"
        "from npukit.sim import (demonstrations, envs, episode, eval_verb, evaluate, expert, gl, init_states, libero,"
        " light, robosuite_tasks, scene, statistics, video)\n"
        "print([task.name for task in envs.tasks('robosuite')][0], len(envs.tasks('light')))"
    )
    done = _python(code)
    assert done.stdout.split() == ["Lift", "12"], done.stderr


@needs_rendering
def test_a_scene_left_open_ends_quietly() -> None:
    done = _python("from npukit.sim import scene; env = scene.LightScene('reach_red'); env.reset(seed=0)")
    assert (done.returncode, done.stderr) == (0, "")

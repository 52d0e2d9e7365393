# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""LIBERO's suites. Package and assets are the user's: nothing of LIBERO is part of npukit or required by it.

The protocol is that of the published evaluations (openvla, openpi, LeRobot): the listed initial states in order, ten
waiting steps with an idle action and open gripper, pictures turned by 180 degrees, step limits by suite, and the
instruction made from the task's file name.
"""

from __future__ import annotations

import ast
import contextlib
import importlib
import importlib.util
import io
import logging
import os
import re
import shutil
import sys
import tempfile
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from npukit.errors import InputError, MissingDependency, UsageError, nearest
from npukit.sim import gl, init_states
from npukit.sim.envs import Array, Observation, TaskInfo
from npukit.sim.panda import IMAGE_SIZE, PandaEnv

log = logging.getLogger(__name__)

STEP_LIMITS = {"libero_spatial": 220, "libero_object": 280, "libero_goal": 300, "libero_10": 520}
WAIT_STEPS = 10
IDLE = np.array([0, 0, 0, 0, 0, 0, -1], np.float64)  # no motion, gripper open

INSTALL = (
    "pip install --no-deps hf-libero==0.1.4 robosuite==1.4.1 bddl==1.0.1; "
    "pip install mujoco==3.3.2 'numpy<2' 'gym==0.26.2' easydict cloudpickle future matplotlib numba scipy "
    "opencv-python-headless termcolor tqdm"
)
ASSETS = (
    "git clone https://github.com/Lifelong-Robot-Learning/LIBERO; export LIBERO_ASSETS=$PWD/LIBERO/libero/libero/assets"
)


def instruction(name: str) -> str:
    """The instruction that a task's file name holds: without the scene's prefix, blanks for underscores."""
    return re.sub(r"^[A-Z_]*SCENE\d+_", "", name).replace("_", " ")


def tasks(env: str) -> tuple[TaskInfo, ...]:
    """The suite's tasks in LIBERO's order.

    Raises:
        MissingDependency: the package is not installed.
    """
    return tuple(TaskInfo(name, instruction(name), STEP_LIMITS[env]) for name in _names(env))


def make(env: str, task: str, image_size: int | None) -> LiberoEnv:
    """Open a task of a suite."""
    return LiberoEnv(env, task, image_size or IMAGE_SIZE)


def _root() -> Path:
    """The folder of the package's data. Its own module asks questions on import, so it is not imported here."""
    spec = importlib.util.find_spec("libero")
    for place in (spec.submodule_search_locations or ()) if spec else ():
        if Path(place, "libero", "benchmark", "libero_suite_task_map.py").is_file():
            return Path(place, "libero")
    raise MissingDependency("LIBERO is not installed", where="libero", hint=INSTALL)


def _names(suite: str) -> list[str]:
    path = _root() / "benchmark" / "libero_suite_task_map.py"
    try:
        tree = ast.parse(path.read_text("utf-8"))
        values = [
            ast.literal_eval(node.value)
            for node in tree.body
            if isinstance(node, ast.Assign) and [getattr(t, "id", "") for t in node.targets] == ["libero_task_map"]
        ]
        return [str(name) for name in values[0][suite]]
    except (OSError, SyntaxError, ValueError, IndexError, KeyError, TypeError) as error:
        raise InputError(f"cannot read LIBERO's list of tasks ({error})", where=str(path), hint=INSTALL) from error


def _assets(root: Path) -> Path:
    """Where the meshes are: LIBERO_ASSETS, or the places where LIBERO's own packages look and download to."""
    said = os.environ.get("LIBERO_ASSETS", "")
    places = [Path(said)] if said else [*_configured(), root / "assets", Path.home() / ".cache" / "libero" / "assets"]
    for place in places:
        if (place / "scenes").is_dir():
            return place
    what = f"LIBERO_ASSETS is {said!r}, where there are no scenes" if said else "LIBERO's assets are not installed"
    raise MissingDependency(what, where="LIBERO_ASSETS", hint=ASSETS)


def _configured() -> list[Path]:
    folder = os.environ.get("LIBERO_CONFIG_PATH") or os.path.expanduser("~/.libero")
    with contextlib.suppress(OSError, yaml.YAMLError, TypeError, KeyError):
        return [Path(yaml.safe_load(Path(folder, "config.yaml").read_text("utf-8"))["assets"])]
    return []


def _load(root: Path, assets: Path) -> Any:
    """The class `OffScreenRenderEnv`, imported without a question asked or a file of the user's changed.

    Raises:
        MissingDependency: something that LIBERO imports is not installed.
    """
    loaded = sys.modules.get("libero.libero")
    if loaded is None:
        # On import LIBERO asks on stdin where its files are unless it finds them written down.
        folder = tempfile.mkdtemp(prefix="npukit-libero-")
        paths = {
            "benchmark_root": root,
            "bddl_files": root / "bddl_files",
            "init_states": root / "init_files",
            "datasets": root.parent / "datasets",
            "assets": assets,
        }
        Path(folder, "config.yaml").write_text(yaml.safe_dump({k: str(v) for k, v in paths.items()}), "utf-8")
        os.environ["LIBERO_CONFIG_PATH"] = folder
        weakref.finalize(_load, shutil.rmtree, folder, ignore_errors=True)
    os.environ.update(gl.environment())
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            package = importlib.import_module("libero.libero")
            # The packages of the index fetch assets from a hub unless they already know where they are.
            package._assets_path_cache = str(assets)  # type: ignore[attr-defined]
            module = importlib.import_module("libero.libero.envs")
    except ImportError as error:
        raise MissingDependency(f"LIBERO cannot be imported: {error}", where="libero", hint=INSTALL) from error
    return module.OffScreenRenderEnv


class LiberoEnv(PandaEnv):
    """One task of LIBERO, with pictures turned by 180 degrees.

    Args:
        suite: name of the suite.
        task: name of the task.
        image_size: edge of the pictures in pixels.

    Raises:
        UsageError: no such task.
        MissingDependency: package, assets or OpenGL are not there; the hint has the lines to install them.
    """

    def __init__(self, suite: str, task: str, image_size: int) -> None:
        root = _root()
        known = _names(suite)
        if task not in known:
            raise UsageError(f"{suite} has no task {task!r}", hint=nearest(task, known))
        self.instruction = instruction(task)
        self.step_limit = STEP_LIMITS[suite]
        self.initial = init_states.read(root / "init_files" / suite / f"{task}.pruned_init")
        kind = _load(root, _assets(root))
        bddl = root / "bddl_files" / suite / f"{task}.bddl"
        if not bddl.is_file():
            raise InputError("the task's description is missing", where=str(bddl), hint=INSTALL)
        try:
            super().__init__(kind(bddl_file_name=str(bddl), camera_heights=image_size, camera_widths=image_size))
        except (FileNotFoundError, ValueError) as error:
            if isinstance(error, ValueError) and "opening file" not in str(error):  # MuJoCo's words
                raise
            what = f"an asset of LIBERO is missing: {error}"
            raise MissingDependency(what, where="LIBERO_ASSETS", hint=ASSETS) from error

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Put the task's initial state number `options["episode"]` (modulo their count) and wait until it has settled.

        Args:
            seed: of LIBERO's own random numbers.
            options: "episode", the number of the initial state [0].
        """
        index = int((options or {}).get("episode", 0)) % len(self.initial)
        self._env.seed(seed)
        self._env.reset()
        self._raw = self._env.set_init_state(self.initial[index])
        for _ in range(WAIT_STEPS):
            self._raw, *_ = self._env.step(IDLE.tolist())
        return self._observe(), {"seed": seed, "initial_state": index, "success": False}

    def _turned(self, picture: Array) -> Array:
        return picture[::-1, ::-1]

    def _succeeded(self, done: bool) -> bool:
        return done

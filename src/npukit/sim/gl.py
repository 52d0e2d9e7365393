# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""Headless OpenGL for MuJoCo: which library to use, and a sentence where there is none.

MuJoCo reads `MUJOCO_GL` when it is imported. Without a display EGL is right (Mesa's software renderer does, tried);
OSMesa is the other way on Linux. On macOS and Windows MuJoCo's own choice stands.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import sys
import weakref
from typing import Any

from npukit.errors import MissingDependency, NpukitError

HINT = (
    "install Mesa's EGL (Debian: apt install libegl1 libgl1-mesa-dri), or OSMesa (apt install libosmesa6) and set "
    "MUJOCO_GL=osmesa"
)
EXTRA = "pip install 'npukit[sim]'"


_renderers: weakref.WeakSet[Any] = weakref.WeakSet()


def _close_all() -> None:
    """Close what is still open before OpenGL goes: afterwards MuJoCo's own closing prints errors."""
    for one in list(_renderers):
        with contextlib.suppress(Exception):
            one.close()


def environment() -> dict[str, str]:
    """The variables that a process needs before it imports MuJoCo; what the user has set stands.

    Frames are small and several processes render at once, so Mesa's software renderer gets one thread each.
    """
    wanted = {"MUJOCO_GL": "egl"} if sys.platform == "linux" else {}
    wanted |= {"LP_NUM_THREADS": "1"}
    return {name: value for name, value in wanted.items() if not os.environ.get(name)}


def load() -> Any:
    """The module `mujoco`, set up for headless rendering.

    Raises:
        MissingDependency: MuJoCo is not installed, or the OpenGL library that it was told to use is not there.
    """
    if "mujoco" not in sys.modules:
        os.environ.update(environment())
    try:
        import mujoco
    except ImportError as error:
        if (error.name or "").partition(".")[0] == "mujoco":
            raise MissingDependency("MuJoCo is not installed", hint=EXTRA) from error
        raise no_gl(error) from error
    except (AttributeError, OSError, RuntimeError) as error:  # what PyOpenGL makes of a missing library
        raise no_gl(error) from error
    return mujoco


def no_gl(error: BaseException) -> NpukitError:
    """The error for rendering that does not start."""
    chosen = os.environ.get("MUJOCO_GL") or "its default"
    return MissingDependency(
        f"MuJoCo cannot render: no OpenGL by way of {chosen} ({type(error).__name__}: {error})",
        where="MUJOCO_GL",
        hint=HINT,
    )


def renderer(model: Any, height: int, width: int) -> Any:
    """A `mujoco.Renderer` of that size in pixels.

    Raises:
        MissingDependency: OpenGL cannot be started.
    """
    mujoco = load()
    try:
        made = mujoco.Renderer(model, height=height, width=width)
    except (AttributeError, ImportError, OSError, RuntimeError, ValueError) as error:
        raise no_gl(error) from error
    except Exception as error:
        if type(error).__module__.startswith(("mujoco", "OpenGL")):
            raise no_gl(error) from error
        raise
    atexit.unregister(_close_all)
    atexit.register(_close_all)  # after MuJoCo registered the end of OpenGL, to run before it
    _renderers.add(made)
    return made

# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""Policy serving: observations from robots over a web socket, chunks of actions back (openpi's protocol)."""

from __future__ import annotations

import importlib

from npukit.errors import MissingDependency

EXTRA = "pip install 'npukit[serve]'"


def require() -> None:
    """See that the packages of the extra `serve` are there.

    Raises:
        MissingDependency: one is not.
    """
    for name in ("msgpack", "websockets"):
        try:
            importlib.import_module(name)
        except ImportError as error:
            raise MissingDependency(f"the package {name} is not installed", where="serving", hint=EXTRA) from error

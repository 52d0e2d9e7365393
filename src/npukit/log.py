# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""Logging and progress, as the whole package uses them.

Modules log to `logging.getLogger(__name__)`; what native libraries print becomes DEBUG records of
`npukit.native`. Long work calls `report`; whoever shows a bar wraps the call in `progress_to`.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from pathlib import Path

NATIVE = "npukit.native"

ProgressSink = Callable[[str, float], None]

_sink: ContextVar[ProgressSink | None] = ContextVar("npukit_progress", default=None)


def report(what: str, fraction: float) -> None:
    """Tell whoever listens that `what` is done to `fraction` (0 to 1). Cheap when nobody does."""
    sink = _sink.get()
    if sink is not None:
        sink(what, min(max(fraction, 0.0), 1.0))


def progress_sink() -> ProgressSink | None:
    """The function that `report` calls at the moment, or None."""
    return _sink.get()


@contextlib.contextmanager
def progress_to(sink: ProgressSink | None) -> Iterator[None]:
    """Send `report`s from inside the block to `sink(what, fraction)`."""
    token = _sink.set(sink)
    try:
        yield
    finally:
        _sink.reset(token)


def configure(verbosity: int = 0, log_file: Path | None = None) -> None:
    """Set up logging for the command: stderr by `verbosity` (-1 errors, 0 warnings, 1 info, 2 debug), a file for all.

    Raises:
        OSError: the log file cannot be opened.
    """
    levels = {-1: logging.ERROR, 0: logging.WARNING, 1: logging.INFO}
    level = levels.get(max(verbosity, -1), logging.DEBUG)
    logger = logging.getLogger("npukit")
    for handler in list(logger.handlers):
        logger.removeHandler(handler)
        handler.close()
    console = logging.StreamHandler()
    console.setLevel(level)
    console.setFormatter(logging.Formatter("%(levelname)s: %(message)s" if level > logging.DEBUG else _LONG))
    logger.addHandler(console)
    if log_file is not None:
        file = logging.FileHandler(log_file, encoding="utf-8")
        file.setFormatter(logging.Formatter("%(asctime)s " + _LONG))
        logger.addHandler(file)
        level = logging.DEBUG
    logger.setLevel(level)


_LONG = "%(levelname)s %(name)s: %(message)s"

# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""Logging and progress, as the whole package uses them.

Modules log to `logging.getLogger(__name__)`; what native libraries print becomes DEBUG records of
`npukit.native`. Long work calls `report`; whoever shows a bar wraps the call in `progress_to`.
"""

from __future__ import annotations

import contextlib
import logging
import re
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


# Stage of libQnnHtp's preparation of a graph -> the share of the whole that is done when it begins, as measured with
# 400 convolutions of 64 channels (6 s, QAIRT 2.47). Where a stage takes long the library draws a bar of its own.
_STAGES = {
    "Graph Preparation Initializing": 0.0,
    "Graph Optimizations": 0.01,
    "Post Graph Optimization": 0.71,
    "Graph Sequencing for Target": 0.74,
    "VTCM Allocation": 0.9,
    "Parallelization Optimization": 0.95,
    "Finalizing Graph Sequence": 0.96,
    "Completion": 0.99,
}
_START = "Starting stage: "
_BAR = re.compile(r"\s*\[[# ]*\]\s*(\d{1,3})%\s*")


class Stages:
    """Turns the lines that libQnnHtp prints while it prepares a graph into progress."""

    def __init__(self) -> None:
        self._stage = ""

    def read(self, line: str) -> tuple[str, float] | None:
        """What a line says is being done, and the share that is done; None where it speaks of neither."""
        if line.startswith(_START):
            self._stage = line.removeprefix(_START).strip()
            return (self._stage, _STAGES[self._stage]) if self._stage in _STAGES else None
        bar = _BAR.fullmatch(line)
        if bar is None or self._stage not in _STAGES:
            return None
        begin = _STAGES[self._stage]
        end = min((share for share in _STAGES.values() if share > begin), default=1.0)
        return self._stage, begin + (end - begin) * min(int(bar[1]), 100) / 100

    @staticmethod
    def is_bar(line: str) -> bool:
        """Whether the line is nothing but a bar."""
        return _BAR.fullmatch(line) is not None


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

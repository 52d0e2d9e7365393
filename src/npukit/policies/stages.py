# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""How long the stages of an export took and how much memory they needed."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from npukit import log as progress
from npukit.policies import memory

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Stage:
    """A stage.

    Attributes:
        name: what was done.
        seconds: how long it took.
        peak: the most bytes of memory that the process which did it held meanwhile; None where it is not known.
    """

    name: str
    seconds: float
    peak: int | None = None

    def to_json(self) -> dict[str, Any]:
        return {"stage": self.name, "seconds": round(self.seconds, 3), "peak_bytes": self.peak}


@dataclass
class Stages:
    """Collects stages, those of one name as one; `prefix` stands before the names."""

    prefix: str = ""
    found: list[Stage] = field(default_factory=list)

    @contextlib.contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        """Time what is done inside."""
        progress.report(name, 0.0)
        whole = memory.reset_peak()
        begin = time.perf_counter()
        try:
            yield
        finally:
            seconds = time.perf_counter() - begin
            peak = memory.peak()
            log.info("%s: %.1f s%s", name, seconds, f", {peak / 1e9:.2f} GB" if peak and whole else "")
            self._add(Stage(f"{self.prefix}{name}", seconds, peak))

    def _add(self, stage: Stage) -> None:
        for i, before in enumerate(self.found):
            if before.name == stage.name:
                peaks = [peak for peak in (before.peak, stage.peak) if peak is not None]
                stage = Stage(stage.name, before.seconds + stage.seconds, max(peaks, default=None))
                self.found[i] = stage
                return
        self.found.append(stage)

# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""Where a verb's native work runs: in one worker process for the whole verb, or here when asked."""

from __future__ import annotations

import contextlib
import importlib
import threading
from collections.abc import Callable, Iterator
from typing import Any

from npukit.worker import Worker, in_worker


@contextlib.contextmanager
def isolated(*, in_process: bool = False, timeout: float | None = None) -> Iterator[Callable[..., Any]]:
    """A function `call("npukit.module:name", *args, **kwargs)`; calls share one process and its module state.

    Whoever already is in a worker stays there.

    Raises:
        WorkerDied: from `call`: the process crashed, or took longer than `timeout` seconds.
    """
    if in_process or in_worker():
        yield _here
        return
    with Worker(timeout=timeout) as worker:
        # What results are made of (numpy, the stamp) takes 0.2 s to import: done while the worker starts and works.
        threading.Thread(target=importlib.import_module, args=("npukit.artifacts.stamp",)).start()
        yield worker.call


def _here(function: str, /, *args: Any, **kwargs: Any) -> Any:
    module, _, name = function.partition(":")
    return getattr(importlib.import_module(module), name)(*args, **kwargs)

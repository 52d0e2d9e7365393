# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""What every native call shares: the lock, the vendor's log lines, and errors."""

from __future__ import annotations

import contextlib
import ctypes
import logging
import re
import threading
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any

from npukit.errors import NativeError
from npukit.qnn.api import declarations as d
from npukit.qnn.api.libraries import Functions

log = logging.getLogger(__name__)
native_log = logging.getLogger("npukit.native")


class NativeLock:
    """A re-entrant lock around native calls, which also frees what could not be freed during one.

    The garbage collector may run in any callback of a library (a log line is enough), and with it the finalizers of
    native handles. Calling into the library there would wait for locks that the library itself holds.
    """

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._depth = 0
        self._waiting: deque[tuple[Callable[..., object], tuple[Any, ...]]] = deque()

    def __enter__(self) -> None:
        self._lock.acquire()
        self._depth += 1

    def __exit__(self, *_: object) -> None:
        try:
            while self._depth == 1 and self._waiting:
                free, arguments = self._waiting.popleft()
                free(*arguments)
        finally:
            self._depth -= 1
            self._lock.release()

    def release(self, free: Callable[..., object], *arguments: Any) -> None:
        """Call `free(*arguments)` under the lock: now, or when the native call in progress has returned.

        For finalizers. It never waits: the collector may run while its thread holds what another thread needs.
        """
        self._waiting.append((free, arguments))
        if self._lock.acquire(blocking=False):
            try:
                if self._depth == 0:
                    with self:
                        pass
            finally:
                self._lock.release()


LOCK = NativeLock()
"""Held for every native call of the process: two graphs executed at once swap their outputs, with rc 0."""

_LEVELS = {
    d.LOG_ERROR: "error",
    d.LOG_WARN: "warning",
    d.LOG_INFO: "info",
    d.LOG_VERBOSE: "verbose",
    d.LOG_DEBUG: "debug",
}
_TAG = re.compile(r"^\s*(\[QNN_\w+\]\s*)?(<[EWIVD]>\s*)?")
# Logged at error level by calls that succeed.
_NOISE = re.compile(r"unexpected GraphHtpSettings option")


# Lines that only repeat the code or the call.
_EMPTY = re.compile(
    r"(QnnBackend_validateOpConfig failed|validateNativeOps master op validator|Failed to validate op .* with error"
    r"|Op specific validation failed|Please refer to the|OpConfig validation failed for)"
)
_LIMIT = 2500


def tidy(lines: Iterable[str]) -> str:
    """Error lines as one text: repetitions dropped, HTP's lists of data types on one line a list, 2500 characters."""
    distinct = list(dict.fromkeys(lines))
    telling = [_compact(line) for line in distinct if not _EMPTY.match(line)] or distinct
    text = "; ".join(telling)
    return text if len(text) <= _LIMIT else text[:_LIMIT] + " ..."


def _compact(line: str) -> str:
    """HTP lists a combination of data types on one line a tensor: turns that into "A, B -> C | D, E -> F"."""
    if "QNN_DATATYPE_" not in line:
        return " ".join(line.split())
    head, _, body = line.partition("\n")
    head = re.sub(r"^Supported I/O datatype sets for the configuration:", "supported", head.strip())
    combinations = []
    for group in re.split(r"^\s*\d+:\s*$", body, flags=re.MULTILINE):
        inputs = re.findall(r"in\[\d+\]:\s*(?:QNN_DATATYPE_)?([^\n]+)", group)
        outputs = re.findall(r"out\[\d+\]:\s*(?:QNN_DATATYPE_)?([^\n]+)", group)
        if inputs or outputs:
            combinations.append(f"{', '.join(inputs)} -> {', '.join(outputs)}")
    return f"{head} {' | '.join(combinations)}"


class NativeLog:
    """A log handle's callback: lines go to "npukit.native" at DEBUG level, the last error lines are kept."""

    def __init__(self) -> None:
        self._errors: deque[str] = deque(maxlen=40)
        self.callback = d.LogCallback(self._receive)
        self.level = d.LOG_INFO if native_log.isEnabledFor(logging.DEBUG) else d.LOG_ERROR

    def _receive(self, template: int, level: int, _time: int, arguments: int) -> None:
        # Called from any of the library's threads; nothing may be raised through C.
        with contextlib.suppress(Exception):
            text = _TAG.sub("", d.format_log(template, arguments)).strip()
            if level == d.LOG_ERROR and not _NOISE.search(text):
                self._errors.append(text)
            native_log.debug("%s: %s", _LEVELS.get(level, level), text)

    def clear(self) -> None:
        """Forgets the kept error lines; called before a native call."""
        self._errors.clear()

    def errors(self) -> str:
        """The distinct error lines since `clear`, tidied, joined by "; "."""
        return tidy(self._errors)


def describe(functions: Functions, code: int) -> str:
    """Code, symbol and meaning of an error: "6004 QNN_GRAPH_ERROR_INVALID_TENSOR: Invalid or NULL QNN tensor"."""
    code &= d.ERROR_MASK
    message = ctypes.c_char_p()
    if functions.has("errorGetMessage") and functions.errorGetMessage(code, ctypes.byref(message)) == d.SUCCESS:
        text = (message.value or b"").decode("utf-8", "replace").strip().rstrip(".")
        if text.startswith("QNN_"):
            return f"{code} {text}"
    return f"{code} {d.error_symbol(code)}"


def failure(functions: Functions, code: int, call: str, where: str, vendor: str = "", hint: str = "") -> NativeError:
    """The NativeError of a failed call; `vendor` is what the library logged about it."""
    text = f"{call} failed: {describe(functions, code)}"
    return NativeError(f"{text}: {vendor}" if vendor else text, where=where, hint=hint)

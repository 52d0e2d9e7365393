# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""pyACL, the Python module `acl` of CANN: every return code checked, and the device of this process.

What each function returns: shared/reference/ascend_facts.md 3.1 (binding source and headers). A status of 0 is
success; calls return a status, values with the status last, or a plain value; handles and addresses are integers.
"""

from __future__ import annotations

import importlib
import os
import threading
from collections.abc import Mapping
from operator import attrgetter
from typing import Any, Final

from npukit.errors import MissingDependency, NativeError, UsageError, shown

DEVICE_VARIABLE: Final = "NPUKIT_ASCEND_DEVICE"
"""Variable with the number of the device to use; 0 without it."""

DYNAMIC_INPUT: Final = "ascend_mbatch_shape_data"
"""Name of the input that atc adds to a model with dynamic gears."""

HOST_TO_DEVICE, DEVICE_TO_HOST, DEVICE_TO_DEVICE = 1, 2, 3
_HUGE_FIRST: Final = 0
_RUNS_ON_DEVICE: Final = 0  # acl.rt.get_run_mode: the program runs on the chip's own processor
_REPEATED_INIT: Final = 100002
_TEXT: Final = 600

# Functions that give a plain value; where 0 or None is no result, the name is in _HANDLES.
_PLAIN: Final = frozenset({
    "get_soc_name", "create_data_buffer", "mdl.create_desc", "mdl.create_dataset", "mdl.get_num_inputs",
    "mdl.get_num_outputs", "mdl.get_input_size_by_index", "mdl.get_output_size_by_index", "mdl.get_input_data_type",
    "mdl.get_output_data_type", "mdl.get_input_name_by_index", "mdl.get_output_name_by_index",
})  # fmt: skip
_HANDLES: Final = frozenset({"create_data_buffer", "mdl.create_desc", "mdl.create_dataset"})
# Functions that give values before the status; all others give the status alone.
_VALUES: Final = frozenset({
    "rt.create_context", "rt.get_run_mode", "rt.malloc", "mdl.load_from_file", "mdl.load_from_mem",
    "mdl.add_dataset_buffer", "mdl.get_input_dims", "mdl.get_output_dims", "mdl.get_cur_output_dims",
    "mdl.get_input_index_by_name", "mdl.get_input_dynamic_gear_count", "mdl.get_input_dynamic_dims",
    "mdl.get_dynamic_batch", "mdl.get_dynamic_hw",
})  # fmt: skip

_SOURCE: Final = "source CANN's set_env.sh (/usr/local/Ascend/ascend-toolkit/set_env.sh) before npukit"
_AGAIN: Final = "compile it again with the CANN that is installed here: npukit compile MODEL --target ascend310p3"
_MEMORY: Final = "npu-smi info shows who uses the device's memory; close other sessions, or use a smaller model"
_LOG: Final = "CANN's log says more: $HOME/ascend/log/debug/plog"

MEANINGS: Final[Mapping[int, tuple[str, str]]] = {
    100000: ("an argument is not valid", ""),
    100001: ("acl.init was not called", ""),
    100002: ("initialized or loaded twice", ""),
    100003: ("the file is not valid", ""),
    100011: ("there is no model of this number", ""),
    100012: ("the model cannot be deserialized", _AGAIN),
    100013: ("the model cannot be parsed", _AGAIN),
    100014: ("the model cannot be read", _AGAIN),
    100015: ("the model's size is not valid", _AGAIN),
    100016: ("the model lacks an attribute: another CANN compiled it", _AGAIN),
    100017: ("an input does not match the model", ""),
    100018: ("an output does not match the model", ""),
    100019: ("the model has no dynamic dimensions", ""),
    100024: ("an op was not found", ""),
    100026: ("an op does not take this dtype", ""),
    100027: ("an op does not take this format", ""),
    100029: ("the kernel of an op is missing", "install CANN's kernels for this chip"),
    100037: ("finalized twice", ""),
    100039: ("these are the stub libraries for compiling only", "LD_LIBRARY_PATH must not name CANN's devlib"),
    107000: ("an argument of the runtime is not valid", ""),
    107001: ("there is no such device", f"choose another with {DEVICE_VARIABLE}; npu-smi info lists them"),
    107002: ("the thread has no context", ""),
    107003: ("the stream is not of this context", ""),
    107019: ("waiting took too long", _LOG),
    107020: ("a task took too long", _LOG),
    145000: ("an argument of the model's engine is not valid", ""),
    145002: ("the model's path is not valid", ""),
    145003: ("the model's number is not valid", ""),
    145006: ("the model's size is not valid: the file is cut off, or no .om", _AGAIN),
    145009: ("the model is loaded already", ""),
    145011: ("the address of the gear input is not valid", ""),
    145012: ("the size of the gear input is not valid", ""),
    145013: ("there is no such gear", ""),
    145020: ("a format is not valid", ""),
    145021: ("a shape is not valid", ""),
    145022: ("a dtype is not valid", ""),
    148049: ("the operator package was not found", "ASCEND_OPP_PATH is wrong: " + _SOURCE),
    200000: ("this machine's memory is full", "close other programs"),
    207001: ("the device's memory is full", _MEMORY),
    207003: ("a number overflowed on the AI Core", ""),
    207004: ("there is no device", "npu-smi info lists the devices; is the driver installed?"),
    207010: ("no room for another model on the device", "close other sessions"),
    207018: ("the device's memory is full", _MEMORY),
    245000: ("the device's memory is full", _MEMORY),
    245002: ("the device's memory is full", _MEMORY),
    500000: ("internal error", _LOG),
    500001: ("internal error of ACL", _LOG),
    500002: ("internal error of the graph engine", _LOG),
    500003: ("internal error of the runtime", _LOG),
    500004: ("error of the driver", _LOG),
    500005: ("error of the profiler", _LOG),
    507000: ("internal error of the runtime", _LOG),
    507008: ("the chip's name cannot be told", _LOG),
    507011: ("the model failed on the AI Core", "was it compiled for this chip (npukit inspect)? " + _LOG),
    507014: ("the AI Core took too long", _LOG),
    507015: ("the AI Core stopped with an exception", _LOG),
    507017: ("the AI CPU took too long", _LOG),
    507018: ("the AI CPU stopped with an exception", _LOG),
    507033: ("the device cannot be set up", "is another program resetting it? " + _LOG),
    507899: ("internal error of the driver", _LOG),
    507900: ("internal error of the AI CPU", _LOG),
    545601: ("the model took too long", _LOG),
}
"""What the codes of aclError mean, and what to do ([RT] docs/zh/api_ref/25-01_aclError.md in the facts, 3.1)."""

_GROUPS: Final = {1: "wrong use", 2: "out of resources", 3: "beyond a limit", 5: "internal error"}


class Acl:
    """The module; `acl("mdl.execute", ...)` calls `acl.mdl.execute(...)` and checks what it returns."""

    def __init__(self, module: Any) -> None:
        self._module = module

    def __call__(self, name: str, *args: Any) -> Any:
        """Call a function; its value, a tuple of its values where there are several, or None.

        Raises:
            NativeError: it is not there, refuses its arguments, or returns an error.
        """
        try:
            result = attrgetter(name)(self._module)(*args)
        except AttributeError:
            raise NativeError(f"this pyACL has no acl.{name}", hint="CANN 8.0 and newer have it") from None
        except (TypeError, ValueError, OverflowError) as error:
            raise NativeError(f"acl.{name} refuses its arguments: {shown(str(error))}") from error
        if name in _PLAIN:
            if name in _HANDLES and not result:
                raise NativeError(f"acl.{name} failed{self._said()}", hint=_LOG)
            return result
        if name not in _VALUES:
            self._check(name, result)
            return None
        *values, status = result
        self._check(name, status)
        return values[0] if len(values) == 1 else tuple(values)

    def _check(self, name: str, status: int) -> None:
        if status == 0:
            return
        meaning, hint = MEANINGS.get(status, (_GROUPS.get(status // 100_000, "unknown error"), _LOG))
        raise AclError(status, f"acl.{name} failed with {status}, {meaning}{self._said()}", hint)

    def _said(self) -> str:
        """What ACL has to say about the last error, from ": " on; empty where it says nothing."""
        message = getattr(self._module, "get_recent_err_msg", None)
        text = message() if message is not None else ""
        text = text.decode("utf-8", "replace") if isinstance(text, bytes) else str(text or "")
        return f": {shown(' '.join(text.split()), _TEXT)}" if text.strip() else ""


class AclError(NativeError):
    """A call of pyACL that returned an error.

    Attributes:
        status: its code.
    """

    def __init__(self, status: int, what: str, hint: str = "", *, where: str = "", faults: Any = ()) -> None:
        super().__init__(what, where=where, hint=hint, faults=faults)
        self.status = status

    def __reduce__(self) -> tuple[object, ...]:
        return (AclError, (self.status, self.what, self.hint))


def load() -> Acl:
    """The module `acl`.

    Raises:
        MissingDependency: it is not installed, or not found; the hint says what is missing.
    """
    try:
        module = importlib.import_module("acl")
    except ImportError as error:
        raise MissingDependency(f"pyACL cannot be imported ({error})", where="acl", hint=_missing()) from None
    if not hasattr(module, "mdl") or not hasattr(module, "rt"):
        raise MissingDependency(
            f"the module acl at {getattr(module, '__file__', '?')} is not CANN's pyACL", where="acl", hint=_missing()
        )
    return Acl(module)


def _missing() -> str:
    """What this machine lacks."""
    from npukit.ascend import cann

    try:
        found = cann.find()
    except MissingDependency:
        return "it comes with CANN (toolkit and driver of the Ascend chip), which is not installed here"
    return f"CANN is at {found.root}, but its python/site-packages are not on the path: {_SOURCE}"


def version() -> str:
    """The chip that pyACL finds on the first device.

    Raises:
        MissingDependency: pyACL is not installed.
        NativeError: there is no device.
    """
    with Device() as device:
        return f"pyACL on {device.soc}, device {device.number}"


def device_number() -> int:
    """The number of the device to use.

    Raises:
        UsageError: the variable holds no number.
    """
    text = os.environ.get(DEVICE_VARIABLE, "0")
    if not text.isdigit():
        raise UsageError(f"{text!r} is not the number of a device", where=DEVICE_VARIABLE)
    return int(text)


# One context for all sessions of a process, so that buffers of one can be copied to another: who opens first makes it.
_lock = threading.Lock()
_users: dict[int, tuple[int, int]] = {}  # device -> context, users
_initialized_here = False


class Device:
    """A device with its context, shared by all who opened it in this process; the last one gives it back.

    Args:
        number: of the device; by default that of `device_number`.

    Attributes:
        acl: pyACL.
        number: of the device.
        soc: name of the chip ("Ascend310P3").

    Raises:
        MissingDependency: pyACL is not installed.
        NativeError: there is no such device, or it cannot be used.
    """

    def __init__(self, number: int | None = None) -> None:
        self.acl = load()
        self.number = device_number() if number is None else number
        self._open = False
        with _lock:
            self._context = self._enter()
        self._open = True
        try:
            self.soc = str(self.acl("get_soc_name") or "an unknown chip")
            # On the chip's own processor host memory is device memory: all copies are within it.
            self._shared = self.acl("rt.get_run_mode") == _RUNS_ON_DEVICE
        except BaseException:
            self.close()
            raise

    def _enter(self) -> int:
        global _initialized_here
        if self.number in _users:
            context, users = _users[self.number]
            self.acl("rt.set_context", context)
            _users[self.number] = context, users + 1
            return context
        if not _users:
            try:
                self.acl("init")
                _initialized_here = True
            except AclError as error:
                if error.status != _REPEATED_INIT:
                    raise
                _initialized_here = False  # whoever did it finalizes it
        try:
            self.acl("rt.set_device", self.number)
            try:
                context = int(self.acl("rt.create_context", self.number))
            except BaseException:
                self.acl("rt.reset_device", self.number)
                raise
        except BaseException:
            _finalize(self.acl)
            raise
        _users[self.number] = context, 1
        return context

    def use(self) -> None:
        """Make its context that of the calling thread: needed before every call from another thread."""
        self.acl("rt.set_context", self._context)

    def malloc(self, size: int) -> int:
        """Memory on the device; its address."""
        return int(self.acl("rt.malloc", size, _HUGE_FIRST))

    def copy(self, target: int, source: int, size: int, kind: int) -> None:
        """Copy bytes; `kind` is HOST_TO_DEVICE, DEVICE_TO_HOST or DEVICE_TO_DEVICE."""
        self.acl("rt.memcpy", target, size, source, size, DEVICE_TO_DEVICE if self._shared else kind)

    def close(self) -> None:
        """Give it back; any number of calls is fine."""
        if not self._open:
            return
        self._open = False
        with _lock:
            context, users = _users[self.number]
            if users > 1:
                _users[self.number] = context, users - 1
                return
            del _users[self.number]
            try:
                self.acl("rt.destroy_context", context)
            finally:
                try:
                    self.acl("rt.reset_device", self.number)
                finally:
                    _finalize(self.acl)

    def __enter__(self) -> Device:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _finalize(acl: Acl) -> None:
    """End ACL where nobody uses a device any more, if it was begun here."""
    global _initialized_here
    if not _users and _initialized_here:
        _initialized_here = False
        acl("finalize")

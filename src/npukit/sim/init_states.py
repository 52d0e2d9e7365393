# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""LIBERO's initial states: arrays that `torch.save` pickled, read without executing what a pickle may say.

Such a file is a zip archive with a member `.../data.pkl`. The unpickler here knows what numpy writes for a plain
array and nothing else: each name maps to a function of ours that checks its arguments and builds a description, from
which the array is made at the end. torch is not needed.
"""

from __future__ import annotations

import io
import math
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from npukit import files
from npukit.errors import InputError

MAX_BYTES = 64 << 20
_HINT = "take the .pruned_init files of the LIBERO package"


class _Kind:
    """A dtype as the pickle describes it: its code, then a state with the byte order."""

    def __init__(self, code: str, *flags: Any) -> None:
        if not isinstance(code, str) or code not in ("f8", "f4", "i8", "i4"):
            raise pickle.UnpicklingError(f"an array of dtype {str(code)[:40]!r}")
        self.dtype = np.dtype(f"<{code}")

    def __setstate__(self, state: Any) -> None:
        if not isinstance(state, tuple) or len(state) < 2 or state[1] != "<":
            raise pickle.UnpicklingError("a dtype in another byte order")


class _Plain:
    """An array as the pickle describes it."""

    array: npt.NDArray[Any] | None = None

    def __setstate__(self, state: Any) -> None:
        try:
            _, shape, kind, fortran, raw = state
            sound = isinstance(kind, _Kind) and isinstance(raw, bytes) and all(type(n) is int and n >= 0 for n in shape)
        except (TypeError, ValueError):
            sound = False
        if not sound or math.prod(shape) * kind.dtype.itemsize != len(raw):
            raise pickle.UnpicklingError("an array whose parts do not fit")
        self.array = np.frombuffer(raw, kind.dtype).reshape(shape, order="F" if fortran else "C")


def _reconstruct(subtype: Any, shape: Any, code: Any) -> _Plain:
    if subtype is not _Plain:
        raise pickle.UnpicklingError("an array of another class")
    return _Plain()


def _encode(text: Any, encoding: Any) -> bytes:
    if not isinstance(text, str) or encoding != "latin1":
        raise pickle.UnpicklingError("bytes in another encoding")
    return text.encode("latin1")


_KNOWN: dict[tuple[str, str], Any] = {
    ("numpy.core.multiarray", "_reconstruct"): _reconstruct,
    ("numpy._core.multiarray", "_reconstruct"): _reconstruct,
    ("numpy", "ndarray"): _Plain,
    ("numpy", "dtype"): _Kind,
    ("_codecs", "encode"): _encode,
}


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _KNOWN:
            raise pickle.UnpicklingError(f"the global {module}.{name}, which is not part of an array")
        return _KNOWN[module, name]

    def persistent_load(self, pid: Any) -> Any:
        raise pickle.UnpicklingError("a tensor of torch, not an array")


def read(path: Path) -> npt.NDArray[np.float64]:
    """The initial states in a file, float64 [states, numbers].

    Raises:
        InputError: the file holds anything but one array of numbers of that rank; the message names what.
        NpukitError: the file cannot be read.
    """
    data = files.map_file(path)
    if len(data) > MAX_BYTES:
        raise InputError(f"the file has {len(data)} bytes, at most {MAX_BYTES} are read", where=str(path), hint=_HINT)
    members = [m for m in files.zip_entries(data, where=str(path)) if m.name.rpartition("/")[2] == "data.pkl"]
    if len(members) != 1:
        raise InputError("not a file of torch.save: it has no member data.pkl", where=str(path), hint=_HINT)
    raw = files.zip_read(data, members[0], limit=MAX_BYTES, where=str(path))
    try:
        value = _Unpickler(io.BytesIO(raw)).load()
    except pickle.UnpicklingError as error:
        raise InputError(f"it holds {error}; nothing of it was executed", where=str(path), hint=_HINT) from error
    except Exception as error:  # the unpickler raises what it likes on damaged data
        raise InputError(f"damaged ({type(error).__name__}: {error})", where=str(path), hint=_HINT) from error
    array = value.array if isinstance(value, _Plain) else None
    if array is None or array.ndim != 2 or not len(array) or not np.isfinite(array).all():
        raise InputError("it does not hold one array of numbers [states, numbers]", where=str(path), hint=_HINT)
    return array.astype(np.float64)

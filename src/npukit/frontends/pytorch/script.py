# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""Checks a TorchScript archive before torch loads it.

torch.jit.load does not use Python's pickle: data.pkl and constants.pkl are read in C++ by an unpickler that knows
tensors, containers and the archive's own TorchScript classes, and calls no Python. The archive's code/ is compiled for
torch's interpreter, which has no Python objects and no system calls of its own; but a class's `__setstate__` runs at
loading, and a few operators (`save`, `from_file`) touch files. Those, and operators of unknown namespaces, are refused.
The unpickler makes room for what a pickle announces before it looks whether it is there: pickles are checked first.
"""

from __future__ import annotations

import itertools
import pickletools
import re
from pathlib import Path

from npukit.errors import Fault, ModelError
from npukit.files import zip_read
from npukit.frontends.pytorch.kinds import members

_MAX_CODE = 64 << 20
_MAX_PICKLE = 64 << 20
_MAX_OPCODES = 3_000_000  # looked at in some 5 s; a tensor takes 25
_TOUCHES_FILES = re.compile(r"\b(save|from_file|load_library)\s*\(")
_NAMESPACE = re.compile(r"\bops\s*\.\s*(\w+)")
_KNOWN = frozenset({"prim", "aten", "prims", "torchvision", "quantized"})


def check_script(path: Path, *, allow_pickle: bool) -> None:
    """Refuse a TorchScript archive whose code does more than compute.

    Raises:
        ModelError: the archive is damaged, or names each member that touches files or calls unknown operators.
    """
    data, entries = members(path)
    faults = []
    total = 0
    for entry in entries:
        if entry.name.endswith(".pkl") and not allow_pickle:
            _check_pickle(zip_read(data, entry, limit=_MAX_PICKLE, where=str(path)), f"{path}: member {entry.name!r}")
        if "/code/" not in f"/{entry.name}" or not entry.name.endswith(".py"):
            continue
        total += entry.size
        if total > _MAX_CODE:
            raise ModelError(f"its code is larger than {_MAX_CODE} bytes: refused", where=str(path))
        code = zip_read(data, entry, limit=_MAX_CODE, where=str(path)).decode("utf-8", "replace")
        code = re.sub(r"\\\s*\n", " ", code)
        touched = _TOUCHES_FILES.search(code)
        if touched:
            faults.append(Fault(f"its code calls {touched[1]!r}, which touches files", f"member {entry.name!r}"))
        unknown = sorted(set(_NAMESPACE.findall(code)) - _KNOWN)
        if unknown:
            what = f"its code calls operators of {', '.join(unknown)}, which plain torch does not have"
            faults.append(Fault(what, f"member {entry.name!r}"))
    if faults and not allow_pickle:
        raise ModelError(
            "this TorchScript does more than compute, so it is not loaded",
            where=str(path),
            faults=faults,
            hint="save the module with torch.export instead; or --allow-pickle, if you trust the file as a program",
        )


def _check_pickle(pickle: bytes, where: str) -> None:
    """Refuse a pickle whose strings lie beyond its end, or that keeps values under numbers which it does not reach.

    Raises:
        ModelError: where it is damaged.
    """
    count, kept = 0, 0
    try:
        for opcode, argument, _ in itertools.islice(pickletools.genops(pickle), _MAX_OPCODES + 1):
            count += 1
            if opcode.name in ("BINPUT", "LONG_BINPUT", "PUT"):
                kept += 1
                if isinstance(argument, int) and argument > kept:
                    raise ValueError(f"it keeps value {kept} as number {argument}")
    except Exception as error:  # genops raises many kinds on damaged data
        raise ModelError(
            f"its pickle is damaged: {error}", where=where, hint="was it cut off on the way? fetch it again"
        ) from None
    if count > _MAX_OPCODES:
        raise ModelError(
            f"its pickle has more than {_MAX_OPCODES} steps: refused",
            where=where,
            hint="save the module with torch.export instead; or --allow-pickle, if you trust the file as a program",
        )

# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""Tells PyTorch's files apart by their content, and says what can be done with those that hold no program."""

from __future__ import annotations

import collections
import itertools
import pickletools
import re
from pathlib import Path

from npukit.errors import ModelError, NpukitError
from npukit.files import ZipEntry, map_file, zip_entries, zip_read

EXPORT, SCRIPT, PICKLE = "export", "script", "pickle"
"""A torch.export archive; a TorchScript archive; an archive or file that `torch.save` pickled."""

_MAX_PICKLE = 64 << 20
_MAX_OPCODES = 1_000_000  # of a pickle, looked at in about 2 s
_MAX_RATIO = 200  # of a compressed member
_MAX_UNPACKED = 1 << 30  # of all compressed members
# torch.save before 1.6 wrote a bare pickle whose first value is this number
_LEGACY = b"\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19."
# What a file of tensors in containers names; any other global is somebody's class.
_TENSOR_GLOBALS = re.compile(
    r"(torch(\._utils)? _rebuild_\w+|torch \w*(Storage|Tensor|Size|device|float\w*|bfloat16|int\w*|uint8|bool)"
    r"|torch\.nn\.parameter (Parameter|Buffer)|torch\.storage \w+|torch\._tensor _rebuild_from_type_v2"
    r"|collections (OrderedDict|defaultdict|Counter)"
    r"|(builtins|__builtin__) (set|frozenset|dict|list|tuple|int|float|complex|bytearray)"
    r"|numpy\S* \w+|_codecs encode)"
)


def kind_of(path: Path) -> str | None:
    """`EXPORT`, `SCRIPT` or `PICKLE`, by the content of the file; None for what is not PyTorch's.

    Reads only the directory of an archive. A file that is missing or no sound zip gives None: another reader's error
    says it better.
    """
    try:
        with open(path, "rb") as file:
            head = file.read(64)
    except OSError:
        return None
    if _LEGACY in head[:16]:
        return PICKLE
    if not head.startswith(b"PK\x03\x04"):
        return None
    try:
        names = {entry.name for entry in zip_entries(map_file(path))}
    except NpukitError:
        return None
    return kind_of_members(names)


def kind_of_members(names: set[str]) -> str | None:
    """`kind_of` from the names of an archive's members."""
    inner = {name.partition("/")[2] for name in names}  # all lie in one folder named after the file
    if "serialized_exported_program.json" in names:
        return EXPORT
    if "archive_format" in inner or any(name.startswith("models/") and name.endswith(".json") for name in inner):
        return EXPORT
    if any(name.startswith("code/") for name in inner) and ("data.pkl" in inner or "constants.pkl" in inner):
        return SCRIPT
    if "data.pkl" in inner:
        return PICKLE
    return None


def pickled_classes(path: Path) -> list[str]:
    """The classes and functions beyond tensors and containers that a pickled file would have Python import.

    Read from the pickle's opcodes; nothing is executed.
    """
    data = map_file(path)
    if bytes(data[:2]) == b"PK":
        _, entries = members(path)
        member = next(entry for entry in entries if entry.name.partition("/")[2] == "data.pkl")
        pickles = [zip_read(data, member, limit=_MAX_PICKLE, where=str(path))]
    else:
        pickles = _legacy_pickles(bytes(data[:_MAX_PICKLE]))
    found: dict[str, None] = {}
    for pickle in pickles:
        strings: collections.deque[str] = collections.deque(maxlen=2)
        try:
            for opcode, argument, _ in itertools.islice(pickletools.genops(pickle), _MAX_OPCODES):
                if isinstance(argument, str) and opcode.name != "GLOBAL":
                    strings.append(argument)
                if opcode.name == "STACK_GLOBAL" and len(strings) > 1:
                    argument = f"{strings[-2]} {strings[-1]}"
                if opcode.name in ("GLOBAL", "STACK_GLOBAL", "INST") and not _TENSOR_GLOBALS.fullmatch(str(argument)):
                    found[str(argument).replace(" ", ".")] = None
        except Exception as error:  # genops raises many kinds on damaged data
            raise ModelError(f"its pickle is damaged: {error}", where=str(path)) from None
    return list(found)


def _legacy_pickles(data: bytes) -> list[bytes]:
    """The object of a file of torch.save before 1.6, the fourth value after number, version and machine."""
    at = 0
    for _ in range(3):
        try:
            for _, _, position in itertools.islice(pickletools.genops(data[at:]), _MAX_OPCODES):
                end = position
        except Exception:
            return []
        at += (end or 0) + 1
    return [data[at:]]


def refuse_pickle(path: Path) -> ModelError:
    """Why a pickled file is not converted, and what to do instead."""
    classes = pickled_classes(path)
    if not classes:
        return ModelError(
            "it holds tensors (a state dict or checkpoint) but no program: the layers between them are not in it",
            where=str(path),
            hint="in Python, build the module, load_state_dict(torch.load(FILE)), then npukit.convert(module, "
            "example_inputs=...), or torch.export.save(torch.export.export(module, inputs), 'model.pt2')",
        )
    names = ", ".join(classes[:3]) + (f" and {len(classes) - 3} more" if len(classes) > 3 else "")
    return ModelError(
        f"it is a pickled Python object (it names {names}): to read it is to run what the file says, so it is not read",
        where=str(path),
        hint="where it was made: torch.export.save(torch.export.export(module, inputs), 'model.pt2'); or "
        "--allow-pickle, if you trust the file as you would a program, with --input-shape for each input",
    )


def members(path: Path) -> tuple[memoryview, list[ZipEntry]]:
    """The file, mapped, and its members, every offset and name checked.

    Raises:
        ModelError: its compressed members unpack to far more than they hold; torch's own archives have none.
    """
    data = map_file(path)
    return data, sound_entries(data, str(path))


def sound_entries(data: memoryview | bytes, where: str) -> list[ZipEntry]:
    """The members of an archive in memory, or of one that is a member of another; see `members`."""
    entries = zip_entries(data, where=where)
    packed = [entry for entry in entries if entry.method]
    for entry in packed:
        if entry.size > (1 << 20) and entry.size > _MAX_RATIO * max(entry.stored, 1):
            raise ModelError(f"its member {entry.name!r} unpacks to {entry.size} bytes: refused", where=where)
    total = sum(entry.size for entry in packed)
    if total > _MAX_UNPACKED:
        raise ModelError(
            f"its compressed members unpack to {total} bytes: refused",
            where=where,
            hint="torch stores its archives uncompressed: unpack it and zip it again with -0, if you trust it",
        )
    return entries

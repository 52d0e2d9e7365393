# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""Which kind of model a file holds, told by its content."""

from __future__ import annotations

import os
from pathlib import Path

from npukit.errors import ModelError, nearest
from npukit.frontends.pytorch.kinds import kind_of

OM_MAGIC = b"IMOD"
KIND_WORDS = {
    "onnx": "an ONNX model", "dlc": "a DLC", "context": "a context binary", "tflite": "a .tflite file",
    "om": "an Ascend .om file",
}  # fmt: skip
_FOREIGN_MAGIC = {
    b"\x7fELF": "it is a model library or program; npukit export makes ONNX of a model library",
    b"MZ": "it is a Windows library or program",
    b"\x93NUMPY": "it is a numpy array; a model is wanted here",
}


def file_kind(path: Path) -> str:
    """What a file holds, by its content: "onnx", "dlc", "context", "tflite" or "om".

    Raises:
        ModelError: there is no such file, or it is none of these.
    """
    try:
        with open(path, "rb") as file:
            head = file.read(256)
            size = os.fstat(file.fileno()).st_size
    except FileNotFoundError:
        raise ModelError("there is no such file", where=str(path), hint=_beside(path)) from None
    except OSError as error:
        raise ModelError(f"the file cannot be read ({error.strerror})", where=str(path)) from error
    if size == 0:
        raise ModelError("the file is empty", where=str(path))
    if head.startswith(b"PK\x03\x04"):
        return _zip_kind(path, head)
    for magic, what in _FOREIGN_MAGIC.items():
        if head.startswith(magic):
            raise ModelError(what, where=str(path))
    if head[4:8] == b"TFL3":
        return "tflite"
    if head.startswith(OM_MAGIC):
        return "om"
    if head.startswith(b"version https://git-lfs"):
        raise ModelError("it is a Git LFS pointer, not the model itself", where=str(path), hint="run: git lfs pull")
    # Neither protobuf nor a context binary has a magic: an ONNX model begins with a field tag of ModelProto.
    suffix = path.suffix.lower()
    if suffix == ".onnx" or (suffix != ".bin" and _looks_like_onnx(head)):
        return "onnx"
    if suffix == ".bin" or b"\0" in head:
        return "context"
    raise ModelError("it is neither an ONNX model, a DLC, a context binary nor a .om file", where=str(path))


def _zip_kind(path: Path, head: bytes) -> str:
    if kind_of(path) is not None:
        raise ModelError("it is a PyTorch file", where=str(path), hint="convert it first: npukit convert FILE")
    # The first member's name stands in the local header; every DLC seen begins with one of these.
    length = int.from_bytes(head[26:28], "little")
    first = head[30 : 30 + length].decode("utf-8", "replace")
    if first.startswith(("dlc.metadata", "model")) and not first.startswith("model/"):
        return "dlc"
    if first.endswith(".npy"):
        raise ModelError("it is an archive of numpy arrays (.npz); a model is wanted here", where=str(path))
    if path.suffix.lower() == ".dlc":
        return "dlc"
    raise ModelError(
        f"it is a zip archive, but not a DLC (its first member is {first!r})",
        where=str(path),
    )


_MODEL_PROTO_TAGS = frozenset({0x08, 0x12, 0x1A, 0x22, 0x28, 0x32, 0x3A, 0x42, 0x72, 0xA2, 0xCA})


def _looks_like_onnx(head: bytes) -> bool:
    if head[0] == 0x08:  # ir_version, a small number
        return len(head) > 1 and 0 < head[1] < 0x40
    return head[0] in _MODEL_PROTO_TAGS and b"\0" not in head[:2]


def _beside(path: Path) -> str:
    folder = path.parent
    if not folder.is_dir():
        return f"there is no folder {folder}"
    return nearest(path.name, [entry.name for entry in folder.iterdir()][:1000])

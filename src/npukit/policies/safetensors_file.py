# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""Reading .safetensors files without PyTorch: the header checked against the file, arrays mapped, bfloat16 included."""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt

from npukit import files
from npukit.errors import ArtifactError

_DTYPES: dict[str, Any] = {
    "F64": np.float64, "F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16,
    "I64": np.int64, "I32": np.int32, "I16": np.int16, "I8": np.int8,
    "U64": np.uint64, "U32": np.uint32, "U16": np.uint16, "U8": np.uint8, "BOOL": np.bool_,
}  # fmt: skip
_HEADER_LIMIT = 100 << 20
_AGAIN = "it was truncated or damaged: copy or download it again"


@dataclass(frozen=True)
class Entry:
    """A tensor of a file: dtype by numpy, shape, and where its bytes are."""

    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    begin: int
    end: int


class SafetensorsFile(Mapping[str, Entry]):
    """The tensors of a .safetensors file by name; `array` reads one.

    Raises:
        ArtifactError: it is no sound file of the kind: truncated, a header that does not fit the data, an unknown
            dtype. The message names the tensor.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        self._data = files.map_file(path)
        where = str(path)
        if len(self._data) < 8:
            raise ArtifactError(f"not a safetensors file: it has {len(self._data)} bytes", where=where, hint=_AGAIN)
        (length,) = struct.unpack("<Q", self._data[:8])
        if length > min(_HEADER_LIMIT, len(self._data) - 8):
            raise ArtifactError(f"not a safetensors file: its header would have {length} bytes, the file has "
                                f"{len(self._data)}", where=where, hint=_AGAIN)  # fmt: skip
        try:
            header = json.loads(bytes(self._data[8 : 8 + length]))
        except (ValueError, RecursionError) as error:
            raise ArtifactError(f"its header is not JSON: {error}", where=where, hint=_AGAIN) from None
        if not isinstance(header, dict):
            raise ArtifactError("its header is not an object", where=where, hint=_AGAIN)
        self._entries = {
            name: self._entry(name, value, 8 + length) for name, value in header.items() if name != "__metadata__"
        }

    def _entry(self, name: str, value: Any, base: int) -> Entry:
        def wrong(why: str) -> ArtifactError:
            return ArtifactError(f"the tensor {name!r} {why}", where=str(self.path), hint=_AGAIN)

        try:
            dtype, shape, (begin, end) = value["dtype"], value["shape"], value["data_offsets"]
            numbers = [*shape, begin, end]
        except (KeyError, TypeError, ValueError):
            raise wrong("has no sound entry in the header") from None
        if not all(isinstance(n, int) and not isinstance(n, bool) and n >= 0 for n in numbers):
            raise wrong("has a shape or offsets that are not whole numbers")
        if dtype not in _DTYPES:
            raise wrong(f"has dtype {dtype!r}, which is not read")
        kind = np.dtype(_DTYPES[dtype])
        if end - begin != math.prod(shape) * kind.itemsize:
            raise wrong(f"is {dtype} {shape}, and has {end - begin} bytes")
        if base + end > len(self._data):
            raise wrong(f"ends at byte {base + end}, the file has {len(self._data)}")
        return Entry(kind, tuple(shape), base + begin, base + end)

    def __getitem__(self, name: str) -> Entry:
        return self._entries[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def array(self, name: str) -> npt.NDArray[Any]:
        """A tensor as a read-only view of the mapped file."""
        entry = self._entries[name]
        return np.frombuffer(self._data[entry.begin : entry.end], entry.dtype).reshape(entry.shape)


def write(path: Path | str, arrays: Mapping[str, npt.NDArray[Any]]) -> None:
    """Write arrays of numpy's own dtypes as a .safetensors file, whole or not at all."""
    names = {np.dtype(dtype): name for name, dtype in _DTYPES.items()}
    header: dict[str, Any] = {}
    at = 0
    for name in sorted(arrays):
        size = arrays[name].nbytes
        header[name] = {
            "dtype": names[arrays[name].dtype],
            "shape": list(arrays[name].shape),
            "data_offsets": [at, at + size],
        }
        at += size
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    data = b"".join(np.ascontiguousarray(arrays[name]).tobytes() for name in sorted(arrays))
    files.atomic_write_bytes(path, struct.pack("<Q", len(text)) + text + data)

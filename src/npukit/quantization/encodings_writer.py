# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""Writing encodings files: every version that `encodings_file` reads."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import npukit
from npukit.errors import Fault, UsageError, nearest
from npukit.files import atomic_write_bytes
from npukit.quantization.entry import EncodingsError, Entry

VERSIONS: Final = ("0.6.1", "1.0.0", "2.0.0", "qnn")
"""AIMET's versions, and "qnn": the `quantization_overrides` JSON without a version."""


def dumps(entries: Sequence[Entry], version: str) -> str:
    """The entries as JSON text of `version`, in their order.

    Raises:
        EncodingsError: with one fault for each entry that the version cannot hold (see `lost`).
    """
    if version not in VERSIONS:
        raise UsageError(f"{version!r} is no version of an encodings file", hint=nearest(version, VERSIONS))
    faults = [Fault(why, repr(entry.name)) for entry, why in lost(entries, version)]
    if faults:
        raise EncodingsError(f"{version} cannot hold {len(faults)} of {len(entries)} entries", faults=faults)
    return json.dumps(_FORMS[version].whole(entries), indent=1, allow_nan=False) + "\n"


def write(path: Path | str, entries: Sequence[Entry], version: str) -> None:
    """Write an encodings file; it appears complete or not at all. Raises as `dumps`."""
    atomic_write_bytes(path, dumps(entries, version).encode())


def lost(entries: Sequence[Entry], version: str) -> list[tuple[Entry, str]]:
    """The entries that a version cannot hold, each with the reason."""
    found = [(entry, _FORMS[version].refusal(entry)) for entry in entries]
    return [(entry, why) for entry, why in found if why]


@dataclass(frozen=True)
class _Form:
    refusal: Callable[[Entry], str]
    whole: Callable[[Sequence[Entry]], dict[str, Any]]


def _producer() -> dict[str, str]:
    return {"package": "npukit", "version": npukit.__version__}


def _sections(entries: Sequence[Entry], kind: str) -> list[Entry]:
    return [entry for entry in entries if entry.kind == kind]


def _is_symmetric(entry: Entry) -> bool:
    return entry.signed and not any(entry.offsets)


# -- 0.6.1 and overrides: rows of one channel --------------------------------------------------------------------------


def _refusal_rows(entry: Entry) -> str:
    return "no blockwise scales" if entry.blocks is not None else ""


def _rows(entry: Entry) -> list[dict[str, Any]]:
    if not entry.scales:
        return [{"bitwidth": entry.bitwidth, "dtype": entry.dtype}]
    steps = 2**entry.bitwidth - 1
    return [
        {
            "bitwidth": entry.bitwidth,
            "dtype": "int",
            "is_symmetric": str(_is_symmetric(entry)),
            "min": offset * scale,
            "max": (offset + steps) * scale,
            "scale": scale,
            "offset": offset,
        }
        for scale, offset in zip(entry.scales, entry.offsets_for(signed=False), strict=True)
    ]


def _overrides(entries: Sequence[Entry]) -> dict[str, Any]:
    return {
        f"{kind}_encodings": {e.name: _rows(e) for e in _sections(entries, kind)} for kind in ("activation", "param")
    }


def _061(entries: Sequence[Entry]) -> dict[str, Any]:
    return {"version": "0.6.1", "producer": _producer(), **_overrides(entries)}


# -- 1.0.0 -------------------------------------------------------------------------------------------------------------


def _refusal_100(entry: Entry) -> str:
    return "no entry without a scale" if entry.only_precision else ""


def _row_100(entry: Entry) -> dict[str, Any]:
    row: dict[str, Any] = {"name": entry.name, "dtype": entry.dtype.upper(), "bw": entry.bitwidth}
    if entry.dtype == "float":
        return {**row, "enc_type": "PER_TENSOR"}
    bits = entry.blocks.bits if entry.blocks is not None and entry.blocks.bits else entry.bitwidth
    shift = 2 ** (bits - 1) if entry.signed else 0
    row |= {
        "bw": bits,
        "is_sym": _is_symmetric(entry),
        "scale": list(entry.scales),
        "offset": [float(offset - shift) for offset in entry.offsets],
    }
    if entry.blocks is None:
        return {**row, "enc_type": "PER_CHANNEL" if entry.per_channel else "PER_TENSOR"}
    if entry.blocks.scales is None:
        return {**row, "enc_type": "PER_BLOCK", "block_size": entry.blocks.size}
    return {
        **row,
        "enc_type": "LPBQ",
        "compressed_bw": entry.bitwidth,
        "block_size": entry.blocks.size,
        "per_block_int_scale": list(entry.blocks.scales),
    }


def _100(entries: Sequence[Entry]) -> dict[str, Any]:
    sections = {f"{k}_encodings": [_row_100(e) for e in _sections(entries, k)] for k in ("activation", "param")}
    return {"version": "1.0.0", "producer": _producer(), **sections}


# -- 2.0.0 -------------------------------------------------------------------------------------------------------------


def _refusal_200(entry: Entry) -> str:
    if entry.dtype == "float":
        return "no float entries: what it does not name stays in float"
    if entry.only_precision:
        return "no entry without a scale"
    if entry.blocks is not None and (entry.blocks.axis is None or not entry.blocks.channels):
        return "blockwise scales need their axes, which this file does not say; --model MODEL tells them"
    if entry.blocks is not None and entry.blocks.bits not in (0, 2 * entry.bitwidth):
        return f"block scales that refine a grid of {entry.blocks.bits} bits"
    if entry.per_channel and entry.axis is None:
        return "a per-channel entry needs its axis, which this file does not say; --model MODEL tells it"
    return ""


def _row_200(entry: Entry) -> dict[str, Any]:
    row: dict[str, Any] = {"name": entry.name, "output_dtype": f"{'' if entry.signed else 'u'}int{entry.bitwidth}"}
    points = [-offset for offset in entry.offsets]
    if entry.blocks is None:
        single = not entry.per_channel
        row["y_scale"] = entry.scales[0] if single else list(entry.scales)
        if any(points):
            row["y_zero_point"] = points[0] if single else points
        return row if entry.axis is None else {**row, "axis": entry.axis}
    if entry.blocks.scales is None:
        row["y_scale"] = _spread(entry, entry.scales)
        if any(points):
            row["y_zero_point"] = _spread(entry, points)
    else:
        row["per_channel_float_scale"] = _spread(entry, entry.scales)
        row["per_block_int_scale"] = _spread(entry, entry.blocks.scales, len(entry.scales))
    return {**row, "axis": entry.blocks.axis, "block_size": entry.blocks.size}


def _spread(entry: Entry, values: Sequence[float], channels: int = 0) -> Any:
    """Values with channels outer and blocks inner as nested lists of the source's rank."""
    blocks, axis = entry.blocks, entry.axis
    assert blocks is not None and blocks.axis is not None and axis is not None  # noqa: PT018 - see _refusal_200
    if not channels:
        channels = blocks.channels
    grid = [list(values[i * (len(values) // channels) : (i + 1) * (len(values) // channels)]) for i in range(channels)]
    return _nested(grid, blocks.rank, axis, blocks.axis % blocks.rank)


def _nested(grid: list[list[float]], rank: int, channel: int, along: int) -> Any:
    def build(depth: int, i: int, j: int) -> Any:
        if depth == rank:
            return grid[i][j]
        if depth == channel:
            return [build(depth + 1, n, j) for n in range(len(grid))]
        if depth == along:
            return [build(depth + 1, i, n) for n in range(len(grid[0]))]
        return [build(depth + 1, i, j)]

    return build(0, 0, 0)


def _200(entries: Sequence[Entry]) -> dict[str, Any]:
    return {"version": "2.0.0", "producer": _producer(), "encodings": [_row_200(e) for e in entries]}


_FORMS: Final = {
    "0.6.1": _Form(_refusal_rows, _061),
    "1.0.0": _Form(_refusal_100, _100),
    "2.0.0": _Form(_refusal_200, _200),
    "qnn": _Form(_refusal_rows, _overrides),
}

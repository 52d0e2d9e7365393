# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""What all mutators share: interesting values, raw damage to bytes, and mutations of JSON."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from typing import Any

Files = dict[str, bytes]

INTEGERS = (0, 1, 2, 3, 7, 16, -1, -2, 127, 255, 65535, 1 << 16, 1 << 20, 1 << 30, (1 << 31) - 1, 1 << 31, 1 << 32)
HUGE = ((1 << 62), (1 << 63) - 1, -(1 << 31), -(1 << 63))
FLOATS = (0.0, -0.0, 1.0, -1.0, 0.5, 1e-45, 1e30, 3.4e38, -3.4e38, float("inf"), float("-inf"), float("nan"))
TEXTS = ("", "x", "..", "../../etc/passwd", "/etc/passwd", "C:\\x", "a\0b", "\x1b[2J\x1b[31m", "né", "N" * 5000, "%s%n")


def integer(rng: random.Random, value: int, low: int, high: int) -> int:
    """Another integer in [low, high] near `value`, or an interesting one."""
    choice = rng.random()
    if choice < 0.35:
        new = value + rng.choice((-1, 1, -2, 2, 4, -4, 8))
    elif choice < 0.45:
        new = value * rng.choice((2, 3, -1, 1024))
    elif choice < 0.9:
        new = rng.choice(INTEGERS)
    else:
        new = rng.choice(HUGE)
    if not low <= new <= high:
        new = low + new % (high - low + 1)
    return new


def word(rng: random.Random, data: bytes, at: int, size: int) -> bytes:
    """`data` with the little-endian word of `size` bytes at `at` changed."""
    value = int.from_bytes(data[at : at + size], "little")
    new = integer(rng, value, 0, (1 << 8 * size) - 1)
    return data[:at] + new.to_bytes(size, "little") + data[at + size :]


def _flip(rng: random.Random, data: bytes) -> bytes:
    changed = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 8, 64))):
        changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def _truncate(rng: random.Random, data: bytes) -> bytes:
    return data[: rng.choice((rng.randrange(len(data)), len(data) - 1, len(data) // 2))]


def _zero(rng: random.Random, data: bytes) -> bytes:
    at = rng.randrange(len(data))
    size = rng.choice((1, 4, 64, 1024))
    return data[:at] + bytes(min(size, len(data) - at)) + data[at + size :]


def _insert(rng: random.Random, data: bytes) -> bytes:
    at = rng.randrange(len(data))
    return data[:at] + rng.randbytes(rng.choice((1, 4, 64, 4096))) + data[at:]


def _drop(rng: random.Random, data: bytes) -> bytes:
    at = rng.randrange(len(data))
    return data[:at] + data[at + rng.choice((1, 4, 64)) :]


def _repeat(rng: random.Random, data: bytes) -> bytes:
    at = rng.randrange(len(data))
    return data[:at] + data[at : at + 64] * rng.choice((2, 3, 100)) + data[at + 64 :]


def _swap(rng: random.Random, data: bytes) -> bytes:
    at, size = rng.randrange(len(data)), rng.choice((4, 16, 64))
    other = rng.randrange(len(data))
    low, high = sorted((at, other))
    if high < low + size:
        return _flip(rng, data)
    return (
        data[:low] + data[high : high + size] + data[low + size : high] + data[low : low + size] + data[high + size :]
    )


RAW: tuple[Callable[[random.Random, bytes], bytes], ...] = (
    *(_flip,) * 4, *(_truncate,) * 2, _zero, _insert, _drop, _repeat, _swap,
)  # fmt: skip


def raw(rng: random.Random, data: bytes) -> bytes:
    """Damage that knows nothing of the format: flipped bits, cut off, zeroed, inserted, repeated, swapped bytes."""
    return rng.choice(RAW)(rng, data) if data else rng.randbytes(8)


# ---------------------------------------------------------------- JSON

_CONFUSED: tuple[Any, ...] = (None, True, 0, -1, 1 << 70, 1e400, 0.5, "", "x", "N" * 3000, [], {}, [[]], {"a": 1})
_LITERALS = ("NaN", "-Infinity", "1e99999", "9" * 5000, "[" * 5000, '{"a":' * 2000, '"\\ud800"', "\x00", "tru")


def json_text(rng: random.Random, text: bytes) -> bytes:
    """JSON with one value, key or token changed; invalid JSON in one case of eight."""
    if rng.random() < 0.125:
        at = rng.randrange(max(1, len(text)))
        return text[:at] + rng.choice(_LITERALS).encode("utf-8", "surrogatepass") + text[at + 1 :]
    spots: list[tuple[Any, Any]] = []
    try:
        value = json.loads(text)
        _spots(value, spots)
    except (ValueError, RecursionError):  # damaged, or nested too deeply, by an earlier mutation
        return raw(rng, text)
    if not spots:
        return raw(rng, text)
    _change(rng, *rng.choice(spots))
    return json.dumps(value, separators=(",", ":")).encode()


def _spots(value: Any, found: list[tuple[Any, Any]]) -> None:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        found.append((value, key))
        _spots(item, found)


def _change(rng: random.Random, holder: Any, key: Any) -> None:
    old, choice = holder[key], rng.random()
    if choice < 0.15:
        del holder[key]
    elif choice < 0.25 and isinstance(holder, dict):
        holder[rng.choice(("X", "", "format", str(key) * 50))] = holder.pop(key)
    elif choice < 0.35 and isinstance(old, list) and old:
        rng.choice((lambda: old.append(old[0]), old.pop, old.reverse, lambda: old.extend(old * 200)))()
    elif isinstance(old, bool):
        holder[key] = not old
    elif isinstance(old, int) and choice < 0.85:
        holder[key] = integer(rng, old, -(1 << 64), 1 << 64)
    elif isinstance(old, float) and choice < 0.85:
        holder[key] = rng.choice(FLOATS)
    elif isinstance(old, str) and choice < 0.85:
        holder[key] = rng.choice((*TEXTS, "float32", "int64", "INT_32", "FLOAT_16", "UFIXED_POINT_8", old.upper()))
    else:
        holder[key] = rng.choice(_CONFUSED)

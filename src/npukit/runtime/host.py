# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""The worker's side of a session: engines by number, and the buffers that both processes map.

Native tensors of fixed shape lie in one file that parent and worker map, so that a run sends only a few bytes over
the pipe; models with free dimensions send their arrays with the call.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import mmap
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from npukit.runtime.binding import HostBound
from npukit.runtime.contract import Array, Port
from npukit.runtime.engine import Bound, Description, Engine, ProfileEvent, Request, open_engine

if TYPE_CHECKING:
    from npukit.ascend.emulate import Saturation

_ALIGN = 4096


@dataclass(eq=False)
class Buffers:
    """Native arrays of all ports in one mapped file.

    Attributes:
        inputs: arrays in the order of the input ports, writable.
        outputs: arrays in the order of the output ports.
    """

    inputs: list[Array]
    outputs: list[Array]

    @staticmethod
    def possible(description: Description) -> bool:
        """Whether every port has a fixed shape and elements of a fixed size."""
        ports = [*description.inputs, *description.outputs]
        return all(port.fixed_shape is not None and port.native != np.dtype(object) for port in ports)

    @classmethod
    def map(cls, path: Path, inputs: Sequence[Port], outputs: Sequence[Port], *, create: bool = False) -> Buffers:
        """Map (or make) the file; both sides compute the same layout.

        Raises:
            OSError: no room for the file: told here, where a later write into the mapping would kill the process.
        """
        ports = [*inputs, *outputs]
        sizes = [_size(port) for port in ports]
        offsets = list(itertools.accumulate((size + -size % _ALIGN for size in sizes), initial=0))
        with open(path, "x+b" if create else "r+b") as file:
            if create:
                _reserve(file.fileno(), max(offsets[-1], _ALIGN))
            mapped = mmap.mmap(file.fileno(), 0)
        arrays = [
            np.frombuffer(mapped, port.native, size // port.native.itemsize, offset).reshape(_shape(port))
            for port, size, offset in zip(ports, sizes, offsets, strict=False)
        ]
        return cls(arrays[: len(inputs)], arrays[len(inputs) :])


def _shape(port: Port) -> tuple[int, ...]:
    assert port.fixed_shape is not None
    return port.fixed_shape


def _size(port: Port) -> int:
    return int(np.prod(_shape(port), dtype=np.int64)) * port.native.itemsize


def _reserve(descriptor: int, size: int) -> None:
    """Give a file its whole size on the disk, or raise OSError (no space) without taking any of it."""
    if hasattr(os, "posix_fallocate"):
        # What does not fit would fill the disk before it fails, and other programs would fail with it.
        disk = os.fstatvfs(descriptor)
        if size > disk.f_bavail * disk.f_frsize:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        os.posix_fallocate(descriptor, 0, size)
    else:
        os.ftruncate(descriptor, size)


# ---------------------------------------------------------------- called by name in the worker


@dataclass(eq=False)
class _Hosted:
    engine: Engine
    slots: list[Bound] = field(default_factory=list)


_hosted: dict[int, _Hosted] = {}
_numbers = itertools.count(1)


def open_(request: Request) -> tuple[int, Description]:
    """Open an engine in this process; its number and description."""
    number = next(_numbers)
    engine = open_engine(request)
    _hosted[number] = _Hosted(engine)
    return number, engine.description


def bound(engine: Engine, inputs: list[Array], outputs: list[Array], resident: frozenset[str]) -> Bound:
    """The engine tied to these arrays; `resident` names what stays on the device, where it has one of its own."""
    bind = getattr(engine, "bind", None)
    if bind is None:
        return HostBound(engine.execute, inputs, outputs)
    ports = engine.description.inputs, engine.description.outputs
    stays = [frozenset(i for i, port in enumerate(side) if port.name in resident) for side in ports]
    made: Bound = bind(inputs, outputs, *stays)
    return made


def share(number: int, path: Path, resident: frozenset[str] = frozenset()) -> int:
    """Map buffers that the parent made; the number of their slot."""
    hosted = _hosted[number]
    description = hosted.engine.description
    buffers = Buffers.map(path, description.inputs, description.outputs)
    hosted.slots.append(bound(hosted.engine, buffers.inputs, buffers.outputs, resident))
    with contextlib.suppress(OSError):  # Windows keeps it while it is mapped
        path.unlink()
    return len(hosted.slots) - 1


def run_shared(number: int, slot: int) -> None:
    """Execute on the shared buffers of a slot."""
    _hosted[number].slots[slot].run()


def upload(number: int, slot: int, port: int, first: int, end: int | None) -> None:
    """`Bound.upload` of a slot."""
    _hosted[number].slots[slot].upload(port, first, end)


def download(number: int, slot: int, port: int) -> None:
    """`Bound.download` of a slot."""
    _hosted[number].slots[slot].download(port)


def copy(number: int, slot: int, source: int, output: int, port: int, row: int) -> bool:
    """`Bound.copy` between slots."""
    slots = _hosted[number].slots
    return slots[slot].copy(slots[source], output, port, row)


def saturations(number: int, clear: bool) -> list[Saturation]:  # noqa: FBT001 - the pipe has no keywords here
    """See `Session.saturations`."""
    return saturations_of(_hosted[number].engine, clear=clear)


def saturations_of(engine: Engine, *, clear: bool) -> list[Saturation]:
    """What an emulating engine has saturated so far."""
    found: list[Saturation] = engine.saturations(clear=clear)  # type: ignore[attr-defined]
    return found


def run(number: int, inputs: list[Array]) -> list[Array]:
    """Execute on arrays that travel with the call."""
    return _hosted[number].engine.execute(inputs, None)


def profile(number: int, inputs: list[Array], runs: int) -> list[ProfileEvent]:
    """`Engine.profile`."""
    return _hosted[number].engine.profile(inputs, runs)


def close(number: int) -> None:
    """Free an engine."""
    hosted = _hosted.pop(number, None)
    if hosted is not None:
        hosted.engine.close()

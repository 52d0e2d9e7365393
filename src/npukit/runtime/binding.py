# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""Buffers tied to a session: arrays to write and read, and where the backend has a memory of its own, copies there."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from npukit.errors import Fault, InputError, UsageError, nearest
from npukit.runtime.contract import Array, Port, from_native, gather, show, to_native
from npukit.runtime.engine import Bound

if TYPE_CHECKING:
    from npukit.runtime.session import Session


class Binding:
    """Buffers tied to a session; see `Session.bind`.

    Attributes:
        inputs: native arrays by source name, to write to.
        outputs: native arrays by source name, filled by `run`.
        resident: names of the inputs and outputs whose values stay on the device: an input's array is sent there
            by `write` alone, an output's is filled by `read` alone.
    """

    def __init__(
        self, session: Session, inputs: list[Array], outputs: list[Array], resident: frozenset[str], bound: Bound
    ) -> None:
        self._session, self._bound, self.resident = session, bound, resident
        self.inputs = {port.name: array for port, array in zip(session._in, inputs, strict=True)}
        self.outputs = {port.name: array for port, array in zip(session._out, outputs, strict=True)}

    def run(self) -> None:
        """Execute once, from `inputs` into `outputs`.

        Raises:
            NativeError: the backend failed; as for `Session.run`.
        """
        with self._session._lock:
            self._session._check_open()
            self._bound.run()

    def write(self, name: str, array: Array, row: int | None = None) -> None:
        """Put a source model's array into the buffer of the input `name`, converted as `Session.run` would.

        An input on which nothing depends is accepted, and not passed on. With `row`, the array becomes so many rows of
        the input's first axis, from that one on; the others stay as they are.

        Raises:
            InputError: there is no such input, or the array has another shape or dtype, or values out of range.
            UsageError: with `row`, the artifact holds the input's axes in another order.
        """
        if name not in self.inputs:
            ignored = [port for port in self._session._description.ignored if port.name == name]
            if not ignored:
                raise InputError("no such input", where=name, hint=nearest(name, self.inputs))
            return
        port = next(port for port in self._session._in if port.name == name)
        buffer, end = self.inputs[name], None
        if row is not None:
            end = row + len(array)
            if port.perm is not None or not 0 <= row < end <= len(buffer):
                raise UsageError(f"rows {row} to {end - 1} cannot be written", where=name)
            buffer = buffer[row:end]
            port = replace(port, shape=buffer.shape, native_shape=buffer.shape)
        to_native([port], gather([port], {name: array}), [buffer])
        if name in self.resident:
            with self._session._lock:
                self._session._check_open()
                self._bound.upload(list(self.inputs).index(name), row or 0, end)

    def read(self, name: str) -> Array:
        """The output `name` of the last run as the source model has it, a fresh array."""
        constants = self._session._description.constants
        if name in constants:
            return constants[name].copy()
        port = next((port for port in self._session._out if port.name == name), None)
        if port is None:
            raise InputError("no such output", where=name, hint=nearest(name, self.outputs))
        if name in self.resident:
            with self._session._lock:
                self._session._check_open()
                self._bound.download(list(self.outputs).index(name))
        return from_native(port, self.outputs[name])

    def copy(self, output: str, name: str, row: int = 0, *, source: Binding | None = None) -> None:
        """Copy an output of the last run into an input, as it is, where both lie: on the device if they are resident.

        This is how a cache grows by one row a step without leaving the device.

        Args:
            output: an output of `source`.
            name: the input; beyond the first axis its native shape is the output's.
            row: index on the first axis of the input where the output's first row goes.
            source: another session's binding, in the same process; by default this one.

        Raises:
            InputError: there is no such output or input.
            UsageError: dtype or shape differ, or the rows lie outside of the input.

        Example:
            >>> decoder = session.bind(resident=("kv_cache", "kv_row"))   # doctest: +SKIP
            >>> decoder.run()                                             # doctest: +SKIP
            >>> decoder.copy("kv_row", "kv_cache", row=17)                # doctest: +SKIP
        """
        given = source or self
        if output not in given.outputs:
            raise InputError("no such output", where=output, hint=nearest(output, given.outputs))
        if name not in self.inputs:
            raise InputError("no such input", where=name, hint=nearest(name, self.inputs))
        made, taken = given.outputs[output], self.inputs[name]
        if made.dtype != taken.dtype or made.ndim == 0 or made.shape[1:] != taken.shape[1:]:
            raise UsageError(
                f"{output} is {made.dtype} {show(made.shape)}, {name} is {taken.dtype} {show(taken.shape)}",
                hint="dtype and all axes but the first must be equal",
            )
        if row < 0 or row + made.shape[0] > taken.shape[0]:
            raise UsageError(f"rows {row} to {row + made.shape[0] - 1} are not in {name}, which has {taken.shape[0]}")
        with self._session._lock:
            self._session._check_open()
            given._session._check_open()
            self._copy(given, output, name, row)

    def _copy(self, given: Binding, output: str, name: str, row: int) -> None:
        numbers = list(given.outputs).index(output), list(self.inputs).index(name)
        resident = output in given.resident, name in self.resident
        if all(resident) and self._bound.copy(given._bound, *numbers, row):
            return
        if resident[0]:
            given._bound.download(numbers[0])
        rows = given.outputs[output]
        self.inputs[name][row : row + len(rows)] = rows
        if resident[1]:
            self._bound.upload(numbers[1], row, row + len(rows))


Execute = Callable[[Sequence[Array], Sequence[Array] | None], list[Array]]


class HostBound:
    """Arrays of an engine that computes where they lie: nothing is sent anywhere. `execute` runs it on them."""

    def __init__(self, execute: Execute, inputs: Sequence[Array], outputs: Sequence[Array]) -> None:
        self._execute, self._inputs, self._outputs = execute, inputs, outputs

    def run(self) -> None:
        self._execute(self._inputs, self._outputs)

    def upload(self, number: int, first: int = 0, end: int | None = None) -> None:
        """Nothing to do."""

    def download(self, number: int) -> None:
        """Nothing to do."""

    def copy(self, source: Bound, output: int, number: int, row: int) -> bool:
        """Left to the caller, who has the arrays."""
        return False

    def close(self) -> None:
        """Nothing to do."""


def caller_buffers(ports: Sequence[Port], given: Mapping[str, Array], faults: list[Fault], side: str) -> list[Array]:
    """The caller's arrays in the order of `ports`, made where they are not given; what does not fit is a fault."""
    names = {port.name for port in ports} | {port.tensor for port in ports}
    faults += [Fault(f"no such {side}", where=n, hint=nearest(n, names)) for n in given if n not in names]
    arrays: list[Array] = []
    for port in ports:
        shape = port.fixed_shape or ()
        array = given.get(port.name, given.get(port.tensor))
        if array is None:
            array = np.zeros(shape, port.native)
        elif array.dtype != port.native or array.shape != shape or not array.flags.c_contiguous:
            got = f"{array.dtype} {show(array.shape)}" + ("" if array.flags.c_contiguous else ", not contiguous")
            faults.append(Fault(f"expected {port.native} {show(shape)}, got {got}", where=port.name))
        elif side == "output" and not array.flags.writeable:
            faults.append(Fault("the buffer is read-only", where=port.name))
        arrays.append(array)
    return arrays

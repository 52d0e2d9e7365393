# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""An .om file on an Ascend chip, through pyACL.

Inputs and outputs have buffers on the device that live as long as the session; a binding has its own, of which some
may stay there between runs. With dynamic gears the shapes of the inputs choose the gear.

Facts: shared/reference/ascend_facts.md 3.1 (calls and their order), 4.7 (caches that stay on the device).
"""

from __future__ import annotations

import contextlib
import ctypes
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from npukit import targets
from npukit.artifacts.context import read_sidecar
from npukit.ascend import om
from npukit.errors import Fault, InputError, ModelError, NpukitError, UsageError
from npukit.qnn.graph import DType, Graph, Tensor
from npukit.runtime.acl import (
    DEVICE_TO_DEVICE,
    DEVICE_TO_HOST,
    DYNAMIC_INPUT,
    HOST_TO_DEVICE,
    Acl,
    Device,
)
from npukit.runtime.contract import Array, Port, ignored_ports, native_ports, ports_of, show
from npukit.runtime.engine import Bound, Description, Placement, ProfileEvent, Request
from npukit.worker import note

if TYPE_CHECKING:
    from npukit.artifacts.stamp import Stamp

# aclDataType ([RT] include/external/acl/acl_base_rt.h in the facts, 3.1)
_DTYPES: Final = {
    0: DType.FLOAT_32, 1: DType.FLOAT_16, 2: DType.INT_8, 3: DType.INT_32, 4: DType.UINT_8, 6: DType.INT_16,
    7: DType.UINT_16, 8: DType.UINT_32, 9: DType.INT_64, 10: DType.UINT_64, 11: DType.FLOAT_64, 12: DType.BOOL_8,
    27: DType.BFLOAT_16,
}  # fmt: skip
# An output may carry the name of the node that makes it: NODE:INDEX:NAME.
_NODE_PREFIX: Final = re.compile(r".*:\d+:(?=[^:])")
_ALL_GEARS: Final = -1  # index that asks for the gears of all inputs together


def open_engine(request: Request) -> AclEngine:
    """An engine for an .om file, or the bytes of one.

    Raises:
        ArtifactError: it is no whole .om file, or its sidecar belongs to another one.
        MissingDependency: pyACL or the device is not there.
        ModelError: it has inputs or outputs that cannot be driven.
        NativeError: CANN refuses it.
        UsageError: it was compiled for another chip.
    """
    path = None if request.path is None else Path(request.path)
    content = request.content or b""
    file = om.read(path) if path is not None else om.parse(content)
    stamp = read_sidecar(path) if path is not None else None
    engine = AclEngine(stamp, file, path.name if path is not None else file.name)
    try:
        engine.open(path if path is not None else content, request)
    except BaseException:
        with contextlib.suppress(NpukitError):  # the first error is the one to show
            engine.close()
        raise
    return engine


@dataclass(frozen=True)
class _Io:
    """An input or output as the model describes it: a dimension of -1 is open."""

    name: str
    dtype: DType
    dims: tuple[int, ...]
    size: int


@dataclass(frozen=True)
class _Gear:
    """Shapes of all inputs that go together, and how they are asked for."""

    shapes: tuple[tuple[int, ...], ...]
    select: Callable[[Acl, int, int, int], None]


class AclEngine:
    """A model on a device.

    Args:
        stamp: the sidecar's stamp, if there is one.
        file: what the file says about itself.
        where: its name, for messages.
    """

    def __init__(self, stamp: Stamp | None, file: om.OmFile, where: str) -> None:
        self._stamp, self._file, self._where = stamp, file, where
        self._stack = contextlib.ExitStack()
        self._bound: list[_Buffers] = []
        self._own: _Buffers | None = None

    def open(self, source: Path | bytes, request: Request) -> None:
        """Load the model and describe it; raises as `open_engine`."""
        self.device = self._stack.enter_context(Device())
        self._check_chip(request.target)
        acl = self.acl = self.device.acl
        note("acl.mdl.load")
        self.model = self._load(source)
        self._stack.callback(self._release, "mdl.unload", self.model)
        self.desc = acl("mdl.create_desc")
        self._stack.callback(self._release, "mdl.destroy_desc", self.desc)
        acl("mdl.get_desc", self.desc, self.model)
        inputs, outputs = self._ios("input"), self._ios("output")
        self.gear_index = next((i for i, io in enumerate(inputs) if io.name == DYNAMIC_INPUT), None)
        self.gear_bytes = 0 if self.gear_index is None else inputs[self.gear_index].size
        self.in_places = [i for i in range(len(inputs)) if i != self.gear_index]
        self._inputs, self._outputs = [inputs[i] for i in self.in_places], outputs
        self._gears = self._read_gears()
        self._refuse_open_shapes()
        self.description = self._describe()

    def _load(self, source: Path | bytes) -> int:
        if isinstance(source, Path):
            return int(self.acl("mdl.load_from_file", str(source.resolve())))
        self._content = ctypes.create_string_buffer(source, len(source))  # kept: ACL may go on reading it
        return int(self.acl("mdl.load_from_mem", ctypes.addressof(self._content), len(source)))

    def _check_chip(self, target: str | None) -> None:
        made_for = str(self._stamp.options.get("soc_version", "")) if self._stamp is not None else ""
        made_for = made_for or self._file.noted.get("SoC", "")
        if target is not None:
            asked = targets.target(target).soc_version
            if asked != self.device.soc:
                raise UsageError(f"the device is {self.device.soc}, not {asked or target}", where="target")
        if made_for.startswith("Ascend") and made_for != self.device.soc:
            raise UsageError(
                f"it was compiled for {made_for}, the device is {self.device.soc}", where=self._where,
                hint=f"compile the model for it: npukit compile MODEL --target {self.device.soc.lower()}",
            )  # fmt: skip

    # ------------------------------------------------------------ what the model takes and gives

    def _ios(self, side: str) -> list[_Io]:
        acl, handle = self.acl, self.desc
        found, faults = [], []
        for i in range(acl(f"mdl.get_num_{side}s", handle)):
            name = str(acl(f"mdl.get_{side}_name_by_index", handle, i))
            number = acl(f"mdl.get_{side}_data_type", handle, i)
            dims = tuple(int(d) for d in acl(f"mdl.get_{side}_dims", handle, i)["dims"])
            size = int(acl(f"mdl.get_{side}_size_by_index", handle, i))
            if number not in _DTYPES:
                faults.append(Fault(f"its {side} has the dtype {number} of ACL, which no array has", name))
                continue
            found.append(_Io(name, _DTYPES[number], dims, size))
        if faults:
            raise ModelError("the model cannot be fed", where=self._where, faults=faults)
        return found

    def _read_gears(self) -> list[_Gear]:
        if self.gear_index is None:
            return []
        acl, handle = self.acl, self.desc
        count = int(acl("mdl.get_input_dynamic_gear_count", handle, _ALL_GEARS))
        if count:
            rows = acl("mdl.get_input_dynamic_dims", handle, _ALL_GEARS, count)
            return [self._dims_gear([int(d) for d in row["dims"]]) for row in rows]
        batches = [int(n) for n in acl("mdl.get_dynamic_batch", handle)["batch"]]
        if batches:
            return [_Gear(self._filled(n), _selects("mdl.set_dynamic_batch_size", n)) for n in batches]
        sizes = [(int(h), int(w)) for h, w in acl("mdl.get_dynamic_hw", handle, _ALL_GEARS)["hw"]]
        return [_Gear(self._filled(h, w), _selects("mdl.set_dynamic_hw_size", h, w)) for h, w in sizes]

    def _dims_gear(self, dims: list[int]) -> _Gear:
        """A gear of dynamic dims: the dimensions of all inputs, one after the other."""
        shapes, at = [], 0
        for io in self._inputs:
            shapes.append(tuple(dims[at : at + len(io.dims)]))
            at += len(io.dims)
        value = {"name": "", "dimCount": len(dims), "dims": dims}
        return _Gear(tuple(shapes), _selects("mdl.set_input_dynamic_dims", value))

    def _filled(self, *sizes: int) -> tuple[tuple[int, ...], ...]:
        """The inputs' shapes with their open dimensions taken from `sizes`, for each input from the first."""
        shapes = []
        for io in self._inputs:
            left = iter(sizes)
            shapes.append(tuple(next(left, 1) if d < 0 else d for d in io.dims))
        return tuple(shapes)

    def _refuse_open_shapes(self) -> None:
        open_ = [io for io in (*self._inputs, *self._outputs) if any(d < 0 for d in io.dims)]
        if open_ and not self._gears:
            raise ModelError(
                "the model has open shapes, which npukit does not drive", where=self._where,
                faults=[Fault(f"its shape is {show(io.dims)}", io.name) for io in open_],
                hint="compile it with fixed shapes, or with gears: --dynamic-dims",
            )  # fmt: skip

    def _describe(self) -> Description:
        stamp = self._stamp
        sides = []
        for side, ios in (("inputs", self._inputs), ("outputs", self._outputs)):
            tensors = [Tensor(_NODE_PREFIX.sub("", io.name), io.dtype, io.dims) for io in ios]
            if len({t.name for t in tensors}) < len(tensors):
                tensors = [Tensor(io.name, io.dtype, io.dims) for io in ios]
            sides.append(_by_stamp(tensors, [io.tensor for io in getattr(stamp, side)] if stamp else []))
        graph = Graph(self._file.name, sides[0], sides[1])
        if stamp is None or self._gears:  # a stamp has one shape an input
            ports = [native_ports(graph.inputs), native_ports(graph.outputs)]
            ports = [[_opened(port) for port in side] for side in ports]
        else:
            ports = [ports_of(stamp, graph, "inputs"), ports_of(stamp, graph, "outputs")]
        self._in_order = [[t.name for t in graph.inputs].index(port.tensor) for port in ports[0]]
        self._out_order = [[t.name for t in graph.outputs].index(port.tensor) for port in ports[1]]
        self._in_ports, self._out_ports = ports
        return Description(
            backend="acl",
            close_in_order=True,  # the device
            graph=self._file.name,
            inputs=tuple(ports[0]),
            outputs=tuple(ports[1]),
            placement=(Placement(self._file.name or self._where, "", "acl", "compiled into the .om file"),),
            stamp=stamp,
            library=f"pyACL on {self.device.soc}, device {self.device.number}",
            ignored=ignored_ports(stamp, graph) if stamp is not None else (),
            notes=tuple(
                f"gear {i + 1} of {len(self._gears)}: {', '.join(map(show, gear.shapes))}"
                for i, gear in enumerate(self._gears)
            ),
        )

    # ------------------------------------------------------------ running

    def execute(self, inputs: Sequence[Array], outputs: Sequence[Array] | None) -> list[Array]:
        """Run on arrays in port order."""
        self.device.use()
        if self._own is None:
            self._own = _Buffers(self)
        return self._own.run(inputs, outputs)

    def bind(
        self, inputs: Sequence[Array], outputs: Sequence[Array], resident_inputs: frozenset[int],
        resident_outputs: frozenset[int],
    ) -> Bound:  # fmt: skip
        """Arrays tied to buffers on the device, of which those named by number stay there between runs."""
        self.device.use()
        buffers = _Buffers(self)
        try:
            return AclBound(self, buffers, inputs, outputs, resident_inputs, resident_outputs)
        except BaseException:
            with contextlib.suppress(NpukitError):  # the first error is the one to show
                buffers.close()
            raise

    def profile(self, inputs: Sequence[Array], runs: int) -> list[ProfileEvent]:
        """Mean times of the copies and of the execution; pyACL measures no single ops this way."""
        self.device.use()
        self._own = self._own or _Buffers(self)
        sums: dict[str, float] = {}
        for _ in range(runs):
            marks: list[tuple[str, float]] = []
            self._own.run(inputs, None, marks)
            for (_, before), (name, after) in zip(marks, marks[1:], strict=False):
                sums[name] = sums.get(name, 0.0) + after - before
        parts = [ProfileEvent(name, round(1e6 * total / runs), "us", "run") for name, total in sums.items()]
        return [ProfileEvent("run", sum(part.value for part in parts), "us"), *parts]

    def gear(self, shapes: Sequence[tuple[int, ...]]) -> _Gear:
        """The gear whose shapes these are, in the model's order.

        Raises:
            InputError: there is none; the gears are listed.
        """
        for gear in self._gears:
            if gear.shapes == tuple(shapes):
                return gear
        known = [Fault(", ".join(f"{io.name} {show(s)}" for io, s in zip(self._inputs, gear.shapes, strict=True)),
                       f"gear {i + 1}") for i, gear in enumerate(self._gears)]  # fmt: skip
        got = ", ".join(f"{io.name} {show(s)}" for io, s in zip(self._inputs, shapes, strict=True))
        raise InputError(f"the model was not compiled for {got}", where=self._where, faults=known)

    def keep(self, buffers: _Buffers) -> None:
        """Free `buffers` with the engine."""
        self._bound.append(buffers)

    def close(self) -> None:
        """Free everything: buffers, description, model, then the device; any number of calls is fine."""
        bound, self._bound = self._bound, []
        self._own = None
        stack, self._stack = self._stack, contextlib.ExitStack()
        with stack:  # what is left runs even if a part of it fails
            for buffers in bound:
                stack.callback(buffers.close)
            if bound:
                stack.callback(self.device.use)

    def _release(self, name: str, handle: int) -> None:
        self.device.use()
        self.acl(name, handle)


def _selects(function: str, *values: Any) -> Callable[[Acl, int, int, int], None]:
    def select(acl: Acl, model: int, dataset: int, index: int) -> None:
        acl(function, model, dataset, index, *values)

    return select


def _by_stamp(tensors: list[Tensor], names: list[str]) -> list[Tensor]:
    """The tensors under the stamp's names: atc may call them otherwise, but keeps their order."""
    if not names or len(names) != len(tensors) or {t.name for t in tensors} == set(names):
        return tensors
    return [replace(tensor, name=name) for tensor, name in zip(tensors, names, strict=True)]


def _opened(port: Port) -> Port:
    shape = tuple(None if d == -1 else d for d in port.native_shape)
    return replace(port, shape=shape, native_shape=shape) if None in shape else port


class _Buffers:
    """One buffer on the device for each input and output, in the datasets that ACL runs on. Freed with the engine."""

    def __init__(self, engine: AclEngine) -> None:
        self._engine, self._acl = engine, engine.acl
        self._stack = contextlib.ExitStack()
        try:
            self._allocate(engine)
        except BaseException:
            with contextlib.suppress(NpukitError):  # the first error is the one to show
                self.close()
            raise
        engine.keep(self)

    def _allocate(self, engine: AclEngine) -> None:
        sizes = [io.size for io in engine._inputs]
        if engine.gear_index is not None:  # allocated, never written
            sizes.insert(engine.gear_index, engine.gear_bytes)
        addresses, self._input_set = self._dataset(sizes)
        self.inputs = [addresses[i] for i in engine.in_places]
        self.outputs, self._output_set = self._dataset([io.size for io in engine._outputs])

    def _dataset(self, sizes: list[int]) -> tuple[list[int], int]:
        acl, free = self._acl, self._stack.callback
        dataset = acl("mdl.create_dataset")
        free(acl, "mdl.destroy_dataset", dataset)
        addresses = []
        for size in sizes:
            address = self._engine.device.malloc(max(size, 1))
            free(acl, "rt.free", address)
            buffer = acl("create_data_buffer", address, size)
            free(acl, "destroy_data_buffer", buffer)
            acl("mdl.add_dataset_buffer", dataset, buffer)
            addresses.append(address)
        return addresses, dataset

    def run(
        self, inputs: Sequence[Array], outputs: Sequence[Array] | None, marks: list[tuple[str, float]] | None = None,
        *, stay_in: frozenset[int] = frozenset(), stay_out: frozenset[int] = frozenset(),
    ) -> list[Array]:  # fmt: skip
        """Send, execute, fetch, in port order; numbers in `stay_in` and `stay_out` are left where they are."""
        engine = self._engine
        given = list(inputs)
        marks = marks if marks is not None else []
        shapes = [()] * len(given)
        for place, array in zip(engine._in_order, given, strict=True):
            shapes[place] = array.shape
        gear = engine.gear(shapes) if engine._gears else None
        marks.append(("", time.perf_counter()))
        for number, array in enumerate(given):
            if number not in stay_in:
                self.send(number, array)
        marks.append(("copy inputs", time.perf_counter()))
        if gear is not None:
            assert engine.gear_index is not None
            gear.select(self._acl, engine.model, self._input_set, engine.gear_index)
        note("acl.mdl.execute")
        self._acl("mdl.execute", engine.model, self._input_set, self._output_set)
        marks.append(("execute", time.perf_counter()))
        results = list(outputs) if outputs is not None else [self._made(n) for n in range(len(engine._out_order))]
        for number, array in enumerate(results):
            if number not in stay_out:
                self.fetch(number, array)
        marks.append(("copy outputs", time.perf_counter()))
        return results

    def _made(self, number: int) -> Array:
        """An array for an output; with gears, of the shape of the run that is over."""
        engine = self._engine
        place = engine._out_order[number]
        io = engine._outputs[place]
        dims = io.dims
        if engine._gears:
            found = self._acl("mdl.get_cur_output_dims", engine.desc, place)
            dims = tuple(int(d) for d in found["dims"])
        array = np.empty(dims, io.dtype.numpy)
        if array.nbytes > io.size:
            raise ModelError(
                f"{io.name} has {io.size} bytes on the device, its shape {show(dims)} needs {array.nbytes}"
            )
        return array

    def send(self, number: int, array: Array, first: int = 0, end: int | None = None) -> None:
        """Copy an input, or rows of it, to the device."""
        part = array[first:end] if first or end is not None else array
        row = array.nbytes // array.shape[0] if array.ndim and array.shape[0] else 0
        address = self.inputs[self._engine._in_order[number]] + first * row
        if part.nbytes:
            self._engine.device.copy(address, part.ctypes.data, part.nbytes, HOST_TO_DEVICE)

    def fetch(self, number: int, array: Array) -> None:
        """Copy an output from the device."""
        if array.nbytes:
            address = self.outputs[self._engine._out_order[number]]
            self._engine.device.copy(array.ctypes.data, address, array.nbytes, DEVICE_TO_HOST)

    def close(self) -> None:
        """Free everything; any number of calls is fine."""
        self._stack.close()


class AclBound:
    """Arrays tied to buffers on the device; see `npukit.runtime.engine.Bound`."""

    def __init__(
        self, engine: AclEngine, buffers: _Buffers, inputs: Sequence[Array], outputs: Sequence[Array],
        stay_in: frozenset[int], stay_out: frozenset[int],
    ) -> None:  # fmt: skip
        self._engine, self._buffers = engine, buffers
        self._inputs, self._outputs, self._stay_in, self._stay_out = inputs, outputs, stay_in, stay_out
        for number in sorted(stay_in):
            buffers.send(number, inputs[number])

    def run(self) -> None:
        self._engine.device.use()
        self._buffers.run(self._inputs, self._outputs, stay_in=self._stay_in, stay_out=self._stay_out)

    def upload(self, number: int, first: int = 0, end: int | None = None) -> None:
        self._engine.device.use()
        self._buffers.send(number, self._inputs[number], first, end)

    def download(self, number: int) -> None:
        self._engine.device.use()
        self._buffers.fetch(number, self._outputs[number])

    def copy(self, source: Bound, output: int, number: int, row: int) -> bool:
        if not isinstance(source, AclBound) or source._engine.device.number != self._engine.device.number:
            return False
        made, taken = source._outputs[output], self._inputs[number]
        at = row * (taken.nbytes // taken.shape[0])
        self._engine.device.use()
        self._engine.device.copy(
            self._buffers.inputs[self._engine._in_order[number]] + at,
            source._buffers.outputs[source._engine._out_order[output]],
            made.nbytes, DEVICE_TO_DEVICE,
        )  # fmt: skip
        return True

    def close(self) -> None:
        self._engine.device.use()
        self._buffers.close()

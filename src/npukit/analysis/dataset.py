# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""Calibration data: samples from folders, files, the SDK's input lists and Python, checked while they are read.

What the names and headers of files show is checked when a data set is opened. What needs the data (NaN, ranges of
whole numbers, images) is checked in the first pass over them, so that nothing is read twice: at the first fault the
rest of the data is only checked, and the error lists all of it. `Dataset.check` makes that pass on its own.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import shutil
import weakref
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from npukit.analysis import dataset_sources as sources
from npukit.analysis.dataset_sources import Cell, Entry, Port, Source
from npukit.analysis.preprocess import Preprocessing
from npukit.analysis.preprocess_spec import YUV
from npukit.analysis.samples import Array, InputInfo, Sample
from npukit.errors import Fault, InputError, NpukitError

log = logging.getLogger(__name__)

_NAMED = 5  # files that one warning names
_MAPPED = 64 << 20  # bytes read through one mapping of a file before it is made anew


def open_dataset(
    source: Path | str | Iterable[Any] | Mapping[str, npt.ArrayLike],
    inputs: Sequence[InputInfo],
    *,
    preprocessing: Preprocessing | Mapping[str, Any] | Path | str | None = None,
    limit: int | None = None,
    recursive: bool = False,
) -> Dataset:
    """Calibration data as samples of a model's inputs.

    Args:
        source: a folder, an image, a .npy, .npz or .raw file, an input list of the SDK, "module:function", arrays by
            input name with a leading sample axis, or an iterable of samples (arrays, tuples, mappings, paths).
        inputs: name, shape and dtype of the model's inputs; data may name them as the artifact does.
        preprocessing: what is done with images and uint8 pixels; None: they must fit, and go in as 0 to 255.
        limit: at most so many samples, before they are grouped into the model's batch.
        recursive: also the images or files in the folders below.

    Raises:
        InputError: nothing is found, or what is found does not fit the model; all faults are listed.
        NpukitError: a file or folder cannot be read.
    """
    if limit is not None and limit < 1:
        raise InputError(f"a limit of {limit} samples leaves none", where="limit")
    known = [info for info in inputs if not all(isinstance(n, int) and n >= 0 for n in info.shape)]
    faults = [Fault(f"the shape {list(i.shape)} is open", i.name, "fix it at conversion") for i in known]
    if not inputs:
        faults.append(Fault("the model has no inputs"))
    if faults:
        raise InputError("the model cannot be calibrated", faults=faults)
    recipe = Preprocessing.load(preprocessing) if preprocessing is not None else None
    faults += recipe.faults(inputs) if recipe else []
    found = sources.find(source, inputs, recipe, limit, recursive, faults)
    data = Dataset(inputs, found, recipe, limit, faults)
    if faults:
        data._finish(faults, 0)
    return data


class Dataset:
    """Samples by input name, read anew in each pass: `len(data)` runs of the model.

    Attributes:
        sha256: identity of the data and of what is done with them: names, sizes and times of files, contents of
            arrays in memory, preprocessing, limit, the model's inputs. A calibration resumes only where it is the same.
        units: samples that the source holds; a model with a batch takes several in a run.
    """

    def __init__(
        self,
        inputs: Sequence[InputInfo],
        source: Source,
        recipe: Preprocessing | None,
        limit: int | None,
        faults: list[Fault],
    ) -> None:
        self._ports = sources.ports(inputs)
        self._origin = source.origin
        self._recipe = recipe
        self._notes = _Notes(list(source.warnings))
        self._noted = 0  # units that warnings know of
        self._cached: tuple[int, dict[str, Array]] = (-1, {})
        self._mapped = 0
        self._entries: list[tuple[Entry, dict[str, int]]] = []
        self._starts: list[int] = []
        self.units = 0
        if source.folder:
            weakref.finalize(self, shutil.rmtree, source.folder, True)
        for entry in source.entries:
            counts = self._count(entry, faults)
            if counts:
                self._entries.append((entry, counts))
                self._starts.append(self.units)
                self.units += max(counts.values())
        if not self._entries and not faults:
            faults.append(Fault("there are no samples", self._origin))
        self.units = min(self.units, limit or self.units)
        self._batch = max(1, min((port.batch for port in self._ports.values()), default=1))
        what = [(p.info.name, p.shape, p.dtype.name) for p in self._ports.values()]
        steps = recipe.to_dict() if recipe else None
        text = json.dumps([source.identity, what, steps, self.units], sort_keys=True, default=str)
        self.sha256 = hashlib.sha256(text.encode()).hexdigest()
        self._warn_of_the_whole()

    def __len__(self) -> int:
        return -(-self.units // self._batch)

    def __iter__(self) -> Iterator[Sample]:
        return self.iterate()

    @property
    def warnings(self) -> list[str]:
        """What may make a bad model without being an error; complete after a whole pass."""
        return self._notes.warnings()

    def describe(self) -> str:
        """One line for people."""
        count = f"{self.units} {'sample' if self.units == 1 else 'samples'} from {self._origin}"
        grouped = f" in {len(self)} batches of {self._batch}" if self._batch > 1 else ""
        steps = f", preprocessing {self._recipe.origin or 'as given'}" if self._recipe else ""
        return f"{count}{grouped}{steps}"

    def iterate(self, start: int = 0) -> Iterator[Sample]:
        """The samples from number `start` on: arrays of the inputs' shapes and dtypes, C-contiguous, the caller's.

        Raises:
            InputError: at the first sample with a fault, with the faults of all that follow.
        """
        for number in range(start, len(self)):
            faults: list[Fault] = []
            rows = [self._row(min(i, self.units - 1), faults) for i in self._members(number)]
            if faults:
                self._finish(faults, (number + 1) * self._batch)
            yield {name: self._join(port, [row[name] for row in rows]) for name, port in self._ports.items()}

    def check(self) -> None:
        """Read all samples and raise what is wrong with any of them; `warnings` is complete afterwards."""
        for _ in self.iterate():
            pass

    def _members(self, number: int) -> range:
        return range(number * self._batch, (number + 1) * self._batch)

    @staticmethod
    def _join(port: Port, rows: list[Array]) -> Array:
        return np.stack(rows) if port.batch else rows[0]

    def _finish(self, faults: list[Fault], start: int) -> None:
        """Check the units from `start` on too, then raise everything."""
        for index in range(start, self.units):
            self._row(index, faults)
        raise InputError("the calibration data cannot be used", where=self._origin, faults=_once(faults))

    # --- structure ---

    def _count(self, entry: Entry, faults: list[Fault]) -> dict[str, int]:
        """Units of each input in an entry, by the headers of its files; empty, with a fault, where it is of no use."""
        counts: dict[str, int] = {}
        before = len(faults)
        for name, port in self._ports.items():
            if name not in entry:
                faults.append(Fault(f"nothing for the input {name!r}", sources.place(entry)))
                continue
            try:
                counts[name] = self._units(port, entry[name])
            except NpukitError as error:
                faults.append(Fault(error.what, error.where or entry[name].where, error.hint))
        if len(faults) > before:
            return {}
        if any(n not in (1, max(counts.values())) for n in counts.values()):
            text = ", ".join(f"{name}: {n}" for name, n in counts.items())
            faults.append(Fault(f"the inputs have different numbers of samples ({text})", sources.place(entry)))
            return {}
        return counts

    def _pixels(self, port: Port, cell: Cell) -> int:
        """Rank of one image where the preprocessing is for the uint8 pixels in this cell, else 0.

        An array that has the shape and dtype of the input is ready already.
        """
        spec = self._recipe.spec(port.info) if self._recipe else None
        if spec is None or cell.dtype != np.uint8 or cell.shape is None or len(cell.shape) < 2:
            return 0
        if port.dtype == np.uint8 and port.count(cell.shape) > 0:
            return 0
        return 2 if spec.source in YUV or cell.shape[-1] not in (1, 3, 4) else 3

    def _units(self, port: Port, cell: Cell) -> int:
        if cell.shape is None or cell.dtype is None:
            return 1
        rank = self._pixels(port, cell)
        if rank:
            count = {rank: 1, rank + 1: cell.shape[0]}.get(len(cell.shape), -1)
        else:
            _check_kind(cell.dtype, port.dtype, cell.where)
            count = port.count(cell.shape)
        if count < 0:
            hint = f"give {list(port.shape)}, or several with a leading sample axis"
            if len(cell.shape) in (3, 4) and _moved(cell.shape[-3:], port.unit[-3:]):
                hint = "its channels are on another axis: transpose it, or give uint8 pixels and preprocessing"
            raise InputError(
                f"the shape is {list(cell.shape)}, the input {port.info.name!r} takes {list(port.shape)}",
                where=cell.where,
                hint=hint,
            )
        if count == 0:
            raise InputError("it holds no samples", where=cell.where)
        return count

    # --- data ---

    def _row(self, index: int, faults: list[Fault]) -> dict[str, Array]:
        """The arrays of one unit; what is wrong is added to `faults` and its array left out."""
        number = int(np.searchsorted(self._starts, index, "right")) - 1
        entry, counts = self._entries[number]
        try:
            arrays = self._load(number)
        except NpukitError as error:
            faults.append(Fault(error.what, error.where or sources.place(entry), error.hint))
            return {}
        row: dict[str, Array] = {}
        notes = self._notes if index >= self._noted else None
        self._noted = max(self._noted, index + 1)
        k = index - self._starts[number]
        sample = f" (sample {k})" if max(counts.values()) > 1 else ""
        for name, port in self._ports.items():
            held = arrays[name][k if counts[name] > 1 else 0]
            self._mapped += held.nbytes
            where = entry[name].where + (sample if counts[name] > 1 else "")
            try:
                if self._recipe and self._pixels(port, entry[name]):
                    held = self._recipe.apply(held, port.info).reshape(port.unit)
                row[name] = _converted(held, port, where, notes)
            except NpukitError as error:
                faults.append(Fault(error.what, where, error.hint))
        if notes is not None and len(row) == len(self._ports):
            notes.seen(row, sources.place(entry) + sample)
        return row

    def _load(self, number: int) -> dict[str, Array]:
        """The arrays of an entry as [units, ...]; those of the last entry are kept."""
        arrays = self._cached[1]
        # Pages that were read count as this process's memory for as long as they are mapped.
        stale = self._mapped > _MAPPED and all(isinstance(array, np.memmap) for array in arrays.values())
        if self._cached[0] != number or stale:
            self._cached = (-1, {})
            self._mapped = 0
            entry, counts = self._entries[number]
            arrays = {}
            for name, port in self._ports.items():
                array, cell = entry[name].read(), entry[name]
                if cell.shape not in (None, array.shape):
                    raise InputError("it changed since the data set was opened", where=cell.where)
                rank = self._pixels(port, cell)
                unit = array.shape[-rank:] if rank else port.unit
                if array.size != counts[name] * math.prod(unit):
                    raise InputError(
                        f"it gives {list(array.shape)}, the input takes {list(port.shape)}", where=cell.where
                    )
                arrays[name] = array.reshape(counts[name], *unit)
            self._cached = (number, arrays)
        return self._cached[1]

    def _warn_of_the_whole(self) -> None:
        rest = self.units % self._batch
        if rest:
            self._notes.fixed.append(
                f"{self.units} samples do not fill batches of {self._batch}: the last one is repeated "
                f"{self._batch - rest} {'time' if self._batch - rest == 1 else 'times'}"
            )
        if self.units == 1:
            self._notes.fixed.append("there is one sample only: ranges from one sample seldom hold for others")
        single = {name for _, counts in self._entries for name in counts if counts[name] < max(counts.values())}
        for name in sorted(single):
            self._notes.fixed.append(f"the input {name!r} is given once and serves all samples")


def _moved(held: tuple[int, ...], wanted: tuple[int, ...]) -> bool:
    rolled = (wanted[1:] + wanted[:1], wanted[-1:] + wanted[:-1])
    return len(held) == len(wanted) == 3 and held != wanted and held in rolled


def _once(faults: list[Fault]) -> list[Fault]:
    return list(dict.fromkeys(faults))


class _Notes:
    """What is noticed in the first pass; bounded but for 16 bytes a sample."""

    def __init__(self, fixed: list[str]) -> None:
        self.fixed = fixed
        self.digests: set[bytes] = set()
        self.places: dict[str, list[str]] = {}
        self.counts: dict[str, int] = {}
        self.samples = 0

    def add(self, what: str, where: str) -> None:
        self.counts[what] = self.counts.get(what, 0) + 1
        named = self.places.setdefault(what, [])
        if len(named) < _NAMED and where not in named:
            named.append(where)

    def seen(self, row: dict[str, Array], where: str) -> None:
        digest = hashlib.blake2b(digest_size=16)
        for name in sorted(row):
            digest.update(np.ascontiguousarray(row[name]).reshape(-1).view(np.uint8).data)
        self.samples += 1
        if digest.digest() in self.digests:
            self.add("the same as another sample", where)
        self.digests.add(digest.digest())

    def warnings(self) -> list[str]:
        result = list(self.fixed)
        for what, count in self.counts.items():
            named = self.places[what]
            more = ", ..." if count > len(named) else ""
            result.append(f"{count} {'sample is' if count == 1 else 'samples are'} {what}: {', '.join(named)}{more}")
        return result


# --- numbers ---

_FLOATS = ("float16", "bfloat16", "float32", "float64")


def _is_float(dtype: np.dtype[Any]) -> bool:
    return dtype.name in _FLOATS or dtype.name.startswith("float")


def _check_kind(held: np.dtype[Any], wanted: np.dtype[Any], where: str) -> None:
    """Refuse what no value could make fit: floats for whole numbers, text, complex numbers, objects."""
    if held.kind not in "biuf" and not _is_float(held) and held.name not in ("int4", "uint4"):
        raise InputError(f"{held.name or held} are no numbers that a model takes", where=where)
    if _is_float(held) and not _is_float(wanted):
        raise InputError(
            f"it holds {held.name}, the input takes {wanted.name}",
            where=where,
            hint=f"write it as {wanted.name}: rounding is not guessed",
        )


def _converted(array: Array, port: Port, where: str, notes: _Notes | None) -> Array:
    """A fresh array of the input's dtype with the same values; InputError where there is none, or one is not finite."""
    wanted = port.dtype
    _check_kind(array.dtype, wanted, where)
    if array.dtype == wanted or (_is_float(wanted) and _is_float(array.dtype)):
        with np.errstate(over="ignore"):
            result = np.array(array, wanted, order="C")
    else:
        result = _from_whole(array, wanted, where, notes)
    if _is_float(wanted):
        _check_finite(array, result, where)
    if notes is not None and result.size > 1 and (_is_float(wanted) or result.ndim > 2):
        first = result.reshape(-1)[0]
        if (result == first).all():
            notes.add(f"constant in the input {port.info.name!r}", where)
    return result


def _from_whole(array: Array, wanted: np.dtype[Any], where: str, notes: _Notes | None) -> Array:
    """Whole numbers or booleans as another dtype, where each has its exact value there."""
    with np.errstate(all="ignore"):
        result = np.array(array, wanted, order="C")
        back = result.astype(array.dtype)
    # Above 2^63 a float turns back into anything; such numbers are no input of a model.
    exact = back == array
    if wanted.kind in "iu" and array.dtype.kind in "iu":
        limits = np.iinfo(wanted)
        exact = exact & np.greater_equal(array, limits.min) & np.less_equal(array, limits.max)
    if not exact.all():
        at = _first(~exact)
        raise InputError(f"{array[at]} at {list(at)} has no exact value in {wanted.name}", where=where)
    if notes is not None and _is_float(wanted):
        notes.add(f"given as {array.dtype.name} and taken as {wanted.name} without scaling", where)
    return result


def _check_finite(array: Array, result: Array, where: str) -> None:
    finite = np.isfinite(result)
    if finite.all():
        return
    at = _first(~finite)
    count = int(result.size - np.count_nonzero(finite))
    value = array[at]
    if np.isfinite(value):
        raise InputError(f"{value} at {list(at)} is too large for {result.dtype.name}", where=where)
    name = "NaN" if np.isnan(value) else "infinity"
    more = f" (and {count - 1} more values that are not finite)" if count > 1 else ""
    raise InputError(f"{name} at {list(at)}{more}", where=where, hint="leave the sample out, or mend what wrote it")


def _first(wrong: npt.NDArray[np.bool_]) -> tuple[int, ...]:
    return tuple(int(i) for i in np.unravel_index(int(np.argmax(wrong)), wrong.shape))

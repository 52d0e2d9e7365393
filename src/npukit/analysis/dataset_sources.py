# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""Where calibration data come from: every kind of source as one list of entries, whose arrays are read when needed."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib
import math
import os
import re
import shutil
import sys
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from npukit import files
from npukit.analysis.preprocess import FRAMES, IMAGES, Preprocessing
from npukit.analysis.samples import Array, InputInfo, artifact_names, dtype_of
from npukit.errors import Fault, InputError, NpukitError, nearest

RAW = frozenset((".raw", ".bin"))
_MAX_LIST = 64 << 20
_FUNCTION = re.compile(r"[A-Za-z_]\w*(\.\w+)*:[A-Za-z_]\w*")


@dataclass(frozen=True)
class Port:
    """How samples of one input are cut from arrays.

    Attributes:
        unit: shape of what is counted as one sample: without the batch axis, where there is one.
        batch: how many units make up the input; 0 where the input has no batch axis.
    """

    info: InputInfo
    dtype: np.dtype[Any]
    unit: tuple[int, ...]
    batch: int

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.batch, *self.unit) if self.batch else self.unit

    def count(self, shape: tuple[int, ...]) -> int:
        """How many units an array of this shape holds; -1 where it does not fit. The rank decides what it means."""
        if shape == self.unit:
            return 1
        if shape[1:] == self.unit and len(shape) == len(self.unit) + 1:
            return shape[0]
        if self.batch and len(shape) == len(self.unit) + 2 and shape[1:] == self.shape:
            return shape[0] * self.batch
        return -1


def ports(inputs: Sequence[InputInfo]) -> dict[str, Port]:
    """A leading extent that all inputs share is the batch; where they do not agree, only a 1 is.

    A single input of three axes that looks like an image (3 or 4 channels in front, or 1, 3 or 4 at the end) has none.
    """
    leading = {info.shape[0] if len(info.shape) else 0 for info in inputs}
    several = len(leading) == 1 and all(len(info.shape) > 1 for info in inputs)
    result = {}
    for info in inputs:
        shape = tuple(int(n) for n in info.shape)
        image = len(inputs) == 1 and len(shape) == 3 and (shape[0] in (3, 4) or shape[2] in (1, 3, 4))
        batch = shape[0] if shape and (shape[0] == 1 or (several and shape[0] > 1 and not image)) else 0
        result[info.name] = Port(info, dtype_of(info), shape[1:] if batch else shape, batch)
    return result


@dataclass(frozen=True)
class Cell:
    """One file or array for one input.

    Attributes:
        where: for people: the file, its member, or the number of the sample.
        read: gives the array; called when a sample is taken.
        shape, dtype: what the header says; None for an image, which is one sample.
    """

    where: str
    read: Callable[[], Array]
    shape: tuple[int, ...] | None = None
    dtype: np.dtype[Any] | None = None


Entry = dict[str, Cell]


@dataclass
class Source:
    """All entries of a data source, in order.

    Attributes:
        origin: for people.
        identity: what must be the same for the data to be the same.
        folder: a temporary folder that holds the data; whoever keeps the source removes it.
    """

    origin: str
    entries: list[Entry] = field(default_factory=list)
    identity: list[Any] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    folder: str = ""


def place(entry: Entry) -> str:
    """What to call an entry in a message."""
    return " ".join(dict.fromkeys(cell.where for cell in entry.values()))


def find(
    source: Any,
    inputs: Sequence[InputInfo],
    recipe: Preprocessing | None,
    limit: int | None,
    recursive: bool,
    faults: list[Fault],
) -> Source:
    """The entries of any source; what is wrong with single files is added to `faults`.

    Raises:
        InputError: it is no data source at all.
        NpukitError: it cannot be read.
    """
    finder = _Finder(inputs, recipe, limit, faults)
    if isinstance(source, str) and _FUNCTION.fullmatch(source) and not Path(source).exists():
        finder.function(source)
    elif isinstance(source, str | Path):
        finder.path(Path(source), recursive)
    else:
        finder.python(source)
    return finder.found


class _Finder:
    def __init__(
        self, inputs: Sequence[InputInfo], recipe: Preprocessing | None, limit: int | None, faults: list[Fault]
    ) -> None:
        self.ports = ports(inputs)
        self.recipe = recipe
        self.limit = limit
        self.faults = faults
        self.found = Source("")
        # Each input by its name, by that in the artifact, and by both as file names can hold them.
        names = {**{name: name for name in self.ports}, **artifact_names(inputs)}
        self.names = {**{re.sub(r"[^\w.-]", "_", alias): name for alias, name in names.items()}, **names}
        self.only = next(iter(self.ports)) if len(self.ports) == 1 else ""

    def fault(self, what: str, where: Path | str, hint: str = "") -> None:
        self.faults.append(Fault(what, str(where), hint))

    # --- paths ---

    def path(self, path: Path, recursive: bool) -> None:
        self.found.origin = str(path)
        with files.os_errors(path, "read"):
            is_folder = path.stat() is not None and path.is_dir()
        if is_folder:
            self.folder(path, recursive)
        elif self.kind(path) is not None:
            self.file(path)
        else:
            self.input_list(path)

    def kind(self, path: Path) -> str | None:
        suffix = path.suffix.lower()
        if self.frames and suffix in FRAMES:
            return "image"
        kinds = {".npy": "npy", ".npz": "npz", **dict.fromkeys(RAW, "raw"), **dict.fromkeys(IMAGES, "image")}
        return kinds.get(suffix)

    @property
    def frames(self) -> bool:
        return any(spec.source in ("NV12", "NV21") for spec in (self.recipe.inputs.values() if self.recipe else ()))

    def file(self, path: Path, name: str = "") -> None:
        """A file as an entry of its own."""
        entry = self.entry_of(path, name)
        if entry is not None:
            self.found.entries.append(entry)

    def entry_of(self, path: Path, name: str = "") -> Entry | None:
        """The cells of a file for the input `name`, or for all where it is an .npz; None with a fault."""
        try:
            with files.os_errors(path, "read"):
                status = path.stat()
            self.found.identity.append([str(path), status.st_size, status.st_mtime_ns])
            if self.kind(path) == "npz":
                return self.npz_cells(path, name)
            if not (name or self.only):
                self.fault("the model has several inputs, this is data for one", path, "see the guide on folders")
                return None
            return {name or self.only: self.cell(path, name or self.only, status.st_size)}
        except NpukitError as error:
            self.fault(error.what, error.where or path, error.hint)
            return None

    def cell(self, path: Path, name: str, size: int) -> Cell:
        kind, port = self.kind(path), self.ports[name]
        if kind == "image":
            return self.image(path, port)
        if kind == "npy":
            array = files.read_npy(path)
            return Cell(str(path), lambda: files.read_npy(path), array.shape, array.dtype)
        return _raw(path, port, size)

    def image(self, path: Path, port: Port) -> Cell:
        recipe = self.recipe or Preprocessing()
        if self.recipe is None and port.dtype.kind not in "iu":
            text = f"images go into {port.info.name!r} as numbers 0 to 255: no preprocessing was given"
            self.found.warnings += [text] if text not in self.found.warnings else []
        return Cell(str(path), lambda: recipe.apply(path, port.info))

    def npz_cells(self, path: Path, name: str) -> Entry:
        headers = _npz_headers(path)
        if name or (self.only and len(headers) == 1):
            wanted = {self.label(m): m for m in headers}.get(name or self.only)
            member = wanted or (next(iter(headers)) if len(headers) == 1 else "")
            if not member:
                raise InputError(f"no array named {name!r} in the file", where=str(path), hint=nearest(name, headers))
            members = {name or self.only: member}
        else:
            members = {self.label(m): m for m in headers if self.label(m) in self.ports}
            extra = sorted(m for m in headers if self.label(m) not in self.ports)
            self.left_out("arrays that are no inputs", [f"{path.name}: {m}" for m in extra])
        entry = {}
        for label, member in members.items():
            shape, dtype = headers[member]
            entry[label] = Cell(f"{path}: {member}", functools.partial(files.map_npz_array, path, member), shape, dtype)
        return entry

    def label(self, name: str) -> str:
        return self.names.get(name, name)

    def left_out(self, what: str, names: Sequence[str]) -> None:
        if names:
            text = f"{what} are left out: {', '.join(names[:5])}{', ...' if len(names) > 5 else ''}"
            self.found.warnings += [text] if text not in self.found.warnings else []

    # --- folders ---

    def folder(self, folder: Path, recursive: bool) -> None:
        with files.os_errors(folder, "read"):
            children = sorted(c for c in folder.iterdir() if not c.name.startswith("."))
            below = [c for c in children if c.is_dir()]
            plain = [c for c in children if c.is_file()]
        named = {self.names[c.name]: c for c in below if c.name in self.names}
        if named and (len(self.ports) > 1 or not any(self.kind(c) for c in plain)):
            self.folders_by_name(folder, named)
            return
        if recursive:
            with files.os_errors(folder, "read"):
                every = [p for p in folder.rglob("*") if p.is_file()]
            plain = sorted(p for p in every if not any(s.startswith(".") for s in p.relative_to(folder).parts))
        data = self.data_files(plain, folder)
        if not data:
            hint = "its sub-folders are read on request (recursive)" if below and not recursive else "check the path"
            self.fault("there are no images, .npy, .npz or .raw files in the folder", folder, hint)
        if self.only or (data and self.kind(data[0]) == "npz"):
            for path in data:
                self.file(path)
        else:
            self.files_by_name(data)

    def data_files(self, paths: Sequence[Path], folder: Path) -> list[Path]:
        """The files of the one kind that a folder holds; several kinds are a fault."""
        kinds: dict[str, list[Path]] = {}
        for path in paths:
            kinds.setdefault(self.kind(path) or "", []).append(path)
        others = kinds.pop("", [])
        self.left_out("files of other kinds", [p.name for p in others])
        if len(kinds) > 1:
            held = ", ".join(f"{len(p)} {kind} ({p[0].name})" for kind, p in sorted(kinds.items()))
            self.fault(f"the folder mixes kinds of data: {held}", folder, "keep one kind in a folder")
        return [path for path in paths if self.kind(path)]

    def folders_by_name(self, folder: Path, named: Mapping[str, Path]) -> None:
        """A sub-folder for each input; files of the same name without ending belong together."""
        missing = [name for name in self.ports if name not in named]
        for name in missing:
            self.fault(f"there is no sub-folder for the input {name!r}", folder)
        held: dict[str, dict[str, Path]] = {}
        for name, below in named.items():
            with files.os_errors(below, "read"):
                children = sorted(c for c in below.iterdir() if c.is_file() and not c.name.startswith("."))
            data = self.data_files(children, below)
            if not data:
                self.fault(f"there is nothing for the input {name!r}", below)
            for path in data:
                if path.stem in held.setdefault(name, {}):
                    self.fault("another file has this name with another ending", path)
                held[name][path.stem] = path
        stems = sorted({stem for paths in held.values() for stem in paths})
        groups = {stem: {n: paths[stem] for n, paths in held.items() if stem in paths} for stem in stems}
        self.groups(groups, expected=[n for n in held if held[n]])

    def files_by_name(self, data: Sequence[Path]) -> None:
        """Files NAME_ANYTHING.npy in one folder; the same ANYTHING belongs together."""
        groups: dict[str, dict[str, Path]] = {}
        for path in data:
            keys = [k for k in self.names if path.stem == k or path.stem.startswith(f"{k}_")]
            if not keys:
                known = ", ".join(f"{n}_0{path.suffix}" for n in list(self.ports)[:3])
                self.fault("its name does not say which input it is for", path, f"name files {known}, ...")
                continue
            key = max(keys, key=len)
            groups.setdefault(path.stem[len(key) :].lstrip("_"), {})[self.names[key]] = path
        self.groups(groups, expected=list(self.ports))

    def groups(self, groups: Mapping[str, Mapping[str, Path]], expected: Sequence[str]) -> None:
        for key in sorted(groups):
            missing = [name for name in expected if name not in groups[key]]
            for name in missing:
                self.fault(f"there is no such file for the input {name!r}", next(iter(groups[key].values())))
            if not missing:
                self.combine([(name, path) for name, path in groups[key].items()])

    def combine(self, parts: Sequence[tuple[str, Path]]) -> None:
        """An entry of several files."""
        cells = [self.entry_of(path, name) for name, path in parts]
        if all(cells):
            self.found.entries.append({k: v for cell in cells if cell for k, v in cell.items()})

    # --- the SDK's input lists ---

    def input_list(self, path: Path) -> None:
        """Lines `name:=path name:=path`, or `path path` in the order of the inputs; # and % lines name outputs."""
        with files.os_errors(path, "read"):
            data = path.read_bytes() if path.stat().st_size <= _MAX_LIST else b"\0"
        try:
            text = data.decode()
        except UnicodeDecodeError:
            text = "\0"
        if "\0" in text:
            raise InputError(
                f"files of kind {path.suffix or 'without ending'!r} hold no samples",
                where=str(path),
                hint="use images, .npy, .npz, .raw, a text file that lists such files, or module:function",
            )
        self.found.identity.append(hashlib.sha256(data).hexdigest())
        for number, line in enumerate(text.splitlines(), 1):
            if line.strip() and not line.lstrip().startswith(("#", "%")):
                self.line(line.strip(), f"{path}, line {number}", path.parent)

    def line(self, line: str, where: str, folder: Path) -> None:
        before = len(self.faults)
        # Only a blank before another NAME:= ends a path: paths may hold blanks.
        tokens = re.split(r"\s+(?=\S+?:=)", line) if ":=" in line else self.plain_tokens(line, folder)
        parts: dict[str, Path] = {}
        for i, token in enumerate(tokens):
            name, sign, rest = token.partition(":=")
            if not sign:
                name, rest = (list(self.ports)[i] if i < len(self.ports) else ""), token
            label = self.label(name)
            if label not in self.ports:
                what = f"the model has no input {name!r}" if name else f"{len(tokens)} paths, {len(self.ports)} inputs"
                self.fault(what, where, nearest(name, self.names) if name else "check for blanks, or use NAME:=PATH")
            elif label in parts:
                self.fault(f"the input {label!r} is given twice", where)
            else:
                parts[label] = _resolve(rest.strip(), folder)
                if not parts[label].is_file():
                    self.fault(f"there is no file {rest.strip()!r}", where, f"tried in {folder} and in {Path.cwd()}")
        if len(self.faults) == before:
            for name in self.ports:
                if name not in parts:
                    self.fault(f"nothing for the input {name!r}", where)
        if len(self.faults) == before:
            self.combine(list(parts.items()))

    def plain_tokens(self, line: str, folder: Path) -> list[str]:
        return [line] if self.only and _resolve(line, folder).is_file() else line.split()

    # --- Python ---

    def function(self, text: str) -> None:
        """What a function of the user's own module returns; it runs in this process."""
        module, _, name = text.partition(":")
        with _importable(Path.cwd()):
            try:
                made = getattr(importlib.import_module(module), name)()
            except NpukitError:
                raise
            except ModuleNotFoundError as error:
                raise InputError(f"cannot import it: {error}", where=text, hint=f"looked in {Path.cwd()}") from error
            except AttributeError as error:
                raise InputError(f"cannot be called: {error}", where=text) from error
            except Exception as error:
                raise InputError(f"it raised {type(error).__name__}: {error}", where=text) from error
            self.python(made, text)

    def python(self, source: Any, origin: str = "") -> None:
        """Arrays by input name, one array, a sequence of samples (kept) or any other iterable (put on disk)."""
        self.found.origin = origin or "arrays given"
        if isinstance(source, Mapping) or hasattr(source, "__array__"):
            self.item(source, self.found.origin)
        elif isinstance(source, list | tuple):
            for i, item in enumerate(source[: self.limit]):
                self.item(item, f"{origin} sample {i}".strip())
        elif isinstance(source, Iterable):
            self.spool(source, origin)
        else:
            raise InputError(
                f"{type(source).__name__} is no data source",
                where=origin,
                hint="give a path, arrays, or an iterable of arrays or of dicts by input name",
            )

    def item(self, item: Any, where: str) -> None:
        """A sample as an entry, its arrays' contents as identity."""
        if isinstance(item, str | Path):
            self.file(Path(item))
            return
        parts = self.parts(item, where)
        entry: Entry = {}
        for name, value in parts.items():
            try:
                array = np.asarray(value)
            except Exception as error:  # of the user's own array types, and of ragged lists
                self.fault(f"no array of numbers: {error}", f"{where}: {name}")
                continue
            if array.dtype.hasobject:
                self.fault(f"{type(value).__name__} is no array of numbers", f"{where}: {name}")
                continue
            digest = hashlib.sha256(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data).hexdigest()
            self.found.identity.append([name, str(array.dtype), array.shape, digest])
            entry[name] = Cell(f"{where}: {name}", functools.partial(np.asarray, array), array.shape, array.dtype)
        if len(entry) == len(parts):
            self.found.entries.append(entry)

    def parts(self, item: Any, where: str) -> dict[str, Any]:
        if isinstance(item, Mapping):
            unknown = [key for key in item if self.label(str(key)) not in self.ports]
            for key in unknown:
                self.fault(f"the model has no input {str(key)!r}", where, nearest(str(key), self.names))
            return {self.label(str(key)): value for key, value in item.items() if key not in unknown}
        if isinstance(item, list | tuple) and len(item) == len(self.ports) and hasattr(item[0], "__array__"):
            return dict(zip(self.ports, item, strict=True))
        if self.only:
            return {self.only: item}
        self.fault(
            f"{type(item).__name__} is no sample of {len(self.ports)} inputs", where, "give a dict by input name"
        )
        return {}

    def spool(self, source: Iterable[Any], origin: str) -> None:
        """Put the samples of an iterable on disk one by one: they are read several times, it may give them once."""
        self.found.folder = files.temporary_folder()
        folder = Path(self.found.folder)
        kept: list[Entry] = []
        try:
            iterator = _guarded(source, origin)
            # The range comes first: an iterable without end must not be asked for one more.
            counted = zip(range(self.limit), iterator, strict=False) if self.limit else enumerate(iterator)
            for i, item in counted:
                self.item(item, f"{origin} sample {i}".strip())
                for entry in self.found.entries:
                    kept.append({n: _spooled(c, folder / f"{i}_{k}.npy") for k, (n, c) in enumerate(entry.items())})
                self.found.entries.clear()
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        self.found.entries = kept


def _spooled(cell: Cell, path: Path) -> Cell:
    if cell.shape is None:
        return cell
    array = cell.read()
    with files.os_errors(path, "write"):
        # A .npy file cannot name bfloat16 and its like; float32 holds all of their values.
        held = array.astype(np.float32) if array.dtype.kind == "V" else array
        np.save(path, held, allow_pickle=False)
    return Cell(cell.where, lambda: files.read_npy(path), held.shape, held.dtype)


def _guarded(source: Iterable[Any], origin: str) -> Iterator[Any]:
    try:
        yield from source
    except NpukitError:
        raise
    except Exception as error:
        raise InputError(f"it raised {type(error).__name__}: {error}", where=origin or "calibration data") from error


@contextlib.contextmanager
def _importable(folder: Path) -> Iterator[None]:
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        with contextlib.suppress(ValueError):
            sys.path.remove(str(folder))


def _resolve(text: str, folder: Path) -> Path:
    path = Path(text)
    if path.is_absolute():
        return path
    beside = folder / path
    return beside if os.path.lexists(beside) or not path.exists() else path


def _raw(path: Path, port: Port, size: int) -> Cell:
    """A raw file of one sample or one batch, in the input's dtype or (the SDK's default) in float32."""
    shapes = [port.shape, port.unit] if port.batch > 1 else [port.shape]
    kinds = list(dict.fromkeys((port.dtype, np.dtype(np.float32))))
    for dtype in kinds:
        for shape in shapes:
            if math.prod(shape) * dtype.itemsize == size:
                return Cell(str(path), functools.partial(_read_raw, path, dtype, shape, port), shape, port.dtype)
    count = math.prod(port.shape)
    expected = " or ".join(f"{count * kind.itemsize} bytes ({kind.name} {list(port.shape)})" for kind in kinds)
    raise InputError(f"expected {expected}, the file has {size}", where=str(path), hint="or give a .npy file")


def _read_raw(path: Path, dtype: np.dtype[Any], shape: tuple[int, ...], port: Port) -> Array:
    data = files.map_file(path)
    if len(data) != math.prod(shape) * dtype.itemsize:
        raise InputError("it changed since the data set was opened", where=str(path))
    array: Array = np.frombuffer(data, dtype).reshape(shape)
    if dtype == port.dtype or port.dtype.kind not in "iub":
        return array
    with np.errstate(invalid="ignore"):
        result = array.astype(port.dtype)
    if not np.array_equal(result.astype(dtype), array):
        raise InputError(f"the float32 numbers in it are not all whole numbers of {port.dtype.name}", where=str(path))
    return result


def _npz_headers(path: Path) -> dict[str, tuple[tuple[int, ...], np.dtype[Any]]]:
    """Shape and dtype of each array of an .npz, without unpacking the arrays."""
    headers = {}
    try:
        with zipfile.ZipFile(path) as archive:
            for name in archive.namelist():
                with archive.open(name) as stream:
                    shape, _, dtype = files.npy_header(stream)
                if dtype.hasobject:
                    raise ValueError(f"{name} holds Python objects, which are never unpickled")
                headers[name.removesuffix(".npy")] = (shape, dtype)
    except Exception as error:  # the zip reader and numpy's header parser raise what they like on damaged files
        raise InputError(
            f"not a sound .npz file: {error}", where=str(path), hint="write it with numpy.savez"
        ) from error
    return headers

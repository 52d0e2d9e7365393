# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""Inputs to verify a model with: files that are given, the model's own test data, or generated ones."""

from __future__ import annotations

import logging
import re
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import ml_dtypes
import numpy as np
import numpy.typing as npt

from npukit import files
from npukit.analysis import DEFAULT_SEED
from npukit.errors import Fault, InputError, NpukitError, nearest

log = logging.getLogger(__name__)

Array = npt.NDArray[np.generic]
Sample = dict[str, Array]
Implied = Callable[[str], tuple[float, float] | None]

_MAX_TEST_TENSOR = 2 << 30


class InputInfo(Protocol):
    """What is needed to know of an input; `TensorInfo` of a session has it."""

    @property
    def name(self) -> str: ...
    @property
    def shape(self) -> tuple[Any, ...]: ...
    @property
    def dtype(self) -> Any: ...


@dataclass(frozen=True)
class Samples:
    """Inputs of several runs.

    Attributes:
        origin: "given", "test_data_set", "calibration" or "generated".
        runs: arrays by input name, one mapping a run.
        seed: of generated inputs.
        made: how each input was generated, for people ("N(0, 1)", "whole numbers 0 to 30521").
    """

    origin: str
    runs: list[Sample]
    seed: int | None = None
    made: dict[str, str] = field(default_factory=dict)

    def describe(self) -> str:
        """One line for people."""
        count = f"{len(self.runs)} {'sample' if len(self.runs) == 1 else 'samples'}"
        if self.origin == "given":
            return f"{count} as given"
        if self.origin == "calibration":
            return f"{count} of the calibration data"
        if self.origin == "test_data_set":
            return f"{count} from test_data_set_* beside the model"
        how = ", ".join(f"{name}: {text}" for name, text in self.made.items())
        return f"{count} generated with seed {self.seed} ({how})"


def dtype_of(info: InputInfo) -> np.dtype[Any]:
    """The numpy dtype of an input, bfloat16 and its like included."""
    name = str(info.dtype)
    found: np.dtype[Any] = np.dtype(getattr(ml_dtypes, name) if name in _EXTRA else info.dtype)
    return found


_EXTRA = {"bfloat16", "int4", "uint4", "float8_e4m3fn", "float8_e5m2"}


def artifact_names(inputs: Sequence[InputInfo]) -> dict[str, str]:
    """Source name by artifact name, of the inputs that have another one there: every option takes either."""
    own = {info.name for info in inputs}
    names = {getattr(getattr(info, "native", None), "name", ""): info.name for info in inputs}
    return {artifact: source for artifact, source in names.items() if artifact and artifact not in own}


def read_input(path: Path, info: InputInfo) -> Array:
    """The data of an input as the file has them: see `files.load_input`."""
    return files.load_input(path, dtype_of(info), tuple(info.shape), name=info.name)


def given(
    entries: Sequence[tuple[str, Path]],
    inputs: Sequence[InputInfo],
    read: Callable[[Path, InputInfo], Array] = read_input,
) -> Samples:
    """Samples from files: the k-th file of a name belongs to the k-th run; a name without file is an error.

    A file without name is the only input, or an .npz that holds several by name. `read` reads all other files; with
    `Preprocessing.read` images go through its steps.

    Raises:
        InputError: names that the model lacks, inputs without file, different numbers of files; all are listed.
    """
    known = {info.name: info for info in inputs}
    aliases = artifact_names(inputs)
    found: dict[str, list[Array]] = {name: [] for name in known}
    faults: list[Fault] = []
    for name, path in entries:
        if not name and path.suffix.lower() == ".npz":
            for key, array in files.read_npz(path).items():
                label = aliases.get(key, key)
                _put(found, label if label in known else _only(known, key), array, path, faults)
            continue
        label = aliases.get(name, name) or _only(known, "")
        if label not in known:
            what = f"the model has no input {name!r}" if name else "the model has several inputs, say which: NAME=FILE"
            faults.append(Fault(what, str(path), nearest(name, known)))
            continue
        _put(found, label, read(path, known[label]), path, faults)
    count = max((len(arrays) for arrays in found.values()), default=0)
    for name, arrays in found.items():
        if not faults and len(arrays) not in (1, count):
            faults.append(Fault(f"{len(arrays)} files given, other inputs have {count}", name))
    if faults:
        raise InputError("the inputs given do not fit the model", where="--input", faults=faults)
    # An input that is given once serves every run.
    runs = [{name: arrays[min(i, len(arrays) - 1)] for name, arrays in found.items()} for i in range(count)]
    return Samples("given", runs)


def _only(known: Mapping[str, InputInfo], name: str) -> str:
    return next(iter(known)) if len(known) == 1 else name


def _put(found: dict[str, list[Array]], name: str, array: Array, path: Path, faults: list[Fault]) -> None:
    if name in found:
        found[name].append(array)
    else:
        faults.append(Fault(f"the model has no input {name!r}", str(path), nearest(name, found)))


def test_data_sets(model: Path, inputs: Sequence[InputInfo]) -> Samples | None:
    """Samples from the folders test_data_set_* beside an ONNX model (input_0.pb, ...); None without usable ones.

    A folder whose tensors do not fit the model is left out with a log line: it may belong to another file.
    """
    folders = sorted(
        (f for f in model.parent.glob("test_data_set_*") if re.fullmatch(r"test_data_set_\d+", f.name) and f.is_dir()),
        key=lambda f: int(f.name.rpartition("_")[2]),
    )
    runs = []
    for folder in folders:
        try:
            runs.append(_test_data(folder, inputs))
        except NpukitError as error:
            log.info("%s is not used: %s", folder.name, error)
    return Samples("test_data_set", runs) if runs else None


def _test_data(folder: Path, inputs: Sequence[InputInfo]) -> Sample:
    sample: Sample = {}
    for i, info in enumerate(inputs):
        path = folder / f"input_{i}.pb"
        name, array = _tensor(path)
        target = next((other for other in inputs if other.name == name), info)
        expected = tuple(target.shape)
        fits = len(expected) == array.ndim and all(
            not isinstance(e, int) or e == n for e, n in zip(expected, array.shape, strict=True)
        )
        if not fits or array.dtype != dtype_of(target):
            raise InputError(
                f"holds {array.dtype} {list(array.shape)}, the model takes {target.dtype} {list(expected)}",
                where=str(path),
            )
        sample[target.name] = array
    if len(sample) != len(inputs):
        raise InputError("some inputs are missing", where=str(folder))
    return sample


def _tensor(path: Path) -> tuple[str, Array]:
    import onnx
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
    from onnx import numpy_helper

    with files.os_errors(path, "read"):
        if path.stat().st_size > _MAX_TEST_TENSOR:
            raise InputError("the tensor is too large", where=str(path))
        data = path.read_bytes()
    proto = onnx.TensorProto()
    try:
        proto.ParseFromString(data)
        if proto.data_location == onnx.TensorProto.EXTERNAL:
            raise InputError("its data lie in another file", where=str(path))
        return proto.name, numpy_helper.to_array(proto)
    except (DecodeError, ValueError, TypeError, KeyError) as error:
        raise InputError(f"not a sound ONNX tensor: {error}", where=str(path)) from error


def generate(
    inputs: Sequence[InputInfo],
    count: int,
    *,
    seed: int = DEFAULT_SEED,
    ranges: Mapping[str, tuple[float, float]] | None = None,
    implied: Implied | None = None,
) -> Samples:
    """`count` random samples: floats N(0, 1), whole numbers uniform in their range, booleans either.

    The range of an integer input is the one in `ranges`, else the one that the graph implies, else (8 bits) that of
    its dtype. A float input with a range in `ranges` is uniform in it. Each input has its own stream of numbers, so
    one does not change when another is added or cut off.

    Args:
        inputs: name, shape (static) and dtype of each.
        count: how many samples.
        seed: of the generator.
        ranges: inclusive bounds by input name.
        implied: gives the inclusive bounds that a model implies for an integer input, None where it does not.

    Raises:
        InputError: inputs whose range nobody knows, open shapes, unknown names in `ranges`; all are listed.
    """
    aliases = artifact_names(inputs)
    ranges = {aliases.get(name, name): bounds for name, bounds in (ranges or {}).items()}
    names = [info.name for info in inputs]
    faults = [
        Fault(f"the model has no input {name!r}", "--input-range", nearest(name, names))
        for name in ranges
        if name not in names
    ]
    plans: dict[str, tuple[InputInfo, tuple[float, float] | None]] = {}
    for info in inputs:
        if not all(isinstance(extent, int) and extent >= 0 for extent in info.shape):
            faults.append(Fault(f"the shape {list(info.shape)} is open", info.name, "give the input with --input"))
            continue
        bounds = _bounds(info, ranges, implied)
        if bounds is None and _is_integer(dtype_of(info)):
            faults.append(
                Fault("which whole numbers make sense is not known", info.name, f"--input-range {info.name}=LO:HI")
            )
        plans[info.name] = info, bounds
    if faults:
        raise InputError("inputs cannot be generated", faults=faults, hint="or give real inputs with --input NAME=FILE")
    runs = [
        {name: _draw(info, bounds, [seed, i, zlib.crc32(name.encode())]) for name, (info, bounds) in plans.items()}
        for i in range(count)
    ]
    made = {name: _describe(dtype_of(info), bounds) for name, (info, bounds) in plans.items()}
    return Samples("generated", runs, seed, made)


def _bounds(
    info: InputInfo, ranges: Mapping[str, tuple[float, float]], implied: Implied | None
) -> tuple[float, float] | None:
    if info.name in ranges:
        return ranges[info.name]
    dtype = dtype_of(info)
    if not _is_integer(dtype):
        return None
    found = implied(info.name) if implied is not None else None
    if found is None and dtype.itemsize == 1:
        return (-8, 7) if dtype == ml_dtypes.int4 else (0, 15) if dtype == ml_dtypes.uint4 else _limits(dtype)
    return found


def _limits(dtype: np.dtype[Any]) -> tuple[float, float]:
    info = np.iinfo(dtype)
    return int(info.min), int(info.max)


def _is_integer(dtype: np.dtype[Any]) -> bool:
    return np.issubdtype(dtype, np.integer) or dtype in (np.dtype(ml_dtypes.int4), np.dtype(ml_dtypes.uint4))


def _draw(info: InputInfo, bounds: tuple[float, float] | None, seed: list[int]) -> Array:
    random = np.random.default_rng(seed)
    dtype, shape = dtype_of(info), tuple(info.shape)
    if dtype == np.bool_:
        return random.integers(0, 2, shape).astype(np.bool_)
    if _is_integer(dtype) and bounds is not None:
        return random.integers(int(bounds[0]), int(bounds[1]), shape, endpoint=True).astype(dtype)
    if bounds is not None:
        return random.uniform(*bounds, shape).astype(dtype)
    return random.standard_normal(shape, np.float32).astype(dtype)


def _describe(dtype: np.dtype[Any], bounds: tuple[float, float] | None) -> str:
    if dtype == np.bool_:
        return "booleans"
    if bounds is None:
        return "N(0, 1)"
    kind = "whole numbers" if _is_integer(dtype) else "uniform"
    return f"{kind} {bounds[0]:.15g} to {bounds[1]:.15g}"

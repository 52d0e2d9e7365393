# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""The ONNX backend test cases: enumeration, a cache on disk, and the variants of a case.

A case is named `kind/test_name`. Enumerating the node tests takes seconds (onnx computes them), so the parent
writes every case once to a cache in ONNX's own layout (model.onnx, test_data_set_N/input_M.pb) and workers read
from there. Which of them can mean something on an NPU, what is left out and why, and what the peer (ONNX
Runtime's QNN provider) does with each, was measured once and is kept in cases.json.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import tempfile
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper

KINDS = ("node", "simple", "pytorch-operator", "pytorch-converted")
VARIANTS = {
    "a": "as is",
    "b": "all inputs but the first floating-point one turned into constants",
    "c": "all inputs but the first turned into constants",
}
_TABLE = Path(__file__).with_name("cases.json")
_LIGHT = Path(onnx.__file__).parent / "backend" / "test" / "data" / "light"
_PEER = {"p": "pass", "w": "wrong", "f": "folded", "u": "unsupported", "c": "crash", "r": "run_error"}


@dataclass(frozen=True)
class Table:
    """What cases.json holds.

    Attributes:
        cases: deployable case -> the peer's status by backend ("cpu", "htp").
        aux: as `cases`, for the cases with a zero-size auxiliary input, which are counted apart.
        left_out: reason -> cases that no NPU deployment can mean.
    """

    cases: dict[str, dict[str, str]]
    aux: dict[str, dict[str, str]]
    left_out: dict[str, list[str]]

    @property
    def light(self) -> list[str]:
        """The light models of the onnx package: structure only, as their weights make every output constant."""
        return [f"light/{file.stem}" for file in sorted(_LIGHT.glob("*.onnx"))]


def table() -> Table:
    """The committed table of cases."""
    raw = json.loads(_TABLE.read_text())

    def peer(codes: dict[str, str]) -> dict[str, dict[str, str]]:
        return {name: {"cpu": _PEER[code[0]], "htp": _PEER[code[1]]} for name, code in codes.items()}

    return Table(peer(raw["cases"]), peer(raw["aux"]), raw["left_out"])


@dataclass(frozen=True)
class Case:
    """One case as loaded: the model, and per data set the inputs by name and the expected outputs in order."""

    name: str
    model: onnx.ModelProto
    data: tuple[tuple[dict[str, Any], tuple[Any, ...]], ...]


def write_cache(folder: Path, kinds: Iterable[str] = KINDS) -> Path:
    """Write all cases of the installed onnx to `folder`/<onnx version> unless they are there; returns that folder."""
    root = folder / f"onnx-{onnx.__version__}"
    if (root / "done").exists():
        return root
    folder.mkdir(parents=True, exist_ok=True)
    # Several processes may come here at once: each writes its own, the first to be done gives it its name.
    with tempfile.TemporaryDirectory(prefix=root.name, dir=folder) as temporary:
        made = Path(temporary, "cases")
        _write_all(made, kinds)
        if not (root / "done").exists():
            shutil.rmtree(root, ignore_errors=True)  # left by a run that was ended
        with contextlib.suppress(OSError):
            made.rename(root)
    return root


def _write_all(root: Path, kinds: Iterable[str]) -> None:
    import onnx.backend.test.loader as loader

    wanted = {*table().cases, *table().aux}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for kind in kinds:
            for case in loader.load_model_tests(kind=kind):
                if f"{kind}/{case.name}" in wanted:
                    _write_case(root / kind / case.name, case)
    for file in _LIGHT.glob("*.onnx"):
        _write_light(root / "light" / file.stem, file)
    (root / "done").touch()


def _write_case(target: Path, case: Any) -> None:
    if case.model_dir is not None:
        shutil.copytree(case.model_dir, target)
        return
    target.mkdir(parents=True)
    onnx.save(case.model, target / "model.onnx")
    for index, (inputs, outputs) in enumerate(case.data_sets):
        folder = target / f"test_data_set_{index}"
        folder.mkdir()
        for role, values in (("input", inputs), ("output", outputs)):
            for i, value in enumerate(values):
                proto = value if isinstance(value, onnx.TensorProto) else numpy_helper.from_array(np.asarray(value))
                (folder / f"{role}_{i}.pb").write_bytes(proto.SerializeToString())


def _write_light(target: Path, file: Path) -> None:
    """A light model with one data set: some image, and the output that onnx ships for any."""
    folder = target / "test_data_set_0"
    folder.mkdir(parents=True)
    model = onnx.load(file)
    initializers = {tensor.name for tensor in model.graph.initializer}
    (image,) = (value for value in model.graph.input if value.name not in initializers)
    shape = [dim.dim_value for dim in image.type.tensor_type.shape.dim]
    array = np.random.default_rng(0).standard_normal(shape, np.float32)
    (folder / "input_0.pb").write_bytes(numpy_helper.from_array(array).SerializeToString())
    shutil.copy(file, target / "model.onnx")
    shutil.copy(file.with_name(f"{file.stem}_output_0.pb"), folder / "output_0.pb")


def load(root: Path, name: str) -> Case:
    """The case `name` from the cache `root`."""
    folder = root / name
    model = onnx.load(folder / "model.onnx")
    initializers = {tensor.name for tensor in model.graph.initializer}
    names = [value.name for value in model.graph.input if value.name not in initializers]
    data = []
    for data_set in sorted(folder.glob("test_data_set_*")):
        inputs = _read(data_set, "input")
        if len(inputs) > len(names):  # the data set also gives initializers that are listed as inputs
            names = [value.name for value in model.graph.input]
        data.append((dict(zip(names, inputs, strict=False)), tuple(_read(data_set, "output"))))
    return Case(name, model, tuple(data))


def _read(folder: Path, role: str) -> list[Any]:
    arrays = []
    for index in range(len(list(folder.glob(f"{role}_*.pb")))):
        proto = onnx.TensorProto()
        proto.ParseFromString((folder / f"{role}_{index}.pb").read_bytes())
        arrays.append(numpy_helper.to_array(proto))
    return arrays


def variant(case: Case, letter: str) -> Case | None:
    """The case with inputs turned into constants as `letter` of VARIANTS says; None where that changes nothing."""
    if letter == "a":
        return case
    kept = _kept(case, letter)
    if kept is None:
        return None
    model = onnx.ModelProto()
    model.CopyFrom(case.model)
    model.ir_version = max(model.ir_version, 4)  # before IR 4 an initializer had to be an input too
    values = case.data[0][0]
    for name, value in values.items():
        if name not in kept:
            model.graph.initializer.append(numpy_helper.from_array(np.asarray(value), name))
    keep = [info for info in model.graph.input if info.name in kept]
    del model.graph.input[:]
    model.graph.input.extend(keep)
    data = tuple(({n: v for n, v in inputs.items() if n in kept}, outputs) for inputs, outputs in case.data[:1])
    return Case(case.name, model, data)


def _kept(case: Case, letter: str) -> set[str] | None:
    """Names of the inputs that stay run-time inputs in variant `letter`."""
    names = list(case.data[0][0]) if case.data else []
    if len(names) < 2:
        return None
    types = {info.name: info.type.tensor_type.elem_type for info in case.model.graph.input}
    floating = [name for name in names if types.get(name) in _FLOATS]
    if letter == "b":
        return {floating[0]} if floating else None
    # c differs from b only where the first input is not the first floating-point one
    return None if floating and floating[0] == names[0] else {names[0]}


_FLOATS = {
    onnx.TensorProto.FLOAT,
    onnx.TensorProto.FLOAT16,
    onnx.TensorProto.DOUBLE,
    onnx.TensorProto.BFLOAT16,
}


def input_shapes(case: Case) -> dict[str, tuple[int, ...]]:
    """Shapes of the first data set by input name: what freezes the dynamic dimensions."""
    return {name: tuple(int(n) for n in np.shape(value)) for name, value in case.data[0][0].items()}


def ops(model: onnx.ModelProto) -> Sequence[str]:
    """Op types of the main graph, in order of appearance, each once."""
    return tuple(dict.fromkeys(node.op_type for node in model.graph.node))

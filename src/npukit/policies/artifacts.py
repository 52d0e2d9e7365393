# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""From a component's float32 ONNX model to the artifact of a backend, through npukit's own verbs."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from npukit.errors import UsageError, nearest
from npukit.policies.package import Component
from npukit.policies.stages import Stage, Stages

Array = npt.NDArray[Any]

FLOATS = ("float32", "float16")
_QUANTIZED = re.compile(r"w(4|8|16)a(8|16)")
# Backend -> precisions that it holds, the first by default; "w*a*" stands for all that `_QUANTIZED` reads. "int8" is
# `ort_weights`: 8-bit weights, activations rounded as they come, nothing calibrated.
HELD: dict[str, tuple[str, ...]] = {
    "ort": ("float32", "int8"),
    "qnn-cpu": ("float32",),
    "qnn-htp": ("float16", "w*a*"),
}


@dataclass(frozen=True)
class Task:
    """One artifact to make.

    Attributes:
        component: its name.
        backend: key of `HELD`.
        precision: "float32", "float16", or as "w8a16".
        target: chip, "" for a portable artifact.
    """

    component: str
    backend: str
    precision: str
    target: str = ""

    @property
    def key(self) -> str:
        """What the manifest lists it under."""
        return f"{self.backend}:{self.target}" if self.target else self.backend


@dataclass(frozen=True)
class Artifact:
    """One artifact that was made.

    Attributes:
        task: what was asked for.
        path: relative to the folder.
        size: bytes, everything that belongs to it.
        dlc: the DLC that a context binary was compiled from; else as `path`.
        gflop: cost of a run; None where the source itself is the artifact.
        stages: what was done.
        notes: what one may want to know.
    """

    task: Task
    path: str
    size: int
    dlc: str = ""
    gflop: float | None = None
    stages: tuple[Stage, ...] = ()
    notes: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        return {
            "component": self.task.component,
            "backend": self.task.key,
            "precision": self.task.precision,
            "path": self.path,
            "bytes": self.size,
            "gflop": self.gflop,
            "notes": list(self.notes),
        }


def quantized(precision: str) -> tuple[int, int] | None:
    """Bits of weights and activations of a precision such as "w8a16"; None for floats."""
    match = _QUANTIZED.fullmatch(precision)
    return (int(match[1]), int(match[2])) if match else None


def holds(backend: str, precision: str, written: str = "float32") -> bool:
    """Whether a backend's artifacts can have a precision, of models that are written in `written`."""
    family = "w*a*" if quantized(precision) else precision
    return family in _held(backend, written)


def _held(backend: str, written: str) -> tuple[str, ...]:
    return (written,) if backend == "ort" and written != "float32" else HELD[backend]


def parse_precisions(texts: Sequence[str]) -> dict[str, str]:
    """`w8a16`, `action_head=float16` and `ort=int8` as {"": "w8a16", "action_head": "float16", "ort": "int8"}.

    Raises:
        UsageError: no such precision, or a component twice.
    """
    found: dict[str, str] = {}
    for text in (part for item in texts for part in item.split(",") if part):
        name, _, value = text.rpartition("=")
        if value not in (*FLOATS, "int8") and not quantized(value):
            raise UsageError(f"{value!r} is not a precision", where="--precision",
                             hint="write float32, float16, int8, w8a16; COMPONENT=w8a16; BACKEND=int8")  # fmt: skip
        if name in found:
            raise UsageError(f"given twice for {name or 'all components'}", where="--precision",
                             hint="write BACKEND=PRECISION or COMPONENT=PRECISION")  # fmt: skip
        found[name] = value
    return found


def plan(
    components: Sequence[Component], backends: Sequence[str], precisions: Mapping[str, str], targets: Sequence[str],
    written: str = "float32",
) -> list[Task]:  # fmt: skip
    """What is to be made of models that are written in `written`.

    Raises:
        UsageError: a precision that none of the backends holds, or for a component that there is not.
    """
    names = [component.name for component in components]
    for name, precision in precisions.items():
        if name and name not in names and name not in backends:
            known = (*names, *backends)
            raise UsageError(f"the policy has no component {name!r}", where="--precision", hint=nearest(name, known))
        able = [name] if name in backends else backends
        if not any(holds(backend, precision, written) for backend in able):
            raise UsageError(f"{' and '.join(able)} cannot hold {precision}", where="--precision",
                             hint="float16 and as w8a16 are for --backend qnn-htp, int8 is for ort")  # fmt: skip
    tasks = []
    for backend in backends:
        for name in names:
            keys = (name, backend, "")
            given = [precisions[key] for key in keys if key in precisions]
            asked = [precision for precision in given if holds(backend, precision, written)]
            precision = asked[0] if asked else _held(backend, written)[0]
            chips = list(targets) if backend == "qnn-htp" and targets else [""]
            tasks += [Task(name, backend, precision, chip) for chip in chips]
    return tasks


def make(task: Task, folder: Path, model: str, samples: list[dict[str, Array]], options: Mapping[str, Any]) -> Artifact:
    """Make an artifact in `folder` (to be called in a process of its own, for the sake of memory).

    Of a chip's it is the DLC, of which `compiled` makes the context binary.

    Args:
        task: what.
        folder: where the component's ONNX model lies, and where the artifact goes.
        model: the ONNX model's name.
        samples: inputs of the component by name, for calibration.
        options: "threads".

    Raises:
        NpukitError: the component cannot be converted or quantized.
    """
    if task.backend == "ort" and task.precision in FLOATS:
        return Artifact(task, model, _bytes(folder, model))
    stages = Stages(f"{task.component} for {task.key}: ")
    if task.backend == "ort":
        return _eight_bits(task, folder, model, stages)
    dlc = f"{task.component}.{task.precision}{'.' + task.target if task.target else ''}.dlc"
    bits = quantized(task.precision)
    chip = task.target or ("qnn-cpu" if task.backend == "qnn-cpu" else "")
    with stages("quantize" if bits else "convert"):
        if bits:
            made = _quantize(folder / model, folder / dlc, bits, chip, samples, options)
        else:
            made = _convert(folder / model, folder / dlc, task.precision, chip, options)
    gflop, notes = made
    return Artifact(task, dlc, (folder / dlc).stat().st_size, dlc, gflop, tuple(stages.found), notes)


def compiled(artifact: Artifact, folder: Path) -> Artifact:
    """The context binary of a DLC that `make` made for a chip; in another process, as a library needs gigabytes again.

    Raises:
        NpukitError: the DLC cannot be compiled.
    """
    from npukit.verbs.compile import CompileOptions, CompileResult, compile

    task = artifact.task
    stages = Stages(f"{task.component} for {task.key}: ")
    binary = f"{task.component}.{task.target}.bin"
    with stages("compile"):
        result = compile(CompileOptions(folder / artifact.dlc, output=folder / binary, target=task.target))
    assert isinstance(result, CompileResult)
    done = (*artifact.stages, *stages.found)
    return replace(artifact, path=binary, size=result.size, stages=done, notes=(*artifact.notes, *result.notes))


def _eight_bits(task: Task, folder: Path, model: str, stages: Stages) -> Artifact:
    from npukit.policies.ort_weights import quantize_weights

    name = f"{task.component}.int8.onnx"
    with stages("8-bit weights"):
        counts = quantize_weights(folder / model, folder / name)
    note = (
        f"{counts.dynamic} products in 8 bits, {counts.blocks} with 8-bit weights in blocks, {counts.left} in float32"
    )
    size = sum(path.stat().st_size for path in belonging(folder, name))
    return Artifact(task, name, size, stages=tuple(stages.found), notes=(note,))


def _convert(
    model: Path, output: Path, precision: str, chip: str, options: Mapping[str, Any]
) -> tuple[float, tuple[str, ...]]:
    from npukit.verbs.convert import ConvertOptions, convert

    result = convert(
        ConvertOptions(
            model, output=output, target=(chip or "htp-v73",), float_bitwidth=16 if precision == "float16" else 32,
            verify=False, threads=options.get("threads"),
        )
    )  # fmt: skip
    return result.converted.gflop, result.converted.notes


def _quantize(
    model: Path, output: Path, bits: tuple[int, int], chip: str, samples: list[dict[str, Array]],
    options: Mapping[str, Any],
) -> tuple[float, tuple[str, ...]]:  # fmt: skip
    from npukit.verbs.quantize import QuantizeOptions, quantize

    used = _used(model)  # inputs on which nothing depends are not among those that are calibrated
    given = [{name: array for name, array in sample.items() if name in used} for sample in samples]
    result = quantize(
        QuantizeOptions(
            model, output=output, calibration=given, target=(chip,) if chip else (), weights=bits[0],
            activations=bits[1], verify=False, resume=False, threads=options.get("threads"),
        )
    )  # fmt: skip
    q = result.quantized
    kinds = ", ".join(f"{count} in {name}" for name, count in q.precisions.items())
    return q.gflop, (f"{sum(q.ops.values())} QNN ops ({kinds}), {q.samples} calibration samples", *q.notes)


def _used(model: Path) -> set[str]:
    """Names that the nodes of an ONNX graph take."""
    import onnx

    graph = onnx.load(model, load_external_data=False).graph
    return {name for node in graph.node for name in node.input}


def belonging(folder: Path, model: str) -> list[Path]:
    """An artifact's files: itself, those beside it that carry its name on (a stamp), and its external data."""
    found = {path for path in folder.glob(f"{model}*") if path.name == model or path.name[len(model)] == "."}
    if model.endswith(".onnx"):
        import onnx

        for tensor in onnx.load(folder / model, load_external_data=False).graph.initializer:
            found.update(folder / entry.value for entry in tensor.external_data if entry.key == "location")
    return sorted(found)


def _bytes(folder: Path, model: str) -> int:
    """Of a model and of its tensors outside it, whatever else their files hold."""
    import onnx

    graph = onnx.load(folder / model, load_external_data=False).graph
    lengths = (int(entry.value) for t in graph.initializer for entry in t.external_data if entry.key == "length")
    return (folder / model).stat().st_size + sum(lengths)


def feeds(samples: Sequence[Any]) -> list[dict[str, Array]]:
    """The inputs of recorded samples, as `quantize` takes them."""
    return [{name: np.asarray(array) for name, array in sample.inputs.items()} for sample in samples]

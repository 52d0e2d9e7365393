# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""Observations from .npz files, or made up."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from npukit import files
from npukit.errors import Fault, InputError
from npukit.policies.package import Feature, Manifest
from npukit.policies.processing import TASK, TEXT_STEPS

Array = npt.NDArray[Any]
Observation = dict[str, Any]

TASKS = ("pick up the red block", "push the green cube to the left", "open the top drawer", "put the bowl on the plate")


def read(path: Path | str) -> list[Observation]:
    """The observations of a .npz file, or of all in a folder: each array has a leading axis, one entry an observation.

    `task` is an array of texts, or one text for all; in its place `tasks` and `task_index` may stand, as in
    demonstrations. Arrays that are not part of an observation are not looked at.

    Raises:
        InputError: the arrays do not have the same number of entries, or the folder has no such file.
        NpukitError: the file cannot be read, or holds Python objects.
    """
    path = Path(path)
    if path.is_dir():
        found = sorted(path.glob("*.npz"))
        if not found:
            raise InputError("the folder holds no .npz file", where=str(path))
        return [observation for file in found for observation in read(file)]
    held = files.read_npz(path)
    arrays = {name: array for name, array in held.items() if name == TASK or name.startswith("observation.")}
    if TASK not in held and {"tasks", "task_index"} <= set(held):
        arrays[TASK] = _spoken(held["tasks"], held["task_index"], str(path))
    counts = {name: len(a) for name, a in arrays.items() if a.ndim and not (name == TASK and a.size == 1)}
    if not counts:
        raise InputError("the file holds no observations", where=str(path),
                         hint="numpy.savez(FILE, **{name: array with one entry for each observation})")  # fmt: skip
    if len(set(counts.values())) > 1:
        faults = [Fault(f"{count} observations", where=name) for name, count in counts.items()]
        raise InputError("the arrays are not of the same length", where=str(path), faults=faults)
    (count,) = set(counts.values())
    return [{name: _entry(name, array, i) for name, array in arrays.items()} for i in range(count)]


def _spoken(tasks: Array, index: Array, where: str) -> Array:
    if (
        index.dtype.kind not in "iu"
        or tasks.ndim != 1
        or (index.size and not 0 <= index.min() <= index.max() < len(tasks))
    ):
        raise InputError("task_index does not count tasks", where=where)
    found: Array = tasks[index]
    return found


def _entry(name: str, array: Array, i: int) -> Any:
    if name != TASK:
        return array[i]
    return str(array.reshape(-1)[0 if array.size == 1 else i])


def write(path: Path | str, observations: Sequence[Mapping[str, Any]]) -> None:
    """Write observations as `read` reads them; all must have the same entries of the same shapes."""
    names = list(observations[0]) if observations else []
    arrays: dict[str, Any] = {name: np.stack([np.asarray(o[name]) for o in observations]) for name in names}
    with files.atomic_write(path) as temp, open(temp, "wb") as stream:
        np.savez_compressed(stream, **arrays)


def generate(
    manifest: Manifest, statistics: Mapping[str, Array], count: int, seed: int = 0
) -> list[Observation]:  # fmt: skip
    """Made-up observations: smooth random images, states as the statistics have them, a few instructions."""
    return made_up(manifest.inputs, manifest.preprocessing, statistics, count, seed)


def made_up(
    inputs: Mapping[str, Feature], steps: Sequence[Mapping[str, Any]], statistics: Mapping[str, Array], count: int,
    seed: int = 0,
) -> list[Observation]:  # fmt: skip
    """`generate` for a policy that has no manifest yet; names are those before renaming."""
    rng = np.random.default_rng(seed)
    names = {new: old for step in steps if step["step"] == "rename" for old, new in step["map"].items()}
    optional = {name for step in steps if step["step"] == "fill_cameras" for name in step["names"]}
    observations = []
    for i in range(count):
        observation: Observation = {}
        for name, feature in inputs.items():
            if name in optional:
                continue
            make = _image if feature.kind == "VISUAL" else _state
            observation[names.get(name, name)] = make(name, feature, statistics, rng)
        for step in steps:
            if step["step"] in TEXT_STEPS:  # at most a token a letter, one before them, and a line's end
                observation[TASK] = TASKS[i % len(TASKS)][: max(int(step["max_length"]) - 3, 1)]
        observations.append(observation)
    return observations


def _image(name: str, feature: Feature, statistics: Mapping[str, Array], rng: np.random.Generator) -> Array:
    channels, height, width = feature.shape
    coarse = rng.random((8, 8, channels), dtype=np.float32)
    rows = np.minimum(np.arange(height) * 8 // height, 7)
    columns = np.minimum(np.arange(width) * 8 // width, 7)
    pixels = coarse[rows][:, columns] * 224 + rng.random((height, width, channels), dtype=np.float32) * 31
    return pixels.astype(np.uint8)


def _state(name: str, feature: Feature, statistics: Mapping[str, Array], rng: np.random.Generator) -> Array:
    values = rng.standard_normal(feature.shape, dtype=np.float32)
    for centre, spread in (("mean", "std"), ("min", "max"), ("q01", "q99"), ("q10", "q90")):
        first, second = statistics.get(f"{name}.{centre}"), statistics.get(f"{name}.{spread}")
        if first is None or second is None:
            continue
        if centre == "mean":
            return np.asarray(first + values * second, np.float32)
        share = rng.random(feature.shape, dtype=np.float32)
        return np.asarray(first + share * (second - first), np.float32)
    return values

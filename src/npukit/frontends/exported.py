# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""What front ends share that have a framework's own exporter write ONNX: the result, and how far the two differ."""

from __future__ import annotations

import atexit
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from npukit.files import temporary_folder

Array = np.ndarray[Any, Any]

_SUSPECT = 1e-2  # of an output's range: more than rounding does


@dataclass(frozen=True)
class Exported:
    """A framework's program as ONNX.

    Attributes:
        path: the ONNX file, its weights beside it where they are large; it lives as long as this process.
        notes: what was done, and how far the framework itself and the ONNX file differ.
        digest: gives the SHA-256 of what the user handed in.
    """

    path: Path
    notes: tuple[str, ...]
    digest: Callable[[], str]


def plain(text: str) -> str:
    """What a framework says, without Python's way of naming a class or an object."""
    text = re.sub(r"<class '([^']*)'>", r"\1", text)
    return re.sub(r"<([\w.]+) (?:object )?at 0x[0-9a-f]+>", r"\1", text)


def new_folder() -> Path:
    """A temporary folder that is removed when this process ends."""
    folder = temporary_folder()
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return Path(folder)


def against_onnx(framework: str, inputs: Sequence[Array], expected: Sequence[Array], path: Path) -> str:
    """One sentence on the largest difference between a framework's results and the ONNX file on ONNX Runtime.

    Args:
        framework: its name, and with a blank its version.
        inputs: in the order of the file's inputs.
        expected: what the framework gives for them, in the order of the file's outputs.
        path: the ONNX file.
    """
    import onnxruntime

    name = framework.partition(" ")[0]
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    # the framework holds the weights already: let these stay mapped, neither folded nor packed into copies
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.add_session_config_entry("session.disable_prepacking", "1")
    try:
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        wanted = session.get_inputs()
        if len(wanted) != len(inputs):
            return f"{name} was not compared: it takes {len(inputs)} tensors, the exported ONNX {len(wanted)}"
        feeds = {port.name: array for port, array in zip(wanted, inputs, strict=True)}
        got = session.run(None, feeds)
    except Exception as error:
        return f"ONNX Runtime did not run the exported ONNX ({' '.join(str(error).split())[:200]})"
    if len(got) != len(expected):
        return f"{name} gives {len(expected)} tensors, the exported ONNX {len(got)}: they were not compared"
    worst, share, where = 0.0, 0.0, ""
    for port, theirs, ours in zip(session.get_outputs(), expected, got, strict=True):
        if theirs.shape != ours.shape:
            return f"WARNING: {name} gives {port.name!r} the shape {theirs.shape}, the exported ONNX {ours.shape}"
        difference, part = _difference(theirs, ours)
        if not where or part > share or np.isnan(part):
            worst, share, where = difference, part, port.name
    text = (
        f"{framework} and the exported ONNX (the reference of the verification) differ by at most "
        f"{worst:.2g} on the same inputs, {share:.2g} of the range of {where!r}"
    )
    return text if share <= _SUSPECT else f"WARNING: {text}"


def write_samples(arrays: Mapping[str, Array], folder: Path) -> bool:
    """Example inputs as test_data_set_* in `folder`, where the verification finds them; whether there is a need.

    There is where an input holds whole numbers: which ones make sense, only the examples say. Floats are drawn anew in
    a second sample, because examples are often all zeros or ones.
    """
    from onnx import numpy_helper

    if all(array.dtype.kind == "f" for array in arrays.values()):
        return False
    generator = np.random.default_rng(0)
    drawn: dict[str, Array] = {
        name: np.asarray(generator.standard_normal(array.shape)).astype(array.dtype)
        if array.dtype.kind == "f"
        else generator.permuted(array.reshape(-1)).reshape(array.shape)
        for name, array in arrays.items()
    }
    for number, sample in enumerate((arrays, drawn)):
        place = folder / f"test_data_set_{number}"
        place.mkdir()
        for i, (name, array) in enumerate(sample.items()):
            (place / f"input_{i}.pb").write_bytes(numpy_helper.from_array(array, name).SerializeToString())
    return True


def _difference(theirs: Array, ours: Array) -> tuple[float, float]:
    if theirs.size == 0:
        return 0.0, 0.0
    a, b = theirs.astype(np.float64), ours.astype(np.float64)
    same = (a == b) | (np.isnan(a) & np.isnan(b))
    largest = float(np.where(same, 0.0, np.abs(a - b)).max())
    finite = a[np.isfinite(a)]
    extent = float(np.ptp(finite)) if finite.size else 0.0
    return largest, largest / (extent or float(np.abs(finite).max(initial=0.0)) or 1.0)

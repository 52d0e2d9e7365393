# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""Runs PyTorch's program and the ONNX exported from it on the same inputs, and says how far they differ."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

_SUSPECT = 1e-2  # of an output's range: more than rounding does


def against_onnx(torch: Any, program: Any, args: tuple[Any, ...], kwargs: dict[str, Any], path: Path) -> str:
    """One sentence on the largest difference between `program` on these inputs and the ONNX file on ONNX Runtime."""
    import onnxruntime

    flat = torch.utils._pytree.tree_leaves
    try:
        with torch.no_grad():
            expected = [array_of(torch, value) for value in flat(program(*args, **kwargs)) if _is_tensor(torch, value)]
    except Exception as error:
        return f"PyTorch did not run the program on its example inputs ({' '.join(str(error).split())[:200]})"
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    # torch holds the weights already: let these stay mapped, neither folded nor packed into copies
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.add_session_config_entry("session.disable_prepacking", "1")
    try:
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        inputs = [array_of(torch, value) for value in flat((args, kwargs)) if _is_tensor(torch, value)]
        wanted = session.get_inputs()
        if len(wanted) != len(inputs):
            return f"PyTorch was not compared: it takes {len(inputs)} tensors, the exported ONNX {len(wanted)}"
        feeds = {port.name: array for port, array in zip(wanted, inputs, strict=True)}
        got = session.run(None, feeds)
    except Exception as error:
        return f"ONNX Runtime did not run the exported ONNX ({' '.join(str(error).split())[:200]})"
    if len(got) != len(expected):
        return f"PyTorch gives {len(expected)} tensors, the exported ONNX {len(got)}: they were not compared"
    worst, share, where = 0.0, 0.0, ""
    for port, theirs, ours in zip(session.get_outputs(), expected, got, strict=True):
        if theirs.shape != ours.shape:
            return f"WARNING: PyTorch gives {port.name!r} the shape {theirs.shape}, the exported ONNX {ours.shape}"
        difference, part = _difference(theirs, ours)
        if not where or part > share or np.isnan(part):
            worst, share, where = difference, part, port.name
    text = (
        f"PyTorch {torch.__version__} and the exported ONNX (the reference of the verification) differ by at most "
        f"{worst:.2g} on the same inputs, {share:.2g} of the range of {where!r}"
    )
    return text if share <= _SUSPECT else f"WARNING: {text}"


def write_samples(arrays: dict[str, np.ndarray[Any, Any]], folder: Path) -> bool:
    """Example inputs as test_data_set_* in `folder`, where the verification finds them; whether there is a need.

    There is where an input holds whole numbers: which ones make sense, only the examples say. Floats are drawn anew in
    a second sample, because examples are often all zeros or ones.
    """
    from onnx import numpy_helper

    if all(array.dtype.kind == "f" for array in arrays.values()):
        return False
    generator = np.random.default_rng(0)
    drawn = {
        name: generator.standard_normal(array.shape).astype(array.dtype)
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


def _difference(theirs: np.ndarray[Any, Any], ours: np.ndarray[Any, Any]) -> tuple[float, float]:
    if theirs.size == 0:
        return 0.0, 0.0
    a, b = theirs.astype(np.float64), ours.astype(np.float64)
    same = (a == b) | (np.isnan(a) & np.isnan(b))
    largest = float(np.where(same, 0.0, np.abs(a - b)).max())
    finite = a[np.isfinite(a)]
    extent = float(np.ptp(finite)) if finite.size else 0.0
    return largest, largest / (extent or float(np.abs(finite).max(initial=0.0)) or 1.0)


def _is_tensor(torch: Any, value: Any) -> bool:
    return isinstance(value, torch.Tensor)


def array_of(torch: Any, tensor: Any) -> np.ndarray[Any, Any]:
    """A tensor's values; bfloat16 as float32."""
    tensor = tensor.detach().cpu()
    found: np.ndarray[Any, Any] = (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).numpy()
    return found

# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""TensorFlow Lite files against what TensorFlow Lite's interpreter computed from them (tests/data/tflite/make.py)."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from npukit.frontends.onnx import LoadOptions

pytest.importorskip("tflite")

DATA = Path(__file__).parent / "data" / "tflite"


@functools.cache
def cases(family: str) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {}
    for path in sorted(DATA.glob(f"{family}_?.npz")):
        with np.load(path) as arrays:
            for key in arrays.files:
                case, side, *name = key.split("/", 2)
                row = found.setdefault(case, {"in": {}, "out": {}})
                if side == "model":
                    row["model"] = arrays[key].tobytes()
                else:
                    row[side][name[0]] = arrays[key]
    return found


def lowered(content: bytes, path: str = "raise", options: LoadOptions | None = None) -> Any:
    from conformance import execute
    from npukit.frontends.tflite import load
    from npukit.lowering import LowerOptions, lower
    from npukit.targets import target

    chip = target({"cpu": "qnn-cpu", "raise": "qnn-cpu", "htp": "sm8650"}[path])
    validators = {} if path == "raise" else {chip.name: execute._backend(path).validate}
    return lower(load(content, options).model, (chip,), LowerOptions(), validators)


def compute(result: Any, feeds: dict[str, Any], path: str) -> dict[str, Any]:
    from conformance import execute

    names = [tensor.held.source for tensor in result.graph.outputs]
    if not names:
        return dict(result.folded)
    with execute._executor(path, result.graph) as run:
        return {**result.folded, **dict(zip(names, run(feeds), strict=True))}


FAMILIES = ("spatial", "unary", "binary", "moves", "reduce")
FLOAT = [(family, case) for family in FAMILIES for case in cases(f"ops_{family}") if case != "fake_quant"]
PATHS = [pytest.param("raise"), pytest.param("cpu", marks=pytest.mark.native)]


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(("family", "case"), FLOAT)
def test_float_operators(family: str, case: str, path: str):
    row = cases(f"ops_{family}")[case]
    found = compute(lowered(row["model"], path), row["in"], path)
    assert found.keys() == row["out"].keys()
    for name, want in row["out"].items():
        got = found[name]
        assert got.shape == want.shape
        assert got.dtype == want.dtype
        scale = float(np.abs(want.astype(np.float64)).max(initial=1e-6))
        np.testing.assert_allclose(got.astype(np.float64), want.astype(np.float64), rtol=1e-5, atol=1e-5 * scale)

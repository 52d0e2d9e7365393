# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""Runs a source model and its normalized form side by side."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx.reference
import onnx_ir as ir
import onnxruntime
from onnx import numpy_helper

from npukit.frontends.onnx import LoadOptions, Normalized, expand_functions, load

Arrays = dict[str, np.ndarray[Any, Any]]
# ops of the newest opsets for which ORT's CPU provider has no kernel; run by their definition
NO_KERNEL = frozenset({"Swish"})
ORT_OPSET = 26
# ORT has these only up to an older opset
OLD_KERNEL = frozenset({"RoiAlign"})
OLD_KERNEL_OPSET = 21


def parse(text: str, opset: int = 17, constants: Arrays | None = None, **imports: int) -> onnx.ModelProto:
    """A model from onnx's text form: `g (float[2] x) => (float[2] y) { ... }`, plus initializers."""
    domains = ", ".join(f'"{d.replace("_", ".")}": {v}' for d, v in {"": opset, **imports}.items())
    model = onnx.parser.parse_model(f"<ir_version: 8, opset_import: [{domains}]> {text}")
    for name, array in (constants or {}).items():
        model.graph.initializer.append(numpy_helper.from_array(array, name))
    return model


def ops(result: Normalized | ir.Model) -> list[str]:
    model = result.model if isinstance(result, Normalized) else result
    return [node.op_type for node in model.graph]


def feeds_for(model: onnx.ModelProto, seed: int = 0) -> Arrays:
    rng = np.random.default_rng(seed)
    constants = {t.name for t in model.graph.initializer}
    feeds: Arrays = {}
    for value in model.graph.input:
        if value.name in constants:
            continue
        shape = [d.dim_value for d in value.type.tensor_type.shape.dim]
        dtype = onnx.helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)
        if dtype.kind == "b":
            feeds[value.name] = np.asarray(rng.random(shape) > 0.5)
        elif dtype.kind in "iu":
            feeds[value.name] = np.asarray(rng.integers(0, 3, shape), dtype)
        else:
            feeds[value.name] = np.asarray(rng.standard_normal(shape), dtype)
    return feeds


def run_ort(model: onnx.ModelProto, feeds: Arrays) -> list[Any]:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return list(session.run(None, {k: v for k, v in feeds.items() if k in [i.name for i in session.get_inputs()]}))


def run_reference(model: onnx.ModelProto, feeds: Arrays) -> list[Any]:
    names = {i.name for i in model.graph.input}
    with np.errstate(all="ignore"):
        return list(onnx.reference.ReferenceEvaluator(model).run(None, {k: v for k, v in feeds.items() if k in names}))


def for_ort(model: ir.Model) -> onnx.ModelProto:
    """The model in the newest opset that ORT has kernels for; no op of these tests changed since."""
    proto = ir.to_proto(model)
    newest = OLD_KERNEL_OPSET if {n.op_type for n in proto.graph.node} & OLD_KERNEL else ORT_OPSET
    for entry in proto.opset_import:
        entry.version = min(entry.version, newest)
    return proto


def assert_same(model: onnx.ModelProto, options: LoadOptions | None = None, tolerance: float = 1e-5) -> Normalized:
    """Normalize, run both under ORT on the same random inputs, compare; the result is returned as load made it."""
    feeds = feeds_for(model)
    expected = run_ort(model, feeds)
    result = load(model, options)
    runnable = load(model, options)
    expand_functions(runnable.model, lambda domain, op, version: op not in NO_KERNEL)
    got = run_ort(for_ort(runnable.model), feeds)
    assert [v.name for v in result.model.graph.outputs] == [v.name for v in model.graph.output]
    for want, have in zip(expected, got, strict=True):
        assert want.dtype == have.dtype
        assert want.shape == have.shape
        np.testing.assert_allclose(
            have.astype(np.float64), want.astype(np.float64), rtol=tolerance, atol=tolerance, equal_nan=True
        )
    return result

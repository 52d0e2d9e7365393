# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""Rows that lowerings are tested with: one node, its inputs, and what is to come of it.

Each module here has a list CASES, which test_lowering_ops.py runs. The oracle is ONNX's own reference
implementation, or the row's `expected`.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any
from zlib import crc32

import numpy as np
import onnx
from onnx import helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from npukit.frontends.onnx import LoadOptions, load
from npukit.lowering import Lowered, lower
from npukit.lowering.driver import LowerOptions
from npukit.targets import target

CPU, HTP, RAISE = "qnn-cpu", "qnn-htp", "raise"
TARGETS = {CPU: "qnn-cpu", HTP: "sm8650", RAISE: "qnn-cpu"}
Values = dict[str, np.ndarray]


@dataclass(frozen=True)
class OpCase:
    """One single-node model.

    Attributes:
        id: name of the row, unique in its module; also the seed of random inputs.
        op: the ONNX op.
        inputs: run-time inputs as (name, numpy dtype, shape).
        attrs: attributes of the node.
        constants: inputs that are initializers, by name.
        values: run-time inputs that are not random.
        span: range that random numbers are drawn from.
        order: input names of the node, "" for one left out; by default inputs, then constants.
        outputs: names of the node's outputs.
        expect_ops: the QNN op types that lowering for QNN CPU makes, where that matters.
        rejects: text of the fault when the node must be refused; nothing is run then.
        backends: where it runs: CPU, HTP, RAISE (the raised graph on ONNX Runtime).
        tol: (rtol, atol) instead of the path's own tolerance.
        expected: outputs by a function of the inputs, where ONNX's reference is not the oracle.
        domain: the op's domain.
        opset: opset version of the model; the newest by default.
    """

    id: str
    op: str
    inputs: Sequence[tuple[str, str, tuple[int, ...]]]
    attrs: dict[str, Any] = field(default_factory=dict)
    constants: dict[str, Any] = field(default_factory=dict)
    values: dict[str, Any] = field(default_factory=dict)
    span: tuple[float, float] = (-3.0, 3.0)
    order: Sequence[str] | None = None
    outputs: Sequence[str] = ("out",)
    expect_ops: Sequence[str] | None = None
    rejects: str = ""
    backends: Sequence[str] = (CPU, RAISE)
    tol: tuple[float, float] | None = None
    expected: Callable[[Values], Sequence[np.ndarray]] | None = None
    domain: str = ""
    opset: int | None = None

    def model(self) -> onnx.ModelProto:
        """The model with inferred output types."""
        names = self.order if self.order is not None else [*(name for name, _, _ in self.inputs), *self.constants]
        node = helper.make_node(self.op, list(names), list(self.outputs), name="node", domain=self.domain, **self.attrs)
        infos = [
            helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(np.dtype(dtype)), shape)
            for name, dtype, shape in self.inputs
        ]
        outputs = [helper.make_empty_tensor_value_info(name) for name in self.outputs if name]
        weights = [numpy_helper.from_array(np.asarray(array), name) for name, array in self.constants.items()]
        opsets = [helper.make_opsetid("", self.opset or onnx.defs.onnx_opset_version())]
        if self.domain:
            opsets.append(helper.make_opsetid(self.domain, 1))
        graph = helper.make_graph([node], self.id, infos, outputs, weights)
        return onnx.shape_inference.infer_shapes(helper.make_model(graph, opset_imports=opsets), data_prop=True)

    def feeds(self) -> Values:
        """The run-time inputs: `values`, else random from `span` (unsigned integers from 0)."""
        rng = np.random.default_rng(crc32(self.id.encode()))
        feeds = {}
        for name, dtype, shape in self.inputs:
            kind = np.dtype(dtype)
            low, high = self.span
            if name in self.values:
                feeds[name] = np.asarray(self.values[name], kind).reshape(shape)
            elif kind.kind == "b":
                feeds[name] = rng.random(shape) < 0.5
            elif kind.kind in "iu":
                feeds[name] = rng.integers(
                    max(int(low), 0 if kind.kind == "u" else int(low)), int(high) + 1, shape, kind
                )
            else:
                feeds[name] = rng.uniform(low, high, shape).astype(kind)
        return feeds

    def reference(self, feeds: Values) -> list[np.ndarray]:
        """The outputs as they should be."""
        if self.expected is not None:
            return [np.asarray(array) for array in self.expected(feeds)]
        with np.errstate(all="ignore"):
            found = ReferenceEvaluator(self.model()).run(None, feeds)
        return [np.asarray(array) for array in found]


def lowered(case: OpCase, backend: str = CPU, validate: Callable[..., str | None] | None = None) -> Lowered:
    """The row lowered for a backend; its ops are validated where `validate` is given."""
    chip = target(TARGETS[backend])
    normalized = load(case.model(), LoadOptions())
    return lower(normalized.model, (chip,), LowerOptions(), {chip.name: validate} if validate else {})


def collect() -> list[OpCase]:
    """The rows of all modules, ids prefixed by the module's name."""
    rows = []
    for info in pkgutil.iter_modules(__path__):
        module = importlib.import_module(f"{__name__}.{info.name}")
        for case in module.CASES:
            object.__setattr__(case, "id", f"{info.name}-{case.id}")
            rows.append(case)
    return rows

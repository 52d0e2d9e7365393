# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""What HTP takes in integers: the known faults, and the table against live validation."""

from __future__ import annotations

import numpy as np
import pytest

from npukit.qnn.graph import DType, Graph, Op, Param, Tensor, TensorKind
from npukit.qnn.opdefs import OPS
from npukit.quantization.assign import FLOAT, Dummies, Legal, Plan, assign
from npukit.quantization.capabilities import UNRELIABLE, unreliable

F32 = DType.FLOAT_32


def _graph(kind: str, shape: tuple[int, ...] = (4, 8), **params: Param) -> Graph:
    x, y = Tensor("x", F32, shape, TensorKind.APP_WRITE), Tensor("y", F32, shape, TensorKind.APP_READ)
    return Graph("g", [x], [y], [Op("op", kind, [x], [y], params)])


def _accept(op: Op) -> None:
    return None


@pytest.mark.parametrize(
    ("kind", "params", "expected"),
    [
        ("ElementWiseLog", {}, {8: 8, 16: FLOAT}),
        ("ElementWiseUnary", {"operation": Param(DType.UINT_32, 7)}, {8: 8, 16: FLOAT}),
        ("CumulativeSum", {"axis": Param(DType.UINT_32, 1)}, {8: 16, 16: 16}),
        ("ElementWiseExp", {}, {8: 8, 16: 16}),
    ],
)
def test_what_htp_computes_wrongly_runs_finer(kind: str, params: dict[str, Param], expected: dict[int, int]) -> None:
    if "operation" in params:
        assert OPS[kind].params["operation"].values["LOG"] == params["operation"].value
    for bits, precision in expected.items():
        for targets, wanted in ((("sm8650",), precision), (("qnn-cpu",), bits)):
            made = assign(_graph(kind, **params), Plan(bits), Dummies(), Legal(dict.fromkeys(targets, _accept)))
            assert made.precisions["op"] == wanted, (targets, bits)
            assert bool(made.refused) == (wanted != bits)


def test_a_matmul_with_a_bias_gets_one_scale() -> None:
    weight = Tensor("w", F32, (8, 6), TensorKind.STATIC, data=np.ones((8, 6), np.float32))
    bias = Tensor("b", F32, (6,), TensorKind.STATIC, data=np.ones(6, np.float32))
    x, y = Tensor("x", F32, (4, 8), TensorKind.APP_WRITE), Tensor("y", F32, (4, 6), TensorKind.APP_READ)
    false = Param(DType.BOOL_8, False)
    op = Op("op", "MatMul", [x, weight, bias], [y], {"transpose_in0": false, "transpose_in1": false})
    made = assign(Graph("g", [x], [y], [op]), Plan(), Dummies(), Legal({"sm8650": _accept}))
    assert made.precisions["op"] == 8
    found = made.graph.ops[0].inputs[1]
    assert found is not None
    assert found.encoding is not None
    assert found.encoding.axis is None


def test_every_known_fault_names_an_op_and_says_where_it_was_seen() -> None:
    for row in UNRELIABLE:
        kind, _, operation = row.name.partition(" ")
        assert kind in OPS
        assert not operation or operation in OPS[kind].params["operation"].values
        assert "tried on" in row.source
    assert unreliable(_graph("ElementWiseLog").ops[0]) == "", "a float op is none of these"

# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""What HTP takes in integers: the known faults, and the table against live validation."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from benchmarks import simulation_run
from npukit.errors import UsageError
from npukit.qnn.graph import DType, Graph, Op, Param, Tensor, TensorKind
from npukit.qnn.opdefs import OPS
from npukit.quantization.assign import FLOAT, Dummies, Legal, Plan, assign
from npukit.quantization.capabilities import ARCHS, UNRELIABLE, capabilities, capability, unreliable

F32 = DType.FLOAT_32


@pytest.fixture(autouse=True, scope="module")
def _emulator() -> Iterator[None]:
    """The emulator is opened here: what another module opened would answer for another chip."""
    simulation_run.close()
    yield
    simulation_run.close()


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


def test_the_table_speaks_of_known_ops_and_architectures() -> None:
    assert len(capabilities()) > 100
    assert tuple(simulation_run.CHIPS) == ARCHS
    for name, row in capabilities().items():
        assert name.partition(" ")[0] in OPS
        assert set(row.takes) <= {8, 16}
        assert bool(row.refusal) == (len(row.takes) < 2), "a width that is refused has the validation's words"
        assert {takes.since for takes in row.takes.values()} <= set(ARCHS)
        assert row.takes or not row.measured, "what is refused was not run"
        assert all(0 <= m.share <= 1 for rows in row.measured.values() for m in rows.values())


def test_the_table_is_read_by_op() -> None:
    conv = capability("Conv2d")
    assert conv.accepts(8, 68)
    assert conv.takes[16].operands["weight"]["16"] == 73, "weights of 16 bits came with V73"
    assert "16" not in conv.takes[8].operands["weight"]
    assert conv.takes[8].operands["bias"] == {"s32": 68}
    coarse, fine = conv.bound(16, 69), conv.bound(16, 79)
    assert coarse is not None
    assert fine is not None
    assert coarse.steps > 10 > fine.steps, "V68 and V69 sum products of 16 bits more coarsely"
    log = _graph("ElementWiseUnary", operation=Param(DType.UINT_32, 7)).ops[0]
    assert capability(log).name == "ElementWiseUnary LOG"
    assert not capability(log).accepts(16, 73), "what is computed wrongly is not in the table"
    assert capability(log).bound(16, 73) is None
    with pytest.raises(UsageError, match="Conv2d"):
        capability("Conv2")


@pytest.mark.native
@pytest.mark.parametrize("arch", [68, 73, 79])
@pytest.mark.parametrize("label", ["Conv2d", "LayerNorm", "Prelu", "Softmax beta 1", "Lrn", "ElementWiseLog", "TopK"])
def test_the_table_agrees_with_the_library(label: str, arch: int) -> None:
    answer = simulation_run.ask(label, arch)
    row = capability(simulation_run.table()[label].group)
    for bits in (8, 16):
        assert row.accepts(bits, arch) == (str(bits) in answer)
        if str(bits) in answer:
            operands = row.takes[bits].operands
            taken = {role: [f for f, since in forms.items() if since <= arch] for role, forms in operands.items()}
            assert answer[str(bits)] == {role: forms for role, forms in taken.items()}


@pytest.mark.native
@pytest.mark.parametrize("label", ["Tanh of one side", "Conv2d computed weight", "MatMul computed", "TopK"])
def test_encodings_that_htp_insists_on(label: str) -> None:
    _, _, precisions, refusal = simulation_run.quantized(simulation_run.table()[label], 16, 8, 73)
    assert precisions == {"op": 16}, refusal

# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""The op definitions and the check of a graph against them."""

import subprocess
import sys

import numpy as np
import pytest

from npukit.errors import GraphError, UsageError
from npukit.qnn.graph import DType, Encoding, Graph, Op, Param, Tensor, TensorKind
from npukit.qnn.opdefs import OPS, check, enum_value, opdef, validate


def tensor(name, shape, kind=TensorKind.NATIVE, dtype=DType.FLOAT_32, data=None, encoding=None):
    return Tensor(name, dtype, shape, kind, encoding, data)


def u32(*values, shape=None):
    array = np.array(values, np.uint32)
    return Param(DType.UINT_32, array.reshape(shape) if shape else array)


def conv_graph(**changes):
    x = tensor("x", (1, 4, 4, 2), TensorKind.APP_WRITE)
    w = tensor("w", (3, 3, 2, 5), TensorKind.STATIC, data=np.zeros((3, 3, 2, 5), np.float32))
    y = tensor("y", (1, 4, 4, 5), TensorKind.APP_READ)
    params = {"stride": u32(1, 1), "pad_amount": u32(1, 1, 1, 1, shape=(2, 2))} | changes.pop("params", {})
    op = Op("conv", "Conv2d", [x, w], [y], {k: v for k, v in params.items() if v is not None})
    graph = Graph("g", [x], [y], [op])
    for name, value in changes.items():
        setattr(op, name, value)
    return graph


def faults(graph):
    return "\n".join(str(f) for f in validate(graph))


def test_a_good_graph_has_no_faults():
    assert validate(conv_graph()) == []
    check(conv_graph())


def test_the_table_is_complete_and_lazy():
    assert len(OPS) == 158
    code = "import npukit.qnn.opdefs as o, sys; sys.exit(o._table.cache_info().currsize)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("type", sorted(OPS))
def test_every_definition_is_sound(type):
    definition = opdef(type)
    assert definition.outputs or type == "If"
    for param in definition.params.values():
        assert not param.tensor or param.shape.startswith("[")
        assert len(set(param.values.values())) == len(param.values)
    for backend in ("cpu", "htp"):
        for row in definition.rows(backend):
            assert all(isinstance(dtype, DType) for dtypes in row.values() for dtype in dtypes)
        assert all(len(rule) == 3 for rule in definition.rules(backend))


def test_values_of_known_definitions():
    conv = opdef("Conv2d")
    assert [d.name for d in conv.inputs] == ["input", "filter", "bias"]
    assert [d.mandatory for d in conv.inputs] == [True, True, False]
    assert conv.params["group"].default == 1
    assert conv.rows("cpu")[0]["in0"] == (DType.FLOAT_32,)
    assert enum_value("Pad", "scheme", "EDGE") == 3
    assert enum_value("Resize", "transformation_mode", "ASYMMETRIC") == 3
    rois = opdef("CollectRpnProposals").inputs
    assert [(d.first, d.last) for d in rois] == [(0, 0), (1, 4), (5, 5), (6, 9)]
    assert opdef("Concat").inputs[0].last is None


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda: opdef("Conv2D"), "did you mean 'Conv2d'"),
        (lambda: enum_value("Pad", "scheem", "EDGE"), "did you mean 'scheme'"),
        (lambda: enum_value("Pad", "scheme", "EDGES"), "did you mean 'EDGE'"),
    ],
)
def test_unknown_names_get_the_nearest(call, text):
    with pytest.raises(UsageError, match=text):
        call()


@pytest.mark.parametrize(
    ("graph", "text"),
    [
        (conv_graph(type="Conv2D"), "did you mean 'Conv2d'"),
        (conv_graph(params={"strides": u32(1, 1)}), "no param 'strides'"),
        (conv_graph(params={"stride": None}), "param 'stride' is missing"),
        (conv_graph(params={"stride": Param(DType.INT_32, np.array([1, 1], np.int32))}), "is INT_32, not UINT_32"),
        (conv_graph(params={"stride": u32(1, 1, 1)}), r"shape [3], not [2]"),
        (conv_graph(params={"stride": Param(DType.UINT_32, 1)}), "is a scalar, not a tensor"),
        (conv_graph(params={"group": Param(DType.UINT_32, -1)}), "does not fit UINT_32"),
        (conv_graph(inputs=[]), "0 inputs, the definition has 2 to 3"),
        (conv_graph(outputs=[tensor("y", (4, 5), TensorKind.APP_READ)]), "has rank 2, not 4"),
    ],
)
def test_faults_of_an_op(graph, text):
    assert text in faults(graph)


def test_an_enum_out_of_range():
    x, y = tensor("x", (2,), TensorKind.APP_WRITE), tensor("y", (2,), TensorKind.APP_READ)
    op = Op("u", "ElementWiseUnary", [x], [y], {"operation": Param(DType.UINT_32, 16)})
    assert "no value 16" in faults(Graph("g", [x], [y], [op]))


def test_faults_of_the_structure():
    x, y, z = tensor("x", (2,), TensorKind.APP_WRITE), tensor("m", (2,)), tensor("y", (2,), TensorKind.APP_READ)
    unmade, never = tensor("u", (2,)), tensor("never", (2,), TensorKind.APP_READ)
    ops = [Op("b", "ElementWiseAdd", [y, unmade], [z]), Op("b", "Relu", [x], [y]), Op("c", "Relu", [x], [y])]
    text = faults(Graph("g", [x], [z, never], ops))
    assert "reads 'm' before op 'c' makes it" in text
    assert "nothing makes 'u'" in text
    assert "which op 'b' already makes" in text
    assert "op 'b': 2 ops have this name" in text
    assert "tensor 'never': a graph output that no op makes" in text


def test_faults_of_tensors():
    x, y = tensor("x", (2, 3), TensorKind.APP_WRITE), tensor("y", (2, 3), TensorKind.APP_READ)
    cases = {
        "a static tensor without data": tensor("a", (2, 3), TensorKind.STATIC),
        "data is float64": tensor("b", (2, 3), TensorKind.STATIC, data=np.zeros((2, 3))),
        "data has shape [3, 2]": tensor("c", (2, 3), TensorKind.STATIC, data=np.zeros((3, 2), np.float32)),
        "2 scales for 3 channels": tensor("d", (2, 3), encoding=Encoding((1.0, 1.0), (0, 0), axis=1)),
        "below 1": tensor("e", (0, 3)),
        "2 tensors have this name": tensor("x", (2, 3)),
    }
    for text, bad in cases.items():
        op = Op("add", "ElementWiseAdd", [x, bad], [y])
        assert text in faults(Graph("g", [x], [y], [op])), text


def test_check_raises_all_faults_at_once():
    with pytest.raises(GraphError) as caught:
        check(conv_graph(params={"stride": None, "strides": u32(1, 1)}))
    assert len(caught.value.faults) == 2

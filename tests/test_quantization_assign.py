# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""From a float graph and a plan to a quantized graph: shared encodings, borders, legality."""

from __future__ import annotations

import numpy as np
import pytest

from npukit.qnn.graph import DType, Encoding, Graph, Op, Param, Tensor, TensorKind
from npukit.quantization import ranges
from npukit.quantization.assign import FLOAT, Assigned, Dummies, Legal, Plan, assign
from npukit.quantization.roles import Groups, Role, role, weight_axis


def real(name: str, *shape: int, kind: TensorKind = TensorKind.NATIVE) -> Tensor:
    return Tensor(name, DType.FLOAT_32, shape, kind)


def constant(name: str, values: np.ndarray) -> Tensor:
    return Tensor(name, DType.FLOAT_32, values.shape, TensorKind.STATIC, None, values.astype(np.float32))


def chain() -> Graph:
    """x -> FullyConnected -> Relu -> Reshape -> Softmax -> y."""
    x, y = real("x", 1, 4, kind=TensorKind.APP_WRITE), real("y", 2, 2, kind=TensorKind.APP_READ)
    a, b, c = real("a", 1, 4), real("b", 1, 4), real("c", 2, 2)
    rng = np.random.default_rng(0)
    w, bias = constant("w", rng.standard_normal((4, 4))), constant("bias", rng.standard_normal(4))
    return Graph(
        "g", [x], [y],
        [
            Op("fc", "FullyConnected", [x, w, bias], [a]),
            Op("relu", "Relu", [a], [b]),
            Op("reshape", "Reshape", [b], [c]),
            Op("softmax", "Softmax", [c], [y]),
        ],
    )  # fmt: skip


def made(graph: Graph, plan: Plan, *refused: tuple[str, DType]) -> Assigned:
    """Assigned where a target refuses the op types on inputs of the dtypes."""

    def check(op: Op) -> str | None:
        first = op.inputs[0]
        return "no" if first is not None and (op.type, first.dtype) in refused else None

    return assign(graph, plan, Dummies(), Legal({"chip": check}))


def held(result: Assigned) -> dict[str, str]:
    return {t.name: t.dtype.name for t in result.graph.tensors() if t.kind is not TensorKind.STATIC}


def test_all_in_eight_bits() -> None:
    result = made(chain(), Plan())
    assert [op.type for op in result.graph.ops] == ["FullyConnected", "Relu", "Reshape", "Softmax"]
    assert set(held(result).values()) == {"UFIXED_POINT_8"}
    fc = result.graph.ops[0]
    weight, bias = fc.inputs[1], fc.inputs[2]
    assert weight is not None
    assert bias is not None
    assert (weight.dtype, weight.encoding.axis) == (DType.SFIXED_POINT_8, 0)  # type: ignore[union-attr]
    assert bias.dtype is DType.SFIXED_POINT_32
    assert bias.encoding.scales == pytest.approx([0.01 / 256] * 4)  # type: ignore[union-attr]


def test_the_float_graph_stays_as_it_is() -> None:
    graph = chain()
    made(graph, Plan())
    assert all(t.dtype is DType.FLOAT_32 and t.encoding is None for t in graph.tensors())


def test_moves_and_clamps_share_an_encoding_whose_range_is_the_clamps_output() -> None:
    graph = chain()
    groups = Groups(graph)
    a, b, c = (op.outputs[0] for op in graph.ops[:3])
    assert groups.key(a) == groups.key(b) == groups.key(c)
    assert groups.deciding(a) == [b]  # c is the same values in another shape


def test_an_encoding_that_was_given_does_not_follow_a_clamp() -> None:
    graph = chain()
    a, b = graph.ops[0].outputs[0], graph.ops[1].outputs[0]
    groups = Groups(graph, [a])
    assert groups.key(a) != groups.key(b)


def test_borders_convert_once() -> None:
    result = made(chain(), Plan(tensors={"y": 16}))
    assert [op.type for op in result.graph.ops] == ["FullyConnected", "Relu", "Reshape", "Convert", "Softmax"]
    assert held(result)["y"] == "UFIXED_POINT_16"
    assert held(result)["c_u16"] == "UFIXED_POINT_16"


def test_what_a_target_refuses_runs_finer() -> None:
    result = made(chain(), Plan(), ("Softmax", DType.UFIXED_POINT_8))
    assert result.precisions["softmax"] == 16
    assert result.refused == {"softmax": "chip: no"}
    assert [op.type for op in result.graph.ops][-3:] == ["Convert", "Softmax", "Convert"]
    assert held(result)["y"] == "UFIXED_POINT_8"


def test_what_it_refuses_in_integers_runs_in_float_between_two_borders() -> None:
    result = made(chain(), Plan(), ("Relu", DType.UFIXED_POINT_8), ("Relu", DType.UFIXED_POINT_16))
    assert result.precisions["relu"] == FLOAT
    types = [op.type for op in result.graph.ops]
    assert types == ["FullyConnected", "Dequantize", "Relu", "Quantize", "Reshape", "Softmax"]


def test_no_border_between_two_ops_in_float() -> None:
    both = [(kind, DType[f"UFIXED_POINT_{bits}"]) for kind in ("Relu", "Reshape") for bits in (8, 16)]
    result = made(chain(), Plan(), *both)
    types = [op.type for op in result.graph.ops]
    assert types == ["FullyConnected", "Dequantize", "Relu", "Reshape", "Quantize", "Softmax"]
    assert held(result)["b"] == "FLOAT_32"


def test_float_io_computes_in_integers_inside() -> None:
    result = made(chain(), Plan(float_io=True))
    types = [op.type for op in result.graph.ops]
    assert types == ["Quantize", "FullyConnected", "Relu", "Reshape", "Softmax", "Dequantize"]
    assert held(result)["x"] == held(result)["y"] == "FLOAT_32"


def test_named_ops_stay_in_float() -> None:
    result = made(chain(), Plan(floats=frozenset({"fc"})))
    assert result.precisions["fc"] == FLOAT
    fc = next(op for op in result.graph.ops if op.name == "fc")
    assert fc.inputs[1] is not None
    assert fc.inputs[1].dtype is DType.FLOAT_32


def test_a_constant_that_is_read_in_two_forms_has_two_names() -> None:
    x = real("x", 1, 2, kind=TensorKind.APP_WRITE)
    two = constant("two", np.array([2.0]))
    a, y = real("a", 1, 2), real("y", 1, 2, kind=TensorKind.APP_READ)
    graph = Graph(
        "g", [x], [y], [Op("m", "ElementWiseMultiply", [x, two], [a]), Op("n", "ElementWiseAdd", [a, two], [y])]
    )
    result = made(graph, Plan(floats=frozenset({"n"})))
    names = [t.name for t in result.graph.tensors()]
    assert len(set(names)) == len(names)
    kinds = sorted(t.dtype.name for t in result.graph.tensors() if t.kind is TensorKind.STATIC)
    assert kinds == ["FLOAT_32", "UFIXED_POINT_8"]


def test_integers_and_booleans_are_left_alone() -> None:
    x = real("x", 4, kind=TensorKind.APP_WRITE)
    index = Tensor("i", DType.INT_32, (2,), TensorKind.APP_WRITE)
    y = real("y", 2, kind=TensorKind.APP_READ)
    graph = Graph("g", [x, index], [y], [Op("gather", "Gather", [x, index], [y], {"axis": Param(DType.INT_32, 0)})])
    result = made(graph, Plan())
    assert held(result) == {"x": "UFIXED_POINT_8", "i": "INT_32", "y": "UFIXED_POINT_8"}
    assert result.graph.inputs[0].encoding == result.graph.outputs[0].encoding


class Asking(Dummies):
    """Dummies with one constant whose encoding was given."""

    def __init__(self, dtype: DType, encoding: Encoding) -> None:
        self._given = dtype, encoding

    def asked(self, constant: Tensor) -> tuple[DType, Encoding] | None:  # type: ignore[override]
        return self._given if constant.name == "w" else None


def test_a_weight_has_the_encoding_that_was_given() -> None:
    graph = chain()
    wanted = Encoding.per_tensor(0.03125, -7)
    result = assign(graph, Plan(), Asking(DType.UFIXED_POINT_8, wanted), Legal({}))
    weight = result.graph.ops[0].inputs[1]
    source = graph.ops[0].inputs[1]
    assert weight is not None
    assert source is not None
    assert (weight.dtype, weight.encoding) == (DType.UFIXED_POINT_8, wanted)
    assert weight.data is not None
    assert source.data is not None
    np.testing.assert_array_equal(weight.data, ranges.codes(source.data, wanted, DType.UFIXED_POINT_8))


@pytest.mark.parametrize(
    ("op_type", "shape", "params", "axis"),
    [
        ("Conv2d", (3, 3, 2, 5), {}, 3),
        ("DepthWiseConv2d", (3, 3, 1, 5), {}, 3),
        ("FullyConnected", (5, 2), {}, 0),
        ("MatMul", (2, 5), {"transpose_in1": False}, 1),
        ("MatMul", (5, 2), {"transpose_in1": True}, 0),
        ("ElementWiseAdd", (2, 5), {}, None),
    ],
)
def test_weight_axes(op_type: str, shape: tuple[int, ...], params: dict[str, bool], axis: int | None) -> None:
    op = Op(
        "op", op_type, [real("x", 1, 2), constant("w", np.zeros(shape))], [real("y", 1, 5)],
        {name: Param(DType.BOOL_8, value) for name, value in params.items()},
    )  # fmt: skip
    assert weight_axis(op) == axis
    assert role(op, 1) is (Role.DATA if axis is None else Role.WEIGHT)


def test_accepting_validators_take_what_runs_on_codes_only() -> None:
    def integers_only(op: Op) -> str | None:
        return "no floats" if op.outputs[0].dtype.is_float else None

    accept = Legal({"chip": integers_only}).validators()["chip"]
    relu = chain().ops[1]
    assert accept(relu) is None
    cast = Op("cast", "Cast", [real("p", 2)], [real("q", 2)])
    assert accept(cast) == "no floats"


def test_padding_for_a_maximum_takes_the_lowest_code_and_no_range() -> None:
    x, y = real("x", 1, 4, kind=TensorKind.APP_WRITE), real("y", 1, 6, kind=TensorKind.APP_READ)
    params = {
        "scheme": Param(DType.UINT_32, 0),
        "pad_amount": Param(DType.UINT_32, np.array([[0, 0], [1, 1]], np.uint32)),
        "pad_constant_value": Param(DType.FLOAT_32, -65504.0),
    }
    graph = Graph("g", [x], [y], [Op("pad", "Pad", [x], [y], params)])
    assert Groups(graph).deciding(y) == [x]
    result = made(graph, Plan())
    assert result.graph.inputs[0].encoding == result.graph.outputs[0].encoding
    assert result.graph.ops[0].params["pad_constant_value"].value == 0
    zero = {**params, "pad_constant_value": Param(DType.FLOAT_32, 0.0)}
    result = made(Graph("g", [x], [y], [Op("pad", "Pad", [x], [y], zero)]), Plan())
    assert result.graph.ops[0].params["pad_constant_value"].value == 128  # the dummies' code of zero

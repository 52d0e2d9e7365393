# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""What rounding would turn into something else stays in float: values that are compared for equality."""

from __future__ import annotations

from npukit.qnn.graph import DType, Graph, Op, Tensor, TensorKind
from npukit.quantization.assign import Dummies, Legal, Plan, assign


def test_what_equality_compares_is_computed_in_float() -> None:
    x, y = (Tensor(name, DType.FLOAT_32, (2, 8), TensorKind.APP_WRITE) for name in "xy")
    total, product = (Tensor(name, DType.FLOAT_32, (2, 8)) for name in ("total", "product"))
    same = Tensor("same", DType.BOOL_8, (2, 8))
    result = Tensor("result", DType.FLOAT_32, (2, 8), TensorKind.APP_READ)
    ops = [
        Op("add", "ElementWiseAdd", [x, y], [total]),
        Op("equal", "ElementWiseEqual", [total, y], [same]),
        Op("multiply", "ElementWiseMultiply", [x, x], [product]),
        Op("select", "ElementWiseSelect", [same, product, x], [result]),
    ]
    assigned = assign(Graph("g", [x, y], [result], ops), Plan(), Dummies(), Legal({}))
    assert {name: assigned.precisions[name] for name in ("add", "equal", "multiply", "select")} == {
        "add": 0, "equal": 0, "multiply": 8, "select": 8,
    }  # fmt: skip
    assert assigned.stored["product"] == 8

# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""Ranges of integer tensors: every interval holds for what ORT computes; implied ranges of inputs."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from npukit.frontends.onnx import load
from npukit.frontends.onnx.ranges import Ranges, fits_int32, implied_range
from tests.frontend_tools import feeds_for, parse, run_ort

I64 = np.int64


def ranges_of(inputs: str, body: str, outputs: str = "y", known: dict[str, Any] | None = None, **constants: Any) -> Any:
    model = load(parse(f"g ({inputs}) => (int64[N] y) {{ {body} }}", constants=constants)).model
    value = next(v for v in model.graph.outputs if v.name == outputs)
    return Ranges(known).of(value), fits_int32(value), value


X = "float[3,7] x"


@pytest.mark.parametrize(
    ("inputs", "body", "expected"),
    [
        (X, "y = ArgMax<axis=1>(x)", (0, 6)),
        (X, "y = ArgMin<axis=0>(x)", (0, 2)),
        (X, "v, y = TopK(x, two)", (0, 6)),
        (X, "a = ArgMax(x) y = Add(a, big)", (1000, 1002)),
        (X, "a = ArgMax<axis=1>(x) b = Mul(a, big) y = Sub(b, two)", (-2, 5998)),
        (X, "a = ArgMax<axis=1>(x) y = Neg(a)", (-6, 0)),
        (X, "a = ArgMax<axis=1>(x) y = Div(a, two)", (0, 3)),
        (X, "a = ArgMax<axis=1>(x) y = Mod(a, two)", (0, 2)),
        (X, "a = ArgMax<axis=1>(x) y = Clip(a, zero, two0)", (0, 2)),
        (X, "a = ArgMax<axis=1>(x) y = Gather(table, a)", (-7, 900)),
        (X, "a = ArgMax<axis=1>(x) c = Cast<to=6>(a) y = Cast<to=7>(c)", (0, 6)),
        (X, "a = ArgMax<axis=1, keepdims=0>(x) b = Less(a, two) y = Where(b, big, two)", (2, 1000)),
        (X, "a = Tanh(x) b = Mul(a, ten) y = Cast<to=7>(b)", (-10, 10)),
        (X, "b = Cast<to=9>(x) y = Cast<to=7>(b)", (0, 1)),
        (X, "a = ArgMax<axis=1>(x) y = ReduceSum(a)", (0, 18)),
        ("int64[4] x", "y = Abs(x)", (-(2**63), 2**63 - 1)),
        ("int32[4] x", "c = Cast<to=7>(x) y = Add(c, two)", (-(2**31) + 2, 2**31 + 1)),
        ("uint8[4] x", "c = Cast<to=7>(x) y = Mul(c, c)", (0, 65025)),
        (X, "y = Cast<to=7>(x)", (-(2**63), 2**63 - 1)),
    ],
)
def test_intervals(inputs: str, body: str, expected: tuple[int, int]) -> None:
    constants = {
        "two": np.array([2], I64),
        "two0": np.array(2, I64),
        "zero": np.array(0, I64),
        "big": np.array([1000], I64),
        "ten": np.array(10, np.float32),
        "table": np.array([5, -7, 900, 4, 5, 6, 7], I64),
    }
    found, fits, value = ranges_of(inputs, body, **constants)
    assert found == expected
    assert fits == (expected[0] >= -(2**31) and expected[1] < 2**31)
    model = parse(f"g ({inputs}) => (int64[N] y) {{ {body} }}", constants=constants)
    (result,) = run_ort(model, feeds_for(model))
    assert result.min() >= expected[0]
    assert result.max() <= expected[1]
    assert value.dtype == ir.DataType.INT64


def test_known_inputs_narrow_the_proof() -> None:
    found, _, _ = ranges_of("int64[4] x", "y = Mul(x, k)", known={"x": (0, 100)}, k=np.array([3], I64))
    assert found == (0, 300)


def test_overflow_is_never_assumed_away() -> None:
    found, fits, _ = ranges_of("int64[4] x", "y = Mul(x, k)", known={"x": (0, 2**40)}, k=np.array([2**40]))
    assert found == (-(2**63), 2**63 - 1)
    assert not fits


def test_deep_graphs_do_not_recurse() -> None:
    body = "a0 = ArgMax(x) " + " ".join(f"a{i + 1} = Add(a{i}, one)" for i in range(3000)) + " y = Identity(a3000)"
    found, _, _ = ranges_of(X, body, one=np.array([1], I64))
    assert found == (3000, 3002)


@pytest.mark.parametrize(
    ("inputs", "body", "expected"),
    [
        ("int64[2,4] i", "y = Gather(w, i)", (0, 9)),
        ("int64[2,4] i", "c = Cast<to=6>(i) y = Gather(w, c)", (0, 9)),
        ("int64[2,4] i", "c = Add(i, two) y = Gather(w, c)", (-2, 7)),
        ("int64[2,4] i", "r = Reshape(i, flat) y = Gather(v, r)", (0, 4)),
        ("int64[2,8] i", "y = GatherElements<axis=0>(v, i)", (0, 4)),
        ("int64[2,2] i", "y = GatherND(w, i)", (0, 7)),
        ("int64[4] i", "y = OneHot(i, depth, onoff)", (0, 6)),
        ("bool[4] i", "y = Not(i)", (0, 1)),
        ("int64[2,4] i", "y = Cast<to=9>(i)", (0, 1)),
        ("int64[2,4] i", "f = Cast<to=1>(i) one = Constant<value_float=1.0>() y = Sub(one, f)", (0, 1)),
        ("int64[2,4] i", "zero = Constant<value_ints=[0]>() y = Equal(i, zero)", (0, 1)),
        ("int64[2,4] i", "y = Add(i, two)", None),
        ("float[2,4] i", "y = Relu(i)", None),
    ],
)
def test_implied_ranges(inputs: str, body: str, expected: Any) -> None:
    constants = {
        "w": np.zeros((10, 8), np.float32),
        "v": np.zeros((5, 8), np.float32),
        "two": np.array([2], I64),
        "flat": np.array([-1], I64),
        "depth": np.array(7, I64),
        "onoff": np.array([0, 1], np.float32),
    }
    model = parse(f"g ({inputs}) => (float[N] y) {{ {body} }}", constants=constants)
    result = load(_typed(model)).model
    assert implied_range(result, "i") == expected
    assert implied_range(ir.from_proto(model), "i") == expected
    assert implied_range(result, "nothing") is None


def _typed(model: Any) -> Any:
    """Outputs without a declared type: the front end infers them."""
    for value in model.graph.output:
        value.ClearField("type")
        value.type.tensor_type.elem_type = 0
    return model


def test_floats_are_bounded_where_the_op_says_so() -> None:
    model = load(parse("g (float[3] x) => (float[3] y) { y = Sigmoid(x) }")).model
    assert Ranges().of(model.graph.outputs[0]) == (0, 1)
    assert Ranges().of(model.graph.inputs[0]) == (-math.inf, math.inf)

# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""Models that parse and pass shape inference, and yet cannot be: errors that name the node, not faults of npukit."""

from __future__ import annotations

import onnx_ir as ir
import pytest
from onnx import parser

from npukit.errors import LoweringError, ModelError, NpukitError
from npukit.frontends.onnx import load
from npukit.frontends.onnx.contradiction import contradiction
from npukit.lowering import lower
from npukit.targets import target

HEAD = '<ir_version: 8, opset_import: ["" : 18]>'


def lowered(text: str) -> None:
    lower(load(parser.parse_model(text)).model, (target("qnn-cpu"),))


@pytest.mark.parametrize(
    ("text", "kind", "sentence"),
    [
        pytest.param(
            f"{HEAD} g (float[2,3,6,1] x) => (float[2,3,3,1] y)"
            "{ y = AveragePool <kernel_shape = [2, 1], strides = [2, 9223372036854775807]> (x) }",
            LoweringError,
            "beyond what QNN holds",
            id="huge-stride",
        ),
        pytest.param(
            f"{HEAD} g (float[3] x) => (float[3] y) <int64[2] x = {{2,2}}> {{ y = Relu (x) }}",
            ModelError,
            "the input of this name",
            id="default-of-another-type",
        ),
        pytest.param(
            f"{HEAD} g (float[3,4,2] x, float[4] s, float[4] b) => (float[3,4,2,2] y)"
            "{ y = GroupNormalization <num_groups = 2> (x, s, b) }",
            NpukitError,
            "do not fit|static shape|declared|cannot be",
            id="output-of-another-rank",
        ),
        pytest.param(
            f"{HEAD} g (float[1,3,8,8] x) => (float[1,4,8,8] y)"
            "<int8[4,3,1,1] q = {1,2,3,4,5,6,7,8,9,10,11,12}, float[4] s = {1.0,1.0,1.0,1.0}>"
            "{ w = DequantizeLinear (q, s) y = Conv (x, w) }",
            NpukitError,
            "DequantizeLinear",
            id="scales-of-another-axis",
        ),
    ],
)
def test_what_cannot_be_is_an_error_with_its_reason(text: str, kind: type[NpukitError], sentence: str) -> None:
    with pytest.raises(kind, match=sentence):
        lowered(text)


def test_values_in_a_field_of_another_dtype_are_found() -> None:
    model = parser.parse_model(f"{HEAD} g (float[1] x) => (float[1] y) <float[1] w = {{1.0}}> {{ y = Add (x, w) }}")
    model.graph.initializer[0].int64_data.append(3)
    with pytest.raises(ModelError, match="holds values in int64_data, where FLOAT has none"):
        load(model)


def test_a_node_that_runs_is_no_contradiction() -> None:
    model = parser.parse_model(f"{HEAD} g (float[2,3] x) => (float[2,3] y) {{ y = Softmax <axis = 1> (x) }}")
    node = next(iter(load(model).model.graph))
    assert contradiction(node) == ""
    node.attributes["axis"] = ir.AttrInt64("axis", 7)
    assert "axis" in contradiction(node)


def test_the_runtimes_say_what_does_not_fit() -> None:
    model = parser.parse_model(
        f"{HEAD} g (float[1,8,3] d) => (float[1,8,3] y) <int64[1,2] i = {{1,3}}, float[1,2] u = {{1.0,2.0}}>"
        "{ y = ScatterElements <axis = 1> (d, i, u) }"
    )
    node = next(iter(load(model).model.graph))
    assert "Indices must have the same rank as Input" in contradiction(node)
    assert "onnxruntime_src" not in contradiction(node)


def test_a_node_too_large_to_run_is_named_so() -> None:
    model = parser.parse_model(f"{HEAD} g (float[70000,70000] x) => (float[70000,70000] y) {{ y = Relu (x) }}")
    assert "4900000000 elements" in contradiction(next(iter(load(model).model.graph)))

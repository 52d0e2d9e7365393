# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""Function bodies of ONNX ops, and com.microsoft ops: expanded models compute what the ops compute."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import helper, numpy_helper

from npukit.errors import ModelError
from npukit.frontends.onnx import expand_functions, load
from npukit.frontends.onnx.expand_functions import has_body
from tests.frontend_tools import for_ort, ops, parse, run_ort, run_reference

F = np.float32

# One or two of onnx's own cases for every op that has a body: their expected outputs are the oracle.
CASES = """
attention_4d attention_3d_gqa_causal attention_4d_with_past_and_present attention_4d_attn_mask_bool
attention_4d_softcap attention_4d_gqa_causal_nonpad_decode attention_local_window flexattention_causal_mask
linear_attention_gated_delta causal_conv_with_state_b1_c4_l5_k3_silu rotary_embedding
rotary_embedding_interleaved rms_normalization_4d_axis2 layer_normalization_4d_axis2 group_normalization_epsilon
mvn swiglu celu gelu_tanh_1 mish affine_grid_2d center_crop_pad_crop_axes_chw sce_mean_weight_ii
nllloss_NCd1d2_with_weight_reduction_mean reduce_l2_keep_dims_random reduce_log_sum_exp_keepdims_random
reduce_sum_square_keepdims_random softmax_axis_1 logsoftmax_axis_1 hardswish swish selu elu shrink_soft
dynamicquantizelinear castlike_FLOAT_to_FLOAT16 clip_inbounds range_float_type_positive_delta blackmanwindow
depthtospace_example spacetodepth_example greater_equal prelu_broadcast thresholdedrelu softplus leakyrelu
""".split()  # noqa: SIM905 - a list of 50 literals reads worse


@pytest.fixture(scope="module")
def cases() -> dict[str, Any]:
    from onnx.backend.test.loader import load_model_tests

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return {case.name.removeprefix("test_"): case for case in load_model_tests(kind="node")}


def arrays(model: onnx.ModelProto, values: Any) -> dict[str, Any]:
    return {
        v.name: numpy_helper.to_array(x) if isinstance(x, onnx.TensorProto) else np.asarray(x)
        for v, x in zip(model.graph.input, values, strict=False)
    }


@pytest.mark.parametrize("name", CASES)
def test_bodies_compute_what_the_op_computes(cases: dict[str, Any], name: str) -> None:
    case = cases.get(name)
    if case is None:
        near = [n for n in cases if n.startswith(name.split("_")[0]) and "expanded" not in n]  # renamed by onnx
        case = cases[sorted(near)[0]]
    model = onnx.ModelProto()
    model.CopyFrom(case.model)
    inputs, expected = case.data_sets[0]
    feeds = arrays(model, inputs)
    for value in model.graph.input:  # what decides shapes is constant, as a conversion needs it
        array = feeds[value.name]
        if array.size < 8 and (array.dtype.kind in "iu" or name.startswith("range")):
            model.graph.initializer.append(numpy_helper.from_array(array, value.name))
    result = load(model)
    expand_functions(result.model, lambda domain, op, version: False)
    assert not any(has_body(node) for node in result.model.graph), ops(result)
    got = run_reference(ir.to_proto(result.model), feeds)
    for want, have in zip(expected, got, strict=True):
        want = numpy_helper.to_array(want) if isinstance(want, onnx.TensorProto) else np.asarray(want)
        assert want.shape == np.shape(have)
        np.testing.assert_allclose(np.asarray(have, np.float64), want.astype(np.float64), rtol=2e-3, atol=1e-4)


def test_keep_decides() -> None:
    model = parse("g (float[2,8] x) => (float[2,8] y) { h = HardSwish(x) y = Gelu(h) }", 20)
    kept = load(model).model
    expand_functions(kept, lambda domain, op, version: op in ("Gelu", "HardSigmoid"))
    assert ops(kept) == ["HardSigmoid", "Mul", "Gelu"]
    expand_functions(kept, lambda domain, op, version: True)
    assert ops(kept) == ["HardSigmoid", "Mul", "Gelu"]


def test_expanded_nodes_carry_the_name_of_their_source() -> None:
    model = parse("g (float[2,8] x) => (float[2,8] y) { y = Gelu(x) }", 20)
    model.graph.node[0].name = "act"
    expanded = expand_functions(load(model).model, lambda *_: False)
    assert {node.meta["npukit.origin"] for node in expanded.graph} == {("act",)}
    assert len({node.name for node in expanded.graph}) == len(list(expanded.graph))


# --- com.microsoft: ONNX Runtime has these ops, so it is the oracle ---

RNG = np.random.default_rng(0)
B, S, H, N = 2, 5, 16, 4


def f(*shape: int) -> Any:
    return RNG.standard_normal(shape).astype(F)


def codes(*shape: int) -> Any:
    return RNG.integers(0, 255, shape).astype(np.uint8)


SCALE, ZERO = np.array(0.02, F), np.array(120, np.uint8)
MASK = np.array([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]], np.int32)
IDS = RNG.integers(0, 9, (B, S)).astype(np.int32)
Q = [codes(3, 4), SCALE, ZERO]
OUT = [np.array(0.05, F), ZERO]

# (op, inputs, indices of constant inputs, indices of used outputs, attributes, first ops of the result)
CONTRIB: list[tuple[str, list[Any], tuple[int, ...], tuple[int, ...], dict[str, Any], list[str]]] = [
    ("BiasGelu", [f(B, S, H), f(H)], (1,), (0,), {}, ["Add", "Gelu"]),
    ("FastGelu", [f(B, S, H)], (), (0,), {}, ["Gelu"]),
    ("FastGelu", [f(B, S, H), f(H)], (1,), (0,), {}, ["Add", "Gelu"]),
    ("QuickGelu", [f(B, S, H)], (), (0,), {"alpha": 1.5}, ["Swish"]),
    ("SimplifiedLayerNormalization", [f(B, S, H), f(H)], (1,), (0,), {"axis": -1}, ["RMSNormalization"]),
    (
        "SkipLayerNormalization",
        [f(B, S, H), f(B, S, H), f(H), f(H), f(H)],
        (2, 3, 4),
        (0, 3),
        {},
        ["Add", "Add", "LayerNormalization"],
    ),
    (
        "SkipSimplifiedLayerNormalization",
        [f(B, S, H), f(B, S, H), f(H)],
        (2,),
        (0,),
        {"epsilon": 1e-5},
        ["Add", "RMSNormalization"],
    ),
    (
        "FusedMatMul",
        [f(2, 4, 3), f(2, 5, 4)],
        (),
        (0,),
        {"alpha": 0.5, "transA": 1, "transB": 1},
        ["Transpose", "Transpose", "MatMul", "Mul"],
    ),
    ("FusedGemm", [f(3, 4), f(4, 5), f(5)], (1, 2), (0,), {"activation": "Relu"}, ["Gemm", "Relu"]),
    (
        "FusedConv",
        [f(1, 3, 8, 8), f(4, 3, 3, 3), f(4)],
        (1, 2),
        (0,),
        {"activation": "Clip", "activation_params": [0.0, 6.0]},
        ["Conv", "Clip"],
    ),
    (
        "MatMulNBits",
        [f(3, 64), codes(8, 2, 16), np.abs(f(16))],
        (1, 2),
        (0,),
        {"K": 64, "N": 8, "bits": 4, "block_size": 32},
        ["DequantizeLinear", "Transpose", "MatMul"],
    ),
    (
        "MatMulNBits",
        [f(3, 64), codes(8, 2, 16), np.abs(f(16)), codes(8)],
        (1, 2, 3),
        (0,),
        {"K": 64, "N": 8, "bits": 4, "block_size": 32},
        ["DequantizeLinear", "Transpose", "MatMul"],
    ),
    (
        "EmbedLayerNormalization",
        [IDS, IDS % 2, f(9, H), f(12, H), f(2, H), f(H), f(H)],
        (2, 3, 4, 5, 6),
        (0, 2),
        {},
        ["Gather"],
    ),
    (
        "MultiHeadAttention",
        [f(B, S, H), f(B, S, H), f(B, S, H), f(3 * H), MASK],
        (3,),
        (0,),
        {"num_heads": N},
        ["Add"],
    ),
    (
        "MultiHeadAttention",
        [f(B, S, H), f(B, S, H), f(B, S, H), None, None, f(1, 1, S, S)],
        (),
        (0,),
        {"num_heads": N, "unidirectional": 1, "scale": 0.3},
        ["Attention"],
    ),
    (
        "MultiHeadAttention",
        [f(B, S, H)] * 3 + [None] * 3 + [f(B, N, 3, H // N)] * 2,
        (),
        (0, 1, 2),
        {"num_heads": N},
        ["Attention"],
    ),
    (
        "Attention",
        [f(B, S, H), f(H, 3 * H), f(3 * H), MASK],
        (1, 2),
        (0,),
        {"num_heads": N},
        ["MatMul", "Add", "Split"],
    ),
    ("RotaryEmbedding", [f(B, S, H), np.array([2]), f(20, 2), f(20, 2)], (2, 3), (0,), {}, ["Add", "Expand"]),
    (
        "RotaryEmbedding",
        [f(B, N, S, 4), np.tile(np.arange(S), (B, 1)), f(20, 2), f(20, 2)],
        (2, 3),
        (0,),
        {"interleaved": 1},
        ["RotaryEmbedding"],
    ),
    ("QLinearAdd", [*Q, *Q, *OUT], (1, 2, 4, 5, 6, 7), (0,), {}, ["DequantizeLinear", "DequantizeLinear", "Add"]),
    ("QLinearSigmoid", [*Q, np.array(1 / 256, F), np.array(0, np.uint8)], (1, 2, 3, 4), (0,), {}, ["DequantizeLinear"]),
    ("QLinearConcat", [*OUT, *Q, *Q], (0, 1, 3, 4, 6, 7), (0,), {"axis": 1}, ["DequantizeLinear"]),
    ("QLinearGlobalAveragePool", [codes(1, 3, 4, 4), *Q[1:], *OUT], (1, 2, 3, 4), (0,), {}, ["DequantizeLinear"]),
    (
        "MatMulIntegerToFloat",
        [codes(3, 4), codes(4, 5), *[SCALE.reshape(1)] * 2, *[ZERO.reshape(1)] * 2],
        (1, 2, 3, 4, 5),
        (0,),
        {},
        ["DequantizeLinear"],
    ),
    (
        "DynamicQuantizeMatMul",
        [f(3, 4), codes(4, 5), SCALE.reshape(1), ZERO.reshape(1)],
        (1, 2, 3),
        (0,),
        {},
        ["DynamicQuantizeLinear"],
    ),
    ("ExpandDims", [f(3, 4), np.array(1, np.int32)], (1,), (0,), {}, ["Unsqueeze"]),
]


@pytest.mark.parametrize(
    ("op", "inputs", "constant", "used", "attributes", "expected"),
    CONTRIB,
    ids=[f"{row[0]} {i}" for i, row in enumerate(CONTRIB)],
)
def test_contrib_ops_become_standard_ops(
    op: str,
    inputs: list[Any],
    constant: tuple[int, ...],
    used: tuple[int, ...],
    attributes: dict[str, Any],
    expected: list[str],
) -> None:
    names = ["" if a is None else f"i{i}" for i, a in enumerate(inputs)]
    outputs = [f"o{i}" if i in used else "" for i in range(max(used) + 1)]
    domain = "" if op == "SimplifiedLayerNormalization" else "com.microsoft"
    feeds = {n: a for i, (n, a) in enumerate(zip(names, inputs, strict=True)) if n and i not in constant}
    graph = helper.make_graph(
        [helper.make_node(op, names, outputs, domain=domain, **attributes)],
        "g",
        [helper.make_tensor_value_info(n, helper.np_dtype_to_tensor_dtype(a.dtype), a.shape) for n, a in feeds.items()],
        [helper.make_empty_tensor_value_info(n) for n in outputs if n],
        [numpy_helper.from_array(inputs[i], names[i]) for i in constant],
    )
    imports = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=imports, ir_version=8)
    want = run_ort(model, feeds)
    for value, array in zip(model.graph.output, want, strict=True):
        value.type.tensor_type.elem_type = helper.np_dtype_to_tensor_dtype(array.dtype)
    result = load(model)
    assert {node.domain for node in result.model.graph} == {""}
    assert ops(result)[: len(expected)] == expected
    expand_functions(result.model, lambda domain, op, version: op not in ("Swish", "Attention"))
    got = run_ort(for_ort(result.model), feeds)
    for a, b in zip(want, got, strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_allclose(b.astype(np.float64), a.astype(np.float64), rtol=1e-4, atol=1e-5)


def test_contrib_forms_without_an_equal_are_errors() -> None:
    model = parse(
        "g (float[2,8] x, float[2,8] k) => (float y, float m) { y, m = com.microsoft.SkipLayerNormalization(x, k, w) }",
        com_microsoft=1,
        constants={"w": np.ones(8, F)},
    )
    with pytest.raises(ModelError, match="its output 1 is used"):
        load(model)
    model = parse("g (float[2,8] x) => (float[2,8] y) { y = com.acme.Magic(x) z = Relu(y) }", com_acme=1)
    model.graph.output[0].name = "z"
    with pytest.raises(ModelError, match=r"com\.acme::Magic is not an op that is known here"):
        load(model)

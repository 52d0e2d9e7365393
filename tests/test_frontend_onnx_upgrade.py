# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""Old forms of ops: the source in its own opset and the upgraded model give the same numbers in ORT."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest

from npukit.errors import ModelError
from npukit.frontends.onnx import load
from npukit.frontends.onnx.rewrite import NEWEST, schema_of
from npukit.frontends.onnx.upgrade_ops import UPGRADES
from tests.frontend_tools import assert_same, feeds_for, for_ort, ops, parse, run_ort

F = np.float32
STATS = {k: np.abs(np.random.default_rng(i).standard_normal(3)).astype(F) + 0.1 for i, k in enumerate("sbmv")}
X = "float[2,3,4] x"
IMAGE = "float[1,3,4,6] x"


def ints(*values: int) -> np.ndarray[Any, Any]:
    return np.array(values, np.int64)


# (id, opset, inputs, outputs, body, constants, ops of the result)
ROWS: list[tuple[str, int, str, str, str, dict[str, Any], list[str]]] = [
    ("squeeze", 11, "float[2,1,4] x", "float[2,4] y", "y = Squeeze<axes=[-2]>(x)", {}, ["Squeeze"]),
    ("unsqueeze", 11, X, "float[2,1,3,4] y", "y = Unsqueeze<axes=[1]>(x)", {}, ["Unsqueeze"]),
    ("sum", 12, X, "float[2,4] y", "y = ReduceSum<axes=[1], keepdims=0>(x)", {}, ["ReduceSum"]),
    ("sum all", 12, X, "float[1,1,1] y", "y = ReduceSum(x)", {}, ["ReduceSum"]),
    ("mean", 13, X, "float[2,3,1] y", "y = ReduceMean<axes=[-1]>(x)", {}, ["ReduceMean"]),
    ("l2", 17, X, "float[2,1,4] y", "y = ReduceL2<axes=[1]>(x)", {}, ["ReduceL2"]),
    ("clip", 7, X, "float[2,3,4] y", "y = Clip<min=-0.5, max=0.25>(x)", {}, ["Clip"]),
    ("clip one side", 10, X, "float[2,3,4] y", "y = Clip<min=0.5>(x)", {}, ["Clip"]),
    ("clip no side", 10, X, "float[2,3,4] y", "y = Clip(x)", {}, ["Clip"]),
    ("pad", 10, X, "float[2,4,6] y", "y = Pad<pads=[0,1,2,0,0,0], value=1.5>(x)", {}, ["Pad"]),
    ("pad reflect", 8, X, "float[2,3,6] y", 'y = Pad<pads=[0,0,2,0,0,0], mode="reflect">(x)', {}, ["Pad"]),
    (
        "slice",
        9,
        X,
        "float[2,2,3] y",
        "y = Slice<starts=[1,0], ends=[9223372036854775807,-1], axes=[1,2]>(x)",
        {},
        ["Slice"],
    ),
    ("slice no axes", 7, X, "float[1,3,4] y", "y = Slice<starts=[-1], ends=[100]>(x)", {}, ["Slice"]),
    ("topk", 9, X, "float[2,3,2] v, int64[2,3,2] i", "v, i = TopK<k=2>(x)", {}, ["TopK"]),
    ("topk axis", 9, X, "float[2,2,4] v, int64[2,2,4] i", "v, i = TopK<k=2, axis=1>(x)", {}, ["TopK"]),
    ("split", 12, X, "float[2,1,4] a, float[2,2,4] b", "a, b = Split<axis=1, split=[1,2]>(x)", {}, ["Split"]),
    ("split equal", 12, X, "float[2,3,2] a, float[2,3,2] b", "a, b = Split<axis=-1>(x)", {}, ["Split"]),
    ("split 13", 13, X, "float[2,3,2] a, float[2,3,2] b", "a, b = Split<axis=2>(x)", {}, ["Split"]),
    ("dropout", 7, X, "float[2,3,4] y", "a = Dropout<ratio=0.3>(x) y = Neg(a)", {}, ["Neg"]),
    ("dropout 12", 12, X, "float[2,3,4] y", "a = Dropout(x, r) y = Neg(a)", {"r": np.array(0.3, F)}, ["Neg"]),
    ("softmax", 11, X, "float[2,3,4] y", "y = Softmax(x)", {}, ["Reshape", "Softmax", "Reshape"]),
    ("softmax last", 11, X, "float[2,3,4] y", "y = Softmax<axis=2>(x)", {}, ["Softmax"]),
    ("softmax ones", 9, "float[2,3,1,1] x", "float[2,3,1,1] y", "y = Softmax(x)", {}, ["Softmax"]),
    ("softmax 0", 7, X, "float[2,3,4] y", "y = Softmax<axis=0>(x)", {}, ["Reshape", "Softmax", "Reshape"]),
    ("logsoftmax", 12, X, "float[2,3,4] y", "y = LogSoftmax<axis=-2>(x)", {}, ["Reshape", "LogSoftmax", "Reshape"]),
    ("hardmax", 8, X, "float[2,3,4] y", "y = Hardmax(x)", {}, ["Reshape", "Hardmax", "Reshape"]),
    ("batchnorm", 7, IMAGE, "float[1,3,4,6] y", "y = BatchNormalization(x, s, b, m, v)", STATS, ["BatchNormalization"]),
    (
        "batchnorm 9",
        9,
        IMAGE,
        "float[1,3,4,6] y",
        "y = BatchNormalization<epsilon=0.1>(x, s, b, m, v)",
        STATS,
        ["BatchNormalization"],
    ),
    ("upsample 7", 7, IMAGE, "float[1,3,8,18] y", "y = Upsample<scales=[1.0,1.0,2.0,3.0]>(x)", {}, ["Resize"]),
    (
        "upsample 9",
        9,
        IMAGE,
        "float[1,3,8,12] y",
        'y = Upsample<mode="linear">(x, k)',
        {"k": np.array([1, 1, 2, 2], F)},
        ["Resize"],
    ),
    ("resize up", 10, IMAGE, "float[1,3,8,18] y", "y = Resize(x, k)", {"k": np.array([1, 1, 2, 3], F)}, ["Resize"]),
    (
        "resize down",
        10,
        IMAGE,
        "float[1,3,2,4] y",
        "y = Resize(x, k)",
        {"k": np.array([1, 1, 0.6, 0.75], F)},
        ["Resize"],
    ),
    (
        "resize both",
        10,
        IMAGE,
        "float[1,3,2,12] y",
        "y = Resize(x, k)",
        {"k": np.array([1, 1, 0.6, 2], F)},
        ["Resize", "Resize"],
    ),
    (
        "resize linear",
        10,
        IMAGE,
        "float[1,3,8,9] y",
        'y = Resize<mode="linear">(x, k)',
        {"k": np.array([1, 1, 2, 1.5], F)},
        ["Resize"],
    ),
    (
        "resize nn",
        11,
        IMAGE,
        "float[1,3,8,9] y",
        'y = Resize<coordinate_transformation_mode="tf_half_pixel_for_nn", nearest_mode="floor">(x, r, k)',
        {"r": np.zeros(0, F), "k": np.array([1, 1, 2, 1.5], F)},
        ["Resize"],
    ),
    (
        "resize sizes",
        11,
        IMAGE,
        "float[1,3,2,9] y",
        'y = Resize<mode="cubic">(x, r, k, n)',
        {"r": np.zeros(0, F), "k": np.zeros(0, F), "n": ints(1, 3, 2, 9)},
        ["Resize"],
    ),
    (
        "scatter",
        9,
        X,
        "float[2,3,4] y",
        "y = Scatter<axis=1>(x, i, u)",
        {"i": np.array([[[0, 2, 1, 0]], [[1, 1, 2, 0]]]), "u": np.ones((2, 1, 4), F)},
        ["ScatterElements"],
    ),
    (
        "onehot",
        9,
        "int64[3] x",
        "float[3,5] y",
        "y = OneHot(x, d, v)",
        {"d": np.array(5, np.int64), "v": np.array([0.5, 2], F)},
        ["OneHot"],
    ),
    (
        "gemm",
        7,
        "float[2,3] x",
        "float[2,4] y",
        "y = Gemm<alpha=0.5>(x, w, c)",
        {"w": np.ones((3, 4), F), "c": np.ones(4, F)},
        ["Gemm"],
    ),
    (
        "roi",
        10,
        IMAGE,
        "float[1,3,2,2] y",
        "y = RoiAlign<output_height=2, output_width=2, sampling_ratio=2>(x, r, i)",
        {"r": np.array([[0, 0, 4, 3]], F), "i": ints(0)},
        ["RoiAlign"],
    ),
    (
        "grid",
        16,
        IMAGE,
        "float[1,3,2,2] y",
        'y = GridSample<mode="bilinear">(x, g)',
        {"g": np.linspace(-1, 1, 8, dtype=F).reshape(1, 2, 2, 2)},
        ["GridSample"],
    ),
    ("dft", 17, "float[1,6,1] x", "float[1,6,2] y", "y = DFT<axis=1>(x)", {}, ["DFT"]),
    ("argmax", 11, X, "int64[2,1,4] y", "y = ArgMax<axis=1>(x)", {}, ["ArgMax"]),
    (
        "lrn pool",
        7,
        IMAGE,
        "float[1,3,2,3] y",
        "a = LRN<size=3>(x) y = MaxPool<kernel_shape=[2,2], strides=[2,2]>(a)",
        {},
        ["LRN", "MaxPool"],
    ),
    ("lppool", 9, IMAGE, "float[1,3,3,5] y", "y = LpPool<kernel_shape=[2,2]>(x)", {}, ["LpPool"]),
    (
        "lstm",
        7,
        "float[3,2,4] x",
        "float[3,1,2,5] y",
        "y = LSTM<hidden_size=5>(x, w, r)",
        {"w": np.full((1, 20, 4), 0.1, F), "r": np.full((1, 20, 5), 0.2, F)},
        ["LSTM"],
    ),
]


@pytest.mark.parametrize(
    ("opset", "inputs", "outputs", "body", "constants", "expected"), [r[1:] for r in ROWS], ids=[r[0] for r in ROWS]
)
def test_upgraded_forms_compute_the_same(
    opset: int, inputs: str, outputs: str, body: str, constants: dict[str, Any], expected: list[str]
) -> None:
    model = parse(f"g ({inputs}) => ({outputs}) {{ {body} }}", opset, constants)
    result = assert_same(model)
    assert ops(result) == expected
    for node in result.model.graph:
        assert node.version == NEWEST
        schema = schema_of("", node.op_type, NEWEST)
        assert schema is not None
        assert set(node.attributes) <= set(schema.attributes)


def old(body: str, opset: int, inputs: str, outputs: str, constants: dict[str, Any] | None = None) -> Any:
    """Normalize a model of an opset that ORT does not run, and run it."""
    model = parse(f"g ({inputs}) => ({outputs}) {{ {body} }}", opset, constants)
    feeds = feeds_for(model)
    return run_ort(for_ort(load(model).model), feeds), feeds


def test_forms_below_opset_7() -> None:
    b = np.array([10, 20, 30], F)
    (y,), feeds = old("y = Add<broadcast=1, axis=1>(x, b)", 6, X, "float[2,3,4] y", {"b": b})
    np.testing.assert_allclose(y, feeds["x"] + b[:, None])
    (y,), feeds = old("y = PRelu(x, b)", 6, X, "float[2,3,4] y", {"b": b})
    np.testing.assert_allclose(y, np.where(feeds["x"] < 0, feeds["x"] * b[:, None], feeds["x"]))
    (y,), feeds = old("y = Reshape<shape=[6,-1]>(x)", 1, X, "float[6,4] y")
    np.testing.assert_allclose(y, feeds["x"].reshape(6, 4))
    (y,), feeds = old('y = Cast<to="INT32">(x)', 1, X, "int32[2,3,4] y")
    np.testing.assert_allclose(y, feeds["x"].astype(np.int32))
    (y,), feeds = old("y = Concat(x, x)", 1, X, "float[2,6,4] y")
    np.testing.assert_allclose(y, np.concatenate([feeds["x"]] * 2, 1))
    (y,), feeds = old("y = Tile(x, t, a)", 1, X, "float[2,6,4] y", {"t": np.array(2, F), "a": np.array(1, F)})
    np.testing.assert_allclose(y, np.tile(feeds["x"], (1, 2, 1)))
    (y,), feeds = old("y = Selu(x)", 1, X, "float[2,3,4] y")
    x = feeds["x"].astype(np.float64)
    np.testing.assert_allclose(y, 1.0507 * np.where(x > 0, x, 1.6732 * np.expm1(x)), rtol=1e-5)


def test_batchnorm_with_statistics_for_each_position() -> None:
    stats = {k: np.abs(np.random.default_rng(9).standard_normal((3, 4))).astype(F) + 1 for k in "sbmv"}
    (y,), feeds = old("y = BatchNormalization<spatial=0>(x, s, b, m, v)", 7, X, "float[2,3,4] y", stats)
    want = (feeds["x"] - stats["m"]) / np.sqrt(stats["v"] + 1e-5) * stats["s"] + stats["b"]
    np.testing.assert_allclose(y, want, rtol=1e-5, atol=1e-6)


def test_group_normalization_of_opset_18() -> None:
    parameters = {"s": np.array([2, 3], F), "b": np.array([1, -1], F)}
    (y,), feeds = old(
        "y = GroupNormalization<num_groups=2>(x, s, b)", 18, "float[2,4,5] x", "float[2,4,5] y", parameters
    )
    groups = feeds["x"].reshape(2, 2, 10).astype(np.float64)
    normal = (groups - groups.mean(-1, keepdims=True)) / np.sqrt(groups.var(-1, keepdims=True) + 1e-5)
    want = (normal * parameters["s"][:, None] + parameters["b"][:, None]).reshape(2, 4, 5)
    np.testing.assert_allclose(y, want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("opset", "text", "message"),
    [
        (
            8,
            "g (float[2,3,4] x) => (float[2,3,4] y, float[3] n) { y, n = BatchNormalization(x, s, b, m, v) }",
            "training",
        ),
        (10, "g (float[1,1,4,4] x, float[4] k) => (float[1,1,A,B] y) { y = Resize(x, k) }", "scales are not constant"),
    ],
)
def test_forms_without_an_equal_are_errors(opset: int, text: str, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        load(parse(text, opset, STATS if "(x, s" in text else None))


def test_every_dropped_attribute_has_a_row() -> None:
    """An op whose old schema has an attribute or input that the newest lacks must be in the table."""
    newest = {s.name: s for s in onnx.defs.get_all_schemas() if not s.domain}
    for schema in onnx.defs.get_all_schemas_with_history():
        if schema.domain or schema.name not in newest or schema.since_version == newest[schema.name].since_version:
            continue
        last = newest[schema.name]
        gone = set(schema.attributes) - set(last.attributes) - {"consumed_inputs"}
        retyped = {
            k for k, a in schema.attributes.items() if k in last.attributes and a.type != last.attributes[k].type
        }
        if gone or retyped or schema.max_input > last.max_input:
            assert any(schema.since_version < before for before, _ in UPGRADES.get(schema.name, ())), schema.name

# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""Small QNN graphs for tests, and what it means that two graphs are the same after a trip through a DLC."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from npukit.qnn.graph import DType, Encoding, Graph, Op, Param, Tensor, TensorKind

F32, U8, S8, S32, U32 = DType.FLOAT_32, DType.UFIXED_POINT_8, DType.SFIXED_POINT_8, DType.SFIXED_POINT_32, DType.UINT_32
WRITE, READ, STATIC = TensorKind.APP_WRITE, TensorKind.APP_READ, TensorKind.STATIC


def indices(*values: Any) -> Param:
    """A uint32 tensor parameter."""
    return Param(U32, np.array(values, np.uint32))


def cnn(filters: int = 4, *, name: str = "cnn") -> Graph:
    """Conv2d, Relu, Reshape, FullyConnected, add: float32, inputs listed against the order of their use."""
    rng = np.random.default_rng(0)

    def constant(title: str, *shape: int) -> Tensor:
        return Tensor(title, F32, shape, STATIC, data=rng.normal(size=shape).astype(np.float32))

    x, z = Tensor("x", F32, (1, 8, 8, 3), WRITE), Tensor("z", F32, (1, 5), WRITE)
    conv, relu = Tensor("conv_out", F32, (1, 6, 6, filters)), Tensor("relu_out", F32, (1, 6, 6, filters))
    flat, dense = Tensor("flat", F32, (1, 36 * filters)), Tensor("dense", F32, (1, 5))
    y = Tensor("y", F32, (1, 5), READ)
    weights = (constant("w", 3, 3, 3, filters), constant("b", filters))
    return Graph(
        name,
        [z, x],
        [y],
        [
            Op(
                "conv",
                "Conv2d",
                [x, *weights],
                [conv],
                {"stride": indices(1, 1), "pad_amount": indices([0, 0], [0, 0])},
            ),
            Op("relu", "Relu", [conv], [relu]),
            Op("flatten", "Reshape", [relu], [flat]),
            Op("fc", "FullyConnected", [flat, constant("w2", 5, 36 * filters), constant("b2", 5)], [dense]),
            Op("add", "ElementWiseAdd", [dense, z], [y]),
        ],
    )


def quantized(*, axis_bitwidth: int = 0, name: str = "q") -> Graph:
    """Conv2d with per-channel 8-bit weights and 32-bit bias, then Relu; 8-bit activations."""
    rng = np.random.default_rng(1)
    scales = (0.01, 0.02, 0.03, 0.04)
    x = Tensor("x", U8, (1, 4, 4, 3), WRITE, Encoding.per_tensor(0.05, -128))
    weight = Tensor("w", S8, (1, 1, 3, 4), STATIC, Encoding(scales, (0,) * 4, axis=3, bitwidth=axis_bitwidth))
    weight.data = rng.integers(-7, 8, weight.shape).astype(np.int8)
    bias_scales = tuple(float(np.float32(s) * np.float32(0.05)) for s in scales)
    bias = Tensor("b", S32, (4,), STATIC, Encoding(bias_scales, (0,) * 4, axis=0))
    bias.data = np.array([1, -2, 3, -4], np.int32)
    middle = Tensor("m", U8, (1, 4, 4, 4), encoding=Encoding.per_tensor(0.1, -100))
    y = Tensor("y", U8, (1, 4, 4, 4), READ, Encoding.per_tensor(0.1, 0))
    return Graph(
        name,
        [x],
        [y],
        [
            Op(
                "conv",
                "Conv2d",
                [x, weight, bias],
                [middle],
                {"stride": indices(1, 1), "pad_amount": indices([0, 0], [0, 0])},
            ),
            Op("relu", "Relu", [middle], [y]),
        ],
    )


# libQnnIr rewrites the older single ops to their families.
REWRITTEN = {"Relu": ("ElementWiseNeuron", 4), "ElementWiseAdd": ("ElementWiseBinary", 0)}


def assert_same(found: Graph, expected: Graph) -> None:
    """Equal names, shapes, types, encodings (to float32), values, ops and parameters; input order left aside."""
    theirs = {t.name: t for t in found.tensors()}
    ours = {t.name: t for t in expected.tensors()}
    assert set(theirs) == set(ours)
    for name, tensor in ours.items():
        other = theirs[name]
        assert (other.dtype, other.shape, other.kind) == (tensor.dtype, tensor.shape, tensor.kind), name
        assert as_float32(other.encoding) == as_float32(tensor.encoding), name
        if tensor.data is not None:
            assert other.data is not None
            assert other.data.dtype == tensor.data.dtype
            np.testing.assert_array_equal(other.data, tensor.data)
    assert [op.name for op in found.ops] == [op.name for op in expected.ops]
    for op, other_op in zip(expected.ops, found.ops, strict=True):
        kind, operation = REWRITTEN.get(op.type, (op.type, None))
        assert other_op.type == kind
        for got, wanted in ((other_op.inputs, op.inputs), (other_op.outputs, op.outputs)):
            assert [t and t.name for t in got] == [t and t.name for t in wanted]
        wanted_params = dict(op.params)
        if operation is not None:
            wanted_params["operation"] = Param(U32, operation)
        assert set(other_op.params) == set(wanted_params), op.name
        for key, param in wanted_params.items():
            assert other_op.params[key].dtype == param.dtype
            np.testing.assert_array_equal(other_op.params[key].value, param.value)


def as_float32(encoding: Encoding | None) -> Encoding | None:
    """The encoding with its scales rounded to float32, as the C API holds them."""
    if encoding is None:
        return None
    return dataclasses.replace(encoding, scales=tuple(float(np.float32(scale)) for scale in encoding.scales))

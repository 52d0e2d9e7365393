# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""Float graphs of one op (and of pairs that HTP fuses) whose quantized forms are asked for and run."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any
from zlib import crc32

import numpy as np

from npukit.qnn.graph import Array, Graph, Op, Tensor, TensorKind
from tests.raising_cases.case import B8, F32, I32, U32, Case, In, index, out, param


@dataclass
class Row:
    """One graph.

    Attributes:
        label: the op's type, with what sets this form apart behind a space ("ElementWiseUnary RSQRT").
        case: the op, its inputs and params.
        then: an op that reads the first output, and its params: a pair that may be fused.
    """

    label: str
    case: Case
    then: tuple[str, dict[str, Any]] | None = None

    @property
    def group(self) -> str:
        """What the capability table calls it."""
        operation = self.case.params.get("operation")
        return f"{self.case.op} {operation}" if operation else self.case.op

    def graph(self) -> tuple[Graph, dict[str, Array]]:
        """The float graph and the arrays of its inputs by name."""
        graph, feeds = self.case.graph()
        if self.then is not None:
            kind, params = self.then
            middle = graph.outputs[0]
            middle.kind = TensorKind.NATIVE
            result = Tensor("result", F32, middle.shape, TensorKind.APP_READ)
            made = {name: param(kind, name, value) for name, value in params.items()}
            inputs: list[Tensor | None] = [middle]
            if kind == "Prelu":
                slope = np.full(1, 0.1, np.float32)
                inputs.append(Tensor("slope", F32, (1,), TensorKind.STATIC, data=slope))
            graph.ops.append(Op("then", kind, inputs, [result], made))
            graph.outputs = [result]
        return graph, {t.name: array for t, array in zip(graph.inputs, feeds, strict=True)}


@dataclass
class _Rows:
    found: list[Row] = field(default_factory=list)

    def __call__(
        self, label: str, inputs: list[Any], outputs: Any = None, then: Any = None, op: str = "", **params: Any
    ) -> None:
        kind = op or label.split(" ", 1)[0]
        self.found.append(Row(label, Case(kind, inputs, params, outputs or []), then))


def n(*shape: int, scale: float = 1.0, static: bool = False) -> In:
    """Normal numbers of deviation `scale`."""
    rng = np.random.default_rng(crc32(repr((shape, scale, static)).encode()))
    return In(shape, F32, values=rng.normal(0, scale, shape), static=static)


def m(*shape: int) -> In:
    """As `n`, other numbers: the second operand."""
    rng = np.random.default_rng(crc32(repr(shape).encode()) + 1)
    return In(shape, F32, values=rng.normal(0, 1, shape))


def u(low: float, high: float, *shape: int, static: bool = False) -> In:
    """Uniform numbers."""
    return In(shape, F32, low, high, static=static)


def w(*shape: int) -> In:
    """A weight [*kernel, in, out] of trained size: deviation 1 / sqrt(fan in)."""
    return n(*shape, scale=float(np.prod(shape[:-1])) ** -0.5, static=True)


def c(*shape: int, scale: float = 0.3) -> In:
    """A bias or another constant."""
    return n(*shape, scale=scale, static=True)


_X = (1, 16, 16, 32)
_ONE = {"stride": (1, 1), "pad_amount": [[1, 1], [1, 1]]}
_TWO = {"stride": (2, 2), "pad_amount": [[0, 1], [0, 1]]}
_HALF = (1, 8, 8, 32)


def _activations(add: _Rows) -> None:
    for name in ("Relu", "Relu6", "Relu1", "Sigmoid", "Tanh", "Elu", "Gelu", "HardSwish", "ElementWiseSoftplus"):
        add(name, [n(*_X, scale=2.0)])
    add("ReluMinMax", [n(*_X)], min_value=-0.5, max_value=1.5)
    for name in ("Abs", "Neg", "Floor", "Ceil", "Round", "Sign", "Sin", "Cos", "Atan", "Exp"):
        add(f"ElementWise{name}", [n(*_X, scale=2.0 if name != "Exp" else 1.0)])
        add(f"ElementWiseUnary {name.upper()}", [n(*_X, scale=1.5)], operation=name.upper())
    add("ElementWiseAsin", [u(-1, 1, *_X)])
    add("ElementWiseUnary ASIN", [u(-1, 1, *_X)], operation="ASIN")
    add("ElementWiseLog of little and much", [u(0.01, 100, 1, 8, 8, 32)])
    add("ElementWiseLog above one", [u(1.5, 6, *_X)])
    for name, short in (("Log", "LOG"), ("Rsqrt", "RSQRT"), ("SquareRoot", "SQRT")):
        add(f"ElementWise{name}", [u(0.2, 6, *_X)])
        add(f"ElementWiseUnary {short}", [u(0.2, 6, *_X)], operation=short)
    add("ElementWiseUnary RECIPROCAL", [u(0.3, 4, *_X)], operation="RECIPROCAL")
    for name in ("RELU", "SIGMOID", "TANH", "GELU", "ELU", "HARD_SWISH", "HARD_SIGMOID", "SOFTPLUS"):
        add(f"ElementWiseNeuron {name}", [n(*_X, scale=2.0)], operation=name)
    add("ElementWiseNeuron RELU_MIN_MAX", [n(*_X)], operation="RELU_MIN_MAX", min_value=0.0, max_value=6.0)
    add("Tanh of one side", [u(-0.5, 2, *_X)])
    add("Prelu", [n(*_X), u(0, 0.5, 32, static=True)])
    for beta in (1.0, 2.0):
        add(f"Softmax beta {beta:g}", [n(1, 8, 32, 64, scale=2.0)], axis=3, beta=beta)
    add("Softmax of three axes", [n(4, 32, 48, scale=2.0)], axis=2, beta=1.0)
    add("Softmax of many classes", [n(1, 1000, scale=3.0)], axis=1, beta=1.0)
    add("LogSoftmax", [n(1, 8, 32, 64, scale=2.0)], axis=3, beta=1.0)


def _binary(add: _Rows) -> None:
    for name in ("Add", "Subtract", "Multiply", "Maximum", "Minimum", "SquaredDifference"):
        add(f"ElementWise{name}", [n(*_X), m(*_X)])
        add(f"ElementWise{name} by channel", [n(*_X), c(32, scale=1.0)])
        short = "SQUARED_DIFFERENCE" if name == "SquaredDifference" else name.upper()
        add(f"ElementWiseBinary {short}", [n(*_X), m(*_X)], operation=short)
    add("ElementWiseAdd of ranges apart", [n(*_X), n(*_X, scale=20.0)])
    for name in ("Divide", "FloorDiv"):
        add(f"ElementWise{name}", [n(*_X), u(0.5, 3, *_X)])
    add("ElementWiseDivide by channel", [n(*_X), u(0.5, 3, 32, static=True)])
    add("ElementWiseDivide broadcast", [n(*_X), u(0.5, 3, 1, 16, 16, 1)])
    for name in ("DIVIDE", "FLOOR_DIV"):
        add(f"ElementWiseBinary {name}", [n(*_X), u(0.5, 3, *_X)], operation=name)
    add("ElementWisePower", [u(0.3, 3, *_X), u(-2, 2, *_X)])
    add("ElementWisePower of two", [n(*_X), In((1,), F32, values=[2.0], static=True)], [_X])
    add("ElementWiseBinary POWER", [u(0.3, 3, *_X), u(-2, 2, *_X)], operation="POWER")
    for name in ("Equal", "NotEqual", "Greater", "GreaterEqual", "Less", "LessEqual"):
        add(f"ElementWise{name}", [n(*_X), m(*_X)], [out(*_X, dtype=B8)])
    for name in ("EQUAL", "NOT_EQUAL", "GREATER", "GREATER_EQUAL", "LESS", "LESS_EQUAL"):
        add(f"ElementWiseBinary {name}", [n(*_X), m(*_X)], [out(*_X, dtype=B8)], operation=name)
    add("ElementWiseSelect", [In(_X, B8), n(*_X), m(*_X)], [out(*_X)])


def _products(add: _Rows) -> None:
    add("Conv2d", [n(*_X), w(3, 3, 32, 48), c(48)], [(1, 16, 16, 48)], **_ONE)
    add("Conv2d 1x1", [n(*_X), w(1, 1, 32, 48), c(48)], [(1, 16, 16, 48)], stride=(1, 1), pad_amount=[[0, 0], [0, 0]])
    add("Conv2d stride 2", [n(*_X), w(3, 3, 32, 48), c(48)], [(1, 8, 8, 48)], **_TWO)
    add("Conv2d group 4", [n(*_X), w(3, 3, 8, 32), c(32)], [_X], **_ONE, group=4)
    add("Conv2d without bias", [n(*_X), w(3, 3, 32, 32)], [_X], **_ONE)
    add("Conv2d computed weight", [n(*_X), n(3, 3, 32, 16, scale=0.06)], [(1, 16, 16, 16)], **_ONE)
    add("DepthWiseConv2d", [n(*_X), w(3, 3, 1, 32), c(32)], **_ONE)
    add("DepthWiseConv2d stride 2", [n(*_X), w(3, 3, 1, 32), c(32)], [_HALF], **_TWO)
    none = [[0, 0], [0, 0]]
    add("TransposeConv2d", [n(*_HALF), w(2, 2, 32, 24), c(24)], [(1, 16, 16, 24)], stride=(2, 2), pad_amount=none)
    overlap = {"stride": (2, 2), "pad_amount": [[1, 1], [1, 1]]}
    add("TransposeConv2d 4x4", [n(*_HALF), w(4, 4, 32, 24), c(24)], [(1, 16, 16, 24)], **overlap)
    deep = {"stride": (1, 1, 1), "pad_amount": [[1, 1]] * 3}
    add("Conv3d", [n(1, 6, 8, 8, 16), w(3, 3, 3, 16, 16), c(16)], [(1, 6, 8, 8, 16)], **deep)
    up = {"stride": (2, 2, 2), "pad_amount": [[0, 0]] * 3}
    add("TransposeConv3d", [n(1, 3, 4, 4, 8), w(2, 2, 2, 8, 8), c(8)], [(1, 6, 8, 8, 8)], **up)
    add("FullyConnected", [n(32, 128), n(96, 128, scale=0.09, static=True), c(96)], [(32, 96)])
    add("FullyConnected without bias", [n(32, 128), n(96, 128, scale=0.09, static=True)], [(32, 96)])
    add("FullyConnected computed weight", [n(32, 128), n(96, 128, scale=0.09)], [(32, 96)])
    plain = {"transpose_in0": 0, "transpose_in1": 0}
    add("MatMul weight", [n(1, 32, 128), n(128, 96, scale=0.09, static=True)], [(1, 32, 96)], **plain)
    add("MatMul weight and bias", [n(32, 128), n(128, 96, scale=0.09, static=True), c(96)], [(32, 96)], **plain)
    add("MatMul computed", [n(1, 4, 32, 64), m(1, 4, 64, 48)], [(1, 4, 32, 48)], **plain)
    add(
        "MatMul computed transposed", [n(1, 4, 32, 64), m(1, 4, 48, 64)], [(1, 4, 32, 48)],
        transpose_in0=0, transpose_in1=1,
    )  # fmt: skip
    add("Batchnorm", [n(*_X), u(0.5, 2, 32, static=True), c(32)])


def _norms(add: _Rows) -> None:
    gamma, beta = u(0.5, 1.5, 64, static=True), c(64)
    add("LayerNorm", [n(1, 32, 64), gamma, beta], axes=[2], epsilon=1e-5)
    add("LayerNorm of four axes", [n(1, 8, 8, 64), gamma, beta], axes=[3], epsilon=1e-5)
    add("LayerNorm off centre", [u(-1, 5, 1, 32, 64), gamma, beta], axes=[2], epsilon=1e-5)
    add("RmsNorm", [n(1, 32, 64), gamma, beta], axes=[2], epsilon=1e-6)
    add("RmsNorm of four axes", [n(1, 8, 8, 64), gamma, beta], axes=[3], epsilon=1e-6)
    add("LayerNorm without beta", [n(1, 32, 64), gamma], axes=[2], epsilon=1e-5)
    add("RmsNorm without beta", [n(1, 32, 64), gamma], axes=[2], epsilon=1e-6)
    own = [n(*_X), u(0.5, 1.5, 32, static=True), c(32)]
    add("InstanceNorm", own, mode="MU_SIGMA", region="ACROSS_SPATIAL", epsilon=1e-5)
    add("GroupNorm", own, group=4, epsilon=1e-5)
    add("L2Norm", [n(1, 8, 8, 64)], axis=3, epsilon=1e-12)
    add("Lrn", [n(*_X)], radius=2, alpha=0.5, beta=0.75, bias=1.0)


def _reductions(add: _Rows) -> None:
    for name in ("Mean", "Sum", "Max", "Min", "Prod"):
        scale = 0.7 if name == "Prod" else 1.0
        add(f"Reduce{name} over the image", [n(*_X, scale=scale)], [(1, 1, 1, 32)], axes=[1, 2], keep_dims=True)
        add(f"Reduce{name} over channels", [n(*_X, scale=scale)], [(1, 16, 16, 1)], axes=[3], keep_dims=True)
    add("CumulativeSum", [n(8, 32)], axis=1)
    add("CumulativeSum of four axes", [n(1, 16, 8, 32)], axis=1)
    add("Argmax", [n(1, 16, 16, 32)], [out(1, 16, 16, 1, dtype=I32)], axis=3, keep_dims=True)
    add("Argmin", [n(1, 16, 16, 32)], [out(1, 16, 16, 1, dtype=I32)], axis=3, keep_dims=True)
    add("TopK", [n(32, 64)], [(32, 5), out(32, 5, dtype=I32)], k=5)


def _movement(add: _Rows) -> None:
    none = [[0, 0], [0, 0]]
    add("Reshape", [n(*_X)], [(16, 16, 32)])
    add("ExpandDims", [n(16, 32)], [(16, 1, 32)], axis=1)
    add("Squeeze", [n(1, 16, 32)], [(16, 32)])
    add("Transpose", [n(*_X)], [(1, 32, 16, 16)], perm=(0, 3, 1, 2))
    add("Concat of ranges apart", [n(*_X), n(*_X, scale=4.0)], [(1, 16, 16, 64)], axis=3)
    add("Pack", [n(16, 32), n(16, 32, scale=3.0)], [(2, 16, 32)], axis=0)
    add("UnPack", [n(3, 16, 32)], [(16, 32)] * 3, axis=0)
    add("Split", [n(*_X)], [(1, 16, 16, 8), (1, 16, 16, 24)], axis=3, split_index=[8])
    whole = [[0, 1, 1], [0, 16, 2], [1, 15, 1], [0, 32, 1]]
    add("StridedSlice", [n(*_X)], [(1, 8, 14, 32)], ranges=whole)
    for scheme in ("CONSTANT", "MIRROR_SYMMETRIC", "MIRROR_REFLECT", "EDGE"):
        add(f"Pad {scheme}", [n(*_X)], [(1, 19, 18, 32)], scheme=scheme, pad_amount=[[0, 0], [1, 2], [1, 1], [0, 0]])
    add("Tile", [n(1, 8, 32)], [(1, 24, 32)], multiples=[1, 3, 1])
    add("Gather", [n(40, 32), index([4, 0, 33, 7, 7])], [(5, 32)], axis=0)
    add("GatherElements", [n(16, 32), index(np.arange(64).reshape(16, 4) % 32)], [(16, 4)], axis=1)
    add("GatherNd", [n(16, 32), index([[2, 1], [0, 0], [15, 31]])], [(3,)], batch_dims=0)
    add("ScatterElements", [n(16, 32), index(np.arange(16).reshape(16, 1)), m(16, 1)], [(16, 32)], axis=1)
    alike = [In((16, 32), F32, values=np.linspace(-3, 3, 512)), index(np.arange(16).reshape(16, 1))]
    add("ScatterElements of one range", [*alike, In((16, 1), F32, values=np.linspace(3, -3, 16))], [(16, 32)], axis=1)
    add("ScatterNd", [n(16, 32), index([[2], [0], [9]]), m(3, 32)], [(16, 32)])
    add("ChannelShuffle", [n(*_X)], num_groups=4, axis=3)
    add("DepthToSpace", [n(*_HALF)], [(1, 16, 16, 8)], block_size=(2, 2))
    add("SpaceToDepth", [n(*_X)], [(1, 8, 8, 128)], block_size=(2, 2))
    add("SpaceToBatch", [n(*_X)], [(4, 8, 8, 32)], block_size=(2, 2), pad_amount=none)
    add("BatchToSpace", [n(4, 8, 8, 32)], [_X], block_size=(2, 2))


def _images(add: _Rows) -> None:
    two = {"filter_size": (2, 2), "stride": (2, 2), "pad_amount": [[0, 0], [0, 0]]}
    three = {"filter_size": (3, 3), "stride": (1, 1), "pad_amount": [[1, 1], [1, 1]]}
    for name in ("PoolAvg2d", "PoolMax2d"):
        add(name, [n(*_X)], [_HALF], **two)
        add(f"{name} padded", [n(*_X)], [_X], **three)
    add("PoolAvg2d counting the pad", [n(*_X)], [_X], **three, count_pad_for_edges=True)
    add("PoolAvg2d of all", [n(*_X)], [(1, 1, 1, 32)], filter_size=(16, 16), stride=(1, 1), pad_amount=[[0, 0], [0, 0]])
    deep = {"filter_size": (2, 2, 2), "stride": (2, 2, 2), "pad_amount": [[0, 0]] * 3}
    add("PoolAvg3d", [n(1, 6, 8, 8, 16)], [(1, 3, 4, 4, 16)], **deep)
    add("PoolMax3d", [n(1, 6, 8, 8, 16)], [(1, 3, 4, 4, 16)], **deep)
    for flags in ({}, {"half_pixel_centers": True}, {"align_corners": True}):
        words = " ".join(next(iter(flags), "").split("_"))
        add(f"ResizeBilinear {words}".strip(), [n(*_HALF)], [_X], **flags)
        add(f"ResizeNearestNeighbor {words}".strip(), [n(*_HALF)], [_X], **flags)
    for mode in ("HALF_PIXEL", "ALIGN_CORNERS", "ASYMMETRIC"):
        for kind in ("LINEAR", "CUBIC", "NEAREST"):
            add(f"Resize {kind} {mode}", [n(*_HALF)], [_X], interpolation_mode=kind, transformation_mode=mode)
    for kind in ("LINEAR", "CUBIC"):
        add(f"Resize {kind} to half", [n(*_X)], [_HALF], interpolation_mode=kind, transformation_mode="HALF_PIXEL")
    add("GridSample", [n(*_X), u(-1, 1, 1, 12, 12, 2)], [(1, 12, 12, 32)], align_corners=True)
    boxes = In((3, 4), F32, values=[[0, 0, 7, 7], [2.2, 1.1, 6.3, 7.7], [1, 3, 5, 6]])
    places = index([0, 0, 0], U32, False)
    ratio = {"img_size_ratio": (1.0, 1.0), "num_samples_y": 2, "num_samples_x": 2}
    add("RoiAlign", [n(1, 8, 8, 16), boxes, places], [(3, 4, 4, 16)], **ratio)
    patches = {"size": (2, 2), "stride": (1, 1), "rate": (1, 1), "padding": "VALID"}
    add("ExtractPatches", [n(1, 8, 8, 8)], [(1, 7, 7, 32)], **patches)


def _recurrent(add: _Rows) -> None:
    gates = [*(n(16, 8, scale=0.3 + i / 100, static=True) for i in range(3))]
    again = [*(n(16, 16, scale=0.2 + i / 100, static=True) for i in range(3))]
    biases = [*(c(16, scale=0.1 + i / 100) for i in range(3))]
    state = [n(1, 16, scale=0.01, static=True), n(1, 16, scale=0.02, static=True)]
    rest = [None] * 4 + [n(16, 8, scale=0.34, static=True), n(16, 16, scale=0.24, static=True), *[None] * 3, c(16)]
    outputs = [(6, 1, 16), (1, 16), (1, 16)]
    add("Lstm", [n(6, 1, 8), *gates, *again, *biases, *state, *rest], outputs, direction="FORWARD", time_major=True)
    more = [*biases, *(c(16, scale=0.15 + i / 100) for i in range(3)), n(1, 1, 16, scale=0.01, static=True)]
    add("Gru", [n(6, 1, 8), *gates, *again, *more], [(6, 1, 16), (1, 1, 16)], direction="FORWARD", time_major=True)


def _pairs(add: _Rows) -> None:
    conv = [n(*_X), w(3, 3, 32, 48), c(48)]
    dense = [n(32, 128), n(96, 128, scale=0.09, static=True), c(96)]
    for then in ("Relu", "Relu6", "Sigmoid", "Tanh", "HardSwish", "Gelu"):
        add(f"Conv2d + {then}", conv, [(1, 16, 16, 48)], (then, {}), **_ONE)
    for first, inputs, outputs, params in (
        ("Conv2d", conv, [(1, 16, 16, 48)], _ONE),
        ("DepthWiseConv2d", [n(*_X), w(3, 3, 1, 32), c(32)], [_X], _ONE),
        ("FullyConnected", dense, [(32, 96)], {}),
        (
            "TransposeConv2d",
            [n(*_HALF), w(2, 2, 32, 24), c(24)],
            [(1, 16, 16, 24)],
            {"stride": (2, 2), "pad_amount": [[0, 0], [0, 0]]},
        ),
        ("ElementWiseAdd", [n(*_X), m(*_X)], None, {}),
    ):
        add(f"{first} + Prelu", inputs, outputs, ("Prelu", {}), **params)
        if first != "Conv2d":
            add(f"{first} + HardSwish", inputs, outputs, ("HardSwish", {}), **params)
    for then in ("Relu", "Gelu"):
        add(f"FullyConnected + {then}", dense, [(32, 96)], (then, {}))
        add(f"DepthWiseConv2d + {then}", [n(*_X), w(3, 3, 1, 32), c(32)], [_X], (then, {}), **_ONE)
        add(f"ElementWiseAdd + {then}", [n(*_X), m(*_X)], None, (then, {}))
    plain = {"transpose_in0": 0, "transpose_in1": 1}
    soft = ("Softmax", {"axis": 3, "beta": 1.0})
    add("MatMul + Softmax", [n(1, 4, 32, 64), m(1, 4, 48, 64)], [(1, 4, 32, 48)], soft, **plain)
    add("PoolAvg2d + Relu", [n(*_X)], [_X], ("Relu", {}), filter_size=(3, 3), stride=(1, 1), pad_amount=[[1, 1]] * 2)


def rows() -> Iterator[Row]:
    """Every row."""
    add = _Rows()
    families = (_activations, _binary, _products, _norms, _reductions, _movement, _images, _recurrent, _pairs)
    for family in families:
        family(add)
    yield from add.found

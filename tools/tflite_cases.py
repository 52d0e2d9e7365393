# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""Three sets of parameters for each builtin operator of TensorFlow Lite: what docs/tflite-coverage.md is made from."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Fixed:
    """A constant input."""

    data: Array


@dataclass(frozen=True)
class State:
    """A variable tensor of zeros."""

    shape: tuple[int, ...]


@dataclass(frozen=True)
class Case:
    """One operator on its own.

    Attributes:
        code: the builtin operator, or a custom one.
        inputs: arrays are inputs of the model; None is absent.
        outputs: dtypes.
        options: name of the table of options.
        fields: of the options.
        weights: inputs that are weights in the int8 form, and the axis of their channels.
        integer: whether there is an int8 form.
        custom: the options of a custom operator.
        fixed: (scale, point) of the int8 output where the kernel asks for them.
        shapes: of the outputs, where the kernel asks for them.
    """

    code: str
    inputs: tuple[Any, ...]
    outputs: tuple[str, ...] = ("float32",)
    options: str = ""
    fields: dict[str, Any] = field(default_factory=dict)
    weights: dict[int, int] = field(default_factory=dict)
    integer: bool = False
    custom: bytes = b""
    fixed: tuple[float, int] | None = None
    shapes: tuple[tuple[int, ...], ...] = ()


_random = np.random.default_rng(11)
CASES: dict[str, list[Case]] = {}


def f(*shape: int, low: float = -2.0, high: float = 2.0) -> Array:
    """Floats that have an exact short binary form."""
    return (np.round(_random.uniform(low, high, shape) * 64) / 64).astype(np.float32)


def n(*shape: int, low: int = 0, high: int = 9, dtype: Any = np.int32) -> Array:
    """Integers from `low` to below `high`."""
    return _random.integers(low, high, shape).astype(dtype)


def k(*values: Any, dtype: Any = np.int32) -> Fixed:
    """A constant vector."""
    return Fixed(np.array(values, dtype))


def one(value: Any, dtype: Any = np.int32) -> Fixed:
    """A constant scalar."""
    return Fixed(np.array(value, dtype))


def add(code: str, *inputs: Any, options: str = "", fields: dict[str, Any] | None = None, **more: Any) -> None:
    """One more case of an operator."""
    outputs = more.pop("outputs", "float32")
    CASES.setdefault(code, []).append(
        Case(code, inputs, (outputs,) if isinstance(outputs, str) else outputs, options, fields or {}, **more)
    )


SHAPES = ((2, 5, 4), (1, 6, 7, 3), (12,))
SAME, VALID = 0, 1
RELU, RELU6, TANH = 1, 3, 4

# ---------------------------------------------------------------- single elements

_UNARY = {
    "ABS": ("AbsOptions", True), "CEIL": ("", False), "COS": ("CosOptions", False), "EXP": ("ExpOptions", True),
    "ELU": ("", True), "FLOOR": ("", False), "HARD_SWISH": ("HardSwishOptions", True), "NEG": ("NegOptions", False),
    "RELU": ("", True), "RELU6": ("", True), "RELU_N1_TO_1": ("", True), "RELU_0_TO_1": ("", False),
    "ROUND": ("", False), "SIGN": ("SignOptions", False), "SIN": ("", False), "SQUARE": ("SquareOptions", False),
    "ZEROS_LIKE": ("ZerosLikeOptions", False),
}  # fmt: skip
for _code, (_options, _integer) in _UNARY.items():
    for _shape in SHAPES:
        add(_code, f(*_shape, low=-4, high=7), options=_options, integer=_integer)
for _code in ("LOG", "SQRT", "RSQRT"):
    for _shape in SHAPES:
        add(_code, f(*_shape, low=0.1, high=4), integer=_code == "RSQRT")
for _code, _fixed in (("TANH", (1 / 128, 0)), ("LOGISTIC", (1 / 256, -128))):
    for _shape in SHAPES:
        add(_code, f(*_shape, low=-4, high=4), integer=True, fixed=_fixed)
for _shape, _alpha in zip(SHAPES, (0.3, 0.01, 0.0), strict=True):
    add("LEAKY_RELU", f(*_shape), options="LeakyReluOptions", fields={"alpha": _alpha}, integer=True)
    add("GELU", f(*_shape), options="GeluOptions", fields={"approximate": _alpha == 0.3}, integer=True)
    add("LOGICAL_NOT", n(*_shape, high=2, dtype=np.bool_), options="LogicalNotOptions", outputs="bool")
for _shape, _slopes in (((2, 5, 4), (1, 4)), ((1, 6, 7, 3), (1, 1, 3)), ((1, 3, 2, 3), (3, 2, 3))):
    add("PRELU", f(*_shape), Fixed(f(*_slopes, low=0.1, high=0.9)), integer=True)
_PAIRS = (((2, 3, 4, 5), (2, 3, 4, 5)), ((2, 3, 4, 5), (5,)), ((4, 1), (1, 6)))
for _one, _two in _PAIRS:
    for _code in ("ADD", "SUB", "MUL"):
        add(_code, f(*_one), f(*_two), options=f"{_code.capitalize()}Options", integer=True,
            fields={"fusedActivationFunction": (0, RELU, RELU6)[_PAIRS.index((_one, _two))]})  # fmt: skip
    add("DIV", f(*_one), f(*_two, low=0.3), options="DivOptions")
    add("POW", f(*_one, low=0.1), f(*_two), options="PowOptions")
    add("FLOOR_DIV", f(*_one), f(*_two, low=0.3), options="FloorDivOptions")
    add("ATAN2", f(*_one), f(*_two), options="ATan2Options") if _one == _two else None
    add("SQUARED_DIFFERENCE", f(*_one), f(*_two), options="SquaredDifferenceOptions", integer=True)
    for _code in ("MAXIMUM", "MINIMUM"):
        add(_code, f(*_one), f(*_two), options="MaximumMinimumOptions", integer=True)
    for _code in ("GREATER", "GREATER_EQUAL", "LESS", "LESS_EQUAL"):
        add(_code, f(*_one), f(*_two), options=_code.title().replace("_", "") + "Options", outputs="bool")
    for _code in ("EQUAL", "NOT_EQUAL"):
        add(_code, n(*_one, high=3), n(*_two, high=3), options=_code.title().replace("_", "") + "Options",
            outputs="bool")  # fmt: skip
    for _code in ("LOGICAL_AND", "LOGICAL_OR"):
        add(_code, n(*_one, high=2, dtype=np.bool_), n(*_two, high=2, dtype=np.bool_), outputs="bool",
            options=_code.title().replace("_", "") + "Options")  # fmt: skip
for _shape in SHAPES:
    add("BITWISE_XOR", n(*_shape), n(*_shape), options="BitwiseXorOptions", outputs="int32")
    add("RIGHT_SHIFT", n(*_shape, high=200, dtype=np.uint8), n(*_shape, high=7, dtype=np.uint8), outputs="uint8",
        options="RightShiftOptions")  # fmt: skip
    add("ADD_N", f(*_shape), f(*_shape), f(*_shape), options="AddNOptions")
add("ATAN2", np.array([1, -1, 0, 0, 2, -2], np.float32), np.array([0, 0, 1, 2, -1, -3], np.float32),
    options="ATan2Options")  # fmt: skip
add("ATAN2", f(1, 9, low=-90, high=90), f(1, 9, low=-0.1, high=0.1), options="ATan2Options")
for _types in (("int32", "float32"), ("float32", "int32"), ("int32", "int64")):
    _x = f(3, 4, low=-9, high=9) if _types[0] == "float32" else n(3, 4, low=-5)
    add("CAST", _x, options="CastOptions", outputs=_types[1])
for _a, _b in ((7, 2), (-9, 4), (12, -5)):
    _x = (n(4, 3, low=-20, high=20), n(4, 3, low=1, high=6) * np.int32(np.sign(_b)))
    add("FLOOR_MOD", *_x, options="FloorModOptions", outputs="int32")
for _low, _high, _bits in ((-1.5, 1.5, 8), (0.0, 6.0, 8), (-2.0, 1.0, 4)):
    add("FAKE_QUANT", f(2, 9), options="FakeQuantOptions", fields={"min": _low, "max": _high, "numBits": _bits})
for _limits in ([0.0], [-1.0, 0.0, 1.0], [-1.5, -0.5, 0.25, 0.5, 2.0]):
    add("BUCKETIZE", f(3, 7), options="BucketizeOptions", fields={"boundaries": _limits}, outputs="int32")
add("SELECT", n(2, 5, high=2, dtype=np.bool_), f(2, 5), f(2, 5), options="SelectOptions")
add("SELECT", n(3, high=2, dtype=np.bool_), f(3, 4, 2), f(3, 4, 2), options="SelectOptions")
add("SELECT", np.array(True), f(4), f(4), options="SelectOptions")
add("SELECT_V2", n(2, 5, high=2, dtype=np.bool_), f(2, 5), f(5), options="SelectV2Options")
add("SELECT_V2", n(5, high=2, dtype=np.bool_), f(2, 5), f(2, 1), options="SelectV2Options")
add("SELECT_V2", n(4, 1, high=2, dtype=np.bool_), f(1, 3), one(0.5, np.float32), options="SelectV2Options")

# ---------------------------------------------------------------- convolutions, pools, space


def _conv(**more: Any) -> dict[str, Any]:
    return {"strideW": 1, "strideH": 1, "dilationWFactor": 1, "dilationHFactor": 1, "padding": SAME} | more


for _fields, _filter in (
    (_conv(fusedActivationFunction=RELU), (4, 3, 3, 6)),
    (_conv(strideW=2, strideH=2, padding=VALID), (5, 3, 2, 6)),
    (_conv(dilationWFactor=2, dilationHFactor=2, fusedActivationFunction=RELU6), (3, 3, 3, 6)),
):
    add("CONV_2D", f(1, 9, 8, 6), Fixed(f(*_filter, low=-0.5, high=0.5)), Fixed(f(_filter[0])), integer=True,
        options="Conv2DOptions", fields=_fields, weights={1: 0})  # fmt: skip
for _fields, _many in ((_conv(), 1), (_conv(strideW=2, strideH=2, padding=VALID), 2),
                       (_conv(fusedActivationFunction=RELU6), 1)):  # fmt: skip
    add("DEPTHWISE_CONV_2D", f(1, 9, 8, 6), Fixed(f(1, 3, 3, 6 * _many, low=-0.5, high=0.5)), Fixed(f(6 * _many)),
        options="DepthwiseConv2DOptions", fields=_fields | {"depthMultiplier": _many}, weights={1: 3},
        integer=True)  # fmt: skip
for _size, _stride, _pad in (((18, 16), 2, SAME), ((19, 17), 2, VALID), ((9, 8), 1, SAME)):
    add("TRANSPOSE_CONV", k(1, *_size, 4), Fixed(f(4, 3, 3, 6, low=-0.5, high=0.5)), f(1, 9, 8, 6), integer=True,
        options="TransposeConvOptions", fields={"strideW": _stride, "strideH": _stride, "padding": _pad},
        weights={1: 0})  # fmt: skip
for _stride, _pad, _act in ((1, SAME, 0), (2, VALID, 0), (2, SAME, RELU)):
    _fields = {"strideD": _stride, "strideW": _stride, "strideH": _stride, "padding": _pad, "dilationDFactor": 1,
               "dilationWFactor": 1, "dilationHFactor": 1}  # fmt: skip
    add("CONV_3D", f(1, 4, 5, 6, 2), Fixed(f(2, 3, 2, 2, 3)), Fixed(f(3)), options="Conv3DOptions",
        fields=_fields | {"fusedActivationFunction": _act})  # fmt: skip
    _out = {(1, SAME): (4, 5, 6), (2, VALID): (8, 11, 12), (2, SAME): (8, 10, 12)}[_stride, _pad]
    add("CONV_3D_TRANSPOSE", k(1, *_out, 3), Fixed(f(2, 3, 2, 3, 2)), f(1, 4, 5, 6, 2), Fixed(f(3)),
        options="Conv3DOptions", fields=_fields)  # fmt: skip
for _size, _stride, _pad in ((3, 2, SAME), (2, 2, VALID), (3, 1, SAME)):
    for _code in ("MAX_POOL_2D", "AVERAGE_POOL_2D", "L2_POOL_2D"):
        add(_code, f(1, 9, 8, 6), options="Pool2DOptions", integer=_code != "L2_POOL_2D",
            fields={"padding": _pad, "strideW": _stride, "strideH": _stride, "filterWidth": _size,
                    "filterHeight": _size})  # fmt: skip
for _size, _corners, _half in (((13, 5), False, True), ((18, 16), False, False), ((15, 13), True, False)):
    _fields = {"alignCorners": _corners, "halfPixelCenters": _half}
    add("RESIZE_BILINEAR", f(1, 9, 8, 6), k(*_size), options="ResizeBilinearOptions", fields=_fields, integer=True)
    add("RESIZE_NEAREST_NEIGHBOR", f(1, 9, 8, 6), k(*_size), options="ResizeNearestNeighborOptions", fields=_fields,
        integer=True)  # fmt: skip
for _block, _shape in ((2, (1, 8, 6, 3)), (3, (1, 6, 9, 2)), (2, (2, 4, 4, 1))):
    add("SPACE_TO_DEPTH", f(*_shape), options="SpaceToDepthOptions", fields={"blockSize": _block}, integer=True)
    _deep = (_shape[0], _shape[1], _shape[2], _shape[3] * _block**2)
    add("DEPTH_TO_SPACE", f(*_deep), options="DepthToSpaceOptions", fields={"blockSize": _block}, integer=True)
for _block, _pads in (([2, 2], [[1, 0], [0, 2]]), ([3, 1], [[1, 1], [0, 0]]), ([1, 2], [[0, 0], [1, 1]])):
    _blocks, _edges = Fixed(np.array(_block, np.int32)), Fixed(np.array(_pads, np.int32))
    add("SPACE_TO_BATCH_ND", f(1, 7, 6, 3), _blocks, _edges, options="SpaceToBatchNDOptions", integer=True)
    add("BATCH_TO_SPACE_ND", f(6 if _block[0] == 3 else 4, 4, 5, 3), _blocks, _edges,
        options="BatchToSpaceNDOptions", integer=True)  # fmt: skip

# ---------------------------------------------------------------- products and normalizations

for _shape, _out, _more in (((2, 8), 5, {}), ((1, 3, 8), 4, {"keepNumDims": True}),
                            ((2, 2, 2, 8), 6, {"fusedActivationFunction": RELU})):  # fmt: skip
    add("FULLY_CONNECTED", f(*_shape), Fixed(f(_out, 8, low=-0.5, high=0.5)), Fixed(f(_out)), integer=True,
        options="FullyConnectedOptions", fields=_more, weights={1: 0})  # fmt: skip
for _one, _two, _turn in (((2, 3, 4), (2, 4, 5), {}), ((2, 3, 4), (2, 5, 4), {"adjY": True}),
                          ((1, 4, 3), (1, 4, 5), {"adjX": True})):  # fmt: skip
    add("BATCH_MATMUL", f(*_one), f(*_two), options="BatchMatMulOptions", fields=_turn, integer=not _turn)
for _rows in ((6, 4), (3, 2, 5), (9, 1)):
    add("EMBEDDING_LOOKUP", n(5, high=_rows[0]), Fixed(f(*_rows)))
for _shape, _beta in zip(((2, 5), (1, 3, 3, 8), (2, 4, 6)), (1.0, 2.0, 0.5), strict=True):
    add("SOFTMAX", f(*_shape), options="SoftmaxOptions", fields={"beta": _beta}, integer=True, fixed=(1 / 256, -128))
    add("LOG_SOFTMAX", f(*_shape), options="LogSoftmaxOptions", integer=True, fixed=(16 / 256, 127))
    add("L2_NORMALIZATION", f(*_shape), options="L2NormOptions", integer=True, fixed=(1 / 128, 0))
for _radius, _beta in ((2, 0.75), (1, 0.5), (5, 1.0)):
    add("LOCAL_RESPONSE_NORMALIZATION", f(1, 3, 3, 12), options="LocalResponseNormalizationOptions",
        fields={"radius": _radius, "bias": 1.0, "alpha": 0.1, "beta": _beta})  # fmt: skip

# ---------------------------------------------------------------- reductions

_AXES = (((2, 3, 4, 5), (1, 2), False), ((2, 3, 4, 5), (3,), True), ((6, 7), (0, 1), False))
for _shape, _axes, _keep in _AXES:
    _more = {"options": "ReducerOptions", "fields": {"keepDims": _keep}}
    for _code in ("MEAN", "SUM", "REDUCE_MAX", "REDUCE_MIN"):
        add(_code, f(*_shape), k(*_axes), integer=_code != "SUM", **_more)
    add("REDUCE_PROD", f(*_shape, low=0.5, high=1.5), k(*_axes), **_more)
    for _code in ("REDUCE_ANY", "REDUCE_ALL"):
        add(_code, n(*_shape, high=4, dtype=np.bool_), k(*_axes), outputs="bool", **_more)
for _shape, _axis in (((2, 3, 4), 2), ((5, 6), 0), ((1, 4, 4, 3), -1)):
    for _code in ("ARG_MAX", "ARG_MIN"):
        add(_code, f(*_shape), one(_axis), options=f"{_code.title().replace('_', '')}Options", outputs="int32",
            fields={"outputType": 2})  # fmt: skip
for _shape, _count in (((2, 9), 3), ((12,), 5), ((2, 3, 4), 1)):
    add("TOPK_V2", f(*_shape), one(_count), options="TopKV2Options", outputs=("float32", "int32"))
for _axis, _more in ((1, {}), (0, {"exclusive": True}), (-1, {"reverse": True})):
    add("CUMSUM", f(3, 4), one(_axis), options="CumsumOptions", fields=_more)
for _axis, _depth in ((-1, 4), (0, 3), (1, 6)):
    add("ONE_HOT", n(2, 3, high=5), one(_depth), one(2.0, np.float32), one(-1.0, np.float32),
        options="OneHotOptions", fields={"axis": _axis})  # fmt: skip

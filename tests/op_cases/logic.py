# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""Rows for comparisons, logic, bits, selection and casts."""

from __future__ import annotations

import numpy as np
from onnx import TensorProto

from . import CPU, HTP, RAISE, OpCase

ALL = (CPU, HTP, RAISE)
_COMPARISONS = ("Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual")
_ODD = np.array([5, -6, 2**31 - 1, -(2**31), 12345, -1], np.int32)
_MASK = np.array([3, 5, -2, 7, 2**30, -(2**31)], np.int32)
_FLOATS = np.array([1.5, np.nan, np.inf, -np.inf, 0, -2.0], np.float32)


def _pair(op: str, dtype: str, suffix: str, **more: object) -> OpCase:
    inputs = [("a", dtype, (2, 3, 1)), ("b", dtype, (3, 4))]
    return OpCase(f"{op.lower()}_{suffix}", op, inputs, **more)  # type: ignore[arg-type]


def _bits(op: str, dtype: str, **more: object) -> OpCase:
    inputs = [("a", dtype, (6,)), ("b", dtype, (6,))]
    span = (0, 255) if dtype == "uint8" else (-128, 127)
    return OpCase(f"{op.lower()}_{dtype}", op, inputs, **{"span": span, **more})  # type: ignore[arg-type]


def _shift(id: str, dtype: str, direction: str, x: list[int], y: list[int], want: list[int], **more: object) -> OpCase:
    kind = np.dtype(dtype)
    inputs = [("x", dtype, (len(x),)), ("y", dtype, (len(x),))]
    return OpCase(
        id, "BitShift", inputs, attrs={"direction": direction}, values={"x": np.array(x), "y": np.array(y)},
        expected=lambda _: [np.array(want, kind)], **more,
    )  # type: ignore[arg-type]  # fmt: skip


def _cast(id: str, source: str, to: int, x: list[float], **more: object) -> OpCase:
    return OpCase(id, "Cast", [("x", source, (len(x),))], attrs={"to": to}, values={"x": np.array(x)}, **more)  # type: ignore[arg-type]


CASES = [
    *(_pair(op, "float32", "float") for op in _COMPARISONS),
    *(_pair(op, "int64", "int", backends=ALL) for op in _COMPARISONS),
    _pair("Equal", "bool", "bool", backends=ALL),
    *(_pair(op, "bool", "bool", backends=ALL) for op in ("And", "Or", "Xor")),
    OpCase("and_rank_five", "And", [("a", "bool", (2, 1, 2, 2, 2)), ("b", "bool", (2, 2, 2))], backends=(HTP,)),
    OpCase("not", "Not", [("a", "bool", (2, 3))], backends=ALL),
    *(_bits(op, "uint8", backends=ALL) for op in ("BitwiseAnd", "BitwiseOr", "BitwiseXor")),
    *(
        _bits(op, "int32", values={"a": _ODD, "b": _MASK}, backends=ALL)
        for op in ("BitwiseAnd", "BitwiseOr", "BitwiseXor")
    ),
    _bits("BitwiseXor", "int16"),
    OpCase("bitwiseand_broadcast", "BitwiseAnd", [("a", "int32", (2, 3)), ("b", "int32", (3,))], span=(-9, 9)),
    OpCase("bitwisenot_int", "BitwiseNot", [("a", "int32", (6,))], values={"a": _ODD}, backends=ALL),
    OpCase("bitwisenot_uint8", "BitwiseNot", [("a", "uint8", (6,))], span=(0, 255)),
    OpCase("bitwisenot_uint32", "BitwiseNot", [("a", "uint32", (6,))], rejects="does not fit int32"),
    _shift("shift_left", "uint8", "LEFT", [16, 200, 1], [1, 2, 7], [32, 32, 128], backends=ALL),
    _shift("shift_right", "uint32", "RIGHT", [16, 9, 1], [1, 2, 3], [8, 2, 0], backends=ALL),
    _shift(
        "shift_right_signed", "int32", "RIGHT", [-8, -1, -(2**31), 7], [1, 3, 31, -1], [-4, -1, -1, 0], backends=ALL
    ),
    _shift("shift_left_beyond", "int32", "LEFT", [-8, 3, 1], [32, -1, 4], [0, 0, 16], backends=ALL),
    OpCase(
        "where_float",
        "Where",
        [("c", "bool", (3, 1)), ("x", "float32", (2, 3, 4)), ("y", "float32", (4,))],
        backends=ALL,
    ),
    OpCase("where_int", "Where", [("c", "bool", (3, 4)), ("x", "int64", (3, 4)), ("y", "int64", ())], backends=ALL),
    OpCase("where_bool", "Where", [("c", "bool", (3, 4)), ("x", "bool", (3, 4)), ("y", "bool", (3, 4))], backends=ALL),
    OpCase("isnan", "IsNaN", [("x", "float32", (6,))], values={"x": _FLOATS}, expect_ops=["IsNan"]),
    OpCase("isinf", "IsInf", [("x", "float32", (6,))], values={"x": _FLOATS}, expect_ops=["IsInf"]),
    OpCase(
        "isinf_negative", "IsInf", [("x", "float32", (6,))], {"detect_positive": 0}, values={"x": _FLOATS}, backends=ALL
    ),
    OpCase("trilu_float", "Trilu", [("x", "float32", (2, 3, 4))], constants={"k": np.int64(1)}, backends=ALL),
    OpCase("trilu_lower_int", "Trilu", [("x", "int64", (3, 4))], {"upper": 0}, backends=ALL),
    OpCase("trilu_bool", "Trilu", [("x", "bool", (3, 4))]),
    OpCase(
        "trilu_infinite", "Trilu", [("x", "float32", (2, 2))], values={"x": np.full((2, 2), -np.inf)}, backends=(CPU,)
    ),
    OpCase("trilu_runtime_k", "Trilu", [("x", "float32", (3, 3)), ("k", "int64", ())], rejects="k of Trilu"),
    OpCase("det_2", "Det", [("x", "float32", (3, 2, 2))]),
    OpCase("det_3", "Det", [("x", "float32", (2, 3, 3))]),
    OpCase("det_4", "Det", [("x", "float32", (4, 4))], rejects="4x4"),
    _cast("float_to_int", "float32", TensorProto.INT64, [1.7, -1.7, 0.4, -0.4, 1e5], backends=ALL),
    _cast("float_to_bool", "float32", TensorProto.BOOL, [0, 0.25, -2, 256], backends=ALL),
    _cast("int_to_bool", "int32", TensorProto.BOOL, [0, 1, -2, 256], backends=ALL),
    _cast("bool_to_float", "bool", TensorProto.FLOAT, [0, 1, 1], backends=ALL),
    _cast("int_wraps", "int32", TensorProto.UINT8, [-1, 256, 300, 7], backends=ALL),
    _cast("int_wraps_signed", "int32", TensorProto.INT8, [-1, 128, -129, 7], backends=ALL),
    _cast("int_widens", "uint8", TensorProto.INT64, [0, 255, 3], expect_ops=["Reshape"]),
    _cast("float_to_half", "float32", TensorProto.FLOAT16, [0.1, 1.5, -2], expect_ops=["Reshape"]),
    _cast("to_float8", "float32", TensorProto.FLOAT8E4M3FN, [0.1], rejects="cannot be held"),
    OpCase(
        "bitcast_uint8",
        "BitCast",
        [("x", "uint8", (3,))],
        {"to": TensorProto.INT8},
        values={"x": [0, 127, 200]},
        expected=lambda v: [v["x"].view(np.int8)],
    ),
    OpCase(
        "bitcast_float",
        "BitCast",
        [("x", "float32", (3,))],
        {"to": TensorProto.INT32},
        rejects="bits of float as int32",
    ),
    OpCase("dropout", "Dropout", [("x", "float32", (3,))], outputs=("y", "mask"), expect_ops=["Reshape"]),
    OpCase(
        "dropout_training",
        "Dropout",
        [("x", "float32", (3,))],
        rejects="training mode",
        constants={"ratio": np.float32(0.5), "training": np.bool_(True)},
    ),
]

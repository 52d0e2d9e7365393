# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""Element types that ONNX Runtime's CPU provider has kernels for, and what to compute in instead of the others.

Read from the kernel list of ONNX Runtime 1.31. float16 is left alone everywhere: the runtime itself computes
float16 nodes without a kernel in float32.
"""

from __future__ import annotations

import onnx_ir as ir

_LETTERS = {
    "f": ir.DataType.FLOAT,
    "d": ir.DataType.DOUBLE,
    "b": ir.DataType.BOOL,
    "1": ir.DataType.INT8,
    "2": ir.DataType.INT16,
    "4": ir.DataType.INT32,
    "8": ir.DataType.INT64,
    "u": ir.DataType.UINT8,
    "v": ir.DataType.UINT16,
    "w": ir.DataType.UINT32,
    "x": ir.DataType.UINT64,
}
_ALL = "fdb1248uvwx"
_NUMBERS = "fd1248uvwx"

_KERNELS = {
    **dict.fromkeys(["Cast", "Concat", "Expand", "Gather", "GatherElements", "GatherND", "Identity", "Reshape"], _ALL),
    **dict.fromkeys(["ScatterElements", "ScatterND", "Slice", "Split", "Squeeze", "Tile", "Transpose"], _ALL),
    **dict.fromkeys(["Unsqueeze", "Shape", "Equal", "ReverseSequence"], _ALL),
    **dict.fromkeys(["Abs", "Add", "Sub", "Mul", "Div", "Sign", "Mod"], _NUMBERS),
    **dict.fromkeys(["Greater", "GreaterOrEqual", "Less", "LessOrEqual"], _NUMBERS),
    **dict.fromkeys(["And", "Or", "Xor", "Not"], "b"),
    **dict.fromkeys(
        ["Ceil", "Floor", "Round", "Exp", "Log", "Sqrt", "Reciprocal", "Sin", "Cos", "Sigmoid", "Tanh"], "fd"
    ),
    **dict.fromkeys(["Softmax", "LogSoftmax", "LayerNormalization", "RMSNormalization", "Gemm", "GridSample"], "fd"),
    **dict.fromkeys(["LSTM", "GRU", "RoiAlign", "LpNormalization", "STFT", "IsNaN", "IsInf"], "fd"),
    **dict.fromkeys(
        ["Asin", "Atan", "Erf", "Elu", "Gelu", "HardSigmoid", "HardSwish", "Softplus", "PRelu", "LRN"], "f"
    ),
    **dict.fromkeys(["Conv", "ConvTranspose", "AveragePool", "LpPool", "InstanceNormalization", "Col2Im"], "f"),
    **dict.fromkeys(["GroupNormalization", "QuantizeLinear"], "f"),
    **dict.fromkeys(
        ["ReduceL2", "ReduceMean", "ReduceProd", "ReduceSum", "ReduceSumSquare", "CumSum", "Pow", "Einsum"], "fd48"
    ),
    **dict.fromkeys(["ReduceMax", "ReduceMin"], "fdb481u"),
    **dict.fromkeys(["ArgMax", "ArgMin"], "fd481u"),
    **dict.fromkeys(["Max", "Min", "Clip"], "fd481uwx"),
    **dict.fromkeys(["DepthToSpace", "SpaceToDepth", "MaxPool"], "fd1u"),
    "MatMul": "fd48wx",
    "Neg": "fd1248",
    "NonZero": "fb48u",
    "Pad": "fdb481uwx",
    "Relu": "fd41",
    "Resize": "f4u1",
    "TopK": "fd2481u",
    "Where": "fd481wu",
}
KERNELS: dict[str, frozenset[ir.DataType]] = {
    name: frozenset(_LETTERS[letter] for letter in letters) for name, letters in _KERNELS.items()
}

# What a type without a kernel is computed in, best first. Integers go to wider integers while they can.
_F, _D, _I32, _I64, _U8 = (
    ir.DataType.FLOAT,
    ir.DataType.DOUBLE,
    ir.DataType.INT32,
    ir.DataType.INT64,
    ir.DataType.UINT8,
)
_CARRIERS = {
    ir.DataType.BOOL: (_U8, _I32, _F),
    ir.DataType.INT8: (_I32, _F),
    ir.DataType.UINT8: (_I32, _F),
    ir.DataType.INT16: (_I32, _F),
    ir.DataType.UINT16: (_I32, _F),
    ir.DataType.INT32: (_I64, _D, _F),
    ir.DataType.UINT32: (_I64, _D, _F),
    ir.DataType.INT64: (_D, _F),
    ir.DataType.UINT64: (_D, _F),
    ir.DataType.DOUBLE: (_F,),
}


def carrier(op_type: str, dtype: ir.DataType) -> ir.DataType:
    """The type to compute ONNX op `op_type` in for data of `dtype`: `dtype` itself where there is a kernel."""
    known = KERNELS.get(op_type)
    if known is None or dtype in known or dtype not in _CARRIERS:
        return dtype
    return next((wider for wider in _CARRIERS[dtype] if wider in known), dtype)

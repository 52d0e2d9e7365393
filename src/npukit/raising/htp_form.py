# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""What HTP computes otherwise than its ops' definitions say, put into a quantized graph before it is raised."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from npukit.qnn.graph import DType, Graph, Op, Param, Tensor, TensorKind
from npukit.raising.encodings import dequantized

# How far below the middle between two codes HTP's RmsNorm rounds up, in steps: it cuts off instead of rounding
# (measured on the emulator, V68 to V79: errors of -0.97 to 0.06 steps; benchmarks/simulation.py).
_RMS_NORM_CUTS = 0.45
# Products whose result goes into the next op unrounded (V73 to V79; V68 and V69 round; measured on pairs).
_FUSES = 73
_PRODUCTS = ("Conv2d", "DepthWiseConv2d", "FullyConnected", "MatMul", "Batchnorm")
_FUSED = {"HardSwish": _PRODUCTS, "Prelu": (*_PRODUCTS, "TransposeConv2d")}
_HARD_SWISH, _RELU_MIN_MAX = 3, 5  # of ElementWiseNeuron's `operation`
_ASIN = 1  # of ElementWiseUnary's
# What HTP computes at once with a clamp behind it, which in 16 bits then does not clamp: the codes' ends alone do (V68
# to V79; not behind MatMul, Batchnorm, PoolAvg2d, ElementWiseDivide, Convert or what only moves; Relu is kept).
_SWALLOWING = frozenset(
    ("Conv2d", "DepthWiseConv2d", "TransposeConv2d", "FullyConnected")
    + ("ElementWiseAdd", "ElementWiseSubtract", "ElementWiseMultiply")
)
_SWALLOWING_BINARIES = (0, 13, 18)  # ADD, MULTIPLY and SUBTRACT of ElementWiseBinary's `operation`


def as_computed(graph: Graph, arch: int = 73) -> Graph:
    """`graph` in the form whose definitions give what HTP of an architecture computes. The graph itself is untouched.

    LayerNorm adds its beta in whole steps of the output, and RmsNorm rounds down: at 8 bits they keep 2 and 4 dB less
    than their definitions would. From V73 on Prelu and HardSwish take what a product before them makes without
    rounding: 2 dB more. A clamp of 16 bits is lost behind many ops. Asin takes what lies beyond 1 for 1. `arch` 0 is
    none: the graph as it is.
    """
    if not arch:
        return graph
    ops: list[Op] = []
    exact: dict[int, Tensor] = {}
    readers = graph.readers()
    swallowing = {id(op.outputs[0]): len(readers.get(id(op.outputs[0]), ())) for op in graph.ops if _swallows(op)}
    for op in graph.ops:
        made = _norm_as_computed(op) if op.type in ("LayerNorm", "RmsNorm") else op
        if _clamps_16(op) and swallowing.get(id(op.inputs[0])) == 1:
            made = replace(op, type="Convert", params={})
        made = replace(made, inputs=[t if t is None else exact.get(id(t), t) for t in made.inputs])
        if _asin_of_codes(op):
            made = replace(made, inputs=[_within_one(made, ops)])
        output = op.outputs[0] if op.outputs else None
        found = readers.get(id(output), []) if arch >= _FUSES else []
        if output is not None and len(found) == 1 and _fused(op, found[0], readers):
            real = exact[id(output)] = Tensor(f"{output.name}/unrounded", DType.FLOAT_32, output.shape)
            ops.append(replace(made, outputs=[real]))
            ops.append(Op(f"{op.name}/rounded", "Quantize", [real], [output]))  # for whoever fetches it
        else:
            ops.append(made)
    return Graph(graph.name, graph.inputs, graph.outputs, ops)


def _fused(op: Op, reader: Op, readers: dict[int, list[Op]]) -> bool:
    """Whether HTP computes both at once: at 8 bits, and where nothing else reads what is between.

    Nor where a Concat and another op read the result.
    """
    after = readers.get(id(reader.outputs[0]), [])
    if len(after) > 1 and any(last.type == "Concat" for last in after):
        return False
    kind = "HardSwish" if _operation(reader, "ElementWiseNeuron") == _HARD_SWISH else reader.type
    if op.type not in _FUSED.get(kind, ()) or (op.type == "MatMul" and not _by_constant(op)):
        return False
    return all(
        t is not None and t.dtype is DType.UFIXED_POINT_8 for t in (op.inputs[0], op.outputs[0], reader.outputs[0])
    )


def _operation(op: Op, umbrella: str) -> int | None:
    """What an op of the type `umbrella` computes; None for an op of another type."""
    param = op.params.get("operation") if op.type == umbrella else None
    return None if param is None else int(param.value)


def _asin_of_codes(op: Op) -> bool:
    asin = op.type == "ElementWiseAsin" or _operation(op, "ElementWiseUnary") == _ASIN
    return asin and op.outputs[0].dtype.is_quantized


def _within_one(op: Op, ops: list[Op]) -> Tensor:
    """The input of an Asin, cut at -1 and 1: codes may reach beyond, and HTP gives there what it gives at the ends."""
    x = op.inputs[0]
    assert x is not None
    cut = Tensor(f"{op.outputs[0].name}/within_one", DType.FLOAT_32, x.shape)
    limits = {"min_value": Param(DType.FLOAT_32, -1.0), "max_value": Param(DType.FLOAT_32, 1.0)}
    ops.append(Op(f"{op.name}/within_one", "ReluMinMax", [x], [cut], limits))
    return cut


def _swallows(op: Op) -> bool:
    swallows = op.type in _SWALLOWING or _operation(op, "ElementWiseBinary") in _SWALLOWING_BINARIES
    return swallows and op.outputs[0].kind is TensorKind.NATIVE


def _clamps_16(op: Op) -> bool:
    neuron = _operation(op, "ElementWiseNeuron")
    clamp = op.type in ("Relu1", "Relu6", "ReluMinMax") or neuron == _RELU_MIN_MAX
    return clamp and all(t is not None and t.dtype is DType.UFIXED_POINT_16 for t in (*op.inputs, *op.outputs))


def _norm_as_computed(op: Op) -> Op:
    output, beta = op.outputs[0], op.inputs[2] if len(op.inputs) > 2 else None
    if output.encoding is None or beta is None or beta.data is None or not beta.dtype.is_quantized:
        return op
    step = output.encoding.scale
    values = dequantized(beta).astype(np.float64)
    values = np.rint(values / step) * step if op.type == "LayerNorm" else values - _RMS_NORM_CUTS * step
    added = Tensor(f"{beta.name}/added", DType.FLOAT_32, beta.shape, TensorKind.STATIC, data=values.astype(np.float32))
    return replace(op, inputs=[*op.inputs[:2], added, *op.inputs[3:]])


def _by_constant(op: Op) -> bool:
    factor = op.inputs[1]
    return factor is not None and factor.kind is TensorKind.STATIC

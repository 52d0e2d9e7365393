# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""What HTP computes otherwise than its ops' definitions say, put into a quantized graph before it is raised."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from npukit.qnn.graph import DType, Graph, Op, Tensor, TensorKind
from npukit.raising.encodings import dequantized

# How far below the middle between two codes HTP's RmsNorm rounds up, in steps: it cuts off instead of rounding
# (measured on the emulator, V68 to V79: errors of -0.97 to 0.06 steps; benchmarks/simulation.py).
_RMS_NORM_CUTS = 0.45
# Products whose result goes into the next op unrounded (V73 to V79; V68 and V69 round; measured on pairs).
_FUSES = 73
_PRODUCTS = ("Conv2d", "DepthWiseConv2d", "FullyConnected", "MatMul", "Batchnorm")
_FUSED = {"HardSwish": _PRODUCTS, "Prelu": (*_PRODUCTS, "TransposeConv2d")}
_HARD_SWISH = 3  # of ElementWiseNeuron's `operation`


def as_computed(graph: Graph, arch: int = 73) -> Graph:
    """`graph` in the form whose definitions give what HTP of an architecture computes. The graph itself is untouched.

    LayerNorm adds its beta in whole steps of the output, and RmsNorm rounds down: at 8 bits they keep 2 and 4 dB less
    than their definitions would. From V73 on Prelu and HardSwish take what a product before them makes without
    rounding: 2 dB more. `arch` 0 is none: the graph as it is.
    """
    if not arch:
        return graph
    ops: list[Op] = []
    exact: dict[int, Tensor] = {}
    readers = _readers(graph) if arch >= _FUSES else {}
    for op in graph.ops:
        made = _norm_as_computed(op) if op.type in ("LayerNorm", "RmsNorm") else op
        made = replace(made, inputs=[t if t is None else exact.get(id(t), t) for t in made.inputs])
        output = op.outputs[0] if op.outputs else None
        if output is not None and len(found := readers.get(id(output), [])) == 1 and _fused(op, found[0], readers):
            real = exact[id(output)] = Tensor(f"{output.name}/unrounded", DType.FLOAT_32, output.shape)
            ops.append(replace(made, outputs=[real]))
            ops.append(Op(f"{op.name}/rounded", "Quantize", [real], [output]))  # for whoever fetches it
        else:
            ops.append(made)
    return Graph(graph.name, graph.inputs, graph.outputs, ops)


def _readers(graph: Graph) -> dict[int, list[Op]]:
    found: dict[int, list[Op]] = {}
    for op in graph.ops:
        for tensor in op.inputs:
            if tensor is not None:
                found.setdefault(id(tensor), []).append(op)
    return found


def _fused(op: Op, reader: Op, readers: dict[int, list[Op]]) -> bool:
    """Whether HTP computes both at once: at 8 bits, and where nothing else reads what is between.

    Nor where a Concat and another op read the result.
    """
    after = readers.get(id(reader.outputs[0]), [])
    if len(after) > 1 and any(last.type == "Concat" for last in after):
        return False
    neuron = reader.params.get("operation") if reader.type == "ElementWiseNeuron" else None
    kind = "HardSwish" if neuron is not None and neuron.value == _HARD_SWISH else reader.type
    if op.type not in _FUSED.get(kind, ()) or (op.type == "MatMul" and not _by_constant(op)):
        return False
    return all(
        t is not None and t.dtype is DType.UFIXED_POINT_8 for t in (op.inputs[0], op.outputs[0], reader.outputs[0])
    )


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

# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""What a quantized graph leaves in float, held as FLOAT_16 or FLOAT_32.

HTP computes FLOAT_32 as FLOAT_16 from V69 on, so 16 bits halve what is held and moved and change no result there.
Quantize and Dequantize take either (asked of HTP's validation), so no Cast is needed; but an op takes one float type
for all of its operands, a bias among them.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from npukit.errors import Fault, UsageError
from npukit.qnn.graph import DType, Graph, Op, Tensor, TensorKind
from npukit.quantization.assign import Legal
from npukit.quantization.roles import Role, role

_MOST = float(np.finfo(np.float16).max)
_DTYPES = {16: DType.FLOAT_16, 32: DType.FLOAT_32}


def with_float_width(graph: Graph, legal: Legal, bits: int, bias_bits: int | None = None) -> Graph:
    """A copy of `graph` whose floats have `bits`, those of constant biases `bias_bits` [`bits`].

    Constants beyond the range of FLOAT_16 end at 65504.

    Raises:
        UsageError: a target refuses an op so; all are named.
    """
    made: dict[tuple[int, DType], Tensor] = {}

    def held(tensor: Tensor, dtype: DType) -> Tensor:
        if not tensor.dtype.is_float or tensor.dtype is dtype:
            return tensor
        key = (id(tensor), dtype)
        if key not in made:
            data = tensor.data
            if data is not None and dtype is DType.FLOAT_16:
                data = np.clip(data, -_MOST, _MOST)  # a mask's -inf masks at -65504 as well
            data = None if data is None else data.astype(dtype.numpy)
            made[key] = replace(tensor, dtype=dtype, data=data)
        return made[key]

    def width(op: Op, index: int, tensor: Tensor) -> DType:
        bias = bias_bits is not None and tensor.kind is TensorKind.STATIC and role(op, index) is Role.BIAS
        return _DTYPES[bias_bits if bias and bias_bits is not None else bits]

    ops, faults = [], []
    for op in graph.ops:
        inputs = [held(t, width(op, at, t)) if t is not None else None for at, t in enumerate(op.inputs)]
        outputs = [held(tensor, _DTYPES[bits]) for tensor in op.outputs]
        narrow = replace(op, inputs=inputs, outputs=outputs)
        changed = any(new is not old for new, old in zip((*inputs, *outputs), (*op.inputs, *op.outputs), strict=True))
        text = legal.refusal(narrow) if changed else ""
        faults += [Fault(text, f"{op.type} {op.name!r}")] if text else []
        ops.append(narrow)
    if faults:
        raise UsageError(
            "what stays float cannot be held so", faults=faults,
            hint="leave out --float-bitwidth and --float-bias-bitwidth",
        )  # fmt: skip
    begin, end = ([held(tensor, _DTYPES[bits]) for tensor in side] for side in (graph.inputs, graph.outputs))
    return replace(graph, inputs=begin, outputs=end, ops=ops)

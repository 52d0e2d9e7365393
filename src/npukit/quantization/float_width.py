# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""What a quantized graph leaves in float, held as FLOAT_16.

HTP computes FLOAT_32 as FLOAT_16 from V69 on, so this halves what is held and moved and changes no result there.
QNN has one float type an op, and Quantize and Dequantize take either (asked of HTP's validation): no Cast is needed.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from npukit.errors import Fault, UsageError
from npukit.qnn.graph import DType, Graph, Tensor
from npukit.quantization.assign import Legal

_MOST = float(np.finfo(np.float16).max)


def as_float16(graph: Graph, legal: Legal) -> Graph:
    """A copy of `graph` whose FLOAT_32 tensors are FLOAT_16; constants beyond its range end at 65504.

    Raises:
        UsageError: a target refuses an op so; all are named.
    """
    made: dict[int, Tensor] = {}

    def held(tensor: Tensor) -> Tensor:
        if tensor.dtype is not DType.FLOAT_32:
            return tensor
        if id(tensor) not in made:
            data = tensor.data
            if data is not None:
                data = np.clip(data, -_MOST, _MOST).astype(np.float16)  # a mask's -inf masks at -65504 as well
            made[id(tensor)] = replace(tensor, dtype=DType.FLOAT_16, data=data)
        return made[id(tensor)]

    ops, faults = [], []
    for op in graph.ops:
        inputs = [held(tensor) if tensor is not None else None for tensor in op.inputs]
        outputs = [held(tensor) for tensor in op.outputs]
        narrow = replace(op, inputs=inputs, outputs=outputs)
        changed = any(new is not old for new, old in zip((*inputs, *outputs), (*op.inputs, *op.outputs), strict=True))
        text = legal.refusal(narrow) if changed else ""
        faults += [Fault(text, f"{op.type} {op.name!r}")] if text else []
        ops.append(narrow)
    if faults:
        raise UsageError("what stays float cannot be FLOAT_16", faults=faults, hint="leave it at --float-bitwidth 32")
    inputs_, outputs_ = [held(tensor) for tensor in graph.inputs], [held(tensor) for tensor in graph.outputs]
    return replace(graph, inputs=inputs_, outputs=outputs_, ops=ops)

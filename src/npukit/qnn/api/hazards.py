# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""Ops that a library takes and then crashes on, fails on without a word, or computes wrongly.

The vendor's own validation accepts each of them, so `Backend.validate` and composing ask here as well. A row is a
role, the op types it concerns (none: all), and a check that gives the reason. Facts: shared/reference/qnn_more.md
sections 2 to 4.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from npukit.qnn.graph import Op, Tensor, TensorKind

Check = Callable[[Op, tuple[int, ...]], str | None]

_GELU = 1  # ElementWiseNeuron.operation
_CONVOLUTIONS = frozenset({"Conv2d", "DepthWiseConv2d", "TransposeConv2d", "Conv3d"})


@dataclass(frozen=True)
class Hazard:
    """One row: `check(op, sdk)` gives the reason, or None."""

    role: str
    types: frozenset[str]
    check: Check


def hazard(role: str, sdk: tuple[int, ...], op: Op) -> str | None:
    """Why `op` must not reach the library of `role` of QAIRT version `sdk`, or None."""
    for row in HAZARDS:
        if row.role == role and (not row.types or op.type in row.types):
            reason = row.check(op, sdk)
            if reason:
                return reason
    return None


def meant(role: str, op: Op) -> Op:
    """The op in the spelling that the library of `role` computes by its definition.

    Every DLC holds Gelu as ElementWiseNeuron, whose GELU is the tanh form on QNN CPU (5e-4 off); its Gelu is exact.
    """
    if role != "cpu" or op.type != "ElementWiseNeuron" or op.params["operation"].value != _GELU:
        return op
    return replace(op, type="Gelu", params={})


def _weight(op: Op) -> Tensor | None:
    return op.inputs[1] if len(op.inputs) > 1 else None


def _bias_missing(op: Op, sdk: tuple[int, ...]) -> str | None:
    data = op.inputs[0]
    if data is None or not data.dtype.is_quantized or (len(op.inputs) > 2 and op.inputs[2] is not None):
        return None
    return f"a quantized {op.type} without a bias fails at graphFinalize on QNN CPU; give it a zero bias"


def _per_channel_fully_connected(op: Op, sdk: tuple[int, ...]) -> str | None:
    weight = _weight(op)
    if (
        weight is None
        or weight.encoding is None
        or weight.encoding.axis is None
        or len(set(weight.encoding.scales)) < 2
    ):
        return None
    return "QNN CPU uses the first scale of a per-channel FullyConnected weight for all channels: wrong numbers"


def _dequantize(op: Op, sdk: tuple[int, ...]) -> str | None:
    # Tried on QAIRT 2.47, x86-64, every input dtype, with new and with the same buffers.
    return "QNN CPU's Dequantize writes its output in the first run of a graph only: zeros from the second run on"


def _computed_kernel(op: Op, sdk: tuple[int, ...]) -> str | None:
    # Tried on QAIRT 2.47, x86-64: a bias gives garbage at once, a kernel from the second run on. Conv2d,
    # DepthWiseConv2d, Conv3d and TransposeConv3d are right.
    if all(tensor is None or tensor.kind == TensorKind.STATIC for tensor in op.inputs[1:3]):
        return None
    return "QNN CPU's TransposeConv2d is wrong where its kernel or bias is not a constant"


def _blockwise_convolution(op: Op, sdk: tuple[int, ...]) -> str | None:
    weight = _weight(op)
    if weight is None or weight.encoding is None or weight.encoding.kind != "BLOCKWISE_EXPANSION":
        return None
    if weight.rank != 4 or weight.shape[:2] == (1, 1):
        return None
    kernel = "x".join(map(str, weight.shape[:2]))
    return f"HTP computes only the first tap of a {kernel} convolution with block-wise weights: wrong numbers"


_IR_NEEDS_NEWER = {
    "BW_AXIS_SCALE_OFFSET": "writes the first scale of a per-channel low-bit encoding for every channel",
    "BLOCKWISE_EXPANSION": "crashes on a block-wise encoding",
    "BLOCK": "writes a block encoding that no backend can read back",
}


def _old_dlc_writer(op: Op, sdk: tuple[int, ...]) -> str | None:
    if sdk >= (2, 51):
        return None
    for tensor in (*op.inputs, *op.outputs):
        if tensor is not None and tensor.encoding is not None and tensor.encoding.kind in _IR_NEEDS_NEWER:
            version = ".".join(map(str, sdk[:2]))
            what = _IR_NEEDS_NEWER[tensor.encoding.kind]
            return f"the DLC writer of QAIRT {version} {what} (tensor {tensor.name}): npukit libs add 2.7.0"
    return None


HAZARDS = (
    Hazard("cpu", _CONVOLUTIONS, _bias_missing),
    Hazard("cpu", frozenset({"FullyConnected"}), _per_channel_fully_connected),
    Hazard("cpu", frozenset({"Dequantize"}), _dequantize),
    Hazard("cpu", frozenset({"TransposeConv2d"}), _computed_kernel),
    Hazard("htp", frozenset({"Conv2d", "DepthWiseConv2d", "TransposeConv2d"}), _blockwise_convolution),
    Hazard("ir", frozenset(), _old_dlc_writer),
)

# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""Pooling."""

from __future__ import annotations

import onnx_ir as ir

from npukit.lowering.emitter import Emitter, channel_last
from npukit.lowering.registry import Unsupported, lowers

from .conv import resolve_pads


@lowers("MaxPool")
def max_pool(e: Emitter, node: ir.Node) -> None:
    """Maximum over windows.

    x: T[N,C,H,W] -> y: T[N,C,H',W']
    T: float or quantized; no dilations, ceil_mode 0, no indices output
    """
    if len(node.outputs) > 1 and node.outputs[1].name:
        raise Unsupported("MaxPool with an Indices output")
    x = e.channel_last(node.inputs[0])
    if x.rank != 4:
        raise Unsupported(f"MaxPool over {x.rank - 2} axes")
    kernel = list(node.attributes.get_ints("kernel_shape"))
    strides = list(node.attributes.get_ints("strides", [1, 1]))
    pads = resolve_pads(node, x.shape[1:3], kernel, strides, [1, 1])
    y = e.output(node.outputs[0], channel_last(4))
    e.emit("PoolMax2d", [x], [y], filter_size=kernel, stride=strides, pad_amount=pads)


@lowers("GlobalAveragePool")
def global_average_pool(e: Emitter, node: ir.Node) -> None:
    """Mean over all spatial axes.

    x: T[N,C,*S] -> y: T[N,C,1*]
    T: float or quantized
    """
    x = e.channel_last(node.inputs[0])
    y = e.output(node.outputs[0], channel_last(x.rank))
    e.emit("ReduceMean", [x], [y], axes=list(range(1, x.rank - 1)), keep_dims=True)

# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""A plugin: two ops of the domain com.acme, one defined by its body alone, one with a lowering of its own."""

import onnx_ir as ir

from npukit.lowering.emitter import Emitter
from npukit.lowering.registry import Unsupported
from npukit.plugins import CustomOp

# y = x + sin(alpha * x)^2 / alpha, an activation of audio networks (Ziyin et al. 2020, arXiv:2006.08195).
SNAKE = """
<domain: "com.acme", opset_import: ["": 18]>
Snake <alpha: float = 1.0> (x) => (y)
{
    one = Constant <value_float: float = @alpha> ()
    a = CastLike (one, x)
    ax = Mul (a, x)
    s = Sin (ax)
    ss = Mul (s, s)
    d = Div (ss, a)
    y = Add (x, d)
}
"""

# Every pixel of [N, C, H, W] divided by the length of its channels.
UNIT_CHANNELS = """
<domain: "com.acme", opset_import: ["": 18]>
UnitChannels <epsilon: float = 1e-12> (x) => (y)
{
    axes = Constant <value_ints: ints = [1]> ()
    length = ReduceL2 <keepdims: int = 1> (x, axes)
    e = Constant <value_float: float = @epsilon> ()
    el = CastLike (e, x)
    bounded = Max (length, el)
    y = Div (x, bounded)
}
"""


def lower_unit_channels(e: Emitter, node: ir.Node) -> None:
    """One L2Norm over the last axis, instead of the four ops of the body."""
    x, y = node.inputs[0], node.outputs[0]
    if e.rank(x) != 4:
        raise Unsupported("UnitChannels takes [N, C, H, W]")
    order = (0, 2, 3, 1)  # channels last: the emitter turns x, and knows that y is held so
    epsilon = node.attributes.get_float("epsilon", 1e-12)
    e.emit("L2Norm", [e.get(x, order)], [e.output(y, order)], axis=3, epsilon=epsilon)


OPS = [
    CustomOp("com.acme", "Snake", body=SNAKE),
    CustomOp("com.acme", "UnitChannels", body=UNIT_CHANNELS, lower=lower_unit_channels),
]

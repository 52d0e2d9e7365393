# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""Normalization."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from npukit.lowering.emitter import Emitter
from npukit.lowering.encode import symmetric_32, unsigned
from npukit.lowering.holding import channel_last
from npukit.lowering.registry import Unsupported, lowers
from npukit.qnn.graph import Tensor

from .reduce import reduced


@lowers("BatchNormalization")
def batch_normalization(e: Emitter, node: ir.Node) -> None:
    """Inference form: y = scale * (x - mean) / sqrt(var + epsilon) + bias, folded into one scale and bias.

    x: T[N,C,*S], scale: T[C], B: T[C], mean: T[C], var: T[C] -> y: T[N,C,*S]
    T: float; training_mode 0
    """
    if node.attributes.get_int("training_mode", 0):
        raise Unsupported("BatchNormalization in training mode", hint="export the model in inference mode")
    epsilon = node.attributes.get_float("epsilon", 1e-5)
    known = [e.constant(value) for value in node.inputs[1:5]]
    perm = channel_last(e.rank(node.inputs[0]))
    x = e.get(node.inputs[0], perm)
    if all(array is not None for array in known):
        scale, bias, mean, var = (np.asarray(array, np.float64) for array in known)
        factor = scale / np.sqrt(var + epsilon)
        weight = e.static(factor.astype(np.float32), hint="scale")
        offset = e.static((bias - mean * factor).astype(np.float32), hint="bias")
    else:
        s, b, m, v = (e.get(value) for value in node.inputs[1:5])
        weight = e.div(s, e.unary("ElementWiseSquareRoot", e.add(v, epsilon)))
        offset = e.sub(b, e.mul(m, weight))

    def composed() -> None:
        e.bind(node.outputs[0], e.add(e.mul(x, weight), offset), perm)

    def native() -> None:
        if weight.data is None:
            raise Unsupported("Batchnorm needs constant parameters")
        e.emit("Batchnorm", [x, weight, offset], [e.output(node.outputs[0], perm)])

    e.forms(native, composed)


@lowers("InstanceNormalization")
def instance_normalization(e: Emitter, node: ir.Node) -> None:
    """Normalization over the spatial axes of each channel.

    x: T[N,C,*S], scale: T[C], B: T[C] -> y: T[N,C,*S]
    T: float
    """
    epsilon = node.attributes.get_float("epsilon", 1e-5)
    rank = e.rank(node.inputs[0])
    perm = channel_last(rank)
    x, scale, bias = e.get(node.inputs[0], perm), e.get(node.inputs[1]), e.get(node.inputs[2])
    n, c = x.shape[0], x.shape[-1]
    square = (n, int(np.prod(x.shape[1:-1])), 1, c)

    def native() -> None:
        source = x if rank == 4 else e.reshape(x, square)
        y = e.output(node.outputs[0], perm) if rank == 4 else e.temp(square, x.dtype)
        e.emit("InstanceNorm", [source, scale, bias], [y], epsilon=epsilon, mode="MU_SIGMA", region="ACROSS_SPATIAL")
        if rank != 4:
            e.bind(node.outputs[0], e.reshape(y, x.shape), perm)

    def composed() -> None:
        y = normalized(e, x, list(range(1, rank - 1)), epsilon)
        e.bind(node.outputs[0], e.add(e.mul(y, scale), bias), perm)

    e.forms(native, composed)


def normalized(e: Emitter, x: Tensor, axes: list[int], epsilon: float) -> Tensor:
    """(x - mean) / sqrt(variance + epsilon) over `axes`."""
    centred = e.sub(x, reduced(e, "ReduceMean", x, axes))
    variance = reduced(e, "ReduceMean", e.mul(centred, centred), axes)
    return e.div(centred, e.unary("ElementWiseSquareRoot", e.add(variance, epsilon)))


@lowers("GroupNormalization")
def group_normalization(e: Emitter, node: ir.Node) -> None:
    """Normalization over groups of channels.

    x: T[N,C,*S], scale: T[C], bias: T[C] -> y: T[N,C,*S]
    T: float
    """
    epsilon = node.attributes.get_float("epsilon", 1e-5)
    groups = node.attributes.get_int("num_groups")
    rank = e.rank(node.inputs[0])
    perm = channel_last(rank)
    x, scale, bias = e.get(node.inputs[0], perm), e.get(node.inputs[1]), e.get(node.inputs[2])
    n, c = x.shape[0], x.shape[-1]

    def native() -> None:
        y = e.output(node.outputs[0], perm)
        e.emit("GroupNorm", [x, scale, bias], [y], epsilon=epsilon, group=groups)

    def composed() -> None:
        split = e.reshape(x, (n, int(np.prod(x.shape[1:-1])), groups, c // groups))
        y = e.reshape(normalized(e, split, [1, 3], epsilon), x.shape)
        e.bind(node.outputs[0], e.add(e.mul(y, scale), bias), perm)

    e.forms(native, composed)


@lowers("LayerNormalization")
def layer_normalization(e: Emitter, node: ir.Node) -> None:
    """Normalization over the trailing axes; Mean and InvStdDev outputs where they are asked for.

    x: T[*D,*E], scale: T[*E], B: T[*E]? -> y: T[*D,*E]
    T: float
    """
    epsilon = node.attributes.get_float("epsilon", 1e-5)
    rank = e.rank(node.inputs[0])
    axis = node.attributes.get_int("axis", -1) % rank
    x = e.get(node.inputs[0])
    tail = int(np.prod(x.shape[axis:]))
    flat = (int(np.prod(x.shape[:axis])), tail)
    bias_value = node.inputs[2] if len(node.inputs) > 2 else None
    scale = e.get(node.inputs[1])
    wanted = [output for output in node.outputs[1:] if output.name and (output.uses() or output.is_graph_output())]

    def quantized() -> None:
        if wanted or axis != rank - 1:
            raise Unsupported("the quantized form is over the last axis")
        beta = e.constant(bias_value) if bias_value is not None else np.zeros(tail, np.float32)
        if beta is None:
            raise Unsupported("the quantized form has a constant bias")
        y = e.output(node.outputs[0])
        inputs = [x, unsigned(e, scale), symmetric_32(e, beta)]
        e.emit("LayerNorm", inputs, [y], epsilon=epsilon, axes=[rank - 1])

    def native(whole: bool) -> None:
        if wanted:
            raise Unsupported("LayerNorm has one output")
        if scale.encoding is None and e.shape(node.inputs[1]) != x.shape[axis:]:
            raise Unsupported("the scale is broadcast")
        bias = e.get(bias_value) if bias_value is not None else e.static(np.zeros(scale.shape, np.float32), hint="bias")
        if whole and axis == rank - 1:
            e.emit("LayerNorm", [x, scale, bias], [e.output(node.outputs[0])], epsilon=epsilon, axes=[rank - 1])
            return
        gamma, beta = e.reshape(scale, (tail,)), e.reshape(bias, (tail,))
        out = e.temp(flat, x.dtype)
        e.emit("LayerNorm", [e.reshape(x, flat), gamma, beta], [out], epsilon=epsilon, axes=[1])
        e.bind(node.outputs[0], e.reshape(out, x.shape))

    def composed() -> None:
        source = x if axis == rank - 1 else e.reshape(x, flat)
        mean = reduced(e, "ReduceMean", source, [source.rank - 1])
        centred = e.sub(source, mean)
        variance = reduced(e, "ReduceMean", e.mul(centred, centred), [source.rank - 1])
        inverse = e.div(1.0, e.unary("ElementWiseSquareRoot", e.add(variance, epsilon)))
        y = e.mul(e.reshape(e.mul(centred, inverse), x.shape), scale)
        e.bind(node.outputs[0], e.add(y, e.get(bias_value)) if bias_value is not None else y)
        for output, tensor in zip(node.outputs[1:], (mean, inverse), strict=False):
            if output.name:
                e.bind(output, e.reshape(tensor, e.shape(output)))

    forms = [quantized] if e.quantized else [lambda: native(True), lambda: native(False), composed]
    e.forms(*forms)


@lowers("RMSNormalization")
def rms_normalization(e: Emitter, node: ir.Node) -> None:
    """Division by the root mean square over the trailing axes.

    x: T[*D,*E], scale: T[*E] -> y: T[*D,*E]
    T: float
    """
    epsilon = node.attributes.get_float("epsilon", 1e-5)
    rank = e.rank(node.inputs[0])
    axis = node.attributes.get_int("axis", -1) % rank
    x, scale = e.get(node.inputs[0]), e.get(node.inputs[1])
    tail = int(np.prod(x.shape[axis:]))
    flat = (int(np.prod(x.shape[:axis])), tail)

    def quantized() -> None:
        if axis != rank - 1 or "rms_norm_epsilon_outside_root" in e.quirks:
            raise Unsupported("the quantized form is over the last axis")
        y = e.output(node.outputs[0])
        inputs = [x, unsigned(e, scale), symmetric_32(e, np.zeros(tail))]
        e.emit("RmsNorm", inputs, [y], epsilon=epsilon, axes=[rank - 1])

    def native(whole: bool) -> None:
        if "rms_norm_epsilon_outside_root" in e.quirks:
            raise Unsupported("RmsNorm adds epsilon outside the root on a target")
        if e.shape(node.inputs[1]) != x.shape[axis:]:
            raise Unsupported("the scale is broadcast")
        zeros = np.zeros(tail, np.float32)
        if whole and axis == rank - 1:
            y = e.output(node.outputs[0])
            e.emit("RmsNorm", [x, scale, e.static(zeros, hint="beta")], [y], epsilon=epsilon, axes=[rank - 1])
            return
        out = e.temp(flat, x.dtype)
        gamma, beta = e.reshape(scale, (tail,)), e.static(zeros, hint="beta")
        e.emit("RmsNorm", [e.reshape(x, flat), gamma, beta], [out], epsilon=epsilon, axes=[1])
        e.bind(node.outputs[0], e.reshape(out, x.shape))

    def composed() -> None:
        source = x if axis == rank - 1 else e.reshape(x, flat)
        square = reduced(e, "ReduceMean", e.mul(source, source), [source.rank - 1])
        y = e.div(source, e.unary("ElementWiseSquareRoot", e.add(square, epsilon)))
        e.bind(node.outputs[0], e.mul(e.reshape(y, x.shape), scale))

    forms = [quantized] if e.quantized else [lambda: native(True), lambda: native(False), composed]
    e.forms(*forms)


@lowers("LRN")
def lrn(e: Emitter, node: ir.Node) -> None:
    """Local response normalization across channels.

    x: T[N,C,*S] -> y: T[N,C,*S]
    T: float
    """
    size = node.attributes.get_int("size")
    alpha, beta = node.attributes.get_float("alpha", 1e-4), node.attributes.get_float("beta", 0.75)
    bias = node.attributes.get_float("bias", 1.0)
    perm = channel_last(e.rank(node.inputs[0]))
    x = e.get(node.inputs[0], perm)

    def native() -> None:
        if size % 2 == 0:
            raise Unsupported("Lrn has odd windows only")
        e.emit(
            "Lrn", [x], [e.output(node.outputs[0], perm)],
            alpha=alpha / size, beta=beta, bias=bias, radius=(size - 1) // 2, region="ACROSS_CHANNEL",
        )  # fmt: skip

    def composed() -> None:
        """Window sums as a product with a constant band matrix [C,C]."""
        c = x.shape[-1]
        before, after = (size - 1) // 2, size - 1 - (size - 1) // 2
        rows, columns = np.indices((c, c))
        band = ((rows >= columns - before) & (rows <= columns + after)).astype(np.float32) * (alpha / size)
        flat = e.reshape(e.mul(x, x), (int(np.prod(x.shape[:-1])), c))
        sums = e.emit(
            "MatMul", [flat, e.static(band)], [e.temp(flat.shape, x.dtype)], transpose_in0=False, transpose_in1=False
        )
        power = e.binary("ElementWisePower", e.add(e.reshape(sums, x.shape), bias), -beta)
        e.bind(node.outputs[0], e.mul(x, power), perm)

    e.forms(native, composed)


@lowers("LpNormalization")
def lp_normalization(e: Emitter, node: ir.Node) -> None:
    """Divide by the norm along one axis; 0 where the norm is 0.

    x: T[*D] -> y: T[*D]
    T: float; p 1 or 2; any order
    """
    p = node.attributes.get_int("p", 2)
    x, order = e.held(node.inputs[0])
    rank = e.rank(node.inputs[0])
    source = node.attributes.get_int("axis", -1) % rank
    axis = source if order is None else order.index(source)
    square = e.unary("ElementWiseAbs", x) if p == 1 else e.mul(x, x)
    norm = reduced(e, "ReduceSum", square, [axis])
    if p == 2:
        norm = e.unary("ElementWiseSquareRoot", norm)
    zero = e.compare("ElementWiseEqual", norm, 0.0)
    e.bind(node.outputs[0], e.div(x, e.select(zero, 1.0, norm)), order)


@lowers("MeanVarianceNormalization")
def mean_variance_normalization(e: Emitter, node: ir.Node) -> None:
    """(x - mean) / (standard deviation + 1e-9) over `axes`.

    x: T[*D] -> y: T[*D]
    T: float; any order
    """
    x, order = e.held(node.inputs[0])
    axes = [axis % x.rank for axis in node.attributes.get_ints("axes", [0, 2, 3])]
    places = axes if order is None else [order.index(axis) for axis in axes]
    centred = e.sub(x, reduced(e, "ReduceMean", x, places))
    variance = reduced(e, "ReduceMean", e.mul(centred, centred), places)
    deviation = e.add(e.unary("ElementWiseSquareRoot", variance), 1e-9)
    e.bind(node.outputs[0], e.div(centred, deviation), order)

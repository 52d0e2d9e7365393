# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""Ops by their definition in numpy, for rows where no QNN backend can serve as the oracle.

Each function takes the op's inputs (None where absent), its params by name (enum values by name) and the shapes of
its outputs, and returns the outputs.
"""

from __future__ import annotations

import numpy as np


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def softmax(x, axis):
    e = np.exp(x - x.max(axis, keepdims=True))
    return e / e.sum(axis, keepdims=True)


def relu1(inputs, params, shapes):
    return [np.clip(inputs[0], -1, 1)]


def softplus(inputs, params, shapes):
    beta = params.get("beta", 1.0)
    return [np.log1p(np.exp(beta * inputs[0])) / beta]


def floor_div(inputs, params, shapes):
    return [inputs[0] // inputs[1]]


def fmod(inputs, params, shapes):
    return [np.fmod(*inputs)]


def squared_difference(inputs, params, shapes):
    return [(inputs[0] - inputs[1]) ** 2]


def prelu(inputs, params, shapes):
    x, slope = inputs
    return [np.where(x < 0, x * slope, x)]


def reshape(inputs, params, shapes):
    return [inputs[0].reshape(shapes[0])]


def unpack(inputs, params, shapes):
    return list(np.moveaxis(inputs[0], params["axis"], 0))


def pad(inputs, params, shapes):
    mode = {"CONSTANT": "constant", "MIRROR_SYMMETRIC": "symmetric"}[params["scheme"]]
    extra = {"constant_values": params["pad_constant_value"]} if mode == "constant" else {}
    return [np.pad(inputs[0], params["pad_amount"], mode=mode, **extra)]


def gather(inputs, params, shapes):
    return [np.take(inputs[0], inputs[1], axis=params["axis"])]


def gather_nd(inputs, params, shapes):
    return [inputs[0][tuple(np.moveaxis(inputs[1], -1, 0))]]


def scatter_elements(inputs, params, shapes):
    data, index, updates = (np.array(v) for v in inputs)
    for place in np.ndindex(index.shape):
        target = list(place)
        target[params["axis"]] = index[place]
        old = data[tuple(target)]
        how = params.get("reduction", "NONE")
        new = {"NONE": updates[place], "ADD": old + updates[place], "MUL": old * updates[place]}[how]
        data[tuple(target)] = new
    return [data]


def one_hot(inputs, params, shapes):
    hit = np.moveaxis(np.eye(params["depth"], dtype=bool)[inputs[0]], -1, params["axis"])
    return [np.where(hit, params["on_value"], params["off_value"]).astype(np.int32)]


def shape(inputs, params, shapes):
    dims = inputs[0].shape
    return [np.array(dims[params.get("start", 0) : params.get("end", len(dims))], np.uint32)]


def constant_of_shape(inputs, params, shapes):
    return [np.full(inputs[0], params["value"], np.float32)]


def non_zero(inputs, params, shapes):
    found = np.argwhere(inputs[0])
    return [np.concatenate([found, np.zeros((shapes[0][0] - len(found), found.shape[1]))]).astype(np.int32)]


def space_to_depth(inputs, params, shapes):
    (n, h, w, c), (bh, bw) = inputs[0].shape, params["block_size"]
    split = inputs[0].reshape(n, h // bh, bh, w // bw, bw, c)
    order = (0, 1, 3, 2, 4, 5) if params.get("mode", "DCR") == "DCR" else (0, 1, 3, 5, 2, 4)
    return [split.transpose(order).reshape(shapes[0])]


def log_softmax(inputs, params, shapes):
    return [np.log(softmax(inputs[0] * params.get("beta", 1.0), params["axis"]))]


def layer_norm(inputs, params, shapes):
    x, axes = inputs[0], tuple(params["axes"])
    y = (x - x.mean(axes, keepdims=True)) / np.sqrt(x.var(axes, keepdims=True) + params.get("epsilon", 1e-3))
    return [y * inputs[1] + inputs[2]]


def instance_norm(inputs, params, shapes):
    x, rank = inputs[0], inputs[0].ndim
    regions = {
        "ACROSS_SPATIAL": tuple(range(1, rank - 1)),
        "ACROSS_CHANNEL": (rank - 1,),
        "ACROSS_ALL": tuple(range(1, rank)),
    }
    axes, epsilon = regions[params.get("region", "ACROSS_SPATIAL")], params.get("epsilon", 1e-12)
    if params.get("mode", "MU_SIGMA") == "RMS":
        y = x / np.sqrt((x**2).sum(axes, keepdims=True) + epsilon)
    else:
        y = x - x.mean(axes, keepdims=True)
        if params.get("normalize_variance", True):
            y = y / np.sqrt(x.var(axes, keepdims=True) + epsilon)
    return [y * inputs[1] + inputs[2]]


def l2_norm(inputs, params, shapes):
    norm = np.sqrt((inputs[0] ** 2).sum(tuple(params["axes"]), keepdims=True))
    return [inputs[0] / np.maximum(norm, params.get("epsilon", 1e-12))]


def reduce_sum_square(inputs, params, shapes):
    return [(inputs[0] ** 2).sum(tuple(params["axes"])).reshape(shapes[0])]


def extract_patches(inputs, params, shapes):
    x, (kh, kw), (sh, sw), (rh, rw) = inputs[0], params["size"], params["stride"], params["rate"]
    _, oh, ow, _ = shapes[0]
    if params["padding"] == "SAME":
        total = [
            max(0, (o - 1) * st + (k - 1) * r + 1 - d)
            for o, st, k, r, d in zip((oh, ow), (sh, sw), (kh, kw), (rh, rw), x.shape[1:3], strict=True)
        ]
        x = np.pad(x, [(0, 0), *((t // 2, t - t // 2) for t in total), (0, 0)])
    taps = [
        x[:, i * rh : i * rh + (oh - 1) * sh + 1 : sh, j * rw : j * rw + (ow - 1) * sw + 1 : sw]
        for i in range(kh)
        for j in range(kw)
    ]
    return [np.concatenate(taps, axis=3)]


def stft(inputs, params, shapes):
    x, window = inputs
    starts = range(0, x.shape[1] - len(window) + 1, params["frame_step"])
    frames = [np.fft.rfft(x[0, a : a + len(window), 0] * window) for a in starts]
    return [np.stack([np.stack([v.real, v.imag], -1) for v in frames])[None]]


def _places(params, height, width):
    """(tap, column, y, x) of every tap that falls into the image."""
    (kh, kw), (sh, sw), (dh, dw) = params["kernel_size"], params["stride"], params["dilation"]
    (top, bottom), (left, right) = params["pad_amount"]
    rows = range(-top, height + bottom - (kh - 1) * dh, sh)
    columns = range(-left, width + right - (kw - 1) * dw, sw)
    for tap in range(kh * kw):
        for position, (row, column) in enumerate((r, c) for r in rows for c in columns):
            y, x = row + tap // kw * dh, column + tap % kw * dw
            if 0 <= y < height and 0 <= x < width:
                yield tap, position, y, x


def im2col(inputs, params, shapes):
    n, h, w, c = inputs[0].shape
    y = np.zeros((n, c, int(np.prod(params["kernel_size"])), shapes[0][2]))
    for tap, position, row, column in _places(params, h, w):
        y[:, :, tap, position] = inputs[0][:, row, column]
    return [y.reshape(shapes[0])]


def col2im(inputs, params, shapes):
    n, h, w, c = shapes[0]
    columns = inputs[0].reshape(n, c, -1, inputs[0].shape[2])
    y = np.zeros(shapes[0])
    for tap, position, row, column in _places(params, h, w):
        y[:, row, column] += columns[:, :, tap, position]
    return [y]


def rotary(inputs, params, shapes):
    x, cos, sin = inputs[0], inputs[1][:, None], inputs[2][:, None]
    half = x.shape[-1] // 2
    paired = params.get("interleaved", False)
    a, b = (x[..., ::2], x[..., 1::2]) if paired else (x[..., :half], x[..., half:])
    low, high = cos * a - sin * b, sin * a + cos * b
    return [np.stack([low, high], -1).reshape(x.shape) if paired else np.concatenate([low, high], -1)]


def conv1d(inputs, params, shapes):
    """Conv1d, by definition: windows of the padded input times the filter."""
    x, w, b = inputs
    x = np.pad(x, [(0, 0), tuple(params["pad_amount"]), (0, 0)])
    group = params.get("group", x.shape[2])
    per_in, per_out = x.shape[2] // group, w.shape[2] // group
    y = np.zeros(shapes[0])
    for t in range(shapes[0][1]):
        window = x[:, t * params["stride"] : t * params["stride"] + len(w)]
        for o in range(w.shape[2]):
            g = o // per_out
            y[:, t, o] = (window[:, :, g * per_in : (g + 1) * per_in] * w[:, :, o]).sum((1, 2)) + b[o]
    return [y]


def transpose_conv1d(inputs, params, shapes):
    x, w, b = inputs
    group, stride = params["group"], params["stride"]
    per_in, per_out = x.shape[2] // group, w.shape[2]
    whole = np.zeros((x.shape[0], stride * (x.shape[1] - 1) + len(w), per_out * group))
    for t in range(x.shape[1]):
        for i in range(x.shape[2]):
            g = i // per_in
            part = x[:, t, i][:, None, None] * w[:, i]
            whole[:, t * stride : t * stride + len(w), g * per_out : (g + 1) * per_out] += part
    first = params["pad_amount"][0]
    return [whole[:, first : first + shapes[0][1]] + b]


def _sequence(inputs, params):
    x = inputs[0] if params.get("time_major", True) else inputs[0].swapaxes(0, 1)
    return x[::-1] if params.get("direction") == "REVERSE" else x


def _restored(steps, params):
    y = np.stack(steps[::-1] if params.get("direction") == "REVERSE" else steps)
    return y if params.get("time_major", True) else y.swapaxes(0, 1)


def gru(inputs, params, shapes):
    wz, wr, wn, rz, rr, rn, bz, br, bn, cz, cr, cn = (v.T for v in inputs[1:13])
    h = inputs[13][0] if len(inputs) > 13 else np.zeros(shapes[1][1:])
    steps = []
    for x in _sequence(inputs, params):
        z, r = sigmoid(x @ wz + h @ rz + bz + cz), sigmoid(x @ wr + h @ rr + br + cr)
        inner = r * (h @ rn + cn) if params.get("linear_before_reset") else (r * h) @ rn + cn
        h = (1 - z) * np.tanh(x @ wn + bn + inner) + z * h
        steps.append(h)
    return [_restored(steps, params), h[None]]


def lstm(inputs, params, shapes):
    """The plain cell: no coupling, projection, clip or layer norm; peepholes where they are given."""
    w = {"f": 1, "c": 2, "o": 3, "i": 16}
    r = {"f": 4, "c": 5, "o": 6, "i": 17}
    b = {"f": 7, "c": 8, "o": 9, "i": 21}
    h, c = (inputs[i] if inputs[i] is not None else np.zeros(shapes[1]) for i in (10, 11))
    steps = []
    for x in _sequence(inputs, params):
        gate = {k: x @ inputs[w[k]].T + h @ inputs[r[k]].T + inputs[b[k]] for k in "fcoi"}
        c = sigmoid(gate["f"]) * c + sigmoid(gate["i"]) * np.tanh(gate["c"])
        h = sigmoid(gate["o"]) * np.tanh(c)
        steps.append(h)
    return [_restored(steps, params), c, h]


NUMPY = {
    "Relu1": relu1, "ElementWiseSoftplus": softplus, "ElementWiseFloorDiv": floor_div, "ElementWiseFmod": fmod,
    "ElementWiseSquaredDifference": squared_difference, "Prelu": prelu, "ExpandDims": reshape, "UnPack": unpack,
    "Pad": pad, "Gather": gather, "GatherNd": gather_nd, "ScatterElements": scatter_elements, "OneHot": one_hot,
    "Shape": shape, "ConstantOfShape": constant_of_shape, "NonZero": non_zero, "SpaceToDepth": space_to_depth,
    "LogSoftmax": log_softmax, "LayerNorm": layer_norm, "InstanceNorm": instance_norm, "L2Norm": l2_norm,
    "ReduceSumSquare": reduce_sum_square, "ExtractPatches": extract_patches, "Stft": stft, "Im2Col": im2col,
    "Col2Im": col2im, "RotaryEmbedding": rotary, "Conv1d": conv1d, "DepthWiseConv1d": conv1d,
    "TransposeConv1d": transpose_conv1d, "Gru": gru, "Lstm": lstm,
}  # fmt: skip

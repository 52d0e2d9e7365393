# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""Lstm and Gru. One inference is one sequence: state carried between inferences (reset = false) is not modelled."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from npukit.raising.emit import Emit
from npukit.raising.registry import raises

# Input positions of Lstm, by gate.
_W = {"i": 16, "f": 1, "c": 2, "o": 3}
_R = {"i": 17, "f": 4, "c": 5, "o": 6}
_B = {"i": 21, "f": 7, "c": 8, "o": 9}
_PEEPHOLE = {"i": 18, "f": 19, "o": 20}
_LAYER_NORM = {"i": 12, "f": 13, "c": 14, "o": 15}
_W_PROJ, _B_PROJ, _H0, _C0 = 22, 23, 10, 11
_NORM_EPSILON = 1e-8  # of the layer norm inside a gate


def _reverse(e: Emit, x: ir.Value, size: int) -> ir.Value:
    """The time axis (0) turned around."""
    return e.call("Slice", x, [-1], [-size - 1], [0], [-1])


def _time_first(e: Emit) -> tuple[ir.Value, int, int]:
    """The input as [time, batch, input], with time and batch."""
    x = e.real(0)
    if len(e.shape(0)) == 2:
        return e.call("Unsqueeze", x, [0]), 1, e.shape(0)[0]
    major = e.flag("time_major", True)
    time, batch = e.shape(0)[:2] if major else (e.shape(0)[1], e.shape(0)[0])
    return (x if major else e.transpose(x, [1, 0, 2])), time, batch


def _as_output(e: Emit, sequence: ir.Value) -> ir.Value:
    """[time, batch, hidden] in the order that the op's first output has."""
    if len(e.out_shape()) == 2:
        return e.call("Squeeze", sequence, [0])
    return sequence if e.flag("time_major", True) else e.transpose(sequence, [1, 0, 2])


def _stacked(e: Emit, indices: Sequence[int], shape: Sequence[int]) -> ir.Value:
    """Inputs, zeros where one is absent, joined along axis 0 under a new direction axis."""
    parts = [e.real(i) if e.has(i) else e.full(shape, 0) for i in indices]
    return e.call("Unsqueeze", e.call("Concat", *parts, axis=0), [0])


@raises("Gru")
def _gru(e: Emit) -> list[ir.Value]:
    """ONNX GRU with the gates (update, reset, new) stacked."""
    x, time, batch = _time_first(e)
    hidden = e.shape(1)[0]
    reverse = e.choice("direction", "FORWARD") == "REVERSE"
    w, r = _stacked(e, (1, 2, 3), ()), _stacked(e, (4, 5, 6), ())
    b = _stacked(e, (7, 8, 9, 10, 11, 12), [hidden])
    h0 = e.reshape(e.real(13), [1, batch, hidden]) if e.has(13) else None
    before = e.integer("linear_before_reset", 0)
    y, last = e.calls(
        "GRU",
        x,
        w,
        r,
        b,
        None,
        h0,
        outputs=2,
        hidden_size=hidden,
        linear_before_reset=before,
        direction="reverse" if reverse else "forward",
    )
    return [_as_output(e, e.call("Squeeze", y, [1])), e.reshape(last, e.out_shape(1)) if e.wants(1) else last]


@raises("Lstm")
def _lstm(e: Emit) -> list[ir.Value]:
    special = [*_LAYER_NORM.values(), _W_PROJ, _B_PROJ]
    clipped = e.scalar("cell_clip_threshold", 0) or e.scalar("output_clip_threshold", 0)
    coupled = not e.has(_W["i"])
    if clipped or coupled or any(e.has(i) for i in special) or any(e.wants(i) for i in range(3, 8)):
        return _unrolled(e)
    return _native(e)


def _native(e: Emit) -> list[ir.Value]:
    """ONNX LSTM with the gates (input, output, forget, cell) stacked."""
    x, _, batch = _time_first(e)
    hidden = e.shape(_W["f"])[0]
    w, r = (_stacked(e, [table[gate] for gate in "iofc"], ()) for table in (_W, _R))
    zeros = e.full([4 * hidden], 0)
    b = e.call(
        "Concat", _stacked(e, [_B[gate] for gate in "iofc"], [hidden]), e.reshape(zeros, [1, 4 * hidden]), axis=1
    )
    state = [e.reshape(e.real(i), [1, batch, hidden]) if e.has(i) else None for i in (_H0, _C0)]
    peephole = _stacked(e, [_PEEPHOLE[gate] for gate in "iof"], [hidden]) if e.has(_PEEPHOLE["f"]) else None
    direction = "reverse" if e.choice("direction", "FORWARD") == "REVERSE" else "forward"
    y, h, c = e.calls("LSTM", x, w, r, b, None, *state, peephole, outputs=3, hidden_size=hidden, direction=direction)
    sequence = _as_output(e, e.call("Squeeze", y, [1]))
    return [sequence, e.reshape(c, e.out_shape(1)), e.reshape(h, e.out_shape(2))]


def _unrolled(e: Emit) -> list[ir.Value]:
    """One cell a time step, for what ONNX LSTM lacks: coupled gates, projection, clips, layer norm, gate outputs."""
    x, time, batch = _time_first(e)
    units, out = e.shape(_W["f"])[0], e.shape(_R["f"])[1]
    h = e.reshape(e.real(_H0), [batch, out]) if e.has(_H0) else e.full([batch, out], 0)
    c = e.reshape(e.real(_C0), [batch, units]) if e.has(_C0) else e.full([batch, units], 0)
    reverse = e.choice("direction", "FORWARD") == "REVERSE"
    if reverse:
        x = _reverse(e, x, time)
    steps = e.calls("Split", x, np.ones(time, np.int64), outputs=time, axis=0) if time > 1 else [x]
    sequence: list[ir.Value] = []
    gates: dict[str, ir.Value] = {}
    for step in steps:
        h, c, gates = _cell(e, e.call("Squeeze", step, [0]), h, c)
        sequence.append(e.call("Unsqueeze", h, [0]))
    joined = e.call("Concat", *sequence, axis=0) if time > 1 else sequence[0]
    if reverse:
        joined = _reverse(e, joined, time)
    extra = [gates["i"], gates["f"], gates["c"], gates["o"], gates["h"]]
    return [_as_output(e, joined), e.reshape(c, e.out_shape(1)), e.reshape(h, e.out_shape(2)), *extra]


def _gate(e: Emit, gate: str, x: ir.Value, h: ir.Value, c: ir.Value) -> ir.Value:
    """W x + R h (+ peephole * c), layer-normalised if asked for, plus bias."""
    total = e.call("Add", e.call("Gemm", x, e.real(_W[gate]), transB=1), e.call("Gemm", h, e.real(_R[gate]), transB=1))
    if gate in _PEEPHOLE and e.has(_PEEPHOLE[gate]):
        total = e.call("Add", total, e.call("Mul", c, e.real(_PEEPHOLE[gate])))
    if e.has(_LAYER_NORM[gate]):
        scale = e.real(_LAYER_NORM[gate])
        total = e.call("LayerNormalization", total, scale, axis=-1, epsilon=_NORM_EPSILON)
    return e.call("Add", total, e.real(_B[gate])) if e.has(_B[gate]) else total


def _cell(e: Emit, x: ir.Value, h: ir.Value, c: ir.Value) -> tuple[ir.Value, ir.Value, dict[str, ir.Value]]:
    """One step: new h, new c, and the gates after their activations."""
    forget = e.call("Sigmoid", _gate(e, "f", x, h, c))
    if e.has(_W["i"]):
        entry = e.call("Sigmoid", _gate(e, "i", x, h, c))
    else:
        entry = e.call("Sub", e.scalar_like(forget, 1), forget)
    new = e.call("Tanh", _gate(e, "c", x, h, c))
    c = e.call("Add", e.call("Mul", forget, c), e.call("Mul", entry, new))
    limit = e.scalar("cell_clip_threshold", 0)
    if limit > 0:
        c = e.call("Clip", c, -limit, limit)
    output = e.call("Sigmoid", _gate(e, "o", x, h, c))
    hidden = e.call("Mul", output, e.call("Tanh", c))
    h = hidden
    if e.has(_W_PROJ):
        bias = [e.real(_B_PROJ)] if e.has(_B_PROJ) else []
        h = e.call("Gemm", hidden, e.real(_W_PROJ), *bias, transB=1)
        limit = e.scalar("output_clip_threshold", 0)
        h = e.call("Clip", h, -limit, limit) if limit > 0 else h
    return h, c, {"i": entry, "f": forget, "c": new, "o": output, "h": hidden}

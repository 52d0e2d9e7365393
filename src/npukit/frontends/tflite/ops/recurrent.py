# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""Recurrent layers over a whole sequence, step by step; states start from zeros in every run.

The cells are those of TensorFlow Lite's kernels: https://ai.google.dev/edge/litert/models/rnn and the comments at the
op definitions of its LSTM (peephole connections, a projection, coupled gates, clipping, layer normalization).

The integer LSTM (8-bit codes, a state of 16 bits) is computed with real numbers: only the results of each step are
rounded to codes, as they go into the next one. The kernel rounds gates and state too, to 16 bits, which the results
show as one step now and then.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from npukit.frontends.tflite.builder import Builder
from npukit.frontends.tflite.registry import Refused, reads

_FLOAT = "convert the model with float activations"
_EPSILON = 1e-8  # that the kernels add to the variance in layer normalization
Step = Callable[[ir.Value], ir.Value]


def _steps(b: Builder, time_major: bool) -> tuple[ir.Value, int, int]:
    """The input as [time * batch, width], the number of steps and of sequences."""
    if b.rank(0) != 3:
        raise Refused(f"an input of {b.rank(0)} axes")
    x, shape = b.x(0), b.shape(0)
    if not time_major:
        x, shape = b.transpose(x, (1, 0, 2)), (shape[1], shape[0], shape[2])
    return b.reshape(x, (shape[0] * shape[1], shape[2])), shape[0], shape[1]


def _unroll(b: Builder, gates: ir.Value, steps: int, step: Step, *, backwards: bool) -> list[ir.Value]:
    """Run `step` on the rows of each step [batch, *]; the results in the order of time."""
    parts = b.nodes("Split", gates, outputs=steps, axis=0, num_outputs=steps) if steps > 1 else [gates]
    results = [step(part) for part in (reversed(parts) if backwards else parts)]
    return results[::-1] if backwards else results


def _stacked(b: Builder, results: Sequence[ir.Value], time_major: bool) -> ir.Value:
    axis = 0 if time_major else 1
    return b.node("Concat", *(b.node("Unsqueeze", part, b.vector([axis])) for part in results), axis=axis)


def _starts_from_zero(b: Builder) -> None:
    b.note(
        "recurrent layers start from zeros in every run; TensorFlow Lite's interpreter goes on from the state of the "
        "run before until its variables are reset"
    )


def _product(b: Builder, x: ir.Value, weight: int, bias: int | None = None) -> ir.Value:
    inputs = [x, b.weight(weight, (0, 1)), *([b.x(bias)] if bias is not None and b.has(bias) else [])]
    return b.node("Gemm", *inputs, transB=1)


def _floats_only(b: Builder) -> None:
    if b.coded(b.tensor(0)):
        raise Refused("an integer recurrent layer other than UNIDIRECTIONAL_SEQUENCE_LSTM", _FLOAT)


@dataclass
class _Lstm:
    """Numbers of the inputs of one direction: what they hold is optional where `Builder.has` says so."""

    weights: int
    recurrent: int
    peephole: int
    bias: int
    projection: int
    cell: int
    norm: int | None


def _plain(b: Builder, at: _Lstm, *, normed: bool) -> None:
    """Refuse what the integer LSTM here has not."""
    more = [*range(at.peephole, at.peephole + 3), at.projection]
    state = b.tensor(at.cell) if b.has(at.cell) else None
    if normed or any(b.has(i) for i in more):
        raise Refused("an integer LSTM with peepholes, a projection or layer normalization", _FLOAT)
    if state is None or not b.coded(state) or not b.coded(b.result()) or b.result().dtype is not ir.DataType.INT8:
        raise Refused("an integer LSTM whose state or result has no codes", _FLOAT)


def _real(b: Builder, i: int, weight: int | None = None) -> ir.Value:
    """The constant codes of input `i` as floats; a bias has the scale of its product with input `weight`."""
    codes = b.raw_data(i)
    if codes is None or not b.coded(b.tensor(i if weight is None else weight)):
        raise Refused("weights that are computed, or without codes")
    if weight is None:
        return b.constant(b.data(i))
    scale = b.encoding_of(b.tensor(0)).scales[0].astype(np.float64) * b.encoding_of(b.tensor(weight)).scales
    return b.constant((codes * scale).astype(np.float32))


def _lstm(b: Builder, at: _Lstm, x: ir.Value, steps: int, batch: int, *, backwards: bool) -> list[ir.Value]:
    """One direction: gates i, f, c, o."""
    gates = [k for k in range(4) if b.has(at.weights + k)]  # without the input gate it is 1 - forget
    if gates[-3:] != [1, 2, 3]:
        raise Refused("a gate has no weights")
    cells, width = b.shape(at.weights + 1)[0], b.shape(at.recurrent + 1)[1]
    normed = at.norm is not None and b.has(at.norm + 1)
    coded = b.coded(b.tensor(0))
    if coded:
        _plain(b, at, normed=normed)

    def matrix(i: int) -> ir.Value:
        return _real(b, i) if coded else b.weight(i, (0, 1))

    def bias(k: int) -> ir.Value:
        return _real(b, at.bias + k, at.weights + k) if coded else b.x(at.bias + k)

    stacked = b.node("Concat", *(matrix(at.weights + k) for k in gates), axis=0)
    turned = b.node("Concat", *(matrix(at.recurrent + k) for k in gates), axis=0)
    inputs = [x, stacked, *([] if normed else [b.node("Concat", *(bias(k) for k in gates), axis=0)])]
    product = b.node("Gemm", *inputs, transB=1)
    cell = b.constant(b.filled((batch, cells), 0, np.float32))
    hidden = b.constant(b.filled((batch, width), 0, np.float32))
    cell_clip, clip = float(b.op.get("CellClip", 0.0)), float(b.op.get("ProjClip", 0.0))
    if coded:  # the state's codes saturate
        end = 2.0**15 * float(b.encoding_of(b.tensor(at.cell)).scales[0])
        cell_clip = min(cell_clip, end) if cell_clip > 0 else end
    kind = int(b.op.get("FusedActivationFunction", 4))

    def gate(value: ir.Value, k: int, state: ir.Value) -> ir.Value:
        peephole = {0: 0, 1: 1, 3: 2}.get(k)
        if peephole is not None and b.has(at.peephole + peephole):
            value = b.node("Add", value, b.node("Mul", state, b.x(at.peephole + peephole)))
        if normed:
            assert at.norm is not None
            value = b.node("LayerNormalization", value, b.x(at.norm + k), axis=-1, epsilon=_EPSILON)
            value = b.node("Add", value, b.x(at.bias + k))
        return value

    def step(part: ir.Value) -> ir.Value:
        nonlocal cell, hidden
        both = b.node("Add", part, b.node("Gemm", hidden, turned, transB=1))
        parts = dict(zip(gates, b.nodes("Split", both, b.vector([cells] * len(gates)), outputs=len(gates), axis=1),
                         strict=True))  # fmt: skip
        forget = b.node("Sigmoid", gate(parts[1], 1, cell))
        enter = b.node("Sigmoid", gate(parts[0], 0, cell)) if 0 in parts else b.node("Sub", b.scalar(1.0), forget)
        new = b.activation(gate(parts[2], 2, cell), kind, b.result())
        cell = b.node("Add", b.node("Mul", forget, cell), b.node("Mul", enter, new))
        if cell_clip > 0:
            cell = b.clip(cell, -cell_clip, cell_clip)
        out = b.node("Sigmoid", gate(parts[3], 3, cell))
        hidden = b.node("Mul", out, b.activation(cell, kind, b.result()))
        if b.has(at.projection):
            hidden = _product(b, hidden, at.projection, at.projection + 1)
            if clip > 0:
                hidden = b.clip(hidden, -clip, clip)
        if coded:
            hidden = b.as_codes(hidden, b.result())
        return hidden

    return _unroll(b, product, steps, step, backwards=backwards)


def _rnn(b: Builder, at: int, x: ir.Value, steps: int, batch: int, *, backwards: bool) -> list[ir.Value]:
    """One direction: inputs `at` weights, recurrent weights, bias."""
    hidden = b.constant(b.filled((batch, b.shape(at)[0]), 0, np.float32))
    kind = int(b.op.get("FusedActivationFunction", 0))

    def step(part: ir.Value) -> ir.Value:
        nonlocal hidden
        hidden = b.activation(b.node("Add", part, _product(b, hidden, at + 1)), kind, b.result())
        return hidden

    return _unroll(b, _product(b, x, at, at + 2), steps, step, backwards=backwards)


@reads("UNIDIRECTIONAL_SEQUENCE_LSTM")
def sequence_lstm(b: Builder) -> None:
    """X [time, batch, width] or [batch, time, width] -> the same with the state's width."""
    time_major = bool(b.op.get("TimeMajor", False))
    x, steps, batch = _steps(b, time_major)
    b.set(_stacked(b, _lstm(b, _Lstm(1, 5, 9, 12, 16, 19, 20), x, steps, batch, backwards=False), time_major))
    _starts_from_zero(b)


@reads("BIDIRECTIONAL_SEQUENCE_LSTM")
def two_lstms(b: Builder) -> None:
    """Both directions, in two results or side by side."""
    _floats_only(b)
    if b.has(39):
        raise Refused("an auxiliary input")
    time_major = bool(b.op.get("TimeMajor", True))
    x, steps, batch = _steps(b, time_major)
    ahead = _lstm(b, _Lstm(1, 5, 9, 12, 16, 36, None), x, steps, batch, backwards=False)
    back = _lstm(b, _Lstm(18, 22, 26, 29, 33, 38, None), x, steps, batch, backwards=True)
    _both(b, ahead, back, time_major)


@reads("UNIDIRECTIONAL_SEQUENCE_RNN")
def sequence_rnn(b: Builder) -> None:
    """Y = activation(w x + r y_before + bias)."""
    _floats_only(b)
    time_major = bool(b.op.get("TimeMajor", False))
    x, steps, batch = _steps(b, time_major)
    b.set(_stacked(b, _rnn(b, 1, x, steps, batch, backwards=False), time_major))
    _starts_from_zero(b)


@reads("BIDIRECTIONAL_SEQUENCE_RNN")
def two_rnns(b: Builder) -> None:
    """Both directions, in two results or side by side."""
    _floats_only(b)
    if b.has(9):
        raise Refused("an auxiliary input")
    time_major = bool(b.op.get("TimeMajor", True))
    x, steps, batch = _steps(b, time_major)
    ahead = _rnn(b, 1, x, steps, batch, backwards=False)
    _both(b, ahead, _rnn(b, 5, x, steps, batch, backwards=True), time_major)


def _both(b: Builder, ahead: Sequence[ir.Value], back: Sequence[ir.Value], time_major: bool) -> None:
    if b.op.get("MergeOutputs", False):
        pairs = [b.node("Concat", *pair, axis=-1) for pair in zip(ahead, back, strict=True)]
        b.set(_stacked(b, pairs, time_major))
    else:
        b.set(_stacked(b, ahead, time_major), 0)
        b.set(_stacked(b, back, time_major), 1)
    _starts_from_zero(b)

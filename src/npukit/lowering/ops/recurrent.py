# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""LSTM, GRU and RNN, unrolled over time into products and activations (ONNX operators page, each op's equations).

Every backend has what the unrolled form needs; the native Lstm takes fewer activations and no sequence lengths.
The input's share of all gates and steps is one product before the loop.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from npukit.lowering.emitter import Emitter
from npukit.lowering.registry import Unsupported, lowers
from npukit.qnn.graph import Array, DType, Tensor

from .forms import apart
from .matrix import matmul

Activation = Callable[[Emitter, Tensor], Tensor]


def _clamped(e: Emitter, x: Tensor, limit: float) -> Tensor:
    return e.emit("ReluMinMax", [x], [e.temp(x.shape, x.dtype)], min_value=-limit, max_value=limit)


def _activation(name: str, alpha: float | None, beta: float | None) -> Activation:
    """An activation of the recurrent ops by its ONNX name; alpha and beta None for the defaults."""

    def given(value: float | None, default: float) -> float:
        return default if value is None else value

    table: dict[str, Activation] = {
        "sigmoid": lambda e, x: e.unary("Sigmoid", x),
        "tanh": lambda e, x: e.unary("Tanh", x),
        "relu": lambda e, x: e.unary("Relu", x),
        "affine": lambda e, x: e.add(e.mul(x, given(alpha, 1.0)), given(beta, 0.0)),
        "leakyrelu": lambda e, x: e.emit("Prelu", [x, e.like(given(alpha, 0.01), x)], [e.temp(x.shape, x.dtype)]),
        "thresholdedrelu": lambda e, x: e.select(e.compare("ElementWiseGreater", x, given(alpha, 1.0)), x, 0.0),
        "scaledtanh": lambda e, x: e.mul(e.unary("Tanh", e.mul(x, given(beta, 1.0))), given(alpha, 1.0)),
        "hardsigmoid": lambda e, x: e.unary(
            "ElementWiseNeuron", x, operation="HARD_SIGMOID", alpha=given(alpha, 0.2), beta=given(beta, 0.5)
        ),
        "elu": lambda e, x: e.unary("Elu", x, alpha=given(alpha, 1.0)),
        "softsign": lambda e, x: e.div(x, e.add(e.unary("ElementWiseAbs", x), 1.0)),
        "softplus": lambda e, x: e.unary("ElementWiseLog", e.add(e.unary("ElementWiseExp", x), 1.0)),
    }
    if name.lower() not in table:
        raise Unsupported(f"recurrent activation {name!r}")
    return table[name.lower()]


def split(e: Emitter, x: Tensor, axis: int, count: int) -> list[Tensor]:
    """Cut x into `count` equal parts along an axis."""
    if count == 1:
        return [x]
    size = x.shape[axis] // count
    parts = [e.temp((*x.shape[:axis], size, *x.shape[axis + 1 :]), x.dtype) for _ in range(count)]
    e.emit("Split", [x], parts, axis=axis, split_index=[size * k for k in range(1, count)])
    return parts


@dataclass(frozen=True)
class _Direction:
    """What one direction of a recurrent node computes with."""

    index: int
    reverse: bool
    activations: list[Activation]
    squashes: bool

    def ready(self, e: Emitter, x: Tensor) -> Tensor:
        """What an activation takes: kept apart from what makes it where all activations are Sigmoid or Tanh."""
        return apart(e, x) if self.squashes else x


class _Recurrent:
    """The parts that the three ops share: shapes, weights, initial states, loop and outputs."""

    def __init__(self, e: Emitter, node: ir.Node, gates: int, defaults: list[str]) -> None:
        self.e, self.node, self.gates = e, node, gates
        attributes = node.attributes
        self.hidden = attributes.get_int("hidden_size", e.shape(node.inputs[2])[2])
        self.batch_first = bool(attributes.get_int("layout", 0))
        self.clip = attributes.get_float("clip") if "clip" in attributes else None
        names = list(attributes.get_strings("activations", [])) or None
        alphas = list(attributes.get_floats("activation_alpha", []))
        betas = list(attributes.get_floats("activation_beta", []))
        kind = attributes.get_string("direction", "forward")
        reversed_ = {"forward": [False], "reverse": [True], "bidirectional": [False, True]}[kind]
        self.directions = []
        for index, reverse in enumerate(reversed_):
            mine = (names or defaults * len(reversed_))[index * len(defaults) : (index + 1) * len(defaults)]
            made = []
            for k, name in enumerate(mine):
                place = index * len(defaults) + k
                alpha = alphas[place] if place < len(alphas) else None
                beta = betas[place] if place < len(betas) else None
                made.append(_activation(name, alpha, beta))
            squashes = {name.lower() for name in mine} <= {"sigmoid", "tanh"}
            self.directions.append(_Direction(index, reverse, made, squashes))
        x = e.get(node.inputs[0])
        self.x = e.transpose(x, (1, 0, 2)) if self.batch_first else x
        self.time, self.batch, self.width = self.x.shape
        self.lengths = self._lengths()

    def _input(self, index: int) -> ir.Value | None:
        return self.node.inputs[index] if len(self.node.inputs) > index else None

    def _lengths(self) -> Array | None:
        value = self._input(4)
        if value is None:
            return None
        known = self.e.need_constant(value, "sequence_lens")
        return None if np.all(known == self.time) else known

    def state(self, index: int, direction: int) -> Tensor:
        """An initial state [batch, hidden], zeros where none is given."""
        value = self._input(index)
        if value is None:
            return self.e.static(np.zeros((self.batch, self.hidden), np.float32), hint="state")
        x = self.e.get(value)
        x = self.e.transpose(x, (1, 0, 2)) if self.batch_first else x
        return self.e.reshape(self.e.slice(x, 0, direction, direction + 1), (self.batch, self.hidden))

    def weight(self, index: int, direction: int) -> Tensor:
        """W or R of a direction: [gates * hidden, width]."""
        x = self.e.get(self.node.inputs[index])
        return self.e.reshape(self.e.slice(x, 0, direction, direction + 1), x.shape[1:])

    def bias(self, direction: int) -> tuple[Tensor | None, Tensor | None]:
        """Wb and Rb of a direction: [gates * hidden] each, None where the node has no bias."""
        value = self._input(3)
        if value is None:
            return None, None
        x = self.e.get(value)
        row = self.e.reshape(self.e.slice(x, 0, direction, direction + 1), (x.shape[1],))
        half = self.gates * self.hidden
        return self.e.slice(row, 0, 0, half), self.e.slice(row, 0, half, 2 * half)

    def projected(self, direction: _Direction, bias: Tensor | None) -> list[Tensor]:
        """Give x_t W' (+ bias) for every step in the order of the loop: [batch, gates * hidden] each."""
        e, w = self.e, self.weight(1, direction.index)
        rows = e.reshape(self.x, (self.time * self.batch, self.width))
        product = matmul(e, rows, w, transpose_b=True)
        product = e.add(product, bias) if bias is not None else product
        steps = split(e, product, 0, self.time)
        return steps[::-1] if direction.reverse else steps

    def limited(self, x: Tensor) -> Tensor:
        return x if self.clip is None else _clamped(self.e, x, self.clip)

    def kept(self, step: int, direction: _Direction, new: Tensor, old: Tensor) -> Tensor:
        """Take new where the sequence is still running at a step of the loop, old where it has ended."""
        if self.lengths is None:
            return new
        t = self.time - 1 - step if direction.reverse else step
        running = (t < self.lengths).reshape(-1, 1)
        if running.all():
            return new
        if not running.any():
            return old
        mask = np.broadcast_to(running, (self.batch, self.hidden)).copy()
        return self.e.select(self.e.static(mask, DType.BOOL_8), new, old)

    def zeroed(self, step: int, direction: _Direction, y: Tensor) -> Tensor:
        """Y is 0 behind the end of a sequence."""
        zero = self.e.static(np.zeros((self.batch, self.hidden), np.float32), hint="zero")
        return self.kept(step, direction, y, zero)

    def finish(self, steps: list[list[Tensor]], last: list[list[Tensor]]) -> None:
        """Bind Y from the steps of each direction, and Y_h (Y_c) from the last states."""
        e, count = self.e, len(self.directions)
        outputs = self.node.outputs
        if outputs[0].name:
            rows = []
            for direction, hs in zip(self.directions, steps, strict=True):
                ordered = hs[::-1] if direction.reverse else hs
                rows.append(e.concat([e.reshape(h, (1, 1, self.batch, self.hidden)) for h in ordered], 0))
            y = e.concat(rows, 1)
            if self.batch_first:
                y = e.transpose(y, (2, 0, 1, 3))
            e.bind(outputs[0], y)
        for output, states in zip(outputs[1:], last, strict=False):
            if not output.name:
                continue
            y = e.concat([e.reshape(h, (1, self.batch, self.hidden)) for h in states], 0)
            e.bind(output, e.transpose(y, (1, 0, 2)) if self.batch_first else y)
        assert count == len(steps)


@lowers("LSTM")
def lstm(e: Emitter, node: ir.Node) -> None:
    """Long short-term memory, unrolled.

    x: T[S,N,I], w: T[d,4H,I], r: T[d,4H,H], b: T[d,8H]? -> y: T[S,d,N,H], y_h: T[d,N,H], y_c: T[d,N,H]
    T: float; sequence_lens constant
    """
    loop = _Recurrent(e, node, 4, ["Sigmoid", "Tanh", "Tanh"])
    peepholes = node.inputs[7] if len(node.inputs) > 7 else None
    coupled = bool(node.attributes.get_int("input_forget", 0))
    steps, last_h, last_c = [], [], []
    for direction in loop.directions:
        f, g, h_ = direction.activations
        wb, rb = loop.bias(direction.index)
        bias = e.add(wb, rb) if wb is not None and rb is not None else None
        r = loop.weight(2, direction.index)
        h, c = loop.state(5, direction.index), loop.state(6, direction.index)
        p: list[Tensor] | None = None
        if peepholes is not None:
            row = e.get(peepholes)
            flat = e.reshape(e.slice(row, 0, direction.index, direction.index + 1), (row.shape[1],))
            p = [e.slice(flat, 0, k * loop.hidden, (k + 1) * loop.hidden) for k in range(3)]
        hs = []
        for step, x in enumerate(loop.projected(direction, bias)):
            gates = e.add(x, matmul(e, h, r, transpose_b=True))  # the Split keeps the activations apart
            i, o, forget, cell = split(e, gates, 1, 4)
            if p is not None:
                i, forget = e.add(i, e.mul(p[0], c)), e.add(forget, e.mul(p[2], c))
            i, forget = f(e, loop.limited(i)), f(e, loop.limited(forget))
            if coupled:
                forget = e.sub(1.0, i)
            c_new = e.add(e.mul(forget, c), e.mul(i, g(e, loop.limited(cell))))
            o = f(e, loop.limited(e.add(o, e.mul(p[1], c_new)) if p is not None else o))
            h_new = e.mul(o, h_(e, direction.ready(e, c_new)))
            hs.append(loop.zeroed(step, direction, h_new))
            h, c = loop.kept(step, direction, h_new, h), loop.kept(step, direction, c_new, c)
        steps.append(hs)
        last_h.append(h)
        last_c.append(c)
    loop.finish(steps, [last_h, last_c])


@lowers("GRU")
def gru(e: Emitter, node: ir.Node) -> None:
    """Gated recurrent unit, unrolled.

    x: T[S,N,I], w: T[d,3H,I], r: T[d,3H,H], b: T[d,6H]? -> y: T[S,d,N,H], y_h: T[d,N,H]
    T: float; sequence_lens constant
    """
    loop = _Recurrent(e, node, 3, ["Sigmoid", "Tanh"])
    before = bool(node.attributes.get_int("linear_before_reset", 0))
    steps, last = [], []
    for direction in loop.directions:
        f, g = direction.activations
        wb, rb = loop.bias(direction.index)
        r = loop.weight(2, direction.index)
        h = loop.state(5, direction.index)
        size = loop.hidden
        r_zr, r_h = e.slice(r, 0, 0, 2 * size), e.slice(r, 0, 2 * size, 3 * size)
        rb_zr = e.slice(rb, 0, 0, 2 * size) if rb is not None else None
        rb_h = e.slice(rb, 0, 2 * size, 3 * size) if rb is not None else None
        hs = []
        for step, x in enumerate(loop.projected(direction, wb)):
            zr = e.add(e.slice(x, 1, 0, 2 * size), matmul(e, h, r_zr, transpose_b=True))
            zr = e.add(zr, rb_zr) if rb_zr is not None else zr
            zr = f(e, loop.limited(direction.ready(e, zr)))
            z, reset = split(e, zr, 1, 2)
            share = matmul(e, h if before else e.mul(reset, h), r_h, transpose_b=True)
            share = e.add(share, rb_h) if rb_h is not None else share
            share = e.mul(reset, share) if before else share
            sum_ = direction.ready(e, e.add(e.slice(x, 1, 2 * size, 3 * size), share))
            candidate = g(e, loop.limited(sum_))
            h_new = e.add(candidate, e.mul(z, e.sub(h, candidate)))
            hs.append(loop.zeroed(step, direction, h_new))
            h = loop.kept(step, direction, h_new, h)
        steps.append(hs)
        last.append(h)
    loop.finish(steps, [last])


@lowers("RNN")
def rnn(e: Emitter, node: ir.Node) -> None:
    """Plain recurrent network, unrolled.

    x: T[S,N,I], w: T[d,H,I], r: T[d,H,H], b: T[d,2H]? -> y: T[S,d,N,H], y_h: T[d,N,H]
    T: float; sequence_lens constant
    """
    loop = _Recurrent(e, node, 1, ["Tanh"])
    steps, last = [], []
    for direction in loop.directions:
        wb, rb = loop.bias(direction.index)
        bias = e.add(wb, rb) if wb is not None and rb is not None else None
        r = loop.weight(2, direction.index)
        h = loop.state(5, direction.index)
        hs = []
        for step, x in enumerate(loop.projected(direction, bias)):
            gate = direction.ready(e, e.add(x, matmul(e, h, r, transpose_b=True)))
            h_new = direction.activations[0](e, loop.limited(gate))
            hs.append(loop.zeroed(step, direction, h_new))
            h = loop.kept(step, direction, h_new, h)
        steps.append(hs)
        last.append(h)
    loop.finish(steps, [last])

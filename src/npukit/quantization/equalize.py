# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""Cross-layer equalization and absorption of high biases (arXiv 1906.04721, sections 4.1).

Consecutive layers get weights of even ranges: the channels between them are scaled so that each channel's share of its
layer's largest weight is the same on both sides. Pairs are repeated until nothing changes, which for a depthwise layer
between two others is the paper's rule for three. What the graph computes in float stays the same.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from npukit.qnn.graph import Array, Graph, Op, Tensor
from npukit.quantization.channels import ChannelObserver
from npukit.quantization.roles import weight_axis
from npukit.quantization.spans import (
    Port,
    Span,
    by_inputs,
    constant,
    over_inputs,
    over_outputs,
    put_constant,
    spans,
)

_ROUNDS = 50
_DONE = 1e-3  # largest change of a factor's logarithm in a round that ends it
_MOST = 1e4  # largest factor, and the inverse the smallest
_DEVIATIONS = 3.0  # of the mean that a channel behind a Relu seldom falls below (section 4.1.3)
_CLAMPS = ("Relu6", "ReluMinMax")
# A constant added to all of a channel goes through these as it is.
_SHIFTED = frozenset(("Reshape", "Transpose", "ExpandDims", "Squeeze", "ReduceMean", "StridedSlice", "Split", "Tile"))
_SHIFTED_POOLS = frozenset(("PoolMax2d", "PoolMax3d", "PoolAvg2d", "PoolAvg3d"))


@dataclass(frozen=True)
class Equalized:
    """What was done with the channels between some ops.

    Attributes:
        makers: names of the ops whose weights were divided.
        readers: of those whose weights were multiplied.
        factors: by what, one per channel.
        unclamped: names of ops that were Relu6 or ReluMinMax and are Relu now.
    """

    makers: tuple[str, ...]
    readers: tuple[str, ...]
    factors: Array
    unclamped: tuple[str, ...] = ()

    @property
    def spread(self) -> float:
        """The largest factor divided by the smallest."""
        return float(self.factors.max() / self.factors.min())


def equalize(graph: Graph, *, clamps: bool = False) -> list[Equalized]:
    """Even out the ranges of weights of consecutive layers; `graph` gets new static tensors.

    Pairs of convolutions and FullyConnected or MatMul with constant weights, through Relu, PRelu, pooling and what
    moves; residual Adds tie all layers that feed them.

    Args:
        graph: floats; its ops are changed in place.
        clamps: go through Relu6 and ReluMinMax from zero as well, which become Relu: no longer the same function where
            an activation exceeds the limit.

    Returns:
        What was scaled, in the order of the graph.
    """
    found = [span for span in spans(graph, clamps=clamps) if _has_weights(span)]
    reach = {id(port.op): _kernel_reach(port.op) for span in found for port in (*span.makers, *span.readers)}
    factors = [np.zeros(span.count) for span in found]
    for _ in range(_ROUNDS):
        moved = 0.0
        for span, total in zip(found, factors, strict=True):
            step = _step(span, reach)
            for port in span.makers:
                _scale_outputs(port, reach, -step)
            for port in span.readers:
                reach[id(port.op)] = reach[id(port.op)] * over_inputs(port.op, np.exp(step)[port.channels])
            total += step
            moved = max(moved, float(np.abs(step).max(initial=0)))
        if moved < _DONE:
            break
    result = []
    for span, total in zip(found, factors, strict=True):
        scale = np.clip(np.exp(total), 1 / _MOST, _MOST)
        unclamped = tuple(op.name for op in span.between if op.type in _CLAMPS)
        span.divide(scale)
        for op in span.between:
            if op.type in _CLAMPS:
                op.type, op.params = "Relu", {}
        makers, readers = (tuple(port.op.name for port in ports) for ports in (span.makers, span.readers))
        result.append(Equalized(makers, readers, scale, unclamped))
    return result


def _has_weights(span: Span) -> bool:
    """Whether all that makes it has weights whose ranges can be evened out; a norm's gamma is none."""
    return all(weight_axis(port.op) is not None for port in span.makers)


def _kernel_reach(op: Op) -> Array:
    """Largest magnitudes over the kernel axes, which become 1."""
    values = np.abs(constant(op, 1))
    kernel = 0 if op.type in ("FullyConnected", "MatMul") else values.ndim - 2
    return np.asarray(values.max(axis=tuple(range(kernel)), keepdims=True))


def _scale_outputs(port: Port, reach: dict[int, Array], step: Array) -> None:
    axis = weight_axis(port.op)
    assert axis is not None
    values = reach[id(port.op)]
    reach[id(port.op)] = values * over_outputs(np.exp(step[port.channels]), axis, values.ndim)


def _step(span: Span, reach: dict[int, Array]) -> Array:
    """Logarithms of the factors that make both sides even, their mean zero."""
    out, into = np.zeros(span.count), np.zeros(span.count)
    for port in span.makers:
        values, axis = reach[id(port.op)], weight_axis(port.op)
        assert axis is not None
        own = values.max(axis=tuple(a for a in range(values.ndim) if a != axis))
        np.maximum.at(out, port.channels, own / max(own.max(), 1e-30))
    for port in span.readers:
        own = by_inputs(port.op, reach[id(port.op)], len(port.channels))
        np.maximum.at(into, port.channels, own / max(own.max(), 1e-30))
    alive = (out > 1e-9) & (into > 1e-9)
    step = np.zeros(span.count)
    step[alive] = 0.5 * (np.log(out[alive]) - np.log(into[alive]))
    step[alive] -= step[alive].mean() if alive.any() else 0.0
    return step


# ---------------------------------------------------------------- biases


@dataclass(frozen=True)
class Absorbed:
    """A bias that moved on.

    Attributes:
        maker: name of the op whose outputs lost it.
        readers: names of those whose biases took it up.
        shifts: what was subtracted from each channel.
    """

    maker: str
    readers: tuple[str, ...]
    shifts: Array


def absorbing(graph: Graph) -> list[Tensor]:
    """The tensors whose channels `absorb_bias` wants to know."""
    return [span.makers[0].op.outputs[0] for span in spans(graph) if _shiftable(span)]


def absorb_bias(
    graph: Graph, channels: Mapping[str, ChannelObserver], *, deviations: float = _DEVIATIONS
) -> list[Absorbed]:
    """Move what is constant in a channel from a bias (or a norm's beta) into the biases of the ops that read it.

    Behind a Relu that is what mean - `deviations` * standard deviation of the channel leaves above zero, and the same
    function as long as the channel does not fall below. Without one it is the middle of the channel's range, and
    exactly the same function. Readers with zero padding take none: the padding would no longer be zero.

    Args:
        graph: floats; its ops are changed in place.
        channels: of the tensors of `absorbing(graph)`, by name; those that are missing are left alone.
        deviations: as above.
    """
    done = []
    for span in spans(graph):
        maker = span.makers[0]
        seen = channels.get(maker.op.outputs[0].name)
        if not _shiftable(span) or seen is None or not seen.count.all():
            continue
        if any(op.type == "Relu" for op in span.between):
            spread = np.sqrt(np.maximum(seen.power - seen.mean**2, 0))
            shifts = np.maximum(seen.mean - deviations * spread, 0)
        else:
            shifts = (seen.low.astype(np.float64) + seen.high) / 2
        if not shifts.any():
            continue
        put_constant(maker.op, 2, constant(maker.op, 2) - shifts)
        for port in span.readers:
            weight, axis = constant(port.op, 1), weight_axis(port.op)
            taken = weight * over_inputs(port.op, shifts[port.channels])
            added = taken.sum(axis=tuple(a for a in range(weight.ndim) if a != axis))
            put_constant(port.op, 2, constant(port.op, 2) + added)
        done.append(Absorbed(maker.op.name, tuple(port.op.name for port in span.readers), shifts))
    return done


def _shiftable(span: Span) -> bool:
    """One op with a bias, readers with biases and without padding, and nothing between that a shift does not pass."""
    if len(span.makers) != 1 or not _has_bias(span.makers[0].op):
        return False
    relus = [op for op in span.between if op.type == "Relu"]
    if len(relus) > 1 or (relus and span.between[0] is not relus[0]):
        return False
    passing = all(
        op.type in _SHIFTED or (op.type in _SHIFTED_POOLS and not _pads(op)) for op in span.between[len(relus) :]
    )
    return passing and all(_has_bias(port.op) and not _pads(port.op) for port in span.readers)


def _has_bias(op: Op) -> bool:
    bias = op.inputs[2] if len(op.inputs) > 2 else None
    return bias is not None and bias.data is not None and op.type != "MatMul" and not op.type.startswith("Transpose")


def _pads(op: Op) -> bool:
    amounts = op.params.get("pad_amount")
    return amounts is not None and bool(np.any(np.asarray(amounts.value)))


def copied(graph: Graph) -> Graph:
    """A graph that can be equalized while `graph` stays as it is: its own ops, the same tensors."""
    ops = [replace(op, inputs=list(op.inputs), outputs=list(op.outputs), params=dict(op.params)) for op in graph.ops]
    return Graph(graph.name, list(graph.inputs), list(graph.outputs), ops)

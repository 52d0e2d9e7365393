# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""Smoothing of activation outliers (SmoothQuant, arXiv 2211.10438).

An activation has one scale for all its channels, so a few large channels leave the others few steps. Dividing channel
j by s_j = max|x_j|^alpha / max|w_j|^(1 - alpha), and multiplying the weights that read it, moves the difficulty into
the weights. The division goes into what makes the channel: a norm's gamma and beta, a constant factor, or the weights
of the layer before. What the graph computes in float stays the same.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from npukit.qnn.graph import Array, Graph, Tensor
from npukit.quantization.channels import ChannelObserver
from npukit.quantization.roles import weight_axis
from npukit.quantization.spans import Port, Span, by_inputs, constant, over_inputs, spans

ALPHAS = (0.25, 0.4, 0.5, 0.6, 0.75, 0.9)
"""What is tried where no alpha is given."""

_MOST = 1e4  # largest factor, and the inverse the smallest
_GAIN = 0.95  # the estimated error must fall below this share of what it was


@dataclass(frozen=True)
class Smoothed:
    """What was done with the channels between some ops.

    Attributes:
        makers: names of the ops whose outputs were divided.
        readers: of those whose weights were multiplied.
        factors: by what, one per channel; their geometric mean is 1.
        alpha: the share of the difficulty that the weights take.
        gain: estimated noise of the readers' outputs before, divided by that after.
    """

    makers: tuple[str, ...]
    readers: tuple[str, ...]
    factors: Array
    alpha: float
    gain: float

    @property
    def spread(self) -> float:
        """The largest factor divided by the smallest."""
        return float(self.factors.max() / self.factors.min())


def smoothing(graph: Graph) -> list[Tensor]:
    """The tensors whose channels `smooth` wants to know."""
    found = {id(t): t for span in spans(graph) for port in span.readers if (t := port.op.inputs[0]) is not None}
    return list(found.values())


def smooth(
    graph: Graph,
    channels: Mapping[str, ChannelObserver],
    alpha: float | None = None,
    *,
    activations: int = 8,
    weights: int = 8,
) -> list[Smoothed]:
    """Even out the channels of activations that layers with weights read.

    Args:
        graph: floats; its ops get new static tensors.
        channels: of the tensors of `smoothing(graph)`, by name; what reads a missing one is left alone.
        alpha: 0 to 1; None to take, for each place, the one of ALPHAS with the least estimated noise, or to leave it
            as it is where none helps.
        activations: bits, for the estimate.
        weights: bits, for the estimate.

    Returns:
        What was scaled, in the order of the graph.
    """
    done = []
    stale: set[int] = set()  # readers whose input is no longer what `channels` says
    for span in spans(graph):
        side = _Side.of(span, channels)
        if side is None or any(id(port.op) in stale for port in span.readers):
            continue
        before = side.noise(np.ones(span.count), activations, weights)
        tried = [
            (side.noise(side.factors(a), activations, weights), a) for a in (ALPHAS if alpha is None else (alpha,))
        ]
        after, best = min(tried)
        if alpha is None and not after < _GAIN * before:
            continue
        factors = side.factors(best)
        span.divide(factors)
        stale.update(id(port.op) for port in span.readers)
        makers, readers = (tuple(port.op.name for port in ports) for ports in (span.makers, span.readers))
        done.append(Smoothed(makers, readers, factors, best, before / max(after, 1e-30)))
    return done


@dataclass(frozen=True)
class _Side:
    """What reads a span: its activations' figures, and the weights.

    Attributes:
        span: which.
        low, high, power: of each channel over all its readers.
        reach: largest magnitude of each channel.
        readers: the weights that read it.
        weights: largest magnitude that reads each channel.
        own: whether each weight that reads it has a scale for each channel of the input (depthwise).
    """

    span: Span
    low: Array
    high: Array
    power: Array
    reach: Array
    readers: tuple[_Reader, ...]
    weights: Array
    own: bool

    @classmethod
    def of(cls, span: Span, channels: Mapping[str, ChannelObserver]) -> _Side | None:
        low, high, power, weights = (np.zeros(span.count) for _ in range(4))
        readers = []
        for port in span.readers:
            tensor = port.op.inputs[0]
            seen = None if tensor is None else channels.get(tensor.name)
            if seen is None or not seen.count.all() or len(port.channels) != seen.channels:
                return None
            np.minimum.at(low, port.channels, seen.low)
            np.maximum.at(high, port.channels, seen.high)
            np.maximum.at(power, port.channels, seen.power)
            readers.append(_Reader.of(port))
            np.maximum.at(weights, port.channels, by_inputs(port.op, readers[-1].peaks, len(port.channels)))
        depthwise = all(port.op.type.startswith("DepthWise") for port in span.readers)
        return cls(span, low, high, power, np.maximum(-low, high), tuple(readers), weights, depthwise)

    def factors(self, alpha: float) -> Array:
        """S of each channel, of geometric mean 1; 1 for a channel without values or weights."""
        found = np.ones(self.span.count)
        alive = (self.reach > 1e-9 * self.reach.max(initial=0)) & (self.weights > 1e-9 * self.weights.max(initial=0))
        if not alive.any():
            return found
        # Depthwise weights have a scale for each channel anyhow: nothing is lost by taking all of the difficulty.
        ratio = np.log(self.reach[alive]) * (1.0 if self.own else alpha)
        if not self.own:
            ratio -= np.log(self.weights[alive]) * (1 - alpha)
        found[alive] = np.clip(np.exp(ratio - ratio.mean()), 1 / _MOST, _MOST)
        return found

    def noise(self, factors: Array, activations: int, weights: int) -> float:
        """Estimated mean square error of the readers' outputs, summed, each relative to its output's power."""
        low, high = (self.low / factors).min(), (self.high / factors).max()
        step = (high - low) / (2**activations - 1)
        return sum(reader.noise(factors, self.power, step, weights) for reader in self.readers)


@dataclass(frozen=True)
class _Reader:
    """A weight, as far as the noise depends on it: summed up once, for all factors that are tried.

    Attributes:
        port: the op and its channels.
        peaks: largest magnitudes over the kernel's axes, laid out as the weight with those axes 1.
        energy: sums of squares for each channel of the input, as `over_inputs` lays such figures out.
        others: the axes that share a scale.
        shared: how many numbers of the weight share one.
    """

    port: Port
    peaks: Array
    energy: Array
    others: tuple[int, ...]
    shared: int

    @classmethod
    def of(cls, port: Port) -> _Reader:
        op = port.op
        values = constant(op, 1).astype(np.float32)
        axis = weight_axis(op)
        assert axis is not None
        kernel = () if op.type in ("FullyConnected", "MatMul") else tuple(range(values.ndim - 2))
        laid = _laid(port, np.ones(len(port.channels)), values.ndim).shape
        alike = tuple(a for a, extent in enumerate(laid) if extent == 1)
        squares = np.square(values).sum(axis=alike, keepdims=True, dtype=np.float64)
        others = tuple(a for a in range(values.ndim) if a != axis)
        peaks = np.abs(values).max(axis=kernel, keepdims=True)
        return cls(port, peaks, squares, others, values.size // values.shape[axis])

    def noise(self, factors: Array, power: Array, step: float, bits: int) -> float:
        """Rounding of the input goes through the weights, rounding of the weights is multiplied with the input."""
        rank = self.peaks.ndim
        scale, seen = (_laid(self.port, figures[self.port.channels], rank) for figures in (factors, power))
        reach = (self.peaks * scale.astype(np.float32)).max(axis=self.others)
        steps = reach.astype(np.float64) / (2 ** (bits - 1) - 1)
        spread = (seen / scale**2).mean(axis=self.others) * self.shared  # of one scale, or of all alike
        from_inputs = step**2 * float((self.energy * scale**2).sum())
        from_weights = float((steps**2 * spread).sum())
        return (from_inputs + from_weights) / 12 / max(float((self.energy * seen).sum()), 1e-30)


def _laid(port: Port, figures: Array, rank: int) -> Array:
    """Figures of the input's channels, with as many axes as the weight."""
    found = over_inputs(port.op, figures)
    return found.reshape((1,) * (rank - found.ndim) + found.shape)

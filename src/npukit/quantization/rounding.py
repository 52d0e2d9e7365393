# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""Rounding of weights by data: GPTQ (arXiv 2210.17323), and AdaRound's objective (arXiv 2004.10568) by descent.

Nearest rounding minimizes the error of each weight; what counts is the error of the output, E[((w - q) x)^2] =
(w - q) H (w - q)^T with H = E[x x^T]. Weights are rounded one input after the other, and each takes over what can be
made up of the errors before it. With H = R R^T, R upper triangular with diagonal D and R = (I + U) D, the weight at
input k is rounded after (w - q)_j U_jk of all j < k was added to it (arXiv 2307.13304, section 3): no inverse, all
output channels at once.

AdaRound minimizes the same error, for each output channel a quadratic problem in binary unknowns (up or down), by
gradient descent on a soft rounding that a regularizer drives to either. "adaround" here has that objective, and differs
in how and among what: coordinate descent over all codes, from the better of nearest and GPTQ: each weight in turn gets
the code that is best with all others as they are, until none moves. So no channel is worse than with either. The
paper's relaxation, 10,000 steps of it, stayed behind GPTQ in more than a hundred times as long
(docs/results/quantization-rounding.md). H is of the float network's inputs, and no activation function counts: the
paper's asymmetric reconstruction, with inputs of the quantized network, is not done.

A bias that is corrected takes up the mean error; H is then the covariance of x.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from npukit.errors import InputError, UsageError, nearest
from npukit.qnn.graph import Array, DType, Encoding, Graph, Op, Tensor
from npukit.quantization.ranges import codes, float32_scale, reals
from npukit.quantization.roles import weight_axis
from npukit.quantization.spans import over_outputs
from npukit.raising.encodings import code_range

LARGEST = 4608
"""Inputs of one second-moment matrix; more are cut into matrices of their own."""

SHARES = (1.0, 0.95, 1.05, 0.9)
"""Of a scale, that `round_and_fit` tries."""

ROUNDINGS = ("gptq", "adaround")
"""Ways of `round_weights`."""

_ROWS = 512  # of one sample and layer; more of the same sample bring nothing (measured)
_WORK = 2e9  # multiplications for the second moments of one sample and layer
_DAMPING = 0.02  # of the mean diagonal, added to it
_BLOCK = 64  # columns between two matrix products
_SWEEPS = 20  # of a descent at most; of 4 bits on the networks tried 3 gain all but 0.01 dB


@dataclass(frozen=True)
class Geometry:
    """How an op's weight and input are matrices: output [group, out] = weight [group, out, in] times rows.

    Attributes:
        kind: op type.
        groups: that do not mix: 1, the convolution's groups, or a depthwise layer's channels.
        inputs: length of a row in a group, kernel taps times channels.
        kernel, stride, dilation, pads: of a convolution, () otherwise.
        turned: a MatMul's weight is [in, out].
    """

    kind: str
    groups: int
    inputs: int
    kernel: tuple[int, ...] = ()
    stride: tuple[int, ...] = ()
    dilation: tuple[int, ...] = ()
    pads: tuple[tuple[int, int], ...] = ()
    turned: bool = False

    @classmethod
    def of(cls, op: Op) -> Geometry | None:
        """None for an op without weights, or one whose input is not gathered in rows (transposed convolutions)."""
        axis = weight_axis(op)
        if axis is None or op.type.startswith("TransposeConv"):
            return None
        weight = op.inputs[1]
        assert weight is not None
        if op.type == "FullyConnected":
            return cls(op.type, 1, weight.shape[1])
        if op.type == "MatMul":
            flipped = op.params.get("transpose_in0")
            if math.prod(weight.shape[:-2]) != 1 or (flipped is not None and flipped.value):
                return None
            turned = axis == weight.rank - 1
            return cls(op.type, 1, weight.shape[-2 if turned else -1], turned=turned)
        kernel = weight.shape[:-2]
        depthwise = op.type.startswith("DepthWise")
        channels = op.inputs[0].shape[-1] if op.inputs[0] is not None else 0
        groups = channels if depthwise else channels // weight.shape[-2]
        taps = math.prod(kernel)

        def values(name: str, other: int) -> list[int]:
            found = op.params.get(name)
            return [other] * len(kernel) if found is None else [int(v) for v in np.asarray(found.value).reshape(-1)]

        pads = values("pad_amount", 0)
        if len(pads) != 2 * len(kernel):
            pads = [0] * (2 * len(kernel))
        return cls(
            op.type, groups, taps * (1 if depthwise else weight.shape[-2]), kernel, tuple(values("stride", 1)),
            tuple(values("dilation", 1)), tuple(zip(pads[::2], pads[1::2], strict=True)),
        )  # fmt: skip

    def matrix(self, values: Array) -> Array:
        """A weight as [groups, out of a group, inputs]."""
        if self.kind == "FullyConnected":
            return values[None]
        if self.kind == "MatMul":
            inner: Array = values.reshape(values.shape[-2:])
            return (inner.T if self.turned else inner)[None]
        flat: Array = values.reshape(-1, values.shape[-1])  # [taps * in, out]
        return flat.T.reshape(self.groups, -1, self.inputs)

    def restored(self, matrix: Array, shape: tuple[int, ...]) -> Array:
        """The inverse of `matrix`."""
        if self.kind == "MatMul" and self.turned:
            return np.ascontiguousarray(matrix[0].T).reshape(shape)
        if not self.kernel:
            return matrix.reshape(shape)
        return np.ascontiguousarray(matrix.reshape(-1, self.inputs).T).reshape(shape)

    def rows(self, array: Array, most: int, seed: int = 0) -> Array:
        """At most `most` rows [rows, groups, inputs] that an input is multiplied in, evenly picked; float32."""
        if not self.kernel:
            flat = np.asarray(array, np.float32).reshape(-1, 1, self.inputs)
            return flat[_picked(len(flat), most, seed)]
        values = np.asarray(array)
        sizes = values.shape[1:-1]
        before = [pad[0] for pad in self.pads]
        extents = [
            (size + sum(pad) - (k - 1) * d - 1) // s + 1
            for size, pad, k, d, s in zip(sizes, self.pads, self.kernel, self.dilation, self.stride, strict=True)
        ]
        picked = _picked(len(values) * math.prod(extents), most, seed)
        batch, *places = np.unravel_index(picked, (len(values), *extents))
        taps = np.indices(self.kernel).reshape(len(self.kernel), -1)
        index = [
            place[:, None] * s + tap[None] * d - first
            for place, tap, s, d, first in zip(places, taps, self.stride, self.dilation, before, strict=True)
        ]
        inside = [np.clip(i, 0, size - 1) for i, size in zip(index, sizes, strict=True)]
        found = values[(batch[:, None], *inside)].astype(np.float32, copy=False)  # [rows, taps, channels]
        if any(first or last for first, last in self.pads):
            outside = np.any([i != j for i, j in zip(index, inside, strict=True)], axis=0)
            found[outside] = 0
        count, size, channels = found.shape
        # A row of a group is [tap, channel of the group], as the weight has it.
        parts = found.reshape(count, size, self.groups, channels // self.groups)
        return np.ascontiguousarray(parts.transpose(0, 2, 1, 3)).reshape(count, self.groups, self.inputs)


def _picked(count: int, most: int, seed: int) -> Array:
    """Evenly spread places of `count`, at most `most`; shifted by `seed`, so that samples do not all give the same."""
    if count <= most:
        return np.arange(count)
    start = (seed * 0.618034) % 1.0
    return np.minimum(((np.arange(most) + start) * count / most).astype(np.int64), count - 1)


class SecondMoments:
    """E[x x^T] and E[x] of the rows that an op multiplies with its weight.

    Memory: 4 bytes * groups * inputs * min(inputs, LARGEST).

    Attributes:
        geometry: of the op.
        rows: seen so far.
        samples: seen so far.
        parts: slices of the inputs that have a matrix each.
        sums: of x x^T, float32 [groups, n, n] for each part.
        totals: of x, float64 [groups, inputs].
    """

    def __init__(self, geometry: Geometry, *, largest: int = LARGEST) -> None:
        self.geometry = geometry
        self.rows = 0
        self.samples = 0
        count = -(-geometry.inputs // largest)
        edges = [round(i * geometry.inputs / count) for i in range(count + 1)]
        self.parts = [slice(a, b) for a, b in zip(edges, edges[1:], strict=False)]
        self.sums = [np.zeros((geometry.groups, p.stop - p.start, p.stop - p.start), np.float32) for p in self.parts]
        self.totals = np.zeros((geometry.groups, geometry.inputs))
        work = geometry.groups * sum((p.stop - p.start) ** 2 for p in self.parts)
        self._most = int(np.clip(_WORK / work, 32, _ROWS))

    @property
    def nbytes(self) -> int:
        return sum(part.nbytes for part in self.sums)

    def update(self, array: Array) -> None:
        """Take in the op's input of one sample; some of its rows."""
        rows = self.geometry.rows(array, self._most, self.samples)
        self.samples += 1
        self.rows += len(rows)
        self.totals += rows.sum(axis=0, dtype=np.float64)
        for part, total in zip(self.parts, self.sums, strict=True):
            own = rows[:, :, part].transpose(1, 2, 0)
            total += own @ own.transpose(0, 2, 1)

    @property
    def mean(self) -> Array:
        """E[x], float64 [groups, inputs]."""
        return self.totals / max(self.rows, 1)

    def matrices(self, *, centred: bool) -> list[Array]:
        """E[x x^T], or the covariance, of each part: float64 [groups, n, n]."""
        found = []
        for part, total in zip(self.parts, self.sums, strict=True):
            moment = total.astype(np.float64) / max(self.rows, 1)
            if centred:
                mean = self.mean[:, part]
                moment -= mean[:, :, None] * mean[:, None, :]
            found.append(moment)
        return found


class Moments:
    """Second moments for all ops of a graph that `round_weights` can round; ops that read the same rows share them.

    Args:
        graph: floats.
        largest: inputs of one matrix.
        limit: bytes that all matrices may take; ops beyond keep nearest rounding and are in `left_out`.

    Attributes:
        by_op: op name -> its moments.
        tensors: the activations to be fed, by name.
        left_out: op name -> why it has none.
    """

    def __init__(self, graph: Graph, *, largest: int = LARGEST, limit: int = 2 << 30) -> None:
        self.by_op: dict[str, SecondMoments] = {}
        self.tensors: dict[str, Tensor] = {}
        self.left_out: dict[str, str] = {}
        self._by_tensor: dict[str, dict[Geometry, SecondMoments]] = {}
        used = 0
        for op in graph.ops:
            if weight_axis(op) is None:
                continue
            geometry, tensor = Geometry.of(op), op.inputs[0]
            if geometry is None or tensor is None or not tensor.dtype.is_float:
                self.left_out[op.name] = f"{op.type} of this form is rounded to nearest"
                continue
            known = self._by_tensor.setdefault(tensor.name, {})
            if geometry not in known:
                size = 4 * geometry.groups * geometry.inputs * min(geometry.inputs, largest)
                if used + size > limit:
                    self.left_out[op.name] = f"its second moments take {size >> 20} MiB, and all may take {limit >> 20}"
                    continue
                known[geometry] = SecondMoments(geometry, largest=largest)
                used += known[geometry].nbytes
            self.by_op[op.name] = known[geometry]
            self.tensors[tensor.name] = tensor

    def update(self, name: str, array: Array) -> None:
        """Take in what the tensor `name` is in one sample; other tensors are ignored."""
        for moments in self._by_tensor.get(name, {}).values():
            moments.update(array)

    def state(self) -> dict[str, Array]:
        """Everything seen so far, for `restore`."""
        found: dict[str, Array] = {}
        for index, moments in enumerate(self._all()):
            found[f"{index}/counts"] = np.array([moments.rows, moments.samples], np.int64)
            found[f"{index}/mean"] = moments.mean
            found.update({f"{index}/{i}": part for i, part in enumerate(moments.sums)})
        return found

    def restore(self, state: Mapping[str, Array]) -> None:
        """Go on where `state` was taken; of the same graph and options."""
        for index, moments in enumerate(self._all()):
            moments.rows, moments.samples = (int(i) for i in state[f"{index}/counts"])
            moments.totals = np.asarray(state[f"{index}/mean"]) * moments.rows
            moments.sums = [np.array(state[f"{index}/{i}"], np.float32) for i in range(len(moments.parts))]

    def _all(self) -> list[SecondMoments]:
        return [moments for known in self._by_tensor.values() for moments in known.values()]


def round_weights(
    op: Op,
    weight: Array,
    encoding: Encoding,
    moments: SecondMoments,
    *,
    centred: bool = False,
    dtype: DType = DType.SFIXED_POINT_8,
    limits: tuple[int, int] | None = None,
    method: str = "gptq",
    damping: float = _DAMPING,
) -> Array:
    """Codes of a weight that give the least error of the output.

    Args:
        op: with that weight.
        weight: floats as the op has them.
        encoding: per tensor, per channel or block-wise; stays as it is.
        moments: of the op's input.
        centred: the mean error will be taken up by the bias.
        dtype: of the codes.
        limits: lowest and highest code, when fewer are in use than the encoding has.
        method: of ROUNDINGS.
        damping: share of the mean diagonal of the moments that GPTQ adds to it.

    Returns:
        Codes, the shape of `weight`. No output channel has a larger error on the moments than with nearest rounding;
        with "adaround" none has a larger one than with "gptq" either.

    Raises:
        InputError: nothing was observed, or the moments are of another op.
        UsageError: there is no such method.
    """
    if method not in ROUNDINGS:
        raise UsageError(f"there is no rounding {method!r}", hint=nearest(method, ROUNDINGS))
    geometry = moments.geometry
    check(op, weight, moments)
    low, high = limits or code_range(dtype, encoding)
    floats, steps = grids(geometry, weight, encoding, dtype)
    found = geometry.matrix(codes(weight, encoding, dtype, limits=limits)).astype(np.float64)
    for part, moment in zip(moments.parts, moments.matrices(centred=centred), strict=True):
        wanted, step, near = floats[:, :, part], steps[:, :, part], found[:, :, part]
        own = _Factor.of(moment, damping).rounded(wanted, step, low, high)
        better = loss(wanted - own * step, moment) < loss(wanted - near * step, moment)
        best = np.where(better[:, :, None], own, near)
        found[:, :, part] = best if method == "gptq" else _descended(wanted, step, best, moment, (low, high))
    return geometry.restored(found, weight.shape).astype(dtype.numpy)


def round_and_fit(
    op: Op,
    weight: Array,
    encoding: Encoding,
    moments: SecondMoments,
    *,
    centred: bool = False,
    dtype: DType = DType.SFIXED_POINT_8,
    method: str = "gptq",
    shares: Sequence[float] = SHARES,
) -> tuple[Array, Encoding]:
    """`round_weights`, with the scale of each channel times one of `shares`, whichever gives the least error.

    For 4 bits, where it brings 0.3 to 0.5 dB; takes as many times as long as there are shares.
    """
    if encoding.block_scales is not None or encoding.block_shape is not None:
        return round_weights(op, weight, encoding, moments, centred=centred, dtype=dtype, method=method), encoding
    base = np.asarray(encoding.scales, np.float64)
    best, scales = np.full(len(base), np.inf), base.copy()
    kept: Array | None = None
    for share in shares:
        tried = replace(encoding, scales=tuple(float32_scale(scale * share) for scale in base))
        found = round_weights(op, weight, tried, moments, centred=centred, dtype=dtype, method=method)
        errors = output_error(weight, reals(found, tried), moments, centred=centred)
        errors = errors if len(errors) == len(base) else errors.sum(keepdims=True)
        wins = errors < best
        best, scales = np.where(wins, errors, best), np.where(wins, tried.scales, scales)
        chosen = over_outputs(wins, encoding.axis, weight.ndim)
        kept = found if kept is None else np.where(chosen, found, kept)
    assert kept is not None
    return kept, replace(encoding, scales=tuple(float(scale) for scale in scales))


def check(op: Op, weight: Array, moments: SecondMoments) -> None:
    """InputError where the moments cannot be those of the op's input."""
    geometry = moments.geometry
    if not moments.rows:
        raise InputError("no input was observed", where=f"op {op.name!r}", hint="give at least one sample")
    if Geometry.of(op) != geometry or weight.size % (geometry.inputs * geometry.groups):
        raise InputError("the second moments are of an op of another form", where=f"op {op.name!r}")


def grids(geometry: Geometry, weight: Array, encoding: Encoding, dtype: DType) -> tuple[Array, Array]:
    """Weights relative to code 0 and the worth of a step, [groups, out, in]."""
    zeros = reals(np.zeros(weight.shape, dtype.numpy), encoding).astype(np.float64)
    steps = reals(np.ones(weight.shape, dtype.numpy), encoding) - zeros
    return geometry.matrix(np.asarray(weight, np.float64) - zeros), geometry.matrix(steps)


def loss(error: Array, moment: Array) -> Array:
    """(w - q) H (w - q)^T of every output channel [groups, out]."""
    return np.asarray(((error @ moment) * error).sum(axis=2))


@dataclass(frozen=True)
class _Factor:
    """How errors are carried on.

    Attributes:
        order: of the inputs: what counts most first, while others can make up for it.
        upper: [groups, in, in] in that order, upper triangular with ones on the diagonal.
    """

    order: Array
    upper: Array

    @classmethod
    def of(cls, moment: Array, damping: float) -> _Factor:
        diagonal = np.einsum("gii->gi", moment)
        order = np.argsort(-diagonal.sum(axis=0), kind="stable")
        matrix = moment[:, order][:, :, order]
        inner = np.einsum("gii->gi", matrix)  # a view of the diagonal
        inner += np.maximum(damping * diagonal.mean(axis=1, keepdims=True), 1e-20)
        # H = R R^T with R upper triangular: the Cholesky factor of the matrix with its axes reversed.
        upper = np.linalg.cholesky(matrix[:, ::-1, ::-1])[:, ::-1, ::-1]
        return cls(order, upper / np.einsum("gii->gi", upper)[:, None, :])

    def rounded(self, floats: Array, steps: Array, low: int, high: int) -> Array:
        """Codes of weights; all [groups, out, in]."""
        wanted, step = floats[:, :, self.order], steps[:, :, self.order]
        quantized, error = np.empty_like(wanted), np.zeros_like(wanted)
        count = wanted.shape[2]
        for begin in range(0, count, _BLOCK):
            end = min(begin + _BLOCK, count)
            carried = wanted[:, :, begin:end] + error[:, :, :begin] @ self.upper[:, :begin, begin:end]
            for k in range(begin, end):
                inside = np.matmul(error[:, :, begin:k], self.upper[:, begin:k, k, None])[:, :, 0]
                near = np.rint((carried[:, :, k - begin] + inside) / step[:, :, k])
                quantized[:, :, k] = np.clip(near, low, high)
                error[:, :, k] = wanted[:, :, k] - quantized[:, :, k] * step[:, :, k]
        found = np.empty_like(quantized)
        found[:, :, self.order] = quantized
        return found


def _descended(floats: Array, steps: Array, start: Array, moment: Array, limits: tuple[int, int]) -> Array:
    """Codes [groups, out, in] that no change of a single one makes better, from `start` on; never worse than it."""
    found, error = start.copy(), floats - start * steps
    count = floats.shape[2]
    for _ in range(_SWEEPS):
        moved = False
        for begin in range(0, count, _BLOCK):
            columns = slice(begin, min(begin + _BLOCK, count))
            slope = error @ moment[:, :, columns]
            for k in range(columns.start, columns.stop):
                # The error is a parabola of one code; its least is where the slope is zero.
                bend = np.maximum(moment[:, k, k, None], 0) * steps[:, :, k]
                best = np.rint(np.divide(slope[:, :, k - begin], bend, out=np.zeros_like(bend), where=bend > 0))
                change = np.clip(found[:, :, k] + best, *limits) - found[:, :, k]
                if change.any():
                    moved = True
                    found[:, :, k] += change
                    change *= steps[:, :, k]
                    error[:, :, k] -= change
                    slope -= change[:, :, None] * moment[:, k, None, columns]
        if not moved:
            break
    return found


def bias_shift(op: Op, weight: Array, quantized: Array, moments: SecondMoments) -> Array:
    """What the mean error of a weight makes of the mean input, to be added to the bias: float64 [out].

    Args:
        op: with that weight.
        weight: floats.
        quantized: the reals that became of it.
        moments: of the op's input; zero padding counts as the op sees it.
    """
    del op
    error = moments.geometry.matrix(np.asarray(weight, np.float64) - quantized)
    return np.asarray((error * moments.mean[:, None, :]).sum(axis=2)).reshape(-1)


def output_error(weight: Array, quantized: Array, moments: SecondMoments, *, centred: bool = False) -> Array:
    """E[((w - q) x)^2] of every output channel, float64 [out]; parts count as independent."""
    error = moments.geometry.matrix(np.asarray(weight, np.float64) - quantized)
    total = np.zeros(error.shape[:2])
    for part, moment in zip(moments.parts, moments.matrices(centred=centred), strict=True):
        total += loss(error[:, :, part], moment)
    return total.reshape(-1)

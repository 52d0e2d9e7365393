# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""What calibration keeps of a tensor: a histogram of fixed size, whatever the number of samples.

Bins lie on a grid of a power-of-two width, aligned at zero. A value outside doubles the width, and pairs of bins merge
into one: the histogram is the same as if it had been that wide from the start, so one pass over the data is enough,
and histograms of two machines or two runs can be added.
"""

from __future__ import annotations

import functools
import math
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from npukit.errors import InputError, UsageError, nearest
from npukit.qnn.graph import Array
from npukit.quantization.channels import ChannelObserver as ChannelObserver
from npukit.quantization.ranges import MIN_RANGE, Range, check_bits

_CHUNK = 1 << 15  # elements at once: the copies of a chunk stay in the cache
_LANES = 4  # counters per bin while counting: runs of equal values (zeros of a Relu) need not wait for each other
_SMALL = 8192  # elements of an array that is counted in the bins themselves
_LEAST_EXPONENT = -126  # of a bin's width, so that its inverse is a float32


class Observer:
    """Streaming statistics of one tensor.

    Memory is fixed by `bins`; about 1.5 ns an element. NaN and infinities are counted and left out of all else.

    Args:
        bins: of the histogram; between half of them and all are in use.
        stride: 2 or more counts only every so many elements in the histogram (low, high, mean and counts see all).

    Attributes:
        low: smallest finite value (inf before the first).
        high: largest finite value (-inf before the first).
        count: finite values seen.
        zeros: exact zeros among them; they are in no bin, as zero has no quantization error.
        sampled: finite values that histogram and `zeros` hold together (`count` where stride is 1).
        nans: NaNs seen.
        infs: infinities seen.
        batches: calls of `update`.
    """

    def __init__(self, bins: int = 2048, *, stride: int = 1) -> None:
        if bins < 64 or stride < 1:
            raise UsageError(
                f"a histogram of {bins} bins and stride {stride} cannot be", hint="bins >= 64, stride >= 1"
            )
        self.bins = bins
        self.stride = stride
        self.low, self.high = math.inf, -math.inf
        self.count = self.zeros = self.sampled = self.nans = self.infs = self.batches = 0
        self._sum = self._squares = 0.0
        self._exponent: int | None = None  # of the bins' width; None while only zeros were seen
        self._start = 0  # grid index of the first bin: it begins at _start * 2**_exponent
        self._counts = np.zeros(bins, np.int64)

    @property
    def mean(self) -> float:
        return self._sum / self.count if self.count else 0.0

    @property
    def power(self) -> float:
        """Mean of the squares."""
        return self._squares / self.count if self.count else 0.0

    @property
    def constant(self) -> bool:
        """Whether all finite values are equal."""
        return self.count > 0 and self.low == self.high

    @property
    def range(self) -> Range:
        """From the smallest to the largest finite value; InputError when there is none."""
        if not self.count:
            what = "only NaN and infinite values were seen" if self.nans or self.infs else "no value was seen"
            raise InputError(f"{what}, so there is no range", hint="check the calibration data and the model")
        return Range(self.low, self.high)

    def update(self, array: Array) -> None:
        """Take in an array of any shape; numbers are taken as float32."""
        self.batches += 1
        flat = np.asarray(array).reshape(-1)
        lanes: Array | None = None
        for begin in range(0, flat.size, _CHUNK):
            with np.errstate(over="ignore"):
                chunk = flat[begin : begin + _CHUNK].astype(np.float32, copy=False)
            low, high = float(chunk.min()), float(chunk.max())
            if not (math.isfinite(low) and math.isfinite(high)):
                chunk = self._finite(chunk)
                if not chunk.size:
                    continue
                low, high = float(chunk.min()), float(chunk.max())
            self._moments(chunk)
            if not self._holds(low, high):
                self._fold(lanes)
                lanes = None
                self._widen(low, high)
            self.low, self.high = min(self.low, low), max(self.high, high)
            if self.stride > 1:
                chunk = chunk[:: self.stride]
            self.sampled += chunk.size
            zeros = int(np.count_nonzero(chunk == 0))
            self.zeros += zeros
            if zeros == chunk.size or self._exponent is None:
                continue
            if lanes is None:
                small = flat.size < _SMALL
                lanes = self._counts[None] if small else np.zeros((_LANES, self.bins), np.int64)
            # The zeros fall into the bin that begins at zero: they are taken out again, cheaper than leaving them out.
            _SCRATCH.count(chunk, self._exponent, self._start, lanes)
            lanes[0, -self._start] -= zeros
        self._fold(lanes)

    def _finite(self, chunk: Array) -> Array:
        kept = np.isfinite(chunk)
        nans = int(np.count_nonzero(np.isnan(chunk)))
        self.nans += nans
        self.infs += int(chunk.size - np.count_nonzero(kept)) - nans
        finite: Array = chunk[kept]
        return finite

    def _moments(self, chunk: Array) -> None:
        with np.errstate(over="ignore"):
            total, squares = float(chunk.sum()), float(chunk.dot(chunk))
        if not (math.isfinite(total) and math.isfinite(squares)):
            wide = chunk.astype(np.float64)
            total, squares = float(wide.sum()), float(wide.dot(wide))
        self.count += chunk.size
        self._sum += total
        self._squares += squares

    def _holds(self, low: float, high: float) -> bool:
        if self._exponent is None:
            return low == high == 0.0
        return self.low <= low and high <= self.high

    def _widen(self, low: float, high: float) -> None:
        """Make the bins reach from `low` to `high` and over what they hold."""
        low, high = min(low, self.low, 0.0), max(high, self.high, 0.0)
        exponent = self._exponent
        if exponent is None:
            reach = max(-low, high)
            exponent = max(math.frexp(reach)[1] - self.bins.bit_length(), _LEAST_EXPONENT)
        while math.floor(math.ldexp(high, -exponent)) - math.floor(math.ldexp(low, -exponent)) >= self.bins:
            exponent += 1
        self._rebin(exponent, math.floor(math.ldexp(low, -exponent)))

    def _rebin(self, exponent: int, start: int) -> None:
        """Move the counts onto bins of width 2**exponent, not narrower than now, the first of them at `start`."""
        if self._exponent is not None:
            used = np.flatnonzero(self._counts)
            counts = np.zeros(self.bins, np.int64)
            np.add.at(counts, ((used + self._start) >> (exponent - self._exponent)) - start, self._counts[used])
            self._counts = counts
        self._exponent, self._start = exponent, start

    def _fold(self, lanes: Array | None) -> None:
        if lanes is not None and len(lanes) > 1:
            self._counts += lanes.sum(axis=0)

    def histogram(self) -> tuple[Array, Array]:
        """Edges [n + 1] (float64, ascending) and counts [n] (int64) of the bins in use, zeros left out.

        The outer edges are the smallest and largest value. Empty when only zeros were seen.
        """
        used = np.flatnonzero(self._counts)
        if self._exponent is None or not used.size:
            return np.zeros(1), np.zeros(0, np.int64)
        first, last = int(used[0]), int(used[-1])
        width = math.ldexp(1.0, self._exponent)
        edges = (np.arange(first, last + 2, dtype=np.float64) + self._start) * width
        # A bin keeps some width, so that density stays finite where all its values are one.
        edges[0] = min(max(edges[0], self.low), edges[1] - width / 1024)
        edges[-1] = max(min(edges[-1], self.high), edges[-2] + width / 1024)
        return edges, self._counts[first : last + 1].copy()

    def _sides(self) -> tuple[Array, Array, float]:
        """Counts of the bins below and above zero, both outwards from zero, and the width of a bin."""
        if self._exponent is None:
            return self._counts[:0], self._counts[:0], 0.0
        sides = self._counts[: -self._start][::-1], self._counts[-self._start :]
        below, above = (np.trim_zeros(side, "b") for side in sides)
        return below, above, math.ldexp(1.0, self._exponent)

    def merge(self, other: Observer) -> None:
        """Add what `other` saw. UsageError when its number of bins or its stride differs."""
        if (self.bins, self.stride) != (other.bins, other.stride):
            raise UsageError("observers with different bins or strides do not merge")
        for name in ("count", "zeros", "sampled", "nans", "infs", "batches", "_sum", "_squares"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        if other._exponent is not None:
            mine = self._exponent
            exponent = other._exponent if mine is None else max(mine, other._exponent)
            low, high = min(self.low, other.low, 0.0), max(self.high, other.high, 0.0)
            while math.floor(math.ldexp(high, -exponent)) - math.floor(math.ldexp(low, -exponent)) >= self.bins:
                exponent += 1
            start = math.floor(math.ldexp(low, -exponent))
            self._rebin(exponent, start)
            copy = Observer.from_arrays(other.to_arrays())
            copy._rebin(exponent, start)
            self._counts += copy._counts
        self.low, self.high = min(self.low, other.low), max(self.high, other.high)

    def to_arrays(self) -> dict[str, Array]:
        """The whole state, for `from_arrays`."""
        exponent = _LEAST_EXPONENT - 1 if self._exponent is None else self._exponent
        whole = [self.bins, self.stride, self.count, self.zeros, self.sampled, self.nans, self.infs, self.batches]
        return {
            "integers": np.array([*whole, exponent, self._start], np.int64),
            "floats": np.array([self.low, self.high, self._sum, self._squares], np.float64),
            "counts": self._counts.copy(),
        }

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, Array]) -> Observer:
        """The observer whose `to_arrays` made `arrays`; InputError when nothing did."""
        try:
            integers = [int(i) for i in arrays["integers"]]
            bins, stride, count, zeros, sampled, nans, infs, batches, exponent, start = integers
            low, high, total, squares = (float(f) for f in arrays["floats"])
            counts = np.array(arrays["counts"], np.int64)
        except (KeyError, ValueError, TypeError) as error:
            raise InputError("this is not the saved state of an observer") from error
        if counts.shape != (bins,):
            raise InputError(f"the saved state has {counts.size} bins and not {bins}")
        made = cls(bins, stride=stride)
        made.low, made.high, made._sum, made._squares = low, high, total, squares
        made.count, made.zeros, made.sampled = count, zeros, sampled
        made.nans, made.infs, made.batches = nans, infs, batches
        made._exponent = None if exponent < _LEAST_EXPONENT else exponent
        made._start, made._counts = start, counts
        return made


class _Scratch(threading.local):
    """Buffers of one chunk, kept from update to update: fresh memory costs more than the arithmetic on it."""

    def __init__(self) -> None:
        self.floats = np.empty(_CHUNK, np.float32)
        self.indices = np.empty(_CHUNK, np.intp)
        self.lanes = np.empty(0, np.float32)
        self.bins = 0

    def count(self, chunk: Array, exponent: int, start: int, lanes: Array) -> None:
        """Count `chunk`, whose values lie in the bins, into `lanes` [_LANES, bins]."""
        if self.bins != lanes.shape[1]:
            self.bins = lanes.shape[1]
            self.lanes = np.resize(np.arange(_LANES, dtype=np.float32) * self.bins, _CHUNK)
        floats, indices = self.floats[: chunk.size], self.indices[: chunk.size]
        np.multiply(chunk, np.float32(math.ldexp(1.0, -exponent)), out=floats)
        np.floor(floats, out=floats)
        # Indices are small numbers, as the bins always reach to zero: float32 is exact.
        floats -= np.float32(start)
        if len(lanes) > 1:
            floats += self.lanes[: chunk.size]
        indices[...] = floats
        # Since numpy 1.25 this is faster than bincount.
        np.add.at(lanes.reshape(-1), indices, 1)


_SCRATCH = _Scratch()


@dataclass(frozen=True)
class Options:
    """What a range method may need besides the observer.

    Attributes:
        percentile: share in percent, 90 to 100, of the values that each end of the range leaves inside.
    """

    percentile: float = 99.99

    def __post_init__(self) -> None:
        if not 90.0 <= self.percentile <= 100.0:
            raise UsageError(f"the percentile {self.percentile} is not between 90 and 100")


RangeMethod = Callable[[Observer, int, bool, Options], Range]


def observed_range(
    observer: Observer, method: str, bits: int, *, symmetric: bool = False, percentile: float = 99.99
) -> Range:
    """The range that `method` (a name of RANGE_METHODS) gives the observed tensor at `bits`.

    A symmetric range reaches as far below zero as above. It lies within the smallest range that holds zero and all
    finite values, but for "adjusted", and where that is narrower than MIN_RANGE.

    Raises:
        UsageError: for an unknown method or a percentile outside 90 to 100.
        InputError: when the observer saw no finite value.
    """
    check_bits(bits)
    if method not in RANGE_METHODS:
        raise UsageError(f"there is no range method {method!r}", hint=nearest(method, RANGE_METHODS))
    found = RANGE_METHODS[method](observer, bits, symmetric, Options(percentile))
    return found.widened(symmetric=True) if symmetric else found


def _min_max(observer: Observer, bits: int, symmetric: bool, options: Options) -> Range:
    return observer.range.widened(symmetric=symmetric)


def _symmetric(observer: Observer, bits: int, symmetric: bool, options: Options) -> Range:
    return observer.range.widened(symmetric=True)


def _adjusted(observer: Observer, bits: int, symmetric: bool, options: Options) -> Range:
    """Zero falls on a code by widening one end, never by cutting one.

    The guide says no more than that the maximum is expanded or the minimum lowered; this is our reading.
    """
    wide = observer.range.widened(symmetric=symmetric)
    if symmetric or not wide.low < 0 < wide.high:
        return wide
    steps = (1 << bits) - 1
    exact = -wide.low / (wide.high - wide.low) * steps
    zeros = [min(max(z, 1), steps - 1) for z in (math.floor(exact), math.ceil(exact))]
    zero, scale = min(((z, max(-wide.low / z, wide.high / (steps - z))) for z in zeros), key=lambda pair: pair[1])
    return Range(-zero * scale, (steps - zero) * scale)


def _percentile(observer: Observer, bits: int, symmetric: bool, options: Options) -> Range:
    full = observer.range.widened(symmetric=symmetric)
    edges, counts = observer.histogram()
    if not counts.size:
        return full
    share = options.percentile / 100
    # The zeros are one step of the distribution function at zero.
    edges = np.unique(np.concatenate([edges, [0.0]]))
    below = np.interp(edges, observer.histogram()[0], np.concatenate([[0], np.cumsum(counts)]))
    below, total = below + observer.zeros * (edges >= 0), float(counts.sum() + observer.zeros)
    if symmetric:
        reaches = np.unique(np.abs(edges))  # from 0: only the zeros are inside of that one
        inside = np.interp(reaches, edges, below) - np.interp(-reaches, edges, below, left=0)
        inside[0] = observer.zeros
        reach = float(np.interp(share * total, inside, reaches))
        return Range(-min(reach, full.high), min(reach, full.high)).widened(symmetric=True)
    low = float(np.interp((1 - share) * total, below, edges))
    high = float(np.interp(share * total, below, edges))
    return Range(max(min(low, 0.0), full.low), min(max(high, 0.0), full.high)).widened()


def _least_error(observer: Observer, bits: int, symmetric: bool, options: Options) -> Range:
    return _searched(observer, bits, symmetric, 1.0)


def _enhanced(observer: Observer, bits: int, symmetric: bool, options: Options) -> Range:
    # What is cut off is worse than rounding noise of the same power: it is one-sided, and it is the peaks.
    return _searched(observer, bits, symmetric, 3.0)


_COARSE = 2.0 ** (-np.arange(15) / 2)  # shares of the full range at each end: down to 1/128
_FINE = tuple(2.0**-power for power in (2, 2, 3, 3, 4, 4, 5, 6))  # octaves to either side, one round each
_BATCH = 1 << 15  # numbers at once: edges times candidates, so that their arrays stay in the cache


def _searched(observer: Observer, bits: int, symmetric: bool, clip_weight: float) -> Range:
    """The range of least expected squared error on the histogram: a coarse grid over both ends, then around its best.

    The grid is judged on bins that are merged, its surroundings on finer ones. The full range is the first candidate
    and another wins only where it is better, on all bins.
    """
    full = observer.range.widened(symmetric=symmetric)
    rough, expected, exact = (Expected.of(observer, bits, symmetric, clip_weight, merged=n) for n in (8, 2, 1))
    if rough is None or expected is None or exact is None:
        return full
    sides = not symmetric and full.low < 0, symmetric or full.high > 0
    best, least = np.ones(2), math.inf
    for octaves in (None, *_FINE):
        shares = _grid(octaves, *sides)
        if octaves is not None:
            shares = np.minimum(best * shares, 1.0)
        if symmetric:
            shares = np.repeat(shares[:, 1:], 2, axis=1)
        judge = rough if octaves is None else expected
        errors = judge.errors(full.low * shares[:, 0], full.high * shares[:, 1])
        found = int(np.argmin(errors))
        if errors[found] < least or octaves == _FINE[0]:
            best, least = shares[found], float(errors[found])
    whole, cut = exact.errors(full.low * np.array([1.0, best[0]]), full.high * np.array([1.0, best[1]]))
    if cut >= whole:
        return full
    return Range(full.low * float(best[0]), full.high * float(best[1])).widened(symmetric=symmetric)


@functools.cache
def _grid(octaves: float | None, down: bool, up: bool) -> Array:
    """Shares of both ends to try, [n, 2]: the coarse ones, or factors of so many octaves; 1 for an end not in use."""
    tried = _COARSE if octaves is None else 2.0 ** np.array([-octaves, 0.0, octaves])
    ends = [tried if used else np.ones(1) for used in (down, up)]
    return np.stack(np.meshgrid(*ends, indexing="ij"), axis=-1).reshape(-1, 2)


@dataclass(frozen=True)
class Expected:
    """Expected squared error of quantization, from a histogram whose values are spread evenly in their bins.

    The integral of the squared error is known in closed form, also where a bin spans many steps or a step many bins:
    from zero to x it is n * step**3 / 12 + (x - n * step)**3 / 3, for the code n of x.

    Attributes:
        edges: of the bins, in units of `unit`.
        jumps: by how much density falls at each edge.
        total: values, the zeros included.
        unit: real value of 1.
    """

    edges: Array
    jumps: Array
    total: int
    unit: float
    bits: int
    symmetric: bool
    clip_weight: float

    @classmethod
    def of(
        cls, observer: Observer, bits: int, symmetric: bool, clip_weight: float = 1.0, *, merged: int = 1
    ) -> Expected | None:
        """From what was observed; None where only zeros were.

        Args:
            observer: what was seen.
            bits: of the codes.
            symmetric: whether the range is.
            clip_weight: of the squared error beyond the range.
            merged: so many bins are taken as one: less exact, and as much faster.
        """
        edges, counts = observer.histogram()
        if not counts.size:
            return None
        if merged > 1:
            starts = np.arange(0, counts.size, merged)
            edges, counts = np.append(edges[starts], edges[-1]), np.add.reduceat(counts, starts)
        unit = max(-edges[0], edges[-1], MIN_RANGE)
        edges = edges / unit
        density = np.concatenate([[0.0], counts / np.diff(edges), [0.0]])
        total = int(counts.sum()) + observer.zeros
        jumps = density[:-1] - density[1:]
        used = np.flatnonzero(jumps)  # between bins of equal density, as empty ones, nothing changes
        return cls(edges[used], jumps[used], total, float(unit), bits, symmetric, clip_weight)

    def errors(self, lows: Array, highs: Array) -> Array:
        """Mean squared error of each range [lows[i], highs[i]], which holds zero: float64, as many."""
        batch = max(1, _BATCH // self.edges.size)
        pieces = [
            self._some(lows[i : i + batch] / self.unit, highs[i : i + batch] / self.unit)
            for i in range(0, len(lows), batch)
        ]
        means: Array = np.concatenate(pieces) * self.unit**2 / self.total
        return means

    def _some(self, lows: Array, highs: Array) -> Array:
        half = 1 << (self.bits - 1)
        least = MIN_RANGE / self.unit
        if self.symmetric:
            step = np.maximum(highs, least / 2) / (half - 1)
            first, last = np.full(len(step), -float(half)), np.full(len(step), half - 1.0)
        else:
            highs = np.maximum(highs, lows + least)
            step = (highs - lows) / (2 * half - 1)
            first = -np.rint(-lows / step)
            last = first + (2 * half - 1)
        step, first, last = step[:, None], first[:, None], last[:, None]
        codes = np.rint(self.edges / step)
        np.clip(codes, first, last, out=codes)
        rest = self.edges - codes * step
        integral = rest * rest * rest
        if self.clip_weight != 1.0:
            inner = np.clip(rest, -step / 2, step / 2)
            integral += (self.clip_weight - 1.0) * (integral - inner * inner * inner)
        integral /= 3.0
        codes *= step**3 / 12
        integral += codes
        sums: Array = integral @ self.jumps
        return np.maximum(sums, 0.0)


def _entropy(observer: Observer, bits: int, symmetric: bool, options: Options) -> Range:
    """The range whose quantized distribution tells least from the observed one (Kullback-Leibler divergence).

    Zeros are left out, as they are exact. With more codes than bins nothing can be told: the full range.
    """
    full = observer.range.widened(symmetric=symmetric)
    below, above, width = observer._sides()
    levels = 1 << bits
    if symmetric:
        longest = max(below.size, above.size)
        above = np.pad(above, (0, longest - above.size)) + np.pad(below, (0, longest - below.size))
        below, levels = below[:0], levels // 2
    keep = [below.size, above.size]
    if sum(keep) <= levels:
        return full
    best = _divergence(below, above, keep, levels)
    for side in (1, 0, 1, 0):
        ends = np.unique(np.linspace(max(1, levels - keep[1 - side]), (below, above)[side].size, 65).astype(int))
        for end in ends[:-1] if (below, above)[side].size else ends[:0]:
            tried = [end if s == side else keep[s] for s in (0, 1)]
            found = _divergence(below, above, tried, levels)
            if found < best:
                keep, best = tried, found
    low, high = max(-keep[0] * width, full.low), min(keep[1] * width, full.high)
    return Range(-high, high) if symmetric else Range(low, high).widened()


def _divergence(below: Array, above: Array, keep: list[int], levels: int) -> float:
    """KL divergence of the observed distribution, cut at `keep` bins on each side, from its `levels` levels."""
    kept = np.concatenate([below[: keep[0]][::-1], above[: keep[1]]]).astype(np.float64)
    if not kept.any():
        return math.inf
    reference = kept.copy()
    reference[0] += below[keep[0] :].sum()
    reference[-1] += above[keep[1] :].sum()
    count = min(levels, kept.size)
    starts = -(-np.arange(count) * kept.size // count)
    filled = kept > 0
    mass, bins = np.add.reduceat(kept, starts), np.add.reduceat(filled.astype(np.int64), starts)
    sizes = np.diff(np.append(starts, kept.size))
    spread = np.repeat(mass / np.maximum(bins, 1), sizes) * filled
    used = reference > 0
    p = reference[used] / reference.sum()
    q = np.maximum(spread[used], 1e-4) / spread.sum()
    return float(np.sum(p * np.log(p / q)))


RANGE_METHODS: Mapping[str, RangeMethod] = {
    "min-max": _min_max,
    "percentile": _percentile,
    "mse": _least_error,
    "sqnr": _least_error,  # the signal's power is the same for all ranges: most dB is least error
    "entropy": _entropy,
    "tf": _min_max,
    "enhanced": _enhanced,
    "adjusted": _adjusted,
    "symmetric": _symmetric,
}
"""How a range comes from a histogram: QNN's modes (tf, enhanced, adjusted, symmetric) and its calibration methods."""

# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""What calibration keeps of every channel of a tensor: range, mean and mean square."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from npukit.errors import InputError, UsageError
from npukit.qnn.graph import Array

_CHUNK = 1 << 15  # elements at once: the copies of a chunk stay in the cache
_BESIDE = 512  # elements of a row that reductions are fast on


class ChannelObserver:
    """Smallest, largest, mean and mean square value of every channel of the last axis.

    For bias correction (means), smoothing (ranges) and the importance of weights (`power`: E[x^2] of the activation
    that multiplies them). NaN and infinities are counted in `bad` and left out of all else.

    Args:
        channels: extent of the last axis.

    Attributes:
        low, high: float32 [channels]; inf and -inf before the first value.
        count: int64 [channels], finite values.
        bad: NaNs and infinities seen.
    """

    def __init__(self, channels: int) -> None:
        self.channels = channels
        self.low = np.full(channels, np.inf, np.float32)
        self.high = np.full(channels, -np.inf, np.float32)
        self.count = np.zeros(channels, np.int64)
        self.bad = 0
        self._sum = np.zeros(channels)
        self._squares = np.zeros(channels)

    @property
    def mean(self) -> Array:
        """float64 [channels]; 0 for a channel without values."""
        return self._sum / np.maximum(self.count, 1)

    @property
    def power(self) -> Array:
        """Mean of the squares, float64 [channels]."""
        return self._squares / np.maximum(self.count, 1)

    @property
    def reach(self) -> Array:
        """Largest magnitude, float32 [channels]; 0 for a channel without values."""
        return np.maximum(np.maximum(-self.low, self.high), 0)

    def update(self, array: Array) -> None:
        """Take in an array [..., channels]; InputError for another last axis."""
        values = np.asarray(array)
        if values.ndim == 0 or values.shape[-1] != self.channels:
            raise InputError(f"an array of shape {list(values.shape)} has not {self.channels} channels")
        rows = values.reshape(-1, self.channels)
        # Rows of few channels lie side by side, or the reductions would spend their time between the rows.
        beside = max(1, _BESIDE // max(self.channels, 1))
        step = max(1, _CHUNK // max(self.channels * beside, 1)) * beside
        for begin in range(0, len(rows), step):
            chunk = rows[begin : begin + step].astype(np.float32, copy=False)
            even = len(chunk) - len(chunk) % beside
            for part, width in ((chunk[:even], beside), (chunk[even:], 1)):
                if len(part):
                    self._take(part, width)

    def _take(self, rows: Array, beside: int) -> None:
        """Take in float32 [n, channels], n a multiple of `beside`."""
        wide = rows.reshape(-1, beside * self.channels)
        low, high = self._over(np.minimum, wide.min(axis=0)), self._over(np.maximum, wide.max(axis=0))
        count = np.full(self.channels, len(rows), np.int64)
        if not (np.isfinite(low).all() and np.isfinite(high).all()):
            kept = np.isfinite(rows)
            count = kept.sum(axis=0)
            self.bad += int(rows.size - count.sum())
            low = np.where(kept, rows, np.inf).min(axis=0)
            high = np.where(kept, rows, -np.inf).max(axis=0)
            wide = np.where(kept, rows, np.float32(0)).reshape(wide.shape)
        self.low, self.high = np.minimum(self.low, low), np.maximum(self.high, high)
        self.count += count
        with np.errstate(over="ignore"):
            sums, squares = wide.sum(axis=0), np.einsum("ij,ij->j", wide, wide)
        if not np.isfinite(squares).all():  # of float32 values: their squares need more
            exact = wide.astype(np.float64)
            sums, squares = exact.sum(axis=0), np.einsum("ij,ij->j", exact, exact)
        self._sum += self._over(np.add, sums.astype(np.float64))
        self._squares += self._over(np.add, squares.astype(np.float64))

    def _over(self, combine: np.ufunc, found: Array) -> Array:
        """Figures of rows that lie side by side as those of the channels."""
        result: Array = combine.reduce(found.reshape(-1, self.channels), axis=0)
        return result

    def merge(self, other: ChannelObserver) -> None:
        """Add what `other` saw; UsageError when it has other channels."""
        if self.channels != other.channels:
            raise UsageError(f"observers of {self.channels} and {other.channels} channels do not merge")
        self.low, self.high = np.minimum(self.low, other.low), np.maximum(self.high, other.high)
        self.count += other.count
        self.bad += other.bad
        self._sum += other._sum
        self._squares += other._squares

    def to_arrays(self) -> dict[str, Array]:
        """The whole state, for `from_arrays`."""
        return {
            "low": self.low.copy(),
            "high": self.high.copy(),
            "count": self.count.copy(),
            "bad": np.array(self.bad, np.int64),
            "sums": np.stack([self._sum, self._squares]),
        }

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, Array]) -> ChannelObserver:
        """The observer whose `to_arrays` made `arrays`; InputError when nothing did."""
        try:
            made = cls(len(arrays["low"]))
            made.low, made.high = np.array(arrays["low"], np.float32), np.array(arrays["high"], np.float32)
            made.count = np.array(arrays["count"], np.int64)
            made.bad = int(arrays["bad"])
            made._sum, made._squares = (np.array(row, np.float64) for row in arrays["sums"])
        except (KeyError, ValueError, TypeError) as error:
            raise InputError("this is not the saved state of a channel observer") from error
        if not made.low.shape == made.high.shape == made.count.shape == made._sum.shape == made._squares.shape:
            raise InputError("the saved state of a channel observer does not fit together")
        return made

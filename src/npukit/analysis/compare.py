# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""How far an output is from its reference, and whether that is near enough.

Floats are judged by the largest error as a share of the reference's range and by SQNR (signal power over error
power). Cosine is computed and decides nothing by default: it is 1.0 for an output twice too large. Integers and
booleans are judged by the share of equal elements, indices (ArgMax, TopK) by the values that they point at.

What is undefined otherwise:
    span       the reference's range (max - min of its finite elements); its largest magnitude where it is constant;
               1 where it is constantly zero (errors are then absolute).
    SQNR       infinite where there is no error; None (not judged) where the reference is constantly zero.
    cosine     1 where both are zero, 0 where one is.
    NaN, inf   equal where both have them (infinities of one sign); elsewhere counted, and never accepted.
    no element at all: everything is equal.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt

from npukit.errors import InputError

Array = npt.NDArray[np.generic]

FLOAT16_MAX = 65504.0

_CHUNK = 1 << 20  # elements compared at once, so that a large output costs little memory in float64
_CLASSES = 2, 1_000_000  # extents of the last axis that make a [batch, classes] output a classifier's


@dataclass(frozen=True)
class Criteria:
    """What an output must meet; None leaves a figure unjudged.

    Attributes:
        min_sqnr: least SQNR in dB, of float outputs and of the values that indices point at.
        max_error: largest error as a share of the reference's span.
        min_cosine: least cosine similarity.
        min_exact: least share of equal elements, of integer and boolean outputs.
        max_code_error: integer outputs whose largest difference is at most this also pass.
    """

    min_sqnr: float | None = None
    max_error: float | None = None
    min_cosine: float | None = None
    min_exact: float | None = 1.0
    max_code_error: int = 0

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


# By the precision that the artifact computes in. float32: what QNN CPU keeps on the networks of the test suite;
# float16: 11 bits of significand after a deep network; integers: activations of that width; int4: weights of 4 bits.
CRITERIA: Mapping[str, Criteria] = {
    "float32": Criteria(min_sqnr=60.0, max_error=1e-3),
    "float16": Criteria(min_sqnr=40.0, max_error=2e-2, min_exact=0.99),
    "int16": Criteria(min_sqnr=30.0, max_error=5e-2, min_exact=0.99, max_code_error=4),
    "int8": Criteria(min_sqnr=20.0, max_error=1e-1, min_exact=0.99, max_code_error=2),
    "int4": Criteria(min_sqnr=10.0, max_error=3e-1, min_exact=0.9, max_code_error=2),
}


def criteria(
    precision: str,
    *,
    min_sqnr: float | None = None,
    max_error: float | None = None,
    min_cosine: float | None = None,
) -> Criteria:
    """The row of CRITERIA for `precision`, with what is given here instead of its figures."""
    given = {"min_sqnr": min_sqnr, "max_error": max_error, "min_cosine": min_cosine}
    return replace(CRITERIA[precision], **{k: v for k, v in given.items() if v is not None})  # type: ignore[arg-type]


@dataclass(frozen=True)
class Metrics:
    """How an output compares with its reference.

    Attributes:
        kind: "float", "integer" or "index".
        elements: how many elements were compared.
        low: smallest finite value of the reference.
        high: largest finite value of the reference.
        cosine: cosine similarity of the two as vectors.
        max_abs: largest absolute difference.
        mean_abs: mean absolute difference.
        sqnr_db: signal-to-quantization-noise ratio in dB; infinite without error, None for a zero reference.
        max_share: `max_abs` over the reference's span.
        within: share of the elements whose error is within the tolerance that was judged.
        exact: share of equal elements.
        argmax: share of rows whose largest element is the same; None where the output is no classifier's.
        nan_mismatch: elements where exactly one of the two is NaN.
        inf_mismatch: elements where exactly one of the two is infinite, or with another sign.
        worst: position of the largest error, empty without elements.
    """

    kind: str
    elements: int
    low: float = 0.0
    high: float = 0.0
    cosine: float = 1.0
    max_abs: float = 0.0
    mean_abs: float = 0.0
    sqnr_db: float | None = math.inf
    max_share: float = 0.0
    within: float = 1.0
    exact: float = 1.0
    argmax: float | None = None
    nan_mismatch: int = 0
    inf_mismatch: int = 0
    worst: tuple[int, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """As JSON values; an SQNR without error is null, with `exact` 1 or `max_abs` 0 beside it."""
        values = {k: v if not isinstance(v, float) or math.isfinite(v) else None for k, v in asdict(self).items()}
        return {**values, "worst": list(self.worst)}


def compare(reference: Array, actual: Array, *, tolerance: float = 1e-3, saturation: float | None = None) -> Metrics:
    """Compare two arrays of one shape.

    Args:
        reference: what is right; float, integer or bool.
        actual: what is judged.
        tolerance: share of the span for `Metrics.within`.
        saturation: a magnitude that stands for infinity in `actual` (65504 where it was computed in float16).

    Raises:
        InputError: the shapes or the kinds of dtype differ, or the dtype is neither float, integer nor bool.
    """
    reference, actual = np.asarray(reference), np.asarray(actual)
    kind = _kind(reference.dtype)
    if reference.shape != actual.shape:
        raise InputError(f"expected shape {list(reference.shape)}, got {list(actual.shape)}")
    if kind != _kind(actual.dtype):
        raise InputError(f"expected {reference.dtype}, got {actual.dtype}")
    if reference.size == 0:
        return Metrics(kind, 0)
    sums = _Sums()
    for start, a, b in _chunks(reference, actual):
        sums.add(start, a, b, saturation)
    span = sums.span()
    near = sum(
        int(np.count_nonzero(_equal_or_near(a, b, tolerance * span, saturation)))
        for _, a, b in _chunks(reference, actual)
    )
    return Metrics(
        kind,
        elements=reference.size,
        low=sums.low if sums.finite else 0.0,
        high=sums.high if sums.finite else 0.0,
        cosine=sums.cosine(),
        max_abs=sums.max_abs,
        mean_abs=sums.abs_error / max(sums.finite, 1),
        sqnr_db=sums.sqnr(),
        max_share=sums.max_abs / span,
        within=near / reference.size,
        exact=sums.equal / reference.size,
        argmax=_argmax_agreement(reference, actual) if kind == "float" else None,
        nan_mismatch=sums.nan_mismatch,
        inf_mismatch=sums.inf_mismatch,
        worst=tuple(int(i) for i in np.unravel_index(sums.worst, reference.shape)),
    )


def compare_indices(reference: Array, actual: Array, data: Array, axis: int, *, tolerance: float = 1e-3) -> Metrics:
    """Compare positions along `axis` of `data` by the values they point at, so that a tie is no error.

    Args:
        reference: the right indices, of `data`'s rank, or without `axis` (ArgMax with keepdims=0).
        actual: the indices that are judged, of the same shape.
        data: the reference's values that were searched.
        axis: the axis of `data` that the indices run along.
        tolerance: as for `compare`.

    Raises:
        InputError: shapes differ.
    """
    if reference.shape != actual.shape:
        raise InputError(f"expected shape {list(reference.shape)}, got {list(actual.shape)}")
    extent = data.shape[axis]
    outside = int(np.count_nonzero((actual < -extent) | (actual >= extent)))
    exact = float(np.mean(reference == actual)) if reference.size else 1.0
    left, right = reference.astype(np.int64) % extent, actual.astype(np.int64) % extent
    if left.ndim < data.ndim:
        left, right = np.expand_dims(left, axis), np.expand_dims(right, axis)
    values = compare(np.take_along_axis(data, left, axis), np.take_along_axis(data, right, axis), tolerance=tolerance)
    # The picked values alone would make a poor yardstick: the largest scores are often all alike.
    span = _span_of(data)
    share = values.max_abs / span
    # A position outside the axis points at nothing: as wrong as can be.
    return replace(
        values,
        kind="index",
        exact=exact,
        argmax=None,
        max_share=math.inf if outside else share,
        inf_mismatch=outside,
    )


def judge(metrics: Metrics, limits: Criteria) -> list[str]:
    """Why the output is not near enough, one sentence a figure; empty if it is."""
    faults = []
    if metrics.nan_mismatch:
        faults.append(f"{metrics.nan_mismatch} elements are NaN on one side only")
    if metrics.inf_mismatch:
        what = "point outside the axis" if metrics.kind == "index" else "are infinite on one side only"
        faults.append(f"{metrics.inf_mismatch} elements {what}")
    if metrics.kind == "integer":
        enough = limits.min_exact is None or metrics.exact >= limits.min_exact
        if not enough and not metrics.max_abs <= limits.max_code_error:
            faults.append(f"{metrics.exact:.4%} of the elements are equal, at least {limits.min_exact:.4%} must be")
        return faults
    if limits.max_error is not None and not metrics.max_share <= limits.max_error:
        faults.append(f"the largest error is {metrics.max_share:.3g} of the range, at most {limits.max_error:g} may be")
    if metrics.kind == "index":
        return faults
    if limits.min_sqnr is not None and metrics.sqnr_db is not None and not metrics.sqnr_db >= limits.min_sqnr:
        faults.append(f"SQNR is {metrics.sqnr_db:.1f} dB, at least {limits.min_sqnr:g} dB must be")
    if limits.min_cosine is not None and not metrics.cosine >= limits.min_cosine:
        faults.append(f"cosine is {metrics.cosine:.6f}, at least {limits.min_cosine:g} must be")
    return faults


def worst(metrics: Sequence[Metrics]) -> Metrics:
    """The worst figure of each kind over several samples of one output (range and position of the worst sample)."""
    if len(metrics) == 1:
        return metrics[0]
    bad = max(metrics, key=lambda m: (m.nan_mismatch + m.inf_mismatch, m.max_share))
    ratios = [m.sqnr_db for m in metrics if m.sqnr_db is not None]
    agreements = [m.argmax for m in metrics if m.argmax is not None]
    count = sum(m.elements for m in metrics)
    return replace(
        bad,
        elements=count,
        cosine=min(m.cosine for m in metrics),
        max_abs=max(m.max_abs for m in metrics),
        mean_abs=sum(m.mean_abs * m.elements for m in metrics) / max(count, 1),
        sqnr_db=min(ratios, default=None),
        max_share=max(m.max_share for m in metrics),
        within=sum(m.within * m.elements for m in metrics) / count if count else 1.0,
        exact=sum(m.exact * m.elements for m in metrics) / count if count else 1.0,
        argmax=sum(agreements) / len(agreements) if agreements else None,
        nan_mismatch=sum(m.nan_mismatch for m in metrics),
        inf_mismatch=sum(m.inf_mismatch for m in metrics),
    )


class _Sums:
    """What one walk over both arrays collects; sums in float64, over the elements that are finite in both."""

    def __init__(self) -> None:
        self.finite = self.equal = self.nan_mismatch = self.inf_mismatch = self.worst = 0
        self.low, self.high = math.inf, -math.inf
        self.max_abs = self.abs_error = 0.0
        self.signal = self.power = self.product = self.noise = 0.0

    def add(self, start: int, a: Array, b: Array, saturation: float | None) -> None:
        self.equal += int(np.count_nonzero(a == b))
        x, y = a.astype(np.float64), b.astype(np.float64)
        if saturation is not None:
            y = _unsaturated(x, y, saturation)
        nan_x, nan_y, inf_x, inf_y = np.isnan(x), np.isnan(y), np.isinf(x), np.isinf(y)
        self.equal += int(np.count_nonzero(nan_x & nan_y))
        self.nan_mismatch += int(np.count_nonzero(nan_x != nan_y))
        unlike = (inf_x != inf_y) | (inf_x & inf_y & (np.sign(x) != np.sign(y)))
        self.inf_mismatch += int(np.count_nonzero(unlike & ~nan_x & ~nan_y))
        finite_x = x[np.isfinite(x)]
        if finite_x.size:
            self.low, self.high = min(self.low, float(finite_x.min())), max(self.high, float(finite_x.max()))
        both = np.isfinite(x) & np.isfinite(y)
        self.finite += int(np.count_nonzero(both))
        x, y = np.where(both, x, 0.0), np.where(both, y, 0.0)
        error = np.abs(x - y)
        at = int(error.argmax())
        if error[at] > self.max_abs:
            self.max_abs, self.worst = float(error[at]), start + at
        self.abs_error += float(error.sum())
        self.signal += float(x @ x)
        self.power += float(y @ y)
        self.product += float(x @ y)
        self.noise += float(error @ error)

    def span(self) -> float:
        if self.low > self.high:
            return 1.0
        return (self.high - self.low) or abs(self.high) or 1.0

    def sqnr(self) -> float | None:
        if self.noise == 0:
            return math.inf
        return 10 * math.log10(self.signal / self.noise) if self.signal > 0 else None

    def cosine(self) -> float:
        if self.signal == 0 or self.power == 0:
            return 1.0 if self.signal == self.power else 0.0
        return max(-1.0, min(1.0, self.product / math.sqrt(self.signal) / math.sqrt(self.power)))


def _chunks(reference: Array, actual: Array) -> Iterator[tuple[int, Array, Array]]:
    a, b = reference.reshape(-1), actual.reshape(-1)
    for start in range(0, a.size, _CHUNK):
        yield start, a[start : start + _CHUNK], b[start : start + _CHUNK]


def _equal_or_near(a: Array, b: Array, tolerance: float, saturation: float | None) -> npt.NDArray[np.bool_]:
    x, y = a.astype(np.float64), b.astype(np.float64)
    if saturation is not None:
        y = _unsaturated(x, y, saturation)
    with np.errstate(invalid="ignore"):
        near: npt.NDArray[np.bool_] = (np.abs(x - y) <= tolerance) | (x == y) | (np.isnan(x) & np.isnan(y))
    return near


def _unsaturated(x: npt.NDArray[np.float64], y: npt.NDArray[np.float64], limit: float) -> npt.NDArray[np.float64]:
    """`y` with infinity where it stopped at `limit` and `x` did not stop."""
    return np.where(np.isinf(x) & (np.abs(y) >= limit) & (np.sign(x) == np.sign(y)), x, y)


def _span_of(data: Array) -> float:
    values = np.asarray(data, np.float64)
    values = values[np.isfinite(values)]
    if values.size == 0:
        return 1.0
    return float(values.max() - values.min()) or float(abs(values).max()) or 1.0


def _argmax_agreement(reference: Array, actual: Array) -> float | None:
    """Share of rows with the same winner; a winner that ties with the reference's own counts."""
    shape = reference.shape
    classes = [i for i, extent in enumerate(shape) if i > 0 and extent > 1]
    if len(shape) < 2 or len(classes) != 1 or not _CLASSES[0] <= shape[classes[0]] <= _CLASSES[1]:
        return None
    rows = np.asarray(reference, np.float64).reshape(shape[0], -1)
    chosen = np.asarray(actual, np.float64).reshape(shape[0], -1).argmax(axis=1)
    picked = np.take_along_axis(rows, chosen[:, None], axis=1)[:, 0]
    return float(np.mean(picked == rows.max(axis=1)))


def _kind(dtype: np.dtype[Any]) -> str:
    if dtype == np.bool_ or np.issubdtype(dtype, np.integer) or dtype in _SMALL_INTEGERS:
        return "integer"
    if np.issubdtype(dtype, np.floating) or dtype == ml_dtypes.bfloat16 or dtype.name.startswith("float8"):
        return "float"
    raise InputError(f"outputs of dtype {dtype} cannot be compared")


_SMALL_INTEGERS = (np.dtype(ml_dtypes.int4), np.dtype(ml_dtypes.uint4))

# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
import math

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from npukit.errors import InputError, UsageError
from npukit.quantization.observers import RANGE_METHODS, ChannelObserver, Expected, Observer, observed_range
from npukit.quantization.ranges import MIN_RANGE, Range, encoding, fake


def observed(*arrays: np.ndarray, bins: int = 2048, stride: int = 1) -> Observer:
    observer = Observer(bins, stride=stride)
    for array in arrays:
        observer.update(array)
    return observer


def same(a: Observer, b: Observer) -> None:
    for name, value in a.to_arrays().items():
        if name == "floats":
            assert np.allclose(value, b.to_arrays()[name], rtol=1e-6, atol=1e-30)
        elif name == "counts":
            for left, right in zip(a.histogram(), b.histogram(), strict=True):
                assert np.array_equal(left, right)
        else:
            assert np.array_equal(value[:-1], b.to_arrays()[name][:-1])  # the last is where the first bin lies


SAMPLES = {
    "normal": lambda rng: rng.normal(size=40_000),
    "relu": lambda rng: np.maximum(rng.normal(size=40_000), 0),
    "relu6": lambda rng: np.clip(rng.normal(3, 4, size=40_000), 0, 6),
    "tails": lambda rng: rng.standard_t(3, size=40_000),
    "outlier": lambda rng: np.append(rng.normal(size=40_000), 300.0),
    "shifted": lambda rng: rng.normal(40, 1, size=40_000),
    "negative": lambda rng: -rng.gamma(2, size=40_000),
    "uniform": lambda rng: rng.uniform(-3, 1, size=40_000),
    "two": lambda rng: rng.choice([-1.0, 4.0], size=40_000),
}


def sample(name: str) -> np.ndarray:
    return SAMPLES[name](np.random.default_rng(7)).astype(np.float32)


def test_moments_and_counts() -> None:
    x = np.random.default_rng(0).normal(2, 3, size=(3, 5, 70_001)).astype(np.float32)
    x[0, 0, :9] = 0
    found = observed(x[0], x[1], x[2])
    assert (found.low, found.high) == (x.min(), x.max())
    assert (found.count, found.zeros, found.batches) == (x.size, 9, 3)
    assert found.mean == pytest.approx(x.mean(dtype=np.float64), rel=1e-6)
    assert found.power == pytest.approx(np.mean(x.astype(np.float64) ** 2), rel=1e-6)
    edges, counts = found.histogram()
    assert counts.sum() == x.size - 9
    inner = x[(x != 0)]
    assert np.array_equal(counts, np.histogram(inner.astype(np.float64), edges)[0])
    assert 512 <= len(counts) <= 2048


def test_one_pass_is_enough() -> None:
    rng = np.random.default_rng(1)
    parts = [rng.normal(size=3000).astype(np.float32) * scale for scale in (1e-6, 1e-3, 1, 50, -2000, 7)]
    forward, backward, whole = observed(*parts), observed(*parts[::-1]), observed(np.concatenate(parts))
    assert np.array_equal(forward.histogram()[1], backward.histogram()[1])
    assert np.array_equal(forward.histogram()[1], whole.histogram()[1])
    assert forward.histogram()[1].sum() == 18_000


def test_merge_and_state() -> None:
    rng = np.random.default_rng(2)
    a, b = rng.normal(size=5000).astype(np.float32), rng.gamma(2, 30, size=900).astype(np.float32)
    both = observed(a, b)
    for first, second in ((a, b), (b, a), (a, np.zeros(4)), (np.zeros(4), a), (np.zeros(0), b)):
        one = observed(first)
        one.merge(observed(second))
        same(one, observed(first, second))
    resumed = Observer.from_arrays(observed(a).to_arrays())
    resumed.update(b)
    same(resumed, both)
    with pytest.raises(UsageError):
        one.merge(Observer(128))
    with pytest.raises(InputError, match="state"):
        Observer.from_arrays({"counts": np.zeros(4)})
    state = both.to_arrays()
    with pytest.raises(InputError, match="bins"):
        Observer.from_arrays(state | {"counts": np.zeros(4, np.int64)})


def test_not_finite() -> None:
    found = observed(np.array([1.0, np.nan, np.inf, -np.inf, -3.0], np.float32), np.full(3, np.nan))
    assert (found.nans, found.infs, found.count, found.low, found.high) == (4, 2, 2, -3, 1)
    assert found.histogram()[1].sum() == 2
    with pytest.raises(InputError, match="only NaN"):
        observed_range(observed(np.full(3, np.nan)), "mse", 8)
    with pytest.raises(InputError, match="no value"):
        observed_range(Observer(), "mse", 8)


@pytest.mark.parametrize("method", RANGE_METHODS)
@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("value", [0.0, 5.0, -2.5, 1e-20, 1e-44, 3.4e38])
def test_constants(method: str, symmetric: bool, value: float) -> None:
    found = observed(np.full(100, value, np.float32))
    assert found.constant
    bounds = observed_range(found, method, 8, symmetric=symmetric)
    assert bounds.low <= 0 <= bounds.high
    assert bounds.high - bounds.low >= MIN_RANGE * 0.999
    back = fake(np.float32([value]), encoding(bounds, 8, symmetric=symmetric), np.uint8)
    assert abs(back[0] - value) <= max(abs(value), MIN_RANGE) * 0.02


@pytest.mark.parametrize("dtype", [np.float16, np.float64, ml_dtypes.bfloat16, np.int32, np.uint8, np.bool_])
def test_other_dtypes(dtype: type) -> None:
    x = np.array([[0, 1], [1, 1]]).astype(dtype)
    found = observed(x)
    assert (found.low, found.high, found.count, found.zeros) == (0, 1, 4, 1)


def test_not_contiguous() -> None:
    x = np.arange(24, dtype=np.float32).reshape(4, 6)
    same(observed(x.T[::2]), observed(np.ascontiguousarray(x.T[::2])))


def test_stride() -> None:
    x = sample("normal")
    found = observed(x, stride=4)
    assert (found.low, found.high, found.count) == (x.min(), x.max(), x.size)
    assert found.sampled == found.histogram()[1].sum() == x.size // 4
    full, part = (observed_range(o, "mse", 8) for o in (observed(x), found))
    assert part.high == pytest.approx(full.high, rel=0.1)


def test_memory_is_fixed() -> None:
    found = observed(*(np.random.default_rng(i).normal(size=1000) * 4**i for i in range(20)))
    assert sum(a.nbytes for a in found.to_arrays().values()) < 2048 * 8 + 1000


def error(values: np.ndarray, bounds: Range, bits: int, symmetric: bool) -> float:
    found = encoding(bounds, bits, symmetric=symmetric)
    back = fake(values, found, np.uint8 if bits <= 8 else np.uint16)
    return float(np.mean((back.astype(np.float64) - values) ** 2))


def brute(values: np.ndarray, bits: int, symmetric: bool) -> float:
    low, high = min(float(values.min()), 0.0), max(float(values.max()), 0.0)
    some = values[::8]
    shares = np.geomspace(0.01, 1, 40)
    if symmetric:
        reach = max(-low, high)
        tried = [Range(-reach * s, reach * s) for s in np.geomspace(0.005, 1, 150)]
    else:
        tried = [Range(low * a, high * b) for a in (shares if low else [1]) for b in (shares if high else [1])]
    best = min(tried, key=lambda bounds: error(some, bounds, bits, symmetric))
    return error(values, best, bits, symmetric)


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("name", SAMPLES)
def test_mse_is_as_good_as_brute_force(name: str, bits: int, symmetric: bool) -> None:
    x = sample(name)
    if name == "two" and bits == 4:
        pytest.skip("two values are not spread evenly in their bins")
    found = observed(x)
    mine = error(x, observed_range(found, "mse", bits, symmetric=symmetric), bits, symmetric)
    assert mine <= brute(x, bits, symmetric) * 1.05 + 1e-12
    plain = error(x, observed_range(found, "min-max", bits, symmetric=symmetric), bits, symmetric)
    assert mine <= plain * 1.02
    assert observed_range(found, "sqnr", bits, symmetric=symmetric) == observed_range(
        found, "mse", bits, symmetric=symmetric
    )


@pytest.mark.parametrize("name", ["normal", "relu", "relu6", "tails", "outlier", "uniform"])
@pytest.mark.parametrize("bits", [4, 8, 16])
def test_expected_error_is_the_error(name: str, bits: int) -> None:
    x = sample(name)
    found = observed(x)
    for symmetric in (False, True):
        for share in (1.0, 0.6, 0.2):
            full = found.range.widened(symmetric=symmetric)
            bounds = Range(full.low * share, full.high * share)
            expected = Expected.of(found, bits, symmetric)
            assert expected is not None
            told = expected.errors(np.array([bounds.low]), np.array([bounds.high]))[0]
            assert told == pytest.approx(error(x, bounds, bits, symmetric), rel=0.05)


@pytest.mark.parametrize("name", SAMPLES)
def test_16_bits_lose_little(name: str) -> None:
    x = sample(name)
    full, found = observed(x).range.widened(), observed_range(observed(x), "mse", 16)
    assert found.high - found.low >= 0.9 * (full.high - full.low)


@pytest.mark.parametrize("name", SAMPLES)
@pytest.mark.parametrize("method", RANGE_METHODS)
@pytest.mark.parametrize("bits", [4, 8, 16])
def test_every_method_gives_a_range_in_bounds(name: str, method: str, bits: int) -> None:
    found = observed(sample(name))
    for symmetric in (False, True):
        bounds = observed_range(found, method, bits, symmetric=symmetric)
        full = found.range.widened(symmetric=symmetric or method == "symmetric")
        assert bounds.low <= 0 <= bounds.high
        if method != "adjusted":
            assert full.low <= bounds.low
            assert bounds.high <= full.high
        if symmetric:
            assert bounds.low == -bounds.high


def test_percentile_cuts_that_share() -> None:
    x = sample("normal")
    for percentile in (90.0, 99.0, 99.9):
        bounds = observed_range(observed(x), "percentile", 8, percentile=percentile)
        ends = np.quantile(x, [1 - percentile / 100, percentile / 100])
        assert (bounds.low, bounds.high) == pytest.approx(ends, abs=0.02)
        reach = observed_range(observed(x), "percentile", 8, symmetric=True, percentile=percentile).high
        assert reach == pytest.approx(np.quantile(np.abs(x), percentile / 100), abs=0.02)
    relu = sample("relu")
    for symmetric in (False, True):
        high = observed_range(observed(relu), "percentile", 8, symmetric=symmetric, percentile=99.0).high
        assert high == pytest.approx(np.quantile(relu, 0.99), abs=0.02)
    assert observed_range(observed(x), "percentile", 8, percentile=100.0) == observed(x).range
    with pytest.raises(UsageError, match="percentile"):
        observed_range(observed(x), "percentile", 8, percentile=80)


def test_tails_are_cut() -> None:
    x = sample("outlier")
    full = observed(x).range
    for method in ("mse", "enhanced", "percentile", "entropy"):
        assert observed_range(observed(x), method, 8).high < full.high, method
    assert observed_range(observed(x), "percentile", 8).high < 10


def test_enhanced_cuts_less_than_mse() -> None:
    found = observed(sample("tails"))
    mse, enhanced = observed_range(found, "mse", 4), observed_range(found, "enhanced", 4)
    assert enhanced.high - enhanced.low > mse.high - mse.low


@pytest.mark.parametrize("name", SAMPLES)
def test_adjusted_covers_all(name: str) -> None:
    x = sample(name)
    found = encoding(observed_range(observed(x), "adjusted", 8), 8)
    low, high = found.offset * found.scale, (255 + found.offset) * found.scale
    assert low <= x.min() + 1e-5 * abs(low)
    assert high >= x.max() - 1e-5 * high


def test_unknown_method() -> None:
    with pytest.raises(UsageError, match="'msee'") as caught:
        observed_range(observed(np.ones(3)), "msee", 8)
    assert "'mse'" in caught.value.hint


@settings(max_examples=60, deadline=None)
@given(
    hnp.arrays(np.float32, st.integers(1, 300), elements=st.floats(-(2.0**127), 2.0**127, width=32)),
    hnp.arrays(np.float32, st.integers(0, 50), elements=st.floats(-10, 10, width=32)),
)
def test_any_values(a: np.ndarray, b: np.ndarray) -> None:
    found = observed(a, b)
    x = np.concatenate([a, b])
    assert found.histogram()[1].sum() + found.zeros == found.count == x.size
    assert found.low == x.min()
    for method in RANGE_METHODS:
        bounds = observed_range(found, method, 8)
        assert math.isfinite(bounds.low)
        assert bounds.low <= 0 <= bounds.high
    split = observed(a)
    split.merge(observed(b))
    sizes = np.abs(x[x != 0])
    # What is smaller than the largest value by more than float32 can tell counts on either side of zero.
    if sizes.size and sizes.min() > 1e-34 * sizes.max():
        assert np.array_equal(split.histogram()[1], found.histogram()[1])


def test_channels() -> None:
    rng = np.random.default_rng(3)
    x = (rng.normal(size=(2, 9, 31, 5)) * np.arange(1, 6) + 1).astype(np.float32)
    found = ChannelObserver(5)
    found.update(x[0])
    other = ChannelObserver(5)
    other.update(x[1])
    found.merge(ChannelObserver.from_arrays(other.to_arrays()))
    flat = x.reshape(-1, 5).astype(np.float64)
    assert np.array_equal(found.low, x.reshape(-1, 5).min(0))
    assert np.array_equal(found.reach, np.abs(x.reshape(-1, 5)).max(0))
    assert found.mean == pytest.approx(flat.mean(0))
    assert found.power == pytest.approx((flat**2).mean(0))
    assert found.count.tolist() == [2 * 9 * 31] * 5
    found.update(np.array([[np.nan, 1, np.inf, 0, 0]]))
    assert found.bad == 2
    assert np.isfinite(found.mean).all()
    assert found.count.tolist() == [558, 559, 558, 559, 559]
    with pytest.raises(InputError, match="channels"):
        found.update(np.zeros((3, 4)))
    with pytest.raises(UsageError):
        found.merge(ChannelObserver(4))
    with pytest.raises(InputError, match="state"):
        ChannelObserver.from_arrays({})

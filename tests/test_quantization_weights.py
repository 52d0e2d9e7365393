# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from npukit.errors import ModelError, UsageError
from npukit.qnn.graph import DType, Encoding, Tensor, TensorKind
from npukit.quantization.observers import RANGE_METHODS
from npukit.quantization.ranges import MIN_RANGE, codes, reals
from npukit.quantization.weights import BLOCKS, blockwise, quantize_weights, weight_dtype
from npukit.raising.encodings import dequantized

SEARCHED = ("mse", "sqnr", "enhanced")


def weights(*shape: int, axis: int = 0) -> np.ndarray:
    rng = np.random.default_rng(5)
    ranges = np.moveaxis(np.exp(rng.normal(size=(shape[axis], *(1,) * (len(shape) - 1)))), 0, axis)
    return (rng.standard_t(5, size=shape) * ranges * 0.05).astype(np.float32)


def error(values: np.ndarray, found: tuple[np.ndarray, Encoding], importance: np.ndarray | float = 1.0) -> float:
    return float(np.sum((reals(*found).astype(np.float64) - values) ** 2 * importance))


@pytest.mark.parametrize("bits", [4, 8, 16])
@pytest.mark.parametrize("axis", [None, 0, 1, 2, 3, -1])
def test_min_max_by_hand(bits: int, axis: int | None) -> None:
    w = weights(3, 2, 5, 7, axis=3)
    found, enc = quantize_weights(w, bits, axis=axis)
    kept = tuple(i for i in range(4) if axis is None or i != axis % 4)
    scale = (np.abs(w).max(axis=kept, keepdims=True) / (2 ** (bits - 1) - 1)).astype(np.float32)
    assert found.shape == w.shape
    assert found.dtype == (np.int16 if bits == 16 else np.int8) == weight_dtype(bits).numpy
    assert enc.axis == (None if axis is None else axis % 4)
    assert enc.scales == pytest.approx(scale.reshape(-1).tolist(), rel=1e-6)
    assert set(enc.offsets) == {0}
    assert enc.bitwidth == (4 if bits == 4 else 0)
    assert np.array_equal(found, codes(w, enc, found.dtype))
    assert (np.abs(reals(found, enc) - w) <= scale * 0.5001).all()


def brute(w: np.ndarray, bits: int, importance: np.ndarray | float) -> float:
    """Least error of one channel over 2000 scales."""
    top, w = 2 ** (bits - 1) - 1, w.astype(np.float64)
    best = math.inf
    for share in np.linspace(0.03, 1.05, 2000):
        scale = np.abs(w).max() * share / top
        best = min(best, float(np.sum((np.clip(np.rint(w / scale), -top - 1, top) * scale - w) ** 2 * importance)))
    return best


@pytest.mark.parametrize("bits", [4, 8, 16])
@pytest.mark.parametrize("weighted", [False, True])
def test_mse_is_as_good_as_brute_force(bits: int, weighted: bool) -> None:
    w = weights(9, 300)
    importance = np.random.default_rng(1).gamma(0.5, size=300) if weighted else None
    weight = 1.0 if importance is None else importance
    found = quantize_weights(w, bits, axis=0, method="mse", importance=importance)
    plain = quantize_weights(w, bits, axis=0)
    back, simple = reals(*found).astype(np.float64), reals(*plain).astype(np.float64)
    for i, row in enumerate(w):
        mine = float(np.sum((back[i] - row) ** 2 * weight))
        assert mine <= brute(row, bits, weight) * (1.05 if bits < 16 else 1.2)
        assert mine <= float(np.sum((simple[i] - row) ** 2 * weight)) * (1 + 1e-5)
    one = quantize_weights(w, bits, axis=None, method="mse", importance=importance)
    assert error(w, one, weight) <= brute(w, bits, np.broadcast_to(weight, w.shape)) * 1.05


def test_importance_brings_the_output_nearer() -> None:
    rng = np.random.default_rng(2)
    x = rng.normal(size=(400, 64)) * np.exp(2 * rng.normal(size=64))
    w = weights(64, 32, axis=1)
    exact = x @ w
    outputs = [
        x @ reals(*quantize_weights(w, 4, axis=1, method="mse", importance=importance))
        for importance in (None, np.mean(x**2, axis=0)[:, None])
    ]
    plain, heavy = (float(np.mean((y - exact) ** 2)) for y in outputs)
    assert heavy < 0.8 * plain


def test_importance_per_channel_and_zero() -> None:
    w = weights(6, 50)
    per_weight = np.random.default_rng(0).uniform(size=w.shape)
    found = quantize_weights(w, 4, axis=0, method="mse", importance=per_weight)
    assert error(w, found, per_weight) <= error(w, quantize_weights(w, 4, axis=0, method="mse"), per_weight)
    none = quantize_weights(w, 4, axis=0, method="mse", importance=np.zeros(50))
    assert none[1] == quantize_weights(w, 4, axis=0)[1]
    for wrong in (np.ones(7), -np.ones(50), np.full(50, np.nan)):
        with pytest.raises(UsageError, match=r"weight 'w': importance"):
            quantize_weights(w, 4, axis=0, method="mse", importance=wrong, name="w")


@pytest.mark.parametrize("method", RANGE_METHODS)
@pytest.mark.parametrize("axis", [None, 1])
@pytest.mark.parametrize("bits", [4, 8, 16])
def test_every_method(method: str, axis: int | None, bits: int) -> None:
    w = weights(40, 6, axis=1)
    found, enc = quantize_weights(w, bits, axis=axis, method=method)
    low, high = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    assert low <= found.min() <= found.max() <= high
    assert error(w, (found, enc)) < float(np.sum(w.astype(np.float64) ** 2)) * 0.1
    if method in SEARCHED:
        assert error(w, (found, enc)) <= error(w, quantize_weights(w, bits, axis=axis)) * (1 + 1e-5)


@pytest.mark.parametrize("method", RANGE_METHODS)
@pytest.mark.parametrize("bits", [4, 8])
def test_asymmetric(method: str, bits: int) -> None:
    w = np.random.default_rng(0).uniform(-0.1, 0.9, size=(30, 40)).astype(np.float32)
    found, enc = quantize_weights(w, bits, axis=None, method=method, symmetric=False)
    assert found.dtype == np.uint8
    assert found.max() < 2**bits
    assert -(2**bits) < enc.offset <= 0
    assert reals(np.uint8([-enc.offset]), enc)[0] == 0
    if method in ("mse", "min-max"):
        assert error(w, (found, enc)) < error(w, quantize_weights(w, bits, axis=None, method=method))


def test_degenerate_channels() -> None:
    w = np.zeros((7, 16), np.float32)
    w[1] = 3.0
    w[2] = -1e-9
    w[3] = 3e38
    w[4] = 1e-44
    w[5, 3] = -2.0
    for method in RANGE_METHODS:
        for bits in (4, 8, 16):
            found, enc = quantize_weights(w, bits, axis=0, method=method)
            scales = np.array(enc.scales)
            assert (scales > 0).all()
            assert np.isfinite(scales).all()
            assert not found[0].any()
            back = reals(found, enc).astype(np.float64)
            assert np.abs(back - w).max() <= 3e38 * 0.02
            assert back[1] == pytest.approx([3.0] * 16, rel=0.02)
            assert np.abs(back[5] - w[5]).max() <= 0.02 * 2
    scales = quantize_weights(w, 8, axis=0)[1].scales
    assert scales[0] == scales[2] == np.float32(MIN_RANGE / 254)
    tiny = quantize_weights(w, 8, axis=0, least_scale=0.0)
    assert reals(*tiny)[2] == pytest.approx(w[2], rel=0.01)
    assert tiny[1].scales[0] > 0


@pytest.mark.parametrize("shape", [(0, 4), (4, 0), (0,), (3, 0, 2)])
@pytest.mark.parametrize("method", ["min-max", "mse", "percentile"])
def test_nothing(shape: tuple[int, ...], method: str) -> None:
    for axis in (None, 0):
        found, enc = quantize_weights(np.zeros(shape, np.float32), 8, axis=axis, method=method)
        assert found.shape == shape
        assert len(enc.scales) == (1 if axis is None else shape[0])
    assert quantize_weights(np.zeros(shape), 8, axis=None, symmetric=False)[0].shape == shape


def test_least_scale_per_channel() -> None:
    w = weights(3, 50)
    least = np.array([1.0, 0.0, 1e-3])
    for method in ("min-max", "mse"):
        scales = quantize_weights(w, 8, axis=0, method=method, least_scale=least)[1].scales
        assert 1.0 <= scales[0] < 1.01
        assert scales[1] == quantize_weights(w, 8, axis=0, method=method)[1].scales[1]


def test_restricted_steps() -> None:
    w = weights(4, 600)
    for method in ("min-max", "mse"):
        found, enc = quantize_weights(w, 16, axis=0, method=method, steps=(-0x8000, 0x7F7F))
        assert found.max() <= 0x7F7F
        if method == "min-max":
            assert enc.scales == pytest.approx((2 * np.abs(w).max(axis=1) / (0x8000 + 0x7F7F)).tolist())


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_not_finite(bad: float) -> None:
    w = weights(4, 8)
    w[1, 2] = bad
    for call in (
        lambda: quantize_weights(w, 8, axis=0, name="conv.w"),
        lambda: quantize_weights(w, 8, axis=None, symmetric=False, name="conv.w"),
        lambda: blockwise(w, 0, 1, 8, name="conv.w"),
    ):
        with pytest.raises(ModelError, match="1 of 32 weights") as caught:
            call()
        assert "conv.w" in caught.value.where


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"bits": 5}, "5 bits"),
        ({"bits": 32}, "32 bits"),
        ({"axis": 2}, "no axis 2"),
        ({"method": "mean"}, "'mean'"),
        ({"symmetric": False, "axis": 0}, "per-channel weights are symmetric"),
        ({"symmetric": False, "importance": np.ones(8)}, "importance"),
        ({"steps": (-300, 100)}, "8 bits"),
    ],
)
def test_what_cannot_be(arguments: dict, message: str) -> None:
    given = {"bits": 8, "axis": None, "name": "w"} | arguments
    with pytest.raises(UsageError, match=message):
        quantize_weights(weights(4, 8), **given)


@pytest.mark.parametrize("block", BLOCKS)
@pytest.mark.parametrize("layout", ["conv", "fc", "matmul"])
def test_blocks_as_they_are_read(block: int, layout: str) -> None:
    shape, axis, along = {"conv": ((1, 1, 256, 12), 3, 2), "fc": ((12, 256), 0, 1), "matmul": ((256, 12), 1, 0)}[layout]
    w = weights(*shape, axis=axis)
    errors = {}
    for method in ("min-max", "mse"):
        found, enc = blockwise(w, axis, along, block, method=method)
        assert (enc.kind, enc.axis, enc.block_scale_bits, enc.block_storage) == ("BLOCKWISE_EXPANSION", axis, 4, 0)
        assert (enc.blocks_per_axis, len(enc.block_scales or ())) == (256 // block, 12 * 256 // block)
        assert set(enc.block_scales or ()) <= set(range(1, 16))
        assert found.dtype == np.int8
        assert -8 <= found.min() <= found.max() <= 7
        tensor = Tensor("w", DType.SFIXED_POINT_8, shape, TensorKind.STATIC, enc, found)
        assert np.array_equal(codes(w, enc, np.int8), found)
        errors[method] = float(np.sum((dequantized(tensor).astype(np.float64) - w) ** 2))
        # By hand: channel c, input k.
        c, k = 5, 77
        scale = enc.scales[c] * (enc.block_scales or ())[c * (256 // block) + k // block]
        at = {"conv": (0, 0, k, c), "fc": (c, k), "matmul": (k, c)}[layout]
        assert dequantized(tensor)[at] == pytest.approx(scale * found[at], rel=1e-6)
    assert errors["mse"] < errors["min-max"]
    assert errors["mse"] < error(w, quantize_weights(w, 4, axis=axis, method="mse"))


def test_blocks_by_brute_force() -> None:
    w = weights(2, 16)
    mine = error(w, blockwise(w, 0, 1, 8))
    total = 0.0
    for row in w.astype(np.float64):
        best = math.inf
        for channel in np.abs(row).max() / 7 / 15 * np.linspace(0.3, 1.3, 200):
            scales = channel * np.arange(1, 16)[:, None, None]
            parts = row.reshape(2, 8)
            errors = ((np.clip(np.rint(parts / scales), -8, 7) * scales - parts) ** 2).sum(-1)
            best = min(best, float(errors.min(axis=0).sum()))
        total += best
    assert mine <= total * 1.25


def test_blocks_with_importance_and_zeros() -> None:
    w = weights(8, 64)
    w[3] = 0
    w[4, 8:16] = 0
    importance = np.random.default_rng(0).gamma(0.3, size=64)
    found = blockwise(w, 0, 1, 8, importance=importance)
    assert error(w, found, importance) < error(w, blockwise(w, 0, 1, 8), importance)
    assert not found[0][3].any()
    assert min(found[1].scales) > 0


@pytest.mark.parametrize(
    ("shape", "arguments", "message"),
    [
        ((3, 3, 32, 4), (3, 2, 8), "shape"),
        ((1, 1, 32, 4), (3, 2, 4), "blocks of 4"),
        ((1, 1, 36, 4), (3, 2, 8), "do not divide 36"),
        ((32, 8), (0, 0, 8), "along axis 0"),
        ((32, 8), (0, 1, 8, 8), "4 bits, not 8"),
        ((32, 8), (5, 1, 8), "no axis 5"),
    ],
)
def test_blocks_that_cannot_be(shape: tuple[int, ...], arguments: tuple[int, ...], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        blockwise(np.zeros(shape, np.float32), *arguments)
    with pytest.raises(UsageError, match="block-wise method"):
        blockwise(np.zeros((4, 8), np.float32), 0, 1, 8, method="tf")


@settings(max_examples=60, deadline=None)
@given(
    hnp.arrays(np.float32, hnp.array_shapes(min_dims=2, max_dims=3, max_side=6), elements=st.floats(-1, 1, width=32)),
    st.integers(-60, 60),
    st.sampled_from([4, 8, 16]),
    st.sampled_from(["min-max", "mse"]),
)
def test_any_weights(unit: np.ndarray, power: int, bits: int, method: str) -> None:
    w = np.ldexp(unit, power)
    for axis in (None, 0, 1):
        found, enc = quantize_weights(w, bits, axis=axis, method=method)
        assert found.shape == w.shape
        assert (np.sign(found) * np.sign(w) >= 0).all()
        if method == "min-max":
            spread = reals(np.ones(w.shape, found.dtype), enc)
            assert (np.abs(reals(found, enc) - w) <= spread * 0.501).all()
        else:
            assert error(w, (found, enc)) <= error(w, quantize_weights(w, bits, axis=axis)) * (1 + 1e-3) + 1e-40

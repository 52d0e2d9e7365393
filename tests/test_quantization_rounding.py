# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
import itertools

import numpy as np
import pytest

from benchmarks.quantization_rounding import relaxed
from npukit.errors import InputError, UsageError
from npukit.qnn.graph import DType, Op, Tensor, TensorKind
from npukit.quantization.ranges import codes, reals
from npukit.quantization.roles import weight_axis
from npukit.quantization.rounding import (
    ROUNDINGS,
    Geometry,
    Moments,
    SecondMoments,
    bias_shift,
    output_error,
    round_and_fit,
    round_weights,
)
from npukit.quantization.weights import blockwise, quantize_weights
from tests.scaling_tools import Sketch, run

INT8 = DType.SFIXED_POINT_8


def layer(kind: str) -> Sketch:
    """One op with weights."""
    s = Sketch(2, 7, 6, 8)
    if kind == "FullyConnected":
        s = Sketch(5, 8)
        s.done(s.dense(s.x, 6))
    elif kind in ("MatMul", "MatMul turned"):
        s = Sketch(3, 5, 8)
        flipped = kind == "MatMul turned"
        weight = s.static(s.random.normal(size=(6, 8) if flipped else (8, 6)))
        s.done(s.op("MatMul", (3, 5, 6), s.x, weight, transpose_in0=False, transpose_in1=flipped))
    elif kind == "depthwise":
        s.done(s.depthwise(s.x, 2))
    else:
        sizes = {"1x1": (1, 1, 1), "3x3": (3, 1, 1), "strided": (3, 2, 1), "grouped": (3, 1, 4)}[kind]
        s.done(s.conv(s.x, 12, sizes[0], stride=sizes[1], group=sizes[2]))
    return s


KINDS = ["FullyConnected", "MatMul", "MatMul turned", "1x1", "3x3", "strided", "grouped", "depthwise"]


def weights_of(op: Op) -> np.ndarray:
    weight = op.inputs[1]
    assert weight is not None
    return np.asarray(weight.data)


def observed(kind: str) -> tuple[Op, np.ndarray, SecondMoments]:
    """A layer's op and weight, and the moments of inputs that a Relu gave."""
    s = layer(kind)
    op = s.graph.ops[0]
    moments = SecondMoments(Geometry.of(op))  # type: ignore[arg-type]
    for sample in s.samples(6):
        moments.update(np.maximum(sample["x"], 0))
    return op, weights_of(op), moments


@pytest.mark.parametrize("kind", KINDS)
def test_rows_times_matrix_is_what_the_op_computes(kind: str) -> None:
    s = layer(kind)
    op = s.graph.ops[0]
    sample = s.samples(1)[0]
    geometry = Geometry.of(op)
    assert geometry is not None
    rows, matrix = geometry.rows(sample["x"], 10**6), geometry.matrix(weights_of(op))
    found = np.einsum("rgk,gok->rgo", rows, matrix).reshape(op.outputs[0].shape)
    if len(op.inputs) > 2:
        found = found + op.inputs[2].data
    assert np.allclose(found, run(s.graph, sample)[op.outputs[0].name], atol=1e-4)
    assert np.array_equal(geometry.restored(matrix, weights_of(op).shape), weights_of(op))


@pytest.mark.parametrize("centred", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_moments_predict_the_error_of_the_output(kind: str, centred: bool) -> None:
    s = layer(kind)
    op = s.graph.ops[0]
    geometry = Geometry.of(op)
    assert geometry is not None
    moments = SecondMoments(geometry)
    data = s.samples(4)
    for sample in data:
        moments.update(sample["x"] + 1)
    weight = weights_of(op)
    found = reals(*quantize_weights(weight, 4, axis=weight_axis(op)))
    rows = np.concatenate([geometry.rows(sample["x"] + 1, 10**6) for sample in data])
    outputs = np.einsum("rgk,gok->rgo", rows.astype(np.float64), geometry.matrix(weight.astype(np.float64) - found))
    outputs = outputs.reshape(len(rows), -1)
    wanted = outputs.var(axis=0) if centred else (outputs**2).mean(axis=0)
    assert np.allclose(output_error(weight, found, moments, centred=centred), wanted, rtol=1e-3, atol=1e-7)
    assert np.allclose(bias_shift(op, weight, found, moments), outputs.mean(axis=0), rtol=1e-4, atol=1e-6)


def correlated(rng: np.random.Generator, count: int, width: int) -> np.ndarray:
    """Rows as layers see them: few directions carry most of the power, and no channel has mean zero."""
    mixing = rng.normal(size=(width, width)) * np.exp(-np.arange(width) / (width / 6))[:, None]
    return (rng.normal(size=(count, width)) @ mixing + rng.uniform(0, 1, width)).astype(np.float32)


@pytest.mark.parametrize(("bits", "gain"), [(4, 5.0), (8, 5.0)])
def test_less_error_on_rows_never_seen(bits: int, gain: float) -> None:
    rng = np.random.default_rng(2)
    s = Sketch(64, 96)
    s.done(s.dense(s.x, 32))
    op, weight = s.graph.ops[0], weights_of(s.graph.ops[0])
    rows = correlated(rng, 4000, 96)
    moments, held_out = (SecondMoments(Geometry.of(op)) for _ in range(2))  # type: ignore[arg-type]
    for begin in range(0, 3000, 100):
        moments.update(rows[begin : begin + 100])
    held_out.update(rows[3000:])
    near, encoding = quantize_weights(weight, bits, axis=0, method="mse")
    found = round_weights(op, weight, encoding, moments)
    before, after = (output_error(weight, reals(c, encoding), held_out) for c in (near, found))
    assert 10 * np.log10(before.sum() / after.sum()) > gain
    limit = 1 << (bits - 1)
    assert found.dtype == np.int8
    assert found.min() >= -limit
    assert found.max() < limit


@pytest.mark.parametrize("kind", KINDS)
def test_never_worse_than_nearest(kind: str) -> None:
    op, weight, moments = observed(kind)
    for axis in (weight_axis(op), None):
        near, encoding = quantize_weights(weight, 4, axis=axis, method="mse")
        found = round_weights(op, weight, encoding, moments)
        before, after = (output_error(weight, reals(c, encoding), moments) for c in (near, found))
        assert (after <= before * (1 + 1e-9)).all()
        assert after.sum() < before.sum()
        fitted, other = round_and_fit(op, weight, encoding, moments)
        assert output_error(weight, reals(fitted, other), moments).sum() <= after.sum() * (1 + 1e-9)


def test_two_weights_by_hand() -> None:
    """Two inputs that are always equal: only the sum of the weights counts, so one is rounded up and one down."""
    s = Sketch(4, 2)
    s.done(s.dense(s.x, 1))
    op = s.graph.ops[0]
    weight = np.array([[0.4, 0.4]], np.float32)
    op.inputs[1].data = weight  # type: ignore[union-attr]
    encoding = quantize_weights(np.array([[7.0, 7.0]], np.float32), 4, axis=0)[1]
    assert encoding.scales == (1.0,)
    moments = SecondMoments(Geometry.of(op))  # type: ignore[arg-type]
    moments.update(np.repeat(np.arange(1, 9, dtype=np.float32)[:, None], 2, axis=1))
    assert codes(weight, encoding, INT8).tolist() == [[0, 0]]
    assert sorted(round_weights(op, weight, encoding, moments).tolist()[0]) == [0, 1]


def rounded_by(method: str, bits: int, width: int, *, seed: int, axis: int | None = 0):
    """Of a dense layer with correlated inputs: weight, nearest codes, the method's codes, encoding, moments."""
    s = Sketch(64, width, seed=seed)
    s.done(s.dense(s.x, 3))
    op, weight = s.graph.ops[0], weights_of(s.graph.ops[0])
    moments = SecondMoments(Geometry.of(op))  # type: ignore[arg-type]
    moments.update(correlated(np.random.default_rng(seed), 400, width))
    near, encoding = quantize_weights(weight, bits, axis=axis, method="mse")
    return weight, near, round_weights(op, weight, encoding, moments, method=method), encoding, moments


def brute_force(weight: np.ndarray, encoding, moments: SecondMoments) -> np.ndarray:
    """The least error of each channel over all ways to round every weight up or down (AdaRound's problem)."""
    steps = np.asarray(encoding.scales, np.float64)[:, None] * np.ones_like(weight)
    down = np.clip(np.floor(weight / steps), -8, 7)
    choices = np.array(list(itertools.product((0, 1), repeat=weight.shape[1])))
    tried = np.clip(down[:, None] + choices, -8, 7) * steps[:, None]
    error = weight[:, None] - tried  # [out, choices, in]
    return np.einsum("oci,ij,ocj->oc", error, moments.matrices(centred=False)[0][0], error).min(axis=1)


def test_adaround_against_all_roundings_there_are() -> None:
    """Channels of ten weights, 1,024 ways each: the best there is, or nearly so, for most of them."""
    near, found = [], []
    for seed in range(12):
        weight, nearest, rounded, encoding, moments = rounded_by("adaround", 4, 10, seed=seed)
        best = brute_force(weight, encoding, moments)
        near.append(output_error(weight, reals(nearest, encoding), moments) / best)
        found.append(output_error(weight, reals(rounded, encoding), moments) / best)
    near_ratio, ratio = np.concatenate(near), np.concatenate(found)
    # Nearest is one of the 1,024 (reals are float32); adaround also takes codes that are not next to a weight.
    assert (near_ratio >= 1 - 1e-4).all()
    assert np.mean(near_ratio < 1.01) < 0.2
    # A descent ends where no single change helps; inputs as correlated as these have many such places.
    assert np.mean(ratio < 1.01) >= 0.4
    assert np.mean(ratio < 2) >= 0.8


def test_adaround_beside_the_relaxation_of_its_paper() -> None:
    """The soft rounding that the page of results compares with: it rounds up or down, and better than nearest."""
    weight, near, found, encoding, moments = rounded_by("adaround", 4, 24, seed=4)
    steps = np.asarray(encoding.scales, np.float64)[:, None] * np.ones_like(weight)
    before = output_error(weight, reals(near, encoding), moments)
    moment = moments.matrices(centred=False)[0]
    relaxation = relaxed(weight[None].astype(np.float64), steps[None], moment, (-8, 7), 1000, 3 * before.sum() / 72)[0]
    assert (np.abs(np.clip(weight / steps, -8, 7) - relaxation) <= 1).all()
    after = output_error(weight, reals(relaxation.astype(np.int8), encoding), moments)
    assert after.sum() < 0.5 * before.sum()
    assert output_error(weight, reals(found, encoding), moments).sum() < after.sum()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("centred", [False, True])
def test_adaround_is_never_worse_than_nearest_and_gptq(kind: str, centred: bool) -> None:
    op, weight, moments = observed(kind)
    for axis in (weight_axis(op), None):
        near, encoding = quantize_weights(weight, 4, axis=axis, method="mse")
        codes_of = {m: round_weights(op, weight, encoding, moments, centred=centred, method=m) for m in ROUNDINGS}
        errors = {m: output_error(weight, reals(c, encoding), moments, centred=centred) for m, c in codes_of.items()}
        before = output_error(weight, reals(near, encoding), moments, centred=centred)
        # Sums of float64 products in another order, of float32 reals.
        slack = 1e-5 * before + 1e-12
        assert (errors["adaround"] <= errors["gptq"] + slack).all()
        assert (errors["gptq"] <= before + slack).all()


def test_no_single_code_makes_adaround_better() -> None:
    """A local optimum by definition: every weight's neighbours are tried one at a time."""
    weight, _, found, encoding, moments = rounded_by("adaround", 4, 40, seed=1)
    least = output_error(weight, reals(found, encoding), moments)
    for k, step in itertools.product(range(40), (-1, 1)):
        other = found.copy()
        other[:, k] = np.clip(other[:, k] + step, -8, 7)
        assert (output_error(weight, reals(other, encoding), moments) >= least * (1 - 1e-6)).all()


def test_many_inputs_are_cut_into_parts() -> None:
    s = Sketch(64, 40)
    s.done(s.dense(s.x, 8))
    op, weight = s.graph.ops[0], weights_of(s.graph.ops[0])
    moments = SecondMoments(Geometry.of(op), largest=16)  # type: ignore[arg-type]
    assert [part.stop - part.start for part in moments.parts] == [13, 14, 13]
    moments.update(correlated(np.random.default_rng(0), 500, 40))
    near, encoding = quantize_weights(weight, 4, axis=0)
    found = round_weights(op, weight, encoding, moments)
    assert (
        output_error(weight, reals(found, encoding), moments).sum()
        < 0.8 * output_error(weight, reals(near, encoding), moments).sum()
    )


def test_block_wise_scales_are_kept() -> None:
    s = Sketch(64, 64)
    s.done(s.dense(s.x, 8))
    op, weight = s.graph.ops[0], weights_of(s.graph.ops[0])
    moments = SecondMoments(Geometry.of(op))  # type: ignore[arg-type]
    moments.update(correlated(np.random.default_rng(0), 500, 64))
    near, encoding = blockwise(weight, 0, 1, 16)
    found, same = round_and_fit(op, weight, encoding, moments)
    assert same == encoding
    assert (
        output_error(weight, reals(found, encoding), moments).sum()
        < 0.8 * output_error(weight, reals(near, encoding), moments).sum()
    )


def test_a_channel_that_is_always_zero() -> None:
    s = Sketch(64, 8)
    s.done(s.dense(s.x, 3))
    op, weight = s.graph.ops[0], weights_of(s.graph.ops[0])
    moments = SecondMoments(Geometry.of(op))  # type: ignore[arg-type]
    rows = correlated(np.random.default_rng(0), 100, 8)
    rows[:, 3] = 0
    moments.update(rows)
    near, encoding = quantize_weights(weight, 8, axis=0)
    assert np.isfinite(reals(round_weights(op, weight, encoding, moments), encoding)).all()
    zeros = SecondMoments(Geometry.of(op))  # type: ignore[arg-type]
    zeros.update(np.zeros((10, 8), np.float32))
    assert np.array_equal(round_weights(op, weight, encoding, zeros), near)


def test_moments_of_a_graph() -> None:
    s = Sketch(1, 6, 6, 4)
    y = s.conv(s.x, 8)
    joined = s.op("Concat", (1, 6, 6, 16), s.conv(y, 8), s.conv(y, 8), axis=3)
    up = s.op("TransposeConv2d", (1, 6, 6, 4), joined, s.static(s.random.normal(size=(1, 1, 16, 4))),
              stride=[1, 1], pad_amount=[[0, 0], [0, 0]], group=1)  # fmt: skip
    s.done(up)
    moments = Moments(s.graph)
    assert list(moments.by_op) == ["Conv2d_0", "Conv2d_1", "Conv2d_2"]
    assert moments.by_op["Conv2d_1"] is moments.by_op["Conv2d_2"]
    assert list(moments.left_out) == ["TransposeConv2d_4"]
    assert list(moments.tensors) == ["x", "t0"]
    for sample in s.samples(3):
        moments.update("x", sample["x"])
        moments.update("unknown", sample["x"])
    assert moments.by_op["Conv2d_0"].rows == 3 * 36
    other = Moments(s.graph)
    other.restore(moments.state())
    for mine, its in zip(moments.by_op.values(), other.by_op.values(), strict=True):
        assert (mine.rows, mine.samples) == (its.rows, its.samples)
        assert np.array_equal(mine.matrices(centred=True)[0], its.matrices(centred=True)[0])
    small = Moments(s.graph, limit=100)
    assert list(small.by_op) == ["Conv2d_0"]
    assert "MiB" in small.left_out["Conv2d_1"]


def test_what_cannot_be_is_said() -> None:
    s = layer("FullyConnected")
    op, weight = s.graph.ops[0], weights_of(s.graph.ops[0])
    encoding = quantize_weights(weight, 8, axis=0)[1]
    moments = SecondMoments(Geometry.of(op))  # type: ignore[arg-type]
    with pytest.raises(InputError, match="no input was observed"):
        round_weights(op, weight, encoding, moments)
    other = Op("other", op.type, [op.inputs[0], Tensor("w", DType.FLOAT_32, (6, 4), TensorKind.STATIC)], op.outputs)
    moments.update(s.samples(1)[0]["x"])
    with pytest.raises(UsageError, match="no rounding 'adarond'") as caught:
        round_weights(op, weight, encoding, moments, method="adarond")
    assert "adaround" in str(caught.value)
    with pytest.raises(InputError, match="another form"):
        round_weights(other, weight[:, :4], encoding, moments)

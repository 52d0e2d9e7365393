# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""Scales by the error of the layer's output, against the layer's own outputs and against a finer grid."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from npukit.errors import InputError
from npukit.qnn.graph import Encoding, Op
from npukit.quantization.assign import Legal, Plan, assign
from npukit.quantization.calibrated import Calibrated, Scheme
from npukit.quantization.calibration import Calibration
from npukit.quantization.ranges import codes, reals
from npukit.quantization.roles import Groups, weight_axis
from npukit.quantization.rounding import Geometry, Moments, SecondMoments, output_error
from npukit.quantization.weight_scales import fit_scales
from npukit.quantization.weights import blockwise, quantize_weights
from tests.scaling_tools import Sketch
from tests.test_quantization_rounding import INT8, KINDS, correlated, observed, weights_of


def dense(width: int, to: int = 6, seed: int = 3) -> tuple[Op, np.ndarray, SecondMoments, np.ndarray]:
    """A layer with correlated inputs: op, weight, moments, and the rows they are of."""
    s = Sketch(500, width, seed=seed)
    s.done(s.dense(s.x, to))
    op = s.graph.ops[0]
    moments = SecondMoments(Geometry.of(op))  # type: ignore[arg-type]
    rows = correlated(np.random.default_rng(seed), 500, width)
    moments.update(rows)
    return op, weights_of(op), moments, rows


def error(weight: np.ndarray, found: np.ndarray, encoding: Encoding, rows: np.ndarray) -> np.ndarray:
    """Mean squared error of each output of the layer, by running it."""
    outputs = rows.astype(np.float64) @ (weight.astype(np.float64) - reals(found, encoding)).T
    return (outputs**2).mean(axis=0)


def test_no_scale_of_a_fine_grid_is_much_better() -> None:
    op, weight, moments, rows = dense(48)
    near, begin = quantize_weights(weight, 4, axis=0, method="mse")
    found, encoding = fit_scales(op, weight, begin, moments)
    best = np.full(6, np.inf)
    for share in np.linspace(0.4, 1.6, 601):
        tried = replace(begin, scales=tuple(scale * share for scale in begin.scales))
        best = np.minimum(best, error(weight, codes(weight, tried, INT8), tried, rows))
    after, before = error(weight, found, encoding, rows), error(weight, near, begin, rows)
    # Over 48 weights the error jumps from one scale to the next: 25 candidates come within 1.5 dB of 601.
    assert after.sum() <= 1.4 * best.sum()
    assert after.sum() < 0.8 * before.sum()


@pytest.mark.parametrize("centred", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_never_worse_than_what_it_begins_with(kind: str, centred: bool) -> None:
    op, weight, moments = observed(kind)
    for axis in (weight_axis(op), None):
        near, begin = quantize_weights(weight, 4, axis=axis, method="mse")
        found, encoding = fit_scales(op, weight, begin, moments, centred=centred)
        assert np.array_equal(found, codes(weight, encoding, INT8))
        before, after = (
            output_error(weight, reals(c, e), moments, centred=centred) for c, e in ((near, begin), (found, encoding))
        )
        if axis is None:  # one scale for all: the first may be the best of the grid
            assert after.sum() <= before.sum()
        else:
            assert (after <= before).all()
            assert after.sum() < before.sum()


def test_block_scales_are_the_best_of_their_neighbours() -> None:
    op, weight, moments, rows = dense(64)
    near, begin = blockwise(weight, 0, 1, 16)
    found, encoding = fit_scales(op, weight, begin, moments)
    assert encoding.block_scales is not None
    grid = np.array(encoding.block_scales).reshape(6, 4)
    assert grid.min() >= 1
    assert grid.max() <= 15
    after = error(weight, found, encoding, rows)
    assert after.sum() < 0.8 * error(weight, near, begin, rows).sum()
    # The last block is chosen with all others settled: no other scale near it is better.
    for step in (-2, -1, 1, 2):
        other = grid.copy()
        other[:, 3] = np.clip(grid[:, 3] + step, 1, 15)
        tried = replace(encoding, block_scales=tuple(int(n) for n in other.reshape(-1)))
        assert (error(weight, codes(weight, tried, INT8), tried, rows) >= after * (1 - 1e-4)).all()


def test_blocks_that_lie_in_two_parts_of_the_moments() -> None:
    op, weight, _, rows = dense(64)
    moments = SecondMoments(Geometry.of(op), largest=24)  # type: ignore[arg-type]
    moments.update(rows)
    near, begin = blockwise(weight, 0, 1, 16)
    found, encoding = fit_scales(op, weight, begin, moments)
    before, after = (output_error(weight, reals(c, e), moments) for c, e in ((near, begin), (found, encoding)))
    assert (after <= before * (1 + 1e-6)).all()


def test_codes_keep_the_steps_that_are_asked_for() -> None:
    op, weight, moments, _ = dense(32)
    _, begin = quantize_weights(weight, 4, axis=0, method="mse", steps=(-7, 7))
    found, _ = fit_scales(op, weight, begin, moments, limits=(-7, 7))
    assert found.min() >= -7


def test_nothing_observed_is_said() -> None:
    op, weight, moments, _ = dense(8)
    _, begin = quantize_weights(weight, 4, axis=0)
    with pytest.raises(InputError, match="no input was observed"):
        fit_scales(op, weight, begin, SecondMoments(moments.geometry))


@pytest.mark.parametrize("block", [0, 16])
@pytest.mark.parametrize("rounding", ["nearest", "gptq", "adaround"])
def test_a_graph_is_quantized_with_what_the_scheme_says(rounding: str, block: int) -> None:
    s = Sketch(1, 8, 8, 32)
    s.done(s.conv(s.relu(s.conv(s.x, 32)), 16))
    data = s.samples(6)

    def outputs_error(scheme: Scheme) -> float:
        seen = Calibration(s.graph, moments=Moments(s.graph))
        for sample in data:
            seen.update(sample)
        groups = Groups(s.graph)
        made = assign(s.graph, Plan(weights=4, block=block), Calibrated(seen, scheme), Legal({}), groups).graph
        assert seen.moments is not None
        pairs = zip(*([op for op in graph.ops if op.type == "Conv2d"] for graph in (s.graph, made)), strict=True)
        total = 0.0
        for before, after in pairs:
            weight = after.inputs[1]
            assert weight is not None
            found = reals(np.asarray(weight.data), weight.encoding)  # type: ignore[arg-type]
            total += output_error(weights_of(before), found, seen.moments.by_op[before.name]).sum()
        return float(total)

    plain = outputs_error(Scheme(bias_correction=False, rounding="nearest"))
    assert outputs_error(Scheme(bias_correction=False, rounding=rounding, weight_method="output-mse")) < 0.9 * plain

# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest

from npukit.qnn.graph import Graph
from npukit.quantization.smooth import smooth, smoothing
from tests.scaling_tools import Sketch, calibrated, off, run, sqnr


def block(outliers: float = 40.0) -> Sketch:
    """A transformer block: norm, attention, norm, feed-forward, with residual Adds and large channels in the norms."""
    s = Sketch(12, 32)
    gamma = s.random.uniform(0.5, 1.5, 32)
    gamma[[3, 17]] *= outliers

    def heads(x, perm):  # type: ignore[no-untyped-def]
        split = s.op("Reshape", (12, 4, 8), x)
        return s.op("Transpose", tuple((12, 4, 8)[a] for a in perm), split, perm=perm)

    y = s.norm(s.x, gamma)
    q, k, v = (heads(s.dense(y, 32), perm) for perm in ([1, 0, 2], [1, 2, 0], [1, 0, 2]))
    scores = s.op("MatMul", (4, 12, 12), q, k, transpose_in0=False, transpose_in1=False)
    scores = s.op("ElementWiseMultiply", scores.shape, scores, s.static([0.02]))
    mixed = s.op("MatMul", (4, 12, 8), s.op("Softmax", scores.shape, scores, axis=2), v,
                 transpose_in0=False, transpose_in1=False)  # fmt: skip
    mixed = s.op("Reshape", (12, 32), s.op("Transpose", (12, 4, 8), mixed, perm=[1, 0, 2]))
    y = s.op("ElementWiseAdd", (12, 32), s.x, s.dense(mixed, 32))
    inner = s.dense(s.norm(y, gamma), 64)
    inner = s.op("Gelu", inner.shape, inner)
    s.done(s.op("ElementWiseAdd", (12, 32), y, s.dense(inner, 32)))
    # What trained networks do: weights that read large channels are small.
    for op in s.graph.ops:
        weight = op.inputs[1] if op.type == "FullyConnected" else None
        if weight is not None and op.inputs[0] is not None and op.inputs[0].name in ("t0", "t18"):
            weight.data[:, [3, 17]] /= outliers
    return s


def test_a_block_with_outliers_keeps_its_function_and_quantizes_better() -> None:
    s = block()
    norms = [op for op in s.graph.ops if op.type == "LayerNorm"]
    assert [op.outputs[0].name for op in norms] == ["t0", "t18"]
    data = s.samples(24)
    reference = [run(s.graph, x) for x in data]
    before = sqnr(s.graph, data[:16], data[16:], reference[16:])
    wanted = [t.name for t in smoothing(s.graph)]
    assert "t0" in wanted
    assert "t18" in wanted
    done = smooth(s.graph, calibrated(s.graph, data[:16]).channels)
    found = {name: one for one in done for name in one.makers}
    for norm in norms:
        assert set(np.argsort(found[norm.name].factors)[-2:]) == {3, 17}
        assert found[norm.name].gain > 10
    for sample, expected in zip(data[16:], reference[16:], strict=True):
        assert off(run(s.graph, sample), expected) < 1e-5
    assert sqnr(s.graph, data[:16], data[16:], reference[16:]) > before + 4


def test_the_papers_formula() -> None:
    s = Sketch(9, 8)
    s.done(s.dense(s.norm(s.x), 5))
    data = s.samples(3)
    seen = calibrated(s.graph, data).channels
    weight = np.abs(s.graph.ops[1].inputs[1].data).max(axis=0)
    (done,) = smooth(s.graph, seen, 0.7)
    wanted = seen["t0"].reach ** 0.7 / weight**0.3
    assert np.allclose(done.factors, wanted / np.exp(np.log(wanted).mean()), rtol=1e-5)
    assert done.alpha == 0.7


def layers(kind: str) -> Graph:
    s = Sketch(1, 6, 6, 8)
    if kind == "factor":
        y = s.op("ElementWiseMultiply", s.x.shape, s.x, s.static(s.random.uniform(1, 99, 8)))
        s.done(s.conv(y, 4))
    elif kind == "convolutions":
        s.done(s.conv(s.relu(s.conv(s.x, 8)), 4))
    else:
        s.done(s.conv(s.depthwise(s.relu(s.conv(s.x, 8))), 4))
    return s.graph


@pytest.mark.parametrize("kind", ["factor", "convolutions", "depthwise"])
def test_other_makers(kind: str) -> None:
    graph = layers(kind)
    rng = np.random.default_rng(0)
    data = [{"x": rng.normal(size=(1, 6, 6, 8)).astype(np.float32)} for _ in range(4)]
    before = run(graph, data[0])
    seen = calibrated(graph, data).channels
    done = smooth(graph, seen, 0.5)
    assert done
    assert off(run(graph, data[0]), before) < 1e-5
    if kind == "depthwise":  # its channels become even: each has its own scale of weights
        reach = calibrated(graph, data).channels[graph.ops[2].inputs[0].name].reach
        assert np.allclose(reach, reach.max(), rtol=1e-3)


def test_what_does_not_help_is_left_alone() -> None:
    s = Sketch(9, 8)
    s.done(s.dense(s.norm(s.x, np.ones(8)), 64))
    assert smooth(s.graph, calibrated(s.graph, s.samples(64)).channels) == []


def test_what_was_not_observed_is_left_alone() -> None:
    graph = block().graph
    assert smooth(graph, {}) == []

# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
from pathlib import Path

import numpy as np
import pytest

from networks.catalogue import NETWORKS, samples
from npukit.qnn.graph import Graph
from npukit.quantization.equalize import absorb_bias, absorbing, copied, equalize
from npukit.quantization.simulation import native_feeds
from npukit.quantization.spans import by_inputs, spans
from tests.scaling_tools import Sketch, calibrated, network, off, run, sqnr


def chain() -> Sketch:
    """Conv, Relu, depthwise, Relu, pool, grouped conv, Transpose, Reshape, FullyConnected."""
    s = Sketch(1, 8, 8, 3)
    y = s.relu(s.conv(s.x, 8, 3))
    y = s.relu(s.depthwise(y, 2))
    y = s.op("PoolMax2d", (1, 4, 4, 16), y, filter_size=[2, 2], stride=[2, 2], pad_amount=[[0, 0], [0, 0]])
    y = s.op("Prelu", y.shape, s.conv(y, 12, group=4), s.static([0.2]))
    y = s.op("ReduceMean", (1, 12), y, axes=[1, 2], keep_dims=False)
    s.done(s.dense(y, 5))
    return s


def test_the_function_stays() -> None:
    s = chain()
    sample = s.samples(1)[0]
    before = run(s.graph, sample)
    done = equalize(s.graph)
    assert [len(e.factors) for e in done] == [8, 16, 12]
    assert [e.makers for e in done] == [("Conv2d_0",), ("DepthWiseConv2d_2",), ("Conv2d_5",)]
    assert max(e.spread for e in done) > 5
    assert off(run(s.graph, sample), before) < 1e-5


@pytest.mark.parametrize("name", ["mobilenet_v2", "resnet50", "unet", "vit_b16", "llama_block"])
def test_real_networks_compute_the_same(name: str, tmp_path: Path) -> None:
    graph = network(name, tmp_path)
    feeds = native_feeds(graph, samples(NETWORKS[name], "small", 1)[0], "float")
    before = run(graph, feeds)
    random = np.random.default_rng(1)
    found = spans(graph)
    assert found
    for span in found:
        span.divide(10 ** random.uniform(-0.5, 0.5, span.count))
    assert off(run(graph, feeds), before) < 2e-5
    equalize(graph)
    assert off(run(graph, feeds), before) < 1e-5


def test_both_sides_become_even() -> None:
    s = chain()
    done = equalize(s.graph)
    conv, depthwise = s.graph.ops[0], s.graph.ops[2]
    first = np.abs(conv.inputs[1].data).max(axis=(0, 1, 2))
    second = by_inputs(depthwise, np.abs(depthwise.inputs[1].data), 8)
    assert np.allclose(first / first.max(), second / second.max(), rtol=0.02)
    assert equalize(s.graph)[0].spread < 1.01  # a second time there is nothing to do
    assert len(done) == 3


def test_three_with_a_depthwise_layer_follow_the_papers_rule() -> None:
    s = Sketch(1, 6, 6, 4)
    s.done(s.conv(s.relu(s.depthwise(s.relu(s.conv(s.x, 6)))), 3))
    a, b, c = (s.graph.ops[i] for i in (0, 2, 4))

    def ranges() -> list[np.ndarray]:
        reaches = [np.abs(op.inputs[1].data).astype(np.float64) for op in (a, b, c)]
        return [reaches[0].max((0, 1, 2)), reaches[1].max((0, 1, 2)), by_inputs(c, reaches[2], 6)]

    wanted = np.cbrt(np.prod(ranges(), axis=0))  # each side of a channel becomes their geometric mean
    equalize(s.graph)
    for found in ranges():
        assert np.allclose(found / found.max(), wanted / wanted.max(), rtol=0.02)


def test_residual_adds_tie_what_feeds_them() -> None:
    s = Sketch(1, 6, 6, 4)
    stem = s.conv(s.x, 8)
    added = s.op("ElementWiseAdd", stem.shape, stem, s.conv(s.relu(s.conv(stem, 16)), 8))
    s.done(s.conv(s.relu(added), 3))
    found = spans(s.graph)
    assert [(len(span.makers), len(span.readers)) for span in found] == [(2, 2), (1, 1)]
    sample = s.samples(1)[0]
    before = run(s.graph, sample)
    equalize(s.graph)
    assert off(run(s.graph, sample), before) < 1e-5


def test_attention_scales_through_its_heads() -> None:
    s = Sketch(6, 12)
    heads = s.op("Reshape", (6, 3, 4), s.dense(s.x, 12))
    heads = s.op("Transpose", (3, 6, 4), heads, perm=[1, 0, 2])
    scores = s.op("Softmax", (3, 6, 6), s.static(s.random.normal(size=(3, 6, 6))), axis=2)
    mixed = s.op("MatMul", (3, 6, 4), scores, heads, transpose_in0=False, transpose_in1=False)
    back = s.op("Transpose", (6, 3, 4), mixed, perm=[1, 0, 2])
    s.done(s.dense(s.op("Reshape", (6, 12), back), 5))
    (span,) = spans(s.graph)
    assert span.readers[0].channels.tolist() == list(range(12))
    sample = s.samples(1)[0]
    before = run(s.graph, sample)
    span.divide(np.exp(s.random.normal(size=12)))
    assert off(run(s.graph, sample), before) < 1e-5


def refused(kind: str) -> Graph:
    """Graphs in which a scale between the two layers would change the result."""
    s = Sketch(1, 6, 6, 4)
    y = s.conv(s.x, 4)
    if kind == "nonlinear":
        s.done(s.conv(s.op("Sigmoid", y.shape, y), 3))
    elif kind == "clamped":
        s.done(s.conv(s.op("Relu6", y.shape, y), 3))
    elif kind == "an output":
        s.done(s.conv(s.relu(y), 3), y)
    elif kind == "added to an input":
        s.done(s.conv(s.op("ElementWiseAdd", y.shape, y, s.x), 3))
    elif kind == "a constant added":
        s.done(s.conv(s.op("ElementWiseAdd", y.shape, y, s.static([1.0])), 3))
    elif kind == "beside its norm":
        s.done(s.conv(s.op("ElementWiseAdd", y.shape, y, s.norm(y)), 3))
    elif kind == "squared":
        s.done(s.conv(s.op("ElementWiseMultiply", y.shape, y, y), 3))
    elif kind == "channels and rows mixed":
        s.done(s.conv(s.op("Transpose", (1, 6, 4, 6), y, perm=[0, 1, 3, 2]), 3))
    elif kind == "shared weights":
        op = s.graph.ops[0]
        s.done(s.op("Conv2d", y.shape, s.relu(y), *op.inputs[1:], **{k: p.value for k, p in op.params.items()}))
    else:
        s.done(s.conv(s.op("Pad", (1, 7, 6, 4), y, pad_amount=[[0, 0], [1, 0], [0, 0], [0, 0]], scheme=0,
                           pad_constant_value=1.0), 3))  # fmt: skip
    return s.graph


@pytest.mark.parametrize(
    "kind",
    ["nonlinear", "clamped", "an output", "added to an input", "a constant added", "beside its norm", "squared",
     "channels and rows mixed", "shared weights", "padded with ones"],
)  # fmt: skip
def test_what_does_not_commute_is_left_alone(kind: str) -> None:
    assert equalize(refused(kind)) == []


def test_clamps_only_if_asked() -> None:
    graph = refused("clamped")
    (done,) = equalize(graph, clamps=True)
    assert done.unclamped == ("Relu6_1",)
    assert graph.ops[1].type == "Relu"


def test_uneven_channels_quantize_better() -> None:
    s = Sketch(1, 8, 8, 3)
    s.done(s.conv(s.relu(s.depthwise(s.relu(s.conv(s.x, 16, 3)))), 4))
    data = s.samples(12)
    reference = [run(s.graph, x) for x in data]
    even = sqnr(s.graph, data[:8], data[8:], reference[8:])
    for span in spans(s.graph):
        span.divide(10 ** s.random.uniform(-1, 1, span.count))
    uneven = sqnr(s.graph, data[:8], data[8:], reference[8:])
    assert uneven < even - 8
    equalize(s.graph)
    assert sqnr(s.graph, data[:8], data[8:], reference[8:]) > even - 2


def test_biases_move_on() -> None:
    s = Sketch(1, 8, 8, 3)
    y = s.conv(s.x, 6)
    bias = s.graph.ops[0].inputs[2]
    assert bias is not None
    bias.data = np.array([0, 30, -30, 20, 0.5, 50], np.float32)  # far above what the weights reach
    weight = s.graph.ops[0].inputs[1]
    assert weight is not None
    weight.data = np.asarray(weight.data / np.abs(weight.data).max((0, 1, 2)), np.float32)
    s.done(s.conv(s.relu(y), 4))
    data = s.samples(6)
    reference = [run(s.graph, x) for x in data]
    assert [t.name for t in absorbing(s.graph)] == ["t0"]
    (done,) = absorb_bias(s.graph, calibrated(s.graph, data).channels)
    assert done.shifts[[1, 3, 5]].min() > 10
    assert done.shifts[2] == 0
    for sample, expected in zip(data, reference, strict=True):
        assert off(run(s.graph, sample), expected) < 1e-5
    assert s.graph.ops[0].inputs[2].data[5] < 20


def test_without_a_relu_the_middle_of_the_range_moves() -> None:
    s = Sketch(9, 8)
    s.done(s.dense(s.norm(s.x), 5))
    data = s.samples(4)
    expected = run(s.graph, data[0])
    seen = calibrated(s.graph, data).channels
    (done,) = absorb_bias(s.graph, seen)
    assert np.allclose(done.shifts, (seen["t0"].low + seen["t0"].high) / 2)
    assert off(run(s.graph, data[0]), expected) < 1e-5


def test_padding_keeps_biases() -> None:
    s = Sketch(1, 8, 8, 3)
    s.done(s.conv(s.relu(s.conv(s.x, 6)), 4, 3))
    assert absorbing(s.graph) == []
    assert absorb_bias(s.graph, calibrated(s.graph, s.samples(2)).channels) == []


def test_a_copy_leaves_the_original() -> None:
    s = chain()
    before = [t.data.copy() for t in s.graph.tensors() if t.data is not None]
    equalize(copied(s.graph))
    assert all(
        np.array_equal(a, t.data)
        for a, t in zip(before, (t for t in s.graph.tensors() if t.data is not None), strict=True)
    )

# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""Attention masks do not stretch ranges; tables and MatMul's second operand are quantized as the targets take them."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from npukit.errors import InputError
from npukit.frontends.onnx import LoadOptions, load
from npukit.lowering import LowerOptions, lower
from npukit.quantization.assign import Legal, Plan, assign
from npukit.quantization.calibrated import Calibrated, Scheme
from npukit.quantization.calibration import Calibration
from npukit.quantization.masking import MASKED, Peaks, depth, lowest_seen, unseen_masks
from npukit.quantization.roles import Groups
from npukit.quantization.simulation import Simulation, native_feeds, real_outputs
from npukit.targets import resolve

FLOAT, INT64 = TensorProto.FLOAT, TensorProto.INT64
ROWS, WIDTH = 6, 8


def array(name, value, dtype=np.float32):
    return numpy_helper.from_array(np.asarray(value, dtype), name)


def model(nodes, extra=(), mask=INT64):
    """Attention of x [1, 6, 8] over its own rows, `nodes` making the scores' mask `m` of the input `mask` [1, 6]."""
    random = np.random.default_rng(3)
    weights = [array(n, random.standard_normal((WIDTH, WIDTH)) / 2) for n in ("wq", "wk", "wv")]
    head = [
        helper.make_node("MatMul", ["x", "wq"], ["q"]),
        helper.make_node("MatMul", ["x", "wk"], ["k"]),
        helper.make_node("MatMul", ["x", "wv"], ["v"]),
        helper.make_node("Transpose", ["k"], ["kt"], perm=[0, 2, 1]),
        helper.make_node("MatMul", ["q", "kt"], ["s"]),
    ]
    tail = [helper.make_node("Softmax", ["masked"], ["p"]), helper.make_node("MatMul", ["p", "v"], ["y"])]
    inputs = [
        helper.make_tensor_value_info("x", FLOAT, [1, ROWS, WIDTH]),
        helper.make_tensor_value_info("mask", mask, [1, ROWS]),
    ]
    outputs = [helper.make_tensor_value_info("y", FLOAT, [1, ROWS, WIDTH])]
    graph = helper.make_graph([*head, *nodes, *tail], "attention", inputs, outputs, [*weights, *extra])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def added(low):
    """(1 - mask) * low + scores, as exporters spell it."""
    return model(
        [
            helper.make_node("Cast", ["mask"], ["f"], to=FLOAT),
            helper.make_node("Unsqueeze", ["f", "one_axis"], ["u"]),
            helper.make_node("Sub", ["one", "u"], ["inverted"]),
            helper.make_node("Mul", ["inverted", "low"], ["m"]),
            helper.make_node("Add", ["s", "m"], ["masked"]),
        ],
        [array("one", 1.0), array("low", low), array("one_axis", [1], np.int64)],
    )


def selected(low):
    """Where(mask, scores, low)."""
    return model(
        [
            helper.make_node("Cast", ["mask"], ["b"], to=TensorProto.BOOL),
            helper.make_node("Unsqueeze", ["b", "one_axis"], ["u"]),
            helper.make_node("Where", ["u", "s", "low"], ["masked"]),
        ],
        [array("low", low), array("one_axis", [1], np.int64)],
    )


def given(low):
    """The mask is an input of floats."""
    del low
    return model(
        [helper.make_node("Unsqueeze", ["mask", "one_axis"], ["u"]), helper.make_node("Add", ["s", "u"], ["masked"])],
        [array("one_axis", [1], np.int64)],
        FLOAT,
    )


def scaled(low):
    """The mask is a constant; scores are scaled before it."""
    mask = np.where(np.arange(ROWS) < 4, 0, low)[None, None]
    return model(
        [
            helper.make_node("Div", ["s", "two"], ["half"]),
            helper.make_node("Add", ["half", "fixed"], ["masked"]),
            helper.make_node("Identity", ["mask"], ["unused"]),
        ],
        [array("two", 2.0), array("fixed", mask)],
    )


def lowered(proto):
    return lower(load(proto, LoadOptions()).model, resolve(("sm8650",)), LowerOptions(integers=True), {}).graph


def samples(graph, low, count=4):
    random = np.random.default_rng(7)
    kinds = {tensor.held.source: tensor.dtype for tensor in graph.inputs}
    for length in range(2, 2 + count):
        live = np.arange(ROWS)[None] < length
        mask = np.where(live, 0, low).astype(np.float32) if kinds.get("mask") and kinds["mask"].is_float else live * 1
        made = {"x": random.standard_normal((1, ROWS, WIDTH)).astype(np.float32), "mask": mask}
        yield {name: made[name] for name in kinds}


def sqnr(proto, low, bits, **scheme):
    graph = lowered(proto)
    calibration = Calibration(graph)
    for sample in samples(graph, low):
        calibration.update(sample)
    groups = Groups(graph)
    encodings = Calibrated(calibration, Scheme(**scheme))
    made = assign(graph, Plan(activations=bits), encodings, Legal({}), groups).graph
    runs = [(graph, "float"), (made, "qdq")]
    found = []
    for which, kind in runs:
        simulation = Simulation(which, kind)
        outputs = [real_outputs(which, simulation.run(native_feeds(which, s, kind)))["y"] for s in samples(graph, low)]
        found.append(np.stack(outputs).astype(np.float64))
    return 10 * np.log10((found[0] ** 2).sum() / ((found[0] - found[1]) ** 2).sum()), made, calibration


@pytest.mark.parametrize("low", [-1e4, float(np.finfo(np.float32).min)])
@pytest.mark.parametrize("spelling", [added, selected, given, scaled])
@pytest.mark.parametrize(("bits", "least"), [(8, 25.0), (16, 38.0)])
def test_a_mask_does_not_stretch_ranges(spelling, low, bits, least):
    proto = spelling(low)
    with_rule, graph, _ = sqnr(proto, low, bits)
    assert with_rule > least
    without = sqnr(proto, low, bits, mask_rule=False)[0] if bits == 8 or low < -1e5 else -1.0
    assert without < with_rule - 3
    widest = max(t.encoding.scale for t in graph.tensors() if t.encoding is not None and len(t.encoding.scales) == 1)
    assert widest < 1.0


@pytest.mark.parametrize("spelling", [selected, given, scaled])
@pytest.mark.parametrize(("bits", "least"), [(8, 25.0), (16, 38.0)])
def test_a_mask_of_infinity_is_calibrated_and_quantized(spelling, bits, least):
    assert sqnr(spelling(-np.inf), -np.inf, bits)[0] > least


def test_an_infinity_elsewhere_is_an_error():
    calibration = Calibration(lowered(added(-1e4)))
    with pytest.raises(InputError, match="infinity"):
        calibration.update({"x": np.full((1, ROWS, WIDTH), np.inf, np.float32), "mask": np.ones((1, ROWS), np.int64)})


def test_what_is_cut_comes_out_of_softmax_as_zero():
    graph = lowered(added(-1e4))
    calibration = Calibration(graph)
    for sample in samples(graph, -1e4):
        calibration.update(sample)
    for bits in (8, 16):
        lowest = lowest_seen(graph, calibration, bits)
        ((name, peaks),) = calibration.peaks.items()
        assert lowest[name] == pytest.approx(peaks.least - depth(bits, ROWS))
        # a row of masked values right at the cut, and one that counts: together less than half a step
        row = np.full(ROWS, lowest[name] - peaks.least)
        row[0] = 0
        share = np.exp(row) / np.exp(row).sum()
        assert share[1:].sum() < 0.5 / ((1 << bits) - 1)


def test_scores_that_go_elsewhere_are_not_cut():
    proto = added(-1e4)
    proto.graph.output.append(helper.make_tensor_value_info("masked", FLOAT, [1, ROWS, ROWS]))
    graph = lowered(proto)
    calibration = Calibration(graph)
    for sample in samples(graph, -1e4):
        calibration.update(sample)
    assert lowest_seen(graph, calibration, 8) == {}


def test_peaks_leave_out_rows_that_are_masked_as_a_whole():
    peaks = Peaks(-1)
    peaks.update(np.array([[-1e4, -1e4 - 3]]))
    assert peaks.least == -1e4
    peaks.update(np.array([[1.0, 7.0], [-2.0, -1e4], [-1e4, -1e4 + 5]]))
    assert (peaks.least, peaks.greatest) == (-2.0, 7.0)
    peaks.update(np.array([[7.0 - 2 * MASKED, -np.inf]]))
    assert peaks.least == -2.0


def test_calibration_keeps_peaks():
    graph = lowered(added(-1e4))
    first, second = Calibration(graph), Calibration(graph)
    for sample in samples(graph, -1e4):
        first.update(sample)
    second.restore(first.state())
    assert [(p.least, p.greatest) for p in second.peaks.values()] == [
        (p.least, p.greatest) for p in first.peaks.values()
    ]


def test_the_second_operand_of_matmul_is_centred_in_16_bits_only():
    for bits in (8, 16):
        graph = sqnr(added(-1e4), -1e4, bits)[1]
        rights = [op.inputs[1] for op in graph.ops if op.type == "MatMul" and op.inputs[1].data is None]
        assert len(rights) == 2
        centred = [tensor.encoding.offset == -(1 << (bits - 1)) for tensor in rights]
        assert all(centred) == (bits == 16)


@pytest.mark.parametrize("bits", [8, 16])
def test_an_embedding_is_held_in_the_codes_of_its_rows(bits):
    random = np.random.default_rng(5)
    values = random.standard_normal((50, 4)).astype(np.float32)
    values[40] = 9.0  # never met in calibration
    nodes = [helper.make_node("Gather", ["table", "ids"], ["rows"]), helper.make_node("Relu", ["rows"], ["y"])]
    inputs = [helper.make_tensor_value_info("ids", INT64, [1, 6])]
    outputs = [helper.make_tensor_value_info("y", FLOAT, [1, 6, 4])]
    graph = helper.make_graph(nodes, "embedding", inputs, outputs, [array("table", values)])
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    graph = lowered(proto)
    calibration = Calibration(graph)
    calibration.update({"ids": np.arange(6)[None]})
    groups = Groups(graph)
    made = assign(graph, Plan(activations=bits), Calibrated(calibration, Scheme("min-max")), Legal({}), groups)
    gather = next(op for op in made.graph.ops if op.type == "Gather")
    assert made.precisions[gather.name] == bits
    source, moved = gather.inputs[0], gather.outputs[0]
    assert source.encoding == moved.encoding
    assert source.encoding.scale * ((1 << bits) - 1) == pytest.approx(values.max() - values.min(), rel=1e-6)
    assert not any(op.type in ("Quantize", "Dequantize") for op in made.graph.ops)


@pytest.mark.parametrize("spelling", [added, given])
def test_a_mask_that_calibration_never_used_is_named(spelling):
    graph = lowered(spelling(-1e4))
    full, padded = Calibration(graph), Calibration(graph)
    *short, last = samples(graph, -1e4, ROWS - 1)
    full.update(last)
    assert len(unseen_masks(graph, full)) == 1
    padded.update(short[0])
    assert unseen_masks(graph, padded) == []


@pytest.mark.parametrize("bits", [8, 16])
def test_what_is_joined_with_rows_of_a_table_is_not_cut_off_at_their_range(bits):
    random = np.random.default_rng(6)
    values = random.uniform(-0.1, 0.1, (50, 4)).astype(np.float32)
    nodes = [
        helper.make_node("Gather", ["table", "ids"], ["rows"]),
        helper.make_node("Concat", ["x", "rows"], ["both"], axis=1),
        helper.make_node("Tanh", ["both"], ["y"]),
    ]
    inputs = [
        helper.make_tensor_value_info("ids", INT64, [1, 6]), helper.make_tensor_value_info("x", FLOAT, [1, 2, 4]),
    ]  # fmt: skip
    outputs = [helper.make_tensor_value_info("y", FLOAT, [1, 8, 4])]
    graph = helper.make_graph(nodes, "words", inputs, outputs, [array("table", values)])
    graph = lowered(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8))
    calibration = Calibration(graph)
    calibration.update({"ids": np.arange(6)[None], "x": np.linspace(-3, 3, 8, dtype=np.float32).reshape(1, 2, 4)})
    groups = Groups(graph)
    made = assign(graph, Plan(activations=bits), Calibrated(calibration, Scheme("min-max")), Legal({}), groups)
    joined = next(op.outputs[0] for op in made.graph.ops if op.type == "Concat")
    encoding, codes = joined.encoding, 2**bits - 1
    assert encoding is not None
    assert encoding.offsets[0] * encoding.scales[0] <= -3 + encoding.scales[0]
    assert (codes + encoding.offsets[0]) * encoding.scales[0] >= 3 - encoding.scales[0]

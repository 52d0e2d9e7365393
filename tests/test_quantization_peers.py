# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""The comparison with other quantizers: its own logic, without any peer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from benchmarks import quantization_peer_models as models
from benchmarks import quantization_peer_page as pages
from benchmarks import quantization_peers as peers


def row(tool: str, sqnr: float = 30.0, wall: float = 9.0, peak: float = 400e6, **more: Any) -> dict[str, Any]:
    made = peers.Row("digits", 8, tool, sqnr, wall, peak=int(peak), settings="s", stages={"calibrate": 1.0})
    return {**vars(made), **more}


def test_sqnr_is_that_of_a_known_error() -> None:
    signal = np.array([3.0, -4.0])
    assert peers.sqnr(signal, signal + 0.05) == pytest.approx(10 * np.log10(25 / 0.005))
    assert peers.sqnr(signal, signal) == 200
    assert peers.sqnr(np.zeros(2), np.ones(2)) == -200
    assert peers.worst_sqnr({"a": signal, "b": signal}, {"a": signal, "b": signal * 0.9}) == pytest.approx(20)


def test_goals_are_judged_against_the_best_and_both_times() -> None:
    plain = {"ort": row("ort", 29.0, 8.0, 300e6), "aimet": row("aimet", 31.0, 30.0, 900e6)}
    titles = {"ort": "ONNX Runtime", "aimet": "AIMET"}
    assert pages.judged(row("npukit", 31.0, 7.9, 450e6), plain, titles) == {}
    missed = pages.judged(row("npukit", 30.8, 11.0, 451e6), plain, titles)
    assert set(missed) == {"sqnr", "fast", "slow", "memory"}
    assert missed["sqnr"] == "30.8 dB, AIMET 31.0 dB"
    # What the best recipe takes is no measure of speed; what it reaches is one of accuracy.
    better = plain | {"aimet-best": row("aimet-best", 33.0, 900.0, 1e9)}
    titles["aimet-best"] = "AIMET, CLE and SeqMSE"
    assert set(pages.judged(row("npukit", 31.0, 7.9, 450e6), better, titles)) == {"sqnr"}


def test_the_page_says_what_failed_and_what_was_left_out() -> None:
    options = peers._options(["digits"])
    failed = row("aimet", sqnr=None, failed="cannot | be")
    figures = {"title": "digits CNN", "trained": True, "parameters": 6090, "nearest_pair": 0.784}
    found = {
        "rows": [row("npukit", 31.0), row("ort", loose={"LSTM": 2}), failed],
        "networks": {"digits": figures},
        "machine": peers.machine(1.0, 0.5, options),
    }
    text = pages.page(found)
    assert "| digits CNN | 8 | **31.0** | 30.0 | failed: cannot / be |" in text
    assert "Not measured in this run: bidirectional LSTM, " in text
    assert "- ONNX Runtime, digits CNN, 8 bits: 2 LSTM" in text
    assert "SQNR at least that of the best peer: 1 of 1" in text


def test_the_last_words_of_a_failure_are_kept() -> None:
    assert peers._last_words("x exited with 1: Traceback\n  line\nTypeError: no\n\n") == "TypeError: no"
    assert "1800 s" in peers._last_words("x exited with 124: ")


def test_what_no_dequantizer_feeds_is_in_float() -> None:
    nodes = [
        helper.make_node("DequantizeLinear", ["xq", "s", "z"], ["x"]),
        helper.make_node("DequantizeLinear", ["wq", "s", "z"], ["w"]),
        helper.make_node("MatMul", ["x", "w"], ["y"]),
        helper.make_node("MatMul", ["x", "float_weight"], ["v"]),
        helper.make_node("Add", ["v", "y"], ["u"]),
    ]
    model = helper.make_model(helper.make_graph(nodes, "g", [], []))
    assert peers.left_in_float(model) == {"MatMul": 1}


def test_spread_weights_differ_by_channel_and_keep_their_size() -> None:
    random = np.random.default_rng(0)
    weight = random.standard_normal((256, 64, 3, 3)).astype(np.float32)
    node = helper.make_node("Conv", ["x", "w", "b"], ["y"], "conv")
    bias = np.ones(256, np.float32)
    model = helper.make_model(
        helper.make_graph(
            [node], "g", [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 64, 8, 8])], [],
            [numpy_helper.from_array(weight, "w"), numpy_helper.from_array(bias, "b")],
        )
    )  # fmt: skip
    models.spread(model)
    found, same = (numpy_helper.to_array(tensor) for tensor in model.graph.initializer)
    reach = np.abs(found).max(axis=(1, 2, 3))
    assert reach.max() > 5 * reach.min()
    assert (found**2).mean() == pytest.approx((weight**2).mean(), rel=0.3)
    np.testing.assert_array_equal(same, bias)


def test_images_are_smooth_and_held_out_samples_are_others() -> None:
    make = models.images("x", 96)
    first, other = make(4, 0)["x"], make(4, 1)["x"]
    assert first.shape == (4, 3, 96, 96)
    assert first.dtype == np.float32
    np.testing.assert_array_equal(first, make(4, 0)["x"])
    assert not np.array_equal(first, other)
    steps = np.diff(first, axis=-1).std()
    assert steps < 0.75 * first.std()  # white noise has 1.4


def test_every_network_has_its_place(tmp_path: Path) -> None:
    found = models.subjects()
    assert len(found) >= 8
    assert set(peers.ADAROUND_ON) <= set(found)
    path = tmp_path / "model.onnx"
    found["bilstm"].make(path)
    shapes = [dim.dim_value for dim in onnx.load(path).graph.input[0].type.tensor_type.shape.dim]
    assert shapes == [1, 50, 128]
    assert 2e6 < models.parameters(path) < 30e6

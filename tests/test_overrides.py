# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""Encodings that AIMET exports, on the graphs that their networks become; and entries that no tensor can have."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from npukit.frontends.onnx import load
from npukit.lowering import Lowered, lower
from npukit.qnn.graph import DType, Encoding, Graph, Tensor
from npukit.quantization.encodings_file import Entry, read
from npukit.quantization.overrides import CARRIED, FUSED, HONOURED, ILLEGAL, LOST, UNKNOWN, Matched, match, report
from npukit.quantization.source import Source, read_source
from npukit.targets import target

DATA = Path(__file__).parent / "data" / "encodings"
NETWORKS = ("cnn", "transformer", "lstm")


def lowered(path: Path) -> Lowered:
    return lower(load(path).model, [target("qnn-cpu")])


@pytest.fixture(scope="module")
def networks() -> dict[str, tuple[Lowered, Source]]:
    return {name: (lowered(DATA / f"{name}.onnx"), read_source(DATA / f"{name}.onnx")) for name in NETWORKS}


def matched(networks: dict[str, tuple[Lowered, Source]], name: str, version: str = "2.0.0") -> Matched:
    graph, source = networks[name]
    return match(read(DATA / f"{name}.{version}.encodings"), graph.graph, graph.names, source)


def classes(found: Matched, status: str) -> dict[str, tuple[str, ...]]:
    return {row.entry.name: row.tensors for row in found.rows if row.status == status}


@pytest.mark.parametrize("version", ["0.6.1", "1.0.0", "2.0.0"])
@pytest.mark.parametrize("network", NETWORKS)
def test_every_entry_of_an_exported_file_has_a_class_and_none_is_an_error(
    networks: dict[str, tuple[Lowered, Source]], network: str, version: str
) -> None:
    found = matched(networks, network, version)
    entries = read(DATA / f"{network}.{version}.encodings")
    assert [row.entry for row in found.rows] == list(entries)
    assert {row.status for row in found.rows} <= {HONOURED, CARRIED, FUSED}
    assert found.faults() == []


def test_a_cnn(networks: dict[str, tuple[Lowered, Source]]) -> None:
    found = matched(networks, "cnn")
    assert set(classes(found, FUSED)) == {"zero", "six"}
    assert classes(found, CARRIED) == {}
    axes = {t.name: e.axis for t, e in found.forced.items() if e.per_channel}
    assert axes["stem_weight"] == axes["dw_weight"] == 3
    assert axes["fc_weight"] == axes["fc_bias"] == axes["stem_bias"] == 0


def test_the_axis_follows_where_the_file_does_not_say_it(networks: dict[str, tuple[Lowered, Source]]) -> None:
    for network in NETWORKS:
        grids = [
            {t.name: e.encoding(_dtype(e, t)) for t, e in matched(networks, network, version).forced.items()}
            for version in ("0.6.1", "1.0.0", "2.0.0")
        ]
        assert grids[0] == grids[1]
        assert grids[0].items() <= grids[2].items()


def test_a_transformer(networks: dict[str, tuple[Lowered, Source]]) -> None:
    found = matched(networks, "transformer")
    inside = {row.entry.name: row.rule for row in found.rows if row.status == FUSED}
    assert set(inside) == {"gelu.div", "gelu.erf", "gelu.add", "gelu.mul", "one", "half", "root2"}
    assert all("Gelu" in rule for rule in inside.values())
    carried = classes(found, CARRIED)
    assert carried["q"] == ("q_split",)
    assert carried["mixed.joined"] == ("mixed_tokens",)
    assert {t.name: e.axis for t, e in found.forced.items()}["q_weight"] == 0  # [K, N] became [N, K]


def test_an_lstm_that_was_unrolled(networks: dict[str, tuple[Lowered, Source]]) -> None:
    found = matched(networks, "lstm")
    carried = classes(found, CARRIED)
    assert {"lstm.W", "lstm.R", "lstm.last", "last"} <= set(carried)
    assert set(classes(found, FUSED)) == {"lstm.B", "lstm.all"}
    graph, source = networks["lstm"]
    tensors = {t.name: t for t in graph.graph.tensors()}
    for name in ("lstm.W", "lstm.R"):
        (piece,) = carried[name]
        assert np.array_equal(np.sort(tensors[piece].data, None), np.sort(source.constants[name](), None))
    (last,) = carried["last"]
    reads = next(op for op in graph.graph.ops if op.type == "FullyConnected").inputs[0]
    assert reads is tensors[last]


def entry(name: str, bits: int = 8, channels: int = 0, *, axis: int | None = None, scale: float = 0.5) -> Entry:
    count = channels or 1
    return Entry(name, "param", bits, "int", (scale,) * count, (0,) * count, bool(channels), axis=axis, line=7)


@pytest.mark.parametrize(
    ("made", "status", "says"),
    [
        (entry("stem.weigth"), UNKNOWN, "'stem.weight'"),
        (entry("stem", 4), ILLEGAL, "possible: 8, 16"),
        (entry("stem", 32), ILLEGAL, "possible: 8, 16"),
        (entry("stem.weight", 32), ILLEGAL, "32 bits are impossible for the weight of Conv2d"),
        (entry("stem.bias", 16), ILLEGAL, "possible: 8, 32"),
        (entry("stem.weight", 8, 7), ILLEGAL, "7 scales for 8 channels"),
        (entry("stem.weight", 8, 8, axis=1), ILLEGAL, "axis 1"),
        (entry("stem", 8, 8), ILLEGAL, "takes one scale"),
        (entry("stem.weight", 4, 8, axis=0), HONOURED, ""),
        (Entry("stem", "activation", 16, "float"), HONOURED, ""),
        (Entry("stem", "activation", 16), HONOURED, ""),
    ],
)
def test_entries_by_hand(networks: dict[str, tuple[Lowered, Source]], made: Entry, status: str, says: str) -> None:
    graph, source = networks["cnn"]
    (row,) = match([made], graph.graph, graph.names, source).rows
    assert row.status == status
    assert row.error is (status != HONOURED)
    assert says in f"{row.rule} {row.hint}"
    if row.error:
        assert "f.json:" in str(row.fault("f.json")) or not made.line


def test_names_of_the_artifact_do_without_the_source(networks: dict[str, tuple[Lowered, Source]]) -> None:
    graph, _ = networks["cnn"]
    bare = Graph("g", graph.graph.inputs, graph.graph.outputs, graph.graph.ops)
    found = match([entry("stem_weight", 8, 8), entry("nothing")], bare)
    assert [row.status for row in found.rows] == [HONOURED, UNKNOWN]


def test_entries_that_share_an_encoding_must_agree(networks: dict[str, tuple[Lowered, Source]]) -> None:
    graph, source = networks["transformer"]
    own, same = (Entry(name, "activation", 16, "int", (0.5,), (-7,)) for name in ("q.split", "q"))
    other = replace(same, scales=(0.25,))
    assert [r.status for r in match([same, own], graph.graph, graph.names, source).rows] == [CARRIED, HONOURED]
    rows = match([other, own], graph.graph, graph.names, source).rows
    assert [r.status for r in rows] == [ILLEGAL, HONOURED]
    assert "'q.split'" in rows[0].rule


def test_weights_that_a_folded_norm_changed_are_an_error(tmp_path: Path) -> None:
    random = np.random.default_rng(0)

    def constant(name: str, *shape: int) -> onnx.TensorProto:
        return numpy_helper.from_array(random.uniform(0.5, 1, shape).astype(np.float32), name)

    nodes = [
        helper.make_node("Conv", ["x", "w", "b"], ["c"], name="conv"),
        helper.make_node("BatchNormalization", ["c", "s", "t", "m", "v"], ["y"], name="norm"),
    ]
    weights = [constant("w", 4, 3, 1, 1), *(constant(n, 4) for n in "bstmv")]
    values = [helper.make_tensor_value_info(n, TensorProto.FLOAT, (1, c, 5, 5)) for n, c in (("x", 3), ("y", 4))]
    graph = helper.make_graph(nodes, "g", values[:1], values[1:], weights)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), tmp_path / "m.onnx")
    made = lowered(tmp_path / "m.onnx")
    found = match([entry("w", 8, 4), entry("c"), entry("y")], made.graph, made.names, read_source(tmp_path / "m.onnx"))
    assert [(row.status, row.error) for row in found.rows] == [(FUSED, True), (FUSED, False), (HONOURED, False)]
    assert "fold batch normalization" in found.rows[0].hint


# -- what the artifact holds -------------------------------------------------------------------------------------------


def _dtype(made: Entry, tensor: Tensor) -> DType:
    signed = tensor.data is not None
    return {
        (8, False): DType.UFIXED_POINT_8, (16, False): DType.UFIXED_POINT_16,
        (4, True): DType.SFIXED_POINT_8, (8, True): DType.SFIXED_POINT_8,
        (16, True): DType.SFIXED_POINT_16, (32, True): DType.SFIXED_POINT_32,
    }[made.bitwidth, signed]  # fmt: skip


def quantized(graph: Graph, found: Matched) -> Graph:
    """The graph with every forced encoding on its tensor: what a right quantization writes."""
    swap = {t: replace(t, dtype=_dtype(e, t), encoding=e.encoding(_dtype(e, t))) for t, e in found.forced.items()}
    ops = [
        replace(
            op, inputs=[swap.get(t, t) if t else None for t in op.inputs], outputs=[swap.get(t, t) for t in op.outputs]
        )
        for op in graph.ops
    ]
    return Graph(graph.name, [swap.get(t, t) for t in graph.inputs], [swap.get(t, t) for t in graph.outputs], ops)


@pytest.mark.parametrize("network", NETWORKS)
def test_the_report_reads_the_numbers_back(networks: dict[str, tuple[Lowered, Source]], network: str) -> None:
    found = matched(networks, network)
    written = quantized(networks[network][0].graph, found)
    told = report(found, written, "x.encodings")
    assert told.exit_code == 0
    assert [row.status for row in told.rows] == [row.status for row in found.rows]
    assert sum(told.counts[status] for status in (HONOURED, CARRIED, FUSED)) == len(found.rows)
    for tensor in written.tensors():
        if tensor.encoding is not None and tensor.encoding.axis is None:
            tensor.encoding = Encoding.per_tensor(
                float(np.nextafter(np.float32(tensor.encoding.scale), np.float32(9))), tensor.encoding.offset
            )
            break
    told = report(found, written, "x.encodings")
    assert told.counts[LOST] >= 1
    assert "scale" in str(told.faults[0])
    assert told.faults[0].where.startswith("x.encodings:")
    assert LOST in told.to_text()


def test_the_report_lists_what_no_entry_covers(networks: dict[str, tuple[Lowered, Source]]) -> None:
    graph, source = networks["cnn"]
    found = match([entry("stem.relu")], graph.graph, graph.names, source)
    told = report(found, quantized(graph.graph, found))
    assert "stem" in told.floats
    assert "stem_relu" not in told.floats
    assert told.filled == ()
    assert told.to_json()["counts"]["honoured"] == 1
    untouched = report(found, graph.graph)
    assert untouched.rows[0].status == LOST
    assert untouched.rows[0].rule == "the artifact holds FLOAT_32"

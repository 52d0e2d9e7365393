# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""Networks of realistic topology: alive, equal on QNN CPU and near on HTP; verification fails on every mutant.

The small variants run here; the full ones (`slow`) are what docs/results/networks.md shows.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import npukit
from networks import NETWORKS, Network, build, tflite
from networks.catalogue import samples
from networks.measure import Made, compile_for_htp, convert, liveliness, verified, write_samples
from npukit.artifacts import dlc
from npukit.cli.main import main
from npukit.qnn.graph import Graph, Model, Op
from tests.mutants import mutants

COUNT = 4
EACH = pytest.mark.parametrize("network", NETWORKS.values(), ids=list(NETWORKS))
CONVOLUTIONAL = [network for network in NETWORKS.values() if network.convolutional]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory):
    """Converts a network once per size."""
    folder, done = tmp_path_factory.mktemp("networks"), {}

    def make(network: Network, size: str = "small") -> Made:
        key = f"{network.name}_{size}"
        if key not in done:
            done[key] = convert(network, size, folder)
        return done[key]

    return make


def _judge(made: Made, backend: str) -> None:
    outcome = verified(made, COUNT, backend)
    assert outcome.passed, outcome.to_text()
    share, sqnr = (1e-3, 60) if backend == "qnn-cpu" else (2e-2, 40)
    for output in outcome.outputs:
        assert output.metrics is not None
        assert output.metrics.max_share <= share
        assert output.metrics.sqnr_db is not None
        assert output.metrics.sqnr_db >= sqnr


@EACH
def test_a_network_is_alive(network: Network, tmp_path: Path) -> None:
    model = build(network, "small", tmp_path / "model.onnx")
    for name, cosine in liveliness(model, samples(network, "small", COUNT)).items():
        assert cosine < 0.9, name


def test_a_tflite_network_that_answers_all_alike_is_listed() -> None:
    labels, unknown = tflite.Answers(np.zeros(4), None), tflite.Answers(None, None)
    for nearest, answers, failed in (
        (0.899, unknown, []),
        (0.9, unknown, ["it is not alive: 0.9000"]),
        (float("nan"), unknown, ["it is not alive: nan"]),
        (1.0, labels, []),  # samples of one class are alike
    ):
        row = tflite.Row({})
        tflite._alive(row, nearest, answers)
        assert (row.cells["nearest pair"], row.failed) == (f"{nearest:.2f}", failed)


@EACH
def test_building_is_reproducible(network: Network, tmp_path: Path) -> None:
    first, second = (build(network, "small", tmp_path / f"{i}.onnx") for i in (1, 2))
    assert first.SerializeToString(deterministic=True) == second.SerializeToString(deterministic=True)


@pytest.mark.native
@EACH
def test_qnn_cpu_agrees(network: Network, made) -> None:
    _judge(made(network), "qnn-cpu")


@pytest.mark.native
@EACH
def test_the_htp_emulator_agrees(network: Network, made, tmp_path: Path) -> None:
    binary = compile_for_htp(made(network), tmp_path)
    _judge(binary, "qnn-htp")


@pytest.mark.native
@pytest.mark.parametrize("network", CONVOLUTIONAL, ids=lambda network: network.name)
def test_a_convolutional_network_turns_only_its_ends(network: Network, made, tmp_path: Path) -> None:
    assert made(network).converted.converted.ops.get("Transpose", 0) <= 2
    nhwc = convert(network, "small", tmp_path, io_layout="nhwc")
    assert "Transpose" not in nhwc.converted.converted.ops
    _judge(nhwc, "qnn-cpu")


@pytest.mark.native
@pytest.mark.slow
@EACH
def test_full_size(network: Network, made) -> None:
    full = made(network, "full")
    assert max(liveliness(full.source, samples(network, "full", COUNT)).values()) < 0.9
    _judge(full, "qnn-cpu")
    if network.convolutional:
        assert full.converted.converted.ops.get("Transpose", 0) <= 2


@pytest.mark.native
@pytest.mark.slow
@EACH
def test_full_size_on_htp(network: Network, made, tmp_path: Path) -> None:
    binary = compile_for_htp(made(network, "full"), tmp_path)
    assert binary.artifact.stat().st_size > 0
    if network.full.emulate:
        _judge(binary, "qnn-htp")


LIGHT = Path(str(__import__("onnx").__file__)).parent / "backend" / "test" / "data" / "light"


LARGE = ("vgg19", "zfnet512", "bvlc_alexnet")  # hundreds of MB of weights, made in the graph
SOURCES = [
    pytest.param(path, id=path.stem, marks=pytest.mark.slow if path.stem.endswith(LARGE) else ())
    for path in sorted(LIGHT.glob("*.onnx"))
]


@pytest.mark.native
@pytest.mark.parametrize("source", SOURCES)
def test_light_models_convert_for_structure(source: Path, tmp_path: Path) -> None:
    result = npukit.convert(source, tmp_path / "light.dlc", verify=False, batch=1)
    assert result.path is not None
    assert result.path.exists() or result.converted.constants


# ---------------------------------------------------------------- mutants


def _copy(graph: Graph) -> Graph:
    """The graph with ops of its own and the same tensors."""
    ops = [Op(o.name, o.type, list(o.inputs), list(o.outputs), dict(o.params), o.package, o.origin) for o in graph.ops]
    return Graph(graph.name, list(graph.inputs), list(graph.outputs), ops)


@pytest.mark.native
@EACH
def test_verify_fails_on_every_mutant(network: Network, made, tmp_path: Path) -> None:
    one = made(network)
    model, stamp = dlc.read(one.artifact)
    (graph,) = model.graphs.values()
    inputs = write_samples(network, "small", 1, tmp_path)

    def exit_code(mutant: Graph) -> int:
        path = tmp_path / "mutant.dlc"
        dlc.write(Model({mutant.name: mutant}), path, stamp)
        return npukit.verify(path, against=one.source, inputs=inputs, in_process=True).exit_code

    assert exit_code(_copy(graph)) == 0
    codes = {name: exit_code(make()) for name, make in mutants(lambda: _copy(graph))}
    assert len(codes) >= 10
    assert [name for name, code in codes.items() if code != 1] == []


@pytest.mark.native
@pytest.mark.parametrize("name", ["resnet50", "bert_base"])
def test_the_command_exits_1_on_mutants(name: str, made, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    network = NETWORKS[name]
    one = made(network)
    model, stamp = dlc.read(one.artifact)
    (graph,) = model.graphs.values()
    (_, data), *_ = write_samples(network, "small", 1, tmp_path)
    path = tmp_path / "mutant.dlc"
    for _, make in list(mutants(lambda: _copy(graph)))[:2]:
        mutant = make()
        dlc.write(Model({mutant.name: mutant}), path, stamp)
        command = ["verify", str(path), "--against", str(one.source), "--input", str(data), "--json"]
        assert main(command) == 1
        outputs = json.loads(capsys.readouterr().out)["outputs"]
        assert not all(output["passed"] for output in outputs)
        assert all(np.isfinite(output["metrics"]["max_abs"]) for output in outputs)

# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""A fixed part of the fuzzing (`make fuzz` runs 20,000 files), and the fuzzer itself."""

from __future__ import annotations

import io
import pickle
import random
import zipfile
from pathlib import Path

import pytest

from fuzz import corpus, execute, frameworks, mutate, mutate_artifacts, mutate_sources
from fuzz.__main__ import Run
from npukit.errors import Fault, ModelError, WorkerDied
from npukit.files import zip_entries
from npukit.frontends.pytorch.kinds import kind_of
from npukit.frontends.tensorflow.kinds import kind_of as tf_kind
from npukit.worker import Pool
from tests.test_frontend_tensorflow import graph_def, node

ROOT = Path(__file__).resolve().parents[1]
COUNT = 400


@pytest.mark.native
def test_mutated_files_are_refused_in_a_sentence_and_leave_nothing() -> None:
    run = Run(list(corpus.KINDS), COUNT, number=7, seeds=10, jobs=2, limit=None, out=ROOT / "results" / "fuzz")
    run.go(lambda text: None)
    assert [(v.case, v.why, v.error, v.text[:300], v.detail[-600:]) for v in run.bad] == []
    assert run.leftovers == []
    assert run.done == COUNT
    for stage, share in (("parser", 0.3), ("native", 0.1)):
        assert sum(run.passed[kind, stage] for kind in corpus.KINDS) >= share * COUNT, stage
    assert sum(run.verdicts[kind, "refused"] for kind in corpus.KINDS) >= COUNT // 4  # they are mutated indeed
    assert sum(run.verdicts[kind, "done"] for kind in corpus.KINDS) >= COUNT // 10


@pytest.mark.native
@pytest.mark.slow
@pytest.mark.parametrize("kinds", [("pt2", "pt"), ("pb", "savedmodel")])
def test_mutated_files_of_frameworks_are_refused_in_a_sentence(kinds: tuple[str, ...], tmp_path: Path) -> None:
    if frameworks.missing(kinds[0]):
        pytest.skip(f"needs {frameworks.missing(kinds[0])}")
    run = Run(list(kinds), 40, number=7, seeds=10, jobs=1, limit=None, out=tmp_path)
    run.go(lambda text: None)
    assert [(v.case, v.why, v.error, v.text[:300], v.detail[-600:]) for v in run.bad] == []
    assert (run.leftovers, run.done) == ([], 40)
    assert all(run.verdicts[kind, "refused"] and run.verdicts[kind, "done"] for kind in kinds)


def test_an_archive_and_a_graph_are_mutated_inside(tmp_path: Path) -> None:
    names = ["m/data.pkl", "m/code/a.py", "m/version", "m/models/m.json", "m/data/weights/w"]
    parts = [pickle.dumps({"a": [1, 2]}, 2), b"def forward(self, x):\n  return x\n", b"3", b'{"a":[1,"b"]}', bytes(64)]
    sound = mutate_sources._packed(list(zip(names, parts, strict=True)))
    with zipfile.ZipFile(io.BytesIO(sound)) as source:
        assert [source.read(name) for name in names] == parts
    graph = graph_def(node("x", "Placeholder"), node("y", "Relu", "x"), node("z", "Add", "x", "y"))
    for data, mutate_one, whole in ((sound, mutate_sources.archive, kind_of), (graph, mutate_sources.graph, tf_kind)):
        made = [mutate_one(random.Random(i), {"f": data}, "f")["f"] for i in range(100)]
        assert len(set(made)) > 80
        path = tmp_path / "f"
        kinds = []
        for content in made:
            path.write_bytes(content)
            kinds.append(whole(path))
        assert 30 < sum(kind is not None for kind in kinds) < 100  # most keep their structure, some lose it


def test_tables_of_a_flatbuffer_are_changed_by_meaning() -> None:
    pytest.importorskip("ai_edge_litert")
    data = (ROOT / "tests" / "data" / "tflite" / "network_int8.tflite").read_bytes()
    made = [mutate_sources._tables(random.Random(i), data) for i in range(40)]
    assert len(set(made)) > 30
    assert all(one[4:8] == b"TFL3" for one in made if len(one) > 8 and one[:4] == data[:4])


@pytest.fixture
def seeds(tmp_path: Path) -> list[corpus.Seed]:
    with Pool(1) as pool:
        return corpus.load("npz", tmp_path, pool, 5)


def test_a_case_is_made_again_from_its_name(seeds: list[corpus.Seed]) -> None:
    cases = [execute.make("npz", seeds, 1, i) for i in range(30)]
    assert cases == [execute.make("npz", seeds, 1, i) for i in range(30)]
    assert len({tuple(case.files.values()) for case in cases}) > 20
    assert cases != [execute.make("npz", seeds, 2, i) for i in range(30)]


def test_a_packed_zip_is_one_that_our_reader_takes() -> None:
    parts = [("model", b"abc"), ("model.params", b""), ("npukit.json", b"{}")]
    for zip64 in (False, True):
        data = mutate_artifacts.pack(parts, zip64=zip64)
        assert [entry.name for entry in zip_entries(data)] == [name for name, _ in parts]
        assert mutate_artifacts.members(data) == dict(parts)


def test_raw_and_json_damage_changes_something() -> None:
    rng = random.Random(0)
    data = bytes(range(256)) * 4
    assert sum(mutate.raw(rng, data) != data for _ in range(200)) > 180
    text = b'{"a":[1,2,{"b":"c"}],"d":true,"e":0.5}'
    assert sum(mutate.json_text(rng, text) != text for _ in range(200)) > 180
    assert mutate.raw(rng, b"") != b""


@pytest.mark.parametrize(
    ("error", "outcome", "why"),
    [
        (None, "done", ""),
        (ModelError("it is broken", where="m.onnx"), "refused", ""),
        (ModelError(""), "bad", "the message is empty"),
        (ModelError("Traceback (most recent call last): x"), "bad", "the message shows Python's insides"),
        (ModelError("x", faults=[Fault("y" * 900)] * 100), "bad", "the message is too long"),
        (WorkerDied("the worker process was ended by SIGSEGV during composeGraphs"), "died", ""),
        (WorkerDied("the worker process gave no answer within 90 s"), "bad", "a hang"),
    ],
)
def test_verdicts(error: ModelError | None, outcome: str, why: str, tmp_path: Path) -> None:
    case = execute.Case("npz:0", "npz", "s", {"x.npy": b"1"}, "x.npy")

    def action(watch: object) -> None:
        if error is not None:
            raise error

    verdict = execute._attempt(case, tmp_path / "case", action)
    assert (verdict.outcome, verdict.why) == (outcome, why)


def test_what_is_left_behind_is_bad(tmp_path: Path) -> None:
    case = execute.Case("npz:0", "npz", "s", {"x.npy": b"1"}, "x.npy")

    def action(watch: object) -> None:
        (tmp_path / "case" / "out" / ".y.npukit-tmp").write_bytes(b"")

    verdict = execute._attempt(case, tmp_path / "case", action)
    assert (verdict.outcome, verdict.why, verdict.detail) == ("bad", "something was left behind", ".y.npukit-tmp")
    other = execute._attempt(case, tmp_path / "case", lambda watch: [][0])
    assert (other.outcome, other.error, other.exit_code) == ("bad", "IndexError", 4)

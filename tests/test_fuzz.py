# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""A fixed part of the fuzzing (`make fuzz` runs 20,000 files), and the fuzzer itself."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from fuzz import corpus, execute, mutate, mutate_artifacts
from fuzz.__main__ import Run
from npukit.errors import Fault, ModelError, WorkerDied
from npukit.files import zip_entries
from npukit.worker import Pool

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

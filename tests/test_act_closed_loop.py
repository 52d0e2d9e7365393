# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""ACT from a checkpoint to a robot by the commands alone: exported, run, evaluated in the light scene, served."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("msgpack")
pytest.importorskip("websockets")

from sim_tools import needs_rendering  # noqa: E402

import npukit  # noqa: E402
from npukit.cli.main import main  # noqa: E402
from npukit.policies import observations  # noqa: E402
from npukit.serving.serve_verb import ServeResult, serve  # noqa: E402
from tests import act_tools as tools  # noqa: E402
from tests.serving_tools import ask, client  # noqa: E402

SIZE, CHUNK = 32, 10
CAMERAS = ("observation.images.image", "observation.images.image2")  # the light scene's


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny ACT with the light scene's cameras, state and actions, and with a temporal ensemble."""
    folder = tmp_path_factory.mktemp("act-closed-loop")
    values = tools.config(
        cameras=CAMERAS, size=(SIZE, SIZE), state=8, action=7, n_action_steps=1, temporal_ensemble_coeff=0.1
    )
    tools.write_checkpoint(folder / "checkpoint", values)
    assert main(["policy", "export", str(folder / "checkpoint"), "-o", str(folder / "policy"), "--in-process"]) == 0
    return folder / "policy"


def said(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> dict[str, Any]:
    """What a command that succeeds prints as JSON."""
    capsys.readouterr()
    assert main([*map(str, arguments), "--json"]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def test_it_runs(package: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = said(capsys, "policy", "run", package, "--random", "2")
    assert (found["kind"], found["backend"], found["shape"]) == ("act", "ort", [2, CHUNK, 7])
    assert set(found["seconds"]) == {"preprocess", "policy", "postprocess", "total"}
    assert main(["policy", "run", str(package), "--stats", "--workers"]) == 0
    assert "peak memory of this process, without its components': " in capsys.readouterr().out


@needs_rendering
def test_it_plays_episodes_in_the_light_scene(
    package: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ("policy", "eval", package, "--env", "light", "--task", "reach_red", "--steps-limit", "6")
    both = said(capsys, *options, "--episodes", "2", "--record", "6", "-o", tmp_path / "both")
    assert [(one["steps"], one["reason"]) for one in both["episodes"]] == [(6, "step limit")] * 2
    alone = said(capsys, *options, "--episodes", "1", "--seed", "100001", "-o", tmp_path / "alone")
    # The ensemble forgets the first episode: the second is the same without it.
    assert alone["episodes"][0]["actions"] == both["episodes"][1]["actions"] != both["episodes"][0]["actions"]
    seen = observations.read(tmp_path / "both" / "observations" / "reach_red-0000.npz")
    assert [one[CAMERAS[0]].shape for one in seen] == [(SIZE, SIZE, 3)] * 6
    with npukit.Policy(package) as policy:
        chunks = [policy.predict_chunk(one) for one in seen]
        acted = [policy.select_action(one) for one in seen]
    assert np.abs(np.stack(chunks)[:, 0] - acted)[1:].max() > 1e-4  # what acts is the mean of all predictions


def test_it_is_served(package: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = said(capsys, "policy", "serve", package, "--check")
    assert found["check"]["actions"] == [CHUNK, 7]
    lines: list[str] = []
    results: list[ServeResult] = []
    told, stop = threading.Event(), threading.Event()

    def work() -> None:
        results.append(serve(package, port=0, ready=lambda line: (lines.append(line), told.set()), stop=stop))

    thread = threading.Thread(target=work)
    thread.start()
    try:
        assert told.wait(60)
        with npukit.Policy(package) as policy, client(lines[0].rpartition("ws://")[2]) as opened:
            for given in observations.generate(policy.manifest, policy.statistics, 3, seed=5):
                images = {name: np.asarray(value) for name, value in given.items() if name in CAMERAS}
                got = ask(opened, {**images, "observation.state": given["observation.state"]})
                np.testing.assert_allclose(got["actions"], policy.predict_chunk(given), atol=1e-5)
    finally:
        stop.set()
        thread.join(20)
    assert (results[0].stopped_by, results[0].exit_code) == ("program", 0)
    assert "1 clients, 3 observations answered" in results[0].to_text()

# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""`npukit policy serve` with a tiny policy folder: the command, its options, its check and its end."""

from __future__ import annotations

import importlib
import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("websockets")
pytest.importorskip("msgpack")

from npukit.errors import MissingDependency, UsageError  # noqa: E402
from npukit.serving.serve_verb import BACKENDS, TOKEN_VARIABLE, ServeResult, serve  # noqa: E402
from tests.serving_tools import ACTIONS, STEPS, ask, client, libero, write_package  # noqa: E402

TOKEN = "0123456789abcdef0123456789abcdef"


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_package(tmp_path_factory.mktemp("serving") / "policy")


@pytest.fixture(autouse=True)
def no_token(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(TOKEN_VARIABLE, raising=False)


def command(*arguments: str | Path, **options: Any) -> subprocess.Popen[str]:
    line = [sys.executable, "-m", "npukit", "policy", "serve", *map(str, arguments)]
    return subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options)


@pytest.fixture
def started(package: Path) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """The running command and its address."""
    with command(package, "--port", "0", "--json") as process:
        assert process.stderr is not None
        line = process.stderr.readline()
        found = re.search(r"ws://(\S+)", line)
        assert found is not None, line
        yield process, found[1]
        process.kill()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 0), (signal.SIGINT, 130)])
@pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")
def test_it_serves_until_a_signal(
    started: tuple[subprocess.Popen[str], str], number: signal.Signals, code: int
) -> None:
    process, address = started
    with client(address) as opened:
        assert opened.metadata["backend"] == "ort"
        found = ask(opened, libero(2))
        assert found["actions"].shape == (STEPS, ACTIONS)
        np.testing.assert_allclose(found["actions"], 2 + 10 / 255, rtol=1e-5)
        assert {"infer_ms", "preprocess_ms", "policy_ms", "postprocess_ms", "total_ms"} == set(found["policy_timing"])
        process.send_signal(number)
        out, err = process.communicate(timeout=20)
    assert process.returncode == code
    result = json.loads(out)
    assert result["stopped_by"] == number.name
    assert result["answered"] == result["clients"] == 1
    assert "Traceback" not in err


def test_the_check_answers_one_request_and_ends(package: Path) -> None:
    with command(package, "--check") as process:
        out, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (0, "")
    assert "1 observations answered" in out
    assert f"actions [{STEPS}, {ACTIONS}]" in out


def test_python_can_serve_too(package: Path) -> None:
    lines: list[str] = []
    told, stop = threading.Event(), threading.Event()
    results: list[ServeResult] = []

    def work() -> None:
        results.append(serve(package, port=0, ready=lambda line: (lines.append(line), told.set()), stop=stop))

    thread = threading.Thread(target=work)
    thread.start()
    assert told.wait(30)
    with client(lines[0].rpartition("ws://")[2]) as opened:
        ask(opened, libero())
    stop.set()
    thread.join(20)
    assert results[0].stopped_by == "program"
    assert results[0].exit_code == 0
    assert "1 clients, 1 observations answered" in results[0].to_text()


def test_the_check_passes_with_token_and_keys(package: Path, tmp_path: Path) -> None:
    (tmp_path / "token").write_text(TOKEN + "\n")
    (tmp_path / "token").chmod(0o600)
    (tmp_path / "keys.json").write_text('{"observation.images.top": "cam0", "ignore": ["time"]}')
    result = serve(
        package, check=True, host="0.0.0.0", token_file=tmp_path / "token", keys=tmp_path / "keys.json", seed=1
    )
    assert result.stopped_by == "check"
    assert result.check["actions"] == [STEPS, ACTIONS]
    json.dumps(result.to_json(), allow_nan=False)


def test_the_token_may_come_from_the_environment(package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(TOKEN_VARIABLE, TOKEN)
    assert serve(package, check=True, host="0.0.0.0").exit_code == 0


@pytest.mark.parametrize("host", ["0.0.0.0", "::"])
def test_other_machines_need_a_token(package: Path, host: str) -> None:
    if host == "::" and not os.path.exists("/proc/net/if_inet6"):
        pytest.skip("no IPv6 here")
    with pytest.raises(UsageError, match="must send a token"):
        serve(package, check=True, host=host)


@pytest.mark.parametrize("text", ["", "short", "0123456789abcde ", "0123456789 abcdef", "0123456789abcdefä", "\0" * 20])
def test_a_token_that_is_none(package: Path, tmp_path: Path, text: str) -> None:
    path = tmp_path / "token"
    path.write_text(text)
    with pytest.raises(UsageError, match="a token has at least 16"):
        serve(package, check=True, token_file=path)


@pytest.mark.parametrize(
    ("options", "where"),
    [
        ({"port": 70_000}, "--port"),
        ({"port": -1}, "--port"),
        ({"max_message": 0.0}, "--max-message"),
        ({"max_message": float("nan")}, "--max-message"),
        ({"max_message": 1e9}, "--max-message"),
        ({"max_clients": 0}, "--max-clients"),
        ({"backend": "cuda"}, "backend"),
        ({"policy": Path("nowhere")}, "nowhere"),
    ],
)
def test_options_that_cannot_be_meant(package: Path, options: dict[str, Any], where: str) -> None:
    with pytest.raises(UsageError) as caught:
        serve(**{"policy": package, "check": True, **options})
    assert caught.value.where == where


def test_a_port_that_is_taken_is_told_before_the_policy_is_loaded(tmp_path: Path) -> None:
    from npukit.serving.address import bind

    with bind("127.0.0.1", 0) as taken:
        taken.listen()
        with pytest.raises(UsageError, match="another program"):
            serve(tmp_path, port=taken.getsockname()[1])


def test_without_the_extra_it_says_how_to_get_it(package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "websockets", None)
    with pytest.raises(MissingDependency, match="websockets") as caught:
        serve(package, check=True)
    assert "npukit[serve]" in caught.value.hint
    assert caught.value.exit_code == 3


def test_the_backends_are_the_policys() -> None:
    assert importlib.import_module("npukit.policies.policy").BACKENDS == BACKENDS

# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""`python -m benchmarks.serving`: a policy server under load by several clients, over real sockets.

A stand-in only waits (0 and 20 ms a chunk): what is left is the server's own. After it come the policies whose folders
are given. Each client is a thread of this process, the server another process. A client asks again as soon as it has
its answer, or with --rate as often as a robot would; where several ask, the server answers one after the other.

Columns: observations answered a second; round trip as a client sees it; the server's inference and its wait for the
turn (behind other clients'); overhead, the round trip less those two: packing, sockets, checks, unpacking.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

from benchmarks import pages
from npukit.policies.package import Camera, Feature, Manifest
from npukit.serving.keys import KeyMap, example
from npukit.serving.messages import pack, unpack

CAMERAS = ("observation.images.image", "observation.images.wrist_image")
IMAGE, STATE, ACTIONS, STEPS = 224, 8, 7, 50


@dataclass
class Times:
    """What one client saw: milliseconds of each answered observation, and how many got an error."""

    total: list[float] = field(default_factory=list)
    infer: list[float] = field(default_factory=list)
    wait: list[float] = field(default_factory=list)
    errors: int = 0


@dataclass(frozen=True)
class Row:
    """One load.

    Attributes:
        server: what was served.
        clients: how many asked at a time.
        per_second: observations answered in a second, all clients together.
        total_ms: median and 99th percentile of the round trip, as are the next three.
        infer_ms: the policy's share.
        wait_ms: for the turn.
        overhead_ms: the rest.
        errors: observations that got an error.
    """

    server: str
    clients: int
    per_second: float
    total_ms: tuple[float, float]
    infer_ms: tuple[float, float]
    wait_ms: tuple[float, float]
    overhead_ms: tuple[float, float]
    errors: int


class WaitingPolicy:
    """Stands in for a policy: waits, and gives zeros. Its two cameras, state and instruction are LIBERO's."""

    def __init__(self, seconds: float) -> None:
        self.seconds = {"wait": seconds}
        self.manifest = Manifest(
            kind="stand-in",
            config={},
            inputs={
                **{name: Feature("VISUAL", (3, IMAGE, IMAGE)) for name in CAMERAS},
                "observation.state": Feature("STATE", (STATE,)),
            },
            outputs={"action": Feature("ACTION", (ACTIONS,))},
            cameras=tuple(Camera(name, slot) for slot, name in enumerate(CAMERAS)),
            preprocessing=(),
            postprocessing=(),
            components=(),
            chunk_size=STEPS,
            n_action_steps=STEPS,
            tokenizer={"file": "tokenizer.json"},
        )

    def predict_chunk(self, observation: Any) -> Any:
        """float32 [50, 7] of zeros, after the wait."""
        time.sleep(self.seconds["wait"])
        return np.zeros((STEPS, ACTIONS), np.float32)

    def reset(self) -> None:
        """Nothing to forget."""


def serve_waiting(milliseconds: float) -> int:
    """Serve a `WaitingPolicy` until stdin ends; its address is the first line of stderr."""
    from npukit.serving.server import Limits, PolicyServer, background

    server = PolicyServer(WaitingPolicy(milliseconds / 1e3), limits=Limits(connections=256))
    server.warm_up()
    with background(server) as address:
        sys.stderr.write(f"ws://{address}\n")
        sys.stderr.flush()
        sys.stdin.read()
    return 0


@contextlib.contextmanager
def started(command: Sequence[str]) -> Iterator[str]:
    """Run a server for as long as the block lasts; gives its URL, which its stderr names."""
    with subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        lines = []
        for line in process.stderr:
            found = re.search(r"ws://\S+", line)
            if found:
                break
            lines.append(line)
        else:
            raise RuntimeError("the server did not start: " + "".join(lines)[-2000:])
        try:
            yield found[0]
        finally:
            assert process.stdin is not None
            process.stdin.close()
            process.terminate()
            process.wait(30)


def observation(metadata: dict[str, Any]) -> dict[str, Any]:
    """One that fits the server's policy: random images, so that nothing is easier than in life."""
    inputs = {name: Feature(f["kind"], tuple(f["shape"])) for name, f in metadata["inputs"].items()}
    cameras = tuple(Camera(name, slot) for slot, name in enumerate(metadata["cameras"]))
    task = {"file": ""} if metadata["takes_task"] else None
    manifest = Manifest("", {}, inputs, {}, cameras, (), (), (), 1, 1, task)
    made = example(KeyMap(manifest))
    rng = np.random.default_rng(0)
    for name, value in made.items():
        if isinstance(value, np.ndarray) and value.dtype == np.uint8:
            made[name] = rng.integers(0, 256, value.shape, np.uint8)
    return made


def client(
    url: str, token: str | None, until: list[float], begin: threading.Barrier, rate: float, times: Times
) -> None:
    """Ask until the time is over; fills `times`."""
    headers = {"Authorization": f"Api-Key {token}"} if token else None
    host, _, port = url.removeprefix("ws://").rstrip("/").rpartition(":")
    link = socket.create_connection((host.strip("[]"), int(port)))  # not through a proxy
    with connect(url, sock=link, compression=None, max_size=None, additional_headers=headers) as opened:
        first = opened.recv()
        assert isinstance(first, bytes)
        made = observation(unpack(first))
        begin.wait()
        due = time.perf_counter()
        while time.perf_counter() < until[0]:
            started_at = time.perf_counter()
            try:
                opened.send(pack(made))
                answer = opened.recv()
            except ConnectionClosed:
                times.errors += 1
                return
            if isinstance(answer, str):
                times.errors += 1
                continue
            timing = unpack(answer)["server_timing"]
            times.total.append(1e3 * (time.perf_counter() - started_at))
            times.infer.append(timing["infer_ms"])
            times.wait.append(timing["wait_ms"])
            if rate:
                due = max(due + 1 / rate, time.perf_counter())
                time.sleep(max(0.0, due - time.perf_counter()))


def load(url: str, name: str, clients: int, seconds: float, rate: float, token: str | None) -> Row:
    """One row of the table."""
    until = [float("inf")]
    begin = threading.Barrier(clients + 1)
    all_times = [Times() for _ in range(clients)]
    threads = [
        threading.Thread(target=client, args=(url, token, until, begin, rate, times), daemon=True)
        for times in all_times
    ]
    for thread in threads:
        thread.start()
    begin.wait(60)
    started_at = time.perf_counter()
    until[0] = started_at + seconds
    for thread in threads:
        thread.join()
    took = time.perf_counter() - started_at
    total, infer, wait = (np.array([t for each in all_times for t in getattr(each, part)]) for part in
                          ("total", "infer", "wait"))  # fmt: skip
    if not total.size:
        raise RuntimeError("no observation was answered")
    overhead, errors = total - infer - wait, sum(each.errors for each in all_times)
    rate_all = round(total.size / took, 1)
    return Row(name, clients, rate_all, _spread(total), _spread(infer), _spread(wait), _spread(overhead), errors)


def _spread(values: Any) -> tuple[float, float]:
    return round(float(np.percentile(values, 50)), 2), round(float(np.percentile(values, 99)), 2)


def table(rows: Sequence[Row]) -> str:
    """The rows as Markdown."""
    head = ("server", "clients", "1/s", "round trip p50", "p99", "inference p50", "wait p50", "overhead p50", "p99",
            "errors")  # fmt: skip
    lines = [head, tuple("---" for _ in head)]
    for row in rows:
        lines.append(
            (row.server, str(row.clients), f"{row.per_second:.1f}", *(f"{t:.2f}" for t in row.total_ms),
             f"{row.infer_ms[0]:.2f}", f"{row.wait_ms[0]:.2f}", *(f"{t:.2f}" for t in row.overhead_ms),
             str(row.errors))
        )  # fmt: skip
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """Load a policy server with several clients and print a table (milliseconds); exits 1 where one got an error."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.serving", description=main.__doc__)
    parser.add_argument("policies", nargs="*", help="policy folders to serve")
    parser.add_argument("--url", help="ws://HOST:PORT of a server that runs already")
    parser.add_argument("--token", help="its token")
    parser.add_argument("--backend", default="ort", help="of the policy folders")
    parser.add_argument("--clients", default="1,2,4,8", help="numbers of clients")
    parser.add_argument("--seconds", type=float, default=5.0, help="for each number")
    parser.add_argument("--rate", type=float, default=0.0, help="observations a second of each client [at once]")
    parser.add_argument("--infer-ms", default="0,20", help="what the stand-in waits; '' for no stand-in")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--markdown", type=Path)
    parser.add_argument("--serve-waiting", type=float, help=argparse.SUPPRESS)
    chosen = parser.parse_args(arguments)
    if chosen.serve_waiting is not None:
        return serve_waiting(chosen.serve_waiting)
    counts = [int(text) for text in chosen.clients.split(",")]
    servers: dict[str, contextlib.AbstractContextManager[str]] = {}
    if chosen.url:
        servers[chosen.url] = contextlib.nullcontext(chosen.url)
    else:
        for text in filter(None, chosen.infer_ms.split(",")):
            command = [sys.executable, "-m", "benchmarks.serving", "--serve-waiting", text]
            servers[f"stand-in, {text} ms"] = started(command)
        for folder in chosen.policies:
            command = [sys.executable, "-m", "npukit", "policy", "serve", folder, "--port", "0",
                       "--backend", chosen.backend, "--max-clients", str(max(counts))]  # fmt: skip
            servers[f"{Path(folder).name} ({chosen.backend})"] = started(command)
    rows = []
    for name, context in servers.items():
        with context as url:
            rows += [load(url, name, count, chosen.seconds, chosen.rate, chosen.token) for count in counts]
    text = table(rows)
    sys.stdout.write(text)
    if chosen.json:
        chosen.json.write_text(json.dumps([asdict(row) for row in rows], indent=1) + "\n")
    if chosen.markdown:
        m = pages.machine("websockets", "onnxruntime")
        versions = ", ".join(f"{name} {version}" for name, version in m["versions"].items())
        state = f"{m['date']}; {m['cpu']}, {m['cores']} cores, for server and clients together; {m['system']}; Python "
        state += f"{m['python']}; npukit {m['npukit']}; {versions}. Times in milliseconds; {chosen.seconds:g} s a row."
        chosen.markdown.write_text(f"# The policy server under load\n\n{__doc__}\n{state}\n\n{text}")
    return int(any(row.errors for row in rows))


if __name__ == "__main__":
    sys.exit(main())

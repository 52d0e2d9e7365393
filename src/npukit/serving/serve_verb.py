# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""`npukit policy serve`: a policy folder as a server that openpi's clients talk to."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import os
import signal
import socket
import statistics
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from npukit import files
from npukit.errors import CheckFailed, UsageError
from npukit.policies.run_verb import RunOptions
from npukit.serving import require
from npukit.serving.address import address_of, bind, is_local
from npukit.verbs.options import arg, like, opt, verb

if TYPE_CHECKING:
    from npukit.serving.server import Counts, PolicyServer

log = logging.getLogger(__name__)

# npukit.policies.policy.BACKENDS, which is imported when it is used
BACKENDS = ("ort", "qnn-cpu", "qnn-htp", "sim", "acl")
TOKEN_VARIABLE = "NPUKIT_SERVE_TOKEN"
_SHORTEST_TOKEN = 16  # letters
_LARGEST_MESSAGE = 1024  # MB
_MAKE_TOKEN = "make one: openssl rand -hex 32 > token.txt; then --token-file token.txt"


def _say(line: str) -> None:
    sys.stderr.write(line + "\n")
    sys.stderr.flush()


@dataclass(frozen=True)
class ServeOptions:
    """Serve a policy to robots over a web socket, as openpi's clients speak it.

    The policy is loaded and warmed up first; one line on stderr says when clients can connect. Ctrl-C or SIGTERM ends
    it: the running inference is finished and answered, clients are sent away with code 1001. Beyond this machine
    (--host) clients need a token, from --token-file or the variable NPUKIT_SERVE_TOKEN, which they send as
    `Authorization: Api-Key TOKEN`; the connection itself is not encrypted.
    """

    policy: Path = arg("the policy's folder", metavar="DIR")
    port: int | None = opt(None, "Port; 0 for any free one [8000; with --check any].")
    host: str = opt("127.0.0.1", "Address to listen at.", metavar="HOST")
    backend: str | None = opt(None, "What runs the policy's models [the first it has].", choices=BACKENDS)
    target: str | None = opt(None, "Chip, where the folder holds models for several.", metavar="NAME")
    isolate: bool = opt(False, "Run each model in a process of its own.", "--isolate")
    seed: int | None = opt(None, "Seed of the policy's noise [any].")
    unnorm_key: str | None = like(RunOptions, "unnorm_key")
    threads: int | None = like(RunOptions, "threads")
    token_file: Path | None = opt(None, "File with the token that clients must send.", parse=Path, metavar="FILE")
    keys: Path | None = opt(None, "JSON or YAML: feature -> key of the client.", parse=Path, metavar="FILE")
    max_message: float = opt(32.0, "Largest message of a client.", metavar="MB")
    max_clients: int = opt(16, "Most clients at a time.")
    check: bool = opt(False, "Answer one request of our own, and end.", "--check")
    ready: Any = opt(None, "Called with the line that says where clients can connect.", python=True)
    stop: Any = opt(None, "A threading.Event that ends the server.", python=True)


@dataclass(frozen=True)
class ServeResult:
    """What a server did until it was stopped.

    Attributes:
        address: HOST:PORT.
        warm_up_seconds: the first inference.
        seconds: from its readiness to its end.
        clients: how many were let in; `refused`: how many were not.
        refused: clients without a right token, or too many.
        answered: observations that got actions.
        superseded: observations that were not used, as a newer one of the same client came.
        errors: observations and messages that got an error.
        infer_ms: median and 99th percentile of the inference, and `total_ms` from a message's arrival to its answer.
        total_ms: as above.
        stopped_by: "SIGINT", "SIGTERM", "check" or "program".
        check: with --check, the first message, the shape of the actions and the timing of the answer.
    """

    address: str
    warm_up_seconds: float
    seconds: float
    clients: int
    refused: int
    answered: int
    superseded: int
    errors: int
    infer_ms: tuple[float, float] | None
    total_ms: tuple[float, float] | None
    stopped_by: str
    check: dict[str, Any] = field(default_factory=dict)

    @property
    def exit_code(self) -> int:
        """130 after Ctrl-C, else 0."""
        return 130 if self.stopped_by == "SIGINT" else 0

    def to_json(self) -> dict[str, Any]:
        """All of it as JSON values."""
        return {name: getattr(self, name) for name in self.__dataclass_fields__}

    def to_text(self) -> str:
        """Two lines."""
        served = f"{self.clients} clients, {self.answered} observations answered"
        rest = [f"{n} {what}" for n, what in ((self.superseded, "superseded"), (self.errors, "errors"),
                                              (self.refused, "refused")) if n]  # fmt: skip
        lines = [", ".join([served, *rest]) + f", {self.seconds:.0f} s; stopped by {self.stopped_by}"]
        if self.infer_ms and self.total_ms:
            (infer, slow_infer), (total, slow_total) = self.infer_ms, self.total_ms
            lines.append(
                f"inference {infer:.1f} ms (p99 {slow_infer:.1f}), whole {total:.1f} ms (p99 {slow_total:.1f})"
            )
        if self.check:
            lines.append(f"check: actions {self.check['actions']} for an observation of our own: good")
        return "\n".join(lines)


@verb(ServeOptions)
def serve(options: ServeOptions) -> ServeResult:
    """Serve a policy folder until a signal (or `stop`) ends it.

    Raises:
        UsageError: an option is wrong, the address cannot be had, or a token is needed.
        ArtifactError: the folder is no policy.
        MissingDependency: the extra `serve` or a library that the policy needs is not installed.
        NativeError: the policy does not run here.
    """
    _check_options(options)
    require()
    from npukit.serving import server as serving

    token = _token(options)
    port = options.port if options.port is not None else 0 if options.check else 8000
    with contextlib.closing(bind(options.host, port)) as listener:
        if token is None and not is_local(listener):
            raise UsageError(
                f"{options.host} can be reached from other machines: clients must send a token", where="--host",
                hint=_MAKE_TOKEN,
            )  # fmt: skip
        from npukit.policies.policy import Policy
        from npukit.serving.keys import KeyMap

        policy = Policy(
            options.policy, options.backend, threads=options.threads, target=options.target,
            in_process=not options.isolate, seed=options.seed, unnorm_key=options.unnorm_key,
        )  # fmt: skip
        served = None
        try:
            keys = KeyMap.read(policy.manifest, options.keys)
            limits = serving.Limits(message_bytes=int(options.max_message * 1e6), connections=options.max_clients)
            more = {"backend": policy.backend}
            served = serving.PolicyServer(policy, keys=keys, token=token, limits=limits, metadata=more)
            return _run(options, served, listener, token)
        finally:
            if served is None or not served.inferring:  # else it hangs: the process ends without it
                policy.close()


def _check_options(options: ServeOptions) -> None:
    if options.port is not None and not 0 <= options.port <= 65_535:
        raise UsageError(f"{options.port} is no port", where="--port", hint="1 to 65535, or 0 for any free one")
    if not (math.isfinite(options.max_message) and 0 < options.max_message <= _LARGEST_MESSAGE):
        raise UsageError(f"{options.max_message} is no size of a message", where="--max-message",
                         hint=f"in MB, up to {_LARGEST_MESSAGE}")  # fmt: skip
    if options.max_clients < 1:
        raise UsageError("at least one client is needed", where="--max-clients")
    if not options.policy.is_dir():
        raise UsageError("there is no such folder", where=str(options.policy),
                         hint="make one: npukit policy export CHECKPOINT -o DIR")  # fmt: skip


def _token(options: ServeOptions) -> str | None:
    """The token that clients must send, without white space around it; None where none is given."""
    where = str(options.token_file) if options.token_file is not None else TOKEN_VARIABLE
    if options.token_file is not None:
        with files.os_errors(options.token_file, "read"), options.token_file.open("rb") as file:
            text = file.read(4096).decode("utf-8", "replace").strip()
            mode = os.fstat(file.fileno()).st_mode
        if os.name == "posix" and mode & 0o077:
            log.warning("%s: other users can read the token (chmod 600)", options.token_file)
    elif TOKEN_VARIABLE in os.environ:
        text = os.environ[TOKEN_VARIABLE].strip()
    else:
        return None
    if len(text) < _SHORTEST_TOKEN or not all("!" <= letter <= "~" for letter in text):
        raise UsageError(f"a token has at least {_SHORTEST_TOKEN} printable ASCII letters and no blanks", where=where,
                         hint=_MAKE_TOKEN)  # fmt: skip
    return text


def _run(options: ServeOptions, served: PolicyServer, listener: socket.socket, token: str | None) -> ServeResult:
    from npukit.serving import server as serving

    warm_up = served.warm_up()
    if options.check:
        started = time.monotonic()
        with serving.background(served, listener=listener) as address:
            found = _self_check(served, listener, address, token)
        return _result(served.counts, address, warm_up, time.monotonic() - started, "check", found)
    address = address_of(listener)
    started = time.monotonic()

    def ready() -> None:
        nonlocal started
        started = time.monotonic()
        line = f"npukit: {options.policy} ({served.metadata.get('backend')}) is served at ws://{address}"
        if options.ready is not None:
            options.ready(line)
        elif log.isEnabledFor(logging.WARNING):  # not with --quiet
            _say(line)

    with _stopped_by(served, options.stop) as by:
        asyncio.run(served.run(listener, ready))
    return _result(served.counts, address, warm_up, time.monotonic() - started, by[0] if by else "program", {})


def _self_check(served: PolicyServer, listener: socket.socket, address: str, token: str | None) -> dict[str, Any]:
    """Connect as a client does, and ask for one chunk."""
    from websockets.sync.client import connect

    from npukit.serving.keys import example
    from npukit.serving.messages import pack, unpack

    headers = {"Authorization": f"Api-Key {token}"} if token else None
    link = socket.create_connection(listener.getsockname()[:2])  # not through a proxy
    with connect(f"ws://{address}", sock=link, compression=None, additional_headers=headers) as client:
        first = client.recv(timeout=30)
        assert isinstance(first, bytes)
        client.send(pack(example(served.keys)))
        answer = client.recv()
    if isinstance(answer, str):
        raise CheckFailed(f"the server refused an observation of our own: {answer}", where="--check")
    found = unpack(answer)
    manifest = served.policy.manifest
    wanted = [manifest.chunk_size, *manifest.action.shape]
    shape = list(found["actions"].shape)
    if shape != wanted:
        raise CheckFailed(f"the policy gave actions of shape {shape} instead of {wanted}", where="--check")
    return {"metadata": unpack(first), "actions": shape, **{k: found[k] for k in ("policy_timing", "server_timing")}}


@contextlib.contextmanager
def _stopped_by(served: PolicyServer, event: threading.Event | None) -> Iterator[list[str]]:
    """Stop the server on SIGINT, SIGTERM or the event; gives a list whose first entry says by what it was stopped.

    A second signal does not wait for the running inference. Signals are left alone off the main thread, where Python
    does not allow it.
    """
    by: list[str] = []
    before: dict[signal.Signals, Any] = {}
    done = threading.Event()

    def on_signal(number: int, frame: object) -> None:
        by.append(signal.Signals(number).name)
        served.stop()

    def on_event() -> None:
        assert event is not None
        while not done.is_set():
            if event.wait(0.1):
                by.append("program")
                served.stop()
                return

    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGINT, signal.SIGTERM):
            before[number] = signal.signal(number, on_signal)
    watcher = threading.Thread(target=on_event, name="npukit-serve-stop", daemon=True)
    if event is not None:
        watcher.start()
    try:
        yield by
    finally:
        done.set()
        for number, handler in before.items():
            signal.signal(number, handler)


def _result(
    counts: Counts, address: str, warm_up: float, seconds: float, stopped_by: str, check: dict[str, Any]
) -> ServeResult:
    return ServeResult(
        address, round(warm_up, 3), round(seconds, 3), counts.connections, counts.refused, counts.answered,
        counts.superseded, counts.errors, _spread(counts.infer_ms), _spread(counts.total_ms), stopped_by, check,
    )  # fmt: skip


def _spread(values: Sequence[float]) -> tuple[float, float] | None:
    """Median and 99th percentile."""
    if not values:
        return None
    ordered = sorted(values)
    return statistics.median(ordered), ordered[math.ceil(0.99 * len(ordered)) - 1]

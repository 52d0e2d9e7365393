# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""The policy server: openpi's web socket protocol around anything that predicts chunks of actions.

What is said: the server sends a map of metadata; then each binary message with an observation gets one answer, in
order: a map with `actions` float32 [H, A], `policy_timing` and `server_timing` (milliseconds), or a text that says what
was wrong. `GET /healthz` answers 200 while the policy works.

One thread infers, so that the event loop always answers. A client that sends an observation before the last one got
its turn has changed its mind: the newest wins, and the ones it superseded get a text that says so (openpi's own
client always waits, and never sees one). Clients take turns.

After a wrong observation the connection stays open; after what is no message at all it is closed with 1007 (1003 for a
text, 1009 for too many bytes, 1008 for a half message and silence), after a fault of the policy with 1011 as openpi
does, at the server's end with 1001.
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import http
import logging
import queue
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import numpy as np
import numpy.typing as npt
from websockets.asyncio.server import ServerConnection, serve
from websockets.exceptions import ConnectionClosed

import npukit
from npukit.errors import NativeError, NpukitError
from npukit.serving.address import address_of, bind
from npukit.serving.connection import GuardedConnection
from npukit.serving.keys import KeyMap, example
from npukit.serving.messages import MessageError, pack, unpack

if TYPE_CHECKING:
    from websockets.http11 import Request, Response

    from npukit.policies.package import Manifest

log = logging.getLogger(__name__)
R = TypeVar("R")

HEALTH = "/healthz"
_LONGEST_TEXT = 4_000  # letters of an error
_SPARE = 16  # connections beyond the limit that may stand in the opening handshake, to be told so
_KEPT = 100_000  # latencies


class Served(Protocol):
    """What can be served; `npukit.Policy` is one. `seconds`, where it is there, tells the parts of the last chunk."""

    @property
    def manifest(self) -> Manifest: ...

    def predict_chunk(self, observation: Mapping[str, Any]) -> npt.NDArray[np.float32]: ...

    def reset(self) -> None: ...


@dataclass(frozen=True)
class Limits:
    """What clients may take.

    Attributes:
        message_bytes: the longest message.
        connections: clients at a time.
        handshake_seconds: from the TCP connection to the end of the web socket's opening handshake.
        message_seconds: from the first byte of a message to its last; between messages a client may be silent.
        send_seconds: until a client has taken an answer.
        close_seconds: until a client has answered a close.
        stop_seconds: until the running inference is done, when the server is asked to stop.
    """

    message_bytes: int = 32 << 20
    connections: int = 16
    handshake_seconds: float = 10.0
    message_seconds: float = 30.0
    send_seconds: float = 30.0
    close_seconds: float = 3.0
    stop_seconds: float = 60.0


@dataclass
class Counts:
    """What a server has done.

    Attributes:
        connections: clients that were let in.
        refused: clients that were not (token, number).
        answered: observations that got actions.
        superseded: observations that a newer one of the same client went before.
        errors: observations and messages that got an error.
        infer_ms: milliseconds of the last inferences.
        total_ms: milliseconds from a message's arrival to its answer.
    """

    connections: int = 0
    refused: int = 0
    answered: int = 0
    superseded: int = 0
    errors: int = 0
    infer_ms: deque[float] = field(default_factory=lambda: deque(maxlen=_KEPT))
    total_ms: deque[float] = field(default_factory=lambda: deque(maxlen=_KEPT))


class Client:
    """One connection: its newest observation that has not had its turn, and how many were superseded before it."""

    def __init__(self, connection: GuardedConnection) -> None:
        self.connection = connection
        self.arrived = asyncio.Event()
        self.busy = False  # an observation has its turn, or its answer is on its way
        self.number = 0  # of the last message
        self.previous_ms: float | None = None
        self._lock = threading.Lock()
        self._newest: tuple[bytes, float] | None = None
        self._superseded = 0

    def offer(self, message: bytes) -> bool:
        """Take a message in; True if it supersedes one."""
        with self._lock:
            before = self._newest is not None
            self.number += 1
            self._superseded += before
            self._newest = message, time.perf_counter()
        self.arrived.set()
        return before

    def take(self) -> Turn | None:
        """The newest message, and what it superseded; called when its turn has come."""
        with self._lock:
            if self._newest is None:
                return None
            (message, at), self._newest = self._newest, None
            turn = Turn(self.number, self._superseded, message, at)
            self._superseded = 0
            return turn


@dataclass(frozen=True)
class Turn:
    """A message whose turn has come.

    Attributes:
        number: of the message on its connection, from 1.
        superseded: how many messages right before it were superseded.
        message: its bytes.
        at: when it was received, `time.perf_counter`.
    """

    number: int
    superseded: int
    message: bytes
    at: float


@dataclass(frozen=True)
class Answer:
    """What one turn came to: a message, or the text of an error with the code to close with (0: stay open)."""

    turn: Turn
    message: bytes = b""
    text: str = ""
    close: int = 0
    infer_ms: float = 0.0


class PolicyServer:
    """Serves one policy.

    Args:
        policy: what predicts chunks.
        keys: how messages become observations; None for the defaults.
        token: what clients must send as `Authorization: Api-Key TOKEN`; None for nothing.
        limits: what they may take.
        metadata: more for the first message.
    """

    def __init__(
        self,
        policy: Served,
        *,
        keys: KeyMap | None = None,
        token: str | None = None,
        limits: Limits | None = None,
        metadata: Mapping[str, Any] | None = None,
    ) -> None:
        self.policy = policy
        self.keys = keys or KeyMap(policy.manifest)
        self.limits = limits or Limits()
        self.counts = Counts()
        self.metadata = {**_metadata(policy.manifest), **(metadata or {})}
        self._token = token.encode() if token else None
        self._thread = _Thread()
        self._broken = ""  # what the policy's last native fault was
        self._clients: set[Client] = set()
        self._opened: set[GuardedConnection] = set()
        self._ending: set[asyncio.Task[None]] = set()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stop = asyncio.Event()
        self._hurry = asyncio.Event()
        self._asked = False
        self._stopping = False

    # ------------------------------------------------------------ one observation

    def warm_up(self) -> float:
        """Predict one chunk of an observation made here, on the thread that will infer; seconds it took.

        Raises:
            NpukitError: the policy does not work.
        """
        started = time.perf_counter()
        observation = self.keys.observation(example(self.keys))
        self._thread.submit(lambda: self._predict(observation)).result()
        self.policy.reset()
        return time.perf_counter() - started

    def _predict(self, observation: Mapping[str, Any]) -> npt.NDArray[np.float32]:
        actions = np.asarray(self.policy.predict_chunk(observation), np.float32)
        if actions.ndim != 2:
            raise NpukitError(f"the policy gave an array of shape {list(actions.shape)} instead of [steps, actions]")
        if not np.isfinite(actions).all():
            raise NpukitError("the policy gave NaN or infinite actions: they are not sent", hint=_NOT_FINITE)
        return actions

    def _answer(self, client: Client) -> Answer | None:
        """Infer for a client's newest observation (on the inference thread)."""
        turn = client.take() if not self._stopping else None
        if turn is None:
            return None
        started = time.perf_counter()
        try:
            message = unpack(turn.message, most_bytes=self.limits.message_bytes)
            observation = self.keys.observation(message)
            decoded = time.perf_counter()
            actions = self._predict(observation)
        except MessageError as error:
            return Answer(turn, text=_text(error), close=1007)
        except NativeError as error:
            log.error("the policy failed: %s", error)
            self._broken = error.what
            return Answer(turn, text=_text(error), close=1011)
        except NpukitError as error:
            return Answer(turn, text=_text(error))
        except Exception:
            log.exception("a fault while a chunk was predicted")
            return Answer(turn, text="a fault in the server; its log says more", close=1011)
        done = time.perf_counter()
        self._broken = ""
        timing = {
            "infer_ms": _ms(decoded, done),
            "wait_ms": _ms(turn.at, started),
            "decode_ms": _ms(started, decoded),
            "request": turn.number,
        }
        if client.previous_ms is not None:
            timing["prev_total_ms"] = client.previous_ms
        parts = {f"{name}_ms": 1e3 * float(seconds) for name, seconds in _parts(self.policy).items()}
        policy_timing = {"infer_ms": _ms(decoded, done), **parts}
        reply = pack({"actions": actions, "policy_timing": policy_timing, "server_timing": timing})
        return Answer(turn, reply, infer_ms=_ms(decoded, done))

    # ------------------------------------------------------------ one client

    async def _handle(self, connection: ServerConnection) -> None:
        assert isinstance(connection, GuardedConnection)
        client = Client(connection)
        self._clients.add(client)
        self.counts.connections += 1
        log.info("%s: connected", _peer(connection))
        answering = asyncio.create_task(self._answer_all(client))
        try:
            await self._send(client, pack(self.metadata))
            async for message in connection:
                if isinstance(message, str):
                    self.counts.errors += 1
                    await self._fail(client, "observations are binary messages (msgpack); this was a text", 1003)
                    break
                self.counts.superseded += client.offer(message)
        except (ConnectionClosed, TimeoutError):
            pass
        finally:
            answering.cancel()
            await asyncio.wait([answering])
            self._clients.discard(client)
            log.info("%s: gone (%s)", _peer(connection), connection.close_code)

    async def _answer_all(self, client: Client) -> None:
        """Answer a client's observations, one after the other, until it is cancelled or the connection ends."""
        try:
            while not self._stopping:
                await client.arrived.wait()
                client.arrived.clear()
                client.busy = True
                answer = await asyncio.wrap_future(self._thread.submit(lambda: self._answer(client)))
                if answer is not None:
                    await self._give(client, answer)
                client.busy = False
        except (ConnectionClosed, TimeoutError):
            pass
        except Exception:
            log.exception("a fault while a client was answered")
            await client.connection.close(1011)
        finally:
            client.busy = False

    async def _give(self, client: Client, answer: Answer) -> None:
        turn = answer.turn
        for number in range(turn.number - turn.superseded, turn.number):
            await self._send(
                client, f"superseded: observation {number} was not used, as a newer one came before its turn"
            )
            await asyncio.sleep(0)  # there may be many
        if answer.text:
            self.counts.errors += 1
            log.info("%s: %s", _peer(client.connection), answer.text)
            if answer.close:
                await self._fail(client, answer.text, answer.close)
            else:
                await self._send(client, answer.text)
            return
        await self._send(client, answer.message)
        client.previous_ms = _ms(turn.at, time.perf_counter())
        self.counts.answered += 1
        self.counts.infer_ms.append(answer.infer_ms)
        self.counts.total_ms.append(client.previous_ms)

    async def _send(self, client: Client, message: bytes | str) -> None:
        try:
            async with asyncio.timeout(self.limits.send_seconds):
                await client.connection.send(message)
        except TimeoutError:
            log.info("%s: takes no answers", _peer(client.connection))
            client.connection.transport.abort()
            raise

    async def _fail(self, client: Client, text: str, code: int) -> None:
        """Say what was wrong, and close."""
        await self._send(client, text)
        await client.connection.close(code, text.partition("\n")[0].encode()[:100].decode(errors="ignore"))

    # ------------------------------------------------------------ all of them

    def _admit(self, connection: ServerConnection, request: Request) -> Response | None:
        """Answer what is not a web socket, and refuse who may not come in."""
        if request.path.partition("?")[0] == HEALTH:
            if self._broken:
                return connection.respond(http.HTTPStatus.SERVICE_UNAVAILABLE, "the policy fails; see the log\n")
            return connection.respond(http.HTTPStatus.OK, "OK\n")
        if self._token is not None:
            scheme, _, given = request.headers.get("Authorization", "").partition(" ")
            same = hmac.compare_digest(given.strip().encode("utf-8", "replace"), self._token)
            if scheme.lower() != "api-key" or not same:
                self.counts.refused += 1
                log.warning("%s: refused, no or a wrong token", _peer(connection))
                return connection.respond(
                    http.HTTPStatus.UNAUTHORIZED, "a token is needed: Authorization: Api-Key TOKEN\n"
                )
        if sum(opened.admitted for opened in self._opened) >= self.limits.connections:
            self.counts.refused += 1
            log.warning("%s: refused, there are %d clients", _peer(connection), self.limits.connections)
            return connection.respond(http.HTTPStatus.SERVICE_UNAVAILABLE, "there are too many clients\n")
        assert isinstance(connection, GuardedConnection)
        connection.admitted = True
        return None

    async def _watch(self) -> None:
        """End connections whose message does not."""
        pause = min(1.0, self.limits.message_seconds / 4)
        while True:
            await asyncio.sleep(pause)
            for client in list(self._clients):
                connection = client.connection
                if connection.half_message_for() > self.limits.message_seconds and connection.transport.is_reading():
                    self.counts.errors += 1
                    text = f"half a message, and no end of it in {self.limits.message_seconds:g} seconds"
                    log.info("%s: %s", _peer(connection), text)
                    connection.frames.since = None  # once
                    task = asyncio.create_task(self._end(client, text))
                    self._ending.add(task)
                    task.add_done_callback(self._ending.discard)

    async def _end(self, client: Client, text: str) -> None:
        with contextlib.suppress(ConnectionClosed, TimeoutError):
            await self._fail(client, text, 1008)

    async def run(self, listener: socket.socket, ready: Callable[[], None] | None = None) -> None:
        """Serve on a bound socket until `stop` is called; call `warm_up` before.

        Args:
            listener: bound; nobody can connect before this listens.
            ready: called as soon as clients can connect.
        """
        self._loop = asyncio.get_running_loop()
        if self._asked:
            self._stop.set()
        limits = self.limits

        class Connection(GuardedConnection):
            opened = self._opened
            most = limits.connections + _SPARE

        server = await serve(
            self._handle, sock=listener, create_connection=Connection, process_request=self._admit, origins=[None],
            compression=None, max_size=limits.message_bytes, max_queue=4, open_timeout=limits.handshake_seconds,
            close_timeout=limits.close_seconds, ping_interval=20, ping_timeout=None, server_header=None,
            logger=_library_log(),
        )  # fmt: skip
        watching = asyncio.create_task(self._watch())
        try:
            if ready is not None:
                ready()
            await self._stop.wait()
            self._stopping = True
            log.info("stopping")
            await self._finish()
        finally:
            self._stopping = True
            watching.cancel()
            server.close()  # with 1001, "going away"
            await server.wait_closed()
            self._thread.end()

    async def _finish(self) -> None:
        """Wait for the running inference and its answer, but not for ever."""
        hurry = asyncio.create_task(self._hurry.wait())
        idle = asyncio.create_task(self._idle())
        await asyncio.wait([hurry, idle], timeout=self.limits.stop_seconds, return_when=asyncio.FIRST_COMPLETED)
        for task in (hurry, idle):
            task.cancel()

    async def _idle(self) -> None:
        while any(client.busy for client in self._clients):
            await asyncio.sleep(0.01)

    def stop(self) -> None:
        """Ask the server to stop, from any thread; a second time: without waiting for the running inference."""
        self._asked = True
        loop = self._loop
        if loop is not None and not loop.is_closed():
            loop.call_soon_threadsafe(self._stop_here)

    def _stop_here(self) -> None:
        if self._stop.is_set():
            self._hurry.set()
        self._stop.set()

    @property
    def inferring(self) -> bool:
        """Whether an inference is running: after `run`, one that did not end in time."""
        return self._thread.busy


_NOT_FINITE = "quantization may have left too little range; npukit policy run tells more"


class _Thread:
    """One daemon thread that calls functions in order: unlike a pool's, a call that hangs does not hold up the exit."""

    def __init__(self) -> None:
        self.busy = False
        self._calls: queue.SimpleQueue[tuple[Future[Any], Callable[[], Any]] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._work, name="npukit-inference", daemon=True)
        self._thread.start()

    def submit(self, call: Callable[[], R]) -> Future[R]:
        """Have `call` called; cancelling the future before its turn takes it out."""
        future: Future[R] = Future()
        self._calls.put((future, call))
        return future

    def end(self) -> None:
        """End after the calls so far."""
        self._calls.put(None)

    def _work(self) -> None:
        while (item := self._calls.get()) is not None:
            future, call = item
            if not future.set_running_or_notify_cancel():
                continue
            self.busy = True
            try:
                future.set_result(call())
            except BaseException as error:
                future.set_exception(error)
            self.busy = False
            del future, call, item


@contextlib.contextmanager
def background(server: PolicyServer, listener: socket.socket | None = None) -> Iterator[str]:
    """Serve in a thread of this process for as long as the block lasts; gives `HOST:PORT`.

    Args:
        server: not yet running; call its `warm_up` before.
        listener: a bound socket; None: one of this machine's own.
    """
    listener = listener or bind("127.0.0.1", 0)
    listening = threading.Event()
    fault: list[BaseException] = []

    def work() -> None:
        try:
            asyncio.run(server.run(listener, listening.set))
        except BaseException as error:
            fault.append(error)
        finally:
            listening.set()

    thread = threading.Thread(target=work, name="npukit-server", daemon=True)
    thread.start()
    listening.wait()
    try:
        if not fault:
            yield address_of(listener)
    finally:
        server.stop()
        thread.join()
        listener.close()
        if fault:
            raise fault[0]


def _metadata(manifest: Manifest) -> dict[str, Any]:
    """What the first message says of a policy."""
    return {
        "server": f"npukit {npukit.__version__}",
        "policy": manifest.kind,
        "chunk_size": manifest.chunk_size,
        "n_action_steps": manifest.n_action_steps,
        "action_shape": list(manifest.action.shape),
        "inputs": {name: {"kind": f.kind, "shape": list(f.shape)} for name, f in manifest.inputs.items()},
        "cameras": [c.feature for c in sorted(manifest.cameras, key=lambda camera: camera.slot)],
        "takes_task": manifest.tokenizer is not None,
    }


def _parts(policy: Served) -> Mapping[str, float]:
    found = getattr(policy, "seconds", None)
    return found if isinstance(found, Mapping) else {}


def _text(error: NpukitError) -> str:
    text = str(error)
    return text if len(text) <= _LONGEST_TEXT else f"{text[:_LONGEST_TEXT]} ..."


def _ms(start: float, end: float) -> float:
    return round(1e3 * (end - start), 3)


def _peer(connection: ServerConnection) -> str:
    address = connection.remote_address
    return f"{address[0]}:{address[1]}" if address else "a client"


class _Quiet(logging.Filter):
    """The library's errors are clients' faults, for our log at level INFO and without tracebacks."""

    def filter(self, record: logging.LogRecord) -> bool:
        if record.levelno > logging.INFO:
            cause = record.exc_info[1] if record.exc_info else None
            record.msg, record.args = f"{record.getMessage()}: {cause}" if cause else record.getMessage(), ()
            record.exc_info = None
            record.levelno, record.levelname = logging.INFO, "INFO"
        return log.isEnabledFor(record.levelno)


def _library_log() -> logging.Logger:
    found = logging.getLogger(f"{__name__}.websockets")
    if not found.filters:
        found.addFilter(_Quiet())
    return found

# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""The policy server over real sockets: answers, errors, hostile clients, who wins, who may come in, how it ends."""

from __future__ import annotations

import socket
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

pytest.importorskip("websockets")
msgpack = pytest.importorskip("msgpack")

from websockets.exceptions import ConnectionClosed, InvalidStatus  # noqa: E402

from npukit.errors import InputError, NativeError, UsageError  # noqa: E402
from npukit.serving.address import address_of, bind  # noqa: E402
from npukit.serving.connection import Frames  # noqa: E402
from npukit.serving.messages import pack, unpack  # noqa: E402
from npukit.serving.server import Limits, PolicyServer, background  # noqa: E402
from tests.serving_tools import ACTIONS, STEPS, DoublePolicy, answer, ask, client, frame, libero  # noqa: E402

LIMITS = Limits(message_bytes=1 << 20, connections=3, close_seconds=0.5)
IMPATIENT = replace(LIMITS, handshake_seconds=2.0, message_seconds=0.6)


@pytest.fixture
def policy() -> DoublePolicy:
    return DoublePolicy()


@pytest.fixture
def server(policy: DoublePolicy) -> PolicyServer:
    return PolicyServer(policy, limits=LIMITS)


@pytest.fixture
def address(server: PolicyServer) -> Iterator[str]:
    with background(server) as found:
        yield found


@pytest.fixture
def impatient(policy: DoublePolicy) -> Iterator[str]:
    """A server that soon gives up those who do not finish what they begin."""
    with background(PolicyServer(policy, limits=IMPATIENT)) as found:
        yield found


def wait_for(what: Callable[[], Any], seconds: float = 5.0) -> None:
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end, "did not happen in time"
        time.sleep(0.005)


def close_code(opened: Any) -> int:
    """The code with which the server closes."""
    try:
        for _ in range(100):
            opened.recv(timeout=10)
    except ConnectionClosed as closed:
        return int(closed.rcvd.code) if closed.rcvd is not None else 1006
    pytest.fail("the server goes on talking")


def http(address: str, path: str = "/healthz") -> tuple[int, str]:
    try:
        with urllib.request.urlopen(f"http://{address}{path}", timeout=10) as reply:
            return reply.status, reply.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def raw(address: str) -> socket.socket:
    """A TCP connection after the opening handshake and the first message."""
    host, _, port = address.partition(":")
    made = socket.create_connection((host, int(port)), timeout=10)
    made.sendall(
        f"GET / HTTP/1.1\r\nHost: {address}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nSec-WebSocket-Version: 13\r\n\r\n".encode()
    )
    received = b""
    while b"takes_task" not in received:
        received += made.recv(65536)
    assert b"101 Switching" in received
    return made


def send_until_closed(made: socket.socket, parts: list[bytes], pause: float) -> None:
    """Send the parts; the server must end the connection before the last."""
    for part in parts:
        try:
            made.sendall(part)
        except OSError:
            return
        time.sleep(pause)
    pytest.fail("the server took it all")


def until_closed(made: socket.socket) -> bytes:
    """All that comes until the server ends the connection."""
    received = b""
    try:
        while part := made.recv(65536):
            received += part
    except ConnectionResetError:
        pass
    return received


# ---------------------------------------------------------------- answers


def test_the_first_message_says_what_is_served(address: str) -> None:
    with client(address) as opened:
        assert opened.metadata["policy"] == "act"
        assert opened.metadata["chunk_size"] == STEPS
        assert opened.metadata["inputs"]["observation.state"] == {"kind": "STATE", "shape": [8]}
        assert opened.metadata["cameras"] == ["observation.images.top", "observation.images.wrist"]


def test_an_observation_gets_its_actions_and_timing(address: str) -> None:
    with client(address) as opened:
        first = ask(opened, libero(3))
        assert first["actions"].shape == (STEPS, ACTIONS)
        assert first["actions"].dtype == np.float32
        assert (first["actions"] == 3).all()
        assert first["policy_timing"] == {
            "infer_ms": first["server_timing"]["infer_ms"], "vision_ms": 1.0, "head_ms": 2.0,
        }  # fmt: skip
        assert {"infer_ms", "wait_ms", "decode_ms", "request"} == set(first["server_timing"])
        second = ask(opened, libero(4))
        assert second["server_timing"]["prev_total_ms"] > 0
        assert second["server_timing"]["request"] == 2


def test_actions_of_another_dtype_are_sent_as_float32(policy: DoublePolicy, address: str) -> None:
    policy.actions = np.ones((2, 3))
    with client(address) as opened:
        assert ask(opened, libero())["actions"].dtype == np.float32


@pytest.mark.parametrize("size", [0, 1, 125, 126, 1000, 5000])
def test_a_message_in_any_pieces_is_one(policy: DoublePolicy, address: str, size: int) -> None:
    payload = pack({**libero(5), "prompt": "x"})
    with raw(address) as made:
        made.settimeout(10)
        rest = [payload[i : i + 50] for i in range(size, len(payload), 50)]
        data = frame(payload[:size], final=False) + b"".join(frame(part, opcode=0, final=False) for part in rest)
        data += frame(b"", opcode=0)
        for start in range(0, len(data), 1000):
            made.sendall(data[start : start + 1000])
        received = b""
        while len(received) < 4 + STEPS * ACTIONS * 4:
            received += made.recv(65536)
        assert unpack(received[4:])["actions"][0, 0] == 5


# ---------------------------------------------------------------- errors


def test_a_wrong_observation_is_told_and_the_connection_stays(policy: DoublePolicy, address: str) -> None:
    with client(address) as opened:
        text = ask(opened, {**libero(), "observation/state": np.zeros(9)})
        assert "observation.state (observation/state): has the shape [9]; it must be [8]" in text
        assert "Traceback" not in text
        assert ask(opened, libero(2))["actions"][0, 0] == 2
        policy.fault = InputError("the value at [3] is nan", where="observation.state")
        assert ask(opened, libero()) == "observation.state: the value at [3] is nan"
        policy.fault = None
        assert ask(opened, libero(6))["actions"][0, 0] == 6


@pytest.mark.parametrize("garbage", [b"", b"\xc1garbage", b"\xdd\xff\xff\xff\xff", b"\x91" * 5000, b"\x00" * 100])
def test_garbage_is_told_and_closed(address: str, garbage: bytes) -> None:
    with client(address) as good, client(address) as bad:
        bad.send(garbage)
        assert isinstance(answer(bad), str)
        assert close_code(bad) == 1007
        assert ask(good, libero(1))["actions"][0, 0] == 1


def test_pickles_are_data(address: str) -> None:
    array = {b"__ndarray__": True, b"data": b"cposix\nsystem\n", b"dtype": "|O", b"shape": [1]}
    with client(address) as opened:
        opened.send(msgpack.packb({**{k: 1 for k in "ab"}, "observation/image": array}))
        assert "'|O' is not read" in answer(opened)


def test_a_text_is_told_and_closed(address: str) -> None:
    with client(address) as opened:
        opened.send('{"prompt": "json"}')
        assert "binary" in answer(opened)
        assert close_code(opened) == 1003


def test_a_native_fault_is_told_and_shows_in_the_health(policy: DoublePolicy, address: str) -> None:
    policy.fault = NativeError("graphExecute failed: 1003", where="head")
    with client(address) as opened:
        assert ask(opened, libero()) == "head: graphExecute failed: 1003"
        assert close_code(opened) == 1011
    assert http(address)[0] == 503
    policy.fault = None
    with client(address) as opened:
        ask(opened, libero())
    assert http(address) == (200, "OK\n")


def test_a_fault_of_ours_shows_nothing_of_the_inside(policy: DoublePolicy, address: str) -> None:
    policy.fault = KeyError("secret/path")
    with client(address) as opened:
        assert ask(opened, libero()) == "a fault in the server; its log says more"
        assert close_code(opened) == 1011


@pytest.mark.parametrize(
    "actions", [np.full((2, 3), np.nan), np.full((2, 3), np.inf), np.zeros(3), np.zeros((1, 2, 3))]
)
def test_actions_that_no_robot_should_get_are_not_sent(policy: DoublePolicy, address: str, actions: Any) -> None:
    policy.actions = actions
    with client(address) as opened:
        assert "the policy gave" in ask(opened, libero())


# ---------------------------------------------------------------- hostile clients


def test_ten_gigabytes_are_refused_when_they_are_announced(address: str) -> None:
    with client(address) as good, raw(address) as bad:
        bad.settimeout(10)
        bad.sendall(frame(b"some of it", announce=10_000_000_000))
        received = until_closed(bad)
        assert (1009).to_bytes(2, "big") in received
        assert ask(good, libero(1))["actions"][0, 0] == 1


def test_more_than_the_limit_in_pieces_is_refused(address: str) -> None:
    with raw(address) as bad:
        bad.settimeout(10)
        bad.sendall(frame(bytes(600_000), final=False))
        bad.sendall(frame(bytes(600_000), opcode=0, final=False))
        assert (1009).to_bytes(2, "big") in until_closed(bad)


@pytest.mark.parametrize(
    "half",
    [frame(pack(libero()))[:500], frame(b"half", final=False), b"\x82", frame(b"", announce=300)[:3]],
    ids=["half a frame", "half a message", "half a header", "half a length"],
)
def test_half_a_message_and_silence_ends_that_client_only(impatient: str, half: bytes) -> None:
    with client(impatient) as good, raw(impatient) as bad:
        bad.settimeout(10)
        bad.sendall(half)
        assert ask(good, libero(1))["actions"][0, 0] == 1
        received = until_closed(bad)
        assert b"half a message" in received
        assert (1008).to_bytes(2, "big") in received
        assert ask(good, libero(2))["actions"][0, 0] == 2


def test_a_message_that_trickles_ends_too(impatient: str) -> None:
    with raw(impatient) as bad:
        bad.settimeout(10)
        data = frame(pack(libero()))
        send_until_closed(bad, [data[i : i + 1] for i in range(len(data))], pause=0.05)


def test_pings_do_not_keep_half_a_message_alive(impatient: str) -> None:
    with raw(impatient) as bad:
        bad.settimeout(10)
        bad.sendall(frame(b"half", final=False))
        send_until_closed(bad, [frame(b"still here", opcode=9)] * 1000, pause=0.05)


def test_endless_empty_pieces_end_the_connection(address: str) -> None:
    with raw(address) as bad:
        bad.settimeout(10)
        bad.sendall(frame(b"", final=False))
        send_until_closed(bad, [frame(b"", opcode=0, final=False) * 100] * 1000, pause=0.001)


@pytest.mark.parametrize("small", [frame(pack({"a": 1})), frame(b"", opcode=9)], ids=["messages", "pings"])
def test_a_flood_of_small_frames_ends_that_client_only(address: str, small: bytes) -> None:
    with client(address) as good, raw(address) as bad:
        send_until_closed(bad, [small * 500] * 100, pause=0.001)
        assert ask(good, libero(1))["actions"][0, 0] == 1


def test_a_client_that_is_silent_between_messages_stays(impatient: str) -> None:
    with client(impatient) as opened:
        ask(opened, libero(1))
        time.sleep(3 * IMPATIENT.message_seconds)
        assert ask(opened, libero(2))["actions"][0, 0] == 2


def test_a_client_that_never_opens_is_let_go(impatient: str) -> None:
    host, _, port = impatient.partition(":")
    with socket.create_connection((host, int(port)), timeout=10) as made:
        made.sendall(b"GET / HT")
        until_closed(made)
    assert http(impatient)[0] == 200


def test_what_is_no_http_does_not_matter(address: str) -> None:
    host, _, port = address.partition(":")
    with socket.create_connection((host, int(port)), timeout=10) as made:
        made.sendall(bytes(range(256)) * 100)
        until_closed(made)
    with client(address) as opened:
        assert ask(opened, libero(2))["actions"][0, 0] == 2


def test_a_client_that_leaves_while_it_is_served(policy: DoublePolicy, server: PolicyServer, address: str) -> None:
    policy.gate.clear()
    with raw(address) as made:
        made.sendall(frame(pack(libero())))
        assert policy.begun.wait(10)
    policy.gate.set()
    with client(address) as opened:
        assert ask(opened, libero(2))["actions"][0, 0] == 2


# ---------------------------------------------------------------- whose turn it is


def test_the_latest_observation_of_a_client_wins(policy: DoublePolicy, server: PolicyServer, address: str) -> None:
    policy.gate.clear()
    with client(address) as hasty, client(address) as patient:
        hasty.send(pack(libero(1)))
        assert policy.begun.wait(10)
        patient.send(pack(libero(10)))
        for value in (2, 3, 4):
            hasty.send(pack(libero(value)))
        wait_for(lambda: server.counts.superseded == 2)
        policy.gate.set()
        answers = [answer(hasty) for _ in range(4)]
        assert answers[0]["actions"][0, 0] == 1
        assert answers[1].startswith("superseded: observation 2 ")
        assert answers[2].startswith("superseded: observation 3 ")
        assert answers[3]["actions"][0, 0] == 4
        assert answers[3]["server_timing"]["request"] == 4
        assert answer(patient)["actions"][0, 0] == 10
    assert len(policy.seen) == 3


def test_clients_take_turns_and_get_their_own_answers(policy: DoublePolicy, address: str) -> None:
    found: dict[int, list[float]] = {}

    def work(base: int) -> None:
        with client(address) as opened:
            found[base] = [float(ask(opened, libero(base + i))["actions"][0, 0]) for i in range(20)]

    threads = [threading.Thread(target=work, args=(base,)) for base in (100, 200, 300)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {base: [float(base + i) for i in range(20)] for base in (100, 200, 300)}


def test_the_loop_answers_while_a_chunk_is_predicted(policy: DoublePolicy, address: str) -> None:
    policy.gate.clear()
    with client(address) as opened:
        opened.send(pack(libero()))
        assert policy.begun.wait(10)
        assert http(address) == (200, "OK\n")
        with client(address) as second:
            assert second.ping().wait(10)
        policy.gate.set()
        answer(opened)


# ---------------------------------------------------------------- who may come in


def test_a_token_is_needed_where_one_is_set() -> None:
    server = PolicyServer(DoublePolicy(), token="0123456789abcdef", limits=LIMITS)
    with background(server) as address:
        with client(address, token="0123456789abcdef") as opened:
            assert ask(opened, libero(1))["actions"][0, 0] == 1
        for wrong in (None, "0123456789abcdeF", "", "ä"):
            with pytest.raises((InvalidStatus, UnicodeError)) as caught, client(address, token=wrong):
                pass
            if isinstance(caught.value, InvalidStatus):
                assert caught.value.response.status_code == 401
        with (
            pytest.raises(InvalidStatus),
            client(address, additional_headers={"Authorization": "Bearer 0123456789abcdef"}),
        ):
            pass
        assert http(address) == (200, "OK\n")
    assert server.counts.connections == 1


def test_browsers_pages_are_kept_out(address: str) -> None:
    with pytest.raises(InvalidStatus) as caught, client(address, origin="https://example.com"):
        pass
    assert caught.value.response.status_code == 403


def test_one_client_too_many_is_told(address: str) -> None:
    with client(address) as first, client(address), client(address):
        with pytest.raises(InvalidStatus) as caught, client(address):
            pass
        assert caught.value.response.status_code == 503
        assert http(address)[0] == 200
        first.close()
        wait_for(lambda: _can_open(address))


def _can_open(address: str) -> bool:
    try:
        with client(address):
            return True
    except InvalidStatus:
        return False


def test_many_connections_that_say_nothing_do_not_matter(impatient: str) -> None:
    host, _, port = impatient.partition(":")
    silent = [socket.create_connection((host, int(port)), timeout=10) for _ in range(60)]
    try:
        wait_for(lambda: _health_or_none(impatient) == 200)  # after the handshake's time
    finally:
        for made in silent:
            made.close()


def _health_or_none(address: str) -> int | None:
    try:
        return http(address)[0]
    except OSError:
        return None


def test_what_is_no_web_socket_is_told(address: str) -> None:
    assert http(address, "/")[0] == 426


# ---------------------------------------------------------------- the beginning and the end


def test_nobody_connects_before_it_is_warm() -> None:
    listener = bind("127.0.0.1", 0)
    address = address_of(listener)
    with pytest.raises(ConnectionRefusedError):
        raw(address)
    policy = DoublePolicy()
    server = PolicyServer(policy)
    assert server.warm_up() >= 0
    assert len(policy.seen) == 1
    assert policy.resets == 1
    with background(server, listener) as found:
        assert found == address
        raw(address).close()


def test_the_running_inference_is_finished_and_answered_at_the_end(policy: DoublePolicy, server: PolicyServer) -> None:
    policy.gate.clear()
    with background(server) as address, client(address) as busy, client(address) as waiting, client(address) as idle:
        busy.send(pack(libero(7)))
        assert policy.begun.wait(10)
        waiting.send(pack(libero(8)))
        server.stop()
        time.sleep(0.1)
        policy.gate.set()
        assert answer(busy)["actions"][0, 0] == 7
        assert [close_code(each) for each in (busy, waiting, idle)] == [1001, 1001, 1001]
    assert len(policy.seen) == 1


def test_a_second_stop_does_not_wait(policy: DoublePolicy, server: PolicyServer) -> None:
    policy.gate.clear()
    with background(server) as address, client(address) as busy:
        busy.send(pack(libero(7)))
        assert policy.begun.wait(10)
        server.stop()
        server.stop()
        assert close_code(busy) == 1001
    assert server.inferring
    policy.gate.set()


def test_an_address_that_cannot_be_had() -> None:
    with bind("127.0.0.1", 0) as taken:
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(UsageError, match="another program"):
            bind("127.0.0.1", port)
    with pytest.raises(UsageError, match="no address"):
        bind("no-such-host.invalid", 1)


# ---------------------------------------------------------------- following frames


@pytest.mark.parametrize("size", [1, 2, 3, 7, 100, 100_000])
def test_frames_are_followed_in_any_slices(size: int) -> None:
    frames = Frames()
    request = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"
    whole = [frame(b""), frame(b"a" * 125), frame(b"b" * 126), frame(b"", opcode=9), frame(b"c" * 70_000)]
    pieces = [frame(b"d", final=False), frame(b"ping", opcode=9), frame(b"", opcode=0, final=False)]
    data = request + b"".join(whole) + b"".join(pieces)
    for start in range(0, len(data), size):
        frames.feed(data[start : start + size])
    assert frames.since is not None
    assert frames.pieces == 2
    frames.feed(frame(b"e" * 300, opcode=0))
    assert frames.since is None
    frames.feed(frame(b"f" * 300)[:-1])
    assert frames.since is not None
    frames.feed(b"f")
    assert frames.since is None

# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""A web socket connection that knows whether its client stopped in the middle of a message.

The library assembles messages and refuses those that announce more than the limit; it neither minds a message that
never ends nor one in endless empty pieces. `Frames` follows the frames' headers (RFC 6455, 5.2) beside it.
"""

from __future__ import annotations

import asyncio
import socket
import sys
import time
from typing import Any, ClassVar

from websockets.asyncio.server import ServerConnection

_MOST_PIECES = 4_096  # frames of one message
_FRAMES_AT_ONCE = 5_000  # frames (messages, pieces, pings) that a client may send in a burst,
_FRAMES_A_SECOND = 1_000  # and on: each takes some 20 us of the one event loop, whoever sends it
_CONTROL = 8  # opcodes from here on are pings, pongs and closes: they stand between the frames of a message
_MOST_UNREAD = 4 << 20  # bytes for a client that does not read them (it may ask for pongs without end)
_DEAD_AFTER = 60  # seconds without a sign of life from the client's machine (not the program)


class Frames:
    """Follows a client's bytes after the opening handshake.

    Attributes:
        since: when the message that is being received began (`time.monotonic`); None between messages.
        pieces: its frames so far.
        allowed: frames that may come now; below 0 the client floods.
    """

    def __init__(self) -> None:
        self.since: float | None = None
        self.pieces = 0
        self.allowed = float(_FRAMES_AT_ONCE)
        self._fed = time.monotonic()
        self._request = bytearray()  # the end of the HTTP request so far, until it is complete
        self._open = False
        self._header = bytearray()
        self._payload = 0  # bytes that are still to come of the frame
        self._within = False  # a message has begun and its last frame has not

    def feed(self, data: bytes) -> None:
        """Take what was received."""
        now = time.monotonic()
        self.allowed = min(self.allowed + (now - self._fed) * _FRAMES_A_SECOND, float(_FRAMES_AT_ONCE))
        self._fed = now
        view = memoryview(data)
        if not self._open:
            self._request += data
            end = self._request.find(b"\r\n\r\n")
            if end < 0:
                del self._request[:-3]
                return
            self._open = True
            view = memoryview(bytes(self._request[end + 4 :]))
            self._request.clear()
        while view and self.allowed >= 0:
            if self.since is None:
                self.since = now
            if self._payload:
                taken = min(self._payload, len(view))
                self._payload -= taken
                view = view[taken:]
            else:
                missing = self._header_size() - len(self._header)
                self._header += view[:missing]
                view = view[missing:]
                if len(self._header) < self._header_size():
                    continue  # its second byte says how long the header is
                self._start()
            if not (self._payload or self._within):
                self.since, self.pieces = None, 0

    def _header_size(self) -> int:
        """Bytes of the header, as far as it is known; 2 before its second byte has come."""
        if len(self._header) < 2:
            return 2
        return 2 + {126: 2, 127: 8}.get(self._header[1] & 0x7F, 0) + (4 if self._header[1] & 0x80 else 0)

    def _start(self) -> None:
        """Begin the frame whose header is complete."""
        first, second = self._header[0], self._header[1] & 0x7F
        extended = {126: 2, 127: 8}.get(second, 0)
        self._payload = int.from_bytes(self._header[2 : 2 + extended], "big") if extended else second
        self._header.clear()
        self.allowed -= 1
        if first & 0x0F < _CONTROL:
            self._within = not first & 0x80
            self.pieces += 1


class GuardedConnection(ServerConnection):
    """A connection whose half messages can be timed, and which gives up a client whose machine is gone.

    Attributes:
        opened: all connections of a server that are open, with those not yet let in; set by a subclass for each server.
        most: how many those may be.
        frames: where the client is in its message.
        admitted: whether the client was let in.
    """

    opened: ClassVar[set[GuardedConnection]]
    most: ClassVar[int]

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.frames = Frames()
        self.admitted = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        link = transport.get_extra_info("socket")
        if link is not None:
            _watch(link)
        super().connection_made(transport)
        self.opened.add(self)
        if len(self.opened) > self.most:
            self.transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        self.opened.discard(self)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        self.frames.feed(data)
        flooded = self.frames.pieces > _MOST_PIECES or self.frames.allowed < 0
        if flooded or self.transport.get_write_buffer_size() > _MOST_UNREAD:
            self.logger.info("a client that %s is cut off", "floods" if flooded else "reads nothing")
            self.transport.abort()
            return
        super().data_received(data)

    def half_message_for(self) -> float:
        """Seconds since the beginning of a message whose end has not come; 0 between messages."""
        return time.monotonic() - self.frames.since if self.frames.since is not None else 0.0


def _watch(link: socket.socket) -> None:
    """Let the system close a connection to a machine that no longer answers; programs may be silent for ever."""
    link.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    if sys.platform == "linux":
        link.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, _DEAD_AFTER // 2)
        link.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, _DEAD_AFTER // 6)
        link.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3)
        link.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, _DEAD_AFTER * 1000)

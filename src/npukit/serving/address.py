# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""Where a server listens."""

from __future__ import annotations

import errno
import ipaddress
import os
import socket

from npukit.errors import UsageError


def bind(host: str, port: int) -> socket.socket:
    """A socket at an address that does not listen yet: clients are refused until the server does.

    Args:
        host: a name or address; the first that it stands for is taken.
        port: 0 for any free one.

    Raises:
        UsageError: there is no such host here, or the port is taken.
    """
    where = f"{host}:{port}"
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except (OSError, UnicodeError, OverflowError) as error:
        raise UsageError(f"this is no address: {error}", where=where, hint="see --host and --port") from None
    made = socket.socket(family, kind, protocol)
    try:
        if os.name == "posix":  # a server that has just ended keeps nobody out
            made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind(address)
    except OSError as error:
        made.close()
        hint = "another program listens there: choose another --port" if error.errno == errno.EADDRINUSE else ""
        raise UsageError(f"cannot listen there: {error.strerror}", where=where, hint=hint) from None
    return made


def address_of(listener: socket.socket) -> str:
    """`HOST:PORT` of a bound socket."""
    host, port = listener.getsockname()[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def is_local(listener: socket.socket) -> bool:
    """Whether only this machine's programs can connect."""
    return ipaddress.ip_address(listener.getsockname()[0].partition("%")[0]).is_loopback

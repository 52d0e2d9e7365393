# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""Stands in for TensorFlow's interpreter where many scripts run: one import of TensorFlow, a fork of it for each.

`PYTHON fuzz/tensorflow_server.py serve SOCKET` imports and listens; `... tensorflow_server.py SOCKET SCRIPT ARGUMENTS`
runs a script there, with this process's folder and output, and ends with its status. It needs no npukit.
"""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import sys
import time

_MEMORY_KB = 4 << 20  # of a fork; what goes over it is ended as by a signal


def ask(address: str, argv: list[str]) -> int:
    """Have the server run `argv`; its exit status."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.connect(address)
        socket.send_fds(connection, [json.dumps([os.getcwd(), argv]).encode()], [1, 2])
        return int(connection.recv(16) or b"1")


def serve(address: str) -> None:
    """Answer until this process is ended."""
    import tensorflow  # noqa: F401  (loaded for the forks)
    import tf2onnx  # noqa: F401
    from tf2onnx import optimizer, tf_loader, tfonnx  # noqa: F401

    running: dict[int, socket.socket] = {}
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(address)
        listener.listen()
        while True:
            ready, _, _ = select.select([listener, *running.values()], [], [], 0.02)
            if listener in ready:
                connection, _ = listener.accept()
                pid = os.fork()
                if pid == 0:
                    listener.close()
                    _child(connection)
                running[pid] = connection
            for pid, connection in list(running.items()):
                asker_gone = connection in ready and pid in running  # it sends nothing after its request
                if (asker_gone and not _waits(connection)) or _memory(pid) > _MEMORY_KB:
                    os.kill(pid, signal.SIGKILL)
                done, status = os.waitpid(pid, os.WNOHANG)
                if done:
                    del running[pid]
                    code = os.waitstatus_to_exitcode(status)
                    with connection:
                        _answer(connection, code if code >= 0 else 128 - code)


def _child(connection: socket.socket) -> None:
    import runpy

    status = 1
    try:
        request, descriptors, _, _ = socket.recv_fds(connection, 1 << 16, 2)
        connection.close()
        for target, descriptor in enumerate(descriptors, 1):
            os.dup2(descriptor, target)
        folder, argv = json.loads(request)
        os.chdir(folder)
        sys.argv = argv
        sys.path.insert(0, "")  # a script's own folder, which ours takes away
        runpy.run_path(argv[0], run_name="__main__")
        status = 0
    except SystemExit as error:
        status = error.code if isinstance(error.code, int) else 1
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def _waits(connection: socket.socket) -> bool:
    try:
        return bool(connection.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT))
    except BlockingIOError:
        return True
    except OSError:
        return False


def _answer(connection: socket.socket, code: int) -> None:
    try:
        connection.sendall(str(code).encode())
    except OSError:
        time.sleep(0)  # the asker was ended


def _memory(pid: int) -> int:
    """Private resident memory of a process in KiB; 0 where it is not known."""
    try:
        with open(f"/proc/{pid}/status", encoding="ascii", errors="replace") as file:
            return next((int(line.split()[1]) for line in file if line.startswith("RssAnon")), 0)
    except OSError:
        return 0


if __name__ == "__main__":
    if sys.argv[1] == "serve":
        serve(sys.argv[2])
    else:
        sys.exit(ask(sys.argv[1], [argument for argument in sys.argv[2:] if argument != "-B"]))

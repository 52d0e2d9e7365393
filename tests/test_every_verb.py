# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""Every verb, called twice from a plain script without a `__main__` guard, where no socket can be opened."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import npukit

DIGITS = Path(__file__).parents[1] / "examples" / "digits"

# Counts what Python and the native libraries ask of the network, and refuses it.
SHIM = r"""
#include <errno.h>
#include <stdlib.h>
#include <fcntl.h>
#include <unistd.h>
#include <sys/socket.h>
int socket(int domain, int type, int protocol) {
    int file = open(getenv("SOCKETS"), O_WRONLY | O_CREAT | O_APPEND, 0600);
    if (write(file, "socket\n", 7) != 7) abort();
    close(file);
    errno = EACCES;
    return -1;
}
"""

# Not in it: `targets`, which is no function, and `libs add`, which is for the network.
SCRIPT = """
import numpy as np
import npukit
from npukit.verbs.targets import targets

images = np.random.default_rng(1).random((2, 1, 1, 8, 8), np.float32)
calls = {
    "convert": lambda: npukit.convert("digits.onnx", output="d.dlc"),
    "lint": lambda: npukit.lint("digits.onnx"),
    "quantize": lambda: npukit.quantize("digits.onnx", calibration=images, output="q.dlc"),
    "compile": lambda: npukit.compile("d.dlc", output="d.bin", target="sm8650"),
    "run": lambda: npukit.run("d.dlc", random=1, output="out"),
    "verify": lambda: npukit.verify("d.bin", against="digits.onnx", random=1, report="report.html"),
    "bench": lambda: npukit.bench(["digits.onnx", "d.dlc"], runs=2),
    "inspect": lambda: npukit.inspect("d.bin"),
    "diff": lambda: npukit.diff("digits.onnx", "digits.onnx"),
    "encodings": lambda: npukit.encodings("show", "d.dlc"),
    "export": lambda: npukit.export("d.dlc", output="back.onnx"),
    "doctor": lambda: npukit.doctor(),
    "libs": lambda: npukit.libs(),
    "targets": lambda: targets(),
}
for name, call in calls.items():
    for _ in range(2):
        result = call()
        assert result.exit_code == 0, (name, result.to_text())
        assert isinstance(result.to_json(), dict), name
print(*calls)
"""


@pytest.fixture
def no_sockets(tmp_path: Path) -> dict[str, str]:
    """An environment without network, in which SOCKETS is the file that names each attempt."""
    if sys.platform != "linux" or shutil.which("cc") is None:
        pytest.skip("preloads a library that cc makes")
    (tmp_path / "shim.c").write_text(SHIM)
    subprocess.run(["cc", "-shared", "-fPIC", "-o", tmp_path / "shim.so", tmp_path / "shim.c"], check=True)
    variables = {"LD_PRELOAD": str(tmp_path / "shim.so"), "SOCKETS": str(tmp_path / "sockets")}
    return {**os.environ, **variables, "PYTHONPATH": str(Path(npukit.__file__).parents[1])}


def test_the_shim_sees_a_socket(no_sockets: dict[str, str]) -> None:
    done = subprocess.run([sys.executable, "-c", "import socket; socket.socket()"], env=no_sockets, check=False)
    assert done.returncode == 1
    assert Path(no_sockets["SOCKETS"]).read_text() == "socket\n"


@pytest.mark.native
def test_every_verb_twice_without_network(no_sockets: dict[str, str], tmp_path: Path) -> None:
    shutil.copy(DIGITS / "digits.onnx", tmp_path)
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    done = subprocess.run(
        [sys.executable, script], cwd=tmp_path, env=no_sockets, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    from npukit.cli.main import VERBS

    assert set(done.stdout.split()) == set(VERBS)
    assert not Path(no_sockets["SOCKETS"]).exists()


@pytest.mark.native
def test_a_session_imports_numpy_ml_dtypes_and_the_standard_library_only(tmp_path: Path) -> None:
    npukit.convert(DIGITS / "digits.onnx", output=tmp_path / "d.dlc", verify=False)
    code = (
        "import sys\nbefore = set(sys.modules)\nimport npukit\nnpukit.Session\n"
        "def others():\n"
        "    names = {name.partition('.')[0] for name in set(sys.modules) - before}\n"
        "    return sorted(names - set(sys.stdlib_module_names))\n"
        "print(others())\n"
        "with npukit.Session('d.dlc', in_process=True) as session:\n    session.warmup()\n"
        "print(others())"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.stdout.splitlines() == ["['ml_dtypes', 'npukit', 'numpy']"] * 2, done.stderr

# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""What the fuzzer needs of PyTorch and TensorFlow: whether they are there, seeds made with them, a quick TensorFlow."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fuzz.corpus import Seed

_ROOT = Path(__file__).resolve().parents[1]
_SERVER = Path(__file__).with_name("tensorflow_server.py")
_STARTS_WITHIN = 120.0


def tensorflow_python() -> str | None:
    """The interpreter that has TensorFlow and tf2onnx: NPUKIT_TENSORFLOW_PYTHON, or that of `make env-tensorflow`."""
    return shutil.which(os.environ.get("NPUKIT_TENSORFLOW_PYTHON") or _ROOT / ".venv-tensorflow/bin/python")


def tensorflow_version() -> str:
    """The versions of TensorFlow and tf2onnx, as installed for that interpreter."""
    code = "from importlib.metadata import version as v; print('TensorFlow', v('tensorflow'), 'tf2onnx', v('tf2onnx'))"
    python = tensorflow_python()
    assert python is not None
    shown = subprocess.run([python, "-c", code], check=False, capture_output=True, text=True).stdout.split()
    return ", ".join(" ".join(shown[i : i + 2]) for i in range(0, len(shown), 2))


def missing(kind: str) -> str:
    """What a kind of file needs and is not there; empty where nothing is missing."""
    if kind in ("pt2", "pt"):
        return "" if importlib.util.find_spec("torch") else "torch"
    if kind in ("pb", "savedmodel"):
        return "" if tensorflow_python() else "TensorFlow (make env-tensorflow)"
    return ""


def pytorch_seeds(kind: str) -> list[Seed]:
    """Files that fuzz/make_pytorch.py writes: `pt2` or `pt`."""
    from fuzz.corpus import Seed

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        command = [sys.executable, "-m", "fuzz.make_pytorch", name]
        variables = {**os.environ, "TORCHINDUCTOR_CACHE_DIR": f"{name}/cache"}
        subprocess.run(command, check=True, cwd=_ROOT, capture_output=True, env=variables)
        shapes = json.loads((folder / "shapes.json").read_text())
        main = f"model.{kind}"
        return [
            Seed(path.stem, {main: path.read_bytes()}, main, shapes=shapes[path.stem])
            for path in sorted(folder.glob(f"*.{kind}"))
        ]


def tensorflow_seeds(kind: str) -> list[Seed]:
    """Files that fuzz/make_tensorflow.py writes: frozen graphs (`pb`) or SavedModels (`savedmodel`)."""
    from fuzz.corpus import Seed

    python = tensorflow_python()
    assert python is not None
    with tempfile.TemporaryDirectory() as name:
        script = Path(__file__).with_name("make_tensorflow.py")
        subprocess.run([python, str(script), name], check=True, capture_output=True)
        folder = Path(name)
        if kind == "pb":
            return [
                Seed(path.stem, {"model.pb": path.read_bytes()}, "model.pb") for path in sorted(folder.glob("*.pb"))
            ]
        found = []
        for place in sorted(path for path in folder.iterdir() if path.is_dir()):
            parts = sorted(path for path in place.rglob("*") if path.is_file())
            files = {f"model/{path.relative_to(place).as_posix()}": path.read_bytes() for path in parts}
            found.append(Seed(place.name, files, "model"))
        return found


@contextlib.contextmanager
def quick_tensorflow() -> Iterator[Path]:
    """An executable that runs scripts as TensorFlow's interpreter does, without importing TensorFlow each time.

    For `--tensorflow-python`; see fuzz/tensorflow_server.py.
    """
    python = tensorflow_python()
    assert python is not None
    folder = Path(tempfile.mkdtemp(prefix="quick-tensorflow-"))
    address, client = folder / "socket", folder / "python"
    client.write_text(f'#!/bin/sh\nexec {sys.executable} -I -S {_SERVER} {address} "$@"\n')
    client.chmod(0o755)
    variables = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "TF_CPP_MIN_LOG_LEVEL": "3", "TF_ENABLE_ONEDNN_OPTS": "0"}
    with open(folder / "log", "wb") as log:
        command = [python, "-B", str(_SERVER), "serve", str(address)]
        server = subprocess.Popen(command, env=variables, stdout=log, stderr=log)
    try:
        deadline = time.monotonic() + _STARTS_WITHIN
        while not address.exists():
            if server.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"TensorFlow did not start: {(folder / 'log').read_text()[-500:]}")
            time.sleep(0.1)
        yield client
    finally:
        server.kill()
        server.wait()
        shutil.rmtree(folder, ignore_errors=True)

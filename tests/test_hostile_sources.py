# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""Files of other frameworks that were made to harm: the command refuses each in 10 s and 500 MB, with a sentence.

None of them reaches its framework: what is refused here is refused without torch and TensorFlow. Seconds are those of
the processors, which another program on the machine does not lengthen.
"""

from __future__ import annotations

import os
import pickle
import resource
import struct
import subprocess
import sys
import time
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest

from benchmarks.pytorch_memory import private, processes
from tests.test_frontend_pytorch import members
from tests.test_frontend_tensorflow import calls, function, graph_def, meta_graph, node, saved_model

SECONDS, BYTES = 10.0, 500e6
DATA = Path(__file__).parent / "data" / "tflite"


class Bomb:
    """Unpickled by Python it would make a file."""

    def __reduce__(self) -> object:
        return (os.system, ("touch mark",))


def archive(path: Path, content: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as file:
        for name, data in content.items():
            file.writestr(name, data)
    return path


def unpacks_to(path: Path, content: dict[str, bytes], name: str, size: int) -> Path:
    """An archive with one more member, deflated zeros, whose directory says in 64 bits that it unpacks to `size`."""
    archive(path, content)
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    data = b"".join(packer.compress(bytes(1 << 20)) for _ in range(64)) + packer.flush()
    old = path.read_bytes()
    _, _, _, _, count, length, start, _ = struct.unpack("<4s4H2LH", old[-22:])
    extra, raw = struct.pack("<HHQ", 1, 8, size), name.encode()
    local = struct.pack("<4s5H3L2H", b"PK\3\4", 45, 0, 8, 0, 33, 0, len(data), size & 0xFFFFFFFF, len(raw), 0)
    entry = struct.pack("<4s6H3L5H2L", b"PK\1\2", 45, 45, 0, 8, 0, 33, 0, len(data), 0xFFFFFFFF, len(raw), len(extra),
                        0, 0, 0, 0, start)  # fmt: skip
    body = local + raw + data
    directory = old[start : start + length] + entry + raw + extra
    end = struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, count + 1, count + 1, len(directory), start + len(body), 0)
    path.write_bytes(old[:start] + body + directory + end)
    return path


def nested(path: Path) -> Path:
    """Sample inputs that are an archive of their own, which unpacks to 100 GB."""
    inner = unpacks_to(path.with_suffix(".inner"), {"s/data.pkl": pickle.dumps(1)}, "s/data/0", 100 << 30)
    content = inner.read_bytes()
    inner.unlink()
    return archive(path, members(**{"data/sample_inputs/model.pt": content}))


def script(pickled: bytes) -> dict[str, bytes]:
    return {
        "m/code/__torch__.py": b"class M(Module):\n  pass\n",
        "m/data.pkl": pickled,
        "m/constants.pkl": b"\x80\x02).",
    }


def flatbuffer(path: Path, at: int, value: int) -> Path:
    content = bytearray((DATA / "network_int8.tflite").read_bytes())
    if at < 0:  # a field of the root table
        root = struct.unpack_from("<I", content, 0)[0]
        vtable = root - struct.unpack_from("<i", content, root)[0]
        at = root + struct.unpack_from("<H", content, vtable + 2 - 2 * at)[0]
    struct.pack_into("<I", content, at, value)
    path.write_bytes(content)
    return path


def graph(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


def deep() -> bytes:
    inner = calls("f")
    for _ in range(10_000):
        inner = calls("f", inner)
    return graph_def(node("x", "Placeholder"), node("y", "PartitionedCall", attr=inner))


def recursive() -> bytes:
    body = function("f", node("again", "PartitionedCall", attr=calls("f")), node("w", "WriteFile"))
    return graph_def(node("x", "Placeholder"), node("y", "PartitionedCall", "x", attr=calls("f")), functions=(body,))


LONG = b"\x80\x02X\xff\xff\xff\xf0abc."  # a text that says it has 4 GB, which torch would make room for
FAR = b"\x80\x02]r\xff\xff\xff\x7f."  # a value kept as number two thousand million
WEIGHTS = "m/data/weights/weight_9"
FILES: dict[str, tuple[Callable[[Path], Path], str]] = {
    "m.pt bomb": (lambda p: archive(p, {"m/data.pkl": pickle.dumps(Bomb())}), "it names"),
    "m.pt legacy-bomb": (
        lambda p: graph(p, pickle.dumps(0x1950A86A20F9469CFC6C, 2) + pickle.dumps(1001, 2) + pickle.dumps({}, 2)
                        + pickle.dumps(Bomb(), 2)), "it names"),
    "m.pt unpacks": (lambda p: unpacks_to(p, {"m/data.pkl": pickle.dumps(1)}, "m/data/0", 100 << 30), "unpacks to"),
    "m.pt script-unpacks": (lambda p: unpacks_to(p, script(b"\x80\x02)."), "m/data/0", 100 << 30), "unpacks to"),
    "m.pt script-long": (lambda p: archive(p, script(LONG)), "its pickle is damaged"),
    "m.pt script-far": (lambda p: archive(p, script(FAR)), "as number 2147483647"),
    "m.pt script-files": (
        lambda p: archive(p, script(b"\x80\x02).") | {"m/code/a.py": b"torch.save(1, 'x')\n"}), "'save'"),
    "m.pt2 bomb": (lambda p: archive(p, members(**{"data/weights/model.pt": pickle.dumps(Bomb())})), "old form"),
    "m.pt2 escapes": (lambda p: archive(p, {**members(), "m/../../evil": b"x"}), "not a relative path"),
    "m.pt2 escapes-root": (lambda p: archive(p, {**members(), "/tmp/evil": b"x"}), "not a relative path"),
    "m.pt2 unpacks": (lambda p: unpacks_to(p, members(), WEIGHTS, 100 << 30), f"unpacks to {100 << 30} bytes"),
    "m.pt2 nested": (nested, f"unpacks to {100 << 30} bytes"),
    "m.pt2 nests": (
        lambda p: archive(p, members(b'{"a":' + b"[" * 10_000 + b"]" * 10_000 + b"}")), "nested too deeply"),
    "m.tflite root": (lambda p: flatbuffer(p, 0, 0x7FFFFFFF), "not a whole TensorFlow Lite file"),
    "m.tflite codes": (lambda p: flatbuffer(p, -2, 0xFFFFFFF0), "not a whole TensorFlow Lite file"),
    "m.tflite subgraphs": (lambda p: flatbuffer(p, -3, 0x40000000), "not a whole TensorFlow Lite file"),
    "m.tflite buffers": (lambda p: flatbuffer(p, -5, 0x40000000), "not a whole TensorFlow Lite file"),
    "m.pb nests": (lambda p: graph(p, deep()), "nested deeper"),
    "m.pb writes": (lambda p: graph(p, recursive()), "WriteFile touches files"),
    "m.pb fields": (lambda p: graph(p, graph_def(node("x", "Placeholder")) + b"\x2a\x00" * 5_000_000), "fields"),
    "m.meta nests": (lambda p: graph(p, meta_graph(deep())), "nested deeper"),
    "saved nests": (lambda p: saved_model(p, meta_graph(deep())), "nested deeper"),
    "saved writes": (lambda p: saved_model(p, meta_graph(recursive())), "WriteFile touches files"),
}  # fmt: skip


def processor() -> float:
    """Processor seconds of the child processes so far, and of theirs."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


@pytest.mark.parametrize("name", FILES)
def test_a_hostile_file_is_refused_in_time_and_memory(name: str, tmp_path: Path) -> None:
    make, sentence = FILES[name]
    path = make(tmp_path / name.partition(" ")[0])
    argv = [sys.executable, "-m", "npukit", "convert", str(path), "-o", str(tmp_path / "m.dlc"), "--target", "qnn-cpu"]
    start, used = time.monotonic(), processor()
    command = subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=tmp_path)
    peak = 0
    while command.poll() is None:
        peak = max(peak, sum(private(pid) for pid in processes(command.pid)))
        time.sleep(0.02)
        assert time.monotonic() - start < 10 * SECONDS, "it hangs"
    out, words = command.communicate()
    assert command.returncode == 2, words
    assert sentence in words
    assert words.startswith("npukit: error: ")
    assert "Traceback" not in words
    assert out == ""
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]
    assert peak < BYTES
    assert processor() - used < SECONDS

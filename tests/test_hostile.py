# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""Bad input through the verbs and the command: one paragraph, exit code 2 or 3, nothing partial left, no hang.

tests/hostile holds one small file for each failure class that fuzzing found (`python -m fuzz --keep-classes`).
"""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import onnx
import pytest
from onnx import TensorProto, helper, parser

from fuzz import execute, hostile, seeds_onnx
from npukit.cli.main import main
from npukit.worker import Pool

ROOT = Path(__file__).resolve().parents[1]
DIGITS = ROOT / "examples" / "digits" / "digits.onnx"
INDEX = hostile.index()


# ---------------------------------------------------------------- what fuzzing found


@pytest.fixture(scope="module")
def pool() -> Iterator[Pool]:
    with Pool(1, timeout=60, memory_limit=execute.MEMORY) as workers:
        yield workers


@pytest.mark.native
@pytest.mark.parametrize("entry", INDEX, ids=[entry["name"] for entry in INDEX])
def test_a_known_failure_class(entry: dict[str, Any], pool: Pool, tmp_path: Path) -> None:
    verdict = execute.judge(hostile.load(entry), pool, tmp_path / "case")
    assert (verdict.outcome, verdict.why) == ("refused", "")
    assert verdict.exit_code == entry["exit"]
    assert entry["sentence"] in verdict.text


def test_the_hostile_files_are_few_and_small() -> None:
    sizes = [path.stat().st_size for path in hostile.FOLDER.rglob("*") if path.is_file() and path.name != "index.json"]
    assert max(sizes) <= 6_000
    assert sum(sizes) <= 350_000
    assert {entry["name"] for entry in INDEX} == {path.name for path in hostile.FOLDER.iterdir() if path.is_dir()}


# ---------------------------------------------------------------- sources, through the command in this process


def refused(argv: list[str], capsys: pytest.CaptureFixture[str], sentence: str, code: int = 2) -> None:
    """The command ends with `code` and one paragraph that holds `sentence`."""
    assert main(argv) == code
    shown = capsys.readouterr()
    assert shown.out == ""
    assert sentence in shown.err
    assert shown.err.startswith("npukit: error: ")
    assert "Traceback" not in shown.err
    assert "\n\n" not in shown.err


def model(text: str) -> bytes:
    head = '<ir_version: 8, opset_import: ["" : 17]>'
    return parser.parse_model(f"{head} g {text}").SerializeToString()


def external(location: str) -> bytes:
    """A model whose weight is said to lie at `location`."""
    files = seeds_onnx.seeds(0)["external"]
    proto = onnx.ModelProto.FromString(files["model.onnx"])
    for tensor in proto.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = location
    return proto.SerializeToString()


def wrong_dtype() -> bytes:
    proto = onnx.ModelProto.FromString(model("(float[2,8] x) => (float[2,8] y) { y = Relu (x) }"))
    proto.graph.input[0].type.tensor_type.elem_type = 99
    return proto.SerializeToString()


def oversized() -> bytes:
    proto = onnx.ModelProto.FromString(model("(float[2,8] x) => (float[2,8] y) { y = Relu (x) }"))
    proto.graph.initializer.append(helper.make_tensor("w", TensorProto.FLOAT, [1], [1.0]))
    proto.graph.initializer[0].dims[:] = [1 << 40, 1 << 40]
    return proto.SerializeToString()


WHOLE = DIGITS.read_bytes()
BAD_MODELS = {
    "empty": (b"", "the file is empty"),
    "text": (b"hello, this is no model", "not a whole ONNX model"),
    "page": (b"<html>404</html>", "a web page"),
    "lfs-pointer": (b"version https://git-lfs.github.com/spec/v1\n", "git-lfs pointer"),
    "zip": (b"PK\3\4" + bytes(100), "zip archive"),
    "truncated": (WHOLE[:5000], "not a whole ONNX model"),
    "one-byte-less": (WHOLE[:-1], "not a whole ONNX model"),
    "cyclic": (model("(float[2] x) => (float[2] y) { y = Add (x, z) z = Relu (y) }"), "wait for one another"),
    "unknown-op": (model("(float[2] x) => (float[2] y) { y = NoSuchOp (x) }"), "has no op 'NoSuchOp'"),
    "unknown-input": (model("(float[2] x) => (float[2] y) { y = Relu (q) }"), "reads 'q', which nothing makes"),
    "wrong-dtype": (wrong_dtype(), "unknown dtype 99"),
    "oversized": (oversized(), "larger than any memory"),
    "slices": (
        model('(float[2] x) => (float[100002] y) <int64[2] p = {100000, 0}> { y = Pad <mode = "edge"> (x, p) }'),
        "takes 100000 slices of an axis of 2",
    ),
    "dynamic": (model("(float[n,2] x) => (float[n,2] y) { y = Relu (x) }"), "--symbol n=N"),
    "escapes-up": (external("../weights.bin"), "lies outside the model's folder"),
    "escapes-absolute": (external("/etc/passwd"), "lies outside the model's folder"),
    "escapes-backslash": (external("..\\weights.bin"), "lies outside the model's folder"),
    "escapes-drive": (external("C:\\weights.bin"), "lies outside the model's folder"),
    "escapes-link": (external("link.bin"), "is a link out of the model's folder"),
    "data-missing": (external("nothing.bin"), "is missing"),
    "data-is-a-folder": (external("folder"), "is missing"),
    "data-too-short": (external("short.bin"), "lies outside the 3 bytes"),
}


@pytest.mark.parametrize("name", BAD_MODELS)
def test_bad_models(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data, sentence = BAD_MODELS[name]
    folder = tmp_path / "models"
    (folder / "folder").mkdir(parents=True)
    (folder / "model.onnx").write_bytes(data)
    (folder / "short.bin").write_bytes(b"abc")
    (tmp_path / "weights.bin").write_bytes(bytes(1000))
    (folder / "link.bin").symlink_to(tmp_path / "weights.bin")
    before = sorted(folder.iterdir())
    path = str(folder / "model.onnx")
    refused(["convert", path, "--in-process"], capsys, sentence)
    refused(["convert", path, "--in-process", "-o", str(tmp_path / "m.dlc")], capsys, sentence)
    assert sorted(folder.iterdir()) == before
    assert not (tmp_path / "m.dlc").exists()


@pytest.mark.parametrize("verb", ["convert", "compile", "inspect", "export", "run"])
def test_missing_files_and_folders(verb: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for suffix in (".onnx", ".dlc", ".bin"):
        refused([verb, str(tmp_path / f"no{suffix}"), "--in-process"], capsys, "no such file")
        folder = tmp_path / f"folder{suffix}"
        folder.mkdir()
        refused([verb, str(folder), "--in-process"], capsys, "folder")
        refused([verb, f"{folder}/x{suffix}", "--in-process"], capsys, "no such file")
        shutil.rmtree(folder)
        link = tmp_path / f"loop{suffix}"
        link.symlink_to(link)
        refused([verb, str(link), "--in-process"], capsys, "loop")


# ---------------------------------------------------------------- artifacts


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("artifact") / "digits.dlc"
    assert main(["convert", str(DIGITS), "-o", str(path), "--no-verify", "-q"]) == 0
    return path


@pytest.mark.native
@pytest.mark.parametrize("verb", ["inspect", "run", "export", "compile"])
def test_damaged_dlcs(verb: str, artifact: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = artifact.read_bytes()
    path = tmp_path / "m.dlc"
    extra = {"run": ["--random", "1"], "compile": ["--target", "sm8650"]}.get(verb, [])
    for bad, sentence in (
        (data[:-1], "not a sound zip"),
        (data[: len(data) // 2], "not a sound zip"),
        (data.replace(b"npukit.json", b"../npuk.jsn"), "not a relative path"),
        (data.replace(b"model.params.bin", b"model.params.bit"), "lacks its weights"),
    ):
        path.write_bytes(bad)
        refused([verb, str(path), *extra, "--in-process"], capsys, sentence)
        assert list(tmp_path.iterdir()) == [path]


# ---------------------------------------------------------------- places that cannot be written


def command(*arguments: object, **settings: Any) -> subprocess.CompletedProcess[str]:
    """The command as a process of its own."""
    argv = [sys.executable, "-m", "npukit", *map(str, arguments)]
    return subprocess.run(argv, capture_output=True, text=True, timeout=120, cwd=ROOT, check=False, **settings)


def assert_refused(done: subprocess.CompletedProcess[str], sentence: str) -> None:
    assert done.returncode == 2, done.stderr
    assert sentence in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


@pytest.mark.native
def test_places_that_cannot_be_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_bytes(b"old")
    (tmp_path / "m.dlc").mkdir()
    convert = ["convert", str(DIGITS), "--no-verify", "--in-process", "-o"]
    refused([*convert, str(tmp_path / "file" / "m.dlc")], capsys, "a part of the path is not a folder")
    refused([*convert, str(tmp_path / "missing" / "m.dlc")], capsys, "no such file or folder")
    refused([*convert, str(tmp_path / "m.dlc")], capsys, "a folder or device of this name exists")
    refused([*convert, "/dev/full"], capsys, "a folder or device of this name exists")
    refused([*convert, str(tmp_path / ("n" * 300))], capsys, "the file name is too long")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "m.dlc"]
    assert list((tmp_path / "m.dlc").iterdir()) == []


@contextlib.contextmanager
def mounted(place: Path, *options: str) -> Iterator[Path]:
    """A small file system at `place`; skips where this user may not mount."""
    place.mkdir()
    if shutil.which("mount") is None or os.geteuid() != 0:
        pytest.skip("only root may mount")
    done = subprocess.run(["mount", "-t", "tmpfs", *options, "tmpfs", str(place)], capture_output=True, check=False)
    if done.returncode:
        pytest.skip("mounting is not permitted here")
    try:
        yield place
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True)


@pytest.mark.native
def test_a_full_disk(tmp_path: Path) -> None:
    with mounted(tmp_path / "small", "-o", "size=8k") as place:
        (place / "m.dlc").write_bytes(b"old")
        assert_refused(command("convert", DIGITS, "-o", place / "m.dlc", "--no-verify"), "no space is left")
        assert [(p.name, p.read_bytes()) for p in place.iterdir()] == [("m.dlc", b"old")]


@pytest.mark.native
def test_a_read_only_file_system(tmp_path: Path) -> None:
    with mounted(tmp_path / "fixed", "-o", "ro") as place:
        assert_refused(command("convert", DIGITS, "-o", place / "m.dlc", "--no-verify"), "read-only")


@pytest.mark.native
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="ulimit -f of a shell")
def test_a_file_that_may_not_grow(tmp_path: Path) -> None:
    # Stands in for a full disk where mounting is not permitted: no file may be larger than 8 KiB.
    # TMPDIR: the worker's own files are small, what it writes for us is not.
    line = shlex.join(
        [sys.executable, "-m", "npukit", "convert", str(DIGITS), "-o", str(tmp_path / "m.dlc"), "--no-verify"]
    )
    done = subprocess.run(
        ["bash", "-c", f"ulimit -f 8; exec {line}"], capture_output=True, text=True, cwd=ROOT, check=False
    )
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    assert done.stderr.startswith("npukit: error: ")
    assert list(tmp_path.iterdir()) == []


# ---------------------------------------------------------------- killed at any moment


@pytest.mark.native
@pytest.mark.skipif(os.name != "posix", reason="signals")
@pytest.mark.parametrize("sign", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
def test_a_kill_at_any_moment_leaves_nothing_partial(sign: signal.Signals, tmp_path: Path) -> None:
    temp, out = tmp_path / "temp", tmp_path / "out"
    temp.mkdir()
    out.mkdir()
    variables = {**os.environ, "TMPDIR": str(temp)}
    output = out / "m.dlc"
    argv = [sys.executable, "-m", "npukit", "convert", str(DIGITS), "-o", str(output), "-q"]
    start = time.monotonic()
    subprocess.run(argv, env=variables, cwd=ROOT, check=True)
    took = time.monotonic() - start
    whole = output.read_bytes()
    output.unlink()
    for share in (0.15, 0.5, 0.7, 0.8, 0.9):
        process = subprocess.Popen(argv, env=variables, cwd=ROOT, stderr=subprocess.PIPE, start_new_session=True)
        time.sleep(took * share)
        process.send_signal(sign)
        _, words = process.communicate(timeout=60)
        assert b"Traceback" not in words
        assert process.returncode in {0, -sign, 130}
        if output.exists():
            assert output.read_bytes() == whole
            output.unlink()
        elif sign is signal.SIGINT:
            assert list(out.iterdir()) == []
    subprocess.run(argv, env=variables, cwd=ROOT, check=True)
    assert [path.name for path in out.iterdir()] == ["m.dlc"]  # what killed runs left is gone
    assert output.read_bytes() == whole
    deadline = time.monotonic() + 10  # a killed command's worker ends, and takes its folder along
    while list(temp.iterdir()) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert list(temp.iterdir()) == []


def test_the_error_of_a_bad_file_is_one_json_value(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "m.onnx").write_bytes(b"junk")
    assert main(["convert", str(tmp_path / "m.onnx"), "--json", "--in-process"]) == 2
    error = json.loads(capsys.readouterr().out)["error"]
    assert error["exit_code"] == 2
    assert "not a whole ONNX model" in error["what"]

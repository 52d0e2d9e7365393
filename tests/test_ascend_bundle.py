# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""Bundles: written here, compiled by their own script with the stand-in for atc, and taken back."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from doubles.atc.install import install
from onnx import helper, numpy_helper

import npukit
from npukit.artifacts.context import read_sidecar
from npukit.ascend import atc_options, bundle, cann
from npukit.errors import ArtifactError, NpukitError, UsageError
from npukit.frontends.onnx import write_model

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="atc runs on Linux only")
TARGET = "ascend310p3"


@pytest.fixture(scope="session")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return install(tmp_path_factory.mktemp("cann") / "latest", "8.2.RC1")


@pytest.fixture(autouse=True)
def no_cann(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """This machine has no CANN: the one that compiles is another."""
    for name in (*cann.VARIABLES, "ASCEND_OPP_PATH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(cann, "FOLDERS", ())
    monkeypatch.chdir(tmp_path)


def network(path: Path, rows: int | str = 1) -> Path:
    weights = numpy_helper.from_array(np.arange(12, dtype=np.float32).reshape(4, 3, 1, 1) / 12, "w")
    node = helper.make_node("Conv", ["x", "w"], ["y"], "conv")
    x, y = (helper.make_tensor_value_info(n, 1, [rows, c, 8, 8]) for n, c in (("x", 3), ("y", 4)))
    graph = helper.make_graph([node], "net", [x], [y], [weights])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 14)], ir_version=8), path)
    return path


def written(path: Path, **options: Any) -> Any:
    return npukit.compile(network(Path("net.onnx")), target=TARGET, bundle=path, in_process=True, **options)


def script(folder: Path, root: Path | None, *arguments: str, shell: str = "sh", **variables: str) -> Any:
    """Run compile.sh as on the other machine: without a variable of this one."""
    held = {key: os.environ[key] for key in ("PATH", "HOME", "TMPDIR") if key in os.environ}
    if root is not None:
        held["ASCEND_SET_ENV"] = str(root / "set_env.sh")
    return subprocess.run(
        [shell, "compile.sh", *arguments], cwd=folder, env={**held, **variables}, capture_output=True, text=True,
        check=False,
    )  # fmt: skip


SHELLS = [name for name in ("sh", "dash", "bash", "busybox") if shutil.which(name) and name != "busybox"]


@pytest.mark.parametrize("shell", SHELLS)
def test_there_and_back(root: Path, tmp_path: Path, shell: str) -> None:
    result = written(Path("b"))
    assert result.path == Path("b")
    names = [path.relative_to("b").as_posix() for path in bundle.files(Path("b"))]
    assert names == ["README.txt", "bundle.json", "compile.sh", "net/net.onnx"]
    assert result.size == sum(path.stat().st_size for path in Path("b").rglob("*") if path.is_file())
    done = script(tmp_path / "b", root, shell=shell)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "compile.sh: net: done" in done.stdout
    assert sorted(path.name for path in Path("b/out").iterdir()) == ["SHA256SUMS", "cann.txt", "net.log", "net.om"]
    back = npukit.compile("b/out/net.om", from_bundle="b", output="final.om")
    stamp = read_sidecar(Path("final.om"))
    assert stamp is not None
    assert stamp.targets == (TARGET,)
    assert stamp.options["cann"] == "8.2.RC1"
    assert stamp.source_name == "net.onnx"
    assert [io.name for io in stamp.inputs] == ["x"]
    assert back.notes == ()
    assert back.seconds is None
    assert Path("final.om").read_bytes() == Path("b/out/net.om").read_bytes()


def test_it_is_what_would_be_compiled_here(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written(Path("b"))
    done = script(Path("b"), root)
    assert done.returncode == 0, done.stdout + done.stderr
    there = npukit.compile("b/out/net.om", from_bundle="b", output="there.om")
    monkeypatch.setenv("ASCEND_TOOLKIT_HOME", str(root))
    here = npukit.compile("net.onnx", target=TARGET, output="net.om", in_process=True)
    assert here.path.read_bytes() == there.path.read_bytes()
    assert here.stamp == there.stamp


@pytest.mark.parametrize("name", ["b.tar", "b.tar.gz", "b.tgz"])
def test_a_tar_file(root: Path, tmp_path: Path, name: str) -> None:
    written(Path(name))
    first = Path(name).read_bytes()
    written(Path(name))
    assert Path(name).read_bytes() == first
    with tarfile.open(name) as archive:
        assert {(member.uid, member.mtime) for member in archive} == {(0, 0)}
        archive.extractall(tmp_path / "there", filter="data")
    done = script(tmp_path / "there" / "b", root)
    assert done.returncode == 0, done.stderr
    assert npukit.compile("there/b/out/net.om", from_bundle=name, output="x.om").sidecar.is_file()
    assert not list(tmp_path.glob(".*"))


def test_everything_that_atc_reads_goes_along(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keep = Path("my list.txt")
    keep.write_text("conv\n")
    result = written(
        Path("b"),
        aipp={"mean": [104, 117, 123], "color": "BGR"},
        atc_options={"keep_dtype": str(keep), "log": "error"},
        precision_mode="origin",
    )
    names = [path.relative_to("b").as_posix() for path in bundle.files(Path("b"))]
    assert names == ["README.txt", "bundle.json", "compile.sh", "net/aipp.cfg", "net/keep_dtype.txt", "net/net.onnx"]
    assert "--insert_op_conf=aipp.cfg" in result.command
    assert result.command in Path("b/README.txt").read_text()
    done = script(Path("b"), root)
    assert done.returncode == 0, done.stdout + done.stderr


def test_weights_in_a_file_of_their_own(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(write_model, "_EMBED_LIMIT", 10)
    written(Path("b"))
    data = [path for path in bundle.files(Path("b/net")) if path.suffix != ".onnx"]
    assert len(data) == 1
    assert data[0].stat().st_size >= 48
    assert data[0].relative_to("b").as_posix() in Path("b/SHA256SUMS").read_text()
    done = script(Path("b"), root)
    assert done.returncode == 0, done.stdout + done.stderr


def test_weights_of_the_om_come_back_with_it(root: Path) -> None:
    written(Path("b"), atc_options={"external_weight": "1"})
    done = script(Path("b"), root)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "weight/weight_0123abcd" in Path("b/out/SHA256SUMS").read_text()
    Path("place").mkdir()
    back = npukit.compile("b/out/net.om", from_bundle="b", output="place/net.om")
    assert back.weights == (Path("place/weight/weight_0123abcd"),)
    assert back.weights[0].is_file()


def test_the_om_may_stay_where_it_is(root: Path) -> None:
    written(Path("b"))
    done = script(Path("b"), root)
    assert done.returncode == 0, done.stdout + done.stderr
    before = Path("b/out/net.om").read_bytes()
    npukit.compile("b/out/net.om", from_bundle="b", output="b/out/net.om")
    assert Path("b/out/net.om").read_bytes() == before
    assert read_sidecar(Path("b/out/net.om")) is not None


# --- the script's own checks


def test_without_cann() -> None:
    written(Path("b"))
    done = script(Path("b"), None, HOME="/nowhere")
    assert done.returncode == 3
    assert "CANN was not found" in done.stderr
    done = script(Path("b"), None, ASCEND_SET_ENV=str(Path("empty.sh").absolute()), HOME="/nowhere")
    Path("empty.sh").write_text("")
    done = script(Path("b"), None, ASCEND_SET_ENV=str(Path("empty.sh").absolute()), HOME="/nowhere")
    assert done.returncode == 3
    assert "still no atc" in done.stderr


def test_the_toolkits_own_variable_will_do(root: Path) -> None:
    written(Path("b"))
    assert script(Path("b"), None, ASCEND_TOOLKIT_HOME=str(root)).returncode == 0


def test_atc_on_path_will_do(root: Path) -> None:
    written(Path("b"))
    variables = {"PATH": f"{root / 'bin'}:{os.environ['PATH']}", "ASCEND_OPP_PATH": str(root / "opp")}
    assert script(Path("b"), None, **variables).returncode == 0


@pytest.mark.parametrize("spoil", ["change", "remove"])
def test_a_damaged_copy(root: Path, spoil: str) -> None:
    written(Path("b"))
    model = Path("b/net/net.onnx")
    model.write_bytes(model.read_bytes()[:-1]) if spoil == "change" else model.unlink()
    done = script(Path("b"), root)
    assert done.returncode == 2
    assert "net/net.onnx" in done.stderr
    assert "copy it again" in done.stderr
    assert not Path("b/out").exists()


def test_a_path_that_atc_does_not_take(root: Path) -> None:
    written(Path("b"))
    shutil.copytree("b", "a b;c")
    done = script(Path("a b;c"), root)
    assert done.returncode == 2
    assert "without ' ;'" in done.stderr
    shutil.copytree("b", "中文")
    assert script(Path("中文"), root).returncode == 0


@pytest.mark.parametrize(
    ("behave", "what"),
    [
        ("die", "atc ended with status"),
        ("error:EZ3003", "atc ended with status 255"),
        ("silent", "atc did not say that it succeeded"),
        ("lost", "atc wrote no OM"),
    ],
)
def test_atc_that_fails_there(root: Path, behave: str, what: str) -> None:
    written(Path("b"))
    done = script(Path("b"), root, ATC_DOUBLE=behave)
    assert done.returncode == 1
    assert f"net: FAILED, {what}" in done.stderr
    assert sorted(path.name for path in Path("b/out").iterdir()) == ["SHA256SUMS", "cann.txt", "net.log"]


def test_several_models(root: Path) -> None:
    folder = Path("b")
    entries = []
    for name in ("first", "second"):
        one = Path(f"one_{name}")
        npukit.compile(network(Path(f"{name}.onnx")), target=TARGET, bundle=one, in_process=True)
        shutil.copytree(one / name, folder / name)
        (model,) = bundle.read(one)
        values = dict(word[2:].split("=", 1) for word in model.arguments)
        job = bundle.Job(values["model"], values["output"], values["soc_version"])
        entries.append(bundle.Entry(name, job, model.stamp))
    bundle.write(folder, entries)
    assert script(folder, root, "second").returncode == 0
    assert not (folder / "out/first.om").exists()
    assert script(folder, root).returncode == 0
    for name in ("first", "second"):
        assert npukit.compile(folder / f"out/{name}.om", from_bundle=folder, output=f"{name}.om").stamp["source_name"]


# --- taking it back


@pytest.fixture
def done(root: Path, tmp_path: Path) -> Path:
    written(Path("b"))
    done = script(Path("b"), root)
    assert done.returncode == 0, done.stdout + done.stderr
    return Path("b/out/net.om")


def adopted(om: Path, place: Path | str = "b") -> Any:
    return npukit.compile(om, from_bundle=place, output="x.om")


def test_a_damaged_om(done: Path) -> None:
    done.write_bytes(done.read_bytes()[:-1] + b"x")
    with pytest.raises(ArtifactError, match="the SHA-256 differs"):
        adopted(done)
    (done.parent / "SHA256SUMS").unlink()
    assert any("came over whole" in note for note in adopted(done).notes)
    done.write_bytes(done.read_bytes()[:-1])
    with pytest.raises(ArtifactError, match="bytes follow"):
        adopted(done)
    done.write_bytes(b"no OM at all")
    with pytest.raises(ArtifactError):
        adopted(done)


def test_an_om_of_another_name(done: Path) -> None:
    other = done.with_name("nett.om")
    done.rename(other)
    with pytest.raises(UsageError, match="no model of this name") as caught:
        adopted(other)
    assert "did you mean 'net'?" in caught.value.hint


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"npukit_bundle": 1}', '{"npukit_bundle": 1, "models": [{}]}', "\0"])
def test_a_broken_manifest(done: Path, text: str) -> None:
    Path("b/bundle.json").write_text(text)
    with pytest.raises(ArtifactError, match="cannot be read"):
        adopted(done)


def test_a_stamp_that_is_none(done: Path) -> None:
    manifest = json.loads(Path("b/bundle.json").read_text())
    manifest["models"][0]["stamp"]["options"] = {}
    Path("b/bundle.json").write_text(json.dumps(manifest))
    with pytest.raises(ArtifactError, match="not one of an OM"):
        adopted(done)


def test_no_bundle(done: Path) -> None:
    Path("empty").mkdir()
    Path("text.tar").write_text("text")
    with tarfile.open("other.tar", "w") as archive:
        archive.add("b/README.txt")
    for place in ("empty", "text.tar", "other.tar", "nothing"):
        with pytest.raises(NpukitError):
            adopted(done, place)


# --- writing it


def test_a_name_that_is_taken() -> None:
    written(Path("b"))
    with pytest.raises(UsageError, match="there is something of this name"):
        written(Path("b"))
    Path("file").write_text("")
    with pytest.raises(UsageError, match="there is something of this name"):
        written(Path("file"))
    Path("empty").mkdir()
    written(Path("empty"))
    with pytest.raises(NpukitError, match="no such file or folder"):
        written(Path("no/b"))
    assert not [path for path in Path().iterdir() if path.name.startswith(".")]


def test_printed_commands(capfd: pytest.CaptureFixture[str]) -> None:
    network(Path("net.onnx"), "n")
    result = npukit.compile("net.onnx", target=TARGET, print_command=True, in_process=True, symbols={"n": 2})
    first, last = result.commands
    assert shlex.split(first)[:3] == ["npukit", "export", "net.onnx"]
    assert "--symbol n=2" in first
    assert shlex.split(last) == [
        "atc", "--model=net.atc.onnx", "--framework=5", "--output=net", "--soc_version=Ascend310P3",
    ]  # fmt: skip
    result = npukit.compile(
        "net.onnx", target=TARGET, print_command=True, in_process=True, prepare=False,
        input_shapes={"x": (-1, 3, 8, 8)},
        atc_options={"dynamic_dims": "1;2", "input_format": "ND"},
    )  # fmt: skip
    assert result.commands[-1] == (
        "atc --model=net.onnx --framework=5 --output=net --soc_version=Ascend310P3 '--dynamic_dims=1;2' "
        "--input_format=ND --input_shape=x:-1,3,8,8"
    )
    assert sorted(path.name for path in Path().iterdir()) == ["net.onnx"]


def test_printed_commands_work(root: Path) -> None:
    network(Path("net.onnx"))
    result = npukit.compile("net.onnx", target=TARGET, print_command=True, in_process=True, aipp={"scale": "1/255"})
    text = f". {root}/set_env.sh\nset -e\n" + "\n".join(result.commands)
    subprocess.run(["bash", "-c", text], check=True, capture_output=True)
    assert Path("net.om").is_file()
    with pytest.raises(UsageError, match="a blank"):
        npukit.compile(network(Path("a b.onnx")), target=TARGET, print_command=True, in_process=True)


# --- the guide

GUIDE = Path(__file__).parents[1] / "docs/guides/ascend.md"


def test_the_guides_table_is_that_of_the_options() -> None:
    rows = []
    for option in atc_options.table():
        kind = {"file": "a file", "folder": "a folder"}.get(option.kind, "")
        values = ", ".join(f"`{value}`" for value in option.values) or kind
        since = f" (CANN {option.since} or newer)" if option.since else ""
        rows.append(f"| `{option.name}` | {values} | {option.help.replace('|', chr(92) + '|')}{since} |\n")
    assert "".join(rows) in GUIDE.read_text("utf-8")


def test_the_guides_commands_run_with_the_stand_in(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from test_docs import _run_page

    monkeypatch.setenv("ASCEND_TOOLKIT_HOME", str(root))
    _run_page(GUIDE, {"run", "double"}, tmp_path)

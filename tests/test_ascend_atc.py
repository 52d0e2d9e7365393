# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""Compiling for Ascend against a stand-in for atc (tests/doubles/atc), which refuses and says what documents say."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from doubles.atc.install import HERE, install
from onnx import helper, numpy_helper

import npukit
from npukit.artifacts.context import read_sidecar
from npukit.ascend import atc, atc_errors, atc_options, cann, om
from npukit.cli.main import main
from npukit.errors import GraphError, MissingDependency, NativeError, NpukitError, UsageError
from npukit.verbs.compile import atc_options as parse_options
from npukit.verbs.compile import atc_shapes, extents

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="atc runs on Linux only")
TARGET = "ascend310p3"


@pytest.fixture(scope="session")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return install(tmp_path_factory.mktemp("cann") / "latest")


@pytest.fixture
def toolkit(root: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in (*cann.VARIABLES, "ASCEND_OPP_PATH", "ATC_DOUBLE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("ASCEND_TOOLKIT_HOME", str(root))
    return root


@pytest.fixture
def no_cann(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*cann.VARIABLES, "ASCEND_OPP_PATH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(cann, "FOLDERS", ("/nowhere/ascend-toolkit/latest",))


def network(path: Path, rows: int | str = 1, op: str = "Relu", opset: int = 14) -> Path:
    """x [rows, 3, 8, 8] -> Conv -> `op` -> y."""
    weights = numpy_helper.from_array(np.ones((4, 3, 1, 1), np.float32), "w")
    nodes = [helper.make_node("Conv", ["x", "w"], ["c"], "conv"), helper.make_node(op, ["c"], ["y"], "last")]
    x = helper.make_tensor_value_info("x", 1, [rows, 3, 8, 8])
    y = helper.make_tensor_value_info("y", 1, [rows, 4, 8, 8])
    graph = helper.make_graph(nodes, "net", [x], [y], [weights])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8), path)
    return path


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return network(tmp_path / "net.onnx")


def compiled(model: Path, **options: Any) -> Any:
    return npukit.compile(model, target=TARGET, in_process=True, **options)


def left(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# --- the stand-in itself


@pytest.mark.parametrize("table", sorted(HERE.glob("*.tsv")), ids=lambda path: path.stem)
def test_every_line_of_the_stand_in_says_where_it_is_from(table: Path) -> None:
    rows = [line.split("\t") for line in table.read_text("utf-8").splitlines() if not line.startswith("#")]
    assert rows
    width = len(table.read_text("utf-8").splitlines()[0].split("\t"))
    for row in rows:
        assert len(row) == width, row
        assert re.fullmatch(r"\[.+\]", row[-1]), row


def test_the_stand_in_knows_nothing_of_npukit() -> None:
    for name in ("atc", "atc_bin.py", "set_env.sh", "install.py", *(path.name for path in HERE.glob("*.tsv"))):
        text = (HERE / name).read_text("utf-8").replace("npukit contributors", "")
        assert "npukit" not in text, name


def called(root: Path, folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "ASCEND_OPP_PATH": str(root / "opp")}
    return subprocess.run(
        [root / "bin" / "atc", *arguments], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize(
    ("arguments", "stream", "text"),
    [
        (["--foo=1"], "stderr", "ERROR: unknown command line flag 'foo'"),
        (["foo"], "stderr", "ERROR: Non-option parameter: foo"),
        (["--model"], "stderr", "ERROR: flag '--model' is missing its argument"),
        ([], "stdout", "E10054: The required parameter --soc_version for ATC is empty."),
        (["--soc_version=Ascend310P3", "--output=o", "--model=m.onnx"], "stdout", "E10007: --framework is required."),
        (["--framework=9"], "stdout", "E10007"),
        (["--log=loud"], "stdout", "E10010"),
        (["--deterministic=2"], "stdout", "E10006"),
        (["-soc-version=Ascend310P9", "--output=o", "--model=m.onnx", "--framework=5"], "stdout", "E10001"),
        (
            ["--soc_version=Ascend310P3", "--output=o p", "--model=m.onnx", "--framework=5"],
            "stdout",
            "The path can only",
        ),
    ],
)
def test_the_stand_in_refuses_as_documented(
    root: Path, tmp_path: Path, arguments: list[str], stream: str, text: str
) -> None:
    network(tmp_path / "m.onnx")
    done = called(root, tmp_path, *arguments)
    assert done.returncode == 255
    assert done.stdout.startswith("ATC start working now, please wait for a moment.\n")
    assert "ATC run failed, Please check the detail log, Try 'atc --help' for more information" in done.stdout
    assert text in getattr(done, stream)
    assert left(tmp_path) == ["m.onnx"]


# --- compiling


def test_compiles_checks_and_stamps(toolkit: Path, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    record = model.with_name("record.json")
    monkeypatch.setenv("ATC_DOUBLE_RECORD", str(record))
    monkeypatch.setenv("ATC_DOUBLE", "slow:0.7")  # its memory is looked at every 0.2 s
    output = model.with_name("a-b.om")
    result = compiled(model, output=output)
    assert result.exit_code == 0
    assert left(model.parent) == ["a-b.om", "a-b.om.npukit.json", "net.onnx", "record.json"]
    held = json.loads(record.read_text())
    assert held["arguments"] == [
        "--model=a-b.onnx", "--framework=5", "--output=../out/a-b", "--soc_version=Ascend310P3",
    ]  # fmt: skip
    assert held["ASCEND_OPP_PATH"] == str(toolkit / "opp")
    assert str(toolkit / "lib64") in held["LD_LIBRARY_PATH"].split(":")
    assert str(toolkit / "python/site-packages") in held["PYTHONPATH"].split(":")
    assert held["PATH"].split(":")[0] == str(toolkit / "bin")
    assert om.read(output).version
    stamp = read_sidecar(output)
    assert stamp is not None
    assert stamp.targets == (TARGET,)
    assert [(io.name, io.dtype, io.shape, io.held_dtype) for io in stamp.inputs] == [
        ("x", "float32", (1, 3, 8, 8), "FLOAT_32")
    ]
    assert stamp.options["cann"] == "8.0.0"
    assert stamp.options["precision_mode"] == "fp16"
    assert stamp.options["soc_version"] == "Ascend310P3"
    assert result.to_json()["stamp"] == stamp.to_dict()
    assert str(output) in result.to_text()
    assert result.peak > 1_000_000  # a Python ran


def test_the_same_model_gives_the_same_files(toolkit: Path, model: Path) -> None:
    first, second = (compiled(model, output=model.with_name("same.om")) for _ in range(2))
    assert first.stamp == second.stamp


@pytest.mark.parametrize("name", ["out", "-x", "a b", "模"])
def test_any_name_of_the_output_will_do(toolkit: Path, model: Path, name: str) -> None:
    assert compiled(model, output=model.with_name(f"{name}.om")).path.is_file()


def test_the_default_output_lies_beside_the_model(toolkit: Path, model: Path) -> None:
    assert compiled(model).path == model.with_suffix(".om")


def test_gears_shapes_and_precision_reach_atc(toolkit: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    record = tmp_path / "record.json"
    monkeypatch.setenv("ATC_DOUBLE_RECORD", str(record))
    model = network(tmp_path / "net.onnx", "n")
    keep = tmp_path / "my keep list.txt"
    keep.write_text("conv\n")
    result = compiled(
        model,
        input_shapes={"x": (-1, 3, 8, 8)},
        precision_mode="mixed_float16",
        atc_options={"dynamic_dims": "1;4", "input_format": "ND", "keep_dtype": str(keep), "log": "error"},
    )
    assert json.loads(record.read_text())["arguments"][4:] == [
        "--dynamic_dims=1;4", "--input_format=ND", "--keep_dtype=keep_dtype.txt", "--log=error",
        "--precision_mode_v2=mixed_float16", "--input_shape=x:-1,3,8,8",
    ]  # fmt: skip
    stamp = read_sidecar(result.path)
    assert stamp is not None
    assert stamp.inputs[0].shape == (4, 3, 8, 8)  # the largest gear, which runs where none is set
    assert stamp.options["atc"]["dynamic_dims"] == "1;4"
    assert om.read(result.path).dynamic is False


def test_open_shapes_are_noted(toolkit: Path, tmp_path: Path) -> None:
    model = network(tmp_path / "net.onnx", "n")
    result = compiled(model, input_shapes={"x": ("1~8", 3, 8, 8)})
    assert any("shapes are open" in note for note in result.notes)
    assert result.stamp["inputs"][0]["shape"] == [8, 3, 8, 8]


def test_a_symbol_fixes_a_shape(toolkit: Path, tmp_path: Path) -> None:
    for options in ({"symbols": {"n": 2}}, {"batch": 2}, {"input_shapes": {"x": (2, 3, 8, 8)}}):
        result = compiled(network(tmp_path / "net.onnx", "n"), **options)
        assert result.stamp["inputs"][0]["shape"] == [2, 3, 8, 8]


def test_an_open_shape_is_asked_for(toolkit: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="input 'x'.*is open") as caught:
        compiled(network(tmp_path / "net.onnx", "n"))
    assert "--symbol" in str(caught.value)


def test_float16_ends_are_in_the_stamp(toolkit: Path, model: Path) -> None:
    result = compiled(model, atc_options={"input_fp16_nodes": "x", "output_type": "FP16"})
    assert [io["held_dtype"] for io in (*result.stamp["inputs"], *result.stamp["outputs"])] == ["FLOAT_16"] * 2


def test_weights_beside_the_om(toolkit: Path, model: Path) -> None:
    result = compiled(model, atc_options={"external_weight": "1"})
    assert [path.relative_to(model.parent).as_posix() for path in result.weights] == ["weight/weight_0123abcd"]
    assert list(result.stamp["options"]["weight_files"]) == ["weight_0123abcd"]
    assert all(path.is_file() for path in result.weights)


def test_one_file_of_weights_is_named_after_the_om(toolkit: Path, model: Path) -> None:
    with pytest.raises(UsageError, match="named after the OM"):
        compiled(model, output=model.with_name("a b.om"), atc_options={"external_weight": "2"})


def test_a_disk_that_is_too_small_is_seen_before(toolkit: Path, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: shutil._ntuple_diskusage(10, 9, 1))
    with pytest.raises(NpukitError, match="not enough space: .* are needed, 1 B are free"):
        compiled(model)
    assert left(model.parent) == ["net.onnx"]


def test_an_om_named_after_the_machine(toolkit: Path, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ATC_DOUBLE", "named")
    assert compiled(model).path == model.with_suffix(".om")


def test_warnings_are_notes(toolkit: Path, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ATC_DOUBLE", "warn")
    assert any("W11001" in note for note in compiled(model).notes)


@pytest.mark.parametrize("folder", ["with blank", "a;b", "中文", "naïve"])
def test_paths_that_atc_does_not_take_are_gone_around(toolkit: Path, tmp_path: Path, folder: str) -> None:
    place = tmp_path / folder
    place.mkdir()
    compiled(network(place / "my net.onnx"), output=place / "out put.om")
    assert left(place) == ["my net.onnx", "out put.om", "out put.om.npukit.json"]


def test_a_path_that_cannot_be_gone_around(toolkit: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = tmp_path / "a b"
    place.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(place))
    with pytest.raises(NpukitError, match="a blank") as caught:
        compiled(network(place / "net.onnx"))
    assert "TMPDIR" in caught.value.hint
    assert left(place) == ["net.onnx"]


# --- what goes wrong


@pytest.mark.parametrize(
    ("behave", "kind", "what"),
    [
        ("die", NativeError, "ended by SIGSEGV"),
        ("lost", NativeError, "wrote no OM"),
        ("silent", NativeError, "status 0 and gave no reason"),
        ("truncate", NpukitError, "bytes follow"),
    ],
)
def test_atc_that_fails_leaves_nothing(
    toolkit: Path, model: Path, monkeypatch: pytest.MonkeyPatch, behave: str, kind: type[NpukitError], what: str
) -> None:
    monkeypatch.setenv("ATC_DOUBLE", behave)
    with pytest.raises(kind, match=what):
        compiled(model)
    assert left(model.parent) == ["net.onnx"]


FORMS = dict(line.split("\t")[:2] for line in (HERE / "messages.tsv").read_text().splitlines() if line[0] in "EW")


@pytest.mark.parametrize("code", [code for code in FORMS if code[0] == "E"])
def test_every_documented_error_is_decoded(code: str) -> None:
    text = FORMS[code].format(*["conv_1"] * FORMS[code].count("{}"))
    error = atc_errors.error(["...", "ATC run failed", f"{code}: {text}", "        Solution: s"], 255, "m")
    (fault,) = error.faults
    assert fault.what.startswith(f"{code}: ")
    assert "PID" not in fault.what
    assert fault.hint
    assert code in atc_errors.BY_CODE


@pytest.mark.parametrize(
    ("code", "kind", "status"),
    [
        ("E40020", MissingDependency, 3),
        ("EZ3003", GraphError, 2),
        ("E40021", NativeError, 3),
        ("E10016", UsageError, 2),
    ],
)
def test_an_error_of_atc_is_the_verbs(
    toolkit: Path, model: Path, monkeypatch: pytest.MonkeyPatch, code: str, kind: type[NpukitError], status: int
) -> None:
    monkeypatch.setenv("ATC_DOUBLE", f"error:{code}")
    with pytest.raises(kind, match=f"(?s)net.onnx: atc refused it.*{code}") as caught:
        compiled(model)
    assert caught.value.exit_code == status
    assert left(model.parent) == ["net.onnx"]


@pytest.mark.parametrize(
    ("line", "where", "kind"),
    [
        # published logs: vllm-ascend#811, Ascend/samples#11, ModelZoo-PyTorch#6, e-com-net 1598255731407093760
        ("EZ3002: [PID: 141730] 2025-05-14-07:42:33.234.136 Optype [TransData] of Ops kernel [AIcoreEngine] is "
         "unsupported. Reason: x.", "operator TransData", GraphError),
        ("EZ3003: No supported Ops kernel and engine are found for [AddDsl1], optype [AddDsl].", "node AddDsl1",
         GraphError),
        ("E19010: No parser is registered for Op [conv/1.a, optype [ai.onnx::11::Foo]].", "node conv/1.a", GraphError),
        ("E16002: No ONNX parser is registered for optype ai.onnx::14::Gelu.", "operator ai.onnx::14::Gelu (gelu_1)",
         GraphError),
        ("E89999: op[Add_718], The Add_718 op dtype is not same, type1:DT_INT64, type2:DT_INT32", "node Add_718",
         GraphError),
        ("E10501: IR for Op custom_op with optype CustomOp is not registered.", "node custom_op", MissingDependency),
        ("E10016: Op name nothing specified in --input_shape is not found in the model.", "name nothing", UsageError),
        ("E40021: Failed to compile Op conv_1. oppath is /a and optype is Conv2D.", "node conv_1", NativeError),
        ("E40020: Failed to import Python module decorator. Reason: none.", "Python module decorator",
         MissingDependency),
        ("E13004: Failed to write file /data/x.om. Reason: [Errno 28] No space left on device.", "/data/x.om",
         NpukitError),
        ("E51234: bad argument", "", GraphError),
        ("EE1001: runtime", "", MissingDependency),
        ("E10001: Value Ascend310P3 for parameter --soc_version is invalid. Reason: x.", "--soc_version", UsageError),
        ("E79999: who knows", "", NativeError),
        ("ERROR: unknown command line flag 'oo_level'", "", UsageError),
    ],
)  # fmt: skip
def test_lines_of_published_logs(line: str, where: str, kind: type[NpukitError]) -> None:
    error = atc_errors.error(["...", line, "        Solution: s", "        more"], 255, "m", {"Gelu": ["gelu_1"]})
    assert type(error) is kind
    (fault,) = error.faults
    assert fault.where == where
    assert fault.hint
    assert "Solution" not in fault.what


def test_several_messages_and_their_reasons() -> None:
    lines = [
        "E10001: Value 1",
        "        for parameter --x is invalid.",
        "        Solution: none",
        "W11001: slow",
        "E13009: Operator a already exists",
        "",
    ]  # noqa: E501
    error = atc_errors.error([*lines, *lines], 255, "m")
    assert [fault.what for fault in error.faults] == [
        "E10001: Value 1 for parameter --x is invalid.", "E13009: Operator a already exists",
    ]  # fmt: skip
    assert atc_errors.warnings(lines) == ["atc: W11001: slow"]


def test_a_time_limit(toolkit: Path, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ATC_DOUBLE", "slow:60")
    start = time.monotonic()
    with pytest.raises(NativeError, match="within 1 s"):
        compiled(model, timeout=1)
    assert time.monotonic() - start < 20
    assert left(model.parent) == ["net.onnx"]


def test_a_memory_limit(toolkit: Path, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ATC_DOUBLE", "eat")
    with pytest.raises(NativeError, match=r"atc took \d+ MiB of 95 MiB"):
        compiled(model, memory_limit=100_000_000)
    assert left(model.parent) == ["net.onnx"]


def _alive(marker: str) -> list[str]:
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            words = (folder / "cmdline").read_bytes().split(b"\0")
            variables = (folder / "environ").read_bytes()
        except OSError:
            continue
        if f"ATC_TEST={marker}".encode() in variables.split(b"\0") and b"compile" not in words:
            found.append(" ".join(word.decode() for word in words))
    return found


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_killed_compile_ends_atc_and_leaves_no_om(root: Path, model: Path, number: int) -> None:
    marker = f"{number}-{os.getpid()}"
    environment = {**os.environ, "ASCEND_TOOLKIT_HOME": str(root), "ATC_DOUBLE": "hang", "ATC_TEST": marker,
                   "ATC_DOUBLE_RECORD": str(model.with_name("record"))}  # fmt: skip
    command = [sys.executable, "-m", "npukit", "compile", model, "--target", TARGET, "-q", "--in-process"]
    child = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE)
    until(lambda: model.with_name("record").exists() and any("time.sleep" in line for line in _alive(marker)))
    child.send_signal(number)
    assert child.wait(60) in (-number, 128 + number)
    until(lambda: not _alive(marker))
    remains = [name for name in left(model.parent) if name not in ("net.onnx", "record")]
    if number == signal.SIGKILL:  # nobody was there to tidy up: the next one does
        assert all(name.endswith(".npukit-tmp") for name in remains)
    else:
        assert remains == []


def until(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_what_a_killed_compile_left_goes_with_the_next(toolkit: Path, model: Path) -> None:
    from npukit.files import temporary_folder_beside

    place = temporary_folder_beside(model.with_suffix(".om"))
    ended = subprocess.Popen(["true"])
    ended.wait()
    place.rename(place.with_name(place.name.replace(f"-{os.getpid()}-", f"-{ended.pid}-")))
    compiled(model)
    assert left(model.parent) == ["net.om", "net.om.npukit.json", "net.onnx"]


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="mounts a small file system")
def test_a_full_disk(toolkit: Path, model: Path, tmp_path: Path) -> None:
    place = tmp_path / "small"
    place.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4k", "none", place], capture_output=True, check=False)
    if done.returncode:
        pytest.skip("no file system can be mounted here")
    try:
        with pytest.raises(NpukitError, match="(?i)no(t enough)? space"):
            compiled(model, output=place / "x.om")
        assert left(place) == []
    finally:
        subprocess.run(["umount", "-l", place], check=True)  # the model that was begun may still be mapped


def test_the_lint_stops_before_atc(toolkit: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = network(tmp_path / "net.onnx", op="Gelu", opset=20)
    record = tmp_path / "record.json"
    monkeypatch.setenv("ATC_DOUBLE_RECORD", str(record))
    with pytest.raises(GraphError, match="would refuse the model") as caught:
        compiled(model, prepare=False)
    assert not record.exists()
    assert any("Gelu" in fault.where + fault.what for fault in caught.value.faults)
    with pytest.raises(GraphError, match="atc refused it") as caught:
        compiled(model, prepare=False, lint=False)
    assert "E19010" in caught.value.faults[0].what
    assert compiled(model).applied  # prepared, it goes through


# --- options and their rules

BAD: list[tuple[dict[str, str], dict[str, tuple[int | str, ...]], str, str]] = [
    ({"dynamic_dims": "1;2", "dynamic_batch_size": "1,2"}, {"x": (-1, 3, 8, 8)}, "exclude", "E10009"),
    ({"dynamic_image_size": "8,8;9,9", "dynamic_batch_size": "1,2"}, {"x": (-1, 3, 8, 8)}, "exclude", "E10009"),
    ({"precision_mode": "force_fp16", "precision_mode_v2": "origin"}, {}, "exclude", "E10056"),
    ({"dynamic_dims": "1;2"}, {"x": (-1, 3, 8, 8)}, "needs input_format=ND", "E10001"),
    ({"optypelist_for_implmode": "Gelu"}, {}, "needs op_select_implmode", "E10001"),
    ({"modify_mixlist": "m.onnx"}, {}, "mixed precision only", "E10001"),
    ({"modify_mixlist": "m.onnx", "precision_mode": "force_fp16"}, {}, "mixed precision only", "E10001"),
    ({"dynamic_batch_size": "1,2"}, {"x": (-1, 3, -1, 8)}, "only dimension 0", "E10018"),
    ({"dynamic_batch_size": "1"}, {"x": (-1, 3, 8, 8)}, "1 gears", "E10035"),
    ({"dynamic_batch_size": ",".join(map(str, range(1, 103)))}, {"x": (-1, 3, 8, 8)}, "102 gears", "E10036"),
    ({"dynamic_batch_size": "1,2,1"}, {"x": (-1, 3, 8, 8)}, "given twice", "E10039"),
    ({"dynamic_batch_size": "1,2"}, {"x": ("1~2", 3, 8, 8)}, "a range cannot go with gears", "E10040"),
    ({"dynamic_dims": "1,2;3,4", "input_format": "ND"}, {"x": (-1, 3, 8, 8)}, "each gear needs 1 numbers", "E10003"),
    ({"dynamic_dims": "1;2", "input_format": "ND"}, {"x": (1, 3, 8, 8)}, "no input has a dimension of -1", "E10001"),
    ({"dynamic_image_size": "8,8;9,9"}, {"x": (1, 3, -1, 8)}, "only height and width", "E10019"),
    ({"dynamic_image_size": "8,8;9"}, {"x": (1, 3, -1, -1)}, "a height and a width", "E10020"),
    ({"input_format": "NHWC"}, {}, "not a value", "E10001"),
    ({"log": "loud"}, {}, "not a value", "E10010"),
    ({"deterministic": "2"}, {}, "not a value", "E10006"),
    ({"keep_dtype": "nothing.txt"}, {}, "there is no file", "E10001"),
]  # fmt: skip


@pytest.mark.parametrize("case", BAD, ids=lambda case: f"{case[3]}-{case[2]}")
def test_bad_combinations_are_refused_here_as_there(root: Path, tmp_path: Path, case: Any, monkeypatch: Any) -> None:
    options, shapes, what, code = case
    monkeypatch.chdir(tmp_path)
    network(Path("m.onnx"), "n")
    found = atc_options.faults(options, shapes, "8.0.0")
    assert any(what in fault.what for fault in found), found
    told = {"input_shape": atc_options.shape_text(shapes)} if shapes else {"input_shape": "x:1,3,8,8"}
    done = called(root, tmp_path, *atc_options.arguments("m.onnx", "o", "Ascend310P3", {**options, **told}))
    assert done.returncode == 255
    assert f"{code}: " in done.stdout


GOOD: list[tuple[dict[str, str], dict[str, tuple[int | str, ...]]]] = [
    ({}, {"x": (1, 3, 8, 8)}),
    ({}, {"x": ("1~4", 3, 8, 8)}),
    ({"dynamic_batch_size": "1,2,4"}, {"x": (-1, 3, 8, 8)}),
    ({"dynamic_image_size": "8,8;9,9"}, {"x": (1, 3, -1, -1)}),
    ({"dynamic_dims": "1,3;2,3", "input_format": "ND"}, {"x": (-1, -1, 8, 8)}),
    ({"precision_mode": "allow_mix_precision", "modify_mixlist": "m.onnx"}, {"x": (1, 3, 8, 8)}),
    ({"op_select_implmode": "high_performance", "optypelist_for_implmode": "Gelu"}, {"x": (1, 3, 8, 8)}),
    ({"out_nodes": "conv:0", "output_type": "conv:0:FP16"}, {"x": (1, 3, 8, 8)}),
]


@pytest.mark.parametrize("case", GOOD, ids=lambda case: " ".join(case[0]) or str(case[1]["x"][0]))
def test_good_combinations_are_taken_here_as_there(root: Path, tmp_path: Path, case: Any, monkeypatch: Any) -> None:
    options, shapes = case
    monkeypatch.chdir(tmp_path)
    network(Path("m.onnx"), "n")
    assert atc_options.faults(options, shapes, "8.0.0") == []
    told = {**options, "input_shape": atc_options.shape_text(shapes)}
    done = called(root, tmp_path, *atc_options.arguments("m.onnx", "o", "Ascend310P3", told))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "ATC run success, welcome to the next use." in done.stdout


def test_the_table_of_options_is_that_of_atc() -> None:
    rows = [line.split("\t") for line in (HERE / "options.tsv").read_text().splitlines() if line[0] != "#"]
    known = {row[0]: set(filter(None, row[2].split("|"))) for row in rows}
    for option in atc_options.OPTIONS.values():
        if option.since or option.kind == "refused" or option.name == "export_compile_stat":
            continue
        assert option.name in known, option.name
        if option.values and known[option.name] and option.name != "external_weight":
            assert set(option.values) <= known[option.name], option.name
    ours = set(atc_options.OPTIONS)
    assert set(known) - ours == {"help"}


@pytest.mark.parametrize(
    ("options", "what", "hint"),
    [
        ({"foo": "1"}, "no such option", ""),
        ({"dynamic_dim": "1"}, "no such option", "did you mean 'dynamic_dims'?"),
        ({"soc_version": "Ascend310"}, "npukit sets it itself", ""),
        ({"sparsity": "1"}, "the 310P has no such thing", ""),
        ({"precision_mode": "allow_mix_precision_bf16"}, "not a value", ""),
        ({"debug_dir": "/nowhere"}, "there is no folder", "make it first"),
        ({"log": ""}, "it has no value", "log=debug|info|warning|error|null"),
        ({"oo_level": "O1"}, "CANN 8.2.RC1 does not have it", "leave it out"),
    ],
)
def test_options_that_are_refused(options: dict[str, str], what: str, hint: str) -> None:
    (fault,) = atc_options.faults(options, {}, "8.2.RC1")
    assert what in fault.what
    assert hint in fault.hint


def test_every_fault_comes_at_once(toolkit: Path, model: Path) -> None:
    with pytest.raises(UsageError) as caught:
        compiled(model, atc_options={"foo": "1", "log": "loud", "keep_dtype": "nothing"})
    assert len(caught.value.faults) == 3


def test_names_that_cannot_be_told() -> None:
    (fault,) = atc_options.faults({}, {"a;b": (1,)})
    assert "rename it" in fault.hint
    assert atc_options.shape_text({"a:0": (1, -1), "s": (), "r": ("1~3",)}) == "a:0:1,-1;s:;r:1~3"


@pytest.mark.parametrize(
    ("text", "shape"),
    [("x=1,-1", (1, -1)), ("a=b=2", (2,)), ("x=", ()), ("x=1~8,3", ("1~8", 3)), ("x=0~-1", ("0~-1",))],
)
def test_shapes_on_the_command_line(text: str, shape: tuple[int | str, ...]) -> None:
    assert list(atc_shapes([text]).values()) == [shape]


@pytest.mark.parametrize("text", ["x", "=1", "x=0", "x=-2", "x=a", "x=1,,2", "x=1.5"])
def test_shapes_that_are_none(text: str) -> None:
    with pytest.raises(UsageError, match="is not a shape"):
        atc_shapes([text])


def test_other_texts_on_the_command_line() -> None:
    assert parse_options(["--op-debug-level=4", "dynamic_dims=1;2"]) == {"op_debug_level": "4", "dynamic_dims": "1;2"}
    for bad in (["a"], ["=1"], ["a=1", "a=2"]):
        with pytest.raises(UsageError):
            parse_options(bad)
    assert extents("480x640") == (480, 640)
    with pytest.raises(UsageError, match="HEIGHT,WIDTH"):
        extents("480")


@pytest.mark.parametrize(
    ("path", "bad"),
    [("/a/B-9_.x", ""), ("/中文/模", ""), ("/a b", "a blank"), ("/a;b", "';'"), ("/ü", "'ü'"), ("/a:b", "':'")],
)
def test_paths_that_atc_takes(path: str, bad: str) -> None:
    fault = atc_options.path_fault(path)
    assert bad in fault
    assert bool(fault) == bool(bad)


# --- CANN


def test_without_cann(no_cann: None, model: Path) -> None:
    with pytest.raises(MissingDependency, match="was not found") as caught:
        compiled(model)
    assert caught.value.exit_code == 3
    assert "--bundle" in caught.value.hint
    assert {fault.where for fault in caught.value.faults} >= {"ASCEND_TOOLKIT_HOME", "/nowhere/ascend-toolkit/latest"}


@pytest.mark.parametrize(
    ("spoil", "what"),
    [
        (lambda root: shutil.rmtree(root), "there is no such folder"),
        (lambda root: (root / "bin/atc").unlink(), "no bin/atc"),
        (lambda root: shutil.rmtree(root / "opp"), "no operators"),
    ],
)
def test_a_broken_cann(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spoil: Any, what: str) -> None:
    root = install(tmp_path / "cann")
    spoil(root)
    monkeypatch.delenv("ASCEND_OPP_PATH", raising=False)
    monkeypatch.setenv("ASCEND_TOOLKIT_HOME", str(root))
    with pytest.raises(MissingDependency, match=what) as caught:
        cann.find()
    assert f"ASCEND_TOOLKIT_HOME={root}" in caught.value.faults[0].where


def test_an_atc_that_cannot_start(tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = install(tmp_path / "cann")
    (root / "bin/atc.bin").unlink()
    monkeypatch.setenv("ASCEND_TOOLKIT_HOME", str(root))
    with pytest.raises(MissingDependency, match="cannot be started"):
        compiled(model)


@pytest.mark.parametrize("how", ["ASCEND_HOME_PATH", "parent", "script", "PATH", "default folder"])
def test_where_cann_is_found(
    root: Path, no_cann: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    if how == "ASCEND_HOME_PATH":
        monkeypatch.setenv(how, str(root))
    elif how == "parent":
        monkeypatch.setenv("ASCEND_TOOLKIT_HOME", str(root.parent))
    elif how == "script":
        (tmp_path / "set_env.sh").write_text(f"export ASCEND_TOOLKIT_HOME={root}\n")
        monkeypatch.setenv("ASCEND_TOOLKIT_HOME", str(tmp_path))
    elif how == "PATH":
        monkeypatch.setenv("PATH", f"{root / 'bin'}:{os.environ['PATH']}")
    else:
        monkeypatch.setattr(cann, "FOLDERS", ("/nowhere", str(root)))
    found = cann.find()
    assert found.root.resolve() == root.resolve()
    assert found.version == "8.0.0"
    assert found.kernels("ascend310p")
    assert not found.kernels("ascend910b")


def test_another_program_called_atc_is_not_cann(no_cann: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/atc").write_text("#!/bin/sh\n")
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    with pytest.raises(MissingDependency):
        cann.find()


def test_doctor_shows_cann(toolkit: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert f"CANN: 8.0.0 in {toolkit}" in npukit.doctor(run=False).to_text()
    monkeypatch.setenv("ASCEND_TOOLKIT_HOME", "/nowhere")
    assert "ASCEND_TOOLKIT_HOME=/nowhere: there is no such folder" in npukit.doctor(run=False).to_text()


# --- the verb


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    network(tmp_path / "net.onnx")
    return tmp_path


def test_the_command(toolkit: Path, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compile", "net.onnx", "--target", TARGET, "-o", "a.om", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["soc_version"] == "Ascend310P3"
    assert (folder / "a.om").is_file()


@pytest.mark.parametrize(
    ("arguments", "status", "text"),
    [
        (["net.onnx", "--target", "ascend310p9"], 2, "did you mean 'ascend310p"),
        (["net.onnx", "--target", TARGET, "--vtcm-mb", "4"], 2, "--vtcm-mb: ascend310p3 is no Qualcomm chip"),
        (["net.onnx", "--bundle", "b"], 2, "--bundle: this is for Ascend chips"),
        (["net.onnx", "--no-prepare"], 2, "--no-prepare: this is for Ascend chips"),
        (["net.onnx"], 2, "compile takes a DLC"),
        (["nothing.onnx", "--target", TARGET], 2, "there is no such file"),
        (["net.onnx", "--target", TARGET, "-o", "no/a.om"], 2, "no such file or folder"),
        (["net.onnx", "--target", TARGET, "--input-shape", "y=1"], 2, "no such input"),
        (["net.onnx", "--target", TARGET, "--cann", "1.2"], 2, "no CANN version"),
    ],
)
def test_bad_use(
    toolkit: Path, folder: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], status: int, text: str
) -> None:
    assert main(["compile", *arguments]) == status
    assert text in capsys.readouterr().err
    assert left(folder) == ["net.onnx"]


def test_a_dlc_is_not_for_ascend(toolkit: Path, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "a.dlc").write_bytes(b"PK\3\4" + b"\0" * 22 + b"\x0d\0\0\0" + b"model.params.bin")
    assert main(["compile", "a.dlc", "--target", TARGET]) == 2
    assert "takes an ONNX model" in capsys.readouterr().err


def test_no_permission(toolkit: Path, folder: Path) -> None:
    place = folder / "locked"
    place.mkdir()
    place.chmod(0o500)
    if os.access(place, os.W_OK):
        pytest.skip("this user may write everywhere")
    with pytest.raises(NpukitError, match="permission denied"):
        compiled(folder / "net.onnx", output=place / "a.om")


def test_aipp_from_a_preprocessing_spec(toolkit: Path, folder: Path) -> None:
    result = compiled(folder / "net.onnx", aipp={"color": "BGR", "mean": [104, 117, 123]})
    assert result.stamp["inputs"][0]["dtype"] == "uint8"
    assert result.stamp["inputs"][0]["shape"] == [1, 8, 8, 3]
    assert result.stamp["options"]["aipp"]["color"] == "BGR"
    assert any("takes uint8 pixels" in note for note in result.notes)
    with pytest.raises(NpukitError, match="AIPP cannot do this") as caught:
        compiled(folder / "net.onnx", aipp={"resize": {"size": [8, 8]}, "layout": "NHWC"})
    assert len(caught.value.faults) == 2
    with pytest.raises(UsageError, match="it does what --aipp does"):
        compiled(folder / "net.onnx", aipp={}, atc_options={"insert_op_conf": "net.onnx"})


@pytest.mark.parametrize("gears", [{}, {"dynamic_dims": "1;4", "input_format": "ND"}, {"dynamic_batch_size": "1,4"}])
def test_what_was_compiled_runs_by_its_stamp(
    toolkit: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, gears: dict[str, str]
) -> None:
    """Both stand-ins in a row: the one for pyACL computes the ONNX model that the one for atc was given."""
    monkeypatch.setenv("PYTHONPATH", str(HERE.parent / "acl"))
    model = network(folder / "open.onnx", "n")
    compiled(model, output=folder / "a.om", atc_options=gears, input_shapes={"x": (-1 if gears else 4, 3, 8, 8)})
    x = np.random.default_rng(1).normal(size=(4, 3, 8, 8)).astype(np.float32)
    with npukit.Session(folder / "a.om", backend="acl") as session:
        y = session.run({"x": x})["y"]
    np.testing.assert_allclose(y, np.maximum(x.sum(1, keepdims=True), 0).repeat(4, 1), rtol=1e-5, atol=1e-5)


def test_progress_says_what_atc_says(toolkit: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from npukit import log

    monkeypatch.setenv("ATC_DOUBLE", "slow:0.7")
    heard: list[str] = []
    with log.progress_to(lambda what, share: heard.append(what)):
        compiled(folder / "net.onnx")
    assert any(re.match(r"atc, \d+ s: ", what) for what in heard)


def test_a_run_needs_a_folder_that_atc_takes(tmp_path: Path) -> None:
    atc.check_folder(tmp_path)
    with pytest.raises(NpukitError, match="no such file"):
        atc.check_folder(tmp_path / "nothing")

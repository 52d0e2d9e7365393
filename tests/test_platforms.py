# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""Loader and doctor on fake trees: the wheel's four layouts, an SDK, and a machine without Qualcomm's libraries."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

import npukit
from npukit.errors import MissingDependency
from npukit.qnn.api import libraries

DIGITS = Path(__file__).parents[1] / "examples" / "digits"
BUILD = "2.47.0.260601114230"
ROLES = ("cpu", "htp", "ir", "system")

# platform, machine, file of the HTP backend, folder of an SDK
LAYOUTS = [
    ("linux", "x86_64", "libQnnHtp.so", "x86_64-linux-clang"),
    ("linux", "aarch64", "libQnnHtp.so", "aarch64-oe-linux-gcc11.2"),
    ("win32", "AMD64", "QnnHtp.dll", "x86_64-windows-msvc"),
    ("win32", "ARM64", "QnnHtp.dll", "aarch64-windows-msvc"),
]
Pretend = Callable[[str, str], None]


@pytest.fixture
def pretend(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Pretend:
    """Makes the search believe in another platform, on which nothing is installed."""

    def to_be(system: str, machine: str) -> None:
        for name in (libraries.LIB_DIR_VARIABLE, libraries.SDK_VARIABLE):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setenv("NPUKIT_DATA_DIR", str(tmp_path / "data"))
        monkeypatch.setattr(libraries, "sys", SimpleNamespace(platform=system))
        monkeypatch.setattr(libraries, "platform", SimpleNamespace(machine=lambda: machine))
        monkeypatch.setattr(libraries, "WHEEL", "no_such_wheel")

    return to_be


def _tree(folder: Path, *others: str) -> Path:
    """A folder with one file a role, named as on the platform that `libraries` believes in, and `others`."""
    folder.mkdir(parents=True)
    for role in ROLES:
        (folder / libraries.file_name(role)).write_bytes(f"head v{BUILD}\0".encode())
    for name in others:
        (folder / name).write_text("terms")
    return folder


@pytest.mark.parametrize(("system", "machine", "htp", "sdk"), LAYOUTS)
def test_the_wheel(tmp_path, monkeypatch, pretend, system, machine, htp, sdk):
    pretend(system, machine)
    wheel = _tree(tmp_path / "site" / "fake_wheel", "__init__.py", "Qualcomm_LICENSE.pdf", "LICENSE")
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    monkeypatch.setattr(libraries, "WHEEL", "fake_wheel")
    assert libraries.find("htp").path == wheel / htp
    result = npukit.doctor(run=False)
    assert {(row["role"], row["source"], row["build"], row["chosen"]) for row in result.libraries} == {
        (role, "wheel", BUILD, True) for role in ROLES
    }
    assert result.licences == (str(wheel / "Qualcomm_LICENSE.pdf"),)
    assert str(wheel) in result.to_text()


@pytest.mark.parametrize(("system", "machine", "htp", "sdk"), LAYOUTS)
def test_an_sdk(tmp_path, monkeypatch, pretend, system, machine, htp, sdk):
    pretend(system, machine)
    monkeypatch.setenv(libraries.SDK_VARIABLE, str(tmp_path / "qairt"))
    folders = {layout[3]: _tree(tmp_path / "qairt" / "lib" / layout[3]) for layout in LAYOUTS}
    _tree(tmp_path / "qairt" / "lib" / "aarch64-android")  # libraries of a phone are not for this machine
    assert libraries.find("htp").path == folders[sdk] / htp
    assert {Path(row["path"]).parent for row in npukit.doctor(run=False).libraries} == {folders[sdk]}


def test_a_platform_without_libraries(pretend):
    pretend("darwin", "arm64")
    with pytest.raises(MissingDependency) as caught:
        libraries.find("ir")
    assert caught.value.exit_code == 3
    result = npukit.doctor(run=False)
    assert (result.libraries, result.licences) == ((), ())
    assert "no QNN library found" in result.to_text()


def test_doctor_tells_files_that_are_no_libraries(tmp_path, monkeypatch):
    monkeypatch.setenv(libraries.LIB_DIR_VARIABLE, str(_tree(tmp_path / "libs")))
    result = npukit.doctor()
    assert [(row["backend"], row["state"]) for row in result.backends][:3] == [
        ("ort", "works"), ("qnn-cpu", "fails"), ("qnn-htp", "fails"),
    ]  # fmt: skip
    # TensorFlow Lite's interpreter is no library of Qualcomm's.
    others = {row["state"] for row in result.backends[3:] if row["backend"] != "litert"}
    assert others <= {"fails", "missing"}
    assert "cannot load the library" in result.backends[1]["detail"]
    assert result.exit_code == 0


# ---------------------------------------------------------------- installed without onnxruntime-qnn


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., subprocess.CompletedProcess[str]]:
    """The command in an environment that is this one without the wheel, as a plain `pip install` gives on macOS."""
    if os.name != "posix":
        pytest.skip("makes symbolic links")
    root = tmp_path_factory.mktemp("bare")
    here = Path(sysconfig.get_paths()["purelib"])
    site = root / here.relative_to(sys.prefix)
    site.mkdir(parents=True)
    (root / "bin").mkdir()
    (root / "bin" / "python").symlink_to(os.path.realpath(sys.executable))
    (root / "pyvenv.cfg").write_text(f"home = {Path(os.path.realpath(sys.executable)).parent}\n")
    for entry in here.iterdir():
        if not entry.name.startswith("onnxruntime_qnn"):
            (site / entry.name).symlink_to(entry)
    hidden = (libraries.LIB_DIR_VARIABLE, libraries.SDK_VARIABLE)
    variables = {k: v for k, v in os.environ.items() if k not in hidden}
    variables |= {"NPUKIT_DATA_DIR": str(root / "data"), "PYTHONPATH": str(Path(npukit.__file__).parents[1])}

    def run(*arguments: object) -> subprocess.CompletedProcess[str]:
        command = [str(root / "bin" / "python"), "-m", "npukit", *map(str, arguments)]
        return subprocess.run(command, capture_output=True, text=True, env=variables, timeout=120, check=False)

    return run


@pytest.mark.parametrize(
    "arguments",
    [
        ["run", DIGITS / "digits.onnx", "--random", "1"],
        ["verify", DIGITS / "digits.onnx", "--against", DIGITS / "digits.onnx"],
        ["inspect", DIGITS / "digits.onnx"],
        ["lint", DIGITS / "digits.onnx"],
        ["diff", DIGITS / "digits.onnx", DIGITS / "digits.onnx"],
        ["doctor"],
    ],
    ids=lambda arguments: arguments[0],
)
def test_what_needs_no_native_library_works_without(bare, arguments):
    done = bare(*arguments)
    assert (done.returncode, done.stderr) == (0, "")


DLC = Path(__file__).parent / "data" / "ort_qnn_provider" / "digits.dlc"


@pytest.mark.native
def test_inspect_shows_what_needs_no_library(bare, tmp_path):
    npukit.convert(DIGITS / "digits.onnx", output=tmp_path / "d.dlc", verify=False)
    npukit.compile(tmp_path / "d.dlc", output=tmp_path / "d.bin", target="sm8650")
    for name in ("d.dlc", "d.bin", DLC):
        done = bare("inspect", tmp_path / name)
        assert (done.returncode, done.stderr) == (0, "")
        assert "its graphs cannot be read here: no libQnnSystem" in done.stdout
        assert ("[1, 1, 8, 8]" in done.stdout) == (name != DLC)  # the contract, from the stamp
        if name != "d.bin":
            assert "model.params.bin" in done.stdout
    assert json.loads(bare("inspect", DLC, "--json").stdout)["graphs"] == []


@pytest.mark.parametrize(
    "arguments",
    [
        ["convert", DIGITS / "digits.onnx", "-o", "OUT"],
        ["compile", DLC, "-o", "OUT", "--target", "sm8650"],
        ["export", DLC, "-o", "OUT"],
        ["run", DLC, "--random", "1"],
        ["run", DIGITS / "digits.onnx", "--random", "1", "--backend", "qnn-htp"],
        ["verify", DLC, "--against", DIGITS / "digits.onnx"],
        ["bench", DIGITS / "digits.onnx", "--backend", "qnn-cpu"],
    ],
    ids=lambda arguments: "-".join(str(a) for a in arguments if not isinstance(a, Path)),
)
def test_the_rest_exits_3_with_one_sentence(bare, tmp_path, arguments):
    done = bare(*[tmp_path / "out" if a == "OUT" else a for a in arguments])
    assert (done.returncode, done.stdout) == (3, "")
    first, second = done.stderr.splitlines()
    assert first.startswith("npukit: error: no libQnn")
    assert second.startswith("  hint: ")
    assert list(tmp_path.iterdir()) == []

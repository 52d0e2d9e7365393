# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""The built wheel, the repository and the bill of materials: nothing of a vendor's, every file with its header."""

from __future__ import annotations

import json
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# Endings and words of what vendors ship: libraries, SDK headers, compiled models.
BINARY = (".so", ".dll", ".dylib", ".a", ".lib", ".cat", ".h", ".hpp", ".pyd")
VENDOR = ("libqnn", "qnnhtp", "qnncpu", "qnnsystem", "hexagon", "libsnpe", "libacl", "qnninterface")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("wheel")
    build = "import sys; from hatchling import build; build.build_wheel(sys.argv[1])"
    subprocess.run([sys.executable, "-c", build, str(folder)], cwd=ROOT, check=True, capture_output=True)
    (file,) = folder.glob("*.whl")
    with zipfile.ZipFile(file) as archive:
        return archive.namelist()


def test_wheel_holds_the_package_and_its_licence(wheel: list[str]) -> None:
    assert "npukit/__init__.py" in wheel
    assert "npukit/py.typed" in wheel
    names = {Path(name).name for name in wheel}
    assert {"LICENSE", "NOTICE", "METADATA"} <= names


def test_wheel_holds_no_vendor_file(wheel: list[str]) -> None:
    assert {name.split("/")[0] for name in wheel} == {"npukit", "npukit-0.1.0.dist-info"}
    lower = [name.lower() for name in wheel]
    assert not [name for name in lower if name.endswith(BINARY)]
    assert not [name for name in lower if any(word in Path(name).name for word in VENDOR)]


def test_wheel_holds_every_source_file(wheel: list[str]) -> None:
    ours = {str(p.relative_to(ROOT / "src")) for p in (ROOT / "src" / "npukit").rglob("*.py")}
    assert ours <= set(wheel)


def test_repository_holds_no_vendor_file() -> None:
    files = subprocess.run(["git", "ls-files"], cwd=ROOT, check=True, capture_output=True, text=True).stdout.split("\n")
    assert not [name for name in files if name.lower().endswith(BINARY)]


def test_every_python_file_has_its_header() -> None:
    folders = ("src", "tests", "conformance", "examples", "tools", "benchmarks", "fuzz", "networks")
    files = [path for folder in folders for path in (ROOT / folder).rglob("*.py")]
    head = "# SPDX-FileCopyrightText: npukit contributors\n# SPDX-License-Identifier: Apache-2.0\n"
    assert [str(path) for path in files if not path.read_text().startswith(head)] == []


def test_bill_of_materials_names_what_is_installed() -> None:
    run = subprocess.run([sys.executable, ROOT / "tools" / "sbom.py"], check=True, capture_output=True, text=True)
    found = {c["name"].lower().replace("_", "-") for c in json.loads(run.stdout)["components"]}
    assert {"npukit", "onnx", "onnxruntime", "numpy"} <= found


def test_constraints_pin_every_requirement() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pinned = {line.split("==")[0].lower().replace("_", "-") for line in lines if "==" in line}
    wanted = [*project["dependencies"], *project["optional-dependencies"]["dev"]]
    names = {_name(requirement) for requirement in wanted}
    assert names - pinned == set()


def _name(requirement: str) -> str:
    for mark in "<>=!~; [":
        requirement = requirement.split(mark)[0]
    return requirement.lower().replace("_", "-")

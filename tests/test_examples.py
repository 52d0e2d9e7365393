# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""Every public function and class has an example that is run, and docs/api.md is what the docstrings say."""

from __future__ import annotations

import doctest
import importlib.util
import shutil
from pathlib import Path

import numpy as np
import pytest

import npukit
from npukit.policies import export_verb as policies
from npukit.policies import observations
from npukit.policies.package import Manifest
from npukit.policies.policy import read_statistics
from tools import api

DIGITS = Path(__file__).parents[1] / "examples" / "digits"
DOCUMENTED = dict(api.examples())
WITH_EXAMPLE = {name: text for name, text in DOCUMENTED.items() if ">>> " in text}
METHODS_WITHOUT = {name for name in DOCUMENTED if name.count(".") > 1}  # their class's example shows most of them


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("examples")
    shutil.copytree(DIGITS, folder, dirs_exist_ok=True)
    npukit.convert(folder / "digits.onnx", output=folder / "digits.dlc", verify=False)
    with np.load(folder / "digits.npz") as data:
        np.save(folder / "image.npy", data["images"][:1, None].astype(np.float32) / 16)
        np.save(folder / "calibration.npy", data["calibration"][:, None].astype(np.float32) / 16)
    if torch_is_there():
        training = Path(__file__).parents[1] / "training" / "checkpoint"
        exported = policies.export(training, output=folder / "policy", backend="ort", verify=False)
        manifest = Manifest.read(exported.path)
        observations.write(folder / "observation.npz", observations.generate(manifest, read_statistics(manifest), 1))
    return folder


def torch_is_there() -> bool:
    return importlib.util.find_spec("torch") is not None


def test_every_public_name_has_an_example() -> None:
    assert sorted(DOCUMENTED.keys() - WITH_EXAMPLE.keys() - METHODS_WITHOUT) == []


def test_no_example_is_skipped() -> None:
    assert [name for name, text in WITH_EXAMPLE.items() if "+SKIP" in text] == []


@pytest.mark.native
@pytest.mark.parametrize("name", WITH_EXAMPLE)
def test_example(name: str, made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(made)
    known = {"npukit": npukit, "np": np}
    if name == "npukit.Policy":
        if not torch_is_there():
            pytest.skip("a policy is exported with torch (npukit[torch])")
        (known["observation"],) = observations.read(made / "observation.npz")
    example = doctest.DocTestParser().get_doctest(WITH_EXAMPLE[name], known, name, "docstring", 0)
    lines: list[str] = []
    failed, tried = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS).run(example, out=lines.append)
    assert tried > 0
    assert failed == 0, "".join(lines)


def test_the_page_is_up_to_date() -> None:
    assert api.PAGE.read_text() == api.page(), "run `make docs-api`"

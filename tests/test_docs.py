# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""The documented commands are run, and the documentation's links lead somewhere."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").rglob("*.md"))]
CLASSES = {"run", "slow", "double", "device"}
_FENCE = re.compile(r"^```(\w+)(?: +(\w+))?\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Block:
    page: Path
    line: int
    language: str
    kind: str
    text: str


def blocks() -> Iterator[Block]:
    for page in PAGES:
        text = page.read_text()
        for match in _FENCE.finditer(text):
            line = text.count("\n", 0, match.start()) + 1
            yield Block(page, line, match[1], match[2] or "", match[3])


_COMMANDS = {"bash": ["bash", "-euo", "pipefail", "-c"], "python": [sys.executable, "-c"]}


def _pages(kind: str) -> list[object]:
    """Each page with blocks of this class as one test: its blocks build on one another."""
    found = {b.page for b in blocks() if b.kind == kind and b.language in _COMMANDS}
    return [pytest.param(page, id=str(page.relative_to(ROOT))) for page in PAGES if page in found]


def _run_page(page: Path, kinds: set[str], folder: Path) -> None:
    """Run the blocks of a page in order, in one folder with the demo's files."""
    for file in (ROOT / "examples" / "digits").iterdir():
        if file.is_file():
            shutil.copy(file, folder)
    for example in (ROOT / "examples").iterdir():  # the other examples as folders beside them
        if example.name != "digits":
            shutil.copytree(example, folder / example.name)
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    for block in blocks():
        if block.page == page and block.kind in kinds and block.language in _COMMANDS:
            command = [*_COMMANDS[block.language], block.text]
            result = subprocess.run(
                command, cwd=folder, env={**os.environ, "PATH": path}, capture_output=True, text=True, timeout=600
            )
            assert result.returncode == 0, f"line {block.line}:\n{block.text}\n{result.stdout}\n{result.stderr}"


def test_every_block_has_a_known_class() -> None:
    assert [(b.page.name, b.line) for b in blocks() if b.kind and b.kind not in CLASSES] == []


@pytest.mark.native
@pytest.mark.parametrize("page", _pages("run"))
def test_documented_commands(page: Path, tmp_path: Path) -> None:
    _run_page(page, {"run"}, tmp_path)


@pytest.mark.native
@pytest.mark.slow
@pytest.mark.parametrize("page", _pages("slow"))
def test_documented_long_commands(page: Path, tmp_path: Path) -> None:
    _run_page(page, {"run", "slow"}, tmp_path)


def _anchors(page: Path) -> set[str]:
    heads = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    faults = []
    for target, anchor in re.findall(r"\]\(([^)#\s]*)(?:#([^)]*))?\)", page.read_text()):
        if "://" in target:
            continue
        place = page.parent / target if target else page
        if not place.exists():
            faults.append(target)
        elif anchor and place.suffix == ".md" and anchor not in _anchors(place):
            faults.append(f"{target}#{anchor}")
    assert faults == []


def test_the_index_links_every_page() -> None:
    index = ROOT / "docs" / "index.md"
    linked = {(index.parent / t).resolve() for t in re.findall(r"\]\(([^)#]+)", index.read_text()) if "://" not in t}
    assert [str(p.relative_to(ROOT)) for p in PAGES if p != index and p.resolve() not in linked] == []


def _flags() -> set[str]:
    """Every option of every verb."""
    import importlib

    from npukit.cli.main import VERBS
    from npukit.cli.options import Common
    from npukit.verbs.options import specs

    kinds = [Common, *(getattr(importlib.import_module(module), name) for module, name, _, _ in VERBS.values())]
    found = {"-o", "--no-verify"}
    for kind in kinds:
        for name, (_, spec) in specs(kind).items():
            flags = spec.flags or (f"--{name.replace('_', '-')}",)
            found.update(part for flag in flags for part in flag.split("/"))
    return found


@pytest.mark.parametrize("page", ["from-qairt.md", "from-snpe.md"])
def test_options_in_the_tables_for_those_who_come_from_the_sdk_exist(page: str) -> None:
    rows = re.findall(r"^\|([^|]*)\|([^|]*)\|$", (ROOT / "docs" / "guides" / page).read_text(), re.MULTILINE)
    asked = {flag for _, ours in rows for flag in re.findall(r"(?<![\w-])--[a-z][a-z-]*", ours)}
    assert len(asked) > 10
    assert sorted(asked - _flags()) == []

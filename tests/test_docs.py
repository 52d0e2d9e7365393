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
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
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


def _parameters(kind: str) -> list[object]:
    return [
        pytest.param(b, id=f"{b.page.name}:{b.line}") for b in blocks() if b.kind == kind and b.language in _COMMANDS
    ]


_COMMANDS = {"bash": ["bash", "-euo", "pipefail", "-c"], "python": [sys.executable, "-c"]}


def _run(block: Block, folder: Path) -> None:
    for file in (ROOT / "examples" / "digits").iterdir():
        if file.is_file():
            shutil.copy(file, folder)
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    command = [*_COMMANDS[block.language], block.text]
    result = subprocess.run(
        command, cwd=folder, env={**os.environ, "PATH": path}, capture_output=True, text=True, timeout=600
    )
    assert result.returncode == 0, f"{block.text}\n{result.stdout}\n{result.stderr}"


def test_every_block_has_a_known_class() -> None:
    assert [(b.page.name, b.line) for b in blocks() if b.kind and b.kind not in CLASSES] == []


@pytest.mark.native
@pytest.mark.parametrize("block", _parameters("run"))
def test_documented_commands(block: Block, tmp_path: Path) -> None:
    _run(block, tmp_path)


@pytest.mark.native
@pytest.mark.slow
@pytest.mark.parametrize("block", _parameters("slow"))
def test_documented_long_commands(block: Block, tmp_path: Path) -> None:
    _run(block, tmp_path)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    targets = re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", page.read_text())
    assert [t for t in targets if "://" not in t and not (page.parent / t).exists()] == []

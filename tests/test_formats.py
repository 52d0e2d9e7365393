# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""docs/formats.md names exactly the fields that the code writes."""

from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path

import pytest

from npukit.artifacts.context import sidecar_text
from npukit.artifacts.dlc import REQUIRED, STAMP_MEMBER, WEIGHTS_MEMBER
from npukit.artifacts.stamp import FORMAT, IoTensor, Stamp, parse_json
from npukit.qnn.api.system import BinaryInfo
from npukit.qnn.graph import Encoding

PAGE = (Path(__file__).parents[1] / "docs" / "formats.md").read_text()


def documented(head: str) -> list[str]:
    """First cells of the first table below a heading."""
    section = re.split(rf"^#+ {head}$", PAGE, maxsplit=1, flags=re.MULTILINE)[1]
    table = section[section.index("| ---") :].split("\n\n")[0]
    return [line.split("|")[1].strip().strip("`") for line in table.splitlines()[1:]]


def names(kind: type) -> list[str]:
    return [field.name for field in fields(kind)]  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("head", "expected"),
    [
        ("Stamp", ["format", *names(Stamp)]),
        ("Contract entry", names(IoTensor)),
        ("Encoding", names(Encoding)),
        ("Context binary", names(BinaryInfo)),
    ],
)
def test_fields(head: str, expected: list[str]) -> None:
    assert documented(head) == expected


def test_the_sidecar() -> None:
    assert documented("Sidecar") == list(parse_json(sidecar_text(Stamp("1"), "0" * 64)))


def test_the_members_of_a_dlc() -> None:
    found = documented("DLC")
    assert found[-1] == STAMP_MEMBER
    assert {*REQUIRED, WEIGHTS_MEMBER} < set(found)


def test_the_format_number() -> None:
    assert f"`format` is {FORMAT};" in PAGE

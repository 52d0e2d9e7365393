# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""JSON that remembers where it stands: values of a file with their lines.

Python's decoder does the reading; only the levels that are asked for are walked here, so that a file of tens of
megabytes costs little more than `json.loads`.
"""

from __future__ import annotations

import bisect
import json
import re
from dataclasses import dataclass
from typing import Any

_SPACE = re.compile(r"[ \t\n\r]*")


class NotJson(ValueError):
    """Text that is not JSON; `line` says where."""

    def __init__(self, what: str, line: int) -> None:
        super().__init__(what)
        self.line = line


class _Text:
    def __init__(self, text: str) -> None:
        self.text = text
        self.ends = [match.start() for match in re.finditer("\n", text)]

    def line(self, at: int) -> int:
        return bisect.bisect_left(self.ends, at) + 1

    def skip(self, at: int) -> int:
        match = _SPACE.match(self.text, at)
        return match.end() if match else at


@dataclass(frozen=True)
class Members:
    """The members of an object: the last of each name, and the keys that came again."""

    fields: dict[str, Node]
    repeated: list[Node]


@dataclass(frozen=True, eq=False)
class Node:
    """A value and where its text begins and ends."""

    value: Any
    source: _Text
    start: int
    end: int

    @property
    def line(self) -> int:
        """Its first line, 1 for the first of the file."""
        return self.source.line(self.start)

    def line_of(self, key: str, index: int = 0) -> int:
        """The line of the member `key` of an object (of the `index`th element where it is a list); else its own."""
        text = self.source.text
        found = re.compile(rf"{re.escape(json.dumps(key))}\s*:\s*").search(text, self.start, self.end)
        if found is None:
            return self.line
        at = found.end()
        if index and text[at : at + 1] == "[":
            for _ in range(index):
                comma = text.find(",", at, self.end)
                if comma < 0:
                    break
                at = comma + 1
            at = self.source.skip(at)
        return self.source.line(at)

    def at(self, key: str, index: int = 0) -> Place:
        """Where `line_of` will look, when it is asked: nothing is searched as long as nothing is wrong."""
        return Place(self, key, index)

    def items(self) -> list[Node] | None:
        """The elements of a list, or None where it is none."""
        if not isinstance(self.value, list):
            return None
        found = []
        at = self.source.skip(self.start + 1)
        for _ in self.value:
            node = _decode(self.source, at)
            found.append(node)
            at = self.source.skip(self.source.skip(node.end) + 1)
        return found

    def members(self) -> Members | None:
        """The members of an object, or None where it is none."""
        if not isinstance(self.value, dict):
            return None
        found: dict[str, Node] = {}
        repeated = []
        at = self.source.skip(self.start + 1)
        while self.source.text[at] != "}":
            key = _decode(self.source, at)
            value = _decode(self.source, self.source.skip(self.source.skip(key.end) + 1))
            if key.value in found:
                repeated.append(key)
            found[key.value] = value
            at = self.source.skip(value.end)
            if self.source.text[at] == ",":
                at = self.source.skip(at + 1)
        return Members(found, repeated)


@dataclass(frozen=True, eq=False, slots=True)
class Place:
    """A member of an object (an element of it), whose line is looked up late."""

    node: Node
    key: str
    index: int

    @property
    def line(self) -> int:
        """Its line, 1 for the first of the file."""
        return self.node.line_of(self.key, self.index)


_DECODER = json.JSONDecoder()


def _decode(source: _Text, at: int) -> Node:
    value, end = _DECODER.raw_decode(source.text, at)
    return Node(value, source, at, end)


def parse(text: bytes | str) -> Node:
    """The root value of a JSON text.

    Raises:
        NotJson: it is none; nested too deeply, or followed by something, included.
    """
    if isinstance(text, bytes):
        try:
            text = text.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise NotJson("it is not UTF-8 text", error.object[: error.start].count(b"\n") + 1) from None
    source = _Text(text)
    start = source.skip(0)
    try:
        root = _decode(source, start)
    except json.JSONDecodeError as error:
        raise NotJson(error.msg, error.lineno) from None
    except (RecursionError, ValueError) as error:
        raise NotJson(str(error) or "it is nested too deeply", 1) from None
    rest = source.skip(root.end)
    if rest != len(text):
        raise NotJson("there is more text behind the value", source.line(rest))
    return root

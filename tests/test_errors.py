# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from npukit.errors import Fault, ModelError, shown


def test_an_error_shows_what_where_faults_and_hint() -> None:
    error = ModelError("it is broken", where="m.onnx", hint="mend it", faults=[Fault("bad", "node 'a'", "drop it")])
    assert str(error) == "m.onnx: it is broken\n  [1] node 'a': bad\n      hint: drop it\n  hint: mend it"


def test_what_a_file_says_cannot_break_a_message() -> None:
    error = ModelError("line\none", where="x\x1b[2J", faults=[Fault("n" * 5000, "a\0b", "h\n\nh")] * 500)
    lines = str(error).splitlines()
    assert lines[0] == "x\\x1b[2J: line one"
    assert lines[1].startswith("  [1] a\\x00b: nnn")
    assert lines[2] == "      hint: h h"
    assert max(map(len, lines)) < 1_200
    assert lines[-1] == "  and 400 more"
    assert len(error.faults) == 500


def test_ordinary_text_is_shown_as_it_is() -> None:
    for text in ("a  b", "größe 'ü' → 日本", ""):
        assert shown(text) == text
    assert shown("\ud800") == "\\ud800"

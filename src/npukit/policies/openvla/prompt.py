# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""OpenVLA's prompt: the sentence that it was trained with around an instruction, and its tokens."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from npukit.errors import InputError
from npukit.policies.tokenizer import Tokenizer

TEMPLATE = "In: What action should the robot take to {instruction}?\nOut:"
"""Of OpenVLA 7B and what was made of it. Its forerunner v0.1 has another one, which an export is to be given."""

END = 29871
"""Llama's token of a lone blank. In training it stood between the colon and the action."""


class Prompt:
    """Instructions to token ids.

    Args:
        tokenizer: of the package.
        step: `template` with "{instruction}" in it, `lower`, `max_length` (tokens of the longest prompt), `pad_id`,
            `bos_id` (first token of each prompt) and `end_id` (its last).
    """

    def __init__(self, tokenizer: Tokenizer, step: Mapping[str, Any]) -> None:
        self._tokenizer = tokenizer
        self._template, self._lower = str(step["template"]), bool(step["lower"])
        self._length, self._pad = int(step["max_length"]), int(step["pad_id"])
        self._bos, self._end = int(step["bos_id"]), int(step["end_id"])
        if "{instruction}" not in self._template or self._length < 1:
            raise ValueError('a template with "{instruction}" and a max_length above 0 are needed')

    def text(self, instruction: str) -> str:
        """The prompt of an instruction."""
        return self._template.replace("{instruction}", instruction.lower() if self._lower else instruction)

    def __call__(self, instruction: str) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_]]:
        """Ids int64 [1, max_length], padded on the right, and their mask bool [1, max_length].

        The mask covers the last token, whether the tokenizer gave it or it was appended here.

        Raises:
            InputError: the instruction is empty, or its prompt has too many tokens.
        """
        if not instruction.strip():
            raise InputError("the instruction is empty", where="task")
        ids = self._tokenizer.ids(self.text(instruction))
        if not ids or ids[0] != self._bos:
            ids.insert(0, self._bos)
        if ids[-1] != self._end:
            ids.append(self._end)
        if len(ids) > self._length:
            raise InputError(
                f"the instruction makes a prompt of {len(ids)} tokens, the policy was exported for {self._length}",
                where="task", hint=f"shorten it, or export with a longer prompt: {instruction.strip()[:120]!r}",
            )  # fmt: skip
        padded = np.full((1, self._length), self._pad, np.int64)
        padded[0, : len(ids)] = ids
        return padded, np.arange(self._length)[None] < len(ids)

# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""The small policy's words: those of the scene's instructions, each a token."""

from __future__ import annotations

from npukit.sim.scene import TASKS

PAD, UNKNOWN = 0, 1
WORDS = ("<pad>", "<unknown>", *sorted({word for task in TASKS.values() for word in task.description.split()}))


def tokenize(text: str, length: int) -> list[int]:
    """Tokens of an instruction, padded to `length`; the newline that SmolVLA ends it with is no word."""
    ids = [WORDS.index(word) if word in WORDS else UNKNOWN for word in text.split()][:length]
    return ids + [PAD] * (length - len(ids))


def tokenizer_json() -> str:
    """The same as a tokenizer of the package `tokenizers` (tokenizer.json)."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    vocabulary = {word: number for number, word in enumerate(WORDS)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=WORDS[UNKNOWN]))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.add_special_tokens([WORDS[PAD], WORDS[UNKNOWN]])
    return str(tokenizer.to_str(pretty=True))

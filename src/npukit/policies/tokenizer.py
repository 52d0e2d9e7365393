# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""A tokenizer.json of Hugging Face, through the package `tokenizers`."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from npukit import files
from npukit.errors import ArtifactError, MissingDependency

log = logging.getLogger(__name__)

_LIMIT = 256 << 20
# Tokens that models pad with, where neither file says it; masked tokens are never looked at, so any would do.
_PADS = ("<|im_end|>", "<pad>", "[PAD]", "<|endoftext|>", "</s>")


class Tokenizer:
    """Text to token ids.

    Args:
        path: a tokenizer.json.
        truncation_side: which end of a text that is too long is dropped, "left" or "right".

    Raises:
        MissingDependency: the package `tokenizers` is not installed.
        ArtifactError: the file is no tokenizer.
    """

    def __init__(self, path: Path | str, truncation_side: str = "right") -> None:
        try:
            import tokenizers
        except ImportError:
            raise MissingDependency(
                "the policy takes instructions, and the package tokenizers is not installed",
                hint="pip install 'npukit[policy]'",
            ) from None
        data = bytes(files.map_file(path)[: _LIMIT + 1])
        if len(data) > _LIMIT:
            raise ArtifactError("the tokenizer is too large to be one", where=str(path))
        try:
            self._tokenizer: Any = tokenizers.Tokenizer.from_buffer(data)
        except Exception as error:  # the package raises bare Exception
            raise ArtifactError(f"not a tokenizer.json: {error}", where=str(path)) from None
        self._side = truncation_side
        self._tokenizer.no_padding()
        self._length = -1

    @property
    def size(self) -> int:
        """Number of tokens, added ones included."""
        return int(self._tokenizer.get_vocab_size(with_added_tokens=True))

    def id_of(self, token: str) -> int | None:
        """The id of a token, None where there is none."""
        found: int | None = self._tokenizer.token_to_id(token)
        return found

    def ids(self, text: str) -> list[int]:
        """The ids of a text, all of them, with what the file says is to stand around it."""
        if self._length != 0:
            self._tokenizer.no_truncation()
            self._length = 0
        found: list[int] = list(self._tokenizer.encode(text).ids)
        return found

    def encode(self, text: str, length: int, pad_id: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_], int]:
        """Ids int64 [length], padded on the right, their mask, and how many tokens did not fit and were dropped."""
        if length != self._length:
            self._tokenizer.enable_truncation(max_length=length, direction=self._side)
            self._length = length
        encoding = self._tokenizer.encode(text)
        taken = encoding.ids[:length]
        ids = np.full(length, pad_id, np.int64)
        ids[: len(taken)] = taken
        dropped = sum(len(part.ids) for part in encoding.overflowing)
        return ids, np.arange(length) < len(taken), dropped


def describe(path: Path) -> dict[str, Any]:
    """What a tokenizer's files say of padding and truncation: {"pad_id", "truncation_side", "vocabulary"}.

    Beside tokenizer.json, tokenizer_config.json and special_tokens_map.json are read where they are.
    """
    tokenizer = Tokenizer(path)
    config: dict[str, Any] = {}
    for name in ("special_tokens_map.json", "tokenizer_config.json"):
        beside = path.with_name(name)
        if beside.is_file():
            config.update(_object(beside))
    own = _object(path).get("padding")
    pad: int | None = None
    token = config.get("pad_token")
    if isinstance(token, dict):  # an AddedToken
        token = token.get("content")
    if isinstance(token, str):
        pad = tokenizer.id_of(token)
    if pad is None and isinstance(own, dict) and isinstance(own.get("pad_id"), int):
        pad = own["pad_id"]
    known = (tokenizer.id_of(token) for token in _PADS)
    pad = pad if pad is not None else next((found for found in known if found is not None), 0)
    side = config.get("truncation_side")
    return {"pad_id": pad, "truncation_side": side if side in ("left", "right") else None, "vocabulary": tokenizer.size}


def _object(path: Path) -> dict[str, Any]:
    try:
        with files.os_errors(path, "read"):
            value = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ArtifactError(f"not JSON: {error}", where=str(path)) from None
    if not isinstance(value, dict):
        raise ArtifactError("not a JSON object", where=str(path))
    return value

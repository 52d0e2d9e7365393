# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""OpenVLA checkpoints with random weights (`examples/openvla/tiny_checkpoint.py`), and inputs of their networks."""

from __future__ import annotations

from typing import Any

import numpy as np

from examples.openvla.tiny_checkpoint import (  # noqa: F401  for the tests
    FULL,
    SIGLIP,
    TINY,
    WIDE,
    Sizes,
    checkpoint,
    config,
    preprocessor,
    shapes,
    statistics,
    tensor,
    weights,
    write_tokenizer,
)


def images(count: int, sizes: Sizes = TINY, seed: int = 0) -> Any:
    """pixel_values float32 [count, 6, S, S]."""
    return np.random.default_rng(seed).uniform(-2, 2, (count, 6, sizes.image, sizes.image)).astype(np.float32)


def prompt(words: int, length: int = 32, seed: int = 0) -> Any:
    """Ids int64 [1, length]: the first token, `words - 2` others, the one before the action; padded."""
    found = np.full((1, length), 32000, np.int64)
    found[0, :words] = np.random.default_rng(seed).integers(300, 31000, words)
    found[0, 0], found[0, words - 1] = 1, 29871
    return found

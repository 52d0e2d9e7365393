# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""What a quantized model's outputs are worth beside the float model's: larger is better."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from npukit.errors import InputError
from npukit.qnn.graph import Array

Outputs = Sequence[Mapping[str, Array]]
Metric = Callable[[Outputs, Outputs], float]


def cosine(results: Outputs, references: Outputs) -> float:
    """Mean over the samples of the cosine similarity, of the output with the lowest."""
    return min(
        float(np.mean([_cosine(result[name], reference[name]) for result, reference in _pairs(results, references)]))
        for name in references[0]
    )


def _cosine(a: Array, b: Array) -> float:
    x, y = np.asarray(a, np.float64).reshape(-1), np.asarray(b, np.float64).reshape(-1)
    norms = float(np.linalg.norm(x) * np.linalg.norm(y))
    return float(x @ y) / norms if norms else float(not x.any() and not y.any())


def sqnr(results: Outputs, references: Outputs) -> float:
    """Signal to quantization noise in dB over all samples, of the output with the lowest; at most 200."""
    return min(_sqnr(name, results, references) for name in references[0])


def _sqnr(name: str, results: Outputs, references: Outputs) -> float:
    signal = noise = 0.0
    for result, reference in _pairs(results, references):
        exact = np.asarray(reference[name], np.float64)
        signal += float(np.square(exact).sum())
        noise += float(np.square(np.asarray(result[name], np.float64) - exact).sum())
    return min(200.0, 10 * float(np.log10(signal / noise))) if noise and signal else (200.0 if not noise else 0.0)


def _top(k: int) -> Metric:
    def agreement(results: Outputs, references: Outputs) -> float:
        name = next(iter(references[0]))
        hits = []
        for result, reference in _pairs(results, references):
            best = np.asarray(reference[name]).argmax(-1)[..., None]
            hits.append((np.argsort(-np.asarray(result[name]), axis=-1)[..., :k] == best).any(-1).mean())
        return float(np.mean(hits))

    return agreement


def _pairs(results: Outputs, references: Outputs) -> list[tuple[Mapping[str, Array], Mapping[str, Array]]]:
    return list(zip(results, references, strict=True))


METRICS: dict[str, Metric] = {"cosine": cosine, "sqnr": sqnr, "top1": _top(1), "top5": _top(5)}
"""top1, top5: share of samples whose float answer is the first, or among the first five, of the first output."""


def metric(name: str) -> Metric:
    """A metric of METRICS, or the function `module:function` of the user's, called as `f(results, references)`.

    Both are lists with a mapping of output arrays for each sample.

    Raises:
        InputError: there is no such module or function.
    """
    if name in METRICS:
        return METRICS[name]
    module, _, function = name.partition(":")
    sys.path.insert(0, os.getcwd())
    try:
        found: Metric = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError) as error:
        raise InputError(f"the metric {name!r} cannot be imported: {error}", where="--accuracy-target") from error
    finally:
        sys.path.pop(0)
    return found

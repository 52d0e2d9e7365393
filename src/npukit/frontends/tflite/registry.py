# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""Which function reads which operator, and why the others have none."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from npukit.frontends.tflite.builder import Builder

Reader = Callable[["Builder"], None]
R = TypeVar("R", bound=Reader)
READERS: dict[str, Reader] = {}
CUSTOM: dict[str, Reader] = {}

_DYNAMIC = "the size of its result depends on values"
_RANDOM = "its results are random"
_TABLE = "hash tables and strings have no counterpart on an NPU"
_STATE = "a single step whose state lasts from run to run"
REASONS = {
    "BITCAST": "no QNN op reads bits anew",
    "CALL": "TensorFlow Lite's interpreter has no kernel for it",
    "CONCAT_EMBEDDINGS": "TensorFlow Lite's interpreter has no kernel for it",
    "DENSIFY": "its constant is stored as a sparse tensor",
    "EMBEDDING_LOOKUP_SPARSE": _DYNAMIC,
    "HASHTABLE": _TABLE,
    "HASHTABLE_FIND": _TABLE,
    "HASHTABLE_IMPORT": _TABLE,
    "HASHTABLE_LOOKUP": _TABLE,
    "HASHTABLE_SIZE": _TABLE,
    "LSH_PROJECTION": _TABLE,
    "LSTM": _STATE,
    "MULTINOMIAL": _RANDOM,
    "PLACEHOLDER_FOR_GREATER_OP_CODES": "it is no operator",
    "RANDOM_STANDARD_NORMAL": _RANDOM,
    "RANDOM_UNIFORM": _RANDOM,
    "REDUCE_WINDOW": "no converter but StableHLO's makes it",
    "RNN": _STATE,
    "SKIP_GRAM": _TABLE,
    "SVDF": _STATE,
    "UNIQUE": _DYNAMIC,
    "WHERE": _DYNAMIC,
}
"""Builtin operators without a reader, and why."""


class Refused(Exception):
    """An operator that cannot be expressed; the text says why, `hint` what to do."""

    def __init__(self, what: str, hint: str = "") -> None:
        super().__init__(what)
        self.hint = hint


def reads(*names: str) -> Callable[[R], R]:
    """Register a function for the builtin operators `names`."""
    return _register(READERS, names)


def reads_custom(*names: str) -> Callable[[R], R]:
    """Register a function for the custom operators `names`."""
    return _register(CUSTOM, names)


def _register(readers: dict[str, Reader], names: tuple[str, ...]) -> Callable[[R], R]:
    def register(function: R) -> R:
        for name in names:
            if name in readers:
                raise ValueError(f"two functions read {name}")
            readers[name] = function
        return function

    return register


def reader_of(code: str, is_custom: bool) -> Reader:
    """The function that reads an operator; one that refuses it where there is none."""
    return (CUSTOM if is_custom else READERS).get(code, _unknown)


def reason(code: str) -> str:
    """Why the builtin operator `code` has no reader."""
    if code.startswith("STABLEHLO_"):
        return "StableHLO: an intermediate form, which the converter turns into TensorFlow Lite's own operators"
    return REASONS.get(code, "this operator is not converted")


def _unknown(b: Builder) -> None:
    computed = [b.source.tensors[i].name for i in b.op.inputs if i >= 0 and b.is_computed(i)]
    options = " ".join(f"--output {name!r}" for name in dict.fromkeys(computed)) or "--output"
    if b.op.custom:
        raise Refused(
            f"the custom operator {b.op.code!r} is not known", f"cut the model before it ({options}), run it on the CPU"
        )
    raise Refused(reason(b.op.code), f"cut the model before it ({options})")

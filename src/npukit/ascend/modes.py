# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""What of an Ascend chip is emulated: the chip, the precision mode, and lists of mixed precision.

What the modes mean: shared/reference/ascend_facts.md 1.4 ([GE] --precision_mode_v2.md); how they are computed:
`npukit.ascend.emulate`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from npukit.ascend.mixed_precision import NO_LISTS, Lists, read_lists
from npukit.errors import UsageError, nearest

TARGETS = ("ascend310p", "ascend310p1", "ascend310p3", "ascend310p5", "ascend310p7")
"""What can be emulated; the chips of the family compute alike."""

MODES: Mapping[str, str] = {
    "fp16": "every float is float16 (atc's default)",
    "origin": "floats stay what the graph has; matrix ops are float16",
    "mixed_float16": "white ops are float16, black ones stay float32, grey ones follow the op before them",
    "cube_fp16in_fp32out": "matrix ops are float16, because the 310P's give nothing else; all others are float32",
}
"""Precision modes by their names in atc's --precision_mode_v2."""

_V1 = {
    "force_fp16": "fp16",
    "must_keep_origin_dtype": "origin",
    "allow_mix_precision": "mixed_float16",
    "allow_mix_precision_fp16": "mixed_float16",
    "force_fp32": "cube_fp16in_fp32out",
    # float32 where the op has a kernel for it: on the 310P all but the matrix ops, as under `origin`
    "allow_fp32_to_fp16": "origin",
}


@dataclass(frozen=True)
class Mode:
    """What is emulated.

    Attributes:
        target: one of `TARGETS`.
        precision: one of `MODES`.
        lists: what --modify_mixlist changes (only for mixed_float16).
    """

    target: str
    precision: str = "fp16"
    lists: Lists = NO_LISTS

    def __str__(self) -> str:
        return f"{self.target} ({self.precision})"


def parse_mode(text: str, precision: str | None = None) -> Mode:
    """`TARGET[:PRECISION[:LIST.json]]` as a `Mode`; `precision` is for callers that have it apart.

    Raises:
        UsageError: there is no such target or mode, or the list file is not one.
    """
    target, _, rest = text.partition(":")
    named, _, lists = rest.partition(":")
    if target not in TARGETS:
        raise UsageError(f"there is no emulation of {target!r}", where="--emulate", hint=nearest(target, TARGETS))
    if named and precision not in (None, named):
        raise UsageError(f"two precision modes: {named} and {precision}", where="--emulate")
    chosen = named or precision or "fp16"
    chosen = _V1.get(chosen, chosen)
    if chosen not in MODES:
        hint = "the 310P has no bfloat16" if "bf" in chosen else nearest(chosen, MODES)
        raise UsageError(f"there is no precision mode {chosen!r}", where="--emulate", hint=hint)
    if lists and chosen != "mixed_float16":
        raise UsageError("a list of ops goes with mixed_float16 only", where="--emulate")
    return Mode(target, chosen, read_lists(lists) if lists else NO_LISTS)

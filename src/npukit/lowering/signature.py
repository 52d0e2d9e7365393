# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""The shape line of a lowering's docstring: `x: T[N,C,*S], w: T[O,C/group,*K], b: T[O]? -> y: T[N,O,*S']`.

A term is `name: dtype[dims]`, with `?` behind it when it may be absent and `...` when it may repeat. A dim is a
name (equal names are equal sizes), a number, `*name` for any number of axes, or an expression of names. The op
coverage page is made from these lines, and a test compares them with the test cases.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

_TERM = re.compile(r"(?P<name>\w+): (?P<dtype>\w+)\[(?P<dims>[^\]]*)\](?P<optional>\?)?(?P<repeated>\.\.\.)?")
_SPLIT = re.compile(r", (?=\w+: )")
_NAME = re.compile(r"[A-Za-z]\w*'?")


@dataclass(frozen=True)
class Term:
    """One input or output of a shape line."""

    name: str
    dtype: str
    dims: tuple[str, ...]
    optional: bool
    repeated: bool

    def fault(self, shape: Sequence[int], sizes: dict[str, int]) -> str | None:
        """Why `shape` cannot be this term, or None; named sizes are noted in `sizes` and must agree."""
        fixed = [dim for dim in self.dims if not dim.startswith("*")]
        if len(fixed) == len(self.dims) and len(shape) != len(fixed):
            return f"{self.name} has rank {len(shape)}, the shape line has {len(fixed)}"
        if len(shape) < len(fixed):
            return f"{self.name} has rank {len(shape)}, the shape line at least {len(fixed)}"
        if len(fixed) < len(self.dims):
            return None
        for dim, size in zip(fixed, shape, strict=True):
            if dim.isdigit() and int(dim) != size:
                return f"{self.name} has {size} where the shape line has {dim}"
            if _NAME.fullmatch(dim) and sizes.setdefault(dim, size) != size:
                return f"{self.name} has {dim} = {size}, another has {sizes[dim]}"
        return None


@dataclass(frozen=True)
class Signature:
    """A parsed shape line and the lines on dtypes and limits below it."""

    line: str
    inputs: tuple[Term, ...]
    outputs: tuple[Term, ...]
    limits: str

    def faults(self, shapes: Sequence[Sequence[int] | None]) -> list[str]:
        """What is wrong with these input shapes (None for an input left out), by the shape line."""
        terms = list(self.inputs)
        if terms and terms[-1].repeated:
            terms += [terms[-1]] * max(0, len(shapes) - len(terms))
        found = []
        if len(shapes) > len(terms):
            found.append(f"{len(shapes)} inputs, the shape line has {len(terms)}")
        sizes: dict[str, int] = {}
        for term, shape in zip(terms, [*shapes, *[None] * len(terms)], strict=False):
            if shape is None:
                if not term.optional and not term.repeated:
                    found.append(f"{term.name} is missing")
            elif fault := term.fault(shape, sizes):
                found.append(fault)
        return found


def signature(function: Callable[..., object]) -> Signature:
    """The signature in a lowering's docstring. Raises ValueError naming the function where there is none."""
    lines = [line.strip() for line in (function.__doc__ or "").splitlines()]
    for index, line in enumerate(lines):
        left, arrow, right = line.partition(" -> ")
        sides = [_terms(left), _terms(right)] if arrow else []
        if sides and all(sides):
            return Signature(line, sides[0], sides[1], " ".join(filter(None, lines[index + 1 :])))
    raise ValueError(f"{function.__module__}.{function.__qualname__} has no shape line")


def _terms(text: str) -> tuple[Term, ...]:
    terms = []
    for part in _SPLIT.split(text):
        match = _TERM.fullmatch(part)
        if match is None:
            return ()
        dims = tuple(dim for dim in match["dims"].split(",") if dim)
        terms.append(Term(match["name"], match["dtype"], dims, bool(match["optional"]), bool(match["repeated"])))
    return tuple(terms)

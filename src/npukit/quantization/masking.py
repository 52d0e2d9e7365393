# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""Below what value a Softmax sees nothing: attention masks of -1e4, -3.4e38 or -inf must not stretch a range.

exp(x - largest of the row) is less than what half a step of the Softmax's output stands for, even summed over the row,
where x lies more than `depth` below the row's largest. So of a Softmax's input nothing matters below the smallest of
all rows' largest values less `depth`; and going up through sums, scalings, selections and movements of data, of each
tensor (or constant) that reaches nothing else, nothing matters below a value of its own. Ranges end there: what lies
below saturates, and still comes out of the Softmax as zero.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from npukit.qnn.graph import Array, Graph, Op, Tensor, TensorKind
from npukit.quantization.roles import MOVES

if TYPE_CHECKING:
    from npukit.quantization.calibration import Calibration

MASKED = 1000.0
"""A row whose largest value is this far below the largest of all is masked as a whole: its result means nothing."""

_SOFTMAXES = frozenset(("Softmax", "MaskedSoftmax"))
_JOINS = frozenset(("Concat", "Pack"))
_THROUGH = MOVES | _JOINS | {"ElementWiseAdd", "ElementWiseSelect", "ElementWiseMultiply", "ElementWiseDivide"}


def softmax_axis(op: Op) -> int:
    """The axis that a Softmax sums over."""
    axis = op.params.get("axis")
    assert op.inputs[0] is not None
    return op.inputs[0].rank - 1 if axis is None or op.type == "MaskedSoftmax" else int(axis.value)


def softmax_inputs(graph: Graph) -> dict[str, int]:
    """The inputs of Softmaxes by name, and the axis; those whose `Peaks` are wanted."""
    found = {}
    for op in graph.ops:
        if op.type in _SOFTMAXES and (x := op.inputs[0]) is not None and x.kind is not TensorKind.STATIC:
            found[x.name] = softmax_axis(op)
    return found


def softmax_only(graph: Graph) -> set[str]:
    """Tensors that reach nothing but Softmaxes, through ops that masks go through: -inf means something there."""
    inside: dict[int, bool] = {id(tensor): False for tensor in graph.outputs}
    names: dict[int, str] = {}
    for op in reversed(graph.ops):
        through = op.type in _THROUGH and all(inside.get(id(tensor), False) for tensor in op.outputs)
        for tensor in op.inputs:
            if tensor is not None:
                names[id(tensor)] = tensor.name
                inside[id(tensor)] = inside.get(id(tensor), True) and (through or op.type in _SOFTMAXES)
    return {name for key, name in names.items() if inside[key]}


class Peaks:
    """The smallest of the largest values of all rows of a tensor, rows that are masked as a whole left out.

    Args:
        axis: along which a row lies.

    Attributes:
        least: inf before the first row.
        greatest: the largest value of all; -inf before the first row.
    """

    def __init__(self, axis: int, least: float = math.inf, greatest: float = -math.inf) -> None:
        self.axis, self.least, self.greatest = axis, least, greatest

    def update(self, array: Array) -> None:
        """Take in an array of any shape."""
        rows = array.max(axis=self.axis)
        self.greatest = max(self.greatest, float(rows.max(initial=-math.inf)))
        if self.least < self.greatest - MASKED:
            self.least = math.inf  # what was taken for a row's largest value so far was a masked row's
        self.least = min(self.least, float(rows.min(initial=math.inf, where=rows > self.greatest - MASKED)))


def depth(bits: int, count: int, beta: float = 1.0) -> float:
    """How far below a row's largest value an input of Softmax may lie and still count.

    Args:
        bits: of the output.
        count: elements of a row: all of them together make less than half a step.
        beta: the factor in exp(beta * x).
    """
    return math.log(2.0 * ((1 << bits) - 1) * count) / beta


def lowest_seen(graph: Graph, calibration: Calibration, bits: int) -> dict[str, float]:
    """For tensors and constants with values that no Softmax sees: below what none matters, at most 0.

    Args:
        graph: the float graph that was calibrated.
        calibration: what was observed of it.
        bits: of the Softmaxes' outputs.
    """
    found = _matters(graph, calibration, bits)
    return {tensor.name: low for tensor, low in found if _reach(tensor, calibration)[0] < low}


def unseen_masks(graph: Graph, calibration: Calibration) -> list[str]:
    """Tensors added to what a Softmax sees that were zero in every sample: with no range, a mask would not mask."""
    found = {id(tensor) for tensor, _ in _matters(graph, calibration, 8)}
    added = [t for op in graph.ops if op.type == "ElementWiseAdd" and id(op.outputs[0]) in found for t in op.inputs]
    names = [t.name for t in added if t is not None and id(t) in found and t.kind is not TensorKind.STATIC]
    seen = {name: calibration.observer(name) for name in names}
    return [name for name, o in seen.items() if o is not None and o.count and o.low == o.high == 0]


def _matters(graph: Graph, calibration: Calibration, bits: int) -> list[tuple[Tensor, float]]:
    """Tensors and constants that only Softmaxes see, and below what nothing of them matters, the last first."""
    matters: dict[int, float] = {id(tensor): -math.inf for tensor in graph.outputs}
    tensors: dict[int, Tensor] = {}
    for op in reversed(graph.ops):
        for tensor in op.inputs:
            if tensor is not None:
                tensors[id(tensor)] = tensor
                matters.setdefault(id(tensor), math.inf)
        below = min((matters.get(id(tensor), -math.inf) for tensor in op.outputs), default=-math.inf)
        passed = dict.fromkeys((id(tensor) for tensor in op.inputs if tensor is not None), -math.inf)
        for index, value in _passed(op, below, calibration, bits):
            tensor = op.inputs[index]
            assert tensor is not None
            # Zero is in every range: never cut above it, so that what is said of products keeps its sign.
            passed[id(tensor)] = min(value, 0.0)
        for key, value in passed.items():
            matters[key] = min(matters[key], value)
    return [(tensor, matters[key]) for key, tensor in tensors.items() if math.isfinite(matters[key])]


def _passed(op: Op, below: float, calibration: Calibration, bits: int) -> Iterator[tuple[int, float]]:
    """What does not matter of the inputs of `op`, by position, where nothing `below` matters of its output."""
    if op.type in _SOFTMAXES:
        yield from _of_softmax(op, calibration, bits)
    if not math.isfinite(below):
        return
    if op.type == "ElementWiseAdd":
        for index, other in ((0, op.inputs[1]), (1, op.inputs[0])):
            yield index, below - _reach(other, calibration)[1]
    elif op.type == "ElementWiseSelect":
        yield from ((1, below), (2, below))
    elif op.type in ("ElementWiseMultiply", "ElementWiseDivide"):
        yield from _of_product(op, below, calibration)
    elif op.type in MOVES:
        yield 0, below
    elif op.type in _JOINS:
        yield from ((index, below) for index in range(len(op.inputs)))


def _of_softmax(op: Op, calibration: Calibration, bits: int) -> Iterator[tuple[int, float]]:
    x = op.inputs[0]
    assert x is not None
    peaks = calibration.peaks.get(x.name)
    beta = op.params.get("beta")
    scale = 1.0 if beta is None else float(beta.value)
    if peaks is None or not math.isfinite(peaks.least) or scale <= 0:
        return
    floor = peaks.least - depth(bits, x.shape[softmax_axis(op)], scale)
    yield 0, floor
    if op.type == "MaskedSoftmax":  # adds a mask
        yield 1, floor - peaks.greatest


def _of_product(op: Op, below: float, calibration: Calibration) -> Iterator[tuple[int, float]]:
    """Of x * c or x / c with a positive constant c; and of a constant times something that is never negative."""
    for index, factor in ((0, op.inputs[1]), (1, op.inputs[0])):
        tensor = op.inputs[index]
        if tensor is None or factor is None or (op.type == "ElementWiseDivide" and index == 1):
            continue
        if factor.kind is TensorKind.STATIC and tensor.kind is not TensorKind.STATIC:
            low, high = _reach(factor, calibration)
            if low > 0:
                yield index, below / (low if op.type == "ElementWiseMultiply" else 1 / high)
        elif tensor.kind is TensorKind.STATIC and op.type == "ElementWiseMultiply":
            least = _least_positive(factor, calibration)
            if least > 0:
                yield index, below / least


def _least_positive(tensor: Tensor, calibration: Calibration) -> float:
    """The smallest value that is not zero, rounded down; 0 where there are negative ones or none was seen."""
    observer = calibration.observer(tensor.name)
    if observer is None or not observer.count or observer.low < 0:
        return 0.0
    edges, counts = observer.histogram()
    used = np.flatnonzero(counts)
    return max(float(edges[used[0]]), 0.0) if used.size else 0.0


def _reach(tensor: Tensor | None, calibration: Calibration) -> tuple[float, float]:
    """Smallest and largest value of a constant or an observed tensor; without bounds where nothing is known."""
    if tensor is not None and tensor.kind is TensorKind.STATIC and tensor.data is not None and tensor.dtype.is_float:
        values = np.asarray(tensor.data)
        return float(values.min(initial=math.inf)), float(values.max(initial=-math.inf))
    observer = None if tensor is None else calibration.observer(tensor.name)
    if observer is None or not observer.count:
        return -math.inf, math.inf
    return (-math.inf if observer.infs else observer.low), observer.high

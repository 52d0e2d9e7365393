# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""Simulated outputs of many plans of one graph that differ little, as a search by exhaustion asks for.

A session for each op in each of its forms, made once; an op is run only where its form or one of its inputs is not
that of the plan kept last. Results are those of `npukit.quantization.simulation.Simulation`: the same nodes, op by op.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from npukit.qnn.graph import Array, Graph, Op, Tensor, TensorKind
from npukit.quantization.simulation import Simulation, native_feeds, real_outputs
from npukit.raising import as_computed

Key = tuple[Any, ...]
Values = dict[int, list[Array]]


class Incremental:
    """Runs plans of one float graph on the same samples.

    Args:
        samples: arrays by source name.
    """

    def __init__(self, samples: Sequence[Mapping[str, Array]]) -> None:
        self._samples = samples
        self._numbers: dict[Key, int] = {}
        self._sessions: dict[Key, Simulation] = {}
        self._kept: Values = {}

    def run(self, graph: Graph, *, keep: bool = False) -> list[dict[str, Array]]:
        """The outputs of a quantized graph for each sample, as real values by source name.

        Args:
            graph: what `assign` made of the float graph.
            keep: later plans are mostly like this one.
        """
        feeds = [native_feeds(graph, sample, "qdq") for sample in self._samples]
        values: Values = {}
        numbers: dict[str, int] = {}  # of what each tensor holds
        for tensor in graph.inputs:
            numbers[tensor.name] = self._number(("input", _form(tensor)))
            values[numbers[tensor.name]] = [feed[tensor.name] for feed in feeds]
        for op in as_computed(graph).ops:
            form = (op.name, op.type, *map(_form, (*op.inputs, *op.outputs)))
            given = [t for t in _given(op) if t.name in numbers]
            key = (form, *(numbers[t.name] for t in given))
            made = [self._number((key, index)) for index in range(len(op.outputs))]
            numbers.update(zip((t.name for t in op.outputs), made, strict=True))
            if all(number in self._kept for number in made):
                values.update((number, self._kept[number]) for number in made)
                continue
            session = self._session(form, op)
            runs = []
            for index in range(len(feeds)):
                runs.append(session.run({t.name: values[numbers[t.name]][index] for t in given}))
            for tensor, number in zip(op.outputs, made, strict=True):
                values[number] = [run[tensor.name] for run in runs]
        if keep:
            self._kept = values
        outputs = {t.name: values[numbers[t.name]] for t in graph.outputs}
        return [real_outputs(graph, {n: arrays[i] for n, arrays in outputs.items()}) for i in range(len(feeds))]

    def _number(self, key: Key) -> int:
        return self._numbers.setdefault(key, len(self._numbers))

    def _session(self, form: Key, op: Op) -> Simulation:
        if form not in self._sessions:
            self._sessions[form] = Simulation(
                Graph(op.name, list(_given(op)), list(op.outputs), [op]), "qdq", threads=1
            )
        return self._sessions[form]


def _given(op: Op) -> Iterator[Tensor]:
    seen = {id(t): t for t in op.inputs if t is not None and t.kind is not TensorKind.STATIC}
    return iter(seen.values())


def _form(tensor: Tensor | None) -> Key:
    """What a tensor is; the data of a constant follows from it, as one float graph has it."""
    return () if tensor is None else (tensor.name, tensor.dtype, tensor.encoding)

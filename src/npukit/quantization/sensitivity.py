# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""How much noise each tensor's encoding adds, from one pass of the float and the quantized graph side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from npukit.qnn.graph import Array, Graph, Tensor
from npukit.quantization import ranges
from npukit.quantization.assign import ACTIVATION, FLOAT, Assigned, Encodings, Plan
from npukit.quantization.roles import Groups, activations, data_inputs, is_real, weight_axis
from npukit.quantization.search import Unit
from npukit.quantization.simulation import Simulation, native_feeds
from npukit.raising.encodings import dequantized

_SAMPLES = 2
_MOST = 1e3  # an op's gain on relative noise counts no more than this: behind it everything is noise


def find_units(
    graph: Graph,
    groups: Groups,
    encodings: Encodings,
    assigned: Assigned,
    plan: Plan,
    samples: Sequence[Mapping[str, Array]],
) -> list[Unit]:
    """The groups of activations and the weights of a graph as units of a search.

    The noise of a group is that of its own encoding, relative to the signal, times the largest gain that an op which
    reads it has on relative noise.

    Args:
        graph: the float graph.
        groups: tensors that share encodings.
        encodings: of the plan.
        assigned: what the plan comes to.
        plan: the coarsest precisions.
        samples: arrays by source name; two of them are used.
    """
    own, total = _noise(graph, encodings, assigned, samples[:_SAMPLES])
    gain = _gains(graph, total)
    readers: dict[int, int] = {}
    for op in graph.ops:
        for _, tensor in data_inputs(op):
            readers[id(tensor)] = readers.get(id(tensor), 0) + 1
    units = []
    for members in _groups(graph, groups):
        start = plan.tensors.get(members[0].name, plan.activations)
        if start == FLOAT or any(t.name in plan.tensors for t in members):
            continue
        noise = max(own.get(t.name, 0.0) * gain.get(id(t), 1.0) for t in members)
        size = sum(t.nbytes // 4 * (1 + readers.get(id(t), 0)) for t in members)
        ladder = (8, 16, FLOAT) if start == 8 else (16, FLOAT)
        units.append(Unit(f"activation {members[0].name}", "activation", ladder, noise, float(size)))
    for op in graph.ops:
        bits = plan.ops.get(op.name, plan.weights)
        if weight_axis(op) is None or op.name in plan.ops or bits == 16 or assigned.precisions.get(op.name) == FLOAT:
            continue
        ladder = (4, 8, 16) if bits == 4 else (8, 16)
        units.append(Unit(f"weight {op.name}", "weight", ladder, *_weight(op.inputs[1], assigned, op.name)))
    return units


def _groups(graph: Graph, groups: Groups) -> list[list[Tensor]]:
    found: dict[int, list[Tensor]] = {}
    for tensor in activations(graph):
        found.setdefault(groups.key(tensor), groups.of(tensor))
    return list(found.values())


def _weight(source: Tensor | None, assigned: Assigned, name: str) -> tuple[float, float]:
    """Relative noise of an op's weight, and the bytes that the next precision costs more."""
    op = next(op for op in assigned.graph.ops if op.name == name)
    held = op.inputs[1]
    if source is None or held is None or held.encoding is None:
        return 0.0, 0.0
    exact = np.asarray(source.data, np.float64)
    return _relative(dequantized(held) - exact, exact), source.nbytes / 4


def _relative(error: Array, signal: Array) -> float:
    power = float(np.square(signal, dtype=np.float64).sum())
    return float(np.square(error, dtype=np.float64).sum()) / power if power else 0.0


def _noise(
    graph: Graph, encodings: Encodings, assigned: Assigned, samples: Sequence[Mapping[str, Array]]
) -> tuple[dict[str, float], dict[str, float]]:
    """Relative noise of each tensor: of its own encoding alone, and in the quantized graph; means over samples."""
    tensors = [t for t in activations(graph) if assigned.stored.get(t.name, FLOAT) != FLOAT]
    held = {t.name: t for t in assigned.graph.tensors()}
    exact = Simulation(graph, "float", fetch=tensors)
    coded = Simulation(assigned.graph, "qdq", fetch=[held[t.name] for t in tensors])
    own: dict[str, float] = {}
    total: dict[str, float] = {}
    for sample in samples:
        feeds = native_feeds(graph, sample, "float")
        codes = native_feeds(assigned.graph, sample, "qdq")
        float_values = {**feeds, **exact.run(feeds)}
        int_values = {**codes, **coded.run(codes)}
        for tensor in tensors:
            value, stored = float_values[tensor.name], held[tensor.name]
            if stored.encoding is None:
                continue
            bits = assigned.stored[tensor.name]
            alone = ranges.fake(value, encodings.activation(tensor, bits), ACTIVATION[bits]) - value
            whole = ranges.reals(int_values[tensor.name], stored.encoding) - value
            own[tensor.name] = own.get(tensor.name, 0.0) + _relative(alone, value) / len(samples)
            total[tensor.name] = total.get(tensor.name, 0.0) + _relative(whole, value) / len(samples)
    return own, total


def _gains(graph: Graph, noise: Mapping[str, float]) -> dict[int, float]:
    """By tensor: the largest factor by which an op that reads it raises relative noise, at least 1."""
    found: dict[int, float] = {}
    for op in graph.ops:
        outputs = [noise.get(t.name, 0.0) for t in op.outputs if is_real(t)]
        inputs = [noise.get(t.name, 0.0) for _, t in data_inputs(op)]
        if not outputs or not inputs or not max(inputs):
            continue
        gain = min(max(outputs) / max(inputs), _MOST)
        for _, tensor in data_inputs(op):
            found[id(tensor)] = max(found.get(id(tensor), 1.0), gain)
    return found

# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""How much each tensor's encoding alone harms the result: the float graph, with one encoding switched on at a time.

The raised graph gets a switch behind each activation, between the value and what is left of it in codes. All switches
off is the float graph; with one on, what changes at the outputs is that encoding's doing, whatever lies between. One
session serves all, a run for each unit and sample.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx_ir as ir

from npukit.qnn.graph import Array, DType, Encoding, Graph, Op, Tensor, TensorKind
from npukit.quantization import ranges
from npukit.quantization.assign import ACTIVATION, FLOAT, Assigned, Encodings, Plan
from npukit.quantization.roles import Groups, activations, data_inputs, weight_axis
from npukit.quantization.search import Unit
from npukit.quantization.simulation import Simulation, native_feeds
from npukit.raising.encodings import dequantized

_SAMPLES = 2
_SWITCH = "npukit/switch"


def find_units(
    graph: Graph,
    groups: Groups,
    encodings: Encodings,
    assigned: Assigned,
    plan: Plan,
    samples: Sequence[Mapping[str, Array]],
) -> list[Unit]:
    """The groups of activations and the weights of a graph as units of a search.

    The noise of a group is the relative square error of the outputs with its encoding alone; that of a weight is its
    own relative square error, as much as noise of that size at its op's result would weigh.

    Args:
        graph: the float graph.
        groups: tensors that share encodings.
        encodings: of the plan.
        assigned: what the plan comes to.
        plan: the coarsest precisions.
        samples: arrays by source name; two of them are used.
    """
    members = [found for found in _groups(graph, groups) if _open(found, plan)]
    bits = {id(found[0]): plan.tensors.get(found[0].name, plan.activations) for found in members}
    effects, own = _effects(graph, members, encodings, bits, samples[:_SAMPLES])
    readers: dict[int, int] = {}
    for op in graph.ops:
        for _, tensor in data_inputs(op):
            readers[id(tensor)] = readers.get(id(tensor), 0) + 1
    units = []
    weight_of: dict[int, float] = {}  # by tensor: what a relative error of 1 there weighs at the outputs
    for found, effect, error in zip(members, effects, own, strict=True):
        start = bits[id(found[0])]
        size = sum(t.nbytes // 4 * (1 + readers.get(id(t), 0)) for t in found)
        size += sum(table.nbytes // 4 for table in groups.tables(found[0]))
        ladder = (8, 16, FLOAT) if start == 8 else (16, FLOAT)
        units.append(Unit(f"activation {found[0].name}", "activation", ladder, effect, float(size)))
        weight_of.update({id(t): effect / error for t in found if error})
    by_name = {op.name: op for op in assigned.graph.ops}
    for op in graph.ops:
        start = plan.ops.get(op.name, plan.weights)
        if weight_axis(op) is None or op.name in plan.ops or start == 16 or assigned.precisions.get(op.name) == FLOAT:
            continue
        ladder = (4, 8, 16) if start == 4 else (8, 16)
        error, size = _weight(op, by_name[op.name])
        effect = error * weight_of.get(id(op.outputs[0]), 1.0)
        units.append(Unit(f"weight {op.name}", "weight", ladder, effect, float(size)))
    return units


def _open(members: Sequence[Tensor], plan: Plan) -> bool:
    """Whether the plan leaves a group's precision to the search."""
    start = plan.tensors.get(members[0].name, plan.activations)
    return start != FLOAT and not any(t.name in plan.tensors for t in members)


def _groups(graph: Graph, groups: Groups) -> list[list[Tensor]]:
    found: dict[int, list[Tensor]] = {}
    for tensor in activations(graph):
        found.setdefault(groups.key(tensor), groups.of(tensor))
    return list(found.values())


def _weight(op: Op, coded: Op) -> tuple[float, int]:
    """Relative square error of an op's weight, and the bytes that the next precision costs more."""
    source, held = op.inputs[1], coded.inputs[1]
    if source is None or held is None or held.encoding is None:
        return 0.0, 0
    exact = np.asarray(source.data, np.float64)
    return _relative(dequantized(held) - exact, exact), source.nbytes // 4


def _relative(error: Array, signal: Array) -> float:
    power = float(np.square(signal, dtype=np.float64).sum())
    return float(np.square(error, dtype=np.float64).sum()) / power if power else 0.0


def _effects(
    graph: Graph,
    members: Sequence[Sequence[Tensor]],
    encodings: Encodings,
    bits: Mapping[int, int],
    samples: Sequence[Mapping[str, Array]],
) -> tuple[list[float], list[float]]:
    """For each group the relative square error of the worst output, and of its own tensors, means over samples."""
    outputs = sorted(tensor.name for tensor in graph.outputs)
    names = [f"npukit/switch{index}" for index in range(len(members))]
    coded = {id(t): encodings.activation(t, bits[id(found[0])]) for found in members for t in found}

    def put_switches(model: ir.Model) -> None:
        values = {v.name: v for v in (*model.graph.inputs, *(v for node in model.graph for v in node.outputs))}
        for name, found in zip(names, members, strict=True):
            switch = ir.Value(name=name, shape=ir.Shape([]), type=ir.TensorType(ir.DataType.BOOL))
            model.graph.inputs.append(switch)
            for tensor in found:
                if tensor.name not in outputs:
                    _put_switch(model.graph, values[tensor.name], switch, coded[id(tensor)], bits[id(found[0])])

    inner = [t for found in members for t in found if t.kind is TensorKind.NATIVE]
    simulation = Simulation(graph, "float", fetch=inner, change=put_switches)
    off = {name: np.array(False) for name in names}
    effects, own = np.zeros(len(members)), np.zeros(len(members))
    for sample in samples:
        feeds = native_feeds(graph, sample, "float")
        exact = {**feeds, **simulation.run({**feeds, **off})}
        for index, found in enumerate(members):
            changed = simulation.run({**feeds, **off, names[index]: np.array(True)}, outputs)
            width = ACTIVATION[bits[id(found[0])]]
            errors = {t.name: _coded_error(exact[t.name], coded[id(t)], width) for t in found}
            shown = [error for name, error in errors.items() if name in outputs]
            effects[index] += max(*(_relative(changed[n] - exact[n], exact[n]) for n in outputs), *shown, 0.0)
            own[index] += max(errors.values())
    return list(effects / len(samples)), list(own / len(samples))


def _coded_error(value: Array, encoding: Encoding, dtype: DType) -> float:
    return _relative(ranges.fake(value, encoding, dtype) - value, value)


def _put_switch(graph: ir.Graph, value: ir.Value, switch: ir.Value, encoding: Encoding, bits: int) -> None:
    """Let all that read a value read what is left of it in codes, where `switch` is on."""
    uses = list(value.uses())
    scale = _constant(graph, f"{value.name}/scale", np.asarray(encoding.scale, np.float32))
    zero = _constant(graph, f"{value.name}/zero", np.asarray(-encoding.offset, ACTIVATION[bits].numpy))
    codes = ir.node("QuantizeLinear", [value, scale, zero])
    reals = ir.node("DequantizeLinear", [codes.outputs[0], scale, zero])
    chosen = ir.node("Where", [switch, reals.outputs[0], value])
    for node, suffix in ((codes, "codes"), (reals, "coded"), (chosen, "chosen")):
        node.name = node.outputs[0].name = f"{value.name}/{suffix}"
    producer = value.producer()
    if producer is not None:
        graph.insert_after(producer, [codes, reals, chosen])
    else:
        graph.insert_before(graph[0], [codes, reals, chosen])
    for use in uses:
        use.node.replace_input_with(use.idx, chosen.outputs[0])


def _constant(graph: ir.Graph, name: str, data: Array) -> ir.Value:
    tensor = ir.Tensor(data, name=name)
    value = ir.Value(name=name, shape=tensor.shape, type=ir.TensorType(tensor.dtype), const_value=tensor)
    graph.register_initializer(value)
    return value

# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""Recognizes elementwise activations in any spelling, by what they compute.

A region of elementwise ops between one tensor and one result, with scalar constants only, is a function of one
number. It is evaluated on sample points in float64 and compared with the known activations; no spelling is listed.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from npukit.frontends.onnx.rewrite import (
    Array,
    Builder,
    Names,
    attribute,
    constant,
    float_dtype,
    input_at,
    is_ai_onnx,
    origin_of,
    replace_node,
    shape_of,
)

_erf = np.vectorize(math.erf, otypes=[np.float64])


def _sigmoid(x: Array) -> Array:
    return 1 / (1 + np.exp(-x))


def _softplus(x: Array) -> Array:
    return np.logaddexp(0, x)


def _clip(node: ir.Node, x: list[Array]) -> Array:
    low = x[1] if len(x) > 1 and input_at(node, 1) is not None else -np.inf
    high = x[-1] if input_at(node, 2) is not None else np.inf
    return np.minimum(np.maximum(x[0], low), high)


_OPS: dict[str, Callable[[ir.Node, list[Array]], Array]] = {
    "Add": lambda n, x: x[0] + x[1],
    "Sub": lambda n, x: x[0] - x[1],
    "Mul": lambda n, x: x[0] * x[1],
    "Div": lambda n, x: x[0] / x[1],
    "Pow": lambda n, x: np.power(x[0], x[1]),
    "Neg": lambda n, x: -x[0],
    "Exp": lambda n, x: np.exp(x[0]),
    "Log": lambda n, x: np.log(x[0]),
    "Reciprocal": lambda n, x: 1 / x[0],
    "Erf": lambda n, x: _erf(x[0]),
    "Tanh": lambda n, x: np.tanh(x[0]),
    "Sigmoid": lambda n, x: _sigmoid(x[0]),
    "Softplus": lambda n, x: _softplus(x[0]),
    "Relu": lambda n, x: np.maximum(x[0], 0),
    "HardSigmoid": lambda n, x: np.clip(attribute(n, "alpha", 0.2) * x[0] + attribute(n, "beta", 0.5), 0, 1),
    "Clip": _clip,
    "Min": lambda n, x: np.minimum(*x) if len(x) == 2 else x[0],
    "Max": lambda n, x: np.maximum(*x) if len(x) == 2 else x[0],
    "Identity": lambda n, x: x[0],
}
# What makes a region worth a look.
_TRIGGERS = ("Erf", "Tanh", "Sigmoid", "HardSigmoid", "Clip", "Softplus", "Exp", "Relu", "Min")
_MAX_REGION = 16

_SAMPLES = np.concatenate([np.linspace(-12, 12, 241), np.array([-100.0, -40.0, -0.001, 0.0, 1e-4, 40.0, 100.0])])
# Constants are often rounded to float16 or to a few digits (0.7978, 0.0447).
_TOLERANCE = 2e-4


@dataclass(frozen=True)
class Activation:
    """A known function and the op that stands for it."""

    op_type: str
    function: Callable[[Array], Array]
    attributes: dict[str, Any]


def _swish(alpha: float) -> Callable[[Array], Array]:
    return lambda x: x * _sigmoid(alpha * x)


def _known(constants: list[float]) -> list[Activation]:
    x3 = 0.044715
    known = [
        Activation("Gelu", lambda x: 0.5 * x * (1 + _erf(x / math.sqrt(2))), {}),
        Activation(
            "Gelu",
            lambda x: 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + x3 * x**3))),
            {"approximate": "tanh"},
        ),
        Activation("HardSwish", lambda x: x * np.clip(x / 6 + 0.5, 0, 1), {}),
        Activation("Mish", lambda x: x * np.tanh(_softplus(x)), {}),
        Activation("HardSigmoid", lambda x: np.clip(x / 6 + 0.5, 0, 1), {"alpha": 1 / 6, "beta": 0.5}),
        Activation("HardSigmoid", lambda x: np.clip(x / 5 + 0.5, 0, 1), {"alpha": 0.2, "beta": 0.5}),
        Activation("Softplus", _softplus, {}),
        Activation("Sigmoid", _sigmoid, {}),
    ]
    for alpha in dict.fromkeys((1.0, *(abs(c) for c in constants if 0.1 < abs(c) < 100))):
        attributes = {} if alpha == 1 else {"alpha": alpha}
        known.append(Activation("Swish", _swish(alpha), attributes))
    return known


def recognize_activations(model: ir.Model) -> int:
    """Replace every region that computes a known activation by its op; returns how many."""
    graph = model.graph
    names = Names(graph)
    count = 0
    for node in graph:
        if is_ai_onnx(node, *_TRIGGERS) and node.graph is graph:
            count += _try_region(graph, names, node)
    return count


def _try_region(graph: ir.Graph, names: Names, trigger: ir.Node) -> bool:
    """Look forward from a trigger along single uses; the longest region that is a known function wins."""
    path = [trigger]
    while len(path) < 8:
        value = path[-1].outputs[0]
        users = {user for user, _ in value.uses()}
        if len(users) != 1 or value.is_graph_output():
            break
        user = users.pop()
        if not is_ai_onnx(user, *_OPS):
            break
        path.append(user)
    for anchor in reversed(path):
        for source in _sources(anchor):
            region = _region(anchor, source)
            if region is None or trigger not in region or len(region) < 2:
                continue
            found = _match(region, source, anchor.outputs[0])
            if found is not None:
                _replace(graph, names, anchor, source, region, found)
                return True
    return False


def _sources(anchor: ir.Node) -> list[ir.Value]:
    """Values behind `anchor` from which it could be computed, nearest last reached first."""
    found: dict[ir.Value, None] = {}
    queue, seen = [anchor], {anchor}
    while queue and len(seen) <= _MAX_REGION:
        node = queue.pop(0)
        for value in node.inputs:
            if value is None or value.const_value is not None:
                continue
            found.setdefault(value)
            producer = value.producer()
            if producer is not None and producer not in seen and is_ai_onnx(producer, *_OPS):
                seen.add(producer)
                queue.append(producer)
    shape = shape_of(anchor.outputs[0])
    return [v for v in found if len({u for u, _ in v.uses()}) >= 1 and shape_of(v) == shape and float_dtype(v)]


def _region(anchor: ir.Node, source: ir.Value) -> list[ir.Node] | None:
    """Nodes from `source` to `anchor` in topological order, or None when they are not a closed scalar function."""
    order: list[ir.Node] = []
    state: dict[ir.Node, bool] = {}
    stack = [anchor]
    while stack:
        node = stack[-1]
        if state.get(node):
            stack.pop()
            continue
        if not is_ai_onnx(node, *_OPS) or len(state) > _MAX_REGION:
            return None
        state[node] = False
        waiting = []
        for value in node.inputs:
            if value is None or value is source:
                continue
            if value.const_value is not None:
                if value.const_value.size != 1:
                    return None
                continue
            producer = value.producer()
            if producer is None:
                return None
            if not state.get(producer):
                waiting.append(producer)
        if waiting:
            if any(w in state for w in waiting):
                return None  # a cycle cannot be, but a hostile graph never hangs us
            stack += waiting
            continue
        state[node] = True
        order.append(node)
        stack.pop()
    inside = set(order)
    for node in order:
        if node is anchor:
            continue
        value = node.outputs[0]
        if value.is_graph_output() or any(user not in inside for user, _ in value.uses()):
            return None
    return order if any(source is v for node in order for v in node.inputs) else None


def _match(region: list[ir.Node], source: ir.Value, result: ir.Value) -> Activation | None:
    constants: list[float] = []
    values: dict[ir.Value, Array] = {source: _SAMPLES}
    with np.errstate(all="ignore"):
        for node in region:
            operands = []
            for value in node.inputs:
                if value is None:
                    continue
                if value in values:
                    operands.append(values[value])
                    continue
                array = constant(value)
                if array is None or array.dtype.kind not in "fV":
                    return None
                number = float(array.astype(np.float64).reshape(()))
                constants.append(number)
                operands.append(np.asarray(number))
            values[node.outputs[0]] = np.asarray(_OPS[node.op_type](node, operands), dtype=np.float64)
        got = values[result]
        finite = np.isfinite(got)
        if finite.sum() < len(_SAMPLES) - 6:
            return None
        best: tuple[float, Activation | None] = (_TOLERANCE, None)
        for activation in _known(constants):
            want = activation.function(_SAMPLES)
            both = finite & np.isfinite(want)
            error = float(np.max(np.abs(got - want)[both] / np.maximum(1, np.abs(want[both]))))
            if error < best[0]:
                best = (error, activation)
    return best[1]


def _replace(
    graph: ir.Graph, names: Names, anchor: ir.Node, source: ir.Value, region: list[ir.Node], found: Activation
) -> None:
    builder = Builder(graph, names, anchor)
    builder.origin = tuple(dict.fromkeys(o for node in region for o in origin_of(node)))
    value = builder.op(found.op_type, source, **found.attributes)
    value.type, value.shape = anchor.outputs[0].type, anchor.outputs[0].shape
    replace_node(graph, anchor, builder.nodes, [value])
    for node in reversed(region):
        if node is not anchor and not node.outputs[0].uses():
            graph.remove(node, safe=True)

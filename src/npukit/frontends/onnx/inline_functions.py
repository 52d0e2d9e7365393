# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""Inlines the model's own functions, so that only the main graph remains."""

from __future__ import annotations

import onnx_ir as ir
from onnx_ir.passes.common import InlinePass

from npukit.errors import Fault, ModelError
from npukit.frontends.onnx.rewrite import ORIGIN

# A few nested functions can ask for more nodes than any machine holds.
MAX_NODES = 1_000_000


def inline_functions(model: ir.Model) -> None:
    """Replace every call of a model-local function by its body, nested calls included.

    Raises:
        ModelError: functions that call one another in a circle, or whose expansion is unreasonably large,
            or that the inliner does not know how to inline.
    """
    if not model.functions:
        return
    _check_size(model)
    for function in model.functions.values():
        # every node knows its own opset since prepare_graph, so a body of another opset than the model's is no conflict
        function.opset_imports.update({d: v for d, v in model.opset_imports.items() if d in function.opset_imports})
    try:
        InlinePass()(model)
    except ValueError as error:  # a parameter that is a graph, above all
        raise ModelError(f"the model's functions cannot be inlined: {error}") from error
    model.functions.clear()
    used: set[str] = set()
    for number, node in enumerate(model.graph.all_nodes()):
        name = node.name or f"{node.op_type}_{number}"
        unique, suffix = name, 0
        while unique in used:
            suffix += 1
            unique = f"{name}_{suffix}"
        used.add(unique)
        node.name = unique
        if not node.meta.get(ORIGIN):
            node.meta[ORIGIN] = (unique,)


def _check_size(model: ir.Model) -> None:
    sizes: dict[ir.OperatorIdentifier, int] = {}
    active: list[ir.OperatorIdentifier] = []

    def size(nodes: ir.Graph | ir.Function) -> int:
        total = 0
        for node in nodes.all_nodes():
            key = node.op_identifier()
            total += body(key) if key in model.functions else 1
            if total > MAX_NODES:
                break
        return total

    def body(key: ir.OperatorIdentifier) -> int:
        if key in active:
            chain = " -> ".join(k[1] for k in (*active[active.index(key) :], key))
            raise ModelError("functions call one another in a circle", faults=[Fault(chain, "functions")])
        if key not in sizes:
            if len(active) > 100:
                raise ModelError("functions are nested deeper than 100")
            active.append(key)
            sizes[key] = size(model.functions[key])
            active.pop()
        return sizes[key]

    for key in model.functions:
        body(key)
    if size(model.graph) > MAX_NODES:
        raise ModelError(f"the model's functions expand to more than {MAX_NODES} nodes")

# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""First passes over a model as read: names, versions and scopes that everything after relies on."""

from __future__ import annotations

import onnx_ir as ir

from npukit.frontends.onnx.rewrite import ORIGIN, inputs_of, subgraphs_of


def prepare_graph(model: ir.Model) -> None:
    """Give every node a unique name, its own opset version and origin; order nodes; constants stop being inputs."""
    versions = {("" if d == "ai.onnx" else d): v for d, v in model.opset_imports.items()}
    versions.setdefault("", 1)
    used: set[str] = set()
    _prepare(model.graph, versions, used)
    for function in model.functions.values():
        own = {("" if d == "ai.onnx" else d): v for d, v in function.opset_imports.items()} or versions
        _prepare(function, own, set())
    graph = model.graph
    graph.inputs[:] = [v for v in graph.inputs if v.const_value is None]
    graph.sort()


def _prepare(graph: ir.Graph | ir.Function, versions: dict[str, int], used: set[str]) -> None:
    for number, node in enumerate(graph):
        if node.domain == "ai.onnx":
            node.domain = ""
        name = node.name or f"{node.op_type}_{number}"
        unique, suffix = name, 0
        while unique in used:
            suffix += 1
            unique = f"{name}_{suffix}"
        used.add(unique)
        node.name = unique
        node.meta[ORIGIN] = (unique,)
        if node.inputs and node.inputs[-1] is None:
            node.resize_inputs(len(inputs_of(node)))
        if node.version is None:
            node.version = versions.get(node.domain)
        for sub in subgraphs_of(node):
            _prepare(sub, versions, used)
            sub.inputs[:] = [v for v in sub.inputs if v.name not in sub.initializers]

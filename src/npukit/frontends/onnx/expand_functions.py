# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""Expands ops by the function body that their ONNX definition carries."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import onnx
import onnx_ir as ir

from npukit import plugins
from npukit.frontends.onnx.infer_shapes import type_proto
from npukit.frontends.onnx.resolve_control_flow import clone_node
from npukit.frontends.onnx.rewrite import (
    newest_version,
    origin_of,
    replace_node,
    schema_of,
    version_of,
)

if TYPE_CHECKING:
    from npukit.frontends.onnx.specialize import Walk

Keep = Callable[[str, str, int], bool]


def has_body(node: ir.Node) -> bool:
    """Whether the node's op is defined by other ops."""
    schema: Any = schema_of(node.domain, node.op_type, version_of(node))  # its stub lacks the function members
    if schema is None:
        custom = plugins.find(node.domain, node.op_type)
        return custom is not None and custom.function is not None
    return bool(schema.has_function or schema.has_context_dependent_function)


def function_body(node: ir.Node) -> onnx.FunctionProto | None:
    """The body for this very node (attributes and input types decide context-dependent ones), or None."""
    schema: Any = schema_of(node.domain, node.op_type, version_of(node))  # its stub lacks the function members
    if schema is None:
        custom = plugins.find(node.domain, node.op_type)
        return None if custom is None or custom.function is None else _parse(custom.function.SerializeToString())
    wanted = newest_version("")
    if schema.has_function:
        versions = [v for v in schema.function_opset_versions if v <= wanted]
        if versions:
            return _parse(schema.get_function_with_opset_version(max(versions)))
    if schema.has_context_dependent_function:
        proto = ir.serde.serialize_node(node)
        types = []
        for value in node.inputs:
            known = None if value is None else type_proto(value)
            types.append((known or onnx.TypeProto()).SerializeToString())
        versions = [v for v in schema.context_dependent_function_opset_versions if v <= wanted]
        for version in sorted(versions, reverse=True):
            try:
                body = schema.get_context_dependent_function_with_opset_version(
                    version, proto.SerializeToString(), types
                )
            except (RuntimeError, ValueError, onnx.defs.SchemaError):
                continue
            if body:
                return _parse(body)
    return None


def _parse(body: bytes) -> onnx.FunctionProto:
    function = onnx.FunctionProto()
    function.ParseFromString(body)
    return function


def expand_function(walk: Walk, node: ir.Node) -> bool:
    """Replace a node by its op's function body; False when it has none. The body's nodes are visited next."""
    body = function_body(node)
    if body is None or not body.node:
        return False
    schema: Any = schema_of(node.domain, node.op_type, version_of(node))  # its stub lacks the function members
    defaults = {attr.name: attr for attr in body.attribute_proto}
    if schema is not None:
        defaults |= {
            name: attr.default_value
            for name, attr in schema.attributes.items()
            if attr.default_value.type != onnx.AttributeProto.UNDEFINED
        }
    versions = {("" if i.domain == "ai.onnx" else i.domain): i.version for i in body.opset_import}
    # the body of an optional output that this node does not have is left out by onnx
    made = {name for inner in body.node for name in inner.output} | set(body.input)
    wanted = list(body.output)
    del body.output[:]
    body.output.extend(name for name in wanted if name in made)
    function = ir.serde.deserialize_function(body)
    values: dict[ir.Value, ir.Value | None] = {}
    for i, formal in enumerate(function.inputs):
        values[formal] = node.inputs[i] if i < len(node.inputs) else None
    copies: list[ir.Node] = []
    for number, inner in enumerate(function):
        _bind_attributes(inner, node, defaults)
        for nested in inner.attributes.values():
            if nested.type == ir.AttributeType.GRAPH:
                for sub in nested.value.all_nodes():
                    _bind_attributes(sub, node, defaults)
        inner.name = inner.name or f"{inner.op_type}_{number}"
        copy = clone_node(walk, inner, values, node.name or node.op_type, versions.get("", 1), origin_of(node))
        copy.meta["npukit.origin"] = origin_of(node)
        copy.version = versions.get("" if inner.domain == "ai.onnx" else inner.domain, newest_version(inner.domain))
        copies.append(copy)
    by_name = {formal.name: values.get(formal) for formal in function.outputs}
    outputs = [by_name.get(name) for name in wanted]
    replace_node(walk.graph, node, copies, outputs[: len(node.outputs)])
    return True


def _bind_attributes(inner: ir.Node, node: ir.Node, defaults: dict[str, onnx.AttributeProto]) -> None:
    for name, attr in list(inner.attributes.items()):
        if not attr.is_ref():
            continue
        outer = attr.ref_attr_name
        given = node.attributes.get(outer or "")
        if given is not None:
            inner.attributes[name] = ir.Attr(name, given.type, given.value)
        elif outer in defaults:
            default = ir.serde.deserialize_attribute(defaults[outer])
            inner.attributes[name] = ir.Attr(name, default.type, default.value)
        else:
            del inner.attributes[name]


def expand_functions(model: ir.Model, keep: Keep) -> ir.Model:
    """Expand every op that has a function body in its definition, to a fixed point.

    Args:
        model: a normalized model; changed in place, and normalized again when it returns.
        keep: (domain, op type, version) -> True for ops to leave as they are.

    Returns:
        the same model.

    Raises:
        ModelError: an expansion that cannot be made static.
    """
    from npukit.frontends.onnx.pipeline import finish_model
    from npukit.frontends.onnx.rewrite import drop_dead
    from npukit.frontends.onnx.simplify_ops import simplify_ops
    from npukit.frontends.onnx.specialize import specialize

    def rule(walk: Walk, node: ir.Node) -> bool:
        if keep(node.domain, node.op_type, version_of(node)):
            return False
        return expand_function(walk, node)

    specialize(model, (rule,))
    simplify_ops(model)
    drop_dead(model.graph)
    finish_model(model)
    return model

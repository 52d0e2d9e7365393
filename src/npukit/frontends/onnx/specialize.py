# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""The forward walk: each node is brought to its newest form, gets shapes, and is folded when it is constant.

These are one walk because they feed each other: an upgrade may need a rank, inference needs the constants that
folding makes, a branch is chosen by a folded condition.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from npukit import plugins
from npukit.errors import Fault, ModelError
from npukit.frontends.onnx import upgrade_ops
from npukit.frontends.onnx.expand_functions import expand_function
from npukit.frontends.onnx.fold_constants import fold_node
from npukit.frontends.onnx.infer_shapes import InferenceFailed, allowed_types, infer_node
from npukit.frontends.onnx.replace_contrib import replace_contrib
from npukit.frontends.onnx.resolve_control_flow import resolve_control_flow
from npukit.frontends.onnx.resolve_sequences import resolve_sequences
from npukit.frontends.onnx.rewrite import (
    TENSORS,
    Builder,
    Names,
    Unsupported,
    add_constant,
    attribute,
    make_tensor,
    newest_version,
    origin_of,
    replace_node,
    version_of,
)

log = logging.getLogger(__name__)

# A rule looks at a node and returns True when it replaced it (its replacement is visited next).
Rule = Callable[["Walk", ir.Node], bool]


@dataclass
class Walk:
    """State of one walk over a model's main graph."""

    model: ir.Model
    names: Names
    faults: list[Fault] = field(default_factory=list)
    folded: dict[str, tuple[str, ...]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    unrolled: int = 0

    @property
    def graph(self) -> ir.Graph:
        return self.model.graph

    def builder(self, node: ir.Node) -> Builder:
        """A builder of replacements for `node`."""
        return Builder(self.graph, self.names, node)

    def fault(self, node: ir.Node, what: str, hint: str = "") -> None:
        """Record what is wrong with a node."""
        where = f"{node.op_type} {origin_of(node)[0] if origin_of(node) else ''!r}"
        self.faults.append(Fault(what, where, hint))

    def replace_by_constants(self, node: ir.Node, arrays: list[object]) -> None:
        """Put constants in place of all outputs of a node."""
        values: list[ir.Value | None] = []
        origin = list(origin_of(node))
        for value in node.inputs:
            if value is not None:
                origin += [o for o in self.folded.get(value.name or "", ()) if o not in origin]
        for output, array in zip(node.outputs, arrays, strict=False):
            if not output.name or not (output.uses() or output.is_graph_output()):
                values.append(None)
                continue
            tensor = array if isinstance(array, TENSORS) else make_tensor(array)
            if output.is_graph_output():
                values.append(add_constant(self.graph, self.names, tensor, f"{output.name}_value"))
            else:
                name, output.name = output.name, f"{output.name}__replaced"
                constant = ir.Value(
                    name=name,
                    shape=ir.Shape(tensor.shape.numpy()),
                    type=ir.TensorType(tensor.dtype),
                    const_value=tensor,
                )
                self.graph.register_initializer(constant)
                values.append(constant)
            self.folded[values[-1].name or ""] = tuple(origin)  # type: ignore[union-attr]
        replace_node(self.graph, node, [], values)


def constant_node(walk: Walk, node: ir.Node) -> bool:
    """Constant nodes become initializers."""
    if node.domain or node.op_type != "Constant":
        return False
    for name, attr in node.attributes.items():
        if name == "value":
            walk.replace_by_constants(node, [attr.value])
        elif name in ("value_float", "value_floats"):
            walk.replace_by_constants(node, [np.asarray(attr.value, dtype=np.float32)])
        elif name in ("value_int", "value_ints"):
            walk.replace_by_constants(node, [np.asarray(attr.value, dtype=np.int64)])
        elif name in ("value_string", "value_strings"):
            many = isinstance(attr.value, list | tuple)
            array = np.empty(len(attr.value) if many else 1, dtype=object)
            array[:] = list(attr.value) if many else [attr.value]
            walk.replace_by_constants(node, [make_tensor(array if many else array.reshape(()))])
        else:
            walk.fault(node, f"the constant's attribute {name!r} is not supported", "store it as a dense tensor")
            return False
        return True
    walk.fault(node, "a Constant without a value")
    return False


def upgrade(walk: Walk, node: ir.Node) -> bool:
    """Old forms of ops become the newest form."""
    if version_of(node) >= newest_version(node.domain):
        node.version = newest_version(node.domain)
        return False
    builder = walk.builder(node)
    try:
        values = upgrade_ops.upgrade_node(builder, node)
    except (TypeError, ValueError, KeyError, IndexError, AttributeError, OverflowError) as error:
        log.debug("upgrade of %s %r", node.op_type, node.name, exc_info=error)
        walk.fault(node, f"its attributes or inputs do not fit its opset ({version_of(node)})")
        return True
    except Unsupported as error:
        walk.fault(node, f"opset {version_of(node)} form cannot be expressed in opset {newest_version('')}: {error}")
        node.version = newest_version(node.domain)
        return True
    if values is None:
        return False
    replace_node(walk.graph, node, builder.nodes, values)
    return True


def fold(walk: Walk, node: ir.Node) -> bool:
    """Nodes whose result is known become constants."""
    arrays = fold_node(node)
    if arrays is None:
        return False
    walk.replace_by_constants(node, list(arrays))
    return True


def spread(walk: Walk, node: ir.Node) -> bool:
    """A ConstantOfShape too large to fold is an Expand of one element."""
    if node.domain or node.op_type != "ConstantOfShape" or node.inputs[0] is None or node.inputs[0].const_value is None:
        return False
    tensor = attribute(node, "value")
    element = np.zeros((), np.float32) if tensor is None else tensor.numpy().reshape(())
    builder = walk.builder(node)
    value = builder.op("Expand", builder.const(element, "element"), node.inputs[0])
    replace_node(walk.graph, node, builder.nodes, [value])
    return True


def expand_custom(walk: Walk, node: ir.Node) -> bool:
    """An op of a plugin that has nothing but a body is what the body says."""
    custom = plugins.find(node.domain, node.op_type) if node.domain else None
    return custom is not None and custom.expands and expand_function(walk, node)


def infer(walk: Walk, node: ir.Node) -> bool:
    """Shapes and dtypes of the outputs."""
    sentences = allowed_types(node)
    if sentences:
        for sentence in sentences:
            walk.fault(node, sentence)
        return True
    try:
        infer_node(node)
    except InferenceFailed as error:
        if fold(walk, node):  # onnx's own function bodies give Range one-element vectors; evaluators take them
            return True
        walk.fault(node, str(error))
    return False


def _visit(walk: Walk, node: ir.Node, rules: tuple[Rule, ...]) -> None:
    for rule in rules:
        try:
            if rule(walk, node):
                return
        except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
            # an attribute or input that is not what the op's definition asks for, and that no check saw before
            log.debug("%s %r", node.op_type, node.name, exc_info=error)
            text = f"{type(error).__name__}: {error}"[:200]
            walk.fault(node, f"cannot be normalized ({text}); do its attributes and inputs fit its definition?")
            return


def specialize(model: ir.Model, extra_rules: tuple[Rule, ...] = ()) -> Walk:
    """Run the walk over the main graph.

    Args:
        model: changed in place.
        extra_rules: tried last, on each node that was not folded.

    Returns:
        the walk with what it folded and the notes it made.

    Raises:
        ModelError: with every node that contradicts its definition or has no newest form.
    """
    walk = Walk(model, Names(model.graph))
    rules: tuple[Rule, ...] = (
        constant_node,
        replace_contrib,
        expand_custom,
        upgrade,
        resolve_sequences,
        resolve_control_flow,
        infer,
        fold,
        spread,
        *extra_rules,
    )
    for node in model.graph:
        _visit(walk, node, rules)
    if walk.faults:
        raise ModelError("these nodes cannot be normalized", faults=walk.faults)
    return walk


__all__ = ["Rule", "Walk", "attribute", "specialize"]

# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""What the user calls things: names of outputs from the program's signature, and types that numpy has."""

from __future__ import annotations

import re
from typing import Any

import onnx_ir as ir


def output_names(torch: Any, program: Any) -> list[str]:
    """A name for each tensor that `forward` gives, from the keys of dicts and the fields of named tuples and classes.

    A tensor that has no name in the signature (alone, or by position) gets an empty one: it keeps the exporter's.
    """
    pytree = torch.utils._pytree
    spec = program.call_spec.out_spec
    if spec is None:
        return []
    marks = pytree.tree_unflatten(list(range(spec.num_leaves)), spec)
    found = []
    for path, _ in pytree.tree_flatten_with_path(marks)[0]:
        keys = [_key(entry) for entry in path]
        named = any(not key.isdigit() for key in keys)
        found.append(re.sub(r"\s+", "_", "_".join(keys)) if named else "")
    given = [spec.arg for spec in program.graph_signature.output_specs if spec.kind.name == "USER_OUTPUT"]
    if len(given) != len(found):
        return []
    # None and numbers among the outputs are leaves too, but the exporter drops them
    return [name for name, leaf in zip(found, given, strict=True) if type(leaf).__name__ == "TensorArgument"]


def input_names(program: Any) -> list[str]:
    """The names of the tensors that `forward` takes, in order."""
    specs = [spec for spec in program.graph_signature.input_specs if spec.kind.name == "USER_INPUT"]
    return [spec.arg.name for spec in specs if type(spec.arg).__name__ == "TensorArgument"]


def _key(entry: Any) -> str:
    for attribute in ("key", "name", "idx"):
        value = getattr(entry, attribute, None)
        if value is not None:
            return str(value)
    return ""


def name_inputs(model: ir.Model, wanted: list[str]) -> None:
    """Give the inputs of a model the names `wanted`: the exporter changes one that an output has too."""
    if len(wanted) != len(model.graph.inputs):
        return
    taken = {value.name: value for value in _values(model)}
    for value, name in zip(model.graph.inputs, wanted, strict=True):
        if value.name == name:
            continue
        if name in taken:
            taken[name].name = f"{name}_out"
        value.name = name


def name_outputs(model: ir.Model, wanted: list[str]) -> list[str]:
    """Give the outputs of a model the names `wanted` (empty: as they are); gives notes."""
    outputs = model.graph.outputs
    if len(wanted) != len(outputs):
        return [] if not wanted else ["the outputs keep the exporter's names: the signature has another number of them"]
    taken = {value.name: value for value in _values(model)}
    notes = []
    for i, (value, name) in enumerate(zip(list(outputs), wanted, strict=True)):
        if not name or value.name == name:
            continue
        if value.is_graph_input() or any(value is other for other in outputs[:i]):
            # an output that is an input, or another output, needs a value of its own
            node = ir.node("Identity", [value])
            node.outputs[0].type, node.outputs[0].shape = value.type, value.shape
            model.graph.append(node)
            value = outputs[i] = node.outputs[0]
        other = taken.get(name)
        if other is not None and other is not value:
            if other.is_graph_input():
                notes.append(f"the output {name!r} is called '{name}_out': an input has that name")
                name = f"{name}_out"
            else:
                other.name = f"{name}__inner"
        value.name = name
        taken[name] = value
    return notes


def _values(model: ir.Model) -> list[ir.Value]:
    graph = model.graph
    made = [value for node in graph for value in node.outputs]
    return [*graph.inputs, *graph.initializers.values(), *made]


def widen_bfloat16(model: ir.Model) -> list[str]:
    """Hold bfloat16 as float32: numpy, ONNX Runtime's CPU provider and QNN do not compute in it; gives notes."""
    import numpy as np

    narrow, wide = ir.DataType.BFLOAT16, ir.DataType.FLOAT
    found = False
    for value in _values(model):
        if value.dtype != narrow:
            continue
        found = True
        if value.const_value is not None:
            value.const_value = ir.tensor(value.const_value.numpy().astype(np.float32), name=value.name)
        value.dtype = wide
    for node in model.graph.all_nodes():
        for key, attribute in list(node.attributes.items()):
            if attribute.type == ir.AttributeType.INT and key in ("to", "dtype") and attribute.value == narrow:
                node.attributes[key] = ir.AttrInt64(key, int(wide))
            elif attribute.type == ir.AttributeType.TENSOR and attribute.value.dtype == narrow:
                node.attributes[key] = ir.AttrTensor(key, ir.tensor(attribute.value.numpy().astype(np.float32)))
    return ["bfloat16 is held as float32: weights do not change, results are rounded less"] if found else []

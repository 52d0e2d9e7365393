# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""Ops that atc has no parser for by their definition, and the newest forms of ops in an older opset.

`lower_opset` is the way back of `npukit.frontends.onnx.upgrade_ops`: a table keyed by (op, first opset that has the new
form). Source of the facts: the op changelog of the onnx package (schemas of every version).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir

from npukit.ascend.limits import OpRow, op_rows
from npukit.ascend.passes.setting import Setting
from npukit.ascend.rules import default_of
from npukit.errors import Fault
from npukit.frontends.onnx.expand_functions import expand_function, has_body
from npukit.frontends.onnx.infer_shapes import allowed_types
from npukit.frontends.onnx.resolve_control_flow import INTERNAL
from npukit.frontends.onnx.rewrite import (
    Names,
    Unsupported,
    add_constant,
    attribute,
    input_at,
    ints,
    need_shape,
    output_used,
    rank_of,
    schema_of,
)
from npukit.frontends.onnx.specialize import Walk, specialize

OLDEST = 14
"""The opset that models are brought to unless one of their ops needs a later one: what public recipes export."""

_IR_VERSIONS = {14: 7, 15: 8, 16: 8, 17: 8, 18: 8}  # onnx's own pairing of opset and file format


def expand_ops(model: ir.Model, setting: Setting) -> int:
    """Ops without a parser become the ops of their ONNX definition, as far as there is one."""
    count = 0

    def rule(walk: Walk, node: ir.Node) -> bool:
        nonlocal count
        if node.domain or not has_body(node) or _parsed_in(node, setting):
            return False
        done = expand_function(walk, node)
        count += done
        return done

    specialize(model, (rule,))
    return count


def _parsed_in(node: ir.Node, setting: Setting) -> bool:
    """Whether some opset that this CANN reads has both ONNX's op and atc's parser."""
    row = op_rows().get(node.op_type)
    if row is None or (setting.cann.order < (9, 0, 0) and not row.listed):
        return False
    opsets = range(OLDEST, setting.cann.reads[1] + 1)
    return any(_readable(row, opset) and schema_of("", node.op_type, opset) is not None for opset in opsets)


def _readable(row: OpRow, opset: int) -> bool:
    return not row.opsets or opset in row.opsets


def lower_opset(model: ir.Model, opset: int) -> list[Fault]:
    """Write every node in the form of `opset`; what has no such form is listed, and the model then of no use."""
    faults = []
    names = Names(model.graph)
    for node in model.graph.all_nodes():
        if node.domain == INTERNAL:
            faults.append(Fault("a sequence that is not resolved", f"{node.op_type} {node.name!r}"))
        if node.domain:
            continue
        try:
            _lower(model, names, node, opset)
        except (Unsupported, LookupError) as error:  # an axis beyond the rank
            faults.append(Fault(str(error), f"{node.op_type} {node.name!r}"))
    domains = {node.domain: node.version or 1 for node in model.graph.all_nodes() if node.domain}
    model.opset_imports.clear()
    model.opset_imports.update({"": opset, **domains})
    model.ir_version = _IR_VERSIONS[opset]
    return faults


def _lower(model: ir.Model, names: Names, node: ir.Node, opset: int) -> None:
    row = op_rows().get(node.op_type)
    if row is None or not _readable(row, opset):
        raise Unsupported(f"atc has no parser for it in opset {opset}")
    for before, function in _LOWERINGS.get(node.op_type, ()):
        if opset < before:
            function(model, names, node)
    schema = schema_of("", node.op_type, opset)
    if schema is None:
        if schema_of("", node.op_type, node.version or opset) is None:
            return  # one that only atc knows
        raise Unsupported(f"opset {opset} does not have it")
    for name in tuple(node.attributes):
        if name not in schema.attributes:
            if attribute(node, name) != default_of(node, name):
                raise Unsupported(f"opset {opset} has no attribute {name!r} for it")
            del node.attributes[name]
    if len(node.inputs) > schema.max_input:
        raise Unsupported(f"takes {schema.max_input} inputs at most in opset {opset}")
    node.version = opset
    wrong = allowed_types(node)
    if wrong:
        raise Unsupported(f"in opset {opset}, {wrong[0]}")


Lowering = Callable[[ir.Model, Names, ir.Node], None]


def _drop_input(node: ir.Node, index: int) -> None:
    node.resize_inputs(index)


def _constant(model: ir.Model, names: Names, node: ir.Node, numbers: list[int], hint: str) -> ir.Value:
    array = np.asarray(numbers, np.int64)
    return add_constant(model.graph, names, array, f"{node.name}/{hint}")


def _axes_to_attribute(model: ir.Model, names: Names, node: ir.Node) -> None:
    """Before 18 the axes of most reductions are an attribute."""
    given = input_at(node, 1)
    if given is not None:
        axes = ints(given)
        if axes is None:
            raise Unsupported("its axes are not constant")
        if axes:
            node.attributes["axes"] = ir.AttrInt64s("axes", axes)
    if len(node.inputs) > 1:
        _drop_input(node, 1)
    if attribute(node, "noop_with_empty_axes", 0):
        if "axes" not in node.attributes:
            raise Unsupported("without axes it reduces nothing")
        del node.attributes["noop_with_empty_axes"]


def _split_sizes(model: ir.Model, names: Names, node: ir.Node) -> None:
    """Before 18 there is no number of outputs: parts that are not equal have their sizes given."""
    node.attributes.pop("num_outputs", None)
    if input_at(node, 1) is None:
        axis = attribute(node, "axis", 0)
        sizes = [need_shape(value)[axis] for value in node.outputs]
        node.resize_inputs(2)
        node.replace_input_with(1, _constant(model, names, node, sizes, "split"))


def _pad_all_axes(model: ir.Model, names: Names, node: ir.Node) -> None:
    """Before 18 pads are given for every axis."""
    axes = input_at(node, 3)
    if axes is not None:
        chosen, pads, rank = ints(axes), ints(node.inputs[1]), rank_of(node.inputs[0])
        if chosen is None or pads is None or rank is None:
            raise Unsupported("its pads or axes are not constant")
        full = [0] * (2 * rank)
        for i, axis in enumerate(chosen):
            full[axis % rank], full[axis % rank + rank] = pads[i], pads[i + len(chosen)]
        node.replace_input_with(1, _constant(model, names, node, full, "pads"))
    if len(node.inputs) > 3:
        _drop_input(node, 3)


def _no_dilation(model: ir.Model, names: Names, node: ir.Node) -> None:
    """Before 19 (LpPool: 18) average pools have no dilations."""
    if all(number == 1 for number in attribute(node, "dilations", ())):
        node.attributes.pop("dilations", None)


def _grid_sample_modes(model: ir.Model, names: Names, node: ir.Node) -> None:
    """Before 20 linear and cubic were called bilinear and bicubic."""
    mode = attribute(node, "mode", "linear")
    if rank_of(node.inputs[0]) != 4:
        raise Unsupported("before opset 20 it samples images only")
    node.attributes["mode"] = ir.AttrString("mode", {"linear": "bilinear", "cubic": "bicubic"}.get(mode, mode))


def _roi_align_mode(model: ir.Model, names: Names, node: ir.Node) -> None:
    """Before 16 it samples without the half-pixel shift."""
    if attribute(node, "coordinate_transformation_mode", "half_pixel") != "output_half_pixel":
        raise Unsupported("before opset 16 it has no half-pixel shift")
    del node.attributes["coordinate_transformation_mode"]


def _batch_norm_outputs(model: ir.Model, names: Names, node: ir.Node) -> None:
    """Only the first output has a meaning in inference."""
    if any(output_used(node, i) for i in range(1, len(node.outputs))):
        raise Unsupported("it gives out statistics")


_LOWERINGS: dict[str, tuple[tuple[int, Lowering], ...]] = {
    **dict.fromkeys(
        (
            *("ReduceMean", "ReduceMax", "ReduceMin", "ReduceProd", "ReduceL1", "ReduceL2"),
            *("ReduceLogSum", "ReduceLogSumExp", "ReduceSumSquare"),
        ),
        ((18, _axes_to_attribute),),
    ),
    "Split": ((18, _split_sizes),),
    "Pad": ((18, _pad_all_axes),),
    "AveragePool": ((19, _no_dilation),),
    "LpPool": ((18, _no_dilation),),
    "GridSample": ((20, _grid_sample_modes),),
    "RoiAlign": ((16, _roi_align_mode),),
    "BatchNormalization": ((15, _batch_norm_outputs),),
}

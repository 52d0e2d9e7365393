# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""Old forms of ai.onnx ops become the newest form: a table keyed by (op, first opset that has the new form).

A row changes a node's attributes in place (returns None) or builds its replacement. Rows whose bound is above the
node's version apply in ascending order; what they build is in the newest form unless it says otherwise. Ops without
a row changed only in the types they allow, or in attributes whose default is the old behaviour.
Source of the facts: the op changelog of the onnx package (schemas of every version).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from npukit.frontends.onnx.rewrite import (
    NEWEST,
    Builder,
    Unsupported,
    attribute,
    constant,
    float_dtype,
    input_at,
    ints,
    is_ai_onnx,
    need_shape,
    newest_version,
    output_used,
    version_of,
)

Values = Sequence[ir.Value | None]
Upgrade = Callable[[Builder, ir.Node], Values | None]
UPGRADES: dict[str, list[tuple[int, Upgrade]]] = {}


def upgrades(*op_types: str, before: int) -> Callable[[Upgrade], Upgrade]:
    """Register a row: nodes of these ops written in an opset below `before`."""

    def register(function: Upgrade) -> Upgrade:
        for op_type in op_types:
            rows = UPGRADES.setdefault(op_type, [])
            rows.append((before, function))
            rows.sort(key=lambda row: row[0])
        return function

    return register


def upgrade_node(builder: Builder, node: ir.Node) -> Values | None:
    """Bring a node to the newest form; the values that replace its outputs, or None when it was changed in place.

    Raises:
        Unsupported: the old form has no equal.
    """
    version = version_of(node)
    if node.domain:
        node.version = newest_version(node.domain)
        return None
    node.attributes.pop("consumed_inputs", None)
    for before, function in UPGRADES.get(node.op_type, ()):
        if version < before:
            values = function(builder, node)
            if values is not None:
                return values
    node.version = NEWEST
    return None


def _set(node: ir.Node, **attributes: object) -> None:
    for name, value in attributes.items():
        node.attributes[name] = ir.convenience.convert_attribute(name, value)  # type: ignore[arg-type]


def _pop(node: ir.Node, name: str, default: object = None) -> object:
    value = attribute(node, name, default)
    node.attributes.pop(name, None)
    return value


def _append(node: ir.Node, index: int, value: ir.Value) -> None:
    """Make `value` input `index`."""
    if len(node.inputs) <= index:
        node.resize_inputs(index + 1)
    node.replace_input_with(index, value)


# --- attributes that became inputs -----------------------------------------------------------------------------


@upgrades("Squeeze", "Unsqueeze", "ReduceSum", before=13)
@upgrades("ReduceMean", "ReduceMax", "ReduceMin", "ReduceProd", "ReduceL1", "ReduceL2", before=18)
@upgrades("ReduceLogSum", "ReduceLogSumExp", "ReduceSumSquare", before=18)
def axes_to_input(builder: Builder, node: ir.Node) -> None:
    """axes: attribute -> input 1."""
    axes = _pop(node, "axes")
    if axes is not None:
        _append(node, 1, builder.ints(axes, "axes"))  # type: ignore[arg-type]


@upgrades("Clip", before=11)
def clip_bounds(builder: Builder, node: ir.Node) -> None:
    """min, max: attributes -> inputs 1 and 2 (absent: no bound)."""
    for index, name in ((1, "min"), (2, "max")):
        bound = _pop(node, name)
        if bound is not None:
            source = node.inputs[0]
            if source is None:
                raise Unsupported("no input")
            info = float(np.finfo(np.float32).max)
            if abs(bound) >= info and float_dtype(source):  # type: ignore[arg-type]
                continue
            _append(node, index, builder.scalar(bound, source, name))  # type: ignore[arg-type]


@upgrades("Pad", before=11)
def pad_inputs(builder: Builder, node: ir.Node) -> None:
    """Pads (paddings in opset 1) and value: attributes -> inputs 1 and 2."""
    pads = _pop(node, "paddings", _pop(node, "pads"))
    value = _pop(node, "value", 0.0)
    _append(node, 1, builder.ints(pads, "pads"))  # type: ignore[arg-type]
    if value and attribute(node, "mode", "constant") == "constant":
        _append(node, 2, builder.scalar(value, node.inputs[0], "value"))  # type: ignore[arg-type]


@upgrades("Slice", before=10)
def slice_inputs(builder: Builder, node: ir.Node) -> None:
    """starts, ends, axes: attributes -> inputs 1 to 3."""
    starts, ends, axes = _pop(node, "starts"), _pop(node, "ends"), _pop(node, "axes")
    _append(node, 1, builder.ints(starts, "starts"))  # type: ignore[arg-type]
    _append(node, 2, builder.ints(ends, "ends"))  # type: ignore[arg-type]
    if axes is not None:
        _append(node, 3, builder.ints(axes, "axes"))  # type: ignore[arg-type]


@upgrades("TopK", before=10)
def topk_input(builder: Builder, node: ir.Node) -> None:
    """k: attribute -> input 1."""
    _append(node, 1, builder.ints([_pop(node, "k")], "k"))  # type: ignore[list-item]


@upgrades("Split", before=18)
def split_inputs(builder: Builder, node: ir.Node) -> None:
    """split: attribute -> input 1; equal parts need num_outputs since 18."""
    split = _pop(node, "split")
    if split is not None:
        _append(node, 1, builder.ints(split, "split"))  # type: ignore[arg-type]
    elif input_at(node, 1) is None:
        _set(node, num_outputs=len(node.outputs))


@upgrades("Dropout", before=12)
def dropout_inputs(builder: Builder, node: ir.Node) -> None:
    """ratio: attribute -> input 1 (inference never reads it); is_test has no meaning any more."""
    _pop(node, "ratio")
    _pop(node, "is_test")


@upgrades("Reshape", before=5)
def reshape_input(builder: Builder, node: ir.Node) -> None:
    """shape: attribute -> input 1."""
    _append(node, 1, builder.ints(_pop(node, "shape"), "shape"))  # type: ignore[arg-type]


@upgrades("Tile", before=6)
def tile_inputs(builder: Builder, node: ir.Node) -> Values | None:
    """(tiles, axis) scalars -> repeats vector."""
    tiles, axis = ints(input_at(node, 1)), ints(input_at(node, 2))
    if tiles is None or axis is None:
        raise Unsupported("tiles and axis are not constant")
    repeats = [1] * len(need_shape(node.inputs[0]))
    repeats[axis[0]] = tiles[0]
    return [builder.op("Tile", node.inputs[0], builder.ints(repeats, "repeats"))]


@upgrades("DFT", before=20)
def dft_axis(builder: Builder, node: ir.Node) -> None:
    """axis: attribute (default 1) -> input 2."""
    _append(node, 2, builder.const(np.asarray(_pop(node, "axis", 1), dtype=np.int64), "axis"))


# --- attributes with another type or default --------------------------------------------------------------------


@upgrades("Cast", before=6)
def cast_type(builder: Builder, node: ir.Node) -> None:
    """to: type name -> type code."""
    to = attribute(node, "to")
    if isinstance(to, str):
        if to.upper() not in ir.DataType.__members__:
            raise Unsupported(f"unknown type {to!r}")
        _set(node, to=int(ir.DataType[to.upper()]))


@upgrades("Concat", before=4)
def concat_axis(builder: Builder, node: ir.Node) -> None:
    """Axis had the default 1."""
    _set(node, axis=attribute(node, "axis", 1))


@upgrades("Elu", "Selu", before=6)
def selu_constants(builder: Builder, node: ir.Node) -> None:
    """Selu's default alpha and gamma were rounded."""
    if node.op_type == "Selu":
        _set(node, alpha=attribute(node, "alpha", 1.6732), gamma=attribute(node, "gamma", 1.0507))


@upgrades("LpPool", "GlobalLpPool", before=2)
def integer_p(builder: Builder, node: ir.Node) -> None:
    """p: float -> int."""
    _set(node, p=int(attribute(node, "p", 2.0)))


@upgrades("RNN", "GRU", "LSTM", before=7)
def recurrent_outputs(builder: Builder, node: ir.Node) -> None:
    """output_sequence said whether output 0 is made; the outputs say so themselves. One default was misspelled."""
    _pop(node, "output_sequence")
    if attribute(node, "direction") == "foward":
        _set(node, direction="forward")


@upgrades("GridSample", before=20)
def grid_sample_mode(builder: Builder, node: ir.Node) -> None:
    """Bilinear -> linear, bicubic -> cubic."""
    mode = attribute(node, "mode", "bilinear")
    _set(node, mode={"bilinear": "linear", "bicubic": "cubic"}.get(mode, mode))


@upgrades("RoiAlign", before=16)
def roi_align_mode(builder: Builder, node: ir.Node) -> None:
    """The old form samples without the half-pixel shift."""
    _set(node, coordinate_transformation_mode="output_half_pixel")


# --- softmax family: the input was flattened to two dimensions --------------------------------------------------


@upgrades("Softmax", "LogSoftmax", "Hardmax", before=13)
def softmax_flatten(builder: Builder, node: ir.Node) -> Values | None:
    """Below 13 all dimensions from `axis` on are one; explicit Reshapes say so now."""
    axis = attribute(node, "axis", 1)
    shape = need_shape(node.inputs[0])
    rank = len(shape)
    axis += rank if axis < 0 else 0
    live = [i for i in range(axis, rank) if shape[i] != 1]
    if axis == rank - 1 or (axis < rank and len(live) <= 1):
        _set(node, axis=live[0] if live else rank - 1)
        return None
    rows = int(np.prod(shape[:axis], dtype=np.int64))
    columns = int(np.prod(shape[axis:], dtype=np.int64))
    flat = builder.op("Reshape", node.inputs[0], builder.ints([rows, columns], "flat"))
    return [builder.op("Reshape", builder.op(node.op_type, flat, axis=-1), builder.ints(shape, "shape"))]


# --- broadcasting by axis ----------------------------------------------------------------------------------------


@upgrades("Add", "Sub", "Mul", "Div", "Pow", "And", "Or", "Xor", "Equal", "Greater", "Less", before=7)
def broadcast_axis(builder: Builder, node: ir.Node) -> None:
    """broadcast=1, axis=k aligned B's first dimension with A's dimension k."""
    broadcast, axis = _pop(node, "broadcast", 0), _pop(node, "axis")
    if not broadcast or axis is None:
        return
    a, b = need_shape(node.inputs[0]), need_shape(node.inputs[1])
    trailing = len(a) - (int(axis) % max(len(a), 1)) - len(b)  # type: ignore[call-overload]
    if trailing > 0:
        shape = builder.ints([*b, *[1] * trailing], "shape")
        node.replace_input_with(1, _ahead(builder, node, "Reshape", node.inputs[1], shape))


def _ahead(builder: Builder, node: ir.Node, op_type: str, *inputs: ir.Value | None) -> ir.Value:
    """A helper node inserted before a node that stays."""
    from npukit.frontends.onnx.fold_constants import fold_node
    from npukit.frontends.onnx.infer_shapes import infer_node
    from npukit.frontends.onnx.rewrite import add_constant

    value: ir.Value = builder.op(op_type, *inputs)
    helper = builder.nodes.pop()
    builder.graph.insert_before(node, helper)
    infer_node(helper)
    folded = fold_node(helper)
    if folded is not None:
        builder.graph.remove(helper, safe=True)
        return add_constant(builder.graph, builder.names, folded[0], f"{value.name}_value")
    return value


@upgrades("PRelu", before=7)
def prelu_channels(builder: Builder, node: ir.Node) -> None:
    """A slope of shape [C] meant one value a channel."""
    slope, rank = need_shape(node.inputs[1]), len(need_shape(node.inputs[0]))
    if len(slope) == 1 and slope[0] != 1 and rank > 2:
        shape = builder.ints([slope[0], *[1] * (rank - 2)], "shape")
        node.replace_input_with(1, _ahead(builder, node, "Reshape", node.inputs[1], shape))


@upgrades("Gemm", before=7)
def gemm_broadcast(builder: Builder, node: ir.Node) -> None:
    """C broadcasts by itself."""
    _pop(node, "broadcast")


# --- ops that were replaced --------------------------------------------------------------------------------------


@upgrades("Scatter", before=NEWEST + 1)
def scatter(builder: Builder, node: ir.Node) -> Values:
    """Scatter is ScatterElements."""
    return [builder.op("ScatterElements", *node.inputs, axis=attribute(node, "axis", 0))]


@upgrades("Scan", before=9)
def scan_8(builder: Builder, node: ir.Node) -> None:
    """Scan-8 had a batch dimension and sequence lengths."""
    raise Unsupported("the Scan of opset 8 runs over batches; export with opset 9 or newer")


@upgrades("Upsample", before=NEWEST + 1)
def upsample(builder: Builder, node: ir.Node) -> Values:
    """Upsample is Resize, asymmetric, floor."""
    rank = len(need_shape(node.inputs[0]))
    if version_of(node) < 7:
        scales = [1.0, 1.0, attribute(node, "height_scale"), attribute(node, "width_scale")]
        scale = builder.const(np.asarray(scales, np.float32), "scales")
    elif version_of(node) < 9:
        scale = builder.const(np.asarray(attribute(node, "scales"), np.float32), "scales")
    else:
        scale = node.inputs[1]  # type: ignore[assignment]
    if constant(scale) is not None and constant(scale).size != rank:  # type: ignore[union-attr]
        raise Unsupported("scales do not match the rank")
    mode = attribute(node, "mode", "nearest")
    return [
        builder.op(
            "Resize",
            node.inputs[0],
            None,
            scale,
            mode="nearest" if mode == "nearest" else "linear",
            coordinate_transformation_mode="asymmetric",
            nearest_mode="floor",
        )
    ]


@upgrades("Resize", before=11)
def resize_10(builder: Builder, node: ir.Node) -> Values:
    """Resize-10 is asymmetric; nearest takes the floor where it enlarges and the ceiling where it shrinks (as ORT)."""
    scales = constant(node.inputs[1])
    mode = attribute(node, "mode", "nearest")
    attributes = {"mode": mode, "coordinate_transformation_mode": "asymmetric"}
    if mode != "nearest":
        return [builder.op("Resize", node.inputs[0], None, node.inputs[1], **attributes)]
    if scales is None:
        raise Unsupported("scales are not constant")
    value = node.inputs[0]
    for nearest, part in (("floor", np.maximum(scales, 1)), ("ceil", np.minimum(scales, 1))):
        if np.any(part != 1) or (nearest == "floor" and np.all(scales == 1)):
            scale = builder.const(part.astype(np.float32), "scales")
            value = builder.op("Resize", value, None, scale, nearest_mode=nearest, **attributes)
    return [value]


@upgrades("Resize", before=13)
def resize_11(builder: Builder, node: ir.Node) -> None:
    """Empty roi, scales and sizes become absent; tf_half_pixel_for_nn is half_pixel with a shifted rounding."""
    if attribute(node, "coordinate_transformation_mode") == "tf_half_pixel_for_nn":
        shifted = {"floor": "round_prefer_ceil", "round_prefer_floor": "ceil"}
        nearest = attribute(node, "nearest_mode", "round_prefer_floor")
        if attribute(node, "mode", "nearest") != "nearest" or nearest not in shifted:
            raise Unsupported("coordinate_transformation_mode tf_half_pixel_for_nn with this rounding")
        _set(node, coordinate_transformation_mode="half_pixel", nearest_mode=shifted[nearest])


@upgrades("BatchNormalization", before=14)
def batch_normalization(builder: Builder, node: ir.Node) -> Values | None:
    """Inference only; spatial=0 (statistics for each position) becomes arithmetic."""
    spatial = _pop(node, "spatial", 1)
    _pop(node, "is_test")
    if any(output_used(node, i) for i in range(1, len(node.outputs))):
        raise Unsupported(
            "the statistics outputs of training are used",
        )
    if spatial:
        if len(node.outputs) > 1:
            x, scale, bias, mean, var = node.inputs[:5]
            keep: dict[str, Any] = {k: node.attributes[k] for k in ("epsilon", "momentum") if k in node.attributes}
            return [builder.op("BatchNormalization", x, scale, bias, mean, var, **keep)]
        return None
    x, scale, bias, mean, var = node.inputs[:5]
    if var is None:
        raise Unsupported("no variance")
    epsilon = builder.scalar(attribute(node, "epsilon", 1e-5), var, "epsilon")
    deviation = builder.op("Sqrt", builder.op("Add", var, epsilon))
    normal = builder.op("Div", builder.op("Sub", x, mean), deviation)
    return [builder.op("Add", builder.op("Mul", normal, scale), bias)]


@upgrades("GroupNormalization", before=21)
def group_normalization(builder: Builder, node: ir.Node) -> Values:
    """Scale and bias had one value a group; they have one a channel now."""
    x, scale, bias = node.inputs[:3]
    groups = attribute(node, "num_groups")
    channels = need_shape(x)[1]
    wide = []
    for value in (scale, bias):
        column = builder.op("Reshape", value, builder.ints([groups, 1], "column"))
        spread = builder.op("Expand", column, builder.ints([groups, channels // groups], "spread"))
        wide.append(builder.op("Reshape", spread, builder.ints([channels], "channels")))
    attributes: dict[str, Any] = {k: v for k, v in node.attributes.items() if k in ("epsilon", "num_groups")}
    return [builder.op("GroupNormalization", x, *wide, **attributes)]


__all__ = ["UPGRADES", "Upgrade", "is_ai_onnx", "upgrade_node", "upgrades"]

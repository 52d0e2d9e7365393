# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""Puts an I/O config into a model: ONNX ops at its border turn what is given into what the model takes.

Only ops whose form is the same from opset 11 on are used, so that a source model can be changed as it was read.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir

from npukit.errors import Fault, UsageError, nearest
from npukit.frontends.onnx.io_config import YUV, IoConfig, IoEntry
from npukit.frontends.onnx.rewrite import Builder, Names, constant, shape_of
from npukit.qnn.names import source_name

FIRST_OPSET = 11
"""The oldest opset of a model that can be changed as it was read."""

# Where each channel lies, as places in R, G, B, A. ARGB32 is a word of 32 bits, whose bytes lie as B, G, R, A in memory
# on the little-endian processors of phones (SDK page "Image Preprocessing").
_PLACES = {"RGB": "RGB", "BGR": "BGR", "RGBA": "RGBA", "ARGB32": "BGRA"}
_KR, _KB = 0.299, 0.114  # BT.601: the shares of red and blue in luma
# Zero of luma, extent of luma, extent of chroma (full as JFIF has it).
_RANGES = {"full": (0.0, 255.0, 255.0), "limited": (16.0, 219.0, 224.0)}


def customize_io(model: ir.Model, config: IoConfig) -> None:
    """Change inputs and outputs of a model as `config` says; they keep their names.

    Args:
        model: changed in place; its inputs have static shapes.
        config: what is wanted.

    Raises:
        UsageError: an entry names nothing, contradicts the model or lacks its encoding; all are listed.
    """
    graph = model.graph
    faults: list[Fault] = []
    for entry in config.entries:
        sides = {False: graph.inputs, True: graph.outputs}
        wanted = [is_output for is_output in sides if entry.output in (None, is_output)]
        names = [value.name or "" for is_output in wanted for value in sides[is_output]]
        found = [
            (is_output, value)
            for is_output in wanted
            for value in sides[is_output]
            if value.name == source_name(entry.name, names)
        ]
        if not found:
            kind = {None: "input or output", False: "input", True: "output"}[entry.output]
            faults.append(Fault(f"the model has no such {kind}", repr(entry.name), nearest(entry.name, names)))
            continue
        is_output, value = found[0]
        wrong = _misfits(entry, value, is_output)
        faults += [Fault(text, repr(entry.name), hint) for text, hint in wrong]
        if not wrong:
            (_output if is_output else _input)(graph, value, entry)
    if faults:
        raise UsageError("the I/O config does not fit the model", where="--io-config", faults=faults)


def _misfits(entry: IoEntry, value: ir.Value, is_output: bool) -> list[tuple[str, str]]:
    """What is wrong with an entry for this input or output: sentences and hints."""
    dtype = None if value.dtype is None else value.dtype.numpy().name
    rank = None if value.shape is None else len(value.shape)
    quantized = entry.dtype in ("uint8", "int8") and dtype not in ("uint8", "int8")
    own = _codes(value, is_output)
    shape = shape_of(value)
    channels = len(entry.source_color or "")
    checks = [
        (
            entry.source_dtype not in (None, dtype) and dtype is not None,
            f"is {dtype} in the model, not {entry.source_dtype}",
            "",
        ),
        (
            rank is not None and entry.source_layout not in (None, "NONTRIVIAL") and len(entry.source_layout) != rank,
            f"has {rank} dimensions in the model, the layout {entry.source_layout} has others",
            "",
        ),
        (
            entry.dtype is not None and dtype not in (None, "float32", "float16", "uint8", "int8"),
            f"is {dtype}, which cannot become {entry.dtype}",
            "leave its data type out",
        ),
        (
            dtype in ("uint8", "int8") and entry.dtype not in (None, dtype),
            f"holds codes ({dtype}), which cannot become {entry.dtype}",
            "leave its data type out",
        ),
        (
            quantized and entry.scale is None and own is None,
            f"{entry.dtype} needs Scale and Offset, because the model is float there",
            "QuantParams: {Scale: 0.0078, Offset: -128}; real = Scale * (code + Offset)",
        ),
        (
            quantized and own is not None and own.dtype is not None and own.dtype.numpy().name != entry.dtype,
            f"the model's own codes are {'' if own is None or own.dtype is None else own.dtype.numpy().name}",
            "",
        ),
        (
            bool(entry.color) and (shape is None or len(shape) != 4 or entry.source_layout not in ("NCHW", "NHWC")),
            "a Color Conversion needs an input of four dimensions with its source layout",
            "Src Model Parameters: {Layout: NCHW}",
        ),
        (
            bool(entry.color)
            and shape is not None
            and len(shape) == 4
            and entry.source_layout in ("NCHW", "NHWC")
            and shape[entry.source_layout.index("C")] != (4 if channels > 4 else channels),
            f"has no {4 if channels > 4 else channels} channels in the layout {entry.source_layout}",
            "",
        ),
    ]
    return [(text, hint) for wrong, text, hint in checks if wrong]


def _codes(value: ir.Value, is_output: bool) -> ir.Value | None:
    """The codes next to a float input or output of a quantized model: what its one Q makes, or its DQ takes."""
    if value.dtype in (ir.DataType.UINT8, ir.DataType.INT8):
        return value
    if is_output:
        node = value.producer()
        return node.inputs[0] if node is not None and node.op_type == "DequantizeLinear" else None
    users = list(value.consumers())
    one = len(users) == 1 and users[0].op_type == "QuantizeLinear" and not value.is_graph_output()
    return users[0].outputs[0] if one else None


class _Border:
    """Builds the ops between a model and one input or output."""

    def __init__(self, graph: ir.Graph, name: str) -> None:
        anchor = ir.Node("", "Identity", [], name=f"{name}/io")
        self.build = Builder(graph, Names(graph), anchor)

    def op(self, op_type: str, *inputs: ir.Value, **attributes: Any) -> ir.Value:
        value: ir.Value = self.build.op(op_type, *inputs, **attributes)
        value.producer().version = None  # type: ignore[union-attr]  # the model's own: the form is the same in all
        return value

    def const(self, array: object, dtype: type = np.float32) -> ir.Value:
        return self.build.const(np.asarray(array, dtype))


def _input(graph: ir.Graph, old: ir.Value, entry: IoEntry) -> None:
    name, shape, dtype = old.name or "", shape_of(old), old.dtype
    codes = _codes(old, False) if entry.dtype in ("uint8", "int8") and not entry.color else None
    new_dtype = ir.DataType.from_numpy(np.dtype(entry.dtype)) if entry.dtype else dtype
    new = ir.Value(name=name, type=None if new_dtype is None else ir.TensorType(new_dtype))
    old.name = f"{name}__model"
    border = _Border(graph, name)
    value, final = new, old
    if codes is not None:  # the model quantizes it itself: the codes go in behind that
        _override(codes, entry, border)
        final, codes_shape = codes, codes.shape
        codes.shape = old.shape if codes_shape is None else codes_shape
    elif entry.dtype in ("uint8", "int8") and dtype not in (None, new_dtype):
        if not entry.color:
            value = border.op("DequantizeLinear", value, *_linear(entry, border))
    elif new_dtype != dtype and dtype is not None:
        value = border.op("Cast", value, to=int(dtype))
    if shape is not None:
        new.shape = ir.Shape(shape)
    if entry.color:
        assert shape is not None
        value = _color(border, value, new, entry, shape, dtype or ir.DataType.FLOAT)
    elif entry.turned:
        value = _turn(border, value, str(entry.layout), str(entry.source_layout))
        if shape is not None:
            new.shape = ir.Shape([shape[str(entry.source_layout).index(axis)] for axis in str(entry.layout)])
    graph.inputs[list(graph.inputs).index(old)] = new
    for user, index in tuple(final.uses()):
        user.replace_input_with(index, value)
    for i, output in enumerate(graph.outputs):
        if output is final:
            graph.outputs[i] = border.op("Identity", value)
    if border.build.nodes:
        graph.insert_before(graph[0], border.build.nodes) if len(graph) else graph.extend(border.build.nodes)
    if codes is not None:
        producer = codes.producer()
        if producer is not None:
            graph.remove(producer, safe=True)


def _output(graph: ir.Graph, old: ir.Value, entry: IoEntry) -> None:
    name, dtype = old.name or "", old.dtype
    border = _Border(graph, name)
    new_dtype = ir.DataType.from_numpy(np.dtype(entry.dtype)) if entry.dtype else dtype
    value = old
    codes = _codes(old, True) if entry.dtype in ("uint8", "int8") else None
    if codes is not None:
        _override(codes, entry, border)
        value = codes
    if entry.turned:
        value = _turn(border, value, str(entry.source_layout), str(entry.layout))
    if codes is None and entry.dtype in ("uint8", "int8") and dtype != new_dtype:
        value = border.op("QuantizeLinear", value, *_linear(entry, border))
    elif codes is None and new_dtype != dtype and new_dtype is not None:
        value = border.op("Cast", value, to=int(new_dtype))
    if value is old:
        return
    if value is codes:
        value = border.op("Identity", value)
    old.name, value.name = f"{name}__model", name
    if new_dtype is not None:
        value.dtype = new_dtype
    shape = shape_of(old)
    if shape is not None:
        turned = [shape[str(entry.source_layout).index(axis)] for axis in str(entry.layout)] if entry.turned else shape
        value.shape = ir.Shape(turned)
    graph.outputs[list(graph.outputs).index(old)] = value
    graph.extend(border.build.nodes)


def _linear(entry: IoEntry, border: _Border) -> tuple[ir.Value, ir.Value]:
    """Scale and zero point of an entry; ONNX's zero point is minus QNN's offset, within the codes' range."""
    assert entry.dtype is not None
    assert entry.offset is not None
    limits = np.iinfo(entry.dtype)
    if not limits.min <= -entry.offset <= limits.max:
        raise UsageError(
            f"Offset is {entry.offset}: code {-entry.offset} would be the zero of {entry.dtype}",
            where=repr(entry.name), hint=f"real = Scale * (code + Offset): {-int(limits.max)} to {-int(limits.min)}",
        )  # fmt: skip
    return border.const(entry.scale), border.const(-entry.offset, np.dtype(entry.dtype).type)


def _override(codes: ir.Value, entry: IoEntry, border: _Border) -> None:
    """Give the Q and DQ nodes around a quantized model's codes the scale and offset of the entry, if it has them."""
    if entry.scale is None:
        return
    linear = _linear(entry, border)
    for node in {codes.producer(), *codes.consumers()}:
        if node is not None and node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            for i, value in enumerate(linear, 1):
                old = node.inputs[i] if i < len(node.inputs) else None
                like = None if old is None else constant(old)
                node.resize_inputs(max(len(node.inputs), i + 1))
                node.replace_input_with(i, value if like is None else border.const(_same(value, like), like.dtype.type))


def _same(value: ir.Value, like: np.ndarray) -> np.ndarray:
    array = constant(value)
    assert array is not None
    return array.reshape(like.shape)


def _turn(border: _Border, value: ir.Value, have: str, want: str) -> ir.Value:
    return border.op("Transpose", value, perm=[have.index(axis) for axis in want])


def _color(
    border: _Border, value: ir.Value, new: ir.Value, entry: IoEntry, shape: tuple[int, ...], dtype: ir.DataType
) -> ir.Value:
    """The model's input, in its layout, from pixel values 0 to 255 in another colour order; sets the shape of `new`.

    Quantized: the pixels are codes, of which Scale and Offset make the model's numbers behind the conversion.
    """
    assert entry.source_layout is not None
    assert entry.source_color is not None
    assert entry.color is not None
    batch, height, width = (shape[entry.source_layout.index(axis)] for axis in "NHW")
    pixels = value
    if entry.dtype in ("uint8", "int8"):
        pixels = border.op("DequantizeLinear", pixels, border.const(1.0), border.const(0, np.dtype(entry.dtype).type))
    if entry.color in YUV:
        new.shape = ir.Shape([batch, height * width * 3 // 2])
        pixels = _rgb(border, pixels, entry, (batch, height, width))
        have = "RGB"
    else:
        have = _PLACES[entry.color]
        held = entry.layout or entry.source_layout
        new.shape = ir.Shape([{"N": batch, "C": len(have), "H": height, "W": width}[axis] for axis in held])
        if held != "NHWC":
            pixels = _turn(border, pixels, held, "NHWC")
    want = _PLACES[entry.source_color]
    if have != want:
        if "A" in want and "A" not in have:
            raise UsageError(
                f"{entry.color} has no alpha, which the model takes", where=repr(entry.name), hint="RGBA or ARGB32"
            )
        pixels = border.op("Gather", pixels, border.const([have.index(c) for c in want], np.int64), axis=3)
    if entry.scale is not None:
        pixels = border.op("Mul", border.op("Add", pixels, border.const(entry.offset)), border.const(entry.scale))
    if entry.dtype in ("uint8", "int8") and dtype != ir.DataType.FLOAT:
        pixels = border.op("Cast", pixels, to=int(dtype))
    return pixels if entry.source_layout == "NHWC" else _turn(border, pixels, "NHWC", entry.source_layout)


def _rgb(border: _Border, frame: ir.Value, entry: IoEntry, size: tuple[int, int, int]) -> ir.Value:
    """RGB [N, H, W, 3], 0 to 255, of flat NV12 or NV21 frames by BT.601; a pair of chroma serves 2 by 2 pixels."""
    batch, height, width = size
    if height % 2 or width % 2:
        raise UsageError(f"{entry.color} needs an even height and width, the input has {height} x {width}")
    zero, luma, chroma = _RANGES[str(entry.color_range)]

    def shaped(value: ir.Value, *dims: int) -> ir.Value:
        return border.op("Reshape", value, border.const([batch, *dims], np.int64))

    def part(begin: int, end: int) -> ir.Value:
        return border.op("Slice", frame, *(border.const([at], np.int64) for at in (begin, end, 1)))

    y, pairs = part(0, height * width), part(height * width, height * width * 3 // 2)
    # Each pair is repeated twice along both axes of the picture.
    pairs = shaped(pairs, height // 2, 1, width // 2, 1, 2)
    pairs = border.op("Expand", pairs, border.const([batch, height // 2, 2, width // 2, 2, 2], np.int64))
    y, pairs = shaped(y, height, width, 1), shaped(pairs, height, width, 2)
    if entry.color == "NV21":
        pairs = border.op("Gather", pairs, border.const([1, 0], np.int64), axis=3)
    # One matrix from (y, cb, cr) to (r, g, b), both 0 to 255 in the full range.
    kg = 1 - _KR - _KB
    matrix = np.array(
        [
            [1, 1, 1],
            [0, -2 * (1 - _KB) * _KB / kg, 2 * (1 - _KB)],
            [2 * (1 - _KR), -2 * (1 - _KR) * _KR / kg, 0],
        ]
    ) * (255.0 / np.array([[luma], [chroma], [chroma]]))
    yuv = border.op("Concat", y, pairs, axis=3)
    yuv = border.op("Sub", yuv, border.const([zero, 128.0, 128.0]))
    rgb = border.op("MatMul", yuv, border.const(matrix))
    return border.op("Clip", rgb, border.const(0.0), border.const(255.0))

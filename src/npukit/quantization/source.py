# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""What a source model says about its values: who makes and reads them. Encodings files speak in its names."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import onnx_ir as ir

from npukit.errors import ModelError
from npukit.frontends.onnx.strip_quantization import SourceEncoding
from npukit.qnn.graph import Array
from npukit.quantization.entry import Entry

# Ops whose output holds the elements of their first input unchanged.
MOVES = frozenset(
    (
        "Reshape",
        "Flatten",
        "Squeeze",
        "Unsqueeze",
        "Transpose",
        "Identity",
        "Dropout",
        "Slice",
        "Split",
        "Expand",
        "Tile",
    )
    + ("DepthToSpace", "SpaceToDepth", "MaxPool", "Gather")
)


@dataclass(frozen=True, eq=False)
class Node:
    """One node of the source, in names."""

    name: str
    op: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class Source:
    """The values of a source model.

    Attributes:
        makers: value -> the node that computes it.
        readers: value -> the nodes that read it.
        constants: value -> what gives its contents; initializers and outputs of Constant nodes.
        shapes: their shapes, and those of constants behind a DequantizeLinear.
        outputs: names of the graph's outputs.
        axes: constant -> its channel axis and the axis that blocks run along, by the op that reads it.
        names: every value's name.
    """

    makers: dict[str, Node] = field(default_factory=dict)
    readers: dict[str, list[Node]] = field(default_factory=dict)
    constants: dict[str, Callable[[], Array]] = field(default_factory=dict)
    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)
    outputs: frozenset[str] = frozenset()
    axes: dict[str, tuple[int, int]] = field(default_factory=dict)
    names: frozenset[str] = frozenset()

    def neighbours(self, name: str) -> dict[str, str]:
        """`name` and the values before and behind it that hold its elements, nearest first: value -> the op next to it.

        The op is that which leaves `name` on the way; empty for `name` itself.
        """
        found = {name: ""}
        queue = [name]
        for value in queue:
            maker = self.makers.get(value)
            steps = [(maker.inputs[0], maker.op)] if maker is not None and maker.op in MOVES and maker.inputs else []
            for reader in self.readers.get(value, []):
                if reader.op in MOVES and reader.inputs[:1] == (value,):
                    steps += [(output, reader.op) for output in reader.outputs if output]
            for other, op in steps:
                if other and other not in found:
                    found[other] = found[value] or op
                    queue.append(other)
        return found

    def behind(self, name: str) -> Iterator[str]:
        """The values that depend on `name`, nearest first."""
        seen = {name}
        queue = [name]
        for value in queue:
            for reader in self.readers.get(value, []):
                for output in reader.outputs:
                    if output and output not in seen:
                        seen.add(output)
                        queue.append(output)
                        yield output


def read_source(path: Path | str) -> Source:
    """The facts of an ONNX file.

    Raises:
        ModelError: it cannot be read.
    """
    try:
        return source_of(ir.load(path))
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise ModelError(f"the model cannot be read: {error}", where=str(path)) from None
    except Exception as error:  # noqa: BLE001 - protobuf's DecodeError has no base of its own
        raise ModelError(f"the model is no ONNX file: {error}", where=str(path)) from None


def source_of(model: ir.Model) -> Source:
    """The facts of a model as it was loaded; before `lower`, which consumes it."""
    graph = model.graph
    makers: dict[str, Node] = {}
    readers: dict[str, list[Node]] = {}
    constants: dict[str, Callable[[], Array]] = {}
    shapes: dict[str, tuple[int, ...]] = {}
    axes: dict[str, tuple[int, int]] = {}
    for name, value in graph.initializers.items():
        if value.const_value is not None:
            constants[name] = value.const_value.numpy
            shapes[name] = tuple(value.const_value.shape.numpy())
    for raw in graph:
        node = Node(raw.name or "", raw.op_type, _names(raw.inputs), _names(raw.outputs))
        for output in node.outputs:
            makers[output] = node
        for value_name in dict.fromkeys(v for v in node.inputs if v):
            readers.setdefault(value_name, []).append(node)
        tensor = raw.attributes.get("value") if raw.op_type == "Constant" else None
        if tensor is not None and isinstance(tensor.value, ir.TensorProtocol):
            constants[node.outputs[0]] = tensor.value.numpy
            shapes[node.outputs[0]] = tuple(tensor.value.shape.numpy())
        if node.op == "DequantizeLinear" and node.inputs[0] in shapes:
            shapes[node.outputs[0]] = shapes[node.inputs[0]]
        if len(node.inputs) > 1:
            found = _axes(raw, len(shapes.get(node.inputs[1], ())))
            if found is not None:
                axes.setdefault(node.inputs[1], found)
    everything = {*makers, *readers, *constants, *_names(graph.inputs)} - {""}
    return Source(makers, readers, constants, shapes, frozenset(_names(graph.outputs)), axes, frozenset(everything))


def _names(values: Iterable[ir.Value | None]) -> tuple[str, ...]:
    return tuple((value.name or "") if value is not None else "" for value in values)


def _axes(node: ir.Node, rank: int) -> tuple[int, int] | None:
    """Output channels and input channels of a weight (input 1), by ONNX's definition of the op."""
    if rank < 2:
        return None
    if node.op_type == "Conv":
        return 0, 1
    if node.op_type == "ConvTranspose":
        return 1, 0
    if node.op_type == "Gemm":
        return (0, 1) if node.attributes.get_int("transB", 0) else (1, 0)
    if node.op_type == "MatMul":
        return rank - 1, rank - 2
    return None


def own_entries(encodings: Iterable[SourceEncoding]) -> list[Entry]:
    """The encodings of a QDQ model as entries; 32-bit biases follow from what they are added to and are none."""
    found = []
    for one in encodings:
        signed, bits = not one.dtype.startswith("u"), int(one.dtype.removeprefix("u").removeprefix("int"))
        if bits > 16:
            continue
        found.append(
            Entry(
                one.name,
                "param" if one.constant else "activation",
                bits,
                scales=one.scales,
                offsets=tuple(-point for point in one.zero_points),
                signed=signed,
                symmetric=signed and not any(one.zero_points),
                axis=one.axis,
            )
        )
    return found


def with_axes(entries: Iterable[Entry], source: Source) -> list[Entry]:
    """The entries with what only the model knows: kinds and, of per-channel entries, the axes."""
    return [_with_axes(entry, source) for entry in entries]


def _with_axes(entry: Entry, source: Source) -> Entry:
    shape = source.shapes.get(entry.name)
    if shape is None:
        known = entry.name in source.names and not (entry.per_channel or entry.signed)
        return replace(entry, kind="activation") if known else entry
    entry = replace(entry, kind="param") if entry.per_channel or entry.signed else entry
    if not entry.per_channel or entry.axis is not None:
        return entry
    channel, along = source.axes.get(entry.name, (0, 0))
    blocks = entry.blocks
    count = blocks.channels or shape[channel] if blocks is not None else len(entry.scales)
    if not shape or shape[channel] != count:
        return entry  # its axis stays open; matching says what is wrong
    if blocks is not None:
        blocks = replace(blocks, axis=along, rank=len(shape), channels=count)
    return replace(entry, axis=channel, blocks=blocks)

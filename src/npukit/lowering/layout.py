# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""The layout pass: what order-tracking while lowering leaves is cleaned here.

Consecutive Transposes become one (or none), consecutive Reshapes become one, ops that nothing reads go. A Transpose
in front of a flattening FullyConnected goes into the columns of its weight, a Batchnorm behind a convolution into
the convolution's kernel and bias, an added row behind a FullyConnected without bias into that bias. What a backend's
compiler takes apart wrongly is put in another form.
With `nhwc_io`, a Transpose that only turns an input or output of the graph is dropped and the tensor's `held`
says so.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from npukit.qnn.graph import DType, Graph, Op, Param, Tensor, TensorKind

if TYPE_CHECKING:
    from npukit.lowering.emitter import Emitter


def clean(graph: Graph, *, nhwc_io: bool, emitter: Emitter | None = None) -> Graph:
    """Apply all clean-ups until nothing changes; the graph's inputs and outputs keep their order."""
    while (
        _merge(graph)
        or _fold_batchnorm(graph)
        or _fold_bias(graph)
        or _fold_flatten(graph)
        or (nhwc_io and _turn_io(graph))
        or _drop_dead(graph)
    ):
        pass
    if emitter is not None and "fully_connected_between_reshapes_fails" in emitter.quirks:
        _convolve(graph)
    return graph


def _convolve(graph: Graph) -> None:
    """Reshape -> FullyConnected -> Reshape back to the first shape, of floats: a convolution of 1 by 1 instead.

    FullyConnected could flatten its input by itself, but HTP computes that wrongly once it is quantized.
    """
    makers = {id(tensor): op for op in graph.ops for tensor in op.outputs}
    readers = graph.readers()
    for behind in graph.ops:
        product = makers.get(id(behind.inputs[0])) if behind.type == "Reshape" else None
        if product is None or product.type != "FullyConnected":
            continue
        flat, weight, bias = product.inputs
        before = makers.get(id(flat))
        source = before.inputs[0] if before is not None and before.type == "Reshape" else None
        if flat is None or weight is None or weight.data is None or weight.encoding is not None or source is None:
            continue
        if source.shape[-1] == weight.shape[1] or _unpadded(source.shape) != _unpadded(behind.outputs[0].shape):
            continue
        made = product.outputs[0]
        if len(readers[id(made)]) > 1 or made in graph.outputs:
            continue
        (rows, inputs), outputs = flat.shape, weight.shape[0]
        kernel = replace(
            weight, name=_free(graph, f"{weight.name}_kernel"), shape=(1, 1, inputs, outputs), held=None,
            data=weight.data.T.reshape(1, 1, inputs, outputs),
        )  # fmt: skip
        pixels = Tensor(_free(graph, f"{flat.name}_pixels"), flat.dtype, (1, 1, rows, inputs))
        made.shape, made.held = (1, 1, rows, outputs), None
        turn = Op(_free(graph, f"{product.name}_pixels"), "Reshape", [source], [pixels], origin=product.origin)
        graph.ops.insert(graph.ops.index(product), turn)
        product.type, product.inputs = "Conv2d", [pixels, kernel, bias]
        product.params = dict(_PLAIN_CONVOLUTION)
    _drop_dead(graph)


_PLAIN_CONVOLUTION = {
    "stride": Param(DType.UINT_32, np.ones(2, np.uint32)),
    "pad_amount": Param(DType.UINT_32, np.zeros((2, 2), np.uint32)),
    "dilation": Param(DType.UINT_32, np.ones(2, np.uint32)),
    "group": Param(DType.UINT_32, 1),
}


def _unpadded(shape: tuple[int, ...]) -> tuple[int, ...]:
    """A shape without its leading ones."""
    return shape[next((i for i, size in enumerate(shape) if size != 1), len(shape)) :]


def _fold_batchnorm(graph: Graph) -> bool:
    """Conv -> Batchnorm, all float constants: the kernel is scaled per output channel, the bias moved."""
    makers = {id(tensor): op for op in graph.ops for tensor in op.outputs}
    readers = graph.readers()
    outputs = {id(tensor) for tensor in graph.outputs}
    changed = False
    for norm in [op for op in graph.ops if op.type == "Batchnorm"]:
        source, scale, shift = norm.inputs
        conv = makers.get(id(source))
        if conv is None or source is None or conv.type not in _SCALED_CONVOLUTIONS:
            continue
        if len(readers[id(source)]) > 1 or id(source) in outputs:
            continue
        kernel, bias = conv.inputs[1], conv.inputs[2]
        parts = [kernel, bias, scale, shift]
        if any(t is None or t.data is None or t.encoding is not None for t in parts):
            continue
        assert kernel is not None and bias is not None and scale is not None and shift is not None  # noqa: PT018
        assert kernel.data is not None and bias.data is not None  # noqa: PT018
        assert scale.data is not None and shift.data is not None  # noqa: PT018
        factor = scale.data
        scaled, moved = _free(graph, f"{kernel.name}_scaled"), _free(graph, f"{bias.name}_moved")
        conv.inputs[1] = replace(kernel, name=scaled, data=kernel.data * factor, held=None)
        conv.inputs[2] = replace(bias, name=moved, data=bias.data * factor + shift.data, held=None)
        conv.outputs[0] = norm.outputs[0]
        conv.origin += norm.origin
        graph.ops.remove(norm)
        changed = True
    return changed


_SCALED_CONVOLUTIONS = frozenset(("Conv2d", "DepthWiseConv2d", "Conv3d"))  # output channels are the kernel's last axis


def _fold_bias(graph: Graph) -> bool:
    """FullyConnected with a zero bias (-> Reshape) -> ElementWiseAdd of one constant row: the row is the bias."""
    makers = {id(tensor): op for op in graph.ops for tensor in op.outputs}
    readers = graph.readers()
    outputs = {id(tensor) for tensor in graph.outputs}
    for add in graph.ops:
        if add.type != "ElementWiseAdd":
            continue
        for source, row in (add.inputs, add.inputs[::-1]):
            chain = _chain_to_product(makers, source)
            if source is None or row is None or not chain or row.data is None or row.encoding is not None:
                continue
            product = chain[-1]
            bias, width = product.inputs[2], source.shape[-1]
            alone = all(len(readers[id(op.outputs[0])]) == 1 and id(op.outputs[0]) not in outputs for op in chain)
            flat = row.data.size == width and row.shape[-1] == width and add.outputs[0].shape == source.shape
            if not alone or not flat or bias is None or bias.data is None or bias.encoding is not None:
                continue
            if bias.data.any() or product.outputs[0].shape[-1] != width:
                continue
            name = row.name if len(readers[id(row)]) == 1 else _free(graph, f"{row.name}_row")  # others add it too
            product.inputs[2] = replace(row, name=name, shape=(width,), data=row.data.reshape(width), held=None)
            chain[0].outputs[0] = add.outputs[0]
            product.origin += add.origin
            graph.ops.remove(add)
            return True
    return False


def _free(graph: Graph, name: str) -> str:
    """`name`, or with a number behind it where a tensor or op has it already: constants may serve several ops."""
    taken = {tensor.name for op in graph.ops for tensor in (*op.inputs, *op.outputs) if tensor is not None}
    taken |= {op.name for op in graph.ops}
    number = 1
    while name in taken:
        name, number = f"{name}_{number}", number + 1
    return name


def _chain_to_product(makers: dict[int, Op], tensor: Tensor | None) -> list[Op]:
    """The ops from the one that makes `tensor` back to a FullyConnected: itself, or a Reshape behind it."""
    op = makers.get(id(tensor))
    if op is not None and op.type == "Reshape" and len(op.inputs) == 1:
        behind = makers.get(id(op.inputs[0]))
        return [op, behind] if behind is not None and behind.type == "FullyConnected" else []
    return [op] if op is not None and op.type == "FullyConnected" else []


def _fold_flatten(graph: Graph) -> bool:
    """Transpose -> Reshape to [N, K] -> FullyConnected: the weight's columns take the order instead."""
    makers = {id(tensor): op for op in graph.ops for tensor in op.outputs}
    readers = graph.readers()
    for op in graph.ops:
        weight = op.inputs[1] if op.type == "FullyConnected" else None
        flat = makers.get(id(op.inputs[0])) if weight is not None else None
        if weight is None or weight.data is None or flat is None or flat.type != "Reshape" or len(flat.inputs) != 1:
            continue
        turned = flat.inputs[0]
        turn = makers.get(id(turned))
        if turned is None or turn is None or turn.type != "Transpose" or _perm(turn)[0] != 0:
            continue
        if flat.outputs[0].shape != (turned.shape[0], weight.shape[1]) or len(readers[id(flat.outputs[0])]) > 1:
            continue
        source = turn.inputs[0]
        assert source is not None
        perm = _perm(turn)
        spread = weight.data.reshape(weight.shape[0], *turned.shape[1:])
        data = spread.transpose([perm.index(axis) for axis in range(len(perm))]).reshape(weight.shape)
        op.inputs[1] = replace(weight, name=_free(graph, f"{weight.name}_columns"), data=data)
        flat.inputs[0] = source
        flat.outputs[0].held = None  # its elements no longer lie in the source's order
        return True
    return False


def _perm(op: Op) -> tuple[int, ...]:
    value = op.params["perm"].value
    assert isinstance(value, np.ndarray)
    return tuple(int(axis) for axis in value)


def _merge(graph: Graph) -> bool:
    """Transpose(Transpose(x)) -> Transpose(x) or x; Reshape(Reshape(x)) -> Reshape(x) or x."""
    makers = {id(tensor): op for op in graph.ops for tensor in op.outputs}
    outputs = {id(tensor) for tensor in graph.outputs}
    changed = False
    for op in graph.ops:
        source = op.inputs[0] if op.inputs else None
        maker = makers.get(id(source))
        if source is None or maker is None or maker.type != op.type:
            continue
        origin = maker.inputs[0]
        assert origin is not None
        if op.type == "Transpose":
            inner, outer = _perm(maker), _perm(op)
            perm = tuple(inner[axis] for axis in outer)
            if perm == tuple(range(len(perm))):
                changed |= _forward(graph, op, origin, outputs)
            else:
                op.inputs[0] = origin
                op.params["perm"] = Param(DType.UINT_32, np.array(perm, np.uint32))
                changed = True
        elif op.type == "Reshape" and len(op.inputs) == 1 and len(maker.inputs) == 1:
            if origin.shape == op.outputs[0].shape and _forward(graph, op, origin, outputs):
                changed = True
            elif op.inputs[0] is not origin:
                op.inputs[0] = origin
                changed = True
    return changed


def _forward(graph: Graph, op: Op, origin: Tensor, outputs: set[int]) -> bool:
    """Let everything that reads op's output read `origin`; a graph output must keep its own tensor."""
    result = op.outputs[0]
    if id(result) in outputs:
        return False
    changed = False
    for reader in graph.ops:
        for index, tensor in enumerate(reader.inputs):
            if tensor is result:
                reader.inputs[index] = origin
                changed = True
    return changed


def _drop_dead(graph: Graph) -> bool:
    needed = {id(tensor) for tensor in graph.outputs}
    kept = []
    for op in reversed(graph.ops):
        if any(id(tensor) in needed for tensor in op.outputs):
            kept.append(op)
            needed.update(id(tensor) for tensor in op.inputs if tensor is not None)
    changed = len(kept) != len(graph.ops)
    graph.ops = kept[::-1]
    return changed


def _turn_io(graph: Graph) -> bool:
    """Drop a Transpose to channels last right behind an input, and one back right before an output."""
    readers = graph.readers()
    for tensor in graph.inputs:
        users = readers.get(id(tensor), [])
        if tensor.held is None or tensor.held.perm is not None or not users:
            continue
        if all(op.type == "Transpose" and _perm(op) == (0, 2, 3, 1) for op in users):
            turned = users[0].outputs[0]
            if any(op.outputs[0] in graph.outputs for op in users):
                continue
            tensor.shape, tensor.held = turned.shape, replace(tensor.held, perm=(0, 2, 3, 1))
            for op in users:
                _forward(graph, op, tensor, set())
            graph.ops = [op for op in graph.ops if op not in users]
            return True
    makers = {id(tensor): op for op in graph.ops for tensor in op.outputs}
    for index, tensor in enumerate(graph.outputs):
        maker = makers.get(id(tensor))
        if maker is None or tensor.held is None or tensor.held.perm is not None or readers.get(id(tensor)):
            continue
        inner = maker.inputs[0] if maker.inputs else None
        if (
            maker.type != "Transpose"
            or _perm(maker) != (0, 3, 1, 2)
            or inner is None
            or inner.kind is not TensorKind.NATIVE
        ):
            continue
        inner.kind = TensorKind.APP_READ
        inner.held = replace(tensor.held, perm=(0, 2, 3, 1))
        inner.name, tensor.name = tensor.name, inner.name
        graph.outputs[index] = inner
        graph.ops.remove(maker)
        return True
    return False

# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""8-bit weights for ONNX Runtime: matrix products with constants become its own forms, the rest stays float32.

Nothing is calibrated: activations are rounded while they are multiplied. Most products become DynamicQuantizeMatMul (a
scale for each output of the weight, one for all of the activation, 8-bit arithmetic: 2 to 3 times as fast as float32).
Where activations reach far beyond their usual size, as between the halves of a gated MLP, one scale for all of them
would cost too much: those become MatMulNBits (blocks of 32 inputs with a scale each, on both sides; no faster than
float32, a quarter of the memory).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    import onnx_ir as ir

BLOCK = 32
"""Inputs that share a scale in MatMulNBits."""
_LEAST = 1 << 12  # numbers of a weight below which it stays float
_DOMAIN = "com.microsoft"


def blocks(weight: npt.NDArray[Any], block: int = BLOCK) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.float32]]:
    """Codes uint8 [N, ceil(K / block), block] and scales float32 [N, ceil(K / block)] of a weight [N, K].

    A code q stands for (q - 128) * scale; a block's largest magnitude has a code 127 from the middle.
    """
    rows, inputs = weight.shape
    count = -(-inputs // block)
    padded = np.zeros((rows, count * block), np.float32)
    padded[:, :inputs] = weight
    values = padded.reshape(rows, count, block)
    scales = np.abs(values).max(axis=2) / np.float32(127)
    safe = np.where(scales > 0, scales, np.float32(1))
    codes = np.rint(values / safe[:, :, None])
    codes += 128
    return codes.astype(np.uint8), scales.astype(np.float32)


def channels(weight: npt.NDArray[Any]) -> tuple[npt.NDArray[np.int8], npt.NDArray[np.float32]]:
    """Codes int8 [K, N] and scales float32 [N] of a weight [N, K], symmetric."""
    scales = np.abs(weight).max(axis=1) / np.float32(127)
    safe = np.where(scales > 0, scales, np.float32(1))
    return np.ascontiguousarray(np.rint(weight / safe[:, None]).astype(np.int8).T), scales.astype(np.float32)


@dataclass(frozen=True)
class Counts:
    """Matrix products with constants: those in 8-bit arithmetic, those in blocks, and those left in float32."""

    dynamic: int
    blocks: int
    left: int


def gated(value: ir.Value) -> bool:
    """Whether a value is the product of two activations: the middle of a gated MLP."""
    node = value.producer()
    return (
        node is not None
        and node.op_type == "Mul"
        and all(given is not None and given.const_value is None for given in node.inputs)
    )


def quantize_weights(model: Path, output: Path, *, fine: Callable[[ir.Value], bool] = gated) -> Counts:
    """Write `model` (.onnx) with 8-bit weights as `output`, its data in `output` + ".data".

    Args:
        model: a float32 model.
        output: the file to write.
        fine: whether a product of this activation is done in blocks.
    """
    import onnx_ir as ir

    loaded = ir.load(model)
    graph = loaded.graph
    dynamic = blocked = left = 0
    for node in list(graph):
        found = _product(node)
        if found is None:
            continue
        value, weight, bias = found
        if weight.size < _LEAST:
            left += 1
            continue
        in_blocks = fine(value)
        _replace(graph, node, value, np.asarray(weight, np.float32), bias, in_blocks=in_blocks)
        dynamic, blocked = dynamic + (not in_blocks), blocked + in_blocks
    loaded.opset_imports[_DOMAIN] = 1
    used = {value.name for node in graph for value in node.inputs if value is not None}
    kept = {value.name for value in graph.outputs}
    for name in list(graph.initializers):
        if name not in used and name not in kept:
            del graph.initializers[name]
    ir.save(loaded, output, external_data=f"{output.name}.data")
    return Counts(dynamic, blocked, left)


def _product(node: ir.Node) -> tuple[Any, npt.NDArray[Any], Any] | None:
    """The activation, the weight [N, K] and the bias of a product with a constant; None for anything else."""
    if node.domain not in ("", "ai.onnx") or node.op_type not in ("Gemm", "MatMul"):
        return None
    first, second = node.inputs[0], node.inputs[1]
    if first is None or second is None or second.const_value is None or first.const_value is not None:
        return None
    weight = second.const_value
    if len(weight.shape) != 2 or weight.dtype.name != "FLOAT":
        return None
    bias = None
    turned = False
    if node.op_type == "Gemm":
        values = {name: node.attributes[name].value for name in node.attributes}
        if values.get("alpha", 1.0) != 1.0 or values.get("beta", 1.0) != 1.0 or values.get("transA", 0):
            return None
        turned = bool(values.get("transB", 0))
        bias = node.inputs[2] if len(node.inputs) > 2 else None
        if bias is not None and (bias.const_value is None or len(bias.const_value.shape) != 1):
            return None
    array = weight.numpy()
    return first, array if turned else array.T, bias


def _replace(
    graph: ir.Graph, node: ir.Node, value: Any, weight: npt.NDArray[np.float32], bias: Any, *, in_blocks: bool
) -> None:
    import onnx_ir as ir

    rows, inputs = weight.shape
    name = node.outputs[0].name or node.name or "product"
    codes, scales = blocks(weight) if in_blocks else channels(weight)
    parts = []
    for suffix, array in (("codes", codes), ("scales", scales.reshape(-1))):
        made = ir.Value(name=f"{name}.{suffix}", const_value=ir.Tensor(array, name=f"{name}.{suffix}"))
        made.shape, made.dtype = ir.Shape(array.shape), ir.DataType.from_numpy(array.dtype)
        graph.initializers[made.name or ""] = made
        parts.append(made)
    op_type, gap, attributes = "DynamicQuantizeMatMul", [None], dict[str, Any]()
    if in_blocks:
        op_type, gap = "MatMulNBits", [None, None]
        attributes = {"K": inputs, "N": rows, "bits": 8, "block_size": BLOCK, "accuracy_level": 4}
    given = [value, *parts] if bias is None else [value, *parts, *gap, bias]
    product = ir.node(op_type, given, attributes, domain=_DOMAIN, num_outputs=1, name=node.name)
    product.outputs[0].name = name
    product.outputs[0].shape, product.outputs[0].type = node.outputs[0].shape, node.outputs[0].type
    graph.insert_before(node, product)
    old = node.outputs[0]
    old.name = f"{name}.float"
    for user, index in list(old.uses()):
        user.replace_input_with(index, product.outputs[0])
    for i, output in enumerate(graph.outputs):
        if output is old:
            graph.outputs[i] = product.outputs[0]
    graph.remove(node)

# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""Constant folding of one node: views and shape arithmetic by numpy, everything else by onnx.reference or ORT."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir

from npukit.frontends.onnx.rewrite import (
    NEWEST,
    Array,
    attribute,
    constant,
    inputs_of,
    is_ai_onnx,
    schema_of,
    shape_of,
    subgraphs_of,
    version_of,
)

log = logging.getLogger(__name__)

# A folded result that is larger than this and larger than what it was made from stays a node.
MAX_BYTES = 16 << 20
# Above this the reference implementation (plain numpy) is too slow; one ORT session is used instead.
MAX_REFERENCE_ELEMENTS = 1 << 16

RANDOM = frozenset(
    {"RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Bernoulli", "Multinomial"}
)
# Quantized weights must stay visible to the lowering; control flow and sequences are resolved elsewhere.
KEPT = frozenset({"QuantizeLinear", "DequantizeLinear", "If", "Loop", "Scan", "SequenceMap"})

Evaluate = Callable[[ir.Node, list[Array]], Array | tuple[Array, ...] | None]


def _axes(array: Array | None, rank: int) -> tuple[int, ...] | None:
    return None if array is None else tuple(int(a) % rank if rank else 0 for a in array.reshape(-1))


def _reshape(node: ir.Node, x: list[Array]) -> Array | None:
    shape = [int(d) for d in x[1].reshape(-1)]
    if not attribute(node, "allowzero", 0):
        if any(d == 0 and i >= x[0].ndim for i, d in enumerate(shape)):
            return None
        shape = [x[0].shape[i] if d == 0 else d for i, d in enumerate(shape)]
    return x[0].reshape(shape)


def _squeeze(node: ir.Node, x: list[Array]) -> Array:
    return x[0].squeeze(_axes(x[1], x[0].ndim)) if len(x) > 1 else x[0].squeeze()


def _unsqueeze(node: ir.Node, x: list[Array]) -> Array:
    return np.expand_dims(x[0], tuple(int(a) for a in x[1].reshape(-1)))


def _transpose(node: ir.Node, x: list[Array]) -> Array:
    return x[0].transpose(attribute(node, "perm"))


def slice_spec(shape: tuple[int, ...], starts: Any, ends: Any, axes: Any, steps: Any) -> tuple[slice, ...]:
    """Numpy slices for ONNX Slice parameters: negative values, out-of-range ends and steps as ONNX defines them."""
    spec = [slice(None)] * len(shape)
    axes = range(len(starts)) if axes is None else axes
    steps = [1] * len(starts) if steps is None else steps
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        axis, step = int(axis) % len(shape), int(step)
        dim, start, end = shape[axis], int(start), int(end)
        start += dim if start < 0 else 0
        end += dim if end < 0 else 0
        if step > 0:
            start, stop = min(max(start, 0), dim), min(max(end, 0), dim)
            spec[axis] = slice(start, stop, step)
        else:
            start, stop = min(max(start, 0), dim - 1), min(max(end, -1), dim - 1)
            spec[axis] = slice(start, None if stop < 0 else stop, step) if dim else slice(None)
    return tuple(spec)


def _slice(node: ir.Node, x: list[Array]) -> Array:
    ends, axes, steps = x[2], x[3] if len(x) > 3 else None, x[4] if len(x) > 4 else None
    return x[0][slice_spec(x[0].shape, x[1], ends, axes, steps)]


def _gather(node: ir.Node, x: list[Array]) -> Array:
    return np.take(x[0], x[1].astype(np.int64), axis=attribute(node, "axis", 0))


def _concat(node: ir.Node, x: list[Array]) -> Array:
    return np.concatenate(x, axis=attribute(node, "axis"))


def _constant_of_shape(node: ir.Node, x: list[Array]) -> Array:
    tensor = attribute(node, "value")
    value = np.zeros((), np.float32) if tensor is None else tensor.numpy().reshape(())
    return np.broadcast_to(value, tuple(int(d) for d in x[0].reshape(-1)))


def _expand(node: ir.Node, x: list[Array]) -> Array:
    return np.broadcast_to(x[0], np.broadcast_shapes(x[0].shape, tuple(int(d) for d in x[1].reshape(-1))))


def _divide(node: ir.Node, x: list[Array]) -> Array | None:
    if x[0].dtype.kind == "f":
        return np.asarray(x[0] / x[1])
    if x[0].dtype.kind not in "iu" or not np.all(x[1]):
        return None
    quotient = np.abs(x[0]) // np.abs(x[1])
    return np.asarray(np.where((x[0] < 0) != (x[1] < 0), -quotient, quotient), dtype=x[0].dtype)


def _range(node: ir.Node, x: list[Array]) -> Array | None:
    if x[0].dtype.kind != "i" or int(x[2].reshape(())) == 0:
        return None
    return np.arange(*(int(v.reshape(())) for v in x)).astype(x[0].dtype)


def _split(node: ir.Node, x: list[Array]) -> tuple[Array, ...]:
    axis = attribute(node, "axis", 0)
    dim = x[0].shape[axis]
    if len(x) > 1:
        sizes = [int(s) for s in x[1].reshape(-1)]
    else:
        count = attribute(node, "num_outputs", len(node.outputs))
        chunk = -(-dim // count)
        sizes = [min(chunk, max(dim - i * chunk, 0)) for i in range(count)]
    return tuple(np.split(x[0], np.cumsum(sizes)[:-1], axis=axis))


def _cast(node: ir.Node, x: list[Array]) -> Array | None:
    to = ir.DataType(attribute(node, "to"))
    source = x[0].dtype
    if to == ir.DataType.STRING or source.kind in "OSU":
        return None
    target = to.numpy()
    if source == target:
        return x[0]
    simple = source.kind in "biu" and target.kind in "biuf" and target.itemsize > 1
    narrow = source in (np.float32, np.float64, np.float16) and target in (np.float32, np.float64, np.float16)
    if simple or narrow or target == np.bool_:
        with np.errstate(over="ignore"):
            return x[0].astype(target)
    return None


def _binary(function: Callable[..., Any]) -> Evaluate:
    def evaluate(node: ir.Node, x: list[Array]) -> Array | None:
        return np.asarray(function(*x)) if len(x) == 2 and x[0].dtype == x[1].dtype else None

    return evaluate


_VIEWS: dict[str, Evaluate] = {
    "Identity": lambda node, x: x[0],
    "Reshape": _reshape,
    "Squeeze": _squeeze,
    "Unsqueeze": _unsqueeze,
    "Transpose": _transpose,
    "Slice": _slice,
    "Expand": _expand,
    "ConstantOfShape": _constant_of_shape,
    "Split": _split,
}
_DIRECT: dict[str, Evaluate] = {
    **_VIEWS,
    "Gather": _gather,
    "Concat": _concat,
    "Div": _divide,
    "Range": _range,
    "Cast": _cast,
    "Add": _binary(np.add),
    "Sub": _binary(np.subtract),
    "Mul": _binary(np.multiply),
    "Equal": _binary(np.equal),
    "Greater": _binary(np.greater),
    "Less": _binary(np.less),
    "And": _binary(np.logical_and),
    "Or": _binary(np.logical_or),
    "Not": lambda node, x: np.logical_not(x[0]),
    "Where": lambda node, x: np.where(x[0], x[1], x[2]) if x[1].dtype == x[2].dtype else None,
}


def fold_node(node: ir.Node) -> list[Array] | None:
    """The node's outputs when they can be computed now, else None.

    Shape and Size need only a static shape; everything else needs constant inputs. Never folds random ops,
    Q/DQ, control flow, or results far larger than their inputs.
    """
    if not node.domain and node.op_type in ("Shape", "Size"):
        shape = shape_of(node.inputs[0])
        if shape is None:
            return None
        if node.op_type == "Size":
            return [np.asarray(int(np.prod(shape, dtype=object)) if shape else 1, np.int64)]
        return [np.asarray(shape[slice(attribute(node, "start", 0), attribute(node, "end"))], np.int64)]
    if node.op_type == "Identity" and node.outputs[0].is_graph_output():
        return None  # what feeds a constant graph output is already in its last form
    if node.op_type in RANDOM or node.op_type in KEPT or subgraphs_of(node):
        return None
    if is_ai_onnx(node, "Dropout") or schema_of(node.domain, node.op_type, version_of(node)) is None:
        return None
    values = inputs_of(node)
    if any(v is not None and v.const_value is None for v in values):
        return None
    if node.domain or not _affordable(node, values):
        return None
    return _evaluate(node, values)


def _held_bytes(value: ir.Value) -> int:
    """Bytes that a constant really takes: a broadcast view repeats its elements without holding them."""
    tensor = value.const_value
    if tensor is None:
        return 0
    if not isinstance(tensor, ir.Tensor) or not isinstance(tensor.raw, np.ndarray):
        return int(tensor.nbytes)
    array = tensor.raw
    held = [int(d) for d, stride in zip(array.shape, array.strides, strict=True) if stride]
    return math.prod(held) * int(array.itemsize)


def _short_range(values: list[ir.Value | None]) -> bool:
    """The length of a Range is in its values, not in any shape."""
    bounds = [constant(v) for v in values]
    if len(bounds) != 3 or any(b is None or b.size != 1 or b.dtype.kind not in "iufV" for b in bounds):
        return False
    start, limit, step = (float(b.reshape(())) for b in bounds if b is not None)
    return step != 0 and (limit - start) / step <= MAX_BYTES / 8


def _affordable(node: ir.Node, values: list[ir.Value | None]) -> bool:
    if node.op_type in _VIEWS and node.op_type not in ("Expand", "ConstantOfShape"):
        return True
    if node.op_type == "Range" and not _short_range(values):
        return False
    made_from = sum(_held_bytes(v) for v in values if v is not None)
    total = 0
    for output in node.outputs:
        shape = shape_of(output)
        if shape is None or output.dtype is None:
            continue  # data-dependent (NonZero, Unique): never larger than the input by more than its rank
        total += int(np.prod(shape, dtype=object)) * max(output.dtype.bitwidth, 8) // 8
    return total <= max(MAX_BYTES, made_from)


def _evaluate(node: ir.Node, values: list[ir.Value | None]) -> list[Array] | None:
    direct = _DIRECT.get(node.op_type)
    if direct is not None and all(v is not None for v in values):
        arrays = [constant(v) for v in values]
        try:
            result = direct(node, arrays)  # type: ignore[arg-type]
        except (ValueError, IndexError, TypeError, OverflowError, KeyError, AttributeError, MemoryError) as error:
            log.debug("%s %r: %s", node.op_type, node.name, error)
            result = None
        if result is not None:
            outputs = list(result) if isinstance(result, tuple) else [result]
            if _fits(node, outputs):
                return outputs
    return _run(node, values)


def _fits(node: ir.Node, outputs: list[Array]) -> bool:
    for value, array in zip(node.outputs, outputs, strict=False):
        if value.dtype is not None and value.dtype != ir.DataType.STRING and array.dtype != value.dtype.numpy():
            return False
        shape = shape_of(value)
        if shape is not None and shape != array.shape:
            return False
    return True


def _run(node: ir.Node, values: list[ir.Value | None]) -> list[Array] | None:
    model = one_node_model(node)
    feeds = {v.name: np.asarray(constant(v), order="C") for v in values if v is not None}
    large = sum(a.size for a in feeds.values()) > MAX_REFERENCE_ELEMENTS
    for run in (_run_ort, _run_reference) if large else (_run_reference, _run_ort):
        try:
            outputs = run(model, feeds)  # type: ignore[arg-type]
        except Exception as error:  # noqa: BLE001 - any failure of an evaluator only means: not folded
            log.debug("%s %r was not folded by %s: %s", node.op_type, node.name, run.__name__, error)
            continue
        if _fits(node, outputs):
            return outputs
    return None


def one_node_model(node: ir.Node) -> onnx.ModelProto:
    """A model that holds only this node, its inputs and outputs as graph inputs and outputs."""
    proto = ir.serde.serialize_node(node)
    inputs = [ir.serde.serialize_value(v) for v in dict.fromkeys(v for v in node.inputs if v is not None)]
    outputs = [ir.serde.serialize_value(v) for v in node.outputs if v.name]
    graph = onnx.helper.make_graph([proto], "fold", inputs, outputs)
    imports = [onnx.helper.make_opsetid(node.domain, version_of(node))]
    if node.domain:
        imports.append(onnx.helper.make_opsetid("", NEWEST))
    return onnx.helper.make_model(graph, opset_imports=imports, ir_version=10)


def _run_reference(model: onnx.ModelProto, feeds: dict[str, Array]) -> list[Array]:
    from onnx.reference import ReferenceEvaluator  # 0.1 s and 12 MB, which most models do not need

    with np.errstate(all="ignore"):
        outputs = ReferenceEvaluator(model).run(None, feeds)
    if any(isinstance(o, list | dict) or o is None for o in outputs):
        raise TypeError("not a tensor")
    return [np.asarray(o) for o in outputs]


def _run_ort(model: onnx.ModelProto, feeds: dict[str, Array]) -> list[Array]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    model.opset_import[0].version = min(model.opset_import[0].version, _ort_opset())
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return [np.asarray(o) for o in session.run(None, feeds)]


def _ort_opset() -> int:
    # ORT reads models up to the opset it was released with; its kernels of older opsets compute the same.
    return 24

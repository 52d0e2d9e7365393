# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""Tensors of more axes than a target takes: they stand for a tensor of fewer axes with the same elements in order.

Such a view is never written to the graph. A Reshape to one makes no op, a Reshape of one is a Reshape of what it
stands for, Transposes and reductions run over merged axes, elementwise ops flat; anything else is refused, so that the
lowering falls to a form over fewer axes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from npukit.lowering.registry import Unsupported
from npukit.qnn.graph import DType, Tensor

if TYPE_CHECKING:
    from npukit.lowering.emitter import Emitter

_PER_ELEMENT = frozenset(
    ("Cast", "Convert", "Quantize", "Dequantize", "Relu", "Sigmoid", "Tanh", "Elu", "Gelu", "Relu6")
)

SPREAD = frozenset(("ElementWiseAdd", "ElementWiseSubtract"))  # see the quirk integer_broadcast_beyond_four_axes_wrong


def merged_shape(shape: Sequence[int], rank: int) -> tuple[int, ...]:
    """The shape with its leading axes merged so that `rank` axes are left."""
    cut = len(shape) - rank + 1
    return (int(np.prod(shape[:cut])), *shape[cut:]) if cut > 1 else tuple(shape)


def emit_beyond(
    e: Emitter, op_type: str, inputs: Sequence[Tensor | None], outputs: Sequence[Tensor], params: dict[str, Any]
) -> Tensor:
    """What `Emitter.emit` does where a tensor has more axes than the targets take. Raises Unsupported."""
    out, x = outputs[0], inputs[0]
    assert x is not None
    if op_type == "Reshape":
        source = e.base(x)
        if source.rank > e.max_rank:  # what a node that failed would have made
            raise Unsupported(f"a tensor of {source.rank} axes")
        if out.rank <= e.max_rank:
            return e.emit("Reshape", [source], [out])
        e.add_view(out, source)
        return out
    if op_type == "Transpose":
        return e.emit("Reshape", [merged_transpose(e, x, params["perm"])], [out])
    if op_type.startswith("Reduce") and out.dtype is x.dtype:
        return e.emit("Reshape", [_reduced(e, op_type, x, [int(axis) for axis in params["axes"]])], [out])
    if op_type == "Concat":
        axis = int(params["axis"])
        ends = int(np.prod(out.shape[:axis])), int(np.prod(out.shape[axis + 1 :]))
        parts = [e.reshape(t, (ends[0], t.shape[axis], ends[1])) for t in inputs if t is not None]
        return e.emit("Reshape", [e.concat(parts, 1)], [out])
    alike = all(t is not None and (t.shape == out.shape or np.prod(t.shape) == 1) for t in inputs)
    if alike and len(outputs) == 1 and (op_type.startswith("ElementWise") or op_type in _PER_ELEMENT):
        low = merged_shape(out.shape, 4)
        flat = [e.reshape(t, low if t.shape == out.shape else (1,)) for t in inputs if t is not None]
        inner = e.emit(op_type, flat, [e.temp(low, out.dtype, out.encoding)], **params)
        return e.emit("Reshape", [inner], [out])
    rank = max(t.rank for t in (*inputs, *outputs) if t is not None)
    raise Unsupported(f"{op_type} over {rank} axes", f"at most {e.max_rank} axes", "backend refused")


def spread(e: Emitter, inputs: Sequence[Tensor | None], out: Tensor) -> list[Tensor | None]:
    """INT_32 operands brought to the result's shape by a product with ones, which broadcasts right."""
    found: list[Tensor | None] = []
    for t in inputs:
        if t is None or t.dtype is not DType.INT_32 or t.shape == out.shape:
            found.append(t)
        elif t.data is not None:
            found.append(e.static(np.broadcast_to(t.data, out.shape).copy(), t.dtype))
        else:
            found.append(e.mul(t, e.static(np.ones(out.shape, np.int32))))
    return found


def _reduced(e: Emitter, op_type: str, x: Tensor, axes: list[int]) -> Tensor:
    """A reduction over fewer axes: neighbours that are all reduced, or all kept, become one."""
    groups: list[tuple[bool, int]] = []
    for axis, size in enumerate(x.shape):
        if groups and groups[-1][0] == (axis in axes):
            groups[-1] = (groups[-1][0], groups[-1][1] * size)
        else:
            groups.append((axis in axes, size))
    low = e.reshape(x, [size for _, size in groups])
    out = e.temp([1 if gone else size for gone, size in groups], x.dtype, x.encoding)
    return e.emit(op_type, [low], [out], axes=[i for i, (gone, _) in enumerate(groups) if gone], keep_dims=True)


def merged_transpose(e: Emitter, x: Tensor, perm: Sequence[int]) -> Tensor:
    """The transpose over fewer axes: axes that stay neighbours become one, axes of size 1 go."""
    groups: list[list[int]] = []
    for axis in (axis for axis in perm if x.shape[axis] != 1):
        if (
            groups
            and all(x.shape[between] == 1 for between in range(groups[-1][-1] + 1, axis))
            and groups[-1][-1] < axis
        ):
            groups[-1].append(axis)
        else:
            groups.append([axis])
    sizes = [int(np.prod([x.shape[axis] for axis in group])) for group in groups]
    by_place = sorted(range(len(groups)), key=lambda i: groups[i][0])

    def direct() -> Tensor:
        if len(groups) > e.max_rank:
            raise Unsupported(f"a Transpose of {len(groups)} axes", f"at most {e.max_rank} axes", "backend refused")
        merged = e.reshape(x, [sizes[i] for i in by_place])
        return e.transpose(merged, [by_place.index(i) for i in range(len(groups))])

    def stepwise() -> Tensor:  # one axis group after another is brought to its place, over four axes
        result, left, done = x, list(by_place), 1
        for i in range(len(groups)):
            at = left.index(i)
            before = int(np.prod([sizes[k] for k in left[:at]]))
            after = int(np.prod([sizes[k] for k in left[at + 1 :]]))
            if before > 1:
                split = e.reshape(result, (done, before, sizes[i], after))
                result = e.transpose(split, (0, 2, 1, 3))
            left.remove(i)
            done *= sizes[i]
        return e.reshape(result, sizes)

    return e.forms(direct, stepwise)

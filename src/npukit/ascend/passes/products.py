# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""Products: Einsum and Gemm as MatMul, float32 operands as float16 where the mode would not narrow them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import onnx_ir as ir

from npukit.ascend.passes.setting import Rewriter, Setting, beyond
from npukit.ascend.rules import FLOAT16_MAX, PRODUCTS
from npukit.frontends.onnx.rewrite import Names, attribute, constant, input_at, is_ai_onnx, need_shape, shape_of


def expand_einsum(model: ir.Model, setting: Setting) -> int:
    """Einsum becomes Transpose, Reshape and MatMul, or Mul where nothing is summed.

    Left alone: what atc takes, an ellipsis, a letter twice in one operand (a diagonal), open shapes.
    """
    names, count = Names(model.graph), 0
    for node in model.graph:
        if not is_ai_onnx(node, "Einsum") or not beyond(model, node, setting, "expand_einsum"):
            continue
        terms, result = _parsed(attribute(node, "equation", ""))
        if terms is None or any(shape_of(value) is None for value in node.inputs):
            continue
        builder = Rewriter(model, names, node)
        value, letters = node.inputs[0], terms[0]
        sizes = {c: d for v, term in zip(node.inputs, terms, strict=True) for c, d in _sizes(v, term)}
        for i, term in enumerate(terms):
            later = result + "".join(terms[i + 1 :])
            if i:
                value, letters = _product(builder, value, letters, node.inputs[i], term, later, sizes)
            else:
                value, letters = _sum_out(builder, value, letters, later)
        builder.put([_ordered(builder, value, letters, result)])
        count += 1
    return count


def _parsed(text: str) -> tuple[list[str] | None, str]:
    """Letters of the operands and of the result; None for what is not handled."""
    left, arrow, result = text.replace(" ", "").partition("->")
    terms = left.split(",")
    if not arrow:
        result = "".join(sorted(c for c in set(left) - {","} if left.count(c) == 1))
    if "." in text or any(len(set(term)) < len(term) for term in terms):
        return None, ""
    return terms, result


def _sizes(value: ir.Value | None, term: str) -> Iterable[tuple[str, int]]:
    return zip(term, need_shape(value), strict=True)


def _ordered(builder: Rewriter, value: ir.Value | None, letters: str, wanted: str) -> ir.Value | None:
    if letters == wanted:
        return value
    transposed: ir.Value = builder.op("Transpose", value, perm=[letters.index(c) for c in wanted])
    return transposed


def _sum_out(builder: Rewriter, value: ir.Value | None, letters: str, later: str) -> tuple[ir.Value | None, str]:
    """Sum over what nobody needs any more."""
    gone = [i for i, c in enumerate(letters) if c not in later]
    if gone:
        value = builder.op("ReduceSum", value, builder.ints(gone, "axes"), keepdims=0)
    return value, "".join(c for c in letters if c in later)


def _product(
    builder: Rewriter, a: ir.Value | None, x: str, b: ir.Value | None, y: str, later: str, sizes: dict[str, int]
) -> tuple[ir.Value, str]:
    """One product of two operands with letters `x` and `y`; letters not in `later` are summed."""
    a, x = _sum_out(builder, a, x, later + y)
    b, y = _sum_out(builder, b, y, later + x)
    batch = "".join(c for c in x if c in y and c in later)
    summed = "".join(c for c in x if c in y and c not in later)
    rows = "".join(c for c in x if c not in y)
    columns = "".join(c for c in y if c not in x)

    def shaped(value: ir.Value | None, letters: str, order: str, shape: list[int]) -> ir.Value | None:
        value = _ordered(builder, value, letters, order)
        if shape == [sizes[c] for c in order]:
            return value
        reshaped: ir.Value = builder.op("Reshape", value, builder.ints(shape, "shape"))
        return reshaped

    def count(letters: str) -> int:
        return int(np.prod([sizes[c] for c in letters], dtype=np.int64))

    outer, made = [sizes[c] for c in batch], batch + rows + columns
    if summed:
        left = shaped(a, x, batch + rows + summed, [*outer, count(rows), count(summed)])
        right = shaped(b, y, batch + summed + columns, [*outer, count(summed), count(columns)])
        product = builder.op("MatMul", left, right)
        shape = [sizes[c] for c in made]
        if shape != [*outer, count(rows), count(columns)]:
            product = builder.op("Reshape", product, builder.ints(shape, "shape"))
        return product, made
    left = shaped(a, x, batch + rows, [*outer, *(sizes[c] for c in rows), *[1] * len(columns)])
    right = shaped(b, y, batch + columns, [*outer, *[1] * len(rows), *(sizes[c] for c in columns)])
    return builder.op("Mul", left, right), made


def gemm_to_matmul(model: ir.Model, setting: Setting) -> int:
    """A Gemm with C, alpha or beta becomes MatMul, Mul and Add."""
    names, count = Names(model.graph), 0
    for node in model.graph:
        if not is_ai_onnx(node, "Gemm") or not beyond(model, node, setting, "gemm_to_matmul"):
            continue
        builder = Rewriter(model, names, node)
        a = _transposed(builder, node.inputs[0], bool(attribute(node, "transA", 0)))
        b = _transposed(builder, node.inputs[1], bool(attribute(node, "transB", 0)))
        c = input_at(node, 2)
        value = _scaled(builder, builder.op("MatMul", a, b), attribute(node, "alpha", 1.0), node.inputs[0])
        if c is not None:
            value = builder.op("Add", value, _scaled(builder, c, attribute(node, "beta", 1.0), c))
        builder.put([value])
        count += 1
    return count


def _transposed(builder: Rewriter, value: ir.Value | None, swap: bool) -> ir.Value | None:
    array = constant(value)
    if not swap:
        return value
    if array is not None:
        return builder.const(array.T, "transposed", value.dtype if value is not None else None)
    transposed: ir.Value = builder.op("Transpose", value, perm=[1, 0])
    return transposed


def _scaled(builder: Rewriter, value: ir.Value, factor: float, like: ir.Value | None) -> ir.Value:
    if factor == 1 or like is None:
        return value
    scaled: ir.Value = builder.op("Mul", value, builder.scalar(factor, like, "factor"))
    return scaled


def cast_products(model: ir.Model, setting: Setting) -> int:
    """In mode origin, float32 products get float16 operands: the chip has no float32 kernel for them.

    Weights are stored in float16, clamped to its range as atc does; the result is cast back.
    """
    if setting.precision != "origin":
        return 0
    names, count = Names(model.graph), 0
    narrow: dict[ir.Value, ir.Value] = {}
    for node in model.graph:
        output = node.outputs[0]
        if not is_ai_onnx(node, *PRODUCTS) or output.dtype != ir.DataType.FLOAT:
            continue
        builder = Rewriter(model, names, node)
        operands: list[ir.Value | None] = []
        for value in node.inputs:
            array = constant(value)
            if value is not None and array is not None:
                if value not in narrow:
                    held = np.clip(array, -FLOAT16_MAX, FLOAT16_MAX).astype(np.float16)
                    narrow[value] = builder.const(held, "float16")
                operands.append(narrow[value])
            else:
                operands.append(None if value is None else builder.op("Cast", value, to=int(ir.DataType.FLOAT16)))
        attributes: dict[str, Any] = {a.name: a for a in node.attributes.values()}
        product = builder.op(node.op_type, *operands, **attributes)
        builder.put([builder.op("Cast", product, to=int(ir.DataType.FLOAT))])
        count += 1
    return count

# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""From any model that the ONNX front end reads to one that atc and the Ascend 310P take: the passes, in order."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import onnx
import onnx_ir as ir

from npukit.ascend.limits import DEFAULT_CANN, PRECISIONS, cann_version, check_precision, op_rows
from npukit.ascend.passes import dtypes, indexing, integers, norms, opset, products
from npukit.ascend.passes.setting import Setting
from npukit.errors import Fault, ModelError, UsageError
from npukit.frontends.onnx.cut_graph import cut_graph
from npukit.frontends.onnx.freeze_inputs import freeze_inputs
from npukit.frontends.onnx.inline_functions import inline_functions
from npukit.frontends.onnx.options import LoadOptions
from npukit.frontends.onnx.prepare_graph import prepare_graph
from npukit.frontends.onnx.read_model import read_model
from npukit.frontends.onnx.rewrite import Unsupported, drop_dead
from npukit.frontends.onnx.simplify_ops import simplify_ops
from npukit.frontends.onnx.specialize import specialize
from npukit.targets import target as row_of

log = logging.getLogger(__name__)


def _fold(model: ir.Model, setting: Setting) -> int:
    before = sum(1 for _ in model.graph)
    specialize(model)
    simplify_ops(model)
    drop_dead(model.graph)
    return max(before - sum(1 for _ in model.graph), 0)


Pass = Callable[[ir.Model, Setting], int]

# (name, pass, what it does to so many nodes, why it stands where it stands)
PASSES: tuple[tuple[str, Pass, str, str], ...] = (
    ("fold_constants", _fold, "nodes folded into constants, or without effect", "first: shapes decide what follows"),
    ("expand_norms", norms.expand_norms, "normalizations written with plain ops", "before definitions spell them out"),
    ("expand_ops", opset.expand_ops, "ops replaced by their definition", "before all that looks at single ops"),
    ("expand_einsum", products.expand_einsum, "Einsum as MatMul and Transpose", "before products are looked at"),
    ("gemm_to_matmul", products.gemm_to_matmul, "Gemm as MatMul and Add", "before products are looked at"),
    ("name_axes", norms.name_axes, "reductions with their axes named", "anywhere"),
    ("count_indices_from_front", indexing.count_indices_from_front, "gathers without negative indices",
     "before integers: what it computes is int64"),
    ("equal_shapes", dtypes.equal_shapes, "Equal with inputs of one shape", "before integers: it may expand int64"),
    ("narrow_integers", integers.narrow_integers, "nodes in int32 instead of int64", "before dtypes: few remain then"),
    ("mask_triangles", indexing.mask_triangles, "Trilu as a constant mask", "after integers: Where takes no int64"),
    ("legalize_dtypes", dtypes.legalize_dtypes, "ops whose dtypes are not documented, by others",
     "after integers and triangles, which leave such ops"),
    ("slice_columns", indexing.slice_columns, "Slice with one more axis", "after definitions, which slice shapes"),
    ("split_by_slices", indexing.split_by_slices, "Split as Slice", "after slice_columns: it makes none of those"),
    ("cast_products", products.cast_products, "products in float16", "after all that makes products"),
    ("fold_constants", _fold, "nodes folded into constants, or without effect", "last: casts of constants"),
)  # fmt: skip


@dataclass(frozen=True)
class Applied:
    """What one pass did.

    Attributes:
        name: of the pass.
        count: nodes (or constants) that it changed.
        what: what they are now.
    """

    name: str
    count: int
    what: str

    def __str__(self) -> str:
        return f"{self.name}: {self.count} {self.what}" if self.count else f"{self.name}: {self.what}"


class Prepared(NamedTuple):
    """A model for atc.

    Attributes:
        model: in an opset that atc reads; weights are views of the mapped source.
        applied: the passes that did something, in order.
    """

    model: ir.Model
    applied: tuple[Applied, ...]


def prepare(
    source: str | os.PathLike[str] | onnx.ModelProto | ir.Model,
    target: str = "ascend310p3",
    cann: str = DEFAULT_CANN,
    *,
    precision: str = PRECISIONS[0],
    options: LoadOptions | None = None,
) -> Prepared:
    """Rewrite a model into ops, forms and dtypes that this version of atc and the chip take.

    Names and dtypes of inputs and outputs stay. Every rewrite computes the same, most of them bit for bit; a
    normalization differs in rounding, and a float32 product in mode `origin` is computed in float16.
    `npukit.ascend.check` tells what remains.

    Args:
        source: a file, or a model in memory, which is not changed.
        target: an Ascend chip.
        cann: version of CANN, such as "8.2".
        precision: atc's --precision_mode_v2.
        options: shapes and cuts. Without shapes, open dimensions stay open, and what needs them stays as it is.

    Raises:
        ModelError: the model is broken, or nodes have no form in any opset that this CANN reads; every one is listed.
        UsageError: no such target, CANN version or precision mode.
    """
    if row_of(target).backend != "ascend":
        raise UsageError(f"{target} is not an Ascend chip", where="--target", hint="npukit targets lists all")
    check_precision(precision)
    setting, options = Setting(cann_version(cann), precision), options or LoadOptions()
    read = read_model(source, options, also=frozenset(op_rows()))
    model, opset_before = read.model, read.model.opset_imports.get("")
    applied = _start(model, options)
    for name, run, what, _ in PASSES:
        count = _run(name, run, model, setting)
        if count:
            applied.append(Applied(name, count, what))
    model, opset_version = _lower(model, setting)
    if opset_version != opset_before:
        applied.append(Applied("lower_opset", 0, f"opset {opset_version}"))
    return Prepared(model, _merged(applied))


def _run(name: str, run: Pass, model: ir.Model, setting: Setting) -> int:
    try:
        return run(model, setting)
    except (Unsupported, ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        # an attribute or input that is not what the op's definition asks for, and that no check saw before
        log.debug("pass %s", name, exc_info=error)
        what = f"pass {name} cannot read a node ({type(error).__name__}: {error})"
        raise ModelError(what[:300], hint="do its attributes and inputs fit its definition?") from None


def _start(model: ir.Model, options: LoadOptions) -> list[Applied]:
    """Names, functions, cuts and shapes: what the front end begins with, too."""
    applied = []
    named = [node.name for node in model.graph]
    prepare_graph(model)
    renamed = len(named) - len(set(named) & {node.name for node in model.graph})
    if renamed:
        applied.append(Applied("name_nodes", renamed, "nodes with a name of their own"))
    functions = len(model.functions)
    inline_functions(model)
    if functions:
        applied.append(Applied("inline_functions", functions, "functions put in place"))
    cut_graph(model, options)
    static = all(value.shape is not None and value.shape.is_static() for value in model.graph.inputs)
    if static or options.input_shapes or options.symbols or options.batch is not None:
        freeze_inputs(model, options)
    return applied


def _lower(model: ir.Model, setting: Setting) -> tuple[ir.Model, int]:
    """The model in the first opset, from 14 on, that has all its forms and that atc reads."""
    faults: list[Fault] = []
    for version in range(opset.OLDEST, setting.cann.reads[1] + 1):
        lowered = model.clone()
        found = opset.lower_opset(lowered, version)
        if not found:
            drop_dead(lowered.graph)
            return lowered, version
        faults = faults if faults and len(faults) <= len(found) else found
    raise ModelError(
        f"not every node has a form in an opset that atc of CANN {setting.cann.name} reads (up to"
        f" {setting.cann.reads[1]})",
        faults=faults,
    )


def _merged(applied: list[Applied]) -> tuple[Applied, ...]:
    """One entry a pass."""
    counts: dict[str, int] = {}
    for entry in applied:
        counts[entry.name] = counts.get(entry.name, 0) + entry.count
    whats = {entry.name: entry.what for entry in applied}
    return tuple(Applied(name, count, whats[name]) for name, count in counts.items())

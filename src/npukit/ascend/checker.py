# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""Everything in an ONNX file that atc or the Ascend 310P cannot take, or takes otherwise than one thinks, at once.

The file is judged as it is, because atc reads the file; only shapes, dtypes and small constants are inferred.
"""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from npukit.ascend.limits import DEFAULT_CANN, RULES, Cann, Limit, cann_version, check_precision, limits, op_rows
from npukit.ascend.rules import FLOAT16_MAX, KINDS, MAX_ELEMENTS, PRODUCTS, Context, in_file, in_float16, integer_inputs
from npukit.errors import ModelError, UsageError
from npukit.frontends.onnx.expand_functions import has_body
from npukit.frontends.onnx.fold_constants import fold_node
from npukit.frontends.onnx.freeze_inputs import freeze_inputs
from npukit.frontends.onnx.infer_shapes import InferenceFailed, infer_node
from npukit.frontends.onnx.options import LoadOptions
from npukit.frontends.onnx.prepare_graph import prepare_graph
from npukit.frontends.onnx.ranges import Ranges
from npukit.frontends.onnx.read_model import Source, is_tflite, read_model
from npukit.frontends.onnx.rewrite import (
    TENSORS,
    constant,
    float_dtype,
    is_ai_onnx,
    make_tensor,
    subgraphs_of,
)

if TYPE_CHECKING:
    from npukit.frontends.onnx.rewrite import Array

log = logging.getLogger(__name__)

_MASKING = -1e6  # what is below this hides a place from a softmax; models write -1e9, the lowest float32 or -inf
_LARGEST_SQUARED = 255.0  # 256 squared is beyond float16
MAX_FILE_BYTES = 2_147_483_647

# dtypes that the ONNX parser of atc reads (GE parser/onnx/onnx_util.cc)
_PARSED = frozenset(
    (
        *("float32", "float16", "float64", "bfloat16", "float8e4m3fn", "float8e4m3fnuz", "float8e5m2"),
        *("float8e5m2fnuz", "uint8", "int8", "uint16", "int16", "int32", "int64", "uint32", "uint64", "int4"),
        *("string", "bool", "complex64", "complex128"),
    )
)
# ops whose result has a size that depends on values
_DATA_DEPENDENT = frozenset({"NonZero", "Unique", "NonMaxSuppression", "Compress"})


@dataclass(frozen=True)
class Problem:
    """One thing found.

    Attributes:
        rule: a key of `npukit.ascend.limits.RULES`.
        what: one sentence.
        where: op and node, or the tensor or file.
        hint: what to do about it.
        fix: the pass of `npukit.ascend.prepare` that does it; empty without one.
        source: where it is documented.
    """

    rule: str
    what: str
    where: str = ""
    hint: str = ""
    fix: str = ""
    source: str = ""

    @property
    def level(self) -> str:
        """One of `npukit.ascend.limits.LEVELS`."""
        return RULES[self.rule][0]


def check(
    path: Path, *, cann: str = DEFAULT_CANN, precision: str = "fp16", options: LoadOptions | None = None
) -> list[Problem]:
    """What stands in the way of an ONNX file on its way through atc to an Ascend 310P, errors first.

    Args:
        path: the .onnx file.
        cann: version of CANN, such as "8.2".
        precision: atc's --precision_mode_v2; a key of `PRECISIONS`.
        options: shapes of dynamic inputs, as atc will be given them.

    Raises:
        ModelError: not an ONNX file, or a broken one.
        UsageError: no such CANN version or precision mode; cuts, which atc does not make.
    """
    row = cann_version(cann)
    check_precision(precision)
    options = options or LoadOptions()
    if options.inputs or options.outputs:
        raise UsageError(
            "the file is checked as a whole", hint="cut it first: npukit convert MODEL --target ascend310p3"
        )
    if is_tflite(path):
        hint = "make it ONNX first: npukit export MODEL --target ascend310p3"
        raise ModelError("this is a TensorFlow Lite file, which atc does not read", where=str(path), hint=hint)
    source = read_model(path, also=frozenset(op_rows()))
    model = source.model
    found = [*_file(path, source), *_names(model)]
    prepare_graph(model)
    if options.input_shapes or options.symbols or options.batch is not None:
        freeze_inputs(model, options)
    infer(model)
    found += check_model(model, row, precision)
    order = {rule: i for i, rule in enumerate(RULES)}
    return sorted(found, key=lambda problem: order[problem.rule])


def check_model(model: ir.Model, cann: Cann, precision: str) -> Iterator[Problem]:
    """What is found in the graph of a model whose nodes know their version and whose values were inferred."""
    ranges = Ranges(integer_inputs(model))
    context = Context(precision, ranges)
    yield from _opset(model, cann)
    yield from _dynamic(model)
    for node in model.graph.all_nodes():
        yield from _op(model, node, cann)
        if not node.domain:
            for limit in limits().get(node.op_type, ()):
                yield from _limit(context, node, limit, cann)
            yield from _squares(context, node)
        yield from _dtypes(context, node)
    yield from _constants(model, precision)
    yield from _mode(model, precision)


def infer(model: ir.Model) -> None:
    """Give values the dtypes, shapes and small constants that follow from the graph; nodes stay as they are.

    What cannot be inferred keeps what the file notes of it.
    """
    for node in model.graph:
        if is_ai_onnx(node, "Constant"):
            _hold(node.outputs[0], _constant_node(node))
            continue
        known = [(value.shape, value.type) for value in node.outputs]
        try:
            infer_node(node)
            arrays = None if subgraphs_of(node) else fold_node(node)
        except (InferenceFailed, ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
            log.debug("%s %r", node.op_type, node.name, exc_info=error)
            for value, (shape, kind) in zip(node.outputs, known, strict=True):
                value.shape, value.type = shape, kind
            continue
        for value, (shape, kind) in zip(node.outputs, known, strict=True):
            if value.shape is None or (shape is not None and not value.shape.is_static() and shape.is_static()):
                value.shape = shape or value.shape
            value.type = value.type or kind
        for value, array in zip(node.outputs, arrays or (), strict=False):
            _hold(value, make_tensor(array))


def _hold(value: ir.Value, tensor: ir.TensorProtocol | None) -> None:
    if tensor is not None:
        value.const_value, value.shape = tensor, ir.Shape(tensor.shape.numpy())
        value.type = ir.TensorType(tensor.dtype)


def _constant_node(node: ir.Node) -> ir.TensorProtocol | None:
    for name, attr in node.attributes.items():
        if isinstance(attr.value, TENSORS):
            return attr.value
        if name in ("value_float", "value_floats"):
            return make_tensor(np.asarray(attr.value, np.float32))
        if name in ("value_int", "value_ints"):
            return make_tensor(np.asarray(attr.value, np.int64))
    return None


def place(node: ir.Node) -> str:
    """What a node is called in a finding."""
    return f"{node.op_type} {node.name!r}"


# ---------------------------------------------------------------- the file and its names


def _file(path: Path, source: Source) -> Iterator[Problem]:
    size = path.stat().st_size
    if size > MAX_FILE_BYTES:
        yield Problem(
            "atc-file", f"{size} bytes, atc reads at most {MAX_FILE_BYTES}", str(path),
            "keep the weights in a file of their own (external data)", "write", "E13015",
        )  # fmt: skip
    # atc takes the folder of the file that a link leads to, ONNX that of the link
    linked, real = path.parent.resolve(), Path(os.path.realpath(path)).parent
    for data in source.files[1:]:
        if linked != real and not (real / data.relative_to(linked)).is_file():
            yield Problem(
                "atc-file", f"the weights {data.name!r} do not lie beside the file that this link leads to", str(path),
                f"move them to {real}, or the model out of it", "write", "GE parser/onnx/onnx_parser.cc",
            )  # fmt: skip


def _names(model: ir.Model) -> Iterator[Problem]:
    """Atc calls a node without a name after its type and place; names must differ."""
    names = Counter(node.name or f"{node.op_type}_{number}" for number, node in enumerate(model.graph))
    for name, count in names.items():
        if count > 1:
            yield Problem(
                "atc-name", f"{count} nodes have this name", repr(name), "rename them", "name_nodes", "E13009"
            )


# ---------------------------------------------------------------- opset and ops


def _opset(model: ir.Model, cann: Cann) -> Iterator[Problem]:
    opset, (first, last) = model.opset_imports.get("", model.opset_imports.get("ai.onnx", 1)), cann.reads
    named = f"{cann.documented[0]} to {cann.documented[1]}"
    hint = "export with opset 14"
    if not first <= opset <= last:
        what = f"opset {opset}; atc of CANN {cann.name} reads {first} to {last}, so that every op would be refused"
        yield Problem(
            "atc-opset", what, "opset_import", "export with opset 14", "lower_opset", "atc guide, --framework"
        )
    elif not cann.documented[0] <= opset <= cann.documented[1]:
        what = f"opset {opset}; documented for CANN {cann.name} are {named}"
        yield Problem("atc-opset-unverified", what, "opset_import", hint, "lower_opset", "atc guide, --framework")


def _op(model: ir.Model, node: ir.Node, cann: Cann) -> Iterator[Problem]:
    row = op_rows().get(node.op_type)
    if node.domain and not (node.domain == "npu" and row is not None):
        local = any(key[:2] == (node.domain, node.op_type) for key in model.functions)
        hint = "it is a function of the model: put its body in its place" if local else "write it with ops of ai.onnx"
        fix = "inline_functions" if local else "fold_constants" if node.domain == "com.microsoft" else ""
        what = f"no parser for domain {node.domain!r}"
        yield Problem("atc-op", what, place(node), hint, fix, "GE parser/onnx/onnx_parser.cc")
        return
    if node.op_type == "Constant":
        return
    if row is None:
        fix, hint = "", "write it with other ops, or cut the graph there"
        if is_ai_onnx(node, "RMSNormalization", "SimplifiedLayerNormalization"):
            fix, hint = "expand_norms", "write it with plain ops"
        elif is_ai_onnx(node, "Loop", "Scan", "SequenceMap"):
            fix, hint = "fold_constants", "unroll it"
        elif has_body(node) or is_ai_onnx(node, "Gelu"):
            fix, hint = "expand_ops", "write it with the ops that its definition gives"
        yield Problem("atc-op", "no parser in any opset", place(node), hint, fix, "plugins of ops-math, ops-nn, ops-cv")
        return
    opset = model.opset_imports.get("", 1)
    readable = cann.reads[0] <= opset <= cann.reads[1]
    if row.opsets and not node.domain and readable and opset not in row.opsets:
        what = f"no parser in opset {opset}, only in {_spans(row.opsets)}"
        hint = "export with an opset that has it"
        yield Problem("atc-op", what, place(node), hint, "lower_opset", "plugins of ops-math, ops-nn, ops-cv")
    elif cann.order < (9, 0, 0) and not row.listed:
        what = f"registered in the sources of CANN 9, not among the ops of CANN 8.0 (this is {cann.name})"
        hint = "try it on the real atc, or write it with other ops"
        fix = "expand_ops" if has_body(node) else ""
        yield Problem("atc-op-unlisted", what, place(node), hint, fix, "operatorlist_00176")
    elif cann.order >= (9, 0, 0) and not row.opsets:
        what = f"among the ops of CANN 8.0, not registered in the sources of CANN 9 (this is {cann.name})"
        yield Problem("atc-op-unlisted", what, place(node), "try it on the real atc", source="operatorlist_00176")


def _spans(numbers: frozenset[int]) -> str:
    """{8, 9, 10, 16} -> "8 to 10, 16"."""
    spans: list[list[int]] = []
    for number in sorted(numbers):
        if spans and number == spans[-1][1] + 1:
            spans[-1][1] = number
        else:
            spans.append([number, number])
    return ", ".join(str(a) if a == b else f"{a} to {b}" for a, b in spans)


def _limit(context: Context, node: ir.Node, limit: Limit, cann: Cann) -> Iterator[Problem]:
    version = node.version or 1
    unread = limit.kind == "documented_opsets" and not cann.reads[0] <= version <= cann.reads[1]
    if unread or not limit.holds(cann, version):
        return
    said = KINDS[limit.kind](context, node, limit)
    if said:
        rule = "atc-limit" if limit.level == "error" else "atc-undocumented"
        yield Problem(rule, said, place(node), limit.do, limit.fix, limit.source)


# ---------------------------------------------------------------- shapes


def _dynamic(model: ir.Model) -> Iterator[Problem]:
    opened = False
    for value in model.graph.inputs:
        if value.const_value is not None or not isinstance(value.type, ir.TensorType):
            continue
        if value.shape is None or not value.shape.is_static():
            opened = True
            shown = "unknown" if value.shape is None else f"[{', '.join(str(d) for d in value.shape)}]"
            hint = f"--input-shape {value.name}=... (atc: --input_shape, or -1 with --dynamic_dims)"
            yield Problem("atc-dynamic", f"shape {shown} is open", f"input {value.name!r}", hint, source="E10011")
    for node in model.graph.all_nodes() if opened else ():
        if is_ai_onnx(node, *_DATA_DEPENDENT):
            what = "the size of its result depends on values, which --dynamic_dims does not go with"
            hint = "make the inputs static, or cut the graph there"
            yield Problem("atc-dynamic", what, place(node), hint, source="atc guide, --dynamic_dims")


# ---------------------------------------------------------------- dtypes and the range of float16


def _dtypes(context: Context, node: ir.Node) -> Iterator[Problem]:
    names: dict[str, ir.Value] = {}
    for value in (*node.inputs, *node.outputs):
        if value is not None and (name := context.dtype(value)):
            names.setdefault(name, value)
    for name, value in names.items():
        if name not in _PARSED:
            what = f"tensor {value.name!r} is {name}, which atc's parser does not read"
            yield Problem("atc-dtype", what, place(node), source="GE parser/onnx/onnx_util.cc")
        elif name == "bfloat16":
            what = f"tensor {value.name!r} is bfloat16, which this chip does not have"
            yield Problem("atc-dtype", what, place(node), "cast the model to float16", source="ON matmul/mat_mul_v3")
    if context.precision == "origin" and is_ai_onnx(node, *PRODUCTS) and "float32" in names:
        what = "a float32 product: mode origin finds no kernel for it but, perhaps, that of the AI CPU"
        hint = "hold its operands in float16, or use mode fp16"
        yield Problem("atc-dtype", what, place(node), hint, "cast_products", "ON matmul/mat_mul_v3")


def _squares(context: Context, node: ir.Node) -> Iterator[Problem]:
    """Means and sums of squares in float16: 256 squared is too large for it."""
    if not is_ai_onnx(node, "ReduceMean", "ReduceSum"):
        return
    square = squared(node.inputs[0])
    if square is None or not in_float16(square, context.precision) or is_scaled(square):
        return
    low, high = context.ranges.of(square)
    if max(-low, high) > _LARGEST_SQUARED:
        what = f"sums squares of {square.name!r} in float16, which ends at 255.9 squared"
        hint = "divide by the largest magnitude first, or keep float32 (--precision-mode origin)"
        yield Problem("atc-float16", what, place(node), hint, "expand_norms", "EMB openvla, modeling_llama")


def squared(value: ir.Value | None) -> ir.Value | None:
    """X where the value is x * x or x ** 2."""
    producer = None if value is None else value.producer()
    if producer is None:
        return None
    if is_ai_onnx(producer, "Mul") and producer.inputs[0] is producer.inputs[1]:
        return producer.inputs[0]
    if is_ai_onnx(producer, "Pow"):
        exponent = constant(producer.inputs[1])
        if exponent is not None and exponent.size == 1 and float(exponent.reshape(())) == 2:
            return producer.inputs[0]
    return None


def is_scaled(value: ir.Value) -> bool:
    """Whether the value is x / s with an s that depends on the largest magnitude of x (see `expand_norms`)."""
    division = value.producer()
    if division is None or not is_ai_onnx(division, "Div"):
        return False
    scale = division.inputs[1]
    for op_type in ("Max", "ReduceMax", "Abs"):
        producer = None if scale is None else scale.producer()
        if producer is None or not is_ai_onnx(producer, op_type):
            return False
        scale = producer.inputs[0]
    return scale is division.inputs[0]


def _constants(model: ir.Model, precision: str) -> Iterator[Problem]:
    seen = set()
    for node in model.graph.all_nodes():
        if is_ai_onnx(node, "Constant", "Cast"):
            continue  # a constant is named where it is used, one that is cast by what it becomes
        for value in node.inputs:
            if value is None or value in seen or value.const_value is None or not in_file(value):
                continue
            seen.add(value)
            if float_dtype(value) and in_float16(value, precision) and value.const_value.size <= MAX_ELEMENTS:
                beyond = beyond_float16(constant(value))
                if beyond:
                    becomes = FLOAT16_MAX if beyond > 0 else -FLOAT16_MAX
                    what = f"{beyond:.4g} in the constant {value.name!r} becomes {becomes:.0f}"
                    if beyond < _MASKING:
                        yield Problem("atc-mask", what, place(node), source="RT 25-02_Enumerations")
                    else:
                        hint = "scale it, or keep float32 (--precision-mode origin)"
                        yield Problem("atc-float16", what, place(node), hint, source="RT 25-02_Enumerations")


def beyond_float16(array: Array | None) -> float:
    """The element that is farthest beyond float16; 0 without one."""
    if array is None or not array.size:
        return 0.0
    low, high = float(np.nanmin(array)), float(np.nanmax(array))
    farthest = high if high > -low else low
    return farthest if abs(farthest) > FLOAT16_MAX else 0.0


def _mode(model: ir.Model, precision: str) -> Iterator[Problem]:
    wide = [value for value in model.graph.inputs if value.dtype == ir.DataType.FLOAT]
    wide += [value for value in model.graph.initializers.values() if value.dtype == ir.DataType.FLOAT]
    if wide and precision == "fp16":
        hint = "--precision-mode origin keeps float32 where the chip has it"
        yield Problem(
            "atc-precision", "float32 is computed in float16", hint=hint, source="atc guide, --precision_mode_v2"
        )


__all__ = ["Problem", "check", "check_model", "infer", "place"]

# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""The source model as a reference on ONNX Runtime, also where that does not know the model's opset.

Then the model is rewritten: npukit's front end makes it static, ops that are newer than ONNX Runtime's opset are
expanded by their own definitions, the rest is declared in that opset (new versions mostly only add dtypes). Small
models are then run by onnx.reference as well, which knows every opset, and the outcome is a note.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from npukit import plugins
from npukit.analysis import compare
from npukit.errors import InputError, ModelError

if TYPE_CHECKING:
    import onnx_ir as ir

    from npukit.frontends.onnx import LoadOptions

log = logging.getLogger(__name__)

_CHECK_BYTES = 16 << 20  # weights up to which onnx.reference, which is slow, is asked
_EMBED_LIMIT = 1_500_000_000
_TOLERANCE = 1e-3


def rewrite_for_ort(path: Path, shapes: Mapping[str, tuple[int, ...]], folder: Path) -> tuple[Path, list[str]]:
    """The model at `path` in an opset that the installed ONNX Runtime loads, and notes on what was done.

    Args:
        path: the source model.
        shapes: shape of every input.
        folder: an existing folder to write to.

    Raises:
        ModelError: the front end cannot read the model or make it static.
    """
    from npukit.frontends.onnx import LoadOptions, load
    from npukit.raising import newest_opset

    newest = newest_opset()
    model = load(path, LoadOptions(input_shapes=dict(shapes))).model
    newer = sorted({node.op_type for node in model.graph if _since(node.op_type) > newest})
    target = _save_for_ort(model, newest, folder / "reference.onnx")
    which = f" ({', '.join(newer)})" if newer else ""
    note = f"the reference was rewritten for ONNX Runtime, which knows opset {newest}{which}"
    return target, [note]


def without_quantization(path: Path, options: LoadOptions, folder: Path) -> Path:
    """The model at `path` as it computes without its Q/DQ nodes, cut and shaped by `options`, in `folder`.

    Raises:
        ModelError: the front end cannot read the model or make it static.
    """
    from npukit.frontends.onnx import load
    from npukit.raising import newest_opset

    model = load(path, replace(options, strip_quantization=True)).model
    return _save_for_ort(model, newest_opset(), folder / "float.onnx")


def customized(path: Path, options: LoadOptions, folder: Path) -> Path:
    """The model at `path`, cut and shaped, with inputs and outputs as the I/O config of `options` says, in `folder`.

    Raises:
        NpukitError: the model cannot be read, or the config does not fit it.
    """
    import onnx_ir as ir

    from npukit.frontends.onnx import load
    from npukit.frontends.onnx.customize_io import FIRST_OPSET, customize_io
    from npukit.frontends.onnx.cut_graph import cut_graph
    from npukit.frontends.onnx.freeze_inputs import freeze_inputs
    from npukit.frontends.onnx.read_model import read_model
    from npukit.raising import newest_opset

    assert options.io is not None
    model = read_model(path, options).model
    if model.opset_imports.get("", 1) < FIRST_OPSET:
        return _save_for_ort(load(path, options).model, newest_opset(), folder / "customized.onnx")
    cut_graph(model, options)
    freeze_inputs(model, options)
    customize_io(model, options.io)
    if model.opset_imports.get("", 1) > newest_opset():
        return _save_for_ort(model, newest_opset(), folder / "customized.onnx")
    ir.save(model, folder / "customized.onnx", external_data="customized.data")
    return folder / "customized.onnx"


def tflite_as_onnx(
    path: Path, shapes: Mapping[str, tuple[int, ...]], signature: str, folder: Path, outputs: tuple[str, ...] = ()
) -> Path:
    """The TensorFlow Lite file at `path` as npukit's front end reads it, in `folder`: what `outputs` need.

    Raises:
        ModelError: the front end cannot read the model.
    """
    from npukit.frontends.onnx import LoadOptions
    from npukit.frontends.onnx.freeze_inputs import freeze_inputs
    from npukit.frontends.onnx.read_model import read_model
    from npukit.raising import newest_opset

    options = LoadOptions(input_shapes=dict(shapes), signature=signature, outputs=outputs)
    model = read_model(path, options).model
    freeze_inputs(model, options)
    return _save_for_ort(model, newest_opset(), folder / "tflite.onnx")


def _save_for_ort(model: ir.Model, opset: int, target: Path) -> Path:
    import onnx_ir as ir

    from npukit.frontends.onnx import expand_functions

    def keep(domain: str, op: str, version: int) -> bool:
        return plugins.find(domain, op) is None and (bool(domain) or _since(op) <= opset)

    model = expand_functions(model, keep)
    _declare(model, opset)
    size = sum(v.const_value.nbytes for v in model.graph.initializers.values() if v.const_value is not None)
    ir.save(model, target, external_data=f"{target.stem}.data" if size > _EMBED_LIMIT else None)
    return target


def with_shapes(path: Path, shapes: Mapping[str, tuple[int, ...]], folder: Path) -> Path:
    """`path`, or where its inputs are fixed to other shapes than `shapes` says, a copy in `folder` that has these.

    Raises:
        ModelError: the model cannot be read.
    """
    import onnx_ir as ir

    from npukit.frontends.onnx.read_model import read_model

    model = read_model(path).model
    wanted = {v: shapes[v.name] for v in model.graph.inputs if v.name is not None and v.name in shapes}
    others = {value: shape for value, shape in wanted.items() if _contradicts(value.shape, shape)}
    if not others:
        return path
    for value, shape in others.items():
        value.shape = ir.Shape(shape)
    for node in model.graph.all_nodes():  # what is declared inside belongs to the old shapes
        for value in node.outputs:
            value.shape = None
    target = folder / "resized.onnx"
    size = sum(v.const_value.nbytes for v in model.graph.initializers.values() if v.const_value is not None)
    ir.save(model, target, external_data="resized.data" if size > _EMBED_LIMIT else None)
    return target


def _contradicts(shape: ir.Shape | None, wanted: tuple[int, ...]) -> bool:
    if shape is None or len(shape.dims) != len(wanted):
        return False
    return any(isinstance(dim, int) and dim != size for dim, size in zip(shape.dims, wanted, strict=True))


def _declare(model: ir.Model, opset: int) -> None:
    model.opset_imports[""] = opset
    model.graph.opset_imports[""] = opset
    model.ir_version = 10
    for node in model.graph.all_nodes():
        if node.domain in ("", "ai.onnx"):
            node.version = opset


def _since(op: str) -> int:
    import onnx

    try:
        return int(onnx.defs.get_schema(op).since_version)
    except onnx.defs.SchemaError:
        return 0


def check_rewritten(source: Path, feeds: Mapping[str, Any], expected: Mapping[str, Any]) -> str:
    """A note on whether onnx.reference computes the same from `source`; `expected` are the rewritten model's outputs.

    Raises:
        ModelError: it does not: the rewriting is wrong, and nothing can be judged by it.
    """
    import onnx
    from onnx.reference import ReferenceEvaluator

    size = source.stat().st_size
    if size > _CHECK_BYTES:
        return "the rewriting was not checked with onnx.reference: the model is too large for it"
    try:
        evaluator = ReferenceEvaluator(onnx.load(source))
        names: Sequence[str] = evaluator.output_names
        values = evaluator.run(None, {name: np.asarray(feeds[name]) for name in evaluator.input_names})
    except Exception as error:  # an op that onnx.reference lacks, or one it gets wrong: it raises what it likes
        log.info("onnx.reference failed", exc_info=True)
        return f"the rewriting could not be checked with onnx.reference: {type(error).__name__}"
    for name, value in zip(names, values, strict=True):
        if name not in expected:
            continue
        try:
            metrics = compare.compare(np.asarray(value), np.asarray(expected[name]))
        except InputError as error:
            raise ModelError(f"the rewritten reference differs from onnx.reference: {error.what}", where=name) from None
        wrong = metrics.max_share > _TOLERANCE or metrics.nan_mismatch or metrics.inf_mismatch
        if wrong and metrics.kind == "float":
            raise ModelError(
                f"the rewritten reference differs from onnx.reference by {metrics.max_share:.3g} of the range",
                where=name,
                hint="verify with a newer ONNX Runtime, or against an exported DLC",
            )
    return "the rewriting agrees with onnx.reference"

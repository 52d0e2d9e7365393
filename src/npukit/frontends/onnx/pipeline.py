# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""From a source model to normalized ONNX: the passes, in order, each with the reason for its place."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable

import onnx
import onnx_ir as ir

from npukit import plugins
from npukit.errors import Fault, ModelError
from npukit.frontends.onnx.customize_io import customize_io
from npukit.frontends.onnx.cut_graph import cut_graph
from npukit.frontends.onnx.expand_functions import expand_functions
from npukit.frontends.onnx.freeze_inputs import freeze_inputs
from npukit.frontends.onnx.infer_shapes import is_static
from npukit.frontends.onnx.inline_functions import inline_functions
from npukit.frontends.onnx.options import LoadOptions, Normalized
from npukit.frontends.onnx.prepare_graph import prepare_graph
from npukit.frontends.onnx.read_model import Source, read_model
from npukit.frontends.onnx.recognize_activations import recognize_activations
from npukit.frontends.onnx.recognize_norms import recognize_norms
from npukit.frontends.onnx.rewrite import NEWEST, drop_dead, newest_version, schema_of
from npukit.frontends.onnx.simplify_ops import simplify_ops
from npukit.frontends.onnx.specialize import specialize
from npukit.frontends.onnx.strip_quantization import strip_quantization

log = logging.getLogger(__name__)

Pass = Callable[[Normalized, LoadOptions], None]


def _cut(result: Normalized, options: LoadOptions) -> None:
    result.cut += cut_graph(result.model, options)


def _specialize(result: Normalized, options: LoadOptions) -> None:
    walk = specialize(result.model)
    result.folded.update(walk.folded)
    result.notes += walk.notes


def _strip(result: Normalized, options: LoadOptions) -> None:
    if not options.strip_quantization:
        return
    found = strip_quantization(result.model)
    result.encodings, result.stripped = found.encodings, found.nodes
    result.notes += found.notes
    result.folded.update(found.folded)
    if found.nodes:
        _specialize(result, options)


def _customize(result: Normalized, options: LoadOptions) -> None:
    if options.io is not None:
        customize_io(result.model, options.io)
        _specialize(result, options)


def _simplify(result: Normalized, options: LoadOptions) -> None:
    simplify_ops(result.model)
    drop_dead(result.model.graph)


def _recognize(result: Normalized, options: LoadOptions) -> None:
    recognize_norms(result.model)
    recognize_activations(result.model)
    drop_dead(result.model.graph)


def _finish(result: Normalized, options: LoadOptions) -> None:
    finish_model(result.model)
    result.folded = {k: v for k, v in result.folded.items() if k in result.model.graph.initializers}


# (name, pass, why it stands where it stands)
PIPELINE: tuple[tuple[str, Pass, str], ...] = (
    ("prepare", lambda r, o: prepare_graph(r.model), "first: names, versions and node order are what the rest reads"),
    ("inline", lambda r, o: inline_functions(r.model), "before cut: a cut may name a tensor inside a function"),
    ("cut", _cut, "before freeze: inputs that were cut off need no shape"),
    ("freeze", lambda r, o: freeze_inputs(r.model, o), "before specialize: inference starts from static inputs"),
    ("specialize", _specialize, "upgrade, inference, folding and control flow in one walk: each needs the others"),
    ("strip", _strip, "after specialize: old and combined forms of quantization have become few; specializes again"),
    ("customize", _customize, "after strip: Q and DQ that it adds are not the source's; before simplify cleans up"),
    ("simplify", _simplify, "after specialize: whether a node does nothing shows in shapes and constants"),
    ("recognize", _recognize, "after simplify: no cast, identity or folded constant stands inside a pattern any more"),
    ("finish", _finish, "last: checks what every reader relies on"),
)


def load(
    path_or_model: str | os.PathLike[str] | onnx.ModelProto | ir.Model, options: LoadOptions | None = None
) -> Normalized:
    """Read a model and normalize it; a model given in memory is left as it is.

    Args:
        path_or_model: a file, or a model in memory.
        options: shapes, symbols, batch and cuts.

    Returns:
        the normalized model; its weights are views of the memory-mapped source.

    Raises:
        ModelError: the model is broken, dynamic, or cannot be made static; every fault is listed.
    """
    options = options or LoadOptions()
    return normalize(read_model(path_or_model, options), options)


def normalize(source: Source, options: LoadOptions) -> Normalized:
    """Run the passes over a model that was read, whatever file it came from. Raises as `load`."""
    result = Normalized(
        source.model, source.path, NEWEST, digest=source.digest, producer=source.model.producer_name or ""
    )
    result.notes += source.notes
    for name, run, _ in PIPELINE:
        log.debug("pass %s", name)
        run(result, options)
    return result


def finish_model(model: ir.Model) -> None:
    """Check that every value is static, and set the opset imports.

    Raises:
        ModelError: listing every value whose shape or dtype is not known, with the node that makes it.
    """
    graph = model.graph
    faults = []
    for node in graph:
        if not _known(node):
            what = f"{node.domain or 'ai.onnx'}::{node.op_type} is not an op that is known here"
            hint = "name a plugin that defines it (--plugin), or cut the graph before it (--output)"
            faults.append(Fault(what, f"node {node.name!r}", hint))
            continue
        unknown = [v for v in node.outputs if v.name and (v.uses() or v.is_graph_output()) and not is_static(v)]
        if unknown and all(i is None or is_static(i) for i in node.inputs):
            shown = ", ".join(f"{v.name!r} {v.shape if v.shape is not None else '(rank unknown)'}" for v in unknown)
            faults.append(
                Fault(
                    f"the size of {shown} is only known when it runs",
                    f"{node.op_type} {node.name!r}",
                    "cut the graph before it (--output), or make the inputs that decide it constant",
                )
            )
    if faults:
        raise ModelError("not every tensor has a static shape", faults=faults)
    domains = {node.domain for node in graph.all_nodes()} | {""}
    model.opset_imports.clear()
    model.opset_imports.update({d: newest_version(d) for d in sorted(domains)})
    model.ir_version = max(model.ir_version or 0, 10)


def _known(node: ir.Node) -> bool:
    schema = schema_of(node.domain, node.op_type, newest_version(node.domain))
    return schema is not None or plugins.find(node.domain, node.op_type) is not None


__all__ = ["PIPELINE", "expand_functions", "finish_model", "load", "normalize"]

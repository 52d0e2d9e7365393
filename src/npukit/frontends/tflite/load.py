# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""From a .tflite file to normalized ONNX: the operators become ONNX nodes, then the ONNX front end's passes run."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import onnx_ir as ir

from npukit.errors import Fault, ModelError, UsageError, nearest
from npukit.frontends.onnx.options import LoadOptions, Normalized
from npukit.frontends.onnx.pipeline import normalize
from npukit.frontends.onnx.read_model import Source
from npukit.frontends.onnx.rewrite import NEWEST
from npukit.frontends.tflite import ops  # noqa: F401  (registers the readers)
from npukit.frontends.tflite.builder import Builder
from npukit.frontends.tflite.flatfile import FlatFile, Signature, SubgraphRecord, read_content, read_file
from npukit.frontends.tflite.registry import Refused
from npukit.qnn.names import source_name

DEFAULT = "serving_default"
DYNAMIC_RANGE = "npukit.dynamic_range"  # in a model's metadata: weights were codes where activations are floats


def load(path: str | os.PathLike[str] | bytes, options: LoadOptions | None = None) -> Normalized:
    """Read a .tflite file (or its bytes) and normalize it.

    Inputs and outputs keep their layout. They have the signature's names where the file has one signature or
    `options.signature` names one, else the tensors' names.

    Args:
        path: the file, or its content.
        options: shapes, batch, cuts and the signature.

    Raises:
        ModelError: the file is broken, or has operators that cannot be expressed; all are listed.
        UsageError: it has no such signature.
        MissingDependency: the extra `tflite` is not installed.
    """
    options = options or LoadOptions()
    file = read_content(path) if isinstance(path, bytes) else read_file(Path(path))
    return normalize(to_onnx(file, options), options)


def to_onnx(file: FlatFile, options: LoadOptions | None = None) -> Source:
    """The file as ONNX before any pass. Raises ModelError and UsageError as `load`."""
    options = options or LoadOptions()
    where = str(file.path) if file.path is not None else "the model"
    signature = choose_signature(file, options.signature)
    if not file.subgraphs:
        raise ModelError("there is no graph in this TensorFlow Lite file", where=where)
    number = signature.subgraph if signature is not None else 0
    graph = file.subgraphs[number]
    inputs, outputs = _ports(graph, signature)
    ports = _port_names(graph, inputs, outputs)
    graph, inner = _cut(graph, ports, options)
    outputs = [(name, index) for name, index in outputs if not inner or index in _made(graph)]
    builder = Builder(number, [graph if i == number else g for i, g in enumerate(file.subgraphs)], ports)
    faults = builder.shared.faults
    faults += _inputs(builder, graph, inputs, options)
    builder.read_operators()
    if not faults:
        for name, index in outputs:
            try:
                builder.add_output(graph.tensors[index], name)
            except Refused as error:
                faults.append(Fault(str(error), f"output {name!r}", error.hint))
    if faults:
        raise ModelError("operators that cannot be converted", where=where, faults=faults)
    if not outputs:
        builder.graph.outputs.extend(value for node in builder.graph for value in node.outputs if value.name in inner)
    model = ir.Model(builder.graph, ir_version=10, producer_name=file.description or "tflite")
    model.graph.opset_imports[""] = NEWEST
    notes = []
    if signature is not None and not options.signature and len(file.signatures) > 1:
        keys = ", ".join(s.key for s in file.signatures)
        notes.append(f"of the signatures {keys}, {signature.key} was taken (--tflite-signature-name)")
    notes += builder.shared.notes
    if builder.shared.dynamic_range:
        notes.append(
            "weights are codes where activations are floats (dynamic range quantization): they become floats, and "
            "activations are not rounded as TensorFlow Lite rounds them"
        )
        model.metadata_props[DYNAMIC_RANGE] = "yes"
    files = [file.path] if file.path is not None else []
    return Source(model, file.path, file.digest, files, notes)


def output_names(path: Path, signature: str = "") -> list[str]:
    """The names that the outputs of a .tflite file have. Raises as `load`."""
    file = read_file(path)
    chosen = choose_signature(file, signature)
    if not file.subgraphs:
        return []
    graph = file.subgraphs[chosen.subgraph if chosen is not None else 0]
    inputs, outputs = _ports(graph, chosen)
    _port_names(graph, inputs, outputs)
    return [name for name, _ in outputs]


def _made(graph: SubgraphRecord) -> set[int]:
    """The tensors that the graph's operators and inputs give."""
    return {*graph.inputs, *(i for op in graph.ops for i in op.outputs)}


def _cut(graph: SubgraphRecord, ports: dict[int, str], options: LoadOptions) -> tuple[SubgraphRecord, list[str]]:
    """The graph without the operators that the tensors in `options.outputs` do not need, and these tensors' names.

    What lies behind a cut may be what npukit cannot read. The cut itself is made later, for every kind of file.
    """
    names = {ports.get(t.index, t.name): t.index for t in graph.tensors}
    wanted = [source_name(name, names) for name in options.outputs]
    if not wanted or any(name not in names for name in wanted):
        return graph, []
    begin = {names[name] for name in (source_name(name, names) for name in options.inputs) if name in names}
    needed = {names[name] for name in wanted}
    kept = []
    for op in reversed(graph.ops):  # the file's order is one of execution
        if op.code == "CALL_ONCE" or needed & (set(op.outputs) - begin):
            needed |= set(op.inputs)
            kept.append(op)
    return replace(graph, ops=kept[::-1]), wanted


def choose_signature(file: FlatFile, wanted: str = "") -> Signature | None:
    """The signature called `wanted`; without a name serving_default, or the first; None where there is none.

    Raises:
        UsageError: there is no such signature.
    """
    keys = [signature.key for signature in file.signatures]
    if wanted:
        if wanted not in keys:
            hint = nearest(wanted, keys) if keys else "this file has no signatures: leave the option out"
            raise UsageError(f"there is no signature {wanted!r}", where="--tflite-signature-name", hint=hint)
        return file.signatures[keys.index(wanted)]
    return file.signatures[keys.index(DEFAULT) if DEFAULT in keys else 0] if keys else None


def _ports(graph: SubgraphRecord, signature: Signature | None) -> tuple[list[tuple[str, int]], list[tuple[str, int]]]:
    """Names and tensors of inputs and outputs, in the graph's order."""
    given_in = {} if signature is None else {index: name for name, index in signature.inputs.items()}
    inputs = [(given_in.get(i) or graph.tensors[i].name, i) for i in dict.fromkeys(graph.inputs)]
    if signature is None:
        return inputs, [(graph.tensors[i].name, i) for i in dict.fromkeys(graph.outputs)]
    place = {index: at for at, index in reversed(list(enumerate(graph.outputs)))}
    outputs = sorted(signature.outputs.items(), key=lambda item: place.get(item[1], len(place)))
    return inputs, outputs


def _port_names(graph: SubgraphRecord, inputs: list[tuple[str, int]], outputs: list[tuple[str, int]]) -> dict[int, str]:
    names: dict[int, str] = {}
    taken: set[str] = set()
    for ports in (inputs, outputs):
        for at, (name, index) in enumerate(ports):
            unique, count = name, 0
            while unique in taken and names.get(index) != unique:
                count += 1
                unique = f"{name}_{count}"
            taken.add(unique)
            ports[at] = (unique, index)
            names.setdefault(index, unique)
    return names


def _inputs(
    builder: Builder, graph: SubgraphRecord, inputs: list[tuple[str, int]], options: LoadOptions
) -> list[Fault]:
    faults = []
    names = [name for name, _ in inputs]
    shaped = {source_name(name, names) for name in options.input_shapes}
    for name, index in inputs:
        tensor = graph.tensors[index]
        if tensor.dtype is None:
            faults.append(Fault(f"it is of type {tensor.type_name}", f"input {name!r}", "cut the model after it"))
            continue
        # open axes keep the size that the file was written with, as in TensorFlow Lite, unless another is asked for
        opened = tensor.open_axes if name in shaped else (0,) if options.batch and 0 in tensor.open_axes else ()
        dims = [f"{name}_{axis}" if axis in opened else size for axis, size in enumerate(tensor.shape)]
        builder.add_input(tensor, ir.Shape(dims))
    return faults

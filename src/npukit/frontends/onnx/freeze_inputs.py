# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""Makes the inputs static: --input-shape, --symbol and --batch; what stays open is one error with every option."""

from __future__ import annotations

from collections.abc import Iterable

import onnx_ir as ir

from npukit.errors import Fault, ModelError, nearest
from npukit.frontends.onnx.options import LoadOptions
from npukit.qnn.names import source_name


def freeze_inputs(model: ir.Model, options: LoadOptions) -> None:
    """Give every graph input a static shape.

    Raises:
        ModelError: options that name nothing, contradict the model, or leave dimensions open; all are listed.
    """
    graph = model.graph
    names = [v.name or "" for v in graph.inputs]
    shapes = {source_name(name, names): shape for name, shape in options.input_shapes.items()}
    faults = list(_unknown_names(graph, shapes, options))
    changed = False
    opened: list[tuple[ir.Value, list[str]]] = []
    for value in graph.inputs:
        name = value.name or ""
        wanted = shapes.get(name)
        if not isinstance(value.type, ir.TensorType):
            if value.type is None:
                what, hint = "its dtype cannot be found out", "cut the graph at another tensor"
            else:
                what, hint = f"is a {type(value.type).__name__}, not a tensor", "cut the graph after it (--input)"
            faults.append(Fault(what, f"input {name!r}", hint))
            continue
        dims = None if value.shape is None else [_plain(d) for d in value.shape.dims]
        if wanted is not None:
            faults += _contradictions(name, dims, wanted)
            if dims is not None and len(dims) == len(wanted):
                changed |= any(isinstance(d, int) and d != w for d, w in zip(dims, wanted, strict=True))
            value.shape = ir.Shape(wanted)
            continue
        if dims is None:
            faults.append(Fault("has no shape", f"input {name!r}", f"--input-shape {name}=..."))
            continue
        for i, dim in enumerate(dims):
            if isinstance(dim, str) and dim in options.symbols:
                dims[i] = options.symbols[dim]
        if options.batch is not None and dims and not isinstance(dims[0], int):
            dims[0] = options.batch
        if any(not isinstance(d, int) for d in dims):
            opened.append((value, [str(d) if d is not None else "?" for d in dims]))
        value.shape = ir.Shape(dims)
    faults += _open_faults(opened)
    if faults:
        raise ModelError("the inputs are not all static" if opened else "the input options do not fit", faults=faults)
    _forget_shapes(graph, options, changed)


def _plain(dim: int | ir.SymbolicDim) -> int | str | None:
    if isinstance(dim, int):
        return dim if dim >= 0 else None
    return dim.value


def _unknown_names(graph: ir.Graph, shapes: Iterable[str], options: LoadOptions) -> Iterable[Fault]:
    names = {v.name or "" for v in graph.inputs}
    for name in shapes:
        if name not in names:
            yield Fault("there is no such input", f"--input-shape {name}", nearest(name, names))
    symbols = {d for v in graph.inputs if v.shape is not None for d in map(_plain, v.shape.dims) if isinstance(d, str)}
    for name in options.symbols:
        if name not in symbols:
            yield Fault("no input has a dimension of this name", f"--symbol {name}", nearest(name, symbols))
    for name, size in (("--batch", options.batch), *((f"--symbol {k}", v) for k, v in options.symbols.items())):
        if size is not None and size < 1:
            yield Fault(f"{size} is not a size", name, "give a positive number")


def _contradictions(name: str, dims: list[int | str | None] | None, wanted: tuple[int, ...]) -> Iterable[Fault]:
    where = f"--input-shape {name}"
    if any(d < 1 for d in wanted):
        yield Fault(f"{list(wanted)} is not a shape", where, "give positive numbers")
    if dims is not None and len(dims) != len(wanted):
        shown = ", ".join("?" if d is None else str(d) for d in dims)
        yield Fault(f"has {len(wanted)} dimensions, the model's input has {len(dims)}: [{shown}]", where)


def _open_faults(opened: list[tuple[ir.Value, list[str]]]) -> list[Fault]:
    faults = []
    for value, dims in opened:
        free = [d for d in dims if not d.isdigit()]
        named = dict.fromkeys(d for d in free if d != "?")
        ways = [" ".join(f"--symbol {n}=N" for n in named)] if named and "?" not in free else []
        if not dims[0].isdigit() and len(free) == 1:
            ways.append("--batch N")
        ways.append(f"--input-shape {value.name}={','.join(d if d.isdigit() else 'N' for d in dims)}")
        faults.append(
            Fault(f"dynamic shape [{', '.join(dims)}]", f"input {value.name!r}", " or ".join(w for w in ways if w))
        )
    return faults


def _forget_shapes(graph: ir.Graph, options: LoadOptions, changed: bool) -> None:
    """Shapes that the source noted inside: kept where still true (they fill gaps of inference), else dropped."""
    for node in graph.all_nodes():
        for value in node.outputs:
            if value.shape is None:
                continue
            if changed or (options.batch is not None and not value.shape.is_static()):
                value.shape = None
                continue
            dims = [options.symbols.get(d, d) if isinstance(d, str) else d for d in map(_plain, value.shape.dims)]
            value.shape = ir.Shape(dims)

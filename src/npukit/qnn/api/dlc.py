# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""Writing a DLC: libQnnIr as one more backend, whose graphFinalize writes the file.

Its traps (shared/reference/qnn_abi.md section 5, qnn_more.md section 3, and tried here on 2.47): it crashes on a graph
input that no op reads and on some encodings (`hazards`), drops absent inputs, forgets the order of inputs and
outputs, and numbers tensors and nodes through the whole process, so equal files need one fresh process each (the
callers' business).
"""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Final

from npukit.errors import ArtifactError, Fault, GraphError
from npukit.qnn.api import marshal
from npukit.qnn.api.backend import Backend, GraphOptions
from npukit.qnn.api.libraries import Library, find
from npukit.qnn.graph import DType, Graph, Model, Op, Param, Tensor, TensorKind

_NEURONS: Final = {"HardSwish": 3, "ElementWiseSoftplus": 7}  # ElementWiseNeuron.operation
_LEGAL: Final = re.compile(r"[A-Za-z_][0-9A-Za-z_]*")


def write_dlc(model: Model, path: Path | str, *, library: Library | None = None) -> None:
    """Write the one graph of `model` to `path` with libQnnIr. No stamp, time as it is: `artifacts.dlc` adds those.

    Constants are passed by pointer; libQnnIr copies each once. Graph inputs that no op reads are left out. It may
    crash on what it does not expect: callers run this in a worker.

    Raises:
        GraphError: loose ends, illegal names, or what this libQnnIr cannot write; lists every op or tensor at fault.
        NativeError: libQnnIr fails, or cannot write the file.
        ArtifactError: `model` does not hold exactly one graph.
        MissingDependency: no libQnnIr is found.
    """
    if len(model.graphs) != 1:
        names = ", ".join(sorted(model.graphs)) or "none"
        raise ArtifactError(f"a DLC holds one graph, this model has {len(model.graphs)} ({names})", where=str(path))
    graph = next(iter(model.graphs.values()))
    _check_graph(graph)
    used = {id(tensor) for op in graph.ops for tensor in op.inputs}
    inputs = [tensor for tensor in graph.inputs if id(tensor) in used]
    graph = replace(graph, inputs=inputs, ops=[_with_absent(_surviving(op)) for op in graph.ops])
    with Backend("ir", library=library or find("ir")) as backend:
        _check_ops(graph, backend)
        with backend.context() as context:
            options = GraphOptions(dlc_path=Path(path))
            context.add_graph(graph, options=options, validate=False).finalize()  # validated above, all at once


def _surviving(op: Op) -> Op:
    """The op in the form that a DLC keeps.

    libQnnIr turns activations into ElementWiseNeuron, but HardSwish into its HARD_SIGMOID (1.0 where 6.0 is right, on
    every backend), and ElementWiseSoftplus into what libQnnSystem cannot read (tried on 2.47). Spelled as
    ElementWiseNeuron from the start they stay what they are.
    """
    if op.type not in _NEURONS:
        return op
    operation = Param(DType.UINT_32, _NEURONS[op.type])
    return replace(op, type="ElementWiseNeuron", params={**op.params, "operation": operation})


def _with_absent(op: Op) -> Op:
    """The op with a NULL tensor of its own for each absent input that a present one follows.

    libQnnIr drops a NULL tensor that was not created in the graph, and the inputs behind it move up: wrong numbers
    with rc 0. Created, with one axis of extent 0, it is read back as absent (tried on 2.47 and 2.51).
    """
    present = marshal.present_inputs(op)
    if None not in present:
        return op
    inputs: list[Tensor | None] = [tensor or _absent(f"{op.name}_absent_{i}") for i, tensor in enumerate(present)]
    return replace(op, inputs=inputs)


def _absent(name: str) -> Tensor:
    return Tensor(name, DType.FLOAT_32, (0,), TensorKind.NULL)


def _check_graph(graph: Graph) -> None:
    """Refuse tensors that are read or handed out but never made (libQnnIr would crash), and names that it changes."""
    made = {id(tensor) for tensor in graph.inputs}
    faults = []
    for op in graph.ops:
        for tensor in op.inputs:
            if tensor is not None and tensor.kind is not TensorKind.STATIC and id(tensor) not in made:
                faults.append(Fault(f"it reads the tensor {tensor.name}, which nothing made before", f"op {op.name}"))
        made.update(id(tensor) for tensor in op.outputs)
    written = {id(tensor) for op in graph.ops for tensor in op.outputs}
    faults += [Fault("no op makes this output", t.name) for t in graph.outputs if id(t) not in written]
    names = {f"tensor {tensor.name}": tensor.name for tensor in graph.tensors()}
    for where, name in (("the graph", graph.name), *names.items()):
        if not _LEGAL.fullmatch(name):
            faults.append(Fault("the name is no identifier, libQnnIr would change it without a word", where))
    if faults:
        raise GraphError("the graph cannot be written", where=f"graph {graph.name}", faults=faults)


def _check_ops(graph: Graph, backend: Backend) -> None:
    # An op of another package is written as it is: only a backend that the package is registered with knows it.
    reasons = ((op, backend.validate(op)) for op in graph.ops if op.package == "qti.aisw")
    faults = [Fault(reason, f"op {op.name} ({op.type})") for op, reason in reasons if reason]
    if faults:
        what = f"{backend.library.path.name} {backend.library.build_id} cannot write this graph to a DLC"
        raise GraphError(what, where=f"graph {graph.name}", faults=faults)

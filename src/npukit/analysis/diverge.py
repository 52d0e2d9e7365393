# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""The first tensor inside a lowered graph that differs from the source's value of the same name."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from npukit.analysis import compare
from npukit.errors import InputError, NpukitError
from npukit.qnn.graph import Graph, Tensor, TensorKind

log = logging.getLogger(__name__)


def first_divergence(
    graph: Graph, source: Path, inputs: Mapping[str, Any], backend: str, soc_id: int | None, limits: compare.Criteria
) -> str:
    """One sentence that names the first tensor, in executable order, whose values are not near enough.

    The graph runs once with every tensor that holds a source value as an output; the source runs on ONNX Runtime with
    the same values fetched. Empty where the two cannot be run like that (logged), or nothing inside diverges.

    Args:
        graph: the lowered graph; its tensors say which source value they hold.
        source: the source model.
        inputs: one sample, by source name.
        backend: "qnn-cpu" or "qnn-htp".
        soc_id: of the chip, for qnn-htp.
        limits: what a tensor must meet.
    """
    try:
        return _first(graph, source, inputs, backend, soc_id, limits)
    except NpukitError as error:
        log.info("the first tensor that diverges cannot be named: %s", error)
        return ""


def _first(
    graph: Graph, source: Path, inputs: Mapping[str, Any], backend: str, soc_id: int | None, limits: compare.Criteria
) -> str:
    from npukit.frontends.onnx.read_model import read_model
    from npukit.runtime.session import Session

    known = {v.name for node in read_model(source).model.graph for v in node.outputs if v.name}
    probes = [t for t in _made(graph) if t.held is not None and t.held.source in known]
    names = [t.held.source for t in probes if t.held is not None]
    with Session(source, backend="ort", in_process=True, fetch=tuple(dict.fromkeys(names))) as session:
        expected = session.run({info.name: inputs[info.name] for info in session.inputs})
    values = _run(graph, probes, inputs, backend, soc_id)
    seen: list[str] = []
    for op in graph.ops:
        for tensor in op.outputs:
            if id(tensor) not in values or tensor.held is None:
                continue
            name = tensor.held.source
            faults = _faults(expected[name], values[id(tensor)], limits)
            if faults:
                made = f"made by {op.type} {op.name!r}" + (f" for {', '.join(op.origin)}" if op.origin else "")
                last = f"; the last that agrees before it is {seen[-1]!r}" if seen else ""
                return f"the first tensor that diverges is {name!r}, {made}: {faults[0]}{last}"
            seen.append(name)
    return ""


def _faults(expected: Any, actual: Any, limits: compare.Criteria) -> list[str]:
    """Why a tensor is not near enough; nothing where its values are right but in another order.

    The layout pass may leave a flattened value in another order and turn the weights behind it instead.
    """
    import numpy as np

    try:
        faults = compare.judge(compare.compare(expected, actual), limits)
    except InputError as error:
        return [error.what]
    if faults and actual.ndim == 2:
        ordered = compare.compare(np.sort(expected, axis=None), np.sort(actual, axis=None))
        return faults if compare.judge(ordered, limits) else []
    return faults


def _made(graph: Graph) -> Iterator[Tensor]:
    for op in graph.ops:
        yield from (t for t in op.outputs if t.kind in (TensorKind.NATIVE, TensorKind.APP_READ))


def _run(
    graph: Graph, probes: Sequence[Tensor], inputs: Mapping[str, Any], backend: str, soc_id: int | None
) -> dict[int, Any]:
    """The probes' values as the source's arrays, by identity."""
    import numpy as np

    from npukit.qnn.api.backend import Backend
    from npukit.runtime.contract import from_native, gather, held_ports, to_native

    ends = {id(t) for t in graph.outputs}
    outputs = [*graph.outputs, *(t for t in probes if id(t) not in ends)]
    ports = held_ports(graph.inputs)
    feeds = {port.name: inputs[port.name] for port in ports}
    native = to_native(ports, gather(ports, feeds), [None] * len(ports))
    results = [np.empty(t.shape, t.dtype.numpy) for t in outputs]
    with _observable(probes), Backend(backend.removeprefix("qnn-"), soc_id=soc_id) as handle:
        composed = handle.context().add_graph(Graph(graph.name, graph.inputs, outputs, graph.ops))
        composed.finalize()
        composed.execute(native, results)
    given = held_ports(outputs)
    wanted = {id(t) for t in probes}
    return {
        id(t): from_native(port, array)
        for t, port, array in zip(outputs, given, results, strict=True)
        if id(t) in wanted
    }


@contextmanager
def _observable(probes: Sequence[Tensor]) -> Iterator[None]:
    """The probes as graph outputs, and back."""
    before = [(t, t.kind) for t in probes]
    try:
        for tensor in probes:
            tensor.kind = TensorKind.APP_READ
        yield
    finally:
        for tensor, kind in before:
            tensor.kind = kind

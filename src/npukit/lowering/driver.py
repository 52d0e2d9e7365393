# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""ONNX -> QNN graph: one pass over the nodes, all faults listed at once.

Checking a model is the same pass: nothing here writes a file or needs weights in memory.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import onnx_ir as ir

from npukit import plugins
from npukit.errors import Fault, LoweringError, NpukitError, nearest
from npukit.frontends.onnx.contradiction import contradiction
from npukit.frontends.onnx.expand_functions import expand_functions, has_body
from npukit.lowering.custom import lower_custom
from npukit.lowering.emitter import Emitter, Validator
from npukit.lowering.holding import channel_last, dtype_name
from npukit.lowering.layout import clean
from npukit.lowering.qdq import Collapsed, collapse
from npukit.lowering.registry import Unsupported, lowers
from npukit.lowering.views import merged_shape
from npukit.qnn.graph import Array, DType, Graph, Held, Tensor, TensorKind
from npukit.targets import Target

log = logging.getLogger(__name__)

_FLOAT_BITS = {32: DType.FLOAT_32, 16: DType.FLOAT_16}


@dataclass(frozen=True)
class LowerOptions:
    """How a graph is lowered.

    Attributes:
        name: the QNN graph's name.
        float_bitwidth: 32 or 16: the dtype that holds float values.
        io_layout: "source", or "nhwc": rank-4 inputs and outputs are held channels last where the graph is.
        integers: the graph will be quantized: ops take the forms that targets have for integers.
    """

    name: str = "graph"
    float_bitwidth: int = 32
    io_layout: str = "source"
    integers: bool = False


@dataclass
class NodeReport:
    """What one source node came to: the QNN op types, and notes on forms that were not taken."""

    node: str
    op: str
    emitted: list[str]
    notes: list[str] = field(default_factory=list)


@dataclass
class Lowered:
    """The QNN graph of a model.

    Attributes:
        graph: the graph; inputs and outputs carry `held`, which says how source values are held.
        report: one row a source node.
        names: source value name -> tensor name.
        folded: source outputs that are constants: name -> array.
        unused: source inputs on which nothing depends.
    """

    graph: Graph
    report: list[NodeReport]
    names: dict[str, str]
    folded: dict[str, Array | None] = field(default_factory=dict)
    unused: list[Held] = field(default_factory=list)


def handles(domain: str, op: str, version: int | None = None) -> bool:
    """Whether a lowering is registered for an op."""
    import npukit.lowering.ops  # noqa: F401 - registers the lowerings

    custom = plugins.find(domain, op)
    return lowers.find(domain, op, version) is not None or (custom is not None and not custom.expands)


def lower(
    model: ir.Model,
    targets: Sequence[Target],
    options: LowerOptions | None = None,
    validators: Mapping[str, Validator] | None = None,
) -> Lowered:
    """Lower a normalized model for all `targets` at once; the model is consumed (ops with bodies are expanded in it).

    `validators` maps a target's name to the op validation of its backend (`Backend.validate`); without one, that
    target's ops are not checked here.

    Raises:
        LoweringError: with one fault for each node that no form can express.
    """
    expanded: set[tuple[str, str]] = set()
    first: LoweringError | None = None
    while True:
        expand_functions(model, _keeper(frozenset(expanded)))
        try:
            return _lower(model, targets, options or LowerOptions(), validators or {})
        except _Failed as failed:
            first = first or failed.error
            more = {(n.domain, n.op_type) for n in failed.nodes if has_body(n)} - expanded
            if not more:
                raise first from None
            expanded |= more  # an op whose lowering has no form here may still be lowered by its definition


def _keeper(expanded: frozenset[tuple[str, str]]) -> Callable[[str, str, int], bool]:
    """What expand_functions leaves alone: ops with a lowering that has not failed yet."""
    return lambda domain, op, _: (domain, op) not in expanded and handles(domain, op)


class _Failed(Exception):
    """One attempt failed at `nodes`."""

    def __init__(self, error: LoweringError, nodes: list[ir.Node]) -> None:
        super().__init__(str(error))
        self.error = error
        self.nodes = nodes


def _lower(
    model: ir.Model, targets: Sequence[Target], options: LowerOptions, validators: Mapping[str, Validator]
) -> Lowered:
    source = model.graph
    collapsed = collapse(source)
    emitter = Emitter(
        Graph(options.name),
        targets,
        validators,
        float_dtype=_FLOAT_BITS[options.float_bitwidth],
        encodings=collapsed.encodings,
        quantized_constants=collapsed.constants,
        aliases=collapsed.aliases,
        integers=options.integers,
    )
    faults: list[Fault] = []
    for value in source.inputs:
        if value.const_value is None:
            try:
                emitter.input(value)
            except Unsupported as fault:
                faults.append(Fault(fault.reason, f"input {value.name!r}", f"{fault.kind}"))
                _poison(emitter, [value])
    report, failed = [], []
    for node in source:
        if node in collapsed.gone:
            continue
        try:
            report.append(_lower_node(emitter, node, collapsed))
        except Unsupported as fault:
            faults.append(_fault(node, fault))
            failed.append(node)
            _poison(emitter, node.outputs)
        except NpukitError:
            raise
        except Exception as error:  # noqa: BLE001 - a lowering reads what the model declares, and that may not fit
            faults.append(_contradicted(node, error))
            _poison(emitter, node.outputs)
    if not faults:
        faults = _outputs(emitter, source, options)
    if faults:
        names = ", ".join(target.name for target in targets)
        count = f"{len(faults)} node{'s' if len(faults) > 1 else ''}"
        raise _Failed(LoweringError(f"{count} cannot be lowered for {names}", faults=faults), failed)
    graph = clean(emitter.graph, nhwc_io=options.io_layout == "nhwc", emitter=emitter)
    made = {id(t) for op in graph.ops for t in op.outputs}
    read = {id(t) for op in graph.ops for t in op.inputs if t is not None}
    unused = [t.held for t in graph.inputs if id(t) not in read and t.held is not None]
    graph.inputs = [t for t in graph.inputs if id(t) in read]
    folded = {
        t.held.source: None if t.data is None else t.data.reshape(t.held.shape)  # a scalar is held as [1]
        for t in graph.outputs
        if id(t) not in made and t.held is not None
    }
    graph.outputs = [t for t in graph.outputs if id(t) in made]
    return Lowered(graph, report, emitter.names.mapping, folded, unused)


def _lower_node(emitter: Emitter, node: ir.Node, collapsed: Collapsed) -> NodeReport:
    function = lowers.find(node.domain, node.op_type, node.version)
    if function is None and handles(node.domain, node.op_type, node.version):
        function = lower_custom
    if function is None:
        known = [row.op for row in lowers if row.domain == node.domain]
        raise Unsupported(f"no lowering for {node.domain or 'ai.onnx'}::{node.op_type}", nearest(node.op_type, known))
    emitter.node = node
    emitter.notes = []
    first = len(emitter.graph.ops)
    if _runs_quantized(emitter, node):
        mark = emitter.mark()
        try:
            emitter.quantized = True
            function(emitter, node)
            return _node_report(emitter, node, first)
        except Unsupported as refusal:
            emitter.rollback(mark)
            emitter.notes = [f"runs in float: {refusal.reason}"]
        finally:
            emitter.quantized = False
    function(emitter, node)
    return _node_report(emitter, node, first)


def _node_report(emitter: Emitter, node: ir.Node, first: int) -> NodeReport:
    emitted = [op.type for op in emitter.graph.ops[first:]]
    return NodeReport(node.name or "", node.op_type, emitted, list(emitter.notes))


def _runs_quantized(emitter: Emitter, node: ir.Node) -> bool:
    """Whether every float tensor at a node has an encoding: then it runs on integer codes."""
    floats = [v for v in (*node.inputs, *node.outputs) if v is not None and v.dtype == ir.DataType.FLOAT]
    encoded = [
        emitter.has_encoding(v) or (v.const_value is not None and i < len(node.inputs)) for i, v in enumerate(floats)
    ]
    active = [v for v in node.inputs if v is not None and v.dtype == ir.DataType.FLOAT and emitter.has_encoding(v)]
    return (
        bool(active)
        and all(encoded)
        and all(emitter.has_encoding(v) for v in node.outputs if v.dtype == ir.DataType.FLOAT)
    )


def _fault(node: ir.Node, fault: Unsupported) -> Fault:
    return Fault(f"{fault.reason} [{fault.kind}]", f"{node.op_type} {node.name!r}", fault.hint)


def _contradicted(node: ir.Node, error: Exception) -> Fault:
    """The fault of a node that a lowering stumbled over, if no runtime runs it either; else `error` is ours."""
    reason = f"a number beyond what QNN holds ({error})" if isinstance(error, OverflowError) else contradiction(node)
    if not reason:
        raise error
    log.debug("lowering %s %r", node.op_type, node.name, exc_info=error)
    return Fault(f"its inputs, attributes and shapes do not fit: {reason}", f"{node.op_type} {node.name!r}")


def _poison(emitter: Emitter, values: Sequence[ir.Value]) -> None:
    """Stand-ins for what a failed node would have made, so that the nodes behind it are checked too."""
    emitter.quantized = False
    for value in values:
        try:
            emitter.output(value)
        except Unsupported:
            continue


def _outputs(emitter: Emitter, source: ir.Graph, options: LowerOptions) -> list[Fault]:
    """Make each source output a tensor of its own, written by an op."""
    faults = []
    taken: set[int] = {id(tensor) for tensor in emitter.graph.inputs}
    for value in source.outputs:
        try:
            emitter.node = None
            emitter.graph.outputs.append(_output(emitter, value, taken, options))
        except Unsupported as fault:
            faults.append(Fault(f"{fault.reason} [{fault.kind}]", f"output {value.name!r}", fault.hint))
        except (ValueError, IndexError) as error:
            node = value.producer()
            if node is None:
                raise
            faults.append(_contradicted(node, error))
    return faults


def _output(emitter: Emitter, value: ir.Value, taken: set[int], options: LowerOptions) -> Tensor:
    stand = emitter.value(value)
    emitter.quantized = emitter.has_encoding(stand)
    try:
        perm = emitter.order(value)
        if options.io_layout != "nhwc" or perm != channel_last(emitter.rank(value)):
            perm = None
        tensor = emitter.get(value, perm)
        if tensor.kind is TensorKind.STATIC:
            tensor.held = Held(value.name or "", dtype_name(emitter.source_dtype(value)), emitter.shape(value), perm)
            return tensor
        if emitter.base(tensor) is not tensor:  # more axes than the targets take: held with its first axes merged
            name, shape = tensor.name, merged_shape(tensor.shape, emitter.max_rank)
            tensor = emitter.emit("Reshape", [tensor], [emitter.temp(shape, tensor.dtype, tensor.encoding)])
            emitter.names.release(tensor.name)
            tensor.name = name
        elif id(tensor) in taken:  # a graph input, or a tensor that already is another output
            tensor = emitter.emit("Reshape", [tensor], [emitter.temp(tensor.shape, tensor.dtype, tensor.encoding)])
        taken.add(id(tensor))
    finally:
        emitter.quantized = False
    tensor.kind = TensorKind.APP_READ
    tensor.held = Held(value.name or "", dtype_name(emitter.source_dtype(value)), emitter.shape(value), perm)
    _name_output(emitter, tensor, value.name or "output")
    return tensor


def _name_output(emitter: Emitter, tensor: Tensor, source: str) -> None:
    """Let an output bear its source's name; the same value inside, held in another order, gives it up."""
    name = emitter.names.legal(source)
    if tensor.name == name:
        return
    holder = next((other for other in emitter.graph.tensors() if other.name == name), None)
    if holder is not None and holder.kind in (TensorKind.APP_WRITE, TensorKind.APP_READ):
        tensor.name = emitter.names.fresh(name)  # an output that is an input, or one that is there twice
        return
    if holder is not None:
        holder.name = emitter.names.fresh(name)
    tensor.name = name

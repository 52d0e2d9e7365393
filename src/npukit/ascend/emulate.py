# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""The arithmetic of the Ascend 310P as an ONNX graph: `emulate` rewrites a model so that any runtime computes it.

Every value that the chip holds as float16 is held as a float32 that float16 can express: an op computes in float32
from such values, and what it gives is saturated and rounded once (Clip, Cast to float16, Cast back).

Modelled, with the sections of shared/reference/ascend_facts.md (sources there):

- Saturation mode, the only one of the 310P (4.4): what rounds to infinity becomes +-65504, NaN becomes 0; in float32
  infinity becomes the largest float32.
- Matrix ops (MatMul, Gemm, Conv) take and give float16, with sums in float32 and one rounding (4.3).
- Weights are clamped to +-65504 before they are rounded (`--is_weight_clip`, 1.4, 4.4); -inf in a mask with them.
- The precision modes of `--precision_mode_v2` (1.4), see `npukit.ascend.modes`.

Not modelled, because nothing public says how it is: the order of sums and how they are split over cores, flushing of
subnormal numbers (they are kept), the approximations of single vector instructions, fusions that leave roundings out,
CANN's own lists of mixed precision (here matrix ops are white and all others grey; a list file changes that), and
which ops get float32 on the AI CPU under `origin` (matrix ops are taken as float16 there too, which a note says).
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx_ir as ir

from npukit.ascend.mixed_precision import ir_types
from npukit.ascend.modes import Mode
from npukit.errors import Fault, ModelError
from npukit.frontends.onnx.infer_shapes import InferenceFailed, infer_node
from npukit.frontends.onnx.inline_functions import inline_functions
from npukit.frontends.onnx.prepare_graph import prepare_graph
from npukit.frontends.onnx.rewrite import (
    Array,
    Names,
    add_constant,
    attribute,
    constant,
    is_ai_onnx,
    shape_of,
    subgraphs_of,
)

FIGURES = "npukit/figures"
"""The output with what the probes found, float64 [3 * probes]: elements that were saturated, NaNs that became 0, the
largest magnitude before saturation (NaN left out); all 0 where nothing was."""

FLOAT16_MAX = 65504.0
# The smallest float32 that rounds to infinity is 65520, half a step above the largest float16.
_BEYOND = float(np.nextafter(np.float32(65520), np.float32(0)))
_FLOAT32_MAX = float(np.finfo(np.float32).max)

_MATRIX = frozenset({"MatMul", "Gemm", "Conv", "ConvTranspose", "Einsum"})
# Kernels that the 310P has in float32 only (4.3).
_FLOAT32_ONLY = frozenset({"GridSample", "RoiAlign", "RoiAlignRotated"})
# Give nothing but elements that they took (or their negative): what they give needs no rounding.
_MOVES = frozenset({
    "Identity", "Reshape", "Transpose", "Squeeze", "Unsqueeze", "Flatten", "Concat", "Split", "Slice", "Gather",
    "GatherElements", "GatherND", "Expand", "Tile", "Pad", "DepthToSpace", "SpaceToDepth", "ReverseSequence", "Trilu",
    "Where", "Max", "Min", "Relu", "Clip", "MaxPool", "GlobalMaxPool", "ReduceMax", "ReduceMin", "TopK", "Neg", "Abs",
    "Compress", "Sign", "Hardmax", "Dropout", "Floor", "Ceil", "Round", "ArgMax", "ArgMin",
})  # fmt: skip
_SCATTERS = frozenset({"ScatterND", "ScatterElements", "Scatter"})  # move too, unless they add up
# Give nothing larger than what they took, or than 1.
_BOUNDED = frozenset({
    "Sigmoid", "Tanh", "Softmax", "Erf", "Sin", "Cos", "HardSigmoid", "Softsign", "Atan", "ReduceMean", "AveragePool",
    "GlobalAveragePool", "HardSwish", "Sqrt", "Asinh", "Acos", "Asin", "Swish", "Gelu",
})  # fmt: skip
# Give no NaN for finite numbers, of which none is beyond float16.
_NO_NAN = frozenset({
    "Add", "Sub", "Mul", "MatMul", "Gemm", "Conv", "ConvTranspose", "Einsum", "Exp", "Sigmoid", "Tanh", "Softmax",
    "Erf", "Sin", "Cos", "HardSigmoid", "HardSwish", "Softsign", "Softplus", "Atan", "Asinh", "Sum", "Mean", "Elu",
    "LeakyRelu", "PRelu", "Swish", "Gelu",
})  # fmt: skip
_NO_NAN_FLOAT16 = frozenset({"ReduceMean", "ReduceSum", "AveragePool", "GlobalAveragePool", "ReduceSumSquare"})
# Inputs that say how to compute, not what with; they stay float32.
_PARAMETERS: Mapping[str, tuple[int, ...]] = {"Resize": (1, 2), "Upsample": (1,), "Dropout": (1,)}
_FLOATS = (ir.DataType.FLOAT, ir.DataType.FLOAT16)
_ABSENT = frozenset(t for t in ir.DataType if t.name.startswith(("BFLOAT", "FLOAT8", "FLOAT4", "INT4", "UINT4")))
_OLDEST_OPSET = 11  # the oldest that atc takes (4.1), and the oldest with Clip's limits as inputs


@dataclass(frozen=True)
class Probe:
    """A tensor that is watched.

    Attributes:
        tensor: its name in the source.
        node: the node that makes it, or the first that takes it (an input of the model).
        op_type: that node's type.
        dtype: "float16" or "float32".
    """

    tensor: str
    node: str
    op_type: str
    dtype: str


@dataclass(frozen=True)
class Saturation:
    """A tensor of which elements were saturated or NaN, over all runs.

    Attributes:
        tensor: its name in the source.
        node: the node that makes it, or the first that takes it (an input of the model).
        op_type: that node's type.
        dtype: what the chip holds it as.
        count: elements that were beyond the dtype's range.
        nans: elements that were NaN and became 0.
        largest: largest magnitude before saturation; infinite where float32 could not hold it.
        runs: runs in which that happened.
    """

    tensor: str
    node: str
    op_type: str
    dtype: str
    count: int
    nans: int
    largest: float
    runs: int

    def to_json(self) -> dict[str, object]:
        """As one JSON-ready object; a magnitude that is infinite is None."""
        largest = self.largest if np.isfinite(self.largest) else None
        return {**vars(self), "largest": largest}


@dataclass
class Emulated:
    """A rewritten model.

    Attributes:
        model: the graph; after its own outputs comes `FIGURES`, unless there are no probes.
        mode: what it emulates.
        probes: the tensors that are watched.
        notes: what the emulation had to assume, for people.
    """

    model: ir.Model
    mode: Mode
    probes: list[Probe] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def emulate(model: ir.Model, mode: Mode) -> Emulated:
    """Rewrite `model`, in place, so that it computes as the chip does.

    Names, dtypes and shapes of inputs and outputs stay, and inner values keep their names (as float32). Weights that
    are already float16 stay as they are in memory.

    Args:
        model: a model as `read_model` gives it; functions are inlined.
        mode: what to emulate.

    Raises:
        ModelError: control flow, bfloat16 or values without known dtype; every one is listed.
    """
    prepare_graph(model)
    inline_functions(model)
    _check_and_infer(model)
    return _Rewriter(model, mode).rewrite()


def _check_and_infer(model: ir.Model) -> None:
    """Give every value its dtype.

    Raises:
        ModelError: the graph is of a kind that cannot be emulated, with every reason.
    """
    faults: list[Fault] = []
    opset = model.opset_imports.get("", model.opset_imports.get("ai.onnx", 1))
    if opset < _OLDEST_OPSET:
        faults.append(Fault(f"opset {opset}: atc takes {_OLDEST_OPSET} and newer", hint="export it with opset 14"))
    for value in [*model.graph.inputs, *model.graph.initializers.values()]:
        faults += _unfit(value, "")
    for node in model.graph:
        if subgraphs_of(node):
            faults.append(
                Fault(
                    f"{node.op_type} is control flow, which is not emulated",
                    node.name or "",
                    "npukit convert MODEL --target ascend310p3 resolves it where conditions are constant",
                )  # fmt: skip
            )
            continue
        try:
            infer_node(node)
        except InferenceFailed as error:
            faults.append(Fault(f"{node.op_type} contradicts its definition: {error}", node.name or ""))
            continue
        for output in node.outputs:
            if not isinstance(output.type, ir.TensorType) and output.name and not faults:
                what = f"the dtype of {output.name!r}, which {node.op_type} makes, is not known, or is no tensor's"
                faults.append(Fault(what, node.name or ""))
            faults += _unfit(output, node.name or "")
    if faults:
        raise ModelError("the model cannot be emulated", faults=faults)


def _unfit(value: ir.Value, where: str) -> list[Fault]:
    if value.dtype in _ABSENT:
        what = f"{value.name!r} is {value.dtype.name.lower()}, which the 310P does not have"
        return [Fault(what, where, "export it as float16")]
    return []


class _Rewriter:
    """One model on its way: nodes are gathered in order, the old ones with changed inputs and the new ones.

    `held` maps a value of the source to the float32 value that stands for it; those in `half` float16 can express by
    their construction, those in `finite` are known not to be NaN.
    """

    def __init__(self, model: ir.Model, mode: Mode) -> None:
        self.result = Emulated(model, mode)
        self.graph, self.mode = model.graph, mode
        self.names = Names(model.graph)
        self.nodes: list[ir.Node] = []
        self.held: dict[ir.Value, ir.Value] = {}
        self.half: set[ir.Value] = set()
        self.finite: set[ir.Value] = set()
        self.rounded: dict[ir.Value, ir.Value] = {}
        self.scalars: dict[float, ir.Value] = {}
        self.figures: list[ir.Value] = []
        self.wide_matrices: list[str] = []
        self.types: list[frozenset[str]] = []

    def rewrite(self) -> Emulated:
        nodes = list(self.graph)
        dtypes = [value.dtype for value in self.graph.outputs]
        halves = [value for value in self.graph.inputs if value.dtype == ir.DataType.FLOAT16]
        self.graph.remove(nodes)
        for value in halves:
            self.held[value] = self._cast_to(value, ir.DataType.FLOAT)
        for node in nodes:
            if is_ai_onnx(node, "Cast", "CastLike"):
                self._cast(node)
            else:
                self._node(node)
        outputs = [self._output(v, dtype) for v, dtype in zip(self.graph.outputs, dtypes, strict=True)]
        if self.figures:
            figures = self._op("Concat", *self.figures, axis=0)
            figures.name, figures.shape = FIGURES, ir.Shape((3 * len(self.figures),))
            figures.type = ir.TensorType(ir.DataType.DOUBLE)
            outputs.append(figures)
        self.graph.extend(self.nodes)
        self.graph.outputs[:] = outputs
        self._drop_constants()
        self._note()
        return self.result

    # ------------------------------------------------------------ nodes

    def _node(self, node: ir.Node) -> None:
        self.types.append(ir_types(node))
        half, harmless = self._is_half(node), _harmless(node)  # before its constants are replaced
        if half and is_ai_onnx(node, *_MATRIX) and node.outputs[0].dtype == ir.DataType.FLOAT:
            self.wide_matrices.append(node.name or "")
        taken: list[ir.Value] = []
        for i, value in enumerate(node.inputs):
            if value is None or value.dtype not in _FLOATS or i in _PARAMETERS.get(node.op_type, ()):
                continue
            held = self._taken(value)
            taken.append(self._round(held, value, node) if half else held)
            node.replace_input_with(i, taken[-1])
        self.nodes.append(node)
        for value in node.outputs:
            if value.dtype in _FLOATS and value.name and not is_ai_onnx(node, "Constant"):
                self._give(node, value, taken, half=half, harmless=harmless)

    def _give(self, node: ir.Node, output: ir.Value, taken: list[ir.Value], *, half: bool, harmless: bool) -> None:
        """Saturate and round what a node gives, unless it only moves what it took."""
        name, op_type = str(output.name), node.op_type if node.domain == "" else ""
        if output.dtype == ir.DataType.FLOAT16 and ("dtype" in node.attributes or op_type == "ConstantOfShape"):
            # its dtype is in the node, not in what it takes
            output.name = self.names.value(f"{name}/float16")
            self._hold(output, self._cast_to(output, ir.DataType.FLOAT), name, half=True)
            return
        output.type = ir.TensorType(ir.DataType.FLOAT)
        if _moves(node):
            self._hold(output, output, name, half=bool(taken) and all(v in self.half for v in taken))
            if taken and all(v in self.finite for v in taken):
                self.finite.add(output)
            return
        output.name = self.names.value(f"{name}/exact")
        bounded = op_type in _BOUNDED
        nans = not (op_type in _NO_NAN or (half and op_type in _NO_NAN_FLOAT16) or harmless)
        made = output
        if nans or not bounded:
            made = self._saturate(made, name, node, half=half, nans=nans)
        self._hold(output, self._to_half(made) if half else made, name, half=half)
        self.finite.add(self.held[output])

    def _cast(self, node: ir.Node) -> None:
        """A Cast: to float16 it rounds, from float16 to float32 it does nothing."""
        value, output = node.inputs[0], node.outputs[0]
        assert value is not None
        assert output.dtype is not None
        floats = value.dtype in _FLOATS
        made = self._taken(value) if floats else value
        if output.dtype not in _FLOATS:
            node.replace_input_with(0, made)
            if node.op_type == "CastLike":  # what it is like may have changed
                node.op_type = "Cast"
                node.resize_inputs(1)
                node.attributes["to"] = ir.AttrInt64("to", int(output.dtype))
            self.nodes.append(node)
            return
        if not floats:
            made = self._cast_to(value, ir.DataType.FLOAT)
            if value.dtype != ir.DataType.DOUBLE:
                self.finite.add(made)
        name = str(output.name)
        half = output.dtype == ir.DataType.FLOAT16 or (self._is_half(node) and made not in self.half)
        if half and made not in self.half:
            made = self._to_half(self._saturate(made, name, node, half=True, nans=made not in self.finite))
            self.finite.add(made)
        else:
            same, made = made, self._op("Identity", made)
            self.finite |= {made} if same in self.finite else set()
            half = same in self.half
        output.name = self.names.value(f"{name}/source")
        self._hold(output, made, name, half=half)

    def _hold(self, output: ir.Value, value: ir.Value, name: str, *, half: bool) -> None:
        """From now on `value`, under that name, stands for the source's `output`."""
        value.name, value.shape, value.type = name, output.shape, ir.TensorType(ir.DataType.FLOAT)
        self.held[output] = value
        if half:
            self.half.add(value)

    def _output(self, value: ir.Value, dtype: ir.DataType | None) -> ir.Value:
        """What the graph gives for its output `value`: the source's dtype under the source's name."""
        if value not in self.held or value.producer() is None or _array(value) is not None:
            return value
        held = self.held[value]
        if dtype != ir.DataType.FLOAT16:
            return held
        name = str(held.name)
        final = held
        if held not in self.half:
            final = self._saturate(held, name, value.producer(), half=True, nans=held not in self.finite)
        held.name = self.names.value(f"{name}/float32")
        final = self._cast_to(final, ir.DataType.FLOAT16)
        final.name, final.shape = name, value.shape
        return final

    # ------------------------------------------------------------ what is float16

    def _is_half(self, node: ir.Node) -> bool:
        """Whether the chip computes the node in float16."""
        floats = [v for v in (*node.inputs, *node.outputs) if v is not None and v.dtype in _FLOATS]
        if not floats or is_ai_onnx(node, *_FLOAT32_ONLY):
            return False
        if self.mode.precision == "fp16" or is_ai_onnx(node, *_MATRIX):
            return True
        if self.mode.precision == "cube_fp16in_fp32out":
            return False
        given = [v for v in node.outputs if v.dtype in _FLOATS] or floats
        if given[0].dtype == ir.DataType.FLOAT16 or self.mode.precision == "origin":
            return given[0].dtype == ir.DataType.FLOAT16
        colour = self.mode.lists.colour(ir_types(node))
        return colour == "white" or (colour == "grey" and self._follows_half(node))

    def _follows_half(self, node: ir.Node) -> bool:
        """Whether the first value that the node takes, constants left out, is float16."""
        for value in node.inputs:
            if value is not None and value.dtype in _FLOATS and _array(value) is None:
                return self.held.get(value, value) in self.half
        return False

    # ------------------------------------------------------------ values

    def _taken(self, value: ir.Value) -> ir.Value:
        """The float32 value that stands for a value of the source."""
        if value in self.held:
            return self.held[value]
        array, taken = _array(value), value
        if array is not None and array.dtype == np.float16:
            if not _fits(array):
                taken = self._constant(_clamped(array), f"{value.name}/clamped")
            taken = self._cast_to(taken, ir.DataType.FLOAT)
            self.half.add(taken)
        self.held[value] = taken
        return taken

    def _round(self, taken: ir.Value, source: ir.Value, node: ir.Node) -> ir.Value:
        """`taken` as the float16 that `node` takes; made once for all who take it."""
        if taken in self.half:
            return taken
        if taken not in self.rounded:
            array = _array(source)
            if array is None:
                name = source.name if source.producer() is None else taken.name
                made = self._saturate(taken, str(name), node, half=True, nans=taken not in self.finite)
            elif not _fits(array):
                made = self._constant(_clamped(array), f"{source.name}/clamped")
            else:
                made = taken
            self.rounded[taken] = self._to_half(made)
            self.half.add(self.rounded[taken])
            self.finite.add(self.rounded[taken])
        return self.rounded[taken]

    def _to_half(self, value: ir.Value) -> ir.Value:
        return self._cast_to(self._cast_to(value, ir.DataType.FLOAT16), ir.DataType.FLOAT)

    def _saturate(self, value: ir.Value, tensor: str, node: ir.Node | None, *, half: bool, nans: bool) -> ir.Value:
        """`value` with 0 for NaN and within the dtype's range, watched as `tensor`."""
        if 0 in (shape_of(value) or ()):
            return value
        limit, beyond = (FLOAT16_MAX, _BEYOND) if half else (_FLOAT32_MAX, _FLOAT32_MAX)
        found = None
        if nans:
            bad = self._op("IsNaN", value)
            value = self._op("Where", bad, self._scalar(0.0), value)
            found = self._op("ReduceSum", self._cast_to(bad, ir.DataType.INT32), keepdims=0)
        self.figures.append(self._figures(self._op("Abs", value), found, self._scalar(beyond)))
        node_name, op_type = (node.name or "", node.op_type) if node is not None else ("", "")
        self.result.probes.append(Probe(tensor, node_name, op_type, "float16" if half else "float32"))
        return self._op("Clip", value, self._scalar(-limit), self._scalar(limit))

    def _figures(self, magnitude: ir.Value, nans: ir.Value | None, beyond: ir.Value) -> ir.Value:
        """Saturated elements, NaNs and the largest magnitude; elements are only counted where there are any."""
        top = self._op("ReduceMax", magnitude, keepdims=0)
        condition = self._op("Greater", top, beyond)
        if nans is not None:
            condition = self._op("Or", condition, self._cast_to(nans, ir.DataType.BOOL))
        nodes, self.nodes = self.nodes, []
        over = self._cast_to(self._op("Greater", magnitude, beyond), ir.DataType.INT32)
        count = self._op("ReduceSum", over, keepdims=0)
        figures = [self._single(figure) for figure in (count, nans or self._op("Sub", count, count), top)]
        some = self._op("Concat", *figures, axis=0)
        branches = {"then_branch": self._branch(some)}
        branches["else_branch"] = self._branch(self._op("Constant", value=ir.tensor(np.zeros(3))))
        self.nodes = nodes
        return self._op("If", condition, **branches)

    def _single(self, figure: ir.Value) -> ir.Value:
        """A scalar as float64 [1]."""
        return self._op("Reshape", self._cast_to(figure, ir.DataType.DOUBLE), self._one)

    def _branch(self, result: ir.Value) -> ir.Graph:
        """The nodes gathered so far as a graph of their own."""
        nodes, self.nodes = self.nodes, []
        result.type, result.shape = ir.TensorType(ir.DataType.DOUBLE), ir.Shape((3,))
        return ir.Graph([], [result], nodes=nodes, name=f"npukit/figures/{len(self.figures)}")

    def _op(self, op_type: str, *inputs: ir.Value, **attributes: Any) -> ir.Value:
        attrs = [ir.convenience.convert_attribute(key, value) for key, value in attributes.items()]
        node = ir.Node("", op_type, inputs, attrs, name=self.names.node(f"npukit/{op_type}"))
        node.outputs[0].name = self.names.value(f"{node.name}/out")
        self.nodes.append(node)
        return node.outputs[0]

    def _cast_to(self, value: ir.Value, dtype: ir.DataType) -> ir.Value:
        made = self._op("Cast", value, to=int(dtype))
        made.type = ir.TensorType(dtype)
        return made

    def _constant(self, array: Array, name: str) -> ir.Value:
        return add_constant(self.graph, self.names, array, name)

    def _scalar(self, number: float) -> ir.Value:
        if number not in self.scalars:
            self.scalars[number] = self._constant(np.asarray(number, np.float32), f"npukit/{number:g}")
        return self.scalars[number]

    def _drop_constants(self) -> None:
        """Drop the initializers that no node takes any more, because a clamped one took their place."""
        inner = [n for node in self.nodes for graph in subgraphs_of(node) for n in graph]
        taken = {value for node in (*self.nodes, *inner) for value in node.inputs} | set(self.graph.outputs)
        for name, value in list(self.graph.initializers.items()):
            if value not in taken:
                del self.graph.initializers[name]

    @functools.cached_property
    def _one(self) -> ir.Value:
        return self._constant(np.ones(1, np.int64), "npukit/one")

    def _note(self) -> None:
        if self.wide_matrices and self.mode.precision == "origin":
            some = ", ".join(self.wide_matrices[:3]) + (", ..." if len(self.wide_matrices) > 3 else "")
            self.result.notes.append(
                f"matrix ops that are float32 in the graph are computed in float16, because the 310P has no others; "
                f"under origin atc takes the AI CPU or refuses them: {len(self.wide_matrices)} ({some})"
            )
        self.result.notes += self.mode.lists.unmatched(self.types)


def _moves(node: ir.Node) -> bool:
    """Whether the node gives nothing but elements that it took, or their negative."""
    if node.domain != "":
        return False
    scatters = node.op_type in _SCATTERS and attribute(node, "reduction", "none") == "none"
    return scatters or node.op_type in _MOVES


def _harmless(node: ir.Node) -> bool:
    """Whether the second operand, a constant, lets no NaN come of a finite first: a divisor or a whole exponent."""
    if not is_ai_onnx(node, "Div", "Pow") or node.inputs[1] is None:
        return False
    array = constant(node.inputs[1])
    if array is None or array.dtype.kind != "f" or not np.isfinite(array).all():
        return False
    if node.op_type == "Div":
        return bool(array.astype(np.float16).all())  # a small one may round to 0
    return bool(((array >= 0) & (array == np.floor(array))).all())


def _array(value: ir.Value) -> Array | None:
    """The value's array when it is an initializer or made by a Constant node."""
    array = constant(value)
    producer = value.producer()
    if array is None and producer is not None and is_ai_onnx(producer, "Constant"):
        tensor = ir.convenience.get_const_tensor(value)
        array = None if tensor is None else tensor.numpy()
    return array


def _fits(array: Array) -> bool:
    """Whether all of a constant is within float16's range; without a copy of it, and False for NaN."""
    return array.size == 0 or bool(max(-array.min(), array.max()) <= FLOAT16_MAX and not np.isnan(array.min()))


def _clamped(array: Array) -> Array:
    """A constant as `--is_weight_clip` leaves it, NaN as 0."""
    clamped: Array = np.clip(np.where(np.isnan(array), 0, array), -FLOAT16_MAX, FLOAT16_MAX).astype(array.dtype)
    return clamped

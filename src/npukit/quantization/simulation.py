# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""A QNN graph on ONNX Runtime with every tensor in reach: for calibration, and to judge a quantized graph.

The graph is raised; "float" leaves encodings out, "qdq" applies every one. ONNX Runtime's own integer kernels stay
off: on processors without VNNI they saturate sums of products in 16 bits, which no NPU does. Products of codes are
computed in float32, which is exact for 8-bit operands up to some hundred terms, and within the rounding of float32
beyond.
"""

from __future__ import annotations

import shutil
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Literal

import numpy as np
import onnx_ir as ir

from npukit.qnn.graph import Array, DType, Graph, Op, Tensor, TensorKind
from npukit.quantization.roles import weight_axis
from npukit.raising import raise_graph, refuse_foreign
from npukit.raising.encodings import dequantized, storage_dtype
from npukit.runtime.ort import loadable, open_session
from npukit.worker import note

# How far below the middle between two codes HTP's RmsNorm rounds up, in steps: it cuts off instead of rounding
# (measured on the emulator, V68 to V79: errors of -0.97 to 0.06 steps; benchmarks/simulation.py).
_RMS_NORM_CUTS = 0.45
# Products whose result goes into the next op unrounded (V73 to V79; V68 and V69 round; measured on pairs).
_PRODUCTS = ("Conv2d", "DepthWiseConv2d", "FullyConnected", "MatMul", "Batchnorm")
_FUSED = {"HardSwish": _PRODUCTS, "Prelu": (*_PRODUCTS, "TransposeConv2d")}
_HARD_SWISH = 3  # of ElementWiseNeuron's `operation`


class Simulation:
    """A graph in ONNX Runtime.

    Args:
        graph: any QNN graph that raises wholly.
        quantized: "float" or "qdq", as `raise_graph` has it.
        fetch: tensors to be had beside the graph's outputs.
        threads: of ONNX Runtime; None for its choice.
        change: what is done to the raised model before it is loaded.

    Raises:
        UsageError: the graph has ops without ONNX expression; all are named.
    """

    def __init__(
        self,
        graph: Graph,
        quantized: Literal["float", "qdq"],
        *,
        fetch: Sequence[Tensor] = (),
        threads: int | None = None,
        change: Callable[[ir.Model], None] | None = None,
    ) -> None:
        import onnxruntime

        raised = raise_graph(as_computed(graph) if quantized == "qdq" else graph, quantized=quantized)
        refuse_foreign(raised)
        if change is not None:
            change(raised)
        values = {output.name: output for node in raised.graph for output in node.outputs}
        known = {output.name for output in raised.graph.outputs}
        for tensor in fetch:
            if tensor.name not in known and tensor.name in values:
                known.add(tensor.name)
                raised.graph.outputs.append(values[tensor.name])
        self.outputs = [output.name or "" for output in raised.graph.outputs]
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        options.add_session_config_entry("session.disable_quant_qdq", "1")
        # Threads that wait in a loop for the next run would take the processor from those that observe.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        if threads is not None:
            options.intra_op_num_threads = threads
        source, folder = loadable(raised, graph.static_bytes(), "npukit-simulation-")
        if folder is not None:
            weakref.finalize(self, shutil.rmtree, folder, ignore_errors=True)
        self._session = open_session(source, options)

    def run(self, feeds: Mapping[str, Array], names: Sequence[str] | None = None) -> dict[str, Array]:
        """Run on native arrays by tensor name; gives `names`, or every output."""
        wanted = list(self.outputs if names is None else names)
        note("onnxruntime.run")
        return dict(zip(wanted, self._session.run(wanted, dict(feeds)), strict=True))


def as_computed(graph: Graph) -> Graph:
    """`graph` in the form whose definitions give what HTP computes from V73 on. The graph itself is untouched.

    LayerNorm adds its beta in whole steps of the output, and RmsNorm rounds down: at 8 bits they keep 2 and 4 dB less
    than their definitions would. Prelu and HardSwish take what a product before them makes without rounding: 2 dB more.
    """
    ops: list[Op] = []
    exact: dict[int, Tensor] = {}
    readers = _readers(graph)
    for op in graph.ops:
        made = _norm_as_computed(op) if op.type in ("LayerNorm", "RmsNorm") else op
        made = replace(made, inputs=[t if t is None else exact.get(id(t), t) for t in made.inputs])
        output = op.outputs[0] if op.outputs else None
        if output is not None and len(found := readers.get(id(output), [])) == 1 and _fused(op, found[0], readers):
            real = exact[id(output)] = Tensor(f"{output.name}/unrounded", DType.FLOAT_32, output.shape)
            ops.append(replace(made, outputs=[real]))
            ops.append(Op(f"{op.name}/rounded", "Quantize", [real], [output]))  # for whoever fetches it
        else:
            ops.append(made)
    return Graph(graph.name, graph.inputs, graph.outputs, ops)


def _readers(graph: Graph) -> dict[int, list[Op]]:
    found: dict[int, list[Op]] = {}
    for op in graph.ops:
        for tensor in op.inputs:
            if tensor is not None:
                found.setdefault(id(tensor), []).append(op)
    return found


def _fused(op: Op, reader: Op, readers: dict[int, list[Op]]) -> bool:
    """Whether HTP computes both at once: at 8 bits, and where nothing else reads what is between.

    Nor where a Concat and another op read the result.
    """
    after = readers.get(id(reader.outputs[0]), [])
    if len(after) > 1 and any(last.type == "Concat" for last in after):
        return False
    neuron = reader.params.get("operation") if reader.type == "ElementWiseNeuron" else None
    kind = "HardSwish" if neuron is not None and neuron.value == _HARD_SWISH else reader.type
    if op.type not in _FUSED.get(kind, ()) or (op.type == "MatMul" and weight_axis(op) is None):
        return False
    return all(
        t is not None and t.dtype is DType.UFIXED_POINT_8 for t in (op.inputs[0], op.outputs[0], reader.outputs[0])
    )


def _norm_as_computed(op: Op) -> Op:
    output, beta = op.outputs[0], op.inputs[2] if len(op.inputs) > 2 else None
    if output.encoding is None or beta is None or beta.data is None or not beta.dtype.is_quantized:
        return op
    step = output.encoding.scale
    values = dequantized(beta).astype(np.float64)
    values = np.rint(values / step) * step if op.type == "LayerNorm" else values - _RMS_NORM_CUTS * step
    added = Tensor(f"{beta.name}/added", DType.FLOAT_32, beta.shape, TensorKind.STATIC, data=values.astype(np.float32))
    return replace(op, inputs=[*op.inputs[:2], added, *op.inputs[3:]])


def native_feeds(graph: Graph, sample: Mapping[str, Array], quantized: Literal["float", "qdq"]) -> dict[str, Array]:
    """Source-side arrays by source name as the raised graph takes them: tensor names, native shapes and dtypes."""
    from npukit.quantization.ranges import codes

    feeds = {}
    for tensor in graph.inputs:
        array = np.asarray(sample[tensor.held.source if tensor.held is not None else tensor.name])
        if tensor.held is not None and tensor.held.perm is not None:
            array = array.transpose(tensor.held.perm)
        array = array.reshape(tensor.shape)
        if tensor.dtype.is_quantized and quantized == "qdq":
            assert tensor.encoding is not None
            array = codes(array, tensor.encoding, tensor.dtype)
        else:
            dtype = np.dtype(np.float32) if tensor.dtype.is_quantized else storage_dtype(tensor.dtype)
            array = array.astype(dtype, copy=False)
        feeds[tensor.name] = np.ascontiguousarray(array)
    return feeds


def real_outputs(graph: Graph, results: Mapping[str, Array]) -> dict[str, Array]:
    """The graph's outputs by source name, in the source's layout, as real values."""
    from npukit.quantization.ranges import reals

    found = {}
    for tensor in graph.outputs:
        array = results[tensor.name]
        if tensor.encoding is not None and tensor.dtype.is_quantized and array.dtype.kind in "iu":
            array = reals(array, tensor.encoding)
        if tensor.held is not None and tensor.held.perm is not None:
            array = array.transpose(np.argsort(tensor.held.perm))
        name = tensor.held.source if tensor.held is not None else tensor.name
        found[name] = array.reshape(tensor.held.shape) if tensor.held is not None else array
    return found


def computed(graph: Graph) -> list[Tensor]:
    """Tensors that ops make."""
    return [t for t in graph.tensors() if t.kind is not TensorKind.STATIC and t.kind is not TensorKind.APP_WRITE]

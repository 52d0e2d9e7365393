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
from typing import Literal

import numpy as np
import onnx_ir as ir

from npukit.qnn.graph import Array, Graph, Tensor, TensorKind
from npukit.raising import as_computed, raise_graph, refuse_foreign
from npukit.raising.encodings import storage_dtype
from npukit.runtime.ort import loadable, open_session
from npukit.worker import note


class Simulation:
    """A graph in ONNX Runtime.

    Args:
        graph: any QNN graph that raises wholly.
        quantized: "float" or "qdq", as `raise_graph` has it.
        fetch: tensors to be had beside the graph's outputs.
        threads: of ONNX Runtime; None for its choice.
        change: what is done to the raised model before it is loaded.
        arch: Hexagon architecture whose arithmetic "qdq" has; 0 for what the ops' definitions say.

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
        arch: int = 73,
    ) -> None:
        import onnxruntime

        raised = raise_graph(as_computed(graph, arch) if quantized == "qdq" else graph, quantized=quantized)
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

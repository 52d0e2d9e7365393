# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""The arithmetic of an Ascend chip on ONNX Runtime: the rewritten graph as an engine, with what it saturates.

See `npukit.ascend.emulate` for what is modelled.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import onnx_ir as ir

from npukit.ascend.emulate import Emulated, Saturation, emulate, parse_mode
from npukit.errors import UsageError
from npukit.runtime.contract import Array
from npukit.runtime.engine import Request
from npukit.runtime.ort import OrtEngine

if TYPE_CHECKING:
    import onnxruntime

_EMBED_LIMIT = 1 << 28  # above it the weights go to a file, which ONNX Runtime maps: a copy less in memory


def open_engine(request: Request) -> EmulatedEngine:
    """An engine for a .onnx file as the chip that `request.emulate` names would compute it.

    Raises:
        ModelError: the model is broken, or of a kind that cannot be emulated.
        UsageError: not an .onnx file; no such chip or precision mode.
    """
    import onnx

    from npukit.frontends.onnx.read_model import read_model

    if request.kind != "onnx":
        raise UsageError("only .onnx files are emulated", where=request.path or "", hint="give the source model")
    mode = parse_mode(request.emulate)
    source = Path(request.path) if request.path is not None else onnx.load_from_string(request.content or b"")
    emulated = emulate(read_model(source).model, mode)
    weights = sum(v.const_value.nbytes for v in emulated.model.graph.initializers.values() if v.const_value is not None)
    if weights < _EMBED_LIMIT:
        return EmulatedEngine(ir.to_proto(emulated.model).SerializeToString(), emulated, request)
    folder = tempfile.mkdtemp(prefix="npukit-emulated-")
    path = Path(folder, "model.onnx")
    ir.save(emulated.model, path, external_data="model.data")
    engine = EmulatedEngine(path, emulated, request)
    engine.folder = folder
    return engine


class EmulatedEngine(OrtEngine):
    """A rewritten model in ONNX Runtime; the outputs of its probes are not given, but gathered."""

    def __init__(self, source: Path | bytes, emulated: Emulated, request: Request) -> None:
        self._probes = emulated.probes
        self._found: dict[str, Saturation] = {}
        super().__init__(source, threads=request.threads, fetch=request.fetch)
        self._watched = [name for probe in self._probes for name in probe.outputs]
        watched = set(self._watched)
        self._outputs = [port for port in self._outputs if port.tensor not in watched]
        self._output_names = [port.tensor for port in self._outputs]
        reason = f"ONNX Runtime computes it as {emulated.mode} would"
        self.description = replace(
            self.description,
            outputs=tuple(self._outputs),
            placement=(replace(self.description.placement[0], reason=reason),),
            library=f"{self.description.library}, as {emulated.mode}",
            notes=tuple(emulated.notes),
        )

    def saturations(self, *, clear: bool = False) -> list[Saturation]:
        """The tensors that were saturated in any run so far, in the order of the graph; `clear` begins anew."""
        found = [self._found[probe.top] for probe in self._probes if probe.top in self._found]
        if clear:
            self._found.clear()
        return found

    def _run_plain(self, inputs: Sequence[Array]) -> list[Array]:
        feeds = {port.tensor: array for port, array in zip(self._inputs, inputs, strict=True)}
        results: list[Array] = self._session.run([*self._output_names, *self._watched], feeds)
        count = len(self._output_names)
        self._gather(dict(zip(self._watched, results[count:], strict=True)))
        return results[:count]

    def _gather(self, figures: dict[str, Any]) -> None:
        for probe in self._probes:
            count = int(figures[probe.count])
            nans = int(figures[probe.nans]) if probe.nans else 0
            if not count and not nans:
                continue
            before = self._found.get(probe.top)
            largest = float(figures[probe.top])
            self._found[probe.top] = Saturation(
                probe.tensor, probe.node, probe.op_type, probe.dtype,
                count + (before.count if before else 0), nans + (before.nans if before else 0),
                max(largest, before.largest if before else 0.0), 1 + (before.runs if before else 0),
            )  # fmt: skip

    def _make(self, source: str | bytes, options: onnxruntime.SessionOptions) -> Any:
        import onnxruntime

        # Constants are folded and nothing else: no fusion may leave out a rounding.
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
        return super()._make(source, options)

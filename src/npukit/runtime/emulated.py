# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""The arithmetic of an Ascend chip on ONNX Runtime: the rewritten graph as an engine, with what it saturates.

See `npukit.ascend.emulate` for what is modelled.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from npukit.ascend.emulate import FIGURES, Emulated, Saturation, emulate
from npukit.ascend.modes import parse_mode
from npukit.errors import UsageError
from npukit.runtime.contract import Array
from npukit.runtime.engine import Request
from npukit.runtime.ort import OrtEngine, loadable

if TYPE_CHECKING:
    import onnxruntime


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
    loaded, folder = loadable(emulated.model, weights, "npukit-emulated-")
    engine = EmulatedEngine(loaded, emulated, request)
    engine.folder = folder
    return engine


class EmulatedEngine(OrtEngine):
    """A rewritten model in ONNX Runtime; what its probes find is not given, but gathered."""

    def __init__(self, source: Path | bytes, emulated: Emulated, request: Request) -> None:
        self._probes = emulated.probes
        self._found: dict[int, Saturation] = {}
        super().__init__(source, threads=request.threads, fetch=request.fetch)
        self._outputs = [port for port in self._outputs if port.tensor != FIGURES]
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
        found = [self._found[number] for number in sorted(self._found)]
        if clear:
            self._found.clear()
        return found

    def _run_plain(self, inputs: Sequence[Array]) -> list[Array]:
        feeds = {port.tensor: array for port, array in zip(self._inputs, inputs, strict=True)}
        if not self._probes:
            return super()._run_plain(inputs)
        results: list[Array] = self._session.run([*self._output_names, FIGURES], feeds)
        figures = results.pop().reshape(-1, 3)
        for number in np.flatnonzero(figures.any(axis=1)):
            count, nans, largest = figures[number]
            self._add(int(number), int(count), int(nans), float(largest))
        return results

    def _add(self, number: int, count: int, nans: int, largest: float) -> None:
        probe, before = self._probes[number], self._found.get(number)
        if before is not None:
            count, nans, largest = count + before.count, nans + before.nans, max(largest, before.largest)
        runs = 1 + (before.runs if before is not None else 0)
        self._found[number] = Saturation(
            probe.tensor, probe.node, probe.op_type, probe.dtype, count, nans, largest, runs
        )

    def _make(self, source: Path | bytes, options: onnxruntime.SessionOptions) -> Any:
        import onnxruntime

        # Constants are folded and nothing else: no fusion may leave out a rounding.
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
        return super()._make(source, options)

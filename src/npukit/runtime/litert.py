# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""TensorFlow Lite's own interpreter (LiteRT) as an engine: the reference for .tflite files.

It runs as it does by default, with XNNPACK where that has the operator: those are the numbers that users have.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from npukit.errors import MissingDependency, ModelError, NativeError, UsageError, nearest
from npukit.qnn.graph import Encoding
from npukit.runtime.contract import Array, Port
from npukit.runtime.engine import Description, Placement, ProfileEvent, Request
from npukit.worker import note

HINT = "pip install ai-edge-litert (part of npukit[tflite])"


def installed() -> bool:
    """Whether the interpreter is installed."""
    import importlib.util

    return importlib.util.find_spec("ai_edge_litert") is not None


def open_engine(request: Request) -> LiteRtEngine:
    """An engine for a .tflite file; `request.graph` names a signature.

    Raises:
        MissingDependency: the interpreter is not installed.
        ModelError: it refuses the file.
        UsageError: there is no such signature.
    """
    assert request.path is not None
    return LiteRtEngine(Path(request.path), request.graph, request.threads)


class LiteRtEngine:
    """A .tflite file in TensorFlow Lite's interpreter. Raises as `open_engine`."""

    def __init__(self, path: Path, signature: str | None = None, threads: int | None = None) -> None:
        try:
            from ai_edge_litert import interpreter as litert
        except ImportError:
            raise MissingDependency("TensorFlow Lite's interpreter is not installed", hint=HINT) from None
        note("LiteRT: allocate tensors")
        try:
            self._interpreter: Any = litert.Interpreter(model_path=str(path), num_threads=threads)
            keys = list(self._interpreter.get_signature_list())
        except (ValueError, RuntimeError) as error:
            raise ModelError(f"TensorFlow Lite's interpreter refuses it: {_text(error)}", where=str(path)) from None
        if signature is not None and signature not in keys:
            raise UsageError(f"there is no signature {signature!r}", where=str(path), hint=nearest(signature, keys))
        self._runner: Any = None
        if keys:  # as the front end: the named one, serving_default, the first
            default = "serving_default" if "serving_default" in keys else keys[0]
            self._runner = self._interpreter.get_signature_runner(signature or default)
            ins, outs = self._runner.get_input_details(), self._runner.get_output_details()
        else:
            try:
                self._interpreter.allocate_tensors()
            except (ValueError, RuntimeError) as error:
                raise ModelError(f"TensorFlow Lite's interpreter refuses it: {_text(error)}", where=str(path)) from None
            ins = {detail["name"]: detail for detail in self._interpreter.get_input_details()}
            outs = {detail["name"]: detail for detail in self._interpreter.get_output_details()}
        self._ins, self._outs = ins, outs
        self.description = Description(
            backend="litert",
            graph=signature or "",
            inputs=tuple(_port(name, detail) for name, detail in ins.items()),
            outputs=tuple(_port(name, detail) for name, detail in outs.items()),
            placement=(Placement(path.name, "", "litert", "TensorFlow Lite's own kernels and XNNPACK, as by default"),),
            library=version(),
        )

    def execute(self, inputs: Sequence[Array], outputs: Sequence[Array] | None) -> list[Array]:
        """Run on arrays in port order."""
        note("LiteRT: invoke")
        feeds = dict(zip(self._ins, inputs, strict=True))
        try:
            # a recurrent layer goes on from the run before, if nothing resets it: npukit's runs are independent
            self._interpreter.reset_all_variables()
            if self._runner is not None:
                found = self._runner(**feeds)
                results = [np.array(found[name]) for name in self._outs]
            else:
                for name, value in feeds.items():
                    if tuple(self._interpreter.get_tensor(self._ins[name]["index"]).shape) != value.shape:
                        self._interpreter.resize_tensor_input(self._ins[name]["index"], value.shape)
                self._interpreter.allocate_tensors()
                for name, value in feeds.items():
                    self._interpreter.set_tensor(self._ins[name]["index"], value)
                self._interpreter.invoke()
                results = [self._interpreter.get_tensor(detail["index"]) for detail in self._outs.values()]
        except (ValueError, RuntimeError) as error:
            raise NativeError(f"TensorFlow Lite's interpreter failed: {_text(error)}") from None
        if outputs is None:
            return results
        for out, result in zip(outputs, results, strict=True):
            np.copyto(out, result.reshape(out.shape), casting="no")
        return list(outputs)

    def profile(self, inputs: Sequence[Array], runs: int) -> list[ProfileEvent]:
        """Not possible: the interpreter's Python interface measures nothing."""
        raise UsageError("TensorFlow Lite's interpreter has no profile", hint="convert the model and profile that")

    def close(self) -> None:
        """Free the interpreter."""
        self._runner = self._interpreter = None


def _port(name: str, detail: dict[str, Any]) -> Port:
    sizes = detail["shape_signature"] if len(detail["shape_signature"]) else detail["shape"]
    shape = tuple(int(size) if size >= 0 else None for size in sizes)
    dtype = np.dtype(detail["dtype"])
    scale, point = detail["quantization"]
    # of codes: what they stand for
    encoding = Encoding.per_tensor(float(scale), -int(point)) if scale and dtype.kind in "iu" else None
    return Port(name, dtype.name, shape, name, None, shape, encoding=encoding)


def version() -> str:
    """Name and version of the interpreter.

    Raises:
        MissingDependency: it is not installed.
    """
    from importlib import metadata

    if not installed():
        raise MissingDependency("TensorFlow Lite's interpreter is not installed", hint=HINT)
    return f"LiteRT {metadata.version('ai-edge-litert')}"


def _text(error: Exception) -> str:
    return " ".join(str(error).split())[:300]

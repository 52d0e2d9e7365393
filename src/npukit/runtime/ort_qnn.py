# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""ONNX Runtime's QNN provider as an engine: another way of running an .onnx file on Qualcomm's libraries.

The provider is a plug-in of the wheel onnxruntime-qnn. It gives nodes that it does not take to ONNX Runtime's CPU
provider; here that is an error which names them. Facts: shared/reference/peer_conformance.md, "Traps".
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from npukit import targets
from npukit.errors import Fault, GraphError, MissingDependency, UsageError
from npukit.qnn.api import libraries
from npukit.qnn.api.backend import on_device
from npukit.runtime.engine import Placement, Request
from npukit.runtime.ort import OrtEngine, text_of

if TYPE_CHECKING:
    import onnx
    import onnxruntime

_PROVIDER = "QNNExecutionProvider"
_PAIR = "onnxruntime==1.24.4 and onnxruntime-qnn==2.3.0, in an environment of their own"
_HINT = f"the QNN provider needs an onnxruntime of its own time; this pair works: {_PAIR}"
_ROLES = {"qnn-cpu": "cpu", "qnn-htp": "htp"}


def open_engine(request: Request) -> OrtQnnEngine:
    """An engine for an .onnx file; target qnn-cpu, or a chip with HTP (emulated on a host), by default V73.

    Raises:
        MissingDependency: there is no provider, or it does not work with the installed onnxruntime.
        GraphError: the provider does not take every node.
        ModelError: ONNX Runtime cannot load the model.
        UsageError: a target that is neither.
    """
    source = request.content if request.path is None else Path(request.path)
    assert source is not None
    chosen = targets.portable()[-1] if request.target in (None, targets.PORTABLE) else targets.target(request.target)
    if chosen.backend not in _ROLES:
        raise UsageError(f"the QNN provider does not run on {chosen.name}", where="target", hint=chosen.notes)
    return OrtQnnEngine(source, chosen, threads=request.threads)


class OrtQnnEngine(OrtEngine):
    """A model in ONNX Runtime, every node of it on the QNN provider.

    Args:
        source: a file, or the bytes of a model.
        target: what to run on, or to emulate.
        threads: number of threads of ONNX Runtime; None for its own choice.
    """

    def __init__(self, source: Path | bytes, target: targets.Target, *, threads: int | None = None) -> None:
        self._target = target
        self._library = libraries.find(_ROLES[target.backend])
        super().__init__(source, threads=threads)
        reason = f"placed on {_PROVIDER} with {self._library.path.name}"
        rows = tuple(Placement(node.name, node.op_type, "ort-qnn", reason) for _, node in _assigned(self._session))
        chip = "" if target.backend == "qnn-cpu" or on_device() else f" for {target.name}"
        library = f"{self.description.library}, {self._library.path.name} {self._library.build_id}{chip}"
        self.description = replace(self.description, backend="ort-qnn", placement=rows, library=library)

    def _make_parts(self, model: onnx.ModelProto, folder: Path, options: onnxruntime.SessionOptions) -> Any:
        raise UsageError("the QNN provider does not run ops that a plugin computes in Python", hint="--backend ort")

    def _make(self, source: Path | bytes, options: onnxruntime.SessionOptions) -> Any:
        import onnxruntime

        options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
        provider = {"backend_path": str(self._library.path)}
        if self._target.backend == "qnn-htp":
            # Nodes that ONNX Runtime inserts late are not in its record; libQnnCpu refuses this option.
            options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
            if not on_device():  # without a SoC the emulator plays an old chip
                provider |= {"soc_model": str(self._target.soc_id), "htp_arch": str(self._target.arch)}
        options.add_provider_for_devices(_devices(onnxruntime)[:1], provider)
        try:
            session = onnxruntime.InferenceSession(source, options, enable_fallback=0)
        except Exception as error:
            message = text_of(error)
            if "creating execution provider" in message:
                raise _unfit(re.split(r"\.cc:\d+ (?:\w+ )?", message)[-1]) from error
            if "fallback to CPU EP has been explicitly disabled" in message:
                raise GraphError(
                    "the QNN provider does not take every node of the model",
                    hint="-vv shows what it said; npukit's own backend qnn-htp may take them: --backend qnn-htp",
                ) from error
            raise
        elsewhere = [(name, node) for name, node in _assigned(session) if name != _PROVIDER]
        if elsewhere or not any(True for _ in _assigned(session)):
            raise GraphError(
                f"the QNN provider does not take {len(elsewhere) or 'any'} of the nodes",
                faults=[Fault(f"{node.op_type} would run on {name}", where=node.name) for name, node in elsewhere],
                hint=f"npukit's own backend may take them: --backend {self._target.backend}",
            )
        return session


def _devices(onnxruntime: Any) -> list[Any]:
    """The provider's devices; its library is registered once in a process."""
    try:
        plugin = importlib.import_module("onnxruntime_qnn")
    except ImportError as error:
        raise MissingDependency(f"the QNN provider cannot be imported ({error})", hint=f"install {_PAIR}") from error
    if not hasattr(onnxruntime, "register_execution_provider_library"):
        raise _unfit("it cannot load providers from plug-ins")
    found = [device for device in onnxruntime.get_ep_devices() if device.ep_name == _PROVIDER]
    if not found:
        try:
            onnxruntime.register_execution_provider_library(_PROVIDER, plugin.get_library_path())
        except Exception as error:  # pybind's exceptions have no common base below Exception
            raise _unfit(text_of(error)) from error
        found = [device for device in onnxruntime.get_ep_devices() if device.ep_name == _PROVIDER]
    if not found:
        raise _unfit("the provider offers no device")
    return found


def _unfit(why: str) -> MissingDependency:
    from importlib import metadata

    pair = " and ".join(f"{name} {metadata.version(name)}" for name in ("onnxruntime", "onnxruntime-qnn"))
    return MissingDependency(f"{pair} do not work together: {why}", hint=_HINT)


def _assigned(session: Any) -> Iterator[tuple[str, Any]]:
    """Each node of the session's graph with the name of the provider that executes it."""
    for part in session.get_provider_graph_assignment_info():
        for node in part.get_nodes():
            yield part.ep_name, node

# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""What a backend module gives to `Session`: an `Engine`, and the small records that describe one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from npukit.artifacts.stamp import Stamp
from npukit.runtime.contract import Array, Port


@dataclass(frozen=True)
class Placement:
    """Where one op runs, and why there.

    Attributes:
        op: name of the op (or of the graph, where its ops cannot be seen).
        type: its op type; empty for a whole graph.
        backend: name of the backend that executes it.
        reason: one sentence.
    """

    op: str
    type: str
    backend: str
    reason: str


@dataclass(frozen=True)
class ProfileEvent:
    """One measurement of `Session.profile`.

    Attributes:
        name: what was measured: an op's name, or the library's words for a stage.
        value: the measurement.
        unit: "us", "cycles", "count" or "bytes".
        parent: name of the event it is a part of; empty at the top.
    """

    name: str
    value: int
    unit: str
    parent: str = ""


@dataclass(frozen=True)
class Description:
    """What a session knows about its engine, whichever process that lives in.

    Attributes:
        backend: name of the backend.
        graph: name of the graph; empty for an ONNX model in ONNX Runtime.
        inputs: the inputs that the engine takes.
        outputs: the outputs that it gives.
        placement: where each op runs.
        stamp: the artifact's stamp, if it has one.
        library: name and version of the library.
        ignored: inputs of the source on which no output depends: accepted, and not passed on.
        constants: outputs of the source that are constants, by name.
        notes: what else one should know, for people.
        close_in_order: whether the engine is closed before a worker's process ends: what it holds does not go with the
            process, as memory does.
    """

    backend: str
    graph: str
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    placement: tuple[Placement, ...]
    stamp: Stamp | None = None
    library: str = ""
    ignored: tuple[Port, ...] = ()
    constants: dict[str, Array] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    close_in_order: bool = False


@dataclass(frozen=True)
class Request:
    """Everything that is needed to open an engine.

    Attributes:
        path: the file, or None where `content` holds it.
        kind: "onnx", "dlc", "context", "tflite" or "om" (see `session.file_kind`).
        backend: name of the backend.
        graph: name of the graph, None where the file holds only one.
        target: name of the target, None for the stamp's.
        threads: threads of ONNX Runtime, None for its own choice.
        fetch: names of inner values to give as outputs too (backend ort).
        content: the bytes of a model that is in no file.
        dequantize: whether a file without stamp takes and gives floats where its tensors are integer codes.
        emulate: chip, precision mode and lists of mixed precision to emulate (backend ort); empty for none.
    """

    path: str | None
    kind: str
    backend: str
    graph: str | None = None
    target: str | None = None
    threads: int | None = None
    fetch: tuple[str, ...] = field(default=())
    content: bytes | None = None
    dequantize: bool = False
    emulate: str = ""


class Engine(Protocol):
    """A model made ready on a backend. Calls come one at a time."""

    @property
    def description(self) -> Description:
        """What it is and takes."""

    def execute(self, inputs: Sequence[Array], outputs: Sequence[Array] | None) -> list[Array]:
        """Run on native inputs, in port order; results go to `outputs` where given, and are returned.

        Inputs are C-contiguous and have the ports' native dtypes and shapes.
        """

    def profile(self, inputs: Sequence[Array], runs: int) -> list[ProfileEvent]:
        """Measure `runs` executions as finely as the backend can."""

    def close(self) -> None:
        """Free everything; any number of calls is fine."""


class Bound(Protocol):
    """An engine's inputs and outputs tied to arrays; some of them stay on the device (`Session.bind`).

    An engine with a memory of its own has a method `bind(inputs, outputs, resident_inputs, resident_outputs)` that
    gives one, with the arrays and the numbers of what stays. For other engines there is `binding.HostBound`.
    """

    def run(self) -> None:
        """Execute once: inputs that do not stay are sent first, outputs that do not stay are fetched after."""

    def upload(self, number: int, first: int = 0, end: int | None = None) -> None:
        """Send the array of an input that stays to the device, or the rows from `first` to `end` of it."""

    def download(self, number: int) -> None:
        """Fetch an output that stays into its array."""

    def copy(self, source: Bound, output: int, number: int, row: int) -> bool:
        """Copy an output of `source` into an input at `row`, both on the device; whether that was possible."""

    def close(self) -> None:
        """Free what it holds on the device; any number of calls is fine."""


def open_engine(request: Request) -> Engine:
    """The engine for a request; imports only the module of its backend.

    Raises:
        NpukitError: the file, the backend or the device cannot do it.
    """
    if request.emulate:
        from npukit.runtime import emulated

        engine: Engine = emulated.open_engine(request)
    elif request.backend == "ort":
        from npukit.runtime import ort

        engine = ort.open_engine(request)
    elif request.backend == "acl":
        from npukit.runtime import ascend

        engine = ascend.open_engine(request)
    elif request.backend == "litert":
        from npukit.runtime import litert

        engine = litert.open_engine(request)
    elif request.backend == "ort-qnn":
        from npukit.runtime import ort_qnn

        engine = ort_qnn.open_engine(request)
    else:
        from npukit.runtime import qnn

        engine = qnn.open_engine(request)
    return engine

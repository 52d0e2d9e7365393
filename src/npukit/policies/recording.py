# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""What components take and give while a policy runs: to calibrate by, and to compare backends part by part."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import numpy.typing as npt

from npukit.policies import kinds
from npukit.policies.kinds import Probe

if TYPE_CHECKING:
    from npukit.policies.package import Manifest
    from npukit.runtime.session import Session

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Sample:
    """One run of a component: its inputs and outputs by name."""

    inputs: dict[str, Array]
    outputs: dict[str, Array]


@dataclass(frozen=True)
class Run:
    """What came of one observation.

    Attributes:
        chunk: normalized actions [chunk_size, A].
        samples: runs of the components by name.
        tokens: ids of the action's tokens int64 [n]; None for a kind without.
    """

    chunk: Array
    samples: dict[str, list[Sample]]
    tokens: Array | None = None


class Recorder:
    """A session on ONNX Runtime that keeps some of its runs.

    Args:
        session: what runs.
        every: keep each so-many-th run, from the first.
        most: keep at most so many.
    """

    def __init__(self, session: Session, every: int = 1, most: int = 1 << 30) -> None:
        self._session, self._every, self._most = session, every, most
        self._count = 0
        self.samples: list[Sample] = []
        self.inputs, self.outputs = session.inputs, session.outputs
        self.in_process, self.backend = session.in_process, session.backend

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """As `Session.run`."""
        results = self._session.run(feeds)
        self.keep({name: np.asarray(array) for name, array in feeds.items()}, results)
        return results

    def bind(self, inputs: Any = None, outputs: Any = None, *, resident: Any = ()) -> Any:
        """As `Session.bind`."""
        return _Bound(self, self._session.bind(inputs, outputs, resident=resident))

    def keep(self, inputs: Mapping[str, Array], outputs: Mapping[str, Array]) -> None:
        """Copy a run's arrays, if it is one to keep."""
        if self._count % self._every == 0 and len(self.samples) < self._most:
            self.samples.append(
                Sample({n: a.copy() for n, a in inputs.items()}, {n: a.copy() for n, a in outputs.items()})
            )
        self._count += 1


class _Bound:
    """A `Binding` whose runs are kept; on ONNX Runtime its buffers are the source's own arrays."""

    def __init__(self, recorder: Recorder, binding: Any) -> None:
        self._recorder, self._binding = recorder, binding
        self.inputs, self.outputs = binding.inputs, binding.outputs
        self.write, self.read = binding.write, binding.read

    def run(self) -> None:
        self._binding.run()
        self._recorder.keep(self.inputs, self.outputs)

    def copy(self, output: str, name: str, row: int = 0, *, source: _Bound | None = None) -> None:
        self._binding.copy(output, name, row, source=None if source is None else source._binding)


def record(
    manifest: Manifest, sessions: Mapping[str, Session], probes: Iterable[Probe], *, per_chunk: int, most: int
) -> tuple[list[Array], dict[str, list[Sample]]]:
    """Run a policy on probes and keep runs of its components.

    Args:
        manifest: of the policy.
        sessions: its components on ONNX Runtime.
        probes: what to run on, with their noise.
        per_chunk: keep about so many of a component's runs in a chunk.
        most: keep at most so many of a component in all.

    Returns:
        The normalized chunks, and the runs by component.
    """
    recorders = {
        component.name: Recorder(sessions[component.name], _every(component.runs, per_chunk), most)
        for component in manifest.components
    }
    make = kinds.resolve(kinds.kind(manifest.kind).runtime)
    runtime: kinds.Runtime = make(manifest, cast("Mapping[str, Session]", recorders))
    rng = np.random.default_rng(0)
    chunks = []
    for probe in probes:
        runtime.reset()
        runtime.prefix(probe.inputs)
        chunks.append(np.array(runtime.chunk(probe.noise, rng)))
    return chunks, {name: recorder.samples for name, recorder in recorders.items()}


def runs(manifest: Manifest, sessions: Mapping[str, Session], probes: Iterable[Probe]) -> Iterator[Run]:
    """Run a policy, with its components on ONNX Runtime, on probes one by one; all runs of the components are kept."""
    recorders = {component.name: Recorder(sessions[component.name]) for component in manifest.components}
    make = kinds.resolve(kinds.kind(manifest.kind).runtime)
    runtime: kinds.Runtime = make(manifest, cast("Mapping[str, Session]", recorders))
    for probe in probes:
        for recorder in recorders.values():
            recorder.samples = []
        runtime.reset()
        runtime.prefix(probe.inputs)
        chunk = np.array(runtime.chunk(probe.noise, np.random.default_rng(0)))
        yield Run(chunk, {name: r.samples for name, r in recorders.items()}, getattr(runtime, "tokens", None))


def _every(runs: int, per_chunk: int) -> int:
    # one less than the number of runs never shares a factor with it: over several chunks every step comes
    every = max(runs // per_chunk, 1)
    return every + 1 if every > 1 and runs % every == 0 else every

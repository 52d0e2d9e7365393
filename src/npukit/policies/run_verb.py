# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""`npukit policy run`: a policy on observations from a file, or made up."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from npukit import files, log
from npukit.analysis import text
from npukit.errors import UsageError
from npukit.policies.policy import BACKENDS
from npukit.verbs.options import arg, opt, verb


@dataclass(frozen=True)
class RunOptions:
    """Run a policy on observations; each one gives a whole chunk of actions.

    The file has arrays by name (observation.images.NAME, observation.state, task) with one entry an observation.
    """

    policy: Path = arg("the policy's folder")
    observations: Path | None = opt(None, "Observations, a file or a folder of such.", parse=Path, metavar="FILE.npz")
    random: int | None = opt(None, "Make up so many observations [1, where no file is given].")
    backend: str | None = opt(None, "What runs it [the first that the folder has].", choices=BACKENDS)
    seed: int = opt(0, "Seed of the noise and of made-up observations.")
    stats: bool = opt(False, "Show seconds by part and peak memory.", "--stats")
    output: Path | None = opt(
        None, "Save the actions, float32 [observations, chunk, numbers].", "-o", "--out", parse=Path,
        metavar="FILE.npz",
    )  # fmt: skip
    target: str | None = opt(None, "Chip to emulate or use.", metavar="NAME")
    emulate: str = opt("", "Chip whose arithmetic is emulated (backend ort).", metavar="NAME[:PRECISION]")
    unnorm_key: str | None = opt(None, "Data set whose statistics un-normalize the actions.", metavar="KEY")
    threads: int | None = opt(None, "Threads of ONNX Runtime.")
    timeout: float | None = opt(None, "Seconds that loading and each run of a component may take.")
    in_process: bool = opt(
        True, "Run native code in this process, or each component in its own.", "--in-process/--workers"
    )


@dataclass(frozen=True)
class RunResult:
    """The outcome of a run.

    Attributes:
        kind: the kind of policy.
        backend: what ran it.
        actions: float32 [observations, chunk_size, A], in the robot's units.
        seconds: by part, the mean of all observations.
        load_seconds: what opening the policy took.
        peak: most bytes of memory that this process held, not those of components in processes of their own; None where
            the system does not say.
        stats: whether seconds and memory are shown.
        saved: the file, where one was written.
        in_process: whether the components were in this process.
    """

    kind: str
    backend: str
    actions: npt.NDArray[np.float32]
    seconds: dict[str, float]
    load_seconds: float
    peak: int | None
    stats: bool
    saved: Path | None = None
    in_process: bool = True
    exit_code: int = 0

    def to_json(self) -> dict[str, Any]:
        """As one JSON-ready object, with the actions' ranges instead of all their values."""
        return {
            "kind": self.kind,
            "backend": self.backend,
            "shape": list(self.actions.shape),
            "first": [[float(v) for v in chunk[0]] for chunk in self.actions],
            "min": [float(v) for v in self.actions.min(axis=(0, 1))],
            "max": [float(v) for v in self.actions.max(axis=(0, 1))],
            "mean": [float(v) for v in self.actions.mean(axis=(0, 1))],
            "seconds": self.seconds,
            "load_seconds": self.load_seconds,
            "peak_bytes": self.peak,
            "saved": None if self.saved is None else str(self.saved),
            "in_process": self.in_process,
        }

    def to_text(self) -> str:
        count, steps, size = self.actions.shape
        lines = [f"{self.kind} on {self.backend}: {count} chunks of {steps} actions of {size} numbers"]
        flat = self.actions.reshape(-1, size)
        rows = [
            (i, *(f"{value:.4g}" for value in (self.actions[0, 0, i], column.min(), column.max(), column.mean())))
            for i, column in enumerate(flat.T)
        ]
        lines.append(text.table(("number", "first", "min", "max", "mean"), rows))
        if self.stats:
            parts = [("load (once)", f"{self.load_seconds:.3f}")]
            parts += [(name, f"{seconds:.4f}") for name, seconds in self.seconds.items()]
            lines.append(text.table(("part", "seconds a chunk"), parts))
            whose = "" if self.in_process else " of this process, without its components'"
            lines.append(f"peak memory{whose}: {'not known' if self.peak is None else text.size(self.peak)}")
        if self.saved is not None:
            lines.append(f"saved in {self.saved}")
        return "\n".join(lines)


@verb(RunOptions)
def run(options: RunOptions) -> RunResult:
    """Run `policy` on observations, and save the actions to `output` where given.

    Raises:
        UsageError: options do not go together.
        NpukitError: the folder, an observation or the file is wrong; a library is missing or died.

    Example:
        >>> result = run("policy", random=2)
        >>> result.actions.shape
        (2, 50, 7)
    """
    from npukit.policies import memory, observations
    from npukit.policies.policy import Policy

    if options.observations is not None and options.random is not None:
        raise UsageError("observations come from a file or are made up", where="--random")
    if options.random is not None and options.random < 1:
        raise UsageError("at least one observation is needed", where="--random")
    given = None if options.observations is None else observations.read(options.observations)
    begin = time.perf_counter()
    with Policy(
        options.policy, options.backend, threads=options.threads, target=options.target,
        in_process=options.in_process, timeout=options.timeout, seed=options.seed,
        emulate=options.emulate, unnorm_key=options.unnorm_key,
    ) as policy:  # fmt: skip
        load = time.perf_counter() - begin
        if given is None:
            given = observations.generate(policy.manifest, policy.statistics, options.random or 1, options.seed)
        chunks, seconds = [], list[dict[str, float]]()
        for i, observation in enumerate(given):
            log.report(f"observation {i + 1} of {len(given)}", i / len(given))
            chunks.append(policy.predict_chunk(observation))
            seconds.append(policy.seconds)
        actions = np.stack(chunks)
        backend, kind = policy.backend, policy.manifest.kind
    if options.output is not None:
        with files.atomic_write(options.output) as temp, open(temp, "wb") as stream:
            np.savez(stream, actions=actions)
    mean = {name: float(np.mean([row[name] for row in seconds])) for name in seconds[0]}
    return RunResult(
        kind, backend, actions, mean, load, memory.peak(), options.stats, options.output, options.in_process
    )

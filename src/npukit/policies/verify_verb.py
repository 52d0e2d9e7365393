# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""`npukit policy verify`: a policy's components and actions against ONNX Runtime's, another package's or PyTorch's."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from npukit import log
from npukit.analysis import text
from npukit.errors import NativeError, UsageError
from npukit.policies.package import MANIFEST, Manifest
from npukit.policies.policy import BACKENDS
from npukit.policies.run_verb import RunOptions
from npukit.verbs.options import arg, like, opt, verb

if TYPE_CHECKING:
    from npukit.policies.kinds import Array, Probe
    from npukit.policies.policy import Policy
    from npukit.policies.recording import Run

REFERENCE = "ort"
_NOISE_SEED = 0
_BROKEN = {"cosine": 0.0, "max_abs": np.inf, "share": np.inf, "mean_abs": np.inf}


@dataclass(frozen=True)
class VerifyOptions:
    """Compare a policy, component by component and as a whole, with a reference.

    The reference is the package's models on ONNX Runtime, or what --against names: another package (float32 beside
    float16), or the checkpoint, which PyTorch runs in float32. The first observation is blank pictures and a fixed
    instruction; others are made up, or come from a file. Components are run on what the reference's took.
    """

    policy: Path = arg("the policy's folder", metavar="DIR")
    against: Path | None = opt(
        None, "Checkpoint, or another package, to compare with [this package].", parse=Path, metavar="DIR"
    )
    backend: str | None = opt(None, "What is verified [the first that the folder has].", choices=BACKENDS)
    emulate: str = like(RunOptions, "emulate")
    observations: Path | None = like(RunOptions, "observations")
    random: int = opt(1, "Made-up observations beside the blank one, where no file is given.")
    seed: int = opt(0, "Seed of made-up observations.")
    min_cosine: float = opt(0.999, "Exit 1 where a component's or the action's cosine is below it.")
    unnorm_key: str | None = like(RunOptions, "unnorm_key")
    target: str | None = opt(None, "Chip to use, where the folder holds models for several.", metavar="NAME")
    threads: int | None = opt(None, "Threads of ONNX Runtime and PyTorch.")
    timeout: float | None = like(RunOptions, "timeout")
    in_process: bool = like(RunOptions, "in_process")


@dataclass(frozen=True)
class VerifyResult:
    """The outcome of a comparison.

    Attributes:
        kind: the kind of policy.
        verified: what was compared.
        against: with what.
        components: a record for each output: {"component", "output", "cosine" (the least), "max_abs" (the largest),
            "mean_abs", "share" (the largest error as a share of the range), "samples"}.
            Differences from values that are not finite are infinite, null in JSON, and their cosine is 0.
        actions: a record for each observation, in the robot's units: {"cosine", "max_abs", "mean_abs", "tokens"
            ("equal" of "count", where the kind has tokens), "error" (where the policy gave no action)}.
        saturations: what emulated arithmetic saturated, by component.
        min_cosine: the least that was asked for.
    """

    kind: str
    verified: str
    against: str
    components: tuple[dict[str, Any], ...]
    actions: tuple[dict[str, Any], ...]
    saturations: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    min_cosine: float = 0.999

    @property
    def faults(self) -> list[str]:
        """What does not hold."""
        found = [
            f"{row['component']}: {row['output']}: cosine {row['cosine']:.7f}"
            for row in self.components
            if not row["cosine"] >= self.min_cosine
        ]
        for i, row in enumerate(self.actions):
            if "error" in row:
                found.append(f"observation {i}: {row['error']}")
            elif "tokens" in row and row["tokens"]["equal"] < row["tokens"]["count"]:
                found.append(f"observation {i}: {row['tokens']['equal']} of {row['tokens']['count']} tokens are equal")
            elif not row["cosine"] >= self.min_cosine:
                found.append(f"observation {i}: the action's cosine is {row['cosine']:.7f}")
        return found

    @property
    def exit_code(self) -> int:
        """1 where a cosine is too low or tokens differ."""
        return int(bool(self.faults))

    def to_json(self) -> dict[str, Any]:
        """As one JSON-ready object."""
        return {
            "kind": self.kind, "verified": self.verified, "against": self.against,
            "components": [_finite(row) for row in self.components], "actions": [_finite(row) for row in self.actions],
            "saturations": self.saturations, "faults": self.faults,
        }  # fmt: skip

    def to_text(self) -> str:
        head = ("component", "output", "cosine", "max error", "mean error", "max error/range")
        rows = [
            (row["component"], row["output"], f"{row['cosine']:.7f}",
             *(f"{row[name]:.2e}" for name in ("max_abs", "mean_abs", "share")))
            for row in self.components
        ]  # fmt: skip
        lines = [f"{self.kind}: {self.verified} against {self.against}", text.table(head, rows)]
        rows = [
            (f"{i}", _equal(row), f"{row['cosine']:.7f}", f"{row['max_abs']:.2e}", f"{row['mean_abs']:.2e}")
            for i, row in enumerate(self.actions)
        ]
        lines.append(
            text.table(("observation", "equal tokens", "cosine of the action", "max error", "mean error"), rows)
        )
        for component, found in self.saturations.items():
            lines += [
                f"saturated in {component}: {row['tensor']} ({row['op_type']}), {row['count']} elements, up to "
                f"{row['largest'] if row['largest'] is not None else 'infinity'}"
                for row in found
            ]
        lines += [f"does not hold: {fault}" for fault in self.faults]
        return "\n".join(lines)


def _finite(row: Mapping[str, Any]) -> dict[str, Any]:
    """A record with None for numbers that JSON does not have."""
    return {name: None if isinstance(value, float) and not np.isfinite(value) else value for name, value in row.items()}


def _equal(row: Mapping[str, Any]) -> str:
    tokens = row.get("tokens")
    return "-" if tokens is None else f"{tokens['equal']}/{tokens['count']}"


@verb(VerifyOptions)
def verify(options: VerifyOptions) -> VerifyResult:
    """Compare `policy` with a reference, component by component and as a whole.

    Raises:
        UsageError: there is nothing to compare with, or options do not go together.
        MissingDependency: a library, or PyTorch for a checkpoint, is missing.
        NpukitError: a folder, an observation or the file is wrong; a backend failed.

    Example:
        >>> result = verify("policy", against=Path("checkpoint"))
        >>> result.exit_code, result.actions[0]["tokens"]
        (0, {'equal': 7, 'count': 7})
    """
    from npukit.policies.policy import Policy

    with Policy(
        options.policy, options.backend, threads=options.threads, target=options.target, emulate=options.emulate,
        in_process=options.in_process, timeout=options.timeout, unnorm_key=options.unnorm_key,
    ) as policy:  # fmt: skip
        probes = _probes(policy, options)
        against, runs = _reference(policy, options, probes)
        components: dict[tuple[str, str], dict[str, Any]] = {}
        actions = []
        for i, (probe, wanted) in enumerate(zip(probes, runs, strict=True)):
            log.report(f"observation {i + 1} of {len(probes)}", i / len(probes))
            for row in _component_rows(policy, wanted):
                _worst(components, row)
            actions.append(_action_row(policy, probe, wanted))
        saturations = {}
        if options.emulate:
            found = {name: session.saturations() for name, session in policy.sessions.items()}
            saturations = {name: [row.to_json() for row in rows] for name, rows in found.items() if rows}
        verified = ", ".join(part for part in (policy.backend, options.emulate) if part)
        kind = policy.manifest.kind
    return VerifyResult(
        kind, verified, against, tuple(components.values()), tuple(actions), saturations, options.min_cosine
    )


# ---------------------------------------------------------------- observations and the reference


def _probes(policy: Policy, options: VerifyOptions) -> list[Probe]:
    from npukit.policies import observations
    from npukit.policies.kinds import Probe

    if options.observations is not None:
        given = observations.read(options.observations)
    else:
        if options.random < 0:
            raise UsageError("0 or more", where="--random")
        given = observations.generate(policy.manifest, policy.statistics, 1 + options.random, options.seed)
        given[0] = {
            name: np.zeros_like(value) if isinstance(value, np.ndarray) else value for name, value in given[0].items()
        }
    rng = np.random.default_rng(_NOISE_SEED)
    shape = policy.noise_shape
    noises = [None if shape is None else rng.standard_normal(shape, dtype=np.float32) for _ in given]
    return [Probe(policy.preprocessor(one), noise) for one, noise in zip(given, noises, strict=True)]


def _reference(policy: Policy, options: VerifyOptions, probes: Sequence[Probe]) -> tuple[str, Iterable[Run]]:
    """What is compared with, in words, and its runs."""
    from npukit.policies import kinds

    other = options.against
    if other is not None and not (other / MANIFEST).is_file():
        reference = kinds.kind(policy.manifest.kind).reference
        if not reference:
            raise UsageError(
                f"checkpoints of {policy.manifest.kind} are compared when they are exported", where="--against",
                hint="see parity.json in the package; or give another package",
            )  # fmt: skip
        return "PyTorch float32", kinds.resolve(reference)(other, policy.manifest, probes, options.threads)
    folder = other or options.policy
    if other is None and not options.emulate and policy.backend == REFERENCE:
        raise UsageError(
            f"{REFERENCE} would be compared with itself", where="--backend",
            hint="name another backend, --emulate a chip, or compare --against a checkpoint or another package",
        )  # fmt: skip
    words = REFERENCE if other is None else f"{other} on {REFERENCE}"
    return words, _package_runs(folder, policy.manifest, options, probes)


def _package_runs(folder: Path, ours: Manifest, options: VerifyOptions, probes: Sequence[Probe]) -> Iterable[Run]:
    from npukit.policies.policy import Policy
    from npukit.policies.recording import runs

    with Policy(
        folder, REFERENCE, threads=options.threads, in_process=options.in_process, timeout=options.timeout,
        unnorm_key=options.unnorm_key,
    ) as policy:  # fmt: skip
        theirs = policy.manifest
        shapes = [
            {(c.name, port.name): port.shape for c in manifest.components for port in (*c.inputs, *c.outputs)}
            for manifest in (ours, theirs)
        ]
        if ours.kind != theirs.kind or shapes[0] != shapes[1]:
            raise UsageError("the packages are not of the same network", where=str(folder))
        yield from runs(theirs, policy.sessions, probes)


# ---------------------------------------------------------------- comparing


def _component_rows(policy: Policy, wanted: Run) -> Iterable[dict[str, Any]]:
    """Each component on what the reference's took."""
    for component in policy.manifest.components:
        dtypes = {port.name: np.dtype(port.dtype) for port in component.inputs}
        for sample in wanted.samples.get(component.name, []):
            inputs = {name: array.astype(dtypes[name], copy=False) for name, array in sample.inputs.items()}
            got = policy.sessions[component.name].run(inputs)
            for name, array in sample.outputs.items():
                yield {"component": component.name, "output": name, **_difference(array, got[name][: len(array)])}


def _worst(found: dict[tuple[str, str], dict[str, Any]], row: dict[str, Any]) -> None:
    """Put a record with those of the same output: the worst of each number, the mean of the means."""
    key = row["component"], row["output"]
    before = found.setdefault(key, {**row, "samples": 0})
    count = before["samples"]
    found[key] = {
        **before,
        "cosine": min(before["cosine"], row["cosine"]),
        "max_abs": max(before["max_abs"], row["max_abs"]),
        "share": max(before["share"], row["share"]),
        "mean_abs": (before["mean_abs"] * count + row["mean_abs"]) / (count + 1),
        "samples": count + 1,
    }


def _action_row(policy: Policy, probe: Probe, wanted: Run) -> dict[str, Any]:
    """The whole policy on an observation."""
    runtime = policy.runtime
    runtime.reset()
    try:
        runtime.prefix(probe.inputs)
        chunk = runtime.chunk(probe.noise, np.random.default_rng(_NOISE_SEED))
    except NativeError as error:
        return {**_BROKEN, "error": error.what}
    row = _difference(policy.postprocessor(wanted.chunk), policy.postprocessor(chunk))
    tokens = getattr(runtime, "tokens", None)
    if tokens is not None and wanted.tokens is not None:
        row["tokens"] = {"equal": int(np.count_nonzero(tokens == wanted.tokens)), "count": len(tokens),
                         "ids": tokens.tolist(), "reference": wanted.tokens.tolist()}  # fmt: skip
    return row


def _difference(reference: Array, got: Array) -> dict[str, Any]:
    from npukit.policies.parity import difference

    if not np.isfinite(got).all():
        return dict(_BROKEN)
    found = difference(reference, got)
    error = np.abs(np.asarray(reference, np.float64) - np.asarray(got, np.float64))
    return {name: found[name] for name in ("cosine", "max_abs", "share")} | {"mean_abs": float(error.mean())}

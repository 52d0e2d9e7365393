# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""From a checkpoint to a package: the kind's exporter, each backend's artifacts, all compared in the real runtime.

Heavy stages run in processes of their own, so that the memory of one is free again in the next, and each one's peak is
measured. The package comes into being in a temporary folder beside its place, and is renamed when it is whole.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import os
import secrets
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from npukit import files
from npukit.errors import ArtifactError, CheckFailed, Fault, ModelError, UsageError, nearest
from npukit.policies import artifacts, kinds, lerobot, observations, safetensors_file, tokenizer
from npukit.policies.artifacts import Artifact
from npukit.policies.kinds import Exported, ExportRequest, Probe
from npukit.policies.package import MANIFEST, PARITY, STATISTICS, TOKENIZER, Component, Feature, Manifest, hashes
from npukit.policies.parity import action_error, difference
from npukit.policies.policy import SIMULATED, Policy
from npukit.policies.processing import Preprocessor
from npukit.policies.recording import Sample, record
from npukit.policies.stages import Stage, Stages
from npukit.verbs.isolate import isolated

log = logging.getLogger(__name__)

Array = npt.NDArray[Any]

_SEED = 20240601
# Seconds for a GFLOP on the HTP emulator (shared/reference/README.md), by bits of activations; 0 is float16.
_EMULATOR = {0: 16.0, 8: 0.3, 16: 1.7}
_EMBEDDING = "embed_tokens.weight"  # end of the name of a table with a row a token
# What a chunk must come to against PyTorch: least cosine, largest error as a share of the chunk's range.
LIMITS: dict[str, tuple[float, float | None]] = {"ort": (0.999999, 1e-4), "qnn-cpu": (0.99999, None)}
# The same for float16 and quantized precisions: what is below is no longer the policy, but something broken. How near
# a precision comes is in the report, to choose by.
_ROUNDED = (0.9, None)


@dataclass(frozen=True)
class Request:
    """What is asked for; see `export_verb.ExportOptions`."""

    checkpoint: Path
    output: Path
    backends: tuple[str, ...] = ()
    precisions: dict[str, str] = field(default_factory=dict)
    targets: tuple[str, ...] = ()
    tokenizer: Path | None = None
    calibration: Path | None = None
    samples: int = 32
    force: bool = False
    verify: bool = True
    emulator_seconds: float = 120.0
    threads: int | None = None
    timeout: float | None = None
    in_process: bool = False
    policy: str = ""
    options: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Made:
    """What came of it: the manifest, parity.json's content, and the package's size in bytes."""

    manifest: Manifest
    parity: dict[str, Any]
    size: int


@dataclass(frozen=True)
class _Parts:
    """What the exporter's process gives back."""

    exported: Exported
    stages: list[Stage]


def export_package(request: Request) -> Made:
    """Make the package `request.output`.

    Raises:
        UsageError: the output exists, or options do not go together.
        ModelError: the checkpoint is not whole.
        MissingDependency: PyTorch, or a library of a backend, is missing.
        CheckFailed: the package does not compute what the checkpoint does.
        NpukitError: a component cannot be converted, quantized or compiled.
    """
    _check_output(request.output, force=request.force)
    stages = Stages()
    with stages("read the checkpoint"):
        kind = _kind(request)
        request = dataclasses.replace(request, backends=request.backends or _implied(request, kind))
        _check_targets(request)
        written = _written(request, kind)
        checkpoint, words = _read(request, kind)
        source = _source(checkpoint.folder)
    wants_samples = any(artifacts.quantized(precision) for precision in request.precisions.values())
    if wants_samples and request.calibration is None:
        raise UsageError("quantized precisions need calibration data", where="--calibration",
                         hint="give observations in a .npz file, arrays by name with a leading axis")  # fmt: skip
    with _staging(request.output) as folder:
        export = _Export(request, checkpoint, words, kind, folder, stages, source, written)
        made = export.run()
        _place(folder, request.output)
    return dataclasses.replace(made, manifest=dataclasses.replace(made.manifest, folder=request.output))


def _kind(request: Request) -> kinds.Kind:
    """The checkpoint's kind, by its config.json.

    Raises:
        ModelError: no kind reads it, or not the one asked for.
        UsageError: an option that the kind has not.
    """
    config = lerobot.config_of(request.checkpoint)
    asked = kinds.kind(request.policy) if request.policy else None
    if asked is not None and config.get("type", config.get("model_type")) not in asked.config_types:
        raise ModelError(f"no {asked.name} checkpoint: its type is {config.get('type', config.get('model_type'))!r}",
                         where=str(request.checkpoint / lerobot.CONFIG),
                         hint=f"--policy {asked.name} reads {', '.join(asked.config_types)}")  # fmt: skip
    found = asked or kinds.of_config(config)
    for name in request.options:
        if name not in found.options:
            hint = nearest(name, found.options) if found.options else ""
            raise UsageError(f"{found.name} policies have no option {name!r}", where="--option", hint=hint)
    return found


def _implied(request: Request, kind: kinds.Kind) -> tuple[str, ...]:
    """The backend that precisions and targets are for, where none is named."""
    precisions = request.precisions.values()
    on_host = all(artifacts.holds("ort", value) or value in kind.precisions for value in precisions)
    return ("ort",) if on_host and not request.targets else ("qnn-htp",)


def _check_targets(request: Request) -> None:
    if request.targets and "qnn-htp" not in request.backends:
        raise UsageError("a target is for context binaries", where="--target", hint="add --backend qnn-htp")


def _written(request: Request, kind: kinds.Kind) -> str:
    """What the models are to be written in: float32 where they are to be converted, too."""
    if set(request.backends) != {"ort"}:
        return "float32"
    asked = request.precisions.get("ort", request.precisions.get(""))
    return asked if asked in kind.precisions else "float32" if asked == "int8" else kind.precisions[0]


def _read(request: Request, kind: kinds.Kind) -> tuple[lerobot.Checkpoint, tuple[Path, dict[str, Any]] | None]:
    """The checkpoint; the tokenizer's file and facts where there is one."""
    path = request.tokenizer
    if path is not None and path.is_dir():
        path = path / TOKENIZER
    if path is None and (request.checkpoint / TOKENIZER).is_file():
        path = request.checkpoint / TOKENIZER
    facts = tokenizer.describe(path) if path is not None else None
    checkpoint: lerobot.Checkpoint = kinds.resolve(kind.read)(request.checkpoint, facts, request.options)
    for note in checkpoint.notes:
        log.warning("%s", note)
    return checkpoint, (path, facts) if path is not None and facts is not None else None


def _source(folder: Path) -> dict[str, Any]:
    names = [path for path in sorted(folder.iterdir()) if path.is_file() and path.suffix in (".json", ".safetensors")]
    return {"name": folder.resolve().name, "files": {path.name: files.sha256_file(path) for path in names}}


class _Export:
    """One export, in the temporary folder `folder`."""

    def __init__(
        self, request: Request, checkpoint: lerobot.Checkpoint, words: tuple[Path, dict[str, Any]] | None,
        kind: kinds.Kind, folder: Path, stages: Stages, source: dict[str, Any], written: str,
    ) -> None:  # fmt: skip
        self.written = written
        self.request, self.checkpoint, self.words, self.kind = request, checkpoint, words, kind
        self.folder, self.stages, self.source = folder, stages, source
        self.notes = list(checkpoint.notes)
        self.chunks: list[dict[str, Any]] = []
        self.compared: list[dict[str, Any]] = []
        steps = kinds.resolve(kind.steps)(checkpoint.config) if kind.steps else ()
        self.before = (*checkpoint.preprocessing, *steps)
        self.inputs = {**_absent(steps), **checkpoint.inputs}
        (action,) = checkpoint.outputs.values()
        self.after = ({"step": "cut", "length": action.shape[0]}, *checkpoint.postprocessing)

    def run(self) -> Made:
        self._common()
        self._check_weights()
        # all that can be wrong with it shows before the long work
        Preprocessor(
            self.inputs,
            self.before,
            self.checkpoint.statistics,
            self.folder / TOKENIZER if self.words else None,
        )
        parts: _Parts = self._call(
            "_components", self.kind.name, self.request.checkpoint, self.folder, self.request.threads, self.before,
            self.inputs, self.checkpoint.statistics, self.checkpoint.config, bool(self.words), self.request.options,
            self.written, self.request.verify, self.request.calibration,
        )  # fmt: skip
        self.stages.found += parts.stages
        self.exported = parts.exported
        self.notes += parts.exported.notes
        tasks = artifacts.plan(
            self.exported.components, self.request.backends, self.request.precisions, self.request.targets,
            self.written,
        )  # fmt: skip
        onnx = {component.name: component.artifacts["onnx"] for component in self.exported.components}
        base = self._manifest({name: {"ort": path} for name, path in onnx.items()}, {})
        self._draft(base)
        chunks, samples, calibration = self._record()
        made: list[Artifact] = []
        for task in tasks:
            artifact = self._artifact(task, onnx[task.component], calibration.get(task.component, []))
            made.append(artifact)
            self.stages.found += artifact.stages
        if self.request.verify:
            self._judge("ort", self.written, chunks, chunks)
            self._compare_all(made, chunks, samples)
        return self._finish(made, onnx)

    # ------------------------------------------------------------ parts of it

    def _call(self, function: str, *args: Any) -> Any:
        with isolated(in_process=self.request.in_process, timeout=self.request.timeout) as call:
            return call(f"npukit.policies.export:{function}", *args)

    def _timed(self, stage: str, function: str, *args: Any) -> Any:
        """`_call`, with its time and the memory of the process it ran in as a stage."""
        result, measured = self._call("_measured", stage, function, *args)
        self.stages.found.append(measured)
        return result

    def _common(self) -> None:
        if self.checkpoint.statistics:
            safetensors_file.write(self.folder / STATISTICS, self.checkpoint.statistics)
        if any(step["step"] in ("tokenize", "prompt") for step in self.before) and self.words is not None:
            shutil.copyfile(self.words[0], self.folder / TOKENIZER)
        else:
            self.words = None

    def _check_weights(self) -> None:
        """What the header of the weights shows to be wrong, before the long work.

        Raises:
            ModelError: the file is not whole, or the tokenizer has more tokens than the model.
        """
        path = self.checkpoint.folder / lerobot.WEIGHTS
        if not path.is_file():
            return  # the kind's exporter knows what else it may read
        try:
            weights = safetensors_file.SafetensorsFile(path)
        except ArtifactError as error:
            raise ModelError(error.what, where=error.where, hint=error.hint) from None
        held = max((entry.shape[0] for name, entry in weights.items() if name.endswith(_EMBEDDING)), default=None)
        if self.words is not None and held is not None and self.words[1]["vocabulary"] > held:
            raise ModelError(
                f"the tokenizer has {self.words[1]['vocabulary']} tokens, the model {held}", where=str(self.words[0]),
                hint="it belongs to another model: give that model's with --tokenizer",
            )  # fmt: skip

    def _manifest(self, paths: Mapping[str, dict[str, str]], precisions: Mapping[str, dict[str, str]]) -> Manifest:
        words = None
        if self.words is not None:
            words = {"file": TOKENIZER, **self.words[1]}
        components = tuple(
            dataclasses.replace(
                component, artifacts=dict(paths[component.name]), precision=dict(precisions.get(component.name, {}))
            )
            for component in self.exported.components
        )
        return Manifest(
            kind=self.kind.name, config=self.exported.config, inputs=self.inputs,
            outputs=self.checkpoint.outputs, cameras=self.exported.cameras, preprocessing=self.before,
            postprocessing=self.after, components=components, chunk_size=self.exported.chunk_size,
            n_action_steps=self.exported.n_action_steps, tokenizer=words, source=self.source,
        )  # fmt: skip

    def _draft(self, manifest: Manifest) -> None:
        """A manifest for a package in the making, without the hashes of large files."""
        dataclasses.replace(manifest, files=hashes(self.folder, large=False)).write(self.folder)

    def _record(self) -> tuple[list[Array], dict[str, list[Sample]], dict[str, list[dict[str, Array]]]]:
        """The chunks on the probes and some runs of each component on them; inputs for calibration."""
        if not self.exported.probes and self.request.calibration is None:
            return [], {}, {}
        chunks, samples = self._timed(
            "run on ONNX Runtime", "_run_probes", self.folder, list(self.exported.probes), self.request.threads
        )
        calibration: dict[str, list[dict[str, Array]]] = {}
        if self.request.calibration is not None:
            calibration = self._timed(
                "record calibration data", "_run_calibration", self.folder, self.request.calibration,
                self.request.samples, self.request.threads,
            )  # fmt: skip
        return chunks, samples, calibration

    def _artifact(self, task: artifacts.Task, model: str, samples: list[dict[str, Array]]) -> Artifact:
        given = samples if artifacts.quantized(task.precision) else []
        made: Artifact = self._apart("make", task, self.folder, model, given, {"threads": self.request.threads})
        return self._apart("compiled", made, self.folder) if task.target else made

    def _apart(self, function: str, *arguments: Any) -> Artifact:
        """Call a function of `artifacts` in a process that ends with it."""
        with isolated(in_process=self.request.in_process, timeout=self.request.timeout) as call:
            made: Artifact = call(f"npukit.policies.artifacts:{function}", *arguments)
        return made

    def _compare_all(self, made: Sequence[Artifact], chunks: list[Array], samples: Mapping[str, list[Sample]]) -> None:
        keys = dict.fromkeys(artifact.task.key for artifact in made)
        for key in keys:
            ours = [artifact for artifact in made if artifact.task.key == key]
            backend = ours[0].task.backend
            if backend == "ort" and all(artifact.task.precision == self.written for artifact in ours):
                continue
            backend, seconds = self._affordable(backend, ours)
            simulated = backend == SIMULATED
            paths = {
                artifact.task.component: {"qnn-htp": artifact.dlc} if simulated else {key: artifact.path}
                for artifact in ours
            }
            self._draft(self._manifest(paths, {}))
            precision = _precisions(ours)
            if simulated:
                self.notes.append(
                    f"{key} ({precision}): a chunk would take about {seconds:.0f} s on the emulator; compared on "
                    "ONNX Runtime, every rounding included"
                )
            got, compared = self._timed(
                f"compare on {key}" + (" (simulated)" if simulated else ""), "_compare", self.folder, backend,
                list(self.exported.probes), dict(samples), self.request.threads,
            )  # fmt: skip
            self.compared += [{"backend": key, "precision": precision, "run_on": backend, **row} for row in compared]
            self._judge(key, precision, got, chunks, run_on=backend)

    def _affordable(self, backend: str, ours: Sequence[Artifact]) -> tuple[str, float]:
        """Where to run the NPU's artifacts: on the emulator where that is quick enough, else simulated."""
        if backend != "qnn-htp":
            return backend, 0.0
        runs = {component.name: component.runs for component in self.exported.components}
        seconds = 0.0
        for artifact in ours:
            bits = artifacts.quantized(artifact.task.precision)
            cost = (artifact.gflop or 0.0) * _EMULATOR[bits[1] if bits else 0]
            seconds += cost * runs[artifact.task.component] * max(len(self.exported.probes), 1)
        return (backend if seconds <= self.request.emulator_seconds else SIMULATED), seconds

    def _judge(
        self, key: str, precision: str, got: Sequence[Array], float32: Sequence[Array], run_on: str = ""
    ) -> None:
        """Compare chunks with PyTorch's (or, where there are none, with ONNX Runtime's in float32)."""
        torch = list(self.exported.chunks)
        reference, against = (torch, "PyTorch float32") if torch else (list(float32), f"ONNX Runtime {self.written}")
        faults = []
        (action,) = self.checkpoint.outputs.values()
        width = action.shape[0]
        for i, (want, have) in enumerate(zip(reference, got, strict=True)):
            row = difference(want[:, :width], have[:, :width])
            self.chunks.append({
                "backend": key, "precision": precision, "run_on": run_on or key, "against": against, "probe": i, **row,
                **action_error(want[:, :width], have[:, :width]),
            })  # fmt: skip
            cosine, share = LIMITS[key] if precision == "float32" else _ROUNDED
            if row["cosine"] < cosine:
                faults.append(Fault(f"cosine {row['cosine']:.7f}, at least {cosine} is wanted", f"probe {i}"))
            if share is not None and row["share"] > share:
                faults.append(
                    Fault(f"error {row['share']:.2g} of the range, at most {share:g} is wanted", f"probe {i}")
                )
        if faults:
            raise CheckFailed(f"chunks on {key} are not those of {against}", faults=faults,
                              hint="nothing was written; --no-verify writes it all the same")  # fmt: skip

    def _finish(self, made: Sequence[Artifact], onnx: Mapping[str, str]) -> Made:
        paths: dict[str, dict[str, str]] = {name: {} for name in onnx}
        precisions: dict[str, dict[str, str]] = {name: {} for name in onnx}
        for artifact in made:
            paths[artifact.task.component][artifact.task.key] = artifact.path
            precisions[artifact.task.component][artifact.task.key] = artifact.task.precision
        kept = {artifact.path for artifact in made}
        dropped = {*onnx.values(), *(artifact.dlc for artifact in made if artifact.dlc)} - kept
        needed = {path for name in kept for path in artifacts.belonging(self.folder, name)}
        gone = {path for name in dropped for path in artifacts.belonging(self.folder, name)} - needed
        for path in sorted(gone):
            path.unlink()
        parity = {
            "components": [*self.exported.parity, *self.compared],
            "chunks": self.chunks,
            "artifacts": [artifact.to_json() for artifact in made],
            "stages": [stage.to_json() for stage in self.stages.found],
            "notes": self.notes,
        }
        text = json.dumps(_finite(parity), indent=1, allow_nan=False)
        files.atomic_write_bytes(self.folder / PARITY, text.encode() + b"\n")
        (self.folder / MANIFEST).unlink()
        with self.stages("hash"):
            found = hashes(self.folder)
        manifest = dataclasses.replace(self._manifest(paths, precisions), files=found)
        manifest.write(self.folder)
        return Made(manifest, {**parity, "stages": [stage.to_json() for stage in self.stages.found]},
                    sum(row["bytes"] for row in found.values()))  # fmt: skip


def _absent(steps: Sequence[Mapping[str, Any]]) -> dict[str, Feature]:
    """Cameras that may be missing, of which a config need not say more than their number."""
    found = [step for step in steps if step["step"] == "fill_cameras"]
    return {name: Feature("VISUAL", tuple(step["shape"])) for step in found for name in step["names"]}


def _precisions(made: Sequence[Artifact]) -> str:
    """`w8a16`, or `w8a16 (action_head: float16)` where components differ."""
    values = [artifact.task.precision for artifact in made]
    most = max(dict.fromkeys(values), key=values.count)
    others = ", ".join(f"{a.task.component}: {a.task.precision}" for a in made if a.task.precision != most)
    return f"{most} ({others})" if others else most


def _finite(value: Any) -> Any:
    """`value` with numbers that JSON does not have as None, numpy's as Python's."""
    if isinstance(value, Mapping):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    if isinstance(value, np.generic):
        value = value.item()
    return None if isinstance(value, float) and not np.isfinite(value) else value


# ---------------------------------------------------------------- in processes of their own


def _measured(stage: str, function: str, *args: Any) -> tuple[Any, Stage]:
    stages = Stages()
    with stages(stage):
        result = globals()[function](*args)
    return result, stages.found[0]


def _components(
    kind: str, checkpoint: Path, folder: Path, threads: int | None, steps: Sequence[Mapping[str, Any]],
    inputs: dict[str, Any], statistics: dict[str, Array], config: dict[str, Any], words: bool,
    options: dict[str, str], precision: str, verify: bool, recorded: Path | None,
) -> _Parts:  # fmt: skip
    """Run the kind's exporter; its probes are recorded observations, or made-up ones where there are none."""
    stages = Stages("export: ")
    preprocessor = Preprocessor(inputs, steps, statistics, folder / TOKENIZER if words else None)

    def probes(count: int, noise: tuple[int, int] | None) -> list[Probe]:
        rng = np.random.default_rng(_SEED)
        if recorded is None:
            seen = observations.made_up(inputs, steps, statistics, count, _SEED)
        else:
            every = observations.read(recorded)
            seen = every[:: max(len(every) // count, 1)][:count]
        return [
            Probe(preprocessor(observation), None if noise is None else rng.standard_normal(noise, dtype=np.float32))
            for observation in seen
        ]

    request = ExportRequest(config, probes, stages, threads, options, precision, verify)
    exported: Exported = kinds.resolve(kinds.kind(kind).export)(checkpoint, folder, request)
    return _Parts(exported, stages.found)


def _run_probes(folder: Path, probes: list[Probe], threads: int | None) -> tuple[list[Array], dict[str, list[Sample]]]:
    """The package in the making on ONNX Runtime: chunks, and up to two runs of each component on each probe."""
    with Policy(folder, "ort", threads=threads) as policy:
        return record(policy.manifest, policy.sessions, probes, per_chunk=2, most=max(2 * len(probes), 1))


def _run_calibration(folder: Path, path: Path, most: int, threads: int | None) -> dict[str, list[dict[str, Array]]]:
    """Inputs of each component on observations of a file, at most so many."""
    given = observations.read(path)
    rng = np.random.default_rng(_SEED)
    with Policy(folder, "ort", threads=threads) as policy:
        shape = policy.noise_shape
        chosen = given[:: max(len(given) // most, 1)][:most]

        def probes() -> Iterator[Probe]:
            for observation in chosen:
                noise = None if shape is None else rng.standard_normal(shape, dtype=np.float32)
                yield Probe(policy.preprocessor(observation), noise)

        per_chunk = max(-(-most // len(chosen)), 1)
        _, samples = record(policy.manifest, policy.sessions, probes(), per_chunk=per_chunk, most=most)
    return {name: artifacts.feeds(runs) for name, runs in samples.items()}


def _compare(
    folder: Path, backend: str, probes: list[Probe], samples: dict[str, list[Sample]], threads: int | None
) -> tuple[list[Array], list[dict[str, Any]]]:
    """Chunks on a backend, and each component by itself on what it took on ONNX Runtime."""
    rng = np.random.default_rng(0)
    rows = []
    with Policy(folder, backend, threads=threads) as policy:
        chunks = []
        for probe in probes:
            policy.runtime.reset()
            policy.runtime.prefix(probe.inputs)
            chunks.append(np.array(policy.runtime.chunk(probe.noise, rng)))
        for component in policy.manifest.components:
            rows += _component_rows(component, policy.sessions[component.name].run, samples[component.name])
    return chunks, rows


def _component_rows(
    component: Component, run: Callable[[dict[str, Array]], dict[str, Array]], samples: Sequence[Sample]
) -> list[dict[str, Any]]:
    """The worst sample of each output."""
    worst: dict[str, dict[str, Any]] = {}
    for sample in samples[:2]:
        got = run(sample.inputs)
        for name, want in sample.outputs.items():
            row = {"component": component.name, "output": name, "against": "ONNX Runtime float32",
                   **difference(want, got[name])}  # fmt: skip
            if name not in worst or row["share"] > worst[name]["share"]:
                worst[name] = row
    return list(worst.values())


# ---------------------------------------------------------------- the folder


def _check_output(output: Path, *, force: bool) -> None:
    if not output.exists() and not output.is_symlink():
        if not output.parent.is_dir():
            raise UsageError("the folder to write into does not exist", where=str(output.parent))
        return
    if not output.is_dir() or output.is_symlink():
        raise UsageError("a file of this name exists", where=str(output), hint="choose another name")
    if not any(output.iterdir()):
        return
    if not (output / MANIFEST).is_file():
        raise UsageError("the folder is not empty, and no policy package", where=str(output),
                         hint="choose another name; npukit removes nothing that it did not make")  # fmt: skip
    if not force:
        raise UsageError("a policy package exists there", where=str(output), hint="replace it with --force")


@contextlib.contextmanager
def _staging(output: Path) -> Iterator[Path]:
    """A temporary folder beside `output`, removed at the end (also what a killed process left there)."""
    with files.os_errors(output.resolve().parent, "write"):
        folder = files.temporary_folder_beside(output)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _place(folder: Path, output: Path) -> None:
    """Rename the finished folder to its place; an old package there goes when the new one stands."""
    with files.os_errors(output, "write"):
        if not output.exists():
            os.rename(folder, output)
            return
        old = folder.with_name(f"{folder.name}.{secrets.token_hex(2)}.old")
        os.rename(output, old)
        try:
            os.rename(folder, output)
        except OSError:
            os.rename(old, output)
            raise
        shutil.rmtree(old, ignore_errors=True)

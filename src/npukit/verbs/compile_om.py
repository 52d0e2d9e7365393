# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""`npukit compile` for Huawei's chips: an ONNX model becomes an OM by atc, here or, with a bundle, elsewhere."""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from npukit import files, log
from npukit.analysis import text
from npukit.errors import ArtifactError, Fault, MissingDependency, UsageError
from npukit.verbs.isolate import isolated
from npukit.verbs.stage_om import Staged, is_static

if TYPE_CHECKING:
    from npukit.artifacts.stamp import Stamp
    from npukit.targets import Target
    from npukit.verbs.compile import CompileOptions


@dataclass(frozen=True)
class OmResult:
    """What was compiled.

    Attributes:
        path: the OM.
        sidecar: the file with its stamp.
        size: bytes of the OM.
        target: the chip.
        cann: version of CANN; empty where it does not say.
        applied: what was changed in the model so that atc takes it.
        weights: files with weights that belong to the OM.
        seconds: how long atc took; None for an OM that was compiled elsewhere.
        peak: most memory of atc and its helpers in bytes, looked at every 0.2 s; None as above.
        stamp: the stamp as JSON values.
    """

    path: Path
    sidecar: Path
    size: int
    target: str
    soc_version: str
    cann: str
    stamp: dict[str, Any]
    applied: tuple[str, ...] = ()
    weights: tuple[Path, ...] = ()
    seconds: float | None = None
    peak: int | None = None
    notes: tuple[str, ...] = ()
    exit_code: int = 0

    def to_json(self) -> dict[str, Any]:
        return {
            "output": str(self.path),
            "sidecar": str(self.sidecar),
            "bytes": self.size,
            "target": self.target,
            "soc_version": self.soc_version,
            "cann": self.cann,
            "applied": list(self.applied),
            "weights": [str(path) for path in self.weights],
            "seconds": self.seconds,
            "peak_bytes": self.peak,
            "stamp": self.stamp,
            "notes": list(self.notes),
        }

    def to_text(self) -> str:
        by = f"CANN {self.cann}" if self.cann else "CANN"
        took = "" if self.seconds is None else f" in {self.seconds:.0f} s"
        took += f" and {text.size(self.peak)}" if self.peak else ""
        lines = [f"{self.path} ({text.size(self.size)}): for {self.soc_version} by {by}{took}, "
                 f"stamp in {self.sidecar.name}"]  # fmt: skip
        if self.weights:
            lines.append(f"its weights are in {self.weights[0].parent}: keep them beside it")
        lines += [f"prepared: {line}" for line in self.applied]
        return "\n".join([*lines, *(f"note: {note}" for note in self.notes)])


@dataclass(frozen=True)
class CommandResult:
    """The commands that compile the model, for a shell."""

    commands: tuple[str, ...]
    notes: tuple[str, ...] = ()
    exit_code: int = 0

    def to_json(self) -> dict[str, Any]:
        return {"commands": list(self.commands), "notes": list(self.notes)}

    def to_text(self) -> str:
        return "\n".join([*self.commands, *(f"# {note}" for note in self.notes)])


@dataclass(frozen=True)
class BundleResult:
    """A bundle that was written.

    Attributes:
        path: the folder or tar file.
        size: its bytes.
        command: atc's command line in it.
    """

    path: Path
    size: int
    command: str
    applied: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    exit_code: int = 0

    def to_json(self) -> dict[str, Any]:
        return {
            "bundle": str(self.path),
            "bytes": self.size,
            "command": self.command,
            "applied": list(self.applied),
            "notes": list(self.notes),
        }

    def to_text(self) -> str:
        unpack = "" if self.path.is_dir() else f"tar xf {self.path.name}, then in it "
        lines = [f"{self.path} ({text.size(self.size)}): take it to a machine with CANN; {unpack}`sh compile.sh`"]
        lines += [f"prepared: {line}" for line in self.applied]
        return "\n".join([*lines, *(f"note: {note}" for note in self.notes)])


def compile_om(options: CompileOptions, chip: Target) -> OmResult | CommandResult | BundleResult:
    """Compile an ONNX model for an Ascend chip, or write what compiles it.

    Raises:
        UsageError: options that atc does not take, all of them.
        ModelError: the model is broken.
        GraphError: what atc or the chip does not take, every node.
        MissingDependency: CANN is missing.
        NativeError: atc failed, took too long or too much memory.
    """
    from npukit.runtime.file_kind import file_kind

    if file_kind(options.model) != "onnx":
        hint = "DLCs are for Qualcomm's chips; compile the ONNX model that it was made from"
        raise UsageError(f"compile takes an ONNX model for {chip.name}", where=str(options.model), hint=hint)
    if options.bundle is not None:
        return _bundle(options, chip)
    if options.print_command:
        return _commands(options, chip)
    from npukit.ascend import atc, cann

    toolkit = cann.find()
    output = options.output or options.model.with_suffix(".om")
    with _work_folder(output) as work:
        staged = _staged(options, chip, work, output, options.cann or toolkit.version)
        (work / "out").mkdir()
        outcome = atc.run(
            staged.job, work / staged.name, toolkit, where=str(options.model), timeout=options.timeout,
            memory_limit=options.memory_limit, progress=log.report,
        )  # fmt: skip
        stamp = replace(staged.stamp, options={**staged.stamp.options, "cann": toolkit.version})
        try:
            made = _placed(outcome.om, outcome.weights, output, stamp, keep=False)
        except ArtifactError as error:
            error.where = str(output)
            error.hint = "atc said that it succeeded: is the disk full? Nothing was kept"
            raise
    notes = (*staged.notes, *outcome.warnings, *made.notes)
    return replace(made, seconds=outcome.seconds, peak=outcome.peak, notes=notes)


def _staged(options: CompileOptions, chip: Target, folder: Path, output: Path, version: str) -> Staged:
    """Make the model ready in `folder`/NAME, in a worker: it is somebody's file."""
    log.report("preparing the model", 0.0)
    with isolated(in_process=options.in_process, timeout=options.timeout) as call:
        staged: Staged = call("npukit.verbs.stage_om:stage", options, chip, folder, output, version)
    return staged


@contextlib.contextmanager
def _work_folder(output: Path) -> Iterator[Path]:
    """A folder for atc beside the output, or, where atc cannot handle that path, among the temporary files."""
    from npukit.ascend.atc import check_folder
    from npukit.ascend.atc_options import path_fault

    with files.os_errors(output.parent, "write"):
        beside = not path_fault(output.parent.resolve(strict=True) / output.name)
        folder = files.temporary_folder_beside(output) if beside else Path(files.temporary_folder())
    try:
        check_folder(folder)
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _placed(source: Path, weights: Sequence[Path], output: Path, stamp: Stamp, *, keep: bool) -> OmResult:
    """Check an OM and put it in place: weights first, then the OM with its stamp; `keep` leaves the source there."""
    from npukit.artifacts import context
    from npukit.ascend import om

    log.report("checking the OM", 0.0)
    made = om.read(source)
    places = tuple(output.parent / "weight" / path.name for path in weights)
    if places:
        sums = {path.name: files.sha256_file(path) for path in weights}
        stamp = replace(stamp, options={**stamp.options, "weight_files": sums})
        with files.os_errors(places[0], "write"):
            places[0].parent.mkdir(exist_ok=True)
        for path, place in zip(weights, places, strict=True):
            _transfer(path, place, keep)
    digest = files.sha256_file(source)
    beside = context.sidecar(output)
    with files.atomic_write(beside) as temp:
        temp.write_bytes(context.sidecar_text(stamp, digest).encode())
        _transfer(source, output, keep)
    note = "its shapes are open: it runs only on the very version of CANN's operators that compiled it"
    options = stamp.options
    return OmResult(
        output, beside, output.stat().st_size, stamp.targets[0], str(options["soc_version"]), str(options["cann"]),
        stamp.to_dict(), tuple(options["prepared"]), places, notes=(note,) if made.dynamic else (),
    )  # fmt: skip


def _transfer(source: Path, target: Path, keep: bool) -> None:
    """Put a finished file in place, whole or not at all: renamed where it can and may be, else copied."""
    if target.exists() and target.samefile(source):
        return
    with files.atomic_write(target) as temp, files.os_errors(target, "write", instead_of=temp):
        if not keep:
            with contextlib.suppress(OSError):  # another file system
                os.replace(source, temp)
                return
        shutil.copyfile(source, temp)


# ---------------------------------------------------------------- without CANN


def _version(options: CompileOptions) -> str:
    """The version of CANN that is said, or found here; empty if neither."""
    from npukit.ascend import cann

    if options.cann:
        return options.cann
    try:
        return cann.find().version
    except MissingDependency:
        return ""


def _bundle(options: CompileOptions, chip: Target) -> BundleResult:
    from npukit.ascend import bundle

    path = Path(str(options.bundle))
    packed = bundle.is_tar(path)
    if not packed and path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise UsageError("there is something of this name", where=str(path), hint="name a new folder or a .tar file")
    with files.os_errors(path.parent, "write"):
        path.parent.resolve(strict=True)
        folder = files.temporary_folder_beside(path)
    try:
        output = options.output or options.model.with_suffix(".om")
        staged = _staged(options, chip, folder, output, _version(options))
        entry = bundle.Entry(staged.name, staged.job, staged.stamp.to_dict())
        bundle.write(folder, [entry])
        if packed:
            log.report("packing", 0.0)
            bundle.pack(folder, path)
            size = path.stat().st_size
        else:
            size = sum(file.stat().st_size for file in [*bundle.files(folder), folder / bundle.SUMS])
            with files.os_errors(path, "write"):
                if path.is_dir():
                    path.rmdir()
                os.replace(folder, path)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return BundleResult(path, size, staged.job.command(), staged.applied, staged.notes)


def _commands(options: CompileOptions, chip: Target) -> CommandResult:
    """What a shell is told: prepare the model, write atc's small files, run atc."""
    from npukit.ascend.atc_options import path_fault

    folder = Path(files.temporary_folder())
    output = options.output or options.model.with_suffix(".om")
    try:
        staged = _staged(options, chip, folder, output, _version(options))
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    ready = options.model
    lines = []
    fixed = (
        options.symbols or options.batch is not None or any(is_static(shape) for shape in options.input_shapes.values())
    )
    if options.prepare and (staged.applied or fixed):
        ready = output.with_suffix(".atc.onnx")
        lines.append(shlex.join(["npukit", "export", str(options.model), *_preparing(options, chip), "-o", str(ready)]))
    for name, content in staged.texts.items():
        lines.append(f"cat >{shlex.quote(name)} <<'END'\n{content}END")
    own = {name: value for name, value in options.atc_options.items() if name in staged.job.files}
    given = {**staged.job.options, **own}  # their files as they lie, not the copies
    job = replace(staged.job, model=str(ready), output=str(output.with_suffix("")), options=given)
    paths = [str(ready), str(output), *(given[name] for name in staged.job.files)]
    faults = [Fault(fault, path) for path in dict.fromkeys(paths) if (fault := path_fault(path))]
    if faults:
        raise UsageError("atc would refuse this", faults=faults, hint="--bundle makes names that it takes")
    return CommandResult((*lines, job.command()), staged.notes)


def _preparing(options: CompileOptions, chip: Target) -> list[str]:
    """The options of `npukit export` that do the same preparation."""
    found = ["--target", chip.name]
    found += ["--cann", options.cann] if options.cann else []
    found += ["--precision-mode", options.precision_mode] if options.precision_mode else []
    for name, shape in options.input_shapes.items():
        if is_static(shape):
            found += ["--input-shape", f"{name}={','.join(map(str, shape))}"]
    for name, value in options.symbols.items():
        found += ["--symbol", f"{name}={value}"]
    found += ["--batch", str(options.batch)] if options.batch is not None else []
    return found


def adopt(options: CompileOptions) -> OmResult:
    """Check an OM that was compiled from a bundle elsewhere, and stamp it.

    Raises:
        ArtifactError: the OM or the bundle is damaged, or they do not belong together.
        UsageError: none of the bundle's models has the OM's name.
    """
    from npukit.artifacts.stamp import Stamp
    from npukit.ascend import bundle

    source = options.model
    where = Path(str(options.from_bundle))
    model = bundle.model_of(source, bundle.read(where))
    with files.os_errors(source, "read"):
        source.stat()
    notes = []
    noted = bundle.recorded_sum(source)
    if not noted:
        notes.append(f"no {bundle.SUMS} beside the OM notes it: whether it came over whole, only its header says")
    elif noted != files.sha256_file(source):
        hint = "copy the folder out again, with its SHA256SUMS"
        raise ArtifactError("the OM is not the one that compile.sh made: the SHA-256 differs", where=str(source),
                            hint=hint)  # fmt: skip
    version = source.parent / "cann.txt"
    cann = version.read_text("utf-8", "replace").strip()[:40] if version.is_file() else ""
    stamp = Stamp.from_json(json.dumps(dict(model.stamp)), where=str(where))
    if not stamp.targets or not {"soc_version", "prepared"} <= set(stamp.options):
        raise ArtifactError("the bundle's stamp is not one of an OM", where=str(where))
    stamp = replace(stamp, options={**stamp.options, "cann": cann})
    weights = sorted(path for path in (source.parent / "weight").glob("*") if path.is_file())
    made = _placed(source, weights, options.output or Path(source.name), stamp, keep=True)
    return replace(made, notes=(*notes, *made.notes))

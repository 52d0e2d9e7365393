# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""One case: made from its name, handed to the real verbs in a reused worker, and judged.

Fine is success, or an error of npukit in one paragraph that leaves nothing behind. Bad is any other exception, a
hang outside of native code, a traceback, something left in the output folder. What kills the worker, or exceeds its
time or memory, is tried again through the verbs as a user calls them, with a worker of its own: that outcome counts,
so that a case is not blamed for what an earlier one did to the process.
"""

from __future__ import annotations

import dataclasses
import importlib
import random
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fuzz import frameworks, mutate_artifacts, mutate_onnx, mutate_sources
from fuzz.corpus import CHIP, Seed
from fuzz.mutate import Files
from npukit.errors import NpukitError, WorkerDied
from npukit.files import os_error
from npukit.frontends.pytorch.kinds import EXPORT, SCRIPT, kind_of
from npukit.verbs.convert import ConvertOptions
from npukit.verbs.export import ExportOptions
from npukit.verbs.inspect import InspectOptions
from npukit.verbs.run import RunOptions
from npukit.worker import Pool, RemoteFault, Worker

STAGES = ("parser", "front end", "lowering", "native", "execute")
"""What a case got through: file structure; ONNX: normalized, DLC: captured; every op placed and validated; a native
library took the file or graph; the graph ran (for ONNX: the DLC was written)."""

TIMEOUT = 30.0
MEMORY = 3 << 30
_ALONE_TIMEOUT = 90.0
_MOST_TEXT = 30_000
_MOST_LINE = 3_000

_MUTATORS: dict[str, Callable[[random.Random, Files, str], Files]] = {
    "onnx": mutate_onnx.mutate,
    "dlc": mutate_artifacts.dlc,
    "stamp": mutate_artifacts.stamp,
    "bin": mutate_artifacts.context,
    "sidecar": mutate_artifacts.sidecar,
    "npz": mutate_artifacts.array,
    "tflite": mutate_sources.tflite,
    "pt2": mutate_sources.archive,
    "pt": mutate_sources.archive,
    "pb": mutate_sources.graph,
    "savedmodel": mutate_sources.saved_model,
}

# What goes through `convert`, as against files that `run` takes.
SOURCES = ("onnx", "tflite", "pt2", "pt", "pb", "savedmodel")
ENVIRONMENT = {"TORCH_FORCE_WEIGHTS_ONLY_LOAD": "1"}
"""For workers: as the PyTorch front end starts its own."""


@dataclass(frozen=True)
class Case:
    """A mutated seed.

    Attributes:
        name: "kind:index", with the run's seed number enough to make it again.
        kind: of the seed.
        origin: name of the seed.
        files: what lies in the folder.
        main: the file handed to the verb.
        options: what else the verb gets.
    """

    name: str
    kind: str
    origin: str
    files: Files
    main: str
    options: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Verdict:
    """What became of a case.

    Attributes:
        case: its name.
        kind: its kind.
        outcome: "done", "refused" (an error of ours), "died" (the worker died in native code: contained) or "bad".
        stages: those of STAGES that it got through.
        error: class of the error; empty for "done".
        text: the error's text.
        exit_code: what the command would exit with.
        why: for "bad" what is wrong.
        detail: for "bad" a traceback or a listing.
        what: the sentence that names the trouble: of the first fault, where there are several.
    """

    case: str
    kind: str
    outcome: str
    stages: tuple[str, ...]
    error: str = ""
    text: str = ""
    exit_code: int = 0
    why: str = ""
    detail: str = ""
    what: str = ""

    @property
    def group(self) -> str:
        """The failure class: kind, exit code, error and sentence without what differs from file to file."""
        return f"{self.kind} {self.exit_code} {self.error}: {normalized(self.what or self.text)}"


def make(kind: str, seeds: list[Seed], number: int, index: int) -> Case:
    """The case `index` of `kind` in the run with seed `number`."""
    rng = random.Random(f"{number}:{kind}:{index}")
    seed = rng.choice(seeds)
    files = _MUTATORS[kind](rng, seed.files, seed.main)
    options: dict[str, Any] = {}
    if kind in SOURCES:
        options["target"] = rng.choice((("qnn-cpu",), ("qnn-cpu",), (CHIP,), ()))
        if kind in ("pt", "pt2"):
            options["input_shapes"] = seed.shapes if kind == "pt" else {}
    elif kind != "npz":
        options["input_ranges"] = {name: (0.0, 1.0) for name in seed.integers}
        options["export"] = kind == "dlc" and rng.random() < 0.3
    return Case(f"{kind}:{index}", kind, seed.name, files, seed.main, options)


def judge(case: Case, pool: Pool, folder: Path, tensorflow: Path | None = None) -> Verdict:
    """Run a case in a worker of `pool`; `folder` is used and emptied.

    `tensorflow` is the interpreter of the first attempt (`frameworks.quick_tensorflow`); None for the real one.
    """
    verdict = _attempt(case, folder, lambda watch: _in_pool(case, pool, folder, watch, tensorflow))
    if verdict.error == "WorkerDied" or verdict.why == "something was left behind":
        alone = _attempt(case, folder, lambda watch: _alone(case, folder))
        stages = tuple(stage for stage in STAGES if stage in (*verdict.stages, *alone.stages))
        verdict = Verdict(**{**vars(alone), "stages": stages})
    return verdict


def write(case: Case, folder: Path) -> Path:
    """Write the case's files; the path of the main one."""
    folder.mkdir(parents=True)
    for name, data in case.files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return folder / case.main


# ---------------------------------------------------------------- what is run


class _Watch:
    """How far a case got: from the progress that the verbs report, and the last word on native calls."""

    def __init__(self) -> None:
        self.progress: list[str] = []
        self.notes: list[str] = []

    def report(self, what: str, fraction: float) -> None:
        self.progress.append(what)

    def call(self, worker: Worker, function: str, *arguments: Any) -> Any:
        try:
            return worker.call(function, *arguments, progress=self.report)
        finally:
            self.notes.append(worker._read_note())


def _in_pool(case: Case, pool: Pool, folder: Path, watch: _Watch, tensorflow: Path | None) -> None:
    with pool.worker() as worker:
        if case.kind in ("pt2", "pt"):
            _pytorch(case, worker, folder, watch)
            return
        for function, options in _steps(case, folder):
            if tensorflow is not None and case.kind in ("pb", "savedmodel"):
                options = dataclasses.replace(options, tensorflow_python=tensorflow)
            watch.call(worker, function, options)


def _pytorch(case: Case, worker: Worker, folder: Path, watch: _Watch) -> None:
    """What `convert` does with a PyTorch file, but with torch in the reused worker, where it is imported once."""
    options = _convert_options(case, folder)
    path = options.model
    kind = kind_of(path)
    if kind in (EXPORT, SCRIPT):
        (folder / "torch").mkdir()
        path = folder / "torch" / "model.onnx"
        watch.call(worker, "npukit.frontends.pytorch.convert:refuse_code", options.model, kind)
        arguments = (options.model, kind, path, dict(options.input_shapes), False, True)
        watch.call(worker, "npukit.frontends.pytorch.export:export_file", *arguments)
    watch.call(worker, "npukit.verbs.convert:convert", dataclasses.replace(options, model=path))


def _steps(case: Case, folder: Path) -> list[tuple[str, Any]]:
    """The verbs that a case goes through in its worker, the last one farthest."""
    path = folder / "in" / case.main
    if case.kind in SOURCES:
        return [("npukit.verbs.convert:convert", _convert_options(case, folder))]
    if case.kind == "npz":
        return [("npukit.verbs.run:run", _array_options(case, folder))]
    steps: list[tuple[str, Any]] = [("npukit.verbs.inspect:inspect", InspectOptions(path, tensors=True))]
    if case.options.get("export"):
        steps.append(("npukit.verbs.export:export", ExportOptions(path, folder / "out" / "model.onnx")))
    return [*steps, ("npukit.verbs.run:run", _run_options(case, folder))]


def _alone(case: Case, folder: Path) -> None:
    """As a user calls them: each verb here, native code in a worker of its own."""
    for function, options in _steps(case, folder):
        module, _, name = function.partition(":")
        verb = getattr(importlib.import_module(module), name)
        verb(dataclasses.replace(options, in_process=False, timeout=_ALONE_TIMEOUT))


def _convert_options(case: Case, folder: Path) -> ConvertOptions:
    output = folder / "out" / "model.dlc"
    shapes = {name: tuple(shape) for name, shape in case.options.get("input_shapes", {}).items()}
    chosen: dict[str, Any] = {"input_shapes": shapes} if shapes else {"batch": 2}
    if case.kind in ("pb", "savedmodel"):
        python = frameworks.tensorflow_python()
        chosen["tensorflow_python"] = Path(python) if python else None
    return ConvertOptions(folder / "in" / case.main, output, target=case.options["target"], verify=False, **chosen)


def _run_options(case: Case, folder: Path) -> RunOptions:
    path, ranges = folder / "in" / case.main, case.options.get("input_ranges", {})
    return RunOptions(path, folder / "out" / "run", random=1, input_ranges=ranges, in_process=True)


def _array_options(case: Case, folder: Path) -> RunOptions:
    path = folder / "in" / case.main
    chosen: dict[str, Any] = {"input_list": path} if path.suffix == ".txt" else {"inputs": (("x", path),)}
    return RunOptions(folder / "in" / "m.onnx", folder / "out" / "run", in_process=True, threads=1, **chosen)


# ---------------------------------------------------------------- how it is judged


def _attempt(case: Case, folder: Path, action: Callable[[_Watch], None]) -> Verdict:
    shutil.rmtree(folder, ignore_errors=True)
    write(case, folder / "in")
    (folder / "out").mkdir()
    watch = _Watch()
    error: BaseException | None = None
    try:
        action(watch)
    except Exception as caught:  # any kind: judging it is the point
        error = caught
    stages = _stages(case, watch, error)
    left = _left(case, folder, error)
    if error is None or isinstance(error, NpukitError | OSError):
        known = os_error(error, "", "use") if isinstance(error, OSError) else error
        why = _unsound(known) or ("something was left behind" if left else "")
        return _verdict(case, stages, known, why, left)
    detail = error.traceback if isinstance(error, RemoteFault) else repr(error)
    return Verdict(
        case.name, case.kind, "bad", stages, type(error).__name__, str(error), 4, "a fault in npukit", detail
    )


def _verdict(case: Case, stages: tuple[str, ...], error: NpukitError | None, why: str, detail: str) -> Verdict:
    if error is None:
        return Verdict(case.name, case.kind, "bad" if why else "done", stages, why=why, detail=detail)
    died = isinstance(error, WorkerDied)
    if died and "gave no answer within" in error.what and not _IN_NATIVE.search(error.what):
        why = why or "a hang"
    outcome = "bad" if why else "died" if died else "refused"
    what = error.faults[0].what if error.faults else error.what
    return Verdict(
        case.name, case.kind, outcome, stages, type(error).__name__, str(error), error.exit_code, why, detail, what
    )


def _unsound(error: NpukitError | None) -> str:
    """What is wrong with an error's text, if anything."""
    if error is None:
        return ""
    text = str(error)
    if "Traceback (most recent" in text or re.search(r" object at 0x|<class '", text):
        return "the message shows Python's insides"
    if not error.what.strip():
        return "the message is empty"
    if len(text) > _MOST_TEXT or max(map(len, text.splitlines())) > _MOST_LINE:
        return "the message is too long"
    if any(ord(letter) < 32 and letter != "\n" for letter in text):
        return "the message holds control characters"
    return ""


def _left(case: Case, folder: Path, error: BaseException | None) -> str:
    """What should not lie in the case's folders."""
    inside = {p.relative_to(folder / "in").as_posix() for p in (folder / "in").rglob("*") if not p.is_dir()}
    inside -= set(case.files)
    found = {str(p.relative_to(folder / "out")) for p in (folder / "out").rglob("*") if not p.is_dir()}
    allowed = {"model.dlc"} if case.kind in SOURCES else {"model.onnx"}
    if error is not None and case.kind in SOURCES:
        allowed = set()
    stray = {name for name in found - allowed if error is not None or ".npukit-tmp" in name}
    return ", ".join(sorted(inside | stray))


_NOT_PARSED = (
    "this is not a whole ONNX model", "the model is broken", "the file is empty", "this is a ", "this is an ",
    "the model cannot be built", "there is no such file", "this is not a", "the file is not a sound zip",
    "TensorFlow cannot read", "torch cannot read", "its pickle", "its member",
)  # fmt: skip


def _stages(case: Case, watch: _Watch, error: BaseException | None) -> tuple[str, ...]:
    """The stages passed; those before one that was passed count as passed."""
    last = watch.notes[-1] if watch.notes else ""
    if case.kind in SOURCES:
        what = error.what if isinstance(error, NpukitError) else ""
        reached = 0 if what.startswith(_NOT_PARSED) else 1
        reached = 2 if "lowering" in watch.progress else reached
        reached = 3 if "writing" in watch.progress else reached
        reached = 4 if last.startswith(("compose", "graphFinalize")) else reached
    elif case.kind == "npz":
        reached = 1 if last.startswith("onnxruntime.run") else 0
    else:
        reached = max((_REACHED.get(note.split(" ")[0], 0) for note in watch.notes), default=0)
    passed = [stage for i, stage in enumerate(STAGES) if i < reached or error is None]
    if case.kind in SOURCES and last.startswith(_NATIVE) and "native" not in passed:
        passed.append("native")  # ops were validated by a native library
    if case.kind in ("dlc", "stamp", "bin", "sidecar") and reached and "native" not in passed:
        passed.append("native")
    return tuple(passed)


# Changed code of a context binary may well loop: the time limit is what ends that, and it is listed.
_IN_NATIVE = re.compile(r"during (graphExecute|graphFinalize|contextCreateFromBinary|composeGraphs|system\w+)")

# Native calls that come after all ops were placed; a library is loaded before.
_NATIVE = ("backendValidateOpConfig", "compose", "graphFinalize", "contextGetBinary")

# The last native call of an artifact's run -> how many stages it got through before.
_REACHED = {"systemDlcCreateFromFile": 1, "composeGraphs": 1, "load": 2, "backendValidateOpConfig": 2, "compose": 3,
            "graphFinalize": 3, "graphExecute": 4, "systemContextGetBinaryInfo": 1,
            "contextCreateFromBinary": 3}  # fmt: skip


def normalized(sentence: str) -> str:
    """The beginning of a sentence without names, numbers, paths and punctuation: what its class is known by."""
    text = re.sub(r"'(?:[^'\\]|\\.)*'|\"[^\"]*\"|\[[^\]]*\]|\([^)]*\)|\S*/\S*", " ", sentence)
    words = [
        word for word in re.findall(r"[A-Za-z_]+[0-9]*", text) if word.islower() and not re.search(r"[_0-9]", word)
    ]
    return " ".join(words)[:36]

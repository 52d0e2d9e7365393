# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""`npukit run`: run a model on inputs from files and save its outputs."""

from __future__ import annotations

import json
import re
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from npukit import files, log
from npukit.analysis import DEFAULT_SEED, postprocess, saturation, text
from npukit.analysis.preprocess import recorded
from npukit.analysis.samples import Samples, generate, given, read_input
from npukit.errors import InputError, UsageError
from npukit.runtime import BACKEND_NAMES
from npukit.verbs import options as o
from npukit.verbs.meaning import meaning
from npukit.verbs.options import arg, opt, verb

if TYPE_CHECKING:
    from npukit.ascend.emulate import Saturation
    from npukit.runtime.session import Session


@dataclass(frozen=True)
class RunOptions:
    """Run a model on inputs and save its outputs.

    A list file has one run a line: NAME=FILE for each input (a lone FILE for the only one); # begins a comment.
    """

    model: Path = arg("the model (.onnx, .dlc, context binary, .om)")
    output: Path | None = opt(
        None, "Folder for the outputs [none are saved].", "-o", "--out", parse=Path, metavar="DIR"
    )
    backend: str | None = opt(None, "Backend [by file].", choices=BACKEND_NAMES)
    inputs: tuple[tuple[str, Path], ...] = opt(
        (), "Input data; several of a name are several runs.", "--input", many=True, parse=o.files,
        metavar="NAME=FILE",
    )  # fmt: skip
    input_list: Path | None = opt(None, "File that lists the inputs of each run.", parse=Path, metavar="FILE")
    preprocessing: Any = opt(
        None, "What is done with image files (YAML) [the stamp's].", parse=o.preprocessing, metavar="FILE"
    )
    postprocessing: Any = opt(
        None, "What the outputs mean (YAML) [the stamp's].", parse=o.postprocessing, metavar="FILE"
    )
    random: int | None = opt(None, "Generate the inputs of this many runs.")
    seed: int = opt(DEFAULT_SEED, "Seed of generated inputs.")
    input_ranges: dict[str, tuple[float, float]] = opt(
        {}, "Range of a generated input.", "--input-range", many=True, parse=o.ranges, metavar="NAME=LO:HI"
    )
    dequantize: bool = opt(
        False, "Floats instead of integer codes, where the file has no stamp that says it.", "--dequantize"
    )
    format: str = opt("npy", "How outputs are saved.", choices=("npy", "raw"))
    graph: str | None = opt(None, "Graph to run, where the model holds several.", metavar="NAME")
    target: str | None = opt(None, "Chip to emulate [the stamp's].", metavar="NAME")
    emulate: str = opt(
        "", "Compute as this chip would: ascend310p[:PRECISION[:LIST.json]] (backend ort).", metavar="CHIP"
    )
    threads: int | None = opt(None, "Threads of ONNX Runtime.")
    timeout: float | None = opt(None, "Seconds that loading and each run may take.")
    in_process: bool = opt(False, "Run native code in this process.", "--in-process")


@dataclass(frozen=True)
class RunResult:
    """The outcome of a run.

    Attributes:
        backend: backend that ran the model.
        library: its library and version.
        outputs: one mapping a run: arrays by source name.
        saved: one mapping a run: file by source name; empty where nothing was saved.
        seconds: each run's time, data transfer to the worker included.
        inputs: where the inputs came from.
        emulated: the chip whose arithmetic was emulated, with the precision mode; empty for none.
        saturations: the tensors that it saturated, over all runs.
        notes: what the backend has to say about the model.
        results: what the outputs of each run mean, where postprocessing says it; see `Postprocessing.apply`.
    """

    backend: str
    library: str
    outputs: tuple[dict[str, Any], ...]
    saved: tuple[dict[str, Path], ...]
    seconds: tuple[float, ...]
    inputs: str
    emulated: str = ""
    saturations: tuple[Saturation, ...] = ()
    notes: tuple[str, ...] = ()
    results: tuple[dict[str, Any], ...] = ()
    exit_code: int = 0

    def to_json(self) -> dict[str, Any]:
        """As one JSON-ready object, with the outputs' shapes and ranges instead of their values."""
        runs = []
        for i, outputs in enumerate(self.outputs):
            saved = self.saved[i] if self.saved else {}
            rows = [{**_figures(n, a), "file": str(saved[n]) if n in saved else None} for n, a in outputs.items()]
            found = {"results": postprocess.as_json(self.results[i])} if self.results else {}
            runs.append({"seconds": self.seconds[i], "outputs": rows, **found})
        return {
            "backend": self.backend,
            "library": self.library,
            "inputs": self.inputs,
            "runs": runs,
            "emulated": self.emulated,
            "saturations": [one.to_json() for one in self.saturations],
            "notes": list(self.notes),
        }

    def to_text(self) -> str:
        count = len(self.outputs)
        lines = [f"{self.inputs}; on {self.backend} ({self.library}), {sum(self.seconds) / max(count, 1):.3g} s a run"]
        rows = []
        for i, outputs in enumerate(self.outputs):
            for name, array in outputs.items():
                f = _figures(name, array)
                saved = self.saved[i].get(name, "") if self.saved else ""
                shape = f"{f['dtype']} {text.shape(f['shape'])}"
                rows.append((i, name, shape, f["min"], f["max"], f["mean"], str(saved)))
        lines.append(text.table(("run", "output", "shape", "min", "max", "mean", "file" if self.saved else ""), rows))
        lines += saturation.lines(self.emulated, self.saturations)
        lines += [f"note: {note}" for note in self.notes]
        lines += [f"run {i}: {line}" for i, found in enumerate(self.results) for line in postprocess.as_lines(found)]
        return "\n".join(lines)


def _figures(name: str, array: Any) -> dict[str, Any]:
    """Name, dtype, shape and the range of the finite values; None where there is none."""
    low = high = mean = None
    if array.size and array.dtype != object:
        values = array.astype(np.float64)
        values = values[np.isfinite(values)]
        if values.size:
            low, high, mean = float(values.min()), float(values.max()), float(values.mean())
    shape = [int(extent) for extent in array.shape]
    return {"name": name, "dtype": array.dtype.name, "shape": shape, "min": low, "max": high, "mean": mean}


@verb(RunOptions)
def run(options: RunOptions) -> RunResult:
    """Run `model` on each set of inputs, and save the outputs to `output` where given.

    Raises:
        NpukitError: a file, an input or an option is wrong; a library is missing or died.

    Example:
        >>> result = npukit.run("digits.dlc", inputs=["image=image.npy"])
        >>> result.backend, result.outputs[0]["scores"].shape
        ('qnn-cpu', (1, 10))
    """
    from npukit.runtime.session import Session

    with Session(
        options.model, backend=options.backend, graph=options.graph, target=options.target, threads=options.threads,
        timeout=options.timeout, in_process=options.in_process, dequantize=options.dequantize,
        emulate=options.emulate,
    ) as session:  # fmt: skip
        chosen = _samples(options, session)
        after = meaning(options.preprocessing, options.postprocessing, session, _entries(options, session))
        outputs, saved, seconds, results = [], [], [], []
        for i, sample in enumerate(chosen.runs):
            log.report(f"run {i + 1} of {len(chosen.runs)}", i / len(chosen.runs))
            start = time.perf_counter()
            result = session.run(sample)
            seconds.append(time.perf_counter() - start)
            outputs.append(result)
            if options.output is not None:
                folder = options.output if len(chosen.runs) == 1 else options.output / str(i)
                saved.append(_save(result, folder, options.format))
            if after is not None:
                results.append(after.of(result, i))
                if options.output is not None:
                    postprocess.save(results[-1], folder)
        return RunResult(
            session.backend, session.library, tuple(outputs), tuple(saved), tuple(seconds), chosen.describe(),
            session.emulated or "", tuple(session.saturations()) if session.emulated else (), tuple(session.notes),
            tuple(results),
        )  # fmt: skip


def _samples(options: RunOptions, session: Session) -> Samples:
    sources = [bool(options.inputs), options.input_list is not None, options.random is not None]
    if sum(sources) != 1:
        raise UsageError(
            "exactly one source of inputs is needed" if any(sources) else "no inputs are given",
            where="--input",
            hint="--input NAME=FILE, --input-list FILE or --random N",
        )
    if options.random is not None:
        if options.random < 1:
            raise UsageError("at least one run is needed", where="--random")
        return generate(session.inputs, options.random, seed=options.seed, ranges=options.input_ranges)
    entries = _entries(options, session)
    recipe = recorded(session.stamp.options if session.stamp else None, options.preprocessing)
    return given(entries, session.inputs, recipe.read if recipe else read_input)


def _entries(options: RunOptions, session: Session) -> list[tuple[str, Path]]:
    """Name and file of every input that was given."""
    if options.input_list is not None:
        return read_list(options.input_list, [info.name for info in session.inputs])
    return list(options.inputs)


def read_list(path: Path, names: list[str]) -> list[tuple[str, Path]]:
    """The (name, file) pairs of a list file; files are looked for from here, then from the list's folder.

    Files without name are those of the inputs in order. Raises InputError naming the line.
    """
    entries: list[tuple[str, Path]] = []
    with files.os_errors(path, "read"):
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    for number, line in enumerate(lines, 1):
        words = line.partition("#")[0].split()
        if not words or words[0].startswith("%"):
            continue
        if len(words) != len(names):
            raise InputError(
                f"{len(words)} files, the model has {len(names)} inputs", where=f"{path}, line {number}",
                hint=f"one line a run: {' '.join(f'{name}=FILE' for name in names)}",
            )  # fmt: skip
        for position, word in enumerate(words):
            name, equals, value = word.replace(":=", "=").partition("=")
            file = Path(value if equals else word)
            if not file.exists() and (path.parent / file).exists():
                file = path.parent / file
            entries.append((name if equals else names[position], file))
    if not entries:
        raise InputError("the list is empty", where=str(path))
    return entries


def _save(outputs: dict[str, Any], folder: Path, form: str) -> dict[str, Path]:
    with files.os_errors(folder, "write"):
        folder.mkdir(parents=True, exist_ok=True)
    saved: dict[str, Path] = {}
    used: set[str] = set()
    for name, array in outputs.items():
        stem = base = re.sub(r"[^0-9A-Za-z_.-]", "_", name).lstrip(".") or "output"
        while stem in used:
            stem = f"{base}_{len(used)}"
        used.add(stem)
        saved[name] = folder / f"{stem}.{form}"
        with files.atomic_write(saved[name]) as temp, open(temp, "wb") as stream:
            if form == "npy":
                np.save(stream, array, allow_pickle=False)
            else:
                stream.write(np.ascontiguousarray(array).tobytes())
    index = {name: {"file": path.name, **_figures(name, outputs[name])} for name, path in saved.items()}
    files.atomic_write_bytes(folder / "outputs.json", json.dumps(index, indent=2).encode())
    return saved

# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""`npukit convert`: a model becomes a DLC, which is verified against its source before it is handed over."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from npukit import files, log
from npukit.analysis import DEFAULT_SEED, text
from npukit.errors import InputError, UsageError
from npukit.verbs import options as o
from npukit.verbs.contract import contract_inputs, contract_outputs, source_stamp
from npukit.verbs.io_config import check_held, io_config, write_template
from npukit.verbs.isolate import isolated
from npukit.verbs.options import arg, opt, verb
from npukit.verbs.reference import cut_source
from npukit.verbs.source import exported_source

if TYPE_CHECKING:
    import onnx_ir as ir

    from npukit.analysis.verify import Verification
    from npukit.artifacts.stamp import IoTensor, Stamp
    from npukit.frontends.onnx.options import LoadOptions, Normalized
    from npukit.lowering import Lowered
    from npukit.qnn.graph import Op
    from npukit.targets import Target

_DATA = {".npy", ".npz", ".raw", ".bin", ".png", ".jpg", ".jpeg"}
_ROLES = {"qnn-cpu": "cpu", "qnn-htp": "htp"}
# The HTP emulator needs 3 to 18 s for a GFLOP of float16: above this, QNN CPU is asked instead, and named.
_EMULATOR_GFLOP = 3


def input_specs(texts: Sequence[str]) -> tuple[tuple[str, Any], ...]:
    """What `--input` may be: `x=FILE` (data), `x=1,3,8,8` (cut at x, with this shape), `x` (cut at x)."""
    found: list[tuple[str, Any]] = []
    for item in texts:
        name, equals, value = item.rpartition("=")
        if not equals:
            data = Path(item).suffix.lower() in _DATA
            found.append(("", Path(item)) if data else (item, None))
        elif re.fullmatch(r"[\d,x\[\]() ]+", value) and not Path(value).exists():
            found.append((name, o.shapes([item])[name]))
        else:
            found.append((name, Path(value)))
    return tuple(found)


def limit(item: str) -> tuple[int, float]:
    """`2GB,200`: bytes of weights and GFLOP above which the verification is left out."""
    size, _, gflop = item.partition(",")
    try:
        return o.size(size), float(gflop or 200)
    except ValueError:
        raise UsageError(f"{item!r} is not a limit", hint="write 2GB,200 (weights, GFLOP)") from None


@dataclass(frozen=True)
class ConvertOptions:
    """Convert a model to a DLC and verify it against its source.

    Verification inputs are those given with --input NAME=FILE, else test_data_set_* beside the model, else generated.
    """

    model: Path = arg("the model (.onnx, .pt2, TorchScript .pt, .tflite, TensorFlow .pb or SavedModel)")
    output: Path | None = opt(None, "The DLC to write [MODEL.dlc].", "-o", "--out", parse=Path, metavar="FILE")
    target: tuple[str, ...] = opt(
        (), "Chip or backend to convert for; repeatable [portable].", many=True, parse=o.strings, metavar="NAME"
    )
    input_shapes: dict[str, tuple[int, ...]] = opt(
        {}, "Shape of an input.", "--input-shape", many=True, parse=o.shapes, metavar="NAME=1,3,224,224"
    )
    symbols: dict[str, int] = opt(
        {}, "Value of a symbolic dimension.", "--symbol", many=True, parse=o.symbols, metavar="NAME=224"
    )
    batch: int | None = opt(None, "Value of the first dimension where it is open.")
    inputs: tuple[tuple[str, Any], ...] = opt(
        (), "Data to verify with, or a tensor to begin at.", "--input", many=True, parse=input_specs,
        metavar="NAME[=FILE|SHAPE]",
    )  # fmt: skip
    outputs: tuple[str, ...] = opt((), "A tensor to end at.", "--output", many=True, parse=o.strings, metavar="NAME")
    preprocessing: Any = opt(
        None, "What is done with image files (YAML); the artifact keeps it.", parse=o.preprocessing, metavar="FILE"
    )
    float_bitwidth: int = opt(32, "Width that float values are held in.", choices=("16", "32"))
    strip_quantization: bool = opt(
        False, "Leave the source's quantization out: Q/DQ nodes go, the model is float.", "--strip-quantization"
    )
    io_layout: str = opt("source", "Layout of inputs and outputs.", choices=("source", "nhwc"))
    io_config: Any = opt(
        None, "How inputs and outputs shall differ (YAML of qairt-converter or of --custom_io).", parse=o.io_config,
        metavar="FILE",
    )  # fmt: skip
    tflite_signature: str = opt(
        "", "Entry point of a TensorFlow Lite file [its only one].", "--tflite-signature-name", metavar="NAME"
    )
    saved_model_tag: str = opt("", "Tags of a SavedModel's graph, with commas [its only one].", "--saved-model-tag")
    saved_model_signature: str = opt(
        "", "Signature of a SavedModel [serving_default].", "--saved-model-signature-key", metavar="KEY"
    )
    tensorflow_python: Path | None = opt(
        None, "Python with TensorFlow and tf2onnx [NPUKIT_TENSORFLOW_PYTHON, or this one].", "--tensorflow-python",
        parse=Path, metavar="FILE",
    )  # fmt: skip
    allow_pickle: bool = opt(False, "Read a PyTorch file also where that runs Python code in it.", "--allow-pickle")
    example_inputs: Any = opt(None, "Inputs that a torch.nn.Module is traced with.", python=True)
    dynamic_shapes: Any = opt(None, "As torch.export takes it.", python=True)
    dump_io_config: Path | None = opt(
        None,
        "Only check, and write an I/O config to fill in.",
        "--dump-io-config",
        parse=Path,
        metavar="FILE",
        hidden=True,
    )
    dry_run: bool = opt(False, "Only check that the model can be converted.", "--dry-run", hidden=True)
    verify: bool = opt(True, "Compare the result with the source.", "--verify/--no-verify", hidden=True)
    verify_backend: str | None = opt(
        None, "Backend to verify on [by target].", choices=("qnn-cpu", "qnn-htp", "ort"), hidden=True
    )
    verify_limit: tuple[int, float] = opt(
        (2_000_000_000, 200.0), "Weights and GFLOP above which it is left out [2GB,200].", parse=limit,
        metavar="SIZE,GFLOP", hidden=True,
    )  # fmt: skip
    random: int | None = opt(None, "Generate this many samples, whatever test data there is [2].", hidden=True)
    seed: int = opt(DEFAULT_SEED, "Seed of generated samples.", hidden=True)
    input_ranges: dict[str, tuple[float, float]] = opt(
        {}, "Range of a generated input.", "--input-range", many=True, parse=o.ranges, metavar="NAME=LO:HI",
        hidden=True,
    )  # fmt: skip
    min_sqnr: float | None = opt(None, "Least SQNR in dB [by precision].", hidden=True)
    max_error: float | None = opt(None, "Largest error as a share of the range [by precision].", hidden=True)
    min_cosine: float | None = opt(None, "Least cosine similarity [not judged].", hidden=True)
    report: Path | None = opt(None, "Write the HTML report here.", parse=Path, metavar="FILE", hidden=True)
    threads: int | None = opt(None, "Threads of ONNX Runtime.", hidden=True)
    timeout: float | None = opt(None, "Seconds that converting or verifying may take.", hidden=True)
    in_process: bool = opt(False, "Run native code in this process.", "--in-process", hidden=True)


@dataclass(frozen=True)
class Converted:
    """What the conversion itself came to.

    Attributes:
        stamp: as in the file, before the verification.
        ops: how many QNN ops of each type.
        source_ops: how many source nodes were lowered.
        weight_bytes: size of the constants.
        gflop: cost of a run.
        notes: what was done that one may want to know.
        cut: what the options cut off.
        constants: source outputs that are constants and hence not in the artifact.
        unused: source inputs on which nothing depends, and which the artifact does not take.
        precision: row of the table of limits.
    """

    stamp: Stamp
    ops: dict[str, int]
    source_ops: int
    weight_bytes: int
    gflop: float
    notes: tuple[str, ...] = ()
    cut: tuple[str, ...] = ()
    constants: tuple[str, ...] = ()
    unused: tuple[str, ...] = ()
    precision: str = "float32"


@dataclass(frozen=True)
class ConvertResult:
    """The outcome of a conversion.

    Attributes:
        path: the artifact; OUT.rejected when the verification failed; None for a dry run.
        converted: what the conversion came to.
        verification: the verification, None where it was left out.
        skipped: why it was left out.
    """

    path: Path | None
    converted: Converted
    verification: Verification | None = None
    skipped: str = ""
    size: int = 0
    targets: tuple[str, ...] = field(default=())

    @property
    def exit_code(self) -> int:
        return 0 if self.verification is None else self.verification.exit_code

    def to_json(self) -> dict[str, Any]:
        """As one JSON-ready object."""
        c = self.converted
        return {
            "output": None if self.path is None else str(self.path),
            "bytes": self.size,
            "targets": list(self.targets),
            "precision": c.precision,
            "source_ops": c.source_ops,
            "ops": c.ops,
            "weight_bytes": c.weight_bytes,
            "gflop": c.gflop,
            "cut": list(c.cut),
            "constant_outputs": list(c.constants),
            "unused_inputs": list(c.unused),
            "notes": list(c.notes),
            "stamp": c.stamp.to_dict(),
            "verified": c.stamp.verified,
            "verification": None if self.verification is None else self.verification.to_json(),
            "skipped": self.skipped,
        }

    def to_text(self) -> str:
        c = self.converted
        what = "checked, nothing written" if self.path is None else f"{self.path} ({text.size(self.size)})"
        lines = [
            f"{what}: {c.source_ops} nodes -> {sum(c.ops.values())} QNN ops, {text.size(c.weight_bytes)} of weights, "
            f"{c.gflop:.3g} GFLOP, for {', '.join(self.targets)}"
        ]
        lines += [f"cut off: {', '.join(c.cut)}"] if c.cut else []
        lines += [f"nothing depends on the input {name}" for name in c.unused]
        lines += [f"not in the artifact, because it is a constant: {name}" for name in c.constants]
        lines += [f"note: {note}" for note in c.notes]
        lines += [self.verification.to_text()] if self.verification is not None else []
        lines += [f"not verified: {self.skipped}"] if self.skipped else []
        return "\n".join(lines)


@verb(ConvertOptions)
def convert(options: ConvertOptions) -> ConvertResult:
    """Convert `model` to a DLC at `output` and verify it.

    In Python `model` may be a `torch.nn.Module`, with `example_inputs` (a tuple, or a dict by name), or an
    `ExportedProgram`; the source is then the ONNX that torch exports of it.

    The file appears under its name only when it passed; one that failed stands as `output`.rejected and the result's
    `exit_code` is 1.

    Raises:
        NpukitError: the model is broken or cannot be converted (every reason at once), the file cannot be written, a
            library is missing or died.

    Example:
        >>> result = npukit.convert("digits.onnx", output="new.dlc", target="qnn-cpu", random=1)
        >>> result.path.name, result.converted.stamp.verified, result.exit_code
        ('new.dlc', 'yes', 0)
    """
    from npukit.targets import resolve

    if options.random is not None and options.random < 1:
        raise UsageError("at least one sample is needed", where="--random")
    given: Any = options.model
    if not isinstance(given, os.PathLike):
        return _convert_object(options)
    targets = tuple(target.name for target in resolve(options.target))
    options = replace(
        options, preprocessing=o.preprocessing(options.preprocessing), io_config=o.io_config(options.io_config)
    )
    output = options.output or options.model.with_suffix(".dlc")
    with isolated(in_process=options.in_process, timeout=options.timeout) as call:
        if options.dry_run or options.dump_io_config is not None:
            converted = call("npukit.verbs.convert:_convert", options, None)
            done = ["dry run"] if options.dry_run else []
            if options.dump_io_config is not None:
                write_template(options.dump_io_config, converted.stamp)
                done.append(f"{options.dump_io_config} was written, to fill in for --io-config")
            return ConvertResult(None, converted, skipped=", ".join(done), targets=targets)
        with replacing(output) as temp:
            converted = call("npukit.verbs.convert:_convert", options, temp)
            backend, skipped = _how_to_verify(options, converted)
            if skipped:
                return ConvertResult(output, converted, None, skipped, temp.stat().st_size, targets)
            outcome = call("npukit.verbs.convert:_verify", options, temp, backend, output.name, converted)
            if outcome.passed:
                stamp = replace(converted.stamp, verified="yes", seed=outcome.seed)
                place = output
            else:
                stamp = replace(converted.stamp, verified="failed", seed=outcome.seed)
                place = output.with_name(f"{output.name}.rejected")
            call("npukit.artifacts.restamp:restamp", temp, stamp)
            size = temp.stat().st_size
            if not outcome.passed:
                move(temp, place)
    if options.report is not None:
        from npukit.analysis import report

        report.write([outcome], options.report)
    return ConvertResult(place, replace(converted, stamp=stamp), outcome, "", size, targets)


def _convert_object(options: ConvertOptions) -> ConvertResult:
    """Convert a PyTorch program in memory, by way of the ONNX that torch exports here, where the program is."""
    from npukit.frontends.pytorch import export_object

    made = export_object(
        options.model, options.example_inputs, options.dynamic_shapes, options.input_shapes, run=options.verify
    )
    try:
        output = options.output or Path(made.path.name).with_suffix(".dlc")
        on_disk = replace(options, model=made.path, output=output, example_inputs=None, dynamic_shapes=None)
        result: ConvertResult = convert(on_disk)
    finally:
        shutil.rmtree(made.path.parent, ignore_errors=True)
    return replace(result, converted=replace(result.converted, notes=(*made.notes, *result.converted.notes)))


class _Moved(Exception):
    """The temporary file went elsewhere: there is nothing to put in place."""


@contextlib.contextmanager
def replacing(output: Path) -> Iterator[Path]:
    """`files.atomic_write`, which the body may leave without a file (see `move`)."""
    with contextlib.suppress(_Moved), files.atomic_write(output) as temp:
        yield temp
        if not temp.exists():
            raise _Moved


def move(temp: Path, place: Path) -> None:
    """Put the temporary file in place under another name."""
    with files.atomic_write(place) as other:
        os.replace(temp, other)


def unjudged(verify: bool, limits: tuple[int, float], weight_bytes: int, gflop: float) -> str:
    """Why a model of this size is not verified; empty if it is."""
    if not verify:
        return "asked for with --no-verify"
    if weight_bytes > limits[0] or gflop > limits[1]:
        size = f"{text.size(weight_bytes)} of weights and {gflop:.3g} GFLOP"
        return f"{size} are above --verify-limit ({text.size(limits[0])}, {limits[1]:g} GFLOP)"
    return ""


def _how_to_verify(options: ConvertOptions, converted: Converted) -> tuple[str, str]:
    """The backend to verify on, or why the verification is left out."""
    from npukit.qnn.opdefs import OPS

    if why := unjudged(options.verify, options.verify_limit, converted.weight_bytes, converted.gflop):
        return "", why
    if options.verify_backend:
        return options.verify_backend, ""
    if any(op_type not in OPS for op_type in converted.ops):
        return "ort", ""  # an op of a package, which no backend here knows: its plugin says what it computes
    if "qnn-cpu" in converted.stamp.targets or converted.gflop > _EMULATOR_GFLOP:
        return "qnn-cpu", ""
    return "qnn-htp", ""


# ---------------------------------------------------------------- in the worker

_lowered: Lowered | None = None  # kept for naming the first tensor that diverges


def _convert(options: ConvertOptions, path: Path | None) -> Converted:
    """Lower the model and write it to `path` (None: only check)."""
    global _lowered
    from npukit.analysis import cost
    from npukit.artifacts import dlc
    from npukit.qnn.graph import Model
    from npukit.targets import resolve

    targets = resolve(options.target)
    with contextlib.ExitStack() as stack:
        validators = {target.name: validator(target, stack) for target in targets}
        normalized, lowered, notes = lower_source(options, targets, validators)
    _lowered = lowered
    precision = cost.precision(lowered.graph)
    stamp = replace(
        source_stamp(options.model, targets, lowered, {**_recorded(options), "precision": precision}),
        inputs=contract_inputs(lowered, [value.name or "" for value in normalized.model.graph.inputs]),
        outputs=contract_outputs(lowered, normalized.model),
    )
    if options.preprocessing is not None:
        _check_preprocessing(options.preprocessing, stamp.inputs)
    # A gigabyte takes a second to hash: done while the library writes, where a core is free.
    with ThreadPoolExecutor(1, initializer=_give_way) as pool:
        digest = pool.submit(lambda: normalized.source_sha256)
        if path is not None:
            log.report("writing", 0.6)
            graphs = Model({lowered.graph.name: lowered.graph})
            dlc.write(graphs, path, lambda: replace(stamp, source_sha256=digest.result()))
    stamp = replace(stamp, source_sha256=digest.result())
    return Converted(
        stamp,
        cost.op_counts(op.type for op in lowered.graph.ops),
        source_ops=len(lowered.report),
        weight_bytes=lowered.graph.static_bytes(),
        gflop=cost.flops(lowered.graph) / 1e9,
        notes=(*notes, *_form_notes(lowered)),
        cut=tuple(normalized.cut),
        constants=tuple(lowered.folded),
        unused=tuple(held.source for held in lowered.unused),
        precision=precision,
    )


def _check_preprocessing(spec: dict[str, Any], inputs: Sequence[IoTensor]) -> None:
    from npukit.analysis.preprocess import Preprocessing

    faults = Preprocessing.load(spec).faults(inputs)
    if faults:
        raise InputError("the preprocessing does not fit the model", where="--preprocessing", faults=faults)


def _give_way() -> None:
    """On Linux a thread has a priority of its own; other systems schedule as they like."""
    if sys.platform == "linux":
        with contextlib.suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 10)


def lower_source(
    options: ConvertOptions,
    targets: Sequence[Target],
    validators: Mapping[str, Callable[[Op], str | None]],
    *,
    integers: bool = False,
    loaded: Callable[[Normalized], None] | None = None,
) -> tuple[Normalized, Lowered, list[str]]:
    """The source as the front end leaves it, its graph for `targets`, and the front end's notes.

    `integers`: the graph will be quantized, so ops take the forms that suit integers. `loaded` sees the normalized
    model before the lowering consumes it.

    Raises:
        NpukitError: the model cannot be read, needs an option, or cannot be lowered; every fault at once.
    """
    from npukit.frontends.onnx import load
    from npukit.lowering import LowerOptions, lower
    from npukit.qnn.names import Names

    log.report("reading the model", 0.0)
    made = exported_source(options)
    normalized = load(options.model if made is None else made.path, load_options(options))
    notes = [*normalized.notes, *_double_notes(normalized.model)]
    if made is not None:
        normalized.digest = made.digest
        notes = [*made.notes, *notes]
    if normalized.stripped:
        notes.append(f"{normalized.stripped} nodes of the source's quantization were left out")
    if loaded is not None:
        loaded(normalized)
    log.report("lowering", 0.2)
    lower_options = LowerOptions(
        name=Names().legal(options.model.stem),
        float_bitwidth=int(options.float_bitwidth),
        io_layout=options.io_layout,
        integers=integers,
    )
    lowered = lower(normalized.model, targets, lower_options, validators)
    check_held(io_config(options), lowered.graph)
    return normalized, lowered, notes


def load_options(options: ConvertOptions) -> LoadOptions:
    """What the front end is told of the options: shapes and cuts."""
    from npukit.frontends.onnx import LoadOptions

    cuts = [(name, value) for name, value in options.inputs if not isinstance(value, Path)]
    shapes = {name: tuple(value) for name, value in cuts if value is not None}
    config = io_config(options)
    if config is not None and options.io_layout != "source" and any(entry.layout for entry in config.entries):
        raise UsageError(
            "the I/O config names layouts, and so does this option", where="--io-layout", hint="leave one of them out"
        )
    # As with the tools, what the command line says goes before what the file says.
    asked = {entry.name: entry.source_shape for entry in config.entries if entry.source_shape} if config else {}
    return LoadOptions(
        input_shapes={**asked, **options.input_shapes, **shapes},
        symbols=options.symbols,
        batch=options.batch,
        inputs=tuple(name for name, _ in cuts),
        outputs=options.outputs or (config.outputs if config else ()),
        strip_quantization=options.strip_quantization,
        signature=options.tflite_signature,
        io=config,
    )


def _recorded(options: ConvertOptions) -> dict[str, Any]:
    """What the stamp says of the options: those that shape the artifact."""
    echo = o.echo(options)
    cuts = [[name, value] for name, value in options.inputs if not isinstance(value, Path)]
    echo.pop("inputs", None)
    return {**echo, "inputs": o.jsonable(cuts)} if cuts else echo


def validator(target: Target, stack: contextlib.ExitStack) -> Callable[[Op], str | None]:
    """The op validation of a target's backend, which `stack` closes."""
    from npukit.qnn.api.backend import Backend

    if target.backend not in _ROLES:
        hint = "npukit compile makes an OM, npukit export the ONNX for it" if target.backend == "ascend" else ""
        hint = hint or "npukit targets lists all"
        raise UsageError(f"a DLC is not for {target.name}", where="--target", hint=hint)
    return stack.enter_context(Backend(_ROLES[target.backend], soc_id=target.soc_id)).validate


def _double_notes(model: ir.Model) -> list[str]:
    """What holding float64 as float32 does to the constants, where the model has float64 at all."""
    import numpy as np
    import onnx_ir as ir

    largest, where = 0.0, ""
    for name, value in model.graph.initializers.items():
        if value.dtype != ir.DataType.DOUBLE or value.const_value is None:
            continue
        exact = value.const_value.numpy()
        exact = exact[np.isfinite(exact) & (exact != 0)]
        with np.errstate(over="ignore", under="ignore"):
            change = np.abs((exact.astype(np.float32) - exact) / exact)
        if change.size and float(change.max()) > largest:
            largest, where = float(change.max()), name
    if where:
        return [f"float64 is held as float32: constants change by at most {largest:.2g} of their value (in {where!r})"]
    values = (*model.graph.inputs, *(output for node in model.graph for output in node.outputs))
    doubles = any(value.dtype == ir.DataType.DOUBLE for value in values)
    return ["float64 is held as float32: no constant changes"] if doubles else []


def _form_notes(lowered: Lowered) -> list[str]:
    """Notes on forms that were not taken, each once with the number of nodes."""
    count: dict[str, int] = {}
    for row in lowered.report:
        for note in row.notes:
            key = f"{row.op}: {note}"
            count[key] = count.get(key, 0) + 1
    return [key if times == 1 else f"{key} ({times} nodes)" for key, times in count.items()]


def _verify(options: ConvertOptions, path: Path, backend: str, name: str, converted: Converted) -> Verification:
    """Verify the file at `path`, which will be called `name`, against its source."""
    from npukit.analysis.diverge import first_divergence
    from npukit.targets import TARGETS
    from npukit.verbs.verify import VerifyOptions, verify_here

    with contextlib.ExitStack() as stack:
        source = cut_source(options, converted.stamp, stack)
        chosen = VerifyOptions(
            model=path,
            against=source,
            backend=backend,
            inputs=tuple((key, value) for key, value in options.inputs if isinstance(value, Path)),
            random=options.random,
            seed=options.seed,
            input_ranges=options.input_ranges,
            min_sqnr=options.min_sqnr,
            max_error=options.max_error,
            min_cosine=options.min_cosine,
            threads=options.threads,
        )
        outcome, sample = verify_here(chosen)
        outcome = replace(outcome, model=name, reference=options.model.name)
        if outcome.passed or _lowered is None or backend == "ort":
            return outcome
        chips = [TARGETS[target] for target in converted.stamp.targets]
        soc = next((chip.soc_id for chip in chips if chip.backend == backend), None)
        found = first_divergence(_lowered.graph, source, sample, backend, soc, outcome.criteria)
        return replace(outcome, diverges=found)

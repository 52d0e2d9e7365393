# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""`npukit quantize`: a float model and calibration data become a quantized DLC, judged against the source."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import npukit
from npukit import log
from npukit.analysis import text
from npukit.errors import UsageError
from npukit.quantization.search import Found, Point, Unit, search
from npukit.verbs import options as o
from npukit.verbs.convert import ConvertOptions, input_specs, move, replacing, unjudged
from npukit.verbs.isolate import isolated
from npukit.verbs.options import arg, like, opt, verb

if TYPE_CHECKING:
    from npukit.analysis.dataset import Dataset
    from npukit.analysis.verify import Verification
    from npukit.artifacts.stamp import Stamp
    from npukit.qnn.graph import Array
    from npukit.quantization.overrides import EncodingsReport

logger = logging.getLogger(__name__)

METHODS = ("min-max", "percentile", "mse", "sqnr", "entropy", "tf", "enhanced", "adjusted", "symmetric")
_SAVE_SECONDS = 20.0  # between two states on disk from which an interrupted calibration goes on
_GATHERED = 8  # calibration samples whose channel statistics smoothing and equalization go by
_CHECKED = 8  # calibration samples that the result is compared on
_SEARCHED = 32  # those that a search judges its plans by
# The HTP emulator takes 0.3 s for a GFLOP of W8A8 and 1.7 s of W8A16 (shared/reference/README.md): above this many
# GFLOP for all samples the simulation is asked instead, and named.
_EMULATOR_GFLOP = {"int8": 60.0, "int16": 12.0, "int4": 12.0}
_DEFAULT_TARGET = "htp-v73"
_JOB = "npukit.verbs.quantize_job"


@dataclass(frozen=True)
class QuantizeOptions:
    """Quantize a float model with calibration data, write a DLC, and judge it against the float model.

    The model is a source model (.onnx) or a float DLC; a QDQ source keeps its encodings, and what it leaves open is
    calibrated. Calibration data: a folder of images or arrays, a .npy or .npz file with a leading sample axis, an input
    list of the SDK, or module:function.
    """

    model: Path = arg("the model (.onnx, .pt2, TorchScript .pt, .tflite) or float DLC")
    output: Path | None = opt(
        None, "The DLC to write [MODEL.quantized.dlc].", "-o", "--out", parse=Path, metavar="FILE"
    )
    calibration: Any = opt(None, "Calibration data.", parse=str, metavar="DIR|FILE|LIST|MODULE:FUNCTION", hidden=True)
    target: tuple[str, ...] = opt(
        (), f"Chip to quantize for; repeatable [{_DEFAULT_TARGET}].", many=True, parse=o.strings, metavar="NAME"
    )
    activations: int = opt(8, "Bits of activations.", choices=("8", "16"), parse=int)
    weights: int = opt(8, "Bits of weights.", choices=("4", "8", "16"), parse=int)
    block_size: int | None = opt(
        None, "Blocks of 4-bit weights with a scale each (LPBQ), where inputs divide.",
        choices=("8", "16", "32", "64", "128"), parse=int,
    )  # fmt: skip
    bias: int = opt(32, "Bits of biases; 32 where 8 are refused.", choices=("8", "32"), parse=int)
    float_bitwidth: int | None = opt(
        None, "Width that what stays float is held in [what encodings ask for, else 32].", choices=("16", "32"),
        parse=int,
    )  # fmt: skip
    float_bias_bitwidth: int | None = opt(
        None, "That of its biases, where the target takes another.", choices=("16", "32"), parse=int
    )
    activation_method: str = opt("mse", "How ranges of activations are chosen.", choices=METHODS)
    weight_method: str = opt("mse", "How ranges of weights are chosen.", choices=(*METHODS, "output-mse"))
    percentile: float = opt(99.99, "Of the method percentile, for activations and weights: 90 to 100.")
    symmetric_activations: bool = opt(False, "Zero in the middle of every activation's codes.")
    per_channel: bool = opt(True, "One scale an output channel of convolutions.", "--per-channel/--per-tensor")
    per_row: bool = opt(True, "One scale a row of FullyConnected and MatMul.", "--per-row/--no-per-row")
    restrict_quantization_steps: tuple[int, int] | None = opt(
        None, "Lowest and highest code of weights.", parse=lambda t: _steps(t), metavar='"-0x80 0x7F"'
    )
    smooth: bool = opt(
        True, "Even out channels of activations at the weights' expense, where an estimate says it helps.",
        "--smooth/--no-smooth",
    )  # fmt: skip
    equalize: bool = opt(
        False, "Even out weights between layers, and absorb high biases (CLE).", "--equalize/--no-equalize"
    )
    rounding: str = opt(
        "auto", "How weights are rounded [auto: gptq at 4 bits].", choices=("auto", "nearest", "gptq", "adaround")
    )  # fmt: skip
    bias_correction: bool = opt(
        True, "Biases make up for the mean error of weights.", "--bias-correction/--no-bias-correction"
    )
    importance: bool = opt(False, "Weigh a weight's error by what it multiplies.", "--importance/--no-importance")
    encodings: Path | None = opt(
        None, "Encodings to use: AIMET 0.6.1, 1.0.0, 2.0.0, or QNN's overrides.", "--encodings",
        "--quantization-overrides", parse=Path, metavar="FILE",
    )  # fmt: skip
    float_fallback: bool = opt(
        False, "What has no encoding given stays float; then --calibration is only compared on.", "--float-fallback"
    )
    ignore_encodings: bool = opt(False, "Drop the encodings of a QDQ source.", "--ignore-encodings")
    allow_unhonoured: bool = opt(False, "Encodings that cannot be honoured are no error.", "--allow-unhonoured")
    save_encodings: Path | None = opt(
        None, "Write the encodings that were chosen (.json: QNN overrides; else AIMET 2.0.0).", parse=Path,
        metavar="FILE", hidden=True,
    )  # fmt: skip
    accuracy_target: tuple[str, float] | None = opt(
        None, "Promote the least that it takes: cosine, sqnr, top1, top5 or module:function >= VALUE.",
        parse=o.accuracy_target, metavar="METRIC>=VALUE",
    )  # fmt: skip
    search_budget: int = opt(40, "Plans that a search may try.", hidden=True)
    float_ops: tuple[str, ...] = opt(
        (), "An op or node to leave in float; repeatable.", "--float-op", many=True, parse=o.strings, metavar="NAME"
    )
    float_io: bool = opt(False, "Inputs and outputs stay float in the artifact.", "--float-io")
    preprocessing: Any = like(ConvertOptions, "preprocessing")
    samples: int | None = opt(None, "Take at most so many calibration samples.")
    encodings_report: Path | None = opt(
        None, "Write what each tensor got, and why, as JSON.", parse=Path, metavar="FILE"
    )
    resume: bool = opt(True, "Go on with an interrupted calibration.", "--resume/--no-resume", hidden=True)
    input_shapes: dict[str, tuple[int, ...]] = like(ConvertOptions, "input_shapes")
    symbols: dict[str, int] = like(ConvertOptions, "symbols")
    batch: int | None = like(ConvertOptions, "batch")
    inputs: tuple[tuple[str, Any], ...] = opt(
        (), "A tensor to begin at.", "--input", many=True, parse=input_specs, metavar="NAME[=SHAPE]"
    )
    outputs: tuple[str, ...] = like(ConvertOptions, "outputs")
    tflite_signature: str = like(ConvertOptions, "tflite_signature")
    saved_model_tag: str = like(ConvertOptions, "saved_model_tag")
    saved_model_signature: str = like(ConvertOptions, "saved_model_signature")
    tensorflow_python: Path | None = like(ConvertOptions, "tensorflow_python")
    allow_pickle: bool = like(ConvertOptions, "allow_pickle")
    io_layout: str = like(ConvertOptions, "io_layout")
    io_config: Any = like(ConvertOptions, "io_config")
    verify: bool = like(ConvertOptions, "verify")
    verify_backend: str | None = opt(
        None, "Backend to verify on [the emulator, or ort for large models].", choices=("qnn-cpu", "qnn-htp", "ort"),
        hidden=True,
    )  # fmt: skip
    verify_limit: tuple[int, float] = like(ConvertOptions, "verify_limit")
    min_sqnr: float | None = like(ConvertOptions, "min_sqnr")
    max_error: float | None = like(ConvertOptions, "max_error")
    min_cosine: float | None = like(ConvertOptions, "min_cosine")
    report: Path | None = like(ConvertOptions, "report")
    threads: int | None = like(ConvertOptions, "threads")
    timeout: float | None = opt(None, "Seconds that one step may take.", hidden=True)
    in_process: bool = like(ConvertOptions, "in_process")


def _steps(text: str) -> tuple[int, int]:
    from npukit.quantization.ranges import parse_steps

    return parse_steps(text)


@dataclass(frozen=True)
class Port:
    """An input of the model as calibration data must have it: source-side name, shape and dtype."""

    name: str
    shape: tuple[int, ...]
    dtype: str


@dataclass(frozen=True)
class Quantized:
    """What the quantization itself came to.

    Attributes:
        stamp: as in the file, before the verification.
        ops: how many QNN ops of each type.
        precisions: how many ops compute in "8", "16" bits and "float".
        refused: ops that run finer than planned: (op, its type, precision, why).
        weight_bytes: size of the constants.
        float_bytes: their size before.
        gflop: cost of a run.
        precision: row of the table of limits.
        samples: calibration samples taken.
        encodings: what became of the encodings that were given.
        notes: what was done that one may want to know.
    """

    stamp: Stamp
    ops: dict[str, int]
    precisions: dict[str, int]
    refused: tuple[tuple[str, str, str, str], ...]
    weight_bytes: int
    float_bytes: int
    gflop: float
    precision: str
    samples: int
    encodings: EncodingsReport | None = None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class QuantizeResult:
    """The outcome of a quantization.

    Attributes:
        path: the artifact; OUT.rejected when the verification failed.
        quantized: what the quantization came to.
        verification: the verification, None where it was left out.
        skipped: why it was left out.
        search: the plans that were tried to reach an accuracy target.
        seconds: how long each stage took: "read" (with lowering and the worker's start), "smooth" (and equalize),
            "calibrate", "search", "write" (with the choice of encodings), "verify".
    """

    path: Path
    quantized: Quantized
    verification: Verification | None = None
    skipped: str = ""
    size: int = 0
    targets: tuple[str, ...] = field(default=())
    search: Found | None = None
    seconds: dict[str, float] = field(default_factory=dict)

    @property
    def exit_code(self) -> int:
        missed = self.search is not None and not self.search.reached
        return 1 if missed or (self.verification is not None and self.verification.exit_code) else 0

    def to_json(self) -> dict[str, Any]:
        """As one JSON-ready object."""
        q = self.quantized
        return {
            "output": str(self.path),
            "bytes": self.size,
            "targets": list(self.targets),
            "precision": q.precision,
            "ops": q.ops,
            "precisions": q.precisions,
            "refused": [list(row) for row in q.refused],
            "weight_bytes": q.weight_bytes,
            "float_weight_bytes": q.float_bytes,
            "gflop": q.gflop,
            "samples": q.samples,
            "encodings": None if q.encodings is None else q.encodings.to_json(),
            "notes": list(q.notes),
            "stamp": q.stamp.to_dict(),
            "verified": q.stamp.verified,
            "verification": None if self.verification is None else self.verification.to_json(),
            "skipped": self.skipped,
            "search": None if self.search is None else self.search.to_json(),
            "seconds": {stage: round(seconds, 3) for stage, seconds in self.seconds.items()},
        }

    def to_text(self) -> str:
        q = self.quantized
        kinds = ", ".join(f"{count} in {name}" for name, count in q.precisions.items())
        lines = [
            f"{self.path} ({text.size(self.size)}): {sum(q.ops.values())} QNN ops ({kinds}), "
            f"{text.size(q.float_bytes)} of weights -> {text.size(q.weight_bytes)}, {q.samples} calibration samples, "
            f"for {', '.join(self.targets)}"
        ]
        lines += [f"runs in {precision}: {kind} {name}: {why}" for name, kind, precision, why in q.refused]
        lines += [self.search.to_text()] if self.search is not None else []
        lines += [q.encodings.to_text()] if q.encodings is not None else []
        lines += [f"note: {note}" for note in q.notes]
        lines += [self.verification.to_text()] if self.verification is not None else []
        lines += [f"not verified: {self.skipped}"] if self.skipped else []
        return "\n".join(lines)


@verb(QuantizeOptions)
def quantize(options: QuantizeOptions) -> QuantizeResult:
    """Quantize `model` for `target` with the data in `calibration`, write the DLC `output`, and judge it.

    `calibration` may also be any iterable of samples: arrays, or dicts of arrays by input name.

    Raises:
        NpukitError: the model or the data is broken or does not fit, the file cannot be written, a library is missing.

    Example:
        >>> result = npukit.quantize("digits.onnx", calibration="calibration.npy", output="q.dlc", target="sm8650")
        >>> result.path.name, result.quantized.precision, result.exit_code
        ('q.dlc', 'int8', 0)
    """
    from npukit.targets import resolve

    if options.block_size is not None and int(options.weights) != 4:
        raise UsageError("blocks are for weights of 4 bits", where="--block-size", hint="add --weights 4")
    if options.calibration is None and not options.float_fallback:
        raise UsageError(
            "calibration data is needed",
            where="--calibration",
            hint="give a folder of images, a .npy file with a leading sample axis, or an input list",
        )
    targets = tuple(target.name for target in resolve(options.target or (_DEFAULT_TARGET,)))
    options = replace(
        options, target=targets, preprocessing=o.preprocessing(options.preprocessing),
        io_config=o.io_config(options.io_config),
    )  # fmt: skip
    output = options.output or options.model.with_suffix(".quantized.dlc")
    sent = replace(options, calibration=None)
    seconds: dict[str, float] = {}
    with isolated(in_process=options.in_process, timeout=options.timeout) as call:
        with _timed(seconds, "read"):
            ports: list[Port] = call(f"{_JOB}:prepare", sent)
            data = None if options.calibration is None else _dataset(options, ports)
        with replacing(output) as temp:
            with _timed(seconds, "smooth"):
                _prepare(call, data, sent)
            with _timed(seconds, "calibrate"):
                kept = [] if data is None else _calibrate(call, data, output, options)
            warnings = [] if data is None else list(data.warnings)
            with _timed(seconds, "search"):
                found = _search(call, sent, kept)
            levels = {} if found is None else found.best.levels
            with _timed(seconds, "write"):
                quantized: Quantized = call(f"{_JOB}:write", sent, temp, warnings, levels)
            backend, skipped = _how_to_verify(options, quantized)
            if not kept and not skipped:
                skipped = "there are no inputs to compare on; give some with --calibration"
            if skipped:
                size = temp.stat().st_size
                return QuantizeResult(output, quantized, None, skipped, size, targets, found, seconds)
            checked = kept[:: max(len(kept) // _CHECKED, 1)][:_CHECKED]
            with _timed(seconds, "verify"):
                outcome = call(f"{_JOB}:verify", sent, temp, backend, output.name, checked)
            good = outcome.passed and (found is None or found.reached)
            place = output if good else output.with_name(f"{output.name}.rejected")
            stamp = replace(quantized.stamp, verified="yes" if good else "failed")
            call("npukit.artifacts.restamp:restamp", temp, stamp)
            size = temp.stat().st_size
            if not good:
                move(temp, place)
    if options.report is not None:
        from npukit.analysis import report

        report.write([outcome], options.report)
    return QuantizeResult(place, replace(quantized, stamp=stamp), outcome, "", size, targets, found, seconds)


@contextlib.contextmanager
def _timed(seconds: dict[str, float], stage: str) -> Iterator[None]:
    begin = time.perf_counter()
    yield
    seconds[stage] = time.perf_counter() - begin


def _search(call: Callable[..., Any], options: QuantizeOptions, samples: list[dict[str, Array]]) -> Found | None:
    """What to promote for the accuracy target; None without one. The metric runs here, as it may be the user's."""
    wanted = options.accuracy_target
    if wanted is None and options.min_cosine is not None:
        wanted = "cosine", options.min_cosine
    if wanted is None:
        return None
    if not samples:
        raise UsageError("a search needs calibration data", where="--accuracy-target", hint="give --calibration")
    from npukit.quantization.metrics import metric

    judge, least = metric(wanted[0]), wanted[1]
    references = call(f"{_JOB}:references", samples)
    units: list[Unit] = call(f"{_JOB}:units", options)
    ladders = {unit.name: unit.ladder for unit in units}
    tried = 0

    def evaluate(levels: dict[str, int]) -> Point:
        nonlocal tried
        tried += 1
        log.report(f"searching, plan {tried}", 0.7)
        chosen = {name: ladders[name][level] for name, level in levels.items()}
        results, traffic, size = call(f"{_JOB}:attempt", options, chosen)
        return Point(chosen, float(judge(results, references)), traffic, size)

    return search(units, evaluate, least, options.search_budget)


def _dataset(options: QuantizeOptions, ports: Sequence[Port]) -> Dataset:
    from npukit.analysis.dataset import open_dataset

    return open_dataset(options.calibration, ports, preprocessing=options.preprocessing, limit=options.samples)


def _prepare(call: Callable[..., Any], data: Dataset | None, options: QuantizeOptions) -> None:
    """Even out the float graph's channels, each step with statistics of the first samples."""
    while call(f"{_JOB}:next_step", options):
        if data is not None:
            for sample in itertools.islice(data, _GATHERED):
                call(f"{_JOB}:gather", sample)


def _calibrate(
    call: Callable[..., Any], data: Dataset, output: Path, options: QuantizeOptions
) -> list[dict[str, Array]]:
    """Show the worker every sample; gives some of them back to judge the result by.

    From time to time the state goes to OUTPUT.calibration, from which an interrupted run with the same data and options
    goes on.
    """
    state = output.with_name(f"{output.name}.calibration")
    key = hashlib.sha256(f"{npukit.__version__}:{data.sha256}".encode()).hexdigest()
    total = len(data)
    start = call(f"{_JOB}:restore", state, key) if options.resume and state.exists() else 0
    if start:
        logger.info("going on after %d of %d calibration samples", start, total)
    keep = min(total, _CHECKED if options.accuracy_target is None and options.min_cosine is None else _SEARCHED)
    wanted = {round(i * (total - 1) / max(keep - 1, 1)) for i in range(keep)}
    kept: list[dict[str, Array]] = []
    saved = time.monotonic()
    for index, sample in enumerate(data):
        if index in wanted:
            kept.append(sample)
        if index < start:
            continue
        log.report(f"calibrating, sample {index + 1} of {total}", 0.1 + 0.6 * index / max(total, 1))
        call(f"{_JOB}:observe", sample)
        if time.monotonic() - saved > _SAVE_SECONDS:
            call(f"{_JOB}:save", state, key)
            saved = time.monotonic()
    with contextlib.suppress(OSError):
        state.unlink(missing_ok=True)
    return kept


def _how_to_verify(options: QuantizeOptions, quantized: Quantized) -> tuple[str, str]:
    """The backend to verify on, or why the verification is left out."""
    from npukit.qnn.opdefs import OPS

    if why := unjudged(options.verify, options.verify_limit, quantized.weight_bytes, quantized.gflop):
        return "", why
    if options.verify_backend:
        return options.verify_backend, ""
    if any(op_type not in OPS for op_type in quantized.ops):
        return "ort", ""  # an op of a package, which no backend here knows: its plugin says what it computes
    if "qnn-cpu" in options.target:
        return "qnn-cpu", ""
    affordable = _EMULATOR_GFLOP.get(quantized.precision, 0.0)
    if quantized.precisions.get("float", 0):
        affordable /= 10  # a GFLOP in float16 costs as much as ten in integers
    return ("qnn-htp" if quantized.gflop * _CHECKED <= affordable else "ort"), ""

# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""`npukit quantize`: a float model and calibration data become a quantized DLC, judged against the source."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import npukit
from npukit import files, log
from npukit.analysis import DEFAULT_SEED, text
from npukit.errors import NpukitError, UsageError
from npukit.verbs import options as o
from npukit.verbs.convert import ConvertOptions, input_specs, limit, replacing
from npukit.verbs.isolate import isolated
from npukit.verbs.options import arg, opt, verb

if TYPE_CHECKING:
    from npukit.analysis.dataset import Dataset
    from npukit.analysis.verify import Verification
    from npukit.artifacts.stamp import IoTensor, Stamp
    from npukit.qnn.graph import Array, Graph
    from npukit.quantization.assign import Assigned, Legal, Plan
    from npukit.quantization.calibrated import Scheme
    from npukit.quantization.calibration import Calibration
    from npukit.quantization.overrides import EncodingsReport, Matched
    from npukit.quantization.source import Source

logger = logging.getLogger(__name__)

METHODS = ("min-max", "percentile", "mse", "sqnr", "entropy", "tf", "enhanced", "adjusted", "symmetric")
_SAVE_SECONDS = 20.0  # between two states on disk from which an interrupted calibration goes on
_CHECKED = 8  # calibration samples that the result is compared on
# The HTP emulator takes 0.3 s for a GFLOP of W8A8 and 1.7 s of W8A16 (shared/reference/README.md): above this many
# GFLOP for all samples the simulation is asked instead, and named.
_EMULATOR_GFLOP = {"int8": 60.0, "int16": 12.0}
_DEFAULT_TARGET = "htp-v73"


@dataclass(frozen=True)
class QuantizeOptions:
    """Quantize a float model with calibration data, write a DLC, and judge it against the float model.

    The model is a source model (.onnx) or a float DLC. Calibration data: a folder of images or arrays, a .npy or .npz
    file with a leading sample axis, an input list of the SDK, or module:function.
    """

    model: Path = arg("the model (.onnx) or float DLC")
    output: Path | None = opt(
        None, "The DLC to write [MODEL.quantized.dlc].", "-o", "--out", parse=Path, metavar="FILE"
    )
    calibration: Any = opt(None, "Calibration data.", parse=str, metavar="DIR|FILE|LIST|MODULE:FUNCTION", hidden=True)
    target: tuple[str, ...] = opt(
        (), f"Chip to quantize for; repeatable [{_DEFAULT_TARGET}].", many=True, parse=o.strings, metavar="NAME"
    )
    activations: int = opt(8, "Bits of activations.", choices=("8", "16"), parse=int)
    weights: int = opt(8, "Bits of weights.", choices=("4", "8", "16"), parse=int)
    activation_method: str = opt("mse", "How ranges of activations are chosen.", choices=METHODS)
    weight_method: str = opt("mse", "How ranges of weights are chosen.", choices=METHODS)
    percentile: float = opt(99.99, "Of --activation-method percentile, 90 to 100.")
    symmetric_activations: bool = opt(False, "Zero in the middle of every activation's codes.")
    per_channel: bool = opt(True, "One scale an output channel of convolutions.", "--per-channel/--per-tensor")
    per_row: bool = opt(True, "One scale a row of FullyConnected and MatMul.", "--per-row/--no-per-row")
    restrict_quantization_steps: tuple[int, int] | None = opt(
        None, "Lowest and highest code of weights.", parse=lambda t: _steps(t), metavar='"-0x80 0x7F"'
    )
    bias_correction: bool = opt(
        True, "Biases make up for the mean error of weights.", "--bias-correction/--no-bias-correction"
    )
    importance: bool = opt(True, "Weigh a weight's error by what it multiplies.", "--importance/--no-importance")
    encodings: Path | None = opt(
        None, "Encodings to use: AIMET 0.6.1, 1.0.0, 2.0.0, or QNN's overrides.", "--encodings",
        "--quantization-overrides", parse=Path, metavar="FILE",
    )  # fmt: skip
    float_fallback: bool = opt(
        False, "What --encodings does not name stays float, without calibration.", "--float-fallback"
    )
    allow_unhonoured: bool = opt(False, "Encodings that cannot be honoured are no error.", "--allow-unhonoured")
    float_ops: tuple[str, ...] = opt(
        (), "An op or node to leave in float; repeatable.", "--float-op", many=True, parse=o.strings, metavar="NAME"
    )
    float_io: bool = opt(False, "Inputs and outputs stay float in the artifact.", "--float-io")
    preprocessing: Any = opt(None, "What is done with images (YAML).", parse=Path, metavar="FILE", hidden=True)
    samples: int | None = opt(None, "Take at most so many calibration samples.")
    resume: bool = opt(True, "Go on with an interrupted calibration.", "--resume/--no-resume", hidden=True)
    input_shapes: dict[str, tuple[int, ...]] = opt(
        {}, "Shape of an input.", "--input-shape", many=True, parse=o.shapes, metavar="NAME=1,3,224,224"
    )
    symbols: dict[str, int] = opt(
        {}, "Value of a symbolic dimension.", "--symbol", many=True, parse=o.symbols, metavar="NAME=224"
    )
    batch: int | None = opt(None, "Value of the first dimension where it is open.")
    inputs: tuple[tuple[str, Any], ...] = opt(
        (), "A tensor to begin at.", "--input", many=True, parse=input_specs, metavar="NAME[=SHAPE]"
    )
    outputs: tuple[str, ...] = opt((), "A tensor to end at.", "--output", many=True, parse=o.strings, metavar="NAME")
    io_layout: str = opt("source", "Layout of inputs and outputs.", choices=("source", "nhwc"))
    verify: bool = opt(True, "Compare the result with the source.", "--verify/--no-verify", hidden=True)
    verify_backend: str | None = opt(
        None, "Backend to verify on [the emulator, or ort for large models].", choices=("qnn-cpu", "qnn-htp", "ort"),
        hidden=True,
    )  # fmt: skip
    verify_limit: tuple[int, float] = opt(
        (2_000_000_000, 200.0), "Weights and GFLOP above which it is left out [2GB,200].", parse=limit,
        metavar="SIZE,GFLOP", hidden=True,
    )  # fmt: skip
    min_sqnr: float | None = opt(None, "Least SQNR in dB [by precision].", hidden=True)
    max_error: float | None = opt(None, "Largest error as a share of the range [by precision].", hidden=True)
    min_cosine: float | None = opt(None, "Least cosine similarity [not judged].", hidden=True)
    report: Path | None = opt(None, "Write the HTML report here.", parse=Path, metavar="FILE", hidden=True)
    threads: int | None = opt(None, "Threads of ONNX Runtime.", hidden=True)
    timeout: float | None = opt(None, "Seconds that one step may take.", hidden=True)
    in_process: bool = opt(False, "Run native code in this process.", "--in-process", hidden=True)


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
    """

    path: Path
    quantized: Quantized
    verification: Verification | None = None
    skipped: str = ""
    size: int = 0
    targets: tuple[str, ...] = field(default=())

    @property
    def exit_code(self) -> int:
        return 0 if self.verification is None else self.verification.exit_code

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

    if options.float_fallback and options.encodings is None:
        raise UsageError("--float-fallback leaves all in float without --encodings", hint="give --encodings FILE")
    if (options.calibration is None) != options.float_fallback:
        what = "--float-fallback takes no calibration" if options.float_fallback else "calibration data is needed"
        hint = "give a folder of images, a .npy file with a leading sample axis, or an input list"
        raise UsageError(what, where="--calibration", hint="leave one of the two out" if options.calibration else hint)
    targets = tuple(target.name for target in resolve(options.target or (_DEFAULT_TARGET,)))
    options = replace(options, target=targets)
    output = options.output or options.model.with_suffix(".quantized.dlc")
    sent = replace(options, calibration=None, preprocessing=None)
    with isolated(in_process=options.in_process, timeout=options.timeout) as call:
        ports: list[Port] = call("npukit.verbs.quantize:_prepare", sent)
        data = None if options.float_fallback else _dataset(options, ports)
        with replacing(output) as temp:
            checked = [] if data is None else _calibrate(call, data, output, options)
            warnings = [] if data is None else list(data.warnings)
            quantized: Quantized = call("npukit.verbs.quantize:_write", sent, temp, warnings)
            backend, skipped = _how_to_verify(options, quantized)
            if skipped:
                return QuantizeResult(output, quantized, None, skipped, temp.stat().st_size, targets)
            outcome = call("npukit.verbs.quantize:_verify", sent, temp, backend, output.name, checked)
            place = output if outcome.passed else output.with_name(f"{output.name}.rejected")
            stamp = replace(quantized.stamp, verified="yes" if outcome.passed else "failed")
            call("npukit.artifacts.restamp:restamp", temp, stamp)
            size = temp.stat().st_size
            if not outcome.passed:
                with files.atomic_write(place) as other:
                    os.replace(temp, other)
    if options.report is not None:
        from npukit.analysis import report

        report.write([outcome], options.report)
    return QuantizeResult(place, replace(quantized, stamp=stamp), outcome, "", size, targets)


def _dataset(options: QuantizeOptions, ports: Sequence[Port]) -> Dataset:
    from npukit.analysis.dataset import open_dataset

    return open_dataset(options.calibration, ports, preprocessing=options.preprocessing, limit=options.samples)


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
    start = call("npukit.verbs.quantize:_restore", state, key) if options.resume and state.exists() else 0
    if start:
        logger.info("going on after %d of %d calibration samples", start, total)
    wanted = {round(i * (total - 1) / max(min(_CHECKED, total) - 1, 1)) for i in range(min(_CHECKED, total))}
    kept: list[dict[str, Array]] = []
    saved = time.monotonic()
    for index, sample in enumerate(data):
        if index in wanted:
            kept.append(sample)
        if index < start:
            continue
        log.report(f"calibrating, sample {index + 1} of {total}", 0.1 + 0.6 * index / max(total, 1))
        call("npukit.verbs.quantize:_observe", sample)
        if time.monotonic() - saved > _SAVE_SECONDS:
            call("npukit.verbs.quantize:_save", state, key)
            saved = time.monotonic()
    with contextlib.suppress(OSError):
        state.unlink(missing_ok=True)
    return kept


def _how_to_verify(options: QuantizeOptions, quantized: Quantized) -> tuple[str, str]:
    """The backend to verify on, or why the verification is left out."""
    weights, gflop = options.verify_limit
    if not options.verify:
        return "", "asked for with --no-verify"
    if quantized.weight_bytes > weights or quantized.gflop > gflop:
        size = f"{text.size(quantized.weight_bytes)} of weights and {quantized.gflop:.3g} GFLOP"
        return "", f"{size} are above --verify-limit ({text.size(weights)}, {gflop:g} GFLOP)"
    if options.verify_backend:
        return options.verify_backend, ""
    affordable = _EMULATOR_GFLOP.get(quantized.precision, 0.0)
    if quantized.precisions.get("float", 0):
        affordable /= 10  # a GFLOP in float16 costs as much as ten in integers
    return ("qnn-htp" if quantized.gflop * _CHECKED <= affordable else "ort"), ""


# ---------------------------------------------------------------- in the worker


@dataclass
class _State:
    """What the calls of one quantization share in the worker.

    Attributes:
        graph: the float graph.
        legal: what the targets take.
        stamp: all of the stamp that is known before.
        contract: the stamp's inputs and outputs for a quantized graph.
        digest: SHA-256 of the source.
        calibration: what was observed.
        matched: the encodings that were given, and the tensors they are for.
        notes: of the front end.
        stack: the validation libraries.
    """

    graph: Graph
    legal: Legal
    stamp: Stamp
    contract: Callable[[Graph], tuple[tuple[IoTensor, ...], tuple[IoTensor, ...]]]
    digest: Callable[[], str]
    calibration: Calibration
    matched: Matched
    notes: tuple[str, ...]
    stack: contextlib.ExitStack


_state: _State | None = None


def _current() -> _State:
    assert _state is not None
    return _state


def _prepare(options: QuantizeOptions) -> list[Port]:
    """Lower or read the model; gives the inputs that calibration data must have."""
    global _state
    from npukit.quantization.assign import Legal
    from npukit.quantization.calibration import Calibration
    from npukit.quantization.roles import weight_axis
    from npukit.runtime.session import file_kind
    from npukit.targets import resolve
    from npukit.verbs.convert import validator

    stack = contextlib.ExitStack()
    legal = Legal({target.name: validator(target, stack) for target in resolve(options.target)})
    read = _from_dlc if file_kind(options.model) == "dlc" else _from_source
    graph, stamp, contract, digest, notes, source = read(options, legal)
    matched = _matched(options, graph, stamp.names, source)
    log.report("preparing the calibration", 0.08)
    weighted = [op.inputs[0] for op in graph.ops if weight_axis(op) is not None]
    channels = {id(tensor): tensor for tensor in weighted if tensor is not None and tensor.dtype.is_float}
    calibration = Calibration(graph, channels=list(channels.values()), threads=options.threads)
    _state = _State(graph, legal, stamp, contract, digest, calibration, matched, notes, stack)
    return [
        Port(held.source, held.shape, _NUMPY.get(held.dtype, held.dtype))
        for tensor in graph.inputs
        if (held := tensor.held) is not None
    ]


_NUMPY = {"float": "float32", "double": "float64"}


def _source(options: QuantizeOptions) -> ConvertOptions:
    """How the source is read, as `convert` reads it."""
    names = ("model", "target", "input_shapes", "symbols", "batch", "inputs", "outputs", "io_layout")
    return ConvertOptions(**{name: getattr(options, name) for name in names})


def _from_source(options: QuantizeOptions, legal: Legal) -> Any:
    """The graph of a source model, in the forms that suit integers."""
    from npukit.artifacts.stamp import Stamp
    from npukit.qnn.api import libraries
    from npukit.quantization.source import read_source
    from npukit.targets import resolve
    from npukit.verbs.convert import contract_inputs, contract_outputs, lower_source

    targets = resolve(options.target)
    source = read_source(options.model) if options.encodings is not None else None  # lowering consumes the model
    normalized, lowered, notes = lower_source(_source(options), targets, legal.validators(), integers=True)
    library = libraries.find("ir")
    stamp = Stamp(
        npukit_version=npukit.__version__,
        qairt_build=library.build_id,
        core_api_version=".".join(map(str, library.core_version)),
        needs_qairt=".".join(library.build_id.lstrip("v").split(".")[:2]),
        source_name=options.model.name,
        targets=tuple(target.name for target in targets),
        options=o.echo(options),
        names={source: name for source, name in lowered.names.items() if source != name},
    )

    def contract(graph: Graph) -> tuple[tuple[IoTensor, ...], tuple[IoTensor, ...]]:
        made = replace(lowered, graph=graph)
        order = [value.name or "" for value in normalized.model.graph.inputs]
        return contract_inputs(made, order), contract_outputs(made, normalized.model)

    return lowered.graph, stamp, contract, lambda: normalized.source_sha256, tuple(notes), source


def _from_dlc(options: QuantizeOptions, legal: Legal) -> Any:
    """The graph of a float DLC, whoever made it."""
    from npukit.artifacts import dlc
    from npukit.artifacts.stamp import native_stamp
    from npukit.qnn.graph import Held
    from npukit.runtime.qnn import pick_graph
    from npukit.verbs.convert import io_tensor

    del legal
    model, stamp = dlc.read(options.model)
    graph = pick_graph(model, None, str(options.model))
    coded = [tensor.name for tensor in graph.tensors() if tensor.dtype.is_quantized]
    if coded:
        raise UsageError(
            f"it is quantized already: {len(coded)} tensors have encodings, {coded[0]!r} first",
            where=str(options.model),
            hint="quantize the float model it was made from",
        )
    stamp = stamp or native_stamp(model)
    known = {io.tensor: io for io in (*stamp.inputs, *stamp.outputs)}
    for tensor in (*graph.inputs, *graph.outputs):
        io = known[tensor.name]
        tensor.held = Held(io.name, io.dtype, io.shape, io.perm)

    def contract(graph: Graph) -> tuple[tuple[IoTensor, ...], tuple[IoTensor, ...]]:
        return tuple(map(io_tensor, graph.inputs)), tuple(map(io_tensor, graph.outputs))

    made = replace(stamp, npukit_version=npukit.__version__, targets=options.target, options=o.echo(options))
    return graph, made, contract, lambda: stamp.source_sha256 or files.sha256_file(options.model), (), None


def _matched(options: QuantizeOptions, graph: Graph, names: dict[str, str], source: Source | None) -> Matched:
    """The encodings that were given and the tensors they are for; an error where one cannot be honoured."""
    from npukit.quantization.encodings_file import read
    from npukit.quantization.entry import EncodingsError
    from npukit.quantization.overrides import Matched, match
    from npukit.quantization.source import with_axes

    if options.encodings is None:
        return Matched(())
    entries = read(options.encodings).entries
    matched = match(with_axes(entries, source) if source is not None else entries, graph, names, source)
    faults = matched.faults(options.encodings.name)
    if faults and not options.allow_unhonoured:
        raise EncodingsError(
            "encodings cannot be honoured", where=str(options.encodings), faults=faults,
            hint="mend the file, or leave them out with --allow-unhonoured",
        )  # fmt: skip
    return matched


def _observe(sample: dict[str, Array]) -> None:
    _current().calibration.update(sample)


def _save(path: Path, key: str) -> None:
    import numpy as np

    state = _current().calibration.state()
    with files.atomic_write(path) as temp, open(temp, "wb") as file:
        np.savez(file, allow_pickle=False, key=np.array(_key(key)), **state)


def _restore(path: Path, key: str) -> int:
    """Samples that an earlier run of the same model, data and options has seen; 0 where it is another's."""
    import numpy as np

    with contextlib.suppress(NpukitError, ValueError, KeyError, OSError):
        arrays = files.read_npz(path)
        if str(arrays.pop("key")) == _key(key):
            _current().calibration.restore({name: np.asarray(value) for name, value in arrays.items()})
    return _current().calibration.samples


def _key(data: str) -> str:
    state = _current()
    options = sorted((k, repr(v)) for k, v in state.stamp.options.items())
    return hashlib.sha256(f"{state.digest()}:{options}:{data}".encode()).hexdigest()


def _scheme(options: QuantizeOptions) -> Scheme:
    from npukit.quantization.calibrated import Scheme

    return Scheme(
        activation_method=options.activation_method,
        weight_method=options.weight_method,
        percentile=options.percentile,
        symmetric_activations=options.symmetric_activations,
        importance=options.importance,
        bias_correction=options.bias_correction,
        steps=options.restrict_quantization_steps,
    )


def _plan(options: QuantizeOptions, graph: Graph) -> Plan:
    from npukit.errors import nearest
    from npukit.quantization.assign import FLOAT, Plan

    by_source: dict[str, list[str]] = {}
    for op in graph.ops:
        for name in {op.name, *op.origin}:
            by_source.setdefault(name, []).append(op.name)
    for name in options.float_ops:
        if name not in by_source:
            raise UsageError(f"there is no op {name!r}", where="--float-op", hint=nearest(name, by_source))
    forced = _current().matched.forced
    readers = {id(t): op.name for op in graph.ops for t in op.inputs if t is not None and t.data is not None}
    floats = {op for name in options.float_ops for op in by_source[name]}
    floats |= {readers[id(t)] for t, entry in forced.items() if t.data is not None and entry.dtype == "float"}
    computed = {t.name: entry for t, entry in forced.items() if t.data is None}
    return Plan(
        activations=FLOAT if options.float_fallback else int(options.activations),
        weights=int(options.weights),
        per_channel=options.per_channel,
        per_row=options.per_row,
        tensors={name: FLOAT if entry.dtype == "float" else entry.bitwidth for name, entry in computed.items()},
        ops={readers[id(t)]: entry.bitwidth for t, entry in forced.items() if t.data is not None},
        floats=frozenset(floats),
        float_io=options.float_io,
    )


def _write(options: QuantizeOptions, path: Path, warnings: list[str]) -> Quantized:
    """Assign encodings and write the DLC."""
    from npukit.analysis import cost
    from npukit.artifacts import dlc
    from npukit.qnn.graph import Model
    from npukit.quantization.assign import assign
    from npukit.quantization.calibrated import Calibrated
    from npukit.quantization.roles import Groups

    state = _current()
    log.report("choosing encodings", 0.7)
    forced = state.matched.forced
    groups = Groups(state.graph, forced)
    encodings = Calibrated(state.calibration, groups, _scheme(options), forced)
    assigned = assign(state.graph, _plan(options, state.graph), encodings, state.legal, groups)
    log.report("writing", 0.8)
    graph = assigned.graph
    precision = cost.precision(graph)
    inputs, outputs = state.contract(graph)
    stamp = replace(
        state.stamp, inputs=inputs, outputs=outputs, options={**state.stamp.options, "precision": precision},
        source_sha256=state.digest(),
    )  # fmt: skip
    dlc.write(Model({graph.name: graph}), path, lambda: stamp)
    found = None
    if options.encodings is not None:
        found, stamp = _honoured(options, path, stamp)
    ops: dict[str, int] = {}
    for op in graph.ops:
        ops[op.type] = ops.get(op.type, 0) + 1
    return Quantized(
        stamp,
        dict(sorted(ops.items(), key=lambda item: (-item[1], item[0]))),
        _counts(assigned),
        tuple(_refused(state.graph, assigned)),
        weight_bytes=graph.static_bytes(),
        float_bytes=state.graph.static_bytes(),
        gflop=cost.flops(state.graph) / 1e9,
        precision=precision,
        samples=state.calibration.samples,
        encodings=found,
        notes=(*state.notes, *warnings),
    )


def _honoured(options: QuantizeOptions, path: Path, stamp: Stamp) -> tuple[EncodingsReport, Stamp]:
    """What the written file holds of the encodings that were given; its counts go into the stamp."""
    from npukit.artifacts import dlc
    from npukit.artifacts.restamp import restamp
    from npukit.quantization.entry import EncodingsError
    from npukit.quantization.overrides import report
    from npukit.runtime.qnn import pick_graph

    assert options.encodings is not None
    written = pick_graph(dlc.read(path)[0], None, str(path))
    found = report(_current().matched, written, options.encodings.name)
    if found.faults and not options.allow_unhonoured:
        raise EncodingsError(
            "the artifact does not hold the encodings that were given", where=str(options.encodings),
            faults=list(found.faults), hint="accept this with --allow-unhonoured",
        )  # fmt: skip
    stamp = replace(stamp, options={**stamp.options, "encodings": found.counts})
    restamp(path, stamp)
    return found, stamp


def _counts(assigned: Assigned) -> dict[str, int]:
    found: dict[str, int] = {}
    for precision in sorted(assigned.precisions.values(), reverse=True):
        name = _PRECISIONS[precision]
        found[name] = found.get(name, 0) + 1
    return found


_PRECISIONS = {0: "float", 8: "8 bits", 16: "16 bits"}


def _refused(graph: Graph, assigned: Assigned) -> Iterator[tuple[str, str, str, str]]:
    types = {op.name: op.type for op in graph.ops}
    for name, why in assigned.refused.items():
        yield name, types[name], _PRECISIONS[assigned.precisions[name]], why


def _verify(
    options: QuantizeOptions, path: Path, backend: str, name: str, samples: list[dict[str, Array]]
) -> Verification:
    """Verify the file at `path`, which will be called `name`, against the float model on calibration samples."""
    from npukit.analysis.samples import Samples
    from npukit.verbs.convert import cut_source
    from npukit.verbs.verify import VerifyOptions, verify_here

    log.report(f"verifying on {backend}", 0.85)
    with contextlib.ExitStack() as stack:
        chosen = VerifyOptions(
            model=path,
            against=cut_source(_source(options), _current().stamp, stack),
            backend=backend,
            target=options.target[0] if backend == "qnn-htp" else None,
            seed=DEFAULT_SEED,
            min_sqnr=options.min_sqnr,
            max_error=options.max_error,
            min_cosine=options.min_cosine,
            threads=options.threads,
        )
        outcome, _ = verify_here(chosen, Samples("calibration", samples) if samples else None)
    return replace(outcome, model=name, reference=options.model.name)

# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""What `npukit quantize` does in the worker process: its calls share the state of one quantization."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

import npukit
from npukit import files, log
from npukit.analysis import DEFAULT_SEED, cost
from npukit.analysis.samples import Samples
from npukit.artifacts import dlc
from npukit.artifacts.restamp import restamp
from npukit.artifacts.stamp import IoTensor, Stamp, native_stamp
from npukit.errors import NpukitError, UsageError, nearest
from npukit.frontends.onnx import LoadOptions
from npukit.frontends.onnx.io_config import IoConfig
from npukit.frontends.onnx.read_model import read_model
from npukit.frontends.onnx.strip_quantization import SourceEncoding
from npukit.qnn.graph import Array, Graph, Held, Model
from npukit.qnn.opdefs import PACKAGE
from npukit.quantization import encodings_file, provenance
from npukit.quantization.assign import FLOAT, Assigned, Legal, Plan, assign
from npukit.quantization.calibrated import METHODS_16, OUTPUT_MSE, Calibrated, Scheme
from npukit.quantization.calibration import Calibration, ChannelPass
from npukit.quantization.encodings_tools import entries_of, source_names
from npukit.quantization.entry import EncodingsError, Entry
from npukit.quantization.equalize import absorb_bias, absorbing, copied, equalize
from npukit.quantization.float_width import with_float_width
from npukit.quantization.masking import unseen_masks
from npukit.quantization.observers import ChannelObserver
from npukit.quantization.overrides import UNKNOWN, EncodingsReport, Matched, match, report
from npukit.quantization.roles import Groups, weight_axis
from npukit.quantization.rounding import Moments
from npukit.quantization.search import Unit
from npukit.quantization.sensitivity import find_units
from npukit.quantization.simulation import Simulation, native_feeds, real_outputs
from npukit.quantization.smooth import Smoothed, smooth, smoothing
from npukit.quantization.source import Source, own_entries, source_of, with_axes
from npukit.runtime.file_kind import file_kind
from npukit.runtime.qnn import pick_graph
from npukit.targets import htp_arch, resolve
from npukit.verbs import options as o
from npukit.verbs.contract import SOURCE_DTYPES, contract_inputs, contract_outputs, io_tensor, source_stamp
from npukit.verbs.convert import ConvertOptions, lower_source, validator
from npukit.verbs.quantize import Port, Quantized, QuantizeOptions
from npukit.verbs.reference import cut_source
from npukit.verbs.source import exported_source, is_exported
from npukit.verbs.verify import VerifyOptions, verify_here

if TYPE_CHECKING:
    from npukit.analysis.verify import Verification
    from npukit.frontends.onnx import Normalized


@dataclass(frozen=True)
class Own:
    """A source model's own quantization.

    Attributes:
        entries: its encodings.
        source: its values, as they are without quantization.
        stripped: how many nodes were taken out.
    """

    entries: tuple[Entry, ...] = ()
    source: Source | None = None
    stripped: int = 0


_Step = Callable[[Mapping[str, ChannelObserver]], object]


@dataclass
class _State:
    """What the calls of one quantization share in the worker.

    Attributes:
        graph: the float graph.
        uneven: what `steps` are done to: the graph itself, or a copy that only shows what they would do.
        legal: what the targets take.
        stamp: all of the stamp that is known before.
        contract: the stamp's inputs and outputs for a quantized graph.
        digest: SHA-256 of the source.
        matched: the encodings that were given, and the tensors they are for.
        own: what the source said of its own quantization.
        notes: of the front end.
        stack: the validation libraries.
        steps: what is still to be done to `uneven`, each with statistics of the graph before it.
        statistics: those of the first of `steps`.
        calibration: what was observed, once `steps` are done.
        encodings: made once the calibration is done; keeps the weights it has quantized.
        samples: those that a search judges its plans by.
    """

    graph: Graph
    uneven: Graph
    legal: Legal
    stamp: Stamp
    contract: Callable[[Graph], tuple[tuple[IoTensor, ...], tuple[IoTensor, ...]]]
    digest: Callable[[], str]
    matched: Matched
    own: Own
    notes: tuple[str, ...]
    stack: contextlib.ExitStack
    steps: list[_Step]
    statistics: ChannelPass | None = None
    calibration: Calibration | None = None
    encodings: Calibrated | None = None
    samples: list[dict[str, Array]] = field(default_factory=list)

    @cached_property
    def graph_digest(self) -> str:
        """SHA-256 of the graph's ops, their parameters and constants, once `steps` are done."""
        assert not self.steps
        digest = hashlib.sha256()
        for op in self.graph.ops:
            digest.update(f"{op.type} {op.name} {[t and t.name for t in (*op.inputs, *op.outputs)]}".encode())
            for name, param in sorted(op.params.items()):
                digest.update(f"{name} {param.dtype} {np.asarray(param.value).tolist()}".encode())
        for tensor in self.graph.tensors():
            digest.update(f"{tensor.name} {tensor.dtype} {tensor.shape}".encode())
            if tensor.data is not None:
                digest.update(np.ascontiguousarray(tensor.data).reshape(-1).view(np.uint8).data)
        return digest.hexdigest()

    @cached_property
    def groups(self) -> Groups:
        """Tensors that share an encoding, once `steps` are done."""
        assert not self.steps
        return Groups(self.graph, self.matched.forced)


_state: _State | None = None


def _current() -> _State:
    assert _state is not None
    return _state


def prepare(options: QuantizeOptions) -> list[Port]:
    """Lower or read the model; gives the inputs that calibration data must have."""
    global _state

    stack = contextlib.ExitStack()
    legal = Legal({target.name: validator(target, stack) for target in resolve(options.target)})
    read = _from_dlc if not is_exported(options.model) and file_kind(options.model) == "dlc" else _from_source
    graph, stamp, contract, digest, notes, source, own = read(options, legal)
    if options.float_fallback and options.encodings is None and not own.entries:
        raise UsageError("--float-fallback leaves all in float without --encodings", hint="give --encodings FILE")
    matched = _matched(options, graph, stamp.names, source)
    if own.entries:
        matched = _with_own(matched, own, graph, stamp.names)
    # Encodings that were given, or that are to be saved, are for values as the source has them.
    given = bool(matched.forced) or options.float_fallback
    uneven = graph if given else copied(graph)
    steps = [] if given else list(_scaling(options, uneven))
    if options.save_encodings is None:
        graph = uneven
    if given and (left := _left_out(options, graph)):
        notes = (*notes, f"{left} left out: encodings that were given are for the values as the source has them")
    _state = _State(graph, uneven, legal, stamp, contract, digest, matched, own, notes, stack, steps)
    return [
        Port(held.source, held.shape, SOURCE_DTYPES.get(held.dtype, held.dtype))
        for tensor in graph.inputs
        if (held := tensor.held) is not None
    ]


def _scaling(options: QuantizeOptions, graph: Graph) -> Iterator[_Step]:
    """Steps that even out channels."""
    if options.equalize:
        equalize(graph)
        yield lambda channels: absorb_bias(graph, channels)
    if options.smooth and smoothing(graph):
        bits = {"activations": int(options.activations), "weights": int(options.weights)}
        yield lambda channels: smooth(graph, channels, **bits)


def _left_out(options: QuantizeOptions, graph: Graph) -> str:
    """Those of the steps that would be done with a graph, as the beginning of a sentence; empty for none."""
    smooths = options.smooth and not options.float_fallback and bool(smoothing(graph))
    names = ["equalization"] * options.equalize + ["smoothing"] * smooths
    return f"{' and '.join(names)} {'were' if len(names) > 1 else 'was'}" if names else ""


def next_step(options: QuantizeOptions) -> bool:
    """Do the step whose statistics were gathered; whether another one wants statistics. Then calibration can begin."""
    state = _current()
    if state.statistics is not None:
        channels = state.statistics.channels
        state.statistics = None  # before the step: ONNX Runtime's memory goes with it
        done = state.steps.pop(0)(channels)
        if not state.steps and state.graph is not state.uneven:
            state.notes = (*state.notes, *_cost_of_saving(options, done))
            state.uneven = state.graph  # the copy's weights are let go
    if state.steps:
        wanted = {id(t): t for t in (*absorbing(state.uneven), *smoothing(state.uneven))}
        state.statistics = ChannelPass(state.uneven, list(wanted.values()), options.threads)
        return True
    log.report("preparing the calibration", 0.08)
    weighted = [op.inputs[0] for op in state.graph.ops if weight_axis(op) is not None]
    read = {id(tensor): tensor for tensor in weighted if tensor is not None and tensor.dtype.is_float}
    by_output = _rounding(options) != "nearest" or options.weight_method == OUTPUT_MSE
    state.calibration = Calibration(
        state.graph,
        state.groups,
        channels=list(read.values()),
        moments=Moments(state.graph) if by_output else None,
        threads=options.threads,
    )
    return False


def _cost_of_saving(options: QuantizeOptions, done: object) -> Iterator[str]:
    """A note on the steps that were only tried, on a copy: what is saved is for the values as the source has them."""
    smoothed = [one for one in done if isinstance(one, Smoothed)] if isinstance(done, list) else []
    what = []
    if options.equalize:
        what.append("equalization was left out")
    if smoothed:
        worst = 10 * np.log10(max(one.gain for one in smoothed))
        many = f"{len(smoothed)} places" if len(smoothed) > 1 else "one place"
        share = f"by an estimate, without the rounding of results, noise is up to {worst:.1f} dB higher"
        what.append(f"smoothing of {many} was left out, where {share}")
    if what:
        why = "saved encodings are for the values as the source has them"
        yield f"{' and '.join(what)}: {why}; a file quantized without --save-encodings may be more accurate"


def gather(sample: dict[str, Array]) -> None:
    """Take in one sample for the next step's statistics."""
    statistics = _current().statistics
    assert statistics is not None
    statistics.update(sample)


def _calibration() -> Calibration:
    calibration = _current().calibration
    assert calibration is not None
    return calibration


def _source(options: QuantizeOptions) -> ConvertOptions:
    """How the source is read, as `convert` reads it."""
    names = (
        ("model", "target", "input_shapes", "symbols", "batch", "inputs", "outputs", "io_layout")
        + ("allow_pickle", "tflite_signature", "saved_model_tag", "saved_model_signature", "tensorflow_python")
    )  # fmt: skip
    config = _io_config(options)
    return ConvertOptions(
        **{name: getattr(options, name) for name in names},
        io_config=None if config is None else config.for_calibration().to_dict(),
    )


def _io_config(options: QuantizeOptions) -> IoConfig | None:
    data = o.io_config(options.io_config)
    return None if data is None else IoConfig.load(data)


def _values(options: QuantizeOptions) -> Source:
    """The values of a source model, as encodings name them."""
    exported = exported_source(_source(options))
    path = options.model if exported is None else exported.path
    return source_of(read_model(path, LoadOptions(signature=options.tflite_signature)).model)


def _from_source(options: QuantizeOptions, legal: Legal) -> Any:
    """The graph of a source model, in the forms that suit integers."""
    targets = resolve(options.target)
    source = _values(options) if options.encodings is not None else None
    own = Own()

    def loaded(normalized: Normalized) -> None:  # lowering consumes the model
        nonlocal own
        if normalized.stripped:
            entries = () if options.ignore_encodings else tuple(own_entries(normalized.encodings))
            own = Own(entries, source_of(normalized.model), normalized.stripped)

    reading = replace(_source(options), strip_quantization=True)
    normalized, lowered, notes = lower_source(reading, targets, legal.validators(), integers=True, loaded=loaded)
    if options.ignore_encodings and normalized.encodings:
        notes.append(f"{len(normalized.encodings)} encodings of the source are ignored")
    stamp = source_stamp(options.model, targets, lowered, o.echo(options))

    def contract(graph: Graph) -> tuple[tuple[IoTensor, ...], tuple[IoTensor, ...]]:
        made = replace(lowered, graph=graph)
        order = [value.name or "" for value in normalized.model.graph.inputs]
        return contract_inputs(made, order), contract_outputs(made, normalized.model)

    return lowered.graph, stamp, contract, lambda: normalized.source_sha256, tuple(notes), source, own


def _from_dlc(options: QuantizeOptions, legal: Legal) -> Any:
    """The graph of a float DLC, whoever made it."""
    del legal
    if options.io_config is not None:
        raise UsageError("an I/O config is for source models", where="--io-config", hint="give the source, not the DLC")
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
    return graph, made, contract, lambda: stamp.source_sha256 or files.sha256_file(options.model), (), None, Own()


def _matched(options: QuantizeOptions, graph: Graph, names: dict[str, str], source: Source | None) -> Matched:
    """The encodings that were given and the tensors they are for; an error where one cannot be honoured."""
    config = _io_config(options)
    if options.encodings is None and config is None:
        return Matched(())
    entries = [] if options.encodings is None else list(encodings_file.read(options.encodings).entries)
    entries += own_entries(
        SourceEncoding(name, dtype, (scale,), (-offset,), None, False)
        for name, dtype, scale, offset in (config.encodings() if config is not None else ())
    )
    matched = match(with_axes(entries, source) if source is not None else entries, graph, names, source)
    where = options.encodings.name if options.encodings is not None else "--io-config"
    faults = matched.faults(where)
    if faults and not options.allow_unhonoured:
        raise EncodingsError(
            "encodings cannot be honoured", where=where, faults=faults,
            hint="mend the file, or leave them out with --allow-unhonoured",
        )  # fmt: skip
    return matched


def _with_own(matched: Matched, own: Own, graph: Graph, names: dict[str, str]) -> Matched:
    """With the encodings that the source has itself, but for tensors whose encoding was given; none is an error."""
    found = match(own.entries, graph, names, own.source)
    groups = Groups(graph, matched.forced)
    given = {groups.key(tensor) for tensor in matched.forced if tensor.data is None}
    forced = {
        tensor: entry
        for tensor, entry in found.forced.items()
        if tensor not in matched.forced and (tensor.data is not None or groups.key(tensor) not in given)
    }
    taken = {tensor.name for tensor in forced}
    rows = [replace(row, error=False) for row in found.rows if not row.tensors or taken.intersection(row.tensors)]
    gone = "the model without quantization has not this value"
    rows = [replace(row, rule=gone, hint="") if row.status == UNKNOWN else row for row in rows]
    return Matched((*matched.rows, *rows), {**forced, **matched.forced})


def observe(sample: dict[str, Array]) -> None:
    """Take in one calibration sample: arrays by source name."""
    _calibration().update(sample)


def save(path: Path, key: str) -> None:
    """Write what was observed so far, under a key that says of what."""
    state = _calibration().state()
    with files.atomic_write(path) as temp, open(temp, "wb") as file:
        np.savez(file, allow_pickle=False, key=np.array(_key(key)), **state)


def restore(path: Path, key: str) -> int:
    """Samples that an earlier run of the same model, data and options has seen; 0 where it is another's."""
    with contextlib.suppress(NpukitError, ValueError, KeyError, OSError):
        arrays = files.read_npz(path)
        if str(arrays.pop("key")) == _key(key):
            _calibration().restore({name: np.asarray(value) for name, value in arrays.items()})
    return _calibration().samples


def _key(data: str) -> str:
    """Of what statistics are statistics: the data, and the graph with its weights, whatever options led to it."""
    return f"{_current().graph_digest} {_calibration().moments is not None} {data}"


def _rounding(options: QuantizeOptions) -> str:
    if options.rounding != "auto":
        return options.rounding
    given = any(t.data is not None and entry.bitwidth == 4 for t, entry in _current().matched.forced.items())
    return "gptq" if int(options.weights) == 4 or given else "nearest"


def _scheme(options: QuantizeOptions) -> Scheme:
    return Scheme(
        activation_method=options.activation_method,
        weight_method=options.weight_method,
        rounding=_rounding(options),
        percentile=options.percentile,
        symmetric_activations=options.symmetric_activations,
        importance=options.importance,
        bias_correction=options.bias_correction,
        steps=options.restrict_quantization_steps,
    )


def _encodings(options: QuantizeOptions) -> Calibrated:
    state = _current()
    if state.encodings is None:
        _calibration().end()
        state.encodings = Calibrated(_calibration(), _scheme(options), state.matched.forced)
    return state.encodings


def _plan(options: QuantizeOptions, levels: Mapping[str, int]) -> Plan:
    """The plan of the options and the encodings given; `levels`: tensors and weights that a search promoted."""
    graph, forced = _current().graph, _current().matched.forced
    by_source: dict[str, list[str]] = {}
    for op in graph.ops:
        for name in {op.name, *op.origin}:
            by_source.setdefault(name, []).append(op.name)
    for name in options.float_ops:
        if name not in by_source:
            raise UsageError(f"there is no op {name!r}", where="--float-op", hint=nearest(name, by_source))
    readers = {id(t): op.name for op in graph.ops for t in op.inputs if t is not None and t.data is not None}
    floats = {op for name in options.float_ops for op in by_source[name]}
    floats |= {readers[id(t)] for t, entry in forced.items() if t.data is not None and entry.dtype == "float"}
    plan = Plan(
        activations=FLOAT if options.float_fallback else int(options.activations),
        weights=int(options.weights),
        per_channel=options.per_channel,
        per_row=options.per_row,
        block=int(options.block_size or 0),
        bias=int(options.bias),
        floats=frozenset(floats),
        float_io=options.float_io,
    )
    for tensor, entry in forced.items():
        if tensor.data is None:
            plan.tensors[tensor.name] = FLOAT if entry.dtype == "float" else entry.bitwidth
        else:
            plan.ops[readers[id(tensor)]] = entry.bitwidth
    for tensor in [t for t in forced if t.data is None]:
        for member in _current().groups.of(tensor):  # what shares an encoding follows the one that was given
            plan.tensors.setdefault(member.name, plan.tensors[tensor.name])
    for name in _encodings(options).beyond():
        plan.tensors.setdefault(name, FLOAT)
    known = {op.name for op in graph.ops}
    for name, precision in levels.items():
        kind, _, name = name.partition(" ")
        (plan.ops if kind == "weight" and name in known else plan.tensors)[name] = precision
    return plan


def _assigned(options: QuantizeOptions, levels: Mapping[str, int]) -> Assigned:
    state = _current()
    return assign(state.graph, _plan(options, levels), _encodings(options), state.legal, state.groups)


def _held(options: QuantizeOptions, graph: Graph) -> Graph:
    """The graph with its floats in the width that was asked for, by the options or by all encodings given."""
    state = _current()
    asked = {entry.bitwidth for entry in state.matched.forced.values() if entry.dtype == "float"}
    bits = int(options.float_bitwidth or (16 if asked == {16} else 32))
    bias = None if options.float_bias_bitwidth is None else int(options.float_bias_bitwidth)
    return graph if bits == 32 and bias in (None, 32) else with_float_width(graph, state.legal, bits, bias)


# -- search


def references(samples: list[dict[str, Array]]) -> list[dict[str, Array]]:
    """The float graph's outputs, by source name, for the samples that `units` and `attempt` go by."""
    graph = _current().graph
    _current().samples = samples
    simulation = Simulation(graph, "float")
    return [real_outputs(graph, simulation.run(native_feeds(graph, sample, "float"))) for sample in samples]


def attempt(options: QuantizeOptions, levels: Mapping[str, int]) -> tuple[list[dict[str, Array]], int, int]:
    """Outputs of the quantized graph in simulation, estimated traffic and size of the constants in bytes."""
    graph = _assigned(options, levels).graph
    simulation = Simulation(graph, "qdq", threads=options.threads, arch=htp_arch(options.target))
    results = [real_outputs(graph, simulation.run(native_feeds(graph, sample, "qdq"))) for sample in _current().samples]
    held = _held(options, graph)
    return results, cost.traffic(held), held.static_bytes()


def units(options: QuantizeOptions) -> list[Unit]:
    """What a search may promote, with the noise that each adds, measured in one pass."""
    state = _current()
    plan, assigned = _plan(options, {}), _assigned(options, {})
    return find_units(state.graph, state.groups, _encodings(options), assigned, plan, state.samples)


# -- the artifact


def write(options: QuantizeOptions, path: Path, warnings: list[str], levels: Mapping[str, int]) -> Quantized:
    """Assign encodings and write the DLC."""
    state = _current()
    log.report("choosing encodings", 0.7)
    assigned = _assigned(options, levels)
    log.report("writing", 0.8)
    graph = _held(options, assigned.graph)
    precision = cost.precision(graph)
    inputs, outputs = state.contract(graph)
    stamp = replace(
        state.stamp,
        inputs=inputs,
        outputs=outputs,
        options={**state.stamp.options, "precision": precision},
        source_sha256=state.digest(),
    )
    dlc.write(Model({graph.name: graph}), path, lambda: stamp)
    found = None
    if state.matched.rows:
        found, stamp = _honoured(options, path, stamp)
    if options.encodings_report is not None:
        rows = provenance.provenance(graph, state.graph, _encodings(options), source_names(stamp))
        provenance.write(options.encodings_report, rows)
    if options.save_encodings is not None:
        version = "2.0.0" if options.save_encodings.suffix != ".json" else "qnn"
        encodings_file.write(options.save_encodings, entries_of(path).entries, version)
    return Quantized(
        stamp,
        cost.op_counts(op.type for op in graph.ops),
        _counts(assigned),
        tuple(_refused(state.graph, assigned)),
        weight_bytes=graph.static_bytes(),
        float_bytes=state.graph.static_bytes(),
        gflop=cost.flops(state.graph) / 1e9,
        precision=precision,
        samples=_calibration().samples,
        encodings=found,
        notes=(*state.notes, *warnings, *_masks(), *_unrounded(options), *_unused_method(options)),
    )


def _honoured(options: QuantizeOptions, path: Path, stamp: Stamp) -> tuple[EncodingsReport, Stamp]:
    """What the written file holds of the encodings that were given; its counts go into the stamp."""
    file = options.encodings or options.model
    written = pick_graph(dlc.read(path)[0], None, str(path))
    found = report(_current().matched, written, file.name)
    own = {id(entry) for entry in _current().own.entries}
    rows = tuple(replace(row, error=False) if id(row.entry) in own else row for row in found.rows)
    found = replace(found, rows=rows)
    if found.faults and not options.allow_unhonoured:
        raise EncodingsError(
            "the artifact does not hold the encodings that were given", where=str(file),
            faults=list(found.faults), hint="accept this with --allow-unhonoured",
        )  # fmt: skip
    stamp = replace(stamp, options={**stamp.options, "encodings": found.counts})
    restamp(path, stamp)
    return found, stamp


def _packaged() -> bool:
    """Whether the graph has ops of op packages, which only a plugin can compute, and ONNX Runtime beside it."""
    return any(op.package != PACKAGE for op in _current().graph.ops)


def _masks() -> Iterator[str]:
    """A note where calibration never met what a mask is for."""
    names = unseen_masks(_current().graph, _calibration())
    if names:
        listed = ", ".join(map(repr, names[:3])) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
        yield f"calibration never masked anything in {listed}: masked inputs, as padding, will be computed coarsely"


def _unrounded(options: QuantizeOptions) -> Iterator[str]:
    """A note where there was nothing to round weights by."""
    if _rounding(options) != "nearest" and not _calibration().samples:
        yield "weights are rounded to nearest: --rounding goes by the inputs of ops, and there is no --calibration"


def _unused_method(options: QuantizeOptions) -> Iterator[str]:
    """A note where the method that was asked for chooses no range."""
    if int(options.activations) == 16 and options.activation_method not in METHODS_16:
        yield (
            f"activations of 16 bits keep their whole range and some room: --activation-method "
            f"{options.activation_method} is for those of 8 bits"
        )


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


def verify(
    options: QuantizeOptions, path: Path, backend: str, name: str, samples: list[dict[str, Array]]
) -> Verification:
    """Verify the file at `path`, which will be called `name`, against the float model on calibration samples."""
    log.report(f"verifying on {backend}", 0.85)
    with contextlib.ExitStack() as stack:
        source = replace(_source(options), strip_quantization=_current().own.stripped > 0)
        chosen = VerifyOptions(
            model=path,
            against=cut_source(source, _current().stamp, stack),
            backend=backend,
            reference_backend="ort" if backend == "ort" and _packaged() else None,
            target=options.target[0] if backend == "qnn-htp" else None,
            seed=DEFAULT_SEED,
            min_sqnr=options.min_sqnr,
            max_error=options.max_error,
            min_cosine=options.min_cosine,
            threads=options.threads,
        )
        outcome, _ = verify_here(chosen, Samples("calibration", samples) if samples else None)
    return replace(outcome, model=name, reference=options.model.name)

# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""`npukit verify`: run a model and its reference on the same inputs and judge every output."""

from __future__ import annotations

import contextlib
import functools
import logging
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from npukit.analysis import DEFAULT_SEED
from npukit.analysis.samples import InputInfo, Sample, Samples
from npukit.analysis.verify import IndexOutput, Verification
from npukit.errors import MissingDependency, ModelError, NpukitError, UsageError
from npukit.runtime import BACKEND_NAMES
from npukit.verbs import options as o
from npukit.verbs.isolate import isolated
from npukit.verbs.options import arg, opt, verb

if TYPE_CHECKING:
    import onnx_ir as ir

    from npukit.analysis.preprocess import Preprocessing
    from npukit.runtime.session import Session

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class VerifyOptions:
    """Compare a model's outputs with those of a reference on the same inputs; exits 1 where they differ too much.

    Inputs are those given with --input, else test_data_set_* beside the reference, else generated.
    """

    model: Path = arg("the model to judge (.dlc, context binary, .om, .onnx)")
    against: Path | None = opt(
        None, "The reference, usually the source model [with --emulate: the model itself].", parse=Path, metavar="FILE"
    )
    emulate: str = opt(
        "", "Compute as this chip would: ascend310p[:PRECISION[:LIST.json]] (backend ort).", metavar="CHIP"
    )
    backend: str | None = opt(None, "Backend of the model [by file].", choices=BACKEND_NAMES)
    reference_backend: str | None = opt(None, "Backend of the reference [by file].", choices=BACKEND_NAMES)
    inputs: tuple[tuple[str, Path], ...] = opt(
        (), "Input data; several of a name are several samples.", "--input", many=True, parse=o.files,
        metavar="NAME=FILE",
    )  # fmt: skip
    preprocessing: Any = opt(
        None, "What is done with image files (YAML) [the stamp's].", parse=o.preprocessing, metavar="FILE"
    )
    random: int | None = opt(None, "Generate this many samples, whatever test data there is [2].")
    seed: int = opt(DEFAULT_SEED, "Seed of generated samples.")
    input_ranges: dict[str, tuple[float, float]] = opt(
        {}, "Range of a generated input.", "--input-range", many=True, parse=o.ranges, metavar="NAME=LO:HI"
    )
    min_sqnr: float | None = opt(None, "Least SQNR in dB [by precision].")
    max_error: float | None = opt(None, "Largest error as a share of the range [by precision].")
    min_cosine: float | None = opt(None, "Least cosine similarity [not judged].")
    report: Path | None = opt(None, "Write the HTML report here.", parse=Path, metavar="FILE")
    graph: str | None = opt(None, "Graph to run, where the model holds several.", metavar="NAME")
    target: str | None = opt(None, "Chip to emulate [the stamp's].", metavar="NAME")
    threads: int | None = opt(None, "Threads of ONNX Runtime.")
    timeout: float | None = opt(None, "Seconds that the verification may take.")
    in_process: bool = opt(False, "Run native code in this process.", "--in-process")
    test_data: bool = opt(True, "Use test_data_set_* beside the reference.", "--test-data/--no-test-data")


@verb(VerifyOptions)
def verify(options: VerifyOptions) -> Verification:
    """Run `model` and `against` on the same inputs and judge every output; the result's `exit_code` is 1 on failure.

    Raises:
        NpukitError: a file, an input or an option is wrong; a library is missing or died.

    Example:
        >>> result = npukit.verify("digits.dlc", against="digits.onnx", inputs=["image.npy"])
        >>> result.passed, result.outputs[0].metrics.sqnr_db > 60
        (True, True)
    """
    if options.against is None and options.emulate:
        options = replace(options, against=options.model)
    if options.against is None:
        raise UsageError("a reference is needed", where="--against", hint="give the source model: --against model.onnx")
    if options.random is not None and options.random < 1:
        raise UsageError("at least one sample is needed", where="--random")
    with isolated(in_process=options.in_process, timeout=options.timeout) as call:
        outcome: Verification = call("npukit.verbs.verify:_verify", options)
    if options.report is not None:
        from npukit.analysis import report

        report.write([outcome], options.report)
    return outcome


def _verify(options: VerifyOptions) -> Verification:
    return verify_here(options)[0]


def verify_here(options: VerifyOptions, given: Samples | None = None) -> tuple[Verification, Sample]:
    """`verify` in this process, without the report; with the outcome, the sample with the largest error.

    `given`: the samples, where they do not come from files and are not to be made.
    """
    from npukit.analysis import compare
    from npukit.analysis import verify as analysis
    from npukit.analysis.preprocess import recorded
    from npukit.analysis.reference import check_rewritten
    from npukit.frontends.tflite.load import DYNAMIC_RANGE
    from npukit.runtime.file_kind import file_kind
    from npukit.verbs.source import exported_reference

    assert options.against is not None
    with contextlib.ExitStack() as stack:
        model = _model(options, stack)
        shapes, options_then = (_shapes(model), model.stamp.options) if model.stamp is not None else (None, {})
        made = exported_reference(options.against, shapes, options_then)
        if made is not None:
            options = replace(options, against=made.path)
        assert options.against is not None
        sourced = file_kind(options.against) in ("onnx", "tflite")
        names = [info.name for info in model.outputs]
        source = _source(options.against, _signature(model), tuple(names)) if sourced else None
        indices = index_outputs(source, names) if source is not None else {}
        fetch = _fetch(source, names, indices) if options.reference_backend in (None, "ort") else ()
        reference, notes = _reference(options, model, fetch, stack)
        notes = [*made.notes, *notes] if made is not None else notes
        native = model.stamp is None and file_kind(options.model) != "onnx"
        if native and _codes_for_floats(model, reference):
            model.close()
            model = _model(options, stack, dequantize=True)
            notes.append("the model has no stamp: its integer codes are read as floats by their encodings")
        elif native:
            notes.append("the model has no stamp: its outputs are its native tensors")
        # before inputs are made: two models that do not belong together show here
        analysis.pair_outputs(names, [info.name for info in reference.outputs], indices)
        infos = analysis.input_infos(model, reference)
        recipe = recorded(model.stamp.options if model.stamp else None, options.preprocessing)
        chosen = given or _samples(options, source, infos, recipe)
        precision = precision_of(options.model, model)
        if source is not None and DYNAMIC_RANGE in source.metadata_props and reference.backend == "litert":
            precision = "int8"
            notes.append("TensorFlow Lite rounds activations to 8 bits while it runs: judged by the limits of int8")
        limits = compare.criteria(
            precision, min_sqnr=options.min_sqnr, max_error=options.max_error, min_cosine=options.min_cosine
        )
        codes = {}
        if reference.backend == "litert":
            codes = {info.name: info.native.encoding for info in reference.outputs if info.native.encoding is not None}
        plan = analysis.Plan(precision, limits, indices, options.model.name, options.against.name, codes=codes)
        if any("rewritten" in note for note in notes):
            takes = {info.name for info in reference.inputs}
            feeds = {name: array for name, array in chosen.runs[0].items() if name in takes}
            notes.append(check_rewritten(options.against, chosen.runs[0], reference.run(feeds)))
        outcome = analysis.verify(model, reference, chosen, plan, [*notes, *model.notes])
        if model.emulated:
            outcome = replace(outcome, emulated=model.emulated, saturations=tuple(model.saturations()))
        return outcome, chosen.runs[_worst_sample(outcome)]


def _model(options: VerifyOptions, stack: contextlib.ExitStack, *, dequantize: bool = False) -> Session:
    from npukit.runtime.session import Session

    session = Session(
        options.model, backend=options.backend, graph=options.graph, target=options.target, in_process=True,
        threads=options.threads, dequantize=dequantize, emulate=options.emulate,
    )  # fmt: skip
    return stack.enter_context(session)


def _codes_for_floats(model: Session, reference: Session) -> bool:
    """Whether the model has integer codes with an encoding where the reference has floats."""
    theirs = {info.name: info.dtype for info in (*reference.inputs, *reference.outputs)}
    coded = [info.name for info in (*model.inputs, *model.outputs) if info.native.encoding and "int" in info.dtype]
    # where no name is shared, outputs are paired by position: then any float on the other side decides
    against = [theirs[name] for name in coded if name in theirs] or list(theirs.values())
    return bool(coded) and any("float" in dtype for dtype in against)


def _reference(
    options: VerifyOptions, model: Session, fetch: tuple[str, ...], stack: contextlib.ExitStack
) -> tuple[Session, list[str]]:
    """The reference's session; a source that ONNX Runtime does not load is rewritten for it, which a note says."""
    from npukit.analysis.reference import rewrite_for_ort, with_shapes
    from npukit.runtime.file_kind import file_kind
    from npukit.runtime.session import Session

    path = options.against
    assert path is not None
    given: list[str] = []
    if file_kind(path) == "onnx" and model.stamp is not None:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="npukit-reference-")))
        path = with_shapes(path, _shapes(model), folder)
        given = ["the reference was given the model's input shapes"] if path != options.against else []

    def session(file: Path) -> Session:
        backend, threads = options.reference_backend, options.threads
        return stack.enter_context(Session(file, backend=backend, in_process=True, threads=threads, fetch=fetch))

    if file_kind(path) == "tflite" and options.reference_backend in (None, "litert"):
        return _tflite_reference(options, path, model, fetch, stack)
    if file_kind(path) != "onnx" or options.reference_backend not in (None, "ort"):
        return session(path), given
    try:
        return session(path), given
    except ModelError as error:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="npukit-reference-")))
        try:
            rewritten, notes = rewrite_for_ort(path, _shapes(model), folder)
            return session(rewritten), [*given, *notes]
        except NpukitError as second:
            log.info("rewriting it for ONNX Runtime failed too: %s", second)
            raise error from second


def _tflite_reference(
    options: VerifyOptions, path: Path, model: Session, fetch: tuple[str, ...], stack: contextlib.ExitStack
) -> tuple[Session, list[str]]:
    """TensorFlow Lite's interpreter; where it is missing or cannot give the values, npukit's ONNX of the file."""
    from npukit.analysis.reference import tflite_as_onnx
    from npukit.frontends.tflite.load import output_names
    from npukit.runtime import litert
    from npukit.runtime.session import Session

    signature = _signature(model)
    names = {info.name for info in model.outputs}
    own = names & set(output_names(path, signature))
    # a model that was cut has outputs that the file does not have
    if litert.installed() and not (set(fetch) & names) and (own == names or model.stamp is None):
        return stack.enter_context(
            Session(path, backend="litert", graph=signature or None, in_process=True, threads=options.threads)
        ), []
    if options.reference_backend == "litert" and not litert.installed():
        raise MissingDependency("TensorFlow Lite's interpreter is not installed", hint=litert.HINT)
    folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="npukit-reference-")))
    onnx = tflite_as_onnx(path, _shapes(model), signature, folder, tuple(info.name for info in model.outputs))
    why = "gives no inner values" if litert.installed() else f"is not installed ({litert.HINT})"
    note = f"the reference is npukit's own reading of the file on ONNX Runtime: TensorFlow Lite's interpreter {why}"
    found = Session(onnx, in_process=True, threads=options.threads, fetch=fetch)
    return stack.enter_context(found), [note]


def _signature(model: Session) -> str:
    return str(model.stamp.options.get("tflite_signature") or "") if model.stamp is not None else ""


def _shapes(model: Session) -> dict[str, tuple[int, ...]]:
    return {info.name: tuple(d for d in info.shape if isinstance(d, int)) for info in model.inputs}


def _worst_sample(outcome: Verification) -> int:
    """Number of the sample with the largest error."""
    shares = [[m.max_share for m in output.samples] for output in outcome.outputs if output.samples]
    return max(range(len(shares[0])), key=lambda i: max(s[i] for s in shares if i < len(s))) if shares else 0


def _samples(
    options: VerifyOptions, source: ir.Model | None, infos: Sequence[InputInfo], recipe: Preprocessing | None
) -> Samples:
    from npukit.analysis import samples

    if options.inputs:
        return samples.given(options.inputs, infos, recipe.read if recipe else samples.read_input)
    assert options.against is not None
    if options.random is None and options.test_data and not options.input_ranges:
        found = samples.test_data_sets(options.against, infos)
        if found is not None:
            return found
    implied = None
    if source is not None:
        implied = functools.partial(_implied, source)
    count = options.random or 2
    return samples.generate(infos, count, seed=options.seed, ranges=options.input_ranges, implied=implied)


def _implied(source: ir.Model, name: str) -> tuple[float, float] | None:
    from npukit.frontends.onnx import ranges

    found: tuple[float, float] | None = ranges.implied_range(source, name)
    return found


def _source(path: Path, signature: str = "", outputs: tuple[str, ...] = ()) -> ir.Model:
    """The source; of a .tflite file only what `outputs` need, as the model may be cut before what cannot be read."""
    from npukit.frontends.onnx import LoadOptions
    from npukit.frontends.onnx.read_model import read_model

    return read_model(path, LoadOptions(signature=signature, outputs=outputs)).model


def index_outputs(source: ir.Model, names: list[str]) -> dict[str, IndexOutput]:
    """Those outputs of `names` that ArgMax, ArgMin or TopK make in the source, with the tensor they search."""
    found = {}
    made = {v.name: (node, i) for node in source.graph for i, v in enumerate(node.outputs) if v.name}
    nothing: tuple[ir.Node | None, int] = (None, 0)
    for name in names:
        node, position = made.get(name, nothing)
        while node is not None and node.op_type == "Identity" and node.inputs[0] is not None:
            node, position = made.get(node.inputs[0].name or "", nothing)
        if node is None or node.inputs[0] is None or node.domain not in ("", "ai.onnx"):
            continue
        if node.op_type in ("ArgMax", "ArgMin") or (node.op_type == "TopK" and position == 1):
            default = -1 if node.op_type == "TopK" else 0
            attribute = node.attributes.get("axis")
            axis = int(attribute.value) if attribute is not None else default
            found[name] = IndexOutput(node.inputs[0].name or "", axis)
    return found


def _fetch(source: ir.Model | None, names: list[str], indices: Mapping[str, IndexOutput]) -> tuple[str, ...]:
    """Inner values of the source that the comparison needs: where the model was cut, and what indices point into."""
    if source is None:
        return ()
    own = {v.name for v in source.graph.outputs}
    inner = {v.name for node in source.graph for v in node.outputs}
    wanted = [*names, *(index.data for index in indices.values())]
    return tuple(dict.fromkeys(name for name in wanted if name in inner and name not in own))


def precision_of(path: Path, session: Session) -> str:
    """The precision that a model computes in on its backend, as far as its stamp, graph or tensors tell."""
    from npukit.analysis import cost

    if session.emulated or session.backend == "acl":
        return "float16"  # whatever the mode, the 310P has matrix ops in float16 only

    stamp = session.stamp
    recorded = str(stamp.options.get("precision", "")) if stamp is not None else ""
    if not recorded:
        recorded = _graph_precision(path, session)
    return cost.coarser(recorded, session.backend)


def _graph_precision(path: Path, session: Session) -> str:
    from npukit.analysis import cost
    from npukit.runtime.file_kind import file_kind

    kind = file_kind(path)
    if kind == "dlc":
        from npukit.artifacts import dlc

        model, _ = dlc.read(path)
        return cost.precision(next(iter(model.graphs.values())))
    if kind == "onnx":
        with contextlib.suppress(NpukitError):
            ops = {node.op_type for node in _source(path).graph}
            return "int8" if "QuantizeLinear" in ops else "float32"
    held = {info.native.qnn_dtype for info in (*session.inputs, *session.outputs)}
    quantized = [name for name in held if "FIXED_POINT" in name]
    if quantized:
        return "int8" if any(name.endswith("_8") for name in quantized) else "int16"
    return "float16" if "FLOAT_16" in held else "float32"

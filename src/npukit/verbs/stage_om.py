# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""What `npukit compile` does to an ONNX model before atc: prepare it, check it, put it where atc reads it."""

from __future__ import annotations

import math
import re
import shutil
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import npukit
from npukit import files, log
from npukit.analysis import text
from npukit.ascend.atc_options import Shape
from npukit.errors import Fault, GraphError, InputError, NpukitError, UsageError, nearest

if TYPE_CHECKING:
    import onnx_ir as ir

    from npukit.artifacts.stamp import IoTensor, Stamp
    from npukit.ascend.atc import Job
    from npukit.targets import Target
    from npukit.verbs.compile import CompileOptions

    Contract = tuple[tuple[IoTensor, ...], tuple[IoTensor, ...]]

_PLAIN_NAME = re.compile(r"(?!out$)[A-Za-z0-9_][A-Za-z0-9._-]*")  # "out" is where OMs go
_AIPP = "aipp.cfg"
_SHOWN = 5  # warnings of the lint of one rule in the notes
# The older names of precision modes, by those that the lint knows.
_MODES = {
    "force_fp16": "fp16",
    "must_keep_origin_dtype": "origin",
    "force_fp32": "cube_fp16in_fp32out",
    "cube_fp16in_fp32out": "cube_fp16in_fp32out",
}


@dataclass(frozen=True)
class Staged:
    """A model made ready for atc in a folder.

    Attributes:
        name: of the folder's model and of the OM.
        job: how atc is called there.
        stamp: what will stand beside the OM.
        applied: what the preparation did, one line each.
        notes: what one may want to know.
        texts: small files that were written for atc, by name.
    """

    name: str
    job: Job
    stamp: Stamp
    applied: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    texts: Mapping[str, str] = field(default_factory=dict)


def stage(options: CompileOptions, chip: Target, folder: Path, output: Path, version: str) -> Staged:
    """Make a model ready for atc in `folder`/NAME: prepared, checked, with the files that atc reads beside it.

    Args:
        options: those of the verb.
        chip: the target.
        folder: where the model's folder is made.
        output: the OM that is asked for; its name is kept where atc takes it.
        version: CANN's, empty for unknown.

    Raises:
        UsageError, ModelError, GraphError: see `npukit.verbs.compile_om.compile_om`.
    """
    from npukit.ascend import DEFAULT_CANN, cann_version, prepare
    from npukit.ascend.atc import Job
    from npukit.frontends.onnx import LoadOptions
    from npukit.frontends.onnx.read_model import read_model
    from npukit.frontends.onnx.write_model import write_model

    notes = []
    try:
        known = cann_version(version).name if version else DEFAULT_CANN
    except UsageError as error:
        if options.cann:
            raise
        known = DEFAULT_CANN
        notes.append(f"{error.what}: the model is judged as for CANN {known}")
    precision = _precision(options)
    source = read_model(options.model)
    asked = options.input_shapes.items()
    _check_room(folder, [options.model, *source.files], 1 if options.bundle or options.print_command else 2)
    fixed = {name: tuple(map(int, shape)) for name, shape in asked if is_static(shape)}
    load = LoadOptions(input_shapes=fixed, symbols=options.symbols, batch=options.batch)
    applied: tuple[str, ...] = ()
    model = source.model
    if options.prepare:
        log.report("preparing the model", 0.2)
        made = prepare(options.model, chip.name, known, precision=precision, options=load)
        model, applied = made.model, tuple(str(each) for each in made.applied)
    shapes = _shapes(model, options.input_shapes)
    notes += _opened(model, options.input_shapes)
    given = _given(options)
    _check_options(given, shapes, version, options)
    name = output.stem if _PLAIN_NAME.fullmatch(output.stem) else "model"
    if given.get("external_weight") == "2" and name != output.stem:
        what = f"the file of weights is named after the OM, and atc cannot be given the name {output.stem!r}"
        raise UsageError(what, where="-o", hint="use letters, digits, '_', '-' and '.'")
    home = folder / name
    home.mkdir()
    texts: dict[str, str] = {}
    contract = _contract(model, shapes, given)
    if options.aipp is not None:
        texts[_AIPP], contract, more = _aipp(options, model, contract)
        given["insert_op_conf"] = _AIPP
        notes += more
    for file, content in texts.items():
        (home / file).write_text(content, "utf-8", newline="\n")
    copied = _copy_files(given, home)
    log.report("writing the model", 0.4)
    write_model(model, home / f"{name}.onnx")
    if options.lint:
        log.report("checking it for atc", 0.6)
        notes += _lint(home / f"{name}.onnx", known, precision, options, shapes)
    types: dict[str, list[str]] = {}
    for node in model.graph.all_nodes():
        types.setdefault(node.op_type, []).append(node.name or "")
    job = Job(f"{name}.onnx", f"../out/{name}", chip.soc_version, given, copied, types)
    recorded = {
        "precision": "float16",
        "soc_version": chip.soc_version,
        "precision_mode": precision,
        "cann": version,
        "atc": {key: value for key, value in given.items() if key not in copied},
        "prepared": list(applied),
        **({"aipp": options.aipp} if options.aipp is not None else {}),
    }
    log.report("hashing the model", 0.8)
    stamp = _stamp(options.model, source.digest(), chip, recorded, contract)
    return Staged(name, job, stamp, applied, tuple(notes), texts)


def _check_room(folder: Path, paths: list[Path], copies: int) -> None:
    """Refuse to begin where the prepared model, and then an OM of its size, cannot be written."""
    with files.os_errors(folder, "write"):
        needed = copies * sum(path.stat().st_size for path in {path.resolve() for path in paths})
        free = shutil.disk_usage(folder).free
    if free < needed:
        what = f"there is not enough space: {text.size(needed)} are needed, {text.size(free)} are free"
        raise NpukitError(what, where=str(folder.parent), hint="free some space or write elsewhere")


def is_static(shape: Shape) -> bool:
    """Whether all extents are given."""
    return all(isinstance(extent, int) and extent > 0 for extent in shape)


def _precision(options: CompileOptions) -> str:
    """The precision mode by the names that the lint knows."""
    older = options.atc_options.get("precision_mode")
    if options.precision_mode is None and older:
        return _MODES.get(older, "mixed_float16")
    return options.precision_mode or "fp16"


def _given(options: CompileOptions) -> dict[str, str]:
    """Options of atc by name, without the shapes."""
    given = dict(options.atc_options)
    if options.precision_mode not in (None, "fp16") or (options.precision_mode and "precision_mode" in given):
        given["precision_mode_v2"] = str(options.precision_mode)
    if options.aipp is not None:
        if "insert_op_conf" in given:
            raise UsageError("it does what --aipp does", where="--atc-option insert_op_conf", hint="give one of them")
        given["insert_op_conf"] = str(options.model)  # any file: its own is not written yet
    return given


def _shapes(model: ir.Model, asked: Mapping[str, Shape]) -> dict[str, Shape]:
    """The shape of each input as atc is told: as asked for, else the model's, -1 where it is open."""
    inputs = {value.name or "": value for value in model.graph.inputs if value.name not in model.graph.initializers}
    unknown = [
        Fault("the model has no such input", name, nearest(name, inputs)) for name in asked if name not in inputs
    ]
    if unknown:
        raise UsageError("--input-shape is for inputs that there are not", faults=unknown)
    found: dict[str, Shape] = {}
    for name, value in inputs.items():
        held = () if value.shape is None else tuple(d if isinstance(d, int) else -1 for d in value.shape.dims)
        found[name] = tuple(asked.get(name, held))
        if name in asked and value.shape is not None and len(asked[name]) != len(held):
            what = f"{len(asked[name])} extents, the input has {len(held)} (atc: E10049)"
            raise UsageError(what, where=f"--input-shape {name}")
    return found


def _opened(model: ir.Model, asked: Mapping[str, Shape]) -> list[str]:
    """A note for each input that is static in the model and open in what was asked for."""
    static = {value.name for value in model.graph.inputs if value.shape is not None and value.shape.is_static()}
    what = "the input {!r} has a fixed shape in the model: other gears are right only if nothing inside builds on it"
    return [what.format(name) for name, shape in asked.items() if name in static and not is_static(shape)]


def _check_options(given: dict[str, str], shapes: dict[str, Shape], version: str, options: CompileOptions) -> None:
    """Refuse what atc would; put the shapes among the options where it has to be told."""
    from npukit.ascend import atc_options

    faults = atc_options.faults(given, shapes, version)
    gears = any(name in given for name in atc_options.GEARS)
    opened = [name for name, shape in shapes.items() if -1 in shape and name not in options.input_shapes]
    if opened and not faults:
        hint = "--input-shape NAME=1,3,224,224 or --symbol n=1; or NAME=-1,... with --atc-option dynamic_dims='1;4'"
        faults += [Fault(f"the shape {list(shapes[name])} is open", f"input {name!r}", hint) for name in opened]
    if faults:
        raise UsageError("atc would refuse this", faults=faults)
    if gears or (options.input_shapes and (not options.prepare or not all(map(is_static, shapes.values())))):
        given["input_shape"] = atc_options.shape_text(shapes)


def _copy_files(given: dict[str, str], home: Path) -> tuple[str, ...]:
    """Copy the files among the options into the model's folder and name them there; gives their options' names."""
    from npukit.ascend.atc_options import OPTIONS, path_fault

    found = [name for name in given if name in OPTIONS and OPTIONS[name].kind == "file"]
    for name in found:
        path = Path(given[name])
        if path.name == _AIPP and not path.parent.name:
            continue
        suffix = "" if path_fault(path.suffix) else path.suffix
        with files.os_errors(path, "read"):
            shutil.copyfile(path, home / f"{name}{suffix}")
        given[name] = f"{name}{suffix}"
    for name in given:
        if name in OPTIONS and OPTIONS[name].kind == "folder":
            given[name] = str(Path(given[name]).resolve())
    return tuple(found)


def _lint(path: Path, version: str, precision: str, options: CompileOptions, shapes: Mapping[str, Shape]) -> list[str]:
    """Check the file as atc will read it: errors stop, warnings are given back in short."""
    from npukit.ascend import check

    # Open on purpose: with gears, or with the shapes that atc is told.
    told = {f"input {name!r}" for name, shape in shapes.items() if not is_static(shape) or name in options.input_shapes}
    problems = [
        problem
        for problem in check(path, cann=version, precision=precision)
        if problem.rule != "atc-dynamic" or problem.where not in told
    ]
    errors = [p for p in problems if p.level == "error"]
    if errors:
        faults = [Fault(p.what, p.where, p.hint or (f"{p.fix} does it" if p.fix else "")) for p in errors]
        hint = "`npukit lint` shows warnings too; --no-lint leaves the judgement to atc"
        raise GraphError(f"atc of CANN {version} would refuse the model", where=str(options.model), faults=faults,
                         hint=hint)  # fmt: skip
    warned = [p for p in problems if p.level == "warning"]
    lines = [f"{p.where}: {p.what}" if p.where else p.what for p in warned[:_SHOWN]]
    rest = Counter(p.rule for p in warned[_SHOWN:])
    return lines + [f"{count} more warnings [{rule}]: see npukit lint" for rule, count in rest.items()]


def _aipp(options: CompileOptions, model: ir.Model, contract: Contract) -> tuple[str, Contract, list[str]]:
    """The AIPP configuration for the inputs that the preprocessing spec is for, and the contract with them."""
    from npukit.analysis.preprocess import Preprocessing
    from npukit.analysis.preprocess_aipp import translate
    from npukit.ascend.aipp import Aipp, config

    recipe = Preprocessing.load(options.aipp)
    inputs, outputs = list(contract[0]), contract[1]
    names = [io.name for io in inputs]
    faults = [Fault("the model has no such input", name, nearest(name, names)) for name in recipe.inputs
              if name and name not in names]  # fmt: skip
    parts: list[Aipp] = []
    notes: list[str] = []
    for rank, io in enumerate(inputs):
        spec = recipe.inputs.get(io.name) or (recipe.inputs.get("") if len(inputs) == 1 or len(io.shape) == 4 else None)
        if spec is None:
            continue
        try:
            made = translate(spec, io.name, io.shape, io.dtype, rank, options.aipp_image)
        except InputError as error:
            faults += [replace(fault, where=f"{io.name}: {fault.where}") for fault in error.faults]
            continue
        parts.append(made.aipp)
        notes += made.notes
        inputs[rank] = replace(io, dtype="uint8", shape=made.shape, held_dtype="UINT_8")
        notes.append(f"the input {io.name!r} takes uint8 pixels {list(made.shape)} now")
    if not parts and not faults:
        faults.append(Fault("none of its inputs is an image [N, C, H, W]", str(options.model)))
    if faults:
        raise InputError("AIPP cannot do this preprocessing", where=recipe.origin or "--aipp", faults=faults)
    return config(parts), (tuple(inputs), outputs), notes


# ---------------------------------------------------------------- the stamp

# ONNX dtype -> the stamp's name of it, and of how the OM holds it.
_DTYPES = {
    "FLOAT": ("float32", "FLOAT_32"), "FLOAT16": ("float16", "FLOAT_16"), "DOUBLE": ("float64", "FLOAT_64"),
    "BFLOAT16": ("bfloat16", "BFLOAT_16"), "BOOL": ("bool", "BOOL_8"),
    **{f"{sign}INT{bits}": (f"{sign.lower()}int{bits}", f"{sign}INT_{bits}")
       for sign in ("", "U") for bits in (8, 16, 32, 64)},
}  # fmt: skip
_OUTPUT_TYPES = {"FP32": "FLOAT_32", "FP16": "FLOAT_16", "DOUBLE": "FLOAT_64",
                 **{f"{s}INT{b}": f"{s}INT_{b}" for s in ("", "U") for b in (8, 16, 32, 64)}}  # fmt: skip


def _contract(model: ir.Model, shapes: Mapping[str, Shape], given: Mapping[str, str]) -> Contract:
    """Inputs and outputs as the source has them, and the dtypes in which the OM holds them.

    An extent that is open is the largest gear's, or the upper end of its range, or 0 where there is none.
    """
    from npukit.artifacts.stamp import IoTensor

    narrow = {name.strip() for name in given.get("input_fp16_nodes", "").split(";")}
    largest = _largest(shapes, given)
    inputs = []
    for value in model.graph.inputs:
        if value.name not in shapes:
            continue
        dtype, held = _DTYPES.get(value.dtype.name if value.dtype else "", ("float32", "UNDEFINED"))
        held = "FLOAT_16" if value.name in narrow else held
        inputs.append(IoTensor(value.name or "", dtype, largest[value.name or ""], value.name or "", held))
    outputs = []
    for value in model.graph.outputs:
        dtype, held = _DTYPES.get(value.dtype.name if value.dtype else "", ("float32", "UNDEFINED"))
        shape = () if value.shape is None else tuple(d if isinstance(d, int) else 0 for d in value.shape.dims)
        held = _OUTPUT_TYPES.get(given.get("output_type", ""), held)
        outputs.append(IoTensor(value.name or "", dtype, shape, value.name or "", held))
    return tuple(inputs), tuple(outputs)


def _largest(shapes: Mapping[str, Shape], given: Mapping[str, str]) -> dict[str, tuple[int, ...]]:
    """The shapes with each -1 as in the largest gear (which runs where none is set) and each range's end."""
    gears = [[int(n) for n in part.split(",")] for part in re.split(";", given.get("dynamic_dims", "")) if part]
    gears += [[int(n)] for n in given.get("dynamic_batch_size", "").split(",") if n]
    gears += [[int(n) for n in part.split(",")] for part in given.get("dynamic_image_size", "").split(";") if part]
    best = max(gears, key=lambda gear: (math.prod(gear), gear), default=[])
    every = "dynamic_dims" in given
    fill = iter(best)
    found = {}
    for name, shape in shapes.items():
        extents = []
        inner = fill if every else iter(best)
        for extent in shape:
            if isinstance(extent, str):
                extents.append(max(0, int(extent.rpartition("~")[2])))
            else:
                extents.append(next(inner, 0) if extent == -1 else extent)
        found[name] = tuple(extents)
    return found


def _stamp(
    source: Path, digest: str, chip: Target, recorded: Mapping[str, Any],
    contract: Contract,
) -> Stamp:  # fmt: skip
    from npukit.artifacts.stamp import Stamp

    return Stamp(
        npukit_version=npukit.__version__,
        source_name=source.name,
        source_sha256=digest,
        targets=(chip.name,),
        options=recorded,
        inputs=contract[0],
        outputs=contract[1],
    )

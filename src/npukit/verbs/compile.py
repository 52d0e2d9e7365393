# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""`npukit compile`: a DLC becomes an HTP context binary, or an ONNX model an OM, for one chip."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import npukit
from npukit import log
from npukit.analysis import text
from npukit.errors import Fault, UsageError
from npukit.verbs import options as o
from npukit.verbs.isolate import isolated
from npukit.verbs.options import arg, echo, opt, specs, verb

if TYPE_CHECKING:
    from npukit.verbs.compile_om import BundleResult, CommandResult, OmResult

_EXTENT = re.compile(r"-1|[1-9]\d*|\d+~(?:\d+|-1)")


def atc_shapes(texts: Sequence[str]) -> dict[str, tuple[int | str, ...]]:
    """`x=1,-1` as {"x": (1, -1)}: extents, -1 for an open one, `1~8` for a range; nothing behind "=" is a scalar."""
    found: dict[str, tuple[int | str, ...]] = {}
    for item in texts:
        name, equals, value = item.rpartition("=")
        extents = [part.strip() for part in value.split(",")] if value else []
        if not equals or not name or not all(_EXTENT.fullmatch(extent) for extent in extents):
            raise UsageError(f"{item!r} is not a shape", hint="write NAME=1,3,224,224, with -1 where gears are for")
        found[name] = tuple(extent if "~" in extent else int(extent) for extent in extents)
    return found


def atc_options(texts: Sequence[str]) -> dict[str, str]:
    """`NAME=VALUE`, also `--NAME=VALUE`, as {"NAME": "VALUE"}."""
    found: dict[str, str] = {}
    for item in texts:
        name, equals, value = item.partition("=")
        name = name.lstrip("-").replace("-", "_")
        if not equals or not name:
            raise UsageError(f"{item!r} is not NAME=VALUE", hint="write op_debug_level=4, for example")
        if name in found:
            raise UsageError(f"{name} is given twice")
        found[name] = value
    return found


def extents(item: str) -> tuple[int, int]:
    """`480,640` or `480x640` as (480, 640)."""
    parts = item.replace("x", ",").split(",")
    if len(parts) != 2 or not all(part.strip().isdigit() for part in parts):
        raise UsageError(f"{item!r} is not HEIGHT,WIDTH", hint="write 480,640")
    return int(parts[0]), int(parts[1])


@dataclass(frozen=True)
class CompileOptions:
    """Compile a model for a chip: a DLC to an HTP context binary, or an ONNX model to an OM for Ascend.

    The stamp goes beside what is made, as NAME.npukit.json. Options marked Ascend are for OMs. Without CANN, Huawei's
    toolkit, --bundle writes a folder that compiles on a machine that has it.
    """

    model: Path = arg("the DLC, the ONNX model for an Ascend chip, or an OM with --from-bundle")
    output: Path | None = opt(
        None, "The file to write [MODEL.TARGET.bin, MODEL.om].", "-o", "--out", parse=Path, metavar="FILE"
    )
    target: str | None = opt(None, "The chip [the only one that the DLC was converted for].", metavar="NAME")
    graph: str | None = opt(None, "Compile only this graph.", metavar="NAME")
    optimization: int | None = opt(None, "Effort of the compiler, 1 to 3 [the library's].", choices=("1", "2", "3"))
    vtcm_mb: int | None = opt(None, "VTCM to use in MB, 0 for all [4, or what the chip has].")
    hvx_threads: int | None = opt(None, "Vector threads to use [the library's].")
    input_shapes: dict[str, tuple[int | str, ...]] = opt(
        {}, "Ascend: shape of an input; -1 where gears are for.", "--input-shape", many=True, parse=atc_shapes,
        metavar="NAME=1,3,224,224",
    )  # fmt: skip
    symbols: dict[str, int] = opt(
        {}, "Ascend: value of a symbolic dimension.", "--symbol", many=True, parse=o.symbols, metavar="NAME=224"
    )
    batch: int | None = opt(None, "Ascend: value of the first dimension where it is open.")
    precision_mode: str | None = opt(
        None, "Ascend: what it is computed in [fp16].",
        choices=("fp16", "origin", "mixed_float16", "cube_fp16in_fp32out"),
    )  # fmt: skip
    aipp: Any = opt(
        None, "Ascend: preprocessing (YAML) that the chip does; the input becomes uint8.", parse=o.preprocessing,
        metavar="FILE",
    )  # fmt: skip
    aipp_image: tuple[int, int] | None = opt(
        None, "Ascend: size of the pictures that come in [the input's].", parse=extents, metavar="HEIGHT,WIDTH"
    )
    atc_options: dict[str, str] = opt(
        {}, "Ascend: an option of atc.", "--atc-option", many=True, parse=atc_options, metavar="NAME=VALUE"
    )
    cann: str | None = opt(
        None, "Ascend: version of CANN that it is judged for [the one found].", metavar="VERSION", hidden=True
    )
    prepare: bool = opt(True, "Ascend: rewrite what atc does not take.", "--prepare/--no-prepare")
    lint: bool = opt(True, "Ascend: check the model before atc does.", "--lint/--no-lint", hidden=True)
    print_command: bool = opt(False, "Ascend: only print the commands.", "--print-command", hidden=True)
    bundle: Path | None = opt(
        None, "Ascend: write a folder or .tar to compile with elsewhere.", parse=Path, metavar="DIR|FILE.tar"
    )
    from_bundle: Path | None = opt(
        None, "Ascend: MODEL is the OM that came of this bundle: check and stamp it.", parse=Path,
        metavar="DIR|FILE.tar",
    )  # fmt: skip
    memory_limit: int | None = opt(None, "Ascend: memory that atc may take.", parse=o.size, metavar="SIZE", hidden=True)
    timeout: float | None = opt(None, "Seconds that it may take.", hidden=True)
    in_process: bool = opt(False, "Run native code in this process.", "--in-process", hidden=True)


@dataclass(frozen=True)
class CompileResult:
    """What was compiled.

    Attributes:
        path: the context binary.
        sidecar: the file with its stamp.
        size: bytes of the binary.
        target: the chip.
        graphs: names of its graphs.
        stamp: the stamp as JSON values.
    """

    path: Path
    sidecar: Path
    size: int
    target: str
    soc_id: int
    arch: int
    graphs: tuple[str, ...]
    stamp: dict[str, Any]
    notes: tuple[str, ...] = ()
    exit_code: int = 0

    def to_json(self) -> dict[str, Any]:
        return {
            "output": str(self.path),
            "sidecar": str(self.sidecar),
            "bytes": self.size,
            "target": self.target,
            "soc_id": self.soc_id,
            "arch": self.arch,
            "graphs": list(self.graphs),
            "stamp": self.stamp,
            "notes": list(self.notes),
        }

    def to_text(self) -> str:
        chip = f"{self.target} (SoC {self.soc_id}, Hexagon V{self.arch})"
        graphs = f"{len(self.graphs)} graphs" if len(self.graphs) > 1 else f"graph {self.graphs[0]}"
        lines = [f"{self.path} ({text.size(self.size)}): {graphs} for {chip}, stamp in {self.sidecar.name}"]
        return "\n".join([*lines, *(f"note: {note}" for note in self.notes)])


_ASCEND = (
    "input_shapes", "symbols", "batch", "precision_mode", "aipp", "aipp_image", "atc_options", "cann", "prepare",
    "lint", "print_command", "bundle", "from_bundle", "memory_limit",
)  # fmt: skip
_QUALCOMM = ("graph", "optimization", "vtcm_mb", "hvx_threads")


@verb(CompileOptions)
def compile(options: CompileOptions) -> CompileResult | OmResult | CommandResult | BundleResult:  # noqa: A001
    """Compile a model for one chip: the graphs of a DLC into a context binary, an ONNX model into an OM.

    Every op is validated against the chip first. What is written at `output` is whole or not there. With `bundle`
    or `print_command` nothing is compiled: the result says what was written or what to run.

    Raises:
        NpukitError: the model is broken, the chip cannot hold an op (all are listed), a library or CANN is missing,
            the compiler died, took too long or too much memory.

    Example:
        >>> result = npukit.compile("digits.dlc", output="digits.bin", target="sm8650")
        >>> result.graphs, result.arch, result.sidecar.name
        (('digits',), 75, 'digits.bin.npukit.json')
    """
    from npukit.targets import target

    chip = target(options.target) if options.target is not None else None
    if options.from_bundle is not None:
        from npukit.verbs.compile_om import adopt

        return adopt(options)
    if chip is not None and chip.backend == "ascend":
        from npukit.verbs.compile_om import compile_om

        _refuse(options, _QUALCOMM, f"{chip.name} is no Qualcomm chip")
        return compile_om(options, chip)
    _refuse(options, _ASCEND, "this is for Ascend chips: add --target ascend310p3")
    with isolated(in_process=options.in_process, timeout=options.timeout) as call:
        result: CompileResult = call("npukit.verbs.compile:_compile", options)
    return result


def _refuse(options: CompileOptions, names: Sequence[str], why: str) -> None:
    """Refuse options that are for other chips."""
    known = specs(CompileOptions)
    faults = []
    for name in names:
        field, spec = known[name]
        default = {} if isinstance(getattr(options, name), dict) else field.default
        if getattr(options, name) != default:
            flag = spec.flags[0] if spec.flags else f"--{name.replace('_', '-')}"
            faults.append(Fault(why, flag.partition("/")[2] or flag))
    if faults:
        raise UsageError("options that do not go together", faults=faults)


def _compile(options: CompileOptions) -> CompileResult:
    from npukit.artifacts import context, dlc
    from npukit.artifacts.stamp import native_stamp
    from npukit.qnn.api import libraries
    from npukit.qnn.api.backend import GraphOptions
    from npukit.qnn.graph import Model
    from npukit.runtime.file_kind import file_kind
    from npukit.runtime.qnn import pick_graph
    from npukit.targets import resolve, target

    if file_kind(options.model) != "dlc":
        hint = "make one first: npukit convert MODEL; for an Ascend chip name it with --target"
        raise UsageError("compile takes a DLC", where=str(options.model), hint=hint)
    log.report("reading the DLC", 0.0)
    model, stamp = dlc.read(options.model)
    if options.target is not None:
        chip = target(options.target)
    else:
        rows = resolve(stamp.targets) if stamp is not None and stamp.targets else ()
        chips = [row for row in rows if row.backend == "qnn-htp"]
        if len(chips) != 1 or len(rows) != 1:
            raise UsageError("which chip?", where="--target", hint="for example --target sm8650; see `npukit targets`")
        chip = chips[0]
    if options.graph is not None:
        graph = pick_graph(model, options.graph, str(options.model))
        model = Model({graph.name: graph}, model.metadata)
    library = libraries.find("htp")
    notes = [] if stamp is not None else ["the DLC has no stamp: the binary takes and gives its native tensors"]
    base = stamp or native_stamp(model)
    made = replace(
        base,
        npukit_version=npukit.__version__,
        qairt_build=library.build_id,
        core_api_version=".".join(map(str, library.core_version)),
        needs_qairt=".".join(library.build_id.lstrip("v").split(".")[:2]),
        targets=(chip.name,),
        options={**base.options, **echo(replace(options, target=None, graph=None))},
        verified="no",
        seed=None,
    )
    graph_options = GraphOptions(
        optimization=None if options.optimization is None else int(options.optimization),
        vtcm_mb=options.vtcm_mb,
        hvx_threads=options.hvx_threads,
    )
    output = options.output or options.model.with_suffix(f".{chip.name}.bin")
    context.compile(model, chip, output, made, options=graph_options, progress=log.report)
    return CompileResult(
        output,
        context.sidecar(output),
        output.stat().st_size,
        chip.name,
        chip.soc_id or 0,
        chip.arch or 0,
        tuple(model.graphs),
        made.to_dict(),
        tuple(notes),
    )

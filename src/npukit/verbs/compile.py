# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""`npukit compile`: a DLC becomes an HTP context binary for one chip."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import npukit
from npukit import log
from npukit.analysis import text
from npukit.errors import UsageError
from npukit.verbs.isolate import isolated
from npukit.verbs.options import arg, echo, opt, verb


@dataclass(frozen=True)
class CompileOptions:
    """Compile a DLC to an HTP context binary for a chip. The stamp goes beside it, as NAME.npukit.json."""

    model: Path = arg("the DLC")
    output: Path | None = opt(
        None, "The binary to write [MODEL.TARGET.bin].", "-o", "--out", parse=Path, metavar="FILE"
    )
    target: str | None = opt(None, "The chip [the only one that the DLC was converted for].", metavar="NAME")
    graph: str | None = opt(None, "Compile only this graph.", metavar="NAME")
    optimization: int | None = opt(None, "Effort of the compiler, 1 to 3 [the library's].", choices=("1", "2", "3"))
    vtcm_mb: int | None = opt(None, "VTCM to use in MB, 0 for all [the library's].")
    hvx_threads: int | None = opt(None, "Vector threads to use [the library's].")
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


@verb(CompileOptions)
def compile(options: CompileOptions) -> CompileResult:  # noqa: A001 - the verb that it is
    """Compile the graphs of a DLC for one chip into a context binary at `output`.

    Every op is validated against the chip first.

    Raises:
        NpukitError: the DLC is broken, the chip cannot hold an op (all are listed), a library is missing or died.

    Example:
        >>> result = npukit.compile("digits.dlc", output="digits.bin", target="sm8650")
        >>> result.graphs, result.arch, result.sidecar.name
        (('digits',), 75, 'digits.bin.npukit.json')
    """
    with isolated(in_process=options.in_process, timeout=options.timeout) as call:
        result: CompileResult = call("npukit.verbs.compile:_compile", options)
    return result


def _compile(options: CompileOptions) -> CompileResult:
    from npukit.artifacts import context, dlc
    from npukit.artifacts.stamp import native_stamp
    from npukit.qnn.api import libraries
    from npukit.qnn.api.backend import GraphOptions
    from npukit.qnn.graph import Model
    from npukit.runtime.qnn import pick_graph
    from npukit.runtime.session import file_kind
    from npukit.targets import resolve, target

    if file_kind(options.model) != "dlc":
        raise UsageError("compile takes a DLC", where=str(options.model), hint="make one first: npukit convert MODEL")
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

# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""`npukit export`: a DLC or model library, whoever made it, becomes an ONNX model that ONNX Runtime runs.

With an Ascend target, an ONNX model becomes one that atc takes.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from npukit import log
from npukit.analysis import text
from npukit.ascend.limits import DEFAULT_CANN, PRECISIONS
from npukit.errors import UsageError
from npukit.verbs.convert import ConvertOptions
from npukit.verbs.export_onnx import export_onnx
from npukit.verbs.isolate import isolated
from npukit.verbs.options import arg, like, opt, verb

if TYPE_CHECKING:
    from npukit.analysis.verify import Verification
    from npukit.qnn.graph import Model


@dataclass(frozen=True)
class ExportOptions:
    """Turn a DLC or model library into an ONNX model.

    Ops without ONNX expression are kept as nodes of domain qti.aisw and listed. The code in a model library (.so, .dll)
    is run to read it: export only one that you trust.

    With --target ascend310p3 an ONNX model becomes one in the ops, forms and dtypes that atc and the chip take, and is
    compared with its source.
    """

    model: Path = arg("the DLC, model library, or (with --target) ONNX model")
    output: Path | None = opt(
        None, "The ONNX file to write [MODEL.onnx, MODEL.TARGET.onnx].", "-o", "--out", parse=Path, metavar="FILE"
    )
    target: str | None = opt(None, "The Ascend chip that an ONNX model is prepared for.", metavar="NAME")
    cann: str = opt(DEFAULT_CANN, "CANN version whose atc will compile it (Ascend).", metavar="VERSION")
    precision_mode: str = opt(PRECISIONS[0], "Precision mode that atc will be given (Ascend).", choices=PRECISIONS)
    input_shapes: dict[str, tuple[int, ...]] = like(ConvertOptions, "input_shapes")
    symbols: dict[str, int] = like(ConvertOptions, "symbols")
    batch: int | None = like(ConvertOptions, "batch")
    input_ranges: dict[str, tuple[float, float]] = like(ConvertOptions, "input_ranges")
    verify: bool = opt(True, "Compare the result with the source (Ascend).", "--verify/--no-verify", hidden=True)
    graph: str | None = opt(None, "Graph to export, where the file holds several.", metavar="NAME")
    quantized: str = opt("qdq", "Encodings as Q/DQ nodes, or ignored.", choices=("qdq", "float"))
    timeout: float | None = opt(None, "Seconds that it may take.")
    in_process: bool = opt(False, "Run native code in this process.", "--in-process")


@dataclass(frozen=True)
class ExportResult:
    """What was exported.

    Attributes:
        path: the ONNX file.
        size: its bytes, external weights included.
        graph: name of the graph.
        ops: QNN ops of the graph.
        nodes: nodes of the model.
        opset: of ai.onnx.
        kept: type and number of the ops that have no ONNX expression.
        applied: what the passes for the target did; without one nothing.
        verification: the comparison with the source (with a target).
        skipped: why it was left out.
    """

    path: Path
    size: int
    graph: str
    ops: int
    nodes: int
    opset: int
    kept: dict[str, int]
    applied: tuple[str, ...] = ()
    verification: Verification | None = None
    skipped: str = ""

    @property
    def exit_code(self) -> int:
        return 0 if self.verification is None else self.verification.exit_code

    def to_json(self) -> dict[str, Any]:
        return {
            "output": str(self.path),
            "bytes": self.size,
            "graph": self.graph,
            "ops": self.ops,
            "nodes": self.nodes,
            "opset": self.opset,
            "kept": self.kept,
            "applied": list(self.applied),
            "verification": None if self.verification is None else self.verification.to_json(),
            "skipped": self.skipped,
        }

    def to_text(self) -> str:
        if not self.ops:
            lines = [f"{self.path} ({text.size(self.size)}): {self.nodes} nodes, opset {self.opset}", *self.applied]
            lines += [self.verification.to_text()] if self.verification is not None else []
            return "\n".join([*lines, *([f"not compared with the source: {self.skipped}"] if self.skipped else [])])
        head = f"{self.path} ({text.size(self.size)}): {self.ops} QNN ops -> {self.nodes} nodes, opset {self.opset}"
        if not self.kept:
            return head
        kept = ", ".join(f"{name} ({count})" if count > 1 else name for name, count in self.kept.items())
        return f"{head}\nkept as they are, which ONNX Runtime by itself does not run: {kept}"


@verb(ExportOptions)
def export(options: ExportOptions) -> ExportResult:
    """Write the graph of a DLC or model library as ONNX to `output`, with native tensors in and out under their names.

    With an Ascend `target`, write an ONNX model so that atc takes it, with its own inputs and outputs.

    Raises:
        NpukitError: the file is neither, or is broken; the output cannot be written.

    Example:
        >>> result = npukit.export("digits.dlc", output="back.onnx")
        >>> result.graph, result.kept
        ('digits', {})
    """
    with isolated(in_process=options.in_process, timeout=options.timeout) as call:
        if options.target is not None:
            made = export_onnx(options, call)
            return ExportResult(
                made.path, made.size, "", 0, made.nodes, made.opset, {}, made.applied, made.verification, made.skipped
            )
        result: ExportResult = call("npukit.verbs.export:_export", options)
    return result


def _export(options: ExportOptions) -> ExportResult:
    from npukit.frontends.onnx.write_model import write_model
    from npukit.qnn.opdefs import PACKAGE
    from npukit.raising import raise_graph, unraised
    from npukit.runtime.qnn import pick_graph

    output = options.output or options.model.with_suffix(".onnx")
    log.report(f"reading {options.model.name}", 0.0)
    model = _read(options.model)
    graph = pick_graph(model, options.graph, str(options.model))
    log.report("raising", 0.3)
    raised = raise_graph(graph, quantized=options.quantized)  # type: ignore[arg-type]
    kept: dict[str, int] = {}
    for node in unraised(raised):
        name = node.op_type if node.domain == PACKAGE else f"{node.domain}::{node.op_type}"
        kept[name] = kept.get(name, 0) + 1
    log.report("writing", 0.6)
    size = write_model(raised, output)
    nodes = sum(1 for _ in raised.graph)
    opset = raised.opset_imports.get("", 0)
    return ExportResult(output, size, graph.name, len(graph.ops), nodes, opset, kept)


def _read(path: Path) -> Model:
    from npukit.artifacts import dlc
    from npukit.qnn.api.capture import capture_library
    from npukit.runtime.file_kind import file_kind

    if path.suffix.lower() in (".so", ".dll") and path.is_file():
        return capture_library(path)
    kind = file_kind(path)
    if kind != "dlc":
        what = "it is ONNX already" if kind == "onnx" else "a context binary holds compiled code, not a graph"
        raise UsageError(what, where=str(path), hint="export takes a DLC or a model library, ONNX only with --target")
    return dlc.read(path)[0]

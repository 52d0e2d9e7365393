# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""`npukit export --target ascend310p3`: an ONNX model becomes one that atc takes, and is compared with its source."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from npukit import files, log
from npukit.analysis import text
from npukit.errors import UsageError

if TYPE_CHECKING:
    from npukit.analysis.verify import Verification
    from npukit.verbs.export import ExportOptions

_LIMIT_BYTES = 2_000_000_000  # of weights: above this a comparison needs too much memory


@dataclass(frozen=True)
class Written:
    """What was written.

    Attributes:
        path: the ONNX file, OUT.rejected where the comparison failed.
        size: its bytes, external weights included.
        nodes: of the model.
        opset: of ai.onnx.
        applied: what the passes did, one line each.
        verification: the comparison with the source; None where it was left out.
        skipped: why it was left out.
    """

    path: Path
    size: int
    nodes: int
    opset: int
    applied: tuple[str, ...]
    verification: Verification | None = None
    skipped: str = ""


def export_onnx(options: ExportOptions, call: Callable[..., Any]) -> Written:
    """Prepare, compare, put in place; see `npukit.verbs.export.export`."""
    from npukit.targets import target

    assert options.target is not None
    chip = target(options.target)
    if chip.backend != "ascend":
        hint = "a QNN chip takes a DLC: npukit convert MODEL"
        raise UsageError(f"no ONNX is made for {chip.name}", where="--target", hint=hint)
    output = options.output or options.model.with_suffix(f".{chip.name}.onnx")
    if output.resolve() == options.model.resolve():
        raise UsageError("this is the source itself", where=str(output), hint="give another name with -o")
    folder = files.temporary_folder_beside(output)
    try:
        written: Written = call("npukit.verbs.export_onnx:_prepare", options, folder / output.name)
        outcome = None
        if not written.skipped:
            outcome = call("npukit.verbs.export_onnx:_compare", options, folder / output.name)
        rejected = outcome is not None and not outcome.passed
        place = output.with_name(f"{output.name}.rejected") if rejected else output
        with files.os_errors(place, "written"):
            for data in sorted(folder.glob("*.data")):  # first the weights, then what refers to them
                os.replace(data, output.parent / data.name)
            os.replace(folder / output.name, place)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return Written(place, written.size, written.nodes, written.opset, written.applied, outcome, written.skipped)


def _prepare(options: ExportOptions, path: Path) -> Written:
    from npukit.ascend import prepare
    from npukit.frontends.onnx import LoadOptions
    from npukit.frontends.onnx.write_model import write_model

    log.report(f"reading {options.model.name}", 0.0)
    load = LoadOptions(options.input_shapes, options.symbols, options.batch)
    model, applied = prepare(
        options.model, options.target or "", options.cann, precision=options.precision_mode, options=load
    )
    log.report("writing", 0.5)
    size = write_model(model, path)
    skipped = "" if options.verify else "asked for with --no-verify"
    if size > _LIMIT_BYTES:
        skipped = skipped or f"{text.size(size)} are above {text.size(_LIMIT_BYTES)}"
    opened = [v.name for v in model.graph.inputs if v.shape is None or not v.shape.is_static()]
    if opened:
        skipped = skipped or f"the shape of {', '.join(map(repr, opened))} is open"
    nodes = sum(1 for _ in model.graph)
    return Written(path, size, nodes, model.opset_imports[""], tuple(map(str, applied)), skipped=skipped)


def _compare(options: ExportOptions, path: Path) -> Verification:
    from npukit.analysis.compare import CRITERIA
    from npukit.verbs.verify import VerifyOptions, verify_here

    log.report("comparing with the source", 0.7)
    # mode origin narrows the operands of products
    row = CRITERIA["float16" if options.precision_mode == "origin" else "float32"]
    given = VerifyOptions(
        path, options.model, min_sqnr=row.min_sqnr, max_error=row.max_error, input_ranges=options.input_ranges,
        in_process=True,
    )  # fmt: skip
    return verify_here(given)[0]

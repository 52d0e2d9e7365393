# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""`npukit lint`: everything that stands in the way of a conversion, or that one should know before it, at once."""

from __future__ import annotations

import contextlib
import dataclasses
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from npukit.ascend.limits import DEFAULT_CANN, PRECISIONS
from npukit.ascend.limits import RULES as ASCEND_RULES
from npukit.errors import Fault, LoweringError, MissingDependency
from npukit.verbs import convert as conversion
from npukit.verbs.contract import contract_inputs, contract_outputs
from npukit.verbs.isolate import isolated
from npukit.verbs.options import arg, like, opt, specs, verb

if TYPE_CHECKING:
    import onnx_ir as ir

    from npukit.lowering import Lowered
    from npukit.qnn.graph import Array, Op, Tensor
    from npukit.targets import Target

_SHOWN = 10  # findings of one rule in the text; the JSON holds all
_FLOAT16_MAX = 65504.0

ERROR, WARNING, NOTE = LEVELS = ("error", "warning", "note")

# Rule -> level and what it says once above its findings.
RULES: dict[str, tuple[str, str]] = {
    "unconvertible": (ERROR, "cannot be converted"),
    "unvalidated": (WARNING, "ops were not checked by the library"),
    "narrowed-io": (WARNING, "inputs and outputs held in a narrower dtype (values beyond it are refused at run time)"),
    "unproven": (WARNING, "inner integers held as INT_32 without a proof that they fit"),
    "float64": (WARNING, "inner float64 values held in a narrower dtype"),
    "float16-range": (WARNING, "constants beyond 65504, the largest number of float16, which the target computes in"),
    "float-op": (WARNING, "ops that run in float in a quantized model"),
    "form": (NOTE, "forms that were not taken"),
    "front-end": (NOTE, "what the front end did"),
    "quirk": (NOTE, "ops that a target computes in its own way"),
    "transpose": (NOTE, "transposes in the graph"),
    "constant-output": (NOTE, "outputs that are constants, and not in the artifact"),
    "unused-input": (NOTE, "inputs on which nothing depends"),
    **ASCEND_RULES,
}


@dataclass(frozen=True)
class LintOptions:
    """Show all that stands in the way of a conversion, and what one should know of it; writes nothing.

    Exits 1 when the model cannot be converted for the targets, and with --strict also when there are warnings.
    """

    model: Path = arg("the model (.onnx)")
    target: tuple[str, ...] = like(conversion.ConvertOptions, "target")
    input_shapes: dict[str, tuple[int, ...]] = like(conversion.ConvertOptions, "input_shapes")
    symbols: dict[str, int] = like(conversion.ConvertOptions, "symbols")
    batch: int | None = like(conversion.ConvertOptions, "batch")
    inputs: tuple[tuple[str, Any], ...] = opt(
        (), "A tensor to begin at.", "--input", many=True, parse=conversion.input_specs, metavar="NAME[=SHAPE]"
    )
    outputs: tuple[str, ...] = like(conversion.ConvertOptions, "outputs")
    float_bitwidth: int = like(conversion.ConvertOptions, "float_bitwidth")
    io_layout: str = like(conversion.ConvertOptions, "io_layout")
    io_config: Any = like(conversion.ConvertOptions, "io_config")
    cann: str = opt(DEFAULT_CANN, "CANN version whose atc will compile it (Ascend).", metavar="VERSION")
    precision_mode: str = opt(PRECISIONS[0], "Precision mode that atc will be given (Ascend).", choices=PRECISIONS)
    strict: bool = opt(False, "Let warnings count as failure.", "--strict")
    timeout: float | None = opt(None, "Seconds that it may take.")
    in_process: bool = opt(False, "Run native code in this process.", "--in-process")


@dataclass(frozen=True)
class Finding:
    """One thing found.

    Attributes:
        rule: a key of `RULES`.
        what: one sentence; empty where the rule says it all.
        where: the node or tensor.
        hint: what to do about it.
        fix: the pass that does it (Ascend).
        source: where the limit is documented (Ascend).
    """

    rule: str
    what: str = ""
    where: str = ""
    hint: str = ""
    fix: str = ""
    source: str = ""

    @property
    def level(self) -> str:
        """One of `LEVELS`."""
        return RULES[self.rule][0]

    def to_json(self) -> dict[str, str]:
        """As one JSON-ready object."""
        fields = dataclasses.asdict(self)
        return {"level": self.level, **{k: v for k, v in fields.items() if v or k not in ("fix", "source")}}

    def to_text(self) -> str:
        """As one or two lines."""
        if not self.what:
            return self.where
        ways = [self.hint] if self.hint else []
        ways += [f"npukit export --target does it (pass {self.fix})"] if self.fix else []
        return str(Fault(self.what, self.where, "; ".join(ways)))


@dataclass(frozen=True)
class LintResult:
    """What was found, errors first.

    Attributes:
        model: name of the file.
        targets: what it was checked for.
        findings: everything found.
        strict: whether warnings count as failure.
    """

    model: str
    targets: tuple[str, ...]
    findings: tuple[Finding, ...]
    strict: bool = False

    @property
    def exit_code(self) -> int:
        count = self.count
        return int(bool(count[ERROR] or (self.strict and count[WARNING])))

    @property
    def count(self) -> Counter[str]:
        """How many findings of each level."""
        return Counter(finding.level for finding in self.findings)

    def to_json(self) -> dict[str, Any]:
        """As one JSON-ready object."""
        return {
            "model": self.model,
            "targets": list(self.targets),
            "convertible": not self.count[ERROR],
            "errors": self.count[ERROR],
            "warnings": self.count[WARNING],
            "notes": self.count[NOTE],
            "findings": [finding.to_json() for finding in self.findings],
        }

    def to_text(self) -> str:
        lines = []
        for rule, (level, title) in RULES.items():
            found = [finding for finding in self.findings if finding.rule == rule]
            if not found:
                continue
            lines.append(f"{level} [{rule}] {title}: {len(found)}")
            shown = found if level == ERROR else found[:_SHOWN]
            lines += [f"  {finding.to_text()}" for finding in shown]
            if len(found) > len(shown):
                lines.append(f"  and {len(found) - len(shown)} more (--json lists all)")
        count = ", ".join(_plural(self.count[level], level) for level in LEVELS)
        can = "cannot be converted" if self.count[ERROR] else "can be converted"
        return "\n".join([*lines, f"{self.model} {can} for {', '.join(self.targets)}: {count}"])


def _plural(count: int, word: str) -> str:
    return f"{count} {word}{'' if count == 1 else 's'}"


@verb(LintOptions)
def lint(options: LintOptions) -> LintResult:
    """Read `model` and lower it as `convert` would, and list what was found.

    Without Qualcomm's libraries ops are not validated by them; a warning says so. For an Ascend chip the file is
    judged as it is, against what this version of atc and the chip are documented to take.

    Raises:
        NpukitError: the model is broken, or needs an option (a shape).

    Example:
        >>> result = npukit.lint("digits.onnx", target=["qnn-cpu"])
        >>> result.exit_code, result.to_json()["errors"], result.to_json()["warnings"]
        (0, 0, 0)
    """
    from npukit.targets import resolve

    targets = resolve(options.target)
    qnn = tuple(target.name for target in targets if target.backend != "ascend")
    found: list[Finding] = []
    with isolated(in_process=options.in_process, timeout=options.timeout) as call:
        if qnn:
            found += call("npukit.verbs.lint:_lint", dataclasses.replace(options, target=qnn))
        if len(qnn) < len(targets):
            found += call("npukit.verbs.lint:_lint_ascend", options)
    order = {rule: i for i, rule in enumerate(RULES)}
    findings = tuple(sorted(found, key=lambda finding: order[finding.rule]))
    return LintResult(options.model.name, tuple(target.name for target in targets), findings, options.strict)


# ---------------------------------------------------------------- in the worker


def _lint(options: LintOptions) -> list[Finding]:
    from npukit.targets import resolve

    targets = resolve(options.target)
    chosen = _as_conversion(options)
    found: list[Finding] = []
    with contextlib.ExitStack() as stack:
        validators = {}
        for target in targets:
            try:
                validators[target.name] = conversion.validator(target, stack)
            except MissingDependency as error:
                found.append(Finding("unvalidated", error.what, target.name, error.hint))
        try:
            normalized, lowered, notes = conversion.lower_source(chosen, targets, validators)
        except LoweringError as error:
            faults = error.faults or (Fault(error.what, error.where, error.hint),)
            return [*found, *(Finding("unconvertible", fault.what, fault.where, fault.hint) for fault in faults)]
    found += [Finding("front-end", note) for note in notes]
    found += [Finding("front-end", "cut off by the options", name) for name in normalized.cut]
    order = [value.name or "" for value in normalized.model.graph.inputs]
    for side, contract in (
        ("input", contract_inputs(lowered, order)),
        ("output", contract_outputs(lowered, normalized.model)),
    ):
        narrow = [io for io in contract if io.narrowed]
        found += [Finding("narrowed-io", f"{io.dtype} held as {io.held_dtype}", f"{side} {io.name!r}") for io in narrow]
    found += _narrowed_inside(normalized.model, lowered)
    found += _beyond_float16(normalized.model, lowered, targets, options)
    found += _float_ops(lowered)
    found += _report_notes(lowered)
    found += _quirks(lowered, targets)
    found += [Finding("transpose", where=_place(op)) for op in lowered.graph.ops if op.type == "Transpose"]
    found += [Finding("constant-output", where=name) for name in lowered.folded]
    found += [Finding("unused-input", where=held.source) for held in lowered.unused]
    return found


def _as_conversion(options: LintOptions) -> conversion.ConvertOptions:
    shared = set(specs(conversion.ConvertOptions)) & set(specs(LintOptions))
    return conversion.ConvertOptions(**{name: getattr(options, name) for name in shared})


def _lint_ascend(options: LintOptions) -> list[Finding]:
    """What atc and the chip do not take; the chips of the table have one set of limits."""
    from npukit.ascend.checker import check

    shapes = conversion.load_options(_as_conversion(options))
    found = check(options.model, cann=options.cann, precision=options.precision_mode, options=shapes)
    return [Finding(p.rule, p.what, p.where, p.hint, p.fix, p.source) for p in found]


def _place(op: Op) -> str:
    """The op, and the source nodes it stands for where their names are others."""
    origin = ", ".join(op.origin)
    return f"{op.type} of {origin!r}" if origin else f"{op.type} {op.name!r}"


def _narrowed_inside(model: ir.Model, lowered: Lowered) -> Iterator[Finding]:
    """Inner tensors of a dtype that their tensor cannot hold, but where the integers provably fit.

    Session checks inputs against what holds them, so that those of 64 bits count as int32 here.
    """
    import onnx_ir as ir

    from npukit.frontends.onnx.ranges import INT32, Ranges

    integers = {ir.DataType.INT64, ir.DataType.UINT64, ir.DataType.UINT32}
    checked = {v.name or "": INT32 for v in model.graph.inputs if v.dtype in integers}
    ranges = Ranges(checked)
    held = {tensor.name: tensor for tensor in lowered.graph.tensors()}
    outputs = {value.name for value in model.graph.outputs}
    for node in model.graph:
        for value in node.outputs:
            tensor = held.get(lowered.names.get(value.name or "", ""))
            if tensor is None or value.name in outputs or value.dtype is None:
                continue
            where = f"{node.op_type} {node.name!r}: tensor {value.name!r}"
            if value.dtype in integers and tensor.dtype.name == "INT_32" and not ranges.fits_int32(value):
                low, high = ranges.of(value)
                yield Finding("unproven", f"{value.dtype.name.lower()} values may be {low} to {high}", where)
            elif value.dtype == ir.DataType.DOUBLE and tensor.dtype.is_float:
                yield Finding("float64", f"held as {tensor.dtype.name}", where)


def _beyond_float16(
    model: ir.Model, lowered: Lowered, targets: Sequence[Target], options: LintOptions
) -> Iterator[Finding]:
    """Finite float constants that float16 cannot hold, where floats are held or computed in it."""
    if int(options.float_bitwidth) == 16:
        for name, value in model.graph.initializers.items():
            users = [use.node for use in value.uses()]
            if users and value.const_value is not None and value.dtype is not None and value.dtype.is_floating_point():
                worst = _extreme(value.const_value.numpy())
                if abs(worst) > _FLOAT16_MAX:
                    where = f"{users[0].op_type} {users[0].name!r}: constant {name!r}"
                    yield Finding("float16-range", f"{worst:.4g} becomes infinite", where)
        return
    if not any("float32_computed_in_float16" in target.quirks for target in targets):
        return
    statics: dict[int, tuple[Tensor, Op]] = {}
    for op in lowered.graph.ops:
        for tensor in op.inputs:
            if tensor is not None and tensor.data is not None and tensor.dtype.is_float:
                statics.setdefault(id(tensor), (tensor, op))
    for tensor, op in statics.values():
        assert tensor.data is not None
        worst = _extreme(tensor.data)
        if abs(worst) > _FLOAT16_MAX:
            what = f"{worst:.4g} becomes {'-' if worst < 0 else ''}{_FLOAT16_MAX:.0f}"
            yield Finding("float16-range", what, f"{_place(op)}: constant {tensor.name!r}")


def _extreme(array: Array) -> float:
    """The finite element that is farthest from zero."""
    import numpy as np

    if not array.size:
        return 0.0
    low, high = float(array.min()), float(array.max())
    if not np.isfinite(low + high):  # infinities and NaN stay what they are
        finite = array[np.isfinite(array.astype(np.float64))]
        low, high = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 0.0)
    return high if high > -low else low


_BETWEEN = frozenset(("Quantize", "Dequantize", "Convert", "Cast"))


def _float_ops(lowered: Lowered) -> Iterator[Finding]:
    """In a graph with integer codes, source nodes whose ops make floats; with the reason if known."""
    graph = lowered.graph
    if not any(tensor.dtype.is_quantized for op in graph.ops for tensor in op.outputs):
        return
    reasons = {row.node: note for row in lowered.report for note in row.notes if note.startswith("runs in float")}
    types = {row.node: row.op for row in lowered.report}
    seen = set()
    for op in graph.ops:
        floats = op.type not in _BETWEEN and any(tensor.dtype.is_float for tensor in op.outputs)
        for source in op.origin if floats else ():
            if source not in seen:
                seen.add(source)
                reason = reasons.get(source, "").removeprefix("runs in float: ")
                hint = "" if reason else "Q/DQ pairs on all its inputs and outputs make it run on integers"
                yield Finding("float-op", reason or "not every float at it has an encoding",
                              f"{types.get(source, op.type)} {source!r}", hint)  # fmt: skip


def _report_notes(lowered: Lowered) -> Iterator[Finding]:
    for row in lowered.report:
        for note in row.notes:
            if not note.startswith("runs in float"):
                yield Finding("form", note, f"{row.op} {row.node!r}")


def _quirks(lowered: Lowered, targets: Sequence[Target]) -> Iterator[Finding]:
    """Source ops that stay touched by a quirk, whatever their lowering does about it."""
    from npukit.targets import QUIRKS

    for quirk in QUIRKS.values():
        names = [target.name for target in targets if quirk.name in target.quirks]
        if not names:
            continue
        for row in lowered.report:
            if row.op in quirk.ops:
                yield Finding("quirk", f"{quirk.what} ({', '.join(names)})", f"{row.op} {row.node!r}")

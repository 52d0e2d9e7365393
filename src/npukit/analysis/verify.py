# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""Run a model and its reference on the same inputs and judge every output.

The two sides are sessions (or anything with their `inputs`, `outputs`, `backend` and `run`); what judges is
`npukit.analysis.compare`.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from npukit import log as progress
from npukit.analysis import compare, saturation, text
from npukit.analysis.samples import Array, InputInfo, Samples
from npukit.errors import Fault, InputError, nearest
from npukit.qnn.graph import Encoding

if TYPE_CHECKING:
    from npukit.ascend.emulate import Saturation

log = logging.getLogger(__name__)

_BINS = 41
_POINTS = 600


class Runner(Protocol):
    """What is needed of a side; a `Session` has it."""

    @property
    def inputs(self) -> Sequence[InputInfo]: ...
    @property
    def outputs(self) -> Sequence[InputInfo]: ...
    @property
    def backend(self) -> str: ...
    def run(self, feeds: Mapping[str, Any], /) -> Mapping[str, Any]:
        """Output arrays by name."""


@dataclass(frozen=True)
class IndexOutput:
    """An output that holds positions along `axis` of the reference's tensor `data` (ArgMax, TopK)."""

    data: str
    axis: int


@dataclass(frozen=True)
class Plot:
    """What the report draws of one output's first sample.

    Attributes:
        edges: bin edges of the error histogram.
        counts: elements a bin.
        reference: reference values of some elements, evenly picked.
        actual: the values judged, of the same elements.
    """

    edges: tuple[float, ...]
    counts: tuple[int, ...]
    reference: tuple[float, ...]
    actual: tuple[float, ...]


@dataclass(frozen=True)
class OutputResult:
    """What came of one output.

    Attributes:
        name: in the source model.
        dtype: of the reference's values.
        shape: of the reference's values.
        metrics: the worst figures over all samples; None where nothing could be compared.
        samples: the figures of each sample.
        faults: why it did not pass, one sentence each; empty if it did.
        plot: what the report draws, None for outputs that cannot be drawn.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    metrics: compare.Metrics | None
    samples: tuple[compare.Metrics, ...] = ()
    faults: tuple[str, ...] = ()
    plot: Plot | None = None

    @property
    def passed(self) -> bool:
        return not self.faults

    def to_json(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "dtype": self.dtype,
            "shape": list(self.shape),
            "passed": self.passed,
            "faults": list(self.faults),
            "metrics": None if self.metrics is None else self.metrics.to_json(),
            "samples": [m.to_json() for m in self.samples],
        }


@dataclass(frozen=True)
class Verification:
    """The outcome of a verification.

    Attributes:
        model: file name of what was judged.
        reference: file name of what it was judged by.
        backend: backend that ran the model.
        reference_backend: backend that ran the reference.
        precision: row of `compare.CRITERIA` that the limits come from.
        criteria: the limits.
        inputs: where the inputs come from, one line.
        origin: "given", "test_data_set" or "generated".
        seed: of generated inputs.
        sample_count: how many runs were compared.
        outputs: one result an output.
        notes: what else one should know.
        diverges: the first tensor inside that diverges, where that was looked for.
        emulated: the chip whose arithmetic was emulated, with the precision mode; empty for none.
        saturations: the tensors that it saturated. That alone is no failure: what counts is the outputs.
    """

    model: str
    reference: str
    backend: str
    reference_backend: str
    precision: str
    criteria: compare.Criteria
    inputs: str
    origin: str
    seed: int | None
    sample_count: int
    outputs: tuple[OutputResult, ...]
    notes: tuple[str, ...] = ()
    diverges: str = ""
    emulated: str = ""
    saturations: tuple[Saturation, ...] = ()

    @property
    def passed(self) -> bool:
        return bool(self.outputs) and all(output.passed for output in self.outputs)

    @property
    def exit_code(self) -> int:
        return 0 if self.passed else 1

    def to_json(self) -> dict[str, Any]:
        """As one JSON-ready object."""
        return {
            "passed": self.passed,
            "model": self.model,
            "reference": self.reference,
            "backend": self.backend,
            "reference_backend": self.reference_backend,
            "precision": self.precision,
            "criteria": self.criteria.to_json(),
            "inputs": {"origin": self.origin, "seed": self.seed, "samples": self.sample_count, "text": self.inputs},
            "outputs": [output.to_json() for output in self.outputs],
            "notes": list(self.notes),
            "diverges": self.diverges,
            "emulated": self.emulated,
            "saturations": [one.to_json() for one in self.saturations],
        }

    def to_text(self) -> str:
        """The console table."""
        lines = [
            f"{self.model} on {self.backend} against {self.reference} on {self.reference_backend}, {self.inputs}",
            text.table(HEAD, [row(output) for output in self.outputs]),
        ]
        lines += [f"{output.name}: {fault}" for output in self.outputs for fault in output.faults]
        if self.diverges:
            lines.append(self.diverges)
        lines += saturation.lines(self.emulated, self.saturations)
        lines += [f"note: {note}" for note in self.notes]
        lines.append(f"{'PASSED' if self.passed else 'FAILED'} ({self.limits()})")
        return "\n".join(lines)

    def limits(self) -> str:
        """The limits in words."""
        c = self.criteria
        parts = [
            f"SQNR >= {c.min_sqnr:g} dB" if c.min_sqnr is not None else "",
            f"error <= {c.max_error:g} of the range" if c.max_error is not None else "",
            f"cosine >= {c.min_cosine:g}" if c.min_cosine is not None else "",
        ]
        return f"{self.precision}: " + ", ".join(p for p in parts if p)


HEAD = ("output", "shape", "", "SQNR dB", "max error", "of range", "mean error", "cosine", "within", "equal", "top-1")


def row(output: OutputResult) -> tuple[object, ...]:
    """The cells of one output under HEAD."""
    m = output.metrics
    shape = f"{output.dtype} {text.shape(output.shape)}"
    state = "ok" if output.passed else "FAIL"
    if m is None:
        return (output.name, shape, state, *([None] * (len(HEAD) - 3)))
    sqnr = "exact" if m.max_abs == 0 else "-" if m.sqnr_db is None else f"{m.sqnr_db:.1f}"
    top = None if m.argmax is None else f"{m.argmax:.1%}"
    return (
        output.name,
        shape,
        state,
        sqnr,
        f"{m.max_abs:.3g}",
        f"{m.max_share:.2e}" if m.max_share else "0",
        f"{m.mean_abs:.3g}",
        f"{m.cosine:.6f}",
        f"{m.within:.1%}",
        f"{m.exact:.1%}",
        top,
    )


@dataclass(frozen=True)
class Plan:
    """How two sides are compared.

    Attributes:
        precision: row of `compare.CRITERIA`; "float16" also lets 65504 stand for infinity.
        criteria: the limits.
        indices: outputs that hold positions in another tensor of the reference, by output name.
        model: file name for the outcome.
        reference: file name for the outcome.
        plots: whether to keep what the report draws.
        codes: outputs of the reference whose integers are codes -> their encoding; the real numbers are compared.
    """

    precision: str
    criteria: compare.Criteria
    indices: Mapping[str, IndexOutput] = field(default_factory=dict)
    model: str = "model"
    reference: str = "reference"
    plots: bool = True
    codes: Mapping[str, Encoding] = field(default_factory=dict)


def verify(model: Runner, reference: Runner, samples: Samples, plan: Plan, notes: Sequence[str] = ()) -> Verification:
    """Run both sides on every sample and judge every output of the model.

    Outputs are paired by name; where no name is shared and the counts are equal, by position, with a note.

    Raises:
        InputError: an output of the model has no counterpart in the reference.
    """
    pairs, remarks = pair_outputs([o.name for o in model.outputs], [o.name for o in reference.outputs], plan.indices)
    takes = {info.name for info in model.inputs}
    wants = {info.name for info in reference.inputs}
    figures: dict[str, list[compare.Metrics]] = {name: [] for name in pairs}
    faults: dict[str, list[str]] = {name: [] for name in pairs}
    plots: dict[str, Plot | None] = {}
    shapes: dict[str, tuple[str, tuple[int, ...]]] = {}
    saturation = compare.FLOAT16_MAX if plan.precision == "float16" else None
    count = len(samples.runs)
    for i, sample in enumerate(samples.runs):
        progress.report(f"verifying sample {i + 1} of {count}", i / count)
        expected = reference.run({k: v for k, v in sample.items() if k in wants})
        got = model.run({k: v for k, v in sample.items() if k in takes})
        for name, source in pairs.items():
            right, judged = np.asarray(expected[source]), np.asarray(got[name])
            shapes.setdefault(name, (right.dtype.name, right.shape))
            near = False
            if source in plan.codes:
                near = right.shape == judged.shape and _steps(right, judged) <= plan.criteria.max_code_error
                right, judged = (_real(codes, plan.codes[source]) for codes in (right, judged))
            try:
                metrics = _compare(name, right, judged, expected, plan, saturation)
            except InputError as error:
                faults[name].append(f"sample {i}: {error.what}")
                continue
            figures[name].append(metrics)
            prefix = f"sample {i}: " if count > 1 else ""
            faults[name] += [prefix + fault for fault in compare.judge(metrics, plan.criteria) if not near]
            if plan.plots and name not in plots:
                plots[name] = _plot(right, judged)
    progress.report("verified", 1.0)
    return Verification(
        model=plan.model,
        reference=plan.reference,
        backend=model.backend,
        reference_backend=reference.backend,
        precision=plan.precision,
        criteria=plan.criteria,
        inputs=samples.describe(),
        origin=samples.origin,
        seed=samples.seed,
        sample_count=count,
        outputs=tuple(
            OutputResult(
                name,
                *shapes.get(name, ("", ())),
                metrics=compare.worst(figures[name]) if figures[name] else None,
                samples=tuple(figures[name]),
                faults=_shorten(faults[name]),
                plot=plots.get(name),
            )
            for name in pairs
        ),
        notes=(*notes, *remarks),
    )


def _steps(right: Array, judged: Array) -> int:
    """The largest difference of two arrays of codes."""
    return int(np.abs(right.astype(np.int64) - judged.astype(np.int64)).max(initial=0))


def _real(codes: Array, encoding: Encoding) -> Array:
    """What codes stand for, as float32."""
    real: Array = (encoding.scale * (codes.astype(np.float64) + encoding.offset)).astype(np.float32)
    return real


def _compare(
    name: str, right: Array, judged: Array, expected: Mapping[str, Any], plan: Plan, saturation: float | None
) -> compare.Metrics:
    tolerance = plan.criteria.max_error if plan.criteria.max_error is not None else 1e-3
    index = plan.indices.get(name)
    if index is not None and index.data in expected:
        data = np.asarray(expected[index.data])
        return compare.compare_indices(right, judged, data, index.axis, tolerance=tolerance)
    return compare.compare(right, judged, tolerance=tolerance, saturation=saturation)


def _shorten(faults: list[str], limit: int = 6) -> tuple[str, ...]:
    if len(faults) <= limit:
        return tuple(faults)
    return (*faults[:limit], f"and {len(faults) - limit} more")


def pair_outputs(
    names: Sequence[str], references: Sequence[str], indices: Mapping[str, IndexOutput]
) -> tuple[dict[str, str], list[str]]:
    """Which output of the reference each output of the model is compared with, and notes on the pairing.

    Raises:
        InputError: lists the outputs without counterpart.
    """
    notes = []
    extra = {index.data for index in indices.values()}
    if not set(names) & set(references) and len(names) == len(references):
        notes.append("the two share no output name: outputs are paired by position")
        return dict(zip(names, references, strict=True)), notes
    missing = [name for name in names if name not in references]
    if missing:
        faults = [Fault("the reference has no such output", name, nearest(name, references)) for name in missing]
        raise InputError("the outputs of the two do not match", faults=faults)
    absent = [name for name in references if name not in names and name not in extra]
    if absent:
        notes.append(f"not compared, because the model does not have them: {', '.join(absent)}")
    return {name: name for name in names}, notes


def _plot(right: Array, judged: Array) -> Plot | None:
    x = np.asarray(right).reshape(-1)
    if x.size == 0:
        return None
    step = max(1, math.ceil(x.size / 2_000_000))  # the histogram of a very large output is one of a part of it
    a = x[::step].astype(np.float64)
    b = np.asarray(judged).reshape(-1)[::step].astype(np.float64)
    finite = np.isfinite(a) & np.isfinite(b)
    a, b = a[finite], b[finite]
    if a.size == 0:
        return None
    counts, edges = np.histogram(b - a, bins=_BINS)
    few = np.linspace(0, a.size - 1, min(_POINTS, a.size)).astype(int)
    return Plot(
        tuple(float(e) for e in edges),
        tuple(int(c) for c in counts),
        tuple(float(v) for v in a[few]),
        tuple(float(v) for v in b[few]),
    )


def input_infos(model: Runner, reference: Runner) -> list[InputInfo]:
    """Every input of either side once: the model's (whose shapes are static), then what only the reference takes."""
    found = {info.name: info for info in reference.inputs}
    found.update({info.name: info for info in model.inputs})
    return list(found.values())

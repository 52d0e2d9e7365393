# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""The HTML report of a verification: one file with inline style and drawings, nothing loaded from anywhere."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from npukit import __version__
from npukit.analysis.verify import HEAD, Plot, Verification, row
from npukit.files import atomic_write_bytes

_WIDTH, _HEIGHT, _LEFT, _BOTTOM = 340, 200, 46, 22


def render(outcomes: Sequence[Verification], title: str = "") -> str:
    """The report on one or more verifications as HTML text."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("npukit.analysis", "templates"), autoescape=True, undefined=StrictUndefined
    )
    # The drawings are the only text that is not escaped: they hold numbers alone.
    environment.globals.update(histogram=histogram, scatter=scatter, cells=row)
    template = environment.get_template("report.html.j2")
    return template.render(
        outcomes=outcomes,
        head=HEAD,
        title=title or ", ".join(dict.fromkeys(o.model for o in outcomes)),
        passed=all(o.passed for o in outcomes),
        version=__version__,
    )


def write(outcomes: Sequence[Verification], path: Path, title: str = "") -> None:
    """Write the report to `path` atomically; NpukitError when that is not possible."""
    atomic_write_bytes(path, render(outcomes, title).encode("utf-8"))


def histogram(plot: Plot) -> str:
    """An SVG histogram of the errors (actual - reference); counts on a logarithmic scale."""
    top = max(math.log10(1 + c) for c in plot.counts) or 1.0
    width = (_WIDTH - _LEFT) / len(plot.counts)
    bars = []
    for i, count in enumerate(plot.counts):
        height = math.log10(1 + count) / top * (_HEIGHT - _BOTTOM - 8)
        x, y = _LEFT + i * width, _HEIGHT - _BOTTOM - height
        if count:
            bars.append(
                f'<rect class="bar" x="{x:.1f}" y="{y:.1f}" width="{max(width - 1, 0.5):.1f}" height="{height:.1f}">'
                f"<title>{count} with errors from {plot.edges[i]:.3g} to {plot.edges[i + 1]:.3g}</title></rect>"
            )
    labels = _axis((plot.edges[0], plot.edges[-1]), (f"{max(plot.counts)}", "0"))
    return _svg("error (actual - reference), elements on a log scale", "".join(bars) + labels)


def scatter(plot: Plot) -> str:
    """An SVG scatter of actual over reference values with the line on which both are equal."""
    low = min(*plot.reference, *plot.actual)
    high = max(*plot.reference, *plot.actual)
    span = (high - low) or 1.0

    def x(value: float) -> float:
        return _LEFT + (value - low) / span * (_WIDTH - _LEFT - 8) + 4

    def y(value: float) -> float:
        return _HEIGHT - _BOTTOM - 4 - (value - low) / span * (_HEIGHT - _BOTTOM - 12)

    line = f'<line class="same" x1="{x(low):.1f}" y1="{y(low):.1f}" x2="{x(high):.1f}" y2="{y(high):.1f}"/>'
    dots = "".join(
        f'<circle class="dot" cx="{x(a):.1f}" cy="{y(b):.1f}" r="1.7"/>'
        for a, b in zip(plot.reference, plot.actual, strict=True)
    )
    return _svg("actual over reference", line + dots + _axis((low, high), (f"{high:.3g}", f"{low:.3g}")))


def _axis(bounds: tuple[float, float], heights: tuple[str, str]) -> str:
    base = _HEIGHT - _BOTTOM
    return (
        f'<path class="axis" d="M{_LEFT} 4V{base}H{_WIDTH}"/>'
        f'<text x="{_LEFT}" y="{_HEIGHT - 6}">{bounds[0]:.3g}</text>'
        f'<text x="{_WIDTH}" y="{_HEIGHT - 6}" text-anchor="end">{bounds[1]:.3g}</text>'
        f'<text x="{_LEFT - 4}" y="14" text-anchor="end">{heights[0]}</text>'
        f'<text x="{_LEFT - 4}" y="{base}" text-anchor="end">{heights[1]}</text>'
    )


def _svg(caption: str, content: str) -> str:
    from markupsafe import Markup

    drawing = f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{caption}">{content}</svg>'
    return Markup(f"<figure>{drawing}<figcaption>{caption}</figcaption></figure>")  # noqa: S704 - numbers only

# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""The parts of docs/op-coverage.md that come from the registries: what is lowered, what is raised."""

from __future__ import annotations

import contextlib
from typing import Any


def lowerings() -> list[list[str]]:
    """One row a registered lowering: op, shape line, dtypes and limits."""
    import npukit.lowering.ops  # noqa: F401 - registers the lowerings
    from npukit.lowering import lowers
    from npukit.lowering.signature import signature

    rows = [["op", "shapes", "dtypes and limits"]]
    for row in lowers:
        name = f"{row.domain}.{row.op}" if row.domain else row.op
        if row.since > 1 or row.until is not None:
            name += f" (opset {row.since} {'on' if row.until is None else f'to {row.until - 1}'})"
        line = limits = "-"
        with contextlib.suppress(ValueError):  # without a shape line; tests/test_signatures.py says so
            found = signature(row.function)
            line, limits = found.line, found.limits or "-"
        rows.append([name, f"`{line}`" if line != "-" else line, limits.replace("|", "/")])
    return rows


def by_definition() -> list[str]:
    """ONNX ops without a lowering of their own that the front end replaces by their function body."""
    import onnx.defs

    import npukit.lowering.ops  # noqa: F401 - registers the lowerings
    from npukit.lowering import lowers

    schemas: Any = onnx.defs.get_all_schemas()  # its stub lacks the function members
    defined = {s.name for s in schemas if s.domain == "" and (s.has_function or s.has_context_dependent_function)}
    return sorted(defined - {row.op for row in lowers})


def raised() -> tuple[list[str], list[str]]:
    """QNN ops of the table that are raised to ONNX, and those that are kept as nodes of domain qti.aisw."""
    from npukit.qnn import opdefs
    from npukit.raising import RAISERS

    names = sorted(opdefs.OPS)
    return [n for n in names if n in RAISERS], [n for n in names if n not in RAISERS]

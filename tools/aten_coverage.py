# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""Walks PyTorch's core ATen operators and writes docs/aten-coverage.md: `python -m tools.aten_coverage`.

The list is torch's own: every overload of torch.ops.aten that carries torch.Tag.core. For each op three parameter sets
(`tools/aten_cases.py`) go through torch.export, npukit and QNN CPU, and are compared with what PyTorch computes.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

import npukit
from npukit.errors import NpukitError
from tools.aten_cases import CASES, NOT_TRIED, Case

# Of the largest magnitude of a result: float32 kernels differ in the order of sums, exp and the like by some units.
TOLERANCE = 2e-5
GOAL = 0.85
PAGE = """# Coverage of PyTorch's core ATen operators

{ok} of {count} operators ({share:.1%}; the goal is {goal:.0%}). The list is torch {version}'s own: the operators of
`torch.ops.aten` that carry `torch.Tag.core`, overloads together. An operator counts when all three parameter sets
(`tools/aten_cases.py`) convert with one call, run on QNN CPU, and give PyTorch's result: whole numbers and truth values
exactly, floats within {tolerance:g} of the largest magnitude.

Converted and equal: {fine}

| operator | sets | why not |
| --- | --- | --- |
{rows}

Written by `python -m tools.aten_coverage`, in one run.
"""


@dataclass
class Outcome:
    """How many sets of an op hold, and why the others do not."""

    passed: int
    why: str = ""


class _Call(torch.nn.Module):
    """A module that only calls one function."""

    def __init__(self, function: Any) -> None:
        super().__init__()
        self.function = function

    def forward(self, *args: torch.Tensor) -> Any:
        """Call it; results become a tuple of tensors."""
        given = self.function(*args)
        return tuple(given) if isinstance(given, tuple | list) else (given,)


def core_ops() -> list[str]:
    """Names of the core ATen operators, sorted."""
    found = set()
    for name in dir(torch.ops.aten):
        packet = getattr(torch.ops.aten, name)
        overloads = packet.overloads() if hasattr(packet, "overloads") else []
        if any(torch.Tag.core in getattr(packet, overload).tags for overload in overloads):
            found.add(name)
    return sorted(found)


def holds(case: Case, folder: Path) -> str:
    """Why a case does not hold; empty if it does."""
    function, inputs = case
    module = _Call(function).eval()
    with torch.no_grad():
        expected = [value.numpy() for value in module(*[value.clone() for value in inputs])]
    path = folder / "case.dlc"
    try:
        npukit.convert(module, example_inputs=inputs, output=path, target="qnn-cpu", verify=False, in_process=True)
        with npukit.Session(path, backend="qnn-cpu", in_process=True) as session:
            names = [info.name for info in session.inputs]
            given = [f"args_{n}" for n in range(len(inputs))]
            feeds = {name: value.numpy() for name, value in zip(given, inputs, strict=True) if name in names}
            got = session.run(feeds)
    except NpukitError as error:
        fault = error.faults[0].what if error.faults else ""
        return " ".join(f"{error.what}: {fault}".rstrip(": ").split())[:160].partition(" Failure")[0].replace("|", "/")
    finally:
        path.unlink(missing_ok=True)
    if len(got) != len(expected):
        return f"{len(expected)} results, {len(got)} in the artifact"
    for theirs, ours in zip(expected, got.values(), strict=True):
        why = _differs(theirs, ours)
        if why:
            return why
    return ""


def _differs(theirs: np.ndarray[Any, Any], ours: np.ndarray[Any, Any]) -> str:
    if theirs.shape != ours.shape:
        return f"the shape is {list(ours.shape)}, PyTorch's {list(theirs.shape)}"
    if theirs.dtype.kind != "f":
        wrong = int((theirs.astype(np.int64) != ours.astype(np.int64)).sum())
        return f"{wrong} of {theirs.size} values differ" if wrong else ""
    a, b = theirs.astype(np.float64), ours.astype(np.float64)
    largest = float(np.abs(a[np.isfinite(a)]).max(initial=1e-6))
    same = (a == b) | (np.isnan(a) & np.isnan(b)) | (np.abs(a - b) <= TOLERANCE * largest)
    return "" if same.all() else f"differs by {np.abs(a - b).max() / largest:.1e} of the largest magnitude"


def measure(names: list[str]) -> dict[str, Outcome]:
    """Try the operators."""
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        for name in names:
            if name in NOT_TRIED:
                found[name] = Outcome(0, NOT_TRIED[name])
            elif name not in CASES:
                found[name] = Outcome(0, "no parameter sets are written for it")
            else:
                assert len(CASES[name]) == 3, name
                reasons = [holds(case, Path(folder)) for case in CASES[name]]
                found[name] = Outcome(reasons.count(""), next((why for why in reasons if why), ""))
            sys.stdout.write(f"{name}: {found[name].passed} {found[name].why}\n")
            sys.stdout.flush()
    return found


def page(found: dict[str, Outcome]) -> str:
    """The page."""
    fine = [name for name, outcome in found.items() if outcome.passed == 3]
    rest = {name: outcome for name, outcome in found.items() if outcome.passed < 3}
    lines, line = [], ""
    for word in [f"`{name}`" for name in fine]:
        if len(line) + len(word) > 110:
            lines.append(line)
            line = ""
        line = f"{line} {word}".strip()
    return PAGE.format(
        ok=len(fine), count=len(found), share=len(fine) / len(found), goal=GOAL, version=torch.__version__,
        tolerance=TOLERANCE, fine="\n".join(["", *lines, line]).strip(),
        rows="\n".join(f"| `{name}` | {outcome.passed} of 3 | {outcome.why} |" for name, outcome in rest.items()),
    )  # fmt: skip


def main() -> int:
    """Measure; 1 where the goal is missed."""
    parser = argparse.ArgumentParser(prog="python -m tools.aten_coverage", description=__doc__)
    parser.add_argument("names", nargs="*", help="operators [all that are core]")
    parser.add_argument("--markdown", type=Path, default=Path("docs/aten-coverage.md"))
    options = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    found = measure(options.names or core_ops())
    if not options.names:
        options.markdown.write_text(page(found))
    share = sum(outcome.passed == 3 for outcome in found.values()) / len(found)
    sys.stdout.write(f"{share:.1%}\n")
    return 0 if share >= GOAL else 1


if __name__ == "__main__":
    sys.exit(main())

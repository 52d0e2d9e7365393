# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""The Ascend lint on generated models: right on every row of the table, within the limit and beyond it."""

from __future__ import annotations

from itertools import groupby
from pathlib import Path

import onnx
import pytest

from npukit.ascend import check
from tests import ascend_cases as cases
from tests import ascend_faults as faults
from tests.ascend_cases import Case, Unmade

OPS, LIMITS, GENERAL = list(cases.op_cases()), list(cases.limit_cases()), list(faults.general_cases())
BY_OP = [
    (op, list(rows))
    for op, rows in groupby(
        sorted((case for case in (*OPS, *LIMITS, *GENERAL) if isinstance(case, Case)), key=lambda case: case.op),
        key=lambda case: case.op,
    )
]
# ONNX deprecated them in these opsets
# of its definition's body, onnx's own inference fails
_BODY_FAILS = ("MeanVarianceNormalization",)
_DEPRECATED = ("Scatter", "Upsample", "GroupNormalization")


def found_in(case: Case, folder: Path) -> list[tuple[str, str, str]]:
    path = folder / "model.onnx"
    onnx.save(case.model, path)
    problems = check(path, cann=case.cann, precision=case.precision)
    return [(p.rule, p.source, p.where) for p in problems if p.level != "note"]


_NO_SEQUENCE = "it needs a sequence, and no op that makes one is listed either"
_NO_DTYPE = "ONNX allows no dtype beyond the row"
_TOO_NEW = "ONNX has it only in opsets beyond those that any atc reads"
UNMADE = {
    **{f"{op}-unlisted": _NO_SEQUENCE for op in ("ConcatFromSequence", "SequenceAt", "SequenceErase")},
    **{f"{op}-unlisted": _NO_SEQUENCE for op in ("SequenceInsert", "SequenceLength")},
    **{f"{op}-8.2": _NO_DTYPE for op in ("Softmax-dtype-0", "Gather-dtype-1", "GatherElements-dtype-1")},
    **{f"{op}-dtype-0-1-8.2": _NO_DTYPE for op in ("Equal", "And")},
    "Trilu-dtype-0-8.5": _NO_DTYPE,
    "Gemm-rank-[0, 1]-": "ONNX itself has this limit",
    "Tile-length_is_rank-[1, 0]-": "ONNX itself asks for one repeat for each dimension",
    **{f"unparsed-{op}": _TOO_NEW for op in ("Gelu", "RMSNormalization", "RotaryEmbedding", "Attention", "Swish")},
}


def judged(case: Case, folder: Path) -> str:
    """What is wrong with the lint's answer; empty if nothing is."""
    op, opset = case.model.graph.node[0].op_type, case.model.opset_import[0].version
    if cases.schema(op, opset) is not None and op not in _DEPRECATED and not case.name.endswith(("-opset", "-beyond")):
        # the planted fault is the only one
        onnx.checker.check_model(case.model, full_check=op not in _BODY_FAILS)
    found = found_in(case, folder)
    right = bool(found) == bool(case.rule) and all(
        rule == case.rule and case.where in where and (not case.source or source == case.source)
        for rule, source, where in found
    )
    return "" if right else f"{case.name}: wanted {case.rule or 'nothing'} {case.source}, got {found}"


@pytest.mark.parametrize("made", [list(rows) for _, rows in BY_OP], ids=[op for op, _ in BY_OP])
def test_every_row(made: list[Case], tmp_path: Path) -> None:
    assert [fault for case in made if (fault := judged(case, tmp_path))] == []


def test_what_no_model_stands_for() -> None:
    """Rows without a model are those that ONNX itself does not let one break."""
    unmade = [row for row in (*OPS, *LIMITS, *GENERAL) if isinstance(row, Unmade)]
    assert {row.name: row.why for row in unmade} == UNMADE

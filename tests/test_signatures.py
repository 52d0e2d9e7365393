# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""Every lowering says its shapes in one grammar, and the test rows agree with it."""

import numpy as np
import pytest

import npukit.lowering.ops  # noqa: F401 - registers the lowerings
from npukit.lowering import lowers
from npukit.lowering.signature import signature
from tests import op_cases

ROWS = list(lowers)
CASES = [case for case in op_cases.collect() if not case.rejects]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.op)
def test_has_a_shape_line_with_limits(row):
    found = signature(row.function)
    assert found.inputs
    assert found.outputs


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_rows_agree_with_the_shape_line(case):
    function = lowers.find(case.domain, case.op, None)
    if function is None:  # an op that is lowered by its own definition has no shape line here
        return
    shapes = {name: np.shape(value) for name, value in case.constants.items()}
    shapes.update({name: shape for name, _, shape in case.inputs})
    names = case.order if case.order is not None else [*(name for name, _, _ in case.inputs), *case.constants]
    assert signature(function).faults([shapes[name] if name else None for name in names]) == []


def test_a_wrong_rank_is_found():
    function = lowers.find("", "LSTM", None)
    assert signature(function).faults([(4, 2, 3), (1, 20, 3), (20, 5)])


def test_sizes_that_disagree_are_found():
    function = lowers.find("", "BatchNormalization", None)
    assert signature(function).faults([(1, 3, 4, 4), (3,), (3,), (3,), (4,)]) == ["var has C = 4, another has 3"]


def test_a_function_without_shape_line_is_named():
    with pytest.raises(ValueError, match="test_a_function_without_shape_line_is_named has no shape line"):
        signature(test_a_function_without_shape_line_is_named)

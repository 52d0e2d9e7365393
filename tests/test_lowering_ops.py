# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""Every row of op_cases: refused as it says, lowered to the ops it says, and right on the backends it names."""

from __future__ import annotations

import numpy as np
import op_cases
import pytest
from op_cases import CPU, HTP, RAISE, OpCase

from npukit.errors import NpukitError

CASES = op_cases.collect()
_PATHS = {CPU: "cpu", HTP: "htp", RAISE: "raise"}
_RUNS = [
    pytest.param(case, backend, id=f"{case.id}-{backend}", marks=[] if backend == RAISE else [pytest.mark.native])
    for case in CASES
    if not case.rejects
    for backend in case.backends
]


def test_ids_are_unique():
    names = [case.id for case in CASES]
    assert len(names) == len(set(names))


@pytest.mark.parametrize("case", [case for case in CASES if case.rejects], ids=lambda case: case.id)
def test_refused(case: OpCase):
    with pytest.raises(NpukitError) as caught:
        op_cases.lowered(case)
    assert case.rejects in str(caught.value)


@pytest.mark.parametrize("case", [case for case in CASES if case.expect_ops is not None], ids=lambda case: case.id)
def test_ops(case: OpCase):
    found = [op.type for op in op_cases.lowered(case).graph.ops]
    assert found == list(case.expect_ops or ())


@pytest.mark.parametrize(("case", "backend"), _RUNS)
def test_right(case: OpCase, backend: str):
    from conformance import execute

    path = _PATHS[backend]
    validate = None if backend == RAISE else execute._backend(path).validate
    lowered = op_cases.lowered(case, backend, validate)
    feeds = case.feeds()
    wanted = dict(zip([name for name in case.outputs if name], case.reference(feeds), strict=True))
    with execute._executor(path, lowered.graph) as run:
        run(feeds)
        outputs = run(feeds)  # some ops are right in the first run of a graph only
    assert len(outputs) + len(lowered.folded) == len(wanted)
    for tensor, got in zip(lowered.graph.outputs, outputs, strict=True):
        assert tensor.held is not None
        want = wanted[tensor.held.source]
        assert got.shape == want.shape
        assert got.dtype == want.dtype
        rtol, atol = case.tol or execute.tolerance(path, want.astype(np.float64))
        np.testing.assert_allclose(got.astype(np.float64), want.astype(np.float64), rtol=rtol, atol=atol)

# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""How near two computations of the same thing came to one another: the records of parity.json."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt


def difference(reference: npt.NDArray[Any], got: npt.NDArray[Any]) -> dict[str, Any]:
    """{"cosine", "max_abs", "range", "share", "sqnr_db"} of `got` against `reference`, in float64.

    `range` is the reference's largest less its smallest value, `share` the largest absolute difference as a share of
    it; where the reference is constant, of its largest magnitude. `sqnr_db` is None where nothing differs.
    """
    a = np.asarray(reference, np.float64).ravel()
    b = np.asarray(got, np.float64).ravel()
    error = a - b
    norms = float(np.linalg.norm(a) * np.linalg.norm(b))
    equal = bool(np.array_equal(a, b))
    spread = float(a.max() - a.min()) if a.size else 0.0
    worst = float(np.abs(error).max()) if a.size else 0.0
    scale = spread or float(np.abs(a).max(initial=0.0)) or 1.0
    noise, signal = float(error @ error), float(a @ a)
    return {
        "cosine": 1.0 if equal else (float(a @ b) / norms if norms else 0.0),
        "max_abs": worst,
        "range": spread,
        "share": worst / scale,
        "sqnr_db": None if equal or not signal else round(10 * float(np.log10(signal / noise)), 2),
    }


def action_error(reference: npt.NDArray[Any], got: npt.NDArray[Any]) -> dict[str, Any]:
    """{"joints", "last", "flips"}: how far actions float [T, A] are from those of a reference.

    `joints`: each number's mean absolute difference as a share of its range in the reference; `last`: that of the
    chunk's last action, over all numbers; `flips`: share of the steps in which the last number (by custom the gripper)
    is on the other side of the middle of its range.
    """
    a, b = np.asarray(reference, np.float64), np.asarray(got, np.float64)
    low, high = a.min(axis=0), a.max(axis=0)
    span = np.where(high > low, high - low, 1.0)
    error = np.abs(a - b) / span
    middle = (low[-1] + high[-1]) / 2
    return {
        "joints": [float(value) for value in error.mean(axis=0)],
        "last": float(error[-1].mean()),
        "flips": float(np.mean((a[:, -1] > middle) != (b[:, -1] > middle))),
    }

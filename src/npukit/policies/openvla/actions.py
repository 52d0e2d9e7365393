# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""From OpenVLA's action tokens to a robot's numbers, in float64 as OpenVLA computes them.

The last `n_bins` ids of the text vocabulary are bins of [-1, 1], the highest id the lowest bin. An action's number is
the middle of its bin, stretched to the range between the 1st and the 99th percentile of the training data.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from npukit.errors import Fault, ModelError, UsageError

Array = npt.NDArray[Any]

SUFFIX = "_no_noops"  # data sets without idle steps, as LIBERO's were prepared for training
NUMBERS = ("q01", "q99")


def bin_centers(n_bins: int) -> npt.NDArray[np.float64]:
    """Middles of the `n_bins` - 1 intervals between `n_bins` points from -1 to 1, ascending."""
    edges = np.linspace(-1.0, 1.0, n_bins)
    return (edges[:-1] + edges[1:]) / 2.0


def detokenize(ids: npt.ArrayLike, vocab_size: int, n_bins: int = 256) -> npt.NDArray[np.float64]:
    """Token ids to numbers in (-1, 1) of the same shape.

    Id `vocab_size` - 1 is the lowest bin. What is no action token counts as the nearest bin; nothing is refused, as
    the network may say anything.

    Args:
        ids: integers.
        vocab_size: size of the text vocabulary, without the rows that pad it (32000 for Llama 2).
        n_bins: points between which the bins lie.
    """
    centers = bin_centers(n_bins)
    bins = np.clip(vocab_size - np.asarray(ids, np.int64) - 1, 0, len(centers) - 1)
    return centers[bins]


def unnormalize(actions: Array, q01: Array, q99: Array, mask: Array) -> npt.NDArray[np.float64]:
    """float64 [..., A] from [-1, 1] to [q01, q99]; numbers that `mask` (bool [A]) leaves out stay as they are."""
    return np.where(mask, 0.5 * (actions + 1) * (q99 - q01) + q01, actions)


def gripper(actions: Array, index: int, low: float, high: float, *, binarize: bool, invert: bool) -> Array:
    """The number at `index` of float [..., A] from [low, high] to [-1, 1], to its sign alone, and with the other sign.

    OpenVLA's data have 0 for a closed and 1 for an open gripper, LIBERO wants +1 to close and -1 to open.
    """
    if low == high:
        raise ValueError("a range is needed")
    result = np.array(actions)
    value = 2 * (result[..., index] - low) / (high - low) - 1
    value = np.sign(value) if binarize else value
    result[..., index] = -value if invert else value
    return result


def gripper_step(step: Mapping[str, Any], numbers: int) -> Callable[[Array], Array]:
    """`gripper` with the options of a step, for actions of so many numbers; unsound options raise here."""
    options = {name: value for name, value in step.items() if name != "step"}

    def change(actions: Array) -> Array:
        return gripper(actions, **options)

    change(np.zeros((1, numbers)))
    return change


# ---------------------------------------------------------------- statistics


def find_key(keys: Collection[str], wanted: str | None) -> str | None:
    """The key that `wanted` means, with or without its `_no_noops`; of None the only one; None where there is none."""
    if wanted is None:
        return next(iter(keys)) if len(keys) == 1 else None
    return next((key for key in (wanted, wanted + SUFFIX) if key in keys), None)


def chosen_key(keys: Collection[str], wanted: str | None) -> str:
    """As `find_key`.

    Raises:
        UsageError: there is none; the hint lists the keys.
    """
    found = find_key(keys, wanted)
    if found is None:
        what = "which data set's statistics un-normalize the actions is open" if wanted is None else (
            f"the policy has no statistics for {wanted!r}")  # fmt: skip
        raise UsageError(what, where="unnorm_key", hint=f"its keys: {', '.join(sorted(keys))}")
    return found


def checked_statistics(statistics: Mapping[str, Any], action_dim: int) -> dict[str, dict[str, list[Any]]]:
    """{key: {"q01", "q99", "mask"}} of `dataset_statistics.json` (or `norm_stats` of a config.json), each of A numbers.

    Raises:
        ModelError: there are none, or some are missing, of another length or not finite; all are listed.
    """
    faults: list[Fault] = []
    found: dict[str, dict[str, list[Any]]] = {}
    for key, value in statistics.items():
        action = value.get("action") if isinstance(value, Mapping) else None
        if not isinstance(action, Mapping):
            faults.append(Fault("it has no statistics of actions", where=key))
            continue
        row = {name: _numbers(action.get(name), action_dim, f"{key}.action.{name}", faults) for name in NUMBERS}
        found[key] = {**row, "mask": _mask(action.get("mask"), action_dim, f"{key}.action.mask", faults)}
    if not statistics:
        faults.append(Fault("none", where="statistics"))
    if faults:
        raise ModelError("the statistics of actions are not whole", faults=faults,
                         hint="dataset_statistics.json belongs beside the checkpoint; without it actions have no "
                         "scale")  # fmt: skip
    return found


def _numbers(value: Any, count: int, where: str, faults: list[Fault]) -> list[float]:
    if not _listed(value, count, where, faults):
        return [0.0] * count
    if not all(isinstance(n, int | float) and not isinstance(n, bool) and np.isfinite(n) for n in value):
        faults.append(Fault("finite numbers expected", where=where))
        return [0.0] * count
    return [float(number) for number in value]


def _mask(value: Any, count: int, where: str, faults: list[Fault]) -> list[bool]:
    if value is None or not _listed(value, count, where, faults):
        return [True] * count
    if not all(isinstance(flag, bool) for flag in value):
        faults.append(Fault("true or false expected", where=where))
        return [True] * count
    return list(value)


def _listed(value: Any, count: int, where: str, faults: list[Fault]) -> bool:
    if not isinstance(value, Sequence) or isinstance(value, str):
        faults.append(Fault("missing" if value is None else "a list expected", where=where))
        return False
    if len(value) != count:
        faults.append(Fault(f"{len(value)} numbers, the actions have {count}", where=where))
        return False
    return True

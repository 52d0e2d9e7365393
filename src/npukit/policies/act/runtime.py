# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""ACT in use: one run of one component gives a chunk; numpy only."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from npukit.errors import ArtifactError, InputError
from npukit.policies.kinds import Array, ModelInputs
from npukit.policies.package import Manifest
from npukit.runtime.session import Session

COMPONENT = "policy"


class Runtime:
    """The component `policy`, and the temporal ensemble where the checkpoint has one.

    Args:
        manifest: of the package; its config holds `inputs` (feature by component input) and
            `temporal_ensemble_coeff`.
        sessions: by component name.

    Raises:
        ArtifactError: the manifest's config is not one of an ACT policy.
    """

    def __init__(self, manifest: Manifest, sessions: Mapping[str, Session]) -> None:
        features, where = manifest.config.get("inputs"), str(manifest.folder or "")
        ports = {port.name for port in manifest.component(COMPONENT).inputs}
        if not isinstance(features, dict) or set(features) != ports:
            raise ArtifactError("the manifest's config does not name a feature for each input", where=where)
        self._features: dict[str, str] = features
        self._session = sessions[COMPONENT]
        self._inputs: dict[str, Array] | None = None
        self.seconds: dict[str, float] = {}
        coefficient = manifest.config.get("temporal_ensemble_coeff")
        self.ensemble = None if coefficient is None else Ensemble(float(coefficient), manifest.chunk_size)

    def noise_shape(self) -> None:
        """None: ACT draws nothing."""
        return None

    def reset(self) -> None:
        """Forget what the last episode left: the predictions of the ensemble."""
        self._inputs = None
        if self.ensemble is not None:
            self.ensemble.reset()

    def prefix(self, inputs: ModelInputs) -> None:
        """Keep an observation's arrays; the model runs in `chunk`.

        Raises:
            InputError: a feature is missing.
        """
        missing = [feature for feature in self._features.values() if feature not in inputs]
        if missing:
            raise InputError(f"the observation lacks {', '.join(missing)}")
        self._inputs = {port: np.ascontiguousarray(inputs[name]) for port, name in self._features.items()}

    def chunk(self, noise: Array | None = None, rng: np.random.Generator | None = None) -> Array:
        """Normalized actions float32 [chunk_size, A] for the observation of the last `prefix`.

        Args:
            noise: not used; ACT is deterministic.
            rng: not used.

        Raises:
            InputError: `prefix` was not called.
        """
        if self._inputs is None:
            raise InputError("there is no observation yet", hint="call prefix first")
        start = time.perf_counter()
        actions: Array = self._session.run(self._inputs)["actions"][0]
        self.seconds = {COMPONENT: time.perf_counter() - start}
        return actions

    def blend(self, chunk: Array) -> Array:
        """What to do from now on by all predictions since `reset`, where the checkpoint has an ensemble.

        Args:
            chunk: float32 [chunk_size, A], the newest prediction; to be called once for each step of the robot.

        Returns:
            float32 [chunk_size, A]: row 0 is the action of this step. Without an ensemble `chunk` itself.
        """
        return chunk if self.ensemble is None else self.ensemble.update(chunk)


class Ensemble:
    """Temporal ensemble (Zhao et al. 2023, algorithm 2): a running mean of all predictions for a step.

    The i-th prediction for a step, oldest first, has the weight exp(-coefficient * i).

    Args:
        coefficient: above 0 older predictions weigh more, at 0 all the same.
        chunk_size: rows of a prediction.
    """

    def __init__(self, coefficient: float, chunk_size: int) -> None:
        self._weights: npt.NDArray[np.float64] = np.exp(-coefficient * np.arange(chunk_size))
        self._sums = np.cumsum(self._weights)
        self._mean: npt.NDArray[Any] | None = None
        self._counts = np.zeros(chunk_size, np.int64)  # predictions that each row of the mean holds

    def reset(self) -> None:
        """Forget every prediction."""
        self._mean = None

    def update(self, chunk: Array) -> Array:
        """Take a prediction made one step after the last; the means for this step and those after it.

        Args:
            chunk: float32 [chunk_size, A].

        Returns:
            float32 [chunk_size, A].
        """
        new = np.asarray(chunk, np.float64)
        if self._mean is None:
            self._mean, self._counts = new.copy(), np.ones_like(self._counts)
        else:  # the step of row 0 is done: rows move up, and the last has only this prediction
            counts = self._counts[1:]
            kept = (
                self._mean[1:] * self._sums[counts - 1, None] + new[:-1] * self._weights[counts, None]
            ) / self._sums[counts, None]
            self._mean = np.concatenate((kept, new[-1:]))
            self._counts = np.concatenate((counts + 1, [1]))
        return self._mean.astype(np.float32)

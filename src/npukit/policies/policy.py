# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""`Policy`: a robot policy from its folder, run without PyTorch: observation in, actions in the robot's units out."""

from __future__ import annotations

import collections
import contextlib
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np
import numpy.typing as npt

from npukit.errors import ArtifactError, InputError, NativeError, UsageError
from npukit.policies import kinds
from npukit.policies.package import STATISTICS, TOKENIZER, Component, Manifest
from npukit.policies.processing import Postprocessor, Preprocessor
from npukit.policies.safetensors_file import SafetensorsFile
from npukit.runtime.session import Session

if TYPE_CHECKING:
    from npukit.ascend.emulate import Saturation

Array = npt.NDArray[Any]

SIMULATED = "sim"
"""The backend that runs the NPU's artifacts (DLC) on ONNX Runtime, every rounding included."""
BACKENDS = ("ort", "qnn-cpu", "qnn-htp", SIMULATED, "acl")
"""What may execute a policy; the first that a package has artifacts for is the default."""


class Policy:
    """A robot policy from a package that `npukit policy export` made.

    Args:
        folder: the package.
        backend: one of `BACKENDS`; by default the first that the package has artifacts for. "sim" runs the artifacts
            of qnn-htp on ONNX Runtime. There is no fallback from one to another.
        threads: threads of ONNX Runtime.
        target: chip to emulate or use, where the package holds artifacts for several.
        in_process: whether native code runs in this process: then buffers are shared between components and nothing is
            copied. Otherwise each component has a process of its own, and a crash there is an error here.
        timeout: seconds that loading a component and each of its runs may take (only with `in_process=False`).
        seed: of the noise, as for `reset`.
        emulate: compute as an Ascend chip would, "ascend310p[:PRECISION]" (backend ort only; see `npukit.Session`).
        unnorm_key: which data set's statistics un-normalize the actions, for a policy that has several (OpenVLA); by
            default the package's own choice. `_no_noops` at the end of a key may be left out.

    Attributes:
        manifest: the package's manifest.
        backend: what executes it.
        unnorm_key: the key in use; "" for a policy with one set of statistics.
        seconds: of the last prediction by part: "preprocess", each component (all its runs), "postprocess", "total".

    Raises:
        ArtifactError: the package is not whole, or a declared feature has no statistics.
        MissingDependency: a library or the package `tokenizers` is missing.
        UsageError: it has no artifacts for the backend, or no statistics for `unnorm_key`.

    Example:
        >>> with npukit.Policy("policy", backend="ort") as policy:
        ...     policy.reset(seed=0)
        ...     action = policy.select_action(observation)
        >>> action.shape
        (7,)

    Not safe for several threads at once: give each its own, or a lock.
    """

    def __init__(
        self, folder: Path | str, backend: str | None = None, *, threads: int | None = None,
        target: str | None = None, in_process: bool = True, timeout: float | None = None, seed: int | None = None,
        emulate: str = "", unnorm_key: str | None = None,
    ) -> None:  # fmt: skip
        self._closed = True
        self.manifest = Manifest.read(folder)
        self.backend, artifacts = choose(self.manifest, backend, target)
        self.statistics = read_statistics(self.manifest)
        tokenizer = None
        if self.manifest.tokenizer is not None:
            tokenizer = self.manifest.path(str(self.manifest.tokenizer.get("file", TOKENIZER)))
        self.preprocessor = Preprocessor(self.manifest.inputs, self.manifest.preprocessing, self.statistics, tokenizer)
        self.postprocessor = Postprocessor(
            self.manifest.outputs, self.manifest.postprocessing, self.statistics, unnorm_key
        )
        self.unnorm_key = self.postprocessor.unnorm_key
        self.seconds: dict[str, float] = {}
        self._queue: collections.deque[Array] = collections.deque()
        self._rng = np.random.default_rng(seed)
        self._stack = contextlib.ExitStack()
        runs_on = "ort" if self.backend == SIMULATED else self.backend
        try:
            self.sessions = {
                name: self._stack.enter_context(
                    Session(path, backend=runs_on, target=target, threads=threads, in_process=in_process,
                            timeout=timeout, emulate=emulate)
                )
                for name, path in artifacts.items()
            }  # fmt: skip
            for component in self.manifest.components:
                _check_ports(component, self.sessions[component.name])
            make = kinds.resolve(kinds.kind(self.manifest.kind).runtime)
            self.runtime: kinds.Runtime = make(self.manifest, self.sessions)
        except BaseException:
            self._stack.close()
            raise
        self._closed = False

    # ------------------------------------------------------------ acting

    @property
    def action_size(self) -> int:
        """Numbers of one action."""
        return self.postprocessor.action.shape[0]

    @property
    def noise_shape(self) -> tuple[int, int] | None:
        """Shape of `predict_chunk`'s noise; None for a policy without."""
        return self.runtime.noise_shape()

    @property
    def pending(self) -> int:
        """Actions that `select_action` still has; while there are any, it needs no observation."""
        return len(self._queue)

    def reset(self, seed: int | None = None) -> None:
        """Begin an episode: actions that were not used are dropped.

        Args:
            seed: of the noise from now on; None: the generator goes on.
        """
        self._check_open()
        self._queue.clear()
        self.runtime.reset()
        if seed is not None:
            self._rng = np.random.default_rng(seed)

    def select_action(self, observation: Mapping[str, Any] | None) -> npt.NDArray[np.float32]:
        """The next action, float32 [A]: from the queue, or of a new chunk where the queue is empty.

        Args:
            observation: see `predict_chunk`; None is enough while `pending` is above 0. What is given is checked
                even where it is not used.

        Raises:
            InputError: lists everything that is wrong with the observation.
        """
        self._check_open()
        if not self._queue:
            if observation is None:
                raise InputError("an observation is needed: no actions are left of the last one")
            chunk = self._chunk(observation, None, blend=True)
            self._queue.extend(chunk[: self.manifest.n_action_steps])
        elif observation is not None:
            self.preprocessor.check(observation)
        return self._queue.popleft().copy()

    def predict_chunk(
        self, observation: Mapping[str, Any], noise: Array | None = None
    ) -> npt.NDArray[np.float32]:  # fmt: skip
        """All actions that the policy plans for an observation, float32 [chunk_size, A], in the robot's units.

        Args:
            observation: by name: images `observation.images.NAME` uint8 [H, W, 3] (or float32 [3, H, W] from 0 to 1),
                `observation.state` numbers [D], `task` the instruction; other entries are not looked at.
            noise: float32 of `noise_shape` to start from; drawn from the policy's generator where None. A policy
                without noise takes none.

        Raises:
            InputError: lists everything that is wrong with the observation; the noise does not fit.
            NativeError: a backend failed, or gave values that are not finite.
        """
        self._check_open()
        return self._chunk(observation, noise, blend=False)

    def _chunk(self, observation: Mapping[str, Any], noise: Array | None, *, blend: bool) -> Array:
        begin = time.perf_counter()
        noise = None if noise is None else self._noise(noise)
        inputs = self.preprocessor(observation)
        before = time.perf_counter() - begin
        self.runtime.prefix(inputs)
        chunk = self.runtime.chunk(noise, self._rng)
        middle = time.perf_counter()
        if not np.isfinite(chunk).all():
            raise NativeError("the policy's actions are not finite", where=self.backend,
                              hint="the model or its artifact is broken; compare it with `npukit verify`")  # fmt: skip
        actions = self.postprocessor(self.runtime.blend(chunk) if blend else chunk)
        end = time.perf_counter()
        self.seconds = {"preprocess": before, **self.runtime.seconds, "postprocess": end - middle, "total": end - begin}
        return actions

    def _noise(self, noise: Any) -> Array:
        shape = self.noise_shape
        if shape is None:
            raise InputError("this kind of policy takes no noise", where="noise")
        array = np.asarray(noise)
        if array.shape == (1, *shape):
            array = array[0]
        if array.shape != shape or array.dtype.kind != "f" or not np.isfinite(array).all():
            what = "values that are not finite" if array.shape == shape and array.dtype.kind == "f" else (
                f"{array.dtype} {list(array.shape)}")  # fmt: skip
            raise InputError(f"expected finite float32 {list(shape)}, got {what}", where="noise")
        return np.ascontiguousarray(array, np.float32)

    def saturations(self, *, clear: bool = False) -> dict[str, list[Saturation]]:
        """What emulated arithmetic has saturated so far, by component; only those where it has.

        Args:
            clear: forget it, so that the next call tells of later predictions alone.
        """
        self._check_open()
        found = {name: session.saturations(clear=clear) for name, session in self.sessions.items() if session.emulated}
        return {name: tensors for name, tensors in found.items() if tensors}

    # ------------------------------------------------------------ the end

    def warmup(self) -> float:
        """Predict once for a made-up observation, so that the first real one is as fast as the rest; the seconds.

        What `reset` and `select_action` see does not change.
        """
        from npukit.policies.observations import generate

        self._check_open()
        shape = self.noise_shape
        noise = None if shape is None else np.zeros(shape, np.float32)
        self.predict_chunk(generate(self.manifest, self.statistics, 1, seed=0)[0], noise)
        return self.seconds["total"]

    def close(self) -> None:
        """Free everything; any number of calls is fine."""
        if not self._closed:
            self._closed = True
            self._stack.close()

    def __enter__(self) -> Policy:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        state = ", closed" if self._closed else ""
        return f"Policy({str(self.manifest.folder)!r}, kind={self.manifest.kind!r}, backend={self.backend!r}{state})"

    def __reduce__(self) -> NoReturn:
        raise TypeError("a Policy cannot be pickled: open it where it is needed")

    def _check_open(self) -> None:
        if self._closed:
            raise UsageError("the policy is closed")


def read_statistics(manifest: Manifest) -> dict[str, Array]:
    """The package's statistics by "<feature>.<stat>"; empty where it has none."""
    if STATISTICS not in manifest.files:
        return {}
    file = SafetensorsFile(manifest.path(STATISTICS))
    return {name: file.array(name).astype(np.float32) for name in file}


def choose(manifest: Manifest, backend: str | None, target: str | None = None) -> tuple[str, dict[str, Path]]:
    """The backend and each component's artifact for it.

    Artifacts are listed by backend, those for one chip as "qnn-htp:CHIP".

    Raises:
        UsageError: there is no such backend, or the package has no artifacts for it.
    """
    where = str(manifest.folder or "")
    if not manifest.components:
        raise ArtifactError("the package has no components", where=where)
    if backend is not None and backend not in BACKENDS:
        raise UsageError(f"there is no backend {backend!r} for policies", where="backend",
                         hint=f"known: {', '.join(BACKENDS)}")  # fmt: skip
    there = list(manifest.backends)
    for name in (backend,) if backend is not None else BACKENDS:
        keys = _keys("qnn-htp" if name == SIMULATED else str(name), target, there)
        if name == SIMULATED:
            keys = [key for key in keys if manifest.components[0].artifacts[key].endswith(".dlc")]
        if len(keys) > 1:
            raise UsageError(f"the package holds artifacts for {', '.join(keys)}", where=where, hint="name a target")
        if keys:
            return str(name), {c.name: manifest.path(c.artifacts[keys[0]]) for c in manifest.components}
    asked = f"{backend} and {target}" if target else str(backend)
    raise UsageError(f"the package holds no artifacts for {asked}", where=where,
                     hint=f"it has them for {', '.join(there) or 'none'}; export it again with --backend")  # fmt: skip


def _keys(backend: str, target: str | None, there: list[str]) -> list[str]:
    if target is not None and f"{backend}:{target}" in there:
        return [f"{backend}:{target}"]
    if backend in there:
        return [backend]
    return [key for key in there if target is None and key.startswith(f"{backend}:")]


def _check_ports(component: Component, session: Session) -> None:
    """An artifact must have the inputs and outputs that the manifest says, but for those that it dropped as unused."""
    for side, ports, infos in (
        ("input", component.inputs, session.inputs),
        ("output", component.outputs, session.outputs),
    ):
        declared = {port.name: (port.dtype, port.shape) for port in ports}
        for info in infos:
            if info.name not in declared:
                raise ArtifactError(f"{component.name}: the {side} {info.name!r} is not in the manifest")
            dtype, shape = declared[info.name]
            if tuple(info.shape) != shape or info.dtype != dtype:
                raise ArtifactError(
                    f"{component.name}: the {side} {info.name} is {info.dtype} {list(info.shape)}, the manifest has "
                    f"{dtype} {list(shape)}",
                    hint="the package is not of one piece: export it again",
                )

# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""The kinds of policies: one folder and one row of `KINDS` each, and what such a folder provides.

A kind's `__init__` is light and holds `KIND = Kind(...)`; what it names is imported when it is used, so that running
a policy never imports what exporting it needs (PyTorch).
"""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt

from npukit.errors import ModelError, nearest

if TYPE_CHECKING:
    from npukit.policies.lerobot import Checkpoint
    from npukit.policies.package import Camera, Component

Array = npt.NDArray[Any]
ModelInputs = dict[str, Array]
"""What pre-processing makes of an observation, by feature name, every array with a leading axis of 1.

`observation.images.NAME` float32 [1, 3, H, W] as the model takes it, `observation.images.NAME_padding_mask` bool [1]
(only where a step `fill_cameras` is declared: False for a camera that has no image), `observation.state` float32
[1, D], `observation.language.tokens` int64 [1, T] and `observation.language.attention_mask` bool [1, T].
"""

KINDS = {"smolvla": "npukit.policies.smolvla", "act": "npukit.policies.act", "openvla": "npukit.policies.openvla"}
"""Kind -> the package that holds `KIND`."""


@dataclass(frozen=True)
class Kind:
    """A kind of policy.

    Attributes:
        name: its name, a key of `KINDS`.
        config_types: values of `type` (LeRobot) or `model_type` (transformers) in a checkpoint's config.json that it
            reads.
        export: "module:function" of `Exporter`; needs PyTorch.
        runtime: "module:class" of `Runtime`; numpy only.
        steps: "module:function" of `Steps`, or "" where the model takes what the checkpoint's own pre-processing
            gives; numpy only.
        read: "module:function" of `Reader`: what a checkpoint says beside its weights; numpy only.
        precisions: what its exporter can write models in, the first where nothing is asked for.
        options: names of its own options.
        reference: "module:function" that runs a checkpoint in PyTorch, `f(checkpoint, manifest, probes, threads)` ->
            an iterator of `recording.Run`; "" where there is none.
    """

    name: str
    config_types: tuple[str, ...]
    export: str
    runtime: str
    steps: str = ""
    read: str = "npukit.policies.lerobot:read"
    precisions: tuple[str, ...] = ("float32",)
    options: tuple[str, ...] = ()
    reference: str = ""


@dataclass(frozen=True)
class Probe:
    """An input that an exported policy is compared with its source on.

    Attributes:
        inputs: what pre-processing made of an observation.
        noise: float32 [chunk_size, widest action], None for a kind that takes no noise.
    """

    inputs: ModelInputs
    noise: Array | None


def _no_stage(name: str) -> AbstractContextManager[None]:
    return contextlib.nullcontext()


@dataclass(frozen=True)
class ExportRequest:
    """What an exporter is asked for.

    Attributes:
        config: the checkpoint's config.json.
        probes: makes so many probes (the first is always the same), or fewer where the checkpoint's parts do not
            allow one. Noise has the shape given (None: no noise).
        stage: a context that times what is done in it, and measures memory: `with request.stage("weights"): ...`.
        threads: threads to use, None for the library's choice.
        options: the kind's own options, by name.
        precision: of the models, one of the kind's `precisions`.
        verify: whether to compare them with PyTorch.
    """

    config: Mapping[str, Any]
    probes: Callable[[int, tuple[int, int] | None], list[Probe]] = lambda count, noise: []
    stage: Callable[[str], AbstractContextManager[None]] = _no_stage
    threads: int | None = None
    options: Mapping[str, str] = field(default_factory=dict)
    precision: str = "float32"
    verify: bool = True


@dataclass(frozen=True)
class Exported:
    """What an exporter made.

    Attributes:
        components: in the order they run; each has one artifact, under "onnx": the model's path in the folder.
        config: the kind's own numbers that its runtime needs, plain JSON.
        chunk_size: actions of one prediction.
        n_action_steps: how many of them are used before the next.
        cameras: the slots, in the model's order.
        parity: records of components against PyTorch, plain JSON: {"component", "output", "cosine", "max_abs",
            "range", ...}; see `npukit.policies.parity.difference`.
        chunks: PyTorch's normalized chunks float32 [chunk_size, A] for the probes that `request.probes` gave, in order;
            empty where they were not computed. `probes` are those.
        probes: the probes of `chunks`; none where the models are too large to be run whole.
        notes: what one may want to know.
    """

    components: tuple[Component, ...]
    config: dict[str, Any]
    chunk_size: int
    n_action_steps: int
    cameras: tuple[Camera, ...]
    parity: tuple[dict[str, Any], ...] = ()
    chunks: tuple[Array, ...] = ()
    probes: tuple[Probe, ...] = ()
    notes: tuple[str, ...] = ()


class Exporter(Protocol):
    """`export_components`: write `<component>.onnx` (in `options.precision`) into `folder`.

    Raises:
        MissingDependency: PyTorch is not installed.
        ModelError: the checkpoint lacks a tensor, has one too many, or one of another shape; all are listed.
    """

    def __call__(self, checkpoint: Path, folder: Path, options: ExportRequest) -> Exported: ...


class Reader(Protocol):
    """`read`: the kind's own form of checkpoint, beside its weights.

    Args:
        folder: the checkpoint.
        tokenizer: `tokenizer.describe` of the tokenizer to use; None where there is none.
        options: the kind's own options, by name.

    Raises:
        ModelError: a file is missing or not sound; everything is listed.
    """

    def __call__(self, folder: Path, tokenizer: Mapping[str, Any] | None, options: Mapping[str, str]) -> Checkpoint: ...


class Steps(Protocol):
    """Steps that the model's own code does to its inputs, after the checkpoint's pre-processing; see `processing`."""

    def __call__(self, config: Mapping[str, Any]) -> tuple[dict[str, Any], ...]: ...


class Runtime(Protocol):
    """A policy's components in use: made as `Runtime(manifest, sessions)`, sessions by component name."""

    seconds: dict[str, float]
    """Seconds of the last chunk by component name (all of its runs)."""

    def reset(self) -> None:
        """Forget what the last episode left."""

    def prefix(self, inputs: ModelInputs) -> None:
        """What is done once an observation; the results stay in the runtime's buffers."""

    def chunk(self, noise: Array | None, rng: np.random.Generator) -> Array:
        """Normalized actions float32 [chunk_size, A] for the observation of the last `prefix`.

        Args:
            noise: float32 [chunk_size, widest action]; None: drawn from `rng` (a kind without noise ignores both).
            rng: the policy's generator.
        """

    def blend(self, chunk: Array) -> Array:
        """What to do by this newest chunk and those before it since `reset`; `chunk` itself where that is nothing."""

    def noise_shape(self) -> tuple[int, int] | None:
        """Shape of the noise; None where the kind takes none."""


def kind(name: str) -> Kind:
    """The kind of this name.

    Raises:
        ModelError: there is none.
    """
    if name not in KINDS:
        raise ModelError(f"there is no kind of policy {name!r}", hint=nearest(name, KINDS))
    found: Kind = importlib.import_module(KINDS[name]).KIND
    return found


def of_config(config: Mapping[str, Any]) -> Kind:
    """The kind that reads checkpoints with this config.json.

    Raises:
        ModelError: there is none.
    """
    key = "type" if "type" in config else "model_type"
    value, found = config.get(key), dict[str, Kind]()
    for name in KINDS:
        try:
            item = kind(name)
        except ModuleNotFoundError as error:
            if not str(error.name).startswith("npukit."):
                raise
            continue
        found.update(dict.fromkeys(item.config_types, item))
    if value not in found:
        raise ModelError(f"policies of type {value!r} are not supported", where=f"config.json: {key}",
                         hint=nearest(str(value), found))  # fmt: skip
    return found[value]


def resolve(target: str) -> Any:
    """What "module:name" names."""
    module, _, name = target.partition(":")
    return getattr(importlib.import_module(module), name)

# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""SmolVLA in use: images and prefix once a chunk, then Euler steps of the action head; numpy only."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from npukit.errors import ArtifactError, InputError
from npukit.policies.kinds import ModelInputs
from npukit.policies.links import link
from npukit.policies.package import Manifest
from npukit.policies.processing import ATTENTION, MASK, TOKENS
from npukit.policies.smolvla.config import STATE, step_times, time_embeddings
from npukit.runtime.session import Session

Array = npt.NDArray[Any]

VISION, BACKBONE, HEAD = "vision_encoder", "llm_backbone", "action_head"
CACHE = ("kv_keys", "kv_values", "prefix_pad_masks")


class Runtime:
    """The three components over buffers that stay put.

    Keys and values of the prefix lie where the backbone wrote them: where both run in this process and hold them
    alike, the action head reads that very memory; else they are brought over once a chunk.

    Args:
        manifest: of the package; its config has `num_steps`, and `min_period` and `max_period` where the head takes an
            embedded time.
        sessions: by component name.

    Raises:
        ArtifactError: the components are not those of a SmolVLA policy.

    Attributes:
        seconds: of the last chunk by component, all of its runs.
        shared: inputs of the head that are the backbone's own memory.
    """

    def __init__(self, manifest: Manifest, sessions: Mapping[str, Session]) -> None:
        self._where = str(manifest.folder or "")
        config = manifest.config
        self._cameras = [camera.feature for camera in sorted(manifest.cameras, key=lambda camera: camera.slot)]
        vision, backbone, head = (manifest.component(name) for name in (VISION, BACKBONE, HEAD))
        self._batch = self._port(vision.inputs, "pixel_values")[0]
        self._actions = self._port(head.inputs, "noisy_actions")[1:]
        if self._actions[0] != manifest.chunk_size:
            raise ArtifactError(
                f"the head makes {self._actions[0]} actions, the manifest says {manifest.chunk_size}",
                where=self._where,
            )
        self._taken = {port.name for port in backbone.inputs}
        slots = sum(name.startswith("image_embs_") for name in self._taken)
        if slots != len(self._cameras):
            raise ArtifactError(
                f"the backbone takes {slots} images, the manifest has {len(self._cameras)}", where=self._where
            )
        self._times = self._time_inputs({port.name: port.shape for port in head.inputs}, config)
        self._step = np.float32(-1.0 / len(self._times))
        self._vision = sessions[VISION].bind()
        self._backbone = sessions[BACKBONE].bind()
        taken = {port.name for port in head.inputs}
        self._link = link(
            sessions[BACKBONE], self._backbone, sessions[HEAD], {name: name for name in CACHE if name in taken}
        )
        self._head = self._link.binding
        self.shared = tuple(name for name in CACHE if name in taken and name not in self._link.copies)
        self._ready = False
        self.seconds: dict[str, float] = {}

    def _port(self, ports: Any, name: str) -> tuple[int, ...]:
        for port in ports:
            if port.name == name:
                shape: tuple[int, ...] = port.shape
                return shape
        raise ArtifactError(f"no component takes {name!r}", where=self._where)

    def _time_inputs(self, ports: Mapping[str, tuple[int, ...]], config: Mapping[str, Any]) -> list[tuple[str, Array]]:
        """For each step the head's input for the time, and its value."""
        numbers = {name: config.get(name) for name in ("num_steps", "min_period", "max_period")}
        wrong = [name for name, value in numbers.items() if not isinstance(value, int | float) or not 0 < value < 1e6]
        if wrong:
            raise ArtifactError(f"the manifest's config has no sound {' and no '.join(wrong)}", where=self._where)
        times = step_times(int(config["num_steps"]))
        if "time_embedding" not in ports:
            raise ArtifactError("the action head takes no time", where=self._where)
        shape = ports["time_embedding"]  # computed in float64, see `time_embeddings`
        table = time_embeddings(times, shape[-1], float(config["min_period"]), float(config["max_period"]))
        return [("time_embedding", row.reshape(shape)) for row in table]

    def noise_shape(self) -> tuple[int, int]:
        """[chunk_size, widest action]."""
        return self._actions[0], self._actions[1]

    def reset(self) -> None:
        """Forget the last observation."""
        self._ready = False

    def blend(self, chunk: Array) -> Array:
        """`chunk` itself."""
        return chunk

    def prefix(self, inputs: ModelInputs) -> None:
        """Encode the images, run the backbone: its keys and values stay for `chunk`.

        Raises:
            InputError: an input is missing or does not fit.
            NativeError: a backend failed.
        """
        missing = [name for name in (*self._cameras, STATE, TOKENS, ATTENTION) if name not in inputs]
        if missing:
            raise InputError(f"the observation lacks {', '.join(missing)}")
        self._ready = False
        begin = time.perf_counter()
        for first in range(0, len(self._cameras), self._batch):
            self._encode(inputs, range(first, min(first + self._batch, len(self._cameras))))
        middle = time.perf_counter()
        write = self._backbone.write
        write("lang_tokens", inputs[TOKENS])
        write("lang_masks", inputs[ATTENTION].astype(np.int64))
        write("state", inputs[STATE])
        self._masks(inputs)
        self._backbone.run()
        self._link.carry(self._backbone)
        self.seconds = {VISION: middle - begin, BACKBONE: time.perf_counter() - middle}
        self._ready = True

    def _encode(self, inputs: ModelInputs, slots: range) -> None:
        there = [slot for slot in slots if _present(inputs, self._cameras[slot])]
        if there:  # an image that is not there is masked: whatever lies in its place is not looked at
            images = [inputs[self._cameras[slot]] for slot in slots]
            images += [images[-1]] * (self._batch - len(images))
            self._vision.write("pixel_values", np.concatenate(images) if len(images) > 1 else images[0])
            self._vision.run()
            embedded = self._vision.read("image_embeddings")
        for i, slot in enumerate(slots):
            name = f"image_embs_{slot + 1}"
            if slot in there:
                self._backbone.write(name, embedded[i : i + 1])
            elif name in self._backbone.inputs:
                self._backbone.inputs[name][...] = 0

    def _masks(self, inputs: ModelInputs) -> None:
        present = np.array([_present(inputs, name) for name in self._cameras])
        if "image_masks" in self._taken:
            self._backbone.write("image_masks", present[None].astype(np.int64))

    def chunk(self, noise: Array | None, rng: np.random.Generator) -> Array:
        """Normalized actions float32 [chunk_size, widest action]: noise carried along the velocity field.

        Args:
            noise: float32 of `noise_shape`; None: drawn from `rng`.
            rng: of the noise.

        Raises:
            InputError: `prefix` was not called.
        """
        if not self._ready:
            raise InputError("there is no observation yet", hint="call prefix first")
        begin = time.perf_counter()
        if noise is None:
            noise = rng.standard_normal(self._actions, dtype=np.float32)
        actions = np.array(noise, np.float32).reshape(1, *self._actions)
        for name, value in self._times:
            self._head.write("noisy_actions", actions)
            self._head.write(name, value)
            self._head.run()
            actions += self._step * self._head.read("velocity")
        self.seconds[HEAD] = time.perf_counter() - begin
        result: Array = actions[0]
        return result


def _present(inputs: ModelInputs, name: str) -> bool:
    mask = inputs.get(f"{name}{MASK}")
    return mask is None or bool(mask[0])

# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""OpenVLA in use: picture and prompt once, then one token of the action after the other; numpy only."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from npukit.errors import ArtifactError, Fault, InputError, NativeError
from npukit.policies.kinds import ModelInputs
from npukit.policies.links import Linked, link, row_alike, shared
from npukit.policies.openvla.actions import detokenize
from npukit.policies.package import Manifest
from npukit.policies.processing import ATTENTION, TOKENS
from npukit.runtime.binding import Binding
from npukit.runtime.session import Session

Array = npt.NDArray[Any]

VISION, PROJECTOR, EMBEDDING, PREFILL, DECODER = "vision_backbone", "projector", "embedding", "prefill", "decoder"
COMPONENTS = (VISION, PROJECTOR, EMBEDDING, PREFILL, DECODER)
DEVICE = "acl"  # the backend whose buffers lie in a memory of their own
NUMBERS = ("action_dim", "n_action_bins", "vocab_size", "image_tokens", "prompt_length", "prefill_length",
           "cache_length")  # fmt: skip


class Runtime:
    """The five components over buffers that stay put.

    A row of the cache holds the keys and values of one token of all layers. The prefill's output is bound to the first
    rows of the cache, where both run in this process (else they are brought over once a prompt, on the device where
    there is one); each step of the decoder adds one row. The cache as a whole is never copied here.

    Args:
        manifest: of the package; its config has the `NUMBERS`.
        sessions: by component name.

    Raises:
        ArtifactError: the components are not those of an OpenVLA policy; all that is wrong is listed.

    Attributes:
        seconds: of the last chunk by component, all of its runs.
        tokens: ids of the last action, int64 [action_dim].
        shared: inputs that are another component's own memory.
    """

    def __init__(self, manifest: Manifest, sessions: Mapping[str, Session]) -> None:
        where = str(manifest.folder or "")
        self._numbers = _numbers(manifest, where)
        self._camera = manifest.cameras[0].feature
        self._cache_port = next(port for port in manifest.component(DECODER).inputs if port.name == "kv_cache")
        self._vision = sessions[VISION].bind()
        self._to_projector = link(sessions[VISION], self._vision, sessions[PROJECTOR], _same("patch_features"))
        self._projector = self._to_projector.binding
        self._embedding = sessions[EMBEDDING].bind()
        self._decoder = sessions[DECODER].bind(resident=("kv_cache", "kv_row"))
        self._bind_prefill(sessions)
        self._clean = False  # whether all rows of the cache are finite
        self.seconds: dict[str, float] = {}
        self.tokens: npt.NDArray[np.int64] = np.zeros(0, np.int64)
        self._length = 0  # tokens of picture and prompt; 0: none yet

    def _bind_prefill(self, sessions: Mapping[str, Session]) -> None:
        prefill, decoder = sessions[PREFILL], sessions[DECODER]
        # Where the artifacts hold them differently (integer codes of another scale), rows go over as floats.
        self._alike = {
            name: row_alike(giver, name, decoder, "kv_cache")
            for giver, name in ((prefill, "kv_prompt"), (decoder, "kv_row"))
        }
        image, text = _same("image_embeddings"), _same("text_embeddings")
        given = {
            **shared(sessions[PROJECTOR], self._projector, prefill, image),
            **shared(sessions[EMBEDDING], self._embedding, prefill, text),
        }
        self._in_place = (
            self._alike["kv_prompt"] and prefill.in_process and decoder.in_process and decoder.backend != DEVICE
        )
        rows = self._decoder.inputs["kv_cache"][: self._numbers["prefill_length"]]
        self._prefill = prefill.bind(
            inputs=given or None, outputs={"kv_prompt": rows} if self._in_place else None, resident=("kv_prompt",)
        )
        self._from_projector = Linked(self._prefill, {n: n for n in image if n not in given})
        self._from_embedding = Linked(self._prefill, {n: n for n in text if n not in given})
        self.shared = (*given, *([] if self._to_projector.copies else ["patch_features"]), *(
            ["kv_cache"] if self._in_place else []))  # fmt: skip

    def noise_shape(self) -> None:
        """None: decoding is greedy, nothing is drawn."""
        return None

    def reset(self) -> None:
        """Forget the last observation."""
        self._length = 0

    def blend(self, chunk: Array) -> Array:
        """`chunk` itself."""
        return chunk

    def prefix(self, inputs: ModelInputs) -> None:
        """Encode the picture, embed the prompt, run the language model: its first token and its cache stay.

        Raises:
            InputError: an input is missing, or the prompt is longer than the package was exported for.
            NativeError: a backend failed, or gave values that are not finite.
        """
        missing = [name for name in (self._camera, TOKENS, ATTENTION) if name not in inputs]
        if missing:
            raise InputError(f"the observation lacks {', '.join(missing)}")
        real = int(np.count_nonzero(inputs[ATTENTION]))
        longest = self._numbers["prompt_length"]
        if not 0 < real <= longest or inputs[TOKENS].shape != (1, longest):
            raise InputError(f"a prompt of {real} tokens in {list(inputs[TOKENS].shape)}; from 1 to {longest} in "
                             f"[1, {longest}] are wanted", where=TOKENS)  # fmt: skip
        self.reset()
        self.seconds = {}
        self._vision.write("pixel_values", inputs[self._camera])
        self._run(VISION, self._vision)
        self._to_projector.carry(self._vision)
        self._run(PROJECTOR, self._projector)
        self._embedding.write("input_ids", inputs[TOKENS].astype(np.int32))
        self._run(EMBEDDING, self._embedding)
        self._from_projector.carry(self._projector)
        self._from_embedding.carry(self._embedding)
        length = self._numbers["image_tokens"] + real
        if not self._clean:  # a row that does not count is masked, but NaN * 0 is NaN
            self._decoder.write("kv_cache", np.zeros(self._cache_port.shape, self._cache_port.dtype))
        self._clean = False
        self._prefill.write("last_position", np.array([length - 1], np.int32))
        self._run(PREFILL, self._prefill)
        if not self._in_place:
            self._bring(self._prefill, "kv_prompt", 0)
        self._first = self._token(PREFILL, self._prefill)
        self._length, self._clean = length, True

    def chunk(self, noise: Array | None = None, rng: np.random.Generator | None = None) -> Array:
        """The one action in [-1, 1], float64 [1, action_dim]: the most likely token, and so on from there.

        Args:
            noise: not used.
            rng: not used.

        Raises:
            InputError: `prefix` was not called.
            NativeError: a backend failed, or gave values that are not finite.
        """
        if not self._length:
            raise InputError("there is no observation yet", hint="call prefix first")
        numbers, write = self._numbers, self._decoder.write
        ids = [self._first]
        self._clean = False
        mask = (np.arange(numbers["cache_length"]) < self._length).astype(np.float32)[None]
        for position in range(self._length, self._length + numbers["action_dim"] - 1):
            write("input_ids", np.array([[ids[-1]]], np.int32))
            write("position", np.array([position], np.int32))
            write("attention_mask", mask)
            self._run(DECODER, self._decoder)
            self._bring(self._decoder, "kv_row", position)
            mask[0, position] = 1
            ids.append(self._token(DECODER, self._decoder))
        self._clean = True
        self.tokens = np.array(ids, np.int64)
        return detokenize(self.tokens, numbers["vocab_size"], numbers["n_action_bins"])[None]

    def _bring(self, giver: Binding, output: str, row: int) -> None:
        """Make an output's rows rows of the cache."""
        if self._alike[output]:
            self._decoder.copy(output, "kv_cache", row, source=giver)
        else:
            self._decoder.write("kv_cache", giver.read(output), row)

    def _run(self, name: str, binding: Binding) -> None:
        begin = time.perf_counter()
        binding.run()
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - begin

    def _token(self, name: str, binding: Binding) -> int:
        """The most likely token, of equals the one with the lowest id."""
        logits = binding.read("logits")[0]
        if not np.isfinite(logits).all():
            raise NativeError(f"{name} gave logits that are not finite", where="logits",
                              hint="its arithmetic overflows, or the artifact is broken; compare it with "
                              "`npukit policy verify`")  # fmt: skip
        return int(np.argmax(logits))


def _same(name: str) -> dict[str, str]:
    return {name: name}


def _numbers(manifest: Manifest, where: str) -> dict[str, int]:
    """The config's numbers, held against the components' ports."""
    faults = [Fault("missing", where=name) for name in COMPONENTS if name not in {c.name for c in manifest.components}]
    if not manifest.cameras:
        faults.append(Fault("there is none", where="cameras"))
    numbers = {name: manifest.config.get(name) for name in NUMBERS}
    for name, value in numbers.items():
        if not isinstance(value, int) or isinstance(value, bool) or not 0 < value < 1 << 31:
            faults.append(Fault("a positive integer expected", where=f"config.{name}"))
    if not faults:
        faults += _port_faults(manifest, numbers)  # type: ignore[arg-type]
    if faults:
        raise ArtifactError("the package is not one of an OpenVLA policy", where=where, faults=faults,
                            hint="export it again")  # fmt: skip
    return numbers  # type: ignore[return-value]


def _port_faults(manifest: Manifest, n: Mapping[str, int]) -> list[Fault]:
    faults = []
    rows = n["prefill_length"], n["cache_length"]
    if rows[0] != n["image_tokens"] + n["prompt_length"] or rows[1] < rows[0] + n["action_dim"] - 1:
        what = f"{n['image_tokens']} tokens of the picture, {n['prompt_length']} of the prompt and the action's"
        faults.append(Fault(f"{rows[1]} rows do not hold {what}", where="config.cache_length"))
    wanted: list[tuple[str, str, tuple[int | None, ...]]] = [
        (EMBEDDING, "input_ids", (1, n["prompt_length"])),
        (PREFILL, "text_embeddings", (1, n["prompt_length"], None)),
        (PREFILL, "image_embeddings", (1, n["image_tokens"], None)),
        (PREFILL, "kv_prompt", (n["prefill_length"], None)),
        (DECODER, "attention_mask", (1, n["cache_length"])),
        (DECODER, "kv_cache", (n["cache_length"], None)),
        (DECODER, "kv_row", (1, None)),
    ]
    for name, port, shape in wanted:
        component = manifest.component(name)
        found = {p.name: p.shape for p in (*component.inputs, *component.outputs)}.get(port)
        if found is None:
            faults.append(Fault("missing", where=f"{name}.{port}"))
        elif len(found) != len(shape) or any(b not in (None, a) for a, b in zip(found, shape, strict=True)):
            expected = ", ".join("any" if extent is None else str(extent) for extent in shape)
            faults.append(Fault(f"shape {list(found)}, expected [{expected}]", where=f"{name}.{port}"))
    return faults

# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""From a client's keys to the policy's features, and an observation of our own making to warm up with.

A message may name features as the policy does (`observation.images.top`, `observation.state`, `task`), or with
slashes for dots, or as openpi's clients do (`FAMILIES`): then images go to the camera slots in order. `--keys FILE`
says it for any other client. What is in a message must have a place: a key that nothing takes is an error, as a
camera under another name would else go unseen.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from npukit import files
from npukit.errors import Fault, InputError, UsageError, nearest
from npukit.serving.messages import MOST_DEPTH

if TYPE_CHECKING:
    from npukit.policies.package import Feature, Manifest

Array = npt.NDArray[Any]

TASK = "task"
IGNORE = "ignore"
_TASKS = (TASK, "prompt")
_LONGEST_TASK = 4_000  # letters
_LARGEST_IMAGE = 8_192  # pixels along one side


@dataclass(frozen=True)
class Family:
    """The keys of one kind of client.

    Attributes:
        name: what it is called.
        images: keys of images, in the order of camera slots.
        state: keys whose values make up the state, one after the other.
    """

    name: str
    images: tuple[str, ...]
    state: tuple[str, ...]


FAMILIES = (
    Family("LIBERO", ("observation/image", "observation/wrist_image"), ("observation/state",)),
    Family(
        "DROID",
        ("observation/exterior_image_1_left", "observation/wrist_image_left"),
        ("observation/joint_position", "observation/gripper_position"),
    ),
    Family("ALOHA", ("images/cam_high", "images/cam_left_wrist", "images/cam_right_wrist"), ("state",)),
    Family(
        "ALOHA", ("images/cam_high", "images/cam_low", "images/cam_left_wrist", "images/cam_right_wrist"), ("state",)
    ),
)


@dataclass(frozen=True)
class KeyMap:
    """How a client's messages become observations of one policy.

    Attributes:
        manifest: the policy's; its `inputs`, `cameras` and `tokenizer` are used.
        table: feature -> the keys that it is made of, from the user's file; goes before `FAMILIES`.
        ignore: keys that are left aside.
    """

    manifest: Manifest
    table: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    ignore: frozenset[str] = frozenset()

    @classmethod
    def read(cls, manifest: Manifest, path: Path | None) -> KeyMap:
        """The map that a JSON or YAML file describes; the one without file where there is none.

        The file is one map: feature -> key, or list of keys whose values are joined (states only), and `ignore` -> list
        of keys. Features are the policy's and `task`.

        Raises:
            UsageError: the file is none, or names a feature that the policy does not have.
        """
        if path is None:
            return cls(manifest)
        import yaml

        with files.os_errors(path, "read"):
            text = path.read_text(encoding="utf-8", errors="replace")
        try:
            values = yaml.safe_load(text)
        except (yaml.YAMLError, RecursionError) as error:
            raise UsageError(f"the file is neither JSON nor YAML: {error}", where=str(path)) from None
        if not isinstance(values, dict):
            raise UsageError("the file must hold one map: feature -> key", where=str(path), hint=_EXAMPLE)
        known = {*manifest.inputs, TASK}
        table: dict[str, tuple[str, ...]] = {}
        faults = []
        for name, keys in values.items():
            listed = [keys] if isinstance(keys, str) else keys
            if name not in known and name != IGNORE:
                faults.append(Fault("the policy has no such feature", str(name), nearest(str(name), known)))
            elif not isinstance(listed, list) or not listed or not all(isinstance(key, str) for key in listed):
                faults.append(Fault("is neither a key nor a list of keys", str(name), _EXAMPLE))
            elif len(listed) > 1 and name != IGNORE and not _joined(manifest.inputs.get(name)):
                faults.append(Fault("only states are made of several keys", str(name)))
            else:
                table[name] = tuple(listed)
        if faults:
            raise UsageError("the file of keys does not fit the policy", where=str(path), faults=faults)
        ignored = frozenset(table.pop(IGNORE, ()))
        return cls(manifest, table, ignored)

    def observation(self, message: Any) -> dict[str, Any]:
        """The observation that a message holds, for `predict_chunk`: `task`, where the policy takes it, and features.

        They are named as before the policy's own renaming, which it does itself. Images are uint8 [H, W, 3] or float32
        [3, H, W] (turned where the client has the other order), states float32 [D]. How the policy makes its inputs of
        them is its own.

        Raises:
            InputError: a key that nothing takes, a required feature that is missing, a value of a wrong type, shape or
                with NaN. All are listed.
        """
        if not isinstance(message, dict):
            raise InputError(f"an observation is a map; this message is of type {type(message).__name__}")
        values = _flat(message)
        faults: list[Fault] = []
        sources = self._sources(values)
        used = {key for keys in sources.values() for key in keys}
        for key in values:
            if key not in used and key not in self.ignore and (key not in _TASKS or self.manifest.tokenizer):
                faults.append(Fault("the policy has no place for this key", key, self._place(key, values)))
        found: dict[str, Any] = {}
        for name, feature in self.manifest.inputs.items():
            keys = sources.get(name, ())
            if not keys:
                if self._required(name):
                    faults.append(Fault("this part of the observation is missing", name, self._wanted(name)))
                continue
            try:
                found[self.names[name]] = _value(name, feature, keys, [values[key] for key in keys])
            except InputError as error:
                faults.append(Fault(error.what, error.where, error.hint))
        if self.manifest.tokenizer is not None:
            faults += self._task(sources, values, found)
        if faults:
            raise InputError("the observation is not one of this policy", faults=faults)
        return found

    @functools.cached_property
    def names(self) -> dict[str, str]:
        """Each input's name before the policy's first steps rename it."""
        found = {name: name for name in self.manifest.inputs}
        for step in reversed(
            list(itertools.takewhile(lambda step: step["step"] == "rename", self.manifest.preprocessing))
        ):
            old = {new: before for before, new in step["map"].items()}
            found = {name: old.get(current, current) for name, current in found.items()}
        return found

    def _direct(self, name: str) -> tuple[str, ...]:
        """The keys under which a feature may come as itself: its name before renaming, after it, with slashes."""
        if name == TASK:
            return _TASKS
        first = self.names[name]
        taken = name in self.names.values()  # another input has that name before the renaming
        names = (first,) if taken else (first, name)
        return (*names, *(each.replace(".", "/") for each in names))

    def _task(
        self, sources: Mapping[str, Sequence[str]], values: Mapping[str, Any], found: dict[str, Any]
    ) -> list[Fault]:
        if TASK not in sources:
            return [Fault("the instruction is missing", TASK, "send it as `prompt` or `task`")]
        (key,) = sources[TASK]
        text = values[key]
        if not isinstance(text, str):
            return [Fault(f"the instruction is of type {type(text).__name__}; it must be a text", key)]
        if len(text) > _LONGEST_TASK:
            return [Fault(f"the instruction has {len(text)} letters; at most {_LONGEST_TASK} are read", key)]
        found[TASK] = text
        return []

    def _sources(self, values: Mapping[str, Any]) -> dict[str, tuple[str, ...]]:
        """For each feature that is there, the keys that it is made of."""
        found: dict[str, tuple[str, ...]] = {}
        wanted = [*self.manifest.inputs, *([TASK] if self.manifest.tokenizer is not None else [])]
        for name in wanted:
            keys = self.table.get(name, ())
            if keys and all(key in values for key in keys):
                found[name] = keys
                continue
            key = next((key for key in self._direct(name) if key in values), None)
            if key is not None:
                found[name] = (key,)
        family = self._family(values, found)
        if family is not None:
            for camera, key in zip(self._cameras(), family.images, strict=False):
                if key in values and camera not in found and camera not in self.table:
                    found[camera] = (key,)
            state = next((name for name, f in self.manifest.inputs.items() if f.kind == "STATE"), None)
            if state is not None and state not in found and state not in self.table:
                found.update({state: family.state} if all(key in values for key in family.state) else {})
        return found

    def _family(self, values: Mapping[str, Any], found: Mapping[str, Sequence[str]]) -> Family | None:
        """The family that has a place for every key that is left."""
        left = set(values) - {key for keys in found.values() for key in keys} - self.ignore - set(_TASKS)
        fits = (family for family in FAMILIES if left and left <= {*family.images, *family.state})
        return next(fits, None)

    def _cameras(self) -> list[str]:
        return [camera.feature for camera in sorted(self.manifest.cameras, key=lambda camera: camera.slot)]

    def _required(self, name: str) -> bool:
        return all(camera.required for camera in self.manifest.cameras if camera.feature == name)

    def _wanted(self, name: str) -> str:
        if name in self.table:
            return f"the file of keys takes it from {', '.join(self.table[name])}"
        return f"send it as {self.names.get(name, name)!r}, or say with --keys FILE under which key it comes"

    def _place(self, key: str, values: Mapping[str, Any]) -> str:
        if any(key in (*family.images, *family.state) for family in FAMILIES):
            return "the policy has fewer cameras or no state; `ignore` in --keys FILE leaves a key aside"
        return nearest(key, (*self.names.values(), TASK))


_EXAMPLE = 'as in {"observation.images.top": "cam_0", "observation.state": ["joints", "gripper"], "ignore": ["time"]}'


def _joined(feature: Feature | None) -> bool:
    return feature is not None and feature.kind in ("STATE", "ENV")


def _flat(message: Mapping[str, Any]) -> dict[str, Any]:
    """The message with maps within it flattened: {"images": {"top": ...}} has the key "images/top"."""
    found: dict[str, Any] = {}
    pending: list[tuple[str, Any, int]] = [("", message, 0)]
    while pending:
        prefix, value, depth = pending.pop(0)
        for key, inner in value.items():
            name = f"{prefix}{key}"
            if isinstance(inner, dict) and depth < MOST_DEPTH:
                pending.append((f"{name}/", inner, depth + 1))
            elif name in found:
                raise InputError("comes twice, once in a map within the map", where=name)
            else:
                found[name] = inner
    return found


def _value(name: str, feature: Feature, keys: Sequence[str], values: Sequence[Any]) -> Array:
    """One feature's value.

    Raises:
        InputError: it cannot be that feature.
    """
    where = name if tuple(keys) == (name,) else f"{name} ({', '.join(keys)})"
    arrays = [_numbers(value, where) for value in values]
    for array in arrays:
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise InputError("has NaN or infinite values", where=where)
    if feature.kind == "VISUAL":
        return _image(arrays[0], feature.shape[0], where)
    with np.errstate(over="ignore"):
        joined = np.concatenate([array.reshape(-1) for array in arrays]).astype(np.float32)
    if len(arrays) == 1 and arrays[0].shape != tuple(feature.shape):
        raise InputError(f"has the shape {list(arrays[0].shape)}; it must be {list(feature.shape)}", where=where)
    if joined.size != int(np.prod(feature.shape)):
        raise InputError(f"has {joined.size} values; it must have {int(np.prod(feature.shape))}", where=where)
    if not np.isfinite(joined).all():
        raise InputError("has values beyond float32", where=where)
    return joined.reshape(feature.shape)


def _numbers(value: Any, where: str) -> Array:
    """An array of `value`, also where it is a number or a flat list of numbers."""
    if isinstance(value, np.ndarray | np.generic):
        return np.asarray(value)
    if isinstance(value, bool | int | float):
        return np.asarray(value, np.float64)
    if isinstance(value, list) and all(isinstance(item, int | float) for item in value):
        return np.asarray(value, np.float64)
    raise InputError(f"is of type {type(value).__name__}; it must be a numpy array", where=where)


def _image(array: Array, channels: int, where: str) -> Array:
    """uint8 [H, W, C] or float32 [C, H, W]."""
    shape = array.shape
    if len(shape) != 3 or channels not in (shape[0], shape[2]):
        raise InputError(f"has the shape {list(shape)}; an image has [height, width, {channels}]", where=where)
    first = shape[0] == channels and shape[2] != channels
    height, width = shape[1:] if first else shape[:2]
    if not (1 <= height <= _LARGEST_IMAGE and 1 <= width <= _LARGEST_IMAGE):
        raise InputError(f"is an image of {height} x {width}; 1 to {_LARGEST_IMAGE} can be read", where=where)
    if array.dtype == np.uint8:
        return np.ascontiguousarray(array.transpose(1, 2, 0)) if first else array
    if array.dtype.kind == "f":
        return np.ascontiguousarray(array if first else array.transpose(2, 0, 1), np.float32)
    raise InputError(f"has the dtype {array.dtype}; an image is uint8, or float32 from 0 to 1", where=where)


def example(keys: KeyMap) -> dict[str, Any]:
    """An observation of grey images and zeros that fits the policy, as a client that knows its names may send it."""
    found: dict[str, Any] = {}
    manifest = keys.manifest
    for feature_name, feature in manifest.inputs.items():
        name = keys.names[feature_name]
        if feature.kind == "VISUAL":
            channels, height, width = feature.shape
            found[name] = np.full((height, width, channels), 128, np.uint8)
        else:
            found[name] = np.zeros(feature.shape, np.float32)
    if manifest.tokenizer is not None:
        found[TASK] = "warm up"
    return found

# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""The policy folder ("package"): `policy.json` and what it names.

    policy.json              the manifest, format 1
    statistics.safetensors   "<feature>.<stat>", float32
    tokenizer.json           where the policy takes text
    parity.json              what the export was compared with, and how near it came
    <component>.onnx (+ .onnx.data), <component>.dlc, <component>.<target>.bin (+ .bin.npukit.json)

A folder can be moved and copied: all paths are relative. Nothing in it is code, and nothing is ever imported by a name
that it holds, but for the kind, which is looked up in a table.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import npukit
from npukit import files
from npukit.errors import ArtifactError, Fault, NpukitError

MANIFEST = "policy.json"
STATISTICS = "statistics.safetensors"
TOKENIZER = "tokenizer.json"
PARITY = "parity.json"
FORMAT = 1
FEATURE_KINDS = ("VISUAL", "STATE", "ENV", "ACTION")

_SMALL = 32 << 20  # bytes of a file whose hash is checked whenever a package is opened
_MANIFEST_LIMIT = 16 << 20


@dataclass(frozen=True)
class Port:
    """An input or output of a component, as the source (ONNX) model has it, whatever an artifact makes of it.

    Attributes:
        name: its name.
        dtype: numpy's name of the dtype.
        shape: extents, all fixed.
        layout: what the axes are, one word each ("batch camera token channel"); empty where the name says it.
        doc: one sentence: units, scaling, precision, what is done on which side.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    layout: str = ""
    doc: str = ""


@dataclass(frozen=True)
class Component:
    """One model of the policy.

    Attributes:
        name: its name, also of its files.
        inputs: what it takes.
        outputs: what it gives.
        runs: how often it runs for one chunk of actions.
        artifacts: backend -> path in the folder ("onnx" is the exporter's own, see `kinds.Exported`).
        precision: backend -> precision of that artifact, as it was asked for.
    """

    name: str
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    runs: int = 1
    artifacts: dict[str, str] = field(default_factory=dict)
    precision: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Feature:
    """A part of an observation, or the action.

    Attributes:
        kind: "VISUAL", "STATE", "ENV" or "ACTION".
        shape: images [channels, height, width], others [length]; without batch.
    """

    kind: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Camera:
    """An image that the policy sees.

    Attributes:
        feature: its name in the observation, after renaming.
        slot: its place among the model's images, from 0.
        required: whether an observation without it is refused; else it counts as a camera that is not there.
    """

    feature: str
    slot: int
    required: bool = True


@dataclass(frozen=True)
class Manifest:
    """A package's policy.json.

    Attributes:
        kind: name in `kinds.KINDS`.
        config: the kind's own numbers, plain JSON.
        inputs: what an observation holds, by name (`task`, the instruction, beside them where `tokenizer` is given).
        outputs: what the policy gives, by name.
        cameras: the image slots in the model's order.
        preprocessing: steps from an observation to the model's inputs, {"step": name, ...options}; see `processing`.
        postprocessing: steps from normalized actions to actions.
        components: the models, in the order they run.
        chunk_size: actions of one prediction.
        n_action_steps: how many of them are used before the next.
        tokenizer: {"file", "pad_id", ...} or None; what is done with it is a step.
        source: {"name", "files": {name: sha256}} of the checkpoint.
        npukit_version: what made it.
        files: every other file of the folder: {"sha256", "bytes"} by relative path.
        folder: where it was read from; None for one in the making.
    """

    kind: str
    config: dict[str, Any]
    inputs: dict[str, Feature]
    outputs: dict[str, Feature]
    cameras: tuple[Camera, ...]
    preprocessing: tuple[dict[str, Any], ...]
    postprocessing: tuple[dict[str, Any], ...]
    components: tuple[Component, ...]
    chunk_size: int
    n_action_steps: int
    tokenizer: dict[str, Any] | None = None
    source: dict[str, Any] = field(default_factory=dict)
    npukit_version: str = npukit.__version__
    files: dict[str, dict[str, Any]] = field(default_factory=dict)
    folder: Path | None = None

    @property
    def action(self) -> Feature:
        """The one output of kind ACTION."""
        return next(feature for feature in self.outputs.values() if feature.kind == "ACTION")

    @property
    def backends(self) -> tuple[str, ...]:
        """Backends that every component has an artifact for."""
        first = self.components[0].artifacts if self.components else {}
        return tuple(name for name in first if all(name in c.artifacts for c in self.components))

    def component(self, name: str) -> Component:
        """The component of this name; ArtifactError where there is none."""
        for component in self.components:
            if component.name == name:
                return component
        raise ArtifactError(f"the package has no component {name!r}", where=str(self.folder or ""))

    def path(self, name: str) -> Path:
        """A file of the package by its relative path, which must not lead out of the folder."""
        assert self.folder is not None
        return files.inside(self.folder, name)

    def to_json(self) -> dict[str, Any]:
        """The manifest as JSON values."""
        values = dataclasses.asdict(self)
        del values["folder"]
        return {"format": FORMAT, **values}

    def write(self, folder: Path | str) -> None:
        """Write policy.json into `folder`; `files` are taken as they are (see `hashes`)."""
        text = json.dumps(self.to_json(), indent=1, allow_nan=False)
        files.atomic_write_bytes(Path(folder, MANIFEST), text.encode() + b"\n")

    @classmethod
    def read(cls, folder: Path | str, *, check_hashes: bool = False) -> Manifest:
        """Read and check a package's manifest.

        Args:
            folder: the package.
            check_hashes: hash every file, not only small ones (up to 32 MiB); sizes are always checked.

        Raises:
            ArtifactError: there is no manifest, it is of another format or incomplete (each field is named), or a file
                is missing, of another size or content. All that is wrong is listed.
        """
        path = Path(folder, MANIFEST)
        if not path.is_file():
            raise ArtifactError("this is no policy package: it has no policy.json", where=str(folder),
                                hint="make one: npukit policy export CHECKPOINT -o DIR")  # fmt: skip
        if path.stat().st_size > _MANIFEST_LIMIT:
            raise ArtifactError("the manifest is too large to be one", where=str(path))
        try:
            with files.os_errors(path, "read"):
                values = json.loads(path.read_text(encoding="utf-8"))
        except (ValueError, RecursionError) as error:
            raise ArtifactError(f"the manifest is not JSON: {error}", where=str(path), hint=_AGAIN) from None
        manifest = _parsed(values, path)
        manifest = dataclasses.replace(manifest, folder=Path(folder))
        faults = _file_faults(manifest, check_hashes=check_hashes)
        if faults:
            raise ArtifactError("the package's files are not those of its manifest", where=str(folder), faults=faults,
                                hint=_AGAIN)  # fmt: skip
        return manifest


_AGAIN = "copy or export it again"


def hashes(folder: Path | str, *, large: bool = True) -> dict[str, dict[str, Any]]:
    """SHA-256 and size of every file below `folder` but the manifest, by relative path.

    Without `large`, files above 32 MiB have an empty hash: for a package in the making.
    """
    base = Path(folder)
    found = {}
    for path in sorted(base.rglob("*")):
        name = path.relative_to(base).as_posix()
        if path.is_file() and name != MANIFEST:
            size = path.stat().st_size
            found[name] = {"sha256": files.sha256_file(path) if large or size <= _SMALL else "", "bytes": size}
    return found


# ---------------------------------------------------------------- reading


def _file_faults(manifest: Manifest, *, check_hashes: bool) -> list[Fault]:
    faults = []
    named = {path for component in manifest.components for path in component.artifacts.values()}
    if manifest.tokenizer is not None:
        named.add(str(manifest.tokenizer.get("file", TOKENIZER)))
    faults += [Fault("named, but not in `files`", where=name) for name in sorted(named - set(manifest.files))]
    for name, facts in manifest.files.items():
        try:
            path = manifest.path(name)
        except NpukitError as error:
            faults.append(Fault(error.what, where=name))
            continue
        if not path.is_file():
            faults.append(Fault("missing", where=name))
        elif path.stat().st_size != facts["bytes"]:
            faults.append(Fault(f"{path.stat().st_size} bytes, {facts['bytes']} expected", where=name))
        elif (check_hashes or facts["bytes"] <= _SMALL) and files.sha256_file(path) != facts["sha256"]:
            faults.append(Fault("another content (SHA-256) than was written", where=name))
    return faults


T = TypeVar("T")


class _Reader:
    """Takes fields out of JSON values; what is wrong is collected with the field's path."""

    def __init__(self) -> None:
        self.faults: list[Fault] = []

    def fault(self, what: str, where: str) -> None:
        self.faults.append(Fault(what, where=where))

    def take(self, values: Any, name: str, check: Callable[[Any], bool], what: str, where: str, default: T) -> T:
        """The field `name`, or `default` with a fault where it is missing or not as `check` wants it."""
        if name not in values:
            self.fault("missing", f"{where}{name}")
            return default
        if not check(values[name]):
            self.fault(f"{what} expected", f"{where}{name}")
            return default
        found: T = values[name]
        return found

    def optional(self, values: Any, name: str, check: Callable[[Any], bool], what: str, where: str, default: T) -> T:
        return self.take(values, name, check, what, where, default) if name in values else default

    def each(self, values: list[Any], where: str, make: Callable[[dict[str, Any], str], T]) -> tuple[T, ...]:
        found = []
        for i, value in enumerate(values):
            if _object(value):
                found.append(make(value, f"{where}[{i}]."))
            else:
                self.fault("an object expected", f"{where}[{i}]")
        return tuple(found)


def _text(value: Any) -> bool:
    return isinstance(value, str)


def _object(value: Any) -> bool:
    return isinstance(value, dict) and all(isinstance(key, str) for key in value)


def _list(value: Any) -> bool:
    return isinstance(value, list)


def _flag(value: Any) -> bool:
    return isinstance(value, bool)


def _count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 < value <= 1 << 40


def _index(value: Any) -> bool:
    return _count(value) or (value == 0 and not isinstance(value, bool))


def _shape(value: Any) -> bool:
    return isinstance(value, list) and len(value) <= 8 and all(_count(extent) for extent in value)


def _texts(value: Any) -> bool:
    return _object(value) and all(isinstance(item, str) for item in value.values())


def _hashes(value: Any) -> bool:
    return _object(value) and all(
        _object(item) and _text(item.get("sha256")) and _index(item.get("bytes")) for item in value.values()
    )


def _parsed(values: Any, path: Path) -> Manifest:
    if not _object(values):
        raise ArtifactError("the manifest is not an object", where=str(path), hint=_AGAIN)
    if values.get("format") != FORMAT:
        raise ArtifactError(
            f"the manifest has format {values.get('format')!r}, this npukit reads {FORMAT}", where=str(path),
            hint="export the policy again with this npukit, or use the npukit that made it",
        )  # fmt: skip
    r = _Reader()
    manifest = Manifest(
        kind=r.take(values, "kind", _text, "a text", "", ""),
        config=r.take(values, "config", _object, "an object", "", {}),
        inputs=_features(r, values, "inputs"),
        outputs=_features(r, values, "outputs"),
        cameras=r.each(r.take(values, "cameras", _list, "a list", "", []), "cameras", lambda v, w: _camera(r, v, w)),
        preprocessing=_steps(r, values, "preprocessing"),
        postprocessing=_steps(r, values, "postprocessing"),
        components=r.each(
            r.take(values, "components", _list, "a list", "", []), "components", lambda v, w: _component(r, v, w)
        ),
        chunk_size=r.take(values, "chunk_size", _count, "a positive integer", "", 1),
        n_action_steps=r.take(values, "n_action_steps", _count, "a positive integer", "", 1),
        tokenizer=r.optional(values, "tokenizer", lambda v: v is None or _object(v), "an object or null", "", None),
        source=r.take(values, "source", _object, "an object", "", {}),
        npukit_version=r.take(values, "npukit_version", _text, "a text", "", ""),
        files=r.take(values, "files", _hashes, 'objects with "sha256" and "bytes"', "", {}),
    )
    if not any(feature.kind == "ACTION" for feature in manifest.outputs.values()) and "outputs" in values:
        r.fault("an output of kind ACTION expected", "outputs")
    if not r.faults and manifest.n_action_steps > manifest.chunk_size:
        r.fault(f"at most chunk_size ({manifest.chunk_size}) expected", "n_action_steps")
    if r.faults:
        raise ArtifactError("the manifest is not sound", where=str(path), faults=r.faults, hint=_AGAIN)
    return manifest


def _features(r: _Reader, values: Mapping[str, Any], name: str) -> dict[str, Feature]:
    found = {}
    given: dict[str, Any] = r.take(values, name, _object, "an object", "", {})
    for key, value in given.items():
        where = f"{name}.{key}."
        if not _object(value):
            r.fault("an object expected", where[:-1])
            continue
        kind = r.take(value, "kind", lambda v: v in FEATURE_KINDS, "one of " + ", ".join(FEATURE_KINDS), where, "STATE")
        shape = r.take(value, "shape", _shape, "a list of positive integers", where, [1])
        found[key] = Feature(kind, tuple(shape))
    return found


def _steps(r: _Reader, values: Mapping[str, Any], name: str) -> tuple[dict[str, Any], ...]:
    steps: list[Any] = r.take(values, name, _list, "a list", "", [])
    for i, step in enumerate(steps):
        if not _object(step) or not _text(step.get("step")):
            r.fault('an object with a text "step" expected', f"{name}[{i}]")
    return tuple(steps)


def _camera(r: _Reader, value: dict[str, Any], where: str) -> Camera:
    return Camera(
        r.take(value, "feature", _text, "a text", where, ""),
        r.take(value, "slot", _index, "an integer from 0", where, 0),
        r.optional(value, "required", _flag, "true or false", where, True),
    )


def _component(r: _Reader, value: dict[str, Any], where: str) -> Component:
    return Component(
        name=r.take(value, "name", _text, "a text", where, ""),
        inputs=_ports(r, value, "inputs", where),
        outputs=_ports(r, value, "outputs", where),
        runs=r.optional(value, "runs", _count, "a positive integer", where, 1),
        artifacts=r.take(value, "artifacts", _texts, "an object of texts", where, {}),
        precision=r.optional(value, "precision", _texts, "an object of texts", where, {}),
    )


def _ports(r: _Reader, value: dict[str, Any], name: str, where: str) -> tuple[Port, ...]:
    def port(item: dict[str, Any], at: str) -> Port:
        return Port(
            r.take(item, "name", _text, "a text", at, ""),
            r.take(item, "dtype", _text, "a text", at, "float32"),
            tuple(r.take(item, "shape", _shape, "a list of positive integers", at, [1])),
            r.optional(item, "layout", _text, "a text", at, ""),
            r.optional(item, "doc", _text, "a text", at, ""),
        )

    return r.each(r.take(value, name, _list, "a list", where, []), f"{where}{name}", port)

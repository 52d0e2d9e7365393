# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""`npukit policy attach`: models for an Ascend chip, compiled elsewhere, become part of a policy's folder."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from npukit import files
from npukit.analysis import text
from npukit.errors import Fault, InputError, UsageError
from npukit.policies.package import Component, Manifest
from npukit.verbs.options import arg, opt, verb

BACKEND = "acl"


@dataclass(frozen=True)
class AttachOptions:
    """Put .om files, one for each component, into a policy's folder, which then runs with --backend acl.

    The models are those of the folder's own .onnx files, by `npukit compile` or, where that is not possible, by a
    bundle of it: COMPONENT.om each. Files with a stamp are held against the components' inputs and outputs.
    """

    policy: Path = arg("the policy's folder", metavar="DIR")
    models: Path = arg("the folder with COMPONENT.om, one for each component", metavar="OMS")
    force: bool = opt(False, "Replace those that the folder has.", "--force")


@dataclass(frozen=True)
class AttachResult:
    """What was attached.

    Attributes:
        policy: the folder.
        models: path in the folder and bytes, by component.
    """

    policy: Path
    models: dict[str, tuple[str, int]]
    exit_code: int = 0

    def to_json(self) -> dict[str, Any]:
        """As one JSON-ready object."""
        rows = {name: {"file": file, "bytes": size} for name, (file, size) in self.models.items()}
        return {"policy": str(self.policy), "backend": BACKEND, "models": rows}

    def to_text(self) -> str:
        rows = [(name, file, text.size(size)) for name, (file, size) in self.models.items()]
        return "\n".join(
            [text.table(("component", "file", "size"), rows), f"{self.policy} runs with --backend {BACKEND}"]
        )


@verb(AttachOptions)
def attach(options: AttachOptions) -> AttachResult:
    """Make the .om files of `models` part of `policy`.

    Raises:
        UsageError: the folder has such models already.
        InputError: a component has no file, or one that is no OM or not of this component; all are listed.
        ArtifactError: the folder is no policy.
    """
    from npukit.artifacts.context import sidecar

    manifest = Manifest.read(options.policy)
    if BACKEND in manifest.backends and not options.force:
        raise UsageError(f"the policy has models for {BACKEND} already", where=str(options.policy),
                         hint="--force replaces them")  # fmt: skip
    faults = [fault for component in manifest.components for fault in _faults(component, options.models)]
    if faults:
        raise InputError("these are not the policy's models", where=str(options.models), faults=faults,
                         hint="compile each: npukit compile DIR/COMPONENT.onnx --target ascend310p3")  # fmt: skip
    components, held = [], dict(manifest.files)
    for component in manifest.components:
        source = options.models / f"{component.name}.om"
        for path in (source, sidecar(source)):
            target = options.policy / path.name
            if not path.is_file():
                continue
            if path.resolve() != target.resolve():
                with files.atomic_write(target) as temp, files.os_errors(path, "copy"):
                    shutil.copyfile(path, temp)
            held[path.name] = {"sha256": files.sha256_file(target), "bytes": target.stat().st_size}
        components.append(dataclasses.replace(component, artifacts={**component.artifacts, BACKEND: source.name}))
    dataclasses.replace(manifest, components=tuple(components), files=held).write(options.policy)
    sizes = {c.name: (c.artifacts[BACKEND], held[c.artifacts[BACKEND]]["bytes"]) for c in components}
    return AttachResult(options.policy, sizes)


def _faults(component: Component, folder: Path) -> Iterator[Fault]:
    """What is wrong with a component's file."""
    from npukit.artifacts.context import read_sidecar
    from npukit.ascend import om
    from npukit.errors import NpukitError

    path = folder / f"{component.name}.om"
    if not path.is_file():
        yield Fault("missing", where=path.name)
        return
    try:
        om.read(path)
        stamp = read_sidecar(path)
    except NpukitError as error:
        yield Fault(error.what, where=path.name)
        return
    if stamp is None:
        return
    for side, ports, tensors in (
        ("input", component.inputs, stamp.inputs), ("output", component.outputs, stamp.outputs),
    ):  # fmt: skip
        wanted = {port.name: (port.dtype, tuple(port.shape)) for port in ports}
        given = {tensor.name: (tensor.dtype, tuple(tensor.shape)) for tensor in tensors}
        for name in sorted(wanted.keys() ^ given.keys() | {n for n in wanted.keys() & given if wanted[n] != given[n]}):
            yield Fault(f"the {side} {name} is {_said(given.get(name))}, the policy has {_said(wanted.get(name))}",
                        where=path.name)  # fmt: skip


def _said(form: tuple[str, tuple[int, ...]] | None) -> str:
    return "not there" if form is None else f"{form[0]} {list(form[1])}"

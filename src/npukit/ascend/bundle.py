# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""A bundle: everything that is needed to compile models to OM on a machine with CANN and without npukit.

It is a folder (or a tar file of one) with a folder for each model, `compile.sh`, `README.txt`, `SHA256SUMS`, and
`bundle.json`, by which npukit knows the OMs that come back. Equal input gives equal bytes.
"""

from __future__ import annotations

import contextlib
import gzip
import json
import os
import shlex
import tarfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path, PurePosixPath
from typing import Any

import npukit
from npukit.ascend.atc import Job
from npukit.errors import ArtifactError, UsageError, nearest
from npukit.files import atomic_write, os_errors, sha256_file

MANIFEST = "bundle.json"
SUMS = "SHA256SUMS"
OUT = "out"
_FORMAT = 1
_MAX_MANIFEST = 16 << 20
_HINT = "give the folder or the tar file that --bundle wrote"
_TARS = (".tar", ".tar.gz", ".tgz")


@dataclass(frozen=True)
class Entry:
    """One model of a bundle.

    Attributes:
        name: its folder in the bundle, and the OM's name.
        job: how atc is called in that folder.
        stamp: what will stand beside the OM, as JSON values.
    """

    name: str
    job: Job
    stamp: Mapping[str, Any]


def is_tar(path: Path) -> bool:
    """Whether a bundle of this name is a tar file."""
    return path.name.endswith(_TARS)


def write(folder: Path, entries: Sequence[Entry]) -> None:
    """Add what belongs around the models, which already lie in their folders below `folder`.

    Raises:
        NpukitError: a file cannot be written.
    """
    names = " ".join(entry.name for entry in entries)
    calls = [f"compile {entry.name} {shlex.join(entry.job.arguments)}\n" for entry in entries]
    template = resources.files("npukit.ascend").joinpath("data/compile.sh").read_text("utf-8")
    values = {"VERSION": npukit.__version__, "NAMES": names, "JOBS": "".join(calls)}
    for key, value in values.items():
        template = template.replace(f"@{key}@", value)
    manifest = {
        "npukit_bundle": _FORMAT,
        "npukit_version": npukit.__version__,
        "models": [
            {"name": e.name, "soc_version": e.job.soc_version, "arguments": e.job.arguments, "stamp": dict(e.stamp)}
            for e in entries
        ],
    }
    with os_errors(folder, "write"):
        (folder / "compile.sh").write_text(template, "utf-8", newline="\n")
        (folder / "compile.sh").chmod(0o755)
        text = json.dumps(manifest, indent=1, sort_keys=True, allow_nan=False)
        (folder / MANIFEST).write_text(text + "\n", "utf-8", newline="\n")
        (folder / "README.txt").write_text(_readme(entries), "utf-8", newline="\n")
    lines = [f"{sha256_file(path)}  {path.relative_to(folder).as_posix()}\n" for path in files(folder)]
    with os_errors(folder, "write"):
        (folder / SUMS).write_text("".join(lines), "utf-8", newline="\n")


def files(folder: Path) -> list[Path]:
    """The files of a bundle in order, without checksums and results."""
    found = (path for path in folder.rglob("*") if path.is_file())
    return sorted(p for p in found if p.name != SUMS and p.relative_to(folder).parts[0] != OUT)


def _readme(entries: Iterable[Entry]) -> str:
    rows = "".join(f"  {e.name}: for {e.job.soc_version}\n    {e.job.command()}\n" for e in entries)
    return f"""Models for Huawei's atc, the compiler of the CANN toolkit. Made by npukit {npukit.__version__}.

{rows}
1. Copy this folder to a machine with CANN (toolkit and kernels; an NPU is not needed), to a path of letters, digits,
   '_', '-' and '.'.
2. There: sh compile.sh
   It checks the files, sources CANN's set_env.sh if atc is not on PATH, runs atc for each model and checks what comes
   out. OMs, atc's output and checksums are in the folder out.
3. Take the folder out back. To check an OM and to put its stamp beside it (what it was made from, its inputs and
   outputs): npukit compile out/NAME.om --from-bundle THIS_FOLDER -o NAME.om
   The OM runs without that too.
"""


def pack(folder: Path, path: Path) -> None:
    """Write the folder as a tar file (compressed by its ending); owners and times are left out of it.

    Raises:
        NpukitError: it cannot be written.
    """
    stem = path.name[: -len(next(ending for ending in _TARS if path.name.endswith(ending)))]
    with atomic_write(path) as temp, os_errors(path, "write", instead_of=temp), _tar(temp, path.suffix) as archive:
        for file in [*files(folder), folder / SUMS]:
            info = archive.gettarinfo(file, f"{stem}/{file.relative_to(folder).as_posix()}")
            info.uid = info.gid = 0
            info.uname = info.gname = ""
            info.mtime = 0
            info.mode = 0o755 if os.access(file, os.X_OK) else 0o644
            with file.open("rb") as stream:
                archive.addfile(info, stream)


@contextlib.contextmanager
def _tar(temp: Path, suffix: str) -> Iterator[tarfile.TarFile]:
    """A tar file to fill. tarfile's own "w:gz" would note the time and the temporary file's name."""
    with contextlib.ExitStack() as stack:
        stream: Any = stack.enter_context(temp.open("wb"))
        if suffix != ".tar":
            stream = stack.enter_context(gzip.GzipFile("", "wb", 6, stream, mtime=0))
        yield stack.enter_context(tarfile.open(fileobj=stream, mode="w:"))


@dataclass(frozen=True)
class Model:
    """A model as a bundle knows it: its name, soc_version, atc's arguments, and the stamp for the OM."""

    name: str
    soc_version: str
    arguments: tuple[str, ...]
    stamp: Mapping[str, Any]


def read(path: Path) -> list[Model]:
    """The models of a bundle, from its folder or tar file.

    Raises:
        ArtifactError: it is no bundle, or a damaged one.
    """
    raw = _manifest(path)
    try:
        value = json.loads(raw)
        if not isinstance(value, dict) or value.get("npukit_bundle") != _FORMAT:
            raise ValueError("it is not one that this npukit reads")
        models = [
            Model(str(row["name"]), str(row["soc_version"]), tuple(map(str, row["arguments"])), dict(row["stamp"]))
            for row in value["models"]
        ]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ArtifactError(f"the bundle cannot be read: {error}", where=str(path), hint=_HINT) from error
    return models


def _manifest(path: Path) -> bytes:
    """The bytes of bundle.json; the checksums say whether they are those that were written."""
    if path.is_dir():
        place = path / MANIFEST
        if not place.is_file():
            raise ArtifactError(f"the folder holds no {MANIFEST}: it is no bundle", where=str(path), hint=_HINT)
        with os_errors(place, "read"), place.open("rb") as stream:
            return stream.read(_MAX_MANIFEST)
    with os_errors(path, "read"):
        try:
            with tarfile.open(path) as archive:
                for member in archive:
                    if PurePosixPath(member.name).name == MANIFEST and member.isfile():
                        file = archive.extractfile(member)
                        return b"" if file is None else file.read(_MAX_MANIFEST)
        except (tarfile.TarError, EOFError) as error:
            raise ArtifactError(f"not a sound tar file: {error}", where=str(path), hint=_HINT) from error
    raise ArtifactError(f"it holds no {MANIFEST}: it is no bundle", where=str(path), hint=_HINT)


def model_of(om: Path, models: Sequence[Model]) -> Model:
    """The model of a bundle that an OM of this name is.

    Raises:
        UsageError: none of the bundle's models has this name.
    """
    for model in models:
        if om.stem == model.name or om.stem.startswith(f"{model.name}_linux_"):
            return model
    names = [model.name for model in models]
    raise UsageError(
        "the bundle has no model of this name", where=str(om), hint=f"{nearest(om.stem, names)}; do not rename OMs"
    )


def recorded_sum(om: Path) -> str:
    """The SHA-256 that compile.sh noted for an OM, from the SHA256SUMS beside it; empty where there is none."""
    sums = om.parent / SUMS
    if not sums.is_file():
        return ""
    with os_errors(sums, "read"):
        for line in sums.read_text("utf-8", "replace").splitlines():
            digest, _, name = line.partition("  ")
            if name == om.name:
                return digest
    return ""

# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""`npukit libs`: versions of Qualcomm's libraries side by side."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from npukit.analysis import text
from npukit.errors import UsageError, nearest
from npukit.verbs.options import arg, opt, verb

_ACTIONS = ("list", "add")


@dataclass(frozen=True)
class LibsOptions:
    """List the libraries found, or add a version of the wheel onnxruntime-qnn to npukit's data folder.

    `npukit libs add 2.7.0` takes it from the package index; nothing else in npukit uses the network unasked.
    """

    action: str = arg("list or add", default="list", parse=None, metavar="list|add")
    version: str | None = arg("version of the wheel to add", default=None, parse=None)
    paths: bool = opt(False, "Show each library's whole path.", "--paths")


@dataclass(frozen=True)
class LibsResult:
    """The libraries found.

    Attributes:
        rows: one object a library: role, build, source, path, refused, chosen.
        added: the folder that a version was added to.
    """

    rows: tuple[dict[str, Any], ...]
    added: Path | None = None
    show_paths: bool = False
    exit_code: int = 0

    def to_json(self) -> dict[str, Any]:
        return {"libraries": list(self.rows), "added": None if self.added is None else str(self.added)}

    def to_text(self) -> str:
        lines = [f"added to {self.added}"] if self.added else []
        return "\n".join([*lines, library_table(self.rows, paths=self.show_paths)])


@verb(LibsOptions)
def libs(options: LibsOptions) -> LibsResult:
    """The libraries found, after adding `version` where `action` is "add".

    Raises:
        UsageError: an unknown action, or a version that is none.
        MissingDependency: the version cannot be had.

    Example:
        >>> {"cpu", "htp", "ir", "system"} <= {row["role"] for row in npukit.libs().rows if row["chosen"]}
        True
    """
    from npukit.qnn.api import libraries

    if options.action not in _ACTIONS:
        raise UsageError(f"there is no action {options.action!r}", hint=nearest(options.action, _ACTIONS))
    added = None
    if options.action == "add":
        if not options.version:
            raise UsageError("which version?", hint="for example: npukit libs add 2.7.0")
        added = libraries.add_wheel(options.version)
    elif options.version:
        raise UsageError(f"{options.version!r} is not understood", hint="npukit libs add VERSION")
    return LibsResult(library_rows(), added, options.paths)


def library_rows() -> tuple[dict[str, Any], ...]:
    """Every library found, in search order, as JSON-ready objects; `chosen` marks the one used for its role."""
    from npukit.errors import NpukitError
    from npukit.qnn.api import libraries

    chosen = set()
    for role in libraries.ROLES:
        try:
            chosen.add(libraries.find(role).path)
        except NpukitError:
            continue
    return tuple(
        {
            "role": library.role,
            "build": library.build_id,
            "source": library.source,
            "path": str(library.path),
            "refused": library.refused,
            "chosen": library.path in chosen,
        }
        for library in libraries.installed()
    )


def library_table(rows: tuple[dict[str, Any], ...], *, paths: bool = False) -> str:
    """The rows as plain text."""
    if not rows:
        return "no QNN library found: pip install onnxruntime-qnn, or set NPUKIT_QNN_LIB_DIR or QNN_SDK_ROOT"
    cells = [
        (
            row["role"],
            row["build"] or "unknown",
            "used" if row["chosen"] else f"refused: {row['refused']}" if row["refused"] else "older or later in order",
            row["source"],
            row["path"] if paths else str(Path(row["path"]).parent),
        )
        for row in rows
    ]
    return text.table(("library", "QAIRT", "", "from", "path" if paths else "folder"), cells)

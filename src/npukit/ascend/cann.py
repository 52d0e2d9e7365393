# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""Finds Huawei's CANN toolkit and makes the environment that its programs need, as its set_env.sh does.

set_env.sh itself is not run: it is a script for interactive shells whose only effect is the variables below, and a
search that runs scripts would have to trust every folder it looks into. Facts: ascend_facts.md 1.1.
"""

from __future__ import annotations

import os
import platform
import re
from dataclasses import dataclass
from pathlib import Path

from npukit.errors import Fault, MissingDependency

VARIABLES = ("ASCEND_TOOLKIT_HOME", "ASCEND_HOME_PATH")
"""Variables that set_env.sh sets to the toolkit's folder; the first that is set decides."""

FOLDERS = (
    "/usr/local/Ascend/ascend-toolkit/latest",
    "/usr/local/Ascend/cann",
    "~/Ascend/ascend-toolkit/latest",
    "~/Ascend/cann",
)
"""Where the installer puts the toolkit: up to CANN 8 and from 9 on, for root and for other users."""

DRIVER = Path("/usr/local/Ascend/driver")

_ATC = ("bin/atc", "compiler/bin/atc", "atc/bin/atc")
_INNER = ("", "latest", "ascend-toolkit/latest", "cann")
_HINT = (
    "install CANN's toolkit and kernels, then source its set_env.sh or set ASCEND_TOOLKIT_HOME; to compile on another "
    "machine: npukit compile MODEL --target TARGET --bundle DIR"
)


@dataclass(frozen=True)
class Cann:
    """A CANN toolkit that was found.

    Attributes:
        root: its folder, where `bin` and `opp` lie.
        source: how it was found: the name of a variable, "PATH", or "default folder".
        version: "8.2.RC1"; empty where no file of it says so.
        atc: the compiler's start script.
        opp: the folder of its operators.
    """

    root: Path
    source: str
    version: str
    atc: Path
    opp: Path

    def kernels(self, family: str) -> bool:
        """Whether kernels of a chip family ("ascend310p") are installed: their tables lie where atc reads them."""
        return (self.opp / "built-in/op_impl/ai_core/tbe/config" / family).is_dir()


def find() -> Cann:
    """The CANN toolkit of this machine.

    A variable that is set but leads to no toolkit is an error: nobody wants another one than the one they named.

    Raises:
        MissingDependency: there is none; each place that was looked at is listed with what is wrong there.
    """
    faults: list[Fault] = []
    for name in VARIABLES:
        value = os.environ.get(name, "")
        if not value:
            faults.append(Fault("is not set", name))
            continue
        found = _at(Path(value).expanduser(), name)
        if isinstance(found, Cann):
            return found
        raise MissingDependency(
            "CANN was not found where a variable says", faults=[Fault(found, f"{name}={value}")], hint=_HINT
        )
    on_path = _on_path()
    places = [(Path(folder).expanduser(), "default folder") for folder in FOLDERS]
    for folder, source in ([(on_path, "PATH")] if on_path else []) + places:
        found = _at(folder, source)
        if isinstance(found, Cann):
            return found
        faults.append(Fault(found, str(folder)))
    raise MissingDependency("CANN, Huawei's toolkit with the compiler atc, was not found", faults=faults, hint=_HINT)


def _on_path() -> Path | None:
    """The toolkit whose atc is on PATH: the folder above `bin`, links followed as the start script does."""
    for folder in os.environ.get("PATH", "").split(os.pathsep):
        atc = Path(folder or ".") / "atc"
        # Other programs are called atc too: only one that stands beside CANN's operators is meant.
        if atc.is_file() and (root := atc.resolve().parent.parent) and (root / "opp").is_dir():
            return root
    return None


def _at(folder: Path, source: str) -> Cann | str:
    """The toolkit in `folder`, or in the place below it that its set_env.sh names; else what is wrong."""
    if not folder.is_dir():
        return "there is no such folder"
    candidates = [folder / inner for inner in _INNER]
    if named := _named_by_script(folder / "set_env.sh"):
        candidates.insert(1, named)
    for root in candidates:
        for name in _ATC:
            atc = root / name
            if atc.is_file():
                return _checked(root, source, atc)
    return "it holds no bin/atc: this is not a CANN toolkit (the run-time packages nnrt and driver have no compiler)"


def _checked(root: Path, source: str, atc: Path) -> Cann | str:
    if not os.access(atc, os.X_OK):
        return f"{atc} cannot be executed: check its permissions"
    if any(c.isspace() for c in str(atc.resolve())):
        return "its path holds blanks, which atc's own start script cannot handle: make a link without them"
    opp = Path(os.environ.get("ASCEND_OPP_PATH") or root / "opp")
    if not opp.is_dir():
        return f"there are no operators in {opp}: install the kernels package, or mend ASCEND_OPP_PATH"
    return Cann(root, source, _version(root), atc, opp)


def _named_by_script(script: Path) -> Path | None:
    """The folder that a set_env.sh exports as ASCEND_TOOLKIT_HOME, where it is written out."""
    try:
        text = script.read_text("utf-8", "replace")
    except OSError:
        return None
    match = re.search(r"^\s*export ASCEND_TOOLKIT_HOME=[\"']?(/[^\s\"'$;]+)", text, re.MULTILINE)
    return Path(match[1]) if match else None


_VERSIONS = (
    ("version.cfg", r"^toolkit_(?:running|installed)_version=\[(?:[^:\]\n]*:)?([^\]\n]+)\]"),
    ("ascend_toolkit_install.info", r"^version=(\S+)"),
    ("*-linux/ascend_toolkit_install.info", r"^version=(\S+)"),
)


def _version(root: Path) -> str:
    """What the toolkit's own files say about its version; empty where there are none."""
    for pattern, line in _VERSIONS:
        for file in sorted(root.glob(pattern)):
            try:
                match = re.search(line, file.read_text("utf-8", "replace"), re.MULTILINE)
            except OSError:
                continue
            if match:
                return match[1]
    return ""


def environment(cann: Cann) -> dict[str, str]:
    """This process's variables with those that CANN's set_env.sh sets, for a child process.

    The lists (PATH, LD_LIBRARY_PATH, PYTHONPATH) keep what was in them, behind CANN's own. Where no driver is
    installed, the stand-in libraries for compiling (devlib) come last.
    """
    root, machine = cann.root, platform.machine()
    tiling = "built-in/op_impl/ai_core/tbe/op_tiling/lib/linux"
    libraries = [root / "lib64", root / "lib64/plugin/opskernel", root / "lib64/plugin/nnengine"]
    libraries += [cann.opp / tiling / machine, root / "tools/aml/lib64", root / "tools/aml/lib64/plugin"]
    last = [DRIVER / "lib64" / part for part in ("", "common", "driver")]
    if not DRIVER.is_dir():
        last = [root / f"{machine}-linux/devlib"]
    programs = [root / "bin", root / "compiler/ccec_compiler/bin", root / "tools/ccec_compiler/bin"]
    modules = [root / "python/site-packages", cann.opp / "built-in/op_impl/ai_core/tbe"]
    return {
        **os.environ,
        "ASCEND_TOOLKIT_HOME": str(root),
        "ASCEND_HOME_PATH": str(root),
        "ASCEND_AICPU_PATH": str(root),
        "ASCEND_OPP_PATH": str(cann.opp),
        "TOOLCHAIN_HOME": str(root / "toolkit"),
        "PATH": _joined(programs, "PATH"),
        "LD_LIBRARY_PATH": _joined(libraries, "LD_LIBRARY_PATH", last),
        "PYTHONPATH": _joined(modules, "PYTHONPATH"),
    }


def _joined(first: list[Path], variable: str, last: list[Path] | None = None) -> str:
    held = [part for part in os.environ.get(variable, "").split(os.pathsep) if part]
    return os.pathsep.join(dict.fromkeys([*map(str, first), *held, *map(str, last or [])]))

# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""Finding Qualcomm's libraries, and loading one.

Search order: the folder named by --qnn-lib-dir or NPUKIT_QNN_LIB_DIR, QNN_SDK_ROOT, then npukit's data folder and
the installed onnxruntime-qnn wheel. The last two stand side by side: among them each role takes the newest
that has its library (the DLC writer of 2.47 breaks some 4-bit encodings, that of 2.51 does not; only the wheel
with 2.47 has libQnnCpu for x86-64). Looking for libraries never loads one: the QAIRT build is read from the
file's bytes (milliseconds). The core API version, which the tables depend on, is checked when one is loaded.
"""

from __future__ import annotations

import ctypes
import functools
import importlib.util
import logging
import mmap
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from ctypes import POINTER, byref, c_uint32, c_uint64, c_void_p
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from npukit.errors import MissingDependency, NativeError, NpukitError, UsageError, nearest
from npukit.qnn.api import declarations as d
from npukit.qnn.api.quiet import quiet_fds

log = logging.getLogger(__name__)

ROLES = {
    "cpu": "QnnCpu",
    "htp": "QnnHtp",
    "ir": "QnnIr",
    "system": "QnnSystem",
    "saver": "QnnSaver",
    "gpu": "QnnGpu",
}
"""Library by role; the file is lib<name>.so, or <name>.dll on Windows."""

OLDEST_SDK = (2, 30)  # core API 2.23, the first with the DLC writer
NEWEST_SDK = (2, 51)  # core API 2.40
LIB_DIR_VARIABLE = "NPUKIT_QNN_LIB_DIR"
SDK_VARIABLE = "QNN_SDK_ROOT"
WHEEL = "onnxruntime_qnn"

_BUILD = re.compile(rb"v(2\.\d{1,3}\.\d{1,3}\.\d{9,15})(?![\d.])")
_SDK_FOLDERS = {
    ("linux", "x86_64"): ("x86_64-linux-clang",),
    ("linux", "aarch64"): ("aarch64-oe-linux-*", "aarch64-ubuntu-*", "aarch64-*linux*"),
    ("win32", "amd64"): ("x86_64-windows-msvc",),
    ("win32", "arm64"): ("aarch64-windows-msvc", "arm64x-windows-msvc"),
}
_UNPACK_NAMES = re.compile(r"(lib)?Qnn\w+\.(so|dll)|(lib)?HtpPrepare\.(so|dll)|lib[\w+-]+\.so[.\d]*|.*LICENSE(\.pdf)?")
_UNPACK_SKIP = re.compile(r".*(Genie|providers).*")
_UNPACK_LIMIT = 1 << 30


@dataclass(frozen=True)
class Library:
    """A library file that was found; nothing is loaded before `load`, `core_version` or `provider` is asked for.

    Attributes:
        path: the file.
        role: "cpu", "htp", "ir", "system", "saver" or "gpu".
        source: where from: "--qnn-lib-dir", "NPUKIT_QNN_LIB_DIR", "QNN_SDK_ROOT", "data folder" or "wheel".
        build_id: QAIRT build as the file holds it, such as "2.47.0.260601114230"; empty if it holds none.
        refused: why it is not used; empty if it may be.
    """

    path: Path
    role: str
    source: str
    build_id: str
    refused: str = ""

    @property
    def sdk(self) -> tuple[int, ...]:
        """QAIRT version as integers, such as (2, 47, 0); (0,) if unknown."""
        return tuple(int(part) for part in self.build_id.split(".")[:3]) if self.build_id else (0,)

    def load(self) -> Loaded:
        """Loads the library (once a process) and checks its API version. NativeError where that fails."""
        return _load(self.path, self.role)

    @property
    def core_version(self) -> tuple[int, ...]:
        """Core API version, or the System API version for role "system". Loads the library."""
        return self.load().core_version

    @property
    def backend_version(self) -> tuple[int, ...]:
        """Version of the backend's own API; (0, 0, 0) for role "system". Loads the library."""
        return self.load().backend_version

    @property
    def provider(self) -> str:
        """The provider's name, such as "HTP_QTI_AISW". Loads the library."""
        return self.load().provider

    def __str__(self) -> str:
        return f"{self.path.name} {self.build_id or 'of unknown build'} ({self.source}: {self.path.parent})"


class Functions:
    """A function table: `functions.graphCreate(...)` calls the slot. Absent slots raise NativeError by name."""

    def __init__(self, address: int, names: Sequence[str], label: str) -> None:
        self._slots = (c_void_p * len(names)).from_address(address)
        self._index = {name: i for i, name in enumerate(names)}
        self._label = label

    def has(self, name: str) -> bool:
        """Whether the library has the slot and it is not NULL."""
        index = self._index.get(name)
        return index is not None and bool(self._slots[index])

    def address(self, name: str) -> int:
        """The function's address. NativeError where the library lacks it."""
        if not self.has(name):
            raise NativeError(f"{self._label} has no {name}", hint="use a newer QAIRT: npukit libs add VERSION")
        return int(self._slots[self._index[name]] or 0)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        function = d.PROTOTYPES[name](self.address(name))
        setattr(self, name, function)
        return function


@dataclass(frozen=True)
class Loaded:
    """A loaded library: its function table and what it says about itself.

    `address` is that of the interface structure, `slots` the number of its slots, `exact` whether that number is
    certain (it must be where the structure is passed by value).
    """

    path: Path
    functions: Functions
    core_version: tuple[int, ...]
    backend_version: tuple[int, ...]
    provider: str
    backend_id: int
    address: int
    slots: int
    exact: bool


_loaded: dict[Path, Loaded] = {}
_load_lock = threading.Lock()


def _load(path: Path, role: str) -> Loaded:
    with _load_lock:
        if path not in _loaded:
            _loaded[path] = _open(path, role)
        return _loaded[path]


def _open(path: Path, role: str) -> Loaded:
    if sys.platform == "win32":
        os.add_dll_directory(str(path.parent))
    try:
        with quiet_fds():  # the emulator prints a line of its own when it is loaded
            library = ctypes.CDLL(str(path))
    except OSError as error:
        raise NativeError(f"cannot load the library: {error}", where=str(path)) from None
    system = role == "system"
    symbol = "QnnSystemInterface_getProviders" if system else "QnnInterface_getProviders"
    try:
        get = getattr(library, symbol)
    except AttributeError:
        raise NativeError(f"is no QNN library (it does not export {symbol})", where=str(path)) from None
    get.restype = c_uint64
    get.argtypes = [POINTER(POINTER(c_void_p)), POINTER(c_uint32)]
    providers, count = POINTER(c_void_p)(), c_uint32()
    code = get(byref(providers), byref(count)) & d.ERROR_MASK
    if code or not count.value or not providers[0]:
        raise NativeError(f"{symbol} failed: {code} {d.error_symbol(code)}, {count.value} providers", where=str(path))
    return _describe(path, int(providers[0]), system=system)


def _describe(path: Path, address: int, *, system: bool) -> Loaded:
    if system:
        head: Any = d.SystemInterfaceHead.from_address(address)
        core, slots, exact = tuple(head.core), d.system_slot_count(tuple(head.core)), False
        known, names, head_size = core[0] == 1 and slots > 0, d.SYSTEM_SLOTS, d.SYSTEM_HEAD_SIZE
    else:
        head = d.InterfaceHead.from_address(address)
        core = tuple(head.core)
        slots, exact = d.core_slot_count(core)
        known, names, head_size = d.OLDEST_CORE <= core[:2] <= d.NEWEST_CORE, d.CORE_SLOTS, d.HEAD_SIZE
    version = ".".join(map(str, core))
    if not known:
        raise NativeError(
            f"has API version {version}, npukit knows {'System 1.7 and later' if system else 'core 2.23 to 2.40'}",
            where=str(path),
            hint="npukit libs add 2.7.0 brings one that fits",
        )
    return Loaded(
        path,
        Functions(address + head_size, names[:slots], f"{path.name} (API {version})"),
        core,
        (0, 0, 0) if system else tuple(head.backend),
        (head.providerName or b"").decode("utf-8", "replace"),
        int(head.backendId),
        address,
        slots,
        exact,
    )


# ----------------------------------------------------------------------------------------- search


def data_folder() -> Path:
    """The data folder: NPUKIT_DATA_DIR, else the platform's place for a user's program data."""
    if named := os.environ.get("NPUKIT_DATA_DIR"):
        return Path(named)
    if sys.platform == "win32":
        base = os.environ.get("LOCALAPPDATA")
        return Path(base) / "npukit" if base else Path.home() / "AppData" / "Local" / "npukit"
    base = os.environ.get("XDG_DATA_HOME")
    return Path(base) / "npukit" if base else Path.home() / ".local" / "share" / "npukit"


def file_name(role: str) -> str:
    """The file name of a role's library on this platform. UsageError for an unknown role."""
    if role not in ROLES:
        raise UsageError(f"unknown library role {role!r}", hint=nearest(role, ROLES))
    return f"{ROLES[role]}.dll" if sys.platform == "win32" else f"lib{ROLES[role]}.so"


def folders(lib_dir: Path | None = None) -> Iterator[tuple[str, Path]]:
    """Every (source, folder) to look in, in search order; some may not exist."""
    if lib_dir is not None:
        yield "--qnn-lib-dir", lib_dir
    if named := os.environ.get(LIB_DIR_VARIABLE):
        yield LIB_DIR_VARIABLE, Path(named)
    if root := os.environ.get(SDK_VARIABLE):
        for pattern in _SDK_FOLDERS.get((sys.platform, platform.machine().lower()), ()):
            for folder in sorted((Path(root) / "lib").glob(pattern)):
                yield SDK_VARIABLE, folder
    for folder in sorted((data_folder() / "libs").glob(f"*/{WHEEL}")):
        yield "data folder", folder
    if wheel := _wheel_folder():
        yield "wheel", wheel


def _wheel_folder() -> Path | None:
    spec = importlib.util.find_spec(WHEEL)  # does not import the package (which would load ONNX Runtime)
    if spec is None or not spec.submodule_search_locations:
        return None
    return Path(next(iter(spec.submodule_search_locations)))


def installed(lib_dir: Path | None = None, *, roles: Iterable[str] = tuple(ROLES)) -> list[Library]:
    """Every library found for `roles`, in search order, the refused ones with the reason. Loads nothing."""
    found: dict[Path, Library] = {}
    for source, folder in folders(lib_dir):
        for role in roles:
            path = folder / file_name(role)
            if path.is_file() and path not in found:
                found[path] = _examine(path, role, source)
    return list(found.values())


def _examine(path: Path, role: str, source: str) -> Library:
    build = _build_id(path, path.stat().st_mtime_ns) or _sibling_build(path)
    if not build:
        return Library(path, role, source, "", "no QAIRT build id in this file or those beside it")
    library = Library(path, role, source, build)
    if not OLDEST_SDK <= library.sdk[:2] <= NEWEST_SDK:
        return Library(path, role, source, build, f"QAIRT {build} is outside the supported range 2.30 to 2.51")
    return library


def _sibling_build(path: Path) -> str:
    """The build of the smallest library beside `path` that holds one (libQnnSystem holds none itself)."""
    beside = [p for role in ROLES if (p := path.parent / file_name(role)).is_file() and p != path]
    for sibling in sorted(beside, key=lambda p: p.stat().st_size):
        if build := _build_id(sibling, sibling.stat().st_mtime_ns):
            return build
    return ""


@functools.lru_cache(maxsize=256)
def _build_id(path: Path, _mtime: int) -> str:
    """The first QAIRT build string in the file's bytes, without the leading v; empty if there is none."""
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            match = _BUILD.search(data)
            return match[1].decode() if match else ""
    except (OSError, ValueError):  # unreadable, or empty
        return ""


def find(role: str, lib_dir: Path | None = None) -> Library:
    """The library to use for `role`: by search order, among data folder and wheel the newest.

    Raises MissingDependency, naming what was found and refused, where there is none; UsageError for an unknown role.
    """
    name = file_name(role)
    candidates = installed(lib_dir, roles=(role,))
    for library in candidates:
        if library.refused:
            _warn_once(library)
    usable = [library for library in candidates if not library.refused]
    named = [library for library in usable if library.source not in ("data folder", "wheel")]
    if named:
        return named[0]
    if usable:
        return max(usable, key=lambda library: library.sdk)  # the first of equals: the data folder's
    reasons = "; ".join(f"{library.path}: {library.refused}" for library in candidates)
    raise MissingDependency(
        f"no {name} found" + (f" that can be used ({reasons})" if reasons else ""),
        hint=_HINTS.get(role, f"pip install onnxruntime-qnn, or set {LIB_DIR_VARIABLE} or {SDK_VARIABLE}"),
    )


_HINTS = {
    "cpu": "libQnnCpu for x86-64 is in the wheel onnxruntime-qnn 2.3.0 only: npukit libs add 2.3.0, or set QNN_SDK_ROOT"
}


@functools.cache
def _warn_once(library: Library) -> None:
    log.warning("skipping %s: %s", library.path, library.refused)


# ---------------------------------------------------------------------------------------- adding


def add_wheel(version: str) -> Path:
    """Takes the libraries of onnxruntime-qnn==`version` from the package index into the data folder.

    Needs network access and pip. Only library and licence files are unpacked, at most 1 GiB. Returns the folder; an
    existing one is replaced. Raises UsageError for a bad version, MissingDependency where it cannot be had.
    """
    if not re.fullmatch(r"\d+(\.\d+){1,3}", version):
        raise UsageError(f"{version!r} is no version of onnxruntime-qnn", hint="for example: npukit libs add 2.7.0")
    libs = data_folder() / "libs"
    libs.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=libs, prefix=".add-") as work:
        wheel = _download(version, Path(work))
        unpacked = Path(work) / "new"
        _unpack(wheel, unpacked)
        if not (unpacked / WHEEL).is_dir():
            raise MissingDependency(f"onnxruntime-qnn {version} has no QNN libraries for this platform")
        final = libs / version
        old = Path(work) / "old"
        if final.exists():
            final.rename(old)
        unpacked.rename(final)
    return final


def _download(version: str, folder: Path) -> Path:
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    command += ["--only-binary=:all:", "--dest", str(folder), f"onnxruntime-qnn=={version}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    wheels = sorted(folder.glob("*.whl"))
    if done.returncode or not wheels:
        reason = next((line for line in reversed(done.stderr.splitlines()) if "ERROR" in line), done.stderr.strip())
        raise MissingDependency(
            f"pip could not download onnxruntime-qnn {version}: {reason}",
            hint="check the version on the package index and this machine's network access",
        )
    return wheels[0]


def _unpack(wheel: Path, target: Path) -> None:
    """Unpacks the library and licence files of a wheel, by name, at most `_UNPACK_LIMIT` bytes."""
    total = 0
    with zipfile.ZipFile(wheel) as archive:
        for member in archive.infolist():
            folder, _, name = member.filename.rpartition("/")
            wanted = folder in (WHEEL, f"{WHEEL}.libs") and _UNPACK_NAMES.fullmatch(name)
            if not wanted or _UNPACK_SKIP.fullmatch(name):
                continue
            total += member.file_size
            if total > _UNPACK_LIMIT:
                raise NpukitError(f"the libraries exceed {_UNPACK_LIMIT >> 30} GiB unpacked", where=wheel.name)
            path = target / folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            with archive.open(member) as source, path.open("wb") as sink:
                shutil.copyfileobj(source, sink, 1 << 20)

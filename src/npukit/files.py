# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""Files: atomic writes, safe paths, bounded archives, and arrays read from what users hand in.

Nothing here executes what a file says (no pickle), trusts a size before it is checked, or leaves a partial file.
numpy and pillow are imported where they are used: `npukit --help` needs neither.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import io
import logging
import math
import os
import platform
import secrets
import shutil
import stat
import struct
import tempfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, BinaryIO

from npukit.errors import ArtifactError, InputError, NpukitError, nearest

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Buffer = bytes | bytearray | memoryview

log = logging.getLogger(__name__)

_TEMP_SUFFIX = ".npukit-tmp"

_OS_ERRORS = {
    errno.ENOSPC: ("no space is left on the device", "free some space or write elsewhere"),
    errno.EDQUOT: ("the disk quota is used up", "free some space or write elsewhere"),
    errno.EFBIG: ("the file would be larger than this file system or limit allows", "write elsewhere"),
    errno.EACCES: ("permission denied", "check the permissions of the file and of its folder"),
    errno.EPERM: ("permission denied", "check the permissions of the file and of its folder"),
    errno.EROFS: ("the file system is read-only", "write elsewhere"),
    errno.ENOENT: ("no such file or folder", "check the path"),
    errno.ENOTDIR: ("a part of the path is not a folder", "check the path"),
    errno.EISDIR: ("this is a folder, a file is needed", "check the path"),
    errno.ENAMETOOLONG: ("the file name is too long", "choose a shorter name"),
    errno.ELOOP: ("the path goes through a loop of links", "check the path"),
}


def os_error(error: OSError, path: Path | str, action: str) -> NpukitError:
    """The `NpukitError` for an operating-system error met while trying to `action` ("read", "write") `path`."""
    said = error.strerror or str(error)
    known = error.errno and said == os.strerror(error.errno)  # else somebody else's words, which say more
    what, hint = _OS_ERRORS.get(error.errno or 0, (said, "")) if known else (said, "")
    return NpukitError(f"cannot {action} the file: {what}", where=str(path), hint=hint)


@contextlib.contextmanager
def os_errors(path: Path | str, action: str, *, instead_of: Path | None = None) -> Iterator[None]:
    """Turn an `OSError` of the body into the `NpukitError` that names the file and says what to do.

    That is the file that the error names, where it names one, else `path`; `path` also stands for `instead_of`.
    """
    try:
        yield
    except OSError as error:
        named = error.filename if isinstance(error.filename, str | os.PathLike) else None
        if named is None or Path(named) in (Path(path), Path(path).parent, instead_of):
            raise os_error(error, path, action) from error
        raise os_error(error, Path(named), "use") from error
    except ValueError as error:
        if "null byte" not in str(error):
            raise
        raise NpukitError(f"cannot {action} the file: its name holds a null byte", where=str(path)) from error


@contextlib.contextmanager
def atomic_write(path: Path | str) -> Iterator[Path]:
    """Write a file so that at any moment it is the old one, or absent, or complete.

    Yields the path of an empty temporary file in the same folder, for the body to fill or to replace. After the body
    the file is flushed to disk and renamed to `path`; on any exception (Ctrl-C included) it is removed. What an
    earlier process on this machine left behind for the same `path` when it was killed is removed too.

    Raises:
        NpukitError: the folder is missing or not writable, the disk is full, or `path` is not a regular file.
    """
    final = Path(path)
    with os_errors(final, "write"):
        if final.is_symlink():
            try:
                final = final.resolve()
            except RuntimeError:  # what pathlib makes of a loop up to Python 3.12
                raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), str(path)) from None
        if final.exists() and not final.is_file():
            raise NpukitError("cannot write the file: a folder or device of this name exists", where=str(path))
        _remove_stale(final.parent, _temp_prefix(final.name), _TEMP_SUFFIX)
        temp = final.with_name(f"{_temp_prefix(final.name)}{os.getpid()}-{secrets.token_hex(4)}{_TEMP_SUFFIX}")
        with os_errors(path, "write", instead_of=temp):
            descriptor = os.open(temp, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)
    try:
        # The mode that the user's umask (or the replaced file) asks for; a native writer may set another.
        mode = stat.S_IMODE((final if final.exists() else temp).stat().st_mode)
        os.close(descriptor)
        with os_errors(path, "write", instead_of=temp):
            yield temp
            if not temp.is_file():
                raise NpukitError("nothing was written", where=str(path))
            temp.chmod(mode)
            _sync(temp)
            os.replace(temp, final)
            if os.name == "posix":
                _sync(final.parent)
    finally:
        with contextlib.suppress(OSError):
            temp.unlink(missing_ok=True)


def _temp_prefix(name: str) -> str:
    # Another machine on a shared folder may well run a process of the same number: its files are not ours to judge.
    host = hashlib.sha256(platform.node().encode()).hexdigest()[:8]
    return f".{name[:180]}.{host}-"


def _remove_stale(folder: Path, prefix: str, suffix: str = "") -> None:
    for path in _stale(folder, prefix, suffix):
        log.info("removing %s, left by a process that was killed", path.name)
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            with contextlib.suppress(OSError):
                path.unlink()


def _stale(folder: Path, prefix: str, suffix: str = "") -> list[Path]:
    """What processes of this machine that have ended left in `folder`; names are PREFIX, process id, "-", anything.

    More dots before it are temporary files for temporary files: a worker's, for its parent's.
    """
    if os.name != "posix":  # os.kill(pid, 0) asks on POSIX, and ends the process on Windows
        return []
    found = []
    start = prefix.lstrip(".")
    for entry in os.scandir(folder):
        name = entry.name.lstrip(".")
        if name.startswith(start) and name.endswith(suffix):
            pid = name[len(start) :].partition("-")[0]
            if pid.isdigit() and not _alive(int(pid)):
                found.append(Path(entry.path))
    return found


def temporary_folder() -> str:
    """A new folder of this process for temporary files; those of processes that were killed are removed.

    The caller removes it.

    Raises:
        NpukitError: no folder for temporary files can be written.
    """
    prefix = _temp_prefix("npukit")[1:]
    try:
        base = Path(tempfile.gettempdir())
    except FileNotFoundError as error:  # no path failed: Python has tried a list of them
        hint = "free some space, or set TMPDIR to a folder that can be written"
        raise NpukitError("there is no folder for temporary files", where=str(error.strerror), hint=hint) from error
    with contextlib.suppress(OSError):
        _remove_stale(base, prefix)
    return tempfile.mkdtemp(prefix=f"{prefix}{os.getpid()}-")


def temporary_folder_beside(path: Path) -> Path:
    """A new folder of this process beside `path`, to be renamed to it when it is whole, or removed by the caller.

    What processes that were killed left there for the same `path` is removed.

    Raises:
        OSError: the folder that `path` is in cannot be written.
    """
    parent = path.resolve().parent
    prefix = _temp_prefix(path.name)
    _remove_stale(parent, prefix, _TEMP_SUFFIX)
    folder = parent / f"{prefix}{os.getpid()}-{secrets.token_hex(4)}{_TEMP_SUFFIX}"
    folder.mkdir()
    return folder


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):
        return True
    return True


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY if os.name == "posix" else os.O_RDWR)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # file systems that cannot sync a folder
            raise
    finally:
        os.close(descriptor)


def atomic_write_bytes(path: Path | str, data: Buffer) -> None:
    """Write `data` to `path` as `atomic_write` does."""
    with atomic_write(path) as temp:
        temp.write_bytes(data)


def inside(folder: Path | str, name: str) -> Path:
    """`folder / name` for a relative name that a file mentions (external data, archive members).

    The result stays in `folder`, links followed. Links into the blob store of a Hugging Face cache are allowed when
    `folder` is one of its snapshots, because that is how the cache lays out every model.

    Raises:
        NpukitError: the name is empty, absolute, or leads out of the folder.
    """
    base = Path(folder)
    posix = name.replace("\\", "/")
    parts = PurePosixPath(posix).parts
    if not parts or "\0" in name or posix.startswith("/") or ".." in parts or ":" in parts[0]:
        raise NpukitError(f"the path {name!r} leads out of the folder", where=str(folder), hint=_INSIDE_HINT)
    path = base.joinpath(*parts)
    try:
        root, real = base.resolve(), path.resolve()
    except (OSError, RuntimeError) as error:
        raise NpukitError(f"the path {name!r} cannot be resolved: {error}", where=str(folder)) from error
    roots = [root]
    if root.parent.name == "snapshots":
        roots.append(root.parent.parent / "blobs")
    if not any(real.is_relative_to(allowed) for allowed in roots):
        raise NpukitError(f"the path {name!r} leads out of the folder", where=str(folder), hint=_INSIDE_HINT)
    return path


_INSIDE_HINT = "the files that a model names must lie in its own folder"


def sha256_file(path: Path | str) -> str:
    """SHA-256 of a file's bytes as a hex string; NpukitError when it cannot be read."""
    with os_errors(path, "read"), open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


# --- zip archives, read by offset ---


@dataclass(frozen=True)
class ZipEntry:
    """A member of a zip archive: `stored` bytes at `offset` of the file become `size` bytes.

    Attributes:
        name: the member's name, a relative POSIX path.
        header: offset of the local header.
        offset: offset of the data.
        stored: bytes in the file.
        size: bytes when unpacked.
        method: 0 stored, 8 deflated.
        crc: CRC-32 from the directory (0 in files that libQnnIr wrote, whatever the data).
    """

    name: str
    header: int
    offset: int
    stored: int
    size: int
    method: int
    crc: int


_END = struct.Struct("<4s4H2LH")
_END64 = struct.Struct("<4sQ2H2L4Q")
_LOCATOR64 = struct.Struct("<4sLQL")
_CENTRAL = struct.Struct("<4s6H3L5H2L")
_LOCAL = struct.Struct("<4s5H3L2H")


def zip_entries(data: Buffer, *, where: str = "", max_entries: int = 65_536) -> list[ZipEntry]:
    """The members of a zip archive in directory order, every offset and size checked against the file.

    Raises:
        ArtifactError: no zip, truncated, encrypted, members that overlap or lie outside the file, names that are
            repeated or lead out of a folder, more than `max_entries` members.
    """
    view = memoryview(data).cast("B")
    try:
        return _entries(view, max_entries)
    except (struct.error, UnicodeDecodeError, ValueError) as error:
        raise ArtifactError(f"the file is not a sound zip archive: {error}", where=where, hint=_ZIP_HINT) from error


_ZIP_HINT = "it was truncated, damaged or is of another kind; make or copy it again"


def _entries(view: memoryview, max_entries: int) -> list[ZipEntry]:
    count, directory, directory_size, end = _zip_end(view)
    if count > max_entries:
        raise ValueError(f"{count} members, at most {max_entries} are read")
    if directory + directory_size > end:
        raise ValueError("the directory lies outside the file")
    entries: list[ZipEntry] = []
    at = directory
    for _ in range(count):
        fields = _CENTRAL.unpack_from(view, at)
        name_size, extra_size, comment_size = fields[10:13]
        start = at + _CENTRAL.size
        at = start + name_size + extra_size + comment_size
        if fields[0] != b"PK\1\2" or at > directory + directory_size:
            raise ValueError("the directory is damaged")
        name = _zip_name(bytes(view[start : start + name_size]))
        extra = view[start + name_size : start + name_size + extra_size]
        entries.append(_entry(view, name, fields, extra, directory))
    _check_layout(entries)
    return entries


def _zip_end(view: memoryview) -> tuple[int, int, int, int]:
    """Member count, directory offset, directory size and the offset where the directory must have ended."""
    tail = max(0, len(view) - _END.size - 0xFFFF)
    at = bytes(view[tail:]).rfind(b"PK\5\6")
    if at < 0:
        raise ValueError("no end record")
    end = tail + at
    _, disk, start_disk, _, count, size, offset, _ = _END.unpack_from(view, end)
    if disk not in (0, 0xFFFF) or start_disk not in (0, 0xFFFF):
        raise ValueError("it has several parts")
    if 0xFFFF not in (count, disk) and 0xFFFFFFFF not in (size, offset):
        return count, offset, size, end
    if end < _LOCATOR64.size or _tag(view, end - _LOCATOR64.size) != b"PK\6\7":
        return count, offset, size, end
    end64 = _LOCATOR64.unpack_from(view, end - _LOCATOR64.size)[2]
    record = _END64.unpack_from(view, end64)
    if record[0] != b"PK\6\6":
        raise ValueError("the zip64 end record is damaged")
    return record[7], record[9], record[8], end64


def _tag(view: memoryview, at: int) -> bytes:
    return bytes(view[at : at + 4])


def _zip_name(raw: bytes) -> str:
    name = raw.decode("utf-8")
    parts = name.replace("\\", "/").split("/")
    if not name or "\0" in name or name.startswith(("/", "\\")) or ".." in parts or ":" in parts[0]:
        raise ValueError(f"the member name {name[:80]!r} is not a relative path")
    return name


def _entry(view: memoryview, name: str, fields: tuple[Any, ...], extra: memoryview, limit: int) -> ZipEntry:
    flags, method, crc, stored, size, header = fields[3], fields[4], fields[7], fields[8], fields[9], fields[16]
    if flags & 1:
        raise ValueError(f"the member {name!r} is encrypted")
    large = [value == 0xFFFFFFFF for value in (size, stored, header)]
    if any(large):
        size, stored, header = _zip64(extra, (size, stored, header), large)
    local = _LOCAL.unpack_from(view, header)
    offset = header + _LOCAL.size + local[9] + local[10]
    if local[0] != b"PK\3\4":
        raise ValueError(f"the member {name!r} has no header")
    if bytes(view[header + _LOCAL.size : header + _LOCAL.size + local[9]]) != name.encode():
        raise ValueError(f"the member {name!r} has another name in its header")
    if offset + stored > limit:
        raise ValueError(f"the member {name!r} reaches beyond the file ({stored} bytes at {offset})")
    if method == 0 and stored != size:
        raise ValueError(f"the member {name!r} has two sizes")
    return ZipEntry(name, header, offset, stored, size, method, crc)


def _zip64(extra: memoryview, values: tuple[int, int, int], large: list[bool]) -> tuple[int, int, int]:
    at = 0
    while at + 4 <= len(extra):
        kind, size = struct.unpack_from("<HH", extra, at)
        if kind == 1:
            wide = iter(struct.unpack_from(f"<{min(size, 24) // 8}Q", extra, at + 4))
            try:
                first, second, third = (next(wide) if use else value for use, value in zip(large, values, strict=True))
            except (StopIteration, RuntimeError):
                break
            return first, second, third
        at += 4 + size
    raise ValueError("a zip64 size is missing")


def _check_layout(entries: list[ZipEntry]) -> None:
    names = set()
    end = 0
    for entry in sorted(entries, key=lambda e: e.header):
        if entry.name in names:
            raise ValueError(f"two members are named {entry.name!r}")
        if entry.header < end:
            raise ValueError(f"the member {entry.name!r} overlaps another")
        names.add(entry.name)
        end = entry.offset + entry.stored


def zip_read(data: Buffer, entry: ZipEntry, *, limit: int, where: str = "") -> bytes:
    """The bytes of one member, stored or deflated, never more than `limit`; ArtifactError otherwise."""
    if entry.size > limit:
        raise ArtifactError(f"the member {entry.name!r} has {entry.size} bytes, at most {limit} are read", where=where)
    raw = memoryview(data).cast("B")[entry.offset : entry.offset + entry.stored]
    if entry.method == 0:
        return bytes(raw)
    if entry.method != zlib.DEFLATED:
        raise ArtifactError(f"the member {entry.name!r} uses compression method {entry.method}", where=where)
    unpacker = zlib.decompressobj(-15)
    try:
        unpacked = unpacker.decompress(raw, entry.size + 1)
    except zlib.error as error:
        raise ArtifactError(f"the member {entry.name!r} is damaged: {error}", where=where, hint=_ZIP_HINT) from error
    if len(unpacked) != entry.size or zlib.crc32(unpacked) != entry.crc:
        raise ArtifactError(f"the member {entry.name!r} is damaged", where=where, hint=_ZIP_HINT)
    return unpacked


# --- arrays from files ---

MAX_INPUT_BYTES = 16 << 30
"""Largest array that is unpacked from an archive or image, in bytes."""


def read_npy(path: Path | str) -> npt.NDArray[np.generic]:
    """The array of a .npy file, memory-mapped read-only; object arrays (pickles) are refused with InputError."""
    with os_errors(path, "read"), open(path, "rb") as stream:
        return _mapped(path, stream, os.fstat(stream.fileno()).st_size)


def _mapped(path: Path | str, stream: BinaryIO, end: int) -> npt.NDArray[np.generic]:
    """The array in .npy format from where `stream` of the file `path` is to its byte `end`, memory-mapped."""
    import numpy as np

    try:
        shape, fortran, dtype = npy_header(stream)
    except Exception as error:  # numpy hands the header to Python's tokenizer and parser, which raise what they like
        raise _bad_array(path, "not a sound .npy file") from error
    start = stream.tell()
    if dtype.hasobject:
        raise _bad_array(path, "it holds Python objects, which are never unpickled")
    count = math.prod(shape)
    if min(shape, default=0) < 0 or count * dtype.itemsize != end - start:
        raise _bad_array(path, f"its header says {dtype} {list(shape)}, its data are {end - start} bytes")
    if count == 0:
        return np.empty(shape, dtype)
    return np.memmap(path, dtype, "r", start, shape, order="F" if fortran else "C")


def npy_header(stream: Any) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Shape, whether in Fortran's order, and dtype of what follows in .npy format; raises what numpy's parser does."""
    import numpy as np

    version = np.lib.format.read_magic(stream)
    readers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    return readers[version](stream)


def _bad_array(path: Path | str, why: str) -> InputError:
    return InputError(f"cannot read the array: {why}", where=str(path), hint="write it with numpy.save")


def read_npz(path: Path | str) -> dict[str, npt.NDArray[np.generic]]:
    """All arrays of a .npz file by name; sizes are checked before they are unpacked, object arrays are refused."""
    data = map_file(path)
    return {e.name.removesuffix(".npy"): _unpacked(path, data, e) for e in zip_entries(data, where=str(path))}


def _unpacked(path: Path | str, data: Buffer, entry: ZipEntry) -> npt.NDArray[np.generic]:
    import numpy as np

    raw = io.BytesIO(zip_read(data, entry, limit=MAX_INPUT_BYTES, where=str(path)))
    try:
        array: npt.NDArray[np.generic] = np.lib.format.read_array(raw, allow_pickle=False)
    except Exception as error:  # see _mapped
        raise _bad_array(path, f"its member {entry.name!r} is not a sound array, or of Python objects") from error
    return array


def map_npz_array(path: Path | str, name: str) -> npt.NDArray[np.generic]:
    """One array of a .npz file: memory-mapped read-only, perhaps unaligned, where it is stored as it is (numpy.savez).

    Raises:
        InputError: there is no such array, or it is not sound, or of Python objects.
        ArtifactError: the file is no sound zip archive.
    """
    data = map_file(path)
    entries = {entry.name.removesuffix(".npy"): entry for entry in zip_entries(data, where=str(path))}
    entry = entries.get(name)
    if entry is None:
        raise InputError(f"no array named {name!r} in the file", where=str(path), hint=nearest(name, entries))
    if entry.method:
        return _unpacked(path, data, entry)
    with os_errors(path, "read"), open(path, "rb") as stream:
        stream.seek(entry.offset)
        return _mapped(path, stream, entry.offset + entry.size)


def map_file(path: Path | str) -> memoryview:
    """The bytes of a file, memory-mapped read-only (released with the last view of them)."""
    import mmap

    with os_errors(path, "read"), open(path, "rb") as stream:
        if os.fstat(stream.fileno()).st_size == 0:
            return memoryview(b"")
        return memoryview(mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ))


def read_image(path: Path | str) -> npt.NDArray[np.uint8]:
    """An image file's pixels, uint8 [height, width, channels] (1 grey, 3 RGB or 4 RGBA)."""
    import numpy as np
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(io.BytesIO(map_file(path))) as image:
            mode = image.mode if image.mode in ("L", "RGB", "RGBA") else "RGB"
            pixels = np.asarray(image.convert(mode), dtype=np.uint8)
    except NpukitError:
        raise
    except UnidentifiedImageError:  # its text names our stream object
        raise InputError(
            "cannot read the image: it is none", where=str(path), hint="give a .png or .jpg file, or a .npy file"
        ) from None
    except Exception as error:  # pillow's decoders raise what they like on damaged files
        raise InputError(f"cannot read the image: {error}", where=str(path)) from error
    return pixels.reshape(*pixels.shape[:2], -1)


def load_input(
    path: Path | str, dtype: npt.DTypeLike | None = None, shape: tuple[int, ...] | None = None, *, name: str = ""
) -> npt.NDArray[np.generic]:
    """One input of a run, read from a .npy, .npz, .raw/.bin, .png, .jpg or .jpeg file.

    .npy and .npz arrays come as they are; from an .npz the array `name`, or the only one. Raw files need `dtype` and
    `shape`. Images become `shape` ([N,C,H,W], [N,H,W,C], or either without N) and `dtype` with values 0 to 255; they
    are neither resized nor normalized.

    Raises:
        InputError: the kind is unknown, the file is damaged, or it does not have the size that `shape` asks for.
        NpukitError: the file cannot be read.
    """
    suffix = Path(path).suffix.lower()
    if suffix == ".npy":
        return read_npy(path)
    if suffix == ".npz":
        return _from_npz(path, name)
    if suffix in (".raw", ".bin"):
        return _from_raw(path, dtype, shape)
    if suffix in (".png", ".jpg", ".jpeg"):
        return _from_image(path, dtype, shape)
    raise InputError(
        f"files of kind {suffix or 'without ending'!r} are not inputs",
        where=str(path),
        hint="use .npy, .npz, .raw, .png or .jpg",
    )


def _from_npz(path: Path | str, name: str) -> npt.NDArray[np.generic]:
    arrays = read_npz(path)
    if name in arrays:
        return arrays[name]
    if len(arrays) == 1:
        return next(iter(arrays.values()))
    raise InputError(f"no array named {name!r} in the file", where=str(path), hint=nearest(name, arrays))


def _from_raw(path: Path | str, dtype: npt.DTypeLike | None, shape: tuple[int, ...] | None) -> npt.NDArray[np.generic]:
    import numpy as np

    if dtype is None or shape is None:
        raise InputError("a raw file does not say its dtype and shape", where=str(path), hint="use a .npy file")
    data = map_file(path)
    kind = np.dtype(dtype)
    expected = int(np.prod(shape, dtype=np.int64)) * kind.itemsize
    if len(data) != expected:
        raise InputError(f"expected {expected} bytes ({kind} {list(shape)}), the file has {len(data)}", where=str(path))
    return np.frombuffer(data, kind).reshape(shape) if expected else np.empty(shape, kind)


def _from_image(
    path: Path | str, dtype: npt.DTypeLike | None, shape: tuple[int, ...] | None
) -> npt.NDArray[np.generic]:
    import numpy as np

    pixels = read_image(path)
    target = tuple(shape or (1, *pixels.shape))
    inner = target[1:] if len(target) == 4 else target
    for axes in ((0, 1, 2), (2, 0, 1)):
        candidate = pixels.transpose(axes)
        if candidate.shape == inner and (len(target) == 3 or target[0] == 1):
            return np.ascontiguousarray(candidate.reshape(target), np.dtype(dtype or np.uint8))
    height, width, channels = pixels.shape
    raise InputError(
        f"the image is {width} x {height} with {channels} channels, the input is {list(target)}",
        where=str(path),
        hint="resize it first, or give a .npy file",
    )

# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""npukit.files: atomic writes, safe paths, bounded archives, arrays from files."""

from __future__ import annotations

import errno
import io
import os
import stat
import subprocess
import sys
import zipfile
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from npukit import files
from npukit.errors import ArtifactError, InputError, NpukitError


def entries_of(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


def test_atomic_write_replaces_and_keeps_the_mode(tmp_path: Path) -> None:
    target = tmp_path / "out.bin"
    target.write_bytes(b"old")
    target.chmod(0o640)
    with files.atomic_write(target) as temp:
        temp.write_bytes(b"new")
        assert target.read_bytes() == b"old"
        temp.chmod(0o600)
    assert target.read_bytes() == b"new"
    assert stat.S_IMODE(target.stat().st_mode) == 0o640
    assert entries_of(tmp_path) == ["out.bin"]


@pytest.mark.parametrize("error", [ValueError("x"), KeyboardInterrupt()])
def test_atomic_write_leaves_the_old_file_on_errors(tmp_path: Path, error: BaseException) -> None:
    target = tmp_path / "out.bin"
    target.write_bytes(b"old")

    def write() -> None:
        with files.atomic_write(target) as temp:
            temp.write_bytes(b"half")
            raise error

    with pytest.raises(type(error)):
        write()
    assert target.read_bytes() == b"old"
    assert entries_of(tmp_path) == ["out.bin"]


def test_atomic_write_of_a_file_that_the_body_replaces(tmp_path: Path) -> None:
    with files.atomic_write(tmp_path / "a") as temp:
        temp.unlink()
        temp.write_bytes(b"1")
    assert (tmp_path / "a").read_bytes() == b"1"
    with pytest.raises(NpukitError, match="nothing was written"), files.atomic_write(tmp_path / "b") as temp:
        temp.unlink()


def test_full_disk_is_one_clear_error(tmp_path: Path) -> None:
    def fill(temp: Path) -> None:
        temp.write_bytes(b"half")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with (
        pytest.raises(NpukitError, match=r"out\.bin: cannot write the file: no space is left"),
        files.atomic_write(tmp_path / "out.bin") as temp,
    ):
        fill(temp)
    assert entries_of(tmp_path) == []


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_devices_and_folders_are_not_replaced(tmp_path: Path) -> None:
    for path in ("/dev/full", tmp_path):
        with pytest.raises(NpukitError, match="folder or device"):
            files.atomic_write_bytes(path, b"1")


def test_errors_of_other_files_name_those(tmp_path: Path) -> None:
    with pytest.raises(NpukitError, match="gone.txt"), files.atomic_write(tmp_path / "out"):
        (tmp_path / "gone.txt").read_bytes()
    with pytest.raises(NpukitError, match="missing/out: cannot write the file: no such"):
        files.atomic_write_bytes(tmp_path / "missing" / "out", b"")


@pytest.mark.skipif(os.name != "posix", reason="asks for a process by its number")
def test_what_a_killed_worker_left_for_its_parent_goes_too(tmp_path: Path) -> None:
    ended = subprocess.Popen([sys.executable, "-c", "pass"])
    ended.wait()
    with files.atomic_write(tmp_path / "m.dlc") as temp:
        outer = temp.name.replace(f"-{os.getpid()}-", f"-{ended.pid}-")
        with files.atomic_write(tmp_path / outer) as inner:
            nested = inner.name.replace(f"-{os.getpid()}-", f"-{ended.pid}-")
            temp.write_bytes(b"1")
            inner.write_bytes(b"1")
    (tmp_path / nested).write_bytes(b"half")
    (tmp_path / f".{nested}").mkdir()
    files.atomic_write_bytes(tmp_path / "m.dlc", b"2")
    assert entries_of(tmp_path) == ["m.dlc"]


def test_no_temporary_folder_is_one_clear_error(monkeypatch: pytest.MonkeyPatch) -> None:
    tried = "No usable temporary directory found in ['/tmp']"  # as tempfile says it
    monkeypatch.setattr(files.tempfile, "gettempdir", Mock(side_effect=FileNotFoundError(errno.ENOENT, tried)))
    with pytest.raises(NpukitError, match=r"'/tmp'\]: there is no folder for temporary files\n +hint: free some space"):
        files.temporary_folder()
    assert tried in str(files.os_error(FileNotFoundError(errno.ENOENT, tried), "a", "read"))


def test_a_link_is_written_through(tmp_path: Path) -> None:
    (tmp_path / "real").write_bytes(b"old")
    (tmp_path / "link").symlink_to("real")
    files.atomic_write_bytes(tmp_path / "link", b"new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real").read_bytes() == b"new"


def test_what_a_killed_process_left_is_removed(tmp_path: Path) -> None:
    code = (
        "import os, sys; from npukit.files import atomic_write\n"
        "with atomic_write(sys.argv[1]) as temp:\n    temp.write_bytes(b'half'); os.kill(os.getpid(), 9)"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "out")], check=False)
    assert len(entries_of(tmp_path)) == 1
    files.atomic_write_bytes(tmp_path / "out", b"1")
    assert entries_of(tmp_path) == ["out"]


@pytest.mark.parametrize("name", ["", "/etc/passwd", "../x", "a/../../x", "C:\\x", "a\\..\\..\\x", "a\0b", "\\x"])
def test_names_that_lead_out_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(NpukitError, match="leads out of the folder"):
        files.inside(tmp_path, name)


def test_inside_follows_links_only_within(tmp_path: Path) -> None:
    folder = tmp_path / "m"
    folder.mkdir()
    (folder / "w.bin").write_bytes(b"")
    (tmp_path / "secret").write_bytes(b"")
    (folder / "good").symlink_to("w.bin")
    (folder / "bad").symlink_to("../secret")
    assert files.inside(folder, "sub/w.bin") == folder / "sub" / "w.bin"
    assert files.inside(folder, "good") == folder / "good"
    with pytest.raises(NpukitError, match="leads out"):
        files.inside(folder, "bad")
    snapshot = tmp_path / "cache" / "snapshots" / "abc"
    (tmp_path / "cache" / "blobs").mkdir(parents=True)
    snapshot.mkdir(parents=True)
    (snapshot / "w").symlink_to("../../blobs/1234")
    assert files.inside(snapshot, "w") == snapshot / "w"


def zipped(members: dict[str, bytes], method: int = zipfile.ZIP_STORED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return buffer.getvalue()


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_zip_members_read_back(method: int) -> None:
    members = {"a.txt": b"hello" * 100, "folder/b": b"", "c": bytes(range(256))}
    data = zipped(members, method)
    assert {e.name: files.zip_read(data, e, limit=1000) for e in files.zip_entries(data)} == members


def test_zip64_members_read_back() -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive, archive.open("big", "w", force_zip64=True) as member:
        member.write(b"12345")
    (entry,) = files.zip_entries(buffer.getvalue())
    assert files.zip_read(buffer.getvalue(), entry, limit=5) == b"12345"


def test_bombs_are_bounded() -> None:
    data = zipped({"a": bytes(1 << 20)}, zipfile.ZIP_DEFLATED)
    (entry,) = files.zip_entries(data)
    with pytest.raises(ArtifactError, match="at most 1000 are read"):
        files.zip_read(data, entry, limit=1000)
    lying = bytearray(data)
    at = data.rindex(b"PK\1\2")
    lying[at + 24 : at + 28] = (100).to_bytes(4, "little")
    (entry,) = files.zip_entries(lying)
    with pytest.raises(ArtifactError, match="damaged"):
        files.zip_read(lying, entry, limit=1000)


@pytest.mark.parametrize("name", ["../x", "/x", "a/../../b", "C:x", "..\\x"])
def test_zip_names_that_lead_out_are_refused(name: str) -> None:
    with pytest.raises(ArtifactError, match="not a relative path"):
        files.zip_entries(zipped({name: b"1"}))


def test_zip_layout_is_checked() -> None:
    data = zipped({"a": b"x" * 50, "b": b"y" * 50})
    second = data.rindex(b"PK\1\2")
    overlapping = bytearray(data)
    overlapping[second + 42 : second + 46] = bytes(4)  # the second member points at the first one's header
    with pytest.raises(ArtifactError):
        files.zip_entries(overlapping)
    huge = bytearray(data)
    huge[second + 20 : second + 28] = b"\xff\xff\xff\x7f" * 2
    with pytest.raises(ArtifactError, match="beyond the file"):
        files.zip_entries(huge)
    for size in range(0, len(data), 7):
        with pytest.raises(ArtifactError):
            files.zip_entries(data[:size])
    with pytest.raises(ArtifactError, match="at most 1"):
        files.zip_entries(data, max_entries=1)


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_mutated_zips_never_raise_anything_else(data: st.DataObject) -> None:
    raw = bytearray(zipped({"a": b"x" * 20, "b/c": b"y" * 9}))
    for _ in range(data.draw(st.integers(1, 4))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.sampled_from([0, 1, 127, 128, 255]))
    try:
        for entry in files.zip_entries(raw):
            assert len(files.zip_read(raw, entry, limit=100)) == entry.size
    except ArtifactError:
        pass


def test_an_array_of_an_npz_is_mapped_where_it_is_stored(tmp_path: Path) -> None:
    arrays = {
        "x": np.arange(6, dtype=np.float32).reshape(2, 3),
        "y": np.asfortranarray(np.eye(3)),
        "z": np.zeros((0, 4)),
    }
    np.savez(tmp_path / "a.npz", **arrays)
    np.savez_compressed(tmp_path / "b.npz", **arrays)
    for name, array in arrays.items():
        for path in (tmp_path / "a.npz", tmp_path / "b.npz"):
            found = files.map_npz_array(path, name)
            np.testing.assert_array_equal(found, array)
            assert found.dtype == array.dtype
            assert isinstance(found, np.memmap) == (path.stem == "a" and array.size > 0)
    with pytest.raises(InputError, match="no array named 'yy'"):
        files.map_npz_array(tmp_path / "a.npz", "yy")
    np.savez(tmp_path / "o.npz", x=np.array([{}]), allow_pickle=True)
    with pytest.raises(InputError, match="Python objects"):
        files.map_npz_array(tmp_path / "o.npz", "x")


@pytest.mark.parametrize(
    "array",
    [np.arange(6, dtype=np.float16).reshape(2, 3), np.asfortranarray(np.ones((2, 3))), np.zeros((0, 4)), np.array(3)],
)
def test_npy_and_npz_read_back(tmp_path: Path, array: np.ndarray) -> None:
    np.save(tmp_path / "a.npy", array)
    np.savez_compressed(tmp_path / "a.npz", x=array, y=array)
    for read in (files.load_input(tmp_path / "a.npy"), files.load_input(tmp_path / "a.npz", name="y")):
        assert read.dtype == array.dtype
        np.testing.assert_array_equal(read, array)


def test_pickles_are_never_executed(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.array([{}]), allow_pickle=True)
    np.savez(tmp_path / "a.npz", np.array([{}]), allow_pickle=True)
    with pytest.raises(InputError, match="never unpickled"):
        files.load_input(tmp_path / "a.npy")
    with pytest.raises(InputError, match="not a sound array"):
        files.load_input(tmp_path / "a.npz")


def test_damaged_npy_files(tmp_path: Path) -> None:
    path = tmp_path / "a.npy"
    np.save(path, np.arange(10))
    data = path.read_bytes()
    for damaged in (b"", b"nonsense", data[:-1], data[:40], data.replace(b"(10,)", b"(-1,)"), data + b"1"):
        path.write_bytes(damaged)
        with pytest.raises(InputError):
            files.load_input(path)


def test_raw_files(tmp_path: Path) -> None:
    path = tmp_path / "x.raw"
    path.write_bytes(np.arange(6, dtype=np.float32).tobytes())
    np.testing.assert_array_equal(files.load_input(path, np.float32, (2, 3)), np.arange(6).reshape(2, 3))
    with pytest.raises(InputError, match="expected 12 bytes"):
        files.load_input(path, np.float16, (2, 3))
    with pytest.raises(InputError, match="does not say"):
        files.load_input(path)


def test_images(tmp_path: Path) -> None:
    from PIL import Image

    pixels = np.arange(4 * 5 * 3, dtype=np.uint8).reshape(4, 5, 3)
    path = tmp_path / "x.png"
    Image.fromarray(pixels).save(path)
    np.testing.assert_array_equal(files.load_input(path, np.uint8, (1, 4, 5, 3))[0], pixels)
    np.testing.assert_array_equal(files.load_input(path, np.float32, (3, 4, 5)), pixels.transpose(2, 0, 1))
    with pytest.raises(InputError, match="5 x 4 with 3 channels"):
        files.load_input(path, np.float32, (1, 3, 224, 224))
    path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(InputError, match="cannot read the image"):
        files.load_input(path)


def test_unknown_kinds_and_missing_files(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"'\.txt'"):
        files.load_input(tmp_path / "x.txt")
    for name in ("x.npy", "x.npz", "x.png"):
        with pytest.raises(NpukitError, match="no such file"):
            files.load_input(tmp_path / name)


def test_sha256_file(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abc")
    assert files.sha256_file(tmp_path / "a") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_a_name_with_a_null_byte_is_refused() -> None:
    with pytest.raises(NpukitError, match="its name holds a null byte"):
        files.read_npy("a\0b.npy")
    with pytest.raises(ValueError, match="other"), files.os_errors("x", "read"):
        raise ValueError("other")


def test_a_folder_that_refuses_is_told_by_the_users_path(tmp_path, monkeypatch):
    real = os.open

    def refuse(path, *args, **kwargs):  # what root, who may run the tests, is never told
        if str(path).endswith(".npukit-tmp"):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return real(path, *args, **kwargs)

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(NpukitError) as caught:
        files.atomic_write_bytes(tmp_path / "model.dlc", b"x")
    assert caught.value.where == str(tmp_path / "model.dlc")
    assert caught.value.what == "cannot write the file: permission denied"
    assert list(tmp_path.iterdir()) == []

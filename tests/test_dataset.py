# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""Calibration data: every kind of source, and every kind of bad data."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from PIL import Image

from npukit.analysis.dataset import Dataset, open_dataset
from npukit.errors import InputError, NpukitError


@dataclass(frozen=True)
class Info:
    name: str
    shape: tuple[Any, ...]
    dtype: Any = "float32"
    native: Any = field(default_factory=SimpleNamespace)


X = [Info("x", (1, 4))]
TWO = [Info("x", (1, 4)), Info("ids:0", (1, 2), "int64", SimpleNamespace(name="ids_0"))]
IMAGE = [Info("image", (1, 3, 4, 5))]


def rows(count: int, width: int = 4, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((count, width)).astype(np.float32)


def faults_of(source: Any, inputs: Any = None, **options: Any) -> dict[str, str]:
    with pytest.raises(InputError) as caught:
        open_dataset(source, inputs or X, **options).check()
    return {fault.where: f"{fault.what} | {fault.hint}" for fault in caught.value.faults}


def same(data: Dataset, expected: np.ndarray, name: str = "x") -> None:
    for _ in range(2):
        found = [sample[name] for sample in data]
        assert len(data) == len(found) == len(expected)
        assert all(np.array_equal(f.reshape(e.shape), e) for f, e in zip(found, expected, strict=True))


def images(folder: Path, count: int, suffix: str = ".png") -> np.ndarray:
    pixels = np.random.default_rng(1).integers(0, 256, (count, 4, 5, 3)).astype(np.uint8)
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(count):
        Image.fromarray(pixels[i]).save(folder / f"{i}{suffix}")
    return pixels


@pytest.mark.parametrize("shape", [(6, 4), (6, 1, 4)])
def test_a_file_with_a_sample_axis(tmp_path: Path, shape: tuple[int, ...]) -> None:
    values = rows(6)
    np.save(tmp_path / "a.npy", values.reshape(shape))
    np.savez_compressed(tmp_path / "a.npz", anything=values.reshape(shape))
    for name in ("a.npy", "a.npz"):
        data = open_dataset(tmp_path / name, X)
        same(data, values)
        assert [s["x"].shape for s in data] == [(1, 4)] * 6
        assert data.warnings == []
        same(open_dataset(str(tmp_path / name), X, limit=2), values[:2])
    assert "6 samples from" in data.describe()


@pytest.mark.parametrize("shape", [(4,), (1, 4)])
def test_a_file_with_one_sample(tmp_path: Path, shape: tuple[int, ...]) -> None:
    np.save(tmp_path / "a.npy", rows(1).reshape(shape))
    rows(1).tofile(tmp_path / "a.raw")
    for name in ("a.npy", "a.raw"):
        data = open_dataset(tmp_path / name, X)
        same(data, rows(1))
        assert "one sample only" in data.warnings[0]


@pytest.mark.parametrize("suffix", [".npy", ".npz", ".raw"])
def test_a_folder_of_arrays(tmp_path: Path, suffix: str) -> None:
    values = rows(3)
    for i, row in enumerate(values):
        path = tmp_path / f"{i}{suffix}"
        {".npy": np.save, ".npz": lambda p, a: np.savez(p, x=a), ".raw": lambda p, a: a.tofile(p)}[suffix](path, row)
    data = open_dataset(tmp_path, X)
    same(data, values)
    assert [s["x"][0, 0] for s in data.iterate(1)] == list(values[1:, 0])


@pytest.mark.parametrize("suffix", [".png", ".bmp"])
def test_a_folder_of_images(tmp_path: Path, suffix: str) -> None:
    pixels = images(tmp_path, 3, suffix)
    (tmp_path / "labels.txt").write_text("cat")
    (tmp_path / ".hidden").write_text("")
    data = open_dataset(tmp_path, IMAGE, preprocessing={"color": "BGR", "scale": "1/255"})
    same(data, (pixels[..., ::-1] / 255).astype(np.float32).transpose(0, 3, 1, 2), "image")
    assert data.warnings == ["files of other kinds are left out: labels.txt"]
    raw = open_dataset(tmp_path, IMAGE)
    same(raw, pixels.transpose(0, 3, 1, 2), "image")
    assert "no preprocessing was given" in raw.warnings[1]
    assert raw.sha256 != data.sha256


def test_sub_folders_on_request(tmp_path: Path) -> None:
    images(tmp_path / "dogs", 2)
    images(tmp_path / "cats", 3)
    assert "recursive" in faults_of(tmp_path, IMAGE)[str(tmp_path)]
    assert len(open_dataset(tmp_path, IMAGE, recursive=True)) == 5


@pytest.mark.parametrize("way", ["folders", "files", "npz", "table", "list", "tuples", "dicts", "lines"])
def test_several_inputs(tmp_path: Path, way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    values, ids = rows(3), np.arange(6).reshape(3, 2)
    pairs = list(zip(values, ids, strict=True))
    source: Any = tmp_path / "data"
    source.mkdir()
    if way == "folders":
        for i, (x, y) in enumerate(pairs):
            for folder, array in (("x", x), ("ids_0", y)):
                (source / folder).mkdir(exist_ok=True)
                np.save(source / folder / f"{i}.npy", array)
    elif way == "files":
        for i, (x, y) in enumerate(pairs):
            np.save(source / f"x_{i}.npy", x)
            np.save(source / f"ids_0_{i}.npy", y)
    elif way == "npz":
        for i, (x, y) in enumerate(pairs):
            np.savez(source / f"{i}.npz", x=x, ids_0=y, label=1)
    elif way == "table":
        source = {"x": values, "ids_0": ids}
    elif way == "list":
        source = [{"x": x, "ids:0": y} for x, y in pairs]
    elif way == "tuples":
        source = iter(pairs)
    elif way == "dicts":
        source = ({"x": x[None], "ids_0": y[None]} for x, y in pairs)
    else:
        lines = ["#out", "%tensor", ""]
        for i, (x, y) in enumerate(pairs):
            x.tofile(source / f"x {i}.rawtensor")
            y.astype(np.float32).tofile(source / f"y{i}.raw")
            lines.append(f"ids_0:=y{i}.raw x:=x {i}.rawtensor")
        source = source / "list.txt"
        source.write_text("\n".join(lines))
        monkeypatch.chdir("/")
    data = open_dataset(source, TWO)
    same(data, values)
    same(data, ids, "ids:0")
    assert {s["ids:0"].dtype for s in data} == {np.dtype("int64")}
    assert data.warnings == (["arrays that are no inputs are left out: 0.npz: label"] if way == "npz" else []) or (
        way == "npz" and "label" in data.warnings[0]
    )


def test_input_list_of_plain_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "lists").mkdir()
    (tmp_path / "cwd").mkdir()
    monkeypatch.chdir(tmp_path / "cwd")
    values = rows(3)
    values[0].tofile(tmp_path / "lists" / "a.raw")
    values[1].tofile("b.raw")
    values[0].tofile("a.raw")
    np.save(tmp_path / "my file.npy", values[2])
    path = tmp_path / "lists" / "list.txt"
    path.write_text(f"%out\na.raw\nb.raw\r\n{tmp_path}/my file.npy\n")
    same(open_dataset(path, X), values)
    path.write_text("a.raw ../cwd/b.raw\n")
    both = [Info("x", (1, 4)), Info("y", (4,))]
    assert np.array_equal(next(iter(open_dataset(path, both)))["y"], values[1])


def test_faults_of_an_input_list(tmp_path: Path) -> None:
    path = tmp_path / "list.txt"
    rows(1).tofile(tmp_path / "x.raw")
    (tmp_path / "short.raw").write_bytes(bytes(12))
    lines = [
        "x:=x.raw idz_0:=x.raw",
        "x:=x.raw x:=x.raw",
        "x:=gone.raw",
        "x:=x.raw",
        "a b c",
        "ids_0:=short.raw x:=x.raw",
    ]
    path.write_text("\n".join(lines))
    found = faults_of(path, TWO)
    line = f"{path}, line "
    assert "'ids_0'" in found[f"{line}1"]
    assert "given twice" in found[f"{line}2"]
    assert "no file 'gone.raw'" in found[f"{line}3"]
    assert "nothing for the input 'ids:0'" in found[f"{line}4"]
    assert "3 paths, 2 inputs" in found[f"{line}5"]
    assert "expected 16 bytes" in found[str(tmp_path / "short.raw")]


def test_batches(tmp_path: Path) -> None:
    values = rows(7)
    data = open_dataset(values, [Info("x", (3, 4))])
    found = [s["x"] for s in data]
    assert (len(data), data.units) == (3, 7)
    assert np.array_equal(np.concatenate(found), np.concatenate([values, values[-1:], values[-1:]]))
    assert "batches of 3: the last one is repeated 2 times" in data.warnings[0]
    np.save(tmp_path / "a.npy", values[:6].reshape(2, 3, 4))
    assert np.array_equal(
        np.stack([s["x"] for s in open_dataset(tmp_path, [Info("x", (3, 4))])]), values[:6].reshape(2, 3, 4)
    )
    for i in range(2):
        values[3 * i : 3 * i + 3].tofile(tmp_path / f"{i}.raw")
    (tmp_path / "a.npy").unlink()
    assert len(open_dataset(tmp_path, [Info("x", (3, 4))])) == 2


def test_a_leading_extent_that_is_no_batch() -> None:
    inputs = [Info("boxes", (5, 4)), Info("x", (1, 4))]
    data = open_dataset({"boxes": rows(10).reshape(2, 5, 4), "x": rows(2)}, inputs)
    assert [s["boxes"].shape for s in data] == [(5, 4)] * 2
    assert "takes [5, 4]" in str(faults_of({"boxes": rows(10), "x": rows(2)}, inputs))


def test_an_input_given_once_serves_all() -> None:
    data = open_dataset({"x": rows(3), "ids:0": np.zeros((1, 2), np.int64)}, TWO)
    assert len(data) == 3
    assert data.warnings == ["the input 'ids:0' is given once and serves all samples"]


def test_iterables_that_give_their_samples_once() -> None:
    def endless() -> Iterator[np.ndarray]:
        i = 0
        while True:
            i += 1
            yield rows(1, seed=i)

    data = open_dataset(endless(), X, limit=4)
    same(data, np.concatenate([rows(1, seed=i) for i in range(1, 5)]))
    narrow = open_dataset(iter([np.ones((1, 4), ml_dtypes.bfloat16)]), [Info("x", (1, 4), "bfloat16")])
    assert next(iter(narrow))["x"].dtype == ml_dtypes.bfloat16
    assert open_dataset(list(rows(2)), X).sha256 != open_dataset(list(rows(2, seed=1)), X).sha256
    assert open_dataset(list(rows(2)), X).sha256 == open_dataset(list(rows(2)), X).sha256


def test_pixels_from_python_are_preprocessed(tmp_path: Path) -> None:
    pixels = images(tmp_path, 3)
    spec = {"scale": "1/255"}
    expected = (pixels / 255).astype(np.float32).transpose(0, 3, 1, 2)
    np.save(tmp_path / "all.npy", pixels)
    sources = (
        pixels,
        list(pixels),
        iter(pixels),
        tmp_path / "all.npy",
        [Image.open(tmp_path / f"{i}.png") for i in range(3)],
    )
    for source in (*sources, [str(tmp_path / f"{i}.png") for i in range(3)]):
        same(open_dataset(source, IMAGE, preprocessing=spec), expected, "image")
    ready = open_dataset(expected, IMAGE, preprocessing=spec)
    same(ready, expected, "image")


def test_functions_of_the_users_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my_calibration.py").write_text(
        "import numpy as np\n"
        "def samples():\n    for i in range(3):\n        yield {'x': np.full((1, 4), i) + np.arange(4.0)}\n"
        "def bad():\n    yield np.zeros(4)\n    raise RuntimeError('disk on fire')\n"
        "def wrong():\n    return 1 / 0\n"
    )
    same(open_dataset("my_calibration:samples", X), np.arange(3)[:, None] + np.arange(4.0))
    cases = {
        "my_calibration:bad": "disk on fire",
        "my_calibration:wrong": "ZeroDivisionError",
        "my_calibration:gone": "gone",
        "my_missing_module:f": "my_missing_module",
    }
    for source, text in cases.items():
        with pytest.raises(InputError, match=text):
            open_dataset(source, X)
    assert str(tmp_path) not in __import__("sys").path


def test_all_bad_files_of_a_folder_at_once(tmp_path: Path) -> None:
    good = rows(6)
    good[2, 3] = np.nan
    good[4, 0] = -np.inf
    for i, row in enumerate(good):
        np.save(tmp_path / f"{i}.npy", row)
    np.save(tmp_path / "6.npy", rows(1, 5))
    np.save(tmp_path / "7.npy", np.array(["a"] * 4))
    (tmp_path / "8.npy").write_bytes(b"no array")
    np.save(tmp_path / "9.npy", np.array([{}, 1], dtype=object), allow_pickle=True)
    found = {Path(where).name: text for where, text in faults_of(tmp_path).items()}
    assert list(sorted(found)) == ["2.npy", "4.npy", "6.npy", "7.npy", "8.npy", "9.npy"]
    assert "NaN at [3]" in found["2.npy"]
    assert "infinity at [0]" in found["4.npy"]
    assert "[1, 5]" in found["6.npy"]
    assert "no numbers" in found["7.npy"]
    assert "not a sound .npy" in found["8.npy"]
    assert "never unpickled" in found["9.npy"]


def test_bad_values_are_found_while_running(tmp_path: Path) -> None:
    """Not read twice: samples before the first bad one come out, the error lists all of them."""
    values = rows(6)
    values[3, 1] = values[5, 2] = np.nan
    np.save(tmp_path / "a.npy", values)
    data = open_dataset(tmp_path / "a.npy", X)
    got = []
    with pytest.raises(InputError) as caught:
        got.extend(data)
    assert len(got) == 3
    assert [f.where.rpartition(" (")[2] for f in caught.value.faults] == ["sample 3)", "sample 5)"]


@pytest.mark.parametrize(
    ("dtype", "values", "text"),
    [
        ("int64", np.float32([[1, 2, 3, 4]]), "holds float32, the input takes int64"),
        ("uint8", [[1, 2, 3, 256]], "256 at [3] has no exact value in uint8"),
        ("uint8", np.int8([[1, 2, 3, -1]]), "-1 at [3] has no exact value in uint8"),
        ("bool", [[0, 1, 2, 0]], "2 at [2] has no exact value in bool"),
        ("float32", np.int64([[1, 2, 3, 2**24 + 1]]), "16777217 at [3] has no exact value"),
        ("float16", np.float32([[1, 2, 3, 70000]]), "too large for float16"),
        ("float32", np.float64([[1, 2, 3, 1e300]]), "too large for float32"),
        ("float32", np.complex64([[1, 2, 3, 4]]), "complex64 are no numbers"),
    ],
)
def test_values_that_the_input_cannot_hold(dtype: str, values: Any, text: str) -> None:
    assert text in str(faults_of(np.asarray(values), [Info("x", (1, 4), dtype)]))


def test_values_that_are_converted() -> None:
    data = open_dataset(rows(2).astype(np.float64), X)
    same(data, rows(2))
    assert data.warnings == []
    whole = open_dataset(np.arange(8).reshape(2, 4), X)
    assert {s["x"].dtype for s in whole} == {np.dtype("float32")}
    assert "2 samples are given as int64 and taken as float32 without scaling" in whole.warnings[0]
    flags = open_dataset([[0, 1, 1, 0]], [Info("x", (1, 4), "bool")])
    assert next(iter(flags))["x"].dtype == np.bool_


def test_raw_files_of_other_widths(tmp_path: Path) -> None:
    inputs = [Info("x", (1, 4), "int32")]
    np.int32([1, 2, 3, 4]).tofile(tmp_path / "a.raw")
    assert next(iter(open_dataset(tmp_path / "a.raw", inputs)))["x"].tolist() == [[1, 2, 3, 4]]
    half = [Info("x", (1, 4), "float16")]
    for kind in (np.float16, np.float32):
        np.array([1, 2, 3, 4], kind).tofile(tmp_path / "a.raw")
        assert next(iter(open_dataset(tmp_path / "a.raw", half)))["x"].tolist() == [[1, 2, 3, 4]]
    np.float32([1, 2.5, 3, 4]).tofile(tmp_path / "a.raw")
    assert "not all whole numbers" in str(faults_of(tmp_path / "a.raw", [Info("x", (1, 4), "uint8")]))
    (tmp_path / "a.raw").write_bytes(bytes(17))
    assert "the file has 17" in str(faults_of(tmp_path / "a.raw"))


def test_data_that_make_a_bad_model_are_warned_of() -> None:
    values = rows(5)
    values[1] = 7
    values[4] = values[3]
    data = open_dataset(values, X)
    data.check()
    data.check()
    assert data.warnings == [
        "1 sample is constant in the input 'x': arrays given: x (sample 1)",
        "1 sample is the same as another sample: arrays given: x (sample 4)",
    ]


def test_what_is_no_data(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert "no images" in str(faults_of(tmp_path / "empty"))
    (tmp_path / "list.txt").write_text("# nothing\n")
    assert "there are no samples" in str(faults_of(tmp_path / "list.txt"))
    assert "there are no samples" in str(faults_of([]))
    assert "there are no samples" in str(faults_of(iter([])))
    assert "holds no samples" in str(faults_of(np.zeros((0, 4), np.float32)))
    (tmp_path / "a.pt").write_bytes(b"\x80\x02\xff\0")
    cases: list[tuple[Any, dict[str, Any], str]] = [
        (tmp_path / "gone", {}, "no such file"),
        (tmp_path / "a.pt", {}, "hold no samples"),
        (5, {}, "no data source"),
        ([rows(1)], {"limit": 0}, "leaves none"),
    ]
    for source, options, text in cases:
        with pytest.raises(NpukitError, match=text):
            open_dataset(source, X, **options)
    with pytest.raises(InputError, match="is open"):
        open_dataset([rows(1)], [Info("x", ("N", 4))])
    with pytest.raises(InputError, match="no array of numbers"):
        open_dataset([[[1, 2], [3]]], X)


def test_mixed_folders_and_missing_partners(tmp_path: Path) -> None:
    images(tmp_path / "mixed", 1)
    np.save(tmp_path / "mixed" / "a.npy", rows(1))
    assert "1 image (0.png), 1 npy (a.npy)" in faults_of(tmp_path / "mixed", IMAGE)[str(tmp_path / "mixed")]
    pairs = tmp_path / "pairs"
    pairs.mkdir()
    for name in ("x_0", "ids_0_0", "x_1", "other"):
        np.save(pairs / f"{name}.npy", rows(1) if name[0] == "x" else np.zeros((1, 2), np.int64))
    found = {Path(where).name: text for where, text in faults_of(pairs, TWO).items()}
    assert "no such file for the input 'ids:0'" in found["x_1.npy"]
    assert "does not say which input" in found["other.npy"]
    (tmp_path / "by" / "x").mkdir(parents=True)
    np.save(tmp_path / "by" / "x" / "0.npy", rows(1))
    assert "no sub-folder for the input 'ids:0'" in faults_of(tmp_path / "by", TWO)[str(tmp_path / "by")]
    uneven = faults_of({"x": rows(3), "ids:0": np.zeros((2, 2), np.int64)}, TWO)
    assert "different numbers of samples (x: 3, ids:0: 2)" in str(uneven)
    assert "did you mean 'x'?" not in str(uneven)
    assert "no input 'y'" in str(faults_of([{"y": rows(1)}]))


def test_unreadable_images_are_all_named(tmp_path: Path) -> None:
    images(tmp_path, 4)
    (tmp_path / "1.png").write_bytes(b"GIF89a")
    (tmp_path / "2.png").write_bytes((tmp_path / "0.png").read_bytes()[:60])
    Image.new("RGB", (9, 9)).save(tmp_path / "3.png")
    found = {Path(where).name: text for where, text in faults_of(tmp_path, IMAGE).items()}
    assert sorted(found) == ["1.png", "2.png", "3.png"]
    assert "9 x 9" in found["3.png"]
    spec = {"crop": {"center": [2, 2]}, "mean": [1, 2]}
    assert "end in 2 x 2" in str(faults_of(tmp_path, IMAGE, preprocessing=spec))


def test_a_large_file_is_read_through_several_mappings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("npukit.analysis.dataset._MAPPED", 40)
    values = rows(9)
    np.save(tmp_path / "a.npy", values)
    same(open_dataset(tmp_path / "a.npy", X), values)


def test_arrays_with_their_axes_swapped(tmp_path: Path) -> None:
    assert "another axis" in str(faults_of(np.zeros((2, 4, 5, 3), np.float32), IMAGE))


def test_the_identity_follows_the_files(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", rows(2))
    first = open_dataset(tmp_path, X).sha256
    assert open_dataset(tmp_path, X).sha256 == first
    assert open_dataset(tmp_path, X, limit=1).sha256 != first
    os.utime(tmp_path / "a.npy", ns=(1, 1))
    assert open_dataset(tmp_path, X).sha256 != first
    data = open_dataset(tmp_path, X)
    np.save(tmp_path / "a.npy", rows(3))
    with pytest.raises(InputError, match="changed since"):
        data.check()

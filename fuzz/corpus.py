# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""The seeds of each kind, made on the fly and kept in a folder: one sub-folder a seed, the main file named in `main`.

DLCs are converted from the ONNX seeds, context binaries compiled for SM8650 from the same: whatever converts.
"""

from __future__ import annotations

import io
import json
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from fuzz import frameworks, seeds_onnx
from fuzz.mutate import Files
from npukit.errors import NpukitError
from npukit.verbs.compile import CompileOptions
from npukit.verbs.convert import ConvertOptions
from npukit.worker import Pool

KINDS = ("onnx", "dlc", "stamp", "bin", "sidecar", "npz", "tflite")
"""ONNX models; DLCs; DLCs by their stamp; context binaries; context binaries by their sidecar; input arrays;
TensorFlow Lite models."""

FRAMEWORK_KINDS = ("pt2", "pt", "pb", "savedmodel")
"""What its own framework reads: archives of torch.export, TorchScript, frozen graphs, SavedModels."""

_SAME = {"stamp": "dlc", "sidecar": "bin"}  # kinds that mutate another part of the same files
CHIP = "sm8650"
_TFLITE = Path(__file__).resolve().parents[1] / "tests" / "data" / "tflite"


@dataclass(frozen=True)
class Seed:
    """A sound file with what belongs to it.

    Attributes:
        name: unique in its kind.
        files: name -> bytes.
        main: name of the file that is handed to the verb.
        integers: source inputs of integer type, which need a range.
        shapes: of the inputs, for a kind that does not say them.
    """

    name: str
    files: Files
    main: str
    integers: tuple[str, ...] = ()
    shapes: dict[str, list[int]] = field(default_factory=dict)


def load(kind: str, folder: Path, pool: Pool, count: int) -> list[Seed]:
    """`count` seeds of `kind` or somewhat more (npz and onnx: what there is), from `folder` or made now."""
    kind = _SAME.get(kind, kind)
    home = folder / f"{kind}-{count}"
    if not (home / "done").exists():
        shutil.rmtree(home, ignore_errors=True)
        home.mkdir(parents=True)
        for seed in _MAKERS[kind](folder, pool, count):
            _save(home / seed.name, seed)
        (home / "done").touch()
    return [_read(path) for path in sorted(home.iterdir()) if path.is_dir()]


def _save(place: Path, seed: Seed) -> None:
    for name, data in seed.files.items():
        path = place / "files" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    facts = {"main": seed.main, "integers": seed.integers, "shapes": seed.shapes}
    (place / "seed.json").write_text(json.dumps(facts))


def _read(place: Path) -> Seed:
    facts = json.loads((place / "seed.json").read_text())
    base = place / "files"
    paths = sorted(path for path in base.rglob("*") if path.is_file())
    files = {path.relative_to(base).as_posix(): path.read_bytes() for path in paths}
    return Seed(place.name, files, facts["main"], tuple(facts["integers"]), facts.get("shapes", {}))


def _onnx(folder: Path, pool: Pool, count: int) -> list[Seed]:
    return [Seed(name, files, "model.onnx") for name, files in seeds_onnx.seeds(count).items()]


def _dlc(folder: Path, pool: Pool, count: int) -> list[Seed]:
    return _converted(folder, pool, count, "qnn-cpu")


def _bin(folder: Path, pool: Pool, count: int) -> list[Seed]:
    return _converted(folder, pool, count, CHIP)


def _converted(folder: Path, pool: Pool, count: int, target: str) -> list[Seed]:
    """DLCs (for a chip: context binaries) of the first `count` ONNX seeds that convert."""
    found: list[Seed] = []
    sources = load("onnx", folder, pool, max(3 * count, 60))
    with tempfile.TemporaryDirectory() as temp:
        for seed in sources:
            if len(found) == count:
                break
            try:
                files, integers = _convert(pool, seed, Path(temp), target)
            except NpukitError:
                continue
            main = next(iter(files))
            found.append(Seed(seed.name, files, main, integers))
    return found


def _convert(pool: Pool, seed: Seed, temp: Path, target: str) -> tuple[Files, tuple[str, ...]]:
    for name, data in seed.files.items():
        (temp / name).write_bytes(data)
    dlc, binary = temp / "model.dlc", temp / "model.bin"
    options = ConvertOptions(temp / seed.main, dlc, target=(target,), batch=2, verify=False)
    result: Any = pool.call("npukit.verbs.convert:convert", options, timeout=60)
    integers = tuple(io.name for io in result.converted.stamp.inputs if not io.dtype.startswith(("float", "bfloat")))
    if target != CHIP:
        return {"model.dlc": dlc.read_bytes()}, integers
    pool.call("npukit.verbs.compile:compile", CompileOptions(dlc, binary), timeout=60)
    beside = Path(f"{binary}.npukit.json")
    return {"model.bin": binary.read_bytes(), beside.name: beside.read_bytes()}, integers


def _npz(folder: Path, pool: Pool, count: int) -> list[Seed]:
    """Input files of every kind that `--input` takes, each with a model that takes it."""
    values = np.random.default_rng(0).random((1, 3, 8, 8), np.float32)
    model = seeds_onnx.identity((1, 3, 8, 8))
    found = []
    for number in range(count):
        order, dtype = "FC"[number % 2], ("<f4", "<f8", ">f4", "<f2", "<i4", "|u1")[number % 7 % 6]
        array = np.array(values * 100, dtype, order=order)
        kind = ("npy", "npz", "raw", "png", "txt")[number % 5]
        files = {f"x.{kind}": _input(kind, array, number), "m.onnx": model}
        if kind == "txt":
            files["x.npy"] = _input("npy", values, number)
        found.append(Seed(f"{kind}-{number}", files, f"x.{kind}"))
    return found


def _input(kind: str, array: np.ndarray[Any, Any], number: int) -> bytes:
    stream = io.BytesIO()
    if kind == "npy":
        np.lib.format.write_array(stream, array, version=(1, 0), allow_pickle=False)
    elif kind == "npz":
        save = np.savez_compressed if number % 2 else np.savez
        save(stream, **({"x": array, "y": array[0]} if number % 3 else {"z": array}))
    elif kind == "raw":
        return array.astype(np.float32).tobytes()
    elif kind == "png":
        pixels = array[0].astype(np.uint8).transpose(1, 2, 0)
        Image.fromarray(pixels).save(stream, "png" if number % 2 else "jpeg")
    else:
        return b"# inputs\n% outputs\nx=x.npy\nx:=x.npy\nx.npy\n"
    return stream.getvalue()


def _tflite(folder: Path, pool: Pool, count: int) -> list[Seed]:
    """Of the tests' files, which TensorFlow's converter made, the whole ones and `count` of the single operators."""
    content = {path.stem: path.read_bytes() for path in sorted(_TFLITE.glob("*.tflite"))}
    cases = {}
    for path in sorted(_TFLITE.glob("*.npz")):
        with np.load(path) as arrays:
            cases |= {f"{path.stem}-{key.partition('/')[0]}": arrays[key].tobytes() for key in arrays.files
                      if key.endswith("/model")}  # fmt: skip
    step = max(1, len(cases) // count)
    content |= {name: cases[name] for name in sorted(cases)[::step]}
    return [Seed(name, {"model.tflite": data}, "model.tflite") for name, data in content.items()]


_MAKERS: dict[str, Callable[[Path, Pool, int], list[Seed]]] = {
    "onnx": _onnx, "dlc": _dlc, "bin": _bin, "npz": _npz, "tflite": _tflite,
    **{kind: lambda _folder, _pool, _count, kind=kind: frameworks.pytorch_seeds(kind) for kind in ("pt2", "pt")},
    **{kind: lambda _f, _p, _c, kind=kind: frameworks.tensorflow_seeds(kind) for kind in ("pb", "savedmodel")},
}  # fmt: skip

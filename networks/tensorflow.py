# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""`python -m networks.tensorflow`: networks of TensorFlow, converted, and compared with TensorFlow on QNN CPU.

They are built by `networks/tensorflow_zoo.py` with the interpreter of NPUKIT_TENSORFLOW_PYTHON (`make env-tensorflow`).
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

import npukit
from benchmarks.pages import machine, table
from networks.statistics import nearest_pair
from networks.tensorflow_zoo import COUNT, EPOCHS, NETWORKS
from npukit.errors import NpukitError

ZOO = Path(__file__).with_name("tensorflow_zoo.py")
COSINE = 0.9999
ALIVE = 0.9
HEAD = (
    "network", "kind", "weights", "parameters", "QNN ops", "Transposes", "convert s", "nearest pair", "cosine",
    "largest error",
)  # fmt: skip
PAGE = """# TensorFlow's networks

Networks built with TensorFlow (`networks/tensorflow_zoo.py`: tf.keras.applications and own ones), with random weights
and statistics taken from data, saved as SavedModels or frozen graphs, converted with
`npukit convert FILE --batch 1 --target qnn-cpu`, run on QNN CPU, and compared with what TensorFlow itself computes:
{count} inputs each, the worst output counts.

- *weights*: tensors of rank 2 and more; *Transposes*: ops that move data in the artifact (inputs stay channels last);
  *convert* has TensorFlow's import, reading and run in it.
- *nearest pair*: the largest cosine between what two of the inputs give, for the output where it is smallest (alive:
  below {alive:g}).
- *cosine*: the smallest between TensorFlow's result and QNN CPU's (the goal is {cosine:g}); *largest error*: of an
  output's range.

{table}
{failed}
`digits` was trained on 240 of the 360 handwritten digits of `examples/digits` ({epochs} epochs): top-1 on the other 120
is {theirs} with TensorFlow and {ours} on QNN CPU.

{machine}. Written by `make networks-tensorflow`.
"""


@dataclass
class Row:
    """What one network came to."""

    cells: dict[str, str] = field(default_factory=dict)
    failed: list[str] = field(default_factory=list)
    top1: tuple[str, str] = ("", "")


def measure(name: str, python: str, folder: Path) -> Row:
    """Build, convert and compare a network."""
    network = NETWORKS[name]
    row = Row({"network": name, "kind": "frozen graph" if network.frozen else "SavedModel"})
    made = subprocess.run(
        [python, str(ZOO), name, str(folder)], capture_output=True, text=True, errors="replace", check=False
    )
    if made.returncode:
        row.failed.append(f"not built: {made.stderr.strip().splitlines()[-1][:200]}")
        return row
    source = folder / (f"{name}.pb" if network.frozen else name)
    with np.load(folder / f"{name}.npz") as held:
        data = {key: held[key] for key in held.files}
    row.cells |= {"weights": str(data["layers"]), "parameters": f"{int(data['parameters']) / 1e6:.1f} M"}
    count = 1 + max(int(key.rpartition("/")[2]) for key in data if key.startswith("in/"))
    keys = sorted({key.split("/")[1] for key in data if key.startswith("out/")})
    pairs = [
        nearest_pair(np.stack([data[f"out/{key}/{i}"].ravel().astype(np.float64) for i in range(COUNT)]))
        for key in keys
    ]
    row.cells["nearest pair"] = f"{min(pairs):.3f}"
    alive = min(pairs) < ALIVE and max(pairs) < COSINE
    row.failed += [] if alive else [f"it is not alive: {', '.join(f'{pair:.4f}' for pair in pairs)}"]
    artifact = folder / f"{name}.dlc"
    start = time.perf_counter()
    try:
        result = npukit.convert(
            source, artifact, target="qnn-cpu", batch=1, verify=False, tensorflow_python=Path(python)
        )
        row.cells["convert s"] = f"{time.perf_counter() - start:.1f}"
        ops = result.converted.ops
        row.cells |= {"QNN ops": str(sum(ops.values())), "Transposes": str(ops.get("Transpose", 0))}
        _compare(row, artifact, data, keys, count)
    except NpukitError as error:
        row.failed.append(" ".join(str(error).split())[:300])
    return row


def _compare(row: Row, artifact: Path, data: dict[str, Any], keys: list[str], count: int) -> None:
    cosine, worst, ours = 1.0, 0.0, []
    with npukit.Session(artifact, backend="qnn-cpu") as session:
        wanted = [info.name for info in session.inputs]
        for i in range(count):
            got = session.run({name: data[f"in/{name}/{i}"] for name in wanted})
            # a frozen graph's outputs are Identity, Identity_1, ... in the order of the sorted keys
            arrays = [got[key] for key in keys] if set(keys) == set(got) else list(got.values())
            for key, array in zip(keys, arrays, strict=True):
                theirs = data[f"out/{key}/{i}"]
                assert theirs.shape == array.shape, (theirs.shape, array.shape)
                x, y = theirs.ravel().astype(np.float64), array.ravel().astype(np.float64)
                cosine = min(cosine, float(x @ y / (np.linalg.norm(x) * np.linalg.norm(y))))
                worst = max(worst, float(np.abs(x - y).max() / np.ptp(x)))
            ours.append(int(np.argmax(arrays[0])))
    row.cells |= {"cosine": f"{cosine:.7f}", "largest error": f"{worst:.1e}"}
    row.failed += [] if cosine >= COSINE else [f"the cosine is {cosine:.5f}"]
    if "labels" in data:
        theirs = [int(np.argmax(data[f"out/{keys[0]}/{i}"])) for i in range(count)]
        right = [float(np.mean(np.array(found) == data["labels"])) for found in (theirs, ours)]
        row.top1 = (f"{right[0]:.1%}", f"{right[1]:.1%}")
        row.failed += [] if right[0] > 0.9 else [f"top-1 is {right[0]:.1%}"]


def main() -> int:
    """Measure; 1 where a network does not hold."""
    parser = argparse.ArgumentParser(prog="python -m networks.tensorflow", description=__doc__)
    parser.add_argument("names", nargs="*", help="networks [all]")
    parser.add_argument("--python", default=os.environ.get("NPUKIT_TENSORFLOW_PYTHON", ".venv-tensorflow/bin/python"))
    parser.add_argument("--markdown", type=Path)
    parser.add_argument("--rows", type=Path, help="rows measured earlier (JSON): read, added to, not measured again")
    options = parser.parse_args()
    python = shutil.which(options.python)
    if python is None:
        parser.error(f"{options.python} is not there: make env-tensorflow")
    held = json.loads(options.rows.read_text()) if options.rows and options.rows.exists() else {}
    rows = {name: Row(**one) for name, one in held.items()}
    for name in options.names or NETWORKS:
        if name in rows:
            continue
        with tempfile.TemporaryDirectory() as folder:
            rows[name] = measure(name, python, Path(folder))
        sys.stdout.write(f"{rows[name]}\n")
        sys.stdout.flush()
        if options.rows is not None:
            options.rows.write_text(json.dumps({key: dataclasses.asdict(row) for key, row in rows.items()}))
    failed = [f"{name}: {fault}" for name, row in rows.items() for fault in row.failed]
    if options.markdown is not None:
        top1 = next((row.top1 for row in rows.values() if row.top1[0]), ("not measured",) * 2)
        here = machine()
        versions = f"TensorFlow {_ask(python, 'tensorflow as m')}, tf2onnx {_ask(python, 'tf2onnx as m')}"
        text = PAGE.format(
            count=COUNT, alive=ALIVE, cosine=COSINE, epochs=EPOCHS, theirs=top1[0], ours=top1[1],
            table="\n".join(table(HEAD, [[row.cells.get(key, "-") for key in HEAD] for row in rows.values()])),
            failed="".join(f"\nDoes not hold: {fault}\n" for fault in failed),
            machine=f"{versions}, {here['cpu']}, {here['cores']} cores, {here['date']}",
        )  # fmt: skip
        options.markdown.write_text(text)
    return 1 if failed else 0


def _ask(python: str, module: str) -> str:
    code = f"import {module}; print(m.__version__)"
    return subprocess.run([python, "-c", code], capture_output=True, text=True, check=False).stdout.strip()


if __name__ == "__main__":
    sys.exit(main())

# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""`python -m networks.tflite FOLDER`: convert the networks of networks/tflite_zoo.py, compare them with LiteRT.

`make networks-tflite` makes the networks first, in TensorFlow's own environment.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import platform
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

import npukit
from benchmarks.pages import machine, table
from npukit.errors import NpukitError
from npukit.frontends.tflite.flatfile import read_file
from npukit.runtime.session import Session

CHIP = "sm8650"
ALIVE = 0.9
Array = np.ndarray[Any, Any]
HEAD = (
    "network", "kind", "operators", "parameters", "convert s", "QNN ops", "transposes", "samples", "nearest pair",
    "QNN CPU cosine", "QNN CPU SQNR dB", "QNN CPU top-1", "raised SQNR dB", "raised top-1", "HTP SQNR dB", "HTP top-1",
    "kernels dB", "kernels top-1", "right",
)  # fmt: skip
PAGE = """# Real networks, TensorFlow Lite

Networks made with Keras and TensorFlow (`networks/tflite_zoo.py`), converted by TensorFlow's converter, then each by
one `npukit convert FILE`, against LiteRT's interpreter as it runs by default, with XNNPACK.

Trained, and measured on samples that neither training nor calibration has seen: `digits`, `mobilenet_v2` (Keras' own,
alpha 0.35, digits enlarged to 128x128) and `tcn` (digits row after row) on scikit-learn's handwritten digits, 256 of
1,797 held out; `super_resolution` on scikit-learn's two photographs, the right third of both held out, in 128 patches
that overlap. The others have random weights, their norms' statistics taken from data.

SQNR is that of all samples together, the cosine that of the worst one. *Nearest pair* is the largest cosine between
what LiteRT gives for two samples, for the output where it is smallest (alive: below {alive:g}; of a trained network
samples of one class are alike, so it is not asked of them). *Transposes* are those in the QNN graph. Three backends are
compared: QNN CPU; *raised*, the artifact for QNN CPU on ONNX Runtime; HTP, the emulator ({chip}). *Kernels* are
LiteRT's own reference kernels against its default ones: what rounding alone comes to in that network;
[the guide](../guides/tflite.md#what-was-measured) says what single operators differ by. *Right* is what LiteRT, QNN CPU
and HTP make of the truth: the share of right answers, or for super-resolution the peak signal-to-noise ratio in dB.
Integer outputs are compared as the real numbers that they stand for.

Asked for: float32 and float16 cosine 0.9999 on QNN CPU; int8 and int16 top-1 agreement 99 % and 30 dB; dynamic range
(LiteRT rounds activations while it runs, the artifact does not) 20 dB.

{table}
{failed}
{machine}, {date}; {versions}. Written by `make networks-tflite`.
"""


@dataclass
class Row:
    """One file; an empty cell was not measured."""

    cells: dict[str, str]
    failed: list[str] = field(default_factory=list)


@dataclass
class Answers:
    """What is right for each sample: a class, or a picture from -1 to 1; neither where nobody knows."""

    labels: Array | None
    truth: Array | None

    def right(self, found: dict[str, Array]) -> str:
        """How right the one output is; "" where nobody knows."""
        (values,) = found.values() if len(found) == 1 else (np.zeros(0),)
        if self.labels is not None:
            return f"{(values.reshape(len(values), -1).argmax(1) == self.labels).mean():.1%}"
        if self.truth is not None:
            error = np.clip(values.reshape(self.truth.shape), -1, 1) - self.truth
            return f"{10 * np.log10(4 / (error**2).mean()):.2f}"
        return ""


def main(arguments: list[str] | None = None) -> int:
    """Measure; 1 if a network does not meet the limits."""
    parser = argparse.ArgumentParser(prog="python -m networks.tflite", description=__doc__)
    parser.add_argument("folder", type=Path, help="with NAME.KIND.tflite and NAME.npz")
    parser.add_argument("names", nargs="*", help="NAME or NAME.KIND [all]")
    parser.add_argument("--markdown", type=Path, help="write the table to this file")
    options = parser.parse_args(arguments)
    rows = []
    for path in sorted(options.folder.glob("*.tflite")):
        name, kind, _ = path.name.split(".")
        if options.names and name not in options.names and f"{name}.{kind}" not in options.names:
            continue
        with np.load(options.folder / f"{name}.npz") as data:
            samples = {key: data[key] for key in data.files}
        rows.append(measure(path, name, kind, samples))
        _say("  ".join(f"{k} {v}" for k, v in rows[-1].cells.items()) + "".join(f"\n  {f}" for f in rows[-1].failed))
    lines = "\n".join(table(HEAD, (tuple(row.cells.get(name, "-") for name in HEAD) for row in rows)))
    _say(lines)
    if options.markdown is not None:
        options.markdown.write_text(_page(lines, rows))
    return 1 if any(row.failed for row in rows) else 0


def measure(path: Path, name: str, kind: str, samples: dict[str, Array]) -> Row:
    """Convert and compare one file."""
    row = Row({"network": name, "kind": kind})
    answers = Answers(samples.pop("labels", None), samples.pop("truth", None))
    count = len(next(iter(samples.values())))
    try:
        graphs = read_file(path).subgraphs
        constants = sum(t.data.size for g in graphs for t in g.tensors if t.data is not None and t.data.size > 8)
        row.cells |= {
            "operators": str(sum(len(g.ops) for g in graphs)),
            "parameters": f"{constants / 1e6:.2f} M",
            "samples": str(count),
        }
        with Session(path) as interpreter:
            feeds = _feeds(interpreter, samples, count)
            wanted = _run(interpreter, feeds)
            _alive(row, min(_nearest(w) for w in wanted.values()), answers)
        with tempfile.TemporaryDirectory() as folder:
            _backends(row, path, kind, feeds, wanted, answers, Path(folder))
        if kind in ("int8", "int16") and (kernels := _reference_kernels(path, feeds, list(wanted))):
            row.cells |= {"kernels dB": _decibel(_sqnr(kernels, wanted)), "kernels top-1": _top(kernels, wanted)}
    except NpukitError as error:
        row.failed.append(" ".join(str(error).split())[:300])
    return row


def _backends(
    row: Row, path: Path, kind: str, feeds: list[dict[str, Array]], wanted: dict[str, Array], answers: Answers,
    folder: Path,
) -> None:  # fmt: skip
    whole = kind in ("int8", "int16")
    right = [answers.right(wanted)]
    if kind != "int16":  # QNN CPU has no 16-bit activations
        start = time.perf_counter()
        made = npukit.convert(path, folder / "cpu.dlc", target="qnn-cpu", verify=False).converted
        row.cells["convert s"] = f"{time.perf_counter() - start:.1f}"
        row.cells["QNN ops"] = str(sum(made.ops.values()))
        row.cells["transposes"] = str(made.ops.get("Transpose", 0))
        with Session(folder / "cpu.dlc") as session:
            found = _run(session, feeds)
        cosine, sqnr, top = _cosine(found, wanted), _sqnr(found, wanted), _top(found, wanted)
        row.cells |= {"QNN CPU cosine": f"{cosine:.6f}", "QNN CPU SQNR dB": f"{sqnr:.1f}", "QNN CPU top-1": top}
        right.append(answers.right(found))
        if kind in ("float32", "float16") and cosine < 0.9999:
            row.failed.append(f"cosine {cosine:.6f} on QNN CPU")
        if kind == "dynamic" and sqnr < 20:
            row.failed.append(f"{sqnr:.1f} dB on QNN CPU")
        if whole:
            _judge(row, "QNN CPU", sqnr, top)
            with Session(folder / "cpu.dlc", backend="ort") as session:
                found = _run(session, feeds)
            row.cells |= {"raised SQNR dB": _decibel(_sqnr(found, wanted)), "raised top-1": _top(found, wanted)}
    if whole:
        npukit.convert(path, folder / "htp.dlc", target=CHIP, verify=False)
        npukit.compile(folder / "htp.dlc", folder / "htp.bin", target=CHIP)
        with Session(folder / "htp.bin") as session:
            found = _run(session, feeds)
        row.cells |= {"HTP SQNR dB": _decibel(_sqnr(found, wanted)), "HTP top-1": _top(found, wanted)}
        _judge(row, "HTP", _sqnr(found, wanted), _top(found, wanted))
        right.append(answers.right(found))
    if all(right):
        row.cells["right"] = " ".join(right)


def _alive(row: Row, nearest: float, answers: Answers) -> None:
    """Different inputs give different outputs; those of a trained network are what they have to be."""
    row.cells["nearest pair"] = f"{nearest:.2f}"
    trained = answers.labels is not None or answers.truth is not None
    if not trained and not nearest < ALIVE:  # NaN is not alive either
        row.failed.append(f"it is not alive: {nearest:.4f}")


def _judge(row: Row, where: str, sqnr: float, top: str) -> None:
    if sqnr < 30:
        row.failed.append(f"{sqnr:.1f} dB on {where}")
    if top not in ("-", "") and float(top[:-1]) < 99:
        row.failed.append(f"top-1 agreement {top} on {where}")


def _feeds(session: Session, samples: dict[str, Array], count: int) -> list[dict[str, Array]]:
    """One dict a sample; floats become the codes that the file takes."""
    found = []
    for i in range(count):
        feed = {}
        for info in session.inputs:
            value = samples[info.name][i] if info.name in samples else next(iter(samples.values()))[i]
            encoding, dtype = info.native.encoding, np.dtype(info.dtype)
            if encoding is not None and value.dtype.kind == "f":
                limits = np.iinfo(dtype)
                value = np.clip(np.round(value / encoding.scale) - encoding.offset, limits.min, limits.max)
            feed[info.name] = value.astype(dtype)
        found.append(feed)
    return found


def _run(session: Session, feeds: list[dict[str, Array]]) -> dict[str, Array]:
    """Outputs of all samples, stacked, as float64; codes as what they stand for."""
    runs = [session.run(feed) for feed in feeds]
    stacked = {}
    for info in session.outputs:
        values = np.stack([run[info.name] for run in runs]).astype(np.float64)
        encoding = info.native.encoding
        if encoding is not None and info.dtype in ("int8", "uint8", "int16"):
            # an artifact holds signed codes shifted: its encoding is that of the shifted ones
            shift = {"int8": 128, "int16": 32768}.get(info.dtype, 0) if info.native.dtype.startswith("u") else 0
            values = encoding.scale * (values + shift + encoding.offset)
        stacked[info.name] = values
    return stacked


def _own(row: Row) -> str:
    """What LiteRT's kernels come to among themselves, beside what we miss."""
    apart, raised = (row.cells.get(name, "-") for name in ("kernels dB", "raised SQNR dB"))
    return f" (LiteRT's two sets of kernels: {apart} dB; raised: {raised} dB)" if apart != "-" else ""


def _reference_kernels(path: Path, feeds: list[dict[str, Array]], names: list[str]) -> dict[str, Array]:
    """What LiteRT's reference kernels compute; nothing where it has none for an operator of the file."""
    from ai_edge_litert.interpreter import Interpreter, OpResolverType

    try:
        interpreter = Interpreter(model_path=str(path), experimental_op_resolver_type=OpResolverType.BUILTIN_REF)
    except ValueError:
        return {}
    runner = interpreter.get_signature_runner()
    details = runner.get_output_details()
    runs = [runner(**feed) for feed in feeds]
    found = {}
    for name in names:
        scale, point = details[name]["quantization"]
        values = np.stack([run[name] for run in runs]).astype(np.float64)
        found[name] = (values - point) * (scale or 1)
    return found


def _sqnr(found: dict[str, Array], wanted: dict[str, Array]) -> float:
    """Of the worst output, in dB."""
    return min(
        float(10 * np.log10((v**2).sum() / max(((found[name] - v) ** 2).sum(), 1e-300))) for name, v in wanted.items()
    )


def _decibel(value: float) -> str:
    return "exact" if value > 1000 else f"{value:.1f}"


def _cosine(found: dict[str, Array], wanted: dict[str, Array]) -> float:
    """The least of all samples and outputs."""
    cosines = []
    for name, values in wanted.items():
        for a, b in zip(found[name].reshape(len(values), -1), values.reshape(len(values), -1), strict=True):
            norm = np.linalg.norm(a) * np.linalg.norm(b)
            cosines.append(float(a @ b / norm) if norm else float(not a.any() and not b.any()))
    return min(cosines)


def _top(found: dict[str, Array], wanted: dict[str, Array]) -> str:
    """How often the largest element is the same, over the last axis of the first output that has one."""
    for name, values in wanted.items():
        if values.ndim in (3, 5) and 3 < values.shape[-1] <= 5000:
            return f"{(found[name].argmax(-1) == values.argmax(-1)).mean():.2%}"
    return "-"


def _nearest(values: Array) -> float:
    rows = values.reshape(len(values), -1)
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    cosines = (rows / np.maximum(lengths, 1e-30)) @ (rows / np.maximum(lengths, 1e-30)).T
    return float(cosines[~np.eye(len(rows), dtype=bool)].max())


def _page(lines: str, rows: list[Row]) -> str:
    names = ("npukit", "ai-edge-litert", "onnxruntime", "onnxruntime-qnn", "numpy")
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in names)
    here = machine()
    described = f"{here['cpu'] or platform.machine()}, {here['cores']} cores, Python {here['python']}"
    missed = [f"- {r.cells['network']}, {r.cells['kind']}: {'; '.join(r.failed)}{_own(r)}" for r in rows if r.failed]
    failed = "\nNot met:\n\n" + "\n".join(missed) + "\n" if missed else ""
    return PAGE.format(
        table=lines, failed=failed, chip=CHIP, alive=ALIVE, machine=described, date=here["date"], versions=versions
    )


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())

# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""The demo: a trained network goes to Qualcomm artifacts, runs there, and is compared with its source.

    digits.onnx     -> float DLC     -> QNN CPU, HTP emulator in float16
    digits.onnx     -> quantized after training (W8A8) -> DLC -> HTP emulator
    digits_qdq.onnx -> quantized DLC -> HTP context binary for SM8650 -> HTP emulator

`make demo`, or `python examples/digits/demo.py --output FOLDER`. Prints one table and leaves the artifacts, a JSON of
the table and the HTML report of the comparison in FOLDER.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

import npukit

HERE = Path(__file__).parent
TARGET = "sm8650"

Array = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Row:
    """One stage on the held-out images.

    Attributes:
        stage: what was run.
        backend: on which backend.
        top1: share of images whose label was found.
        agreement: share of images with the same answer as the float source on ONNX Runtime.
        sqnr_db: signal to quantization noise of all scores, against the same.
    """

    stage: str
    backend: str
    top1: float
    agreement: float
    sqnr_db: float


def main() -> int:
    """Run the demo; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--output", type=Path, default=Path("results/demo"), help="folder for artifacts and report")
    folder: Path = parser.parse_args().output
    folder.mkdir(parents=True, exist_ok=True)
    start = time.monotonic()
    with np.load(HERE / "digits.npz") as data:
        images = (data["images"][:, None, None] / 16).astype(np.float32)
        calibration = (data["calibration"][:, None, None] / 16).astype(np.float32)
        labels = data["labels"]

    source, quantized = HERE / "digits.onnx", HERE / "digits_qdq.onnx"
    dlc, qdq_dlc, binary = folder / "digits.dlc", folder / "digits_qdq.dlc", folder / f"digits_qdq.{TARGET}.bin"
    ptq_dlc = folder / "digits_w8a8.dlc"
    _say(f"convert {source.name} -> {dlc.name}")
    npukit.convert(source, output=dlc)
    _say(f"quantize {source.name} with {len(calibration)} images -> {ptq_dlc.name}")
    npukit.quantize(source, calibration=calibration, output=ptq_dlc, target=(TARGET,))
    _say(f"convert {quantized.name} -> {qdq_dlc.name}")
    npukit.convert(quantized, output=qdq_dlc, target=(TARGET,))
    _say(f"compile {qdq_dlc.name} -> {binary.name}")
    npukit.compile(qdq_dlc, output=binary, target=TARGET)

    reference: Array | None = None
    rows = []
    for stage, model, backend in (
        ("source", source, "ort"),
        ("float DLC", dlc, "qnn-cpu"),
        ("float DLC, float16", dlc, "qnn-htp"),
        ("quantized DLC, W8A8, simulated", ptq_dlc, "ort"),
        ("quantized DLC, W8A8", ptq_dlc, "qnn-htp"),
        ("QDQ source", quantized, "ort"),
        (f"context binary for {TARGET}", binary, "qnn-htp"),
    ):
        _say(f"run {model.name} on {backend}")
        scores = run(model, backend, images)
        reference = scores if reference is None else reference
        rows.append(_row(stage, backend, scores, reference, labels))

    report = folder / "report.html"
    _say(f"verify {dlc.name} against {source.name} -> {report.name}")
    verified = npukit.verify(dlc, against=source, random=8, report=report)
    _say(table(rows))
    (folder / "demo.json").write_text(json.dumps([asdict(row) for row in rows], indent=2) + "\n")
    _say(f"{len(images)} held-out images, {time.monotonic() - start:.0f} s; artifacts and {report.name} in {folder}")
    return int(verified.exit_code)


def run(model: Path, backend: str, images: Array) -> Array:
    """Scores [images, 10] of `model`; images are [images, 1, 1, 8, 8] in 0..1."""
    with npukit.Session(model, backend=backend) as session:
        return np.concatenate([session.run({"image": image})["scores"] for image in images])


def _row(stage: str, backend: str, scores: Array, reference: Array, labels: Array) -> Row:
    answers = scores.argmax(1)
    noise = float(np.square(scores.astype(np.float64) - reference).sum())
    signal = float(np.square(reference.astype(np.float64)).sum())
    return Row(
        stage,
        backend,
        top1=float((answers == labels).mean()),
        agreement=float((answers == reference.argmax(1)).mean()),
        sqnr_db=round(10 * float(np.log10(signal / noise)), 1) if noise else float("inf"),
    )


def table(rows: list[Row]) -> str:
    """The rows as plain text."""
    lines = [f"{'stage':32} {'backend':8} {'top-1':>7} {'agrees':>7} {'SQNR':>8}"]
    for row in rows:
        sqnr = "exact" if row.sqnr_db == float("inf") else f"{row.sqnr_db:.1f} dB"
        lines.append(f"{row.stage:32} {row.backend:8} {row.top1:7.2%} {row.agreement:7.1%} {sqnr:>8}")
    return "\n".join(["", *lines, ""])


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())

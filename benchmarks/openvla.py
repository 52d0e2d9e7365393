# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""`python -m benchmarks.openvla`: an OpenVLA-7B with random weights, exported in float16 and compared layer by layer.

What is already in the folder is kept: a checkpoint of another run, and a policy folder that was made from it.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import pages

TARGET = "ascend310p3"


def main(arguments: list[str] | None = None) -> int:
    """Make the checkpoint, export it, check the files, print the tables."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.openvla", description=__doc__)
    parser.add_argument("--tiny", action="store_true", help="a tiny checkpoint, to see that it works")
    parser.add_argument("--folder", type=Path, default=Path("results/openvla"), help="where to work (needs 31 GB)")
    parser.add_argument("--remove", action="store_true", help="remove what was made in the folder")
    parser.add_argument("--json", type=Path, help="write all figures here")
    parser.add_argument("--markdown", type=Path, help="write the tables here")
    options = parser.parse_args(arguments)
    options.folder.mkdir(parents=True, exist_ok=True)
    checkpoint, policy = options.folder / "checkpoint", options.folder / "policy"
    if not (checkpoint / "tokenizer.json").exists():
        make_checkpoint(checkpoint, tiny=options.tiny)
    machine = pages.machine("npukit", "torch", "numpy", "onnx", "onnxruntime")
    found: dict[str, Any] = {"machine": machine, "checkpoint": _size(checkpoint)}
    if not (policy / "policy.json").exists():
        _export(checkpoint, policy)
    found["policy"] = _size(policy)
    found["manifest"] = json.loads((policy / "policy.json").read_text())
    found["parity"] = json.loads((policy / "parity.json").read_text())
    found["files"] = [_checked(policy / item["artifacts"]["ort"]) for item in found["manifest"]["components"]]
    found["machine"]["load_after"] = os.getloadavg()[0]
    page = markdown(found)
    sys.stdout.write(page)
    if options.json:
        options.json.write_text(json.dumps(found, indent=1) + "\n")
    if options.markdown:
        options.markdown.write_text(page)
    if options.remove:
        shutil.rmtree(checkpoint)
        shutil.rmtree(policy)
    return 0


def make_checkpoint(folder: Path, *, tiny: bool = False) -> None:
    """OpenVLA-7B's files and names with random float16 weights in eight shards."""
    from tests import openvla_tools

    shutil.rmtree(folder, ignore_errors=True)
    sizes, shards = (openvla_tools.TINY, 2) if tiny else (openvla_tools.FULL, 8)
    openvla_tools.checkpoint(folder, sizes, shards=shards, dtype=np.float16)


def _export(checkpoint: Path, policy: Path) -> None:
    command = ["npukit", "policy", "export", str(checkpoint), "--policy", "openvla", "-o", str(policy), "-v"]
    if subprocess.run([str(Path(sys.executable).parent / command[0]), *command[1:]], check=False).returncode:
        raise SystemExit("the export failed")


def _checked(path: Path) -> dict[str, Any]:
    """What onnx's checker, shape inference and the lint for Ascend say of a file, from processes of their own."""
    import onnx

    row: dict[str, Any] = {"name": path.name, "bytes": path.stat().st_size}
    model = onnx.load(path, load_external_data=False)
    row["nodes"] = len(model.graph.node)
    row["opset"] = model.opset_import[0].version
    row["external"] = sorted({
        entry.value for tensor in model.graph.initializer for entry in tensor.external_data if entry.key == "location"
    })  # fmt: skip
    begin = time.perf_counter()
    onnx.checker.check_model(str(path))
    inferred = path.with_name(f"{path.stem}.inferred")
    try:
        onnx.shape_inference.infer_shapes_path(str(path), str(inferred), check_type=True, strict_mode=True)
    finally:
        inferred.unlink(missing_ok=True)
    row["check"] = time.perf_counter() - begin
    npukit = [str(Path(sys.executable).parent / "npukit"), "lint", str(path), "--target", TARGET]
    begin = time.perf_counter()
    run = subprocess.run([*npukit, "--precision-mode", "origin", "--json"], capture_output=True, text=True, check=False)
    row["lint"] = time.perf_counter() - begin
    if run.returncode not in (0, 1):
        raise SystemExit(run.stderr)
    row["findings"] = json.loads(run.stdout)["findings"]
    return row


def _size(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_size for path in sorted(folder.iterdir()) if path.is_file()}


# ---------------------------------------------------------------- the page


def markdown(found: dict[str, Any]) -> str:
    """The tables."""
    m, parity, network = found["machine"], found["parity"], found["manifest"]["config"]["network"]
    versions = ", ".join(f"{name} {version}" for name, version in m["versions"].items())
    held = sum(found["checkpoint"].values()) / 1e9
    text = network["text"]
    lines = [
        "# OpenVLA at full size",
        "",
        f"Written by `make bench-openvla`: an OpenVLA with random float16 weights in shards of {held:.1f} GB "
        f"({text['layers']} layers of",
        f"width {text['width']}), exported with `npukit policy export` to five float16 models for opset 14, and every",
        "layer compared with the network in PyTorch float32: ONNX Runtime and PyTorch hold one layer at a time, both",
        "are fed what the layer before gave on their own side, and ONNX Runtime computes in float32 between float16",
        "results, as its CPU provider does. Peak memory is the whole process's.",
        "",
        f"{m['date']}; {m['cpu']}, {m['cores']} cores; {m['system']}; Python {m['python']}; {versions}; "
        f"load average {m['load_before']:.1f} before, {m['load_after']:.1f} after.",
        "",
        "## Time and memory",
        "",
    ]
    stages = [
        (row["stage"], f"{row['seconds']:.1f}", f"{row['peak_bytes'] / 1e9:.2f}" if row["peak_bytes"] else "")
        for row in parity["stages"]
    ]
    seconds = sum(row["seconds"] for row in parity["stages"])
    peak = max(row["peak_bytes"] or 0 for row in parity["stages"])
    stages.append(("all", f"{seconds:.0f}", f"{peak / 1e9:.2f}"))
    lines += pages.table(("stage", "seconds", "peak GB"), stages)
    lines += ["", f"On disk: the shards {held:.2f} GB, the policy folder {sum(found['policy'].values()) / 1e9:.2f} GB, "
              "nothing else meanwhile.", "", "## The components against PyTorch float32", ""]  # fmt: skip
    rows = [
        (row["component"], row["output"], f"{row['cosine']:.7f}", f"{row['share']:.1e}",
         "" if "equal" not in row else f"{row['equal']} of {len(row['tokens'])} tokens equal")
        for row in parity["components"]
    ]  # fmt: skip
    lines += pages.table(("component", "output", "cosine", "max error / range", ""), rows)
    lines += [
        "",
        "## The files",
        "",
        "Each whole file is checked by onnx's checker and its strict shape inference (by path, weights stay on disk),",
        f"and by `npukit lint --target {TARGET} --precision-mode origin`. Prefill, decoder and embedding share a file",
        "of weights.",
        "",
    ]
    files = [
        (item["name"], item["nodes"], item["opset"], f"{item['bytes'] / 1e6:.2f}",
         ", ".join(f"{name} {found['policy'][name] / 1e9:.2f} GB" for name in item["external"]),
         f"{item['check']:.1f} s", f"{len(item['findings'])} findings, {item['lint']:.1f} s")
        for item in found["files"]
    ]  # fmt: skip
    lines += pages.table(("file", "nodes", "opset", "MB", "weights", "checker and shapes", "lint"), files)
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())

# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""`python -m benchmarks.smolvla`: a full-size SmolVLA with random weights, exported and run beside PyTorch.

Every side is a process of its own that stays loaded; they take turns, one chunk each a round, on the same observation
and noise. PyTorch is our own definition of the network: in LeRobot's eager arithmetic, and as fast as we can write it
(scaled_dot_product_attention, cross-attention's keys and values projected once a chunk, inference mode).
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import pages

THREADS = 2
PEER = "torch-compile"
EXACT = "torch-eager"
CHIP = "sm8650"
BLOCK = "w8a16-block"  # one layer of each component (two of the language model, of either kind) at full width
# Package -> what is asked of `npukit policy export`; and what runs of it.
PACKAGES: dict[str, tuple[str, ...]] = {
    "float32": ("--backend=ort", "--backend=qnn-cpu"),
    "int8": ("--backend=ort", "--precision=int8"),
    "float16": ("--backend=qnn-htp", "--precision=float16", f"--target={CHIP}"),
    "w8a16": ("--backend=qnn-htp", "--precision=w8a16", f"--target={CHIP}"),
    BLOCK: ("--backend=qnn-htp", "--precision=w8a16", "--emulator-seconds=1200"),
}
OURS = {"ort": ("float32", "ort"), "ort-int8": ("int8", "ort"), "qnn-cpu": ("float32", "qnn-cpu")}
SIDES = (EXACT, "torch-sdpa", PEER, "torch-bfloat16", *OURS)
EQUAL = 1e-4  # largest error of equal accuracy, as a share of the chunk's range
MEMORY = {"ort": 3.0, "qnn-cpu": 3.0, "ort-int8": 1.2}  # goals, GB
# On disk at once, full size: 1.2 GB of checkpoint, 0.3 of the block's, 4.4, 0.7, 1.1, 0.6 and 0.1 of packages, and
# while one is made again 4.4 more: its float32 models and DLCs beside what is kept.
DISK = "14 GB"
ABOUT = {  # said of a package in its section
    "w8a16": ("A whole chunk is simulated (`sim`): on Qualcomm's emulator it would take hours.",),
    BLOCK: (
        "The network has one layer of the vision encoder's kind and one of the action head's, and two of the language",
        "model's, at full width; it runs on Qualcomm's HTP emulator.",
    ),
}
CALIBRATED = 8
BLOCK_CHECKPOINT = "block-checkpoint"


def main(arguments: list[str] | None = None) -> int:
    """Export, run the sides in turn, print the tables."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.smolvla", description=__doc__)
    parser.add_argument("--checkpoint", type=Path, help="a SmolVLA checkpoint [full size, random weights]")
    parser.add_argument("--tiny", action="store_true", help="a tiny random checkpoint, to see that it works")
    parser.add_argument("--folder", type=Path, default=Path("results/smolvla"), help=f"where to work (needs {DISK})")
    parser.add_argument("--rounds", type=int, default=7, help="chunks of each side, after one that does not count")
    parser.add_argument("--sides", type=lambda t: t.split(","), default=list(SIDES), help=",".join(SIDES))
    parser.add_argument("--packages", type=lambda t: t.split(","), default=list(PACKAGES), help=",".join(PACKAGES))
    parser.add_argument("--note", action="append", default=[], help="a line on the page about this run; repeatable")
    parser.add_argument("--json", type=Path, help="write all figures here")
    parser.add_argument("--markdown", type=Path, help="write the tables here")
    parser.add_argument("--side", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.side:
        return _side(options.side, options.folder)
    options.folder.mkdir(parents=True, exist_ok=True)
    checkpoint = options.folder / "checkpoint"
    if options.checkpoint is not None:
        checkpoint.unlink(missing_ok=True)
        checkpoint.symlink_to(options.checkpoint.resolve())
    elif not (checkpoint / "tokenizer.json").exists():
        make_checkpoint(checkpoint, tiny=options.tiny)
    np.savez(options.folder / "sample.npz", **_sample(checkpoint))
    found: dict[str, Any] = {"notes": options.note}
    found["machine"] = pages.machine("npukit", "torch", "numpy", "onnxruntime", "onnxruntime-qnn")
    if BLOCK in options.packages and not (options.folder / BLOCK_CHECKPOINT / "tokenizer.json").exists():
        make_checkpoint(options.folder / BLOCK_CHECKPOINT, tiny=options.tiny, layers=1)
    found["export"] = {name: _export(checkpoint, options.folder, name) for name in options.packages}
    found["sides"] = _compare(options.folder, options.sides, options.rounds)
    found["machine"]["load_after"] = os.getloadavg()[0]
    page = markdown(found)
    sys.stdout.write(page)
    if options.json:
        options.json.write_text(json.dumps(found, indent=1) + "\n")
    if options.markdown:
        options.markdown.write_text(page)
    return 0


def make_checkpoint(folder: Path, *, tiny: bool = False, layers: int | None = None) -> None:
    """A LeRobot folder of smolvla_libero's config with random weights, statistics and a byte-level tokenizer.

    Args:
        folder: what to make.
        tiny: a network of a few kilobytes.
        layers: of the vision encoder, and twice as many of the language model; None for all.
    """
    from safetensors.numpy import save_file

    from tests import policy_tools, smolvla_tools

    shutil.rmtree(folder, ignore_errors=True)
    if tiny:
        smolvla_tools.checkpoint(folder)
    else:
        folder.mkdir(parents=True)
        values, vlm = smolvla_tools.full_config(), smolvla_tools.FULL_VLM
        if layers is not None:
            values["num_vlm_layers"] = 2 * layers
            vlm = {**vlm, "vision_config": {**vlm["vision_config"], "num_hidden_layers": layers}}
            (folder / "vlm_config.json").write_text(json.dumps(vlm))
        (folder / "config.json").write_text(json.dumps(values))
        shapes = smolvla_tools.shapes(values, vlm)
        save_file(smolvla_tools.tensors(shapes, mixed=True), folder / "model.safetensors")
    policy_tools.processors(folder)
    policy_tools.tokenizer(folder / "tokenizer.json")


def _export(checkpoint: Path, folder: Path, name: str) -> dict[str, Any]:
    """A package, and what the export says of itself."""
    output = folder / name
    if name == BLOCK:
        checkpoint = folder / BLOCK_CHECKPOINT
    command = [sys.executable, "-m", "npukit", "policy", "export", str(checkpoint), "-o", str(output), *PACKAGES[name]]
    if name.startswith("w8a16"):
        command += ["--calibration", str(_observations(folder))]
    done = subprocess.run(
        [*command, "--force", "--json", "--threads", str(THREADS)], stdout=subprocess.PIPE, check=True
    )
    made: dict[str, Any] = json.loads(done.stdout)
    made["contexts"] = {path.name: _context(path) for path in sorted(output.glob("*.bin"))}
    return made


def _observations(folder: Path) -> Path:
    """Made-up observations to quantize by: a network of random weights has no better ones."""
    from npukit.policies import observations
    from npukit.policies.package import Manifest
    from npukit.policies.policy import read_statistics

    path = folder / "observations.npz"
    if not path.exists():
        manifest = Manifest.read(folder / "float32")
        observations.write(path, observations.generate(manifest, read_statistics(manifest), CALIBRATED, seed=1))
    return path


def _context(path: Path) -> dict[str, str]:
    """What QnnSystem says of a context binary."""
    command = [sys.executable, "-m", "npukit", "inspect", str(path), "--json"]
    facts: dict[str, str] = json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout)["facts"]
    return facts


# ---------------------------------------------------------------- the sides, in turn


def _compare(folder: Path, sides: list[str], rounds: int) -> dict[str, Any]:
    # A side begins when the one before it is ready: loading at once would make each other's peaks.
    processes: dict[str, subprocess.Popen[str]] = {}
    found: dict[str, Any] = {name: {"seconds": []} for name in sides}
    try:
        for name in sides:
            command = [sys.executable, "-m", "benchmarks.smolvla", "--folder", str(folder), "--side", name]
            processes[name] = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            found[name]["load"] = _answer(processes[name], name)
        for i in range(rounds + 1):
            for name, process in processes.items():
                assert process.stdin is not None
                process.stdin.write("chunk\n")
                process.stdin.flush()
                row = _answer(process, name)
                sys.stderr.write(f"round {i}: {name} {row['seconds']:.2f} s\n")
                if i:
                    found[name]["seconds"].append(row["seconds"])
                found[name].update(parts=row["parts"], peak=row["peak"], anonymous=row["anonymous"])
        exact = np.load(folder / f"{EXACT}.npy") if EXACT in sides else None
        for name in sides:
            made = np.load(folder / f"{name}.npy")
            found[name].update(_error(made, exact) if exact is not None else {})
    finally:
        for process in processes.values():
            process.kill()
            process.wait()
    return found


def _answer(process: subprocess.Popen[str], name: str) -> dict[str, Any]:
    assert process.stdout is not None
    line = process.stdout.readline()
    if not line:
        raise RuntimeError(f"{name} ended with status {process.wait()}")
    found: dict[str, Any] = json.loads(line)
    return found


def _error(made: Any, exact: Any) -> dict[str, float]:
    difference = np.abs(made - exact)
    noise = float(np.square(made - exact).sum())
    signal = float(np.square(exact).sum())
    return {
        "share": float(difference.max() / (exact.max() - exact.min())),
        "sqnr_db": 10 * float(np.log10(signal / noise)) if noise else float("inf"),
    }


def _side(name: str, folder: Path) -> int:
    """One process: load, say so, then a chunk for each line of stdin."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is not an answer
    run = (_torch if name.startswith("torch") else _npukit)(name, folder)
    json.dump({"peak": _peak("VmHWM")}, answers)
    answers.write("\n")
    answers.flush()
    for _ in sys.stdin:
        begin = time.perf_counter()
        chunk, parts = run()
        seconds = time.perf_counter() - begin
        np.save(folder / f"{name}.npy", chunk)
        row = {"seconds": seconds, "parts": parts, "peak": _peak("VmHWM"), "anonymous": _peak("RssAnon")}
        answers.write(json.dumps(row) + "\n")
        answers.flush()
    return 0


def _peak(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith(f"{field}:"))) * 1024


def _sample(checkpoint: Path) -> dict[str, Any]:
    from npukit.policies.smolvla import export, weights

    return export.random_sample(weights.read(checkpoint, json.loads((checkpoint / "config.json").read_text()))[0])


def _torch(name: str, folder: Path) -> Any:
    import torch

    from npukit.policies.smolvla import weights

    torch.set_num_threads(THREADS)
    checkpoint = folder / "checkpoint"
    config, held = weights.read(checkpoint, json.loads((checkpoint / "config.json").read_text()))
    dtype = torch.bfloat16 if name == "torch-bfloat16" else torch.float32
    model = weights.load_model(held, config, dtype=dtype, attention="eager" if name == EXACT else "sdpa").eval()
    if name == "torch-compile":
        model = torch.compile(model)
    sample = {key: torch.from_numpy(value) for key, value in np.load(folder / "sample.npz").items()}
    images = [sample[f"image_{i + 1}"].to(dtype) for i in range(len(config.cameras))]
    masks = [sample["image_masks"][:, i].bool() for i in range(len(config.cameras))]
    tokens, state = (sample["lang_tokens"], sample["lang_masks"].bool()), sample["state"].to(dtype)

    def run() -> Any:
        with torch.inference_mode():
            return model(images, masks, *tokens, state, sample["noise"])[0].float().numpy(), {}

    return run


def _npukit(name: str, folder: Path) -> Any:
    """As a robot runs it: PyTorch is not imported."""
    import npukit
    from npukit.policies.processing import ATTENTION, TOKENS

    package, backend = OURS[name]
    policy = npukit.Policy(folder / package, backend=backend, threads=THREADS)
    sample = dict(np.load(folder / "sample.npz"))
    inputs = {camera.feature: sample[f"image_{camera.slot + 1}"] for camera in policy.manifest.cameras}
    inputs |= {"observation.state": sample["state"], TOKENS: sample["lang_tokens"], ATTENTION: sample["lang_masks"]}
    rng = np.random.default_rng(0)

    def run() -> Any:
        policy.runtime.prefix(inputs)
        return policy.runtime.chunk(sample["noise"][0], rng), dict(policy.runtime.seconds)

    return run


# ---------------------------------------------------------------- the page


def markdown(found: dict[str, Any]) -> str:
    """The tables."""
    from npukit import targets

    m, sides, exports = found["machine"], found["sides"], found["export"]
    versions = ", ".join(f"{name} {version}" for name, version in m["versions"].items())
    lines = [
        "# SmolVLA at full size",
        "",
        "Written by `make bench-smolvla`: the architecture of smolvla_libero (604.9 million parameters, two cameras,",
        "chunks of 50 actions, ten denoising steps) with random weights, on the same observation and noise. The sides",
        f"stay loaded and take turns, {THREADS} threads each; figures are medians. `torch-eager` computes as LeRobot",
        "does; `torch-sdpa` is the same network as fast as we could write it in PyTorch, `torch-compile` that through",
        "torch.compile. Peak memory is the process's own, mapped files included; *anonymous* leaves those out, and is",
        "what stays resident after a chunk.",
        "",
        f"{m['date']}; {m['cpu']}, {m['cores']} cores; {m['system']}; Python {m['python']}; {versions}; "
        f"load average {m['load_before']:.1f} before, {m['load_after']:.1f} after.",
        *found.get("notes", ()),
        "",
        "## A chunk of actions",
        "",
    ]
    peer = statistics.median(sides[PEER]["seconds"]) if PEER in sides else None
    rows = []
    for name, side in sides.items():
        seconds = sorted(side["seconds"])
        middle = statistics.median(seconds)
        parts = ", ".join(f"{part} {value:.2f}" for part, value in side["parts"].items())
        rows.append(
            (
                name,
                f"{middle:.2f}",
                f"{seconds[0]:.2f} to {seconds[-1]:.2f}",
                f"{peer / middle:.2f}" if peer else "",
                f"{side['share']:.1e}" if "share" in side else "",
                f"{side['sqnr_db']:.1f}" if "sqnr_db" in side and np.isfinite(side["sqnr_db"]) else "",
                f"{side['peak'] / 1e9:.2f}",
                f"{side['anonymous'] / 1e9:.2f}",
                f"{_size(exports, *OURS[name]) / 1e9:.3f}" if name in OURS and OURS[name][0] in exports else "",
                parts,
            )
        )
    head = ("side", "s a chunk", "range", f"times as fast as {PEER}", "max error / range", "SQNR, dB")
    lines += pages.table((*head, "peak GB", "anonymous GB", "disk GB", "parts, s"), rows)
    lines += _judgement(sides)
    for name, export in exports.items():
        lines += ["", f"## The export: {name}", "", f"`npukit policy export CHECKPOINT {' '.join(PACKAGES[name])}`", ""]
        lines += [*about, ""] if (about := ABOUT.get(name)) else []
        stages = [
            (row["stage"], f"{row['seconds']:.1f}", f"{row['peak_bytes'] / 1e9:.2f}" if row["peak_bytes"] else "")
            for row in export["parity"]["stages"]
        ]
        lines += pages.table(("stage", "seconds", "peak GB"), stages)
        files = [
            (row["path"], row["precision"], f"{row['bytes'] / 1e6:.0f}", *(_chip(export["contexts"].get(row["path"]))))
            for row in export["parity"]["artifacts"]
        ]
        lines += ["", *pages.table(("artifact", "precision", "MB", "SoC", "Hexagon", "VTCM, MB"), files)]
        if any(export["contexts"].values()):
            has = targets.target(CHIP).vtcm_mb
            lines += ["", f"The chip has {has} MB of VTCM; what the library compiles for is in the table."]
        chunks = [
            (row["backend"], row["run_on"], row["against"], f"{row['cosine']:.8f}", f"{row['share']:.1e}",
             "" if row["sqnr_db"] is None else f"{row['sqnr_db']:.1f}")
            for row in export["parity"]["chunks"]
        ]  # fmt: skip
        parts = [
            (row["component"], row["output"], row["run_on"], f"{row['cosine']:.7f}", f"{row['share']:.1e}",
             "" if row["sqnr_db"] is None else f"{row['sqnr_db']:.1f}")
            for row in export["parity"]["components"] if "run_on" in row
        ]  # fmt: skip
        if parts:
            lines += ["", "Each component by itself, against ONNX Runtime in float32 on the same inputs:", ""]
            head = ("component", "output", "run on", "cosine", "max error / range", "SQNR, dB")
            lines += pages.table(head, parts)
        if chunks:
            lines += ["", "Chunks of observations through the runtime:", ""]
            lines += pages.table(("backend", "run on", "against", "cosine", "max error / range", "SQNR, dB"), chunks)
    return "\n".join(lines) + "\n"


def _judgement(sides: dict[str, Any]) -> list[str]:
    """What the first table says of the goals, and why bfloat16 is not the peer."""
    lines = []
    for name, goal in MEMORY.items():
        if name not in sides:
            continue
        peak, anonymous = sides[name]["peak"] / 1e9, sides[name]["anonymous"] / 1e9
        if peak <= goal:
            lines.append(f"- `{name}` is within the goal of {goal} GB of memory.")
        else:
            lines.append(
                f"- `{name}` misses the goal of {goal} GB of memory: {peak:.2f} with mapped files, of which "
                f"{anonymous:.2f} are anonymous."
            )
    half, int8 = sides.get("torch-bfloat16", {}), sides.get("ort-int8", {})
    if half.get("share", 0.0) > EQUAL:
        lines.append(
            f"- `torch-bfloat16` is not the peer: it is not of equal accuracy. Its error is {half['share']:.1e} of the "
            f"range, the goal {EQUAL:.0e}."
        )
        if "share" in int8:
            times = statistics.median(half["seconds"]) / statistics.median(int8["seconds"])
            lines.append(
                f"- `ort-int8` is {times:.2f} times as fast as `torch-bfloat16`, with an error of {int8['share']:.1e} "
                f"and an SQNR of {int8['sqnr_db']:.1f} dB (goal: 30)."
            )
    return ["", *lines] if lines else []


def _size(exports: dict[str, Any], package: str, backend: str) -> int:
    rows = exports[package]["parity"]["artifacts"]
    return sum(row["bytes"] for row in rows if row["backend"] == backend)


def _chip(facts: dict[str, str] | None) -> tuple[str, ...]:
    """Of a context binary the chip and the memory that its graph was made for."""
    return tuple((facts or {}).get(name, "") for name in ("SoC", "Hexagon", "VTCM MB"))


if __name__ == "__main__":
    sys.exit(main())

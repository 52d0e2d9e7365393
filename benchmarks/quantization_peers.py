# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""`python -m benchmarks.quantization_peers`, `make bench-quantization`: npukit's quantizer against its peers.

The peers are ONNX Runtime's `quantize_static` and AIMET-ONNX. Every tool quantizes the same source with the same
calibration data to the same bit widths, as a process of its own that is measured. What it wrote is then simulated
here in ONNX Runtime, with every Q and DQ computed and none fused into integer kernels (session.disable_quant_qdq), on
samples that no tool has seen, and compared with the float source.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import pages
from benchmarks.measure import measure
from benchmarks.quantization_peer_models import Samples, Subject, parameters, subjects
from benchmarks.quantization_peer_page import page
from networks.statistics import nearest_pair
from npukit.errors import NpukitError

ROOT = Path(__file__).parents[1]
TIMEOUT = 1800  # seconds of one quantization
ADAROUND_ON = ("digits", "bilstm", "mobilenet_v2")  # the three smallest
SEQMSE_ON = (*ADAROUND_ON, "llama_block", "efficientnet_b0")  # without equalization


@dataclass(frozen=True)
class Peer:
    """A tool in an environment of its own.

    Attributes:
        title: for people.
        script: beside this file.
        venv: folder below the repository's root.
        packages: what pip installs there.
        recipe: of the script.
        only: networks that it is run on; empty for all.
        slow: it takes many times as long as the others; they are all run before it, one right after another.
    """

    title: str
    script: str
    venv: str
    packages: tuple[str, ...]
    recipe: str = ""
    only: tuple[str, ...] = ()
    slow: bool = False

    @property
    def python(self) -> Path:
        return ROOT / self.venv / "bin" / "python"


_ORT = ("onnxruntime==1.31.1", "onnx==1.23.2", "sympy==1.14.0")
_AIMET = ("aimet-onnx==2.42.0", "torch==2.13.0", "onnxsim==0.8.1")
_ORT_SCRIPT, _AIMET_SCRIPT = "quantization_peer_ort.py", "quantization_peer_aimet.py"
PEERS = {
    "ort": Peer("ONNX Runtime", _ORT_SCRIPT, ".venv-peer-ort", _ORT),
    "aimet": Peer("AIMET", _AIMET_SCRIPT, ".venv-aimet", _AIMET, "default"),
    "aimet-best": Peer("AIMET, CLE and SeqMSE", _AIMET_SCRIPT, ".venv-aimet", _AIMET, "cle-seqmse", slow=True),
    "aimet-seqmse": Peer("AIMET, SeqMSE", _AIMET_SCRIPT, ".venv-aimet", _AIMET, "seqmse", SEQMSE_ON, slow=True),
    "aimet-adaround": Peer("AIMET, AdaRound", _AIMET_SCRIPT, ".venv-aimet", _AIMET, "adaround", ADAROUND_ON, slow=True),
}
TOOLS = ("npukit", *PEERS)


@dataclass
class Row:
    """What one tool came to on one network at one bit width of activations; `failed` says why there are no figures.

    Attributes:
        sqnr: of the worst output, dB, to the float model on the held-out samples.
        wall: seconds of the whole process.
        cpu: its CPU seconds.
        inner: seconds without starting and importing, as the tool's script measured them; None for npukit.
        peak: bytes, all its processes together.
        load: of the machine when it began.
        loose: heavy ops left in float, by type.
        stages: npukit's seconds by stage.
        settings: the tool's own.
    """

    network: str
    bits: int
    tool: str
    sqnr: float | None = None
    wall: float = 0.0
    cpu: float = 0.0
    inner: float | None = None
    peak: int = 0
    load: float = 0.0
    loose: dict[str, int] = field(default_factory=dict)
    settings: str = ""
    failed: str = ""
    stages: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Prepared:
    """A network on disk with its data and what it computes in float."""

    subject: Subject
    model: Path
    calibration: Path
    held_out: list[dict[str, Any]]
    expected: dict[str, Any]
    figures: dict[str, Any]


def main(arguments: list[str] | None = None) -> int:
    """Measure what was asked for, write the page."""
    options = _options(arguments)
    known: list[Row] = []
    figures: dict[str, Any] = {}
    if options.json and options.json.exists() and options.resume:
        before = json.loads(options.json.read_text())
        known, figures = [Row(**row) for row in before["rows"]], before["networks"]
    start, load = time.monotonic(), os.getloadavg()[0]
    faults = {name: _install(PEERS[name]) for name in options.tools if name in PEERS}
    done = {(row.network, row.bits, row.tool) for row in known if not row.failed}
    rows = [row for row in known if not row.failed]
    with tempfile.TemporaryDirectory(prefix="npukit-peers-", dir=options.folder) as name:
        for slow, subject in itertools.product((False, True), subjects().values()):
            wanted = [
                (bits, tool)
                for bits in options.bits
                for tool in options.tools
                if (subject.name, bits, tool) not in done and _applies(tool, subject.name, slow)
            ]
            if subject.name not in (options.names or subjects()) or not wanted:
                continue
            folder = Path(name) / subject.name
            folder.mkdir(exist_ok=True)
            prepared = prepare(subject, folder, options.samples, options.held_out)
            figures[subject.name] = prepared.figures
            for bits, tool in wanted:
                row = _row(prepared, bits, tool, folder, faults.get(tool, ""))
                rows.append(row)
                _say(
                    f"{subject.name} A{bits} {tool}: "
                    + (row.failed or f"{row.sqnr:.2f} dB, {row.wall:.1f} s, {row.peak / 1e6:.0f} MB")
                )
                if options.json:
                    _save(options, rows, figures)
            if not options.folder:
                shutil.rmtree(folder)
    found = {"rows": [asdict(row) for row in rows], "networks": figures}
    found["machine"] = machine(time.monotonic() - start, load, options)
    if options.json:
        options.json.write_text(json.dumps(found, indent=1) + "\n")
    if options.markdown:
        options.markdown.parent.mkdir(parents=True, exist_ok=True)
        options.markdown.write_text(page(found))
    return 0


def _options(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.quantization_peers", description=__doc__)
    parser.add_argument("names", nargs="*", help=f"of {', '.join(subjects())} [all]")
    parser.add_argument("--bits", type=lambda t: [int(x) for x in t.split(",")], default=[8, 16], help="of activations")
    parser.add_argument("--tools", type=lambda t: t.split(","), default=list(TOOLS), help=f"of {','.join(TOOLS)}")
    parser.add_argument("--samples", type=int, default=32, help="calibration samples [32]")
    parser.add_argument("--held-out", type=int, default=8, help="samples to judge by [8]")
    parser.add_argument("--folder", type=Path, help="work and keep files here")
    parser.add_argument("--json", type=Path, help="write all figures here")
    parser.add_argument("--resume", action="store_true", help="take what is in the JSON file already from there")
    parser.add_argument("--markdown", type=Path, help="write the page here")
    options = parser.parse_args(arguments)
    for name in options.names:
        if name not in subjects():
            parser.error(f"there is no network {name}")
    return options


def _applies(tool: str, network: str, slow: bool) -> bool:
    """Whether a tool is run on a network in the pass of the slow tools, or of the others."""
    peer = PEERS.get(tool)
    if peer is None:
        return not slow
    return peer.slow == slow and (not peer.only or network in peer.only)


def _install(peer: Peer) -> str:
    """Make the peer's environment; gives why it cannot be."""
    if (peer.python.parent / ".ready").exists():
        return ""
    steps = (
        [sys.executable, "-m", "venv", str(ROOT / peer.venv)],
        [str(peer.python), "-m", "pip", "install", "--quiet", *peer.packages],
    )
    for command in steps:
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            last = next((line for line in reversed(done.stderr.splitlines()) if line.startswith("ERROR")), "")
            return f"{' '.join(peer.packages)} cannot be installed: {last or done.stderr[-300:]}"
    (peer.python.parent / ".ready").touch()
    return ""


def prepare(subject: Subject, folder: Path, samples: int, held_out: int) -> Prepared:
    """Write the model and the calibration data; run the held-out samples in float."""
    import onnxruntime

    model, calibration = folder / "model.onnx", folder / "calibration.npz"
    subject.make(model)
    np.savez(calibration, **subject.samples(samples, 0))  # type: ignore[arg-type]
    session = onnxruntime.InferenceSession(model, _quiet(), providers=["CPUExecutionProvider"])
    shapes = {value.name: value.shape for value in session.get_inputs()}
    feeds = _split(subject.samples(held_out, 1), shapes)
    expected = _joined([_run(session, feed) for feed in feeds])
    alike = {name: nearest_pair(array.reshape(len(array), -1).astype(np.float64)) for name, array in expected.items()}
    figures = {
        "title": subject.title,
        "trained": subject.trained,
        "parameters": parameters(model),
        "samples": samples,
        "held_out": held_out,
        "nearest_pair": max(alike.values()),
    }
    return Prepared(subject, model, calibration, feeds, expected, figures)


def _row(prepared: Prepared, bits: int, tool: str, folder: Path, fault: str) -> Row:
    """One tool on one network."""
    row = Row(prepared.subject.name, bits, tool, failed=fault)
    if fault:
        return row
    result, job = folder / "result.json", folder / "job.json"
    output = folder / f"{tool}.{bits}{'.dlc' if tool == 'npukit' else '.onnx'}"
    try:
        if tool == "npukit":
            command = [sys.executable, "-m", "npukit", "quantize", str(prepared.model), "--out", str(output)]
            command += ["--calibration", str(prepared.calibration), "--activations", str(bits), "--no-verify"]
            command += ["--quiet", "--json"]
            row.settings = f"npukit quantize --activations {bits} --no-verify"
        else:
            peer = PEERS[tool]
            task = {"model": prepared.model, "calibration": prepared.calibration, "output": output, "result": result}
            named = {key: str(path) for key, path in task.items()}
            job.write_text(json.dumps({**named, "folder": str(folder), "activations": bits, "recipe": peer.recipe}))
            command = [str(peer.python), str(ROOT / "benchmarks" / peer.script), str(job)]
        cost = measure(["timeout", str(TIMEOUT), *command])
        row.wall, row.cpu, row.peak, row.load = cost.wall, cost.cpu, cost.peak, cost.load
        if tool == "npukit":
            row.stages = json.loads(cost.output)["seconds"]
        else:
            told = json.loads(result.read_text())
            row.inner, row.settings = told["seconds"], told["settings"]
        got, row.loose = (_of_dlc if tool == "npukit" else _of_qdq)(output, prepared.held_out)
        row.sqnr = worst_sqnr(prepared.expected, got)
    except (RuntimeError, NpukitError, OSError, ValueError, KeyError) as error:
        row.failed = _last_words(str(error))
    return row


def _last_words(text: str) -> str:
    """The last line of a traceback."""
    if " exited with 124: " in text:
        return f"not done within {TIMEOUT} s"
    return next((line.strip() for line in reversed(text.splitlines()) if line.strip()), "it failed")[:300]


# ---------------------------------------------------------------- judging


def sqnr(expected: Any, got: Any) -> float:
    """Signal to quantization noise of one array, dB; 200 at most."""
    signal = np.asarray(expected, np.float64)
    noise = signal - np.asarray(got, np.float64)
    power, error = float((signal**2).sum()), float((noise**2).sum())
    return min(200.0, 10 * np.log10(power / error)) if power and error else (200.0 if not error else -200.0)


def worst_sqnr(expected: dict[str, Any], got: dict[str, Any]) -> float:
    """Of the output that fares worst; KeyError for an output that is not there."""
    return min(sqnr(array, got[name].reshape(array.shape)) for name, array in expected.items())


def _of_qdq(path: Path, feeds: list[dict[str, Any]]) -> tuple[dict[str, Any], dict[str, int]]:
    """Outputs of a QDQ model and what it leaves in float."""
    import onnx
    import onnxruntime

    options = _quiet()
    options.add_session_config_entry("session.disable_quant_qdq", "1")
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return _joined([_run(session, feed) for feed in feeds]), left_in_float(onnx.load(path))


def _of_dlc(path: Path, feeds: list[dict[str, Any]]) -> tuple[dict[str, Any], dict[str, int]]:
    """Outputs of npukit's simulation of a DLC (its graph raised to QDQ ONNX), and what it leaves in float."""
    from npukit.artifacts import dlc
    from npukit.quantization.simulation import Simulation, native_feeds, real_outputs

    model, stamp = dlc.read(path)
    (graph,) = model.graphs.values()
    assert stamp is not None
    from npukit.qnn.graph import Held

    known = {io.tensor: io for io in (*stamp.inputs, *stamp.outputs)}
    for tensor in (*graph.inputs, *graph.outputs):
        io = known[tensor.name]
        tensor.held = Held(io.name, io.dtype, io.shape, io.perm)
    simulation = Simulation(graph, "qdq")
    runs = [real_outputs(graph, simulation.run(native_feeds(graph, feed, "qdq"))) for feed in feeds]
    loose: dict[str, int] = {}
    for op in graph.ops:
        if op.type in _HEAVY and op.inputs[0] is not None and op.inputs[0].dtype.is_float:
            loose[op.type] = loose.get(op.type, 0) + 1
    return _joined(runs), loose


_HEAVY = frozenset(
    ("Conv", "ConvTranspose", "MatMul", "Gemm", "LSTM", "GRU", "Conv2d", "DepthWiseConv2d", "TransposeConv2d")
    + ("FullyConnected", "Lstm", "Gru")
)


def left_in_float(model: Any) -> dict[str, int]:
    """Heavy nodes of a QDQ model of which the first or second input comes from no DequantizeLinear, by type."""
    made = {name for node in model.graph.node if node.op_type == "DequantizeLinear" for name in node.output}
    found: dict[str, int] = {}
    for node in model.graph.node:
        if node.op_type in _HEAVY and not made.issuperset(node.input[:2]):
            found[node.op_type] = found.get(node.op_type, 0) + 1
    return found


def _quiet() -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    return options


def _split(samples: Samples, shapes: dict[str, list[int]]) -> list[dict[str, Any]]:
    count = len(next(iter(samples.values())))
    return [{name: array[i].reshape(shapes[name]) for name, array in samples.items()} for i in range(count)]


def _run(session: Any, feed: dict[str, Any]) -> dict[str, Any]:
    names = [value.name for value in session.get_outputs()]
    known = {value.name for value in session.get_inputs()}
    return dict(zip(names, session.run(names, {k: v for k, v in feed.items() if k in known}), strict=True))


def _joined(runs: list[dict[str, Any]]) -> dict[str, Any]:
    return {name: np.stack([run[name] for run in runs]) for name in runs[0]}


# ---------------------------------------------------------------- what the figures depend on


def machine(seconds: float, load: float, options: argparse.Namespace) -> dict[str, Any]:
    """Machine, versions and settings of the run."""
    return {
        **pages.machine(),
        "peers": {name: list(peer.packages) for name, peer in PEERS.items()},
        "titles": {"npukit": "npukit", **{name: peer.title for name, peer in PEERS.items()}},
        "only": {name: list(peer.only) for name, peer in PEERS.items()},
        "seconds": seconds,
        "load_before": load,
        "load_after": os.getloadavg()[0],
        "timeout": TIMEOUT,
        "all": {subject.name: subject.title for subject in subjects().values()},
        "samples": options.samples,
        "held_out": options.held_out,
    }


def _save(options: argparse.Namespace, rows: list[Row], figures: dict[str, Any]) -> None:
    options.json.parent.mkdir(parents=True, exist_ok=True)
    options.json.write_text(json.dumps({"rows": [asdict(row) for row in rows], "networks": figures}, indent=1) + "\n")


def _say(text: str) -> None:
    sys.stderr.write(f"{text}\n")
    sys.stderr.flush()


if __name__ == "__main__":
    sys.exit(main())

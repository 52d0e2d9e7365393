# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""`npukit policy export`: a checkpoint becomes a self-describing folder that runs without PyTorch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from npukit.analysis import text
from npukit.errors import UsageError
from npukit.policies import artifacts
from npukit.policies.artifacts import HELD
from npukit.verbs import options as o
from npukit.verbs.options import arg, opt, verb


def _pairs(texts: Sequence[str]) -> dict[str, str]:
    """`name=value` texts as a map.

    Raises:
        UsageError: one of them is not of that form, or a name is there twice.
    """
    found: dict[str, str] = {}
    for item in texts:
        name, equal, value = item.partition("=")
        if not equal or not name or name in found:
            raise UsageError(f"{item!r}, NAME=VALUE expected, each name once", where="--option")
        found[name] = value
    return found


@dataclass(frozen=True)
class ExportOptions:
    """Make a policy folder from a checkpoint: models, processing, statistics, tokenizer, and how near it came.

    Checkpoints are LeRobot's (SmolVLA, ACT) and OpenVLA's. The folder appears when it is whole and computes what the
    checkpoint does, or not at all.
    """

    checkpoint: Path = arg("the checkpoint's folder (config.json, model.safetensors, ...)")
    output: Path | None = opt(None, "The folder to make [CHECKPOINT.policy].", "-o", "--out", parse=Path, metavar="DIR")
    policy: str = opt("", "Kind of policy [what config.json says].", metavar="KIND")
    option: dict[str, str] = opt(
        {}, "An option of the kind, as prompt_length=48; repeatable.", many=True, parse=_pairs, metavar="NAME=VALUE"
    )
    backend: tuple[str, ...] = opt(
        (), f"What is to run it: {', '.join(HELD)}; repeatable [ort, or qnn-htp by --precision and --target].",
        many=True, parse=o.strings, metavar="NAME",
    )  # fmt: skip
    precision: dict[str, str] = opt(
        {}, "float32, int8 (ort), float16 (qnn-htp, OpenVLA on ort) or as w8a16 (qnn-htp); for one COMPONENT=w8a16, "
        "ort=int8; repeatable.", many=True,
        parse=artifacts.parse_precisions, metavar="[NAME=]PRECISION",
    )  # fmt: skip
    target: tuple[str, ...] = opt(
        (), "Chip to compile context binaries for; repeatable [portable DLCs].", many=True, parse=o.strings,
        metavar="NAME",
    )  # fmt: skip
    tokenizer: Path | None = opt(
        None, "The language model's tokenizer.json [the checkpoint's].", parse=Path, metavar="FILE"
    )
    calibration: Path | None = opt(
        None,
        "Observations to quantize by: arrays by name, one entry an observation; a file or a folder of such.",
        parse=Path,
        metavar="FILE.npz",
    )
    samples: int = opt(32, "Calibration samples of a component.")
    force: bool = opt(False, "Replace a policy folder that exists.", "--force", hidden=True)
    verify: bool = opt(True, "Compare with PyTorch, on each backend.", "--verify/--no-verify")
    emulator_seconds: float = opt(120.0, "Longest run on the HTP emulator; above it the simulation is compared.")
    threads: int | None = opt(None, "Threads of PyTorch and ONNX Runtime.", hidden=True)
    timeout: float | None = opt(None, "Seconds that one stage may take.", hidden=True)
    in_process: bool = opt(False, "Run all stages in this process.", "--in-process", hidden=True)


@dataclass(frozen=True)
class ExportResult:
    """A package that was made.

    Attributes:
        path: the folder.
        kind: the kind of policy.
        size: bytes of all its files.
        chunk_size: actions of one prediction.
        n_action_steps: how many of them are used.
        parity: the content of parity.json.
    """

    path: Path
    kind: str
    size: int
    chunk_size: int
    n_action_steps: int
    parity: dict[str, Any]
    exit_code: int = 0

    def to_json(self) -> dict[str, Any]:
        """As one JSON-ready object."""
        return {
            "output": str(self.path),
            "kind": self.kind,
            "bytes": self.size,
            "chunk_size": self.chunk_size,
            "n_action_steps": self.n_action_steps,
            "parity": self.parity,
        }

    def to_text(self) -> str:
        lines = [
            f"{self.path} ({text.size(self.size)}): {self.kind}, chunks of {self.chunk_size} actions, "
            f"{self.n_action_steps} used"
        ]
        rows: list[tuple[object, ...]] = [
            (row["backend"], row["component"], row["precision"], text.size(row["bytes"]), row["path"])
            for row in self.parity["artifacts"]
        ]
        lines.append(text.table(("backend", "component", "precision", "size", "file"), rows))
        if self.parity["chunks"]:
            rows = [
                (row["run_on"] if row["run_on"] != row["backend"] else "", row["backend"], row["precision"],
                 row["against"], f"{row['cosine']:.7f}", f"{row['share']:.2g}", f"{row['last']:.2g}",
                 f"{row['flips']:.1%}")
                for row in _worst(self.parity["chunks"])
            ]  # fmt: skip
            head = ("", "backend", "precision", "chunk against", "cosine", "max error/range", "last action", "flips")
            lines.append(text.table(tuple(h if h else "run on" for h in head), rows))
        rows = [
            (row["stage"], f"{row['seconds']:.1f}", "" if row["peak_bytes"] is None else text.size(row["peak_bytes"]))
            for row in self.parity["stages"]
        ]
        lines.append(text.table(("stage", "seconds", "peak memory"), rows))
        lines += [f"note: {note}" for note in self.parity["notes"]]
        return "\n".join(lines)


def _worst(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Of each backend the probe with the largest error."""
    found: dict[tuple[str, ...], dict[str, Any]] = {}
    for row in rows:
        key = (row["backend"], row["run_on"], row["precision"])
        if key not in found or row["share"] > found[key]["share"]:
            found[key] = row
    return list(found.values())


@verb(ExportOptions)
def export(options: ExportOptions) -> ExportResult:
    """Make the policy folder `output` of `checkpoint`.

    Raises:
        UsageError: the output exists, or options do not go together.
        ModelError: the checkpoint is not whole; everything that is wrong is listed.
        MissingDependency: PyTorch or a backend's library is missing.
        CheckFailed: the result does not compute what the checkpoint does.

    Example:
        >>> result = export("checkpoint", output="policy", backend="ort")
        >>> result.kind, (result.path / "policy.json").exists()
        ('smolvla', True)
    """
    from npukit.policies.export import Request, export_package

    for name in options.backend:
        if name not in HELD:
            raise UsageError(f"there is no backend {name!r} for policies", where="--backend",
                             hint=f"known: {', '.join(HELD)}")  # fmt: skip
    if options.samples < 1:
        raise UsageError("at least one sample is needed", where="--samples")
    backends = tuple(dict.fromkeys(options.backend))
    for name in options.target:
        _check_chip(name)
    output = options.output or options.checkpoint.with_name(f"{options.checkpoint.resolve().name}.policy")
    made = export_package(
        Request(
            options.checkpoint, output, backends, options.precision, options.target, options.tokenizer,
            options.calibration, options.samples, options.force, options.verify, options.emulator_seconds,
            options.threads, options.timeout, options.in_process, options.policy, options.option,
        )
    )  # fmt: skip
    manifest = made.manifest
    return ExportResult(output, manifest.kind, made.size, manifest.chunk_size, manifest.n_action_steps, made.parity)


def _check_chip(name: str) -> None:
    from npukit import targets

    if targets.target(name).backend != "qnn-htp":
        raise UsageError(f"{name} has no NPU that context binaries are for", where="--target")

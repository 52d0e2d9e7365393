# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""`python -m benchmarks.closed_loop`: the small trained policy in closed loop, on every backend and precision.

Episodes are paired: number N of a task has the same scene, the same instruction and the same noise whatever runs it, so
that two sides differ in nothing but their arithmetic. PyTorch is our definition of the network with the checkpoint's
weights; pre- and post-processing and the loop are the same for all. What a stopped run has played is kept.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import pages

CHECKPOINT = Path("training/checkpoint")
SEED = 100_000  # training used seeds from 10,000,000 on
RECORDED, CALIBRATED = (SEED + 50_000, 500), (SEED + 90_000, 64)  # first seed and number of observations
EXACT, PRESET = "torch", "w8a16"
INT8 = "ort-int8"
JOINTS = ("along x", "along y", "along z", "about x", "about y", "about z", "gripper")  # what an action's numbers move


@dataclass(frozen=True)
class Judged:
    """How far a side's actions are from PyTorch's on recorded observations.

    Attributes:
        name: key of `_JUDGED`.
        facts: of `npukit.policies.parity.difference`.
        joints: of each of an action's numbers the mean error, as a share of its range.
        last: the same of a chunk's last action.
        flips: share of the steps in which the gripper is told the opposite.
        spans: the ranges, in units of the action.
        count: observations.
    """

    name: str
    facts: dict[str, Any]
    joints: Any
    last: Any
    flips: float
    spans: Any
    count: int


@dataclass(frozen=True)
class Side:
    """One row: what runs the policy, and how often.

    Attributes:
        what: for the page.
        package: which of `PACKAGES` has its artifacts.
        backend: of `npukit policy eval`.
        episodes: of each of the twelve tasks.
        ablation: of `npukit policy eval`.
    """

    what: str
    package: str
    backend: str
    episodes: int
    ablation: str = ""


# Precisions of the three components for the NPU, the first of all of them; of `INT8` for ONNX Runtime.
PACKAGES: dict[str, tuple[str, ...]] = {
    "w8a16": ("w8a16",),
    "w8a8": ("w8a8",),
    "w4a16": ("w4a16",),
    "w4a16-head": ("w8a16", "action_head=w4a16"),
    "w4a16-backbone": ("w8a16", "llm_backbone=w4a16"),
    "w8a8-vision": ("w8a16", "vision_encoder=w8a8"),
    "w8a8-head": ("w8a16", "action_head=w8a8"),
    "float16-head": ("w8a16", "action_head=float16"),
    INT8: ("int8",),
}
SIDES: dict[str, Side] = {
    EXACT: Side("PyTorch float32", "", "", 84),
    "ort": Side("ONNX Runtime float32", PRESET, "ort", 84),
    INT8: Side("8-bit weights, ONNX Runtime", INT8, "ort", 84),
    "w8a16": Side("W8A16, simulated", PRESET, "sim", 84),
    "w8a8": Side("W8A8, simulated", "w8a8", "sim", 84),
    "w4a16": Side("W4A16, simulated", "w4a16", "sim", 84),
    "emulator": Side("W8A16, HTP emulator", PRESET, "qnn-htp", 17),
    "qnn-cpu": Side("QNN CPU float32", PRESET, "qnn-cpu", 17),
    "blank": Side("ONNX Runtime float32, blank images", PRESET, "ort", 11, "blank-images"),
    "other": Side("ONNX Runtime float32, another task's instruction", PRESET, "ort", 11, "other-instruction"),
}
_JUDGED = {  # what is compared on recorded observations: name -> (package, backend)
    "ort": (PRESET, "ort"),
    "qnn-cpu": (PRESET, "qnn-cpu"),
    INT8: (INT8, "ort"),
    **{name: (name, "sim") for name in PACKAGES if name != INT8},
    "emulator": (PRESET, "qnn-htp"),
}


def main(arguments: list[str] | None = None) -> int:
    """Export, record, play every side, write the page."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.closed_loop", description=__doc__)
    parser.add_argument("--folder", type=Path, default=Path("results/closed-loop"), help="where to work")
    parser.add_argument("--sides", type=lambda text: text.split(","), default=list(SIDES), help=",".join(SIDES))
    parser.add_argument("--judged", type=lambda text: text.split(","), default=list(_JUDGED), help=",".join(_JUDGED))
    parser.add_argument("--episodes", type=int, help="of each task, instead of each side's own number")
    parser.add_argument("--observations", type=int, default=RECORDED[1], help="recorded for the error of the actions")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--markdown", type=Path, help="write the tables here")
    options = parser.parse_args(arguments)
    folder: Path = options.folder
    folder.mkdir(parents=True, exist_ok=True)
    _export(folder, "float32", ("--backend", "ort"))
    recorded = _record(folder, RECORDED[0], options.observations)
    calibration = _record(folder, *CALIBRATED)
    wanted = [_JUDGED[name][0] for name in options.judged] + [SIDES[name].package for name in options.sides]
    for name in sorted(set(wanted) & set(PACKAGES)):
        if name == INT8:
            _export(folder, name, ("--backend", "ort", "--precision", "int8"))
            continue
        given = [f"--precision=qnn-htp={PACKAGES[name][0]}", *(f"--precision={text}" for text in PACKAGES[name][1:])]
        backends = ("ort", "qnn-cpu", "qnn-htp") if name == PRESET else ("qnn-htp",)
        asked = [part for backend in backends for part in ("--backend", backend)]
        _export(folder, name, (*asked, *given, "--calibration", str(calibration)))
    for name in options.sides:
        _play(folder, name, options.episodes, options.workers)
    page = markdown(folder, options.sides, _judge(folder, recorded, options.judged))
    sys.stdout.write(page)
    if options.markdown:
        options.markdown.write_text(page)
    return 0


def _npukit(folder: Path, *arguments: str) -> None:
    """Run npukit; what has 4-bit weights by channel needs the DLC writer of a newer wheel."""
    environment = os.environ | {"NPUKIT_DATA_DIR": str(folder.absolute() / "data")}
    newer = any("w4" in argument for argument in arguments)
    command = [sys.executable, "-m", "npukit"]
    if newer and not (folder / "data").exists():
        subprocess.run([*command, "libs", "add", "2.7.0"], check=True, env=environment)
    subprocess.run([*command, *arguments], check=True, stdout=subprocess.DEVNULL, env=environment if newer else None)


def _export(folder: Path, name: str, options: tuple[str, ...]) -> None:
    if not (folder / name / "policy.json").exists():
        _npukit(folder, "policy", "export", str(CHECKPOINT), "-o", str(folder / name), *options)


# ---------------------------------------------------------------- PyTorch, as a policy


class Torch:
    """The runtime of a policy (`npukit.policies.kinds.Runtime`) that computes with PyTorch."""

    def __init__(self, checkpoint: Path) -> None:
        import torch

        from npukit.policies.smolvla import weights

        torch.set_num_threads(1)
        self._config, held = weights.read(checkpoint, json.loads((checkpoint / "config.json").read_text()))
        self._model = weights.load_model(held, self._config, dtype=torch.float32).eval()
        self._inputs: dict[str, Any] = {}
        self.seconds: dict[str, float] = {}

    def reset(self) -> None:
        """Nothing is kept between episodes."""

    def noise_shape(self) -> tuple[int, int]:
        return self._config.chunk_size, self._config.max_action

    def prefix(self, inputs: dict[str, Any]) -> None:
        self._inputs = inputs

    def chunk(self, noise: Any, rng: np.random.Generator) -> Any:
        import torch

        from npukit.policies.kinds import Probe
        from npukit.policies.smolvla.export import sample

        if noise is None:
            noise = rng.standard_normal(self.noise_shape(), dtype=np.float32)
        given = {
            key: torch.from_numpy(value) for key, value in sample(self._config, Probe(self._inputs, noise)).items()
        }
        cameras = range(len(self._config.cameras))
        with torch.inference_mode():
            made = self._model(
                [given[f"image_{i + 1}"] for i in cameras],
                [given["image_masks"][:, i].bool() for i in cameras],
                given["lang_tokens"], given["lang_masks"].bool(), given["state"], given["noise"],
            )  # fmt: skip
        return made[0].numpy()

    def blend(self, chunk: Any) -> Any:
        return chunk


def _policy(folder: Path) -> Any:
    """The float32 package with PyTorch in the place of its components."""
    import npukit

    policy = npukit.Policy(folder / "float32", backend="ort", threads=1)
    policy.runtime = Torch(CHECKPOINT)  # type: ignore[assignment]
    return policy


# ---------------------------------------------------------------- recording and judging


def _plan(policy: Any, episodes: int, seed: int) -> list[Any]:
    """Episodes of each task, with pictures of the size that the policy takes."""
    from npukit.sim import evaluate

    size = next(feature.shape[-1] for feature in policy.manifest.inputs.values() if feature.kind == "VISUAL")
    return evaluate.plan("light", episodes=episodes, seed=seed, image_size=size)


class _Keeping:
    """A policy that keeps the observations it makes chunks of."""

    def __init__(self, policy: Any) -> None:
        self._policy, self.kept = policy, list[dict[str, Any]]()

    def reset(self, seed: int | None = None) -> None:
        self._policy.reset(seed)

    def select_action(self, observation: Any) -> Any:
        if not self._policy.pending:
            self.kept.append(
                {name: np.array(value) if name != "task" else value for name, value in observation.items()}
            )
        return self._policy.select_action(observation)


def _record(folder: Path, seed: int, count: int) -> Path:
    """`count` observations spread over all tasks' episodes, as the float32 policy meets them."""
    import npukit
    from npukit.policies import observations
    from npukit.sim import evaluate

    path = folder / f"observations-{seed}-{count}.npz"
    if not path.exists():
        with npukit.Policy(folder / "float32", backend="ort", threads=1) as policy:
            keeping = _Keeping(policy)
            evaluate.play_here(keeping, _plan(policy, max(count // 60, 1), seed))
        chosen = np.random.default_rng(0).permutation(len(keeping.kept))[:count]
        observations.write(path, [keeping.kept[i] for i in sorted(chosen)])
    return path


def _judge(folder: Path, recorded: Path, names: list[str]) -> list[Judged]:
    """Of each side the error of its actions against PyTorch's, over all recorded observations."""
    from npukit.policies import observations

    exact = folder / f"{recorded.stem}.torch.npz"
    if not exact.exists():
        with _policy(folder) as policy:
            rng = np.random.default_rng(0)
            chunks = [
                policy.predict_chunk(observation, rng.standard_normal(policy.noise_shape, dtype=np.float32))
                for observation in observations.read(recorded)
            ]
        np.savez(exact, actions=np.stack(chunks))
    want = np.load(exact)["actions"]
    rows = []
    for name in names:
        package, backend = _JUDGED[name]
        path = folder / f"{recorded.stem}.{name}.npz"
        if not path.exists():
            command = ["policy", "run", str(folder / package), "--observations", str(recorded), "--backend", backend]
            _npukit(folder, *command, "--threads", "1", "-o", str(path))
        rows.append(judge(name, want, np.load(path)["actions"]))
    return rows


def judge(name: str, want: Any, got: Any) -> Judged:
    """Compare actions float32 [observations, chunk, numbers] with PyTorch's."""
    from npukit.policies.parity import difference

    spans = np.ptp(want, axis=(0, 1))
    safe = np.where(spans > 0, spans, 1.0)
    middle = (want[..., -1].max() + want[..., -1].min()) / 2
    return Judged(
        name,
        difference(want, got),
        np.abs(want - got).mean(axis=(0, 1)) / safe,
        np.abs(want[:, -1] - got[:, -1]).mean(axis=0) / safe,
        float(np.mean((want[..., -1] > middle) != (got[..., -1] > middle))),
        spans,
        len(want),
    )


# ---------------------------------------------------------------- playing


def _play(folder: Path, name: str, episodes: int | None, workers: int) -> None:
    side, results = SIDES[name], folder / f"episodes-{name}"
    count = str(episodes or side.episodes)
    if name == EXACT:
        _play_here(folder, results, int(count))
        return
    command = ["policy", "eval", str(folder / side.package), "--env", "light", "--backend", side.backend]
    command += ["--episodes", count, "--seed", str(SEED), "--workers", str(workers), "--threads", "1", "--video", "1"]
    command += ["--ablation", side.ablation] if side.ablation else []
    _npukit(folder, *command, "-o", str(results))


def _play_here(folder: Path, results: Path, episodes: int) -> None:
    """PyTorch's episodes, one after the other in this process."""
    from npukit.sim import evaluate

    results.mkdir(exist_ok=True)
    path = results / evaluate.EPISODES
    path.touch()
    there = {evaluate.key(one) for one in evaluate.read(results)}
    with _policy(folder) as policy, path.open("a") as file:
        jobs = [job for job in _plan(policy, episodes, SEED) if evaluate.key(job) not in there]
        evaluate.play_here(policy, jobs, done=lambda one: print(json.dumps(dataclasses.asdict(one)), file=file))


# ---------------------------------------------------------------- the page


def markdown(folder: Path, sides: list[str], judged: list[Judged]) -> str:
    """The page.

    Args:
        folder: where the episodes are.
        sides: of `SIDES`, those that were played.
        judged: of `_judge`.
    """
    import mujoco

    from npukit.sim import evaluate

    found = pages.machine()
    played = {name: evaluate.read(folder / f"episodes-{name}") for name in sides}
    totals = {name: evaluate.summarize(played[name])[1] for name in sides}
    rows = []
    for name, total in totals.items():
        paired = ""
        if name != EXACT and EXACT in played and not SIDES[name].ablation:
            it = evaluate.compare(played[EXACT], played[name])
            paired = f"{100 * it.low:+.1f} to {100 * it.high:+.1f} points, {it.gained + it.lost} of {it.pairs}"
        interval = f"{100 * total.low:.1f} to {100 * total.high:.1f} %"
        steps = "" if total.steps is None else f"{total.steps:.1f}"
        rows.append((SIDES[name].what, f"{total.successes} of {total.episodes}", interval, paired, steps))
    same = len({total.rate for name, total in totals.items() if not SIDES[name].ablation}) == 1
    lines = [
        "# The small policy in closed loop",
        "",
        "Written by `make bench-closed-loop`: the policy of `training/checkpoint` (1.35 million parameters) in the",
        f"light scene, twelve tasks, seeds from {SEED:,}, which training never used. Episodes are paired:",
        "one scene and one noise, whatever runs the network. What an earlier run has played is kept; the date is the",
        "page's.",
        "",
        f"{found['date']}; {found['cpu']}, {found['cores']} cores; {found['system']}; Python {found['python']}; "
        f"npukit {found['npukit']}, MuJoCo {mujoco.__version__}.",
        "",
        "## Episodes",
        "",
        *pages.table(
            ("what runs it", "success", "95 % interval", "against PyTorch: interval, discordant pairs", "steps"), rows
        ),
        *(["", "The scene is too easy to tell precisions apart by success; the errors below do."] if same else []),
        "",
        "## Error of the actions",
        "",
        *(error_tables(judged) if judged else ["Not measured."]),
        "",
        *_advice(judged),
    ]
    return "\n".join(lines)


def error_tables(judged: list[Judged]) -> list[str]:
    """Each side's error as a whole, and of each of an action's numbers."""
    whole = [
        (one.name, _precision(one.name), f"{one.facts['share']:.1e}", f"{one.facts['sqnr_db'] or np.inf:.1f}",
         f"{100 * one.joints.mean():.3f}", f"{100 * one.joints.max():.3f}", f"{100 * one.last.mean():.3f}",
         f"{100 * one.flips:.2f}")
        for one in judged
    ]  # fmt: skip
    each = [(one.name, *(f"{100 * value:.3f}" for value in one.joints)) for one in judged]
    spans = ("PyTorch's range", *(f"{value:.3g}" for value in judged[0].spans))
    return [
        f"On {judged[0].count:,} recorded observations, against PyTorch with the same noise; percent of each number's",
        "range: the mean over all numbers, that of the worst joint, that of a chunk's last action; and the share of",
        f"steps in which the gripper is told the opposite. `ort` and `{INT8}` are ONNX Runtime, in float32 and with",
        "8-bit weights; `emulator` is Qualcomm's HTP emulator; other quantized rows are simulations.",
        "",
        *pages.table(
            ("side", "precision", "max error / range", "SQNR, dB", "mean, %", "worst joint, %", "last action, %",
             "gripper flips, %"), whole
        ),
        "",
        "The mean error of each of an action's numbers, in percent of its range: how the hand moves along x, y and z,",
        "how it turns about them, and the gripper. The first row is the range, in units of the action. The arm cannot",
        "turn about x and y: the policy says next to nothing there, and an error has no effect, whatever its share.",
        "",
        *pages.table(("side", *JOINTS), [spans, *each]),
    ]  # fmt: skip


def _precision(name: str) -> str:
    """Of a judged side, as `--precision` has it."""
    package, backend = _JUDGED[name]
    return ", ".join(PACKAGES[package]) if package == INT8 or backend in ("sim", "qnn-htp") else "float32"


def _advice(judged: list[Judged]) -> list[str]:
    """Which precision to begin with on the NPU, by SQNR: one for all components, and what is better than that."""
    found = {one.name: float(one.facts["sqnr_db"]) for one in judged if _JUDGED[one.name] == (one.name, "sim")}
    plain = [name for name in found if len(PACKAGES[name]) == 1]
    if not plain:
        return []
    first, best = max(plain, key=found.__getitem__), max(found, key=found.__getitem__)
    begin = f"So on the NPU `--precision {PACKAGES[first][0]}` is the one to begin with ({found[first]:.1f} dB)"
    if best == first:
        return [f"{begin}.", ""]
    left = 100 * 10 ** ((found[first] - found[best]) / 20)
    more = f"`--precision {PACKAGES[best][-1]}` beside it, where the chip has it, brings {found[best]:.1f} dB"
    return [f"{begin};", f"{more}, {left:.0f} % of the error.", ""]


if __name__ == "__main__":
    raise SystemExit(main())

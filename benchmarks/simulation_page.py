# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""docs/results/simulation.md from the figures of benchmarks.simulation."""

from __future__ import annotations

from typing import Any

from benchmarks.pages import table
from benchmarks.simulation_cases import rows
from npukit.quantization.capabilities import UNRELIABLE

Found = dict[str, Any]
GOAL_SHARE = 0.99
GOAL_DB = 0.5
# Why a graph is below the goal at 8 bits: by the words that its label begins with.
_PAIR = "1 to 3% of the codes between the two ops differ by one, and the second op's slope makes steps of that"
WHY = {"Resize LINEAR to half": "HTP rounds between the two directions too"}

HEAD = """\
# The simulation against the HTP emulator

Written by `python -m benchmarks.simulation` (`--capabilities` asks and runs the ops anew, `--networks` the networks).
Libraries: QAIRT {build}. The simulation is the quantized graph in ONNX Runtime; the emulator is libQnnHtp on x86-64.

## Single ops

One graph an op with ranges of its own data (normal numbers where the op takes them), weights of 8 bits; both get the
same codes. *Within one step*: the share of output elements whose codes differ by at most one. *SQNR*: of the simulation
and of the emulator against float. The figures are of the worst of V73, V75 and V79; the last columns are of V68 and
V69, which round between ops that later ones compute at once, and sum products of 16 bits more coarsely. In 16 bits a
step is 1/65535 of the range. What each op takes of weights, biases and norms is in
`src/npukit/quantization/capabilities.json`, with these figures as bounds that tests hold.
"""


def page(figures: Found) -> str:
    """The page."""
    lines = [HEAD.format(build=figures["build"])]
    lines += _summary(figures["ops"])
    lines += ["", *_ops(figures["ops"]), "", "### Accepted, but not used", ""]
    lines += ["HTP's validation takes these; they run in a finer precision, or in another form, instead.", ""]
    lines += table(("op", "activations", "why"), ((r.name, _bits(r.bits), r.reason) for r in UNRELIABLE))
    lines += ["", "### Refused", "", *_refused(figures["ops"])]
    lines += ["", "### Weights of 4 and 16 bits (V73)", "", *_weights(figures["ops"])]
    if "networks" in figures:
        lines += ["", *_networks(figures["networks"])]
    return "\n".join(lines) + "\n"


def _summary(ops: list[Found]) -> list[str]:
    kept = [f for f in ops if "share" in f and f["bits"] == f["weights"] == 8 and "unreliable" not in f]
    kept = [f for f in kept if f["arch"] >= 73]
    low = sorted({f["label"] for f in kept if f["share"] < GOAL_SHARE})
    count = len({f["label"] for f in kept})
    lines = [
        f"At 8 bits {count - len(low)} of {count} graphs have at least {GOAL_SHARE:.0%} of their elements within one",
        "step on V73, V75 and V79. The others:",
        "",
    ]
    for label in low:
        share = min(f["share"] for f in kept if f["label"] == label)
        lines.append(f"- {label} ({share:.1%}): {_PAIR if '+' in label else WHY.get(label, 'not explained')}")
    return lines


def _ops(ops: list[Found]) -> list[str]:
    by_key = {(f["label"], f["bits"], f["arch"]): f for f in ops if f["weights"] == 8}
    head = (
        "graph",
        "8: within one step",
        "most",
        "SQNR",
        "16: within one step",
        "most",
        "SQNR",
        "V68 8",
        "V68 16",
        "most",
    )
    made = []
    for row in rows():
        eight = _worst(by_key, row.label, 8, (73, 75, 79))
        fine = _worst(by_key, row.label, 16, (73, 75, 79))
        old, coarse = (_worst(by_key, row.label, bits, (68, 69)) for bits in (8, 16))
        if eight is None and fine is None:
            continue
        made.append((row.label, *_cells(eight), *_cells(fine), _cells(old)[0], *_cells(coarse)[:2]))
    return table(head, made)


def _worst(by_key: dict[tuple[str, int, int], Found], label: str, bits: int, archs: tuple[int, ...]) -> Found | None:
    found = [f for arch in archs if "share" in (f := by_key[label, bits, arch]) and "unreliable" not in f]
    return min(found, key=lambda f: (f["share"], -f["most"])) if found else None


def _cells(figure: Found | None) -> tuple[str, str, str]:
    if figure is None:
        return "-", "-", "-"
    same = figure["sqnr"] > 190 and figure["emulator_sqnr"] > 190
    sqnr = "exact" if same else f"{figure['sqnr']:.1f} / {figure['emulator_sqnr']:.1f}"
    return f"{figure['share']:.2%}", str(figure["most"]), sqnr


def _bits(bits: tuple[int, ...]) -> str:
    return " and ".join(map(str, bits)) + " bits"


def _refused(ops: list[Found]) -> list[str]:
    found: dict[tuple[str, str], list[int]] = {}
    for f in ops:
        if "refused" in f and f["weights"] == 8 and f["arch"] == 73 and "+" not in f["label"]:
            words = f["refused"].partition("failed validation: ")[2] or f["refused"]
            found.setdefault((f["label"], words.split(";")[0][:110].replace("|", "/")), []).append(f["bits"])
    made = ((label, _bits(tuple(bits)), words) for (label, words), bits in found.items())
    return table(("graph", "activations", "the validation's words"), made)


def _weights(ops: list[Found]) -> list[str]:
    found: dict[str, dict[tuple[int, int], Found]] = {}
    for f in ops:
        if f["weights"] != 8 and f["arch"] == 73 and "share" in f and "unreliable" not in f:
            found.setdefault(f["label"], {})[f["bits"], f["weights"]] = f
    head = ("graph", "W4A8", "most", "SQNR", "W4A16", "most", "SQNR", "W16A16", "most", "SQNR")
    order = ((8, 4), (16, 4), (16, 16))
    made = ((label, *(cell for key in order for cell in _cells(row.get(key)))) for label, row in found.items())
    return table(head, made)


NETWORKS = """## Networks

SQNR of the output against float, of the simulation and of the emulator (V73), in dB, on the same samples, that
calibration has not seen. Goal: at most {goal} dB apart. Each network is quantized several times with other samples to
calibrate with; *runs* says how often, and on how many samples each was judged. The figures are means over those; with
*apart* (simulation less emulator) stands its 95 % interval (Student's t over the runs; more were made, from {fewest} to
{most}, until it was {wanted} dB to either side), and *one run* is what a single calibration scatters by (standard
deviation). The share within one step, and the most steps, are printed and are no goal. *Top-1*, percent, of simulation
and emulator: of the digits, which are trained, against the labels (float: {float}); of the other classifiers, whose
weights are random, the agreement with float. Half a point is the goal, and shown for the digits alone: 64 samples and
random weights leave intervals of a point and more. Trained as well is the sentence encoder of
[sentence-encoder.md](sentence-encoder.md): mean cosines of simulation and emulator lie within 0.0002 of one another at
W8A16 and at W8A8 as searched; at plain W8A8, where little is left (0.852 and 0.843), a point apart on four sentences.
"""
AFTER = """
Why one run scatters: every product rounds by a few hundredths of a step otherwise than its definition, which makes 2%
of its codes differ by one. Where the same numbers meet every sample, as in ViT's class token, such a code moves the
error of all samples alike: more samples do not average that out, other ranges do. That was looked for tensor by tensor,
op by op on the same codes, and with each part of ViT computed by the emulator and the rest by the simulation.

Clamps of 16 bits: behind a convolution, a FullyConnected, a sum, difference or product, HTP (V68 to V79) leaves
ReluMinMax, Relu6 and Relu1 out and lets the codes' ends do their work. Ranges with room beyond the clamp cost
MobileNetV2 4.4 dB on the emulator that the simulation did not show (25.7 against 30.1). Ranges now end at the clamp,
codes that reach beyond it are not used, and the simulation loses such a clamp too, for graphs that others made.
"""


def _networks(networks: list[Found]) -> list[str]:
    from benchmarks.simulation_networks import FEWEST, MOST, WANTED

    true = next((n["float_top1"] for n in networks if n.get("labels")), float("nan"))
    words = {"goal": GOAL_DB, "fewest": FEWEST, "most": MOST, "wanted": WANTED, "float": f"{true:.1f}"}
    head = (
        "network",
        "precision",
        "runs",
        "simulation",
        "emulator",
        "apart",
        "one run",
        "within one step",
        "most",
        "top-1",
        "points apart",
    )
    made = []
    for n in networks:
        if "error" in n:
            made.append((n["network"], n["precision"], f"not run: {n['error'].splitlines()[0]}", *["-"] * 8))
            continue
        mark = "" if abs(n["apart"]) <= GOAL_DB else " (missed)"
        row = (n["network"], n["precision"], f"{n['calibrations']} x {n['samples']}")
        row += (f"{n['sqnr']:.2f}", f"{n['emulator_sqnr']:.2f}")
        row += (f"{n['apart']:+.2f} ± {n['apart_interval']:.2f}{mark}", f"{n['apart_deviation']:.2f}")
        made.append((*row, f"{n['share']:.1%}", str(n["most"]), *_top1(n)))
    return [*NETWORKS.format(**words).splitlines(), "", *table(head, made), *AFTER.splitlines()]


def _top1(n: Found) -> tuple[str, str]:
    if "top1" not in n:
        return "-", "-"
    return f"{n['top1']:.1f}, {n['emulator_top1']:.1f}", f"{n['points']:+.1f} ± {n['points_interval']:.1f}"

# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""docs/results/quantization-peers.md from the figures: tables, goals, and why one is missed."""

from __future__ import annotations

from typing import Any

from benchmarks.pages import table

INTRO = """\
# Quantization against peers

Written by `make bench-quantization` (`python -m benchmarks.quantization_peers`). Every tool quantizes the same ONNX
file with the same {samples} calibration samples to int8 weights, a scale per output channel, and activations of 8 or
16 bits. What it writes is simulated in ONNX Runtime with every Q and DQ computed (`session.disable_quant_qdq`; of
npukit: the DLC, raised to QDQ ONNX) on {held_out} samples that no tool has seen. SQNR is that of the worst output,
against the float model. Seconds and memory are those of the tool's whole process, imports included, without any
verification; memory is the sum of the peaks of its processes.

Digits and sentence encoder are trained. The others have random weights with log-normally different channels and norms
(`benchmarks/quantization_peer_models.py`), images have the spectrum of natural ones, sequences change slowly. *Nearest
pair* is the largest cosine between the outputs of two samples: the networks tell their inputs apart. The sentence
encoder gets sentences packed without padding. The Llama block keeps the exporter's mask of -3.4e38: ranges that hold it
have no codes for anything else. That is the likely cause of the peers' 5 dB there; it was not traced in them.

AIMET's `equalize_model` changes what a network with ReLU6 computes: MobileNetV2 has -3.7 dB behind it in float already,
before anything is quantized (measured by itself, four calibration samples). Hence SeqMSE without it has a column too.

A dash: not run in this run. Where weights have a scale per output channel is each tool's own documented choice: npukit
and AIMET (`htp_v73_per_channel_linear`) for convolutions and matrix products, ONNX Runtime's QNN configuration for
convolutions only.
"""

# Why a goal is missed: (network or "", bits or 0, goal) -> reason. Found by looking, not by the run.
REASONS: dict[tuple[str, int, str], str] = {
    (
        "bilstm",
        16,
        "sqnr",
    ): "ONNX Runtime's QNN configuration takes the weights of an LSTM for activations: uint16, one scale; the last "
    "Gemm alone has int8. Measured: npukit's int8 weights with activations in float come to 39.3 dB as well, so "
    "rounding gates and states costs nothing; with `--weights 16` npukit comes to 65.6 dB",
    (
        "",
        0,
        "memory",
    ): "command and worker are two processes with numpy, 50 MB the smaller; the worker also loads HTP's emulator, "
    "110 MB with what it allocates, to ask which bits each op may have",
}
# What npukit does beside calibration, by the stage of which the seconds are told.
STAGES = {
    "read": "reading, lowering and HTP's validation",
    "smooth": "smoothing, which the others do not do",
    "calibrate": "calibration",
    "write": "weights, encodings and the file",
}
PLAIN = ("ort", "aimet")  # those that speed and memory are judged by; slower recipes count for accuracy alone
GOALS = {
    "sqnr": "SQNR at least that of the best peer",
    "fast": "at least as fast as the faster of ONNX Runtime and AIMET min-max",
    "slow": "three times faster than the slower of the two",
    "memory": "half the memory of the slower of the two",
}


def page(found: dict[str, Any]) -> str:
    """The page as Markdown."""
    m = found["machine"]
    rows = {(row["network"], row["bits"], row["tool"]): row for row in found["rows"]}
    tools = [tool for tool in m["titles"] if any(key[2] == tool for key in rows)]
    networks = [name for name in m["all"] if name in found["networks"]]
    lines = [INTRO.format(**m), *_state(found, networks), *found.get("provenance", []), "", "## SQNR, dB", ""]
    cells = _each(rows, networks, found, tools, lambda row: f"{row['sqnr']:.1f}", best=True)
    lines += table(("network", "activations", *(m["titles"][tool] for tool in tools)), cells)
    lines += ["", "## Seconds", "", "In brackets: without starting Python and importing.", ""]
    cells = _each(rows, networks, found, tools, _seconds)
    lines += table(("network", "activations", *(m["titles"][tool] for tool in tools)), cells)
    lines += ["", "## Peak memory, MB", ""]
    cells = _each(rows, networks, found, tools, lambda row: f"{row['peak'] / 1e6:.0f}")
    lines += table(("network", "activations", *(m["titles"][tool] for tool in tools)), cells)
    lines += ["", "## Goals", "", *_goals(rows, networks, found), "", "## Networks", ""]
    head = ("network", "weights", "million parameters", "nearest pair")
    lines += table(head, [_network(found["networks"][name]) for name in networks])
    lines += ["", *_loose(rows, m), "## Settings", "", *_settings(rows, tools, m)]
    return "\n".join(lines) + "\n"


def _state(found: dict[str, Any], networks: list[str]) -> list[str]:
    m = found["machine"]
    packages = ", ".join(dict.fromkeys(p for peer in m["peers"].values() for p in peer))
    loads = [row["load"] for row in found["rows"] if not row["failed"]]
    text = (
        f"{m['date']}; {m['cpu']}, {m['cores']} cores; {m['system']}; Python {m['python']}; npukit {m['npukit']}; "
        f"{packages}. Load average when a tool began: {min(loads, default=0):.1f} to {max(loads, default=0):.1f}"
    )
    busy = max(loads, default=0) > 1.5
    text += "; other work ran beside, so that seconds are upper bounds." if busy else "."
    left = [title for name, title in m["all"].items() if name not in networks]
    return [text, *(["", f"Not measured in this run: {', '.join(left)}."] if left else [])]


def _each(
    rows: dict[Any, Any], networks: list[str], found: dict[str, Any], tools: list[str], show: Any, best: bool = False
) -> list[tuple[str, ...]]:
    lines = []
    for network in networks:
        for bits in (8, 16):
            there = [rows.get((network, bits, tool)) for tool in tools]
            if not any(there):
                continue
            cells = [_cell(row, show) for row in there]
            figures = [row["sqnr"] if row and not row["failed"] else -1e9 for row in there]
            if best:
                top = max(figures)
                cells = [f"**{c}**" if f == top else c for c, f in zip(cells, figures, strict=True)]
            lines.append((found["networks"][network]["title"], str(bits), *cells))
    return lines


def _cell(row: dict[str, Any] | None, show: Any) -> str:
    if row is None:
        return "-"
    return f"failed: {row['failed']}".replace("|", "/") if row["failed"] else str(show(row))


def _seconds(row: dict[str, Any]) -> str:
    inner = f" ({row['inner']:.1f})" if row["inner"] is not None else ""
    return f"{row['wall']:.1f}{inner}"


def judged(mine: dict[str, Any], peers: dict[str, dict[str, Any]], titles: dict[str, str]) -> dict[str, str]:
    """The goals that a network misses at a bit width, each with the figures; `peers` are those without fault."""
    missed = {}
    best = max(peers, key=lambda tool: peers[tool]["sqnr"], default="")
    if best and round(mine["sqnr"], 1) < round(peers[best]["sqnr"], 1):
        missed["sqnr"] = f"{mine['sqnr']:.1f} dB, {titles[best]} {peers[best]['sqnr']:.1f} dB"
    plain = [peers[tool] for tool in PLAIN if tool in peers]
    if plain:
        fast, slow = (pick(plain, key=lambda row: row["wall"]) for pick in (min, max))
        if mine["wall"] > fast["wall"]:
            missed["fast"] = f"{mine['wall']:.1f} s, {titles[fast['tool']]} {fast['wall']:.1f} s"
        if len(plain) > 1 and mine["wall"] > slow["wall"] / 3:
            missed["slow"] = f"{mine['wall']:.1f} s, {titles[slow['tool']]} {slow['wall']:.1f} s"
        if mine["peak"] > slow["peak"] / 2:
            missed["memory"] = f"{mine['peak'] / 1e6:.0f} MB, {titles[slow['tool']]} {slow['peak'] / 1e6:.0f} MB"
    return missed


def _goals(rows: dict[Any, Any], networks: list[str], found: dict[str, Any]) -> list[str]:
    met: dict[str, int] = dict.fromkeys(GOALS, 0)
    titles = found["machine"]["titles"]
    tuned: dict[str, list[float]] = {tool: [] for tool in titles if tool not in ("npukit", *PLAIN)}
    total, missed = 0, []
    for network in networks:
        for bits in (8, 16):
            mine = rows.get((network, bits, "npukit"))
            peers = {t: row for (n, b, t), row in rows.items() if (n, b) == (network, bits) and t != "npukit"}
            peers = {tool: row for tool, row in peers.items() if not row["failed"]}
            if mine is None or not peers:
                continue
            total += 1
            title = f"{found['networks'][network]['title']}, {bits} bits"
            if mine["failed"]:
                missed.append((title, "all", mine["failed"], ""))
                continue
            faults = judged(mine, peers, titles)
            for tool in tuned.keys() & peers.keys():
                tuned[tool].append(peers[tool]["wall"] / mine["wall"])
            for goal in GOALS:
                met[goal] += goal not in faults
            missed += [(title, GOALS[g], figures, _reason(mine, g)) for g, figures in faults.items()]
    lines = [f"- {text}: {met[goal]} of {total}" for goal, text in GOALS.items()]
    lines += ["", f"The best peer is the best of those that were run on a row, of {total} rows:", ""]
    for tool, ratios in tuned.items():
        if ratios:
            text = f"{min(ratios):.1f} to {max(ratios):.1f} times npukit's seconds"
            lines.append(f"- {titles[tool]} on {len(ratios)}, with {text}")
    if missed:
        lines += ["", "Missed:", "", *table(("network", "goal", "figures", "reason"), missed)]
    return lines


def _reason(mine: dict[str, Any], goal: str) -> str:
    """Why a goal is missed: what was found by looking, or where the seconds went."""
    if goal in ("fast", "slow"):
        told = {text: mine["stages"].get(stage, 0.0) for stage, text in STAGES.items()}
        parts = [f"{text} {seconds:.1f}" for text, seconds in told.items()]
        return ", ".join([*parts, f"starting and ending {mine['wall'] - sum(told.values()):.1f}"])
    keys = ((mine["network"], mine["bits"], goal), ("", 0, goal))
    return next((REASONS[key] for key in keys if key in REASONS), "not looked into")


def _network(figures: dict[str, Any]) -> tuple[str, ...]:
    weights = "trained" if figures["trained"] else "random, spread"
    return (figures["title"], weights, f"{figures['parameters'] / 1e6:.2f}", f"{figures['nearest_pair']:.2f}")


def _loose(rows: dict[Any, Any], m: dict[str, Any]) -> list[str]:
    """What tools leave in float."""
    lines = []
    for (network, bits, tool), row in rows.items():
        if row["loose"]:
            what = ", ".join(f"{count} {kind}" for kind, count in row["loose"].items())
            lines.append(f"- {m['titles'][tool]}, {m['all'][network]}, {bits} bits: {what}")
    return ["Heavy ops that a tool leaves in float:", "", *sorted(lines), ""] if lines else []


def _settings(rows: dict[Any, Any], tools: list[str], m: dict[str, Any]) -> list[str]:
    lines = []
    for tool in tools:
        texts = dict.fromkeys(row["settings"] for key, row in rows.items() if key[2] == tool and row["settings"])
        only = m["only"].get(tool)
        where = f" (only on {', '.join(m['all'][name] for name in only)})" if only else ""
        lines += [f"- {m['titles'][tool]}{where}: {'; '.join(f'`{text}`' for text in texts)}"]
    return lines

# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""`python -m benchmarks.simulation`: quantized ops and networks in the simulation against the HTP emulator.

`--capabilities` writes what HTP takes and how near the simulation comes to src/npukit/quantization/capabilities.json;
without it docs/results/simulation.md is written from that table's figures and, with `--networks`, from networks.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from benchmarks.simulation_cases import rows
from benchmarks.simulation_run import CHIPS, run_all, table
from npukit.qnn.api import libraries
from npukit.quantization.roles import weight_axis

ROOT = Path(__file__).resolve().parents[1]
TABLE = ROOT / "src/npukit/quantization/capabilities.json"
FIGURES = ROOT / "results/simulation.json"
PAGE = ROOT / "docs/results/simulation.md"

Found = dict[str, Any]


def main(arguments: list[str] | None = None) -> int:
    """Measure, and write the files."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.simulation", description=__doc__)
    parser.add_argument("--capabilities", action="store_true", help="ask the library anew and write the table")
    parser.add_argument("--networks", action="store_true", help="run networks anew (minutes)")
    options = parser.parse_args(arguments)
    figures: Found = json.loads(FIGURES.read_text()) if FIGURES.exists() else {}
    if options.capabilities or "ops" not in figures:
        figures["build"] = str(libraries.find("htp").build_id)
        figures["ops"] = compared()
        TABLE.write_text(dumped(figures["build"], capability_rows(asked(), figures["ops"])))
    if options.networks:
        from benchmarks.simulation_networks import measured

        figures["networks"] = measured()
    FIGURES.parent.mkdir(exist_ok=True)
    FIGURES.write_text(json.dumps(figures, indent=0) + "\n")
    from benchmarks.simulation_page import page

    PAGE.write_text(page(figures))
    return 0


# ---------------------------------------------------------------- asking and running


def asked() -> list[Found]:
    """What the validation of each architecture takes of each row."""
    single = [row.label for row in rows() if row.then is None]
    tasks = [("ask", (label, arch)) for arch in CHIPS for label in single]
    return [{"label": arguments[0], "arch": arguments[1], **result} for arguments, result in run_all(tasks)]


def compared() -> list[Found]:
    """Every row in 8 and 16 bits on every architecture; weights also in 4 and 16 bits."""
    tasks = []
    for arch in CHIPS:
        for label, row in table().items():
            widths = [(8, 8), (16, 8)]
            if weight_axis(row.graph()[0].ops[0]) is not None:
                widths += [(8, 4), (16, 4), (16, 16)]
            tasks += [("compare", (label, *width, arch)) for width in widths]
    keys = ("label", "bits", "weights", "arch")
    return [{**dict(zip(keys, arguments, strict=True)), **result} for arguments, result in run_all(tasks)]


# ---------------------------------------------------------------- the table


def capability_rows(answers: Iterable[Found], figures: Iterable[Found]) -> Found:
    """The rows of capabilities.json by name of the op: worst graph, first architecture."""
    names = {row.label: row.group for row in rows() if row.then is None}
    found: Found = {name: {"takes": {}, "measured": {}} for name in sorted(set(names.values()))}
    taken: Found = {}
    for answer in answers:
        row = found[names[answer["label"]]]
        for bits in ("8", "16"):
            if bits in answer:
                entry = taken.setdefault((names[answer["label"]], bits), {})
                entry.setdefault("", set()).add(answer["arch"])
                for role, forms in answer[bits].items():
                    for form in forms:
                        entry.setdefault((role, form), set()).add(answer["arch"])
            elif "refusal" not in row:
                row["refusal"] = _plain(answer.get("refusal") or answer.get("error", ""))
    for (name, bits), entry in taken.items():
        takes: Found = {"since": first(entry.pop(""))}
        for (role, form), archs in entry.items():
            takes.setdefault("operands", {}).setdefault(role, {})[form] = first(archs)
        found[name]["takes"][bits] = takes
    for name, row in found.items():
        if len(row["takes"]) == 2:
            row.pop("refusal", None)
        row["measured"] = bounds([f for f in figures if names.get(f["label"]) == name])
    return found


def first(archs: set[int]) -> int:
    """The first architecture; every later one must be there too, or the table could not say it."""
    since = min(archs)
    missing = {arch for arch in CHIPS if arch >= since} - archs
    if missing:
        raise SystemExit(f"taken by V{since}, but not by {missing}: the table has no form for that")
    return since


def bounds(figures: list[Found]) -> Found:
    """The worst of an op's graphs: V68 and V69, which compute sums of 16 bits more coarsely, apart from the rest."""
    worst: Found = {}
    for figure in figures:
        if "share" in figure and "unreliable" not in figure:
            key = str(figure["bits"]) if figure["weights"] == 8 else f"{figure['bits']}/{figure['weights']}"
            arch = "68" if figure["arch"] < 73 else "73"
            share, most = worst.setdefault(key, {}).get(arch, (1.0, 0))
            worst[key][arch] = (min(share, round(figure["share"], 4)), max(most, figure["most"]))
    return {key: {"68": pairs["68"]} if pairs.get("68") == pairs.get("73") else pairs for key, pairs in worst.items()}


def _plain(text: str) -> str:
    """The vendor's words without the codes and the tensor number around them."""
    words = text.partition("Op configuration failed validation: ")[2] or text
    return words.split(";")[0].strip()[:160]


def dumped(build: str, ops: Found) -> str:
    """JSON with one op a line."""
    lines = ",\n".join(f" {json.dumps(name)}: {json.dumps(row)}" for name, row in ops.items())
    return f'{{"library": {json.dumps(build)},\n"ops": {{\n{lines}\n}}}}\n'


if __name__ == "__main__":
    sys.exit(main())

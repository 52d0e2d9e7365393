# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""From OpenVLA's checkpoint to five ONNX models: written tensor by tensor, whatever the size; then compared.

Embedding, prefill and decoder name the same weights, which are there once, in llama.onnx.data. PyTorch is needed for
the comparison alone.
"""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path
from typing import Any

import numpy as np

from npukit.analysis import text
from npukit.errors import UsageError
from npukit.policies.kinds import Exported, ExportRequest
from npukit.policies.onnx_writer import WeightFile
from npukit.policies.openvla import components
from npukit.policies.openvla.checkpoint import Facts, facts
from npukit.policies.openvla.compare import Comparison, need_torch
from npukit.policies.openvla.steps import CAMERA
from npukit.policies.package import Camera

TEXT_WEIGHTS = "llama.onnx.data"
_PROBES = 2
# Numbers in a network that is also run whole, several times over in float32; above it, it is run layer by layer only.
WHOLE = 1_000_000_000


def export_components(checkpoint: Path, folder: Path, options: ExportRequest) -> Exported:
    """Write the five components of `components.ports`, compare them with the network in PyTorch.

    Raises:
        MissingDependency: torch is not installed, and the comparison is wanted.
        ModelError: the config cannot be honoured, or the weights are not those of the config; all faults are listed.
        CheckFailed: a component does not compute what the network does.
        UsageError: there is not room enough on the disk.
    """
    if options.verify:
        need_torch()  # said before the long work
    with options.stage("read"):
        found = facts(checkpoint, options.config, options.options)
    c, dtype = found.network, np.dtype(options.precision)
    count = found.weights.count(c)
    _check_room(folder, count * dtype.itemsize)
    write(found, folder, options)
    whole = count <= WHOLE
    records: list[dict[str, Any]] = []
    probes, chunks, notes = [], [], list(c.notes)
    if options.verify:
        given = options.probes(_PROBES if whole else 1, None)
        made = Comparison(found, folder, options, whole=whole).run(given)
        records, chunks = made.records, made.chunks
        probes = given if whole else []
        if not whole:
            notes.append(f"{count / 1e9:.2f} billion weights are too many to be run at once: every layer was compared "
                         "by itself, in the prefill and in the first step of the decoder")  # fmt: skip
    return Exported(
        components=tuple(
            dataclasses.replace(item, artifacts={"onnx": f"{item.name}.onnx"})
            for item in components.ports(c, dtype.name)
        ),
        config={**found.runtime, "network": dataclasses.asdict(c)},
        chunk_size=1,
        n_action_steps=1,
        cameras=(Camera(CAMERA, 0),),
        parity=tuple(records),
        chunks=tuple(chunks) if probes else (),
        probes=tuple(probes),
        notes=tuple(notes),
    )


def write(found: Facts, folder: Path, options: ExportRequest) -> None:
    """The models and their weights, one tensor in memory at a time."""
    c = found.network
    for name, weights, parts in (
        (f"{components.VISION}.onnx.data", components.vision_weights, (components.vision,)),
        (f"{components.PROJECTOR}.onnx.data", components.projector_weights, (components.projection,)),
        (
            TEXT_WEIGHTS,
            components.text_weights,
            (components.embedding, components.prefill, components.decoder),
        ),
    ):
        with options.stage(f"write {name}"), WeightFile(folder / name, options.precision) as out:
            weights(c, found.weights, out)
        for make in parts:
            graph = make(c, out)
            with options.stage(f"write {graph.name}.onnx"):
                graph.save()


def _check_room(folder: Path, size: int) -> None:
    """Raise a UsageError where the disk does not hold so many bytes and a little more."""
    needed, free = int(size * 1.02) + (64 << 20), shutil.disk_usage(folder).free
    if free < needed:
        raise UsageError(f"the models take {text.size(needed)}, {text.size(free)} are free",
                         where=str(folder.parent), hint="choose another disk with -o; nothing else is written "
                         "meanwhile")  # fmt: skip

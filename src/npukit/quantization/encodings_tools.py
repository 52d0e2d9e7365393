# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""What `npukit encodings` does: encodings of a file or a DLC, checked against a model, compared with others."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from npukit.artifacts import dlc
from npukit.artifacts.stamp import Stamp
from npukit.errors import Fault, LoweringError, nearest
from npukit.files import map_file
from npukit.frontends.onnx import load
from npukit.lowering import lower
from npukit.qnn.graph import Encoding, Model, Tensor, TensorKind
from npukit.qnn.names import legal_form, source_name
from npukit.quantization.encodings_file import EncodingsFile, check, read
from npukit.quantization.entry import Blocks, Entry
from npukit.quantization.overrides import match
from npukit.quantization.source import Source, read_source, with_axes
from npukit.targets import target

_ZIP = b"PK"


def is_artifact(path: Path) -> bool:
    """Whether a file is a DLC by its first bytes; NpukitError where it cannot be opened."""
    return bytes(map_file(path)[:2]) == _ZIP


def entries_of(path: Path) -> EncodingsFile:
    """The encodings of an encodings file, or of a DLC's tensors by their names in the source, as far as known.

    libQnnSystem runs in this process for a DLC.

    Raises:
        EncodingsError: the encodings file is at fault.
        ArtifactError, NativeError: the DLC cannot be read.
    """
    if not is_artifact(path):
        return read(path)
    model, stamp = dlc.read(path)
    names = {} if stamp is None else source_names(stamp)
    return EncodingsFile("dlc", tuple(_entries(model, names)), where=str(path))


def source_names(stamp: Stamp) -> dict[str, str]:
    """Name in the artifact -> name in the source, where the stamp knows it."""
    names = {tensor: source for source, tensor in stamp.names.items()}
    for io in (*stamp.inputs, *stamp.outputs):
        names.setdefault(io.tensor, io.name)
    return names


def _entries(model: Model, names: dict[str, str]) -> list[Entry]:
    several = len(model.graphs) > 1
    found = []
    for graph in model.graphs.values():
        for tensor in graph.tensors():
            entry = entry_of(tensor)
            if entry is not None:
                name = names.get(tensor.name, tensor.name)
                found.append(replace(entry, name=f"{graph.name}/{name}" if several else name))
    return found


def entry_of(tensor: Tensor) -> Entry | None:
    """A tensor's encoding as an entry under the tensor's name and with its axis; None where it has none."""
    encoding = tensor.encoding
    kind = "param" if tensor.kind is TensorKind.STATIC else "activation"
    if tensor.dtype.is_float and kind == "activation":
        return Entry(tensor.name, kind, tensor.dtype.bits, "float")
    if not tensor.dtype.is_quantized or encoding is None or encoding.block_shape is not None:
        return None
    bits = encoding.bitwidth or tensor.dtype.bits
    signed = 0x0300 <= tensor.dtype < 0x0400
    symmetric = signed and not any(encoding.offsets)
    blocks = _blocks(encoding, tensor)
    return Entry(
        tensor.name, kind, bits, "int", encoding.scales, encoding.offsets, signed, symmetric, encoding.axis, blocks
    )


def _blocks(encoding: Encoding, tensor: Tensor) -> Blocks | None:
    if encoding.block_scales is None or encoding.axis is None:
        return None
    along = encoding.axis - 1 if encoding.axis > 0 else 1
    count = encoding.blocks_per_axis or len(encoding.block_scales) // len(encoding.scales)
    bits = (encoding.bitwidth or tensor.dtype.bits) + encoding.block_scale_bits
    size = -(-tensor.shape[along] // count)
    return Blocks(size, along, encoding.block_scales, bits, tensor.rank, len(encoding.scales))


@dataclass(frozen=True)
class Checked:
    """What a check of an encodings file found.

    Attributes:
        file: what could be read.
        faults: what is wrong, each with its line.
        classes: entries by what becomes of them in the model's graph; empty without a model.
        notes: what could not be checked.
    """

    file: EncodingsFile
    faults: tuple[Fault, ...]
    classes: dict[str, int]
    notes: tuple[str, ...] = ()


def lint(path: Path, model: Path | None = None) -> Checked:
    """Check an encodings file, with `model` also against the graph that this model becomes.

    Raises:
        NpukitError: a file cannot be read, or is not JSON.
    """
    file, faults = check(path)
    if model is None:
        return Checked(file, faults, {})
    source = read_source(model)
    try:
        lowered = lower(load(model).model, [target("qnn-cpu")])
    except LoweringError as error:
        note = f"only names were checked against the model: {error.what}"
        return Checked(file, (*faults, *_unknown(file, source)), {}, (note,))
    matched = match(file, lowered.graph, lowered.names, source)
    counts: dict[str, int] = {}
    for row in matched.rows:
        counts[row.status] = counts.get(row.status, 0) + 1
    return Checked(file, (*faults, *matched.faults(str(path))), counts)


def _unknown(file: EncodingsFile, source: Source) -> list[Fault]:
    return [
        Fault("the model has no value of this name", f"{file.where}:{e.line} {e.name!r}", nearest(e.name, source.names))
        for e in file
        if e.name not in source.names
    ]


def as_source(file: EncodingsFile, model: Path | None = None) -> list[Entry]:
    """The entries as a file about the source has them; `model` tells the axes and kinds that a file leaves open.

    Of a DLC's tensors, those that the model has no value for are left out.
    """
    entries = list(file)
    if file.version == "dlc":  # its axes are those of the artifact's layout
        entries = [replace(e, axis=None, blocks=_unplaced(e.blocks)) for e in entries]
    if model is None:
        return entries
    source = read_source(model)
    if file.version == "dlc":
        entries = [replace(e, name=source_name(e.name, source.names)) for e in entries]
        entries = [e for e in entries if e.name in source.names]
    return with_axes(entries, source)


def _unplaced(blocks: Blocks | None) -> Blocks | None:
    return replace(blocks, axis=None) if blocks is not None else None


@dataclass(frozen=True)
class Delta:
    """One value on which two sets of encodings differ.

    Attributes:
        name: name of the value.
        what: "added", "removed", or what differs: "dtype", "bits", "channels", "scale", "offset", "blocks".
        left: as the first has it, for people.
        right: as the second has it.
    """

    name: str
    what: str
    left: str
    right: str


def compare(left: EncodingsFile, right: EncodingsFile) -> list[Delta]:
    """What differs between two sets of encodings: real grids, whatever the sign of codes and the layout of axes.

    Scales are compared as float32, which is what artifacts hold. A value that one side knows by its name in an
    artifact is the same value.
    """
    found = []
    pairs, only_left, only_right = _pairs(left, right)
    for a, b in pairs:
        what = _differs(a, b)
        if what:
            found.append(Delta(a.name, what, a.describe(), b.describe()))
    found += [Delta(e.name, "removed", e.describe(), "") for e in only_left]
    found += [Delta(e.name, "added", "", e.describe()) for e in only_right]
    return found


def _pairs(left: EncodingsFile, right: EncodingsFile) -> tuple[list[tuple[Entry, Entry]], list[Entry], list[Entry]]:
    others = {entry.name: entry for entry in right}
    pairs = [(entry, others.pop(entry.name)) for entry in left if entry.name in others]
    paired = {id(a) for a, _ in pairs}
    legal: dict[str, list[Entry]] = {}
    for entry in others.values():
        legal.setdefault(legal_form(entry.name), []).append(entry)
    alone = []
    for entry in left:
        if id(entry) in paired:
            continue
        same = legal.get(legal_form(entry.name), [])
        if "dlc" in (left.version, right.version) and len(same) == 1:
            pairs.append((entry, same.pop()))
        else:
            alone.append(entry)
    return pairs, alone, [entry for rest in legal.values() for entry in rest]


def _differs(a: Entry, b: Entry) -> str:
    if a.dtype != b.dtype:
        return "dtype"
    if a.bitwidth != b.bitwidth:
        return "bits"
    if len(a.scales) != len(b.scales):
        return "channels"
    if not np.array_equal(np.array(a.scales, np.float32), np.array(b.scales, np.float32)):
        return "scale"
    if a.offsets_for(signed=False) != b.offsets_for(signed=False):
        return "offset"
    blocks = [entry.blocks.scales if entry.blocks is not None else None for entry in (a, b)]
    return "blocks" if blocks[0] != blocks[1] else ""

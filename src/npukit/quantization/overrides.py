# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""Encodings that a user gives, and the tensors of a QNN graph that they are for.

A graph has not every value of its source: chains of movements become one, activations are computed inside an op,
constants become parameters. Every entry ends in exactly one class, and what an artifact holds is compared with what
was asked for, number by number.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

import numpy as np

from npukit.analysis import text
from npukit.errors import Fault, nearest
from npukit.qnn.graph import Array, Graph, Op, Tensor, TensorKind
from npukit.qnn.names import legal_form
from npukit.quantization.entry import Entry
from npukit.quantization.roles import Role, is_real, role, weight_axis
from npukit.quantization.source import Node, Source

HONOURED: Final = "honoured"
CARRIED: Final = "carried"
FUSED: Final = "fused"
UNKNOWN: Final = "unknown"
ILLEGAL: Final = "illegal"
LOST: Final = "lost"
CLASSES: Final = (HONOURED, CARRIED, FUSED, UNKNOWN, ILLEGAL, LOST)
"""What becomes of an entry; `LOST`: the artifact holds other numbers than were asked for."""

# Bits of integer codes by what a constant is to its op; computed tensors are DATA.
_BITS: Final = {
    Role.DATA: (8, 16),
    Role.WEIGHT: (4, 8, 16),
    Role.BIAS: (8, 32),
    Role.GAMMA: (8, 16),
    Role.BETA: (8, 16, 32),
}


@dataclass(frozen=True)
class Row:
    """What became of one entry.

    Attributes:
        entry: the entry.
        status: one of CLASSES.
        tensors: names of the graph's tensors that it is for.
        rule: how it got there, or what is wrong.
        hint: what to do, where that is known.
        error: whether it stops a quantization unless allowed.
    """

    entry: Entry
    status: str
    tensors: tuple[str, ...] = ()
    rule: str = ""
    hint: str = ""
    error: bool = False

    def fault(self, where: str = "") -> Fault:
        """The row as a fault; `where` names the file."""
        line = f"{where}:{self.entry.line} " if where and self.entry.line else ""
        return Fault(f"{self.status}: {self.rule}", f"{line}{self.entry.name!r}", self.hint)


@dataclass(frozen=True)
class Matched:
    """Entries and the tensors that they are for.

    Attributes:
        rows: one for each entry, in the file's order.
        forced: tensor -> the entry that its encoding must come from, with `axis` as the tensor has it.
    """

    rows: tuple[Row, ...]
    forced: dict[Tensor, Entry] = field(default_factory=dict)

    def faults(self, where: str = "") -> list[Fault]:
        """What must not pass silently."""
        return [row.fault(where) for row in self.rows if row.error]


def match(
    entries: Iterable[Entry], graph: Graph, names: Mapping[str, str] | None = None, source: Source | None = None
) -> Matched:
    """Find the tensors of `graph` that `entries` are for.

    Args:
        entries: names are those of the source model, or of the graph's tensors.
        graph: a float graph; nothing in it is changed.
        names: source name -> tensor name (`Lowered.names`, `Stamp.names`).
        source: the source model; without it what is not a tensor is unknown, or fused if `names` has it.
    """
    matcher = _Matcher(graph, dict(names or {}), source or Source())
    listed = list(entries)
    found: dict[int, Row] = {}
    # Entries of tensors that exist go first: what is carried must not contradict them.
    for direct in (True, False):
        for entry in listed:
            if id(entry) not in found and (row := matcher.row(entry, direct)) is not None:
                found[id(entry)] = row
    return Matched(tuple(found[id(entry)] for entry in listed), matcher.forced)


class _Matcher:
    def __init__(self, graph: Graph, names: dict[str, str], source: Source) -> None:
        self.names = names
        self.source = source
        self.forced: dict[Tensor, Entry] = {}
        self.by_name: dict[str, Tensor] = {}
        self.by_source: dict[str, list[Tensor]] = {}
        self.maker: dict[int, Op] = {}
        self.uses: dict[int, list[tuple[Op, int]]] = {}
        self.origin: dict[str, list[Op]] = {}
        for tensor in graph.tensors():
            self.by_name[tensor.name] = tensor
            if tensor.held is not None:
                self.by_source.setdefault(tensor.held.source, []).append(tensor)
        for op in graph.ops:
            for tensor in op.outputs:
                self.maker[id(tensor)] = op
            for index, used in enumerate(op.inputs):
                if used is not None:
                    self.uses.setdefault(id(used), []).append((op, index))
            for node in op.origin:
                self.origin.setdefault(node, []).append(op)

    def row(self, entry: Entry, direct: bool) -> Row | None:
        if direct:
            tensors = self.tensors(entry.name)
            return self.take(entry, tensors, HONOURED, "") if tensors else None
        for find in (self.moved, self.pieces, self.boundary):
            tensors, rule = find(entry.name)
            if tensors:
                return self.take(entry, tensors, CARRIED, rule)
        into = self.inside(entry.name)
        if into:
            return self.fused(entry, into)
        known = {*self.source.names, *self.names, *self.by_source, *self.by_name}
        if self.source.names:
            known = {*self.source.names}
        return Row(
            entry, UNKNOWN, rule="the model has no value of this name", hint=nearest(entry.name, known), error=True
        )

    def tensors(self, name: str) -> list[Tensor]:
        """The tensors that hold a value under its own name."""
        found = list(self.by_source.get(name, []))
        if not found and name in self.by_name:
            found = [self.by_name[name]]
        if not found and name in self.names and self.names[name] in self.by_name:
            found = [self.by_name[self.names[name]]]
        if not found and name in self.source.constants and legal_form(name) in self.by_name:
            found = [self.by_name[legal_form(name)]]
            found = [t for t in found if t.kind is TensorKind.STATIC and t.held is None]
        return found

    def moved(self, name: str) -> tuple[list[Tensor], str]:
        """A tensor of a value that holds the same elements."""
        for other, op in self.source.neighbours(name).items():
            tensors = [t for t in self.tensors(other) if is_real(t)] if op else []
            if tensors:
                return tensors, f"through {op}, which keeps encodings"
        return [], ""

    def boundary(self, name: str) -> tuple[list[Tensor], str]:
        """A tensor without a source name that the ops of this value's maker hand to those of its reader."""
        for value in self.source.neighbours(name):
            if not self.source.readers.get(value):
                continue
            maker = self.source.makers.get(value)
            if maker is not None and self.is_inside(value, maker):
                continue
            if maker is not None:
                out = self.handed_on(maker)
                if len(out) == 1 and len([o for o in maker.outputs if self.source.readers.get(o)]) <= 1:
                    return out, f"what {maker.op} {maker.name!r} hands on"
            for reader in self.source.readers.get(value, []):
                taken = self.taken_in(reader)
                others = [v for v in reader.inputs if v and v not in self.source.constants]
                if len(taken) == 1 and others == [value]:
                    return taken, f"what {reader.op} {reader.name!r} reads"
        return [], ""

    def is_inside(self, value: str, maker: Node) -> bool:
        """Whether one op computes this value and what reads it."""
        made = {id(op) for op in self.origin.get(maker.name, [])}
        readers = [op for node in self.source.readers.get(value, []) for op in self.origin.get(node.name, [])]
        return any(id(op) in made for op in readers)

    def handed_on(self, node: Node) -> list[Tensor]:
        own = {id(op) for op in self.origin.get(node.name, [])}
        out = []
        for op in self.origin.get(node.name, []):
            for tensor in op.outputs:
                users = self.uses.get(id(tensor), [])
                if is_real(tensor) and tensor.held is None and users and all(id(u) not in own for u, _ in users):
                    out.append(tensor)
        return out

    def taken_in(self, node: Node) -> list[Tensor]:
        own = {id(op) for op in self.origin.get(node.name, [])}
        found: dict[int, Tensor] = {}
        for op in self.origin.get(node.name, []):
            for tensor in op.inputs:
                if tensor is None or tensor.kind is TensorKind.STATIC or not is_real(tensor) or tensor.held is not None:
                    continue
                maker = self.maker.get(id(tensor))
                if maker is not None and id(maker) not in own:
                    found[id(tensor)] = tensor
        return list(found.values())

    def pieces(self, name: str) -> tuple[list[Tensor], str]:
        """Constants that hold exactly elements of this constant, reordered or cut: the weights of an unrolled LSTM."""
        contents = self.source.constants.get(name)
        readers = self.source.readers.get(name, [])
        if contents is None or not readers or int(np.prod(self.source.shapes[name])) < 2:
            return [], ""
        values: Array | None = None
        found: dict[int, Tensor] = {}
        for node in readers:
            for op in self.origin.get(node.name, []):
                for tensor in op.inputs:
                    if tensor is None or tensor.data is None or tensor.held is not None or not tensor.dtype.is_float:
                        continue
                    if values is None:
                        values = np.unique(np.asarray(contents(), tensor.data.dtype))
                    if tensor.data.size > 1 and tensor.data.any() and bool(np.isin(tensor.data, values).all()):
                        found[id(tensor)] = tensor
            if found:
                return list(found.values()), f"{node.op} {node.name!r} reorders or cuts it"
        return [], ""

    def inside(self, name: str) -> list[Op]:
        """The ops that compute what depends on this value: it is inside them."""
        if name not in self.source.names:
            return []
        for value in self.source.behind(name):
            ops = [self.maker[id(t)] for t in self.tensors(value) if id(t) in self.maker]
            if ops:
                return ops
        maker = self.source.makers.get(name)
        if maker is not None and maker.name in self.origin:
            return self.origin[maker.name][-1:]
        readers = self.source.readers.get(name, [])
        return [op for node in readers for op in self.origin.get(node.name, [])[-1:]]

    def fused(self, entry: Entry, into: Sequence[Op]) -> Row:
        op = into[0]
        constant = entry.name in self.source.constants
        size = int(np.prod(self.source.shapes.get(entry.name, ())))
        changed = constant and size > 1 and entry.bitwidth != 32
        if not self.source.readers.get(entry.name) and entry.name not in self.source.outputs:
            rule = "nothing reads it"
        else:
            rule = f"it is inside {op.type} {op.name!r}"
        if changed:
            rule += ", which holds other weights than the source"
        hint = "fold batch normalization into the convolutions before the encodings are made" if changed else ""
        return Row(entry, FUSED, (), rule, hint, changed)

    def take(self, entry: Entry, tensors: list[Tensor], status: str, rule: str) -> Row:
        """Force an entry on tensors, if every op around them can have it."""
        shown = tuple(t.name for t in tensors)
        if status is CARRIED and entry.bitwidth == 32 and entry.dtype == "int":
            uses = [self.role(t) for t in tensors]
            if all(use is Role.DATA for use in uses):
                op = self.uses[id(tensors[0])][0][0]
                return Row(entry, FUSED, (), f"it is inside {op.type} {op.name!r}, whose operands have 8 or 16 bits")
        made: dict[Tensor, Entry] = {}
        for tensor in tensors:
            placed, why, hint = self.placed(entry, tensor, status)
            if placed is None:
                return Row(entry, ILLEGAL, shown, why, hint, True)
            other = self.forced.get(tensor)
            if other is not None and _numbers(other) != _numbers(placed):
                why = f"it shares the encoding of {other.name!r} (line {other.line}), which asks for another"
                return Row(entry, ILLEGAL, shown, why, "give both the same encoding", True)
            made[tensor] = placed
        self.forced.update(made)
        return Row(entry, status, shown, rule)

    def role(self, tensor: Tensor) -> Role:
        if tensor.kind is not TensorKind.STATIC:
            return Role.DATA
        roles = [role(op, index) for op, index in self.uses.get(id(tensor), [])]
        return next((r for r in roles if r is not Role.DATA), Role.DATA)

    def placed(self, entry: Entry, tensor: Tensor, status: str) -> tuple[Entry | None, str, str]:
        """The entry with the tensor's axis, or None, why not, and what to do."""
        if not is_real(tensor):
            return None, f"{tensor.name!r} holds {tensor.dtype.name}, which is not quantized", "remove the entry"
        if entry.dtype == "float":
            return entry, "", ""
        use = self.role(tensor)
        op = self._op(tensor)
        what = f"the {use.value} of {op}" if tensor.kind is TensorKind.STATIC else "an activation"
        if entry.bitwidth not in _BITS[use]:
            possible = ", ".join(map(str, _BITS[use]))
            return None, f"{entry.bitwidth} bits are impossible for {what}", f"possible: {possible}, or float"
        if not entry.per_channel:
            return entry, "", ""
        if entry.blocks is not None and entry.blocks.scales is None:
            return None, "one scale a block; QNN takes LPBQ", "use LPBQ, or one scale a channel"
        axis = self._axis(tensor, use)
        if axis is None:
            return None, f"{what} takes one scale, not one a channel", "give it one encoding"
        if tensor.shape[axis] != len(entry.scales):
            return None, f"{len(entry.scales)} scales for {tensor.shape[axis]} channels of {what}", ""
        if status is CARRIED and tensor.data is not None and tensor.held is None:
            return None, f"{what} has its channels in another order", "give it one encoding"
        held = tensor.held
        if entry.axis is not None and status is HONOURED and held is not None and len(held.shape) == tensor.rank:
            at = entry.axis % tensor.rank
            at = held.perm.index(at) if held.perm is not None else at
            if at != axis:
                right = held.perm[axis] if held.perm is not None else axis
                return None, f"scales along axis {entry.axis}; {what} has its channels on axis {right}", ""
        return replace(entry, axis=axis), "", ""

    def _op(self, tensor: Tensor) -> str:
        uses = self.uses.get(id(tensor), [])
        return f"{uses[0][0].type} {uses[0][0].name!r}" if uses else "the graph"

    def _axis(self, tensor: Tensor, use: Role) -> int | None:
        """The channel axis of a constant, as its op takes it."""
        if use is Role.BIAS:
            return 0
        if use is not Role.WEIGHT:
            return None
        axes = {weight_axis(op) for op, index in self.uses.get(id(tensor), []) if index == 1}
        return axes.pop() if len(axes) == 1 else None


def _numbers(entry: Entry) -> tuple[object, ...]:
    scales = tuple(float(np.float32(scale)) for scale in entry.scales)
    return entry.dtype, entry.bitwidth, scales, entry.offsets_for(signed=False)


@dataclass(frozen=True)
class EncodingsReport:
    """What an artifact holds of the encodings that were asked for.

    Attributes:
        rows: one for each entry.
        filled: quantized tensors that no entry covers.
        floats: floating-point tensors that no entry covers.
        where: name of the encodings file.
    """

    rows: tuple[Row, ...]
    filled: tuple[str, ...] = ()
    floats: tuple[str, ...] = ()
    where: str = ""

    @property
    def counts(self) -> dict[str, int]:
        """Entries of each class, and tensors without an entry; what the stamp records."""
        found = {status: sum(row.status == status for row in self.rows) for status in CLASSES}
        return {**found, "filled": len(self.filled), "floats": len(self.floats)}

    @property
    def faults(self) -> tuple[Fault, ...]:
        """The entries that did not get what they ask for."""
        return tuple(row.fault(self.where) for row in self.rows if row.error)

    @property
    def exit_code(self) -> int:
        return 1 if self.faults else 0

    def to_json(self) -> dict[str, Any]:
        return {
            "file": self.where,
            "counts": self.counts,
            "entries": [
                {
                    "name": row.entry.name,
                    "line": row.entry.line,
                    "asked": row.entry.describe(),
                    "class": row.status,
                    "tensors": list(row.tensors),
                    "rule": row.rule,
                    "hint": row.hint,
                    "error": row.error,
                }
                for row in self.rows
            ],
            "filled": list(self.filled),
            "floats": list(self.floats),
        }

    def to_text(self) -> str:
        """Counts, and every entry that is not simply honoured."""
        lines = ["encodings: " + ", ".join(f"{count} {name}" for name, count in self.counts.items() if count)]
        odd = [row for row in self.rows if row.status != HONOURED]
        table = [
            (r.status, r.entry.name, ", ".join(r.tensors), r.rule + (f" ({r.hint})" if r.hint else "")) for r in odd
        ]
        return "\n".join(
            [*lines, text.table(("class", "entry", "tensors", "why"), table, indent=2)] if table else lines
        )


def report(matched: Matched, written: Graph, where: str = "") -> EncodingsReport:
    """Compare the graph that an artifact holds, as captured from it, with what the entries ask for: exactly."""
    tensors = {tensor.name: tensor for tensor in written.tensors()}
    forced = {tensor.name: entry for tensor, entry in matched.forced.items()}
    rows = []
    for row in matched.rows:
        faults = [why for name in row.tensors if name in forced and (why := _lost(forced[name], tensors.get(name)))]
        if row.status in (HONOURED, CARRIED) and faults:
            row = replace(row, status=LOST, rule=f"the artifact holds {faults[0]}", error=True)
        rows.append(row)
    bare = [t for t in tensors.values() if t.name not in forced and is_real(t)]
    filled = tuple(t.name for t in bare if t.dtype.is_quantized)
    floats = tuple(t.name for t in bare if not t.dtype.is_quantized)
    return EncodingsReport(tuple(rows), filled, floats, where)


def _lost(entry: Entry, tensor: Tensor | None) -> str:
    """What a tensor holds instead of what an entry asks for; empty where it is the same."""
    if tensor is None:
        return "no such tensor"
    encoding = tensor.encoding
    if entry.dtype == "float":
        return "" if tensor.dtype.is_float and tensor.dtype.bits == entry.bitwidth else tensor.dtype.name
    if not tensor.dtype.is_quantized or encoding is None:
        return tensor.dtype.name
    bits = encoding.bitwidth or tensor.dtype.bits - encoding.block_scale_bits  # QNN's LPBQ does not say it
    if bits != entry.bitwidth:
        return f"{bits} bits"
    if entry.only_precision:
        return ""
    wanted = entry.encoding(tensor.dtype)
    for what, have, want in (
        ("axis", encoding.axis, wanted.axis),
        ("block scales", encoding.block_scales, wanted.block_scales),
        ("scale", encoding.scales, wanted.scales),
        ("offset", encoding.offsets, wanted.offsets),
    ):
        if have != want:
            return _unequal(what, have, want)
    return ""


def _unequal(what: str, have: Any, want: Any) -> str:
    if not isinstance(have, tuple) or not isinstance(want, tuple):
        return f"{what} {have} instead of {want}"
    if len(have) != len(want):
        return f"{len(have)} {what}s instead of {len(want)}"
    at = next(i for i, pair in enumerate(zip(have, want, strict=True)) if pair[0] != pair[1])
    place = f" of channel {at}" if len(have) > 1 else ""
    return f"{what} {have[at]!r} instead of {want[at]!r}{place}"

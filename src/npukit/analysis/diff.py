# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""What differs between two model files of any kind: inputs and outputs, ops, weights, encodings, stamp.

Files of one kind are compared by name. A source model and an artifact made from it share few names: there ops are
not compared, and weights that no name pairs are paired by their values, in any order and shape.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from npukit import log
from npukit.analysis import text
from npukit.analysis.inspect import encoding_json, encoding_text, tensor_json
from npukit.analysis.subject import KINDS, GraphView, OpView, Subject, TensorView, digest, open_subject

SECTIONS = ("file", "graphs", "inputs", "outputs", "ops", "weights", "encodings", "stamp")


@dataclass(frozen=True)
class Change:
    """One difference.

    Attributes:
        section: one of SECTIONS.
        kind: "added" (only in the second), "removed" (only in the first) or "changed".
        name: what differs.
        left: as it is in the first file, for people; empty where it is not there.
        right: as it is in the second.
        figure: the largest absolute difference of two weights of one shape, None elsewhere.
    """

    section: str
    kind: str
    name: str
    left: str = ""
    right: str = ""
    figure: float | None = None

    def to_json(self) -> dict[str, Any]:
        return {
            "section": self.section,
            "kind": self.kind,
            "name": self.name,
            "left": self.left,
            "right": self.right,
            "max_abs_difference": self.figure,
        }

    def __str__(self) -> str:
        sign = {"added": "+", "removed": "-", "changed": "~"}[self.kind]
        if self.kind == "added":
            return f"{sign} {self.name}  {self.right}".rstrip()
        if self.kind == "removed":
            return f"{sign} {self.name}  {self.left}".rstrip()
        figure = "" if self.figure is None else f"  (largest difference {self.figure:.3g})"
        sides = f"  {self.left} -> {self.right}" if self.left or self.right else ""
        return f"{sign} {self.name}{sides}{figure}"


@dataclass(frozen=True)
class Difference:
    """Everything that differs.

    Attributes:
        left: name of the first file.
        right: name of the second.
        identical: whether the two files have the same bytes.
        changes: the differences, by section.
        notes: what could not be compared, and why.
        limit: most differences shown of each section; 0 for all.
        check: whether a difference is a failure.
    """

    left: str
    right: str
    identical: bool
    changes: tuple[Change, ...]
    notes: tuple[str, ...] = ()
    limit: int = 20
    check: bool = False

    @property
    def same(self) -> bool:
        """Whether nothing differs but, perhaps, the bytes."""
        return not self.changes

    @property
    def exit_code(self) -> int:
        return 1 if self.check and not self.same else 0

    def to_json(self) -> dict[str, Any]:
        return {
            "left": self.left,
            "right": self.right,
            "identical": self.identical,
            "same": self.same,
            "counts": {s: sum(c.section == s for c in self.changes) for s in SECTIONS},
            "changes": [change.to_json() for change in self.changes],
            "notes": list(self.notes),
        }

    def to_text(self) -> str:
        lines = [f"{self.left} -> {self.right}"]
        if self.identical:
            return f"{lines[0]}: the same bytes"
        for section in SECTIONS:
            found = [c for c in self.changes if c.section == section]
            if not found:
                continue
            lines.append(f"{section}: {len(found)}")
            shown = found[: self.limit] if self.limit else found
            lines += [f"  {change}" for change in shown]
            lines += [f"  ... and {len(found) - len(shown)} more (--limit 0)"] if len(shown) < len(found) else []
        lines += [f"note: {note}" for note in self.notes]
        if self.same:
            lines.append("no difference found; the bytes differ")
        return "\n".join(lines)


def diff(left: Path, right: Path, graph: str | None = None, *, limit: int = 20, check: bool = False) -> Difference:
    """Compare two files; with `graph` only that one.

    Raises:
        NpukitError: see `open_subject`.
    """
    log.report(f"reading {left.name}", 0.0)
    a = open_subject(left, graph)
    log.report(f"reading {right.name}", 0.3)
    b = open_subject(right, graph)
    log.report("comparing", 0.6)
    changes, notes = compare_subjects(a, b)
    return Difference(
        left.name, right.name, a.sha256 == b.sha256, tuple(changes), tuple(notes), limit=limit, check=check
    )


def compare_subjects(a: Subject, b: Subject) -> tuple[list[Change], list[str]]:
    """The differences between two files, and notes on what could not be compared."""
    notes: list[str] = []
    changes: list[Change] = []
    if a.kind != b.kind:
        changes.append(Change("file", "changed", "kind", KINDS[a.kind], KINDS[b.kind]))
    changes += _mapping("file", a.facts, b.facts, _plain) if a.kind == b.kind else []
    if len(a.graphs) == len(b.graphs) == 1:
        pairs = [(a.graphs[0], b.graphs[0])]
        if a.graphs[0].name != b.graphs[0].name and a.kind == b.kind:
            changes.append(Change("graphs", "changed", "name", a.graphs[0].name, b.graphs[0].name))
    else:
        names = {g.name: g for g in a.graphs}, {g.name: g for g in b.graphs}
        changes += _mapping("graphs", dict.fromkeys(names[0], ""), dict.fromkeys(names[1], ""), str)
        pairs = [(names[0][name], names[1][name]) for name in names[0] if name in names[1]]
    named = (a.kind == "onnx") == (b.kind == "onnx")  # whether the two share tensor names
    for left, right in pairs:
        if not named:
            notes += ["inputs and outputs of the artifact are those of its contract"] if a.stamp or b.stamp else []
            left, right = _contract(a, left), _contract(b, right)
        changes += _graphs(left, right, named, notes)
    if a.stamp is not None and b.stamp is not None:
        changes += _mapping("stamp", _stamp(a), _stamp(b), _plain)
    elif a.stamp is not None:
        changes.append(Change("stamp", "removed", _origin(a)))
    elif b.stamp is not None:
        changes.append(Change("stamp", "added", _origin(b)))
    order = {section: i for i, section in enumerate(SECTIONS)}
    return sorted(changes, key=lambda c: order[c.section]), notes


def _contract(subject: Subject, graph: GraphView) -> GraphView:
    """The graph with the inputs and outputs of the stamp, which are the source's; as it is without a stamp."""
    if subject.stamp is None:
        return graph
    sides = [
        [TensorView(io.name, io.dtype, io.shape) for io in side if io.graph in ("", graph.name)]
        for side in (subject.stamp.inputs, subject.stamp.outputs)
    ]
    return replace(graph, inputs=sides[0], outputs=sides[1])


def _origin(subject: Subject) -> str:
    stamp = subject.stamp
    assert stamp is not None
    return f"npukit {stamp.npukit_version}, from {stamp.source_name or 'an unknown source'}, verified: {stamp.verified}"


def _graphs(a: GraphView, b: GraphView, named: bool, notes: list[str]) -> list[Change]:
    changes = []
    for section, left, right in (("inputs", a.inputs, b.inputs), ("outputs", a.outputs, b.outputs)):
        changes += _mapping(section, {t.name: t for t in left}, {t.name: t for t in right}, _signature)
        order = [t.name for t in left], [t.name for t in right]
        if order[0] != order[1] and sorted(order[0]) == sorted(order[1]):
            changes.append(Change(section, "changed", "order", ", ".join(order[0]), ", ".join(order[1])))
    if a.ops is None or b.ops is None:
        notes.append("compiled code: ops and weights cannot be compared")
        return changes + _encodings(a, b)
    if named:
        changes += _ops(a.ops, b.ops)
    else:
        notes.append(f"ops are not comparable one by one: {_counts(a)} against {_counts(b)}")
    return changes + _weights(a, b, named) + (_encodings(a, b) if named else [])


def _counts(graph: GraphView) -> str:
    types = graph.op_types()
    shown = ", ".join(f"{name} {count}" for name, count in list(types.items())[:8])
    return f"{sum(types.values())} ops ({shown}{', ...' if len(types) > 8 else ''})"


def _signature(tensor: TensorView) -> str:
    encoding = encoding_text(None if tensor.encoding is None else encoding_json(tensor.encoding))
    return " ".join(filter(None, [tensor.dtype, text.shape(tensor.shape), f"({encoding})" if encoding else ""]))


def _plain(value: Any) -> str:
    return value if isinstance(value, str) else repr(value)


def _mapping(section: str, a: Mapping[str, Any], b: Mapping[str, Any], show: Callable[[Any], str]) -> list[Change]:
    """Keys of either side, and values that are shown differently."""
    changes = [Change(section, "removed", key, show(a[key])) for key in a if key not in b]
    changes += [Change(section, "added", key, "", show(b[key])) for key in b if key not in a]
    for key in a:
        if key in b and show(a[key]) != show(b[key]):
            changes.append(Change(section, "changed", key, show(a[key]), show(b[key])))
    return changes


def _ops(a: Iterable[OpView], b: Iterable[OpView]) -> list[Change]:
    """Ops by name; those without a partner of their name by what they make."""
    left, right = {op.name: op for op in a}, {op.name: op for op in b}
    made = {op.outputs: op for op in right.values() if op.name not in left}
    pairs: list[tuple[OpView, OpView | None]] = []
    for name, op in left.items():
        pairs.append((op, right.get(name) or made.pop(op.outputs, None)))
    partners = {id(other) for _, other in pairs if other is not None}
    changes = [Change("ops", "removed", f"{op.type} {op.name}") for op, other in pairs if other is None]
    changes += [Change("ops", "added", f"{op.type} {op.name}") for op in right.values() if id(op) not in partners]
    for op, other in pairs:
        if other is None:
            continue
        before, after = _op_parts(op), _op_parts(other)
        keys = [key for key in {**before, **after} if before.get(key) != after.get(key)]
        if keys:
            old, new = ("; ".join(f"{key} {side.get(key, 'absent')}" for key in keys) for side in (before, after))
            changes.append(Change("ops", "changed", f"{op.type} {op.name}", old, new))
    return changes


def _op_parts(op: OpView) -> dict[str, str]:
    parts = {"type": op.type, "inputs": " ".join(op.inputs), "outputs": " ".join(op.outputs)}
    return {**parts, **{key: _value(value) for key, value in op.params.items()}}


def _value(value: Any) -> str:
    if isinstance(value, np.ndarray):
        if value.size <= 32:
            return str(value.tolist())
        return f"{value.dtype} {list(value.shape)} {digest(value)[:12]}"
    return str(value)


def _weights(a: GraphView, b: GraphView, named: bool) -> list[Change]:
    left, right = {t.name: t for t in a.constants}, {t.name: t for t in b.constants}
    changes = [_weight(t, right[name]) for name, t in left.items() if name in right]
    alone_left = [t for name, t in left.items() if name not in right]
    alone_right = [t for name, t in right.items() if name not in left]
    if not named:
        alone_left, alone_right = _without_partners(alone_left, alone_right)
    changes += [Change("weights", "removed", t.name, _signature(t)) for t in alone_left]
    changes += [Change("weights", "added", t.name, "", _signature(t)) for t in alone_right]
    return [change for change in changes if change is not None]


def _weight(a: TensorView, b: TensorView) -> Change | None:
    assert a.load is not None
    assert b.load is not None
    x, y = a.load(), b.load()
    if x.shape == y.shape and x.dtype == y.dtype:
        if digest(x) == digest(y):
            return None
        figure = float(np.abs(x.astype(np.float64) - y.astype(np.float64)).max(initial=0.0))
        return Change("weights", "changed", a.name, figure=figure if np.isfinite(figure) else None)
    if sorted(x.shape) == sorted(y.shape) and _values(x) == _values(y):
        same = "the same values in another order"
        return Change("weights", "changed", a.name, _signature(a), f"{_signature(b)}, {same}")
    return Change("weights", "changed", a.name, _signature(a), _signature(b))


def _values(array: Any) -> str:
    """A hash of the values whatever their order, shape and float width."""
    floating = array.dtype.kind not in "biu"
    return digest(array.astype(np.float32 if floating else np.int64), sort=True)


def _without_partners(a: list[TensorView], b: list[TensorView]) -> tuple[list[TensorView], list[TensorView]]:
    """Those constants whose values the other side does not hold."""

    def key(tensor: TensorView) -> str:
        assert tensor.load is not None
        return _values(tensor.load())

    left, right = [(key(t), t) for t in a], [(key(t), t) for t in b]
    counts = Counter(k for k, _ in left) & Counter(k for k, _ in right)
    return _spare(left, counts), _spare(right, counts)


def _spare(keyed: list[tuple[str, TensorView]], common: Counter[str]) -> list[TensorView]:
    rest, spare = common.copy(), []
    for key, tensor in keyed:
        if rest[key] > 0:
            rest[key] -= 1
        else:
            spare.append(tensor)
    return spare


def _encodings(a: GraphView, b: GraphView) -> list[Change]:
    """Encodings of tensors that both sides have; inputs and outputs stand in their own sections."""
    ends = {t.name for t in (*a.inputs, *a.outputs, *b.inputs, *b.outputs)}
    changes = []
    for name, tensor in a.tensors.items():
        other = b.tensors.get(name)
        if other is None or name in ends or tensor.encoding == other.encoding:
            continue
        before, after = tensor_json(tensor)["encoding"], tensor_json(other)["encoding"]
        changes.append(
            Change("encodings", "changed", name, encoding_text(before) or "none", encoding_text(after) or "none")
        )
    return changes


def _stamp(subject: Subject) -> dict[str, Any]:
    """The stamp's fields; its inputs and outputs as one line each."""
    if subject.stamp is None:
        return {}
    values = subject.stamp.to_dict()
    values.pop("names")
    for side in ("inputs", "outputs"):
        values[side] = "; ".join(
            f"{io['name']} {io['dtype']} {text.shape(io['shape'])} as {io['tensor']} {io['held_dtype']}"
            + (f" axes {io['perm']}" if io["perm"] else "")
            for io in values[side]
        )
    return values

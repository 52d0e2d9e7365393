# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""Tells TensorFlow's files apart by their content; protobuf has no magic, so fields are looked at.

Field numbers: graph.proto, node_def.proto, meta_graph.proto and saved_model.proto of TensorFlow 2.21.
"""

from __future__ import annotations

import itertools
import re
from pathlib import Path

from npukit.errors import NpukitError
from npukit.files import map_file
from npukit.frontends.onnx.strip_weights import Field, WireError, fields

FROZEN, SAVED_MODEL, CHECKPOINT = "frozen graph", "SavedModel", "checkpoint"
"""A GraphDef; a folder with saved_model.pb; a MetaGraphDef (NAME.meta) beside NAME.index and NAME.data-*."""

KERAS = "Keras file"
"""A .keras archive or its HDF5 forebear: Python's classes by name, which only Keras builds."""

SAVED_MODEL_FILE = "saved_model.pb"
_OP = re.compile(rb"[A-Za-z_][A-Za-z0-9_.>]*")
_GRAPH_FIELDS = frozenset({1, 2, 3, 4, 5})
_META_FIELDS = frozenset({1, 2, 3, 4, 5, 6, 7})
_LOOKED_AT = 64  # fields; a graph begins with its nodes


def kind_of(path: Path) -> str | None:
    """`FROZEN`, `SAVED_MODEL`, `CHECKPOINT` or `KERAS`, by content; None for what is not TensorFlow's."""
    if path.is_dir():
        return SAVED_MODEL if (path / SAVED_MODEL_FILE).is_file() else None
    try:
        with open(path, "rb") as file:
            head = file.read(16)
        if head.startswith(b"\x89HDF\r\n\x1a\n"):
            return KERAS
        if head.startswith(b"PK\x03\x04"):
            return KERAS if _is_keras(path) else None
        if head[:1] not in (b"\x08", b"\x0a"):  # the first field of all three
            return None
        data = map_file(path)
        if _is_graph(data, 0, len(data)):
            return FROZEN
        if _is_meta_graph(data, 0, len(data)):
            return CHECKPOINT
        return SAVED_MODEL if _is_saved_model(data) else None
    except (OSError, NpukitError):
        return None


def folder_of(path: Path) -> Path:
    """The folder of a SavedModel, which may be given as the file saved_model.pb in it."""
    return path if path.is_dir() else path.parent


def _is_keras(path: Path) -> bool:
    from npukit.files import zip_entries

    names = {entry.name for entry in zip_entries(map_file(path))}
    return {"config.json", "metadata.json"} <= names


def _first(data: memoryview, start: int, end: int) -> list[Field] | None:
    """The first fields of a message; None if the bytes are none."""
    try:
        return list(itertools.islice(fields(data, start, end), _LOOKED_AT))
    except WireError:
        return None


def _is_node(data: memoryview, field: Field) -> bool:
    """Whether a field is a NodeDef: a name (1) and an op (2), with which protobuf's writers begin."""
    found = _first(data, field.start, field.end) if field.wire == 2 else None
    if not found or any(part.wire != 2 for part in found[:2]):
        return False
    texts = {part.number: bytes(data[part.start : min(part.end, part.start + 256)]) for part in found[:2]}
    return set(texts) == {1, 2} and _OP.fullmatch(texts[2]) is not None


def _is_graph(data: memoryview, start: int, end: int) -> bool:
    found = _first(data, start, end)
    if not found or any(field.number not in _GRAPH_FIELDS for field in found):
        return False
    nodes = [field for field in found if field.number == 1]
    return bool(nodes) and _is_node(data, nodes[0])


def _is_meta_graph(data: memoryview, start: int, end: int) -> bool:
    found = _first(data, start, end)
    if not found or any(field.number not in _META_FIELDS or field.wire != 2 for field in found):
        return False
    return any(field.number == 2 and _is_graph(data, field.start, field.end) for field in found)


def _is_saved_model(data: memoryview) -> bool:
    found = _first(data, 0, len(data))
    if not found or any(field.number not in (1, 2) for field in found):
        return False
    graphs = [field for field in found if field.number == 2 and field.wire == 2]
    return bool(graphs) and _is_meta_graph(data, graphs[0].start, graphs[0].end)

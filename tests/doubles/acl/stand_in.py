# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""Stand-in .om files for the doubles of atc and acl: the header and table of real ones around an ONNX model.

Layout: ascend_facts.md 2.1. A real MODEL_DEF is GE's protobuf and real weights are GE's own; here MODEL_DEF is JSON
and WEIGHTS_DATA is the ONNX model, which the double executes with onnx's reference implementation. Knows nothing of
npukit.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any

HEADER = 256


def header(following: int, name: str = "graph", **changes: int) -> bytes:
    """A header for `following` bytes after it; `changes` are fields by name."""
    fields = {
        "magic": 0x444F4D49, "size": HEADER, "version": 0x20000000, "length": 0, "is_encrypt": 0, "is_checksum": 0,
        "modeltype": 0, "genmode": 0, "ops": 0, "om_ir_version": 0, "model_num": 1, "platform_type": 0,
        "model_length": following, "need_check": 0, "is_unknow": 0, **changes,
    }  # fmt: skip
    raw = bytearray(HEADER)
    for offset, form, key in (
        (0, "<I", "magic"), (4, "<I", "size"), (8, "<I", "version"), (76, "<I", "length"), (80, "<B", "is_encrypt"),
        (81, "<B", "is_checksum"), (82, "<B", "modeltype"), (83, "<B", "genmode"), (116, "<I", "ops"),
        (152, "<I", "om_ir_version"), (156, "<I", "model_num"), (180, "<B", "platform_type"),
        (184, "<Q", "model_length"), (192, "<B", "need_check"), (193, "<B", "is_unknow"),
    ):  # fmt: skip
        struct.pack_into(form, raw, offset, fields[key])
    raw[84:116] = name.encode()[:32].ljust(32, b"\0")
    return bytes(raw)


def build(partitions: Sequence[tuple[int, bytes]], name: str = "graph", **changes: int) -> bytes:
    """A file of partitions (type, content)."""
    table, data = struct.pack("<II", len(partitions), 0), b""
    for kind, content in partitions:
        table += struct.pack("<IIQQ", kind, 0, len(data), len(content))
        data += content
    return header(len(table) + len(data), name, **changes) + table + data


def write(path: Path, onnx_bytes: bytes, name: str = "graph", **options: Any) -> Path:
    """A stand-in for the OM of an ONNX model, which must hold its weights.

    Args:
        path: the file.
        onnx_bytes: the model.
        name: of the model.
        options: dynamic_dims (dimensions of all inputs, one list a gear), dynamic_batch (sizes), dynamic_hw (pairs),
            input_names and output_names (instead of the model's).
    """
    about = json.dumps({"stand_in": 1, **options}).encode()
    path.write_bytes(build([(0, about), (1, onnx_bytes)], name))
    return path

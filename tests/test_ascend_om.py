# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""Reading .om files: those that the double lays out are described, cut, flipped and contradictory ones are refused."""

from __future__ import annotations

import importlib.util
import struct
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import npukit
from npukit.ascend import om
from npukit.errors import ArtifactError
from npukit.runtime.file_kind import file_kind

_SPEC = importlib.util.spec_from_file_location("stand_in", Path(__file__).parent / "doubles/acl/stand_in.py")
stand_in = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(stand_in)


def message(*fields):
    """A protobuf message of (number, value): bytes or texts as length-delimited, integers as varints."""
    out = b""
    for number, value in fields:
        if isinstance(value, int):
            out += varint(number << 3) + varint(value)
        else:
            raw = value.encode() if isinstance(value, str) else value
            out += varint(number << 3 | 2) + varint(len(raw)) + raw
    return out


def varint(number):
    out = b""
    while number > 0x7F:
        out += bytes([number & 0x7F | 0x80])
        number >>= 7
    return out + bytes([number])


def model_def(**attributes):
    entries = [(11, message((1, key), (2, message((2 if isinstance(v, str) else 3, v))))) for key, v in
               attributes.items()]  # fmt: skip
    return message((1, "graph"), (2, 1), (7, message((1, "main"))), *entries)


DATA = stand_in.build(
    [(0, model_def(atc_version="8.2.RC1", soc_version="Ascend310P3", om_compressed_size=7, other="x")),
     (1, b"w" * 1000), (3, b"kernels"), (21, b"")],
    "resnet", om_ir_version=2,
)  # fmt: skip


def test_a_whole_file_is_described():
    file = om.parse(DATA)
    assert (file.name, file.version, file.kind, file.dynamic, file.models) == ("resnet", "2.0", "IR", False, 1)
    assert [part.kind for part in file.partitions] == ["MODEL_DEF", "WEIGHTS_DATA", "TBE_KERNELS", "type 21"]
    assert file.weight_bytes == 1000
    weights = file.partitions[1]
    assert DATA[weights.offset : weights.offset + weights.size] == b"w" * 1000
    assert file.noted == {"atc": "8.2.RC1", "SoC": "Ascend310P3", "compressed size": "7"}


def test_old_files_have_their_length_in_32_bits():
    data = stand_in.build([(1, b"abc")], length=35, version=0x10000000, model_length=0)
    assert om.parse(data).version == "1.0"


def test_a_dynamic_and_a_flow_model():
    file = om.parse(stand_in.build([(6, b"")], modeltype=3, is_unknow=1, model_num=3))
    assert (file.kind, file.dynamic, file.models) == ("flow", True, 3)


def test_an_encrypted_file_is_not_looked_into():
    assert om.parse(stand_in.build([(0, b"")], is_encrypt=1)).partitions == ()


@pytest.mark.parametrize(
    ("data", "what"),
    [
        (b"", "this has 0"),
        (DATA[:200], "this has 200"),
        (b"IMOX" + DATA[4:], "does not begin with IMOD"),
        (DATA[:-1], "145006"),
        (DATA + b"x", "145006"),
        (stand_in.header(4) + b"\0\0\0\0", "ends before its table"),
        (stand_in.header(8) + struct.pack("<II", 1, 0), "does not fit"),
        (stand_in.header(8) + struct.pack("<II", 0xFFFFFFFF, 0), "does not fit"),
        (stand_in.header(32) + struct.pack("<IIIIQQ", 1, 0, 0, 0, 0, 1), "lies outside"),
        (stand_in.header(32) + struct.pack("<IIIIQQ", 1, 0, 0, 0, 2**64 - 1, 2**64 - 1), "lies outside"),
        (stand_in.build([], modeltype=9), "its type is 9"),
        (stand_in.build([], size=512), "512 bytes"),
    ],
)
def test_a_broken_file_is_refused(data, what):
    with pytest.raises(ArtifactError, match=what):
        om.parse(data, "x.om")


@given(st.data())
def test_flipped_bytes_give_a_description_or_a_refusal(data):
    raw = bytearray(DATA)
    for _ in range(data.draw(st.integers(1, 8))):
        raw[data.draw(st.integers(0, 700))] = data.draw(st.integers(0, 255))
    try:
        file = om.parse(bytes(raw))
    except ArtifactError:
        return
    assert all(part.offset + part.size <= len(raw) for part in file.partitions)


@given(st.binary(max_size=200))
def test_any_model_def_is_read_or_left(raw):
    assert isinstance(om.parse(stand_in.build([(0, raw)])).noted, dict)


def test_the_name_cannot_write_to_the_console():
    assert om.parse(stand_in.build([], "a\x1b[31mb")).name == "a\\x1b[31mb"


def test_inspect(tmp_path):
    path = tmp_path / "resnet.om"
    path.write_bytes(DATA)
    assert file_kind(path) == "om"
    result = npukit.inspect(path)
    assert result.to_json()["facts"]["model"] == "resnet"
    assert result.to_json()["parts"][1] == {"name": "WEIGHTS_DATA", "bytes": 1000}
    text = result.to_text()
    for piece in ("Ascend OM model", "8.2.RC1", "Ascend310P3", "TBE_KERNELS", "no stamp"):
        assert piece in text
    path.write_bytes(DATA[:-1])
    with pytest.raises(ArtifactError, match="145006"):
        npukit.inspect(path)

# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""Encodings files: what AIMET exports, the guide's samples, and files with faults."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from npukit.qnn.graph import DType
from npukit.quantization.encodings_file import VERSIONS, EncodingsError, Entry, dumps, loads, read, write
from npukit.quantization.encodings_writer import lost
from npukit.quantization.entry import Blocks

DATA = Path(__file__).parent / "data" / "encodings"
NETWORKS = ("cnn", "transformer", "lstm")


def exported(network: str, version: str) -> Path:
    return DATA / f"{network}.{version}.encodings"


def aimet_grid(version: str, row: Any) -> tuple[int, list[float], list[float]]:
    """Bits, scales and lowest real values of one entry, computed from the JSON alone."""
    if version == "0.6.1":
        return row[0]["bitwidth"], [r["scale"] for r in row], [r["min"] for r in row]
    if version == "1.0.0":
        return row["bw"], row["scale"], [s * o for s, o in zip(row["scale"], row["offset"], strict=True)]
    scales = np.atleast_1d(row["y_scale"])
    bits = int(row["output_dtype"].split("int")[1])
    lowest = 0 if row["output_dtype"][0] == "u" else -(2 ** (bits - 1))
    return bits, list(scales), list((lowest - np.atleast_1d(row.get("y_zero_point", 0))) * scales)


@pytest.mark.parametrize("version", VERSIONS[:3])
@pytest.mark.parametrize("network", NETWORKS)
def test_exported_files_are_read_number_by_number(network: str, version: str) -> None:
    path = exported(network, version)
    tree = json.loads(path.read_text())
    rows: dict[str, Any] = {}
    if version == "0.6.1":
        rows = {**tree["activation_encodings"], **tree["param_encodings"]}
    else:
        lists = [tree["encodings"]] if version == "2.0.0" else [tree["activation_encodings"], tree["param_encodings"]]
        rows = {row["name"]: row for part in lists for row in part}
    file = read(path)
    assert (file.version, file.producer) == (version, "aimet-onnx 2.42.0")
    assert {entry.name for entry in file} == set(rows)
    for entry in file:
        bits, scales, lows = aimet_grid(version, rows[entry.name])
        assert (entry.bitwidth, list(entry.scales)) == (bits, scales)
        lowest = np.array(entry.offsets_for(signed=False)) * np.array(scales)
        np.testing.assert_allclose(lowest, lows, rtol=1e-12)


@pytest.mark.parametrize("network", NETWORKS)
def test_the_lines_are_those_of_the_entries(network: str) -> None:
    for version in VERSIONS[:3]:
        path = exported(network, version)
        lines = path.read_text().splitlines()
        for entry in read(path):
            assert any(f'"{entry.name}"' in line for line in lines[entry.line - 1 : entry.line + 12])


def test_versions_agree() -> None:
    """The three exports of one calibration are the same grids."""
    for network in NETWORKS:
        grids = [
            {e.name: (e.bitwidth, e.scales, e.offsets_for(signed=False)) for e in read(exported(network, version))}
            for version in VERSIONS[:3]
        ]
        assert grids[0] == grids[1]
        assert grids[0].items() <= grids[2].items()


def test_what_is_written_is_what_aimet_writes() -> None:
    for network in NETWORKS:
        for version, sections in (("1.0.0", ("activation_encodings", "param_encodings")), ("2.0.0", ("encodings",))):
            theirs = json.loads(exported(network, version).read_text())
            ours = json.loads(dumps(read(exported(network, version)).entries, version))
            for section in sections:
                assert _normal(ours[section]) == _normal(theirs[section])


def _normal(rows: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    # AIMET calls a per-tensor activation whose zero is in the middle symmetric or not by how it was observed.
    return {row["name"]: row for row in rows}


@pytest.mark.parametrize("version", ["0.6.1", "1.0.0", "qnn"])
def test_round_trips(version: str, tmp_path: Path) -> None:
    entries = read(exported("cnn", "0.6.1")).entries
    write(tmp_path / "x.json", entries, version)
    back = read(tmp_path / "x.json")
    assert back.version == version
    key = [(e.name, e.kind, e.bitwidth, e.scales, e.offsets, e.signed) for e in entries]
    assert [(e.name, e.kind, e.bitwidth, e.scales, e.offsets, e.signed) for e in back] == key


def test_axes_and_blocks_survive_version_2() -> None:
    blocks = Blocks(4, 1, (1, 2, 3, 4, 5, 16), 8, 2, 3)
    conv = Blocks(4, 1, (1, 2, 3, 4, 5, 16), 8, 4, 3)
    entries = (
        Entry("w", "param", 4, "int", (0.5, 0.25, 1.0), (0,) * 3, True, True, 0, blocks),
        Entry("c", "param", 4, "int", (0.5, 0.25, 1.0), (0,) * 3, True, True, 0, conv),
        Entry("v", "param", 8, "int", (0.5, 0.25), (0, 0), True, True, 1),
    )
    file, faults = loads(dumps(entries, "2.0.0"))
    assert not faults
    assert [(e.scales, e.axis, e.blocks) for e in file] == [(e.scales, e.axis, e.blocks) for e in entries]
    again, faults = loads(dumps(entries, "1.0.0"))
    assert not faults
    assert [e.blocks.scales if e.blocks else None for e in again] == [blocks.scales, conv.scales, None]
    made = entries[0].encoding(DType.SFIXED_POINT_8)
    assert (made.kind, made.blocks_per_axis, made.block_scale_bits, made.bitwidth) == ("BLOCKWISE_EXPANSION", 2, 4, 4)


def test_the_guides_samples_are_taken_as_min_and_max_prove() -> None:
    found = {e.name: e for e in read(DATA / "guide.json")}
    assert found["Conv1:0"].offsets == (0,)
    assert found["input:0"].offsets == (-128,)  # the file says 127, min says -128.0 steps
    assert found["Conv2d/weights"].offsets == (-141,)  # 140; min is -140.9 steps
    assert found["features.9.conv.3.weight"].offsets == (-103,)
    for entry in found.values():
        low = entry.offsets[0] * entry.scales[0]
        tree = json.loads((DATA / "guide.json").read_text())
        row = {**tree["activation_encodings"], **tree["param_encodings"]}[entry.name][0]
        assert abs(low - row["min"]) < entry.scales[0]


def test_numbers_left_out_follow_from_min_and_max_by_the_guides_rule() -> None:
    """The guide's worked example: [-1.8, 0.5] becomes scale 0.00902 and offset 200 counted from below."""
    file, faults = loads(overrides(bitwidth=8, min=-1.8, max=0.5))
    assert not faults
    (entry,) = file
    assert entry.scales[0] == pytest.approx(2.3 / 255)
    assert entry.offsets == (-200,)


def test_an_entry_may_ask_for_a_precision_alone() -> None:
    file, faults = loads(overrides(bitwidth=16, dtype="int"))
    assert not faults
    assert file.entries[0].only_precision
    assert lost(file.entries, "2.0.0")
    file, faults = loads(overrides(bitwidth=16, dtype="float"))
    assert not faults
    assert (file.entries[0].dtype, file.entries[0].scales) == ("float", ())


@pytest.mark.parametrize(
    ("dtype", "offset"), [(DType.UFIXED_POINT_8, -128), (DType.SFIXED_POINT_8, 0), (DType.UFIXED_POINT_16, -32768)]
)
def test_the_sign_of_codes_moves_the_offset(dtype: DType, offset: int) -> None:
    entry = Entry("w", "param", dtype.bits, "int", (0.1,), (0,), True, True)
    made = entry.encoding(dtype)
    assert (made.offset, made.scale) == (offset, float(np.float32(0.1)))


# -- faults ------------------------------------------------------------------------------------------------------------


def overrides(**row: Any) -> str:
    return json.dumps({"activation_encodings": {"x": [row]}, "param_encodings": {}})


def one(**row: Any) -> str:
    (fault,) = loads(overrides(**row))[1]
    return f"{fault.what}; {fault.hint}"


def first(**row: Any) -> str:
    row = {"name": "x", "dtype": "INT", "bw": 8, "enc_type": "PER_TENSOR", "is_sym": False} | row
    (fault,) = loads(json.dumps({"version": "1.0.0", "activation_encodings": [row], "param_encodings": []}))[1]
    return f"{fault.what}; {fault.hint}"


def second(**row: Any) -> str:
    row = {"name": "x", "output_dtype": "uint8", "y_scale": 0.1} | row
    (fault,) = loads(json.dumps({"version": "2.0.0", "encodings": [row]}))[1]
    return f"{fault.what}; {fault.hint}"


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ({"bitwidth": 7, "scale": 0.1, "offset": 0}, "7 bits are impossible for int"),
        ({"bitwidth": 8, "dtype": "float"}, "8 bits are impossible for float"),
        ({"bitwidth": 8, "scale": 0.0, "offset": 0}, "must be above zero"),
        ({"bitwidth": 8, "scale": -0.1, "offset": 0}, "must be above zero"),
        ({"bitwidth": 8, "scale": float("nan"), "offset": 0}, "the scale is nan"),
        ({"bitwidth": 8, "scale": 1e-60, "offset": 0}, "beyond float32"),
        ({"bitwidth": 8, "scale": "0.1", "offset": 0}, "not a number"),
        ({"bitwidth": 8, "scale": 0.1, "offset": 127}, "wrong sign; write -127"),
        ({"bitwidth": 8, "scale": 0.1, "offset": -300}, "beyond the 256 codes"),
        ({"bitwidth": 8, "scale": 0.1, "offset": -3.5}, "not a whole number"),
        ({"bitwidth": 8, "scale": 0.1, "offset": 12, "min": -3.0, "max": 22.5}, "offset 12 contradicts"),
        ({"bitwidth": 8, "scale": 0.1, "offset": 0, "min": -12.8, "max": 12.7}, "write -128"),
        ({"bitwidth": 8, "scale": 0.2, "offset": -128, "min": -12.8, "max": 12.7}, "contradict each other"),
        ({"bitwidth": 8, "min": 1.0, "max": -1.0}, "above max"),
        ({"bitwidth": 8, "min": 1.0}, "min without max"),
        ({"bitwidth": 8, "scale": 0.1}, "a scale without an offset"),
        ({"bitwidth": 8, "scale": 0.1, "offset": -3, "is_symmetric": "True"}, "symmetric with offset -3"),
        ({"bitwith": 8}, "did you mean 'bitwidth'"),
        ({"scale": 0.1, "offset": 0}, "the bit width is missing"),
        ({"bitwidth": 8, "scale": 0.1, "offset": 0, "is_symmetric": "yes"}, "'yes'"),
    ],
)
def test_faults_of_overrides(row: dict[str, Any], says: str) -> None:
    assert says in one(**row)


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ({"scale": [0.1, 0.2], "offset": [0, 0]}, "2 scales in a PER_TENSOR entry"),
        ({"scale": [0.1, 0.2], "offset": [-128], "enc_type": "PER_CHANNEL"}, "2 scales, but 1 offsets"),
        ({"scale": [0.1, 0.2], "offset": [-3, -4], "enc_type": "PER_CHANNEL"}, "not symmetric"),
        ({"scale": [0.1], "offset": [128]}, "wrong sign; write -128"),
        ({"scale": [0.1], "offset": [0], "is_sym": True}, "no negative value"),
        ({"scale": [0.1], "offset": [-3], "zero_point_shift": [0.5]}, "half steps"),
        (
            {"scale": [0.1], "offset": [-128], "enc_type": "LPBQ", "block_size": 4, "is_sym": True},
            "without compressed_bw",
        ),
        ({"offset": [0]}, "the scale is missing"),
        ({"scale": [0.1], "offset": [0], "enc_type": "PER_ROW"}, "PER_ROW"),
    ],
)
def test_faults_of_version_1(row: dict[str, Any], says: str) -> None:
    assert says in first(**row)


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ({"y_zero_point": -128}, "not one of the codes 0 to 255 of uint8; write 128"),
        ({"output_dtype": "int7"}, "output_dtype is 'int7'"),
        ({"y_scale": [0.1, 0.2]}, "without an axis"),
        ({"y_scale": [0.1, 0.2], "axis": 0, "y_zero_point": [1, 2]}, "not symmetric"),
        ({"y_scale": []}, "without an axis"),
        ({"y_scale": None}, "not a number"),
        ({"per_block_int_scale": [[1]]}, "without per_channel_float_scale"),
    ],
)
def test_faults_of_version_2(row: dict[str, Any], says: str) -> None:
    assert says in second(**row)


def test_all_faults_come_at_once_with_their_lines(tmp_path: Path) -> None:
    path = tmp_path / "bad.encodings"
    path.write_text(
        """{
  "version": "1.0.0",
  "activation_encodings": [
    {"name": "a", "dtype": "INT", "bw": 8, "enc_type": "PER_TENSOR", "is_sym": false,
     "scale": [0.5],
     "offset": [12]},
    {"name": "a", "dtype": "INT", "bw": 8, "enc_type": "PER_TENSOR", "is_sym": false, "scale": [0.5], "offset": [0]},
    {"name": "b", "dtype": "INT",
     "bw": 5, "scale": [1], "offset": [0]}
  ],
  "param_encodings": [
    {"name": "w", "dtype": "INT", "bw": 8, "enc_type": "PER_CHANNEL", "is_sym": true,
     "scale": [
       0.5,
       NaN
     ],
     "offset": [-128, -128]}
  ]
}"""
    )
    with pytest.raises(EncodingsError) as caught:
        read(path)
    lines = [fault.where.removeprefix(f"{path}:").split()[0] for fault in caught.value.faults]
    assert lines == ["6", "7", "9", "15"]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('{"activation_encodings": {}}', "'param_encodings' is missing"),
        ('{"version": "9.9", "encodings": []}', "'9.9' is not known"),
        ('{"version": "2.0.0", "encodings": {}}', "is not a list"),
        ('{"activation_encodings": {"x": [], "x": []}, "param_encodings": {}}', "twice"),
        ("[]", "not a JSON object"),
        ('{"version": "2.0.0", "encodings": [{"output_dtype": "int8"}]}', "without a name"),
    ],
)
def test_faults_of_whole_files(text: str, says: str) -> None:
    assert any(says in fault.what for fault in loads(text)[1])


@pytest.mark.parametrize("text", [b"", b"{", b"\xff\xfe", b"{} {}", b"[" * 100_000])
def test_what_is_not_json(text: bytes) -> None:
    with pytest.raises(EncodingsError, match="not JSON"):
        loads(text)


@pytest.mark.parametrize("value", [None, 1, "x", [], {}, [[]], [None], [{}], {"x": None}, {"x": [None]}, [{"name": 3}]])
@pytest.mark.parametrize("version", VERSIONS[:3])
def test_values_of_any_kind_are_faults_and_no_crash(version: str, value: Any) -> None:
    sections = {"activation_encodings": value, "param_encodings": value, "encodings": value}
    loads(json.dumps({"version": version, **sections}))
    row = {"name": "x", "bw": value, "dtype": value, "scale": value, "offset": value, "output_dtype": value}
    loads(json.dumps({"version": version, **{name: [row] for name in sections}}))
    row = {"name": "x", "bw": 8, "dtype": "INT", "scale": value, "offset": value, "output_dtype": "int8", "axis": value}
    row |= {"y_scale": value, "y_zero_point": value, "block_size": value}
    loads(json.dumps({"version": version, **{name: [row] for name in sections}}))

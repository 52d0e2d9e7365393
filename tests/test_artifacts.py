# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""npukit.artifacts: stamps, DLCs and context binaries, written, read back and damaged."""

from __future__ import annotations

import contextlib
import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from npukit.artifacts import stamp as stamps
from npukit.artifacts.stamp import IoTensor, Stamp, native_stamp
from npukit.errors import ArtifactError
from npukit.qnn.graph import DType, Encoding, Graph, Model, Tensor, TensorKind

STAMP = Stamp(
    npukit_version="0.1.0",
    qairt_build="v2.47.0.260601114230",
    core_api_version="2.36.0",
    needs_qairt="2.47",
    source_name="digits.onnx",
    source_sha256="ab" * 32,
    targets=("sm8650", "qnn-cpu"),
    options={"float_bitwidth": 16, "input_shape": {"x": [1, 3, 8, 8]}, "dry_run": False, "range": 0.5, "none": None},
    inputs=(
        IoTensor("x", "float32", (1, 3, 8, 8), "x", "UFIXED_POINT_8", (0, 2, 3, 1), Encoding((0.1,), (-128,))),
        IoTensor("ids", "int64", (4,), "ids", "INT_32", narrowed=True, graph="g"),
    ),
    outputs=(
        IoTensor(
            "/tmp/y",
            "bfloat16",
            (),
            "y",
            "SFIXED_POINT_8",
            encoding=Encoding((0.1, 0.2), (0, 0), axis=1, bitwidth=4, block_shape=(1, 2), block_scales=(1, 15)),
        ),
    ),
    names={"/tmp/y": "y", "é": "e"},
    verified="yes",
    seed=0,
)


def test_a_stamp_reads_back_and_is_deterministic() -> None:
    text = STAMP.to_json()
    assert Stamp.from_json(text) == STAMP
    assert Stamp.from_json(text).to_json() == text
    shuffled = dataclasses.replace(STAMP, options=dict(reversed(STAMP.options.items())))
    assert shuffled.to_json() == text
    assert text.isascii()


def test_a_stamp_holds_no_paths() -> None:
    stamp = Stamp(
        "0.1.0",
        source_name="/home/someone/models/m.onnx",
        options={
            "model": Path("/srv/someone/m.onnx"),
            "calibration": "/home/someone/d",
            "target": ("a", "b"),
            "n": np.int64(3),
        },
    )
    text = stamp.to_json()
    assert "someone" not in text
    assert json.loads(text)["options"] == {"model": "m.onnx", "calibration": "d", "target": ["a", "b"], "n": 3}
    with pytest.raises(TypeError, match="no JSON form"):
        Stamp("0", options={"x": float("nan")}).to_json()
    with pytest.raises(TypeError, match="object"):
        Stamp("0", options={"x": object()}).to_json()


def changed(**changes: Any) -> str:
    return json.dumps({**json.loads(STAMP.to_json()), **changes})


IO = json.loads(STAMP.to_json())["inputs"][0]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "not JSON"),
        ("[" * 100_000, "stamp cannot be read"),
        ("null", "not an object"),
        ("{}", "format"),
        (b"\xff\xfe\x00", "not JSON"),
        ('{"format": 1, "format": 1}', "repeated"),
        ('{"format": NaN}', "not a number"),
        ('{"format": 2}', "has format 2"),
        ('{"format": 1}', "lacks a field"),
        (changed(surprise=1), "unknown field 'surprise'"),
        (changed(seed=True), r"seed is not an integer"),
        (changed(seed=1 << 70), r"seed is not an integer"),
        (changed(verified="perhaps"), "none of yes, no, failed"),
        (changed(npukit_version="x" * 70_000), "at most 65536 characters"),
        (changed(names={"a": 1}), r"names\['a'\]"),
        (changed(inputs={}), "not a list"),
        (changed(inputs=[{**IO, "perm": [0, 0, 1, 2]}]), r"inputs\[0\].perm"),
        (changed(inputs=[{**IO, "shape": [1, -1, 8, 8]}]), r"inputs\[0\].shape\[1\]"),
        (changed(inputs=[{**IO, "dtype": "__class__"}]), "element type"),
        (changed(inputs=[{**IO, "held_dtype": []}]), "data type"),
        (changed(inputs=[{**IO, "encoding": {"scales": [1], "offsets": []}}]), "1 scales and 0 offsets"),
        (changed(inputs=[{**IO, "encoding": {"scales": [1e999], "offsets": [0]}}]), "Infinity is not a number"),
        (changed(options=[]), "not an object"),
        (changed(options={}).replace("{}", '{"a": 1e999}'), "not finite"),
    ],
)
def test_hostile_stamps_are_refused_with_a_sentence(text: str | bytes, message: str) -> None:
    with pytest.raises(ArtifactError, match=message) as caught:
        Stamp.from_json(text, where="m.dlc")
    assert "m.dlc" in str(caught.value)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=200, deadline=None)
@given(st.sampled_from(sorted(json.loads(STAMP.to_json()))), JSON)
def test_any_value_in_any_field_is_read_or_refused(name: str, value: Any) -> None:
    with contextlib.suppress(ArtifactError):
        assert isinstance(Stamp.from_json(changed(**{name: value})), Stamp)


def test_native_stamp() -> None:
    x = Tensor("x", DType.UFIXED_POINT_8, (1, 4), TensorKind.APP_WRITE, Encoding.per_tensor(0.1, -3))
    y = Tensor("y", DType.INT_32, (2,), TensorKind.APP_READ)
    stamp = native_stamp(Model({"g": Graph("g", [x], [y])}))
    assert stamp.inputs == (IoTensor("x", "uint8", (1, 4), "x", "UFIXED_POINT_8", encoding=x.encoding),)
    assert stamp.outputs == (IoTensor("y", "int32", (2,), "y", "INT_32"),)
    assert Stamp.from_json(stamp.to_json()) == stamp
    two = native_stamp(Model({"g": Graph("g", [x], [y]), "h": Graph("h", [x], [y])}))
    assert [io.graph for io in two.inputs] == ["g", "h"]


def test_every_stamp_field_has_a_reader() -> None:
    for kind, readers in (
        (Stamp, stamps._STAMP_READERS),
        (IoTensor, stamps._IO_READERS),
        (Encoding, stamps._ENCODING_READERS),
    ):
        assert {f.name for f in dataclasses.fields(kind)} == set(readers)

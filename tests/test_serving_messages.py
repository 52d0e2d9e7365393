# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""Messages: openpi's bytes, round trips, and everything that is refused."""

from __future__ import annotations

import contextlib
import datetime
import pickle
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

msgpack = pytest.importorskip("msgpack")

from npukit.serving import messages  # noqa: E402
from npukit.serving.messages import MessageError, pack, unpack  # noqa: E402

# What openpi-client 0.1.2 writes for numpy.arange(3, dtype="f4").
ARANGE = bytes.fromhex(
    "84c40b5f5f6e6461727261795f5fc3c40464617461c40c000000000000803f00000040c4056474797065a33c6634c40573686170659103"
)

DTYPES = st.sampled_from([np.dtype(order + name) for name in sorted(messages.DTYPES) for order in "<>"])
ARRAYS = DTYPES.flatmap(lambda d: hnp.arrays(d, hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4)))
SCALARS = DTYPES.flatmap(lambda d: hnp.arrays(d.newbyteorder("="), ())).map(lambda a: a[()])
LEAVES = st.one_of(
    st.none(), st.booleans(), st.integers(-(2**63), 2**64 - 1), st.floats(allow_nan=False), st.text(max_size=20),
    st.binary(max_size=20), ARRAYS, SCALARS,
)  # fmt: skip
KEYS = st.text(max_size=10).filter(lambda key: key != "__ndarray__")
VALUES = st.recursive(
    LEAVES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=3), max_leaves=12
)


def same(one: Any, other: Any) -> bool:
    if isinstance(one, np.ndarray):
        fits = isinstance(other, np.ndarray) and one.dtype == other.dtype and one.shape == other.shape
        return fits and one.tobytes() == other.tobytes()
    if isinstance(one, np.generic) and not isinstance(one, np.float64):  # float64 is a Python float to msgpack
        return type(one) is type(other) and np.array_equal(one, other, equal_nan=True)
    if isinstance(one, dict):
        return isinstance(other, dict) and list(one) == list(other) and all(same(one[k], other[k]) for k in one)
    if isinstance(one, list):
        return isinstance(other, list) and len(one) == len(other) and all(map(same, one, other))
    return bool(one == other) or (one != one and other != other)


def depth(value: Any) -> int:
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else None
    return 0 if inner is None else 1 + max(map(depth, inner), default=0)


def test_an_array_has_openpis_bytes() -> None:
    assert pack(np.arange(3, dtype=np.float32)) == ARANGE
    found = unpack(ARANGE)
    assert found.tolist() == [0, 1, 2]
    assert found.dtype == np.float32
    assert not found.flags.writeable


def test_a_scalar_has_openpis_bytes() -> None:
    wanted = msgpack.packb({b"__npgeneric__": True, b"data": 3, b"dtype": "<i8"})
    assert pack(np.int64(3)) == wanted
    assert pack(np.float64(0.5)) == msgpack.packb(0.5)


def test_arrays_are_sent_in_c_order() -> None:
    array = np.arange(6).reshape(2, 3).T
    assert unpack(pack(array)).tolist() == array.tolist()


@settings(deadline=None, max_examples=200)
@given(VALUES)
def test_what_is_packed_comes_back(value: Any) -> None:
    message = pack(value)
    if depth(value) > messages.MOST_DEPTH:
        with pytest.raises(MessageError, match="deep"):
            unpack(message)
    else:
        assert same(value, unpack(message))


@settings(deadline=None, max_examples=500)
@given(st.binary(max_size=200))
def test_any_bytes_are_a_value_or_a_message_error(data: bytes) -> None:
    with contextlib.suppress(MessageError):
        unpack(data)


@settings(deadline=None, max_examples=500)
@given(st.data())
def test_a_changed_message_is_a_value_or_a_message_error(data: st.DataObject) -> None:
    message = bytearray(pack({"a": np.zeros((2, 3), np.uint8), "b": np.float32(1), "c": ["x", 1]}))
    for _ in range(data.draw(st.integers(1, 4))):
        message[data.draw(st.integers(0, len(message) - 1))] = data.draw(st.integers(0, 255))
    with contextlib.suppress(MessageError):
        unpack(bytes(message))


def array(**fields: Any) -> bytes:
    """An array of float32 [2, 3] with some fields changed; None takes one away."""
    made = {b"__ndarray__": True, b"data": bytes(24), b"dtype": "<f4", b"shape": [2, 3]}
    made.update({name.encode(): value for name, value in fields.items()})
    return msgpack.packb({k: v for k, v in made.items() if v is not None})


def number(**fields: Any) -> bytes:
    made = {b"__npgeneric__": True, b"data": 3, b"dtype": "<i4"}
    made.update({name.encode(): value for name, value in fields.items()})
    return msgpack.packb(made)


REFUSED = {
    "empty": (b"", "incomplete"),
    "half": (ARANGE[:-5], "incomplete"),
    "more than one": (ARANGE + b"\0", "1 bytes follow"),
    "unused byte": (b"\xc1", "not valid msgpack"),
    "announced list": (b"\xdd\xff\xff\xff\xff", "max_array_len"),
    "announced map": (b"\xdf\xff\xff\xff\xff", "max_map_len"),
    "announced bytes": (b"\xc6\xff\xff\xff\xff", "not valid"),
    "announced text": (b"\xdb\xff\xff\xff\xff", "not valid"),
    "no text": (b"\xa2\xff\xff", "utf-8"),
    "long text": (msgpack.packb("x" * 70_000), "max_str_len"),
    "deep lists": (b"\x91" * 20 + b"\xc0", "deep"),
    "deep maps": (b"\x81\xa1a" * 20 + b"\xc0", "deep"),
    "very deep": (b"\x91" * 100_000, "deep"),
    "many values": (msgpack.packb([[0] * 1000] * 20), "more than 10000 values"),
    "many maps": (msgpack.packb([{}] * 1000 + [[{}] * 1000] * 20), "max_array_len|more than"),
    "key of a number": (msgpack.packb({1: 2}), "keys are texts"),
    "key of a list": (b"\x81\x91\x01\x03", "keys are texts"),
    "key of bytes": (msgpack.packb({b"a": 2}), "binary key"),
    "key twice": (b"\x82\xa1a\x01\xa1a\x02", "twice"),
    "key of text": (msgpack.packb({"__ndarray__": True}), "must be binary"),
    "extension": (msgpack.packb(msgpack.ExtType(5, b"a")), "extension of type 5"),
    "time stamp": (msgpack.packb([msgpack.Timestamp(1)]), "Timestamp"),
    "objects": (array(dtype="|O", data=pickle.dumps([1])), "dtype '|O' is not read"),
    "complex": (array(dtype="<c8", shape=[3]), "dtype '<c8'"),
    "structure": (array(dtype="|V4"), "dtype"),
    "texts": (array(dtype="<U1"), "dtype"),
    "dates": (array(dtype="<M8"), "dtype"),
    "long double": (array(dtype="<f16"), "dtype"),
    "byte order of the machine": (array(dtype="=f4"), "dtype"),
    "several dtypes": (array(dtype="f4,f4"), "dtype"),
    "dtype of bytes": (array(dtype=b"<f4"), "dtype"),
    "too little data": (array(shape=[2, 4]), r"shape \[2, 4\] and dtype float32 takes 32 bytes; its data has 24"),
    "too much data": (array(shape=[2, 2]), "takes 16 bytes"),
    "overflow": (array(shape=[1 << 62, 4]), "takes"),
    "huge beside nothing": (array(shape=[1 << 40, 0, 1 << 40], data=b""), "too large"),
    "negative": (array(shape=[-2, -3]), "whole numbers"),
    "extent of a float": (array(shape=[2.0, 3]), "whole numbers"),
    "extent of a truth": (array(shape=[True, 6]), "whole numbers"),
    "shape of a number": (array(shape=6), "whole numbers"),
    "many axes": (array(shape=[1] * 9, data=bytes(4)), "9 axes"),
    "data of a text": (array(data="x" * 24), "must be bytes"),
    "data of a list": (array(data=[0] * 24), "must be bytes"),
    "without shape": (array(shape=None), "must have the keys"),
    "another key": (array(kind=b"O"), "must have the keys"),
    "not true": (array(__ndarray__=1), "must be true"),
    "booleans of 2": (array(dtype="|b1", data=b"\0\1\2", shape=[3]), "0 and 1"),
    "number out of range": (number(data=2**31), "outside"),
    "number of a float": (number(data=1.5), "type float"),
    "number of a text": (number(data="1"), "type str"),
    "number beyond its type": (number(dtype="<f2", data=1e6), "outside"),
    "number of objects": (number(dtype="|O"), "dtype"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused_says_why(name: str) -> None:
    data, text = REFUSED[name]
    with pytest.raises(MessageError, match=text):
        unpack(data)


def test_a_message_has_a_longest_length() -> None:
    assert unpack(ARANGE, most_bytes=len(ARANGE)).size == 3
    with pytest.raises(MessageError, match="more than the 54 allowed"):
        unpack(ARANGE, most_bytes=54)


@pytest.mark.parametrize(
    "value", [np.array([None]), np.array(["a"]), np.complex64(1), object(), {"a": {1, 2}}, 2**64,
              np.array(1, "M8[s]"), datetime.datetime(2026, 1, 1), np.zeros(1, "f4,f4")],
)  # fmt: skip
def test_what_cannot_be_packed_says_so(value: Any) -> None:
    with pytest.raises(MessageError, match="cannot be put into a message"):
        pack(value)


def test_no_module_of_serving_can_unpickle() -> None:
    from pathlib import Path

    import npukit.serving

    for path in Path(str(npukit.serving.__file__)).parent.glob("*.py"):
        text = path.read_text()
        assert "import pickle" not in text
        assert "allow_pickle" not in text

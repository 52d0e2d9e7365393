# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
import math

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper
from onnx.reference import ReferenceEvaluator

from npukit.errors import InputError, UsageError
from npukit.qnn.graph import DType, Encoding
from npukit.quantization.ranges import (
    MIN_RANGE,
    Range,
    codes,
    covered,
    dtype_of,
    encoding,
    fake,
    parse_steps,
    reals,
)


def test_the_guides_worked_example() -> None:
    found = encoding(Range(-1.8, 0.5), 8)
    assert found.scale == pytest.approx(0.009020, abs=5e-7)
    assert found.offset == -200
    values = np.array([-1.8, -1.0, 0.0, 0.5], np.float32)
    assert codes(values, found, np.uint8).tolist() == [0, 89, 200, 255]
    assert fake(values, found, DType.UFIXED_POINT_8) == pytest.approx([-1.8039, -1.0011, 0.0, 0.4961], abs=6e-4)
    ends = covered(found, DType.UFIXED_POINT_8)
    assert (ends.low, ends.high) == pytest.approx((-1.803922, 0.496078), abs=1e-6)


@pytest.mark.parametrize(
    ("given_range", "ends", "zero"),
    [((5.0, 10.0), (0.0, 10.0), 0), ((-20.0, -6.0), (-20.0, 0.0), 255), ((-5.1, 5.1), (-5.12, 5.08), 128)],
)
def test_the_guides_ranges(given_range: tuple[float, float], ends: tuple[float, float], zero: int) -> None:
    found = encoding(Range(*given_range), 8)
    wide = covered(found, DType.UFIXED_POINT_8)
    assert (wide.low, wide.high) == pytest.approx(ends, rel=1e-6)
    assert found.offset == -zero


def test_the_guides_symmetric_channel() -> None:
    # Its example of per-channel overrides: max, scale and offset of one channel.
    found = encoding(Range(-0.6, 0.7011175155639648), 8, symmetric=True)
    assert found.scale == pytest.approx(0.005520610358771377, rel=1e-6)
    assert found.offset == -128
    assert encoding(Range(-0.6, 0.7), 8, symmetric=True, signed=True).offset == 0


@pytest.mark.parametrize("bits", [4, 8, 16])
@pytest.mark.parametrize("point", [0.0, 1e-7, -1e-7, 1e-30])
def test_least_width(bits: int, point: float) -> None:
    found = encoding(Range(min(point, 0), max(point, 0)), bits)
    assert found.scale * (2**bits - 1) == pytest.approx(MIN_RANGE, rel=1e-6)
    assert found.bitwidth == (4 if bits == 4 else 0)


def test_restricted_steps() -> None:
    assert parse_steps("-0x80 0x7F") == (-128, 127)
    assert parse_steps("-0x8000 0x7F7F") == (-32768, 32639)
    found = encoding(Range(-1.0, 3.0), 16, steps=parse_steps("-0x8000 0x7F7F"))
    assert found.scale == np.float32(6.0 / (32768 + 32639))
    assert found.offset == -32768
    assert encoding(Range(-1.0, 3.0), 8, steps=(-128, 127), signed=True) == Encoding.per_tensor(np.float32(6 / 255))


@pytest.mark.parametrize("text", ["", "-0x80", "0x10 0x7F", "-0x80 zz", "-0x80 0x7F 1", "-0x80 0x0"])
def test_steps_that_cannot_be(text: str) -> None:
    with pytest.raises(UsageError, match="steps"):
        parse_steps(text)


def test_steps_must_fit_the_bits() -> None:
    with pytest.raises(UsageError, match="8 bits"):
        encoding(Range(-1, 1), 8, steps=(-32768, 127))


@pytest.mark.parametrize("ends", [(math.nan, 1.0), (0.0, math.inf), (2.0, 1.0)])
def test_no_range(ends: tuple[float, float]) -> None:
    with pytest.raises(InputError, match="range"):
        Range(*ends)


def test_what_has_no_code() -> None:
    one = Encoding.per_tensor(1.0, -128)
    with pytest.raises(InputError, match="NaN"):
        codes(np.array([1.0, np.nan]), one, np.uint8)
    assert codes(np.array([-np.inf, np.inf]), one, np.uint8).tolist() == [0, 255]
    with pytest.raises(UsageError, match="codes"):
        dtype_of(np.float32)
    with pytest.raises(UsageError, match="7 bits"):
        encoding(Range(0, 1), 7)
    assert codes(np.zeros((0, 3)), one, np.uint8).shape == (0, 3)


def test_merge() -> None:
    assert Range(-1, 2).merge(Range(0, 3)) == Range(-1, 3)


def quantize_linear(values: np.ndarray, found: Encoding, dtype: np.dtype, axis: int | None) -> np.ndarray:
    zero = np.asarray([-o for o in found.offsets], dtype)
    scale = np.asarray(found.scales, np.float32)
    if axis is None:
        zero, scale = zero.reshape(()), scale.reshape(())
    node = helper.make_node("QuantizeLinear", ["x", "s", "z"], ["y"], axis=1 if axis is None else axis)
    kinds = [helper.np_dtype_to_tensor_dtype(np.dtype(d)) for d in (np.float32, dtype)]
    graph = helper.make_graph(
        [node],
        "g",
        [
            helper.make_tensor_value_info("x", kinds[0], values.shape),
            helper.make_tensor_value_info("s", kinds[0], scale.shape),
            helper.make_tensor_value_info("z", kinds[1], zero.shape),
        ],
        [helper.make_tensor_value_info("y", kinds[1], values.shape)],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)])
    onnx.checker.check_model(model)
    return ReferenceEvaluator(model).run(None, {"x": values, "s": scale, "z": zero})[0]


@pytest.mark.parametrize("dtype", [np.uint8, np.int8, np.uint16, np.int16])
def test_codes_are_those_of_quantize_linear(dtype: type) -> None:
    signed, bits = np.dtype(dtype).kind == "i", np.dtype(dtype).itemsize * 8
    values = np.random.default_rng(1).normal(size=(7, 500)).astype(np.float32)
    for symmetric in (False, True):
        found = encoding(Range(-2.5, 3.1), bits, symmetric=symmetric, signed=signed)
        expected = quantize_linear(values, found, np.dtype(dtype), None)
        assert np.array_equal(codes(values, found, dtype), expected)
    scales = tuple(float(np.float32(s)) for s in np.linspace(0.001, 0.03, 7))
    found = Encoding(scales, (0,) * 7, axis=0)
    assert np.array_equal(codes(values, found, dtype), quantize_linear(values, found, np.dtype(dtype), 0))


def test_halves_go_to_the_even_code() -> None:
    values = np.array([0.5, 1.5, 2.5, -0.5, -1.5])
    assert codes(values, Encoding.per_tensor(1.0), np.int8).tolist() == [0, 2, 2, 0, -2]


def test_32_bits_are_exact() -> None:
    found = Encoding.per_tensor(float(np.float32(1e-6)))
    values = np.array([1.2345678, -2.0])
    expected = np.rint(values / found.scale)
    assert codes(values, found, np.int32).tolist() == expected.tolist()


def test_limits() -> None:
    found = Encoding.per_tensor(1.0)
    assert codes(np.array([-200.0, 200.0]), found, np.int8, limits=(-100, 99)).tolist() == [-100, 99]
    assert codes(np.array([-200.0, 200.0]), Encoding.per_tensor(1.0, bitwidth=4), np.int8).tolist() == [-8, 7]


finite = st.floats(-1e30, 1e30)


@settings(max_examples=200, deadline=None)
@given(finite, finite, st.sampled_from([4, 8, 16]), st.booleans(), st.booleans())
def test_what_holds_for_every_range(a: float, b: float, bits: int, symmetric: bool, signed: bool) -> None:
    bounds = Range(min(a, b), max(a, b))
    found = encoding(bounds, bits, symmetric=symmetric, signed=signed)
    dtype = np.dtype(f"{'int' if signed else 'uint'}{max(bits, 8)}")
    kind = dtype_of(dtype)
    wide = covered(found, kind)
    slack = found.scale * (0.5 + 2**bits * 1e-6)
    assert wide.low <= min(bounds.low, 0) + slack
    assert wide.high >= max(bounds.high, 0) - slack
    assert wide.high - wide.low >= MIN_RANGE * 0.999
    assert float(np.float32(found.scale)) == found.scale > 0
    assert fake(np.zeros(1), found, dtype)[0] == 0
    values = np.linspace(bounds.low, bounds.high, 41)
    taken = codes(values, found, dtype).astype(np.int64)
    low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)
    assert low <= taken.min()
    assert taken.max() <= high
    assert (np.diff(taken) >= 0).all()
    back = reals(taken.astype(dtype), found)
    assert np.abs(back - values).max() <= slack + np.abs(values).max() * 1e-6
    assert np.array_equal(codes(back, found, dtype), taken)

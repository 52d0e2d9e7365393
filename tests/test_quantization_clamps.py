# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""Clamps of 16 bits, which HTP loses behind many ops: their ranges, and what simulation and emulator make of them."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from benchmarks import simulation_run
from npukit.qnn.graph import DType, Encoding, Graph, Op, Param, Tensor, TensorKind
from npukit.quantization.assign import Dummies, Legal, Plan, assign
from npukit.quantization.calibrated import Calibrated, Scheme
from npukit.quantization.calibration import Calibration
from npukit.quantization.capabilities import unreliable
from npukit.quantization.ranges import covered
from npukit.quantization.roles import clamp_limits
from npukit.quantization.simulation import Simulation
from npukit.raising import as_computed

U16, SHAPE = DType.UFIXED_POINT_16, (4, 16)


def _encoding(low: float, high: float, bits: int = 16) -> Encoding:
    step = (high - low) / ((1 << bits) - 1)
    return Encoding.per_tensor(step, round(low / step))


def _clamp(kind: str, x: Tensor, y: Tensor) -> Op:
    bounds = {"min_value": Param(DType.FLOAT_32, 0.0), "max_value": Param(DType.FLOAT_32, 6.0)}
    params = {
        "ReluMinMax": bounds,
        "ElementWiseNeuron": {"operation": Param(DType.UINT_32, 5), **bounds},
        "Relu6": {},
        "Relu": {},
    }[kind]
    return Op("clamp", kind, [x], [y], params)


def _pair(first: str, clamp: str = "ReluMinMax", bits: int = 16, output: TensorKind = TensorKind.NATIVE) -> Graph:
    """An op and a clamp to 0..6 behind it, in codes of -8 to 16."""
    dtype = U16 if bits == 16 else DType.UFIXED_POINT_8
    wide = _encoding(-8, 16, bits)
    x = Tensor("x", dtype, SHAPE, TensorKind.APP_WRITE, _encoding(-4, 4, bits))
    between = Tensor("m", dtype, SHAPE, output, wide)
    y = Tensor("y", dtype, SHAPE, TensorKind.APP_READ, wide)
    random = np.random.default_rng(3)
    inputs: list[Tensor | None] = [x]
    if first == "FullyConnected":
        scales = Encoding((0.02,) * 16, (0,) * 16, axis=0)
        data = random.integers(-127, 128, (16, 16)).astype(np.int8)
        inputs.append(Tensor("w", DType.SFIXED_POINT_8, (16, 16), TensorKind.STATIC, scales, data))
    else:
        reach = (0.3, 2.0) if first == "ElementWiseDivide" else (-9.0, 9.0)
        encoding = _encoding(0 if first == "ElementWiseDivide" else -9, 9, bits)
        values = random.uniform(*reach, 16) / encoding.scale - encoding.offset
        inputs.append(Tensor("k", dtype, (16,), TensorKind.STATIC, encoding, np.rint(values).astype(dtype.numpy)))
    ops = [Op("first", first, inputs, [between]), _clamp(clamp, between, y)]
    return Graph("g", [x], [between, y] if output is TensorKind.APP_READ else [y], ops)


def _types(graph: Graph) -> list[str]:
    return [op.type for op in as_computed(graph).ops]


def test_a_lost_clamp_is_left_out_of_what_is_computed() -> None:
    for clamp in ("ReluMinMax", "Relu6", "ElementWiseNeuron"):
        assert _types(_pair("ElementWiseAdd", clamp)) == ["ElementWiseAdd", "Convert"]
        assert _types(_pair("ElementWiseAdd", clamp, bits=8)) == ["ElementWiseAdd", clamp]
    assert _types(_pair("ElementWiseAdd", "Relu")) == ["ElementWiseAdd", "Relu"]
    assert _types(_pair("ElementWiseDivide")) == ["ElementWiseDivide", "ReluMinMax"]
    assert _types(_pair("ElementWiseAdd", output=TensorKind.APP_READ)) == ["ElementWiseAdd", "ReluMinMax"]
    twice = _pair("ElementWiseAdd")
    twice.ops.append(Op("again", "Reshape", [twice.ops[0].outputs[0]], [Tensor("z", U16, SHAPE)]))
    assert _types(twice)[1] == "ReluMinMax", "what two ops read is made"


@pytest.fixture
def _emulator() -> Iterator[None]:
    simulation_run.close()
    yield
    simulation_run.close()


@pytest.mark.native
@pytest.mark.usefixtures("_emulator")
@pytest.mark.parametrize("arch", [68, 73])
@pytest.mark.parametrize(
    ("first", "lost"),
    [
        ("FullyConnected", True),
        ("ElementWiseAdd", True),
        ("ElementWiseSubtract", True),
        ("ElementWiseMultiply", True),
        ("ElementWiseDivide", False),
    ],
)
def test_the_emulator_loses_it_where_the_simulation_does(first: str, lost: bool, arch: int) -> None:
    graph = _pair(first)
    feeds = {"x": np.random.default_rng(4).integers(0, 65536, SHAPE).astype(np.uint16)}
    ours = Simulation(graph, "qdq", threads=1).run(feeds)["y"].astype(int)
    with simulation_run.emulated(graph, arch) as emulator:
        theirs = emulator(feeds)["y"].astype(int)
    encoding = graph.outputs[0].encoding
    assert encoding is not None
    reals = (theirs + encoding.offset) * encoding.scale
    assert (reals.max() > 7) == lost
    assert (reals.min() < -1) == lost
    assert np.abs(ours - theirs).max() <= 30  # V68 sums products of 16 bits more coarsely; a lost clamp makes 5,000


def _real(name: str, kind: TensorKind = TensorKind.NATIVE) -> Tensor:
    return Tensor(name, DType.FLOAT_32, SHAPE, kind)


def _calibrated(clamp: str, high: float) -> tuple[Graph, Calibrated]:
    """x + x -> clamp -> reshape -> y, with values of x up to `high` / 2."""
    x, y = _real("x", TensorKind.APP_WRITE), _real("y", TensorKind.APP_READ)
    a, b, c = _real("a"), _real("b"), _real("c")
    ops = [Op("add", "ElementWiseAdd", [x, x], [a]), _clamp(clamp, a, b), Op("move", "Reshape", [b], [c])]
    graph = Graph("g", [x], [y], [*ops, Op("tanh", "Tanh", [c], [y])])
    calibration = Calibration(graph, threads=1)
    calibration.update({"x": np.linspace(-high, high / 2, 64, dtype=np.float32).reshape(SHAPE)})
    return graph, Calibrated(calibration, Scheme())


@pytest.mark.parametrize(("clamp", "seen", "wanted"), [("ReluMinMax", 9, 6), ("Relu6", 5, 6), ("Relu", 9, 13.5)])
def test_ranges_of_16_bits_have_room_but_not_beyond_the_clamp(clamp: str, seen: float, wanted: float) -> None:
    graph, encodings = _calibrated(clamp, seen)
    for tensor in (graph.ops[1].outputs[0], graph.ops[2].outputs[0]):
        reach = covered(encodings.activation(tensor, 16), U16)
        assert reach.low == 0
        assert reach.high == pytest.approx(wanted, rel=1e-4)


def test_a_clamp_that_its_codes_do_not_make_runs_in_float() -> None:
    within = _pair("ElementWiseAdd").ops[1]
    assert "does not clamp" in unreliable(within)
    within.outputs[0].encoding = _encoding(0, 6)
    assert unreliable(within) == ""
    graph, _ = _calibrated("ReluMinMax", 9)
    legal = Legal({"sm8650": lambda op: None})
    made = assign(graph, Plan(activations=16), Dummies(), legal)  # -0.5 to 0.5, below the clamp's zero
    assert made.precisions["clamp"] == 0
    assert "does not clamp" in made.refused["clamp"]
    assert assign(graph, Plan(activations=8), Dummies(), legal).precisions["clamp"] == 8


def test_limits_of_clamps() -> None:
    x, y = _real("x"), _real("y")
    found = {kind: clamp_limits(_clamp(kind, x, y)) for kind in ("Relu", "Relu6", "ReluMinMax", "ElementWiseNeuron")}
    assert found == {"Relu": (0, np.inf), "Relu6": (0, 6), "ReluMinMax": (0, 6), "ElementWiseNeuron": (0, 6)}
    assert clamp_limits(Op("r", "ElementWiseNeuron", [x], [y], {"operation": Param(DType.UINT_32, 4)})) == (0, np.inf)
    assert clamp_limits(Op("t", "Tanh", [x], [y])) is None

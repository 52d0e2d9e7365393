# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""Calibration: what is left out of a histogram, and the order in which arrays are observed, change no range."""

from __future__ import annotations

import numpy as np
import pytest

from npukit.errors import InputError
from npukit.qnn.graph import DType, Graph, Op, Param, Tensor, TensorKind
from npukit.quantization import calibration as module
from npukit.quantization.calibration import Calibration
from npukit.quantization.observers import ChannelObserver, Expected, observed_range


def tensor(name: str, *shape: int, kind: TensorKind = TensorKind.NATIVE) -> Tensor:
    return Tensor(name, DType.FLOAT_32, shape, kind)


def test_only_what_decides_an_encoding_is_observed() -> None:
    """x + x -> Relu -> Reshape -> Softmax; (x + x) -> Concat with the Relu's result."""
    x = tensor("x", 1, 4, 4, kind=TensorKind.APP_WRITE)
    added, clamped, turned = tensor("added", 1, 4, 4), tensor("clamped", 1, 4, 4), tensor("turned", 1, 16)
    doubled, joined = tensor("doubled", 1, 4, 4), tensor("joined", 1, 8, 4, kind=TensorKind.APP_READ)
    soft = tensor("soft", 1, 16, kind=TensorKind.APP_READ)
    ops = [
        Op("add", "ElementWiseAdd", [x, x], [added]),
        Op("relu", "Relu", [added], [clamped]),
        Op("reshape", "Reshape", [clamped], [turned]),
        Op("softmax", "Softmax", [turned], [soft]),
        Op("multiply", "ElementWiseMultiply", [x, x], [doubled]),
        Op("concat", "Concat", [doubled, clamped], [joined], {"axis": Param(DType.UINT_32, 1)}),
    ]
    calibration = Calibration(Graph("g", [x], [joined, soft], ops))
    values = np.random.default_rng(0).standard_normal((1, 4, 4)).astype(np.float32)
    calibration.update({"x": values})
    assert set(calibration.observers) == {"x", "clamped", "joined", "soft"}
    assert calibration.observer("turned") is calibration.observers["clamped"]
    assert calibration.observer("added") is None  # the Relu cuts it
    assert calibration.observers["clamped"].high == 2 * values.max()
    assert calibration.observers["joined"].high == max((values**2).max(), 2 * values.max())
    assert calibration.peaks["turned"].greatest == 2 * values.max()  # fetched for this alone
    again = Calibration(calibration.graph)
    again.restore(calibration.state())
    assert again.observer("turned") is again.observers["clamped"]
    assert again.observers["joined"].high == calibration.observers["joined"].high
    with pytest.raises(InputError, match="state of this calibration"):
        Calibration(relu_graph((1, 4))).restore(calibration.state())


def relu_graph(shape: tuple[int, ...]) -> Graph:
    x = Tensor("x", DType.FLOAT_32, shape, TensorKind.APP_WRITE)
    y = Tensor("y", DType.FLOAT_32, shape, TensorKind.APP_READ)
    return Graph("g", [x], [y], [Op("relu", "Relu", [x], [y])])


@pytest.mark.parametrize("shape", [(1, 112, 112, 96), (1, 197, 192), (3, 197, 197), (1, 7, 11), (1, 4, 64, 64)])
def test_a_stride_lets_every_channel_have_its_turn(shape: tuple[int, ...]) -> None:
    stride = module._stride(shape)
    size = int(np.prod(shape))
    assert 1 / 3 <= size / stride / module._COUNTED <= 3 or size <= module._COUNTED
    for extent in shape:
        assert len(np.unique(np.arange(0, size, stride) % extent)) == extent


def test_a_histogram_of_some_elements_gives_the_range_of_all(monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(3)
    graph = relu_graph((1, 56, 56, 24))
    samples = [random.laplace(size=(1, 56, 56, 24)).astype(np.float32) for _ in range(16)]
    found = Calibration(graph, channels=[graph.inputs[0]])
    monkeypatch.setattr(module, "_COUNTED", 1 << 30)
    whole = Calibration(graph)
    for sample in samples:
        found.update({"x": sample})
        whole.update({"x": sample})
    some, every = found.observers["x"], whole.observers["x"]
    assert some.sampled < every.sampled / 2
    assert (some.low, some.high, some.count) == (every.low, every.high, every.count)
    assert observed_range(some, "min-max", 8) == observed_range(every, "min-max", 8)
    judge = Expected.of(every, 8, False)
    assert judge is not None
    near, best = (observed_range(observer, "mse", 8) for observer in (some, every))
    errors = judge.errors(np.array([near.low, best.low]), np.array([near.high, best.high]))
    assert errors[0] <= 1.05 * errors[1]
    stacked = np.concatenate(samples).reshape(-1, 24).astype(np.float64)
    seen = found.channels["x"]
    np.testing.assert_allclose(seen.mean, stacked.mean(axis=0), atol=1e-6)
    np.testing.assert_allclose(seen.power, (stacked**2).mean(axis=0), rtol=1e-6)
    np.testing.assert_array_equal(seen.low, stacked.min(axis=0).astype(np.float32))


@pytest.mark.parametrize("channels", [1, 3, 24, 700])
def test_channels_side_by_side_are_kept_apart(channels: int) -> None:
    random = np.random.default_rng(channels)
    values = random.standard_normal((1001, channels)).astype(np.float32) * np.arange(1, channels + 1, dtype=np.float32)
    values[17, 0] = np.nan
    values[900, channels - 1] = 3e30  # its square is no float32
    observer = ChannelObserver(channels)
    observer.update(values)
    wide = values.astype(np.float64)
    np.testing.assert_array_equal(observer.high, np.nanmax(values, axis=0))
    np.testing.assert_array_equal(observer.count, np.isfinite(values).sum(axis=0))
    np.testing.assert_allclose(observer.mean, np.nanmean(wide, axis=0), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(observer.power, np.nanmean(wide**2, axis=0), rtol=1e-5)
    assert observer.bad == 1


def test_nan_in_a_large_tensor_is_named() -> None:
    graph = relu_graph((1, 64, 64, 16))
    calibration = Calibration(graph)
    sample = np.ones((1, 64, 64, 16), np.float32)
    sample[0, 5, 5, 5] = np.nan
    with pytest.raises(InputError, match="NaN in tensor 'x'"):
        calibration.update({"x": sample})

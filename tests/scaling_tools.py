# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""Small float graphs, op by op, for the tests of what is done to weights before quantization."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from networks.catalogue import NETWORKS, build
from npukit.frontends.onnx import LoadOptions, load
from npukit.lowering import LowerOptions, lower
from npukit.qnn.graph import Array, DType, Graph, Op, Param, Tensor, TensorKind
from npukit.quantization.assign import Legal, Plan, assign
from npukit.quantization.calibrated import Calibrated, Scheme
from npukit.quantization.calibration import Calibration
from npukit.quantization.roles import Groups, weight_axis
from npukit.quantization.simulation import Simulation
from npukit.targets import resolve


class Sketch:
    """A graph under construction with random weights; the last tensor is the output."""

    def __init__(self, *shape: int, seed: int = 3) -> None:
        self.random = np.random.default_rng(seed)
        self.graph = Graph("sketch", [Tensor("x", DType.FLOAT_32, shape, TensorKind.APP_WRITE)])
        self.x = self.graph.inputs[0]
        self.count = 0

    def static(self, values: Any) -> Tensor:
        data = np.asarray(values, np.float32)
        self.count += 1
        return Tensor(f"c{self.count}", DType.FLOAT_32, data.shape, TensorKind.STATIC, data=data)

    def op(self, kind: str, shape: Sequence[int], *inputs: Tensor, **params: Any) -> Tensor:
        number = len(self.graph.ops)
        output = Tensor(f"t{number}", DType.FLOAT_32, tuple(shape))
        self.graph.ops.append(
            Op(f"{kind}_{number}", kind, list(inputs), [output], {k: _param(v) for k, v in params.items()})
        )
        return output

    def conv(
        self, x: Tensor, to: int, kernel: int = 1, *, stride: int = 1, group: int = 1, bias: bool = True
    ) -> Tensor:
        inner = x.shape[-1] // group
        weight = self.uneven(kernel, kernel, inner, to) / np.sqrt(kernel * kernel * inner)
        extents = [(e + 2 * (kernel // 2) - kernel) // stride + 1 for e in x.shape[1:3]]
        constants = [self.static(weight), *([self.static(self.random.normal(size=to))] if bias else [])]
        return self.op(
            "Conv2d", (x.shape[0], *extents, to), x, *constants, group=group, stride=[stride] * 2,
            pad_amount=[[kernel // 2] * 2] * 2, dilation=[1, 1],
        )  # fmt: skip

    def depthwise(self, x: Tensor, times: int = 1, kernel: int = 3) -> Tensor:
        to = x.shape[-1] * times
        constants = self.static(self.uneven(kernel, kernel, 1, to) / kernel), self.static(self.random.normal(size=to))
        pads = [[kernel // 2] * 2] * 2
        shape = (*x.shape[:3], to)
        return self.op("DepthWiseConv2d", shape, x, *constants, stride=[1, 1], pad_amount=pads, dilation=[1, 1])

    def dense(self, x: Tensor, to: int, *, bias: bool = True) -> Tensor:
        weight = self.random.normal(size=(to, x.shape[-1])) / np.sqrt(x.shape[-1])
        constants = [self.static(weight), *([self.static(self.random.normal(size=to) * 0.1)] if bias else [])]
        return self.op("FullyConnected", (*x.shape[:-1], to), x, *constants)

    def norm(self, x: Tensor, gamma: Array | None = None) -> Tensor:
        size = x.shape[-1]
        scale = self.random.uniform(0.5, 1.5, size) if gamma is None else gamma
        constants = self.static(scale), self.static(self.random.normal(size=size) * 0.1 * scale)
        return self.op("LayerNorm", x.shape, x, *constants, epsilon=1e-5, axes=[x.rank - 1])

    def relu(self, x: Tensor) -> Tensor:
        return self.op("Relu", x.shape, x)

    def uneven(self, *shape: int) -> Array:
        """Normal numbers whose output channels differ by up to two decades."""
        values: Array = self.random.normal(size=shape) * 10 ** self.random.uniform(-1, 1, shape[-1])
        return values

    def done(self, *outputs: Tensor) -> Graph:
        for tensor in outputs:
            tensor.kind = TensorKind.APP_READ
        self.graph.outputs = list(outputs)
        return self.graph

    def samples(self, count: int) -> list[dict[str, Array]]:
        return [{"x": self.random.normal(size=self.x.shape).astype(np.float32)} for _ in range(count)]


def _param(value: Any) -> Param:
    if isinstance(value, bool):
        return Param(DType.BOOL_8, value)
    if isinstance(value, float):
        return Param(DType.FLOAT_32, value)
    return Param(DType.UINT_32, value if isinstance(value, int) else np.asarray(value, np.uint32))


def network(name: str, folder: Path) -> Graph:
    """The float graph of one of `networks`, size small."""
    path = folder / f"{name}.onnx"
    build(NETWORKS[name], "small", path)
    symbols = dict(NETWORKS[name].variant("small").symbols)
    normalized = load(path, LoadOptions(symbols=symbols, batch=1))
    return lower(normalized.model, resolve(("sm8650",)), LowerOptions(integers=True), {}).graph


def run(graph: Graph, feeds: Mapping[str, Array]) -> dict[str, Array]:
    """The graph's outputs in float."""
    return Simulation(graph, "float", threads=1).run(feeds)


def off(found: Mapping[str, Array], expected: Mapping[str, Array]) -> float:
    """The largest difference as a share of the largest value of its output."""
    return max(float(np.abs(found[k] - v).max() / np.abs(v).max()) for k, v in expected.items())


def calibrated(graph: Graph, samples: Sequence[Mapping[str, Array]]) -> Calibration:
    """Everything observed, with the channels of what layers read and make."""
    wanted: dict[int, Tensor] = {}
    for op in graph.ops:
        if weight_axis(op) is not None or op.type == "LayerNorm":
            wanted.update({id(t): t for t in (op.inputs[0], op.outputs[0]) if t is not None})
    seen = Calibration(graph, channels=list(wanted.values()), threads=1)
    for sample in samples:
        seen.update(sample)
    return seen


def sqnr(
    graph: Graph,
    calibration: Sequence[Mapping[str, Array]],
    samples: Sequence[Mapping[str, Array]],
    reference: Sequence[Mapping[str, Array]],
    *,
    weights: int = 8,
    make: Callable[..., Calibrated] = Calibrated,
) -> float:
    """SQNR in dB of the simulated graph with 8-bit activations; inputs and outputs stay float."""
    groups = Groups(graph)
    plan = Plan(weights=weights, float_io=True)
    made = assign(graph, plan, make(calibrated(graph, calibration), Scheme()), Legal({}), groups)
    simulation = Simulation(made.graph, "qdq", threads=1)
    noise = signal = 0.0
    for sample, expected in zip(samples, reference, strict=True):
        found = simulation.run(sample)
        for name, values in expected.items():
            noise += float(((found[name] - values) ** 2).sum())
            signal += float((values.astype(np.float64) ** 2).sum())
    return float(10 * np.log10(signal / noise))

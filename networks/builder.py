# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""Writes ONNX graphs node by node, named and spelled as `torch.onnx.export` does.

Small constants are Constant nodes in the graph's interior, weights are initializers named like a state dict, and
shapes that the exporter would compute at run time (view, expand, arange) are Shape/Gather/Concat chains.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

Array = npt.NDArray[Any]
INT_MAX = 2**63 - 1


class Builder:
    """A graph under construction; values are names.

    Args:
        name: of the graph.
        seed: of the weights.
        opset: of the default domain.
    """

    def __init__(self, name: str, seed: int, opset: int = 17) -> None:
        self.name, self.opset = name, opset
        self.random = np.random.default_rng(seed)
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []
        self.inputs: list[onnx.ValueInfoProto] = []
        self.outputs: list[onnx.ValueInfoProto] = []
        self._scope: list[str] = []
        self._count: dict[str, int] = {}

    # ------------------------------------------------------------ the graph

    @contextlib.contextmanager
    def scope(self, name: str) -> Iterator[None]:
        """Names inside get `name` in front, as those of a submodule do."""
        self._scope.append(name)
        yield
        self._scope.pop()

    def input(self, name: str, shape: Sequence[int | str], dtype: int = TensorProto.FLOAT) -> str:
        self.inputs.append(helper.make_tensor_value_info(name, dtype, list(shape)))
        return name

    def output(self, value: str, name: str, shape: Sequence[int | str], dtype: int = TensorProto.FLOAT) -> None:
        """Make `value` an output called `name`: its node is renamed, as the exporter does."""
        for node in self.nodes:
            for names in (node.input, node.output):
                for i, old in enumerate(names):
                    if old == value:
                        names[i] = name
        self.outputs.append(helper.make_tensor_value_info(name, dtype, list(shape)))

    def op(self, kind: str, *inputs: str, **attributes: Any) -> str:
        """A node with one output."""
        return self.ops(kind, 1, *inputs, **attributes)[0]

    def ops(self, kind: str, count: int, *inputs: str, **attributes: Any) -> list[str]:
        """A node with `count` outputs."""
        base = "/".join(["", *self._scope, kind])
        number = self._count.get(base, 0)
        self._count[base] = number + 1
        name = f"{base}_{number}" if number else base
        outputs = [f"{name}_output_{i}" for i in range(count)]
        self.nodes.append(helper.make_node(kind, list(inputs), outputs, name=name, **attributes))
        return outputs

    def constant(self, value: Any, dtype: Any = np.int64) -> str:
        """An interior Constant node."""
        return self.op("Constant", value=numpy_helper.from_array(np.asarray(value, dtype)))

    def weight(self, name: str, value: Array) -> str:
        """An initializer, named after the submodule that it is in."""
        full = ".".join([*self._scope, name])
        self.weights.append(numpy_helper.from_array(np.ascontiguousarray(value, np.float32), full))
        return full

    def normal(self, name: str, shape: Sequence[int], std: float) -> str:
        """An initializer with values N(0, std^2)."""
        return self.weight(name, self.random.standard_normal(shape, np.float32) * np.float32(std))

    def model(self) -> onnx.ModelProto:
        """The finished model."""
        graph = helper.make_graph(self.nodes, self.name, self.inputs, self.outputs, self.weights)
        opsets = [helper.make_opsetid("", self.opset)]
        return helper.make_model(graph, producer_name="npukit networks", opset_imports=opsets, ir_version=8)

    # ------------------------------------------------------------ shapes, as the exporter spells them

    def dim(self, value: str, axis: int) -> str:
        """`value.shape[axis]`, a scalar computed at run time."""
        return self.op("Gather", self.op("Shape", value), self.constant(axis), axis=0)

    def shape(self, *parts: int | str) -> str:
        """The 1-D tensor of extents: numbers, and scalars of `dim`."""
        axes = self.constant([0])
        known = [self.constant([p]) if isinstance(p, int) else self.op("Unsqueeze", p, axes) for p in parts]
        return self.op("Concat", *known, axis=0)

    def view(self, value: str, *parts: int | str) -> str:
        return self.op("Reshape", value, self.shape(*parts))

    def slice(self, value: str, axis: int, start: int, end: int = INT_MAX, step: int = 1) -> str:
        return self.op(
            "Slice", value, self.constant([start]), self.constant([end]), self.constant([axis]), self.constant([step])
        )

    # ------------------------------------------------------------ layers

    def linear(self, x: str, width: int, to: int, name: str, *, bias: bool = True, gain: float = 1.0) -> str:
        """A dense layer on the last axis of a rank-3 value: MatMul with the transposed weight, and Add."""
        with self.scope(name):
            weight = self.normal("weight_t", [width, to], gain / math.sqrt(width))
            y = self.op("MatMul", x, weight)
            return self.op("Add", self.normal("bias", [to], 0.1), y) if bias else y

    def gemm(self, x: str, width: int, to: int, name: str) -> str:
        """A dense layer on a rank-2 value."""
        with self.scope(name):
            weight = self.normal("weight", [to, width], 1 / math.sqrt(width))
            return self.op("Gemm", x, weight, self.normal("bias", [to], 0.1), alpha=1.0, beta=1.0, transB=1)

    def conv(
        self, x: str, width: int, to: int, kernel: int, name: str, *,
        stride: int = 1, groups: int = 1, bias: bool = False, pads: Sequence[int] | None = None,
    ) -> str:  # fmt: skip
        with self.scope(name):
            fan = width // groups * kernel * kernel
            names = [x, self.normal("weight", [to, width // groups, kernel, kernel], math.sqrt(2 / fan))]
            names += [self.normal("bias", [to], 0.1)] if bias else []
            return self.op(
                "Conv", *names, dilations=[1, 1], group=groups, kernel_shape=[kernel, kernel],
                pads=list(pads or [kernel // 2] * 4), strides=[stride, stride],
            )  # fmt: skip

    def batch_norm(self, x: str, width: int, name: str, *, gain: float = 1.0, shift: float = 1.0) -> str:
        """Random gamma and beta; the statistics are placeholders until `statistics.settle`.

        Deep random networks amplify rounding errors without bound where batch-norm feeds a rectifier centred at
        zero, which trained ones do not: before an activation beta is mostly positive (`shift`), and a residual branch's
        last layer has a small gamma (`gain`), as after training from a zero one.
        """
        with self.scope(name):
            gamma = self.weight("weight", gain * self.random.uniform(0.5, 1.5, width))
            beta = self.weight("bias", self.random.normal(shift, 0.3, width))
            mean = self.weight("running_mean", np.zeros(width))
            variance = self.weight("running_var", np.ones(width))
            return self.op("BatchNormalization", x, gamma, beta, mean, variance, epsilon=1e-5, momentum=0.9)

    def layer_norm(self, x: str, width: int, name: str, epsilon: float = 1e-5) -> str:
        """LayerNorm as the exporter spells it below opset 17."""
        with self.scope(name):
            gamma = self.weight("weight", self.random.uniform(0.5, 1.5, width))
            beta = self.normal("bias", [width], 0.1)
            centred = self.op("Sub", x, self.op("ReduceMean", x, axes=[-1]))
            square = self.op("Pow", centred, self.constant(2.0, np.float32))
            variance = self.op("ReduceMean", square, axes=[-1])
            deviation = self.op("Sqrt", self.op("Add", variance, self.constant(epsilon, np.float32)))
            return self.op("Add", self.op("Mul", self.op("Div", centred, deviation), gamma), beta)

    def gelu(self, x: str) -> str:
        """GELU by erf, as the exporter spells it."""
        erf = self.op("Erf", self.op("Div", x, self.constant(math.sqrt(2.0), np.float32)))
        one = self.op("Add", erf, self.constant(1.0, np.float32))
        return self.op("Mul", self.op("Mul", x, one), self.constant(0.5, np.float32))

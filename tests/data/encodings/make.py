# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""Make the encodings files of this folder again: `pip install aimet-onnx==2.42.0 torch==2.13.0; python make.py`.

Each network is built with fixed weights, calibrated by AIMET-ONNX on fixed random inputs, and exported with the
encodings of every version that AIMET writes.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

HERE = Path(__file__).parent
VERSIONS = ("0.6.1", "1.0.0", "2.0.0")


class Builder:
    """Collects nodes and weights of one graph."""

    def __init__(self, seed: int) -> None:
        self.random = np.random.default_rng(seed)
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []

    def weight(self, name: str, *shape: int, scale: float | None = None) -> str:
        """A weight with the spread of a trained one, and channels of unequal size."""
        values = self.random.normal(size=shape) * (scale or np.prod(shape[1:]) ** -0.5)
        if len(shape) > 1:
            values *= self.random.uniform(0.3, 2.0, (shape[0], *[1] * (len(shape) - 1)))
        return self.constant(name, values.astype(np.float32))

    def constant(self, name: str, values: np.ndarray) -> str:
        self.weights.append(numpy_helper.from_array(values, name))
        return name

    def node(self, op: str, inputs: list[str], output: str, **attributes: object) -> str:
        self.nodes.append(helper.make_node(op, inputs, [output], name=f"/{output}/{op}", **attributes))
        return output

    def model(self, inputs: dict[str, tuple[int, ...]], outputs: dict[str, tuple[int, ...]]) -> onnx.ModelProto:
        def info(values: dict[str, tuple[int, ...]]) -> list[onnx.ValueInfoProto]:
            return [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in values.items()]

        graph = helper.make_graph(self.nodes, "net", info(inputs), info(outputs), self.weights)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
        onnx.checker.check_model(model, full_check=True)
        return model


def cnn() -> onnx.ModelProto:
    """Conv, depthwise conv, residual Add, Concat, pooling, Gemm."""
    b = Builder(1)
    x = b.node("Conv", ["x", b.weight("stem.weight", 8, 3, 3, 3), b.weight("stem.bias", 8, scale=0.1)], "stem",
               pads=[1, 1, 1, 1])  # fmt: skip
    x = b.node("Relu", [x], "stem.relu")
    y = b.node("Conv", [x, b.weight("dw.weight", 8, 1, 3, 3), b.weight("dw.bias", 8, scale=0.1)], "dw",
               pads=[1, 1, 1, 1], group=8)  # fmt: skip
    y = b.node("Clip", [y, b.constant("zero", np.float32(0)), b.constant("six", np.float32(6))], "dw.relu6")
    y = b.node("Conv", [y, b.weight("pw.weight", 8, 8, 1, 1), b.weight("pw.bias", 8, scale=0.1)], "pw")
    x = b.node("Add", [x, y], "sum")
    x = b.node("MaxPool", [x], "pool", kernel_shape=[2, 2], strides=[2, 2])
    z = b.node("Conv", [x, b.weight("side.weight", 4, 8, 1, 1), b.weight("side.bias", 4, scale=0.1)], "side")
    x = b.node("Concat", [x, z], "join", axis=1)
    x = b.node("GlobalAveragePool", [x], "gap")
    x = b.node("Flatten", [x], "flat")
    b.node("Gemm", [x, b.weight("fc.weight", 10, 12), b.weight("fc.bias", 10, scale=0.1)], "logits", transB=1)
    return b.model({"x": (1, 3, 12, 12)}, {"logits": (1, 10)})


def transformer() -> onnx.ModelProto:
    """One encoder block of width 8: LayerNormalization, two heads, GELU by Erf, residuals."""
    b = Builder(2)
    tokens, width, heads = 4, 8, 2

    def linear(x: str, name: str, into: int, out: int) -> str:
        product = b.node("MatMul", [x, b.weight(f"{name}.weight", into, out)], f"{name}.product")
        return b.node("Add", [product, b.weight(f"{name}.bias", out, scale=0.1)], name)

    def norm(x: str, name: str) -> str:
        scale = b.constant(f"{name}.scale", b.random.uniform(0.5, 1.5, width).astype(np.float32))
        return b.node("LayerNormalization", [x, scale, b.weight(f"{name}.shift", width, scale=0.1)], name)

    def split(x: str, name: str, perm: list[int]) -> str:
        shape = b.constant(f"{name}.shape", np.array([1, tokens, heads, width // heads]))
        return b.node("Transpose", [b.node("Reshape", [x, shape], f"{name}.split")], f"{name}.heads", perm=perm)

    h = norm("x", "norm1")
    q, k, v = (linear(h, name, width, width) for name in ("q", "k", "v"))
    scores = b.node("MatMul", [split(q, "q", [0, 2, 1, 3]), split(k, "k", [0, 2, 3, 1])], "scores")
    scores = b.node("Mul", [scores, b.constant("scaling", np.float32((width // heads) ** -0.5))], "scaled")
    weights = b.node("Softmax", [scores], "attention", axis=-1)
    mixed = b.node("MatMul", [weights, split(v, "v", [0, 2, 1, 3])], "mixed")
    mixed = b.node("Transpose", [mixed], "mixed.tokens", perm=[0, 2, 1, 3])
    mixed = b.node("Reshape", [mixed, b.constant("joined.shape", np.array([1, tokens, width]))], "mixed.joined")
    x = b.node("Add", ["x", linear(mixed, "o", width, width)], "residual1")
    h = linear(norm(x, "norm2"), "up", width, 16)
    e = b.node("Erf", [b.node("Div", [h, b.constant("root2", np.float32(2**0.5))], "gelu.div")], "gelu.erf")
    e = b.node("Add", [e, b.constant("one", np.float32(1))], "gelu.add")
    h = b.node("Mul", [b.node("Mul", [h, e], "gelu.mul"), b.constant("half", np.float32(0.5))], "gelu")
    b.node("Add", [x, linear(h, "down", 16, width)], "y")
    return b.model({"x": (1, tokens, width)}, {"y": (1, tokens, width)})


def lstm() -> onnx.ModelProto:
    """A one-layer LSTM over 5 steps and a head on its last state."""
    b = Builder(3)
    hidden, inputs = 8, 6
    weights = [
        b.weight("lstm.W", 1, 4 * hidden, inputs, scale=0.4),
        b.weight("lstm.R", 1, 4 * hidden, hidden, scale=0.3),
        b.weight("lstm.B", 1, 8 * hidden, scale=0.1),
    ]
    outputs = ["lstm.all", "lstm.last"]
    b.nodes.append(helper.make_node("LSTM", ["x", *weights], outputs, name="/lstm/LSTM", hidden_size=hidden))
    last = b.node("Reshape", ["lstm.last", b.constant("last.shape", np.array([1, hidden]))], "last")
    b.node("Gemm", [last, b.weight("head.weight", 3, hidden), b.weight("head.bias", 3, scale=0.1)], "logits", transB=1)
    return b.model({"x": (5, 1, inputs)}, {"logits": (1, 3)})


def export(name: str, model: onnx.ModelProto, *, activations: str) -> None:
    """Calibrate `model` and write NAME.onnx and NAME.VERSION.encodings beside this script."""
    import aimet_onnx
    from aimet_onnx import QuantizationSimModel

    sim = QuantizationSimModel(model, param_type="int8", activation_type=activations)
    random = np.random.default_rng(0)
    inputs = {i.name: [d.dim_value for d in i.type.tensor_type.shape.dim] for i in model.graph.input}
    samples = [{n: random.normal(size=s).astype(np.float32) for n, s in inputs.items()} for _ in range(8)]
    sim.compute_encodings(samples)
    assert aimet_onnx.__version__ == "2.42.0"
    for version in VERSIONS:
        sim.export(str(HERE), f"{name}.{version}", export_model=False, encoding_version=version)


NETWORKS = {"cnn": cnn, "transformer": transformer, "lstm": lstm}


def main() -> None:
    """Write everything, or only the networks."""
    for name, network in NETWORKS.items():
        onnx.save(network(), HERE / f"{name}.onnx")
        if "--models-only" not in sys.argv:
            export(name, network(), activations="int16" if name == "transformer" else "int8")


if __name__ == "__main__":
    main()

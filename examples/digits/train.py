# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""Train the demo's network on scikit-learn's handwritten digits and write digits.onnx and digits.npz.

    pip install scikit-learn onnx && python train.py

Plain numpy, so that nothing heavy is needed to follow or repeat it: conv-relu-pool, conv-relu-pool, fully connected,
trained with Adam on images shifted by up to one pixel. Ten seconds on two cores; deterministic for a given numpy.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

HERE = Path(__file__).parent
EPOCHS = 60
BATCH = 64
HELD_OUT = 360
CALIBRATION = 128

Array = npt.NDArray[np.float32]


def columns(x: Array) -> Array:
    """3x3 patches with padding 1: x [N,C,H,W] -> [N,H,W,C*9]."""
    n, c, h, w = x.shape
    padded = np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1)))
    patches = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(2, 3))
    return np.ascontiguousarray(patches.transpose(0, 2, 3, 1, 4, 5)).reshape(n, h, w, c * 9)


def columns_back(grad: Array, c: int) -> Array:
    """Transpose of `columns`: [N,H,W,C*9] -> [N,C,H,W]."""
    n, h, w, _ = grad.shape
    patches = grad.reshape(n, h, w, c, 3, 3)
    padded = np.zeros((n, c, h + 2, w + 2), np.float32)
    for i in range(3):
        for j in range(3):
            padded[:, :, i : i + h, j : j + w] += patches[..., i, j].transpose(0, 3, 1, 2)
    return padded[:, :, 1:-1, 1:-1]


class Network:
    """x [N,1,8,8] -> scores [N,10]; `parameters` holds weights as ONNX wants them."""

    def __init__(self, seed: int) -> None:
        rng = np.random.default_rng(seed)

        def he(*shape: int) -> Array:
            return (rng.standard_normal(shape) * np.sqrt(2 / np.prod(shape[1:]))).astype(np.float32)

        self.parameters: dict[str, Array] = {
            "conv1.weight": he(16, 1, 3, 3),
            "conv1.bias": np.zeros(16, np.float32),
            "conv2.weight": he(32, 16, 3, 3),
            "conv2.bias": np.zeros(32, np.float32),
            "fc.weight": he(10, 128),
            "fc.bias": np.zeros(10, np.float32),
        }
        self.gradients: dict[str, Array] = {}

    def loss(self, x: Array, labels: npt.NDArray[np.int64]) -> float:
        """Mean cross entropy; fills `gradients`."""
        scores, tape = self.forward(x)
        scores = scores - scores.max(1, keepdims=True)
        p = np.exp(scores) / np.exp(scores).sum(1, keepdims=True)
        rows = np.arange(len(x))
        value = float(-np.log(p[rows, labels]).mean())
        p[rows, labels] -= 1
        self._backward(p / len(x), tape)
        return value

    def forward(self, x: Array) -> tuple[Array, list[tuple[Array, ...]]]:
        """Scores and what the backward pass needs."""
        tape: list[tuple[Array, ...]] = []
        for name in ("conv1", "conv2"):
            cols = columns(x)
            weight = self.parameters[f"{name}.weight"].reshape(-1, cols.shape[-1])
            y = np.maximum(cols @ weight.T + self.parameters[f"{name}.bias"], 0).transpose(0, 3, 1, 2)
            n, c, h, w = y.shape
            windows = y.reshape(n, c, h // 2, 2, w // 2, 2)
            pooled = windows.max((3, 5))
            tape.append((cols, windows, pooled, y))
            x = pooled
        flat = x.reshape(len(x), -1)
        tape.append((flat,))
        return flat @ self.parameters["fc.weight"].T + self.parameters["fc.bias"], tape

    def _backward(self, grad: Array, tape: list[tuple[Array, ...]]) -> None:
        (flat,) = tape[2]
        self.gradients["fc.weight"] = grad.T @ flat
        self.gradients["fc.bias"] = grad.sum(0)
        grad = grad @ self.parameters["fc.weight"]
        for name, (cols, windows, pooled, y) in zip(("conv2", "conv1"), (tape[1], tape[0]), strict=True):
            at_max = windows == pooled[:, :, :, None, :, None]
            share = at_max / at_max.sum((3, 5), keepdims=True)
            spread = (share * grad.reshape(pooled.shape)[:, :, :, None, :, None]).reshape(y.shape) * (y > 0)
            rows = spread.transpose(0, 2, 3, 1).astype(np.float32)
            weight = self.parameters[f"{name}.weight"]
            flat_rows = rows.reshape(-1, rows.shape[-1])
            self.gradients[f"{name}.weight"] = (flat_rows.T @ cols.reshape(-1, cols.shape[-1])).reshape(weight.shape)
            self.gradients[f"{name}.bias"] = flat_rows.sum(0)
            grad = columns_back(rows @ weight.reshape(len(weight), -1), weight.shape[1])


def train(images: Array, labels: npt.NDArray[np.int64]) -> Network:
    """A trained network."""
    rng = np.random.default_rng(0)
    network = Network(seed=0)
    moments = {name: (np.zeros_like(p), np.zeros_like(p)) for name, p in network.parameters.items()}
    step = 0
    for epoch in range(EPOCHS):
        rate = 2e-3 * 0.5 * (1 + np.cos(np.pi * epoch / EPOCHS))
        total = 0.0
        for rows in np.array_split(rng.permutation(len(images)), len(images) // BATCH):
            shift = (int(rng.integers(-1, 2)), int(rng.integers(-1, 2)))
            total += network.loss(np.roll(images[rows], shift, (2, 3)), labels[rows])
            step += 1
            for name, (mean, square) in moments.items():
                gradient = network.gradients[name]
                mean += 0.1 * (gradient - mean)
                square += 0.001 * (gradient**2 - square)
                corrected = np.sqrt(square / (1 - 0.999**step)) + 1e-8
                network.parameters[name] -= (rate * mean / (1 - 0.9**step) / corrected).astype(np.float32)
        if epoch % 10 == 9:
            sys.stdout.write(f"epoch {epoch + 1}: loss {total / (len(images) // BATCH):.4f}\n")
    return network


def to_onnx(network: Network) -> onnx.ModelProto:
    """The network as an ONNX model of batch 1: image [1,1,8,8] in 0..1 -> scores [1,10]."""
    nodes = []
    value = "image"
    for name in ("conv1", "conv2"):
        parameters = [value, f"{name}.weight", f"{name}.bias"]
        nodes += [
            helper.make_node("Conv", parameters, [f"{name}.out"], name, kernel_shape=[3, 3], pads=[1, 1, 1, 1]),
            helper.make_node("Relu", [f"{name}.out"], [f"{name}.relu"], f"{name}.relu"),
            helper.make_node(
                "MaxPool", [f"{name}.relu"], [f"{name}.pool"], f"{name}.pool", kernel_shape=[2, 2], strides=[2, 2]
            ),
        ]
        value = f"{name}.pool"
    nodes += [
        helper.make_node("Flatten", [value], ["features"], "flatten", axis=1),
        helper.make_node("Gemm", ["features", "fc.weight", "fc.bias"], ["scores"], "fc", transB=1),
    ]
    graph = helper.make_graph(
        nodes,
        "digits",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, [1, 1, 8, 8])],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, [1, 10])],
        [numpy_helper.from_array(array, name) for name, array in network.parameters.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8, producer_name="npukit")
    onnx.checker.check_model(model, full_check=True)
    return model


def main() -> None:
    """Train, write digits.onnx and digits.npz beside this script, and print the held-out accuracy."""
    from sklearn.datasets import load_digits

    data = load_digits()
    order = np.random.default_rng(0).permutation(len(data.images))
    codes = data.images[order].astype(np.uint8)  # 0..16
    labels = data.target[order].astype(np.int64)
    images = (codes[:, None] / 16).astype(np.float32)
    network = train(images[HELD_OUT:], labels[HELD_OUT:])
    scores, _ = network.forward(images[:HELD_OUT])
    sys.stdout.write(f"held out: {(scores.argmax(1) == labels[:HELD_OUT]).mean():.2%} of {HELD_OUT}\n")
    onnx.save(to_onnx(network), HERE / "digits.onnx")
    np.savez_compressed(
        HERE / "digits.npz",
        images=codes[:HELD_OUT],
        labels=labels[:HELD_OUT].astype(np.uint8),
        calibration=codes[HELD_OUT : HELD_OUT + CALIBRATION],
    )


if __name__ == "__main__":
    main()

# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""Writes small TensorFlow models to mutate: `PYTHON fuzz/make_tensorflow.py FOLDER`, with TensorFlow's interpreter.

NAME.pb are frozen graphs, the folders NAME are SavedModels.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import tensorflow as tf

v1 = tf.compat.v1


def convolution(x: Any) -> Any:
    """Two layers and a pooling."""
    kernel = tf.Variable(tf.random.normal([3, 3, 3, 4]))
    weights = tf.Variable(tf.random.normal([4, 5]))
    y = tf.nn.relu(tf.nn.bias_add(tf.nn.conv2d(x, kernel, 2, "SAME"), tf.ones([4])))
    return tf.nn.softmax(tf.reduce_mean(y, [1, 2]) @ weights)


def moves(x: Any) -> Any:
    """Slices, a transposition, a gather."""
    y = tf.transpose(x[:, 1:, ::2], [0, 2, 1, 3])
    y = tf.gather(tf.concat([y, tf.reverse(y, [1])], 1), [0, 2, 1], axis=1)
    return tf.reshape(tf.where(y > 0.0, y, 0.1 * y), [tf.shape(x)[0], -1])


def decides(x: Any) -> Any:
    """A branch and a loop, as functions."""
    y = tf.cond(tf.reduce_sum(x) > 0.0, lambda: x * 2.0, lambda: x - 1.0)
    return tf.while_loop(lambda i, _: i < 3, lambda i, z: (i + 1, z + tf.cast(i, tf.float32)), (0, y))[1]


def quantized(x: Any) -> Any:
    """Fake quantization of an activation and of weights."""
    weights = tf.quantization.fake_quant_with_min_max_args(tf.constant([[0.5] * 3] * 3), -1, 1)
    y = tf.reshape(tf.quantization.fake_quant_with_min_max_args(x, -3, 3), [-1, 3])
    return tf.quantization.fake_quant_with_min_max_args(tf.matmul(y, weights), -6, 6)


MODELS = {"convolution": convolution, "moves": moves, "decides": decides, "quantized": quantized}


class Holder(tf.Module):
    """A function with its variables, which are made in the first call."""

    def __init__(self, function: Any) -> None:
        super().__init__()
        self.kept: list[Any] = []
        self.function = function

    @tf.function(input_signature=[tf.TensorSpec([None, 8, 8, 3], name="image")])
    def call(self, image: Any) -> Any:
        """The model."""
        return {"result": self.function(image)}


class Net(tf.Module):
    """Two signatures that share a variable."""

    def __init__(self) -> None:
        super().__init__()
        self.weights = tf.Variable(tf.random.normal([6, 4]))

    @tf.function(input_signature=[tf.TensorSpec([None, 6], name="x"), tf.TensorSpec([1], name="gain")])
    def first(self, x: Any, gain: Any) -> Any:
        """Both results."""
        y = tf.matmul(x, self.weights) * gain
        return {"a": y, "b": tf.nn.gelu(y)}

    @tf.function(input_signature=[tf.TensorSpec([2, 6], name="x")])
    def second(self, x: Any) -> Any:
        """One of them."""
        return {"c": tf.matmul(x, self.weights)}


def main() -> None:
    """Write the files."""
    folder = Path(sys.argv[1])
    tf.keras.utils.set_random_seed(0)
    for name, function in MODELS.items():
        with tf.Graph().as_default() as graph, v1.Session(graph=graph) as session:
            image = v1.placeholder(tf.float32, [None, 8, 8, 3], name="image")
            result = tf.identity(function(image), "result")
            session.run(v1.global_variables_initializer())
            frozen = v1.graph_util.convert_variables_to_constants(session, graph.as_graph_def(), [result.op.name])
        (folder / f"{name}.pb").write_bytes(frozen.SerializeToString())
    for name in ("moves", "decides", "quantized"):
        holder = Holder(MODELS[name])
        tf.saved_model.save(holder, str(folder / name), signatures={"serving_default": holder.call})
    net = Net()
    tf.saved_model.save(net, str(folder / "net"), signatures={"serving_default": net.first, "second": net.second})
    layers = [tf.keras.layers.Conv2D(4, 3, input_shape=(8, 8, 3)), tf.keras.layers.BatchNormalization()]
    keras = tf.keras.Sequential([*layers, tf.keras.layers.GlobalAveragePooling2D(), tf.keras.layers.Dense(3)])
    keras.export(str(folder / "keras"), verbose=False)


if __name__ == "__main__":
    main()

# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""Networks of TensorFlow, built where it is, without npukit: `python networks/tensorflow_zoo.py NAME FOLDER`.

Writes FOLDER/NAME (a SavedModel) or FOLDER/NAME.pb (a frozen graph), and FOLDER/NAME.npz: inputs `KEY/i`, TensorFlow's
results `out/j/i`, and what the table says of the network. Weights are random, statistics taken from data.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")

if __name__ == "__main__":
    del sys.path[0]  # tensorflow.py beside this file is not TensorFlow

import numpy as np

COUNT = 3
EPOCHS = 30


@dataclass(frozen=True)
class Network:
    """A network: how it is built and saved, and its inputs.

    Attributes:
        build: makes a Keras model, or a tf.Module with `forward` and its signature.
        feeds: inputs of a number, by name, with a batch of 1.
        frozen: saved as a frozen graph; else as a SavedModel.
    """

    build: Callable[[], Any]
    feeds: Callable[[int], dict[str, Any]]
    frozen: bool = False


def keras() -> Any:
    """Keras, imported late: the table of names needs none."""
    import tensorflow as tf

    return tf.keras


def images(size: int, channels: int = 3) -> Callable[[int], dict[str, Any]]:
    """Images with patches of several sizes and a colour cast, channels last."""

    def draw(seed: int) -> dict[str, Any]:
        random = np.random.default_rng(seed)
        image = random.standard_normal((1, 1, 1, channels))
        for cells in (2, 4, 8, 16):
            noise = random.standard_normal((1, cells, cells, channels))
            at = np.arange(size) * cells // size
            image = image + noise[:, at][:, :, at] * (2.0 / cells**0.5)
        return {"image": ((image - image.mean()) / image.std()).astype(np.float32)}

    return draw


def series(length: int, width: int) -> Callable[[int], dict[str, Any]]:
    """Normal values around a level of their own."""

    def draw(seed: int) -> dict[str, Any]:
        random = np.random.default_rng(seed)
        found = random.standard_normal((1, length, width)) + random.standard_normal((1, 1, width))
        return {"series": found.astype(np.float32)}

    return draw


def application(name: str, size: int, **options: Any) -> Callable[[], Any]:
    """One of tf.keras.applications, without weights."""

    def build() -> Any:
        k = keras()
        inner = getattr(k.applications, name)(
            weights=None, input_shape=(size, size, 3), classes=100, classifier_activation=None, **options
        )
        image = k.Input((size, size, 3), name="image")
        return k.Model(image, inner(image))

    return build


def unet() -> Any:
    """U-Net with transposed convolutions."""
    k = keras()
    layers = k.layers

    def double(x: Any, width: int) -> Any:
        for _ in range(2):
            x = layers.ReLU()(layers.BatchNormalization()(layers.Conv2D(width, 3, padding="same", use_bias=False)(x)))
        return x

    image = k.Input((96, 96, 3), name="image")
    kept, x = [], image
    for width in (32, 64, 128, 256):
        x = double(x, width)
        kept.append(x)
        x = layers.MaxPool2D()(x)
    x = double(x, 512)
    for width, skip in zip((256, 128, 64, 32), reversed(kept), strict=True):
        x = double(layers.Concatenate()([layers.Conv2DTranspose(width, 2, 2)(x), skip]), width)
    return k.Model(image, layers.Conv2D(4, 1, name="pixels")(x))


def ssd() -> Any:
    """MobileNetV2's features at two scales, class scores and box offsets."""
    k = keras()
    layers = k.layers
    backbone = k.applications.MobileNetV2(weights=None, input_shape=(160, 160, 3), include_top=False, alpha=0.5)
    taps = [backbone.get_layer("block_13_expand_relu").output, backbone.output]
    scores, offsets = [], []
    for x in taps:
        scores.append(layers.Reshape((-1, 21))(layers.Conv2D(6 * 21, 3, padding="same")(x)))
        offsets.append(layers.Reshape((-1, 4))(layers.Conv2D(6 * 4, 3, padding="same")(x)))
    found = {
        "scores": layers.Softmax(name="scores")(layers.Concatenate(axis=1)(scores)),
        "offsets": layers.Concatenate(axis=1, name="offsets")(offsets),
    }
    inner = k.Model(backbone.input, found)
    image = k.Input((160, 160, 3), name="image")
    return k.Model(image, inner(image))


def edsr() -> Any:
    """EDSR: residual blocks without norms, depth_to_space, twice the size."""
    import tensorflow as tf

    k = keras()
    layers = k.layers
    image = k.Input((48, 48, 3), name="image")
    x = layers.Conv2D(64, 3, padding="same")(image)
    for _ in range(12):
        y = layers.Conv2D(64, 3, padding="same", activation="relu")(x)
        y = layers.Conv2D(64, 3, padding="same")(y)
        x = layers.Add()([x, layers.Rescaling(0.3)(y)])
    x = layers.Conv2D(256, 3, padding="same")(x)
    x = layers.Lambda(lambda v: tf.nn.depth_to_space(v, 2))(x)
    return k.Model(image, layers.Conv2D(3, 3, padding="same")(x))


def lstm() -> Any:
    """Speech features through three bidirectional LSTM layers."""
    k = keras()
    features = k.Input((30, 40), name="series")
    x = features
    for _ in range(3):
        x = k.layers.Bidirectional(k.layers.LSTM(160, return_sequences=True))(x)
    return k.Model(features, k.layers.Dense(29)(x))


def gru() -> Any:
    """A forecast from two GRU layers."""
    k = keras()
    given = k.Input((32, 8), name="series")
    x = k.layers.Conv1D(96, 5, padding="same", activation="relu")(given)
    x = k.layers.GRU(384)(k.layers.GRU(384, return_sequences=True)(x))
    return k.Model(given, k.layers.Dense(12)(x))


def tcn() -> Any:
    """Causal dilated convolutions with residuals."""
    k = keras()
    given = k.Input((400, 16), name="series")
    x = k.layers.Conv1D(160, 1)(given)
    for level in range(8):
        y = k.layers.Conv1D(160, 3, dilation_rate=1 << level, padding="causal", activation="relu")(x)
        y = k.layers.Conv1D(160, 3, dilation_rate=1 << level, padding="causal")(y)
        x = k.layers.ReLU()(k.layers.Add()([x, y]))
    return k.Model(given, k.layers.Dense(10)(k.layers.GlobalAveragePooling1D()(x)))


def audio() -> Any:
    """One-dimensional convolutions on the waveform, as M18."""
    k = keras()
    layers = k.layers
    given = k.Input((8000, 1), name="series")
    x = layers.Conv1D(64, 80, 4, padding="same", use_bias=False)(given)
    x = layers.MaxPool1D(4)(layers.ReLU()(layers.BatchNormalization()(x)))
    for width in (64, 128, 256, 512):
        for _ in range(4):
            x = layers.Conv1D(width, 3, padding="same", use_bias=False)(x)
            x = layers.ReLU()(layers.BatchNormalization()(x))
        x = layers.MaxPool1D(4)(x) if width < 512 else x
    return k.Model(given, layers.Dense(35)(layers.GlobalAveragePooling1D()(x)))


def encoder() -> Any:
    """A BERT-like encoder of Keras's own attention layers."""
    k = keras()
    layers = k.layers
    ids = k.Input((64,), dtype="int32", name="ids")
    x = layers.Embedding(6000, 256)(ids)
    positions = layers.Embedding(64, 256)(layers.Lambda(lambda v: 0 * v + np.arange(64, dtype=np.int32))(ids))
    x = layers.LayerNormalization(epsilon=1e-6)(layers.Add()([x, positions]))
    for _ in range(6):
        y = layers.LayerNormalization(epsilon=1e-6)(x)
        x = layers.Add()([x, layers.MultiHeadAttention(4, 64)(y, y)])
        y = layers.Dense(1024, activation="gelu")(layers.LayerNormalization(epsilon=1e-6)(x))
        x = layers.Add()([x, layers.Dense(256)(y)])
    return k.Model(ids, layers.Dense(4, name="logits")(layers.GlobalAveragePooling1D()(x)))


def words(seed: int) -> dict[str, Any]:
    """A text of 64 tokens."""
    return {"ids": np.random.default_rng(seed).integers(0, 6000, (1, 64)).astype(np.int32)}


def decoder() -> Any:
    """One step of a decoder with a cache of keys and values, as a tf.Module."""
    import tensorflow as tf

    width, depth, heads, length = 192, 6, 4, 96
    random = np.random.default_rng(5)

    class Step(tf.Module):
        def __init__(self) -> None:
            super().__init__()

            def matrix(*shape: int) -> Any:
                return tf.Variable((random.standard_normal(shape) / shape[0] ** 0.5).astype(np.float32))

            self.words = tf.Variable(random.standard_normal((3000, width)).astype(np.float32))
            self.positions = tf.Variable(random.standard_normal((length, width)).astype(np.float32) * 0.3)
            self.qkv = [matrix(width, 3 * width) for _ in range(depth)]
            self.out = [matrix(width, width) for _ in range(depth)]
            self.up = [matrix(width, 4 * width) for _ in range(depth)]
            self.down = [matrix(4 * width, width) for _ in range(depth)]

        @tf.function(
            input_signature=[
                tf.TensorSpec([1, 1], tf.int32, name="token"),
                tf.TensorSpec([1], tf.int32, name="position"),
                tf.TensorSpec([depth, 1, heads, length, width // heads], tf.float32, name="keys"),
                tf.TensorSpec([depth, 1, heads, length, width // heads], tf.float32, name="values"),
            ]
        )
        def forward(self, token: Any, position: Any, keys: Any, values: Any) -> dict[str, Any]:
            """The logits and the new cache."""

            def norm(v: Any) -> Any:
                v = v - tf.reduce_mean(v, -1, keepdims=True)
                return v * tf.math.rsqrt(tf.reduce_mean(v * v, -1, keepdims=True) + 1e-5)

            x = tf.gather(self.words, token) + tf.gather(self.positions, position)[None]
            steps = tf.range(length)
            here = tf.reshape(tf.equal(steps, position), (1, 1, length, 1))
            bias = tf.reshape(tf.where(steps <= position, 0.0, -1e4), (1, 1, 1, length))
            new_keys, new_values = [], []
            for i in range(depth):
                parts = tf.transpose(
                    tf.reshape(norm(x) @ self.qkv[i], (1, 1, 3, heads, width // heads)), (2, 0, 3, 1, 4)
                )
                k, v = tf.where(here, parts[1], keys[i]), tf.where(here, parts[2], values[i])
                weights = tf.nn.softmax(tf.matmul(parts[0], k, transpose_b=True) / (width // heads) ** 0.5 + bias)
                y = tf.reshape(tf.transpose(weights @ v, (0, 2, 1, 3)), (1, 1, width))
                x = x + y @ self.out[i]
                x = x + tf.nn.gelu(norm(x) @ self.up[i], approximate=True) @ self.down[i]
                new_keys.append(k)
                new_values.append(v)
            logits = tf.matmul(norm(x), self.words, transpose_b=True) / width**0.5
            return {"logits": logits, "new_keys": tf.stack(new_keys), "new_values": tf.stack(new_values)}

    return Step()


def step(seed: int) -> dict[str, Any]:
    """A token at a position with a filled cache."""
    random = np.random.default_rng(seed)
    cache = {name: random.standard_normal((6, 1, 4, 96, 48)).astype(np.float32) for name in ("keys", "values")}
    token = random.integers(0, 3000, (1, 1)).astype(np.int32)
    return {"token": token, "position": np.array([30 + 7 * seed], np.int32), **cache}


def digits() -> Any:
    """A residual network trained on 240 of the 360 digits."""
    k = keras()
    layers = k.layers
    pictures, labels = digits_data()
    image = k.Input((8, 8, 1), name="image")
    x = image
    for width, stride in ((32, 1), (64, 1), (64, 1), (128, 2), (128, 1), (128, 1)):
        y = layers.ReLU()(
            layers.BatchNormalization()(layers.Conv2D(width, 3, stride, padding="same", use_bias=False)(x))
        )
        y = layers.BatchNormalization()(layers.Conv2D(width, 3, padding="same", use_bias=False)(y))
        if stride > 1 or x.shape[-1] != width:
            x = layers.BatchNormalization()(layers.Conv2D(width, 1, stride, use_bias=False)(x))
        x = layers.ReLU()(layers.Add()([x, y]))
    model = k.Model(image, layers.Dense(10, name="scores")(layers.GlobalAveragePooling2D()(x)))
    for layer in model.layers:
        if isinstance(layer, layers.BatchNormalization):
            layer.momentum = 0.8
    loss = k.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(k.optimizers.AdamW(2e-3), loss)
    model.fit(pictures[:240], labels[:240], batch_size=32, epochs=EPOCHS, verbose=0)
    return model


def digits_data() -> tuple[Any, Any]:
    """Pictures [360, 8, 8, 1] from 0 to 1, and labels."""
    place = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "examples", "digits", "digits.npz")
    with np.load(place) as data:
        return (data["images"] / 16).astype(np.float32)[..., None], data["labels"].astype(np.int64)


def one_digit(seed: int) -> dict[str, Any]:
    """A picture of those that are not trained on."""
    return {"image": digits_data()[0][240 + seed][None]}


NETWORKS: dict[str, Network] = {
    "resnet50": Network(application("ResNet50", 128), images(128), frozen=True),
    "mobilenet_v2": Network(application("MobileNetV2", 128), images(128), frozen=True),
    "mobilenet_v3": Network(application("MobileNetV3Small", 128, include_preprocessing=False), images(128)),
    "efficientnet_b0": Network(application("EfficientNetB0", 128), images(128)),
    "densenet121": Network(application("DenseNet121", 96), images(96), frozen=True),
    "inception_v3": Network(application("InceptionV3", 139), images(139)),
    "xception": Network(application("Xception", 96), images(96), frozen=True),
    "convnext_tiny": Network(application("ConvNeXtTiny", 96, include_preprocessing=False), images(96)),
    "unet": Network(unet, images(96), frozen=True),
    "ssd_mobilenet": Network(ssd, images(160)),
    "edsr": Network(edsr, images(48), frozen=True),
    "lstm_speech": Network(lstm, series(30, 40)),
    "gru_forecast": Network(gru, series(32, 8)),
    "tcn": Network(tcn, series(400, 16), frozen=True),
    "audio_m18": Network(audio, series(8000, 1)),
    "transformer_encoder": Network(encoder, words),
    "decoder_step": Network(decoder, step),
    "digits": Network(digits, one_digit),
}


def main() -> None:
    """Build, settle, save and run one network."""
    import tensorflow as tf

    name, folder = sys.argv[1:]
    network = NETWORKS[name]
    tf.random.set_seed(3)
    keras().utils.set_random_seed(3)
    model = network.build()
    if name != "digits" and isinstance(model, keras().Model):
        settle(model, network)
    count = 120 if name == "digits" else COUNT
    draws = [network.feeds(seed) for seed in range(count)]
    function = model.forward if not isinstance(model, keras().Model) else wrapped(tf, model, draws[0])
    concrete = function.get_concrete_function()
    found: dict[str, Any] = {}
    for i, draw in enumerate(draws):
        given = concrete(**{key: tf.constant(value) for key, value in draw.items()})
        found.update({f"in/{key}/{i}": value for key, value in draw.items()})
        found.update({f"out/{key}/{i}": np.asarray(value) for key, value in given.items()})
    variables = [v for v in model.variables if v.dtype in (tf.float32, "float32")]
    found["parameters"] = np.array(sum(int(np.prod(v.shape)) for v in variables))
    found["layers"] = np.array(len([v for v in variables if len(v.shape) > 1]))
    if name == "digits":
        found["labels"] = digits_data()[1][240:]
    np.savez(os.path.join(folder, f"{name}.npz"), **found)
    if network.frozen:
        from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2

        graph = convert_variables_to_constants_v2(concrete).graph.as_graph_def()
        with open(os.path.join(folder, f"{name}.pb"), "wb") as file:
            file.write(graph.SerializeToString())
    else:
        holder = model if not isinstance(model, keras().Model) else tf.Module()
        holder.forward, holder.model = function, model
        tf.saved_model.save(holder, os.path.join(folder, name), signatures={"serving_default": concrete})


def wrapped(tf: Any, model: Any, draw: dict[str, Any]) -> Any:
    """A Keras model as a function of named tensors that gives named tensors."""
    specs = [tf.TensorSpec((None, *value.shape[1:]), tf.as_dtype(value.dtype), name=key) for key, value in draw.items()]

    @tf.function(input_signature=specs)
    def forward(*values: Any) -> dict[str, Any]:
        given = model(list(values) if len(values) > 1 else values[0], training=False)
        return given if isinstance(given, dict) else {"result": given}

    return forward


def settle(model: Any, network: Network) -> None:
    """Statistics of a batch for the batch norms; the last layer's bias takes the mean off where it gives classes."""
    k = keras()
    draws = [network.feeds(seed) for seed in range(100, 108)]
    batch = [np.concatenate([draw[key] for draw in draws]) for key in draws[0]]
    random = np.random.default_rng(1)
    for layer in model._flatten_layers():
        if isinstance(layer, k.layers.BatchNormalization):
            layer.momentum = 0.0
            if layer.scale:
                layer.gamma.assign(random.uniform(0.5, 1.5, layer.gamma.shape))
            layer.beta.assign(random.normal(0.2, 0.3, layer.beta.shape))
    model(batch[0] if len(batch) == 1 else batch, training=True)
    dense = [layer for layer in model._flatten_layers() if isinstance(layer, k.layers.Dense)]
    given = model(batch[0] if len(batch) == 1 else batch, training=False)
    if dense and not isinstance(given, dict) and len(given.shape) == 2 and given.shape[-1] == dense[-1].units:
        dense[-1].bias.assign(dense[-1].bias - np.asarray(given).mean(0))


if __name__ == "__main__":
    main()

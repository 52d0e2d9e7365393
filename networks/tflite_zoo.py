# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""Makes the TensorFlow Lite networks: `.venv-tensorflow/bin/python -P networks/tflite_zoo.py FOLDER`.

It runs in TensorFlow's own environment, which `make env-tensorflow` makes, and imports nothing of npukit (-P: nothing
of this folder either). The integer classifiers and the super-resolution are trained, some minutes in all, on what
scikit-learn brings: handwritten digits and two photographs. The weights of the others are random with norms' statistics
taken from data, so that the activations keep their scale through the depth. NAME.KIND.tflite of every network and kind
goes to the folder that is named, with NAME.npz: the inputs that it is judged on, and of a trained one what it should
answer (`labels` or `truth`); neither training nor calibration has seen these.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
import warnings
from pathlib import Path

os.environ |= {"TF_ENABLE_ONEDNN_OPTS": "0", "CUDA_VISIBLE_DEVICES": "", "TF_CPP_MIN_LOG_LEVEL": "3"}
warnings.simplefilter("ignore")

import keras  # noqa: E402  (TensorFlow reads the environment when it is imported)
import numpy as np  # noqa: E402
import tensorflow as tf  # noqa: E402
from keras import applications, layers  # noqa: E402
from sklearn.datasets import load_digits, load_sample_images  # noqa: E402
from tensorflow.compiler.tf2xla.ops.gen_xla_ops import xla_dynamic_update_slice  # noqa: E402
from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2  # noqa: E402

L = layers
HELD_OUT = 256  # of the 1,797 digits
ALL = ("float32", "float16", "dynamic", "int8")


def images(count, size, channels=3, low=-1.0, seed=1):
    """Smooth random pictures: sums of a coarse, a middle and a fine noise."""
    random = np.random.default_rng(seed)
    total = np.zeros((count, size, size, channels), np.float32)
    for cells, weight in ((3, 1.0), (9, 0.6), (size, 0.25)):
        noise = random.normal(0, weight, (count, cells, cells, channels)).astype(np.float32)
        total += tf.image.resize(noise, (size, size), method="bilinear").numpy()
    total -= total.min((1, 2, 3), keepdims=True)
    total /= total.max((1, 2, 3), keepdims=True)
    return (low + (1 - low) * total).astype(np.float32)


def enliven(model, batch, classifier=True, directions=0):
    """Random norms, their statistics from `batch`, and a last layer that does not answer all alike.

    `directions`: how many of those that hold most of the features of `batch` it does not look at, where they would hide
    all others.
    """
    random = np.random.default_rng(5)
    residual = {node.operation.name for layer in model.layers if isinstance(layer, L.Add)
                for node in _sources(layer)}  # fmt: skip
    for layer in model.layers:
        if isinstance(layer, (L.Conv2D, L.DepthwiseConv2D, L.SeparableConv2D, L.Conv1D)):
            layer.set_weights([_smooth(weight, random) for weight in layer.get_weights()])
        if isinstance(layer, L.BatchNormalization):
            width = layer.moving_mean.shape[0]
            # before an activation mostly positive, on a residual branch small: as after training
            if layer.scale:
                gain = 0.2 if layer.name in residual else 1.0
                layer.gamma.assign(gain * random.uniform(0.7, 1.3, width))
            if layer.center:
                layer.beta.assign(random.normal(0.0 if layer.name in residual else 1.0, 0.3, width))
            layer.momentum = 0.0
    model(batch, training=True)
    last = model.layers[-1]
    if classifier and isinstance(last, L.Dense):
        features = keras.Model(model.inputs, last.input)(batch, training=False).numpy().reshape(len(batch), -1)
        mean = features.mean(0)
        kernel = last.kernel.numpy() * 4
        along = np.outer(mean, mean @ kernel) / (mean @ mean)
        # no more than needed: what is taken away is signal, and the rounding errors stay
        for share in (0.0, 0.5, 0.7, 0.8, 0.9, 1.0):
            if nearest_pair(features[:12] @ (kernel - share * along)) < 0.88:
                break
        kernel = kernel - share * along
        main = np.linalg.svd(features, full_matrices=False)[2][:directions]
        last.kernel.assign(kernel - main.T @ (main @ kernel))


def nearest_pair(rows):
    """The largest cosine between two rows."""
    units = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    return float((units @ units.T)[~np.eye(len(rows), dtype=bool)].max())


def _smooth(weight, random):
    """A window's weights mostly alike, as training makes them: noise of one element is averaged, not amplified."""
    if weight.ndim < 3 or np.prod(weight.shape[:-2]) == 1:
        return weight
    taps = int(np.prod(weight.shape[:-2]))
    mean = (
        random.normal(0, 1, weight.shape[-2:]) if weight.shape[-1] > 1 else random.uniform(0.5, 1.5, weight.shape[-2:])
    )
    weight = weight / weight.std() * 0.15 + mean
    return (weight / np.sqrt(taps * taps * weight.shape[-2])).astype(np.float32)


def _sources(layer):
    return [tensor._keras_history for node in layer._inbound_nodes for tensor in node.input_tensors]


def application(make, size, directions=0, **more):
    """One of tf.keras.applications."""

    def build():
        model = make(weights=None, input_shape=(size, size, 3), classes=200, classifier_activation=None, **more)
        enliven(model, images(24, size, seed=2), directions=directions)
        return model, images(16, size)

    return build


# ---------------------------------------------------------------- own networks


def _conv(x, width, kernel=3, stride=1, rate=1, act="relu"):
    x = L.Conv2D(width, kernel, strides=stride, padding="same", dilation_rate=rate, use_bias=False)(x)
    x = L.BatchNormalization()(x)
    return L.Activation(act)(x) if act else x


def _separable(x, width, stride=1, rate=1):
    x = L.DepthwiseConv2D(3, strides=stride, padding="same", dilation_rate=rate, use_bias=False)(x)
    x = L.ReLU(6.0)(L.BatchNormalization()(x))
    return L.ReLU(6.0)(L.BatchNormalization()(L.Conv2D(width, 1, use_bias=False)(x)))


def deeplab():
    """Segmentation: separable backbone at stride 16, atrous pyramid, decoder with a skip."""
    inputs = keras.Input((129, 129, 3))
    x = _conv(inputs, 32, stride=2)
    x = _separable(x, 64)
    skip = x = _separable(x, 128, 2)
    for width, stride, rate in ((128, 1, 1), (256, 2, 1), (256, 1, 1), (256, 2, 1), (256, 1, 1), (256, 1, 2)):
        x = _separable(x, width, stride, rate)
    pooled = L.GlobalAveragePooling2D(keepdims=True)(x)
    pooled = L.Resizing(x.shape[1], x.shape[2], interpolation="bilinear")(_conv(pooled, 128, 1))
    parts = [pooled, _conv(x, 128, 1), *(_separable(x, 128, 1, rate) for rate in (2, 4, 6))]
    x = _conv(L.Concatenate()(parts), 128, 1)
    x = L.Resizing(skip.shape[1], skip.shape[2], interpolation="bilinear")(x)
    x = L.Concatenate()([x, _conv(skip, 32, 1)])
    x = _separable(_separable(x, 128), 128)
    x = L.Resizing(129, 129, interpolation="bilinear")(L.Conv2D(5, 1)(x))
    model = keras.Model(inputs, x)
    enliven(model, images(8, 129, seed=2), classifier=False)
    return model, images(4, 129)


def photographs(size, step, held_out):
    """Patches [N, size, size, 3] in -1 to 1 of scikit-learn's two photographs: their right third, or the rest."""
    found = []
    for picture in load_sample_images().images:
        edge = picture.shape[1] * 2 // 3
        part = picture[:, edge:] if held_out else picture[:, :edge]
        places = [range(0, length - size + 1, step) for length in part.shape[:2]]
        found += [part[y : y + size, x : x + size] for y in places[0] for x in places[1]]
    return np.stack(found).astype(np.float32) / 127.5 - 1


def smaller(pictures):
    """A third of the size: means of 3x3 pixels."""
    count, size, _, channels = pictures.shape
    return pictures.reshape(count, size // 3, 3, size // 3, 3, channels).mean((2, 4))


def super_resolution():
    """Residual blocks, their sum with the picture and depth to space, three times the size; trained."""

    def network(size):
        inputs = keras.Input((size, size, 3))
        skip = x = L.Conv2D(32, 3, padding="same")(inputs)
        for _ in range(10):
            y = L.Conv2D(32, 3, padding="same")(L.Conv2D(32, 3, padding="same", activation="relu")(x))
            x = L.Add()([x, L.Rescaling(0.1)(y)])
        x = L.Add()([L.Conv2D(32, 3, padding="same")(x), skip])
        x = L.Add()([L.Conv2D(3 * 9, 3, padding="same")(x), L.Concatenate()([inputs] * 9)])
        return keras.Model(inputs, L.Lambda(lambda v: tf.nn.depth_to_space(v, 3))(x))

    known = photographs(48, 24, held_out=False)
    known = np.concatenate([known, known[:, ::-1], known[:, :, ::-1]])
    trained = network(16)
    fit(trained, smaller(known), known, 5, 1e-3, "mean_absolute_error", batch=16)
    model = network(32)
    model.set_weights(trained.get_weights())
    truth = photographs(96, 24, held_out=True)[:128]
    small = smaller(truth)
    plain = tf.image.resize(small, (96, 96), method="bicubic").numpy()
    found = model.predict(small, verbose=0)
    levels = ", ".join(f"{peak_ratio(v, truth):.2f} dB {name}" for name, v in (("network", found), ("bicubic", plain)))
    say(f"super_resolution: peak signal to noise on {len(truth)} patches that were held out: {levels}")
    return model, small, smaller(photographs(96, 48, held_out=False))[::2], {"truth": truth}


def peak_ratio(found, truth):
    """Peak signal-to-noise ratio in dB of pictures from -1 to 1."""
    return float(10 * np.log10(4 / ((np.clip(found, -1, 1) - truth) ** 2).mean()))


def spectrogram(waves):
    """Log magnitudes of short-time Fourier transforms."""
    frames = tf.signal.frame(waves, 256, 128)
    window = tf.constant(np.hanning(256).astype(np.float32))
    spectrum = tf.abs(tf.signal.rfft(frames * window, [256]))
    return tf.math.log(spectrum + 1e-3)[..., tf.newaxis]


def audio():
    """A waveform, its log spectrogram by a Fourier transform in the model, and a convolutional network."""
    inputs = keras.Input((8064,), name="wave")
    x = L.Lambda(spectrogram)(inputs)
    x = _conv(x, 32)
    for width, stride in ((48, 2), (48, 1), (96, 2), (96, 1), (192, 2), (192, 1), (384, 2), (384, 1)):
        x = _separable(x, width, stride)
    x = L.Dense(35)(L.GlobalAveragePooling2D()(x))
    model = keras.Model(inputs, x)
    enliven(model, waves(32, 2))
    return model, waves(16, 1)


def waves(count, seed):
    """Half a second of tones and noise."""
    random = np.random.default_rng(seed)
    time_ = np.arange(8064) / 16000
    tones = random.uniform(100, 4000, (count, 4, 1))
    sound = (random.uniform(0.1, 0.5, (count, 4, 1)) * np.sin(2 * np.pi * tones * time_)).sum(1)
    return (sound + random.normal(0, 0.02, sound.shape)).astype(np.float32)


def series(count, steps, width, seed):
    """Noisy sines."""
    random = np.random.default_rng(seed)
    t = np.arange(steps)[None, :, None] / steps
    rate, phase = random.uniform(0.5, 6, (2, count, 1, width))
    return (np.sin(2 * np.pi * rate * t + phase) + random.normal(0, 0.2, (count, steps, width))).astype(np.float32)


def tcn():
    """Causal dilated convolutions with residuals over handwritten digits, row after row; trained."""
    inputs = keras.Input((48, 16))
    x = L.Conv1D(96, 1)(inputs)
    for rate in (1, 2, 4, 8, 16, 1, 2, 4, 8, 16):
        y = L.Conv1D(96, 3, padding="causal", dilation_rate=rate, use_bias=False)(x)
        y = L.ReLU()(L.BatchNormalization()(y))
        y = L.BatchNormalization()(L.Conv1D(96, 1, use_bias=False)(y))
        x = L.Add()([x, y])
    model = keras.Model(inputs, L.Dense(10)(L.GlobalAveragePooling1D()(x)))
    return classifier("tcn", model, lambda v: tf.image.resize(v, (48, 16))[..., 0], 3)


def recurrent(*cells):
    """Recurrent layers one after the other; a cell is made from whether it gives a sequence."""

    def build():
        inputs = keras.Input((32, 16))
        x = inputs
        for i, cell in enumerate(cells):
            x = cell(i < len(cells) - 1)(x)
        x = L.Dense(24)(L.Dense(128, activation="relu")(x))
        return keras.Model(inputs, x), 3 * series(16, 32, 16, 1)

    return build


def lstm(width):
    """An LSTM layer, as `recurrent` takes it."""
    return lambda sequences: L.LSTM(width, return_sequences=sequences)


def transformer():
    """An encoder over token vectors, with learnt positions."""
    inputs = keras.Input((48, 64))
    x = L.Dense(256)(inputs)
    x = x + L.Embedding(48, 256)(tf.range(48)[None])
    for _ in range(4):
        x = L.LayerNormalization(epsilon=1e-5)(x + L.MultiHeadAttention(8, 32)(x, x))
        y = L.Dense(256)(L.Dense(1024, activation="gelu")(x))
        x = L.LayerNormalization(epsilon=1e-5)(x + y)
    x = L.Dense(100)(L.GlobalAveragePooling1D()(x))
    return keras.Model(inputs, x), 3 * series(16, 48, 64, 1)


class Decoder(tf.Module):
    """One token of a small language model; keys and values of the tokens before are inputs and outputs."""

    blocks, width, heads, words, room = 4, 256, 8, 2000, 64

    def __init__(self):
        super().__init__()
        random = np.random.default_rng(3)

        def weight(*shape):
            return tf.constant(random.normal(0, shape[0] ** -0.5, shape).astype(np.float32))

        w = self.width
        self.words_in, self.places = weight(self.words, w) * 40, weight(self.room, w) * 4
        shapes = {"q": (w, w), "k": (w, w), "v": (w, w), "o": (w, w), "up": (w, 4 * w), "down": (4 * w, w)}
        self.layers = [{name: weight(*shape) for name, shape in shapes.items()} for _ in range(self.blocks)]
        self.out = weight(w, self.words)

    @staticmethod
    def norm(x):
        return x * tf.math.rsqrt(tf.reduce_mean(x * x, -1, keepdims=True) + 1e-5)

    def step(self, token, position, cache):
        """Token [1], position [1] int32, cache [blocks, 2, heads, room, width / heads] -> scores, new cache."""
        heads, size = self.heads, self.width // self.heads
        x = tf.gather(self.words_in, token) + tf.gather(self.places, position)
        seen = tf.where(tf.range(self.room)[None, None, :] <= position[0], 0.0, -1e4)
        kept = []
        for i, layer in enumerate(self.layers):
            y = self.norm(x)
            q = tf.reshape(y @ layer["q"], [heads, 1, size])
            pair = [tf.reshape(y @ layer[n], [heads, 1, size]) for n in ("k", "v")]
            zero = tf.zeros([], tf.int32)
            k, v = (
                xla_dynamic_update_slice(cache[i, j], new, tf.stack([zero, position[0], zero]))
                for j, new in enumerate(pair)
            )
            kept.append(tf.stack([k, v]))
            weights = tf.nn.softmax(tf.matmul(q, k, transpose_b=True) * size**-0.5 + seen)
            x = x + tf.reshape(tf.matmul(weights, v), [1, self.width]) @ layer["o"]
            x = x + tf.nn.gelu(self.norm(x) @ layer["up"]) @ layer["down"]
        return {"scores": self.norm(x) @ self.out, "new_cache": tf.stack(kept)}


def decoder():
    """One step of a language model."""
    module = Decoder()
    d = Decoder
    shape = (d.blocks, 2, d.heads, d.room, d.width // d.heads)
    specs = [tf.TensorSpec([1], tf.int32, "token"), tf.TensorSpec([1], tf.int32, "position"),
             tf.TensorSpec(shape, tf.float32, "cache")]  # fmt: skip
    random = np.random.default_rng(1)
    samples = [
        {"token": np.array([random.integers(d.words)], np.int32), "position": np.array([p], np.int32),
         "cache": random.normal(0, 1, shape).astype(np.float32)} for p in (0, 1, 5, 20, 40, 63)
    ]  # fmt: skip
    return tf.function(module.step, input_signature=specs), samples


POST = """name: "TFLite_Detection_PostProcess" attr { key: "max_detections" value { i: 10 } }
attr { key: "max_classes_per_detection" value { i: 1 } } attr { key: "use_regular_nms" value { b: false } }
attr { key: "nms_score_threshold" value { f: 0.0 } } attr { key: "nms_iou_threshold" value { f: 0.6 } }
attr { key: "y_scale" value { f: 10.0 } } attr { key: "x_scale" value { f: 10.0 } }
attr { key: "h_scale" value { f: 5.0 } } attr { key: "w_scale" value { f: 5.0 } }
attr { key: "num_classes" value { i: 20 } }"""


def ssd():
    """Detection: separable backbone, two feature maps with six anchors a cell, TensorFlow Lite's post-processing."""
    inputs = keras.Input((160, 160, 3))
    x = _conv(inputs, 32, stride=2)
    for width, stride in ((64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (384, 2), (384, 1), (384, 1)):
        x = _separable(x, width, stride)
    deep = _separable(x, 512, 2)
    boxes, scores, grid = [], [], []
    for level, feature in enumerate((x, deep)):
        cells = feature.shape[1]
        boxes.append(L.Reshape((cells * cells * 6, 4))(L.Conv2D(24, 3, padding="same")(feature)))
        scores.append(L.Reshape((cells * cells * 6, 21))(L.Conv2D(126, 3, padding="same")(feature)))
        centres = (np.arange(cells) + 0.5) / cells
        for y in centres:
            for c in centres:
                for k in range(6):
                    size = (0.15 + 0.25 * level) * (1 + k % 2)
                    wide = (0.7, 1.0, 1.4)[k // 2]
                    grid.append((y, c, size / wide, size * wide))
    model = keras.Model(inputs, [L.Concatenate(axis=1)(boxes),
                                 L.Activation("sigmoid")(L.Concatenate(axis=1)(scores))])  # fmt: skip
    enliven(model, images(16, 160, seed=2), classifier=False)
    for layer in model.layers:
        if isinstance(layer, L.Conv2D) and layer.filters == 24:
            layer.kernel.assign(2 * layer.kernel)  # boxes that follow the picture more than their anchors
    anchors = tf.constant(np.array(grid, np.float32))

    @tf.function(experimental_implements=POST)
    def post(encodings, classes, anchors):
        return tuple(tf.constant(0.0, shape=s) for s in ((1, 10, 4), (1, 10), (1, 10), (1,)))

    specs = [tf.TensorSpec((1, 160, 160, 3), tf.float32, "image")]
    network = tf.function(lambda image: model(image, training=False), input_signature=specs)
    network = convert_variables_to_constants_v2(network.get_concrete_function())

    def run(image):
        encodings, classes = network(image)
        found = post(encodings, classes, anchors)
        return dict(zip(("boxes", "classes", "scores", "count"), found, strict=True))

    return tf.function(run, input_signature=specs), [{"image": x[None]} for x in images(8, 160)]


def handwritten():
    """scikit-learn's digits [N, 8, 8, 1] in 0 to 1 and their labels, shuffled: those to train on, those held out."""
    data = load_digits()
    order = np.random.default_rng(4).permutation(len(data.target))
    x, y = data.images[order, :, :, None].astype(np.float32) / 16, data.target[order]
    return (x[HELD_OUT:], y[HELD_OUT:]), (x[:HELD_OUT], y[:HELD_OUT])


def same(values):
    """As they are."""
    return values


def fit(model, x, y, epochs, rate, loss, batch=64, prepare=same):
    """Adam, its rate falling to nothing; norms that follow their statistics within few steps."""
    for layer in model.layers:
        if isinstance(layer, L.BatchNormalization):
            layer.momentum = 0.9
    schedule = keras.optimizers.schedules.CosineDecay(rate, epochs * -(-len(x) // batch))
    model.compile(keras.optimizers.Adam(schedule), loss)
    data = tf.data.Dataset.from_tensor_slices((x, y)).shuffle(len(x), seed=1).batch(batch)
    model.fit(data.map(lambda v, wanted: (prepare(v), wanted)), epochs=epochs, verbose=0)


def classifier(name, model, prepare, epochs, batch=64):
    """Train a network of ten scores on handwritten digits, moved by up to a pixel and as `prepare` makes inputs."""
    (x, y), (held_out, labels) = handwritten()
    moves = ((0, 0), (0, 1), (0, -1), (1, 0), (-1, 0))
    moved = np.concatenate([np.roll(x, move, (1, 2)) for move in moves])
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    fit(model, moved, np.tile(y, len(moves)), epochs, 2e-3, loss, batch, prepare)
    samples = np.asarray(prepare(held_out))
    right = float((model.predict(samples, verbose=0).argmax(1) == labels).mean())
    say(f"{name}: {right:.3f} of the {len(labels)} digits held out")
    return model, samples, np.asarray(prepare(x[:100])), {"labels": labels}


def mobilenet_v2():
    """Keras' MobileNetV2 on handwritten digits, made larger; trained."""
    model = applications.MobileNetV2((128, 128, 3), 0.35, weights=None, classes=10, classifier_activation=None)
    larger = lambda v: tf.repeat(tf.image.resize(v, (128, 128)) * 2 - 1, 3, -1)  # noqa: E731
    return classifier("mobilenet_v2", model, larger, 2, batch=32)


def digits():
    """A residual network on handwritten digits; trained."""
    inputs = keras.Input((8, 8, 1))
    h = _conv(inputs, 32)
    for width, stride in ((32, 1), (32, 1), (64, 2), (64, 1), (96, 2), (96, 1)):
        skip = h if stride == 1 and h.shape[-1] == width else _conv(h, width, 1, stride, act=None)
        h = L.ReLU()(L.Add()([skip, _conv(_conv(h, width, stride=stride), width, act=None)]))
    model = keras.Model(inputs, L.Dense(10)(L.GlobalAveragePooling2D()(h)))
    return classifier("digits", model, same, 5)


NETWORKS = {
    "mobilenet_v2": (mobilenet_v2, ALL),
    "mobilenet_v3": (
        application(applications.MobileNetV3Small, 128, include_preprocessing=False), ("float32", "float16"),
    ),
    "efficientnet_b0": (application(applications.EfficientNetB0, 128), ("float32", "float16")),
    "resnet50_v2": (application(applications.ResNet50V2, 128), ("float32",)),
    "densenet121": (application(applications.DenseNet121, 96), ("float32",)),
    "xception": (application(applications.Xception, 128, directions=3), ("float32",)),
    "deeplab": (deeplab, ("float32", "float16", "int8")),
    "ssd": (ssd, ("float32",)),
    "super_resolution": (super_resolution, ALL),
    "audio": (audio, ("float32", "dynamic")),
    "tcn": (tcn, ("float32", "int8")),
    "lstm": (recurrent(lstm(320), lstm(320)), ("float32", "dynamic")),
    "bidirectional_gru": (
        recurrent(lambda s: L.Bidirectional(L.GRU(256, return_sequences=s)), lambda s: L.GRU(256, return_sequences=s)),
        ("float32",),
    ),
    "transformer": (transformer, ("float32", "dynamic")),
    "decoder": (decoder, ("float32", "float16")),
    "digits": (digits, (*ALL, "int16")),
}  # fmt: skip


# ---------------------------------------------------------------- conversion


def convert(converter, kind, calibration):
    """The file of one kind."""
    converter.allow_custom_ops = True
    if kind != "float32":
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
    if kind == "float16":
        converter.target_spec.supported_types = [tf.float16]
    if kind in ("int8", "int16"):
        sets = tf.lite.OpsSet
        wide = sets.EXPERIMENTAL_TFLITE_BUILTINS_ACTIVATIONS_INT16_WEIGHTS_INT8
        converter.representative_dataset = calibration
        converter.target_spec.supported_ops = [sets.TFLITE_BUILTINS_INT8 if kind == "int8" else wide]
        converter.inference_input_type = converter.inference_output_type = {"int8": tf.int8, "int16": tf.int16}[kind]
    return converter.convert()


def write(name, folder, only=None):
    """All kinds of one network, or only one."""
    keras.utils.set_random_seed(7)
    start = time.perf_counter()
    build, kinds = NETWORKS[name]
    model, samples, *trained = build()  # of a trained one also what to calibrate with, and what is right
    calibration, answers = trained or (samples, {})
    if isinstance(model, keras.Model):
        specs = [tf.TensorSpec((1, *v.shape[1:]), v.dtype, name="x") for v in model.inputs]
        function = tf.function(lambda x: {"y": model(x, training=False)}, input_signature=specs)
        feeds, seen = ([{"x": value[None]} for value in values] for values in (samples, calibration))
        concrete = convert_variables_to_constants_v2(function.get_concrete_function())
    else:
        concrete, feeds, seen = model.get_concrete_function(), samples, calibration
    module = tf.Module()
    module.run = concrete
    for kind in [only] if only else kinds:
        converter = tf.lite.TFLiteConverter.from_concrete_functions([concrete], module)
        content = convert(converter, kind, lambda: iter(seen[:100]))
        (folder / f"{name}.{kind}.tflite").write_bytes(content)
    stacked = {key: np.stack([feed[key] for feed in feeds]) for key in feeds[0]}
    np.savez_compressed(folder / f"{name}.npz", **stacked, **answers)
    say(f"{name}: {', '.join(kinds)} in {time.perf_counter() - start:.0f} s")


def say(text):
    """Print now."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("names", nargs="*", help=f"of {', '.join(NETWORKS)} [all]")
    parser.add_argument("--kind", help="only this one [all of the network]")
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    tf.config.threading.set_intra_op_parallelism_threads(2)
    for chosen in options.names or NETWORKS:
        write(chosen, options.folder, options.kind)

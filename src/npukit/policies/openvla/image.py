# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""A camera's picture on its way to OpenVLA's network: what its LIBERO evaluation does in TensorFlow, without it.

The policy was trained on pictures that had been stored as JPEG and shrunk by TensorFlow, so a picture goes the same
way here. What each step computes was settled by comparison with TensorFlow 2.21 (tools/openvla_image_reference.py,
tests/test_openvla_image.py); arithmetic is float32 in the order of TensorFlow's own loops.
"""

from __future__ import annotations

import functools
import hashlib
import io
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from npukit.errors import ArtifactError, InputError, MissingDependency

Array = npt.NDArray[Any]
Pixels = npt.NDArray[np.uint8]

JPEG = {
    "quality": 95,
    "subsampling": "4:2:0",
    "encode_dct": "accurate",
    "decode_dct": "fast",
    "upsampling": "fancy",
}
"""What TensorFlow's `encode_jpeg` and `decode_jpeg` do unless told otherwise, in libjpeg-turbo's words.

The encoder's DCT is the accurate one (its bytes are Pillow's, entropy-coded data and tables alike); the decoder's is
the fast one, with smooth upsampling of the colours. A decoder with the accurate DCT, as Pillow's, is off by up to 20
counts.
"""

_LONGEST = 65500  # pixels of an edge that libjpeg takes
EXTRA = "pip install 'npukit[openvla]'"


# ---------------------------------------------------------------- JPEG


def jpeg_round_trip(image: Pixels) -> Pixels:
    """uint8 [H, W, 3] written as JPEG and read back, as `JPEG` says.

    Raises:
        MissingDependency: simplejpeg is not installed, or a JPEG library here does not compute what TensorFlow's does.
    """
    _check_codecs()
    return _round_trip(image)


def _round_trip(image: Pixels) -> Pixels:
    if max(image.shape[:2]) > _LONGEST:
        raise InputError(f"a picture of {image.shape[1]} x {image.shape[0]} pixels cannot be a JPEG")
    try:
        import simplejpeg
    except ImportError:
        raise MissingDependency(
            "OpenVLA's pictures are decoded by simplejpeg, which is not installed (Pillow cannot do it: its accurate "
            "DCT is off by up to 20 counts from what the policy was trained on)",
            where="simplejpeg", hint=EXTRA,
        ) from None  # fmt: skip
    from PIL import Image

    stream = io.BytesIO()
    # not simplejpeg.encode_jpeg: below quality 96 it always takes the fast DCT
    Image.fromarray(image).save(stream, "JPEG", quality=JPEG["quality"], subsampling=JPEG["subsampling"])
    decoded: Pixels = simplejpeg.decode_jpeg(stream.getvalue(), "RGB", fastdct=True, fastupsample=False)
    return decoded


_PATTERN_SHA256 = "d34089ec4fa67ef2353eb29daf988b15b1d47d1724139e4ed6f94ca0a0368d46"  # from TensorFlow


@functools.cache
def _check_codecs() -> None:
    """Once a process: Pillow and simplejpeg may be built on a JPEG library that rounds otherwise."""
    rng = np.random.default_rng(0)
    pattern = rng.integers(0, 256, (40, 56, 3), np.uint8)
    pattern[:20] = np.linspace(0, 255, 56).astype(np.uint8)[:, None]  # smooth above, noise below
    if hashlib.sha256(_round_trip(pattern).tobytes()).hexdigest() != _PATTERN_SHA256:
        import PIL
        import simplejpeg

        raise MissingDependency(
            f"the JPEG libraries of Pillow {PIL.__version__} and simplejpeg {simplejpeg.__version__} do not compute "
            "what TensorFlow's does",
            where="jpeg_round_trip", hint="install the wheels of both, which hold libjpeg-turbo: " + EXTRA,
        )  # fmt: skip


# ---------------------------------------------------------------- sizes


def lanczos3_resize(image: Pixels, height: int, width: int) -> Pixels:
    """uint8 [H, W, C] to uint8 [height, width, C]: Lanczos with 3 lobes, smoothed where it shrinks.

    As tf.image.resize(method="lanczos3", antialias=True), rounded half to even and clipped. Rows first, then columns.
    """
    values = _weighted(image.astype(np.float32), *_lanczos3(image.shape[0], height))
    values = _weighted(values.swapaxes(0, 1), *_lanczos3(image.shape[1], width)).swapaxes(0, 1)
    result: Pixels = np.clip(np.rint(values), 0, 255).astype(np.uint8)
    return result


def _weighted(values: Array, taps: npt.NDArray[np.int64], weights: npt.NDArray[np.float32]) -> Array:
    """Row i of the result: the sum over k of weights[i, k] * values[taps[i, k]], summed in float32, in that order."""
    result: Array = np.zeros((len(taps), *values.shape[1:]), np.float32)
    for k in range(taps.shape[1]):
        result += values[taps[:, k]] * weights[:, k, None, None]
    return result


@functools.lru_cache(maxsize=16)
def _lanczos3(size: int, to: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]:
    """For each of `to` target pixels the source pixels int64 [to, taps] and their weights float32, which sum up to 1.

    The kernel is 3 sin(pi x) sin(pi x / 3) / (pi x)^2 for |x| up to 3, widened where the image shrinks. The order of
    the float32 operations is TensorFlow's: in smooth pictures many sums lie in the middle between two counts, and the
    last bits of the weights decide.
    """
    f32 = np.float32
    scale = f32(size) / f32(to)
    wide = max(scale, f32(1))  # no smoothing where it grows
    centre = (np.arange(to, dtype=np.float32) + f32(0.5)) * scale
    first = np.maximum(np.ceil(centre - f32(3) * wide - f32(0.5)), 0).astype(np.int64)
    last = np.minimum(np.floor(centre + f32(3) * wide - f32(0.5)), size - 1).astype(np.int64)
    taps = first[:, None] + np.arange(int((last - first).max()) + 1)
    x = np.abs((taps.astype(np.float32) + f32(0.5) - centre[:, None]) * (f32(1) / wide))
    angle = f32(np.pi) * x
    with np.errstate(invalid="ignore"):  # 0 / 0 at the centre
        kernel = f32(3) * _sine(angle) * _sine(angle / f32(3)) / (f32(np.pi) * f32(np.pi) * x * x)
    kernel[x <= f32(1e-3)] = 1
    kernel[(x > f32(3)) | (taps > last[:, None])] = 0
    weights = kernel * (f32(1) / kernel.cumsum(axis=1)[:, -1:])  # summed one by one
    return np.minimum(taps, size - 1), weights


def _sine(angle: Array) -> npt.NDArray[np.float32]:
    """In float64, rounded once: numpy's sines of float32 differ in the last bit from processor to processor."""
    return np.sin(angle.astype(np.float64)).astype(np.float32)


def center_crop(image: Pixels, area: float) -> Pixels:
    """uint8 [H, W, C] to the same shape: the middle part that has the share `area`, widened to the whole again.

    As tf.image.crop_and_resize of the box with edges sqrt(area): bilinear, the box's corner pixels on the result's.
    Values go to [0, 1] and back by floor(255.5 x), as TensorFlow's convert_image_dtype(saturate=True) does it.
    """
    values = image.astype(np.float32) * np.float32(1 / 255)
    top, bottom, down = _corners(image.shape[0], area)
    left, right, across = _corners(image.shape[1], area)
    across = across[:, None]

    def row(at: npt.NDArray[np.int64]) -> Array:
        first, second = values[at][:, left], values[at][:, right]
        between: Array = first + (second - first) * across
        return between

    above = row(top)
    mixed = above + (row(bottom) - above) * down[:, None, None]
    result: Pixels = (np.clip(mixed, 0, 1) * np.float32(255.5)).astype(np.uint8)
    return result


@functools.lru_cache(maxsize=16)
def _corners(size: int, area: float) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], Array]:
    """For each target pixel the source pixels before and after it, and the second's weight; float32."""
    f32 = np.float32
    edge = np.sqrt(f32(area))
    low = (f32(1) - edge) / f32(2)
    high = low + edge
    step = (high - low) * f32(size - 1) / f32(max(size - 1, 1))
    at = low * f32(size - 1) + np.arange(size, dtype=np.float32) * step
    first = np.floor(at)
    return first.astype(np.int64), np.ceil(at).astype(np.int64), at - first


# ---------------------------------------------------------------- the network's input


def stack_normalized(image: Array, parts: list[Mapping[str, Any]]) -> Array:
    """float32 [1, 3, H, W] from 0 to 1 to float32 [1, 3 * parts, H, W]: (x - mean) / std, once for each part."""
    stacked = [(image - _channels(part["mean"])) / _channels(part["std"]) for part in parts]
    return np.concatenate(stacked, axis=1)


def _channels(values: Any) -> Array:
    found: Array = np.asarray(values, np.float32).reshape(1, 3, 1, 1)
    return found


# ---------------------------------------------------------------- as steps


def pixels(image: Array) -> Pixels:
    """A picture as an observation may hold it as uint8 [H, W, 3]: that, or float32 [3, H, W] from 0 to 1."""
    if image.dtype == np.uint8:
        return image
    rounded: Pixels = np.clip(np.rint(image.transpose(1, 2, 0) * np.float32(255)), 0, 255).astype(np.uint8)
    return rounded


Step = Mapping[str, Any]


def _jpeg_step(step: Step) -> Callable[[Array], Array]:
    given = {name: step.get(name) for name in JPEG}
    if given != JPEG:
        wrong = ", ".join(f"{name} {given[name]!r}" for name in JPEG if given[name] != JPEG[name])
        raise ArtifactError(
            f"the step jpeg_round_trip with {wrong} is refused: it would not give the pictures that the policy was "
            "trained on",
            hint=f"what TensorFlow does, and this step: {JPEG}",
        )  # fmt: skip
    _check_codecs()
    return lambda image: jpeg_round_trip(pixels(image))


def _lanczos_step(step: Step) -> Callable[[Array], Array]:
    height, width = int(step["height"]), int(step["width"])
    if not (0 < height <= _LONGEST and 0 < width <= _LONGEST):
        raise ValueError(f"{height} x {width} is no size")
    return lambda image: lanczos3_resize(pixels(image), height, width)


def _crop_step(step: Step) -> Callable[[Array], Array]:
    area = float(step["area"])
    if not 0 < area < 1:
        raise ValueError(f"an area between 0 and 1 is needed, not {area}")
    return lambda image: center_crop(pixels(image), area)


def _stack_step(step: Step) -> Callable[[Array], Array]:
    parts = list(step["parts"])
    numbers = [_channels(part[name]) for part in parts for name in ("mean", "std")]
    if not numbers or not all(np.isfinite(array).all() for array in numbers) or not all(map(np.all, numbers[1::2])):
        raise ValueError("finite means and deviations of three channels are needed, the latter not 0")
    return lambda image: stack_normalized(image, parts)


STEPS: dict[str, Callable[[Step], Callable[[Array], Array]]] = {
    "jpeg_round_trip": _jpeg_step,
    "lanczos3_resize": _lanczos_step,
    "center_crop": _crop_step,
    "stack_normalized": _stack_step,
}
"""Steps of `npukit.policies.processing` that change each picture: options -> a function of one.

jpeg_round_trip {as `JPEG`}, lanczos3_resize {height, width}, center_crop {area}: uint8 [H, W, 3] to the same; they
    stand before `batch`.
stack_normalized {parts: [{mean, std}]}: float32 [1, 3, H, W] to [1, 3 * parts, H, W]; after `batch`.
"""

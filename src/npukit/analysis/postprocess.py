# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""From a model's outputs to what they mean, as data: the `postprocessing` part of a preprocessing spec.

Three tasks: the likeliest classes, a label for every pixel of the picture, boxes on the picture. What the steps before
the model did to the picture (resize, crop, pad) is undone by the same spec, so results are in its own pixels.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from npukit import files
from npukit.analysis.preprocess_spec import YUV, ImageSpec, PostSpec, load_yaml, parse, plain
from npukit.analysis.samples import Array
from npukit.errors import Fault, InputError, nearest

_MAX_LABELS = 100_000
OUTSIDE = 255
"""Label of pixels that a crop left out, as the label images of Pascal VOC have it."""


@dataclass(frozen=True)
class Window:
    """Where the picture lies in the model's input: pixels of the input, and what one of them is in the picture.

    Attributes:
        size: height and width of the picture.
        top, left, bottom, right: the part of the input that shows it (padding is outside).
        origin: pixel of the resized picture at (top, left): what a crop cut off.
        scale: pixels of the picture for one of the input, down and across.
    """

    size: tuple[int, int]
    top: int
    left: int
    bottom: int
    right: int
    origin: tuple[int, int]
    scale: tuple[float, float]


def window(spec: ImageSpec, size: tuple[int, int]) -> Window:
    """Where a picture of this height and width lies in the input after the steps of `spec`."""
    height, width = spec.resize.target(*size) if spec.resize else size
    scale = size[0] / height, size[1] / width
    origin = (0, 0)
    if spec.crop:
        left, top, right, bottom = spec.crop.window(height, width)
        origin, (height, width) = (top, left), (bottom - top, right - left)
    top, left = spec.pad.place(height, width) if spec.pad else (0, 0)
    return Window(size, top, left, top + height, left + width, origin, scale)


def picture_size(spec: ImageSpec, path: Path) -> tuple[int, int] | None:
    """Height and width of the picture in a file that the steps of `spec` take; None where it holds no picture."""
    from npukit.analysis.preprocess import FRAMES, IMAGES

    if path.suffix.lower() in IMAGES:
        return files.read_image(path).shape[:2]
    return spec.frame if spec.source in YUV and path.suffix.lower() in FRAMES else None


@dataclass(frozen=True)
class Postprocessing:
    """What is done with the outputs of a run.

    Example:
        >>> steps = Postprocessing.load({"task": "classification", "top": 3})
        >>> best = steps.apply(session.run({"image": image}))
    """

    spec: PostSpec

    @classmethod
    def load(cls, source: Path | str | Mapping[str, Any] | Postprocessing) -> Postprocessing:
        """The part `postprocessing` of a YAML file or a dict, or one that is nothing else.

        Raises:
            InputError: there is none, or it has unknown keys, values of the wrong kind or keys that do not go together.
        """
        if isinstance(source, Postprocessing):
            return source
        folder, where = Path(), ""
        data: Any = source
        if isinstance(source, str | Path):
            folder, where = Path(source).parent, str(source)
            data = load_yaml(Path(source))
        part = data.get("postprocessing", data) if isinstance(data, Mapping) else data
        faults: list[Fault] = []
        if isinstance(part, Mapping) and isinstance(part.get("labels"), str):
            part = {**part, "labels": _labels(folder / part["labels"])}
        spec = parse(PostSpec, part, "postprocessing", faults)
        if not faults:
            faults += [Fault(text, f"postprocessing.{key}") for key, text in _contradictions(spec)]
        if faults:
            raise InputError("the postprocessing spec cannot be meant", where=where, faults=faults)
        return cls(spec)

    def to_dict(self) -> dict[str, Any]:
        """The spec as plain data that `load` reads back; labels are in it."""
        found: dict[str, Any] = plain(self.spec)
        return found

    def apply(
        self, outputs: Mapping[str, Array], place: Window | None = None, input_size: tuple[int, int] | None = None
    ) -> dict[str, Any]:
        """What the outputs of one run (of one picture) mean.

        Args:
            outputs: arrays by name, with a leading extent of 1 or without.
            place: where the picture lies in the input; None for results in pixels of the input.
            input_size: height and width of the input, for normalized boxes and for maps of another size.

        Returns:
            {"task": "classification", "classes": [{"class", "label", "score"}]}, the best first;
            {"task": "segmentation", "map": uint8 or int32 [height, width], "shares": {label: share of the pixels}};
            {"task": "detection", "boxes": [{"class", "label", "score", "box": [left, top, right, bottom]}]}.

        Raises:
            InputError: an output is missing or has a shape that does not fit the task.
        """
        task = {"classification": self._classes, "segmentation": self._map, "detection": self._boxes}[self.spec.task]
        return {"task": self.spec.task, **task(outputs, place, input_size)}

    def label(self, number: int) -> str:
        """The label of a class of the model, or its number where there is none."""
        place = number - self.spec.class_offset
        return self.spec.labels[place] if 0 <= place < len(self.spec.labels) else str(number)

    def _classes(self, outputs: Mapping[str, Array], *_: Any) -> dict[str, Any]:
        scores = _output(outputs, self.spec.output, "output").astype(np.float64)
        scores = scores.reshape(-1) if scores.ndim and scores.size == max(scores.shape) else scores
        if scores.ndim != 1:
            raise InputError(f"scores of one picture are one row, this is {list(scores.shape)}", where="postprocessing")
        if self.spec.softmax:
            scores = np.exp(scores - scores.max())
            scores /= scores.sum()
        best = np.argsort(-scores, kind="stable")[: self.spec.top]
        return {"classes": [self._found(int(i), float(scores[i])) for i in best]}

    def _found(self, number: int, score: float) -> dict[str, Any]:
        return {"class": number, "label": self.label(number), "score": score}

    def _map(
        self, outputs: Mapping[str, Array], place: Window | None, input_size: tuple[int, int] | None
    ) -> dict[str, Any]:
        array = _output(outputs, self.spec.output, "output")
        if array.ndim == 4 and array.shape[0] == 1:
            array = array[0]
        if array.dtype.kind == "f" and array.ndim == 3 and self.spec.layout:
            array = array.argmax(0 if self.spec.layout == "NCHW" else 2)
        if array.ndim == 3 and 1 in array.shape:
            array = array.squeeze(array.shape.index(1))
        if array.ndim != 2:
            raise InputError(
                f"a map of one picture is [height, width], this is {list(array.shape)}", where="postprocessing",
                hint="layout: NCHW or NHWC, where the output has scores of every class",
            )  # fmt: skip
        labels: Array = np.rint(array).astype(np.int32)
        if place is not None:
            labels = _unpadded(labels, place, input_size)
        small = labels.size == 0 or (labels.min() >= 0 and labels.max() <= 255)
        labels = labels.astype(np.uint8) if small else labels
        numbers, counts = np.unique(labels, return_counts=True)
        shares = {self.label(int(n)): int(c) / labels.size for n, c in zip(numbers, counts, strict=True)}
        return {"map": labels, "shares": shares}

    def _boxes(
        self, outputs: Mapping[str, Array], place: Window | None, input_size: tuple[int, int] | None
    ) -> dict[str, Any]:
        spec = self.spec
        boxes = _output(outputs, spec.boxes, "boxes").astype(np.float64).reshape(-1, 4)
        scores = _output(outputs, spec.scores, "scores").astype(np.float64).reshape(-1)
        classes = np.rint(_output(outputs, spec.classes, "classes").reshape(-1)).astype(int)
        if not len(boxes) == len(scores) == len(classes):
            raise InputError(
                f"{len(boxes)} boxes, {len(scores)} scores and {len(classes)} classes", where="postprocessing"
            )
        count = len(boxes)
        if spec.count is not None:
            count = min(count, int(np.rint(_output(outputs, spec.count, "count").reshape(-1)[0])))
        if spec.normalized:
            if input_size is None:
                raise InputError("normalized boxes need the size of the input", where="postprocessing")
            extents = input_size if spec.box == "yxyx" else input_size[::-1]
            boxes = boxes * np.tile(np.asarray(extents, np.float64), 2)
        corners = _corners(boxes, spec.box)
        if place is not None:
            offset = np.array([place.left - place.origin[1], place.top - place.origin[0]] * 2)
            corners = (corners - offset) * np.array([place.scale[1], place.scale[0]] * 2)
            corners = corners.clip(0, np.array([place.size[1], place.size[0]] * 2))
        order = [i for i in np.argsort(-scores[:count], kind="stable") if scores[i] >= spec.threshold][: spec.top]
        found = [
            {**self._found(int(classes[i]), float(scores[i])), "box": [float(v) for v in corners[i]]} for i in order
        ]
        return {"boxes": found}


def as_json(result: Mapping[str, Any]) -> dict[str, Any]:
    """A result of `Postprocessing.apply` as JSON values: of a map its shape and shares."""
    return {key: {"shape": list(v.shape)} if isinstance(v, np.ndarray) else v for key, v in result.items()}


def as_lines(result: Mapping[str, Any]) -> list[str]:
    """A result of `Postprocessing.apply` as lines for a console."""
    if "map" in result:
        height, width = result["map"].shape
        shares = ", ".join(f"{label} {share:.1%}" for label, share in result["shares"].items())
        return [f"map of {width} x {height}: {shares}"]
    lines = []
    for one in result.get("classes", result.get("boxes", ())):
        box = f"  at {', '.join(f'{v:.1f}' for v in one['box'])}" if "box" in one else ""
        lines.append(f"{one['label']}  {one['score']:.4g}{box}")
    return lines or [f"nothing ({result['task']})"]


def save(result: Mapping[str, Any], folder: Path) -> None:
    """Write a result of `Postprocessing.apply` to `folder`: results.json, and a map as map.png, or map.npy."""
    from PIL import Image

    files.atomic_write_bytes(folder / "results.json", json.dumps(as_json(result), indent=2).encode())
    array = result.get("map")
    if isinstance(array, np.ndarray):
        name = "map.png" if array.dtype == np.uint8 else "map.npy"
        with files.atomic_write(folder / name) as temp, open(temp, "wb") as stream:
            if name == "map.png":
                Image.fromarray(array).save(stream, format="PNG")
            else:
                np.save(stream, array, allow_pickle=False)


def _corners(boxes: npt.NDArray[np.float64], form: str) -> npt.NDArray[np.float64]:
    """Boxes as left, top, right, bottom."""
    if form == "yxyx":
        return boxes[:, [1, 0, 3, 2]]
    if form == "cxcywh":
        return np.concatenate([boxes[:, :2] - boxes[:, 2:] / 2, boxes[:, :2] + boxes[:, 2:] / 2], 1)
    return boxes


def _unpadded(labels: Array, place: Window, input_size: tuple[int, int] | None) -> Array:
    """The map without what padding added, in the picture's own size; a crop's outside is `OUTSIDE`."""
    if input_size is not None and labels.shape != input_size:
        labels = _nearest(labels, input_size)
    part = labels[place.top : place.bottom, place.left : place.right]
    begin = [round(o * s) for o, s in zip(place.origin, place.scale, strict=True)]
    ends = ((place.origin[0] + place.bottom - place.top), (place.origin[1] + place.right - place.left))
    stop = [min(round(e * s), size) for e, s, size in zip(ends, place.scale, place.size, strict=True)]
    whole = np.full(place.size, OUTSIDE, np.int32)
    whole[begin[0] : stop[0], begin[1] : stop[1]] = _nearest(part, (stop[0] - begin[0], stop[1] - begin[1]))
    return whole


def _nearest(labels: Array, size: tuple[int, int]) -> Array:
    """The map in another size: each pixel is that below its centre."""
    rows, columns = (((np.arange(n) + 0.5) * m / n).astype(int) for n, m in zip(size, labels.shape, strict=True))
    found: Array = labels[rows[:, None], columns[None, :]]
    return found


def _output(outputs: Mapping[str, Array], name: str | None, key: str) -> Array:
    if name is None:
        if len(outputs) != 1:
            raise InputError(
                "the model has several outputs", where=f"postprocessing.{key}", hint=f"{', '.join(outputs)}"
            )
        return np.asarray(next(iter(outputs.values())))
    if name not in outputs:
        raise InputError(
            f"the model has no output {name!r}", where=f"postprocessing.{key}", hint=nearest(name, outputs)
        )
    return np.asarray(outputs[name])


def _labels(path: Path) -> list[str]:
    """The lines of a file of labels, one a class; a last empty line does not count."""
    with files.os_errors(path, "read"):
        if path.stat().st_size > 64 * _MAX_LABELS:
            raise InputError("too large for a file of labels", where=str(path))
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    return [line.strip() for line in (lines[:-1] if lines and not lines[-1].strip() else lines)]


_TASK_KEYS: dict[str, Sequence[str]] = {
    "classification": ("output", "top", "softmax", "labels", "class_offset"),
    "segmentation": ("output", "layout", "labels", "class_offset"),
    "detection": (
        *("boxes", "scores", "classes", "count", "box", "normalized", "threshold", "top", "labels", "class_offset"),
    ),
}


def _contradictions(spec: PostSpec) -> list[tuple[str, str]]:
    given = {key for key, value in plain(spec).items() if value != plain(PostSpec(spec.task)).get(key)}
    wrong = [(key, f"is nothing for {spec.task}") for key in sorted(given - {"task", *_TASK_KEYS[spec.task]})]
    needed = ("boxes", "scores", "classes") if spec.task == "detection" else ()
    return wrong + [(key, "detection needs the name of this output") for key in needed if getattr(spec, key) is None]

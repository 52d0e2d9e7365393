# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""What is done with an observation before the model, and with actions after it: steps as data, run in numpy.

A step is {"step": name, ...options}; `STEPS` and `ACTION_STEPS` say which there are. `rename` steps come first; then
the observation is checked against the declared inputs, completely, and then come the others. Arithmetic is float32 in
the order of LeRobot's own operations, so that results agree to the last bits.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from npukit.errors import ArtifactError, Fault, InputError, UsageError, nearest
from npukit.policies.openvla import actions, image
from npukit.policies.package import Feature

if TYPE_CHECKING:
    from npukit.policies.kinds import ModelInputs
    from npukit.policies.tokenizer import Tokenizer

log = logging.getLogger(__name__)

Array = npt.NDArray[Any]
Statistics = Mapping[str, Array]
"""float32 arrays by "<feature>.<stat>"."""

TASK = "task"
TEXT_STEPS = ("tokenize", "prompt")  # steps that need an instruction
RESIZE_STEPS = ("resize_with_pad", "lanczos3_resize")  # steps before which pictures may have any size
TOKENS, ATTENTION = "observation.language.tokens", "observation.language.attention_mask"
MASK = "_padding_mask"  # after an image's name: whether there is an image

# Mode -> the two statistics that it needs.
MODES: dict[str, tuple[str, ...]] = {
    "IDENTITY": (),
    "MEAN_STD": ("mean", "std"),
    "MIN_MAX": ("min", "max"),
    "QUANTILES": ("q01", "q99"),
    "QUANTILE10": ("q10", "q90"),
}


# ---------------------------------------------------------------- arithmetic


def resized(height: int, width: int, to_height: int, to_width: int) -> tuple[int, int]:
    """Height and width of an image that keeps its proportions and just fits into [to_height, to_width]."""
    ratio = max(width / to_width, height / to_height)
    return int(height / ratio), int(width / ratio)


def bilinear(images: Array, height: int, width: int) -> Array:
    """float32 [..., H, W] resized to [..., height, width]: bilinear, pixel centres, no smoothing where it shrinks.

    As torch.nn.functional.interpolate(mode="bilinear", align_corners=False, antialias=False).
    """
    if images.shape[-2:] == (height, width):
        return images
    # columns first, rows then, as torch nests them
    left, right, weight = _taps(images.shape[-1], width)
    wide = np.multiply(images[..., left], 1 - weight)
    wide += images[..., right] * weight
    above, below, weight = _taps(images.shape[-2], height)
    weight = weight[:, None]
    out: Array = np.multiply(wide[..., above, :], 1 - weight)
    out += wide[..., below, :] * weight
    return out


@functools.lru_cache(maxsize=64)
def _taps(size: int, to: int) -> tuple[Array, Array, Array]:
    """For each target pixel the two source pixels and the second's weight, in torch's float32 arithmetic."""
    scale = np.float32(size) / np.float32(to)
    at = np.maximum(scale * (np.arange(to, dtype=np.float32) + np.float32(0.5)) - np.float32(0.5), np.float32(0))
    first = np.minimum(at.astype(np.int64), size - 1)
    second = np.minimum(first + 1, size - 1)
    return first, second, (at - first.astype(np.float32)).astype(np.float32)


def resize_with_pad(images: Array, height: int, width: int, value: float = 0.0) -> Array:
    """float32 [N, C, H, W] to [N, C, height, width], proportions kept; padding with `value` left and on top only."""
    rows, columns = resized(images.shape[-2], images.shape[-1], height, width)
    new = bilinear(images, max(rows, 1), max(columns, 1))
    if new.shape[-2:] == (height, width):
        return new
    out = np.full((*images.shape[:2], height, width), value, np.float32)
    out[..., height - new.shape[-2] :, width - new.shape[-1] :] = new
    return out


def normalize(values: Array, mode: str, stats: Sequence[Array], eps: float) -> Array:
    """Values to the model's scale; `stats` are the two that `MODES` names."""
    if not stats:
        return values
    first, second = stats
    result: Array
    if mode == "MEAN_STD":
        result = (values - first) / (second + np.float32(eps))
    else:
        result = np.float32(2) * (values - first) / _span(first, second, eps) - np.float32(1)
    return result


def unnormalize(values: Array, mode: str, stats: Sequence[Array], eps: float) -> Array:
    """The inverse of `normalize`; for MEAN_STD without eps, as LeRobot has it."""
    if not stats:
        return values
    first, second = stats
    result: Array
    if mode == "MEAN_STD":
        result = values * second + first
    else:
        result = (values + np.float32(1)) / np.float32(2) * _span(first, second, eps) + first
    return result


def _span(low: Array, high: Array, eps: float) -> Array:
    span = high - low
    return np.where(span == 0, np.float32(eps), span)


def statistics_of(
    step: Mapping[str, Any], stats: Statistics, features: Mapping[str, Feature]
) -> dict[str, list[Array]]:
    """The statistics that a (un)normalizing step needs, by feature, shaped so that they fit [1, *shape].

    Raises:
        ArtifactError: one is missing, not finite, or of a shape that is not the feature's; all are listed.
    """
    faults: list[Fault] = []
    found: dict[str, list[Array]] = {}
    for name, mode in step["features"].items():
        if mode not in MODES:
            faults.append(Fault(f"normalization mode {mode!r} is not known", where=name, hint=nearest(mode, MODES)))
        elif name in features:
            found[name] = [_statistic(f"{name}.{s}", stats, features[name], mode, faults) for s in MODES[mode]]
    if faults:
        raise ArtifactError("the policy's statistics are not whole", faults=faults,
                            hint="without them actions would be wrong: use a checkpoint that has them")  # fmt: skip
    return found


def _statistic(name: str, stats: Statistics, feature: Feature, mode: str, faults: list[Fault]) -> Array:
    if name not in stats:
        known = [other for other in stats if other.startswith(name.rpartition(".")[0] + ".")]
        faults.append(Fault(f"missing; the mode {mode} needs it", where=name,
                            hint=f"there are: {', '.join(sorted(known))}" if known else ""))  # fmt: skip
        return np.zeros(1, np.float32)
    array = np.asarray(stats[name], np.float32)
    if not np.isfinite(array).all():
        faults.append(Fault("holds values that are not finite: it was never computed", where=name))
    shape = feature.shape
    if feature.kind == "VISUAL" and array.size == shape[0]:
        return array.reshape(shape[0], 1, 1)
    if array.shape != shape and array.size != 1:
        faults.append(Fault(f"has shape {list(array.shape)}, the feature {list(shape)}", where=name))
    return array


# ---------------------------------------------------------------- checking an observation


def check(observation: Mapping[str, Any], inputs: Mapping[str, Feature], *, task: bool, optional: frozenset[str],
          resizes: bool) -> dict[str, Any]:  # fmt: skip
    """The declared parts of an observation as arrays, every one checked: images as they were given, others float32.

    Raises:
        InputError: lists every part that is missing, of another shape or dtype, or not finite.
    """
    if not isinstance(observation, Mapping):
        raise InputError(f"an observation is a dict of arrays by name, not a {type(observation).__name__}")
    faults: list[Fault] = []
    found: dict[str, Any] = {}
    for name, feature in inputs.items():
        if name not in observation or observation[name] is None:
            if name not in optional:
                faults.append(_missing(name, feature, observation, inputs))
            continue
        read = _image if feature.kind == "VISUAL" else _vector
        array = read(name, feature, observation[name], resizes, faults)
        if array is not None:
            found[name] = array
    if task:
        text = observation.get(TASK)
        if not isinstance(text, str):
            faults.append(Fault("the instruction is missing, expected a text" if text is None else
                                f"expected a text, got a {type(text).__name__}", where=TASK))  # fmt: skip
        else:
            found[TASK] = text
    if faults:
        if len(faults) == 1:
            raise InputError(faults[0].what, where=faults[0].where, hint=faults[0].hint)
        raise InputError(f"{len(faults)} faults in the observation", faults=faults)
    return found


def _missing(name: str, feature: Feature, observation: Mapping[str, Any], inputs: Mapping[str, Feature]) -> Fault:
    what = "the camera's image is missing" if feature.kind == "VISUAL" else "missing"
    expected = _expected(feature)
    others = [str(key) for key in observation if key not in inputs and key != TASK]
    return Fault(f"{what}, expected {expected}", where=name, hint=f"also given: {', '.join(others)}" if others else "")


def _expected(feature: Feature) -> str:
    if feature.kind != "VISUAL":
        return f"numbers {list(feature.shape)}"
    channels, height, width = feature.shape
    return f"uint8 [{height}, {width}, {channels}] or float32 [{channels}, {height}, {width}] from 0 to 1"


def _array(name: str, value: Any, faults: list[Fault]) -> Array | None:
    try:
        array = np.asarray(value)
    except (ValueError, TypeError) as error:
        faults.append(Fault(f"not an array: {error}", where=name))
        return None
    if array.dtype.kind not in "biuf":
        faults.append(Fault(f"dtype {array.dtype} holds no numbers", where=name))
        return None
    return array


def _finite(name: str, array: Array, faults: list[Fault]) -> Array | None:
    bad = ~np.isfinite(array)
    if not bad.any():
        return array
    first = [int(i) for i in np.unravel_index(int(np.argmax(bad)), array.shape)]
    count = int(np.count_nonzero(bad))
    more = f", and {count - 1} more" if count > 1 else ""
    faults.append(Fault(f"the value at {first} is {array[tuple(first)]}{more}", where=name))
    return None


def _vector(name: str, feature: Feature, value: Any, _: bool, faults: list[Fault]) -> Array | None:
    array = _array(name, value, faults)
    if array is None:
        return None
    if array.shape != feature.shape:
        faults.append(Fault(f"shape {list(array.shape)}, expected {list(feature.shape)}", where=name))
        return None
    with np.errstate(over="ignore"):
        return _finite(name, array.astype(np.float32), faults)


def _image(name: str, feature: Feature, value: Any, resizes: bool, faults: list[Fault]) -> Array | None:
    array = _array(name, value, faults)
    if array is None:
        return None
    channels, *size = feature.shape
    whole = array.dtype == np.uint8
    order = (array.shape[2:], array.shape[:2]) if whole else (array.shape[:1], array.shape[1:])
    fits = array.ndim == 3 and order[0] == (channels,) and array.size > 0 and (resizes or list(order[1]) == size)
    if not fits or array.dtype.kind not in ("f" if not whole else "u"):
        got = f"{array.dtype} {list(array.shape)}"
        faults.append(
            Fault(f"expected {_expected(feature)}{', of any size' if resizes else ''}; got {got}", where=name)
        )
        return None
    if whole:
        return array
    array = array.astype(np.float32, copy=False)
    if _finite(name, array, faults) is None:
        return None
    low, high = float(array.min()), float(array.max())
    if low < -1e-3 or high > 1 + 1e-3:
        faults.append(Fault(f"floats from {low:g} to {high:g}, expected 0 to 1", where=name,
                            hint="give uint8 pixels as they are, or divide by 255"))  # fmt: skip
        return None
    return array


# ---------------------------------------------------------------- the steps before the model


State = dict[str, Any]
_UNSOUND = (KeyError, TypeError, ValueError, AttributeError, IndexError)  # what options of another kind come to


def _names(step: Mapping[str, Any], where: str) -> dict[str, str]:
    renames = step.get("map")
    if not isinstance(renames, dict) or not all(isinstance(name, str) for name in renames.values()):
        raise ArtifactError("the step rename is not sound: its map is not one of names", where=where)
    return renames


def _remembered(tokens: Callable[[str], tuple[Array, Array]]) -> Callable[[State], None]:
    """A step that puts an instruction's tokens in its place; the last few instructions' are kept."""
    kept = functools.lru_cache(256)(tokens)

    def apply(state: State) -> None:
        state[TOKENS], state[ATTENTION] = kept(state[TASK])

    return apply


class Preprocessor:
    """An observation to the model's inputs.

    Args:
        inputs: the declared inputs (after renaming).
        steps: the manifest's `preprocessing`.
        statistics: what normalizing needs.
        tokenizer: path of the tokenizer.json, needed where a step `tokenize` is.

    Raises:
        ArtifactError: a step is unknown, statistics are missing, the tokenizer cannot be read.
        MissingDependency: a tokenizer is needed and its package is not installed.
    """

    def __init__(
        self, inputs: Mapping[str, Feature], steps: Sequence[Mapping[str, Any]], statistics: Statistics,
        tokenizer: Path | None = None,
    ) -> None:  # fmt: skip
        self.inputs = dict(inputs)
        self._renames: list[Mapping[str, str]] = []
        self._steps: list[Callable[[State], None]] = []
        self._statistics, self._tokenizer_path = statistics, tokenizer
        self._optional: frozenset[str] = frozenset()
        self._resizes = any(step["step"] in RESIZE_STEPS for step in steps)
        self._task = any(step["step"] in TEXT_STEPS for step in steps)
        for i, step in enumerate(steps):
            where = f"preprocessing[{i}]"
            name = step["step"]
            if name == "rename" and not self._steps:
                self._renames.append(_names(step, where))
                continue
            known = {**STEPS, **image.STEPS}
            if name not in known:
                raise ArtifactError(f"there is no step {name!r} here", where=where, hint=nearest(str(name), known))
            try:
                make = STEPS.get(name) or Preprocessor._pictures
                self._steps.append(make(self, step))
            except _UNSOUND as error:
                raise ArtifactError(f"the step {name} is not sound: {error!r}", where=where) from None

    @property
    def images(self) -> list[str]:
        """Names of the images among the inputs."""
        return [name for name, feature in self.inputs.items() if feature.kind == "VISUAL"]

    def check(self, observation: Mapping[str, Any]) -> dict[str, Any]:
        """See `check`: an observation's declared parts, under the names that the policy knows."""
        if isinstance(observation, Mapping):
            for renames in self._renames:
                observation = {renames.get(name, name): value for name, value in observation.items()}
        return check(observation, self.inputs, task=self._task, optional=self._optional, resizes=self._resizes)

    def __call__(self, observation: Mapping[str, Any]) -> ModelInputs:
        """The model's inputs for an observation.

        Raises:
            InputError: lists everything that is wrong with the observation.
        """
        state = self.check(observation)
        for step in self._steps:
            step(state)
        state.pop(TASK, None)
        return {name: np.ascontiguousarray(array) for name, array in state.items()}

    # each step's maker: options -> a function that changes the state in place

    def _batch(self, step: Mapping[str, Any]) -> Callable[[State], None]:
        def apply(state: State) -> None:
            for name, value in state.items():
                if name == TASK:
                    continue
                if name in self.inputs and self.inputs[name].kind == "VISUAL" and value.dtype == np.uint8:
                    value = np.divide(value.transpose(2, 0, 1), np.float32(255), dtype=np.float32)
                state[name] = value[None]

        return apply

    def _newline(self, step: Mapping[str, Any]) -> Callable[[State], None]:
        def apply(state: State) -> None:
            if not state[TASK].endswith("\n"):
                state[TASK] += "\n"

        return apply

    def _tokenizer(self, truncation_side: str = "right") -> Tokenizer:
        from npukit.policies.tokenizer import Tokenizer

        if self._tokenizer_path is None:
            raise ArtifactError("the policy takes instructions, and there is no tokenizer", where="tokenizer.json")
        return Tokenizer(self._tokenizer_path, truncation_side)

    def _tokenize(self, step: Mapping[str, Any]) -> Callable[[State], None]:
        tokenizer = self._tokenizer(step.get("truncation_side", "right"))
        length, pad = int(step["max_length"]), int(step["pad_id"])

        def tokens(text: str) -> tuple[Array, Array]:
            ids, mask, dropped = tokenizer.encode(text, length, pad)
            if dropped:  # LeRobot would leave words out and act on the rest
                raise InputError(
                    f"the instruction has {length + dropped} tokens, the policy takes {length}", where=TASK,
                    hint=f"shorten it: {text.strip()[:120]!r}",
                )  # fmt: skip
            return ids[None], mask[None]

        return _remembered(tokens)

    def _prompt(self, step: Mapping[str, Any]) -> Callable[[State], None]:
        from npukit.policies.openvla.prompt import Prompt

        return _remembered(Prompt(self._tokenizer(), step))

    def _pictures(self, step: Mapping[str, Any]) -> Callable[[State], None]:
        change = image.STEPS[step["step"]](step)

        def apply(state: State) -> None:
            for name in self.images:
                if name in state:
                    state[name] = change(state[name])

        return apply

    def _normalize(self, step: Mapping[str, Any]) -> Callable[[State], None]:
        table = statistics_of(step, self._statistics, self.inputs)
        eps, modes = float(step.get("eps", 1e-8)), step["features"]

        def apply(state: State) -> None:
            for name, stats in table.items():
                if name in state:
                    state[name] = normalize(state[name], modes[name], stats, eps)

        return apply

    def _resize(self, step: Mapping[str, Any]) -> Callable[[State], None]:
        height, width, value = int(step["height"]), int(step["width"]), float(step.get("value", 0.0))

        def apply(state: State) -> None:
            for name in self.images:
                if name in state:
                    state[name] = resize_with_pad(state[name], height, width, value)

        return apply

    def _scale(self, step: Mapping[str, Any]) -> Callable[[State], None]:
        mul, add = np.float32(step["mul"]), np.float32(step["add"])

        def apply(state: State) -> None:
            for name in self.images:
                if name in state:
                    state[name] = state[name] * mul + add

        return apply

    def _fill(self, step: Mapping[str, Any]) -> Callable[[State], None]:
        names, most, value = tuple(step["names"]), int(step["most"]), np.float32(step.get("value", -1.0))
        shape = tuple(int(extent) for extent in step["shape"])
        self._optional = frozenset(names)

        def apply(state: State) -> None:
            missing = [name for name in names if name not in state]
            if len(missing) > most or not any(name in state for name in (*self.images, *names)):
                raise InputError(f"{len(missing)} cameras have no image, at most {most} may be missing",
                                 where=", ".join(missing))  # fmt: skip
            for name in names:
                state[f"{name}{MASK}"] = np.array([name in state])
                if name not in state:
                    state[name] = np.full((1, *shape), value, np.float32)

        return apply

    def _pad(self, step: Mapping[str, Any]) -> Callable[[State], None]:
        name, length = str(step["feature"]), int(step["length"])

        def apply(state: State) -> None:
            values = state[name]
            padded = np.zeros((1, length), np.float32)
            padded[:, : values.shape[1]] = values
            state[name] = padded

        if name not in self.inputs or self.inputs[name].shape[0] > length:
            raise ValueError(f"{name} does not fit into {length} numbers")
        return apply


STEPS: dict[str, Callable[[Preprocessor, Mapping[str, Any]], Callable[[State], None]]] = {
    "batch": Preprocessor._batch,
    "newline": Preprocessor._newline,
    "tokenize": Preprocessor._tokenize,
    "prompt": Preprocessor._prompt,
    "normalize": Preprocessor._normalize,
    "resize_with_pad": Preprocessor._resize,
    "scale_images": Preprocessor._scale,
    "fill_cameras": Preprocessor._fill,
    "pad": Preprocessor._pad,
}
"""Steps of pre-processing; those of `npukit.policies.openvla.image.STEPS` come to them.

rename {map}: names of the observation to the policy's; first of all.
batch {}: a leading axis of 1; uint8 [H, W, C] to float32 [C, H, W] from 0 to 1.
newline {}: the instruction ends with a line feed.
tokenize {max_length, pad_id, truncation_side}: the instruction to tokens, padded on the right; a longer one is an
    InputError, whatever the side on which LeRobot would cut it.
prompt {template, lower, max_length, pad_id, bos_id, end_id}: see `npukit.policies.openvla.prompt`.
normalize {eps, features: {name: mode}}: by the statistics.
resize_with_pad {height, width, value}: images, proportions kept, padding left and on top.
scale_images {mul, add}: images.
fill_cameras {names, most, value, shape}: cameras that may be missing, at most so many; a constant image and a mask.
pad {feature, length}: zeros after a state.
"""


# ---------------------------------------------------------------- the steps after it


ACTION_STEPS = ("cut", "unnormalize", "unnormalize_by_key", "gripper")


class Postprocessor:
    """Normalized actions [T, A'] to actions float32 [T, A].

    Args:
        outputs: the declared outputs.
        steps: the manifest's `postprocessing`: `cut` {length}, `unnormalize` {eps, features: {name: mode}},
            `unnormalize_by_key` {key, statistics: {key: {q01, q99, mask}}} and `gripper` {index, low, high, binarize,
            invert} (see `npukit.policies.openvla.actions`; float64).
        statistics: what un-normalizing needs.
        unnorm_key: which of several data sets' statistics un-normalize; None for the step's own `key`.

    Raises:
        ArtifactError: a step is unknown, or statistics are missing.
        UsageError: there are no statistics for the key, or it is open which of several is meant.

    Attributes:
        unnorm_key: the key in use; "" where there is none to choose.
    """

    def __init__(
        self, outputs: Mapping[str, Feature], steps: Sequence[Mapping[str, Any]], statistics: Statistics,
        unnorm_key: str | None = None,
    ) -> None:  # fmt: skip
        self.name, self.action = next((n, f) for n, f in outputs.items() if f.kind == "ACTION")
        self.unnorm_key, self._wanted = "", unnorm_key
        self._steps: list[Callable[[Array], Array]] = []
        for i, step in enumerate(steps):
            try:
                self._steps += self._made(step, f"postprocessing[{i}]", statistics)
            except _UNSOUND as error:
                what = f"the step {step['step']} is not sound: {error!r}"
                raise ArtifactError(what, where=f"postprocessing[{i}]") from None
        if unnorm_key is not None and not self.unnorm_key:
            raise UsageError("this policy's actions have one set of statistics: there is no key", where="unnorm_key")

    def _made(self, step: Mapping[str, Any], where: str, statistics: Statistics) -> list[Callable[[Array], Array]]:
        name = step["step"]
        if name == "cut":
            return [functools.partial(_cut, length=int(step["length"]))]
        if name == "unnormalize_by_key":
            return [self._by_key(step["statistics"], step.get("key"))]
        if name == "gripper":
            return [actions.gripper_step(step, self.action.shape[0])]
        if name != "unnormalize":
            raise ArtifactError(f"there is no step {name!r} here", where=where,
                                hint=nearest(str(name), ACTION_STEPS))  # fmt: skip
        table = statistics_of(step, statistics, {self.name: self.action})
        if self.name not in table:
            return []
        mode, eps = step["features"][self.name], float(step.get("eps", 1e-8))
        return [functools.partial(unnormalize, mode=mode, stats=table[self.name], eps=eps)]

    def _by_key(self, statistics: Mapping[str, Any], key: str | None) -> Callable[[Array], Array]:
        self.unnorm_key = actions.chosen_key(statistics, self._wanted if self._wanted is not None else key)
        row = {"action": statistics[self.unnorm_key]}
        chosen = actions.checked_statistics({self.unnorm_key: row}, self.action.shape[0])[self.unnorm_key]
        low, high = (np.asarray(chosen[name], np.float64) for name in actions.NUMBERS)
        return functools.partial(actions.unnormalize, q01=low, q99=high, mask=np.asarray(chosen["mask"], bool))

    def __call__(self, chunk: Array) -> Array:
        """The actions in the robot's units, float32 [T, A]."""
        for step in self._steps:
            chunk = step(chunk)
        if chunk.shape[1:] != self.action.shape:
            raise ArtifactError(
                f"the model gives actions of {list(chunk.shape[1:])} numbers, {list(self.action.shape)} are declared",
                where=self.name,
            )
        return np.ascontiguousarray(chunk, np.float32)


def _cut(chunk: Array, length: int) -> Array:
    return chunk[:, :length]

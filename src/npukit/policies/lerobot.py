# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""Checkpoints as LeRobot writes them: config.json, the two processor files, their statistics; nothing is executed.

Read are the processor files of LeRobot 0.4 and later (their state files by the name that the JSON gives), and the older
layout, whose statistics are buffers in model.safetensors. A step of a processor file may name a Python class to import:
such a file is refused, whatever the class.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from npukit import files
from npukit.errors import ArtifactError, Fault, ModelError, NpukitError
from npukit.policies.package import Feature
from npukit.policies.processing import MODES
from npukit.policies.safetensors_file import SafetensorsFile

log = logging.getLogger(__name__)

Array = npt.NDArray[Any]

CONFIG, WEIGHTS = "config.json", "model.safetensors"
PRE, POST = "policy_preprocessor", "policy_postprocessor"
_JSON_LIMIT = 64 << 20
_KINDS = {"VISUAL": "VISUAL", "STATE": "STATE", "ENV": "ENV", "ACTION": "ACTION"}
_STATS = ("mean", "std", "min", "max", "q01", "q10", "q50", "q90", "q99")
# The older layout: `normalize_inputs.buffer_observation_state.mean`; compiled models have `_orig_mod.` before it.
_BUFFER = re.compile(
    r"(?:_orig_mod\.)?(normalize_inputs|unnormalize_outputs|normalize_targets)\.buffer_(.+)\.([a-z0-9]+)"
)


@dataclass(frozen=True)
class Checkpoint:
    """What a checkpoint says beside its weights.

    Attributes:
        folder: where it is.
        config: config.json as it is.
        inputs: the observation's features, by the policy's names.
        outputs: the action.
        preprocessing: steps of the checkpoint's own pre-processing; the kind's model adds its own.
        postprocessing: steps after the model.
        statistics: float32 by "<feature>.<stat>".
        notes: what one may want to know.
    """

    folder: Path
    config: dict[str, Any]
    inputs: dict[str, Feature]
    outputs: dict[str, Feature]
    preprocessing: tuple[dict[str, Any], ...]
    postprocessing: tuple[dict[str, Any], ...]
    statistics: dict[str, Array]
    notes: tuple[str, ...] = field(default=())


def read(
    folder: Path | str, tokenizer: Mapping[str, Any] | None = None, options: Mapping[str, str] | None = None
) -> Checkpoint:
    """Read a checkpoint's config.json and processor files.

    Args:
        folder: the checkpoint.
        tokenizer: `tokenizer.describe` of the tokenizer to use; None where there is none (a policy that takes
            instructions is refused then).
        options: of the policy's kind; LeRobot's have none.

    Raises:
        ModelError: a file is missing or not sound, a step is unknown or names a class; everything is listed.
    """
    folder = Path(folder)
    config = _config(folder)
    inputs, outputs = features(config)
    if (folder / f"{PRE}.json").is_file() or (folder / f"{POST}.json").is_file():
        made: _Made = _Pipelines(folder, inputs, outputs, tokenizer)
    else:
        made = _Old(folder, inputs, outputs, tokenizer, config)
    return Checkpoint(
        folder, config, inputs, outputs, tuple(made.pre), tuple(made.post), made.statistics, tuple(made.notes)
    )


def config_of(folder: Path) -> dict[str, Any]:
    """A checkpoint's config.json, of whatever kind.

    Raises:
        ModelError: there is none, or it is no JSON object.
    """
    if not folder.is_dir():
        raise ModelError("there is no such folder", where=str(folder), hint="give the folder of a checkpoint")
    path = folder / CONFIG
    if not path.is_file():
        nested = folder / "pretrained_model" / CONFIG
        hint = f"give {nested.parent}" if nested.is_file() else "a checkpoint has config.json and its weights beside it"
        raise ModelError("the checkpoint has no config.json", where=str(folder), hint=hint)
    return read_json(path)


def _config(folder: Path) -> dict[str, Any]:
    config, path = config_of(folder), folder / CONFIG
    if "input_features" not in config and "input_shapes" in config:
        raise ModelError(
            "the config is of LeRobot before 2025, whose features have no types", where=str(path),
            hint="load and save the policy with a newer LeRobot first",
        )  # fmt: skip
    return config


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file.

    Raises:
        ModelError: it is missing, too large, or no JSON object.
    """
    with files.os_errors(path, "read"):
        if path.stat().st_size > _JSON_LIMIT:
            raise ModelError("the file is too large to be what it should be", where=str(path))
        data = path.read_bytes()
    try:
        value = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise ModelError(f"not JSON: {error}", where=str(path)) from None
    if not isinstance(value, dict):
        raise ModelError("not a JSON object", where=str(path))
    return value


def features(config: Mapping[str, Any]) -> tuple[dict[str, Feature], dict[str, Feature]]:
    """The declared inputs and outputs of a config.json, in its order.

    Raises:
        ModelError: lists every feature that is not sound; there is no action, or more than one.
    """
    faults: list[Fault] = []
    inputs = _features(config, "input_features", faults)
    outputs = {name: f for name, f in _features(config, "output_features", faults).items() if f.kind == "ACTION"}
    if len(outputs) != 1 and not faults:
        faults.append(Fault(f"one action expected, got {len(outputs)}", where="output_features"))
    for name, feature in inputs.items():
        if len(feature.shape) != (3 if feature.kind == "VISUAL" else 1):
            faults.append(Fault(f"shape {list(feature.shape)} of a {feature.kind} feature", where=name))
    if faults:
        raise ModelError("the checkpoint's features are not sound", where=CONFIG, faults=faults)
    return inputs, outputs


def _features(config: Mapping[str, Any], key: str, faults: list[Fault]) -> dict[str, Feature]:
    given = config.get(key)
    if not isinstance(given, dict) or not given:
        faults.append(Fault("missing or empty", where=key))
        return {}
    found = {}
    for name, value in given.items():
        kind = value.get("type") if isinstance(value, dict) else None
        shape = value.get("shape") if isinstance(value, dict) else None
        sound = isinstance(shape, list) and all(isinstance(n, int) and 0 < n < 1 << 20 for n in shape)
        if kind not in _KINDS or not sound:
            faults.append(Fault(f'"type" of {", ".join(_KINDS)} and "shape" expected, got {value!r}', where=name))
        else:
            assert isinstance(shape, list)
            found[str(name)] = Feature(_KINDS[kind], tuple(shape))
    return found


def _modes(
    norm_map: Any, named: Mapping[str, Feature], where: str, faults: list[Fault]
) -> dict[str, str]:  # fmt: skip
    """Feature -> mode, where it is not IDENTITY."""
    if not isinstance(norm_map, dict):
        faults.append(Fault("a map from feature types to modes expected", where=where))
        return {}
    found = {}
    for name, feature in named.items():
        mode = str(norm_map.get(feature.kind, "IDENTITY")).rpartition(".")[2]
        if mode not in MODES:
            faults.append(Fault(f"normalization mode {mode!r} is not known", where=f"{where}: {feature.kind}",
                                hint=f"known: {', '.join(MODES)}"))  # fmt: skip
        elif mode != "IDENTITY":
            found[name] = mode
    return found


def _tokenize(config: Mapping[str, Any], tokenizer: Mapping[str, Any] | None, faults: list[Fault]) -> dict[str, Any]:
    where = "tokenizer_processor"
    length = config.get("max_length")
    name = str(config.get("tokenizer_name") or config.get("vlm_model_name") or "the model's own")
    if tokenizer is None:
        faults.append(Fault(f"the policy takes instructions; the checkpoint has no tokenizer.json ({name})",
                            where=where, hint="give that model's tokenizer.json with --tokenizer FILE"))  # fmt: skip
        return {}
    if not isinstance(length, int) or not 0 < length <= 1 << 16:
        faults.append(Fault(f"max_length {length!r}", where=where, hint="a positive whole number is needed"))
        return {}
    if config.get("padding_side", "right") != "right":
        faults.append(Fault("padding on the left is not supported", where=where))
    if config.get("task_key", "task") != "task":
        faults.append(Fault(f"the instruction under {config['task_key']!r} is not supported", where=where))
    # SmolVLM2's own tokenizer_config.json says left; a bare tokenizer.json does not say it
    side = tokenizer.get("truncation_side") or ("left" if "SmolVLM" in name else "right")
    return {
        "step": "tokenize", "max_length": length, "pad_id": int(tokenizer["pad_id"]), "truncation_side": side,
        "tokenizer_name": name,
    }  # fmt: skip


class _Made:
    """What reading came to."""

    def __init__(self) -> None:
        self.pre: list[dict[str, Any]] = []
        self.post: list[dict[str, Any]] = []
        self.statistics: dict[str, Array] = {}
        self.notes: list[str] = []
        self.faults: list[Fault] = []


class _Pipelines(_Made):
    """The processor files of LeRobot 0.4 and later."""

    def __init__(
        self, folder: Path, inputs: Mapping[str, Feature], outputs: Mapping[str, Feature],
        tokenizer: Mapping[str, Any] | None,
    ) -> None:  # fmt: skip
        super().__init__()
        self._folder, self._inputs, self._outputs, self._tokenizer = folder, inputs, outputs, tokenizer
        handlers: dict[str, Callable[[dict[str, Any], Mapping[str, Any], str], None]] = {
            "rename_observations_processor": self._rename,
            "to_batch_processor": self._ignore,
            "smolvla_new_line_processor": self._newline,
            "pi0_new_line_processor": self._newline,
            "tokenizer_processor": self._tokens,
            "device_processor": self._device,
            "normalizer_processor": self._normalizer,
        }
        after = {"unnormalizer_processor": self._unnormalizer, "device_processor": self._device}
        self._renames: list[dict[str, Any]] = []
        self._read(PRE, handlers)
        self._read(POST, after)
        if self.faults:
            raise ModelError("the checkpoint's processing cannot be taken over", where=str(folder), faults=self.faults)
        self.pre = [*self._renames, {"step": "batch"}, *self.pre]

    def _read(self, name: str, handlers: Mapping[str, Callable[..., None]]) -> None:
        path = self._folder / f"{name}.json"
        if not path.is_file():
            self.faults.append(Fault("missing, the other of the two files is there", where=path.name))
            return
        steps = read_json(path).get("steps")
        if not isinstance(steps, list):
            self.faults.append(Fault('no list "steps"', where=path.name))
            return
        for i, entry in enumerate(steps):
            where = f"{path.name}: steps[{i}]"
            config = entry.get("config", {}) if isinstance(entry, dict) else None
            if not isinstance(entry, dict) or not isinstance(config, dict):
                self.faults.append(Fault("not an object with an object as config", where=where))
            elif "class" in entry:
                self.faults.append(
                    Fault(f"names a Python class ({str(entry['class'])[:120]}), which is never imported", where=where,
                          hint="npukit takes over steps by their registered names only")
                )  # fmt: skip
            elif entry.get("registry_name") not in handlers:
                known = ", ".join(handlers)
                self.faults.append(Fault(f"the step {entry.get('registry_name')!r} is not known", where=where,
                                         hint=f"known here: {known}"))  # fmt: skip
            else:
                handlers[entry["registry_name"]](config, entry, where)

    def _ignore(self, config: dict[str, Any], entry: Mapping[str, Any], where: str) -> None:
        pass

    def _device(self, config: dict[str, Any], entry: Mapping[str, Any], where: str) -> None:
        if config.get("float_dtype") not in (None, "float32", "float"):
            self.notes.append(f"{where}: float_dtype {config['float_dtype']} is left out, all is float32")

    def _rename(self, config: dict[str, Any], entry: Mapping[str, Any], where: str) -> None:
        renames = config.get("rename_map") or {}
        if not isinstance(renames, dict) or not all(isinstance(v, str) for v in renames.values()):
            self.faults.append(Fault("rename_map is not a map of names", where=where))
        elif renames and self.pre:
            self.faults.append(Fault("renaming after other steps is not supported", where=where))
        elif renames:
            self._renames.append({"step": "rename", "map": renames})

    def _newline(self, config: dict[str, Any], entry: Mapping[str, Any], where: str) -> None:
        self.pre.append({"step": "newline"})

    def _tokens(self, config: dict[str, Any], entry: Mapping[str, Any], where: str) -> None:
        self.pre.append(_tokenize(config, self._tokenizer, self.faults))

    def _normalizer(self, config: dict[str, Any], entry: Mapping[str, Any], where: str) -> None:
        self.pre += self._norm(config, entry, where, self._inputs, "normalize")

    def _unnormalizer(self, config: dict[str, Any], entry: Mapping[str, Any], where: str) -> None:
        self.post += self._norm(config, entry, where, self._outputs, "unnormalize")

    def _norm(
        self, config: dict[str, Any], entry: Mapping[str, Any], where: str, ours: Mapping[str, Feature], step: str
    ) -> list[dict[str, Any]]:
        given: list[Fault] = []
        listed = _features({"f": config["features"]}, "f", given) if config.get("features") else {}
        self.faults += [Fault(fault.what, where=f"{where}: {fault.where}") for fault in given]
        named = {name: feature for name, feature in listed.items() if name in ours}
        only = config.get("normalize_observation_keys")
        if only is not None and step == "normalize":
            named = {name: feature for name, feature in named.items() if name in only}
        for name, feature in named.items():
            if feature.shape != ours[name].shape and feature.kind != "VISUAL":
                self.faults.append(Fault(f"{name} has shape {list(feature.shape)}, in config.json "
                                         f"{list(ours[name].shape)}", where=where))  # fmt: skip
        modes = _modes(config.get("norm_map", {}), named, where, self.faults)
        eps = config.get("eps", 1e-8)
        if not isinstance(eps, int | float) or isinstance(eps, bool) or not 0 <= eps < 1:
            self.faults.append(Fault(f"eps {eps!r}", where=where))
        self._state(entry, where, modes)
        return [{"step": step, "eps": eps, "features": modes}] if modes else []

    def _state(self, entry: Mapping[str, Any], where: str, modes: Mapping[str, str]) -> None:
        """Take the statistics that `modes` need out of the step's state file."""
        if not modes:
            return
        name = entry.get("state_file")
        if not isinstance(name, str):
            self.faults.append(Fault("the step names no state_file, its statistics are missing", where=where))
            return
        try:
            path = files.inside(self._folder, name)
            if not path.is_file():
                self.faults.append(Fault(f"the state file {name} is missing", where=where))
                return
            state = SafetensorsFile(path)
        except NpukitError as error:
            self.faults.append(Fault(error.what, where=f"{where}: {name}", hint=error.hint))
            return
        for key in state:
            feature, _, stat = key.rpartition(".")
            if feature in modes and stat in _STATS:
                self.statistics[key] = state.array(key).astype(np.float32)
        for feature, mode in modes.items():
            lacks = [stat for stat in MODES[mode] if f"{feature}.{stat}" not in self.statistics]
            if lacks:
                self.faults.append(
                    Fault(f"{feature} is normalized by {mode}, and {name} has no {' and no '.join(lacks)} of it",
                          where=where, hint="use a checkpoint with its statistics: without them actions are wrong")
                )  # fmt: skip


class _Old(_Made):
    """Before LeRobot 0.4: the modes are in config.json, the statistics among the weights."""

    def __init__(
        self, folder: Path, inputs: Mapping[str, Feature], outputs: Mapping[str, Feature],
        tokenizer: Mapping[str, Any] | None, config: Mapping[str, Any],
    ) -> None:  # fmt: skip
        super().__init__()
        modes = config.get("normalization_mapping")
        before = _modes(modes, inputs, "config.json: normalization_mapping", self.faults)
        after = _modes(modes, outputs, "config.json: normalization_mapping", [])
        if before or after:
            self._buffers(folder, inputs, outputs, {**before, **after})
        self.pre = [{"step": "batch"}]
        if "tokenizer_max_length" in config:
            given = {"max_length": config["tokenizer_max_length"], "tokenizer_name": config.get("vlm_model_name")}
            self.pre += [{"step": "newline"}, _tokenize(given, tokenizer, self.faults)]
        if before:
            self.pre.append({"step": "normalize", "eps": 1e-8, "features": before})
        if after:
            self.post.append({"step": "unnormalize", "eps": 1e-8, "features": after})
        if self.faults:
            raise ModelError("the checkpoint has no processor files, and its processing cannot be taken from the "
                             "weights", where=str(folder), faults=self.faults)  # fmt: skip
        self.notes.append("the checkpoint has no processor files: statistics are those among its weights")

    def _buffers(
        self, folder: Path, inputs: Mapping[str, Feature], outputs: Mapping[str, Feature], modes: Mapping[str, str]
    ) -> None:
        path = folder / WEIGHTS
        if not path.is_file():
            self.faults.append(Fault(f"{PRE}.json and {WEIGHTS} are missing: there are no statistics"))
            return
        try:
            weights = SafetensorsFile(path)
        except ArtifactError as error:
            raise ModelError(error.what, where=error.where, hint=error.hint) from None
        plain = {name.replace(".", "_"): name for name in (*inputs, *outputs)}
        for key in weights:
            match = _BUFFER.fullmatch(key)
            if match is None or match[2] not in plain or match[3] not in _STATS:
                continue
            name = f"{plain[match[2]]}.{match[3]}"
            if name not in self.statistics or match[1] != "normalize_targets":
                self.statistics[name] = weights.array(key).astype(np.float32)
        for feature, mode in modes.items():
            lacks = [stat for stat in MODES[mode] if f"{feature}.{stat}" not in self.statistics]
            if lacks:
                buffer = f"buffer_{feature.replace('.', '_')}"
                self.faults.append(
                    Fault(f"normalized by {mode}; neither {PRE}.json nor {buffer} in {WEIGHTS} has its "
                          f"{' and '.join(lacks)}", where=feature,
                          hint="use a checkpoint with its statistics: without them actions are wrong")
                )  # fmt: skip

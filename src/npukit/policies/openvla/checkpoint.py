# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""An OpenVLA checkpoint beside its weights: config.json, statistics, the pictures' normalization; nothing is executed.

The folder is what Hugging Face's `save_pretrained` leaves: the Python files that its `auto_map` names are not looked
at. Statistics are those of dataset_statistics.json, which fine-tuning writes beside the weights, or else config.json's
own `norm_stats`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from npukit.errors import Fault, ModelError, UsageError
from npukit.policies.lerobot import CONFIG, Checkpoint, read_json
from npukit.policies.openvla import steps
from npukit.policies.openvla.config import OpenVLAConfig, read_config
from npukit.policies.openvla.weights import Weights
from npukit.policies.package import Feature

STATISTICS, PREPROCESSOR = "dataset_statistics.json", "preprocessor_config.json"
BOS = 1
PROMPT = 32  # tokens; `--option prompt_length` for instructions that need more
# Of a tower's training, where preprocessor_config.json does not say it: the two numbers as that file rounds them.
_NORMALIZED = {
    True: ([0.484375, 0.455078125, 0.40625], [0.228515625, 0.2236328125, 0.224609375]),  # DINOv2: ImageNet's
    False: ([0.5, 0.5, 0.5], [0.5, 0.5, 0.5]),
}


def _switch(value: str) -> bool:
    if value not in ("true", "false"):
        raise ValueError
    return value == "true"


def _rule(value: str) -> str:
    if value not in ("libero", "none"):
        raise ValueError
    return value


OPTIONS: dict[str, tuple[Callable[[str], Any], str]] = {
    "prompt_length": (int, "tokens that a prompt may have, a whole number"),
    "unnorm_key": (str, "the data set whose statistics scale the actions"),
    "prompt": (str, 'the text around an instruction, with "{instruction}" in it'),
    "center_crop": (_switch, "true, or false for a checkpoint that was trained without random crops"),
    "gripper": (_rule, "libero, or none: the last number as the statistics have it"),
}
"""The kind's options: how a value is read, and what it is."""


@dataclass(frozen=True)
class Facts:
    """A checkpoint's network and what its package's steps need.

    Attributes:
        network: the numbers, checked against the weights' names.
        weights: of the checkpoint.
        runtime: the package's `config`.
        statistics: as the checkpoint has them; `steps.action_steps` checks them.
    """

    network: OpenVLAConfig
    weights: Weights
    runtime: dict[str, Any]
    statistics: dict[str, Any]


def read(folder: Path | str, tokenizer: Mapping[str, Any] | None, options: Mapping[str, str]) -> Checkpoint:
    """A checkpoint as an export takes it.

    Args:
        folder: the checkpoint.
        tokenizer: `tokenizer.describe` of its tokenizer.json.
        options: see `OPTIONS`.

    Raises:
        ModelError: files are missing or not sound, weights are not the config's; everything is listed.
        UsageError: an option's value is not sound.
    """
    folder = Path(folder)
    config = read_json(folder / CONFIG)
    found = facts(folder, config, options)
    if tokenizer is None:
        raise ModelError("the policy takes instructions; the checkpoint has no tokenizer.json", where=str(folder),
                         hint="give Llama 2's tokenizer.json with --tokenizer FILE")  # fmt: skip
    if tokenizer["vocabulary"] > found.network.text.vocab:
        raise ModelError(
            f"the tokenizer has {tokenizer['vocabulary']} tokens, the model {found.network.text.vocab}",
            where="tokenizer.json", hint="it belongs to another model: give that model's with --tokenizer",
        )  # fmt: skip
    for_steps = {**found.runtime, "statistics": found.statistics}
    return Checkpoint(
        folder, config, steps.inputs(for_steps), {"action": Feature("ACTION", (found.network.action,))},
        steps.steps(for_steps), steps.action_steps(for_steps), {}, found.network.notes,
    )  # fmt: skip


def facts(folder: Path, config: Mapping[str, Any], options: Mapping[str, str]) -> Facts:
    """What `read` and the exporter have in common.

    Raises:
        ModelError, UsageError: see `read`.
    """
    chosen = _options(options)
    given = _statistics(folder, config)
    size = next((len(row["action"]["q01"]) for row in given.values() if _sized(row)), 7)
    weights = Weights(folder)
    network = read_config(config, weights.shapes, size, chosen.get("prompt_length", PROMPT))
    weights.check(network)
    runtime = {
        "action_dim": size, "n_action_bins": network.bins, "vocab_size": network.vocabulary,
        "prompt_length": network.prompt, "image_tokens": network.image_tokens, "prefill_length": network.prefill,
        "cache_length": network.cache, "bos_id": BOS, "pad_id": network.pad_id, "image_size": network.image,
        "image_channels": _channels(folder, network), **{name: chosen[name] for name in chosen if name not in _SIZES},
    }  # fmt: skip
    return Facts(network, weights, runtime, given)


_SIZES = ("prompt_length",)  # options that the network's numbers hold


def _options(options: Mapping[str, str]) -> dict[str, Any]:
    found = {}
    for name, value in options.items():
        parse, what = OPTIONS[name]
        try:
            found[name] = parse(value)
        except ValueError:
            raise UsageError(f"{value!r} is not sound", where=f"--option {name}", hint=what) from None
    return found


def _sized(row: Any) -> bool:
    action = row.get("action") if isinstance(row, Mapping) else None
    return isinstance(action, Mapping) and isinstance(action.get("q01"), list) and bool(action["q01"])


def _statistics(folder: Path, config: Mapping[str, Any]) -> dict[str, Any]:
    if (folder / STATISTICS).is_file():
        return read_json(folder / STATISTICS)
    found = config.get("norm_stats")
    if not isinstance(found, dict) or not found:
        raise ModelError(f"there is no {STATISTICS}, and config.json has no norm_stats", where=str(folder),
                         hint="use a checkpoint with its statistics: without them actions have no scale")  # fmt: skip
    return found


def _channels(folder: Path, c: OpenVLAConfig) -> list[dict[str, list[float]]]:
    """{"mean", "std"} of each tower's three channels.

    Raises:
        ModelError: preprocessor_config.json asks for what is not done here; all is listed.
    """
    known = [dict(zip(("mean", "std"), _NORMALIZED[tower.scaled], strict=True)) for tower in c.towers]
    path = folder / PREPROCESSOR
    if not path.is_file():
        return known
    given, faults = read_json(path), list[Fault]()
    if given.get("image_resize_strategy", "resize-naive") != "resize-naive":
        faults.append(Fault(f"{given['image_resize_strategy']!r}, resize-naive is supported", "image_resize_strategy"))
    wanted = [[3, c.image, c.image]] * len(c.towers)
    if given.get("input_sizes", wanted) != wanted:
        faults.append(Fault(f"{given['input_sizes']!r}, the towers' weights are for {wanted}", "input_sizes"))
    found = []
    for name, values in (("means", given.get("means")), ("stds", given.get("stds"))):
        sound = isinstance(values, list) and len(values) == len(c.towers) and all(
            isinstance(row, list) and len(row) == 3 and all(isinstance(n, int | float) and abs(n) < 256 for n in row)
            for row in values
        )  # fmt: skip
        if values is None:
            continue
        if not sound or (name == "stds" and not all(n > 0 for row in values for n in row)):
            faults.append(Fault(f"{values!r}, three numbers for each of {len(c.towers)} towers expected", name))
        found.append(values)
    if faults:
        raise ModelError("the checkpoint's processing of pictures cannot be taken over", where=str(path), faults=faults)
    if len(found) < 2:
        return known
    return [{"mean": list(mean), "std": list(std)} for mean, std in zip(*found, strict=True)]

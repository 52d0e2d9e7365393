# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""SmolVLA's weights: checked whole against the network before anything is loaded, then loaded part by part.

The file stays mapped: a tensor of the wanted dtype is not copied, one of another is converted when its part is loaded.
torch is imported where tensors are made; names and shapes are read without it.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from npukit.errors import Fault, MissingDependency, ModelError, nearest
from npukit.policies.smolvla.config import Shapes, SmolVLAConfig

if TYPE_CHECKING:
    from npukit.policies.smolvla.model import SmolVLA

WEIGHTS = "model.safetensors"
_PREFIX = "model."
# Statistics, which checkpoints before September 2025 hold among the weights.
_STATISTICS = ("normalize_inputs.", "normalize_targets.", "unnormalize_outputs.")
# The network runs without them: they may be there, and they may be missing.
_SPARE = ("vlm_with_expert.vlm.lm_head.", "vlm_with_expert.vlm.model.text_model.norm.")
_FLOATS = ("F64", "F32", "F16", "BF16")


class Weights:
    """A checkpoint's model.safetensors.

    Attributes:
        path: the file.
        shapes: shape of each weight by its key, "model." and what torch.compile adds to names left out.
        dtypes: dtype of each, as safetensors writes it ("BF16").
    """

    def __init__(self, checkpoint: Path) -> None:
        """Open a checkpoint's weights and read their names.

        Raises:
            ModelError: there is no such file, it is truncated or damaged, or holds a name twice.
        """
        from safetensors import SafetensorError, safe_open

        self.path = checkpoint / WEIGHTS
        if not self.path.is_file():
            raise ModelError("there is no such file", where=str(self.path),
                             hint="a checkpoint is a folder with config.json and model.safetensors")  # fmt: skip
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.dtypes: dict[str, str] = {}
        self._names: dict[str, str] = {}
        self._file: Any = None
        faults = []
        try:
            with safe_open(self.path, framework="np") as file:
                for name in file.keys():  # noqa: SIM118
                    if name.startswith(_STATISTICS):
                        continue
                    key = f".{name}".replace("._orig_mod.", ".").removeprefix(".").removeprefix(_PREFIX)
                    if key in self._names:
                        faults.append(Fault(f"the same weight as {self._names[key]!r}", name))
                    part = file.get_slice(name)
                    self._names[key] = name
                    self.shapes[key], self.dtypes[key] = tuple(part.get_shape()), str(part.get_dtype())
        except (SafetensorError, OSError) as error:
            raise ModelError(f"the weights cannot be read: {error}", where=str(self.path),
                             hint="the file is damaged or incomplete: copy it again") from None  # fmt: skip
        if faults:
            raise ModelError("a weight is there twice", where=str(self.path), faults=faults)

    def check(self, expected: Shapes) -> None:
        """Compare all keys and shapes with what the network has.

        Raises:
            ModelError: weights are missing, of another shape or no numbers, or belong to nothing; all are listed.
        """
        faults = []
        for key, shape in expected.items():
            if key not in self.shapes:
                if not key.startswith(_SPARE):
                    faults.append(Fault("missing", f"{_PREFIX}{key}"))
            elif self.shapes[key] != shape:
                faults.append(Fault(f"shape {list(self.shapes[key])}, {list(shape)} expected", self._names[key]))
            elif self.dtypes[key] not in _FLOATS:
                faults.append(Fault(f"dtype {self.dtypes[key]}, a float is expected", self._names[key]))
        for key in self.shapes:
            if key not in expected and not key.startswith(_SPARE):
                hint = nearest(key, expected) if len(faults) < 20 else ""
                faults.append(Fault("unused: the network that config.json describes has no such weight",
                                    self._names[key], hint if hint.startswith("did") else ""))  # fmt: skip
        if faults:
            raise ModelError(f"the weights are not those of config.json ({len(faults)} differ)", where=str(self.path),
                             faults=faults)  # fmt: skip

    def load(self, module: Any, prefix: str, dtype: Any = None) -> None:
        """Give `module`, made on the meta device, its weights: those whose keys begin with `prefix`.

        Args:
            module: a part of `model.SmolVLA`.
            prefix: its name in the whole ("" for all of it, "state_proj." and so on).
            dtype: the torch dtype to convert to; None keeps each weight's own.

        Raises:
            ModelError: a weight cannot be read, or holds NaN or infinite values.
        """
        import torch
        from safetensors import SafetensorError

        state, faults = {}, []
        for name in module.state_dict():
            key = f"{prefix}{name}"
            if key not in self._names:
                continue
            try:
                tensor = self._open().get_tensor(self._names[key])
            except (SafetensorError, OSError) as error:
                raise ModelError(f"the weight cannot be read: {error}", where=f"{self.path}: {key}") from None
            if not bool(torch.isfinite(tensor).all()):
                faults.append(Fault("holds NaN or infinite values", self._names[key]))
            state[name] = tensor if dtype is None else tensor.to(dtype)
        if faults:
            raise ModelError("weights are not all numbers", where=str(self.path), faults=faults)
        module.load_state_dict(state, assign=True, strict=False)
        module.requires_grad_(False)

    def _open(self) -> Any:
        if self._file is None:
            from safetensors import safe_open

            self._file = safe_open(self.path, framework="pt")
        return self._file


def skeleton(config: SmolVLAConfig, attention: str = "eager") -> SmolVLA:
    """The network on the meta device: it has names and shapes, and takes no memory.

    Raises:
        MissingDependency: torch is not installed.
    """
    need_torch()
    import torch

    from npukit.policies.smolvla.model import SmolVLA

    with torch.device("meta"):
        model = SmolVLA(config, attention)
    model.eval()
    return model


def expected_shapes(model: SmolVLA) -> dict[str, tuple[int, ...]]:
    """Shape of every weight of the network by its key."""
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


def load_model(weights: Weights, config: SmolVLAConfig, *, dtype: Any = None, attention: str = "eager") -> SmolVLA:
    """The whole network with all its weights.

    Args:
        weights: where they come from.
        config: the numbers.
        dtype: a torch dtype to hold all of them in; None keeps each one's own.
        attention: see `model.SmolVLA`.

    Raises:
        ModelError: the weights are not those of the network; all faults are listed.
        MissingDependency: torch is not installed.
    """
    model = skeleton(config, attention)
    weights.check(expected_shapes(model))
    weights.load(model, "", dtype)
    return model


def need_torch() -> None:
    """Raise a sentence where torch is not installed."""
    try:
        import torch  # noqa: F401
    except ImportError:
        raise MissingDependency("exporting a policy needs PyTorch", hint="pip install 'npukit[torch]'") from None


def read(checkpoint: Path, config: Mapping[str, Any]) -> tuple[SmolVLAConfig, Weights]:
    """A checkpoint's numbers and weights, the weights checked against the numbers (no torch needed but for that).

    Raises:
        ModelError: the config cannot be honoured, or the weights are not those of it; all faults are listed.
    """
    from npukit.policies.smolvla.config import read_config, read_vlm_config

    weights = Weights(checkpoint)
    found = read_config(config, weights.shapes, read_vlm_config(checkpoint))
    weights.check(expected_shapes(skeleton(found)))
    return found, weights

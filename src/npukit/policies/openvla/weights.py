# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""OpenVLA's weights in their shards: checked whole against the network, then read one tensor at a time; no torch.

Tensors are read, not mapped: what has been used leaves memory, whatever the size of the shards.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt

from npukit import files
from npukit.errors import Fault, ModelError, NpukitError, nearest
from npukit.policies.lerobot import read_json
from npukit.policies.openvla.config import OpenVLAConfig, expected_shapes, spare
from npukit.policies.safetensors_file import SafetensorsFile

Array = npt.NDArray[Any]

INDEX, WHOLE = "model.safetensors.index.json", "model.safetensors"
_FLOATS = (np.dtype(np.float32), np.dtype(np.float16), np.dtype(ml_dtypes.bfloat16))


class Weights:
    """The tensors of model.safetensors.index.json's shards, or of the one file model.safetensors.

    Attributes:
        folder: the checkpoint.
        shapes: shape of each weight by its name.
    """

    def __init__(self, checkpoint: Path) -> None:
        """Read the index and every shard's header.

        Raises:
            ModelError: there are no weights, the index is not sound or leads out of the folder, or a shard is missing,
                truncated, or lacks what the index promises; all is listed.
        """
        self.folder = checkpoint
        self._shards: dict[str, SafetensorsFile] = {}
        self._home: dict[str, str] = {}
        faults: list[Fault] = []
        listed = self._index()
        for name in sorted(set(listed.values())) if listed is not None else [WHOLE]:
            try:
                self._shards[name] = SafetensorsFile(files.inside(checkpoint, name))
            except NpukitError as error:
                faults.append(Fault(error.what, name, error.hint))
                continue
            for key in self._shards[name]:
                if key in self._home:
                    faults.append(Fault(f"{key!r} is in {self._home[key]} as well", name))
                elif listed is not None and listed.get(key) != name:
                    faults.append(
                        Fault(f"holds {key!r}, which the index puts into {listed.get(key, 'no shard')}", name)
                    )
                self._home[key] = name
        for key, name in (listed or {}).items():
            if name in self._shards and key not in self._shards[name]:
                faults.append(Fault(f"lacks {key!r}, which the index puts there", name))
        if faults:
            raise ModelError("the weights cannot be read", where=str(checkpoint), faults=faults)
        self.shapes: dict[str, tuple[int, ...]] = {key: self._shards[at][key].shape for key, at in self._home.items()}

    def _index(self) -> dict[str, str] | None:
        """Shard by tensor; None where there is only the one file."""
        path = self.folder / INDEX
        if not path.is_file():
            if not (self.folder / WHOLE).is_file():
                raise ModelError(f"neither {INDEX} nor {WHOLE} is there", where=str(self.folder),
                                 hint="an OpenVLA checkpoint has them beside config.json")  # fmt: skip
            return None
        listed = read_json(path).get("weight_map")
        if not isinstance(listed, dict) or not listed or not all(isinstance(name, str) for name in listed.values()):
            raise ModelError('no object "weight_map" of file names', where=str(path))
        return listed

    def check(self, c: OpenVLAConfig) -> None:
        """Compare all names, shapes and dtypes with what the network has.

        Raises:
            ModelError: weights are missing, of another shape or no floats, or belong to nothing; all are listed.
        """
        expected, faults = expected_shapes(c, self.shapes), []
        for key, shape in expected.items():
            if key not in self.shapes:
                faults.append(Fault("missing", key))
                continue
            entry = self._shards[self._home[key]][key]
            if entry.shape != shape:
                what = f"shape {list(entry.shape)}, {list(shape)} expected (in {self._home[key]})"
                faults.append(Fault(what, key))
            elif entry.dtype not in _FLOATS:
                faults.append(Fault(f"dtype {entry.dtype.name}, float32, float16 or bfloat16 expected", key))
        for key in self.shapes:
            if key not in expected and not spare(key, c):
                hint = nearest(key, expected) if len(faults) < 20 else ""
                faults.append(Fault("unused: the network that config.json describes has no such weight", key,
                                    hint if hint.startswith("did") else ""))  # fmt: skip
        if faults:
            raise ModelError(f"the weights are not those of config.json ({len(faults)} differ)",
                             where=str(self.folder), faults=faults)  # fmt: skip

    def count(self, c: OpenVLAConfig) -> int:
        """How many numbers the network's weights have."""
        return sum(math.prod(shape) for shape in expected_shapes(c, self.shapes).values())

    def read(self, key: str) -> Array:
        """A tensor in its own dtype, bfloat16 as float32.

        Raises:
            ModelError: it cannot be read, or holds NaN or infinite values.
        """
        shard = self._shards[self._home[key]]
        entry = shard[key]
        with files.os_errors(shard.path, "read"):
            data = np.fromfile(shard.path, np.uint8, entry.end - entry.begin, offset=entry.begin)
        if data.nbytes != entry.end - entry.begin:
            raise ModelError("the file ended while it was read", where=str(shard.path))
        array: Array = data.view(entry.dtype).reshape(entry.shape)
        if array.dtype == ml_dtypes.bfloat16:
            array = array.astype(np.float32)
        if not np.isfinite(array).all():
            raise ModelError("the weight holds NaN or infinite values", where=f"{shard.path}: {key}")
        return array

    def load(self, module: Any, prefix: str) -> None:
        """Give a torch module, made on the meta device, its weights in float32: those whose names begin with `prefix`.

        Raises:
            ModelError: a weight cannot be read.
        """
        import torch

        state = {
            name: torch.from_numpy(self.read(f"{prefix}{name}").astype(np.float32, copy=False))
            for name in module.state_dict()
        }
        module.load_state_dict(state, assign=True)
        module.requires_grad_(False)

# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""Writes small PyTorch files to mutate: `python -m fuzz.make_pytorch FOLDER`, where torch is installed.

NAME.pt2 are archives of torch.export, NAME.pt TorchScript, traced or scripted; shapes.json has the inputs' shapes.
"""

from __future__ import annotations

import json
import sys
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn


class Branches(nn.Module):
    """Dict and tuple outputs, of one linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(6, 4)

    def forward(self, x: Tensor, scale: Tensor) -> dict[str, Tensor]:
        """Two heads."""
        y = self.linear(x)
        return {"plain": y, "scaled": torch.softmax(y * scale, -1)}


class Embedded(nn.Module):
    """Whole numbers as input, a norm, attention."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.norm, self.qkv = nn.Embedding(12, 8), nn.LayerNorm(8), nn.Linear(8, 24)

    def forward(self, ids: Tensor) -> Tensor:
        """Attend."""
        x = self.norm(self.table(ids))
        q, k, v = self.qkv(x).chunk(3, -1)
        return x + nn.functional.scaled_dot_product_attention(q, k, v)


class Moves(nn.Module):
    """Slices, gathers, views, constants."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("order", torch.tensor([3, 1, 0]))

    def forward(self, x: Tensor) -> Tensor:
        """Move values."""
        y = x.transpose(1, 2)[:, 1:, ::2]
        y = torch.cat([y, y.flip(1)], 1).index_select(1, self.order)
        return torch.where(y > 0, y, y * 0.1).reshape(x.shape[0], -1)


class Recurrent(nn.Module):
    """An LSTM."""

    def __init__(self) -> None:
        super().__init__()
        self.cell = nn.LSTM(4, 5, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        """Its last state."""
        return self.cell(x)[0][:, -1]


class Decides(nn.Module):
    """Control flow, for TorchScript."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, x: Tensor, turns: int = 2) -> Tensor:
        """A loop and a branch."""
        for _ in range(turns):
            x = self.linear(x)
        if x.shape[0] > 3:
            x = x + 1
        return torch.relu(x)


def networks() -> dict[str, tuple[nn.Module, dict[str, Tensor]]]:
    """Modules with example inputs by argument name."""
    convolution = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2))
    return {
        "branches": (Branches(), {"x": torch.randn(2, 6), "scale": torch.randn(1)}),
        "embedded": (Embedded(), {"ids": torch.randint(0, 12, (1, 5))}),
        "moves": (Moves(), {"x": torch.randn(2, 4, 6)}),
        "recurrent": (Recurrent(), {"x": torch.randn(1, 3, 4)}),
        "convolution": (convolution, {"input": torch.randn(1, 3, 8, 8)}),
    }


def main() -> None:
    """Write the files."""
    warnings.simplefilter("ignore")
    torch.manual_seed(0)
    folder = Path(sys.argv[1])
    shapes: dict[str, Any] = {}
    for name, (module, feeds) in networks().items():
        module.eval()
        shapes[name] = {key: list(value.shape) for key, value in feeds.items()}
        args = tuple(feeds.values())
        batch = tuple({0: torch.export.Dim.AUTO} if key == "x" else None for key in feeds)
        dynamic = batch if name in ("moves", "branches") else None
        torch.export.save(torch.export.export(module, args, dynamic_shapes=dynamic), folder / f"{name}.pt2")
        torch.jit.trace(module, args, strict=False).save(str(folder / f"{name}.pt"))
    scripted = torch.jit.script(Decides().eval())
    fixed = torch.jit.freeze(torch.jit.script(Recurrent().eval()))
    for name, made, feed in (("decides", scripted, {"x": [2, 4]}), ("frozen", fixed, {"x": [1, 3, 4]})):
        made.save(str(folder / f"{name}.pt"))
        shapes[name] = feed
    (folder / "shapes.json").write_text(json.dumps(shapes))


if __name__ == "__main__":
    main()

# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""Small networks written as their published code writes them: what torch exports of them is what a user hands in."""

from __future__ import annotations

import math
from pathlib import Path

import torch
from torch import nn


class RmsNorm(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.rand(width) + 0.5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        variance = x.pow(2).mean(-1, keepdim=True)
        return self.weight * (x * torch.rsqrt(variance + 1e-6))


def rotate_half(x: torch.Tensor) -> torch.Tensor:
    half = x.shape[-1] // 2
    return torch.cat((-x[..., half:], x[..., :half]), dim=-1)


class LlamaLayer(nn.Module):
    def __init__(self, width: int, heads: int, inner: int) -> None:
        super().__init__()
        self.heads, self.size = heads, width // heads
        self.q, self.k, self.v, self.o = (nn.Linear(width, width, bias=False) for _ in range(4))
        self.gate, self.up = (nn.Linear(width, inner, bias=False) for _ in range(2))
        self.down = nn.Linear(inner, width, bias=False)
        self.norm1, self.norm2 = RmsNorm(width), RmsNorm(width)

    def forward(self, x: torch.Tensor, mask: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        batch, length, width = x.shape
        y = self.norm1(x)
        q, k, v = (f(y).view(batch, length, self.heads, self.size).transpose(1, 2) for f in (self.q, self.k, self.v))
        q, k = q * cos + rotate_half(q) * sin, k * cos + rotate_half(k) * sin
        scores = q @ k.transpose(2, 3) / math.sqrt(self.size) + mask
        weights = torch.softmax(scores, dim=-1, dtype=torch.float32).to(q.dtype)
        x = x + self.o((weights @ v).transpose(1, 2).reshape(batch, length, width))
        y = self.norm2(x)
        return x + self.down(nn.functional.silu(self.gate(y)) * self.up(y))


class Llama(nn.Module):
    """As transformers writes it, with the causal mask made by triu and the positions of the input."""

    def __init__(self, vocabulary: int = 50, width: int = 32, heads: int = 4, layers: int = 2) -> None:
        super().__init__()
        self.embed = nn.Embedding(vocabulary, width)
        self.layers = nn.ModuleList(LlamaLayer(width, heads, 48) for _ in range(layers))
        self.norm, self.head = RmsNorm(width), nn.Linear(width, vocabulary, bias=False)
        size = width // heads
        self.register_buffer("frequencies", 1.0 / 10000 ** (torch.arange(0, size, 2).float() / size))

    def forward(self, ids: torch.Tensor, attention_mask: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        x = self.embed(ids)
        length, lowest = ids.shape[1], torch.finfo(x.dtype).min
        causal = torch.full((length, length), lowest, dtype=x.dtype)
        causal = torch.triu(causal, diagonal=1)
        mask = causal[None, None].expand(ids.shape[0], 1, -1, -1).clone()
        mask = mask.masked_fill(attention_mask[:, None, None, :].eq(0.0), lowest)
        angles = positions[:, :, None].float() * self.frequencies[None, None]
        angles = torch.cat((angles, angles), dim=-1)[:, None]
        for layer in self.layers:
            x = layer(x, mask, angles.cos(), angles.sin())
        return self.head(self.norm(x))


class CausalScores(nn.Module):
    """A triangle of computed values: the Trilu that no constant folds away."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.triu(x @ x.transpose(1, 2), diagonal=1)


class Vit(nn.Module):
    """Patches, a class token, pre-norm blocks with GELU, a head."""

    def __init__(self, width: int = 32, heads: int = 4, layers: int = 2) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, width, 4, 4)
        self.token = nn.Parameter(torch.randn(1, 1, width))
        self.positions = nn.Parameter(torch.randn(1, 17, width))
        self.blocks = nn.ModuleList(VitBlock(width, heads) for _ in range(layers))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 10)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        x = self.patches(image).flatten(2).transpose(1, 2)
        x = torch.cat((self.token.expand(x.shape[0], -1, -1), x), dim=1) + self.positions
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x)[:, 0])


class VitBlock(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads, self.size = heads, width // heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 64), nn.GELU(), nn.Linear(64, width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        batch, length, width = x.shape
        q, k, v = self.qkv(self.norm1(x)).view(batch, length, 3, self.heads, self.size).permute(2, 0, 3, 1, 4)
        attended = nn.functional.scaled_dot_product_attention(q, k, v)
        x = x + self.out(attended.transpose(1, 2).reshape(batch, length, width))
        return x + self.mlp(self.norm2(x))


def export(module: nn.Module, inputs: tuple[torch.Tensor, ...], path: Path, opset: int, names: list[str]) -> Path:
    """Export with torch's TorchScript exporter, as the recipes do, with nothing patched."""
    torch.onnx.export(module.eval(), inputs, str(path), opset_version=opset, dynamo=False, input_names=names)
    return path


def llama_inputs(length: int = 6) -> tuple[torch.Tensor, ...]:
    """Ids, mask with one padded place, positions."""
    ids = torch.arange(length)[None] * 7 % 50
    mask = torch.ones(1, length, dtype=torch.int64)
    mask[0, -1] = 0
    return ids, mask, torch.arange(length)[None]

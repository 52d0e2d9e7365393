# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""OpenVLA in PyTorch, inference only: what an export is compared with.

Modules have the names of the checkpoint's weights, so that each part loads by its prefix. They are made on the meta
device; `held` gives one its weights in float32 for as long as it is used, so that a network of any size runs in the
memory of its largest layer.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from npukit.policies.openvla.config import LANGUAGE, VISION_EPSILON, OpenVLAConfig, Tower, projector, rotary
from npukit.policies.openvla.weights import Weights

Cache = list[tuple[Tensor, Tensor]]
"""Keys (rotated) and values [heads, tokens, head_dim] of each layer."""


class _Scale(nn.Module):  # type: ignore[misc,unused-ignore]
    def __init__(self, width: int) -> None:
        super().__init__()
        self.scale_factor = nn.Parameter(torch.empty(width))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale_factor


class _VisionAttention(nn.Module):  # type: ignore[misc,unused-ignore]
    def __init__(self, tower: Tower) -> None:
        super().__init__()
        self.heads = tower.heads
        self.qkv = nn.Linear(tower.width, 3 * tower.width)
        self.proj = nn.Linear(tower.width, tower.width)

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, width = x.shape
        q, k, v = self.qkv(x).reshape(batch, tokens, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        out = functional.scaled_dot_product_attention(q, k, v)
        made: Tensor = self.proj(out.transpose(1, 2).reshape(batch, tokens, width))
        return made


class _VisionMLP(nn.Module):  # type: ignore[misc,unused-ignore]
    def __init__(self, tower: Tower) -> None:
        super().__init__()
        self.fc1 = nn.Linear(tower.width, tower.hidden)
        self.fc2 = nn.Linear(tower.hidden, tower.width)

    def forward(self, x: Tensor) -> Tensor:
        made: Tensor = self.fc2(functional.gelu(self.fc1(x)))
        return made


class _Block(nn.Module):  # type: ignore[misc,unused-ignore]
    def __init__(self, tower: Tower) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(tower.width, eps=VISION_EPSILON)
        self.attn = _VisionAttention(tower)
        self.ls1 = _Scale(tower.width) if tower.scaled else nn.Identity()
        self.norm2 = nn.LayerNorm(tower.width, eps=VISION_EPSILON)
        self.mlp = _VisionMLP(tower)
        self.ls2 = _Scale(tower.width) if tower.scaled else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.ls1(self.attn(self.norm1(x)))
        made: Tensor = x + self.ls2(self.mlp(self.norm2(x)))
        return made


class VisionTransformer(nn.Module):  # type: ignore[misc,unused-ignore]
    """A tower up to its second-to-last block: pixels f32 [B, 3, S, S] to the patches' tokens [B, N, width].

    Class and register tokens, where there are any, stand before the patches and are dropped at the end; positions are
    those of the patches alone.
    """

    def __init__(self, tower: Tower, extra: Sequence[tuple[str, int]]) -> None:
        super().__init__()
        self.tower, self.names = tower, [name for name, _ in extra]
        for name, count in extra:
            self.register_parameter(name, nn.Parameter(torch.empty(1, count, tower.width)))
        self.patch_embed = nn.Module()
        self.patch_embed.proj = nn.Conv2d(3, tower.width, tower.patch, tower.patch)
        self.pos_embed = nn.Parameter(torch.empty(1, tower.grid**2, tower.width))
        self.blocks = nn.ModuleList(_Block(tower) for _ in range(tower.blocks))

    def forward(self, pixels: Tensor) -> Tensor:
        x = self.patch_embed.proj(pixels).flatten(2).transpose(1, 2) + self.pos_embed
        before = [getattr(self, name).expand(x.shape[0], -1, -1) for name in self.names]
        x = torch.cat([*before, x], dim=1)
        for block in self.blocks:
            x = block(x)
        return x[:, self.tower.extra :]


class Projector(nn.Module):  # type: ignore[misc,unused-ignore]
    """Linear layers with GELU between them: patches [B, N, features] to [B, N, width]."""

    def __init__(self, c: OpenVLAConfig) -> None:
        super().__init__()
        self.names = [name for name, _, _ in projector(c)]
        for name, rows, columns in projector(c):
            setattr(self, name, nn.Linear(columns, rows))

    def forward(self, x: Tensor) -> Tensor:
        for name in self.names[:-1]:
            x = functional.gelu(getattr(self, name)(x))
        made: Tensor = getattr(self, self.names[-1])(x)
        return made


class RMSNorm(nn.Module):  # type: ignore[misc,unused-ignore]
    """x / sqrt(mean(x^2) + epsilon) * weight."""

    def __init__(self, width: int, epsilon: float) -> None:
        super().__init__()
        self.weight, self.epsilon = nn.Parameter(torch.empty(width)), epsilon

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.epsilon))


class _Attention(nn.Module):  # type: ignore[misc,unused-ignore]
    def __init__(self, c: OpenVLAConfig) -> None:
        super().__init__()
        self.text = c.text
        for part in "qkvo":
            setattr(self, f"{part}_proj", nn.Linear(c.text.width, c.text.width, bias=False))

    def forward(
        self, x: Tensor, first: int, past: tuple[Tensor, Tensor] | None
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        tokens, size = x.shape[0], self.text.head_dim
        q, k, v = (
            projection(x).reshape(tokens, self.text.heads, size).transpose(0, 1)
            for projection in (self.q_proj, self.k_proj, self.v_proj)
        )
        angles = rotary(torch.arange(first, first + tokens).numpy(), size, self.text.theta)
        cos, sin = (torch.from_numpy(table) for table in angles)
        q, k = _rotated(q, cos, sin), _rotated(k, cos, sin)
        if past is not None:
            k, v = torch.cat([past[0], k], dim=1), torch.cat([past[1], v], dim=1)
        mask = torch.ones(tokens, k.shape[1]).tril(k.shape[1] - tokens).bool()
        out = functional.scaled_dot_product_attention(q[None], k[None], v[None], attn_mask=mask)[0]
        return self.o_proj(out.transpose(0, 1).reshape(tokens, -1)), (k, v)


def _rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    first, second = x.chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)


class _MLP(nn.Module):  # type: ignore[misc,unused-ignore]
    def __init__(self, c: OpenVLAConfig) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(c.text.width, c.text.hidden, bias=False)
        self.up_proj = nn.Linear(c.text.width, c.text.hidden, bias=False)
        self.down_proj = nn.Linear(c.text.hidden, c.text.width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        made: Tensor = self.down_proj(functional.silu(self.gate_proj(x)) * self.up_proj(x))
        return made


class DecoderLayer(nn.Module):  # type: ignore[misc,unused-ignore]
    """A layer of Llama on rows [tokens, width], the first of which is at position `first`."""

    def __init__(self, c: OpenVLAConfig) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(c.text.width, c.text.epsilon)
        self.self_attn = _Attention(c)
        self.post_attention_layernorm = RMSNorm(c.text.width, c.text.epsilon)
        self.mlp = _MLP(c)

    def forward(
        self, x: Tensor, first: int = 0, past: tuple[Tensor, Tensor] | None = None
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        attended, cache = self.self_attn(self.input_layernorm(x), first, past)
        x = x + attended
        return x + self.mlp(self.post_attention_layernorm(x)), cache


class OpenVLA(nn.Module):  # type: ignore[misc,unused-ignore]
    """The network on the meta device; `hold` gives a part its weights while it is used.

    Args:
        c: the numbers.
        weights: the checkpoint's.
        whole: load everything now, and keep it.
    """

    def __init__(self, c: OpenVLAConfig, weights: Weights, *, whole: bool = False) -> None:
        super().__init__()
        self.config, self._weights, self._whole = c, weights, whole
        with torch.device("meta"):
            self.vision_backbone = nn.Module()
            for tower in c.towers:
                extra = [
                    (name, shape[1])
                    for name in ("cls_token", "reg_token")
                    if (shape := weights.shapes.get(f"{tower.prefix}.{name}"))
                ]
                setattr(self.vision_backbone, tower.prefix.rpartition(".")[2], VisionTransformer(tower, extra))
            self.projector = Projector(c)
            self.language_model = nn.Module()
            self.language_model.model = nn.Module()
            inner = self.language_model.model
            inner.embed_tokens = nn.Embedding(c.text.vocab, c.text.width)
            inner.layers = nn.ModuleList(DecoderLayer(c) for _ in range(c.text.layers))
            inner.norm = RMSNorm(c.text.width, c.text.epsilon)
            self.language_model.lm_head = nn.Linear(c.text.width, c.text.vocab, bias=False)
        self.eval()
        if whole:
            weights.load(self, "")

    @contextlib.contextmanager
    def held(self, name: str) -> Iterator[Any]:
        """The part of this name with its weights, which go again at the end."""
        part = self.get_submodule(name)
        if self._whole:
            yield part
            return
        self._weights.load(part, f"{name}.")
        try:
            yield part
        finally:
            part.to("meta")

    def patches(self, pixels: Tensor) -> Tensor:
        """f32 [1, 3 * towers, S, S] to [1, N, features]."""
        found = []
        for tower, part in zip(self.config.towers, pixels.split(3, dim=1), strict=True):
            with self.held(tower.prefix) as transformer:
                found.append(transformer(part))
        return torch.cat(found, dim=2)

    def project(self, patches: Tensor) -> Tensor:
        """[1, N, features] to [1, N, width]."""
        with self.held("projector") as part:
            made: Tensor = part(patches)
        return made

    def embed(self, ids: Tensor) -> Tensor:
        """int64 [T] to [T, width]."""
        with self.held(f"{LANGUAGE}.embed_tokens") as part:
            made: Tensor = part(ids)
        return made

    def sequence(self, image: Tensor, ids: Tensor) -> Tensor:
        """The first token, the image's [1, N, width], then the other tokens: [T + N, width]."""
        words = self.embed(ids)
        return torch.cat([words[:1], image[0], words[1:]])

    def layers(self, x: Tensor, cache: Cache | None = None) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Rows through every layer: after each its rows, and its keys and values of all tokens so far."""
        first = cache[0][0].shape[1] if cache else 0
        for i in range(self.config.text.layers):
            with self.held(f"{LANGUAGE}.layers.{i}") as layer:
                x, (k, v) = layer(x, first, cache[i] if cache else None)
            yield x, k, v

    def logits(self, x: Tensor) -> Tensor:
        """Rows [T, width] after the last layer to [T, vocab]."""
        with self.held(f"{LANGUAGE}.norm") as norm:
            x = norm(x)
        with self.held("language_model.lm_head") as head:
            made: Tensor = head(x)
        return made

    def forward(self, x: Tensor, cache: Cache | None = None) -> tuple[Tensor, Cache]:
        """Rows after those in the cache: the last one's logits [vocab], and the cache with theirs."""
        made: Cache = []
        for rows, k, v in self.layers(x, cache):
            x = rows
            made.append((k, v))
        return self.logits(x[-1:])[0], made

    def generate(self, pixels: Tensor, ids: Tensor, *, cached: bool = True) -> list[int]:
        """The action's tokens, each the likeliest (the lowest among equals); `ids` int64 [T] without padding."""
        x = self.sequence(self.project(self.patches(pixels)), ids)
        logits, cache = self(x)
        found = [int(logits.argmax())]
        while len(found) < self.config.action:
            new = self.embed(torch.tensor(found[-1:]))
            if cached:
                logits, cache = self(new, cache)
            else:
                x = torch.cat([x, new])
                logits, _ = self(x)
            found.append(int(logits.argmax()))
        return found

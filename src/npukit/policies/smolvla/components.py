# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""SmolVLA's three components as they are deployed: the network's arithmetic in a form that compiles to clean graphs.

They compute what `model.SmolVLA` computes, to rounding, and share its weights. What differs:

- shapes are static, the batch is one, and tokens are rows of a matrix [tokens, width], so that projections are plain
  matrix products with a bias;
- the scale of the scores is part of the queries' weights;
- the query heads of one key head are rows of one matrix ([1, kv_heads, tokens * group, head_dim]): keys and values are
  not repeated;
- masks are added, once a run for all layers; rotary tables and masks' fixed parts are constants;
- positions of self-attending layers are counted from the prefix's end (rotations compose: only differences of positions
  matter there), so that the action head's rotary tables are constants;
- the cross layers' keys and values are projected by the backbone, once a chunk;
- the cache is [layers, kv_heads, tokens, head_dim]: what the action head multiplies with, as it is.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from npukit.policies.smolvla.config import SmolVLAConfig
from npukit.policies.smolvla.model import RMSNorm, SmolVLA, rotation

MASKED = -1e4
"""What is added to scores that must not count: exp of it is 0, and half precision holds twice of it."""


def _norm(layer: RMSNorm, x: Tensor) -> Tensor:
    """Division by the root mean square, in the form that ONNX Runtime and npukit recognize."""
    return x / torch.sqrt(x.pow(2).mean(-1, keepdim=True) + layer.epsilon) * layer.weight


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary embedding of x [tokens, heads, size] with tables [tokens, 1, size / 2]."""
    first, second = x.split(x.shape[-1] // 2, dim=-1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)


def _rows(x: Tensor) -> Tensor:
    """Without the leading axis of 1."""
    return x.reshape(x.shape[1:])


def _scaled(layer: nn.Linear, factor: float) -> nn.Linear:
    """A linear layer with the results multiplied by `factor`."""
    made = nn.Linear(layer.in_features, layer.out_features, bias=layer.bias is not None, device="meta")
    made.weight = nn.Parameter(layer.weight * factor, requires_grad=False)
    if layer.bias is not None:
        made.bias = nn.Parameter(layer.bias * factor, requires_grad=False)
    return made


class _Heads:
    """How rows [tokens, heads * size] become the matrices of an attention, and back."""

    def __init__(self, c: SmolVLAConfig) -> None:
        self.kv, self.group, self.size = c.text.kv_heads, c.text.group, c.text.head_dim

    def queries(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """To [1, kv_heads, tokens * group, size], rotated; row t * group + g is token t."""
        x = _rotate(x.reshape(-1, self.kv * self.group, self.size), cos, sin)
        x = x.reshape(1, -1, self.kv, self.group * self.size).transpose(1, 2)
        return x.reshape(1, self.kv, -1, self.size)

    def keys(self, x: Tensor) -> Tensor:
        """To [1, kv_heads, tokens, size]."""
        return x.reshape(1, -1, self.kv, self.size).transpose(1, 2)

    def rotated(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """Keys [tokens, kv_heads * size], rotated, of the same shape."""
        return _rotate(x.reshape(-1, self.kv, self.size), cos, sin).reshape(-1, self.kv * self.size)

    def attend(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor) -> Tensor:
        """[tokens, heads * size]."""
        scores = query @ key.transpose(2, 3) + mask
        out = functional.softmax(scores, dim=-1) @ value
        out = out.reshape(1, self.kv, -1, self.group * self.size).transpose(1, 2)
        return out.reshape(-1, self.kv * self.group * self.size)


def _mlp(layer: Any, x: Tensor) -> Tensor:
    return layer.down_proj(functional.silu(layer.gate_proj(x)) * layer.up_proj(x))


def _finish(layer: Any, x: Tensor, attended: Tensor) -> Tensor:
    x = x + layer.self_attn.o_proj(attended)
    return x + _mlp(layer.mlp, _norm(layer.post_attention_layernorm, x))


class VisionEncoder(nn.Module):  # type: ignore[misc,unused-ignore]
    """pixel_values f32 [1, 3, S, S] to image_embeddings f32 [1, T, width], before the scale sqrt(width)."""

    def __init__(self, config: SmolVLAConfig, model: SmolVLA) -> None:
        super().__init__()
        parts = model.vlm_with_expert.vlm.model
        self.vision, self.connector = parts.vision_model, parts.connector
        self.heads, self.size = config.vision.heads, config.vision.width // config.vision.heads
        self.patch = self.vision.embeddings.patch_embedding
        self.register_buffer("positions", self.vision.embeddings.positions().detach().clone())
        for layer in self.vision.encoder.layers:
            layer.self_attn.q_proj = _scaled(layer.self_attn.q_proj, self.size**-0.5)

    def forward(self, pixel_values: Tensor) -> Tensor:
        x = _rows(self.patch(pixel_values).flatten(2).transpose(1, 2)) + self.positions
        for layer in self.vision.encoder.layers:
            h, attention = layer.layer_norm1(x), layer.self_attn
            query, key, value = (
                projection(h).reshape(1, -1, self.heads, self.size).transpose(1, 2)
                for projection in (attention.q_proj, attention.k_proj, attention.v_proj)
            )
            out = functional.softmax(query @ key.transpose(2, 3), dim=-1) @ value
            x = x + attention.out_proj(out.transpose(1, 2).reshape(-1, self.heads * self.size))
            x = x + layer.mlp(layer.layer_norm2(x))
        x = _rows(self.connector.gather(self.vision.post_layernorm(x).reshape(1, *x.shape)))
        x = self.connector.modality_projection.proj(x)
        return x.reshape(1, *x.shape)


class Backbone(nn.Module):  # type: ignore[misc,unused-ignore]
    """Embedded images, instruction and state to what the action head reads; see `export.ports` for names."""

    def __init__(self, config: SmolVLAConfig, model: SmolVLA) -> None:
        super().__init__()
        c = self.config = config
        text, self.state_proj = model.vlm_with_expert.vlm.model.text_model, model.state_proj
        self.table, self.layers = text.embed_tokens, text.layers[: c.cached[-1] + 1]
        self.cross = nn.ModuleDict()
        for i, layer in enumerate(self.layers):
            layer.self_attn.q_proj = _scaled(layer.self_attn.q_proj, c.text.head_dim**-0.5)
            if i in c.cached and c.layers[i].cross:
                self.cross[str(i)] = model.vlm_with_expert.lm_expert.layers[c.layers[i].expert].self_attn
        self.heads = _Heads(c)
        self._constants()

    def _constants(self) -> None:
        c, length = self.config, self.config.prefix
        place = len(c.cameras) * c.camera_tokens + c.tokens
        blind = torch.zeros(length, length)
        blind[:place, place:] = MASKED
        self.register_buffer("blind", blind.repeat_interleave(c.text.group, dim=0)[None, None])
        # Rows 0 .. 2 * length - 1 are positions -length .. length - 1
        cos, sin = rotation(torch.arange(-length, length), c.text.head_dim)
        self.register_buffer("turns", torch.cat([cos, sin], dim=-1))
        # Which of [the cameras' masks, 1] each token of the cameras has
        one, index = len(c.cameras), list[int]()
        for i in range(len(c.cameras)):
            index += [one] * len(c.image_start) + [i] * c.image_tokens + [one] * len(c.image_end)
        self.register_buffer("owner", torch.tensor(index))
        self.register_buffer("one", torch.ones(1, dtype=torch.int64))
        self.register_buffer("all_seen", torch.ones(1, len(index), dtype=torch.int64))
        self.register_buffer("tail", torch.tensor([[1] + [0] * (length - place - 1)]))
        self.register_buffer("filler", torch.zeros(length - place - 1, c.text.width))
        rows = self.table.weight
        self.register_buffer("start", rows[list(c.image_start)].clone() if c.image_start else None)
        self.register_buffer("end", rows[list(c.image_end)].clone() if c.image_end else None)

    def _embed(self, images: list[Tensor], tokens: Tensor, state: Tensor) -> Tensor:
        """The prefix [P, width]."""
        scale = math.sqrt(self.config.text.width)
        words = self.table(_rows(tokens))
        if self.start is None:
            parts = [torch.cat([*(_rows(image) for image in images), words]) * scale]
        else:
            parts = [part for image in images for part in (self.start, _rows(image) * scale, self.end)]
            parts.append(words * scale)
        parts.append(self.state_proj(state))
        if self.filler.shape[0]:
            parts.append(self.filler)
        return torch.cat(parts)

    def _tables(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Cosines and sines [P, 1, head_dim / 2] of positions, which are given as rows of the table."""
        cos, sin = functional.embedding(rows, self.turns).unsqueeze(1).split(self.turns.shape[1] // 2, dim=-1)
        return cos, sin

    def _pad(self, masks: Tensor, seen: Tensor | None) -> Tensor:
        """Which tokens are real: int64 [1, P]."""
        first = self.all_seen
        if seen is not None:
            first = torch.index_select(torch.cat([_rows(seen), self.one]), 0, self.owner).reshape(1, -1)
        return torch.cat([first, masks, self.tail], dim=1)

    def forward(self, *inputs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        c, heads, count = self.config, self.heads, len(self.config.cameras)
        images, (tokens, masks) = list(inputs[:count]), inputs[count : count + 2]
        seen, state = (inputs[count + 2] if c.empty else None), inputs[-1]
        x = self._embed(images, tokens, state)
        pad = self._pad(masks, seen)
        real = pad.to(torch.float32)
        mask = ((real - 1.0) * -MASKED).reshape(1, 1, 1, -1) + self.blind
        order = _rows(torch.cumsum(pad, dim=1))
        tables = {}
        if any(c.layers[i].cross for i in range(len(self.layers))):
            rows = order + (c.prefix - 1)
            tables[True] = self._tables(rows)
        if any(not c.layers[i].cross for i in range(len(self.layers))):
            rows = order + (c.prefix - 1) - pad.sum(dim=1)
            tables[False] = self._tables(rows)
        keys, values = [], []
        for i, layer in enumerate(self.layers):
            attention, h = layer.self_attn, _norm(layer.input_layernorm, x)
            cos, sin = tables[c.layers[i].cross]
            key, value = heads.rotated(attention.k_proj(h), cos, sin), attention.v_proj(h)
            own = heads.keys(key), heads.keys(value)
            if i in c.cached:
                kept = own
                if c.layers[i].cross:
                    cross = self.cross[str(i)]
                    kept = heads.keys(cross.k_proj(key)), heads.keys(cross.v_proj(value))
                keys.append(kept[0])
                values.append(kept[1])
            if i < len(self.layers) - 1:
                query = heads.queries(attention.q_proj(h), cos, sin)
                x = _finish(layer, x, heads.attend(query, *own, mask))
        return torch.cat(keys), torch.cat(values), real


class Head(nn.Module):  # type: ignore[misc,unused-ignore]
    """One evaluation of the action expert; see `export.ports` for names."""

    def __init__(self, config: SmolVLAConfig, model: SmolVLA) -> None:
        super().__init__()
        c = self.config = config
        self.expert = model.vlm_with_expert.lm_expert
        self.action_in, self.action_out = model.action_in_proj, model.action_out_proj
        mixed, width = model.action_time_mlp_in, c.expert_width
        # The layer over [actions, time] as the sum of two: the time's half is computed for one row, not for all
        self.mix_actions, self.mix_time = nn.Linear(1, 1, bias=False), nn.Linear(1, 1)
        self.mix_actions.weight = nn.Parameter(mixed.weight[:, :width].contiguous(), requires_grad=False)
        self.mix_time.weight = nn.Parameter(mixed.weight[:, width:].contiguous(), requires_grad=False)
        self.mix_time.bias = mixed.bias
        self.mix_out = model.action_time_mlp_out
        for layer in self.expert.layers:
            layer.self_attn.q_proj = _scaled(layer.self_attn.q_proj, c.text.head_dim**-0.5)
        self.heads = _Heads(c)
        cos, sin = rotation(torch.arange(c.chunk_size), c.text.head_dim)
        self.register_buffer("cos", cos[:, None])
        self.register_buffer("sin", sin[:, None])
        later = torch.full((c.chunk_size, c.chunk_size), MASKED).triu(1)
        causal = torch.cat([torch.zeros(c.chunk_size, c.prefix), later], dim=1)
        self.register_buffer("causal", causal.repeat_interleave(c.text.group, dim=0)[None, None])
        self.register_buffer("nothing", torch.zeros(1, 1, 1, c.chunk_size))

    def forward(
        self,
        noisy_actions: Tensor,
        time_embedding: Tensor,
        prefix_pad_masks: Tensor,
        kv_keys: Tensor,
        kv_values: Tensor,
    ) -> Tensor:
        c, heads = self.config, self.heads
        mixed = self.mix_actions(self.action_in(_rows(noisy_actions))) + self.mix_time(time_embedding)
        x = self.mix_out(functional.silu(mixed))
        before = ((prefix_pad_masks - 1.0) * -MASKED).reshape(1, 1, 1, -1)
        both = torch.cat([before, self.nothing], dim=-1) + self.causal
        caches = zip(kv_keys.split(1), kv_values.split(1), strict=True)
        for i, layer, (key, value) in zip(c.cached, self.expert.layers, caches, strict=True):
            attention, h = layer.self_attn, _norm(layer.input_layernorm, x)
            query = heads.queries(attention.q_proj(h), self.cos, self.sin)
            mask = before
            if not c.layers[i].cross:
                new = heads.rotated(attention.k_proj(h), self.cos, self.sin)
                key = torch.cat([key, heads.keys(new)], dim=2)
                value = torch.cat([value, heads.keys(attention.v_proj(h))], dim=2)
                mask = both
            x = _finish(layer, x, heads.attend(query, key, value, mask))
        x = self.action_out(_norm(self.expert.norm, x))
        return x.reshape(1, *x.shape)

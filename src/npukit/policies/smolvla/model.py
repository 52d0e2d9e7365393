# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""SmolVLA's network in PyTorch (Shukor et al. 2025, as LeRobot 0.4 runs it); importing this module imports torch.

Modules are named as LeRobot names its weights, so that a checkpoint loads by name, and compute in the dtypes of these
weights, mixed as they may be (bfloat16 with float32 projections): every cast is where the original has one, or where
torch promotes there. What no output depends on is not computed: the language model's head and final norm, and the last
layer beyond its keys and values.

One thing differs on purpose: the vision encoder's position ids are a table (`config.position_ids`), where the original
buckets floating-point coordinates, wrongly in float32 with transformers 4.55 to 4.57.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from npukit.policies.smolvla.config import ROPE_BASE, SmolVLAConfig, position_ids, step_times, time_embedding

ATTENTIONS = ("eager", "sdpa")
Cache = list[tuple[Tensor, Tensor]]
"""Keys (rotated) and values [B, P, kv_heads, head_dim] of each layer."""


def rotation(positions: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Cosines and sines float32 [..., size / 2] of the rotary embedding at `positions`."""
    exponents = (2.0 / size) * torch.arange(size // 2, dtype=torch.float32, device=positions.device)
    angles = positions[..., None].to(torch.float32) / ROPE_BASE**exponents
    return torch.cos(angles), torch.sin(angles)


def rotate(x: Tensor, positions: Tensor) -> Tensor:
    """The rotary embedding of x [B, L, H, D] at positions [B, L], computed in float32."""
    cos, sin = (part[:, :, None, :] for part in rotation(positions, x.shape[-1]))
    first, second = x.to(torch.float32).chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1).to(x.dtype)


def attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor, kind: str = "eager") -> Tensor:
    """Attention of query [B, L, H, D] to key, value [B, M, G, D] where mask bool [B, L, M] is true: [B, L, H * D].

    "eager" is the original's: scores in float32, probabilities in the values' dtype. "sdpa" leaves it to torch.
    """
    batch, length, heads, size = query.shape
    if kind == "sdpa":
        value = value.to(query.dtype)
        query, key, value = (x.transpose(1, 2) for x in (query, key.to(query.dtype), value))
        out = functional.scaled_dot_product_attention(query, key, value, attn_mask=mask[:, None], enable_gqa=True)
        return out.transpose(1, 2).reshape(batch, length, heads * size)
    key, value = (x.repeat_interleave(heads // x.shape[2], dim=2).transpose(1, 2) for x in (key, value))
    scores = query.to(torch.float32).transpose(1, 2) @ key.to(torch.float32).transpose(2, 3) * size**-0.5
    scores = torch.where(mask[:, None], scores, torch.finfo(torch.float32).min)
    out = functional.softmax(scores, dim=-1).to(value.dtype) @ value
    return out.transpose(1, 2).reshape(batch, length, heads * size)


def linear(layer: nn.Linear, x: Tensor) -> Tensor:
    """A linear layer in its weight's dtype."""
    return layer(x.to(layer.weight.dtype))


class RMSNorm(nn.Module):  # type: ignore[misc,unused-ignore]
    """Division by the root mean square, computed in float32: [..., width] to the same."""

    def __init__(self, width: int, epsilon: float) -> None:
        super().__init__()
        self.weight, self.epsilon = nn.Parameter(torch.ones(width)), epsilon

    def forward(self, x: Tensor) -> Tensor:
        wide = x.to(torch.float32)
        wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + self.epsilon)
        return self.weight * wide.to(x.dtype)


class VisionAttention(nn.Module):  # type: ignore[misc,unused-ignore]
    """Self-attention over patches: [B, N, width] to the same."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q_proj, self.k_proj, self.v_proj, self.out_proj = (nn.Linear(width, width) for _ in range(4))

    def forward(self, x: Tensor, kind: str) -> Tensor:
        batch, length, width = x.shape
        q, k, v = (
            layer(x).reshape(batch, length, self.heads, -1).transpose(1, 2)
            for layer in (self.q_proj, self.k_proj, self.v_proj)
        )
        if kind == "sdpa":
            out = functional.scaled_dot_product_attention(q, k, v)
        else:
            scores = q @ k.transpose(2, 3) * (width // self.heads) ** -0.5
            out = functional.softmax(scores, dim=-1, dtype=torch.float32).to(q.dtype) @ v
        return self.out_proj(out.transpose(1, 2).reshape(batch, length, width))


class VisionMlp(nn.Module):  # type: ignore[misc,unused-ignore]
    """[..., width] to the same."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(width, hidden), nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(functional.gelu(self.fc1(x), approximate="tanh"))


class VisionLayer(nn.Module):  # type: ignore[misc,unused-ignore]
    """[B, N, width] to the same."""

    def __init__(self, c: SmolVLAConfig) -> None:
        super().__init__()
        width = c.vision.width
        self.layer_norm1, self.layer_norm2 = (nn.LayerNorm(width, eps=c.vision.epsilon) for _ in range(2))
        self.self_attn = VisionAttention(width, c.vision.heads)
        self.mlp = VisionMlp(width, c.vision.hidden)

    def forward(self, x: Tensor, kind: str) -> Tensor:
        x = x + self.self_attn(self.layer_norm1(x), kind)
        return x + self.mlp(self.layer_norm2(x))


class VisionEmbeddings(nn.Module):  # type: ignore[misc,unused-ignore]
    """Pixels [B, 3, S, S] to patches [B, N, width], positions added."""

    def __init__(self, c: SmolVLAConfig) -> None:
        super().__init__()
        v = c.vision
        self.side, self.grid = c.patches, v.grid
        self.patch_embedding = nn.Conv2d(3, v.width, v.patch, v.patch)
        self.position_embedding = nn.Embedding(v.grid * v.grid, v.width)

    def positions(self) -> Tensor:
        """The rows of the position table [N, width] that belong to the patches."""
        ids = torch.from_numpy(position_ids(self.side, self.grid)).to(self.position_embedding.weight.device)
        return self.position_embedding(ids)

    def forward(self, pixels: Tensor) -> Tensor:
        patches = self.patch_embedding(pixels.to(self.patch_embedding.weight.dtype))
        return patches.flatten(2).transpose(1, 2) + self.positions()


class VisionEncoder(nn.Module):  # type: ignore[misc,unused-ignore]
    """The blocks of the image encoder, by the name that the weights have."""

    def __init__(self, c: SmolVLAConfig) -> None:
        super().__init__()
        self.layers = nn.ModuleList([VisionLayer(c) for _ in range(c.vision.layers)])


class VisionModel(nn.Module):  # type: ignore[misc,unused-ignore]
    """Pixels [B, 3, S, S] in -1..1 to patches [B, N, width]."""

    def __init__(self, c: SmolVLAConfig) -> None:
        super().__init__()
        self.embeddings, self.encoder = VisionEmbeddings(c), VisionEncoder(c)
        self.post_layernorm = nn.LayerNorm(c.vision.width, eps=c.vision.epsilon)

    def forward(self, pixels: Tensor, kind: str = "eager") -> Tensor:
        x = self.embeddings(pixels)
        for layer in self.encoder.layers:
            x = layer(x, kind)
        return self.post_layernorm(x)


class Projection(nn.Module):  # type: ignore[misc,unused-ignore]
    """Holds the connector's linear layer by the name that the weights have."""

    def __init__(self, fed: int, width: int) -> None:
        super().__init__()
        self.proj = nn.Linear(fed, width, bias=False)


class Connector(nn.Module):  # type: ignore[misc,unused-ignore]
    """Patches [B, N, width] to tokens [B, N / f**2, text width]: f by f patches side by side, projected."""

    def __init__(self, c: SmolVLAConfig) -> None:
        super().__init__()
        self.shuffle = c.shuffle
        self.modality_projection = Projection(c.vision.width * c.shuffle**2, c.text.width)

    def gather(self, x: Tensor) -> Tensor:
        """The pixel shuffle: [B, N, width] to [B, N / f**2, width * f**2], ordered row, column, channel."""
        batch, count, width = x.shape
        blocks, f = math.isqrt(count) // self.shuffle, self.shuffle
        x = x.reshape(batch * blocks, f, blocks, f * width).transpose(1, 2)
        return x.reshape(batch, blocks * blocks, f * f * width)

    def forward(self, x: Tensor) -> Tensor:
        return self.modality_projection.proj(self.gather(x))


class Attention(nn.Module):  # type: ignore[misc,unused-ignore]
    """The projections of an attention: queries from `width` numbers, keys and values from `fed`."""

    def __init__(self, c: SmolVLAConfig, width: int, fed: int) -> None:
        super().__init__()
        text = c.text
        self.head_dim = text.head_dim
        self.q_proj = nn.Linear(width, text.heads * text.head_dim, bias=False)
        self.k_proj, self.v_proj = (nn.Linear(fed, text.kv_heads * text.head_dim, bias=False) for _ in range(2))
        self.o_proj = nn.Linear(text.heads * text.head_dim, width, bias=False)

    def heads(self, layer: nn.Linear, x: Tensor) -> Tensor:
        """[B, L, fed] through a projection to [B, L, heads, head_dim]."""
        return linear(layer, x).reshape(*x.shape[:2], -1, self.head_dim)


class Mlp(nn.Module):  # type: ignore[misc,unused-ignore]
    """SwiGLU: [..., width] to the same."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.gate_proj, self.up_proj = (nn.Linear(width, hidden, bias=False) for _ in range(2))
        self.down_proj = nn.Linear(hidden, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return linear(self.down_proj, functional.silu(linear(self.gate_proj, x)) * linear(self.up_proj, x))


class TextLayer(nn.Module):  # type: ignore[misc,unused-ignore]
    """A layer of the language model or of the expert; `finish` is what follows the attention."""

    def __init__(self, c: SmolVLAConfig, width: int, hidden: int, fed: int) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(width, c.text.epsilon)
        self.self_attn = Attention(c, width, fed)
        self.post_attention_layernorm = RMSNorm(width, c.text.epsilon)
        self.mlp = Mlp(width, hidden)

    def finish(self, x: Tensor, attended: Tensor) -> Tensor:
        out = linear(self.self_attn.o_proj, attended)
        x = (out + x).to(out.dtype)
        out = self.mlp(self.post_attention_layernorm(x))
        return (out + x).to(out.dtype)


class TextModel(nn.Module):  # type: ignore[misc,unused-ignore]
    """The language model's table and layers (its final norm is held, and not used)."""

    def __init__(self, c: SmolVLAConfig) -> None:
        super().__init__()
        text = c.text
        self.embed_tokens = nn.Embedding(text.vocab, text.width)
        self.layers = nn.ModuleList([TextLayer(c, text.width, text.hidden, text.width) for _ in range(text.layers)])
        self.norm = RMSNorm(text.width, text.epsilon)


class Expert(nn.Module):  # type: ignore[misc,unused-ignore]
    """The action expert's layers and final norm."""

    def __init__(self, c: SmolVLAConfig) -> None:
        super().__init__()
        kept = c.text.kv_heads * c.text.head_dim
        feeds = [kept if c.layers[i].cross else c.expert_width for i in c.cached]
        self.layers = nn.ModuleList([TextLayer(c, c.expert_width, c.expert_hidden, fed) for fed in feeds])
        self.norm = RMSNorm(c.expert_width, c.text.epsilon)


class VlmModel(nn.Module):  # type: ignore[misc,unused-ignore]
    """The parts of the vision-language model, by the names that the weights have."""

    def __init__(self, c: SmolVLAConfig) -> None:
        super().__init__()
        self.vision_model, self.connector, self.text_model = VisionModel(c), Connector(c), TextModel(c)


class Vlm(nn.Module):  # type: ignore[misc,unused-ignore]
    """Holds the vision-language model (without its head) by the name that the weights have."""

    def __init__(self, c: SmolVLAConfig) -> None:
        super().__init__()
        self.model = VlmModel(c)


class VlmWithExpert(nn.Module):  # type: ignore[misc,unused-ignore]
    """Both language models, by the names that the weights have."""

    def __init__(self, c: SmolVLAConfig) -> None:
        super().__init__()
        self.vlm, self.lm_expert = Vlm(c), Expert(c)


class SmolVLA(nn.Module):  # type: ignore[misc,unused-ignore]
    """The whole network: images, instruction and state to a chunk of normalized actions.

    Args:
        config: the numbers.
        attention: "eager", the original's arithmetic step by step; or "sdpa", torch's fused attention, and the cross
            layers' keys and values projected once a chunk instead of once a step.
    """

    def __init__(self, config: SmolVLAConfig, attention: str = "eager") -> None:
        super().__init__()
        c = self.config = config
        self.attention = attention
        self.vlm_with_expert = VlmWithExpert(c)
        self.state_proj = nn.Linear(c.max_state, c.text.width)
        self.action_in_proj = nn.Linear(c.max_action, c.expert_width)
        self.action_out_proj = nn.Linear(c.expert_width, c.max_action)
        self.action_time_mlp_in = nn.Linear(2 * c.expert_width, c.expert_width)
        self.action_time_mlp_out = nn.Linear(c.expert_width, c.expert_width)

    def embed_image(self, pixels: Tensor) -> Tensor:
        """Pixels [B, 3, S, S] to tokens [B, T, width], not yet scaled."""
        parts = self.vlm_with_expert.vlm.model
        return parts.connector(parts.vision_model(pixels, self.attention))

    def embed_prefix(
        self, images: Sequence[Tensor], seen: Sequence[Tensor], tokens: Tensor, masks: Tensor, state: Tensor
    ) -> tuple[Tensor, Tensor, int]:
        """The prefix [B, P, width] of embedded images, what of it is real (bool [B, P]), and where the state is."""
        table = self.vlm_with_expert.vlm.model.text_model.embed_tokens
        batch, device, parts, pads = state.shape[0], state.device, [], []

        def special(ids: tuple[int, ...]) -> None:
            if ids:
                rows = table(torch.tensor(ids, device=device))
                parts.append(rows[None].expand(batch, -1, -1))
                pads.append(torch.ones(batch, len(ids), dtype=torch.bool, device=device))

        for image, mask in zip(images, seen, strict=True):
            special(self.config.image_start)
            parts.append(image * torch.tensor(image.shape[-1] ** 0.5, dtype=image.dtype, device=device))
            pads.append(mask.to(torch.bool)[:, None].expand(batch, image.shape[1]))
            special(self.config.image_end)
        words = table(tokens)
        parts.append(words * math.sqrt(words.shape[-1]))
        pads.append(masks.to(torch.bool))
        parts.append(linear(self.state_proj, state)[:, None])
        pads.append(torch.ones(batch, 1, dtype=torch.bool, device=device))
        x, pad = torch.cat(parts, dim=1), torch.cat(pads, dim=1)
        place, more = x.shape[1] - 1, self.config.prefix_length - x.shape[1]
        if more > 0:
            x, pad = functional.pad(x, (0, 0, 0, more)), functional.pad(pad, (0, more))
        return x, pad, place

    def prefix(self, x: Tensor, pad: Tensor, place: int) -> Cache:
        """Keys and values of every layer for a prefix; `place` is the state's, which no other token sees.

        (What a pad computes is read by nothing; here it sees what the others see.)
        """
        block = torch.arange(x.shape[1], device=x.device)
        blind = (block[:, None] < place) & (block[None, :] >= place)
        mask = pad[:, None, :] & ~blind[None]
        positions = torch.cumsum(pad, dim=1) - 1
        layers, cache = self.vlm_with_expert.vlm.model.text_model.layers, Cache()
        last = self.config.cached[-1]
        for i, layer in enumerate(layers[: last + 1]):
            attention, h = layer.self_attn, layer.input_layernorm(x)
            key = rotate(attention.heads(attention.k_proj, h), positions)
            value = attention.heads(attention.v_proj, h)
            cache.append((key, value))
            if i < last:
                query = rotate(attention.heads(attention.q_proj, h), positions)
                x = layer.finish(x, attend(query, key, value, mask, self.attention))
        return cache

    def crossed(self, index: int, cache: Cache) -> tuple[Tensor, Tensor]:
        """Keys and values [B, P, kv_heads, head_dim] of a cross layer: the cached ones, projected by the expert."""
        expert = self.config.layers[index].expert
        attention = self.vlm_with_expert.lm_expert.layers[expert].self_attn
        key, value = (x.flatten(2) for x in cache[index])
        return attention.heads(attention.k_proj, key), attention.heads(attention.v_proj, value)

    def embed_suffix(self, actions: Tensor, time: Tensor) -> Tensor:
        """Noisy actions [B, C, max_action] and an embedded time [1, expert_width]: [B, C, expert_width]."""
        x = linear(self.action_in_proj, actions)
        x = torch.cat([x, time.to(x.dtype)[:, None].expand_as(x)], dim=2)
        return linear(self.action_time_mlp_out, functional.silu(linear(self.action_time_mlp_in, x)))

    def velocity(
        self, actions: Tensor, time: Tensor, pad: Tensor, cache: Cache, projected: Cache | None = None
    ) -> Tensor:
        """One evaluation of the action expert: float32 [B, C, max_action].

        `projected` holds `crossed` for each layer where that was computed before.
        """
        x = self.embed_suffix(actions, time)
        batch, count = x.shape[:2]
        here = torch.arange(count, device=x.device)
        causal = (here[None, :] <= here[:, None]).expand(batch, -1, -1)
        before = pad[:, None, :].expand(-1, count, -1)
        both = torch.cat([before, causal], dim=2)
        positions = pad.sum(dim=1, keepdim=True) + here
        for i in self.config.cached:
            cross, layer = (
                self.config.layers[i].cross,
                self.vlm_with_expert.lm_expert.layers[self.config.layers[i].expert],
            )
            attention, h = layer.self_attn, layer.input_layernorm(x)
            query = attention.heads(attention.q_proj, h)
            if cross:
                key, value = projected[i] if projected is not None else self.crossed(i, cache)
                out = attend(rotate(query, here[None]), key, value, before, self.attention)
            else:
                key = rotate(attention.heads(attention.k_proj, h), positions)
                pair = (key, attention.heads(attention.v_proj, h))
                key, value = (torch.cat([old, new], dim=1) for old, new in zip(cache[i], pair, strict=True))
                out = attend(rotate(query, positions), key, value, both, self.attention)
            x = layer.finish(x, out)
        x = self.vlm_with_expert.lm_expert.norm(x).to(torch.float32)
        return linear(self.action_out_proj, x)

    def sample(self, pad: Tensor, cache: Cache, noise: Tensor) -> Tensor:
        """Euler steps from noise [B, C, max_action] to a chunk of the same shape."""
        steps, x = self.config.num_steps, noise
        projected = None
        if self.attention == "sdpa":
            crossing = [i for i in self.config.cached if self.config.layers[i].cross]
            projected = [self.crossed(i, cache) if i in crossing else cache[i] for i in range(len(cache))]
        for time in step_times(steps):
            embedded = torch.from_numpy(time_embedding(self.config, time)).to(noise.device)
            x = x + (-1.0 / steps) * self.velocity(x, embedded, pad, cache, projected)
        return x

    def forward(
        self,
        images: Sequence[Tensor],
        img_masks: Sequence[Tensor],
        tokens: Tensor,
        masks: Tensor,
        state: Tensor,
        noise: Tensor,
    ) -> Tensor:
        """A chunk of normalized actions float32 [B, chunk_size, max_action].

        Args:
            images: float32 [B, 3, S, S] in -1..1 for each camera.
            img_masks: bool [B] for each: whether there is an image.
            tokens: int64 [B, n].
            masks: bool [B, n]: which tokens are real.
            state: float32 [B, max_state], padded with zeros.
            noise: float32 [B, chunk_size, max_action], normal.
        """
        x, pad, place = self.embed_prefix([self.embed_image(i) for i in images], img_masks, tokens, masks, state)
        return self.sample(pad, self.prefix(x, pad, place), noise)

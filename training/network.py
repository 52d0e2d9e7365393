# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""A small SmolVLA that can be trained: LeRobot's names and arithmetic, any batch, several noise samples a picture.

npukit's own definitions (`npukit.policies.smolvla`) are for inference; these are for training, written by themselves,
and a test compares the two on the same weights. Sizes are a `Sizes`; the words of 1.2 to 1.4 of SmolVLA's description
(layer kinds, masks, positions, scales) hold for all of them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

ROPE = 10_000.0  # wavelength
PERIODS = (4e-3, 4.0)  # of the time's embedding


@dataclass(frozen=True)
class Sizes:
    """Numbers of the network; the defaults are those of the committed policy."""

    image: int = 64
    patch: int = 8
    vision_hidden: int = 64
    vision_layers: int = 3
    vision_heads: int = 4
    vision_mlp: int = 192
    shuffle: int = 4
    hidden: int = 128
    layers: int = 4
    heads: int = 4
    kv_heads: int = 2
    head_dim: int = 32
    mlp: int = 256
    vocabulary: int = 16
    expert_multiplier: float = 0.75
    every: int = 2  # every so many-th layer of the expert is self-attention
    cameras: int = 2
    text: int = 16
    chunk: int = 6
    state: int = 8
    action: int = 8

    @property
    def expert(self) -> int:
        return int(self.hidden * self.expert_multiplier)

    @property
    def expert_mlp(self) -> int:
        """LeRobot's rule: two thirds of four times the width, up to a multiple of 256."""
        return -(-int(4 * int(2 * self.expert / 3)) // 256) * 256

    @property
    def image_tokens(self) -> int:
        return (self.image // self.patch // self.shuffle) ** 2


def _part(**modules: nn.Module) -> nn.Module:
    """A module that is nothing but its parts: for names."""
    made = nn.Module()
    for name, module in modules.items():
        made.add_module(name, module)
    return made


class Rms(nn.Module):
    """Root mean square norm, eps 1e-5."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return functional.rms_norm(x, x.shape[-1:], self.weight.to(x.dtype), 1e-5)


def _plain(inputs: int, outputs: int) -> nn.Linear:
    return nn.Linear(inputs, outputs, bias=False)


class VisionLayer(nn.Module):
    """A layer of the image encoder: [N, patches, width] to the same shape."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        width, self.heads = sizes.vision_hidden, sizes.vision_heads
        self.layer_norm1, self.layer_norm2 = nn.LayerNorm(width, eps=1e-6), nn.LayerNorm(width, eps=1e-6)
        names = ("q_proj", "k_proj", "v_proj", "out_proj")
        self.self_attn = _part(**{name: nn.Linear(width, width) for name in names})
        self.mlp = _part(fc1=nn.Linear(width, sizes.vision_mlp), fc2=nn.Linear(sizes.vision_mlp, width))

    def forward(self, x: Tensor) -> Tensor:
        a = self.self_attn
        inner = self.layer_norm1(x)
        q, k, v = (p(inner).unflatten(-1, (self.heads, -1)).transpose(1, 2) for p in (a.q_proj, a.k_proj, a.v_proj))
        # Written out: PyTorch's fused attention takes eight times as long backwards on a CPU at these sizes.
        weights = (q * q.shape[-1] ** -0.5 @ k.transpose(2, 3)).softmax(-1).to(v.dtype)
        x = x + a.out_proj((weights @ v).transpose(1, 2).flatten(2))
        return x + self.mlp.fc2(functional.gelu(self.mlp.fc1(self.layer_norm2(x)), approximate="tanh"))


def _text_layer(width: int, mlp: int, sizes: Sizes, kv_input: int) -> nn.Module:
    kv = sizes.kv_heads * sizes.head_dim
    return _part(
        input_layernorm=Rms(width),
        post_attention_layernorm=Rms(width),
        self_attn=_part(
            q_proj=_plain(width, sizes.heads * sizes.head_dim),
            k_proj=_plain(kv_input, kv),
            v_proj=_plain(kv_input, kv),
            o_proj=_plain(sizes.heads * sizes.head_dim, width),
        ),
        mlp=_part(gate_proj=_plain(width, mlp), up_proj=_plain(width, mlp), down_proj=_plain(mlp, width)),
    )


class Network(nn.Module):
    """The policy's network; `state_dict` has LeRobot's names, without the leading "model."."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.sizes = sizes
        s = sizes
        vision = _part(
            embeddings=_part(
                patch_embedding=nn.Conv2d(3, s.vision_hidden, s.patch, s.patch),
                position_embedding=nn.Embedding((s.image // s.patch) ** 2, s.vision_hidden),
            ),
            encoder=_part(layers=nn.ModuleList([VisionLayer(s) for _ in range(s.vision_layers)])),
            post_layernorm=nn.LayerNorm(s.vision_hidden, eps=1e-6),
        )
        text = _part(
            embed_tokens=nn.Embedding(s.vocabulary, s.hidden),
            layers=nn.ModuleList([_text_layer(s.hidden, s.mlp, s, s.hidden) for _ in range(s.layers)]),
            norm=Rms(s.hidden),
        )
        shuffled = s.vision_hidden * s.shuffle**2
        connector = _part(modality_projection=_part(proj=_plain(shuffled, s.hidden)))
        kv = s.kv_heads * s.head_dim
        expert = _part(
            layers=nn.ModuleList(
                [_text_layer(s.expert, s.expert_mlp, s, kv if i % s.every else s.expert) for i in range(s.layers)]
            ),
            norm=Rms(s.expert),
        )
        self.vlm_with_expert = _part(
            vlm=_part(
                model=_part(vision_model=vision, connector=connector, text_model=text),
                lm_head=_plain(s.hidden, s.vocabulary),
            ),
            lm_expert=expert,
        )
        self.state_proj = nn.Linear(s.state, s.hidden)
        self.action_in_proj = nn.Linear(s.action, s.expert)
        self.action_out_proj = nn.Linear(s.expert, s.action)
        self.action_time_mlp_in = nn.Linear(2 * s.expert, s.expert)
        self.action_time_mlp_out = nn.Linear(s.expert, s.expert)
        self._start()

    def _start(self) -> None:
        """Random weights that keep every value near 1, also where the network multiplies by sqrt(hidden)."""
        for module in self.modules():
            if isinstance(module, (nn.Linear, nn.Conv2d)):
                nn.init.normal_(module.weight, std=module.weight[0].numel() ** -0.5)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        root = self.sizes.hidden**0.5
        model = self.vlm_with_expert.vlm.model
        with torch.no_grad():
            model.connector.modality_projection.proj.weight /= root
            model.text_model.embed_tokens.weight /= root
            model.vision_model.embeddings.position_embedding.weight *= 0.5
            self.action_out_proj.weight *= 0.1
            for layer in (*model.text_model.layers, *self.vlm_with_expert.lm_expert.layers):
                layer.self_attn.o_proj.weight *= 0.5
                layer.mlp.down_proj.weight *= 0.5

    # ------------------------------------------------------------ once an observation

    def see(self, images: Tensor) -> Tensor:
        """Image embeddings [N, tokens, hidden], before the scale, of pictures f32 [N, 3, S, S] in [-1, 1]."""
        s, model = self.sizes, self.vlm_with_expert.vlm.model
        vision = model.vision_model
        x = vision.embeddings.patch_embedding(images).flatten(2).transpose(1, 2)
        x = x + vision.embeddings.position_embedding.weight
        for layer in vision.encoder.layers:
            x = layer(x)
        x = vision.post_layernorm(x)
        grid = s.image // s.patch // s.shuffle
        x = x.reshape(-1, grid, s.shuffle, grid, s.shuffle, s.vision_hidden).transpose(2, 3)
        return model.connector.modality_projection.proj(x.reshape(-1, grid * grid, s.shuffle**2 * s.vision_hidden))

    def prefix(self, seen: Tensor, tokens: Tensor, mask: Tensor, state: Tensor) -> tuple[list[Tensor], Tensor, Tensor]:
        """Keys and values of every layer, the prefix's mask, and the state's hidden values before the last layer.

        Args:
            seen: [N, tokens of all cameras, hidden], of `see`.
            tokens: i64 [N, text].
            mask: bool [N, text], False where `tokens` is padding.
            state: f32 [N, state], normalized.

        Returns:
            [keys, values] of each layer, each [N, kv heads, prefix, head]; bool [N, prefix]; [N, hidden].
        """
        s, text = self.sizes, self.vlm_with_expert.vlm.model.text_model
        count = len(seen)
        words = text.embed_tokens(tokens)
        root = s.hidden**0.5
        x = torch.cat((seen * root, words * root, self.state_proj(state)[:, None]), 1)
        ones = mask.new_ones(count, seen.shape[1])
        pad = torch.cat((ones, mask, mask.new_ones(count, 1)), 1)
        blind = torch.ones(pad.shape[1], pad.shape[1], dtype=torch.bool)
        blind[:-1, -1] = False  # nothing but the state sees the state
        allowed = (pad[:, None, :] & pad[:, :, None] & blind)[:, None]
        bias = torch.zeros(allowed.shape).masked_fill(~allowed, -1e9)
        rotation = _rotation(pad.cumsum(1) - 1, s.head_dim)
        cache: list[Tensor] = []
        for layer in text.layers:
            hidden = x[:, -1]
            q, k, v = self._heads(layer, layer.input_layernorm(x))
            q, k = _rotate(q, rotation), _rotate(k, rotation)
            cache += [k, v]
            x = self._finish(layer, x, self._attend(q, k, v, bias))
        return cache, pad, hidden

    # ------------------------------------------------------------ once a step of the integration

    def velocity(self, noisy: Tensor, time: Tensor, cache: list[Tensor], pad: Tensor) -> Tensor:
        """The velocity f32 [N, chunk, action] of actions f32 [N, chunk, action] at times f32 [N] in (0, 1]."""
        s, expert = self.sizes, self.vlm_with_expert.lm_expert
        x = self.action_in_proj(noisy)
        stamp = embed_time(time, s.expert)[:, None].expand_as(x)
        x = self.action_time_mlp_out(functional.silu(self.action_time_mlp_in(torch.cat((x, stamp.to(x.dtype)), 2))))
        order = torch.arange(s.chunk)
        later = _rotation(pad.sum(1, keepdim=True) + order, s.head_dim)
        alone = _rotation(order[None], s.head_dim)
        causal = (order[:, None] >= order).expand(len(pad), 1, s.chunk, s.chunk)
        past = pad[:, None, None, :].expand(-1, 1, s.chunk, -1)
        far = torch.zeros(past.shape).masked_fill(~past, -1e9)
        near = torch.cat((far, torch.zeros(causal.shape).masked_fill(~causal, -1e9)), 3)
        for i, layer in enumerate(expert.layers):
            inner = layer.input_layernorm(x)
            keys, values = cache[2 * i], cache[2 * i + 1]
            if i % s.every:
                a = layer.self_attn
                q = _rotate(self._split(a.q_proj(inner)), alone)
                k, v = (self._split(p(t.transpose(1, 2).flatten(2))) for p, t in ((a.k_proj, keys), (a.v_proj, values)))
                attended = self._attend(q, k, v, far)
            else:
                q, k, v = self._heads(layer, inner)
                q, k = _rotate(q, later), _rotate(k, later)
                attended = self._attend(q, torch.cat((keys, k), 2), torch.cat((values, v), 2), near)
            x = self._finish(layer, x, attended)
        return self.action_out_proj(expert.norm(x).float())

    def chunk(
        self, seen: Tensor, tokens: Tensor, mask: Tensor, state: Tensor, noise: Tensor, steps: int = 10
    ) -> Tensor:
        """Normalized actions f32 [N, chunk, action] by `steps` steps of Euler from `noise` of the same shape."""
        cache, pad, _ = self.prefix(seen, tokens, mask, state)
        x = noise
        for k in range(steps):
            time = torch.full((len(x),), 1 - k / steps)
            x = x - self.velocity(x, time, cache, pad) / steps
        return x

    # ------------------------------------------------------------ inside

    def _split(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (-1, self.sizes.head_dim)).transpose(1, 2)

    def _heads(self, layer: nn.Module, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        a = layer.self_attn
        return self._split(a.q_proj(x)), self._split(a.k_proj(x)), self._split(a.v_proj(x))

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
        """Attention where each key/value head serves several query heads; [N, tokens, heads * head]."""
        groups = self.sizes.heads // self.sizes.kv_heads
        k, v = k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1)
        scores = q @ k.transpose(2, 3) * self.sizes.head_dim**-0.5 + bias.to(q.dtype)
        return (scores.softmax(-1).to(v.dtype) @ v).transpose(1, 2).flatten(2)

    def _finish(self, layer: nn.Module, x: Tensor, attended: Tensor) -> Tensor:
        x = x + layer.self_attn.o_proj(attended)
        inner = layer.post_attention_layernorm(x)
        return x + layer.mlp.down_proj(functional.silu(layer.mlp.gate_proj(inner)) * layer.mlp.up_proj(inner))


def embed_time(time: Tensor, width: int) -> Tensor:
    """Sines and cosines f32 [N, width] of times [N], periods from 0.004 to 4; computed in float64."""
    period = PERIODS[0] * (PERIODS[1] / PERIODS[0]) ** torch.linspace(0, 1, width // 2, dtype=torch.float64)
    angle = time.double()[:, None] * (2 * math.pi / period)
    return torch.cat((angle.sin(), angle.cos()), 1).float()


def _rotation(positions: Tensor, head: int) -> tuple[Tensor, Tensor]:
    """Cosines and sines f32 [N, 1, tokens, head / 2] of positions [N, tokens]."""
    frequency = ROPE ** (-torch.arange(head // 2) / (head / 2))
    angle = (positions[..., None] * frequency)[:, None]
    return angle.cos(), angle.sin()


def _rotate(x: Tensor, rotation: tuple[Tensor, Tensor]) -> Tensor:
    cosine, sine = (term.to(x.dtype) for term in rotation)
    first, second = x.chunk(2, -1)
    return torch.cat((first * cosine - second * sine, second * cosine + first * sine), -1)

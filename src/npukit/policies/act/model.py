# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""ACT's network for inference (Zhao et al. 2023, as LeRobot 0.4 trains it); importing this module imports torch.

Modules are named as LeRobot names its weights, so that a checkpoint loads by name. The variational encoder is used in
training only and is left out; its latent is zeros at inference, so the latent's token is a constant.

Batch norm has constant statistics and is folded into the convolution before it; the positions of pixels, the latent's
token and the first decoder layer's self-attention, whose input is zeros, depend on no input and are constants as well.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from npukit.policies.act.config import BACKBONES, ActConfig

_EPSILON = 1e-5  # of batch norm (torchvision's FrozenBatchNorm2d) and of layer norm
_WIDTHS = (64, 128, 256, 512)


class FrozenBatchNorm(nn.Module):  # type: ignore[misc,unused-ignore]
    """Batch norm with constant statistics: [N, C, H, W] to the same shape; `fold` makes it part of a convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        for name, value in (("weight", 1.0), ("bias", 0.0), ("running_mean", 0.0), ("running_var", 1.0)):
            self.register_buffer(name, torch.full((channels,), value))

    def terms(self) -> tuple[Tensor, Tensor]:
        """Scale and shift of each channel, f32 [C] both."""
        scale = self.weight * (self.running_var + _EPSILON).rsqrt()
        return scale, self.bias - self.running_mean * scale

    def forward(self, x: Tensor) -> Tensor:
        scale, shift = (term[:, None, None] for term in self.terms())
        return x * scale + shift


def _convolution(channels: int, filters: int, size: int, stride: int) -> nn.Conv2d:
    return nn.Conv2d(channels, filters, size, stride, size // 2, bias=False)


def fold(convolution: nn.Conv2d, norm: FrozenBatchNorm) -> nn.Conv2d:
    """The convolution that does what `convolution` followed by `norm` does; computed in float64."""
    scale, shift = (term.detach() for term in norm.double().terms())
    made = nn.Conv2d(
        convolution.in_channels,
        convolution.out_channels,
        convolution.kernel_size,
        convolution.stride,
        convolution.padding,
    )
    made.weight = nn.Parameter((convolution.weight.double() * scale[:, None, None, None]).float())
    made.bias = nn.Parameter(shift.float())
    return made


class Block(nn.Module):  # type: ignore[misc,unused-ignore]
    """A ResNet's basic block: two 3x3 convolutions beside a shortcut; [N, C, H, W] to [N, F, H/s, W/s]."""

    def __init__(self, channels: int, filters: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = _convolution(channels, filters, 3, stride), FrozenBatchNorm(filters)
        self.conv2, self.bn2 = _convolution(filters, filters, 3, 1), FrozenBatchNorm(filters)
        self.downsample: Any = None
        if stride > 1 or channels != filters:
            self.downsample = nn.Sequential(_convolution(channels, filters, 1, stride), FrozenBatchNorm(filters))

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        x = functional.relu(self.bn1(self.conv1(x)))
        return functional.relu(self.bn2(self.conv2(x)) + shortcut)

    def fold(self) -> None:
        self.conv1, self.bn1 = fold(self.conv1, self.bn1), nn.Identity()
        self.conv2, self.bn2 = fold(self.conv2, self.bn2), nn.Identity()
        if self.downsample is not None:
            self.downsample = fold(self.downsample[0], self.downsample[1])


class Backbone(nn.Module):  # type: ignore[misc,unused-ignore]
    """ResNet without its classifier: [N, 3, H, W] to [N, 512, ceil(H/32), ceil(W/32)]."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.conv1, self.bn1 = _convolution(3, 64, 7, 2), FrozenBatchNorm(64)
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        channels = 64
        for stage, (blocks, filters) in enumerate(zip(BACKBONES[name], _WIDTHS, strict=True), 1):
            made = []
            for block in range(blocks):
                made.append(Block(channels, filters, 2 if block == 0 and stage > 1 else 1))
                channels = filters
            setattr(self, f"layer{stage}", nn.Sequential(*made))

    def forward(self, x: Tensor) -> Tensor:
        x = self.maxpool(functional.relu(self.bn1(self.conv1(x))))
        return self.layer4(self.layer3(self.layer2(self.layer1(x))))

    def fold(self) -> None:
        """Fold every batch norm into its convolution, once."""
        self.conv1, self.bn1 = fold(self.conv1, self.bn1), nn.Identity()
        for module in list(self.modules()):
            if isinstance(module, Block):
                module.fold()


class Attention(nn.Module):  # type: ignore[misc,unused-ignore]
    """Multi-head attention on [N, tokens, dim], weights named and laid out as `torch.nn.MultiheadAttention` has them.

    `in_proj_weight` [3 * dim, dim] holds the projections of queries, keys and values in this order.
    """

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.in_proj_weight = nn.Parameter(torch.empty(3 * dim, dim))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * dim))
        self.out_proj = nn.Linear(dim, dim)

    def forward(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        scale = (self.in_proj_bias.shape[0] // 3 // self.heads) ** -0.5
        q, k, v = (
            functional.linear(x, w, b).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for x, w, b in zip(
                (query, key, value), self.in_proj_weight.chunk(3), self.in_proj_bias.chunk(3), strict=True
            )
        )
        return self.out_proj(((q * scale @ k.transpose(2, 3)).softmax(-1) @ v).transpose(1, 2).flatten(2))


class FoldedAttention(nn.Module):  # type: ignore[misc,unused-ignore]
    """`Attention` with a projection of its own for queries, keys and values, and the scale inside the first."""

    def __init__(self, whole: Attention) -> None:
        super().__init__()
        self.heads, self.out_proj = whole.heads, whole.out_proj
        weights, biases = whole.in_proj_weight.detach().chunk(3), whole.in_proj_bias.detach().chunk(3)
        scale = (weights[0].shape[0] // self.heads) ** -0.5
        parts = []
        for weight, bias, factor in zip(weights, biases, (scale, 1.0, 1.0), strict=True):
            linear = nn.Linear(*reversed(weight.shape), device="meta")
            linear.weight, linear.bias = nn.Parameter(weight * factor), nn.Parameter(bias * factor)
            parts.append(linear)
        self.query, self.key, self.value = parts

    def forward(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        q, k, v = (
            linear(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for linear, x in ((self.query, query), (self.key, key), (self.value, value))
        )
        return self.out_proj(((q @ k.transpose(2, 3)).softmax(-1) @ v).transpose(1, 2).flatten(2))


def _activation(name: str) -> Any:
    return {"relu": functional.relu, "gelu": functional.gelu}[name]


class EncoderLayer(nn.Module):  # type: ignore[misc,unused-ignore]
    """Self-attention and feed-forward; [N, tokens, dim] to the same shape. Positions are added to queries and keys."""

    def __init__(self, config: ActConfig) -> None:
        super().__init__()
        dim, self.pre_norm = config.dim_model, config.pre_norm
        self.self_attn = Attention(dim, config.n_heads)
        self.linear1, self.linear2 = nn.Linear(dim, config.dim_feedforward), nn.Linear(config.dim_feedforward, dim)
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.activation = _activation(config.feedforward_activation)

    def forward(self, x: Tensor, position: Tensor) -> Tensor:
        inner = self.norm1(x) if self.pre_norm else x
        placed = inner + position
        x = x + self.self_attn(placed, placed, inner)
        return _feed_forward(self, x, self.norm1, self.norm2)


def _feed_forward(layer: Any, x: Tensor, before: nn.Module, after: nn.Module) -> Tensor:
    """A layer's second half: norm `after` stands before (pre-norm) or after it; `before` ends the first half."""
    if layer.pre_norm:
        return x + layer.linear2(layer.activation(layer.linear1(after(x))))
    x = before(x)
    return after(x + layer.linear2(layer.activation(layer.linear1(x))))


class DecoderLayer(nn.Module):  # type: ignore[misc,unused-ignore]
    """Self-attention of the queries, attention to the encoder's tokens, feed-forward; [N, chunk, dim] to the same."""

    def __init__(self, config: ActConfig) -> None:
        super().__init__()
        dim, self.pre_norm = config.dim_model, config.pre_norm
        self.self_attn, self.multihead_attn = Attention(dim, config.n_heads), Attention(dim, config.n_heads)
        self.linear1, self.linear2 = nn.Linear(dim, config.dim_feedforward), nn.Linear(config.dim_feedforward, dim)
        self.norm1, self.norm2, self.norm3 = nn.LayerNorm(dim), nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.activation = _activation(config.feedforward_activation)

    def own(self, x: Tensor, query: Tensor) -> Tensor:
        """The first third: the queries among themselves, up to what the attention to the encoder adds to."""
        inner = self.norm1(x) if self.pre_norm else x
        placed = inner + query
        x = x + self.self_attn(placed, placed, inner)
        return x if self.pre_norm else self.norm1(x)

    def rest(self, x: Tensor, query: Tensor, memory: Tensor, placed: Tensor) -> Tensor:
        """The other two thirds, on `own`'s result."""
        inner = self.norm2(x) if self.pre_norm else x
        x = x + self.multihead_attn(inner + query, placed, memory)
        return _feed_forward(self, x, self.norm2, self.norm3)


class Encoder(nn.Module):  # type: ignore[misc,unused-ignore]
    """The encoder's layers; [N, tokens, dim] to the same shape."""

    def __init__(self, config: ActConfig) -> None:
        super().__init__()
        self.layers = nn.ModuleList([EncoderLayer(config) for _ in range(config.n_encoder_layers)])
        self.norm = nn.LayerNorm(config.dim_model) if config.pre_norm else nn.Identity()

    def forward(self, x: Tensor, position: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x, position)
        return self.norm(x)


class Decoder(nn.Module):  # type: ignore[misc,unused-ignore]
    """The decoder's layers, always with a norm at the end; its input is zeros, so it takes the queries alone."""

    def __init__(self, config: ActConfig) -> None:
        super().__init__()
        self.layers = nn.ModuleList([DecoderLayer(config) for _ in range(config.n_decoder_layers)])
        self.norm = nn.LayerNorm(config.dim_model)
        self.first: Tensor | None = None

    def freeze(self, query: Tensor) -> None:
        """Compute what the first layer makes of zeros and `query` [1, chunk, dim], which no input changes."""
        first = self.layers[0].own(torch.zeros_like(query), query)
        del self.first
        self.register_buffer("first", first.detach(), persistent=False)

    def forward(self, query: Tensor, memory: Tensor, placed: Tensor) -> Tensor:
        x = torch.zeros_like(query)
        for index, layer in enumerate(self.layers):
            x = self.first if index == 0 and self.first is not None else layer.own(x, query)
            x = layer.rest(x, query, memory, placed)
        return self.norm(x)


def pixel_positions(height: int, width: int, dim: int) -> Tensor:
    """Sinusoidal positions of a feature map's pixels, row by row: f32 [height * width, dim].

    The first half of the channels tells the row, the second the column; within a half sine and cosine alternate.
    A coordinate is counted from 1 and scaled to 2 pi at the far edge (the DETR form, LeRobot's arithmetic and epsilon).
    """
    half = dim // 2
    frequency = 10000.0 ** (2 * (torch.arange(half, dtype=torch.float32) // 2) / half)

    def line(count: int) -> Tensor:
        steps = torch.arange(1, count + 1, dtype=torch.float32)
        angle = (steps / (float(count) + 1e-6) * (2 * math.pi))[:, None] / frequency
        return torch.stack((angle[:, 0::2].sin(), angle[:, 1::2].cos()), -1).flatten(1)

    rows = line(height)[:, None, :].expand(height, width, half)
    columns = line(width)[None, :, :].expand(height, width, half)
    return torch.cat((rows, columns), -1).reshape(height * width, dim)


class Act(nn.Module):  # type: ignore[misc,unused-ignore]
    """The network: normalized observations to a chunk of normalized actions.

    Args:
        config: its numbers.
    """

    def __init__(self, config: ActConfig) -> None:
        super().__init__()
        self.config = config
        dim = config.dim_model
        if config.images:
            self.backbone = Backbone(config.vision_backbone)
            self.encoder_img_feat_input_proj = nn.Conv2d(_WIDTHS[-1], dim, 1)
        self.encoder, self.decoder = Encoder(config), Decoder(config)
        if config.state is not None:
            self.encoder_robot_state_input_proj = nn.Linear(config.state, dim)
        if config.env_state is not None:
            self.encoder_env_state_input_proj = nn.Linear(config.env_state[1], dim)
        self.encoder_latent_input_proj = nn.Linear(config.latent_dim, dim)
        vectors = 1 + (config.state is not None) + (config.env_state is not None)
        self.encoder_1d_feature_pos_embed = nn.Embedding(vectors, dim)
        self.decoder_pos_embed = nn.Embedding(config.chunk_size, dim)
        self.action_head = nn.Linear(dim, config.action)
        self.register_buffer("pixels", self.positions(), persistent=False)

    def positions(self) -> Tensor:
        """Positions of every pixel of every camera's feature map, f32 [pixels, dim]."""
        maps = [pixel_positions(h, w, self.config.dim_model) for h, w in self.config.feature_maps.values()]
        return torch.cat(maps) if maps else torch.zeros(0, self.config.dim_model)

    def freeze(self) -> Act:
        """Fold and precompute what no input changes; the result is the same but for rounding."""
        with torch.no_grad():
            if self.config.images:
                self.backbone.fold()
            self.decoder.freeze(self.decoder_pos_embed.weight[None])
            for module in list(self.modules()):
                for name, child in list(module.named_children()):
                    if isinstance(child, Attention):
                        setattr(module, name, FoldedAttention(child))
        return self

    def forward(self, *inputs: Tensor) -> Tensor:
        """The chunk of actions, f32 [N, chunk, action].

        Args:
            inputs: images f32 [N, 3, H, W] in the config's order, then the robot's state f32 [N, D] and the
                environment's f32 [N, E], those that the config has.
        """
        images, vectors = inputs[: len(self.config.images)], list(inputs[len(self.config.images) :])
        count = inputs[0].shape[0]
        tokens = [self.encoder_latent_input_proj.bias.expand(count, 1, -1)]  # the latent is zeros
        if self.config.state is not None:
            tokens.append(self.encoder_robot_state_input_proj(vectors.pop(0))[:, None])
        if self.config.env_state is not None:
            tokens.append(self.encoder_env_state_input_proj(vectors.pop(0))[:, None])
        for image in images:
            features = self.encoder_img_feat_input_proj(self.backbone(image))
            tokens.append(features.flatten(2).transpose(1, 2))
        position = torch.cat((self.encoder_1d_feature_pos_embed.weight, self.pixels))[None]
        memory = self.encoder(torch.cat(tokens, 1), position)
        query = self.decoder_pos_embed.weight[None]
        chunk: Tensor = self.action_head(self.decoder(query, memory, memory + position))
        return chunk

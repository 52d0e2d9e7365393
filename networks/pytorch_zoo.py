# SPDX-FileCopyrightText: npukit contributors
# SPDX-License-Identifier: Apache-2.0
"""Networks written in PyTorch: topologies of the papers, random weights, statistics taken from data.

He 2015 (ResNet), Howard 2019 (MobileNetV3), Tan 2019 (EfficientNet), Dosovitskiy 2020 (ViT), Liu 2022 (ConvNeXt),
Ronneberger 2015 (U-Net), Chen 2017 (DeepLabV3), Redmon 2018 (YOLO), Liu 2016 (SSD), Bai 2018 (TCN), Devlin 2018 (BERT),
Radford 2019 (GPT), Lim 2017 (EDSR), Dai 2016 (M5). Sizes are smaller where a CPU would need minutes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def _conv(
    c: int, to: int, k: int = 3, stride: int = 1, groups: int = 1, act: type[nn.Module] | None = nn.ReLU
) -> nn.Sequential:
    """Convolution, batch norm, activation."""
    layers: list[nn.Module] = [nn.Conv2d(c, to, k, stride, k // 2, groups=groups, bias=False), nn.BatchNorm2d(to)]
    return nn.Sequential(*layers, *([act()] if act else []))


# ---------------------------------------------------------------- classification


class Residual(nn.Module):
    """A block of ResNet: two 3x3 convolutions, or a bottleneck."""

    def __init__(self, c: int, width: int, stride: int, bottleneck: bool) -> None:
        super().__init__()
        to = width * 4 if bottleneck else width
        if bottleneck:
            body = [_conv(c, width, 1), _conv(width, width, 3, stride), _conv(width, to, 1, act=None)]
        else:
            body = [_conv(c, width, 3, stride), _conv(width, to, 3, act=None)]
        self.body = nn.Sequential(*body)
        self.skip = nn.Identity() if stride == 1 and c == to else _conv(c, to, 1, stride, act=None)

    def forward(self, x: Tensor) -> Tensor:
        """Add the branches."""
        return F.relu(self.body(x) + self.skip(x))


class ResNet(nn.Module):
    """ResNet-18 with blocks (2, 2, 2, 2), ResNet-50 with (3, 4, 6, 3) bottlenecks."""

    def __init__(self, blocks: Sequence[int], bottleneck: bool) -> None:
        super().__init__()
        layers: list[nn.Module] = [_conv(3, 64, 7, 2), nn.MaxPool2d(3, 2, 1)]
        c = 64
        for stage, count in enumerate(blocks):
            for i in range(count):
                layers.append(Residual(c, 64 << stage, 2 if stage and not i else 1, bottleneck))
                c = (64 << stage) * (4 if bottleneck else 1)
        self.features = nn.Sequential(*layers)
        self.head = nn.Linear(c, 1000)

    def forward(self, image: Tensor) -> Tensor:
        """Logits of images."""
        return self.head(self.features(image).mean((2, 3)))


class Squeeze(nn.Module):
    """Squeeze-and-excitation."""

    def __init__(self, c: int, inner: int, act: type[nn.Module], gate: type[nn.Module]) -> None:
        super().__init__()
        self.path = nn.Sequential(
            nn.AdaptiveAvgPool2d(1), nn.Conv2d(c, inner, 1), act(), nn.Conv2d(inner, c, 1), gate()
        )

    def forward(self, x: Tensor) -> Tensor:
        """Scale channels."""
        return x * self.path(x)


class Inverted(nn.Module):
    """Inverted residual of MobileNetV3 and EfficientNet."""

    def __init__(
        self, c: int, inner: int, to: int, k: int, stride: int, se: int, act: type[nn.Module], gate: type[nn.Module]
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = [] if inner == c else [_conv(c, inner, 1, act=act)]
        layers.append(_conv(inner, inner, k, stride, inner, act))
        if se:
            layers.append(Squeeze(inner, se, nn.ReLU if gate is nn.Hardsigmoid else nn.SiLU, gate))
        self.body = nn.Sequential(*layers, _conv(inner, to, 1, act=None))
        self.adds = stride == 1 and c == to

    def forward(self, x: Tensor) -> Tensor:
        """The block."""
        return x + self.body(x) if self.adds else self.body(x)


# kernel, expansion, channels, SE, hard-swish, stride: table 1 of the paper
_V3 = (
    (3, 16, 16, 0, 0, 1), (3, 64, 24, 0, 0, 2), (3, 72, 24, 0, 0, 1), (5, 72, 40, 1, 0, 2), (5, 120, 40, 1, 0, 1),
    (5, 120, 40, 1, 0, 1), (3, 240, 80, 0, 1, 2), (3, 200, 80, 0, 1, 1), (3, 184, 80, 0, 1, 1), (3, 184, 80, 0, 1, 1),
    (3, 480, 112, 1, 1, 1), (3, 672, 112, 1, 1, 1), (5, 672, 160, 1, 1, 2), (5, 960, 160, 1, 1, 1),
    (5, 960, 160, 1, 1, 1),
)  # fmt: skip
# expansion, channels, repeats, stride, kernel
_B0 = (
    (1, 16, 1, 1, 3), (6, 24, 2, 2, 3), (6, 40, 2, 2, 5), (6, 80, 3, 2, 3), (6, 112, 3, 1, 5), (6, 192, 4, 2, 5),
    (6, 320, 1, 1, 3),
)  # fmt: skip


class MobileNetV3(nn.Module):
    """MobileNetV3-Large."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = [_conv(3, 16, 3, 2, act=nn.Hardswish)]
        c = 16
        for k, inner, to, se, swish, stride in _V3:
            act = nn.Hardswish if swish else nn.ReLU
            layers.append(Inverted(c, inner, to, k, stride, inner // 4 if se else 0, act, nn.Hardsigmoid))
            c = to
        self.features = nn.Sequential(*layers, _conv(c, 960, 1, act=nn.Hardswish))
        self.head = nn.Sequential(nn.Linear(960, 1280), nn.Hardswish(), nn.Dropout(0.2), nn.Linear(1280, 1000))

    def forward(self, image: Tensor) -> Tensor:
        """Logits of images."""
        return self.head(self.features(image).mean((2, 3)))


class EfficientNet(nn.Module):
    """EfficientNet-B0."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = [_conv(3, 32, 3, 2, act=nn.SiLU)]
        c = 32
        for expand, to, count, stride, k in _B0:
            for i in range(count):
                layers.append(Inverted(c, c * expand, to, k, 1 if i else stride, max(1, c // 4), nn.SiLU, nn.Sigmoid))
                c = to
        self.features = nn.Sequential(*layers, _conv(c, 1280, 1, act=nn.SiLU))
        self.head = nn.Linear(1280, 1000)

    def forward(self, image: Tensor) -> Tensor:
        """Logits of images."""
        return self.head(self.features(image).mean((2, 3)))


class Attention(nn.Module):
    """Multi-head attention through scaled_dot_product_attention."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Attend."""
        n, length, width = x.shape
        q, k, v = self.qkv(x).view(n, length, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return self.out(y.transpose(1, 2).reshape(n, length, width))


class Encoder(nn.Module):
    """A transformer encoder layer, norms first."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = Attention(width, heads)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """The layer."""
        x = x + self.attention(self.norm1(x), mask)
        return x + self.mlp(self.norm2(x))


class ViT(nn.Module):
    """ViT with patches of 16: the width and heads of ViT-Ti."""

    def __init__(self, size: int = 160, width: int = 192, depth: int = 12, heads: int = 3) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, width, 16, 16)
        self.token = nn.Parameter(torch.randn(1, 1, width))
        self.position = nn.Parameter(torch.randn(1, (size // 16) ** 2 + 1, width) * 0.5)
        self.layers = nn.ModuleList(Encoder(width, heads) for _ in range(depth))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 1000)

    def forward(self, image: Tensor) -> Tensor:
        """Logits of images."""
        x = self.patches(image).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], 1) + self.position
        for layer in self.layers:
            x = layer(x)
        return self.head(self.norm(x)[:, 0])


class ConvNeXtBlock(nn.Module):
    """Depthwise 7x7, layer norm over channels, inverted bottleneck, layer scale."""

    def __init__(self, c: int) -> None:
        super().__init__()
        self.depthwise, self.norm = nn.Conv2d(c, c, 7, padding=3, groups=c), nn.LayerNorm(c, 1e-6)
        self.up, self.down = nn.Linear(c, 4 * c), nn.Linear(4 * c, c)
        self.scale = nn.Parameter(torch.full((c,), 0.5))

    def forward(self, x: Tensor) -> Tensor:
        """The block."""
        y = self.norm(self.depthwise(x).permute(0, 2, 3, 1))
        return x + (self.down(F.gelu(self.up(y))) * self.scale).permute(0, 3, 1, 2)


class Norm2d(nn.LayerNorm):
    """A layer norm over the channels of an image."""

    def forward(self, x: Tensor) -> Tensor:
        """Channels last and back."""
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class ConvNeXt(nn.Module):
    """ConvNeXt-Tiny's depths (3, 3, 9, 3) at half its width."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Conv2d(3, 48, 4, 4), Norm2d(48)]
        for stage, count in enumerate((3, 3, 9, 3)):
            c = 48 << stage
            layers += [Norm2d(c // 2), nn.Conv2d(c // 2, c, 2, 2)] if stage else []
            layers += [ConvNeXtBlock(c) for _ in range(count)]
        self.features = nn.Sequential(*layers)
        self.norm, self.head = nn.LayerNorm(384), nn.Linear(384, 1000)

    def forward(self, image: Tensor) -> Tensor:
        """Logits of images."""
        return self.head(self.norm(self.features(image).mean((2, 3))))


# ---------------------------------------------------------------- dense prediction


class UNet(nn.Module):
    """U-Net with transposed convolutions, four levels."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        widths = [width << i for i in range(5)]

        def double(c: int, to: int) -> nn.Sequential:
            return nn.Sequential(_conv(c, to), _conv(to, to))

        self.down = nn.ModuleList(double(3 if not i else widths[i - 1], widths[i]) for i in range(5))
        self.lift = nn.ModuleList(nn.ConvTranspose2d(widths[i + 1], widths[i], 2, 2) for i in reversed(range(4)))
        self.up = nn.ModuleList(double(2 * widths[i], widths[i]) for i in reversed(range(4)))
        self.head = nn.Conv2d(width, 4, 1)

    def forward(self, image: Tensor) -> Tensor:
        """Logits of each pixel."""
        kept = []
        x = image
        for i, block in enumerate(self.down):
            x = block(F.max_pool2d(x, 2) if i else x)
            kept.append(x)
        for i, (lift, block) in enumerate(zip(self.lift, self.up, strict=True)):
            x = block(torch.cat([kept[3 - i], lift(x)], 1))
        return self.head(x)


class DeepLab(nn.Module):
    """DeepLabV3: a ResNet-18 backbone with dilation, atrous pyramid, bilinear upsampling."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Sequential(*list(ResNet((2, 2, 2, 2), False).features)[:8])
        self.branches = nn.ModuleList(
            nn.Sequential(nn.Conv2d(256, 64, 3 if d > 1 else 1, padding=d if d > 1 else 0, dilation=d, bias=False),
                          nn.BatchNorm2d(64), nn.ReLU()) for d in (1, 3, 6, 9)
        )  # fmt: skip
        self.pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(256, 64, 1), nn.ReLU())
        self.head = nn.Sequential(_conv(320, 64, 1), _conv(64, 64), nn.Conv2d(64, 21, 1))

    def forward(self, image: Tensor) -> Tensor:
        """Logits of each pixel."""
        x = self.backbone(image)
        pooled = self.pool(x).expand(-1, -1, *x.shape[2:])
        x = self.head(torch.cat([*(branch(x) for branch in self.branches), pooled], 1))
        return F.interpolate(x, image.shape[2:], mode="bilinear", align_corners=False)


class Yolo(nn.Module):
    """A one-stage detector: CSP backbone, two levels, boxes decoded on a grid as YOLO does."""

    def __init__(self, size: int = 160, classes: int = 20) -> None:
        super().__init__()
        self.stem = nn.Sequential(_conv(3, 32, 3, 2, act=nn.SiLU), _conv(32, 64, 3, 2, act=nn.SiLU))
        self.stage1 = nn.Sequential(
            Residual(64, 64, 1, False),
            _conv(64, 128, 3, 2, act=nn.SiLU),
            Residual(128, 128, 1, False),
            _conv(128, 256, 3, 2, act=nn.SiLU),
        )
        self.stage2 = nn.Sequential(
            Residual(256, 256, 1, False), _conv(256, 512, 3, 2, act=nn.SiLU), Residual(512, 512, 1, False)
        )
        self.lateral, self.merge = _conv(512, 256, 1, act=nn.SiLU), _conv(512, 256, 3, act=nn.SiLU)
        self.heads = nn.ModuleList([nn.Conv2d(256, 3 * (5 + classes), 1), nn.Conv2d(512, 3 * (5 + classes), 1)])
        for head in self.heads:  # sigmoids that differ, as trained ones do
            nn.init.normal_(head.weight, std=3 / math.sqrt(head.in_channels))
        self.classes = classes
        for level, stride in enumerate((16, 32)):
            n = size // stride
            y, x = torch.meshgrid(torch.arange(n), torch.arange(n), indexing="ij")
            self.register_buffer(f"grid{level}", torch.stack([x, y], -1).float().view(1, 1, n, n, 2))
            self.register_buffer(f"anchor{level}", (torch.rand(1, 3, 1, 1, 2) + 0.5) * stride * 2)

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Boxes [N, count, 4] in pixels and scores [N, count, classes]."""
        middle = self.stage1(self.stem(image))
        deep = self.stage2(middle)
        merged = self.merge(torch.cat([F.interpolate(self.lateral(deep), scale_factor=2.0), middle], 1))
        boxes, scores = [], []
        for level, (x, stride) in enumerate(((merged, 16), (deep, 32))):
            y = self.heads[level](x)
            n, _, h, w = y.shape
            y = y.view(n, 3, 5 + self.classes, h, w).permute(0, 1, 3, 4, 2)
            xy = (y[..., :2].sigmoid() * 2 - 0.5 + getattr(self, f"grid{level}")) * stride
            wh = (y[..., 2:4].sigmoid() * 2) ** 2 * getattr(self, f"anchor{level}")
            boxes.append(torch.cat([xy - wh / 2, xy + wh / 2], -1).reshape(n, -1, 4))
            scores.append((y[..., 4:5].sigmoid() * y[..., 5:].sigmoid()).reshape(n, -1, self.classes))
        return torch.cat(boxes, 1), torch.cat(scores, 1)


class Ssd(nn.Module):
    """SSD-Lite: MobileNetV3's features at two scales and extra layers, class scores and box offsets."""

    def __init__(self, classes: int = 21) -> None:
        super().__init__()
        features = MobileNetV3().features
        self.low, self.high = features[:13], features[13:]
        self.extra = nn.Sequential(_conv(960, 128, 1), _conv(128, 128, 3, 2, 128), _conv(128, 256, 1))
        widths = (112, 960, 256)
        self.scores = nn.ModuleList(nn.Sequential(_conv(c, c, 3, 1, c), nn.Conv2d(c, 6 * classes, 1)) for c in widths)
        self.offsets = nn.ModuleList(nn.Sequential(_conv(c, c, 3, 1, c), nn.Conv2d(c, 24, 1)) for c in widths)
        self.classes = classes

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        """Scores [N, anchors, classes] and offsets [N, anchors, 4]."""
        levels = [self.low(image)]
        levels.append(self.high(levels[0]))
        levels.append(self.extra(levels[1]))
        found: dict[str, list[Tensor]] = {"scores": [], "offsets": []}
        for x, score, offset in zip(levels, self.scores, self.offsets, strict=True):
            found["scores"].append(score(x).permute(0, 2, 3, 1).reshape(x.shape[0], -1, self.classes))
            found["offsets"].append(offset(x).permute(0, 2, 3, 1).reshape(x.shape[0], -1, 4))
        return {"scores": torch.cat(found["scores"], 1).softmax(-1), "offsets": torch.cat(found["offsets"], 1)}


class Edsr(nn.Module):
    """EDSR: residual blocks without norms and pixel shuffle, twice the size."""

    def __init__(self, width: int = 64, blocks: int = 16) -> None:
        super().__init__()
        self.head = nn.Conv2d(3, width, 3, padding=1)
        self.body = nn.ModuleList(
            nn.Sequential(nn.Conv2d(width, width, 3, padding=1), nn.ReLU(), nn.Conv2d(width, width, 3, padding=1))
            for _ in range(blocks)
        )
        self.tail = nn.Sequential(
            nn.Conv2d(width, 4 * width, 3, padding=1), nn.PixelShuffle(2), nn.Conv2d(width, 3, 3, padding=1)
        )

    def forward(self, image: Tensor) -> Tensor:
        """The image at twice the size."""
        x = self.head(image)
        for block in self.body:
            x = x + 0.3 * block(x)
        return self.tail(x)


# ---------------------------------------------------------------- sequences


class Lstm(nn.Module):
    """Speech features through three bidirectional LSTM layers."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(40, 192, 3, batch_first=True, bidirectional=True)
        self.head = nn.Linear(384, 29)

    def forward(self, features: Tensor) -> Tensor:
        """Logits of each step."""
        return self.head(self.lstm(features)[0])


class Gru(nn.Module):
    """A time series through convolutions and two GRU layers; gives the forecast and the last state."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Sequential(nn.Conv1d(8, 128, 5, padding=2), nn.ReLU())
        self.gru = nn.GRU(128, 384, 2, batch_first=True)
        self.head = nn.Linear(384, 12)

    def forward(self, series: Tensor, state: Tensor) -> dict[str, Tensor]:
        """The forecast [N, 12] and the new state."""
        y, new = self.gru(self.conv(series.transpose(1, 2)).transpose(1, 2), state)
        return {"forecast": self.head(y[:, -1]), "new_state": new}


class Tcn(nn.Module):
    """A temporal convolutional network: causal dilated convolutions with residuals."""

    def __init__(self, width: int = 160, levels: int = 8) -> None:
        super().__init__()
        self.first = nn.Conv1d(16, width, 1)
        self.levels = nn.ModuleList(
            nn.ModuleList(nn.Conv1d(width, width, 3, dilation=1 << level) for _ in range(2)) for level in range(levels)
        )
        self.head = nn.Linear(width, 10)

    def forward(self, series: Tensor) -> Tensor:
        """Logits of the last step."""
        x = self.first(series)
        for level, (one, two) in enumerate(self.levels):
            y = F.relu(one(F.pad(x, (2 << level, 0))))
            x = F.relu(x + two(F.pad(y, (2 << level, 0))))
        return self.head(x[:, :, -1])


class Bert(nn.Module):
    """A BERT-like encoder: token and position embeddings, masked attention, pooler."""

    def __init__(self, width: int = 256, depth: int = 8) -> None:
        super().__init__()
        self.words, self.positions = nn.Embedding(8000, width), nn.Embedding(128, width)
        self.norm = nn.LayerNorm(width)
        self.layers = nn.ModuleList(Encoder(width, 4) for _ in range(depth))
        self.pooler, self.head = nn.Linear(width, width), nn.Linear(width, 4)

    def forward(self, ids: Tensor, mask: Tensor) -> dict[str, Tensor]:
        """Hidden states and the logits of the whole text."""
        x = self.norm(self.words(ids) + self.positions(torch.arange(ids.shape[1])))
        bias = (1.0 - mask[:, None, None, :].float()) * -1e4
        for layer in self.layers:
            x = layer(x, bias)
        return {"hidden": x, "logits": self.head(torch.tanh(self.pooler(x[:, 0])))}


class Decoder(nn.Module):
    """One step of a GPT-like decoder with a cache of keys and values of a fixed length."""

    def __init__(self, width: int = 256, depth: int = 6, heads: int = 4) -> None:
        super().__init__()
        self.heads, self.width = heads, width
        self.words, self.positions = nn.Embedding(4000, width), nn.Embedding(256, width)
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(2 * depth + 1))
        self.qkv = nn.ModuleList(nn.Linear(width, 3 * width) for _ in range(depth))
        self.out = nn.ModuleList(nn.Linear(width, width) for _ in range(depth))
        self.mlp = nn.ModuleList(
            nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(approximate="tanh"), nn.Linear(4 * width, width))
            for _ in range(depth)
        )

    def forward(self, token: Tensor, position: Tensor, keys: Tensor, values: Tensor) -> dict[str, Tensor]:
        """Logits of the next token, and the cache with this one written at `position`.

        Args:
            token: int64 [1, 1].
            position: int64 [1].
            keys: float32 [layers, 1, heads, length, head].
            values: as `keys`.
        """
        x = self.words(token) + self.positions(position)
        length = keys.shape[3]
        here = (torch.arange(length) == position).view(1, 1, length, 1)
        bias = torch.where(torch.arange(length) <= position, 0.0, -1e4).view(1, 1, 1, length)
        new_keys, new_values = [], []
        for i, (qkv, out, mlp) in enumerate(zip(self.qkv, self.out, self.mlp, strict=True)):
            parts = qkv(self.norms[2 * i](x)).view(1, 1, 3, self.heads, self.width // self.heads).permute(2, 0, 3, 1, 4)
            k, v = torch.where(here, parts[1], keys[i]), torch.where(here, parts[2], values[i])
            y = F.scaled_dot_product_attention(parts[0], k, v, attn_mask=bias)
            x = x + out(y.transpose(1, 2).reshape(1, 1, self.width))
            x = x + mlp(self.norms[2 * i + 1](x))
            new_keys.append(k)
            new_values.append(v)
        logits = self.norms[-1](x) @ self.words.weight.T / math.sqrt(self.width)
        return {"logits": logits, "new_keys": torch.stack(new_keys), "new_values": torch.stack(new_values)}


class Audio(nn.Module):
    """M5-like: one-dimensional convolutions on the waveform, with residuals as M18's."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Conv1d(1, 64, 80, 4, bias=False), nn.BatchNorm1d(64), nn.ReLU(), nn.MaxPool1d(4)]
        c = 64
        for to in (64, 128, 256, 512):
            for _ in range(4):
                layers += [nn.Conv1d(c, to, 3, padding=1, bias=False), nn.BatchNorm1d(to), nn.ReLU()]
                c = to
            layers += [nn.MaxPool1d(4)] if to < 512 else []
        self.features = nn.Sequential(*layers)
        self.head = nn.Linear(512, 35)

    def forward(self, waveform: Tensor) -> Tensor:
        """Logits of the spoken word."""
        return self.head(self.features(waveform).mean(2))


class Digits(nn.Module):
    """A residual network for the 8 by 8 digits, which is trained."""

    def __init__(self) -> None:
        super().__init__()
        blocks = [Residual(32 if not i else 64, 64, 1, False) for i in range(4)]
        self.features = nn.Sequential(
            _conv(1, 32),
            *blocks[:2],
            nn.MaxPool2d(2),
            *blocks[2:],
            Residual(64, 128, 1, False),
            Residual(128, 128, 1, False),
        )
        self.head = nn.Linear(128, 10)

    def forward(self, image: Tensor) -> Tensor:
        """Scores of the ten digits."""
        return self.head(self.features(image).mean((2, 3)))

"""The network of improved-diffusion and guided-diffusion in PyTorch, written from its description
(Nichol & Dhariwal 2021, Dhariwal & Nichol 2021), with their names of weights.
"""

from __future__ import annotations

import math

import torch
from torch import nn
from torch.nn import functional


def times_as_waves(times, features: int):
    """Cosines before sines; the last frequency is just above 1 / 10000."""
    half = features // 2
    frequencies = torch.exp(-math.log(10000.0) * torch.arange(half, dtype=torch.float32) / half)
    angles = times.float()[:, None] * frequencies
    return torch.cat([angles.cos(), angles.sin()], dim=1)


class Told(nn.Module):
    """A residual block, which may halve or double the size."""

    def __init__(self, given, made, features, scale_shift, resize=None):
        super().__init__()
        self.scale_shift, self.resize = scale_shift, resize
        self.in_layers = nn.Sequential(
            nn.GroupNorm(32, given), nn.SiLU(), nn.Conv2d(given, made, 3, padding=1)
        )
        self.emb_layers = nn.Sequential(
            nn.SiLU(), nn.Linear(features, 2 * made if scale_shift else made)
        )
        self.out_layers = nn.Sequential(
            nn.GroupNorm(32, made), nn.SiLU(), nn.Dropout(0.0), nn.Conv2d(made, made, 3, padding=1)
        )
        same = given == made
        self.skip_connection = nn.Identity() if same else nn.Conv2d(given, made, 1)

    def resized(self, x):
        if self.resize == "halved":
            return functional.avg_pool2d(x, 2)
        return functional.interpolate(x, scale_factor=2) if self.resize == "doubled" else x

    def forward(self, x, embedding):
        norm, swish, convolution = self.in_layers
        y = convolution(self.resized(swish(norm(x))))
        told = self.emb_layers(embedding)[:, :, None, None]
        if self.scale_shift:
            scale, shift = told.chunk(2, dim=1)
            y = self.out_layers[1:](self.out_layers[0](y) * (1 + scale) + shift)
        else:
            y = self.out_layers(y + told)
        return self.skip_connection(self.resized(x)) + y


class Attention(nn.Module):
    def __init__(self, width, heads, new_order):
        super().__init__()
        self.heads, self.new_order = heads, new_order
        self.norm = nn.GroupNorm(32, width)
        self.qkv = nn.Conv1d(width, 3 * width, 1)
        self.proj_out = nn.Conv1d(width, width, 1)

    def forward(self, x):
        batch, width, rows, columns = x.shape
        joint = self.qkv(self.norm(x.flatten(2)))
        if self.new_order:  # all queries, all keys, all values
            parts = joint.view(batch, 3, self.heads, -1, rows * columns).unbind(1)
        else:  # queries, keys and values of a head, then those of the next
            parts = joint.view(batch, self.heads, 3, -1, rows * columns).unbind(2)
        queries, keys, values = parts
        weights = torch.einsum("bhct,bhcs->bhts", queries, keys) / math.sqrt(queries.shape[2])
        seen = torch.einsum("bhts,bhcs->bhct", weights.softmax(-1), values)
        return x + self.proj_out(seen.reshape(batch, width, -1)).view_as(x)


class Halving(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.op = nn.Conv2d(width, width, 3, stride=2, padding=1)

    def forward(self, x):
        return self.op(x)


class Doubling(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x):
        return self.conv(functional.interpolate(x, scale_factor=2))


class Network(nn.Module):
    """As their flags have it; `attended` are levels, counted from 0 at the full resolution."""

    def __init__(
        self,
        channels=32,
        multipliers=(1, 2),
        depth=1,
        attended=(1,),
        *,
        heads=None,
        head_channels=None,
        scale_shift=True,
        residual_resizing=False,
        new_order=False,
        learned_variance=False,
        classes=None,
    ):
        super().__init__()
        self.channels, features = channels, 4 * channels
        self.time_embed = nn.Sequential(
            nn.Linear(channels, features), nn.SiLU(), nn.Linear(features, features)
        )
        if classes is not None:
            self.label_emb = nn.Embedding(classes, features)

        def block(given, made, resize=None):
            return Told(given, made, features, scale_shift, resize)

        def attention(width):
            return Attention(width, heads or width // head_channels, new_order)

        def stage(*parts):
            return nn.ModuleList(parts)

        widths = [int(channels * multiplier) for multiplier in multipliers]
        width, last = widths[0], len(widths) - 1
        self.input_blocks = nn.ModuleList([stage(nn.Conv2d(3, width, 3, padding=1))])
        skips = [width]
        for level, made in enumerate(widths):
            for _ in range(depth):
                more = [attention(made)] if level in attended else []
                self.input_blocks.append(stage(block(width, made), *more))
                width = made
                skips.append(width)
            if level < last:
                halving = block(width, width, "halved") if residual_resizing else Halving(width)
                self.input_blocks.append(stage(halving))
                skips.append(width)
        self.middle_block = stage(block(width, width), attention(width), block(width, width))
        self.output_blocks = nn.ModuleList()
        for level, made in reversed(list(enumerate(widths))):
            for index in range(depth + 1):
                parts = [block(width + skips.pop(), made)]
                width = made
                if level in attended:
                    parts.append(attention(made))
                if level and index == depth:
                    resizing = residual_resizing
                    parts.append(block(made, made, "doubled") if resizing else Doubling(made))
                self.output_blocks.append(stage(*parts))
        self.out = nn.Sequential(
            nn.GroupNorm(32, width),
            nn.SiLU(),
            nn.Conv2d(width, 6 if learned_variance else 3, 3, padding=1),
        )

    def forward(self, x, times, labels=None):
        embedding = self.time_embed(times_as_waves(times, self.channels))
        if labels is not None:
            embedding = embedding + self.label_emb(labels)

        def through(stage, x):
            for part in stage:
                x = part(x, embedding) if isinstance(part, Told) else part(x)
            return x

        skips = []
        for stage in self.input_blocks:
            x = through(stage, x)
            skips.append(x)
        x = through(self.middle_block, x)
        for stage in self.output_blocks:
            x = through(stage, torch.cat([x, skips.pop()], dim=1))
        return self.out(x)


def random(seed: int = 0, **options) -> Network:
    """A network none of whose weights is at its initial value."""
    torch.manual_seed(seed)
    network = Network(**options).eval()
    with torch.no_grad():
        for weight in network.parameters():
            weight.add_(0.1 * torch.randn_like(weight))
    return network

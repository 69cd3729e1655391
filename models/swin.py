"""Swin-T: attention in shifted windows (Liu et al. 2021, arXiv:2103.14030)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from models.layers import RESIDUAL_GAIN, conv2d, layer_norm, linear, parameter
from models.sample import Sample, image_sample, seeded


def relative_positions(window: int) -> Tensor:
    """Returns the row of the bias table per pair of positions in a window: [window**4] integers."""
    rows, columns = torch.meshgrid(torch.arange(window), torch.arange(window), indexing="ij")
    points = torch.stack([rows.flatten(), columns.flatten()])
    offsets = points[:, :, None] - points[:, None, :] + window - 1
    return (offsets[0] * (2 * window - 1) + offsets[1]).flatten()


def partition(x: Tensor, window: int) -> Tensor:
    """Maps [batch, height, width, channels] to [batch, windows, window**2, channels]."""
    _, height, width, channels = x.shape
    rows, columns = height // window, width // window
    grid = x.reshape(-1, rows, window, columns, window, channels).permute(0, 1, 3, 2, 4, 5)
    return grid.reshape(-1, rows * columns, window**2, channels)


def shifted_mask(size: int, window: int, shift: int) -> Tensor:
    """Returns -100 between positions that only the shift made neighbours, else 0.

    The shape is [windows, window**2, window**2].
    """
    bands = torch.zeros(size, dtype=torch.int64)
    bands[size - window : size - shift] = 1
    bands[size - shift :] = 2
    regions = (3 * bands[:, None] + bands[None, :]).reshape(1, size, size, 1)
    labels = partition(regions, window)[0, :, :, 0]
    return (labels[:, :, None] != labels[:, None, :]).float() * -100.0


class WindowAttention(nn.Module):
    """Self-attention inside windows of a map that is rolled by `shift` before and back after."""

    def __init__(self, channels: int, heads: int, size: int, window: int, shift: int) -> None:
        super().__init__()
        self.heads, self.window, self.shift, self.size = heads, window, shift, size
        self.query_key_value = linear(channels, 3 * channels)
        self.project = linear(channels, channels, gain=RESIDUAL_GAIN)
        self.bias_table = parameter((2 * window - 1) ** 2, heads, std=0.2)
        self.register_buffer("index", relative_positions(window), persistent=False)
        mask = shifted_mask(size, window, shift) if shift else None
        self.register_buffer("mask", mask, persistent=False)
        self.index: Tensor
        self.mask: Tensor | None

    def forward(self, x: Tensor) -> Tensor:
        """Maps [batch, size, size, channels] to the same shape."""
        channels, window, shift = x.shape[-1], self.window, self.shift
        tokens, rows = window**2, self.size // window
        if shift:
            x = torch.roll(x, (-shift, -shift), (1, 2))
        joined: Tensor = self.query_key_value(partition(x, window))
        joined = joined.reshape(-1, rows**2, tokens, 3, self.heads, channels // self.heads)
        query, key, value = joined.permute(3, 0, 1, 4, 2, 5).unbind(0)
        scores = query @ key.transpose(-1, -2) * (channels // self.heads) ** -0.5
        bias = self.bias_table[self.index].reshape(tokens, tokens, self.heads).permute(2, 0, 1)
        scores = scores + bias
        if self.mask is not None:
            scores = scores + self.mask[:, None]
        mixed = (scores.softmax(-1) @ value).transpose(2, 3).reshape(-1, rows**2, tokens, channels)
        y: Tensor = self.project(mixed)
        y = y.reshape(-1, rows, rows, window, window, channels).permute(0, 1, 3, 2, 4, 5)
        y = y.reshape(-1, self.size, self.size, channels)
        return torch.roll(y, (shift, shift), (1, 2)) if shift else y


class Block(nn.Module):
    """Window attention and a perceptron, each normalized before and added to its input."""

    def __init__(self, channels: int, heads: int, size: int, window: int, shift: int) -> None:
        super().__init__()
        attention = WindowAttention(channels, heads, size, window, shift)
        self.attention = nn.Sequential(layer_norm(channels), attention)
        self.mlp = nn.Sequential(
            layer_norm(channels),
            linear(channels, 4 * channels),
            nn.GELU(),
            linear(4 * channels, channels, gain=RESIDUAL_GAIN),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Maps [batch, size, size, channels] to the same shape."""
        x = x + self.attention(x)
        y: Tensor = x + self.mlp(x)
        return y


class PatchMerging(nn.Module):
    """Joins each 2x2 block of positions into one with twice the channels."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = layer_norm(4 * channels)
        self.reduce = linear(4 * channels, 2 * channels, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Maps [batch, size, size, channels] to [batch, size / 2, size / 2, 2 * channels]."""
        corners = [x[:, row::2, column::2] for column in (0, 1) for row in (0, 1)]
        y: Tensor = self.reduce(self.norm(torch.cat(corners, dim=-1)))
        return y


class Swin(nn.Module):
    """Image classifier: images [batch, 3, height, width] to logits [batch, num_classes]."""

    def __init__(
        self,
        resolution: int,
        embedding: int,
        depths: tuple[int, ...],
        heads: tuple[int, ...],
        window: int,
        num_classes: int,
    ) -> None:
        super().__init__()
        self.embed = conv2d(3, embedding, 4, stride=4, padding=0, gain=1.0)
        layers: list[nn.Module] = [layer_norm(embedding)]
        channels, size = embedding, resolution // 4
        for stage, (depth, stage_heads) in enumerate(zip(depths, heads, strict=True)):
            if stage > 0:
                layers.append(PatchMerging(channels))
                channels, size = 2 * channels, size // 2
            for index in range(depth):
                shift = window // 2 if index % 2 and size > window else 0
                layers.append(Block(channels, stage_heads, size, window, shift))
        layers.append(layer_norm(channels))
        self.blocks = nn.Sequential(*layers)
        self.classifier = linear(channels, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """Returns the logits."""
        tokens: Tensor = self.blocks(self.embed(images).permute(0, 2, 3, 1))
        logits: Tensor = self.classifier(tokens.mean(dim=(1, 2)))
        return logits


def swin_tiny(
    resolution: int = 224,
    embedding: int = 96,
    depths: tuple[int, ...] = (2, 2, 6, 2),
    heads: tuple[int, ...] = (3, 6, 12, 24),
    window: int = 7,
    num_classes: int = 1000,
    seed: int = 0,
) -> Sample:
    """Builds Swin-T.

    Args:
        resolution: Of the images, in pixels; a multiple of `4 * window * 2**(stages - 1)`.
        embedding: Channels of the first stage; doubled per stage.
        depths: Number of blocks per stage; every second one shifts its windows.
        heads: Attention heads per stage.
        window: Height and width of a window, in positions.
        num_classes: Number of logits.
        seed: Of weights and example inputs.
    """
    with seeded(seed):
        module = Swin(resolution, embedding, depths, heads, window, num_classes)
        return image_sample(module, resolution)

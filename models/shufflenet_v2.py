"""ShuffleNetV2 1.0x: channel split and channel shuffle (Ma et al. 2018, arXiv:1807.11164)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from models.layers import ConvNorm, PoolHead
from models.sample import Sample, image_sample, seeded


def shuffle_channels(x: Tensor) -> Tensor:
    """Interleaves the two halves of the channels of [batch, channels, height, width]."""
    _, channels, height, width = x.shape
    pairs = x.reshape(-1, 2, channels // 2, height, width)
    return pairs.transpose(1, 2).reshape(-1, channels, height, width)


def half_branch(in_channels: int, out_channels: int, stride: int) -> nn.Sequential:
    """Returns 1x1, depthwise 3x3 and 1x1 convolution."""
    return nn.Sequential(
        ConvNorm(in_channels, out_channels, 1),
        ConvNorm(out_channels, out_channels, stride=stride, groups=out_channels, activation=None),
        ConvNorm(out_channels, out_channels, 1, gain=1.0),
    )


class SplitUnit(nn.Module):
    """Transforms one half of the channels, keeps the other, and shuffles: same shape out as in."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.branch = half_branch(channels // 2, channels // 2, stride=1)

    def forward(self, x: Tensor) -> Tensor:
        """Maps [batch, channels, height, width] to the same shape."""
        kept, transformed = torch.chunk(x, 2, dim=1)
        return shuffle_channels(torch.cat([kept, self.branch(transformed)], dim=1))


class DownUnit(nn.Module):
    """Halves the size through two branches, each with half of the output channels."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        half = out_channels // 2
        self.left = nn.Sequential(
            ConvNorm(in_channels, in_channels, stride=2, groups=in_channels, activation=None),
            ConvNorm(in_channels, half, 1, gain=1.0),
        )
        self.right = half_branch(in_channels, half, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        """Maps [batch, in_channels, h, w] to [batch, out_channels, h / 2, w / 2]."""
        return shuffle_channels(torch.cat([self.left(x), self.right(x)], dim=1))


class ShuffleNetV2(nn.Module):
    """Image classifier: images [batch, 3, height, width] to logits [batch, num_classes]."""

    def __init__(
        self,
        channels: tuple[int, ...],
        repeats: tuple[int, ...],
        last_channels: int,
        num_classes: int,
    ) -> None:
        super().__init__()
        current = 24
        layers: list[nn.Module] = [
            ConvNorm(3, current, stride=2),
            nn.MaxPool2d(3, stride=2, padding=1),
        ]
        for stage_channels, stage_repeats in zip(channels, repeats, strict=True):
            layers.append(DownUnit(current, stage_channels))
            layers += [SplitUnit(stage_channels) for _ in range(stage_repeats - 1)]
            current = stage_channels
        layers.append(ConvNorm(current, last_channels, 1))
        self.features = nn.Sequential(*layers)
        self.head = PoolHead(last_channels, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """Returns the logits."""
        logits: Tensor = self.head(self.features(images))
        return logits


def shufflenet_v2(
    channels: tuple[int, ...] = (116, 232, 464),
    repeats: tuple[int, ...] = (4, 8, 4),
    last_channels: int = 1024,
    resolution: int = 224,
    num_classes: int = 1000,
    seed: int = 0,
) -> Sample:
    """Builds ShuffleNetV2.

    Args:
        channels: Output channels per stage, even.
        repeats: Number of units per stage.
        last_channels: Channels of the last 1x1 convolution.
        resolution: Height and width of the images, in pixels.
        num_classes: Number of logits.
        seed: Of weights and example inputs.
    """
    with seeded(seed):
        module = ShuffleNetV2(channels, repeats, last_channels, num_classes)
        return image_sample(module, resolution)

"""DenseNet-121: layers read all layers before them (Huang et al. 2016, arXiv:1608.06993)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from models.layers import ConvNorm, PoolHead, batch_norm, conv2d
from models.sample import Sample, image_sample, seeded


class DenseLayer(nn.Module):
    """Normalization, ReLU and 1x1 convolution, then the same with 3x3; the input stays in front."""

    def __init__(self, in_channels: int, growth: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            batch_norm(in_channels),
            nn.ReLU(),
            conv2d(in_channels, 4 * growth, 1, bias=False),
            batch_norm(4 * growth),
            nn.ReLU(),
            conv2d(4 * growth, growth, 3, bias=False),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Maps [batch, in_channels, h, w] to [batch, in_channels + growth, h, w]."""
        return torch.cat([x, self.body(x)], dim=1)


class DenseNet(nn.Module):
    """Image classifier: images [batch, 3, height, width] to logits [batch, num_classes]."""

    def __init__(self, growth: int, blocks: tuple[int, ...], num_classes: int) -> None:
        super().__init__()
        channels = 2 * growth
        layers: list[nn.Module] = [
            ConvNorm(3, channels, 7, stride=2),
            nn.MaxPool2d(3, stride=2, padding=1),
        ]
        for block, repeats in enumerate(blocks):
            if block > 0:
                layers += [
                    batch_norm(channels),
                    nn.ReLU(),
                    conv2d(channels, channels // 2, 1, bias=False),
                    nn.AvgPool2d(2),
                ]
                channels //= 2
            for _ in range(repeats):
                layers.append(DenseLayer(channels, growth))
                channels += growth
        layers += [batch_norm(channels), nn.ReLU()]
        self.features = nn.Sequential(*layers)
        self.head = PoolHead(channels, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """Returns the logits."""
        logits: Tensor = self.head(self.features(images))
        return logits


def densenet121(
    growth: int = 32,
    blocks: tuple[int, ...] = (6, 12, 24, 16),
    resolution: int = 224,
    num_classes: int = 1000,
    seed: int = 0,
) -> Sample:
    """Builds DenseNet-121.

    Args:
        growth: Channels that every layer adds.
        blocks: Number of layers per dense block.
        resolution: Height and width of the images, in pixels.
        num_classes: Number of logits.
        seed: Of weights and example inputs.
    """
    with seeded(seed):
        return image_sample(DenseNet(growth, blocks, num_classes), resolution)

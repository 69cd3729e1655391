"""EfficientNet-B0: mobile blocks with channel gates (Tan and Le 2019, arXiv:1905.11946)."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from models.layers import (
    RESIDUAL_GAIN,
    SILU_GAIN,
    ConvNorm,
    PoolHead,
    Residual,
    conv2d,
    round_channels,
)
from models.sample import Sample, image_sample, seeded

STAGES = (
    (1, 16, 1, 1, 3),
    (6, 24, 2, 2, 3),
    (6, 40, 2, 2, 5),
    (6, 80, 3, 2, 3),
    (6, 112, 3, 1, 5),
    (6, 192, 4, 2, 5),
    (6, 320, 1, 1, 3),
)
"""Expansion, output channels, number of blocks, stride of the first block, kernel size."""


class SqueezeExcite(nn.Module):
    """Scales every channel by a gate computed from the means of all channels."""

    def __init__(self, channels: int, squeezed: int) -> None:
        super().__init__()
        self.reduce = conv2d(channels, squeezed, 1)
        self.activation = nn.SiLU()
        self.expand = conv2d(squeezed, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Maps [batch, channels, height, width] to the same shape."""
        means = x.mean(dim=(2, 3), keepdim=True)
        return x * torch.sigmoid(self.expand(self.activation(self.reduce(means))))


def mobile_block(
    in_channels: int, out_channels: int, expansion: int, stride: int, kernel_size: int
) -> nn.Module:
    """Returns expand, depthwise, squeeze-and-excite, project; a residual where the shape allows."""
    hidden = in_channels * expansion
    is_residual = stride == 1 and in_channels == out_channels
    layers: list[nn.Module] = []
    if expansion != 1:
        layers.append(ConvNorm(in_channels, hidden, 1, activation=nn.SiLU, gain=1.0))
    layers += [
        ConvNorm(
            hidden,
            hidden,
            kernel_size,
            stride=stride,
            groups=hidden,
            activation=nn.SiLU,
            gain=SILU_GAIN,
        ),
        SqueezeExcite(hidden, max(1, in_channels // 4)),
        ConvNorm(
            hidden,
            out_channels,
            1,
            activation=None,
            gain=RESIDUAL_GAIN if is_residual else 2 * SILU_GAIN,
        ),
    ]
    body = nn.Sequential(*layers)
    return Residual(body) if is_residual else body


class EfficientNet(nn.Module):
    """Image classifier: images [batch, 3, height, width] to logits [batch, num_classes]."""

    def __init__(self, width: float, depth: float, num_classes: int) -> None:
        super().__init__()
        channels = round_channels(32 * width)
        blocks: list[nn.Module] = [ConvNorm(3, channels, stride=2, activation=nn.SiLU)]
        for expansion, stage_channels, repeats, first_stride, kernel_size in STAGES:
            out_channels = round_channels(stage_channels * width)
            for index in range(math.ceil(repeats * depth)):
                stride = first_stride if index == 0 else 1
                blocks.append(mobile_block(channels, out_channels, expansion, stride, kernel_size))
                channels = out_channels
        last_channels = 4 * channels
        blocks.append(ConvNorm(channels, last_channels, 1, activation=nn.SiLU))
        self.features = nn.Sequential(*blocks)
        self.head = PoolHead(last_channels, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """Returns the logits."""
        logits: Tensor = self.head(self.features(images))
        return logits


def efficientnet_b0(
    width: float = 1.0,
    depth: float = 1.0,
    resolution: int = 224,
    num_classes: int = 1000,
    seed: int = 0,
) -> Sample:
    """Builds EfficientNet-B0.

    Args:
        width: Factor on the channels of every layer.
        depth: Factor on the number of blocks of every stage, rounded up.
        resolution: Height and width of the images, in pixels.
        num_classes: Number of logits.
        seed: Of weights and example inputs.
    """
    with seeded(seed):
        return image_sample(EfficientNet(width, depth, num_classes), resolution)

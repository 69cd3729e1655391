"""MobileNetV2: inverted residual blocks (Sandler et al. 2018, arXiv:1801.04381)."""

from __future__ import annotations

from torch import Tensor, nn

from models.layers import RESIDUAL_GAIN, ConvNorm, PoolHead, Residual, round_channels
from models.sample import Sample, image_sample, seeded

STAGES = (
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)
"""Expansion, output channels, number of blocks, stride of the first block (the paper, table 2)."""


def inverted_residual(
    in_channels: int, out_channels: int, expansion: int, stride: int
) -> nn.Module:
    """Returns expand (1x1), depthwise (3x3), project (1x1); a residual where the shape allows."""
    hidden = in_channels * expansion
    is_residual = stride == 1 and in_channels == out_channels
    layers: list[nn.Module] = []
    if expansion != 1:
        layers.append(ConvNorm(in_channels, hidden, 1, activation=nn.ReLU6))
    layers += [
        ConvNorm(hidden, hidden, 3, stride=stride, groups=hidden, activation=nn.ReLU6),
        ConvNorm(
            hidden, out_channels, 1, activation=None, gain=RESIDUAL_GAIN if is_residual else 1.0
        ),
    ]
    body = nn.Sequential(*layers)
    return Residual(body) if is_residual else body


class MobileNetV2(nn.Module):
    """Image classifier: images [batch, 3, height, width] to logits [batch, num_classes]."""

    def __init__(
        self, width: float, stages: tuple[tuple[int, int, int, int], ...], num_classes: int
    ) -> None:
        super().__init__()
        channels = round_channels(32 * width)
        blocks: list[nn.Module] = [ConvNorm(3, channels, 3, stride=2, activation=nn.ReLU6)]
        for expansion, stage_channels, repeats, stride in stages:
            out_channels = round_channels(stage_channels * width)
            for index in range(repeats):
                first = index == 0
                blocks.append(
                    inverted_residual(channels, out_channels, expansion, stride if first else 1)
                )
                channels = out_channels
        last_channels = round_channels(1280 * max(1.0, width))
        blocks.append(ConvNorm(channels, last_channels, 1, activation=nn.ReLU6))
        self.features = nn.Sequential(*blocks)
        self.head = PoolHead(last_channels, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """Returns the logits."""
        logits: Tensor = self.head(self.features(images))
        return logits


def mobilenet_v2(
    width: float = 1.0,
    resolution: int = 224,
    num_classes: int = 1000,
    stages: tuple[tuple[int, int, int, int], ...] = STAGES,
    seed: int = 0,
) -> Sample:
    """Builds MobileNetV2.

    Args:
        width: Factor on the channels of every layer.
        resolution: Height and width of the images, in pixels.
        num_classes: Number of logits.
        stages: As `STAGES`.
        seed: Of weights and example inputs.
    """
    with seeded(seed):
        return image_sample(MobileNetV2(width, stages, num_classes), resolution)

"""ConvNeXt-T: depthwise 7x7 and inverted bottlenecks (Liu et al. 2022, arXiv:2201.03545)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from models.layers import conv2d, layer_norm, linear
from models.sample import Sample, image_sample, seeded


class ChannelNorm(nn.Module):
    """Layer normalization over the channels of [batch, channels, height, width]."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = layer_norm(channels, eps=1e-6)

    def forward(self, x: Tensor) -> Tensor:
        """Maps [batch, channels, height, width] to the same shape."""
        normalized: Tensor = self.norm(x.permute(0, 2, 3, 1))
        return normalized.permute(0, 3, 1, 2)


class Block(nn.Module):
    """Depthwise 7x7, layer normalization, two linear layers on channels-last, scaled residual."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.depthwise = conv2d(channels, channels, 7, groups=channels, gain=1.0)
        self.mlp = nn.Sequential(
            layer_norm(channels, eps=1e-6),
            linear(channels, 4 * channels),
            nn.GELU(),
            linear(4 * channels, channels),
        )
        self.scale = nn.Parameter(torch.empty(channels).uniform_(0.2, 0.6))

    def forward(self, x: Tensor) -> Tensor:
        """Maps [batch, channels, height, width] to the same shape."""
        branch: Tensor = self.mlp(self.depthwise(x).permute(0, 2, 3, 1))
        return x + (self.scale * branch).permute(0, 3, 1, 2)


class ConvNeXt(nn.Module):
    """Image classifier: images [batch, 3, height, width] to logits [batch, num_classes]."""

    def __init__(
        self, channels: tuple[int, ...], depths: tuple[int, ...], num_classes: int
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = [
            conv2d(3, channels[0], 4, stride=4, padding=0, gain=1.0),
            ChannelNorm(channels[0]),
        ]
        for stage, (stage_channels, depth) in enumerate(zip(channels, depths, strict=True)):
            if stage > 0:
                before = channels[stage - 1]
                layers += [
                    ChannelNorm(before),
                    conv2d(before, stage_channels, 2, stride=2, padding=0, gain=1.0),
                ]
            layers += [Block(stage_channels) for _ in range(depth)]
        self.features = nn.Sequential(*layers)
        self.norm = layer_norm(channels[-1], eps=1e-6)
        self.classifier = linear(channels[-1], num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """Returns the logits."""
        pooled = self.features(images).mean(dim=(2, 3))
        logits: Tensor = self.classifier(self.norm(pooled))
        return logits


def convnext_tiny(
    channels: tuple[int, ...] = (96, 192, 384, 768),
    depths: tuple[int, ...] = (3, 3, 9, 3),
    resolution: int = 224,
    num_classes: int = 1000,
    seed: int = 0,
) -> Sample:
    """Builds ConvNeXt-T; the scale of the residual branches is that of a trained model, not 1e-6.

    Args:
        channels: Per stage.
        depths: Number of blocks per stage.
        resolution: Height and width of the images, in pixels.
        num_classes: Number of logits.
        seed: Of weights and example inputs.
    """
    with seeded(seed):
        return image_sample(ConvNeXt(channels, depths, num_classes), resolution)

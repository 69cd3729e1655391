"""DeepLabv3 on a ResNet-50 with a dilated last stage (Chen et al. 2017, arXiv:1706.05587)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from models.layers import ConvNorm, conv2d
from models.resnet import Bottleneck, ResNetBackbone
from models.sample import Sample, image_sample, seeded

RATES = (6, 12, 18)


class ImagePooling(nn.Module):
    """The mean over the image, convolved and spread over the image again."""

    def __init__(self, in_channels: int, channels: int) -> None:
        super().__init__()
        self.conv = ConvNorm(in_channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Maps [batch, in_channels, height, width] to [batch, channels, height, width]."""
        pooled: Tensor = self.conv(x.mean(dim=(2, 3), keepdim=True))
        return pooled.expand(-1, -1, x.shape[2], x.shape[3])


class PyramidPooling(nn.Module):
    """Convolutions of several dilations side by side, joined by a 1x1 convolution."""

    def __init__(self, in_channels: int, channels: int) -> None:
        super().__init__()
        self.branches = nn.ModuleList(
            [
                ConvNorm(in_channels, channels, 1),
                *(ConvNorm(in_channels, channels, 3, dilation=rate) for rate in RATES),
                ImagePooling(in_channels, channels),
            ]
        )
        self.project = ConvNorm(channels * len(self.branches), channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Maps [batch, in_channels, height, width] to [batch, channels, height, width]."""
        y: Tensor = self.project(torch.cat([branch(x) for branch in self.branches], dim=1))
        return y


class DeepLabV3(nn.Module):
    """Segmentation at 1/16: images [batch, 3, h, w] to logits [batch, num_classes, h, w]."""

    def __init__(
        self, width: int, blocks: tuple[int, ...], head_channels: int, num_classes: int
    ) -> None:
        super().__init__()
        self.backbone = ResNetBackbone(Bottleneck, width, blocks, dilate_last=True)
        self.head = nn.Sequential(
            PyramidPooling(self.backbone.stage_channels[-1], head_channels),
            ConvNorm(head_channels, head_channels, 3),
            conv2d(head_channels, num_classes, 1, gain=1.0),
        )

    def forward(self, images: Tensor) -> Tensor:
        """Returns one logit per class and pixel."""
        coarse: Tensor = self.head(self.backbone(images)[-1])
        return functional.interpolate(
            coarse, size=images.shape[2:], mode="bilinear", align_corners=False
        )


def deeplab_v3(
    width: int = 64,
    blocks: tuple[int, ...] = (3, 4, 6, 3),
    head_channels: int = 256,
    resolution: int = 513,
    num_classes: int = 21,
    seed: int = 0,
) -> Sample:
    """Builds DeepLabv3.

    Args:
        width: Channels of the backbone's stem.
        blocks: Number of residual blocks per stage of the backbone.
        head_channels: Of every branch of the pyramid pooling.
        resolution: Height and width of the images, in pixels.
        num_classes: Number of logits per pixel.
        seed: Of weights and example inputs.
    """
    with seeded(seed):
        module = DeepLabV3(width, blocks, head_channels, num_classes)
        return image_sample(module, resolution)

"""ResNet-18 and ResNet-50 (He et al. 2015, arXiv:1512.03385).

The stride of a bottleneck sits in its 3x3 convolution, as in most published weights, not in the
first 1x1 as in the paper.
"""

from __future__ import annotations

from torch import Tensor, nn

from models.layers import RESIDUAL_GAIN, ConvNorm, PoolHead
from models.sample import Sample, image_sample, seeded


class BasicBlock(nn.Module):
    """Two 3x3 convolutions with a shortcut."""

    expansion = 1

    def __init__(self, in_channels: int, channels: int, stride: int, dilation: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            ConvNorm(in_channels, channels, stride=stride, dilation=dilation),
            ConvNorm(channels, channels, dilation=dilation, activation=None, gain=RESIDUAL_GAIN),
        )
        self.shortcut = make_shortcut(in_channels, channels * self.expansion, stride)
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """Maps [batch, in_channels, h, w] to [batch, channels, h / stride, w / stride]."""
        y: Tensor = self.relu(self.body(x) + self.shortcut(x))
        return y


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolution with a shortcut; the output has four times `channels`."""

    expansion = 4

    def __init__(self, in_channels: int, channels: int, stride: int, dilation: int) -> None:
        super().__init__()
        out_channels = channels * self.expansion
        self.body = nn.Sequential(
            ConvNorm(in_channels, channels, 1),
            ConvNorm(channels, channels, stride=stride, dilation=dilation),
            ConvNorm(channels, out_channels, 1, activation=None, gain=RESIDUAL_GAIN),
        )
        self.shortcut = make_shortcut(in_channels, out_channels, stride)
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """Maps [batch, in_channels, h, w] to [batch, 4 * channels, h / stride, w / stride]."""
        y: Tensor = self.relu(self.body(x) + self.shortcut(x))
        return y


def make_shortcut(in_channels: int, out_channels: int, stride: int) -> nn.Module:
    """Returns the identity, or a 1x1 projection where the shape changes."""
    if stride == 1 and in_channels == out_channels:
        return nn.Identity()
    return ConvNorm(in_channels, out_channels, 1, stride=stride, activation=None, gain=1.0)


class ResNetBackbone(nn.Module):
    """Stem and stages; returns the output of every stage, at 1/4, 1/8, 1/16, ... of the size.

    Args:
        block: Which residual block.
        width: Channels of the stem; stage i works with `width * 2**i`.
        blocks: Number of blocks per stage.
        dilate_last: Whether the last stage dilates by 2 instead of halving the size.
    """

    def __init__(
        self,
        block: type[BasicBlock] | type[Bottleneck],
        width: int,
        blocks: tuple[int, ...],
        *,
        dilate_last: bool = False,
    ) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            ConvNorm(3, width, 7, stride=2), nn.MaxPool2d(3, stride=2, padding=1)
        )
        self.stages = nn.ModuleList()
        self.stage_channels: list[int] = []
        channels = width
        for stage, repeats in enumerate(blocks):
            dilation = 2 if dilate_last and stage == len(blocks) - 1 else 1
            first_stride = 1 if stage == 0 or dilation > 1 else 2
            layers: list[nn.Module] = []
            for index in range(repeats):
                stride = first_stride if index == 0 else 1
                layers.append(block(channels, width * 2**stage, stride, dilation))
                channels = width * 2**stage * block.expansion
            self.stages.append(nn.Sequential(*layers))
            self.stage_channels.append(channels)

    def forward(self, images: Tensor) -> list[Tensor]:
        """Returns one map per stage."""
        x: Tensor = self.stem(images)
        maps = []
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        return maps


class ResNet(nn.Module):
    """Image classifier: images [batch, 3, height, width] to logits [batch, num_classes]."""

    def __init__(self, backbone: ResNetBackbone, num_classes: int) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = PoolHead(backbone.stage_channels[-1], num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """Returns the logits."""
        logits: Tensor = self.head(self.backbone(images)[-1])
        return logits


def resnet18(
    width: int = 64,
    blocks: tuple[int, ...] = (2, 2, 2, 2),
    resolution: int = 224,
    num_classes: int = 1000,
    seed: int = 0,
) -> Sample:
    """Builds ResNet-18.

    Args:
        width: Channels of the stem.
        blocks: Number of residual blocks per stage.
        resolution: Height and width of the images, in pixels.
        num_classes: Number of logits.
        seed: Of weights and example inputs.
    """
    with seeded(seed):
        backbone = ResNetBackbone(BasicBlock, width, blocks)
        return image_sample(ResNet(backbone, num_classes), resolution)


def resnet50(
    width: int = 64,
    blocks: tuple[int, ...] = (3, 4, 6, 3),
    resolution: int = 224,
    num_classes: int = 1000,
    seed: int = 0,
) -> Sample:
    """Builds ResNet-50; arguments as `resnet18`."""
    with seeded(seed):
        backbone = ResNetBackbone(Bottleneck, width, blocks)
        return image_sample(ResNet(backbone, num_classes), resolution)

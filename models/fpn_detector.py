"""A one-stage detector: ResNet-18, feature pyramid and shared heads.

After RetinaNet (Lin et al. 2017, arXiv:1708.02002), with three levels and narrower heads. Anchors
and the suppression of duplicates are left to the host: the outputs are two maps per level.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from models.layers import ConvNorm, conv2d
from models.resnet import BasicBlock, ResNetBackbone
from models.sample import Sample, image_sample, seeded


class FeaturePyramid(nn.Module):
    """Brings maps of several sizes to the same channels and adds the coarser ones to the finer."""

    def __init__(self, in_channels: list[int], channels: int) -> None:
        super().__init__()
        self.lateral = nn.ModuleList(conv2d(before, channels, 1) for before in in_channels)
        self.smooth = nn.ModuleList(conv2d(channels, channels, gain=1.0) for _ in in_channels)

    def forward(self, maps: list[Tensor]) -> list[Tensor]:
        """Maps [batch, in_channels[i], h / 2**i, w / 2**i] to [batch, channels, ...]."""
        merged: list[Tensor] = []
        for lateral, x in zip(reversed(self.lateral), reversed(maps), strict=True):
            y: Tensor = lateral(x)
            if merged:
                y = y + functional.interpolate(merged[-1], size=y.shape[2:], mode="nearest")
            merged.append(y)
        merged.reverse()
        return [smooth(y) for smooth, y in zip(self.smooth, merged, strict=True)]


def make_head(channels: int, depth: int, out_channels: int) -> nn.Sequential:
    """Returns `depth` normalized 3x3 convolutions and one that makes the outputs."""
    body = [ConvNorm(channels, channels) for _ in range(depth)]
    return nn.Sequential(*body, conv2d(channels, out_channels, gain=1.0))


class FpnDetector(nn.Module):
    """Detector: images [batch, 3, h, w] to scores and boxes at 1/8, 1/16 and 1/32 of the size."""

    def __init__(
        self,
        width: int,
        blocks: tuple[int, ...],
        pyramid_channels: int,
        head_depth: int,
        anchors: int,
        num_classes: int,
    ) -> None:
        super().__init__()
        self.backbone = ResNetBackbone(BasicBlock, width, blocks)
        self.pyramid = FeaturePyramid(self.backbone.stage_channels[1:], pyramid_channels)
        self.score_head = make_head(pyramid_channels, head_depth, anchors * num_classes)
        self.box_head = make_head(pyramid_channels, head_depth, anchors * 4)

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Returns the scores and the boxes of every level, finest first.

        Scores are [batch, anchors * num_classes, h / stride, w / stride], boxes have
        `anchors * 4` channels.
        """
        outputs: list[Tensor] = []
        for level in self.pyramid(self.backbone(images)[1:]):
            outputs += [torch.sigmoid(self.score_head(level)), self.box_head(level)]
        return tuple(outputs)


def fpn_detector(
    width: int = 64,
    blocks: tuple[int, ...] = (2, 2, 2, 2),
    pyramid_channels: int = 64,
    head_depth: int = 2,
    anchors: int = 9,
    num_classes: int = 80,
    resolution: int = 320,
    seed: int = 0,
) -> Sample:
    """Builds the detector.

    Args:
        width: Channels of the backbone's stem.
        blocks: Number of residual blocks per stage of the backbone, four stages.
        pyramid_channels: Of the feature pyramid and the heads.
        head_depth: Hidden convolutions of each head.
        anchors: Boxes per position.
        num_classes: Scores per box.
        resolution: Height and width of the images, in pixels.
        seed: Of weights and example inputs.
    """
    names = tuple(f"{kind}_{level}" for level in (8, 16, 32) for kind in ("scores", "boxes"))
    with seeded(seed):
        module = FpnDetector(width, blocks, pyramid_channels, head_depth, anchors, num_classes)
        return image_sample(module, resolution, output_names=names)

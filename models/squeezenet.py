"""SqueezeNet (Iandola et al. 2016, arXiv:1602.07360), version 1.1 of the authors' repository."""

from __future__ import annotations

from torch import Tensor, nn

from models.layers import Branches, conv2d
from models.sample import Sample, image_sample, seeded

FIRES = ((16, 64), (16, 64), (32, 128), (32, 128), (48, 192), (48, 192), (64, 256), (64, 256))
"""Squeeze and expand channels of the fire modules; the size halves before modules 0, 2 and 4."""


def fire(in_channels: int, squeeze: int, expand: int) -> nn.Module:
    """Returns a 1x1 squeeze, then a 1x1 and a 3x3 expand side by side: 2 * expand channels."""
    return nn.Sequential(
        conv2d(in_channels, squeeze, 1),
        nn.ReLU(),
        Branches(
            nn.Sequential(conv2d(squeeze, expand, 1), nn.ReLU()),
            nn.Sequential(conv2d(squeeze, expand, 3), nn.ReLU()),
        ),
    )


class SqueezeNet(nn.Module):
    """Image classifier: images [batch, 3, height, width] to logits [batch, num_classes]."""

    def __init__(self, width: float, num_classes: int) -> None:
        super().__init__()
        channels = int(64 * width)
        layers: list[nn.Module] = [conv2d(3, channels, 3, stride=2, padding=0), nn.ReLU()]
        for index, (squeeze, expand) in enumerate(FIRES):
            if index in (0, 2, 4):
                layers.append(nn.MaxPool2d(3, stride=2, ceil_mode=True))
            layers.append(fire(channels, int(squeeze * width), int(expand * width)))
            channels = 2 * int(expand * width)
        layers += [
            conv2d(channels, num_classes, 1),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
        ]
        self.layers = nn.Sequential(*layers)

    def forward(self, images: Tensor) -> Tensor:
        """Returns the logits, none negative: the last activation sits before the pooling."""
        logits: Tensor = self.layers(images)
        return logits


def squeezenet1_1(
    width: float = 1.0, resolution: int = 224, num_classes: int = 1000, seed: int = 0
) -> Sample:
    """Builds SqueezeNet 1.1.

    Args:
        width: Factor on the channels of every layer; a multiple of 1/16.
        resolution: Height and width of the images, in pixels.
        num_classes: Number of logits.
        seed: Of weights and example inputs.
    """
    with seeded(seed):
        return image_sample(SqueezeNet(width, num_classes), resolution)
